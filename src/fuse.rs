//! The FUSE adapter: shows any [`FileSystem`] through the kernel. No format is named here; every
//! callback translates, asks the tree, and replies with the value or with the one logged errno.
//!
//! The tree cannot change behind a read-only mount, so the kernel may keep names, attributes and
//! pages for as long as it likes: entries never expire, no open throws pages away, directories
//! and link targets are kept. A flat file that *is* a file of the host is handed to the kernel
//! whole (passthrough), where the kernel allows it and until the first file of a tree is opened:
//! from then on no open is asked for. Of any other flat file whose bytes are a host file's, large reads
//! are answered out of the host's cache, without a copy (`splice`).

pub mod attach;
pub mod errno;
mod splice;
mod writing;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackingId, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::cache::{Cache, lock};
use crate::digest::{Algorithm, Hasher, hex};
use crate::error::{Error, Result};
use crate::filesystem::{Attributes, DirEntry, FileSystem, Kind, NodeId, Timestamp};

/// How long the kernel may keep what cannot change.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Marks the number by which the kernel knows a node that was asked for in another spelling. With one
/// number for both, the kernel would take `mv name NAME` for a rename onto itself and leave it out.
/// No tree numbers its nodes so high.
const OTHER_SPELLING: u64 = 1 << 54;
/// Longest link target that the kernel takes: PATH_MAX without its final NUL.
const MAX_TARGET: usize = 4095;
/// Cursors that the adapter itself uses: 0 is before `.`, 1 before `..`, 2 before the tree's first row.
const OWN_ROWS: u64 = 2;

/// The attribute that has a file's SHA-256, where a mount shows it: 64 hexadecimal digits.
pub const HASH: &str = "user.hash.sha256";
/// Bytes that the digests kept take, at the most: of some hundred thousand files.
const HASH_CACHE: u64 = 16 << 20;

/// Whose files the mount shows, and with which permissions.
#[derive(Debug, Clone)]
pub struct View {
    /// Who mounts.
    pub caller: (u32, u32),
    /// Show the disk's owners and permissions as they are.
    pub owners: bool,
    /// Owner of everything, when given.
    pub uid: Option<u32>,
    /// Group of everything, when given.
    pub gid: Option<u32>,
    /// Permission bits to take from files, when given; else `default_mask` where the disk has none.
    pub fmask: Option<u16>,
    /// As `fmask`, for directories.
    pub dmask: Option<u16>,
    /// The mask for nodes whose medium has no permissions: the caller's umask.
    pub default_mask: u16,
    /// Each file has its SHA-256 as the attribute [`HASH`].
    pub hashes: bool,
    /// Giving a file another owner or group does nothing, and is no error.
    pub quiet: bool,
}

impl View {
    /// What `stat` shows for a node.
    fn attr(&self, ino: u64, attributes: &Attributes) -> FileAttr {
        let at = |time: Option<Timestamp>| system_time(time.or(attributes.modified));
        let modified = at(attributes.modified);
        FileAttr {
            ino: INodeNo(ino),
            size: attributes.size,
            blocks: attributes.blocks.unwrap_or(attributes.size.div_ceil(512)),
            atime: at(attributes.accessed),
            mtime: modified,
            ctime: at(attributes.changed),
            crtime: at(attributes.created),
            kind: file_type(attributes.kind),
            perm: self.mode(attributes),
            nlink: attributes.links.unwrap_or(1),
            uid: self.uid.unwrap_or(self.owner(attributes.uid, self.caller.0)),
            gid: self.gid.unwrap_or(self.owner(attributes.gid, self.caller.1)),
            rdev: attributes.device.map_or(0, |(major, minor)| encode_device(major, minor)),
            blksize: block_size(attributes),
            flags: 0,
        }
    }

    fn owner(&self, on_disk: Option<u32>, caller: u32) -> u32 {
        on_disk.filter(|_| self.owners).unwrap_or(caller)
    }

    /// Permission bits: the disk's; everything where it has none; in the caller's own view always
    /// readable, as the caller could read the image's bytes anyway.
    fn mode(&self, attributes: &Attributes) -> u16 {
        let directory = attributes.kind == Kind::Directory;
        let mask = if directory { self.dmask } else { self.fmask };
        let readable = if directory { 0o500 } else { 0o400 };
        let mode = match attributes.mode {
            Some(mode) if self.owners => mode,
            Some(mode) => mode | readable,
            None => 0o777 & !self.default_mask | readable,
        };
        let mode = if attributes.program == Some(false) { mode & !0o111 } else { mode };
        let writable = if attributes.read_only && !directory { !0o222 } else { 0o7777 };
        mode & writable & !mask.unwrap_or(0)
    }
}

