//! Parallels Desktop's expandable images (`.hds`, and `.hdd` files of older versions): clusters
//! found through one table.
//!
//! Specification: QEMU, docs/interop/parallels.txt.
//!
//! ```text
//!   header (64) | BAT: 32 bits a cluster | (optional) format extension | clusters in any order
//! ```
//!
//! Supported: both magic numbers ("WithoutFreeSpace": the table counts sectors, and
//! "WithouFreSpacExt": it counts clusters), images that were not closed properly.
//! Not supported: the parents and snapshots of a `.hdd` bundle, which its XML file describes.

use std::sync::Arc;

use super::table::{Extent, Tables, Width, clip, join};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::device::mapped::{Mapped, Mapping, Place, Run};
use crate::device::{BlockDevice, Device, probe_array, read_array};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "parallels", snapshots: false, probe, open };

const IN_SECTORS: &[u8; 16] = b"WithoutFreeSpace";
const IN_CLUSTERS: &[u8; 16] = b"WithouFreSpacExt";
const HEADER: u64 = 64;
const SECTOR: u64 = 512;
/// The "in use" mark of an image that was not closed properly.
const IN_USE: u32 = 0x746f_6e59;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    let magic = probe_array::<16>(device, 0)?;
    Ok(magic.is_some_and(|magic| &magic == IN_SECTORS || &magic == IN_CLUSTERS))
}

fn open(file: Device, _: &dyn Companions, options: &Options) -> Result<Opened> {
    let bytes = read_array::<64>(file.as_ref(), 0)?;
    let record = Record::new(FORMAT.name, "header", 0, &bytes);
    let magic = record.array::<16>(0)?;
    let sectors = match &magic {
        // Only the low half of the field counts in the older kind.
        IN_SECTORS => u64::from(record.le32(36)?),
        IN_CLUSTERS => record.le64(36)?,
        _ => return Err(record.corrupt_field("magic number")),
    };
    let version = record.le32(16)?;
    if version != 2 {
        return Err(Error::unsupported(FORMAT.name, format!("version {version}")));
    }
    let cluster_size = u64::from(record.le32(28)?).saturating_mul(SECTOR);
    let count = u64::from(record.le32(32)?);
    let size = sectors.checked_mul(SECTOR).ok_or_else(|| record.corrupt_field("nb_sectors"))?;
    let table_end = count.saturating_mul(4).saturating_add(HEADER);
    if cluster_size == 0 || count.saturating_mul(cluster_size) < size || table_end > file.size() {
        return Err(record.corrupt_field("tracks, bat_entries"));
    }
    let clusters = Clusters {
        tables: Tables::new(file.clone(), Width::Le32, FORMAT.name, "BAT"),
        table: Extent { at: HEADER, count },
        entry_unit: if &magic == IN_SECTORS { SECTOR } else { cluster_size },
        data_at: table_end,
        cluster_size,
        file_size: file.size(),
        size,
    };
    let mut opened =
        Opened::new(FORMAT.name, Arc::new(Mapped::new(Arc::new(clusters), file, None, 512, options.cache_size)));
    opened.add("version", if &magic == IN_SECTORS { "2 (WithoutFreeSpace)" } else { "2 (WithouFreSpacExt)" });
    opened.add("virtual size", format!("{size} bytes"));
    opened.add("cluster size", format!("{cluster_size} bytes"));
    let (heads, cylinders) = (record.le32(20)?, record.le32(24)?);
    opened.add("geometry", format!("{cylinders} cylinders, {heads} heads"));
    if record.le32(44)? == IN_USE {
        opened.notes.push("the image is marked as in use: it was not closed properly".to_owned());
    }
    Ok(opened)
}

/// The clusters of the disk.
struct Clusters {
    tables: Tables,
    table: Extent,
    /// Bytes that one in a table entry stands for.
    entry_unit: u64,
    /// No cluster lies before this byte.
    data_at: u64,
    cluster_size: u64,
    file_size: u64,
    size: u64,
}

impl Clusters {
    fn place(&self, entry: u64) -> Result<Place> {
        if entry == 0 {
            return Ok(Place::Hole);
        }
        let at = entry.saturating_mul(self.entry_unit);
        if at < self.data_at || at >= self.file_size {
            return Err(Error::corrupt(FORMAT.name, "cluster (in the table, or past the end of the file)", at));
        }
        Ok(Place::At(at))
    }
}

impl Mapping for Clusters {
    fn size(&self) -> u64 {
        self.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let entries = self.tables.entries(self.table, offset.checked_div(self.cluster_size).unwrap_or(0))?;
        let within = offset.checked_rem(self.cluster_size).unwrap_or(0);
        let run = join(self.cluster_size, within, entries.rest().iter().map(|&entry| self.place(entry)))?;
        Ok(clip(run, self.file_size))
    }
}
