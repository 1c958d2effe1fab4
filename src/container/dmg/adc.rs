//! ADC, Apple Data Compression: literals and copies of what came before.
//!
//! ```text
//!   1lllllll  then l + 1 literal bytes
//!   01llllll  distance (16 bits, big-endian): copy l + 4 bytes
//!   00lllldd  distance (8 more bits): copy l + 3 bytes
//! ```

/// Unpacks exactly `size` bytes; `None` is damage.
pub(super) fn decode(mut packed: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut out: Vec<u8> = Vec::with_capacity(size);
    while out.len() < size {
        let (&code, rest) = packed.split_first()?;
        let (len, distance, rest) = if code & 0x80 != 0 {
            let (literal, rest) = rest.split_at_checked(usize::from(code & 0x7f).saturating_add(1))?;
            out.extend(literal);
            (0, 1, rest)
        } else if code & 0x40 != 0 {
            let (distance, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(code & 0x3f).saturating_add(4), u16::from_be_bytes(*distance), rest)
        } else {
            let (&low, rest) = rest.split_first()?;
            let distance = u16::from_be_bytes([code & 3, low]);
            (usize::from(code >> 2).saturating_add(3), distance, rest)
        };
        packed = rest;
        for _ in 0..len {
            let from = out.len().checked_sub(usize::from(distance).saturating_add(1))?;
            out.push(*out.get(from)?);
        }
    }
    (out.len() == size).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_both_kinds_of_copies() {
        // "abc", four more of the last byte, and six bytes from six back.
        let packed = [0x82, b'a', b'b', b'c', 0x40, 0, 0, 0x0c, 5];
        assert_eq!(decode(&packed, 13).unwrap(), b"abcccccbccccc");
        assert_eq!(decode(&packed, 14), None);
        assert_eq!(decode(&[0x0c, 5], 6), None);
        assert_eq!(decode(&[0xff, 1], 100), None);
    }
}
