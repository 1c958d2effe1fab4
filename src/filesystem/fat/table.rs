//! The file allocation table: for each cluster the next one of its chain.
//!
//! ```text
//!   entry       0        1          2..          free 0 | next cluster | bad ..F7 | end ..F8 to ..FF
//!   FAT12       media    end mark   ...          two entries in three bytes, low nibble first
//! ```
//! The table is read in pieces, so that a chain of a million clusters costs a few hundred reads of
//! the device. A chain is kept as runs of neighbouring clusters.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::geometry::{Geometry, Width, corrupt};
use crate::cache::Cache;
use crate::device::mapped::{Mapping, Place, RunList, read_runs};
use crate::device::{BlockDevice, BlockWrite, Device};
use crate::error::{Error, Result};

/// Bytes of table that are read at once. All of a FAT12 table is in the first piece, so that no
/// entry lies across two.
pub(super) const PIECE: u64 = 32 << 10;
/// Bound on the pieces that are kept, in bytes.
const KEPT_PIECES: u64 = 8 << 20;

/// The clusters of one file or directory.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    /// Where the bytes are, from 0 to `len`.
    pub runs: RunList,
    /// Bytes up to the end of the chain, to where it is broken, or to where no one asked further.
    pub len: u64,
    /// The last cluster; 0 when there is none.
    pub last: u32,
    /// Where the chain ends.
    pub end: End,
}

/// How a chain ends.
#[derive(Debug, Clone)]
pub(super) enum End {
    /// With an end mark; the byte position of that table entry (of the directory entry in an
    /// empty chain).
    Mark(u64),
    /// It goes on: no more of it was asked for. The byte position of the last table entry that was.
    Further(u64),
    /// With something that is not a cluster of this chain.
    Broken(Error),
}

impl Chain {
    /// A chain of one run: a fixed root directory, or nothing.
    pub fn fixed(offset: u64, len: u64) -> Self {
        let mut chain = Self { end: End::Mark(offset), ..Self::empty() };
        if chain.runs.push(0, offset, len) {
            chain.len = len;
        }
        chain
    }

    /// A chain of nothing, to be appended to.
    pub fn empty() -> Self {
        Self { runs: RunList::new(u64::MAX), len: 0, last: 0, end: End::Mark(0) }
    }

    /// Appends `count` clusters from `first`, the bytes `len` from `at`. `false` when they do not fit.
    #[must_use]
    pub fn append(&mut self, first: u32, count: u32, at: u64, len: u64) -> bool {
        let fits = self.runs.push(self.len, at, len);
        if fits {
            self.len = self.len.saturating_add(len);
            self.last = first.saturating_add(count).saturating_sub(1);
        }
        fits
    }

    /// The error of whoever reads past the end of the chain, but not of the file.
    pub fn end_error(&self) -> Error {
        match &self.end {
            End::Broken(error) => error.clone(),
            End::Mark(at) | End::Further(at) => corrupt("cluster chain (shorter than its file)", *at),
        }
    }

    /// Whether it goes on before it has so many bytes.
    pub fn is_short_of(&self, most: u64) -> bool {
        matches!(self.end, End::Further(_)) && self.len < most
    }

    /// Fills `buf` with the bytes from `offset`; an error when any of them lies past the chain.
    pub fn read(&self, device: &dyn BlockDevice, buf: &mut [u8], offset: u64) -> Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(self.end_error());
        }
        read_runs(&self.runs, device, buf, offset)
    }

    /// The byte of the volume at `offset` of the chain, and how many follow it there.
    pub fn place(&self, offset: u64) -> Option<(u64, u64)> {
        let left = self.len.checked_sub(offset).filter(|&left| left > 0)?;
        match self.runs.map(offset).ok()? {
            run if run.len == 0 => None,
            run => match run.place {
                Place::At(at) => Some((at, run.len.min(left))),
                _ => None,
            },
        }
    }

    /// Calls `visit` with the place on the volume and the length of each run from `offset` on.
    pub fn for_each_run(&self, offset: u64, mut visit: impl FnMut(u64, u64)) {
        let mut offset = offset;
        while let Some((at, len)) = self.place(offset) {
            visit(at, len);
            offset = offset.saturating_add(len);
        }
    }

    /// Weight in a cache.
    pub fn weight(&self) -> u64 {
        self.runs.weight().saturating_add(64)
    }
}

