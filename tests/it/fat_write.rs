//! FAT volumes that are written here, compared with a model in memory, with what mtools and
//! fsck.fat make of them, and with what is left of them after a crash.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use imgfs::device::memory::Memory;
use imgfs::device::{BlockDevice, BlockWrite, Device, check_range};
use imgfs::error::{Error, Result};
use imgfs::filesystem::{Changes, FileSystem, FileSystemWrite, Kind, NewNode, NodeId, Options, Timestamp, fat};

use crate::fat::{
    Random, Scratch, Tree, by_hadris, contents, host_tree, mkfs, node, pattern, rows, same_tree, tool, tree, try_tool,
};

const NOW: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };

fn file() -> NewNode {
    NewNode { kind: Kind::File, read_only: false, now: NOW }
}

fn directory() -> NewNode {
    NewNode { kind: Kind::Directory, ..file() }
}

/// A writable volume in memory that remembers what was written, when told to.
struct Disk {
    memory: Memory,
    log: Mutex<Option<Vec<Event>>>,
    writes: AtomicU64,
}

#[derive(Clone)]
enum Event {
    Write(u64, Vec<u8>),
    Flush,
}

impl Disk {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { memory: Memory::new(bytes, 512), log: Mutex::new(None), writes: AtomicU64::new(0) })
    }

    fn by_mkfs(kib: u64, args: &str) -> Arc<Self> {
        let scratch = Scratch::new();
        let image = scratch.path("image");
        mkfs(&image, kib, args);
        Self::new(std::fs::read(&image).unwrap())
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size() as usize];
        self.memory.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn open(self: &Arc<Self>) -> Arc<dyn FileSystem> {
        let device: Device = self.clone();
        (fat::FORMAT.open)(device, &Options::default()).unwrap()
    }
}

impl BlockDevice for Disk {
    fn size(&self) -> u64 {
        self.memory.size()
    }
    fn sector_size(&self) -> u32 {
        512
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.memory.read_exact_at(buf, offset)
    }
    fn writer(&self) -> Option<&dyn BlockWrite> {
        Some(self)
    }
}

impl BlockWrite for Disk {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        check_range(buf.len(), offset, self.size())?;
        self.writes.fetch_add(1, Ordering::Relaxed);
        if let Some(log) = self.log.lock().unwrap().as_mut() {
            log.push(Event::Write(offset, buf.to_vec()));
        }
        self.memory.write_all_at(buf, offset)
    }
    fn flush(&self) -> Result<()> {
        if let Some(log) = self.log.lock().unwrap().as_mut() {
            log.push(Event::Flush);
        }
        Ok(())
    }
}

fn writer(fs: &Arc<dyn FileSystem>) -> &dyn FileSystemWrite {
    fs.writer().expect("the device can be written to")
}

/// Saves the image without its zeros, which are most of it.
fn save(bytes: &[u8], path: &Path) {
    use std::os::unix::fs::FileExt;
    drop(std::fs::remove_file(path));
    let file = std::fs::File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (i, piece) in bytes.chunks(4096).enumerate() {
        if piece.iter().any(|&byte| byte != 0) {
            file.write_all_at(piece, i as u64 * 4096).unwrap();
        }
    }
}

/// `fsck.fat -n` finds nothing, and a reader that starts from the disk sees the same tree.
fn check_volume(disk: &Arc<Disk>, fs: &Arc<dyn FileSystem>, expected: &Tree, scratch: &Scratch, mtools: bool) {
    writer(fs).quiesce().unwrap();
    let image = scratch.path("check.img");
    save(&disk.bytes(), &image);
    let path = image.to_str().unwrap();
    let (code, text) = try_tool("dosfstools", "fsck.fat", &["-n", path]);
    assert_eq!(code, Some(0), "{text}");
    same_tree(&tree(fs.as_ref()), expected, "the volume itself");
    let fresh = disk.open();
    same_tree(&tree(fresh.as_ref()), expected, "a reader that starts from the disk");
    same_tree(&by_hadris(disk.bytes()), expected, "hadris-fat");
    let (ours, counted) = (fs.summary(), fresh.summary());
    assert_eq!(ours.free_blocks, counted.free_blocks);
    assert!(counted.notes.iter().all(|note| !note.contains("dirty")), "{:?}", counted.notes);
    if mtools && !expected.is_empty() {
        let out = scratch.path("out");
        drop(std::fs::remove_dir_all(&out));
        std::fs::create_dir(&out).unwrap();
        tool("mtools", "mcopy", &["-s", "-n", "-Q", "-i", path, "::*", out.to_str().unwrap()]);
        same_tree(&host_tree(&out), expected, "mcopy");
    }
}

/// The volume and what should be in it.
struct Model {
    disk: Arc<Disk>,
    fs: Arc<dyn FileSystem>,
    tree: Tree,
    nodes: BTreeMap<String, NodeId>,
    /// Files without a name that are still open.
    orphans: Vec<(NodeId, Vec<u8>)>,
    random: Random,
    full: u32,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn name(path: &str) -> &[u8] {
    path.rsplit_once('/').map_or(path, |(_, name)| name).as_bytes()
}

impl Model {
    fn new(disk: Arc<Disk>, seed: u64) -> Self {
        let fs = disk.open();
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let (tree, nodes) = (Tree::new(), BTreeMap::new());
        Self { disk, fs, tree, nodes, orphans: Vec::new(), random, full: 0 }
    }

    fn node(&self, path: &str) -> NodeId {
        if path.is_empty() { self.fs.root() } else { self.nodes[path] }
    }

    fn files(&self) -> Vec<String> {
        self.tree.iter().filter(|(_, bytes)| bytes.is_some()).map(|(name, _)| name.clone()).collect()
    }

    fn folders(&self) -> Vec<String> {
        let folders = self.tree.iter().filter(|(_, bytes)| bytes.is_none()).map(|(name, _)| name.clone());
        std::iter::once(String::new()).chain(folders).collect()
    }

    fn new_path(&mut self) -> String {
        const NAMES: [&str; 14] = [
            "A",
            "B.TXT",
            "lower.txt",
            "Mixed.Case",
            "a longer name",
            "with.many.dots.in.it",
            "plus+and,comma;[x]=y",
            "ümläute und ß",
            "日本語の名前",
            ".hidden",
            "x",
            "tilde~1",
            "LONGNA~1",
            "noext",
        ];
        let folders = self.folders();
        let folder = self.random.pick(&folders).unwrap().clone();
        let base = *self.random.pick(&NAMES).unwrap();
        let long = "long ".repeat(self.random.below(45));
        let name = match self.random.below(4) {
            0 => base.to_owned(),
            1 => format!("{base} {}", self.random.below(50)),
            2 => format!("{} {base}", self.random.below(50)),
            _ => format!("{long}{}", self.random.below(50)),
        };
        let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
        // Deep paths help nobody, and the model knows nothing of case or short names.
        let clash = self.tree.keys().any(|other| other != &path && other.to_lowercase() == path.to_lowercase());
        let short = self.fs.lookup(self.node(&folder), path.rsplit('/').next().unwrap().as_bytes()).unwrap();
        if path.matches('/').count() > 4 || clash || short.is_some() != self.tree.contains_key(&path) {
            return self.new_path();
        }
        path
    }

