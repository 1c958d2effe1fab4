//! ISO 9660, the file system of CD, DVD and BD: volume descriptors from sector 16 on lead to one or
//! more trees of directory records, each in both byte orders. Extensions give the names of the world
//! outside: Joliet (a second tree in UCS-2), Rock Ridge (Unix names, modes, links in the first tree).
//!
//! ECMA-119 (4th edition, 2019, with the enhanced descriptor of ISO 9660:1999); Joliet
//! Specification (1995); IEEE P1281 (SUSP 1.12) and P1282 (RRIP 1.09 and 1.12); El Torito 1.0;
//! zisofs and zisofs2 as libisofs documents them.
//!
//! ```text
//!   sector 0      16         17            18          ..
//!   | system area | primary | boot record | Joliet .. | path tables | directories | file extents |
//!                    |            |            `-> root -> names in UCS-2  \
//!                    |            `-> boot catalogue -> boot images         } same extents
//!                    `-> root directory -> records -> [Rock Ridge fields]  /
//! ```
//!
//! A node is the byte offset of its directory record; a directory is the record of itself at the
//! start of its extent, so that it is one node whatever path leads to it.
//!
//! *Supported*: levels 1 to 4; Joliet levels 1 to 3; Rock Ridge with relocated directories, zisofs
//! versions 1 and 2; the order is Rock Ridge, Joliet, level 4, plain. Files of several sections, and
//! interleaved ones; blocks of 512, 1,024 and 2,048 bytes; XA; every El Torito entry; multi-session
//! images, and images of one later session; truncated images, as far as they go.
//!
//! *Not supported*: Rock Ridge sparse files (SF; no writer is known), High Sierra, files that span
//! volumes, extended attribute records (skipped), associated files (noted).

mod aaip;
mod descriptor;
mod directory;
mod eltorito;
mod file;
mod map;
mod medium;
mod node;
mod record;
mod rockridge;
mod session;
mod susp;
mod time;
mod verify;
mod zisofs;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use self::descriptor::{DescriptorSet, SYSTEM_AREA, VolumeDescriptor};
use self::directory::{Children, Directory};
use self::file::Sections;
use self::medium::{Medium, Notes, SECTOR};
use self::node::{Contents, Node};
use self::record::DirectoryRecord;
use self::rockridge::RockRidge;
use self::susp::Protocol;
use self::zisofs::Packing;
use super::names::{INDEX_CACHE, LARGE_INDEX, NameIndexes};
use super::{
    Attributes, DirEntry, Embedded, EntrySink, FileSystem, FileSystemFormat, NodeId, Options, Placed, Summary,
};
use crate::bytes::Evidence;
use crate::cache::Cache;
use crate::check::Check;
use crate::device::mapped::{Mapping, Place, extent_of, read_runs};
use crate::device::{BlockDevice, Device, Extent, probe_array};
use crate::error::{Error, Result};

const NAME: &str = "iso9660";

/// The table's row.
pub const FORMAT: FileSystemFormat = FileSystemFormat { name: NAME, probe, open };

/// A node whose record of itself is damaged: the number is the record in its parent.
const BAD_SELF: u64 = 1 << 55;
/// Bytes of parsed nodes, and of unpacked zisofs blocks, that are kept.
const NODE_CACHE: u64 = 4 << 20;
const BLOCK_CACHE: u64 = 8 << 20;
const DAMAGE_CACHE: u64 = 64 << 10;
/// Descriptors that may be damaged before the first good one.
const PROBED: usize = 4;
/// Directories and files that are looked through for the sizes of boot images.
const MAX_BOOT_SEARCH: usize = 100_000;

fn probe(device: &dyn BlockDevice) -> Result<bool> {
    for sector in (SYSTEM_AREA..).take(PROBED) {
        let Some([kind, identifier @ ..]) = probe_array::<6>(device, sector.saturating_mul(SECTOR))? else {
            return Ok(false);
        };
        if &identifier == b"CD001" && matches!(kind, 0..=3) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn open(device: Device, options: &Options) -> Result<Arc<dyn FileSystem>> {
    Ok(Arc::new(Iso::open(device, options)?))
}

/// The trees of a bridge disc's chosen session, the session's first byte, and which of its names are shown.
pub(super) fn open_bridge(device: Device, options: &Options) -> Result<Bridge> {
    let iso = Iso::open(device, options)?;
    let session = iso.session.saturating_mul(SECTOR);
    let names = match iso.name_space {
        NameSpace::RockRidge => BridgeNames::RockRidge,
        NameSpace::Joliet => BridgeNames::Joliet,
        NameSpace::Enhanced | NameSpace::Plain => BridgeNames::Plain,
    };
    Ok(Bridge { iso: Arc::new(iso), session, names })
}

/// See [`open_bridge`].
pub(super) struct Bridge {
    pub(super) iso: Arc<dyn FileSystem>,
    pub(super) session: u64,
    pub(super) names: BridgeNames,
}

/// What the names of the tree are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BridgeNames {
    RockRidge,
    Joliet,
    Plain,
}

/// Which tree is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NameSpace {
    RockRidge,
    Joliet,
    Enhanced,
    Plain,
}

