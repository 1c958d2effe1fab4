//! Zstandard: a disk packed into frames, each of which unpacks by itself.
//!
//! Specification: RFC 8878; Zstandard Seekable Format 0.1.0 (contrib/seekable_format).
//!
//! ```text
//!   frame: magic | header (window, content size?) | blocks | checksum?     any number of frames,
//!   skippable frame: magic 0x184d2a5? | size | anything                    and these between them
//!   seek table: a skippable frame at the end: the size of every frame, packed and unpacked
//! ```
//!
//! Supported: one frame (`zstd`; read forward through the spool when it is large) and many (`pzstd`,
//! `cat`, seekable files). Frames that do not record their size, in a file without a seek table, are
//! unpacked once to know it; what came out is kept as an index.
//! Not supported: dictionaries, windows of more than 512 MiB.

use std::io::Read;

use zstd::stream::read::Decoder;

use super::compressed::index::{Slot, pack, unpack};
use super::compressed::source::{Source, cause};
use super::compressed::{self, Codec, Units};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::device::{BlockDevice, Device, probe_array, read_array, read_vec};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "zst", snapshots: true, probe, open };

const MAGIC: u32 = 0xfd2f_b528;
const SEEK_TABLE: u32 = 0x184d_2a5e;
const SEEK_FOOTER: [u8; 4] = [0xb1, 0xea, 0x92, 0x8f];
/// What one block unpacks to at most.
const MAX_BLOCK: u64 = 128 << 10;
/// Bits of the largest window: 512 MiB.
const WINDOW_BITS: u32 = 29;
/// More frames than any tool writes; each takes 32 bytes of memory.
const MAX_FRAMES: usize = 1 << 22;
/// Skippable frames in front of the first one.
const MAX_LEADING: usize = 1024;
/// Room to which a frame of unknown size is unpacked at a time.
const STEP: usize = 128 << 10;

fn skippable(magic: u32) -> bool {
    magic & !0xf == 0x184d_2a50
}

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    let mut at = 0u64;
    // pzstd begins with a skippable frame; LZ4 has the same kind, so a frame of our own must follow.
    for _ in 0..MAX_LEADING {
        let Some(start) = probe_array::<8>(device, at)? else { return Ok(false) };
        let [m0, m1, m2, m3, size @ ..] = start;
        match u32::from_le_bytes([m0, m1, m2, m3]) {
            MAGIC => return Ok(true),
            magic if skippable(magic) => at = at.saturating_add(8).saturating_add(u32::from_le_bytes(size).into()),
            _ => return Ok(false),
        }
    }
    Ok(false)
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let Scan { mut frames, end } = scan(file.as_ref())?;
    if frames.iter().any(|frame| frame.unpacked.is_none()) {
        read_seek_table(file.as_ref(), end, &mut frames)?;
    }
    if frames.iter().any(|frame| frame.unpacked.is_none()) {
        measure_or_load(&file, &mut frames, options)?;
    }
    frames.retain(|frame| frame.unpacked != Some(0));
    let mut borders = vec![0];
    let mut size = 0u64;
    for frame in &frames {
        size = frame.unpacked.and_then(|len| size.checked_add(len)).ok_or_else(|| corrupt("frame sizes", frame.at))?;
        borders.push(size);
    }
    let (count, checked) = (frames.len(), frames.iter().all(|frame| frame.checksum));
    let places = frames.iter().map(|frame| frame.at).collect();
    let codec = Box::new(Frames { file: file.clone(), frames });
    let units = Units { format: FORMAT.name, codec, borders, places, resident: 8 << 20, checked };
    let mut opened = compressed::open(units, &file, companions, options)?;
    opened.add("frames", count);
    if !checked {
        opened.notes.push("some or all frames carry no checksum".to_owned());
    }
    compressed::note_rest(&mut opened, "last frame", end, file.size());
    Ok(opened)
}

fn corrupt(what: &'static str, at: u64) -> Error {
    Error::corrupt(FORMAT.name, what, at)
}

struct Frame {
    at: u64,
    len: u64,
    unpacked: Option<u64>,
    checksum: bool,
}

struct Scan {
    frames: Vec<Frame>,
    /// First byte after the last frame.
    end: u64,
}

