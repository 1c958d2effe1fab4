//! The boot sector: where the tables, the root directory and the clusters lie.
//!
//! Field names and offsets: Microsoft FAT specification 1.03, sections 3.1 to 3.4. What decides
//! between variants is what the Linux kernel goes by, as that is what made or read most volumes:
//! FAT32 where the 16-bit table size is zero, FAT12 below 4,085 clusters.

use super::FAT;
use crate::bytes::{Evidence, Record};
use crate::device::{BlockDevice, probe_array, read_array};
use crate::error::{Error, Result};

/// Number of bits in an entry of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// 12 bits; two entries share three bytes.
    Fat12,
    /// 16 bits.
    Fat16,
    /// 32 bits, the upper four of which are reserved and kept as they are.
    Fat32,
}

/// Where the root directory lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Root {
    /// FAT12 and FAT16: between the tables and the clusters, of fixed size.
    Fixed {
        /// First byte on the volume.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// FAT32: a chain of clusters like any directory.
    Chain(u32),
}

/// What a boot sector says of its volume.
#[derive(Debug, Clone)]
pub(super) struct Geometry {
    /// Size of a table entry.
    pub width: Width,
    /// Logical sector in bytes; a power of two.
    pub sector_size: u32,
    /// Cluster in bytes; a power of two.
    pub cluster_size: u32,
    /// First byte of the first table.
    pub table_offset: u64,
    /// Length of each table in bytes.
    pub table_len: u64,
    /// Number of tables, not zero.
    pub table_count: u32,
    /// The only table in use, when mirroring is off.
    pub active_table: Option<u32>,
    /// The first table that starts as a table does.
    sound_table: u32,
    /// The top directory.
    pub root: Root,
    /// First byte of cluster 2.
    pub data_offset: u64,
    /// Number of clusters; the first is cluster 2.
    pub cluster_count: u32,
    /// Size of the volume in bytes, as the boot sector has it.
    pub volume_size: u64,
    /// FAT32: byte of the FSInfo sector.
    pub info_offset: Option<u64>,
    /// Byte of the boot sector that has the dirty flag; `None` where there is program code instead.
    pub state_offset: Option<u64>,
    /// Volume serial number.
    pub serial: Option<u32>,
    /// Label in the boot sector.
    pub label: Option<[u8; 11]>,
    /// What an examiner should know.
    pub notes: Vec<String>,
    /// Where it was recognised.
    pub evidence: Vec<Evidence>,
}

/// A floppy of DOS 1.x: no parameter block, known by its size and the first byte of its table.
struct Early {
    sectors: u16,
    sectors_per_cluster: u8,
    root_entries: u16,
    media: u8,
    table_sectors: u16,
}

/// Sector of the backup of FAT32's boot sector; the field could say another one, and never does.
const BACKUP: u16 = 6;

const EARLY: [Early; 4] = [
    Early { sectors: 320, sectors_per_cluster: 1, root_entries: 64, media: 0xfe, table_sectors: 1 },
    Early { sectors: 360, sectors_per_cluster: 1, root_entries: 64, media: 0xfc, table_sectors: 2 },
    Early { sectors: 640, sectors_per_cluster: 2, root_entries: 112, media: 0xff, table_sectors: 1 },
    Early { sectors: 720, sectors_per_cluster: 2, root_entries: 112, media: 0xfd, table_sectors: 2 },
];

/// The numbers that both kinds of boot sector come down to.
struct Parameters {
    sector_size: u32,
    sectors_per_cluster: u8,
    reserved: u16,
    tables: u8,
    root_entries: u16,
    sectors: u32,
    table_sectors: u32,
    fat32: bool,
}

impl Geometry {
    /// Reads the boot sector of a volume.
    pub fn read(device: &dyn BlockDevice) -> Result<Self> {
        let sector: [u8; 512] = read_array(device, 0)?;
        let geometry = match Self::parse_with_table(device, &sector) {
            Ok(geometry) => geometry,
            Err(error) => match Self::early(device)? {
                Some(geometry) => geometry,
                None => Self::backup(device, &sector)?.ok_or(error)?,
            },
        };
        Ok(geometry.with_size(device.size()).with_sound_table(device))
    }

