//! Encrypted volumes: the bytes that a key opens.
//!
//! A decoder answers three questions: whether a device is such a volume, what can be said of it
//! without a key, and what a key opens. The plain bytes are a device again, for the file systems.
//!
//! ```text
//!   device -> probe -> describe: cipher, UUID, ways to open it
//!                   -> unlock (key): a cipher for units of 512 or 4,096 bytes -> Plain, a device
//! ```
//!
//! Keys are found by the crates that know the formats' headers; units are decrypted here, by any
//! thread at any place. What is decrypted can only be read.

mod bitlocker;
mod cipher;
mod luks;

use crate::device::{BlockDevice, Device, check_range};
use crate::error::{Error, Result};

/// What an encrypted volume says of itself without a key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encrypted {
    /// Name of the format, as in [`FORMATS`].
    pub format: &'static str,
    /// The format with its version: `LUKS2`, `BitLocker`.
    pub variant: String,
    /// The volume's own identifier.
    pub uuid: Option<String>,
    /// Its name, where the format keeps one in the clear.
    pub label: Option<String>,
    /// Facts for `info`, in order: name, value.
    pub facts: Vec<(&'static str, String)>,
    /// What an examiner should know.
    pub notes: Vec<String>,
}

/// A kind of encrypted volume, as the table knows it.
pub struct EncryptedFormat {
    /// Name in messages and in `--json`.
    pub name: &'static str,
    /// Reads little; says whether the device holds this format, damaged or not.
    pub probe: fn(&dyn BlockDevice) -> Result<bool>,
    /// What can be said without a key.
    pub describe: fn(&dyn BlockDevice) -> Result<Encrypted>,
    /// The plain bytes, or `None` when this key does not open them: a passphrase, or what is in a key
    /// file. `None` for the key asks whether they can be opened without one.
    pub unlock: Unlock,
}

/// See [`EncryptedFormat::unlock`].
pub type Unlock = fn(&Device, Option<&[u8]>) -> Result<Option<Device>>;

/// In probe order: both have magic numbers of their own.
pub const FORMATS: &[EncryptedFormat] = &[luks::FORMAT, bitlocker::FORMAT];

/// The format of a device, when it is an encrypted volume.
pub fn probe(device: &dyn BlockDevice) -> Result<Option<&'static EncryptedFormat>> {
    for format in FORMATS {
        if (format.probe)(device)? {
            return Ok(Some(format));
        }
    }
    Ok(None)
}

/// What a device says of itself, when it is an encrypted volume.
pub fn describe(device: &dyn BlockDevice) -> Result<Option<Encrypted>> {
    probe(device)?.map(|format| (format.describe)(device)).transpose()
}

/// The plain bytes of an encrypted volume; see [`EncryptedFormat::unlock`].
pub fn unlock(device: &Device, key: Option<&[u8]>) -> Result<Option<Device>> {
    match probe(device.as_ref())? {
        Some(format) => (format.unlock)(device, key),
        None => Ok(None),
    }
}

/// Units that are decrypted each by itself.
trait Units: Send + Sync {
    /// Bytes in a unit: a power of two.
    fn unit(&self) -> u32;

    /// Plain bytes in all, a multiple of the unit.
    fn size(&self) -> u64;

    /// Reads whole units; `offset` is a multiple of the unit, and the range lies within the size.
    /// `bulk` says that the bytes are contents of files.
    fn read(&self, buf: &mut [u8], offset: u64, bulk: bool) -> Result<()>;
}

/// The plain bytes of a volume.
struct Plain<U> {
    units: U,
    sector_size: u32,
}

impl<U: Units> Plain<U> {
    fn read(&self, mut buf: &mut [u8], mut offset: u64, bulk: bool) -> Result<()> {
        check_range(buf.len(), offset, self.units.size())?;
        let unit = u64::from(self.units.unit());
        while !buf.is_empty() {
            let within = usize::try_from(offset & unit.wrapping_sub(1)).map_err(|_| Error::Invalid)?;
            let unit_len = usize::try_from(unit).map_err(|_| Error::Invalid)?;
            let whole = buf.len() & !unit_len.wrapping_sub(1);
            let here = if within == 0 && whole > 0 {
                let (now, later) = buf.split_at_mut(whole);
                self.units.read(now, offset, bulk)?;
                buf = later;
                whole
            } else {
                let mut bytes = vec![0; unit_len];
                self.units.read(&mut bytes, offset.saturating_sub(within as u64), bulk)?;
                let rest = bytes.get(within..).unwrap_or_default();
                let len = rest.len().min(buf.len());
                let (now, later) = buf.split_at_mut(len);
                now.copy_from_slice(rest.get(..len).unwrap_or_default());
                buf = later;
                len
            };
            offset = offset.saturating_add(here as u64);
        }
        Ok(())
    }
}

impl<U: Units> BlockDevice for Plain<U> {
    fn size(&self) -> u64 {
        self.units.size()
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read(buf, offset, false)
    }

    fn read_bulk_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read(buf, offset, true)
    }
}

/// Reads from the device below, as the caller of [`Units::read`] wants it.
fn read_below(below: &dyn BlockDevice, buf: &mut [u8], offset: u64, bulk: bool) -> Result<()> {
    if bulk { below.read_bulk_at(buf, offset) } else { below.read_exact_at(buf, offset) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Units of 512 bytes, each filled with its own number.
    struct Numbered;

    impl Units for Numbered {
        fn unit(&self) -> u32 {
            512
        }

        fn size(&self) -> u64 {
            512 * 9
        }

        fn read(&self, buf: &mut [u8], offset: u64, _: bool) -> Result<()> {
            assert!(offset.is_multiple_of(512) && buf.len().is_multiple_of(512));
            buf.iter_mut().enumerate().for_each(|(i, byte)| *byte = ((offset as usize + i) / 512) as u8);
            Ok(())
        }
    }

    #[test]
    fn any_range_is_read_through_whole_units() {
        let plain = Plain { units: Numbered, sector_size: 512 };
        for (offset, len) in [(0, 4608), (1, 4607), (511, 2), (512, 512), (700, 1500), (4607, 1), (0, 0)] {
            let mut buf = vec![99; len];
            plain.read_exact_at(&mut buf, offset as u64).unwrap();
            assert!((offset..).zip(&buf).all(|(at, byte)| at / 512 == usize::from(*byte)), "{len} at {offset}");
        }
        assert!(plain.read_exact_at(&mut [0; 2], 4607).is_err());
    }
}
