//! UDF: images made by genisoimage and mkudffs, compared with what 7z, udfinfo and blkid read; images of what
//! no maker at hand writes (metadata, virtual and sparable partitions with files, holes, long chains) made
//! here block by block after the standard, and read by 7z as well where it knows them; hostile ones.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io::Write};

use imgfs::check::Proof;
use imgfs::device::Device;
use imgfs::device::file::HostFile;
use imgfs::device::memory::Memory;
use imgfs::error::{Error, Result};
use imgfs::filesystem::{self, FileSystem, Kind, NodeId, Options};
use sha2::{Digest, Sha256};

use crate::iso9660::{self, Folder};

const BLOCK: usize = 2048;

/// Standard output of a shell script, as text.
fn run(folder: &Folder, package: &str, script: &str) -> String {
    String::from_utf8_lossy(&iso9660::run(folder, package, script)).into_owned()
}

fn sha(bytes: &[u8]) -> Vec<u8> {
    Sha256::digest(bytes).to_vec()
}

/// Opens an image, gives it to `check`, and makes sure that no byte of it was changed.
fn with_image<T>(image: &Path, options: &Options, check: impl FnOnce(&'static str, &dyn FileSystem) -> T) -> T {
    let before = sha(&fs::read(image).unwrap());
    let device: Device = Arc::new(HostFile::open(image).unwrap());
    let (name, tree) = filesystem::open(&device, options).unwrap().expect("a known format");
    let result = check(name, tree.as_ref());
    assert_eq!(before, sha(&fs::read(image).unwrap()), "the image was changed");
    result
}

fn try_open(bytes: &[u8]) -> Result<Arc<dyn FileSystem>> {
    let device: Device = Arc::new(Memory::new(bytes.to_vec(), 512));
    filesystem::open(&device, &Options::default()).map(|found| found.expect("a known format").1)
}

/// What is compared of a node: kind, and contents or target.
type Tree = BTreeMap<String, (Kind, Vec<u8>)>;

fn rows(tree: &dyn FileSystem, dir: NodeId) -> Result<Vec<(NodeId, String, Kind)>> {
    let mut rows = Vec::new();
    tree.read_dir(dir, 0, &mut |entry| {
        rows.push((entry.node, String::from_utf8(entry.name.to_vec()).unwrap(), entry.kind));
        true
    })?;
    Ok(rows)
}

fn contents(tree: &dyn FileSystem, file: NodeId) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut buf = vec![0; 100_000];
    loop {
        match tree.read(file, &mut buf, all.len() as u64)? {
            0 => return Ok(all),
            count => all.extend_from_slice(&buf[..count]),
        }
    }
}

/// All of a tree by path. Every name is also looked up.
fn walk(tree: &dyn FileSystem) -> Tree {
    let mut all = Tree::new();
    let mut queue = vec![(tree.root(), String::new())];
    while let Some((dir, path)) = queue.pop() {
        for (node, name, kind) in rows(tree, dir).unwrap() {
            assert_eq!(tree.lookup(dir, name.as_bytes()).unwrap(), Some(node), "{name}");
            let attributes = tree.attributes(node).unwrap();
            assert_eq!(attributes.kind, kind, "{name}");
            let path = format!("{path}{name}");
            let seen = match kind {
                Kind::File => contents(tree, node).unwrap(),
                Kind::Symlink => tree.read_link(node).unwrap(),
                _ => Vec::new(),
            };
            if kind != Kind::Directory {
                assert_eq!(seen.len() as u64, attributes.size, "{path}");
            } else {
                queue.push((node, format!("{path}/")));
            }
            all.insert(path, (kind, seen));
        }
        assert_eq!(tree.lookup(dir, b"no such name").unwrap(), None);
    }
    all
}

/// What is in a folder.
fn folder_tree(top: &Path) -> Tree {
    let mut all = Tree::new();
    let mut queue = vec![(top.to_owned(), String::new())];
    while let Some((folder, path)) = queue.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{path}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                queue.push((entry.path(), format!("{path}/")));
                all.insert(path, (Kind::Directory, Vec::new()));
            } else {
                all.insert(path, (Kind::File, fs::read(entry.path()).unwrap()));
            }
        }
    }
    all
}

/// What 7z reads, whatever it finds to say of the rest of the image.
fn seven(folder: &Folder, image: &str) -> Tree {
    run(folder, "p7zip-full", &format!("rm -rf out; 7z x -y -tudf -oout {image} || true"));
    folder_tree(&folder.join("out"))
}

fn faults(tree: &dyn FileSystem) -> Vec<String> {
    let mut all = Vec::new();
    for check in tree.checks() {
        match check.proof {
            Proof::Known(fault) => all.extend(fault),
            Proof::Walk(walk) => all.extend(walk().unwrap()),
            Proof::Digest { .. } | Proof::Reads(_) => {}
        }
    }
    all
}

