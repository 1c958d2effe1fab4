//! Containers: the format of the host file, and the disk inside it.
//!
//! A format is recognised by its bytes, never by its name (pieces of a split raw image, and files that
//! stand for a whole folder, are the exceptions: they have no magic number). What it refers to (segments, extents, parents) is opened
//! through [`Companions`] alone.
//!
//! ```text
//!   open -> split? -> probe FORMATS -> open of the format -> Opened { disk, facts, notes }
//!                                        |  Companions::open       segments, extents
//!                                        +- Companions::open_disk  parents, each through all of this again
//! ```

mod aff;
mod bad;
mod bz2;
mod ccd;
mod chd;
mod clonezilla;
mod compressed;
mod cqm;
mod cso;
mod cue;
mod d64;
mod dc42;
mod ddrescue;
mod disc;
mod dmg;
mod dsk;
mod ewf;
mod files;
mod floppy;
mod flux;
mod foreign;
mod gdi;
mod gz;
mod imd;
mod imz;
mod mds;
mod msa;
mod nrg;
mod ntfsclone;
mod parallels;
mod parent;
mod partclone;
mod qcow;
mod qcow2;
mod rawcd;
mod sparsebundle;
mod sparseimage;
mod split;
mod table;
mod td0;
mod toc;
mod twoimg;
mod unpack;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;
mod xz;
mod zst;

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsStr;
use std::fmt;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::cache::lock;
use crate::check::{Check, MAX_FAULTS};
use crate::device::file::HostFile;
use crate::device::mapped::{Mapped, RunList};
use crate::device::memory::Memory;
use crate::device::{BlockDevice, Device};
use crate::error::{Error, Result};
use crate::text::printable;

/// What a user can say about how containers are read.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The format's name, when it is not to be probed; `raw` included.
    pub format: Option<String>,
    /// An internal snapshot, by identifier or name.
    pub snapshot: Option<String>,
    /// Bound on the decoded units that a container keeps, bytes.
    pub cache_size: u64,
    /// Refuses what needs a spool: a temporary file for images that unpack only from their start.
    pub no_spool: bool,
    /// Bound on the bytes of such a spool; 64 GiB when `None`. Zeros are not counted.
    pub spool_max: Option<u64>,
    /// Where indexes are kept and spools are made; `$XDG_CACHE_HOME/imgfs` or `~/.cache/imgfs` when `None`.
    pub cache_folder: Option<PathBuf>,
    /// Told about work that takes long.
    pub progress: Option<Progress>,
    /// Which disk of an image that holds several, from 1; the first one when `None`.
    pub disk: Option<u32>,
    /// GNU ddrescue's map of the image, when it does not lie beside it.
    pub map: Option<PathBuf>,
    /// The base of one of our overlays is taken although it is not the one that the overlay was made for.
    pub force_base: bool,
    /// Ranges that could not be read when the image was made are zeros, not errors.
    pub bad_as_zeros: bool,
    /// Folders below which references are followed as well: beside the image alone when empty.
    pub references: Vec<PathBuf>,
    /// Wrappers taken off so far, 0 for a caller: a file can be made to hold itself.
    pub wrappers: u32,
    /// Where the files are noted that are opened.
    pub files: Files,
}

/// The host files that an image is made of: itself, and what it was found to refer to so far.
#[derive(Debug, Clone, Default)]
pub struct Files(Arc<Mutex<BTreeSet<PathBuf>>>);

impl Files {
    fn add(&self, path: &Path) {
        lock(&self.0).insert(path.to_owned());
    }

    /// Their paths, in order.
    pub fn all(&self) -> Vec<PathBuf> {
        lock(&self.0).iter().cloned().collect()
    }
}

/// The folder for indexes and spools, made if need be; `None` when there is no home, or no way to make it.
pub fn cache_folder(options: &Options) -> Option<PathBuf> {
    compressed::index::folder(options)
}

