//! The volume header of SGI's machines: sixteen partitions, and a small directory for the firmware.
//!
//! Specification: `sys/dvh.h` of IRIX. All fields are big-endian.
//!
//! ```text
//!   0 magic 0BE5A941 | 72 directory, 15 rows of 16 bytes | 312 sixteen of: sectors, first sector, type
//!   504 checksum: the sum of all 128 words is 0
//! ```
//!
//! Supported: all rows. Those of the header itself and of the disk as a whole are structural.
//! Not supported: the files of the header's directory.

use super::{Entry, Table, VolumeSystem, byte_range, note};
use crate::bytes::{Evidence, Record};
use crate::device::{BlockDevice, Device, probe_array};
use crate::error::{Error, Result};

/// The table's row.
pub const SYSTEM: VolumeSystem = VolumeSystem { name: "sgi", probe, table };

const MAGIC: u32 = 0x0be5_a941;
const ROWS_AT: usize = 312;
const ROW_LEN: usize = 12;
const ROWS: usize = 16;
/// Type of the row that holds the header.
const HEADER: u32 = 0;
/// Type of the row that covers the disk as a whole.
const WHOLE: u32 = 6;
/// The unit of the header, whatever the disk has.
const SECTOR: u32 = 512;

fn probe(device: &dyn BlockDevice) -> Result<bool> {
    Ok(find(device)?.is_some())
}

/// Sector 0, when it is a header and its checksum is right.
fn find(device: &dyn BlockDevice) -> Result<Option<[u8; 512]>> {
    let Some(bytes) = probe_array::<512>(device, 0)? else { return Ok(None) };
    let sum = bytes.as_chunks::<4>().0.iter().fold(0u32, |sum, &word| sum.wrapping_add(u32::from_be_bytes(word)));
    Ok((bytes.starts_with(&MAGIC.to_be_bytes()) && sum == 0).then_some(bytes))
}

fn table(device: &Device) -> Result<Table> {
    let bytes = find(device.as_ref())?.ok_or(Error::corrupt("sgi", "volume header", 0))?;
    let header = Record::new("sgi", "volume header", 0, &bytes);
    let mut table = Table { sector_size: SECTOR, ..Table::default() };
    table.evidence.push(Evidence { offset: 0, bytes: MAGIC.to_be_bytes().to_vec(), what: "volume header magic" });
    let rows = header.bytes(ROWS_AT, ROWS.saturating_mul(ROW_LEN))?.as_chunks::<ROW_LEN>().0;
    for (slot, row) in (1..).zip(rows) {
        let row = Record::new("sgi", "row", ROWS_AT as u64, row);
        let (count, first, kind) = (row.be32(0)?, row.be32(4)?, row.be32(8)?);
        if count == 0 {
            continue;
        }
        let Some((start, len)) = byte_range(first.into(), count.into(), SECTOR) else {
            note(&mut table.notes, format!("row {slot} is not a range"));
            continue;
        };
        let structural = matches!(kind, HEADER | WHOLE);
        table.entries.push(Entry { slot, start, len, kind: format!("{kind:x}"), structural, ..Entry::default() });
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::Memory;
    use std::sync::Arc;

    /// A header with two file systems, itself and the disk as a whole.
    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 64 << 10];
        disk[..4].copy_from_slice(&MAGIC.to_be_bytes());
        for (slot, words) in [(0, [40u32, 8, 7]), (1, [80, 48, 10]), (8, [8, 0, HEADER]), (10, [128, 0, WHOLE])] {
            for (index, word) in words.into_iter().enumerate() {
                let at = ROWS_AT + slot * ROW_LEN + index * 4;
                disk[at..at + 4].copy_from_slice(&word.to_be_bytes());
            }
        }
        let sum =
            disk[..512].as_chunks::<4>().0.iter().fold(0u32, |sum, &word| sum.wrapping_add(u32::from_be_bytes(word)));
        disk[504..508].copy_from_slice(&sum.wrapping_neg().to_be_bytes());
        disk
    }

    #[test]
    fn rows_keep_their_numbers_and_the_disk_as_a_whole_is_structural() {
        let device: Device = Arc::new(Memory::new(disk(), 512));
        assert!(probe(device.as_ref()).unwrap());
        let rows: Vec<_> = table(&device).unwrap().entries;
        let rows: Vec<_> = rows.iter().map(|row| (row.slot, row.start / 512, row.len / 512, row.structural)).collect();
        assert_eq!(rows, [(1, 8, 40, false), (2, 48, 80, false), (9, 0, 8, true), (11, 0, 128, true)]);
    }

    #[test]
    fn a_header_with_a_wrong_checksum_is_none() {
        let mut disk = disk();
        disk[400] ^= 1;
        assert!(!probe(&Memory::new(disk, 512)).unwrap());
    }
}
