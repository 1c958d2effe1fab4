//! `imgfs cp`: extraction.
//!
//! Nothing is ever written outside of the destination: each directory is opened beneath the one
//! before it without following links, each file is made anew. Device nodes, sockets and set-id
//! bits come over only with `--special`.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use imgfs::error::Error;
use imgfs::filesystem::{Attributes, FileSystem, Kind, NodeId, Timestamp};
use imgfs::forest::Forest;
use indicatif::ProgressBar;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::edit::{self, EditArgs};
use super::target::Target;
use super::walk::{self, Row, Step};
use super::{Outcome, progress};

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;

#[derive(clap::Args)]
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
    #[arg(required = true, num_args = 2.., value_name = "IMAGE:/PATH... DEST | FILE... IMAGE:/PATH")]
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
    confine(args, sources, &if into { dest.to_owned() } else { split(dest)?.0 })?;
    let mut outcome = Outcome::Complete;
    for text in sources {
        let target = Target::parse(text)?;
        let image = target.open(&args.edit.image)?;
        let forest = image.forest();
        let node = target.find(&image, &forest)?;
        let kind = forest.attributes(node)?.kind;
        ensure!(
            kind != Kind::Directory || args.recursive || args.archive,
            "{} is a directory: add -r or -a",
            text.display()
        );
        let (folder, name) = match (into, target.name()) {
            (true, Some(name)) => (dest.to_owned(), Some(name)),
            (true, None) => (dest.to_owned(), None),
            (false, _) => split(dest)?,
        };
        let mut copy = Copy::new(args, &forest, &folder)?;
        copy.total(node, kind);
        copy.run(Row { node, name: name.map(OsString::into_encoded_bytes).unwrap_or_default(), kind })?;
        if copy.failures > 0 {
            outcome = Outcome::Partial;
        }
    }
    Ok(outcome)
}

