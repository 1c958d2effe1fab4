//! exFAT volumes by mkfs.exfat and exfat-fuse, read here, by exfat-fuse and by the Sleuth Kit; and what other
//! systems and damage leave behind, as patches of such a volume that fsck.exfat has an opinion about.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use imgfs::check::{Check, Proof};
use imgfs::device::file::HostFile;
use imgfs::device::memory::Memory;
use imgfs::device::{Device, Extent};
use imgfs::error::{Error, Result};
use imgfs::filesystem::{self, FileSystem, FileSystemFormat, Kind, NodeId, Options, Placed, exfat, fat};

use crate::fat::{
    Random, Scratch, Tree, contents, host_tree, node, rows, same_tree, tool, tree, try_tool, write_content,
};
use crate::program::testimage;

const FORMAT: &FileSystemFormat = &exfat::FORMAT;

fn open_device(device: Device) -> Arc<dyn FileSystem> {
    assert!((FORMAT.probe)(device.as_ref()).unwrap(), "not recognised");
    let (name, tree) = filesystem::open(&device, &Options::default()).unwrap().unwrap();
    assert_eq!(name, "exfat");
    tree
}

fn open(bytes: &[u8]) -> Arc<dyn FileSystem> {
    open_device(Arc::new(Memory::new(bytes.to_vec(), 512)))
}

fn fixture(name: &str) -> Vec<u8> {
    let scratch = Scratch::new();
    std::fs::read(testimage(&format!("filesystem/exfat/{name}"), &scratch.path(""))).unwrap()
}

/// A mount by exfat-fuse, which as root wants a block device.
struct Fused(PathBuf, String);

impl Fused {
    fn new(image: &Path, point: PathBuf, sector: u32, options: &[&str]) -> Self {
        let sector = sector.to_string();
        let args = ["--find", "--show", "--sector-size", &sector, image.to_str().unwrap()];
        let device = tool("mount", "losetup", &args).trim().to_owned();
        std::fs::create_dir_all(&point).unwrap();
        let fused = Self(point, device);
        if sector != "512" && options == ["mkfs"] {
            return fused;
        }
        let args = [options, &[&fused.1, fused.0.to_str().unwrap()]].concat();
        tool("exfat-fuse", "mount.exfat-fuse", &args);
        fused
    }
}

impl Drop for Fused {
    fn drop(&mut self) {
        // Not mounted while a volume is being made.
        drop(Command::new("umount").arg(&self.0).output());
        drop(Command::new("losetup").args(["--detach", &self.1]).output());
    }
}

/// A file of zeros with a volume that mkfs.exfat made, of sectors of a size.
fn mkfs(image: &Path, mib: u64, sector: u32, args: &str, scratch: &Scratch) {
    std::fs::File::create(image).unwrap().set_len(mib << 20).unwrap();
    let mut all: Vec<&str> = args.split_whitespace().collect();
    if sector == 512 {
        all.push(image.to_str().unwrap());
        tool("exfatprogs", "mkfs.exfat", &all);
    } else {
        let device = Fused::new(image, scratch.path("mkfs"), sector, &["mkfs"]);
        all.push(&device.1);
        tool("exfatprogs", "mkfs.exfat", &all);
    }
}

fn copy_into(folder: &Path, to: &Path) {
    tool("coreutils", "cp", &["-r", &format!("{}/.", folder.display()), to.to_str().unwrap()]);
}

#[test]
fn volumes_of_every_kind_read_as_what_was_copied_into_them_as_root() {
    let variants = [
        (8, 512, "-c 512 -b 4K", 512, 300),
        (64, 512, "", 4096, 300),
        (256, 512, "-c 32K", 32 << 10, 300),
        (600, 512, "-c 128K", 128 << 10, 50),
        (2048, 512, "-c 32M", 32 << 20, 2),
        (64, 4096, "-c 4K", 4096, 300),
        (64, 2048, "-c 8K", 8192, 100),
        (2 << 20, 512, "", 128 << 10, 50),
    ];
    let scratch = Scratch::new();
    for (mib, sector, args, cluster, many) in variants {
        let (image, folder) = (scratch.path("image"), scratch.path("folder"));
        drop(std::fs::remove_dir_all(&folder));
        write_content(&folder, cluster.min(64 << 10), many);
        mkfs(&image, mib, sector, &format!("{args} -L ÄÖÜlabel"), &scratch);
        let fused = Fused::new(&image, scratch.path("point"), sector, &[]);
        copy_into(&folder, &fused.0);
        drop(fused);
        let opened = open_device(Arc::new(HostFile::open(&image).unwrap()));
        same_tree(&tree(opened.as_ref()), &host_tree(&folder), args);
        let summary = opened.summary();
        assert_eq!((summary.variant.as_str(), summary.block_size as usize), ("exFAT", cluster), "{args}");
        assert_eq!(summary.label.as_deref(), Some("ÄÖÜlabel"), "{args}");
        assert_eq!(summary.notes, Vec::<String>::new(), "{args}");
        let uuid = tool("util-linux", "blkid", &["-p", "-o", "value", "-s", "UUID", image.to_str().unwrap()]);
        assert_eq!(summary.uuid.as_deref(), Some(uuid.trim()), "{args}");
        if sector == 512 {
            let dump = tool("exfatprogs", "dump.exfat", &[image.to_str().unwrap()]);
            let free = dump.lines().find_map(|line| line.strip_prefix("Free Clusters:")).unwrap();
            assert_eq!(free.trim(), summary.free_blocks.to_string(), "{args}");
        }
        assert_eq!(faults(opened.as_ref()), Vec::<String>::new(), "{args}");
        std::fs::remove_file(&image).unwrap();
    }
}

