//! VHD, of Virtual PC, Hyper-V and Azure: a raw disk with a footer, or blocks found through a
//! table, over an optional parent.
//!
//! Specification: Microsoft, "Virtual Hard Disk Image Format Specification", version 1.0 (2006).
//!
//! ```text
//!   fixed:    disk ........................................................ | footer
//!   dynamic:  footer copy | header | block allocation table | blocks ...... | footer
//!                                       block: sector bitmap | sectors
//! ```
//!
//! Supported: fixed, dynamic and differencing disks; a damaged footer when its copy is in order,
//! and the other way round; footers of 511 bytes (Virtual PC before 2004).
//! Not supported: nothing that is known. In a dynamic disk the sector bitmaps are not asked: a
//! sector that was not written is zeros in its block.

use std::path::PathBuf;
use std::sync::Arc;

use super::table::{Extent, Tables, Width, held, join};
use super::{Companions, ContainerFormat, Opened, Options, beside};
use crate::bytes::Record;
use crate::cache::Cache;
use crate::check::Check;
use crate::device::mapped::{Mapped, Mapping, Place, Run};
use crate::device::window::Window;
use crate::device::{BlockDevice, Device, probe_array, read_array, read_vec};
use crate::error::{Error, Result};
use crate::text::{printable, trim_padding, utf16_to_bytes, uuid};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "vhd", snapshots: false, probe, open };

const COOKIE: &[u8; 8] = b"conectix";
const SECTOR: u64 = 512;
/// Seconds from 1970 to when the footer begins to count.
const YEAR_2000: i64 = 946_684_800;
/// A block that is not there.
const ABSENT: u64 = 0xffff_ffff;
/// Bound on the sector bitmaps that are kept, bytes: of 16 GiB of differing blocks.
const BITMAP_CACHE: u64 = 4 << 20;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    // At the start a copy of the footer: the magic number is enough, damage is then said.
    if probe_array::<8>(device, 0)?.as_ref() == Some(COOKIE) {
        return Ok(true);
    }
    // At the end, where a raw disk has any bytes: the checksum must be right too.
    Ok(Footer::read_end(device).is_ok())
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let mut notes = Vec::new();
    let mut checks = Vec::new();
    let (end, start) = (Footer::read_end(file.as_ref()), Footer::read(file.as_ref(), 0));
    let fault = |copy: &Result<Footer>| copy.as_ref().err().map(ToString::to_string);
    checks.push(Check::known("footer checksum", "end of the file", fault(&end)));
    if [&end, &start].into_iter().flatten().any(|footer| footer.kind != Kind::Fixed) {
        checks.push(Check::known("checksum of the footer's copy", "byte 0", fault(&start)));
    }
    let footer = match (end, start) {
        (Ok(footer), copy) => {
            if footer.kind != Kind::Fixed && copy.is_err() {
                notes.push("the copy of the footer at the start of the file is damaged".to_owned());
            }
            footer
        }
        (Err(_), Ok(copy)) if copy.kind != Kind::Fixed => {
            notes.push("the footer is damaged or missing: its copy was used; the file may be cut off".to_owned());
            copy
        }
        (Err(error), _) => return Err(error),
    };
    let mut opened = match footer.kind {
        Kind::Fixed => {
            let size = footer.disk_size();
            if size > footer.at {
                return Err(Error::corrupt(FORMAT.name, "footer (the disk is larger than the file)", footer.at));
            }
            Opened::new(FORMAT.name, Arc::new(Window::new(file.clone(), 0, size)?))
        }
        Kind::Dynamic | Kind::Differencing => open_sparse(file.clone(), &footer, companions, options)?,
    };
    footer.describe(&mut opened);
    opened.notes.extend(notes);
    opened.checks.splice(0..0, checks);
    Ok(opened)
}

