//! The GUID partition table: a checksummed header in sector 1 and an array of entries behind it, and
//! a second copy of both at the end of the disk. Sector 0 holds an MBR whose one row keeps older
//! systems away.
//!
//! Specification: UEFI 2.10, chapter 5, "GUID Partition Table (GPT) Disk Layout".
//!
//! ```text
//!   sector 0    1       2 ...            first usable     last usable            last
//!   | MBR EE | header | entries        | volumes ...    | entries     | header |
//!              |  \_ array, its CRC _/                    \_ array _/    |
//!              +-------------------- alternate ------------------------->+
//! ```
//!
//! Supported: both copies, each with both CRCs; the better one is read, and whatever is wrong with
//! either is said. Sectors of 512 to 4,096 bytes in any image, as the image of a 4,096-byte disk is
//! a plain file. A GPT whose MBR has no protective row, unless that MBR divides the disk by itself: then
//! the GPT is what an older use of the disk left behind.
//! Not supported: the attributes of an entry are not shown.

use super::{Entry, Table, VolumeSystem, byte_range, mbr, note};
use crate::bytes::{Evidence, Record};
use crate::check::Known;
use crate::device::{BlockDevice, Device, check_range, probe_array, read_vec};
use crate::error::{Error, Result};
use crate::text;

/// The table's row.
pub const SYSTEM: VolumeSystem = VolumeSystem { name: "gpt", probe, table };

const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Tools make 128 entries of 128 bytes; sgdisk allows some thousand.
const MAX_ENTRIES: u32 = 16_384;
const MAX_ENTRY_LEN: u32 = 4096;
const MAX_ARRAY: u64 = 4 << 20;
/// Sector sizes that a disk may have had, the commonest first.
const SECTOR_SIZES: [u32; 4] = [512, 4096, 2048, 1024];
/// Where the boot sectors and superblocks of file systems on a whole disk are; the last is that of btrfs.
const BLANK: usize = 68 << 10;

fn probe(device: &dyn BlockDevice) -> Result<bool> {
    Ok(Disk::find(device)?.is_some())
}

fn table(device: &Device) -> Result<Table> {
    let disk = Disk::find(device.as_ref())?.ok_or(Error::corrupt("gpt", "header", 0))?;
    let mut table = Table { sector_size: disk.sector_size, ..Table::default() };
    table.notes.extend(disk.notes.iter().cloned());
    let (copy, name) = match (&disk.primary, &disk.backup) {
        (Some(primary), Some(backup)) if primary.trust() < backup.trust() => (backup, "backup"),
        (None, Some(backup)) => (backup, "backup"),
        (Some(primary), _) => (primary, "primary"),
        (None, None) => return Err(Error::corrupt("gpt", "header", disk.sector_size.into())),
    };
    let Some(array) = copy.array.as_ref().filter(|_| copy.trust() > Trust::None) else {
        return Err(Error::corrupt("gpt", "header and entry array of both copies", copy.at));
    };
    for note_text in disk.findings(copy, name) {
        note(&mut table.notes, note_text);
    }
    table.checks = disk.checks();
    table.uuid = Some(text::guid(copy.header.disk_guid));
    table.evidence.push(Evidence { offset: copy.at, bytes: SIGNATURE.to_vec(), what: "header signature" });
    let size = usize::try_from(copy.header.entry_size).map_err(|_| Error::Invalid)?;
    for (slot, bytes) in (1..).zip(array.chunks_exact(size)) {
        if let Some(entry) = entry(bytes, slot, &copy.header, disk.sector_size, &mut table.notes)? {
            table.entries.push(entry);
        }
    }
    Ok(table)
}

/// One row; `None` when it is not used, or says nothing that can be a range.
fn entry(bytes: &[u8], slot: u32, header: &Header, unit: u32, notes: &mut Vec<String>) -> Result<Option<Entry>> {
    let record = Record::new("gpt", "entry", 0, bytes);
    let kind: [u8; 16] = record.array(0)?;
    if kind == [0; 16] {
        return Ok(None);
    }
    let (first, last) = (record.le64(32)?, record.le64(40)?);
    let count = last.checked_sub(first).and_then(|more| more.checked_add(1));
    let Some((start, len)) = count.and_then(|count| byte_range(first, count, unit)) else {
        note(notes, format!("row {slot} (sectors {first} to {last}) is not a range"));
        return Ok(None);
    };
    if first < header.first_usable || last > header.last_usable {
        note(notes, format!("row {slot} lies outside the usable sectors"));
    }
    let units = record.bytes(56, 72)?.as_chunks::<2>().0.iter().map(|&unit| u16::from_le_bytes(unit));
    let label = text::utf16_to_bytes(units.take_while(|&unit| unit != 0));
    Ok(Some(Entry {
        slot,
        start,
        len,
        kind: text::guid(kind),
        label: (!label.is_empty()).then(|| String::from_utf8_lossy(&label).into_owned()),
        uuid: Some(text::guid(record.array(16)?)),
        structural: false,
    }))
}

