//! Power cuts and interrupted commits: what was recorded is replayed up to any point, in any order.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use imgfs::device::BlockWrite;
use imgfs::device::overlay::early::Early;
use imgfs::device::overlay::store::{HostStore, MemoryStore, Store};
use imgfs::device::overlay::{self, Base, Options, Overlay};
use imgfs::error::Result;

use super::{
    Folder, Random, base_of, check_clean, hash, make_base, qemu, qemu_ok, random_write, read_all, seeded, text,
};

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
        // Long enough for whoever was told of it to have done something else.
        std::thread::sleep(Duration::from_micros(200));
        self.0.note(Step::Write(offset, buf.to_vec()));
        self.0.store.write_at(buf, offset)
    }
    fn set_size(&self, size: u64) -> io::Result<()> {
        self.0.note(Step::Size(size));
        self.0.store.set_size(size)
    }
    fn reserve(&self, _: u64, _: u64) -> io::Result<bool> {
        Ok(true)
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

/// How many cuts were tried, and how many qemu-img saw.
#[derive(Default)]
struct Cuts {
    all: u64,
    seen_by_qemu: u64,
}

/// Cuts the power after each step: once in order, once with half of the unsynced sectors in any
/// order. Each time the overlay must be sound, hold what was flushed, and go on.
fn cut_everywhere(name: &str, steps: &[Step], base: &Base, file: &Path, cuts: &mut Cuts) {
    let random = &mut seeded(steps.len() as u64);
    let (mut safe, mut unsafe_steps) = (Vec::new(), Vec::<Step>::new());
    let (mut flushed, mut since) = (None, Vec::new());
    let every = (steps.len() / 35).max(1) as u64;
    for step in steps {
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
                rest = rest.iter().flat_map(|step| torn(step, random)).collect();
                rest.sort_by_cached_key(|_| random.next());
                // Two writes to one place keep their order: the disk has one of them.
                let mut last = BTreeSet::new();
                let order: Vec<Step> = rest;
                rest =
                    order.into_iter().filter(|step| !matches!(step, Step::Write(at, _) if !last.insert(*at))).collect();
            }
            rest.iter().for_each(|step| apply(&mut image, step));
            let store = MemoryStore::default();
            store.write_at(&image, 0).unwrap();
            let report = overlay::check_store(&store).unwrap();
            assert_eq!(report.error_count, 0, "{name}, cut {}: {:?}", cuts.all, report.errors);
            if random.below(every) == 0 && cuts.seen_by_qemu < 150 {
                cuts.seen_by_qemu += 1;
                std::fs::write(file, &image).unwrap();
                let output = qemu("qemu-img", &["check", "-f", "qcow2", text(file)]);
                let said = String::from_utf8_lossy(&output.stdout);
                // 0 is clean, 3 is leaks and nothing else.
                assert!(matches!(output.status.code(), Some(0 | 3)), "{name}, cut {}: {said}", cuts.all);
            }
            let survivor = Arc::new(Recording { store, ..Recording::default() });
            let store = Box::new(Recorder(survivor.clone()));
            let overlay = Overlay::open_in(store, file, base, &Options::default()).unwrap();
            assert!(holds_flushed(&read_all(&overlay), flushed, &since), "{name}, cut {}, {disorder}", cuts.all);
            overlay.write_all_at(b"life goes on", 12_345).unwrap();
            overlay.close().unwrap();
            let report = overlay::check_store(&survivor.store).unwrap();
            assert_eq!((report.error_count, report.leaks), (0, 0), "{:?}", report.errors);
            cuts.all += 1;
        }
    }
}

/// Does random writes and flushes, and notes them. Each goes on as soon as the write before is answered.
fn write_and_note(overlay: &Overlay, recording: &Recording, model: &mut [u8], random: &mut Random, writes: u64) {
    recording.note(Step::Flushed(Arc::new(model.to_vec())));
    std::thread::scope(|scope| {
        for _ in 0..writes {
            random_write(random, model, &mut |data, at| {
                recording.note(Step::User(at, data.to_vec()));
                let (data, (tell, told)) = (data.to_vec(), mpsc::channel());
                scope.spawn(move || {
                    let told = &mut || tell.send(()).unwrap();
                    overlay.write_early_at(&data, at, told).unwrap();
                });
                // Answered, or done without.
                let _ = told.recv();
                Ok(())
            });
            if random.below(7) == 0 {
                overlay.flush().unwrap();
                recording.note(Step::Flushed(Arc::new(model.to_vec())));
            }
        }
    });
}

