//! A cipher of dm-crypt by its name: `aes-xts-plain64`, `serpent-cbc-essiv:sha256`.
//!
//! ```text
//!   cipher - mode - generator of the unit's IV [: its parameter]
//! ```
//!
//! Specification: Linux, `Documentation/admin-guide/device-mapper/dm-crypt.rst`.

use super::super::cipher::{Cipher, Xts, by_name, decrypt_cbc, encrypted};
use super::FORMAT;
use super::hash::Hash;
use crate::error::{Error, Result};
use crate::text::printable;

/// How the blocks of a unit hang together.
enum Mode {
    Xts(Xts),
    Cbc(Cipher),
}

/// What makes the IV of a unit's number.
enum Vector {
    /// The number's low 32 bits.
    Plain,
    Plain64,
    /// The number with its high byte first, at the end of the IV.
    Plain64Be,
    /// The number, encrypted under a hash of the key.
    Essiv(Cipher),
}

/// A cipher under a key.
pub(super) struct Spec {
    mode: Mode,
    vector: Vector,
}

/// The parts of a name; refuses what this reader does not know.
struct Name<'a> {
    cipher: &'a str,
    mode: &'a str,
    vector: &'a str,
    parameter: &'a str,
}

impl<'a> Name<'a> {
    fn parse(spec: &'a str) -> Result<Self> {
        let refused = || Error::unsupported(FORMAT.name, format!("the cipher {}", printable(spec.as_bytes())));
        let mut parts = spec.splitn(3, '-');
        let mut next = || parts.next().unwrap_or_default();
        let (cipher, mode, rest) = (next(), next(), next());
        let (vector, parameter) = rest.split_once(':').unwrap_or((rest, ""));
        let known = matches!(cipher, "aes" | "serpent" | "twofish" | "camellia")
            && matches!(mode, "xts" | "cbc")
            && match vector {
                "plain" | "plain64" | "plain64be" => parameter.is_empty(),
                "essiv" => Hash::named(parameter).is_ok(),
                _ => false,
            };
        if known { Ok(Self { cipher, mode, vector, parameter }) } else { Err(refused()) }
    }
}

/// Refuses a cipher that is not known, before there is a key for it.
pub(super) fn check(spec: &str) -> Result<()> {
    Name::parse(spec).map(drop)
}

impl Spec {
    pub(super) fn new(spec: &str, key: &[u8]) -> Result<Self> {
        let name = Name::parse(spec)?;
        let mode = match name.mode {
            "xts" => Mode::Xts(Xts::new(name.cipher, key)?),
            _ => Mode::Cbc(by_name(name.cipher, key)?),
        };
        let vector = match name.vector {
            "plain" => Vector::Plain,
            "plain64" => Vector::Plain64,
            "plain64be" => Vector::Plain64Be,
            _ => Vector::Essiv(by_name(name.cipher, &Hash::named(name.parameter)?.of(&[key]))?),
        };
        Ok(Self { mode, vector })
    }

    /// Decrypts units one after the other. Numbers count 512 bytes, whatever the unit.
    pub(super) fn decrypt(&self, bytes: &mut [u8], unit: usize, first: u64) {
        let mut number = first;
        for bytes in bytes.chunks_mut(unit.max(1)) {
            let iv = match &self.vector {
                Vector::Plain => u128::from(number & 0xffff_ffff),
                Vector::Plain64 => number.into(),
                Vector::Plain64Be => u128::from(number.swap_bytes()) << 64,
                Vector::Essiv(cipher) => encrypted(cipher.as_ref(), number.into()),
            };
            match &self.mode {
                Mode::Xts(xts) => xts.decrypt(bytes, iv),
                Mode::Cbc(cipher) => decrypt_cbc(cipher.as_ref(), bytes, iv),
            }
            // A sum that wraps is the number of no unit that a device can hold.
            number = number.wrapping_add(unit as u64 / 512);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_refused_by_its_whole_name() {
        for name in ["aes-xts-plain64", "serpent-cbc-plain", "twofish-cbc-essiv:sha256", "camellia-xts-plain64be"] {
            check(name).unwrap();
        }
        for name in
            ["aes-lrw-benbi", "cast5-cbc-plain64", "aes-xts-plain64:x", "aes-cbc-essiv:crc32", "aes", "", "aes-ecb"]
        {
            let error = check(name).unwrap_err().to_string();
            assert!(error.contains(&format!("the cipher {name} is not supported")), "{error}");
        }
        // Essiv's key is as long as its hash.
        assert!(Spec::new("aes-cbc-essiv:sha1", &[1; 32]).is_err());
    }
}
