//! Directory entries of 32 bytes, alone or in sets: a primary one, and the secondary ones that it counts.
//!
//! ```text
//!   type        0x80 in use | 0x40 secondary | 0x20 benign | 0x1f code; 0 ends a directory
//!   0x81 bitmap 1 which | 20 cluster | 24 length          0x82 up-case table 4 checksum | 20 cluster | 24 length
//!   0x83 label  1 units | 2 up to 11 units                0xa0 volume GUID   6 GUID
//!   0x85 file   1 secondary entries | 2 checksum of the set | 4 attributes | 8 created, 12 written, 16 read
//!               20 10 ms of created and written | 22 zones of the three
//!   0xc0 stream 1 flags | 3 name length | 4 name hash | 8 valid length | 20 cluster | 24 length
//!   0xc1 name   2 fifteen units                           0xe0, 0xe1 of vendors, skipped
//! ```
//!
//! A set for a file is 0x85, 0xc0, as many 0xc1 as its name needs, and whatever is benign.

use super::EXFAT;
use super::upcase::UpCase;
use crate::bytes::Record;
use crate::error::{Error, Result};
use crate::filesystem::Timestamp;
use crate::filesystem::fat::time::Stamp;

/// Length of an entry in bytes.
pub(super) const ENTRY: usize = 32;
pub(super) const ENTRY_LEN: u64 = ENTRY as u64;
/// Entries of the longest set.
pub(super) const MAX_SET: usize = 256;
/// Units of a name that an entry holds.
const NAME_UNITS: usize = 15;

/// Types of entries that this decoder knows.
pub(super) mod kind {
    /// Nothing follows.
    pub const END: u8 = 0;
    /// The bit of an entry that is in use.
    pub const IN_USE: u8 = 0x80;
    /// The bit of a secondary entry.
    pub const SECONDARY: u8 = 0x40;
    /// The bit of an entry that can be skipped by who does not know it.
    pub const BENIGN: u8 = 0x20;
    pub const BITMAP: u8 = 0x81;
    pub const UP_CASE: u8 = 0x82;
    pub const LABEL: u8 = 0x83;
    pub const FILE: u8 = 0x85;
    pub const GUID: u8 = 0xa0;
    pub const STREAM: u8 = 0xc0;
    pub const NAME: u8 = 0xc1;
}

/// Attribute bit: not to be written to.
pub(super) const READ_ONLY: u16 = 0x01;
/// Attribute bit: a directory.
const DIRECTORY: u16 = 0x10;
/// Flag of a stream: its clusters follow each other, and have no chain.
const NO_FAT_CHAIN: u8 = 2;

/// Where contents are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stream {
    pub contiguous: bool,
    pub first: u32,
    /// DataLength, bytes.
    pub size: u64,
    /// ValidDataLength, not above `size`.
    pub valid: u64,
}

/// A file or directory, from its set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileEntry {
    pub attributes: u16,
    pub stream: Stream,
    pub created: Zoned,
    pub modified: Zoned,
    pub accessed: Zoned,
    /// Units of UTF-16.
    pub name: Vec<u16>,
    /// As stored.
    pub name_hash: u16,
}

/// A set as far as a directory needs it, whether or not its checksum is right.
#[derive(Debug)]
pub(super) struct FileSet {
    pub file: FileEntry,
    /// What is wrong with it, where its name can still be told.
    pub damage: Option<Error>,
}

/// A time with its zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Zoned {
    stamp: Stamp,
    /// Bit 7: the rest is what the time is ahead of UTC, in quarters of an hour, seven bits with a sign.
    zone: u8,
}

impl Zoned {
    /// The time in UTC; `minutes` is what it is ahead of that where no zone was recorded.
    pub fn to_utc(self, minutes: i32) -> Option<Timestamp> {
        let quarters = i32::from((self.zone << 1).cast_signed() >> 1);
        self.stamp.to_utc(if self.zone & 0x80 != 0 { quarters.saturating_mul(15) } else { minutes })
    }
}

impl FileEntry {
    pub fn is_directory(&self) -> bool {
        self.attributes & DIRECTORY != 0
    }

