//! Sparse extents: grains found through a grain directory and grain tables. Three headers lead to
//! the same structure: VMware's hosted one ("KDMV"), the one of ESX ("COWD"), and seSparse.

use std::sync::Arc;

use super::{FORMAT, SECTOR};
use crate::bytes::Record;
use crate::container::table::{Extent, Tables, Width, held, join};
use crate::container::{Opened, Options, unpack};
use crate::device::mapped::{Mapped, Mapping, Place, Run};
use crate::device::{BlockDevice, Device, probe_array, read_array, read_vec};
use crate::error::{Error, Result};

const HOSTED: &[u8; 4] = b"KDMV";
const ESX: &[u8; 4] = b"COWD";
const SE_SPARSE: [u8; 8] = 0xcafe_babe_u64.to_le_bytes();
const SE_SPARSE_VOLATILE: u64 = 0xcafe_cafe;
const SE_SPARSE_VERSION: u64 = 0x0000_0002_0000_0001;
/// The place of a grain directory that is known only from the footer.
const AT_END: u64 = u64::MAX;
/// Flags of the hosted header.
const ZERO_GRAINS: u32 = 1 << 2;
const COMPRESSED: u32 = 1 << 16;
const MARKERS: u32 = 1 << 17;
/// A packed grain is unpacked whole: 64 KiB in every tool's images.
const MAX_PACKED_GRAIN: u64 = 16 << 20;

pub(super) fn probe(device: &dyn BlockDevice) -> Result<bool> {
    Ok(match probe_array::<8>(device, 0)? {
        Some([b'K', b'D', b'M', b'V', ..] | [b'C', b'O', b'W', b'D', ..]) => true,
        other => other == Some(SE_SPARSE),
    })
}

/// A sparse extent's header, checked.
pub(super) struct Sparse {
    file: Device,
    kind: Kind,
    /// The disk's bytes that it can hold.
    pub(super) size: u64,
    grain_size: u64,
    directory: Extent,
    /// Entries of a grain table.
    table_entries: u64,
    /// Place and length of the descriptor inside, in bytes.
    pub(super) descriptor: Option<(u64, u64)>,
    unclean: bool,
    version: u64,
}

/// What an entry of a grain table means.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A sector; 1 is a grain of zeros where `zero_grains` is set.
    Sectors { zero_grains: bool, packed: Option<Packed> },
    /// A type and the number of a grain.
    SeSparse { tables_at: u64, grains_at: u64 },
}

/// Grains are deflated, with a marker in front or without.
#[derive(Debug, Clone, Copy)]
struct Packed {
    markers: bool,
}

impl Sparse {
    pub(super) fn read(file: Device) -> Result<Self> {
        let magic = probe_array::<8>(file.as_ref(), 0)?;
        let magic = magic.ok_or_else(|| Error::corrupt(FORMAT.name, "sparse extent header", 0))?;
        let sparse = match magic.first_chunk::<4>() {
            Some(HOSTED) => Self::read_hosted(file)?,
            Some(ESX) => Self::read_esx(file)?,
            _ if magic == SE_SPARSE => Self::read_se_sparse(file)?,
            _ => return Err(Error::corrupt(FORMAT.name, "sparse extent header (magic number)", 0)),
        };
        let end = sparse.directory.count.checked_mul(sparse.width().bytes());
        let end = end.and_then(|len| sparse.directory.at.checked_add(len));
        if end.is_none_or(|end| end > sparse.file.size()) {
            let what = "grain directory (past the end of the file)";
            return Err(Error::corrupt(FORMAT.name, what, sparse.directory.at));
        }
        Ok(sparse)
    }

