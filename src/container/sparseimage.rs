//! Sparse disk images of Mac OS (`.sparseimage`): the disk in bands, in the order of their writing.
//!
//! Specification: none by Apple; the layout is described in libmodi, "Mac OS disk image types".
//!
//! ```text
//!   header, 4,096 bytes: "sprs" ... numbers of bands from byte 64 | band | band | ...
//!                        the n-th number says which band of the disk is stored n-th, from 1; 0: none
//! ```
//!
//! Supported: one header (1,008 bands). Not supported: images with further headers, encryption.

use std::sync::Arc;

use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::device::mapped::{Mapped, RunList};
use crate::device::{BlockDevice, Device, probe_array, read_array};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "sparseimage", snapshots: false, probe, open };

const HEADER: usize = 4096;
const FIRST_NUMBER: usize = 64;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    Ok(probe_array::<8>(device, 0)? == Some(*b"sprs\0\0\0\x03"))
}

fn open(file: Device, _: &dyn Companions, options: &Options) -> Result<Opened> {
    let bytes = read_array::<HEADER>(file.as_ref(), 0)?;
    let record = Record::new(FORMAT.name, "header", 0, &bytes);
    if record.bytes(0, 4)? != b"sprs" {
        return Err(record.corrupt_field("signature"));
    }
    let band = u64::from(record.be32(8)?).saturating_mul(512);
    let size = u64::from(record.be32(16)?).saturating_mul(512);
    if band == 0 || size == 0 {
        return Err(record.corrupt_field("sizes"));
    }
    if record.be64(20)? != 0 {
        return Err(Error::unsupported(FORMAT.name, "an image with more than one header"));
    }
    let mut stored = Vec::new();
    for (index, number) in record.tail(FIRST_NUMBER)?.as_chunks::<4>().0.iter().enumerate() {
        let Some(number) = u64::from(u32::from_be_bytes(*number)).checked_sub(1) else { continue };
        let place = (index as u64).checked_mul(band).and_then(|at| at.checked_add(HEADER as u64));
        let start = number.checked_mul(band).filter(|&start| start < size);
        let (Some(at), Some(start)) = (place, start) else { return Err(record.corrupt_field("band")) };
        let len = band.min(size.saturating_sub(start));
        if at.checked_add(len).is_none_or(|end| end > file.size()) {
            return Err(Error::corrupt(FORMAT.name, "band (the file may be cut off)", at));
        }
        stored.push((start, at, len));
    }
    stored.sort_unstable();
    let mut runs = RunList::new(size);
    for (start, at, len) in &stored {
        if !runs.push(*start, *at, *len) {
            return Err(record.corrupt_field("a band that is there twice"));
        }
    }
    let disk = Arc::new(Mapped::new(Arc::new(runs), file.clone(), None, 512, options.cache_size));
    let mut opened = Opened::new(FORMAT.name, disk);
    opened.add("virtual size", format!("{size} bytes"));
    opened.add("bands", format!("{} of {} stored, {band} bytes each", stored.len(), size.div_ceil(band)));
    Ok(opened)
}
