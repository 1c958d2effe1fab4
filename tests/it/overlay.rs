//! The overlay against qemu-img and qemu-io, against a model in memory, and against power cuts.

mod power;

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use imgfs::device::file::HostFile;
use imgfs::device::memory::Memory;
use imgfs::device::overlay::store::{HostStore, MemoryStore, Store};
use imgfs::device::overlay::{self, Base, Options, Overlay, apply_patch};
use imgfs::device::{BlockDevice, BlockWrite, Device};
use imgfs::error::{Error, Result};
use sha2::{Digest, Sha256};

use self::power::Limited;

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

#[test]
fn a_commit_to_a_new_image_is_sparse_whole_and_replaces_nothing() {
    let folder = Folder::new("new");
    let (disk, file) = (folder.path("disk.img"), folder.path("disk.overlay.qcow2"));
    let mut model = make_base(&disk, 8_000_001, 5);
    model[1 << 20..3 << 20].fill(0);
    std::fs::write(&disk, &model).unwrap();
    let before = hash(&disk);
    let overlay = Overlay::create(&file, &base_of(&disk), &Options::default()).unwrap();
    let mut random = seeded(7);
    for _ in 0..50 {
        random_write(&mut random, &mut model, &mut |data, at| overlay.write_all_at(data, at));
    }
    let (raw, qcow2) = (folder.path("new.img"), folder.path("new.qcow2"));
    let mut last = (0, 0);
    let mut progress = |done, total| {
        last = (done, total);
        Ok(())
    };
    overlay.commit_to_raw(&raw, &mut progress).unwrap();
    assert_eq!(last, (8_000_001, 8_000_001));
    assert!(std::fs::read(&raw).unwrap() == model);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&raw).unwrap()) * 512;
    assert!(blocks < 7_000_000, "{blocks} bytes are taken");
    overlay.commit_to_qcow2(&qcow2, &mut |_, _| Ok(())).unwrap();
    qemu_ok("qemu-img", &["check", "-f", "qcow2", text(&qcow2)]);
    assert!(flat_by_qemu(&folder, &qcow2, model.len()) == model);
    let error = overlay.commit_to_raw(&disk, &mut |_, _| Ok(())).unwrap_err().to_string();
    assert!(error.contains("exists"), "{error}");
    assert_eq!(hash(&disk), before, "the base was changed");
    let names = std::fs::read_dir(&folder.0).unwrap().count();
    assert_eq!(names, 4, "a temporary file was left");
}

#[test]
fn a_discard_leaves_an_empty_overlay_wherever_it_is_interrupted() {
    let folder = Folder::new("discard");
    let (disk, file, kept) = (folder.path("disk.img"), folder.path("o.qcow2"), folder.path("kept"));
    let bytes = make_base(&disk, 3 << 20, 5);
    let overlay = Overlay::create(&file, &base_of(&disk), &Options::default()).unwrap();
    let empty = std::fs::metadata(&file).unwrap().len();
    overlay.write_all_at(&vec![7; 1 << 20], 777).unwrap();
    overlay.close().unwrap();
    qemu_ok("cp", &[text(&file), text(&kept)]);
    let discard = |operations| {
        let store =
            Limited { store: Box::new(HostStore::open(&file).unwrap()), left: Arc::new(AtomicU64::new(operations)) };
        Overlay::open_in(Box::new(store), &file, &base_of(&disk), &Options::default()).unwrap().discard()
    };
    let mut operations = 0;
    loop {
        qemu_ok("cp", &[text(&kept), text(&file)]);
        let done = discard(operations).is_ok();
        let overlay = Overlay::open(&file, &base_of(&disk), &Options::default()).unwrap();
        let found = read_all(&overlay);
        assert!(found == bytes || (operations < 3 && found[777] == 7), "{operations} operations");
        overlay.close().unwrap();
        check_clean(&file);
        if done {
            break;
        }
        operations += 1;
    }
    assert!(operations > 5);
    assert_eq!(std::fs::metadata(&file).unwrap().len(), empty);
}

