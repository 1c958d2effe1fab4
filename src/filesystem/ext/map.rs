//! From an offset in a file to a place on the volume: extents, or direct and indirect blocks.
//!
//! ```text
//!   i_block[0..12]  the first blocks     [12] -> numbers     [13] -> -> numbers     [14] -> -> ->
//! ```
//!
//! A number of 0 at any level is a hole, as long as the span of blocks below it.

use std::sync::Arc;

use crate::bytes::Record;
use crate::device::mapped::{Mapping, Place, Run};
use crate::device::{Extent, read_vec};
use crate::error::{Error, Result};

use super::Ext;
use super::inode::{Contents, Inode};

const DIRECT: u64 = 12;

/// Some blocks of a file that are all in one place, or all absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First block on the volume; `None` for zeros.
    pub place: Option<u64>,
    /// Number of blocks, not zero.
    pub count: u64,
}

/// The contents of one inode, block by block.
pub struct FileMap<'a> {
    /// The volume.
    pub ext: &'a Ext,
    /// The file.
    pub inode: &'a Inode,
}

impl Mapping for FileMap<'_> {
    fn size(&self) -> u64 {
        let block = u64::from(self.ext.superblock.block_size).max(1);
        self.inode.attributes.size.checked_next_multiple_of(block).unwrap_or(u64::MAX)
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let size = u64::from(self.ext.superblock.block_size);
        let block = offset.checked_div(size).unwrap_or(0);
        let within = offset.checked_rem(size).unwrap_or(0);
        let span = self.span(block)?;
        let len = span.count.saturating_mul(size).saturating_sub(within);
        let place = match span.place {
            Some(place) => Place::At(self.ext.superblock.byte_of(place).saturating_add(within)),
            None => Place::Hole,
        };
        if len == 0 { Err(self.inode.corrupt("block map")) } else { Ok(Run { place, len }) }
    }
}

impl FileMap<'_> {
    /// The run that starts at a block of the file.
    pub fn span(&self, block: u64) -> Result<Span> {
        let Ok(number) = u32::try_from(block) else {
            return Ok(Span { place: None, count: u64::MAX.saturating_sub(block) });
        };
        match &self.inode.contents {
            Contents::Extents(Ok(root)) => root.find(self.ext, self.inode, number),
            Contents::Extents(Err(error)) => Err(error.clone()),
            Contents::Blocks => self.indirect_span(block),
            Contents::Inline(_) | Contents::None => Err(Error::Invalid),
        }
    }

    fn indirect_span(&self, block: u64) -> Result<Span> {
        let root = numbers(&self.inode.block);
        if block < DIRECT {
            return self.run_of(root.get(..12).unwrap_or_default(), block);
        }
        let fan = u64::from(self.ext.superblock.block_size) >> 2;
        let mut block = block.saturating_sub(DIRECT);
        let mut reach = 1u64;
        for slot in 12..15usize {
            let below = reach;
            reach = reach.saturating_mul(fan);
            if block >= reach {
                block = block.saturating_sub(reach);
                continue;
            }
            let number = root.get(slot).copied().unwrap_or(0);
            return self.descend(number, block, below);
        }
        Ok(Span { place: None, count: u64::from(u32::MAX) })
    }

    /// `below` is how many blocks of the file one number of the block `number` stands for.
    fn descend(&self, mut number: u32, mut block: u64, mut below: u64) -> Result<Span> {
        let fan = u64::from(self.ext.superblock.block_size) >> 2;
        loop {
            if number == 0 {
                return Ok(Span { place: None, count: below.saturating_mul(fan).saturating_sub(block) });
            }
            let list = self.load(number)?;
            if below == 1 {
                return self.run_of(&list, block);
            }
            let index = usize::try_from(block.checked_div(below).unwrap_or(0)).map_err(|_| Error::Invalid)?;
            let within = block.checked_rem(below).unwrap_or(0);
            number = list.get(index).copied().unwrap_or(0);
            if number == 0 {
                // Absent branches beside this one are part of the same hole.
                let absent = list.iter().skip(index).take_while(|&&other| other == 0).count() as u64;
                return Ok(Span { place: None, count: absent.saturating_mul(below).saturating_sub(within) });
            }
            block = within;
            below = below.checked_div(fan).unwrap_or(1).max(1);
        }
    }

    /// The run inside one list of block numbers, from entry `index` on.
    fn run_of(&self, list: &[u32], index: u64) -> Result<Span> {
        let mut rest = list.iter().skip(usize::try_from(index).map_err(|_| Error::Invalid)?).copied();
        let Some(first) = rest.next() else { return Err(Error::Invalid) };
        let mut count = 1u64;
        if first == 0 {
            count = count.saturating_add(rest.take_while(|&other| other == 0).count() as u64);
            return Ok(Span { place: None, count });
        }
        let mut last = first;
        for other in rest {
            if last.checked_add(1) != Some(other) {
                break;
            }
            last = other;
            count = count.saturating_add(1);
        }
        if !self.ext.superblock.holds(first.into(), 1) {
            return Err(self.inode.corrupt("block number"));
        }
        // A run past the end: what lies before the end can still be read.
        let count = count.min(self.ext.superblock.blocks.saturating_sub(first.into()));
        Ok(Span { place: Some(first.into()), count: count.max(1) })
    }

    fn load(&self, number: u32) -> Result<Arc<Vec<u32>>> {
        let superblock = &self.ext.superblock;
        if !superblock.holds(number.into(), 1) {
            return Err(self.inode.corrupt("indirect block"));
        }
        self.ext.indirect.get_or_make(&number, || {
            let len = usize::try_from(superblock.block_size).map_err(|_| Error::Invalid)?;
            let bytes = read_vec(self.ext.disk.as_ref(), superblock.byte_of(number.into()), len)?;
            Ok((Arc::new(numbers(&bytes)), superblock.block_size.into()))
        })
    }

    /// Whether the bytes from `offset` are stored, and how far; neighbours of one sort are joined.
    pub fn extent(&self, offset: u64) -> Result<Extent> {
        // Joining more would make one call walk a whole file; the caller asks again.
        const MOST_RUNS: usize = 1024;
        let size = self.inode.attributes.size;
        let first = self.map(offset)?;
        let stored = first.place != Place::Hole;
        let mut end = offset.saturating_add(first.len);
        for _ in 0..MOST_RUNS {
            if end >= size {
                break;
            }
            let Ok(next) = self.map(end) else { break };
            if (next.place != Place::Hole) != stored {
                break;
            }
            end = end.saturating_add(next.len);
        }
        Ok(Extent { stored, len: end.min(size).saturating_sub(offset) })
    }
}

fn numbers(bytes: &[u8]) -> Vec<u32> {
    let raw = Record::new("ext", "block numbers", 0, bytes);
    (0..bytes.len() / 4).filter_map(|index| raw.le32(index.saturating_mul(4)).ok()).collect()
}
