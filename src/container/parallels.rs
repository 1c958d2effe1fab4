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
//! The folder around such images is read by `bundle`.

mod bundle;

use std::sync::Arc;

use super::table::{Extent, Tables, Width, held, join};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::device::mapped::{Mapped, Mapping, Place, Run};
use crate::device::{BlockDevice, Device, probe_array, read_array};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "parallels", snapshots: false, probe, open };

pub(super) use self::bundle::FORMAT as BUNDLE;

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
    let image = Image::read(file)?;
    let mut opened = Opened::new(FORMAT.name, image.open(None, options));
    opened.add("version", if image.in_sectors { "2 (WithoutFreeSpace)" } else { "2 (WithouFreSpacExt)" });
    opened.add("virtual size", format!("{} bytes", image.size));
    opened.add("cluster size", format!("{} bytes", image.cluster_size));
    opened.add("geometry", format!("{} cylinders, {} heads", image.cylinders, image.heads));
    opened.notes.extend(image.note().map(str::to_owned));
    Ok(opened)
}

/// The header, checked.
struct Image {
    file: Device,
    in_sectors: bool,
    size: u64,
    cluster_size: u64,
    table: Extent,
    heads: u32,
    cylinders: u32,
    in_use: bool,
}

impl Image {
    fn read(file: Device) -> Result<Self> {
        if file.size() < HEADER {
            return Err(Error::corrupt(FORMAT.name, "header", 0));
        }
        let bytes = read_array::<64>(file.as_ref(), 0)?;
        let record = Record::new(FORMAT.name, "header", 0, &bytes);
        let magic = record.array::<16>(0)?;
        let (in_sectors, sectors) = match &magic {
            // Only the low half of the field counts in the older kind.
            IN_SECTORS => (true, u64::from(record.le32(36)?)),
            IN_CLUSTERS => (false, record.le64(36)?),
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
        Ok(Self {
            in_sectors,
            size,
            cluster_size,
            table: Extent { at: HEADER, count },
            heads: record.le32(20)?,
            cylinders: record.le32(24)?,
            in_use: record.le32(44)? == IN_USE,
            file,
        })
    }

    /// The image's disk; what it does not hold is the parent's.
    fn open(&self, parent: Option<Device>, options: &Options) -> Device {
        let clusters = Clusters {
            tables: Tables::new(self.file.clone(), Width::Le32, FORMAT.name, "BAT"),
            table: self.table,
            entry_unit: if self.in_sectors { SECTOR } else { self.cluster_size },
            data_at: self.table.count.saturating_mul(4).saturating_add(HEADER),
            cluster_size: self.cluster_size,
            file_size: self.file.size(),
            size: self.size,
        };
        Arc::new(Mapped::new(Arc::new(clusters), self.file.clone(), parent, 512, options.cache_size))
    }

    fn note(&self) -> Option<&'static str> {
        self.in_use.then_some("the image is marked as in use: it was not closed properly")
    }
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
            return Ok(Place::Parent);
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
        held(run, self.file_size, FORMAT.name, "cluster")
    }
}
