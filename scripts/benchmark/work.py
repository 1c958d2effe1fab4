"""What is timed. Each runs in a process of its own, as the user who mounted, and returns seconds."""
import json
import mmap
import os
import pwd
import random
import subprocess
import time

BLOCK = 4096
CHUNK = 1 << 20
# Seconds after which a slow one has shown how slow it is.
PATIENCE = 3


def in_child(work, user=None):
    """What `work()` returns, from a child process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if user:
                entry = pwd.getpwnam(user)
                os.setgroups([])
                os.setgid(entry.pw_gid)
                os.setuid(entry.pw_uid)
            os.write(writer, json.dumps(work()).encode())
            code = 0
        except BaseException as error:
            os.write(writer, json.dumps({"error": repr(error)}).encode())
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    value = json.loads(text)
    if isinstance(value, dict):
        raise RuntimeError(value["error"])
    return value


def together(works):
    """Seconds until all of them are done, each in a process of its own, started at once."""
    start_reader, start_writer = os.pipe()
    ready_reader, ready_writer = os.pipe()
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(start_writer)
                go = work()
                next(go)
                os.write(ready_writer, b"r")
                os.close(ready_writer)
                os.read(start_reader, 1)
                for _ in go:
                    pass
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    os.close(ready_writer)
    # Fewer answers than children: one has died.
    answers = [os.read(ready_reader, 1) for _ in children]
    started = time.perf_counter()
    # All readers of the pipe see its end.
    os.close(start_writer)
    failed = [child for child in children if os.waitpid(child, 0)[1] != 0]
    seconds = time.perf_counter() - started
    os.close(start_reader)
    os.close(ready_reader)
    if failed or b"" in answers:
        raise RuntimeError("a reader failed")
    return seconds


def timed(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def stat_walk(root):
    """`find` prints the size, time and mode of everything."""
    command = ["find", root, "-printf", "%s %T@ %m %p\\n"]
    return timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


def names(folder):
    """Seconds to the first name, and to the last."""
    started = time.perf_counter()
    with os.scandir(folder) as rows:
        next(rows)
        first = time.perf_counter() - started
        for _ in rows:
            pass
    return [first, time.perf_counter() - started]


def small_files(root):
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)


def read_small(paths):
    """Opens, reads and closes every file."""
    buffer = bytearray(64 << 10)

    def work():
        for path in paths:
            file = os.open(path, os.O_RDONLY)
            while os.readv(file, [buffer]) == len(buffer):
                pass
            os.close(file)
    return timed(work)


def read_sequentially(path, start=0, end=None, flags=0):
    """As `dd bs=1M`."""
    for _ in sequential(path, start, end, flags):
        pass


def sequential(path, start=0, end=None, flags=0):
    """First prepares, then (after the first `yield`) reads."""
    buffer = mmap.mmap(-1, CHUNK)
    buffer.write(bytes(CHUNK))
    file = os.open(path, os.O_RDONLY | flags)
    end = os.fstat(file).st_size if end is None else end
    yield
    at = start
    while at < end:
        got = os.preadv(file, [memoryview(buffer)[:min(CHUNK, end - at)]], at)
        if got == 0:
            raise EOFError(path)
        at += got
    os.close(file)


def read_big(path, flags=0):
    return timed(lambda: read_sequentially(path, flags=flags))


def two_readers(path):
    """Each reads one half."""
    size = os.stat(path).st_size
    half = size // 2 // CHUNK * CHUNK
    return together([lambda: sequential(path, 0, half), lambda: sequential(path, half, size)])


def random_reads(path, count, readers):
    """`count` different blocks of 4 KiB in all, each asked for once, without readahead."""
    blocks = random.Random(4).sample(range(os.stat(path).st_size // BLOCK), count)

    def reader(mine):
        buffer = mmap.mmap(-1, BLOCK)
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        yield
        for block in mine:
            if os.preadv(file, [buffer], block * BLOCK) != BLOCK:
                raise EOFError(path)
    return together([lambda mine=blocks[number::readers]: reader(mine) for number in range(readers)])


def rate(steps):
    """Steps a second: of all of them, or of as many as fit into some seconds."""
    started = time.perf_counter()
    done = 0
    for _ in steps:
        done += 1
        if time.perf_counter() - started > PATIENCE:
            break
    return done / (time.perf_counter() - started)


def touch_memory(length):
    """Has the host of a virtual machine give it this much memory, so that nobody pays for that while measured."""
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    memory.close()


def write_sequentially(path, length):
    """Bytes a second, as `dd bs=1M`."""
    data = mmap.mmap(-1, CHUNK)
    data.write(os.urandom(CHUNK))

    def steps():
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for _ in range(length // CHUNK):
            write_whole(file, memoryview(data))
            yield
        os.close(file)
    return CHUNK * rate(steps())


def write_whole(file, data):
    while data:
        data = data[os.write(file, data):]


def create_files(folder, count):
    """Files a second."""
    os.mkdir(folder)
    data = os.urandom(1024)

    def steps():
        for number in range(count):
            file = os.open(os.path.join(folder, f"created {number:05}.txt"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(file, data)
            os.close(file)
            yield
    return rate(steps())


def overwrite_randomly(path, count):
    """Writes a second, to different blocks of 4 KiB of a file that is there."""
    blocks = random.Random(5).sample(range(os.stat(path).st_size // BLOCK), count)
    data = os.urandom(BLOCK)

    def steps():
        file = os.open(path, os.O_WRONLY)
        for block in blocks:
            if os.pwrite(file, data, block * BLOCK) != BLOCK:
                raise OSError(path)
            yield
        os.close(file)
    return rate(steps())
