//! Small images whose fields claim much: the program answers them soon and in little memory.

use std::process::Command;

use imgfs::container;

use super::MEMORY;
use crate::optical::{Folder, options};
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
