//! FAT12, FAT16 and FAT32: a table that chains clusters, and directories of 32-byte slots.
//!
//! Specification: Microsoft *FAT: General Overview of On-Disk Format*, 1.03; where it and the Linux
//! kernel differ, the kernel's reading is followed.
//!
//! ```text
//!   boot sector | reserved (FSInfo) | table | table | root directory | clusters 2, 3, ...
//!                                                     FAT12/16 only    files and directories
//! ```
//! A node's number is the byte position of its 8.3 entry, and 0 for the root directory, which has
//! none; a node that is renamed keeps its number (see `state::Nodes`).
//!
//! *Supported*: FAT12/16/32 with sectors of 512 to 16,384 bytes and clusters of any size, DOS 1.x
//! floppies without parameter block, FAT32 by the backup of a wiped boot sector, one to four tables,
//! mirroring off, long names, Windows NT's
//! case bits, OEM code pages, times in a zone that the user names; all changes that
//! these structures can hold, in an order that survives a crash (see `commit`).
//! *Not supported*: OS/2 extended attributes (their file is shown as it
//! is), TFAT, compressed volumes (DoubleSpace).
//!
//! Why not the crate that everyone knows: fatfs 0.3.6 made every directory in a way that
//! `fsck.fat` rejects, lost files on a full disk, refused small FAT32 volumes, and listed looping
//! chains without end. It formats blank images soundly, and that is what it is used for.

mod clusters;
mod commit;
mod directory;
mod entry;
mod free;
mod geometry;
mod legacy;
mod name;
mod rename;
mod rows;
mod state;
mod table;
pub(super) mod time;
mod verify;
mod write;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use self::directory::{Decoder, Directory, Hasher, MAX_SLOTS};
use self::entry::{Entry, LONG, SLOT};
use self::geometry::{Geometry, Info, Root, Width, corrupt};
use self::name::CodePage;
use self::state::State;
use self::table::{Chain, End, Table};
use self::time::Stamp;
use super::{
    Attributes, DirEntry, EntrySink, FileSystem, FileSystemFormat, FileSystemWrite, Kind, NodeId, Options, Placed,
    Summary,
};
use crate::bytes::Evidence;
use crate::cache::Cache;
use crate::check::Check;
use crate::device::{Device, read_array};
use crate::error::{Error, Result};

/// Name of the format in errors.
const FAT: &str = "fat";
/// The root directory's number; no entry can lie in the boot sector.
const ROOT: NodeId = NodeId(0);
/// Bounds on what is kept decoded, in bytes.
const KEPT_CHAINS: u64 = 4 << 20;
const KEPT_DIRECTORIES: u64 = 16 << 20;
/// Some sixteen thousand rows.
const LARGE_DIRECTORY: u64 = 4 << 20;
/// A directory is read so many bytes at a time.
const DIRECTORY_PIECE: u64 = 32 << 10;
/// A larger FAT32 table is not counted when FSInfo has the number of free clusters.
const COUNTED_TABLE: u64 = 4 << 20;
/// No more of a directory's chain is used, and one that is longer shows that it is.
const DIRECTORY_CHAIN: u64 = MAX_SLOTS as u64 * SLOT as u64 + 1;
/// Clusters past a file's size that its blocks count; a chain can have all of the volume's, whatever the size.
const SPARE_CLUSTERS: u64 = 4096;

/// The table's row.
pub const FORMAT: FileSystemFormat = FileSystemFormat { name: FAT, probe: Geometry::probe, open };

fn open(device: Device, options: &Options) -> Result<Arc<dyn FileSystem>> {
    Ok(Arc::new(Fat::open(device, options)?))
}

