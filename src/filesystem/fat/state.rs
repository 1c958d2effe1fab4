//! What differs from the disk: changes that are not written back yet, and nodes that moved.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::entry::{Entry, SLOT};
use super::free::FreeMap;
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

/// The numbers of nodes that were moved since the volume was opened.
#[derive(Default)]
pub(super) struct Nodes {
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

impl Nodes {
    /// Whether the number was a node's that was removed. What is at its position now is another
    /// node, or no directory at all.
    pub fn is_gone(&self, node: NodeId) -> bool {
        !self.positions.contains_key(&node) && (node.0 >= FRESH || self.retired.contains(&node.0))
    }

    /// Byte position of a node's 8.3 entry.
    pub fn position(&self, node: NodeId) -> u64 {
        self.positions.get(&node).copied().unwrap_or(node.0)
    }

    /// The node whose 8.3 entry is at this byte position.
    pub fn at(&self, position: u64) -> NodeId {
        self.numbers.get(&position).copied().unwrap_or(NodeId(position))
    }

    /// The number of a new node whose entry is at this position.
    pub fn assign(&mut self, position: u64) -> NodeId {
        if !self.retired.contains(&position) {
            return NodeId(position);
        }
        let node = NodeId(FRESH.saturating_add(self.fresh));
        self.fresh = self.fresh.saturating_add(1);
        self.positions.insert(node, position);
        self.numbers.insert(position, node);
        node
    }

    /// A node's entry is gone.
    pub fn retire(&mut self, node: NodeId) {
        let position = self.position(node);
        self.retired.insert(position);
        self.positions.remove(&node);
        self.numbers.remove(&position);
    }

    /// A node's entry is somewhere else now.
    pub fn relocate(&mut self, node: NodeId, position: u64) {
        self.retire(node);
        self.positions.insert(node, position);
        self.numbers.insert(position, node);
    }
}
