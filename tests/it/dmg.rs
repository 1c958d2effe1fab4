//! Disk images of the Macintosh: those that Macs made (in the corpus), and those that the writer
//! below makes of known disks, which dmg2img reads as well.
//!
//! Packages: dmg2img, xz-utils, bzip2.

use std::io::Write;

use imgfs::container::open;

use crate::disks::{
    MIB, Numbers, Scratch, assert_corpus, assert_image, assert_random, assert_steps, assert_survives, disk, refusal,
    sparse_disk,
};

/// How a run is packed: its type, and what packs it.
pub(crate) type Packer<'a> = (u32, &'a dyn Fn(&[u8]) -> Vec<u8>);

pub(crate) fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

pub(crate) fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut packer = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

pub(crate) fn lzfse(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    lzfse_rust::encode_bytes(bytes, &mut out).unwrap();
    out
}

/// Literals only, but for runs of one byte.
pub(crate) fn adc(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in bytes.chunks(64) {
        out.push(0x80 | (part.len().min(60) - 1) as u8);
        out.extend(&part[..part.len().min(60)]);
        if part.len() > 60 {
            // The last four, as a copy where they repeat what was there, else as literals.
            let (head, tail) = part.split_at(60);
            if part.len() == 64 && tail == &head[56..] {
                out.extend([0x40, 0, 3]);
            } else {
                out.push(0x80 | (tail.len() - 1) as u8);
                out.extend(tail);
            }
        }
    }
    out
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for part in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..1 + part.len()].copy_from_slice(part);
        let word = u32::from_be_bytes(word);
        for i in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * i) & 63) as usize] as char;
            out.push(if i <= part.len() { letter } else { '=' });
        }
    }
    out
}