#[test]
fn overlays_that_qemu_writes_are_read_and_written_on() {
    for (name, options) in
        [("default", "cluster_size=65536"), ("small", "cluster_size=512"), ("4k", "cluster_size=4096")]
    {
        let folder = Folder::new(name);
        let (disk, file) = (folder.path("disk.img"), folder.path("by-qemu.qcow2"));
        let mut model = make_base(&disk, 24 << 20, 9);
        let before = hash(&disk);
        qemu_ok(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-o", options, "-b", "disk.img", "-F", "raw", text(&file)],
        );
        let mut random = seeded(4);
        let write = |path: &Path, model: &mut Vec<u8>, random: &mut Random| {
            let mut commands = vec!["-f".to_owned(), "qcow2".to_owned()];
            for _ in 0..30 {
                let (value, len) = (random.below(256), 1 + random.below(90_000));
                let at = random.below(model.len() as u64 - len);
                let zeros = random.below(4) == 0;
                let command =
                    if zeros { format!("write -z {at} {len}") } else { format!("write -P {value} {at} {len}") };
                commands.extend(["-c".to_owned(), command]);
                model[at as usize..(at + len) as usize].fill(if zeros { 0 } else { value as u8 });
            }
            commands.push(text(path).to_owned());
            qemu_ok("qemu-io", &commands.iter().map(String::as_str).collect::<Vec<_>>());
        };
        write(&file, &mut model, &mut random);
        for _ in 0..3 {
            let overlay = Overlay::open(&file, &base_of(&disk), &Options::default()).unwrap();
            assert!(overlay.binding().is_none());
            assert!(read_all(&overlay) == model, "{name}: what qemu-io wrote");
            for _ in 0..40 {
                random_write(&mut random, &mut model, &mut |data, at| overlay.write_all_at(data, at));
            }
            // Past what the refcount table of a file with small clusters covers.
            let data = random.bytes(5 << 20);
            let at = random.below(18 << 20) as usize;
            overlay.write_all_at(&data, at as u64).unwrap();
            model[at..at + data.len()].copy_from_slice(&data);
            overlay.close().unwrap();
            check_clean(&file);
            assert!(flat_by_qemu(&folder, &file, model.len()) == model, "{name}: what we wrote");
            write(&file, &mut model, &mut random);
        }
        let overlay = Overlay::open(&file, &base_of(&disk), &Options::default()).unwrap();
        let error = overlay.commit_in_place(&mut |_, _| {}).unwrap_err().to_string();
        assert!(error.contains("another tool made"), "{error}");
        assert_eq!(hash(&disk), before, "the base was changed");

        // And the same with an overlay of ours, which stays bound through qemu's writes.
        let (ours, mut model) = (folder.path("ours.qcow2"), std::fs::read(&disk).unwrap());
        Overlay::create(&ours, &base_of(&disk), &Options::default()).unwrap().close().unwrap();
        write(&ours, &mut model, &mut random);
        check_clean(&ours);
        let overlay = Overlay::open(&ours, &base_of(&disk), &Options::default()).unwrap();
        assert!(overlay.binding().is_some() && read_all(&overlay) == model);
    }
}

