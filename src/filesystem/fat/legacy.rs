//! What one tree leaves to the next when others have written to the volume: the kernel goes on using
//! the numbers that it was given, and what is open stays open.
//!
//! ```text
//!   before others write     what is open, and every directory that was seen, with name and first cluster
//!   after that              the same entry in the same place: the number goes on meaning it
//!                           anything else: the number means nothing more, and what is there has another
//! ```
//! Nodes that are neither open nor directories are found by their names only, and need no promise.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::entry::{Entry, FREED, LONG, SLOT};
use super::state::{Nodes, State};
use super::{Claim, Fat, ROOT};
use crate::cache::lock;
use crate::filesystem::{Legacy, NodeId};

/// A node that is open.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Opened {
    /// How often.
    pub count: u64,
    /// What it was when that was seen last; `None` when it could not be read.
    pub seen: Option<Seen>,
}

/// What tells one entry from another in the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// Its short name.
    pub short: [u8; 11],
    /// Its first cluster.
    pub cluster: u32,
    /// Whether it is a directory's.
    pub directory: bool,
}

impl From<&Entry> for Seen {
    fn from(entry: &Entry) -> Self {
        Self { short: entry.short, cluster: entry.cluster, directory: entry.is_directory() }
    }
}

impl Seen {
    /// Whether this is the same node: an empty file has no cluster, and gets one when it is written to.
    fn became(self, now: Self) -> bool {
        let same_start = self.cluster == now.cluster || (!self.directory && (self.cluster == 0 || now.cluster == 0));
        self.short == now.short && self.directory == now.directory && same_start
    }
}

/// What a tree leaves behind.
struct Estate {
    nodes: Nodes,
    open: Arc<Mutex<HashMap<NodeId, Opened>>>,
    claims: HashMap<u32, Claim>,
}

impl Fat {
    /// Looks at all that is open once more, before others write.
    pub(super) fn remember_open(&self, state: &State) {
        let nodes: Vec<NodeId> = lock(&state.open).keys().copied().collect();
        for node in nodes {
            let seen = self.stored_entry(state, node).ok().as_ref().map(Seen::from);
            if let Some(opened) = lock(&state.open).get_mut(&node) {
                opened.seen = seen;
            }
        }
    }

    pub(super) fn estate(&self) -> Legacy {
        let state = self.shared();
        let claims = lock(&self.claims).clone();
        Arc::new(Estate { nodes: state.nodes.clone(), open: state.open.clone(), claims })
    }

    pub(super) fn take_over(&self, legacy: &Legacy) {
        let Some(old) = legacy.downcast_ref::<Estate>() else { return };
        let mut state = self.exclusive();
        let (mut kept, mut lost) = (Vec::new(), Vec::new());
        let sound = self.sound_directories(&state, old);
        let mut claims = lock(&self.claims);
        for (key, claim) in old.claims.iter().filter(|(_, claim)| claim.node != ROOT) {
            if sound.get(key) == Some(&true) {
                claims.insert(*key, *claim);
                kept.push(claim.node);
            } else {
                lost.push(claim.node);
            }
        }
        drop(claims);
        let open: Vec<_> = lock(&old.open).iter().map(|(node, opened)| (*node, opened.seen)).collect();
        for (node, seen) in open {
            let there = seen.is_some_and(|seen| self.is_still(&state, old.nodes.position(node), seen));
            if there { kept.push(node) } else { lost.push(node) }
        }
        state.nodes = old.nodes.heirs(&kept, &lost);
        state.open = old.open.clone();
    }

    /// Which of the directories that were seen are still there, by first cluster: each in one that is.
    fn sound_directories(&self, state: &State, old: &Estate) -> HashMap<u32, bool> {
        let mut known = HashMap::from([(0, true)]);
        for key in old.claims.keys() {
            let mut above = Vec::new();
            let mut at = *key;
            let mut sound = loop {
                match (known.get(&at), old.claims.get(&at)) {
                    (Some(sound), _) => break *sound,
                    (None, None) => break false,
                    (None, Some(claim)) if claim.node == ROOT => break true,
                    (None, Some(claim)) => {
                        // Until more is known: what leads back into itself is not sound.
                        known.insert(at, false);
                        above.push((at, claim));
                        at = claim.parent;
                    }
                }
            };
            while let Some((key, claim)) = above.pop() {
                let seen = Seen { short: claim.short, cluster: key, directory: true };
                sound = sound && self.is_still(state, old.nodes.position(claim.node), seen);
                known.insert(key, sound);
            }
        }
        known
    }

    /// Whether the entry at a position is the one that was seen there.
    fn is_still(&self, state: &State, position: u64, seen: Seen) -> bool {
        let mut slot = [0; SLOT];
        if self.read_metadata(state, &mut slot, position).is_err() || matches!(slot, [0 | FREED, ..]) {
            return false;
        }
        let same = Entry::parse(&slot, position, self.geometry.width)
            .is_ok_and(|now| now.attributes & 0x3f != LONG && seen.became(Seen::from(&now)));
        same && self.geometry.cluster_at(position).is_none_or(|cluster| self.is_taken(state, cluster))
    }

    /// Whether anything has a cluster: bytes of a directory that was removed stay where they are.
    fn is_taken(&self, state: &State, cluster: u32) -> bool {
        let piece = self.table.piece(&state.table, self.table.piece_of(cluster));
        piece.is_ok_and(|piece| self.table.number(&piece, cluster).is_some_and(|number| number != 0))
    }
}
