//! Placeholder.
use super::{Table, VolumeSystem};
use crate::device::{BlockDevice, Device};
use crate::error::{Error, Result};

/// The table's row.
pub const SYSTEM: VolumeSystem = VolumeSystem { name: "mbr", probe, table };

fn probe(_device: &dyn BlockDevice) -> Result<bool> {
    Ok(false)
}

fn table(_device: &Device) -> Result<Table> {
    Err(Error::Invalid)
}