#[test]
fn the_binding_survives_what_qemu_img_does_to_the_header() {
    let folder = Folder::new("header");
    let (disk, other, file) = (folder.path("disk.img"), folder.path("moved.img"), folder.path("o.qcow2"));
    make_base(&disk, 5 << 20, 9);
    let overlay = Overlay::create(&file, &base_of(&disk), &Options::default()).unwrap();
    overlay.write_all_at(b"ours", 5_000).unwrap();
    let bound = overlay.binding();
    overlay.close().unwrap();
    let info = qemu_ok("qemu-img", &["info", text(&file)]);
    assert!(info.contains("backing file: disk.img") && info.contains("backing file format: raw"), "{info}");
    std::fs::rename(&disk, &other).unwrap();
    qemu_ok("qemu-img", &["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "moved.img", text(&file)]);
    qemu_ok("qemu-img", &["amend", "-f", "qcow2", "-o", "lazy_refcounts=on", text(&file)]);
    let reference = overlay::base_reference(&file).unwrap();
    assert_eq!((reference.path, reference.binding), (other.clone(), bound));
    let overlay = Overlay::open(&file, &base_of(&other), &Options::default()).unwrap();
    let mut buf = [0; 4];
    overlay.read_exact_at(&mut buf, 5_000).unwrap();
    assert_eq!(&buf, b"ours");
    overlay.write_all_at(b"more", 4 << 20).unwrap();
    overlay.close().unwrap();
    check_clean(&file);
    // qemu's own commit takes it too.
    qemu_ok("qemu-img", &["commit", "-q", "-f", "qcow2", text(&file)]);
    assert_eq!(std::fs::read(&other).unwrap()[5_000..5_004], *b"ours");
}

#[test]
fn a_changed_or_wrong_base_is_refused_in_one_sentence() {
    let folder = Folder::new("binding");
    let (disk, file) = (folder.path("disk.img"), folder.path("o.qcow2"));
    let bytes = make_base(&disk, 6 << 20, 9);
    let time = std::fs::metadata(&disk).unwrap().modified().unwrap();
    let overlay = Overlay::create(&file, &base_of(&disk), &Options::default()).unwrap();
    overlay.write_all_at(b"ours", 0).unwrap();
    overlay.close().unwrap();
    let set = |bytes: &[u8], seconds| {
        std::fs::write(&disk, bytes).unwrap();
        let times = std::fs::File::options().write(true).open(&disk).unwrap();
        times.set_modified(time + std::time::Duration::from_secs(seconds)).unwrap();
    };
    let refused = |text: &str| {
        let error = Overlay::open(&file, &base_of(&disk), &Options::default()).err().expect(text).to_string();
        assert!(error.contains(text) && error.contains("disk.img"), "{error}");
        // To look at it, once.
        let force = Options { force: true, read_only: true, ..Options::default() };
        assert!(Overlay::open(&file, &base_of(&disk), &force).is_ok());
    };
    set(&bytes[..5 << 20], 0);
    refused("is not this overlay's base: it has 5242880 bytes, the base had 6291456");
    let mut changed = bytes.clone();
    changed[70] ^= 1;
    set(&changed, 0);
    refused("the contents differ");
    // A change that no sample sees is seen by the hash of all; another time alone does no harm.
    let mut changed = bytes.clone();
    changed[100_000] ^= 1;
    set(&changed, 5);
    refused("the contents differ");
    set(&bytes, 7);
    let overlay = Overlay::open(&file, &base_of(&disk), &Options::default()).unwrap();
    assert_eq!(overlay.hash_base(&mut |_| true).unwrap().unwrap().to_vec(), hash(&disk));
    drop(overlay);
    let bound = overlay::info(&file).unwrap().base.binding.unwrap();
    assert_eq!(i128::from(bound.mtime), nanoseconds(&disk), "the new time is known from then on");
    set(&changed, 9);
    refused("the contents differ");
    let error = Overlay::open(&disk, &base_of(&disk), &Options::default()).err().unwrap().to_string();
    assert!(error.contains("it is the base itself"), "{error}");
}

/// When a file was modified, since 1970.
fn nanoseconds(path: &Path) -> i128 {
    let modified = std::fs::metadata(path).unwrap().modified().unwrap();
    modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos().try_into().unwrap()
}

#[test]
fn a_base_too_large_to_be_hashed_at_first_is_told_by_its_time_until_it_was_hashed() {
    let folder = Folder::new("large");
    let (disk, file) = (folder.path("disk.img"), folder.path("o.qcow2"));
    let base = std::fs::File::create(&disk).unwrap();
    base.set_len(65 << 20).unwrap();
    let time = std::fs::metadata(&disk).unwrap().modified().unwrap();
    let at = |seconds| base.set_modified(time + std::time::Duration::from_secs(seconds)).unwrap();
    Overlay::create(&file, &base_of(&disk), &Options::default()).unwrap().close().unwrap();
    at(5);
    let error = Overlay::open(&file, &base_of(&disk), &Options::default()).err().unwrap().to_string();
    assert!(error.contains("it was modified at"), "{error}");
    at(0);
    Overlay::open(&file, &base_of(&disk), &Options::default()).unwrap().hash_base(&mut |_| true).unwrap();
    at(5);
    Overlay::open(&file, &base_of(&disk), &Options::default()).unwrap();
}

#[test]
fn a_commit_to_a_new_image_learns_the_hash_of_its_base() {
    let folder = Folder::new("learns");
    let (disk, file) = (folder.path("disk.img"), folder.path("o.qcow2"));
    let mut random = seeded(31);
    let base = std::fs::File::options().create_new(true).write(true).open(&disk).unwrap();
    base.set_len((65 << 20) + 77).unwrap();
    for at in [0, 3 << 20, (9 << 20) + 5000, 65 << 20] {
        base.write_all_at(&random.bytes(70), at).unwrap();
    }
    let overlay = Overlay::create(&file, &base_of(&disk), &Options::default()).unwrap();
    assert!(overlay.learns());
    // Data over data, data over a hole, zeros over data.
    overlay.write_all_at(&random.bytes(9000), (3 << 20) - 100).unwrap();
    overlay.write_all_at(&random.bytes(9000), 20 << 20).unwrap();
    overlay.write_all_at(&[0; 20_000], 9 << 20).unwrap();
    overlay.close().unwrap();
    let looking = Options { read_only: true, ..Options::default() };
    for (number, qcow2) in [(0, false), (1, true)] {
        let overlay = Overlay::open(&file, &base_of(&disk), &looking).unwrap();
        let out = folder.path(&number.to_string());
        let learned = match qcow2 {
            true => overlay.commit_to_qcow2(&out, &mut |_, _| Ok(())),
            false => overlay.commit_to_raw(&out, &mut |_, _| Ok(())),
        };
        drop(overlay);
        let learned = learned.unwrap().expect("the base was read");
        if !qcow2 {
            assert!(overlay::info(&file).unwrap().base.binding.unwrap().full_hash().is_none());
            continue;
        }
        let user = Overlay::open(&file, &base_of(&disk), &Options::default()).unwrap();
        assert!(!overlay::remember(&file, &learned).unwrap(), "somebody uses it");
        drop(user);
        assert!(overlay::remember(&file, &learned).unwrap());
        assert!(!overlay::remember(&file, &learned).unwrap(), "it is known");
    }
    check_clean(&file);
    let known = overlay::info(&file).unwrap().base.binding.unwrap().full_hash().unwrap();
    assert_eq!(known.to_vec(), hash(&disk));
    let overlay = Overlay::open(&file, &base_of(&disk), &looking).unwrap();
    overlay.verify_whole_base(&mut |_, _| {}).unwrap();
    assert!(overlay.commit_to_raw(&folder.path("3"), &mut |_, _| Ok(())).unwrap().is_none(), "it is known");
    drop(overlay);
    // Once known, it is kept by a discard.
    Overlay::open(&file, &base_of(&disk), &Options::default()).unwrap().discard().unwrap();
    assert_eq!(overlay::info(&file).unwrap().base.binding.unwrap().full_hash(), Some(known));
}

#[test]
fn a_base_that_changes_while_it_is_hashed_has_no_hash() {
    let folder = Folder::new("changing");
    let (disk, file) = (folder.path("disk.img"), folder.path("o.qcow2"));
    let base = std::fs::File::options().create_new(true).write(true).open(&disk).unwrap();
    base.set_len(65 << 20).unwrap();
    let overlay = Overlay::create(&file, &base_of(&disk), &Options::default()).unwrap();
    assert!(overlay.hash_base(&mut |done| done < 5 << 20).unwrap().is_none(), "it was stopped");
    let mut write = |done| {
        if done == 9 << 20 {
            base.write_all_at(b"changed", 30 << 20).unwrap();
        }
        true
    };
    assert!(overlay.hash_base(&mut write).unwrap().is_none());
    drop(overlay);
    assert!(overlay::info(&file).unwrap().base.binding.unwrap().full_hash().is_none());
}

#[test]
fn a_base_that_was_taken_by_force_is_the_overlays_own_from_then_on() {
    let folder = Folder::new("forced");
    let (disk, file) = (folder.path("disk.img"), folder.path("o.qcow2"));
    let mut bytes = make_base(&disk, 5 << 20, 12);
    let overlay = Overlay::create(&file, &base_of(&disk), &Options::default()).unwrap();
    overlay.write_all_at(b"ours", 1_000_000).unwrap();
    overlay.close().unwrap();
    bytes[70] ^= 1;
    std::fs::write(&disk, &bytes).unwrap();
    let open =
        |force, read_only| Overlay::open(&file, &base_of(&disk), &Options { force, read_only, ..Options::default() });
    assert!(open(false, false).is_err());
    open(true, true).unwrap();
    assert!(open(false, false).is_err(), "a look changes nothing");
    open(true, false).unwrap().close().unwrap();
    let overlay = open(false, false).unwrap();
    overlay.verify_whole_base(&mut |_, _| {}).unwrap();
    assert_eq!(overlay.binding().unwrap().full_hash().unwrap().to_vec(), hash(&disk));
    bytes[1_000_000..1_000_004].copy_from_slice(b"ours");
    assert!(read_all(&overlay) == bytes);
    drop(overlay);
    check_clean(&file);
    // A disk of another size never becomes the base of this one.
    std::fs::write(&disk, &bytes[..4 << 20]).unwrap();
    open(true, false).unwrap().close().unwrap();
    assert!(open(false, false).is_err());
}

#[test]
fn an_overlay_is_in_use_by_one_at_a_time() {
    let folder = Folder::new("lock");
    let (disk, file) = (folder.path("disk.img"), folder.path("o.qcow2"));
    make_base(&disk, 1 << 20, 9);
    let overlay = Overlay::create(&file, &base_of(&disk), &Options::default()).unwrap();
    let error = Overlay::open(&file, &base_of(&disk), &Options::default()).err().unwrap().to_string();
    assert!(error.contains("it is in use"), "{error}");
    assert!(overlay::check(&file).is_err() && overlay::info(&file).is_ok());
    assert!(Overlay::create(&file, &base_of(&disk), &Options::default()).is_err());
    overlay.close().unwrap();
    Overlay::open(&file, &base_of(&disk), &Options::default()).unwrap();
}

#[test]
fn an_overlay_that_is_only_looked_at_is_not_changed() {
    let folder = Folder::new("look");
    let (disk, file) = (folder.path("disk.img"), folder.path("o.qcow2"));
    make_base(&disk, 1 << 20, 9);
    let overlay = Overlay::create(&file, &base_of(&disk), &Options::default()).unwrap();
    overlay.write_all_at(b"ours", 5_000).unwrap();
    overlay.close().unwrap();
    let (before, options) = (hash(&file), Options { read_only: true, ..Options::default() });
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
    let one = Overlay::open(&file, &base_of(&disk), &options).unwrap();
    let two = Overlay::open(&file, &base_of(&disk), &options).unwrap();
    assert!(one.writer().is_none() && matches!(one.write_all_at(b"x", 0), Err(Error::ReadOnly)));
    assert_eq!(read_all(&two)[5_000..5_004], *b"ours");
    assert!(Overlay::open(&file, &base_of(&disk), &Options::default()).is_err());
    assert!(two.discard().is_err() && one.commit_in_place(&mut |_, _| {}).is_err());
    assert_eq!(hash(&file), before);
}

/// A host that has so many bytes.
struct Full {
    store: Arc<MemoryStore>,
    room: Arc<AtomicU64>,
}

impl Store for Full {
    fn size(&self) -> io::Result<u64> {
        self.store.size()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.store.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.reserve(offset, buf.len() as u64)?;
        self.store.write_at(buf, offset)
    }
    fn set_size(&self, size: u64) -> io::Result<()> {
        self.store.set_size(size)
    }
    fn reserve(&self, offset: u64, len: u64) -> io::Result<bool> {
        let full = offset + len > self.room.load(Ordering::SeqCst);
        if full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(true) }
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_host_or_a_bound_is_no_space_and_loses_nothing() {
    for bounded in [false, true] {
        let folder = Folder::new("full");
        let (disk, file) = (folder.path("disk.img"), folder.path("o.qcow2"));
        let mut model = make_base(&disk, 9 << 20, 9);
        let store = Arc::new(MemoryStore::default());
        let room = Arc::new(AtomicU64::new(if bounded { u64::MAX } else { 1 << 20 }));
        let full = || Box::new(Full { store: store.clone(), room: room.clone() });
        let options = Options { max_size: bounded.then_some(1 << 20), ..Options::default() };
        let overlay = Overlay::create_in(full(), &file, &base_of(&disk), &options).unwrap();
        let mut random = seeded(3);
        let mut refused = 0;
        let mut round = |overlay: &Overlay, model: &mut Vec<u8>| {
            for _ in 0..300 {
                let len = 1 + random.below(9_000);
                let at = random.below(model.len() as u64 - len);
                let data = random.bytes(len as usize);
                match overlay.write_all_at(&data, at) {
                    Ok(()) => model[at as usize..(at + len) as usize].copy_from_slice(&data),
                    Err(Error::NoSpace) => {
                        refused += 1;
                        // Part of it may be there, as with any write that fails.
                        let part = &mut model[at as usize..(at + len) as usize];
                        let old = part.to_vec();
                        overlay.read_exact_at(part, at).unwrap();
                        assert!((0..part.len()).all(|i| part[i] == old[i] || part[i] == data[i]));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            overlay.flush().unwrap();
            assert!(read_all(overlay) == *model);
            refused
        };
        assert!(round(&overlay, &mut model) > 10);
        assert!(overlay.statistics().used <= 1 << 20 || !bounded);
        drop(overlay);
        assert!(overlay::check_store(store.as_ref()).unwrap().error_count == 0);
        // Room again: the same writer goes on.
        room.store(u64::MAX, Ordering::SeqCst);
        let overlay = Overlay::open_in(full(), &file, &base_of(&disk), &Options::default()).unwrap();
        assert!(read_all(&overlay) == model);
        let before = refused_now(&mut round, &overlay, &mut model);
        overlay.close().unwrap();
        let report = overlay::check_store(store.as_ref()).unwrap();
        assert_eq!((report.error_count, report.leaks), (0, 0), "{before} refused before");
    }
}

fn refused_now(round: &mut dyn FnMut(&Overlay, &mut Vec<u8>) -> u64, overlay: &Overlay, model: &mut Vec<u8>) -> u64 {
    round(overlay, model)
}

#[test]
fn eight_writers_and_eight_readers_lose_no_update() {
    const RECORD: u64 = 64;
    let folder = Folder::new("threads");
    let (disk, file) = (folder.path("disk.img"), folder.path("o.qcow2"));
    std::fs::write(&disk, vec![0xff; 12 << 20]).unwrap();
    let overlay = Overlay::create(&file, &base_of(&disk), &Options::default()).unwrap();
    let records = (12u64 << 20) / RECORD;
    let running = AtomicU64::new(8);
    // The same clusters for all, and new ones first: each cluster has records of all writers.
    std::thread::scope(|scope| {
        for writer in 0..8u64 {
            let (overlay, running) = (&overlay, &running);
            scope.spawn(move || {
                let mut random = seeded(77);
                for step in 0..6_000u64 {
                    let record = random.below(records / 8) * 8 + writer;
                    let data = [writer as u8 + 1; RECORD as usize];
                    overlay.write_all_at(&data, record * RECORD).unwrap();
                    if step % 500 == 0 {
                        overlay.flush().unwrap();
                    }
                }
                running.fetch_sub(1, Ordering::SeqCst);
            });
        }
        for reader in 0..8u64 {
            let (overlay, running) = (&overlay, &running);
            scope.spawn(move || {
                let mut random = seeded(reader);
                let mut buf = vec![0; 32 << 10];
                while running.load(Ordering::SeqCst) > 0 {
                    let first = random.below(records - 512);
                    overlay.read_exact_at(&mut buf, first * RECORD).unwrap();
                    for (number, record) in (first..).zip(buf.chunks(RECORD as usize)) {
                        let writer = (number % 8) as u8 + 1;
                        assert!(record.iter().all(|byte| *byte == 0xff || *byte == writer));
                    }
                }
            });
        }
    });
    let mut model = vec![0xff; 12 << 20];
    for writer in 0..8u64 {
        let mut random = seeded(77);
        for _ in 0..6_000 {
            let at = ((random.below(records / 8) * 8 + writer) * RECORD) as usize;
            model[at..at + RECORD as usize].fill(writer as u8 + 1);
        }
    }
    assert!(read_all(&overlay) == model, "an update was lost");
    overlay.close().unwrap();
    check_clean(&file);
    assert!(flat_by_qemu(&folder, &file, model.len()) == model);
}

#[test]
fn more_tables_than_memory_keeps_are_dropped_and_read_again_without_losing_an_update() {
    const TABLES: u64 = 10_000;
    const REACH: u64 = 2 << 20;
    let folder = Folder::new("tables");
    let disk = folder.path("disk.img");
    std::fs::File::create(&disk).unwrap().set_len(TABLES * REACH).unwrap();
    let store = Arc::new(MemoryStore::default());
    let full = Full { store: store.clone(), room: Arc::new(AtomicU64::new(u64::MAX)) };
    let overlay = Overlay::create_in(Box::new(full), &folder.path("o"), &base_of(&disk), &Options::default()).unwrap();
    // Four writers meet in one cluster of each table, in an order of their own.
    let place = |table: u64, writer: u64| table * REACH + 4096 * (table % 512) + writer * 32;
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let overlay = &overlay;
            scope.spawn(move || {
                for step in 0..TABLES {
                    let table = (step * [1, 3, 7, 9_999][writer as usize] + writer * 2_500) % TABLES;
                    overlay.write_all_at(&[writer as u8 + 1; 32], place(table, writer)).unwrap();
                    let mut buf = [0; 32];
                    let before = (table + TABLES - 1) % TABLES;
                    overlay.read_exact_at(&mut buf, place(before, writer)).unwrap();
                    assert!(buf == [0; 32] || buf == [writer as u8 + 1; 32]);
                }
            });
        }
    });
    for table in 0..TABLES {
        let mut buf = [0; 160];
        overlay.read_exact_at(&mut buf, place(table, 0)).unwrap();
        let expected: Vec<u8> = [1, 2, 3, 4, 0].iter().flat_map(|value| [*value; 32]).collect();
        assert!(buf == expected[..], "table {table}: {buf:?}");
    }
    assert!(overlay.statistics().flushes > 0, "tables were never written to make room");
    overlay.close().unwrap();
    let report = overlay::check_store(store.as_ref()).unwrap();
    assert_eq!((report.error_count, report.leaks, report.data_clusters), (0, 0, TABLES), "{:?}", report.errors);
}

/// A base that counts how it is read.
struct Counting(Memory, AtomicU64);

impl BlockDevice for Counting {
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn sector_size(&self) -> u32 {
        2048
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.read_exact_at(buf, offset)
    }
}

#[test]
fn a_temporary_overlay_reads_unwritten_ranges_in_one_read_and_leaves_no_file() {
    let folder = Folder::new("temporary");
    for place in [None, Some(folder.0.as_path())] {
        let counting = Arc::new(Counting(Memory::new(vec![9; 40 << 20], 2048), AtomicU64::new(0)));
        let base: Device = counting.clone();
        let overlay = Overlay::temporary(place, &base, &Options::default()).unwrap();
        assert_eq!(overlay.sector_size(), 2048);
        let mut buf = vec![0; 30 << 20];
        overlay.read_bulk_at(&mut buf, 12_345).unwrap();
        assert_eq!(counting.1.load(Ordering::SeqCst), 1);
        overlay.write_all_at(&[1; 4096], 8 << 20).unwrap();
        overlay.write_all_at(&[0; 8192], 20 << 20).unwrap();
        overlay.flush().unwrap();
        overlay.read_bulk_at(&mut buf, 0).unwrap();
        assert_eq!(counting.1.load(Ordering::SeqCst), 4);
        assert!(buf[(8 << 20) - 1] == 9 && buf[8 << 20] == 1 && buf[20 << 20] == 0);
        let extent = overlay.extent(20 << 20).unwrap();
        assert_eq!((extent.stored, extent.len), (false, 8192));
        let runs: Vec<_> = overlay.changed_runs().map(|run| run.unwrap()).collect();
        assert_eq!(runs, [(8 << 20, 4096), (20 << 20, 8192)]);
        assert!(overlay.write_all_at(&[0; 2], (40 << 20) - 1).is_err());
        assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 0);
    }
}

#[test]
fn a_patch_carries_the_changed_sectors_and_fits_only_what_it_was_made_for() {
    let folder = Folder::new("patch");
    let (disk, file, second) = (folder.path("disk.img"), folder.path("o.qcow2"), folder.path("second.qcow2"));
    let mut model = make_base(&disk, 2_000_001, 9);
    let bytes = model.clone();
    let overlay = Overlay::create(&file, &base_of(&disk), &Options::default()).unwrap();
    overlay.write_all_at(b"abc", 1_000).unwrap();
    model[1_000..1_003].copy_from_slice(b"abc");
    let mut patch = Vec::new();
    let summary = overlay.export_patch(&mut patch).unwrap();
    assert_eq!((summary.records, summary.bytes, patch.len()), (1, 512, 24 + 44 + 512 + 40));
    let mut random = seeded(6);
    for _ in 0..60 {
        random_write(&mut random, &mut model, &mut |data, at| overlay.write_all_at(data, at));
    }
    let mut patch = Vec::new();
    let summary = overlay.export_patch(&mut patch).unwrap();
    let target = Overlay::create(&second, &base_of(&disk), &Options::default()).unwrap();
    assert_eq!(apply_patch(&mut io::Cursor::new(&patch), &target).unwrap(), summary);
    assert!(read_all(&target) == model);
    // Once more changes nothing.
    let again = apply_patch(&mut io::Cursor::new(&patch), &target).unwrap();
    assert_eq!(again.present, summary.records);
    // A disk that differs where the patch writes is left alone, and so is one of another size.
    let mut other = bytes.clone();
    other[1_001] ^= 1;
    let other = Memory::new(other, 512);
    let error = apply_patch(&mut io::Cursor::new(&patch), &other).unwrap_err().to_string();
    assert!(error.contains("the patch does not fit"), "{error}");
    assert!(apply_patch(&mut io::Cursor::new(&patch), &Memory::new(vec![0; 5], 512)).is_err());
    // Damage anywhere is found before anything is written.
    for _ in 0..300 {
        let target = Memory::new(bytes.clone(), 512);
        let mut bad = patch.clone();
        let at = random.below(bad.len() as u64) as usize;
        bad[at] ^= 1 << random.below(8);
        if random.below(4) == 0 {
            bad.truncate(at);
        }
        assert!(apply_patch(&mut io::Cursor::new(&bad), &target).is_err());
        assert!(read_all(&target) == bytes);
    }
}

#[test]
fn a_damaged_overlay_neither_panics_nor_grows_without_bound() {
    let folder = Folder::new("hostile");
    let (disk, file) = (folder.path("disk.img"), folder.path("o.qcow2"));
    for (seed, size) in [(1, 1_474_560), (2, 6 << 20)] {
        let mut model = make_base(&disk, size, seed);
        let base = base_of(&disk);
        let overlay = Overlay::create(&file, &base, &Options::default()).unwrap();
        let mut random = seeded(seed);
        for _ in 0..20 {
            random_write(&mut random, &mut model, &mut |data, at| overlay.write_all_at(data, at));
        }
        overlay.close().unwrap();
        let good = std::fs::read(&file).unwrap();
        // The bytes that are not zero before the first data, and a table somewhere behind them.
        let metadata: Vec<usize> = (0..good.len()).filter(|at| good[*at] != 0 && *at < 40_000).collect();
        let mut opened = 0;
        for round in 0..1_500 {
            let mut bad = good.clone();
            for _ in 0..1 + random.below(4) {
                let near = metadata[random.below(metadata.len() as u64) as usize] + random.below(9) as usize;
                let at = if random.below(4) == 0 { random.below(bad.len() as u64) as usize } else { near };
                let last = bad.len() - 1;
                bad[at.min(last)] = if random.below(2) == 0 { random.next() as u8 } else { 0xff };
            }
            if round % 10 == 0 {
                bad.truncate(random.below(bad.len() as u64) as usize);
            }
            let store = Arc::new(MemoryStore::default());
            store.write_at(&bad, 0).unwrap();
            drop(overlay::check_store(store.as_ref()));
            let full = Full { store: store.clone(), room: Arc::new(AtomicU64::new(64 << 20)) };
            let options = Options { max_size: Some(64 << 20), force: true, ..Options::default() };
            let Ok(overlay) = Overlay::open_in(Box::new(full), &file, &base, &options) else { continue };
            opened += 1;
            let size = overlay.size();
            let mut buf = vec![0; 70_000.min(size as usize)];
            for _ in 0..12 {
                let at = random.below(size.min(size / 2 + (8 << 20)) - buf.len() as u64 + 1);
                drop(overlay.read_exact_at(&mut buf, at));
                drop(overlay.write_all_at(&buf[..buf.len() / 2], at));
            }
            overlay.changed_runs().take(1000).for_each(drop);
            drop(overlay.close());
            assert!(store.size().unwrap() <= 64 << 20);
        }
        println!("{opened} of 1500 damaged overlays were opened");
        std::fs::remove_file(&file).unwrap();
    }
}

#[test]
fn huge_disks_and_awkward_names_suit_qemu() {
    let folder = Folder::new("huge");
    std::fs::create_dir(folder.path("other")).unwrap();
    for (name, size, place) in [
        ("two tebibytes.img", 2u64 << 40, "o1.qcow2"),
        ("json:{}", 700_000, "o2.qcow2"),
        ("nbd:host:1", 700_000, "other/o3.qcow2"),
        (&"long ".repeat(50), 1_474_560, "o4.qcow2"),
    ] {
        let (disk, file) = (folder.path(name), folder.path(place));
        std::fs::File::create(&disk).unwrap().set_len(size).unwrap();
        let overlay = Overlay::create(&file, &base_of(&disk), &Options::default()).unwrap();
        overlay.write_all_at(b"The7End", size - 7).unwrap();
        overlay.write_all_at(b"a start", 0).unwrap();
        overlay.close().unwrap();
        check_clean(&file);
        let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&file).unwrap()) * 512;
        assert!(blocks < 200_000, "{name}: {blocks} bytes for two changes");
        let read = format!("read -v {} 7", size - 7);
        let said = qemu_ok("qemu-io", &["-r", "-f", "qcow2", "-c", &read, text(&file)]);
        assert!(said.contains("The7End"), "{name}: {said}");
        let overlay = Overlay::open(&file, &base_of(&disk), &Options::default()).unwrap();
        let runs: Vec<_> = overlay.changed_runs().map(|run| run.unwrap()).collect();
        assert_eq!((runs.len(), runs[0].0, runs[1].0 + runs[1].1), (2, 0, size), "{name}");
        assert_eq!(overlay::base_reference(&file).unwrap().path.canonicalize().unwrap(), disk.canonicalize().unwrap());
    }
}

