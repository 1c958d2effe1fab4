//! Where each cluster of the disk is: the L1 table, and those L2 tables that are in memory.
//!
//! ```text
//!   L1 entry: 1.......  position of an L2 table                 ......., or 0: nothing there was written
//!   L2 entry: 1.......  position of the cluster's bytes         ......0
//!             0                                                 ......0   the base's
//!             0 (or a position)                                 ......1   zeros
//! ```
//! Bit 63 says that the count of what the entry leads to is 1. Nothing here does I/O: a look-up of
//! a table that is not in memory says where it lies, and the caller, who holds no lock then, reads
//! it and hands it over. What is dirty stays until a flush has written it; the rest may be dropped.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};

use super::geometry::{ENTRY, Geometry, to_bytes};
use super::header::OVERLAY;
use super::refcounts::{Clusters, Refcounts};
use crate::error::{Error, Result};

/// Count is 1; may be written in place.
pub(super) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// L2 tables kept in memory, bytes.
const MAX_KEPT: u64 = 32 << 20;
/// Changed L2 tables kept before a write makes a flush, bytes.
const MAX_DIRTY: u64 = 16 << 20;

/// Where a cluster's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spot {
    /// In the base.
    Base,
    /// Nowhere: zeros. A cluster of the file may stand ready for it.
    Zero { ready: Option<u64> },
    /// From this byte of the file; `shared` when something else may lead there too.
    Data { at: u64, shared: bool },
}

/// What an L2 entry says.
pub(super) fn decode(entry: u64, geometry: Geometry) -> Result<Spot> {
    let at = entry & OFFSET;
    if entry & COMPRESSED != 0 {
        return Err(Error::unsupported(OVERLAY, "a compressed cluster"));
    }
    if geometry.within(at) != 0 {
        return Err(Error::corrupt(OVERLAY, "L2 entry", at));
    }
    let copied = entry & COPIED != 0;
    Ok(match (entry & ZERO != 0, at) {
        (true, 0) => Spot::Zero { ready: None },
        (true, at) => Spot::Zero { ready: copied.then_some(at) },
        (false, 0) => Spot::Base,
        (false, at) => Spot::Data { at, shared: !copied },
    })
}

/// A run of bytes of the disk that are in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub spot: Spot,
    pub len: u64,
}

/// The answer to a look-up.
pub(super) enum Look<T> {
    Found(T),
    /// Read this table, then ask again.
    Missing(Missing),
}

/// An L2 table that is not in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Missing {
    pub index: usize,
    pub at: u64,
    /// Which drop of tables the position was read after: a later one may have thrown out changes.
    epoch: u64,
}

struct Table {
    entries: Vec<u64>,
    dirty: bool,
    /// A flush is writing it.
    pinned: bool,
    /// Nothing in the file leads to it yet.
    new: bool,
    used: AtomicBool,
}

/// What a flush writes of the tables.
#[derive(Default)]
pub(super) struct TableWrites {
    /// Tables to which nothing in the file leads: written with the data.
    pub new: Vec<(u64, Vec<u8>)>,
    /// Tables that the file has: written when the data are safe.
    pub changed: Vec<(u64, Vec<u8>)>,
    /// L1 entries, with `changed`.
    pub l1: Vec<(u64, u64)>,
    tables: Vec<usize>,
    l1_indexes: BTreeSet<usize>,
}

/// The tables, and the counts that belong to them.
pub(super) struct Tables {
    geometry: Geometry,
    /// Position of the L1 table in the file.
    l1_at: u64,
    l1: Vec<u64>,
    /// L1 entries that differ from the file's.
    l1_dirty: BTreeSet<usize>,
    l2: HashMap<usize, Table>,
    dirty_count: u64,
    epoch: u64,
    pub refcounts: Refcounts,
}

impl Tables {
    pub fn new(geometry: Geometry, l1_at: u64, l1: Vec<u64>, refcounts: Refcounts) -> Self {
        let (l1_dirty, l2) = (BTreeSet::new(), HashMap::new());
        Self { geometry, l1_at, l1, l1_dirty, l2, dirty_count: 0, epoch: 0, refcounts }
    }

    /// Position of the L2 table that L1 entry `index` leads to; 0 for none.
    fn table_at(&self, index: usize) -> Result<u64> {
        let entry = self.l1.get(index).copied().ok_or(Error::Invalid)?;
        let at = entry & OFFSET;
        if self.geometry.within(at) == 0 { Ok(at) } else { Err(Error::corrupt(OVERLAY, "L1 entry", at)) }
    }