/// Finds all frames, by the headers of their blocks.
fn scan(device: &dyn BlockDevice) -> Result<Scan> {
    let (mut frames, mut at) = (Vec::new(), 0u64);
    while at < device.size() {
        let magic = probe_array::<4>(device, at)?.map(u32::from_le_bytes);
        match magic {
            Some(MAGIC) if frames.len() < MAX_FRAMES => {
                let frame = Frame::scan(device, at)?;
                at = at.saturating_add(frame.len);
                frames.push(frame);
            }
            Some(MAGIC) => {
                return Err(Error::unsupported(FORMAT.name, format!("more than {MAX_FRAMES} frames")));
            }
            Some(magic) if skippable(magic) => {
                let size = probe_array::<4>(device, at.saturating_add(4))?.map(u32::from_le_bytes);
                let size = size.ok_or_else(|| corrupt("skippable frame (the file may be cut off)", at))?;
                let next = at.saturating_add(8).saturating_add(size.into());
                if next > device.size() {
                    return Err(corrupt("skippable frame (the file may be cut off)", at));
                }
                at = next;
            }
            _ if frames.is_empty() => return Err(corrupt("frame (magic number)", at)),
            // As other tools do: something else begins here.
            _ => break,
        }
    }
    Ok(Scan { frames, end: at })
}

impl Frame {
    /// Sections 3.1.1.1 and 3.1.1.2.
    fn scan(device: &dyn BlockDevice, at: u64) -> Result<Self> {
        let cut = || corrupt("frame (the file may be cut off)", at);
        let room = usize::try_from(device.size().saturating_sub(at).min(18)).map_err(|_| cut())?;
        let bytes = read_vec(device, at, room)?;
        let header = Record::new(FORMAT.name, "frame header", at, &bytes);
        let descriptor = header.u8(4)?;
        let single = descriptor & 0x20 != 0;
        if descriptor & 8 != 0 {
            return Err(header.corrupt_field("reserved bit"));
        }
        let mut offset = 5usize;
        let mut window = 0u64;
        if !single {
            let byte = header.u8(offset)?;
            let base = 1u64.wrapping_shl(u32::from(byte >> 3).saturating_add(10));
            window = base.saturating_add((base / 8).saturating_mul(u64::from(byte & 7)));
            offset = offset.saturating_add(1);
        }
        let dictionary = [0usize, 1, 2, 4].get(usize::from(descriptor & 3)).copied().unwrap_or(0);
        if header.bytes(offset, dictionary)?.iter().any(|&byte| byte != 0) {
            return Err(Error::unsupported(FORMAT.name, "a dictionary"));
        }
        offset = offset.saturating_add(dictionary);
        let (unpacked, wide) = match descriptor >> 6 {
            0 if single => (Some(u64::from(header.u8(offset)?)), 1),
            0 => (None, 0),
            1 => (Some(u64::from(header.le16(offset)?).saturating_add(256)), 2),
            2 => (Some(u64::from(header.le32(offset)?)), 4),
            _ => (Some(header.le64(offset)?), 8),
        };
        let start = at.saturating_add(offset as u64).saturating_add(wide);
        let (end, blocks) = skip_blocks(device, start).ok_or_else(cut)?;
        if let Some(size) = unpacked {
            if size > blocks.saturating_mul(MAX_BLOCK) {
                return Err(header.corrupt_field("content size: larger than its blocks can hold"));
            }
            window = if single { size } else { window };
        }
        if window > 1u64.wrapping_shl(WINDOW_BITS) && !single {
            return Err(Error::unsupported(FORMAT.name, format!("a window of {window} bytes")));
        }
        let checksum = descriptor & 4 != 0;
        let end = end.saturating_add(if checksum { 4 } else { 0 });
        if end > device.size() {
            return Err(cut());
        }
        Ok(Self { at, len: end.saturating_sub(at), unpacked, checksum })
    }
}

/// From the first block to the byte after the last; also how many there are. `None` past the end.
fn skip_blocks(device: &dyn BlockDevice, mut at: u64) -> Option<(u64, u64)> {
    let mut count = 0u64;
    // Each block takes three bytes at least: the file is the bound.
    loop {
        let [b0, b1, b2] = probe_array::<3>(device, at).ok()??;
        let header = u32::from_le_bytes([b0, b1, b2, 0]);
        let size = match header >> 1 & 3 {
            1 => 1,
            0 | 2 => u64::from(header >> 3),
            _ => return None,
        };
        at = at.checked_add(3)?.checked_add(size)?;
        count = count.saturating_add(1);
        if header & 1 != 0 {
            return (at <= device.size()).then_some((at, count));
        }
    }
}