/// A hook that is told how far an image is read or unpacked: what is done, bytes, bytes in all.
/// Called from any thread, often; it must return at once.
#[derive(Clone)]
pub struct Progress(pub Arc<dyn Fn(&'static str, u64, u64) + Send + Sync>);

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

impl Options {
    fn report(&self, what: &'static str, done: u64, total: u64) {
        if let Some(Progress(hook)) = &self.progress {
            hook(what, done, total);
        }
    }
}

/// A container that was opened.
pub struct Opened {
    /// The disk inside it.
    pub disk: Device,
    /// Name of the format, as in [`FORMATS`]; `raw` when there is none around the disk.
    pub format: &'static str,
    /// Facts for `info`, in order: name, value. A name may come more than once (snapshots, parents).
    pub facts: Vec<(&'static str, String)>,
    /// What an examiner should know: a dirty bit, a missing checksum.
    pub notes: Vec<String>,
    /// The tracks of sound of a disc.
    pub tracks: Vec<SoundTrack>,
    /// What the container says about itself that can be proven.
    pub checks: Vec<Check>,
}

/// A track of sound.
pub struct SoundTrack {
    /// From 1.
    pub number: u32,
    /// From 1.
    pub session: u32,
    /// The bytes of a WAV file: 44,100 pairs of 16-bit samples a second.
    pub device: Device,
}

impl Opened {
    fn new(format: &'static str, disk: Device) -> Self {
        Self { disk, format, facts: Vec::new(), notes: Vec::new(), tracks: Vec::new(), checks: Vec::new() }
    }

    /// The first value of a fact.
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.facts.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    fn add(&mut self, name: &'static str, value: impl ToString) {
        self.facts.push((name, value.to_string()));
    }

    /// Says that the disk continues in `parent`, and takes over what is known of the chain behind it.
    fn add_parent(&mut self, name: &Path, parent: &Opened) {
        let shown = printable(name.as_os_str().as_encoded_bytes());
        self.add("parent", format!("{shown} ({}, {} bytes)", parent.format, parent.disk.size()));
        self.facts.extend(parent.facts.iter().filter(|(name, _)| *name == "parent").cloned());
        self.notes.extend(parent.notes.iter().map(|note| format!("{shown}: {note}")));
    }
}

/// A container format, as the table knows it.
pub struct ContainerFormat {
    /// Name in messages, `--format` and `--json`.
    pub name: &'static str,
    /// Whether [`Options::snapshot`] means anything to it; asked of another format, it is refused.
    pub snapshots: bool,
    /// Reads little and follows no reference; says whether the file is of this format.
    pub probe: fn(&dyn BlockDevice, &dyn Companions) -> Result<bool>,
    /// Opens it with all that it refers to.
    pub open: fn(Device, &dyn Companions, &Options) -> Result<Opened>,
}

/// In probe order; raw is the fallback, outside the table.
pub const FORMATS: &[ContainerFormat] = &[
    // By name, and first: the other formats are then tried on the pieces put together.
    split::FORMAT,
    // By a map beside the image, which says what of the bytes can be believed, whatever they are.
    ddrescue::FORMAT,
    // By the names of the files around it: folders.
    clonezilla::FORMAT,
    sparsebundle::FORMAT,
    // These have their magic number in the first bytes, which no guest can write.
    qcow2::FORMAT,
    qcow::FORMAT,
    vhdx::FORMAT,
    vmdk::FORMAT,
    parallels::FORMAT,
    parallels::BUNDLE,
    vdi::FORMAT,
    ewf::FORMAT,
    sparseimage::FORMAT,
    aff::FORMAT,
    chd::FORMAT,
    cso::FORMAT,
    cso::DAX,
    mds::FORMAT,
    ccd::FORMAT,
    partclone::FORMAT,
    ntfsclone::FORMAT,
    imd::FORMAT,
    dsk::FORMAT,
    twoimg::FORMAT,
    imz::FORMAT,
    // Short magic numbers, with a checksum or a geometry that must fit.
    td0::FORMAT,
    cqm::FORMAT,
    msa::FORMAT,
    // Refused by name; otherwise they would be raw disks.
    flux::FORMAT,
    // A fixed VHD has only a footer; what stands before it is the guest's and could look like anything.
    vhd::FORMAT,
    // Only a footer again, which must lead to a chunk that is known.
    nrg::FORMAT,
    // And here: a trailer, behind data that may begin like a compressed file (they are its runs).
    dmg::FORMAT,
    // Texts that describe a disc, known by their first words; then the sync pattern of raw sectors,
    // which no boot sector begins with.
    cue::FORMAT,
    toc::FORMAT,
    gdi::FORMAT,
    rawcd::FORMAT,
    // Compressed disks: short magic numbers at the start, so after all that a trailer or a longer
    // number tells; the other formats are then tried on the disk that comes out.
    xz::FORMAT,
    zst::FORMAT,
    gz::FORMAT,
    bz2::FORMAT,
    // Refused by name: other packers, archives and disks, whose bytes are of no use as a raw disk.
    foreign::FORMAT,
    foreign::TRAILED,
    // Two bytes of magic and sizes that must add up to the file's: last of those with a header.
    dc42::FORMAT,
    // By the size of the file and the bytes at its end alone.
    d64::FORMAT,
    // A tar around a VMDK; its magic number is at byte 257, where a boot sector has code.
    vmdk::OVA,
];

/// The one gate through which an image's references to other files pass. Images are untrusted: a
/// reference leads to a file in the image's own folder (or below one that the user named), no link
/// is followed on the way, and chains are bounded.
pub trait Companions {
    /// File name of the image itself.
    fn own_name(&self) -> &OsStr;
    /// Opens the bytes of a file beside the image.
    fn open(&self, name: &Path) -> Result<Device>;
    /// Opens the disk inside a container beside the image; `format` when the image says which.
    fn open_disk(&self, name: &Path, format: Option<&str>) -> Result<Opened>;
    /// Names of the files beside the image.
    fn siblings(&self) -> Result<Vec<PathBuf>>;
    /// Whole paths of the files below the folders that the user named.
    fn allowed(&self) -> Vec<PathBuf>;
    /// Names of the files in a folder beside the image.
    fn inside(&self, folder: &Path) -> Result<Vec<PathBuf>>;
    /// Opens the bytes of a file in a folder beside the image.
    fn open_inside(&self, folder: &Path, name: &Path) -> Result<Device>;
    /// GNU ddrescue's map that the user named.
    fn map(&self) -> Option<(PathBuf, Device)>;
}

/// So many bytes that are not stored anywhere.
fn zeros(size: u64) -> Device {
    let nothing: Device = Arc::new(Memory::new(Vec::new(), 512));
    Arc::new(Mapped::new(Arc::new(RunList::new(size)), nothing, None, 512, 0))
}

/// The disk that the user wants of several, and how many there are, for `info`.
fn choose<'a, T>(
    format: &'static str,
    disks: &'a [T],
    options: &Options,
) -> Result<(&'a T, Option<(&'static str, String)>)> {
    let number = options.disk.unwrap_or(1);
    let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
    let disk = index.and_then(|index| disks.get(index));
    let disk =
        disk.ok_or_else(|| Error::unsupported(format, format!("the disk {number} (there are {})", disks.len())))?;
    let several = disks.len() > 1 || options.disk.is_some();
    Ok((disk, several.then(|| (CHOICE, format!("{number} of {}", disks.len())))))
}

/// The fact by which it is known that there was a choice.
const CHOICE: &str = "shown disk";

/// The file that one of these paths means. Paths of Windows and of other machines are worth their last
/// component, the name of a file beside the image; Windows does not tell `A` from `a`. When there is no
/// such file the whole path may lead below a folder that the user named; otherwise it is the first path's
/// name, so that opening it says what is missing.
fn beside(companions: &dyn Companions, paths: &[String]) -> Result<PathBuf> {
    let siblings = companions.siblings()?;
    let names = || paths.iter().filter_map(|path| path.rsplit(['\\', '/']).next()).filter(|name| !name.is_empty());
    for name in names() {
        let exact = siblings.iter().find(|sibling| sibling.as_os_str() == name);
        let found = exact.or_else(|| siblings.iter().find(|sibling| sibling.as_os_str().eq_ignore_ascii_case(name)));
        if let Some(found) = found {
            return Ok(found.clone());
        }
    }
    // A path with a drive's letter is of another machine.
    let whole = paths.iter().filter(|path| path.contains(['\\', '/']) && !path.contains(':'));
    let whole = whole.map(|path| PathBuf::from(path.replace('\\', "/"))).find(|path| companions.open(path).is_ok());
    Ok(whole.unwrap_or_else(|| PathBuf::from(names().next().unwrap_or_default())))
}

/// Longest chain of images that refer to each other: more than any tool makes, far less than the stack.
const MAX_DEPTH: usize = 64;
/// Files below the folders that the user named which are looked at, and how deep: a home's machines.
const MAX_ALLOWED: usize = 10_000;
const MAX_ALLOWED_DEPTH: usize = 8;
/// How often a file is opened anew that was moved meanwhile.
const MAX_TRIES: usize = 8;

/// The files beside one image.
struct Folder<'a> {
    path: &'a Path,
    options: &'a Options,
    depth: usize,
    map: Option<(PathBuf, Device)>,
}

