//! Writing without touching the image: a copy-on-write overlay over any device.
//!
//! The overlay is a qcow2 file whose backing file is the base, so that `qemu-img info`, `check`,
//! `convert`, `commit`, `rebase` and qemu itself can use it. Specification: QEMU,
//! docs/interop/qcow2.txt, version 3.
//!
//! ```text
//!   header | refcount table | refcount blocks | L1 | data, L2 tables and more blocks, as they come
//!
//!   offset of the disk -> L1 entry -> L2 entry -> a cluster of this file, or zeros
//!                         `- none     `- none ->  the base
//! ```
//! Clusters are small (512 bytes for floppies, 4 KiB for disks up to 1 TiB), so that a change of
//! three bytes costs little.
//!
//! **Order of writes.** A new cluster's bytes go to the file at once; what leads to them stays in
//! memory. A flush writes, with a sync after each line:
//! 1. refcount blocks, and L2 tables to which nothing leads yet (the data came before);
//! 2. refcount table entries, or the header's way to a bigger table (seldom);
//! 3. L2 tables and L1 entries.
//!
//! Counts only grow between flushes, and an entry's sector is written whole or not at all. So
//! whatever part of a step a crash leaves undone, the file is consistent but for clusters that are
//! counted and not used, and those are given back at the next opening.
//!
//! **Early answers.** Whoever waits for many bytes, for which the host has set room aside, is told that they are written
//! once all that leads to them is known, in memory, and only then are they brought to the file ([`early`](mod@early)).
//! That is below all of the above: who reads the file waits for them, and a sync begins once they are in it. What was
//! not synced yet does not outlive this process then.
//!
//! **Threads.** Tables are behind one lock that is never held across I/O. Clusters of the file
//! never move, so a reader may look up, let go, and read. A writer to clusters that the overlay
//! does not have yet claims them first: two writers to one new cluster do it one after the other.
//!
//! Supported: version 3 with 16-bit refcounts, zero clusters, any cluster size; overlays that qemu
//! made. Not supported: version 2, internal snapshots, bitmaps, compressed clusters, extended L2
//! entries, external data files, encryption. The host's lock on the file (`flock`) keeps a second
//! imgfs out; qemu uses another kind of lock and does not see it.

mod binding;
mod check;
mod commit;
mod create;
pub mod early;
mod geometry;
mod header;
mod learn;
mod patch;
mod refcounts;
pub mod store;
mod tables;
mod write;

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use self::create::{Named, qemu_format, recorded_name, reference, sync_folder, write_new};
pub use self::create::{rename_new, temporary_name};
use self::early::{Early, LEAST};
use self::geometry::{ENTRY, Geometry, from_bytes};
use self::header::{AUTOCLEAR_FIELD, Header, OVERLAY, TablePlace};
use self::refcounts::Refcounts;
use self::store::{HostStore, Store, host};
use self::tables::{Found, Look, Missing, Spot, Tables, decode};
use self::write::{Claims, Flushes};
use super::mapped::{Mapping, Place, Run, for_each_run, part_of};
use super::{BlockDevice, BlockWrite, Device, Extent, check_range};
use crate::error::{Error, Result};

pub use self::binding::{Base, Binding, EXTENSION, Hash, State};
pub use self::check::{Info, Report, check, check_store, info};
pub use self::commit::Progress;
pub use self::create::{BaseReference, base_reference};
pub use self::learn::{Learned, remember};
pub use self::patch::{OnDifference, PatchSummary, apply_patch};

/// More bytes of L2 tables than this (32 GiB in 4 KiB clusters) are not gone through at every opening.
const MAX_RECONCILED: u64 = 64 << 20;

/// How an overlay is used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Bound on the size of the overlay's file, bytes: past it a write fails with [`Error::NoSpace`].
    pub max_size: Option<u64>,
    /// Take a base that is not the one that the overlay was made for.
    pub force: bool,
    /// Only look: nothing is written to the overlay's file, and others may look too.
    pub read_only: bool,
}

/// What an overlay did since it was opened, and how big it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes of the file that are in use.
    pub used: u64,
    /// Reads that went to the base.
    pub base_reads: u64,
    /// Reads that went to the overlay's file.
    pub own_reads: u64,
    /// Clusters that were written for the first time.
    pub new_clusters: u64,
    /// Flushes that had something to do.
    pub flushes: u64,
}

