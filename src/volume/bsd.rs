//! The disklabel of the BSDs, on a disk that has no other table: up to 22 partitions, `a` to `v`.
//!
//! Specification: `sys/disklabel.h` of FreeBSD and OpenBSD; disklabel(5).
//!
//! ```text
//!   sector 1 (little-endian machines), or byte 64 of sector 0:
//!   0 magic 0x82564557 | 132 magic | 136 XOR of all words | 138 partitions (le16) | 148 rows of 16 bytes
//!   row: sectors, first sector (le32), fragment size, 12 file system type (u8) ...
//! ```
//!
//! Supported: labels in little-endian order, of disks as a whole and inside an MBR row.
//! Not supported: big-endian labels; sector numbers of more than 32 bits (OpenBSD).

use super::{Entry, Table, VolumeSystem, byte_range, mbr, note};
use crate::bytes::{Evidence, Record};
use crate::device::{BlockDevice, Device, probe_array};
use crate::error::{Error, Result};

/// The table's row.
pub const SYSTEM: VolumeSystem = VolumeSystem { name: "bsd", probe, table };

const MAGIC: u32 = 0x8256_4557;
const ROWS_AT: usize = 148;
const ROW_LEN: usize = 16;
/// OpenBSD's limit since 2024 is 52, of all others 22; a sector has room for this many.
const MAX_ROWS: u16 = 22;
const LABEL_LEN: usize = ROWS_AT + MAX_ROWS as usize * ROW_LEN;
/// Slot of `c`, which is the disk as a whole.
const WHOLE: u32 = 3;

fn probe(device: &dyn BlockDevice) -> Result<bool> {
    if mbr::Record::find(device)?.is_some_and(|record| record.divides()) {
        return Ok(false);
    }
    Ok(find(device)?.is_some())
}

/// The label and its place.
fn find(device: &dyn BlockDevice) -> Result<Option<(u64, [u8; LABEL_LEN])>> {
    for at in [512, 64] {
        if let Some(bytes) = label_at(device, at)? {
            return Ok(Some((at, bytes)));
        }
    }
    Ok(None)
}

fn label_at(device: &dyn BlockDevice, at: u64) -> Result<Option<[u8; LABEL_LEN]>> {
    let Some(bytes) = probe_array::<LABEL_LEN>(device, at)? else { return Ok(None) };
    let label = Record::new("bsd", "disklabel", at, &bytes);
    let found = label.le32(0)? == MAGIC && label.le32(132)? == MAGIC && label.le16(138)? <= MAX_ROWS;
    Ok(found.then_some(bytes))
}

/// A row as it is stored, in sectors.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) sectors: u32,
    pub(super) first: u32,
    pub(super) kind: u8,
}

/// All rows of the label that begins at a byte; `None` when there is none.
pub(super) fn rows_at(device: &dyn BlockDevice, at: u64) -> Result<Option<Vec<Row>>> {
    let Some(bytes) = label_at(device, at)? else { return Ok(None) };
    rows(&Record::new("bsd", "disklabel", at, &bytes), at).map(Some)
}

fn rows(label: &Record<'_>, at: u64) -> Result<Vec<Row>> {
    let count = usize::from(label.le16(138)?);
    let rows = label.tail(ROWS_AT)?.as_chunks::<ROW_LEN>().0.iter().take(count).map(|row| {
        let row = Record::new("bsd", "disklabel row", at, row);
        Ok(Row { sectors: row.le32(0)?, first: row.le32(4)?, kind: row.u8(12)? })
    });
    rows.collect()
}

fn table(device: &Device) -> Result<Table> {
    let (at, bytes) = find(device.as_ref())?.ok_or(Error::corrupt("bsd", "disklabel", 512))?;
    let label = Record::new("bsd", "disklabel", at, &bytes);
    let unit = label.le32(40)?;
    if !matches!(unit, 512 | 1024 | 2048 | 4096) {
        return Err(label.corrupt_field("sector size"));
    }
    let mut table = Table { sector_size: unit, ..Table::default() };
    table.evidence.push(Evidence { offset: at, bytes: MAGIC.to_le_bytes().to_vec(), what: "disklabel magic" });
    let count = usize::from(label.le16(138)?);
    let words = label.bytes(0, ROWS_AT.saturating_add(count.saturating_mul(ROW_LEN)))?.as_chunks::<2>().0;
    if words.iter().fold(0, |sum, &word| sum ^ u16::from_le_bytes(word)) != 0 {
        // parted writes such labels.
        note(&mut table.notes, "the checksum of the disklabel is wrong".to_owned());
    }
    let rows = rows(&label, at)?;
    let base = base(&rows, device.size(), unit);
    if base != 0 {
        note(&mut table.notes, format!("the rows count from sector {base} of the disk that this volume was on"));
    }
    for (slot, row) in (1..).zip(rows) {
        if row.sectors == 0 || (slot == WHOLE && row.first == base) {
            continue;
        }
        let Some(first) = row.first.checked_sub(base) else {
            note(&mut table.notes, format!("row {slot} lies before this volume"));
            continue;
        };
        let Some((start, len)) = byte_range(first.into(), row.sectors.into(), unit) else {
            note(&mut table.notes, format!("row {slot} is not a range"));
            continue;
        };
        table.entries.push(Entry { slot, start, len, kind: format!("{:x}", row.kind), ..Entry::default() });
    }
    Ok(table)
}

/// Where the volume began on its disk, in sectors: a label that was copied out with its MBR row may count
/// from the start of that disk, which `c` shows. As FreeBSD does it, and only where `c` is this volume.
fn base(rows: &[Row], size: u64, unit: u32) -> u32 {
    let is_whole = |row: &&Row| u64::from(row.sectors).saturating_mul(unit.into()) == size;
    rows.get(2).filter(is_whole).map_or(0, |whole| whole.first)
}
