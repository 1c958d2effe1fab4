//! gzip: a disk packed with deflate, in one member or in many (pigz, bgzip, `cat a.gz b.gz`).
//!
//! Specification: RFC 1952 and RFC 1951; BGZF: SAM/BAM format specification, section 4.1.
//!
//! ```text
//!   header | deflate blocks ... | CRC-32, size modulo 2^32 | header | ...
//!              ^         ^         ^ points of the index: a bit offset, and the 32 KiB before it
//! ```
//!
//! Nothing in the file says how large the disk is (the size field wraps at 4 GiB), so the first open
//! reads all of it, compares the checksums, and keeps an index; the next open takes the index.
//!
//! Supported: all of it. Bytes after the last member are left out, with a note, as gzip does.
//! Not supported: a single deflate block that unpacks to more than 64 MiB (none that a tool writes).

use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};

use flate2::bufread::MultiGzDecoder;
use rapidgzip_core::{
    Checkpoint, DecodeError, Decoder, DeflateIndex, GzipErrorKind, IndexOptions, IndexReadOptions, IndexedReader,
    IndexingError, ReadAt, StoredWindow,
};

use super::compressed::index::Slot;
use super::compressed::source::{Source, cause};
use super::compressed::{self, Codec, LARGEST_UNIT, Units};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::cache::lock;
use crate::check::Check;
use crate::device::{BlockDevice, Device, probe_array};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "gz", snapshots: true, probe, open };

/// Bounds on the distance between points of the index, unpacked bytes. A point takes up to 32 KiB.
const SPACING: std::ops::RangeInclusive<u64> = 1 << 20..=16 << 20;
/// Points for as many bytes of file as there are in 256 parts of it, within those bounds.
const PARTS: u64 = 256;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    // Magic number, deflate, no reserved flag.
    Ok(matches!(probe_array::<4>(device, 0)?, Some([0x1f, 0x8b, 8, flags]) if flags & 0xe0 == 0))
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let slot = Slot::of(&file, FORMAT.name, options);
    let kept = slot.as_ref().and_then(Slot::load).and_then(|payload| parse(&payload, file.size()));
    let index = match kept {
        Some(index) => index,
        None => {
            let index = build(&file, options)?;
            let mut payload = Vec::new();
            if let Some(slot) = slot.filter(|_| index.write_native(&mut payload).is_ok()) {
                slot.store(&payload);
            }
            index
        }
    };
    let (size, end) = (index.uncompressed_size().unwrap_or(0), index.compressed_size().unwrap_or(file.size()));
    let mut points: Vec<Checkpoint> = Vec::new();
    for point in index.checkpoints() {
        let start = point.uncompressed_offset_in_bytes;
        // Of members without a byte, the last one before the next byte stands for all.
        if points.last().is_some_and(|last| last.uncompressed_offset_in_bytes == start) {
            points.pop();
        }
        if start < size {
            points.push(*point);
        }
    }
    let mut borders: Vec<u64> = points.iter().map(|point| point.uncompressed_offset_in_bytes).collect();
    if borders.first().is_some_and(|&first| first != 0) {
        return Err(Error::corrupt(FORMAT.name, "index", 0));
    }
    borders.push(size);
    let places = points.iter().map(|point| point.compressed_offset_in_bits / 8).collect();
    let members = Members { file: file.clone(), end, index, points };
    let units = Units {
        format: FORMAT.name,
        codec: Box::new(members),
        borders,
        places,
        resident: LARGEST_UNIT,
        checked: false,
    };
    let mut opened = compressed::open(units, &file, companions, options)?;
    compressed::note_rest(&mut opened, "compressed data", end, file.size());
    let packed = file.clone();
    let walk = Box::new(move || member_faults(&packed, end));
    opened.checks.insert(0, Check::walk("checksums of the compressed data", "every member", walk));
    Ok(opened)
}

/// Unpacks all members once more: an index that was kept vouches for the file as it was then.
fn member_faults(file: &Device, end: u64) -> Result<Vec<String>> {
    let mut reader = MultiGzDecoder::new(Source::buffered(file.clone(), 0, end));
    match io::copy(&mut reader, &mut io::sink()) {
        Ok(_) => Ok(Vec::new()),
        Err(error) => cause(&error).map_or_else(|| Ok(vec![error.to_string()]), Err),
    }
}

/// An index that was kept; `None` makes it anew.
fn parse(payload: &[u8], file_size: u64) -> Option<DeflateIndex> {
    let mut native = payload;
    let index = DeflateIndex::read_native_with_options(&mut native, IndexReadOptions::default()).ok()?;
    index.validate().ok()?;
    let fits = index.compressed_size().is_some_and(|size| size <= file_size);
    (fits && index.uncompressed_size().is_some() && !index.is_empty()).then_some(index)
}

/// Reads the whole file, compares all checksums and makes the index.
fn build(file: &Device, options: &Options) -> Result<DeflateIndex> {
    match try_build(file, file.size(), options) {
        Err(Failure::Rest(end)) => try_build(file, end, options).map_err(Failure::error),
        result => result.map_err(Failure::error),
    }
}

enum Failure {
    /// What follows this byte is not a member.
    Rest(u64),
    Other(Error),
}

