//! The hashes of directory names: legacy, half-MD4 and TEA, each with signed or unsigned bytes.
//!
//! Spec: `fs/ext4/hash.c` of Linux and the ext4 wiki, "Hash Tree Directories". A name is cut into
//! pieces of 16 or 32 bytes, each padded with its length, and stirred into four words that start
//! from the volume's seed.

/// Which hash a directory uses; `dx_root.hash_version`, with the volume's signedness worked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashVersion {
    kind: Kind,
    signed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Legacy,
    HalfMd4,
    Tea,
}

impl HashVersion {
    /// `hash_version` as stored; `unsigned` is the volume's flag, which holds for versions 0 to 2.
    /// `None` for hashes that need a key (SipHash) and for unknown ones.
    pub fn new(hash_version: u8, unsigned: bool) -> Option<Self> {
        let (kind, signed) = match hash_version {
            0 => (Kind::Legacy, !unsigned),
            1 => (Kind::HalfMd4, !unsigned),
            2 => (Kind::Tea, !unsigned),
            3 => (Kind::Legacy, false),
            4 => (Kind::HalfMd4, false),
            5 => (Kind::Tea, false),
            _ => return None,
        };
        Some(Self { kind, signed })
    }

    /// Major and minor hash of a name. The major one is even: its lowest bit marks collisions that
    /// go on in the next leaf.
    pub fn hash(self, name: &[u8], seed: [u32; 4]) -> (u32, u32) {
        let start = if seed == [0; 4] { [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476] } else { seed };
        let (major, minor) = match self.kind {
            Kind::Legacy => (self.legacy(name), 0),
            Kind::HalfMd4 => {
                let mut state = start;
                let mut rest = name;
                while !rest.is_empty() {
                    half_md4(&mut state, &self.words::<8>(rest));
                    rest = rest.get(32..).unwrap_or_default();
                }
                (state[1], state[2])
            }
            Kind::Tea => {
                let mut state = start;
                let mut rest = name;
                while !rest.is_empty() {
                    tea(&mut state, &self.words::<4>(rest));
                    rest = rest.get(16..).unwrap_or_default();
                }
                (state[0], state[1])
            }
        };
        // The end-of-directory mark is not a hash.
        let major = major & !1;
        (if major == 0xffff_fffe { 0xffff_fffc } else { major }, minor)
    }

    fn byte(self, byte: u8) -> u32 {
        if self.signed { i32::from(byte.cast_signed()).cast_unsigned() } else { u32::from(byte) }
    }

    fn legacy(self, name: &[u8]) -> u32 {
        let (mut hash0, mut hash1) = (0x12a3_fe2d_u32, 0x37ab_e8f9_u32);
        for &byte in name {
            let mut hash = hash1.wrapping_add(hash0 ^ self.byte(byte).wrapping_mul(7_152_373));
            if hash & 0x8000_0000 != 0 {
                hash = hash.wrapping_sub(0x7fff_ffff);
            }
            hash1 = hash0;
            hash0 = hash;
        }
        hash0 << 1
    }

    /// The first `N` words of the rest of a name, padded with the rest's length.
    fn words<const N: usize>(self, rest: &[u8]) -> [u32; N] {
        let len = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        let pad = len | len << 8;
        let pad = pad | pad << 16;
        let mut words = [pad; N];
        for (word, chunk) in words.iter_mut().zip(rest.chunks(4)) {
            *word = chunk.iter().fold(pad, |value, &byte| self.byte(byte).wrapping_add(value << 8));
        }
        words
    }
}

fn tea(state: &mut [u32; 4], words: &[u32; 4]) {
    let [a, b, c, d] = *words;
    let (mut b0, mut b1) = (state[0], state[1]);
    let mut sum = 0u32;
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        b0 = b0.wrapping_add((b1 << 4).wrapping_add(a) ^ b1.wrapping_add(sum) ^ (b1 >> 5).wrapping_add(b));
        b1 = b1.wrapping_add((b0 << 4).wrapping_add(c) ^ b0.wrapping_add(sum) ^ (b0 >> 5).wrapping_add(d));
    }
    state[0] = state[0].wrapping_add(b0);
    state[1] = state[1].wrapping_add(b1);
}

/// Three rounds of eight steps over the four words; `(word of the input, rotation)` a step.
fn half_md4(state: &mut [u32; 4], words: &[u32; 8]) {
    type Round = (fn(u32, u32, u32) -> u32, u32, [(usize, u32); 8]);
    const ROUNDS: [Round; 3] = [
        (|x, y, z| z ^ (x & (y ^ z)), 0, [(0, 3), (1, 7), (2, 11), (3, 19), (4, 3), (5, 7), (6, 11), (7, 19)]),
        (
            |x, y, z| (x & y).wrapping_add((x ^ y) & z),
            0x5a82_7999,
            [(1, 3), (3, 5), (5, 9), (7, 13), (0, 3), (2, 5), (4, 9), (6, 13)],
        ),
        (|x, y, z| x ^ y ^ z, 0x6ed9_eba1, [(3, 3), (7, 9), (2, 11), (6, 15), (1, 3), (5, 9), (0, 11), (4, 15)]),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, steps) in ROUNDS {
        for (word, rotation) in steps {
            let word = words.get(word).copied().unwrap_or_default().wrapping_add(constant);
            let stirred = a.wrapping_add(mix(b, c, d)).wrapping_add(word).rotate_left(rotation);
            (a, b, c, d) = (d, stirred, b, c);
        }
    }
    for (word, stirred) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(stirred);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are those of `debugfs -R "dx_hash -h KIND NAME"`, with a seed of zeros.
    #[test]
    fn hashes_are_those_of_debugfs() {
        let long = "grün-and-a-name-longer-than-thirty-two-bytes".as_bytes();
        for (version, name, expected) in [
            (0, &b"hello"[..], (0x3225_2546, 0)),
            (0, long, (0x743d_81ae, 0)),
            (1, b"a", (0xd5fa_7d7a, 0xacb4_8187)),
            (1, b"hello", (0x1746_da32, 0x4200_13b5)),
            (1, long, (0xb826_2916, 0x2b87_baf8)),
            (2, b"a", (0x6d0e_a4c0, 0xc189_22df)),
            (2, b"hello", (0x6f5b_b1a8, 0x2319_17c2)),
            (2, long, (0x2a83_8008, 0x5824_3255)),
        ] {
            let hash = |version, unsigned| HashVersion::new(version, unsigned).unwrap().hash(name, [0; 4]);
            assert_eq!(hash(version, false), expected, "{version} {name:?}");
            // Bytes above 127 are all that the sign changes; both ways to ask for it are one.
            assert_eq!(hash(version, true) == expected, name.is_ascii());
            assert_eq!(hash(version + 3, false), hash(version, true));
        }
        assert_eq!(HashVersion::new(6, false), None);
    }
}