/// A table of runs of 512 KiB, packed by each of `packers` in turn; zeros are not stored.
fn table(bytes: &[u8], packers: &[Packer<'_>], data: &mut Vec<u8>) -> Vec<u8> {
    let mut runs: Vec<u8> = Vec::new();
    let mut count = 0u32;
    let mut run = |kind: u32, start: usize, len: usize, at: usize, packed: usize| {
        runs.extend(kind.to_be_bytes().into_iter().chain([0; 4]));
        for n in [start / 512, len / 512, at, packed] {
            runs.extend((n as u64).to_be_bytes());
        }
        count += 1;
    };
    for (i, part) in bytes.chunks(1 << 19).enumerate() {
        let start = i << 19;
        if part.iter().all(|&byte| byte == 0) {
            run(if i % 2 == 0 { 0 } else { 2 }, start, part.len(), data.len(), 0);
            continue;
        }
        let (kind, packer) = packers[i % packers.len()];
        let packed = packer(part);
        run(kind, start, part.len(), data.len(), packed.len());
        // Runs without sectors exist.
        run(kind, start, 0, data.len(), 0);
        data.extend(packed);
    }
    run(0xffff_ffff, bytes.len(), 0, data.len(), 0);
    let mut table = b"mish\0\0\0\x01".to_vec();
    for n in [0, bytes.len() as u64 / 512, 0] {
        table.extend(n.to_be_bytes());
    }
    table.extend(2056u32.to_be_bytes());
    table.resize(200, 0);
    table.extend(count.to_be_bytes());
    table.extend(runs);
    table
}

/// Data fork, list or resource fork, trailer. `before` bytes stand before the data fork.
pub(crate) fn image(bytes: &[u8], packers: &[Packer<'_>], before: usize, resource_fork: bool) -> Vec<u8> {
    let mut data = Vec::new();
    let table = table(bytes, packers, &mut data);
    let mut out = vec![0x42; before];
    out.extend(&data);
    let list = if resource_fork {
        let mut fork = Vec::new();
        let map = 256 + 4 + table.len() as u32;
        for n in [256, map, 4 + table.len() as u32, 50] {
            fork.extend(u32::to_be_bytes(n));
        }
        fork.resize(256, 0);
        fork.extend((table.len() as u32).to_be_bytes());
        fork.extend(&table);
        fork.extend([0; 24]);
        // Types from byte 28 of the map: one, of one resource, whose list follows.
        fork.extend([0, 28, 0, 50, 0, 0]);
        fork.extend(b"blkx\0\0\0\x0a");
        fork.extend([0; 12]);
        fork
    } else {
        let data = base64(&table);
        format!(
            "<?xml version=\"1.0\"?>\n<plist version=\"1.0\"><dict><key>resource-fork</key><dict><key>blkx</key>\n<array>\
             <dict><key>Attributes</key><string>0x0050</string><key>CFName</key><string>whole disk</string>\
             <key>Data</key><data>\n{data}\n</data><key>ID</key><string>0</string><key>Name</key>\
             <string>whole disk</string></dict></array></dict></dict></plist>\n"
        )
        .into_bytes()
    };
    let list_at = out.len() as u64;
    out.extend(&list);
    let mut trailer = b"koly\0\0\0\x04\0\0\x02\0\0\0\0\x01".to_vec();
    let place = (list_at, list.len() as u64);
    let (fork, xml) = if resource_fork { (place, (0, 0)) } else { ((0, 0), place) };
    for n in [0, before as u64, data.len() as u64, fork.0, fork.1] {
        trailer.extend(n.to_be_bytes());
    }
    trailer.extend([0, 0, 0, 1, 0, 0, 0, 1]);
    trailer.resize(216, 0);
    for n in [xml.0, xml.1] {
        trailer.extend(n.to_be_bytes());
    }
    trailer.resize(488, 0);
    trailer.extend(1u32.to_be_bytes());
    trailer.extend((bytes.len() as u64 / 512).to_be_bytes());
    trailer.resize(512, 0);
    out.extend(trailer);
    out
}

pub(crate) fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

pub(crate) const RAW: u32 = 1;
pub(crate) const ADC: u32 = 0x8000_0004;
pub(crate) const ZLIB: u32 = 0x8000_0005;
pub(crate) const BZIP2: u32 = 0x8000_0006;
pub(crate) const LZFSE: u32 = 0x8000_0007;
pub(crate) const LZMA: u32 = 0x8000_0008;

/// Packs through a tool.
pub(crate) fn xz(scratch: &Scratch, bytes: &[u8]) -> Vec<u8> {
    scratch.write("part", bytes);
    scratch.sh("xz-utils", "xz -0 -kfc part > part.xz");
    std::fs::read(scratch.path("part.xz")).unwrap()
}

#[test]
fn every_kind_of_run() {
    for size in [8 * MIB, 10 * MIB + 1536] {
        let scratch = Scratch::new();
        let bytes = disk(size);
        let lzma = |bytes: &[u8]| xz(&scratch, bytes);
        let all: [Packer<'_>; 6] =
            [(RAW, &plain), (ADC, &adc), (ZLIB, &zlib), (BZIP2, &bzip2), (LZFSE, &lzfse), (LZMA, &lzma)];
        for (name, packers) in [("each", &all[..]), ("raw", &all[..1]), ("zlib", &all[2..3]), ("bzip2", &all[3..4])] {
            let path = scratch.write(name, &image(&bytes, packers, 0, false));
            assert_image(&path, "dmg", &bytes, &scratch.options());
            if name == "zlib" {
                scratch.sh("dmg2img", &format!("dmg2img {name} oracle > /dev/null"));
                let oracle = std::fs::read(scratch.path("oracle")).unwrap();
                // It leaves out what comes after its last full buffer.
                assert!(oracle.len() >= bytes.len() - (1 << 20) && bytes.starts_with(&oracle), "dmg2img");
            }
        }
    }
}

#[test]
fn a_data_fork_that_starts_later_and_tables_in_a_resource_fork() {
    let scratch = Scratch::new();
    let bytes = disk(3 * MIB);
    for (before, fork) in [(5000, false), (0, true), (512, true)] {
        let path = scratch.write("d.dmg", &image(&bytes, &[(ZLIB, &zlib), (RAW, &plain)], before, fork));
        assert_image(&path, "dmg", &bytes, &scratch.options());
    }
}

#[test]
fn the_trailer_wins_over_what_the_data_begin_with() {
    let scratch = Scratch::new();
    let bytes = crate::disks::Numbers(4).bytes(1 << 20);
    let lzma = |bytes: &[u8]| xz(&scratch, bytes);
    for (name, packer) in [("bz", (BZIP2, &bzip2 as &dyn Fn(&[u8]) -> Vec<u8>)), ("xz", (LZMA, &lzma))] {
        let image = image(&bytes, &[packer], 0, false);
        assert!(image.starts_with(if name == "bz" { b"BZh" } else { b"\xfd7z" }));
        assert_image(&scratch.write(name, &image), "dmg", &bytes, &scratch.options());
    }
}

#[test]
fn a_sparse_disk_of_192_mib_is_told_from_its_holes() {
    let scratch = Scratch::new();
    let bytes = sparse_disk();
    let path = scratch.write("s.dmg", &image(&bytes, &[(ZLIB, &zlib)], 0, false));
    let opened = open(&path, &scratch.options()).unwrap();
    assert!(!opened.disk.extent(20 << 20).unwrap().stored);
    assert_random("sparse", opened.disk.as_ref(), &bytes, 20);
    assert_steps("sparse", opened.disk.as_ref(), &bytes, MIB);
}

/// A stored run behind a packed one, their table in a resource fork, and where the table's rows are.
fn two_runs() -> (Vec<u8>, usize) {
    let bytes = Numbers(9).bytes(3 << 19);
    let image = image(&bytes, &[(ZLIB, &zlib), (RAW, &plain)], 0, true);
    let table = image.windows(4).rposition(|bytes| bytes == b"mish").unwrap();
    (image, table + 204)
}

#[test]
fn a_run_that_claims_more_packed_bytes_than_any_packer_makes_is_refused() {
    let scratch = Scratch::new();
    let (mut image, rows) = two_runs();
    image[rows + 32..rows + 40].copy_from_slice(&(640u64 << 10).to_be_bytes());
    open(&scratch.write("long.dmg", &image), &scratch.options()).unwrap();
    image[rows + 32..rows + 40].copy_from_slice(&((640u64 << 10) + 1).to_be_bytes());
    let said = refusal(&scratch.write("longer.dmg", &image), &scratch.options());
    assert!(said.contains("packed data longer than what is in it"), "{said}");
}

#[test]
fn sectors_that_no_run_describes_are_an_error_and_no_zeros() {
    let scratch = Scratch::new();
    let (mut image, rows) = two_runs();
    // The second run that has sectors becomes a comment.
    image[rows + 80..rows + 84].copy_from_slice(&0x7fff_fffe_u32.to_be_bytes());
    let opened = open(&scratch.write("gap.dmg", &image), &scratch.options()).unwrap();
    let mut sector = [0; 512];
    opened.disk.read_exact_at(&mut sector, (1 << 19) - 512).unwrap();
    let error = opened.disk.read_exact_at(&mut sector, 1 << 19).unwrap_err().to_string();
    assert!(error.contains("sectors that no run describes"), "{error}");
    opened.disk.read_exact_at(&mut sector, 1 << 20).unwrap();
}

#[test]
fn disk_copy_checksums_are_compared() {
    let scratch = Scratch::new();
    let bytes = disk(800 << 10);
    let tags = vec![7u8; 1600 * 12];
    let sum = |bytes: &[u8]| {
        let add = |sum: u32, word: &[u8; 2]| sum.wrapping_add(u16::from_be_bytes(*word).into()).rotate_right(1);
        bytes.as_chunks::<2>().0.iter().fold(0, add)
    };
    let mut image = b"\x07Letters".to_vec();
    image.resize(64, 0);
    for number in [bytes.len() as u32, tags.len() as u32, sum(&bytes), sum(&tags[12..])] {
        image.extend(number.to_be_bytes());
    }
    image.extend([1, 0x22, 1, 0]);
    image.extend(bytes.iter().chain(&tags));
    let opened = assert_image(&scratch.write("d.img", &image), "dc42", &bytes, &scratch.options());
    assert_eq!((opened.fact("name"), opened.notes.len()), (Some("Letters"), 0));
    assert!(opened.fact("checksum").unwrap().ends_with("verified"));
    image[1000] ^= 1;
    let opened = open(&scratch.write("d.img", &image), &scratch.options()).unwrap();
    assert!(opened.notes[0].contains("checksum"), "{:?}", opened.notes);
}

#[test]
fn aff_and_encrypted_images_are_refused_by_name() {
    let scratch = Scratch::new();
    let mut aff3 = b"AFF10\r\n\0".to_vec();
    aff3.resize(4096, 0);
    let said = refusal(&scratch.write("a.aff", &aff3), &scratch.options());
    assert!(said.contains("(AFF)") && said.contains("not supported"), "{said}");
    let mut aff4 = b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x15\0\0\0container.description".to_vec();
    aff4.resize(4096, 0);
    let said = refusal(&scratch.write("a.aff4", &aff4), &scratch.options());
    assert!(said.contains("(AFF4)"), "{said}");
    let mut old = vec![0; 8192];
    old.extend(b"cdsaencr");
    let said = refusal(&scratch.write("old.dmg", &old), &scratch.options());
    assert!(said.contains("encryption"), "{said}");
}

#[test]
fn the_corpus_decodes_to_its_recorded_hashes() {
    let encrypted = ("crates/dmgwiz/input_aes256.dmg", "encryption (version 2)");
    // Recorded is the partition alone; the five others made of this disk say what the whole is.
    let whole = ("crates/dmgwiz/input_lzma.dmg", "1407509ff44696aab011815d84951ad2c53cb7345a71d9803b73817c2d2d83cf");
    if let Some(compared) = assert_corpus(&["dmg"], &[encrypted], &[whole]) {
        assert!(compared >= 10, "{compared}");
    }
}

#[test]
fn damaged_files_are_answered_in_bounded_memory() {
    let scratch = Scratch::new();
    let bytes = disk(1 << 20);
    let lzma = |bytes: &[u8]| xz(&scratch, bytes);
    scratch.write("packed", &image(&bytes, &[(ZLIB, &zlib), (LZFSE, &lzfse)], 0, false));
    scratch.write("other", &image(&bytes, &[(ADC, &adc), (LZMA, &lzma)], 0, false));
    scratch.write("fork", &image(&bytes, &[(BZIP2, &bzip2), (RAW, &plain)], 0, true));
    let mut sparse = b"sprs\0\0\0\x03\0\0\0\x08\0\0\0\x01\0\0\0\x20".to_vec();
    sparse.resize(64, 0);
    for n in [1u32, 4, 2, 0] {
        sparse.extend(n.to_be_bytes());
    }
    sparse.resize(4096 + 3 * 4096, 5);
    sparse[80..4096].fill(0);
    scratch.write("sparse", &sparse);
    assert_survives(
        scratch.folder(),
        &[("dmg", "packed"), ("dmg", "other"), ("dmg", "fork"), ("sparseimage", "sparse")],
    );
}
