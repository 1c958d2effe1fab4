//! The checksums of ext: CRC-32C with a running seed, and the CRC-16 of older group descriptors.

/// CRC-32C as the kernel's `crc32c_le`: the seed goes in raw and the result comes out raw, so that
/// one call continues another.
pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// As [`crc32c()`], over `bytes` with the `len` bytes from `hole` taken as zeros: the checksum's own
/// field. A hole outside of `bytes` counts for nothing.
pub fn crc32c_without(seed: u32, bytes: &[u8], hole: usize, len: usize) -> u32 {
    let Some((before, rest)) = bytes.split_at_checked(hole) else { return crc32c(seed, bytes) };
    let after = rest.get(len..).unwrap_or_default();
    let zeros = [0; 4];
    let zeros = zeros.get(..len.min(rest.len())).unwrap_or_default();
    crc32c(crc32c(crc32c(seed, before), zeros), after)
}

/// CRC-16 with the polynomial 0xA001 (reflected 0x8005): the `uninit_bg` checksum.
pub fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |crc, &byte| {
        (0..8).fold(crc ^ u16::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xa001 } else { crc >> 1 })
    })
}

/// CRC-32 with the high bit first and without a last inversion: the first kind of journal checksum.
pub fn crc32_be(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |crc, &byte| {
        let index = (crc >> 24 ^ u32::from(byte)) as usize;
        #[allow(clippy::indexing_slicing, reason = "the index is the exclusive or of two bytes, below 256")]
        let entry = TABLE[index];
        crc << 8 ^ entry
    })
}

const TABLE: [u32; 256] = table();

#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing, reason = "evaluated by the compiler alone")]
#[allow(clippy::cast_possible_truncation, reason = "evaluated by the compiler alone, below 256")]
const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = (index as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000_0000 != 0 { crc << 1 ^ 0x04c1_1db7 } else { crc << 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_values_of_the_catalogue_of_crcs_come_out() {
        assert_eq!(crc32c(!0, b"123456789"), !0xe306_9283);
        assert_eq!(crc16(0xffff, b"123456789"), 0x4b37);
        assert_eq!(crc32_be(!0, b"123456789"), !0xfc89_1918);
    }

    #[test]
    fn a_hole_counts_as_zeros() {
        assert_eq!(crc32c_without(7, b"abXXcd", 2, 2), crc32c(7, b"ab\0\0cd"));
        assert_eq!(crc32c_without(7, b"ab", 1, 4), crc32c(7, b"a\0"));
    }
}
