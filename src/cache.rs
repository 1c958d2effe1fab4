//! A sharded LRU cache, bounded by the weight of what it keeps.
//!
//! Every cache of imgfs is one of these: sectors of the disk, decoded clusters of a container,
//! parsed nodes of a file system. A value is made once even when several threads want it at the
//! same time (the others wait for the first), and no lock is held while it is made.
//!
//! ```text
//!   key -- hash --> shard 0..15:  Mutex { LRU of ready values, set of keys being made } + Condvar
//!                   heavy:        Mutex { LRU of the values that are heavier than a shard may be }
//! ```
//! The shards and the heavy values have the bound each; one value is kept even when it is past it.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

const SHARDS: usize = 16;
/// What keeping a value costs besides its weight, in bytes: a link of the LRU list, a slot of its
/// table, the heads of two allocations.
const ENTRY: u64 = 128;

/// Values by key, the least recently used ones dropped when their weight passes the bound.
pub struct Cache<K, V> {
    shards: Vec<Shard<K, V>>,
    hasher: RandomState,
    /// Values that are heavier than a shard may be. Locked after the shard of the key.
    heavy: Mutex<Kept<K, V>>,
    /// Whether there was ever one, so that most caches need no second lock.
    has_heavy: AtomicBool,
    /// Per shard.
    max_weight: u64,
    /// Of the heavy ones.
    max_heavy: u64,
    hits: AtomicU64,
    misses: AtomicU64,
}

struct Shard<K, V> {
    state: Mutex<State<K, V>>,
    made: Condvar,
}

struct Kept<K, V> {
    ready: LruCache<K, (V, u64)>,
    weight: u64,
}

struct State<K, V> {
    kept: Kept<K, V>,
    pending: HashSet<K>,
    /// How many threads wait for a value that another one makes.
    waiting: usize,
}

/// What a cache did since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Look-ups answered from the cache.
    pub hits: u64,
    /// Look-ups for which the value had to be made.
    pub misses: u64,
    /// Weight of what is kept now, in bytes.
    pub weight: u64,
}

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> {
    /// A cache that keeps values of at most `max_weight` in all (bytes, where weights are bytes).
    pub fn new(max_weight: u64) -> Self {
        Self::with_shards(max_weight, SHARDS)
    }

    /// As [`Cache::new`], for values that weigh up to about `heavy` each: as many shards as such
    /// values fit.
    pub fn for_heavy(max_weight: u64, heavy: u64) -> Self {
        let fit = max_weight.checked_div(heavy).and_then(|fit| usize::try_from(fit).ok());
        Self::with_shards(max_weight, fit.unwrap_or(SHARDS).clamp(1, SHARDS))
    }

    fn with_shards(max_weight: u64, shards: usize) -> Self {
        let shard = || Shard {
            state: Mutex::new(State { kept: Kept::new(), pending: HashSet::new(), waiting: 0 }),
            made: Condvar::new(),
        };
        Self {
            shards: (0..shards).map(|_| shard()).collect(),
            hasher: RandomState::new(),
            heavy: Mutex::new(Kept::new()),
            has_heavy: AtomicBool::new(false),
            max_weight: max_weight.div_ceil(shards as u64),
            max_heavy: max_weight,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    fn shard(&self, key: &K) -> &Shard<K, V> {
        let index = ((self.hasher.hash_one(key) >> 32) as usize).checked_rem(self.shards.len()).unwrap_or(0);
        #[allow(clippy::indexing_slicing, reason = "the index is below the vector's length, which is not zero")]
        &self.shards[index]
    }

    /// The value for `key`, made by `make` (which also tells its weight) when it is not there.
    /// A failed `make` is not remembered.
    pub fn get_or_make<E>(&self, key: &K, make: impl FnOnce() -> Result<(V, u64), E>) -> Result<V, E> {
        let shard = self.shard(key);
        let mut state = lock(&shard.state);
        loop {
            if let Some(value) = state.kept.get(key).or_else(|| self.heavy()?.get(key)) {
                self.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(value);
            }
            if state.pending.insert(key.clone()) {
                break;
            }
            state.waiting = state.waiting.saturating_add(1);
            state = shard.made.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting = state.waiting.saturating_sub(1);
        }
        drop(state);
        self.misses.fetch_add(1, Ordering::Relaxed);
        let pending = Pending { shard, key };
        let (value, weight) = make()?;
        self.insert(key.clone(), value.clone(), weight);
        drop(pending);
        Ok(value)
    }

    /// As [`Cache::get_or_make`], for a value that is cheap to make and perhaps never wanted again: it is kept
    /// only where there is room, drops no other, and nobody waits for it.
    pub fn get_or_make_aside<E>(&self, key: &K, make: impl FnOnce() -> Result<(V, u64), E>) -> Result<V, E> {
        if let Some(value) = self.get(key) {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(value);
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let (value, weight) = make()?;
        let mut state = lock(&self.shard(key).state);
        if state.kept.taken().saturating_add(weight).saturating_add(ENTRY) <= self.max_weight {
            state.kept.insert(key.clone(), value.clone(), weight, self.max_weight);
        }
        Ok(value)
    }

    /// The value for `key` when it is there.
    pub fn get(&self, key: &K) -> Option<V> {
        let mut state = lock(&self.shard(key).state);
        state.kept.get(key).or_else(|| self.heavy()?.get(key))
    }

    /// Puts a value in place, in front of all others.
    pub fn insert(&self, key: K, value: V, weight: u64) {
        let mut state = lock(&self.shard(&key).state);
        if weight.saturating_add(ENTRY) > self.max_weight {
            state.kept.remove(&key);
            self.has_heavy.store(true, Ordering::Relaxed);
            lock(&self.heavy).insert(key, value, weight, self.max_heavy);
        } else {
            if let Some(mut heavy) = self.heavy() {
                heavy.remove(&key);
            }
            state.kept.insert(key, value, weight, self.max_weight);
        }
    }

    /// Forgets one value.
    pub fn remove(&self, key: &K) {
        let mut state = lock(&self.shard(key).state);
        state.kept.remove(key);
        if let Some(mut heavy) = self.heavy() {
            heavy.remove(key);
        }
    }

    fn heavy(&self) -> Option<MutexGuard<'_, Kept<K, V>>> {
        // Whoever holds the shard's lock sees what was stored under it.
        self.has_heavy.load(Ordering::Relaxed).then(|| lock(&self.heavy))
    }

    /// Hits, misses and present weight.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            weight: self
                .shards
                .iter()
                .map(|shard| lock(&shard.state).kept.weight)
                .sum::<u64>()
                .saturating_add(lock(&self.heavy).weight),
        }
    }
}