/// A FAT volume.
struct Fat {
    device: Device,
    geometry: Arc<Geometry>,
    table: Table,
    info: Option<Info>,
    page: CodePage,
    /// Minutes that the volume's times are ahead of UTC.
    time_offset: i32,
    options: Options,
    /// Chains by first cluster.
    chains: Cache<u32, Arc<Chain>>,
    /// Directories by first cluster, 0 for the root. Changed in place, under the state's write lock.
    directories: Cache<u32, Arc<RwLock<Directory>>>,
    /// Which entry each directory's first cluster belongs to, as far as seen.
    claims: Mutex<HashMap<u32, Claim>>,
    hasher: Hasher,
    /// Free clusters, once counted; of no use any more once the state has a map of them.
    free: Mutex<Option<u32>>,
    /// Times of last write that are not in their entries yet, of files written to in place.
    touched: Mutex<HashMap<NodeId, Stamp>>,
    /// What differs from the disk. Held shared by all that reads, so that no cluster changes its
    /// owner meanwhile; on a read-only volume no one ever waits for it.
    state: RwLock<State>,
}

/// The owner of a directory's clusters: the entry that was seen first. Another entry with the same
/// first cluster is damage, and following it could lead round in circles.
#[derive(Debug, Clone, Copy)]
struct Claim {
    node: NodeId,
    /// First cluster of the directory that has the entry, 0 for the root.
    parent: u32,
    /// Short name in the entry.
    short: [u8; 11],
}

impl Fat {
    fn open(device: Device, options: &Options) -> Result<Self> {
        let mut geometry = Geometry::read(device.as_ref())?;
        let page = CodePage::new(options.codepage.unwrap_or(437))?;
        let info = match geometry.info_offset {
            Some(at) => read_array(device.as_ref(), at).ok().and_then(|sector| Info::parse(&sector)),
            None => None,
        };
        if geometry.width == Width::Fat32 && info.is_none() {
            geometry.notes.push("there is no FSInfo sector".to_owned());
            geometry.info_offset = None;
        }
        let mut claims = HashMap::new();
        if let Root::Chain(first) = geometry.root {
            claims.insert(first, Claim { node: ROOT, parent: 0, short: [0; 11] });
        }
        let geometry = Arc::new(geometry);
        let fat = Self {
            table: Table::new(device.clone(), geometry.clone()),
            device,
            geometry,
            info,
            page,
            time_offset: options.time_offset,
            options: options.clone(),
            chains: Cache::new(KEPT_CHAINS),
            directories: Cache::for_heavy(KEPT_DIRECTORIES, LARGE_DIRECTORY),
            claims: Mutex::new(claims),
            hasher: Hasher::default(),
            free: Mutex::new(None),
            touched: Mutex::new(HashMap::new()),
            state: RwLock::new(State::default()),
        };
        Ok(fat)
    }

