//! `imgfs create`: a blank formatted image.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use fatfs::{FatType, FormatVolumeOptions};
use gptman::{GPT, GPTPartitionEntry};

use super::{Outcome, interrupt, options};

const SECTOR: u64 = 512;
/// Where the only partition starts: on a border of 1 MiB, as every present tool has it.
const FIRST_PARTITION: u64 = 1 << 20;
/// A boot sector, two tables, a root directory and some clusters.
const SMALLEST: u64 = 64 << 10;
/// A volume with more clusters than this would be read as FAT32.
const MAX_SIZE: u64 = u32::MAX as u64 * SECTOR;

#[derive(clap::Args)]
pub struct Args {
    /// Size: 160K, 180K, 320K, 360K, 720K, 1200K, 1440K, 1680K (DMF) and 2880K are floppies
    #[arg(long, value_name = "SIZE")]
    size: String,
    /// Volume label, up to 11 characters
    #[arg(long)]
    label: Option<String>,
    /// Width of the file allocation table; chosen by size when left out
    #[arg(long, value_name = "12|16|32", value_parser = ["12", "16", "32"])]
    fat: Option<String>,
    /// Put the volume into a partition
    #[arg(long, value_enum)]
    partition: Option<Partition>,
    /// The image: a new file
    image: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Partition {
    Mbr,
    Gpt,
}

/// What DOS formats a floppy to.
struct Floppy {
    sectors: u32,
    media: u8,
    heads: u16,
    per_track: u16,
    root_entries: u16,
    cluster: u32,
}

const fn floppy(kib: u32, media: u8, heads: u16, per_track: u16, root_entries: u16, cluster: u32) -> Floppy {
    Floppy { sectors: kib * 2, media, heads, per_track, root_entries, cluster }
}

/// Microsoft's formats of 5.25 and 3.5 inch disks, by size.
const FLOPPIES: &[Floppy] = &[
    floppy(160, 0xfe, 1, 8, 64, 512),
    floppy(180, 0xfc, 1, 9, 64, 512),
    floppy(320, 0xff, 2, 8, 112, 1024),
    floppy(360, 0xfd, 2, 9, 112, 1024),
    floppy(720, 0xf9, 2, 9, 112, 1024),
    floppy(1200, 0xf9, 2, 15, 224, 512),
    floppy(1440, 0xf0, 2, 18, 224, 512),
    floppy(1680, 0xf0, 2, 21, 16, 2048),
    floppy(2880, 0xf0, 2, 36, 240, 1024),
];

pub fn run(args: &Args) -> Result<Outcome> {
    let size = options::size(&args.size).context("--size")? / SECTOR * SECTOR;
    ensure!(size <= MAX_SIZE, "FAT holds at most {MAX_SIZE} bytes");
    let label = args.label.as_deref().filter(|label| !label.is_empty()).map(label).transpose()?;
    interrupt::prepare()?;
    interrupt::new_file(&args.image, |file| {
        file.set_len(size)?;
        fill(args, file, size, label)
    })?;
    Ok(Outcome::Complete)
}

fn fill(args: &Args, file: &mut File, size: u64, label: Option<[u8; 11]>) -> Result<()> {
    let (start, end) = match args.partition {
        None => (0, size),
        // The backup of a GPT takes the last 33 sectors.
        Some(Partition::Gpt) => (FIRST_PARTITION, size.saturating_sub(34 * SECTOR)),
        Some(Partition::Mbr) => (FIRST_PARTITION, size),
    };
    match args.partition {
        None => ensure!(size >= SMALLEST, "too small: a volume takes {SMALLEST} bytes or more"),
        Some(_) => {
            ensure!(
                start + SMALLEST <= end,
                "too small: the partition starts at byte {start}, and takes {SMALLEST} or more"
            );
        }
    }
    let sectors = u32::try_from((end - start) / SECTOR).context("the volume is too large")?;
    let mut format = FormatVolumeOptions::new().total_sectors(sectors).bytes_per_sector(512).volume_id(serial());
    if let Some(label) = label {
        format = format.volume_label(label);
    }
    let known = FLOPPIES.iter().find(|floppy| args.partition.is_none() && floppy.sectors == sectors);
    format = match known {
        Some(floppy) => format
            .media(floppy.media)
            .heads(floppy.heads)
            .sectors_per_track(floppy.per_track)
            .max_root_dir_entries(floppy.root_entries)
            .bytes_per_cluster(floppy.cluster)
            .drive_num(0),
        None => format.media(0xf8).heads(255).sectors_per_track(63).drive_num(0x80),
    };
    let mut volume = Volume { file, start, len: end - start, at: 0 };
    match args.fat.as_deref() {
        None => fatfs::format_volume(&mut volume, format)?,
        Some(width) => format_as(&mut volume, width.parse()?, format)?,
    }
    match args.partition {
        None => return Ok(()),
        Some(Partition::Mbr) => write_mbr(file, start, end - start)?,
        Some(Partition::Gpt) => write_gpt(file, start, end)?,
    }
    hide(file, start)
}

/// Formats to this width of the table. The formatter goes by the number of clusters alone, so that a
/// cluster is looked for which brings that number about.
fn format_as(volume: &mut Volume<'_>, wanted: u8, format: FormatVolumeOptions) -> Result<()> {
    let size = volume.file.metadata()?.len();
    let cluster_sizes = (9..=16).map(|bits| Some(1u32 << bits));
    let kind = match wanted {
        12 => FatType::Fat12,
        16 => FatType::Fat16,
        _ => FatType::Fat32,
    };
    // Its own choice first.
    for cluster_size in std::iter::once(None).chain(cluster_sizes) {
        let mut format = format.clone().fat_type(kind);
        if let Some(cluster_size) = cluster_size {
            format = format.bytes_per_cluster(cluster_size);
        }
        interrupt::check()?;
        // Nothing of the attempt before stays.
        volume.file.set_len(0)?;
        volume.file.set_len(size)?;
        volume.at = 0;
        if fatfs::format_volume(&mut *volume, format).is_ok() && width(volume.file, volume.start)? == wanted {
            return Ok(());
        }
    }
    bail!(
        "no volume of {} bytes is FAT{wanted}: FAT12 has up to 4,084 clusters, FAT16 up to 65,524, FAT32 more, of 512 \
         bytes to 64 KiB each; choose another --size, or leave --fat out",
        volume.len
    )
}

/// Width of the table of the volume that was formatted at `start`: where each has its name (Microsoft FAT
/// specification 1.03, section 3.1, BS_FilSysType).
fn width(file: &mut File, start: u64) -> Result<u8> {
    let mut boot = [0u8; 0x5a];
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(&mut boot)?;
    let named = |at: usize, name: &[u8]| boot.get(at..at + name.len()) == Some(name);
    Ok(if named(0x52, b"FAT32") {
        32
    } else if named(0x36, b"FAT16") {
        16
    } else {
        12
    })
}

/// Says in the boot sector, and in FAT32's copy of it, how many sectors lie before the volume (BPB_HiddSec).
fn hide(file: &mut File, start: u64) -> Result<()> {
    const HIDDEN_SECTORS: u64 = 0x1c;
    const BACKUP: u64 = 6 * SECTOR;
    let sectors = u32::try_from(start / SECTOR)?.to_le_bytes();
    let backup = (width(file, start)? == 32).then_some(start + BACKUP);
    for boot in std::iter::once(start).chain(backup) {
        file.seek(SeekFrom::Start(boot + HIDDEN_SECTORS))?;
        file.write_all(&sectors)?;
    }
    Ok(())
}

/// One row, LBA addresses, a type that fits the table's width.
fn write_mbr(file: &mut File, start: u64, len: u64) -> Result<()> {
    let kind = match width(file, start)? {
        12 => 0x01,
        16 => 0x0e,
        _ => 0x0c,
    };
    let mut row = [0u8; 16];
    // Cylinders, heads and sectors say "see the LBA" (Microsoft: FE FF FF).
    let fields: [(usize, &[u8]); 5] = [
        (1, &[0xfe, 0xff, 0xff]),
        (4, &[kind]),
        (5, &[0xfe, 0xff, 0xff]),
        (8, &u32::try_from(start / SECTOR)?.to_le_bytes()),
        (12, &u32::try_from(len / SECTOR)?.to_le_bytes()),
    ];
    for (at, bytes) in fields {
        row.get_mut(at..at + bytes.len()).context("the row has 16 bytes")?.copy_from_slice(bytes);
    }
    file.seek(SeekFrom::Start(440))?;
    file.write_all(&serial().to_le_bytes())?;
    file.seek(SeekFrom::Start(446))?;
    file.write_all(&row)?;
    file.seek(SeekFrom::Start(510))?;
    Ok(file.write_all(&[0x55, 0xaa])?)
}

/// Microsoft basic data, the type that every system mounts.
fn write_gpt(file: &mut File, start: u64, end: u64) -> Result<()> {
    const BASIC_DATA: [u8; 16] =
        [0xa2, 0xa0, 0xd0, 0xeb, 0xe5, 0xb9, 0x33, 0x44, 0x87, 0xc0, 0x68, 0xb6, 0xb7, 0x26, 0x99, 0xc7];
    let mut table = GPT::new_from(file, SECTOR, random_guid()?)?;
    table[1] = GPTPartitionEntry {
        partition_type_guid: BASIC_DATA,
        unique_partition_guid: random_guid()?,
        starting_lba: start / SECTOR,
        ending_lba: end / SECTOR - 1,
        attribute_bits: 0,
        partition_name: "".into(),
    };
    table.write_into(file)?;
    Ok(GPT::write_protective_mbr_into(file, SECTOR)?)
}

/// A version 4 GUID.
fn random_guid() -> Result<[u8; 16]> {
    let mut guid = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut guid)?;
    let [_, _, _, _, _, _, _, version, variant, ..] = &mut guid;
    *version = *version & 0x0f | 0x40;
    *variant = *variant & 0x3f | 0x80;
    Ok(guid)
}

