//! Writing through the forest: one coherent view of flat files and trees.
//!
//! A tree writes to the device that its flat file shows, so bytes agree by themselves. What is left
//! to arrange: a tree that keeps changes in memory settles before its flat file is read; a tree
//! whose flat file was written to is decoded anew; and at any time a volume is written to in one of
//! the two ways only.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Escaped, Flat, Forest, NakedDisk, Planted, Synthetic, Target, Writers, grafted};
use crate::cache::lock;
use crate::device::{Extent, Kept};
use crate::error::{Error, Result};
use crate::filesystem::{
    Attributes, Changes, EntrySink, FileSystem, FileSystemWrite, Kind, Legacy, NewNode, NodeId, Summary, Timestamp,
};

/// How long one way of writing waits for the end of the other: a change takes a moment, and the kernel
/// says that a file was closed some time after it was.
const PATIENCE: Duration = Duration::from_millis(100);
/// Zeros that are written at a time.
const ZEROS: usize = 1 << 20;
/// How long until what cannot be waited for is looked at again.
const PAUSE: Duration = Duration::from_millis(5);

/// One change of a tree: while there is one, nobody opens the volume's flat bytes for writing.
struct Change<'a>(&'a Planted);

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.0.leave_tree();
    }
}

impl Planted {
    /// Waits, for so long at the most, until nobody writes in the way that `others` counts.
    fn wait_for(&self, patience: Duration, others: fn(&Writers) -> u64) -> MutexGuard<'_, Writers> {
        let waited = self.ended.wait_timeout_while(lock(&self.state), patience, |state| others(state) > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// One more writes to the tree. [`Error::Busy`] while someone writes to its flat bytes;
    /// [`Error::Stale`] when `seen`, the tree that a node was found in, is no longer the one that is there.
    fn enter_tree(&self, seen: &Arc<dyn FileSystem>) -> Result<()> {
        let mut state = self.wait_for(PATIENCE, |state| state.through_flat);
        if state.through_flat > 0 {
            drop(state);
            log::warn!("refused: the flat file of this volume is open for writing");
            return Err(Error::Busy);
        }
        state.through_tree = state.through_tree.saturating_add(1);
        drop(state);
        // Nobody replaces it from here on.
        if Arc::ptr_eq(seen, &self.tree()) {
            return Ok(());
        }
        self.leave_tree();
        Err(Error::Stale)
    }

    fn leave_tree(&self) {
        let mut state = lock(&self.state);
        state.through_tree = state.through_tree.saturating_sub(1);
        let last = state.through_tree == 0;
        drop(state);
        // Not for each write to a file that is open: waking costs a system call.
        if last {
            self.ended.notify_all();
        }
    }

    /// One more writes to the flat bytes: the tree has come to rest.
    fn enter_flat(&self, deadline: Instant) -> Result<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut state = self.wait_for(left, |state| state.through_tree);
            if state.through_tree > 0 {
                drop(state);
                log::warn!("refused: a file of this volume is open for writing");
                return Err(Error::Busy);
            }
            state.through_flat = state.through_flat.saturating_add(1);
            drop(state);
            let Err(error) = self.bring(|tree| tree.stand_aside()) else { return Ok(()) };
            self.leave_flat();
            if !matches!(error, Error::Busy) {
                return Err(error);
            }
            if Instant::now() >= deadline {
                log::warn!("refused: a removed file of this volume is still open");
                return Err(error);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn leave_flat(&self) {
        let mut state = lock(&self.state);
        state.through_flat = state.through_flat.saturating_sub(1);
        drop(state);
        self.ended.notify_all();
    }

    /// Has the tree write back what it keeps in memory, in one way or another.
    fn bring(&self, back: fn(&dyn FileSystemWrite) -> Result<()>) -> Result<()> {
        self.unsettled.store(false, Ordering::Release);
        let brought = self.tree().writer().map_or(Ok(()), back);
        if brought.is_err() {
            self.unsettled.store(true, Ordering::Release);
        }
        brought
    }

    /// The tree as it is now decoded.
    pub(super) fn tree(&self) -> Arc<dyn FileSystem> {
        self.tree.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn overlaps(&self, range: &Range<u64>) -> bool {
        self.range.start < range.end && range.start < self.range.end
    }

    /// Makes what the tree keeps in memory readable from the device.
    fn settle(&self) -> Result<()> {
        if self.unsettled.load(Ordering::Acquire) { self.bring(|tree| tree.settle()) } else { Ok(()) }
    }

    /// Decodes the volume anew, if its bytes were written to from outside. Says whether they were.
    fn refresh(&self) -> bool {
        let mut legacy = lock(&self.decoding);
        // What is written from here on is for the next time.
        let overwritten = self.overwritten.swap(false, Ordering::AcqRel);
        if overwritten {
            self.reopen(&mut legacy);
        }
        overwritten
    }

    fn reopen(&self, legacy: &mut Option<Legacy>) {
        let Some(reopen) = &self.reopen else { return };
        let tree = match reopen() {
            Ok(Some(tree)) => tree,
            Ok(None) => Arc::new(Lost(Error::unsupported("volume", "what was written over its file system"))),
            Err(error) => {
                log::warn!("a volume can no longer be read after its flat file was written to: {error}");
                Arc::new(Lost(error))
            }
        };
        // What is no file system meanwhile may be one again.
        *legacy = self.tree().writer().and_then(FileSystemWrite::legacy).or(legacy.take());
        if let (Some(writer), Some(legacy)) = (tree.writer(), legacy) {
            writer.inherit(legacy);
        }
        *self.tree.write().unwrap_or_else(PoisonError::into_inner) = tree;
    }
}

impl Flat {
    /// A disk does not grow: past its end there is no space, as on a block device.
    fn write(&self, buf: &[u8], offset: u64, kept: Kept<'_>) -> Result<()> {
        let writer = self.device.writer().ok_or(Error::ReadOnly)?;
        match writer.write_early_at(buf, offset, kept) {
            Err(Error::PastEnd { .. }) => Err(Error::NoSpace),
            written => written,
        }
    }

    /// Opening with `O_TRUNC` empties a file, and who does so counts on zeros wherever it does not write: `cp` leaves
    /// out the holes of its source. A disk keeps its size all the same.
    fn blank(&self) -> Result<()> {
        let writer = self.device.writer().ok_or(Error::ReadOnly)?;
        let zeros = vec![0; ZEROS];
        let mut offset = 0u64;
        while offset < self.device.size() {
            let extent = self.device.extent(offset)?;
            let rest = self.device.size().saturating_sub(offset).min(extent.len.max(1));
            let len = if extent.stored { rest.min(ZEROS as u64) } else { rest };
            if extent.stored {
                let part = usize::try_from(len).ok().and_then(|len| zeros.get(..len)).ok_or(Error::Invalid)?;
                writer.write_all_at(part, offset)?;
            }
            offset = offset.saturating_add(len);
        }
        Ok(())
    }

    /// A flat file is as large as its disk: another size than that and 0 is refused, times are nothing to it.
    fn set_attributes(&self, changes: &Changes) -> Result<()> {
        self.device.writer().ok_or(Error::ReadOnly)?;
        match changes.size {
            Some(0) => self.blank(),
            Some(size) if size != self.device.size() => Err(Error::NotPermitted),
            _ => Ok(()),
        }
    }
}

impl Forest {
    pub(super) fn planted(&self, number: u64) -> Result<&Planted> {
        let index = number.checked_sub(1).and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| self.trees.get(index)).ok_or(Error::NotFound)
    }

    /// Settles the trees that share bytes with `range`.
    pub(super) fn settle_within(&self, range: &Range<u64>) -> Result<()> {
        self.trees.iter().filter(|planted| planted.overlaps(range)).try_for_each(Planted::settle)
    }

    /// The name on the medium of one that is shown in a directory.
    fn stored<'a>(&self, dir: NodeId, name: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        match self.target(dir)? {
            Target::Tree(tree, _, own) => self.names.stored(tree.as_ref(), own, name),
            Target::Synthetic(_) => Err(Error::ReadOnly),
        }
    }

