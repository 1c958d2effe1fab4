//! From a block of a partition to a byte of the device: partition maps (3/10.7, UDF 2.60, 2.2.8 to 2.2.10).
//!
//! ```text
//!   physical   block -> start + block
//!   virtual    block -> table of the last session -> block of the physical partition     written once
//!   sparable   block -> the packet's spare, where the table has one, or start + block    rewritable
//!   metadata   block -> the metadata file (or its mirror) of the physical partition      2.50 and later
//! ```

use std::collections::BTreeMap;
use std::ops::Bound;

use super::icb::{self, FileEntry};
use super::tag::{Tag, id};
use super::volume::{Logical, Partition, Volume};
use super::{BLOCK_LIMIT, NAME};
use crate::bytes::Record;
use crate::device::mapped::{Mapping, Place, RunList, read_runs};
use crate::device::{Device, read_array, read_vec};
use crate::error::{Error, Result};
use crate::filesystem::NodeId;

/// The blocks at the end in which the table of a medium that is written once is looked for: writers fill up
/// to the next packet, and copies end a little late.
const VAT_SEARCH: u64 = 512;
/// Files in them that say they are tables and are none: as many are damaged on no medium that can be read.
const MAX_FALSE_TABLES: usize = 16;
/// File types of a table: that of UDF 1.50, and that of 2.00 and later.
const OLD_TABLE: u8 = 0;
const TABLE: u8 = 248;
/// Entries of a sparing table: UDF's own bound is what fits a block.
const MAX_SPARED: usize = 4096;

/// A block of a partition, which its map's number names (lb_addr, 4/7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) block: u32,
    pub(super) partition: u16,
}

impl Address {
    pub(super) fn parse(record: &Record<'_>, offset: usize) -> Result<Self> {
        Ok(Self { block: record.le32(offset)?, partition: record.le16(offset.saturating_add(4))? })
    }

    /// The node whose ICB is here; never zero.
    pub(super) fn node(self) -> NodeId {
        NodeId(1 << 48 | u64::from(self.partition) << 32 | u64::from(self.block))
    }

    pub(super) fn of_node(node: NodeId) -> Result<Self> {
        let number = node.0.checked_sub(1 << 48).ok_or(Error::NotFound)?;
        let partition = u16::try_from(number >> 32).map_err(|_| Error::NotFound)?;
        Ok(Self { block: u32::try_from(number & 0xffff_ffff).map_err(|_| Error::NotFound)?, partition })
    }
}

/// Which of two copies is read, where a partition has two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Main,
    Mirror,
}

/// The partitions of a logical volume.
pub(super) struct Partitions {
    pub(super) device: Device,
    pub(super) block_size: u64,
    maps: Vec<Map>,
}

/// One partition map.
enum Map {
    Physical(Partition),
    Virtual {
        under: Partition,
        table: RunList,
        header: u64,
    },
    Sparable {
        under: Partition,
        packet: u32,
        spared: BTreeMap<u32, u32>,
    },
    Metadata {
        main: Result<RunList>,
        mirror: Option<RunList>,
    },
    /// One that cannot be read, and why.
    Closed(Error),
}

impl Partitions {
    /// Of a logical volume of the volume that starts with the session at byte `session`.
    pub(super) fn open(
        device: Device,
        (volume, logical): (&Volume, &Logical),
        session: u64,
        notes: &mut Vec<String>,
    ) -> Result<Self> {
        let block_size = u64::from(logical.block_size);
        let mut all = Self { device, block_size, maps: Vec::new() };
        for map in &logical.maps {
            let record = Record::new(NAME, "partition map", logical.at, map);
            let map = all.map(&record, volume, session, notes).unwrap_or_else(Map::Closed);
            all.maps.push(map);
        }
        Ok(all)
    }

