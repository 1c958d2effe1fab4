//! Mounts that can be written to: the kernel's view against a model in memory, mtools, fsck.fat and
//! qemu-img. What needs root says so in its name.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use crate::fat::{
    Random, Scratch, Tree, by_hadris, by_mtools, converted, host_tree, mkfs, pattern, same_tree, tool, try_tool,
};
use crate::program::{Mounted, Untouched, imgfs, is_root, needs_root, ok, run, said, sha256, within};

/// The kinds of volumes: size in KiB, arguments of mkfs.fat.
const VOLUMES: [(u64, &str); 3] = [(1440, ""), (20 * 1024, "-F 16 -s 2"), (40 * 1024, "-F 32 -s 1")];

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn overlay_of(image: &Path) -> PathBuf {
    format!("{}.overlay.qcow2", image.display()).into()
}

fn fat(scratch: &Scratch, kib: u64, args: &str) -> PathBuf {
    let image = scratch.path("volume.img");
    mkfs(&image, kib, args);
    image
}

fn floppy(scratch: &Scratch) -> PathBuf {
    fat(scratch, 1440, "")
}

/// A disk of 24 MiB with a FAT12 volume at 1 MiB and a FAT16 volume at 9 MiB.
fn disk(scratch: &Scratch, label: &str) -> PathBuf {
    let image = scratch.path("disk.img");
    let file = File::create(&image).unwrap();
    file.set_len(24 << 20).unwrap();
    let mut table = Command::new("sfdisk").arg("-q").arg(&image).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let table = table.as_mut().expect("sfdisk does not run: install the Debian package fdisk");
    let kind = if label == "gpt" { "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7" } else { "e" };
    let rows = format!("label: {label}\nstart=2048,size=16384,type={kind}\nstart=18432,size=26624,type={kind}\n");
    table.stdin.take().unwrap().write_all(rows.as_bytes()).unwrap();
    assert!(table.wait().unwrap().success());
    for (offset, mib, args) in [(1, 8, "-F 12"), (9, 13, "-F 16")] {
        let volume = scratch.path("volume");
        mkfs(&volume, mib * 1024, args);
        file.write_all_at(&std::fs::read(&volume).unwrap(), offset << 20).unwrap();
    }
    image
}

/// What fails with an errno of the kernel.
fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw_os_error)
}

fn names(folder: &Path) -> BTreeSet<String> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

fn unmount(mounted: &Mounted) {
    ok(&["umount", text(&mounted.at)]);
}

/// Opens for reading and writing.
fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// An overlay over a bare FAT volume: sound for everyone, and with this tree.
fn volume_holds(overlay: &Path, expected: &Tree, scratch: &Scratch) {
    let raw = converted(overlay, scratch);
    tool("dosfstools", "fsck.fat", &["-n", text(&raw)]);
    same_tree(&by_mtools(&raw, scratch), expected, "mcopy from qemu-img convert");
    same_tree(&by_hadris(std::fs::read(&raw).unwrap()), expected, "hadris-fat from qemu-img convert");
}

/// A file that only takes room.
const BALLAST: &str = "ballast";

/// The mounted volume, and what should be in it.
struct Model {
    at: PathBuf,
    tree: Tree,
    random: Random,
    full: u32,
    /// Files without a name that are open.
    orphans: Vec<(File, Vec<u8>)>,
}

impl Model {
    fn files(&self) -> Vec<String> {
        let files = self.tree.iter().filter(|(name, bytes)| bytes.is_some() && *name != BALLAST);
        files.map(|(name, _)| name.clone()).collect()
    }

    fn folders(&self) -> Vec<String> {
        let folders = self.tree.iter().filter(|(_, bytes)| bytes.is_none()).map(|(name, _)| name.clone());
        std::iter::once(String::new()).chain(folders).collect()
    }

    /// A path that is taken, or differs from all others in more than case.
    fn new_path(&mut self) -> String {
        const NAMES: [&str; 8] =
            ["A", "B.TXT", "lower.txt", "a longer name", "many.dots.in.it", "plus+and,[x]=y", "ümläut ß", "日本語"];
        loop {
            let folders = self.folders();
            let folder = self.random.pick(&folders).unwrap().to_owned();
            let long = "long ".repeat(self.random.below(3) * self.random.below(20));
            let name = format!("{long}{}{}", NAMES[self.random.below(8)], self.random.below(30));
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            let clash = self.tree.keys().any(|other| *other != path && other.to_lowercase() == path.to_lowercase());
            if !clash && path.matches('/').count() <= 3 {
                return path;
            }
        }
    }

