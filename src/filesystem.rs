//! Trees of files: the trait every decoder implements, and the table of decoders.

pub mod acl;
mod bridge;
pub mod exfat;
pub mod ext;
pub mod fat;
pub mod foreign;
pub mod iso9660;
mod names;
pub mod udf;

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::bytes::Evidence;
use crate::check::Check;
use crate::device::{BlockDevice, Device, Extent, HostSpan, Kept};
use crate::error::{Error, Result};

/// One object for as long as it is mounted; the number alone finds it again (an inode number, a
/// record's number, the byte offset of its directory entry). Below 2^56: the forest puts the
/// volume in the top byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// A point in time, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z; negative before.
    pub seconds: i64,
    /// Nanoseconds after that second, below 1,000,000,000.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// The present time.
    pub fn now() -> Self {
        Self::from_system_time(SystemTime::now()).unwrap_or(Self { seconds: 0, nanoseconds: 0 })
    }

    /// Seconds since 1970 of a date and a time of day as they are, whatever their zone. A day past the end
    /// of its month is one of the next month; `None` where there is no such month or day.
    pub(crate) fn civil_seconds((year, month, day): (i16, i8, i8), [hour, minute, second]: [i8; 3]) -> Option<i64> {
        let first = jiff::civil::Date::new(year, month, 1).ok()?.at(0, 0, 0, 0);
        let first = jiff::tz::Offset::UTC.to_timestamp(first).ok()?.as_second();
        let days = i64::from(day).checked_sub(1).filter(|days| (0..31).contains(days))?;
        let of_day = [(days, 86_400), (hour.into(), 3600), (minute.into(), 60), (second.into(), 1)];
        of_day.into_iter().try_fold(first, |sum, (count, each)| sum.checked_add(count.checked_mul(each)?))
    }

    /// A host time; `None` outside the range of 64-bit seconds.
    pub fn from_system_time(time: SystemTime) -> Option<Self> {
        let (before, distance) = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => (false, after),
            Err(error) => (true, error.duration()),
        };
        let seconds = i64::try_from(distance.as_secs()).ok()?;
        Some(match (before, distance.subsec_nanos()) {
            (false, nanoseconds) => Self { seconds, nanoseconds },
            (true, 0) => Self { seconds: seconds.checked_neg()?, nanoseconds: 0 },
            (true, nanos) => Timestamp {
                seconds: seconds.checked_neg()?.checked_sub(1)?,
                nanoseconds: 1_000_000_000u32.checked_sub(nanos)?,
            },
        })
    }
}

/// What the disk records of a node; what it does not record is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// What the node is.
    pub kind: Kind,
    /// Contents in bytes; of a link, its target's length.
    pub size: u64,
    /// Room that the contents take, in units of 512 bytes.
    pub blocks: Option<u64>,
    /// Permission bits, `0o7777`.
    pub mode: Option<u16>,
    /// The medium marks the node read-only without having permission bits (FAT).
    pub read_only: bool,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Number of names.
    pub links: Option<u32>,
    /// Whether its name makes a file of a medium without permission bits a program (FAT, where that
    /// was asked for): no other may be run.
    pub program: Option<bool>,
    /// Major and minor number of a device node.
    pub device: Option<(u32, u32)>,
    /// Last read.
    pub accessed: Option<Timestamp>,
    /// Last write.
    pub modified: Option<Timestamp>,
    /// Last change of the node itself.
    pub changed: Option<Timestamp>,
    /// Creation.
    pub created: Option<Timestamp>,
}

impl Attributes {
    /// A node of which nothing more is known.
    pub fn new(kind: Kind, size: u64) -> Self {
        Self {
            kind,
            size,
            blocks: None,
            mode: None,
            read_only: false,
            program: None,
            uid: None,
            gid: None,
            links: None,
            device: None,
            accessed: None,
            modified: None,
            changed: None,
            created: None,
        }
    }
}

/// A row of a directory. `.` and `..` are never among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The node that the name leads to.
    pub node: NodeId,
    /// The name's bytes as the medium has them, converted to UTF-8 where it names its character
    /// set. They can be anything: whoever shows them escapes them.
    pub name: Cow<'a, [u8]>,
    /// What the node is.
    pub kind: Kind,
    /// The cursor that resumes after this row. Above zero and below 2^62.
    pub next: u64,
}

/// Takes the rows of a directory; `false` stops the listing.
pub type EntrySink<'a> = dyn FnMut(DirEntry<'_>) -> bool + 'a;

