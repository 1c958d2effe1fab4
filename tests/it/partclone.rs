//! partclone and ddrescue: images that hold, or that read, only a part of a disk.

use std::path::Path;

use imgfs::container::{self, Options};
use imgfs::error::Error;

use super::optical::{Folder, damage, decoded, options, read_disk, run, sha256};

/// An ext4 file system with a file in it, of so many KiB.
fn ext4(folder: &Folder, kib: u32, block_size: &str) -> Vec<u8> {
    let tree = folder.path("tree");
    std::fs::create_dir_all(&tree).unwrap();
    let noise: Vec<u8> = (0..1_500_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(tree.join("noise"), noise).unwrap();
    std::fs::write(tree.join("text"), "words ".repeat(5000)).unwrap();
    let _ = std::fs::remove_file(folder.path("fs.img"));
    let size = format!("{kib}");
    run(folder, "mke2fs", "e2fsprogs", &["-q", "-F", "-t", "ext4", "-b", block_size, "-d", "tree", "fs.img", &size]);
    std::fs::read(folder.path("fs.img")).unwrap()
}

fn partclone(folder: &Folder, more: &[&str]) {
    let _ = std::fs::remove_file(folder.path("fs.pc"));
    let arguments = [&["-c", "-q", "-s", "fs.img", "-o", "fs.pc", "-L", "log"][..], more].concat();
    run(folder, "partclone.ext4", "partclone", &arguments);
}

/// An NTFS volume with a file in it.
fn ntfs(folder: &Folder, size: u64, cluster: &str) {
    let volume = std::fs::File::create(folder.path("ntfs.img")).unwrap();
    volume.set_len(size).unwrap();
    run(folder, "mkntfs", "ntfs-3g", &["-q", "-F", "-c", cluster, "-L", "clusters", "ntfs.img"]);
    let noise: Vec<u8> = (0..700_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    folder.write("noise", &noise);
    run(folder, "ntfscp", "ntfs-3g", &["-q", "ntfs.img", "noise", "noise"]);
}

#[test]
fn clusters_of_ntfsclone_are_as_it_restores_them() {
    let folder = Folder::new("ntfsclone");
    for (size, cluster) in [(8 << 20, "4096"), ((10 << 20) + 1536, "1024"), (12 << 20, "65536"), (9 << 20, "512")] {
        ntfs(&folder, size, cluster);
        run(&folder, "ntfsclone", "ntfs-3g", &["-s", "-f", "-O", "ntfs.special", "ntfs.img"]);
        let _ = std::fs::remove_file(folder.path("restored"));
        run(&folder, "ntfsclone", "ntfs-3g", &["-r", "-f", "-o", "restored", "ntfs.special"]);
        let restored = std::fs::read(folder.path("restored")).unwrap();
        assert_eq!(restored.len() as u64, size);
        let path = folder.path("ntfs.special");
        let opened = super::optical::open(&path).unwrap();
        assert_eq!(opened.format, "ntfsclone");
        assert!(opened.notes.iter().all(|note| !note.contains("cut off")), "{:?}", opened.notes);
        assert!(read_disk(&opened).unwrap() == restored, "{size} {cluster}");
        // Packed, as Clonezilla keeps it.
        run(&folder, "gzip", "gzip", &["-kf", "ntfs.special"]);
        let opened = container::open(&folder.path("ntfs.special.gz"), &options()).unwrap();
        assert_eq!(opened.format, "ntfsclone");
        assert!(read_disk(&opened).unwrap() == restored, "{size} {cluster}, packed");
    }
    // Cut off: what is there can be read, and what is not is an error.
    let mut image = std::fs::read(folder.path("ntfs.special")).unwrap();
    image.truncate(image.len() / 2);
    let opened = container::open(&folder.write("cut", &image), &options()).unwrap();
    assert!(opened.notes.iter().any(|note| note.contains("cut off")), "{:?}", opened.notes);
    let mut sector = [0; 512];
    opened.disk.read_exact_at(&mut sector, 0).unwrap();
    assert_eq!(&sector[3..7], b"NTFS");
    let error = opened.disk.read_exact_at(&mut sector, opened.disk.size() - 512).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    image.truncate(60_000);
    damage(&folder.write("little", &image));
}

#[test]
fn blocks_in_use_are_as_partclone_restores_them_and_the_others_are_zeros() {
    let folder = Folder::new("partclone");
    // partclone takes seconds for each, whatever the size.
    for (kib, block_size, more) in [
        (4096, "1024", &[][..]),
        (4096, "1024", &["-a", "0"]),
        (9_001, "1024", &["-a", "1", "-k", "16"]),
        (12_000, "4096", &["-k", "1"]),
    ] {
        let bytes = ext4(&folder, kib, block_size);
        partclone(&folder, more);
        let before = sha256(&std::fs::read(folder.path("fs.pc")).unwrap());
        let opened = container::open(&folder.path("fs.pc"), &options()).unwrap();
        assert_eq!(opened.format, "partclone");
        let disk = read_disk(&opened).unwrap();
        assert_eq!(disk.len() as u64, opened.disk.size());
        assert_eq!(before, sha256(&std::fs::read(folder.path("fs.pc")).unwrap()), "the image was changed");
        // Zeros before it is written to, as a new disk has them.
        folder.write("restored.img", &vec![0; bytes.len()]);
        run(&folder, "partclone.restore", "partclone", &["-q", "-C", "-s", "fs.pc", "-O", "restored.img", "-L", "log"]);
        let mut restored = std::fs::read(folder.path("restored.img")).unwrap();
        restored.resize(disk.len(), 0);
        assert!(disk == restored, "{kib} {block_size} {more:?}");
        assert!(opened.notes.iter().any(|note| note.contains("zeros")), "{:?}", opened.notes);
        // The file system in it is whole.
        let image = imgfs::stack::Image::open(&folder.path("fs.pc"), &imgfs::stack::Options::default()).unwrap();
        let imgfs::stack::Tree::Open { tree, .. } = &image.main_part().unwrap().tree else { panic!("no tree") };
        let node = tree.lookup(tree.root(), b"text").unwrap().unwrap();
        let mut text = vec![0; 30_000];
        assert_eq!(tree.read(node, &mut text, 0).unwrap(), 30_000);
        assert_eq!(text, "words ".repeat(5000).as_bytes());
    }
}

#[test]
fn a_block_that_was_changed_is_an_error_of_the_blocks_under_its_checksum_alone() {
    let folder = Folder::new("partclone");
    // Of each checksum alone, and of all blocks before it.
    for more in [&["-a", "1", "-k", "16"][..], &["-a", "1", "-k", "16", "-K"]] {
        ext4(&folder, 4096, "1024");
        partclone(&folder, more);
        let mut bytes = std::fs::read(folder.path("fs.pc")).unwrap();
        let expected = decoded(&folder.path("fs.pc"));
        let at = bytes.len() / 2;
        bytes[at] ^= 4;
        let opened = container::open(&folder.write("bad.pc", &bytes), &options()).unwrap();
        let mut bad = 0;
        for (i, want) in expected.chunks(1024).enumerate() {
            let mut block = vec![0; want.len()];
            match opened.disk.read_exact_at(&mut block, i as u64 * 1024) {
                Ok(()) => assert!(block == want, "block {i}"),
                Err(error) => {
                    assert!(error.to_string().contains("16 blocks before the checksum at byte"), "{error}");
                    bad += 1;
                }
            }
        }
        assert_eq!(bad, 16, "{more:?}");
    }
}

/// As partclone before 0.3 wrote it (IMAGE_FORMATS.md).
fn version_1(blocks: &[Option<[u8; 1024]>]) -> Vec<u8> {
    let mut bytes = [&b"partclone-imageEXTFS"[..], &[0; 10], b"0001", &[0; 2]].concat();
    bytes.extend(1024u32.to_le_bytes());
    let used = blocks.iter().flatten().count();
    for number in [blocks.len() * 1024, blocks.len(), used] {
        bytes.extend((number as u64).to_le_bytes());
    }
    bytes.resize(4160, 0);
    bytes.extend(blocks.iter().map(|block| u8::from(block.is_some())));
    bytes.extend(b"BiTmAgIc");
    for block in blocks.iter().flatten() {
        bytes.extend([&block[..], &[1, 2, 3, 4]].concat());
    }
    bytes
}

#[test]
fn version_1_has_a_checksum_behind_each_block() {
    let folder = Folder::new("partclone");
    let blocks: Vec<_> = (0..9000u32).map(|n| (n % 7 < 3).then_some([n as u8 | 1; 1024])).collect();
    let expected: Vec<u8> = blocks.iter().flat_map(|block| block.unwrap_or([0; 1024])).collect();
    assert!(decoded(&folder.write("old.pc", &version_1(&blocks))) == expected);
}

#[test]
fn damaged_partclone_images_are_errors_and_nothing_worse() {
    let folder = Folder::new("partclone");
    let blocks: Vec<_> = (0..64u32).map(|n| (n % 7 < 3).then_some([n as u8; 1024])).collect();
    damage(&folder.write("old.pc", &version_1(&blocks)));
    ext4(&folder, 4096, "1024");
    partclone(&folder, &[]);
    let whole = std::fs::read(folder.path("fs.pc")).unwrap();
    // A short image keeps the thousand copies small.
    damage(&folder.write("new.pc", &whole[..200_000]));
}

fn read(path: &Path, options: &Options, offset: u64) -> Result<u8, Error> {
    let mut byte = [0];
    container::open(path, options)?.disk.read_exact_at(&mut byte, offset).map(|()| byte[0])
}

#[test]
fn what_ddrescue_did_not_read_is_an_error_or_zeros() {
    let folder = Folder::new("ddrescue");
    let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n / 1000) as u8 | 1).collect();
    folder.write("source", &bytes);
    // Only the middle is read; what lies before it stays a hole.
    run(
        &folder,
        "ddrescue",
        "gddrescue",
        &["-q", "-i", "100000", "-s", "500000", "source", "disk.img", "disk.img.map"],
    );
    let path = folder.path("disk.img");
    let opened = container::open(&path, &options()).unwrap();
    assert_eq!((opened.format, opened.disk.size()), ("ddrescue", 600_000));
    assert_eq!(opened.fact("rescued"), Some("500000 of 600000 bytes"));
    assert_eq!(opened.fact("bad range"), Some("100000 bytes at 0"));
    assert!(matches!(read(&path, &options(), 99_999), Err(Error::Io { .. })));
    assert_eq!(read(&path, &options(), 100_000).unwrap(), 101);
    let zeros = Options { bad_as_zeros: true, ..options() };
    assert_eq!((read(&path, &zeros, 99_999).unwrap(), read(&path, &zeros, 599_999).unwrap()), (0, bytes[599_999]));
    // The rest, and nothing is bad any more.
    run(&folder, "ddrescue", "gddrescue", &["-q", "source", "disk.img", "disk.img.map"]);
    assert!(decoded(&path) == bytes);
    // The other name, and a file of that name that is no map.
    std::fs::rename(folder.path("disk.img.map"), folder.path("disk.mapfile")).unwrap();
    assert_eq!(container::open(&path, &options()).unwrap().format, "ddrescue");
    folder.write("disk.mapfile", b"something else");
    assert_eq!(container::open(&path, &options()).unwrap().format, "raw");
    // Without a map no byte is doubted, and by force neither.
    folder.write("disk.map", b"# Mapfile. Created by GNU ddrescue version 1.27\n0 ? 1\n0 10 -\n10 999990 +\n");
    let raw = Options { format: Some("raw".to_owned()), ..options() };
    assert_eq!((read(&path, &raw, 5).unwrap(), read(&path, &options(), 5).is_err()), (1, true));
}

