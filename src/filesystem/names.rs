//! Where the names of directories are, for formats that keep no index of their own.

use std::hash::{BuildHasher, RandomState};
use std::ops::ControlFlow;
use std::sync::Arc;

use super::NodeId;
use crate::cache::Cache;
use crate::error::{Error, Result};

/// Bytes of indexes that are kept.
pub(super) const INDEX_CACHE: u64 = 8 << 20;
/// A hundred thousand rows.
pub(super) const LARGE_INDEX: u64 = 2 << 20;
/// A directory with more rows than this is searched row by row: its index would take 32 MB.
pub(super) const MAX_INDEX: usize = 2_000_000;

/// Takes rows: name, node, and the cursor of the next one.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&[u8], NodeId, u64) -> ControlFlow<()>;

/// The indexes of a volume's directories.
pub(super) struct NameIndexes {
    /// By directory.
    kept: Cache<u64, Arc<Index>>,
    hasher: RandomState,
}

struct Index {
    /// (hash of the name, cursor of its row), sorted.
    rows: Vec<(u64, u64)>,
    /// The directory is readable in part: a name that is not found may stand in the rest.
    damage: Option<Error>,
    /// Not all rows are in the index.
    is_partial: bool,
}

impl NameIndexes {
    pub(super) fn new() -> Self {
        Self { kept: Cache::for_heavy(INDEX_CACHE, LARGE_INDEX), hasher: RandomState::new() }
    }

    /// The node of a name. `scan` goes through the directory's rows from a cursor on; what is damaged it passes over,
    /// and says at the end.
    pub(super) fn find(
        &self,
        dir: u64,
        name: &[u8],
        scan: &dyn Fn(u64, Visit<'_>) -> Result<()>,
    ) -> Result<Option<NodeId>> {
        let index = self.kept.get_or_make(&dir, || {
            let index = self.index(scan);
            let weight = index.rows.capacity().saturating_mul(16).saturating_add(128) as u64;
            Ok::<_, Error>((Arc::new(index), weight))
        })?;
        let hash = self.hasher.hash_one(name);
        let first = index.rows.partition_point(|(h, _)| *h < hash);
        let candidates = index.rows.get(first..).unwrap_or_default().iter().take_while(|(h, _)| *h == hash);
        // All rows are gone through where not all are in the index.
        let everything = index.is_partial.then_some((0, false));
        for (cursor, is_alone) in candidates.map(|(_, cursor)| (*cursor, true)).chain(everything) {
            let mut found = None;
            let scanned = scan(cursor, &mut |row, node, _| {
                found = (row == name).then_some(node);
                if is_alone || found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            if found.is_some() {
                return Ok(found);
            }
            scanned?;
        }
        index.damage.clone().map_or(Ok(None), Err)
    }

    fn index(&self, scan: &dyn Fn(u64, Visit<'_>) -> Result<()>) -> Index {
        let (mut rows, mut cursor, mut is_partial) = (Vec::new(), 0, false);
        let damage = scan(0, &mut |name, _, next| {
            rows.push((self.hasher.hash_one(name), cursor));
            cursor = next;
            is_partial = rows.len() >= MAX_INDEX;
            if is_partial { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        rows.sort_unstable();
        rows.shrink_to_fit();
        Index { rows, damage: damage.err(), is_partial }
    }
}