#[derive(Default)]
struct Counters {
    base_reads: AtomicU64,
    own_reads: AtomicU64,
    new_clusters: AtomicU64,
    flushes: AtomicU64,
}

/// A copy-on-write layer over a base that is never written.
pub struct Overlay {
    name: String,
    store: Box<dyn Store>,
    base: Device,
    /// The base's host file; empty for an overlay that has no name of its own.
    base_path: PathBuf,
    binding: Mutex<Option<Binding>>,
    /// Where the binding lies in the file.
    binding_at: u64,
    options: Options,
    geometry: Geometry,
    /// Exact; the header's is rounded up to sectors.
    size: u64,
    tables: RwLock<Tables>,
    /// Where the file ends, at least.
    file_end: AtomicU64,
    claims: Claims,
    /// Held by the one who has the host set room aside.
    backing: Mutex<()>,
    flushes: Flushes,
    /// Something was written since the last sync.
    unsynced: AtomicBool,
    /// The host lost writes: nothing more is written.
    failed: AtomicBool,
    /// The file no longer has what memory has.
    closed: bool,
    /// Why nothing can be written, though the contents can be read.
    unwritable: Option<Error>,
    counters: Counters,
}

impl Overlay {
    /// A new overlay in a new file; a file of this name must not exist.
    pub fn create(path: &Path, base: &Base, options: &Options) -> Result<Self> {
        if std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == 0) {
            return Self::fill_empty(path, base, options);
        }
        let binding = Binding::of(base)?;
        let name = recorded_name(path, &base.path)?;
        let temporary = temporary_name(path);
        let store = HostStore::create(&temporary)?;
        let named = Named { name: &name, format: qemu_format(&base.format), binding: binding.to_bytes() };
        let made = write_new(&store, binding.disk_size, Some(named)).and_then(|()| rename_new(&temporary, path));
        if let Err(error) = made {
            drop(std::fs::remove_file(&temporary));
            return Err(error);
        }
        Self::start(path, early(store), base, options)
    }

    /// Makes an overlay in a file that is there and empty: one that was made by a process with more
    /// rights. Empty again when that fails.
    fn fill_empty(path: &Path, base: &Base, options: &Options) -> Result<Self> {
        let io = |error| Error::io(path.display().to_string(), error);
        let store = HostStore::open(path)?;
        if store.size().map_err(io)? > 0 {
            return Err(io(ErrorKind::AlreadyExists.into()));
        }
        let made = Self::create_in(early(store), path, base, options);
        match &made {
            Ok(_) => sync_folder(path)?,
            Err(_) => drop(HostStore::open(path).map(|store| store.set_size(0))),
        }
        made
    }

    /// Opens an overlay that is there. The base must be the one that it was made for, unless
    /// [`Options::force`] says otherwise. One process at a time can have it open.
    ///
    /// An overlay without a binding (`qemu-img create -b` makes such) is taken when it names this
    /// very base, with a warning: whether the base was changed since is not known.
    pub fn open(path: &Path, base: &Base, options: &Options) -> Result<Self> {
        let identity = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        if identity(path).is_some() && identity(path) == identity(&base.path) {
            let why = std::io::Error::new(ErrorKind::InvalidInput, "it is the base itself");
            return Err(Error::io(path.display().to_string(), why));
        }
        let store = match options.read_only {
            true => HostStore::open_read_only(path, true)?,
            false => HostStore::open(path)?,
        };
        let header = Header::read(&store)?;
        let reference = reference(path, &header)?;
        if reference.binding.is_none() {
            let (named, given) = (reference.path.display(), base.path.display());
            if identity(&reference.path) != identity(&base.path) {
                let why = std::io::Error::new(ErrorKind::InvalidData, format!("its base is {named}, not {given}"));
                let error = Error::io(path.display().to_string(), why);
                if !options.force {
                    return Err(error);
                }
                log::warn!("{error}; used all the same, as was asked");
            }
            log::warn!(
                "{}: does not say what its base was like: a change of {given} would not be noticed",
                path.display()
            );
        }
        Self::start(path, early(store), base, options)
    }

    /// An overlay that is gone when it is dropped: in a nameless file in `folder`, or in memory.
    pub fn temporary(folder: Option<&Path>, base: &Device, options: &Options) -> Result<Self> {
        let store: Box<dyn Store> = match folder {
            Some(folder) => early(HostStore::unnamed(folder)?),
            None => Box::new(store::MemoryStore::default()),
        };
        Self::without_name(store, base, options)
    }

    /// A new image that names no base: what is not written to it is not in it.
    fn without_name(store: Box<dyn Store>, base: &Device, options: &Options) -> Result<Self> {
        write_new(store.as_ref(), base.size(), None)?;
        let header = Header::read(store.as_ref())?;
        Self::assemble("the temporary overlay".to_owned(), store, header, base.clone(), PathBuf::new(), None, options)
    }

    /// As [`Overlay::create`], in a store of the caller's.
    pub fn create_in(store: Box<dyn Store>, path: &Path, base: &Base, options: &Options) -> Result<Self> {
        let name = recorded_name(path, &base.path)?;
        let binding = Binding::of(base)?;
        let named = Named { name: &name, format: qemu_format(&base.format), binding: binding.to_bytes() };
        write_new(store.as_ref(), binding.disk_size, Some(named))?;
        Self::start(path, store, base, options)
    }

    /// As [`Overlay::open`], from a store of the caller's; `path` is for messages.
    pub fn open_in(store: Box<dyn Store>, path: &Path, base: &Base, options: &Options) -> Result<Self> {
        Self::start(path, store, base, options)
    }

    fn start(path: &Path, store: Box<dyn Store>, base: &Base, options: &Options) -> Result<Self> {
        let name = path.display().to_string();
        let mut header = Header::read(store.as_ref())?;
        let mut binding = header.binding.as_ref().map(|(_, bytes)| Binding::parse(bytes)).transpose()?;
        if let (Some(bound), Some((at, _))) = (&mut binding, &header.binding)
            && matches!(bound.state, State::Emptying | State::Discarding)
        {
            // Verified before it is changed: the base may be another one by now.
            match bound.verify(base.disk.as_ref(), &base.path, &mut |_, _| Ok(())) {
                Err(error) if !options.force => return Err(error),
                _ => {}
            }
            match (options.read_only, bound.state) {
                // What is left of the overlay is the same as the base.
                (true, State::Emptying) => {}
                (true, _) => {
                    let why = std::io::Error::other(
                        "a discard was interrupted, and is finished when it is opened for writing",
                    );
                    return Err(Error::io(name, why));
                }
                (false, _) => {
                    log::info!("{name}: finishes what was interrupted");
                    commit::empty(store.as_ref(), *at)?;
                    bound.state = State::Bound;
                    header = Header::read(store.as_ref())?;
                }
            }
        }
        let disk = base.disk.clone();
        let mut overlay = Self::assemble(name, store, header, disk, base.path.clone(), binding, options)?;
        overlay.verify_base(base, options)?;
        Ok(overlay)
    }

    fn verify_base(&mut self, base: &Base, options: &Options) -> Result<()> {
        let Some(binding) = self.binding() else { return Ok(()) };
        match binding.verify(base.disk.as_ref(), &base.path, &mut |offset, part| self.blank_covered(offset, part)) {
            Err(error) if options.force => self.take(&error, base)?,
            result => {
                result?;
                self.remember_time(&binding, base, options)?;
            }
        }
        match binding.state {
            State::CommitBegun if !options.read_only => self.set_state(State::Bound)?,
            State::Copying => self.unwritable = Some(self.interrupted()),
            _ => {}
        }
        Ok(())
    }

    /// A base that is the same at another time was hashed whole to know that: once is enough.
    fn remember_time(&self, binding: &Binding, base: &Base, options: &Options) -> Result<()> {
        let (_, modified) = binding::stat(&base.path)?;
        let proven = binding.state == State::BoundHashed && !options.read_only;
        if proven && modified != binding.mtime {
            self.set_field(binding::MTIME_AT, &modified.to_be_bytes())?;
            if let Some(binding) = &mut *self.binding.lock().unwrap_or_else(PoisonError::into_inner) {
                binding.mtime = modified;
            }
        }
        Ok(())
    }

    fn assemble(
        name: String,
        store: Box<dyn Store>,
        header: Header,
        base: Device,
        base_path: PathBuf,
        binding: Option<Binding>,
        options: &Options,
    ) -> Result<Self> {
        let io = |error| host(&name, error);
        let geometry = header.geometry;
        let l1_len = usize::try_from(header.l1.entries.saturating_mul(ENTRY)).map_err(|_| Error::Invalid)?;
        let mut l1 = vec![0; l1_len];
        store.read_at(&mut l1, header.l1.offset).map_err(io)?;
        let refcounts = Refcounts::read(store.as_ref(), &header, options.max_size)?;
        let file_end = store.size().map_err(io)?;
        let clears = header.autoclear != 0 && !options.read_only;
        if clears {
            store.write_at(&[0; 8], AUTOCLEAR_FIELD).map_err(io)?;
        }
        let size = disk_size(geometry, binding.as_ref(), base.as_ref())?;
        let mut overlay = Self {
            name,
            store,
            base,
            base_path,
            binding: Mutex::new(binding),
            binding_at: header.binding.as_ref().map_or(0, |(at, _)| *at),
            options: *options,
            geometry,
            size,
            tables: RwLock::new(Tables::new(geometry, header.l1.offset, from_bytes(&l1), refcounts)),
            file_end: AtomicU64::new(file_end),
            claims: Claims::default(),
            backing: Mutex::default(),
            flushes: Flushes::default(),
            unsynced: AtomicBool::new(clears),
            failed: AtomicBool::new(false),
            closed: false,
            unwritable: None,
            counters: Counters::default(),
        };
        if options.read_only {
            overlay.unwritable = Some(Error::ReadOnly);
        } else if let Err(error) = overlay.reconcile(header.l1) {
            log::warn!("{}: {error}; it can be read only (`qemu-img check -r all` repairs it)", overlay.name);
            overlay.unwritable = Some(error);
        }
        Ok(overlay)
    }

    /// Compares the counts with what the tables lead to: gives back what a crash left counted and
    /// unused. Fails when something is used and not counted, or twice: a write could destroy it.
    fn reconcile(&mut self, l1: TablePlace) -> Result<()> {
        let geometry = self.geometry;
        let tables = read_guard(&self.tables);
        let l2: Vec<(usize, u64)> = tables.l2_places().collect();
        let l1_first = geometry.cluster(l1.offset);
        let l1_count = geometry.clusters(l1.entries.saturating_mul(ENTRY));
        let mut references: Vec<u64> = vec![0];
        references.extend(l1_first..l1_first.saturating_add(l1_count));
        references.extend(tables.refcounts.own_clusters());
        references.extend(l2.iter().map(|(_, at)| geometry.cluster(*at)));
        drop(tables);
        let whole = geometry.start(l2.len() as u64) <= MAX_RECONCILED;
        for (_, at) in l2.iter().filter(|_| whole) {
            for entry in self.read_table(*at)? {
                decode(entry, geometry)?;
                references.extend(Some(entry & tables::OFFSET).filter(|at| *at != 0).map(|at| geometry.cluster(at)));
            }
        }
        references.sort_unstable();
        if references.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err(Error::corrupt(OVERLAY, "a cluster that is used twice", 0));
        }
        let mut tables = write_guard(&self.tables);
        if let Some(cluster) = references.iter().find(|cluster| tables.refcounts.count(**cluster) == 0) {
            return Err(Error::corrupt(OVERLAY, "the count of a used cluster", geometry.start(*cluster)));
        }
        if whole {
            tables.refcounts.free_all_but(&references);
        }
        Ok(())
    }

    fn interrupted(&self) -> Error {
        let why = "a commit in place was interrupted; run it again to finish it";
        Error::io(self.name.clone(), std::io::Error::new(ErrorKind::ReadOnlyFilesystem, why))
    }

    /// Why nothing can be written to it, though it can be read.
    pub fn unwritable(&self) -> Option<&Error> {
        self.unwritable.as_ref()
    }

    /// The device below, untouched.
    pub fn base(&self) -> &Device {
        &self.base
    }

    /// What the overlay remembers of its base; `None` when another tool made it.
    pub fn binding(&self) -> Option<Binding> {
        self.binding.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes of a cluster: the unit in which the base is copied.
    pub fn cluster_size(&self) -> u64 {
        self.geometry.cluster_size()
    }

    /// What the overlay did, and how big it is.
    pub fn statistics(&self) -> Statistics {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Statistics {
            used: self.geometry.start(read_guard(&self.tables).refcounts.used()),
            base_reads: count(&self.counters.base_reads),
            own_reads: count(&self.counters.own_reads),
            new_clusters: count(&self.counters.new_clusters),
            flushes: count(&self.counters.flushes),
        }
    }

    /// Flushes and closes, and says whether that went well: dropping does the same in silence.
    pub fn close(self) -> Result<()> {
        self.flush()
    }

    /// Asks the tables, reading those that they lack, without a lock while that is done.
    fn with_tables<T>(&self, mut ask: impl FnMut() -> Result<Look<T>>) -> Result<T> {
        loop {
            match ask()? {
                Look::Found(answer) => return Ok(answer),
                Look::Missing(missing) => self.load(missing)?,
            }
        }
    }

    fn load(&self, missing: Missing) -> Result<()> {
        let entries = self.read_table(missing.at)?;
        // Out of date: the next look-up asks for it again.
        write_guard(&self.tables).insert(missing, entries);
        Ok(())
    }

    fn read_table(&self, at: u64) -> Result<Vec<u64>> {
        let end = at.saturating_add(self.geometry.cluster_size());
        if end > self.file_end.load(Ordering::Acquire) || self.geometry.within(at) != 0 {
            return Err(Error::corrupt(OVERLAY, "L2 table", at));
        }
        let mut bytes = vec![0; self.geometry.cluster_len()];
        self.store.read_at(&mut bytes, at).map_err(|error| host(&self.name, error))?;
        Ok(from_bytes(&bytes))
    }

    /// Where the bytes from `offset` are.
    fn find(&self, offset: u64, len: u64) -> Result<Found> {
        self.with_tables(|| read_guard(&self.tables).look(offset, len))
    }

    /// Reads `[at, at + len)` of the file.
    fn read_own(&self, part: &mut [u8], at: u64) -> Result<()> {
        self.check_inside(at, part.len())?;
        self.counters.own_reads.fetch_add(1, Ordering::Relaxed);
        self.store.read_at(part, at).map_err(|error| host(&self.name, error))
    }

    /// A file that was cut short must not read as zeros, nor be written to past its end.
    fn check_inside(&self, at: u64, len: usize) -> Result<()> {
        match at.checked_add(len as u64) {
            Some(end) if end <= self.file_end.load(Ordering::Acquire) => Ok(()),
            _ => Err(Error::corrupt(OVERLAY, "a cluster past the end of the file", at)),
        }
    }

    /// The base's bytes; zeros where it is shorter than the overlay.
    fn read_base(&self, part: &mut [u8], offset: u64, bulk: bool) -> Result<()> {
        let there = self.base.size().saturating_sub(offset).min(part.len() as u64);
        let (now, beyond) = part.split_at_mut(usize::try_from(there).map_err(|_| Error::Invalid)?);
        beyond.fill(0);
        if now.is_empty() {
            return Ok(());
        }
        self.counters.base_reads.fetch_add(1, Ordering::Relaxed);
        if bulk { self.base.read_bulk_at(now, offset) } else { self.base.read_exact_at(now, offset) }
    }

    fn read(&self, buf: &mut [u8], offset: u64, bulk: bool) -> Result<()> {
        check_range(buf.len(), offset, self.size)?;
        self.lay_over(buf, offset, |part, at| self.read_base(part, at, bulk))
    }

    /// Fills in those bytes that the overlay covers; of the others `base` sees to each run.
    fn lay_over(&self, buf: &mut [u8], offset: u64, mut base: impl FnMut(&mut [u8], u64) -> Result<()>) -> Result<()> {
        let wanted = Wanted { overlay: self, end: offset.saturating_add(buf.len() as u64) };
        for_each_run(&wanted, offset, buf.len() as u64, |at, run| {
            let part = part_of(buf, at, run.len)?;
            match run.place {
                Place::At(place) => self.read_own(part, place),
                Place::Parent => base(part, offset.saturating_add(at)),
                Place::Hole | Place::Packed { .. } => {
                    part.fill(0);
                    Ok(())
                }
            }
        })
    }

    /// Zeroes those of the bytes that the overlay covers.
    fn blank_covered(&self, offset: u64, part: &mut [u8]) -> Result<()> {
        let wanted = Wanted { overlay: self, end: offset.saturating_add(part.len() as u64) };
        for_each_run(&wanted, offset, part.len() as u64, |at, run| {
            if run.place != Place::Parent {
                part_of(part, at, run.len)?.fill(0);
            }
            Ok(())
        })
    }

    /// Runs of bytes that the overlay has, ascending, neighbours joined: what may differ from the
    /// base, in whole clusters (clipped at the end of the disk).
    pub fn changed_runs(&self) -> ChangedRuns<'_> {
        ChangedRuns { overlay: self, at: 0 }
    }

    fn next_changed(&self, mut offset: u64) -> Result<Option<(u64, u64)>> {
        let mut start = None;
        while offset < self.size {
            let found = self.find(offset, self.size.saturating_sub(offset))?;
            match (found.spot, start) {
                (Spot::Base, Some(_)) => break,
                (Spot::Base, None) => {}
                (_, None) => start = Some(offset),
                _ => {}
            }
            offset = offset.saturating_add(found.len).min(self.size);
        }
        Ok(start.map(|start| (start, offset.saturating_sub(start))))
    }
}