    /// `SparseExtentHeader` of the specification.
    fn read_hosted(file: Device) -> Result<Self> {
        let first = read_header(file.as_ref(), 0)?;
        let first = Record::new(FORMAT.name, "sparse extent header", 0, &first);
        let (descriptor_at, descriptor_len) = (first.le64(28)?, first.le64(36)?);
        let last_at = file.size().saturating_sub(1024);
        let last;
        let record = if first.le64(56)? == AT_END {
            // A stream is written without going back: the true header is the footer, before the end marker.
            last = read_header(file.as_ref(), last_at)?;
            let record = Record::new(FORMAT.name, "footer (is the file cut off?)", last_at, &last);
            if record.bytes(0, 4)? != HOSTED || record.le64(56)? == AT_END {
                return Err(record.corrupt());
            }
            record
        } else {
            first
        };
        let (version, flags) = (record.le32(4)?, record.le32(8)?);
        if !(1..=3).contains(&version) {
            return Err(Error::unsupported(FORMAT.name, format!("version {version}")));
        }
        let (capacity, grain, table_entries) = (record.le64(12)?, record.le64(20)?, u64::from(record.le32(44)?));
        let packed = match (flags & COMPRESSED != 0, record.le16(77)?) {
            (false, _) => None,
            (true, 1) => Some(Packed { markers: flags & MARKERS != 0 }),
            (true, other) => return Err(Error::unsupported(FORMAT.name, format!("compression algorithm {other}"))),
        };
        let geometry = Geometry::check(record, capacity, grain, table_entries)?;
        if packed.is_some() && geometry.grain_size > MAX_PACKED_GRAIN {
            return Err(Error::unsupported(FORMAT.name, format!("packed grains of {} bytes", geometry.grain_size)));
        }
        let directory_at = record.le64(56)?.checked_mul(SECTOR).ok_or_else(|| record.corrupt_field("gdOffset"))?;
        let place = |at: u64, len: u64| Some((at.checked_mul(SECTOR)?, len.checked_mul(SECTOR)?));
        Ok(Self {
            kind: Kind::Sectors { zero_grains: flags & ZERO_GRAINS != 0, packed },
            size: geometry.size,
            grain_size: geometry.grain_size,
            directory: Extent { at: directory_at, count: geometry.tables },
            table_entries,
            descriptor: place(descriptor_at, descriptor_len).filter(|&(at, len)| at > 0 && len > 0),
            unclean: record.u8(72)? != 0,
            version: version.into(),
            file,
        })
    }

    /// `COWDisk_Header`, of vmfsSparse extents.
    fn read_esx(file: Device) -> Result<Self> {
        let bytes = read_header(file.as_ref(), 0)?;
        let record = Record::new(FORMAT.name, "ESX sparse extent header", 0, &bytes);
        let table_entries = 4096;
        let geometry = Geometry::check(record, record.le32(12)?.into(), record.le32(16)?.into(), table_entries)?;
        let directory_at = u64::from(record.le32(20)?).saturating_mul(SECTOR);
        if u64::from(record.le32(24)?) < geometry.tables {
            return Err(record.corrupt_field("numGDEntries"));
        }
        Ok(Self {
            kind: Kind::Sectors { zero_grains: false, packed: None },
            size: geometry.size,
            grain_size: geometry.grain_size,
            directory: Extent { at: directory_at, count: geometry.tables },
            table_entries,
            descriptor: None,
            unclean: false,
            version: record.le32(4)?.into(),
            file,
        })
    }

