//! Which sectors the rows of an MBR count, when the disk itself cannot be asked.
//!
//! `fdisk` on a disk of 4,096-byte sectors writes rows in units of 4,096; in the image of that disk, a
//! plain file, nothing else tells. So another unit than the device's is taken only where all rows fit
//! the disk in it and some of them begin with something known, and in units of 512 none does, but for
//! fewer that meet the beginning of another row: of rows at 1 MiB and at 8 MiB, one is 8 times the other.

use super::{Row, SECTOR, is_signed, starts_file_system};
use crate::bytes::Record;
use crate::device::{BlockDevice, probe_array};
use crate::error::Result;

/// Larger sectors that disks have, the commonest first.
const UNITS: [u32; 3] = [4096, 2048, 1024];

/// What volumes begin with: byte and magic number. Boot records are told by their signature.
const MAGICS: [(u64, &[u8]); 17] = [
    (0, b"XFSB"),
    (0, b"hsqs"),
    (0, b"LUKS\xba\xbe"),
    (0, b"LABELONE"),
    (32, b"NXSB"),
    (512, b"LABELONE"),
    (1024, b"H+"),
    (1024, b"HX"),
    (1024, b"BD"),
    (1024, b"\x10\x20\xf5\xf2"),
    // ext: the magic number, and with it the state (clean, with errors, both).
    (1080, b"\x53\xef\x00\x00"),
    (1080, b"\x53\xef\x01\x00"),
    (1080, b"\x53\xef\x02\x00"),
    (1080, b"\x53\xef\x03\x00"),
    (4086, b"SWAPSPACE2"),
    (32_769, b"CD001"),
    (65_600, b"_BHRfS_M"),
];

/// The unit of the rows in bytes, where it is shown not to be the 512 that the device says.
pub(super) fn counted(device: &dyn BlockDevice, rows: &[Row]) -> Option<u32> {
    if device.sector_size() != 512 {
        return None;
    }
    let used: Vec<Row> = rows.iter().filter(|row| row.sectors != 0 && row.first_lba != 0).copied().collect();
    let fits = |unit: &u32| used.iter().all(|row| row.end().saturating_mul(u64::from(*unit)) <= device.size());
    let shown = |unit: u32| -> Vec<u64> {
        let starts = used.iter().map(|row| u64::from(row.first_lba).saturating_mul(unit.into()));
        starts.filter(|&start| begins(device, start).unwrap_or(false)).collect()
    };
    let mut larger = UNITS.into_iter().filter(fits).peekable();
    larger.peek()?;
    let by_512 = shown(512);
    larger.find(|&unit| {
        let found = shown(unit);
        found.len() > by_512.len() && by_512.iter().all(|start| found.contains(start))
    })
}

/// Whether a boot record or a file system begins here.
fn begins(device: &dyn BlockDevice, start: u64) -> Result<bool> {
    if let Some(sector) = probe_array::<SECTOR>(device, start)? {
        let record = Record::new("mbr", "start of a row", start, &sector);
        if is_signed(record)? || starts_file_system(record)? {
            return Ok(true);
        }
    }
    for (at, magic) in MAGICS {
        let found = probe_array::<10>(device, start.saturating_add(at))?;
        if found.is_some_and(|found| found.starts_with(magic)) {
            return Ok(true);
        }
    }
    Ok(false)
}
