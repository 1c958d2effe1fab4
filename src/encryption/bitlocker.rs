//! BitLocker, the encrypted volumes of Windows: three copies of the metadata, which hold the volume's
//! key once for each way to open it.
//!
//! Specification: libbde, "BitLocker Drive Encryption (BDE) format specification".
//!
//! ```text
//!   boot sector (512, in the clear) | ... encrypted ... | metadata | ... | metadata | ... | metadata
//!        places of the metadata                            moved here: the first sectors, encrypted
//! ```
//!
//! Supported: volumes of Windows Vista and later and BitLocker To Go; AES-CBC with and without the
//! Elephant diffuser and AES-XTS, 128 and 256 bits, sectors of 512 and 4,096 bytes; opened with a
//! password, a recovery password (48 digits), the contents of a `.BEK` file, or nothing while the
//! protection is suspended. The metadata's places read as zeros, as Windows shows them.
//! Not supported: TPM and smart cards alone, volumes that are only being encrypted or decrypted, or
//! encrypted where they are written to.

use std::sync::Arc;

use aes::Aes256;
use bitlocker::{BdeError, BdeVariant, FveMetadata, MetadataEntry, VolumeHeader, format_guid};
use ccm::Ccm;
use ccm::KeyInit;
use ccm::aead::AeadInPlace;
use ccm::aead::generic_array::GenericArray;
use ccm::consts::{U12, U16};
use sha2::{Digest, Sha256};

use super::cipher::{self, Xts, aes, decrypt_cbc, encrypted, undiffuse};
use super::{Encrypted, EncryptedFormat, Plain, Units, read_below};
use crate::bytes::Record;
use crate::device::{BlockDevice, Device, probe_array, read_array, read_vec};
use crate::error::{Error, Result};
use crate::text::{printable, utf16_to_bytes};

pub(super) const FORMAT: EncryptedFormat = EncryptedFormat { name: "bitlocker", probe, describe, unlock };

/// Room of each copy of the metadata, whatever it uses of it.
const METADATA_LEN: u64 = 64 << 10;
/// Identifier of the format, at byte 424 of a volume To Go and at byte 160 of others.
const GUID: [u8; 16] = [0x3b, 0xd6, 0x67, 0x49, 0x29, 0x2e, 0xd8, 0x4a, 0x83, 0x99, 0xf6, 0xa3, 0x39, 0xe3, 0xd0, 0x01];
/// The same, of a volume of which only what is written later becomes encrypted.
const ON_WRITE: [u8; 16] =
    [0x3b, 0x4d, 0xa8, 0x92, 0x80, 0xdd, 0x0e, 0x4d, 0x9e, 0x4e, 0xb1, 0xe3, 0x28, 0x4e, 0xae, 0xd8];
/// The state of a volume with which Windows is done.
const ENCRYPTED: u16 = 4;
/// Rounds of SHA-256 that a password goes through.
const STRETCH: u64 = 1 << 20;

// What entries hold, and what protects a key.
const VALUE_KEY: u16 = 1;
const VALUE_UNICODE: u16 = 2;
const VALUE_STRETCH: u16 = 3;
const VALUE_AES_CCM: u16 = 5;
const VALUE_EXTERNAL_KEY: u16 = 9;
const ENTRY_DESCRIPTION: u16 = 7;
const CLEAR: u16 = 0;
const STARTUP: u16 = 0x200;
const RECOVERY: u16 = 0x800;
const PASSWORD: u16 = 0x2000;

fn probe(device: &dyn BlockDevice) -> Result<bool> {
    let Some(sector) = probe_array::<512>(device, 0)? else { return Ok(false) };
    Ok(match sector.get(3..11) {
        Some(b"-FVE-FS-") => true,
        // A FAT volume of Windows 98 begins like this, too.
        Some(b"MSWIN4.1") => [GUID, ON_WRITE].iter().any(|guid| sector.get(424..440) == Some(guid)),
        _ => false,
    })
}

/// The volume's header and the first copy of its metadata that is there.
struct Metadata {
    header: VolumeHeader,
    fve: FveMetadata,
    state: u16,
}

impl Metadata {
    fn read(device: &dyn BlockDevice) -> Result<Self> {
        let header = VolumeHeader::parse(&read_array::<512>(device, 0)?).map_err(explain)?;
        if !matches!(header.bytes_per_sector, 512 | 4096) {
            return Err(Error::corrupt(FORMAT.name, "boot sector (bytes per sector)", 11));
        }
        let size = device.size();
        for &at in header.fve_metadata_offsets.iter().filter(|&&at| at > 0 && at < size) {
            let len = usize::try_from(METADATA_LEN.min(size.saturating_sub(at))).map_err(|_| Error::Invalid)?;
            let block = match read_vec(device, at, len) {
                Ok(block) => block,
                // One of the other copies may be readable.
                Err(_) => continue,
            };
            if let Some(fve) = FveMetadata::parse(&block, header.bytes_per_sector) {
                let state = Record::new(FORMAT.name, "metadata", at, &block).le16(12)?;
                return Ok(Self { header, fve, state });
            }
        }
        Err(Error::corrupt(FORMAT.name, "metadata (none of its three copies is there)", 0))
    }
}

