//! FAT volumes by mkfs.fat and mtools, read here and by those who made them; and each oddity that
//! was met in the wild, as a patch of such a volume.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hadris_fat::sync::FatFs;
use hadris_fs::sync::Volume;
use hadris_fs::{FileType, MountOptions, OpenOptions};
use hadris_storage::{BlockSize, MemDevice};
use imgfs::device::file::HostFile;
use imgfs::device::memory::Memory;
use imgfs::device::{BlockDevice, Device};
use imgfs::error::{Error, Result};
use imgfs::filesystem::{FileSystem, Kind, NodeId, Options, fat};
use sha2::{Digest, Sha256};

/// A folder that goes with the test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("imgfs-fat-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Runs a tool and gives its output and exit code; a missing tool fails the test and names its package.
pub(crate) fn try_tool(package: &str, program: &str, args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(program)
        .args(args)
        .env("MTOOLS_SKIP_CHECK", "1")
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC")
        .output()
        .unwrap_or_else(|error| panic!("{program} does not run ({error}): install the Debian package {package}"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

pub(crate) fn tool(package: &str, program: &str, args: &[&str]) -> String {
    let (code, text) = try_tool(package, program, args);
    assert_eq!(code, Some(0), "{program} {args:?}: {text}");
    text
}

/// A file of zeros with a FAT volume that mkfs.fat made.
pub(crate) fn mkfs(path: &Path, kib: u64, args: &str) {
    std::fs::File::create(path).unwrap().set_len(kib * 1024).unwrap();
    let mut all: Vec<&str> = args.split_whitespace().collect();
    all.push(path.to_str().unwrap());
    tool("dosfstools", "mkfs.fat", &all);
}

pub(crate) fn mcopy(image: &Path, from: &Path, to: &str) {
    let args = ["-Q", "-n", "-s", "-m", "-i", image.to_str().unwrap(), from.to_str().unwrap(), to];
    tool("mtools", "mcopy", &args);
}

pub(crate) type Tree = BTreeMap<String, Option<Vec<u8>>>;

/// Fails with the names that differ, and with the first file that does.
pub(crate) fn same_tree(found: &Tree, expected: &Tree, who: &str) {
    let names = |tree: &Tree| tree.keys().cloned().collect::<BTreeSet<_>>();
    let (found_names, expected_names) = (names(found), names(expected));
    let differ: Vec<_> = found_names.symmetric_difference(&expected_names).collect();
    assert!(differ.is_empty(), "{who}: {differ:?}");
    for (name, bytes) in expected {
        assert!(found[name] == *bytes, "{who}: {name} has other contents");
    }
}

/// The files of a FAT volume as the crate hadris-fat reads them.
pub(crate) fn by_hadris(volume: Vec<u8>) -> Tree {
    let device = MemDevice::new(volume, BlockSize::new(512).unwrap());
    let volume = FatFs::mount(device, MountOptions::new().read_only());
    let volume = Volume::new(volume.map_err(|error| error.to_string()).unwrap());
    let (mut found, mut folders) = (Tree::new(), vec![String::new()]);
    while let Some(folder) = folders.pop() {
        for entry in volume.read_dir(format!("/{folder}")).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{folder}{}", std::str::from_utf8(entry.name().as_bytes()).unwrap());
            let contents = if entry.file_type() == FileType::Dir {
                folders.push(format!("{path}/"));
                None
            } else {
                let mut bytes = Vec::new();
                let mut file = volume.open(format!("/{path}"), OpenOptions::new().read()).unwrap();
                file.read_to_end(&mut bytes).unwrap();
                Some(bytes)
            };
            found.insert(path, contents);
        }
    }
    found
}

/// Numbers that are the same each time: xorshift.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n.max(1)
    }
    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }
}

/// The files of an image as mtools reads them; `IMAGE@@OFFSET` is one that starts later.
pub(crate) fn by_mtools(image: impl AsRef<Path>, scratch: &Scratch) -> Tree {
    let (image, out) = (image.as_ref().to_str().unwrap(), scratch.path("mtools"));
    drop(std::fs::remove_dir_all(&out));
    std::fs::create_dir(&out).unwrap();
    if !tool("mtools", "mdir", &["-b", "-i", image, "::"]).is_empty() {
        tool("mtools", "mcopy", &["-s", "-n", "-Q", "-i", image, "::*", out.to_str().unwrap()]);
    }
    host_tree(&out)
}

/// What an overlay makes of its base, by qemu-img, which has to find it sound.
pub(crate) fn converted(overlay: &Path, scratch: &Scratch) -> PathBuf {
    let (raw, overlay) = (scratch.path("converted.img"), overlay.to_str().unwrap());
    tool("qemu-utils", "qemu-img", &["check", overlay]);
    tool("qemu-utils", "qemu-img", &["convert", "-O", "raw", overlay, raw.to_str().unwrap()]);
    raw
}

/// Bytes that tell where they come from.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| step()).take(len).collect()
}

/// A tree of a host folder.
pub(crate) fn host_tree(folder: &Path) -> Tree {
    fn walk(folder: &Path, prefix: &str, tree: &mut Tree) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), &format!("{name}/"), tree);
                tree.insert(name, None);
            } else {
                tree.insert(name, Some(std::fs::read(entry.path()).unwrap()));
            }
        }
    }
    let mut tree = Tree::new();
    walk(folder, "", &mut tree);
    tree
}

pub(crate) fn contents(fs: &dyn FileSystem, node: NodeId) -> Result<Vec<u8>> {
    let size = fs.attributes(node)?.size;
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    assert_eq!(fs.read(node, &mut bytes, 0)?, bytes.len());
    assert_eq!(fs.read(node, &mut [0; 10], size)?, 0);
    Ok(bytes)
}

/// A row of a directory: name, node, kind.
pub(crate) type Row = (Vec<u8>, NodeId, Kind);

pub(crate) fn rows(fs: &dyn FileSystem, dir: NodeId) -> (Vec<Row>, Result<()>) {
    let mut rows = Vec::new();
    let result = fs.read_dir(dir, 0, &mut |entry| {
        rows.push((entry.name.into_owned(), entry.node, entry.kind));
        true
    });
    (rows, result)
}

/// The whole tree; every name is looked up, too.
pub(crate) fn tree(fs: &dyn FileSystem) -> Tree {
    fn walk(fs: &dyn FileSystem, dir: NodeId, prefix: &str, tree: &mut Tree) {
        let (rows, result) = rows(fs, dir);
        result.unwrap();
        for (name, node, kind) in rows {
            assert_eq!(fs.lookup(dir, &name).unwrap(), Some(node));
            let path = format!("{prefix}{}", String::from_utf8(name).unwrap());
            let contents = (kind == Kind::File).then(|| contents(fs, node).unwrap());
            assert_eq!(fs.attributes(node).unwrap().kind, kind);
            if contents.is_none() {
                walk(fs, node, &format!("{path}/"), tree);
            }
            assert!(tree.insert(path, contents).is_none(), "a name appears twice");
        }
    }
    let mut all = Tree::new();
    walk(fs, fs.root(), "", &mut all);
    all
}

