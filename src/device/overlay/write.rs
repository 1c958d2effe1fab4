//! Writing and flushing.

use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, PoisonError};

use super::geometry::ENTRY;
use super::header::REFCOUNT_TABLE_FIELD;
use super::refcounts::{Clusters, RefcountWrites};
use super::store::host;
use super::tables::{Spot, TableWrites};
use super::{Overlay, read_guard, write_guard};
use crate::cache::lock;
use crate::device::{BlockWrite, Kept, check_range};
use crate::error::{Error, Result};

/// New clusters are written in groups of at most this many bytes.
const MAX_GROUP: u64 = 1 << 20;
/// The host sets room aside ahead of need, half of what the file has, within these bounds: who asks for it waits until
/// nobody writes to the file.
const LEAST_AHEAD: u64 = 64 << 10;
const MOST_AHEAD: u64 = 8 << 20;

/// Clusters of the disk that some thread is writing for the first time.
#[derive(Default)]
pub(super) struct Claims {
    /// [first, end) each; as many as there are writers.
    taken: Mutex<Vec<(u64, u64)>>,
    released: Condvar,
}

/// Held by the one who writes the clusters.
struct Claim<'a> {
    claims: &'a Claims,
    first: u64,
    end: u64,
}

impl Claims {
    /// Claims clusters from `first`, at most to `end`; waits for the first one.
    fn take(&self, first: u64, end: u64) -> Claim<'_> {
        let mut taken = lock(&self.taken);
        while taken.iter().any(|(from, to)| (*from..*to).contains(&first)) {
            taken = self.released.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        let end = taken.iter().filter(|(from, _)| *from > first).fold(end, |end, (from, _)| end.min(*from));
        taken.push((first, end));
        Claim { claims: self, first, end }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(&self.claims.taken).retain(|claim| *claim != (self.first, self.end));
        self.claims.released.notify_all();
    }
}

/// Flushes of several threads become one.
#[derive(Default)]
pub(super) struct Flushes {
    state: Mutex<FlushState>,
    ended: Condvar,
}

#[derive(Default)]
struct FlushState {
    asked: u64,
    /// Every flush that was asked for up to this one is done.
    done: u64,
    running: bool,
}

/// Where a group of new clusters goes.
struct Target {
    clusters: Clusters,
    /// Allocated for this write, and to be given back when it fails.
    allocated: bool,
}

/// What new clusters are to hold.
#[derive(Clone, Copy)]
enum New<'a> {
    /// These bytes, and around them what is there already.
    Bytes(&'a [u8]),
    /// For so many bytes, what is there already.
    Present(u64),
}

impl New<'_> {
    fn len(self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Present(len) => len,
        }
    }
}

