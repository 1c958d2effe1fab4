//! The MBR of DOS, with its chain of logical volumes: four rows at the end of sector 0, one of which
//! may be an extended partition that holds a linked list of further records.
//!
//! There is no specification; the numbering and the tolerance are those of Linux
//! (`block/partitions/msdos.c`), the care not to take a file system's boot sector for a table that of
//! util-linux.
//!
//! ```text
//!   sector 0:  boot code ... | 440 disk signature | 446 four rows of 16 bytes | 510 55 AA
//!   row:       status, first CHS (3), type, last CHS (3), first sector (le32), sectors (le32)
//!   extended partition E, of type 05, 0F or 85:
//!     E+0: record { logical volume (from this record), next record (from E) } -> E+n: record ...
//! ```
//!
//! The rows count the disk's sectors, and no field says how large those are. The image of a disk of
//! 4,096-byte sectors is a plain file, which says 512: then what lies where the rows point decides (see
//! `unit`).
//!
//! Supported: primary and logical volumes, several extended partitions, the disk signature, tables
//! inside a row (BSD disklabels, Solaris, Minix; see `inner`).
//! Not supported: UnixWare's tables inside a row, and dynamic disks (LDM).

mod inner;
mod unit;

use std::collections::HashSet;
use std::sync::Arc;

use super::{Entry, Table, VolumeSystem, byte_range, note};
use crate::bytes::{self, Evidence};
use crate::device::window::Window;
use crate::device::{BlockDevice, Device, probe_array, read_array};
use crate::error::{Error, Result};

/// The table's row.
pub const SYSTEM: VolumeSystem = VolumeSystem { name: "mbr", probe, table };

const SECTOR: usize = 512;
const ROWS_AT: usize = 446;
const ROW_LEN: usize = 16;
const SIGNATURE_AT: usize = 510;
/// Type of the row that keeps other systems away from a GPT disk.
const PROTECTIVE: u8 = 0xee;
/// A logical volume takes two sectors or more of a chain that is walked one read at a time; Linux
/// shows 256 rows.
const MAX_RECORDS: usize = 1024;
/// The start of a disk, cut off after the boot track, still shows what was on it.
const BOOT_TRACK: u64 = 1 << 20;

fn probe(device: &dyn BlockDevice) -> Result<bool> {
    Ok(Record::find(device)?.is_some())
}

fn table(device: &Device) -> Result<Table> {
    let record = Record::find(device.as_ref())?.ok_or(Error::corrupt("mbr", "boot record", 0))?;
    let counted = unit::counted(device.as_ref(), &record.rows);
    let device: &Device = &match counted {
        None => device.clone(),
        Some(unit) => Arc::new(Window::new(device.clone(), 0, device.size())?.with_sector_size(unit)),
    };
    let mut table = Table {
        sector_size: device.sector_size(),
        uuid: record.disk_signature.map(|signature| format!("{signature:08x}")),
        evidence: vec![Evidence {
            offset: SIGNATURE_AT as u64,
            bytes: vec![0x55, 0xaa],
            what: "boot record signature",
        }],
        ..Table::default()
    };
    if record.file_system {
        note(&mut table.notes, "sector 0 is also the boot sector of a file system".to_owned());
    }
    if let Some(unit) = counted {
        let text =
            format!("the rows count sectors of {unit} bytes: what they name begins there, and not at those of 512");
        note(&mut table.notes, text);
    }
    if record.is_protective() {
        note(&mut table.notes, "the MBR is protective, but there is no GPT".to_owned());
    }
    let mut logical =
        Logical { device: device.as_ref(), signature: record.disk_signature, seen: HashSet::new(), next: 5 };
    let mut logicals = Table::default();
    for (slot, row) in (1..).zip(record.rows) {
        if row.sectors == 0 {
            continue;
        }
        let (first_lba, sectors) = (u64::from(row.first_lba), u64::from(row.sectors));
        let mut entry = entry(row, slot, first_lba, device.sector_size(), record.disk_signature)?;
        entry.structural = row.is_extended() || row.kind == PROTECTIVE;
        table.entries.push(entry);
        if row.is_extended() {
            logical.walk(Span { first_lba, sectors }, &mut logicals)?;
        }
    }
    table.entries.append(&mut logicals.entries);
    for row in record.rows.into_iter().filter(|row| row.sectors > 0) {
        let parts = inner::inner(device.as_ref(), row).unwrap_or_else(|error| {
            note(&mut table.notes, format!("the table inside a row cannot be read: {error}"));
            Vec::new()
        });
        for part in parts {
            let Some((start, len)) = byte_range(part.first_lba, part.sectors, device.sector_size()) else { continue };
            table.entries.push(Entry { slot: logical.next, start, len, kind: part.kind, ..Entry::default() });
            logical.next = logical.next.saturating_add(1);
        }
    }
    for text in logicals.notes {
        note(&mut table.notes, text);
    }
    Ok(table)
}

