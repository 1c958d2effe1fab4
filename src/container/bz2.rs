//! bzip2: a disk packed in blocks of up to 900,000 bytes, each of which unpacks by itself.
//!
//! Specification: Joe Tsai, "bzip2: Format Specification" (2016).
//!
//! ```text
//!   "BZh9" | block | block | ... | end of stream | padding to a byte | further streams ...
//!            ^ 48 bits of magic, CRC-32; at any bit
//! ```
//!
//! Nothing says where blocks lie or what they unpack to, so the first open finds them by their magic
//! numbers, unpacks all of them in parallel, and keeps an index.
//!
//! Supported: all of it; block checksums are compared on every read, stream checksums once.
//! Bytes after the last stream are left out, with a note.
//! Not supported: the randomised blocks of bzip2 0.9.0 and before.

use std::io::{Cursor, Read};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bzip2::read::BzDecoder;

use super::compressed::index::{Slot, pack, unpack};
use super::compressed::{self, Codec, Units};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::device::{BlockDevice, Device, probe_array, read_vec};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "bz2", snapshots: true, probe, open };

const BLOCK: u64 = 0x3141_5926_5359;
const END: u64 = 0x1772_4538_5090;
const MASK: u64 = (1 << 48) - 1;
/// Bits of an end of stream: magic number and checksum.
const END_BITS: u64 = 80;
/// A block holds 900,000 bytes and is not packed into more than a little beyond that.
const MAX_PACKED: u64 = 2 << 20;
/// Read at once when looking for blocks.
const STEP: u64 = 1 << 20;
/// Blocks of one file: 8 TiB of disk.
const MAX_BLOCKS: usize = 1 << 24;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    let Some(start) = probe_array::<10>(device, 0)? else { return Ok(false) };
    let [b'B', b'Z', b'h', b'1'..=b'9', magic @ ..] = start else { return Ok(false) };
    let magic = magic.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    Ok(magic == BLOCK || magic == END)
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let slot = Slot::of(&file, FORMAT.name, options);
    let kept = slot.as_ref().and_then(Slot::load).and_then(|payload| Layout::parse(&payload, file.size()));
    let layout = match kept {
        Some(layout) => layout,
        None => {
            let layout = Layout::build(&file, options)?;
            if let Some(slot) = slot {
                slot.store(&layout.payload());
            }
            layout
        }
    };
    let Layout { mut blocks, end } = layout;
    blocks.retain(|block| block.unpacked > 0);
    let mut borders = vec![0];
    let mut size = 0u64;
    for block in &blocks {
        size = size.saturating_add(block.unpacked);
        borders.push(size);
    }
    let places = blocks.iter().map(|block| block.from / 8).collect();
    let codec = Box::new(Blocks { file: file.clone(), blocks });
    let units = Units { format: FORMAT.name, codec, borders, places, resident: 8 << 20, checked: true };
    let mut opened = compressed::open(units, &file, companions, options)?;
    compressed::note_rest(&mut opened, "compressed data", end, file.size());
    Ok(opened)
}

fn corrupt(what: &'static str, bit: u64) -> Error {
    Error::corrupt(FORMAT.name, what, bit / 8)
}

/// One block: bits of the file, and what they unpack to.
#[derive(Debug, Clone, Copy)]
struct Block {
    from: u64,
    to: u64,
    unpacked: u64,
}

/// All that a pass over the file finds out.
struct Layout {
    blocks: Vec<Block>,
    /// First byte after the last stream.
    end: u64,
}

impl Layout {
    fn payload(&self) -> Vec<u8> {
        let rows = self.blocks.iter().flat_map(|block| [block.from, block.to, block.unpacked]);
        pack([self.end].into_iter().chain(rows))
    }

    fn parse(payload: &[u8], file_size: u64) -> Option<Self> {
        let numbers = unpack(payload)?;
        let (&end, rows) = numbers.split_first()?;
        let (rows, rest) = rows.as_chunks::<3>();
        let blocks: Vec<Block> = rows.iter().map(|&[from, to, unpacked]| Block { from, to, unpacked }).collect();
        let mut at = 0;
        for block in &blocks {
            let sound = block.from >= at && block.to > block.from && block.unpacked <= 64 << 20;
            at = Some(block.to).filter(|&to| sound && to / 8 <= file_size)?;
        }
        (rest.is_empty() && end <= file_size).then_some(Self { blocks, end })
    }

