//! Whether the tables of the disk and of its snapshots agree with the reference counts: what
//! `qemu-img check` calls errors. Clusters that are counted more often than used (leaks) cost room alone
//! and are none. What persistent bitmaps use is not counted.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::header::Header;
use super::{FORMAT, L1, snapshot};
use crate::check::MAX_FAULTS;
use crate::device::{BlockDevice, read_array, read_vec};
use crate::error::{Error, Result};

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Refcount blocks that are looked into: those of 1 PiB of clusters of 64 KiB.
const MAX_BLOCKS: u64 = 1 << 19;

/// The counts, as far as they were read.
struct Counts<'a> {
    file: &'a dyn BlockDevice,
    /// The refcount table, and where it is: its first byte, its length.
    table: Vec<u64>,
    table_at: (u64, u64),
    cluster_size: u64,
    /// Bits of a count, as a power of two.
    order: u32,
    /// The block that was read last, with its index.
    block: Option<(u64, Vec<u8>)>,
}

impl<'a> Counts<'a> {
    fn read(file: &'a dyn BlockDevice, header: &Header) -> Result<Self> {
        let bytes = read_array::<104>(file, 0)?;
        let raw = crate::bytes::Record::new(FORMAT.name, "header", 0, &bytes);
        let cluster_size = header.layout.cluster_size();
        let order = if header.layout.version >= 3 { raw.be32(96)? } else { 4 };
        let len = u64::from(raw.be32(56)?).saturating_mul(cluster_size);
        if order > 6 || len > MAX_BLOCKS.saturating_mul(8) {
            return Err(raw.corrupt_field("refcount order, refcount table"));
        }
        let table_at = (raw.be64(48)?, len);
        let bytes = read_vec(file, table_at.0, usize::try_from(len).map_err(|_| raw.corrupt())?)
            .map_err(|error| if matches!(error, Error::PastEnd { .. }) { raw.corrupt() } else { error })?;
        let table = bytes.as_chunks::<8>().0.iter().map(|&entry| u64::from_be_bytes(entry) & !0x1ff).collect();
        Ok(Self { file, table, table_at, cluster_size, order, block: None })
    }

    /// Counts in a block.
    fn per_block(&self) -> u64 {
        self.cluster_size.saturating_mul(8).wrapping_shr(self.order).max(1)
    }

    /// How often the cluster at this byte is counted.
    fn at(&mut self, place: u64) -> Result<u64> {
        let bits = 1u64.wrapping_shl(self.order);
        let per_block = self.per_block();
        let cluster = place.checked_div(self.cluster_size).unwrap_or(0);
        let index = cluster.checked_div(per_block).unwrap_or(0);
        let within = cluster.checked_rem(per_block).unwrap_or(0);
        let at = usize::try_from(index).ok().and_then(|index| self.table.get(index)).copied().unwrap_or(0);
        if at == 0 {
            return Ok(0);
        }
        if self.block.as_ref().is_none_or(|(known, _)| *known != index) {
            let corrupt = || Error::corrupt(FORMAT.name, "refcount block", at);
            let bytes = read_vec(self.file, at, usize::try_from(self.cluster_size).map_err(|_| corrupt())?);
            let bytes =
                bytes.map_err(|error| if matches!(error, Error::PastEnd { .. }) { corrupt() } else { error })?;
            self.block = Some((index, bytes));
        }
        let bytes = self.block.as_ref().map(|(_, bytes)| bytes.as_slice()).unwrap_or_default();
        let bit = within.saturating_mul(bits);
        let start = usize::try_from(bit / 8).unwrap_or(usize::MAX);
        if bits < 8 {
            let byte = u64::from(bytes.get(start).copied().unwrap_or(0));
            let shift = u32::try_from(bit % 8).unwrap_or(0);
            return Ok(byte.wrapping_shr(shift) & 1u64.wrapping_shl(u32::try_from(bits).unwrap_or(0)).wrapping_sub(1));
        }
        let len = usize::try_from(bits / 8).unwrap_or(8);
        let field = bytes.get(start..start.saturating_add(len)).unwrap_or_default();
        Ok(field.iter().fold(0, |count, &byte| count << 8 | u64::from(byte)))
    }
}