/// A serial number, from the time, as DOS makes it.
fn serial() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mixed = now.as_secs().wrapping_mul(0x9e37_79b9).wrapping_add(u64::from(now.subsec_nanos()));
    (mixed & 0xffff_ffff) as u32
}

/// A label in upper case, padded; what DOS forbids is refused.
fn label(text: &str) -> Result<[u8; 11]> {
    let text = text.to_ascii_uppercase();
    ensure!(text.len() <= 11, "a label has at most 11 characters");
    ensure!(!text.starts_with(' '), "a label does not start with a space");
    if let Some(bad) = text.chars().find(|c| !c.is_ascii() || c.is_control() || "\"*+,./:;<=>?[\\]|".contains(*c)) {
        bail!("{bad:?} cannot be in a label");
    }
    let mut label = [b' '; 11];
    for (to, from) in label.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    Ok(label)
}

/// A part of the file, as the formatter wants it.
struct Volume<'a> {
    file: &'a mut File,
    start: u64,
    len: u64,
    at: u64,
}

impl Volume<'_> {
    fn part(&self, len: usize) -> usize {
        usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX).min(len)
    }
}

impl Read for Volume<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let len = self.part(buf.len());
        self.file.seek(SeekFrom::Start(self.start + self.at))?;
        let done = self.file.read(buf.get_mut(..len).unwrap_or_default())?;
        self.at += done as u64;
        Ok(done)
    }
}

impl Write for Volume<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        interrupt::check()?;
        let len = self.part(buf.len());
        self.file.seek(SeekFrom::Start(self.start + self.at))?;
        let done = self.file.write(buf.get(..len).unwrap_or_default())?;
        self.at += done as u64;
        Ok(done)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Volume<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
