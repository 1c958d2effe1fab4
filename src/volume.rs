//! Partition tables: the named ranges of a disk.
//!
//! A decoder only reports [`Entry`] rows as they are stored; [`scan`] compares every border with
//! the disk, once, and what comes out as a [`Volume`] can be read without a further check.

pub mod apm;
pub mod atari;
pub mod bsd;
pub mod gpt;
pub mod mbr;
pub mod sgi;
pub mod sun;

use std::sync::Arc;

use crate::bytes::Evidence;
use crate::check::Known;
use crate::device::window::Window;
use crate::device::{BlockDevice, Device};
use crate::error::Result;

/// A row of a partition table, unchecked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Number of the row, from 1, gaps kept; MBR logical volumes from 5.
    pub slot: u32,
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Type as the table stores it: a GUID, a byte in hexadecimal, a name.
    pub kind: String,
    /// The volume's name in the table.
    pub label: Option<String>,
    /// The volume's own identifier in the table.
    pub uuid: Option<String>,
    /// Holds the table's own structures, other rows, or nothing: an extended partition, a partition
    /// map, free space. Its bytes can be read; no file system is to be looked for in them.
    pub structural: bool,
}

/// A partition table as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// The disk's sector size in bytes, as the table's own addresses show it; it may differ from
    /// what the disk says, as the image of a 4,096-byte disk is a plain file. 0 when the table shows none.
    pub sector_size: u32,
    /// The rows, in the order of their slots.
    pub entries: Vec<Entry>,
    /// Identifier of the disk.
    pub uuid: Option<String>,
    /// Where the table was recognised.
    pub evidence: Vec<Evidence>,
    /// What an examiner should know: a backup header used, a chain that ended early.
    pub notes: Vec<String>,
    /// Its checksums, which were compared.
    pub checks: Vec<Known>,
}

/// A range of the disk that can be read.
#[derive(Clone)]
pub struct Volume {
    /// The row it comes from, as stored.
    pub entry: Entry,
    /// Its bytes; shorter than the row says when `clipped`.
    pub device: Device,
    /// The row runs past the end of the disk.
    pub clipped: bool,
}

/// A disk's partition table and its volumes.
#[derive(Clone)]
pub struct Scan {
    /// Name of the volume system, as in [`SYSTEMS`].
    pub system: &'static str,
    /// The table as stored.
    pub table: Table,
    /// The rows that lie on the disk.
    pub volumes: Vec<Volume>,
    /// The rows with something in them that do not: the image was cut short.
    pub missing: Vec<Entry>,
}

/// A kind of partition table.
pub struct VolumeSystem {
    /// Name in messages and in `--json`.
    pub name: &'static str,
    /// Whether the disk has such a table.
    pub probe: fn(&dyn BlockDevice) -> Result<bool>,
    /// Its rows as stored.
    pub table: fn(&Device) -> Result<Table>,
}

/// In probe order. GPT before MBR: a GPT disk carries a protective MBR. APM and BSD before MBR: hybrid
/// discs and BSD disks have both, with an MBR that only covers the disk as a whole. Where the MBR does
/// divide the disk, all of these stand back (GPT unless a row protects it), as in Linux; see
/// `mbr::Record::divides`. Atari last: it has no magic number.
pub const SYSTEMS: &[VolumeSystem] =
    &[gpt::SYSTEM, sun::SYSTEM, sgi::SYSTEM, apm::SYSTEM, bsd::SYSTEM, mbr::SYSTEM, atari::SYSTEM];

/// Reads the disk's partition table; `None` when it has none.
pub fn scan(disk: &Device) -> Result<Option<Scan>> {
    for system in SYSTEMS {
        if !(system.probe)(disk.as_ref())? {
            continue;
        }
        let mut table = (system.table)(disk)?;
        let (mut volumes, mut missing) = (Vec::new(), Vec::new());
        for entry in &table.entries {
            let there = disk.size().saturating_sub(entry.start);
            if entry.len == 0 || there == 0 {
                let text =
                    format!("row {} (byte {}, {} bytes) does not lie on the disk", entry.slot, entry.start, entry.len);
                note(&mut table.notes, text);
                if entry.len > 0 && !entry.structural {
                    missing.push(entry.clone());
                }
                continue;
            }
            let clipped = entry.len > there;
            if clipped {
                let beyond = entry.len.saturating_sub(there);
                note(&mut table.notes, format!("row {} runs {beyond} bytes past the end of the disk", entry.slot));
            }
            let window = Window::new(disk.clone(), entry.start, entry.len.min(there))?;
            let sector_size = if table.sector_size == 0 { disk.sector_size() } else { table.sector_size };
            let device = Arc::new(window.with_sector_size(sector_size));
            volumes.push(Volume { entry: entry.clone(), device, clipped });
        }
        note_overlaps(&mut table);
        return Ok(Some(Scan { system: system.name, table, volumes, missing }));
    }
    Ok(None)
}

/// Says which rows share bytes with a row that starts before them.
fn note_overlaps(table: &mut Table) {
    let mut rows: Vec<&Entry> = table.entries.iter().filter(|row| !row.structural && row.len > 0).collect();
    rows.sort_by_key(|row| (row.start, row.slot));
    let mut found = Vec::new();
    let mut furthest: Option<&Entry> = None;
    let end = |row: &Entry| row.start.saturating_add(row.len);
    for row in rows {
        if let Some(before) = furthest.filter(|before| end(before) > row.start) {
            found.push(format!("rows {} and {} overlap", before.slot, row.slot));
        }
        if furthest.is_none_or(|before| end(before) < end(row)) {
            furthest = Some(row);
        }
    }
    for text in found {
        note(&mut table.notes, text);
    }
}

/// More notes than anyone reads: a hostile table must not make pages of them.
const MAX_NOTES: usize = 64;

/// Adds a note, as long as there are not too many.
fn note(notes: &mut Vec<String>, text: String) {
    match notes.len().cmp(&MAX_NOTES) {
        std::cmp::Ordering::Less => notes.push(text),
        std::cmp::Ordering::Equal => notes.push("there are more notes like these".to_owned()),
        std::cmp::Ordering::Greater => {}
    }
}

/// Start and length in bytes of a run of units; `None` when they pass 64 bits.
fn byte_range(first: u64, count: u64, unit: u32) -> Option<(u64, u64)> {
    let unit = u64::from(unit);
    let (start, len) = first.checked_mul(unit).zip(count.checked_mul(unit))?;
    start.checked_add(len).map(|_| (start, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(slot: u32, start: u64, len: u64) -> Entry {
        Entry { slot, start, len, ..Entry::default() }
    }

    #[test]
    fn an_overlap_is_said_once_for_each_row_that_starts_inside_another() {
        let around = Entry { structural: true, ..row(9, 0, 1000) };
        let entries = vec![row(1, 0, 100), row(2, 100, 100), row(3, 150, 10), row(4, 170, 10), row(5, 200, 1), around];
        let mut table = Table { entries, ..Table::default() };
        note_overlaps(&mut table);
        assert_eq!(table.notes, ["rows 2 and 3 overlap", "rows 2 and 4 overlap"]);
    }

    #[test]
    fn a_table_of_nonsense_does_not_make_pages_of_notes() {
        let mut table = Table { entries: (1..1000).map(|slot| row(slot, 0, 10)).collect(), ..Table::default() };
        note_overlaps(&mut table);
        assert_eq!(table.notes.len(), MAX_NOTES + 1);
    }
}
