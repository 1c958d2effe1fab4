//! How a volume is known, and where its descriptors are: the recognition sequence and the anchor.
//!
//! ```text
//!   byte 32,768: | CD001 .. | BEA01 | NSR02 | TEA01 |     structures of 2,048 bytes, or of a larger sector
//!   block 256, and N-1, N-257 counted from the end: an anchor -> main and reserve descriptor sequence
//! ```
//!
//! The size of a block is that with which an anchor says the block in which it is found.

use super::tag::{Tag, id};
use super::{NAME, SECTOR};
use crate::bytes::{Evidence, Record};
use crate::device::{BlockDevice, probe_array};
use crate::error::{Error, Result};

/// Where recognition sequences begin, counted from their session, in bytes.
const RECOGNITION: u64 = 32_768;
/// Structures that are looked at, and how many of them may be blank: those between sectors of 32 KiB.
const MAX_STRUCTURES: u64 = 64;
const MAX_BLANK: u32 = 16;
/// Sizes of blocks, the usual ones first.
const BLOCK_SIZES: [u64; 7] = [2048, 512, 4096, 1024, 8192, 16_384, 32_768];

/// Blocks that follow each other (extent_ad, 3/7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Bytes.
    pub(super) len: u32,
    pub(super) block: u32,
}

impl Extent {
    pub(super) fn parse(record: &Record<'_>, offset: usize) -> Result<Self> {
        Ok(Self { len: record.le32(offset)?, block: record.le32(offset.saturating_add(4))? })
    }
}

/// What an anchor says, and the size of a block that it proves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Anchor {
    pub(super) block_size: u64,
    /// Its byte on the device.
    pub(super) at: u64,
    pub(super) main: Extent,
    pub(super) reserve: Extent,
}

/// Where the recognition sequence of the session at byte `session` names this format, and how.
pub(super) fn find(device: &dyn BlockDevice, session: u64) -> Result<Option<Evidence>> {
    let mut blank = 0;
    for index in 0..MAX_STRUCTURES {
        let at = session.saturating_add(RECOGNITION).saturating_add(index.saturating_mul(SECTOR));
        let Some([_, identifier @ ..]) = probe_array::<6>(device, at)? else { return Ok(None) };
        match &identifier {
            b"NSR02" | b"NSR03" => {
                let (offset, bytes) = (at.saturating_add(1), identifier.to_vec());
                return Ok(Some(Evidence { offset, bytes, what: "volume structure descriptor" }));
            }
            b"CD001" | b"BEA01" | b"BOOT2" | b"CDW02" => {}
            [0, 0, 0, 0, 0] if blank < MAX_BLANK => blank = blank.saturating_add(1),
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// The first of the places where an anchor may be that has one. An image that was cut, or that has
/// something behind it, has no end to count from.
pub(super) fn find_anchor(device: &dyn BlockDevice, session: u64) -> Result<Anchor> {
    let blocks = |size: u64, count: u64| device.size().checked_div(size).unwrap_or(0).checked_sub(count);
    let first = |size: u64| session.checked_div(size).and_then(|block| block.checked_add(256));
    let places: [&dyn Fn(u64) -> Option<u64>; 4] =
        [&first, &|size| blocks(size, 1), &|size| blocks(size, 257), &|size| first(size)?.checked_add(256)];
    for place in places {
        for block_size in BLOCK_SIZES {
            let Some(block) = place(block_size) else { continue };
            if let Some(anchor) = anchor_at(device, block, block_size)? {
                return Ok(anchor);
            }
        }
    }
    Err(Error::corrupt(NAME, "anchor volume descriptor pointer (none is found)", session.saturating_add(256 * SECTOR)))
}

fn anchor_at(device: &dyn BlockDevice, block: u64, block_size: u64) -> Result<Option<Anchor>> {
    let Some(at) = block.checked_mul(block_size) else { return Ok(None) };
    let Some(bytes) = probe_array::<512>(device, at).unwrap_or(None) else { return Ok(None) };
    let record = Record::new(NAME, "anchor volume descriptor pointer", at, &bytes);
    let Ok(tag) = Tag::parse(&record) else { return Ok(None) };
    if tag.id != id::ANCHOR || u64::from(tag.location) != block {
        return Ok(None);
    }
    let (main, reserve) = (Extent::parse(&record, 16)?, Extent::parse(&record, 24)?);
    Ok(Some(Anchor { block_size, at, main, reserve }))
}