const FILES: &str = "mkdir -p src/dir/deep src/empty src/many; printf 'hello\\n' > src/hello.txt; : > src/zero
    head -c 700000 /dev/urandom > src/dir/big.bin; head -c 5000 /dev/urandom > src/dir/deep/five.bin
    printf x > 'src/a name that is longer than what sixty-four characters of Joliet can hold, by far.txt'
    printf y > 'src/dir/ünïcödé €uro 日本.txt'
    for i in $(seq 1 300); do echo $i > src/many/file-$i.txt; done
    find src -exec touch -d '2001-02-03 04:05:06 UTC' {} +\n";

#[test]
fn a_bridge_disc_of_genisoimage_reads_as_in_7z_and_as_its_source() {
    let folder = Folder::new();
    run(
        &folder,
        "genisoimage",
        &format!("{FILES} genisoimage -quiet -input-charset utf-8 -udf -V BRIDGE -o a.iso src"),
    );
    with_image(&folder.join("a.iso"), &Options::default(), |name, tree| {
        assert_eq!(name, "udf");
        let ours = walk(tree);
        assert_eq!(ours, folder_tree(&folder.join("src")));
        assert_eq!(ours, seven(&folder, "a.iso"));
        let hello = tree.lookup(tree.root(), b"hello.txt").unwrap().unwrap();
        assert_eq!(tree.attributes(hello).unwrap().modified.unwrap().seconds, 981_173_106);
        assert_eq!(faults(tree), Vec::<String>::new());
    });
    with_image(&folder.join("a.iso"), &Options { noudf: true, ..Options::default() }, |name, tree| {
        assert_eq!(name, "iso9660");
        assert!(tree.lookup(tree.root(), b"HELLO.TXT").unwrap().is_some());
    });
}

/// The tree of a bridge disc that is shown, by how it was made.
#[test]
fn of_a_bridge_disc_the_fuller_tree_is_shown() {
    let folder = Folder::new();
    run(&folder, "genisoimage", FILES);
    run(&folder, "genisoimage", "ln -s hello.txt src/link; printf 'This disc needs UDF.' > README.TXT");
    let shown = |words: &str, options: &Options| {
        run(
            &folder,
            "genisoimage",
            &format!("genisoimage -quiet -input-charset utf-8 -udf {words} -o a.iso src README.TXT"),
        );
        with_image(&folder.join("a.iso"), options, |name, tree| {
            let root: Vec<String> = rows(tree, tree.root()).unwrap().into_iter().map(|(_, name, _)| name).collect();
            assert!(root.iter().any(|name| name.eq_ignore_ascii_case("hello.txt")), "{words}: {root:?}");
            (name, tree.summary().variant)
        })
    };
    let all = Options::default();
    let rock_ridge = ("iso9660", "ISO 9660 (Rock Ridge)".to_owned());
    let udf = ("udf", "UDF 1.02".to_owned());
    assert_eq!(shown("-R", &all), rock_ridge);
    assert_eq!(shown("-R", &Options { norock: true, ..Options::default() }), udf);
    assert_eq!(shown("-J", &all), udf, "64 characters are not all of a name");
    // As the installation discs of Windows: a note to the reader in ISO 9660, everything in UDF.
    assert_eq!(shown("-R -hide hello.txt -hide many -hide dir", &all), udf);
    assert_eq!(shown("-R -hide file-7.txt", &all), udf, "one file that is missing deep inside");
    assert_eq!(shown("-J -joliet-long", &all), udf);
    // A row of UDF that was deleted leaves Joliet with more.
    let mut image = fs::read(folder.join("a.iso")).unwrap();
    let is_row = |bytes: &[u8]| bytes[..2] == 257u16.to_le_bytes() && bytes[38..43] == *b"\x08many";
    let row = (0..image.len() - 64).step_by(4).find(|at| is_row(&image[*at..])).unwrap();
    image[row + 18] |= 4;
    let len = 16 + usize::from(u16::from_le_bytes([image[row + 10], image[row + 11]]));
    let location = u32::from_le_bytes(image[row + 12..row + 16].try_into().unwrap());
    let fixed = tagged(257, location, image[row..row + len].to_vec());
    put(&mut image, row, fixed);
    let tree = try_open(&image).unwrap();
    assert_eq!(tree.summary().variant, "ISO 9660 (Joliet)");
    assert!(tree.lookup(tree.root(), b"many").unwrap().is_some());
}