    /// Whether it was done; a full volume leaves everything as it was.
    fn done<T>(&mut self, result: std::io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) if error.kind() == ErrorKind::StorageFull => {
                self.full += 1;
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn write(&mut self, path: &str) {
        let mut bytes = self.tree[path].clone().unwrap();
        let most = [10, 600, 5000, 40_000][self.random.below(4)];
        let new = pattern(1 + self.random.below(most), self.random.below(1 << 30) as u64);
        let offset = match self.random.below(4) {
            0 => bytes.len(),
            1 => bytes.len() + self.random.below(6000),
            _ => self.random.below(bytes.len() + 1),
        };
        let file = open(&self.at.join(path)).unwrap();
        if let Some(len) = self.done(file.write_at(&new, offset as u64)) {
            bytes.resize(bytes.len().max(offset + len), 0);
            bytes[offset..offset + len].copy_from_slice(&new[..len]);
            self.tree.insert(path.to_owned(), Some(bytes));
        }
        if self.random.below(20) == 0 {
            file.sync_all().unwrap();
        }
    }

    fn resize(&mut self, path: &str) {
        let mut bytes = self.tree[path].clone().unwrap();
        let size = self.random.below(bytes.len() * 3 / 2 + 3);
        let result = open(&self.at.join(path)).unwrap().set_len(size as u64);
        if self.done(result).is_some() {
            bytes.resize(size, 0);
            self.tree.insert(path.to_owned(), Some(bytes));
        }
    }

    fn rename(&mut self) {
        let all: Vec<String> = self.tree.keys().filter(|name| *name != BALLAST).cloned().collect();
        let from = self.random.pick(&all).unwrap().to_owned();
        let to = if self.random.below(3) == 0 { self.random.pick(&all).unwrap().to_owned() } else { self.new_path() };
        let result = std::fs::rename(self.at.join(&from), self.at.join(&to));
        let (inside, below_to) = (format!("{from}/"), format!("{to}/"));
        let (is_file, over) = (self.tree[&from].is_some(), self.tree.get(&to).map(Option::is_some));
        let refused = match over {
            _ if from == to => None,
            _ if to.starts_with(&inside) => Some(Errno::INVAL),
            _ if from.starts_with(&below_to) => Some(Errno::NOTEMPTY),
            Some(false) if is_file => Some(Errno::ISDIR),
            Some(true) if !is_file => Some(Errno::NOTDIR),
            Some(false) if self.tree.keys().any(|other| other.starts_with(&below_to)) => Some(Errno::NOTEMPTY),
            _ => None,
        };
        if let Some(refused) = refused {
            assert_eq!(errno(result), Some(refused), "{from} -> {to}");
        } else if self.done(result).is_some() {
            let moved: Vec<String> =
                self.tree.keys().filter(|path| **path == from || path.starts_with(&inside)).cloned().collect();
            for path in moved {
                let contents = self.tree.remove(&path).unwrap();
                self.tree.insert(format!("{to}{}", &path[from.len()..]), contents);
            }
        }
    }

    fn remove(&mut self, path: &str) {
        let held = (self.random.below(4) == 0).then(|| open(&self.at.join(path)).unwrap());
        std::fs::remove_file(self.at.join(path)).unwrap();
        assert_eq!(errno(File::open(self.at.join(path))), Some(Errno::NOENT));
        let bytes = self.tree.remove(path).unwrap().unwrap();
        self.orphans.extend(held.map(|file| (file, bytes)));
    }

    fn remove_folder(&mut self, path: &str) {
        let inside = format!("{path}/");
        let result = std::fs::remove_dir(self.at.join(path));
        if self.tree.keys().any(|other| other.starts_with(&inside)) {
            assert_eq!(errno(result), Some(Errno::NOTEMPTY));
        } else {
            result.unwrap();
            self.tree.remove(path);
        }
    }

    fn step(&mut self) {
        let (files, folders) = (self.files(), self.folders());
        match self.random.below(100) {
            0..25 => {
                let path = self.new_path();
                let host = self.at.join(&path);
                let is_folder = self.random.below(5) == 0;
                let result = if is_folder { std::fs::create_dir(&host) } else { File::create_new(&host).map(drop) };
                if self.tree.contains_key(&path) {
                    assert_eq!(errno(result), Some(Errno::EXIST), "{path}");
                } else if self.done(result).is_some() {
                    self.tree.insert(path, (!is_folder).then(Vec::new));
                }
            }
            25..55 if !files.is_empty() => {
                let path = self.random.pick(&files).unwrap().to_owned();
                self.write(&path);
            }
            55..65 if !files.is_empty() => {
                let path = self.random.pick(&files).unwrap().to_owned();
                self.resize(&path);
            }
            65..78 if !files.is_empty() => self.rename(),
            78..88 if !files.is_empty() => {
                let path = self.random.pick(&files).unwrap().to_owned();
                self.remove(&path);
            }
            88..92 if folders.len() > 1 => {
                let path = self.random.pick(&folders[1..]).unwrap().to_owned();
                self.remove_folder(&path);
            }
            92..96 => {
                if let Some((mut file, bytes)) = self.orphans.pop() {
                    let mut found = Vec::new();
                    file.read_to_end(&mut found).unwrap();
                    assert!(found == bytes, "an open file keeps its contents");
                }
            }
            _ if !files.is_empty() => {
                let path = self.random.pick(&files).unwrap().to_owned();
                assert!(std::fs::read(self.at.join(&path)).unwrap() == *self.tree[&path].as_ref().unwrap(), "{path}");
            }
            _ => {}
        }
    }
}

/// Random operations in several mounts of one overlay, each looked at from all sides.
fn random_operations(kib: u64, args: &str, seed: u64, steps: usize, full_soon: bool) {
    println!("{kib} KiB, mkfs.fat {args}, seed {seed}");
    let scratch = Scratch::new();
    let image = fat(&scratch, kib, args);
    let mut tree = Tree::new();
    let mut full = 0;
    for round in 0..2 {
        let mounted = Mounted::new(&image, &["-o", "rw"]);
        let at = mounted.path("disk");
        same_tree(&host_tree(&at), &tree, "the new mount");
        if full_soon && round == 0 {
            let free = rustix::fs::statvfs(&at).map(|found| found.f_bfree * found.f_frsize).unwrap();
            let ballast = pattern(free as usize - 60_000, seed);
            std::fs::write(at.join(BALLAST), &ballast).unwrap();
            tree.insert(BALLAST.to_owned(), Some(ballast));
        }
        let random = Random((seed * 2 + round).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut model = Model { at: at.clone(), tree, random, full, orphans: Vec::new() };
        for _ in 0..steps {
            model.step();
        }
        model.orphans.clear();
        (tree, full) = (model.tree, model.full);
        same_tree(&host_tree(&at), &tree, "the mount");
        same_tree(&by_mtools(mounted.path("disk.img"), &scratch), &tree, "mcopy from disk.img");
        let flat = sha256(&mounted.path("disk.img"));
        assert_ne!(flat, sha256(&mounted.path("base.img")));
        assert_eq!(sha256(&mounted.path("base.img")), sha256(&image));
        drop(mounted);
        volume_holds(&overlay_of(&image), &tree, &scratch);
    }
    assert_eq!(full > 0, full_soon, "{full} operations met a full volume");
}

#[test]
fn random_operations_on_fat12_leave_what_a_model_has() {
    let (kib, args) = VOLUMES[0];
    random_operations(kib, args, 1, 350, false);
    random_operations(kib, args, 2, 350, true);
}

#[test]
fn random_operations_on_fat16_leave_what_a_model_has() {
    let (kib, args) = VOLUMES[1];
    random_operations(kib, args, 3, 350, false);
    random_operations(kib, args, 4, 350, true);
}

#[test]
fn random_operations_on_fat32_leave_what_a_model_has() {
    let (kib, args) = VOLUMES[2];
    random_operations(kib, args, 5, 350, false);
    random_operations(kib, args, 6, 350, true);
}

/// Reads, writes, cuts and maps a file at random, and compares it with a copy in memory. What is written goes
/// by a descriptor that can read as well, or by one that cannot, which the kernel treats otherwise.
const FSX: &str = r#"
import mmap, os, random, sys
path, seed, steps, fixed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "fixed"
r = random.Random(seed)
fd = os.open(path, os.O_RDWR); only = os.open(path, os.O_WRONLY)
good = bytearray(os.pread(fd, 1 << 24, 0)) if fixed else bytearray()
MOST = len(good) if fixed else 300000
def check(got, at, what, step):
    want = bytes(good[at:at + len(got)])
    if got != want:
        bad = next(i for i in range(len(got)) if got[i] != want[i])
        sys.exit(f"step {step}, {what}: byte {at + bad} of {len(good)} is {got[bad]}, not {want[bad]}")
def put(at, data):
    if at > len(good):
        good.extend(bytes(at - len(good)))
    good[at:at + len(data)] = data
for step in range(steps):
    op = r.choice(["read", "write", "write", "mapread", "mapwrite", "cut", "reopen", "sync"])
    at = r.randrange(MOST); length = min(r.choice([1, 100, 5000, 70000]), MOST - at)
    if op == "write":
        data = r.randbytes(length); put(at, data)
        assert os.pwrite(r.choice([fd, only]), data, at) == length
    elif op == "read":
        got = os.pread(fd, length, at); assert len(got) == max(0, min(length, len(good) - at)), step; check(got, at, op, step)
    elif op == "cut" and not fixed:
        size = r.randrange(MOST); os.ftruncate(r.choice([fd, only]), size)
        del good[size:]; good.extend(bytes(size - len(good)))
    elif op.startswith("map") and good:
        at = r.randrange(len(good)); length = min(length, len(good) - at)
        with mmap.mmap(fd, len(good)) as m:
            if op == "mapread":
                check(m[at:at + length], at, op, step)
            else:
                data = r.randbytes(length); put(at, data); m[at:at + length] = data
                if r.random() < 0.5: m.flush()
    elif op == "reopen":
        os.close(fd); os.close(only)
        fd = os.open(path, os.O_RDWR); only = os.open(path, os.O_WRONLY); assert os.fstat(fd).st_size == len(good), step
    elif op == "sync":
        os.fsync(r.choice([fd, only]))
    if step % 50 == 0:
        check(os.pread(fd, 1 << 24, 0), 0, "all", step)
os.close(fd); os.close(only)
with open(path, "rb") as f:
    got = f.read(); assert len(got) == len(good); check(got, 0, "the end", steps)
"#;

#[test]
fn reads_writes_cuts_and_maps_of_a_file_in_the_tree_agree() {
    let scratch = Scratch::new();
    for (seed, (kib, args)) in VOLUMES.into_iter().enumerate() {
        let image = fat(&scratch, kib, args);
        let mounted = Mounted::new(&image, &["-o", "rw"]);
        let file = mounted.path("disk/exercised");
        File::create(&file).unwrap();
        tool("python3", "python3", &["-c", FSX, text(&file), &seed.to_string(), "700", "grows"]);
        let tree = host_tree(&mounted.path("disk"));
        drop(mounted);
        volume_holds(&overlay_of(&image), &tree, &scratch);
        std::fs::remove_file(overlay_of(&image)).unwrap();
    }
}

#[test]
fn reads_writes_and_maps_of_the_flat_disk_agree() {
    let scratch = Scratch::new();
    let image = scratch.path("bytes.img");
    std::fs::write(&image, pattern(1_474_560, 7)).unwrap();
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    tool("python3", "python3", &["-c", FSX, text(&mounted.path("disk.img")), "9", "900", "fixed"]);
    let flat = sha256(&mounted.path("disk.img"));
    drop(mounted);
    assert_eq!(sha256(&converted(&overlay_of(&image), &scratch)), flat);
}

#[test]
fn what_is_written_in_a_tree_is_in_the_flat_files_at_once() {
    let scratch = Scratch::new();
    for label in ["dos", "gpt"] {
        let image = disk(&scratch, label);
        let mounted = Mounted::new(&image, &["-o", "rw"]);
        let contents = pattern(20_000, 3);
        std::fs::write(mounted.path("p1/new"), &contents).unwrap();
        for (flat, offset) in [("p1.img", ""), ("disk.img", "@@1M")] {
            let out = scratch.path("out");
            let from = format!("{}{offset}", text(&mounted.path(flat)));
            tool("mtools", "mcopy", &["-n", "-i", &from, "::new", text(&out)]);
            assert!(std::fs::read(&out).unwrap() == contents, "{label}: {flat}");
        }
        assert_eq!(sha256(&mounted.path("base.img")), sha256(&image), "base.img shows untouched bytes");
        assert_eq!(std::fs::metadata(mounted.path("base.img")).unwrap().permissions().mode() & 0o777, 0o444);
        let refused = if is_root() { Errno::ROFS } else { Errno::ACCESS };
        assert_eq!(errno(open(&mounted.path("base.img"))), Some(refused));
        drop(mounted);
        std::fs::remove_file(overlay_of(&image)).unwrap();
    }
}

#[test]
fn what_is_written_to_a_flat_file_is_in_the_tree_after_close_and_after_fsync() {
    let scratch = Scratch::new();
    let image = disk(&scratch, "gpt");
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    let (old, new) = (pattern(30_000, 1), pattern(50_000, 2));
    std::fs::write(mounted.path("p1/kept"), &old).unwrap();
    std::fs::write(mounted.path("p1/changed"), &old).unwrap();
    // All of it is in the kernel's caches now.
    let held = File::open(mounted.path("p1/changed")).unwrap();
    assert_eq!(std::fs::read(mounted.path("p1/changed")).unwrap(), old);
    assert_eq!(names(&mounted.path("p1")), set(["changed", "kept"]));
    let host = scratch.path("host");
    std::fs::write(&host, &new).unwrap();
    tool("mtools", "mcopy", &["-o", "-i", text(&mounted.path("p1.img")), text(&host), "::changed"]);
    tool("mtools", "mcopy", &["-i", &format!("{}@@1M", text(&mounted.path("disk.img"))), text(&host), "::added"]);
    let seen = |name: &str| std::fs::read(mounted.path("p1").join(name)).unwrap();
    assert!(within(Duration::from_secs(2), || names(&mounted.path("p1")) == set(["added", "changed", "kept"])));
    assert!(within(Duration::from_secs(2), || seen("changed") == new), "contents are those of the flat file");
    assert_eq!(std::fs::metadata(mounted.path("p1/changed")).unwrap().len(), 50_000);
    assert!(seen("added") == new && seen("kept") == old);
    drop(held);
    // Bytes in place, and an fsync without a close.
    let flat = open(&mounted.path("p1.img")).unwrap();
    let mut bytes = Vec::new();
    (&flat).read_to_end(&mut bytes).unwrap();
    let at = bytes.windows(512).position(|part| part == &old[..512]).unwrap();
    flat.write_all_at(b"in place", at as u64).unwrap();
    flat.sync_all().unwrap();
    assert!(within(Duration::from_secs(2), || seen("kept").starts_with(b"in place")));
}

/// Writes a small file of this name to the volume, through its flat bytes.
fn through_flat(scratch: &Scratch, flat: &Path, name: &str) {
    let host = scratch.path("through-flat");
    std::fs::write(&host, "written from outside").unwrap();
    tool("mtools", "mcopy", &["-o", "-i", text(flat), text(&host), &format!("::{name}")]);
}

fn sync(folder: &Path) {
    File::open(folder).unwrap().sync_all().unwrap();
}

#[test]
fn what_is_open_stays_what_it_is_when_the_flat_file_was_written_to() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let before = sha256(&image);
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    let (disk, flat) = (mounted.path("disk"), mounted.path("disk.img"));
    // Moved nodes, with others where they were.
    std::fs::create_dir(disk.join("NEWDIR")).unwrap();
    std::fs::write(disk.join("NEWDIR/junk"), "junk").unwrap();
    std::fs::rename(disk.join("NEWDIR"), disk.join("my work folder")).unwrap();
    std::fs::write(disk.join("A"), "contents of A").unwrap();
    std::fs::rename(disk.join("A"), disk.join("A has another name")).unwrap();
    sync(&disk);
    std::fs::create_dir(disk.join("KEEP")).unwrap();
    std::fs::write(disk.join("KEEP/thesis"), "thesis").unwrap();
    std::fs::write(disk.join("B"), "CONTENTS OF B").unwrap();
    std::fs::write(disk.join("DOOMED"), "removed from outside").unwrap();
    sync(&disk);
    let work = File::open(disk.join("my work folder")).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&work);
    let folder = |name: &str| PathBuf::from(format!("/proc/self/fd/{number}/{name}"));
    let (a, doomed) = (File::open(disk.join("A has another name")).unwrap(), File::open(disk.join("DOOMED")).unwrap());
    tool("mtools", "mdel", &["-i", text(&flat), "::DOOMED"]);
    through_flat(&scratch, &flat, "AFTER");
    assert!(within(Duration::from_secs(2), || names(&disk).contains("AFTER") && !names(&disk).contains("DOOMED")));
    assert_eq!(names(&folder(".")), set(["junk"]));
    std::fs::remove_file(folder("junk")).unwrap();
    assert_eq!(names(&disk.join("KEEP")), set(["thesis"]), "what was removed was in the other folder");
    let read = |file: &File| {
        let mut found = [0; 64];
        file.read_at(&mut found, 0).map(|len| String::from_utf8_lossy(&found[..len]).into_owned())
    };
    assert!(within(Duration::from_secs(2), || read(&a).unwrap() == "contents of A"));
    assert!(within(Duration::from_secs(2), || errno(read(&doomed)) == Some(Errno::STALE)), "not what took its place");
    // How often a file is open is known on.
    let again = File::open(disk.join("A has another name")).unwrap();
    drop((a, doomed));
    std::thread::sleep(Duration::from_millis(100));
    std::fs::remove_file(disk.join("A has another name")).unwrap();
    assert_eq!(read(&again).unwrap(), "contents of A");
    drop((again, work, mounted));
    assert_eq!(sha256(&image), before);
    tool("dosfstools", "fsck.fat", &["-n", text(&converted(&overlay_of(&image), &scratch))]);
}

