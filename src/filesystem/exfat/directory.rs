//! Directories: a stream of entry sets, the index that makes look-ups fast, and the entries of the root
//! directory that are about the volume.
//!
//! ```text
//!   |0x85 0xc0 0xc1 0xc1|0x85 0xc0 0xc1|0x05 0x40 0x41|0x85 0xc0 ..|0x00, nothing follows
//!    a set                              deleted         sets cross the ends of clusters
//!                       ^ a row's cursor is the byte behind its set
//! ```

use std::hash::BuildHasher;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::entry::{ENTRY, ENTRY_LEN, FileEntry, FileSet, MAX_SET, kind};
use super::table::{Chain, FileMap};
use super::{Claim, EXFAT, Exfat, ROOT};
use crate::cache::lock;
use crate::device::mapped::{Mapping, Place, Run};
use crate::error::{Error, Result};
use crate::filesystem::NodeId;
use crate::text;

/// The specification's bound on a directory's length.
pub(super) const MAX_LEN: u64 = 256 << 20;
/// Read at once; the sector cache below keeps reads up to this length.
const PIECE: u64 = 32 << 10;
/// The first of a scan is shorter: who resumes a listing, or looks one name up, wants no more.
const FIRST_PIECE: u64 = 4 << 10;

/// An open directory.
#[derive(Clone)]
pub(super) struct Directory {
    pub node: NodeId,
    pub chain: Arc<Chain>,
    /// Length in bytes.
    pub len: u64,
    /// Why there is more of it than is read.
    pub damage: Option<Error>,
}

/// A file or directory in a directory.
pub(super) struct Row {
    /// Its number: the byte of its first entry.
    pub node: NodeId,
    pub file: FileEntry,
    /// Byte of the directory at which its set starts.
    pub start: u64,
    /// Byte behind its set.
    pub next: u64,
    /// What is wrong with the set.
    pub damage: Option<Error>,
}

/// What a scan meets.
pub(super) enum Item<'a> {
    Row(Row),
    /// An entry about the volume, and its byte position.
    Volume(&'a [u8; ENTRY], u64),
}

/// Where the names of a directory are.
pub(super) struct Index {
    /// (hash of the name in upper case, number of the set's first entry), sorted.
    rows: Vec<(u32, u32)>,
    /// The directory is readable in part: a name that is not found may stand in the rest.
    damage: Option<Error>,
}