/// A volume as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// The format with its variant: `FAT12`, `ISO 9660 (Rock Ridge)`, `ext4`.
    pub variant: String,
    /// Volume label.
    pub label: Option<String>,
    /// UUID or serial number, as `blkid` writes it.
    pub uuid: Option<String>,
    /// Allocation unit in bytes.
    pub block_size: u32,
    /// Size of the volume in blocks, as statfs counts.
    pub total_blocks: u64,
    /// Free blocks.
    pub free_blocks: u64,
    /// Of these, blocks that are kept for the administrator.
    pub reserved_blocks: u64,
    /// Number of nodes that there can be, where the format has such a bound.
    pub total_nodes: u64,
    /// Nodes not in use.
    pub free_nodes: u64,
    /// Longest name in bytes.
    pub name_max: u32,
    /// Where the format was recognised.
    pub evidence: Vec<Evidence>,
    /// What an examiner should know: a journal replayed, a dirty flag, a table that disagrees.
    pub notes: Vec<String>,
}

/// An image that a volume carries outside its tree: El Torito's boot images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedded {
    /// First byte on the volume's device.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is, for `info`.
    pub what: String,
}

/// A run of a file's bytes on its volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// First byte on the volume's device; `None` for a hole, and for bytes that lie within metadata or
    /// are packed.
    pub at: Option<u64>,
    /// Length in bytes; not zero.
    pub len: u64,
}

/// A decoded file system, read side. No open files, no cursors, `&self` from many threads.
pub trait FileSystem: Send + Sync {
    /// The top directory.
    fn root(&self) -> NodeId;

    /// What the disk records of a node.
    fn attributes(&self, node: NodeId) -> Result<Attributes>;

    /// Gives the rows of a directory to `emit`, from `cursor` on: 0, or a row's `next`. Bounded
    /// memory, however large the directory.
    fn read_dir(&self, dir: NodeId, cursor: u64, emit: &mut EntrySink<'_>) -> Result<()>;

    /// The node of a name in a directory. The default scans; formats with an index override it.
    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        let mut found = None;
        self.read_dir(dir, 0, &mut |entry| {
            if entry.name.as_ref() == name {
                found = Some(entry.node);
            }
            found.is_none()
        })?;
        Ok(found)
    }

    /// Whether its names are Unicode on the medium, as those of FAT and Joliet are: such names can be shown
    /// in any character set. Others are bytes, and stay what they are.
    fn has_unicode_names(&self) -> bool {
        false
    }

    /// Whether a name that [`FileSystem::lookup`] finds is spelled otherwise than the directory has
    /// it: in other letters, or as its short name.
    fn is_other_spelling(&self, _dir: NodeId, _name: &[u8]) -> Result<bool> {
        Ok(false)
    }

    /// Reads contents from `offset`; fewer bytes than asked only where the file ends.
    fn read(&self, file: NodeId, buf: &mut [u8], offset: u64) -> Result<usize>;

    /// Whether the file's bytes from `offset` are stored or a hole, and how far. `offset` is below
    /// the file's size.
    fn extent(&self, file: NodeId, offset: u64) -> Result<Extent> {
        let size = self.attributes(file)?.size;
        Ok(Extent { stored: true, len: size.saturating_sub(offset) })
    }

    /// Where on the volume the file's bytes from `offset` lie; `None` where the format does not tell.
    /// `offset` is below the file's size.
    fn place(&self, _file: NodeId, _offset: u64) -> Result<Option<Placed>> {
        Ok(None)
    }

    /// Target of a symbolic link.
    fn read_link(&self, _link: NodeId) -> Result<Vec<u8>> {
        Err(Error::Invalid)
    }

    /// Value of an extended attribute, by its full name (`user.…`, `security.…`).
    fn xattr(&self, _node: NodeId, _name: &[u8]) -> Result<Vec<u8>> {
        Err(Error::NoAttribute)
    }

    /// Full names of a node's extended attributes.
    fn xattrs(&self, _node: NodeId) -> Result<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }

    /// Label, UUID, totals.
    fn summary(&self) -> Summary;

    /// Images that the volume carries outside its tree, in the order of its catalogue.
    fn embedded(&self) -> Vec<Embedded> {
        Vec::new()
    }

    /// Whether other nodes show the same bytes: a flat file beside the trees that lie in it.
    fn is_shared(&self, _file: NodeId) -> bool {
        false
    }

    /// What statfs shows of the volume that a node belongs to; `None` for the whole.
    fn volume(&self, _node: NodeId) -> Option<Summary> {
        None
    }

    /// What the volume says about itself that can be proven: checksums, copies that must agree.
    fn checks(&self) -> Vec<Check> {
        Vec::new()
    }

    /// The way to change this volume; `None` where it is read-only.
    fn writer(&self) -> Option<&dyn FileSystemWrite> {
        None
    }

    /// The host file of which this file's bytes are an unbroken part, as long as no one writes to them.
    fn host_file(&self, _file: NodeId) -> Option<HostSpan<'_>> {
        None
    }
}

