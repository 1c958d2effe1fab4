//! A directory, decoded: its rows by place, an index of their names, and the slots that are free.
//!
//! ```text
//!   slot  0      1        ...                                   end
//!         8.3    last piece of a long name .. first piece  8.3  0x00, nothing follows
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::entry::{DIRECTORY, Entry, FREED, LABEL, LONG, LongPiece, checksum};
use super::geometry::Width;
use super::name::{CodePage, fold};
use super::state::Removal;
use crate::error::{Error, Result};
use crate::filesystem::NodeId;
use crate::text;

/// Most slots of a directory: the specification's bound, 2 MiB.
pub(super) const MAX_SLOTS: u32 = 65_536;
/// Most pieces of a long name.
const MAX_PIECES: u8 = 20;

/// A file or directory, as its directory shows it.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// The name that is shown.
    pub name: Box<[u8]>,
    /// The 8.3 name as stored.
    pub short: [u8; 11],
    /// First slot of its long name; the slot of its 8.3 entry when there is none.
    pub first: u32,
    /// The node.
    pub node: NodeId,
    /// Whether it is a directory.
    pub directory: bool,
}

/// A directory.
pub(super) struct Directory {
    rows: BTreeMap<u32, Row>,
    /// (hash of the folded name, slot), for long and short names.
    names: BTreeSet<(u64, u32)>,
    /// Slots that nothing uses.
    pub free: Slots,
    /// The slot from which on nothing was ever stored.
    pub end: u32,
    /// Slots that there is room for.
    pub capacity: u32,
    /// The volume label in it.
    pub label: Option<[u8; 11]>,
    /// Why what follows the rows could not be read.
    pub damage: Option<Error>,
    page: CodePage,
}

/// Hashes names; keyed, as the names are not ours.
pub(super) type Hasher = std::hash::RandomState;

fn hash(hasher: &Hasher, name: &[u8]) -> u64 {
    std::hash::BuildHasher::hash_one(hasher, fold(name))
}

impl Directory {
    pub fn new(page: CodePage, capacity: u32) -> Self {
        Self {
            rows: BTreeMap::new(),
            names: BTreeSet::new(),
            free: Slots::default(),
            end: capacity,
            capacity,
            label: None,
            damage: None,
            page,
        }
    }

    /// Adds a row whose 8.3 entry is in `slot`.
    pub fn insert(&mut self, hasher: &Hasher, slot: u32, row: Row) {
        self.names.insert((hash(hasher, &row.name), slot));
        self.names.insert((hash(hasher, &self.page.short_name(&row.short, 0)), slot));
        self.rows.insert(slot, row);
    }

    /// Takes a row out; its slots stay taken.
    pub fn remove(&mut self, hasher: &Hasher, slot: u32) -> Option<Row> {
        let row = self.rows.remove(&slot)?;
        self.names.remove(&(hash(hasher, &row.name), slot));
        self.names.remove(&(hash(hasher, &self.page.short_name(&row.short, 0)), slot));
        Some(row)
    }

    /// The row of a name: of exactly this name, or else without regard to case, or else of this
    /// short name.
    pub fn find(&self, hasher: &Hasher, name: &[u8]) -> Option<(u32, &Row)> {
        let folded = fold(name);
        let mut found: Option<(u8, u32, &Row)> = None;
        for (slot, row) in self.candidates(hasher, name) {
            let rank = if row.name.as_ref() == name {
                0
            } else if fold(&row.name) == folded {
                1
            } else if fold(&self.page.short_name(&row.short, 0)) == folded {
                2
            } else {
                continue;
            };
            if found.is_none_or(|(best, ..)| rank < best) {
                found = Some((rank, slot, row));
            }
        }
        found.map(|(_, slot, row)| (slot, row))
    }

    /// Whether an entry has this short name.
    pub fn has_short(&self, hasher: &Hasher, short: &[u8; 11]) -> bool {
        let name = self.page.short_name(short, 0);
        self.candidates(hasher, &name).any(|(_, row)| row.short == *short)
    }

    fn candidates(&self, hasher: &Hasher, name: &[u8]) -> impl Iterator<Item = (u32, &Row)> {
        let hash = hash(hasher, name);
        self.names.range((hash, 0)..=(hash, u32::MAX)).filter_map(|&(_, slot)| Some((slot, self.rows.get(&slot)?)))
    }

    /// Rows from a slot on, in their order on the disk.
    pub fn rows_from(&self, slot: u32) -> impl Iterator<Item = (u32, &Row)> {
        self.rows.range(slot..).map(|(&slot, row)| (slot, row))
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Weight in a cache.
    pub fn weight(&self) -> u64 {
        (self.rows.len() as u64).saturating_mul(260).saturating_add(512)
    }
}

/// Decodes the slots of a directory in order.
pub(super) struct Decoder<'a> {
    directory: Directory,
    hasher: &'a Hasher,
    width: Width,
    /// The node of an 8.3 entry by its byte position.
    node: &'a dyn Fn(u64) -> NodeId,
    /// 8.3 entries and pieces that are removed already, but not yet on the disk.
    removed: &'a HashMap<u64, Removal>,
    long: Option<LongName>,
    /// First cluster of each directory in it, with its node and short name.
    pub children: Vec<Child>,
}

/// A directory in a directory: its first cluster, its node, its short name.
type Child = (u32, NodeId, [u8; 11]);

/// A long name of which some pieces were seen.
struct LongName {
    first: u32,
    checksum: u8,
    /// Number of the piece seen last; the next has one less.
    number: u8,
    units: [[u16; 13]; MAX_PIECES as usize],
}

