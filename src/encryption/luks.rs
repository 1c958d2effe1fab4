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
//! Supported: both versions with aes-xts-plain64 in units of 512 to 4,096 bytes; PBKDF2, argon2i and
//! argon2id; LUKS2 by its second header where the first is damaged.
//! Not supported: other ciphers, authenticated encryption, detached headers, a reencryption that
//! is not finished.

use std::io::{self, Read, Seek, SeekFrom};

use luks::{Luks1Header, Luks2Header, Luks2Kdf, LuksError, LuksVolume};
use serde_json::Value;
use sha2::{Digest, Sha256, Sha512};

use super::cipher::Xts;
use super::{Encrypted, EncryptedFormat, Plain, Units, read_below};
use crate::bytes::Record;
use crate::device::{BlockDevice, Device, probe_array, read_array, read_vec};
use crate::error::{Error, Result};
use crate::text::{printable, trim_padding};

pub(super) const FORMAT: EncryptedFormat = EncryptedFormat { name: "luks", probe, describe, unlock };

const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
const SECOND_MAGIC: &[u8; 6] = b"SKUL\xba\xbe";
const HEADER_1: u64 = 592;
const BINARY_HEADER: usize = 4096;
/// Sizes that a LUKS2 header can have, and so the places of the second one.
const HEADER_SIZES: [u64; 9] =
    [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];
/// Key material of a slot: 4,000 stripes of 64 bytes, with room for more.
const MAX_MATERIAL: u64 = 16 << 20;
/// Memory that a slot may ask for, KiB: as much as cryptsetup itself allows.
const MAX_MEMORY: u64 = 4 << 20;

fn probe(device: &dyn BlockDevice) -> Result<bool> {
    if probe_array::<6>(device, 0)?.as_ref() == Some(MAGIC) {
        return Ok(true);
    }
    Ok(second_header(device)?.is_some())
}

