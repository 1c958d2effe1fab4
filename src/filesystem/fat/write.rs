//! The write side: every change is made in memory, where all readers see it, and reaches the disk
//! in the order that `commit` gives it. Contents alone are written at once.

use std::sync::{Arc, PoisonError, RwLockWriteGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use super::entry::{ARCHIVE, Entry, READ_ONLY};
use super::legacy::Seen;
use super::state::State;
use super::table::Chain;
use super::time::Stamp;
use super::{Fat, ROOT};
use crate::cache::lock;
use crate::device::Kept;
use crate::error::{Error, Result};
use crate::filesystem::{Changes, FileSystemWrite, Kind, Legacy, NewNode, NodeId, Timestamp};

/// Zeros are written so many bytes at a time.
const ZEROS: usize = 1 << 20;
/// A file grows by so many bytes before others have their turn.
const STEP: u64 = 32 << 20;
/// Largest file: its size has 32 bits.
const MAX_SIZE: u64 = u32::MAX as u64;
/// The attribute bits that `user.fat.attributes` may change: read-only, hidden, system, archive.
const SETTABLE: u8 = 0x27;

/// A file that has grown.
struct Grown {
    chain: Arc<Chain>,
    first: u32,
    /// Bytes of the clusters that it had before.
    held: u64,
    before: Entry,
}

impl Fat {
    pub(super) fn exclusive(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, for a change: the volume is marked as being written to.
    fn changing(&self) -> Result<RwLockWriteGuard<'_, State>> {
        let mut state = self.exclusive();
        self.mark(&mut state)?;
        Ok(state)
    }

    /// Stores a node's entry.
    pub(super) fn put_entry(&self, state: &mut State, node: NodeId, entry: Entry) -> Result<()> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
        if let Some(orphan) = state.orphans.get_mut(&node) {
            *orphan = entry;
            return Ok(());
        }
        self.patch(state, state.nodes.position(node), &entry.to_bytes(self.geometry.width))
    }

    /// A directory's contents changed now.
    pub(super) fn touch_directory(&self, state: &State, node: NodeId, now: Timestamp) {
        if node != ROOT && !state.orphans.contains_key(&node) {
            let stamp = Stamp::from_utc(now, self.time_offset);
            self.touched.lock().unwrap_or_else(PoisonError::into_inner).insert(node, stamp);
        }
    }

    /// Writes within the chain.
    pub(super) fn write_runs(&self, chain: &Chain, buf: &[u8], offset: u64, kept: Kept<'_>) -> Result<()> {
        let writer = self.device_writer()?;
        let (mut buf, mut offset) = (buf, offset);
        while !buf.is_empty() {
            let (at, run) = chain.place(offset).ok_or_else(|| chain.end_error())?;
            let count = usize::try_from(run).unwrap_or(usize::MAX).min(buf.len());
            let (now, later) = buf.split_at(count);
            if later.is_empty() {
                return writer.write_early_at(now, at, kept);
            }
            writer.write_all_at(now, at)?;
            buf = later;
            offset = offset.saturating_add(count as u64);
        }
        Ok(())
    }

    /// Sees to it that a write within the chain does not fail for want of space.
    fn reserve_runs(&self, chain: &Chain, len: u64, offset: u64) -> Result<()> {
        let end = offset.saturating_add(len);
        let mut offset = offset;
        while offset < end {
            let (at, run) = chain.place(offset).ok_or_else(|| chain.end_error())?;
            let count = run.min(end.saturating_sub(offset));
            self.device_writer()?.reserve(at, count)?;
            offset = offset.saturating_add(count);
        }
        Ok(())
    }

    pub(super) fn write_zeros(&self, chain: &Chain, offset: u64, end: u64) -> Result<()> {
        let len = end.saturating_sub(offset);
        let zeros = vec![0; usize::try_from(len).unwrap_or(ZEROS).min(ZEROS)];
        let mut offset = offset;
        while offset < end {
            let count = usize::try_from(end.saturating_sub(offset)).unwrap_or(ZEROS).min(ZEROS);
            self.write_runs(chain, zeros.get(..count).unwrap_or(&zeros), offset, &mut || ())?;
            offset = offset.saturating_add(count as u64);
        }
        Ok(())
    }

    /// Overwrites what is there, beside all other readers and writers. `false` when the file must
    /// grow first.
    fn write_in_place(&self, file: NodeId, buf: &[u8], offset: u64, now: Timestamp, kept: Kept<'_>) -> Result<bool> {
        let state = self.shared();
        let entry = self.file_entry(&state, file)?;
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= MAX_SIZE).ok_or(Error::TooLarge)?;
        if end > u64::from(entry.size) || state.marked.is_none() {
            return Ok(false);
        }
        let chain = self.file_chain(&state, &entry, state.nodes.position(file))?;
        if end > chain.len {
            return Err(chain.end_error());
        }
        self.reserve_entry(&state, file)?;
        // First: who is told early may ask for it. Also what fails may have changed a part.
        let stamp = Stamp::from_utc(now, self.time_offset);
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).insert(file, stamp);
        let mut state = Some(state);
        self.write_runs(&chain, buf, offset, &mut || {
            drop(state.take());
            kept();
        })?;
        Ok(true)
    }

    /// The entry of a file.
    fn file_entry(&self, state: &State, file: NodeId) -> Result<Entry> {
        if file == ROOT {
            return Err(Error::IsDirectory);
        }
        let entry = self.entry(state, file)?;
        if entry.is_directory() { Err(Error::IsDirectory) } else { Ok(entry) }
    }

    /// Grows a file to `size`, its new bytes below `from` being zeros, and stores its entry. Nothing has changed when it
    /// fails.
    fn grow(&self, state: &mut State, file: NodeId, entry: &mut Entry, size: u64, from: u64) -> Result<Grown> {
        let position = state.nodes.position(file);
        let chain = self.file_chain_to(state, entry, position, size)?;
        let old = u64::from(entry.size);
        if old > chain.len {
            return Err(chain.end_error());
        }
        let held = chain.len;
        let size_field = u32::try_from(size).map_err(|_| Error::TooLarge)?;
        let before = self.entry(state, file)?;
        let first = self.extend(state, entry.cluster, chain, size)?;
        let grown = Grown { chain: self.chain(state, first, size)?, first, held, before };
        let longer = Entry { cluster: first, size: size_field, ..*entry };
        let written = self.write_zeros(&grown.chain, old, from);
        if let Err(error) = written.and_then(|()| self.put_entry(state, file, longer)) {
            self.ungrow(state, file, &grown)?;
            return Err(error);
        }
        *entry = longer;
        Ok(grown)
    }

    /// Takes back that a file has grown.
    fn ungrow(&self, state: &mut State, file: NodeId, grown: &Grown) -> Result<()> {
        self.put_entry(state, file, grown.before)?;
        if grown.chain.len > grown.held {
            self.shrink(state, grown.first, &grown.chain, grown.held)?;
        }
        Ok(())
    }

    /// Takes room for the links to the clusters behind `last`, which a file is likely to get next when `len` bytes were
    /// written at its end, and as many have been, or will be, by other threads meanwhile.
    fn reserve_ahead(&self, last: u32, len: usize) {
        const WRITES: u64 = 4;
        let count = (len as u64).checked_div(u64::from(self.geometry.cluster_size)).unwrap_or(0);
        let count = u32::try_from(count.saturating_mul(WRITES)).unwrap_or(0);
        if count > 0
            && let Ok(writer) = self.device_writer()
            && let Err(error) = self.table.reserve(writer, last.saturating_add(1), count)
        {
            // Whoever needs it will be told.
            log::debug!("fat: no room ahead for the table: {error}");
        }
    }

    /// Brings a file that is to grow by much near its new size, in steps between which others have
    /// their turn: FAT has no holes, so all of it must be written.
    fn grow_ahead(&self, file: NodeId, size: u64) -> Result<()> {
        let mut before = None;
        loop {
            let mut state = self.changing()?;
            let mut entry = self.file_entry(&state, file)?;
            self.reserve_entry(&state, file)?;
            let old = *before.get_or_insert(u64::from(entry.size));
            let next = u64::from(entry.size).saturating_add(STEP);
            if next >= size {
                return Ok(());
            }
            let grown = self.check_room(&mut state, &entry, file, size);
            let grown = grown.and_then(|()| self.grow(&mut state, file, &mut entry, next, next).map(drop));
            if grown.is_err() && u64::from(entry.size) > old {
                self.resize(&mut state, file, &mut entry, old)?;
                self.put_entry(&mut state, file, entry)?;
            }
            grown?;
        }
    }

    /// Whether a file could grow to `size` now.
    fn check_room(&self, state: &mut State, entry: &Entry, file: NodeId, size: u64) -> Result<()> {
        if size > MAX_SIZE {
            return Err(Error::TooLarge);
        }
        let held = self.file_chain_to(state, entry, state.nodes.position(file), size)?.len;
        let missing = size.saturating_sub(held).div_ceil(u64::from(self.geometry.cluster_size));
        self.free_map(state)?;
        let free = state.free_clusters().unwrap_or(0);
        if missing > u64::from(free) { Err(Error::NoSpace) } else { Ok(()) }
    }

    /// Frees what files held that were removed while they were open.
    fn give_back(&self, state: &mut State, orphans: impl IntoIterator<Item = Entry>) {
        for orphan in orphans {
            if let Err(error) = self.free_contents(state, &orphan) {
                log::warn!("fat: the clusters of a removed file stay taken: {error}");
            }
        }
    }

    fn resize(&self, state: &mut State, file: NodeId, entry: &mut Entry, size: u64) -> Result<()> {
        let new_size = u32::try_from(size).map_err(|_| Error::TooLarge)?;
        if new_size > entry.size {
            return self.grow(state, file, entry, size, size).map(drop);
        }
        let chain = self.file_chain(state, entry, state.nodes.position(file))?;
        entry.cluster = match self.geometry.cluster_offset(entry.cluster) {
            Some(_) => self.shrink(state, entry.cluster, &chain, size)?,
            None if size == 0 => 0,
            None => return Err(chain.end_error()),
        };
        entry.size = new_size;
        Ok(())
    }
}

