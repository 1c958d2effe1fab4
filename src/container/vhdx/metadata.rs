//! The metadata region: the disk's size, its units, and where its parent is.

use super::{FORMAT, MIB, Region};
use crate::bytes::Record;
use crate::device::{BlockDevice, read_vec};
use crate::error::{Error, Result};
use crate::text::{guid, utf16_to_bytes};

const FILE_PARAMETERS: &str = "CAA16737-FA36-4D43-B3B6-33F0AA44E76B";
const VIRTUAL_DISK_SIZE: &str = "2FA54224-CD1B-4876-B211-5DBED83BF4B8";
const VIRTUAL_DISK_ID: &str = "BECA12AB-B2E6-4523-93EF-C309E000C746";
const LOGICAL_SECTOR_SIZE: &str = "8141BF1D-A96F-4709-BA47-F233A8FAAB5F";
const PHYSICAL_SECTOR_SIZE: &str = "CDA348C7-445D-4471-9CC9-E9885251C556";
const PARENT_LOCATOR: &str = "A8D35F2D-B30B-454D-ABF7-D3D84834AB0C";
const VHDX_LOCATOR: &str = "B04AEFB7-D19E-4A81-B789-25B8E9445913";

/// The table fills the first 64 KiB of the region.
const MAX_ITEMS: u16 = 2047;
/// The specification's bound on the disk's size.
const MAX_SIZE: u64 = 64 << 40;

/// What the metadata items say, checked.
pub(super) struct Metadata {
    pub(super) size: u64,
    pub(super) block_size: u64,
    pub(super) sector_size: u32,
    pub(super) physical_sector_size: Option<u32>,
    pub(super) disk_id: Option<[u8; 16]>,
    /// Blocks are left allocated: a disk of fixed size.
    pub(super) fixed: bool,
    pub(super) parent: Option<Locator>,
}

/// Where the parent is, and which one it must be.
#[derive(Default)]
pub(super) struct Locator {
    /// The likeliest first.
    pub(super) paths: Vec<String>,
    /// Data write GUIDs that the parent may have.
    pub(super) linkage: Vec<String>,
}

impl Metadata {
    /// Section 2.6 "Metadata Region".
    pub(super) fn read(device: &dyn BlockDevice, region: Region) -> Result<Self> {
        let corrupt = || Error::corrupt(FORMAT.name, "metadata table", region.at);
        let table = read_vec(device, region.at, 64 << 10).map_err(|_| corrupt())?;
        let record = Record::new(FORMAT.name, "metadata table", region.at, &table);
        let count = record.le16(10)?;
        if record.bytes(0, 8)? != b"metadata" || count > MAX_ITEMS {
            return Err(record.corrupt_field("signature or entry count"));
        }
        let (mut parameters, mut size, mut sector_size) = (None, None, None);
        let (mut physical_sector_size, mut disk_id, mut locator) = (None, None, None);
        for row in 0..usize::from(count) {
            let entry = record.part("metadata table entry", 32usize.saturating_add(row.saturating_mul(32)), 32)?;
            let item = || read_item(device, region, entry);
            let field = |bytes: &[u8]| Record::new(FORMAT.name, "metadata item", entry.at(), bytes).le32(0);
            match guid(entry.array(0)?).as_str() {
                FILE_PARAMETERS => {
                    let bytes = item()?;
                    let item = Record::new(FORMAT.name, "file parameters", entry.at(), &bytes);
                    parameters = Some((item.le32(0)?, item.le32(4)?));
                }
                VIRTUAL_DISK_SIZE => {
                    size = Some(Record::new(FORMAT.name, "virtual disk size", entry.at(), &item()?).le64(0)?);
                }
                LOGICAL_SECTOR_SIZE => sector_size = Some(field(&item()?)?),
                PHYSICAL_SECTOR_SIZE => physical_sector_size = Some(field(&item()?)?),
                VIRTUAL_DISK_ID => {
                    disk_id = Some(Record::new(FORMAT.name, "virtual disk ID", entry.at(), &item()?).array(0)?);
                }
                PARENT_LOCATOR => locator = Some(Locator::parse(&item()?, entry.at())?),
                // Bit 0: an item of a user's, not of the system's; bit 2: required.
                unknown if entry.le32(24)? & 0b101 == 0b100 => {
                    return Err(Error::unsupported(FORMAT.name, format!("the required metadata item {unknown}")));
                }
                _ => {}
            }
        }
        let missing = |what: &str| record.corrupt_field(&format!("{what} missing or impossible"));
        let (block_size, bits) = parameters.ok_or_else(|| missing("file parameters"))?;
        let sector_size = sector_size.filter(|size| matches!(size, 512 | 4096));
        let sector_size = sector_size.ok_or_else(|| missing("logical sector size"))?;
        let sectors_fit = |size: &u64| size.is_multiple_of(sector_size.into()) && *size <= MAX_SIZE;
        let block_size = u64::from(block_size);
        if !block_size.is_power_of_two() || !(MIB..=256 * MIB).contains(&block_size) {
            return Err(missing("block size"));
        }
        let has_parent = bits & 2 != 0;
        Ok(Self {
            size: size.filter(sectors_fit).ok_or_else(|| missing("virtual disk size"))?,
            block_size,
            sector_size,
            physical_sector_size,
            disk_id,
            fixed: bits & 1 != 0,
            parent: match (has_parent, locator) {
                (true, Some(locator)) => Some(locator),
                (true, None) => return Err(missing("parent locator")),
                (false, _) => None,
            },
        })
    }
}