    /// `VMDKSESparseConstHeader` and `VMDKSESparseVolatileHeader` of block/vmdk.c.
    fn read_se_sparse(file: Device) -> Result<Self> {
        let bytes = read_header(file.as_ref(), 0)?;
        let record = Record::new(FORMAT.name, "seSparse header", 0, &bytes);
        let version = record.le64(8)?;
        if version != SE_SPARSE_VERSION {
            return Err(Error::unsupported(FORMAT.name, format!("seSparse version {version:#x}")));
        }
        let sectors = |offset: usize| -> Result<u64> {
            record.le64(offset)?.checked_mul(SECTOR).ok_or_else(|| record.corrupt_field("places"))
        };
        let volatile_at = sectors(80)?;
        let volatile = read_header(file.as_ref(), volatile_at)?;
        let volatile = Record::new(FORMAT.name, "seSparse volatile header", volatile_at, &volatile);
        if volatile.le64(0)? != SE_SPARSE_VOLATILE {
            return Err(volatile.corrupt_field("magic number"));
        }
        if volatile.le64(24)? != 0 {
            return Err(Error::unsupported(FORMAT.name, "a seSparse journal that was not replayed"));
        }
        let table_entries = sectors(32)? / 8;
        let geometry = Geometry::check(record, record.le64(16)?, record.le64(24)?, table_entries)?;
        Ok(Self {
            kind: Kind::SeSparse { tables_at: sectors(144)?, grains_at: sectors(192)? },
            size: geometry.size,
            grain_size: geometry.grain_size,
            directory: Extent { at: sectors(128)?, count: geometry.tables },
            table_entries,
            descriptor: None,
            unclean: false,
            version: 2,
            file,
        })
    }

    fn width(&self) -> Width {
        match self.kind {
            Kind::Sectors { .. } => Width::Le32,
            Kind::SeSparse { .. } => Width::Le64,
        }
    }

    /// The extent as a device of `size` bytes.
    pub(super) fn open(&self, size: u64, parent: Option<Device>, options: &Options) -> Result<Device> {
        let grains = Grains {
            directories: Tables::new(self.file.clone(), self.width(), FORMAT.name, "grain directory"),
            tables: Tables::new(self.file.clone(), self.width(), FORMAT.name, "grain table"),
            directory: self.directory,
            table_entries: self.table_entries,
            table_len: self.table_entries.saturating_mul(self.width().bytes()),
            kind: self.kind,
            grain_size: self.grain_size,
            file: self.file.clone(),
            size,
        };
        Ok(Arc::new(Mapped::new(Arc::new(grains), self.file.clone(), parent, 512, options.cache_size)))
    }

    pub(super) fn describe(&self, opened: &mut Opened) {
        opened.add("header version", self.version);
        opened.add("grain size", format!("{} bytes", self.grain_size));
        if let Kind::Sectors { packed: Some(_), .. } = self.kind {
            opened.add("compression", "zlib");
        }
        if self.unclean {
            opened.notes.push("the image was not closed properly (unclean shutdown)".to_owned());
        }
    }
}

fn read_header(device: &dyn BlockDevice, at: u64) -> Result<[u8; 512]> {
    read_array::<512>(device, at).map_err(|error| match error {
        Error::PastEnd { .. } => Error::corrupt(FORMAT.name, "sparse extent header", at),
        other => other,
    })
}

/// The numbers that all three headers have, in bytes.
struct Geometry {
    size: u64,
    grain_size: u64,
    /// Grain tables, which is entries of the grain directory.
    tables: u64,
}

impl Geometry {
    fn check(record: Record<'_>, capacity: u64, grain: u64, table_entries: u64) -> Result<Self> {
        // QEMU's bounds; a grain is 128 sectors in most images, 8 in seSparse, 1 in vmfsSparse.
        if grain == 0 || grain > 0x20_0000 || table_entries == 0 || table_entries > 1 << 20 {
            return Err(record.corrupt_field("grain size or entries of a grain table"));
        }
        let size = capacity.checked_mul(SECTOR).filter(|&size| size <= i64::MAX.cast_unsigned());
        let covered = grain.saturating_mul(table_entries).max(1);
        Ok(Self {
            size: size.ok_or_else(|| record.corrupt_field("capacity"))?,
            grain_size: grain.saturating_mul(SECTOR),
            tables: capacity.div_ceil(covered),
        })
    }
}

/// From an offset of the extent through the grain directory to a grain.
struct Grains {
    directories: Tables,
    tables: Tables,
    directory: Extent,
    table_entries: u64,
    /// Length of a grain table in bytes.
    table_len: u64,
    kind: Kind,
    grain_size: u64,
    file: Device,
    size: u64,
}

