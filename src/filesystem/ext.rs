//! ext2, ext3 and ext4: the file systems of Linux, in one decoder, as in the kernel.
//!
//! A volume is cut into groups, each with bitmaps, a table of inodes and blocks of contents; an
//! inode finds its contents through block numbers (ext2, ext3), an extent tree (ext4), or holds
//! them itself. Spec: the kernel's `Documentation/filesystems/ext4`, the ext4 wiki ("Ext4 Disk
//! Layout"), and for what both leave open the kernel's code itself.
//!
//! ```text
//!   0    1024         block 1 (or 2)        anywhere in the group
//!   boot superblock | group descriptors | block bitmap | inode bitmap | inode table | blocks ...
//!   ---------------------------- group 0 ---------------------------------------- | group 1 ...
//!        superblock ----> descriptor ------------------------------> inode -> extents -> contents
//! ```
//!
//! *Supported:* all that the kernel mounts, and case-folded directories and blocks of 64 KiB, which
//! not every kernel does; a lost superblock or descriptor is read from its backup; a journal is
//! replayed in memory. *Not supported:* fast commits and journals on other devices (said in the
//! notes), deciphering, e2compr, Lustre's dirdata. Nothing is ever written.

mod checksum;
mod crypt;
mod directory;
mod extent;
mod fold;
mod group;
mod hash;
mod htree;
mod inode;
mod journal;
mod map;
mod statfs;
mod superblock;
mod verify;
mod xattr;

use std::sync::Arc;

use super::{Attributes, DirEntry, EntrySink, FileSystem, FileSystemFormat, Kind, NodeId, Options, Placed, Summary};
use crate::bytes::{Evidence, Record};
use crate::cache::Cache;
use crate::check::Check;
use crate::device::mapped::{Mapping, Place, read_runs};
use crate::device::{BlockDevice, Device, Extent, read_array, read_vec};
use crate::error::{Error, Result};
use crate::text;

use directory::NameIndex;
use extent::Node;
use inode::{Contents, Inode, flag};
use map::FileMap;
use superblock::{Superblock, compat, incompat, ro_compat};

/// The table's row.
pub const FORMAT: FileSystemFormat = FileSystemFormat { name: "ext", probe, open };

/// Bounds of the caches, in bytes.
const INODE_CACHE: u64 = 4 << 20;
const NODE_CACHE: u64 = 4 << 20;
const NAME_CACHE: u64 = 8 << 20;
/// A quarter of a million names.
const LARGE_INDEX: u64 = 2 << 20;

/// A superblock in its place; or, where that place was wiped with zeros, a backup in its own.
fn probe(device: &dyn BlockDevice) -> Result<bool> {
    if superblock::is_plausible(device, superblock::PRIMARY)? {
        return Ok(true);
    }
    let start = device.size().min(2048);
    let start = read_vec(device, 0, usize::try_from(start).map_err(|_| Error::Invalid)?)?;
    // Another format's volume over an old ext still has ext's backups; an empty start has no owner.
    Ok(start.iter().all(|&byte| byte == 0) && superblock::find_backup(device)?.is_some())
}

fn open(device: Device, options: &Options) -> Result<Arc<dyn FileSystem>> {
    Ok(Arc::new(Ext::open(device, options)?))
}

/// A volume.
struct Ext {
    /// With the journal's blocks in place.
    disk: Device,
    superblock: Superblock,
    inodes: Cache<u32, Arc<Inode>>,
    /// Extent tree nodes, by inode and block.
    nodes: Cache<(u32, u64), Arc<Node>>,
    /// Blocks of block numbers.
    indirect: Cache<u32, Arc<Vec<u32>>>,
    /// Names of directories whose own index cannot be used.
    names: Cache<u32, Option<Arc<NameIndex>>>,
    /// Directories in which a walk met damage.
    damaged: Cache<u32, Error>,
    summary: Summary,
}

impl Ext {
    fn open(device: Device, options: &Options) -> Result<Self> {
        let (superblock, mut notes) = read_superblock(&device)?;
        let mut ext = Self::over(device, superblock);
        let dirty = ext.superblock.has_incompat(incompat::RECOVER);
        if dirty && options.norecovery {
            notes.push("needs_recovery: the journal holds changes, which are not shown as asked".to_owned());
        } else if dirty {
            notes.push("needs_recovery: the volume was not unmounted".to_owned());
            let outcome = journal::replay(&ext);
            notes.extend(outcome.notes);
            if let Some(device) = outcome.device {
                // The log holds the superblock as well, as a rule.
                let superblock = Superblock::read(device.as_ref(), ext.superblock.at).unwrap_or(ext.superblock);
                ext = Self::over(device, superblock);
            }
        }
        // Without its top directory there is nothing to show.
        let root = ext.inode(inode::ROOT)?;
        if root.attributes.kind != Kind::Directory {
            return Err(root.corrupt("top directory"));
        }
        ext.summary = ext.summarise(notes);
        Ok(ext)
    }

