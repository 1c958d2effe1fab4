//! Chains that grow and shrink.

use std::sync::Arc;

use super::Fat;
use super::entry::Entry;
use super::state::State;
use super::table::{Chain, END_MARK, End};
use crate::error::{Error, Result};

impl Fat {
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
        if let Err(error) = self.reserve_links(Some(after).filter(|&after| after != 0), &runs) {
            let map = self.free_map(state)?;
            for cluster in runs.into_iter().flat_map(|(first, len)| first..first.saturating_add(len)) {
                map.mark(cluster, false);
            }
            return Err(error);
        }
        let mut last = after;
        for &(first, len) in &runs {
            if last != 0 {
                self.table.set(&mut state.table, last, first)?;
            }
            last = first.saturating_add(len).saturating_sub(1);
            self.table.link_to(&mut state.table, first, last)?;
        }
        if last != after {
            self.table.set(&mut state.table, last, END_MARK)?;
        }
        Ok(runs)
    }

    /// Sees to it that the table's entries of these clusters can be written back.
    fn reserve_links(&self, before: Option<u32>, runs: &[(u32, u32)]) -> Result<()> {
        let writer = self.device_writer()?;
        for (first, count) in before.map(|before| (before, 1)).iter().chain(runs) {
            self.table.reserve(writer, *first, *count)?;
        }
        Ok(())
    }

    /// The same for the clusters of an entry that is about to lose its name.
    pub(super) fn reserve_frees(&self, state: &State, entry: &Entry) -> Result<()> {
        if self.geometry.cluster_offset(entry.cluster).is_none() {
            return Ok(());
        }
        let chain = self.chain(state, entry.cluster, u64::MAX)?;
        self.reserve_links(None, &self.runs_from(&chain, 0))
    }

    /// Runs of clusters of a chain from a byte on, which starts one.
    fn runs_from(&self, chain: &Chain, offset: u64) -> Vec<(u32, u32)> {
        let size = u64::from(self.geometry.cluster_size);
        let mut runs = Vec::new();
        chain.for_each_run(offset, |at, len| {
            let count = len.checked_div(size).and_then(|count| u32::try_from(count).ok());
            runs.extend(self.geometry.cluster_at(at).zip(count));
        });
        runs
    }

    /// Makes the chain of a file or directory at least `len` bytes long. Gives its first cluster.
    pub(super) fn extend(&self, state: &mut State, first: u32, chain: Arc<Chain>, len: u64) -> Result<u32> {
        let chain = if chain.is_short_of(len) { self.chain(state, first, len)? } else { chain };
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
        let mut longer = if first == 0 { Chain::empty() } else { Arc::unwrap_or_clone(chain) };
        for (first, count) in runs {
            let at = self.geometry.cluster_offset(first).ok_or(Error::Invalid)?;
            if !longer.append(first, count, at, u64::from(count).saturating_mul(size)) {
                return Err(Error::Invalid);
            }
        }
        longer.end = End::Mark(self.table.entry_at(longer.last));
        let weight = longer.weight();
        self.chains.insert(key, Arc::new(longer), weight);
        Ok(key)
    }

    /// Cuts a chain to the clusters that hold its first `len` bytes. Gives its first cluster.
    pub(super) fn shrink(&self, state: &mut State, first: u32, chain: &Chain, len: u64) -> Result<u32> {
        // All of what comes behind is freed.
        let whole = if chain.is_short_of(u64::MAX) { Some(self.chain(state, first, u64::MAX)?) } else { None };
        let chain = whole.as_deref().unwrap_or(chain);
        let size = u64::from(self.geometry.cluster_size);
        let kept = len.div_ceil(size).saturating_mul(size);
        let whole = kept == chain.len && (kept == 0 || matches!(chain.end, End::Mark(_)));
        if kept > chain.len || whole {
            return Ok(first);
        }
        let freed = self.runs_from(chain, kept);
        let last = kept.checked_sub(1).and_then(|at| chain.place(at)).and_then(|(at, _)| self.geometry.cluster_at(at));
        self.reserve_links(last, &freed)?;
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
        let mut shorter = Chain::empty();
        while let Some((at, run)) = chain.place(shorter.len).filter(|_| shorter.len < kept) {
            let run = run.min(kept.saturating_sub(shorter.len));
            let first = self.geometry.cluster_at(at).ok_or(Error::Invalid)?;
            let count = run.checked_div(size).and_then(|count| u32::try_from(count).ok()).unwrap_or(0);
            if !shorter.append(first, count, at, run) {
                return Err(Error::Invalid);
            }
        }
        shorter.end = End::Mark(self.table.entry_at(shorter.last));
        state.table.cuts.insert(shorter.last);
        let weight = shorter.weight();
        self.chains.insert(first, Arc::new(shorter), weight);
        Ok(first)
    }

    /// Frees all clusters of an entry.
    pub(super) fn free_contents(&self, state: &mut State, entry: &Entry) -> Result<()> {
        if self.geometry.cluster_offset(entry.cluster).is_some() {
            let chain = self.chain(state, entry.cluster, u64::MAX)?;
            self.shrink(state, entry.cluster, &chain, 0)?;
        }
        Ok(())
    }
}
