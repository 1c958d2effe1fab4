//! The tag at the start of every descriptor (ECMA-167, 3/7.2), and the checksums in it.
//!
//! ```text
//!   0 identifier | 2 version | 4 checksum of the tag | 6 serial | 8 CRC | 10 its length | 12 location | 16 ...
//! ```

use crate::bytes::Record;
use crate::error::Result;

/// Length of a tag, where the bytes that its CRC is of begin.
pub(super) const LEN: usize = 16;

/// Identifiers of descriptors: of a volume in 3/7.2.1, of what is in it in 4/7.2.1.
pub(super) mod id {
    pub(in super::super) const PRIMARY: u16 = 1;
    pub(in super::super) const ANCHOR: u16 = 2;
    pub(in super::super) const POINTER: u16 = 3;
    pub(in super::super) const PARTITION: u16 = 5;
    pub(in super::super) const LOGICAL: u16 = 6;
    pub(in super::super) const TERMINATING: u16 = 8;
    pub(in super::super) const INTEGRITY: u16 = 9;
    pub(in super::super) const FILE_SET: u16 = 256;
    pub(in super::super) const FILE_IDENTIFIER: u16 = 257;
    pub(in super::super) const ALLOCATION_EXTENT: u16 = 258;
    pub(in super::super) const INDIRECT_ENTRY: u16 = 259;
    pub(in super::super) const FILE_ENTRY: u16 = 261;
    pub(in super::super) const SPACE_BITMAP: u16 = 264;
    pub(in super::super) const EXTENDED_FILE_ENTRY: u16 = 266;
}

/// A tag whose checksums are right.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tag {
    pub(super) id: u16,
    /// The block at which the descriptor says it stands.
    pub(super) location: u32,
}

impl Tag {
    /// Verifies the tag of a descriptor and, where `record` holds all that it is of, its CRC.
    pub(super) fn parse(record: &Record<'_>) -> Result<Self> {
        let tag = Self::parse_alone(record)?;
        let len = usize::from(record.le16(10)?);
        // A length of zero is a writer's that makes no CRC.
        if len > 0 && crc(record.bytes(LEN, len)?) != record.le16(8)? {
            return Err(record.corrupt_field("CRC"));
        }
        Ok(tag)
    }

    /// Verifies the tag's own checksum alone.
    pub(super) fn parse_alone(record: &Record<'_>) -> Result<Self> {
        let tag: [u8; LEN] = record.array(0)?;
        let [a, b, c, d, checksum, rest @ ..] = tag;
        let sum = [a, b, c, d].iter().chain(&rest).fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        if sum != checksum || record.le16(0)? == 0 {
            return Err(record.corrupt_field("tag"));
        }
        Ok(Self { id: record.le16(0)?, location: record.le32(12)? })
    }
}

/// CRC-16 of the polynomial x^16 + x^12 + x^5 + 1, from 0 (ECMA-167, 3/7.2.6 and annex C).
pub(super) fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0u16, |crc, byte| {
        let index = crc.to_be_bytes()[0] ^ byte;
        crc.wrapping_shl(8) ^ TABLE.get(usize::from(index)).copied().unwrap_or(0)
    })
}

const TABLE: [u16; 256] = table();

#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "runs when it is compiled")]
const fn table() -> [u16; 256] {
    let mut table = [0u16; 256];
    let mut index = 0u16;
    while index < 256 {
        let mut crc = index << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
            bit += 1;
        }
        table[index as usize] = crc;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_is_that_of_the_standards_example() {
        assert_eq!(crc(&[0x70, 0x6a, 0x77]), 0x3299);
        assert_eq!(crc(b"123456789"), 0x31c3);
    }
}