    /// FAT32 keeps a copy of its boot sector. It counts where the sector itself was wiped and the
    /// tables were not: another file system made over this one leaves the copy as well.
    fn backup(device: &dyn BlockDevice, wiped: &[u8; 512]) -> Result<Option<Self>> {
        if wiped.iter().any(|&byte| byte != 0) {
            return Ok(None);
        }
        for sector_size in [512u64, 1024, 2048, 4096] {
            let at = sector_size.saturating_mul(BACKUP.into());
            let Some(sector) = probe_array::<512>(device, at)? else { break };
            let bpb = Record::new(FAT, "backup of the boot sector", at, &sector);
            let Ok(mut geometry) = Self::parse(&sector) else { continue };
            if geometry.width != Width::Fat32
                || u64::from(geometry.sector_size) != sector_size
                || bpb.le16(0x32)? != BACKUP
                || !geometry.has_table(device)?
            {
                continue;
            }
            geometry.notes.push(format!("the boot sector is wiped: its backup at byte {at} is used"));
            for evidence in &mut geometry.evidence {
                evidence.offset = evidence.offset.saturating_add(at);
            }
            // The dirty flag would be written into a sector of zeros.
            geometry.state_offset = None;
            return Ok(Some(geometry));
        }
        Ok(None)
    }

    /// Whether the device starts with a boot sector and a table that fit each other. There is no
    /// magic number: everything that a FAT driver relies on must make sense.
    pub fn probe(device: &dyn BlockDevice) -> Result<bool> {
        let Some(sector) = probe_array::<512>(device, 0)? else { return Ok(false) };
        let Ok(geometry) = Self::parse_with_table(device, &sector) else {
            return Ok(Self::early(device)?.is_some() || Self::backup(device, &sector)?.is_some());
        };
        if [&b"NTFS    "[..], b"EXFAT   ", b"-FVE-FS-"].contains(&sector.get(3..11).unwrap_or_default())
            || sector.get(0x36..0x3e) == Some(b"HPFS    ")
        {
            return Ok(false);
        }
        if geometry.has_table(device)? {
            return Ok(true);
        }
        // A damaged table does not make it another format where the sector names itself.
        let jumps = matches!(sector, [0xeb, _, 0x90, ..] | [0xe9, ..]);
        let named = match geometry.width {
            Width::Fat32 => sector.get(0x52..0x5a) == Some(b"FAT32   "),
            _ => sector.get(0x36..0x39) == Some(b"FAT"),
        };
        Ok(jumps && named && sector.ends_with(&[0x55, 0xaa]))
    }

    /// Whether one of the tables starts as a table does. That another cannot be read does not matter then.
    fn has_table(&self, device: &dyn BlockDevice) -> Result<bool> {
        let mut failed = None;
        for index in 0..self.table_count {
            match self.is_table(device, index) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(false), Err)
    }

    /// Whether a table starts as one does: the first entry repeats the media byte below bits that are all
    /// set; the second holds an end mark, in which FAT16 and FAT32 clear two flags.
    fn is_table(&self, device: &dyn BlockDevice, index: u32) -> Result<bool> {
        let Some(start) = probe_array::<8>(device, self.table_start(index))? else { return Ok(false) };
        let media = match (self.width, start) {
            (Width::Fat12, [media, 0xff, 0xff, ..]) => media,
            (Width::Fat16, [media, 0xff, 0xff, flags, ..]) if flags | 0xc0 == 0xff => media,
            (Width::Fat32, [media, 0xff, 0xff, reserved, ..]) if reserved & 0x0f == 0x0f => media,
            _ => return Ok(false),
        };
        Ok(media >= 0xf0)
    }

    /// The kernel refuses a media byte that no medium has, and other systems never look at it: where all
    /// else is in order it is a volume of theirs.
    fn parse_with_table(device: &dyn BlockDevice, sector: &[u8; 512]) -> Result<Self> {
        let mut geometry = Self::parse(sector)?;
        let bpb = Record::new(FAT, "boot sector", 0, sector);
        let media = bpb.u8(0x15)?;
        if !matches!(media, 0xf0 | 0xf8..) {
            if !geometry.has_table(device)? {
                return Err(bpb.corrupt_field("media"));
            }
            geometry.notes.push(format!("the media byte is {media:02x}, which no medium has"));
        }
        Ok(geometry)
    }

    fn parse(sector: &[u8; 512]) -> Result<Self> {
        let bpb = Record::new(FAT, "boot sector", 0, sector);
        let table_sectors16 = bpb.le16(0x16)?;
        let fat32 = table_sectors16 == 0;
        let root_entries = bpb.le16(0x11)?;
        let (sectors16, sectors32) = (bpb.le16(0x13)?, bpb.le32(0x20)?);
        let parameters = Parameters {
            sector_size: u32::from(bpb.le16(0x0b)?),
            sectors_per_cluster: bpb.u8(0x0d)?,
            reserved: bpb.le16(0x0e)?,
            tables: bpb.u8(0x10)?,
            root_entries: if fat32 { 0 } else { root_entries },
            sectors: if sectors16 == 0 { sectors32 } else { u32::from(sectors16) },
            table_sectors: if fat32 { bpb.le32(0x24)? } else { u32::from(table_sectors16) },
            fat32,
        };
        let mut geometry = Self::calculate(&parameters, &bpb)?;
        if sectors16 != 0 && sectors32 != 0 && u32::from(sectors16) != sectors32 {
            geometry.notes.push(format!("both totals of sectors are set: {sectors16} is used, not {sectors32}"));
        }
        if fat32 && root_entries != 0 {
            geometry
                .notes
                .push(format!("FAT32 has no root directory of {root_entries} entries: their number is ignored"));
        }
        geometry.extend(&bpb)?;
        if !sector.ends_with(&[0x55, 0xaa]) {
            geometry.notes.push("the boot sector does not end in 55 AA".to_owned());
        }
        Ok(geometry)
    }