    fn build(file: &Device, options: &Options) -> Result<Self> {
        let marks = find_marks(file, options)?;
        let (mut blocks, end) = chain(file.as_ref(), &marks)?;
        measure(file, &mut blocks, options)?;
        Ok(Self { blocks, end })
    }
}

/// A magic number found at a bit of the file.
#[derive(Debug, Clone, Copy)]
struct Mark {
    bit: u64,
    end: bool,
}

fn find_marks(file: &Device, options: &Options) -> Result<Vec<Mark>> {
    let (mut marks, mut window, mut at) = (Vec::new(), 0u64, 0u64);
    while at < file.size() {
        let len = file.size().saturating_sub(at).min(STEP);
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| Error::Invalid)?];
        file.read_bulk_at(&mut bytes, at)?;
        for (i, &byte) in bytes.iter().enumerate() {
            window = window << 8 | u64::from(byte);
            for shift in 0..8u32 {
                let found = window.wrapping_shr(shift) & MASK;
                if found != BLOCK && found != END {
                    continue;
                }
                let bits = at.saturating_add(i as u64).saturating_add(1).saturating_mul(8);
                if let Some(bit) = bits.checked_sub(48 + u64::from(shift)) {
                    marks.push(Mark { bit, end: found == END });
                }
            }
        }
        if marks.len() > MAX_BLOCKS {
            return Err(Error::unsupported(FORMAT.name, format!("more than {MAX_BLOCKS} blocks")));
        }
        at = at.saturating_add(len);
    }
    options.report("indexing", 0, file.size());
    Ok(marks)
}

/// Strings the marks into streams: blocks of unknown size, and the end of the last stream.
fn chain(device: &dyn BlockDevice, marks: &[Mark]) -> Result<(Vec<Block>, u64)> {
    let mut blocks = Vec::new();
    let mut stream = 0u64;
    let mut crc = 0u32;
    let mut due = 32u64;
    let mut marks = marks.iter().peekable();
    while let Some(mark) = marks.next() {
        // Inside of what came before: bits that look alike.
        if mark.bit < due {
            continue;
        }
        if mark.bit != due {
            return Err(corrupt("block (magic number)", due));
        }
        if !mark.end {
            let next = marks.peek().ok_or_else(|| corrupt("end of the stream (the file may be cut off)", mark.bit))?;
            crc = crc.rotate_left(1) ^ read_bits(device, mark.bit.saturating_add(48))?;
            blocks.push(Block { from: mark.bit, to: next.bit, unpacked: 0 });
            due = next.bit;
            continue;
        }
        if read_bits(device, mark.bit.saturating_add(48))? != crc {
            return Err(corrupt("end of the stream (checksum)", mark.bit));
        }
        stream = mark.bit.saturating_add(END_BITS).div_ceil(8);
        crc = 0;
        match probe_array::<4>(device, stream)? {
            Some([b'B', b'Z', b'h', b'1'..=b'9']) => due = stream.saturating_add(4).saturating_mul(8),
            _ => return Ok((blocks, stream)),
        }
    }
    Err(corrupt("end of the stream (the file may be cut off)", stream.saturating_mul(8)))
}

/// 32 bits from any bit on.
fn read_bits(device: &dyn BlockDevice, bit: u64) -> Result<u32> {
    let cut = || corrupt("block (the file may be cut off)", bit);
    let room = usize::try_from(device.size().saturating_sub(bit / 8).min(5)).map_err(|_| cut())?;
    let bytes = read_vec(device, bit / 8, room)?;
    let mut all = [0u8; 8];
    all.iter_mut().zip(&bytes).for_each(|(to, &from)| *to = from);
    let shifted = u64::from_be_bytes(all).wrapping_shl(u32::try_from(bit % 8).unwrap_or(0));
    if (room as u64).saturating_mul(8) < 32u64.saturating_add(bit % 8) {
        return Err(cut());
    }
    u32::try_from(shifted >> 32).map_err(|_| cut())
}