/// The second header's place, where the first one is lost. Only one that is whole counts.
fn second_header(device: &dyn BlockDevice) -> Result<Option<u64>> {
    for at in HEADER_SIZES {
        if probe_array::<6>(device, at)?.as_ref() == Some(SECOND_MAGIC) && Header2::read(device, at).is_ok() {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

fn describe(device: &dyn BlockDevice) -> Result<Encrypted> {
    let mut encrypted = Encrypted { format: FORMAT.name, ..Encrypted::default() };
    match Header::read(device)? {
        Header::One(header) => {
            encrypted.variant = "LUKS1".to_owned();
            encrypted.uuid = Some(printable(trim_padding(header.uuid.as_bytes()))).filter(|uuid| !uuid.is_empty());
            encrypted.facts = vec![
                ("cipher", printable(format!("{}-{}", header.cipher_name, header.cipher_mode).as_bytes())),
                ("key", format!("{} bits", u64::from(header.key_bytes).saturating_mul(8))),
                ("hash", printable(header.hash_spec.as_bytes())),
                ("payload at", format!("byte {}", payload_1(&header))),
                ("key slots in use", header.active_keyslots().count().to_string()),
            ];
        }
        Header::Two(header) => {
            encrypted.variant = "LUKS2".to_owned();
            encrypted.uuid = header.uuid.clone();
            encrypted.label = header.label.clone();
            encrypted.notes = header.notes.clone();
            for segment in header.object("segments").take(10) {
                let field = |name: &str| text(segment.get(name));
                encrypted.facts.push(("cipher", field("encryption")));
                encrypted.facts.push(("sectors", format!("{} bytes", field("sector_size"))));
                encrypted.facts.push(("payload at", format!("byte {}", field("offset"))));
            }
            for slot in header.object("keyslots").take(32) {
                let bits = slot.get("key_size").and_then(Value::as_u64).unwrap_or(0).saturating_mul(8);
                let derivation = text(slot.get("kdf").and_then(|kdf| kdf.get("type")));
                encrypted.facts.push(("key slot", format!("a key of {bits} bits under {derivation}")));
            }
        }
    }
    Ok(encrypted)
}

/// A field of the JSON as text.
fn text(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => printable(text.as_bytes()),
        Some(Value::Number(number)) => number.to_string(),
        _ => "?".to_owned(),
    }
}

/// A number of the JSON: 64-bit ones are strings.
fn number(value: Option<&Value>) -> Option<u64> {
    match value? {
        Value::String(text) => text.parse().ok(),
        value => value.as_u64(),
    }
}

fn payload_1(header: &Luks1Header) -> u64 {
    u64::from(header.payload_offset).saturating_mul(512)
}

/// A header of either version.
enum Header {
    One(Box<Luks1Header>),
    Two(Header2),
}

impl Header {
    fn read(device: &dyn BlockDevice) -> Result<Self> {
        let start = read_array::<8>(device, 0)?;
        let record = Record::new(FORMAT.name, "header", 0, &start);
        let first = start.starts_with(MAGIC);
        match record.be16(6)? {
            1 if first => {
                let len = usize::try_from(HEADER_1).map_err(|_| Error::Invalid)?;
                let header = Luks1Header::parse(&read_vec(device, 0, len)?).map_err(explain)?;
                Ok(Self::One(Box::new(header)))
            }
            2 if first => Self::read_2(device, 0),
            version if first => Err(Error::unsupported(FORMAT.name, format!("version {version}"))),
            _ => Self::read_2(device, second_header(device)?.ok_or_else(|| record.corrupt())?),
        }
    }

    /// The first header, or the second one where that is damaged. The newer one of both would be
    /// the first in a volume that was closed properly.
    fn read_2(device: &dyn BlockDevice, at: u64) -> Result<Self> {
        let error = match Header2::read(device, at) {
            Ok(mut header) => {
                if at > 0 {
                    header.notes.push("the first header is lost: this is the second one".to_owned());
                }
                return Ok(Self::Two(header));
            }
            Err(error) => error,
        };
        let Some(at) = second_header(device)? else { return Err(error) };
        let mut header = Header2::read(device, at)?;
        header.notes.push(format!("the first header is damaged ({error}): this is the second one"));
        Ok(Self::Two(header))
    }
}

/// A header of version 2 whose checksum is right.
struct Header2 {
    /// Binary header and JSON, as they stand at the start of a volume.
    bytes: Vec<u8>,
    json: Value,
    uuid: Option<String>,
    label: Option<String>,
    notes: Vec<String>,
}

impl Header2 {
    /// Field names and offsets: LUKS2 On-Disk Format, section 2.1.
    fn read(device: &dyn BlockDevice, at: u64) -> Result<Self> {
        let binary = read_vec(device, at, BINARY_HEADER)?;
        let record = Record::new(FORMAT.name, "header", at, &binary);
        let size = record.be64(8)?;
        if record.be16(6)? != 2 || !HEADER_SIZES.contains(&size) || record.be64(256)? != at {
            return Err(record.corrupt());
        }
        let mut bytes = read_vec(device, at, usize::try_from(size).map_err(|_| Error::Invalid)?)?;
        let stored = record.array::<64>(448)?;
        bytes.get_mut(448..512).ok_or_else(|| record.corrupt())?.fill(0);
        let checksum = match trim_padding(record.bytes(72, 32)?) {
            b"sha256" => Sha256::digest(&bytes).to_vec(),
            b"sha512" => Sha512::digest(&bytes).to_vec(),
            other => {
                let what = format!("a header checksum by {}", printable(other));
                return Err(Error::unsupported(FORMAT.name, what));
            }
        };
        if !stored.starts_with(&checksum) {
            return Err(record.corrupt_field("checksum"));
        }
        let json = bytes.get(BINARY_HEADER..).unwrap_or_default();
        let json = json.split(|&byte| byte == 0).next().unwrap_or_default();
        let json: Value = serde_json::from_slice(json).map_err(|_| record.corrupt_field("JSON"))?;
        let field = |offset, len| {
            let text = printable(trim_padding(record.bytes(offset, len)?));
            Ok::<_, Error>(Some(text).filter(|text| !text.is_empty()))
        };
        let (label, uuid) = (field(24, 48)?, field(168, 40)?);
        if let Some(magic) = bytes.get_mut(..MAGIC.len()) {
            magic.copy_from_slice(MAGIC);
        }
        Ok(Self { bytes, json, uuid, label, notes: Vec::new() })
    }

    /// The values of an object of the JSON.
    fn object(&self, name: &str) -> impl Iterator<Item = &Value> {
        self.json.get(name).and_then(Value::as_object).into_iter().flat_map(|object| object.values())
    }

    /// Refuses what this reader would decrypt to something else than the volume's bytes.
    fn payload(&self, device_size: u64) -> Result<Payload> {
        let unsupported = |what: String| Err(Error::unsupported(FORMAT.name, what));
        let corrupt = |what: &'static str| Error::corrupt(FORMAT.name, what, BINARY_HEADER as u64);
        let requirements = self.json.get("config").and_then(|config| config.get("requirements"));
        let mandatory = requirements.and_then(|all| all.get("mandatory")).and_then(Value::as_array);
        if let Some(what) = mandatory.into_iter().flatten().next() {
            return unsupported(match what.as_str() {
                Some(what) if what.contains("reencrypt") => "a reencryption that is not finished".to_owned(),
                _ => format!("the requirement {}", text(Some(what))),
            });
        }
        let mut segments = self.object("segments");
        let segment = segments.next().ok_or_else(|| corrupt("JSON (no segment)"))?;
        if segments.next().is_some() {
            return unsupported("a payload in several segments".to_owned());
        }
        if segment.get("integrity").is_some() {
            return unsupported("authenticated encryption".to_owned());
        }
        let start = number(segment.get("offset")).ok_or_else(|| corrupt("JSON (offset of the segment)"))?;
        let unit = number(segment.get("sector_size")).and_then(|size| u32::try_from(size).ok());
        let unit = unit.filter(|size| matches!(size, 512 | 1024 | 2048 | 4096));
        let unit = unit.ok_or_else(|| corrupt("JSON (sector size of the segment)"))?;
        let rest = device_size.checked_sub(start).ok_or_else(|| corrupt("JSON (the segment is past the end)"))?;
        let len = match segment.get("size").and_then(Value::as_str) {
            Some("dynamic") => rest,
            _ => number(segment.get("size")).ok_or_else(|| corrupt("JSON (size of the segment)"))?.min(rest),
        };
        let cipher = text(segment.get("encryption"));
        Ok(Payload { cipher, start, len, unit, iv: number(segment.get("iv_tweak")).unwrap_or(0) })
    }
}

/// Where the payload lies, and how it is encrypted.
struct Payload {
    cipher: String,
    start: u64,
    len: u64,
    unit: u32,
    /// Number of the first 512 bytes.
    iv: u64,
}

impl Payload {
    fn of(header: &Header, device_size: u64) -> Result<Self> {
        match header {
            Header::One(header) => {
                let start = payload_1(header);
                let past = || Error::corrupt(FORMAT.name, "header (the payload is past the end)", 104);
                let len = device_size.checked_sub(start).ok_or_else(past)?;
                let cipher = printable(format!("{}-{}", header.cipher_name, header.cipher_mode).as_bytes());
                Ok(Self { cipher, start, len, unit: 512, iv: 0 })
            }
            Header::Two(header) => header.payload(device_size),
        }
    }
}

fn unlock(device: &Device, key: Option<&[u8]>) -> Result<Option<Device>> {
    let header = Header::read(device.as_ref())?;
    let payload = Payload::of(&header, device.size())?;
    if payload.cipher != "aes-xts-plain64" {
        return Err(Error::unsupported(FORMAT.name, format!("the cipher {}", payload.cipher)));
    }
    check_slots(&header, device.size())?;
    let Some(key) = key else { return Ok(None) };
    let head = match header {
        Header::One(_) => Vec::new(),
        Header::Two(header) => header.bytes,
    };
    let volume_key = match LuksVolume::unlock_with_passphrase(Source { device: device.as_ref(), head, at: 0 }, key) {
        Ok(volume) => volume.master_key().to_vec(),
        Err(LuksError::AuthenticationFailed) => return Ok(None),
        Err(error) => return Err(explain(error)),
    };
    let unit = payload.unit;
    let size = payload.len & !u64::from(unit).wrapping_sub(1);
    let units = Sectors { below: device.clone(), xts: Xts::new(&volume_key)?, payload, size };
    Ok(Some(std::sync::Arc::new(Plain { units, sector_size: device.sector_size() })))
}

/// What slots may ask for: their parameters are the header's, and a header can ask for anything.
fn check_slots(header: &Header, device_size: u64) -> Result<()> {
    let material = |at: u64, key_len: u64, stripes: u64| {
        let len = key_len.checked_mul(stripes).filter(|&len| len <= MAX_MATERIAL);
        let end = len.and_then(|len| at.checked_add(len)).filter(|&end| end <= device_size);
        end.map(|_| ()).ok_or_else(|| Error::corrupt(FORMAT.name, "key slot (its key material)", at))
    };
    match header {
        Header::One(header) => {
            for slot in header.active_keyslots() {
                let at = u64::from(slot.key_material_offset).saturating_mul(512);
                material(at, header.key_bytes.into(), slot.stripes.into())?;
            }
        }
        Header::Two(header) => {
            let parsed = Luks2Header::parse(&header.bytes).map_err(explain)?;
            for slot in &parsed.keyslots {
                material(slot.area_offset, slot.key_size as u64, slot.af_stripes.into())?;
                if let Luks2Kdf::Argon2 { memory, .. } = slot.kdf {
                    check_memory(memory.into())?;
                }
            }
        }
    }
    Ok(())
}

/// Refuses a derivation that would not fit in this machine.
fn check_memory(kib: u64) -> Result<()> {
    let there = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?.to_owned();
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    });
    let limit = rustix::process::getrlimit(rustix::process::Resource::As).current.map(|bytes| bytes / 2048);
    let bound = [Some(MAX_MEMORY), there, limit].into_iter().flatten().min().unwrap_or(MAX_MEMORY);
    if kib > bound {
        let what =
            format!("a key slot that takes {} MiB of memory to open ({} MiB can be had)", kib / 1024, bound / 1024);
        return Err(Error::unsupported(FORMAT.name, what));
    }
    Ok(())
}

