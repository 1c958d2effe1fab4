//! CQM, of Sydex's CopyQM: a whole floppy, its runs of one byte packed.
//!
//! Specification: none; libdsk, lib/drvcpqm.c, and Per Ola Ingvarsson's notes on the format.
//!
//! ```text
//!   header (133): "CQ" 0x14, parameters of the disk | comment | runs:
//!   length (16 bits): above zero that many bytes, below zero one byte repeated
//! ```
//!
//! Supported: DOS, blind and HFS disks; the checksum of the disk. Where it is wrong no one knows which
//! bytes are, so that none can be read.

use super::bad::BadRange;
use super::floppy::{Flat, MAX_SIZE, read_all};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::check::Check;
use crate::device::{BlockDevice, Device, probe_array};
use crate::error::{Error, Result};
use crate::text::{printable, trim_padding};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "cqm", snapshots: false, probe, open };

const HEADER: usize = 133;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    let Some(header) = probe_array::<HEADER>(device, 0)? else { return Ok(false) };
    // All bytes of the header, its own checksum among them, make zero.
    let sum = header.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    Ok(header.starts_with(b"CQ\x14") && sum == 0)
}

fn open(file: Device, _: &dyn Companions, options: &Options) -> Result<Opened> {
    let bytes = read_all(file.as_ref(), FORMAT.name)?;
    let header = Record::new(FORMAT.name, "header", 0, &bytes);
    let (sector_size, sectors, heads) = (header.le16(3)?, header.le16(0x10)?, header.le16(0x12)?);
    let (used, all) = (header.u8(0x5a)?, header.u8(0x5b)?);
    let cylinder = u64::from(sector_size).saturating_mul(sectors.into()).saturating_mul(heads.into());
    let size = cylinder.saturating_mul(all.max(used).into());
    if !matches!(sector_size, 128..=8192) || !matches!(heads, 1 | 2) || size == 0 || size > MAX_SIZE {
        return Err(header.corrupt_field("geometry"));
    }
    let mut at = HEADER.saturating_add(header.le16(0x6f)?.into());
    let size = usize::try_from(size).map_err(|_| header.corrupt())?;
    let mut flat = Flat { format: FORMAT.name, bytes: Vec::new(), bad: Vec::new() };
    let record = Record::new(FORMAT.name, "runs", 0, &bytes);
    while flat.bytes.len() < size && at < bytes.len() {
        let len = record.le16(at)?.cast_signed();
        at = at.saturating_add(2);
        let count = usize::from(len.unsigned_abs());
        if len < 0 {
            flat.bytes.extend(std::iter::repeat_n(record.u8(at)?, count));
            at = at.saturating_add(1);
        } else {
            flat.bytes.extend_from_slice(record.bytes(at, count)?);
            at = at.saturating_add(count);
        }
    }
    let (stored, found) = (header.le32(0x5c)?, checksum(&flat.bytes));
    let there = usize::try_from(cylinder.saturating_mul(used.into())).map_err(|_| header.corrupt())?;
    if flat.bytes.len() < there || flat.bytes.len() > size {
        return Err(Error::corrupt(FORMAT.name, "runs (too few or too many bytes)", at as u64));
    }
    // Cylinders that were not in use are not in the image.
    flat.bytes.resize(size, 0);
    if stored != 0 && stored != found {
        flat.bad.push(BadRange { offset: 0, len: size as u64 });
    }
    let mut opened = flat.open(options);
    opened.checks.push(Check::known("header checksum", "byte 132", None));
    if stored != 0 {
        let fault = (stored != found).then(|| format!("it is {found:08x}, not {stored:08x}"));
        opened.checks.push(Check::known("checksum of the disk", "byte 92", fault));
    }
    opened.add("geometry", format!("{all} cylinders, {heads} heads, {sectors} sectors of {sector_size} bytes"));
    opened.add("description", printable(trim_padding(header.bytes(0x1c, 60)?)));
    opened.add("checksum", if stored == 0 { "none".to_owned() } else { format!("{stored:08x}") });
    if stored != 0 && stored != found {
        opened.notes.push(format!("the bytes have the checksum {found:08x}, not {stored:08x}: the image is damaged"));
    }
    if used < all {
        opened.notes.push(format!("cylinders {used} to {all} were not in use and are not in the image"));
    }
    Ok(opened)
}

/// CopyQM's own kind of CRC-32: it looks only six bits of each index up.
fn checksum(bytes: &[u8]) -> u32 {
    let table: Vec<u32> = (0..64u32)
        .map(|index| (0..8).fold(index, |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }))
        .collect();
    bytes.iter().fold(0, |crc, &byte| {
        let index = usize::try_from((crc ^ u32::from(byte)) & 0x3f).unwrap_or(0);
        table.get(index).copied().unwrap_or(0) ^ crc >> 8
    })
}
