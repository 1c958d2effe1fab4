//! Builds the chain of layers for one image: the only place where they meet.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::check::Check;
use crate::container::{self, Opened, SoundTrack};
use crate::device::Device;
use crate::device::cached::Cached;
use crate::device::overlay::{self, Base, Overlay};
use crate::device::window::Window;
use crate::encryption::{self, Encrypted};
use crate::error::{Error, Result};
use crate::filesystem::{self, FileSystem, Summary, Timestamp};
use crate::forest::{Branch, Forest, MAX_TREES, NakedDisk, Reopen};
use crate::text::charset::Charset;
use crate::volume::{self, Entry, Scan};

/// Bytes that the sector cache keeps unless told otherwise.
pub const DEFAULT_CACHE_SIZE: u64 = 32 << 20;

/// What a user can say about how an image is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// To the container.
    pub container: container::Options,
    /// To the decoders of volumes.
    pub filesystem: filesystem::Options,
    /// Bound on the sector cache, bytes.
    pub cache_size: u64,
    /// Where changes go; nothing can be written when `None`.
    pub writing: Option<Writing>,
    /// First byte of the container's disk that counts.
    pub offset: u64,
    /// Number of bytes that count; to the end when `None`.
    pub size_limit: Option<u64>,
    /// Character set in which names are shown that are Unicode on the medium; UTF-8 when `None`.
    pub charset: Option<Charset>,
    /// Where the keys of encrypted volumes come from; they stay closed when `None`.
    pub keys: Option<Keys>,
}

/// A hook that is asked for the keys of an encrypted volume, by the volume's name: passphrases, or what
/// is in key files. The first one that fits is taken; the volume stays closed when there are none.
#[derive(Clone)]
pub struct Keys(pub Arc<KeySource>);

/// See [`Keys`].
pub type KeySource = dyn Fn(&str, &Encrypted) -> Result<Vec<Vec<u8>>> + Send + Sync;

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            container: container::Options { cache_size: DEFAULT_CACHE_SIZE, ..container::Options::default() },
            filesystem: filesystem::Options::default(),
            cache_size: DEFAULT_CACHE_SIZE,
            writing: None,
            offset: 0,
            size_limit: None,
            charset: None,
            keys: None,
        }
    }
}

/// Where changes go: never into the image itself.
#[derive(Debug, Clone)]
pub enum Writing {
    /// Into the overlay in this file, which is made when it is not there.
    Overlay(PathBuf, overlay::Options),
    /// Into a nameless file in this folder, gone with the program.
    Snapshot(PathBuf, overlay::Options),
}

impl Writing {
    /// The overlay's file, when it is one that stays.
    pub fn overlay(&self) -> Option<&Path> {
        match self {
            Self::Overlay(path, _) => Some(path),
            Self::Snapshot(..) => None,
        }
    }
}

/// An image with everything in it.
pub struct Image {
    /// The container, without its disk.
    pub container: ContainerFacts,
    /// The disk: behind the sector cache, and the overlay when there is one.
    pub disk: Device,
    /// The sector cache.
    pub cached: Arc<Cached>,
    /// The overlay over the container's disk.
    pub overlay: Option<Arc<Overlay>>,
    /// Its partition table, when it has one; the reason, when it could not be read.
    pub scan: Result<Option<Scan>>,
    /// The whole disk, its partitions, its boot images.
    pub parts: Vec<Part>,
    /// The tracks of sound of a disc: `t02.wav`.
    pub tracks: Vec<SoundTrack>,
    modified: Option<Timestamp>,
    /// As in [`Options`].
    pub charset: Option<Charset>,
    options: filesystem::Options,
    /// As in [`container::Options`].
    references: Vec<PathBuf>,
}

