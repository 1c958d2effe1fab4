//! The overlay against qemu-img and qemu-io, against a model in memory, and against power cuts.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use imgfs::device::file::HostFile;
use imgfs::device::memory::Memory;
use imgfs::device::overlay::store::{HostStore, MemoryStore, Store};
use imgfs::device::overlay::{self, Base, Options, Overlay, apply_patch};
use imgfs::device::{BlockDevice, BlockWrite, Device};
use imgfs::error::{Error, Result};
use sha2::{Digest, Sha256};

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("imgfs-overlay-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Runs one of qemu's tools; a file that it writes may have 1 GB.
fn qemu(tool: &str, arguments: &[&str]) -> Output {
    let script = format!("ulimit -f 2000000; exec {tool} \"$@\"");
    let output = Command::new("sh").args(["-c", &script, tool]).args(arguments).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!message.contains("not found"), "{tool} is missing: install the Debian package qemu-utils");
    output
}

fn qemu_ok(tool: &str, arguments: &[&str]) -> String {
    let output = qemu(tool, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{tool} {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end.max(1)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

fn seeded(seed: u64) -> Random {
    Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
}

fn base_of(path: &Path) -> Base {
    Base { disk: Arc::new(HostFile::open(path).unwrap()), path: path.to_owned(), format: "raw".to_owned() }
}

/// A base of random bytes with holes.
fn make_base(path: &Path, size: usize, seed: u64) -> Vec<u8> {
    let mut random = seeded(seed);
    let mut bytes = random.bytes(size);
    for _ in 0..3 {
        let start = random.below(size as u64) as usize;
        let end = (start + random.below(size as u64 / 4) as usize).min(size);
        bytes[start..end].fill(0);
    }
    std::fs::write(path, &bytes).unwrap();
    bytes
}

fn hash(path: &Path) -> Vec<u8> {
    Sha256::digest(std::fs::read(path).unwrap()).to_vec()
}

fn read_all(device: &dyn BlockDevice) -> Vec<u8> {
    let mut buf = vec![0; device.size() as usize];
    device.read_bulk_at(&mut buf, 0).unwrap();
    buf
}

fn check_clean(path: &Path) {
    let output = qemu("qemu-img", &["check", "-f", "qcow2", text(path)]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(0), "{said}");
    let report = overlay::check(path).unwrap();
    assert_eq!((report.error_count, report.leaks), (0, 0), "{:?}", report.errors);
}

/// What `qemu-img convert` makes of the overlay, cut to the exact size (qemu rounds up to sectors).
fn flat_by_qemu(folder: &Folder, path: &Path, size: usize) -> Vec<u8> {
    let flat = folder.path("flat.by-qemu");
    qemu_ok("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", text(path), text(&flat)]);
    let mut bytes = std::fs::read(&flat).unwrap();
    std::fs::remove_file(flat).unwrap();
    assert_eq!(bytes.len(), size.next_multiple_of(512));
    assert!(bytes.split_off(size).iter().all(|byte| *byte == 0));
    bytes
}

/// One random write, done to the overlay and to the model.
fn random_write(random: &mut Random, model: &mut [u8], write: &mut dyn FnMut(&[u8], u64) -> Result<()>) {
    let size = model.len() as u64;
    let most = [3, 600, 5_000, 40_000][random.below(4) as usize];
    let mut offset = random.below(size);
    let mut len = (1 + random.below(most)).min(size - offset);
    if random.below(3) == 0 {
        offset = offset / 512 * 512;
        len = (len.div_ceil(512) * 512).min(size - offset);
    }
    let data = if random.below(6) == 0 { vec![0; len as usize] } else { random.bytes(len as usize) };
    write(&data, offset).unwrap();
    model[offset as usize..(offset + len) as usize].copy_from_slice(&data);
}

#[test]
fn random_operations_agree_with_a_model_and_with_qemu() {
    let sizes = [737_280, 1_474_560, 1_000, 3_000_001, 9 << 20, 4 << 20];
    for seed in 0..12 {
        let folder = Folder::new("model");
        let (disk, file) = (folder.path("disk.img"), folder.path("disk.img.overlay.qcow2"));
        let size = sizes[seed as usize % sizes.len()];
        let mut model = make_base(&disk, size, seed);
        let before = hash(&disk);
        let mut random = seeded(seed + 100);
        let mut overlay = Overlay::create(&file, &base_of(&disk), &Options::default()).unwrap();
        for step in 0..600 {
            match random.below(12) {
                0..5 => random_write(&mut random, &mut model, &mut |data, at| overlay.write_all_at(data, at)),
                5 => overlay.flush().unwrap(),
                6 if step % 10 == 0 => {
                    overlay.close().unwrap();
                    check_clean(&file);
                    overlay = Overlay::open(&file, &base_of(&disk), &Options::default()).unwrap();
                }
                _ => {
                    let at = random.below(size as u64) as usize;
                    let len = (random.below(70_000) as usize).min(size - at);
                    let mut buf = vec![1; len];
                    overlay.read_exact_at(&mut buf, at as u64).unwrap();
                    assert!(buf == model[at..at + len], "seed {seed} step {step}: {len} bytes at {at}");
                }
            }
        }
        assert!(read_all(&overlay) == model, "seed {seed}");
        overlay.close().unwrap();
        check_clean(&file);
        assert!(flat_by_qemu(&folder, &file, size) == model, "seed {seed}: qemu-img convert");
        let again = Overlay::open(&file, &base_of(&disk), &Options::default()).unwrap();
        assert_eq!((again.size(), again.statistics().flushes), (size as u64, 0));
        assert!(read_all(&again) == model, "seed {seed}: reopened");
        assert_eq!(hash(&disk), before, "the base was changed");
    }
}
