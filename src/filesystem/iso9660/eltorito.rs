//! El Torito 1.0: the boot catalogue, and how long the images are that it names.
//!
//! ```text
//!   32 bytes each   [validation: platform, checksum][default entry]
//!                   [section header: platform, count][entry][extension]..[entry]  more sections ..
//! ```
//!
//! An entry says how many sectors the firmware loads, which is seldom how long the image is. The
//! size is that of the floppy that is emulated, of the disk that the image's partition table
//! describes, of the file in the tree that lies at the same place, or what the image says of itself.

use std::collections::HashMap;

use super::NAME;
use super::medium::{Medium, SECTOR};
use crate::bytes::Record;
use crate::device::{probe_array, read_vec};
use crate::error::{Error, Result};
use crate::filesystem::Embedded;

const ENTRY: usize = 32;
/// Sectors of a catalogue that are read: 1,024 entries. Writers use one.
const MAX_CATALOG: u64 = 16;
/// The unit of the sector count.
const VIRTUAL_SECTOR: u64 = 512;

/// One bootable (or not) image, as the catalogue has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    platform: u8,
    is_bootable: bool,
    media: u8,
    /// In virtual sectors of 512 bytes.
    load_count: u16,
    first_sector: u32,
}

impl Entry {
    fn parse(record: &Record<'_>, platform: u8) -> Result<Self> {
        Ok(Self {
            platform,
            is_bootable: record.u8(0)? == 0x88,
            media: record.u8(1)? & 0x0f,
            load_count: record.le16(6)?,
            first_sector: record.le32(8)?,
        })
    }

    fn what(&self) -> String {
        let platform = match self.platform {
            0 => "x86".into(),
            1 => "PowerPC".into(),
            2 => "Mac".into(),
            0xef => "EFI".into(),
            other => format!("platform 0x{other:02x}"),
        };
        let media = match self.media {
            0 => "no emulation",
            1 => "1.2 MB floppy",
            2 => "1.44 MB floppy",
            3 => "2.88 MB floppy",
            4 => "hard disk",
            _ => "unknown media",
        };
        let bootable = if self.is_bootable { "" } else { ", not bootable" };
        format!("El Torito boot image for {platform}, {media}{bootable}")
    }
}

/// The images of the catalogue at `sector`. `files` gives the length of the file that starts at a
/// byte of the device.
pub(super) fn images(medium: &Medium, sector: u32, files: &HashMap<u64, u64>) -> Vec<Embedded> {
    let entries = place(medium, sector).ok_or(Error::NotFound).and_then(|at| catalog(medium, at));
    let entries = match entries {
        Ok(entries) => entries,
        Err(error) => {
            medium.notes.add(format!("El Torito boot catalogue in sector {sector}: {error}"));
            return Vec::new();
        }
    };
    let mut images = Vec::new();
    for entry in entries {
        let at = place(medium, entry.first_sector).filter(|at| *at < medium.device.size());
        let Some(offset) = at else {
            medium.notes.add(format!("{}: sector {} lies outside the image", entry.what(), entry.first_sector));
            continue;
        };
        let wanted = length(medium, &entry, offset, files.get(&offset).copied());
        let len = wanted.min(medium.device.size().saturating_sub(offset));
        if len < wanted {
            medium.notes.add(format!("{}: {wanted} bytes, of which the image holds {len}", entry.what()));
        }
        images.push(Embedded { offset, len, what: entry.what() });
    }
    images
}

/// The catalogue counts in sectors of 2,048 bytes, whatever the logical block size.
fn place(medium: &Medium, sector: u32) -> Option<u64> {
    u64::from(sector).checked_mul(SECTOR)?.checked_sub(medium.bias)
}

