//! Checked access to the fields of an on-disk structure.
//!
//! A decoder names its structure once; every getter then either returns the field or says which
//! structure, at which byte, was too short for it.

use crate::error::{Error, Result};

/// The bytes of one on-disk structure, with what an error message needs to name it.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    format: &'static str,
    what: &'static str,
    at: u64,
    bytes: &'a [u8],
}

macro_rules! getter {
    ($name:ident, $type:ty, $from:ident, $doc:literal) => {
        #[doc = $doc]
        pub fn $name(&self, offset: usize) -> Result<$type> {
            Ok(<$type>::$from(self.array(offset)?))
        }
    };
}

impl<'a> Record<'a> {
    /// `at` is the byte position of `bytes` on the device; `what` the structure's name in the
    /// specification.
    pub fn new(format: &'static str, what: &'static str, at: u64, bytes: &'a [u8]) -> Self {
        Self { format, what, at, bytes }
    }

    /// All bytes of the structure.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Length of the structure in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True when there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Byte position of the structure on the device.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The error that says that this structure is damaged.
    pub fn corrupt(&self) -> Error {
        Error::corrupt(self.format, self.what, self.at)
    }

    /// As [`Record::corrupt`], naming the field that is wrong.
    pub fn corrupt_field(&self, field: &str) -> Error {
        Error::corrupt(self.format, format!("{} ({field})", self.what), self.at)
    }

    /// `len` bytes from `offset`.
    pub fn bytes(&self, offset: usize, len: usize) -> Result<&'a [u8]> {
        offset.checked_add(len).and_then(|end| self.bytes.get(offset..end)).ok_or_else(|| self.corrupt())
    }

    /// The part from `offset` to the end.
    pub fn tail(&self, offset: usize) -> Result<&'a [u8]> {
        self.bytes.get(offset..).ok_or_else(|| self.corrupt())
    }

    /// `N` bytes from `offset`, as an array.
    pub fn array<const N: usize>(&self, offset: usize) -> Result<[u8; N]> {
        self.bytes(offset, N)?.try_into().map_err(|_| self.corrupt())
    }

    /// A structure inside this one, `len` bytes from `offset`.
    pub fn part(&self, what: &'static str, offset: usize, len: usize) -> Result<Record<'a>> {
        let bytes = self.bytes(offset, len)?;
        Ok(Record::new(self.format, what, self.at.saturating_add(offset as u64), bytes))
    }

    getter!(u8, u8, from_le_bytes, "The byte at `offset`.");
    getter!(le16, u16, from_le_bytes, "A little-endian 16-bit field.");
    getter!(le32, u32, from_le_bytes, "A little-endian 32-bit field.");
    getter!(le64, u64, from_le_bytes, "A little-endian 64-bit field.");
    getter!(be16, u16, from_be_bytes, "A big-endian 16-bit field.");
    getter!(be32, u32, from_be_bytes, "A big-endian 32-bit field.");
    getter!(be64, u64, from_be_bytes, "A big-endian 64-bit field.");
}

/// Bytes at a place of the device that show what it holds: what `info` prints as evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Byte position on the device that was probed.
    pub offset: u64,
    /// The bytes found there.
    pub bytes: Vec<u8>,
    /// What they are, in the specification's words.
    pub what: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_past_the_end_names_the_structure_and_its_place() {
        let record = Record::new("fat", "boot sector", 512, &[1, 2, 3]);
        assert_eq!(record.le16(1).unwrap(), 0x0302);
        assert_eq!(record.be16(1).unwrap(), 0x0203);
        let error = record.le32(0).unwrap_err();
        assert_eq!(error.to_string(), "fat: boot sector at byte 512 is damaged");
        assert!(record.bytes(usize::MAX, 2).is_err());
    }
}