/// The write side of a file system, on a device that has a [`BlockDevice::writer`]. Every change is
/// seen at once by every reader; it survives a crash from the next [`FileSystemWrite::flush`] on.
/// A node that is removed while it is open (see [`FileSystemWrite::opened`]) keeps its contents
/// until it is closed. Node numbers stay valid across renames.
pub trait FileSystemWrite: Send + Sync {
    /// Makes an empty file or a directory. [`Error::Exists`] when the name is taken.
    fn create(&self, dir: NodeId, name: &[u8], new: NewNode) -> Result<NodeId>;

    /// Writes all of `buf` at `offset`; a gap behind the old end becomes zeros.
    fn write(&self, file: NodeId, buf: &[u8], offset: u64, now: Timestamp) -> Result<()> {
        self.write_early(file, buf, offset, now, &mut || ())
    }

    /// The same, for a caller who can tell somebody early that it is done: see [`Kept`].
    fn write_early(&self, file: NodeId, buf: &[u8], offset: u64, now: Timestamp, kept: Kept<'_>) -> Result<()>;

    /// Changes what is `Some`.
    fn set_attributes(&self, node: NodeId, changes: &Changes) -> Result<()>;

    /// Gives a node another name. An entry of that name is replaced atomically, unless `replace`
    /// is false ([`Error::Exists`]); a directory only by a directory, and only when it is empty.
    fn rename(&self, dir: NodeId, name: &[u8], new_dir: NodeId, new_name: &[u8], replace: bool) -> Result<()>;

    /// Removes a name: of an empty directory when `directory`, of anything else otherwise.
    fn remove(&self, dir: NodeId, name: &[u8], directory: bool) -> Result<()>;

    /// Sets an extended attribute. [`Error::NotAnAttribute`] when the format has no place for it.
    fn set_xattr(&self, _node: NodeId, _name: &[u8], _value: &[u8]) -> Result<()> {
        Err(Error::NotAnAttribute)
    }

    /// A file was opened once more.
    fn opened(&self, node: NodeId);

    /// One of the openings is over.
    fn closed(&self, node: NodeId);

    /// A file was opened for writing. [`Error::Busy`] when the same bytes are being written in
    /// another way: through the flat file and through the tree.
    fn begin_writing(&self, _node: NodeId) -> Result<()> {
        Ok(())
    }

    /// The writing that began is over, or (`false`) has reached a point where others should see
    /// it. True when any node may have changed by it, not this one alone.
    fn end_writing(&self, _node: NodeId, _over: bool) -> bool {
        false
    }

    /// Returns when everything before can be read from the device; stable it need not be.
    fn settle(&self) -> Result<()> {
        self.flush()
    }

    /// Returns when everything before is on stable storage.
    fn flush(&self) -> Result<()>;

    /// As [`FileSystemWrite::flush`], and marks the volume clean: nothing more will be written
    /// for now.
    fn quiesce(&self) -> Result<()> {
        self.flush()
    }

    /// As [`FileSystemWrite::quiesce`], when nobody has anything open any more, whether that was said for each node
    /// or not: what only open files held is given back.
    fn finish(&self) -> Result<()> {
        self.quiesce()
    }

    /// As [`FileSystemWrite::quiesce`], before others write to the device. [`Error::Busy`] while something
    /// is kept that only this tree knows of: the contents of a file that is removed and still open.
    fn stand_aside(&self) -> Result<()> {
        self.quiesce()
    }

    /// What the tree that is decoded next from these bytes has to know of this one.
    fn legacy(&self) -> Option<Legacy> {
        None
    }

    /// Takes over the numbers of nodes that were given out, and what is open, from a tree of the same
    /// format. A number goes on meaning its node, if that is still there, and otherwise means nothing
    /// ([`Error::Stale`]). To be called before anything else.
    fn inherit(&self, _legacy: &Legacy) {}
}

/// What one tree leaves to the next; only its own format knows what it is.
pub type Legacy = Arc<dyn Any + Send + Sync>;

/// A node to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewNode {
    /// [`Kind::File`] or [`Kind::Directory`].
    pub kind: Kind,
    /// Marked read-only from the start.
    pub read_only: bool,
    /// Its times.
    pub now: Timestamp,
}