    /// Where the byte at `offset` of the disk is, and how many of `len` bytes follow it there.
    pub fn look(&self, offset: u64, len: u64) -> Result<Look<Found>> {
        let first = self.geometry.cluster(offset);
        let index = self.geometry.l1_index(first);
        let reach = self.geometry.l2_reach();
        if self.table_at(index)? == 0 {
            let mut end = (index as u64).saturating_add(1).saturating_mul(reach);
            let wanted = offset.saturating_add(len);
            for entry in self.l1.iter().skip(index.saturating_add(1)) {
                if *entry != 0 || end >= wanted {
                    break;
                }
                end = end.saturating_add(reach);
            }
            return Ok(Look::Found(Found { spot: Spot::Base, len: end.saturating_sub(offset) }));
        }
        let Some(table) = self.l2.get(&index) else {
            return Ok(Look::Missing(Missing { index, at: self.table_at(index)?, epoch: self.epoch }));
        };
        table.used.store(true, Ordering::Relaxed);
        let entries = table.entries.get(self.geometry.l2_index(first)..).unwrap_or_default();
        let (entry, rest) = entries.split_first().ok_or(Error::Invalid)?;
        let spot = decode(*entry, self.geometry)?;
        let size = self.geometry.cluster_size();
        let within = self.geometry.within(offset);
        let mut run = size;
        // What follows in the next table, when that is in memory, follows here.
        let next = self.entries_of(index.saturating_add(1));
        for entry in rest.iter().chain(next) {
            let follows = match spot {
                Spot::Base => *entry == 0,
                Spot::Zero { ready: None } => *entry == ZERO,
                Spot::Zero { .. } | Spot::Data { shared: true, .. } => false,
                Spot::Data { at, .. } => *entry == COPIED | at.saturating_add(run),
            };
            if !follows || run.saturating_sub(within) >= len {
                break;
            }
            run = run.saturating_add(size);
        }
        let spot = match spot {
            Spot::Data { at, shared } => Spot::Data { at: at.saturating_add(within), shared },
            other => other,
        };
        Ok(Look::Found(Found { spot, len: run.saturating_sub(within) }))
    }

    /// The entries of one L2 table: as if it were empty where there is none, and none at all while it is not in memory.
    fn entries_of(&self, index: usize) -> impl Iterator<Item = &u64> {
        let (kept, vacant) = match self.table_at(index) {
            Ok(0) => (None, usize::try_from(self.geometry.entries()).unwrap_or(0)),
            Ok(_) => (self.l2.get(&index), 0),
            Err(_) => (None, 0),
        };
        kept.into_iter().flat_map(|table| &table.entries).chain(std::iter::repeat_n(&0, vacant))
    }

    /// Takes a table that was read; `false` when it may be out of date and must be read again.
    pub fn insert(&mut self, missing: Missing, entries: Vec<u64>) -> bool {
        if self.l2.contains_key(&missing.index) {
            return true;
        }
        if missing.epoch != self.epoch {
            return false;
        }
        self.make_room();
        self.put(
            missing.index,
            Table { entries, dirty: false, pinned: false, new: false, used: AtomicBool::new(true) },
        );
        true
    }

    fn put(&mut self, index: usize, table: Table) {
        self.l2.insert(index, table);
    }

    /// Drops what was not used of late, and then everything, but never what is not in the file.
    fn make_room(&mut self) {
        let max = usize::try_from(MAX_KEPT >> self.geometry.bits()).unwrap_or(16).max(16);
        if self.l2.len() < max {
            return;
        }
        let before = self.l2.len();
        self.l2.retain(|_, table| table.dirty || table.pinned || table.used.swap(false, Ordering::Relaxed));
        if self.l2.len() >= max {
            self.l2.retain(|_, table| table.dirty || table.pinned);
        }
        if self.l2.len() < before {
            self.epoch = self.epoch.wrapping_add(1);
        }
    }

    /// Position in the file of the L1 entry for a cluster of the disk, while it leads nowhere.
    pub fn vacant_l1(&self, cluster: u64) -> Option<u64> {
        let index = self.geometry.l1_index(cluster);
        let vacant = self.l1.get(index).is_some_and(|entry| *entry & OFFSET == 0);
        vacant.then(|| self.l1_at.saturating_add((index as u64).saturating_mul(ENTRY)))
    }

    /// The L2 table for a cluster of the disk, made when there is none. True with a new one: its
    /// position, so that room can be taken for it.
    pub fn ensure_table(&mut self, cluster: u64) -> Result<Look<Option<u64>>> {
        let index = self.geometry.l1_index(cluster);
        let at = self.table_at(index)?;
        if at != 0 {
            return Ok(match self.l2.contains_key(&index) {
                true => Look::Found(None),
                false => Look::Missing(Missing { index, at, epoch: self.epoch }),
            });
        }
        let at = self.geometry.start(self.refcounts.allocate(1)?.first);
        self.make_room();
        let entries = vec![0; usize::try_from(self.geometry.entries()).map_err(|_| Error::Invalid)?];
        self.put(index, Table { entries, dirty: true, pinned: false, new: true, used: AtomicBool::new(true) });
        self.dirty_count = self.dirty_count.saturating_add(1);
        *self.l1.get_mut(index).ok_or(Error::Invalid)? = at | COPIED;
        self.l1_dirty.insert(index);
        Ok(Look::Found(Some(at)))
    }