/// What the checks find.
fn faults(fs: &dyn FileSystem) -> Vec<String> {
    let found = |check: Check| match check.proof {
        Proof::Known(fault) => fault.into_iter().collect(),
        Proof::Walk(walk) => walk().unwrap(),
        _ => unreachable!("no such checks here"),
    };
    fs.checks().into_iter().flat_map(found).collect()
}

/// The files of a volume as the Sleuth Kit reads them.
fn by_sleuthkit(image: &Path) -> Tree {
    let path = image.to_str().unwrap();
    let listing = tool("sleuthkit", "fls", &["-r", "-p", "-u", "-f", "exfat", path]);
    let mut found = Tree::new();
    for line in listing.lines() {
        let Some((kind, name)) = line.split_once(":\t").filter(|(_, name)| !name.contains('$')) else { continue };
        if name.ends_with("(Volume Label Entry)") {
            continue;
        }
        let number = kind.rsplit(' ').next().unwrap();
        let bytes = kind.starts_with("r/r").then(|| {
            let output = Command::new("icat").args(["-f", "exfat", path, number]).output().unwrap();
            assert!(output.status.success(), "icat {name}");
            output.stdout
        });
        found.insert(name.to_owned(), bytes);
    }
    found
}

#[test]
fn the_sleuth_kit_sees_the_same_tree() {
    let scratch = Scratch::new();
    for name in ["plain.img", "clusters-of-512.img"] {
        let image = testimage(&format!("filesystem/exfat/{name}"), &scratch.path(""));
        let ours = tree(open(&std::fs::read(&image).unwrap()).as_ref());
        assert_eq!(ours.len(), 77, "{name}");
        same_tree(&ours, &by_sleuthkit(&image), name);
    }
}

#[test]
fn attributes_and_times_are_those_that_exfat_fuse_shows_as_root() {
    use std::os::unix::fs::MetadataExt;
    let scratch = Scratch::new();
    let image = testimage("filesystem/exfat/plain.img", &scratch.path(""));
    let fs = open(&std::fs::read(&image).unwrap());
    let fused = Fused::new(&image, scratch.path("point"), 512, &["-o", "ro"]);
    let mut checked = 0;
    for (path, contents) in tree(fs.as_ref()) {
        let theirs = fused.0.join(&path).symlink_metadata().unwrap();
        let ours = fs.attributes(node(fs.as_ref(), &path)).unwrap();
        let time = |time: Option<filesystem::Timestamp>| time.unwrap().seconds;
        assert_eq!((time(ours.modified), time(ours.accessed)), (theirs.mtime(), theirs.atime()), "{path}");
        assert_eq!((ours.size, ours.blocks.unwrap()), (theirs.size(), theirs.blocks()), "{path}");
        checked += u32::from(contents.is_some());
    }
    assert!(checked > 60);
}

/// A volume to patch, with its checksums kept right.
#[derive(Clone)]
struct Patched {
    bytes: Vec<u8>,
    sector: usize,
    cluster: usize,
    heap: usize,
    table: usize,
    root: usize,
}