    /// Changes a tree. [`Error::Busy`] while someone writes to its flat file.
    fn change<T>(
        &self,
        node: NodeId,
        change: impl FnOnce(&dyn FileSystemWrite, NodeId, u64) -> Result<T>,
    ) -> Result<T> {
        match self.target(node)? {
            Target::Tree(tree, number, own) => {
                let writer = tree.writer().ok_or(Error::ReadOnly)?;
                let planted = self.planted(number)?;
                planted.enter_tree(&tree)?;
                let _change = Change(planted);
                let changed = change(writer, own, number);
                // Not before: a reader of the flat file who came meanwhile has settled what there was then.
                planted.unsettled.store(true, Ordering::Release);
                changed
            }
            Target::Synthetic(_) => Err(Error::ReadOnly),
        }
    }

    fn overlapping<'a>(&'a self, range: &'a Range<u64>) -> impl Iterator<Item = &'a Planted> {
        self.trees.iter().filter(|planted| planted.overlaps(range))
    }

    /// Opens a flat file for writing: every tree on its bytes comes to rest first.
    fn begin_flat(&self, range: &Range<u64>) -> Result<()> {
        let now = Instant::now();
        let deadline = now.checked_add(PATIENCE).unwrap_or(now);
        for (count, planted) in self.overlapping(range).enumerate() {
            if let Err(error) = planted.enter_flat(deadline) {
                self.overlapping(range).take(count).for_each(Planted::leave_flat);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Says whether any tree had to be decoded anew.
    fn end_flat(&self, range: &Range<u64>, over: bool) -> bool {
        let mut changed = false;
        for planted in self.overlapping(range) {
            changed |= planted.refresh();
            if over {
                planted.leave_flat();
            }
        }
        changed
    }

    /// Every writable device that the forest shows, flushed; trees first.
    fn flush_with(&self, tree: fn(&dyn FileSystemWrite) -> Result<()>) -> Result<()> {
        for planted in &self.trees {
            planted.bring(tree)?;
        }
        for node in &self.synthetic {
            if let Synthetic::Flat(flat) = node
                && let Some(writer) = flat.device.writer()
            {
                // They are all windows on one device: one flush is enough.
                return writer.flush();
            }
        }
        Ok(())
    }
}

impl FileSystemWrite for Forest {
    fn create(&self, dir: NodeId, name: &[u8], new: NewNode) -> Result<NodeId> {
        let name = self.stored(dir, name)?;
        self.change(dir, |writer, own, number| Ok(grafted(number, writer.create(own, &name, new)?)))
    }

    fn write_early(&self, file: NodeId, buf: &[u8], offset: u64, now: Timestamp, kept: Kept<'_>) -> Result<()> {
        if let Target::Synthetic(Synthetic::Flat(flat)) = self.target(file)? {
            let overwritten =
                || self.overlapping(&flat.range).for_each(|planted| planted.overwritten.store(true, Ordering::Release));
            let written = flat.write(buf, offset, &mut || {
                overwritten();
                kept();
            });
            // Also what failed may have changed a part.
            overwritten();
            return written;
        }
        self.change(file, |writer, own, number| {
            let planted = self.planted(number)?;
            writer.write_early(own, buf, offset, now, &mut || {
                planted.unsettled.store(true, Ordering::Release);
                kept();
            })
        })
    }

    fn set_attributes(&self, node: NodeId, changes: &Changes) -> Result<()> {
        if let Target::Synthetic(Synthetic::Flat(flat)) = self.target(node)? {
            if changes.size != Some(0) || flat.device.writer().is_none() {
                return flat.set_attributes(changes);
            }
            self.begin_flat(&flat.range)?;
            let blanked = flat.set_attributes(changes);
            self.overlapping(&flat.range).for_each(|planted| planted.overwritten.store(true, Ordering::Release));
            self.end_flat(&flat.range, true);
            return blanked;
        }
        self.change(node, |writer, own, _| writer.set_attributes(own, changes))
    }

    fn rename(&self, dir: NodeId, name: &[u8], new_dir: NodeId, new_name: &[u8], replace: bool) -> Result<()> {
        let (Target::Tree(..), Target::Tree(_, new_number, new_own)) = (self.target(dir)?, self.target(new_dir)?)
        else {
            // Between a volume and what lies above all volumes, or within the latter, which never changes.
            let apart =
                matches!(self.target(dir)?, Target::Tree(..)) || matches!(self.target(new_dir)?, Target::Tree(..));
            return Err(if apart { Error::CrossDevice } else { Error::ReadOnly });
        };
        let (name, new_name) = (self.stored(dir, name)?, self.stored(new_dir, new_name)?);
        self.change(dir, |writer, own, number| {
            if number != new_number {
                return Err(Error::CrossDevice);
            }
            writer.rename(own, &name, new_own, &new_name, replace)
        })
    }

    fn remove(&self, dir: NodeId, name: &[u8], directory: bool) -> Result<()> {
        let name = self.stored(dir, name)?;
        self.change(dir, |writer, own, _| writer.remove(own, &name, directory))
    }

    fn set_xattr(&self, node: NodeId, name: &[u8], value: &[u8]) -> Result<()> {
        self.change(node, |writer, own, _| writer.set_xattr(own, name, value))
    }

    fn opened(&self, node: NodeId) {
        if let Ok(Target::Tree(tree, _, own)) = self.target(node)
            && let Some(writer) = tree.writer()
        {
            writer.opened(own);
        }
    }

    fn closed(&self, node: NodeId) {
        if let Ok(Target::Tree(tree, _, own)) = self.target(node)
            && let Some(writer) = tree.writer()
        {
            writer.closed(own);
        }
    }

    fn begin_writing(&self, node: NodeId) -> Result<()> {
        match self.target(node)? {
            Target::Synthetic(Synthetic::Flat(flat)) if flat.device.writer().is_some() => self.begin_flat(&flat.range),
            Target::Synthetic(_) => Err(Error::ReadOnly),
            Target::Tree(tree, number, own) => {
                let writer = tree.writer().ok_or(Error::ReadOnly)?;
                let planted = self.planted(number)?;
                planted.enter_tree(&tree)?;
                writer.begin_writing(own).inspect_err(|_| planted.leave_tree())
            }
        }
    }

    fn end_writing(&self, node: NodeId, over: bool) -> bool {
        match self.target(node) {
            Ok(Target::Synthetic(Synthetic::Flat(flat))) => self.end_flat(&flat.range, over),
            Ok(Target::Tree(_, number, _)) if over => {
                if let Ok(planted) = self.planted(number) {
                    planted.leave_tree();
                }
                false
            }
            _ => false,
        }
    }

    fn flush(&self) -> Result<()> {
        self.flush_with(|tree| tree.flush())
    }

    fn quiesce(&self) -> Result<()> {
        self.flush_with(|tree| tree.quiesce())
    }

    fn finish(&self) -> Result<()> {
        self.flush_with(|tree| tree.finish())
    }
}

impl Escaped {
    fn inner(&self) -> Result<&dyn FileSystemWrite> {
        self.tree.writer().ok_or(Error::ReadOnly)
    }

    fn stored<'a>(&self, dir: NodeId, name: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        self.names.stored(self.tree.as_ref(), dir, name)
    }
}

impl FileSystemWrite for Escaped {
    fn create(&self, dir: NodeId, name: &[u8], new: NewNode) -> Result<NodeId> {
        self.inner()?.create(dir, &self.stored(dir, name)?, new)
    }

    fn write_early(&self, file: NodeId, buf: &[u8], offset: u64, now: Timestamp, kept: Kept<'_>) -> Result<()> {
        self.inner()?.write_early(file, buf, offset, now, kept)
    }

    fn set_attributes(&self, node: NodeId, changes: &Changes) -> Result<()> {
        self.inner()?.set_attributes(node, changes)
    }

    fn rename(&self, dir: NodeId, name: &[u8], new_dir: NodeId, new_name: &[u8], replace: bool) -> Result<()> {
        let (name, new_name) = (self.stored(dir, name)?, self.stored(new_dir, new_name)?);
        self.inner()?.rename(dir, &name, new_dir, &new_name, replace)
    }

    fn remove(&self, dir: NodeId, name: &[u8], directory: bool) -> Result<()> {
        self.inner()?.remove(dir, &self.stored(dir, name)?, directory)
    }

    fn set_xattr(&self, node: NodeId, name: &[u8], value: &[u8]) -> Result<()> {
        self.inner()?.set_xattr(node, name, value)
    }

    fn opened(&self, node: NodeId) {
        if let Ok(writer) = self.inner() {
            writer.opened(node);
        }
    }

    fn closed(&self, node: NodeId) {
        if let Ok(writer) = self.inner() {
            writer.closed(node);
        }
    }

    fn begin_writing(&self, node: NodeId) -> Result<()> {
        self.inner()?.begin_writing(node)
    }

    fn flush(&self) -> Result<()> {
        self.inner()?.flush()
    }

    fn quiesce(&self) -> Result<()> {
        self.inner()?.quiesce()
    }

    fn finish(&self) -> Result<()> {
        self.inner()?.finish()
    }
}

impl FileSystemWrite for NakedDisk {
    fn create(&self, _dir: NodeId, _name: &[u8], _new: NewNode) -> Result<NodeId> {
        Err(Error::NotDirectory)
    }

    fn write_early(&self, _file: NodeId, buf: &[u8], offset: u64, _now: Timestamp, kept: Kept<'_>) -> Result<()> {
        self.flat.write(buf, offset, kept)
    }

    fn set_attributes(&self, _node: NodeId, changes: &Changes) -> Result<()> {
        self.flat.set_attributes(changes)
    }

    fn rename(&self, _dir: NodeId, _name: &[u8], _new_dir: NodeId, _new_name: &[u8], _replace: bool) -> Result<()> {
        Err(Error::NotDirectory)
    }

    fn remove(&self, _dir: NodeId, _name: &[u8], _directory: bool) -> Result<()> {
        Err(Error::NotDirectory)
    }

    fn opened(&self, _node: NodeId) {}

    fn closed(&self, _node: NodeId) {}

    fn flush(&self) -> Result<()> {
        self.flat.device.writer().ok_or(Error::ReadOnly)?.flush()
    }
}

/// A tree that is no longer there: its flat file was written over.
struct Lost(Error);

impl FileSystem for Lost {
    fn root(&self) -> NodeId {
        NodeId(0)
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes> {
        // The directory itself stays, so that its listing can say what happened.
        if node == self.root() { Ok(Attributes::new(Kind::Directory, 0)) } else { Err(Error::NotFound) }
    }

    fn read_dir(&self, _dir: NodeId, _cursor: u64, _emit: &mut EntrySink<'_>) -> Result<()> {
        Err(self.0.clone())
    }

    fn read(&self, _file: NodeId, _buf: &mut [u8], _offset: u64) -> Result<usize> {
        Err(self.0.clone())
    }

    fn extent(&self, _file: NodeId, _offset: u64) -> Result<Extent> {
        Err(self.0.clone())
    }

    fn summary(&self) -> Summary {
        Summary { variant: "unreadable".to_owned(), block_size: 512, ..Summary::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::sync::{Mutex, OnceLock, mpsc};

    use super::*;
    use crate::device::Device;
    use crate::device::memory::Memory;
    use crate::filesystem::DirEntry;
    use crate::forest::Branch;

    /// A tree with one directory whose changes take as long as the test wants, and whose rest can fail.
    #[derive(Default)]
    struct Slow {
        begun: OnceLock<mpsc::SyncSender<()>>,
        go_on: Mutex<Option<mpsc::Receiver<()>>>,
        restless: AtomicU64,
        settled: AtomicU64,
    }

    impl FileSystem for Slow {
        fn root(&self) -> NodeId {
            NodeId(1)
        }
        fn attributes(&self, _: NodeId) -> Result<Attributes> {
            Ok(Attributes::new(Kind::Directory, 0))
        }
        fn read_dir(&self, _: NodeId, _: u64, emit: &mut EntrySink<'_>) -> Result<()> {
            emit(DirEntry { node: NodeId(2), name: b"file".into(), kind: Kind::File, next: 1 });
            Ok(())
        }
        fn read(&self, _: NodeId, _: &mut [u8], _: u64) -> Result<usize> {
            Ok(0)
        }
        fn extent(&self, _: NodeId, _: u64) -> Result<Extent> {
            Err(Error::Invalid)
        }
        fn summary(&self) -> Summary {
            Summary::default()
        }
        fn writer(&self) -> Option<&dyn FileSystemWrite> {
            Some(self)
        }
    }

    impl FileSystemWrite for Slow {
        fn create(&self, _: NodeId, _: &[u8], _: NewNode) -> Result<NodeId> {
            Ok(NodeId(2))
        }
        fn write_early(&self, _: NodeId, _: &[u8], _: u64, _: Timestamp, _: Kept<'_>) -> Result<()> {
            Ok(())
        }
        fn set_attributes(&self, _: NodeId, _: &Changes) -> Result<()> {
            if let Some(begun) = self.begun.get() {
                begun.send(()).unwrap();
                lock(&self.go_on).as_ref().unwrap().recv().unwrap();
            }
            Ok(())
        }
        fn rename(&self, _: NodeId, _: &[u8], _: NodeId, _: &[u8], _: bool) -> Result<()> {
            Ok(())
        }
        fn remove(&self, _: NodeId, _: &[u8], _: bool) -> Result<()> {
            Ok(())
        }
        fn opened(&self, _: NodeId) {}
        fn closed(&self, _: NodeId) {}
        fn flush(&self) -> Result<()> {
            self.settled.fetch_add(1, Ordering::AcqRel);
            Ok(())
        }
        fn quiesce(&self) -> Result<()> {
            match self.restless.load(Ordering::Acquire) {
                0 => Ok(()),
                _ => Err(Error::NoSpace),
            }
        }
    }

    /// A forest of one slow tree, its flat file, and a file in the tree.
    fn slow() -> (Arc<Slow>, Arc<Forest>, NodeId, NodeId) {
        let tree = Arc::new(Slow::default());
        let device: Device = Arc::new(Memory::new(vec![0; 1000], 512));
        let branch = Branch {
            name: "disk".into(),
            folder: "disk".into(),
            offset: 0,
            device,
            tree: Some(tree.clone()),
            reopen: Some(Arc::new(|| Ok(Some(Arc::new(Slow::default()))))),
            label: None,
            uuid: None,
        };
        let forest = Arc::new(Forest::new(&[branch], None, None));
        let (flat, file) = (forest.find(b"disk.img").unwrap(), forest.find(b"disk/file").unwrap());
        (tree, forest, flat, file)
    }

    /// A change of the file that has begun, and ends when it is told to go on.
    fn begun(
        tree: &Slow,
        forest: &Arc<Forest>,
        file: NodeId,
    ) -> (std::thread::JoinHandle<Result<()>>, mpsc::Sender<()>) {
        let ((begun, has_begun), (go_on, goes_on)) = (mpsc::sync_channel(1), mpsc::channel());
        tree.begun.set(begun).unwrap();
        *lock(&tree.go_on) = Some(goes_on);
        let changing = forest.clone();
        let change = std::thread::spawn(move || changing.set_attributes(file, &Changes::default()));
        has_begun.recv().unwrap();
        (change, go_on)
    }

    #[test]
    fn while_a_change_of_the_tree_takes_its_time_nobody_opens_the_flat_file_for_writing() {
        let (tree, forest, flat, file) = slow();
        let (change, go_on) = begun(&tree, &forest, file);
        assert!(matches!(forest.begin_writing(flat), Err(Error::Busy)));
        go_on.send(()).unwrap();
        change.join().unwrap().unwrap();
        forest.begin_writing(flat).unwrap();
        assert!(matches!(forest.remove(forest.find(b"disk").unwrap(), b"file", false), Err(Error::Busy)));
        assert!(!forest.end_writing(flat, true), "nothing was written");
        forest.remove(forest.find(b"disk").unwrap(), b"file", false).unwrap();
    }

    #[test]
    fn what_a_change_leaves_in_memory_settles_though_the_flat_file_was_read_meanwhile() {
        let (tree, forest, flat, file) = slow();
        let (change, go_on) = begun(&tree, &forest, file);
        forest.read(flat, &mut [0; 10], 0).unwrap();
        let before = tree.settled.load(Ordering::Acquire);
        go_on.send(()).unwrap();
        change.join().unwrap().unwrap();
        forest.read(flat, &mut [0; 10], 0).unwrap();
        assert_eq!(tree.settled.load(Ordering::Acquire), before + 1);
        forest.read(flat, &mut [0; 10], 0).unwrap();
        assert_eq!(tree.settled.load(Ordering::Acquire), before + 1, "nothing more is to be settled");
    }

    #[test]
    fn a_change_waits_for_the_flat_file_and_is_told_when_the_tree_is_another_one_by_then() {
        let (_, forest, flat, file) = slow();
        for (written, expected) in [(false, "Ok(())"), (true, "Err(Stale)")] {
            forest.begin_writing(flat).unwrap();
            let changing = forest.clone();
            let change = std::thread::spawn(move || changing.set_attributes(file, &Changes::default()));
            std::thread::sleep(PATIENCE / 4);
            if written {
                forest.write(flat, b"bytes", 0, Timestamp::now()).unwrap();
            }
            assert_eq!(forest.end_writing(flat, true), written);
            assert_eq!(format!("{:?}", change.join().unwrap()), expected);
        }
        forest.set_attributes(file, &Changes::default()).unwrap();
    }

    #[test]
    fn a_tree_that_cannot_come_to_rest_refuses_the_flat_file_and_stays_writable() {
        let (tree, forest, flat, file) = slow();
        tree.restless.store(1, Ordering::Release);
        assert!(matches!(forest.begin_writing(flat), Err(Error::NoSpace)));
        forest.set_attributes(file, &Changes::default()).unwrap();
        tree.restless.store(0, Ordering::Release);
        forest.begin_writing(flat).unwrap();
        forest.end_writing(flat, true);
    }
}