/// A file that a reference means: a folder, and the way from there.
struct Found {
    folder: PathBuf,
    within: PathBuf,
}

impl Folder<'_> {
    fn refused(&self, name: &Path, why: &str) -> Error {
        let shown = printable(name.as_os_str().as_encoded_bytes());
        let source = std::io::Error::new(ErrorKind::PermissionDenied, why.to_owned());
        Error::io(format!("{}: it refers to {shown}", self.path.display()), source)
    }

    /// The file that is meant: a plain name, or a path that leads into the image's folder; or below a
    /// folder that the user named.
    fn find(&self, name: &Path) -> Result<Found> {
        let outside = || self.refused(name, "only files in the image's own folder are opened (--allow-references DIR)");
        let plain = name.file_name().filter(|plain| !plain.is_empty()).ok_or_else(outside)?;
        let own = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let beside = match name.parent() {
            Some(folder) if folder.is_absolute() => std::path::absolute(own).is_ok_and(|own| own == folder),
            Some(folder) => folder.components().all(|part| part == Component::CurDir),
            None => false,
        };
        if beside {
            return Ok(Found { folder: own.to_owned(), within: plain.into() });
        }
        let whole = match own.canonicalize() {
            Ok(own) => without_dots(&own.join(name)),
            Err(_) => return Err(outside()),
        };
        for allowed in &self.options.references {
            let Ok(folder) = allowed.canonicalize() else { continue };
            if let Ok(within) = whole.strip_prefix(&folder) {
                return Ok(Found { within: within.to_owned(), folder });
            }
        }
        Err(outside())
    }

    /// The path of a folder beside the image.
    fn folder(&self, name: &Path) -> Result<PathBuf> {
        let found = self.find(name)?;
        let path = found.folder.join(&found.within);
        let io = |source| Error::io(path.display().to_string(), source);
        let found = std::fs::symlink_metadata(&path).map_err(io)?;
        if found.is_symlink() {
            return Err(self.refused(name, A_LINK));
        }
        if found.is_dir() { Ok(path) } else { Err(io(ErrorKind::NotADirectory.into())) }
    }

    /// Opens what was found: the kernel sees to it that the way stays below the folder.
    fn open_found(&self, name: &Path, found: &Found) -> Result<Device> {
        let path = found.folder.join(&found.within);
        let io = |error: Errno| match error {
            Errno::LOOP => self.refused(name, A_LINK),
            Errno::XDEV => self.refused(name, "it leads out of the folder"),
            Errno::NOENT => {
                let missing = printable(found.within.as_os_str().as_encoded_bytes());
                let what = format!("{}: it needs the file {missing} in its folder", self.path.display());
                Error::io(what, error.into())
            }
            error => Error::io(path.display().to_string(), error.into()),
        };
        let folder = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH;
        let folder = rustix::fs::open(&found.folder, folder, Mode::empty()).map_err(io)?;
        let file = open_beneath(&folder, &found.within).map_err(io)?;
        self.options.files.add(&path);
        Ok(Arc::new(HostFile::from_file(file.into(), path.display().to_string())?))
    }
}

