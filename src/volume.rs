//! Partition tables: the named ranges of a disk.
//!
//! A decoder only reports [`Entry`] rows as they are stored; [`scan`] compares every border with
//! the disk, once, and what comes out as a [`Volume`] can be read without a further check.

pub mod apm;
pub mod gpt;
pub mod mbr;

use std::sync::Arc;

use crate::bytes::Evidence;
use crate::device::window::Window;
use crate::device::{BlockDevice, Device};
use crate::error::{Error, Result};

/// A row of a partition table, unchecked.
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

/// A partition table as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// The rows, in the order of their slots.
    pub entries: Vec<Entry>,
    /// Identifier of the disk.
    pub uuid: Option<String>,
    /// Where the table was recognised.
    pub evidence: Vec<Evidence>,
    /// What an examiner should know: a backup header used, a chain that ended early.
    pub notes: Vec<String>,
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

/// In probe order. GPT before MBR: a GPT disk carries a protective MBR. APM before MBR: hybrid
/// discs have both, and the MBR of such a disc covers the whole disc and not its parts.
pub const SYSTEMS: &[VolumeSystem] = &[gpt::SYSTEM, apm::SYSTEM, mbr::SYSTEM];

/// Reads the disk's partition table; `None` when it has none.
pub fn scan(disk: &Device) -> Result<Option<Scan>> {
    for system in SYSTEMS {
        if !(system.probe)(disk.as_ref())? {
            continue;
        }
        let mut table = (system.table)(disk)?;
        let mut volumes = Vec::new();
        for entry in &table.entries {
            let there = disk.size().saturating_sub(entry.start);
            if entry.len == 0 || there == 0 {
                table.notes.push(format!(
                    "row {} (byte {}, {} bytes) does not lie on the disk",
                    entry.slot, entry.start, entry.len
                ));
                continue;
            }
            let clipped = entry.len > there;
            if clipped {
                table.notes.push(format!(
                    "row {} runs {} bytes past the end of the disk",
                    entry.slot,
                    entry.len.saturating_sub(there)
                ));
            }
            let device = Arc::new(Window::new(disk.clone(), entry.start, entry.len.min(there))?);
            volumes.push(Volume { entry: entry.clone(), device, clipped });
        }
        return Ok(Some(Scan { system: system.name, table, volumes }));
    }
    Ok(None)
}

/// Start and length in bytes of a run of sectors.
fn byte_range(first_lba: u64, sectors: u64, sector_size: u32, corrupt: impl Fn() -> Error) -> Result<(u64, u64)> {
    let unit = u64::from(sector_size);
    first_lba.checked_mul(unit).zip(sectors.checked_mul(unit)).ok_or_else(corrupt)
}