pub(crate) fn node(fs: &dyn FileSystem, path: &str) -> NodeId {
    let step =
        |dir, name: &str| fs.lookup(dir, name.as_bytes()).unwrap().unwrap_or_else(|| panic!("{name} is not there"));
    path.split('/').fold(fs.root(), step)
}

/// An image file that is compared with itself in the end.
struct Opened {
    fs: Arc<dyn FileSystem>,
    path: PathBuf,
    hash: Vec<u8>,
}

/// Of its first 64 MiB: the large images are sparse, and nothing was copied further up.
fn hash(path: &Path) -> Vec<u8> {
    let mut start = Vec::new();
    std::fs::File::open(path).unwrap().take(64 << 20).read_to_end(&mut start).unwrap();
    Sha256::digest(start).to_vec()
}

fn open_image(path: &Path) -> Opened {
    let hash = hash(path);
    let device: Device = Arc::new(HostFile::open(path).unwrap());
    assert!((fat::FORMAT.probe)(device.as_ref()).unwrap(), "{} is not recognised", path.display());
    Opened { fs: (fat::FORMAT.open)(device, &Options::default()).unwrap(), path: path.to_owned(), hash }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(hash(&self.path), self.hash, "reading changed the image");
        }
    }
}

fn open_with(bytes: &[u8], options: &Options) -> Arc<dyn FileSystem> {
    let device: Device = Arc::new(Memory::new(bytes.to_vec(), 512));
    assert!((fat::FORMAT.probe)(device.as_ref()).unwrap(), "not recognised");
    (fat::FORMAT.open)(device, options).unwrap()
}

fn open(bytes: &[u8]) -> Arc<dyn FileSystem> {
    open_with(bytes, &Options::default())
}

fn probe(bytes: &[u8]) -> bool {
    (fat::FORMAT.probe)(&Memory::new(bytes.to_vec(), 512)).unwrap()
}

/// Files of all sizes around a sector and a cluster, names of all kinds.
pub(crate) fn write_content(folder: &Path, cluster: usize, many: usize) {
    std::fs::create_dir_all(folder.join("a long directory name/nested/deeper")).unwrap();
    std::fs::create_dir_all(folder.join("EMPTY")).unwrap();
    std::fs::create_dir_all(folder.join("many")).unwrap();
    let put = |name: &str, len: usize| std::fs::write(folder.join(name), pattern(len, len as u64 + 1)).unwrap();
    for len in [0, 1, 511, 512, 513, cluster - 1, cluster, cluster + 1, 3 * cluster + 7] {
        put(&format!("size {len}.bin"), len);
    }
    put("UPPER.TXT", 10);
    put("lower.txt", 11);
    put("Mixed.Txt", 12);
    put("noext", 13);
    put("UPPER.low", 14);
    put(".hidden", 15);
    put("two.dots.in.name", 16);
    put("näme mit Ümläut.txt", 17);
    put("日本語のファイル名.dat", 18);
    put(&"x".repeat(200), 20);
    put("a long directory name/nested/deeper/file", 40_000);
    for i in 0..many {
        put(&format!("many/file number {i} of many.txt"), i);
    }
}

#[test]
fn volumes_of_every_kind_read_as_what_was_copied_into_them() {
    let variants: &[(u64, &str, &str, usize, usize)] = &[
        (1440, "-F 12", "FAT12", 512, 150),
        (2880, "-F 12 -s 2 -f 1", "FAT12", 1024, 150),
        (8 << 10, "-F 12 -s 16 -r 512", "FAT12", 8192, 150),
        (8 << 10, "-F 16 -s 1", "FAT16", 512, 400),
        (40 << 10, "-F 16 -s 4 -f 1 -R 8", "FAT16", 2048, 400),
        (64 << 10, "-F 16 -S 4096 -s 1", "FAT16", 4096, 400),
        (600 << 10, "-F 16 -s 128", "FAT16", 65_536, 400),
        (34 << 10, "-F 32 -s 1", "FAT32", 512, 400),
        (280 << 10, "-F 32 -s 8 -f 1", "FAT32", 4096, 400),
        (70 << 10, "-F 32 -S 1024 -s 1", "FAT32", 1024, 400),
        (140 << 10, "-F 32 -S 2048 -s 1", "FAT32", 2048, 400),
        (300 << 10, "-F 32 -S 4096 -s 1 -h 63", "FAT32", 4096, 400),
        (2200 << 10, "-F 32 -s 64", "FAT32", 32_768, 400),
        (4400 << 10, "-F 32 -s 128", "FAT32", 65_536, 400),
        (8800 << 10, "-F 32 -S 1024 -s 128", "FAT32", 128 << 10, 50),
        (17_600 << 10, "-F 32 -S 2048 -s 128", "FAT32", 256 << 10, 20),
    ];
    let scratch = Scratch::new();
    for &(kib, args, variant, cluster, many) in variants {
        let (image, folder) = (scratch.path("image"), scratch.path("folder"));
        drop(std::fs::remove_dir_all(&folder));
        write_content(&folder, cluster, many);
        mkfs(&image, kib, &format!("{args} -n TESTLABEL -i 1234abcd"));
        for entry in std::fs::read_dir(&folder).unwrap() {
            mcopy(&image, &entry.unwrap().path(), "::");
        }
        let opened = open_image(&image);
        let (ours, copied) = (tree(opened.fs.as_ref()), host_tree(&folder));
        assert_eq!(ours.keys().collect::<Vec<_>>(), copied.keys().collect::<Vec<_>>(), "{args}");
        assert!(ours == copied, "{args}: contents differ");
        let summary = opened.fs.summary();
        assert_eq!(summary.variant, variant, "{args}");
        assert_eq!(summary.block_size as usize, cluster, "{args}");
        assert_eq!(summary.label.as_deref(), Some("TESTLABEL"));
        assert_eq!(summary.uuid.as_deref(), Some("1234-ABCD"));
        let free = tool("mtools", "mdir", &["-i", image.to_str().unwrap(), "::"]);
        let free: String = free.trim_end().lines().last().unwrap().chars().filter(char::is_ascii_digit).collect();
        assert_eq!(free, (summary.free_blocks * cluster as u64).to_string(), "{args}: free space");
    }
}

