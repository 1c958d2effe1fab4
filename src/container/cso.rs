//! CSO, ZSO and DAX: compressed discs of the PlayStation Portable, block by block.
//!
//! Specification: none; CISO is BOOSTER's, DAX is Dark_AleX's; the emulator PPSSPP reads both. Version 2
//! of CSO: README_CSO.md of maxcso.
//!
//! ```text
//!   CISO, ZISO:  header (24) | offsets: 32 bits a block, and one more | blocks of 2,048 bytes or more
//!   DAX:   header (32) | offsets: 32 bits a frame | lengths: 16 bits a frame | stored areas | frames of 8,192
//! ```
//!
//! Supported: CSO versions 1 (raw deflate, stored blocks, shifted offsets) and 2 (deflate or LZ4); ZSO
//! (LZ4); DAX versions 0 and 1.
//! Not supported: JSO (LZO), which is refused; the CISO of the GameCube, which is another format.

use std::sync::Arc;

use super::table::{Extent, Tables, Width};
use super::unpack::{inflate, lz4};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::device::mapped::{Mapped, Mapping, Place, Run};
use crate::device::{BlockDevice, Device, probe_array, read_array, read_vec};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "cso", snapshots: false, probe, open };
pub(super) const DAX: ContainerFormat =
    ContainerFormat { name: "dax", snapshots: false, probe: probe_dax, open: open_dax };

/// A packed block may be a little longer than its bytes; anything more is damage.
const SLACK: u64 = 4096;
const DAX_FRAME: u64 = 8192;
/// Areas of stored frames that a DAX may have: each is at least a frame of a DVD.
const MAX_AREAS: u64 = 1 << 16;
const STORED: u64 = 1 << 31;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    let Some(header) = probe_array::<24>(device, 0)? else { return Ok(false) };
    let record = Record::new(FORMAT.name, "header", 0, &header);
    let psp = matches!(record.le32(4)?, 0 | 0x18) && record.le32(16)? >= 512;
    Ok(psp && matches!(record.bytes(0, 4)?, b"CISO" | b"ZISO") || header.starts_with(b"JISO"))
}

fn open(file: Device, _: &dyn Companions, options: &Options) -> Result<Opened> {
    let header = read_array::<24>(file.as_ref(), 0)?;
    let record = Record::new(FORMAT.name, "header", 0, &header);
    let (size, block_size, version, shift) = (record.le64(8)?, record.le32(16)?, record.u8(20)?, record.u8(21)?);
    if header.starts_with(b"JISO") {
        return Err(Error::unsupported(FORMAT.name, "JSO (LZO)"));
    }
    let zso = header.starts_with(b"ZISO");
    let (flag, name) = match version {
        0 | 1 if zso => (Flag::StoredElseLz4, "ZSO"),
        0 | 1 => (Flag::Stored, "CSO"),
        2 if !zso => (Flag::Lz4, "CSO"),
        _ => return Err(Error::unsupported(FORMAT.name, format!("version {version}"))),
    };
    let block_size = u64::from(block_size);
    if !block_size.is_power_of_two() || block_size > 1 << 20 || shift > 16 {
        return Err(record.corrupt_field("block size or alignment"));
    }
    let count = size.div_ceil(block_size).saturating_add(1);
    if size == 0 || count.saturating_mul(4).saturating_add(24) > file.size() {
        return Err(record.corrupt_field("total bytes"));
    }
    let blocks = Blocks {
        format: FORMAT.name,
        offsets: Tables::new(file.clone(), Width::Le32, FORMAT.name, "block index"),
        table: Extent { at: 24, count },
        lengths: None,
        flag,
        file: file.clone(),
        size,
        block_size,
        shift: shift.into(),
    };
    Ok(finish(blocks, &format!("{version} ({name})"), options))
}

fn probe_dax(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    Ok(probe_array::<4>(device, 0)?.as_ref() == Some(b"DAX\0"))
}

fn open_dax(file: Device, _: &dyn Companions, options: &Options) -> Result<Opened> {
    let header = read_array::<32>(file.as_ref(), 0)?;
    let record = Record::new(DAX.name, "header", 0, &header);
    if !header.starts_with(b"DAX\0") {
        return Err(record.corrupt_field("magic number"));
    }
    let (size, version, areas) = (u64::from(record.le32(4)?), record.le32(8)?, u64::from(record.le32(12)?));
    if version > 1 {
        return Err(Error::unsupported(DAX.name, format!("version {version}")));
    }
    let count = size.div_ceil(DAX_FRAME);
    let areas = if version == 0 { 0 } else { areas };
    let areas_at = count.saturating_mul(6).saturating_add(32);
    if size == 0 || areas > MAX_AREAS || areas.saturating_mul(8).saturating_add(areas_at) > file.size() {
        return Err(record.corrupt_field("uncompressed size or number of areas"));
    }
    let len = usize::try_from(areas.saturating_mul(8)).map_err(|_| record.corrupt())?;
    let bytes = read_vec(file.as_ref(), areas_at, len)?;
    let mut stored: Vec<(u64, u64)> = bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|&[a, b, c, d, e, f, g, h]| {
            (u32::from_le_bytes([a, b, c, d]).into(), u32::from_le_bytes([e, f, g, h]).into())
        })
        .collect();
    stored.sort_unstable();
    let lengths_at = count.saturating_mul(4).saturating_add(32);
    let blocks = Blocks {
        format: DAX.name,
        offsets: Tables::new(file.clone(), Width::Le32, DAX.name, "frame offsets"),
        table: Extent { at: 32, count },
        lengths: Some(Lengths { at: lengths_at, stored }),
        flag: Flag::Stored,
        file: file.clone(),
        size,
        block_size: DAX_FRAME,
        shift: 0,
    };
    Ok(finish(blocks, &format!("{version}"), options))
}

