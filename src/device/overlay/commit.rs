//! Ending an overlay: its changes go to a new image, into the base, or away.
//!
//! **A commit in place** is the one operation of the project that writes to an image. The overlay
//! keeps its data until the base is on stable storage, and its state says how far it came, so that
//! a commit that was interrupted anywhere is finished by the next one:
//! ```text
//!   Bound -> CommitBegun   then: hash of the samples that the overlay does not cover
//!         -> Copying       then: data to the base, sync; the base's new time and samples
//!         -> Emptying      then: L1 zeroed, sync; counts of what remains, sync; the file cut
//!         -> Bound
//! ```
//! Each arrow is one byte, synced before and after. In every state the base can be verified: while
//! it is written to, by the samples that the overlay does not cover.
//!
//! A commit to a new image reads the base anyway, and hashes it where its hash is not known yet.

use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::binding::{self, FULL_AT, MTIME_AT, SAMPLES_AT, State, Whole, sample, stat};
use super::geometry::{ENTRY, from_bytes};
use super::header::{Header, OVERLAY};
use super::store::{HostStore, Store, StoreDisk, host};
use super::write::is_zero;
use super::{Hash, Learned, Options, Overlay, rename_new, temporary_name};
use crate::device::{BlockDevice, BlockWrite, Device};
use crate::error::{Error, Result};

/// Bytes that are copied at a time.
const PIECE: u64 = 1 << 20;
/// Zeros of this length become a hole.
const HOLE: usize = 4 << 10;

/// Told how many bytes are done, and of how many.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// The same of what can be given up at any time: an error ends it, and nothing of it stays.
pub type Interruptible<'a> = &'a mut dyn FnMut(u64, u64) -> Result<()>;

impl Overlay {
    /// Writes base and overlay as a new raw image: sparse, and there with its name only when whole.
    /// What it learned of the base on the way is for [`super::remember`].
    pub fn commit_to_raw(&self, out: &Path, progress: Interruptible<'_>) -> Result<Option<Learned>> {
        let io = |error| host(&out.display().to_string(), error);
        new_image(out, |store| {
            store.set_size(self.size()).map_err(io)?;
            let learned = self.copy_stored(progress, &mut |part, offset| store.write_at(part, offset).map_err(io))?;
            store.sync().map_err(io)?;
            Ok(learned)
        })
    }

    /// The same as a new qcow2 image without a base.
    pub fn commit_to_qcow2(&self, out: &Path, progress: Interruptible<'_>) -> Result<Option<Learned>> {
        new_image(out, |store| {
            let zeros: Device = std::sync::Arc::new(Zeros { size: self.size(), sector_size: self.sector_size() });
            let image = Self::without_name(Box::new(store), &zeros, &Options::default())?;
            let learned = self.copy_stored(progress, &mut |part, offset| image.write_all_at(part, offset))?;
            image.close()?;
            Ok(learned)
        })
    }

    /// Calls `write` with everything that is neither a hole nor zeros.
    fn copy_stored(
        &self,
        progress: Interruptible<'_>,
        write: &mut dyn FnMut(&[u8], u64) -> Result<()>,
    ) -> Result<Option<Learned>> {
        let size = self.size();
        let mut base = self.learns().then(Whole::default);
        let mut buf = vec![0; usize::try_from(PIECE).map_err(|_| Error::Invalid)?];
        let mut offset = 0u64;
        while offset < size {
            let extent = self.extent(offset)?;
            let len = extent.len.min(if extent.stored { PIECE } else { u64::MAX }).max(1);
            if extent.stored {
                let part = buf.get_mut(..usize::try_from(len).map_err(|_| Error::Invalid)?).ok_or(Error::Invalid)?;
                self.read_learning(&mut base, part, offset)?;
                write_without_holes(part, offset, write)?;
            }
            offset = offset.saturating_add(len);
            progress(offset.min(size), size)?;
            // What is a hole here need not be one of the base.
            while let Some(whole) = &mut base {
                match whole.step(self.base.as_ref(), offset) {
                    Ok(true) => progress(offset.min(size), size)?,
                    Ok(false) => break,
                    Err(_) => base = None,
                }
            }
        }
        Ok(base.and_then(|whole| self.learned(whole)))
    }