    fn shared(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Metadata as it stands now: the disk's bytes, with what was changed since laid over them.
    fn read_metadata(&self, state: &State, buf: &mut [u8], at: u64) -> Result<()> {
        if !state.copy(buf, at, self.geometry.sector_size) {
            self.device.read_exact_at(buf, at)?;
            state.overlay(buf, at, self.geometry.sector_size);
        }
        Ok(())
    }

    /// The entry of a node that is not the root, as it stands now.
    fn entry(&self, state: &State, node: NodeId) -> Result<Entry> {
        let mut entry = self.stored_entry(state, node)?;
        if let Some(stamp) = self.touched.lock().unwrap_or_else(PoisonError::into_inner).get(&node) {
            entry.modified = *stamp;
            if !entry.is_directory() {
                entry.attributes |= entry::ARCHIVE;
            }
        }
        Ok(entry)
    }

    fn stored_entry(&self, state: &State, node: NodeId) -> Result<Entry> {
        if let Some(orphan) = state.orphans.get(&node) {
            return Ok(*orphan);
        }
        if node == ROOT {
            return Err(Error::NotFound);
        }
        let at = state.nodes.find(node).ok_or(Error::Stale)?;
        let mut slot = [0; SLOT];
        match self.read_metadata(state, &mut slot, at) {
            Err(Error::PastEnd { .. }) => return Err(Error::NotFound),
            other => other?,
        }
        if matches!(slot, [0 | entry::FREED, ..]) || state.removed.contains_key(&at) {
            return Err(Error::Stale);
        }
        let entry = Entry::parse(&slot, at, self.geometry.width)?;
        if entry.attributes & 0x3f == LONG { Err(Error::NotFound) } else { Ok(entry) }
    }

    /// The chain of a file or directory, as far as it is used; `at` is the byte position of its entry.
    fn file_chain(&self, state: &State, entry: &Entry, at: u64) -> Result<Arc<Chain>> {
        let spare = SPARE_CLUSTERS.saturating_mul(self.geometry.cluster_size.into());
        let size = u64::from(entry.size).saturating_add(spare);
        self.file_chain_to(state, entry, at, if entry.is_directory() { DIRECTORY_CHAIN } else { size })
    }

    /// The same, as far as the clusters of so many bytes.
    fn file_chain_to(&self, state: &State, entry: &Entry, at: u64, most: u64) -> Result<Arc<Chain>> {
        if entry.cluster == 0 {
            return Ok(Arc::new(Chain::fixed(at, 0)));
        }
        if self.geometry.cluster_offset(entry.cluster).is_none() {
            let end = End::Broken(corrupt("first cluster of a directory entry", at));
            return Ok(Arc::new(Chain { end, ..Chain::fixed(at, 0) }));
        }
        self.chain(state, entry.cluster, most)
    }

    /// A chain, as far as the clusters of so many bytes.
    fn chain(&self, state: &State, first: u32, most: u64) -> Result<Arc<Chain>> {
        let make = || {
            let chain = self.table.chain(&state.table, first, most);
            let weight = chain.weight();
            (Arc::new(chain), weight)
        };
        let mut chain = self.chains.get_or_make(&first, || Ok::<_, Error>(make()))?;
        if chain.is_short_of(most) {
            let (longer, weight) = make();
            self.chains.insert(first, longer.clone(), weight);
            chain = longer;
        }
        // The image does not change by itself, but what the host failed to read may be there next time.
        if matches!(chain.end, End::Broken(Error::Io { .. })) {
            self.chains.remove(&first);
        }
        Ok(chain)
    }

    /// Where a directory's slots lie; `key` is its first cluster, 0 for the root.
    fn directory_chain(&self, state: &State, key: u32) -> Result<Arc<Chain>> {
        match (key, self.geometry.root) {
            (0, Root::Fixed { offset, len }) => Ok(Arc::new(Chain::fixed(offset, len))),
            (0, Root::Chain(first)) => {
                if self.geometry.cluster_offset(first).is_none() {
                    return Err(corrupt("boot sector (cluster of the root directory)", 0x2c));
                }
                self.chain(state, first, DIRECTORY_CHAIN)
            }
            _ => self.chain(state, key, DIRECTORY_CHAIN),
        }
    }

    /// The key of a directory node.
    fn directory_key(&self, state: &State, node: NodeId) -> Result<u32> {
        if node == ROOT {
            return Ok(0);
        }
        let entry = self.entry(state, node)?;
        if !entry.is_directory() {
            return Err(Error::NotDirectory);
        }
        let at = state.nodes.position(node);
        if self.geometry.cluster_offset(entry.cluster).is_none() {
            return Err(corrupt("first cluster of a directory", at));
        }
        let claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        match claims.get(&entry.cluster) {
            Some(claim) if claim.node != node => {
                Err(corrupt("directory entry (its clusters belong to another directory)", at))
            }
            _ => Ok(entry.cluster),
        }
    }

    /// A directory, decoded. Damage past its start is kept in it.
    fn directory(&self, state: &State, key: u32) -> Result<Arc<RwLock<Directory>>> {
        let directory = self.directories.get_or_make(&key, || {
            let directory = self.decode(state, key)?;
            let weight = directory.weight();
            Ok::<_, Error>((Arc::new(RwLock::new(directory)), weight))
        })?;
        let failed = matches!(directory.read().unwrap_or_else(PoisonError::into_inner).damage, Some(Error::Io { .. }));
        if failed {
            self.directories.remove(&key);
        }
        Ok(directory)
    }

    fn decode(&self, state: &State, key: u32) -> Result<Directory> {
        let chain = self.directory_chain(state, key)?;
        let slots = u32::try_from(chain.len >> SLOT.ilog2()).unwrap_or(u32::MAX);
        let node = |at| state.nodes.at(at);
        let directory = Directory::new(self.page, slots.min(MAX_SLOTS));
        let mut decoder = Decoder::new(directory, &self.hasher, self.geometry.width, &node, &state.removed);
        let damage = match self.decode_slots(state, &chain, &mut decoder) {
            Err(error) => Some(error),
            Ok(true) => None,
            Ok(false) if slots > MAX_SLOTS => {
                Some(corrupt("directory (more than 65,536 entries)", chain.place(0).map_or(0, |(at, _)| at)))
            }
            Ok(false) => match &chain.end {
                End::Broken(error) => Some(error.clone()),
                End::Mark(_) | End::Further(_) => None,
            },
        };
        let (directory, children) = decoder.finish(damage);
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        for (cluster, node, short) in children {
            claims.entry(cluster).or_insert(Claim { node, parent: key, short });
        }
        Ok(directory)
    }

    /// True when the end mark was found.
    fn decode_slots(&self, state: &State, chain: &Chain, decoder: &mut Decoder<'_>) -> Result<bool> {
        let end = chain.len.min(u64::from(MAX_SLOTS).saturating_mul(SLOT as u64));
        let mut offset = 0u64;
        let mut number = 0u32;
        let mut buf = vec![0; usize::try_from(end.min(DIRECTORY_PIECE)).map_err(|_| Error::Invalid)?];
        while let Some((at, run)) = chain.place(offset).filter(|_| offset < end) {
            let len = run.min(end.saturating_sub(offset)).min(DIRECTORY_PIECE);
            let piece = usize::try_from(len).ok().and_then(|len| buf.get_mut(..len)).ok_or(Error::Invalid)?;
            self.read_metadata(state, piece, at)?;
            for (slot, place) in piece.chunks_exact(SLOT).zip((at..).step_by(SLOT)) {
                if !decoder.slot(number, slot, place)? {
                    return Ok(true);
                }
                number = number.saturating_add(1);
            }
            offset = offset.saturating_add(len);
        }
        Ok(false)
    }

    /// Number of free clusters; `None` when it cannot be told.
    fn free_clusters(&self) -> Option<u32> {
        if let Some(free) = self.shared().free_clusters() {
            return Some(free);
        }
        let mut known = *self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            let hint = self.info.and_then(|info| info.free).filter(|&free| free <= self.geometry.cluster_count);
            let state = self.shared();
            known = match hint {
                Some(free) if self.table.used_len() > COUNTED_TABLE => Some(free),
                hint => self.table.scan(&state.table, |_| {}).ok().or(hint),
            };
            *self.free.lock().unwrap_or_else(PoisonError::into_inner) = known;
        }
        known
    }

