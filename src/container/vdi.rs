//! VDI, of VirtualBox: blocks found through one table, over an optional parent that is known by its
//! identifier alone.
//!
//! Specification: none; VirtualBox, src/VBox/Storage/VDICore.h.
//!
//! ```text
//!   header (512) | block map: 32 bits a block | block 0 | block 1 | ...   in any order
//! ```
//!
//! Supported: dynamic, fixed and differencing images of version 1.1.
//! Not supported: version 0.1, undo images.

use std::sync::Arc;

use super::parent::{Family, Identity, Parent};
use super::table::{Extent, Tables, Width, held, join};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::device::mapped::{Mapped, Mapping, Place, Run};
use crate::device::{BlockDevice, Device, probe_array, read_array};
use crate::error::{Error, Result};
use crate::text::{guid, printable, trim_padding};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "vdi", snapshots: false, probe, open };

const SIGNATURE: [u8; 4] = 0xbeda_107f_u32.to_le_bytes();
/// A block that is not there: the parent's, or zeros.
const ABSENT: u64 = 0xffff_ffff;
/// A block of zeros.
const ZERO: u64 = 0xffff_fffe;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    Ok(probe_array::<4>(device, 64)? == Some(SIGNATURE))
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let header = Header::read(file.as_ref())?;
    let parent = match header.kind {
        Kind::Differencing => Some(FAMILY.open(header.parent, companions)?),
        Kind::Dynamic | Kind::Fixed => None,
    };
    let blocks = Blocks {
        tables: Tables::new(file.clone(), Width::Le32, FORMAT.name, "block map"),
        table: Extent { at: header.map_at, count: header.blocks },
        file_size: file.size(),
        data_at: header.data_at,
        block_size: header.block_size,
        block_extra: header.block_extra,
        size: header.size,
    };
    let below = parent.as_ref().map(|parent| parent.opened.disk.clone());
    let disk = Arc::new(Mapped::new(Arc::new(blocks), file, below, 512, options.cache_size));
    let mut opened = Opened::new(FORMAT.name, disk);
    opened.add("type", header.kind.name());
    opened.add("version", "1.1");
    opened.add("virtual size", format!("{} bytes", header.size));
    opened.add("block size", format!("{} bytes", header.block_size));
    opened.add("allocated blocks", format!("{} of {}", header.allocated, header.blocks));
    opened.add("creator", printable(trim_padding(&header.creator).trim_ascii()));
    if !header.comment.is_empty() {
        opened.add("comment", printable(&header.comment));
    }
    opened.add("UUID", guid(header.uuid));
    if let Some(Parent { name, opened: parent, note }) = parent {
        opened.add("parent UUID", guid(header.parent.uuid));
        opened.add_parent(&name, &parent);
        opened.notes.extend(note);
    }
    Ok(opened)
}

/// The child names its parent by identifier only.
const FAMILY: Family = Family { format: FORMAT.name, shown: "VDI", identify, print: guid };

fn identify(device: &Device) -> Result<Identity> {
    Header::read(device.as_ref()).map(|header| Identity { uuid: header.uuid, modified: header.modified })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dynamic,
    Fixed,
    Differencing,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Dynamic => "dynamic",
            Self::Fixed => "fixed",
            Self::Differencing => "differencing",
        }
    }
}

/// `VDIPREHEADER` and `VDIHEADER1PLUS` of VDICore.h.
struct Header {
    kind: Kind,
    creator: [u8; 64],
    comment: Vec<u8>,
    map_at: u64,
    data_at: u64,
    size: u64,
    block_size: u64,
    block_extra: u64,
    blocks: u64,
    allocated: u32,
    uuid: [u8; 16],
    /// Another one after each time that the image was written to.
    modified: [u8; 16],
    /// What the parent was when the child was made.
    parent: Identity,
}

impl Header {
    fn read(device: &dyn BlockDevice) -> Result<Self> {
        let bytes = read_array::<512>(device, 0)?;
        let record = Record::new(FORMAT.name, "header", 0, &bytes);
        if record.array(64)? != SIGNATURE {
            return Err(record.corrupt_field("signature"));
        }
        let (minor, major) = (record.le16(68)?, record.le16(70)?);
        if (major, minor) != (1, 1) {
            return Err(Error::unsupported(FORMAT.name, format!("version {major}.{minor}")));
        }
        let kind = match record.le32(76)? {
            1 => Kind::Dynamic,
            2 => Kind::Fixed,
            3 => return Err(Error::unsupported(FORMAT.name, "an undo image")),
            4 => Kind::Differencing,
            _ => return Err(record.corrupt_field("image type")),
        };
        let (size, block_size, blocks) = (record.le64(368)?, record.le32(376)?, record.le32(384)?);
        let (map_at, data_at) = (record.le32(340)?, record.le32(344)?);
        let map_end = u64::from(blocks).saturating_mul(4).saturating_add(map_at.into());
        if !block_size.is_power_of_two() || block_size < 512 {
            return Err(record.corrupt_field("block size"));
        }
        if u64::from(blocks).saturating_mul(block_size.into()) < size || map_end > device.size() {
            return Err(record.corrupt_field("blocks in image"));
        }
        Ok(Self {
            kind,
            creator: record.array(0)?,
            comment: record.bytes(84, 256)?.split(|&b| b == 0).next().unwrap_or_default().to_vec(),
            map_at: map_at.into(),
            data_at: data_at.into(),
            size,
            block_size: block_size.into(),
            block_extra: record.le32(380)?.into(),
            blocks: blocks.into(),
            allocated: record.le32(388)?,
            uuid: record.array(392)?,
            modified: record.array(408)?,
            parent: Identity { uuid: record.array(424)?, modified: record.array(440)? },
        })
    }
}

/// The blocks of the disk.
struct Blocks {
    tables: Tables,
    table: Extent,
    file_size: u64,
    data_at: u64,
    block_size: u64,
    /// Bytes in front of each block that are not the disk's.
    block_extra: u64,
    size: u64,
}

impl Blocks {
    fn place(&self, entry: u64) -> Result<Place> {
        match entry {
            ABSENT => return Ok(Place::Parent),
            ZERO => return Ok(Place::Hole),
            _ => {}
        }
        let stride = self.block_size.saturating_add(self.block_extra);
        let at = entry.saturating_mul(stride).saturating_add(self.data_at).saturating_add(self.block_extra);
        if at >= self.file_size {
            return Err(Error::corrupt(FORMAT.name, "block past the end of the file", at));
        }
        Ok(Place::At(at))
    }
}

impl Mapping for Blocks {
    fn size(&self) -> u64 {
        self.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let entries = self.tables.entries(self.table, offset.checked_div(self.block_size).unwrap_or(0))?;
        let within = offset.checked_rem(self.block_size).unwrap_or(0);
        let run = join(self.block_size, within, entries.rest().iter().map(|&entry| self.place(entry)))?;
        held(run, self.file_size, FORMAT.name, "block")
    }
}