impl Grains {
    /// Where the grain table is that an entry of the directory stands for.
    fn table(&self, entry: u64) -> Result<Option<Extent>> {
        let at = match self.kind {
            _ if entry == 0 => return Ok(None),
            Kind::Sectors { .. } => entry.saturating_mul(SECTOR),
            Kind::SeSparse { tables_at, .. } => {
                if entry >> 32 != 0x1000_0000 {
                    return Err(Error::corrupt(FORMAT.name, "grain directory entry", self.directory.at));
                }
                (entry & 0xffff_ffff).saturating_mul(self.table_len).saturating_add(tables_at)
            }
        };
        Ok(Some(Extent { at, count: self.table_entries }))
    }

    fn place(&self, entry: u64) -> Result<Place> {
        let at = match self.kind {
            _ if entry == 0 => return Ok(Place::Parent),
            Kind::Sectors { zero_grains: true, .. } if entry == 1 => return Ok(Place::Hole),
            Kind::Sectors { packed: Some(_), .. } => return Ok(Place::Packed { unit: entry, within: 0 }),
            Kind::Sectors { .. } => entry.saturating_mul(SECTOR),
            Kind::SeSparse { grains_at, .. } => match entry >> 60 {
                // 1: unmapped by the guest; 2: zeros.
                1 | 2 => return Ok(Place::Hole),
                // The number's low 12 bits are stored above its high 48.
                3 => {
                    let number = (entry >> 48 & 0x0fff) | (entry & 0xffff_ffff_ffff) << 12;
                    number.saturating_mul(self.grain_size).saturating_add(grains_at)
                }
                _ => return Err(Error::corrupt(FORMAT.name, "grain table entry", 0)),
            },
        };
        if at >= self.file.size() {
            return Err(Error::corrupt(FORMAT.name, "grain past the end of the file", at));
        }
        Ok(Place::At(at))
    }
}

impl Mapping for Grains {
    fn size(&self) -> u64 {
        self.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let coverage = self.grain_size.saturating_mul(self.table_entries);
        let tables = self.directories.entries(self.directory, offset.checked_div(coverage).unwrap_or(0))?;
        let within = offset.checked_rem(coverage).unwrap_or(0);
        let Some(table) = self.table(tables.first())? else {
            let absent = tables.rest().iter().take_while(|&&entry| entry == 0);
            return join(coverage, within, absent.map(|_| Ok(Place::Parent)));
        };
        let entries = self.tables.entries(table, within.checked_div(self.grain_size).unwrap_or(0))?;
        let places = entries.rest().iter().map(|&entry| self.place(entry));
        let run = join(self.grain_size, within.checked_rem(self.grain_size).unwrap_or(0), places)?;
        held(run, self.file.size(), FORMAT.name, "grain")
    }

    fn unpack(&self, unit: u64) -> Result<Vec<u8>> {
        let at = unit.saturating_mul(SECTOR);
        let corrupt = || Error::corrupt(FORMAT.name, "packed grain", at);
        let Kind::Sectors { packed: Some(packed), .. } = self.kind else { return Err(corrupt()) };
        let left = self.file.size().saturating_sub(at);
        // Deflate makes what it cannot pack longer by a few bytes in each 16 KiB.
        let longest = self.grain_size.saturating_mul(2).saturating_add(SECTOR);
        let (start, len) = if packed.markers {
            let marker = if left < 12 { return Err(corrupt()) } else { read_array::<12>(self.file.as_ref(), at)? };
            let len = u64::from(Record::new(FORMAT.name, "grain marker", at, &marker).le32(8)?);
            if len == 0 || len > longest || len > left.saturating_sub(12) {
                return Err(corrupt());
            }
            (at.saturating_add(12), len)
        } else {
            (at, left.min(longest))
        };
        let bytes = read_vec(self.file.as_ref(), start, usize::try_from(len).map_err(|_| corrupt())?)?;
        unpack::inflate_padded(&bytes, usize::try_from(self.grain_size).map_err(|_| corrupt())?).ok_or_else(corrupt)
    }
}