#[test]
fn a_map_is_applied_to_its_own_image_alone() {
    let folder = Folder::new("ddrescue");
    let bytes: Vec<u8> = (0..600_000u32).map(|n| (n / 1000) as u8 | 1).collect();
    folder.write("source", &bytes);
    let rescue = ["-q", "-i", "100000", "-s", "400000", "source", "disk.img", "disk.map"];
    run(&folder, "ddrescue", "gddrescue", &rescue);
    // It names the image, which is shorter than the map.
    let opened = container::open(&folder.path("disk.img"), &options()).unwrap();
    assert_eq!(opened.fact("bad range"), Some("100000 bytes at 0"));
    // Another file of that stem is not what was rescued, whether a container or not.
    folder.write("disk.iso", &bytes[..500_000]);
    assert!(decoded(&folder.path("disk.iso")) == bytes[..500_000]);
    run(&folder, "qemu-img", "qemu-utils", &["convert", "-f", "raw", "-O", "qcow2", "source", "disk.qcow2"]);
    read_disk(&container::open(&folder.path("disk.qcow2"), &options()).unwrap()).unwrap();
    // One of the map's size is, without a command line.
    let map = "# Mapfile. Created by GNU ddrescue version 1.27\n0 ? 1\n0 10 -\n10 499990 +\n";
    folder.write("disk.map", map.as_bytes());
    assert_eq!(
        container::open(&folder.path("disk.iso"), &options()).unwrap().fact("bad bytes"),
        Some("10 in 1 ranges")
    );
}

