//! The root sector of Atari's AHDI: four rows near the end of sector 0, one of which may be an extended
//! partition (`XGM`) that holds a linked list of further sectors of the same form.
//!
//! Specification: *Atari Hard Disk Interface 3.00, Release Notes*. All fields are big-endian. There is
//! no magic number, so that every used row must make sense, and one be of a kind that drivers write.
//!
//! ```text
//!   342 eight more rows of ICD's drivers
//!   450 disk size (be32) | 454 four of: flags (bit 0: used), id (3 letters), first sector, sectors (be32)
//!   XGM at E:  E+0: { volume (from this sector), next sector (from E) } -> E+n: ...
//! ```
//!
//! Supported: primary rows and XGM chains, and where there is no such chain ICD's rows; numbered as in Linux.

use std::collections::HashSet;

use super::{Entry, Table, VolumeSystem, byte_range, note};
use crate::bytes::{Evidence, Record};
use crate::device::{BlockDevice, Device, probe_array, read_array};
use crate::error::{Error, Result};

/// The table's row.
pub const SYSTEM: VolumeSystem = VolumeSystem { name: "atari", probe, table };

const SECTOR: u32 = 512;
const SIZE_AT: usize = 450;
const ROWS_AT: usize = 454;
const ICD_AT: usize = 342;
const ICD_ROWS: u32 = 8;
const ROW_LEN: usize = 12;
/// What drivers write; any three letters or digits would do for AHDI.
const KINDS: [&[u8; 3]; 9] = [b"GEM", b"BGM", b"XGM", b"RAW", b"LNX", b"SWP", b"MIX", b"UNX", b"F32"];
/// Far more than fit on the disks of that time.
const MAX_SECTORS: usize = 1024;

fn probe(device: &dyn BlockDevice) -> Result<bool> {
    let Some(bytes) = probe_array::<512>(device, 0)? else { return Ok(false) };
    let sector = Record::new("atari", "root sector", 0, &bytes);
    let disk = u64::from(sector.be32(SIZE_AT)?).max(device.size().div_euclid(SECTOR.into()));
    let rows = rows(sector)?;
    let mut used = rows.iter().filter(|row| row.used);
    let known = rows.iter().any(|row| row.used && row.is_known());
    let valid = |row: &Row| row.has_name() && row.first != 0 && row.count != 0 && row.end() <= disk;
    Ok(known && sector.be32(SIZE_AT)? != 0 && used.all(valid))
}

fn table(device: &Device) -> Result<Table> {
    let bytes: [u8; 512] = read_array(device.as_ref(), 0)?;
    let mut table = Table { sector_size: SECTOR, ..Table::default() };
    let sector = Record::new("atari", "root sector", 0, &bytes);
    table.evidence.push(Evidence {
        offset: ROWS_AT as u64,
        bytes: sector.bytes(ROWS_AT, 4)?.to_vec(),
        what: "first row",
    });
    let mut seen = HashSet::new();
    let mut slot = 0u32;
    let mut has_chain = false;
    for row in rows(sector)? {
        slot = slot.saturating_add(1);
        if row.used && &row.kind == b"XGM" {
            has_chain = true;
            slot = extended(device.as_ref(), row.first.into(), slot, &mut seen, &mut table)?;
        } else if row.used {
            table.entries.push(row.entry(slot, 0)?);
        }
    }
    let first = row(sector, ICD_AT)?;
    if !has_chain && first.used && first.is_known() {
        for index in 0..ICD_ROWS {
            let row = row(sector, ICD_AT.saturating_add(ROW_LEN.saturating_mul(index as usize)))?;
            if row.used && row.has_name() {
                table.entries.push(row.entry(slot.saturating_add(index).saturating_add(1), 0)?);
            }
        }
    }
    Ok(table)
}

/// Adds the volumes of an extended partition, from `slot` on; returns the slot that was used last.
fn extended(
    device: &dyn BlockDevice,
    first: u64,
    mut slot: u32,
    seen: &mut HashSet<u64>,
    table: &mut Table,
) -> Result<u32> {
    let mut here = first;
    loop {
        if !seen.insert(here) || seen.len() > MAX_SECTORS {
            note(&mut table.notes, format!("the extended partition points back to sector {here}: it ends there"));
            return Ok(slot);
        }
        let at = here.saturating_mul(SECTOR.into());
        let Some(bytes) = probe_array::<512>(device, at)? else {
            note(
                &mut table.notes,
                format!("the extended partition goes on in sector {here}, past the end of the disk"),
            );
            return Ok(slot);
        };
        let [volume, next, ..] = rows(Record::new("atari", "extended root sector", at, &bytes))?;
        if !volume.used {
            note(&mut table.notes, format!("the extended partition has no volume in sector {here}: it ends there"));
            return Ok(slot);
        }
        table.entries.push(volume.entry(slot, here)?);
        if !next.used || &next.kind != b"XGM" {
            return Ok(slot);
        }
        slot = slot.saturating_add(1);
        here = first.saturating_add(next.first.into());
    }
}

#[derive(Clone, Copy)]
struct Row {
    used: bool,
    kind: [u8; 3],
    first: u32,
    count: u32,
}

impl Row {
    fn is_known(&self) -> bool {
        KINDS.contains(&&self.kind)
    }

    /// Any three letters or digits are a kind.
    fn has_name(&self) -> bool {
        self.kind.iter().all(u8::is_ascii_alphanumeric)
    }

    fn end(&self) -> u64 {
        u64::from(self.first).saturating_add(self.count.into())
    }

    /// `base` is the sector that the row counts from.
    fn entry(&self, slot: u32, base: u64) -> Result<Entry> {
        let first = base.saturating_add(self.first.into());
        let range = byte_range(first, self.count.into(), SECTOR);
        let (start, len) = range.ok_or(Error::corrupt("atari", "row", ROWS_AT as u64))?;
        Ok(Entry { slot, start, len, kind: String::from_utf8_lossy(&self.kind).into_owned(), ..Entry::default() })
    }
}

fn rows(sector: Record<'_>) -> Result<[Row; 4]> {
    let row = |index: usize| row(sector, ROWS_AT.saturating_add(index.saturating_mul(ROW_LEN)));
    Ok([row(0)?, row(1)?, row(2)?, row(3)?])
}

fn row(sector: Record<'_>, at: usize) -> Result<Row> {
    let row = sector.part("row", at, ROW_LEN)?;
    Ok(Row { used: row.u8(0)? & 1 != 0, kind: row.array(1)?, first: row.be32(4)?, count: row.be32(8)? })
}