fn describe(device: &dyn BlockDevice) -> Result<Encrypted> {
    let Metadata { header, fve, .. } = Metadata::read(device)?;
    let kind = match header.variant {
        BdeVariant::WindowsVista => "Windows Vista",
        BdeVariant::Windows7OrLater => "Windows 7 or later",
        BdeVariant::BitLockerToGo => "To Go",
    };
    let mut facts = vec![("made by", kind.to_owned()), ("cipher", method_name(fve.encryption_method))];
    for protection in fve.protector_types().into_iter().take(32) {
        facts.push(("opens with", protector_name(protection)));
    }
    let description = fve.entries.iter().find(|entry| entry.entry_type == ENTRY_DESCRIPTION);
    let label = description.filter(|entry| entry.value_type == VALUE_UNICODE).map(|entry| {
        let (units, _) = entry.data.as_chunks::<2>();
        let units = units.iter().map(|unit| u16::from_le_bytes(*unit)).take_while(|&unit| unit != 0);
        printable(&utf16_to_bytes(units))
    });
    Ok(Encrypted {
        format: FORMAT.name,
        variant: "BitLocker".to_owned(),
        uuid: Some(format_guid(&fve.volume_guid)),
        label,
        facts,
        notes: Vec::new(),
    })
}

fn method_name(method: u16) -> String {
    match method {
        0x8000 => "AES-CBC 128 with the Elephant diffuser".to_owned(),
        0x8001 => "AES-CBC 256 with the Elephant diffuser".to_owned(),
        0x8002 => "AES-CBC 128".to_owned(),
        0x8003 => "AES-CBC 256".to_owned(),
        0x8004 => "AES-XTS 128".to_owned(),
        0x8005 => "AES-XTS 256".to_owned(),
        other => format!("method {other:#06x}"),
    }
}

fn protector_name(protection: u16) -> String {
    match protection {
        CLEAR => "nothing: the protection is suspended".to_owned(),
        0x100 => "a TPM".to_owned(),
        STARTUP => "a startup key (.BEK)".to_owned(),
        0x500 => "a TPM and a PIN".to_owned(),
        RECOVERY => "a recovery password".to_owned(),
        PASSWORD => "a password".to_owned(),
        other => format!("protector {other:#06x}"),
    }
}

fn unlock(device: &Device, key: Option<&[u8]>) -> Result<Option<Device>> {
    let metadata = Metadata::read(device.as_ref())?;
    let method = metadata.fve.encryption_method;
    if !matches!(method, 0x8000..=0x8005) {
        return Err(Error::unsupported(FORMAT.name, format!("the encryption {}", method_name(method))));
    }
    if metadata.header.bitlocker_guid == ON_WRITE {
        return Err(Error::unsupported(FORMAT.name, "a volume that is encrypted only where it is written to"));
    }
    if metadata.state != ENCRYPTED {
        return Err(Error::unsupported(FORMAT.name, "a volume that is only being encrypted or decrypted"));
    }
    let Some(volume_key) = volume_key(&metadata.fve, key)? else { return Ok(None) };
    let cipher = Cipher::new(method, &volume_key)?;
    let units = Sectors::new(device.clone(), &metadata, cipher)?;
    Ok(Some(Arc::new(Plain { units, sector_size: device.sector_size() })))
}

/// What was given, in the form in which a protector wants it.
enum Given {
    /// To be stretched with the protector's salt.
    Hash([u8; 32]),
    /// The key itself.
    Key([u8; 32]),
    /// The key that lies beside the encrypted one.
    Nothing,
}

/// The key of the volume's sectors, from the first protector that the given key fits.
fn volume_key(fve: &FveMetadata, key: Option<&[u8]>) -> Result<Option<Vec<u8>>> {
    let missing = |what: &'static str| Error::corrupt(FORMAT.name, what, 0);
    for (protection, given) in ways(key) {
        for protector in fve.vmk_entries().filter(|entry| entry.protection_type() == Some(protection)).take(32) {
            let properties = protector.nested(28);
            let find = |kind: u16| properties.iter().find(|entry| entry.value_type == kind);
            let Some(wrapped) = find(VALUE_AES_CCM) else { continue };
            let wrapping = match &given {
                Given::Key(key) => *key,
                Given::Hash(hash) => {
                    let salt = find(VALUE_STRETCH).and_then(|entry| part::<16>(&entry.data, 4));
                    stretch(hash, &salt.ok_or_else(|| missing("key protector (its salt)"))?)
                }
                Given::Nothing => {
                    let clear = find(VALUE_KEY).and_then(|entry| part::<32>(&entry.data, 4));
                    clear.ok_or_else(|| missing("key protector (its clear key)"))?
                }
            };
            let Some(master) = unwrap(&wrapping, &wrapped.data) else { continue };
            let master = part::<32>(&master, 12).ok_or_else(|| missing("master key"))?;
            let volume = fve.fvek_entry().ok_or_else(|| missing("metadata (no key of the sectors)"))?;
            let volume = unwrap(&master, &volume.data).ok_or_else(|| missing("key of the sectors"))?;
            return Ok(Some(volume.get(12..).unwrap_or_default().to_vec()));
        }
    }
    Ok(None)
}