/// What an entry of the table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// No file has the cluster.
    Free,
    /// The next cluster; it exists.
    Next(u32),
    /// The last cluster of a chain.
    End,
    /// Marked bad, reserved, or a number that no cluster has.
    Other(u32),
}

/// A piece of the table that differs from the disk.
pub(super) struct Changed {
    /// The whole piece.
    pub bytes: Arc<Vec<u8>>,
    /// A bit for each of its sectors that differs; none is smaller than 512 bytes.
    pub sectors: u64,
}

/// What of the table differs from the disk.
#[derive(Default)]
pub(super) struct Changes {
    /// Pieces with new links, by number.
    pub pieces: BTreeMap<u64, Changed>,
    /// Clusters that end their chain, although the table does not say so yet: what follows them
    /// is freed on the disk once no directory entry there needs it.
    pub cuts: HashSet<u32>,
}

/// The value of an entry that ends a chain, in every width.
pub(super) const END_MARK: u32 = 0x0fff_ffff;

/// The table in use.
pub(super) struct Table {
    device: Device,
    geometry: Arc<Geometry>,
    pieces: Cache<u64, Arc<Vec<u8>>>,
}

impl Table {
    pub fn new(device: Device, geometry: Arc<Geometry>) -> Self {
        Self { device, geometry, pieces: Cache::new(KEPT_PIECES) }
    }

    /// Bytes of the table that have entries of clusters.
    pub fn used_len(&self) -> u64 {
        let entries = u64::from(self.geometry.cluster_count).saturating_add(2);
        match self.geometry.width {
            Width::Fat12 => entries.saturating_mul(3).div_ceil(2),
            Width::Fat16 => entries.saturating_mul(2),
            Width::Fat32 => entries.saturating_mul(4),
        }
    }

    /// Where an entry starts in the table, in bytes.
    fn entry_offset(&self, cluster: u32) -> u64 {
        let cluster = u64::from(cluster);
        match self.geometry.width {
            Width::Fat12 => cluster.saturating_mul(3) / 2,
            Width::Fat16 => cluster.saturating_mul(2),
            Width::Fat32 => cluster.saturating_mul(4),
        }
    }

    /// Byte position on the volume of a cluster's entry.
    pub fn entry_at(&self, cluster: u32) -> u64 {
        self.geometry.table_start(self.geometry.first_table()).saturating_add(self.entry_offset(cluster))
    }

    /// A piece as it stands now.
    pub fn piece(&self, changes: &Changes, number: u64) -> Result<Arc<Vec<u8>>> {
        if let Some(changed) = changes.pieces.get(&number) {
            return Ok(changed.bytes.clone());
        }
        self.pieces.get_or_make(&number, || {
            let bytes = self.read_piece(number)?;
            let weight = bytes.len() as u64;
            Ok((Arc::new(bytes), weight))
        })
    }

    /// Reads a piece from the table in use, or from another copy where the medium fails.
    fn read_piece(&self, number: u64) -> Result<Vec<u8>> {
        let start = number.saturating_mul(PIECE);
        let len = self.used_len().saturating_sub(start).min(PIECE);
        let read = |index: u32| {
            let at = self.geometry.table_start(index).saturating_add(start);
            // An image that ends inside the table still has the entries before that.
            let there = self.device.size().saturating_sub(at).min(len);
            let mut bytes = vec![0; usize::try_from(there).map_err(|_| Error::Invalid)?];
            if bytes.is_empty() {
                return Err(Error::PastEnd { offset: at, len, size: self.device.size() });
            }
            self.device.read_bulk_at(&mut bytes, at)?;
            Ok(bytes)
        };
        let first = self.geometry.first_table();
        if self.geometry.active_table.is_some() {
            return read(first);
        }
        (0..self.geometry.table_count).filter(|copy| *copy != first).fold(read(first), |result, copy| match result {
            Err(Error::Io { .. }) => read(copy),
            other => other,
        })
    }

