//! Writing back, in an order that no crash can turn into the loss of a file.
//!
//! Contents are written at once. All else is kept in memory until a flush, which writes it in
//! stages with a barrier after each, so that nothing on the disk ever names what is not there yet:
//!
//! ```text
//!   1  table       new links: clusters that no entry names yet (and pieces of the long names
//!                  of renamed files whose 8.3 entry is in another sector)
//!   2  directories new and changed entries, which name those clusters
//!   3  directories removed entries, which were renamed or deleted
//!   4  table       clusters that no entry names any more become free (and what is left of the
//!                  long names of removed entries)
//! ```
//! A crash between two stages leaves clusters without a file, a file with two names, or a chain
//! longer than its file: `fsck.fat` mends each of them. Freed clusters and removed slots are not
//! used again before their stage is on the disk.
//!
//! Room for all of that is taken from the device when a change is made in memory
//! ([`BlockWrite::reserve`]): on an overlay that is full a change is refused, and one that was not
//! refused can be written back.

use std::collections::btree_map::Entry as Slot;
use std::sync::PoisonError;

use super::entry::{ARCHIVE, FREED, SLOT};
use super::free::FreeMap;
use super::geometry::Width;
use super::state::{Marks, Removal, Stage, State};
use super::table::END_MARK;
use super::time::Stamp;
use super::{Fat, ROOT};
use crate::device::{BlockWrite, read_array};
use crate::error::{Error, Result};
use crate::filesystem::NodeId;

/// Changes are written back unasked once they take so much memory: sectors, pieces of the table,
/// removed slots and freed runs.
const MOST_SECTORS: usize = 8192;
const MOST_PIECES: usize = 128;
const MOST_REMOVED: usize = 65_536;

impl Fat {
    pub(super) fn device_writer(&self) -> Result<&dyn BlockWrite> {
        self.device.writer().ok_or(Error::ReadOnly)
    }

    /// Writes back all that differs from the disk.
    pub(super) fn commit(&self, state: &mut State) -> Result<()> {
        let writer = self.device_writer()?;
        // A time that cannot be brought to its entry keeps nothing else from the disk.
        let times = self.settle_times(state);
        writer.flush()?;
        if !state.table.pieces.is_empty() || !state.early.is_empty() {
            self.table.write_back(&mut state.table, writer)?;
            self.write_early(state, writer)?;
            writer.flush()?;
        }
        if !state.sectors.is_empty() {
            write_sectors(state, writer)?;
            writer.flush()?;
        }
        if self.patch_removed(state, Stage::Entry)? {
            write_sectors(state, writer)?;
            writer.flush()?;
        }
        let mut more = self.patch_removed(state, Stage::Piece)?;
        write_sectors(state, writer)?;
        if !state.table.cuts.is_empty() || !state.freed.is_empty() {
            self.write_frees(state, writer)?;
            more = true;
        }
        more |= self.write_info(state, writer)?;
        if more {
            writer.flush()?;
        }
        state.removed_names.clear();
        for (_, Removal { key, slot, .. }) in std::mem::take(&mut state.removed) {
            if let Some(directory) = self.directories.get(&key) {
                directory.write().unwrap_or_else(PoisonError::into_inner).free.release(slot, 1);
            }
        }
        times
    }

    /// Writes back when what is kept in memory takes too much of it.
    pub(super) fn commit_if_large(&self, state: &mut State) -> Result<()> {
        let large = state.sectors.len() > MOST_SECTORS
            || state.table.pieces.len() > MOST_PIECES
            || state.removed.len() > MOST_REMOVED
            || state.freed.len() > MOST_REMOVED
            || state.table.cuts.len() > MOST_REMOVED;
        if large { self.commit(state) } else { Ok(()) }
    }

    /// Brings the times of files that were written in place into their entries. All of them; the answer is the first
    /// failure. For a time that found no room there may be some later.
    fn settle_times(&self, state: &mut State) -> Result<()> {
        let touched = std::mem::take(&mut *self.touched.lock().unwrap_or_else(PoisonError::into_inner));
        let mut settled = Ok(());
        for (node, stamp) in touched {
            match self.settle_time(state, node, stamp) {
                Ok(()) | Err(Error::NotFound | Error::Stale) => {}
                Err(error) => {
                    if matches!(error, Error::NoSpace) {
                        self.touched.lock().unwrap_or_else(PoisonError::into_inner).entry(node).or_insert(stamp);
                    }
                    settled = settled.and(Err(error));
                }
            }
        }
        settled
    }

