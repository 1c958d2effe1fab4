//! Ciphers of 16-byte blocks over the units of a volume, in the modes that volumes use.
//!
//! ```text
//!   XTS:       tweak = E2(the unit's number)               NIST SP 800-38E
//!   CBC:       each block is XORed with the encrypted one before it, the first with an IV
//!   Elephant:  CBC, then two diffusers under a key of the offset       BitLocker
//! ```

use aes::cipher::consts::U16;
use aes::cipher::generic_array::GenericArray;
use aes::cipher::{BlockDecrypt, BlockEncrypt, BlockSizeUser, KeyInit};
use aes::{Aes128, Aes192, Aes256};
use camellia::{Camellia128, Camellia192, Camellia256};
use serpent::Serpent;
use twofish::Twofish;

use crate::error::{Error, Result};

pub(super) const BLOCK: usize = 16;
/// Blocks that are handed to the processor's AES at once.
const BATCH: usize = 8;

type Block = GenericArray<u8, U16>;

/// A cipher under one key.
pub(super) trait BlockCipher: Send + Sync {
    fn encrypt(&self, block: &mut Block);
    fn decrypt(&self, blocks: &mut [Block]);
}

impl<C: BlockEncrypt + BlockDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync> BlockCipher for C {
    fn encrypt(&self, block: &mut Block) {
        self.encrypt_block(block);
    }

    fn decrypt(&self, blocks: &mut [Block]) {
        self.decrypt_blocks(blocks);
    }
}

/// Any of them.
pub(super) type Cipher = Box<dyn BlockCipher>;

/// The cipher that Linux knows by this name, under a key of any length that it takes.
pub(super) fn by_name(name: &str, key: &[u8]) -> Result<Cipher> {
    fn with<C: BlockCipher + KeyInit + 'static>(key: &[u8]) -> Option<Cipher> {
        C::new_from_slice(key).ok().map(|cipher| Box::new(cipher) as Cipher)
    }
    let cipher = match (name, key.len()) {
        ("aes", 16) => with::<Aes128>(key),
        ("aes", 24) => with::<Aes192>(key),
        ("aes", 32) => with::<Aes256>(key),
        ("serpent", 16 | 24 | 32) => with::<Serpent>(key),
        ("twofish", 16 | 24 | 32) => with::<Twofish>(key),
        ("camellia", 16) => with::<Camellia128>(key),
        ("camellia", 24) => with::<Camellia192>(key),
        ("camellia", 32) => with::<Camellia256>(key),
        _ => None,
    };
    let bits = key.len().saturating_mul(8);
    cipher.ok_or_else(|| Error::unsupported("encryption", format!("{name} with a key of {bits} bits")))
}

/// AES under a key of 16 or 32 bytes.
pub(super) fn aes(key: &[u8]) -> Result<Cipher> {
    by_name("aes", key)
}

/// XTS: one key for the data, one for the tweak.
pub(super) struct Xts {
    data: Cipher,
    tweak: Cipher,
}

impl Xts {
    /// `key` is both keys, one after the other.
    pub(super) fn new(name: &str, key: &[u8]) -> Result<Self> {
        let (data, tweak) = key.split_at_checked(key.len() / 2).ok_or(Error::Invalid)?;
        Ok(Self { data: by_name(name, data)?, tweak: by_name(name, tweak)? })
    }

    /// Decrypts a unit, whose length is a multiple of 16 bytes.
    pub(super) fn decrypt(&self, unit: &mut [u8], number: u128) {
        let mut tweak: Block = number.to_le_bytes().into();
        self.tweak.encrypt(&mut tweak);
        let mut tweak = u128::from_le_bytes(tweak.into());
        for part in unit.chunks_mut(BLOCK.wrapping_mul(BATCH)) {
            let mut tweaks = [0u128; BATCH];
            let mut blocks = [Block::default(); BATCH];
            let mut count = 0usize;
            for ((bytes, block), kept) in part.chunks_exact(BLOCK).zip(&mut blocks).zip(&mut tweaks) {
                *kept = tweak;
                *block = xor(bytes, tweak);
                tweak = doubled(tweak);
                count = count.saturating_add(1);
            }
            self.data.decrypt(blocks.get_mut(..count).unwrap_or_default());
            for ((bytes, block), kept) in part.chunks_exact_mut(BLOCK).zip(&blocks).zip(tweaks) {
                bytes.copy_from_slice(&xor(block, kept));
            }
        }
    }
}