/// The boot record, after it was found to be a partition table and nothing else.
pub(super) struct Record {
    rows: [Row; 4],
    /// `None` where the field is zero.
    disk_signature: Option<u32>,
    /// The sector also starts a FAT, exFAT, NTFS or BitLocker volume.
    file_system: bool,
}

impl Record {
    /// The table in sector 0; `None` when there is none.
    pub(super) fn find(device: &dyn BlockDevice) -> Result<Option<Self>> {
        let Some(sector) = probe_array::<SECTOR>(device, 0)? else { return Ok(None) };
        let record = Self::parse(&sector)?;
        Ok(record.filter(|record| record.is_plausible(device)))
    }

    /// The rows, when the sector has the signature and is not one of AIX's.
    fn parse(sector: &[u8; SECTOR]) -> Result<Option<Self>> {
        let record = bytes::Record::new("mbr", "boot record", 0, sector);
        if !is_signed(record)? || record.be32(0)? == 0xc9c2_d4c1 {
            return Ok(None);
        }
        let rows = read_rows(record)?;
        let signature = record.le32(440)?;
        let file_system = starts_file_system(record)?;
        Ok(Some(Self { rows, disk_signature: (signature != 0).then_some(signature), file_system }))
    }

    /// A boot sector has the signature too, and code or text where the rows are.
    fn is_plausible(&self, device: &dyn BlockDevice) -> bool {
        let size = device.size();
        let on_disk = |lba: u64| lba.saturating_mul(u64::from(device.sector_size())) < size;
        let states = self.rows.iter().all(|row| matches!(row.status, 0 | 0x80));
        let named = |row: &&Row| row.kind != 0 && row.sectors != 0;
        let reachable = |row: &Row| size <= BOOT_TRACK || on_disk(row.first_lba.into());
        if !states || !self.rows.iter().filter(named).any(reachable) {
            return false;
        }
        // Both at once happens: a disk that was one FAT volume and was then partitioned keeps its old
        // boot sector, as the tools change the rows only. A volume formatted with a row for show (from
        // sector 0) is a volume. So every row must be one that a partitioning tool would write.
        let mut used: Vec<&Row> = self.rows.iter().filter(|row| row.sectors != 0).collect();
        used.sort_by_key(|row| row.first_lba);
        let apart = used.windows(2).all(|pair| matches!(pair, [a, b] if a.end() <= b.first_lba.into()));
        let whole = used.iter().all(|row| row.kind != 0 && row.first_lba != 0 && on_disk(row.end().saturating_sub(1)));
        !self.file_system || (apart && whole)
    }

    /// Whether a row says that the disk has a GPT.
    pub(super) fn is_protective(&self) -> bool {
        self.rows.iter().any(|row| row.kind == PROTECTIVE && row.sectors != 0)
    }

    /// Last sector of the disk when the GPT was made, when the protective row knows it.
    pub(super) fn protected_end(&self) -> Option<u64> {
        let row = self.rows.iter().find(|row| row.kind == PROTECTIVE && row.sectors != u32::MAX)?;
        row.end().checked_sub(1)
    }

    /// Whether a row other than the protective one starts behind sector 0. Rows from sector 0 cover
    /// the whole disk: hybrid ISO discs and "dangerously dedicated" BSD disks have them for the
    /// firmware's sake, and the parts are in another table.
    pub(super) fn divides(&self) -> bool {
        self.rows.iter().any(|row| row.sectors != 0 && row.first_lba != 0 && row.kind != PROTECTIVE)
    }
}