impl NameSpace {
    fn variant(self) -> &'static str {
        match self {
            Self::RockRidge => "ISO 9660 (Rock Ridge)",
            Self::Joliet => "ISO 9660 (Joliet)",
            Self::Enhanced => "ISO 9660 (level 4)",
            Self::Plain => "ISO 9660",
        }
    }
}

/// An open volume.
struct Iso {
    medium: Medium,
    /// The sector at which its session starts.
    session: u64,
    set: DescriptorSet,
    name_space: NameSpace,
    protocol: Option<Protocol>,
    options: Options,
    root: NodeId,
    /// Byte of the root directory's record of itself.
    root_self: u64,
    nodes: Cache<u64, Arc<Node>>,
    /// By first byte of the directory.
    names: NameIndexes,
    /// By first byte of the directory.
    children: Cache<u64, Arc<Children>>,
    /// Damage met in a directory, by its first byte.
    damaged: Cache<u64, Error>,
    /// By record and number of the block.
    blocks: Cache<(u64, u64), Arc<Vec<u8>>>,
    boot_images: OnceLock<Vec<Embedded>>,
}

/// A tree that could be shown.
struct Tree<'a> {
    name_space: NameSpace,
    descriptor: &'a VolumeDescriptor,
    protocol: Option<Protocol>,
}

impl Iso {
    fn open(device: Device, options: &Options) -> Result<Self> {
        let notes = Notes::default();
        let session = choose_session(device.as_ref(), options, &notes)?;
        let set = DescriptorSet::read(device.as_ref(), session)?;
        set.notes.iter().for_each(|note| notes.add((*note).into()));
        let main = set.main()?;
        if main.block_size().is_none() || !main.block_size.agrees() {
            notes.add(format!("logical block size is {} and {}", main.block_size.le, main.block_size.be));
        }
        let block_size = u64::from(main.block_size().unwrap_or(2048));
        let mut medium = Medium { device, block_size, bias: 0, notes };
        let all: Vec<_> = [&set.primary, &set.joliet, &set.enhanced].into_iter().flatten().collect();
        let has_root = all.iter().any(|descriptor| root_of(&medium, descriptor).is_some());
        let search = || session::find_bias(&medium, session.saturating_mul(SECTOR), &all);
        if let Some(bias) = (!has_root).then(search).flatten() {
            let sector = bias / SECTOR;
            medium.notes.add(format!("an image of one session, which starts at sector {sector} of its disc"));
            medium.bias = bias;
        }
        check_descriptors(&medium, &all);
        let tree = choose_tree(&medium, &set, options)?;
        let (name_space, protocol) = (tree.name_space, tree.protocol);
        let (root, root_self) = match root_of(&medium, tree.descriptor) {
            Some(at) => (NodeId(at), at),
            None => (NodeId(tree.descriptor.root_at() | BAD_SELF), u64::MAX),
        };
        Ok(Self {
            medium,
            session,
            set,
            name_space,
            protocol,
            options: options.clone(),
            root,
            root_self,
            nodes: Cache::new(NODE_CACHE),
            names: NameIndexes::new(),
            children: Cache::for_heavy(INDEX_CACHE, LARGE_INDEX),
            damaged: Cache::new(DAMAGE_CACHE),
            blocks: Cache::new(BLOCK_CACHE),
            boot_images: OnceLock::new(),
        })
    }

    fn rock_ridge(&self, record: &DirectoryRecord<'_>, is_root: bool) -> Option<RockRidge> {
        self.protocol.as_ref().map(|protocol| RockRidge::parse(&self.medium, protocol, record, is_root))
    }

    fn directory(&self, node: NodeId) -> Result<Directory> {
        match &self.node(node)?.contents {
            Contents::Directory(directory) => Ok(*directory),
            _ => Err(Error::NotDirectory),
        }
    }