/// Whether clusters are counted that begin past the end of the file, by the last block of counts alone.
/// Of a table that cannot be read the walk over all of them tells.
pub(super) fn is_cut_off(file: &dyn BlockDevice, header: &Header) -> bool {
    let last_counts = || -> Result<bool> {
        let mut counts = Counts::read(file, header)?;
        let Some(last) = counts.table.iter().rposition(|&block| block != 0) else { return Ok(false) };
        if counts.table.get(last).is_some_and(|&block| block >= file.size()) {
            return Ok(true);
        }
        let per_block = counts.per_block();
        let first = per_block.saturating_mul(last as u64);
        let there = file.size().div_ceil(counts.cluster_size.max(1));
        for cluster in first.max(there)..first.saturating_add(per_block) {
            if counts.at(cluster.saturating_mul(counts.cluster_size))? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    };
    last_counts().unwrap_or(false)
}

/// Counts that are kept together, as a power of two, as a number, and as a mask.
const PAGE_BITS: u32 = 12;
const PAGE: usize = 1 << PAGE_BITS;
const WITHIN: u64 = (1 << PAGE_BITS) - 1;
/// Pages that are kept, 256 MiB of them: 4 TiB of clusters of 64 KiB in use.
const MAX_PAGES: usize = 1 << 14;
/// Entries of all L1 tables together, those of snapshots too.
const MAX_ENTRIES: u64 = 1 << 26;

/// How often each cluster is used, by everything that leads to one.
struct Uses {
    pages: BTreeMap<u64, Vec<u32>>,
    cluster_size: u64,
    file_size: u64,
}

impl Uses {
    /// Counts the clusters that a range touches. False when it does not lie in the file, give or take
    /// a cluster: the last one may be cut off.
    fn add(&mut self, at: u64, len: u64, times: u32) -> Result<bool> {
        let end = at.saturating_add(len.max(1));
        if at >= self.file_size || end.saturating_sub(self.file_size.min(end)) >= self.cluster_size {
            return Ok(false);
        }
        let cluster = |place: u64| place.checked_div(self.cluster_size).unwrap_or(0);
        for cluster in cluster(at)..=cluster(end.saturating_sub(1)) {
            let full = self.pages.len() >= MAX_PAGES;
            let page = match self.pages.entry(cluster >> PAGE_BITS) {
                Entry::Vacant(_) if full => {
                    return Err(Error::unsupported(FORMAT.name, "counting the clusters of so large an image"));
                }
                Entry::Vacant(place) => place.insert(vec![0; PAGE]),
                Entry::Occupied(page) => page.into_mut(),
            };
            if let Some(count) = usize::try_from(cluster & WITHIN).ok().and_then(|at| page.get_mut(at)) {
                *count = count.saturating_add(times);
            }
        }
        Ok(true)
    }

    /// The clusters in use: number, and how often.
    fn all(&self) -> impl Iterator<Item = (u64, u32)> {
        let page = |(page, counts): (&u64, &Vec<u32>)| {
            let first = page.saturating_mul(PAGE as u64);
            (first..).zip(counts.clone()).filter(|(_, count)| *count > 0)
        };
        self.pages.iter().flat_map(page)
    }
}

/// A walk over everything that leads to clusters.
struct Walk<'a> {
    file: &'a dyn BlockDevice,
    header: &'a Header,
    uses: Uses,
    counts: Counts<'a>,
    faults: Vec<String>,
}

