//! exFAT, the file system of SD cards and USB sticks: a table that chains clusters, where they do not just
//! follow each other, a bitmap of those in use, and directories of entry sets with checksums.
//!
//! Specification: Microsoft *exFAT file system specification*, revision 1.00.
//!
//! ```text
//!   boot region | its backup | table (| table) | clusters 2, 3, ...
//!      |                                          bitmap, up-case table, files, directories
//!      `-> root directory -> bitmap, up-case table, label
//!                         `-> entry set -> first cluster -> the table, or the clusters behind it -> contents
//! ```
//! A node's number is the byte position of the first entry of its set, and 0 for the root directory, which
//! has none.
//!
//! *Supported*: sectors of 512 to 4,096 bytes, clusters of all sizes, volumes by the backup of a damaged boot
//! region, the table and bitmap that TexFAT says are in use, zones of times, and names compared by the
//! volume's own up-case table. *Not supported*: writing, entries of vendors (skipped), other revisions.

mod bitmap;
mod boot;
mod directory;
mod entry;
mod table;
mod upcase;
mod verify;

use std::collections::HashMap;
use std::hash::RandomState;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use self::bitmap::Bitmap;
use self::boot::{Geometry, NAME_AT};
use self::directory::{Directory, Index, Item, MAX_LEN};
use self::entry::{ENTRY, FileEntry, READ_ONLY, kind};
use self::table::{Chain, FileMap, Table};
use self::upcase::UpCase;
use super::{Attributes, DirEntry, EntrySink, FileSystem, FileSystemFormat, Kind, NodeId, Options, Placed, Summary};
use crate::bytes::{Evidence, Record};
use crate::cache::Cache;
use crate::check::Check;
use crate::device::mapped::{Mapping, Place, read_runs};
use crate::device::{Device, Extent, read_array};
use crate::error::{Error, Result};
use crate::text;

/// Name of the format in errors.
const EXFAT: &str = "exfat";
/// The root directory's number; no entry can lie in the boot sector.
const ROOT: NodeId = NodeId(0);
/// Bounds on what is kept decoded, in bytes.
const ENTRY_CACHE: u64 = 4 << 20;
const CHAIN_CACHE: u64 = 4 << 20;
const INDEX_CACHE: u64 = 8 << 20;
/// A quarter of a million names.
const LARGE_INDEX: u64 = 2 << 20;
const DAMAGE_CACHE: u64 = 64 << 10;
/// The field of the boot sector that leads to the root directory.
const ROOT_FIELD: u64 = 0x60;
/// The attribute with the bits that files have here and on FAT.
const ATTRIBUTES: &[u8] = b"user.fat.attributes";

/// The table's row.
pub const FORMAT: FileSystemFormat = FileSystemFormat { name: EXFAT, probe: Geometry::probe, open };

fn open(device: Device, options: &Options) -> Result<Arc<dyn FileSystem>> {
    Ok(Arc::new(Exfat::open(device, options)?))
}

/// An exFAT volume.
struct Exfat {
    device: Device,
    geometry: Arc<Geometry>,
    table: Table,
    options: Options,
    root: Directory,
    bitmap: Result<Arc<Bitmap>>,
    up_case: UpCase,
    /// What is wrong with the volume's own up-case table.
    up_case_fault: Option<String>,
    label: Option<String>,
    guid: Option<String>,
    entries: Cache<u64, Arc<FileEntry>>,
    /// Chains of files and directories that are in the table.
    chains: Cache<NodeId, Arc<Chain>>,
    indexes: Cache<NodeId, Arc<Index>>,
    /// Damage met in a directory.
    damaged: Cache<NodeId, Error>,
    /// Which entry each directory's first cluster belongs to, as far as seen.
    claims: Mutex<HashMap<u32, Claim>>,
    hasher: RandomState,
}

/// The owner of a directory's clusters: the entry that was seen first. Another one with the same first cluster
/// is damage, and following it could lead round in circles.
#[derive(Debug, Clone, Copy)]
struct Claim {
    node: NodeId,
    /// The directory that has the entry.
    parent: NodeId,
}

