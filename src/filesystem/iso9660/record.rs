//! A directory record (ECMA-119, 9.1) and the numbers that are recorded in both byte orders.

use super::NAME;
use crate::bytes::Record;
use crate::error::Result;

/// A number recorded twice (ECMA-119, 7.2.3 and 7.3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Both {
    pub(super) le: u32,
    pub(super) be: u32,
}

impl Both {
    /// Eight bytes: little-endian, then big-endian.
    pub(super) fn read32(record: &Record<'_>, offset: usize) -> Result<Self> {
        Ok(Self { le: record.le32(offset)?, be: record.be32(offset.saturating_add(4))? })
    }

    /// Four bytes: little-endian, then big-endian.
    pub(super) fn read16(record: &Record<'_>, offset: usize) -> Result<Self> {
        let (le, be) = (record.le16(offset)?, record.be16(offset.saturating_add(2))?);
        Ok(Self { le: le.into(), be: be.into() })
    }

    /// Whether the two say the same.
    pub(super) fn agrees(self) -> bool {
        self.le == self.be
    }

    /// The little-endian one, which every writer of the PC world gets right and every reader there
    /// takes; the other only where the first is impossible and the other is not.
    pub(super) fn choose(self, possible: impl Fn(u32) -> bool) -> u32 {
        if !possible(self.le) && possible(self.be) { self.be } else { self.le }
    }
}

/// Not for the eyes of users. Shown all the same: hiding is for whoever lists.
const DIRECTORY: u8 = 0x02;
/// Belongs to the record after it: a resource fork.
const ASSOCIATED: u8 = 0x04;
/// Not the last section of its file.
const MULTI_EXTENT: u8 = 0x80;
/// Bytes before the name.
const FIXED: usize = 33;

/// One row of a directory, or one section of a file in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct DirectoryRecord<'a> {
    /// Byte position on the device.
    pub(super) at: u64,
    /// Length in bytes, at least 34.
    pub(super) len: usize,
    /// Blocks of the extended attribute record, which lie before the data.
    pub(super) xar_len: u8,
    /// First block.
    pub(super) extent: Both,
    /// Length of the data in bytes.
    pub(super) data_len: Both,
    pub(super) time: [u8; 7],
    flags: u8,
    /// Interleaving: blocks in a file unit, and blocks from there to the next unit; both 0 without.
    pub(super) unit: u8,
    pub(super) gap: u8,
    /// Never empty.
    pub(super) name: &'a [u8],
    /// What is behind the name and its padding.
    pub(super) system_use: &'a [u8],
}

impl<'a> DirectoryRecord<'a> {
    /// `bytes` starts with the record and may go on behind it.
    pub(super) fn parse(bytes: &'a [u8], at: u64) -> Result<Self> {
        let start = Record::new(NAME, "directory record", at, bytes);
        let len = usize::from(start.u8(0)?);
        let record = start.part("directory record", 0, len)?;
        let name_len = usize::from(record.u8(32)?);
        if name_len == 0 {
            return Err(record.corrupt_field("name length"));
        }
        let name = record.bytes(FIXED, name_len)?;
        // A byte of padding makes the length of the fixed part and the name even. Some writers leave
        // it out where nothing follows.
        let end = FIXED.saturating_add(name_len).next_multiple_of(2).min(len);
        Ok(Self {
            at,
            len,
            xar_len: record.u8(1)?,
            extent: Both::read32(&record, 2)?,
            data_len: Both::read32(&record, 10)?,
            time: record.array(18)?,
            flags: record.u8(25)?,
            unit: record.u8(26)?,
            gap: record.u8(27)?,
            name,
            system_use: record.tail(end)?,
        })
    }

    /// Byte position of [`Self::system_use`].
    pub(super) fn system_use_at(&self) -> u64 {
        self.at.saturating_add(self.len as u64).saturating_sub(self.system_use.len() as u64)
    }

    pub(super) fn is_directory(&self) -> bool {
        self.flags & DIRECTORY != 0
    }

    pub(super) fn is_associated(&self) -> bool {
        self.flags & ASSOCIATED != 0
    }

    /// More sections of this file follow.
    pub(super) fn continues(&self) -> bool {
        self.flags & MULTI_EXTENT != 0
    }

    /// The directory itself, or its parent.
    pub(super) fn is_dot(&self) -> bool {
        matches!(self.name, [0 | 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(name: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; FIXED];
        bytes[32] = name.len() as u8;
        bytes.extend_from_slice(name);
        bytes[0] = bytes.len() as u8;
        bytes
    }

    #[test]
    fn a_record_without_the_padding_byte_is_read() {
        let bytes = bytes(b"AB");
        let record = DirectoryRecord::parse(&bytes, 0).unwrap();
        assert_eq!((record.name, record.system_use), (&b"AB"[..], &b""[..]));
    }

    #[test]
    fn a_name_longer_than_its_record_is_damage() {
        let mut bytes = bytes(b"ABC");
        bytes[32] = 4;
        assert!(DirectoryRecord::parse(&bytes, 0).is_err());
        bytes[32] = 0;
        assert!(DirectoryRecord::parse(&bytes, 0).is_err());
    }

    #[test]
    fn the_big_endian_number_is_taken_only_where_the_other_is_impossible() {
        let both = Both { le: 900, be: 7 };
        assert_eq!(both.choose(|n| n < 1000), 900);
        assert_eq!(both.choose(|n| n < 100), 7);
        assert_eq!(both.choose(|n| n < 5), 900);
    }
}
