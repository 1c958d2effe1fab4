//! What differs from the disk: changes that are not written back yet, and nodes that moved.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::entry::{Entry, SLOT};
use super::free::FreeMap;
use super::legacy::Opened;
use super::table::Changes;
use crate::filesystem::NodeId;

/// What differs from the disk. On a read-only volume it stays empty.
#[derive(Default)]
pub(super) struct State {
    /// Changes of the table.
    pub table: Changes,
    /// Changed sectors of directories, by byte position.
    pub sectors: BTreeMap<u64, Vec<u8>>,
    /// Slots that are removed, but still on the disk, by byte position. They are not used again
    /// before they are gone from it.
    pub removed: HashMap<u64, Removal>,
    /// Pieces of long names that must be on the disk before the 8.3 entry in another sector is.
    pub early: Vec<(u64, [u8; SLOT])>,
    /// Short names, by directory, of removed entries that are still on the disk.
    pub removed_names: HashSet<(u32, [u8; 11])>,
    /// Runs of clusters (first, count) that are to be freed once nothing on the disk names them.
    pub freed: Vec<(u32, u32)>,
    /// Nodes whose number is not their position.
    pub nodes: Nodes,
    /// What is open: shared with every tree that was decoded from these bytes.
    pub open: Arc<Mutex<HashMap<NodeId, Opened>>>,
    /// Removed nodes that are still open, with their last entry.
    pub orphans: HashMap<NodeId, Entry>,
    /// Which clusters are free, once something was allocated.
    pub free: Option<FreeMap>,
    /// The volume is marked as being written to; the marks were there before us.
    pub marked: Option<Marks>,
    /// The FSInfo sector as we wrote it: free clusters, next.
    pub info: Option<(u32, u32)>,
}

/// A slot that is removed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Removal {
    /// First cluster of its directory, 0 for the root.
    pub key: u32,
    /// The slot.
    pub slot: u32,
    /// When it goes from the disk.
    pub stage: Stage,
}

/// When a removed slot goes from the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// With the new entries: it shares a sector with the one that replaces it.
    Beside,
    /// After them: an 8.3 entry, and what shares its sector.
    Entry,
    /// Last: pieces of its long name in another sector. Without them it would have another name.
    Piece,
}

/// The dirty flags as they were before the first write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    /// The boot sector's byte of flags.
    pub boot: Option<u8>,
    /// The number in entry 1 of the table.
    pub table: Option<u32>,
}

impl State {
    /// Free clusters, those included that become free with the next flush; `None` while nothing
    /// was allocated.
    pub fn free_clusters(&self) -> Option<u32> {
        let freed = self.freed.iter().fold(0u32, |sum, &(_, count)| sum.saturating_add(count));
        self.free.as_ref().map(|map| map.free().saturating_add(freed))
    }

    /// Bytes at `at`, when they are all of one changed sector.
    pub fn copy(&self, buf: &mut [u8], at: u64, sector_size: u32) -> bool {
        let within = at.checked_rem(u64::from(sector_size)).unwrap_or(0);
        let sector = self.sectors.get(&at.saturating_sub(within));
        let from = usize::try_from(within).ok().and_then(|within| sector?.get(within..)?.get(..buf.len()));
        from.map(|from| buf.copy_from_slice(from)).is_some()
    }

    /// Lays changed sectors over bytes that were read at `at`.
    pub fn overlay(&self, buf: &mut [u8], at: u64, sector_size: u32) {
        let unit = u64::from(sector_size);
        let end = at.saturating_add(buf.len() as u64);
        let first = at.saturating_sub(at.checked_rem(unit).unwrap_or(0));
        for (&start, sector) in self.sectors.range(first..end) {
            let from = usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
            let to = usize::try_from(start.saturating_sub(at)).unwrap_or(usize::MAX);
            let bytes = sector.get(from..).unwrap_or_default();
            for (to, from) in buf.iter_mut().skip(to).zip(bytes) {
                *to = *from;
            }
        }
    }
}

/// The numbers of nodes that are not the positions of their entries.
#[derive(Default)]
pub(super) struct Nodes(RwLock<Numbers>);

