//! EWF, the Expert Witness Compression Format: evidence as EnCase (E01), SMART (S01), FTK Imager and
//! libewf write it: a disk in packed chunks over one file or many, with checksums and case data.
//!
//! Specification: Joachim Metz, "Expert Witness Compression Format specification" (libewf).
//!
//! ```text
//!   E01:  file header | header2 header volume | sectors table table2 | ... | next
//!   E02:  file header | data                  | sectors table table2 | ... | digest hash error2 done
//!                        a section: descriptor (type, next, size, Adler-32), then its data;
//!                        a table: where each chunk lies (S01, EnCase 1: with the chunks themselves)
//! ```
//!
//! Supported: all writers of version 1, segments to `.ZZZ` opened from any of them, checksums of
//! every structure and chunk (a bad chunk is an error of its own), the second copy of a damaged
//! table, segments past 2 GiB, stored hashes, case data, ranges that could not be acquired.
//! Not supported: encryption by X-Ways, logical evidence (L01), version 2 (Ex01, Lx01).

mod chunk;
mod metadata;
mod section;
mod segment;

use std::sync::Arc;

use self::chunk::Chunks;
use self::metadata::{Metadata, Notes};
use self::section::{Section, Walk};
use self::segment::Segments;
use super::bad::Damaged;
use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::check::Check;
use crate::device::mapped::Mapped;
use crate::device::{BlockDevice, Device, probe_array};
use crate::digest::Algorithm;
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "ewf", snapshots: false, probe, open };

/// What the first eight bytes say: the kind of evidence.
const KINDS: [(&[u8; 8], Option<&str>); 4] = [
    (b"EVF\x09\x0d\x0a\xff\x00", None),
    (b"LVF\x09\x0d\x0a\xff\x00", Some("logical evidence (L01)")),
    (b"EVF2\x0d\x0a\x81\x00", Some("version 2 of the format (Ex01)")),
    (b"LEF2\x0d\x0a\x81\x00", Some("logical evidence of version 2 (Lx01)")),
];
/// Larger chunks than any writer makes (16 MiB).
const MAX_CHUNK: u64 = 64 << 20;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    let start = probe_array::<8>(device, 0)?;
    Ok(start.is_some_and(|start| KINDS.iter().any(|(magic, _)| **magic == start)))
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let start = probe_array::<8>(file.as_ref(), 0)?;
    match KINDS.iter().find(|(magic, _)| Some(**magic) == start) {
        Some((_, None)) => {}
        Some((_, Some(kind))) => return Err(Error::unsupported(FORMAT.name, *kind)),
        None => return Err(Error::corrupt(FORMAT.name, "file header (signature)", 0)),
    }
    let mut segments = Segments::start(file, companions)?;
    let mut volume = None;
    let mut metadata = Metadata::default();
    let mut chunks = chunk::Builder::default();
    while let Some(number) = segments.next()? {
        let segment = segments.current()?;
        let mut walk = Walk::new(segment.clone(), number);
        while let Some(section) = walk.next() {
            match section.kind.as_str() {
                "volume" | "disk" if volume.is_none() => volume = Some(Volume::read(&section)?),
                "data" => check_set(&section, volume.as_ref(), &mut metadata.notes),
                "table" | "table2" => chunks.add(&section, &mut metadata.notes),
                "sectors" => chunks.sectors(&section),
                "x_encryption" => return Err(Error::unsupported(FORMAT.name, "encryption by X-Ways")),
                "next" => segments.expect_more(),
                "done" => segments.finish(),
                _ => metadata.add(&section),
            }
        }
        if let Some(note) = walk.damage() {
            metadata.notes.push(note);
            segments.finish();
        }
    }
    let volume = volume.ok_or_else(|| Error::corrupt(FORMAT.name, "volume section (there is none)", 13))?;
    let (count, names) = (segments.count(), segments.names());
    let whole = segments.into_devices();
    let chunks: Chunks = chunks.finish(&volume, &mut metadata.notes)?;
    let (tables, file_size) = (chunks.tables(), whole.iter().map(|segment| segment.size()).sum::<u64>());
    let data = whole.first().cloned().ok_or(Error::Invalid)?;
    let sector_size = if matches!(volume.sector_size, 512 | 1024 | 2048 | 4096) { volume.sector_size } else { 512 };
    let chunk_size = volume.chunk_size();
    let chunks = Arc::new(chunks);
    let mapped = Mapped::new(chunks.clone(), data, None, sector_size, options.cache_size);
    let stored: Device = Arc::new(mapped.with_large_units(options.cache_size, chunk_size));
    let bad = metadata.unread(volume.sector_size);
    let disk = if bad.is_empty() {
        stored.clone()
    } else {
        let why = "it could not be read when the image was made";
        Arc::new(Damaged::new(stored.clone(), bad, why, options.bad_as_zeros))
    };
    let mut opened = Opened::new(FORMAT.name, disk);
    opened.add("segments", if count == 1 { "1".to_owned() } else { format!("{count} ({names})") });
    volume.describe(&mut opened);
    opened.add("chunk tables", tables);
    opened.add("size of all files", format!("{file_size} bytes"));
    let digests = metadata.digests();
    let damage = metadata.notes.damage();
    metadata.describe(volume.sector_size, options.bad_as_zeros, &mut opened);
    opened.checks.push(Check::known("section checksums", "every segment", damage));
    opened.checks.push(Check::walk(
        "chunk tables and their copies",
        "every segment",
        Box::new(move || chunks.faults()),
    ));
    opened.checks.push(Check::reads("chunk checksums", "every chunk", stored.clone()));
    // Of what is stored: with zeros for what could not be read.
    for (algorithm, digest) in digests {
        let what = if algorithm == Algorithm::Md5 { "stored MD5" } else { "stored SHA-1" };
        opened.checks.push(Check::digest(what, "the disk", (algorithm, &digest), stored.clone()));
    }
    Ok(opened)
}