/// Why a reference is not followed.
const A_LINK: &str = "it is a symbolic link, which could lead anywhere";

/// A path without `.` and `..`, by its words alone: no link is followed later, either.
fn without_dots(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            part => out.push(part),
        }
    }
    out
}

/// Opens a file below a folder to be read, and follows no link.
fn open_beneath(folder: &OwnedFd, within: &Path) -> std::result::Result<OwnedFd, Errno> {
    // Non-blocking, so that a named pipe is refused later and not waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..MAX_TRIES {
        match rustix::fs::openat2(folder, within, flags, Mode::empty(), resolve) {
            // Something on the way was renamed just then.
            Err(Errno::AGAIN) => {}
            // Linux before 5.6, or a container that does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => return open_step_by_step(folder, within, flags),
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

/// The same where the kernel cannot do it at once.
fn open_step_by_step(folder: &OwnedFd, within: &Path, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    let mut at = rustix::io::fcntl_dupfd_cloexec(folder, 0)?;
    let mut parts = within.components().peekable();
    while let Some(part) = parts.next() {
        let Component::Normal(name) = part else { return Err(Errno::XDEV) };
        if parts.peek().is_none() {
            return rustix::fs::openat(&at, name, flags | OFlags::NOFOLLOW, Mode::empty());
        }
        let folder = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::PATH;
        at = rustix::fs::openat(&at, name, folder, Mode::empty())?;
    }
    Err(Errno::NOENT)
}

impl Companions for Folder<'_> {
    fn own_name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    fn open(&self, name: &Path) -> Result<Device> {
        self.open_found(name, &self.find(name)?)
    }

    fn open_disk(&self, name: &Path, format: Option<&str>) -> Result<Opened> {
        let found = self.find(name)?;
        if self.depth >= MAX_DEPTH {
            let what = format!("a chain of more than {MAX_DEPTH} images (or one that leads back to itself)");
            return Err(Error::unsupported("container", what));
        }
        let device = self.open_found(name, &found)?;
        let path = found.folder.join(&found.within);
        let options = Options { format: format.map(str::to_owned), snapshot: None, ..self.options.clone() };
        let depth = self.depth.saturating_add(1);
        let companions = Folder { path: &path, options: &options, depth, map: None };
        open_device(device, &companions, &options)
    }

    fn siblings(&self) -> Result<Vec<PathBuf>> {
        names(match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        })
    }

    fn allowed(&self) -> Vec<PathBuf> {
        let folders = self.options.references.iter().filter_map(|folder| folder.canonicalize().ok());
        let mut found = Vec::new();
        let mut folders: VecDeque<(PathBuf, usize)> = folders.map(|folder| (folder, 0)).collect();
        while let Some((folder, depth)) = folders.pop_front() {
            // One that cannot be listed may still be led into by name.
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                if found.len() >= MAX_ALLOWED {
                    return found;
                }
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() && depth < MAX_ALLOWED_DEPTH => {
                        folders.push_back((entry.path(), depth.saturating_add(1)));
                    }
                    Ok(kind) if kind.is_file() => found.push(entry.path()),
                    // Links are not followed.
                    _ => {}
                }
            }
        }
        found
    }

    fn inside(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        names(&self.folder(folder)?)
    }

    fn open_inside(&self, folder: &Path, name: &Path) -> Result<Device> {
        let Found { folder, within } = self.find(folder)?;
        match name.file_name().filter(|plain| *plain == name.as_os_str()) {
            Some(plain) => self.open_found(name, &Found { folder, within: within.join(plain) }),
            None => Err(self.refused(name, "only files in the image's own folder are opened")),
        }
    }

    fn map(&self) -> Option<(PathBuf, Device)> {
        self.map.clone()
    }
}

