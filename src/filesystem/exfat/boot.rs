//! The boot region: twelve sectors with the geometry and a checksum of them all, and a backup behind them.
//!
//! ```text
//!   sector 0            1 .. 8                9                10         11         12 .. 23
//!   | boot sector | extended boot sectors | OEM parameters | reserved | checksum | the same again |
//!
//!   boot sector   3 "EXFAT   " | 11 zeros | 0x40 partition offset | 0x48 volume length | 0x50 FAT offset, length
//!                 0x58 heap offset, clusters | 0x60 root cluster | 0x64 serial | 0x68 revision | 0x6a flags
//!                 0x6c sector shift | 0x6d cluster shift | 0x6e FATs | 0x70 percent in use | 0x1fe 55 AA
//! ```
//!
//! The checksum leaves out the flags and the percentage, which change without it.

use super::EXFAT;
use crate::bytes::Record;
use crate::device::{BlockDevice, probe_array, read_vec};
use crate::error::{Error, Result};

/// Sectors of a boot region, the one with the checksum last.
const REGION: u64 = 12;
/// The name, and its place.
const NAME: &[u8; 8] = b"EXFAT   ";
pub(super) const NAME_AT: u64 = 3;
/// The first cluster has this number.
pub(super) const FIRST_CLUSTER: u32 = 2;
/// Node numbers are bytes of the volume, and end here: 64 PiB.
const MAX_OFFSET: u64 = 1 << 56;
/// Sizes of a sector, as powers of two.
const SECTOR_SHIFTS: std::ops::RangeInclusive<u8> = 9..=12;

/// What the boot sector says, checked.
#[derive(Debug, Clone)]
pub(super) struct Geometry {
    /// Byte of the boot sector that it was read from.
    pub at: u64,
    pub sector_size: u64,
    pub cluster_size: u64,
    /// Size of the volume in bytes.
    pub volume_size: u64,
    /// First byte of the table in use.
    pub table_offset: u64,
    /// First byte of cluster 2.
    pub heap_offset: u64,
    pub cluster_count: u32,
    /// First cluster of the root directory.
    pub root: u32,
    pub serial: u32,
    /// The second table and bitmap are in use (TexFAT).
    pub second_active: bool,
    pub dirty: bool,
    pub failed: bool,
    /// Hundredths of the clusters that are in use, where that is known.
    pub percent_in_use: Option<u8>,
    pub notes: Vec<String>,
}

impl Geometry {
    /// Whether the device starts with an exFAT boot sector; or with nothing, and there is its backup.
    pub fn probe(device: &dyn BlockDevice) -> Result<bool> {
        let Some(start) = probe_array::<512>(device, 0)? else { return Ok(false) };
        if start.get(3..11) == Some(NAME) {
            return Ok(true);
        }
        // ext, too, starts with an empty sector, and its magic number comes behind it.
        let empty = start.iter().all(|&byte| byte == 0) && probe_array(device, 1080)? != Some([0x53, 0xef]);
        Ok(empty && Self::backup(device)?.is_some())
    }

    /// The main boot region, or its backup where that is better.
    pub fn read(device: &dyn BlockDevice) -> Result<Self> {
        let (main, sums) = match Self::parse_at(device, 0) {
            Ok(geometry) => {
                let sums = region_fault(device, 0, geometry.sector_size)?;
                (Ok(geometry), sums)
            }
            Err(error) => (Err(error), None),
        };
        let fault = match (&main, &sums) {
            (Ok(_), None) => return main,
            (Ok(_), Some(fault)) => fault.clone(),
            // What this revision means by its fields is not known, of the backup neither.
            (Err(Error::Corrupt { .. } | Error::PastEnd { .. }), _) => {
                main.as_ref().err().map(ToString::to_string).unwrap_or_default()
            }
            _ => return main,
        };
        match (Self::backup(device)?, main) {
            (Some(mut backup), _) => {
                let note = format!("{fault}: the backup at byte {} is used, whose flags may be old", backup.at);
                backup.notes.push(note);
                Ok(backup)
            }
            (None, Ok(mut main)) => {
                main.notes.push(format!("{fault}, and there is no backup that is better"));
                Ok(main)
            }
            (None, Err(error)) => Err(error),
        }
    }

    /// A backup whose checksum is right. Where it is depends on the size of a sector, which it says itself.
    fn backup(device: &dyn BlockDevice) -> Result<Option<Self>> {
        for shift in SECTOR_SHIFTS {
            let at = REGION.wrapping_shl(shift.into());
            if probe_array(device, at.saturating_add(NAME_AT))? != Some(*NAME) {
                continue;
            }
            let fits = |geometry: &Self| geometry.sector_size == 1 << shift;
            if let Some(geometry) = Self::parse_at(device, at).ok().filter(fits)
                && region_fault(device, at, geometry.sector_size)?.is_none()
            {
                return Ok(Some(geometry));
            }
        }
        Ok(None)
    }

    fn parse_at(device: &dyn BlockDevice, at: u64) -> Result<Self> {
        Self::parse(&Record::new(EXFAT, "boot sector", at, &read_vec(device, at, 512)?))
    }

