//! `imgfs cp`: extraction.
//!
//! Nothing is ever written outside of the destination: each directory is opened beneath the one
//! before it without following links, each file is made anew. Device nodes, sockets and set-id
//! bits come over only with `--special`.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use anyhow::{Context, Result, bail, ensure};
use imgfs::cache::lock;
use imgfs::error::Error;
use imgfs::filesystem::{Attributes, FileSystem, Kind, NodeId, Timestamp};
use imgfs::forest::Forest;
use indicatif::ProgressBar;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, fsetxattr};
use rustix::io::Errno;

use super::edit::{self, EditArgs};
use super::parallel::cores;
use super::target::{Located, Target, one_of};
use super::walk::{self, Row, Step};
use super::{Outcome, interrupt, progress, treeless};

/// Bytes copied at a time.
const PIECE: u64 = 256 << 10;
/// Above this size every core works on one file.
const LARGE: u64 = 8 << 20;
/// Files that were made and wait to be filled.
const WAITING: usize = 64;

#[derive(clap::Args)]
#[command(override_usage = "imgfs cp [OPTIONS] IMAGE:/PATH... DEST\n       imgfs cp [OPTIONS] FILE... IMAGE:/PATH")]
pub struct Args {
    /// Keep times, modes, owners (as root), links and extended attributes; implies -r
    #[arg(short, long)]
    archive: bool,
    /// Directories with everything below them
    #[arg(short, long)]
    recursive: bool,
    /// Also make device nodes and sockets, and set set-id bits
    #[arg(long)]
    special: bool,
    #[command(flatten)]
    edit: EditArgs,
    /// What to copy, as in the mount, and where to: a directory, or a new name; or files of the
    /// host, and where they go in an image
    #[arg(required = true, num_args = 2.., value_name = "PATH")]
    names: Vec<OsString>,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let Some((dest, sources)) = args.names.split_last() else { bail!("nothing to copy") };
    if let Some(image) = image_path(dest) {
        let sources: Vec<PathBuf> = sources.iter().map(PathBuf::from).collect();
        return edit::copy_in(&args.edit, &sources, &image, args.recursive || args.archive);
    }
    let dest = Path::new(dest);
    let into = dest.is_dir();
    ensure!(into || sources.len() == 1, "{} is not a directory, and there are several things to copy", dest.display());
    interrupt::prepare()?;
    confine(args, sources, &if into { dest.to_owned() } else { split(dest)?.0 })?;
    let mut outcome = Outcome::Complete;
    for text in sources {
        let located = Located::open(text, &args.edit.image).and_then(|located| {
            let fits = located.kind != Kind::Directory || args.recursive || args.archive;
            ensure!(fits, "{} is a directory: add -r or -a", text.display());
            Ok(located)
        });
        let Some(Located { target, image, forest, node, kind }) = one_of(sources, located, &mut outcome)? else {
            continue;
        };
        treeless::say(&treeless::below(&target, &image), &mut outcome);
        let (folder, name) = match (into, target.name()) {
            (true, Some(name)) => (dest.to_owned(), Some(name)),
            (true, None) => (dest.to_owned(), None),
            (false, _) => split(dest)?,
        };
        interrupt::arm();
        let copy = Copy::new(args, &forest);
        let top = Row { node, name: name.map(OsString::into_encoded_bytes).unwrap_or_default(), kind };
        copy.total(&top);
        copy.run(top, &folder)?;
        if copy.failures.into_inner() > 0 {
            outcome = Outcome::Partial;
        }
    }
    Ok(outcome)
}

/// Gives up all rights but those to read the images and to fill the destination.
fn confine(args: &Args, sources: &[OsString], dest: &Path) -> Result<()> {
    let mut sandbox = args.edit.image.sandbox()?;
    for source in sources {
        // What is not there is said when it is opened.
        if let Ok(target) = Target::parse(source) {
            sandbox.image(&target.image);
        }
    }
    sandbox.extract_to(dest, args.special);
    sandbox.enter()
}

/// The destination as a path in an image: it has a colon behind an image's name, and is nothing on the host.
fn image_path(dest: &OsStr) -> Option<Target> {
    if Path::new(dest).exists() || !dest.as_encoded_bytes().contains(&b':') {
        return None;
    }
    Target::parse(dest).ok()
}

/// The folder of a new name, and the name.
fn split(dest: &Path) -> Result<(PathBuf, Option<OsString>)> {
    let name = dest.file_name().with_context(|| format!("{} is no name for a new file", dest.display()))?;
    let folder = dest.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((folder.to_owned(), Some(name.to_owned())))
}