    /// Whether it was done; a full volume must leave everything as it was.
    fn done<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Error::NoSpace) => {
                self.full += 1;
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn step(&mut self) {
        let (files, folders) = (self.files(), self.folders());
        let fs = self.fs.clone();
        let w = writer(&fs);
        match self.random.below(100) {
            0..20 => {
                let path = self.new_path();
                let new = if self.random.below(5) == 0 { directory() } else { file() };
                let result = w.create(self.node(parent(&path)), name(&path), new);
                if self.tree.contains_key(&path) {
                    assert!(matches!(result, Err(Error::Exists)), "{path}");
                } else if let Some(node) = self.done(result) {
                    self.tree.insert(path.clone(), (new.kind == Kind::File).then(Vec::new));
                    self.nodes.insert(path, node);
                }
            }
            20..50 => {
                let Some(path) = self.random.pick(&files).cloned() else { return };
                let old = self.tree[&path].clone().unwrap();
                let most = [10, 600, 5000, 40_000][self.random.below(4)];
                let bytes = pattern(1 + self.random.below(most), self.random.below(1 << 30) as u64);
                let offset = match self.random.below(4) {
                    0 => old.len(),
                    1 => old.len() + self.random.below(6000),
                    _ => self.random.below(old.len() + 1),
                };
                let result = w.write(self.nodes[&path], &bytes, offset as u64, NOW);
                if self.done(result).is_some() {
                    let mut new = old;
                    new.resize(new.len().max(offset + bytes.len()), 0);
                    new[offset..offset + bytes.len()].copy_from_slice(&bytes);
                    self.tree.insert(path, Some(new));
                }
            }
            50..60 => {
                let Some(path) = self.random.pick(&files).cloned() else { return };
                let mut bytes = self.tree[&path].clone().unwrap();
                let size = self.random.below(bytes.len() + bytes.len() / 2 + 3);
                let changes = Changes { size: Some(size as u64), ..Changes::default() };
                let result = w.set_attributes(self.nodes[&path], &changes);
                if self.done(result).is_some() {
                    bytes.resize(size, 0);
                    self.tree.insert(path, Some(bytes));
                }
            }
            60..75 => self.rename(),
            75..88 => {
                let Some(path) = self.random.pick(&files).cloned() else { return };
                let node = self.nodes[&path];
                let open = self.random.below(4) == 0;
                if open {
                    w.opened(node);
                }
                assert!(matches!(w.remove(self.node(parent(&path)), name(&path), true), Err(Error::NotDirectory)));
                w.remove(self.node(parent(&path)), name(&path), false).unwrap();
                let bytes = self.tree.remove(&path).unwrap().unwrap();
                self.nodes.remove(&path);
                if open {
                    self.orphans.push((node, bytes));
                } else {
                    assert!(matches!(fs.attributes(node), Err(Error::Stale)), "a removed node is gone");
                }
            }
            88..92 => {
                let Some(path) = self.random.pick(&folders).cloned().filter(|path| !path.is_empty()) else { return };
                let inside = format!("{path}/");
                let result = w.remove(self.node(parent(&path)), name(&path), true);
                if self.tree.keys().any(|other| other.starts_with(&inside)) {
                    assert!(matches!(result, Err(Error::NotEmpty)));
                } else {
                    result.unwrap();
                    self.tree.remove(&path);
                    self.nodes.remove(&path);
                }
            }
            92..96 => {
                let Some((node, mut bytes)) = self.orphans.pop() else { return };
                assert!(contents(fs.as_ref(), node).unwrap() == bytes, "an open file keeps its contents");
                let more = pattern(700, 9);
                if self.done(w.write(node, &more, bytes.len() as u64, NOW)).is_some() {
                    bytes.extend(more);
                }
                assert!(contents(fs.as_ref(), node).unwrap() == bytes);
                w.closed(node);
                assert!(matches!(fs.attributes(node), Err(Error::Stale)));
            }
            96..98 => w.flush().unwrap(),
            _ => {
                let Some(path) = self.random.pick(&files).cloned() else { return };
                assert_eq!(fs.lookup(self.node(parent(&path)), name(&path)).unwrap(), Some(self.nodes[&path]));
                assert!(contents(fs.as_ref(), self.nodes[&path]).unwrap() == *self.tree[&path].as_ref().unwrap());
            }
        }
    }

    fn rename(&mut self) {
        let all: Vec<String> = self.tree.keys().cloned().collect();
        let Some(from) = self.random.pick(&all).cloned() else { return };
        let to = match self.random.below(3) {
            0 => self.random.pick(&all).unwrap().clone(),
            _ => self.new_path(),
        };
        let replace = self.random.below(4) > 0;
        let fs = self.fs.clone();
        let (from_dir, to_dir) = (self.node(parent(&from)), self.node(parent(&to)));
        let result = writer(&fs).rename(from_dir, name(&from), to_dir, name(&to), replace);
        let moved_in_itself = to.starts_with(&format!("{from}/"));
        let (dir, inside) = (self.tree[&from].is_none(), format!("{to}/"));
        if from == to {
            return result.unwrap();
        }
        if dir && moved_in_itself {
            assert!(matches!(result, Err(Error::Invalid)), "{from} -> {to}: {result:?}");
            return;
        }
        if let Some(there) = self.tree.get(&to) {
            let expected = match (replace, dir, there.is_none()) {
                (false, ..) => Some(Error::Exists),
                (_, true, false) => Some(Error::NotDirectory),
                (_, false, true) => Some(Error::IsDirectory),
                (_, true, true) if self.tree.keys().any(|name| name.starts_with(&inside)) => Some(Error::NotEmpty),
                _ => None,
            };
            if let Some(expected) = expected {
                assert_eq!(result.unwrap_err().to_string(), expected.to_string(), "{from} -> {to}");
                return;
            }
        }
        if self.done(result).is_none() {
            return;
        }
        let renamed = |path: &str| match path.strip_prefix(&from) {
            Some("") => Some(to.clone()),
            Some(rest) if rest.starts_with('/') => Some(format!("{to}{rest}")),
            _ => None,
        };
        let changes: Vec<(String, String)> =
            all.iter().filter_map(|path| Some((path.clone(), renamed(path)?))).collect();
        self.tree.remove(&to);
        self.nodes.remove(&to);
        let taken: Vec<_> = changes
            .iter()
            .map(|(old, new)| (new.clone(), self.tree.remove(old).unwrap(), self.nodes.remove(old).unwrap()))
            .collect();
        for (path, bytes, node) in taken {
            self.tree.insert(path.clone(), bytes);
            self.nodes.insert(path, node);
        }
    }
}

fn run_model(kib: u64, args: &str, seeds: std::ops::Range<u64>, steps: u32, mtools: bool) {
    let scratch = Scratch::new();
    let blank = Disk::by_mkfs(kib, args).bytes();
    for seed in seeds {
        let mut model = Model::new(Disk::new(blank.clone()), seed + 1);
        for step in 1..=steps {
            model.step();
            if step % 500 == 0 {
                for (path, node) in &model.nodes {
                    assert_eq!(crate::fat::node(model.fs.as_ref(), path), *node, "a number stays valid");
                }
                // fsck.fat counts what only open files hold as lost.
                for (node, _) in std::mem::take(&mut model.orphans) {
                    writer(&model.fs).closed(node);
                }
                check_volume(&model.disk, &model.fs, &model.tree, &scratch, mtools && step % 1500 == 0);
            }
        }
        println!("{args}, seed {seed}: {} rows at the end, {} times full", model.tree.len(), model.full);
    }
}

#[test]
fn random_changes_of_a_fat12_floppy_agree_with_a_model() {
    run_model(1440, "-F 12", 0..3, 3000, true);
}

#[test]
fn random_changes_of_a_small_full_volume_agree_with_a_model() {
    run_model(160, "-F 12 -s 1 -r 64", 0..4, 3000, true);
}

#[test]
fn random_changes_of_a_fat16_volume_agree_with_a_model() {
    run_model(5000, "-F 16 -s 1 -f 1 -R 3", 0..3, 3000, true);
}

#[test]
fn random_changes_of_a_fat32_volume_agree_with_a_model() {
    run_model(34 << 10, "-F 32 -s 1", 0..2, 3000, true);
}

#[test]
fn random_changes_of_large_sectors_and_clusters_agree_with_a_model() {
    run_model(20 << 10, "-F 16 -S 4096 -s 1", 0..1, 3000, true);
    run_model(8 << 10, "-F 32 -s 8", 0..1, 3000, false);
}

fn node_at(fs: &Arc<dyn FileSystem>, path: &str) -> NodeId {
    node(fs.as_ref(), path)
}

fn put(fs: &Arc<dyn FileSystem>, path: &str, bytes: &[u8]) -> NodeId {
    let dir = if parent(path).is_empty() { fs.root() } else { node_at(fs, parent(path)) };
    let node = writer(fs).create(dir, name(path), file()).unwrap();
    writer(fs).write(node, bytes, 0, NOW).unwrap();
    node
}

fn get(fs: &Arc<dyn FileSystem>, path: &str) -> Vec<u8> {
    contents(fs.as_ref(), node_at(fs, path)).unwrap()
}

/// All files. After a crash a name may be there twice: fsck.fat does not look at long ones.
fn salvage(fs: &Arc<dyn FileSystem>) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![(String::new(), fs.root())];
    while let Some((path, folder)) = folders.pop() {
        let (rows, result) = rows(fs.as_ref(), folder);
        result.unwrap();
        for (name, node, kind) in rows {
            let path = format!("{path}{}", String::from_utf8(name).unwrap());
            match kind {
                Kind::Directory => folders.push((format!("{path}/"), node)),
                _ => files.push((path, contents(fs.as_ref(), node).unwrap())),
            }
        }
    }
    files
}

