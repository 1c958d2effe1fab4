//! Names that come and go: the slots of a directory, and its decoded form along with them.

use std::hash::BuildHasher;
use std::ops::RangeInclusive;
use std::sync::{Arc, PoisonError, RwLock};

use super::directory::{Directory, MAX_SLOTS, Row};
use super::entry::{ARCHIVE, DIRECTORY, Entry, FREED, LongPiece, READ_ONLY, SLOT, checksum};
use super::geometry::Root;
use super::name::{Basis, check_new, exact_short};
use super::state::{Removal, Stage, State};
use super::table::Chain;
use super::time::Stamp;
use super::write::now;
use super::{Claim, Fat};
use crate::cache::lock;
use crate::error::{Error, Result};
use crate::filesystem::{Kind, NewNode, NodeId};

/// A row of a directory with what is needed to change it.
pub(super) struct Found {
    pub key: u32,
    pub slot: u32,
    pub row: Row,
}

impl Fat {
    /// Key of a directory that still has a name.
    pub(super) fn open_directory(&self, state: &State, node: NodeId) -> Result<(u32, Arc<RwLock<Directory>>)> {
        if state.orphans.contains_key(&node) {
            return Err(Error::NotFound);
        }
        let key = self.directory_key(state, node)?;
        let directory = self.directory(state, key)?;
        // What cannot be read in full is not changed: the name may be in the part that is missing.
        let damage = directory.read().unwrap_or_else(PoisonError::into_inner).damage.clone();
        damage.map_or(Ok((key, directory)), Err)
    }

    pub(super) fn find(&self, state: &State, dir: NodeId, name: &[u8]) -> Result<Option<Found>> {
        let (key, directory) = self.open_directory(state, dir)?;
        let directory = directory.read().unwrap_or_else(PoisonError::into_inner);
        let found = directory.find(&self.hasher, name);
        Ok(found.map(|(slot, row)| Found { key, slot, row: row.clone() }))
    }

    /// Byte position of a slot.
    pub(super) fn slot_position(&self, state: &State, key: u32, slot: u32) -> Result<u64> {
        let offset = u64::from(slot).saturating_mul(SLOT as u64);
        self.directory_chain(state, key)?.place(offset).map(|(at, _)| at).ok_or(Error::Invalid)
    }

    /// Takes `count` slots in a row; the directory grows, or what was removed is written back, when
    /// there are none.
    fn take_slots(&self, state: &mut State, key: u32, count: u32) -> Result<u32> {
        for last_try in [false, true] {
            let directory = self.directory(state, key)?;
            let taken = directory.write().unwrap_or_else(PoisonError::into_inner).free.take(count);
            if let Some(slot) = taken {
                return Ok(slot);
            }
            match self.grow_directory(state, key, count) {
                Ok(slot) => return Ok(slot),
                Err(Error::NoSpace) if !last_try && !state.removed.is_empty() => self.commit(state)?,
                Err(error) => return Err(error),
            }
        }
        Err(Error::NoSpace)
    }

    fn grow_directory(&self, state: &mut State, key: u32, count: u32) -> Result<u32> {
        let first = match (key, self.geometry.root) {
            (0, Root::Fixed { .. }) => return Err(Error::NoSpace),
            (0, Root::Chain(first)) => first,
            _ => key,
        };
        let chain = self.directory_chain(state, key)?;
        let wanted = u64::from(count).saturating_mul(SLOT as u64);
        let len = chain.len.saturating_add(wanted);
        if len > u64::from(MAX_SLOTS).saturating_mul(SLOT as u64) {
            return Err(Error::NoSpace);
        }
        let held = chain.len;
        self.extend(state, first, chain, len)?;
        let longer = self.chain(state, first, len)?;
        if let Err(error) = self.write_zeros(&longer, held, longer.len) {
            self.shrink(state, first, &longer, held)?;
            return Err(error);
        }
        let directory = self.directory(state, key)?;
        let mut directory = directory.write().unwrap_or_else(PoisonError::into_inner);
        let old = directory.capacity;
        let capacity = u32::try_from(longer.len >> SLOT.ilog2()).unwrap_or(u32::MAX).min(MAX_SLOTS);
        directory.capacity = capacity;
        directory.free.release(old, capacity.saturating_sub(old));
        directory.free.take(count).ok_or(Error::NoSpace)
    }

    /// Stores slots, and the end mark behind them where there was none so far.
    pub(super) fn put_slots(&self, state: &mut State, key: u32, first: u32, slots: &[[u8; SLOT]]) -> Result<()> {
        let mut slot = first;
        for bytes in slots {
            let at = self.slot_position(state, key, slot)?;
            self.patch(state, at, bytes)?;
            slot = slot.saturating_add(1);
        }
        let directory = self.directory(state, key)?;
        let mut directory = directory.write().unwrap_or_else(PoisonError::into_inner);
        if slot > directory.end {
            directory.end = slot;
            if slot < directory.capacity {
                let at = self.slot_position(state, key, slot)?;
                let mut mark = [0];
                self.read_metadata(state, &mut mark, at)?;
                if mark != [0] {
                    self.patch(state, at, &[0; SLOT])?;
                }
            }
        }
        Ok(())
    }

