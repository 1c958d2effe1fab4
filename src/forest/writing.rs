//! Writing through the forest: one coherent view of flat files and trees.
//!
//! A tree writes to the device that its flat file shows, so bytes agree by themselves. What is left
//! to arrange: a tree that keeps changes in memory settles before its flat file is read; a tree
//! whose flat file was written to is decoded anew; and at any time a volume is written to in one of
//! the two ways only.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::{Escaped, Flat, Forest, NakedDisk, Planted, Synthetic, Target, grafted, unescaped};
use crate::cache::lock;
use crate::device::{BlockDevice, Extent};
use crate::error::{Error, Result};
use crate::filesystem::{
    Attributes, Changes, EntrySink, FileSystem, FileSystemWrite, Kind, NewNode, NodeId, Summary, Timestamp,
};

impl Planted {
    /// The tree as it is now decoded.
    pub(super) fn tree(&self) -> Arc<dyn FileSystem> {
        self.tree.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn overlaps(&self, range: &Range<u64>) -> bool {
        self.range.start < range.end && range.start < self.range.end
    }

    /// Makes what the tree keeps in memory readable from the device.
    fn settle(&self) -> Result<()> {
        if self.unsettled.swap(false, Ordering::AcqRel)
            && let Some(writer) = self.tree().writer()
            && let Err(error) = writer.settle()
        {
            self.unsettled.store(true, Ordering::Release);
            return Err(error);
        }
        Ok(())
    }

    /// Decodes the volume anew, after its bytes were written to from outside.
    fn reopen(&self) {
        let Some(reopen) = &self.reopen else { return };
        let tree = match reopen() {
            Ok(Some(tree)) => tree,
            Ok(None) => Arc::new(Lost(Error::unsupported("volume", "what was written over its file system"))),
            Err(error) => {
                log::warn!("a volume can no longer be read after its flat file was written to: {error}");
                Arc::new(Lost(error))
            }
        };
        *self.tree.write().unwrap_or_else(PoisonError::into_inner) = tree;
    }
}

impl Flat {
    /// A disk does not grow: past its end there is no space, as on a block device.
    fn write(&self, buf: &[u8], offset: u64) -> Result<()> {
        let writer = self.device.writer().ok_or(Error::ReadOnly)?;
        match writer.write_all_at(buf, offset) {
            Err(Error::PastEnd { .. }) => Err(Error::NoSpace),
            written => written,
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

    /// Changes a tree. [`Error::Busy`] while someone writes to its flat file.
    fn change<T>(
        &self,
        node: NodeId,
        change: impl FnOnce(&dyn FileSystemWrite, NodeId, u64) -> Result<T>,
    ) -> Result<T> {
        match self.target(node)? {
            Target::Tree(tree, number, own) => {
                let planted = self.planted(number)?;
                if lock(&planted.state).through_flat > 0 {
                    log::warn!("refused: the flat file of this volume is open for writing");
                    return Err(Error::Busy);
                }
                planted.unsettled.store(true, Ordering::Release);
                change(tree.writer().ok_or(Error::ReadOnly)?, own, number)
            }
            Target::Synthetic(_) => Err(Error::ReadOnly),
        }
    }

    /// Opens a flat file for writing: every tree on its bytes comes to rest first.
    fn begin_flat(&self, range: &Range<u64>) -> Result<()> {
        let mut begun: Vec<&Planted> = Vec::new();
        for planted in self.trees.iter().filter(|planted| planted.overlaps(range)) {
            let mut state = lock(&planted.state);
            if state.through_tree > 0 {
                drop(state);
                log::warn!("refused: a file of this volume is open for writing");
                for planted in begun {
                    let mut state = lock(&planted.state);
                    state.through_flat = state.through_flat.saturating_sub(1);
                }
                return Err(Error::Busy);
            }
            state.through_flat = state.through_flat.saturating_add(1);
            drop(state);
            begun.push(planted);
        }
        for planted in begun {
            planted.unsettled.store(false, Ordering::Release);
            if let Some(writer) = planted.tree().writer() {
                writer.quiesce()?;
            }
        }
        Ok(())
    }

    fn end_flat(&self, range: &Range<u64>, over: bool) {
        for planted in self.trees.iter().filter(|planted| planted.overlaps(range)) {
            planted.reopen();
            if over {
                let mut state = lock(&planted.state);
                state.through_flat = state.through_flat.saturating_sub(1);
            }
        }
    }

    /// Every writable device that the forest shows, flushed; trees first.
    fn flush_with(&self, tree: fn(&dyn FileSystemWrite) -> Result<()>) -> Result<()> {
        for planted in &self.trees {
            planted.unsettled.store(false, Ordering::Release);
            planted.tree().writer().map_or(Ok(()), tree)?;
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
        self.change(dir, |writer, own, number| Ok(grafted(number, writer.create(own, &unescaped(name), new)?)))
    }

    fn write(&self, file: NodeId, buf: &[u8], offset: u64, now: Timestamp) -> Result<()> {
        if let Target::Synthetic(Synthetic::Flat(flat)) = self.target(file)? {
            return flat.write(buf, offset);
        }
        self.change(file, |writer, own, _| writer.write(own, buf, offset, now))
    }

    fn set_attributes(&self, node: NodeId, changes: &Changes) -> Result<()> {
        if let Target::Synthetic(Synthetic::Flat(flat)) = self.target(node)? {
            return fixed_size(flat.device.as_ref(), changes);
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
        self.change(dir, |writer, own, number| {
            if number != new_number {
                return Err(Error::CrossDevice);
            }
            writer.rename(own, &unescaped(name), new_own, &unescaped(new_name), replace)
        })
    }

    fn remove(&self, dir: NodeId, name: &[u8], directory: bool) -> Result<()> {
        self.change(dir, |writer, own, _| writer.remove(own, &unescaped(name), directory))
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
                let mut state = lock(&planted.state);
                if state.through_flat > 0 {
                    drop(state);
                    log::warn!("refused: the flat file of this volume is open for writing");
                    return Err(Error::Busy);
                }
                state.through_tree = state.through_tree.saturating_add(1);
                drop(state);
                writer.begin_writing(own)
            }
        }
    }

    fn end_writing(&self, node: NodeId, over: bool) -> bool {
        match self.target(node) {
            Ok(Target::Synthetic(Synthetic::Flat(flat))) => {
                self.end_flat(&flat.range, over);
                true
            }
            Ok(Target::Tree(_, number, _)) if over => {
                if let Ok(planted) = self.planted(number) {
                    let mut state = lock(&planted.state);
                    state.through_tree = state.through_tree.saturating_sub(1);
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
}

/// A flat file is as large as its disk: a change of size is refused, times are nothing to it.
fn fixed_size(device: &dyn BlockDevice, changes: &Changes) -> Result<()> {
    device.writer().ok_or(Error::ReadOnly)?;
    match changes.size {
        Some(size) if size != device.size() => Err(Error::NotPermitted),
        _ => Ok(()),
    }
}

impl Escaped {
    fn inner(&self) -> Result<&dyn FileSystemWrite> {
        self.tree.writer().ok_or(Error::ReadOnly)
    }
}

impl FileSystemWrite for Escaped {
    fn create(&self, dir: NodeId, name: &[u8], new: NewNode) -> Result<NodeId> {
        self.inner()?.create(dir, &unescaped(name), new)
    }

    fn write(&self, file: NodeId, buf: &[u8], offset: u64, now: Timestamp) -> Result<()> {
        self.inner()?.write(file, buf, offset, now)
    }

    fn set_attributes(&self, node: NodeId, changes: &Changes) -> Result<()> {
        self.inner()?.set_attributes(node, changes)
    }

    fn rename(&self, dir: NodeId, name: &[u8], new_dir: NodeId, new_name: &[u8], replace: bool) -> Result<()> {
        self.inner()?.rename(dir, &unescaped(name), new_dir, &unescaped(new_name), replace)
    }

    fn remove(&self, dir: NodeId, name: &[u8], directory: bool) -> Result<()> {
        self.inner()?.remove(dir, &unescaped(name), directory)
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
}

impl FileSystemWrite for NakedDisk {
    fn create(&self, _dir: NodeId, _name: &[u8], _new: NewNode) -> Result<NodeId> {
        Err(Error::NotDirectory)
    }

    fn write(&self, _file: NodeId, buf: &[u8], offset: u64, _now: Timestamp) -> Result<()> {
        self.flat.write(buf, offset)
    }

    fn set_attributes(&self, _node: NodeId, changes: &Changes) -> Result<()> {
        fixed_size(self.flat.device.as_ref(), changes)
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