/// What was found of a GPT at one sector size.
struct Disk {
    sector_size: u32,
    last_lba: u64,
    primary: Option<Copy>,
    backup: Option<Copy>,
    /// About the MBR, and about sectors that cannot be read.
    notes: Vec<String>,
}

impl Disk {
    /// The GPT at the sector size at which there is most of one.
    fn find(device: &dyn BlockDevice) -> Result<Option<Self>> {
        let mut notes = Vec::new();
        let mbr = match mbr::Record::find(device) {
            Ok(mbr) => mbr,
            Err(error) => {
                note(&mut notes, format!("the protective MBR cannot be read: {error}"));
                None
            }
        };
        let protective = mbr.as_ref().is_some_and(mbr::Record::is_protective);
        let divides = mbr.as_ref().is_some_and(mbr::Record::divides);
        if divides && !protective {
            return Ok(None);
        }
        if divides {
            note(&mut notes, "the MBR is a hybrid: it has rows of its own, which are not shown".to_owned());
        }
        if !protective {
            note(&mut notes, "there is no protective MBR".to_owned());
        }
        let protected_end = mbr.as_ref().and_then(mbr::Record::protected_end);
        let mut best: Option<Self> = None;
        let own = Some(device.sector_size()).filter(|own| matches!(own, 512..=4096));
        let others = SECTOR_SIZES.into_iter().filter(|&other| Some(other) != own);
        for sector_size in own.into_iter().chain(others) {
            let disk = Self::at_sector_size(device, sector_size, protected_end, notes.clone());
            if best.as_ref().is_none_or(|best| best.trust() < disk.trust()) {
                best = Some(disk);
            }
        }
        let Some(best) = best else { return Ok(None) };
        let found = match (&best.primary, &best.backup) {
            (None, None) => false,
            (Some(primary), None) => protective || primary.trust() > Trust::None,
            (Some(_), Some(_)) => protective || best.trust() > Trust::None,
            // A header at the end alone is what is left when a disk is given to a file system as a
            // whole. It counts where the MBR says so, or where nothing else can have been written.
            (None, Some(backup)) => protective || (backup.trust() == Trust::Full && starts_blank(device)),
        };
        Ok(found.then_some(best))
    }

    fn at_sector_size(device: &dyn BlockDevice, unit: u32, protected_end: Option<u64>, mut notes: Vec<String>) -> Self {
        let last_lba = device.size().checked_div(unit.into()).unwrap_or(0).saturating_sub(1);
        let primary = Copy::read(device, 1, unit, &mut notes);
        let alternate =
            primary.as_ref().filter(|copy| copy.header_fault.is_none()).map(|copy| copy.header.alternate_lba);
        let mut backup: Option<Copy> = None;
        for lba in [alternate, Some(last_lba), protected_end].into_iter().flatten().filter(|&lba| lba > 1) {
            let copy = Copy::read(device, lba, unit, &mut notes);
            if backup.as_ref().map_or(Trust::None, Copy::trust) < copy.as_ref().map_or(Trust::None, Copy::trust) {
                backup = copy;
            } else {
                backup = backup.or(copy);
            }
        }
        Self { sector_size: unit, last_lba, primary, backup, notes }
    }

    fn trust(&self) -> Trust {
        let copies = [&self.primary, &self.backup];
        copies.into_iter().flatten().map(Copy::trust).max().unwrap_or(Trust::None)
    }

    /// The checksums of both copies: of the header, and of the array.
    fn checks(&self) -> Vec<Known> {
        let mut checks = Vec::new();
        for (name, copy) in [("primary", &self.primary), ("backup", &self.backup)] {
            let Some(copy) = copy else {
                let fault = Some("it is not there".to_owned());
                checks.push(Known { what: format!("{name} header CRC"), place: "-".to_owned(), fault });
                continue;
            };
            let place = |at: u64| format!("byte {at}");
            let fault = copy.header_fault.map(str::to_owned);
            checks.push(Known { what: format!("{name} header CRC"), place: place(copy.at), fault });
            let array_at = copy.header.array_lba.saturating_mul(self.sector_size.into());
            let fault = copy.array_fault.clone();
            checks.push(Known { what: format!("{name} entry array CRC"), place: place(array_at), fault });
        }
        checks
    }