    /// What the flags say that an orderly unmount would have set.
    fn flags(&self, notes: &mut Vec<String>) {
        if self.shared().marked.is_some() {
            return;
        }
        let state = self.geometry.state_offset.and_then(|at| read_array::<1>(self.device.as_ref(), at).ok());
        if state.is_some_and(|[flags]| flags & 1 != 0) {
            notes.push("the boot sector's dirty flag is set: the volume was not unmounted".to_owned());
        }
        let guard = self.shared();
        let Ok(piece) = self.table.piece(&guard.table, 0) else { return };
        let Some(clean) = self.clean_bit() else { return };
        let sound = clean >> 1;
        let Some(flags) = self.table.number(&piece, 1) else { return };
        if flags & clean == 0 {
            notes.push("the table's dirty flag is set: the volume was not unmounted".to_owned());
        }
        if flags & sound == 0 {
            notes.push("the table's error flag is set: a driver met read or write errors".to_owned());
        }
    }

    /// The label as `blkid` has it: the root directory's, or the boot sector's unless it says that
    /// there is none.
    fn label(&self) -> Option<String> {
        let state = self.shared();
        let root = self.directory(&state, 0).ok();
        let root = root.and_then(|root| root.read().unwrap_or_else(PoisonError::into_inner).label);
        let boot = self.geometry.label.filter(|label| label != b"NO NAME    ");
        root.or(boot).map(|label| self.page.label(&label)).filter(|label| !label.is_empty())
    }
}