    /// Extended attributes. Those of a directory stand in its record in its parent, and not in the one of
    /// itself; that the writer knew attributes at all is seen at the root, which always has some.
    fn attributes_of(&self, id: NodeId) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let node = self.node(id)?;
        let Contents::Directory(directory) = &node.contents else { return Ok(aaip::attributes(&node.aaip)) };
        if id == self.root || !node.aaip.is_empty() || self.node(self.root)?.aaip.is_empty() {
            return Ok(aaip::attributes(&node.aaip));
        }
        let Some(at) = self.record_in_parent(id, *directory)? else { return Ok(Vec::new()) };
        let bytes = self.medium.record_bytes(at)?;
        let rock_ridge = self.rock_ridge(&DirectoryRecord::parse(&bytes, at)?, false);
        Ok(aaip::attributes(&rock_ridge.map(|rr| rr.attributes).unwrap_or_default()))
    }

    /// Reads from an unpacked file, a block at a time.
    fn read_packed(&self, file: &Packed<'_>, buf: &mut [u8], offset: u64) -> Result<()> {
        let block_len = file.packing.block_len();
        let mut offset = offset;
        let mut buf = buf;
        while !buf.is_empty() {
            let index = offset.checked_div(block_len).unwrap_or(0);
            let block = self.blocks.get_or_make(&(file.at, index), || {
                if index == 0 {
                    file.packing.check(file.sections, self.medium.device.as_ref(), file.at)?;
                }
                let block = file.packing.unpack(file.sections, self.medium.device.as_ref(), index, file.at)?;
                let weight = block.len() as u64;
                Ok::<_, Error>((Arc::new(block), weight))
            })?;
            let within = usize::try_from(offset.checked_rem(block_len).unwrap_or(0)).map_err(|_| Error::Invalid)?;
            let from = block.get(within..).filter(|from| !from.is_empty()).ok_or(Error::Invalid)?;
            let count = from.len().min(buf.len());
            let (now, later) = buf.split_at_mut(count);
            now.copy_from_slice(from.get(..count).ok_or(Error::Invalid)?);
            buf = later;
            offset = offset.saturating_add(count as u64);
        }
        Ok(())
    }

    /// Lengths of files by their first byte, for those who point at a place and not at a name.
    fn files_by_place(&self) -> HashMap<u64, u64> {
        let mut files = HashMap::new();
        let mut seen = HashSet::from([self.root]);
        let mut queue = VecDeque::from([self.root]);
        let mut visited = 0usize;
        while let Some(node) = queue.pop_front() {
            // A directory that cannot be opened or read hides no boot image but its own: their lengths are
            // then found otherwise.
            let Ok(directory) = self.directory(node) else { continue };
            let mut nodes = Vec::new();
            let _ = self.scan(directory, 0, &mut |row| {
                visited = visited.saturating_add(1);
                nodes.push((row.node, row.kind));
                if visited < MAX_BOOT_SEARCH { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            for (node, kind) in nodes {
                match kind {
                    super::Kind::Directory if seen.insert(node) => queue.push_back(node),
                    super::Kind::File => {
                        let Ok(node) = self.node(node) else { continue };
                        let Contents::File { sections, .. } = &node.contents else { continue };
                        if let Some(place) = sections.first_byte() {
                            files.insert(place, sections.size());
                        }
                    }
                    _ => {}
                }
            }
        }
        files
    }
}

/// A packed file.
struct Packed<'a> {
    sections: &'a Sections,
    packing: Packing,
    at: u64,
}

impl FileSystem for Iso {
    fn root(&self) -> NodeId {
        self.root
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes> {
        Ok(self.node(node)?.attributes.clone())
    }

    /// Where records are damaged, all others are given first; the damage is the error behind them.
    fn read_dir(&self, dir: NodeId, cursor: u64, emit: &mut EntrySink<'_>) -> Result<()> {
        self.scan(self.directory(dir)?, cursor, &mut |row| {
            let name = row.name.as_slice().into();
            let more = emit(DirEntry { node: row.node, name, kind: row.kind, next: row.next });
            if more { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
    }

    /// Joliet's alone; those of the other trees are bytes, as for the kernel.
    fn has_unicode_names(&self) -> bool {
        self.name_space == NameSpace::Joliet
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        self.find(self.directory(dir)?, name)
    }

    fn read(&self, file: NodeId, buf: &mut [u8], offset: u64) -> Result<usize> {
        let node = self.node(file)?;
        let (sections, packing, trouble) = match &node.contents {
            Contents::File { sections, packing, trouble } => (sections, *packing, trouble),
            Contents::Directory(_) => return Err(Error::IsDirectory),
            _ => return Err(Error::Invalid),
        };
        let rest = node.attributes.size.saturating_sub(offset);
        let reaches_trouble = rest <= buf.len() as u64 || offset >= sections.size();
        if let Some(trouble) = trouble.as_ref().filter(|_| reaches_trouble) {
            return Err(trouble.clone());
        }
        let len = usize::try_from(rest).unwrap_or(usize::MAX).min(buf.len());
        let Some(buf) = buf.get_mut(..len).filter(|buf| !buf.is_empty()) else { return Ok(0) };
        match packing {
            Some(packing) => self.read_packed(&Packed { sections, packing, at: node.at }, buf, offset)?,
            None => read_runs(sections, self.medium.device.as_ref(), buf, offset)?,
        }
        Ok(len)
    }

    fn extent(&self, file: NodeId, offset: u64) -> Result<Extent> {
        let node = self.node(file)?;
        match &node.contents {
            // What cannot be read is no hole.
            Contents::File { trouble: Some(_), .. } => {
                Ok(Extent { stored: true, len: node.attributes.size.saturating_sub(offset) })
            }
            Contents::File { sections, packing: Some(packing), .. } => {
                packing.extent(sections, self.medium.device.as_ref(), offset, node.at)
            }
            Contents::File { sections, .. } => {
                let rest = sections.size().saturating_sub(offset);
                extent_of(sections, offset).map(|extent| Extent { len: rest, ..extent })
            }
            Contents::Directory(_) => Err(Error::IsDirectory),
            _ => Err(Error::Invalid),
        }
    }

    fn place(&self, file: NodeId, offset: u64) -> Result<Option<Placed>> {
        match &self.node(file)?.contents {
            Contents::File { sections, packing: None, .. } => {
                let run = sections.map(offset)?;
                let at = if let Place::At(at) = run.place { Some(at) } else { None };
                Ok(Some(Placed { at, len: run.len }))
            }
            _ => Ok(None),
        }
    }

    fn read_link(&self, link: NodeId) -> Result<Vec<u8>> {
        match &self.node(link)?.contents {
            Contents::Link(target) => target.clone(),
            _ => Err(Error::Invalid),
        }
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        let found = self.attributes_of(node)?.into_iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value).ok_or(Error::NoAttribute)
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Vec<u8>>> {
        Ok(self.attributes_of(node)?.into_iter().map(|(name, _)| name).collect())
    }

    fn summary(&self) -> Summary {
        let Ok(main) = self.set.main() else { return Summary::default() };
        let total_blocks = u64::from(main.space_size.choose(|size| size != 0));
        Summary {
            variant: self.name_space.variant().into(),
            label: self.set.label(),
            uuid: self.set.uuid(),
            block_size: u32::try_from(self.medium.block_size).unwrap_or(2048),
            total_blocks,
            name_max: 255,
            evidence: vec![Evidence { offset: main.at, bytes: main.magic.to_vec(), what: "volume descriptor" }],
            notes: self.medium.notes.list(),
            ..Summary::default()
        }
    }

    fn checks(&self) -> Vec<Check> {
        let Some(primary) = &self.set.primary else { return Vec::new() };
        let size = u64::from(primary.space_size.choose(|size| size != 0)).saturating_mul(self.medium.block_size);
        verify::checks(&self.medium.device, primary, size)
    }

    fn embedded(&self) -> Vec<Embedded> {
        let Some(catalog) = self.set.boot_catalog else { return Vec::new() };
        let images = || eltorito::images(&self.medium, catalog, &self.files_by_place());
        self.boot_images.get_or_init(images).clone()
    }
}

/// The sector at which the wanted session starts.
fn choose_session(device: &dyn BlockDevice, options: &Options, notes: &Notes) -> Result<u64> {
    if let Some(sector) = options.sbsector {
        return Ok(sector.into());
    }
    let found = session::find(device)?;
    let sessions = &found.starts;
    if sessions.len() > 1 {
        notes.add(format!("{} sessions, at sectors {sessions:?}; the last is shown by default", sessions.len()));
    }
    let count = sessions.len();
    match options.session {
        None => Ok(found.default),
        Some(wanted) => {
            let chosen = usize::try_from(wanted).ok().and_then(|wanted| sessions.get(wanted)).copied();
            chosen.ok_or_else(|| Error::unsupported(NAME, format!("session {wanted} of an image that has {count}")))
        }
    }
}

/// The root directory's record of itself, when it stands where the descriptor says.
fn root_of(medium: &Medium, descriptor: &VolumeDescriptor) -> Option<u64> {
    let record = DirectoryRecord::parse(&descriptor.root, descriptor.root_at()).ok()?;
    [record.extent.le, record.extent.be].into_iter().find_map(|block| {
        let extent = u64::from(block).saturating_add(record.xar_len.into());
        medium.byte(extent).filter(|at| medium.is_directory(*at, extent))
    })
}

/// Rock Ridge, Joliet, level 4, plain: the first that is there and has a root directory; when none
/// has, the first that is there.
fn choose_tree<'a>(medium: &Medium, set: &'a DescriptorSet, options: &Options) -> Result<Tree<'a>> {
    let protocol = set.primary.as_ref().filter(|_| !options.norock).and_then(|d| find_protocol(medium, d));
    let rock_ridge = set.primary.as_ref().filter(|_| protocol.is_some());
    let joliet = set.joliet.as_ref().filter(|_| !options.nojoliet || set.primary.is_none());
    let all = [
        (NameSpace::RockRidge, rock_ridge),
        (NameSpace::Joliet, joliet),
        (NameSpace::Enhanced, set.enhanced.as_ref()),
        (NameSpace::Plain, set.primary.as_ref()),
    ];
    let trees = || all.iter().filter_map(|(name_space, descriptor)| Some((*name_space, (*descriptor)?)));
    let good = trees().find(|(_, descriptor)| root_of(medium, descriptor).is_some());
    if let (Some((good, _)), Some((best, _))) = (good, trees().next())
        && good != best
    {
        let (best, good) = (best.variant(), good.variant());
        medium.notes.add(format!("the root directory of {best} is damaged; {good} is shown"));
    }
    let (name_space, descriptor) = good.or_else(|| trees().next()).ok_or(Error::Invalid)?;
    let protocol = protocol.filter(|_| name_space == NameSpace::RockRidge);
    Ok(Tree { name_space, descriptor, protocol })
}

/// Looks for Rock Ridge in the root's record of itself, and where that is damaged in the one of its
/// parent, which has the same fields.
fn find_protocol(medium: &Medium, descriptor: &VolumeDescriptor) -> Option<Protocol> {
    let root = DirectoryRecord::parse(&descriptor.root, descriptor.root_at()).ok()?;
    let extent = root.extent.choose(|block| medium.holds(block, 1));
    let mut at = medium.byte(u64::from(extent).saturating_add(root.xar_len.into()))?;
    for _ in 0..2 {
        let bytes = medium.record_bytes(at).ok()?;
        let record = DirectoryRecord::parse(&bytes, at).ok()?;
        if let Some(protocol) = Protocol::find(medium, &record) {
            return Some(protocol);
        }
        at = at.saturating_add(record.len as u64);
    }
    None
}

/// Notes on what the descriptors say twice and differently.
fn check_descriptors(medium: &Medium, all: &[&VolumeDescriptor]) {
    for descriptor in all {
        let at = descriptor.at;
        let (space, table) = (descriptor.space_size, descriptor.path_table_size);
        for (what, both) in [("volume size", space), ("path table size", table)] {
            if !both.agrees() {
                medium.notes.add(format!("descriptor at byte {at}: {what} is {} and {}", both.le, both.be));
            }
        }
        let Ok(root) = DirectoryRecord::parse(&descriptor.root, descriptor.root_at()) else {
            medium.notes.add(format!("descriptor at byte {at}: the root directory's record is damaged"));
            continue;
        };
        if !root.extent.agrees() || !root.data_len.agrees() {
            medium.notes.add(format!("descriptor at byte {at}: the two byte orders of the root's record disagree"));
        }
        let tables = [("little-endian", descriptor.path_table_le), ("big-endian", descriptor.path_table_be)];
        for (which, block) in tables {
            let first = medium.byte(block.into()).and_then(|at| probe_array::<8>(medium.device.as_ref(), at).ok()?);
            let Some([_, _, a, b, c, d, _, _]) = first else { continue };
            let said = if which == "big-endian" { [d, c, b, a] } else { [a, b, c, d] };
            if u32::from_le_bytes(said) != root.extent.le {
                medium.notes.add(format!("descriptor at byte {at}: the {which} path table has another root directory"));
            }
        }
    }
    let Some(main) = all.first() else { return };
    let blocks = main.space_size.choose(|size| size != 0);
    let said = u64::from(blocks).saturating_mul(medium.block_size);
    let there = medium.device.size();
    if said > there.saturating_add(medium.bias) {
        medium.notes.add(format!("the image is cut off: it has {there} of {said} bytes"));
    }
}