/// What was done between two points of the log, and which files it may have changed.
struct Deed {
    start: usize,
    touched: Vec<String>,
    moved: Option<(String, String)>,
}

/// A scenario under which every write is recorded.
struct Crash {
    disk: Arc<Disk>,
    fs: Arc<dyn FileSystem>,
    blank: Vec<u8>,
    deeds: Vec<Deed>,
    /// End of a flush in the log, and the files as they were then.
    synced: Vec<(usize, Tree)>,
}

impl Crash {
    fn new(disk: Arc<Disk>) -> Self {
        let (blank, fs) = (disk.bytes(), disk.open());
        *disk.log.lock().unwrap() = Some(Vec::new());
        Self { disk, fs, blank, deeds: Vec::new(), synced: vec![(0, Tree::new())] }
    }

    fn len(&self) -> usize {
        self.disk.log.lock().unwrap().as_ref().unwrap().len()
    }

    fn touch(&mut self, path: &str) {
        self.deeds.push(Deed { start: self.len(), touched: vec![path.to_owned()], moved: None });
    }

    fn put(&mut self, path: &str, bytes: &[u8]) {
        self.touch(path);
        put(&self.fs, path, bytes);
    }

    fn mkdir(&mut self, path: &str) {
        let dir = if parent(path).is_empty() { self.fs.root() } else { node_at(&self.fs, parent(path)) };
        writer(&self.fs).create(dir, name(path), directory()).unwrap();
    }

    fn write(&mut self, path: &str, bytes: &[u8], offset: u64) {
        self.touch(path);
        writer(&self.fs).write(node_at(&self.fs, path), bytes, offset, NOW).unwrap();
    }

    fn truncate(&mut self, path: &str, size: u64) {
        self.touch(path);
        let changes = Changes { size: Some(size), ..Changes::default() };
        writer(&self.fs).set_attributes(node_at(&self.fs, path), &changes).unwrap();
    }

    fn remove(&mut self, path: &str, directory: bool) {
        self.touch(path);
        let dir = if parent(path).is_empty() { self.fs.root() } else { node_at(&self.fs, parent(path)) };
        writer(&self.fs).remove(dir, name(path), directory).unwrap();
    }

    fn rename(&mut self, from: &str, to: &str) {
        let moved = Some((from.to_owned(), to.to_owned()));
        self.deeds.push(Deed { start: self.len(), touched: vec![to.to_owned()], moved });
        let dir = |path: &str| if parent(path).is_empty() { self.fs.root() } else { node_at(&self.fs, parent(path)) };
        writer(&self.fs).rename(dir(from), name(from), dir(to), name(to), true).unwrap();
    }

    fn flush(&mut self) {
        writer(&self.fs).flush().unwrap();
        let tree = tree(self.fs.as_ref());
        self.synced.push((self.len(), tree));
    }

    /// Cuts the power after `count` writes and checks what is left once fsck.fat was there.
    fn check(&self, events: &[Event], count: usize, scratch: &Scratch) {
        let mut bytes = self.blank.clone();
        for event in &events[..count] {
            if let Event::Write(at, written) = event {
                bytes[*at as usize..*at as usize + written.len()].copy_from_slice(written);
            }
        }
        let image = scratch.path("crash.img");
        save(&bytes, &image);
        let path = image.to_str().unwrap();
        // Where a directory has two names fsck.fat needs a second round.
        let mut text = String::new();
        for _ in 0..2 {
            let (code, said) = try_tool("dosfstools", "fsck.fat", &["-a", path]);
            assert!(matches!(code, Some(0 | 1)), "after {count} writes: {said}");
            text.push_str(&said);
        }
        let (code, again) = try_tool("dosfstools", "fsck.fat", &["-n", path]);
        assert_eq!(code, Some(0), "after {count} writes, not repaired: {text}\n{again}");
        let found = salvage(&Disk::new(std::fs::read(&image).unwrap()).open());
        let (from, synced) = self.synced.iter().rev().find(|(end, _)| *end <= count).unwrap();
        let deeds: Vec<&Deed> = self.deeds.iter().filter(|deed| deed.start >= *from && deed.start < count).collect();
        for (name, bytes) in synced.iter().filter(|(_, bytes)| bytes.is_some()) {
            let mut names = vec![name.clone()];
            let mut changed = false;
            for deed in &deeds {
                changed |= deed.touched.iter().any(|touched| names.contains(touched));
                if let Some((from, to)) = &deed.moved {
                    let moved: Vec<String> = names
                        .iter()
                        .filter_map(|name| name.strip_prefix(from.as_str()))
                        .filter(|rest| rest.is_empty() || rest.starts_with('/'))
                        .map(|rest| format!("{to}{rest}"))
                        .collect();
                    names.extend(moved);
                }
            }
            let intact = found.iter().any(|(name, found)| names.contains(name) && Some(found) == bytes.as_ref());
            assert!(changed || intact, "after {count} writes {name} is lost: {text}");
        }
    }

    fn check_all(&self, scratch: &Scratch, each: usize) {
        let events = self.disk.log.lock().unwrap().clone().unwrap();
        let writes: Vec<usize> =
            (0..=events.len()).filter(|&count| count == 0 || matches!(events[count - 1], Event::Write(..))).collect();
        for &count in writes.iter().step_by(each) {
            self.check(&events, count, scratch);
        }
        println!("{} points of failure", writes.len() / each);
    }
}

