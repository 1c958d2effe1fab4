//! Small images whose fields claim much: the program answers them soon and in little memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use imgfs::container;

use super::MEMORY;
use crate::optical::{Folder, options, run};
use crate::program::{Said, imgfs, said};

/// Seconds that one command may take; the longest takes a part of one.
const SECONDS: u32 = 60;

/// Runs the program with the bounds of memory and time of a damaged image.
fn bounded(arguments: &[&str]) -> Said {
    let script = format!("ulimit -v {MEMORY}; ulimit -c 0; exec timeout {SECONDS} \"$@\"");
    let mut command = Command::new("bash");
    command.args(["-c", &script, "bounded"]).arg(imgfs().get_program()).args(arguments);
    let said = said(command.output().unwrap());
    assert!(matches!(said.code, Some(0..=2)), "imgfs {arguments:?}: {said:?}");
    said
}

/// `value` at `at`.
fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[test]
fn a_partclone_image_without_a_bitmap_is_no_larger_than_its_file() {
    let folder = Folder::new("claim-partclone");
    let blocks = 1u64 << 40;
    let mut bytes = vec![0; 110 + 4 * (512 + 4)];
    for (at, text) in [(0, &b"partclone-image"[..]), (16, b"0.3.20"), (30, b"0002\xde\xc0DD")] {
        put(&mut bytes, at, text);
    }
    for (at, number) in [(52, blocks * 512), (60, blocks), (68, blocks), (76, blocks)] {
        put(&mut bytes, at, &number.to_le_bytes());
    }
    put(&mut bytes, 84, &512u32.to_le_bytes());
    // Sizes and version; then CRC-32, of four bytes, behind each block alone; no bitmap.
    put(&mut bytes, 88, &[18, 0, 0, 0, 2, 0, 64, 0, 0x20, 0, 4, 0, 1, 0, 0, 0, 1, 0]);
    let checksum = !crc32fast::hash(&bytes[..106]);
    put(&mut bytes, 106, &checksum.to_le_bytes());
    for block in 0..4 {
        let sum = !crc32fast::hash(&[0; 512]);
        put(&mut bytes, 110 + block * 516 + 512, &sum.to_le_bytes());
    }
    let path = folder.write("dd.img", &bytes);
    let path = path.to_str().unwrap();
    let said = bounded(&["info", path]);
    assert!(said.out.contains("blocks in use are missing at its end"), "{said:?}");
    // The blocks that are there are compared and read; then a byte of the last is another.
    let mut disk = [1; 2048];
    container::open(&folder.path("dd.img"), &options()).unwrap().disk.read_exact_at(&mut disk, 0).unwrap();
    assert_eq!(disk, [0; 2048]);
    bytes[110 + 3 * 516] = 1;
    let opened = container::open(&folder.write("dd.img", &bytes), &options()).unwrap();
    let error = opened.disk.read_exact_at(&mut disk, 0).unwrap_err().to_string();
    assert!(error.contains("1 blocks before the checksum"), "{error}");
}

/// FAT32, of sectors as clusters: 16 files of 100 bytes, and the chain of each is every other cluster and
/// then the rest, or a ring of these.
fn chains_of_all_clusters(path: &Path, clusters: u32, ring: bool) {
    let table_sectors = (clusters + 2) * 4 / 512 + 1;
    let sectors = 32 + table_sectors + clusters;
    let mut bytes = vec![0; 512 * 32];
    put(&mut bytes, 0, b"\xeb\x58\x90MSDOS5.0\x00\x02\x01\x20\0\x01\0\0\0\0\xf8\0\0\x3f\0\xff\0");
    for (at, number) in [(32, sectors), (36, table_sectors), (44, 2)] {
        put(&mut bytes, at, &number.to_le_bytes());
    }
    put(&mut bytes, 48, &[1, 0, 6, 0]);
    put(&mut bytes, 64, b"\x80\0\x29\0\0\0\0NO NAME    FAT32   ");
    put(&mut bytes, 510, &[0x55, 0xaa]);
    let mut table = vec![0u32; table_sectors as usize * 128];
    table[..3].copy_from_slice(&[0x0fff_fff8, 0x0fff_ffff, 0x0fff_ffff]);
    let order: Vec<u32> = (3..clusters + 2).step_by(2).chain((4..clusters + 2).step_by(2)).collect();
    for pair in order.windows(2) {
        table[pair[0] as usize] = pair[1];
    }
    table[order[order.len() - 1] as usize] = if ring { 3 } else { 0x0fff_ffff };
    bytes.extend(table.iter().flat_map(|number| number.to_le_bytes()));
    for n in 0..16u16 {
        bytes.extend(format!("BIG{n:05}   \x20").bytes().chain([0; 12]).chain([0, 0x50]));
        bytes.extend((3 + 2 * n).to_le_bytes().into_iter().chain(100u32.to_le_bytes()));
    }
    std::fs::write(path, &bytes).unwrap();
    File::options().write(true).open(path).unwrap().set_len(u64::from(sectors) * 512).unwrap();
}

