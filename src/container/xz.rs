//! xz: a disk packed with LZMA2 in blocks, which an index at the end of the file lists.
//!
//! Specification: The .xz File Format 1.2.1 (tukaani.org).
//!
//! ```text
//!   stream header | block | block | ... | index | footer | padding | further streams ...
//!   12 bytes                              ^-- sizes of the blocks, packed and unpacked
//! ```
//!
//! Supported: any number of streams, all checks (none, CRC-32, CRC-64, SHA-256) compared as blocks
//! are read, BCJ and delta filters. A block of more than 4 MiB goes through the spool, because it
//! unpacks only from its start on; xz writes a single block unless told otherwise.
//! Not supported: dictionaries of more than 1 GiB.

use std::io::{BufReader, Cursor, Read};

use lzma_rust2::XzReader;

use super::compressed::source::Source;
use super::compressed::{self, Codec, Units};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::device::{BlockDevice, Device, probe_array, read_array, read_vec};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "xz", snapshots: true, probe, open };

const MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
/// Header and footer of a stream.
const EDGE: u64 = 12;
/// Memory for one block's dictionary, KiB.
const MEMORY_KIB: u32 = 1 << 20;
/// Indexes, bytes in all: 16 million blocks at least.
const MAX_INDEX: u64 = 64 << 20;
/// Streams in one file: `cat` of more would take a while to make.
const MAX_STREAMS: usize = 1 << 20;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    let Some(header) = probe_array::<12>(device, 0)? else { return Ok(false) };
    let [m0, m1, m2, m3, m4, m5, f0, f1, crc @ ..] = header;
    Ok([m0, m1, m2, m3, m4, m5] == MAGIC && crc32fast::hash(&[f0, f1]) == u32::from_le_bytes(crc))
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let blocks = read_blocks(file.as_ref())?;
    let mut borders = vec![0];
    let mut end = 0u64;
    for block in &blocks {
        end = end.checked_add(block.unpacked).ok_or_else(|| corrupt("index (sizes)", block.at))?;
        borders.push(end);
    }
    let places = blocks.iter().map(|block| block.at).collect();
    let (check, count) = (blocks.first().map_or("none", |block| check_name(block.flags)), blocks.len());
    let codec = Box::new(Blocks { file: file.clone(), blocks });
    let units = Units { format: FORMAT.name, codec, borders, places, resident: 4 << 20, checked: check != "none" };
    let mut opened = compressed::open(units, &file, companions, options)?;
    opened.add("blocks", count);
    opened.add("integrity check", check);
    if check == "none" {
        opened.notes.push("the compressed data carry no checksum".to_owned());
    }
    Ok(opened)
}

fn corrupt(what: &'static str, at: u64) -> Error {
    Error::corrupt(FORMAT.name, what, at)
}

fn check_name(flags: [u8; 2]) -> &'static str {
    match flags {
        [0, 0] => "none",
        [0, 1] => "CRC-32",
        [0, 4] => "CRC-64",
        [0, 10] => "SHA-256",
        _ => "unknown",
    }
}

/// One block, as its index lists it.
struct Block {
    at: u64,
    /// Without the padding to four bytes.
    packed: u64,
    unpacked: u64,
    /// Of its stream: which check it carries.
    flags: [u8; 2],
}

impl Block {
    fn padded(&self) -> u64 {
        self.packed.next_multiple_of(4)
    }
}

/// All blocks of all streams, found from the end of the file; blocks without a byte are left out.
fn read_blocks(device: &dyn BlockDevice) -> Result<Vec<Block>> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut end = device.size();
    let mut index_len = 0u64;
    for _ in 0..MAX_STREAMS {
        end = skip_padding(device, end)?;
        if end == 0 {
            blocks.reverse();
            return Ok(blocks);
        }
        let footer_at = end.checked_sub(EDGE).ok_or_else(|| corrupt("stream footer", 0))?;
        let footer = read_array::<12>(device, footer_at)?;
        let [c0, c1, c2, c3, b0, b1, b2, b3, f0, f1, b'Y', b'Z'] = footer else {
            return Err(corrupt("stream footer (the file may be cut off)", footer_at));
        };
        if crc32fast::hash(&[b0, b1, b2, b3, f0, f1]) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(corrupt("stream footer (checksum)", footer_at));
        }
        if check_name([f0, f1]) == "unknown" {
            return Err(Error::unsupported(FORMAT.name, format!("the integrity check {f1}")));
        }
        let len = u64::from(u32::from_le_bytes([b0, b1, b2, b3])).saturating_add(1).saturating_mul(4);
        index_len = index_len.saturating_add(len);
        let index_at = footer_at.checked_sub(len).ok_or_else(|| corrupt("stream footer (backward size)", footer_at))?;
        if index_len > MAX_INDEX {
            return Err(Error::unsupported(FORMAT.name, format!("an index of more than {MAX_INDEX} bytes")));
        }
        end = read_index(device, index_at, len, [f0, f1], &mut blocks)?;
    }
    Err(Error::unsupported(FORMAT.name, format!("more than {MAX_STREAMS} streams")))
}