fn crash_scenario(disk: Arc<Disk>, each: usize) {
    let scratch = Scratch::new();
    let mut crash = Crash::new(disk);
    crash.put("first", &pattern(3000, 1));
    crash.put("a long name that takes many slots of the directory", &pattern(9000, 2));
    crash.mkdir("folder");
    crash.mkdir("folder/inner");
    crash.put("folder/inner/deep", &pattern(700, 3));
    crash.put("folder/config", &pattern(5000, 4));
    crash.put("victim", &pattern(6000, 5));
    crash.flush();
    // Growth, truncation, and writing over freed room.
    crash.write("first", &pattern(5000, 6), 2500);
    crash.truncate("victim", 1000);
    crash.put("newcomer", &pattern(8000, 7));
    crash.flush();
    crash.write("victim", &pattern(3000, 8), 1000);
    crash.remove("newcomer", false);
    crash.put("another newcomer", &pattern(8000, 9));
    crash.flush();
    // The way of every editor: a new file over the old one.
    crash.put("folder/config.tmp", &pattern(5100, 10));
    crash.flush();
    crash.rename("folder/config.tmp", "folder/config");
    crash.flush();
    // A new name in another directory, a new directory, a directory that moves.
    crash.mkdir("elsewhere");
    crash.rename(
        "a long name that takes many slots of the directory",
        "elsewhere/an even longer name, which takes more",
    );
    crash.flush();
    crash.rename("folder/inner", "elsewhere/moved");
    crash.flush();
    // Cut and grown again before anything is flushed; moved twice; moved where a name just left.
    crash.truncate("victim", 700);
    crash.write("victim", &pattern(6000, 13), 700);
    crash.rename("another newcomer", "elsewhere/stop");
    crash.rename("elsewhere/stop", "folder/at last");
    crash.remove("victim", false);
    crash.rename("folder/config", "victim");
    crash.flush();
    crash.put("elsewhere/moved/more", &pattern(600, 11));
    crash.rename("first", "FIRST");
    crash.rename("elsewhere/moved/more", "elsewhere/moved/another name for it");
    crash.flush();
    // Many names, so that the directory grows; and away with them.
    for i in 0..40 {
        crash.put(&format!("elsewhere/one of many files, number {i}"), &pattern(100, i));
    }
    crash.flush();
    for i in 0..40 {
        crash.remove(&format!("elsewhere/one of many files, number {i}"), false);
    }
    crash.put("after all", &pattern(20_000, 12));
    crash.flush();
    crash.remove("elsewhere/moved/deep", false);
    crash.remove("elsewhere/moved/another name for it", false);
    crash.remove("elsewhere/moved", true);
    crash.flush();
    crash.check_all(&scratch, each);
    let tree = tree(crash.fs.as_ref());
    check_volume(&crash.disk, &crash.fs, &tree, &scratch, false);
}

#[test]
fn a_crash_at_any_write_to_fat12_loses_nothing_that_was_synced() {
    crash_scenario(Disk::by_mkfs(720, "-F 12 -s 2"), 1);
}

#[test]
fn a_crash_at_any_write_to_fat16_loses_nothing_that_was_synced() {
    crash_scenario(Disk::by_mkfs(5000, "-F 16 -s 1 -R 4"), 2);
}

#[test]
fn a_crash_at_any_write_to_fat32_loses_nothing_that_was_synced() {
    crash_scenario(Disk::by_mkfs(34 << 10, "-F 32 -s 1"), 3);
}

#[test]
fn a_name_that_was_removed_and_made_again_never_stands_twice_on_the_medium() {
    let scratch = Scratch::new();
    let mut crash = Crash::new(Disk::by_mkfs(720, "-F 12 -s 2"));
    for name in ["HI.TXT", "OLD.TXT", "GONE.TXT"] {
        crash.put(name, &pattern(700, 1));
    }
    crash.flush();
    // Made again, and given to another file where that stands.
    crash.remove("HI.TXT", false);
    crash.put("HI.TXT", &pattern(800, 2));
    crash.remove("GONE.TXT", false);
    crash.rename("OLD.TXT", "GONE.TXT");
    crash.flush();
    let events = crash.disk.log.lock().unwrap().clone().unwrap();
    let mut bytes = crash.blank.clone();
    for (event, count) in events.iter().zip(1..) {
        if let Event::Write(at, written) = event {
            bytes[*at as usize..*at as usize + written.len()].copy_from_slice(written);
            let image = scratch.path("crash.img");
            save(&bytes, &image);
            let (_, said) = try_tool("dosfstools", "fsck.fat", &["-n", image.to_str().unwrap()]);
            assert!(!said.contains("Duplicate directory entry"), "after {count} writes: {said}");
        }
    }
    crash.check_all(&scratch, 1);
}

#[test]
fn writes_that_a_crash_reorders_lose_nothing_either() {
    let scratch = Scratch::new();
    let mut crash = Crash::new(Disk::by_mkfs(720, "-F 12 -s 2"));
    crash.mkdir("folder");
    for i in 0..30u64 {
        crash.put(&format!("folder/file with a long name {i}"), &pattern(1500, i));
    }
    crash.flush();
    for i in 0..30 {
        let old = format!("folder/file with a long name {i}");
        match i % 4 {
            0 => crash.rename(&old, &format!("moved {i}")),
            1 => crash.rename(&old, &format!("folder/file with a long name {}", i + 1)),
            2 => crash.put(&format!("folder/new {i}"), &pattern(2500, 100 + i)),
            _ => crash.truncate(&old, 700),
        }
    }
    crash.flush();
    crash.put("last", &pattern(9000, 77));
    crash.flush();
    let events = crash.disk.log.lock().unwrap().clone().unwrap();
    let flushes: Vec<usize> = (0..events.len()).filter(|&i| matches!(events[i], Event::Flush)).collect();
    let mut random = Random(4711);
    for epoch in flushes.windows(2).filter(|epoch| epoch[1] - epoch[0] > 1) {
        for _ in 0..25 {
            // What was not flushed yet reached the medium in part, in any order.
            let mut some: Vec<Event> = events[..=epoch[0]].to_vec();
            some.extend(events[epoch[0] + 1..epoch[1]].iter().filter(|_| random.below(2) == 0).cloned());
            some.resize(epoch[1], Event::Flush);
            crash.check(&some, epoch[1], &scratch);
        }
    }
}

#[test]
fn overwriting_in_place_costs_one_write_of_the_device_each() {
    let disk = Disk::by_mkfs(34 << 10, "-F 32 -s 8");
    let fs = disk.open();
    let node = put(&fs, "data", &vec![1; 8 << 20]);
    writer(&fs).flush().unwrap();
    disk.writes.store(0, Ordering::Relaxed);
    let mut random = Random(99);
    let mut expected = vec![1; 8 << 20];
    for i in 0..1000 {
        let offset = random.below((8 << 20) / 4096) * 4096;
        let bytes = pattern(4096, i);
        writer(&fs).write(node, &bytes, offset as u64, NOW).unwrap();
        expected[offset..offset + 4096].copy_from_slice(&bytes);
    }
    assert_eq!(disk.writes.load(Ordering::Relaxed), 1000);
    assert!(get(&fs, "data") == expected);
}