    fn map(&self, record: &Record<'_>, volume: &Volume, session: u64, notes: &mut Vec<String>) -> Result<Map> {
        let of = |number: u16| {
            let partition = volume.partitions.get(&number).copied();
            partition.ok_or_else(|| record.corrupt_field(&format!("partition {number} has no descriptor")))
        };
        match record.u8(0)? {
            1 => return Ok(Map::Physical(of(record.le16(4)?)?)),
            2 => {}
            kind => return Err(Error::unsupported(NAME, format!("a partition map of type {kind}"))),
        }
        let name = record.bytes(5, 23)?;
        let under = of(record.le16(38)?)?;
        match name.split(|byte| *byte == 0).next().unwrap_or_default() {
            b"*UDF Virtual Partition" => self.virtual_map(under, session),
            b"*UDF Sparable Partition" => self.sparable_map(record, under, notes),
            b"*UDF Metadata Partition" => Ok(self.metadata_map(record, under, notes)),
            name => Err(Error::unsupported(NAME, format!("a partition map of \"{}\"", String::from_utf8_lossy(name)))),
        }
    }

    /// The table of a virtual partition is a file whose ICB is the last block that was written.
    fn virtual_map(&self, under: Partition, session: u64) -> Result<Map> {
        let end = self.device.size().checked_div(self.block_size).unwrap_or(0);
        let start = u64::from(under.start).max(session.checked_div(self.block_size).unwrap_or(0));
        let mut false_tables = 0usize;
        for block in (start..end).rev().take(usize::try_from(VAT_SEARCH).unwrap_or(0)) {
            let Some(relative) = block.checked_sub(under.start.into()).and_then(|block| u32::try_from(block).ok())
            else {
                continue;
            };
            let file_type = read_array(self.device.as_ref(), block.saturating_mul(self.block_size).saturating_add(27));
            if !matches!(file_type, Ok([OLD_TABLE | TABLE])) {
                continue;
            }
            let Ok(entry) = self.entry_under(under, relative) else { continue };
            if let Some((table, header)) = self.table_of(entry)? {
                return Ok(Map::Virtual { under, table, header });
            }
            false_tables = false_tables.saturating_add(1);
            if false_tables == MAX_FALSE_TABLES {
                break;
            }
        }
        let at = end.saturating_mul(self.block_size);
        Err(Error::corrupt(NAME, "virtual allocation table (none is found in the last blocks)", at))
    }

    /// Where the table's first entry is in its file; `None` when the file is another.
    fn table_of(&self, entry: FileEntry) -> Result<Option<(RunList, u64)>> {
        let size = entry.contents.size();
        if entry.trouble.is_some() || size > self.device.size() {
            return Ok(None);
        }
        match entry.file_type {
            // UDF 1.50, 2.2.10: the entries come first, behind them stands what it is.
            OLD_TABLE if size >= 36 => {
                let mut end = [0; 36];
                read_runs(&entry.contents, self.device.as_ref(), &mut end, size.saturating_sub(36))?;
                let is_table = end.get(1..23) == Some(b"*UDF Virtual Alloc Tbl");
                Ok(is_table.then_some((entry.contents, 0)))
            }
            TABLE if size >= 152 => {
                let mut start = [0; 2];
                read_runs(&entry.contents, self.device.as_ref(), &mut start, 0)?;
                let header = u64::from(u16::from_le_bytes(start));
                Ok((header >= 152).then_some((entry.contents, header)))
            }
            _ => Ok(None),
        }
    }

    fn sparable_map(&self, record: &Record<'_>, under: Partition, notes: &mut Vec<String>) -> Result<Map> {
        let (packet, tables) = (record.le16(40)?, record.u8(42)?);
        if packet == 0 {
            return Err(record.corrupt_field("packet length"));
        }
        let mut best: Option<(u32, BTreeMap<u32, u32>)> = None;
        for index in 0..usize::from(tables.min(4)) {
            let place = u64::from(record.le32(index.saturating_mul(4).saturating_add(48))?);
            match self.sparing_table(place) {
                Ok((sequence, _)) if best.as_ref().is_some_and(|(best, _)| *best >= sequence) => {}
                Ok(found) => best = Some(found),
                Err(error) => notes.push(error.to_string()),
            }
        }
        let (_, spared) = best.ok_or_else(|| record.corrupt_field("no sparing table can be read"))?;
        Ok(Map::Sparable { under, packet: packet.into(), spared })
    }

