//! Writing behind: a large write is answered once its bytes are in memory, and a thread of its own brings them to
//! the file.
//!
//! ```text
//!   write_at -+- large, or while there is a queue --> queue --- thread ---+--> the store
//!             `- small, alone --------------------------------------------+
//!   read_at, set_size, sync -- after what they overlap, after all --------'
//! ```
//! A copy to memory takes a fraction of the time of a write to a new place of a file, and so whoever writes gets
//! ready his next bytes while the last ones are written. Memory is bounded: a writer waits when the queue is full.
//!
//! **What is answered must not fail.** A write is queued only where [`Store::reserve`] said that room is set aside
//! for it; wherever else it could find the host full, it goes the direct way, and its writer is told. What the host
//! fails to keep all the same (a broken disk) is logged, reading it is an error, and so is every write and sync from
//! then on.
//!
//! **Order.** Queued writes reach the file in the order in which they came. Two writes to one place do so as well,
//! queued or not, when one was answered before the other began. A sync begins once all that was answered before is
//! in the file, so that what it promises is as without the queue.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::store::Store;
use crate::cache::lock;

/// Bytes of a buffer, which takes neighbouring writes together. A larger write begins when the first of its buffers
/// is full.
const BUFFER: usize = 256 << 10;
/// Buffers, that being written included. The memory of few is in the processor's cache still when it is used again.
const MOST_BUFFERS: usize = 8;
/// A write of fewer bytes costs less than to hand it over.
pub const LEAST: usize = 64 << 10;

/// A store that answers large writes before they are done.
pub struct Behind {
    shared: Arc<Shared>,
    /// Bytes of the smallest write that is queued by itself.
    least: usize,
    thread: Mutex<Thread>,
}

/// What brings the queue to the store. It sleeps while there is nothing to do.
enum Thread {
    /// Nothing large was written yet.
    None,
    Running(JoinHandle<()>),
    /// The host lets us have no other: everything goes the direct way.
    Refused,
}

struct Shared {
    store: Box<dyn Store>,
    state: Mutex<State>,
    /// There is something to do, or to end.
    asked: Condvar,
    /// A queued write is done.
    done: Condvar,
}

#[derive(Default)]
struct State {
    /// In order; the thread takes the first.
    queue: VecDeque<Piece>,
    /// What the thread writes.
    writing: Option<Range<u64>>,
    /// Pieces that were queued, and those that are done, in the same order.
    queued: u64,
    done: u64,
    /// Buffers that wait for their next use.
    spare: Vec<Vec<u8>>,
    /// Buffers that there are.
    buffers: usize,
    /// Bytes for which the host has set room aside.
    room: Range<u64>,
    /// Why it takes no more, and what of the file is lost.
    failed: Option<String>,
    lost: Vec<Range<u64>>,
    ending: bool,
}

/// A queued write.
struct Piece {
    offset: u64,
    bytes: Vec<u8>,
}

impl Piece {
    fn range(&self) -> Range<u64> {
        range(self.offset, self.bytes.len())
    }
}