#[test]
fn thousands_of_files_in_one_directory_are_made_at_once() {
    let disk = Disk::by_mkfs(34 << 10, "-F 32 -s 1");
    let fs = disk.open();
    let dir = writer(&fs).create(fs.root(), b"many", directory()).unwrap();
    let start = std::time::Instant::now();
    for i in 0..5000 {
        writer(&fs).create(dir, format!("a file with a name like all others {i}").as_bytes(), file()).unwrap();
    }
    writer(&fs).flush().unwrap();
    let took = start.elapsed();
    assert!(took.as_secs() < 3, "5,000 files took {took:?}");
    println!("5,000 files: {took:?}, {} writes", disk.writes.load(Ordering::Relaxed));
    for i in (0..5000).step_by(2) {
        writer(&fs).remove(dir, format!("a file with a name like all others {i}").as_bytes(), false).unwrap();
    }
    let expected = (0..5000)
        .skip(1)
        .step_by(2)
        .map(|i| (format!("many/a file with a name like all others {i}"), Some(Vec::new())))
        .chain(std::iter::once(("many".to_owned(), None)));
    check_volume(&disk, &fs, &expected.collect(), &Scratch::new(), true);
}

#[test]
fn a_long_file_is_written_in_one_run_and_few_writes() {
    let mut blank = Disk::by_mkfs(34 << 10, "-F 32 -s 1").bytes();
    blank.truncate(34 << 20);
    let disk = Disk::new(blank);
    let fs = disk.open();
    let node = put(&fs, "long", b"");
    let piece = pattern(128 << 10, 1);
    let start = std::time::Instant::now();
    for i in 0..200 {
        writer(&fs).write(node, &piece, i * (128 << 10), NOW).unwrap();
    }
    writer(&fs).flush().unwrap();
    let writes = disk.writes.load(Ordering::Relaxed);
    println!("25 MiB: {:?}, {writes} writes", start.elapsed());
    assert!(writes < 250, "{writes}");
    let expected: Vec<u8> = std::iter::repeat_n(piece, 200).flatten().collect();
    assert!(get(&fs, "long") == expected);
    let first = fs.extent(node, 0).unwrap();
    assert!(first.stored && first.len == 25 << 20);
}

#[test]
fn at_the_end_what_was_removed_and_never_closed_is_given_back() {
    let disk = Disk::by_mkfs(1440, "-F 12");
    let fs = disk.open();
    put(&fs, "removed", &[7; 5000]);
    let node = fs.lookup(fs.root(), b"removed").unwrap().unwrap();
    writer(&fs).opened(node);
    writer(&fs).remove(fs.root(), b"removed", false).unwrap();
    writer(&fs).quiesce().unwrap();
    let mut buf = [0; 5000];
    assert_eq!(fs.read(node, &mut buf, 0).unwrap(), 5000);
    assert_eq!(buf, [7; 5000], "it is open");
    writer(&fs).finish().unwrap();
    let scratch = Scratch::new();
    let image = scratch.path("end.img");
    save(&disk.bytes(), &image);
    tool("dosfstools", "fsck.fat", &["-n", image.to_str().unwrap()]);
}

#[test]
fn names_that_fat_cannot_hold_are_refused_and_nothing_changes() {
    let disk = Disk::by_mkfs(1440, "-F 12");
    let fs = disk.open();
    put(&fs, "there", b"1");
    writer(&fs).quiesce().unwrap();
    let before = disk.bytes();
    for bad in ["a:b", "a?", "a*", "\"", "<", ">", "|", "\\", "a/b", "dot.", "space ", "a\u{1}", "", ".", ".."] {
        let create = writer(&fs).create(fs.root(), bad.as_bytes(), file());
        assert!(matches!(create, Err(Error::Invalid)), "{bad:?}: {create:?}");
        let rename = writer(&fs).rename(fs.root(), b"there", fs.root(), bad.as_bytes(), true);
        assert!(matches!(rename, Err(Error::Invalid)), "{bad:?}: {rename:?}");
    }
    let long = writer(&fs).create(fs.root(), "x".repeat(256).as_bytes(), file());
    assert!(matches!(long, Err(Error::NameTooLong)));
    assert!(matches!(writer(&fs).create(fs.root(), b"THERE", file()), Err(Error::Exists)));
    assert!(matches!(writer(&fs).remove(fs.root(), b"nothing", false), Err(Error::NotFound)));
    writer(&fs).quiesce().unwrap();
    assert!(disk.bytes() == before);
    writer(&fs).create(fs.root(), "x".repeat(255).as_bytes(), file()).unwrap();
}

#[test]
fn a_file_does_not_grow_past_4_gib_or_past_the_volume() {
    let disk = Disk::by_mkfs(1440, "-F 12");
    let fs = disk.open();
    let node = put(&fs, "file", b"contents");
    let grow = |size| writer(&fs).set_attributes(node, &Changes { size: Some(size), ..Changes::default() });
    assert!(matches!(grow(1 << 32), Err(Error::TooLarge)));
    assert!(matches!(writer(&fs).write(node, b"xx", u64::from(u32::MAX) - 1, NOW), Err(Error::TooLarge)));
    assert!(matches!(writer(&fs).write(node, b"x", u64::MAX, NOW), Err(Error::TooLarge)));
    assert!(matches!(grow(2 << 20), Err(Error::NoSpace)));
    assert!(matches!(writer(&fs).write(node, &vec![1; 2 << 20], 4, NOW), Err(Error::NoSpace)));
    check_volume(&disk, &fs, &Tree::from([("file".to_owned(), Some(b"contents".to_vec()))]), &Scratch::new(), true);
}

#[test]
fn a_file_that_grows_by_much_is_all_zeros_or_as_it_was() {
    let disk = Disk::by_mkfs(100 << 10, "-F 16 -s 4");
    let fs = disk.open();
    let node = put(&fs, "file", b"contents");
    let grow = |size| writer(&fs).set_attributes(node, &Changes { size: Some(size), ..Changes::default() });
    assert!(matches!(grow(120 << 20), Err(Error::NoSpace)));
    assert!(matches!(writer(&fs).write(node, b"end", 105 << 20, NOW), Err(Error::NoSpace)));
    assert_eq!(get(&fs, "file"), b"contents");
    writer(&fs).write(node, b"end", 90 << 20, NOW).unwrap();
    let mut expected = b"contents".to_vec();
    expected.resize(90 << 20, 0);
    expected.extend(b"end");
    check_volume(&disk, &fs, &Tree::from([("file".to_owned(), Some(expected))]), &Scratch::new(), true);
}