    /// Reads as [`BlockDevice::read_bulk_at`], and hashes what the base has there.
    fn read_learning(&self, base: &mut Option<Whole>, part: &mut [u8], offset: u64) -> Result<()> {
        if let Some(whole) = base {
            // What cannot be read of the base can still be covered by the overlay.
            if whole.done == offset && self.base.read_bulk_at(part, offset).is_ok() {
                whole.add(part);
                return self.lay_over(part, offset, |_, _| Ok(()));
            }
            *base = None;
        }
        self.read_bulk_at(part, offset)
    }

    /// Writes the changes into the base, which must be a raw image, and empties the overlay. A
    /// commit that was interrupted is finished.
    pub fn commit_in_place(self, progress: Progress<'_>) -> Result<()> {
        self.check_committable()?;
        let base = HostStore::open_base(&self.base_path)?;
        self.commit_into(&base, progress)
    }

    /// As [`Overlay::commit_in_place`], through a store of the caller's.
    pub fn commit_in_place_through(self, base: &dyn Store, progress: Progress<'_>) -> Result<()> {
        self.check_committable()?;
        self.commit_into(base, progress)
    }

    fn check_committable(&self) -> Result<()> {
        let unsupported = |what: String| Err(Error::unsupported(OVERLAY, what));
        let Some(binding) = self.binding() else {
            return unsupported(
                "a commit in place of an overlay that another tool made (commit to a new image, or `qemu-img commit`)"
                    .to_owned(),
            );
        };
        if binding.format != "raw" {
            let format = &binding.format;
            return unsupported(format!("a commit in place into a {format} image (commit to a new image)"));
        }
        if binding.disk_size != self.size {
            return unsupported("a commit in place of an overlay that was resized (commit to a new image)".to_owned());
        }
        match &self.unwritable {
            Some(error) if self.options.read_only || binding.state != State::Copying => Err(error.clone()),
            _ => Ok(()),
        }
    }

    fn commit_into(self, base: &dyn Store, progress: Progress<'_>) -> Result<()> {
        self.flush()?;
        let binding = self.binding().ok_or(Error::Invalid)?;
        let name = self.base_path.display().to_string();
        let io = |error| host(&name, error);
        let disk = StoreDisk { store: base, size: base.size().map_err(io)?, sector_size: binding.sector_size };
        match binding.verify(&disk, &self.base_path, &mut |offset, part| self.blank_covered(offset, part)) {
            Err(error) if self.options.force && disk.size == self.size => {
                log::warn!("{error}; written to all the same, as was asked");
            }
            result => result?,
        }
        if binding.state != State::Copying {
            self.set_state(State::CommitBegun)?;
            let uncovered = sample(&disk, &mut |offset, part| self.blank_covered(offset, part))?;
            self.set_field(FULL_AT, &uncovered)?;
            self.set_state(State::Copying)?;
        }
        self.copy_changes(base, progress)?;
        base.sync().map_err(io)?;
        let (_, mtime) = stat(&self.base_path)?;
        let samples = sample(&disk, &mut |_, _| Ok(()))?;
        let full = binding::quick_hash(&disk, &samples);
        self.set_field(MTIME_AT, &mtime.to_be_bytes())?;
        self.set_field(SAMPLES_AT, &samples)?;
        self.set_state(State::Emptying)?;
        self.finish_empty(full)
    }

