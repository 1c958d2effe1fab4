//! LUKS, the encrypted volumes of Linux: a header with up to 32 key slots, each of which holds the
//! volume's key under a passphrase of its own.
//!
//! Specification: LUKS On-Disk Format 1.2.3; LUKS2 On-Disk Format 1.1.
//!
//! ```text
//!   1:  header (592): cipher, digest of the key, 8 slots | key material | payload
//!   2:  header (4,096) + JSON | the same again, "SKUL"  | key material | payload (a segment)
//! ```
//!
//! Supported: both versions in units of 512 to 4,096 bytes; AES, Serpent, Twofish and Camellia in XTS
//! and CBC with IVs by plain, plain64, plain64be and essiv; PBKDF2, argon2i and argon2id; SHA-1,
//! SHA-2, RIPEMD-160 and Whirlpool; LUKS2 by its second header where the first is damaged.
//! Not supported: other ciphers (CAST5, those of `capi:`) and modes (LRW, ECB), authenticated
//! encryption, detached headers, a reencryption that is not finished.

mod hash;
mod header;
mod slot;
mod spec;

use std::sync::Arc;

use self::header::{Header, MAGIC, Payload, second_header, text};
use self::spec::Spec;
use super::{Encrypted, EncryptedFormat, Plain, Units, read_below};
use crate::device::{BlockDevice, Device, probe_array};
use crate::error::{Error, Result};

pub(super) const FORMAT: EncryptedFormat = EncryptedFormat { name: "luks", probe, describe, unlock };

fn probe(device: &dyn BlockDevice) -> Result<bool> {
    if probe_array::<6>(device, 0)?.as_ref() == Some(MAGIC) {
        return Ok(true);
    }
    Ok(second_header(device)?.is_some())
}

fn describe(device: &dyn BlockDevice) -> Result<Encrypted> {
    let mut encrypted = Encrypted { format: FORMAT.name, ..Encrypted::default() };
    match Header::read(device)? {
        Header::One(header) => {
            encrypted.variant = "LUKS1".to_owned();
            encrypted.facts = vec![
                ("cipher", header.cipher),
                ("key", format!("{} bits", header.key_len.saturating_mul(8))),
                ("hash", header.hash),
                ("payload at", format!("byte {}", header.payload_at)),
                ("key slots in use", header.slots.len().to_string()),
            ];
            encrypted.uuid = header.uuid;
        }
        Header::Two(header) => {
            encrypted.variant = "LUKS2".to_owned();
            for (_, segment) in header.object("segments").take(10) {
                let field = |name: &str| text(segment.get(name));
                encrypted.facts.push(("cipher", field("encryption")));
                encrypted.facts.push(("sectors", format!("{} bytes", field("sector_size"))));
                encrypted.facts.push(("payload at", format!("byte {}", field("offset"))));
            }
            for (_, slot) in header.object("keyslots").take(32) {
                let bits = slot.get("key_size").and_then(|size| size.as_u64()).unwrap_or(0).saturating_mul(8);
                let derivation = text(slot.get("kdf").and_then(|kdf| kdf.get("type")));
                encrypted.facts.push(("key slot", format!("a key of {bits} bits under {derivation}")));
            }
            (encrypted.uuid, encrypted.label, encrypted.notes) = (header.uuid, header.label, header.notes);
        }
    }
    Ok(encrypted)
}

fn unlock(device: &Device, key: Option<&[u8]>) -> Result<Option<Device>> {
    let header = Header::read(device.as_ref())?;
    let payload = header.payload(device.size())?;
    spec::check(&payload.cipher)?;
    slot::check(device.as_ref(), &header)?;
    let Some(key) = key else { return Ok(None) };
    let Some(volume_key) = slot::open(device.as_ref(), &header, key)? else { return Ok(None) };
    let unit = payload.unit;
    let size = payload.len & !u64::from(unit).wrapping_sub(1);
    let spec = Spec::new(&payload.cipher, &volume_key)?;
    let units = Sectors { below: device.clone(), spec, payload, size };
    Ok(Some(Arc::new(Plain { units, sector_size: device.sector_size() })))
}

/// The payload's units.
struct Sectors {
    below: Device,
    spec: Spec,
    payload: Payload,
    size: u64,
}

impl Units for Sectors {
    fn unit(&self) -> u32 {
        self.payload.unit
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, buf: &mut [u8], offset: u64, bulk: bool) -> Result<()> {
        read_below(self.below.as_ref(), buf, self.payload.start.saturating_add(offset), bulk)?;
        let unit = usize::try_from(self.payload.unit).map_err(|_| Error::Invalid)?;
        self.spec.decrypt(buf, unit, self.payload.iv.saturating_add(offset / 512));
        Ok(())
    }
}