#[test]
fn a_fixed_root_fills_up_and_a_folder_grows() {
    let disk = Disk::by_mkfs(1440, "-F 12 -r 32");
    let fs = disk.open();
    let mut expected = Tree::new();
    writer(&fs).create(fs.root(), b"folder", directory()).unwrap();
    expected.insert("folder".to_owned(), None);
    for i in 0.. {
        match writer(&fs).create(fs.root(), format!("F{i}").as_bytes(), file()) {
            Ok(_) => drop(expected.insert(format!("F{i}"), Some(Vec::new()))),
            Err(Error::NoSpace) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(expected.len(), 32);
    assert!(matches!(writer(&fs).create(fs.root(), b"folder 2", directory()), Err(Error::NoSpace)));
    // A rename needs no room where the name takes no more slots.
    writer(&fs).rename(fs.root(), b"F3", fs.root(), b"G3", true).unwrap();
    expected.remove("F3");
    expected.insert("G3".to_owned(), Some(Vec::new()));
    assert!(matches!(writer(&fs).rename(fs.root(), b"F4", fs.root(), b"a longer name", true), Err(Error::NoSpace)));
    // A removed name leaves room at once.
    writer(&fs).remove(fs.root(), b"F5", false).unwrap();
    expected.remove("F5");
    put(&fs, "NEW", b"n");
    expected.insert("NEW".to_owned(), Some(b"n".to_vec()));
    for i in 0..100 {
        put(&fs, &format!("folder/file {i}"), b"");
        expected.insert(format!("folder/file {i}"), Some(Vec::new()));
    }
    check_volume(&disk, &fs, &expected, &Scratch::new(), true);
}

#[test]
fn a_change_of_case_is_a_rename_and_keeps_the_number() {
    let disk = Disk::by_mkfs(1440, "-F 12");
    let fs = disk.open();
    let node = put(&fs, "readme.txt", b"1");
    for (from, to) in [
        ("readme.txt", "README.TXT"),
        ("README.TXT", "ReadMe.txt"),
        ("ReadMe.txt", "README.txt"),
        ("readme.TXT", "readme.txt"),
    ] {
        writer(&fs).rename(fs.root(), from.as_bytes(), fs.root(), to.as_bytes(), false).unwrap();
        assert_eq!(tree(fs.as_ref()).keys().collect::<Vec<_>>(), [to]);
        assert_eq!(node_at(&fs, to), node);
        let stamp = fs.attributes(node).unwrap().modified;
        assert_eq!(stamp, Some(NOW), "a rename is no write");
    }
    check_volume(&disk, &fs, &Tree::from([("readme.txt".to_owned(), Some(b"1".to_vec()))]), &Scratch::new(), true);
}

#[test]
fn a_replaced_file_that_is_open_keeps_its_contents() {
    let disk = Disk::by_mkfs(1440, "-F 12");
    let fs = disk.open();
    let (old, new) = (put(&fs, "name", &pattern(3000, 1)), put(&fs, "new", &pattern(2000, 2)));
    writer(&fs).opened(old);
    writer(&fs).opened(old);
    writer(&fs).rename(fs.root(), b"new", fs.root(), b"name", true).unwrap();
    assert_eq!(node_at(&fs, "name"), new);
    writer(&fs).closed(old);
    writer(&fs).flush().unwrap();
    assert!(contents(fs.as_ref(), old).unwrap() == pattern(3000, 1));
    assert!(get(&fs, "name") == pattern(2000, 2));
    writer(&fs).closed(old);
    assert!(fs.attributes(old).is_err());
    let third = put(&fs, "third", b"3");
    assert!(third != old && third != new);
    let expected = [("name", pattern(2000, 2)), ("third", b"3".to_vec())];
    check_volume(
        &disk,
        &fs,
        &expected.map(|(name, bytes)| (name.to_owned(), Some(bytes))).into(),
        &Scratch::new(),
        true,
    );
}

#[test]
fn both_dirty_marks_are_set_by_the_first_write_and_taken_away_at_the_end() {
    let scratch = Scratch::new();
    for (kib, args, boot, table) in [
        (1440, "-F 12", 0x25, None),
        (8 << 10, "-F 16 -s 1", 0x25, Some(512 * 4 + 3)),
        (34 << 10, "-F 32 -s 1", 0x41, Some(512 * 32 + 7)),
    ] {
        let disk = Disk::by_mkfs(kib, args);
        let fs = disk.open();
        let blank = disk.bytes();
        let marks = |bytes: &[u8]| (bytes[boot], table.map(|at: usize| bytes[at]));
        let clean = marks(&blank);
        let node = put(&fs, "file", b"1");
        let bit = if args.contains("32") { 0x08 } else { 0x80 };
        assert_eq!(marks(&disk.bytes()), (clean.0 | 1, clean.1.map(|byte| byte & !bit)), "{args}");
        writer(&fs).flush().unwrap();
        assert_eq!(disk.bytes()[boot], clean.0 | 1);
        save(&disk.bytes(), &scratch.path("image"));
        let (_, said) = try_tool("dosfstools", "fsck.fat", &["-n", scratch.path("image").to_str().unwrap()]);
        assert!(said.contains("Dirty bit is set"), "{said}");
        writer(&fs).quiesce().unwrap();
        assert_eq!(marks(&disk.bytes()), clean);
        writer(&fs).write(node, b"2", 0, NOW).unwrap();
        assert_eq!(disk.bytes()[boot], clean.0 | 1, "and again by the next write");
        writer(&fs).quiesce().unwrap();
        // A mark that was there before is not ours to take away.
        let mut dirty = blank.clone();
        dirty[boot] |= 1;
        let disk = Disk::new(dirty);
        let fs = disk.open();
        put(&fs, "file", b"1");
        writer(&fs).quiesce().unwrap();
        assert_eq!(disk.bytes()[boot], clean.0 | 1);
    }
}

#[test]
fn with_mirroring_off_only_the_active_table_is_written() {
    let mut bytes = Disk::by_mkfs(34 << 10, "-F 32 -s 1").bytes();
    bytes[0x28] = 0x81;
    let len = u32::from_le_bytes(bytes[0x24..0x28].try_into().unwrap()) as usize * 512;
    let first = 32 * 512..32 * 512 + len;
    let before = bytes[first.clone()].to_vec();
    let disk = Disk::new(bytes);
    let fs = disk.open();
    put(&fs, "file", &pattern(5000, 1));
    writer(&fs).quiesce().unwrap();
    let after = disk.bytes();
    assert!(after[first.clone()] == before, "table 0 is not in use");
    assert!(after[first.end..first.end + len] != before, "table 1 is");
    assert!(get(&disk.open(), "file") == pattern(5000, 1));
}

#[test]
fn the_reserved_bits_of_fat32_entries_stay() {
    let mut bytes = Disk::by_mkfs(34 << 10, "-F 32 -s 1").bytes();
    let table = 32 * 512;
    for cluster in 3..1000 {
        bytes[table + cluster * 4 + 3] = 0xa0;
    }
    let disk = Disk::new(bytes);
    let fs = disk.open();
    assert_eq!(fs.summary().free_blocks, disk.open().summary().total_blocks - 1);
    put(&fs, "file", &pattern(5000, 1));
    writer(&fs).quiesce().unwrap();
    let after = disk.bytes();
    assert!((3..1000).all(|cluster| after[table + cluster * 4 + 3] & 0xf0 == 0xa0));
    assert!(get(&disk.open(), "file") == pattern(5000, 1));
}

#[test]
fn times_and_marks_are_what_mtools_reads() {
    let scratch = Scratch::new();
    let disk = Disk::by_mkfs(1440, "-F 12");
    let fs = disk.open();
    let node = put(&fs, "FILE.TXT", b"1");
    let at = |seconds, nanoseconds| Some(Timestamp { seconds, nanoseconds });
    let changes = Changes {
        read_only: Some(true),
        accessed: at(1_709_164_800, 0),
        modified: at(1_709_214_358, 0),
        created: at(1_000_000_001, 230_000_000),
        ..Changes::default()
    };
    writer(&fs).set_attributes(node, &changes).unwrap();
    let attributes = fs.attributes(node).unwrap();
    assert!(attributes.read_only);
    assert_eq!(
        (attributes.accessed, attributes.modified, attributes.created),
        (changes.accessed, changes.modified, changes.created)
    );
    writer(&fs).set_xattr(node, b"user.fat.attributes", b"0x27").unwrap();
    assert_eq!(fs.xattr(node, b"user.fat.attributes").unwrap(), b"0x27");
    for bad in [&b"0x37"[..], b"0x2f", b"x", b"256", b""] {
        assert!(matches!(writer(&fs).set_xattr(node, b"user.fat.attributes", bad), Err(Error::Invalid)));
    }
    writer(&fs).quiesce().unwrap();
    let image = scratch.path("image");
    save(&disk.bytes(), &image);
    let listing = tool("mtools", "mattrib", &["-i", image.to_str().unwrap(), "::FILE.TXT"]);
    assert!(
        listing.split_whitespace().next().is_some_and(|flags| flags.contains('A')) && listing.contains("SHR"),
        "{listing}"
    );
    let listing = tool("mtools", "mdir", &["-a", "-i", image.to_str().unwrap(), "::"]);
    assert!(listing.contains("2024-02-29") && listing.contains("13:45"), "{listing}");
}

#[test]
fn writing_keeps_names_beyond_the_16_bit_plane() {
    let disk = Disk::by_mkfs(1440, "-F 12");
    let fs = disk.open();
    let long = "😀".repeat(127);
    let names: [&[u8]; 4] = ["😀 emoji".as_bytes(), long.as_bytes(), b"half \xed\xa0\xbd", b"\xed\xb8\x80"];
    for name in names {
        writer(&fs).create(fs.root(), name, file()).unwrap();
    }
    writer(&fs).quiesce().unwrap();
    let fresh = disk.open();
    for name in names {
        assert!(fresh.lookup(fresh.root(), name).unwrap().is_some());
    }
    assert!(matches!(writer(&fs).create(fs.root(), b"\xff", file()), Err(Error::Invalid)));
}

#[test]
fn a_device_without_a_writer_makes_a_volume_without_one() {
    let scratch = Scratch::new();
    let image = scratch.path("image");
    mkfs(&image, 1440, "-F 12");
    let device: Device = Arc::new(imgfs::device::file::HostFile::open(&image).unwrap());
    assert!((fat::FORMAT.open)(device, &Options::default()).unwrap().writer().is_none());
}

#[test]
fn many_threads_write_and_read_side_by_side() {
    let disk = Disk::by_mkfs(34 << 10, "-F 32 -s 1");
    let fs = disk.open();
    let shared = put(&fs, "shared", &vec![0; 1 << 20]);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let fs = &fs;
            scope.spawn(move || {
                let dir = writer(fs).create(fs.root(), format!("thread {thread}").as_bytes(), directory()).unwrap();
                let mut buf = vec![0; 4096];
                for i in 0..150u64 {
                    let name = format!("file number {}", i % 40);
                    let bytes = pattern(700 + i as usize * 9, thread << 32 | i);
                    if writer(fs).create(dir, name.as_bytes(), file()).is_err() {
                        writer(fs).remove(dir, name.as_bytes(), false).unwrap();
                        continue;
                    }
                    let node = fs.lookup(dir, name.as_bytes()).unwrap().unwrap();
                    writer(fs).write(node, &bytes, 0, NOW).unwrap();
                    assert!(contents(fs.as_ref(), node).unwrap() == bytes);
                    let own = (thread * 256 + i % 64) * 1024;
                    writer(fs).write(shared, &[thread as u8 + 1; 1024], own, NOW).unwrap();
                    assert_eq!(fs.read(shared, &mut buf[..1024], own).unwrap(), 1024);
                    assert!(buf[..1024].iter().all(|&byte| byte == thread as u8 + 1));
                    if i % 50 == 0 {
                        writer(fs).flush().unwrap();
                    }
                    fs.read_dir(fs.root(), 0, &mut |entry| fs.attributes(entry.node).is_ok()).unwrap();
                }
            });
        }
    });
    let expected = tree(fs.as_ref());
    check_volume(&disk, &fs, &expected, &Scratch::new(), true);
}