/// The crate's errors in our words.
fn explain(error: LuksError) -> Error {
    let unsupported = |what: String| Error::unsupported(FORMAT.name, what);
    match error {
        LuksError::Io(error) => match error.downcast::<Error>() {
            Ok(error) => error,
            Err(error) => Error::io("luks", error),
        },
        LuksError::Unsupported { what, value } => unsupported(format!("the {what} {}", printable(value.as_bytes()))),
        LuksError::UnsupportedVersion { version } => unsupported(format!("version {version}")),
        LuksError::DerivationBudgetExceeded { projected_secs, .. } => {
            unsupported(format!("a key slot that takes {projected_secs} seconds to open (30 are allowed)"))
        }
        LuksError::UnlockBudgetExceeded { budget_secs, .. } => {
            unsupported(format!("a header whose key slots take more than {budget_secs} seconds to try"))
        }
        LuksError::DerivationMemoryExceeded { requested_kib, .. } => {
            unsupported(format!("a key slot that takes {} MiB of memory to open", requested_kib / 1024))
        }
        LuksError::NoActiveKeyslot => unsupported("a volume without a key slot".to_owned()),
        other => Error::corrupt(FORMAT.name, format!("header ({other})"), 0),
    }
}

/// A device as the crate wants it, with a header that was checked in the place of its own.
struct Source<'a> {
    device: &'a dyn BlockDevice,
    head: Vec<u8>,
    at: u64,
}

impl Read for Source<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let rest = self.device.size().saturating_sub(self.at);
        let len = buf.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        let buf = buf.get_mut(..len).unwrap_or_default();
        self.device.read_exact_at(buf, self.at).map_err(io::Error::other)?;
        let head = usize::try_from(self.at).ok().and_then(|at| self.head.get(at..)).unwrap_or_default();
        buf.iter_mut().zip(head).for_each(|(to, from)| *to = *from);
        self.at = self.at.saturating_add(len as u64);
        Ok(len)
    }
}

impl Seek for Source<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.device.size().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// The payload's units.
struct Sectors {
    below: Device,
    xts: Xts,
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
        // Numbers count 512 bytes, whatever the unit.
        let mut number = u128::from(self.payload.iv).saturating_add(u128::from(offset / 512));
        let step = u128::from(self.payload.unit / 512);
        for unit in buf.chunks_mut(usize::try_from(self.payload.unit).map_err(|_| Error::Invalid)?) {
            self.xts.decrypt(unit, number);
            number = number.saturating_add(step);
        }
        Ok(())
    }
}