    /// The slots of a name that is not in the directory, and its short name.
    pub(super) fn new_slots(&self, state: &State, key: u32, name: &[u8], entry: &mut Entry) -> Result<Vec<[u8; SLOT]>> {
        let units = check_new(name)?;
        let directory = self.directory(state, key)?;
        let directory = directory.read().unwrap_or_else(PoisonError::into_inner);
        let taken = |short: &[u8; 11]| directory.has_short(&self.hasher, short);
        let exact = exact_short(name).filter(|(short, _)| !taken(short));
        let mut slots = Vec::new();
        if let Some((short, case)) = exact {
            (entry.short, entry.case) = (short, case);
        } else {
            // After a crash there may be entries that were removed here: no chosen name is theirs.
            let taken = |short: &[u8; 11]| taken(short) || state.removed_names.contains(&(key, *short));
            let seed = self.hasher.hash_one(&units);
            entry.short = Basis::new(self.page, &units).choose(seed, taken).ok_or(Error::NoSpace)?;
            entry.case = 0;
            slots = long_slots(&units, &entry.short);
        }
        slots.push(entry.to_bytes(self.geometry.width));
        Ok(slots)
    }

    /// Writes back when the short name that a new entry is to have was removed here and may still be on
    /// the disk: of two entries of one name after a crash, fsck.fat would rename one.
    pub(super) fn settle_short_name(&self, state: &mut State, key: u32, name: &[u8]) -> Result<()> {
        match exact_short(name) {
            Some((short, _)) if state.removed_names.contains(&(key, short)) => self.commit(state),
            _ => Ok(()),
        }
    }

    /// Stores an entry under a name that is not in the directory. Gives the slot of the 8.3 entry.
    pub(super) fn link(
        &self,
        state: &mut State,
        key: u32,
        name: &[u8],
        entry: &mut Entry,
    ) -> Result<(u32, u32, [u8; 11])> {
        self.settle_short_name(state, key, name)?;
        let slots = self.new_slots(state, key, name, entry)?;
        let count = u32::try_from(slots.len()).map_err(|_| Error::NameTooLong)?;
        let first = self.take_slots(state, key, count)?;
        // The end mark comes behind them.
        if let Err(error) = self.reserve_rows(state, key, first..=first.saturating_add(count)) {
            let directory = self.directory(state, key)?;
            directory.write().unwrap_or_else(PoisonError::into_inner).free.release(first, count);
            return Err(error);
        }
        self.put_slots(state, key, first, &slots)?;
        Ok((first, first.saturating_add(count).saturating_sub(1), entry.short))
    }

    /// Sees to it that slots of a directory can be written back; those past its end are left out.
    pub(super) fn reserve_rows(&self, state: &State, key: u32, slots: RangeInclusive<u32>) -> Result<()> {
        let chain = self.directory_chain(state, key)?;
        let at = |slot: u32| chain.place(u64::from(slot).saturating_mul(SLOT as u64)).map(|(at, _)| at);
        self.reserve_slots(state, slots.filter_map(at))
    }

    /// The same for all that the removal of a row changes, but for its directory's own entry.
    pub(super) fn reserve_removal(&self, state: &State, found: &Found, entry: &Entry) -> Result<()> {
        self.reserve_rows(state, found.key, found.row.first..=found.slot)?;
        self.reserve_frees(state, entry)
    }

    pub(super) fn insert_row(&self, state: &State, key: u32, slot: u32, row: Row) -> Result<()> {
        let directory = self.directory(state, key)?;
        let mut guard = directory.write().unwrap_or_else(PoisonError::into_inner);
        guard.insert(&self.hasher, slot, row);
        let weight = guard.weight();
        drop(guard);
        if slot.is_multiple_of(64) {
            self.directories.insert(key, directory, weight);
        }
        Ok(())
    }

    /// Takes a row's slots away. With `beside`, the position of an entry that replaces it, they go
    /// in the same write when they lie in the same sector; otherwise in a later one.
    pub(super) fn unlink(&self, state: &mut State, found: &Found, beside: Option<u64>) -> Result<()> {
        let directory = self.directory(state, found.key)?;
        directory.write().unwrap_or_else(PoisonError::into_inner).remove(&self.hasher, found.slot);
        state.removed_names.insert((found.key, found.row.short));
        let key = found.key;
        let entry = self.slot_position(state, key, found.slot)?;
        let first = self.slot_position(state, key, found.row.first)?;
        let beside = beside.is_some_and(|beside| self.same_sector(entry, beside) && self.same_sector(first, beside));
        for slot in found.row.first..=found.slot {
            let at = self.slot_position(state, key, slot)?;
            let stage = match beside {
                true => Stage::Beside,
                false if self.same_sector(at, entry) => Stage::Entry,
                false => Stage::Piece,
            };
            if stage == Stage::Beside {
                self.patch(state, at, &[FREED])?;
            }
            state.removed.insert(at, Removal { key, slot, stage });
        }
        Ok(())
    }

