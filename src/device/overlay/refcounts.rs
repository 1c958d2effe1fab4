//! Which clusters of the file are in use, and the allocation of new ones.
//!
//! ```text
//!   refcount table:  block 0 | block 1 | -       | ...     positions of the blocks; 0 where there is none
//!   block:           1 1 1 1 1 0 0 ...                     one 16-bit count a cluster of the file
//! ```
//! All counts are in memory, but a block in which every cluster is used (and nearly all are, in a
//! file that only grows) takes no room there. A new block lies in the range that it covers, and so counts itself,
//! whichever others reach the disk: in its first free cluster, or behind a run that came from the range before.

use std::collections::BTreeSet;

use super::geometry::{ENTRY, Geometry, from_bytes, to_bytes};
use super::header::{Header, OVERLAY, TablePlace};
use super::store::{Store, host};
use crate::error::{Error, Result};

/// Clusters of the file, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clusters {
    pub first: u64,
    pub count: u64,
}

enum Block {
    Absent,
    /// Every count is 0: a sparse file could have very many of these.
    Empty,
    /// Every count is 1.
    Full,
    Counts(Box<[u16]>),
}

/// The counts, as they will be in the file.
pub(super) struct Refcounts {
    geometry: Geometry,
    place: TablePlace,
    /// Positions of the blocks, bytes.
    table: Vec<u64>,
    blocks: Vec<Block>,
    /// Blocks whose counts differ from the file's.
    dirty: BTreeSet<usize>,
    /// Table entries that differ from the file's.
    dirty_entries: BTreeSet<usize>,
    /// Former places of the table, while the header does not lead to the present one yet.
    moved_from: Vec<Clusters>,
    /// No cluster before this one is free.
    cursor: u64,
    /// Clusters that the file may have.
    max_clusters: u64,
    /// Clusters for which the host has set room aside: no other is given out.
    backed: u64,
    used: u64,
}

/// What a flush writes of the counts. Blocks first; the table leads to them, so it comes after a sync.
#[derive(Default)]
pub(super) struct RefcountWrites {
    pub blocks: Vec<(u64, Vec<u8>)>,
    /// Entries of the table in the file.
    pub entries: Vec<(u64, u64)>,
    /// The whole new table, and where the header must lead.
    pub moved: Option<(Vec<u8>, TablePlace)>,
    dirty: BTreeSet<usize>,
    dirty_entries: BTreeSet<usize>,
}

