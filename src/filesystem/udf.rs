//! UDF, the file system of DVD, BD and packet-written CD, and of some memory cards: an anchor leads to
//! descriptors of the volume, these to partitions, a file set and its root directory. Often the same
//! files have an ISO 9660 tree as well (a bridge disc): `bridge.rs` chooses.
//!
//! ECMA-167, 3rd edition (1997); OSTA Universal Disk Format 1.02 to 2.60.
//!
//! ```text
//!   recognition: NSR02 -- anchor -> volume descriptors -> logical volume -> file set -> root's ICB
//!                                        |                                              |
//!                                        `-> partitions <- maps: physical, virtual ..   `-> descriptors -> names
//!                                                                                           of extents    and ICBs
//! ```
//!
//! A node is the address of its ICB: the block within its partition, and the partition's map.
//!
//! *Supported*: revisions 1.02 to 2.60; blocks of 512 to 32,768 bytes; physical, virtual, sparable and metadata
//! partitions; file entries and extended ones, strategies 4 and 4096; short, long and embedded allocation
//! descriptors in any number of blocks; holes; hard and symbolic links; times with zone. Both descriptor
//! sequences, and the mirror of the metadata, where the first is damaged.
//!
//! *Not supported*: named streams (not shown, nor do the kernel and 7-Zip show them), compressed extents,
//! volume sets; of a disc of several sessions that is no bridge disc, any but the first.

mod attribute;
mod directory;
mod icb;
mod link;
mod partition;
mod recognition;
mod space;
mod tag;
mod text;
mod time;
mod verify;
mod volume;

use std::ops::ControlFlow;
use std::sync::Arc;

use self::icb::FileEntry;
use self::partition::{Address, Partitions, Which};
use self::recognition::Anchor;
use self::volume::{Integrity, Volume};
use super::names::NameIndexes;
use super::{
    Attributes, DirEntry, Embedded, EntrySink, FileSystem, FileSystemFormat, Kind, NodeId, Options, Placed, Summary,
};
use crate::bytes::{Evidence, Record};
use crate::cache::Cache;
use crate::check::Check;
use crate::device::mapped::{Mapping, Place, extent_of, read_runs};
use crate::device::{BlockDevice, Device, Extent, read_array};
use crate::error::{Error, Result};

const NAME: &str = "udf";

/// The table's row.
pub const FORMAT: FileSystemFormat = FileSystemFormat { name: NAME, probe, open };

/// Unit of recognition structures and of sessions, in bytes, whatever the block size.
const SECTOR: u64 = 2048;
/// No block lies from this byte on: what is added to a block's place cannot overflow.
const BLOCK_LIMIT: u64 = 1 << 60;
/// A symbolic link that is longer is none.
const MAX_LINK: u64 = 64 << 10;
/// Bytes of parsed nodes that are kept.
const NODE_CACHE: u64 = 4 << 20;
const DAMAGE_CACHE: u64 = 64 << 10;

fn probe(device: &dyn BlockDevice) -> Result<bool> {
    is_at(device, 0)
}

/// Whether the session at byte `session` has this format.
pub(super) fn is_at(device: &dyn BlockDevice, session: u64) -> Result<bool> {
    Ok(recognition::find(device, session)?.is_some())
}

fn open(device: Device, options: &Options) -> Result<Arc<dyn FileSystem>> {
    let session = match (options.sbsector, options.session) {
        (Some(sector), _) => u64::from(sector).saturating_mul(SECTOR),
        (None, None | Some(0)) => 0,
        (None, Some(session)) => {
            return Err(Error::unsupported(NAME, format!("session {session} of a disc without ISO 9660")));
        }
    };
    Ok(Arc::new(Udf::open(device, options, session)?))
}

/// The tree of a bridge disc's session at byte `session`. Of the other tree, `iso`, what lies outside of
/// any tree is shown with this one.
pub(super) fn open_bridge(
    device: Device,
    options: &Options,
    session: u64,
    iso: Arc<dyn FileSystem>,
) -> Result<Arc<dyn FileSystem>> {
    let udf = Udf::open(device, options, session)?;
    Ok(Arc::new(Udf { iso: Some(iso), ..udf }))
}