#[test]
fn a_map_is_found_by_what_people_call_it() {
    let bytes: Vec<u8> = (0..600_000u32).map(|n| (n / 1000) as u8 | 1).collect();
    // Read up to 500,000, but for the start; renamed, with the map, or not.
    for (map, image, renamed) in [
        ("disk.img.logfile", "disk.img", ""),
        ("mapfile", "disk.img", ""),
        ("rescue.log", "disk.img", ""),
        ("mapfile.map", "disk.raw", ""),
        ("disk.map", "disk.img", "mv disk.img new.img; mv disk.map new.map; md5sum new.img > new.md5"),
        ("disk.map", "disk.img", "mv disk.img new.img; mv disk.map new.img.map; touch new.txt"),
        ("disk.mapfile", "disk.img", "mv disk.img new.bin; mv disk.mapfile new.mapfile; gzip -k new.bin"),
    ] {
        let folder = Folder::new("ddrescue");
        folder.write("source", &bytes);
        let rescue = ["-q", "-i", "100000", "-s", "400000", "source", image, map];
        run(&folder, "ddrescue", "gddrescue", &rescue);
        run(&folder, "sh", "coreutils", &["-c", renamed]);
        let now = renamed.split(' ').nth(2).map_or(image, |name| name.trim_end_matches(';'));
        let opened = container::open(&folder.path(now), &options()).unwrap();
        assert_eq!(opened.fact("bad range"), Some("100000 bytes at 0"), "{map} {renamed}");
        assert!(read(&folder.path(now), &options(), 99_999).is_err());
        assert_eq!(read(&folder.path(now), &options(), 100_000).unwrap(), bytes[100_000], "{map} {renamed}");
    }
    // A map that names another image, or two images of one stem, of which it could be either's.
    let folder = Folder::new("ddrescue");
    folder.write("source", &bytes);
    run(&folder, "ddrescue", "gddrescue", &["-q", "-i", "100000", "-s", "400000", "source", "disk.img", "mapfile"]);
    folder.write("other.img", &bytes[..500_000]);
    assert_eq!(container::open(&folder.path("other.img"), &options()).unwrap().format, "raw");
    run(&folder, "sh", "coreutils", &["-c", "mv disk.img new.img; cp new.img new.raw; mv mapfile new.map"]);
    assert_eq!(container::open(&folder.path("new.raw"), &options()).unwrap().format, "raw");
}