    /// The part of the parameter block that came with DOS 4 and with FAT32.
    fn extend(&mut self, bpb: &Record<'_>) -> Result<()> {
        let base = if self.width == Width::Fat32 { 0x40 } else { 0x24 };
        let at = |field: usize| field.saturating_add(base);
        let signature = bpb.u8(at(2))?;
        if matches!(signature, 0x28 | 0x29) {
            self.state_offset = Some(at(1) as u64);
            self.serial = Some(bpb.le32(at(3))?);
        }
        if signature == 0x29 {
            self.label = Some(bpb.array(at(7))?);
            let what = "system identifier (not what decides the variant)";
            let bytes = bpb.bytes(at(0x12), 8)?.to_vec();
            self.evidence.push(Evidence { offset: at(0x12) as u64, bytes, what });
        }
        if self.width == Width::Fat32 {
            let flags = bpb.le16(0x28)?;
            if flags & 0x80 != 0 {
                let active = u32::from(flags & 0x0f);
                self.notes.push(format!("mirroring is off: only table {active} is in use"));
                self.active_table = Some(if active < self.table_count { active } else { 0 });
            }
            let info = bpb.le16(0x30)?;
            if !matches!(info, 0 | 0xffff) {
                self.info_offset = Some(u64::from(info).saturating_mul(u64::from(self.sector_size)));
            }
            if self.cluster_count < 65_525 {
                self.notes
                    .push(format!("FAT32 with {} clusters, fewer than its specification has", self.cluster_count));
            }
        }
        Ok(())
    }

    /// The known formats without a parameter block; `None` when it is none of them.
    fn early(device: &dyn BlockDevice) -> Result<Option<Self>> {
        let Some(early) = EARLY.iter().find(|early| u64::from(early.sectors) * 512 == device.size()) else {
            return Ok(None);
        };
        let second = 512u64.saturating_mul(u64::from(early.table_sectors).saturating_add(1));
        for at in [512, second] {
            if read_array(device, at)? != [early.media, 0xff, 0xff] {
                return Ok(None);
            }
        }
        let parameters = Parameters {
            sector_size: 512,
            sectors_per_cluster: early.sectors_per_cluster,
            reserved: 1,
            tables: 2,
            root_entries: early.root_entries,
            sectors: u32::from(early.sectors),
            table_sectors: u32::from(early.table_sectors),
            fat32: false,
        };
        let mut geometry = Self::calculate(&parameters, &Record::new(FAT, "boot sector", 0, &[]))?;
        geometry.notes.push("no parameter block: a DOS 1.x floppy, known by its size and media byte".to_owned());
        geometry.evidence = vec![Evidence {
            offset: 512,
            bytes: vec![early.media, 0xff, 0xff],
            what: "media byte and end mark at the start of the table",
        }];
        Ok(Some(geometry))
    }