/// What is known of the container.
pub struct ContainerFacts {
    /// Name of the format.
    pub format: &'static str,
    /// Size of the host file, or of all its pieces that are known.
    pub file_size: u64,
    /// For `info`: name, value.
    pub facts: Vec<(&'static str, String)>,
    /// What an examiner should know.
    pub notes: Vec<String>,
    /// What it says about itself that can be proven.
    pub checks: Vec<Check>,
}

/// A range of bytes, and the tree in it.
pub struct Part {
    /// `disk`, `p1`, `boot1`, `p1.plain`: `NAME.img` shows its bytes.
    pub name: String,
    /// Name of the directory that shows its tree: the same, but `p1` for `p1.plain`.
    pub folder: String,
    /// First byte on the disk.
    pub offset: u64,
    /// Its bytes.
    pub device: Device,
    /// The partition table's row.
    pub entry: Option<Entry>,
    /// The row runs past the end of the disk.
    pub clipped: bool,
    /// What a boot image is, or a part that is no range of the disk.
    pub what: Option<String>,
    /// The files.
    pub tree: Tree,
}

/// The outcome of looking for a file system.
pub enum Tree {
    /// There is one.
    Open {
        /// Name of the format.
        format: &'static str,
        /// The decoded file system.
        tree: Arc<dyn FileSystem>,
        /// Its label, totals and notes.
        summary: Box<Summary>,
    },
    /// No decoder knows it.
    Unknown,
    /// A decoder knows it, and could not open it.
    Broken(Error),
    /// An encrypted volume. Once it is open its tree is another part's.
    Encrypted(Box<Encrypted>),
    /// None is looked for: a disk that has partitions instead, an extended partition.
    Structural,
}

impl Tree {
    fn open(device: &Device, options: &filesystem::Options) -> Self {
        // First: BitLocker To Go shows systems that do not know it a small FAT volume.
        match encryption::describe(device.as_ref()) {
            Ok(None) => Self::from_result(filesystem::open(device, options)),
            Ok(Some(encrypted)) => Self::Encrypted(Box::new(encrypted)),
            Err(error) => Self::Broken(error),
        }
    }

    fn from_result(result: Result<Option<(&'static str, Arc<dyn FileSystem>)>>) -> Self {
        match result {
            Ok(Some((format, tree))) => Self::Open { format, summary: Box::new(tree.summary()), tree },
            Ok(None) => Self::Unknown,
            Err(error) => Self::Broken(error),
        }
    }

    /// The decoded file system.
    pub fn tree(&self) -> Option<&Arc<dyn FileSystem>> {
        match self {
            Self::Open { tree, .. } => Some(tree),
            _ => None,
        }
    }

    /// The summary of an open tree.
    pub fn summary(&self) -> Option<&Summary> {
        match self {
            Self::Open { summary, .. } => Some(summary),
            _ => None,
        }
    }
}

impl Image {
    /// Opens an image with everything in it. Damage in one part never hides the others.
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|error| Error::io(path.display().to_string(), error))?;
        let modified = metadata.modified().ok().and_then(Timestamp::from_system_time);
        let Opened { disk, format, facts, notes, tracks, checks } =
            container::open(path, &options.container_options()?)?;
        let cached = Arc::new(Cached::new(disk, options.cache_size));
        let container = ContainerFacts { format, file_size: metadata.len(), facts, notes, checks };
        // Absolute: a daemon leaves its folder, and a commit opens the base much later.
        let absolute = std::path::absolute(path).map_err(|error| Error::io(path.display().to_string(), error))?;
        let base = Base { disk: cached.clone(), path: absolute, format: format.to_owned() };
        let overlay = options.writing.as_ref().map(|writing| writing.open(&base)).transpose()?.map(Arc::new);
        let whole: Device = match &overlay {
            Some(overlay) => overlay.clone(),
            None => cached.clone(),
        };
        let disk = windowed(whole, options)?;
        let scan = volume::scan(&disk);
        let mut opener = Opener { options: &options.filesystem, left: MAX_TREES };
        let mut parts = parts(&disk, &scan, &mut opener);
        unlock(&mut parts, options, &mut opener)?;
        if overlay.is_some() {
            parts.insert(1.min(parts.len()), untouched(windowed(cached.clone(), options)?));
        }
        let references = options.container.references.clone();
        let (charset, options) = (options.charset, options.filesystem.clone());
        Ok(Self { container, disk, cached, overlay, scan, parts, tracks, modified, charset, options, references })
    }

    /// Everything under one root.
    pub fn forest(&self) -> Forest {
        let table = Arc::new(Table::new(&self.disk, &self.scan));
        let branches: Vec<Branch> = self.parts.iter().map(|part| part.branch(&table, &self.options)).collect();
        let main = self.main_part().map(|part| part.folder.as_str());
        let mut forest = Forest::new(&branches, main, self.modified).with_charset(self.charset);
        for track in &self.tracks {
            forest.add_file(format!("t{:02}.wav", track.number), track.device.clone());
        }
        forest
    }

    /// How to open the base of this image's overlay alone: with the format that it was first seen to have.
    pub fn base_options(&self) -> Options {
        let format = Some(self.container.format.to_owned());
        let defaults = Options::following(&self.references);
        Options { container: container::Options { format, ..defaults.container.clone() }, ..defaults }
    }