impl Walk<'_> {
    fn fault(&mut self, text: String) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(text);
        }
    }

    /// Counts a range of metadata.
    fn add(&mut self, what: &str, at: u64, len: u64, times: u32) -> Result<bool> {
        let aligned = at.checked_rem(self.uses.cluster_size) == Some(0);
        let there = aligned && self.uses.add(at, len, times)?;
        if !there {
            self.fault(format!("the {what} at byte {at} does not lie on clusters of the file"));
        }
        Ok(there)
    }

    /// The L2 tables of an L1 table: how often it leads to each. The marks of the active one are compared.
    fn level_1(&mut self, l1: L1, active: bool, tables: &mut BTreeMap<u64, (u32, bool)>) -> Result<()> {
        let Some(len) = l1.count.checked_mul(8).filter(|len| *len > 0) else { return Ok(()) };
        if !self.add("L1 table", l1.at, len, 1)? {
            return Ok(());
        }
        let bytes = match read_vec(self.file, l1.at, usize::try_from(len).map_err(|_| Error::Invalid)?) {
            Err(Error::PastEnd { .. }) => {
                self.fault(format!("the L1 table at byte {} is cut off", l1.at));
                return Ok(());
            }
            other => other?,
        };
        for &entry in bytes.as_chunks::<8>().0 {
            let entry = u64::from_be_bytes(entry);
            let table = entry & OFFSET;
            if table == 0 || !self.add("L2 table", table, self.uses.cluster_size, 1)? {
                continue;
            }
            if active {
                let counted = self.counts.at(table)?;
                self.marked("L2 table", table, entry, counted);
            }
            let known = tables.entry(table).or_default();
            *known = (known.0.saturating_add(1), known.1 || active);
        }
        Ok(())
    }

    /// The clusters of an L2 table that so many entries lead to.
    fn level_2(&mut self, table: u64, (times, active): (u32, bool)) -> Result<()> {
        let cluster_size = self.uses.cluster_size;
        // Of a sparse file of hostile size, as of any other: a hole leads nowhere.
        if self.file.extent(table).is_ok_and(|extent| !extent.stored && extent.len >= cluster_size) {
            return Ok(());
        }
        let Ok(rows) = read_vec(self.file, table, usize::try_from(cluster_size).map_err(|_| Error::Invalid)?) else {
            self.fault(format!("the L2 table at byte {table} cannot be read"));
            return Ok(());
        };
        let words = usize::try_from(self.header.layout.l2_words()).unwrap_or(1).max(1);
        for &row in rows.as_chunks::<8>().0.iter().step_by(words) {
            let row = u64::from_be_bytes(row);
            if row & COMPRESSED != 0 {
                self.packed(row, times)?;
                continue;
            }
            let place = row & OFFSET;
            // Those of an external file are not counted.
            if place == 0 || self.header.layout.external || !self.add("cluster", place, cluster_size, times)? {
                continue;
            }
            // It reads as zeros from there on, as in QEMU; QEMU itself writes whole clusters, but for those of
            // which only some subclusters are there.
            let whole = place.saturating_add(cluster_size) <= self.uses.file_size;
            if !whole && row & ZERO == 0 && !self.header.layout.extended_l2 {
                self.fault(format!("the cluster at byte {place} is not whole: the file ends in it"));
            }
            if active {
                let counted = self.counts.at(place)?;
                self.marked("cluster", place, row, counted);
            }
        }
        Ok(())
    }

    /// A packed cluster: whole sectors from its byte on, in one cluster of the file or across two.
    fn packed(&mut self, row: u64, times: u32) -> Result<()> {
        let bits = self.header.layout.cluster_bits.saturating_sub(8);
        let shift = 62u32.saturating_sub(bits);
        let at = row & 1u64.wrapping_shl(shift).wrapping_sub(1);
        let sectors = row.wrapping_shr(shift) & 1u64.wrapping_shl(bits).wrapping_sub(1);
        let len = sectors.saturating_add(1).saturating_mul(512).saturating_sub(at % 512);
        if row & COPIED != 0 {
            self.fault(format!("the packed cluster at byte {at} is marked as one that may be written to"));
        }
        if !self.uses.add(at, len, times)? {
            self.fault(format!("the packed cluster at byte {at} is past the end of the file"));
        }
        Ok(())
    }

    /// The mark "copied" says that the count is 1.
    fn marked(&mut self, what: &str, at: u64, entry: u64, count: u64) {
        if count > 0 && (entry & COPIED != 0) != (count == 1) {
            self.fault(format!("the {what} at byte {at} is counted {count} times, and its entry says otherwise"));
        }
    }
}

/// What is wrong with the tables of the disk and of its snapshots.
pub(super) fn faults(file: &dyn BlockDevice) -> Result<Vec<String>> {
    let header = Header::read(file)?;
    header.check_l1(header.l1, header.size, file.size())?;
    let counts = Counts::read(file, &header)?;
    let cluster_size = header.layout.cluster_size();
    let uses = Uses { pages: BTreeMap::new(), cluster_size, file_size: file.size() };
    let mut walk = Walk { file, header: &header, uses, counts, faults: Vec::new() };
    walk.add("header", 0, cluster_size, 1)?;
    let (at, len) = walk.counts.table_at;
    walk.add("refcount table", at, len, 1)?;
    for block in walk.counts.table.clone().into_iter().filter(|block| *block != 0) {
        walk.add("refcount block", block, cluster_size, 1)?;
    }
    let (snapshots, table_len) = snapshot::read_all(file, &header)?;
    if table_len > 0 {
        walk.add("snapshot table", header.snapshots_at, table_len, 1)?;
    }
    let mut entries = header.l1.count;
    let mut tables = BTreeMap::new();
    walk.level_1(header.l1, true, &mut tables)?;
    for snapshot in &snapshots {
        entries = entries.saturating_add(snapshot.l1.count);
        if entries > MAX_ENTRIES {
            return Err(Error::unsupported(FORMAT.name, "counting the clusters of so many snapshots"));
        }
        walk.level_1(snapshot.l1, false, &mut tables)?;
    }
    for (table, known) in tables {
        if walk.faults.len() >= MAX_FAULTS {
            break;
        }
        walk.level_2(table, known)?;
    }
    let Walk { uses, mut counts, mut faults, .. } = walk;
    for (cluster, used) in uses.all() {
        if faults.len() >= MAX_FAULTS {
            break;
        }
        let at = cluster.saturating_mul(cluster_size);
        let counted = counts.at(at)?;
        if counted < u64::from(used) {
            faults.push(format!("the cluster at byte {at} is used {used} times and counted {counted} times"));
        }
    }
    Ok(faults)
}