fn open_sparse(file: Device, footer: &Footer, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let header = Header::read(file.as_ref(), footer.data_offset)?;
    let size = footer.disk_size();
    let blocks = size.div_ceil(header.block_size.max(1));
    let table_end = header.entries.checked_mul(4).and_then(|len| header.table_at.checked_add(len));
    if blocks > header.entries || table_end.is_none_or(|end| end > file.size()) {
        let what = "dynamic disk header (block allocation table too short, or past the end of the file)";
        return Err(Error::corrupt(FORMAT.name, what, footer.data_offset));
    }
    let parent = match footer.kind {
        Kind::Differencing => Some(open_parent(file.as_ref(), &header, companions)?),
        Kind::Fixed | Kind::Dynamic => None,
    };
    let bitmap_len = (header.block_size / SECTOR).div_ceil(8).next_multiple_of(SECTOR);
    let blocks = Blocks {
        tables: Tables::new(file.clone(), Width::Be32, FORMAT.name, "block allocation table"),
        table: Extent { at: header.table_at, count: header.entries },
        block_size: header.block_size,
        bitmap_len,
        bitmaps: parent.is_some().then(|| Cache::new(BITMAP_CACHE)),
        file: file.clone(),
        size,
    };
    let below = parent.as_ref().map(|(_, parent)| parent.disk.clone());
    let mut opened =
        Opened::new(FORMAT.name, Arc::new(Mapped::new(Arc::new(blocks), file, below, 512, options.cache_size)));
    opened.add("block size", format!("{} bytes", header.block_size));
    // It was compared, or nothing would have been opened.
    let place = format!("byte {}", footer.data_offset);
    opened.checks.push(Check::known("dynamic disk header checksum", place, None));
    if let Some((name, parent)) = &parent {
        opened.add("parent UUID", uuid(header.parent_uuid));
        opened.add_parent(name, parent);
    }
    Ok(opened)
}

/// Finds the parent beside the child: by its locators, then by its recorded name. It must have the
/// identifier that the child recorded.
fn open_parent(file: &dyn BlockDevice, header: &Header, companions: &dyn Companions) -> Result<(PathBuf, Opened)> {
    let name = beside(companions, &header.parent_paths(file)?)?;
    let device = companions.open(&name)?;
    let footer = Footer::read_end(device.as_ref()).or_else(|_| Footer::read(device.as_ref(), 0));
    let footer = footer.map_err(|_| Error::corrupt(FORMAT.name, not_the_parent(&name, "it is not a VHD"), 0))?;
    if footer.uuid != header.parent_uuid {
        let why = format!("it is {}, not {}", uuid(footer.uuid), uuid(header.parent_uuid));
        return Err(Error::corrupt(FORMAT.name, not_the_parent(&name, &why), 0));
    }
    let opened = companions.open_disk(&name, Some(FORMAT.name))?;
    Ok((name, opened))
}

fn not_the_parent(name: &std::path::Path, why: &str) -> String {
    format!("the link to the parent {} ({why})", printable(name.as_os_str().as_encoded_bytes()))
}

/// The blocks of a dynamic or differencing disk.
struct Blocks {
    tables: Tables,
    table: Extent,
    block_size: u64,
    /// Bytes before a block's sectors.
    bitmap_len: u64,
    /// Sector bitmaps by their place; only a differencing disk has a use for them.
    bitmaps: Option<Cache<u64, Arc<Vec<u8>>>>,
    file: Device,
    size: u64,
}

impl Mapping for Blocks {
    fn size(&self) -> u64 {
        self.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let index = offset.checked_div(self.block_size).unwrap_or(0);
        let within = offset.checked_rem(self.block_size).unwrap_or(0);
        let entries = self.tables.entries(self.table, index)?;
        let run = match &self.bitmaps {
            Some(bitmaps) if entries.first() != ABSENT => self.partial(bitmaps, entries.first(), within)?,
            _ => join(self.block_size, within, entries.rest().iter().map(|&entry| self.place(entry)))?,
        };
        held(run, self.file.size(), FORMAT.name, "block")
    }
}

impl Blocks {
    fn place(&self, entry: u64) -> Result<Place> {
        if entry == ABSENT {
            return Ok(Place::Parent);
        }
        let at = entry.saturating_mul(SECTOR).saturating_add(self.bitmap_len);
        if at >= self.file.size() {
            return Err(Error::corrupt(FORMAT.name, "block past the end of the file", at));
        }
        Ok(Place::At(at))
    }