#[test]
fn what_is_opened_after_the_flat_file_was_synced_or_closed_has_what_was_written_to_it() {
    let scratch = Scratch::new();
    let mounted = Mounted::new(&floppy(&scratch), &["-o", "rw"]);
    let (disk, file) = (mounted.path("disk"), mounted.path("disk/file"));
    std::fs::write(&file, [b'.'; 512]).unwrap();
    sync(&disk);
    let bytes = std::fs::read(mounted.path("disk.img")).unwrap();
    let at = bytes.windows(512).position(|part| part == [b'.'; 512]).unwrap() as u64;
    let entry = bytes.windows(11).position(|part| part == b"FILE       ").unwrap() as u64;
    for round in 0..100u32 {
        let letter = b'a' + u8::try_from(round % 20).unwrap();
        let flat = open(&mounted.path("disk.img")).unwrap();
        assert_eq!(names(&disk).len(), 1, "the kernel keeps the listing");
        flat.write_all_at(&[letter; 512], at).unwrap();
        flat.sync_all().unwrap();
        assert!(std::fs::read(&file).unwrap() == [letter; 512], "round {round}: after fsync");
        flat.write_all_at(&[letter + 1; 512], at).unwrap();
        flat.write_all_at(&[letter - 32], entry + 3).unwrap();
        drop(flat);
        let renamed = format!("fil{}", letter as char);
        assert_eq!(names(&disk), set([&renamed]), "round {round}: after close");
        assert!(std::fs::read(disk.join(&renamed)).unwrap() == [letter + 1; 512], "round {round}: after close");
        std::fs::rename(disk.join(&renamed), disk.join("fil_")).expect("no EBUSY after close");
        std::fs::rename(disk.join("fil_"), &file).unwrap();
        sync(&disk);
    }
}

#[test]
fn while_a_removed_file_is_open_the_flat_file_is_not_written_to() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let before = sha256(&image);
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    let (disk, flat) = (mounted.path("disk"), mounted.path("disk.img"));
    let contents = pattern(100_000, 5);
    std::fs::write(disk.join("o"), &contents).unwrap();
    let mut removed = File::open(disk.join("o")).unwrap();
    std::fs::remove_file(disk.join("o")).unwrap();
    assert_eq!(errno(open(&flat)), Some(Errno::BUSY));
    let mut found = Vec::new();
    removed.read_to_end(&mut found).unwrap();
    assert!(found == contents);
    drop(removed);
    through_flat(&scratch, &flat, "X");
    assert!(within(Duration::from_secs(2), || names(&disk) == set(["X"])));
    drop(mounted);
    assert_eq!(sha256(&image), before);
    let raw = converted(&overlay_of(&image), &scratch);
    tool("dosfstools", "fsck.fat", &["-n", text(&raw)]);
    assert_eq!(std::fs::read(&raw).unwrap()[37] & 1, 0, "nothing is left to be done");
}

#[test]
fn a_volume_is_written_to_in_one_way_at_a_time_and_the_log_says_so() {
    let scratch = Scratch::new();
    let image = disk(&scratch, "dos");
    let at = scratch.path("mnt");
    std::fs::create_dir(&at).unwrap();
    let child = imgfs().arg("-f").args([&image, &at]).args(["-o", "rw"]).stderr(Stdio::piped()).spawn().unwrap();
    assert!(within(Duration::from_secs(10), || at.join("p1").is_dir()));
    std::fs::write(at.join("p1/file"), "tree").unwrap();
    let file = open(&at.join("p1/file")).unwrap();
    for flat in ["p1.img", "disk.img"] {
        assert_eq!(errno(open(&at.join(flat))), Some(Errno::BUSY), "{flat}");
    }
    drop(open(&at.join("p2.img")).unwrap());
    drop(file);
    assert!(within(Duration::from_secs(2), || open(&at.join("p1.img")).is_ok()));
    let flat = open(&at.join("p1.img")).unwrap();
    assert_eq!(errno(open(&at.join("p1/file"))), Some(Errno::BUSY));
    assert_eq!(errno(File::create(at.join("p1/new"))), Some(Errno::BUSY));
    assert_eq!(errno(std::fs::create_dir(at.join("p1/new"))), Some(Errno::BUSY));
    assert_eq!(errno(std::fs::remove_file(at.join("p1/file"))), Some(Errno::BUSY));
    assert_eq!(std::fs::read_to_string(at.join("p1/file")).unwrap(), "tree", "reading goes on");
    std::fs::write(at.join("p2/other"), "another volume").unwrap();
    drop(flat);
    assert!(within(Duration::from_secs(2), || std::fs::write(at.join("p1/new"), "").is_ok()));
    ok(&["umount", text(&at)]);
    let said = said(child.wait_with_output().unwrap());
    assert_eq!(said.code, Some(0));
    assert!(said.err.contains("refused: a file of this volume is open for writing"), "{}", said.err);
    assert!(said.err.contains("refused: the flat file of this volume is open for writing"), "{}", said.err);
}

