//! Early answers: whoever waits for a large write is told that it is done before its bytes are in the file.
//!
//! ```text
//!   write_early_at, large: registered, answered, its turn: written by the thread that brought it --+--> the store
//!   small: while a large one is under way, copied, and written by that one's thread ---------------+
//!          otherwise written at once --------------------------------------------------------------'
//!   read_at, sync, set_size: after what was answered before and they overlap, after all of it
//! ```
//! The writer gets his next bytes ready while the last ones are written, out of the memory in which they came. One
//! thread at a time writes to the file: the host lets no more in, and those that it keeps out may burn the processor
//! that the writer needs.
//!
//! **What is answered must not fail.** A write is answered early only where [`Store::reserve`] said that room is set
//! aside for it; wherever else it could find the host full, its writer waits and is told. What the host fails to keep
//! all the same (a broken disk) is logged, reading it is an error, and so is every write and sync from then on.
//!
//! **Order.** What is registered reaches the file in the order in which it came. Two writes to one place do so as well,
//! registered or not, when one was answered before the other began. A sync begins once all that was answered before is
//! in the file, so that what it promises is as without early answers.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::store::Store;
use crate::cache::lock;
use crate::device::Kept;

/// A write of fewer bytes is done before anybody else could have begun something.
pub const LEAST: usize = 64 << 10;
/// Runs of room that are remembered.
const MOST_RUNS: usize = 8;
/// The host sets room aside in blocks, of this size as a rule: their other bytes need not be asked for again. Who asks
/// waits until nobody writes to the file.
const BLOCK: u64 = 4096;
/// Bytes that the host is given at once. It keeps them in memory as one, and the larger that is, the longer a few
/// bytes of it take to be overwritten.
const PIECE: usize = 512 << 10;
/// Small writes that are left to a large one, at the most.
const MOST_LEFT: usize = 16;

/// A store that answers large writes before they are done.
pub struct Early {
    store: Box<dyn Store>,
    /// Bytes of the smallest write that is answered early.
    least: usize,
    state: Mutex<State>,
    /// One that was answered is done.
    done: Condvar,
}

#[derive(Default)]
struct State {
    /// What is registered and not done, in order.
    pending: VecDeque<Pending>,
    /// How many were registered.
    registered: u64,
    /// Bytes for which the host has set room aside: [`MOST_RUNS`] at the most, none of which touch.
    room: Vec<Range<u64>>,
    /// Why it takes no more, and what of the file is lost.
    failed: Option<String>,
    lost: Vec<Range<u64>>,
}

/// A write that is registered.
struct Pending {
    number: u64,
    bytes: Range<u64>,
    /// What a thread that did not wait for it has left, for the one before it to write.
    left: Option<Vec<u8>>,
}