fn le32(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

impl Patched {
    fn new(name: &str) -> Self {
        Self::of(fixture(name))
    }

    fn of(bytes: Vec<u8>) -> Self {
        let sector = 1 << bytes[0x6c];
        let (cluster, heap) = (sector << bytes[0x6d], le32(&bytes, 0x58) * sector);
        let (table, root) = (le32(&bytes, 0x50) * sector, heap + (le32(&bytes, 0x60) - 2) * cluster);
        Self { bytes, sector, cluster, heap, table, root }
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        self.bytes[at..at + value.len()].copy_from_slice(value);
    }

    fn at(&self, cluster: usize) -> usize {
        self.heap + (cluster - 2) * self.cluster
    }

    fn link(&mut self, cluster: usize, next: u32) {
        self.put(self.table + cluster * 4, &next.to_le_bytes());
    }

    /// Changes the boot sector, and the checksum of its region with it.
    fn boot(&mut self, at: usize, value: &[u8]) {
        self.put(at, value);
        let mut sum = 0u32;
        for (index, byte) in self.bytes[..self.sector * 11].iter().enumerate() {
            if !matches!(index, 106 | 107 | 112) {
                sum = sum.rotate_right(1).wrapping_add((*byte).into());
            }
        }
        let sums = sum.to_le_bytes().repeat(self.sector / 4);
        self.put(self.sector * 11, &sums);
    }

    /// Where the set of a name starts, in the root directory's first cluster or anywhere else.
    fn set(&self, name: &str) -> usize {
        let units: Vec<u8> = name.encode_utf16().take(15).flat_map(u16::to_le_bytes).collect();
        let mut starts = (self.heap..self.bytes.len() - 96).step_by(32);
        let is_it = |at: &usize| {
            let entry = |i: usize| &self.bytes[at + i * 32..at + i * 32 + 32];
            entry(0)[0] == 0x85 && entry(1)[0] == 0xc0 && entry(2)[0] == 0xc1 && entry(2)[2..].starts_with(&units)
        };
        starts.find(is_it).unwrap()
    }

    /// Changes a set from a byte of it on, and its checksum.
    fn change(&mut self, set: usize, at: usize, value: &[u8]) {
        self.put(set + at, value);
        let len = (self.bytes[set + 1] as usize + 1) * 32;
        let mut sum = 0u16;
        for (index, byte) in self.bytes[set..set + len].iter().enumerate() {
            if !matches!(index, 2 | 3) {
                sum = sum.rotate_right(1).wrapping_add((*byte).into());
            }
        }
        self.put(set + 2, &sum.to_le_bytes());
    }

    fn open(&self) -> Arc<dyn FileSystem> {
        open(&self.bytes)
    }

    fn notes(&self) -> String {
        self.open().summary().notes.join("\n")
    }

    /// What fsck.exfat says: its exit code and its words.
    fn fsck(&self) -> (Option<i32>, String) {
        let scratch = Scratch::new();
        let image = scratch.path("image");
        std::fs::write(&image, &self.bytes).unwrap();
        try_tool("exfatprogs", "fsck.exfat", &["-n", image.to_str().unwrap()])
    }
}

/// The tree as far as it goes, and what was said about the rest.
fn what_is_left(fs: &dyn FileSystem) -> (BTreeMap<String, Result<Vec<u8>>>, Vec<String>) {
    let (mut found, mut said, mut folders) = (BTreeMap::new(), Vec::new(), vec![(fs.root(), String::new())]);
    while let Some((folder, prefix)) = folders.pop() {
        let (rows, outcome) = rows(fs, folder);
        said.extend(outcome.err().map(|error| error.to_string()));
        for (name, node, kind) in rows {
            let path = format!("{prefix}{}", String::from_utf8_lossy(&name));
            match kind {
                Kind::Directory => folders.push((node, format!("{path}/"))),
                _ => drop(found.insert(path, contents(fs, node))),
            }
        }
    }
    (found, said)
}

#[test]
fn a_damaged_boot_region_is_read_from_its_backup() {
    for name in ["plain.img", "clusters-of-512.img"] {
        let good = Patched::new(name);
        let expected = tree(good.open().as_ref());
        assert_eq!(good.notes(), "");
        let mut variants = Vec::new();
        for (at, value) in [(0, &[0; 512][..]), (0x6c, &[8]), (0x50, &[0xff; 8]), (0x1fe, &[0, 0]), (300, b"x")] {
            let mut bad = good.clone();
            bad.put(at, value);
            variants.push(bad);
        }
        for bad in variants {
            assert!(bad.notes().contains("the backup at byte 6144 is used"), "{}", bad.notes());
            same_tree(&tree(bad.open().as_ref()), &expected, name);
            assert!(faults(bad.open().as_ref()).iter().any(|fault| fault.contains("boot region at byte 0")));
            assert_ne!(bad.fsck().0, Some(0));
        }
        // When the backup is no better, what is left of the first is used; or nothing can be.
        let mut both = good.clone();
        both.put(300, b"x");
        both.put(300 + 12 * both.sector, b"x");
        assert!(both.notes().contains("the boot region at byte 0 is wrong, and there is no backup that is better"));
        same_tree(&tree(both.open().as_ref()), &expected, name);
        both.put(0x6c, &[20]);
        let device: Device = Arc::new(Memory::new(both.bytes, 512));
        assert!(filesystem::open(&device, &Options::default()).is_err_and(|error| {
            matches!(error, Error::Corrupt { at: 0, .. }) && error.to_string().contains("BytesPerSectorShift")
        }));
    }
}

#[test]
fn only_its_own_boot_sector_is_recognised() {
    let good = fixture("plain.img");
    let probe = |bytes: &[u8]| (FORMAT.probe)(&Memory::new(bytes.to_vec(), 512)).unwrap();
    assert!(probe(&good) && !(fat::FORMAT.probe)(&Memory::new(good.clone(), 512)).unwrap());
    let mut ntfs = good.clone();
    ntfs[3..11].copy_from_slice(b"NTFS    ");
    assert!(!probe(&ntfs));
    assert!(!probe(&[0; 512]) && !probe(&[0; 1 << 20]) && !probe(b"") && !probe(&good[..500]));
    // A volume of ext in its place starts with nothing as well.
    let mut ext = good;
    ext[..512].fill(0);
    assert!(probe(&ext));
    ext[1080..1082].copy_from_slice(&[0x53, 0xef]);
    assert!(!probe(&ext));
}

#[test]
fn geometry_that_cannot_be_is_damage_and_another_revision_is_not_supported() {
    let good = Patched::new("plain.img");
    let fields: [(usize, &[u8], &str); 9] = [
        (0x50, &[1, 0, 0, 0], "FatOffset"),
        (0x54, &[0xff, 0xff, 0xff, 0], "FatOffset, FatLength"),
        (0x58, &[1, 0, 0, 0], "ClusterHeapOffset"),
        (0x5c, &[0; 4], "ClusterCount"),
        (0x5c, &[0xff; 4], "ClusterCount"),
        (0x60, &[1, 0, 0, 0], "FirstClusterOfRootDirectory"),
        (0x6d, &[17], "SectorsPerClusterShift"),
        (0x6e, &[3], "NumberOfFats"),
        (0x68, &[0, 2], "revision 2.00 is not supported"),
    ];
    for (at, value, expected) in fields {
        let mut bad = good.clone();
        bad.boot(at, value);
        bad.bytes.copy_within(..12 * bad.sector, 12 * bad.sector);
        let device: Device = Arc::new(Memory::new(bad.bytes, 512));
        let error = (FORMAT.open)(device, &Options::default()).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_flags_of_the_boot_sector_are_said() {
    let mut volume = Patched::new("plain.img");
    volume.put(0x6a, &[6, 0]);
    let notes = volume.notes();
    assert!(notes.contains("not unmounted") && notes.contains("media failures"), "{notes}");
    assert_eq!(faults(volume.open().as_ref()), Vec::<String>::new(), "the checksum leaves the flags out");
    volume.bytes.truncate(volume.bytes.len() - 4096);
    assert!(volume.notes().contains("the volume's last 4096 bytes are missing"));
}

#[test]
fn a_set_with_a_wrong_checksum_is_listed_and_answers_with_the_damage() {
    let mut volume = Patched::new("plain.img");
    let whole = tree(volume.open().as_ref());
    let set = volume.set("ODD.BIN");
    volume.put(set + 12, &[0x55]);
    let fs = volume.open();
    let (left, said) = what_is_left(fs.as_ref());
    assert_eq!(left.len(), whole.values().flatten().count());
    for (name, bytes) in left {
        match bytes {
            Ok(bytes) => assert!(whole[&name].as_ref() == Some(&bytes), "{name}"),
            Err(error) => assert!(name == "ODD.BIN" && matches!(error, Error::Corrupt { .. }), "{name}: {error}"),
        }
    }
    assert_eq!(said, [format!("exfat: directory entry set (its checksum) at byte {set} is damaged")]);
    // Not by name, nor when the listing is resumed behind it.
    assert!(fs.lookup(fs.root(), b"ODD.BIN").unwrap().is_some());
    assert!(fs.lookup(fs.root(), b"no such name").is_err());
    assert!(faults(fs.as_ref()).contains(&said[0]));
    let (code, words) = volume.fsck();
    assert!(code != Some(0) && words.contains(&format!("{set:#x}")), "{words}");
}

#[test]
fn a_set_without_its_parts_is_passed_over_and_said() {
    let good = Patched::new("plain.img");
    let set = good.set("BLOCK.BIN");
    // The stream extension deleted, the name deleted, too many entries counted, none counted.
    for (at, value) in [(32, 0x40), (64, 0x41), (1, 255), (1, 0), (32 + 3, 0), (32 + 3, 200)] {
        let mut bad = good.clone();
        bad.put(set + at, &[value]);
        let (left, said) = what_is_left(bad.open().as_ref());
        assert!(!left.contains_key("BLOCK.BIN") && left.contains_key("ODD.BIN"), "{at} {value}: {left:?}");
        assert_eq!(said.len(), 1, "{said:?}");
        assert_ne!(bad.fsck().0, Some(0));
    }
    // More entries counted than it has: nothing of the others is lost.
    let mut bad = good.clone();
    bad.put(set + 1, &[20]);
    let (left, said) = what_is_left(bad.open().as_ref());
    assert!(left["BLOCK.BIN"].is_err() && left["ODD.BIN"].is_ok() && said.len() == 1, "{said:?}");
    assert_eq!(left.len(), tree(good.open().as_ref()).values().flatten().count());
    // A secondary entry without a primary one.
    let mut orphan = good.clone();
    orphan.put(set, &[0x05]);
    assert!(what_is_left(orphan.open().as_ref()).1[0].contains("without a primary one"));
}

#[test]
fn what_is_deleted_or_of_others_is_not_shown() {
    let good = Patched::new("plain.img");
    let (set, whole) = (good.set("BLOCK.BIN"), tree(good.open().as_ref()));
    let mut deleted = good.clone();
    for entry in 0..3 {
        deleted.bytes[set + entry * 32] &= 0x7f;
    }
    let mut expected = whole.clone();
    expected.remove("BLOCK.BIN");
    same_tree(&tree(deleted.open().as_ref()), &expected, "deleted");
    assert_eq!(deleted.open().lookup(NodeId(0), b"BLOCK.BIN").unwrap(), None);
    // A benign set of a vendor in its place: no row, and no damage.
    let mut vendor = good.clone();
    vendor.put(set, &[0xa5]);
    same_tree(&tree(vendor.open().as_ref()), &expected, "vendor");
    // A critical one that no one knows.
    let mut critical = good.clone();
    critical.put(set, &[0x86]);
    let (left, said) = what_is_left(critical.open().as_ref());
    assert!(!left.contains_key("BLOCK.BIN") && said[0].contains("type 0x86") && said[0].contains("not supported"));
    // A vendor's extension behind the name of a file.
    let long = good.set("A long name with spaces.text");
    let mut extended = good.clone();
    // Its second name entry becomes the vendor's, and the name is as long as the first.
    extended.put(long + 96, &[0xe0]);
    extended.put(long + 32 + 3, &[15]);
    extended.change(long, 0, &[0x85]);
    let (left, said) = what_is_left(extended.open().as_ref());
    assert!(left["A long name wit"].is_ok() && said.is_empty(), "{said:?}");
}

#[test]
fn bytes_past_the_valid_length_are_zeros_and_a_hole() {
    let mut volume = Patched::new("plain.img");
    // Specification, section 7.6.5. Neither the Sleuth Kit nor exfat-fuse 1.3 knows of it: they show what was there before.
    for (name, valid) in [("ODD.BIN", 4097u64), ("second half.bin", 9000), ("BLOCK.BIN", 0)] {
        let set = volume.set(name);
        let fs = volume.open();
        let file = node(fs.as_ref(), name);
        let mut expected = contents(fs.as_ref(), file).unwrap();
        volume.change(set, 32 + 8, &valid.to_le_bytes());
        let fs = volume.open();
        expected[valid as usize..].fill(0);
        assert!(contents(fs.as_ref(), file).unwrap() == expected, "{name}");
        let rest = expected.len() as u64 - valid;
        assert_eq!(fs.extent(file, valid).unwrap(), Extent { stored: false, len: rest });
        assert_eq!(fs.place(file, valid).unwrap(), Some(Placed { at: None, len: rest }));
        if valid > 0 {
            assert_eq!(fs.extent(file, 0).unwrap(), Extent { stored: true, len: valid });
            let placed = fs.place(file, valid - 1).unwrap().unwrap();
            assert_eq!(placed.len, 1);
            assert_eq!(volume.bytes[placed.at.unwrap() as usize], expected[valid as usize - 1]);
        }
    }
    assert_eq!(volume.fsck().0, Some(0));
}

#[test]
fn a_chain_that_is_wrong_shows_its_good_part_and_is_an_error_behind_it() {
    let good = Patched::new("plain.img");
    let set = good.set("first half.bin");
    let (first, size) = (le32(&good.bytes, set + 32 + 20), le32(&good.bytes, set + 32 + 24));
    assert_eq!(good.bytes[set + 33] & 2, 0, "the file is in one piece");
    let second = le32(&good.bytes, good.table + first * 4);
    let fs = good.open();
    let expected = contents(fs.as_ref(), node(fs.as_ref(), "first half.bin")).unwrap();
    assert_eq!(expected.len(), size);
    let ring = [(second, first as u32, "leads back"), (second, second as u32, "leads back")];
    let others = [(second, 0, "free cluster"), (second, 0xffff_fff7, "no cluster has"), (second, u32::MAX, "shorter")];
    for (cluster, next, said) in ring.into_iter().chain(others) {
        let mut bad = good.clone();
        bad.link(cluster, next);
        let fs = bad.open();
        let file = node(fs.as_ref(), "first half.bin");
        let (mut start, mut buf) = (vec![0; 2 * good.cluster], vec![0; size]);
        assert_eq!(fs.read(file, &mut start, 0).unwrap(), start.len(), "{said}");
        assert!(start[..] == expected[..start.len()]);
        let error = fs.read(file, &mut buf, 0).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }) && error.to_string().contains(said), "{error}");
        assert!(faults(fs.as_ref()).iter().any(|fault| fault.contains(said)), "{said}");
        assert_ne!(bad.fsck().0, Some(0), "{said}");
    }
    // A ring of nearly all that the file has.
    let mut ring = good.clone();
    let mut last = first;
    for _ in 0..3 {
        last = le32(&good.bytes, good.table + last * 4);
    }
    ring.link(last, first as u32);
    let fs = ring.open();
    let error = contents(fs.as_ref(), node(fs.as_ref(), "first half.bin")).unwrap_err();
    assert!(error.to_string().contains("leads back"), "{error}");
    // Longer than the file: no harm, and verify says so.
    let mut longer = good.clone();
    longer.change(set, 32 + 24, &(good.cluster as u64).to_le_bytes());
    longer.change(set, 32 + 8, &(good.cluster as u64).to_le_bytes());
    let fs = longer.open();
    assert!(contents(fs.as_ref(), node(fs.as_ref(), "first half.bin")).unwrap() == expected[..good.cluster]);
    assert!(faults(fs.as_ref())[0].contains("longer than"));
    assert_ne!(longer.fsck().0, Some(0));
}