fn finish(blocks: Blocks, version: &str, options: &Options) -> Opened {
    let (format, file, size, block_size) = (blocks.format, blocks.file.clone(), blocks.size, blocks.block_size);
    let mut opened = Opened::new(format, Arc::new(Mapped::new(Arc::new(blocks), file, None, 2048, options.cache_size)));
    opened.add("version", version);
    opened.add("virtual size", format!("{size} bytes"));
    opened.add("block size", format!("{block_size} bytes"));
    opened
}

/// What the highest bit of an offset says of the block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flag {
    /// It is stored; without it, it is packed with deflate.
    Stored,
    /// It is stored; without it, it is packed with LZ4.
    StoredElseLz4,
    /// It is packed with LZ4; without it, with deflate. Blocks that are not shorter than they were are stored.
    Lz4,
}

/// What a DAX has beside its offsets.
struct Lengths {
    /// First byte of the table of lengths.
    at: u64,
    /// (first frame, count) of frames that are not compressed, ascending.
    stored: Vec<(u64, u64)>,
}

impl Lengths {
    fn is_stored(&self, frame: u64) -> bool {
        let next = self.stored.partition_point(|(first, _)| *first <= frame);
        let area = next.checked_sub(1).and_then(|index| self.stored.get(index));
        area.is_some_and(|(first, count)| frame.saturating_sub(*first) < *count)
    }
}

/// The blocks of the disc.
struct Blocks {
    format: &'static str,
    offsets: Tables,
    table: Extent,
    /// Of a DAX; in a CSO a block ends where the next one begins.
    lengths: Option<Lengths>,
    flag: Flag,
    file: Device,
    size: u64,
    block_size: u64,
    shift: u32,
}

/// A block in the file.
struct Packed {
    at: u64,
    len: u64,
    stored: bool,
    lz4: bool,
}

impl Blocks {
    fn find(&self, block: u64) -> Result<Packed> {
        let entry = self.offsets.entry(self.table, block)?;
        if let Some(lengths) = &self.lengths {
            let stored = lengths.is_stored(block);
            let len =
                u16::from_le_bytes(read_array(self.file.as_ref(), block.saturating_mul(2).saturating_add(lengths.at))?);
            return Ok(Packed { at: entry, len: if stored { DAX_FRAME } else { len.into() }, stored, lz4: false });
        }
        let place = |entry: u64| (entry & (STORED - 1)).wrapping_shl(self.shift);
        let (at, end) = (place(entry), place(self.offsets.entry(self.table, block.saturating_add(1))?));
        let len = end.checked_sub(at).ok_or_else(|| Error::corrupt(self.format, "block index (it goes back)", at))?;
        let marked = entry & STORED != 0;
        let (stored, lz4) = match self.flag {
            Flag::Stored => (marked, false),
            Flag::StoredElseLz4 => (marked, true),
            Flag::Lz4 => (len >= self.block_size, marked),
        };
        Ok(Packed { at, len, stored, lz4 })
    }
}

impl Mapping for Blocks {
    fn size(&self) -> u64 {
        self.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let unit = offset.checked_div(self.block_size).unwrap_or(0);
        let within = offset.checked_rem(self.block_size).unwrap_or(0);
        let len = self.block_size.saturating_sub(within);
        let packed = self.find(unit)?;
        if packed.stored {
            return Ok(Run { place: Place::At(packed.at.saturating_add(within)), len });
        }
        Ok(Run { place: Place::Packed { unit, within }, len })
    }

    fn unpack(&self, unit: u64) -> Result<Vec<u8>> {
        let Packed { at, len, lz4: is_lz4, .. } = self.find(unit)?;
        let damaged = || Error::corrupt(self.format, "packed block", at);
        let limit = self.block_size.saturating_add(SLACK);
        let rest = self.size.saturating_sub(unit.saturating_mul(self.block_size));
        let size = usize::try_from(rest.min(self.block_size)).map_err(|_| damaged())?;
        // The end of the last block may be rounded up past the file.
        let len = len.min(self.file.size().saturating_sub(at)).min(limit.wrapping_shl(1));
        let packed = read_vec(self.file.as_ref(), at, usize::try_from(len).map_err(|_| damaged())?)?;
        let unpacked = if is_lz4 { lz4(&packed, size) } else { inflate(&packed, self.lengths.is_some(), size) };
        unpacked.ok_or_else(damaged)
    }
}
