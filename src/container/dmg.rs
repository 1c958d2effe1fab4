//! DMG (UDIF), Apple's disk image: the disk in runs of sectors, packed one by one, and a trailer.
//!
//! Specification: none by Apple; the layout is described in libmodi, "Mac OS disk image types".
//!
//! ```text
//!   data fork: packed runs | property list (XML) or resource fork: tables "blkx" | trailer "koly"
//!                            each table ("mish"): runs of one partition, kind and place   512 bytes
//! ```
//!
//! Supported: runs stored, zero, and packed by ADC, zlib, bzip2, LZFSE and LZMA; tables in the
//! property list and in a resource fork; a data fork that does not start the file.
//! Not supported: encrypted images, images in several segments.

mod adc;
mod table;

use std::io::Read;
use std::sync::Arc;

use bzip2::read::BzDecoder;
use lzfse_rust::LzfseRingDecoder;
use lzma_rust2::XzReader;

use self::table::{Kind, Piece, TableSum};
use super::{Companions, ContainerFormat, Opened, Options, unpack};
use crate::bytes::Record;
use crate::check::Check;
use crate::device::concat::Concat;
use crate::device::mapped::{Mapped, Mapping, Place, Run};
use crate::device::window::Window;
use crate::device::{BlockDevice, Device, probe_array, read_array, read_vec};
use crate::digest::{self, Algorithm, hex};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "dmg", snapshots: false, probe, open };

const SECTOR: u64 = 512;
/// Length of the trailer.
const TRAILER: u64 = 512;
/// Largest run that is unpacked into memory; Apple writes 1 MiB at most.
const MAX_RUN: u64 = 64 << 20;
/// Memory for an LZMA dictionary, KiB.
const MEMORY_KIB: u32 = 256 << 10;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    if encryption(device)?.is_some() {
        return Ok(true);
    }
    // What stands before the trailer is packed data: it may begin like any other format.
    let start = probe_array::<12>(device, device.size().saturating_sub(TRAILER))?;
    Ok(start == Some(*b"koly\0\0\0\x04\0\0\x02\0"))
}

/// The version of the encrypted wrapper around the image.
fn encryption(device: &dyn BlockDevice) -> Result<Option<u32>> {
    if probe_array::<8>(device, 0)? == Some(*b"encrcdsa") {
        return Ok(Some(2));
    }
    let end = device.size().saturating_sub(8);
    Ok((probe_array::<8>(device, end)? == Some(*b"cdsaencr")).then_some(1))
}

fn open(file: Device, _: &dyn Companions, options: &Options) -> Result<Opened> {
    if let Some(version) = encryption(file.as_ref())? {
        return Err(Error::unsupported(FORMAT.name, format!("encryption (version {version})")));
    }
    let trailer = Trailer::read(file.as_ref())?;
    if trailer.segments > 1 {
        return Err(Error::unsupported(FORMAT.name, format!("an image in {} segments", trailer.segments)));
    }
    let (sums, pieces) = table::read_all(file.as_ref(), &trailer)?;
    let tables = sums.len();
    let end = pieces.last().map_or(0, |piece| piece.start.saturating_add(piece.len));
    let size = trailer.sectors.checked_mul(SECTOR).ok_or_else(|| trailer.corrupt("number of sectors"))?.max(end);
    let largest = pieces.iter().filter(|piece| piece.kind.packed()).map(|piece| piece.len).max().unwrap_or(0);
    let mut kinds: Vec<&str> = pieces.iter().map(|piece| piece.kind.name()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let count = pieces.len();
    let runs = Runs { file: file.clone(), pieces, size };
    let fork = file.clone();
    let disk = Mapped::new(Arc::new(runs), file, None, 512, options.cache_size);
    let mut opened = Opened::new(FORMAT.name, Arc::new(disk.with_large_units(options.cache_size, largest)));
    opened.add("virtual size", format!("{size} bytes"));
    opened.add("runs", format!("{count} in {tables} tables: {}", kinds.join(", ")));
    opened.add("largest packed run", format!("{largest} bytes"));
    for (name, sum) in [("data fork checksum", &trailer.data_sum), ("master checksum", &trailer.master_sum)] {
        if let Some(sum) = sum {
            opened.add(name, sum);
        }
    }
    opened.checks = checks(&trailer, &sums, &fork, &opened.disk);
    Ok(opened)
}

/// The three kinds of checksums: of the packed bytes, of each table's sectors, of the tables' checksums.
fn checks(trailer: &Trailer, sums: &[TableSum], fork: &Device, disk: &Device) -> Vec<Check> {
    let mut checks = Vec::new();
    if let (Some(sum), Ok(window)) = (&trailer.data_sum, Window::new(fork.clone(), trailer.data_at, trailer.data_len)) {
        let place = format!("bytes {} to {}", trailer.data_at, trailer.data_at.saturating_add(trailer.data_len));
        checks.push(Check::digest("data fork checksum", place, (sum.algorithm, &sum.value), Arc::new(window)));
    }
    for table in sums {
        let place = format!("bytes {} to {} of the disk", table.start, table.start.saturating_add(table.len));
        let window = |&(start, end): &(u64, u64)| -> Result<Device> {
            Ok(Arc::new(Window::new(disk.clone(), start, end.saturating_sub(start))?))
        };
        let windows: Result<Vec<Device>> = table.counted.iter().map(window).collect();
        if let (Some(sum), Ok(whole)) = (&table.sum, windows.and_then(|windows| Concat::new(windows, 512))) {
            checks.push(Check::digest("partition checksum", place, (sum.algorithm, &sum.value), Arc::new(whole)));
        }
    }
    if let Some(master) = &trailer.master_sum {
        let all: Vec<u8> =
            sums.iter().filter_map(|table| table.sum.as_ref()).flat_map(|sum| sum.value.clone()).collect();
        let found = digest::of(master.algorithm, &all);
        let fault = (found != master.value).then(|| format!("it is {}, not {}", hex(&found), hex(&master.value)));
        checks.push(Check::known("master checksum", format!("byte {}", trailer.at), fault));
    }
    checks
}

/// The last 512 bytes.
struct Trailer {
    at: u64,
    data_at: u64,
    data_len: u64,
    resources: (u64, u64),
    xml: (u64, u64),
    segments: u32,
    sectors: u64,
    data_sum: Option<Sum>,
    master_sum: Option<Sum>,
}

impl Trailer {
    /// Section "UDIF resource file".
    fn read(device: &dyn BlockDevice) -> Result<Self> {
        let missing = || Error::corrupt(FORMAT.name, "trailer", device.size().saturating_sub(TRAILER));
        let at = device.size().checked_sub(TRAILER).ok_or_else(missing)?;
        let bytes = read_array::<512>(device, at)?;
        let record = Record::new(FORMAT.name, "trailer", at, &bytes);
        if record.bytes(0, 4)? != b"koly" || record.be32(4)? != 4 || record.be32(8)? != 512 {
            return Err(missing());
        }
        let trailer = Self {
            at,
            data_at: record.be64(24)?,
            data_len: record.be64(32)?,
            resources: (record.be64(40)?, record.be64(48)?),
            xml: (record.be64(216)?, record.be64(224)?),
            segments: record.be32(60)?,
            sectors: record.be64(492)?,
            data_sum: checksum(&record, 80)?,
            master_sum: checksum(&record, 352)?,
        };
        let inside = |(start, len): (u64, u64)| start.checked_add(len).is_some_and(|end| end <= at);
        if !inside(trailer.xml) || !inside(trailer.resources) || trailer.data_at > at {
            return Err(trailer.corrupt("offsets"));
        }
        if trailer.xml.1 == 0 && trailer.resources.1 == 0 {
            return Err(trailer.corrupt("neither property list nor resource fork"));
        }
        Ok(trailer)
    }

    fn corrupt(&self, field: &str) -> Error {
        Error::corrupt(FORMAT.name, format!("trailer ({field})"), self.at)
    }
}

/// A stored checksum.
struct Sum {
    algorithm: Algorithm,
    value: Vec<u8>,
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = if self.algorithm == Algorithm::Crc32 { "CRC-32" } else { "MD5" };
        write!(f, "{name} {}", hex(&self.value))
    }
}

