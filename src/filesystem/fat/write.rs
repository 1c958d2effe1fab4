//! The write side: every change is made in memory, where all readers see it, and reaches the disk
//! in the order that `commit` gives it. Contents alone are written at once.

use std::hash::BuildHasher;
use std::sync::{Arc, PoisonError, RwLockWriteGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use super::directory::{Directory, MAX_SLOTS, Row};
use super::entry::{ARCHIVE, DIRECTORY, Entry, FREED, LongPiece, READ_ONLY, SLOT, checksum};
use super::geometry::Root;
use super::name::{Basis, check_new, exact_short};
use super::state::State;
use super::table::{Chain, END_MARK, End};
use super::time::Stamp;
use super::{Claim, Fat, ROOT};
use crate::device::mapped::RunList;
use crate::error::{Error, Result};
use crate::filesystem::{Changes, FileSystemWrite, Kind, NewNode, NodeId, Timestamp};

/// Zeros are written so many bytes at a time.
const ZEROS: usize = 1 << 20;
/// Largest file: its size has 32 bits.
const MAX_SIZE: u64 = u32::MAX as u64;
/// The attribute bits that `user.fat.attributes` may change: read-only, hidden, system, archive.
const SETTABLE: u8 = 0x27;

/// A row of a directory with what is needed to change it.
struct Found {
    key: u32,
    slot: u32,
    row: Row,
}

impl Fat {
    fn exclusive(&self) -> RwLockWriteGuard<'_, State> {
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
    fn touch_directory(&self, state: &State, node: NodeId, now: Timestamp) {
        if node != ROOT && !state.orphans.contains_key(&node) {
            let stamp = Stamp::from_utc(now, self.time_offset);
            self.touched.lock().unwrap_or_else(PoisonError::into_inner).insert(node, stamp);
        }
    }

    // ---- clusters

    /// Takes `count` clusters, chains them, and appends them to the cluster `after`, if that is not 0.
    /// Nothing has changed when it fails.
    fn allocate(&self, state: &mut State, after: u32, count: u32) -> Result<Vec<(u32, u32)>> {
        if after != 0 && state.table.cuts.contains(&after) {
            // What followed this cluster must be gone from the disk before something else follows it.
            self.commit(state)?;
        }
        if self.free_map(state)?.free() < count {
            self.commit(state)?;
        }
        let map = self.free_map(state)?;
        if map.free() < count {
            return Err(Error::NoSpace);
        }
        let (mut runs, mut left, mut last) = (Vec::new(), count, after);
        while left > 0 {
            let (first, len) = map.take(last, left).ok_or(Error::NoSpace)?;
            left = left.saturating_sub(len);
            last = first.saturating_add(len).saturating_sub(1);
            runs.push((first, len));
        }
        let mut last = after;
        for &(first, len) in &runs {
            if last != 0 {
                self.table.set(&mut state.table, last, first)?;
            }
            last = first.saturating_add(len).saturating_sub(1);
            for cluster in first..last {
                self.table.set(&mut state.table, cluster, cluster.saturating_add(1))?;
            }
        }
        if last != after {
            self.table.set(&mut state.table, last, END_MARK)?;
        }
        Ok(runs)
    }

    /// Makes the chain of a file or directory at least `len` bytes long. Gives its first cluster.
    fn extend(&self, state: &mut State, first: u32, chain: Arc<Chain>, len: u64) -> Result<u32> {
        let missing = len.saturating_sub(chain.len);
        if missing == 0 {
            return Ok(first);
        }
        if let End::Broken(error) = &chain.end {
            return Err(error.clone());
        }
        let size = u64::from(self.geometry.cluster_size);
        let count = u32::try_from(missing.div_ceil(size)).map_err(|_| Error::NoSpace)?;
        let runs = self.allocate(state, chain.last, count)?;
        let key = if first == 0 { runs.first().map_or(0, |&(first, _)| first) } else { first };
        // Taken out of the cache first, so that the runs need not be copied.
        self.chains.remove(&key);
        let mut longer = match first {
            0 => Chain { runs: RunList::new(u64::MAX), len: 0, last: 0, end: End::Mark(0) },
            _ => Arc::unwrap_or_clone(chain),
        };
        for (first, count) in runs {
            let at = self.geometry.cluster_offset(first).ok_or(Error::Invalid)?;
            let len = u64::from(count).saturating_mul(size);
            if !longer.runs.push(longer.len, at, len) {
                return Err(Error::Invalid);
            }
            longer.len = longer.len.saturating_add(len);
            longer.last = first.saturating_add(count).saturating_sub(1);
        }
        longer.end = End::Mark(self.table.entry_at(longer.last));
        let weight = longer.weight();
        self.chains.insert(key, Arc::new(longer), weight);
        Ok(key)
    }

    /// Cuts a chain to the clusters that hold its first `len` bytes. Gives its first cluster.
    fn shrink(&self, state: &mut State, first: u32, chain: &Chain, len: u64) -> Result<u32> {
        let size = u64::from(self.geometry.cluster_size);
        let kept = len.div_ceil(size).saturating_mul(size);
        let whole = kept == chain.len && (kept == 0 || matches!(chain.end, End::Mark(_)));
        if kept > chain.len || whole {
            return Ok(first);
        }
        let mut freed = Vec::new();
        chain.for_each_run(kept, |at, len| {
            let count = len.checked_div(size).and_then(|count| u32::try_from(count).ok());
            freed.extend(self.geometry.cluster_at(at).zip(count));
        });
        for &(first, count) in &freed {
            for cluster in first..first.saturating_add(count) {
                state.table.cuts.remove(&cluster);
            }
        }
        state.freed.extend(freed);
        self.chains.remove(&first);
        if kept == 0 {
            return Ok(0);
        }
        let mut shorter = Chain { runs: RunList::new(u64::MAX), len: 0, last: 0, end: End::Mark(0) };
        let mut offset = 0;
        while let Some((at, run)) = chain.place(offset).filter(|_| offset < kept) {
            let run = run.min(kept.saturating_sub(offset));
            if !shorter.runs.push(offset, at, run) {
                return Err(Error::Invalid);
            }
            offset = offset.saturating_add(run);
            shorter.last = self.geometry.cluster_at(at.saturating_add(run).saturating_sub(1)).ok_or(Error::Invalid)?;
        }
        shorter.len = offset;
        shorter.end = End::Mark(self.table.entry_at(shorter.last));
        state.table.cuts.insert(shorter.last);
        let weight = shorter.weight();
        self.chains.insert(first, Arc::new(shorter), weight);
        Ok(first)
    }

    /// Frees all clusters of an entry.
    fn free_contents(&self, state: &mut State, entry: &Entry) -> Result<()> {
        if self.geometry.cluster_offset(entry.cluster).is_some() {
            let chain = self.chain(state, entry.cluster)?;
            self.shrink(state, entry.cluster, &chain, 0)?;
        }
        Ok(())
    }

    // ---- contents

    /// Writes within the chain.
    fn write_runs(&self, chain: &Chain, buf: &[u8], offset: u64) -> Result<()> {
        let writer = self.device_writer()?;
        let (mut buf, mut offset) = (buf, offset);
        while !buf.is_empty() {
            let (at, run) = chain.place(offset).ok_or_else(|| chain.end_error())?;
            let count = usize::try_from(run).unwrap_or(usize::MAX).min(buf.len());
            let (now, later) = buf.split_at(count);
            writer.write_all_at(now, at)?;
            buf = later;
            offset = offset.saturating_add(count as u64);
        }
        Ok(())
    }

    fn write_zeros(&self, chain: &Chain, offset: u64, end: u64) -> Result<()> {
        let len = end.saturating_sub(offset);
        let zeros = vec![0; usize::try_from(len).unwrap_or(ZEROS).min(ZEROS)];
        let mut offset = offset;
        while offset < end {
            let count = usize::try_from(end.saturating_sub(offset)).unwrap_or(ZEROS).min(ZEROS);
            self.write_runs(chain, zeros.get(..count).unwrap_or(&zeros), offset)?;
            offset = offset.saturating_add(count as u64);
        }
        Ok(())
    }

    /// Overwrites what is there, beside all other readers and writers. `false` when the file must
    /// grow first.
    fn write_in_place(&self, file: NodeId, buf: &[u8], offset: u64, now: Timestamp) -> Result<bool> {
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
        self.write_runs(&chain, buf, offset)?;
        let stamp = Stamp::from_utc(now, self.time_offset);
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).insert(file, stamp);
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

    /// Grows a file to `size`: `buf` is what comes last in it, zeros what comes between.
    fn grow(&self, state: &mut State, file: NodeId, entry: &mut Entry, size: u64, buf: &[u8]) -> Result<()> {
        let position = state.nodes.position(file);
        let chain = self.file_chain(state, entry, position)?;
        let old = u64::from(entry.size);
        if old > chain.len {
            return Err(chain.end_error());
        }
        let held = chain.len;
        let first = self.extend(state, entry.cluster, chain, size)?;
        let longer = self.chain(state, first)?;
        let start = size.saturating_sub(buf.len() as u64);
        let written = self.write_zeros(&longer, old, start).and_then(|()| self.write_runs(&longer, buf, start));
        if let Err(error) = written {
            if longer.len > held {
                self.shrink(state, first, &longer, held)?;
            }
            return Err(error);
        }
        entry.cluster = first;
        entry.size = u32::try_from(size).map_err(|_| Error::TooLarge)?;
        Ok(())
    }

    fn resize(&self, state: &mut State, file: NodeId, entry: &mut Entry, size: u64) -> Result<()> {
        let new_size = u32::try_from(size).map_err(|_| Error::TooLarge)?;
        if new_size > entry.size {
            return self.grow(state, file, entry, size, &[]);
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

    // ---- directories

    /// Key of a directory that still has a name.
    fn open_directory(&self, state: &State, node: NodeId) -> Result<(u32, Arc<std::sync::RwLock<Directory>>)> {
        if state.orphans.contains_key(&node) {
            return Err(Error::NotFound);
        }
        let key = self.directory_key(state, node)?;
        let directory = self.directory(state, key)?;
        // What cannot be read in full is not changed: the name may be in the part that is missing.
        let damage = directory.read().unwrap_or_else(PoisonError::into_inner).damage.clone();
        damage.map_or(Ok((key, directory)), Err)
    }

    fn find(&self, state: &State, dir: NodeId, name: &[u8]) -> Result<Option<Found>> {
        let (key, directory) = self.open_directory(state, dir)?;
        let directory = directory.read().unwrap_or_else(PoisonError::into_inner);
        let found = directory.find(&self.hasher, name);
        Ok(found.map(|(slot, row)| Found { key, slot, row: row.clone() }))
    }

    /// Byte position of a slot.
    fn slot_position(&self, state: &State, key: u32, slot: u32) -> Result<u64> {
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
        let longer = self.chain(state, first)?;
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
    fn put_slots(&self, state: &mut State, key: u32, first: u32, slots: &[[u8; SLOT]]) -> Result<()> {
        let mut slot = first;
        for bytes in slots {
            let at = self.slot_position(state, key, slot)?;
            state.removed.remove(&at);
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
    fn new_slots(&self, state: &State, key: u32, name: &[u8], entry: &mut Entry) -> Result<Vec<[u8; SLOT]>> {
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

    /// Stores an entry under a name that is not in the directory. Gives the slot of the 8.3 entry.
    fn link(&self, state: &mut State, key: u32, name: &[u8], entry: &mut Entry) -> Result<(u32, u32, [u8; 11])> {
        let slots = self.new_slots(state, key, name, entry)?;
        let count = u32::try_from(slots.len()).map_err(|_| Error::NameTooLong)?;
        let first = self.take_slots(state, key, count)?;
        self.put_slots(state, key, first, &slots)?;
        Ok((first, first.saturating_add(count).saturating_sub(1), entry.short))
    }

    fn insert_row(&self, state: &State, key: u32, slot: u32, row: Row) -> Result<()> {
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
    fn unlink(&self, state: &mut State, found: &Found, beside: Option<u64>) -> Result<()> {
        let directory = self.directory(state, found.key)?;
        directory.write().unwrap_or_else(PoisonError::into_inner).remove(&self.hasher, found.slot);
        state.removed_names.insert((found.key, found.row.short));
        let mut places = Vec::new();
        for slot in found.row.first..=found.slot {
            places.push((slot, self.slot_position(state, found.key, slot)?));
        }
        if beside.is_some_and(|beside| places.iter().all(|&(_, at)| self.same_sector(at, beside))) {
            for &(slot, at) in &places {
                self.patch(state, at, &[FREED])?;
                directory.write().unwrap_or_else(PoisonError::into_inner).free.release(slot, 1);
            }
        } else {
            state.removed.extend(places.into_iter().map(|(slot, at)| (at, (found.key, slot))));
        }
        Ok(())
    }

    /// What is left to do once a node has no name: its contents are freed, or kept while it is open.
    fn drop_node(&self, state: &mut State, node: NodeId, entry: Entry) -> Result<()> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
        if entry.is_directory() {
            self.directories.remove(&entry.cluster);
            self.claims.lock().unwrap_or_else(PoisonError::into_inner).remove(&entry.cluster);
        }
        if self.open.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&node) {
            state.orphans.insert(node, entry);
            return Ok(());
        }
        self.free_contents(state, &entry)
    }

    fn require_empty(&self, state: &State, node: NodeId) -> Result<()> {
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

    fn create_locked(&self, state: &mut State, dir: NodeId, name: &[u8], new: NewNode) -> Result<NodeId> {
        check_new(name)?;
        let (key, _) = self.open_directory(state, dir)?;
        if self.find(state, dir, name)?.is_some() {
            return Err(Error::Exists);
        }
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
            claims.insert(entry.cluster, Claim { node, parent: key });
        }
        self.insert_row(state, key, slot, Row { name: name.into(), short, first, node, directory })?;
        self.touch_directory(state, dir, new.now);
        Ok(node)
    }

    fn remove_locked(&self, state: &mut State, dir: NodeId, name: &[u8], directory: bool) -> Result<()> {
        let found = self.find(state, dir, name)?.ok_or(Error::NotFound)?;
        match (found.row.directory, directory) {
            (true, false) => return Err(Error::IsDirectory),
            (false, true) => return Err(Error::NotDirectory),
            (true, true) => self.require_empty(state, found.row.node)?,
            (false, false) => {}
        }
        let node = found.row.node;
        let entry = self.entry(state, node)?;
        self.unlink(state, &found, None)?;
        state.nodes.retire(node);
        self.drop_node(state, node, entry)?;
        self.touch_directory(state, dir, now());
        Ok(())
    }

    // ---- renaming

    /// Refuses to move a directory into itself or below.
    fn check_ancestors(&self, moved: u32, target: u32) -> Result<()> {
        let claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = target;
        for _ in 0..=claims.len() {
            if key == moved {
                return Err(Error::Invalid);
            }
            match claims.get(&key) {
                Some(claim) if key != 0 => key = claim.parent,
                _ => return Ok(()),
            }
        }
        Err(Error::Invalid)
    }

    fn rename_locked(
        &self,
        state: &mut State,
        (dir, name): (NodeId, &[u8]),
        (new_dir, new_name): (NodeId, &[u8]),
        replace: bool,
    ) -> Result<()> {
        check_new(new_name)?;
        let source = self.find(state, dir, name)?.ok_or(Error::NotFound)?;
        let (new_key, _) = self.open_directory(state, new_dir)?;
        let node = source.row.node;
        let mut entry = self.entry(state, node)?;
        let target = self.find(state, new_dir, new_name)?;
        let target = target.filter(|target| (target.key, target.slot) != (source.key, source.slot));
        if source.row.directory {
            self.check_ancestors(entry.cluster, new_key)?;
        }
        if let Some(target) = &target {
            match (target.row.directory, source.row.directory) {
                _ if !replace => return Err(Error::Exists),
                (true, false) => return Err(Error::IsDirectory),
                (false, true) => return Err(Error::NotDirectory),
                (true, true) => self.require_empty(state, target.row.node)?,
                (false, false) => {}
            }
        } else if source.key == new_key && source.row.name.as_ref() == new_name {
            return Ok(());
        }
        match &target {
            Some(target) if target.row.name.as_ref() == new_name => {
                self.replace_entry(state, &source, target, &mut entry)?;
            }
            None if source.key == new_key && self.rewrite_in_place(state, &source, new_name, &mut entry)? => {}
            _ => self.move_entry(state, &source, target.as_ref(), new_key, new_name, &mut entry)?,
        }
        if source.row.directory && source.key != new_key {
            self.reparent(state, &entry, node, new_key)?;
        }
        let now = now();
        self.touch_directory(state, dir, now);
        self.touch_directory(state, new_dir, now);
        Ok(())
    }

    /// The target's entry becomes the source's: one sector changes, and the name never is without
    /// a file.
    fn replace_entry(&self, state: &mut State, source: &Found, target: &Found, entry: &mut Entry) -> Result<()> {
        let position = self.slot_position(state, target.key, target.slot)?;
        let replaced = self.entry(state, target.row.node)?;
        (entry.short, entry.case) = (replaced.short, replaced.case);
        self.unlink(state, source, Some(position))?;
        self.drop_target(state, target, replaced)?;
        self.relocate(state, source.row.node, position);
        self.patch(state, position, &entry.to_bytes(self.geometry.width))?;
        let row = Row { node: source.row.node, directory: source.row.directory, ..target.row.clone() };
        self.insert_row(state, target.key, target.slot, row)
    }

    /// A replaced node loses its number's position, and then its contents.
    fn drop_target(&self, state: &mut State, target: &Found, replaced: Entry) -> Result<()> {
        state.nodes.retire(target.row.node);
        self.drop_node(state, target.row.node, replaced)
    }

    /// A node's entry is at another position now; a time that waits for it stays with the node.
    fn relocate(&self, state: &mut State, node: NodeId, position: u64) {
        state.nodes.relocate(node, position);
    }

    /// Writes another name over the old one when it takes as many slots: a change of case always
    /// does, and no second entry ever exists. `false` when it takes more or fewer.
    fn rewrite_in_place(&self, state: &mut State, source: &Found, name: &[u8], entry: &mut Entry) -> Result<bool> {
        let directory = self.directory(state, source.key)?;
        let removed = directory.write().unwrap_or_else(PoisonError::into_inner).remove(&self.hasher, source.slot);
        let row = removed.ok_or(Error::NotFound)?;
        let old = *entry;
        let slots = self.new_slots(state, source.key, name, entry);
        let count = source.slot.saturating_sub(source.row.first).saturating_add(1);
        let first = self.slot_position(state, source.key, source.row.first)?;
        let last = self.slot_position(state, source.key, source.slot)?;
        let slots = slots.ok().filter(|slots| {
            // Over two sectors, a crash between them must not leave both names broken.
            let same_short = entry.short == old.short;
            u32::try_from(slots.len()) == Ok(count) && (same_short || self.same_sector(first, last))
        });
        let Some(slots) = slots else {
            *entry = old;
            self.insert_row(state, source.key, source.slot, row)?;
            return Ok(false);
        };
        state.removed_names.insert((source.key, old.short));
        self.put_slots(state, source.key, source.row.first, &slots)?;
        self.insert_row(state, source.key, source.slot, Row { name: name.into(), short: entry.short, ..row })?;
        Ok(true)
    }

    /// The general case: a new entry, and then the old one, and that of the target, are removed.
    fn move_entry(
        &self,
        state: &mut State,
        source: &Found,
        target: Option<&Found>,
        key: u32,
        name: &[u8],
        entry: &mut Entry,
    ) -> Result<()> {
        if exact_short(name).is_some_and(|(short, _)| state.removed_names.contains(&(key, short))) {
            // Were the removed entry of this name still there after a crash, fsck.fat would rename one.
            self.commit(state)?;
        }
        let (first, slot, short) = self.link(state, key, name, entry)?;
        let position = self.slot_position(state, key, slot)?;
        self.unlink(state, source, Some(position))?;
        if let Some(target) = target {
            let replaced = self.entry(state, target.row.node)?;
            self.unlink(state, target, Some(position))?;
            self.drop_target(state, target, replaced)?;
        }
        self.relocate(state, source.row.node, position);
        let row = Row { name: name.into(), short, first, ..source.row.clone() };
        self.insert_row(state, key, slot, row)
    }

    /// A directory has another parent: its `..` says so.
    fn reparent(&self, state: &mut State, entry: &Entry, node: NodeId, parent: u32) -> Result<()> {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.insert(entry.cluster, Claim { node, parent });
        drop(claims);
        let Some(at) = self.geometry.cluster_offset(entry.cluster).map(|at| at.saturating_add(SLOT as u64)) else {
            return Ok(());
        };
        let mut slot = [0; SLOT];
        self.read_metadata(state, &mut slot, at)?;
        let above = Entry::parse(&slot, at, self.geometry.width)?;
        if above.short == *b"..         " {
            self.patch(state, at, &Entry { cluster: parent, ..above }.to_bytes(self.geometry.width))?;
        }
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

/// The time, for changes of directories that come without one.
fn now() -> Timestamp {
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

    fn write(&self, file: NodeId, buf: &[u8], offset: u64, now: Timestamp) -> Result<()> {
        if buf.is_empty() || self.write_in_place(file, buf, offset, now)? {
            return Ok(());
        }
        drop(self.changing()?);
        if self.write_in_place(file, buf, offset, now)? {
            return Ok(());
        }
        let mut state = self.changing()?;
        let mut entry = self.file_entry(&state, file)?;
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= MAX_SIZE).ok_or(Error::TooLarge)?;
        if end > u64::from(entry.size) {
            let old = u64::from(entry.size).max(offset);
            // The part below the old end goes first; what grows the file, with it or not at all.
            let split = usize::try_from(old.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
            let (below, above) = buf.split_at(split);
            if !below.is_empty() {
                let chain = self.file_chain(&state, &entry, state.nodes.position(file))?;
                self.grow(&mut state, file, &mut entry, end, above)?;
                self.write_runs(&chain, below, offset)?;
            } else {
                self.grow(&mut state, file, &mut entry, end, above)?;
            }
        } else {
            let chain = self.file_chain(&state, &entry, state.nodes.position(file))?;
            self.write_runs(&chain, buf, offset)?;
        }
        entry.modified = Stamp::from_utc(now, self.time_offset);
        entry.attributes |= ARCHIVE;
        self.put_entry(&mut state, file, entry)?;
        self.commit_if_large(&mut state)
    }

    fn set_attributes(&self, node: NodeId, changes: &Changes) -> Result<()> {
        let mut state = self.changing()?;
        if node == ROOT {
            // The root has no entry, so its times and marks have no place.
            return if changes.size.is_some() { Err(Error::IsDirectory) } else { Ok(()) };
        }
        let mut entry = self.entry(&state, node)?;
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
            return Err(Error::Invalid);
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
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(node).or_insert(0u64);
        *count = count.saturating_add(1);
    }

    fn closed(&self, node: NodeId) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = open.get_mut(&node) else { return };
        *count = count.saturating_sub(1);
        if *count > 0 {
            return;
        }
        open.remove(&node);
        drop(open);
        let mut state = self.exclusive();
        if let Some(orphan) = state.orphans.remove(&node)
            && let Err(error) = self.free_contents(&mut state, &orphan)
        {
            log::warn!("fat: the clusters of a removed file stay taken: {error}");
        }
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
        self.unmark(&mut state)
    }
}