#[test]
fn a_volume_formatted_through_its_flat_file_is_empty_and_garbage_is_an_error() {
    let scratch = Scratch::new();
    for (image, flat, tree) in [(disk(&scratch, "dos"), "p1.img", "p1"), (floppy(&scratch), "disk.img", "disk")] {
        let mounted = Mounted::new(&image, &["-o", "rw"]);
        let (flat, tree) = (mounted.path(flat), mounted.path(tree));
        std::fs::write(tree.join("old"), "old").unwrap();
        // The kernel says that a file was closed some time after it was.
        assert!(within(Duration::from_secs(2), || open(&flat).is_ok()));
        tool("dosfstools", "mkfs.fat", &[text(&flat)]);
        assert!(within(Duration::from_secs(2), || names(&tree).is_empty()));
        assert_eq!(errno(File::open(tree.join("old"))), Some(Errno::NOENT));
        std::fs::write(tree.join("new"), "new").unwrap();
        open(&flat).unwrap().write_all_at(&pattern(200_000, 4), 0).unwrap();
        assert!(within(Duration::from_secs(2), || std::fs::read_dir(&tree).is_err() || {
            std::fs::read_dir(&tree).unwrap().any(|entry| entry.is_err())
        }));
        assert!(File::open(tree.join("new")).is_err() && File::create(tree.join("x")).is_err());
        tool("dosfstools", "mkfs.fat", &[text(&flat)]);
        assert!(within(Duration::from_secs(2), || std::fs::read_dir(&tree).is_ok() && names(&tree).is_empty()));
        std::fs::write(tree.join("again"), "again").unwrap();
        assert_eq!(std::fs::read_to_string(tree.join("again")).unwrap(), "again");
    }
}

#[test]
fn a_partition_that_is_gone_from_the_table_is_not_written_to_any_more() {
    let scratch = Scratch::new();
    let image = disk(&scratch, "dos");
    let before = sha256(&image);
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    let (p1, p2) = (mounted.path("p1"), mounted.path("p2"));
    std::fs::write(p1.join("old"), "old").unwrap();
    std::fs::write(p2.join("kept"), "kept").unwrap();
    sync(&p1);
    sync(&p2);
    // Another partition begins within the first; the second stays as it is.
    let flat = mounted.path("disk.img");
    let mut table = Command::new("sfdisk");
    table.args(["-q", "--force", "--no-reread", "--no-tell-kernel"]).arg(&flat);
    let mut table = table.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let rows = b"label: dos\nstart=4096,size=14336,type=6\nstart=18432,size=26624,type=e\n";
    table.stdin.take().unwrap().write_all(rows).unwrap();
    assert!(table.wait().unwrap().success());
    tool("dosfstools", "mkfs.fat", &["--offset", "4096", "-F", "12", text(&flat), "7168"]);
    through_flat(&scratch, Path::new(&format!("{}@@2M", text(&flat))), "NEW");
    assert_eq!(errno(std::fs::write(p1.join("filler"), pattern(3_000_000, 1))), Some(Errno::OPNOTSUPP));
    assert_eq!(std::fs::read_to_string(p2.join("kept")).unwrap(), "kept");
    std::fs::write(p2.join("more"), "more").unwrap();
    drop(mounted);
    assert_eq!(sha256(&image), before);
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    assert_eq!(names(&mounted.path("p1")), set(["NEW"]));
    assert_eq!(std::fs::read_to_string(mounted.path("p1/NEW")).unwrap(), "written from outside");
    assert_eq!(names(&mounted.path("p2")), set(["kept", "more"]));
}

#[test]
fn the_flat_disk_neither_grows_nor_shrinks() {
    let scratch = Scratch::new();
    let mounted = Mounted::new(&floppy(&scratch), &["-o", "rw"]);
    let flat = open(&mounted.path("disk.img")).unwrap();
    assert_eq!(errno(flat.write_at(b"more", 1_474_560)), Some(Errno::NOSPC));
    assert_eq!(errno(flat.set_len(1000)), Some(Errno::PERM));
    assert_eq!(errno(flat.set_len(2_000_000)), Some(Errno::PERM));
    flat.set_len(1_474_560).unwrap();
    assert_eq!(flat.metadata().unwrap().len(), 1_474_560);
}

#[test]
fn a_flat_file_that_is_opened_with_o_trunc_reads_as_zeros_where_nothing_is_written() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let _untouched = Untouched::new(&image);
    let (other, short, sparse) = (scratch.path("other.img"), scratch.path("short"), scratch.path("sparse"));
    ok(&["create", text(&other), "--size", "1440K", "--label", "OTHER"]);
    std::fs::write(&short, pattern(300_000, 5)).unwrap();
    ok(&["cp", "--in-place", text(&short), &format!("{}:/files/SHORT", text(&other))]);
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    let (flat, tree) = (mounted.path("disk.img"), mounted.path("disk"));
    std::fs::write(mounted.path("disk/FIRST"), pattern(900_000, 1)).unwrap();
    let shell = |line: String| tool("bash", "bash", &["-ec", &line]);
    shell(format!("cat '{}' > '{}'", text(&other), text(&flat)));
    assert_eq!(names(&tree), set(["SHORT"]));
    assert_eq!(sha256(&flat), sha256(&other));
    // cp leaves out what is a hole in its source.
    File::create(&sparse).unwrap().set_len(1_474_560).unwrap();
    OpenOptions::new().write(true).open(&sparse).unwrap().write_at(&pattern(9000, 8), 700_000).unwrap();
    for line in ["cp --sparse=auto", "cp --sparse=always", "cp --sparse=never"] {
        shell(format!("cat '{}' > '{}'; {line} '{}' '{}'", text(&other), text(&flat), text(&sparse), text(&flat)));
        assert_eq!(sha256(&flat), sha256(&sparse), "{line}");
    }
    shell(format!(
        "cat '{}' > '{}'; dd status=none if='{}' of='{}'",
        text(&other),
        text(&flat),
        text(&short),
        text(&flat)
    ));
    let mut expected = pattern(300_000, 5);
    expected.resize(1_474_560, 0);
    assert!(std::fs::read(&flat).unwrap() == expected);
    shell(format!("dd status=none conv=notrunc if='{}' of='{}' bs=512", text(&other), text(&flat)));
    assert_eq!(names(&tree), set(["SHORT"]));
    // While someone writes to the tree, nothing is emptied.
    let held = OpenOptions::new().write(true).open(mounted.path("disk/SHORT")).unwrap();
    assert_eq!(errno(File::create(&flat)), Some(Errno::BUSY));
    drop(held);
    assert_eq!(sha256(&flat), sha256(&other));
    unmount(&mounted);
    tool("qemu-utils", "qemu-img", &["check", text(&overlay_of(&image))]);
    assert_eq!(sha256(&converted(&overlay_of(&image), &scratch)), sha256(&other));
    // The naked disk too.
    std::fs::remove_file(overlay_of(&image)).unwrap();
    let at = scratch.path("naked");
    File::create(&at).unwrap();
    let naked = Mounted::onto(text(&image), None, &at, &["-o", "rw"]);
    shell(format!("cat '{}' > '{}'", text(&short), text(&at)));
    assert!(std::fs::read(&at).unwrap() == expected);
    drop(naked);
}

/// Maps the flat file, changes its tree, and looks whether the map has the change.
const MAPPED: &str = r#"
import mmap, os, sys, time
flat, tree = sys.argv[1:]
fd = os.open(flat, os.O_RDONLY)
m = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
late = 0
for step in range(40):
    assert m[:] == os.pread(fd, len(m), 0), step
    text = b"step %d" % step * 100
    name = os.path.join(tree, "f%d" % (step % 7))
    if step % 3:
        with open(name, "wb") as f: f.write(text)
    else:
        if not os.path.exists(name): open(name, "wb").close()
        with open(name, "r+b") as f: f.write(text); f.truncate(len(text))
    late += text not in m[:]
    if step % 5 == 4: os.unlink(name)
assert m[:] == os.pread(fd, len(m), 0)
sys.exit(f"{late} of 40 changes were not seen at once" if late > 2 else 0)
"#;

#[test]
fn whoever_has_mapped_a_flat_file_sees_what_is_written_to_its_tree() {
    let scratch = Scratch::new();
    let mounted = Mounted::new(&floppy(&scratch), &["-o", "rw"]);
    tool("python3", "python3", &["-c", MAPPED, text(&mounted.path("disk.img")), text(&mounted.path("disk"))]);
}

#[test]
fn an_idle_mount_learns_the_hash_of_its_whole_base() {
    let scratch = Scratch::new();
    let image = fat(&scratch, 70 * 1024, "-F 16");
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    std::fs::write(mounted.path("disk/file"), b"contents").unwrap();
    let overlay = overlay_of(&image);
    let known = || imgfs::device::overlay::base_reference(&overlay).unwrap().binding.unwrap().full_hash();
    assert!(known().is_none());
    assert!(within(Duration::from_secs(60), || known().is_some()), "the base is not hashed");
    let hash: String = known().unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hash, sha256(&image));
    drop(mounted);
    // A copy of the base is known by it.
    let time = SystemTime::now() + Duration::from_secs(9);
    File::options().write(true).open(&image).unwrap().set_modified(time).unwrap();
    drop(Mounted::new(&image, &["-o", "rw"]));
}

#[test]
fn diff_names_what_was_hidden() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    ok(&["mkdir", "--in-place", &format!("{}:/disk/DIR", text(&image)), &format!("{}:/disk/OTHER", text(&image))]);
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    let hidden = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(mounted.path("disk/DIR"), "user.fat.attributes", b"0x12", hidden).unwrap();
    drop(mounted);
    let said = ok(&["diff", text(&overlay_of(&image)), "--files"]);
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["changed", "disk/DIR"]);
}

