//! The descriptors of a volume: what it is called, its partitions, the logical volume made of them.
//!
//! ```text
//!   anchor -> | primary | partition .. | logical volume | unallocated space | .. | terminating |   main
//!          -> the same once more, elsewhere                                                        reserve
//!   logical volume -> partition maps; integrity sequence; file set
//! ```

use std::collections::BTreeMap;

use super::NAME;
use super::partition::Address;
use super::recognition::{Anchor, Extent};
use super::tag::{Tag, id};
use super::text::dstring;
use crate::bytes::Record;
use crate::device::{BlockDevice, read_vec};
use crate::error::{Error, Result};

/// Descriptors of one sequence that are read, and extents that it may be in.
const MAX_DESCRIPTORS: u64 = 1024;
const MAX_POINTERS: usize = 16;
/// Integrity descriptors that are followed: a new one for every time that a medium written once was opened.
const MAX_INTEGRITY: usize = 4096;
/// Partition maps of one logical volume. Real ones have up to three.
const MAX_MAPS: u32 = 64;

/// What the descriptors of a volume say.
#[derive(Debug, Default)]
pub(super) struct Volume {
    pub(super) primary: Option<Primary>,
    pub(super) logical: Option<Logical>,
    /// By partition number.
    pub(super) partitions: BTreeMap<u16, Partition>,
    /// What could not be read of them.
    pub(super) damage: Option<Error>,
}

/// The primary volume descriptor, 3/10.1.
#[derive(Debug)]
pub(super) struct Primary {
    sequence: u32,
    pub(super) uuid: Option<String>,
    /// Which of the volumes of a set this is, from 1.
    pub(super) number: u16,
}

/// The logical volume descriptor, 3/10.6.
#[derive(Debug)]
pub(super) struct Logical {
    sequence: u32,
    /// Its byte on the device.
    pub(super) at: u64,
    pub(super) label: String,
    /// Two bytes of binary-coded decimals: 0x0102 of UDF 1.02.
    pub(super) revision: u16,
    pub(super) block_size: u32,
    pub(super) file_set: Address,
    pub(super) integrity: Extent,
    /// Every partition map, as it is on the medium.
    pub(super) maps: Vec<Vec<u8>>,
}

/// The partition descriptor, 3/10.5.
#[derive(Debug, Clone, Copy)]
pub(super) struct Partition {
    sequence: u32,
    /// First block on the volume.
    pub(super) start: u32,
    /// Blocks.
    pub(super) len: u32,
    /// The bitmap of unallocated space: bytes, and a block of the partition.
    pub(super) bitmap: Option<Extent>,
}

impl Volume {
    /// Reads the main sequence and, where it is damaged, from the reserve one what is missing.
    pub(super) fn read(device: &dyn BlockDevice, anchor: &Anchor) -> Result<Self> {
        let mut volume = Self::default();
        volume.read_sequence(device, anchor, anchor.main);
        if volume.damage.is_some() || !volume.is_complete() {
            volume.read_sequence(device, anchor, anchor.reserve);
        }
        if volume.logical.is_none() {
            let at = u64::from(anchor.main.block).saturating_mul(anchor.block_size);
            let missing = || Error::corrupt(NAME, "volume descriptor sequence (no logical volume)", at);
            return Err(volume.damage.take().unwrap_or_else(missing));
        }
        Ok(volume)
    }

    /// One sequence alone, for who wants to know whether it is whole.
    pub(super) fn read_alone(device: &dyn BlockDevice, anchor: &Anchor, extent: Extent) -> Self {
        let mut volume = Self::default();
        volume.read_sequence(device, anchor, extent);
        volume
    }

    pub(super) fn is_complete(&self) -> bool {
        self.primary.is_some() && self.logical.is_some() && !self.partitions.is_empty()
    }