impl<K: Hash + Eq, V: Clone> Kept<K, V> {
    fn new() -> Self {
        Self { ready: LruCache::unbounded(), weight: 0 }
    }

    fn get(&mut self, key: &K) -> Option<V> {
        self.ready.get(key).map(|(value, _)| value.clone())
    }

    /// The room that all of it takes.
    fn taken(&self) -> u64 {
        self.weight.saturating_add(ENTRY.saturating_mul(self.ready.len() as u64))
    }

    fn remove(&mut self, key: &K) {
        if let Some((_, weight)) = self.ready.pop(key) {
            self.weight = self.weight.saturating_sub(weight);
        }
    }

    /// Keeps the value and drops the oldest until the weight fits. A value heavier than the bound
    /// is kept alone: it was asked for, and the next one replaces it.
    fn insert(&mut self, key: K, value: V, weight: u64, max_weight: u64) {
        if let Some((_, old)) = self.ready.push(key, (value, weight)).map(|(_, old)| old) {
            self.weight = self.weight.saturating_sub(old);
        }
        self.weight = self.weight.saturating_add(weight);
        while self.taken() > max_weight && self.ready.len() > 1 {
            let Some((_, (_, old))) = self.ready.pop_lru() else { break };
            self.weight = self.weight.saturating_sub(old);
        }
    }
}

/// Wakes the waiting threads when the value is made, has failed, or its maker panicked.
struct Pending<'a, K: Hash + Eq, V> {
    shard: &'a Shard<K, V>,
    key: &'a K,
}

impl<K: Hash + Eq, V> Drop for Pending<'_, K, V> {
    fn drop(&mut self) {
        let mut state = lock(&self.shard.state);
        state.pending.remove(self.key);
        let waiting = state.waiting;
        drop(state);
        // To wake no one is a system call as well.
        if waiting > 0 {
            self.shard.made.notify_all();
        }
    }
}

/// Locks a map that no panic can leave half-changed, so that the poison of one is ignored.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn a_value_is_made_once_for_many_readers() {
        let cache: Cache<u64, u64> = Cache::new(1 << 20);
        let made = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let value = cache.get_or_make(&7, || {
                        made.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        Ok::<_, ()>((42, 1))
                    });
                    assert_eq!(value, Ok(42));
                });
            }
        });
        assert_eq!(made.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_failure_reaches_its_caller_and_is_not_remembered() {
        let cache: Cache<u64, u64> = Cache::new(1 << 20);
        assert_eq!(cache.get_or_make(&1, || Err("no")), Err("no"));
        assert_eq!(cache.get_or_make(&1, || Ok::<_, &str>((5, 1))), Ok(5));
    }

    #[test]
    fn what_is_kept_aside_drops_nothing() {
        let cache: Cache<u64, u64> = Cache::for_heavy(1_000, 1_000);
        let one = |key: u64| cache.get_or_make_aside(&key, || Ok::<_, ()>((key, 100)));
        (0..100).for_each(|key| assert_eq!(one(key), Ok(key)));
        assert_eq!((0..100).filter(|key| cache.get(key).is_some()).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(cache.get_or_make_aside(&1, || Err("made again")), Ok(1));
    }

    #[test]
    fn heavy_values_are_few() {
        let cache: Cache<u64, u64> = Cache::for_heavy(250, 100);
        for key in 0..100 {
            cache.insert(key, key, 100);
        }
        assert!(cache.statistics().weight <= 250);
    }

    #[test]
    fn of_values_heavier_than_the_bound_the_last_alone_is_kept() {
        let cache: Cache<u64, u64> = Cache::new(1600);
        for key in 0..100 {
            cache.insert(key, key, 5000);
            assert_eq!((cache.get(&key), cache.statistics().weight), (Some(key), 5000));
        }
        // Of those that only a shard has no room for, as many as the bound allows.
        for key in 0..100 {
            cache.insert(key, key, 500);
        }
        assert_eq!((cache.get(&99), cache.statistics().weight), (Some(99), 1000));
        // A value that was heavy and is no longer is in one place.
        cache.insert(99, 7, 10);
        assert_eq!((cache.get(&99), cache.statistics().weight), (Some(7), 510));
        cache.remove(&98);
        assert_eq!(cache.statistics().weight, 10);
    }

    #[test]
    fn the_weight_stays_below_the_bound() {
        let cache: Cache<u64, u64> = Cache::new(16 * 100);
        for key in 0..10_000 {
            cache.insert(key, key, 10);
        }
        assert!(cache.statistics().weight <= 16 * 100);
        cache.insert(1, 1, 10);
        assert_eq!(cache.get(&1), Some(1));
    }
}