/// A directory of the destination, kept open until everything in it is there.
struct Folder {
    file: OwnedFd,
    /// What it is a copy of.
    row: Row,
    /// Its path, for those who have to say something of it.
    path: Vec<u8>,
}

/// A file that was made and has nothing in it yet.
struct Job {
    folder: Arc<Folder>,
    file: File,
    name: Vec<u8>,
    node: NodeId,
    attributes: Attributes,
    path: Vec<u8>,
}

/// What walks and fills share.
struct Copy<'a> {
    args: &'a Args,
    forest: &'a Forest,
    bar: ProgressBar,
    failures: AtomicU64,
    /// Names of attributes that the destination refused.
    left_out: Mutex<BTreeSet<Vec<u8>>>,
    /// Why nothing more can be written: the destination is full, gone or read-only.
    end: Mutex<Option<anyhow::Error>>,
}

/// Where the walk is. Directories and links are made by the walk itself, in the tree's order; the
/// contents of files come from workers.
struct Walker<'a, 'b> {
    copy: &'b Copy<'a>,
    jobs: mpsc::SyncSender<Job>,
    /// The destination, then the directories down to the present one; `None` where one could not be made.
    folders: Vec<Option<Arc<Folder>>>,
    /// First copy of each node that has several names: path below the destination.
    copied: HashMap<NodeId, Vec<u8>>,
}

impl<'a> Copy<'a> {
    fn new(args: &'a Args, forest: &'a Forest) -> Self {
        let (bar, failures) = (progress::bar(0), AtomicU64::new(0));
        Self { args, forest, bar, failures, left_out: Mutex::default(), end: Mutex::new(None) }
    }

    /// Counts the bytes to come, where someone is looking.
    fn total(&self, top: &Row) {
        if self.bar.is_hidden() {
            return;
        }
        let mut total = 0u64;
        // What cannot be listed is said by the copy itself.
        let _ = walk::walk(self.forest, top.clone(), b"", &mut |step| {
            if let Step::Node(row, _) = step {
                total += self.forest.attributes(row.node).map_or(0, |attributes| attributes.size);
            }
            Ok(())
        });
        progress::set_total(&self.bar, total);
    }