/// Unpacks all blocks, on all processors, to know their sizes.
fn measure(file: &Device, blocks: &mut [Block], options: &Options) -> Result<()> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let shared: &[Block] = blocks;
    let work = || {
        let mut sizes = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(block) = shared.get(index) else { break };
            let size = block.reader(file).and_then(|mut reader| {
                let copied = std::io::copy(&mut reader, &mut std::io::sink());
                copied.map_err(|error| Error::corrupt(FORMAT.name, format!("block ({error})"), block.from / 8))
            });
            stop.fetch_or(size.is_err(), Ordering::Relaxed);
            sizes.push((index, size));
            options.report("indexing", block.to / 8, file.size());
        }
        sizes
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let mut sizes: Vec<(usize, Result<u64>)> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut sizes = work();
        for other in others {
            sizes.extend(other.join().unwrap_or_default());
        }
        sizes
    });
    // The first damage in the file, whichever thread met it.
    sizes.sort_by_key(|(index, _)| *index);
    for (index, size) in sizes {
        if let Some(block) = blocks.get_mut(index) {
            block.unpacked = size?;
        }
    }
    Ok(())
}

impl Block {
    /// The block as the only one of a stream of its own.
    fn reader(&self, file: &Device) -> Result<Box<dyn Read + Send>> {
        let too_long = || corrupt("block (longer than any)", self.from);
        let bits = self.to.checked_sub(self.from).filter(|bits| bits / 8 <= MAX_PACKED).ok_or_else(too_long)?;
        let first = self.from / 8;
        let len = self.to.div_ceil(8).saturating_sub(first);
        let bytes = read_vec(file.as_ref(), first, usize::try_from(len).map_err(|_| too_long())?)?;
        let mut stream = Bits { bytes: b"BZh9".to_vec(), room: 0 };
        let mut left = bits;
        let skipped = u32::try_from(self.from % 8).map_err(|_| too_long())?;
        for (i, &byte) in bytes.iter().enumerate() {
            let (byte, width) =
                if i == 0 { (byte.wrapping_shl(skipped), 8u32.saturating_sub(skipped)) } else { (byte, 8) };
            let count = u32::try_from(left.min(width.into())).map_err(|_| too_long())?;
            stream.push(byte, count);
            left = left.saturating_sub(count.into());
        }
        let crc = read_bits(file.as_ref(), self.from.saturating_add(48))?;
        let end = END.to_be_bytes();
        for byte in end.into_iter().skip(2).chain(crc.to_be_bytes()) {
            stream.push(byte, 8);
        }
        Ok(Box::new(BzDecoder::new(Cursor::new(stream.bytes))))
    }
}

/// Bits one after the other, the highest of a byte first.
struct Bits {
    bytes: Vec<u8>,
    /// Bits free in the last byte.
    room: u32,
}

impl Bits {
    /// Adds the `count` highest bits of a byte.
    fn push(&mut self, byte: u8, count: u32) {
        let byte = byte & !0xffu8.checked_shr(count).unwrap_or(0);
        if self.room > 0
            && let Some(last) = self.bytes.last_mut()
        {
            *last |= byte.checked_shr(8u32.saturating_sub(self.room)).unwrap_or(0);
        }
        if count > self.room {
            self.bytes.push(byte.checked_shl(self.room).unwrap_or(0));
            self.room = self.room.saturating_add(8).saturating_sub(count);
        } else {
            self.room = self.room.saturating_sub(count);
        }
    }
}

struct Blocks {
    file: Device,
    blocks: Vec<Block>,
}

impl Codec for Blocks {
    fn reader(&self, unit: usize) -> Result<Box<dyn Read + Send>> {
        self.blocks.get(unit).ok_or(Error::Invalid)?.reader(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_put_together_across_bytes() {
        let mut bits = Bits { bytes: Vec::new(), room: 0 };
        bits.push(0b1010_0000, 3);
        bits.push(0b1111_1111, 8);
        bits.push(0b0110_0000, 4);
        bits.push(0b1000_0000, 1);
        assert_eq!(bits.bytes, [0b1011_1111, 0b1110_1101]);
        assert_eq!(bits.room, 0);
    }
}