#[test]
fn floppies_of_every_size_read_as_what_was_copied_into_them() {
    let scratch = Scratch::new();
    let content = pattern(30_000, 7);
    std::fs::write(scratch.path("CONTENT.BIN"), &content).unwrap();
    let kinds = [
        "-f 160",
        "-f 180",
        "-f 320",
        "-f 360",
        "-f 720",
        "-f 1200",
        "-f 1440",
        "-f 2880",
        "-t 80 -h 2 -s 21",
        "-t 82 -h 2 -s 21 -c 4 -r 1",
        "-t 77 -h 2 -s 8 -S 3",
        "-t 80 -h 2 -s 36 -M 512",
    ];
    for kind in kinds {
        let image = scratch.path(&format!("floppy {kind}"));
        let mut args: Vec<&str> = vec!["-C", "-i", image.to_str().unwrap()];
        args.extend(kind.split(' '));
        args.push("::");
        tool("mtools", "mformat", &args);
        mcopy(&image, &scratch.path("CONTENT.BIN"), "::");
        let opened = open_image(&image);
        assert_eq!(tree(opened.fs.as_ref()), Tree::from([("CONTENT.BIN".to_owned(), Some(content.clone()))]), "{kind}");
        assert_eq!(opened.fs.summary().variant, "FAT12");
    }
}

#[test]
fn seven_zip_and_the_sleuth_kit_see_the_same_tree() {
    let scratch = Scratch::new();
    let (image, folder, out) = (scratch.path("image"), scratch.path("folder"), scratch.path("out"));
    write_content(&folder, 2048, 100);
    mkfs(&image, 64 << 10, "-F 16 -s 4");
    for entry in std::fs::read_dir(&folder).unwrap() {
        mcopy(&image, &entry.unwrap().path(), "::");
    }
    let opened = open_image(&image);
    let ours = tree(opened.fs.as_ref());
    let path = image.to_str().unwrap();
    tool("p7zip-full", "7z", &["x", "-tfat", path, &format!("-o{}", out.display())]);
    assert!(ours == host_tree(&out), "7z sees another tree");
    let listing = tool("sleuthkit", "fls", &["-r", "-p", "-u", "-f", "fat", path]);
    let listed: Vec<(&str, &str)> = listing
        .lines()
        .filter(|line| line.starts_with("r/r") || line.starts_with("d/d"))
        .filter_map(|line| line.split_once(":\t"))
        .collect();
    assert_eq!(listed.len(), ours.len(), "{listing}");
    for (inode, name) in listed {
        let Some(Some(bytes)) = ours.get(name) else { continue };
        let number = inode.rsplit(' ').next().unwrap();
        let output = Command::new("icat").args(["-f", "fat", path, number]).output().unwrap();
        assert!(output.stdout == *bytes, "icat sees other contents of {name}");
    }
}

/// A volume to patch: FAT16 of 8 MiB with clusters of 512 bytes, or another kind.
struct Patched(Vec<u8>);

impl Patched {
    fn new(kib: u64, args: &str) -> Self {
        let scratch = Scratch::new();
        let image = scratch.path("image");
        mkfs(&image, kib, &format!("-i 1234abcd {args}"));
        std::fs::write(scratch.path("HELLO.TXT"), pattern(3000, 1)).unwrap();
        std::fs::write(scratch.path("OTHER.BIN"), pattern(2000, 2)).unwrap();
        std::fs::create_dir_all(scratch.path("DIR/SUB")).unwrap();
        std::fs::write(scratch.path("DIR/INNER.TXT"), b"inner").unwrap();
        std::fs::write(scratch.path("a long name for a file.text"), b"long").unwrap();
        for name in ["HELLO.TXT", "OTHER.BIN", "DIR", "a long name for a file.text"] {
            mcopy(&image, &scratch.path(name), "::");
        }
        Self(std::fs::read(&image).unwrap())
    }

    fn fat16() -> Self {
        Self::new(8 << 10, "-F 16 -s 1")
    }

    fn fat32() -> Self {
        Self::new(34 << 10, "-F 32 -s 1")
    }

    fn le(&self, at: usize, len: usize) -> usize {
        self.0[at..at + len].iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte))
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Byte position of an 8.3 entry.
    fn entry(&self, short: &[u8; 11]) -> usize {
        let data = self.le(14, 2) * 512;
        let found = self.0[data..].chunks(32).position(|slot| slot[..11] == *short && slot[11] != 0x0f);
        data + found.expect("no such short name") * 32
    }

    fn cluster(&self, short: &[u8; 11]) -> usize {
        self.le(self.entry(short) + 26, 2)
    }

    fn table_len(&self) -> usize {
        512 * match self.le(0x16, 2) {
            0 => self.le(0x24, 4),
            short => short,
        }
    }

    /// Sets an entry in all tables.
    fn link(&mut self, cluster: usize, next: u32) -> &mut Self {
        for copy in 0..usize::from(self.0[16]) {
            self.link_in(copy, cluster, next);
        }
        self
    }

    fn link_in(&mut self, copy: usize, cluster: usize, next: u32) {
        let table = self.le(14, 2) * 512 + copy * self.table_len();
        let wide = self.le(0x16, 2) == 0;
        let width = if wide { 4 } else { 2 };
        self.put(table + cluster * width, &next.to_le_bytes()[..width]);
    }

    fn cluster_at(&self, cluster: usize) -> usize {
        let tables = self.le(14, 2) * 512 + usize::from(self.0[16]) * self.table_len();
        tables + self.le(17, 2) * 32 + (cluster - 2) * 512 * usize::from(self.0[13])
    }

    fn open(&self) -> Arc<dyn FileSystem> {
        open(&self.0)
    }
}

/// As The Sleuth Kit reads it. Only a sector of zeros: what another system wrote there is its own.
#[test]
fn a_wiped_boot_sector_of_fat32_is_read_from_its_backup() {
    let mut volume = Patched::fat32();
    let whole = tree(volume.open().as_ref());
    volume.put(0, &[0; 512]);
    let fs = volume.open();
    assert_eq!(tree(fs.as_ref()), whole);
    assert!(fs.summary().notes.iter().any(|note| note.contains("its backup at byte 3072 is used")));
    volume.put(200, b"x");
    assert!(!probe(&volume.0));
    let tables = volume.le(6 * 512 + 14, 2) * 512;
    volume.put(200, b"\0").put(tables, &[0; 1 << 20]);
    assert!(!probe(&volume.0), "a stale backup");
}

fn is_corrupt<T: std::fmt::Debug>(result: Result<T>) -> bool {
    match &result {
        Err(Error::Corrupt { format: "fat", .. }) => true,
        other => panic!("not corrupt: {other:?}"),
    }
}

fn names(fs: &dyn FileSystem) -> Vec<String> {
    let (rows, result) = rows(fs, fs.root());
    result.unwrap();
    rows.into_iter().map(|(name, ..)| String::from_utf8_lossy(&name).into_owned()).collect()
}

const ALL: [&str; 4] = ["HELLO.TXT", "OTHER.BIN", "DIR", "a long name for a file.text"];