/// Takes what a scan meets.
type Visit<'a> = &'a mut dyn FnMut(Item<'_>) -> ControlFlow<()>;

impl Exfat {
    /// Opens a directory; its rows are not read yet.
    pub(super) fn directory(&self, node: NodeId) -> Result<Directory> {
        if node == ROOT {
            return Ok(self.root.clone());
        }
        let entry = self.entry(node)?;
        if !entry.is_directory() {
            return Err(Error::NotDirectory);
        }
        let stream = entry.stream;
        if stream.size == 0 && stream.first != 0 {
            return Err(Error::corrupt(EXFAT, "stream extension (a directory of no length)", node.0));
        }
        let claimed = lock(&self.claims).get(&stream.first).is_some_and(|claim| claim.node != node);
        if claimed && stream.size > 0 {
            return Err(Error::corrupt(EXFAT, "stream extension (its clusters belong to another directory)", node.0));
        }
        let too_long = || Error::corrupt(EXFAT, "stream extension (a directory of more than 256 MiB)", node.0);
        let damage = (stream.size > MAX_LEN).then(too_long);
        let entries = stream.size.min(MAX_LEN) / ENTRY_LEN;
        Ok(Directory { node, chain: self.chain(node, &entry), len: entries.saturating_mul(ENTRY_LEN), damage })
    }

    /// Calls `visit` with what is in a directory from byte `cursor` on. Damage is passed over; when all else was
    /// visited, the first of it is the error.
    pub(super) fn scan(&self, directory: &Directory, cursor: u64, visit: Visit<'_>) -> Result<()> {
        let mut scan = Scan { exfat: self, directory, damage: None, foreign: false };
        let stopped = scan.run(cursor, visit).is_break();
        let found = scan.damage.or_else(|| directory.damage.clone().filter(|_| !stopped));
        if let Some(error) = found {
            self.damaged.insert(directory.node, error, 64);
        }
        // Damage is said at the end, also when the rows were fetched in several calls.
        if stopped { Ok(()) } else { self.damaged.get(&directory.node).map_or(Ok(()), Err) }
    }

    /// The row of a name: of exactly this name, or else without regard to case.
    pub(super) fn find(&self, node: NodeId, name: &[u8]) -> Result<Option<Row>> {
        let Some(wanted) = text::bytes_to_utf16(name) else { return Ok(None) };
        let directory = self.directory(node)?;
        let index = self.indexes.get_or_make(&node, || {
            let index = self.index(&directory);
            let weight = index.rows.capacity().saturating_mul(8).saturating_add(128) as u64;
            Ok::<_, Error>((Arc::new(index), weight))
        })?;
        // The image does not change by itself, but what the host failed to read may be there next time.
        if matches!(index.damage, Some(Error::Io { .. })) {
            self.indexes.remove(&node);
        }
        let hash = self.hash(&wanted);
        let first = index.rows.partition_point(|&(other, _)| other < hash);
        let candidates = index.rows.get(first..).unwrap_or_default();
        let mut found: Option<Row> = None;
        for &(_, number) in candidates.iter().take_while(|&&(other, _)| other == hash) {
            let mut row = None;
            let start = u64::from(number).saturating_mul(ENTRY_LEN);
            self.scan(&directory, start, &mut |item| {
                if let Item::Row(met) = item {
                    row = Some(met);
                }
                ControlFlow::Break(())
            })?;
            let Some(row) = row else { continue };
            if row.file.name == wanted {
                return Ok(Some(row));
            }
            if found.is_none() && self.upper(&row.file.name).eq(self.upper(&wanted)) {
                found = Some(row);
            }
        }
        match (found, &index.damage) {
            (None, Some(error)) => Err(error.clone()),
            (found, _) => Ok(found),
        }
    }

    fn index(&self, directory: &Directory) -> Index {
        let mut rows = Vec::new();
        let scanned = self.scan(directory, 0, &mut |item| {
            if let Item::Row(row) = item {
                let number = u32::try_from(row.start / ENTRY_LEN).unwrap_or(u32::MAX);
                rows.push((self.hash(&row.file.name), number));
            }
            ControlFlow::Continue(())
        });
        rows.sort_unstable();
        rows.shrink_to_fit();
        Index { rows, damage: scanned.err() }
    }

    /// Keyed, unlike the hash that is stored: an image that wants to be slow could have one for all its names.
    fn hash(&self, name: &[u16]) -> u32 {
        let upper: Vec<u16> = self.upper(name).collect();
        u32::try_from(self.hasher.hash_one(upper) >> 32).unwrap_or(0)
    }

    fn upper(&self, name: &[u16]) -> impl Iterator<Item = u16> {
        name.iter().map(|&unit| self.up_case.upper(unit))
    }

    /// The file of a node, by its number alone. Where its set goes on in another cluster, that is the next one of
    /// its directory, and which kind of directory that is cannot be seen from here: the checksum tells.
    pub(super) fn read_entry(&self, node: NodeId) -> Result<FileEntry> {
        let cluster = self.geometry.cluster_at(node.0).ok_or(Error::NotFound)?;
        let first = match self.read_bytes(node.0, ENTRY_LEN) {
            Err(Error::PastEnd { .. }) => return Err(Error::NotFound),
            other => other?,
        };
        let is_first = |entry: &[u8]| entry.first() == Some(&kind::FILE) && node.0.is_multiple_of(ENTRY_LEN);
        let Some(&[_, secondary]) = first.first_chunk::<2>().filter(|_| is_first(&first)) else {
            return Err(Error::NotFound);
        };
        let len = u64::from(secondary).saturating_add(1).saturating_mul(ENTRY_LEN);
        let start = self.geometry.cluster_offset(cluster).ok_or(Error::NotFound)?;
        let rest = start.saturating_add(self.geometry.cluster_size).saturating_sub(node.0);
        let parse = |set: &[u8]| {
            let found = FileSet::parse(set, node.0, self.geometry.heap_len())?;
            found.damage.map_or(Ok(found.file), Err)
        };
        if len <= rest {
            return parse(&self.read_bytes(node.0, len)?);
        }
        let chained = self.read_set(node.0, (rest, len), cluster, |cluster| self.table.after(cluster));
        match chained.and_then(|set| parse(&set)) {
            Ok(file) => Ok(file),
            Err(error) => {
                let neighbours = self.read_set(node.0, (rest, len), cluster, |cluster| cluster.checked_add(1));
                neighbours.and_then(|set| parse(&set)).map_err(|_| error)
            }
        }
    }

    /// A set of `len` bytes, `rest` of them in its first cluster.
    fn read_set(
        &self,
        at: u64,
        (rest, len): (u64, u64),
        cluster: u32,
        next: impl Fn(u32) -> Option<u32>,
    ) -> Result<Vec<u8>> {
        let mut set = self.read_bytes(at, rest)?;
        let mut cluster = cluster;
        while (set.len() as u64) < len {
            let further = next(cluster).and_then(|next| Some((next, self.geometry.cluster_offset(next)?)));
            let (next, at) = further.ok_or_else(|| Error::corrupt(EXFAT, "directory entry set", at))?;
            let more = len.saturating_sub(set.len() as u64).min(self.geometry.cluster_size);
            set.extend(self.read_bytes(at, more)?);
            cluster = next;
        }
        Ok(set)
    }

    /// Metadata, up to the length of the longest set or of a piece.
    fn read_bytes(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len.min(PIECE)).map_err(|_| Error::Invalid)?];
        self.device.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }
}