impl BlockWrite for Overlay {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.write_early_at(buf, offset, &mut || ())
    }

    fn write_early_at(&self, mut buf: &[u8], mut offset: u64, kept: Kept<'_>) -> Result<()> {
        check_range(buf.len(), offset, self.size)?;
        self.check_writable()?;
        while !buf.is_empty() {
            let found = self.find(offset, buf.len() as u64)?;
            let len = usize::try_from(found.len).unwrap_or(usize::MAX).min(buf.len());
            let (now, _) = buf.split_at(len);
            let written = match found.spot {
                Spot::Data { at, shared: false } => {
                    self.check_inside(at, len)?;
                    if len == buf.len() {
                        return self.write_own_early(now, at, &mut || {
                            kept();
                            Ok(())
                        });
                    }
                    self.write_own(now, at)?;
                    len as u64
                }
                Spot::Data { at, shared: true } => {
                    return Err(Error::corrupt(super::OVERLAY, "L2 entry (COPIED flag)", at));
                }
                Spot::Base | Spot::Zero { .. } => {
                    let is_last = len == buf.len();
                    self.write_new(New::Bytes(now), offset, &mut || {
                        if is_last {
                            kept();
                        }
                    })?
                }
            };
            buf = buf.get(usize::try_from(written).unwrap_or(usize::MAX)..).unwrap_or_default();
            offset = offset.saturating_add(written);
        }
        Ok(())
    }

    /// Takes clusters for the bytes that the overlay lacks, with what is there already in them.
    fn reserve(&self, mut offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= self.size);
        let end = end.ok_or(Error::PastEnd { offset, len, size: self.size })?;
        self.check_writable()?;
        while offset < end {
            let found = self.find(offset, end.saturating_sub(offset))?;
            let taken = match found.spot {
                Spot::Data { .. } | Spot::Zero { ready: Some(_) } => found.len,
                _ => self.write_new(New::Present(end.saturating_sub(offset)), offset, &mut || ())?,
            };
            offset = offset.saturating_add(taken);
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let mut state = lock(&self.flushes.state);
        state.asked = state.asked.saturating_add(1);
        let ticket = state.asked;
        while state.running && state.done < ticket {
            state = self.flushes.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.done >= ticket {
            return Ok(());
        }
        state.running = true;
        let covers = state.asked;
        drop(state);
        let result = self.write_back();
        let mut state = lock(&self.flushes.state);
        state.running = false;
        if result.is_ok() {
            state.done = state.done.max(covers);
        }
        self.flushes.ended.notify_all();
        result
    }
}

impl Overlay {
    pub(super) fn check_writable(&self) -> Result<()> {
        if self.failed.load(Ordering::Acquire) {
            let why = std::io::Error::other("the host failed to keep earlier writes");
            return Err(Error::io(self.name.clone(), why));
        }
        self.unwritable.clone().map_or(Ok(()), Err)
    }

    /// Writes to the overlay's own file.
    fn write_own(&self, part: &[u8], at: u64) -> Result<()> {
        let result = self.store.write_at(part, at).map_err(|error| host(&self.name, error));
        // Only now: a sync that began before this write ended does not cover it.
        self.unsynced.store(true, Ordering::Release);
        result?;
        self.reach(part, at);
        Ok(())
    }

    /// The same; once the bytes are as good as written, `show` has readers find them. Before it ends that has happened,
    /// or it fails.
    fn write_own_early(&self, part: &[u8], at: u64, show: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let mut shown = None;
        let result = self.store.write_early_at(part, at, &mut || {
            // A sync from here on waits for it.
            self.unsynced.store(true, Ordering::Release);
            self.reach(part, at);
            shown = Some(show());
        });
        self.unsynced.store(true, Ordering::Release);
        result.map_err(|error| host(&self.name, error))?;
        self.reach(part, at);
        shown.unwrap_or_else(show)
    }

    /// The file reaches to the end of what was written.
    fn reach(&self, part: &[u8], at: u64) {
        self.file_end.fetch_max(at.saturating_add(part.len() as u64), Ordering::AcqRel);
    }