/// Later segments repeat the volume's data; one of another set would repeat another's.
fn check_set(section: &Section, volume: Option<&Volume>, notes: &mut Notes) {
    let Some(known) = volume.map(|volume| volume.set).filter(|set| set != &[0; 16]) else { return };
    let data = section.read(1 << 16).unwrap_or_default();
    if data.get(64..80).is_some_and(|here| here != known && here != [0; 16]) {
        notes.push(format!("segment {} carries the identifier of another set", section.segment));
    }
}

/// The volume section: what was acquired, and in which portions.
struct Volume {
    smart: bool,
    media_type: u8,
    media_flags: u8,
    chunk_count: u64,
    sectors_per_chunk: u32,
    sector_size: u32,
    sector_count: u64,
    compression: u8,
    granularity: u32,
    set: [u8; 16],
}

impl Volume {
    /// Section "Volume section": 1,052 bytes, or the 94 of SMART.
    fn read(section: &Section) -> Result<Self> {
        let bytes = section.read(1 << 16)?;
        let smart = bytes.len() < 1052;
        let (len, sum_at) = if smart { (94, 90) } else { (1052, 1048) };
        let record = Record::new(FORMAT.name, "volume section", section.data_at, &bytes);
        if record.le32(sum_at)? != section::adler32(record.bytes(0, sum_at)?) {
            return Err(record.part("volume section (checksum)", 0, len)?.corrupt());
        }
        let volume = Self {
            smart,
            media_type: if smart { 0xff } else { record.u8(0)? },
            media_flags: if smart { 0 } else { record.u8(36)? },
            chunk_count: record.le32(4)?.into(),
            sectors_per_chunk: record.le32(8)?,
            sector_size: record.le32(12)?,
            sector_count: if smart { record.le32(16)?.into() } else { record.le64(16)? },
            compression: if smart { 0xff } else { record.u8(52)? },
            granularity: if smart { 0 } else { record.le32(56)? },
            set: if smart { [0; 16] } else { record.array(64)? },
        };
        if volume.chunk_size() == 0 || volume.chunk_size() > MAX_CHUNK {
            return Err(record.corrupt_field("sectors per chunk, bytes per sector"));
        }
        // Both counts are there to be compared; a writer that knew only one leaves the other 0.
        let expected = volume.size().map(|size| size.div_ceil(volume.chunk_size()));
        if expected.is_none_or(|expected| volume.chunk_count != 0 && expected > volume.chunk_count) {
            return Err(record.corrupt_field("number of sectors, number of chunks"));
        }
        Ok(volume)
    }

    fn chunk_size(&self) -> u64 {
        u64::from(self.sectors_per_chunk).saturating_mul(self.sector_size.into())
    }

    fn size(&self) -> Option<u64> {
        match self.sector_count {
            0 => self.chunk_count.checked_mul(self.chunk_size()),
            count => count.checked_mul(self.sector_size.into()),
        }
    }

    fn describe(&self, opened: &mut Opened) {
        opened.add("kind", if self.smart { "SMART (EWF-S01)" } else { "EnCase (EWF-E01)" });
        opened.add("virtual size", format!("{} bytes", opened.disk.size()));
        opened.add("chunk size", format!("{} bytes", self.chunk_size()));
        opened.add("sector size", format!("{} bytes", self.sector_size));
        let media = match self.media_type {
            0 => "removable disk",
            1 => "fixed disk",
            3 => "optical disc",
            0x0e => "single files",
            0x10 => "memory",
            _ => "",
        };
        if !media.is_empty() {
            let physical = if self.media_flags & 2 != 0 { "physical" } else { "logical" };
            opened.add("media", format!("{media}, {physical}"));
        }
        let level = match self.compression {
            0 => "none",
            1 => "fast",
            2 => "best",
            _ => "",
        };
        if !level.is_empty() {
            opened.add("compression", level);
        }
        if self.granularity != 0 {
            opened.add("error granularity", format!("{} sectors", self.granularity));
        }
        if self.set != [0; 16] {
            let hex: String = self.set.iter().map(|byte| format!("{byte:02x}")).collect();
            opened.add("set identifier", hex);
        }
    }
}