    /// Copies `top` and everything below it into `folder`.
    fn run(&self, top: Row, folder: &Path) -> Result<()> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let file = rustix::fs::open(folder, flags, Mode::empty()).with_context(|| folder.display().to_string())?;
        let root = Arc::new(Folder { file, row: Row { name: Vec::new(), ..top.clone() }, path: Vec::new() });
        let (jobs, waiting) = mpsc::sync_channel(WAITING);
        let waiting = Mutex::new(waiting);
        std::thread::scope(|scope| {
            for _ in 0..cores() {
                scope.spawn(|| self.work(&waiting));
            }
            let mut walker = Walker { copy: self, jobs, folders: vec![Some(root)], copied: HashMap::new() };
            let start = top.name.clone();
            walk::walk(self.forest, top, &start, &mut |step| {
                interrupt::check()?;
                walker.step(step);
                match lock(&self.end).take() {
                    Some(error) => Err(error),
                    None => Ok(()),
                }
            })
        })?;
        self.bar.finish_and_clear();
        let left_out = lock(&self.left_out);
        if !left_out.is_empty() {
            let names: Vec<String> = left_out.iter().map(|name| shown(name)).collect();
            eprintln!("imgfs: left out, as the destination refuses them: the attributes {}", names.join(", "));
        }
        lock(&self.end).take().map_or(Ok(()), Err)
    }

    fn work(&self, waiting: &Mutex<mpsc::Receiver<Job>>) {
        let mut buffer = Vec::new();
        loop {
            let job = lock(waiting).recv();
            let Ok(job) = job else { return };
            if let Err(error) = self.fill(&job, &mut buffer) {
                self.fail(&job.path, error);
            }
            drop(job.file);
            self.release(job.folder);
        }
    }

    /// Says what could not be copied; what no other file would escape ends the whole.
    fn fail(&self, path: &[u8], error: anyhow::Error) {
        if is_destination(&error) || interrupt::is_caught() {
            lock(&self.end).get_or_insert(error.context(shown(path)));
            return;
        }
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.bar.suspend(|| eprintln!("imgfs: {}: {}", shown(path), imgfs::text::tamed(&format!("{error:#}"))));
    }

    /// Whoever is the last to have to do with a directory gives it its own attributes: filling it would
    /// change its times, or be forbidden.
    fn release(&self, folder: Arc<Folder>) {
        if let Some(folder) = Arc::into_inner(folder)
            && !folder.row.name.is_empty()
            && let Err(error) = self.finish(&folder)
        {
            self.fail(&folder.path, error);
        }
    }

    fn finish(&self, folder: &Folder) -> Result<()> {
        let attributes = self.forest.attributes(folder.row.node)?;
        let mode = self.mode(&attributes).unwrap_or(0o777 & !umask());
        rustix::fs::fchmod(&folder.file, Mode::from_raw_mode(mode.into())).map_err(destination)?;
        if self.args.archive {
            self.owner(&folder.file, &attributes)?;
            self.xattrs(folder.row.node, &|name, value| fsetxattr(&folder.file, name, value, XattrFlags::empty()))?;
            rustix::fs::futimens(&folder.file, &timestamps(&attributes)).map_err(destination)?;
        }
        Ok(())
    }

    /// A regular file, holes left as holes. One that cannot be read to its end is taken away again.
    fn fill(&self, job: &Job, buffer: &mut Vec<u8>) -> Result<()> {
        if let Err(error) = self.contents(job, buffer) {
            rustix::fs::unlinkat(&job.folder.file, safe_name(&job.name)?, AtFlags::empty())?;
            return Err(error);
        }
        let usual = if job.attributes.program == Some(true) { 0o777 } else { 0o666 };
        let mode = self.mode(&job.attributes).unwrap_or(usual & !umask());
        if self.args.archive {
            self.owner(&job.file, &job.attributes)?;
            self.xattrs(job.node, &|name, value| fsetxattr(&job.file, name, value, XattrFlags::empty()))?;
        }
        rustix::fs::fchmod(&job.file, Mode::from_raw_mode(mode.into())).map_err(destination)?;
        if self.args.archive {
            rustix::fs::futimens(&job.file, &timestamps(&job.attributes)).map_err(destination)?;
        }
        Ok(())
    }

    /// A large file is read and written on every core.
    fn contents(&self, job: &Job, buffer: &mut Vec<u8>) -> Result<()> {
        let at = Mutex::new(0);
        if job.attributes.size <= LARGE {
            self.pieces(job, &at, buffer)?;
        } else {
            std::thread::scope(|scope| {
                let others: Vec<_> =
                    (1..cores()).map(|_| scope.spawn(|| self.pieces(job, &at, &mut Vec::new()))).collect();
                let own = self.pieces(job, &at, buffer);
                others.into_iter().fold(own, |outcome, other| {
                    outcome
                        .and(other.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a bug in imgfs: please report it"))))
                })
            })?;
        }
        let size = job.attributes.size;
        job.file.set_len(size).map_err(|error| anyhow::Error::new(Destination(error)))
    }

    /// Copies pieces until none is left.
    fn pieces(&self, job: &Job, at: &Mutex<u64>, buffer: &mut Vec<u8>) -> Result<()> {
        loop {
            let piece = self.next_piece(job, at);
            let Some(range) = piece.inspect_err(|_| end(at, job))? else { return Ok(()) };
            self.piece(job, range, buffer).inspect_err(|_| end(at, job))?;
        }
    }

    /// The next bytes that are stored.
    fn next_piece(&self, job: &Job, at: &Mutex<u64>) -> Result<Option<Range<u64>>> {
        interrupt::check()?;
        let mut at = lock(at);
        let size = job.attributes.size;
        while *at < size {
            let start = *at;
            let extent = self.forest.extent(job.node, start)?;
            let mut end = start.saturating_add(extent.len.max(1)).min(size);
            if extent.stored {
                end = end.min(start.saturating_add(PIECE));
                *at = end;
                return Ok(Some(start..end));
            }
            self.bar.inc(end - start);
            *at = end;
        }
        Ok(None)
    }

    fn piece(&self, job: &Job, range: Range<u64>, buffer: &mut Vec<u8>) -> Result<()> {
        let mut offset = range.start;
        while offset < range.end {
            let len = usize::try_from(range.end - offset)?;
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            let piece = buffer.get_mut(..len).context("the buffer is shorter than a piece")?;
            let len = self.forest.read(job.node, piece, offset)?;
            ensure!(len > 0, "the file ends at byte {offset} of {}", job.attributes.size);
            let piece = piece.get(..len).unwrap_or_default();
            job.file.write_all_at(piece, offset).map_err(|error| anyhow::Error::new(Destination(error)))?;
            offset += len as u64;
            self.bar.inc(len as u64);
        }
        Ok(())
    }

    fn owner(&self, file: impl std::os::fd::AsFd, attributes: &Attributes) -> Result<()> {
        match owner(attributes) {
            Some((uid, gid)) if is_root() => rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(destination),
            _ => Ok(()),
        }
    }

    /// Where the destination can hold them: what it refuses for good reasons is left out, and that is said.
    fn xattrs(&self, node: NodeId, set: &dyn Fn(&OsStr, &[u8]) -> rustix::io::Result<()>) -> Result<()> {
        for name in self.forest.xattrs(node)? {
            // Gives a program rights as set-user-id does.
            if name == b"security.capability" && !self.args.special {
                continue;
            }
            let value = match self.forest.xattr(node, &name) {
                // Listed, and shown to nobody: a user's attribute of a link.
                Err(Error::NoAttribute) => continue,
                value => value?,
            };
            match set(OsStr::from_bytes(&name), &value) {
                Ok(()) => {}
                Err(Errno::NOTSUP | Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::NOSYS) => {
                    lock(&self.left_out).insert(name);
                }
                Err(error) => return Err(destination(error)),
            }
        }
        Ok(())
    }

    /// The disk's permission bits, as far as they are wanted.
    fn mode(&self, attributes: &Attributes) -> Option<u16> {
        let bits = attributes.mode?;
        let set_id = if self.args.special { 0o7777 } else { 0o1777 };
        Some(if self.args.archive { bits & set_id } else { bits & 0o777 & !umask() })
    }
}