    /// Whether the changes can be written into the image itself in the end: better asked before
    /// there are any.
    pub fn check_committable(&self) -> Result<()> {
        match (&self.overlay, self.container.format) {
            (None, _) => Err(Error::ReadOnly),
            (Some(_), "raw") => Ok(()),
            (Some(_), format) => Err(Error::unsupported(
                format,
                "writing changes into the image itself (keep the overlay, and `imgfs commit -o` makes a new image of both)",
            )),
        }
    }

    /// The overlay, everything else closed; `None` without one, or while something else holds it.
    pub fn into_overlay(self) -> Option<Overlay> {
        let overlay = self.overlay.clone();
        drop(self);
        overlay.and_then(Arc::into_inner)
    }

    /// The bytes of the disk as the only file there is.
    pub fn naked(&self) -> NakedDisk {
        NakedDisk::new(self.disk.clone(), self.modified)
    }

    /// The part whose tree is shown as `folder`; the one of that name where there is no such tree.
    pub fn part(&self, folder: &str) -> Option<&Part> {
        let open = |part: &&Part| part.folder == folder && part.tree.tree().is_some();
        self.parts.iter().find(open).or_else(|| self.parts.iter().find(|part| part.name == folder))
    }

    /// The part that shows an encrypted one without its encryption, when a key opened it.
    pub fn plain_of(&self, part: &Part) -> Option<&Part> {
        self.parts.iter().find(|plain| plain.folder == part.folder && plain.name != part.name)
    }

    /// The tree that most people want: the only one, or the one with the most bytes in use. A boot
    /// image only when there is nothing else.
    pub fn main_part(&self) -> Option<&Part> {
        let rank = |part: &&Part| {
            let summary = part.tree.summary()?;
            let used = summary.total_blocks.saturating_sub(summary.free_blocks);
            let boot_image = part.what.is_some() && part.is_on_disk();
            Some((!boot_image, used.saturating_mul(u64::from(summary.block_size))))
        };
        let open = self.parts.iter().filter(|part| part.tree.summary().is_some());
        // The first of equals: a hybrid disc's own tree before the partition that repeats it.
        open.rev().max_by_key(rank)
    }
}

impl Part {
    fn new(name: String, offset: u64, device: Device, tree: Tree) -> Self {
        Self { folder: name.clone(), name, offset, device, entry: None, clipped: false, what: None, tree }
    }

    /// Whether its bytes are a range of the disk: not those of an encrypted volume that was opened.
    pub fn is_on_disk(&self) -> bool {
        self.name == self.folder
    }

    fn branch(&self, table: &Arc<Table>, options: &filesystem::Options) -> Branch {
        let summary = self.tree.summary();
        Branch {
            name: self.name.clone(),
            folder: self.folder.clone(),
            offset: self.offset,
            device: self.device.clone(),
            reopen: self.device.writer().map(|_| self.reopen(table, options)),
            tree: self.tree.tree().cloned(),
            label: summary.and_then(|s| s.label.clone()),
            uuid: summary.and_then(|s| s.uuid.clone()),
        }
    }

    /// Decodes the volume anew, each time it is called.
    fn reopen(&self, table: &Arc<Table>, options: &filesystem::Options) -> Reopen {
        let (device, options, table) = (self.device.clone(), options.clone(), table.clone());
        let row = self.entry.as_ref().map(|_| (self.offset, self.device.size()));
        let whole = self.offset == 0 && self.device.size() == table.disk.size();
        Arc::new(move || {
            table.still_has(row, whole)?;
            Ok(filesystem::open(&device, &options)?.map(|(_, tree)| tree))
        })
    }
}

/// The partition table as it was when the image was opened: what a mount shows is cut after it, and
/// whoever writes to the flat disk may write another.
struct Table {
    disk: Device,
    volumes: Vec<(u64, u64)>,
    changed: AtomicBool,
}

impl Table {
    fn new(disk: &Device, scan: &Result<Option<Scan>>) -> Self {
        let volumes = scan.as_ref().ok().and_then(Option::as_ref).map(Self::volumes).unwrap_or_default();
        Self { disk: disk.clone(), volumes, changed: AtomicBool::new(false) }
    }

    /// Start and length of each.
    fn volumes(scan: &Scan) -> Vec<(u64, u64)> {
        scan.volumes.iter().map(|volume| (volume.entry.start, volume.device.size())).collect()
    }