    fn settle_time(&self, state: &mut State, node: NodeId, stamp: Stamp) -> Result<()> {
        let mut entry = self.entry(state, node)?;
        entry.modified = stamp;
        if !entry.is_directory() {
            entry.attributes |= ARCHIVE;
        }
        self.put_entry(state, node, entry)
    }

    /// Frees the removed slots whose turn it is, in memory; whether there are any.
    fn patch_removed(&self, state: &mut State, stage: Stage) -> Result<bool> {
        let removed = state.removed.iter().filter(|(_, removal)| removal.stage == stage);
        let places: Vec<u64> = removed.map(|(&at, _)| at).collect();
        for &at in &places {
            self.patch(state, at, &[FREED])?;
        }
        Ok(!places.is_empty())
    }

    /// Writes pieces of long names, and nothing else of their sectors, to slots that are free on
    /// the disk.
    fn write_early(&self, state: &mut State, writer: &dyn BlockWrite) -> Result<()> {
        let mut now = State::default();
        for (at, bytes) in &state.early {
            self.patch(&mut now, *at, bytes)?;
        }
        write_sectors(&mut now, writer)?;
        state.early.clear();
        Ok(())
    }

    fn write_frees(&self, state: &mut State, writer: &dyn BlockWrite) -> Result<()> {
        let cuts: Vec<u32> = state.table.cuts.iter().copied().collect();
        for cluster in cuts {
            self.table.set(&mut state.table, cluster, END_MARK)?;
        }
        for &(first, count) in &state.freed {
            for cluster in first..first.saturating_add(count) {
                self.table.set(&mut state.table, cluster, 0)?;
            }
        }
        self.table.write_back(&mut state.table, writer)?;
        state.table.cuts.clear();
        for (first, count) in std::mem::take(&mut state.freed) {
            if let Some(map) = &mut state.free {
                for cluster in first..first.saturating_add(count) {
                    map.mark(cluster, false);
                }
            }
        }
        Ok(())
    }

    /// Whether FSInfo had to be written.
    fn write_info(&self, state: &mut State, writer: &dyn BlockWrite) -> Result<bool> {
        let (Some(at), Some(map)) = (self.geometry.info_offset, &state.free) else { return Ok(false) };
        let now = (map.free(), map.next());
        if state.info == Some(now) {
            return Ok(false);
        }
        let mut sector: [u8; 512] = read_array(self.device.as_ref(), at)?;
        let fields = now.0.to_le_bytes().into_iter().chain(now.1.to_le_bytes());
        for (to, from) in sector.iter_mut().skip(488).zip(fields) {
            *to = from;
        }
        writer.write_all_at(&sector, at)?;
        state.info = Some(now);
        Ok(true)
    }

    /// Marks the volume as being written to, before the first change.
    pub(super) fn mark(&self, state: &mut State) -> Result<()> {
        if state.marked.is_some() {
            return Ok(());
        }
        let writer = self.device_writer()?;
        let boot = match self.geometry.state_offset {
            Some(at) => Some(read_array::<1>(self.device.as_ref(), at)?[0]),
            None => None,
        };
        let table = match self.clean_bit() {
            Some(_) => self.table.piece(&state.table, 0).ok().and_then(|piece| self.table.number(&piece, 1)),
            None => None,
        };
        let marks = Marks { boot, table };
        if let Some(at) = self.geometry.info_offset {
            writer.reserve(at, 512)?;
        }
        // It is stable before any change of the volume's structures is: a commit begins with a flush.
        self.write_marks(state, writer, &marks, true)?;
        state.marked = Some(marks);
        Ok(())
    }

    /// Takes the marks away again; one that was there before stays.
    pub(super) fn unmark(&self, state: &mut State) -> Result<()> {
        let Some(marks) = state.marked else { return Ok(()) };
        let writer = self.device_writer()?;
        self.write_marks(state, writer, &marks, false)?;
        writer.flush()?;
        state.marked = None;
        Ok(())
    }

    fn write_marks(&self, state: &mut State, writer: &dyn BlockWrite, marks: &Marks, dirty: bool) -> Result<()> {
        if let (Some(flags), Some(clean)) = (marks.table, self.clean_bit()) {
            self.table.set(&mut state.table, 1, if dirty { flags & !clean } else { flags })?;
            self.table.write_back(&mut state.table, writer)?;
        }
        if let (Some(flags), Some(at)) = (marks.boot, self.geometry.state_offset) {
            writer.write_all_at(&[if dirty { flags | 1 } else { flags }], at)?;
        }
        Ok(())
    }