#[derive(Default, Clone)]
struct Numbers {
    /// Position of the entry, by number.
    positions: HashMap<NodeId, u64>,
    /// Number, by the position of the entry.
    numbers: HashMap<u64, NodeId>,
    /// Positions that were some node's number: whatever is stored there next gets a number of its
    /// own, so that no number ever means two nodes.
    retired: HashSet<u64>,
    /// How many numbers were given out that are not positions.
    fresh: u64,
}

/// Numbers from here on are not positions: no FAT volume is that large.
const FRESH: u64 = 1 << 55;

impl Numbers {
    /// The node whose 8.3 entry is at this byte position; `None` when it has no number yet.
    fn at(&self, position: u64) -> Option<NodeId> {
        let own = || Some(NodeId(position)).filter(|_| !self.retired.contains(&position));
        self.numbers.get(&position).copied().or_else(own)
    }

    fn place(&mut self, node: NodeId, position: u64) {
        self.positions.insert(node, position);
        self.numbers.insert(position, node);
    }

    fn renumber(&mut self, position: u64) -> NodeId {
        if let Some(before) = self.numbers.remove(&position) {
            self.positions.remove(&before);
        }
        let node = NodeId(FRESH.saturating_add(self.fresh));
        self.fresh = self.fresh.saturating_add(1);
        self.place(node, position);
        node
    }

    fn retire(&mut self, node: NodeId) {
        let position = self.positions.remove(&node).unwrap_or(node.0);
        self.numbers.remove(&position);
        self.retired.insert(position);
    }
}

impl Nodes {
    fn known(&self) -> RwLockReadGuard<'_, Numbers> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn changing(&self) -> RwLockWriteGuard<'_, Numbers> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Byte position of a node's 8.3 entry; `None` when the number was a node's that is gone. What is
    /// at its position now is another node, or no directory at all.
    pub fn find(&self, node: NodeId) -> Option<u64> {
        let known = self.known();
        match known.positions.get(&node) {
            Some(position) => Some(*position),
            None if node.0 >= FRESH => None,
            None => Some(node.0).filter(|position| known.at(*position) == Some(node)),
        }
    }

    /// Byte position of a node's 8.3 entry, for a node that is there.
    pub fn position(&self, node: NodeId) -> u64 {
        self.known().positions.get(&node).copied().unwrap_or(node.0)
    }

    /// The node whose 8.3 entry is at this byte position. One that others stored there, where once
    /// another node was, gets a number of its own.
    pub fn at(&self, position: u64) -> NodeId {
        let known = self.known().at(position);
        known.unwrap_or_else(|| {
            let mut changing = self.changing();
            let meanwhile = changing.at(position);
            meanwhile.unwrap_or_else(|| changing.renumber(position))
        })
    }

    /// The number of a new node whose entry is at this position.
    pub fn assign(&self, position: u64) -> NodeId {
        let mut changing = self.changing();
        if changing.retired.contains(&position) { changing.renumber(position) } else { NodeId(position) }
    }

    /// A node's entry is gone.
    pub fn retire(&self, node: NodeId) {
        self.changing().retire(node);
    }

    /// A node's entry is somewhere else now.
    pub fn relocate(&self, node: NodeId, position: u64) {
        let mut changing = self.changing();
        changing.retire(node);
        changing.place(node, position);
    }

    /// What the tree knows that is decoded next: which numbers were ever given out, and of the nodes those
    /// that are `kept`, which are where they were. The numbers of those that are `lost` mean nothing more.
    pub fn heirs(&self, kept: &[NodeId], lost: &[NodeId]) -> Self {
        let known = self.known();
        let (retired, fresh) = (known.retired.clone(), known.fresh);
        let mut heirs = Numbers { retired, fresh, ..Numbers::default() };
        for node in lost {
            heirs.retired.insert(known.positions.get(node).copied().unwrap_or(node.0));
        }
        for node in kept {
            if let Some(position) = known.positions.get(node) {
                heirs.place(*node, *position);
            }
        }
        Self(RwLock::new(heirs))
    }
}

impl Clone for Nodes {
    fn clone(&self) -> Self {
        Self(RwLock::new(self.known().clone()))
    }
}
