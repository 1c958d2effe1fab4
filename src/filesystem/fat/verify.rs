//! What FAT keeps twice: its tables, and the boot sector of FAT32.

use std::sync::Arc;

use super::geometry::{Geometry, Width};
use crate::check::{Check, MAX_FAULTS};
use crate::device::{BlockDevice, Device, probe_array, read_array, read_vec};
use crate::error::{Error, Result};

/// Compared at a time.
const PIECE: u64 = 1 << 20;
/// The byte of FAT32's boot sector in which drivers keep a dirty flag: copies may differ in it.
const STATE: usize = 0x41;

/// All checks of a volume.
pub(super) fn checks(device: &Device, geometry: &Arc<Geometry>) -> Vec<Check> {
    let mut checks = Vec::new();
    let signature = probe_array::<2>(device.as_ref(), 510).ok().flatten();
    // Floppies of the first years have none.
    if signature == Some([0x55, 0xaa]) || geometry.state_offset.is_some() {
        let fault = (signature != Some([0x55, 0xaa])).then(|| "it is not 55 AA".to_owned());
        checks.push(Check::known("boot signature", "byte 510", fault));
    }
    if geometry.table_count > 1 && geometry.active_table.is_none() {
        let (device, geometry) = (device.clone(), geometry.clone());
        let place = format!("from byte {}", geometry.table_offset);
        let walk = Box::new(move || table_faults(device.as_ref(), &geometry));
        checks.push(Check::walk("copies of the table agree", place, walk));
    }
    if geometry.width == Width::Fat32 {
        let (device, size) = (device.clone(), u64::from(geometry.sector_size));
        let walk = Box::new(move || boot_faults(device.as_ref(), size));
        checks.push(Check::walk("copy of the boot sector agrees", "byte 0", walk));
    }
    checks
}

fn table_faults(device: &dyn BlockDevice, geometry: &Geometry) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for copy in 1..u64::from(geometry.table_count) {
        let other = geometry.table_len.saturating_mul(copy).saturating_add(geometry.table_offset);
        let mut done = 0u64;
        while done < geometry.table_len && faults.len() < MAX_FAULTS {
            let len =
                usize::try_from(geometry.table_len.saturating_sub(done).min(PIECE)).map_err(|_| Error::Invalid)?;
            let first = read_vec(device, geometry.table_offset.saturating_add(done), len)?;
            let second = read_vec(device, other.saturating_add(done), len)?;
            if let Some(at) = first.iter().zip(&second).position(|(one, two)| one != two) {
                let at = done.saturating_add(at as u64);
                let (one, two) = (geometry.table_offset.saturating_add(at), other.saturating_add(at));
                faults.push(format!("byte {one} of the first table is not byte {two} of its copy"));
                break;
            }
            done = done.saturating_add(PIECE);
        }
    }
    Ok(faults)
}

fn boot_faults(device: &dyn BlockDevice, sector_size: u64) -> Result<Vec<String>> {
    let mut first: [u8; 512] = read_array(device, 0)?;
    let sector = u16::from_le_bytes([first[0x32], first[0x33]]);
    if matches!(sector, 0 | 0xffff) {
        return Ok(Vec::new());
    }
    let at = sector_size.saturating_mul(sector.into());
    let mut second: [u8; 512] = read_array(device, at)?;
    (first[STATE], second[STATE]) = (0, 0);
    let differ = first.iter().zip(&second).position(|(one, two)| one != two);
    Ok(differ.map(|field| format!("byte {field} is another one than in the copy at byte {at}")).into_iter().collect())
}
