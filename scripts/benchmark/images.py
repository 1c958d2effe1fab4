"""The images that are measured: one big file and many small ones, in each file system, also fragmented.

Everything is made once and kept; delete the folder to make it anew. The contents are random but for
a seed: nothing is a hole by accident, and the big file (hex digits) packs to half its size.
"""
import os
import random
import struct
import subprocess

BLOCK = 4096
GPT_PARTITIONS = 128
LABEL = "BENCH"


class Size:
    """How much there is of everything."""

    def __init__(self, quick):
        self.name = "quick" if quick else "full"
        self.big = (4 if quick else 256) << 20
        self.folders = 3 if quick else 30
        self.files_per_folder = 10 if quick else 100
        self.random_reads = 64 if quick else 2048
        self.created = 50 if quick else 5000
        self.written = (2 if quick else 256) << 20
        self.overwrites = 64 if quick else 4096
        # What the curves are drawn through.
        self.disks_gb = (1, 4) if quick else (1, 10, 100, 1000)
        self.files = (10, 100) if quick else (1_000, 10_000, 100_000, 1_000_000)
        self.runs = (1, 16) if quick else (1, 256, 4096, 65536)
        self.threads = (1, 2) if quick else (1, 2, 4, 8, 16, 32)

    @property
    def small_files(self):
        return self.folders * self.files_per_folder


def run(*command, **kwargs):
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, **kwargs)


def make_source(folder, size):
    """The tree that every image holds."""
    source = os.path.join(folder, "source")
    if os.path.exists(source):
        return source
    chance = random.Random(20)
    temporary = source + ".new"
    os.makedirs(temporary)
    for number in range(size.folders):
        below = os.path.join(temporary, "small", f"folder{number:02}")
        os.makedirs(below)
        for file in range(size.files_per_folder):
            with open(os.path.join(below, f"file-{file:04}.bin"), "wb") as out:
                out.write(chance.randbytes(chance.randint(1 << 10, 16 << 10)))
    with open(os.path.join(temporary, "big.bin"), "wb") as out:
        for _ in range(size.big >> 20):
            out.write(chance.randbytes(1 << 19).hex().encode())
    os.rename(temporary, source)
    return source


def image_bytes(size):
    return size.big + size.small_files * (16 << 10) + (64 << 20)


def sparse(path, length):
    with open(path, "wb") as out:
        out.truncate(length)


def ext(path, kind, source, size):
    sparse(path, image_bytes(size))
    run("mke2fs", "-q", "-F", "-t", kind, "-L", LABEL, "-d", source, path)


