//! Decompression of single units: a cluster or a grain, whose unpacked size is known beforehand.
//!
//! What follows the packed bytes in the buffer is ignored: containers round packed units up to
//! sectors. `None` is the answer to damage, and to a unit that unpacks to less than it should.

use flate2::{Decompress, FlushDecompress};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

/// A deflate stream, with a zlib header around it when `zlib` is set.
pub(super) fn inflate(packed: &[u8], zlib: bool, size: usize) -> Option<Vec<u8>> {
    let mut unpacked = vec![0; size];
    let mut stream = Decompress::new(zlib);
    // An error behind the last byte that is wanted is the next unit's first bytes.
    let _ = stream.decompress(packed, &mut unpacked, FlushDecompress::Finish);
    (stream.total_out() == size as u64).then_some(unpacked)
}

/// As [`inflate`], of a unit that may be the last one and short: the rest is zeros.
pub(super) fn inflate_padded(packed: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut unpacked = vec![0; size];
    let mut stream = Decompress::new(true);
    stream.decompress(packed, &mut unpacked, FlushDecompress::Finish).ok()?;
    (stream.total_out() > 0).then_some(unpacked)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

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