    /// Makes `count` clusters of the disk, from `first`, lead to the file's from `target`, or to
    /// zeros: all of them, or none.
    pub fn publish(&mut self, first: u64, count: u64, target: Option<u64>) -> Result<Look<()>> {
        let last = first.saturating_add(count).saturating_sub(1);
        let (first_index, last_index) = (self.geometry.l1_index(first), self.geometry.l1_index(last));
        for index in first_index..=last_index {
            if !self.l2.contains_key(&index) {
                return Ok(Look::Missing(Missing { index, at: self.table_at(index)?, epoch: self.epoch }));
            }
        }
        let (mut from, mut numbers) = (self.geometry.l2_index(first), 0..count);
        for index in first_index..=last_index {
            let table = self.l2.get_mut(&index).ok_or(Error::Invalid)?;
            // The number is taken last: none is lost at the end of a table.
            for (entry, number) in table.entries.iter_mut().skip(from).zip(numbers.by_ref()) {
                *entry = match target {
                    Some(target) => COPIED | self.geometry.start(target.saturating_add(number)),
                    None => ZERO,
                };
            }
            if !table.dirty {
                table.dirty = true;
                self.dirty_count = self.dirty_count.saturating_add(1);
            }
            from = 0;
        }
        Ok(Look::Found(()))
    }

    /// True when so much is dirty that it is time to flush.
    pub fn is_crowded(&self) -> bool {
        self.dirty_count > (MAX_DIRTY >> self.geometry.bits()).max(4)
    }

    /// True when a flush has something to write.
    pub fn is_dirty(&self) -> bool {
        self.dirty_count > 0 || !self.l1_dirty.is_empty() || self.refcounts.is_dirty()
    }

    /// What differs from the file now. The tables stay in memory until [`Tables::done`] or
    /// [`Tables::failed`].
    pub fn take_writes(&mut self) -> TableWrites {
        let mut writes = TableWrites { l1_indexes: std::mem::take(&mut self.l1_dirty), ..TableWrites::default() };
        for (index, table) in self.l2.iter_mut().filter(|(_, table)| table.dirty) {
            let at = self.l1.get(*index).copied().unwrap_or(0) & OFFSET;
            let bytes = to_bytes(&table.entries);
            if table.new {
                writes.new.push((at, bytes))
            } else {
                writes.changed.push((at, bytes))
            }
            writes.tables.push(*index);
            (table.dirty, table.pinned) = (false, true);
        }
        self.dirty_count = 0;
        let entry = |index: &usize| {
            let at = self.l1_at.saturating_add((*index as u64).saturating_mul(ENTRY));
            Some((at, *self.l1.get(*index)?))
        };
        writes.l1 = writes.l1_indexes.iter().filter_map(entry).collect();
        writes
    }

    /// The L1 entries are about to be written: from now on the file may lead to the new tables.
    pub fn linking(&mut self, writes: &TableWrites) {
        for index in &writes.tables {
            if let Some(table) = self.l2.get_mut(index) {
                table.new = false;
            }
        }
    }

    /// The writes are on stable storage.
    pub fn done(&mut self, writes: &TableWrites) {
        for index in &writes.tables {
            if let Some(table) = self.l2.get_mut(index) {
                table.pinned = false;
            }
        }
    }

    /// The writes did not all get there.
    pub fn failed(&mut self, writes: TableWrites) {
        for index in &writes.tables {
            if let Some(table) = self.l2.get_mut(index) {
                table.pinned = false;
                if !table.dirty {
                    table.dirty = true;
                    self.dirty_count = self.dirty_count.saturating_add(1);
                }
            }
        }
        self.l1_dirty.extend(writes.l1_indexes);
    }

    /// L2 tables of which the file, or memory, has one: (L1 index, position).
    pub fn l2_places(&self) -> impl Iterator<Item = (usize, u64)> {
        let places = self.l1.iter().enumerate().map(|(index, entry)| (index, *entry & OFFSET));
        places.filter(|(_, at)| *at != 0)
    }

    /// Gives back clusters that were allocated and not published.
    pub fn give_back(&mut self, clusters: Clusters) {
        self.refcounts.free(clusters);
    }
}