fn names(folder: &Path) -> Result<Vec<PathBuf>> {
    let io = |source| Error::io(folder.display().to_string(), source);
    let names = std::fs::read_dir(folder).map_err(io)?.map(|entry| Ok(PathBuf::from(entry.map_err(io)?.file_name())));
    names.collect()
}

/// Files that stand for the whole folder which they are in.
const DESCRIPTIONS: [&str; 4] = ["DiskDescriptor.xml", sparsebundle::NAME, clonezilla::NAMES[0], clonezilla::NAMES[1]];

/// Opens the container in a host file and gives the disk inside. A folder that is one disk (a
/// Parallels `.hdd` bundle, a sparse bundle, what Clonezilla saved) is opened through the file in it
/// that describes it.
pub fn open(path: &Path, options: &Options) -> Result<Opened> {
    let described = DESCRIPTIONS.iter().map(|name| path.join(name)).find(|path| path.is_file());
    let path = described.as_deref().unwrap_or(path);
    let device: Device = Arc::new(HostFile::open(path)?);
    options.files.add(path);
    let map = match &options.map {
        Some(map) => Some((map.clone(), Arc::new(HostFile::open(map)?) as Device)),
        None => None,
    };
    let mut opened = open_device(device.clone(), &Folder { path, options, depth: 0, map }, options)?;
    if opened.format == "raw" && options.format.is_none() {
        opened.notes.extend(split::link_to_piece(path));
    }
    if options.disk.is_some() && opened.fact(CHOICE).is_none() {
        return Err(Error::unsupported(opened.format, "a choice of disks: it holds one"));
    }
    opened.add("file size", format!("{} bytes", device.size()));
    if device.size() == 0 {
        opened.notes.push("the image is empty (0 bytes)".to_owned());
    }
    if let Some(metadata) = device.host_file().and_then(|span| span.file.metadata().ok()).filter(Metadata::is_file) {
        // The unit of st_blocks is 512 bytes on every file system.
        opened.add("room on the host", format!("{} bytes", metadata.blocks().saturating_mul(512)));
    }
    Ok(opened)
}