#[derive(Clone, Copy)]
struct Row {
    status: u8,
    kind: u8,
    first_lba: u32,
    sectors: u32,
}

impl Row {
    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    /// Sector behind the last.
    fn end(self) -> u64 {
        u64::from(self.first_lba).saturating_add(self.sectors.into())
    }
}

fn is_signed(record: bytes::Record<'_>) -> Result<bool> {
    Ok(record.be16(SIGNATURE_AT)? == 0x55aa)
}

fn read_rows(record: bytes::Record<'_>) -> Result<[Row; 4]> {
    let row = |index: usize| -> Result<Row> {
        let row = record.part("row", ROWS_AT.saturating_add(index.saturating_mul(ROW_LEN)), ROW_LEN)?;
        Ok(Row { status: row.u8(0)?, kind: row.u8(4)?, first_lba: row.le32(8)?, sectors: row.le32(12)? })
    };
    Ok([row(0)?, row(1)?, row(2)?, row(3)?])
}

/// Whether the sector has the names or the BIOS parameter block of a file system.
fn starts_file_system(record: bytes::Record<'_>) -> Result<bool> {
    if matches!(record.bytes(3, 8)?, b"NTFS    " | b"EXFAT   " | b"-FVE-FS-") {
        return Ok(true);
    }
    let sector = matches!(record.le16(11)?, 512 | 1024 | 2048 | 4096);
    let cluster = record.u8(13)?.is_power_of_two();
    let reserved = record.le16(14)? != 0;
    let tables = matches!(record.u8(16)?, 1 | 2);
    let media = matches!(record.u8(21)?, 0xf0 | 0xf8..=0xff);
    let total = record.le16(19)? != 0 || record.le32(32)? != 0;
    Ok(sector && cluster && reserved && tables && media && total)
}

fn entry(row: Row, slot: u32, first_lba: u64, sector_size: u32, signature: Option<u32>) -> Result<Entry> {
    let out_of_range = || Error::corrupt("mbr", "row", 0);
    let (start, len) = byte_range(first_lba, row.sectors.into(), sector_size).ok_or_else(out_of_range)?;
    Ok(Entry {
        slot,
        start,
        len,
        kind: format!("{:x}", row.kind),
        uuid: signature.map(|signature| format!("{signature:08x}-{slot:02x}")),
        ..Entry::default()
    })
}

/// A run of sectors.
#[derive(Clone, Copy)]
struct Span {
    first_lba: u64,
    sectors: u64,
}

impl Span {
    fn end(self) -> u64 {
        self.first_lba.saturating_add(self.sectors)
    }
}

/// The walk along the records of extended partitions.
struct Logical<'a> {
    device: &'a dyn BlockDevice,
    signature: Option<u32>,
    /// Sectors whose record was read, over all extended partitions.
    seen: HashSet<u64>,
    /// Slot of the next volume.
    next: u32,
}