fn range(offset: u64, len: usize) -> Range<u64> {
    offset..offset.saturating_add(len as u64)
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

impl State {
    fn has_room(&self, bytes: &Range<u64>) -> bool {
        self.room.iter().any(|room| room.start <= bytes.start && bytes.end <= room.end)
    }

    fn register(&mut self, bytes: Range<u64>, left: Option<Vec<u8>>) -> u64 {
        self.registered = self.registered.saturating_add(1);
        self.pending.push_back(Pending { number: self.registered, bytes, left });
        self.registered
    }

    fn check(&self) -> io::Result<()> {
        self.failed.clone().map_or(Ok(()), |why| Err(io::Error::other(why)))
    }

    fn check_readable(&self, bytes: &Range<u64>) -> io::Result<()> {
        if self.lost.iter().any(|lost| overlap(lost, bytes)) { self.check() } else { Ok(()) }
    }

    /// Remembers that bytes are lost which were answered.
    fn fail(&mut self, lost: Range<u64>, why: &str) {
        log::error!(
            "{} bytes of an overlay, from byte {}, are lost: {why}",
            lost.end.saturating_sub(lost.start),
            lost.start
        );
        self.lost.push(lost);
        self.failed.get_or_insert_with(|| format!("the host failed to keep earlier writes: {why}"));
    }

    /// Adds room to what is known. A few runs are enough to know: a file grows at its end, and tables are few.
    fn add_room(&mut self, mut more: Range<u64>) {
        self.room.retain(|room| {
            let touch = more.start <= room.end && room.start <= more.end;
            if touch {
                more = room.start.min(more.start)..room.end.max(more.end);
            }
            !touch
        });
        self.room.push(more);
        if self.room.len() > MOST_RUNS {
            let len = |room: &Range<u64>| room.end.saturating_sub(room.start);
            let shortest = (0..).zip(&self.room).min_by_key(|(_, room)| len(room)).map(|(index, _)| index);
            shortest.map(|index: usize| self.room.swap_remove(index));
        }
    }
}

impl Early {
    /// Answers early, wherever `store` has room set aside, what has `least` bytes ([`LEAST`]) or more.
    pub fn new(store: Box<dyn Store>, least: usize) -> Self {
        Self { store, least, state: Mutex::default(), done: Condvar::new() }
    }

    /// Waits for what is registered so far and overlaps these bytes.
    fn settle(&self, bytes: &Range<u64>) -> MutexGuard<'_, State> {
        let state = lock(&self.state);
        let last = state.registered;
        self.wait_while(state, |state| state.pending.iter().any(|one| one.number <= last && overlap(&one.bytes, bytes)))
    }

    fn wait_while<'a>(&'a self, state: MutexGuard<'a, State>, waits: impl Fn(&State) -> bool) -> MutexGuard<'a, State> {
        self.done.wait_while(state, |state| waits(state)).unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a small write to the thread of a large one that is under way.
    fn leave(&self, buf: &[u8], bytes: &Range<u64>) -> io::Result<bool> {
        let mut state = lock(&self.state);
        state.check()?;
        let takes = buf.len() < self.least
            && !state.pending.is_empty()
            && state.has_room(bytes)
            && state.pending.len() <= MOST_LEFT;
        if takes {
            state.register(bytes.clone(), Some(buf.to_vec()));
        }
        Ok(takes)
    }
}

/// Everything that the file can have.
const ALL: Range<u64> = 0..u64::MAX;

/// A write that is registered and has a thread of its own, until it is done.
struct Turn<'a> {
    early: &'a Early,
    number: u64,
    /// What is not done yet.
    writing: Option<Range<u64>>,
}

impl Turn<'_> {
    /// Waits for what came before, writes, and then what others have left behind it.
    fn write(&mut self, buf: &[u8], offset: u64) {
        let first = |state: &State| state.pending.front().is_some_and(|one| one.number == self.number);
        let state = self.early.wait_while(lock(&self.early.state), |state| !first(state));
        drop(state);
        let mut at = offset;
        let mut written = buf.chunks(PIECE).try_for_each(|piece| {
            let place = at;
            at = at.saturating_add(piece.len() as u64);
            self.early.store.write_at(piece, place)
        });
        while let Some(next) = self.end(written) {
            written = self.early.store.write_at(&next, self.writing.as_ref().map_or(0, |bytes| bytes.start));
        }
    }

    /// The first one is done. Gives what was left behind it.
    fn end(&mut self, written: io::Result<()>) -> Option<Vec<u8>> {
        let mut state = lock(&self.early.state);
        state.pending.pop_front();
        if let (Err(error), Some(lost)) = (written, self.writing.take()) {
            state.fail(lost, &error.to_string());
        }
        self.writing = None;
        self.early.done.notify_all();
        let next = state.pending.front_mut()?;
        let bytes = next.left.take()?;
        (self.number, self.writing) = (next.number, Some(next.bytes.clone()));
        Some(bytes)
    }
}

impl Drop for Turn<'_> {
    /// Releases those who wait for it, should its thread panic.
    fn drop(&mut self) {
        let Some(lost) = self.writing.take() else { return };
        let mut state = lock(&self.early.state);
        state.fail(lost, "its writer ended");
        state.pending.retain(|one| one.number != self.number);
        // What was left to it. A later one of another thread takes what is behind itself along.
        while state.pending.front().is_some_and(|one| one.left.is_some()) {
            if let Some(left) = state.pending.pop_front() {
                state.fail(left.bytes, "its writer ended");
            }
        }
        self.early.done.notify_all();
    }
}

