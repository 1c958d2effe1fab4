//! IMZ, of WinImage, and any ZIP with one image of a floppy in it: unpacked into memory.
//!
//! Specification: PKWARE, APPNOTE.TXT 6.3, sections 4.3.7 to 4.3.16.
//!
//! ```text
//!   local header | name | packed bytes | central directory: one entry a file | end of central directory
//! ```
//!
//! Supported: one file, stored or deflated, of up to 64 MiB; what it is is probed by its bytes.
//! Not supported: several files, larger ones (to be unpacked beforehand), encryption.

use super::floppy::{MAX_SIZE, in_memory};
use super::unpack::inflate;
use super::{Companions, ContainerFormat, Opened, Options, open_within};
use crate::bytes::Record;
use crate::check::Check;
use crate::device::{BlockDevice, Device, probe_array, read_array, read_vec};
use crate::error::{Error, Result};
use crate::text::printable;

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "imz", snapshots: false, probe, open };

const LOCAL: &[u8; 4] = b"PK\x03\x04";
const CENTRAL: &[u8; 4] = b"PK\x01\x02";
const END: &[u8; 4] = b"PK\x05\x06";
const END_LEN: u64 = 22;
/// The longest comment behind the end.
const MAX_COMMENT: u64 = 65_535;
/// Entries that are looked at: folders do not count as files.
const MAX_ENTRIES: u16 = 64;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    Ok(probe_array::<4>(device, 0)?.as_ref() == Some(LOCAL))
}

/// A file of the archive.
struct Entry {
    name: Vec<u8>,
    method: u16,
    encrypted: bool,
    crc: u32,
    packed: u64,
    size: u64,
    local_at: u64,
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let entry = only_entry(file.as_ref())?;
    let name = printable(&entry.name);
    if entry.encrypted {
        return Err(Error::unsupported(FORMAT.name, "encryption"));
    }
    if entry.size > MAX_SIZE || entry.packed > MAX_SIZE {
        let feature = format!("an image of {} bytes in a ZIP (it is to be unpacked beforehand)", entry.size);
        return Err(Error::unsupported(FORMAT.name, feature));
    }
    let local = read_array::<30>(file.as_ref(), entry.local_at)?;
    let record = Record::new(FORMAT.name, "local header", entry.local_at, &local);
    if record.bytes(0, 4)? != LOCAL {
        return Err(record.corrupt_field("signature"));
    }
    let names = u64::from(record.le16(26)?).saturating_add(record.le16(28)?.into());
    let at = entry.local_at.saturating_add(30).saturating_add(names);
    let len = usize::try_from(entry.packed).map_err(|_| Error::Invalid)?;
    let size = usize::try_from(entry.size).map_err(|_| Error::Invalid)?;
    let damaged = || Error::corrupt(FORMAT.name, "packed bytes", at);
    // Deflate packs a thousandfold at the most.
    let likely = entry.size <= entry.packed.saturating_add(1).saturating_mul(1100);
    let packed = read_vec(file.as_ref(), at, len).map_err(|_| damaged())?;
    let bytes = match entry.method {
        0 if len == size => packed,
        8 if likely => inflate(&packed, false, size).ok_or_else(damaged)?,
        0 | 8 => return Err(damaged()),
        method => return Err(Error::unsupported(FORMAT.name, format!("the packing method {method}"))),
    };
    if crc32fast::hash(&bytes) != entry.crc {
        return Err(Error::corrupt(FORMAT.name, "packed bytes (wrong checksum)", at));
    }
    let whole = in_memory(bytes);
    // What goes by names of files was asked for the archive.
    let mut opened = open_within(&[FORMAT.name, "split", "ddrescue"], whole, companions, options)?;
    if opened.format == "raw" {
        opened.format = FORMAT.name;
    }
    opened.checks.push(Check::known("checksum of the packed file", format!("byte {at}"), None));
    opened.facts.insert(0, ("packed file", format!("{name}, {size} bytes")));
    Ok(opened)
}

/// The one file of the archive, from its central directory.
fn only_entry(file: &dyn BlockDevice) -> Result<Entry> {
    let damaged = |at| Error::corrupt(FORMAT.name, "end of central directory", at);
    let len = file.size().min(MAX_COMMENT.saturating_add(END_LEN));
    let start = file.size().saturating_sub(len);
    let tail = read_vec(file, start, usize::try_from(len).map_err(|_| Error::Invalid)?)?;
    let found = tail.windows(4).rposition(|window| window == END).ok_or_else(|| damaged(start))?;
    let end = Record::new(FORMAT.name, "end of central directory", start.saturating_add(found as u64), &tail);
    let end = end.part("end of central directory", found, 22)?;
    let count = end.le16(10)?;
    let mut at = u64::from(end.le32(16)?);
    if count == 0 || count > MAX_ENTRIES {
        return Err(Error::unsupported(FORMAT.name, format!("a ZIP with {count} files")));
    }
    let mut only = None;
    for _ in 0..count {
        let row = read_array::<46>(file, at).map_err(|_| damaged(at))?;
        let record = Record::new(FORMAT.name, "central directory", at, &row);
        if record.bytes(0, 4)? != CENTRAL {
            return Err(record.corrupt_field("signature"));
        }
        let (name_len, extra, comment) = (record.le16(28)?, record.le16(30)?, record.le16(32)?);
        let name = read_vec(file, at.saturating_add(46), name_len.into())?;
        let rest = u64::from(name_len).saturating_add(extra.into()).saturating_add(comment.into());
        at = at.saturating_add(46).saturating_add(rest);
        // Finder's attributes of the image, a file of their own to other systems.
        if name.ends_with(b"/") || name.starts_with(b"__MACOSX/") {
            continue;
        }
        if only.is_some() {
            return Err(Error::unsupported(FORMAT.name, "a ZIP with several files"));
        }
        only = Some(Entry {
            name,
            method: record.le16(10)?,
            encrypted: record.le16(8)? & 1 != 0,
            crc: record.le32(16)?,
            packed: record.le32(20)?.into(),
            size: record.le32(24)?.into(),
            local_at: record.le32(42)?.into(),
        });
    }
    only.ok_or_else(|| Error::unsupported(FORMAT.name, "a ZIP without files"))
}