/// An open volume.
struct Udf {
    partitions: Partitions,
    anchor: Anchor,
    volume: Volume,
    integrity: Option<Integrity>,
    root: NodeId,
    /// Byte of its session.
    session: u64,
    options: Options,
    evidence: Vec<Evidence>,
    notes: Vec<String>,
    iso: Option<Arc<dyn FileSystem>>,
    nodes: Cache<u64, Arc<Node>>,
    names: NameIndexes,
    /// Damage met in a directory, by node.
    damaged: Cache<u64, Error>,
}

/// A node, parsed.
struct Node {
    entry: FileEntry,
    /// Of a symbolic link.
    target: Option<Result<Vec<u8>>>,
}

impl Udf {
    fn open(device: Device, options: &Options, session: u64) -> Result<Self> {
        let mut evidence = Vec::from_iter(recognition::find(device.as_ref(), session)?);
        let anchor = recognition::find_anchor(device.as_ref(), session)?;
        let tag = read_array::<{ tag::LEN }>(device.as_ref(), anchor.at)?;
        let what = "anchor volume descriptor pointer";
        evidence.push(Evidence { offset: anchor.at, bytes: tag.to_vec(), what });
        let mut notes = Vec::new();
        let volume = Volume::read(device.as_ref(), &anchor)?;
        if let Some(error) = &volume.damage {
            notes.push(format!("{error}; the other descriptor sequence was read as well"));
        }
        let Some(logical) = &volume.logical else { return Err(Error::Invalid) };
        if u64::from(logical.block_size) != anchor.block_size {
            let feature = format!("blocks of {} bytes on sectors of {}", logical.block_size, anchor.block_size);
            return Err(Error::unsupported(NAME, feature));
        }
        let integrity = Integrity::read(device.as_ref(), anchor.block_size, logical.integrity);
        let partitions = Partitions::open(device, (&volume, logical), session, &mut notes)?;
        let root = partitions.root(logical.file_set)?;
        if let Some(number) = volume.primary.as_ref().map(|primary| primary.number).filter(|number| *number > 1) {
            notes.push(format!("this is volume {number} of a set"));
        }
        if integrity.as_ref().is_some_and(|integrity| !integrity.is_closed) && !partitions.is_write_once() {
            notes.push("the volume was not closed after it was last written".into());
        }
        notes.extend(partitions.closed().map(|error| format!("a partition cannot be read: {error}")));
        notes.iter().for_each(|note| log::warn!("{NAME}: {note}"));
        Ok(Self {
            partitions,
            anchor,
            integrity,
            volume,
            root: root.node(),
            session,
            options: options.clone(),
            evidence,
            notes,
            iso: None,
            nodes: Cache::new(NODE_CACHE),
            names: NameIndexes::new(),
            damaged: Cache::new(DAMAGE_CACHE),
        })
    }

    /// The node, from the cache or from the medium. Whoever lists a large directory asks for each of its
    /// nodes once, and none of them is worth another.
    fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        self.nodes.get_or_make_aside(&id.0, || {
            let entry = icb::read(&self.partitions, Address::of_node(id)?)?;
            let is_link = entry.attributes.kind == Kind::Symlink;
            let target = is_link.then(|| self.target(&entry));
            let mut node = Node { entry, target };
            if let Some(Ok(target)) = &node.target {
                node.entry.attributes.size = target.len() as u64;
            }
            let link = node.target.as_ref().and_then(|target| target.as_ref().ok()).map_or(0, Vec::len) as u64;
            let weight = node.entry.contents.weight().saturating_add(link).saturating_add(400);
            Ok((Arc::new(node), weight))
        })
    }

    fn target(&self, entry: &FileEntry) -> Result<Vec<u8>> {
        let size = entry.contents.size();
        if let Some(error) = &entry.trouble {
            return Err(error.clone());
        }
        if size > MAX_LINK {
            return Err(Error::corrupt(NAME, "symbolic link (its length)", entry.at));
        }
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| Error::Invalid)?];
        read_runs(&entry.contents, self.partitions.device.as_ref(), &mut bytes, 0)?;
        link::target(&Record::new(NAME, "symbolic link", entry.at, &bytes))
    }

    /// What the node of a row is, without all of its entry; a file when that cannot be told: whoever asks
    /// for more learns why.
    fn kind(&self, icb: Address) -> Kind {
        if let Some(node) = self.nodes.get(&icb.node().0) {
            return node.entry.attributes.kind;
        }
        let file_type = || {
            let (at, _) = self.partitions.locate(icb, Which::Main)?;
            let bytes: [u8; 36] = read_array(self.partitions.device.as_ref(), at)?;
            let record = Record::new(NAME, "ICB tag", at, &bytes);
            tag::Tag::parse_alone(&record)?;
            record.u8(27)
        };
        file_type().map_or(Kind::File, icb::kind)
    }

    fn directory(&self, id: NodeId) -> Result<Arc<Node>> {
        let node = self.node(id)?;
        if node.entry.attributes.kind == Kind::Directory { Ok(node) } else { Err(Error::NotDirectory) }
    }

    fn file(&self, id: NodeId) -> Result<Arc<Node>> {
        let node = self.node(id)?;
        match node.entry.attributes.kind {
            Kind::File => Ok(node),
            Kind::Directory => Err(Error::IsDirectory),
            _ => Err(Error::Invalid),
        }
    }
}