#[test]
fn the_map_of_an_image_that_was_packed_since_is_applied_to_what_is_unpacked() {
    let folder = Folder::new("ddrescue");
    let bytes: Vec<u8> = (0..600_000u32).map(|n| (n / 1000) as u8 | 1).collect();
    folder.write("source", &bytes);
    for map in ["disk.img.map", "disk.map"] {
        let _ = std::fs::remove_file(folder.path("disk.img"));
        run(&folder, "ddrescue", "gddrescue", &["-q", "-i", "100000", "-s", "400000", "source", "disk.img", map]);
        run(&folder, "gzip", "gzip", &["-kf", "disk.img"]);
        run(&folder, "xz", "xz-utils", &["-kf", "disk.img"]);
        for packed in ["disk.img.gz", "disk.img.xz"] {
            let opened = container::open(&folder.path(packed), &options()).unwrap();
            assert_eq!(opened.fact("bad range"), Some("100000 bytes at 0"), "{packed} {map}");
            assert!(matches!(read(&folder.path(packed), &options(), 99_999), Err(Error::Io { .. })));
            assert_eq!(read(&folder.path(packed), &options(), 100_000).unwrap(), bytes[100_000]);
        }
        std::fs::remove_file(folder.path(map)).unwrap();
    }
}

#[test]
fn positions_in_a_map_are_moved_to_where_the_image_has_them() {
    let folder = Folder::new("ddrescue");
    let bytes: Vec<u8> = (0..600_000u32).map(|n| (n / 1000) as u8 | 1).collect();
    folder.write("source", &bytes);
    // A part of what is read becomes the whole image: nothing of it is bad.
    run(&folder, "ddrescue", "gddrescue", &["-qi", "100k", "-s400k", "-o", "0", "source", "part.img", "part.map"]);
    let opened = container::open(&folder.path("part.img"), &options()).unwrap();
    assert_eq!(opened.fact("rescued"), Some("400000 of 400000 bytes"));
    assert!(read_disk(&opened).unwrap() == bytes[100_000..500_000]);
    // Written further on than it was read.
    let late = ["-q", "--output-position=2s", "source", "late.img", "late.img.map"];
    run(&folder, "ddrescue", "gddrescue", &late);
    let opened = container::open(&folder.path("late.img"), &options()).unwrap();
    assert_eq!((opened.fact("bad range"), opened.disk.size()), (Some("1024 bytes at 0"), 601_024));
    // Without the command line nobody knows.
    let map = std::fs::read_to_string(folder.path("part.map")).unwrap();
    let map: Vec<&str> = map.lines().filter(|line| !line.contains("Command line")).collect();
    folder.write("part.img.map", map.join("\n").as_bytes());
    let opened = container::open(&folder.path("part.img"), &options()).unwrap();
    assert!(opened.notes.iter().any(|note| note.contains("(-o)")), "{:?}", opened.notes);
}

