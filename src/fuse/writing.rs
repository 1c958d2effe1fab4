//! The write half of the adapter: what the kernel's requests mean to a [`FileSystemWrite`].

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FopenFlags, INodeNo, Notifier, OpenAccMode, OpenFlags, RenameFlags, TimeOrNow,
};

use super::{Adapter, Answer, Known, OTHER_SPELLING};
use crate::cache::lock;
use crate::error::{Error, Result};
use crate::filesystem::{Changes, FileSystemWrite, Kind, NewNode, NodeId, Timestamp};

/// What a `setattr` asks for.
pub(super) struct Wanted {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<TimeOrNow>,
    pub mtime: Option<TimeOrNow>,
    pub crtime: Option<SystemTime>,
}

/// What the kernel has to forget.
pub(super) enum Forget {
    /// All that it keeps.
    All,
    /// What it keeps of flat files, after a change of this node, for those who have mapped one. Whoever made the
    /// change waits for the answer.
    Flat(u64, mpsc::SyncSender<()>),
}

/// The flat files that somebody has open.
#[derive(Default)]
pub(super) struct OpenFlat {
    nodes: Mutex<HashMap<u64, u64>>,
    /// How many there are, so that nobody needs the lock when there are none.
    count: AtomicUsize,
}

impl OpenFlat {
    /// Whether another one than this node is open.
    fn has_others(&self, ino: u64) -> bool {
        self.count.load(Ordering::Acquire) > 0 && lock(&self.nodes).keys().any(|flat| *flat != ino)
    }

    fn change(&self, ino: u64, by: impl FnOnce(u64) -> u64) {
        let mut nodes = lock(&self.nodes);
        let times = by(nodes.remove(&ino).unwrap_or(0));
        if times > 0 {
            nodes.insert(ino, times);
        }
        self.count.store(nodes.len(), Ordering::Release);
    }
}

impl Adapter {
    /// Asks the half of the tree that writes; failures are logged and become an errno, as in [`Adapter::ask`].
    pub(super) fn tell<T>(
        &self,
        operation: &str,
        ino: INodeNo,
        change: impl FnOnce(&dyn FileSystemWrite, NodeId) -> Result<T>,
    ) -> Answer<T> {
        self.ask(operation, ino, |tree, node| change(tree.writer().ok_or(Error::ReadOnly)?, node))
    }

    /// Changes something. Whoever has mapped a flat file sees it when this is done.
    pub(super) fn change<T>(
        &self,
        operation: &str,
        ino: INodeNo,
        change: impl FnOnce(&dyn FileSystemWrite, NodeId) -> Result<T>,
    ) -> Answer<T> {
        let changed = self.tell(operation, ino, change);
        self.forget_flat(ino);
        changed
    }

    /// Opens a file of a mount that can be written to.
    pub(super) fn begin(&self, ino: INodeNo, flags: OpenFlags) -> Answer<(FileHandle, FopenFlags)> {
        let node = self.node(ino);
        self.tell("open", ino, |writer, node| {
            if writes(flags) {
                writer.begin_writing(node)?;
            }
            writer.opened(node);
            Ok(())
        })?;
        let handle = FileHandle(self.next_handle.fetch_add(1, Ordering::Relaxed));
        let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        let flat = self.tree.is_shared(node);
        if flat {
            self.flat.change(ino.0, |times| times.saturating_add(1));
        }
        // Of bytes that can change through another node, the kernel keeps none.
        if flat || ino.0 & OTHER_SPELLING != 0 {
            return Ok((handle, direct));
        }
        let way = match flags.acc_mode() {
            OpenAccMode::O_RDONLY => FopenFlags::FOPEN_NOFLUSH,
            // What is only written comes from the writer's own pages, without a copy in between.
            OpenAccMode::O_WRONLY if self.direct_writes.load(Ordering::Relaxed) => direct,
            _ => FopenFlags::empty(),
        };
        Ok((handle, self.kept(ino) | way))
    }

    /// Whether the kernel may keep what it has of a node that it opens.
    pub(super) fn kept(&self, ino: INodeNo) -> FopenFlags {
        let epoch = self.epoch.load(Ordering::Acquire);
        let before = lock(&self.known).get_mut(&ino.0).map(|known| std::mem::replace(&mut known.epoch, epoch));
        if before == Some(epoch) { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() }
    }

