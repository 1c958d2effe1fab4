//! VHDX, of Hyper-V since 2012 and of WSL 2: blocks found through a table, metadata written twice
//! or through a log, over an optional parent.
//!
//! Specification: Microsoft, [MS-VHDX] "Virtual Hard Disk v2 (VHDX) File Format".
//!
//! ```text
//!   0        64 KiB   128 KiB  192 KiB  256 KiB  1 MiB
//!   file id | header | header | regions | regions | log, metadata, block allocation table, blocks
//!             the valid header     the two tables     each payload block's entry, and after every
//!             with the higher      are equal          `chunk ratio` of them one of a bitmap block
//!             sequence number
//! ```
//!
//! Supported: fixed, dynamic and differencing disks, 512- and 4,096-byte sectors; a log that was not
//! replayed is replayed in memory (see `log`); all CRC-32C checks.
//! Not supported: nothing that is known but unknown required regions and metadata items.

mod log;
mod mapping;
mod metadata;

use std::path::PathBuf;
use std::sync::Arc;

use self::mapping::Blocks;
use self::metadata::Metadata;
use super::{Companions, ContainerFormat, Opened, Options, beside};
use crate::bytes::Record;
use crate::check::Check;
use crate::device::mapped::Mapped;
use crate::device::{BlockDevice, Device, probe_array, read_vec};
use crate::error::{Error, Result};
use crate::text::{guid, printable, utf16_to_bytes};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "vhdx", snapshots: false, probe, open };

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const BAT_REGION: &str = "2DC27766-F623-4200-9D64-115E9BFD4A08";
const METADATA_REGION: &str = "8B7CA206-4790-4B9A-B8FE-575F050F886E";
const NO_GUID: [u8; 16] = [0; 16];

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    Ok(probe_array::<8>(device, 0)?.as_ref() == Some(b"vhdxfile"))
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    if !probe(file.as_ref(), companions)? {
        return Err(Error::corrupt(FORMAT.name, "file type identifier", 0));
    }
    let (header, mut notes) = Header::read(file.as_ref())?;
    let mut device = file.clone();
    if header.log_guid != NO_GUID {
        let replayed = log::replay(file.clone(), &header)?;
        notes.push(match replayed.1 {
            0 => "the image was not closed properly: its log holds no valid entry to replay".to_owned(),
            count => format!("the image was not closed properly: {count} entries of its log were replayed in memory"),
        });
        device = replayed.0;
    }
    let regions = Regions::read(device.as_ref())?;
    let metadata = Metadata::read(device.as_ref(), regions.metadata)?;
    let parent = match &metadata.parent {
        Some(locator) => Some(open_parent(locator, companions)?),
        None => None,
    };
    let blocks = Blocks::new(device.clone(), regions.bat, &metadata)?;
    let below = parent.as_ref().map(|(_, parent)| parent.disk.clone());
    let disk = Mapped::new(Arc::new(blocks), device, below, metadata.sector_size, options.cache_size);
    let mut opened = Opened::new(FORMAT.name, Arc::new(disk));
    let kind = match (metadata.parent.is_some(), metadata.fixed) {
        (true, _) => "differencing",
        (false, true) => "fixed",
        (false, false) => "dynamic",
    };
    opened.add("type", kind);
    opened.add("version", header.version);
    opened.add("virtual size", format!("{} bytes", metadata.size));
    opened.add("block size", format!("{} bytes", metadata.block_size));
    opened.add("sector size", format!("{} bytes", metadata.sector_size));
    if let Some(size) = metadata.physical_sector_size {
        opened.add("physical sector size", format!("{size} bytes"));
    }
    opened.add("creator", creator(file.as_ref())?);
    if let Some(id) = metadata.disk_id {
        opened.add("UUID", guid(id));
    }
    opened.add("data write UUID", guid(header.data_write_guid));
    if let Some((name, parent)) = &parent {
        opened.add_parent(name, parent);
    }
    opened.notes.extend(notes);
    for at in [64 * KIB, 128 * KIB] {
        let fault = Header::read_one(file.as_ref(), at).err().map(|error| error.to_string());
        opened.checks.push(Check::known("header checksum", format!("byte {at}"), fault));
    }
    for at in [192 * KIB, 256 * KIB] {
        let fault = Regions::read_one(file.as_ref(), at).err().map(|error| error.to_string());
        opened.checks.push(Check::known("region table checksum", format!("byte {at}"), fault));
    }
    Ok(opened)
}

fn creator(device: &dyn BlockDevice) -> Result<String> {
    let bytes = read_vec(device, 8, 512)?;
    let (units, _) = bytes.as_chunks::<2>();
    let units = units.iter().map(|&unit| u16::from_le_bytes(unit)).take_while(|&unit| unit != 0);
    Ok(printable(&utf16_to_bytes(units)))
}