/// A walk over the entries of one directory.
struct Scan<'a> {
    exfat: &'a Exfat,
    directory: &'a Directory,
    /// The first damage.
    damage: Option<Error>,
    /// Secondary entries belong to a set that is skipped.
    foreign: bool,
}

impl Scan<'_> {
    fn damaged(&mut self, error: Error) {
        self.damage.get_or_insert(error);
    }

    fn map(&self) -> FileMap<'_> {
        let Directory { chain, len, .. } = self.directory;
        FileMap { geometry: &self.exfat.geometry, chain, size: *len, valid: *len }
    }

    /// Bytes of the directory in one place, at most so many, and where that is. A piece that cannot be read is tried
    /// again as one sector.
    fn piece(&self, run: Run, most: u64) -> Result<(u64, Vec<u8>)> {
        let Place::At(at) = run.place else { return Err(Error::Invalid) };
        let sector = self.exfat.geometry.sector_size;
        let len = run.len.min(most);
        let piece = self.exfat.read_bytes(at, len).or_else(|error| match len {
            len if len <= sector => Err(error),
            _ => self.exfat.read_bytes(at, sector),
        });
        Ok((at, piece?))
    }

    fn run(&mut self, cursor: u64, visit: Visit<'_>) -> ControlFlow<()> {
        // Anyone may seek to where no entry starts: what is left of a run there would be none, again and again.
        let start = cursor.checked_next_multiple_of(ENTRY_LEN).unwrap_or(u64::MAX);
        let (mut offset, mut most) = (start, FIRST_PIECE);
        while offset < self.directory.len {
            let run = match self.map().map(offset) {
                Ok(run) => run,
                Err(error) => {
                    self.damaged(error);
                    break;
                }
            };
            match self.piece(run, std::mem::replace(&mut most, PIECE)) {
                Ok((at, piece)) => match self.entries(offset, at, &piece, visit)? {
                    Some(next) => offset = next,
                    None => break,
                },
                Err(error) => {
                    // All that comes behind the end of an image that was cut off is missing as well, more or less.
                    let ends = matches!(error, Error::PastEnd { .. });
                    self.damaged(error);
                    if ends {
                        break;
                    }
                    offset = offset.saturating_add(1).next_multiple_of(self.exfat.geometry.sector_size);
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// The entries of a piece: where the next one starts, or `None` behind the last.
    fn entries(&mut self, offset: u64, at: u64, piece: &[u8], visit: Visit<'_>) -> ControlFlow<(), Option<u64>> {
        let mut within = 0usize;
        while let Some(entry) = piece.get(within..).and_then(|rest| rest.first_chunk::<ENTRY>()) {
            let here = at.saturating_add(within as u64);
            let logical = offset.saturating_add(within as u64);
            let [kind, secondary, ..] = *entry;
            let mut count = 1usize;
            match kind {
                kind::END => return ControlFlow::Continue(None),
                kind if kind & kind::IN_USE == 0 => self.foreign = false,
                kind::FILE => {
                    count = usize::from(secondary).saturating_add(1);
                    self.foreign = false;
                    let len = count.saturating_mul(ENTRY);
                    let inside = piece.get(within..within.saturating_add(len));
                    match self.file(logical, here, len, inside) {
                        Ok(Some(row)) => {
                            if row.damage.is_some() {
                                // What counts its entries may be what is wrong: of no more are the others lost.
                                (count, self.foreign) = (row.file.entries(), true);
                            }
                            visit(Item::Row(row))?;
                        }
                        Ok(None) => {}
                        Err(error) => {
                            self.damaged(error);
                            (count, self.foreign) = (1, true);
                        }
                    }
                }
                kind::BITMAP | kind::UP_CASE | kind::LABEL | kind::GUID => {
                    self.foreign = true;
                    visit(Item::Volume(entry, here))?;
                }
                kind if kind & kind::SECONDARY != 0 => {
                    if !self.foreign {
                        self.damaged(Error::corrupt(EXFAT, "secondary directory entry without a primary one", here));
                    }
                }
                kind => {
                    self.foreign = true;
                    if kind & kind::BENIGN == 0 {
                        let what = format!("directory entry of type {kind:#04x}");
                        self.damaged(Error::unsupported(EXFAT, format!("the {what} at byte {here}")));
                    }
                }
            }
            within = within.saturating_add(count.saturating_mul(ENTRY));
        }
        ControlFlow::Continue(Some(offset.saturating_add(within as u64)))
    }

    /// A set of `len` bytes, which is `inside` what was read already or has to be read for itself.
    fn file(&mut self, logical: u64, at: u64, len: usize, inside: Option<&[u8]>) -> Result<Option<Row>> {
        let next = logical.saturating_add(len as u64);
        let mut gathered = Vec::new();
        let set = match inside {
            Some(set) => set,
            None if next > self.directory.len => return Err(Error::corrupt(EXFAT, "directory entry set", at)),
            None => {
                while gathered.len() < len.min(MAX_SET.saturating_mul(ENTRY)) {
                    let run = self.map().map(logical.saturating_add(gathered.len() as u64))?;
                    let (_, piece) = self.piece(run, PIECE)?;
                    let more = len.saturating_sub(gathered.len()).min(piece.len());
                    gathered
                        .extend_from_slice(piece.get(..more).filter(|more| !more.is_empty()).ok_or(Error::Invalid)?);
                }
                &gathered
            }
        };
        let FileSet { file, damage } = FileSet::parse(set, at, self.exfat.geometry.heap_len())?;
        let node = NodeId(at);
        let next =
            if damage.is_some() { logical.saturating_add(file.entries().saturating_mul(ENTRY) as u64) } else { next };
        if let Some(error) = &damage {
            self.damaged(error.clone());
        } else if file.is_directory() && file.stream.size > 0 && !self.claim(node, file.stream.first) {
            let what = "directory entry set (it belongs to another directory)";
            self.damaged(Error::corrupt(EXFAT, what, at));
            return Ok(None);
        }
        Ok(Some(Row { node, file, start: logical, next, damage }))
    }

    /// Notes whose the clusters of a directory are: the entry's that was seen first. `false` for an entry that is
    /// met in a second directory, as where clusters of one are those of another.
    fn claim(&self, node: NodeId, first: u32) -> bool {
        let parent = self.directory.node;
        let claim = *lock(&self.exfat.claims).entry(first).or_insert(Claim { node, parent });
        claim.node != node || claim.parent == parent
    }
}