    /// The number of a sparing table, and where each of the packets lies that it moved.
    fn sparing_table(&self, block: u64) -> Result<(u32, BTreeMap<u32, u32>)> {
        let at = block.saturating_mul(self.block_size);
        let bytes = self.block(at)?;
        let record = Record::new(NAME, "sparing table", at, &bytes);
        // Its tag has the number 0, which is that of no other descriptor.
        if record.le16(0)? != 0 || record.bytes(17, 18)? != b"*UDF Sparing Table" {
            return Err(record.corrupt());
        }
        let count = usize::from(record.le16(48)?);
        if count > MAX_SPARED {
            return Err(record.corrupt_field("number of entries"));
        }
        let bytes = read_vec(self.device.as_ref(), at, count.saturating_mul(8).saturating_add(56))?;
        let record = Record::new(NAME, "sparing table", at, &bytes);
        let mut spared = BTreeMap::new();
        for offset in (56..bytes.len()).step_by(8) {
            let (from, to) = (record.le32(offset)?, record.le32(offset.saturating_add(4))?);
            // From 0xfffffff0 on: a spare that is free, or is bad.
            if from < 0xffff_fff0 {
                spared.insert(from, to);
            }
        }
        Ok((record.le32(52)?, spared))
    }

    fn metadata_map(&self, record: &Record<'_>, under: Partition, notes: &mut Vec<String>) -> Map {
        let file = |offset: usize| -> Result<RunList> {
            let entry = self.entry_under(under, record.le32(offset)?)?;
            entry.trouble.map_or(Ok(entry.contents), Err)
        };
        let (main, mirror) = (file(40), file(44));
        if let Err(error) = &main {
            notes.push(format!("the metadata file is damaged ({error}); its mirror is read"));
        }
        Map::Metadata { main, mirror: mirror.ok() }
    }

    /// A file of the physical partition that another one is built on.
    fn entry_under(&self, under: Partition, block: u32) -> Result<FileEntry> {
        let at = u64::from(under.start).saturating_add(block.into()).saturating_mul(self.block_size);
        let bytes = self.block(at)?;
        let record = Record::new(NAME, "file entry", at, &bytes);
        let tag = Tag::parse(&record)?;
        if tag.location != block {
            return Err(record.corrupt_field("location"));
        }
        let alone = Self { device: self.device.clone(), block_size: self.block_size, maps: vec![Map::Physical(under)] };
        icb::parse(&alone, Address { block, partition: 0 }, tag, &record)
    }

    /// Bytes of one block, from byte `at` of the device.
    pub(super) fn block(&self, at: u64) -> Result<Vec<u8>> {
        read_vec(self.device.as_ref(), at, usize::try_from(self.block_size).map_err(|_| Error::Invalid)?)
    }