/// What a key can be: a startup key's file, a recovery password, a password.
fn ways(key: Option<&[u8]>) -> Vec<(u16, Given)> {
    let Some(key) = key else { return vec![(CLEAR, Given::Nothing)] };
    if let Some(external) = startup_key(key) {
        return vec![(STARTUP, Given::Key(external))];
    }
    let Ok(text) = std::str::from_utf8(key) else { return Vec::new() };
    let mut ways = Vec::new();
    if let Some(digits) = recovery_key(text.trim()) {
        ways.push((RECOVERY, Given::Hash(Sha256::digest(digits).into())));
    }
    let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    ways.push((PASSWORD, Given::Hash(Sha256::digest(Sha256::digest(units)).into())));
    ways
}

/// The key in a `.BEK` file: metadata of its own, with an external key that holds a key.
fn startup_key(file: &[u8]) -> Option<[u8; 32]> {
    let entries = MetadataEntry::parse_sequence(file.get(48..)?);
    let external = entries.into_iter().find(|entry| entry.value_type == VALUE_EXTERNAL_KEY)?;
    let key = external.nested(24).into_iter().find(|entry| entry.value_type == VALUE_KEY)?;
    part::<32>(&key.data, 4)
}

/// Eight groups of six digits, each eleven times a number of 16 bits.
fn recovery_key(text: &str) -> Option<[u8; 16]> {
    let mut key = [0; 16];
    let mut groups = text.split('-');
    for pair in key.as_chunks_mut::<2>().0 {
        let group = groups.next().filter(|group| group.len() == 6 && group.bytes().all(|b| b.is_ascii_digit()))?;
        let value = group.parse::<u32>().ok().filter(|value| value.is_multiple_of(11))?;
        *pair = u16::try_from(value / 11).ok()?.to_le_bytes();
    }
    groups.next().is_none().then_some(key)
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// SHA-256 of: last, hash, salt, count; a million times. The format fixes the number.
fn stretch(hash: &[u8; 32], salt: &[u8; 16]) -> [u8; 32] {
    let mut last = [0; 32];
    for count in 0..STRETCH {
        let mut sha = Sha256::new();
        sha.update(last);
        sha.update(hash);
        sha.update(salt);
        sha.update(count.to_le_bytes());
        last = sha.finalize().into();
    }
    last
}

/// Nonce (12), tag (16), the encrypted bytes; `None` when the tag is another key's.
fn unwrap(key: &[u8; 32], wrapped: &[u8]) -> Option<Vec<u8>> {
    let nonce = part::<12>(wrapped, 0)?;
    let tag = part::<16>(wrapped, 12)?;
    let mut bytes = wrapped.get(28..)?.to_vec();
    let cipher = Ccm::<Aes256, U16, U12>::new(GenericArray::from_slice(key));
    let (nonce, tag) = (GenericArray::from_slice(&nonce), GenericArray::from_slice(&tag));
    cipher.decrypt_in_place_detached(nonce, &[], &mut bytes, tag).ok().map(|()| bytes)
}

fn explain(error: BdeError) -> Error {
    Error::corrupt(FORMAT.name, format!("boot sector ({error})"), 0)
}

enum Cipher {
    /// The IV is the place of the sector, encrypted under the same key.
    Cbc {
        data: cipher::Cipher,
        diffuser: Option<cipher::Cipher>,
    },
    Xts(Xts),
}

impl Cipher {
    fn new(method: u16, key: &[u8]) -> Result<Self> {
        let short = || Error::corrupt(FORMAT.name, "key of the sectors (too short)", 0);
        let part = |at: usize, len: usize| at.checked_add(len).and_then(|end| key.get(at..end)).ok_or_else(short);
        let cbc = |len, diffuser: Option<usize>| -> Result<Self> {
            let diffuser = diffuser.map(|at| aes(part(at, len)?)).transpose()?;
            Ok(Self::Cbc { data: aes(part(0, len)?)?, diffuser })
        };
        match method {
            0x8000 => cbc(16, Some(32)),
            0x8001 => cbc(32, Some(32)),
            0x8002 => cbc(16, None),
            0x8003 => cbc(32, None),
            0x8004 => Ok(Self::Xts(Xts::new("aes", part(0, 32)?)?)),
            _ => Ok(Self::Xts(Xts::new("aes", part(0, 64)?)?)),
        }
    }
}

/// The sectors of the volume as Windows shows them.
struct Sectors {
    below: Device,
    cipher: Cipher,
    unit: u32,
    size: u64,
    /// Bytes from the start that are stored elsewhere, and where.
    moved: (u64, u64),
    /// Bytes from here on are not encrypted.
    encrypted_to: u64,
    /// Ranges that read as zeros: first byte, end; ascending.
    hidden: Vec<(u64, u64)>,
}

impl Sectors {
    fn new(below: Device, metadata: &Metadata, cipher: Cipher) -> Result<Self> {
        let (fve, unit) = (&metadata.fve, u32::from(metadata.header.bytes_per_sector));
        let size = below.size() & !u64::from(unit).wrapping_sub(1);
        let moved = (fve.volume_header_size, fve.volume_header_offset);
        let aligned = |value: u64| value.is_multiple_of(unit.into());
        let inside = moved.0.checked_add(moved.1).is_some_and(|end| end <= size);
        if !aligned(moved.0) || !aligned(moved.1) || !inside {
            return Err(Error::corrupt(FORMAT.name, "metadata (place of the first sectors)", 0));
        }
        let mut hidden: Vec<(u64, u64)> = fve.metadata_offsets.iter().map(|&at| (at, METADATA_LEN)).collect();
        hidden.push((moved.1, moved.0));
        hidden.retain(|&(at, len)| at > 0 && len > 0);
        if hidden.iter().any(|&(at, _)| !aligned(at)) {
            return Err(Error::corrupt(FORMAT.name, "metadata (its own places)", 0));
        }
        hidden.sort_unstable();
        let hidden = hidden.into_iter().map(|(at, len)| (at, at.saturating_add(len))).collect();
        let encrypted_to = match fve.encrypted_volume_size {
            0 => u64::MAX,
            to => to,
        };
        Ok(Self { below, cipher, unit, size, moved, encrypted_to, hidden })
    }

    /// Where the bytes at `offset` are stored, if they are to be seen, and how many follow them there.
    fn place(&self, offset: u64) -> (Option<u64>, u64) {
        let mut end = self.size;
        for &(start, stop) in &self.hidden {
            if (start..stop).contains(&offset) {
                return (None, stop.saturating_sub(offset));
            }
            if start > offset {
                end = end.min(start);
            }
        }
        let (moved, to) = self.moved;
        if offset < moved {
            return (Some(to.saturating_add(offset)), moved.min(end).saturating_sub(offset));
        }
        (Some(offset), end.saturating_sub(offset))
    }
}

impl Units for Sectors {
    fn unit(&self) -> u32 {
        self.unit
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, mut buf: &mut [u8], mut offset: u64, bulk: bool) -> Result<()> {
        let unit = usize::try_from(self.unit).map_err(|_| Error::Invalid)?;
        while !buf.is_empty() {
            let (place, len) = self.place(offset);
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(buf.len());
            if len == 0 {
                return Err(Error::Invalid);
            }
            let (now, later) = buf.split_at_mut(len);
            buf = later;
            offset = offset.saturating_add(len as u64);
            let Some(mut at) = place else {
                now.fill(0);
                continue;
            };
            read_below(self.below.as_ref(), now, at, bulk)?;
            for sector in now.chunks_mut(unit) {
                if at < self.encrypted_to {
                    match &self.cipher {
                        Cipher::Cbc { data, diffuser } => {
                            decrypt_cbc(data.as_ref(), sector, encrypted(data.as_ref(), at.into()));
                            if let Some(diffuser) = diffuser {
                                undiffuse(diffuser.as_ref(), sector, at);
                            }
                        }
                        Cipher::Xts(xts) => {
                            xts.decrypt(sector, at.checked_div(self.unit.into()).unwrap_or(0).into());
                        }
                    }
                }
                at = at.saturating_add(self.unit.into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_password_has_eight_groups_that_eleven_divides() {
        let key = recovery_key("042647-302313-590458-071500-554323-116567-412181-516978").unwrap();
        assert_eq!(u16::from_le_bytes([key[0], key[1]]), 42_647 / 11);
        for bad in [
            "042647-302313-590458-071500-554323-116567-412181",
            "042648-302313-590458-071500-554323-116567-412181-516978",
            "042647-302313-590458-071500-554323-116567-412181-516978-042647",
            "999999-302313-590458-071500-554323-116567-412181-516978",
            "anaconda",
        ] {
            assert!(recovery_key(bad).is_none(), "{bad}");
        }
    }
}