fn range(offset: u64, len: usize) -> Range<u64> {
    offset..offset.saturating_add(len as u64)
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

impl State {
    /// What is not in the store yet, the oldest first.
    fn pending(&self) -> impl Iterator<Item = Range<u64>> {
        self.writing.clone().into_iter().chain(self.queue.iter().map(Piece::range))
    }

    /// What `done` will be when nothing that is queued now overlaps these bytes.
    fn clear_of(&self, bytes: &Range<u64>) -> u64 {
        let pieces = (self.done.saturating_add(1)..).zip(self.pending());
        pieces.filter(|(_, piece)| overlap(piece, bytes)).last().map_or(self.done, |(number, _)| number)
    }

    /// Whether these bytes are queued. A few are when they would wait anyway: for what they overlap, or because the
    /// host lets only one write to a file at a time. Otherwise they cost less than to hand them over.
    fn wants(&self, bytes: &Range<u64>, least: usize) -> bool {
        let len = |range: &Range<u64>| range.end.saturating_sub(range.start);
        let pending = self.pending().fold(0u64, |sum, piece| sum.saturating_add(len(&piece)));
        let least = least as u64;
        len(bytes) >= least || pending >= least || self.pending().any(|piece| overlap(&piece, bytes))
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

    /// Adds room to what is known, when it lies beside it. One run is enough to know: a file grows at its end.
    fn add_room(&mut self, more: Range<u64>) {
        let room = &mut self.room;
        if more.start <= room.end && room.start <= more.end {
            *room = room.start.min(more.start)..room.end.max(more.end);
        } else if more.end.saturating_sub(more.start) > room.end.saturating_sub(room.start) {
            *room = more;
        }
    }

    /// Lays the bytes over those that were queued last, or beside their end, when they fit there.
    fn join(&mut self, buf: &[u8], offset: u64) -> bool {
        let Some(last) = self.queue.back_mut() else { return false };
        let Some(from) = offset.checked_sub(last.offset).and_then(|from| usize::try_from(from).ok()) else {
            return false;
        };
        let end = from.saturating_add(buf.len());
        if from > last.bytes.len() || end > BUFFER {
            return false;
        }
        let (over, beyond) = buf.split_at(last.bytes.len().saturating_sub(from).min(buf.len()));
        if let Some(place) = last.bytes.get_mut(from..from.saturating_add(over.len())) {
            place.copy_from_slice(over);
        }
        last.bytes.extend_from_slice(beyond);
        true
    }
}

impl Behind {
    /// Writes to `store` from behind, wherever that has room set aside, what has `least` bytes ([`LEAST`]) or more.
    pub fn new(store: Box<dyn Store>, least: usize) -> Self {
        let shared = Shared { store, state: Mutex::default(), asked: Condvar::new(), done: Condvar::new() };
        Self { shared: Arc::new(shared), least, thread: Mutex::new(Thread::None) }
    }

    /// Whether there is a thread; started when there was none.
    fn has_thread(&self) -> bool {
        let mut thread = lock(&self.thread);
        if matches!(*thread, Thread::None) {
            let shared = self.shared.clone();
            let started = std::thread::Builder::new().name("behind".to_owned()).spawn(move || shared.write_queued());
            *thread = started.map_or(Thread::Refused, Thread::Running);
        }
        matches!(*thread, Thread::Running(_))
    }

    /// Queues a write of at most [`BUFFER`] bytes. `false` when it has to go the direct way.
    fn queue(&self, buf: &[u8], offset: u64) -> io::Result<bool> {
        let bytes = range(offset, buf.len());
        let shared = &*self.shared;
        let mut state = lock(&shared.state);
        state.check()?;
        if bytes.start < state.room.start || state.room.end < bytes.end {
            return Ok(false);
        }
        if state.join(buf, offset) {
            return Ok(true);
        }
        if !state.wants(&bytes, self.least) || !self.has_thread() {
            return Ok(false);
        }
        let mut buffer = loop {
            state.check()?;
            if let Some(buffer) = state.spare.pop() {
                break buffer;
            }
            if state.buffers < MOST_BUFFERS {
                state.buffers = state.buffers.saturating_add(1);
                break Vec::with_capacity(BUFFER);
            }
            state = wait(&shared.done, state);
        };
        drop(state);
        buffer.extend_from_slice(buf);
        let mut state = lock(&shared.state);
        // A thread that ended meanwhile would never write it.
        state.check()?;
        state.queue.push_back(Piece { offset, bytes: buffer });
        state.queued = state.queued.saturating_add(1);
        drop(state);
        shared.asked.notify_one();
        Ok(true)
    }
}

fn wait<'a>(condition: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    condition.wait(state).unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Waits until so many queued writes are done as `until` says of the state now.
    fn settle(&self, until: impl FnOnce(&State) -> u64) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        let until = until(&state);
        while state.done < until {
            state = wait(&self.done, state);
        }
        state
    }

    /// The thread: writes what is queued, until it is asked to end and nothing is left.
    fn write_queued(&self) {
        let _guard = Ending(self);
        let mut state = lock(&self.state);
        loop {
            let Some(mut piece) = state.queue.pop_front() else {
                if state.ending {
                    return;
                }
                state = wait(&self.asked, state);
                continue;
            };
            state.writing = Some(piece.range());
            drop(state);
            let written = self.store.write_at(&piece.bytes, piece.offset);
            state = lock(&self.state);
            if let (Err(error), Some(lost)) = (written, state.writing.take()) {
                state.fail(lost, &error.to_string());
            }
            piece.bytes.clear();
            state.spare.push(piece.bytes);
            state.done = state.done.saturating_add(1);
            self.done.notify_all();
        }
    }
}

