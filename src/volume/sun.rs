//! The label of Sun's SPARC machines: eight partitions that start at whole cylinders.
//!
//! Specification: `sys/dklabel.h` of Solaris (SPARC). All fields are big-endian.
//!
//! ```text
//!   0 text (128) | 128 VTOC: version, volume (8), 140 rows (be16), 142 eight of: tag, flags (be16)
//!   188 VTOC magic 600DDEEE | 436 heads, 438 sectors per track (be16)
//!   444 eight of: first cylinder, sectors (be32) | 508 magic DABE | 510 XOR of all words is 0
//! ```
//!
//! Supported: labels with and without a VTOC.
//! Not supported: the label of Solaris on x86, which lies inside an MBR row.

use super::{Entry, Table, VolumeSystem, byte_range, note};
use crate::bytes::{Evidence, Record};
use crate::device::{BlockDevice, Device, probe_array};
use crate::error::{Error, Result};

/// The table's row.
pub const SYSTEM: VolumeSystem = VolumeSystem { name: "sun", probe, table };

const MAGIC_AT: usize = 508;
const VTOC_MAGIC: u32 = 0x600d_deee;
const ROWS: usize = 8;
/// Tag of the row that covers the disk as a whole.
const WHOLE: u16 = 5;
/// The unit of the label, whatever the disk has.
const SECTOR: u32 = 512;

fn probe(device: &dyn BlockDevice) -> Result<bool> {
    Ok(find(device)?.is_some())
}

/// Sector 0, when it is a label and its checksum is right.
fn find(device: &dyn BlockDevice) -> Result<Option<[u8; 512]>> {
    let Some(bytes) = probe_array::<512>(device, 0)? else { return Ok(None) };
    let label = Record::new("sun", "label", 0, &bytes);
    let sum = bytes.as_chunks::<2>().0.iter().fold(0, |sum, &word| sum ^ u16::from_be_bytes(word));
    Ok((label.be16(MAGIC_AT)? == 0xdabe && sum == 0).then_some(bytes))
}

fn table(device: &Device) -> Result<Table> {
    let bytes = find(device.as_ref())?.ok_or(Error::corrupt("sun", "label", 0))?;
    let label = Record::new("sun", "label", 0, &bytes);
    let cylinder = u64::from(label.be16(436)?).saturating_mul(label.be16(438)?.into());
    let has_vtoc = label.be32(188)? == VTOC_MAGIC;
    let mut table = Table { sector_size: SECTOR, ..Table::default() };
    table.evidence.push(Evidence { offset: MAGIC_AT as u64, bytes: vec![0xda, 0xbe], what: "label magic" });
    for (slot, index) in (1..).zip(0..ROWS) {
        let row = label.part("row", index.saturating_mul(8).saturating_add(444), 8)?;
        let (first, count) = (u64::from(row.be32(0)?).saturating_mul(cylinder), row.be32(4)?);
        let tag = if has_vtoc { label.be16(index.saturating_mul(4).saturating_add(142))? } else { 0 };
        if count == 0 {
            continue;
        }
        let Some((start, len)) = byte_range(first, count.into(), SECTOR) else {
            note(&mut table.notes, format!("row {slot} is not a range"));
            continue;
        };
        let structural = tag == WHOLE;
        table.entries.push(Entry { slot, start, len, kind: format!("{tag:x}"), structural, ..Entry::default() });
    }
    Ok(table)
}
