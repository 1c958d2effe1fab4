#!/usr/bin/env python3
"""Throughput of whole-disk reads out of containers, beside the tools that wrote them.

    scripts/benchmark/containers.py [--rounds N] [--size MIB] [--only TEXT]

Root (for the mounts). IMGFS_BIN names a release build; default: target/release/imgfs. Packages:
qemu-utils, ewf-tools. Each figure is the median of rounds in which all contenders take turns,
the image in the host's cache, in MB/s of unpacked bytes:

    one reader    imgfs: cat IMAGE:/disk.img; qemu-img convert into nothing; ewfexport into /dev/null
    two readers   imgfs: a mount, each reader takes half of disk.img; the tool: two of it, each takes half
"""
import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
IMGFS = os.environ.get("IMGFS_BIN", "target/release/imgfs")
# name, how it is made, the tool that reads it
FORMATS = [
    ("qcow2", "qemu-img convert -O qcow2 base.raw image", "qemu"),
    ("qcow2 zlib", "qemu-img convert -c -O qcow2 base.raw image", "qemu"),
    ("qcow2 zstd", "qemu-img convert -c -O qcow2 -o compression_type=zstd base.raw image", "qemu"),
    ("vmdk streamOptimized", "qemu-img convert -O vmdk -o subformat=streamOptimized base.raw image", "qemu"),
    ("E01 fast", "ewfacquire -q -u -c fast -S 8G -t image -f encase6 base.raw && mv image.E01 image", "ewf"),
]


def make_disk(path, size):
    """Text, noise and zeros in runs of a few hundred KiB, as disks have them."""
    dice = random.Random(1)
    words = [dice.randbytes(6).hex().encode() for _ in range(500)]
    with open(path, "wb") as file:
        while (left := size - file.tell()) > 0:
            length = min(left, dice.choice([64, 256, 1024]) << 10)
            kind = dice.randrange(3)
            if kind == 0:
                text = b" ".join(dice.choices(words, k=length // 13 + 1))
                file.write(text[:length])
            elif kind == 1:
                file.write(dice.randbytes(length))
            else:
                file.seek(length, os.SEEK_CUR)
        file.truncate(size)


def quiet(command, **more):
    subprocess.run(command, shell=isinstance(command, str), check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, **more)


def together(commands):
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for command in commands]
    if any(process.wait() != 0 for process in running):
        raise RuntimeError(f"failed: {commands}")


def ours(readers, size):
    if readers == 1:
        quiet([IMGFS, "cat", "image:/disk.img"])
        return
    half = size // 2 // MIB
    together([["dd", "if=mnt/disk.img", "of=/dev/null", "bs=1M", f"skip={skip}", f"count={half}"] for skip in (0, half)])


def tool(kind, readers, size):
    if kind == "ewf":
        half = size // 2
        parts = [(0, size)] if readers == 1 else [(0, half), (half, size - half)]
        together([["ewfexport", "-q", "-u", "-f", "raw", "-t", "-", "-o", str(at), "-B", str(length), "ewf.E01"]
                  for at, length in parts])
        return
    driver = subprocess.check_output(["qemu-img", "info", "image"], text=True).split("file format: ")[1].split()[0]
    command = ["qemu-img", "convert", "-n", "--image-opts", "--target-image-opts"]
    half = size // 2
    parts = [(0, size)] if readers == 1 else [(0, half), (half, size - half)]
    together([command + [f"driver=raw,offset={at},size={length},file.driver={driver},file.file.driver=file,"
                         f"file.file.filename=image", f"driver=null-co,size={length}"] for at, length in parts])


def timed(work):
    start = time.monotonic()
    work()
    return time.monotonic() - start


def measure(name, kind, size, rounds):
    for readers in (1, 2):
        if readers == 2:
            os.makedirs("mnt", exist_ok=True)
        mine, theirs = [], []
        for _ in range(rounds):
            if readers == 2:
                # Mounted anew: what the page cache and ours keep is not what is measured.
                quiet([IMGFS, "image", "mnt"])
            try:
                mine.append(timed(lambda: ours(readers, size)))
            finally:
                if readers == 2:
                    quiet([IMGFS, "umount", "mnt"])
            theirs.append(timed(lambda: tool(kind, readers, size)))
        rates = [size / 1e6 / statistics.median(times) for times in (mine, theirs)]
        ratio = statistics.median(b / a for a, b in zip(mine, theirs))
        print(f"{name:22} {readers} reader{'s' if readers > 1 else ' '}  imgfs {rates[0]:7.0f} MB/s  "
              f"{'ewfexport' if kind == 'ewf' else 'qemu-img':9} {rates[1]:7.0f} MB/s  {ratio:5.2f} times", flush=True)


def main():
    global IMGFS
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=1024, help="of the disk, MiB")
    parser.add_argument("--only", default="")
    words = parser.parse_args()
    IMGFS = os.path.abspath(IMGFS)
    if not os.access(IMGFS, os.X_OK):
        sys.exit(f"{IMGFS} is not there: cargo build --release, or IMGFS_BIN")
    size = words.size * MIB
    with tempfile.TemporaryDirectory(prefix="imgfs-containers-") as scratch:
        os.chdir(scratch)
        make_disk("base.raw", size)
        for name, script, kind in FORMATS:
            if words.only not in name:
                continue
            quiet("rm -f image ewf.E01")
            quiet(script)
            if kind == "ewf":
                os.link("image", "ewf.E01")
            measure(name, kind, size, words.rounds)
        os.chdir("/")


main()