#[test]
fn of_a_chain_no_more_is_kept_than_its_file_has_use_for() {
    let folder = Folder::new("claim-fat");
    let path = folder.path("fat.img");
    for ring in [false, true] {
        chains_of_all_clusters(&path, 3_000_000, ring);
        let said = bounded(&["ls", "-l", &format!("{}:/disk", path.display())]);
        assert_eq!((said.code, said.out.matches("BIG000").count()), (Some(0), 16), "{said:?}");
        let file = bounded(&["cat", &format!("{}:/disk/BIG00007", path.display())]);
        assert_eq!((file.code, file.out.len()), (Some(0), 100), "{file:?}");
    }
}

/// exFAT, of sectors as clusters: four files of all the volume, and the chain of each is every other cluster and then
/// the rest, or goes round.
fn exfat_of_all_clusters(folder: &Folder, ring: bool) -> String {
    let path = folder.path("exfat.img").to_str().unwrap().to_owned();
    std::fs::write(&path, b"").unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    file.set_len(256 << 20).unwrap();
    run(folder, "mkfs.exfat", "exfatprogs", &["-c", "512", "exfat.img"]);
    let mut boot = [0; 512];
    file.read_exact_at(&mut boot, 0).unwrap();
    let field = |at: usize| u32::from_le_bytes(boot[at..at + 4].try_into().unwrap());
    let (table, heap, clusters, root) = (field(0x50), field(0x58), field(0x5c), field(0x60));
    let first = root + 1;
    let order: Vec<u32> = (first..clusters + 2).step_by(2).chain((first + 1..clusters + 2).step_by(2)).collect();
    let mut entries = vec![0u32; clusters as usize + 2];
    for pair in order.windows(2) {
        entries[pair[0] as usize] = pair[1];
    }
    entries[order[order.len() - 1] as usize] = if ring { first } else { u32::MAX };
    let entries: Vec<u8> = entries[first as usize..].iter().flat_map(|number| number.to_le_bytes()).collect();
    file.write_all_at(&entries, u64::from(table) * 512 + u64::from(first) * 4).unwrap();
    // As much as the heap has, which is a little more than the chain.
    let size = u64::from(clusters) * 512;
    let set = |n: u32| crate::exfat::entry_set(&format!("BIG{n:05}"), 0x20, 1, order[n as usize], size);
    let start = u64::from(heap + root - 2) * 512;
    file.write_all_at(&(0..4).flat_map(set).collect::<Vec<_>>(), start + 96).unwrap();
    path
}

#[test]
fn of_chains_that_have_all_clusters_one_is_kept() {
    let folder = Folder::new("claim-exfat");
    for ring in [false, true] {
        let path = exfat_of_all_clusters(&folder, ring);
        let said = bounded(&["ls", "-l", &format!("{path}:/disk")]);
        assert_eq!((said.code, said.out.matches("BIG0000").count()), (Some(0), 4), "{said:?}");
        let said = bounded(&["manifest", &format!("{path}:/disk")]);
        assert!(said.code == Some(1) && said.out.contains("BIG00003"), "{said:?}");
        let said = bounded(&["verify", &path]);
        assert!(said.code == Some(1) && said.out.contains(if ring { "leads back" } else { "shorter" }), "{said:?}");
    }
}

#[test]
fn groups_that_an_ext_volume_has_no_room_for_are_one_fault() {
    let folder = Folder::new("claim-ext");
    let features = "64bit,metadata_csum,^meta_bg,^has_journal,^resize_inode";
    let options = ["-q", "-F", "-t", "ext4", "-b", "1024", "-g", "256", "-N", "64", "-O", features];
    run(&folder, "mke2fs", "e2fsprogs", &[&options[..], &["fs.img", "1024"]].concat());
    let mut bytes = std::fs::read(folder.path("fs.img")).unwrap();
    // Blocks of four milliards of groups but one; then the checksum of the superblock.
    let blocks = u64::from(u32::MAX) * 256;
    put(&mut bytes, 1024 + 4, &(blocks as u32).to_le_bytes());
    put(&mut bytes, 1024 + 0x150, &((blocks >> 32) as u32).to_le_bytes());
    let sum = !crc32c::crc32c(&bytes[1024..1024 + 0x3fc]);
    put(&mut bytes, 1024 + 0x3fc, &sum.to_le_bytes());
    let path = folder.write("fs.img", &bytes);
    let said = bounded(&["verify", path.to_str().unwrap()]);
    assert!(said.out.contains("4294967291 of 4294967295 groups start past the end of the volume"), "{said:?}");
    assert!(said.out.contains("superblock checksum") && said.code == Some(1), "{said:?}");
}