fn open_device(device: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    match options.format.as_deref() {
        // Whatever it is said to be: what the map says of its bytes holds.
        Some(name) if companions.map().is_some() && name != ddrescue::FORMAT.name => {
            ddrescue::open_as(name, device, companions, options)
        }
        Some("raw") => open_raw(device, options),
        Some(name) => {
            let known = FORMATS.iter().find(|format| format.name == name);
            let format = known.ok_or_else(|| Error::unsupported("container", format!("the format {name}")))?;
            open_as(format, device, companions, options)
        }
        None => open_within(&[], device, companions, options),
    }
}

/// Most wrappers around one disk: a split, compressed, zipped image has three.
const MAX_WRAPPERS: u32 = 4;

/// Probes for every format but those already taken off. The number of wrappers is bounded as well,
/// as two of them can be made to hold each other for ever.
fn open_within(outer: &[&str], device: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    if options.wrappers > MAX_WRAPPERS {
        return Err(Error::unsupported("container", format!("a disk inside more than {MAX_WRAPPERS} wrappers")));
    }
    let options = &Options { wrappers: options.wrappers.saturating_add(1), ..options.clone() };
    for format in FORMATS.iter().filter(|format| !outer.contains(&format.name)) {
        if (format.probe)(device.as_ref(), companions)? {
            return open_as(format, device, companions, options);
        }
    }
    let mut opened = open_raw(device, options)?;
    if !outer.contains(&split::FORMAT.name) {
        opened.notes.extend(split::alone(companions.own_name()));
    }
    Ok(opened)
}

