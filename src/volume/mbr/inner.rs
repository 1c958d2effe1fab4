//! The tables that other systems keep inside a row of the MBR. Their rows get the numbers that Linux
//! gives them, behind the logical volumes.
//!
//! ```text
//!   type A5, A6, A9   BSD disklabel in sector 1 of the row       (FreeBSD, OpenBSD, NetBSD)
//!   type 82, BF       VTOC in sector 1: 12 magic 600DDEEE, 30 rows (le16), 72 { tag, flags, first, sectors }
//!   type 81           an MBR of its own in sector 0              (Minix)
//! ```

use super::{Row, is_signed, read_rows};
use crate::bytes::Record;
use crate::device::{BlockDevice, probe_array};
use crate::error::Result;
use crate::volume::bsd;

const VTOC_MAGIC: u32 = 0x600d_deee;
const VTOC_ROWS: usize = 16;
/// Tag of the slice that is the whole row.
const VTOC_WHOLE: u16 = 5;

/// A row of an inner table.
pub(super) struct Inner {
    pub(super) first_lba: u64,
    pub(super) sectors: u64,
    /// As the inner table stores it, in hexadecimal.
    pub(super) kind: String,
}

/// What is inside a row, as far as it lies there; none when there is no table that it should have.
pub(super) fn inner(device: &dyn BlockDevice, row: Row) -> Result<Vec<Inner>> {
    let unit = u64::from(device.sector_size());
    let at = |sector: u64| u64::from(row.first_lba).saturating_add(sector).saturating_mul(unit);
    let found = match row.kind {
        0xa5 | 0xa6 | 0xa9 => bsd_rows(device, row, at(1))?,
        0x82 | 0xbf => vtoc_rows(device, row, at(1))?,
        0x81 => minix_rows(device, at(0))?,
        _ => Vec::new(),
    };
    let first_lba = u64::from(row.first_lba);
    let whole = |part: &Inner| part.first_lba == first_lba && part.sectors == u64::from(row.sectors);
    let inside = |part: &Inner| part.first_lba >= first_lba && part.first_lba.saturating_add(part.sectors) <= row.end();
    Ok(found.into_iter().filter(|part| part.sectors > 0 && inside(part) && !whole(part)).collect())
}

fn bsd_rows(device: &dyn BlockDevice, row: Row, at: u64) -> Result<Vec<Inner>> {
    let rows = bsd::rows_at(device, at)?.unwrap_or_default();
    // FreeBSD counts from the row since version 10: then the row `c`, which is all of it, is at 0.
    let relative = row.kind == 0xa5 && rows.get(2).is_some_and(|whole| whole.first == 0);
    let base = if relative { u64::from(row.first_lba) } else { 0 };
    let used = rows.into_iter().filter(|part| part.kind != 0);
    let part = |part: bsd::Row| Inner {
        first_lba: base.saturating_add(part.first.into()),
        sectors: part.sectors.into(),
        kind: format!("{:x}", part.kind),
    };
    Ok(used.map(part).collect())
}

fn vtoc_rows(device: &dyn BlockDevice, row: Row, at: u64) -> Result<Vec<Inner>> {
    let Some(bytes) = probe_array::<512>(device, at)? else { return Ok(Vec::new()) };
    let vtoc = Record::new("mbr", "VTOC", at, &bytes);
    if vtoc.le32(12)? != VTOC_MAGIC || vtoc.le32(16)? != 1 {
        return Ok(Vec::new());
    }
    let count = usize::from(vtoc.le16(30)?).min(VTOC_ROWS);
    let mut found = Vec::new();
    for slice in vtoc.tail(72)?.as_chunks::<12>().0.iter().take(count) {
        let slice = Record::new("mbr", "VTOC row", at, slice);
        let (tag, first, sectors) = (slice.le16(0)?, slice.le32(4)?, slice.le32(8)?);
        if tag != VTOC_WHOLE {
            let first_lba = u64::from(row.first_lba).saturating_add(first.into());
            found.push(Inner { first_lba, sectors: sectors.into(), kind: format!("{tag:x}") });
        }
    }
    Ok(found)
}

fn minix_rows(device: &dyn BlockDevice, at: u64) -> Result<Vec<Inner>> {
    let Some(bytes) = probe_array::<512>(device, at)? else { return Ok(Vec::new()) };
    let record = Record::new("mbr", "boot record of a Minix row", at, &bytes);
    if !is_signed(record)? {
        return Ok(Vec::new());
    }
    let rows = read_rows(record)?.into_iter().filter(|row| row.kind == 0x81);
    let part = |row: Row| Inner { first_lba: row.first_lba.into(), sectors: row.sectors.into(), kind: "81".to_owned() };
    Ok(rows.map(part).collect())
}