/// The overlay as a mapping, up to where a reader wants to know it.
struct Wanted<'a> {
    overlay: &'a Overlay,
    end: u64,
}

impl Mapping for Wanted<'_> {
    fn size(&self) -> u64 {
        self.overlay.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let found = self.overlay.find(offset, self.end.saturating_sub(offset).max(1))?;
        let place = match found.spot {
            Spot::Base => Place::Parent,
            Spot::Zero { .. } => Place::Hole,
            Spot::Data { at, .. } => Place::At(at),
        };
        Ok(Run { place, len: found.len })
    }
}

/// See [`Overlay::changed_runs`]: (first byte, length).
pub struct ChangedRuns<'a> {
    overlay: &'a Overlay,
    at: u64,
}

impl Iterator for ChangedRuns<'_> {
    type Item = Result<(u64, u64)>;

    fn next(&mut self) -> Option<Self::Item> {
        let run = self.overlay.next_changed(self.at).transpose()?;
        self.at = match &run {
            Ok((start, len)) => start.saturating_add(*len),
            Err(_) => self.overlay.size,
        };
        Some(run)
    }
}

impl BlockDevice for Overlay {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector_size(&self) -> u32 {
        self.base.sector_size()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read(buf, offset, false)
    }

    fn read_bulk_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read(buf, offset, true)
    }

    fn extent(&self, offset: u64) -> Result<Extent> {
        let rest = self.size.saturating_sub(offset);
        if rest == 0 {
            return Ok(Extent { stored: true, len: 0 });
        }
        let found = self.find(offset, rest)?;
        let len = found.len.min(rest);
        match found.spot {
            Spot::Base if offset < self.base.size() => {
                let below = self.base.extent(offset)?;
                Ok(Extent { len: below.len.min(len).max(1), ..below })
            }
            Spot::Base | Spot::Zero { .. } => Ok(Extent { stored: false, len }),
            Spot::Data { .. } => Ok(Extent { stored: true, len }),
        }
    }

    fn writer(&self) -> Option<&dyn BlockWrite> {
        (!self.options.read_only).then_some(self as &dyn BlockWrite)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        if let Err(error) = self.flush() {
            log::error!("{}: what was written last is lost: {error}", self.name);
        }
        // Gives back the room that was set aside and not needed.
        if !self.options.read_only
            && let Err(error) = self.store.size().and_then(|size| self.store.set_size(size))
        {
            log::warn!("{}: {error}", self.name);
        }
    }
}

/// A file of the host as the overlay's own, where a writer need not wait for each large write.
fn early(store: HostStore) -> Box<dyn Store> {
    Box::new(Early::new(Box::new(store), LEAST))
}

/// The exact size of the disk: as bound, or the base's own where the header's is that, rounded.
fn disk_size(geometry: Geometry, binding: Option<&Binding>, base: &dyn BlockDevice) -> Result<u64> {
    let rounded = |size: u64| size.checked_next_multiple_of(512) == Some(geometry.disk_size);
    match binding {
        Some(binding) if rounded(binding.disk_size) => Ok(binding.disk_size),
        // `qemu-img resize` made it so.
        Some(_) => Ok(geometry.disk_size),
        None if rounded(base.size()) => Ok(base.size()),
        None => Ok(geometry.disk_size),
    }
}

fn read_guard(tables: &RwLock<Tables>) -> RwLockReadGuard<'_, Tables> {
    tables.read().unwrap_or_else(PoisonError::into_inner)
}

fn write_guard(tables: &RwLock<Tables>) -> RwLockWriteGuard<'_, Tables> {
    tables.write().unwrap_or_else(PoisonError::into_inner)
}