impl Walker<'_, '_> {
    fn step(&mut self, step: Step<'_>) {
        let copy = self.copy;
        let above = self.folders.last().cloned().flatten();
        let (path, done) = match (step, above) {
            (Step::Leave, above) => {
                self.folders.pop();
                if let Some(folder) = above {
                    copy.release(folder);
                }
                return;
            }
            (Step::Enter(row, path), Some(above)) => {
                let made = enter(&above, row, path);
                let (folder, done) = made.map_or_else(|error| (None, Err(error)), |folder| (Some(folder), Ok(())));
                self.folders.push(folder.map(Arc::new));
                (path, done)
            }
            // That there is no directory for it was said.
            (Step::Enter(..), None) => return self.folders.push(None),
            (Step::Node(..) | Step::Failed(..), None) => return,
            (Step::Failed(_, path, error), _) => (path, Err(error.into())),
            (Step::Node(row, path), Some(above)) => {
                copy.bar.set_message(shown(path));
                (path, self.node(&above, row, path))
            }
        };
        if let Err(error) = done {
            copy.fail(path, error);
        }
    }

    fn node(&mut self, above: &Arc<Folder>, row: &Row, path: &[u8]) -> Result<()> {
        let name = safe_name(&row.name)?;
        let attributes = self.copy.forest.attributes(row.node)?;
        let several_names = attributes.links.is_some_and(|links| links > 1);
        let folder = &above.file;
        match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(destination(error)),
        }
        if self.copy.args.archive
            && several_names
            && let (Some(first), Some(top)) =
                (self.copied.get(&row.node), self.folders.first().and_then(Option::as_ref))
        {
            match rustix::fs::linkat(&top.file, OsStr::from_bytes(first), folder, name, AtFlags::empty()) {
                // Old rules of Landlock let no link lead to another folder: a file of its own then.
                Err(Errno::XDEV) => {}
                linked => return linked.map_err(destination),
            }
        }
        match row.kind {
            Kind::File => self.file(above, row, path, attributes)?,
            Kind::Symlink => {
                let target = self.copy.forest.read_link(row.node)?;
                rustix::fs::symlinkat(OsStr::from_bytes(&target), folder, name).map_err(destination)?;
                if self.copy.args.archive {
                    self.finish_at(folder, name, row.node, &attributes)?;
                }
            }
            _ => self.special(folder, row, name, &attributes)?,
        }
        if several_names {
            self.copied.insert(row.node, path.to_vec());
        }
        Ok(())
    }

    /// A worker fills it, but for one that has other names: they are made from a whole file.
    fn file(&self, above: &Arc<Folder>, row: &Row, path: &[u8], attributes: Attributes) -> Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let private = Mode::RUSR | Mode::WUSR;
        let folder = above.clone();
        let file = rustix::fs::openat(&folder.file, safe_name(&row.name)?, flags, private).map_err(destination)?;
        let several_names = attributes.links.is_some_and(|links| links > 1);
        let (name, path) = (row.name.clone(), path.to_vec());
        let job = Job { folder, file: File::from(file), name, node: row.node, attributes, path };
        if several_names {
            return self.copy.fill(&job, &mut Vec::new());
        }
        self.jobs.send(job).context("nobody is left who would fill it")
    }

    fn special(&self, folder: &OwnedFd, row: &Row, name: &OsStr, attributes: &Attributes) -> Result<()> {
        let kind = row.kind;
        if kind != Kind::Fifo {
            ensure!(self.copy.args.special, "a device node or socket, not made (--special makes it)");
        }
        let (file_type, device) = match (kind, attributes.device) {
            (Kind::Fifo, _) => (FileType::Fifo, 0),
            (Kind::Socket, _) => (FileType::Socket, 0),
            (Kind::CharDevice, Some((major, minor))) => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
            (Kind::BlockDevice, Some((major, minor))) => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
            _ => bail!("a device node without a number"),
        };
        let mode = Mode::from_raw_mode(self.copy.mode(attributes).unwrap_or(0o600).into());
        rustix::fs::mknodat(folder, name, file_type, mode, device).map_err(destination)?;
        if self.copy.args.archive {
            rustix::fs::chmodat(folder, name, mode, AtFlags::empty()).map_err(destination)?;
            self.finish_at(folder, name, row.node, attributes)?;
        }
        Ok(())
    }

    /// Owner, attributes and times of what cannot be opened.
    fn finish_at(&self, folder: &OwnedFd, name: &OsStr, node: NodeId, attributes: &Attributes) -> Result<()> {
        if let (true, Some((uid, gid))) = (is_root(), owner(attributes)) {
            rustix::fs::chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(destination)?;
        }
        // The node itself, whatever its name leads to by then: no other call reaches a link's attributes.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let itself = rustix::fs::openat(folder, name, flags, Mode::empty()).map_err(destination)?;
        let path = format!("/proc/self/fd/{}", itself.as_raw_fd());
        self.copy.xattrs(node, &|name, value| rustix::fs::setxattr(&path, name, value, XattrFlags::empty()))?;
        rustix::fs::utimensat(folder, name, &timestamps(attributes), AtFlags::SYMLINK_NOFOLLOW).map_err(destination)
    }
}