#[test]
fn a_power_cut_at_any_write_leaves_a_sound_overlay_with_all_that_was_flushed() {
    let mut cuts = Cuts::default();
    let disks = [(1, 737_280, 60), (2, 3_000_001, 60), (3, 1_474_560, 120), (4, 20 << 20, 50)];
    // Each write by itself, and then most of them answered early.
    for ((seed, size, writes), least) in disks.into_iter().flat_map(|disk| [(disk, usize::MAX), (disk, 1000)]) {
        let folder = Folder::new("power");
        let (disk, file) = (folder.path("disk.img"), folder.path("cut.qcow2"));
        let mut model = make_base(&disk, size, seed);
        let before = hash(&disk);
        let base = base_of(&disk);
        let recording = Arc::new(Recording::default());
        let store = Box::new(Early::new(Box::new(Recorder(recording.clone())), least));
        let overlay = Overlay::create_in(store, &file, &base, &Options::default()).unwrap();
        write_and_note(&overlay, &recording, &mut model, &mut seeded(seed), writes);
        overlay.close().unwrap();
        recording.note(Step::Flushed(Arc::new(model.clone())));
        let steps = recording.steps.lock().unwrap().clone();
        cut_everywhere(&format!("seed {seed}, least {least}"), &steps, &base, &file, &mut cuts);
        assert_eq!(hash(&disk), before, "the base was changed");
    }
    println!("{} cuts, {} of them seen by qemu-img", cuts.all, cuts.seen_by_qemu);
    assert!(cuts.all > 1000 && cuts.seen_by_qemu > 50);
}

#[test]
fn a_flush_waits_for_an_overwrite_that_was_answered() {
    let folder = Folder::new("overwrite");
    let disk = folder.path("disk.img");
    make_base(&disk, 1 << 20, 1);
    let recording = Arc::new(Recording::default());
    let store = Box::new(Early::new(Box::new(Recorder(recording.clone())), 1000));
    let overlay = Overlay::create_in(store, &folder.path("own.qcow2"), &base_of(&disk), &Options::default()).unwrap();
    overlay.write_all_at(&[1; 20_000], 4096).unwrap();
    overlay.flush().unwrap();
    for byte in 2..40 {
        std::thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            let overlay = &overlay;
            scope.spawn(move || overlay.write_early_at(&[byte; 20_000], 4096, &mut || tell.send(()).unwrap()).unwrap());
            told.recv().expect("it was not answered early");
            overlay.flush().unwrap();
            let steps = recording.steps.lock().unwrap().clone();
            let is_write = |step: &Step| matches!(step, Step::Write(_, bytes) if bytes == &[byte; 20_000]);
            let at = steps.iter().position(is_write).expect("it is not written");
            assert!(steps[at..].iter().any(|step| matches!(step, Step::Sync)), "it is not stable");
        });
    }
}

#[test]
fn a_power_cut_while_the_refcount_table_moves_does_no_harm() {
    let folder = Folder::new("move");
    let (disk, file) = (folder.path("disk.img"), folder.path("cut.qcow2"));
    let mut model = make_base(&disk, 9 << 20, 1);
    // qemu gives such a file a table for 8 MiB; this fills all but the last of them.
    let options = "cluster_size=512";
    qemu_ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, "-b", "disk.img", "-F", "raw", text(&file)]);
    let base = base_of(&disk);
    let overlay = Overlay::open(&file, &base, &Options::default()).unwrap();
    let data = seeded(5).bytes(8 * 1_000_000);
    overlay.write_all_at(&data, 0).unwrap();
    model[..data.len()].copy_from_slice(&data);
    overlay.close().unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let table_before = bytes[48..56].to_vec();

    let recording = Arc::new(Recording::default());
    let store = Recorder(recording.clone());
    store.write_at(&bytes, 0).unwrap();
    store.sync().unwrap();
    let store = Box::new(Early::new(Box::new(store), 1000));
    let overlay = Overlay::open_in(store, &file, &base, &Options::default()).unwrap();
    let mut random = seeded(6);
    recording.note(Step::Flushed(Arc::new(model.clone())));
    for at in (8_000_000u64..9_400_000).step_by(70_000) {
        let data = random.bytes(20_000);
        recording.note(Step::User(at, data.clone()));
        overlay.write_all_at(&data, at).unwrap();
        model[at as usize..][..data.len()].copy_from_slice(&data);
    }
    overlay.close().unwrap();
    recording.note(Step::Flushed(Arc::new(model.clone())));
    let steps = recording.steps.lock().unwrap().clone();
    let mut end = Vec::new();
    steps.iter().for_each(|step| apply(&mut end, step));
    assert_ne!(end[48..56], table_before, "the table did not move: the test proves nothing");
    let mut cuts = Cuts::default();
    cut_everywhere("move", &steps, &base, &file, &mut cuts);
    println!("{} cuts, {} of them seen by qemu-img", cuts.all, cuts.seen_by_qemu);
}