#[test]
fn contents_that_the_volume_has_no_room_for_are_damage() {
    let good = Patched::new("plain.img");
    let set = good.set("ODD.BIN");
    for (at, value, said) in [
        (32 + 24, &[0xff; 8][..], "DataLength"),
        (32 + 20, &[0; 4], "first cluster"),
        (32 + 20, &[0xff; 4], "first cluster"),
    ] {
        let mut bad = good.clone();
        bad.change(set, at, value);
        // Without a chain the clusters are those that follow.
        for flags in [1, 3] {
            bad.change(set, 33, &[flags]);
            let fs = bad.open();
            let file = fs.lookup(fs.root(), b"ODD.BIN").unwrap().unwrap();
            let error = fs.attributes(file).and_then(|_| fs.read(file, &mut [0; 100], 0)).unwrap_err();
            let said = if flags == 3 && said == "first cluster" { "its clusters" } else { said };
            assert!(error.to_string().contains(said), "{error}, not {said}");
        }
    }
}

#[test]
fn directories_that_lead_in_circles_or_share_clusters_end() {
    let good = Patched::new("plain.img");
    let docs = good.set("docs");
    let root = le32(&good.bytes, 0x60) as u32;
    let deep = good.set("deep");
    let own = le32(&good.bytes, docs + 32 + 20) as u32;
    // A folder that is its parent, that is the root, and two that are one.
    for (set, cluster, path) in [(deep, own, "docs/deep"), (deep, root, "docs/deep"), (good.set("many"), own, "many")] {
        let mut bad = good.clone();
        bad.change(set, 32 + 20, &cluster.to_le_bytes());
        let fs = bad.open();
        let folder = node(fs.as_ref(), path);
        rows(fs.as_ref(), fs.root()).1.unwrap();
        let (found, outcome) = rows(fs.as_ref(), folder);
        assert!(found.is_empty() && outcome.is_err_and(|error| error.to_string().contains("another directory")));
        assert!(faults(fs.as_ref()).iter().any(|fault| fault.contains("another")), "{:?}", faults(fs.as_ref()));
        assert_ne!(bad.fsck().0, Some(0));
    }
    let mut empty = good.clone();
    empty.change(good.set("nothing"), 32 + 24, &[0; 8]);
    let fs = empty.open();
    assert!(rows(fs.as_ref(), node(fs.as_ref(), "nothing")).1.is_err(), "a folder of no length is not empty");
}