/// Gives up all rights but those to read the images and to fill the destination.
fn confine(args: &Args, sources: &[OsString], dest: &Path) -> Result<()> {
    let mut sandbox = args.edit.image.sandbox()?;
    for source in sources {
        sandbox.image(&Target::parse(source)?.image);
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

struct Copy<'a> {
    args: &'a Args,
    forest: &'a Forest,
    /// The destination, then the open directories down to the present one.
    folders: Vec<OwnedFd>,
    /// First copy of each node that has several names: path below the destination.
    copied: HashMap<NodeId, Vec<u8>>,
    buffer: Vec<u8>,
    bar: ProgressBar,
    failures: u64,
}

impl<'a> Copy<'a> {
    fn new(args: &'a Args, forest: &'a Forest, folder: &Path) -> Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let top = rustix::fs::open(folder, flags, Mode::empty()).with_context(|| folder.display().to_string())?;
        let bar = progress::bar(0);
        let (folders, copied) = (vec![top], HashMap::new());
        Ok(Self { args, forest, folders, copied, buffer: vec![0; PIECE], bar, failures: 0 })
    }

    /// Counts the bytes to come, where someone is looking.
    fn total(&mut self, node: NodeId, kind: Kind) {
        if self.bar.is_hidden() {
            return;
        }
        let mut total = 0u64;
        let top = Row { node, name: Vec::new(), kind };
        // What cannot be listed is said by the copy itself.
        let _ = walk::walk(self.forest, top, b"", &mut |step| {
            if let Step::Node(row, _) = step {
                total += self.forest.attributes(row.node).map_or(0, |attributes| attributes.size);
            }
            Ok(())
        });
        self.bar.set_length(total);
    }

    fn run(&mut self, top: Row) -> Result<()> {
        let forest = self.forest;
        let start = top.name.clone();
        walk::walk(forest, top, &start, &mut |step| {
            match step {
                Step::Enter(row, path) => self.enter(row).with_context(|| shown(path))?,
                Step::Leave(row, path) => self.leave(row).with_context(|| shown(path))?,
                Step::Failed(_, path, error) => self.fail(path, &error.into()),
                Step::Node(row, path) => {
                    self.bar.set_message(shown(path));
                    match self.node(row, path) {
                        // The destination is full, gone or read-only: nothing more would work.
                        Err(error) if is_destination(&error) => return Err(error.context(shown(path))),
                        Err(error) => self.fail(path, &error),
                        Ok(()) => {}
                    }
                }
            }
            Ok(())
        })?;
        self.bar.finish_and_clear();
        Ok(())
    }

    fn fail(&mut self, path: &[u8], error: &anyhow::Error) {
        self.failures += 1;
        self.bar.suspend(|| eprintln!("imgfs: {}: {}", shown(path), imgfs::text::tamed(&format!("{error:#}"))));
    }

    fn folder(&self) -> Result<&OwnedFd> {
        self.folders.last().context("the destination is not open")
    }

    /// Makes a directory, or takes the one that is there; the image's root is the destination itself.
    fn enter(&mut self, row: &Row) -> Result<()> {
        let parent = self.folder()?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let opened = if row.name.is_empty() {
            rustix::fs::openat(parent, ".", flags, Mode::empty())?
        } else {
            let name = safe_name(&row.name)?;
            match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(destination(error)),
            }
            rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(destination)?
        };
        self.folders.push(opened);
        Ok(())
    }

    /// A directory's own attributes come last: filling it would change its times, or be forbidden.
    fn leave(&mut self, row: &Row) -> Result<()> {
        let folder = self.folders.pop().context("the destination is not open")?;
        let attributes = self.forest.attributes(row.node)?;
        let mode = self.mode(&attributes).unwrap_or(0o777 & !umask());
        if !row.name.is_empty() {
            rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode.into())).map_err(destination)?;
        }
        if self.args.archive && !row.name.is_empty() {
            self.owner(&folder, &attributes)?;
            self.xattrs(&folder, row.node)?;
            rustix::fs::futimens(&folder, &timestamps(&attributes)).map_err(destination)?;
        }
        Ok(())
    }

    fn node(&mut self, row: &Row, path: &[u8]) -> Result<()> {
        let name = safe_name(&row.name)?;
        let attributes = self.forest.attributes(row.node)?;
        let several_names = attributes.links.is_some_and(|links| links > 1);
        let folder = self.folder()?;
        match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(destination(error)),
        }
        if self.args.archive
            && several_names
            && let (Some(first), Some(top)) = (self.copied.get(&row.node), self.folders.first())
        {
            match rustix::fs::linkat(top, OsStr::from_bytes(first), folder, name, AtFlags::empty()) {
                // Old rules of Landlock let no link lead to another folder: a file of its own then.
                Err(Errno::XDEV) => {}
                linked => return linked.map_err(destination),
            }
        }
        match row.kind {
            Kind::File => self.file(row.node, name, &attributes)?,
            Kind::Symlink => {
                let target = self.forest.read_link(row.node)?;
                rustix::fs::symlinkat(OsStr::from_bytes(&target), folder, name).map_err(destination)?;
                if self.args.archive {
                    self.finish_at(name, &attributes)?;
                }
            }
            _ => self.special(row.kind, name, &attributes)?,
        }
        if several_names {
            self.copied.insert(row.node, path.to_vec());
        }
        Ok(())
    }

    /// A regular file, holes left as holes. One that cannot be read to its end is taken away again.
    fn file(&mut self, node: NodeId, name: &OsStr, attributes: &Attributes) -> Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let private = Mode::RUSR | Mode::WUSR;
        let file = File::from(rustix::fs::openat(self.folder()?, name, flags, private).map_err(destination)?);
        if let Err(error) = self.contents(node, &file, attributes.size) {
            drop(file);
            rustix::fs::unlinkat(self.folder()?, name, AtFlags::empty())?;
            return Err(error);
        }
        let mode = self.mode(attributes).unwrap_or(0o666 & !umask());
        if self.args.archive {
            self.owner(&file, attributes)?;
            self.xattrs(&file, node)?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode.into())).map_err(destination)?;
        if self.args.archive {
            rustix::fs::futimens(&file, &timestamps(attributes)).map_err(destination)?;
        }
        Ok(())
    }

    fn contents(&mut self, node: NodeId, file: &File, size: u64) -> Result<()> {
        let mut offset = 0u64;
        while offset < size {
            let extent = self.forest.extent(node, offset)?;
            let end = offset.saturating_add(extent.len.max(1)).min(size);
            if !extent.stored {
                self.bar.inc(end - offset);
                offset = end;
                continue;
            }
            while offset < end {
                let len = usize::try_from(end - offset).unwrap_or(PIECE).min(PIECE);
                let piece = self.buffer.get_mut(..len).context("the buffer is shorter than a piece")?;
                let len = self.forest.read(node, piece, offset)?;
                ensure!(len > 0, "the file ends at byte {offset} of {size}");
                let piece = piece.get(..len).unwrap_or_default();
                file.write_all_at(piece, offset).map_err(|error| anyhow::Error::new(Destination(error)))?;
                offset += len as u64;
                self.bar.inc(len as u64);
            }
        }
        file.set_len(size).map_err(|error| anyhow::Error::new(Destination(error)))
    }

    fn special(&mut self, kind: Kind, name: &OsStr, attributes: &Attributes) -> Result<()> {
        if kind != Kind::Fifo {
            ensure!(self.args.special, "a device node or socket, not made (--special makes it)");
        }
        let (file_type, device) = match (kind, attributes.device) {
            (Kind::Fifo, _) => (FileType::Fifo, 0),
            (Kind::Socket, _) => (FileType::Socket, 0),
            (Kind::CharDevice, Some((major, minor))) => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
            (Kind::BlockDevice, Some((major, minor))) => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
            _ => bail!("a device node without a number"),
        };
        let mode = Mode::from_raw_mode(self.mode(attributes).unwrap_or(0o600).into());
        rustix::fs::mknodat(self.folder()?, name, file_type, mode, device).map_err(destination)?;
        if self.args.archive {
            rustix::fs::chmodat(self.folder()?, name, mode, AtFlags::empty()).map_err(destination)?;
            self.finish_at(name, attributes)?;
        }
        Ok(())
    }

    /// Owner and times of what cannot be opened.
    fn finish_at(&self, name: &OsStr, attributes: &Attributes) -> Result<()> {
        let folder = self.folder()?;
        if let (true, Some((uid, gid))) = (is_root(), owner(attributes)) {
            rustix::fs::chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(destination)?;
        }
        rustix::fs::utimensat(folder, name, &timestamps(attributes), AtFlags::SYMLINK_NOFOLLOW).map_err(destination)
    }

    fn owner(&self, file: impl std::os::fd::AsFd, attributes: &Attributes) -> Result<()> {
        match owner(attributes) {
            Some((uid, gid)) if is_root() => rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(destination),
            _ => Ok(()),
        }
    }

    /// Where the destination can hold them: what it refuses for good reasons is left out.
    fn xattrs(&mut self, file: impl std::os::fd::AsFd, node: NodeId) -> Result<()> {
        for name in self.forest.xattrs(node)? {
            // Gives a program rights as set-user-id does.
            if name == b"security.capability" && !self.args.special {
                continue;
            }
            let value = self.forest.xattr(node, &name)?;
            match rustix::fs::fsetxattr(&file, OsStr::from_bytes(&name), &value, XattrFlags::empty()) {
                Ok(()) | Err(Errno::NOTSUP | Errno::PERM | Errno::ACCESS | Errno::INVAL) => {}
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