/// Lets a number of operations through, over all stores that share it; then the power is gone.
pub struct Limited {
    pub store: Box<dyn Store>,
    pub left: Arc<AtomicU64>,
}

impl Limited {
    fn step(&self) -> io::Result<()> {
        match self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("the power is gone")),
        }
    }
}

impl Store for Limited {
    fn size(&self) -> io::Result<u64> {
        self.store.size()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.store.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if let Err(error) = self.step() {
            // The write that was under way got half of its bytes there.
            if self.left.swap(u64::MAX, Ordering::SeqCst) == 0 {
                self.store.write_at(&buf[..buf.len() / 2 / 512 * 512], offset)?;
                self.left.store(0, Ordering::SeqCst);
            }
            return Err(error);
        }
        self.store.write_at(buf, offset)
    }
    fn set_size(&self, size: u64) -> io::Result<()> {
        self.step()?;
        self.store.set_size(size)
    }
    fn reserve(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.store.reserve(offset, len)
    }
    fn sync(&self) -> io::Result<()> {
        self.step()?;
        self.store.sync()
    }
}

fn commit(file: &Path, disk: &Path, operations: u64) -> Result<u64> {
    let base = base_of(disk);
    let left = Arc::new(AtomicU64::new(operations));
    let limited = |path: &Path| Limited { store: Box::new(HostStore::open(path).unwrap()), left: left.clone() };
    let own = Early::new(Box::new(limited(file)), 1000);
    let overlay = Overlay::open_in(Box::new(own), file, &base, &Options::default())?;
    overlay.commit_in_place_through(&limited(disk), &mut |_, _| {})?;
    Ok(operations - left.load(Ordering::SeqCst))
}

#[test]
fn a_commit_in_place_that_is_interrupted_at_any_write_is_finished_by_the_next() {
    let mut interrupted = 0;
    for (seed, size, writes) in [(1, 737_280, 40), (2, 5_000_003, 40), (3, 12 << 20, 60)] {
        let folder = Folder::new("commit");
        let (disk, file) = (folder.path("disk.img"), folder.path("disk.overlay.qcow2"));
        let (disk_before, file_before) = (folder.path("disk.before"), folder.path("overlay.before"));
        let mut model = make_base(&disk, size, seed);
        let untouched = model.clone();
        let overlay = Overlay::create(&file, &base_of(&disk), &Options::default()).unwrap();
        let mut random = seeded(seed);
        for _ in 0..writes {
            random_write(&mut random, &mut model, &mut |data, at| overlay.write_all_at(data, at));
        }
        overlay.close().unwrap();
        qemu_ok("cp", &["-p", text(&disk), text(&disk_before)]);
        qemu_ok("cp", &["-p", text(&file), text(&file_before)]);
        let restore = || {
            qemu_ok("cp", &["-p", text(&disk_before), text(&disk)]);
            qemu_ok("cp", &["-p", text(&file_before), text(&file)]);
        };
        let all = commit(&file, &disk, 1_000_000).unwrap();
        assert!(all > 20, "{all} operations");
        for operations in 0..all {
            restore();
            commit(&file, &disk, operations).unwrap_err();
            interrupted += 1;
            // Whatever came of it, the flat view is whole, and a second interruption does no harm.
            let overlay = Overlay::open(&file, &base_of(&disk), &Options::default()).unwrap();
            assert!(read_all(&overlay) == model, "seed {seed}, {operations} operations");
            drop(overlay);
            if operations % 3 == 0 {
                drop(commit(&file, &disk, operations / 2));
            }
            commit(&file, &disk, 1_000_000).unwrap();
            assert!(std::fs::read(&disk).unwrap() == model, "seed {seed}, {operations} operations");
            check_clean(&file);
            let overlay = Overlay::open(&file, &base_of(&disk), &Options::default()).unwrap();
            assert_eq!(overlay.changed_runs().count(), 0);
            assert!(read_all(&overlay) == model);
        }
        // While the base is half written, nothing else may be put in its place.
        restore();
        commit(&file, &disk, all / 2).unwrap_err();
        let half_written = std::fs::read(&disk).unwrap();
        assert!(half_written != untouched && half_written != model);
        let overlay = Overlay::open(&file, &base_of(&disk), &Options::default()).unwrap();
        let error = overlay.write_all_at(b"x", 0).unwrap_err().to_string();
        assert!(error.contains("a commit in place was interrupted; run it again to finish it"), "{error}");
        let error = overlay.export_patch(&mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("a commit in place was interrupted; run it again to finish it"), "{error}");
        assert!(overlay.for_each_difference(&mut |_, _, _| Ok(())).is_err(), "there is no base to compare with");
        assert!(overlay.discard().is_err());
        std::fs::write(&disk, vec![3; size]).unwrap();
        let error = Overlay::open(&file, &base_of(&disk), &Options::default()).err().unwrap().to_string();
        assert!(error.contains("is not the base that an interrupted commit was writing to"), "{error}");
    }
    println!("{interrupted} interruptions");
}

