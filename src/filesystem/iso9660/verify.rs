//! The digest that publishers of installation discs leave in the disc itself (`implantisomd5`).
//!
//! ```text
//!   primary volume descriptor, application use, 512 bytes:
//!   ISO MD5SUM = 0123...;SKIPSECTORS = 15;RHLISOSTATUS=0;FRAGMENT SUMS = ...;FRAGMENT COUNT = 20; ...
//! ```
//!
//! The MD5 is of the volume up to its last SKIPSECTORS sectors, with this field filled with spaces.

use std::sync::Arc;

use super::descriptor::VolumeDescriptor;
use crate::check::Check;
use crate::device::concat::Concat;
use crate::device::memory::Memory;
use crate::device::window::Window;
use crate::device::{Device, read_array};
use crate::digest::{Algorithm, unhex};
use crate::error::{Error, Result};

/// Where the field is in the descriptor, and how long.
const APPLICATION_USE: u64 = 883;
const LEN: usize = 512;
const SECTOR: u64 = 2048;

/// The check of the digest, where there is one.
pub(super) fn checks(device: &Device, primary: &VolumeDescriptor, volume_size: u64) -> Vec<Check> {
    implanted(device, primary, volume_size).unwrap_or(None).into_iter().collect()
}

fn implanted(device: &Device, primary: &VolumeDescriptor, volume_size: u64) -> Result<Option<Check>> {
    let at = primary.at.saturating_add(APPLICATION_USE);
    let field: [u8; LEN] = read_array(device.as_ref(), at)?;
    let text = String::from_utf8_lossy(&field);
    let value = |name: &str| {
        let (_, rest) = text.split_once(name)?;
        rest.split(';').next().map(|value| value.trim_start_matches([' ', '=']).trim())
    };
    let Some(stored) = value("ISO MD5SUM").and_then(unhex).filter(|sum| sum.len() == Algorithm::Md5.size()) else {
        return Ok(None);
    };
    let skipped: u64 = value("SKIPSECTORS").and_then(|value| value.parse().ok()).unwrap_or(0);
    let end = volume_size.saturating_sub(skipped.saturating_mul(SECTOR));
    let after = at.saturating_add(LEN as u64);
    let rest = end.checked_sub(after).ok_or(Error::Invalid)?;
    let place = format!("byte {at}");
    let whole: Result<Device> = (|| {
        let parts: Vec<Device> = vec![
            Arc::new(Window::new(device.clone(), 0, at)?),
            Arc::new(Memory::new(vec![b' '; LEN], 512)),
            Arc::new(Window::new(device.clone(), after, rest)?),
        ];
        Ok(Arc::new(Concat::new(parts, 512)?) as Device)
    })();
    Ok(Some(match whole {
        Ok(whole) => Check::digest("implanted MD5 of the disc", place, (Algorithm::Md5, &stored), whole),
        Err(error) => Check::known("implanted MD5 of the disc", place, Some(error.to_string())),
    }))
}