    /// Writes to clusters that the overlay lacked a moment ago, and says how many bytes it took:
    /// none when another thread was first. `kept` is called when it takes all.
    fn write_new(&self, new: New<'_>, offset: u64, kept: Kept<'_>) -> Result<u64> {
        if read_guard(&self.tables).is_crowded() {
            self.flush()?;
        }
        let geometry = self.geometry;
        let first = geometry.cluster(offset);
        let end = offset.saturating_add(new.len());
        let most = geometry.cluster(MAX_GROUP).max(1);
        let last = geometry.cluster(end.saturating_sub(1)).saturating_add(1);
        let claim = self.claims.take(first, last.min(first.saturating_add(most)));
        let end = end.min(geometry.start(claim.end));
        let found = self.find(offset, end.saturating_sub(offset))?;
        if matches!(found.spot, Spot::Data { .. }) {
            return Ok(0);
        }
        let end = end.min(offset.saturating_add(found.len));
        let part = |end: u64| {
            let len = usize::try_from(end.saturating_sub(offset)).map_err(|_| Error::Invalid)?;
            match new {
                New::Bytes(bytes) => bytes.get(..len).ok_or(Error::Invalid),
                New::Present(_) => Ok(Default::default()),
            }
        };
        if matches!(new, New::Bytes(_)) && is_zero(part(end)?) {
            let len = end.saturating_sub(offset);
            if matches!(found.spot, Spot::Zero { .. }) {
                return Ok(len);
            }
            if let Some(count) = self.whole_clusters(offset, end) {
                self.make_tables(first, count)?;
                self.with_tables(|| write_guard(&self.tables).publish(first, count, None))?;
                return Ok(len);
            }
        }
        let target = self.place_new(first, geometry.clusters(end).saturating_sub(first), found.spot)?;
        let end = end.min(geometry.start(first.saturating_add(target.clusters.count)));
        let taken = end.saturating_sub(offset);
        let Clusters { first: own, count } = target.clusters;
        let mut shown = false;
        let written = self.write_group(part(end)?, offset, found.spot, target.clusters, &mut || {
            self.with_tables(|| write_guard(&self.tables).publish(first, count, Some(own)))?;
            shown = true;
            if taken == new.len() {
                kept();
            }
            Ok(())
        });
        if let Err(error) = written {
            if target.allocated && !shown {
                write_guard(&self.tables).give_back(target.clusters);
            }
            return Err(error);
        }
        self.counters.new_clusters.fetch_add(count, Ordering::Relaxed);
        self.back_ahead(count);
        Ok(taken)
    }

    /// How many clusters the bytes are, when they are whole ones. The last one ends with the disk.
    fn whole_clusters(&self, offset: u64, end: u64) -> Option<u64> {
        let geometry = self.geometry;
        let whole = geometry.within(offset) == 0 && (geometry.within(end) == 0 || end == self.size);
        whole.then(|| geometry.clusters(end).saturating_sub(geometry.cluster(offset)))
    }

    /// Sees to it that there are L2 tables for the clusters, and room for them in the host's file system.
    fn make_tables(&self, first: u64, count: u64) -> Result<()> {
        let end = first.saturating_add(count);
        let mut cluster = first;
        while cluster < end {
            self.make_table(cluster)?;
            cluster = cluster.saturating_add(self.geometry.left_in_table(cluster));
        }
        Ok(())
    }

    fn make_table(&self, cluster: u64) -> Result<()> {
        let vacant = read_guard(&self.tables).vacant_l1(cluster);
        if let Some(at) = vacant {
            self.store.reserve(at, ENTRY).map_err(|error| host(&self.name, error))?;
        }
        let new = self.with_room(|| self.with_tables(|| write_guard(&self.tables).ensure_table(cluster)))?;
        if let Some(at) = new {
            self.file_end.fetch_max(at.saturating_add(self.geometry.cluster_size()), Ordering::AcqRel);
        }
        Ok(())
    }