#[test]
fn with_quiet_an_owner_that_fat_cannot_keep_is_no_error() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let other = Some(rustix::process::getgid().as_raw() + 1);
    for (options, expected) in [("rw", Some(Errno::PERM)), ("rw,quiet", None)] {
        let mounted = Mounted::new(&image, &["-o", options]);
        let file = mounted.path("disk/file");
        std::fs::write(&file, "contents").unwrap();
        let before = std::fs::metadata(&file).unwrap();
        let asked = std::os::unix::fs::chown(&file, None, other);
        // The kernel itself refuses ordinary users.
        assert_eq!(errno(asked), if is_root() { expected } else { Some(Errno::PERM) }, "{options}");
        let after = std::fs::metadata(&file).unwrap();
        assert_eq!((after.uid(), after.gid()), (before.uid(), before.gid()));
    }
}

#[test]
fn what_no_tree_can_do_is_refused_without_a_line_in_the_log() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    let file = mounted.path("disk/file");
    std::fs::write(&file, "contents").unwrap();
    for _ in 0..3 {
        // Asks whether it is a terminal.
        tool("python3", "python3", &["-c", "import sys; open(sys.argv[1]).read()", text(&file)]);
    }
    assert_eq!(errno(std::os::unix::fs::symlink("file", mounted.path("disk/link"))), Some(Errno::PERM));
    assert_eq!(errno(std::fs::hard_link(&file, mounted.path("disk/link"))), Some(Errno::PERM));
    let removed = rustix::fs::removexattr(&file, "user.other");
    assert_eq!(removed, Err(Errno::OPNOTSUPP));
    std::fs::copy(&file, mounted.path("disk/copy")).unwrap();
    drop(mounted);
    let log = std::fs::read_to_string(format!("{}.log.jsonl", overlay_of(&image).display())).unwrap();
    assert!(!log.contains("warning"), "{log}");
}

#[test]
fn a_removed_file_lives_until_it_is_closed() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    let free = || rustix::fs::statvfs(mounted.path("disk")).unwrap().f_bfree;
    let before = free();
    std::fs::write(mounted.path("disk/file"), pattern(50_000, 1)).unwrap();
    std::fs::write(mounted.path("disk/other"), pattern(20_000, 2)).unwrap();
    let mut file = open(&mounted.path("disk/file")).unwrap();
    let mut covered = open(&mounted.path("disk/other")).unwrap();
    std::fs::write(mounted.path("disk/over"), "over").unwrap();
    std::fs::rename(mounted.path("disk/over"), mounted.path("disk/other")).unwrap();
    std::fs::remove_file(mounted.path("disk/file")).unwrap();
    assert_eq!(names(&mounted.path("disk")), set(["other"]));
    assert_eq!(std::fs::read_to_string(mounted.path("disk/other")).unwrap(), "over");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.seek(SeekFrom::End(0)).unwrap();
    file.write_all(b"and more").unwrap();
    let mut found = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut found).unwrap();
    assert!(found == [pattern(50_000, 1), b"and more".to_vec()].concat());
    found.clear();
    covered.read_to_end(&mut found).unwrap();
    assert!(found == pattern(20_000, 2));
    drop((file, covered));
    std::fs::remove_file(mounted.path("disk/other")).unwrap();
    assert!(within(Duration::from_secs(2), || free() == before), "its clusters are free again");
    drop(mounted);
    volume_holds(&overlay_of(&image), &Tree::new(), &scratch);
}

#[test]
fn a_file_is_written_in_large_pieces_while_it_is_empty_and_read_in_small_ones() {
    let scratch = Scratch::new();
    let mounted = Mounted::new(&floppy(&scratch), &["-o", "rw"]);
    let path = mounted.path("disk/new");
    let file = File::create_new(&path).unwrap();
    // What cp and cat ask for.
    assert_eq!(file.metadata().unwrap().blksize(), 1 << 20);
    (&file).write_all(b"bytes").unwrap();
    assert_eq!((file.metadata().unwrap().blksize(), file.metadata().unwrap().len()), (4096, 5));
    let flat = std::fs::metadata(mounted.path("disk.img")).unwrap();
    assert_eq!(flat.blksize(), 4096);
    let (from, copy) = (scratch.path("from"), mounted.path("disk/copy"));
    std::fs::write(&from, pattern(1_200_001, 7)).unwrap();
    assert!(Command::new("cp").arg(&from).arg(&copy).status().unwrap().success());
    assert_eq!(std::fs::read(&copy).unwrap(), pattern(1_200_001, 7));
}

#[test]
fn a_rename_can_change_case_alone() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    let at = |name: &str| mounted.path("disk").join(name);
    std::fs::write(at("readme.txt"), "text").unwrap();
    std::fs::create_dir(at("Folder")).unwrap();
    std::fs::write(at("Folder/in it"), "inside").unwrap();
    std::fs::rename(at("readme.txt"), at("ReadMe.TXT")).unwrap();
    std::fs::rename(at("Folder"), at("FOLDER")).unwrap();
    assert_eq!(names(&mounted.path("disk")), set(["FOLDER", "ReadMe.TXT"]));
    // Not by mv(1), which looks first and finds one file.
    std::fs::rename(at("ReadMe.TXT"), at("readme.txt")).unwrap();
    assert_eq!(names(&mounted.path("disk")), set(["FOLDER", "readme.txt"]));
    // Whatever the spelling, it is one file.
    std::fs::write(at("README.TXT"), "more text").unwrap();
    assert_eq!(std::fs::read_to_string(at("readme.txt")).unwrap(), "more text");
    let first = File::open(at("readme.txt")).unwrap();
    open(&at("Readme.txt")).unwrap().write_all_at(b"less", 0).unwrap();
    let mut seen = [0; 9];
    first.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"less text");
    assert_eq!(std::fs::read_to_string(at("folder/IN IT")).unwrap(), "inside");
    assert_eq!(names(&mounted.path("disk")), set(["FOLDER", "readme.txt"]));
    std::fs::remove_file(at("READme.txt")).unwrap();
    assert_eq!(errno(File::open(at("readme.txt"))), Some(Errno::NOENT));
    drop((first, mounted));
    let expected = [("FOLDER", None), ("FOLDER/in it", Some(b"inside".to_vec()))];
    volume_holds(&overlay_of(&image), &expected.map(|(name, bytes)| (name.to_owned(), bytes)).into(), &scratch);
}

#[test]
fn a_copy_of_a_file_onto_its_other_spelling_is_refused_and_leaves_it() {
    let scratch = Scratch::new();
    let mounted = Mounted::new(&floppy(&scratch), &["-o", "rw"]);
    let at = |name: &str| mounted.path("disk").join(name);
    for (name, other) in [("readme.txt", "README.TXT"), ("a long name.txt", "ALONGN~1.TXT")] {
        std::fs::write(at(name), "what must not be lost").unwrap();
        for program in ["cp", "install"] {
            let copied = Command::new(program).args([at(name), at(other)]).output().unwrap();
            let said = String::from_utf8(copied.stderr).unwrap();
            assert!(!copied.status.success() && said.contains("are the same file"), "{program} {name}: {said}");
        }
        assert_eq!(std::fs::read_to_string(at(name)).unwrap(), "what must not be lost");
        let number = |name: &str| std::fs::metadata(at(name)).unwrap().ino();
        assert_eq!(number(name), number(other), "one file has one number");
        assert_eq!(File::open(at(other)).unwrap().metadata().unwrap().ino(), number(name));
    }
    std::fs::rename(at("readme.txt"), at("ReadMe.txt")).unwrap();
    assert_eq!(names(&mounted.path("disk")), set(["ReadMe.txt", "a long name.txt"]), "case alone can still change");
}

#[test]
fn a_file_moves_to_another_volume_without_a_word_of_what_that_cannot_hold() {
    let scratch = Scratch::new();
    let mounted = Mounted::new(&disk(&scratch, "dos"), &["-o", "rw"]);
    std::fs::write(mounted.path("p1/moved"), "moved").unwrap();
    let set = |name: &str| rustix::fs::setxattr(mounted.path("p1/moved"), name, b"x", rustix::fs::XattrFlags::empty());
    assert_eq!(set("user.fat.shortname"), Err(Errno::OPNOTSUPP));
    assert_eq!(set("user.comment"), Err(Errno::OPNOTSUPP));
    assert_eq!(set("user.fat.attributes"), Err(Errno::INVAL), "a value that is none");
    let moved = Command::new("mv").args([mounted.path("p1/moved"), mounted.path("p2/")]).output().unwrap();
    assert!(moved.status.success() && moved.stderr.is_empty(), "{}", String::from_utf8_lossy(&moved.stderr));
    assert_eq!(std::fs::read_to_string(mounted.path("p2/moved")).unwrap(), "moved");
}

#[test]
fn in_a_full_root_directory_a_file_replaces_another_of_any_spelling() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    let at = |name: &str| mounted.path("disk").join(name);
    for number in 1..=224 {
        std::fs::write(at(&format!("F{number}")), format!("{number}")).unwrap();
    }
    assert_eq!(errno(std::fs::write(at("F225"), "")), Some(Errno::NOSPC));
    std::fs::rename(at("F1"), at("f2")).unwrap();
    std::fs::rename(at("F3"), at("F4")).unwrap();
    assert_eq!(std::fs::read_to_string(at("F2")).unwrap(), "1");
    assert_eq!(std::fs::read_to_string(at("F4")).unwrap(), "3");
    assert_eq!(names(&mounted.path("disk")).len(), 222);
    drop(mounted);
    tool("dosfstools", "fsck.fat", &["-n", text(&converted(&overlay_of(&image), &scratch))]);
}