/// What [`FileSystemWrite::set_attributes`] changes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Changes {
    /// New length: cut, or grown with zeros.
    pub size: Option<u64>,
    /// The read-only mark.
    pub read_only: Option<bool>,
    /// Last read.
    pub accessed: Option<Timestamp>,
    /// Last write.
    pub modified: Option<Timestamp>,
    /// Creation.
    pub created: Option<Timestamp>,
}

/// What a user can say about how volumes are read. Fields that a format does not know are nothing
/// to it.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Minutes to be subtracted from a zone-less time (FAT, exFAT) to give UTC, as the kernel's `time_offset`.
    pub time_offset: i32,
    /// OEM code page of FAT short names; 437 when `None`.
    pub codepage: Option<u16>,
    /// ISO 9660: ignore Rock Ridge.
    pub norock: bool,
    /// ISO 9660: ignore Joliet.
    pub nojoliet: bool,
    /// A disc that has both: ISO 9660 and not UDF.
    pub noudf: bool,
    /// ISO 9660, and UDF of a disc that has both: this session (from 0), not the last.
    pub session: Option<u32>,
    /// ISO 9660, UDF: the volume descriptors start 16 sectors after this 2,048-byte sector.
    pub sbsector: Option<u32>,
    /// ext: show the state without its journal.
    pub norecovery: bool,
    /// FAT, exFAT, ISO 9660: permissions of files on a medium that has none.
    pub mode: Option<u16>,
    /// As `mode`, for directories.
    pub dmode: Option<u16>,
    /// FAT: only what is named `.EXE`, `.COM` or `.BAT` may be run, as for the kernel's vfat.
    pub showexec: bool,
    /// ISO 9660: how the names of the plain standard are shown.
    pub map: NameMap,
}

impl Options {
    /// Permissions that were given to nodes of a kind, for a medium that has none.
    pub(crate) fn permissions(&self, kind: Kind) -> Option<u16> {
        if kind == Kind::Directory { self.dmode } else { self.mode }
    }
}

/// How names of ISO 9660 are shown that are neither of Rock Ridge nor of Joliet: as they are recorded
/// without `;1` and an empty extension, unless the words of the kernel's isofs ask for something else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NameMap {
    /// `README`.
    #[default]
    Plain,
    /// `README.;1`.
    Off,
    /// `readme`.
    Normal,
    /// `readme,fff`: with the file type of RISC OS, where it is recorded.
    Acorn,
}

/// A decoder, as the table knows it.
pub struct FileSystemFormat {
    /// Name in messages and in `--json`.
    pub name: &'static str,
    /// Reads little; says whether the device holds this format, damaged or not.
    pub probe: fn(&dyn BlockDevice) -> Result<bool>,
    /// Reads and checks what every later call relies on.
    pub open: fn(Device, &Options) -> Result<Arc<dyn FileSystem>>,
}

/// In probe order. ISO 9660 comes first: a hybrid disc starts with a boot sector that may look like
/// FAT's, while nothing else has a volume descriptor at byte 32,768, or UDF's recognition sequence, which
/// stands there or behind it (`bridge.rs` is asked which of the two is shown). exFAT has its name in the boot
/// sector, and its boot code where ext has one magic of two bytes, a place that a FAT volume may use
/// for anything as well. FAT has no magic at all, so the strict check of its geometry comes last.
pub const FORMATS: &[FileSystemFormat] = &[iso9660::FORMAT, udf::FORMAT, exfat::FORMAT, ext::FORMAT, fat::FORMAT];

/// A tree with its format's name; `None` when no decoder knows it.
pub type Found = Option<(&'static str, Arc<dyn FileSystem>)>;

/// The tree of a device.
pub fn open(device: &Device, options: &Options) -> Result<Found> {
    open_one_of(FORMATS.iter(), device, options)
}

/// Formats whose volume begins behind a system area, which may hold a partition table of its own.
const BEHIND_A_SYSTEM_AREA: &[&str] = &["iso9660", "udf"];

/// The tree of a whole disk that has a partition table as well: a hybrid disc.
pub fn open_beside_table(disk: &Device, options: &Options) -> Result<Found> {
    let formats = FORMATS.iter().filter(|format| BEHIND_A_SYSTEM_AREA.contains(&format.name));
    open_one_of(formats, disk, options)
}

fn open_one_of<'a>(
    formats: impl Iterator<Item = &'a FileSystemFormat>,
    device: &Device,
    options: &Options,
) -> Result<Found> {
    for format in formats {
        if (format.probe)(device.as_ref())? {
            if format.name == iso9660::FORMAT.name
                && let Some(found) = bridge::open(device, options)?
            {
                return Ok(Some(found));
            }
            return (format.open)(device.clone(), options).map(|tree| Some((format.name, tree)));
        }
    }
    Ok(None)
}