    fn read_sequence(&mut self, device: &dyn BlockDevice, anchor: &Anchor, extent: Extent) {
        let mut next = Some(extent);
        for _ in 0..MAX_POINTERS {
            let Some(extent) = next.take() else { break };
            let count = u64::from(extent.len).checked_div(anchor.block_size).unwrap_or(0).min(MAX_DESCRIPTORS);
            for index in 0..count {
                let block = u64::from(extent.block).saturating_add(index);
                match self.take(device, anchor.block_size, block, &mut next) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        self.damage.get_or_insert(error);
                    }
                }
            }
        }
    }

    /// Reads one descriptor; of several of a kind the highest number is in force. `false` after the last.
    fn take(
        &mut self,
        device: &dyn BlockDevice,
        block_size: u64,
        block: u64,
        next: &mut Option<Extent>,
    ) -> Result<bool> {
        let at = block.saturating_mul(block_size);
        let bytes = read_vec(device, at, usize::try_from(block_size).map_err(|_| Error::Invalid)?)?;
        let record = Record::new(NAME, "volume descriptor", at, &bytes);
        if record.le16(0)? == 0 {
            return Ok(false);
        }
        let tag = Tag::parse(&record)?;
        if u64::from(tag.location) != block {
            return Err(record.corrupt_field("location"));
        }
        let sequence = if tag.id == id::TERMINATING { 0 } else { record.le32(16)? };
        match tag.id {
            id::TERMINATING => return Ok(false),
            id::POINTER => *next = Some(Extent::parse(&record, 20)?),
            id::PRIMARY if self.primary.as_ref().is_none_or(|old| old.sequence <= sequence) => {
                let uuid = uuid(record.bytes(72, 128)?);
                self.primary = Some(Primary { sequence, uuid, number: record.le16(56)? });
            }
            id::LOGICAL if self.logical.as_ref().is_none_or(|old| old.sequence <= sequence) => {
                self.logical = Some(Logical::parse(&record, sequence)?);
            }
            id::PARTITION => {
                let number = record.le16(22)?;
                if self.partitions.get(&number).is_none_or(|old| old.sequence <= sequence) {
                    let (start, len) = (record.le32(188)?, record.le32(192)?);
                    let bitmap = Extent::parse(&record, 64)?;
                    let bitmap = Extent { len: bitmap.len & 0x3fff_ffff, ..bitmap };
                    let bitmap = Some(bitmap).filter(|bitmap| bitmap.len > 0);
                    self.partitions.insert(number, Partition { sequence, start, len, bitmap });
                }
            }
            _ => {}
        }
        Ok(true)
    }
}

impl Logical {
    fn parse(record: &Record<'_>, sequence: u32) -> Result<Self> {
        let (len, count) = (record.le32(264)?, record.le32(268)?);
        let table = record.part("partition maps", 440, usize::try_from(len).unwrap_or(usize::MAX))?;
        if count > MAX_MAPS {
            return Err(record.corrupt_field("number of partition maps"));
        }
        let (mut maps, mut offset) = (Vec::new(), 0usize);
        for _ in 0..count {
            let len = usize::from(table.u8(offset.saturating_add(1))?).max(1);
            maps.push(table.bytes(offset, len)?.to_vec());
            offset = offset.saturating_add(len);
        }
        Ok(Self {
            sequence,
            at: record.at(),
            label: dstring(record.bytes(84, 128)?),
            revision: record.le16(240)?,
            block_size: record.le32(212)?,
            file_set: Address::parse(record, 252)?,
            integrity: Extent::parse(record, 432)?,
            maps,
        })
    }
}

