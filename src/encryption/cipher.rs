//! AES over the units of a volume, in the modes that volumes use.
//!
//! ```text
//!   XTS:       tweak = the unit's number                   NIST SP 800-38E
//!   CBC:       IV = AES(the unit's byte offset)            BitLocker, "eboiv"
//!   Elephant:  CBC, then two diffusers under a key of the offset
//! ```

use aes::cipher::generic_array::GenericArray;
use aes::cipher::{BlockDecrypt, BlockDecryptMut, BlockEncrypt, InnerIvInit, KeyInit};
use aes::{Aes128, Aes256};

use crate::error::{Error, Result};

const BLOCK: usize = 16;
/// Blocks that are handed to the processor's AES at once.
const BATCH: usize = 8;

type Block = GenericArray<u8, aes::cipher::consts::U16>;

/// AES with a key of either size.
pub(super) enum Aes {
    Short(Box<Aes128>),
    Long(Box<Aes256>),
}

impl Aes {
    pub(super) fn new(key: &[u8]) -> Result<Self> {
        let short = || Aes128::new_from_slice(key).map(|aes| Self::Short(Box::new(aes)));
        let long = || Aes256::new_from_slice(key).map(|aes| Self::Long(Box::new(aes)));
        short().or_else(|_| long()).map_err(|_| Error::unsupported("aes", format!("a key of {} bytes", key.len())))
    }

    fn encrypt(&self, block: &mut Block) {
        match self {
            Self::Short(aes) => aes.encrypt_block(block),
            Self::Long(aes) => aes.encrypt_block(block),
        }
    }

    fn decrypt(&self, blocks: &mut [Block]) {
        match self {
            Self::Short(aes) => aes.decrypt_blocks(blocks),
            Self::Long(aes) => aes.decrypt_blocks(blocks),
        }
    }
}

/// XTS: one key for the data, one for the tweak.
pub(super) struct Xts {
    data: Aes,
    tweak: Aes,
}

impl Xts {
    /// `key` is both keys, one after the other.
    pub(super) fn new(key: &[u8]) -> Result<Self> {
        let (data, tweak) = key.split_at_checked(key.len() / 2).ok_or(Error::Invalid)?;
        Ok(Self { data: Aes::new(data)?, tweak: Aes::new(tweak)? })
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

fn xor(bytes: &[u8], mask: u128) -> Block {
    let mut block = [0; BLOCK];
    block.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    (u128::from_le_bytes(block) ^ mask).to_le_bytes().into()
}

/// Times x in GF(2^128) modulo x^128 + x^7 + x^2 + x + 1.
fn doubled(tweak: u128) -> u128 {
    let carry = if tweak >> 127 == 1 { 0x87 } else { 0 };
    (tweak << 1) ^ carry
}

/// CBC under an IV of the unit's place; `diffuser` is the key of BitLocker's Elephant.
pub(super) struct Cbc {
    pub(super) data: Aes,
    pub(super) diffuser: Option<Aes>,
}

impl Cbc {
    /// Decrypts a unit, whose length is a multiple of 16 bytes, and which is stored at a byte.
    pub(super) fn decrypt(&self, unit: &mut [u8], at: u64) {
        let place = u128::from(at);
        let mut iv: Block = place.to_le_bytes().into();
        self.data.encrypt(&mut iv);
        let mut blocks: Vec<Block> = unit.chunks_exact(BLOCK).map(|bytes| xor(bytes, 0)).collect();
        match &self.data {
            Aes::Short(aes) => {
                cbc::Decryptor::<Aes128>::inner_iv_init(aes.as_ref().clone(), &iv).decrypt_blocks_mut(&mut blocks);
            }
            Aes::Long(aes) => {
                cbc::Decryptor::<Aes256>::inner_iv_init(aes.as_ref().clone(), &iv).decrypt_blocks_mut(&mut blocks);
            }
        }
        for (bytes, block) in unit.chunks_exact_mut(BLOCK).zip(&blocks) {
            bytes.copy_from_slice(block);
        }
        if let Some(diffuser) = &self.diffuser {
            let mut low: Block = place.to_le_bytes().into();
            let mut high: Block = (place | 0x80u128 << 120).to_le_bytes().into();
            diffuser.encrypt(&mut low);
            diffuser.encrypt(&mut high);
            let mut key = [0; 32];
            key.iter_mut().zip(low.iter().chain(&high)).for_each(|(to, from)| *to = *from);
            elephant_diffuser::decrypt(unit, &key);
        }
    }
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
        Xts::new(&key).unwrap().decrypt(&mut unit, 0);
        assert_eq!(unit, (0..16).collect::<Vec<u8>>());
        assert!(Xts::new(&key[..30]).is_err());
    }

    #[test]
    fn a_long_unit_goes_on_where_a_short_one_ends() {
        let xts = Xts::new(&[7; 64]).unwrap();
        let mut long: Vec<u8> = (0..4096u32).map(|n| (n % 251) as u8).collect();
        let mut short = long[..48].to_vec();
        xts.decrypt(&mut long, 9);
        xts.decrypt(&mut short, 9);
        assert_eq!(long[..48], short[..]);
    }
}