    /// Allocates, and lets the host set more room aside when that is all that is missing.
    fn with_room<T>(&self, mut allocate: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            let (backed, _) = read_guard(&self.tables).refcounts.bounds();
            match allocate() {
                Err(Error::NoSpace) if self.back_more(backed, 1)? => {}
                answer => return answer,
            }
        }
    }

    /// Takes room on the host for clusters past those that it has room for: what is allocated, the
    /// overlay's own tables included, can then be written whenever that is. `false` when there is
    /// no more room. Room for `least` clusters is better than for fewer.
    fn back_more(&self, seen: u64, least: u64) -> Result<bool> {
        let _one = lock(&self.backing);
        let (backed, most) = read_guard(&self.tables).refcounts.bounds();
        if backed > seen {
            return Ok(true);
        }
        let mut count = self.ahead(backed).max(least).min(most.saturating_sub(backed));
        while count > 0 {
            match self.back(Clusters { first: backed, count }) {
                Err(Error::NoSpace) => count /= 2,
                backed => return backed.map(|()| true),
            }
        }
        Ok(false)
    }

    /// How many clusters of room are taken at a time, when there is room for so many already.
    fn ahead(&self, backed: u64) -> u64 {
        let bytes = self.geometry.start(backed) / 2;
        self.geometry.cluster(bytes.clamp(LEAST_AHEAD, MOST_AHEAD)).max(1)
    }

    /// Takes room for the clusters behind those that have some.
    fn back(&self, more: Clusters) -> Result<()> {
        let (entries, entries_len) = read_guard(&self.tables).refcounts.entries_of(more);
        let room = self.store.reserve(self.geometry.start(more.first), self.geometry.start(more.count));
        room.and_then(|_| self.store.reserve(entries, entries_len)).map_err(|error| host(&self.name, error))?;
        write_guard(&self.tables).refcounts.back(more.first.saturating_add(more.count));
        Ok(())
    }

    /// Takes room before it is needed, by one whose own writer has his answer: the next one may bring as much as he did.
    fn back_ahead(&self, taken: u64) {
        let (backed, most) = read_guard(&self.tables).refcounts.bounds();
        let ahead = self.ahead(backed);
        if backed >= most || read_guard(&self.tables).refcounts.left() >= taken.max(ahead / 2) {
            return;
        }
        // One at a time: this one need not wait for another who does the same.
        let Ok(_one) = self.backing.try_lock() else { return };
        let count = ahead.max(taken.saturating_mul(2)).min(most.saturating_sub(backed));
        if read_guard(&self.tables).refcounts.bounds().0 == backed
            && let Err(error) = self.back(Clusters { first: backed, count })
        {
            // Whoever needs it will be told.
            log::debug!("{}: no room ahead: {error}", self.name);
        }
    }

    /// Finds clusters of the file for up to `count` of the disk.
    fn place_new(&self, first: u64, count: u64, spot: Spot) -> Result<Target> {
        if let Spot::Zero { ready: Some(at) } = spot {
            let clusters = Clusters { first: self.geometry.cluster(at), count: 1 };
            return Ok(Target { clusters, allocated: false });
        }
        self.make_tables(first, count)?;
        let (backed, missing) = {
            let refcounts = &read_guard(&self.tables).refcounts;
            (refcounts.bounds().0, refcounts.cost(count).saturating_sub(refcounts.left()))
        };
        // Without room for all of them they come in several groups, of which only the last is answered early.
        if missing > 0 {
            self.back_more(backed, missing)?;
        }
        let clusters = self.with_room(|| write_guard(&self.tables).refcounts.allocate(count))?;
        Ok(Target { clusters, allocated: true })
    }

    /// Writes a group of whole clusters: `now` where it goes, around it what is there already. `show` has readers find
    /// them.
    fn write_group(
        &self,
        now: &[u8],
        offset: u64,
        spot: Spot,
        clusters: Clusters,
        show: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let geometry = self.geometry;
        let (at, size) = (geometry.start(clusters.first), geometry.cluster_len());
        let before = usize::try_from(geometry.within(offset)).map_err(|_| Error::Invalid)?;
        let (head, rest) = now.split_at(if before == 0 { 0 } else { size.saturating_sub(before).min(now.len()) });
        let odd = rest.len().checked_rem(size).unwrap_or(0);
        let (whole, tail) = rest.split_at(rest.len().saturating_sub(odd));
        if whole.is_empty() {
            let count = usize::try_from(clusters.count).map_err(|_| Error::Invalid)?;
            let group = self.filled(now, offset, spot, count.saturating_mul(size))?;
            return self.write_own_early(&group, at, show);
        }
        // Of many clusters only the first and the last have something else in them: the others need no copy.
        let after = |part: &[u8], at: u64| at.saturating_add(part.len().next_multiple_of(size) as u64);
        if !head.is_empty() {
            self.write_own(&self.filled(head, offset, spot, size)?, at)?;
        }
        let middle = after(head, at);
        if !tail.is_empty() {
            let behind = offset.saturating_add(now.len().saturating_sub(tail.len()) as u64);
            self.write_own(&self.filled(tail, behind, spot, size)?, after(whole, middle))?;
        }
        self.write_own_early(whole, middle, show)
    }

    /// `len` bytes, whole clusters: `now` where it goes, around it what is there already.
    fn filled(&self, now: &[u8], offset: u64, spot: Spot, len: usize) -> Result<Vec<u8>> {
        let before = usize::try_from(self.geometry.within(offset)).map_err(|_| Error::Invalid)?;
        let mut group = vec![0; len];
        let written = before..before.saturating_add(now.len());
        if spot == Spot::Base {
            let start = offset.saturating_sub(before as u64);
            let (head, rest) = group.split_at_mut(before);
            let tail = rest.get_mut(now.len()..).unwrap_or_default();
            self.read_below(head, start)?;
            self.read_below(tail, offset.saturating_add(now.len() as u64))?;
        }
        group.get_mut(written).ok_or(Error::Invalid)?.copy_from_slice(now);
        Ok(group)
    }

    /// The base's bytes around a write; zeros past the end of the disk.
    fn read_below(&self, part: &mut [u8], offset: u64) -> Result<()> {
        let there = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(part.len());
        if there == 0 {
            return Ok(());
        }
        self.read_base(part.get_mut(..there).ok_or(Error::Invalid)?, offset, false)
    }

    /// One flush, in the order that the head of `overlay` explains.
    fn write_back(&self) -> Result<()> {
        self.check_failed()?;
        if !read_guard(&self.tables).is_dirty() {
            return self.sync();
        }
        self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        let mut tables = write_guard(&self.tables);
        let table_writes = tables.take_writes();
        let refcount_writes = tables.refcounts.take_writes();
        drop(tables);
        let result = self.write_steps(&table_writes, &refcount_writes);
        let mut tables = write_guard(&self.tables);
        match result {
            Ok(()) => {
                tables.refcounts.done(&refcount_writes);
                tables.done(&table_writes);
                Ok(())
            }
            Err(error) => {
                tables.refcounts.failed(refcount_writes);
                tables.failed(table_writes);
                Err(error)
            }
        }
    }

    fn write_steps(&self, tables: &TableWrites, refcounts: &RefcountWrites) -> Result<()> {
        for (at, bytes) in refcounts.blocks.iter().chain(&tables.new) {
            self.write_own(bytes, *at)?;
        }
        if let Some((table, place)) = &refcounts.moved {
            self.write_own(table, place.offset)?;
        }
        self.sync()?;
        if let Some((_, place)) = &refcounts.moved {
            let clusters = place.entries.checked_div(self.geometry.entries()).unwrap_or(0);
            let clusters = u32::try_from(clusters).map_err(|_| Error::Invalid)?;
            let field = [place.offset.to_be_bytes().as_slice(), &clusters.to_be_bytes()].concat();
            self.write_own(&field, REFCOUNT_TABLE_FIELD)?;
            self.sync()?;
        }
        if !refcounts.entries.is_empty() {
            for (at, entry) in &refcounts.entries {
                self.write_own(&entry.to_be_bytes(), *at)?;
            }
            self.sync()?;
        }
        write_guard(&self.tables).linking(tables);
        for (at, bytes) in &tables.changed {
            self.write_own(bytes, *at)?;
        }
        for (at, entry) in &tables.l1 {
            self.write_own(&entry.to_be_bytes(), *at)?;
        }
        self.sync()
    }

    pub(super) fn check_failed(&self) -> Result<()> {
        if self.failed.load(Ordering::Acquire) { self.check_writable() } else { Ok(()) }
    }

    /// Waits for the disk, when anything was written.
    fn sync(&self) -> Result<()> {
        if !self.unsynced.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        self.store.sync().map_err(|error| {
            // The host has dropped what it could not write: a second sync would say that all is well.
            self.failed.store(true, Ordering::Release);
            host(&self.name, error)
        })
    }
}

/// True when all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}