/// As `blkid` makes it of the identifier of the volume set, whose first sixteen characters are to be unique
/// (UDF 2.01, 2.2.2.5): as they are where they are digits of base 16, as the digits of their bytes where not.
fn uuid(field: &[u8]) -> Option<String> {
    let (len, text) = field.split_last()?;
    if !matches!(text.first(), Some(8 | 16)) {
        return None;
    }
    let text = super::text::decode(text.get(..usize::from(*len)).unwrap_or(text))?;
    // What is cut is a whole character, where its bytes pass the sixteenth.
    let mut cut = text.len().min(16);
    while text.get(cut).is_some_and(|byte| byte & 0xc0 == 0x80) {
        cut = cut.saturating_sub(1);
    }
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    let mut bytes = text.get(..cut.min(end)).filter(|bytes| bytes.len() >= 8)?.to_vec();
    bytes.resize(16, 0);
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let plain = |bytes: &[u8]| String::from_utf8_lossy(bytes).to_ascii_lowercase();
    let (head, tail) = bytes.split_at_checked(8)?;
    Some(match digits {
        16 => plain(&bytes),
        8..16 => plain(head) + &hex(tail.get(..4)?),
        _ => hex(head),
    })
}

/// The logical volume integrity descriptor that is in force, 3/10.10.
#[derive(Debug)]
pub(super) struct Integrity {
    /// The volume was closed, so that what it says holds.
    pub(super) is_closed: bool,
    /// Of each partition map: free blocks, blocks; `None` where they are not recorded.
    pub(super) space: Vec<(Option<u32>, u32)>,
}

impl Integrity {
    /// The last one of the sequence; `None` when there is none that can be read.
    pub(super) fn read(device: &dyn BlockDevice, block_size: u64, extent: Extent) -> Option<Self> {
        let (mut found, mut extent) = (None, extent);
        let (mut index, mut left) = (0u64, MAX_INTEGRITY);
        while left > 0 && index < u64::from(extent.len).checked_div(block_size)? {
            left = left.saturating_sub(1);
            let block = u64::from(extent.block).saturating_add(index);
            let Ok((integrity, next)) = Self::parse(device, block_size, block) else { break };
            found = Some(integrity);
            index = index.saturating_add(1);
            if next.len > 0 {
                (extent, index) = (next, 0);
            }
        }
        found
    }

    fn parse(device: &dyn BlockDevice, block_size: u64, block: u64) -> Result<(Self, Extent)> {
        let at = block.saturating_mul(block_size);
        let bytes = read_vec(device, at, usize::try_from(block_size).map_err(|_| Error::Invalid)?)?;
        let record = Record::new(NAME, "logical volume integrity descriptor", at, &bytes);
        let tag = Tag::parse(&record)?;
        if tag.id != id::INTEGRITY || u64::from(tag.location) != block {
            return Err(record.corrupt());
        }
        let count = record.le32(72)?;
        if count > MAX_MAPS {
            return Err(record.corrupt_field("number of partitions"));
        }
        let sizes = usize::try_from(count).unwrap_or(0).saturating_mul(4);
        let mut space = Vec::new();
        for offset in (0..sizes).step_by(4) {
            let free = record.le32(offset.saturating_add(80))?;
            let size = record.le32(offset.saturating_add(sizes).saturating_add(80))?;
            space.push((Some(free).filter(|free| *free != u32::MAX), size));
        }
        let next = Extent::parse(&record, 32)?;
        Ok((Self { is_closed: record.le32(28)? == 1, space }, next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(text: &[u8]) -> Vec<u8> {
        let mut field = text.to_vec();
        field.resize(128, 0);
        field[127] = text.len() as u8;
        field
    }

    #[test]
    fn the_identifier_is_made_as_blkid_makes_it() {
        let of = |text: &[u8]| uuid(&field(text));
        assert_eq!(of(b"\x084F1A2B3C4d5e6F70LinuxUDF").unwrap(), "4f1a2b3c4d5e6f70");
        assert_eq!(of(b"\x084f1a2b3cLinuxUDF").unwrap(), "4f1a2b3c4c696e75");
        assert_eq!(of(b"\x08Volume of mine").unwrap(), "566f6c756d65206f");
        assert_eq!(of(b"\x08short"), None);
    }
}