    /// One of those who have a file open closes it: what was written to a flat file is in the trees
    /// when close(2) returns.
    pub(super) fn show(&self, ino: INodeNo) -> Answer<()> {
        if self.tell("flush", ino, |writer, node| Ok(writer.end_writing(node, false)))? {
            self.forget_contents();
        }
        Ok(())
    }

    /// The end of what [`Adapter::begin`] began.
    pub(super) fn end(&self, ino: INodeNo, flags: OpenFlags) {
        if self.tree.is_shared(self.node(ino)) {
            self.flat.change(ino.0, |times| times.saturating_sub(1));
        }
        let ended = self.tell("release", ino, |writer, node| {
            writer.closed(node);
            Ok(writes(flags) && writer.end_writing(node, true))
        });
        if ended == Ok(true) {
            self.forget_contents();
        }
    }

    pub(super) fn sync(&self, ino: INodeNo) -> Answer<()> {
        let all_changed = self.tell("fsync", ino, |writer, node| {
            writer.flush()?;
            Ok(writer.end_writing(node, false))
        })?;
        if all_changed {
            self.forget_contents();
        }
        Ok(())
    }

    /// After a flat file was written to: the kernel's pages and attributes of every node are void. Whoever
    /// opens one from here on reads it anew; what is open already is forgotten a moment later.
    fn forget_contents(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.forget(Forget::All);
    }

    /// Not by whoever answers a request: the kernel may wait for that before it lets go of a page.
    fn forget(&self, what: Forget) {
        let Some(notifier) = self.notifier.get() else { return };
        let forgetter = self.forgetter.get_or_init(|| {
            let (ask, asked) = mpsc::channel();
            let (notifier, known, flat) = (notifier.clone(), self.known.clone(), self.flat.clone());
            std::thread::spawn(move || forget_when(&asked, &notifier, &known, &flat));
            ask
        });
        // It ends with the session only.
        let _ = forgetter.send(what);
    }

    /// After a change: what the kernel has of other nodes' bytes for those who mapped a flat file is void. Reading
    /// needs no such care: of a flat file the kernel keeps nothing else.
    fn forget_flat(&self, ino: INodeNo) {
        /// A page can be waiting for one of the threads that answer requests, and all of those for this.
        const PATIENCE: Duration = Duration::from_millis(100);
        if self.flat.has_others(ino.0) {
            let (done, is_done) = mpsc::sync_channel(1);
            self.forget(Forget::Flat(ino.0, done));
            let _ = is_done.recv_timeout(PATIENCE);
        }
    }

    /// Whether others may have pages of a node's bytes, which a change has to void before it is answered.
    pub(super) fn has_others(&self, ino: INodeNo) -> bool {
        ino.0 & OTHER_SPELLING != 0 || self.flat.has_others(ino.0)
    }

    /// After a change by way of another spelling: the kernel's pages under the entry's own are void.
    /// Done at once, as whoever changed it may look there next; those pages are other threads' matter.
    pub(super) fn forget_first_spelling(&self, ino: INodeNo) {
        if ino.0 & OTHER_SPELLING != 0
            && let Some(notifier) = self.notifier.get()
        {
            // ENOENT: the kernel does not know it.
            let _ = notifier.inval_inode(INodeNo(ino.0 & !OTHER_SPELLING), 0, 0);
        }
    }

    /// Makes a file and opens it: both, or neither.
    pub(super) fn make_open(
        &self,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        flags: OpenFlags,
    ) -> Answer<(FileAttr, FileHandle, FopenFlags)> {
        let attr = self.make(parent, name, Kind::File, mode)?;
        match self.begin(attr.ino, flags) {
            Ok((handle, open_flags)) => Ok((attr, handle, open_flags)),
            Err(errno) => {
                self.forgotten(attr.ino, 1);
                let _ = self.change("create", parent, |writer, dir| writer.remove(dir, name.as_bytes(), false));
                Err(errno)
            }
        }
    }