    /// What is wrong with the two copies, and which one is read.
    fn findings(&self, used: &Copy, name: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (name, copy) in [("primary", &self.primary), ("backup", &self.backup)] {
            match copy {
                None => found.push(format!("there is no {name} header")),
                Some(copy) => found.extend(copy.faults().map(|fault| format!("{name} copy: {fault}"))),
            }
        }
        if let (Some(primary), Some(backup)) = (&self.primary, &self.backup)
            && primary.trust() == Trust::Full
            && backup.trust() == Trust::Full
            && !primary.says_the_same(backup)
        {
            found.push("the primary and the backup copy differ".to_owned());
        }
        if let Some(backup) = self.backup.as_ref().filter(|backup| backup.header.my_lba != self.last_lba) {
            let (at, last) = (backup.header.my_lba, self.last_lba);
            found.push(format!("the backup header is in sector {at}, the disk's last one is {last}"));
        }
        if !found.is_empty() {
            found.push(format!("the {name} copy is read, header at byte {}", used.at));
        }
        found
    }
}

/// How much of a copy its checksums vouch for. In the order of preference: the CRC of the array lies in
/// the header, so that a good array vouches for the fields that say where it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trust {
    None,
    Header,
    Array,
    Full,
}

/// One of the two copies: a header with the right signature, and the array it leads to.
struct Copy {
    /// Byte position of the header.
    at: u64,
    header: Header,
    header_fault: Option<&'static str>,
    array: Option<Vec<u8>>,
    array_fault: Option<String>,
}

impl Copy {
    /// `None` when there is nothing that could be a header.
    fn read(device: &dyn BlockDevice, lba: u64, sector_size: u32, notes: &mut Vec<String>) -> Option<Self> {
        let at = lba.checked_mul(sector_size.into())?;
        let len = usize::try_from(sector_size).ok()?;
        check_range(len, at, device.size()).ok()?;
        let bytes = read_vec(device, at, len)
            .inspect_err(|error| note(notes, format!("the header at byte {at} cannot be read: {error}")))
            .ok()?;
        let record = Record::new("gpt", "header", at, &bytes);
        if record.bytes(0, 8).ok()? != SIGNATURE {
            return None;
        }
        let header = Header::parse(record).ok()?;
        let header_fault = header.fault(record, lba);
        let (array, array_fault) = match header.array(device, sector_size) {
            Ok(array) if crc32fast::hash(&array) == header.array_crc => (Some(array), None),
            Ok(array) => (Some(array), Some("the CRC of the entry array is wrong".to_owned())),
            Err(error) => (None, Some(format!("the entry array cannot be read: {error}"))),
        };
        Some(Self { at, header, header_fault, array, array_fault })
    }

    fn trust(&self) -> Trust {
        match (self.header_fault.is_none(), self.array_fault.is_none()) {
            (true, true) => Trust::Full,
            (false, true) => Trust::Array,
            (true, false) if self.array.is_some() => Trust::Header,
            _ => Trust::None,
        }
    }

    fn faults(&self) -> impl Iterator<Item = &str> {
        self.header_fault.into_iter().chain(self.array_fault.as_deref())
    }

    fn says_the_same(&self, other: &Self) -> bool {
        let fields = |header: &Header| (header.disk_guid, header.first_usable, header.last_usable, header.entry_size);
        fields(&self.header) == fields(&other.header) && self.array == other.array
    }
}

/// The header's fields; names as in UEFI, table 5.5.
struct Header {
    header_size: u32,
    header_crc: u32,
    my_lba: u64,
    alternate_lba: u64,
    first_usable: u64,
    last_usable: u64,
    disk_guid: [u8; 16],
    array_lba: u64,
    entry_count: u32,
    entry_size: u32,
    array_crc: u32,
}

impl Header {
    const MIN_LEN: usize = 92;

    fn parse(record: Record<'_>) -> Result<Self> {
        Ok(Self {
            header_size: record.le32(12)?,
            header_crc: record.le32(16)?,
            my_lba: record.le64(24)?,
            alternate_lba: record.le64(32)?,
            first_usable: record.le64(40)?,
            last_usable: record.le64(48)?,
            disk_guid: record.array(56)?,
            array_lba: record.le64(72)?,
            entry_count: record.le32(80)?,
            entry_size: record.le32(84)?,
            array_crc: record.le32(88)?,
        })
    }