    fn over(disk: Device, superblock: Superblock) -> Self {
        Self {
            disk,
            superblock,
            inodes: Cache::new(INODE_CACHE),
            nodes: Cache::new(NODE_CACHE),
            indirect: Cache::new(NODE_CACHE),
            names: Cache::for_heavy(NAME_CACHE, LARGE_INDEX),
            damaged: Cache::new(1 << 16),
            summary: Summary::default(),
        }
    }

    fn inode(&self, number: u32) -> Result<Arc<Inode>> {
        self.inodes.get_or_make(&number, || self.read_inode(number))
    }

    fn read_inode(&self, number: u32) -> Result<(Arc<Inode>, u64)> {
        let inode = Inode::read(self, number)?;
        let weight = inode.weight();
        Ok((Arc::new(inode), weight))
    }

    fn node(&self, node: NodeId) -> Result<Arc<Inode>> {
        self.inode(u32::try_from(node.0).map_err(|_| Error::NotFound)?)
    }

    /// Fills `buf` from an inode's contents; the range lies below its size.
    fn read_contents(&self, inode: &Inode, buf: &mut [u8], offset: u64) -> Result<()> {
        match &inode.contents {
            Contents::Inline(rest) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let bytes = inode.block.iter().chain(rest).copied().chain(std::iter::repeat(0)).skip(start);
                for (to, from) in buf.iter_mut().zip(bytes) {
                    *to = from;
                }
                Ok(())
            }
            Contents::None => Err(Error::Invalid),
            Contents::Extents(_) | Contents::Blocks => {
                read_runs(&FileMap { ext: self, inode }, self.disk.as_ref(), buf, offset)
            }
        }
    }

    /// A link's target as stored: up to its size, one block, or the first NUL.
    fn link_bytes(&self, link: &Inode) -> Result<Vec<u8>> {
        let block = u64::from(self.superblock.block_size);
        let size = link.attributes.size;
        if let Contents::None = link.contents {
            let len = usize::try_from(size).unwrap_or(usize::MAX);
            return link.block.get(..len).map(<[u8]>::to_vec).ok_or_else(|| link.corrupt("link length"));
        }
        let len = usize::try_from(size.min(block)).map_err(|_| Error::Invalid)?;
        let mut target = vec![0; len];
        self.read_contents(link, &mut target, 0)?;
        Ok(target)
    }

    fn target(&self, link: &Inode) -> Result<Vec<u8>> {
        let mut target = self.link_bytes(link)?;
        if link.has_flag(flag::ENCRYPT) {
            let raw = Record::new("ext", "encrypted link", link.at, &target);
            let name = raw.bytes(2, raw.le16(0)?.into())?;
            return crypt::nokey_name(name, (0, 0)).ok_or_else(|| raw.corrupt());
        }
        if let Some(end) = target.iter().position(|&byte| byte == 0) {
            target.truncate(end);
        }
        if target.is_empty() { Err(link.corrupt("link target")) } else { Ok(target) }
    }

    fn summarise(&self, mut notes: Vec<String>) -> Summary {
        let superblock = &self.superblock;
        let totals = statfs::totals(self);
        if totals.damaged_groups > 0 {
            notes.push(format!("{} group descriptors are damaged or have wrong checksums", totals.damaged_groups));
        }
        if superblock.has_compat(compat::HAS_JOURNAL) && superblock.journal_inode == 0 {
            notes.push("its journal lies on another device".to_owned());
        }
        let size = superblock.byte_of(superblock.blocks);
        if size > self.disk.size() {
            notes.push(format!("the volume's last {} bytes are missing", size.saturating_sub(self.disk.size())));
        }
        if superblock.state & 2 != 0 || superblock.errors > 0 {
            notes.push(format!("marked as having errors ({} seen)", superblock.errors));
        }
        if superblock.state & 1 == 0 && !superblock.has_compat(compat::HAS_JOURNAL) {
            notes.push("not unmounted cleanly".to_owned());
        }
        if superblock.last_orphan != 0 || superblock.has_ro_compat(ro_compat::ORPHAN_PRESENT) {
            notes.push("has orphans: files that were to be deleted or cut".to_owned());
        }
        let label = text::trim_padding(superblock.label.split(|&byte| byte == 0).next().unwrap_or_default());
        let uuid = (superblock.uuid != [0; 16]).then(|| text::uuid(superblock.uuid));
        Summary {
            variant: superblock.variant().to_owned(),
            label: (!label.is_empty()).then(|| String::from_utf8_lossy(label).into_owned()),
            uuid,
            block_size: superblock.block_size,
            total_blocks: totals.blocks,
            free_blocks: totals.free_blocks,
            reserved_blocks: self.superblock.reserved_blocks.min(totals.free_blocks),
            total_nodes: superblock.inodes.into(),
            free_nodes: totals.free_inodes,
            name_max: 255,
            evidence: self.evidence(),
            notes,
        }
    }

    fn evidence(&self) -> Vec<Evidence> {
        let offset = self.superblock.at.saturating_add(0x38);
        let magic: Result<[u8; 2]> = read_array(self.disk.as_ref(), offset);
        magic
            .map(|bytes| vec![Evidence { offset, bytes: bytes.to_vec(), what: "superblock magic number" }])
            .unwrap_or_default()
    }
}