    /// Refuses a volume whose row is gone, and a volume of the whole disk where there are partitions now:
    /// their bytes are others' today.
    fn still_has(&self, row: Option<(u64, u64)>, whole: bool) -> Result<()> {
        let now = volume::scan(&self.disk)?.as_ref().map(Self::volumes).unwrap_or_default();
        if now != self.volumes && !self.changed.swap(true, Ordering::AcqRel) {
            log::warn!("the partition table has changed: new partitions are shown by the next mount");
        }
        let gone = match row {
            Some(row) => !now.contains(&row),
            None => whole && self.volumes.is_empty() && !now.is_empty(),
        };
        if gone {
            let what = "a volume that the partition table has no longer (unmount, and mount again)";
            return Err(Error::unsupported("volume", what));
        }
        Ok(())
    }
}

/// Opens an overlay with its base: the one given, or the one that it names. A name that leads out of
/// the overlay's own folder is not followed, as a file from a stranger could name any.
pub fn open_overlay(
    path: &Path,
    base: Option<&Path>,
    options: overlay::Options,
    references: &[PathBuf],
) -> Result<Overlay> {
    open_with_base(path, base, options, references)?.into_overlay().ok_or(Error::Invalid)
}

/// As [`open_overlay`], with everything that is in the disk.
pub fn open_with_base(
    path: &Path,
    base: Option<&Path>,
    options: overlay::Options,
    references: &[PathBuf],
) -> Result<Image> {
    let base = base_of(path, base)?;
    let writing = Some(Writing::Overlay(path.to_owned(), options));
    Image::open(&base, &Options { writing, ..Options::following(references) })
}

/// The base of an overlay: the one given, or the one that it names beside itself.
pub fn base_of(path: &Path, base: Option<&Path>) -> Result<PathBuf> {
    if let Some(base) = base {
        return Ok(base.to_owned());
    }
    let reference = overlay::base_reference(path)?;
    let folder = |path: &Path| {
        path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent }.canonicalize())
    };
    match (folder(path), folder(&reference.path)) {
        (Some(Ok(own)), Some(Ok(other))) if own == other => Ok(reference.path),
        _ => {
            let named = crate::text::printable(reference.path.as_os_str().as_encoded_bytes());
            let why = std::io::Error::new(std::io::ErrorKind::PermissionDenied, "not beside it: name it with --base");
            Err(Error::io(format!("{}: its base is {named}", path.display()), why))
        }
    }
}

impl Options {
    /// The defaults, with references followed below these folders.
    pub fn following(references: &[PathBuf]) -> Self {
        let mut options = Self::default();
        options.container.references = references.to_vec();
        options
    }

    /// The base of an overlay keeps the format that it was first seen to have: a guest can write
    /// the magic number of another.
    fn container_options(&self) -> Result<container::Options> {
        let mut options = self.container.clone();
        if let (None, Some(Writing::Overlay(path, _))) = (&options.format, &self.writing)
            && !is_missing(path)
        {
            options.format = overlay::base_reference(path)?.binding.map(|binding| binding.format);
        }
        Ok(options)
    }
}

impl Writing {
    fn open(&self, base: &Base) -> Result<Overlay> {
        match self {
            Self::Overlay(path, options) if is_missing(path) => Overlay::create(path, base, options),
            Self::Overlay(path, options) => Overlay::open(path, base, options),
            Self::Snapshot(folder, options) => Overlay::temporary(Some(folder), &base.disk, options),
        }
    }
}

/// Whether an overlay is still to be made: an empty file only keeps its place.
fn is_missing(overlay: &Path) -> bool {
    std::fs::metadata(overlay).map_or(true, |found| found.is_file() && found.len() == 0)
}

/// `base.img`: the disk as it is below the overlay.
fn untouched(device: Device) -> Part {
    let what = Some("the disk without the overlay".to_owned());
    Part { what, ..Part::new("base".to_owned(), 0, device, Tree::Structural) }
}

/// `offset=` and `sizelimit=`: the part of the disk that counts.
fn windowed(disk: Device, options: &Options) -> Result<Device> {
    if options.offset == 0 && options.size_limit.is_none() {
        return Ok(disk);
    }
    let size = disk.size();
    let rest = size.checked_sub(options.offset).ok_or(Error::PastEnd { offset: options.offset, len: 0, size })?;
    Ok(Arc::new(Window::new(disk, options.offset, options.size_limit.unwrap_or(rest))?))
}

/// Opens the trees of one image: as many as the forest has numbers for, so that a table of thousands of
/// rows does not make thousands of decoders.
struct Opener<'a> {
    options: &'a filesystem::Options,
    left: usize,
}