/// A device with one sector that cannot be read.
struct Scratched {
    disk: Arc<Disk>,
    bad: AtomicU64,
}

impl BlockDevice for Scratched {
    fn size(&self) -> u64 {
        self.disk.size()
    }
    fn sector_size(&self) -> u32 {
        512
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let bad = self.bad.load(Ordering::Relaxed);
        if offset < bad + 512 && bad < offset + buf.len() as u64 {
            return Err(Error::io("the medium", std::io::Error::other("a scratch")));
        }
        self.disk.read_exact_at(buf, offset)
    }
    fn writer(&self) -> Option<&dyn BlockWrite> {
        Some(self)
    }
}

impl BlockWrite for Scratched {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.disk.write_all_at(buf, offset)
    }
    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }
}

#[test]
fn a_time_that_cannot_be_brought_to_its_entry_does_not_take_others_with_it() {
    let disk = Disk::by_mkfs(1440, "-F 12");
    let scratched = Arc::new(Scratched { disk: disk.clone(), bad: AtomicU64::new(u64::MAX - 512) });
    let device: Device = scratched.clone();
    let fs = (fat::FORMAT.open)(device, &Options::default()).unwrap();
    let mut nodes = Vec::new();
    for number in 0..16 {
        writer(&fs).create(fs.root(), format!("D{number}").as_bytes(), directory()).unwrap();
        nodes.push(put(&fs, &format!("D{number}/FILE{number}"), &[1; 600]));
    }
    writer(&fs).flush().unwrap();
    let later = Timestamp { seconds: NOW.seconds + 86_400, nanoseconds: 0 };
    for node in &nodes {
        writer(&fs).write(*node, &[2; 600], 0, later).unwrap();
    }
    let entry = disk.bytes().windows(11).position(|name| name == b"FILE5      ").unwrap() as u64;
    scratched.bad.store(entry / 512 * 512, Ordering::Relaxed);
    assert!(writer(&fs).flush().is_err(), "it has to be said");
    scratched.bad.store(u64::MAX - 512, Ordering::Relaxed);
    writer(&fs).quiesce().unwrap();
    let again = disk.open();
    for number in 0..16 {
        let node = node_at(&again, &format!("D{number}/FILE{number}"));
        let expected = if number == 5 { NOW } else { later };
        assert_eq!(again.attributes(node).unwrap().modified, Some(expected), "{number}");
    }
}

/// A device that runs full, as an overlay does: each sector takes room with its first write.
struct Filling {
    disk: Arc<Disk>,
    taken: Mutex<HashSet<u64>>,
    room: AtomicU64,
}

impl Filling {
    fn take(&self, offset: u64, len: u64) -> Result<()> {
        let mut taken = self.taken.lock().unwrap();
        for sector in offset / 512..(offset + len).div_ceil(512) {
            if !taken.contains(&sector) && taken.len() as u64 >= self.room.load(Ordering::Relaxed) {
                return Err(Error::NoSpace);
            }
            taken.insert(sector);
        }
        Ok(())
    }
}

impl BlockDevice for Filling {
    fn size(&self) -> u64 {
        self.disk.size()
    }
    fn sector_size(&self) -> u32 {
        512
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.disk.read_exact_at(buf, offset)
    }
    fn writer(&self) -> Option<&dyn BlockWrite> {
        Some(self)
    }
}