#[test]
fn fat32_with_few_clusters_is_still_fat32() {
    let mut volume = Patched::fat32();
    let fs = volume.put(0x20, &40_000u32.to_le_bytes()).open();
    let summary = fs.summary();
    assert_eq!(summary.variant, "FAT32");
    assert!(summary.total_blocks < 65_525);
    assert_eq!(contents(fs.as_ref(), node(fs.as_ref(), "HELLO.TXT")).unwrap(), pattern(3000, 1));
    assert!(summary.notes.iter().any(|note| note.contains("fewer")), "{:?}", summary.notes);
}

#[test]
fn fsinfo_may_be_zeroed_absent_or_wrong() {
    let counted = Patched::fat32().open().summary().free_blocks;
    for (at, bytes) in
        [(512, &[0; 512][..]), (0x30, &[0, 0]), (0x30, &[0xff, 0xff]), (512 + 488, &[0xff; 8]), (512 + 488, &[9; 8])]
    {
        let mut volume = Patched::fat32();
        let fs = volume.put(at, bytes).open();
        assert_eq!(names(fs.as_ref()), ALL);
        assert_eq!(fs.summary().free_blocks, counted);
    }
}

#[test]
fn when_both_totals_of_sectors_are_set_the_short_one_counts() {
    let mut volume = Patched::fat16();
    let sectors = volume.le(0x13, 2);
    assert_eq!(sectors, 16384);
    let blocks = volume.open().summary().total_blocks;
    let fs = volume.put(0x20, &0x7fff_ffffu32.to_le_bytes()).open();
    assert_eq!(fs.summary().total_blocks, blocks);
    assert!(fs.summary().notes.iter().any(|note| note.contains("both totals")));
    assert_eq!(names(fs.as_ref()), ALL);
}

#[test]
fn a_boot_sector_without_55aa_is_read() {
    let mut volume = Patched::fat16();
    let fs = volume.put(510, &[0, 0]).open();
    assert_eq!(names(fs.as_ref()), ALL);
    assert!(fs.summary().notes.iter().any(|note| note.contains("55 AA")));
}

#[test]
fn floppies_of_dos_1_have_no_parameter_block() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path("CONTENT.BIN"), pattern(20_000, 3)).unwrap();
    for (kib, media) in [(160, 0xfeu8), (180, 0xfc), (320, 0xff), (360, 0xfd)] {
        let image = scratch.path("image");
        drop(std::fs::remove_file(&image));
        tool("mtools", "mformat", &["-C", "-f", &kib.to_string(), "-i", image.to_str().unwrap(), "::"]);
        mcopy(&image, &scratch.path("CONTENT.BIN"), "::");
        let mut bytes = std::fs::read(&image).unwrap();
        assert_eq!(bytes[512], media);
        bytes[..512].fill(0);
        bytes[..3].copy_from_slice(&[0xeb, 0x2f, 0x14]);
        let fs = open(&bytes);
        assert_eq!(contents(fs.as_ref(), node(fs.as_ref(), "CONTENT.BIN")).unwrap(), pattern(20_000, 3), "{kib}");
        let summary = fs.summary();
        assert_eq!((summary.variant.as_str(), summary.uuid), ("FAT12", None));
        bytes[512] = 0xf8;
        assert!(!probe(&bytes), "the media byte is what tells");
        bytes[512] = media;
        assert!(!probe(&bytes[..bytes.len() - 512]), "the size is what tells");
    }
}

#[test]
fn an_image_shorter_than_its_volume_reads_up_to_its_end() {
    let volume = Patched::fat16();
    let cut = volume.cluster_at(volume.cluster(b"OTHER   BIN")) + 512;
    let fs = open(&volume.0[..cut]);
    assert_eq!(names(fs.as_ref()), ALL);
    assert_eq!(contents(fs.as_ref(), node(fs.as_ref(), "HELLO.TXT")).unwrap(), pattern(3000, 1));
    let other = node(fs.as_ref(), "OTHER.BIN");
    let mut buf = [0; 512];
    assert_eq!(fs.read(other, &mut buf, 0).unwrap(), 512);
    assert_eq!(buf[..], pattern(2000, 2)[..512]);
    assert!(matches!(fs.read(other, &mut buf, 512), Err(Error::PastEnd { .. })));
    assert!(fs.summary().notes.iter().any(|note| note.contains("image ends")));
}

#[test]
fn with_mirroring_off_the_active_table_is_read() {
    let mut volume = Patched::fat32();
    let len = volume.table_len();
    let first = volume.le(14, 2) * 512;
    volume.0[first..first + len].fill(0);
    volume.put(first, &[0xf8, 0xff, 0xff, 0x0f]);
    is_corrupt(contents(volume.open().as_ref(), node(volume.open().as_ref(), "HELLO.TXT")));
    let fs = volume.put(0x28, &[0x81, 0]).open();
    assert_eq!(contents(fs.as_ref(), node(fs.as_ref(), "HELLO.TXT")).unwrap(), pattern(3000, 1));
    assert!(fs.summary().notes.iter().any(|note| note.contains("mirroring is off")));
}

#[test]
fn the_dirty_flags_are_said() {
    let clean = Patched::fat16().open().summary().notes;
    assert!(clean.is_empty(), "{clean:?}");
    let mut boot = Patched::fat16();
    assert!(boot.put(0x25, &[1]).open().summary().notes[0].contains("dirty"));
    let mut table = Patched::fat16();
    table.link(1, 0x7fff);
    assert!(table.open().summary().notes[0].contains("dirty"));
    table.link(1, 0xbfff);
    assert!(table.open().summary().notes[0].contains("error"));
    let mut wide = Patched::fat32();
    wide.link(1, 0x07ff_ffff);
    assert!(wide.open().summary().notes[0].contains("dirty"));
}

#[test]
fn short_names_follow_the_code_page_and_the_case_bits() {
    let mut volume = Patched::fat16();
    let at = volume.entry(b"HELLO   TXT");
    volume.put(at, b"H\x8eLL\x9a   T\xe1T");
    for (codepage, case, name) in [
        (None, 0, "HÄLLÜ.TßT"),
        (None, 0x08, "hällü.TßT"),
        (None, 0x10, "HÄLLÜ.tßt"),
        (Some(437), 0x18, "hällü.tßt"),
        (Some(850), 0, "HÄLLÜ.TßT"),
        (Some(866), 0, "HОLLЪ.TсT"),
    ] {
        volume.put(at + 12, &[case]);
        let fs = open_with(&volume.0, &Options { codepage, ..Options::default() });
        assert_eq!(names(fs.as_ref())[0], name, "{codepage:?} {case:x}");
        assert_eq!(
            fs.xattr(node(fs.as_ref(), name), b"user.fat.shortname").unwrap(),
            name.replace("tß", "Tß")
                .replace('t', "T")
                .replace('ä', "Ä")
                .replace('ü', "Ü")
                .replace('h', "H")
                .replace('l', "L")
                .as_bytes()
        );
    }
    let device: Device = Arc::new(Memory::new(volume.0.clone(), 512));
    let unknown = (fat::FORMAT.open)(device, &Options { codepage: Some(933), ..Options::default() });
    assert!(matches!(unknown.err(), Some(Error::Unsupported { .. })));
}