/// The bytes of an item: at most 1 MiB, within the region.
fn read_item(device: &dyn BlockDevice, region: Region, entry: Record<'_>) -> Result<Vec<u8>> {
    let (offset, len) = (u64::from(entry.le32(16)?), u64::from(entry.le32(20)?));
    if len > MIB || offset.saturating_add(len) > region.len {
        return Err(entry.corrupt_field("place of the item"));
    }
    let at = region.at.checked_add(offset).ok_or_else(|| entry.corrupt())?;
    read_vec(device, at, usize::try_from(len).map_err(|_| entry.corrupt())?)
        .map_err(|_| entry.corrupt_field("place of the item"))
}

impl Locator {
    /// Section 2.6.2.6 "Parent Locator".
    fn parse(bytes: &[u8], at: u64) -> Result<Self> {
        let record = Record::new(FORMAT.name, "parent locator", at, bytes);
        let kind = guid(record.array(0)?);
        if kind != VHDX_LOCATOR {
            return Err(Error::unsupported(FORMAT.name, format!("a parent locator of the type {kind}")));
        }
        let mut found: Vec<(String, String)> = Vec::new();
        for row in 0..usize::from(record.le16(18)?) {
            let entry = record.part("parent locator entry", 20usize.saturating_add(row.saturating_mul(12)), 12)?;
            let text = |offset: usize, len: usize| -> Result<String> {
                let start = usize::try_from(entry.le32(offset)?).map_err(|_| entry.corrupt())?;
                let (units, _) = record.bytes(start, entry.le16(len)?.into())?.as_chunks::<2>();
                let units = units.iter().map(|&unit| u16::from_le_bytes(unit)).take_while(|&unit| unit != 0);
                String::from_utf8(utf16_to_bytes(units)).map_err(|_| entry.corrupt())
            };
            found.push((text(0, 8)?, text(4, 10)?));
        }
        let values = |wanted: &[&str]| -> Vec<String> {
            let mut out = Vec::new();
            for key in wanted {
                out.extend(found.iter().filter(|(known, _)| known == key).map(|(_, value)| value.clone()));
            }
            out
        };
        let linkage = values(&["parent_linkage", "parent_linkage2"]).into_iter();
        let linkage = linkage.map(|id| id.trim_matches(['{', '}']).to_ascii_uppercase());
        Ok(Self { paths: values(&["relative_path", "volume_path", "absolute_win32_path"]), linkage: linkage.collect() })
    }
}