impl Opener<'_> {
    fn open(&mut self, device: &Device) -> Tree {
        self.counted(|options| Tree::open(device, options))
    }

    fn counted(&mut self, open: impl FnOnce(&filesystem::Options) -> Tree) -> Tree {
        if self.left == 0 {
            return Tree::Broken(Error::unsupported(
                "forest",
                format!("a tree after the first {MAX_TREES} of an image"),
            ));
        }
        let tree = open(self.options);
        if tree.tree().is_some() {
            self.left = self.left.saturating_sub(1);
        }
        tree
    }
}

fn parts(disk: &Device, scan: &Result<Option<Scan>>, opener: &mut Opener<'_>) -> Vec<Part> {
    let table = scan.as_ref().ok().and_then(Option::as_ref);
    let tree = match table {
        Some(table) if !table.volumes.is_empty() => {
            let beside = |options: &_| Tree::from_result(filesystem::open_beside_table(disk, options));
            match opener.counted(beside) {
                Tree::Unknown => Tree::Structural,
                tree => tree,
            }
        }
        _ => opener.open(disk),
    };
    let mut parts = vec![Part::new("disk".to_owned(), 0, disk.clone(), tree)];
    for volume in table.iter().flat_map(|table| &table.volumes) {
        let tree = if volume.entry.structural { Tree::Structural } else { opener.open(&volume.device) };
        let name = format!("p{}", volume.entry.slot);
        let part = Part::new(name, volume.entry.start, volume.device.clone(), tree);
        parts.push(Part { entry: Some(volume.entry.clone()), clipped: volume.clipped, ..part });
    }
    let boot = boot_images(&parts, opener);
    parts.extend(boot);
    parts
}

/// Opens encrypted volumes: each becomes a part more, behind its own. A key that opens none of them is
/// refused; what one key opens, the others need not.
fn unlock(parts: &mut Vec<Part>, options: &Options, opener: &mut Opener<'_>) -> Result<()> {
    let mut refused = None;
    let mut opened = false;
    for mut part in std::mem::take(parts) {
        let Tree::Encrypted(encrypted) = &mut part.tree else {
            parts.push(part);
            continue;
        };
        let plain = match plain(&part.name, encrypted, &part.device, options.keys.as_ref()) {
            Ok(plain) => plain,
            Err(error) if options.keys.is_none() => {
                encrypted.notes.push(format!("no key would open it: {error}"));
                None
            }
            Err(error) => {
                refused.get_or_insert(error);
                None
            }
        };
        let what = Some(format!("{} without its {}", part.name, encrypted.variant));
        let (name, folder, offset) = (format!("{}.plain", part.name), part.name.clone(), part.offset);
        parts.push(part);
        if let Some(device) = plain {
            opened = true;
            let tree = opener.counted(|options| Tree::from_result(filesystem::open(&device, options)));
            parts.push(Part { folder, what, ..Part::new(name, offset, device, tree) });
        }
    }
    refused.filter(|_| !opened).map_or(Ok(()), Err)
}

/// The bytes of an encrypted volume, when it opens without a key, or with one of those that there are.
fn plain(name: &str, encrypted: &Encrypted, device: &Device, keys: Option<&Keys>) -> Result<Option<Device>> {
    if let Some(plain) = encryption::unlock(device, None)? {
        return Ok(Some(plain));
    }
    let Some(Keys(source)) = keys else { return Ok(None) };
    let keys = source(name, encrypted)?;
    for key in &keys {
        if let Some(plain) = encryption::unlock(device, Some(key))? {
            return Ok(Some(plain));
        }
    }
    if keys.is_empty() {
        return Ok(None);
    }
    let why = std::io::Error::new(ErrorKind::PermissionDenied, "the passphrase or key does not open it");
    Err(Error::io(format!("{name} ({})", encrypted.variant), why))
}

/// The images that volumes carry outside their trees. A hybrid disc shows the same catalogue as a
/// disk and as a partition: each range appears once.
fn boot_images(parts: &[Part], opener: &mut Opener<'_>) -> Vec<Part> {
    let mut found: Vec<Part> = Vec::new();
    for part in parts {
        let Tree::Open { tree, .. } = &part.tree else { continue };
        for image in tree.embedded() {
            let offset = part.offset.saturating_add(image.offset);
            let known = |other: &Part| other.offset == offset && other.device.size() == image.len;
            if found.iter().any(known) {
                continue;
            }
            let Ok(window) = Window::new(part.device.clone(), image.offset, image.len) else { continue };
            let device: Device = Arc::new(window.with_sector_size(512));
            let name = format!("boot{}", found.len().saturating_add(1));
            let tree = opener.open(&device);
            found.push(Part { what: Some(image.what), ..Part::new(name, offset, device, tree) });
        }
    }
    found
}