#[test]
fn a_container_in_an_image_with_a_map_is_opened_through_it() {
    let folder = Folder::new("ddrescue");
    folder.write("raw.img", &vec![7; 1 << 20]);
    run(&folder, "qemu-img", "qemu-utils", &["convert", "-f", "raw", "-O", "qcow2", "raw.img", "disk.qcow2"]);
    let size = std::fs::metadata(folder.path("disk.qcow2")).unwrap().len();
    let map =
        format!("# Mapfile. Created by GNU ddrescue version 1.27\n0 ? 1\n0 {} +\n{} 512 -\n", size - 512, size - 512);
    folder.write("disk.qcow2.map", map.as_bytes());
    let opened = container::open(&folder.path("disk.qcow2"), &options()).unwrap();
    assert_eq!(opened.format, "qcow2");
    opened.disk.read_exact_at(&mut [0; 512], 0).unwrap();
    assert!(read_disk(&opened).is_err());
}

#[test]
fn damaged_maps_are_errors_and_nothing_worse() {
    let folder = Folder::new("ddrescue");
    folder.write("disk.img", &[3; 4096]);
    let map = folder.write(
        "disk.img.map",
        b"# Mapfile. Created by GNU ddrescue version 1.27\n0 ? 1\n0 512 +\n512 512 -\n1024 0xc00 +\n",
    );
    let good = std::fs::read(&map).unwrap();
    let mut dice = super::optical::Dice(99);
    for _ in 0..1000 {
        let mut bytes = good.clone();
        for _ in 0..=dice.roll(3) {
            let at = dice.roll(bytes.len());
            bytes[at] = b"0123456789abcx+-?*/ \n#\xff"[dice.roll(23)];
        }
        folder.write("disk.img.map", &bytes);
        if let Ok(opened) = container::open(&folder.path("disk.img"), &options()) {
            let _ = opened.disk.read_exact_at(&mut [0; 4096], 0);
        }
    }
}