    /// Sectors of a block that all come from here, or all from the parent. In the bitmap the first
    /// sector is the highest bit of the first byte.
    fn partial(&self, bitmaps: &Cache<u64, Arc<Vec<u8>>>, entry: u64, within: u64) -> Result<Run> {
        let place = self.place(entry)?;
        let at = entry.saturating_mul(SECTOR);
        let bitmap = bitmaps.get_or_make(&at, || {
            let len = usize::try_from(self.bitmap_len).map_err(|_| Error::Invalid)?;
            Ok::<_, Error>((Arc::new(read_vec(self.file.as_ref(), at, len)?), self.bitmap_len))
        })?;
        let here = |sector: u64| {
            let byte = usize::try_from(sector / 8).ok().and_then(|i| bitmap.get(i)).copied().unwrap_or(0);
            byte & 0x80u8.wrapping_shr(u32::try_from(sector % 8).unwrap_or(0)) != 0
        };
        let first = within / SECTOR;
        let stored = here(first);
        let end = (first..self.block_size / SECTOR).find(|&sector| here(sector) != stored);
        let end = end.map_or(self.block_size, |sector| sector.saturating_mul(SECTOR));
        let place = if stored { place.after(within).ok_or(Error::Invalid)? } else { Place::Parent };
        Ok(Run { place, len: end.saturating_sub(within) })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fixed,
    Dynamic,
    Differencing,
}

/// The last 512 bytes of the file; a sparse disk has a copy at its start.
struct Footer {
    at: u64,
    kind: Kind,
    version: u32,
    data_offset: u64,
    current_size: u64,
    /// Cylinders, heads, sectors a track.
    geometry: (u64, u64, u64),
    creator: [u8; 4],
    creator_version: u32,
    creator_os: [u8; 4],
    timestamp: u32,
    uuid: [u8; 16],
    saved_state: bool,
}

impl Footer {
    /// The footer at the end: 512 bytes, or 511 of old versions of Virtual PC.
    fn read_end(device: &dyn BlockDevice) -> Result<Self> {
        let end = device.size();
        let whole = end.checked_sub(512).ok_or_else(|| Error::corrupt(FORMAT.name, "footer", 0))?;
        Self::read(device, whole).or_else(|error| match end.checked_sub(511) {
            Some(short) => Self::read(device, short).map_err(|_| error),
            None => Err(error),
        })
    }

    /// Section "Hard Disk Footer Format".
    fn read(device: &dyn BlockDevice, at: u64) -> Result<Self> {
        let mut bytes = [0; 512];
        let len = usize::try_from(device.size().saturating_sub(at).min(512)).map_err(|_| Error::Invalid)?;
        device.read_exact_at(bytes.get_mut(..len).unwrap_or_default(), at)?;
        let record = Record::new(FORMAT.name, "footer", at, &bytes);
        if len < 511 || record.bytes(0, 8)? != COOKIE {
            return Err(record.corrupt_field("cookie"));
        }
        if record.be32(64)? != checksum(&bytes, 64) {
            return Err(record.corrupt_field("checksum"));
        }
        let kind = match record.be32(60)? {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            _ => return Err(record.corrupt_field("disk type")),
        };
        Ok(Self {
            at,
            kind,
            version: record.be32(12)?,
            data_offset: record.be64(16)?,
            timestamp: record.be32(24)?,
            creator: record.array(28)?,
            creator_version: record.be32(32)?,
            creator_os: record.array(36)?,
            current_size: record.be64(48)?,
            geometry: (record.be16(56)?.into(), record.u8(58)?.into(), record.u8(59)?.into()),
            uuid: record.array(68)?,
            saved_state: record.u8(84)? != 0,
        })
    }

    /// Virtual PC, Virtual Server and QEMU's older "vpc" show a guest the geometry's sectors; all
    /// others, and disks too large for a geometry, the current size.
    fn disk_size(&self) -> u64 {
        let (cylinders, heads, sectors) = self.geometry;
        let by_geometry = cylinders.saturating_mul(heads).saturating_mul(sectors);
        let largest = 65_535 * 16 * 255;
        if matches!(&self.creator, b"vpc " | b"vs  " | b"qemu") && by_geometry > 0 && by_geometry < largest {
            by_geometry.saturating_mul(SECTOR)
        } else {
            self.current_size
        }
    }