/// Releases those who wait when the thread ends, should that be by a panic.
struct Ending<'a>(&'a Shared);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        for lost in state.pending().collect::<Vec<_>>() {
            state.fail(lost, "its writer ended");
        }
        if std::thread::panicking() {
            state.failed.get_or_insert_with(|| "the writer of the overlay ended".to_owned());
        }
        state.writing = None;
        state.queue.clear();
        state.done = state.queued;
        self.0.done.notify_all();
    }
}

impl Store for Behind {
    fn size(&self) -> io::Result<u64> {
        let end = lock(&self.shared.state).pending().map(|piece| piece.end).max();
        Ok(self.shared.store.size()?.max(end.unwrap_or(0)))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = range(offset, buf.len());
        self.shared.settle(|state| state.clear_of(&bytes)).check_readable(&bytes)?;
        self.shared.store.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], mut offset: u64) -> io::Result<()> {
        for part in buf.chunks(BUFFER) {
            if !self.queue(part, offset)? {
                let bytes = range(offset, part.len());
                self.shared.settle(|state| state.clear_of(&bytes)).check()?;
                self.shared.store.write_at(part, offset)?;
            }
            offset = offset.saturating_add(part.len() as u64);
        }
        Ok(())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut state = self.shared.settle(|state| state.queued);
        state.check()?;
        // What is cut off takes its room with it.
        state.room.end = state.room.end.min(size).max(state.room.start);
        drop(state);
        self.shared.store.set_size(size)
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<bool> {
        let kept = self.shared.store.reserve(offset, len)?;
        if kept {
            lock(&self.shared.state).add_room(offset..offset.saturating_add(len));
        }
        Ok(kept)
    }

    fn sync(&self) -> io::Result<()> {
        self.shared.settle(|state| state.queued).check()?;
        self.shared.store.sync()
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        lock(&self.shared.state).ending = true;
        self.shared.asked.notify_one();
        if let Thread::Running(thread) = std::mem::replace(&mut *lock(&self.thread), Thread::None) {
            // A panic of it was logged, and said to whoever synced.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
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
        /// Bytes for which there is room.
        room: u64,
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
            Ok(offset + len <= self.room)
        }
        fn sync(&self) -> io::Result<()> {
            self.log.lock().unwrap().push(Event::Synced);
            Ok(())
        }
    }

    fn behind(inner: Inner, room: u64) -> (Arc<Inner>, Behind) {
        let inner = Arc::new(inner);
        let behind = Behind::new(Box::new(inner.clone()), LEAST);
        behind.reserve(0, room).unwrap();
        (inner, behind)
    }

    fn bytes(store: &dyn Store, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0xee; len];
        store.read_at(&mut buf, offset).unwrap();
        buf
    }

    /// Does `work` in another thread, which must end only after `release`.
    fn blocked_until<T: Send>(work: impl FnOnce() -> T + Send, release: impl FnOnce()) -> T {
        std::thread::scope(|scope| {
            let (ended, is_ended) = std::sync::mpsc::channel();
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
        // Each thread has the stripes of its number, beside those of the others: writes of all of them become one.
        const THREADS: u64 = 4;
        const STRIPE: u64 = 192 << 10;
        const STRIPES: u64 = 16;
        let all = STRIPES * THREADS * STRIPE;
        // Of the first half there is no room: writes there are not queued.
        let (inner, behind) = behind(Inner::new(), all);
        lock(&behind.shared.state).room = all / 2..all;
        let models: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let work = |thread: u64| {
                let (mut model, mut seed) = (vec![0; (STRIPES * STRIPE) as usize], thread);
                for step in 0..600u32 {
                    let stripe = random(&mut seed, STRIPES);
                    // Whole stripes and the places next to them, so that what is queued is met again at once.
                    let len = match random(&mut seed, 3) {
                        0 => STRIPE,
                        1 => 1 + random(&mut seed, 5000),
                        _ => LEAST as u64 + random(&mut seed, STRIPE - LEAST as u64),
                    };
                    let within = random(&mut seed, STRIPE - len + 1);
                    let place = (stripe * STRIPE + within) as usize..(stripe * STRIPE + within + len) as usize;
                    let offset = (stripe * THREADS + thread) * STRIPE + within;
                    match random(&mut seed, 8) {
                        0..5 => {
                            let data = vec![(step % 251 + 1) as u8; len as usize];
                            behind.write_at(&data, offset).unwrap();
                            model[place].copy_from_slice(&data);
                        }
                        5 if step % 16 == 0 => behind.sync().unwrap(),
                        _ => assert!(bytes(&behind, offset, len as usize) == model[place], "{thread}, step {step}"),
                    }
                }
                model
            };
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        drop(behind);
        for stripe in 0..STRIPES * THREADS {
            let model = &models[(stripe % THREADS) as usize];
            let expected = &model[((stripe / THREADS) * STRIPE) as usize..][..STRIPE as usize];
            assert!(bytes(&inner, stripe * STRIPE, STRIPE as usize) == expected, "stripe {stripe}");
        }
    }

    #[test]
    fn a_sync_begins_when_all_that_was_answered_is_in_the_store() {
        let (inner, behind) = behind(Inner::new(), 64 * MIB);
        let data = vec![7; MIB as usize];
        for at in 0..15 {
            // Of several buffers.
            behind.write_at(&data, at * MIB).unwrap();
            if at % 3 == 2 {
                behind.sync().unwrap();
                let log = inner.log();
                let written: usize =
                    log.iter().map(|event| if let Event::Wrote(_, len) = event { *len } else { 0 }).sum();
                assert_eq!((written as u64, log.last()), ((at + 1) * MIB, Some(&Event::Synced)));
            }
        }
        inner.let_through(false);
        behind.write_at(&data, 20 * MIB).unwrap();
        let before = inner.log().len();
        blocked_until(|| behind.sync().unwrap(), || inner.let_through(true));
        let log = inner.log();
        assert_eq!((log.len() - before, log.last()), (MIB as usize / BUFFER + 1, Some(&Event::Synced)));
    }

    #[test]
    fn what_overlaps_a_queued_write_waits_for_it_and_nothing_else_does() {
        const LEN: u64 = BUFFER as u64;
        let (inner, behind) = behind(Inner::new(), 64 * MIB);
        inner.let_through(false);
        behind.write_at(&[1; BUFFER], MIB).unwrap();
        behind.write_at(&[2; BUFFER], MIB + 100).unwrap();
        assert_eq!(bytes(&behind, 0, MIB as usize), vec![0; MIB as usize]);
        assert_eq!(bytes(&behind, MIB + 100 + LEN, 10), [0; 10]);
        assert_eq!((behind.size().unwrap(), inner.size().unwrap()), (MIB + 100 + LEN, 0));
        let read = blocked_until(|| bytes(&behind, MIB + LEN - 1, 102), || inner.let_through(true));
        assert_eq!(read, [vec![2; 101], vec![0]].concat());
        inner.let_through(false);
        behind.write_at(&[3; BUFFER], 5 * MIB).unwrap();
        // Small ones have their place in the queue: after what is under way, and over what is not.
        behind.write_at(b"small", 5 * MIB + LEN - 3).unwrap();
        behind.write_at(b"est", 5 * MIB + LEN - 1).unwrap();
        let read = blocked_until(|| bytes(&behind, 5 * MIB + LEN - 4, 7), || inner.let_through(true));
        assert_eq!(read, b"\x03smest\0");
        inner.let_through(false);
        behind.write_at(&[4; BUFFER], 8 * MIB).unwrap();
        blocked_until(|| behind.set_size(8 * MIB + 1).unwrap(), || inner.let_through(true));
        assert_eq!((behind.size().unwrap(), bytes(&behind, 8 * MIB, 2)), (8 * MIB + 1, vec![4, 0]));
    }

    #[test]
    fn neighbours_are_written_together_and_a_small_write_alone_goes_directly() {
        const FIRST: usize = LEAST;
        let (inner, behind) = behind(Inner::new(), 64 * MIB);
        behind.write_at(&[5; 10], 3 * MIB).unwrap();
        assert_eq!(inner.log(), [Event::Wrote(3 * MIB, 10)], "it was queued");
        inner.let_through(false);
        // The first is under way; to the second comes what follows it.
        behind.write_at(&[1; FIRST], 0).unwrap();
        while lock(&behind.shared.state).writing.is_none() {
            std::thread::yield_now();
        }
        behind.write_at(&[2; FIRST], MIB).unwrap();
        behind.write_at(&[3; 10], MIB + FIRST as u64).unwrap();
        behind.write_at(&[4; FIRST], MIB + FIRST as u64 + 5).unwrap();
        behind.write_at(&[6; 10], 2 * MIB).unwrap();
        inner.let_through(true);
        behind.sync().unwrap();
        let expected = [(0, FIRST), (MIB, 2 * FIRST + 5), (2 * MIB, 10)].map(|(at, len)| Event::Wrote(at, len));
        assert_eq!(inner.log()[1..4], expected);
        let found = bytes(&behind, MIB, 2 * FIRST + 5);
        assert!(found == [vec![2; FIRST], vec![3; 5], vec![4; FIRST]].concat());
    }

    #[test]
    fn a_full_queue_makes_its_writer_wait() {
        let (inner, behind) = behind(Inner::new(), 64 * MIB);
        inner.let_through(false);
        let data = vec![1; BUFFER];
        for at in 0..MOST_BUFFERS as u64 {
            behind.write_at(&data, at * MIB).unwrap();
        }
        blocked_until(|| behind.write_at(&data, 40 * MIB).unwrap(), || inner.let_through(true));
        behind.sync().unwrap();
        assert_eq!(lock(&behind.shared.state).buffers, MOST_BUFFERS);
        assert_eq!(bytes(&inner, 40 * MIB, BUFFER), data);
    }

    #[test]
    fn without_room_nothing_is_queued() {
        let (inner, behind) = behind(Inner { room: 8 * MIB, ..Inner::new() }, 8 * MIB);
        behind.reserve(0, 9 * MIB).unwrap();
        let data = vec![1; BUFFER];
        let goes_directly = |offset| {
            inner.log.lock().unwrap().clear();
            inner.let_through(false);
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| behind.write_at(&data, offset).unwrap());
                std::thread::sleep(Duration::from_millis(50));
                let waits = !writer.is_finished();
                inner.let_through(true);
                writer.join().unwrap();
                waits
            })
        };
        assert!(!goes_directly(8 * MIB - BUFFER as u64), "it was not queued");
        assert!(goes_directly(8 * MIB), "there was no room");
        assert!(goes_directly(8 * MIB - 1), "there was room for a part of it");
        behind.set_size(6 * MIB).unwrap();
        assert!(goes_directly(6 * MIB - 5), "the room was cut off");
        assert!(!goes_directly(5 * MIB));
    }

    #[test]
    fn a_write_that_fails_behind_is_said_by_all_that_follows() {
        for panics in [false, true] {
            let (inner, behind) = behind(Inner { good: AtomicU64::new(2), panics, ..Inner::new() }, 64 * MIB);
            inner.let_through(false);
            let data = vec![9; BUFFER];
            for at in 0..MOST_BUFFERS as u64 {
                behind.write_at(&data, at * MIB).unwrap();
            }
            // This one waits for a buffer, and is taken or refused.
            drop(blocked_until(|| behind.write_at(&data, 30 * MIB), || inner.let_through(true)));
            for _ in 0..2 {
                let said = behind.sync().unwrap_err().to_string();
                assert!(said.starts_with("the host failed to keep earlier writes"), "{said}");
                behind.write_at(&data, 50 * MIB).unwrap_err();
                behind.write_at(b"small", 60 * MIB).unwrap_err();
                behind.set_size(0).unwrap_err();
            }
            assert!(!inner.log().contains(&Event::Synced));
            // What is lost is no zeros, and the rest is there.
            behind.read_at(&mut [0; 2], 2 * MIB + 1).unwrap_err();
            assert_eq!(bytes(&behind, MIB + BUFFER as u64 - 5, 5), [9; 5]);
            assert_eq!(bytes(&behind, 60 * MIB, 5), [0; 5]);
        }
    }

    #[test]
    fn dropping_it_drains_it() {
        let (inner, behind) = behind(Inner::new(), 64 * MIB);
        inner.let_through(false);
        behind.write_at(&vec![1; 3 * BUFFER], 0).unwrap();
        blocked_until(move || drop(behind), || inner.let_through(true));
        assert_eq!(bytes(&inner, 0, 3 * BUFFER), vec![1; 3 * BUFFER]);
    }
}