    /// Why the header is not to be believed.
    fn fault(&self, record: Record<'_>, lba: u64) -> Option<&'static str> {
        let len = usize::try_from(self.header_size).unwrap_or(usize::MAX);
        let Some(bytes) = record.as_bytes().get(..len).filter(|_| len >= Self::MIN_LEN) else {
            return Some("the size of the header is wrong");
        };
        let (before, crc_and_after) = bytes.split_at_checked(16)?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(before);
        crc.update(&[0; 4]);
        crc.update(crc_and_after.get(4..)?);
        if crc.finalize() != self.header_crc {
            return Some("the CRC of the header is wrong");
        }
        (self.my_lba != lba).then_some("the header was written for another sector")
    }

    /// The entries' bytes.
    fn array(&self, device: &dyn BlockDevice, sector_size: u32) -> Result<Vec<u8>> {
        let corrupt = || Error::corrupt("gpt", "header (entry array)", self.my_lba.saturating_mul(sector_size.into()));
        let len = u64::from(self.entry_count).saturating_mul(self.entry_size.into());
        let sane = (128..=MAX_ENTRY_LEN).contains(&self.entry_size) && (1..=MAX_ENTRIES).contains(&self.entry_count);
        if !sane || len > MAX_ARRAY || self.array_lba == 0 {
            return Err(corrupt());
        }
        let at = self.array_lba.checked_mul(sector_size.into()).ok_or_else(corrupt)?;
        read_vec(device, at, usize::try_from(len).map_err(|_| corrupt())?)
    }
}

/// Whether the start of the disk is all zeros, or cannot be read.
fn starts_blank(device: &dyn BlockDevice) -> bool {
    let blank = |at: usize| match probe_array::<512>(device, at as u64) {
        Ok(Some(sector)) => sector == [0; 512],
        Ok(None) => true,
        Err(_) => true,
    };
    (0..BLANK).step_by(512).all(blank)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::Memory;
    use std::sync::Arc;

    /// A disk of 1 MiB with a primary copy of four rows, changed before it is given its checksums.
    fn disk(change: impl FnOnce(&mut [u8])) -> Device {
        let mut bytes = vec![0; 1 << 20];
        bytes[512..520].copy_from_slice(SIGNATURE);
        let mut put =
            |at: usize, value: u64, len: usize| bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        put(512 + 12, 92, 4);
        put(512 + 24, 1, 8);
        put(512 + 32, 2047, 8);
        put(512 + 40, 34, 8);
        put(512 + 48, 2014, 8);
        put(512 + 72, 2, 8);
        put(512 + 80, 4, 4);
        put(512 + 84, 128, 4);
        for row in 0..4u64 {
            let at = 1024 + row as usize * 128;
            put(at, row + 1, 8);
            put(at + 32, 100 * (row + 1), 8);
            put(at + 40, 100 * (row + 1) + 9, 8);
        }
        change(&mut bytes);
        let array = crc32fast::hash(&bytes[1024..1536]);
        bytes[512 + 88..512 + 92].copy_from_slice(&array.to_le_bytes());
        let header = crc32fast::hash(&bytes[512..604]);
        bytes[512 + 16..512 + 20].copy_from_slice(&header.to_le_bytes());
        Arc::new(Memory::new(bytes, 512))
    }

    #[test]
    fn an_array_that_is_too_large_or_nowhere_is_corrupt() {
        let fields: [(usize, u32); 5] = [(80, u32::MAX), (80, 0), (84, 64), (84, u32::MAX), (72, u32::MAX)];
        for (field, value) in fields {
            let disk = disk(|bytes| bytes[512 + field..516 + field].copy_from_slice(&value.to_le_bytes()));
            // Nothing says that this is a GPT but a header that leads nowhere: no array, no table.
            assert!(!probe(disk.as_ref()).unwrap(), "field {field}: {value}");
        }
        assert!(probe(disk(|_| {}).as_ref()).unwrap());
    }

    #[test]
    fn a_row_that_ends_before_it_starts_is_said_and_the_others_are_shown() {
        let disk = disk(|bytes| {
            bytes[1024 + 40] = 99;
            bytes[1024 + 128 + 32..1024 + 128 + 40].fill(0);
            bytes[1024 + 256 + 40..1024 + 256 + 48].fill(0xff);
            bytes[1024 + 384 + 56..1024 + 384 + 58].copy_from_slice(&[0x3d, 0xd8]);
        });
        let table = table(&disk).unwrap();
        let rows: Vec<_> = table.entries.iter().map(|e| (e.slot, e.start, e.len)).collect();
        assert_eq!(rows, [(2, 0, 210 * 512), (4, 400 * 512, 10 * 512)]);
        assert!(table.notes.iter().any(|note| note == "row 1 (sectors 100 to 99) is not a range"));
        assert!(table.notes.iter().any(|note| note == "row 2 lies outside the usable sectors"));
        assert_eq!(table.entries[1].label.as_deref(), Some("\u{fffd}\u{fffd}\u{fffd}"));
    }
}