impl Failure {
    fn error(self) -> Error {
        match self {
            Self::Rest(at) => Error::corrupt(FORMAT.name, "member header", at),
            Self::Other(error) => error,
        }
    }
}

fn try_build(file: &Device, end: u64, options: &Options) -> Result<DeflateIndex, Failure> {
    let packed = Packed { file: file.clone(), end, failed: Arc::default(), watch: Some(options.clone()) };
    let failed = packed.failed.clone();
    let spacing = end.checked_div(PARTS).unwrap_or(0).clamp(*SPACING.start(), *SPACING.end());
    let spacing = NonZeroU64::new(spacing).unwrap_or(NonZeroU64::MIN);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let decoder = Decoder::builder().decoder_threads(threads).build();
    let decoder =
        decoder.map_err(|error| Failure::Other(Error::io("starting to decode gzip", io::Error::other(error))))?;
    let how = IndexOptions { checkpoint_spacing: spacing, ..IndexOptions::default() };
    match decoder.decode_with_index(&packed, &mut io::sink(), how) {
        Ok(indexed) => Ok(indexed.into_parts().1),
        Err(error) => Err(explain(error, lock(&failed).take(), file.size())),
    }
}

/// In our own words: the device's error if there was one, or the damage and its place.
fn explain(error: IndexingError, device: Option<Error>, size: u64) -> Failure {
    if let Some(error) = device {
        return Failure::Other(error);
    }
    let at = match &error {
        IndexingError::Decode(DecodeError::InvalidGzip { offset, reason: GzipErrorKind::TrailingGarbage })
            if *offset > 0 && *offset < size =>
        {
            return Failure::Rest(*offset);
        }
        // A single byte is too short to be told from the beginning of a member.
        IndexingError::Decode(DecodeError::InvalidGzip { offset, reason: GzipErrorKind::Truncated })
            if *offset > 0 && size.checked_sub(*offset) == Some(1) =>
        {
            return Failure::Rest(*offset);
        }
        IndexingError::Decode(DecodeError::InvalidGzip { offset, .. }) => *offset,
        IndexingError::Decode(DecodeError::InvalidDeflate { bit_offset, .. }) => *bit_offset / 8,
        _ => 0,
    };
    Failure::Other(Error::corrupt(FORMAT.name, format!("compressed data ({error})"), at))
}

/// Members, entered at the points of the index.
struct Members {
    file: Device,
    end: u64,
    index: DeflateIndex,
    points: Vec<Checkpoint>,
}

impl Codec for Members {
    fn reader(&self, unit: usize) -> Result<Box<dyn Read + Send>> {
        let point = self.points.get(unit).copied().ok_or(Error::Invalid)?;
        let next = self.points.get(unit.saturating_add(1)).map(|next| next.uncompressed_offset_in_bytes);
        let size = self.index.uncompressed_size().unwrap_or(0);
        let len = next.unwrap_or(size).saturating_sub(point.uncompressed_offset_in_bytes);
        if len > LARGEST_UNIT {
            return Err(Error::unsupported(FORMAT.name, format!("a deflate block that unpacks to {len} bytes")));
        }
        let corrupt = |error: &dyn std::fmt::Display| {
            Error::corrupt(FORMAT.name, format!("compressed data ({error})"), point.compressed_offset_in_bits / 8)
        };
        // An index of the one point that is wanted.
        let window = self.index.windows().get(point.compressed_offset_in_bits).cloned();
        let mut index = DeflateIndex::new();
        index.set_kind(self.index.kind());
        index.set_uncompressed_size(Some(size));
        index.push(point, window.unwrap_or_else(StoredWindow::empty)).map_err(|error| corrupt(&error))?;
        let packed = Packed { file: self.file.clone(), end: self.end, failed: Arc::default(), watch: None };
        let mut reader = IndexedReader::new(packed, index).map_err(|error| corrupt(&error))?;
        reader.seek(SeekFrom::Start(point.uncompressed_offset_in_bytes)).map_err(|error| corrupt(&error))?;
        // Checksums are of whole members and were compared when the index was made. The reader
        // cannot go to another thread, so the unit is read here.
        let mut unpacked = vec![0; usize::try_from(len).map_err(|_| Error::Invalid)?];
        reader.read_exact(&mut unpacked).map_err(|error| cause(&error).unwrap_or_else(|| corrupt(&error)))?;
        Ok(Box::new(Cursor::new(unpacked)))
    }
}

/// The file as the decoder wants it.
struct Packed {
    file: Device,
    end: u64,
    /// The first failure of the device.
    failed: Arc<Mutex<Option<Error>>>,
    watch: Option<Options>,
}

impl ReadAt for Packed {
    fn len(&self) -> io::Result<u64> {
        Ok(self.end)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.end.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        let Some(part) = buffer.get_mut(..len).filter(|part| !part.is_empty()) else { return Ok(0) };
        if let Err(error) = self.file.read_bulk_at(part, offset) {
            lock(&self.failed).get_or_insert(error.clone());
            return Err(io::Error::other(error));
        }
        if let Some(options) = &self.watch {
            options.report("indexing", offset.saturating_add(len as u64), self.end);
        }
        Ok(len)
    }
}