/// What the root directory says about the volume.
#[derive(Default)]
struct VolumeEntries {
    bitmaps: Vec<Result<Bitmap>>,
    up_case: Option<([u8; ENTRY], u64)>,
    label: Option<[u8; ENTRY]>,
    guid: Option<[u8; 16]>,
    rows: bool,
}

impl Exfat {
    fn open(device: Device, options: &Options) -> Result<Self> {
        let geometry = Arc::new(Geometry::read(device.as_ref())?);
        let table = Table::new(device.clone(), geometry.clone());
        let root_at = geometry.at.saturating_add(ROOT_FIELD);
        let chain = table.chain(geometry.root, 1, MAX_LEN, root_at);
        if let (0, Some(error)) = (chain.count, &chain.damage) {
            return Err(error.clone());
        }
        let len = u64::from(chain.count).saturating_mul(geometry.cluster_size).min(MAX_LEN);
        let root = Directory { node: ROOT, len, damage: chain.damage.clone(), chain: Arc::new(chain) };
        let claims = HashMap::from([(geometry.root, Claim { node: ROOT, parent: ROOT })]);
        let mut exfat = Self {
            device,
            table,
            options: options.clone(),
            root,
            bitmap: Err(Error::Invalid),
            up_case: UpCase::recommended(),
            up_case_fault: None,
            label: None,
            guid: None,
            entries: Cache::new(ENTRY_CACHE),
            chains: Cache::new(CHAIN_CACHE),
            indexes: Cache::for_heavy(INDEX_CACHE, LARGE_INDEX),
            damaged: Cache::new(DAMAGE_CACHE),
            claims: Mutex::new(claims),
            hasher: RandomState::new(),
            geometry,
        };
        exfat.read_volume_entries()?;
        Ok(exfat)
    }