impl LongName {
    /// The name, once its first piece was seen, if it belongs to this short name.
    fn finish(&self, short: &[u8; 11]) -> Option<Vec<u8>> {
        if self.number != 1 || self.checksum != checksum(short) {
            return None;
        }
        let units = self.units.iter().flatten().copied().take_while(|&unit| unit != 0);
        Some(text::utf16_to_bytes(units)).filter(|name| !name.is_empty())
    }
}

impl<'a> Decoder<'a> {
    pub fn new(
        directory: Directory,
        hasher: &'a Hasher,
        width: Width,
        node: &'a dyn Fn(u64) -> NodeId,
        removed: &'a HashMap<u64, Removal>,
    ) -> Self {
        Self { directory, hasher, width, node, removed, long: None, children: Vec::new() }
    }

    /// Takes the next slot, which is at byte `at` of the volume. `false` when it is the end mark.
    pub fn slot(&mut self, slot: u32, bytes: &[u8], at: u64) -> Result<bool> {
        let (name, attributes) = (bytes.first().copied().unwrap_or(0), bytes.get(11).copied().unwrap_or(0));
        if name == 0 {
            self.directory.end = slot;
            return Ok(false);
        }
        if self.removed.contains_key(&at) {
            self.long = None;
            return Ok(true);
        }
        if name == FREED {
            self.long = None;
            self.directory.free.release(slot, 1);
            return Ok(true);
        }
        if attributes & 0x3f == LONG {
            self.piece(slot, &LongPiece::parse(bytes, at)?);
            return Ok(true);
        }
        let long = self.long.take();
        let entry = Entry::parse(bytes, at, self.width)?;
        if attributes & LABEL != 0 {
            if attributes & DIRECTORY == 0 && self.directory.label.is_none() {
                self.directory.label = Some(entry.short);
            }
            return Ok(true);
        }
        if matches!(&entry.short, b".          " | b"..         ") {
            return Ok(true);
        }
        let found = long.and_then(|long| Some((long.finish(&entry.short)?, long.first)));
        let (name, first) = found.unwrap_or_else(|| (self.directory.page.short_name(&entry.short, entry.case), slot));
        let node = (self.node)(at);
        if entry.is_directory() {
            self.children.push((entry.cluster, node, entry.short));
        }
        let row =
            Row { name: name.into_boxed_slice(), short: entry.short, first, node, directory: entry.is_directory() };
        self.directory.insert(self.hasher, slot, row);
        Ok(true)
    }

    fn piece(&mut self, slot: u32, piece: &LongPiece) {
        if piece.last {
            let fits = (1..=MAX_PIECES).contains(&piece.number);
            let units = [[0; 13]; MAX_PIECES as usize];
            self.long = fits.then_some(LongName { first: slot, checksum: piece.checksum, number: piece.number, units });
        } else if let Some(long) = &mut self.long {
            if long.number.checked_sub(1) != Some(piece.number) || piece.number == 0 || long.checksum != piece.checksum
            {
                self.long = None;
                return;
            }
            long.number = piece.number;
        }
        if let Some(long) = &mut self.long
            && let Some(units) = usize::from(piece.number).checked_sub(1).and_then(|i| long.units.get_mut(i))
        {
            *units = piece.units;
        }
    }

    /// The directory; `damage` is why there may be more of it.
    pub fn finish(self, damage: Option<Error>) -> (Directory, Vec<Child>) {
        let mut directory = self.directory;
        let unused = directory.capacity.saturating_sub(directory.end);
        directory.free.release(directory.end, unused);
        directory.damage = damage;
        (directory, self.children)
    }
}

/// Free slots, as gaps between those in use.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// First slot and length of each gap; no two touch.
    gaps: BTreeMap<u32, u32>,
    /// No gap of so many slots starts before this one: first-fit need not look there again.
    hints: [u32; MAX_PIECES as usize + 2],
}

impl Slots {
    /// Frees `count` slots.
    pub fn release(&mut self, slot: u32, count: u32) {
        if count == 0 {
            return;
        }
        let (mut start, mut end) = (slot, slot.saturating_add(count));
        if let Some((&before, &len)) = self.gaps.range(..slot).next_back()
            && before.saturating_add(len) == start
        {
            self.gaps.remove(&before);
            start = before;
        }
        if let Some(len) = self.gaps.remove(&end) {
            end = end.saturating_add(len);
        }
        self.gaps.insert(start, end.saturating_sub(start));
        for hint in &mut self.hints {
            *hint = (*hint).min(start);
        }
    }

    /// Takes `count` slots in a row, at most 21: the first there are.
    pub fn take(&mut self, count: u32) -> Option<u32> {
        let wanted = usize::try_from(count).ok()?;
        let hint = *self.hints.get(wanted)?;
        let found = self.gaps.range(hint..).find(|(_, len)| **len >= count).map(|(&start, &len)| (start, len));
        // A gap that starts before the hint may still hold enough, if it was cut since.
        if let Some(hint) = self.hints.get_mut(wanted) {
            *hint = found.map_or(u32::MAX, |(start, _)| start);
        }
        let (start, len) = found?;
        self.gaps.remove(&start);
        if len > count {
            self.gaps.insert(start.saturating_add(count), len.saturating_sub(count));
        }
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_slots_are_joined_and_the_first_that_fit_are_taken() {
        let mut slots = Slots::default();
        slots.release(4, 1);
        slots.release(10, 100);
        assert_eq!(slots.take(2), Some(10));
        assert_eq!(slots.take(1), Some(4));
        slots.release(5, 1);
        slots.release(4, 1);
        assert_eq!(slots.take(2), Some(4));
        assert_eq!(slots.take(98), None);
        assert_eq!(slots.take(21), Some(12));
        assert_eq!(slots.take(21), Some(33));
    }
}