/// Makes a directory, or takes the one that is there; the image's root is the destination itself.
fn enter(above: &Folder, row: &Row, path: &[u8]) -> Result<Folder> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let file = if row.name.is_empty() {
        rustix::fs::openat(&above.file, ".", flags, Mode::empty())?
    } else {
        let name = safe_name(&row.name)?;
        match rustix::fs::mkdirat(&above.file, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(destination(error)),
        }
        rustix::fs::openat(&above.file, name, flags, Mode::empty()).map_err(|error| match error {
            // Not followed, and not replaced by a directory either.
            Errno::NOTDIR | Errno::LOOP => anyhow::anyhow!("something that is no directory is there already"),
            error => destination(error),
        })?
    };
    Ok(Folder { file, row: row.clone(), path: path.to_vec() })
}

/// Lets no worker begin another piece.
fn end(at: &Mutex<u64>, job: &Job) {
    *lock(at) = job.attributes.size;
}

/// A failure of the place that is written to, not of the image.
#[derive(Debug)]
struct Destination(std::io::Error);

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "writing: {}", self.0)
    }
}

impl std::error::Error for Destination {}

fn destination(error: Errno) -> anyhow::Error {
    anyhow::Error::new(Destination(error.into()))
}

/// Whether the destination fails in a way that no other file would escape.
fn is_destination(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let source = error.downcast_ref::<Destination>();
    source.is_some_and(|Destination(error)| matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem))
}

/// A name as the forest gives it can stand in a path; this is the last look before the host sees it.
fn safe_name(name: &[u8]) -> Result<&OsStr> {
    let unsafe_name = matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, b'/' | 0));
    if unsafe_name { Err(Error::Invalid.into()) } else { Ok(OsStr::from_bytes(name)) }
}

fn owner(attributes: &Attributes) -> Option<(Uid, Gid)> {
    Some((Uid::from_raw(attributes.uid?), Gid::from_raw(attributes.gid?)))
}

fn timestamps(attributes: &Attributes) -> Timestamps {
    let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let spec = |time: Option<Timestamp>| {
        time.map_or(omit, |time| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() })
    };
    let accessed = attributes.accessed.or(attributes.modified);
    Timestamps { last_access: spec(accessed), last_modification: spec(attributes.modified) }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The caller's umask, which can only be read by setting it: done once, before there are threads.
pub fn umask() -> u16 {
    static UMASK: std::sync::OnceLock<u16> = std::sync::OnceLock::new();
    *UMASK.get_or_init(|| {
        let mask = rustix::process::umask(Mode::empty());
        rustix::process::umask(mask);
        u16::try_from(mask.as_raw_mode() & 0o777).unwrap_or(0o077)
    })
}

fn shown(path: &[u8]) -> String {
    imgfs::text::printable(path)
}