impl FileSystem for Fat {
    fn place(&self, file: NodeId, offset: u64) -> Result<Option<Placed>> {
        let state = self.shared();
        let entry = self.entry(&state, file)?;
        let chain = self.file_chain(&state, &entry, state.nodes.position(file))?;
        let rest = u64::from(entry.size).saturating_sub(offset);
        Ok(chain.place(offset).map(|(at, len)| Placed { at: Some(at), len: len.min(rest) }))
    }

    fn checks(&self) -> Vec<Check> {
        verify::checks(&self.device, &self.geometry)
    }

    fn root(&self) -> NodeId {
        ROOT
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes> {
        let state = self.shared();
        if node == ROOT {
            let len = self.directory_chain(&state, 0).map_or(0, |chain| chain.len);
            let mode = self.options.permissions(Kind::Directory);
            return Ok(Attributes { mode, blocks: Some(len / 512), ..Attributes::new(Kind::Directory, len) });
        }
        let entry = self.entry(&state, node)?;
        let chain = self.file_chain(&state, &entry, state.nodes.position(node));
        let stored = chain.map(|chain| chain.len).ok();
        let (kind, size) = match entry.is_directory() {
            true => (Kind::Directory, stored.unwrap_or(0)),
            false => (Kind::File, u64::from(entry.size)),
        };
        let program = (self.options.showexec && kind == Kind::File).then(|| entry.is_program());
        let permitted = if program == Some(false) { !0o111 } else { 0o7777 };
        let day = Stamp { date: entry.accessed, ..Stamp::default() };
        Ok(Attributes {
            blocks: stored.map(|len| len / 512),
            mode: self.options.permissions(kind).map(|mode| mode & permitted),
            program,
            read_only: entry.attributes & entry::READ_ONLY != 0,
            links: Some(u32::from(!state.orphans.contains_key(&node))),
            accessed: day.to_utc(self.time_offset),
            modified: entry.modified.to_utc(self.time_offset),
            created: entry.created.to_utc(self.time_offset),
            ..Attributes::new(kind, size)
        })
    }

    fn read_dir(&self, dir: NodeId, cursor: u64, emit: &mut EntrySink<'_>) -> Result<()> {
        // Rows are taken out in batches, so that no lock is held while `emit` runs.
        const BATCH: usize = 256;
        let mut cursor = u32::try_from(cursor).unwrap_or(u32::MAX);
        loop {
            let (rows, damage) = {
                let state = self.shared();
                if state.orphans.contains_key(&dir) {
                    return Ok(());
                }
                let key = self.directory_key(&state, dir)?;
                let directory = self.directory(&state, key)?;
                let directory = directory.read().unwrap_or_else(PoisonError::into_inner);
                let rows = directory.rows_from(cursor).take(BATCH).map(|(slot, row)| (slot, row.clone()));
                (rows.collect::<Vec<_>>(), directory.damage.clone())
            };
            let count = rows.len();
            for (slot, row) in rows {
                cursor = slot.saturating_add(1);
                let kind = if row.directory { Kind::Directory } else { Kind::File };
                let name = Cow::Owned(row.name.into_vec());
                if !emit(DirEntry { node: row.node, name, kind, next: u64::from(cursor) }) {
                    return Ok(());
                }
            }
            if count < BATCH {
                return damage.map_or(Ok(()), Err);
            }
        }
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        let state = self.shared();
        if state.orphans.contains_key(&dir) {
            return Ok(None);
        }
        let key = self.directory_key(&state, dir)?;
        let directory = self.directory(&state, key)?;
        let directory = directory.read().unwrap_or_else(PoisonError::into_inner);
        match (directory.find(&self.hasher, name), &directory.damage) {
            (Some((_, row)), _) => Ok(Some(row.node)),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Ok(None),
        }
    }

    fn has_unicode_names(&self) -> bool {
        true
    }

    fn is_other_spelling(&self, dir: NodeId, name: &[u8]) -> Result<bool> {
        let state = self.shared();
        if state.orphans.contains_key(&dir) {
            return Ok(false);
        }
        let key = self.directory_key(&state, dir)?;
        let directory = self.directory(&state, key)?;
        let directory = directory.read().unwrap_or_else(PoisonError::into_inner);
        Ok(directory.find(&self.hasher, name).is_some_and(|(_, row)| row.name.as_ref() != name))
    }

    fn read(&self, file: NodeId, buf: &mut [u8], offset: u64) -> Result<usize> {
        let state = self.shared();
        if file == ROOT {
            return Err(Error::IsDirectory);
        }
        let entry = self.entry(&state, file)?;
        if entry.is_directory() {
            return Err(Error::IsDirectory);
        }
        let left = u64::from(entry.size).saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let Some(buf) = buf.get_mut(..len).filter(|buf| !buf.is_empty()) else { return Ok(0) };
        let chain = self.file_chain(&state, &entry, state.nodes.position(file))?;
        chain.read(self.device.as_ref(), buf, offset)?;
        Ok(len)
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        if node == ROOT {
            return Err(Error::NoAttribute);
        }
        let entry = self.entry(&self.shared(), node)?;
        match name {
            b"user.fat.attributes" => Ok(format!("0x{:02x}", entry.attributes).into_bytes()),
            b"user.fat.shortname" => Ok(self.page.short_name(&entry.short, 0)),
            _ => Err(Error::NoAttribute),
        }
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Vec<u8>>> {
        if node == ROOT {
            return Ok(Vec::new());
        }
        self.entry(&self.shared(), node)?;
        Ok(vec![b"user.fat.attributes".to_vec(), b"user.fat.shortname".to_vec()])
    }

    fn summary(&self) -> Summary {
        let geometry = &self.geometry;
        let mut notes = geometry.notes.clone();
        self.flags(&mut notes);
        let free = self.free_clusters();
        if free.is_none() {
            notes.push("the table cannot be read in full: the number of free clusters is not known".to_owned());
        }
        let mut evidence = geometry.evidence.clone();
        if let Ok(bytes) = read_array::<4>(self.device.as_ref(), geometry.table_start(geometry.first_table())) {
            let what = "start of the table: media byte and end mark";
            evidence.push(Evidence {
                offset: geometry.table_start(geometry.first_table()),
                bytes: bytes.to_vec(),
                what,
            });
        }
        Summary {
            variant: geometry.variant().to_owned(),
            label: self.label(),
            uuid: geometry.serial.map(|serial| format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)),
            block_size: geometry.cluster_size,
            total_blocks: u64::from(geometry.cluster_count),
            free_blocks: u64::from(free.unwrap_or(0)),
            reserved_blocks: 0,
            total_nodes: 0,
            free_nodes: 0,
            // Each UTF-16 unit takes up to three bytes of UTF-8.
            name_max: 765,
            evidence,
            notes,
        }
    }

    fn writer(&self) -> Option<&dyn FileSystemWrite> {
        self.device.writer().map(|_| self as &dyn FileSystemWrite)
    }
}