fn number_of(bytes: &[u8]) -> u128 {
    let mut block = [0; BLOCK];
    block.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    u128::from_le_bytes(block)
}

fn xor(bytes: &[u8], mask: u128) -> Block {
    (number_of(bytes) ^ mask).to_le_bytes().into()
}

/// Times x in GF(2^128) modulo x^128 + x^7 + x^2 + x + 1.
fn doubled(tweak: u128) -> u128 {
    let carry = if tweak >> 127 == 1 { 0x87 } else { 0 };
    (tweak << 1) ^ carry
}

/// A number under a cipher: the IV of a unit that nobody can foretell.
pub(super) fn encrypted(cipher: &dyn BlockCipher, number: u128) -> u128 {
    let mut block: Block = number.to_le_bytes().into();
    cipher.encrypt(&mut block);
    u128::from_le_bytes(block.into())
}

/// Decrypts a unit of cipher block chaining, whose length is a multiple of 16 bytes.
pub(super) fn decrypt_cbc(cipher: &dyn BlockCipher, unit: &mut [u8], iv: u128) {
    let mut last = iv;
    for part in unit.chunks_mut(BLOCK.wrapping_mul(BATCH)) {
        let mut masks = [0u128; BATCH];
        let mut blocks = [Block::default(); BATCH];
        let mut count = 0usize;
        for ((bytes, block), mask) in part.chunks_exact(BLOCK).zip(&mut blocks).zip(&mut masks) {
            *mask = last;
            last = number_of(bytes);
            *block = last.to_le_bytes().into();
            count = count.saturating_add(1);
        }
        cipher.decrypt(blocks.get_mut(..count).unwrap_or_default());
        for ((bytes, block), mask) in part.chunks_exact_mut(BLOCK).zip(&blocks).zip(masks) {
            bytes.copy_from_slice(&xor(block, mask));
        }
    }
}

/// The diffusers of BitLocker's Elephant, over a unit that is stored at a byte.
pub(super) fn undiffuse(cipher: &dyn BlockCipher, unit: &mut [u8], at: u64) {
    let place = u128::from(at);
    let [low, high] = [place, place | 0x80u128 << 120].map(|number| encrypted(cipher, number).to_le_bytes());
    let mut key = [0; 32];
    key.iter_mut().zip(low.iter().chain(&high)).for_each(|(to, from)| *to = *from);
    elephant_diffuser::decrypt(unit, &key);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xts_decrypts_the_vectors_of_the_standard() {
        // IEEE 1619-2007, vector 4: 512 bytes that count, under the digits of e and of pi.
        let key: Vec<u8> = "2718281828459045235360287471352631415926535897932384626433832795"
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        let start = [0x27, 0xa7, 0x47, 0x9b, 0xef, 0xa1, 0xd4, 0x76, 0x48, 0x9f, 0x30, 0x8c, 0xd4, 0xcf, 0xa6, 0xe2];
        let mut unit = start.to_vec();
        Xts::new("aes", &key).unwrap().decrypt(&mut unit, 0);
        assert_eq!(unit, (0..16).collect::<Vec<u8>>());
        assert!(Xts::new("aes", &key[..30]).is_err());
        assert!(Xts::new("anubis", &key).is_err());
    }

    #[test]
    fn a_long_unit_goes_on_where_a_short_one_ends() {
        let xts = Xts::new("aes", &[7; 64]).unwrap();
        let cbc = by_name("serpent", &[7; 32]).unwrap();
        let bytes: Vec<u8> = (0..4096u32).map(|n| (n % 251) as u8).collect();
        let both = |decrypt: &dyn Fn(&mut [u8])| {
            let (mut long, mut short) = (bytes.clone(), bytes[..48].to_vec());
            decrypt(&mut long);
            decrypt(&mut short);
            assert_eq!(long[..48], short[..]);
            assert_ne!(long[128..144], bytes[128..144]);
        };
        both(&|unit| xts.decrypt(unit, 9));
        both(&|unit| decrypt_cbc(cbc.as_ref(), unit, 9));
    }
}