#[test]
fn a_root_directory_of_nothing_is_an_error_and_no_empty_folder() {
    let mut volume = Patched::new("plain.img");
    let root = volume.root;
    volume.bytes[root..root + volume.cluster].fill(0);
    let device: Device = Arc::new(Memory::new(volume.bytes, 512));
    let error = (FORMAT.open)(device, &Options::default()).err().unwrap();
    assert_eq!(error.to_string(), format!("exfat: root directory at byte {root} is damaged"));
}

#[test]
fn names_are_found_without_regard_to_case_by_the_volumes_own_table() {
    let mut volume = Patched::new("plain.img");
    let fs = volume.open();
    let find = |fs: &dyn FileSystem, name: &str| fs.lookup(fs.root(), name.as_bytes()).unwrap();
    let file = find(fs.as_ref(), "Grüße aus Köln.txt");
    assert!(file.is_some());
    assert_eq!(find(fs.as_ref(), "GRÜßE AUS KÖLN.TXT"), file);
    assert_eq!(find(fs.as_ref(), "GRÜSSE AUS KÖLN.TXT"), None);
    assert!(!fs.is_other_spelling(fs.root(), "Grüße aus Köln.txt".as_bytes()).unwrap());
    assert!(fs.is_other_spelling(fs.root(), "grüße aus köln.txt".as_bytes()).unwrap());
    assert_eq!(fs.lookup(fs.root(), b"\xff\xfe").unwrap(), None);
    // In a table in which r is no letter, and a is e.
    let entry = (volume.root..).step_by(32).find(|&at| volume.bytes[at] == 0x82).unwrap();
    let table = volume.at(le32(&volume.bytes, entry + 20));
    let own: Vec<u8> = (0..128u16)
        .map(|unit| match unit {
            0x72 => unit,
            0x61 => 0x45,
            0x62..=0x7a => unit - 32,
            _ => unit,
        })
        .flat_map(u16::to_le_bytes)
        .collect();
    let sum = own.iter().fold(0u32, |sum, byte| sum.rotate_right(1).wrapping_add((*byte).into()));
    volume.put(table, &own);
    volume.put(entry + 4, &sum.to_le_bytes());
    volume.put(entry + 24, &(own.len() as u64).to_le_bytes());
    let fs = volume.open();
    assert_eq!(find(fs.as_ref(), "Grüße eus Köln.txt"), file);
    assert_eq!(find(fs.as_ref(), "GRüße aus Köln.txt"), None);
    assert_eq!(find(fs.as_ref(), "GrÜße aus Köln.txt"), None);
    assert_eq!(volume.notes(), "");
}

