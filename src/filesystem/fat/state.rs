//! What differs from the disk: changes that are not written back yet, and nodes that moved.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::entry::Entry;
use super::table::Changes;
use crate::filesystem::NodeId;

/// What differs from the disk. On a read-only volume it stays empty.
#[derive(Default)]
pub(super) struct State {
    /// Changed pieces of the table.
    pub table: Changes,
    /// Changed sectors of directories, by byte position.
    pub sectors: BTreeMap<u64, Vec<u8>>,
    /// Slots that are removed, but still on the disk, by byte position.
    pub removed: HashSet<u64>,
    /// Nodes whose number is not their position.
    pub nodes: Nodes,
    /// Removed nodes that are still open, with their last entry.
    pub orphans: HashMap<NodeId, Entry>,
}

impl State {
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
}

impl Nodes {
    /// Byte position of a node's 8.3 entry.
    pub fn position(&self, node: NodeId) -> u64 {
        self.positions.get(&node).copied().unwrap_or(node.0)
    }

    /// The node whose 8.3 entry is at this byte position.
    pub fn at(&self, position: u64) -> NodeId {
        self.numbers.get(&position).copied().unwrap_or(NodeId(position))
    }
}