impl FileSystem for Udf {
    fn root(&self) -> NodeId {
        self.root
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes> {
        Ok(self.node(node)?.entry.attributes.clone())
    }

    /// Where descriptors are damaged, all others are given first; the damage is the error behind them.
    fn read_dir(&self, dir: NodeId, cursor: u64, emit: &mut EntrySink<'_>) -> Result<()> {
        let node = self.directory(dir)?;
        self.scan(dir, &node.entry, cursor, &mut |row| {
            let kind = if row.is_directory { Kind::Directory } else { self.kind(row.icb) };
            let more = emit(DirEntry { node: row.icb.node(), name: row.name.into(), kind, next: row.next });
            if more { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
    }

    fn has_unicode_names(&self) -> bool {
        true
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        self.find(dir, &self.directory(dir)?.entry, name)
    }

    fn read(&self, file: NodeId, buf: &mut [u8], offset: u64) -> Result<usize> {
        let node = self.file(file)?;
        let entry = &node.entry;
        let rest = entry.contents.size().saturating_sub(offset);
        let len = usize::try_from(rest).unwrap_or(usize::MAX).min(buf.len());
        let Some(buf) = buf.get_mut(..len).filter(|buf| !buf.is_empty()) else { return Ok(0) };
        match &entry.trouble {
            Some(trouble) if offset.saturating_add(len as u64) > entry.known => Err(trouble.clone()),
            _ => read_runs(&entry.contents, self.partitions.device.as_ref(), buf, offset).map(|()| len),
        }
    }

    fn extent(&self, file: NodeId, offset: u64) -> Result<Extent> {
        let node = self.file(file)?;
        let entry = &node.entry;
        // What cannot be read is no hole.
        if entry.trouble.is_some() {
            return Ok(Extent { stored: true, len: entry.contents.size().saturating_sub(offset) });
        }
        extent_of(&entry.contents, offset)
    }

    fn place(&self, file: NodeId, offset: u64) -> Result<Option<Placed>> {
        let node = self.file(file)?;
        let entry = &node.entry;
        if entry.trouble.is_some() && offset >= entry.known {
            return Ok(None);
        }
        let run = entry.contents.map(offset)?;
        let at = if let Place::At(at) = run.place { Some(at) } else { None };
        Ok(Some(Placed { at, len: run.len }))
    }

    fn read_link(&self, link: NodeId) -> Result<Vec<u8>> {
        self.node(link)?.target.clone().unwrap_or(Err(Error::Invalid))
    }

    fn summary(&self) -> Summary {
        let Some(logical) = &self.volume.logical else { return Summary::default() };
        let total = self.partitions.physical().fold(0u64, |sum, part| sum.saturating_add(part.len.into()));
        let free = space::free(&self.partitions, self.integrity.as_ref());
        let [major, minor] = logical.revision.to_be_bytes();
        Summary {
            variant: format!("UDF {major:x}.{minor:02x}"),
            label: Some(logical.label.clone()).filter(|label| !label.is_empty()),
            uuid: self.volume.primary.as_ref().and_then(|primary| primary.uuid.clone()),
            block_size: logical.block_size,
            total_blocks: total,
            free_blocks: free.unwrap_or(0).min(total),
            name_max: 255,
            evidence: self.evidence.clone(),
            notes: self.notes.clone(),
            ..Summary::default()
        }
    }

    fn checks(&self) -> Vec<Check> {
        let mut checks = verify::checks(self);
        checks.extend(self.iso.iter().flat_map(|iso| iso.checks()));
        checks
    }

    fn embedded(&self) -> Vec<Embedded> {
        self.iso.as_ref().map(|iso| iso.embedded()).unwrap_or_default()
    }
}
