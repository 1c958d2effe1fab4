//! Commodore disks (D64, D71, D81) with one byte for each sector behind them that says how the drive
//! read it. Without these bytes the file is the disk.
//!
//! Specification: P. Schepers, "D64 (electronic form of a physical 1541 disk)".
//!
//! ```text
//!   sectors of 256 bytes | one byte a sector: 1 is good, 2 and more are the drive's errors
//! ```
//!
//! Supported: D64 with 35, 40 and 42 tracks, D71, D81. There is no magic number: the size of the file
//! tells, and the bytes themselves.

use std::sync::Arc;

use super::bad::{BadRange, Damaged};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::device::window::Window;
use crate::device::{BlockDevice, Device, read_vec};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "d64", snapshots: false, probe, open };

const SECTOR: u64 = 256;
/// Sectors of each kind of disk.
const SECTORS: [u64; 5] = [683, 768, 802, 1366, 3200];
/// The highest number of an error of the drive.
const MAX_CODE: u8 = 15;
/// The sector was read; or nothing is said of it.
const GOOD: [u8; 2] = [1, 0];
/// The drive found no header, no sync mark, no data; or nothing was in it.
const LOST: [u8; 4] = [2, 3, 4, 15];

fn codes(device: &dyn BlockDevice) -> Result<Option<Vec<u8>>> {
    let sectors = SECTORS.into_iter().find(|count| count.saturating_mul(SECTOR + 1) == device.size());
    let Some(sectors) = sectors else { return Ok(None) };
    let len = usize::try_from(sectors).map_err(|_| Error::Invalid)?;
    let codes = read_vec(device, sectors.saturating_mul(SECTOR), len)?;
    Ok(codes.iter().all(|&code| code <= MAX_CODE).then_some(codes))
}

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    Ok(codes(device)?.is_some())
}

fn open(file: Device, _: &dyn Companions, options: &Options) -> Result<Opened> {
    let damaged = || Error::corrupt(FORMAT.name, "error bytes", 0);
    let codes = codes(file.as_ref())?.ok_or_else(damaged)?;
    let size = (codes.len() as u64).saturating_mul(SECTOR);
    let window: Device = Arc::new(Window::new(file.clone(), 0, size)?);
    let bad = codes.iter().zip(0u64..).filter(|(code, _)| LOST.contains(code));
    let bad: Vec<BadRange> =
        bad.map(|(_, index)| BadRange { offset: index.saturating_mul(SECTOR), len: SECTOR }).collect();
    let lost = bad.len();
    let doubtful = codes.iter().filter(|code| !GOOD.contains(code) && !LOST.contains(code)).count();
    let disk: Device = match lost {
        0 => window,
        _ => Arc::new(Damaged::new(window, bad, "a sector that could not be read", options.bad_as_zeros)),
    };
    let mut opened = Opened::new(FORMAT.name, disk);
    opened.add("virtual size", format!("{size} bytes"));
    opened.add("bad sectors", lost);
    if doubtful > 0 {
        opened
            .notes
            .push(format!("{doubtful} sectors had an error when they were read; they are shown as they were read"));
    }
    Ok(opened)
}