fn open_as(format: &ContainerFormat, device: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    if options.snapshot.is_some() && !format.snapshots {
        return Err(Error::unsupported(format.name, "an internal snapshot"));
    }
    let mut opened = (format.open)(device, companions, options)?;
    if MAPPED.contains(&format.name) {
        let disk = opened.disk.clone();
        let walk = Box::new(move || block_map_faults(disk.as_ref()));
        opened.checks.push(Check::walk("block map (every entry leads into its file)", format.name, walk));
    }
    Ok(opened)
}

/// Formats whose disk is found through a table. That of qcow2 is walked as its clusters are counted,
/// each L2 table once, however often the L1 table leads to it.
const MAPPED: &[&str] = &["qcow", "vdi", "vhd", "vhdx", "vmdk", "parallels"];

/// Runs of a disk that are looked up: more than 8 TiB in pieces of 64 KiB. Tables that are led to more
/// than once make more of them than any file has entries.
const MAX_RUNS: u64 = 1 << 27;

/// Looks every entry up, without reading what it leads to.
fn block_map_faults(disk: &dyn BlockDevice) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let (mut offset, mut runs) = (0u64, 0u64);
    while offset < disk.size() && faults.len() < MAX_FAULTS {
        runs = runs.saturating_add(1);
        if runs > MAX_RUNS {
            return Err(Error::unsupported("container", format!("a block map of more than {MAX_RUNS} runs")));
        }
        let step = match disk.extent(offset) {
            Ok(extent) => extent.len,
            Err(error @ (Error::Corrupt { .. } | Error::PastEnd { .. })) => {
                faults.push(format!("byte {offset} of the disk: {error}"));
                // The smallest unit that any of these formats maps by itself.
                512
            }
            Err(error) => return Err(error),
        };
        offset = offset.saturating_add(step.max(1));
    }
    Ok(faults)
}

/// The file is the disk.
fn open_raw(disk: Device, options: &Options) -> Result<Opened> {
    if options.snapshot.is_some() {
        return Err(Error::unsupported("raw", "an internal snapshot"));
    }
    Ok(Opened::new("raw", disk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_below_a_folder_follows_no_link_with_and_without_the_call_for_it() {
        let folder = std::env::temp_dir().join(format!("imgfs-beneath-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("inside/deeper")).unwrap();
        std::fs::write(folder.join("inside/deeper/file"), b"x").unwrap();
        std::fs::write(folder.join("secret"), b"x").unwrap();
        std::os::unix::fs::symlink("deeper", folder.join("inside/folder")).unwrap();
        std::os::unix::fs::symlink("../secret", folder.join("inside/link")).unwrap();
        let at = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH;
        let at = rustix::fs::open(folder.join("inside"), at, Mode::empty()).unwrap();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        for (name, error) in [
            ("deeper/file", None),
            ("link", Some(Errno::LOOP)),
            ("folder/file", Some(Errno::LOOP)),
            ("../secret", Some(Errno::XDEV)),
            ("/etc/passwd", Some(Errno::XDEV)),
            ("nothing", Some(Errno::NOENT)),
        ] {
            assert_eq!(open_beneath(&at, Path::new(name)).err(), error, "{name}");
            let other = open_step_by_step(&at, Path::new(name), flags).err();
            // A link in the place of a folder is no folder to it.
            let expected = if name == "folder/file" { Some(Errno::NOTDIR) } else { error };
            assert_eq!(other, expected, "{name}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn dots_are_taken_out_of_a_path_by_its_words() {
        let clean = |path: &str| without_dots(Path::new(path)).to_str().unwrap().to_owned();
        assert_eq!(clean("/a/./b/../../c"), "/c");
        assert_eq!(clean("/../../etc"), "/etc");
    }
}