/// The time, for changes of directories that come without one.
pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanoseconds: since.subsec_nanos() }
}

impl FileSystemWrite for Fat {
    fn create(&self, dir: NodeId, name: &[u8], new: NewNode) -> Result<NodeId> {
        if !matches!(new.kind, Kind::File | Kind::Directory) {
            return Err(Error::Invalid);
        }
        let mut state = self.changing()?;
        let node = self.create_locked(&mut state, dir, name, new)?;
        self.commit_if_large(&mut state)?;
        Ok(node)
    }

    fn write_early(&self, file: NodeId, buf: &[u8], offset: u64, now: Timestamp, kept: Kept<'_>) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= MAX_SIZE).ok_or(Error::TooLarge)?;
        if self.shared().marked.is_none() {
            drop(self.changing()?);
        }
        if self.write_in_place(file, buf, offset, now, kept)? {
            return Ok(());
        }
        self.grow_ahead(file, end)?;
        let mut state = self.changing()?;
        self.commit_if_large(&mut state)?;
        let mut entry = self.file_entry(&state, file)?;
        self.reserve_entry(&state, file)?;
        entry.modified = Stamp::from_utc(now, self.time_offset);
        entry.attributes |= ARCHIVE;
        if end > u64::from(entry.size) {
            let old = u64::from(entry.size).max(offset);
            // The part below the old end goes first; what grows the file, with it or not at all.
            let split = usize::try_from(old.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
            let (below, above) = buf.split_at(split);
            if !below.is_empty() {
                let chain = self.file_chain(&state, &entry, state.nodes.position(file))?;
                self.reserve_runs(&chain, below.len() as u64, offset)?;
                let grown = self.grow(&mut state, file, &mut entry, end, old)?;
                if let Err(error) = self.write_runs(&grown.chain, above, old, &mut || ()) {
                    self.ungrow(&mut state, file, &grown)?;
                    return Err(error);
                }
                return self.write_runs(&chain, below, offset, &mut || ());
            }
            let grown = self.grow(&mut state, file, &mut entry, end, offset)?;
            let mut held = Some(state);
            let written = self.write_runs(&grown.chain, buf, offset, &mut || {
                // All that others could look at is as if it were done.
                drop(held.take());
                kept();
            });
            match (&written, &mut held) {
                (Err(_), Some(state)) => self.ungrow(state, file, &grown)?,
                // It was answered: its writer need not wait for this, and has it when he comes back with as much.
                (Ok(()), None) => self.reserve_ahead(grown.chain.last, buf.len()),
                _ => {}
            }
            written
        } else {
            let chain = self.file_chain(&state, &entry, state.nodes.position(file))?;
            self.write_runs(&chain, buf, offset, &mut || ())?;
            self.put_entry(&mut state, file, entry)
        }
    }

    fn set_attributes(&self, node: NodeId, changes: &Changes) -> Result<()> {
        if let Some(size) = changes.size {
            self.grow_ahead(node, size)?;
        }
        let mut state = self.changing()?;
        if node == ROOT {
            // The root has no entry, so its times and marks have no place.
            return if changes.size.is_some() { Err(Error::IsDirectory) } else { Ok(()) };
        }
        let mut entry = self.entry(&state, node)?;
        self.reserve_entry(&state, node)?;
        if let Some(size) = changes.size {
            if entry.is_directory() {
                return Err(Error::IsDirectory);
            }
            self.resize(&mut state, node, &mut entry, size)?;
        }
        if let Some(read_only) = changes.read_only {
            entry.attributes = entry.attributes & !READ_ONLY | if read_only { READ_ONLY } else { 0 };
        }
        let stamp = |time| Stamp::from_utc(time, self.time_offset);
        if let Some(time) = changes.accessed {
            entry.accessed = stamp(time).date;
        }
        if let Some(time) = changes.modified {
            entry.modified = stamp(time);
        }
        if let Some(time) = changes.created {
            entry.created = stamp(time);
        }
        self.put_entry(&mut state, node, entry)?;
        self.commit_if_large(&mut state)
    }

    fn rename(&self, dir: NodeId, name: &[u8], new_dir: NodeId, new_name: &[u8], replace: bool) -> Result<()> {
        let mut state = self.changing()?;
        self.rename_locked(&mut state, (dir, name), (new_dir, new_name), replace)?;
        self.commit_if_large(&mut state)
    }

    fn remove(&self, dir: NodeId, name: &[u8], directory: bool) -> Result<()> {
        let mut state = self.changing()?;
        self.remove_locked(&mut state, dir, name, directory)?;
        self.commit_if_large(&mut state)
    }

    fn set_xattr(&self, node: NodeId, name: &[u8], value: &[u8]) -> Result<()> {
        if name != b"user.fat.attributes" || node == ROOT {
            return Err(Error::NotAnAttribute);
        }
        let text = std::str::from_utf8(value).map_err(|_| Error::Invalid)?.trim_end_matches('\0');
        let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => u8::from_str_radix(digits, 16),
            None => text.parse(),
        };
        let value = parsed.map_err(|_| Error::Invalid)?;
        let mut state = self.changing()?;
        let mut entry = self.entry(&state, node)?;
        if (value ^ entry.attributes) & !SETTABLE != 0 {
            return Err(Error::Invalid);
        }
        entry.attributes = value;
        self.put_entry(&mut state, node, entry)
    }