#[test]
fn mkudffs_volumes_have_the_label_identifier_and_free_space_of_udfinfo_and_blkid() {
    let folder = Folder::new();
    let mut count = 0;
    for block in [512, 2048, 4096] {
        for (media, revisions) in [
            ("hd", &["1.02", "1.50", "2.01"][..]),
            ("dvdram", &["1.02", "2.01"]),
            ("cdrw", &["1.50", "2.01"]),
            ("cdr", &["1.50", "2.01"]),
            ("bdr", &["2.50", "2.60"]),
        ] {
            for revision in revisions {
                let words = format!("-b {block} -m {media} -r {revision} -l Größe_{count}");
                run(&folder, "udftools", &format!("rm -f a.img; mkudffs --utf8 --new-file {words} a.img 6000"));
                let said = run(&folder, "udftools", &format!("udfinfo --utf8 -b {block} a.img"));
                let said: BTreeMap<&str, &str> = said.lines().filter_map(|line| line.split_once('=')).collect();
                let blkid = run(&folder, "util-linux", "blkid -p -o export a.img");
                let blkid: BTreeMap<&str, &str> = blkid.lines().filter_map(|line| line.split_once('=')).collect();
                with_image(&folder.join("a.img"), &Options::default(), |name, tree| {
                    let summary = tree.summary();
                    assert_eq!((name, summary.variant.as_str()), ("udf", format!("UDF {revision}").as_str()));
                    assert_eq!(summary.label.as_deref(), Some(said["lvid"]), "{words}");
                    assert_eq!(summary.uuid.as_deref(), Some(said["uuid"]), "{words}");
                    assert_eq!(summary.uuid.as_deref(), blkid.get("UUID").copied(), "{words}");
                    assert_eq!(summary.block_size, block, "{words}");
                    if media != "cdr" && media != "bdr" {
                        assert_eq!(summary.free_blocks.to_string(), said["freeblocks"], "{words}");
                    }
                    let shown: Vec<String> = walk(tree).into_keys().collect();
                    let known = ["lost+found", "Non-Allocatable Space"];
                    assert!(shown.iter().all(|name| known.contains(&name.as_str())), "{words}: {shown:?}");
                    assert_eq!(faults(tree), Vec::<String>::new(), "{words}");
                });
                count += 1;
            }
        }
    }
    assert_eq!(count, 33);
}

// Images made here, after the standard.

/// On what the tree lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ground {
    Physical,
    Metadata,
    Virtual,
    Sparable,
}

const PARTITION: u32 = 257;
const PARTITION_LEN: u32 = 600;

struct Maker {
    image: Vec<u8>,
    ground: Ground,
    /// First blocks of the metadata file that lie apart from the rest.
    apart: u32,
}

fn crc(bytes: &[u8]) -> u16 {
    let mut crc = 0u16;
    for byte in bytes {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
        }
    }
    crc
}

