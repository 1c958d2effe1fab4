//! Which clusters are free: one bit for each, found once from the table and kept up to date.

/// The bits; set for clusters in use.
#[derive(Debug)]
pub(super) struct FreeMap {
    /// Bit `n` is cluster `n + 2`.
    used: Vec<u64>,
    /// Number of clusters.
    count: u32,
    free: u32,
    /// Where the next search starts: behind the last allocation.
    next: u32,
}

impl FreeMap {
    /// All of `count` clusters free; the search starts at cluster `next`.
    pub fn new(count: u32, next: u32) -> Self {
        let words = usize::try_from(count.div_ceil(64)).unwrap_or(0);
        let start = next.saturating_sub(2);
        Self { used: vec![0; words], count, free: count, next: if start < count { start } else { 0 } }
    }

    /// Number of free clusters.
    pub fn free(&self) -> u32 {
        self.free
    }

    /// The cluster that the next search starts at.
    pub fn next(&self) -> u32 {
        self.next.saturating_add(2)
    }

    fn bit(index: u32) -> (usize, u64) {
        (usize::try_from(index >> 6).unwrap_or(usize::MAX), 1 << (index & 63))
    }

    /// Marks a cluster as used, or as free.
    pub fn mark(&mut self, cluster: u32, used: bool) {
        let Some(index) = cluster.checked_sub(2).filter(|&index| index < self.count) else { return };
        let (word, mask) = Self::bit(index);
        let Some(word) = self.used.get_mut(word) else { return };
        match (*word & mask != 0, used) {
            (false, true) => {
                *word |= mask;
                self.free = self.free.saturating_sub(1);
            }
            (true, false) => {
                *word &= !mask;
                self.free = self.free.saturating_add(1);
            }
            _ => {}
        }
    }

    /// The first cluster from `index` on that is free, or is used.
    fn find(&self, index: u32, used: bool) -> Option<u32> {
        let (first, _) = Self::bit(index);
        let flip = if used { 0 } else { u64::MAX };
        let mut mask = u64::MAX.checked_shl(index & 63).unwrap_or(0);
        for (word, number) in self.used.get(first..)?.iter().zip(index >> 6..) {
            let hits = (word ^ flip) & mask;
            if hits != 0 {
                let found = number.saturating_mul(64).saturating_add(hits.trailing_zeros());
                return (found < self.count).then_some(found);
            }
            mask = u64::MAX;
        }
        None
    }

    /// Marks bits that are all free.
    fn use_all(&mut self, start: u32, end: u32) {
        let mut index = start;
        while index < end {
            let (word, first) = Self::bit(index);
            let next = (index | 63).saturating_add(1).min(end);
            let (_, last) = Self::bit(next.saturating_sub(1));
            if let Some(word) = self.used.get_mut(word) {
                *word |= last | last.wrapping_sub(first);
            }
            index = next;
        }
        self.free = self.free.saturating_sub(end.saturating_sub(start));
    }

    /// Takes a run of at most `wanted` clusters: the one after `after`, if that is free, or else
    /// the next there is. Gives its first cluster and its length.
    pub fn take(&mut self, after: u32, wanted: u32) -> Option<(u32, u32)> {
        let goal = after.checked_sub(1).filter(|&goal| after >= 2 && goal < self.count);
        let start = goal
            .filter(|&goal| self.find(goal, false) == Some(goal))
            .or_else(|| self.find(self.next, false))
            .or_else(|| self.find(0, false))?;
        let limit = start.saturating_add(wanted).min(self.count);
        let end = self.find(start, true).unwrap_or(self.count).min(limit);
        self.use_all(start, end);
        self.next = if end < self.count { end } else { 0 };
        Some((start.saturating_add(2), end.saturating_sub(start)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_taken_behind_each_other_and_holes_are_found_again() {
        let mut map = FreeMap::new(200, 2);
        assert_eq!(map.take(0, 70), Some((2, 70)));
        assert_eq!(map.take(0, 10), Some((72, 10)));
        assert_eq!(map.take(71, 10), Some((82, 10)), "72 is taken");
        map.mark(10, false);
        map.mark(11, false);
        assert_eq!(map.take(9, 5), Some((10, 2)));
        assert_eq!(map.take(91, 1000), Some((92, 110)));
        assert_eq!((map.take(0, 1), map.free()), (None, 0));
        map.mark(201, false);
        map.mark(201, false);
        map.mark(202, false);
        assert_eq!((map.free(), map.take(0, 9)), (1, Some((201, 1))));
    }
}