    fn opened(&self, node: NodeId) {
        let state = self.shared();
        let seen = self.stored_entry(&state, node).ok().as_ref().map(Seen::from);
        let mut open = lock(&state.open);
        let opened = open.entry(node).or_default();
        opened.count = opened.count.saturating_add(1);
        opened.seen = opened.seen.or(seen);
    }

    fn closed(&self, node: NodeId) {
        {
            let state = self.shared();
            let mut open = lock(&state.open);
            let Some(opened) = open.get_mut(&node) else { return };
            opened.count = opened.count.saturating_sub(1);
            if opened.count > 0 {
                return;
            }
            open.remove(&node);
        }
        let mut state = self.exclusive();
        let orphan = state.orphans.remove(&node);
        self.give_back(&mut state, orphan);
    }

    fn flush(&self) -> Result<()> {
        let mut state = self.exclusive();
        if state.marked.is_none() {
            return Ok(());
        }
        self.commit(&mut state)
    }

    fn quiesce(&self) -> Result<()> {
        let mut state = self.exclusive();
        if state.marked.is_none() {
            return Ok(());
        }
        self.commit(&mut state)?;
        // What only an open file holds has no name: fsck.fat has something to do until it is closed.
        if state.orphans.is_empty() { self.unmark(&mut state) } else { Ok(()) }
    }

    fn finish(&self) -> Result<()> {
        let mut state = self.exclusive();
        let orphans = std::mem::take(&mut state.orphans);
        self.give_back(&mut state, orphans.into_values());
        drop(state);
        self.quiesce()
    }

    fn stand_aside(&self) -> Result<()> {
        if !self.shared().orphans.is_empty() {
            // Others would take their clusters for free, or for lost.
            return Err(Error::Busy);
        }
        self.quiesce()?;
        self.remember_open(&self.shared());
        Ok(())
    }

    fn legacy(&self) -> Option<Legacy> {
        Some(self.estate())
    }

    fn inherit(&self, legacy: &Legacy) {
        self.take_over(legacy);
    }
}