    fn copy_changes(&self, base: &dyn Store, progress: Progress<'_>) -> Result<()> {
        let runs = self.changed_runs().collect::<Result<Vec<_>>>()?;
        let total = runs.iter().fold(0u64, |sum, (_, len)| sum.saturating_add(*len));
        let mut buf = vec![0; usize::try_from(PIECE).map_err(|_| Error::Invalid)?];
        let mut done = 0u64;
        for (start, len) in runs {
            let mut within = 0u64;
            while within < len {
                let count = len.saturating_sub(within).min(PIECE);
                let part = buf.get_mut(..usize::try_from(count).map_err(|_| Error::Invalid)?).ok_or(Error::Invalid)?;
                let offset = start.saturating_add(within);
                self.read_bulk_at(part, offset)?;
                base.write_at(part, offset).map_err(|error| host(&self.base_path.display().to_string(), error))?;
                within = within.saturating_add(count);
                done = done.saturating_add(count);
                progress(done, total);
            }
        }
        Ok(())
    }

    /// Throws the changes away. Interrupted, it is finished when the overlay is opened next (one that
    /// another tool made has no place to say so, and may be left with a part of the changes).
    pub fn discard(self) -> Result<()> {
        self.check_failed()?;
        let state = self.binding().map(|binding| binding.state);
        // While a commit in place is unfinished, the base is neither the old nor the new one. A
        // damaged overlay, on the other hand, can be emptied.
        if state == Some(State::Copying) || self.options.read_only {
            return self.check_writable();
        }
        let full = self.binding().and_then(|binding| binding.full_hash());
        if state.is_some() {
            self.set_state(State::Discarding)?;
        }
        self.finish_empty(full)
    }

    /// `full` is the hash of the whole base, where it is known.
    fn finish_empty(mut self, full: Option<Hash>) -> Result<()> {
        // What memory still holds is of the old contents.
        self.closed = true;
        empty(self.store.as_ref(), self.binding_at)?;
        full.map_or(Ok(()), |full| self.set_full(&full))
    }

    /// Changes a field of the binding in the file, and waits for it.
    pub(super) fn set_field(&self, field: u64, value: &[u8]) -> Result<()> {
        // A sync that fails says so once, and it was perhaps the one of a writer.
        set_field(self.store.as_ref(), self.binding_at, field, value)
            .inspect_err(|_| self.failed.store(true, Ordering::Release))
    }

    pub(super) fn set_state(&self, state: State) -> Result<()> {
        self.set_field(binding::STATE_AT, &[state.to_byte()])?;
        if let Some(binding) = &mut *self.binding.lock().unwrap_or_else(PoisonError::into_inner) {
            binding.state = state;
        }
        Ok(())
    }
}

pub(super) fn set_field(store: &dyn Store, binding_at: u64, field: u64, value: &[u8]) -> Result<()> {
    let io = |error| host("the overlay's header", error);
    store.write_at(value, binding_at.saturating_add(field)).map_err(io)?;
    store.sync().map_err(io)
}

