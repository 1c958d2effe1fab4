//! The Apple Partition Map: one block per partition, from block 1 on, the map itself among them.
//! Used by Macs up to PowerPC, by their CDs, and by hybrid ISO discs.
//!
//! Specification: *Inside Macintosh: Devices*, chapter 3, "SCSI Manager". All fields are big-endian.
//!
//! ```text
//!   block 0:  "ER", block size (be16), blocks ...
//!   block n:  "PM", 4 number of entries, 8 first block, 12 blocks, 16 name (32), 48 type (32)
//! ```
//!
//! Supported: blocks of 512 to 4,096 bytes; a map without block 0.
//! Not supported: the older map of the first Macs ("TS").

use super::{Entry, Table, VolumeSystem, byte_range, mbr, note};
use crate::bytes::{Evidence, Record};
use crate::device::{BlockDevice, Device, probe_array, read_array};
use crate::error::{Error, Result};

/// The table's row.
pub const SYSTEM: VolumeSystem = VolumeSystem { name: "apm", probe, table };

const ENTRY_LEN: usize = 136;
/// Linux shows 256 rows; Apple's tools make 63 at most.
const MAX_ENTRIES: u32 = 1024;

fn probe(device: &dyn BlockDevice) -> Result<bool> {
    if mbr::Record::find(device)?.is_some_and(|record| record.divides()) {
        return Ok(false);
    }
    Ok(Map::find(device)?.is_some())
}

fn table(device: &Device) -> Result<Table> {
    let map = Map::find(device.as_ref())?.ok_or(Error::corrupt("apm", "partition map", 0))?;
    let mut table = Table::default();
    if map.has_block_zero {
        table.evidence.push(Evidence { offset: 0, bytes: b"ER".to_vec(), what: "driver descriptor record" });
    } else {
        note(&mut table.notes, "there is no driver descriptor record in block 0".to_owned());
    }
    table.evidence.push(Evidence { offset: map.block_size.into(), bytes: b"PM".to_vec(), what: "partition map entry" });
    if map.count > MAX_ENTRIES {
        note(&mut table.notes, format!("the map says {} entries: the first {MAX_ENTRIES} are read", map.count));
    }
    for slot in 1..=map.count.min(MAX_ENTRIES) {
        match map.entry(device.as_ref(), slot) {
            Ok(entry) if entry.len == 0 => {}
            Ok(entry) => table.entries.push(entry),
            Err(Error::PastEnd { .. }) => {
                note(&mut table.notes, format!("the disk ends before entry {slot} of {} in the map", map.count));
                break;
            }
            Err(error) => note(&mut table.notes, format!("row {slot} cannot be read: {error}")),
        }
    }
    Ok(table)
}

/// Where the map lies.
struct Map {
    block_size: u32,
    /// Number of entries as stored.
    count: u32,
    has_block_zero: bool,
}

impl Map {
    /// The map at the block size of block 0, else at the usual ones: CDs have been pressed whose block 0
    /// says one size and whose map was written in another.
    fn find(device: &dyn BlockDevice) -> Result<Option<Self>> {
        let Some([e, r, high, low]) = probe_array::<4>(device, 0)? else { return Ok(None) };
        let has_block_zero = [e, r] == *b"ER";
        let said = u32::from(u16::from_be_bytes([high, low]));
        let said = (has_block_zero && matches!(said, 512 | 1024 | 2048 | 4096)).then_some(said);
        for block_size in said.into_iter().chain([512, 2048]) {
            let Some(bytes) = probe_array::<ENTRY_LEN>(device, block_size.into())? else { continue };
            let entry = Record::new("apm", "partition map entry", block_size.into(), &bytes);
            let count = entry.be32(4)?;
            let describes_itself = text(entry.bytes(48, 32)?) == "Apple_partition_map";
            if entry.bytes(0, 2)? == b"PM" && count > 0 && (has_block_zero || describes_itself) {
                return Ok(Some(Self { block_size, count, has_block_zero }));
            }
        }
        Ok(None)
    }

    fn entry(&self, device: &dyn BlockDevice, slot: u32) -> Result<Entry> {
        let at = u64::from(slot).saturating_mul(self.block_size.into());
        let bytes = read_array::<ENTRY_LEN>(device, at)?;
        let entry = Record::new("apm", "partition map entry", at, &bytes);
        if entry.bytes(0, 2)? != b"PM" {
            return Err(entry.corrupt());
        }
        let (first, count) = (entry.be32(8)?.into(), entry.be32(12)?.into());
        let (start, len) = byte_range(first, count, self.block_size).ok_or_else(|| entry.corrupt())?;
        let name = text(entry.bytes(16, 32)?);
        let kind = text(entry.bytes(48, 32)?);
        let structural = matches!(kind.as_str(), "Apple_partition_map" | "Apple_Free" | "Apple_Void" | "Apple_Scratch");
        Ok(Entry { slot, start, len, kind, label: (!name.is_empty()).then_some(name), uuid: None, structural })
    }
}

/// A field that ends at its first NUL.
fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}