/// Bytes in which programs best read and write a file. An empty one can only be written to, and cp(1) and cat(1) take
/// its size for what they write: as much as one request has. Of one that has bytes a program may want few, and some
/// read no fewer than this.
fn block_size(attributes: &Attributes) -> u32 {
    if attributes.kind == Kind::File && attributes.size == 0 { 1 << 20 } else { 4096 }
}

/// A tree behind a mount point.
pub struct Adapter {
    tree: Arc<dyn FileSystem>,
    view: View,
    /// Whether anything can be written: then the kernel asks each time, and each file is opened.
    writable: bool,
    /// What the kernel knows by number: only while something can be written.
    known: Arc<Mutex<HashMap<u64, Known>>>,
    /// How often nodes were changed from outside of themselves. What the kernel keeps of another epoch
    /// than the present one is void.
    epoch: AtomicU64,
    /// The way to tell the kernel what it must forget.
    notifier: Arc<OnceLock<Notifier>>,
    /// The way to the thread that does so.
    forgetter: OnceLock<mpsc::Sender<writing::Forget>>,
    /// Who may have mapped bytes that others change.
    flat: Arc<writing::OpenFlat>,
    passthrough: AtomicBool,
    backing: Mutex<Backings>,
    next_handle: AtomicU64,
    /// How often anything was asked for.
    requests: Arc<AtomicU64>,
    /// Digests that were calculated: only while nothing can be written.
    hashes: Cache<NodeId, Arc<Vec<u8>>>,
    /// Whether the kernel lets go of what it keeps of a file where somebody writes past that.
    direct_writes: AtomicBool,
    /// The connection to the kernel, for answers that are spliced.
    spliced: Option<OwnedFd>,
}

/// What the kernel knows of a node.
#[derive(Default)]
struct Known {
    /// How often it was told of it.
    times: u64,
    /// The epoch in which it opened it last; 0 when it never did.
    epoch: u64,
}

/// What the kernel reads by itself now.
#[derive(Default)]
struct Backings {
    open: HashMap<u64, Backing>,
    /// The kernel was told to leave out `open`. It refuses to open a file that way which it reads by
    /// itself elsewhere, so that from then on nothing is handed to it, and not before all is closed.
    without_open: bool,
}

/// A host file that the kernel reads by itself, for as long as someone has it open.
struct Backing {
    id: Arc<BackingId>,
    handles: Vec<u64>,
}

/// Why a callback has no value: already logged.
type Answer<T> = std::result::Result<T, Errno>;

impl Adapter {
    /// `may_pass_through`: offer whole host files to the kernel (only root is allowed to).
    pub fn new(tree: Arc<dyn FileSystem>, view: View, may_pass_through: bool) -> Self {
        let writable = tree.writer().is_some();
        Self {
            tree,
            view,
            writable,
            known: Arc::default(),
            epoch: AtomicU64::new(1),
            forgetter: OnceLock::new(),
            flat: Arc::default(),
            notifier: Arc::default(),
            passthrough: AtomicBool::new(may_pass_through && !writable),
            backing: Mutex::default(),
            next_handle: AtomicU64::new(1),
            requests: Arc::default(),
            hashes: Cache::new(HASH_CACHE),
            direct_writes: AtomicBool::new(false),
            spliced: None,
        }
    }

    /// The kernel calls the root 1: the two numbers change places.
    fn swapped(&self, number: u64) -> u64 {
        let root = self.tree.root().0;
        match number {
            n if n == root => 1,
            1 => root,
            n => n,
        }
    }

    fn node(&self, ino: INodeNo) -> NodeId {
        NodeId(self.swapped(ino.0 & !OTHER_SPELLING))
    }