    /// Byte of a block on the device, and how many bytes follow it there.
    pub(super) fn locate(&self, address: Address, which: Which) -> Result<(u64, u64)> {
        let outside = |start: u32| {
            let at = u64::from(start).saturating_mul(self.block_size);
            Error::corrupt(NAME, format!("block {} of partition map {}", address.block, address.partition), at)
        };
        let physical = |start: u64, block: u64| {
            let at = start.saturating_add(block).checked_mul(self.block_size);
            at.filter(|at| *at < BLOCK_LIMIT).ok_or_else(|| outside(0))
        };
        match self.maps.get(usize::from(address.partition)).ok_or_else(|| outside(0))? {
            Map::Physical(partition) => Ok((physical(partition.start.into(), address.block.into())?, BLOCK_LIMIT)),
            Map::Virtual { under, table, header } => {
                let entry = u64::from(address.block).saturating_mul(4).saturating_add(*header);
                if entry.saturating_add(4) > table.size() {
                    return Err(outside(under.start));
                }
                let mut bytes = [0; 4];
                read_runs(table, self.device.as_ref(), &mut bytes, entry)?;
                match u32::from_le_bytes(bytes) {
                    u32::MAX => Err(outside(under.start)),
                    block => Ok((physical(under.start.into(), block.into())?, self.block_size)),
                }
            }
            Map::Sparable { under, packet, spared } => {
                let within = address.block.checked_rem(*packet).unwrap_or(0);
                let first = address.block.saturating_sub(within);
                let (at, blocks) = match spared.get(&first) {
                    // The only numbers that count from the start of the volume.
                    Some(spare) => (physical((*spare).into(), within.into())?, packet.saturating_sub(within)),
                    None => {
                        let next = spared.range((Bound::Excluded(first), Bound::Unbounded)).next();
                        let next = next.map_or(u32::MAX, |(next, _)| *next);
                        let at = physical(under.start.into(), address.block.into())?;
                        (at, next.saturating_sub(address.block).max(1))
                    }
                };
                Ok((at, u64::from(blocks).saturating_mul(self.block_size)))
            }
            Map::Metadata { main, mirror } => {
                let file = match (which, main, mirror) {
                    (Which::Main, Ok(main), _) => main,
                    (_, _, Some(mirror)) => mirror,
                    (_, Err(error), None) => return Err(error.clone()),
                    (Which::Mirror, Ok(_), None) => return Err(outside(0)),
                };
                let offset = u64::from(address.block).saturating_mul(self.block_size);
                if offset >= file.size() {
                    return Err(outside(0));
                }
                let run = file.map(offset)?;
                match run.place {
                    Place::At(at) => Ok((at, run.len)),
                    _ => Err(outside(0)),
                }
            }
            Map::Closed(error) => Err(error.clone()),
        }
    }

    /// Whether blocks of a partition are on the medium twice.
    pub(super) fn is_mirrored(&self, partition: u16) -> bool {
        let map = self.maps.get(usize::from(partition));
        matches!(map, Some(Map::Metadata { main: Ok(_), mirror: Some(_) }))
    }

    /// Whether blocks are given new places whenever the medium is written: nothing is ever free in it.
    pub(super) fn is_write_once(&self) -> bool {
        self.maps.iter().any(|map| matches!(map, Map::Virtual { .. }))
    }

    /// Why a partition cannot be read, of the first for which that is so.
    pub(super) fn closed(&self) -> Option<&Error> {
        self.maps.iter().find_map(|map| if let Map::Closed(error) = map { Some(error) } else { None })
    }

    /// The partitions that others are made of.
    pub(super) fn physical(&self) -> impl Iterator<Item = &Partition> {
        self.maps.iter().filter_map(|map| match map {
            Map::Physical(partition) | Map::Sparable { under: partition, .. } => Some(partition),
            _ => None,
        })
    }

    /// Reads a descriptor and verifies it; where its partition has a mirror and it is damaged, there.
    pub(super) fn descriptor(&self, address: Address, what: &'static str) -> Result<(u64, Tag, Vec<u8>)> {
        let of = |which: Which| {
            let (at, _) = self.locate(address, which)?;
            let bytes = self.block(at)?;
            let record = Record::new(NAME, what, at, &bytes);
            let tag = Tag::parse(&record)?;
            if tag.location != address.block {
                return Err(record.corrupt_field("location"));
            }
            Ok((at, tag, bytes))
        };
        let main = of(Which::Main);
        if main.is_err() && self.is_mirrored(address.partition) {
            return of(Which::Mirror).or(main);
        }
        main
    }

    /// The file set descriptor's root directory and system stream directory, 4/14.1.
    pub(super) fn root(&self, file_set: Address) -> Result<Address> {
        let (at, tag, bytes) = self.descriptor(file_set, "file set descriptor")?;
        let record = Record::new(NAME, "file set descriptor", at, &bytes);
        if tag.id != id::FILE_SET {
            return Err(record.corrupt());
        }
        Address::parse(&record, 404)
    }
}