#[test]
fn a_damaged_up_case_table_is_said_and_the_recommended_one_is_what_mkfs_writes() {
    let good = Patched::new("plain.img");
    let entry = (good.root..).step_by(32).find(|&at| good.bytes[at] == 0x82).unwrap();
    assert_eq!(le32(&good.bytes, entry + 4), 0xe619_d30d);
    let mut bad = good.clone();
    bad.put(entry + 4, &[0]);
    assert!(bad.notes().contains("up-case table (its checksum)") && bad.notes().contains("recommended"));
    assert!(faults(bad.open().as_ref())[0].contains("up-case table"));
    let mut missing = good.clone();
    missing.put(entry, &[0x02]);
    assert!(missing.notes().contains("no up-case table"), "{}", missing.notes());
    // Whatever the unit, both tables lead to the same name.
    let set = good.set("EMPTY.DAT");
    for unit in (1..=0xffffu16).step_by(499).filter(|unit| !(0xd800..0xe000).contains(unit)) {
        let c = char::from_u32(unit.into()).unwrap();
        let found = [&good, &bad].map(|volume| {
            let mut volume = volume.clone();
            volume.put(set + 35, &[1]);
            volume.change(set, 66, &unit.to_le_bytes());
            let fs = volume.open();
            let names = [c.to_string(), c.to_uppercase().to_string(), c.to_lowercase().to_string()];
            names.map(|name| fs.lookup(fs.root(), name.as_bytes()).unwrap().is_some())
        });
        assert!(found[0] == found[1] && found[0][0], "{unit:#x}: {found:?}");
    }
}

#[test]
fn names_can_be_anything_and_stay_what_they_are() {
    let mut volume = Patched::new("plain.img");
    let set = volume.set("EMPTY.DAT");
    for (units, expected) in [
        ([0x61, 0xd83d, 0x62], &b"a\xed\xa0\xbdb"[..]),
        ([0x2f, 0x2e, 0], b"/.\0"),
        ([0xd83d, 0xde00, 0x202e], "😀\u{202e}".as_bytes()),
    ] {
        volume.put(set + 35, &[3]);
        volume.change(set, 66, &units.into_iter().flat_map(u16::to_le_bytes).collect::<Vec<_>>());
        let fs = volume.open();
        let (rows, outcome) = rows(fs.as_ref(), fs.root());
        outcome.unwrap();
        let row = rows.iter().find(|(_, node, _)| node.0 == set as u64).unwrap();
        assert_eq!(row.0, expected);
        assert_eq!(fs.lookup(fs.root(), expected).unwrap(), Some(NodeId(set as u64)));
    }
}

#[test]
fn the_second_table_and_bitmap_are_used_where_texfat_says_so() {
    let mut volume = Patched::new("plain.img");
    let whole = tree(volume.open().as_ref());
    let free = volume.open().summary().free_blocks;
    let len = le32(&volume.bytes, 0x54) * volume.sector;
    let (table, bitmap) = (volume.table, (volume.root..).step_by(32).find(|&at| volume.bytes[at] == 0x81).unwrap());
    assert!(table + 2 * len <= volume.heap, "no room for a second table");
    volume.bytes.copy_within(table..table + len, table + len);
    volume.bytes[table + 8..table + len].fill(0);
    // A second bitmap in the place of the label: of all ones, in the cluster of a file that is deleted with that.
    let victim = volume.set("EMPTY.DAT");
    let cluster = le32(&volume.bytes, volume.set("ODD.BIN") + 32 + 20);
    let entry: [u8; 32] = volume.bytes[bitmap..bitmap + 32].try_into().unwrap();
    volume.put(victim, &entry);
    volume.put(victim + 1, &[1]);
    volume.put(victim + 20, &(cluster as u32).to_le_bytes());
    volume.put(victim + 32, &[0x40]);
    volume.put(victim + 64, &[0x41]);
    let at = volume.at(cluster);
    volume.bytes[at..at + volume.cluster].fill(0xff);
    volume.boot(0x6e, &[2]);
    volume.put(0x6a, &[1, 0]);
    let end = volume.table + len + cluster * 4;
    volume.put(end, &u32::MAX.to_le_bytes());
    assert!(volume.notes().contains("TexFAT") && volume.notes().contains("the second is in use"));
    let fs = volume.open();
    let second = tree(fs.as_ref());
    assert!(
        second["first half.bin"] == whole["first half.bin"] && second["second half.bin"] == whole["second half.bin"]
    );
    assert_eq!((fs.summary().free_blocks, free > 0), (0, true));
    volume.put(0x6a, &[0, 0]);
    assert!(volume.notes().contains("the first is in use"));
    let fs = volume.open();
    assert!(contents(fs.as_ref(), node(fs.as_ref(), "first half.bin")).is_err(), "the first table is empty");
    assert_eq!(fs.summary().free_blocks, free);
}