/// The first superblock, or a backup and a note about it.
fn read_superblock(device: &Device) -> Result<(Superblock, Vec<String>)> {
    match Superblock::read(device.as_ref(), superblock::PRIMARY) {
        Ok(found) => Ok((found, Vec::new())),
        Err(error @ Error::Corrupt { .. }) => match superblock::find_backup(device.as_ref())? {
            Some(backup) => {
                let note = format!("{error}: the backup at byte {} is used", backup.at);
                Ok((backup, vec![note]))
            }
            None => Err(error),
        },
        Err(error) => Err(error),
    }
}

impl FileSystem for Ext {
    fn place(&self, file: NodeId, offset: u64) -> Result<Option<Placed>> {
        let inode = self.node(file)?;
        let rest = inode.attributes.size.saturating_sub(offset);
        match &inode.contents {
            Contents::Extents(_) | Contents::Blocks => {
                let run = FileMap { ext: self, inode: &inode }.map(offset)?;
                let at = if let Place::At(at) = run.place { Some(at) } else { None };
                Ok(Some(Placed { at, len: run.len.min(rest) }))
            }
            Contents::Inline(_) | Contents::None => Ok(Some(Placed { at: None, len: rest })),
        }
    }

    fn checks(&self) -> Vec<Check> {
        verify::checks(self)
    }

    fn root(&self) -> NodeId {
        NodeId(inode::ROOT.into())
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes> {
        let number = u32::try_from(node.0).map_err(|_| Error::NotFound)?;
        // Whoever lists a large directory asks for each of its nodes once, and none of them is worth another.
        let inode = self.inodes.get_or_make_aside(&number, || self.read_inode(number))?;
        let mut attributes = inode.attributes.clone();
        // The size of an encrypted link is that of what is shown for it.
        if attributes.kind == Kind::Symlink
            && inode.has_flag(flag::ENCRYPT)
            && let Ok(target) = self.target(&inode)
        {
            attributes.size = target.len() as u64;
        }
        Ok(attributes)
    }

    fn read_dir(&self, dir: NodeId, cursor: u64, emit: &mut EntrySink<'_>) -> Result<()> {
        let inode = self.node(dir)?;
        let mut short_name = false;
        let walk = self.walk(&inode, cursor, &mut |row| {
            if matches!(row.name, b"." | b"..") {
                return true;
            }
            let Some(name) = self.shown_name(&inode, &row) else {
                short_name = true;
                return true;
            };
            // Where rows do not tell, the inode does; one that cannot be read is still a name.
            let kind = row.kind.or_else(|| self.inode(row.inode).ok().map(|inode| inode.attributes.kind));
            emit(DirEntry { node: NodeId(row.inode.into()), name, kind: kind.unwrap_or(Kind::File), next: row.next })
        })?;
        let damage = walk.damage.or_else(|| short_name.then(|| inode.corrupt("encrypted name")));
        if let Some(error) = damage {
            self.damaged.insert(inode.number, error, 128);
        }
        // Damage is said at the end, also when the rows were fetched in several calls.
        match (walk.stopped, self.damaged.get(&inode.number)) {
            (false, Some(error)) => Err(error),
            _ => Ok(()),
        }
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        let inode = self.node(dir)?;
        Ok(self.find(&inode, name)?.map(|number| NodeId(number.into())))
    }

    fn read(&self, file: NodeId, buf: &mut [u8], offset: u64) -> Result<usize> {
        let inode = self.node(file)?;
        match inode.attributes.kind {
            Kind::File => {}
            Kind::Directory => return Err(Error::IsDirectory),
            _ => return Err(Error::Invalid),
        }
        if inode.has_flag(flag::ENCRYPT) {
            return Err(Error::NoKey);
        }
        let rest = inode.attributes.size.saturating_sub(offset);
        let len = usize::try_from(rest).unwrap_or(usize::MAX).min(buf.len());
        let part = buf.get_mut(..len).ok_or(Error::Invalid)?;
        if !part.is_empty() {
            self.read_contents(&inode, part, offset)?;
        }
        Ok(len)
    }

    fn extent(&self, file: NodeId, offset: u64) -> Result<Extent> {
        let inode = self.node(file)?;
        match (inode.attributes.kind, &inode.contents) {
            (Kind::File, Contents::Extents(_) | Contents::Blocks) if offset < inode.attributes.size => {
                FileMap { ext: self, inode: &inode }.extent(offset)
            }
            _ => Ok(Extent { stored: true, len: inode.attributes.size.saturating_sub(offset) }),
        }
    }

    fn read_link(&self, link: NodeId) -> Result<Vec<u8>> {
        let inode = self.node(link)?;
        if inode.attributes.kind == Kind::Symlink { self.target(&inode) } else { Err(Error::Invalid) }
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        let inode = self.node(node)?;
        self.xattr_value(&inode, name)
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Vec<u8>>> {
        let inode = self.node(node)?;
        self.xattr_names(&inode)
    }

    fn summary(&self) -> Summary {
        self.summary.clone()
    }
}