    /// Microsoft's specification, section 3.1.
    fn parse(boot: &Record<'_>) -> Result<Self> {
        if boot.bytes(3, 8)? != NAME {
            return Err(boot.corrupt_field("FileSystemName"));
        }
        if boot.le16(0x1fe)? != 0xaa55 {
            return Err(boot.corrupt_field("BootSignature"));
        }
        let revision = boot.le16(0x68)?;
        if revision >> 8 != 1 {
            return Err(Error::unsupported(EXFAT, format!("revision {}.{:02}", revision >> 8, revision & 0xff)));
        }
        let (sector_shift, cluster_shift) = (boot.u8(0x6c)?, boot.u8(0x6d)?);
        if !SECTOR_SHIFTS.contains(&sector_shift) {
            return Err(boot.corrupt_field("BytesPerSectorShift"));
        }
        if cluster_shift > 25u8.saturating_sub(sector_shift) {
            return Err(boot.corrupt_field("SectorsPerClusterShift"));
        }
        let sectors = |count: u64| count.saturating_mul(1 << sector_shift);
        let sector_size = sectors(1);
        let cluster_size = sector_size.wrapping_shl(cluster_shift.into());
        let (fat, fat_len) = (sectors(boot.le32(0x50)?.into()), sectors(boot.le32(0x54)?.into()));
        let (heap_offset, cluster_count) = (sectors(boot.le32(0x58)?.into()), boot.le32(0x5c)?);
        let tables = boot.u8(0x6e)?;
        let flags = boot.le16(0x6a)?;
        let second_active = flags & 1 != 0 && tables == 2;
        if !matches!(tables, 1 | 2) {
            return Err(boot.corrupt_field("NumberOfFats"));
        }
        if fat < sectors(REGION.saturating_mul(2)) || heap_offset < fat.saturating_add(fat_len) {
            return Err(boot.corrupt_field("FatOffset, FatLength and ClusterHeapOffset"));
        }
        let entries = u64::from(cluster_count).saturating_add(FIRST_CLUSTER.into());
        if cluster_count == 0 || cluster_count > u32::MAX.saturating_sub(10) || entries.saturating_mul(4) > fat_len {
            return Err(boot.corrupt_field("ClusterCount"));
        }
        let root = boot.le32(0x60)?;
        if root < FIRST_CLUSTER || u64::from(root) >= entries {
            return Err(boot.corrupt_field("FirstClusterOfRootDirectory"));
        }
        let heap_len = u64::from(cluster_count).saturating_mul(cluster_size);
        if heap_offset.saturating_add(heap_len) > MAX_OFFSET {
            return Err(Error::unsupported(EXFAT, "a volume of more than 64 PiB"));
        }
        let mut notes = Vec::new();
        if tables == 2 {
            let which = if second_active { "second" } else { "first" };
            notes.push(format!("two tables (TexFAT): the {which} is in use"));
        }
        Ok(Self {
            at: boot.at(),
            sector_size,
            cluster_size,
            volume_size: sectors(boot.le64(0x48)?),
            table_offset: if second_active { fat.saturating_add(fat_len) } else { fat },
            heap_offset,
            cluster_count,
            root,
            serial: boot.le32(0x64)?,
            second_active,
            dirty: flags & 2 != 0,
            failed: flags & 4 != 0,
            percent_in_use: Some(boot.u8(0x70)?).filter(|&percent| percent <= 100),
            notes,
        })
    }

    /// First byte of a cluster; `None` when there is no such cluster.
    pub fn cluster_offset(&self, cluster: u32) -> Option<u64> {
        let index = cluster.checked_sub(FIRST_CLUSTER).filter(|&index| index < self.cluster_count)?;
        Some(self.heap_offset.saturating_add(u64::from(index).saturating_mul(self.cluster_size)))
    }

    /// The cluster that has a byte of the volume.
    pub fn cluster_at(&self, byte: u64) -> Option<u32> {
        let index = byte.checked_sub(self.heap_offset)?.checked_div(self.cluster_size)?;
        let index = u32::try_from(index).ok().filter(|&index| index < self.cluster_count)?;
        index.checked_add(FIRST_CLUSTER)
    }

    /// Bytes of all clusters.
    pub fn heap_len(&self) -> u64 {
        u64::from(self.cluster_count).saturating_mul(self.cluster_size)
    }

    /// Clusters that so many bytes take.
    pub fn clusters_of(&self, len: u64) -> u64 {
        len.div_ceil(self.cluster_size.max(1))
    }
}

/// What is wrong with the checksum of the boot region at a byte.
pub(super) fn region_fault(device: &dyn BlockDevice, at: u64, sector_size: u64) -> Result<Option<String>> {
    let size = usize::try_from(sector_size).map_err(|_| Error::Invalid)?;
    let len = size.saturating_mul(12);
    let region = match read_vec(device, at, len) {
        Err(Error::PastEnd { .. }) => return Ok(Some(format!("the boot region at byte {at} is cut off"))),
        other => other?,
    };
    let (covered, sums) = region.split_at_checked(len.saturating_sub(size)).ok_or(Error::Invalid)?;
    let sum = checksum(covered).to_le_bytes();
    let right = sums.chunks_exact(4).all(|stored| stored == sum);
    Ok((!right).then(|| format!("the checksum of the boot region at byte {at} is wrong")))
}

/// Of all sectors but the last of a boot region.
fn checksum(covered: &[u8]) -> u32 {
    let counted = covered.iter().enumerate().filter(|(index, _)| !matches!(index, 0x6a | 0x6b | 0x70));
    counted.fold(0u32, |sum, (_, &byte)| sum.rotate_right(1).wrapping_add(byte.into()))
}