fn catalog(medium: &Medium, at: u64) -> Result<Vec<Entry>> {
    let rest = medium.device.size().saturating_sub(at);
    let len = rest.min(MAX_CATALOG.saturating_mul(SECTOR));
    let bytes = read_vec(medium.device.as_ref(), at, usize::try_from(len).unwrap_or(0))?;
    let mut records = bytes.chunks_exact(ENTRY).enumerate().map(|(index, bytes)| {
        Record::new(NAME, "boot catalogue", at.saturating_add(index.saturating_mul(ENTRY) as u64), bytes)
    });
    let truncated = || Error::corrupt(NAME, "boot catalogue (it ends too early)", at);
    let validation = records.next().ok_or_else(truncated)?;
    if validation.u8(0)? != 1 || validation.bytes(30, 2)? != [0x55, 0xaa] {
        return Err(validation.corrupt_field("validation entry"));
    }
    let words = (0..ENTRY / 2).filter_map(|index| validation.le16(index.saturating_mul(2)).ok());
    if words.fold(0u16, u16::wrapping_add) != 0 {
        medium.notes.add(format!("the checksum of the boot catalogue at byte {at} is wrong"));
    }
    let first = records.next().ok_or_else(truncated)?;
    let mut entries = vec![Entry::parse(&first, validation.u8(1)?)?];
    // What is left of the section being read, and its platform.
    let mut section = (0u16, 0u8);
    let mut is_last_section = false;
    for record in records {
        let indicator = record.u8(0)?;
        match (indicator, section.0) {
            (0x44, _) => {}
            (_, left @ 1..) => {
                section.0 = left.saturating_sub(1);
                let entry = Entry::parse(&record, section.1)?;
                if matches!(indicator, 0 | 0x88) && (entry.first_sector != 0 || entry.is_bootable) {
                    entries.push(entry);
                }
            }
            (0x90 | 0x91, 0) if !is_last_section => {
                section = (record.le16(2)?, record.u8(1)?);
                is_last_section = indicator == 0x91;
            }
            // Some writers put further entries without a header.
            (0x88, 0) => entries.push(Entry::parse(&record, section.1)?),
            _ => break,
        }
    }
    entries.retain(|entry| entry.first_sector != 0);
    Ok(entries)
}

/// Length of an image in bytes, before it is cut at the end of the device.
fn length(medium: &Medium, entry: &Entry, offset: u64, file: Option<u64>) -> u64 {
    let loaded = u64::from(entry.load_count).saturating_mul(VIRTUAL_SECTOR);
    let head = probe_array::<512>(medium.device.as_ref(), offset).ok().flatten();
    let head = head.as_ref().map(|head| Record::new(NAME, "boot image", offset, head));
    let said = |read: fn(&Record<'_>) -> Option<u64>| head.as_ref().and_then(read);
    match entry.media {
        1 => 1_228_800,
        2 => 1_474_560,
        3 => 2_949_120,
        4 => said(partitioned).or(file).unwrap_or(loaded),
        _ => file.or_else(|| said(boot_info)).or_else(|| said(fat)).unwrap_or(loaded.max(VIRTUAL_SECTOR)),
    }
}

/// End of the last partition of a master boot record.
fn partitioned(head: &Record<'_>) -> Option<u64> {
    if head.bytes(510, 2).ok()? != [0x55, 0xaa] {
        return None;
    }
    let ends = (0..4usize).filter_map(|index| {
        let entry = head.part("partition", index.saturating_mul(16).saturating_add(446), 16).ok()?;
        let (first, count) = (entry.le32(8).ok()?, entry.le32(12).ok()?);
        let in_use = entry.u8(4).ok()? != 0 && count != 0;
        in_use.then(|| u64::from(first).saturating_add(count.into()).saturating_mul(VIRTUAL_SECTOR))
    });
    ends.max()
}

/// The boot information table that mkisofs patches into ISOLINUX and GRUB: byte 8 has the sector of
/// the primary descriptor, byte 16 the length of the file.
fn boot_info(head: &Record<'_>) -> Option<u64> {
    let here = u32::try_from(head.at() / SECTOR).ok()?;
    let matches = head.le32(8).ok()? == 16 && head.le32(12).ok()? == here;
    matches.then(|| head.le32(16).ok().map(u64::from)).flatten().filter(|len| *len != 0)
}

/// A FAT volume's own size: EFI system partitions that are not in the tree.
fn fat(head: &Record<'_>) -> Option<u64> {
    if head.bytes(510, 2).ok()? != [0x55, 0xaa] || !matches!(head.u8(0).ok()?, 0xeb | 0xe9) {
        return None;
    }
    let bytes_per_sector = head.le16(11).ok()?;
    let cluster = head.u8(13).ok()?;
    if !matches!(bytes_per_sector, 512 | 1024 | 2048 | 4096) || !cluster.is_power_of_two() || head.u8(16).ok()? == 0 {
        return None;
    }
    let sectors = match head.le16(19).ok()? {
        0 => head.le32(32).ok()?,
        small => small.into(),
    };
    Some(u64::from(sectors).saturating_mul(bytes_per_sector.into())).filter(|len| *len != 0)
}