    pub(super) fn make(&self, parent: INodeNo, name: &OsStr, kind: Kind, mode: u32) -> Answer<FileAttr> {
        let new = NewNode { kind, read_only: kind == Kind::File && mode & 0o222 == 0, now: Timestamp::now() };
        let attr = self.ask("create", parent, |tree, dir| {
            let node = tree.writer().ok_or(Error::ReadOnly)?.create(dir, name.as_bytes(), new)?;
            Ok(self.attr_of(node, &tree.attributes(node)?))
        })?;
        self.remember(&attr);
        self.forget_flat(parent);
        Ok(attr)
    }

    /// `mknod`: only of regular files.
    pub(super) fn make_node(&self, parent: INodeNo, name: &OsStr, mode: u32) -> Answer<FileAttr> {
        const TYPE: u32 = 0o170_000;
        const REGULAR: u32 = 0o100_000;
        if mode & TYPE != REGULAR {
            return Err(Errno::EPERM);
        }
        self.make(parent, name, Kind::File, mode)
    }

    pub(super) fn rename_entry(
        &self,
        from: (INodeNo, &OsStr),
        to: (INodeNo, &OsStr),
        flags: RenameFlags,
    ) -> Answer<()> {
        let known = RenameFlags::RENAME_NOREPLACE;
        if !known.contains(flags) {
            return Err(Errno::EINVAL);
        }
        let new_dir = self.node(to.0);
        self.change("rename", from.0, |writer, dir| {
            let replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
            writer.rename(dir, from.1.as_bytes(), new_dir, to.1.as_bytes(), replace)
        })
    }

    /// Size, times, and the read-only mark; owners cannot change where the medium has none.
    pub(super) fn set(&self, ino: INodeNo, wanted: &Wanted) -> Answer<FileAttr> {
        let before = self.attr("setattr", ino)?;
        let other_owner =
            wanted.uid.is_some_and(|uid| uid != before.uid) || wanted.gid.is_some_and(|gid| gid != before.gid);
        if other_owner && !self.view.quiet {
            return Err(Errno::EPERM);
        }
        let time = |time: Option<TimeOrNow>| match time {
            Some(TimeOrNow::SpecificTime(time)) => Timestamp::from_system_time(time),
            Some(TimeOrNow::Now) => Some(Timestamp::now()),
            None => None,
        };
        let changes = Changes {
            size: wanted.size,
            read_only: wanted.mode.map(|mode| mode & 0o222 == 0),
            accessed: time(wanted.atime),
            modified: time(wanted.mtime),
            created: wanted.crtime.and_then(Timestamp::from_system_time),
        };
        self.change("setattr", ino, |writer, node| writer.set_attributes(node, &changes))?;
        self.forget_first_spelling(ino);
        if wanted.size.is_some() && self.tree.is_shared(self.node(ino)) {
            self.forget_contents();
        }
        self.attr("setattr", ino)
    }
}

/// Makes the kernel forget nodes, each time that it is asked to; once for what was asked meanwhile.
fn forget_when(
    asked: &mpsc::Receiver<Forget>,
    notifier: &Notifier,
    known: &Mutex<HashMap<u64, Known>>,
    flat: &OpenFlat,
) {
    while let Ok(first) = asked.recv() {
        let (mut all, mut changed, mut waiting) = (false, BTreeSet::new(), Vec::new());
        for one in std::iter::once(first).chain(asked.try_iter()) {
            match one {
                Forget::All => all = true,
                Forget::Flat(ino, done) => {
                    changed.insert(ino);
                    waiting.push(done);
                }
            }
        }
        let nodes: Vec<u64> = if all {
            lock(known).keys().copied().collect()
        } else {
            // A node's own changes are in its own pages already.
            let others = |flat: &u64| changed.iter().any(|ino| ino != flat);
            lock(&flat.nodes).keys().copied().filter(others).collect()
        };
        for ino in nodes {
            // ENOENT: the kernel has forgotten it by itself.
            let _ = notifier.inval_inode(INodeNo(ino), 0, 0);
        }
        for done in waiting {
            // Whoever asked may have lost patience.
            let _ = done.try_send(());
        }
    }
}

/// Whether each write is to be on stable storage when it returns.
pub(super) fn stable(flags: OpenFlags) -> bool {
    rustix::fs::OFlags::from_bits_retain(flags.0.cast_unsigned()).contains(rustix::fs::OFlags::DSYNC)
}

fn writes(flags: OpenFlags) -> bool {
    flags.acc_mode() != OpenAccMode::O_RDONLY
}