impl Refcounts {
    /// Reads all counts of the file.
    pub fn read(store: &dyn Store, header: &Header, max_size: Option<u64>) -> Result<Self> {
        let geometry = header.geometry;
        let io = |error| host("reading the overlay's refcounts", error);
        let file_size = store.size().map_err(io)?;
        // At most 8 MiB, inside the file: the header was checked.
        let table_len = usize::try_from(header.refcounts.entries.saturating_mul(ENTRY)).map_err(|_| Error::Invalid)?;
        let mut table = vec![0; table_len];
        store.read_at(&mut table, header.refcounts.offset).map_err(io)?;
        let table = from_bytes(&table);
        let mut seen = BTreeSet::new();
        let mut blocks = Vec::with_capacity(table.len());
        let mut used = 0u64;
        let mut bytes = vec![0; geometry.cluster_len()];
        for at in &table {
            if *at == 0 {
                blocks.push(Block::Absent);
                continue;
            }
            let inside = at.checked_add(geometry.cluster_size()).is_some_and(|end| end <= file_size);
            // Each block once: or a small file could ask for 4 GiB of reading.
            if geometry.within(*at) != 0 || !inside || !seen.insert(*at) {
                return Err(Error::corrupt(OVERLAY, "refcount table", header.refcounts.offset));
            }
            // What lies past the end of the file cannot be counted: of a sparse file of TiB, each block.
            if geometry.block_start(blocks.len()) >= geometry.clusters(file_size) {
                blocks.push(Block::Empty);
                continue;
            }
            store.read_at(&mut bytes, *at).map_err(io)?;
            let counts: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|count| u16::from_be_bytes(*count)).collect();
            used = used.saturating_add(counts.iter().filter(|count| **count != 0).count() as u64);
            blocks.push(match counts.first() {
                Some(0) if counts.iter().all(|count| *count == 0) => Block::Empty,
                Some(1) if counts.iter().all(|count| *count == 1) => Block::Full,
                _ => Block::Counts(counts.into()),
            });
        }
        Ok(Self {
            geometry,
            place: header.refcounts,
            table,
            blocks,
            dirty: BTreeSet::new(),
            dirty_entries: BTreeSet::new(),
            moved_from: Vec::new(),
            cursor: 0,
            max_clusters: max_size.map_or(u64::MAX, |size| geometry.cluster(size)),
            backed: geometry.clusters(file_size),
            used,
        })
    }

    /// Clusters for which the host has room for sure, and those that the file may have.
    pub fn bounds(&self) -> (u64, u64) {
        (self.backed, self.max_clusters)
    }

    /// Clusters that have room and were not given out, as far as they are at the end of the file.
    pub fn left(&self) -> u64 {
        self.backed.saturating_sub(self.cursor)
    }

    /// The host has set room aside for this many clusters.
    pub fn back(&mut self, clusters: u64) {
        self.backed = self.backed.max(clusters);
    }

    /// Bytes of the table in the file that lead to the blocks of these clusters.
    pub fn entries_of(&self, clusters: Clusters) -> (u64, u64) {
        let index = |cluster| self.geometry.block_index(cluster) as u64;
        let (first, last) = (index(clusters.first), index(clusters.first.saturating_add(clusters.count)));
        let first = first.min(self.place.entries.saturating_sub(1));
        let count = last.min(self.place.entries.saturating_sub(1)).saturating_sub(first).saturating_add(1);
        (self.place.offset.saturating_add(first.saturating_mul(ENTRY)), count.saturating_mul(ENTRY))
    }

    /// Clusters in use.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// References to a cluster.
    pub fn count(&self, cluster: u64) -> u16 {
        match self.blocks.get(self.geometry.block_index(cluster)) {
            Some(Block::Counts(counts)) => counts.get(self.geometry.count_index(cluster)).copied().unwrap_or(0),
            Some(Block::Full) => 1,
            _ => 0,
        }
    }

    /// The table itself and the blocks: clusters that the counts take.
    pub fn own_clusters(&self) -> impl Iterator<Item = u64> {
        let first = self.geometry.cluster(self.place.offset);
        let table = first..first.saturating_add(self.geometry.clusters(self.place.entries.saturating_mul(ENTRY)));
        table.chain(self.table.iter().filter(|at| **at != 0).map(|at| self.geometry.cluster(*at)))
    }

    /// Every cluster in use, ascending, with its count.
    pub fn counted(&self) -> impl Iterator<Item = (u64, u16)> {
        self.blocks.iter().enumerate().flat_map(move |(index, block)| {
            let start = self.geometry.block_start(index);
            let covered = if matches!(block, Block::Absent | Block::Empty) { 0 } else { self.geometry.counts() };
            (start..start.saturating_add(covered))
                .map(|cluster| (cluster, self.count(cluster)))
                .filter(|(_, count)| *count != 0)
        })
    }

    /// The counts of a block, so that each can be changed.
    fn counts_of(&mut self, index: usize) -> Option<&mut [u16]> {
        let len = usize::try_from(self.geometry.counts()).unwrap_or(0);
        let block = self.blocks.get_mut(index)?;
        match block {
            Block::Empty => *block = Block::Counts(vec![0; len].into()),
            Block::Full => *block = Block::Counts(vec![1; len].into()),
            Block::Absent | Block::Counts(_) => {}
        }
        if let Block::Counts(counts) = block { Some(counts) } else { None }
    }

    /// Sets the count of a cluster that some block covers.
    fn set(&mut self, cluster: u64, value: u16) {
        let (index, within) = (self.geometry.block_index(cluster), self.geometry.count_index(cluster));
        let Some(count) = self.counts_of(index).and_then(|counts| counts.get_mut(within)) else { return };
        let before = std::mem::replace(count, value);
        if before == 0 && value != 0 {
            self.used = self.used.saturating_add(1);
        } else if before != 0 && value == 0 {
            self.used = self.used.saturating_sub(1);
        }
        self.dirty.insert(index);
    }

    /// Clusters that an allocation of `count` takes at the most: those, and blocks for them.
    pub fn cost(&self, count: u64) -> u64 {
        let covered = self.geometry.counts().saturating_sub(1);
        let blocks = count.checked_div(covered).unwrap_or(0).saturating_add(1);
        count.saturating_add(blocks)
    }

    /// Takes up to `want` free clusters that lie together; at least one. They are counted at once.
    pub fn allocate(&mut self, want: u64) -> Result<Clusters> {
        let end = self.max_clusters.min(self.backed);
        loop {
            let index = self.geometry.block_index(self.cursor);
            if self.cursor >= end {
                return Err(Error::NoSpace);
            }
            let next_block = self.geometry.block_start(index.saturating_add(1));
            match self.blocks.get_mut(index) {
                None => self.grow_table()?,
                Some(Block::Absent) => self.add_block(index),
                Some(Block::Empty) => {}
                Some(Block::Full) => {
                    self.cursor = next_block;
                    continue;
                }
                Some(block @ Block::Counts(_)) => {
                    let Block::Counts(counts) = block else { continue };
                    let from = self.geometry.count_index(self.cursor);
                    let Some(free) = counts.iter().skip(from).position(|count| *count == 0) else {
                        if counts.iter().all(|count| *count == 1) {
                            *block = Block::Full;
                        }
                        self.cursor = next_block;
                        continue;
                    };
                    self.cursor = self.cursor.saturating_add(free as u64);
                }
            }
            let first = self.cursor;
            let room = want.min(end.saturating_sub(first));
            let run = self.free_run(first, room);
            let behind = first.saturating_add(run);
            let more = if run > 0 { self.go_on(behind, room.saturating_sub(run), end) } else { 0 };
            let clusters = Clusters { first, count: run.saturating_add(more) };
            if clusters.count > 0 {
                self.fill(clusters);
                self.cursor = behind.saturating_add(more);
                return Ok(clusters);
            }
            if room == 0 {
                return Err(Error::NoSpace);
            }
        }
    }

    /// How many of `most` clusters a run can have in the range that starts at `start`, when that has no block: it gets
    /// one, in the cluster behind them.
    fn go_on(&mut self, start: u64, most: u64, end: u64) -> u64 {
        let index = self.geometry.block_index(start);
        if !matches!(self.blocks.get(index), Some(Block::Absent)) {
            return 0;
        }
        let left = self.geometry.counts().min(end.saturating_sub(start));
        let more = most.min(left.saturating_sub(1));
        if more > 0 {
            self.put_block(index, start.saturating_add(more));
        }
        more
    }

    /// How many clusters from `first` on are free and have a block, `most` at the most.
    fn free_run(&self, first: u64, most: u64) -> u64 {
        let mut run = 0u64;
        while run < most {
            let at = first.saturating_add(run);
            let (index, from) = (self.geometry.block_index(at), self.geometry.count_index(at));
            let covered = self.geometry.counts().saturating_sub(from as u64);
            let free = match self.blocks.get(index) {
                Some(Block::Empty) => covered,
                Some(Block::Counts(counts)) => counts.iter().skip(from).take_while(|count| **count == 0).count() as u64,
                _ => 0,
            };
            run = run.saturating_add(free);
            if free < covered {
                break;
            }
        }
        run.min(most)
    }

    /// Counts clusters that are free and have blocks.
    fn fill(&mut self, clusters: Clusters) {
        let mut left = clusters;
        while left.count > 0 {
            let (index, from) = (self.geometry.block_index(left.first), self.geometry.count_index(left.first));
            let len = self.geometry.counts().saturating_sub(from as u64).min(left.count);
            if let Some(counts) = self.counts_of(index) {
                let len = usize::try_from(len).unwrap_or(counts.len());
                counts.iter_mut().skip(from).take(len).for_each(|count| *count = 1);
            }
            self.used = self.used.saturating_add(len);
            self.dirty.insert(index);
            left = Clusters { first: left.first.saturating_add(len), count: left.count.saturating_sub(len) };
        }
    }

    /// Gives clusters back to which nothing in the file leads.
    pub fn free(&mut self, clusters: Clusters) {
        let end = clusters.first.saturating_add(clusters.count);
        (clusters.first..end).for_each(|cluster| self.set(cluster, 0));
        self.cursor = self.cursor.min(clusters.first);
    }

    /// Gives back every cluster that is not among these, which are ascending.
    pub fn free_all_but(&mut self, used: &[u64]) {
        let mut used = used.iter().copied().peekable();
        let mut unused = Vec::new();
        for (cluster, _) in self.counted() {
            while used.next_if(|next| *next < cluster).is_some() {}
            if used.peek() != Some(&cluster) {
                unused.push(cluster);
            }
        }
        for first in unused {
            self.free(Clusters { first, count: 1 });
        }
    }

    /// A block for the range that the cursor has come to, in the cluster at the cursor.
    fn add_block(&mut self, index: usize) {
        self.put_block(index, self.cursor);
        self.cursor = self.cursor.saturating_add(1);
    }

    /// A block for a range that has none, in a cluster of it.
    fn put_block(&mut self, index: usize, cluster: u64) {
        let at = self.geometry.start(cluster);
        let len = usize::try_from(self.geometry.counts()).unwrap_or(0);
        if let (Some(block), Some(entry)) = (self.blocks.get_mut(index), self.table.get_mut(index)) {
            *block = Block::Counts(vec![0; len].into());
            *entry = at;
        }
        self.set(cluster, 1);
        self.dirty_entries.insert(index);
    }

    /// Moves the table to a place half as big again, behind everything that it covers now.
    fn grow_table(&mut self) -> Result<()> {
        let per_cluster = self.geometry.entries();
        let old_len = self.table.len();
        let start = self.geometry.block_start(old_len);
        let old_clusters = self.geometry.clusters(self.place.entries.saturating_mul(ENTRY));
        let clusters = old_clusters.saturating_add(old_clusters / 2).saturating_add(1);
        let entries = clusters.saturating_mul(per_cluster);
        // Blocks for the new table and for themselves; a block covers far more than it takes.
        let mut blocks = 1u64;
        while blocks.saturating_mul(self.geometry.counts()) < clusters.saturating_add(blocks) {
            blocks = blocks.saturating_add(1);
        }
        let end = start.saturating_add(blocks).saturating_add(clusters);
        let fits = entries.saturating_mul(ENTRY) <= super::header::MAX_REFCOUNT_TABLE;
        if !fits || end > self.max_clusters.min(self.backed) {
            return Err(Error::NoSpace);
        }
        let len = usize::try_from(entries).map_err(|_| Error::NoSpace)?;
        self.table.resize(len, 0);
        self.blocks.resize_with(len, || Block::Absent);
        for number in 0..blocks {
            let index = old_len.saturating_add(usize::try_from(number).unwrap_or(usize::MAX));
            self.put_block(index, start.saturating_add(number));
        }
        (start..end).for_each(|cluster| self.set(cluster, 1));
        self.moved_from.push(Clusters { first: self.geometry.cluster(self.place.offset), count: old_clusters });
        self.place = TablePlace { offset: self.geometry.start(start.saturating_add(blocks)), entries };
        self.cursor = end;
        Ok(())
    }

    /// True when a flush has something to write.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.dirty_entries.is_empty() || !self.moved_from.is_empty()
    }

    /// What differs from the file now; taken as written until [`Refcounts::failed`].
    pub fn take_writes(&mut self) -> RefcountWrites {
        let dirty = std::mem::take(&mut self.dirty);
        let dirty_entries = std::mem::take(&mut self.dirty_entries);
        let block = |index: &usize| {
            let counts: Vec<u8> = match self.blocks.get(*index)? {
                Block::Counts(counts) => counts.iter().flat_map(|count| count.to_be_bytes()).collect(),
                Block::Full => [0, 1].repeat(usize::try_from(self.geometry.counts()).unwrap_or(0)),
                Block::Absent | Block::Empty => return None,
            };
            Some((*self.table.get(*index)?, counts))
        };
        let blocks = dirty.iter().filter_map(block).collect();
        let moved = (!self.moved_from.is_empty()).then(|| (to_bytes(&self.table), self.place));
        let entry = |index: &usize| {
            let at = self.place.offset.saturating_add((*index as u64).saturating_mul(ENTRY));
            Some((at, *self.table.get(*index)?))
        };
        let entries = if moved.is_some() { Vec::new() } else { dirty_entries.iter().filter_map(entry).collect() };
        RefcountWrites { blocks, entries, moved, dirty, dirty_entries }
    }

    /// The writes are on stable storage.
    pub fn done(&mut self, writes: &RefcountWrites) {
        let Some((_, place)) = &writes.moved else { return };
        let now = self.geometry.cluster(place.offset);
        // The table may have moved on since: then the file's one is the place that it moved from.
        let (kept, old) = std::mem::take(&mut self.moved_from).into_iter().partition(|old| old.first == now);
        self.moved_from = kept;
        let _: () = Vec::into_iter(old).for_each(|old| self.free(old));
    }

    /// The writes did not all get there.
    pub fn failed(&mut self, writes: RefcountWrites) {
        self.dirty.extend(writes.dirty);
        self.dirty_entries.extend(writes.dirty_entries);
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::MemoryStore;
    use super::*;

    /// Clusters of 512 bytes: a block covers 256 of them, a table cluster leads to 64 blocks.
    fn small(max_size: Option<u64>) -> Refcounts {
        let store = MemoryStore::default();
        super::super::write_new(&store, 1 << 20, None).unwrap();
        let mut refcounts = Refcounts::read(&store, &Header::read(&store).unwrap(), max_size).unwrap();
        refcounts.back(u64::MAX);
        refcounts
    }

    #[test]
    fn allocation_goes_on_past_blocks_and_past_the_table() {
        let mut refcounts = small(None);
        let mut taken: Vec<u64> = Vec::new();
        while refcounts.place.entries == 64 || taken.len() < 20_000 {
            let clusters = refcounts.allocate(7).unwrap();
            taken.extend(clusters.first..clusters.first + clusters.count);
        }
        let own: Vec<u64> = refcounts.own_clusters().collect();
        taken.extend(&own);
        let count = taken.len();
        taken.sort_unstable();
        taken.dedup();
        assert_eq!(taken.len(), count, "a cluster was given twice");
        assert!(taken.iter().all(|cluster| refcounts.count(*cluster) == 1));
        let writes = refcounts.take_writes();
        assert!(writes.moved.is_some());
        refcounts.done(&writes);
        assert_eq!((refcounts.count(1), refcounts.cursor), (0, 1), "the former table is free");
    }

    #[test]
    fn a_run_goes_on_past_its_block_and_each_cluster_of_it_is_counted_once() {
        let mut refcounts = small(None);
        let before = refcounts.used();
        refcounts.allocate(200).unwrap();
        let run = refcounts.allocate(300).unwrap();
        assert_eq!(run.count, 300);
        // A second range that it would fill has no place for its block.
        let long = refcounts.allocate(1000).unwrap();
        assert_eq!(long.first + long.count, 3 * 256 - 1);
        let counted = refcounts.counted().count() as u64;
        let own: Vec<u64> = refcounts.own_clusters().collect();
        assert_eq!((counted, refcounts.used()), (before + 500 + long.count + own.len() as u64 - 2, counted));
        assert!(refcounts.counted().all(|(_, count)| count == 1));
        // Where something is in the way, it ends.
        refcounts.free(Clusters { first: run.first + 10, count: 290 });
        refcounts.set(run.first + 30, 1);
        assert_eq!(refcounts.allocate(1000).unwrap(), Clusters { first: run.first + 10, count: 20 });
        assert_eq!(refcounts.allocate(1000).unwrap(), Clusters { first: run.first + 31, count: 269 });
        assert_eq!(refcounts.allocate(100).unwrap().count, 100);
        // Each block counts itself: it needs no other one on the disk.
        for (index, at) in refcounts.table.iter().enumerate().filter(|(_, at)| **at != 0) {
            assert_eq!(refcounts.geometry.block_index(refcounts.geometry.cluster(*at)), index);
        }
    }

    #[test]
    fn a_run_ends_with_the_room_and_blocks_are_among_it() {
        let mut refcounts = small(Some(1000 * 512));
        let all = refcounts.used();
        let mut taken = 0;
        while let Ok(run) = refcounts.allocate(1000) {
            taken += run.count;
        }
        assert_eq!(refcounts.used(), 1000);
        assert!(refcounts.cost(taken) >= 1000 - all && refcounts.cost(taken) < 1010 - all, "{taken} of 1000 - {all}");
    }

    #[test]
    fn what_is_given_back_is_taken_again_and_the_bound_holds() {
        let mut refcounts = small(Some(100 * 512));
        let mut last = refcounts.allocate(3).unwrap();
        while let Ok(clusters) = refcounts.allocate(3) {
            last = clusters;
        }
        assert_eq!(last.first + last.count, 100);
        refcounts.free(Clusters { first: 50, count: 2 });
        assert_eq!(refcounts.allocate(3).unwrap(), Clusters { first: 50, count: 2 });
        assert!(matches!(refcounts.allocate(1), Err(Error::NoSpace)));
    }
}