    /// What is left to do once a node has no name: its contents are freed, or kept while it is open.
    pub(super) fn drop_node(&self, state: &mut State, node: NodeId, entry: Entry) -> Result<()> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
        if entry.is_directory() {
            self.directories.remove(&entry.cluster);
            self.claims.lock().unwrap_or_else(PoisonError::into_inner).remove(&entry.cluster);
        }
        if lock(&state.open).contains_key(&node) {
            state.orphans.insert(node, entry);
            return Ok(());
        }
        self.free_contents(state, &entry)
    }

    pub(super) fn require_empty(&self, state: &State, node: NodeId) -> Result<()> {
        let (_, directory) = self.open_directory(state, node)?;
        let empty = directory.read().unwrap_or_else(PoisonError::into_inner).is_empty();
        if empty { Ok(()) } else { Err(Error::NotEmpty) }
    }

    /// First cluster of a directory as its children's `..` names it.
    fn dot_entries(&self, cluster: u32, parent: u32, entry: &Entry) -> [[u8; SLOT]; 2] {
        let dots = Entry { attributes: DIRECTORY, case: 0, size: 0, ..*entry };
        let own = Entry { short: *b".          ", cluster, ..dots };
        let above = Entry { short: *b"..         ", cluster: parent, ..dots };
        [own.to_bytes(self.geometry.width), above.to_bytes(self.geometry.width)]
    }

    /// Writes the cluster of a new directory, which nothing names yet.
    fn write_new_directory(&self, cluster: u32, parent: u32, entry: &Entry) -> Result<()> {
        let at = self.geometry.cluster_offset(cluster).ok_or(Error::Invalid)?;
        let mut bytes = self.dot_entries(cluster, parent, entry).concat();
        bytes.resize(usize::try_from(self.geometry.cluster_size).map_err(|_| Error::Invalid)?, 0);
        self.device_writer()?.write_all_at(&bytes, at)
    }

    pub(super) fn create_locked(&self, state: &mut State, dir: NodeId, name: &[u8], new: NewNode) -> Result<NodeId> {
        check_new(name)?;
        let (key, _) = self.open_directory(state, dir)?;
        if self.find(state, dir, name)?.is_some() {
            return Err(Error::Exists);
        }
        self.reserve_entry(state, dir)?;
        let stamp = Stamp::from_utc(new.now, self.time_offset);
        let directory = new.kind == Kind::Directory;
        let mut entry = Entry {
            short: [b' '; 11],
            attributes: if directory { DIRECTORY } else { ARCHIVE } | if new.read_only { READ_ONLY } else { 0 },
            case: 0,
            created: stamp,
            accessed: stamp.date,
            modified: stamp,
            cluster: 0,
            high: 0,
            size: 0,
        };
        if directory {
            let chain = Arc::new(Chain::fixed(0, 0));
            entry.cluster = self.extend(state, 0, chain, 1)?;
            if let Err(error) = self.write_new_directory(entry.cluster, key, &entry) {
                self.free_contents(state, &entry)?;
                return Err(error);
            }
        }
        let (first, slot, short) = match self.link(state, key, name, &mut entry) {
            Ok(linked) => linked,
            Err(error) => {
                self.free_contents(state, &entry)?;
                return Err(error);
            }
        };
        let node = state.nodes.assign(self.slot_position(state, key, slot)?);
        if directory {
            let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
            claims.insert(entry.cluster, Claim { node, parent: key, short });
        }
        self.insert_row(state, key, slot, Row { name: name.into(), short, first, node, directory })?;
        self.touch_directory(state, dir, new.now);
        Ok(node)
    }

    pub(super) fn remove_locked(&self, state: &mut State, dir: NodeId, name: &[u8], directory: bool) -> Result<()> {
        let found = self.find(state, dir, name)?.ok_or(Error::NotFound)?;
        match (found.row.directory, directory) {
            (true, false) => return Err(Error::IsDirectory),
            (false, true) => return Err(Error::NotDirectory),
            (true, true) => self.require_empty(state, found.row.node)?,
            (false, false) => {}
        }
        let node = found.row.node;
        let entry = self.entry(state, node)?;
        self.reserve_entry(state, dir)?;
        self.reserve_removal(state, &found, &entry)?;
        self.unlink(state, &found, None)?;
        state.nodes.retire(node);
        self.drop_node(state, node, entry)?;
        self.touch_directory(state, dir, now());
        Ok(())
    }
}

/// The slots of a long name, its last piece first.
fn long_slots(units: &[u16], short: &[u8; 11]) -> Vec<[u8; SLOT]> {
    let checksum = checksum(short);
    let count = units.len().div_ceil(13);
    let pieces = units.chunks(13).enumerate().map(|(index, chunk)| {
        let mut filled = [0xffff; 13];
        for (to, from) in filled.iter_mut().zip(chunk.iter().chain(std::iter::once(&0))) {
            *to = *from;
        }
        let number = index.saturating_add(1);
        let piece =
            LongPiece { number: u8::try_from(number).unwrap_or(0), last: number == count, checksum, units: filled };
        piece.to_bytes()
    });
    let mut slots: Vec<_> = pieces.collect();
    slots.reverse();
    slots
}
