"""Who is measured: imgfs, the kernel, and the programs that do the same in user space.

A contender mounts an image on a folder, says where the files (or the flat bytes) are, and goes away.
"""
import os
import select
import shutil
import signal
import subprocess
import time

USER = "imgfs-test"
SECONDS = 30


class Contender:
    """A program that mounts. `{image}`, `{mnt}` and `{scratch}` are filled in."""

    def __init__(self, name, command, inside="", needs=None, user=None, foreground=False, file=False):
        self.name = name
        self.command = command
        # Where, below the mount point, the files or the bytes are.
        self.inside = inside
        self.needs = needs or command.split()[0]
        self.user = user
        # Whether the program stays, and must be ended or waited for.
        self.foreground = foreground
        # Whether it mounts on a file instead of a folder.
        self.file = file

    def is_there(self):
        return shutil.which(self.needs) is not None


class Mount:
    """A contender at work, in a `with`."""

    def __init__(self, contender, image, folder):
        self.contender, self.image, self.folder = contender, image, folder
        self.mountpoint = os.path.join(folder, "mnt")
        self.process = None

    def __enter__(self):
        contender = self.contender
        os.makedirs(self.folder)
        if contender.file:
            open(self.mountpoint, "w").close()
        else:
            os.mkdir(self.mountpoint)
        scratch = os.path.join(self.folder, "scratch")
        words = [word.format(image=self.image, mnt=self.mountpoint, scratch=scratch) for word in contender.command.split()]
        who = {}
        if contender.user:
            for path in (self.folder, self.mountpoint):
                shutil.chown(path, contender.user)
            who = {"user": contender.user, "group": contender.user, "extra_groups": []}
        self.started = time.perf_counter()
        # Some talk on standard error whatever happens.
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        quiet["stderr"] = None if contender.name == "imgfs" else subprocess.DEVNULL
        self.process = subprocess.Popen(words, cwd=self.folder, **quiet, **who)
        try:
            if not contender.foreground:
                wait_for(self.process)
                if self.process.returncode != 0:
                    raise RuntimeError(f"{' '.join(words)}: exit code {self.process.returncode}")
            self.wait(lambda: mounted(self.mountpoint), "did not mount")
        except BaseException:
            self.__exit__()
            raise
        return self

    def wait(self, done, what):
        limit = time.perf_counter() + SECONDS
        while not done():
            if time.perf_counter() > limit:
                raise RuntimeError(f"{self.contender.name} {what}: {self.image}")
            time.sleep(0.001)

    @property
    def path(self):
        path = os.path.join(self.mountpoint, self.contender.inside.format(stem=os.path.splitext(os.path.basename(self.image))[0]))
        return path.rstrip("/")

    def peak_memory(self):
        """The largest resident size that the program had, in bytes; 0 when it is the kernel."""
        largest = 0
        for number in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{number}/cmdline", "rb") as words:
                    if self.mountpoint.encode() not in words.read():
                        continue
                with open(f"/proc/{number}/status") as status:
                    largest = max([largest] + [int(row.split()[1]) << 10 for row in status if row.startswith("VmHWM")])
            except (FileNotFoundError, ProcessLookupError):
                pass
        return largest

    def __exit__(self, *_):
        if self.contender.name == "imgfs" and mounted(self.mountpoint):
            self.end(["imgfs", "umount", self.mountpoint])
        elif mounted(self.mountpoint):
            self.end(["umount", self.mountpoint])
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(SECONDS)
        self.wait(lambda: self.peak_memory() == 0, "did not end")
        shutil.rmtree(self.folder)

    def end(self, words):
        for _ in range(SECONDS * 10):
            if subprocess.run(words, capture_output=True).returncode == 0 or not mounted(self.mountpoint):
                return
            time.sleep(0.1)
        raise RuntimeError(f"cannot unmount {self.mountpoint}")


def wait_for(process):
    """Returns the moment it ends. `wait` with a time limit looks only now and then, every 50 ms in the end."""
    descriptor = os.pidfd_open(process.pid)
    try:
        select.select([descriptor], [], [], SECONDS)
    finally:
        os.close(descriptor)
    process.wait(SECONDS)


def mounted(path):
    with open("/proc/self/mountinfo") as rows:
        return any(row.split()[4] == path for row in rows)


IMGFS_TREE = Contender("imgfs", "imgfs {image} {mnt}", "disk")
LOOP = Contender("kernel loop", "mount -o loop,ro {image} {mnt}")
FUSE2FS = Contender("fuse2fs", "fuse2fs -o ro {image} {mnt}")
OTHER_TREE = Contender("4n6mount", "4n6mount {image} {mnt}", "ro/root", foreground=True)
TREES = {
    "ext": [IMGFS_TREE, LOOP, FUSE2FS, OTHER_TREE],
    "ISO": [IMGFS_TREE, Contender("fuseiso", "fuseiso -n {image} {mnt}")],
    "FAT": [IMGFS_TREE, Contender("fusefat", "fusefat -o ro {image} {mnt}")],
}

QEMU = "qemu-storage-daemon --blockdev driver=file,filename={image},node-name=f,read-only=on,auto-read-only=off "
QEMU_EXPORT = "--export type=fuse,id=e,node-name={node},mountpoint={{mnt}},writable=off,allow-other=off"


def qemu(kind, user):
    over = "" if kind == "raw" else f"--blockdev driver={kind},file=f,node-name=d,read-only=on "
    command = QEMU + over + QEMU_EXPORT.format(node="f" if kind == "raw" else "d")
    return Contender("qemu-storage-daemon", command, user=user, foreground=True, file=True)


def flat(kind, user):
    """Who shows the bytes of an image of this kind, as this user."""
    own = Contender("imgfs", "imgfs {image} {mnt}", "disk.img", user=user)
    if kind != "raw":
        return [own, qemu(kind, user)]
    rivals = [
        own,
        qemu("raw", user),
        Contender("xmount", "xmount -o ro,fsname=x --in raw {image} {mnt}", "{stem}.dd", user=user),
        Contender("nbdfuse", "nbdfuse -r {mnt}/nbd --command nbdkit -s --exit-with-parent file {image}", "nbd", user=user, foreground=True),
    ]
    # No program can be read faster through FUSE than one that answers out of its own memory.
    source = Contender("a mount of zeros", "imgfs-bounds source {image} {mnt}", "disk.img", user=user, foreground=True)
    return [*rivals, source] if user else rivals


WRITABLE_TREES = [
    Contender("imgfs", "imgfs -o rw --overlay {scratch} {image} {mnt}", "disk"),
    Contender("fusefat", "fusefat -o rw+ {image} {mnt}"),
]
WRITABLE_FLAT = [
    Contender("imgfs", "imgfs -o rw --overlay {scratch} {image} {mnt}", "disk.img"),
    Contender("xmount", "xmount --cache {scratch} --in raw {image} {mnt}", "{stem}.dd"),
]
# No program can take writes through FUSE faster than one that throws them away.
SINK = Contender("a mount that keeps nothing", "imgfs-bounds sink {image} {mnt}", foreground=True)
# They do not mount.
MCOPY = Contender("mcopy", "mcopy")
FATFS = Contender("the crate fatfs", "imgfs-bounds")
# Of a machine that is busy now and then, those are compared best that are measured one after the other.
FILE_COPIERS = [*WRITABLE_TREES[:1], MCOPY, *WRITABLE_TREES[1:]]
LARGE_WRITERS = [*WRITABLE_TREES[:1], MCOPY, SINK, *WRITABLE_TREES[1:], FATFS]