/// Records what is done to one of two files.
struct Both {
    store: HostStore,
    which: usize,
    steps: Arc<Mutex<Vec<(usize, Step, std::time::SystemTime)>>>,
    disk: PathBuf,
}

impl Both {
    fn note(&self, step: Step) {
        let time = std::fs::metadata(&self.disk).unwrap().modified().unwrap();
        self.steps.lock().unwrap().push((self.which, step, time));
    }
}

impl Store for Both {
    fn size(&self) -> io::Result<u64> {
        self.store.size()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.store.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.store.write_at(buf, offset)?;
        self.note(Step::Write(offset, buf.to_vec()));
        Ok(())
    }
    fn set_size(&self, size: u64) -> io::Result<()> {
        self.store.set_size(size)?;
        self.note(Step::Size(size));
        Ok(())
    }
    fn reserve(&self, _: u64, _: u64) -> io::Result<bool> {
        Ok(true)
    }
    fn sync(&self) -> io::Result<()> {
        self.note(Step::Sync);
        Ok(())
    }
}

#[test]
fn a_power_cut_during_a_commit_in_place_is_made_good_by_the_next() {
    let mut cuts = 0;
    for (seed, size) in [(1, 737_280), (2, 9_000_001)] {
        let folder = Folder::new("commit-power");
        let (disk, file) = (folder.path("disk.img"), folder.path("disk.overlay.qcow2"));
        let mut model = make_base(&disk, size, seed);
        let untouched = model.clone();
        let first_time = std::fs::metadata(&disk).unwrap().modified().unwrap();
        let overlay = Overlay::create(&file, &base_of(&disk), &Options::default()).unwrap();
        let mut random = seeded(seed);
        for _ in 0..40 {
            random_write(&mut random, &mut model, &mut |data, at| overlay.write_all_at(data, at));
        }
        overlay.close().unwrap();
        let overlay_before = std::fs::read(&file).unwrap();
        let steps = Arc::new(Mutex::new(Vec::new()));
        let both = |path: &Path, which| Both {
            store: HostStore::open(path).unwrap(),
            which,
            steps: steps.clone(),
            disk: disk.clone(),
        };
        let overlay = Overlay::open_in(Box::new(both(&file, 0)), &file, &base_of(&disk), &Options::default()).unwrap();
        overlay.commit_in_place_through(&both(&disk, 1), &mut |_, _| {}).unwrap();
        let steps = steps.lock().unwrap().clone();
        for cut in 0..=steps.len() {
            for disorder in 0..4 {
                let mut files = [(overlay_before.clone(), Vec::new()), (untouched.clone(), Vec::new())];
                let mut time = first_time;
                for (which, step, then) in &steps[..cut] {
                    let (safe, rest) = &mut files[*which];
                    match step {
                        Step::Sync => {
                            rest.drain(..).for_each(|step| apply(safe, &step));
                            // The time of the base is on the disk when the base was synced.
                            time = if *which == 1 { *then } else { time };
                        }
                        step => rest.push(step.clone()),
                    }
                }
                for (safe, rest) in &mut files {
                    let mut rest = std::mem::take(rest);
                    if disorder > 0 {
                        rest = rest.iter().flat_map(|step| torn(step, &mut random)).collect();
                        rest.sort_by_cached_key(|_| random.next());
                    }
                    rest.iter().for_each(|step| apply(safe, step));
                }
                std::fs::write(&file, &files[0].0).unwrap();
                std::fs::write(&disk, &files[1].0).unwrap();
                std::fs::File::options().write(true).open(&disk).unwrap().set_modified(time).unwrap();
                let overlay = Overlay::open(&file, &base_of(&disk), &Options::default())
                    .unwrap_or_else(|error| panic!("seed {seed}, cut {cut} of {}: {error}", steps.len()));
                assert!(read_all(&overlay) == model, "seed {seed}, cut {cut}");
                overlay.commit_in_place(&mut |_, _| {}).unwrap();
                assert!(std::fs::read(&disk).unwrap() == model, "seed {seed}, cut {cut}");
                let report = overlay::check(&file).unwrap();
                assert_eq!((report.error_count, report.leaks, report.data_clusters), (0, 0, 0));
                cuts += 1;
            }
        }
    }
    println!("{cuts} cuts");
}
