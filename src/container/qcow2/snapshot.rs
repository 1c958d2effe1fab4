//! The snapshot table: for each snapshot its name and an L1 table of its own.

use std::fmt;
use std::io::ErrorKind;

use super::header::Header;
use super::{FORMAT, L1};
use crate::bytes::Record;
use crate::device::{BlockDevice, read_array, read_vec};
use crate::error::{Error, Result};
use crate::text::printable;

/// QEMU's own limits.
const MAX_SNAPSHOTS: u32 = 65_536;
const MAX_TABLE: u64 = 64 << 20;

/// One internal snapshot.
pub(super) struct Snapshot {
    id: Vec<u8>,
    name: Vec<u8>,
    pub(super) l1: L1,
    /// The disk's size then, where it is recorded.
    pub(super) size: Option<u64>,
    vm_state: u64,
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", printable(&self.id), printable(&self.name))?;
        if let Some(size) = self.size {
            write!(f, " ({size} bytes)")?;
        }
        if self.vm_state > 0 {
            write!(f, " (with {} bytes of machine state)", self.vm_state)?;
        }
        Ok(())
    }
}

/// The snapshot that a user named: its identifier first, as QEMU does.
pub(super) fn find<'a>(snapshots: &'a [Snapshot], wanted: &str) -> Result<&'a Snapshot> {
    let by_id = snapshots.iter().find(|snapshot| snapshot.id == wanted.as_bytes());
    by_id.or_else(|| snapshots.iter().find(|snapshot| snapshot.name == wanted.as_bytes())).ok_or_else(|| {
        let known: Vec<String> = snapshots.iter().take(20).map(|snapshot| printable(&snapshot.name)).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let what = format!("qcow2: there is no snapshot {} (there are: {known})", printable(wanted.as_bytes()));
        Error::io(what, ErrorKind::NotFound.into())
    })
}

/// Section "Snapshots" of the specification: all of them, and the length of their table.
pub(super) fn read_all(device: &dyn BlockDevice, header: &Header) -> Result<(Vec<Snapshot>, u64)> {
    let mut at = header.snapshots_at;
    let corrupt = || Error::corrupt(FORMAT.name, "snapshot table", header.snapshots_at);
    if header.snapshots > MAX_SNAPSHOTS {
        return Err(corrupt());
    }
    let mut all = Vec::new();
    for _ in 0..header.snapshots {
        if at.saturating_sub(header.snapshots_at) > MAX_TABLE || at.saturating_add(40) > device.size() {
            return Err(corrupt());
        }
        let fixed = read_array::<40>(device, at)?;
        let record = Record::new(FORMAT.name, "snapshot table entry", at, &fixed);
        let (id_len, name_len) = (usize::from(record.be16(12)?), usize::from(record.be16(14)?));
        let extra_len = usize::try_from(record.be32(36)?).map_err(|_| corrupt())?;
        // More than the two fields known today is allowed, a table full of it is not.
        if extra_len > 1 << 16 {
            return Err(record.corrupt_field("extra data size"));
        }
        let len = extra_len.saturating_add(id_len).saturating_add(name_len);
        let rest_at = at.saturating_add(40);
        if rest_at.saturating_add(len as u64) > device.size() {
            return Err(corrupt());
        }
        let rest = read_vec(device, rest_at, len)?;
        let rest = Record::new(FORMAT.name, "snapshot table entry", rest_at, &rest);
        all.push(Snapshot {
            id: rest.bytes(extra_len, id_len)?.to_vec(),
            name: rest.bytes(extra_len.saturating_add(id_len), name_len)?.to_vec(),
            l1: L1 { at: record.be64(0)?, count: record.be32(8)?.into() },
            size: if extra_len >= 16 { Some(rest.be64(8)?) } else { None },
            vm_state: if extra_len >= 8 { rest.be64(0)? } else { record.be32(32)?.into() },
        });
        at = rest_at.saturating_add(len as u64).next_multiple_of(8);
    }
    Ok((all, at.saturating_sub(header.snapshots_at)))
}
