//! The hashes that LUKS names, and what it does with them.

use md5::Md5;
use pbkdf2::pbkdf2_hmac;
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use whirlpool::Whirlpool;

use super::FORMAT;
use crate::error::{Error, Result};
use crate::text::printable;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    /// Of qemu-img alone.
    Md5,
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Ripemd160,
    Whirlpool,
}

impl Hash {
    pub(super) fn named(name: &str) -> Result<Self> {
        Ok(match name {
            "md5" => Self::Md5,
            "sha1" => Self::Sha1,
            "sha224" => Self::Sha224,
            "sha256" => Self::Sha256,
            "sha384" => Self::Sha384,
            "sha512" => Self::Sha512,
            "ripemd160" => Self::Ripemd160,
            "whirlpool" => Self::Whirlpool,
            other => {
                return Err(Error::unsupported(FORMAT.name, format!("the hash {}", printable(other.as_bytes()))));
            }
        })
    }

    /// The hash of all parts, one after the other.
    pub(super) fn of(self, parts: &[&[u8]]) -> Vec<u8> {
        fn hash<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
            let mut hash = D::new();
            parts.iter().for_each(|part| hash.update(part));
            hash.finalize().to_vec()
        }
        match self {
            Self::Md5 => hash::<Md5>(parts),
            Self::Sha1 => hash::<Sha1>(parts),
            Self::Sha224 => hash::<Sha224>(parts),
            Self::Sha256 => hash::<Sha256>(parts),
            Self::Sha384 => hash::<Sha384>(parts),
            Self::Sha512 => hash::<Sha512>(parts),
            Self::Ripemd160 => hash::<Ripemd160>(parts),
            Self::Whirlpool => hash::<Whirlpool>(parts),
        }
    }

    /// RFC 8018, section 5.2.
    pub(super) fn pbkdf2(self, password: &[u8], salt: &[u8], iterations: u32, key: &mut [u8]) {
        match self {
            Self::Md5 => pbkdf2_hmac::<Md5>(password, salt, iterations, key),
            Self::Sha1 => pbkdf2_hmac::<Sha1>(password, salt, iterations, key),
            Self::Sha224 => pbkdf2_hmac::<Sha224>(password, salt, iterations, key),
            Self::Sha256 => pbkdf2_hmac::<Sha256>(password, salt, iterations, key),
            Self::Sha384 => pbkdf2_hmac::<Sha384>(password, salt, iterations, key),
            Self::Sha512 => pbkdf2_hmac::<Sha512>(password, salt, iterations, key),
            Self::Ripemd160 => pbkdf2_hmac::<Ripemd160>(password, salt, iterations, key),
            Self::Whirlpool => pbkdf2_hmac::<Whirlpool>(password, salt, iterations, key),
        }
    }

    /// The key that was split over stripes of its own length: LUKS 1.2.3, section 2.4. There can be
    /// millions of stripes; `go_on` is asked now and then.
    pub(super) fn merge(self, material: &[u8], key_len: usize, go_on: &dyn Fn() -> Result<()>) -> Result<Vec<u8>> {
        let mut sum = vec![0; key_len];
        let mut stripes = material.chunks_exact(key_len.max(1)).enumerate().peekable();
        while let Some((number, stripe)) = stripes.next() {
            if number % 4096 == 0 {
                go_on()?;
            }
            sum.iter_mut().zip(stripe).for_each(|(to, from)| *to ^= from);
            // All but the last are diffused.
            if stripes.peek().is_some() {
                sum = self.diffuse(&sum);
            }
        }
        Ok(sum)
    }

    /// Each piece of a hash's length becomes the hash of its number and itself.
    fn diffuse(self, bytes: &[u8]) -> Vec<u8> {
        let len = self.of(&[]).len().max(1);
        let mut out = Vec::with_capacity(bytes.len());
        for (number, piece) in (0u32..).zip(bytes.chunks(len)) {
            let hash = self.of(&[&number.to_be_bytes(), piece]);
            out.extend_from_slice(hash.get(..piece.len()).unwrap_or_default());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pbkdf2_gives_the_vectors_of_rfc_6070() {
        let mut key = [0; 20];
        Hash::Sha1.pbkdf2(b"password", b"salt", 2, &mut key);
        assert_eq!(key[..6], [0xea, 0x6c, 0x01, 0x4d, 0xc7, 0x2d]);
        assert!(Hash::named("md4").unwrap_err().to_string().contains("the hash md4 is not supported"));
    }

    #[test]
    fn stripes_that_were_split_come_together_again() {
        let key = [9u8; 40];
        for hash in [Hash::Sha1, Hash::Sha512, Hash::Ripemd160, Hash::Whirlpool] {
            let mut material: Vec<u8> = (0..40u32 * 6).map(|n| (n * 7 % 256) as u8).collect();
            // The last stripe is what makes the sum the key.
            let mut sum = vec![0; 40];
            for stripe in material.chunks(40) {
                sum.iter_mut().zip(stripe).for_each(|(to, from)| *to ^= from);
                sum = hash.diffuse(&sum);
            }
            material.extend(sum.iter().zip(key).map(|(a, b)| a ^ b));
            assert_eq!(hash.merge(&material, 40, &|| Ok(())).unwrap(), key);
        }
    }
}