/// Type, length in bits, value.
fn checksum(record: &Record<'_>, at: usize) -> Result<Option<Sum>> {
    let algorithm = match record.be32(at)? {
        2 => Algorithm::Crc32,
        4 => Algorithm::Md5,
        _ => return Ok(None),
    };
    let bits = usize::try_from(record.be32(at.saturating_add(4))?).unwrap_or(usize::MAX);
    let value = record.bytes(at.saturating_add(8), bits.min(1024) / 8)?.to_vec();
    Ok(Some(Sum { algorithm, value }).filter(|sum| sum.value.len() == algorithm.size()))
}

/// The runs as a disk.
struct Runs {
    file: Device,
    /// Ascending, without overlap.
    pieces: Vec<Piece>,
    size: u64,
}

impl Mapping for Runs {
    fn size(&self) -> u64 {
        self.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let next = self.pieces.partition_point(|piece| piece.start <= offset);
        if let Some((index, piece)) = next.checked_sub(1).and_then(|i| Some((i, self.pieces.get(i)?))) {
            let within = offset.saturating_sub(piece.start);
            if within < piece.len {
                let place = match piece.kind {
                    Kind::Zero => Place::Hole,
                    Kind::Raw => Place::At(piece.at.saturating_add(within)),
                    _ => Place::Packed { unit: index as u64, within },
                };
                return Ok(Run { place, len: piece.len.saturating_sub(within) });
            }
        }
        Err(Error::corrupt(FORMAT.name, "table (sectors that no run describes)", offset))
    }

    fn unpack(&self, unit: u64) -> Result<Vec<u8>> {
        let piece = usize::try_from(unit).ok().and_then(|unit| self.pieces.get(unit)).ok_or(Error::Invalid)?;
        let corrupt = || Error::corrupt(FORMAT.name, format!("run packed by {}", piece.kind.name()), piece.at);
        let packed = read_vec(self.file.as_ref(), piece.at, usize::try_from(piece.packed).map_err(|_| corrupt())?)?;
        let size = usize::try_from(piece.len).map_err(|_| corrupt())?;
        let unpacked = match piece.kind {
            Kind::Adc => adc::decode(&packed, size),
            Kind::Zlib => unpack::inflate(&packed, true, size),
            Kind::Bzip2 => read_exactly(BzDecoder::new(packed.as_slice()), size),
            Kind::Lzfse => {
                let mut decoder = LzfseRingDecoder::default();
                read_exactly(decoder.reader_bytes(&packed), size)
            }
            Kind::Lzma => read_exactly(XzReader::new_mem_limit(packed.as_slice(), false, MEMORY_KIB), size),
            Kind::Raw | Kind::Zero => None,
        };
        unpacked.ok_or_else(corrupt)
    }
}

fn read_exactly(mut reader: impl Read, size: usize) -> Option<Vec<u8>> {
    let mut unpacked = vec![0; size];
    reader.read_exact(&mut unpacked).ok()?;
    // Reads on to the checksum, where there is one; what lies past the run's sectors is left out.
    reader.read(&mut [0]).map(|_| unpacked).ok()
}