    /// Asks the tree. A failure is logged with operation and node; a panic is a bug of ours, costs
    /// this request an EIO and nothing else.
    fn ask<T>(
        &self,
        operation: &str,
        ino: INodeNo,
        question: impl FnOnce(&dyn FileSystem, NodeId) -> Result<T>,
    ) -> Answer<T> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let node = self.node(ino);
        match catch_unwind(AssertUnwindSafe(|| question(self.tree.as_ref(), node))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                if errno::is_noteworthy(&error) {
                    log::warn!("{operation}, node {:#x}: {error}", node.0);
                }
                Err(errno::errno(&error))
            }
            Err(_) => {
                log::error!("{operation}, node {:#x}: a bug in imgfs; please report it with the lines above", node.0);
                Err(Errno::EIO)
            }
        }
    }

    /// Counts what is asked for: a mount that nobody uses stands still.
    pub fn requests(&self) -> Arc<AtomicU64> {
        self.requests.clone()
    }

    /// Where the session's notifier goes, once there is a session.
    pub fn notifier(&self) -> Arc<OnceLock<Notifier>> {
        self.notifier.clone()
    }

    /// The value of [`HASH`]. Whoever asks for its length alone does not wait for it.
    fn hash(&self, tree: &dyn FileSystem, node: NodeId, length_only: bool) -> Result<Vec<u8>> {
        if tree.attributes(node)?.kind != Kind::File {
            return Err(Error::NoAttribute);
        }
        if length_only {
            return Ok(vec![0; Algorithm::Sha256.size().saturating_mul(2)]);
        }
        if self.writable {
            return digest(tree, node);
        }
        let value = self.hashes.get_or_make(&node, || {
            let value = digest(tree, node)?;
            let weight = value.len().saturating_add(64) as u64;
            Ok::<_, Error>((Arc::new(value), weight))
        })?;
        Ok(value.to_vec())
    }

    /// How long the kernel may keep what it is told.
    fn ttl(&self) -> Duration {
        if self.writable { Duration::ZERO } else { FOREVER }
    }

    /// Remembers that the kernel was told of a node.
    fn remember(&self, attr: &FileAttr) {
        if self.writable {
            let mut known = lock(&self.known);
            let node = known.entry(attr.ino.0).or_default();
            node.times = node.times.saturating_add(1);
        }
    }

    /// The kernel forgot so many times that it was told of a node.
    fn forgotten(&self, ino: INodeNo, times: u64) {
        if self.writable {
            let mut known = lock(&self.known);
            if let Some(node) = known.get_mut(&ino.0) {
                node.times = node.times.saturating_sub(times);
                if node.times == 0 {
                    known.remove(&ino.0);
                }
            }
        }
    }

    /// What `stat` shows. Of a file in another spelling it is the file's own number: two paths to one file
    /// must be known to be one, or `cp file FILE` would empty it.
    fn attr(&self, operation: &str, ino: INodeNo) -> Answer<FileAttr> {
        let attributes = self.ask(operation, ino, |tree, node| tree.attributes(node))?;
        Ok(self.view.attr(ino.0 & !OTHER_SPELLING, &attributes))
    }

    fn attr_of(&self, node: NodeId, attributes: &Attributes) -> FileAttr {
        self.view.attr(self.swapped(node.0), attributes)
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Answer<Option<FileAttr>> {
        self.ask("lookup", parent, |tree, dir| {
            let Some(node) = tree.lookup(dir, name.as_bytes())? else { return Ok(None) };
            let mut attr = self.attr_of(node, &tree.attributes(node)?);
            if self.writable && tree.is_other_spelling(dir, name.as_bytes())? {
                attr.ino = INodeNo(attr.ino.0 | OTHER_SPELLING);
            }
            Ok(Some(attr))
        })
    }

    /// Gives the rows of a directory from the kernel's cursor on, `.` and `..` first.
    fn list(&self, ino: INodeNo, cursor: u64, add: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Answer<()> {
        self.ask("readdir", ino, |tree, dir| {
            for (next, name) in (1u64..).zip([b".".as_slice(), b".."]).skip_while(|(next, _)| *next <= cursor) {
                if !add(DirEntry { node: dir, name: name.into(), kind: Kind::Directory, next }) {
                    return Ok(());
                }
            }
            tree.read_dir(dir, cursor.saturating_sub(OWN_ROWS), &mut |entry| {
                let next = entry.next.saturating_add(OWN_ROWS);
                add(DirEntry { next, ..entry })
            })
        })
    }

    /// The kernel's handle on a host file that is exactly this node, where it gives us one.
    fn open_backing(&self, ino: INodeNo, reply: &ReplyOpen) -> Option<(FileHandle, Arc<BackingId>)> {
        if !self.passthrough.load(Ordering::Relaxed) {
            return None;
        }
        let span = self.tree.host_file(self.node(ino))?;
        let found = span.file.metadata().ok()?;
        let whole = found.is_file() && span.offset == 0 && found.len() == span.len;
        if !whole {
            return None;
        }
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let mut backing = lock(&self.backing);
        if backing.without_open {
            return None;
        }
        if let Some(known) = backing.open.get_mut(&ino.0) {
            known.handles.push(handle);
            return Some((FileHandle(handle), known.id.clone()));
        }
        match reply.open_backing(span.file) {
            Ok(id) => {
                let id = Arc::new(id);
                backing.open.insert(ino.0, Backing { id: id.clone(), handles: vec![handle] });
                Some((FileHandle(handle), id))
            }
            Err(error) => {
                log::debug!("the kernel does not read the image by itself: {error}");
                self.passthrough.store(false, Ordering::Relaxed);
                None
            }
        }
    }

    /// Lets large reads be answered out of the host's cache; `connection` is the one that requests come by.
    pub fn splice_by(&mut self, connection: OwnedFd) {
        self.spliced = Some(connection).filter(|_| !self.writable);
    }

    /// Answers a read without a copy; false when it is still to be answered.
    fn splice(&self, request: &Request, ino: INodeNo, offset: u64, size: usize) -> bool {
        let Some(connection) = self.spliced.as_ref().filter(|_| size >= splice::SMALLEST) else { return false };
        let answered = self.ask("read", ino, |tree, node| {
            let Some(span) = tree.host_file(node) else { return Ok(false) };
            let at = span.offset.checked_add(offset).ok_or(Error::Invalid)?;
            let rest = span.len.saturating_sub(offset);
            let len = usize::try_from(rest).unwrap_or(usize::MAX).min(size);
            if len < splice::SMALLEST {
                return Ok(false);
            }
            Ok(splice::answer(connection, request.unique().0, span.file, at, len)
                .inspect_err(|error| log::debug!("read, node {:#x}: not spliced: {error}", node.0))
                .is_ok())
        });
        answered == Ok(true)
    }

    /// Whether the kernel is to leave out `open` from now on.
    fn leave_out_open(&self) -> bool {
        let mut backing = lock(&self.backing);
        backing.without_open |= backing.open.is_empty();
        backing.without_open
    }
}

thread_local! {
    /// One buffer a thread, as large as its largest request so far.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Not FUSE_READDIRPLUS_AUTO: it lists the rest of a large directory without attributes, and
        // whoever reads it to the end before he looks pays a lookup for each name.
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_BIG_WRITES,
        ];
        // A listing that the kernel keeps could be out of date once someone writes.
        let unwanted = if self.writable { InitFlags::FUSE_CACHE_SYMLINKS } else { InitFlags::empty() };
        for flag in wanted.into_iter().filter(|flag| !unwanted.contains(*flag)) {
            if config.add_capabilities(flag).is_err() {
                log::debug!("the kernel does not know {flag:?}");
            }
        }
        // Linux 6.6 has both: shared mappings of what is written directly, and an end to the pages that such
        // a write makes stale.
        let direct = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP).is_ok();
        self.direct_writes.store(direct, Ordering::Relaxed);
        let ordinary_user = !self.passthrough.load(Ordering::Relaxed);
        if self.spliced.is_some() && ordinary_user {
            // It bounds what one request reads as well: past that a reader without the kernel's cache (O_DIRECT)
            // would get copies.
            let _ = config.set_max_write(splice::largest());
        }
        if self.passthrough.load(Ordering::Relaxed) {
            let depth = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).map(|()| config.set_max_stack_depth(1));
            self.passthrough.store(matches!(depth, Ok(Ok(_))), Ordering::Relaxed);
        }
        let largest = config.set_max_readahead(u32::MAX).unwrap_or_else(|largest| largest);
        log::debug!("readahead of {largest} bytes");
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name) {
            Ok(Some(attr)) => {
                self.remember(&attr);
                reply.entry(&self.ttl(), &attr, Generation(0));
            }
            Ok(None) if self.writable => reply.error(Errno::ENOENT),
            // Number 0: the kernel remembers that the name is not there.
            Ok(None) => {
                let missing = self.view.attr(0, &Attributes::new(Kind::File, 0));
                reply.entry(&FOREVER, &missing, Generation(0));
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr("getattr", ino) {
            Ok(attr) => reply.attr(&self.ttl(), &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.forgotten(ino, nlookup);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.ask("readlink", ino, |tree, node| tree.read_link(node)) {
            // More than the kernel can take back.
            Ok(target) if target.len() > MAX_TARGET => reply.error(Errno::ENAMETOOLONG),
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.writable {
            return match self.begin(ino, flags) {
                Ok((handle, flags)) => reply.opened(handle, flags),
                Err(errno) => reply.error(errno),
            };
        }
        match self.open_backing(ino, &reply) {
            Some((handle, id)) => reply.opened_passthrough(handle, FopenFlags::empty(), &id),
            // The kernel asks no more, for any file: two messages less for each file that is read.
            None if self.leave_out_open() => reply.error(Errno::ENOSYS),
            None => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH),
        }
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = size as usize;
        if self.splice(req, ino, offset, size) {
            // It is answered: dropped, this would answer once more.
            return std::mem::forget(reply);
        }
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let part = buffer.get_mut(..size).unwrap_or_default();
            match self.ask("read", ino, |tree, node| tree.read(node, part, offset)) {
                Ok(len) => reply.data(part.get(..len).unwrap_or_default()),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if self.writable {
            self.end(ino, flags);
            return reply.ok();
        }
        let mut backing = lock(&self.backing);
        if let Some(known) = backing.open.get_mut(&ino.0) {
            known.handles.retain(|handle| *handle != fh.0);
            if known.handles.is_empty() {
                backing.open.remove(&ino.0);
            }
        }
        drop(backing);
        reply.ok();
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let wanted = writing::Wanted { mode, uid, gid, size, atime, mtime, crtime };
        match self.set(ino, &wanted) {
            Ok(attr) => reply.attr(&self.ttl(), &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        match self.make_node(parent, name, mode) {
            Ok(attr) => reply.entry(&self.ttl(), &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn mkdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        match self.make(parent, name, Kind::Directory, mode) {
            Ok(attr) => reply.entry(&self.ttl(), &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.make_open(parent, name, mode, OpenFlags(flags)) {
            Ok((attr, handle, open_flags)) => reply.created(&self.ttl(), &attr, Generation(0), handle, open_flags),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        send_empty(self.change("unlink", parent, |writer, dir| writer.remove(dir, name.as_bytes(), false)), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        send_empty(self.change("rmdir", parent, |writer, dir| writer.remove(dir, name.as_bytes(), true)), reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        send_empty(self.rename_entry((parent, name), (newparent, newname), flags), reply);
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // A request is bounded by the 16 MiB of fuser's buffer.
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let stable = writing::stable(flags);
        let may_answer_early = !stable && !self.has_others(ino);
        let mut reply = Some(reply);
        let mut answer = || {
            if may_answer_early && let Some(reply) = reply.take() {
                reply.written(len);
            }
        };
        let written = self.change("write", ino, |writer, node| {
            writer.write_early(node, data, offset, Timestamp::now(), &mut answer)?;
            // Past its own pages the kernel leaves that to us.
            if stable { writer.flush() } else { Ok(()) }
        });
        self.forget_first_spelling(ino);
        match (reply, written) {
            (Some(reply), Ok(())) => reply.written(len),
            (Some(reply), Err(errno)) => reply.error(errno),
            // What happened after the answer was logged.
            (None, _) => {}
        }
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        send_empty(self.sync(ino), reply);
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        send_empty(self.sync(ino), reply);
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        send_empty(self.change("setxattr", ino, |writer, node| writer.set_xattr(node, name.as_bytes(), value)), reply);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        // The kernel does not ask again, and the C library writes instead.
        reply.error(Errno::ENOSYS);
    }

    // What no tree here can do is refused without a line in the log for each time: programs ask every file that
    // they open whether it is a terminal.
    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn symlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, _target: &Path, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn link(&self, _req: &Request, _ino: INodeNo, _newparent: INodeNo, _newname: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        // The kernel does not ask again, and says that it is not supported.
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel does not ask again, and reads and writes instead.
        reply.error(Errno::ENOSYS);
    }

    fn destroy(&mut self) {
        if let Some(writer) = self.tree.writer()
            && let Err(error) = writer.quiesce()
        {
            log::error!("what was written last may be lost: {error}");
        }
    }

    fn flush(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        if self.writable {
            return send_empty(self.show(ino), reply);
        }
        // The kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.writable {
            return reply.opened(FileHandle(0), FopenFlags::FOPEN_CACHE_DIR | self.kept(ino));
        }
        // The kernel goes on without, and keeps the listing.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut rows = 0u32;
        let listed = self.list(ino, offset, &mut |entry| {
            let number = INodeNo(self.swapped(entry.node.0));
            let added = !reply.add(number, entry.next, file_type(entry.kind), OsStr::from_bytes(&entry.name));
            rows = rows.saturating_add(u32::from(added));
            added
        });
        match listed {
            // What can be listed is; the next call, behind the last row, meets the damage again.
            Err(_) if rows > 0 => reply.ok(),
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let mut rows = 0u32;
        let listed = self.list(ino, offset, &mut |entry| {
            // A node that cannot be read keeps its name; asking for it again will say why.
            let (attributes, ttl) = match self.tree.attributes(entry.node) {
                Ok(attributes) => (attributes, self.ttl()),
                Err(_) => (Attributes::new(entry.kind, 0), Duration::ZERO),
            };
            let attr = self.attr_of(entry.node, &attributes);
            let added = !reply.add(attr.ino, entry.next, OsStr::from_bytes(&entry.name), &ttl, &attr, Generation(0));
            // The kernel does not count the directory itself and the one above it.
            if added && !matches!(entry.name.as_ref(), b"." | b"..") {
                self.remember(&attr);
            }
            rows = rows.saturating_add(u32::from(added));
            added
        });
        match listed {
            Err(_) if rows > 0 => reply.ok(),
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.ask("statfs", ino, |tree, node| Ok(tree.volume(node).unwrap_or_else(|| tree.summary()))) {
            Ok(s) => reply.statfs(
                s.total_blocks,
                s.free_blocks,
                s.free_blocks.saturating_sub(s.reserved_blocks),
                s.total_nodes,
                s.free_nodes,
                s.block_size,
                s.name_max,
                s.block_size,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = self.ask("getxattr", ino, |tree, node| {
            if self.view.hashes && name.as_bytes() == HASH.as_bytes() {
                return self.hash(tree, node, size == 0);
            }
            tree.xattr(node, name.as_bytes())
        });
        send_xattr(value, size, reply);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.ask("listxattr", ino, |tree, node| {
            let mut list = Vec::new();
            let own = self.view.hashes && tree.attributes(node)?.kind == Kind::File;
            for name in tree.xattrs(node)?.into_iter().chain(own.then(|| HASH.as_bytes().to_vec())) {
                list.extend_from_slice(&name);
                list.push(0);
            }
            Ok(list)
        });
        send_xattr(names, size, reply);
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let found = self.ask("lseek", ino, |tree, node| seek(tree, node, offset, whence));
        match found {
            Ok(Some(at)) => reply.offset(at),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(errno) => reply.error(errno),
        }
    }
}

/// A file's SHA-256 in hexadecimal digits.
fn digest(tree: &dyn FileSystem, file: NodeId) -> Result<Vec<u8>> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut piece = vec![0; 1 << 20];
    let mut offset = 0u64;
    loop {
        let len = tree.read(file, &mut piece, offset)?;
        match piece.get(..len) {
            Some(read) if !read.is_empty() => hasher.update(read),
            _ => return Ok(hex(&hasher.finish()).into_bytes()),
        }
        offset = offset.saturating_add(len as u64);
    }
}

/// `SEEK_DATA` or `SEEK_HOLE`; `None` past the end, or when no data follows.
fn seek(tree: &dyn FileSystem, node: NodeId, offset: i64, whence: i32) -> Result<Option<i64>> {
    /// From `linux/fs.h`; the kernel answers the other kinds by itself.
    const SEEK_DATA: i32 = 3;
    const SEEK_HOLE: i32 = 4;
    /// Extents that one request looks at: a small image can claim billions.
    const MAX_STEPS: u32 = 1 << 16;
    let want_stored = match whence {
        SEEK_DATA => true,
        SEEK_HOLE => false,
        _ => return Err(Error::Invalid),
    };
    let size = tree.attributes(node)?.size;
    let Some(mut at) = u64::try_from(offset).ok().filter(|at| *at < size) else { return Ok(None) };
    let mut steps = 0u32;
    while at < size {
        steps = steps.saturating_add(1);
        if steps > MAX_STEPS {
            // Zeros may be called data at any time, and what was not looked at is taken for it.
            at = if want_stored { at } else { size };
            break;
        }
        let extent = tree.extent(node, at)?;
        if extent.stored == want_stored || extent.len == 0 {
            break;
        }
        at = at.saturating_add(extent.len).min(size);
    }
    // The end of the file is a hole, and never data.
    Ok(i64::try_from(at).ok().filter(|_| at < size || !want_stored))
}

fn send_empty(done: Answer<()>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn send_xattr(value: Answer<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match value {
        Ok(value) => match u32::try_from(value.len()) {
            Ok(len) if size == 0 => reply.size(len),
            Ok(len) if len <= size => reply.data(&value),
            _ => reply.error(Errno::ERANGE),
        },
        Err(errno) => reply.error(errno),
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

/// A device number in the form that the kernel's FUSE takes: minor bits 0-7, major, minor bits 8-19.
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xfff00) << 12
}

fn system_time(time: Option<Timestamp>) -> SystemTime {
    let Some(time) = time else { return UNIX_EPOCH };
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let second = if time.seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    let fraction = Duration::from_nanos(u64::from(time.nanoseconds));
    second.and_then(|second| second.checked_add(fraction)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(owners: bool) -> View {
        let (uid, gid, fmask, dmask) = (None, None, None, None);
        let (caller, default_mask, hashes, quiet) = ((1000, 100), 0o022, false, false);
        View { caller, owners, uid, gid, fmask, dmask, default_mask, hashes, quiet }
    }

    #[test]
    fn the_caller_owns_and_reads_everything_unless_owners_are_asked_for() {
        let secret = Attributes { mode: Some(0o000), uid: Some(0), gid: Some(0), ..Attributes::new(Kind::File, 5) };
        let own = view(false).attr(9, &secret);
        assert_eq!((own.uid, own.gid, own.perm), (1000, 100, 0o400));
        let disk = view(true).attr(9, &secret);
        assert_eq!((disk.uid, disk.gid, disk.perm), (0, 0, 0));
    }

    #[test]
    fn masks_and_the_read_only_mark_take_bits_away() {
        let fat = Attributes { read_only: true, ..Attributes::new(Kind::File, 5) };
        assert_eq!(view(false).attr(9, &fat).perm, 0o555);
        let masked = View { fmask: Some(0o177), dmask: Some(0o077), ..view(false) };
        assert_eq!(masked.attr(9, &Attributes::new(Kind::File, 5)).perm, 0o600);
        assert_eq!(masked.attr(9, &Attributes::new(Kind::Directory, 0)).perm, 0o700);
    }

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let time = system_time(Some(Timestamp { seconds: -2, nanoseconds: 750_000_000 }));
        assert_eq!(UNIX_EPOCH.duration_since(time).unwrap(), Duration::from_millis(1250));
    }

    #[test]
    fn a_search_for_data_or_a_hole_ends_however_many_extents_there_are() {
        /// Eight exabytes in extents of one byte.
        struct Endless(bool);
        impl FileSystem for Endless {
            fn root(&self) -> NodeId {
                NodeId(1)
            }
            fn attributes(&self, _: NodeId) -> Result<Attributes> {
                Ok(Attributes::new(Kind::File, i64::MAX as u64))
            }
            fn read_dir(&self, _: NodeId, _: u64, _: &mut crate::filesystem::EntrySink<'_>) -> Result<()> {
                Err(Error::NotDirectory)
            }
            fn read(&self, _: NodeId, _: &mut [u8], _: u64) -> Result<usize> {
                Ok(0)
            }
            fn extent(&self, _: NodeId, _: u64) -> Result<crate::device::Extent> {
                Ok(crate::device::Extent { stored: self.0, len: 1 })
            }
            fn summary(&self) -> crate::filesystem::Summary {
                crate::filesystem::Summary::default()
            }
        }
        assert_eq!(seek(&Endless(true), NodeId(1), 0, 4).unwrap(), Some(i64::MAX));
        assert_eq!(seek(&Endless(false), NodeId(1), 0, 3).unwrap(), Some(1 << 16));
        assert_eq!(seek(&Endless(true), NodeId(1), 7, 3).unwrap(), Some(7));
    }

    #[test]
    fn large_device_numbers_are_encoded_as_the_kernel_does() {
        assert_eq!(encode_device(8, 1), 0x801);
        assert_eq!(encode_device(0xabc, 0x12345), 0x123a_bc45);
    }
}