/// Section 2.2: zeros between streams, in fours.
fn skip_padding(device: &dyn BlockDevice, mut end: u64) -> Result<u64> {
    const STEP: u64 = 4096;
    while end > 0 {
        let start = end.saturating_sub(1) & !STEP.wrapping_sub(1);
        let bytes = read_vec(device, start, usize::try_from(end.saturating_sub(start)).map_err(|_| Error::Invalid)?)?;
        let (_, words) = bytes.as_rchunks::<4>();
        if let Some(last) = words.iter().rposition(|word| word != &[0; 4]) {
            let zeros = words.len().saturating_sub(last).saturating_sub(1).saturating_mul(4);
            return Ok(end.saturating_sub(zeros as u64));
        }
        end = start;
    }
    Ok(0)
}

/// Section 4: adds the blocks of one stream, the last one first; gives the start of the stream.
fn read_index(device: &dyn BlockDevice, at: u64, len: u64, flags: [u8; 2], blocks: &mut Vec<Block>) -> Result<u64> {
    let bytes = read_vec(device, at, usize::try_from(len).map_err(|_| Error::Invalid)?)?;
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(|| corrupt("index", at))?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return Err(corrupt("index (checksum)", at));
    }
    let mut rest = body.strip_prefix(&[0]).ok_or_else(|| corrupt("index (indicator)", at))?;
    let mut number = || multibyte(&mut rest).ok_or_else(|| corrupt("index (record)", at));
    let count = number()?;
    // Each record takes two bytes at least.
    if count > len / 2 {
        return Err(corrupt("index (number of records)", at));
    }
    let mut records = Vec::new();
    let mut total = 0u64;
    for _ in 0..count {
        let block = Block { at: total, packed: number()?, unpacked: number()?, flags };
        if block.packed < 5 || block.packed > at || block.unpacked > u64::MAX / 2 {
            return Err(corrupt("index (record)", at));
        }
        // LZMA2 packs 2 MiB into six bytes at best.
        if block.unpacked.div_ceil(1 << 19) > block.packed {
            return Err(corrupt("index (a block larger than its bytes can hold)", at));
        }
        total = total.checked_add(block.padded()).ok_or_else(|| corrupt("index (sizes)", at))?;
        records.push(block);
    }
    let first = at.checked_sub(total).ok_or_else(|| corrupt("index (sizes)", at))?;
    let start = first.checked_sub(EDGE).ok_or_else(|| corrupt("index (sizes)", at))?;
    let header = read_array::<12>(device, start)?;
    if !header.starts_with(&MAGIC) || header.get(6..8) != Some(&flags) {
        return Err(corrupt("stream header", start));
    }
    for record in records.into_iter().rev().filter(|record| record.unpacked > 0) {
        blocks.push(Block { at: first.saturating_add(record.at), ..record });
    }
    Ok(start)
}

/// Section 1.2: seven bits a byte, the lowest first; nine bytes at most.
fn multibyte(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f).wrapping_shl(shift);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn push_multibyte(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number = number.wrapping_shr(7);
    }
    bytes.push(number.to_le_bytes()[0]);
}

struct Blocks {
    file: Device,
    blocks: Vec<Block>,
}

impl Codec for Blocks {
    /// Each block is read as the only one of a stream of its own.
    fn reader(&self, unit: usize) -> Result<Box<dyn Read + Send>> {
        let block = self.blocks.get(unit).ok_or(Error::Invalid)?;
        let (header, tail) = frame(block);
        let packed = Source::buffered(self.file.clone(), block.at, block.at.saturating_add(block.padded()));
        let stream = BufReader::new(Cursor::new(header).chain(packed).chain(Cursor::new(tail)));
        Ok(Box::new(XzReader::new_mem_limit(stream, false, MEMORY_KIB)))
    }
}

/// The bytes that make a stream of one block: its header; its index and footer.
fn frame(block: &Block) -> (Vec<u8>, Vec<u8>) {
    let mut header = MAGIC.to_vec();
    header.extend(block.flags);
    header.extend(crc32fast::hash(&block.flags).to_le_bytes());
    let mut index = vec![0, 1];
    push_multibyte(&mut index, block.packed);
    push_multibyte(&mut index, block.unpacked);
    index.resize(index.len().next_multiple_of(4), 0);
    index.extend(crc32fast::hash(&index).to_le_bytes());
    let words = u32::try_from(index.len() / 4).unwrap_or(u32::MAX).saturating_sub(1);
    let mut footer = words.to_le_bytes().to_vec();
    footer.extend(block.flags);
    index.extend(crc32fast::hash(&footer).to_le_bytes());
    index.extend(footer);
    index.extend(b"YZ");
    (header, index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_seven_bits_a_byte_end_within_nine() {
        for number in [0, 1, 127, 128, 300, 1 << 40, u64::MAX / 2] {
            let mut bytes = Vec::new();
            push_multibyte(&mut bytes, number);
            assert_eq!(multibyte(&mut bytes.as_slice()), Some(number));
        }
        assert_eq!(multibyte(&mut [0xff; 12].as_slice()), None);
        assert_eq!(multibyte(&mut [0x80].as_slice()), None);
    }
}
