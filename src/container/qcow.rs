//! QCOW version 1, the predecessor of QCOW2: two levels of tables, zlib clusters, a backing file.
//!
//! Specification: none but QEMU's block/qcow.c; the header is described in Mark McLoughlin, "The
//! QCOW Image Format" (2006).
//!
//! ```text
//!   header (48 bytes) | backing file name | L1 table -> L2 tables -> clusters
//! ```
//!
//! Supported: all of it but encryption (AES), which is refused.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::qcow2::open_backing;
use super::table::{Extent, Tables, Width, clip, join};
use super::{Companions, ContainerFormat, Opened, Options, unpack};
use crate::bytes::Record;
use crate::device::mapped::{Mapped, Mapping, Place, Run};
use crate::device::{BlockDevice, Device, probe_array, read_vec};
use crate::error::{Error, Result};
use crate::text::printable;

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "qcow", snapshots: false, probe, open };

const COMPRESSED: u64 = 1 << 63;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    Ok(matches!(probe_array::<8>(device, 0)?, Some([b'Q', b'F', b'I', 0xfb, 0, 0, 0, 1])))
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let header = Header::read(file.as_ref())?;
    let backing = match &header.backing {
        Some(name) => Some((name, open_backing(name, None, companions)?)),
        None => None,
    };
    let clusters = Clusters {
        header: header.layout,
        l1_tables: Tables::new(file.clone(), Width::Be64, FORMAT.name, "L1 table"),
        l2_tables: Tables::new(file.clone(), Width::Be64, FORMAT.name, "L2 table"),
        file: file.clone(),
    };
    let parent = backing.as_ref().map(|(_, parent)| parent.disk.clone());
    let disk = Arc::new(Mapped::new(Arc::new(clusters), file, parent, 512, options.cache_size));
    let mut opened = Opened::new(FORMAT.name, disk);
    opened.add("version", 1);
    opened.add("virtual size", format!("{} bytes", header.layout.size));
    opened.add("cluster size", format!("{} bytes", header.layout.cluster_size()));
    opened.add("compression", "zlib");
    if let Some((name, parent)) = &backing {
        opened.add("backing file", printable(name));
        opened.add_parent(Path::new(OsStr::from_bytes(name)), parent);
    }
    Ok(opened)
}

struct Header {
    layout: Layout,
    backing: Option<Vec<u8>>,
}

/// Where clusters lie.
#[derive(Debug, Clone, Copy)]
struct Layout {
    size: u64,
    cluster_bits: u32,
    l2_bits: u32,
    l1_at: u64,
}

impl Layout {
    fn cluster_size(self) -> u64 {
        1u64.wrapping_shl(self.cluster_bits)
    }

    /// Bits of the disk's bytes that one L2 table maps: at most 29.
    fn l2_coverage(self) -> u64 {
        1u64.wrapping_shl(self.cluster_bits.saturating_add(self.l2_bits))
    }
}

impl Header {
    /// Field offsets as in `QCowHeader` of block/qcow.c.
    fn read(device: &dyn BlockDevice) -> Result<Self> {
        let bytes = read_vec(device, 0, 48)?;
        let record = Record::new(FORMAT.name, "header", 0, &bytes);
        if record.be64(0)? != 0x5146_49fb_0000_0001 {
            return Err(record.corrupt_field("magic number"));
        }
        let (cluster_bits, l2_bits) = (u32::from(record.u8(32)?), u32::from(record.u8(33)?));
        if !(9..=16).contains(&cluster_bits) || !(6..=13).contains(&l2_bits) {
            return Err(record.corrupt_field("cluster_bits, l2_bits"));
        }
        match record.be32(36)? {
            0 => {}
            1 => return Err(Error::unsupported(FORMAT.name, "AES encryption")),
            other => return Err(Error::unsupported(FORMAT.name, format!("encryption method {other}"))),
        }
        let layout = Layout { size: record.be64(24)?, cluster_bits, l2_bits, l1_at: record.be64(40)? };
        let l1_len = layout.size.div_ceil(layout.l2_coverage().max(1)).checked_mul(8);
        let l1_end = l1_len.and_then(|len| layout.l1_at.checked_add(len));
        if l1_end.is_none_or(|end| end > device.size()) {
            return Err(record.corrupt_field("size, l1_table_offset"));
        }
        let (name_at, name_len) = (record.be64(8)?, record.be32(16)?);
        let backing = if name_at == 0 || name_len == 0 {
            None
        } else if name_len > 1023 || name_at.checked_add(name_len.into()).is_none_or(|end| end > device.size()) {
            return Err(record.corrupt_field("backing file name"));
        } else {
            Some(read_vec(device, name_at, usize::try_from(name_len).map_err(|_| Error::Invalid)?)?)
        };
        Ok(Self { layout, backing })
    }
}

struct Clusters {
    header: Layout,
    l1_tables: Tables,
    l2_tables: Tables,
    file: Device,
}

impl Mapping for Clusters {
    fn size(&self) -> u64 {
        self.header.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let (coverage, cluster_size) = (self.header.l2_coverage().max(1), self.header.cluster_size().max(1));
        let l1 = Extent { at: self.header.l1_at, count: self.header.size.div_ceil(coverage) };
        let entries = self.l1_tables.entries(l1, offset.checked_div(coverage).unwrap_or(0))?;
        let within = offset.checked_rem(coverage).unwrap_or(0);
        if entries.first() == 0 {
            let absent = entries.rest().iter().take_while(|&&entry| entry == 0);
            return join(coverage, within, absent.map(|_| Ok(Place::Parent)));
        }
        let l2 = Extent { at: entries.first(), count: 1u64.wrapping_shl(self.header.l2_bits) };
        let entries = self.l2_tables.entries(l2, within.checked_div(cluster_size).unwrap_or(0))?;
        let places = entries.rest().iter().map(|&entry| self.place(entry));
        Ok(clip(join(cluster_size, within.checked_rem(cluster_size).unwrap_or(0), places)?, self.file.size()))
    }

    fn unpack(&self, unit: u64) -> Result<Vec<u8>> {
        let bits = 63u32.saturating_sub(self.header.cluster_bits);
        let host = unit & 1u64.wrapping_shl(bits).wrapping_sub(1);
        let corrupt = || Error::corrupt(FORMAT.name, "compressed cluster", host);
        let size = self.header.cluster_size();
        let len = (unit.wrapping_shr(bits) & size.saturating_sub(1)).min(self.file.size().saturating_sub(host));
        let packed = read_vec(self.file.as_ref(), host, usize::try_from(len).map_err(|_| corrupt())?)?;
        unpack::inflate(&packed, false, usize::try_from(size).map_err(|_| corrupt())?).ok_or_else(corrupt)
    }
}

impl Clusters {
    fn place(&self, entry: u64) -> Result<Place> {
        if entry == 0 {
            return Ok(Place::Parent);
        }
        if entry & COMPRESSED != 0 {
            return Ok(Place::Packed { unit: entry & !COMPRESSED, within: 0 });
        }
        if entry >= self.file.size() {
            return Err(Error::corrupt(FORMAT.name, "cluster past the end of the file", entry));
        }
        Ok(Place::At(entry))
    }
}