impl BlockWrite for Filling {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.take(offset, buf.len() as u64)?;
        self.disk.write_all_at(buf, offset)
    }
    fn reserve(&self, offset: u64, len: u64) -> Result<()> {
        self.take(offset, len)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_device_that_runs_full_refuses_changes_and_loses_none_that_it_took() {
    let scratch = Scratch::new();
    for (room, args) in (0..120).flat_map(|room| [(room, "-F 12"), (room + 20, "-F 16 -s 1")]) {
        let disk = Disk::by_mkfs(if args == "-F 12" { 1440 } else { 3000 }, args);
        let device = Arc::new(Filling { disk: disk.clone(), taken: Mutex::default(), room: AtomicU64::new(room) });
        let fs = (fat::FORMAT.open)(device.clone(), &Options::default()).unwrap();
        let mut expected = Tree::new();
        let mut random = Random(room * 77 + 1);
        let mut refused = 0;
        for i in 0..60u64 {
            let names: Vec<String> = expected.keys().cloned().collect();
            let name = format!("a file with a long name {i}");
            match (random.below(10), random.pick(&names).cloned()) {
                (0..5, _) | (_, None) => {
                    let made = writer(&fs).create(fs.root(), name.as_bytes(), file());
                    let bytes = pattern(1 + random.below(3000), i);
                    let Ok(node) = made else {
                        refused += 1;
                        continue;
                    };
                    let written = writer(&fs).write(node, &bytes, 0, NOW);
                    refused += u64::from(written.is_err());
                    expected.insert(name, Some(if written.is_ok() { bytes } else { Vec::new() }));
                }
                (5, Some(old)) => match writer(&fs).rename(fs.root(), old.as_bytes(), fs.root(), name.as_bytes(), true)
                {
                    Ok(()) => drop(expected.remove(&old).map(|bytes| expected.insert(name, bytes))),
                    Err(_) => refused += 1,
                },
                (6, Some(old)) => match writer(&fs).remove(fs.root(), old.as_bytes(), false) {
                    Ok(()) => drop(expected.remove(&old)),
                    Err(_) => refused += 1,
                },
                (7, Some(old)) => {
                    let node = fs.lookup(fs.root(), old.as_bytes()).unwrap().unwrap();
                    let size = random.below(4000);
                    match writer(&fs).set_attributes(node, &Changes { size: Some(size as u64), ..Changes::default() }) {
                        Ok(()) => expected.get_mut(&old).unwrap().as_mut().unwrap().resize(size, 0),
                        Err(_) => refused += 1,
                    }
                }
                // Whatever was not refused can be written back, at any time.
                _ => writer(&fs).flush().unwrap(),
            }
        }
        assert!(refused > 0 || room > 60, "never full with {room} sectors");
        writer(&fs).quiesce().unwrap();
        check_volume(&disk, &fs, &expected, &scratch, room % 10 == 0);
    }
}

#[test]
fn changes_of_a_damaged_volume_neither_panic_nor_hang() {
    let disk = Disk::by_mkfs(200, "-F 12 -s 1");
    let fs = disk.open();
    let folder = writer(&fs).create(fs.root(), b"folder", directory()).unwrap();
    for i in 0..12 {
        put(&fs, &format!("file number {i}"), &pattern(1500, i));
        put(&fs, &format!("folder/F{i}"), &pattern(900, i));
    }
    writer(&fs).quiesce().unwrap();
    let (good, _) = (disk.bytes(), folder);
    for seed in 0..5000 {
        let mut bytes = good.clone();
        let mut random = Random((seed + 1u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..=random.below(5) {
            // The table and both directories: the first 40 sectors.
            let at = 512 + random.below(40 * 512);
            bytes[at] = random.below(256) as u8;
        }
        let fs = Disk::new(bytes).open();
        let w = writer(&fs);
        let mut all = vec![fs.root()];
        for folder in [fs.root(), fs.lookup(fs.root(), b"folder").ok().flatten().unwrap_or(fs.root())] {
            w.create(folder, format!("a new file {seed}").as_bytes(), file())
                .map(|node| w.write(node, &[1; 3000], 100, NOW))
                .ok();
            w.create(folder, b"new folder", directory()).ok();
            let (rows, _) = rows(fs.as_ref(), folder);
            for (i, (name, node, kind)) in rows.into_iter().enumerate().take(40) {
                let size = Some(random.below(5000) as u64);
                match i % 5 {
                    0 => drop(w.write(node, &[2; 2000], random.below(3000) as u64, NOW)),
                    1 => drop(w.set_attributes(node, &Changes { size, ..Changes::default() })),
                    2 => drop(w.rename(
                        folder,
                        &name,
                        all[random.below(all.len())],
                        format!("renamed {i}").as_bytes(),
                        true,
                    )),
                    3 => drop(w.remove(folder, &name, kind == Kind::Directory)),
                    _ => drop(w.flush()),
                }
                if kind == Kind::Directory {
                    all.push(node);
                }
            }
        }
        w.quiesce().ok();
        fs.summary();
    }
}

#[test]
fn a_clean_mark_waits_for_files_without_a_name() {
    let disk = Disk::by_mkfs(1440, "-F 12");
    let fs = disk.open();
    let node = put(&fs, "file", &pattern(3000, 1));
    writer(&fs).opened(node);
    writer(&fs).remove(fs.root(), b"file", false).unwrap();
    writer(&fs).quiesce().unwrap();
    assert_eq!(disk.bytes()[0x25] & 1, 1);
    assert!(contents(fs.as_ref(), node).unwrap() == pattern(3000, 1));
    writer(&fs).closed(node);
    check_volume(&disk, &fs, &Tree::new(), &Scratch::new(), false);
}

#[test]
fn random_changes_and_a_crash_lose_nothing_that_was_synced() {
    const FOLDERS: [&str; 3] = ["", "folder with a long name/", "d/"];
    let scratch = Scratch::new();
    let seeds = std::env::var("IMGFS_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(3u64);
    for seed in 1..=seeds {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let kind = ["-F 12 -s 1", "-F 16 -s 1", "-F 12 -s 4"][seed as usize % 3];
        let mut crash = Crash::new(Disk::by_mkfs(if seed % 3 == 1 { 2200 } else { 1000 }, kind));
        crash.mkdir("folder with a long name");
        crash.mkdir("d");
        for step in 0..160 {
            let files: Vec<String> = tree(crash.fs.as_ref())
                .into_iter()
                .filter(|(_, bytes)| bytes.is_some())
                .map(|(name, _)| name)
                .collect();
            let (folder, number) = (FOLDERS[random.below(3)], random.below(30));
            let new = match number % 3 {
                0 => format!("{folder}F{number}"),
                1 => format!("{folder}file number {number}"),
                _ => format!("{folder}a file that has a name of three slots {number}"),
            };
            let bytes = pattern(1 + random.below(6000), step);
            match (random.below(10), random.pick(&files).cloned()) {
                (0..4, _) if !files.contains(&new) => crash.put(&new, &bytes),
                (4..6, Some(path)) if path != new => crash.rename(&path, &new),
                (6, Some(path)) => crash.remove(&path, false),
                (7, Some(path)) => crash.truncate(&path, random.below(4000) as u64),
                (8, Some(path)) => crash.write(&path, &bytes, random.below(3000) as u64),
                _ => {}
            }
            if random.below(9) == 0 {
                crash.flush();
            }
        }
        crash.flush();
        let events = crash.disk.log.lock().unwrap().clone().unwrap();
        for _ in 0..40 {
            crash.check(&events, random.below(events.len() + 1), &scratch);
        }
        // And once more with what a crash lets through of the writes since the last barrier.
        let flushes: Vec<usize> = (0..events.len()).filter(|&i| matches!(events[i], Event::Flush)).collect();
        for epoch in flushes.windows(2).filter(|epoch| epoch[1] - epoch[0] > 2) {
            let mut some: Vec<Event> = events[..=epoch[0]].to_vec();
            some.extend(events[epoch[0] + 1..epoch[1]].iter().filter(|_| random.below(2) == 0).cloned());
            some.resize(epoch[1], Event::Flush);
            crash.check(&some, epoch[1], &scratch);
        }
        let last = tree(crash.fs.as_ref());
        check_volume(&crash.disk, &crash.fs, &last, &scratch, true);
    }
}
