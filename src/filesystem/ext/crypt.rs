//! Encrypted names without their key: the reversible form in which the kernel shows them.
//!
//! ```text
//!   base64url( major hash, minor hash, up to 149 bytes of the name [, SHA-256 of the rest] )
//! ```
//!
//! Spec: `fs/crypto/fname.c` of Linux, `struct fscrypt_nokey_name`.

use sha2::{Digest, Sha256};

/// A ciphertext is at least one AES block.
const SHORTEST: usize = 16;
/// Longer names are cut here and hashed, so that the form stays below 256 bytes.
const KEPT: usize = 149;

/// The form of a name; `None` when the bytes cannot be a ciphertext.
pub fn nokey_name(name: &[u8], (major, minor): (u32, u32)) -> Option<Vec<u8>> {
    if name.len() < SHORTEST {
        return None;
    }
    let mut bytes = Vec::with_capacity(189);
    bytes.extend_from_slice(&major.to_le_bytes());
    bytes.extend_from_slice(&minor.to_le_bytes());
    let (kept, rest) = name.split_at(name.len().min(KEPT));
    bytes.extend_from_slice(kept);
    if !rest.is_empty() {
        bytes.extend_from_slice(&Sha256::digest(rest));
    }
    Some(base64url(&bytes))
}

/// Base64 with `-` and `_`, without padding.
fn base64url(bytes: &[u8]) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = Vec::with_capacity(bytes.len().div_ceil(3).saturating_mul(4));
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().zip([16, 8, 0]).fold(0u32, |word, (&byte, shift)| word | u32::from(byte) << shift);
        for shift in [18, 12, 6, 0].into_iter().take(chunk.len().saturating_add(1)) {
            let letter = (word >> shift & 0x3f) as usize;
            out.extend(LETTERS.get(letter));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_needs_no_padding() {
        assert_eq!(base64url(b"foobar"), b"Zm9vYmFy");
        assert_eq!(base64url(b"fooba"), b"Zm9vYmE");
        assert_eq!(base64url(b"\xff\xfe"), b"__4");
    }

    #[test]
    fn a_long_name_keeps_below_256_bytes_and_a_short_one_is_none() {
        assert_eq!(nokey_name(&[7; 255], (1, 2)).unwrap().len(), 252);
        assert_eq!(nokey_name(&[7; 15], (0, 0)), None);
    }
}
