//! TD0, of Sydex's Teledisk: sectors of a floppy, packed one by one, and at times all of them once
//! more.
//!
//! Specification: none; Dave Dunfield, "Teledisk TD0 file format" (TD0NOTES.TXT), and WTeledsk by
//! Will Krantz.
//!
//! ```text
//!   "TD" or "td" header (12) | then, with "td" all packed with LZSS and adaptive Huffman codes:
//!   [comment] | track header (4) | sector header (6) [length (2), method (1), data] | ... | 0xFF
//! ```
//!
//! Supported: "TD", and "td" of versions 2.0 and later; all methods of sectors.
//! Not supported: "td" of version 1 (LZW); sets of several files.

mod lzhuf;

use super::floppy::{Data, Floppy, Sector, read_all};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::check::Check;
use crate::device::{BlockDevice, Device, probe_array};
use crate::error::{Error, Result};
use crate::text::printable;

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "td0", snapshots: false, probe, open };

const HEADER: usize = 12;
/// A comment follows the header.
const HAS_COMMENT: u8 = 0x80;
const END: u8 = 0xff;
/// Flags of a sector.
const BAD_CRC: u8 = 0x02;
const DELETED: u8 = 0x04;
const SKIPPED: u8 = 0x10;
const NO_DATA: u8 = 0x20;
const NO_ID: u8 = 0x40;
/// Unpacked files of floppies are never longer.
const MAX_UNPACKED: usize = 16 << 20;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    let Some(header) = probe_array::<HEADER>(device, 0)? else { return Ok(false) };
    // Two letters are few: the checksum must be right too.
    let magic = header.starts_with(b"TD") || header.starts_with(b"td");
    let [sum @ .., low, high] = &header;
    Ok(magic && crc16(sum) == u16::from_le_bytes([*low, *high]))
}

/// The checksum of all parts: polynomial 0xA097.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0u16, |crc, &byte| {
        (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| (crc << 1) ^ if crc & 0x8000 != 0 { 0xa097 } else { 0 })
    })
}

fn open(file: Device, _: &dyn Companions, options: &Options) -> Result<Opened> {
    let bytes = read_all(file.as_ref(), FORMAT.name)?;
    let header = Record::new(FORMAT.name, "header", 0, &bytes);
    let (packed, sequence, version) = (header.u8(0)? == b't', header.u8(2)?, header.u8(4)?);
    if sequence != 0 {
        return Err(Error::unsupported(FORMAT.name, "a later file of a set"));
    }
    if packed && version < 20 {
        return Err(Error::unsupported(FORMAT.name, "the packing of version 1 (LZW)"));
    }
    let rest = header.tail(HEADER)?;
    let unpacked = if packed { lzhuf::unpack(rest, MAX_UNPACKED) } else { rest.to_vec() };
    let record = Record::new(FORMAT.name, "track", HEADER as u64, &unpacked);
    let mut at = 0usize;
    let mut comment = String::new();
    if header.u8(7)? & HAS_COMMENT != 0 {
        let len = usize::from(record.le16(2)?);
        comment = printable(record.bytes(10, len)?.trim_ascii_end());
        at = len.saturating_add(10);
    }
    let mut floppy = Floppy::default();
    // Each track takes four bytes at the least: the length is the bound.
    while record.u8(at)? != END {
        at = track(&record, at, &mut floppy)?;
    }
    let mut opened = floppy.open(FORMAT.name, options)?;
    opened.checks.push(Check::known("header checksum", "byte 10", None));
    opened.add("version", format!("{}.{}", version / 10, version % 10));
    opened.add("compression", if packed { "advanced (LZSS, Huffman)" } else { "normal" });
    if !comment.is_empty() {
        opened.add("comment", comment);
    }
    Ok(opened)
}

/// Reads a track; where the next one begins.
fn track(record: &Record<'_>, start: usize, floppy: &mut Floppy) -> Result<usize> {
    let &[count, cylinder, head, _] = &record.array::<4>(start)?;
    let mut at = start.saturating_add(4);
    for _ in 0..count {
        let &[_, _, id, size_code, flags, _] = &record.array::<6>(at)?;
        at = at.saturating_add(6);
        if size_code > 6 {
            return Err(record.part("sector", at, 0)?.corrupt_field("size"));
        }
        let size = 128usize.wrapping_shl(size_code.into());
        let data = if flags & (SKIPPED | NO_DATA) == 0 {
            let len = usize::from(record.le16(at)?);
            let part = record.part("sector", at.saturating_add(2), len)?;
            at = at.saturating_add(2).saturating_add(len);
            let data = sector(&part, size)?;
            if flags & BAD_CRC != 0 { Data::Doubtful(data) } else { Data::Good(data) }
        } else if flags & NO_DATA != 0 {
            Data::Lost
        } else {
            Data::Unused
        };
        if flags & NO_ID == 0 {
            let deleted = flags & DELETED != 0;
            floppy.push(FORMAT.name, (cylinder, head & 1), Sector { id, size, deleted, data })?;
        }
    }
    Ok(at)
}

/// Unpacks a sector's data.
fn sector(part: &Record<'_>, size: usize) -> Result<Vec<u8>> {
    let packed = part.tail(1)?;
    let mut data = Vec::with_capacity(size);
    match part.u8(0)? {
        0 => data.extend_from_slice(packed),
        1 => {
            for &[low, high, a, b] in packed.as_chunks::<4>().0 {
                let count = usize::from(u16::from_le_bytes([low, high])).min(size);
                data.extend([a, b].repeat(count));
                if data.len() >= size {
                    break;
                }
            }
        }
        2 => {
            let mut rest = packed;
            while let (&[kind, count, ref behind @ ..], true) = (rest, data.len() < size) {
                // 0: that many bytes as they are; else a pattern of twice so many, repeated.
                let len = if kind == 0 { usize::from(count) } else { usize::from(kind).wrapping_mul(2) };
                let (pattern, behind) = behind.split_at_checked(len).ok_or_else(|| part.corrupt())?;
                data.extend(pattern.repeat(if kind == 0 { 1 } else { count.into() }));
                rest = behind;
            }
        }
        method => return Err(part.corrupt_field(&format!("method {method}"))),
    }
    if data.len() < size { Err(part.corrupt_field("too short")) } else { Ok(data.into_iter().take(size).collect()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_methods_of_sectors() {
        let unpack = |bytes: &[u8]| sector(&Record::new("td0", "sector", 0, bytes), 8);
        assert_eq!(unpack(&[0, 1, 2, 3, 4, 5, 6, 7, 8]).unwrap(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(unpack(&[1, 3, 0, 7, 8, 1, 0, 1, 2]).unwrap(), [7, 8, 7, 8, 7, 8, 1, 2]);
        assert_eq!(unpack(&[2, 0, 2, 9, 8, 1, 3, 5, 6]).unwrap(), [9, 8, 5, 6, 5, 6, 5, 6]);
        assert!(unpack(&[1, 3, 0, 7, 8]).is_err() && unpack(&[3, 0]).is_err() && unpack(&[2, 4, 9, 1]).is_err());
    }
}