#[test]
fn files_are_opened_as_posix_says() {
    let scratch = Scratch::new();
    let mounted = Mounted::new(&floppy(&scratch), &["-o", "rw"]);
    let path = mounted.path("disk/file");
    std::fs::write(&path, "0123456789").unwrap();
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"end").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"0123456789end");
    assert_eq!(errno(File::create_new(&path)), Some(Errno::EXIST));
    open(&path).unwrap().set_len(5000).unwrap();
    let grown = std::fs::read(&path).unwrap();
    assert_eq!(grown.len(), 5000);
    assert!(grown.starts_with(b"0123456789end") && grown[13..].iter().all(|byte| *byte == 0));
    open(&path).unwrap().set_len(4).unwrap();
    open(&path).unwrap().set_len(10).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"0123\0\0\0\0\0\0");
    OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    // The mark that FAT has for "read-only".
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o222, 0);
    assert!(tool("mtools", "mattrib", &["-i", text(&mounted.path("disk.img")), "::file"]).contains('R'));
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o200, 0o200);
    rustix::fs::setxattr(&path, "user.fat.attributes", b"0x26", rustix::fs::XattrFlags::empty()).unwrap();
    let listed = tool("mtools", "mattrib", &["-i", text(&mounted.path("disk.img")), "::file"]);
    assert!(["A", "S", "H"].iter().all(|mark| listed[..listed.find("::").unwrap()].contains(mark)), "{listed}");
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_002);
    open(&path).unwrap().set_modified(time).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), time);
}

#[test]
fn what_fat_cannot_hold_is_refused_with_the_right_errno() {
    let scratch = Scratch::new();
    let image = disk(&scratch, "dos");
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    let at = |name: &str| mounted.path("p1").join(name);
    std::fs::write(at("file"), "x").unwrap();
    for name in ["a:b", "a*b", "q?", "a\"b", "a<b", "a>b", "a|b", "a\x01b", "trailing.", "trailing "] {
        assert_eq!(errno(File::create_new(at(name))), Some(Errno::INVAL), "{name:?}");
        assert_eq!(errno(std::fs::create_dir(at(name))), Some(Errno::INVAL), "{name:?}");
        assert_eq!(errno(std::fs::rename(at("file"), at(name))), Some(Errno::INVAL), "{name:?}");
    }
    File::create_new(at(&"n".repeat(255))).unwrap();
    File::create_new(at(&"😀".repeat(127))).unwrap();
    assert_eq!(errno(File::create_new(at(&"n".repeat(256)))), Some(Errno::NAMETOOLONG));
    assert_eq!(errno(File::create_new(at(&"😀".repeat(128)))), Some(Errno::NAMETOOLONG));
    let own = (rustix::process::getuid(), rustix::process::getgid());
    assert_eq!(errno(std::os::unix::fs::symlink("file", at("link"))), Some(Errno::PERM));
    assert_eq!(errno(std::fs::hard_link(at("file"), at("link"))), Some(Errno::PERM));
    let made = rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, Mode::from_raw_mode(0o644), 0);
    assert_eq!(made.err(), Some(Errno::PERM));
    assert_eq!(errno(std::os::unix::fs::chown(at("file"), Some(own.0.as_raw() + 1), None)), Some(Errno::PERM));
    std::os::unix::fs::chown(at("file"), Some(own.0.as_raw()), Some(own.1.as_raw())).unwrap();
    std::fs::create_dir(at("folder")).unwrap();
    assert_eq!(errno(std::fs::rename(at("folder"), at("folder/below"))), Some(Errno::INVAL));
    std::fs::write(mounted.path("p2/other"), "y").unwrap();
    assert_eq!(errno(std::fs::rename(at("file"), mounted.path("p2/file"))), Some(Errno::XDEV));
    let exclusive = |to| rustix::fs::renameat_with(CWD, at("file"), CWD, at(to), RenameFlags::NOREPLACE);
    assert_eq!(exclusive("folder").err(), Some(Errno::EXIST));
    // Above the volumes nothing changes: their folder has no permission to write, which root does not need.
    let above = if is_root() { Errno::ROFS } else { Errno::ACCESS };
    assert_eq!(errno(File::create(mounted.path("new"))), Some(above));
    assert_eq!(errno(std::fs::create_dir(mounted.path("new"))), Some(above));
    assert_eq!(errno(std::fs::remove_file(mounted.path("disk.img"))), Some(above));
    assert_eq!(errno(std::fs::remove_dir(mounted.path("p1"))), Some(above));
    assert_eq!(errno(std::fs::rename(mounted.path("p1"), mounted.path("q1"))), Some(above));
    assert_eq!(std::fs::read_to_string(at("file")).unwrap(), "x");
}

#[test]
fn a_full_volume_says_so_and_stays_sound() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    std::fs::create_dir(mounted.path("disk/sub")).unwrap();
    let mut count = 0;
    let refused = loop {
        match std::fs::write(mounted.path(&format!("disk/sub/{count}")), pattern(30_000, count)) {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), ErrorKind::StorageFull);
    let refused = (0..3000).find_map(|i| std::fs::create_dir(mounted.path(&format!("disk/sub/d{i}"))).err());
    assert_eq!(refused.unwrap().kind(), ErrorKind::StorageFull);
    // One cluster may be left where two were needed.
    assert!(rustix::fs::statvfs(mounted.path("disk")).unwrap().f_bfree <= 1);
    let tree = host_tree(&mounted.path("disk"));
    assert!((0..count).all(|i| tree[&format!("sub/{i}")] == Some(pattern(30_000, i))));
    drop(mounted);
    volume_holds(&overlay_of(&image), &tree, &scratch);
}

#[test]
fn trees_that_cannot_be_written_are_read_only_beside_writable_bytes() {
    let scratch = Scratch::new();
    let folder = scratch.path("folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("file"), "contents").unwrap();
    let (iso, ext) = (scratch.path("cd.iso"), scratch.path("ext.img"));
    tool("genisoimage", "genisoimage", &["-quiet", "-R", "-o", text(&iso), text(&folder)]);
    tool("e2fsprogs", "mke2fs", &["-q", "-d", text(&folder), text(&ext), "2M"]);
    for image in [iso, ext] {
        let mounted = Mounted::new(&image, &["-o", "rw"]);
        let at = |name: &str| mounted.path("disk").join(name);
        assert_eq!(errno(File::create(at("new"))), Some(Errno::ROFS));
        assert_eq!(errno(open(&at("file"))), Some(Errno::ROFS));
        assert_eq!(errno(std::fs::create_dir(at("new"))), Some(Errno::ROFS));
        assert_eq!(errno(std::fs::remove_file(at("file"))), Some(Errno::ROFS));
        assert_eq!(errno(std::fs::rename(at("file"), at("new"))), Some(Errno::ROFS));
        assert_eq!(std::fs::read_to_string(at("file")).unwrap(), "contents");
        open(&mounted.path("disk.img")).unwrap().write_all_at(b"boot code", 100).unwrap();
        let mut flat = std::fs::read(&image).unwrap();
        flat[100..109].copy_from_slice(b"boot code");
        assert!(std::fs::read(mounted.path("disk.img")).unwrap() == flat);
        assert_eq!(std::fs::read_to_string(at("file")).unwrap(), "contents");
        drop(mounted);
        assert!(std::fs::read(converted(&overlay_of(&image), &scratch)).unwrap() == flat);
    }
}

/// Ends a daemon as a crash would. Its keeper clears the mount away.
fn crash(mounted: &Mounted) {
    kill_process(Pid::from_raw(mounted.pid.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
    assert!(within(Duration::from_secs(5), || crate::program::mount_of(&mounted.at).is_none()));
}

#[test]
fn what_was_synced_survives_the_end_of_the_daemon() {
    let scratch = Scratch::new();
    for (kib, args) in VOLUMES {
        let image = fat(&scratch, kib, args);
        let mut synced = Tree::new();
        for round in 0..3u64 {
            let mounted = Mounted::new(&image, &["-o", "rw"]);
            let at = |name: &str| mounted.path("disk").join(name);
            for (name, bytes) in &synced {
                assert!(std::fs::read(at(name)).ok() == *bytes, "round {round}: {name}");
            }
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                // The load: nothing that anyone asked to be stable.
                for worker in 0..2 {
                    let (at, over) = (&at, &over);
                    scope.spawn(move || {
                        for i in (0..10).cycle().take_while(|_| !over.load(Ordering::Relaxed)) {
                            let name = at(&format!("load {worker} {i}"));
                            drop(std::fs::write(&name, pattern(9000, i)));
                            drop(std::fs::remove_file(at(&format!("load {worker} {}", (i + 5) % 10))));
                        }
                    });
                }
                for i in 0..4 {
                    let name = format!("synced {round} {i}");
                    let bytes = pattern(20_000, round * 10 + i);
                    let mut file = File::create(at(&name)).unwrap();
                    file.write_all(&bytes).unwrap();
                    file.sync_all().unwrap();
                    synced.insert(name, Some(bytes));
                }
                crash(&mounted);
                over.store(true, Ordering::Relaxed);
            });
            let check = try_tool("qemu-utils", "qemu-img", &["check", text(&overlay_of(&image))]);
            assert!(matches!(check.0, Some(0 | 3)), "more than leaks: {}", check.1);
        }
        let mounted = Mounted::new(&image, &["-o", "rw"]);
        for (name, bytes) in &synced {
            assert!(std::fs::read(mounted.path("disk").join(name)).ok() == *bytes, "{name}");
        }
        drop(mounted);
        // Lost clusters at most, for fsck.fat to give back.
        let raw = converted(&overlay_of(&image), &scratch);
        assert!(matches!(try_tool("dosfstools", "fsck.fat", &["-a", text(&raw)]).0, Some(0 | 1)));
        let repaired = by_mtools(&raw, &scratch);
        assert!(synced.iter().all(|(name, bytes)| repaired.get(name) == Some(bytes)));
        std::fs::remove_file(overlay_of(&image)).unwrap();
    }
}

#[test]
fn umount_returns_when_everything_is_in_the_overlay() {
    let scratch = Scratch::new();
    let image = fat(&scratch, 20 * 1024, "-F 16");
    let mut tree = Tree::new();
    for round in 0..3 {
        let mounted = Mounted::new(&image, &["-o", "rw"]);
        same_tree(&host_tree(&mounted.path("disk")), &tree, "what the last mount left");
        let bytes = pattern(2_000_000, round);
        std::fs::write(mounted.path(&format!("disk/{round}")), &bytes).unwrap();
        tree.insert(round.to_string(), Some(bytes));
        unmount(&mounted);
        volume_holds(&overlay_of(&image), &tree, &scratch);
    }
}

#[test]
fn a_failure_at_the_end_reaches_umount() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let mounted = Mounted::new(&image, &["-o", "rw", "--commit"]);
    std::fs::write(mounted.path("disk/file"), "not to be lost").unwrap();
    let away = scratch.path("away");
    std::fs::rename(&image, &away).unwrap();
    let failed = run(&["umount", text(&mounted.at)]);
    std::fs::rename(&away, &image).unwrap();
    assert_eq!(failed.code, Some(1));
    assert_eq!(failed.err.lines().count(), 1, "{}", failed.err);
    assert!(failed.err.contains("unmounted, but: ") && failed.err.contains("No such file"), "{}", failed.err);
    assert_eq!(failed.err.matches("No such file").count(), 1, "{}", failed.err);
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    assert_eq!(std::fs::read_to_string(mounted.path("disk/file")).unwrap(), "not to be lost");
}