#[test]
fn times_have_zones_or_that_of_the_mount_and_attributes_are_those_of_fat() {
    let mut volume = Patched::new("plain.img");
    let set = volume.set("ODD.BIN");
    // 2024-02-29 13:45:58, and 1.99 s of creation; UTC+1, UTC-2 without its bit, UTC-11:30.
    let stamp = (44u32 << 9 | 2 << 5 | 29) << 16 | 13 << 11 | 45 << 5 | 29;
    let fields = [stamp.to_le_bytes(), stamp.to_le_bytes(), stamp.to_le_bytes()].concat();
    volume.change(set, 8, &[&fields[..], &[199, 50, 0x84, 0x78, 0x80 | 82]].concat());
    volume.change(set, 4, &[0x27, 0]);
    let device: Device = Arc::new(Memory::new(volume.bytes.clone(), 512));
    let options = Options { time_offset: 60, mode: Some(0o640), ..Options::default() };
    let fs = (FORMAT.open)(device, &options).unwrap();
    let file = node(fs.as_ref(), "ODD.BIN");
    let attributes = fs.attributes(file).unwrap();
    // `date -u -d '2024-02-29 13:45:58' +%s`
    let local = 1_709_214_358;
    let time = |time: Option<filesystem::Timestamp>| time.map(|time| (time.seconds - local, time.nanoseconds)).unwrap();
    assert_eq!(time(attributes.created), (1 - 3600, 990_000_000));
    assert_eq!(time(attributes.modified), (-3600, 500_000_000));
    assert_eq!(time(attributes.accessed), (11 * 3600 + 1800, 0));
    assert!(attributes.read_only && attributes.mode == Some(0o640));
    assert_eq!(fs.xattrs(file).unwrap(), [b"user.fat.attributes".to_vec()]);
    assert_eq!(fs.xattr(file, b"user.fat.attributes").unwrap(), b"0x27");
    let folder = node(fs.as_ref(), "docs");
    assert_eq!(fs.xattr(folder, b"user.fat.attributes").unwrap(), b"0x10");
    assert!(fs.xattr(fs.root(), b"user.fat.attributes").is_err() && fs.attributes(fs.root()).unwrap().mode.is_none());
}

#[test]
fn verify_finds_clusters_that_two_have_or_that_are_free_and_hashes_that_are_wrong() {
    let good = Patched::new("plain.img");
    assert_eq!(faults(good.open().as_ref()), Vec::<String>::new());
    let (odd, block) = (good.set("ODD.BIN"), good.set("BLOCK.BIN"));
    let mut shared = good.clone();
    let first: [u8; 4] = good.bytes[odd + 52..odd + 56].try_into().unwrap();
    shared.change(block, 52, &first);
    assert!(faults(shared.open().as_ref()).iter().any(|fault| fault.contains("another's as well")));
    let mut free = good.clone();
    let bitmap = (good.root..).step_by(32).find(|&at| good.bytes[at] == 0x81).unwrap();
    let bits = good.at(le32(&good.bytes, bitmap + 20));
    let cluster = u32::from_le_bytes(first);
    free.bytes[bits + (cluster as usize - 2) / 8] &= !(1 << ((cluster - 2) % 8));
    assert_eq!(
        faults(free.open().as_ref()),
        [format!("the set at byte {odd}: cluster {cluster} is free in the bitmap")]
    );
    assert_eq!(free.open().summary().free_blocks, good.open().summary().free_blocks + 1);
    let mut hash = good.clone();
    hash.change(odd, 36, &[0, 0]);
    assert_eq!(faults(hash.open().as_ref()), [format!("the hash of the name at byte {odd} is wrong")]);
    for bad in [shared, free, hash] {
        assert_ne!(bad.fsck().0, Some(0));
    }
}

/// The set of a file or folder with a name of at most fifteen capital letters.
pub(crate) fn entry_set(name: &str, attributes: u8, flags: u8, first: u32, size: u64) -> Vec<u8> {
    let units: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let hash = units.iter().fold(0u16, |sum, byte| sum.rotate_right(1).wrapping_add((*byte).into()));
    let mut set = vec![0; 96];
    (set[0], set[1], set[4]) = (0x85, 2, attributes);
    for time in [8, 12, 16] {
        set[time..time + 4].copy_from_slice(&(44u32 << 25 | 1 << 21 | 1 << 16).to_le_bytes());
    }
    (set[32], set[33], set[35], set[64]) = (0xc0, flags, name.len() as u8, 0xc1);
    set[36..38].copy_from_slice(&hash.to_le_bytes());
    set[40..48].copy_from_slice(&size.to_le_bytes());
    set[52..56].copy_from_slice(&first.to_le_bytes());
    set[56..64].copy_from_slice(&size.to_le_bytes());
    set[66..66 + units.len()].copy_from_slice(&units);
    let counted = set.iter().enumerate().filter(|(i, _)| !matches!(i, 2 | 3));
    let sum = counted.fold(0u16, |sum, (_, byte)| sum.rotate_right(1).wrapping_add((*byte).into()));
    set[2..4].copy_from_slice(&sum.to_le_bytes());
    set
}