impl Logical<'_> {
    /// Adds the volumes of one extended partition. A chain that breaks keeps what came before.
    fn walk(&mut self, extended: Span, table: &mut Table) -> Result<()> {
        let mut here = extended;
        loop {
            let at = here.first_lba.saturating_mul(self.device.sector_size().into());
            if !self.seen.insert(here.first_lba) {
                note(&mut table.notes, format!("the chain of logical volumes points back to byte {at}: it ends there"));
                return Ok(());
            }
            if self.seen.len() > MAX_RECORDS {
                note(
                    &mut table.notes,
                    format!("there are more than {MAX_RECORDS} logical volumes: the rest is not shown"),
                );
                return Ok(());
            }
            let sector: [u8; SECTOR] = match read_array(self.device, at) {
                Ok(sector) => sector,
                Err(error) => {
                    note(&mut table.notes, format!("the chain of logical volumes ends at byte {at}: {error}"));
                    return Ok(());
                }
            };
            let record = bytes::Record::new("mbr", "extended boot record", at, &sector);
            if !is_signed(record)? {
                note(&mut table.notes, format!("the chain of logical volumes ends at byte {at}: no boot record"));
                return Ok(());
            }
            let rows = read_rows(record)?;
            self.volumes(extended, here, rows, table)?;
            let Some(link) = rows.into_iter().find(|row| row.is_extended() && row.sectors != 0) else { return Ok(()) };
            here = Span {
                first_lba: extended.first_lba.saturating_add(link.first_lba.into()),
                sectors: link.sectors.into(),
            };
        }
    }

    /// The volumes of one record. The third and fourth row should be empty and often hold garbage:
    /// like Linux, they count only within their partition.
    fn volumes(&mut self, extended: Span, here: Span, rows: [Row; 4], table: &mut Table) -> Result<()> {
        for (index, row) in rows.into_iter().enumerate() {
            if row.sectors == 0 || row.is_extended() {
                continue;
            }
            let first_lba = here.first_lba.saturating_add(row.first_lba.into());
            let end = first_lba.saturating_add(row.sectors.into());
            if index >= 2 && (row.end() > here.sectors || first_lba < extended.first_lba || end > extended.end()) {
                continue;
            }
            let entry = entry(row, self.next, first_lba, self.device.sector_size(), self.signature)?;
            if end > extended.end() {
                note(&mut table.notes, format!("row {} runs out of its extended partition", entry.slot));
            }
            table.entries.push(entry);
            self.next = self.next.saturating_add(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::Memory;

    /// A disk of 2 MiB whose sector 0 has these rows: status, type, first sector, sectors.
    fn disk(rows: &[(u8, u8, u32, u32)], change: impl FnOnce(&mut [u8])) -> Device {
        let mut bytes = vec![0; 2 << 20];
        for (row, &(status, kind, first, sectors)) in bytes[ROWS_AT..SIGNATURE_AT].chunks_mut(ROW_LEN).zip(rows) {
            (row[0], row[4]) = (status, kind);
            row[8..12].copy_from_slice(&first.to_le_bytes());
            row[12..16].copy_from_slice(&sectors.to_le_bytes());
        }
        bytes[SIGNATURE_AT..SECTOR].copy_from_slice(&[0x55, 0xaa]);
        change(&mut bytes);
        Arc::new(Memory::new(bytes, 512))
    }

    fn is_table(rows: &[(u8, u8, u32, u32)], change: impl FnOnce(&mut [u8])) -> bool {
        probe(disk(rows, change).as_ref()).unwrap()
    }

    #[test]
    fn only_rows_that_a_tool_would_write_make_a_table() {
        assert!(is_table(&[(0x80, 0x83, 64, 100)], |_| {}));
        assert!(!is_table(&[], |_| {}), "boot code alone");
        assert!(!is_table(&[(0x80, 0, 64, 100)], |_| {}), "no type");
        assert!(!is_table(&[(0x20, 0x83, 64, 100)], |_| {}), "neither active nor inactive");
        assert!(!is_table(&[(0, 0x83, 1 << 30, 100)], |_| {}), "nothing on the disk");
        assert!(!is_table(&[(0x80, 0x83, 64, 100)], |disk| disk[510] = 0), "no signature");
    }

    #[test]
    fn beside_a_boot_sector_every_row_must_be_in_order() {
        let ntfs = |disk: &mut [u8]| disk[3..11].copy_from_slice(b"NTFS    ");
        assert!(is_table(&[(0, 7, 64, 100), (0, 7, 164, 100)], ntfs));
        assert!(!is_table(&[(0, 7, 64, 100), (0, 7, 163, 100)], ntfs), "overlap");
        assert!(!is_table(&[(0, 7, 64, 4033)], ntfs), "past the end");
        assert!(!is_table(&[(0, 7, 0, 4096)], ntfs), "the volume itself, for show");
    }

    #[test]
    fn a_type_without_name_is_a_row_all_the_same() {
        let disk = disk(&[(0x80, 0, 0, 4096), (0, 0xef, 64, 100)], |_| {});
        let table = table(&disk).unwrap();
        let rows: Vec<_> = table.entries.iter().map(|e| (e.slot, e.kind.as_str(), e.start, e.len)).collect();
        assert_eq!(rows, [(1, "0", 0, 2 << 20), (2, "ef", 64 * 512, 51200)]);
        assert_eq!((table.uuid, table.entries[0].uuid.as_deref()), (None, None));
    }
}