/// Finds the parent beside the child by its recorded paths. Its contents must be those that the
/// child was made over: the data write GUID says so.
fn open_parent(locator: &metadata::Locator, companions: &dyn Companions) -> Result<(PathBuf, Opened)> {
    let name = beside(companions, &locator.paths)?;
    let file = companions.open(&name)?;
    let shown = printable(name.as_os_str().as_encoded_bytes());
    let not_the_parent =
        |why: String| Error::corrupt(FORMAT.name, format!("the link to the parent {shown} ({why})"), 0);
    let (header, _) = Header::read(file.as_ref()).map_err(|_| not_the_parent("it is not a VHDX".to_owned()))?;
    let written = guid(header.data_write_guid);
    if !locator.linkage.is_empty() && !locator.linkage.contains(&written) {
        return Err(not_the_parent(format!("its data write GUID is {written}, not {}", locator.linkage.join(" or "))));
    }
    let opened = companions.open_disk(&name, Some(FORMAT.name))?;
    Ok((name, opened))
}

/// CRC-32C of a structure whose own checksum, the four bytes at 4, counts as zeros.
fn checksum(bytes: &[u8]) -> u32 {
    let (head, tail) = (bytes.get(..4).unwrap_or_default(), bytes.get(8..).unwrap_or_default());
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]), tail)
}

/// Section 2.2.2 "Headers".
struct Header {
    sequence: u64,
    data_write_guid: [u8; 16],
    log_guid: [u8; 16],
    log_at: u64,
    log_len: u64,
    version: u16,
}

impl Header {
    /// The valid header with the higher sequence number, and what is wrong with the other one.
    fn read(device: &dyn BlockDevice) -> Result<(Self, Vec<String>)> {
        match (Self::read_one(device, 64 * KIB), Self::read_one(device, 128 * KIB)) {
            (Ok(first), Ok(second)) => Ok((if second.sequence > first.sequence { second } else { first }, Vec::new())),
            (Ok(only), Err(_)) | (Err(_), Ok(only)) => {
                Ok((only, vec!["one of the two headers is damaged: the other one was used".to_owned()]))
            }
            (Err(error), Err(_)) => Err(error),
        }
    }

    fn read_one(device: &dyn BlockDevice, at: u64) -> Result<Self> {
        let bytes = read_vec(device, at, 4096).map_err(|_| Error::corrupt(FORMAT.name, "header", at))?;
        let record = Record::new(FORMAT.name, "header", at, &bytes);
        if record.bytes(0, 4)? != b"head" || record.le32(4)? != checksum(&bytes) {
            return Err(record.corrupt_field("signature or checksum"));
        }
        let (version, log_version) = (record.le16(66)?, record.le16(64)?);
        if version != 1 || log_version != 0 {
            return Err(Error::unsupported(FORMAT.name, format!("version {version} with log version {log_version}")));
        }
        Ok(Self {
            sequence: record.le64(8)?,
            data_write_guid: record.array(32)?,
            log_guid: record.array(48)?,
            log_len: record.le32(68)?.into(),
            log_at: record.le64(72)?,
            version,
        })
    }
}

/// A region of the file.
#[derive(Debug, Clone, Copy)]
struct Region {
    at: u64,
    len: u64,
}

/// Section 2.2.3 "Region Table".
struct Regions {
    bat: Region,
    metadata: Region,
}

impl Regions {
    fn read(device: &dyn BlockDevice) -> Result<Self> {
        Self::read_one(device, 192 * KIB).or_else(|error| Self::read_one(device, 256 * KIB).map_err(|_| error))
    }

    fn read_one(device: &dyn BlockDevice, at: u64) -> Result<Self> {
        let bytes = read_vec(device, at, 64 << 10).map_err(|_| Error::corrupt(FORMAT.name, "region table", at))?;
        let record = Record::new(FORMAT.name, "region table", at, &bytes);
        if record.bytes(0, 4)? != b"regi" || record.le32(4)? != checksum(&bytes) {
            return Err(record.corrupt_field("signature or checksum"));
        }
        let count = usize::try_from(record.le32(8)?).map_err(|_| record.corrupt())?;
        let (mut bat, mut metadata) = (None, None);
        // The specification's bound: what fits into 64 KiB.
        for row in 0..count.min(2047) {
            let entry = record.part("region table entry", 16usize.saturating_add(row.saturating_mul(32)), 32)?;
            let region = Region { at: entry.le64(16)?, len: entry.le32(24)?.into() };
            match guid(entry.array(0)?).as_str() {
                BAT_REGION => bat = Some(region),
                METADATA_REGION => metadata = Some(region),
                unknown if entry.le32(28)? & 1 != 0 => {
                    return Err(Error::unsupported(FORMAT.name, format!("the required region {unknown}")));
                }
                _ => {}
            }
        }
        match (bat, metadata) {
            (Some(bat), Some(metadata)) => Ok(Self { bat, metadata }),
            _ => Err(record.corrupt_field("block allocation table or metadata region missing")),
        }
    }
}