#[test]
fn a_byte_that_the_code_page_lacks_stays_as_it_is() {
    let mut volume = Patched::fat16();
    let at = volume.entry(b"HELLO   TXT");
    volume.put(at, b"H\xdb\xdc     TXT");
    let fs = open_with(&volume.0, &Options { codepage: Some(874), ..Options::default() });
    let first = rows(fs.as_ref(), fs.root()).0.remove(0);
    assert_eq!(first.0, b"H\xdb\xdc.TXT");
    assert_eq!(fs.lookup(fs.root(), &first.0).unwrap(), Some(first.1));
}

#[test]
fn a_name_that_starts_with_e5_is_stored_with_05() {
    let mut volume = Patched::fat16();
    let at = volume.entry(b"HELLO   TXT");
    volume.put(at, &[0x05]);
    assert_eq!(names(volume.open().as_ref())[0], "σELLO.TXT");
    volume.put(at, &[0xe5]);
    assert_eq!(names(volume.open().as_ref()), ALL[1..]);
}

/// Replaces the units of the long name that is stored in three slots.
fn rename_long(volume: &mut Patched, units: &[u16]) {
    let short = volume.entry(b"ALONGN~1TEX");
    for (i, unit) in units.iter().chain(std::iter::once(&0)).chain(std::iter::repeat(&0xffff)).take(39).enumerate() {
        let slot = short - 32 * (i / 13 + 1);
        let within = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30][i % 13];
        volume.put(slot + within, &unit.to_le_bytes());
    }
}

#[test]
fn long_names_can_be_anything_and_stay_what_they_are() {
    let mut volume = Patched::fat16();
    let units = |text: &str| text.encode_utf16().collect::<Vec<u16>>();
    let cases: [(Vec<u16>, &[u8]); 7] = [
        (units("a/b\\c"), b"a/b\\c"),
        (units(".."), b".."),
        (units("../../etc/passwd"), b"../../etc/passwd"),
        (units("before\0after"), b"before"),
        (units("\0"), b"ALONGN~1.TEX"),
        (vec![0x61, 0xd800, 0x62], b"a\xed\xa0\x80b"),
        (units("😀 \u{202e}"), "😀 \u{202e}".as_bytes()),
    ];
    for (units, expected) in cases {
        rename_long(&mut volume, &units);
        let fs = volume.open();
        let last = rows(fs.as_ref(), fs.root()).0.pop().unwrap();
        assert_eq!(last.0, expected, "{units:x?}");
        assert_eq!(fs.lookup(fs.root(), expected).unwrap(), Some(last.1));
        assert_eq!(contents(fs.as_ref(), last.1).unwrap(), b"long");
    }
}

#[test]
fn long_name_pieces_that_do_not_fit_leave_the_short_name() {
    let short = Patched::fat16().entry(b"ALONGN~1TEX");
    // The checksum of one piece, of all, a number out of order, the last piece missing, freed.
    let patches: [&[(usize, u8)]; 6] = [
        &[(short - 64 + 13, 0x55)],
        &[(short - 96 + 13, 0x55), (short - 64 + 13, 0x55), (short - 32 + 13, 0x55)],
        &[(short - 64, 0x03)],
        &[(short - 96, 0xe5)],
        &[(short - 32, 0xe5)],
        &[(short - 96, 0x7f)],
    ];
    for patch in patches {
        let mut volume = Patched::fat16();
        for &(at, byte) in patch {
            volume.put(at, &[byte]);
        }
        assert_eq!(names(volume.open().as_ref())[3], "ALONGN~1.TEX", "{patch:?}");
    }
    // Pieces without a short name at all.
    let mut volume = Patched::fat16();
    volume.put(short, &[0xe5]);
    assert_eq!(names(volume.open().as_ref()), ALL[..3]);
}

#[test]
fn a_chain_that_leads_back_is_read_up_to_there() {
    let mut volume = Patched::fat16();
    let first = volume.cluster(b"HELLO   TXT");
    volume.link(first + 3, u32::try_from(first + 1).unwrap());
    let fs = volume.open();
    let hello = node(fs.as_ref(), "HELLO.TXT");
    let mut buf = [0; 2048];
    assert_eq!(fs.read(hello, &mut buf, 0).unwrap(), 2048);
    assert_eq!(buf[..], pattern(3000, 1)[..2048]);
    assert!(is_corrupt(fs.read(hello, &mut buf, 2048)));
    assert!(is_corrupt(fs.read(hello, &mut buf, 1)));
    assert_eq!(fs.attributes(hello).unwrap().blocks, Some(4));
    assert_eq!(contents(fs.as_ref(), node(fs.as_ref(), "OTHER.BIN")).unwrap(), pattern(2000, 2));
}