    /// Reads what the root directory says about the volume; no further than needed.
    fn read_volume_entries(&mut self) -> Result<()> {
        let mut found = VolumeEntries::default();
        let scanned = self.scan(&self.root, 0, &mut |item| {
            match item {
                Item::Row(_) => found.rows = true,
                Item::Volume(entry, at) => self.volume_entry(entry, at, &mut found),
            }
            let complete = found.bitmaps.iter().flatten().any(|bitmap| bitmap.second == self.geometry.second_active)
                && found.up_case.is_some()
                && found.label.is_some();
            // What else there is of these stands beside them.
            if complete && found.rows { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let root_at = self.geometry.cluster_offset(self.geometry.root).unwrap_or(0);
        if !found.rows && found.bitmaps.is_empty() && found.up_case.is_none() {
            // Every volume has these two: nothing is not an empty directory.
            return Err(scanned.err().unwrap_or_else(|| Error::corrupt(EXFAT, "root directory", root_at)));
        }
        self.bitmap = bitmap::choose(found.bitmaps, self.geometry.second_active, root_at);
        match self.read_up_case(found.up_case, root_at) {
            Ok(up_case) => self.up_case = up_case,
            Err(error) => self.up_case_fault = Some(error.to_string()),
        }
        self.label = found.label.and_then(|entry| label(&entry));
        self.guid = found.guid.map(text::guid);
        Ok(())
    }

    fn volume_entry(&self, entry: &[u8; ENTRY], at: u64, found: &mut VolumeEntries) {
        match entry.first() {
            // There are two at the most.
            Some(&kind::BITMAP) if found.bitmaps.len() < 2 => {
                found.bitmaps.push(Bitmap::parse(entry, at, &self.geometry, &self.table));
            }
            Some(&kind::UP_CASE) => found.up_case = found.up_case.or(Some((*entry, at))),
            Some(&kind::LABEL) => found.label = found.label.or(Some(*entry)),
            Some(&kind::GUID) => {
                found.guid = found.guid.or_else(|| entry.get(6..).and_then(|guid| guid.first_chunk()).copied());
            }
            _ => {}
        }
    }

    fn read_up_case(&self, entry: Option<([u8; ENTRY], u64)>, root_at: u64) -> Result<UpCase> {
        let (entry, at) = entry.ok_or_else(|| Error::corrupt(EXFAT, "root directory (no up-case table)", root_at))?;
        let entry = Record::new(EXFAT, "up-case table entry", at, &entry);
        let len = entry.le64(24)?;
        if len == 0 || len > upcase::MAX_LEN {
            return Err(entry.corrupt_field("DataLength"));
        }
        let first = entry.le32(20)?;
        let chain = self.table.chain(first, len, len, at);
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| Error::Invalid)?];
        let map = FileMap { geometry: &self.geometry, chain: &chain, size: len, valid: len };
        read_runs(&map, self.device.as_ref(), &mut bytes, 0)?;
        UpCase::parse(&bytes, entry.le32(4)?, self.geometry.cluster_offset(first).unwrap_or(at))
    }

    /// The file or directory of a node that is not the root.
    fn entry(&self, node: NodeId) -> Result<Arc<FileEntry>> {
        // Whoever lists a large directory asks for each of its nodes once, and none of them is worth another.
        self.entries.get_or_make_aside(&node.0, || {
            let entry = self.read_entry(node)?;
            let weight = (entry.name.capacity().saturating_mul(2) as u64).saturating_add(128);
            Ok((Arc::new(entry), weight))
        })
    }

    /// The entry of a file.
    fn file(&self, node: NodeId) -> Result<Arc<FileEntry>> {
        if node == ROOT {
            return Err(Error::IsDirectory);
        }
        let entry = self.entry(node)?;
        if entry.is_directory() { Err(Error::IsDirectory) } else { Ok(entry) }
    }

    /// The clusters of a node.
    fn chain(&self, node: NodeId, entry: &FileEntry) -> Arc<Chain> {
        let stream = entry.stream;
        let len = if entry.is_directory() { stream.size.min(MAX_LEN) } else { stream.size };
        if stream.contiguous {
            return Arc::new(self.table.run(stream.first, len, node.0));
        }
        let made = self.chains.get_or_make(&node, || {
            let chain = self.table.chain(stream.first, len, len, node.0);
            let weight = chain.weight();
            Ok::<_, std::convert::Infallible>((Arc::new(chain), weight))
        });
        let Ok(chain) = made;
        // The image does not change by itself, but what the host failed to read may be there next time.
        if matches!(chain.damage, Some(Error::Io { .. })) {
            self.chains.remove(&node);
        }
        chain
    }

    fn notes(&self) -> Vec<String> {
        let geometry = &self.geometry;
        let mut notes = geometry.notes.clone();
        if geometry.dirty {
            notes.push("the dirty flag is set: the volume was not unmounted".to_owned());
        }
        if geometry.failed {
            notes.push("the flag of media failures is set: a driver met bad clusters".to_owned());
        }
        let end = geometry.heap_offset.saturating_add(geometry.heap_len()).max(geometry.volume_size);
        if end > self.device.size() {
            notes.push(format!("the volume's last {} bytes are missing", end.saturating_sub(self.device.size())));
        }
        if let Some(fault) = &self.up_case_fault {
            notes.push(format!("{fault}: names are compared by the recommended one"));
        }
        if let Some(guid) = &self.guid {
            notes.push(format!("volume GUID {guid}"));
        }
        notes
    }
}

/// The label in its entry.
fn label(entry: &[u8; ENTRY]) -> Option<String> {
    let units = entry.get(2..24)?.chunks_exact(2).filter_map(|pair| Some(u16::from_le_bytes(*pair.first_chunk()?)));
    let units = units.take(entry.get(1).copied()?.into());
    let label = String::from_utf8_lossy(&text::utf16_to_bytes(units)).into_owned();
    Some(label).filter(|label| !label.is_empty())
}

impl FileSystem for Exfat {
    fn root(&self) -> NodeId {
        ROOT
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes> {
        if node == ROOT {
            let len = u64::from(self.root.chain.count).saturating_mul(self.geometry.cluster_size);
            let mode = self.options.permissions(Kind::Directory);
            return Ok(Attributes { mode, blocks: Some(len / 512), ..Attributes::new(Kind::Directory, len) });
        }
        let entry = self.entry(node)?;
        let kind = if entry.is_directory() { Kind::Directory } else { Kind::File };
        let size = entry.stream.size;
        let room = self.geometry.clusters_of(size).saturating_mul(self.geometry.cluster_size);
        let utc = |time: entry::Zoned| time.to_utc(self.options.time_offset);
        Ok(Attributes {
            blocks: Some(room / 512),
            mode: self.options.permissions(kind),
            read_only: entry.attributes & READ_ONLY != 0,
            links: Some(1),
            accessed: utc(entry.accessed),
            modified: utc(entry.modified),
            created: utc(entry.created),
            ..Attributes::new(kind, size)
        })
    }

    /// Where sets are damaged, all others are given first; the damage is the error behind them. One whose name can
    /// be told is among the rows, and answers with the damage itself.
    fn read_dir(&self, dir: NodeId, cursor: u64, emit: &mut EntrySink<'_>) -> Result<()> {
        self.scan(&self.directory(dir)?, cursor, &mut |item| {
            let Item::Row(row) = item else { return ControlFlow::Continue(()) };
            let kind = if row.file.is_directory() { Kind::Directory } else { Kind::File };
            let name = text::utf16_to_bytes(row.file.name).into();
            let more = emit(DirEntry { node: row.node, name, kind, next: row.next });
            if more { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        Ok(self.find(dir, name)?.map(|row| row.node))
    }

    fn has_unicode_names(&self) -> bool {
        true
    }

    fn is_other_spelling(&self, dir: NodeId, name: &[u8]) -> Result<bool> {
        Ok(self.find(dir, name)?.is_some_and(|row| text::utf16_to_bytes(row.file.name) != name))
    }

    fn read(&self, file: NodeId, buf: &mut [u8], offset: u64) -> Result<usize> {
        let entry = self.file(file)?;
        let stream = entry.stream;
        let len = usize::try_from(stream.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let Some(buf) = buf.get_mut(..len).filter(|buf| !buf.is_empty()) else { return Ok(0) };
        let chain = self.chain(file, &entry);
        let map = FileMap { geometry: &self.geometry, chain: &chain, size: stream.size, valid: stream.valid };
        read_runs(&map, self.device.as_ref(), buf, offset)?;
        Ok(len)
    }

    fn extent(&self, file: NodeId, offset: u64) -> Result<Extent> {
        let stream = self.file(file)?.stream;
        let stored = offset < stream.valid;
        let end = if stored { stream.valid } else { stream.size };
        Ok(Extent { stored, len: end.saturating_sub(offset) })
    }

    fn place(&self, file: NodeId, offset: u64) -> Result<Option<Placed>> {
        let entry = self.file(file)?;
        let chain = self.chain(file, &entry);
        let (size, valid) = (entry.stream.size, entry.stream.valid);
        let run = FileMap { geometry: &self.geometry, chain: &chain, size, valid }.map(offset)?;
        let at = if let Place::At(at) = run.place { Some(at) } else { None };
        Ok(Some(Placed { at, len: run.len }))
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        if node == ROOT || name != ATTRIBUTES {
            return Err(Error::NoAttribute);
        }
        Ok(format!("0x{:02x}", self.entry(node)?.attributes).into_bytes())
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Vec<u8>>> {
        if node == ROOT {
            return Ok(Vec::new());
        }
        self.entry(node).map(|_| vec![ATTRIBUTES.to_vec()])
    }

    fn summary(&self) -> Summary {
        let (free_blocks, estimate) = self.free_clusters();
        let mut notes = self.notes();
        notes.extend(estimate);
        let offset = self.geometry.at.saturating_add(NAME_AT);
        let name = read_array::<8>(self.device.as_ref(), offset).ok();
        let evidence = name.map(|name| Evidence { offset, bytes: name.to_vec(), what: "name of the file system" });
        let serial = self.geometry.serial;
        Summary {
            variant: "exFAT".to_owned(),
            label: self.label.clone(),
            uuid: Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)),
            block_size: u32::try_from(self.geometry.cluster_size).unwrap_or(u32::MAX),
            total_blocks: u64::from(self.geometry.cluster_count),
            free_blocks,
            // Each UTF-16 unit takes up to three bytes of UTF-8.
            name_max: 765,
            evidence: evidence.into_iter().collect(),
            notes,
            ..Summary::default()
        }
    }

    fn checks(&self) -> Vec<Check> {
        verify::checks(self)
    }
}
