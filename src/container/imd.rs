//! IMD, of Dave Dunfield's ImageDisk: sectors of a floppy, each stored, one byte repeated, or lost.
//!
//! Specification: ImageDisk 1.18, IMD.TXT, "File format".
//!
//! ```text
//!   IMD 1.18: date time, comment, 0x1A | track | track | ...
//!   track: mode, cylinder, head, count, size | numbers | [cylinders] | [heads] | [sizes] | sectors
//!   sector: kind (1) | nothing, one byte, or all of its bytes
//! ```
//!
//! Supported: all of it. Sectors with wrong checksums are shown, unreadable ones are errors.

use super::floppy::{Data, Floppy, Sector, read_all};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::device::{BlockDevice, Device, probe_array};
use crate::error::Result;
use crate::text::printable;

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "imd", snapshots: false, probe, open };

const END_OF_COMMENT: u8 = 0x1a;
/// Flags of the head's byte: tables of cylinder and head numbers follow.
const CYLINDER_MAP: u8 = 0x80;
const HEAD_MAP: u8 = 0x40;
/// A size code that says that each sector has its own.
const MIXED_SIZES: u8 = 0xff;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    // Behind "IMD " comes the version, and from other programs their name.
    let start = probe_array::<32>(device, 0)?.unwrap_or_default();
    let text = start.iter().take_while(|&&byte| byte != END_OF_COMMENT);
    Ok(start.starts_with(b"IMD ") && text.copied().all(|byte| byte >= b' ' || byte.is_ascii_whitespace()))
}

fn open(file: Device, _: &dyn Companions, options: &Options) -> Result<Opened> {
    let bytes = read_all(file.as_ref(), FORMAT.name)?;
    let record = Record::new(FORMAT.name, "track", 0, &bytes);
    let comment = bytes.split(|&b| b == END_OF_COMMENT).next().unwrap_or_default();
    let mut at = comment.len().saturating_add(1);
    let mut floppy = Floppy::default();
    // A track takes five bytes at the least: the file's length is the bound.
    while at < bytes.len() {
        at = track(&record, at, &mut floppy)?;
    }
    let mut opened = floppy.open(FORMAT.name, options)?;
    opened.add("comment", printable(comment.trim_ascii()).chars().take(1000).collect::<String>());
    Ok(opened)
}

/// Reads a track; where the next one begins.
fn track(record: &Record<'_>, start: usize, floppy: &mut Floppy) -> Result<usize> {
    let &[mode, cylinder, head, count, size_code] = &record.array::<5>(start)?;
    let wrong = |field: &str| record.part("track", start, 5).map_or_else(|e| e, |part| part.corrupt_field(field));
    if mode > 5 || head & 0x3f > 1 {
        return Err(wrong("mode or head"));
    }
    let count = usize::from(count);
    let mut at = start.saturating_add(5);
    let mut table = |len: usize| {
        let bytes = record.bytes(at, len);
        at = at.saturating_add(len);
        bytes
    };
    let numbers = table(count)?;
    if head & CYLINDER_MAP != 0 {
        table(count)?;
    }
    if head & HEAD_MAP != 0 {
        table(count)?;
    }
    let sizes = if size_code == MIXED_SIZES { table(count.saturating_mul(2))? } else { &[] };
    for (index, &id) in numbers.iter().enumerate() {
        let size = match sizes.as_chunks::<2>().0.get(index) {
            Some(&own) => usize::from(u16::from_le_bytes(own)),
            None if size_code <= 6 => 128usize.wrapping_shl(size_code.into()),
            None => return Err(wrong("sector size")),
        };
        let kind = record.u8(at)?;
        at = at.saturating_add(1);
        // 1 and 2: in order; then the same deleted, with an error, and both. Even kinds are one byte.
        let data = match kind {
            0 => None,
            1 | 3 | 5 | 7 => Some((record.bytes(at, size)?.to_vec(), size)),
            2 | 4 | 6 | 8 => Some((vec![record.u8(at)?; size], 1)),
            _ => return Err(wrong("kind of a sector")),
        };
        let (data, len) = data.map_or((Data::Lost, 0), |(data, len)| {
            (if kind >= 5 { Data::Doubtful(data) } else { Data::Good(data) }, len)
        });
        at = at.saturating_add(len);
        let deleted = matches!(kind, 3 | 4 | 7 | 8);
        floppy.push(FORMAT.name, (cylinder, head & 1), Sector { id, size, deleted, data })?;
    }
    Ok(at)
}
