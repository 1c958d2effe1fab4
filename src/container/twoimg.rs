//! 2IMG, of emulators of the Apple II: a header before the sectors of a disk.
//!
//! Specification: "2IMG Disk Image Format" (A. Weyhrich and others, 1997).
//!
//! ```text
//!   header (64): "2IMG", creator, order of sectors, place and length of the data | sectors | [comment]
//! ```
//!
//! Supported: DOS order and ProDOS order, shown as they are stored.
//! Not supported: nibbles (the order of raw tracks).

use std::sync::Arc;

use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::device::window::Window;
use crate::device::{BlockDevice, Device, probe_array, read_array};
use crate::error::{Error, Result};
use crate::text::printable;

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "2img", snapshots: false, probe, open };

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    Ok(probe_array::<4>(device, 0)?.as_ref() == Some(b"2IMG"))
}

fn open(file: Device, _: &dyn Companions, _: &Options) -> Result<Opened> {
    let bytes = read_array::<64>(file.as_ref(), 0)?;
    let record = Record::new(FORMAT.name, "header", 0, &bytes);
    let order = match record.le32(12)? {
        0 => "DOS 3.3",
        1 => "ProDOS",
        2 => return Err(Error::unsupported(FORMAT.name, "nibbles")),
        _ => return Err(record.corrupt_field("image format")),
    };
    let at = u64::from(record.le32(24)?);
    // Some writers leave the length out, and count blocks alone.
    let len = match u64::from(record.le32(28)?) {
        0 => u64::from(record.le32(20)?).saturating_mul(512),
        len => len,
    };
    if at < 52 || len == 0 || at.saturating_add(len) > file.size() {
        return Err(record.corrupt_field("place of the data"));
    }
    let mut opened = Opened::new(FORMAT.name, Arc::new(Window::new(file.clone(), at, len)?));
    opened.add("virtual size", format!("{len} bytes"));
    opened.add("creator", printable(record.bytes(4, 4)?));
    opened.add("order of sectors", order);
    Ok(opened)
}