/// A disc whose directories hold the next one twice each, so many levels deep.
fn doubling_disc(levels: u32) -> Vec<u8> {
    let both = |number: u32| [number.to_le_bytes(), number.to_be_bytes()].concat();
    let record = |sector: u32, name: &[u8]| {
        let mut record = vec![0; 33 + name.len() + (1 - name.len() % 2)];
        record[0] = record.len() as u8;
        put(&mut record, 2, &both(sector));
        put(&mut record, 10, &both(2048));
        put(&mut record, 18, &[120, 1, 1, 0, 0, 0, 0, 2]);
        put(&mut record, 28, &[1, 0, 0, 1, name.len() as u8]);
        put(&mut record, 33, name);
        record
    };
    let mut disc = vec![0; (18 + levels as usize) * 2048];
    put(&mut disc, 16 * 2048, b"\x01CD001\x01");
    put(&mut disc, 16 * 2048 + 80, &both(18 + levels));
    put(&mut disc, 16 * 2048 + 120, &[1, 0, 0, 1, 1, 0, 0, 1, 0, 8, 8, 0]);
    put(&mut disc, 16 * 2048 + 156, &record(18, b"\0"));
    put(&mut disc, 16 * 2048 + 881, b"\x01");
    put(&mut disc, 17 * 2048, b"\xffCD001\x01");
    for level in 0..levels {
        let sector = 18 + level;
        let mut rows = [record(sector, b"\0"), record(sector.max(19) - 1, b"\x01")].concat();
        if level + 1 < levels {
            rows.extend([record(sector + 1, b"A"), record(sector + 1, b"B")].concat());
        }
        put(&mut disc, sector as usize * 2048, &rows);
    }
    disc
}

#[test]
fn a_tree_of_directories_with_two_names_each_is_drawn_with_an_end() {
    let folder = Folder::new("claim-tree");
    let path = folder.write("disc.iso", &doubling_disc(40));
    for json in [&[][..], &["--json"]] {
        let said = bounded(&[&["tree", path.to_str().unwrap()], json].concat());
        assert!(said.code == Some(1) && said.out.len() < 4 << 20, "{:?} {}", said.code, said.out.len());
        assert!(said.out.contains("a directory with many names"), "{}", said.out);
        assert!(said.out.matches("many names").count() < 2_000);
    }
}

/// A qcow2 header of version 3 with clusters of 2 MiB, and what leads to its tables: size, L1, refcounts.
fn qcow2(size: u64, (l1_at, l1): (u64, u32), (counts_at, clusters): (u64, u32)) -> Vec<u8> {
    let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
    header.resize(20, 0);
    header.extend(21u32.to_be_bytes());
    header.extend(size.to_be_bytes());
    header.extend([[0; 4], l1.to_be_bytes()].concat());
    header.extend([l1_at, counts_at].iter().flat_map(|at| at.to_be_bytes()));
    header.extend(clusters.to_be_bytes());
    header.resize(99, 0);
    header.extend([4, 0, 0, 0, 104]);
    header
}

const CLUSTER: u64 = 2 << 20;

#[test]
fn an_l2_table_that_all_entries_lead_to_is_walked_once() {
    let folder = Folder::new("claim-qcow2");
    let entries = (CLUSTER / 8) as u32;
    let size = u64::from(entries) * (CLUSTER / 8) * CLUSTER;
    let (l2, data) = (CLUSTER * 4, CLUSTER * 5);
    let path = folder.write("disk.qcow2", &qcow2(size, (CLUSTER, entries), (CLUSTER * 2, 1)));
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(CLUSTER * 6).unwrap();
    file.write_all_at(&l2.to_be_bytes().repeat(entries as usize), CLUSTER).unwrap();
    // Every other cluster is one and the same.
    file.write_all_at(&[data.to_be_bytes(), [0; 8]].concat().repeat(entries as usize / 2), l2).unwrap();
    let said = bounded(&["verify", path.to_str().unwrap()]);
    assert!(said.code == Some(1) && said.out.contains("and counted 0 times"), "{said:?}");
}

#[test]
fn refcounts_of_what_lies_past_the_end_of_an_overlay_are_not_read() {
    let folder = Folder::new("claim-overlay");
    let blocks = 1u64 << 20;
    let mut header = qcow2(4 << 20, (CLUSTER, 1), (CLUSTER * 2, 4));
    put(&mut header, 8, &0x400u64.to_be_bytes());
    put(&mut header, 16, &5u32.to_be_bytes());
    header.resize(0x400, 0);
    header.extend(b"b.img");
    let path = folder.write("disk.ov", &header);
    folder.write("b.img", &[0; 4 << 20]);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len((8 + blocks) * CLUSTER).unwrap();
    let table: Vec<u8> = (0..blocks).flat_map(|index| ((8 + index) * CLUSTER).to_be_bytes()).collect();
    file.write_all_at(&table, CLUSTER * 2).unwrap();
    let said = bounded(&["overlay", "check", path.to_str().unwrap()]);
    assert_ne!(said.code, Some(0), "{said:?}");
}
