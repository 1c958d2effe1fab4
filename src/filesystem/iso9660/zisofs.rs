//! zisofs: a file stored as zlib blocks behind a table of pointers. The ZF field says so, and with
//! it size and bytes are those of the file before it was packed.
//!
//! ```text
//!   [magic][size][header/4][log2 of block size]..   16 bytes (v1), 24 bytes (v2)
//!   [pointer 0][pointer 1] .. [pointer n]           32 bits (v1), 64 bits (v2); n blocks
//!   [zlib stream][zlib stream] ..                   block i from pointer i to pointer i + 1; none: zeros
//! ```

use std::io::Read;

use super::NAME;
use super::file::Sections;
use super::record::Both;
use crate::bytes::Record;
use crate::device::mapped::{Mapping, read_runs};
use crate::device::{BlockDevice, Extent};
use crate::error::{Error, Result};

const MAGIC_1: [u8; 8] = [0x37, 0xe4, 0x53, 0x96, 0xc9, 0xdb, 0xd6, 0x07];
const MAGIC_2: [u8; 8] = [0xef, 0x22, 0x55, 0xa1, 0xbc, 0x1b, 0x95, 0xa0];
/// A run of zero blocks is followed this far by one question for a hole.
const MAX_HOLE_BLOCKS: usize = 4096;

/// What the field says of a packed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packing {
    /// 64-bit pointers.
    is_v2: bool,
    /// Bytes before the pointers.
    header: u64,
    block_shift: u8,
    /// Size of the file before it was packed, in bytes.
    pub(super) size: u64,
}

impl Packing {
    /// ZF: "pz" (version 1, Linux) or "PZ" (version 2, libisofs). Another algorithm is `None`: the
    /// bytes are shown as they are stored.
    pub(super) fn parse(record: &Record<'_>) -> Result<Option<Self>> {
        let (is_v2, shifts) = match record.bytes(4, 2)? {
            b"pz" => (false, 15..=17),
            b"PZ" => (true, 15..=20),
            _ => return Ok(None),
        };
        let block_shift = record.u8(7)?;
        let header = u64::from(record.u8(6)?).saturating_mul(4);
        if !shifts.contains(&block_shift) || header < 16 {
            return Err(record.corrupt_field("zisofs header or block size"));
        }
        let size = if is_v2 { record.le64(8)? } else { Both::read32(record, 8)?.le.into() };
        Ok(Some(Self { is_v2, header, block_shift, size }))
    }

    /// Bytes in a block before it was packed; the last one of a file is shorter.
    pub(super) fn block_len(&self) -> u64 {
        1 << u32::from(self.block_shift).min(20)
    }

    /// Checks that the file begins as the field says.
    pub(super) fn check(&self, file: &Sections, device: &dyn BlockDevice, at: u64) -> Result<()> {
        let mut magic = [0; 8];
        read_runs(file, device, &mut magic, 0)?;
        if magic == if self.is_v2 { MAGIC_2 } else { MAGIC_1 } {
            return Ok(());
        }
        Err(Error::corrupt(NAME, "zisofs file (magic), of the record", at))
    }

    /// Where block `index` is stored: first byte and length within the packed file.
    fn stored(&self, file: &Sections, device: &dyn BlockDevice, index: u64, at: u64) -> Result<(u64, u64)> {
        let corrupt = || Error::corrupt(NAME, "zisofs block pointer, of the record", at);
        let pointer_len = if self.is_v2 { 8 } else { 4 };
        let offset = index.checked_mul(pointer_len).and_then(|o| o.checked_add(self.header)).ok_or_else(corrupt)?;
        let mut bytes = [0; 16];
        let (pair, _) = bytes.split_at_mut(if self.is_v2 { 16 } else { 8 });
        read_runs(file, device, pair, offset)?;
        let pair = Record::new(NAME, "zisofs block pointer", at, pair);
        let (start, end) =
            if self.is_v2 { (pair.le64(0)?, pair.le64(8)?) } else { (pair.le32(0)?.into(), pair.le32(4)?.into()) };
        // zlib adds a few bytes to what cannot be packed.
        let most = self.block_len().saturating_mul(2);
        match u64::checked_sub(end, start) {
            Some(len) if len <= most && end <= file.size() => Ok((start, len)),
            _ => Err(corrupt()),
        }
    }

    /// Unpacks block `index`; `at` is the file's directory record, for messages.
    pub(super) fn unpack(&self, file: &Sections, device: &dyn BlockDevice, index: u64, at: u64) -> Result<Vec<u8>> {
        let done = index.saturating_mul(self.block_len());
        let len = usize::try_from(self.size.saturating_sub(done).min(self.block_len())).map_err(|_| Error::Invalid)?;
        let (start, packed_len) = self.stored(file, device, index, at)?;
        let mut block = vec![0; len];
        if packed_len == 0 {
            return Ok(block);
        }
        let mut packed = vec![0; usize::try_from(packed_len).map_err(|_| Error::Invalid)?];
        read_runs(file, device, &mut packed, start)?;
        flate2::read::ZlibDecoder::new(packed.as_slice())
            .read_exact(&mut block)
            .map_err(|_| Error::corrupt(NAME, format!("zisofs block {index}, of the record"), at))?;
        Ok(block)
    }

    /// Whether the bytes from `offset` are stored; blocks of length zero are holes.
    pub(super) fn extent(&self, file: &Sections, device: &dyn BlockDevice, offset: u64, at: u64) -> Result<Extent> {
        let rest = self.size.saturating_sub(offset);
        let within = offset.checked_rem(self.block_len()).unwrap_or(0);
        let first = offset.checked_div(self.block_len()).unwrap_or(0);
        let (_, packed_len) = self.stored(file, device, first, at)?;
        let mut len = self.block_len().saturating_sub(within);
        for index in (first.saturating_add(1)..).take(MAX_HOLE_BLOCKS) {
            if packed_len != 0 || len >= rest || self.stored(file, device, index, at)?.1 != 0 {
                break;
            }
            len = len.saturating_add(self.block_len());
        }
        Ok(Extent { stored: packed_len != 0, len: len.min(rest) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_with_a_block_size_that_no_one_writes_is_damage() {
        let field = [b'Z', b'F', 16, 1, b'p', b'z', 4, 40, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(Packing::parse(&Record::new(NAME, "ZF", 0, &field)).is_err());
    }

    #[test]
    fn an_unknown_algorithm_is_left_as_it_is_stored() {
        let field = [b'Z', b'F', 16, 1, b'x', b'x', 4, 15, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Packing::parse(&Record::new(NAME, "ZF", 0, &field)).unwrap(), None);
    }
}
