"""Which contenders do what with which image, in rounds: within a round one after the other, so that
whatever else the machine does meets all of them.
"""
import glob
import os
import shutil
import subprocess
import time

import contenders
import work
from contenders import Mount

THREADS = (1, 4, 16)


class Suite:
    """Measures, and hands each value to `table`."""

    def __init__(self, table, images, size, scratch, save):
        self.table, self.images, self.size, self.scratch = table, images, size, scratch
        # Called now and then, so that a run that is broken off leaves what it measured.
        self.save = save

    def each_round(self, rounds, those, one):
        """Calls `one(contender)` for all of them in each round, in another order each time."""
        those = [contender for contender in those if contender.is_there()]
        if not those:
            return
        for number in range(rounds):
            turn = number % len(those)
            for contender in those[turn:] + those[:turn]:
                try:
                    one(contender)
                except (RuntimeError, subprocess.SubprocessError) as error:
                    # A rival that fails has no figure; a failure of ours is one of the run.
                    if contender.name == "imgfs":
                        raise
                    print(f"bench: {contender.name}: {error}", flush=True)
        self.save()

    def mount(self, contender, image, cold=False):
        """A fresh mount, of an image that is in the host's memory, or (`cold`) is not."""
        if cold:
            subprocess.run(["sync"], check=True)
            with open("/proc/sys/vm/drop_caches", "w") as drop:
                drop.write("3")
        else:
            work.read_sequentially(image)
        return Mount(contender, image, os.path.join(self.scratch, "at"))

    def trees(self, rounds, only):
        self.some_trees(rounds, only, ("ext4", "ISO", "FAT32"), False)

    def more_trees(self, rounds, only):
        self.some_trees(rounds, only, ("ext4, fragmented", "FAT32, fragmented", "ext2", "ext2, fragmented"), False)
        # What a disk costs shows where the files lie in order.
        self.some_trees(rounds, only, ("ext4", "ISO", "FAT32"), True)

    def some_trees(self, rounds, only, names, cold):
        for name in names:
            if only in f"trees {name} {'cold' if cold else 'warm'}":
                self.each_round(rounds, contenders.TREES[name[:3]], lambda one: self.tree(one, name, cold))

    def tree(self, contender, name, cold):
        state = "cold" if cold else "warm"

        def put(measure, unit, value):
            self.table.put("trees", name, state, measure, unit, contender.name, value)

        image = self.images[name]
        with self.mount(contender, image, cold) as mount:
            big = os.path.join(mount.path, "big.bin")
            for again in ("", ", again"):
                put("stat walk" + again, "s", work.in_child(lambda: work.stat_walk(mount.path)))
            files = work.small_files(os.path.join(mount.path, "small"))
            if len(files) != self.size.small_files:
                raise RuntimeError(f"{len(files)} small files on {image}")
            for again in ("", ", again"):
                put("small files" + again, "s", work.in_child(lambda: work.read_small(files)))
            for again in ("", ", again"):
                put("big file" + again, "MB/s", self.size.big / 1e6 / work.in_child(lambda: work.read_big(big)))
            if not cold and mount.peak_memory():
                put("peak memory", "MB", mount.peak_memory() / 1e6)
        with self.mount(contender, image, cold) as mount:
            big = os.path.join(mount.path, "big.bin")
            put("big file, two readers", "MB/s", self.size.big / 1e6 / work.in_child(lambda: work.two_readers(big)))
        for threads in THREADS:
            with self.mount(contender, image, cold) as mount:
                big = os.path.join(mount.path, "big.bin")
                seconds = work.in_child(lambda: work.random_reads(big, self.size.random_reads, threads))
                put(f"random 4 KiB, {threads} at once", "/s", self.size.random_reads / seconds)

    def flat(self, rounds, only):
        subjects = [("raw", "ext4", None), ("raw", "ext4", contenders.USER)]
        subjects += [("qcow2", name, contenders.USER) for name in ("qcow2", "qcow2, zlib", "qcow2, zstd")]
        for kind, image, user in subjects:
            subject = (f"raw, {'user' if user else 'root'}" if kind == "raw" else image)
            if only not in f"flat {subject}":
                continue
            those = contenders.flat(kind, user)
            if kind == "raw" and not user:
                those.append(contenders.Contender("the host's file", "true"))
            self.each_round(rounds, those, lambda one: self.flat_bytes(one, self.images[image], subject, user))

    def flat_bytes(self, contender, image, subject, user):
        def put(measure, unit, value):
            self.table.put("flat", subject, "warm", measure, unit, contender.name, value)

        def measure(do):
            """With a fresh mount; the host's own file is read as it is."""
            if contender.command == "true":
                work.read_sequentially(image)
                do(image)
            else:
                with self.mount(contender, image) as mount:
                    do(mount.path)

        def sequential(path):
            mb = work.in_child(lambda: os.stat(path).st_size, user) / 1e6
            for again in ("", ", again"):
                put("sequential" + again, "MB/s", mb / work.in_child(lambda: work.read_big(path), user))

        def direct(path):
            mb = work.in_child(lambda: os.stat(path).st_size, user) / 1e6
            put("sequential, O_DIRECT", "MB/s", mb / work.in_child(lambda: work.read_big(path, os.O_DIRECT), user))

        def two(path):
            mb = work.in_child(lambda: os.stat(path).st_size, user) / 1e6
            put("two readers", "MB/s", mb / work.in_child(lambda: work.two_readers(path), user))

        measure(sequential)
        # What root reads directly can come from the host's disk.
        if user:
            measure(direct)
        measure(two)
        for threads in THREADS:
            def reads(path):
                count = self.size.random_reads
                seconds = work.in_child(lambda: work.random_reads(path, count, threads), user)
                put(f"random 4 KiB, {threads} at once", "/s", count / seconds)
            measure(reads)

    def ready(self, rounds, only):
        if only not in "ready":
            return
        rivals = [one for one in contenders.flat("raw", None) if one.name != "imgfs"]

        def one(contender):
            seconds = self.time_to_list(contender, self.images["1 TB"])
            self.table.put("ready", "1 TB, 128 partitions", "warm", "ready", "s", contender.name, seconds)
        self.each_round(rounds, [contenders.IMGFS_TREE] + rivals, one)

    def time_to_list(self, contender, image):
        """Seconds from the start of the program to an answer from its mount."""
        with Mount(contender, image, os.path.join(self.scratch, "at")) as mount:
            target = mount.mountpoint
            os.listdir(target) if os.path.isdir(target) else os.stat(target)
            return time.perf_counter() - mount.started

    def growth(self, rounds, only):
        """One number of an image is raised, all others stay."""
        if only not in "growth":
            return
        size, trees = self.size, [contenders.IMGFS_TREE, contenders.LOOP, contenders.FUSE2FS]

        def put(subject, number, what, unit, name, value):
            self.table.put("growth", subject, "warm", f"{number:,} {what}", unit, name, value)

        for gb in size.disks_gb:
            def ready(one):
                put("ready, by the size of the disk", gb, "GB", "s", one.name, self.time_to_list(one, self.images[f"{gb} GB"]))
            self.each_round(rounds, [one for one in contenders.flat("raw", None) if one.name in ("imgfs", "xmount")], ready)
        for count in size.files:
            def walk(one):
                with self.mount(one, self.images[f"ext4, {count} files"]) as mount:
                    put("stat walk, by the files of one directory", count, "files", "s", one.name,
                        work.in_child(lambda: work.stat_walk(mount.path)))
            # Ten thousand take fuse2fs 9 seconds, ten times as many more than a quarter of an hour.
            self.each_round(rounds, [one for one in trees if count <= 10_000 or one != contenders.FUSE2FS], walk)
        for runs in size.runs:
            def reads(one):
                with self.mount(one, self.images[f"FAT32, {runs} runs"]) as mount:
                    seconds = work.in_child(lambda: work.random_reads(os.path.join(mount.path, "big.bin"), size.random_reads, 4))
                    put("random 4 KiB, 4 at once, by the runs of the file", runs, "runs", "/s", one.name, size.random_reads / seconds)
            self.each_round(rounds, contenders.TREES["FAT"], reads)
        for threads in size.threads:
            def reads_at_once(one):
                with self.mount(one, self.images["ext4"]) as mount:
                    seconds = work.in_child(lambda: work.random_reads(os.path.join(mount.path, "big.bin"), size.random_reads, threads))
                    put("random 4 KiB, by the number of readers", threads, "readers", "/s", one.name, size.random_reads / seconds)
            self.each_round(rounds, trees, reads_at_once)

    def directory(self, rounds, only):
        """The names alone of the largest directory."""
        if only not in "directory":
            return
        count = max(self.size.files)

        def one(contender):
            def put(measure, unit, value):
                self.table.put("directory", f"{count:,} files", "warm", measure, unit, contender.name, value)

            with self.mount(contender, self.images[f"ext4, {count} files"]) as mount:
                for again in ("", ", again"):
                    first, last = work.in_child(lambda: work.names(os.path.join(mount.path, "many")))
                    put("first name" + again, "s", first)
                    put("all names" + again, "s", last)
                if mount.peak_memory():
                    put("peak memory", "MB", mount.peak_memory() / 1e6)
        self.each_round(rounds, [contenders.IMGFS_TREE, contenders.LOOP, contenders.FUSE2FS], one)

    def command(self, subject, measure, name, words, before=None):
        """Times a command; what it says goes nowhere."""
        if before:
            before()
        seconds = work.timed(lambda: subprocess.run(words, shell=isinstance(words, str), check=True, stdout=subprocess.DEVNULL))
        self.table.put("commands", subject, "warm", measure, "s", name, seconds)

    def commands(self, rounds, only):
        if only not in "commands" and not any(only in f"commands {name}" for name in self.images):
            return
        # In memory: a host's file system that has just deleted thousands of files is slow to make new ones.
        memory = os.path.join(self.scratch, "memory")
        os.makedirs(memory)
        subprocess.run(["mount", "-t", "tmpfs", "bench", memory], check=True)
        try:
            self.commands_into(os.path.join(memory, "out"), rounds, only)
        finally:
            subprocess.run(["umount", memory], check=True)
            os.rmdir(memory)

    def commands_into(self, out, rounds, only):
        def clean():
            shutil.rmtree(out, ignore_errors=True)
            os.makedirs(out)

        for name in ("ext4", "ISO", "FAT32"):
            if only not in f"commands {name}":
                continue
            image, source = self.images[name], self.images["source"]
            for _ in range(rounds):
                work.read_sequentially(image)
                self.command(name, "extract all", "imgfs", ["imgfs", "cp", "-a", image + ":/files", out], clean)
                # The boot loader's place of an ISO and ext's journal are files to 7z: it may end with a warning.
                self.command(name, "extract all", "7z", f"7z x -y -bd -o{out} {image} || [ $? -eq 1 ]", clean)
                clean()
                self.command(name, "hash all", "imgfs", ["imgfs", "manifest", image + ":/files"])
                hashing = f"find {source} -type f -print0 | xargs -0 -P{os.cpu_count()} -n64 sha256sum"
                self.command(name, "hash all", "sha256sum of the host's files", hashing)
        for name in ("qcow2", "qcow2, zlib", "qcow2, zstd"):
            if only not in f"commands {name}":
                continue
            for _ in range(rounds):
                image = self.images[name]
                work.read_sequentially(image)
                self.command(name, "whole disk", "imgfs", f"imgfs cp {image}:/disk.img {out}/disk.img", clean)
                self.command(name, "whole disk", "qemu-img convert", f"qemu-img convert -O raw {image} {out}/disk.img", clean)
        shutil.rmtree(out, ignore_errors=True)

    def writes(self, rounds, only):
        if only in "writes tree, large file":
            self.each_round(rounds, contenders.LARGE_WRITERS, self.write_large)
        if only in "writes tree, files":
            self.each_round(rounds, contenders.FILE_COPIERS, self.copy_in)
            self.each_round(rounds, contenders.FILE_COPIERS, self.write_many)
        if only in "writes flat":
            self.each_round(rounds, contenders.WRITABLE_FLAT, self.write_flat)

    def put_write(self, measure, unit, name, value, subject="FAT32"):
        self.table.put("writes", subject, "warm", measure, unit, name, value)

    def blank(self):
        """A blank volume that may be written to."""
        path = os.path.join(self.scratch, "blank.img")
        with open(path, "wb") as blank:
            blank.truncate(600 << 20)
        subprocess.run(["mkfs.fat", "-F", "32", "-s", "8", path], check=True, stdout=subprocess.DEVNULL)
        return path

    def quieten(self):
        """To be called right before a measurement: what was written goes to the disk now, and memory is there."""
        os.sync()
        work.touch_memory(5 * self.size.written)

    def write_large(self, contender):
        size, image = self.size, self.blank()
        if contender is contenders.FATFS:
            said = subprocess.check_output(["imgfs-bounds", "fatfs", image, str(size.written)], text=True)
            self.put_write("random 4 KiB overwrites", "/s", contender.name, float(said))
        elif contender is contenders.MCOPY:
            self.put_write("sequential", "MB/s", contender.name, self.copied(["mcopy", "-i", image], "::/"))
        else:
            with self.mount(contender, image) as mount:
                self.quieten()
                big = os.path.join(mount.path, "written.bin")
                rate = work.in_child(lambda: work.write_sequentially(big, size.written))
                self.put_write("sequential", "MB/s", contender.name, rate / 1e6)
                if contender is not contenders.SINK:
                    blocks = os.stat(big).st_size // work.BLOCK
                    rate = work.in_child(lambda: work.overwrite_randomly(big, min(size.overwrites, blocks)))
                    self.put_write("random 4 KiB overwrites", "/s", contender.name, rate)

    def copy_in(self, contender):
        image = self.blank()
        if contender is contenders.MCOPY:
            rate = self.copied(["mcopy", "-i", image], "::/")
        else:
            with self.mount(contender, image) as mount:
                rate = self.copied(["cp"], mount.path)
        self.put_write("copy a file", "MB/s", contender.name, rate)

    def copied(self, command, to):
        """MB a second at which a file of the host, which is in its memory, is copied."""
        path = os.path.join(self.scratch, "written.bin")
        work.write_sequentially(path, self.size.written)
        self.quieten()
        seconds = work.timed(lambda: subprocess.run([*command, path, to], check=True))
        rate = os.path.getsize(path) / 1e6 / seconds
        os.remove(path)
        return rate

    def write_many(self, contender):
        size, image = self.size, self.blank()
        if contender is contenders.MCOPY:
            made = os.path.join(self.scratch, "made")
            shutil.rmtree(made, ignore_errors=True)
            work.create_files(made, size.created)
            self.quieten()
            # It names each file as it copies it. It is slower with each file more: what it does in some
            # seconds is its best.
            started = time.perf_counter()
            words = ["timeout", str(4 * work.PATIENCE), "mcopy", "-v", "-s", "-i", image, made, "::/"]
            copied = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.count(b"\n")
            rate = copied / (time.perf_counter() - started)
            shutil.rmtree(made)
        else:
            with self.mount(contender, image) as mount:
                self.quieten()
                rate = work.in_child(lambda: work.create_files(os.path.join(mount.path, "made"), size.created))
        self.put_write(f"create {size.created} files", "/s", contender.name, rate)

    def write_flat(self, contender):
        # On one processor nobody waits for another to wake up, which in a virtual machine can take longer than all
        # that the programs do.
        everywhere = os.sched_getaffinity(0)
        for where, processors in (("", everywhere), (", one processor", {min(everywhere)})):
            os.sched_setaffinity(0, processors)
            try:
                with self.mount(contender, self.images["ext4"]) as mount:
                    rate = work.in_child(lambda: work.overwrite_randomly(mount.path, self.size.overwrites))
                    self.put_write("random 4 KiB" + where, "/s", contender.name, rate, "flat")
            finally:
                os.sched_setaffinity(0, everywhere)
            for left in glob.glob(os.path.join(self.scratch, "*.overlay*")):
                os.remove(left)