/// A host that says once that it lost what was written.
struct Losing(MemoryStore, AtomicU64);

impl Store for Losing {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(buf, offset)
    }
    fn set_size(&self, size: u64) -> io::Result<()> {
        self.0.set_size(size)
    }
    fn reserve(&self, _: u64, _: u64) -> io::Result<bool> {
        Ok(true)
    }
    fn sync(&self) -> io::Result<()> {
        let first = self.1.fetch_add(1, Ordering::SeqCst) == 1;
        if first { Err(io::Error::other("lost")) } else { Ok(()) }
    }
}

#[test]
fn after_a_failed_sync_nothing_more_is_said_to_be_safe() {
    let folder = Folder::new("sync");
    let disk = folder.path("disk.img");
    make_base(&disk, 1 << 20, 1);
    let store = Box::new(Losing(MemoryStore::default(), AtomicU64::new(0)));
    let overlay = Overlay::create_in(store, &folder.path("o"), &base_of(&disk), &Options::default()).unwrap();
    overlay.write_all_at(b"x", 0).unwrap();
    for _ in 0..3 {
        overlay.flush().unwrap_err();
        overlay.write_all_at(b"y", 0).unwrap_err();
    }
    let mut buf = [0];
    overlay.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"x");
}

/// Not a claim but a figure: `cargo test --release -- --ignored --nocapture speed`.
#[test]
#[ignore = "a measurement"]
fn speed_of_writes() {
    let folder = Folder::new("speed");
    let (disk, file) = (folder.path("disk.img"), folder.path("o.qcow2"));
    std::fs::write(&disk, vec![1; 256 << 20]).unwrap();
    let overlay = Overlay::create(&file, &base_of(&disk), &Options::default()).unwrap();
    let mut random = seeded(1);
    let data = random.bytes(1 << 20);
    let time = |name: &str, count: u64, work: &mut dyn FnMut(u64)| {
        let start = std::time::Instant::now();
        (0..count).for_each(&mut *work);
        let written = start.elapsed().as_secs_f64();
        overlay.flush().unwrap();
        let synced = start.elapsed().as_secs_f64();
        println!("{name}: {:.0}/s, with the sync {:.0}/s", count as f64 / written, count as f64 / synced);
    };
    time("random 4 KiB, new", 30_000, &mut |_| {
        overlay.write_all_at(&data[..4096], random.below(65_536) * 4096).unwrap()
    });
    time("random 512 bytes, partly new", 30_000, &mut |_| {
        overlay.write_all_at(&data[..512], random.below(524_288) * 512).unwrap()
    });
    time("sequential 1 MiB", 256, &mut |at| overlay.write_all_at(&data, at << 20).unwrap());
    time("random 4 KiB, again", 100_000, &mut |_| {
        overlay.write_all_at(&data[..4096], random.below(65_536) * 4096).unwrap()
    });
    let plain = std::fs::File::create(folder.path("plain")).unwrap();
    for round in ["new", "again"] {
        time(&format!("random 4 KiB, plain file, {round}"), 100_000, &mut |_| {
            std::os::unix::fs::FileExt::write_all_at(&plain, &data[..4096], random.below(65_536) * 4096).unwrap();
        });
    }
    let mut buf = vec![0; 128 << 10];
    time("random 128 KiB reads", 20_000, &mut |_| overlay.read_exact_at(&mut buf, random.below(2047) << 17).unwrap());
}