#[test]
fn commit_at_unmount_brings_the_changes_into_the_image() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    for round in 0..2 {
        let at = PathBuf::from(format!("{}.mnt", image.display()));
        std::fs::create_dir_all(&at).unwrap();
        let mounted = Mounted::onto(text(&image), None, &at, &["-o", "rw", "--commit"]);
        std::fs::write(mounted.path(&format!("disk/{round}")), pattern(5000, round)).unwrap();
        drop(mounted);
        tool("dosfstools", "fsck.fat", &["-n", text(&image)]);
        let expected = (0..=round).map(|i| (i.to_string(), Some(pattern(5000, i)))).collect();
        same_tree(&by_mtools(&image, &scratch), &expected, "the image itself");
        let info: serde_json::Value =
            serde_json::from_str(&ok(&["overlay", "info", "--json", text(&overlay_of(&image))])).unwrap();
        assert_eq!(info["changed_bytes"], 0);
    }
    let qcow2 = scratch.path("disk.qcow2");
    tool("qemu-utils", "qemu-img", &["convert", "-O", "qcow2", text(&image), text(&qcow2)]);
    let refused = run(&[text(&qcow2), text(&scratch.path("")), "-o", "rw", "--commit"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("qcow2") && refused.err.contains("imgfs commit -o"), "{}", refused.err);
}

#[test]
fn commit_at_unmount_is_refused_at_once_for_an_image_that_may_not_be_written() {
    let scratch = Scratch::new();
    let folder = scratch.path("kept");
    std::fs::create_dir(&folder).unwrap();
    let image = folder.join("a.img");
    // Root may write to what nobody may, but not on a file system that is read-only.
    if is_root() {
        tool("mount", "mount", &["-t", "tmpfs", "none", text(&folder)]);
    }
    mkfs(&image, 1440, "");
    if is_root() {
        tool("mount", "mount", &["-o", "remount,ro", text(&folder)]);
    } else {
        std::fs::set_permissions(&image, std::fs::Permissions::from_mode(0o444)).unwrap();
    }
    let (at, overlay) = (scratch.path("mnt"), scratch.path("o.qcow2"));
    std::fs::create_dir(&at).unwrap();
    let refused = run(&[text(&image), text(&at), "--overlay", text(&overlay), "--commit"]);
    let without = run(&[text(&image), text(&at), "--overlay", text(&overlay)]);
    let ended = run(&["umount", text(&at)]);
    if is_root() {
        tool("mount", "umount", &[text(&folder)]);
    }
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("a.img: --commit writes to it"), "{}", refused.err);
    assert_eq!((without.code, ended.code), (Some(0), Some(0)), "{}{}", without.err, ended.err);
}

#[test]
fn overlays_lie_where_they_are_wanted_and_snapshots_nowhere() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    for option in ["--overlay", "--shadow", "--cache"] {
        let overlay = scratch.path(&format!("kept{option}"));
        let mounted = Mounted::new(&image, &[option, text(&overlay)]);
        std::fs::write(mounted.path("disk/file"), option).unwrap();
        drop(mounted);
        volume_holds(&overlay, &[("file".to_owned(), Some(option.into()))].into(), &scratch);
        assert!(!overlay_of(&image).exists());
    }
    let listed = || names(&scratch.path(""));
    let before = listed();
    let mounted = Mounted::new(&image, &["--snapshot"]);
    std::fs::write(mounted.path("disk/file"), "gone soon").unwrap();
    drop(mounted);
    assert_eq!(listed(), before);
    let mounted = Mounted::new(&image, &["--snapshot"]);
    assert!(names(&mounted.path("disk")).is_empty());
}

#[test]
fn an_overlay_is_for_its_base_and_for_one_mount() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let overlay = overlay_of(&image);
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    std::fs::write(mounted.path("disk/file"), "bound").unwrap();
    let second = scratch.path("second");
    std::fs::create_dir(&second).unwrap();
    let sentence = |args: &[&str], words: &str| {
        let refused = run(args);
        assert_eq!(refused.code, Some(1), "{args:?}");
        assert_eq!(refused.err.lines().count(), 1, "{}", refused.err);
        assert!(refused.err.contains(words), "{}", refused.err);
        let said: Vec<&str> = refused.err.trim().split(": ").collect();
        let distinct: BTreeSet<&str> = said.iter().copied().collect();
        assert_eq!(said.len(), distinct.len(), "said twice: {}", refused.err);
    };
    sentence(&[text(&image), text(&second), "-o", "rw"], "another process writes to it");
    unmount(&mounted);
    let other = scratch.path("other.img");
    std::fs::copy(&image, &other).unwrap();
    open(&other).unwrap().write_all_at(b"changed", 1_000_000).unwrap();
    let arguments = [text(&other), text(&second), "--overlay", text(&overlay)];
    sentence(&arguments, "changed since the overlay was made");
    let larger = scratch.path("larger.img");
    mkfs(&larger, 2880, "");
    sentence(&[text(&larger), text(&second), "--overlay", text(&overlay)], "bytes");
    let at = scratch.path("forced");
    std::fs::create_dir(&at).unwrap();
    let forced = Mounted::onto(text(&other), Some(&other), &at, &["--overlay", text(&overlay), "--force-base"]);
    assert_eq!(std::fs::read_to_string(forced.path("disk/file")).unwrap(), "bound");
}

/// Fills the volume until there is no space below it, and says what was stored.
fn filled(folder: &Path) -> Tree {
    drop(std::fs::create_dir(folder.join("many")));
    for i in 0..1000 {
        let name = format!("many/{i}");
        let written = File::create(folder.join(&name)).and_then(|mut file| {
            file.write_all(&pattern(3000, i))?;
            // Now and then, so that tables of every age are met.
            if i % 9 == 0 { file.sync_all() } else { Ok(()) }
        });
        if let Err(error) = written {
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
            return (0..i).map(|i| (format!("many/{i}"), Some(pattern(3000, i)))).collect();
        }
    }
    panic!("there is no end to it");
}

#[test]
fn the_bound_on_an_overlay_is_a_full_disk_that_loses_nothing() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let mounted = Mounted::new(&image, &["-o", "rw", "--overlay-max", "400K"]);
    let stored = filled(&mounted.path("disk"));
    let seen = host_tree(&mounted.path("disk"));
    assert!(stored.len() > 50 && stored.iter().all(|(name, bytes)| seen[name] == *bytes));
    // The last one was refused, and may be gone or empty.
    drop(std::fs::remove_file(mounted.path(&format!("disk/many/{}", stored.len()))));
    let before = host_tree(&mounted.path("disk"));
    let ended = run(&["umount", text(&mounted.at)]);
    assert!(std::fs::metadata(overlay_of(&image)).unwrap().len() <= 400 << 10);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    assert!(host_tree(&mounted.path("disk")) == before, "nothing that was not refused is lost");
    drop(mounted);
    volume_holds(&overlay_of(&image), &before, &scratch);
}

