//! AFF, the Advanced Forensic Format: known by its magic numbers, and refused by name.
//!
//! Specification: AFF 1 to 3, afflib; AFF4 Standard 1.0.
//!
//! ```text
//!   AFF3: "AFF10\r\n\0" | segments        AFF4: a ZIP whose first member or comment says so
//! ```
//!
//! Not supported: both; `affconvert` and `aff4imager` make raw images of them.

use super::{Companions, ContainerFormat, Opened, Options};
use crate::device::{BlockDevice, Device, probe_array, read_vec};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "aff", snapshots: false, probe, open };

/// A ZIP's end record, with a comment that is a URN.
const TAIL: u64 = 1024;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    Ok(version(device)?.is_some())
}

fn version(device: &dyn BlockDevice) -> Result<Option<&'static str>> {
    let Some(start) = probe_array::<8>(device, 0)? else { return Ok(None) };
    match &start {
        b"AFF10\r\n\0" => return Ok(Some("version 3 of the format (AFF)")),
        [b'P', b'K', 3, 4, ..] => {}
        _ => return Ok(None),
    }
    let len = device.size().min(TAIL);
    let size = usize::try_from(len).map_err(|_| Error::Invalid)?;
    let has = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
    let (head, tail) = (read_vec(device, 0, size)?, read_vec(device, device.size().saturating_sub(len), size)?);
    let names: [&[u8]; 2] = [b"container.description", b"information.turtle"];
    let aff4 = names.iter().any(|name| has(&head, name) || has(&tail, name)) || has(&tail, b"aff4://");
    Ok(aff4.then_some("version 4 of the format (AFF4)"))
}

fn open(file: Device, _: &dyn Companions, _: &Options) -> Result<Opened> {
    match version(file.as_ref())? {
        Some(version) => Err(Error::unsupported(FORMAT.name, version)),
        None => Err(Error::corrupt(FORMAT.name, "header", 0)),
    }
}