    /// Entries that its set has, those of vendors left out.
    pub fn entries(&self) -> usize {
        self.name.len().div_ceil(NAME_UNITS).saturating_add(2)
    }
}

impl FileSet {
    /// All entries of a set; `at` is the byte position of the first, `heap` the number of bytes of all clusters.
    /// An error when the set's name cannot be told.
    pub fn parse(set: &[u8], at: u64, heap: u64) -> Result<Self> {
        let set = Record::new(EXFAT, "directory entry set", at, set);
        let stream = set.part("stream extension", ENTRY, ENTRY)?;
        if set.u8(0)? != kind::FILE || stream.u8(0)? != kind::STREAM {
            return Err(set.corrupt_field("its stream extension is missing"));
        }
        let name = read_name(&set, stream.u8(3)?.into())?;
        let (size, valid) = (stream.le64(24)?, stream.le64(8)?);
        let contents = Stream {
            contiguous: stream.u8(1)? & NO_FAT_CHAIN != 0,
            first: stream.le32(20)?,
            size,
            valid: valid.min(size),
        };
        let time = |offset: usize, fine: Option<usize>, zone: usize| -> Result<Zoned> {
            let (time, date) = (set.le16(offset)?, set.le16(offset.saturating_add(2))?);
            let centiseconds = fine.map_or(Ok(0), |fine| set.u8(fine))?;
            Ok(Zoned { stamp: Stamp { date, time, centiseconds }, zone: set.u8(zone)? })
        };
        let file = FileEntry {
            attributes: set.le16(4)?,
            stream: contents,
            created: time(8, Some(20), 22)?,
            modified: time(12, Some(21), 23)?,
            accessed: time(16, None, 24)?,
            name,
            name_hash: stream.le16(4)?,
        };
        let damage = if set_checksum(set.as_bytes()) != set.le16(2)? {
            Some(set.corrupt_field("its checksum"))
        } else if size > heap {
            Some(stream.corrupt_field("DataLength"))
        } else {
            None
        };
        Ok(Self { file, damage })
    }
}

/// The name in the entries behind the stream extension.
fn read_name(set: &Record<'_>, len: usize) -> Result<Vec<u16>> {
    let mut name = Vec::with_capacity(len);
    let mut start = ENTRY.saturating_mul(2);
    while name.len() < len {
        let entry = set.part("file name entry", start, ENTRY)?;
        if entry.u8(0)? != kind::NAME {
            return Err(set.corrupt_field("a part of its name is missing"));
        }
        let units = (0..NAME_UNITS.min(len.saturating_sub(name.len()))).map(|i| i.saturating_mul(2).saturating_add(2));
        for offset in units {
            name.push(entry.le16(offset)?);
        }
        start = start.saturating_add(ENTRY);
    }
    if name.is_empty() { Err(set.corrupt_field("it has no name")) } else { Ok(name) }
}

/// Of all bytes of a set but the checksum itself.
fn set_checksum(set: &[u8]) -> u16 {
    let counted = set.iter().enumerate().filter(|(index, _)| !matches!(index, 2 | 3));
    counted.fold(0u16, |sum, (_, &byte)| sum.rotate_right(1).wrapping_add(byte.into()))
}

/// The hash of a name, in upper case.
pub(super) fn name_hash(name: &[u16], up_case: &UpCase) -> u16 {
    let bytes = name.iter().flat_map(|&unit| up_case.upper(unit).to_le_bytes());
    bytes.fold(0u16, |sum, byte| sum.rotate_right(1).wrapping_add(byte.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_is_seven_bits_with_a_sign_in_quarters_of_an_hour() {
        // 2024-02-29 13:45:58, as `date -d` has it in UTC: 1709214358
        let stamp = Stamp { date: 44 << 9 | 2 << 5 | 29, time: 13 << 11 | 45 << 5 | 29, centiseconds: 0 };
        let utc = |zone| Zoned { stamp, zone }.to_utc(60).unwrap().seconds - 1_709_214_358;
        assert_eq!([0x80, 0x84, 0xfc, 0xc0, 0xbf].map(utc), [0, -3600, 3600, 16 * 3600, -63 * 900]);
        assert_eq!(utc(0x04), -3600, "without its bit a zone says nothing");
    }
}