/// A volume with a folder that has many files of no bytes.
fn crowd(count: usize) -> (Patched, Vec<String>) {
    let scratch = Scratch::new();
    let image = scratch.path("image");
    mkfs(&image, 64, 512, "-c 4K", &scratch);
    let mut volume = Patched::of(std::fs::read(&image).unwrap());
    let names: Vec<String> = (0..count).map(|n| format!("NUMBER {n:06}")).collect();
    let sets: Vec<u8> = names.iter().flat_map(|name| entry_set(name, 0x20, 1, 0, 0)).collect();
    // In the clusters behind the root directory, as many as it needs.
    let (root, clusters) = (le32(&volume.bytes, 0x60), sets.len().div_ceil(volume.cluster));
    let size = (clusters * volume.cluster) as u64;
    volume.put(volume.root + 96, &entry_set("CROWD", 0x10, 3, root as u32 + 1, size));
    volume.put(volume.at(root + 1), &sets);
    let bits = volume.at(2);
    for cluster in root + 1..root + 1 + clusters {
        volume.bytes[bits + (cluster - 2) / 8] |= 1 << ((cluster - 2) % 8);
    }
    (volume, names)
}

#[test]
fn a_directory_of_a_hundred_thousand_files_lists_in_linear_time() {
    let (volume, names) = crowd(100_000);
    let (code, words) = volume.fsck();
    assert_eq!(code, Some(0), "{words}");
    let fs = volume.open();
    let folder = node(fs.as_ref(), "CROWD");
    let begin = std::time::Instant::now();
    let (mut found, mut cursor) = (Vec::new(), 0);
    // In small pieces, as the kernel asks for it.
    loop {
        let before = found.len();
        fs.read_dir(folder, cursor, &mut |row| {
            cursor = row.next;
            found.push(String::from_utf8(row.name.into_owned()).unwrap());
            found.len() < before + 50
        })
        .unwrap();
        if found.len() == before {
            break;
        }
    }
    assert!(found == names);
    for name in names.iter().step_by(3) {
        let node = fs.lookup(folder, name.to_lowercase().as_bytes()).unwrap().unwrap();
        assert_eq!(fs.attributes(node).unwrap().size, 0);
    }
    assert_eq!(fs.lookup(folder, b"NUMBER 100000").unwrap(), None);
    // A quadratic one takes minutes.
    assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
}

#[test]
fn no_byte_of_the_metadata_makes_it_panic_or_hang() {
    let mut random = Random(0x5eed);
    for name in ["plain.img", "clusters-of-512.img"] {
        let good = Patched::new(name);
        let len = le32(&good.bytes, 0x54) * good.sector;
        let directories: Vec<usize> = (good.heap..good.bytes.len() - 64)
            .step_by(32)
            .filter(|&at| good.bytes[at] == 0x85 && good.bytes[at + 32] == 0xc0)
            .collect();
        for round in 0..500 {
            let mut bad = good.clone();
            for _ in 0..1 + random.below(3) {
                let (set, value) =
                    (*random.pick(&directories).unwrap(), [0, 1, 0x7f, 0x80, 0xff, 0x85, 0xc1][random.below(7)]);
                let at = match random.below(4) {
                    0 => 0x40 + random.below(0x40),
                    1 => good.table + 8 + random.below(len.min(2048)),
                    2 => good.root + random.below(512),
                    _ => set + random.below(96),
                };
                bad.put(at, &[value]);
                match random.below(3) {
                    0 => bad.boot(0x78, &[0]),
                    1 => bad.change(set, 0, &[0x85]),
                    _ => {}
                }
            }
            let device: Device = Arc::new(Memory::new(bad.bytes, 512));
            drop((FORMAT.probe)(device.as_ref()));
            let Ok(fs) = (FORMAT.open)(device, &Options::default()) else { continue };
            drop(fs.summary());
            look(fs.as_ref(), fs.root(), 0);
            drop(fs.lookup(fs.root(), b"no such name"));
            if round % 10 == 0 {
                for check in fs.checks() {
                    if let Proof::Walk(walk) = check.proof {
                        drop(walk());
                    }
                }
            }
        }
    }
}

fn look(fs: &dyn FileSystem, dir: NodeId, depth: usize) {
    assert!(depth < 50, "directories without end");
    for (name, node, kind) in rows(fs, dir).0 {
        drop((fs.lookup(dir, &name), fs.xattrs(node)));
        let size = fs.attributes(node).map_or(0, |attributes| attributes.size);
        if kind == Kind::Directory {
            look(fs, node, depth + 1);
            continue;
        }
        let mut buf = [0; 5000];
        for offset in [0, size / 2, size.saturating_sub(100)] {
            drop((fs.read(node, &mut buf, offset), fs.place(node, offset)));
            assert!(offset >= size || fs.extent(node, offset).is_ok_and(|extent| extent.len > 0));
        }
    }
}

#[test]
fn reading_changes_nothing() {
    let scratch = Scratch::new();
    let image = testimage("filesystem/exfat/plain.img", &scratch.path(""));
    let before = std::fs::read(&image).unwrap();
    let fs = open_device(Arc::new(HostFile::open(&image).unwrap()));
    assert!(fs.writer().is_none());
    drop((tree(fs.as_ref()), faults(fs.as_ref())));
    assert!(std::fs::read(&image).unwrap() == before);
}
