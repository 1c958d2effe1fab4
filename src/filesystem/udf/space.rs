//! Free space: what the volume said when it was closed, and the bitmaps (ECMA-167, 4/14.12).

use super::NAME;
use super::partition::Partitions;
use super::tag::{Tag, id};
use super::volume::{Integrity, Partition};
use crate::bytes::Record;
use crate::device::{read_array, read_vec};
use crate::error::{Error, Result};

/// Read at once.
const CHUNK: u64 = 64 << 10;
/// A larger bitmap is not read when a volume is opened: that of 256 GB in blocks of 2,048 bytes.
const MAX_BITMAP: u64 = 16 << 20;

/// Free blocks, where they are known: what was said when the volume was closed, or what is counted.
pub(super) fn free(partitions: &Partitions, integrity: Option<&Integrity>) -> Option<u64> {
    if partitions.is_write_once() {
        return Some(0);
    }
    let said = integrity.filter(|integrity| integrity.is_closed).and_then(said);
    said.or_else(|| counted(partitions, MAX_BITMAP).ok().flatten())
}

/// What the integrity descriptor says of all partitions; `None` unless it says it of each.
pub(super) fn said(integrity: &Integrity) -> Option<u64> {
    integrity.space.iter().try_fold(0u64, |sum, (free, _)| sum.checked_add(u64::from((*free)?)))
}

/// What the bitmaps say; `None` where a partition has none, or it is longer than `most` bytes.
pub(super) fn counted(partitions: &Partitions, most: u64) -> Result<Option<u64>> {
    let mut sum = 0u64;
    for partition in partitions.physical() {
        let Some(bitmap) = partition.bitmap else { return Ok(None) };
        let at = u64::from(partition.start).saturating_add(bitmap.block.into());
        let Some(free) = count(partitions, partition, at.saturating_mul(partitions.block_size), most)? else {
            return Ok(None);
        };
        sum = sum.saturating_add(free);
    }
    Ok(Some(sum))
}

fn count(partitions: &Partitions, partition: &Partition, at: u64, most: u64) -> Result<Option<u64>> {
    let device = partitions.device.as_ref();
    let head: [u8; 24] = read_array(device, at)?;
    let record = Record::new(NAME, "space bitmap descriptor", at, &head);
    if Tag::parse_alone(&record)?.id != id::SPACE_BITMAP {
        return Err(record.corrupt());
    }
    let bits = u64::from(record.le32(16)?.min(partition.len));
    let bytes = bits.div_ceil(8);
    if bytes > u64::from(record.le32(20)?) {
        return Err(record.corrupt_field("number of bytes"));
    }
    if bytes > most {
        return Ok(None);
    }
    let (mut free, mut done) = (0u64, 0u64);
    while done < bytes {
        let len = usize::try_from(CHUNK.min(bytes.saturating_sub(done))).map_err(|_| Error::Invalid)?;
        let part = read_vec(device, at.saturating_add(24).saturating_add(done), len)?;
        free = part.iter().fold(free, |sum, byte| sum.saturating_add(byte.count_ones().into()));
        done = done.saturating_add(len as u64);
    }
    // Bits behind the last block say nothing.
    if let (Some(last), extra @ 1..) = (bytes.checked_sub(1), bytes.saturating_mul(8).saturating_sub(bits)) {
        let [byte] = read_array(device, at.saturating_add(24).saturating_add(last))?;
        let shift = 8u64.saturating_sub(extra);
        let behind = byte.wrapping_shr(u32::try_from(shift).unwrap_or(0));
        free = free.saturating_sub(behind.count_ones().into());
    }
    Ok(Some(free))
}