#[test]
fn a_full_host_disk_loses_nothing_as_root() {
    needs_root();
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let small = scratch.path("small");
    std::fs::create_dir(&small).unwrap();
    tool("mount", "mount", &["-t", "tmpfs", "-o", "size=500k", "none", text(&small)]);
    let overlay = small.join("overlay.qcow2");
    let mounted = Mounted::new(&image, &["--overlay", text(&overlay)]);
    let stored = filled(&mounted.path("disk"));
    assert!(stored.len() > 50);
    let before = host_tree(&mounted.path("disk"));
    let ended = run(&["umount", text(&mounted.at)]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let roomy = scratch.path("roomy.qcow2");
    std::fs::copy(&overlay, &roomy).unwrap();
    tool("mount", "umount", &[text(&small)]);
    assert!(matches!(try_tool("qemu-utils", "qemu-img", &["check", text(&roomy)]).0, Some(0 | 3)));
    let mounted = Mounted::new(&image, &["--overlay", text(&roomy)]);
    assert!(host_tree(&mounted.path("disk")) == before, "nothing that was not refused is lost");
    assert!(stored.iter().all(|(name, bytes)| before[name] == *bytes));
}

#[test]
fn large_writes_find_a_full_host_disk_at_once_and_all_before_are_kept_as_root() {
    needs_root();
    const PIECE: usize = 1 << 20;
    for on_ext4 in [false, true] {
        let scratch = Scratch::new();
        let image = fat(&scratch, 60 * 1024, "-F 32 -s 1");
        let (small, disk) = (scratch.path("small"), scratch.path("small.img"));
        std::fs::create_dir(&small).unwrap();
        if on_ext4 {
            File::create(&disk).unwrap().set_len(20 << 20).unwrap();
            tool("e2fsprogs", "mkfs.ext4", &["-q", "-m", "0", text(&disk)]);
            tool("mount", "mount", &["-o", "loop", text(&disk), text(&small)]);
        } else {
            tool("mount", "mount", &["-t", "tmpfs", "-o", "size=12m", "none", text(&small)]);
        }
        let overlay = small.join("overlay.qcow2");
        let mounted = Mounted::new(&image, &["--overlay", text(&overlay)]);
        let mut file = File::create(mounted.path("disk").join("big")).unwrap();
        let refused = (0..).find_map(|number| Some((number, file.write_all(&pattern(PIECE, number)).err()?)));
        let (taken, error) = refused.unwrap();
        assert_eq!(error.raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
        assert!(taken >= 6, "{taken} MiB");
        file.sync_all().unwrap();
        // What is there can be changed all the same.
        file.write_all_at(&pattern(PIECE, 99), PIECE as u64 + 5).unwrap();
        file.sync_all().unwrap();
        drop(file);
        // Ended without notice: what was synced is there.
        let roomy = scratch.path("roomy.qcow2");
        std::fs::copy(&overlay, &roomy).unwrap();
        assert!(matches!(try_tool("qemu-utils", "qemu-img", &["check", text(&roomy)]).0, Some(0 | 3)));
        let ended = run(&["umount", text(&mounted.at)]);
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        tool("qemu-utils", "qemu-img", &["check", text(&overlay)]);
        tool("mount", "umount", &[text(&small)]);
        let mounted = Mounted::new(&image, &["--overlay", text(&roomy)]);
        let found = std::fs::read(mounted.path("disk").join("big")).unwrap();
        let mut expected: Vec<u8> = (0..taken).flat_map(|number| pattern(PIECE, number)).collect();
        expected[PIECE + 5..][..PIECE].copy_from_slice(&pattern(PIECE, 99));
        assert!(found.len() >= expected.len() && found[..expected.len()] == expected, "on ext4: {on_ext4}");
    }
}

/// How long the crowd works: `IMGFS_CROWD_SECONDS` for more than the usual.
fn crowd_time() -> Duration {
    let seconds = std::env::var("IMGFS_CROWD_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(8))
}

#[test]
fn eight_writers_and_eight_readers_lose_no_update() {
    const BLOCKS: u64 = 64;
    const BLOCK: usize = 4096;
    let scratch = Scratch::new();
    let image = fat(&scratch, 40 * 1024, "-F 32 -s 1");
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    let at = |name: &str| mounted.path("disk").join(name);
    for writer in 0..8 {
        std::fs::write(at(&format!("w{writer}")), vec![0; BLOCKS as usize * BLOCK]).unwrap();
    }
    File::create(at("log")).unwrap();
    let end = Instant::now() + crowd_time();
    let (appended, reads) = (AtomicU64::new(0), AtomicU64::new(0));
    let block = |number: u64, block: u64| [number.to_le_bytes(), block.to_le_bytes()].concat().repeat(BLOCK / 16);
    let (at, appended, reads, block) = (&at, &appended, &reads, &block);
    std::thread::scope(|scope| {
        for writer in 0..8u64 {
            scope.spawn(move || {
                let mut random = Random(writer * 77 + 5);
                let mut last = vec![0; BLOCKS as usize];
                let file = open(&at(&format!("w{writer}"))).unwrap();
                let mut log = OpenOptions::new().append(true).open(at("log")).unwrap();
                for number in 1.. {
                    if Instant::now() >= end {
                        break;
                    }
                    let to = random.below(BLOCKS as usize);
                    file.write_all_at(&block(number, to as u64), (to * BLOCK) as u64).unwrap();
                    last[to] = number;
                    match random.below(40) {
                        0 => file.sync_all().unwrap(),
                        1 => {
                            let (name, other) = (at(&format!("t{writer}")), at(&format!("u{writer}")));
                            std::fs::write(&name, pattern(5000, number)).unwrap();
                            std::fs::rename(&name, &other).unwrap();
                            assert!(std::fs::read(&other).unwrap() == pattern(5000, number));
                            std::fs::remove_file(&other).unwrap();
                        }
                        2..6 => {
                            log.write_all(&[writer as u8; 64]).unwrap();
                            appended.fetch_add(1, Ordering::Relaxed);
                        }
                        _ => {}
                    }
                }
                let bytes = std::fs::read(at(&format!("w{writer}"))).unwrap();
                for (to, number) in last.into_iter().enumerate().filter(|(_, number)| *number > 0) {
                    assert!(bytes[to * BLOCK..][..BLOCK] == block(number, to as u64), "an update of w{writer} is lost");
                }
            });
        }
        for reader in 0..8u64 {
            scope.spawn(move || {
                let mut random = Random(reader * 991 + 3);
                let mut bytes = vec![0; BLOCK];
                while Instant::now() < end {
                    let to = random.below(BLOCKS as usize);
                    let file = File::open(at(&format!("w{}", random.below(8)))).unwrap();
                    file.read_exact_at(&mut bytes, (to * BLOCK) as u64).unwrap();
                    let number = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
                    assert!(number == to as u64 || bytes.iter().all(|byte| *byte == 0), "a block of another place");
                    reads.fetch_add(1, Ordering::Relaxed);
                    if reader == 0 {
                        // The slow one.
                        std::thread::sleep(Duration::from_millis(200));
                    }
                }
            });
        }
    });
    println!("{} appended, {} reads", appended.load(Ordering::Relaxed), reads.load(Ordering::Relaxed));
    assert!(reads.load(Ordering::Relaxed) > 500 && appended.load(Ordering::Relaxed) > 50, "it hardly moves");
    assert_eq!(std::fs::metadata(at("log")).unwrap().len(), appended.load(Ordering::Relaxed) * 64);
    let tree = host_tree(&mounted.path("disk"));
    drop(mounted);
    volume_holds(&overlay_of(&image), &tree, &scratch);
}

#[test]
fn one_tree_and_the_naked_disk_can_be_written_to_as_well() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let _untouched = Untouched::new(&image);
    let mounted = Mounted::new(&image, &["-o", "rw,tree"]);
    std::fs::write(mounted.path("file"), pattern(7000, 1)).unwrap();
    drop(mounted);
    let expected: Tree = [("file".to_owned(), Some(pattern(7000, 1)))].into();
    volume_holds(&overlay_of(&image), &expected, &scratch);
    let flat = scratch.path("flat");
    File::create(&flat).unwrap();
    let mounted = Mounted::onto(text(&image), Some(&image), &flat, &["-o", "rw"]);
    let host = scratch.path("host");
    std::fs::write(&host, pattern(9000, 2)).unwrap();
    tool("mtools", "mcopy", &["-i", text(&flat), text(&host), "::second"]);
    same_tree(&by_mtools(&flat, &scratch).into_iter().filter(|(name, _)| name == "file").collect(), &expected, "flat");
    drop(mounted);
    let second = ("second".to_owned(), Some(pattern(9000, 2)));
    volume_holds(&overlay_of(&image), &expected.into_iter().chain([second]).collect(), &scratch);
}

#[test]
fn a_file_opened_for_synchronous_writes_needs_no_fsync() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let flags = (OFlags::SYNC | OFlags::DSYNC).bits() as i32;
    // A file, then the last bytes of the disk: the kernel keeps no pages of either.
    for (name, at) in [("disk/file", 0), ("disk.img", 1_474_554)] {
        let mounted = Mounted::new(&image, &["-o", "rw"]);
        let path = mounted.path(name);
        let file = OpenOptions::new().write(true).create(true).custom_flags(flags).open(&path).unwrap();
        file.write_all_at(b"stable", at).unwrap();
        crash(&mounted);
        drop(file);
        let mounted = Mounted::new(&image, &["-o", "rw"]);
        let written = std::fs::read(mounted.path(name)).unwrap();
        assert_eq!(written[usize::try_from(at).unwrap()..], *b"stable", "{name}");
    }
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    let link = rustix::fs::linkat(CWD, mounted.path("disk/file"), CWD, mounted.path("disk/b"), AtFlags::empty());
    assert_eq!(link.err(), Some(Errno::PERM));
}