    /// The number in an entry, and whether the piece has it at all.
    pub fn number(&self, piece: &[u8], cluster: u32) -> Option<u32> {
        let start = usize::try_from(self.entry_offset(cluster) % PIECE).ok()?;
        let bytes = piece.get(start..)?;
        match (self.geometry.width, bytes) {
            (Width::Fat12, [low, high, ..]) => {
                let pair = u32::from(u16::from_le_bytes([*low, *high]));
                Some(if cluster.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 })
            }
            (Width::Fat16, [low, high, ..]) => Some(u32::from(u16::from_le_bytes([*low, *high]))),
            (Width::Fat32, [a, b, c, d, ..]) => Some(u32::from_le_bytes([*a, *b, *c, *d]) & 0x0fff_ffff),
            _ => None,
        }
    }

    /// Number of the piece that has an entry.
    pub fn piece_of(&self, cluster: u32) -> u64 {
        self.entry_offset(cluster) / PIECE
    }

    /// What the number in an entry means.
    pub fn link(&self, number: u32) -> Link {
        let end = match self.geometry.width {
            Width::Fat12 => 0xff8,
            Width::Fat16 => 0xfff8,
            Width::Fat32 => 0x0fff_fff8,
        };
        match number {
            0 => Link::Free,
            _ if number >= end => Link::End,
            _ if self.geometry.cluster_offset(number).is_some() => Link::Next(number),
            _ => Link::Other(number),
        }
    }

    /// What the table says of a cluster; `kept` is the piece that was used last.
    fn follow(&self, changes: &Changes, kept: &mut Option<(u64, Arc<Vec<u8>>)>, cluster: u32) -> Result<Link> {
        if changes.cuts.contains(&cluster) {
            return Ok(Link::End);
        }
        let wanted = self.piece_of(cluster);
        let piece = match kept {
            Some((number, piece)) if *number == wanted => piece,
            _ => &mut kept.insert((wanted, self.piece(changes, wanted)?)).1,
        };
        let missing = Error::PastEnd { offset: self.entry_at(cluster), len: 4, size: self.device.size() };
        self.number(piece, cluster).map(|number| self.link(number)).ok_or(missing)
    }

    /// The chain that starts at a cluster: its end or where it is broken, if that is within its first
    /// `most` bytes or behind the last of them. What no one asks for costs nothing.
    pub fn chain(&self, changes: &Changes, first: u32, most: u64) -> Chain {
        let mut chain = Chain::empty();
        let mut kept = None;
        // Brent's search for a loop: `marked` is the cluster of the last step that was a power of two.
        // It finds one that begins and ends within so many steps before three times as many.
        let (mut cluster, mut marked, mut steps) = (first, 0, 0u64);
        let mut enough = u64::MAX;
        let what = loop {
            if cluster == marked {
                return self.before_loop(changes, first, most);
            }
            if enough == u64::MAX {
                if !self.push(&mut chain, cluster) {
                    break "cluster chain (a number that no cluster has)";
                }
                if chain.len >= most {
                    enough = steps.saturating_add(1).saturating_mul(3);
                    chain.end = End::Further(self.entry_at(cluster));
                }
            } else if steps > enough {
                return chain;
            }
            steps = steps.saturating_add(1);
            if steps.is_power_of_two() {
                marked = cluster;
            }
            let link = self.follow(changes, &mut kept, cluster);
            match link {
                Ok(Link::Next(next)) => cluster = next,
                // What comes after that much is the matter of whoever asks for it.
                _ if chain.last != cluster => return chain,
                Ok(Link::End) => {
                    chain.end = End::Mark(self.entry_at(cluster));
                    return chain;
                }
                Ok(Link::Free) => break "cluster chain (it leads to a free cluster)",
                Ok(Link::Other(_)) => break "cluster chain (a number that no cluster has)",
                Err(error) => {
                    chain.end = End::Broken(error);
                    return chain;
                }
            }
        };
        chain.end = End::Broken(corrupt(what, self.entry_at(cluster)));
        chain
    }

    /// Appends one cluster; `false` when there is no such cluster.
    fn push(&self, chain: &mut Chain, cluster: u32) -> bool {
        let size = u64::from(self.geometry.cluster_size);
        let Some(offset) = self.geometry.cluster_offset(cluster) else { return false };
        chain.append(cluster, 1, offset, size)
    }

    /// The part of a chain that is known to lead back into itself, up to the first repetition.
    fn before_loop(&self, changes: &Changes, first: u32, most: u64) -> Chain {
        let mut chain = Chain::empty();
        let mut kept = None;
        let mut seen = HashSet::new();
        let mut cluster = first;
        while seen.insert(cluster) && self.push(&mut chain, cluster) {
            match self.follow(changes, &mut kept, cluster) {
                Ok(Link::Next(next)) => cluster = next,
                _ => break,
            }
            if chain.len >= most && !seen.contains(&cluster) {
                chain.end = End::Further(self.entry_at(chain.last));
                return chain;
            }
        }
        chain.end = End::Broken(corrupt("cluster chain (it leads back into itself)", self.entry_at(chain.last)));
        chain
    }

    /// Changes the number in an entry; the reserved bits of a FAT32 entry stay.
    pub fn set(&self, changes: &mut Changes, cluster: u32, number: u32) -> Result<()> {
        self.put(self.changed(changes, self.piece_of(cluster))?, cluster, number)
    }

    /// Has each cluster from `first` to before `last` lead to the next one.
    pub fn link_to(&self, changes: &mut Changes, first: u32, last: u32) -> Result<()> {
        let mut cluster = first;
        while cluster < last {
            let index = self.piece_of(cluster);
            let changed = self.changed(changes, index)?;
            let (from, mut put) = (cluster, Ok(()));
            while put.is_ok() && cluster < last && self.piece_of(cluster) == index {
                let next = cluster.saturating_add(1);
                put = self.put_number(changed, cluster, next);
                cluster = next;
            }
            self.mark(changed, from, cluster.saturating_sub(1));
            put?;
        }
        Ok(())
    }

    /// A piece that is about to be changed.
    fn changed<'a>(&self, changes: &'a mut Changes, index: u64) -> Result<&'a mut Changed> {
        if !changes.pieces.contains_key(&index) {
            let bytes = self.piece(changes, index)?;
            changes.pieces.insert(index, Changed { bytes, sectors: 0 });
        }
        changes.pieces.get_mut(&index).ok_or(Error::Invalid)
    }

    fn put(&self, changed: &mut Changed, cluster: u32, number: u32) -> Result<()> {
        self.put_number(changed, cluster, number)?;
        self.mark(changed, cluster, cluster);
        Ok(())
    }

    fn put_number(&self, changed: &mut Changed, cluster: u32, number: u32) -> Result<()> {
        let missing = || Error::PastEnd { offset: self.entry_at(cluster), len: 4, size: self.device.size() };
        let start = usize::try_from(self.entry_offset(cluster) % PIECE).map_err(|_| Error::Invalid)?;
        let bytes = Arc::make_mut(&mut changed.bytes).get_mut(start..);
        match (self.geometry.width, bytes) {
            (Width::Fat12, Some([low, high, ..])) => {
                let pair = u16::from_le_bytes([*low, *high]);
                let number = u16::try_from(number & 0xfff).map_err(|_| Error::Invalid)?;
                let even = cluster.is_multiple_of(2);
                let pair = if even { pair & 0xf000 | number } else { pair & 0x000f | number << 4 };
                [*low, *high] = pair.to_le_bytes();
            }
            (Width::Fat16, Some([low, high, ..])) => [*low, *high, _, _] = number.to_le_bytes(),
            (Width::Fat32, Some([a, b, c, d, ..])) => {
                let reserved = u32::from_le_bytes([*a, *b, *c, *d]) & 0xf000_0000;
                [*a, *b, *c, *d] = (reserved | number & 0x0fff_ffff).to_le_bytes();
            }
            _ => return Err(missing()),
        }
        Ok(())
    }

    /// Marks the sectors that have the entries from `first` to `last`, which are in one piece.
    fn mark(&self, changed: &mut Changed, first: u32, last: u32) {
        let width = if self.geometry.width == Width::Fat32 { 4 } else { 2 };
        let sector = |at: u64| at.checked_div(u64::from(self.geometry.sector_size)).unwrap_or(0);
        let from = sector(self.entry_offset(first) % PIECE);
        let to = sector((self.entry_offset(last) % PIECE).saturating_add(width).saturating_sub(1));
        let bits = |count: u64| {
            u32::try_from(count).ok().and_then(|count| 1u64.checked_shl(count)).unwrap_or(0).wrapping_sub(1)
        };
        changed.sectors |= bits(to.saturating_add(1)) & !bits(from);
    }

    fn sector_size(&self) -> usize {
        usize::try_from(self.geometry.sector_size).unwrap_or(usize::MAX)
    }

    /// The tables that are in use.
    fn copies(&self) -> std::ops::Range<u32> {
        match self.geometry.active_table {
            Some(active) => active..active.saturating_add(1),
            None => 0..self.geometry.table_count,
        }
    }

    /// Sees to it that the entries of `count` clusters can be written back whenever that is.
    pub fn reserve(&self, writer: &dyn BlockWrite, first: u32, count: u32) -> Result<()> {
        let unit = u64::from(self.geometry.sector_size);
        let start = self.entry_offset(first);
        let start = start.saturating_sub(start.checked_rem(unit).unwrap_or(0));
        // The longest entry has four bytes; what lies behind the table is reserved for nothing.
        let end = self.entry_offset(first.saturating_add(count).saturating_sub(1)).saturating_add(4);
        let end = end.min(self.used_len()).next_multiple_of(unit);
        for copy in self.copies() {
            let at = self.geometry.table_start(copy).saturating_add(start);
            let there = self.device.size().saturating_sub(at).min(end.saturating_sub(start));
            if there > 0 {
                writer.reserve(at, there)?;
            }
        }
        Ok(())
    }

    /// Writes the changed pieces to every table that is in use, the one that is read first.
    pub fn write_back(&self, changes: &mut Changes, writer: &dyn BlockWrite) -> Result<()> {
        for copy in self.copies() {
            for (number, changed) in &changes.pieces {
                for (from, to) in self.changed_bytes(changed) {
                    let Some(bytes) = changed.bytes.get(from..to) else { continue };
                    let start = number.saturating_mul(PIECE).saturating_add(from as u64);
                    let at = self.geometry.table_start(copy).saturating_add(start);
                    // A second table may lie past the end of an image that was cut.
                    let there = self.device.size().saturating_sub(at).min(bytes.len() as u64);
                    let there = bytes.get(..usize::try_from(there).map_err(|_| Error::Invalid)?).unwrap_or(bytes);
                    if !there.is_empty() {
                        writer.write_all_at(there, at)?;
                    }
                }
            }
        }
        for (number, changed) in std::mem::take(&mut changes.pieces) {
            let weight = changed.bytes.len() as u64;
            self.pieces.insert(number, changed.bytes, weight);
        }
        Ok(())
    }

    /// Runs of sectors of a piece that differ, in bytes of it.
    fn changed_bytes(&self, changed: &Changed) -> Vec<(usize, usize)> {
        let unit = self.sector_size();
        let len = changed.bytes.len();
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for number in (0..u64::BITS).filter(|number| changed.sectors >> number & 1 == 1) {
            let from = unit.saturating_mul(number as usize).min(len);
            let to = from.saturating_add(unit).min(len);
            match runs.last_mut() {
                Some((_, end)) if *end == from => *end = to,
                _ => runs.push((from, to)),
            }
        }
        runs
    }

    /// Counts the free clusters, and calls `used` for each cluster that is not free, in order.
    pub fn scan(&self, changes: &Changes, mut used: impl FnMut(u32)) -> Result<u32> {
        let mut free = 0u32;
        let end = self.geometry.cluster_count.saturating_add(2);
        let mut cluster = 2;
        while cluster < end {
            let index = self.piece_of(cluster);
            let piece = self.piece(changes, index)?;
            while cluster < end && self.piece_of(cluster) == index {
                let zeros = self.zeros(&piece, cluster).min(end.saturating_sub(cluster));
                free = free.saturating_add(zeros);
                cluster = cluster.saturating_add(zeros);
                if zeros == 0 {
                    match self.number(&piece, cluster) {
                        Some(0) => free = free.saturating_add(1),
                        _ => used(cluster),
                    }
                    cluster = cluster.saturating_add(1);
                }
            }
        }
        Ok(free)
    }

    /// How many entries from this one on are zero for sure: they are looked at together, where they are whole bytes.
    fn zeros(&self, piece: &[u8], cluster: u32) -> u32 {
        const TOGETHER: usize = 64;
        let entries = match self.geometry.width {
            Width::Fat12 => return 0,
            Width::Fat16 => TOGETHER / 2,
            Width::Fat32 => TOGETHER / 4,
        };
        let start = usize::try_from(self.entry_offset(cluster) % PIECE).unwrap_or(usize::MAX);
        let blocks = piece.get(start..).unwrap_or_default().as_chunks::<TOGETHER>().0;
        let empty = blocks.iter().take_while(|block| **block == [0; TOGETHER]).count();
        u32::try_from(empty.saturating_mul(entries)).unwrap_or(0)
    }
}
