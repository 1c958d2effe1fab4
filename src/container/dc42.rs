//! Disk Copy 4.2: a floppy of the Macintosh, its bytes after a header of 84.
//!
//! Specification: Apple II File Type Note $E0/$0005.
//!
//! ```text
//!   name (Pascal, 64) | data size, tag size | checksums | encoding, format | 0x0100 | data | tags
//! ```
//!
//! Supported: all of it; both checksums are compared when the image is opened. Tags (12 bytes a
//! sector of old Macintosh floppies) are not shown.

use std::sync::Arc;

use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::check::Check;
use crate::device::window::Window;
use crate::device::{BlockDevice, Device, probe_array, read_array, read_vec};
use crate::error::{Error, Result};
use crate::text::printable;

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "dc42", snapshots: false, probe, open };

const HEADER: u64 = 84;
/// Floppies and the small hard disks that people wrapped the same way: summed at open.
const MAX_SUMMED: u64 = 32 << 20;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    let Some(bytes) = probe_array::<84>(device, 0)? else { return Ok(false) };
    Ok(Header::parse(&bytes, device.size()).is_ok())
}

fn open(file: Device, _: &dyn Companions, _: &Options) -> Result<Opened> {
    let header = Header::parse(&read_array::<84>(file.as_ref(), 0)?, file.size())?;
    let tags_at = HEADER.saturating_add(header.data_len);
    // The tags of the first sector were not summed by the first version, and never are.
    let skipped = header.tag_len.min(12);
    let tags = (tags_at.saturating_add(skipped), header.tag_len.saturating_sub(skipped));
    let mut notes: Vec<String> = Vec::new();
    let summed = header.data_len <= MAX_SUMMED;
    if header.data_len <= MAX_SUMMED {
        if checksum(file.as_ref(), HEADER, header.data_len)? != header.data_sum {
            notes.push("the data do not agree with their checksum".to_owned());
        }
        if header.tag_len > 0 && checksum(file.as_ref(), tags.0, tags.1)? != header.tag_sum {
            notes.push("the tags do not agree with their checksum".to_owned());
        }
    } else {
        notes.push("the checksum was not compared".to_owned());
    }
    let disk = Arc::new(Window::new(file, HEADER, header.data_len)?.with_sector_size(512));
    let mut opened = Opened::new(FORMAT.name, disk);
    opened.add("name", printable(&header.name));
    opened.add("virtual size", format!("{} bytes", header.data_len));
    opened.add("encoding", header.encoding());
    opened.add("tags", format!("{} bytes", header.tag_len));
    opened.add("checksum", format!("{:08x}{}", header.data_sum, if notes.is_empty() { ", verified" } else { "" }));
    for (what, word) in [("data checksum", "data"), ("tag checksum", "tags")] {
        if summed && (word == "data" || header.tag_len > 0) {
            let fault = notes.iter().find(|note| note.starts_with(&format!("the {word} "))).cloned();
            opened.checks.push(Check::known(what, "header", fault));
        }
    }
    opened.notes = notes;
    Ok(opened)
}

struct Header {
    name: Vec<u8>,
    data_len: u64,
    tag_len: u64,
    data_sum: u32,
    tag_sum: u32,
    encoding: u8,
}

impl Header {
    /// There is little magic in it, so all that must agree has to.
    fn parse(bytes: &[u8], file_size: u64) -> Result<Self> {
        let record = Record::new(FORMAT.name, "header", 0, bytes);
        let name_len = usize::from(record.u8(0)?);
        let (data_len, tag_len) = (u64::from(record.be32(64)?), u64::from(record.be32(68)?));
        let whole = HEADER.saturating_add(data_len).saturating_add(tag_len);
        let tags = tag_len == 0 || tag_len == (data_len / 512).saturating_mul(12);
        if record.be16(82)? != 0x0100 || !(1..=63).contains(&name_len) {
            return Err(record.corrupt_field("signature, name"));
        }
        if data_len == 0 || !data_len.is_multiple_of(512) || !tags || whole != file_size {
            return Err(record.corrupt_field("data size, tag size"));
        }
        Ok(Self {
            name: record.bytes(1, name_len)?.to_vec(),
            data_len,
            tag_len,
            data_sum: record.be32(72)?,
            tag_sum: record.be32(76)?,
            encoding: record.u8(80)?,
        })
    }

    fn encoding(&self) -> String {
        match self.encoding {
            0 => "GCR, 400K".to_owned(),
            1 => "GCR, 800K".to_owned(),
            2 => "MFM, 720K".to_owned(),
            3 => "MFM, 1440K".to_owned(),
            other => format!("{other:#04x}"),
        }
    }
}

/// The sum of 16-bit words, turned right by one bit after each.
fn checksum(device: &dyn BlockDevice, at: u64, len: u64) -> Result<u32> {
    const STEP: u64 = 1 << 20;
    let (mut sum, mut done) = (0u32, 0u64);
    while done < len {
        let part = usize::try_from(len.saturating_sub(done).min(STEP)).map_err(|_| Error::Invalid)?;
        let bytes = read_vec(device, at.saturating_add(done), part)?;
        for word in bytes.as_chunks::<2>().0 {
            sum = sum.wrapping_add(u16::from_be_bytes(*word).into()).rotate_right(1);
        }
        done = done.saturating_add(STEP);
    }
    Ok(sum)
}