    fn calculate(parameters: &Parameters, bpb: &Record<'_>) -> Result<Self> {
        let Parameters { sector_size, sectors_per_cluster, .. } = *parameters;
        if !(512..=16_384).contains(&sector_size) || !sector_size.is_power_of_two() {
            return Err(bpb.corrupt_field("bytes per sector"));
        }
        if !sectors_per_cluster.is_power_of_two() {
            return Err(bpb.corrupt_field("sectors per cluster"));
        }
        if parameters.reserved == 0 || parameters.table_sectors == 0 || !(1..=4).contains(&parameters.tables) {
            return Err(bpb.corrupt_field("reserved sectors and tables"));
        }
        if parameters.fat32 != (parameters.root_entries == 0) {
            return Err(bpb.corrupt_field("root entries"));
        }
        let unit = u64::from(sector_size);
        let cluster_size = sector_size.saturating_mul(u32::from(sectors_per_cluster));
        let table_offset = u64::from(parameters.reserved).saturating_mul(unit);
        let table_len = u64::from(parameters.table_sectors).saturating_mul(unit);
        let tables_len = table_len.saturating_mul(u64::from(parameters.tables));
        let root_offset = table_offset.saturating_add(tables_len);
        let root_len = u64::from(parameters.root_entries).saturating_mul(32);
        let data_offset = root_offset.saturating_add(root_len.div_ceil(unit).saturating_mul(unit));
        let volume_size = u64::from(parameters.sectors).saturating_mul(unit);
        let clusters = volume_size.saturating_sub(data_offset).checked_div(u64::from(cluster_size)).unwrap_or(0);
        if clusters == 0 {
            return Err(bpb.corrupt_field("total sectors"));
        }
        let (width, bits, most) = match clusters {
            _ if parameters.fat32 => (Width::Fat32, 32, 0x0fff_fff5),
            0..=4084 => (Width::Fat12, 12, 4084),
            _ => (Width::Fat16, 16, 65_524),
        };
        let mut notes = Vec::new();
        let held = table_len.saturating_mul(8).checked_div(bits).unwrap_or(0).saturating_sub(2);
        if held < clusters {
            notes.push(format!("the table has room for {held} clusters, the volume for {clusters}"));
        }
        let cluster_count = clusters.min(held);
        if cluster_count == 0 || cluster_count > most {
            return Err(bpb.corrupt_field("number of clusters"));
        }
        let root = match parameters.fat32 {
            true => Root::Chain(bpb.le32(0x2c)?),
            false => Root::Fixed { offset: root_offset, len: root_len },
        };
        let evidence = bpb.bytes(0x0b, 14).map(|bytes| Evidence {
            offset: 0x0b,
            bytes: bytes.to_vec(),
            what: "BIOS parameter block",
        });
        Ok(Self {
            width,
            sector_size,
            cluster_size,
            table_offset,
            table_len,
            table_count: u32::from(parameters.tables),
            active_table: None,
            sound_table: 0,
            root,
            data_offset,
            cluster_count: u32::try_from(cluster_count).map_err(|_| bpb.corrupt())?,
            volume_size,
            info_offset: None,
            state_offset: None,
            serial: None,
            label: None,
            notes,
            evidence: evidence.into_iter().collect(),
        })
    }

    fn with_size(mut self, device_size: u64) -> Self {
        if device_size < self.volume_size {
            let missing = self.volume_size.saturating_sub(device_size);
            self.notes.push(format!("the image ends {missing} bytes before the volume"));
        }
        self
    }

    /// The first sector of a floppy's table is what fails first, and there is a copy.
    fn with_sound_table(mut self, device: &dyn BlockDevice) -> Self {
        let is_table = |index: u32| self.is_table(device, index);
        if self.active_table.is_none()
            && matches!(is_table(0), Ok(false))
            && let Some(sound) = (1..self.table_count).find(|index| matches!(is_table(*index), Ok(true)))
        {
            self.notes
                .push(format!("the first table is damaged: its copy at byte {} is used", self.table_start(sound)));
            self.sound_table = sound;
        }
        self
    }

    /// First byte of a cluster; `None` for a number that no cluster has.
    pub fn cluster_offset(&self, cluster: u32) -> Option<u64> {
        let index = cluster.checked_sub(2).filter(|&index| index < self.cluster_count)?;
        u64::from(index).checked_mul(u64::from(self.cluster_size))?.checked_add(self.data_offset)
    }

    /// The cluster that a byte of the volume lies in.
    pub fn cluster_at(&self, offset: u64) -> Option<u32> {
        let index = offset.checked_sub(self.data_offset)?.checked_div(u64::from(self.cluster_size))?;
        u32::try_from(index).ok().filter(|&index| index < self.cluster_count)?.checked_add(2)
    }

    /// The table that is read, and written first.
    pub fn first_table(&self) -> u32 {
        self.active_table.unwrap_or(self.sound_table)
    }

    /// First byte of one of the tables.
    pub fn table_start(&self, index: u32) -> u64 {
        self.table_len.saturating_mul(u64::from(index)).saturating_add(self.table_offset)
    }

    /// Name of the variant.
    pub fn variant(&self) -> &'static str {
        match self.width {
            Width::Fat12 => "FAT12",
            Width::Fat16 => "FAT16",
            Width::Fat32 => "FAT32",
        }
    }
}

/// What FSInfo says: a hint, never relied upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Info {
    /// Free clusters, where it is known.
    pub free: Option<u32>,
    /// Where the search for a free cluster may start.
    pub next: Option<u32>,
}

impl Info {
    /// `None` when the sector is not an FSInfo sector.
    pub fn parse(sector: &[u8; 512]) -> Option<Self> {
        let info = Record::new(FAT, "FSInfo", 0, sector);
        if info.le32(0).ok()? != 0x4161_5252 || info.le32(484).ok()? != 0x6141_7272 {
            return None;
        }
        let known = |value: u32| (value != u32::MAX).then_some(value);
        Some(Self { free: known(info.le32(488).ok()?), next: known(info.le32(492).ok()?) })
    }
}

/// The error of a structure of this format.
pub(super) fn corrupt(what: &'static str, at: u64) -> Error {
    Error::corrupt(FAT, what, at)
}
