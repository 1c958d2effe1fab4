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

/// Writes, sizes and syncs of a store, and what the test itself notes between them.
#[derive(Clone)]
enum Step {
    Write(u64, Vec<u8>),
    Size(u64),
    Sync,
    /// The user began to write this.
    User(u64, Vec<u8>),
    /// A flush returned: this is what the disk must hold at least.
    Flushed(Arc<Vec<u8>>),
}

#[derive(Default)]
struct Recording {
    store: MemoryStore,
    steps: Mutex<Vec<Step>>,
}

struct Recorder(Arc<Recording>);

impl Recording {
    fn note(&self, step: Step) {
        self.steps.lock().unwrap().push(step);
    }
}

impl Store for Recorder {
    fn size(&self) -> io::Result<u64> {
        self.0.store.size()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.store.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.note(Step::Write(offset, buf.to_vec()));
        self.0.store.write_at(buf, offset)
    }
    fn set_size(&self, size: u64) -> io::Result<()> {
        self.0.note(Step::Size(size));
        self.0.store.set_size(size)
    }
    fn reserve(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        self.0.note(Step::Sync);
        Ok(())
    }
}

/// A file's bytes after some of its steps.
fn apply(file: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write(offset, bytes) => {
            let end = *offset as usize + bytes.len();
            file.resize(file.len().max(end), 0);
            file[*offset as usize..end].copy_from_slice(bytes);
        }
        Step::Size(size) => file.resize(*size as usize, 0),
        _ => {}
    }
}

/// The sectors of a write that got to the disk when the power went.
fn torn(step: &Step, random: &mut Random) -> Vec<Step> {
    let Step::Write(offset, bytes) = step else { return vec![step.clone()] };
    let mut parts = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let to_border = 512 - (*offset as usize + at) % 512;
        let end = (at + to_border).min(bytes.len());
        if random.below(2) == 0 {
            parts.push(Step::Write(offset + at as u64, bytes[at..end].to_vec()));
        }
        at = end;
    }
    parts
}

/// Any of these bytes may be as flushed, or as something written since.
fn holds_flushed(found: &[u8], flushed: &[u8], since: &[(u64, Vec<u8>)]) -> bool {
    found.len() == flushed.len()
        && (0..found.len()).all(|at| {
            found[at] == flushed[at]
                || since.iter().any(|(offset, bytes)| {
                    let within = (at as u64).checked_sub(*offset).and_then(|within| bytes.get(within as usize));
                    within == Some(&found[at])
                })
        })
}

#[test]
fn a_power_cut_at_any_write_leaves_a_sound_overlay_with_all_that_was_flushed() {
    let mut cuts = 0;
    let mut seen_by_qemu = 0;
    for (seed, size, writes) in [(1, 737_280, 60), (2, 3_000_001, 60), (3, 1_474_560, 120), (4, 20 << 20, 50)] {
        let folder = Folder::new("power");
        let (disk, file) = (folder.path("disk.img"), folder.path("cut.qcow2"));
        let mut model = make_base(&disk, size, seed);
        let before = hash(&disk);
        let base = base_of(&disk);
        let recording = Arc::new(Recording::default());
        let store = Box::new(Recorder(recording.clone()));
        let overlay = Overlay::create_in(store, &file, &base, &Options::default()).unwrap();
        recording.note(Step::Flushed(Arc::new(model.clone())));
        let mut random = seeded(seed);
        for _ in 0..writes {
            random_write(&mut random, &mut model, &mut |data, at| {
                recording.note(Step::User(at, data.to_vec()));
                overlay.write_all_at(data, at)
            });
            if random.below(7) == 0 {
                overlay.flush().unwrap();
                recording.note(Step::Flushed(Arc::new(model.clone())));
            }
        }
        overlay.close().unwrap();
        recording.note(Step::Flushed(Arc::new(model.clone())));
        let steps = recording.steps.lock().unwrap().clone();

        let (mut safe, mut unsafe_steps) = (Vec::new(), Vec::<Step>::new());
        let (mut flushed, mut since) = (None, Vec::new());
        let every = (steps.len() / 35).max(1) as u64;
        for step in &steps {
            match step {
                Step::User(offset, data) => {
                    since.push((*offset, data.clone()));
                    continue;
                }
                Step::Flushed(model) => {
                    flushed = Some(model.clone());
                    since.clear();
                    continue;
                }
                Step::Sync => unsafe_steps.drain(..).for_each(|step| apply(&mut safe, &step)),
                step => unsafe_steps.push(step.clone()),
            }
            let Some(flushed) = &flushed else { continue };
            // Everything before the cut, and then half of the unsynced sectors in another order.
            for disorder in [false, true] {
                let mut image = safe.clone();
                let mut rest = unsafe_steps.clone();
                if disorder {
                    rest = rest.iter().flat_map(|step| torn(step, &mut random)).collect();
                    rest.sort_by_cached_key(|_| random.next());
                    // Two writes to one place keep their order: the disk has one of them.
                    let mut last = BTreeSet::new();
                    let order: Vec<Step> = rest;
                    rest = order
                        .into_iter()
                        .filter(|step| !matches!(step, Step::Write(at, _) if !last.insert(*at)))
                        .collect();
                }
                rest.iter().for_each(|step| apply(&mut image, step));
                let store = MemoryStore::default();
                store.write_at(&image, 0).unwrap();
                let report = overlay::check_store(&store).unwrap();
                assert_eq!(report.error_count, 0, "seed {seed}, cut {cuts}: {:?}", report.errors);
                if random.below(every) == 0 && seen_by_qemu < 150 {
                    seen_by_qemu += 1;
                    std::fs::write(&file, &image).unwrap();
                    let output = qemu("qemu-img", &["check", "-f", "qcow2", text(&file)]);
                    let said = String::from_utf8_lossy(&output.stdout);
                    // 0 is clean, 3 is leaks and nothing else.
                    assert!(matches!(output.status.code(), Some(0 | 3)), "seed {seed}, cut {cuts}: {said}");
                }
                let survivor = Arc::new(Recording { store, ..Recording::default() });
                let store = Box::new(Recorder(survivor.clone()));
                let overlay = Overlay::open_in(store, &file, &base, &Options::default()).unwrap();
                assert!(holds_flushed(&read_all(&overlay), flushed, &since), "seed {seed}, cut {cuts}, {disorder}");
                overlay.write_all_at(b"life goes on", 12_345).unwrap();
                overlay.close().unwrap();
                let report = overlay::check_store(&survivor.store).unwrap();
                assert_eq!((report.error_count, report.leaks), (0, 0), "{:?}", report.errors);
                cuts += 1;
            }
        }
        assert_eq!(hash(&disk), before, "the base was changed");
    }
    println!("{cuts} cuts, {seen_by_qemu} of them seen by qemu-img");
    assert!(cuts > 1000 && seen_by_qemu > 50);
}