/// Makes an overlay's file as it was when new. `binding_at` is 0 when there is no binding.
pub(super) fn empty(store: &dyn Store, binding_at: u64) -> Result<()> {
    let io = |error| host("emptying the overlay", error);
    let header = Header::read(store)?;
    let geometry = header.geometry;
    write_zeros(store, header.l1.offset, header.l1.entries.saturating_mul(ENTRY))?;
    store.sync().map_err(io)?;
    // What stays: the header, both top tables, and the blocks that count these and themselves.
    let mut kept = vec![0];
    for table in [header.refcounts, header.l1] {
        let first = geometry.cluster(table.offset);
        kept.extend(first..first.saturating_add(geometry.clusters(table.entries.saturating_mul(ENTRY))));
    }
    let table_len = usize::try_from(header.refcounts.entries.saturating_mul(ENTRY)).map_err(|_| Error::Invalid)?;
    let mut table = vec![0; table_len];
    store.read_at(&mut table, header.refcounts.offset).map_err(io)?;
    let table = from_bytes(&table);
    let mut blocks = std::collections::BTreeMap::new();
    let mut at = 0usize;
    while let Some(cluster) = kept.get(at).copied() {
        at = at.saturating_add(1);
        let index = geometry.block_index(cluster);
        let place = table.get(index).copied().filter(|place| *place != 0 && geometry.within(*place) == 0);
        let place = place.ok_or_else(|| Error::corrupt(OVERLAY, "refcount table", header.refcounts.offset))?;
        if blocks.insert(index, place).is_none() {
            kept.push(geometry.cluster(place));
        }
    }
    for (index, entry) in table.iter().enumerate() {
        if *entry != 0 && !blocks.contains_key(&index) {
            let place = header.refcounts.offset.saturating_add((index as u64).saturating_mul(ENTRY));
            store.write_at(&[0; 8], place).map_err(io)?;
        }
    }
    store.sync().map_err(io)?;
    for (index, place) in &blocks {
        let mut counts = vec![0; geometry.cluster_len()];
        for cluster in kept.iter().filter(|cluster| geometry.block_index(**cluster) == *index) {
            let low = geometry.count_index(*cluster).saturating_mul(2).saturating_add(1);
            *counts.get_mut(low).ok_or(Error::Invalid)? = 1;
        }
        store.write_at(&counts, *place).map_err(io)?;
    }
    store.sync().map_err(io)?;
    let last = kept.iter().copied().max().unwrap_or(0);
    store.set_size(geometry.start(last.saturating_add(1))).map_err(io)?;
    store.sync().map_err(io)?;
    if binding_at != 0 {
        set_field(store, binding_at, binding::STATE_AT, &[State::Bound.to_byte()])?;
    }
    Ok(())
}

fn write_zeros(store: &dyn Store, offset: u64, len: u64) -> Result<()> {
    let zeros = vec![0; 64 << 10];
    let mut done = 0u64;
    while done < len {
        let count = usize::try_from(len.saturating_sub(done)).unwrap_or(usize::MAX).min(zeros.len());
        let part = zeros.get(..count).ok_or(Error::Invalid)?;
        store.write_at(part, offset.saturating_add(done)).map_err(|error| host("emptying the overlay", error))?;
        done = done.saturating_add(count as u64);
    }
    Ok(())
}

/// Makes a file under a temporary name, and gives it its own when `fill` has filled and synced it.
fn new_image<T>(out: &Path, fill: impl FnOnce(HostStore) -> Result<T>) -> Result<T> {
    if out.symlink_metadata().is_ok() {
        return Err(host(&out.display().to_string(), std::io::ErrorKind::AlreadyExists.into()));
    }
    let temporary = temporary_name(out);
    let store = HostStore::create(&temporary)?;
    let made = fill(store).and_then(|value| rename_new(&temporary, out).map(|()| value));
    if made.is_err() {
        drop(std::fs::remove_file(&temporary));
    }
    made
}

/// Writes what is not a long run of zeros.
fn write_without_holes(part: &[u8], offset: u64, write: &mut dyn FnMut(&[u8], u64) -> Result<()>) -> Result<()> {
    let pieces: Vec<(bool, &[u8])> = part.chunks(HOLE).map(|piece| (is_zero(piece), piece)).collect();
    let mut at = 0usize;
    for run in pieces.chunk_by(|a, b| a.0 == b.0) {
        let end = run.iter().fold(at, |sum, (_, piece)| sum.saturating_add(piece.len()));
        if run.first().is_some_and(|(zero, _)| !zero) {
            write(part.get(at..end).ok_or(Error::Invalid)?, offset.saturating_add(at as u64))?;
        }
        at = end;
    }
    Ok(())
}

/// A disk of zeros: what lies below an image that has no base.
struct Zeros {
    size: u64,
    sector_size: u32,
}

impl BlockDevice for Zeros {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        crate::device::check_range(buf.len(), offset, self.size)?;
        buf.fill(0);
        Ok(())
    }
}