/// Takes sizes out of a seek table, if there is one and it agrees with the frames.
fn read_seek_table(device: &dyn BlockDevice, end: u64, frames: &mut [Frame]) -> Result<()> {
    let Some(footer_at) = end.checked_sub(9) else { return Ok(()) };
    let [n0, n1, n2, n3, flags, magic @ ..] = read_array::<9>(device, footer_at)?;
    let count = u64::from(u32::from_le_bytes([n0, n1, n2, n3]));
    let width = if flags & 0x80 != 0 { 12usize } else { 8 };
    let len = count.saturating_mul(width as u64);
    let Some(at) = footer_at.checked_sub(len.saturating_add(8)) else { return Ok(()) };
    if magic != SEEK_FOOTER || flags & 0x7c != 0 || count != frames.len() as u64 {
        return Ok(());
    }
    let bytes = read_vec(device, at, usize::try_from(len.saturating_add(8)).map_err(|_| Error::Invalid)?)?;
    let table = Record::new(FORMAT.name, "seek table", at, &bytes);
    if table.le32(0)? != SEEK_TABLE {
        return Ok(());
    }
    let mut sizes = Vec::new();
    for (row, frame) in table.tail(8)?.chunks_exact(width).zip(frames.iter()) {
        let row = Record::new(FORMAT.name, "seek table", at, row);
        let unpacked = u64::from(row.le32(4)?);
        if u64::from(row.le32(0)?) != frame.len || frame.unpacked.is_some_and(|size| size != unpacked) {
            return Ok(());
        }
        sizes.push(unpacked);
    }
    for (frame, size) in frames.iter_mut().zip(sizes) {
        frame.unpacked = Some(size);
    }
    Ok(())
}

/// Sizes out of the index of an earlier open, or by unpacking all frames.
fn measure_or_load(file: &Device, frames: &mut [Frame], options: &Options) -> Result<()> {
    let slot = Slot::of(file, FORMAT.name, options);
    let kept = slot.as_ref().and_then(Slot::load).and_then(|payload| unpack(&payload));
    let sizes = match kept.filter(|sizes| sizes.len() == frames.len()) {
        Some(sizes) => sizes,
        None => {
            let sizes = measure(file, frames, options)?;
            if let Some(slot) = slot {
                slot.store(&pack(sizes.iter().copied()));
            }
            sizes
        }
    };
    for (frame, size) in frames.iter_mut().zip(sizes) {
        if frame.unpacked.is_some_and(|known| known != size) {
            return Err(corrupt("frame header (content size)", frame.at));
        }
        frame.unpacked = Some(size);
    }
    Ok(())
}

fn measure(file: &Device, frames: &[Frame], options: &Options) -> Result<Vec<u64>> {
    let mut room = vec![0; STEP];
    let mut sizes = Vec::new();
    for frame in frames {
        if let Some(size) = frame.unpacked {
            sizes.push(size);
            continue;
        }
        let mut reader = frame.reader(file)?;
        let mut size = 0u64;
        loop {
            let damaged = |error: std::io::Error| {
                cause(&error).unwrap_or_else(|| Error::corrupt(FORMAT.name, format!("frame ({error})"), frame.at))
            };
            let count = reader.read(&mut room).map_err(damaged)?;
            if count == 0 {
                break;
            }
            size = size.saturating_add(count as u64);
        }
        sizes.push(size);
        options.report("indexing", frame.at.saturating_add(frame.len), file.size());
    }
    Ok(sizes)
}

impl Frame {
    fn reader(&self, file: &Device) -> Result<Box<dyn Read + Send>> {
        let packed = Source::buffered(file.clone(), self.at, self.at.saturating_add(self.len));
        let start = |error| Error::io("starting to decode Zstandard", error);
        let mut decoder = Decoder::with_buffer(packed).map_err(start)?.single_frame();
        decoder.window_log_max(WINDOW_BITS).map_err(start)?;
        Ok(Box::new(decoder))
    }
}

struct Frames {
    file: Device,
    frames: Vec<Frame>,
}

impl Codec for Frames {
    fn reader(&self, unit: usize) -> Result<Box<dyn Read + Send>> {
        self.frames.get(unit).ok_or(Error::Invalid)?.reader(&self.file)
    }
}
