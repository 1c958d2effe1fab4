//! The 32-byte slots of a directory: a file's own entry, and the pieces of long names before it.
//!
//! ```text
//!   8.3 entry   0 name 11 | 11 attributes | 12 case | 13 creation 10 ms, time, date | 18 access date
//!               20 cluster high | 22 time, date | 26 cluster low | 28 size
//!   long name   0 number | 1 five units | 11 0x0f | 12 0 | 13 checksum | 14 six units | 26 0 | 28 two units
//! ```

use super::FAT;
use super::geometry::Width;
use super::time::Stamp;
use crate::bytes::Record;
use crate::error::Result;

/// Length of a slot in bytes.
pub(super) const SLOT: usize = 32;
/// First byte of a slot that was freed.
pub(super) const FREED: u8 = 0xe5;
/// Attribute bit: not to be written to.
pub(super) const READ_ONLY: u8 = 0x01;
/// Attribute bit: the volume's label, not a file.
pub(super) const LABEL: u8 = 0x08;
/// Attribute bit: a directory.
pub(super) const DIRECTORY: u8 = 0x10;
/// Attribute bit: changed since the last backup.
pub(super) const ARCHIVE: u8 = 0x20;
/// The attributes of a piece of a long name.
pub(super) const LONG: u8 = 0x0f;

/// The entry that a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Name and extension, padded with spaces, in the OEM code page.
    pub short: [u8; 11],
    /// Attribute bits.
    pub attributes: u8,
    /// Windows NT: 0x08 the name, 0x10 the extension is meant in lower case.
    pub case: u8,
    /// Creation.
    pub created: Stamp,
    /// Last access, the date alone.
    pub accessed: u16,
    /// Last write.
    pub modified: Stamp,
    /// First cluster; 0 for an empty file.
    pub cluster: u32,
    /// The upper half of `cluster` as stored, where FAT12 and FAT16 use it for something else.
    pub high: u16,
    /// Contents in bytes; 0 for a directory.
    pub size: u32,
}

impl Entry {
    /// `at` is the slot's byte position on the volume.
    pub fn parse(slot: &[u8], at: u64, width: Width) -> Result<Self> {
        let slot = Record::new(FAT, "directory entry", at, slot);
        let high = slot.le16(20)?;
        let low = u32::from(slot.le16(26)?);
        Ok(Self {
            short: slot.array(0)?,
            attributes: slot.u8(11)?,
            case: slot.u8(12)?,
            created: Stamp { date: slot.le16(16)?, time: slot.le16(14)?, centiseconds: slot.u8(13)? },
            accessed: slot.le16(18)?,
            modified: Stamp { date: slot.le16(24)?, time: slot.le16(22)?, centiseconds: 0 },
            cluster: if width == Width::Fat32 { u32::from(high) << 16 | low } else { low },
            high,
            size: slot.le32(28)?,
        })
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.attributes & DIRECTORY != 0
    }

    /// Whether DOS runs it: by the extension of its short name, as the kernel's `showexec` has it.
    pub fn is_program(&self) -> bool {
        matches!(self.short, [.., b'E', b'X', b'E'] | [.., b'C', b'O', b'M'] | [.., b'B', b'A', b'T'])
    }

    /// The slot's bytes.
    pub fn to_bytes(self, width: Width) -> [u8; SLOT] {
        let [c0, c1, c2, c3] = self.cluster.to_le_bytes();
        let high = if width == Width::Fat32 { [c2, c3] } else { self.high.to_le_bytes() };
        let mut bytes = [0; SLOT];
        let fields: [&[u8]; 12] = [
            &self.short,
            &[self.attributes, self.case, self.created.centiseconds],
            &self.created.time.to_le_bytes(),
            &self.created.date.to_le_bytes(),
            &self.accessed.to_le_bytes(),
            &high,
            &self.modified.time.to_le_bytes(),
            &self.modified.date.to_le_bytes(),
            &[c0, c1],
            &self.size.to_le_bytes(),
            &[],
            &[],
        ];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }
}

/// A piece of a long name: 13 units of UTF-16.
pub(super) struct LongPiece {
    /// Place in the name, from 1.
    pub number: u8,
    /// It is the last piece of the name, which is stored first.
    pub last: bool,
    /// Of the short name that it belongs to.
    pub checksum: u8,
    /// The units; what follows the end is 0 and then 0xFFFF.
    pub units: [u16; 13],
}

/// Where the units lie in a slot.
const UNITS: [usize; 13] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

impl LongPiece {
    /// `at` is the slot's byte position on the volume.
    pub fn parse(slot: &[u8], at: u64) -> Result<Self> {
        let slot = Record::new(FAT, "long name entry", at, slot);
        let number = slot.u8(0)?;
        let mut units = [0; 13];
        for (unit, offset) in units.iter_mut().zip(UNITS) {
            *unit = slot.le16(offset)?;
        }
        Ok(Self { number: number & 0x3f, last: number & 0x40 != 0, checksum: slot.u8(13)?, units })
    }

    /// The slot's bytes.
    pub fn to_bytes(&self) -> [u8; SLOT] {
        let mut bytes = [0; SLOT];
        let mut put = |offset: usize, value: u8| {
            if let Some(byte) = bytes.get_mut(offset) {
                *byte = value;
            }
        };
        put(0, self.number | if self.last { 0x40 } else { 0 });
        put(11, LONG);
        put(13, self.checksum);
        for (unit, offset) in self.units.iter().zip(UNITS) {
            let [low, high] = unit.to_le_bytes();
            put(offset, low);
            put(offset.saturating_add(1), high);
        }
        bytes
    }
}

/// The checksum that ties a long name to its short one.
pub(super) fn checksum(short: &[u8; 11]) -> u8 {
    short.iter().fold(0u8, |sum, &byte| sum.rotate_right(1).wrapping_add(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_and_a_long_piece_are_written_as_they_were_read() {
        let bytes: [u8; 32] = std::array::from_fn(|i| i as u8 * 7 + 3);
        for width in [Width::Fat12, Width::Fat32] {
            assert_eq!(Entry::parse(&bytes, 0, width).unwrap().to_bytes(width), bytes);
        }
        let mut piece = bytes;
        (piece[0], piece[11], piece[12], piece[26], piece[27]) = (0x43, LONG, 0, 0, 0);
        assert_eq!(LongPiece::parse(&piece, 0).unwrap().to_bytes(), piece);
    }

    #[test]
    fn the_checksum_is_the_specifications() {
        // Its example, the short name of "The quick brown.fox".
        assert_eq!(checksum(b"THEQUI~1FOX"), 0x07);
    }
}