    /// The bit of table entry 1 that says that the volume was unmounted.
    pub(super) fn clean_bit(&self) -> Option<u32> {
        match self.geometry.width {
            Width::Fat12 => None,
            Width::Fat16 => Some(0x8000),
            Width::Fat32 => Some(0x0800_0000),
        }
    }

    /// Changes bytes of a directory, within one sector, in memory.
    pub(super) fn patch(&self, state: &mut State, at: u64, bytes: &[u8]) -> Result<()> {
        let unit = u64::from(self.geometry.sector_size);
        let within = at.checked_rem(unit).unwrap_or(0);
        let start = at.saturating_sub(within);
        let sector = match state.sectors.entry(start) {
            Slot::Occupied(sector) => sector.into_mut(),
            Slot::Vacant(place) => {
                let len = self.device.size().saturating_sub(start).min(unit);
                self.device_writer()?.reserve(start, len)?;
                let mut sector = vec![0; usize::try_from(len).map_err(|_| Error::Invalid)?];
                self.device.read_exact_at(&mut sector, start)?;
                place.insert(sector)
            }
        };
        let from = usize::try_from(within).map_err(|_| Error::Invalid)?;
        let to = sector.get_mut(from..from.saturating_add(bytes.len())).ok_or(Error::Invalid)?;
        to.copy_from_slice(bytes);
        Ok(())
    }

    /// Sees to it that the slots at these positions can be written back whenever that is. To be
    /// called before the first change that must not be left half done.
    pub(super) fn reserve_slots(&self, state: &State, positions: impl IntoIterator<Item = u64>) -> Result<()> {
        let unit = u64::from(self.geometry.sector_size);
        let mut last = None;
        for at in positions {
            let start = at.saturating_sub(at.checked_rem(unit).unwrap_or(0));
            if last.replace(start) != Some(start) && !state.sectors.contains_key(&start) {
                let len = self.device.size().saturating_sub(start).min(unit);
                self.device_writer()?.reserve(start, len)?;
            }
        }
        Ok(())
    }

    /// The same for a node's own entry.
    pub(super) fn reserve_entry(&self, state: &State, node: NodeId) -> Result<()> {
        if node == ROOT || state.orphans.contains_key(&node) {
            return Ok(());
        }
        self.reserve_slots(state, [state.nodes.position(node)])
    }

    /// Whether the slots at two positions reach the disk in one write, whole or not at all.
    pub(super) fn same_sector(&self, one: u64, other: u64) -> bool {
        let unit = u64::from(self.geometry.sector_size);
        let last = other.saturating_add(SLOT as u64).saturating_sub(1);
        one.checked_div(unit) == last.checked_div(unit)
    }

    /// The map of free clusters, made from the table with the first allocation.
    pub(super) fn free_map<'a>(&self, state: &'a mut State) -> Result<&'a mut FreeMap> {
        let map = match state.free.take() {
            Some(map) => map,
            None => {
                let next = self.info.and_then(|info| info.next).unwrap_or(2);
                let mut map = FreeMap::new(self.geometry.cluster_count, next);
                self.table.scan(&state.table, |cluster| map.mark(cluster, true))?;
                // An image that was cut has no room for the last clusters.
                let size = u64::from(self.geometry.cluster_size);
                let held = self.device.size().saturating_sub(self.geometry.data_offset).checked_div(size).unwrap_or(0);
                let first = u32::try_from(held).unwrap_or(u32::MAX).saturating_add(2);
                for cluster in first..self.geometry.cluster_count.saturating_add(2) {
                    map.mark(cluster, true);
                }
                map
            }
        };
        Ok(state.free.insert(map))
    }
}

/// Writes the changed sectors, neighbours in one go.
fn write_sectors(state: &mut State, writer: &dyn BlockWrite) -> Result<()> {
    let mut start = 0u64;
    let mut run: Vec<u8> = Vec::new();
    for (&at, sector) in &state.sectors {
        if start.saturating_add(run.len() as u64) != at && !run.is_empty() {
            writer.write_all_at(&run, start)?;
            run.clear();
        }
        if run.is_empty() {
            start = at;
        }
        run.extend_from_slice(sector);
    }
    if !run.is_empty() {
        writer.write_all_at(&run, start)?;
    }
    state.sectors.clear();
    Ok(())
}
