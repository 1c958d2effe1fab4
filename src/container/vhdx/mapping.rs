//! From an offset of the disk through the block allocation table to a block.

use std::sync::Arc;

use super::{FORMAT, MIB, Metadata, Region};
use crate::cache::Cache;
use crate::container::table::{Extent, Tables, Width, held, join};
use crate::device::mapped::{Mapping, Place, Run};
use crate::device::{Device, read_vec};
use crate::error::{Error, Result};

/// Sectors that one bitmap block describes.
const CHUNK_SECTORS: u64 = 1 << 23;
/// Bound on the pieces of bitmaps that are kept, bytes: of 16 GiB of partly present blocks.
const BITMAP_CACHE: u64 = 4 << 20;

/// States of a block, in the lowest three bits of its entry. The states 1, 2 and 3 (undefined,
/// zero, unmapped) read as zeros.
const NOT_PRESENT: u64 = 0;
const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;
const STATE: u64 = 7;
const OFFSET: u64 = !(MIB - 1);

/// The blocks of the disk.
pub(super) struct Blocks {
    tables: Tables,
    table: Extent,
    /// Payload blocks for each bitmap block: 16 or more.
    chunk_ratio: u64,
    block_size: u64,
    sector_size: u64,
    has_parent: bool,
    /// A block's part of a sector bitmap, by its place.
    bitmaps: Cache<u64, Arc<Vec<u8>>>,
    device: Device,
    size: u64,
}

impl Blocks {
    pub(super) fn new(device: Device, bat: Region, metadata: &Metadata) -> Result<Self> {
        let sector_size = u64::from(metadata.sector_size);
        let blocks = metadata.size.div_ceil(metadata.block_size.max(1));
        let chunk_ratio =
            CHUNK_SECTORS.saturating_mul(sector_size).checked_div(metadata.block_size).unwrap_or(1).max(1);
        let has_parent = metadata.parent.is_some();
        // Section 2.5.1: without a parent the table ends with the last payload block.
        let count = if has_parent {
            blocks.div_ceil(chunk_ratio).saturating_mul(chunk_ratio.saturating_add(1))
        } else {
            blocks.saturating_add(blocks.saturating_sub(1).checked_div(chunk_ratio).unwrap_or(0))
        };
        let len = count.saturating_mul(8);
        if len > bat.len || bat.at.checked_add(len).is_none_or(|end| end > device.size()) {
            let what = "region table (block allocation table too short, or past the end of the file)";
            return Err(Error::corrupt(FORMAT.name, what, bat.at));
        }
        Ok(Self {
            tables: Tables::new(device.clone(), Width::Le64, FORMAT.name, "block allocation table"),
            table: Extent { at: bat.at, count },
            chunk_ratio,
            block_size: metadata.block_size,
            sector_size,
            has_parent,
            bitmaps: Cache::new(BITMAP_CACHE),
            device,
            size: metadata.size,
        })
    }

    fn place(&self, entry: u64) -> Result<Place> {
        match entry & STATE {
            NOT_PRESENT => Ok(Place::Parent),
            1..=3 => Ok(Place::Hole),
            FULLY_PRESENT => self.stored(entry),
            _ => Err(Error::corrupt(FORMAT.name, "block allocation table entry (state)", self.table.at)),
        }
    }

    fn stored(&self, entry: u64) -> Result<Place> {
        let at = entry & OFFSET;
        // The first MiB is the headers'.
        if at < MIB || at >= self.device.size() {
            return Err(Error::corrupt(FORMAT.name, "payload block past the end of the file", at));
        }
        Ok(Place::At(at))
    }

    /// Sectors of a partly present block that all come from here, or all from the parent. In the
    /// bitmap the first sector is the lowest bit of the first byte.
    fn partial(&self, block: u64, entry: u64, within: u64) -> Result<Run> {
        let bitmap = self.bitmap(block)?;
        let here = |sector: u64| {
            let byte = usize::try_from(sector / 8).ok().and_then(|i| bitmap.get(i)).copied().unwrap_or(0);
            byte & 1u8.wrapping_shl(u32::try_from(sector % 8).unwrap_or(0)) != 0
        };
        let sectors = self.block_size.checked_div(self.sector_size).unwrap_or(0);
        let first = within.checked_div(self.sector_size).unwrap_or(0);
        let stored = here(first);
        let end = (first..sectors).find(|&sector| here(sector) != stored);
        let end = end.map_or(self.block_size, |sector| sector.saturating_mul(self.sector_size));
        let place = if stored { self.stored(entry)?.after(within).ok_or(Error::Invalid)? } else { Place::Parent };
        Ok(Run { place, len: end.saturating_sub(within) })
    }

    /// The block's own part of its chunk's bitmap: at most 64 KiB.
    fn bitmap(&self, block: u64) -> Result<Arc<Vec<u8>>> {
        let chunk = block.checked_div(self.chunk_ratio).unwrap_or(0);
        let index = chunk.saturating_mul(self.chunk_ratio.saturating_add(1)).saturating_add(self.chunk_ratio);
        let entry = self.tables.entry(self.table, index)?;
        let len = self.block_size.checked_div(self.sector_size.saturating_mul(8)).unwrap_or(0);
        let at = block.checked_rem(self.chunk_ratio).unwrap_or(0).saturating_mul(len).saturating_add(entry & OFFSET);
        let corrupt = || Error::corrupt(FORMAT.name, "sector bitmap block (absent or past the end of the file)", at);
        if entry & STATE != FULLY_PRESENT || entry & OFFSET < MIB || at.saturating_add(len) > self.device.size() {
            return Err(corrupt());
        }
        self.bitmaps.get_or_make(&at, || {
            let bytes = read_vec(self.device.as_ref(), at, usize::try_from(len).map_err(|_| corrupt())?)?;
            Ok((Arc::new(bytes), len))
        })
    }
}

impl Mapping for Blocks {
    fn size(&self) -> u64 {
        self.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let block = offset.checked_div(self.block_size).unwrap_or(0);
        let within = offset.checked_rem(self.block_size).unwrap_or(0);
        // Each chunk of blocks before this one has put a bitmap's entry into the table.
        let chunk = block.checked_div(self.chunk_ratio).unwrap_or(0);
        let left = self.chunk_ratio.saturating_sub(block.checked_rem(self.chunk_ratio).unwrap_or(0));
        let entries = self.tables.entries(self.table, block.saturating_add(chunk))?;
        let run = if entries.first() & STATE == PARTIALLY_PRESENT && self.has_parent {
            self.partial(block, entries.first(), within)?
        } else {
            let places = entries.rest().iter().take(usize::try_from(left).unwrap_or(1)).map(|&entry| self.place(entry));
            join(self.block_size, within, places)?
        };
        held(run, self.device.size(), FORMAT.name, "payload block")
    }
}