impl Store for Early {
    fn size(&self) -> io::Result<u64> {
        let end = lock(&self.state).pending.iter().map(|one| one.bytes.end).max();
        Ok(self.store.size()?.max(end.unwrap_or(0)))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = range(offset, buf.len());
        self.settle(&bytes).check_readable(&bytes)?;
        self.store.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let bytes = range(offset, buf.len());
        if self.leave(buf, &bytes)? {
            return Ok(());
        }
        self.settle(&bytes).check()?;
        self.store.write_at(buf, offset)
    }

    fn write_early_at(&self, buf: &[u8], offset: u64, kept: Kept<'_>) -> io::Result<()> {
        let bytes = range(offset, buf.len());
        if self.leave(buf, &bytes)? {
            kept();
            return Ok(());
        }
        let mut state = lock(&self.state);
        state.check()?;
        if buf.len() < self.least || !state.has_room(&bytes) {
            drop(state);
            self.settle(&bytes).check()?;
            return self.store.write_at(buf, offset);
        }
        let number = state.register(bytes.clone(), None);
        drop(state);
        let mut turn = Turn { early: self, number, writing: Some(bytes) };
        kept();
        turn.write(buf, offset);
        Ok(())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut state = self.settle(&ALL);
        state.check()?;
        // What is cut off takes its room with it.
        state.room.retain_mut(|room| {
            room.end = room.end.min(size);
            room.start < room.end
        });
        drop(state);
        self.store.set_size(size)
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<bool> {
        let wanted = offset..offset.saturating_add(len);
        if lock(&self.state).has_room(&wanted) {
            return Ok(true);
        }
        let start = wanted.start.saturating_sub(wanted.start % BLOCK);
        let end = wanted.end.checked_next_multiple_of(BLOCK).unwrap_or(wanted.end);
        let kept = self.store.reserve(start, end.saturating_sub(start))?;
        if kept {
            lock(&self.state).add_room(start..end);
        }
        Ok(kept)
    }

    fn sync(&self) -> io::Result<()> {
        self.settle(&ALL).check()?;
        self.store.sync()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, mpsc};
    use std::thread::{Scope, ScopedJoinHandle};
    use std::time::Duration;

    use super::super::store::MemoryStore;
    use super::*;

    const MIB: u64 = 1 << 20;
    const PATIENCE: Duration = Duration::from_secs(20);

    #[derive(Debug, PartialEq, Clone)]
    enum Event {
        Wrote(u64, usize),
        Synced,
    }

    /// A store that says what reached it, and waits, fails or panics when it is told to.
    struct Inner {
        memory: MemoryStore,
        log: Mutex<Vec<Event>>,
        open: Mutex<bool>,
        opened: Condvar,
        /// Writes until one fails.
        good: AtomicU64,
        panics: bool,
        /// Bytes for which there is room, and how often it was asked for.
        room: u64,
        asked: AtomicU64,
    }

    impl Inner {
        fn new() -> Self {
            Self {
                memory: MemoryStore::default(),
                log: Mutex::default(),
                open: Mutex::new(true),
                opened: Condvar::new(),
                good: AtomicU64::new(u64::MAX),
                panics: false,
                room: u64::MAX,
                asked: AtomicU64::new(0),
            }
        }

        fn let_through(&self, open: bool) {
            *self.open.lock().unwrap() = open;
            self.opened.notify_all();
        }

        fn log(&self) -> Vec<Event> {
            self.log.lock().unwrap().clone()
        }
    }

    impl Store for Arc<Inner> {
        fn size(&self) -> io::Result<u64> {
            self.memory.size()
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.memory.read_at(buf, offset)
        }
        fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
            let open = self.open.lock().unwrap();
            drop(self.opened.wait_while(open, |open| !*open).unwrap());
            if self.good.fetch_sub(1, Ordering::SeqCst) == 0 {
                assert!(!self.panics, "as asked");
                return Err(io::Error::other("the disk is broken"));
            }
            self.memory.write_at(buf, offset)?;
            self.log.lock().unwrap().push(Event::Wrote(offset, buf.len()));
            Ok(())
        }
        fn set_size(&self, size: u64) -> io::Result<()> {
            self.memory.set_size(size)
        }
        fn reserve(&self, offset: u64, len: u64) -> io::Result<bool> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            Ok(offset + len <= self.room)
        }
        fn sync(&self) -> io::Result<()> {
            self.log.lock().unwrap().push(Event::Synced);
            Ok(())
        }
    }

    fn early(inner: Inner, room: u64) -> (Arc<Inner>, Early) {
        let inner = Arc::new(inner);
        let early = Early::new(Box::new(inner.clone()), LEAST);
        early.reserve(0, room).unwrap();
        (inner, early)
    }

    fn bytes(store: &dyn Store, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0xee; len];
        store.read_at(&mut buf, offset).unwrap();
        buf
    }

    /// A write that is answered while the store lets nothing through; the thread that does it.
    fn answered<'s>(
        scope: &'s Scope<'s, '_>,
        early: &'s Early,
        byte: u8,
        len: usize,
        offset: u64,
    ) -> ScopedJoinHandle<'s, io::Result<()>> {
        let (tell, told) = mpsc::channel();
        let writer = scope.spawn(move || {
            let mut times = 0;
            let written = early.write_early_at(&vec![byte; len], offset, &mut || {
                times += 1;
                tell.send(()).unwrap();
            });
            assert_eq!(times, 1);
            written
        });
        told.recv_timeout(PATIENCE).expect("it was not answered");
        writer
    }

    /// Does `work` in another thread, which must end only after `release`.
    fn blocked_until<T: Send>(work: impl FnOnce() -> T + Send, release: impl FnOnce()) -> T {
        std::thread::scope(|scope| {
            let (ended, is_ended) = mpsc::channel();
            let worker = scope.spawn(move || {
                let answer = work();
                ended.send(()).unwrap();
                answer
            });
            assert!(is_ended.recv_timeout(Duration::from_millis(100)).is_err(), "it did not wait");
            release();
            is_ended.recv_timeout(PATIENCE).expect("it waits for ever");
            worker.join().unwrap()
        })
    }

    /// Numbers that look random.
    fn random(seed: &mut u64, below: u64) -> u64 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 33) % below
    }

    #[test]
    fn random_operations_of_several_threads_leave_what_a_plain_file_has() {
        // Each thread has the stripes of its number, beside those of the others.
        const THREADS: u64 = 4;
        const STRIPE: u64 = 192 << 10;
        const STRIPES: u64 = 16;
        let all = STRIPES * THREADS * STRIPE;
        // Of the first half there is no room: writes there are not answered early.
        let (inner, early) = early(Inner::new(), 1);
        early.reserve(all / 2, all / 2).unwrap();
        let answers = AtomicU64::new(0);
        let models: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let work = |thread: u64| {
                let (mut model, mut seed) = (vec![0; (STRIPES * STRIPE) as usize], thread);
                for step in 0..600u32 {
                    let stripe = random(&mut seed, STRIPES);
                    // Whole stripes and the places next to them, so that what is under way is met again at once.
                    let len = match random(&mut seed, 3) {
                        0 => STRIPE,
                        1 => 1 + random(&mut seed, 5000),
                        _ => LEAST as u64 + random(&mut seed, STRIPE - LEAST as u64),
                    };
                    let within = random(&mut seed, STRIPE - len + 1);
                    let place = (stripe * STRIPE + within) as usize..(stripe * STRIPE + within + len) as usize;
                    let offset = (stripe * THREADS + thread) * STRIPE + within;
                    match random(&mut seed, 8) {
                        kind @ 0..5 => {
                            let data = vec![(step % 251 + 1) as u8; len as usize];
                            let written = match kind {
                                0 => early.write_at(&data, offset),
                                _ => early.write_early_at(&data, offset, &mut || {
                                    answers.fetch_add(1, Ordering::SeqCst);
                                }),
                            };
                            written.unwrap();
                            model[place].copy_from_slice(&data);
                        }
                        5 if step % 16 == 0 => early.sync().unwrap(),
                        _ => assert!(bytes(&early, offset, len as usize) == model[place], "{thread}, step {step}"),
                    }
                }
                model
            };
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        early.sync().unwrap();
        let state = lock(&early.state);
        assert_eq!((state.pending.len(), state.failed.as_ref()), (0, None));
        assert!(answers.into_inner() > 300);
        for stripe in 0..STRIPES * THREADS {
            let model = &models[(stripe % THREADS) as usize];
            let expected = &model[((stripe / THREADS) * STRIPE) as usize..][..STRIPE as usize];
            assert!(bytes(&inner, stripe * STRIPE, STRIPE as usize) == expected, "stripe {stripe}");
        }
    }

    #[test]
    fn a_sync_begins_when_all_that_was_answered_is_in_the_store() {
        let (inner, early) = early(Inner::new(), 64 * MIB);
        inner.let_through(false);
        std::thread::scope(|scope| {
            let writers = [0, 2].map(|at| answered(scope, &early, 7, MIB as usize, at * MIB));
            early.write_at(b"small", 9 * MIB).unwrap();
            assert_eq!(inner.log(), []);
            blocked_until(|| early.sync().unwrap(), || inner.let_through(true));
            writers.into_iter().for_each(|writer| writer.join().unwrap().unwrap());
        });
        let half = |at: u64| Event::Wrote(at, PIECE);
        let (first, second) = ([half(0), half(MIB / 2)], [half(2 * MIB), half(5 * MIB / 2)]);
        assert_eq!(inner.log(), [&first[..], &second, &[Event::Wrote(9 * MIB, 5), Event::Synced]].concat());
        assert_eq!(bytes(&inner, 2 * MIB, MIB as usize), vec![7; MIB as usize]);
    }

    #[test]
    fn what_overlaps_an_answered_write_waits_for_it_and_nothing_else_does() {
        const LEN: u64 = LEAST as u64;
        let (inner, early) = early(Inner::new(), 64 * MIB);
        std::thread::scope(|scope| {
            inner.let_through(false);
            let first = answered(scope, &early, 1, LEAST, MIB);
            let second = answered(scope, &early, 2, LEAST, MIB + 100);
            assert_eq!(bytes(&early, 0, MIB as usize), vec![0; MIB as usize]);
            assert_eq!(bytes(&early, MIB + 100 + LEN, 10), [0; 10]);
            assert_eq!((early.size().unwrap(), inner.size().unwrap()), (MIB + 100 + LEN, 0));
            let read = blocked_until(|| bytes(&early, MIB + LEN - 1, 102), || inner.let_through(true));
            assert_eq!(read, [vec![2; 101], vec![0]].concat());
            [first, second].into_iter().for_each(|writer| writer.join().unwrap().unwrap());
            inner.let_through(false);
            let third = answered(scope, &early, 3, LEAST, 5 * MIB);
            // Small ones have their place: after what is under way, in their own order.
            early.write_at(b"small", 5 * MIB + LEN - 3).unwrap();
            early.write_at(b"est", 5 * MIB + LEN - 1).unwrap();
            let read = blocked_until(|| bytes(&early, 5 * MIB + LEN - 4, 7), || inner.let_through(true));
            assert_eq!(read, b"\x03smest\0");
            third.join().unwrap().unwrap();
            inner.let_through(false);
            let last = answered(scope, &early, 4, LEAST, 8 * MIB);
            blocked_until(|| early.set_size(8 * MIB + 1).unwrap(), || inner.let_through(true));
            last.join().unwrap().unwrap();
        });
        assert_eq!((early.size().unwrap(), bytes(&early, 8 * MIB, 2)), (8 * MIB + 1, vec![4, 0]));
    }

    #[test]
    fn small_writes_are_left_to_the_thread_of_a_large_one_and_alone_go_directly() {
        let (inner, early) = early(Inner::new(), 64 * MIB);
        let mut told = 0;
        early.write_early_at(&[5; 10], 3 * MIB, &mut || told += 1).unwrap();
        assert_eq!((told, inner.log()), (0, vec![Event::Wrote(3 * MIB, 10)]));
        inner.let_through(false);
        std::thread::scope(|scope| {
            let large = answered(scope, &early, 1, LEAST, 0);
            early.write_early_at(&[2; 20], MIB, &mut || told += 1).unwrap();
            early.write_at(&[3; 30], 2 * MIB).unwrap();
            assert_eq!(told, 1);
            // No more of those are copied: the next one waits.
            let most = vec![4; LEAST - 1];
            for _ in 2..MOST_LEFT {
                early.write_at(&most, 4 * MIB).unwrap();
            }
            blocked_until(|| early.write_at(&most, 4 * MIB).unwrap(), || inner.let_through(true));
            large.join().unwrap().unwrap();
        });
        let expected = [(0, LEAST), (MIB, 20), (2 * MIB, 30)].map(|(at, len)| Event::Wrote(at, len));
        assert_eq!(inner.log()[1..4], expected);
        assert_eq!((bytes(&inner, MIB, 21), lock(&early.state).pending.len()), ([vec![2; 20], vec![0]].concat(), 0));
    }

    #[test]
    fn without_room_nothing_is_answered_early() {
        let (_, early) = early(Inner { room: 8 * MIB, ..Inner::new() }, 8 * MIB);
        early.reserve(8 * MIB, MIB).unwrap();
        let is_early = |offset| {
            let mut early_on = false;
            early.write_early_at(&[1; LEAST], offset, &mut || early_on = true).unwrap();
            early_on
        };
        assert!(is_early(8 * MIB - LEAST as u64));
        assert!(!is_early(8 * MIB), "there was no room");
        assert!(!is_early(8 * MIB - 1), "there was room for a part of it");
        early.set_size(6 * MIB).unwrap();
        assert!(!is_early(6 * MIB - 5), "the room was cut off");
        assert!(is_early(5 * MIB));
    }

    #[test]
    fn the_host_is_asked_once_for_the_room_of_a_block() {
        let (inner, early) = early(Inner::new(), 1);
        let asks = |offset, len| {
            let before = inner.asked.load(Ordering::SeqCst);
            assert!(early.reserve(offset, len).unwrap());
            inner.asked.load(Ordering::SeqCst) > before
        };
        assert!(!asks(0, 4096) && asks(4096, 1) && !asks(0, 8192));
        // Runs that do not touch: the shortest is forgotten.
        for run in 1..=MOST_RUNS as u64 {
            assert!(asks(run * MIB, run * 4096 + 8192));
        }
        assert!(asks(8, 8), "it is not kept for ever");
        assert!(!asks(3 * MIB, 4096) && !asks(MOST_RUNS as u64 * MIB, 4096));
        assert_eq!(lock(&early.state).room.len(), MOST_RUNS);
    }

    #[test]
    fn a_write_that_fails_after_its_answer_is_said_by_all_that_follows() {
        for panics in [false, true] {
            let (inner, early) = early(Inner { good: AtomicU64::new(1), panics, ..Inner::new() }, 64 * MIB);
            inner.let_through(false);
            std::thread::scope(|scope| {
                let writers = [0, 1, 2].map(|at| answered(scope, &early, 9, LEAST, at * MIB));
                // The thread of the last one writes it.
                early.write_at(b"small", 20 * MIB).unwrap();
                inner.let_through(true);
                let ends = writers.map(|writer| writer.join());
                assert_eq!(ends.map(|end| end.is_err()), [false, panics, false]);
            });
            for _ in 0..2 {
                let said = early.sync().unwrap_err().to_string();
                assert!(said.starts_with("the host failed to keep earlier writes"), "{said}");
                early.write_at(&[9; LEAST], 50 * MIB).unwrap_err();
                early.write_early_at(&[9; LEAST], 50 * MIB, &mut || panic!("answered")).unwrap_err();
                early.write_at(b"small", 60 * MIB).unwrap_err();
                early.set_size(0).unwrap_err();
            }
            assert!(!inner.log().contains(&Event::Synced));
            // What is lost is no zeros, and the rest is there.
            early.read_at(&mut [0; 2], MIB + 1).unwrap_err();
            assert_eq!(bytes(&early, 2 * MIB + 5, 5), [9; 5]);
            assert_eq!((bytes(&early, 20 * MIB, 5), bytes(&early, 60 * MIB, 5)), (b"small".to_vec(), vec![0; 5]));
        }
    }

    #[test]
    fn a_panic_of_whoever_is_told_keeps_nobody_waiting() {
        let (inner, early) = early(Inner::new(), 64 * MIB);
        let write = || early.write_early_at(&[1; LEAST], 0, &mut || panic!("as asked"));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(write)).unwrap_err();
        early.sync().unwrap_err();
        early.read_at(&mut [0; 2], 5).unwrap_err();
        assert_eq!(inner.log(), []);
    }
}