def ext_fragmented(path, kind, source, size):
    """A file takes the room, every second block of it is given back, and the big file goes there."""
    # The holes also take the lists of the blocks.
    room = 2 * (size.big + size.big // 32)
    sparse(path, image_bytes(size) + room + (32 << 20))
    run("mke2fs", "-q", "-F", "-t", kind, "-L", LABEL, path)
    mountpoint = path + ".mnt"
    os.makedirs(mountpoint, exist_ok=True)
    # The driver of ext4 serves ext2 too, and only it can punch holes.
    run("mount", "-t", "ext4", "-o", "loop", path, mountpoint)
    try:
        run("cp", "-r", os.path.join(source, "small"), mountpoint)
        filler = os.path.join(mountpoint, "filler")
        with open(filler, "wb") as out:
            for _ in range(room >> 20):
                out.write(b"\xff" * (1 << 20))
        # What else is free goes, so that only the holes are left.
        rest = os.path.join(mountpoint, "rest")
        with open(rest, "wb") as out:
            try:
                while True:
                    out.write(b"\xff" * (1 << 20))
            except OSError:
                pass
        run("sync", "-f", mountpoint)
        punch(filler, room)
        run("sync", "-f", mountpoint)
        run("cp", os.path.join(source, "big.bin"), mountpoint)
        run("sync", "-f", mountpoint)
        os.remove(filler)
        os.remove(rest)
    finally:
        run("umount", mountpoint)
        os.rmdir(mountpoint)


def punch(path, length):
    """Gives every second block back."""
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    punch_hole, keep_size = 2, 1
    file = os.open(path, os.O_RDWR)
    for at in range(0, length, 2 * BLOCK):
        if libc.fallocate(file, punch_hole | keep_size, ctypes.c_long(at), ctypes.c_long(BLOCK)) != 0:
            raise OSError(ctypes.get_errno(), "fallocate", path)
    os.close(file)


def iso(path, source):
    run("genisoimage", "-quiet", "-R", "-V", LABEL, "-o", path, source)


def fat32(path, source, size):
    sparse(path, max(image_bytes(size), 300 << 20))
    run("mkfs.fat", "-F", 32, "-s", BLOCK // 512, "-n", LABEL, path)
    names = [os.path.join(source, name) for name in sorted(os.listdir(source))]
    run("mcopy", "-s", "-i", path, *names, "::/")


def fat32_fragmented(path, source, size, runs=None):
    """As `fat32`, then the big file is cut into `runs` (default: as many as it has clusters) that change
    places within its room."""
    fat32(path, source, size)
    with open(path, "r+b") as image:
        boot = image.read(512)
        per_sector, = struct.unpack_from("<H", boot, 0x0b)
        reserved, tables = struct.unpack_from("<HB", boot, 0x0e)
        table_sectors, = struct.unpack_from("<I", boot, 0x24)
        root, = struct.unpack_from("<I", boot, 0x2c)
        data = (reserved + tables * table_sectors) * per_sector
        position = lambda cluster: data + (cluster - 2) * BLOCK
        image.seek(position(root))
        rows = image.read(BLOCK)
        at = rows.index(b"BIG     BIN")
        high, = struct.unpack_from("<H", rows, at + 0x14)
        low, length = struct.unpack_from("<HI", rows, at + 0x1a)
        first = high << 16 | low
        count = length // BLOCK
        # Halves interleaved: no run is followed by its neighbour. The last may be a short one, and stays.
        each = count // runs if runs else 1
        whole = count // each
        half = (whole + 1) // 2
        place = lambda number: number // 2 if number % 2 == 0 else half + number // 2
        places = [first + place(number // each) * each + number % each for number in range(whole * each)]
        places += range(first + whole * each, first + count)
        image.seek(position(first))
        contents = image.read(length)
        for number, place in enumerate(places):
            image.seek(position(place))
            image.write(contents[number * BLOCK:(number + 1) * BLOCK])
        nexts = dict(zip(places, places[1:] + [0x0fffffff]))
        links = b"".join(struct.pack("<I", nexts[cluster]) for cluster in range(first, first + count))
        for table in range(tables):
            image.seek((reserved + table * table_sectors) * per_sector + first * 4)
            image.write(links)
    # Its clusters keep the room, its start stays where it was: places[0] is the first one.
    run("fsck.fat", "-n", path)


def ext4_of_many(path, count):
    """One directory with so many empty files."""
    sparse(path, (64 << 20) + count * 1024)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-N", count + 1000, path)
    mountpoint = path + ".mnt"
    os.makedirs(mountpoint, exist_ok=True)
    run("mount", "-o", "loop", path, mountpoint)
    try:
        folder = os.path.join(mountpoint, "many")
        os.mkdir(folder)
        within = os.open(folder, os.O_RDONLY)
        for number in range(count):
            os.close(os.open(f"file number {number:07}.txt", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=within))
        os.close(within)
    finally:
        run("umount", mountpoint)
        os.rmdir(mountpoint)


def gpt_disk(path, length=1 << 40, partitions=GPT_PARTITIONS):
    """So many bytes with so many partitions of the same size: by default 1 TB, and as many as a GPT holds."""
    sparse(path, length)
    each = length // partitions // 512 // 2048 * 2048
    rows = "\n".join(f"start={2048 + number * each}, size={each}" for number in range(partitions - 1))
    text = "label: gpt\n" + rows + "\n,\n"
    subprocess.run(["sfdisk", "-q", path], input=text, text=True, check=True, stdout=subprocess.DEVNULL)


def make_all(folder, size):
    """Paths by name. What is there is kept; an image under its name is whole."""
    folder = os.path.join(folder, size.name)
    os.makedirs(folder, exist_ok=True)
    # Programs that run as an ordinary user read these.
    os.chmod(folder, 0o755)
    source = make_source(folder, size)
    makers = {
        "ext4": lambda path: ext(path, "ext4", source, size),
        "ext4, fragmented": lambda path: ext_fragmented(path, "ext4", source, size),
        "ext2": lambda path: ext(path, "ext2", source, size),
        "ext2, fragmented": lambda path: ext_fragmented(path, "ext2", source, size),
        "ISO": lambda path: iso(path, source),
        "FAT32": lambda path: fat32(path, source, size),
        "FAT32, fragmented": lambda path: fat32_fragmented(path, source, size),
        "1 TB": gpt_disk,
    }
    for gb in size.disks_gb:
        makers[f"{gb} GB"] = lambda path, gb=gb: gpt_disk(path, gb << 30, 4)
    for count in size.files:
        makers[f"ext4, {count} files"] = lambda path, count=count: ext4_of_many(path, count)
    for runs in size.runs:
        makers[f"FAT32, {runs} runs"] = lambda path, runs=runs: fat32_fragmented(path, source, size, runs)
    images = {"source": source}
    for name, make in makers.items():
        path = os.path.join(folder, name.replace(", ", "-").replace(" ", "") + ".img")
        build(path, make)
        images[name] = path
    for name, options in {"qcow2": [], "qcow2, zlib": ["-c"], "qcow2, zstd": ["-c", "-o", "compression_type=zstd"]}.items():
        path = os.path.join(folder, name.replace(", ", "-") + ".qcow2")
        build(path, lambda path: run("qemu-img", "convert", "-O", "qcow2", *options, images["ext4"], path))
        images[name] = path
    return images


def build(path, make):
    if os.path.exists(path):
        return
    print(f"bench: making {os.path.basename(path)}", flush=True)
    make(path + ".new")
    os.chmod(path + ".new", 0o644)
    os.rename(path + ".new", path)