/// Puts the tag in front of a descriptor that was made with room for it.
fn tagged(id: u16, location: u32, mut bytes: Vec<u8>) -> Vec<u8> {
    let len = bytes.len() - 16;
    let sum = crc(&bytes[16..]);
    bytes[0..2].copy_from_slice(&id.to_le_bytes());
    bytes[2..4].copy_from_slice(&3u16.to_le_bytes());
    bytes[8..10].copy_from_slice(&sum.to_le_bytes());
    bytes[10..12].copy_from_slice(&(len as u16).to_le_bytes());
    bytes[12..16].copy_from_slice(&location.to_le_bytes());
    bytes[4] = 0;
    bytes[4] = bytes[..16].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: impl AsRef<[u8]>) {
    let value = value.as_ref();
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn le32(value: u32) -> [u8; 4] {
    value.to_le_bytes()
}

fn long(len: u32, block: u32, partition: u16) -> Vec<u8> {
    [&le32(len)[..], &le32(block), &partition.to_le_bytes(), &[0; 6]].concat()
}

fn extended(len: u32, block: u32, partition: u16) -> Vec<u8> {
    [&le32(len)[..], &le32(len), &le32(len), &le32(block), &partition.to_le_bytes(), &[0; 2]].concat()
}

fn short(len: u32, block: u32) -> Vec<u8> {
    [le32(len), le32(block)].concat()
}

fn entry(file_type: u8, form: u16, size: u64, descriptors: &[u8], strategy: u16) -> Vec<u8> {
    let mut bytes = vec![0; 216];
    put(&mut bytes, 20, strategy.to_le_bytes());
    bytes[27] = file_type;
    put(&mut bytes, 34, form.to_le_bytes());
    put(&mut bytes, 36, le32(1000));
    put(&mut bytes, 40, le32(u32::MAX));
    put(&mut bytes, 44, le32(0x1884));
    put(&mut bytes, 48, 1u16.to_le_bytes());
    put(&mut bytes, 56, size.to_le_bytes());
    put(&mut bytes, 212, le32(descriptors.len() as u32));
    bytes.extend_from_slice(descriptors);
    bytes
}

fn identifier(characteristics: u8, name: &[u8], block: u32, partition: u16) -> Vec<u8> {
    let mut bytes = vec![0; 38];
    bytes[18] = characteristics;
    bytes[19] = name.len() as u8;
    put(&mut bytes, 16, 1u16.to_le_bytes());
    put(&mut bytes, 20, long(BLOCK as u32, block, partition));
    bytes.extend_from_slice(name);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    tagged(257, 0, bytes)
}

fn block_of(seed: u8) -> Vec<u8> {
    (0..BLOCK).map(|index| seed.wrapping_add((index % 251) as u8)).collect()
}

impl Maker {
    /// The map by which the tree's own blocks are named.
    fn map(&self) -> u16 {
        u16::from(matches!(self.ground, Ground::Metadata | Ground::Virtual))
    }

    fn at(&mut self, block: u32, bytes: &[u8]) {
        put(&mut self.image, block as usize * BLOCK, bytes);
    }

    /// A block of the partition in which data lie.
    fn data(&mut self, block: u32, bytes: &[u8]) {
        self.at(PARTITION + block, bytes);
    }

    /// A block of the tree.
    fn tree(&mut self, block: u32, bytes: &[u8]) {
        match self.ground {
            Ground::Physical => self.data(block, bytes),
            // In two pieces, and its mirror in one.
            Ground::Metadata => {
                self.data(if block < self.apart { 300 + block } else { 340 + block }, bytes);
                self.data(400 + block, bytes);
            }
            Ground::Virtual => self.data(200 + (block * 7) % 64, bytes),
            // The first packet was moved behind the partition.
            Ground::Sparable => self.at(PARTITION + PARTITION_LEN + 10 + block, bytes),
        }
    }

    fn node(&mut self, block: u32, bytes: Vec<u8>) {
        let bytes = tagged(266, block, bytes);
        self.tree(block, &bytes);
    }
}

/// A volume with one of everything; and what is in it.
fn made(ground: Ground) -> (Vec<u8>, Tree) {
    made_with(ground, true)
}

/// The same; `all` is false for what 7z reads: no holes, no chains, no links, and a
/// metadata file in one piece.
fn made_with(ground: Ground, all: bool) -> (Vec<u8>, Tree) {
    let mut maker = Maker { image: vec![0; 900 * BLOCK], ground, apart: if all { 4 } else { 0 } };
    let map = maker.map();
    for (block, name) in [(16, b"BEA01"), (17, b"NSR03"), (18, b"TEA01")] {
        maker.at(block, &[&[0][..], name, &[1]].concat());
    }
    let mut anchor = vec![0; 512];
    put(&mut anchor, 16, [le32(16 * 2048), le32(32), le32(16 * 2048), le32(48)].concat());
    for block in [256, PARTITION + 599] {
        maker.at(block, &tagged(2, block, anchor.clone()));
    }

    let mut second = vec![0; 64];
    second[..2].copy_from_slice(&[2, 64]);
    put(&mut second, 36, [1, 0, 0, 0]);
    let physical = vec![1u8, 6, 1, 0, 0, 0];
    let maps: Vec<Vec<u8>> = match ground {
        Ground::Physical => vec![physical],
        Ground::Metadata => {
            put(&mut second, 5, "*UDF Metadata Partition");
            put(&mut second, 40, [le32(100), le32(101), le32(u32::MAX), le32(32)].concat());
            vec![physical, second]
        }
        Ground::Virtual => {
            put(&mut second, 5, "*UDF Virtual Partition");
            vec![physical, second]
        }
        Ground::Sparable => {
            put(&mut second, 5, "*UDF Sparable Partition");
            put(&mut second, 40, [&[32, 0, 1, 0][..], &le32(2048), &le32(80)].concat());
            vec![second]
        }
    };
    let table = maps.concat();
    for first in [32, 48] {
        let mut primary = vec![0; 512];
        put(&mut primary, 72, b"\x084f1a2b3c4d5e6f70made");
        primary[72 + 127] = 21;
        put(&mut primary, 56, 1u16.to_le_bytes());
        maker.at(first, &tagged(1, first, primary));
        let mut logical = vec![0; 440];
        put(&mut logical, 84, b"\x08Made here");
        logical[84 + 127] = 10;
        put(&mut logical, 212, le32(2048));
        put(&mut logical, 216 + 24, 0x0250u16.to_le_bytes());
        put(&mut logical, 248, long(2048, 0, map));
        put(&mut logical, 264, [le32(table.len() as u32), le32(maps.len() as u32)].concat());
        logical.extend_from_slice(&table);
        maker.at(first + 1, &tagged(6, first + 1, logical));
        let mut partition = vec![0; 512];
        put(&mut partition, 24, b"\0+NSR03");
        put(&mut partition, 188, [le32(PARTITION), le32(PARTITION_LEN)].concat());
        maker.at(first + 2, &tagged(5, first + 2, partition));
        maker.at(first + 3, &tagged(8, first + 3, vec![0; 512]));
    }
    let mut set = vec![0; 512];
    put(&mut set, 400, long(2048, 1, map));
    maker.tree(0, &tagged(256, 0, set));

    let mut expected = Tree::new();
    let mut root = identifier(0x0a, b"", 1, map);
    let mut row = |characteristics: u8, name: &[u8], block: u32| {
        root.extend(identifier(characteristics, name, block, map));
    };
    row(0, b"\x08embedded.txt", 3);
    row(0, b"\x08long.bin", 6);
    if all {
        row(0, b"\x08chain.bin", 4);
        row(0, b"\x08extended.bin", 7);
        row(0, b"\x08link", 8);
    }
    row(4, b"\x08gone", 3);
    row(1, b"\x08Hidden \xe9", 3);
    row(2, b"\x10\x20\xac\x00u\x00r\x00o", 9);
    if all {
        row(0, b"\x08linked.txt", 10);
    }
    maker.node(1, entry(4, 3, root.len() as u64, &root, 4));
    let file = |bytes: &[u8]| (Kind::File, bytes.to_vec());

    let mut embedded = entry(5, 3, 8, b"embedded", 4);
    put(&mut embedded, 48, 3u16.to_le_bytes());
    maker.node(3, embedded);
    expected.insert("embedded.txt".into(), file(b"embedded"));
    expected.insert("Hidden é".into(), file(b"embedded"));

    // A block, one that was allocated and never written, and in a second list: a block, a hole, the tail.
    // Short descriptors name the partition of the tree, in which data of a file lie only here and there.
    let form = u16::from(map != 0);
    let name = |len: u32, block: u32| if map == 0 { short(len, block) } else { long(len, block, 0) };
    let goes_on = if map == 0 { short(3 << 30 | 2048, 5) } else { long(3 << 30 | 2048, 5, map) };
    let first = [name(2048, 64), name(1 << 30 | 2048, 66), goes_on].concat();
    let second = [name(2048, 70), name(2 << 30 | 2048, 0), name(1948, 72)].concat();
    maker.node(4, entry(5, form, 5 * 2048 - 100, &first, 4));
    let mut list = vec![0; 24];
    put(&mut list, 20, le32(second.len() as u32));
    list.extend_from_slice(&second);
    maker.tree(5, &tagged(258, 5, list));
    [(64, 1), (66, 99), (70, 2), (72, 3)].into_iter().for_each(|(block, seed)| maker.data(block, &block_of(seed)));
    let mut chain = [block_of(1), vec![0; 2048], block_of(2), vec![0; 2048], block_of(3)].concat();
    chain.truncate(5 * 2048 - 100);
    expected.insert("chain.bin".into(), file(&chain));

    maker.node(6, entry(5, 1, 4096, &[long(2048, 72, 0), long(2048, 64, 0)].concat(), 4));
    expected.insert("long.bin".into(), file(&[block_of(3), block_of(1)].concat()));
    maker.node(7, entry(249, 2, 3000, &[extended(2048, 70, 0), extended(952, 72, 0)].concat(), 4));
    expected.insert("extended.bin".into(), file(&[block_of(2), block_of(3)].concat()[..3000]));

    let target = b"\x03\0\0\0\x05\x05\0\0\x08some\x05\x06\0\0\x08place";
    maker.node(8, entry(12, 3, target.len() as u64, target, 4));
    expected.insert("link".into(), (Kind::Symlink, b"../some/place".to_vec()));

    let sub = [identifier(0x0a, b"", 1, map), identifier(0, b"\x08in it", 3, map)].concat();
    maker.node(9, entry(4, form.max(1), sub.len() as u64, &long(sub.len() as u32, 13, map), 4));
    maker.tree(13, &sub);
    expected.insert("€uro".into(), (Kind::Directory, Vec::new()));
    expected.insert("€uro/in it".into(), file(b"embedded"));

    // A state that was replaced: what is behind it leads to the new one.
    maker.node(10, entry(5, 3, 3, b"old", 4096));
    let mut indirect = vec![0; 52];
    put(&mut indirect, 20, 4096u16.to_le_bytes());
    put(&mut indirect, 36, long(2048, 12, map));
    maker.tree(11, &tagged(259, 11, indirect));
    maker.node(12, entry(5, 3, 3, b"new", 4096));
    expected.insert("linked.txt".into(), file(b"new"));

    match ground {
        Ground::Physical => {}
        Ground::Metadata => {
            let pieces = [short(4 * 2048, 300), short(28 * 2048, 344)].concat();
            let pieces = if all { pieces } else { short(32 * 2048, 340) };
            maker.data(100, &tagged(266, 100, entry(250, 0, 32 * 2048, &pieces, 4)));
            maker.data(101, &tagged(266, 101, entry(251, 0, 32 * 2048, &short(32 * 2048, 400), 4)));
        }
        Ground::Virtual => {
            let mut table = vec![0; 152];
            put(&mut table, 0, 152u16.to_le_bytes());
            (0..16u32).for_each(|block| table.extend_from_slice(&le32(200 + (block * 7) % 64)));
            maker.data(598, &tagged(266, 598, entry(248, 3, table.len() as u64, &table, 4)));
        }
        Ground::Sparable => {
            let mut table = vec![0; 56];
            put(&mut table, 17, "*UDF Sparing Table");
            put(&mut table, 48, 2u16.to_le_bytes());
            table.extend([le32(0), le32(PARTITION + PARTITION_LEN + 10), le32(u32::MAX), le32(900)].concat());
            let table = tagged(0, 80, table);
            maker.at(80, &table);
        }
    }
    if ground != Ground::Sparable {
        maker.image.truncate((PARTITION + 600) as usize * BLOCK);
    }
    (maker.image, expected)
}

const GROUNDS: [Ground; 4] = [Ground::Physical, Ground::Metadata, Ground::Virtual, Ground::Sparable];

#[test]
fn every_kind_of_partition_allocation_and_strategy_is_read() {
    let folder = Folder::new();
    for ground in GROUNDS {
        let (image, expected) = made(ground);
        fs::File::create(folder.join("a.img")).unwrap().write_all(&image).unwrap();
        with_image(&folder.join("a.img"), &Options::default(), |name, tree| {
            assert_eq!(name, "udf");
            assert_eq!(walk(tree), expected, "{ground:?}");
            let summary = tree.summary();
            assert_eq!((summary.variant.as_str(), summary.label.as_deref()), ("UDF 2.50", Some("Made here")));
            assert_eq!(summary.uuid.as_deref(), Some("4f1a2b3c4d5e6f70"));
            let node = tree.lookup(tree.root(), b"chain.bin").unwrap().unwrap();
            let attributes = tree.attributes(node).unwrap();
            assert_eq!((attributes.uid, attributes.gid, attributes.mode), (Some(1000), None, Some(0o644)));
            let holes: Vec<bool> = (0..5).map(|block| tree.extent(node, block * 2048).unwrap().stored).collect();
            assert_eq!(holes, [true, false, true, false, true]);
            assert_eq!(faults(tree), Vec::<String>::new(), "{ground:?}");
        });
    }
}

/// 7z reads neither virtual nor sparable partitions.
#[test]
fn physical_and_metadata_partitions_read_as_in_7z() {
    let folder = Folder::new();
    for ground in [Ground::Physical, Ground::Metadata] {
        let (image, mut expected) = made_with(ground, false);
        expected.retain(|name, _| !["chain.bin", "extended.bin", "link", "linked.txt"].contains(&name.as_str()));
        assert_eq!(walk(try_open(&image).unwrap().as_ref()), expected, "{ground:?}");
        fs::write(folder.join("a.img"), &image).unwrap();
        assert_eq!(seven(&folder, "a.img"), expected, "{ground:?}");
    }
}

#[test]
fn the_reserve_sequence_and_the_mirror_of_the_metadata_stand_in_for_what_is_damaged() {
    let (image, expected) = made(Ground::Metadata);
    // The main sequence; the main metadata file's entry; one entry in it.
    for block in [33, PARTITION + 100, PARTITION + 340 + 4] {
        let mut image = image.clone();
        image[block as usize * BLOCK + 100] ^= 1;
        image[block as usize * BLOCK + 5] ^= 0xff;
        image[block as usize * BLOCK] ^= 0xff;
        assert_eq!(walk(try_open(&image).unwrap().as_ref()), expected, "{block}");
    }
    let mut image = image;
    image[33 * BLOCK + 100] ^= 1;
    let tree = try_open(&image).unwrap();
    assert!(tree.summary().notes.iter().any(|note| note.contains("CRC")), "{:?}", tree.summary().notes);
    assert_eq!(faults(tree.as_ref()).len(), 1);
}

#[test]
fn a_damaged_row_is_said_and_the_others_are_listed() {
    let (image, _) = made(Ground::Physical);
    let mut image = image;
    // The row of `long.bin`: behind rows of 38 and of 38 + 13 bytes, each filled up to 4.
    let row = (PARTITION as usize + 1) * BLOCK + 216 + 40 + 52;
    image[row + 30] ^= 1;
    // The entry's own checksum is made anew: damage is to be met in the directory.
    let at = (PARTITION as usize + 1) * BLOCK;
    let len = 16 + usize::from(u16::from_le_bytes([image[at + 10], image[at + 11]]));
    let entry = tagged(266, 1, image[at..at + len].to_vec());
    put(&mut image, at, &entry);
    let tree = try_open(&image).unwrap();
    let mut names = Vec::new();
    let listed = tree.read_dir(tree.root(), 0, &mut |entry| {
        names.push(String::from_utf8_lossy(&entry.name).into_owned());
        true
    });
    assert!(matches!(listed, Err(Error::Corrupt { .. })), "{listed:?}");
    assert_eq!(names, ["embedded.txt", "chain.bin", "extended.bin", "link", "Hidden é", "€uro", "linked.txt"]);
    assert!(tree.lookup(tree.root(), b"link").unwrap().is_some());
    assert!(tree.lookup(tree.root(), b"long.bin").is_err(), "it may be in the damaged row");
    assert_eq!(faults(tree.as_ref()).len(), 1);
}

#[test]
fn a_file_whose_descriptors_end_early_is_an_error_and_no_zeros() {
    let (mut image, _) = made(Ground::Physical);
    let at = (PARTITION as usize + 6) * BLOCK;
    let bytes = entry(5, 1, 3 * 2048, &[long(2048, 72, 0), long(2048, 64, 0)].concat(), 4);
    put(&mut image, at, tagged(266, 6, bytes));
    let tree = try_open(&image).unwrap();
    let node = tree.lookup(tree.root(), b"long.bin").unwrap().unwrap();
    let mut buf = [0; 4096];
    assert_eq!(tree.read(node, &mut buf, 0).unwrap(), 4096);
    assert!(matches!(tree.read(node, &mut buf, 4096), Err(Error::Corrupt { .. })));
    assert!(tree.extent(node, 4096).unwrap().stored, "what cannot be read is no hole");
}

/// Goes through everything that an image shows, without looking at it.
fn exercise(tree: &dyn FileSystem) {
    let mut queue = vec![tree.root()];
    let mut left = 2000;
    let mut buf = vec![0; 65_536];
    while let (Some(dir), true) = (queue.pop(), left > 0) {
        let mut found = Vec::new();
        let _ = tree.read_dir(dir, 0, &mut |entry| {
            found.push((entry.node, entry.kind, entry.name.to_vec()));
            left -= 1;
            left > 0
        });
        for (node, kind, name) in found {
            let _ = tree.lookup(dir, &name);
            let size = tree.attributes(node).map(|attributes| attributes.size).unwrap_or(0);
            for offset in [0, size / 2, size.saturating_sub(10)] {
                let _ = tree.read(node, &mut buf, offset);
                let _ = tree.extent(node, offset);
                let _ = tree.place(node, offset);
            }
            let _ = tree.read_link(node);
            if kind == Kind::Directory {
                queue.push(node);
            }
        }
    }
    for check in tree.checks() {
        if let Proof::Walk(walk) = check.proof {
            let _ = walk();
        }
    }
}

/// Bytes are changed where structures are, and the tag is made right again, so that the fields behind it count.
#[test]
fn thousands_of_damaged_volumes_neither_stop_nor_stall_the_decoder() {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let images: Vec<Vec<u8>> = GROUNDS.map(|ground| made(ground).0).to_vec();
    let mut opened = 0;
    for turn in 0..4000 {
        let mut image = images[turn % images.len()].clone();
        let used: Vec<usize> = (0..image.len() / BLOCK)
            .filter(|block| image[block * BLOCK..][..16].iter().any(|byte| *byte != 0))
            .collect();
        for _ in 0..1 + random(3) {
            let block = used[random(used.len())] * BLOCK;
            for _ in 0..1 + random(4) {
                let value = [0, 0xff, 0x80, 1, 2, random(256) as u8][random(6)];
                image[block + random(600)] = value;
            }
            let len = usize::from(u16::from_le_bytes([image[block + 10], image[block + 11]]));
            let id = u16::from_le_bytes([image[block], image[block + 1]]);
            if len + 16 <= BLOCK && (1..10).chain(256..270).any(|known| known == id) {
                let location = u32::from_le_bytes(image[block + 12..block + 16].try_into().unwrap());
                let fixed = tagged(id, location, image[block..block + 16 + len].to_vec());
                put(&mut image, block, fixed);
            }
        }
        let started = Instant::now();
        let device: Device = Arc::new(Memory::new(image, 512));
        if let Ok(Some((_, tree))) = filesystem::open(&device, &Options::default()) {
            opened += 1;
            exercise(tree.as_ref());
        }
        assert!(started.elapsed() < Duration::from_secs(10), "turn {turn}");
    }
    assert!(opened > 1000, "{opened}");
}

#[test]
fn descriptors_that_lead_in_a_circle_and_endless_sizes_end() {
    let (image, _) = made(Ground::Physical);
    let place = |block: u32| (PARTITION + block) as usize * BLOCK;
    // A list that goes on in itself, of extents without end.
    let mut circle = image.clone();
    let list = [short(1 << 30 | 2048, 0), short(3 << 30 | 2048, 5)].concat();
    let mut bytes = vec![0; 24];
    put(&mut bytes, 20, le32(list.len() as u32));
    bytes.extend(list);
    put(&mut circle, place(5), tagged(258, 5, bytes));
    put(&mut circle, place(4), tagged(266, 4, entry(5, 0, 1 << 60, &short(3 << 30 | 2048, 5), 4)));
    // A directory of more bytes than the volume has; an entry that replaces itself.
    put(&mut circle, place(9), tagged(266, 9, entry(4, 0, 1 << 50, &short(0x3fff_f800, 13), 4)));
    let mut indirect = vec![0; 52];
    put(&mut indirect, 36, long(2048, 10, 0));
    put(&mut circle, place(11), tagged(259, 11, indirect));
    let started = Instant::now();
    let tree = try_open(&circle).unwrap();
    exercise(tree.as_ref());
    for (name, reads) in [("chain.bin", true), ("linked.txt", false)] {
        let node = tree.lookup(tree.root(), name.as_bytes()).unwrap().unwrap();
        let mut buf = [0; 16];
        let read = tree.read(node, &mut buf, if reads { 1 << 59 } else { 0 });
        assert!(matches!(read, Err(Error::Corrupt { .. })), "{name}: {read:?}");
    }
    let dir = tree.lookup(tree.root(), "€uro".as_bytes()).unwrap().unwrap();
    assert!(rows(tree.as_ref(), dir).is_err());
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn tables_of_a_virtual_partition_that_go_on_in_circles_are_given_up_soon() {
    let (mut image, _) = made(Ground::Virtual);
    let place = |block: u32| (PARTITION + block) as usize * BLOCK;
    let list = [short(1 << 30 | 2048, 0), short(3 << 30 | 2048, 5)].concat();
    let mut bytes = vec![0; 24];
    put(&mut bytes, 20, le32(list.len() as u32));
    bytes.extend(list);
    put(&mut image, place(5), tagged(258, 5, bytes));
    for block in 300..600 {
        let table = entry(248, 0, 1 << 60, &short(3 << 30 | 2048, 5), 4);
        put(&mut image, place(block), tagged(266, block, table));
    }
    let anchor = image[256 * BLOCK..][..512].to_vec();
    put(&mut image, place(599), tagged(2, PARTITION + 599, anchor));
    let started = Instant::now();
    assert!(matches!(try_open(&image), Err(Error::Corrupt { .. })));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[test]
fn a_hundred_thousand_names_are_listed_and_looked_up_in_linear_time() {
    let (mut image, _) = made(Ground::Physical);
    let names: Vec<String> = (0..100_000).map(|index| format!("name {index:06}.txt")).collect();
    let rows: Vec<u8> =
        names.iter().flat_map(|name| identifier(0, &[b"\x08", name.as_bytes()].concat(), 3, 0)).collect();
    let first = image.len() / BLOCK;
    image.extend_from_slice(&rows);
    image.resize(image.len().next_multiple_of(BLOCK) + 100 * BLOCK, 0);
    let extent = long(rows.len() as u32, first as u32 - PARTITION, 0);
    let at = (PARTITION as usize + 9) * BLOCK;
    put(&mut image, at, tagged(266, 9, entry(4, 1, rows.len() as u64, &extent, 4)));
    let tree = try_open(&image).unwrap();
    let dir = tree.lookup(tree.root(), "€uro".as_bytes()).unwrap().unwrap();
    let started = Instant::now();
    // As the kernel asks: a few rows at a time, from where the last ones ended.
    let (mut listed, mut cursor) = (Vec::new(), 0);
    loop {
        let before = listed.len();
        tree.read_dir(dir, cursor, &mut |entry| {
            listed.push(String::from_utf8_lossy(&entry.name).into_owned());
            cursor = entry.next;
            listed.len() < before + 60
        })
        .unwrap();
        if listed.len() == before {
            break;
        }
    }
    assert_eq!(listed, names);
    let node = tree.lookup(tree.root(), b"embedded.txt").unwrap();
    assert!(names.iter().all(|name| tree.lookup(dir, name.as_bytes()).unwrap() == node));
    assert_eq!(tree.lookup(dir, b"name 100000.txt").unwrap(), None);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

/// In the UDF of its later sessions genisoimage leaves the files of the earlier ones empty.
#[test]
fn of_a_disc_of_two_sessions_the_last_is_shown_with_the_bytes_of_both() {
    let folder = Folder::new();
    run(
        &folder,
        "genisoimage",
        "mkdir a b; echo one > a/one.txt; echo two > b/two.txt
         genisoimage -quiet -udf -R -V FIRST -o 1.iso a 2>/dev/null
         start=$(( ($(stat -c %s 1.iso) / 2048 + 31) / 32 * 32 )); truncate -s $((start * 2048)) 1.iso
         genisoimage -quiet -udf -R -V SECOND -C 0,$start -M 1.iso -o 2.iso b 2>/dev/null; cat 1.iso 2.iso > both.iso",
    );
    let both = Tree::from([
        ("one.txt".into(), (Kind::File, b"one\n".to_vec())),
        ("two.txt".into(), (Kind::File, b"two\n".to_vec())),
    ]);
    with_image(&folder.join("both.iso"), &Options::default(), |_, tree| assert_eq!(walk(tree), both));
    // UDF is of the same session.
    with_image(&folder.join("both.iso"), &Options { norock: true, ..Options::default() }, |name, tree| {
        assert_eq!((name, tree.summary().label.as_deref()), ("udf", Some("SECOND")));
        assert!(tree.lookup(tree.root(), b"two.txt").unwrap().is_some());
    });
    let first = Options { norock: true, session: Some(0), ..Options::default() };
    with_image(&folder.join("both.iso"), &first, |name, tree| {
        assert_eq!((name, tree.summary().label.as_deref()), ("udf", Some("FIRST")));
        assert_eq!(walk(tree).into_keys().collect::<Vec<_>>(), ["one.txt"]);
    });
}