    fn describe(&self, opened: &mut Opened) {
        let kind = match self.kind {
            Kind::Fixed => "fixed",
            Kind::Dynamic => "dynamic",
            Kind::Differencing => "differencing",
        };
        let text = |field: &[u8]| printable(trim_padding(field));
        let (major, minor) = (self.creator_version >> 16, self.creator_version & 0xffff);
        let (cylinders, heads, sectors) = self.geometry;
        opened.facts.insert(0, ("type", kind.to_owned()));
        let (high, low) = (self.version >> 16, self.version & 0xffff);
        opened.facts.insert(1, ("version", format!("{high}.{low}")));
        opened.facts.insert(2, ("virtual size", format!("{} bytes", opened.disk.size())));
        opened.add("current size", format!("{} bytes", self.current_size));
        opened.add("geometry", format!("{cylinders} cylinders, {heads} heads, {sectors} sectors"));
        opened.add("creator", format!("{} {major}.{minor} on {}", text(&self.creator), text(&self.creator_os)));
        let created = jiff::Timestamp::from_second(YEAR_2000.saturating_add(self.timestamp.into()));
        opened.add("created", created.map_or_else(|_| self.timestamp.to_string(), |time| time.to_string()));
        opened.add("UUID", uuid(self.uuid));
        if self.saved_state {
            opened.notes.push("the machine was suspended: its disk may be in use by a saved state".to_owned());
        }
    }
}

/// One's complement of the sum of all bytes but the checksum's own four at `field`.
fn checksum(bytes: &[u8], field: usize) -> u32 {
    let own = field..field.saturating_add(4);
    let counted = bytes.iter().enumerate().filter(|(i, _)| !own.contains(i));
    !counted.fold(0u32, |sum, (_, &byte)| sum.wrapping_add(byte.into()))
}

/// Section "Dynamic Disk Header Format".
struct Header {
    table_at: u64,
    entries: u64,
    block_size: u64,
    parent_uuid: [u8; 16],
    /// UTF-16, big-endian.
    parent_name: Vec<u16>,
    locators: Vec<Locator>,
}

/// Where a path of the parent is written; `W2ru` is relative, `W2ku` absolute.
struct Locator {
    code: [u8; 4],
    at: u64,
    len: u32,
}

impl Header {
    fn read(device: &dyn BlockDevice, at: u64) -> Result<Self> {
        if at.checked_add(1024).is_none_or(|end| end > device.size()) {
            return Err(Error::corrupt(FORMAT.name, "footer (place of the dynamic disk header)", at));
        }
        let bytes = read_array::<1024>(device, at)?;
        let record = Record::new(FORMAT.name, "dynamic disk header", at, &bytes);
        if record.bytes(0, 8)? != b"cxsparse" {
            return Err(record.corrupt_field("cookie"));
        }
        if record.be32(36)? != checksum(&bytes, 36) {
            return Err(record.corrupt_field("checksum"));
        }
        let block_size = record.be32(32)?;
        if !block_size.is_power_of_two() || block_size < 512 {
            return Err(record.corrupt_field("block size"));
        }
        let (units, _) = record.bytes(64, 512)?.as_chunks::<2>();
        let parent_name = units.iter().map(|&unit| u16::from_be_bytes(unit)).take_while(|&unit| unit != 0).collect();
        let mut locators = Vec::new();
        for row in 0..8usize {
            let entry = record.part("parent locator entry", 576usize.saturating_add(row.saturating_mul(24)), 24)?;
            locators.push(Locator { code: entry.array(0)?, len: entry.be32(8)?, at: entry.be64(16)? });
        }
        Ok(Self {
            table_at: record.be64(16)?,
            entries: record.be32(28)?.into(),
            block_size: block_size.into(),
            parent_uuid: record.array(40)?,
            parent_name,
            locators,
        })
    }

    /// Where the parent may be, the likeliest first: relative path, absolute path, recorded name.
    fn parent_paths(&self, device: &dyn BlockDevice) -> Result<Vec<String>> {
        let mut paths = Vec::new();
        for code in [b"W2ru", b"W2ku"] {
            for locator in self.locators.iter().filter(|locator| &locator.code == code) {
                // Windows paths have at most 32,767 units of two bytes; UTF-16, little-endian.
                let len = usize::try_from(locator.len.min(65_534)).map_err(|_| Error::Invalid)?;
                if locator.at.saturating_add(len as u64) > device.size() {
                    continue;
                }
                let bytes = read_vec(device, locator.at, len)?;
                let (units, _) = bytes.as_chunks::<2>();
                let units = units.iter().map(|&unit| u16::from_le_bytes(unit)).take_while(|&unit| unit != 0);
                paths.push(utf16_to_bytes(units));
            }
        }
        paths.push(utf16_to_bytes(self.parent_name.iter().copied()));
        let paths = paths.into_iter().filter_map(|path| String::from_utf8(path).ok());
        Ok(paths.filter(|path| !path.is_empty()).collect())
    }
}