#[test]
fn a_chain_shorter_than_its_file_is_an_error_beyond_its_end() {
    let first = Patched::fat16().cluster(b"HELLO   TXT");
    for (what, next) in [("end mark", 0xffff), ("free", 0), ("bad", 0xfff7), ("reserved", 1), ("too high", 0xf000)] {
        let mut volume = Patched::fat16();
        volume.link(first + 1, next);
        let fs = volume.open();
        let hello = node(fs.as_ref(), "HELLO.TXT");
        let mut buf = [0; 1024];
        assert_eq!(fs.read(hello, &mut buf, 0).unwrap(), 1024, "{what}");
        assert_eq!(buf[..], pattern(3000, 1)[..1024]);
        let table = u64::try_from(volume.le(14, 2) * 512 + 2 * (first + 1)).unwrap();
        match fs.read(hello, &mut buf, 1024) {
            Err(Error::Corrupt { at, .. }) => assert_eq!(at, table, "{what}: the place of the table's entry"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn a_chain_longer_than_its_file_shows_the_file() {
    let mut volume = Patched::fat16();
    let at = volume.entry(b"HELLO   TXT");
    let fs = volume.put(at + 28, &700u32.to_le_bytes()).open();
    let hello = node(fs.as_ref(), "HELLO.TXT");
    assert_eq!(contents(fs.as_ref(), hello).unwrap(), pattern(3000, 1)[..700]);
    assert_eq!(fs.attributes(hello).unwrap().blocks, Some(6), "the blocks are the chain's");
}

#[test]
fn clusters_0_and_1_hold_nothing() {
    for cluster in [0u16, 1, 0xfff0] {
        let mut volume = Patched::fat16();
        let (file, dir) = (volume.entry(b"HELLO   TXT"), volume.entry(b"DIR        "));
        volume.put(file + 26, &cluster.to_le_bytes()).put(dir + 26, &cluster.to_le_bytes());
        let fs = volume.open();
        assert!(is_corrupt(contents(fs.as_ref(), node(fs.as_ref(), "HELLO.TXT"))));
        let dir = node(fs.as_ref(), "DIR");
        let (listed, result) = rows(fs.as_ref(), dir);
        assert!(listed.is_empty() && is_corrupt(result), "not an empty folder");
        assert!(is_corrupt(fs.lookup(dir, b"INNER.TXT")));
        assert_eq!(fs.attributes(dir).unwrap().kind, Kind::Directory);
        volume.put(file + 28, &[0; 4]);
        if cluster == 0 {
            let fs = volume.open();
            assert_eq!(contents(fs.as_ref(), node(fs.as_ref(), "HELLO.TXT")).unwrap(), b"");
        }
    }
}

#[test]
fn a_directory_that_contains_itself_is_entered_once() {
    for fat32 in [false, true] {
        let mut volume = if fat32 { Patched::fat32() } else { Patched::fat16() };
        let dir = u16::try_from(volume.cluster(b"DIR        ")).unwrap();
        let sub = volume.entry(b"SUB        ");
        volume.put(sub + 26, &dir.to_le_bytes());
        let fs = volume.open();
        assert_eq!(contents(fs.as_ref(), node(fs.as_ref(), "DIR/INNER.TXT")).unwrap(), b"inner");
        assert!(is_corrupt(rows(fs.as_ref(), node(fs.as_ref(), "DIR/SUB")).1));
        if fat32 {
            let root = u16::try_from(volume.le(0x2c, 2)).unwrap();
            let fs = volume.put(sub + 26, &root.to_le_bytes()).open();
            assert!(is_corrupt(rows(fs.as_ref(), node(fs.as_ref(), "DIR/SUB")).1));
        }
    }
}

#[test]
fn a_directory_whose_chain_breaks_shows_its_good_part() {
    let scratch = Scratch::new();
    let (image, folder) = (scratch.path("image"), scratch.path("D"));
    std::fs::create_dir(&folder).unwrap();
    for i in 0..40 {
        std::fs::write(folder.join(format!("F{i}")), b"").unwrap();
    }
    mkfs(&image, 8 << 10, "-F 16 -s 1");
    mcopy(&image, &folder, "::");
    let mut volume = Patched(std::fs::read(&image).unwrap());
    let cluster = volume.cluster(b"D          ");
    volume.link(cluster, 0);
    let fs = volume.open();
    let dir = node(fs.as_ref(), "D");
    let (listed, result) = rows(fs.as_ref(), dir);
    assert_eq!(listed.len(), 14);
    assert!(is_corrupt(result));
    assert!(fs.lookup(dir, &listed[13].0).unwrap().is_some());
    assert!(is_corrupt(fs.lookup(dir, b"not there")), "it might be in the part that cannot be read");
}

#[test]
fn a_volume_label_is_not_a_file() {
    let mut volume = Patched::fat16();
    let at = volume.entry(b"OTHER   BIN");
    volume.put(at + 11, &[0x28]);
    let fs = volume.open();
    assert_eq!(names(fs.as_ref()), ["HELLO.TXT", "DIR", "a long name for a file.text"]);
    assert_eq!(fs.summary().label.as_deref(), Some("OTHER   BIN"));
}

#[test]
fn the_label_is_the_roots_and_then_the_boot_sectors() {
    let mut volume = Patched::new(8 << 10, "-F 16 -s 1 -n ROOTLABEL");
    volume.put(0x2b, b"BOOTLABEL  ");
    assert_eq!(volume.open().summary().label.as_deref(), Some("ROOTLABEL"));
    let at = volume.entry(b"ROOTLABEL  ");
    volume.put(at, &[0xe5]);
    assert_eq!(volume.open().summary().label.as_deref(), Some("BOOTLABEL"));
    volume.put(0x2b, b"NO NAME    ");
    assert_eq!(volume.open().summary().label, None);
}

#[test]
fn times_are_local_and_only_as_fine_as_stored() {
    let mut volume = Patched::fat16();
    let at = volume.entry(b"HELLO   TXT");
    let (date, time) = (44u16 << 9 | 2 << 5 | 29, 13u16 << 11 | 45 << 5 | 29);
    volume.put(at + 13, &[150]).put(at + 14, &time.to_le_bytes()).put(at + 16, &date.to_le_bytes());
    volume.put(at + 18, &date.to_le_bytes()).put(at + 22, &time.to_le_bytes()).put(at + 24, &date.to_le_bytes());
    for (time_offset, ahead) in [(0, 0), (120, 7200), (-300, -18_000)] {
        let fs = open_with(&volume.0, &Options { time_offset, ..Options::default() });
        let attributes = fs.attributes(node(fs.as_ref(), "HELLO.TXT")).unwrap();
        let seconds = |time: Option<imgfs::filesystem::Timestamp>| time.unwrap().seconds + ahead;
        assert_eq!(seconds(attributes.modified), 1_709_214_358);
        assert_eq!(seconds(attributes.created), 1_709_214_359);
        assert_eq!(attributes.created.unwrap().nanoseconds, 500_000_000);
        assert_eq!(seconds(attributes.accessed), 1_709_164_800);
        assert_eq!(attributes.changed, None);
    }
    volume.put(at + 13, &[0; 7]).put(at + 22, &[0; 4]);
    let fs = volume.open();
    let attributes = fs.attributes(node(fs.as_ref(), "HELLO.TXT")).unwrap();
    assert_eq!((attributes.created, attributes.modified), (None, None));
}

#[test]
fn attributes_are_shown_as_they_are() {
    let mut volume = Patched::fat16();
    let at = volume.entry(b"HELLO   TXT");
    let fs = volume.put(at + 11, &[0x27]).open();
    let hello = node(fs.as_ref(), "HELLO.TXT");
    let attributes = fs.attributes(hello).unwrap();
    assert!(attributes.read_only);
    assert_eq!((attributes.mode, attributes.links, attributes.uid), (None, Some(1), None));
    assert_eq!(fs.xattr(hello, b"user.fat.attributes").unwrap(), b"0x27");
    let long = node(fs.as_ref(), "a long name for a file.text");
    assert_eq!(fs.xattr(long, b"user.fat.shortname").unwrap(), b"ALONGN~1.TEX");
    assert_eq!(fs.xattrs(long).unwrap().len(), 2);
    assert!(matches!(fs.xattr(long, b"user.other"), Err(Error::NoAttribute)));
}

#[test]
fn names_are_found_in_any_case_and_by_their_short_form() {
    let fs = Patched::fat16().open();
    let find = |name: &str| fs.lookup(fs.root(), name.as_bytes()).unwrap();
    let (hello, long) = (find("HELLO.TXT"), find("a long name for a file.text"));
    assert!(hello.is_some() && long.is_some());
    assert_eq!(find("hello.txt"), hello);
    assert_eq!(find("A LONG Name for a file.TEXT"), long);
    assert_eq!(find("alongn~1.tex"), long);
    assert_eq!(find("a long name"), None);
    assert_eq!(find("."), None);
    let inner = node(fs.as_ref(), "dir/inner.txt");
    assert!(matches!(fs.lookup(inner, b"x"), Err(Error::NotDirectory)));
    assert!(matches!(fs.read(node(fs.as_ref(), "dir"), &mut [0], 0), Err(Error::IsDirectory)));
    assert!(matches!(fs.attributes(NodeId(1 << 50)), Err(Error::NotFound)));
}

#[test]
fn an_exact_name_comes_before_one_in_another_case() {
    let mut volume = Patched::fat16();
    let at = volume.entry(b"OTHER   BIN");
    // Two entries of one short name, which differ in the case bits.
    volume.put(at, b"HELLO   TXT").put(at + 12, &[0x18]);
    let fs = volume.open();
    let size = |name: &str| fs.attributes(node(fs.as_ref(), name)).unwrap().size;
    assert_eq!((size("HELLO.TXT"), size("hello.txt"), size("Hello.txt")), (3000, 2000, 3000));
}

#[test]
fn a_listing_resumes_from_every_cursor() {
    let fs = Patched::fat16().open();
    let mut all = Vec::new();
    let mut cursor = 0;
    loop {
        let before = all.len();
        fs.read_dir(fs.root(), cursor, &mut |entry| {
            all.push(String::from_utf8(entry.name.into_owned()).unwrap());
            cursor = entry.next;
            false
        })
        .unwrap();
        if all.len() == before {
            break;
        }
    }
    assert_eq!(all, ALL);
}

#[test]
fn what_follows_the_end_of_a_directory_is_not_in_it() {
    let mut volume = Patched::fat16();
    let at = volume.entry(b"DIR        ");
    volume.put(at, &[0]);
    assert_eq!(names(volume.open().as_ref()), ALL[..2]);
}

#[test]
fn a_boot_sector_of_the_atari_st_is_read() {
    // A branch of the 68000, a serial number where others have their name, no 55 AA.
    let mut volume = Patched::fat16();
    volume.put(0, &[0x60, 0x1c]).put(2, b"Loader").put(8, &[0x12, 0x34, 0x56]).put(0x26, &[0; 24]).put(510, &[0, 0]);
    let fs = volume.open();
    assert_eq!(names(fs.as_ref()), ALL);
    let summary = fs.summary();
    assert_eq!((summary.uuid, summary.label), (None, None));
}

#[test]
fn the_attribute_handle_of_os2_is_not_part_of_the_cluster() {
    let mut volume = Patched::fat16();
    let at = volume.entry(b"HELLO   TXT");
    let fs = volume.put(at + 20, &[0x12, 0x34]).open();
    assert_eq!(contents(fs.as_ref(), node(fs.as_ref(), "HELLO.TXT")).unwrap(), pattern(3000, 1));
}

#[test]
fn a_medium_error_in_the_first_table_is_read_from_the_second() {
    struct Failing(Memory, std::ops::Range<u64>);
    impl BlockDevice for Failing {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn sector_size(&self) -> u32 {
            512
        }
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            if offset < self.1.end && offset + buf.len() as u64 > self.1.start {
                return Err(Error::io("bad sector", std::io::Error::other("unreadable")));
            }
            self.0.read_exact_at(buf, offset)
        }
    }
    let volume = Patched::fat16();
    let start = volume.le(14, 2) as u64 * 512;
    let len = volume.table_len() as u64;
    let device = Failing(Memory::new(volume.0.clone(), 512), start + 8..start + len);
    let fs = (fat::FORMAT.open)(Arc::new(device), &Options::default()).unwrap();
    assert_eq!(contents(fs.as_ref(), node(fs.as_ref(), "HELLO.TXT")).unwrap(), pattern(3000, 1));
}

#[test]
fn a_table_that_is_damaged_from_its_start_is_read_from_its_copy() {
    for mut volume in [Patched::fat16(), Patched::fat32()] {
        let first = volume.le(14, 2) * 512;
        volume.0[first..first + 512].fill(0);
        let fs = volume.open();
        assert_eq!(names(fs.as_ref()), ALL);
        assert_eq!(contents(fs.as_ref(), node(fs.as_ref(), "HELLO.TXT")).unwrap(), pattern(3000, 1));
        let notes = fs.summary().notes;
        let copy = format!("its copy at byte {} is used", first + volume.table_len());
        assert!(notes.iter().any(|note| note.contains(&copy)), "{notes:?}");
    }
}

#[test]
fn a_media_byte_that_no_medium_has_is_said_where_all_else_is_in_order() {
    let scratch = Scratch::new();
    let image = scratch.path("image");
    mkfs(&image, 720, "");
    std::fs::write(scratch.path("HELLO.TXT"), pattern(3000, 1)).unwrap();
    mcopy(&image, &scratch.path("HELLO.TXT"), "::");
    let plain = std::fs::read(&image).unwrap();
    // As TOS writes it, and one that is not there at all.
    for (media, start) in [(0xf7, 0xf7), (0, 0xf9)] {
        let mut bytes = plain.clone();
        (bytes[0x15], bytes[512]) = (media, start);
        let fs = open(&bytes);
        assert_eq!(contents(fs.as_ref(), node(fs.as_ref(), "HELLO.TXT")).unwrap(), pattern(3000, 1));
        assert!(fs.summary().notes.iter().any(|note| note.contains("no medium has")));
        std::fs::write(&image, &bytes).unwrap();
        let listed = tool("sleuthkit", "fls", &["-f", "fat12", image.to_str().unwrap()]);
        assert!(listed.contains("HELLO.TXT"), "{listed}");
        // Nothing but the table tells it from something else then.
        bytes[512..515].fill(0);
        let copy = 512 + 512 * usize::from(u16::from_le_bytes([bytes[0x16], bytes[0x17]]));
        bytes[copy..copy + 3].fill(0);
        assert!(!probe(&bytes));
    }
}

#[test]
fn other_formats_are_not_fat() {
    let scratch = Scratch::new();
    let image = scratch.path("image");
    let fresh = |kib: u64| {
        drop(std::fs::remove_file(&image));
        std::fs::File::create(&image).unwrap().set_len(kib << 10).unwrap();
    };
    let check = |what: &str| assert!(!probe(&std::fs::read(&image).unwrap()), "{what}");
    let path = image.to_str().unwrap();
    for kind in ["ext2", "ext4"] {
        fresh(4 << 10);
        tool("e2fsprogs", "mke2fs", &["-q", "-F", "-t", kind, path]);
        check(kind);
    }
    std::fs::create_dir(scratch.path("folder")).unwrap();
    std::fs::write(scratch.path("folder/file"), b"contents").unwrap();
    tool("genisoimage", "genisoimage", &["-quiet", "-o", path, scratch.path("folder").to_str().unwrap()]);
    check("ISO 9660");
    fresh(1440);
    check("zeros");
    std::fs::write(&image, vec![0xff; 1 << 20]).unwrap();
    check("ones");
    // A disk with nothing but a partition table, and boot code in front of it.
    let mut mbr = pattern(1 << 20, 99);
    mbr[..3].copy_from_slice(&[0xeb, 0x63, 0x90]);
    mbr[446..510].fill(0);
    mbr[446..462].copy_from_slice(&[0x80, 1, 1, 0, 0x0c, 15, 63, 200, 63, 0, 0, 0, 0xc1, 0xff, 0x0f, 0]);
    mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert!(!probe(&mbr));
    // Boot sectors of NTFS and exFAT, as their own tools fill the fields that FAT has as well.
    let mut ntfs = vec![0; 1 << 20];
    ntfs[..11].copy_from_slice(b"\xeb\x52\x90NTFS    ");
    ntfs[11..64].copy_from_slice(&[
        0, 2, 8, 0, 0, 0, 0, 0, 0, 0, 0xf8, 0, 0, 63, 0, 255, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0x80, 0, 0x80, 0, 0xff, 7, 0,
        0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0,
    ]);
    ntfs[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert!(!probe(&ntfs));
    let mut exfat = vec![0; 1 << 20];
    exfat[..11].copy_from_slice(b"\xeb\x76\x90EXFAT   ");
    exfat[0x6c..0x70].copy_from_slice(&[9, 3, 1, 0x80]);
    exfat[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert!(!probe(&exfat));
    for seed in 0..3000 {
        let mut bytes = pattern(4096, seed);
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        if seed % 2 == 0 {
            bytes[..3].copy_from_slice(&[0xeb, 0x3c, 0x90]);
            bytes[11..13].copy_from_slice(&[0, 2]);
        }
        assert!(!probe(&bytes), "random bytes {seed}");
        assert!(!probe(&bytes[..(seed as usize % 600)]));
    }
}

#[test]
fn a_damaged_table_is_still_fat_and_a_volume_with_a_partition_table_in_its_boot_code_too() {
    let mut volume = Patched::fat16();
    let first = volume.le(14, 2) * 512;
    volume.0[first..first + 600].fill(0);
    let second = first + volume.table_len();
    volume.0[second..second + 600].fill(0);
    assert_eq!(names(volume.open().as_ref()), ALL);
    let mut superfloppy = Patched::fat32();
    superfloppy.put(446, &[0x80, 1, 1, 0, 0x0c, 15, 63, 200, 0, 0, 0, 0, 0xc1, 0xff, 0, 0]);
    assert_eq!(names(superfloppy.open().as_ref()), ALL);
}

/// Reads all there is, whatever the errors, with a bound on how much.
fn exhaust(bytes: Vec<u8>) {
    let device: Device = Arc::new(Memory::new(bytes, 512));
    if !(fat::FORMAT.probe)(device.as_ref()).unwrap() {
        return;
    }
    let Ok(fs) = (fat::FORMAT.open)(device, &Options::default()) else { return };
    fs.summary();
    let mut folders = vec![fs.root()];
    let mut budget = 3000;
    let mut buf = vec![0; 5000];
    while let Some(folder) = folders.pop() {
        for (name, node, kind) in rows(fs.as_ref(), folder).0 {
            budget -= 1;
            if budget == 0 {
                return;
            }
            fs.lookup(folder, &name).ok();
            let size = fs.attributes(node).map_or(0, |attributes| attributes.size);
            for offset in [0, 511, size / 2, size.saturating_sub(1)] {
                fs.read(node, &mut buf, offset).ok();
            }
            fs.xattr(node, b"user.fat.shortname").ok();
            if kind == Kind::Directory {
                folders.push(node);
            }
        }
    }
}

#[test]
fn no_byte_of_the_metadata_makes_it_panic_or_hang() {
    let volumes = [Patched::new(360, "-F 12 -s 2"), Patched::new(2200, "-F 16 -s 1"), Patched::fat32()];
    for (seed, volume) in volumes.into_iter().enumerate() {
        let data = volume.cluster_at(2);
        let interesting = data + 40 * 512;
        for round in 0..1500u64 {
            let mut bytes = volume.0[..volume.0.len().min(interesting + (64 << 10))].to_vec();
            for (i, random) in pattern(8 * (1 + round as usize % 6), round * 3 + seed as u64).chunks(8).enumerate() {
                let random = u64::from_le_bytes(random.try_into().unwrap());
                // Boot sector, start of the table, directories: a third of the flips each.
                let table = volume.le(14, 2) * 512;
                let (from, to) = [(0, 64), (table, table + 120), (data - volume.le(17, 2) * 32, interesting)]
                    [(round as usize + i) % 3];
                let at = from + (random >> 16) as usize % (to - from);
                bytes[at] = if random & 1 == 0 { (random >> 8) as u8 } else { bytes[at] ^ 1 << (random >> 8 & 7) };
            }
            exhaust(bytes);
        }
    }
}

#[test]
fn fat32_with_a_number_of_root_entries_is_read_as_mtools_reads_it() {
    let scratch = Scratch::new();
    let (image, file) = (scratch.path("fat32.img"), scratch.path("file"));
    mkfs(&image, 40 << 10, "-F 32 -s 1");
    std::fs::write(&file, b"still there").unwrap();
    mcopy(&image, &file, "::FILE.TXT");
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[0x11..0x13].copy_from_slice(&512u16.to_le_bytes());
    std::fs::write(&image, &bytes).unwrap();
    assert_eq!(tool("mtools", "mtype", &["-i", image.to_str().unwrap(), "::FILE.TXT"]), "still there");
    let device: Device = Arc::new(Memory::new(bytes, 512));
    let (_, tree) = imgfs::filesystem::open(&device, &Options::default()).unwrap().expect("a known format");
    let node = tree.lookup(tree.root(), b"FILE.TXT").unwrap().unwrap();
    let mut found = [0; 20];
    let len = tree.read(node, &mut found, 0).unwrap();
    assert_eq!(&found[..len], b"still there");
    assert!(tree.summary().notes.iter().any(|note| note.contains("512 entries")), "{:?}", tree.summary().notes);
}
