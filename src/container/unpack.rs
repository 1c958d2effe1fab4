//! Decompression of single units: a cluster or a grain, whose unpacked size is known beforehand.
//!
//! What follows the packed bytes in the buffer is ignored: containers round packed units up to
//! sectors. `None` is the answer to damage, and to a unit that unpacks to less than it should.

use flate2::{Decompress, FlushDecompress};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

/// A deflate stream, with a zlib header around it when `zlib` is set.
pub(super) fn inflate(packed: &[u8], zlib: bool, size: usize) -> Option<Vec<u8>> {
    let mut unpacked = vec![0; size];
    if inflate_whole(packed, zlib, &mut unpacked) == Some(size) {
        return Some(unpacked);
    }
    let mut stream = Decompress::new(zlib);
    // An error behind the last byte that is wanted is the next unit's first bytes.
    let _ = stream.decompress(packed, &mut unpacked, FlushDecompress::Finish);
    (stream.total_out() == size as u64).then_some(unpacked)
}

/// As [`inflate`] with a zlib header, of a unit that may be the last one and short: the rest is zeros.
pub(super) fn inflate_padded(packed: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut unpacked = vec![0; size];
    if inflate_whole(packed, true, &mut unpacked).is_some_and(|len| len > 0) {
        return Some(unpacked);
    }
    unpacked.fill(0);
    let mut stream = Decompress::new(true);
    stream.decompress(packed, &mut unpacked, FlushDecompress::Finish).ok()?;
    (stream.total_out() > 0).then_some(unpacked)
}

/// Unpacks a deflate stream that ends as it should, fits, and has the checksum that it names (zlib
/// alone has one), faster than a decoder that could stop in between. The length of what is unpacked;
/// `None` of any other stream, with anything in the buffer.
pub(super) fn inflate_whole(packed: &[u8], zlib: bool, unpacked: &mut [u8]) -> Option<usize> {
    let mut decoder = libdeflater::Decompressor::new();
    let len =
        if zlib { decoder.zlib_decompress(packed, unpacked) } else { decoder.deflate_decompress(packed, unpacked) };
    len.ok()
}

/// Zstandard frames.
pub(super) fn zstd(packed: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut unpacked = vec![0; size];
    let mut decoder = Decoder::new().ok()?;
    let mut input = InBuffer::around(packed);
    let mut output = OutBuffer::around(unpacked.as_mut_slice());
    while output.pos() < size {
        let before = (input.pos(), output.pos());
        decoder.run(&mut input, &mut output).ok()?;
        if (input.pos(), output.pos()) == before {
            return None;
        }
    }
    Some(unpacked)
}

/// A block of LZ4: sequences of bytes as they are, and of bytes that were there before.
/// Specification: lz4_Block_format.md.
pub(super) fn lz4(packed: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut unpacked = Vec::with_capacity(size);
    let mut bytes = packed;
    loop {
        let token = *bytes.split_off_first()?;
        let literals = lz4_len(token >> 4, &mut bytes)?.min(size.saturating_sub(unpacked.len()));
        unpacked.extend_from_slice(bytes.split_off(..literals)?);
        // The last sequence has no match; what follows it is padding.
        if unpacked.len() == size {
            return Some(unpacked);
        }
        let distance = usize::from(u16::from_le_bytes(bytes.split_off(..2)?.try_into().ok()?));
        let len = lz4_len(token & 15, &mut bytes)?.checked_add(4)?.min(size.saturating_sub(unpacked.len()));
        let start = unpacked.len().checked_sub(distance).filter(|_| distance > 0)?;
        // A match may run into itself: then its bytes repeat.
        for at in start..start.checked_add(len)? {
            unpacked.push(*unpacked.get(at)?);
        }
        if unpacked.len() == size {
            return Some(unpacked);
        }
    }
}

/// A length of which four bits are in the token; 15 goes on in bytes, up to one that is not 255.
fn lz4_len(bits: u8, bytes: &mut &[u8]) -> Option<usize> {
    let mut len = usize::from(bits);
    let mut last = if bits == 15 { 255 } else { 0 };
    while last == 255 {
        last = *bytes.split_off_first()?;
        len = len.checked_add(last.into())?;
    }
    Some(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn lz4_gives_the_bytes_of_its_sequences_and_refuses_what_leads_out() {
        // "ab" and a match of 6 at distance 2, then "end!!" alone; and padding.
        let packed = [0x22, b'a', b'b', 2, 0, 0x50, b'e', b'n', b'd', b'!', b'!', 0x58, 0x58];
        assert_eq!(lz4(&packed, 13).unwrap(), b"ababababend!!");
        assert_eq!(lz4(&packed[..8], 13), None);
        assert_eq!(lz4(&[0x12, b'a', 3, 0, 0], 5), None);
        assert_eq!(lz4(&[0x12, b'a', 0, 0, 0], 5), None);
        assert_eq!(lz4(&[0xf0, 255, 255], 5), None);
    }

    #[test]
    fn bytes_behind_the_packed_unit_do_not_matter_and_a_short_unit_is_damage() {
        let unit: Vec<u8> = (0..4096u32).map(|i| (i / 7) as u8).collect();
        let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        deflate.write_all(&unit).unwrap();
        let mut packed = deflate.finish().unwrap();
        packed.extend([0xff; 300]);
        assert_eq!(inflate(&packed, false, 4096), Some(unit.clone()));
        assert_eq!(inflate(&packed, false, 4097), None);
        let mut packed = ::zstd::bulk::compress(&unit, 3).unwrap();
        packed.extend([0xff; 300]);
        assert_eq!(zstd(&packed, 4096), Some(unit));
        assert_eq!(zstd(&packed, 4097), None);
    }
}
