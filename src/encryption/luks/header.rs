//! The headers of both versions, parsed to what they have in common.

use serde_json::Value;

use super::FORMAT;
use super::hash::Hash;
use crate::bytes::Record;
use crate::device::{BlockDevice, probe_array, read_array, read_vec};
use crate::error::{Error, Result};
use crate::text::{from_base64, printable, trim_padding};

pub(super) const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
const SECOND_MAGIC: &[u8; 6] = b"SKUL\xba\xbe";
const HEADER_1: usize = 592;
const BINARY_HEADER: usize = 4096;
/// Sizes that a LUKS2 header can have, and so the places of the second one.
const HEADER_SIZES: [u64; 9] =
    [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];
/// Marks a slot of version 1 that is in use.
const ENABLED: u32 = 0x00ac_71f3;
/// Most slots and digests that version 2 allows.
const MAX_SLOTS: usize = 32;

/// The payload's place, and how it is encrypted.
#[derive(Debug, Clone)]
pub(super) struct Payload {
    pub(super) cipher: String,
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) unit: u32,
    /// Number of the first 512 bytes.
    pub(super) iv: u64,
}

/// How a passphrase becomes the key of a slot's material.
#[derive(Debug, Clone)]
pub(super) enum Derivation {
    Pbkdf2 {
        hash: String,
        iterations: u32,
    },
    Argon2 {
        /// argon2i or argon2id.
        kind: String,
        time: u32,
        /// KiB.
        memory: u32,
        lanes: u32,
    },
}

/// A slot: the volume's key, split and encrypted.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) derivation: Derivation,
    pub(super) salt: Vec<u8>,
    /// First byte of the material on the device.
    pub(super) at: u64,
    /// Its cipher, and the bytes of that one's key.
    pub(super) cipher: String,
    pub(super) cipher_key_len: usize,
    /// Bytes of the key in it.
    pub(super) key_len: usize,
    pub(super) stripes: u64,
    /// That the key was split with.
    pub(super) hash: String,
    /// The digests that know this slot's key.
    pub(super) digests: Vec<Digest>,
}

/// Proves a key to be the volume's.
#[derive(Debug, Clone)]
pub(super) struct Digest {
    pub(super) hash: String,
    pub(super) salt: Vec<u8>,
    pub(super) iterations: u32,
    pub(super) digest: Vec<u8>,
}

/// A header of either version.
pub(super) enum Header {
    One(Header1),
    Two(Header2),
}

impl Header {
    pub(super) fn read(device: &dyn BlockDevice) -> Result<Self> {
        let start = read_array::<8>(device, 0)?;
        let record = Record::new(FORMAT.name, "header", 0, &start);
        let first = start.starts_with(MAGIC);
        match record.be16(6)? {
            1 if first => Ok(Self::One(Header1::read(device)?)),
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

    /// Refuses what this reader would decrypt to something else than the volume's bytes.
    pub(super) fn payload(&self, device_size: u64) -> Result<Payload> {
        let (mut payload, dynamic) = match self {
            Self::One(header) => {
                let (cipher, start) = (header.cipher.clone(), header.payload_at);
                (Payload { cipher, start, len: 0, unit: 512, iv: 0 }, true)
            }
            Self::Two(header) => header.payload()?,
        };
        let rest = device_size.saturating_sub(payload.start);
        if payload.start == 0 || rest == 0 {
            let what = "a header alone, a detached one or a copy (what it encrypts is in another file)";
            return Err(Error::unsupported(FORMAT.name, what));
        }
        payload.len = if dynamic { rest } else { payload.len.min(rest) };
        Ok(payload)
    }

    /// The slots that can hold the volume's key, those first that are to be tried first; and the
    /// error of the first one that is not understood.
    pub(super) fn slots(&self) -> (Vec<Slot>, Option<Error>) {
        match self {
            Self::One(header) => (header.slots.clone(), None),
            Self::Two(header) => header.slots(),
        }
    }
}

/// The second header's place, where the first one is lost. Only one that is whole counts.
pub(super) fn second_header(device: &dyn BlockDevice) -> Result<Option<u64>> {
    for at in HEADER_SIZES {
        if probe_array::<6>(device, at)?.as_ref() == Some(SECOND_MAGIC) && Header2::read(device, at).is_ok() {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// A header of version 1.
pub(super) struct Header1 {
    /// With its mode, as version 2 writes it.
    pub(super) cipher: String,
    pub(super) hash: String,
    pub(super) key_len: usize,
    pub(super) payload_at: u64,
    pub(super) uuid: Option<String>,
    pub(super) slots: Vec<Slot>,
}

impl Header1 {
    /// Field names and offsets: LUKS On-Disk Format 1.2.3, section 3.
    fn read(device: &dyn BlockDevice) -> Result<Self> {
        let bytes = read_vec(device, 0, HEADER_1)?;
        let record = Record::new(FORMAT.name, "header", 0, &bytes);
        let text = |offset, len| {
            let field = record.bytes(offset, len)?;
            Ok::<_, Error>(printable(field.split(|&byte| byte == 0).next().unwrap_or_default()))
        };
        let sectors = |offset| Ok::<_, Error>(u64::from(record.be32(offset)?).saturating_mul(512));
        let cipher = format!("{}-{}", text(8, 32)?, text(40, 32)?);
        let hash = text(72, 32)?;
        let key_len = usize::try_from(record.be32(108)?).map_err(|_| record.corrupt_field("key-bytes"))?;
        let digest = Digest {
            hash: hash.clone(),
            salt: record.bytes(132, 32)?.to_vec(),
            iterations: record.be32(164)?,
            digest: record.bytes(112, 20)?.to_vec(),
        };
        let mut slots = Vec::new();
        for number in 0..8usize {
            let slot = record.part("key slot", number.wrapping_mul(48).wrapping_add(208), 48)?;
            if slot.be32(0)? != ENABLED {
                continue;
            }
            slots.push(Slot {
                derivation: Derivation::Pbkdf2 { hash: hash.clone(), iterations: slot.be32(4)? },
                salt: slot.bytes(8, 32)?.to_vec(),
                at: u64::from(slot.be32(40)?).saturating_mul(512),
                cipher: cipher.clone(),
                cipher_key_len: key_len,
                key_len,
                stripes: slot.be32(44)?.into(),
                hash: hash.clone(),
                digests: vec![digest.clone()],
            });
        }
        let uuid = Some(text(168, 40)?).filter(|uuid| !uuid.is_empty());
        Ok(Self { cipher, hash, key_len, payload_at: sectors(104)?, uuid, slots })
    }
}

/// A header of version 2 whose checksum is right.
pub(super) struct Header2 {
    json: Value,
    pub(super) uuid: Option<String>,
    pub(super) label: Option<String>,
    pub(super) notes: Vec<String>,
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
        let name = trim_padding(record.bytes(72, 32)?);
        let hash = std::str::from_utf8(name).ok().and_then(|name| Hash::named(name).ok());
        let refused = || Error::unsupported(FORMAT.name, format!("a header checksum by {}", printable(name)));
        if !stored.starts_with(&hash.ok_or_else(refused)?.of(&[&bytes])) {
            return Err(record.corrupt_field("checksum"));
        }
        let json = bytes.get(BINARY_HEADER..).unwrap_or_default();
        let json = json.split(|&byte| byte == 0).next().unwrap_or_default();
        let json: Value = serde_json::from_slice(json).map_err(|_| record.corrupt_field("JSON"))?;
        let field = |offset, len| {
            let text = printable(trim_padding(record.bytes(offset, len)?));
            Ok::<_, Error>(Some(text).filter(|text| !text.is_empty()))
        };
        Ok(Self { json, label: field(24, 48)?, uuid: field(168, 40)?, notes: Vec::new() })
    }

    /// The members of an object of the JSON, by their numbers.
    pub(super) fn object(&self, name: &str) -> impl Iterator<Item = (&str, &Value)> {
        let object = self.json.get(name).and_then(Value::as_object);
        object.into_iter().flat_map(|object| object.iter().map(|(name, value)| (name.as_str(), value)))
    }

    /// The payload; its length is the device's where the second value says so.
    fn payload(&self) -> Result<(Payload, bool)> {
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
        let (_, segment) = segments.next().ok_or_else(|| corrupt("JSON (no segment)"))?;
        if segments.next().is_some() {
            return unsupported("a payload in several segments".to_owned());
        }
        if segment.get("type").and_then(Value::as_str) != Some("crypt") {
            return unsupported(format!("a segment of the type {}", text(segment.get("type"))));
        }
        if segment.get("integrity").is_some() {
            return unsupported("authenticated encryption".to_owned());
        }
        let start = number(segment.get("offset")).ok_or_else(|| corrupt("JSON (offset of the segment)"))?;
        let unit = number(segment.get("sector_size")).and_then(|size| u32::try_from(size).ok());
        let unit = unit.filter(|size| matches!(size, 512 | 1024 | 2048 | 4096));
        let unit = unit.ok_or_else(|| corrupt("JSON (sector size of the segment)"))?;
        let dynamic = segment.get("size").and_then(Value::as_str) == Some("dynamic");
        let len = number(segment.get("size")).filter(|_| !dynamic);
        let len = if dynamic { 0 } else { len.ok_or_else(|| corrupt("JSON (size of the segment)"))? };
        let iv = number(segment.get("iv_tweak")).unwrap_or(0);
        Ok((Payload { cipher: text(segment.get("encryption")), start, len, unit, iv }, dynamic))
    }

    fn slots(&self) -> (Vec<Slot>, Option<Error>) {
        let segment = self.object("segments").next().map_or("0", |(number, _)| number);
        let mut digests = Vec::new();
        let mut refused = None;
        for (_, digest) in self.object("digests").filter(|(_, digest)| names(digest.get("segments"), segment)) {
            match Digest::parse(digest) {
                Ok(parsed) => digests.push((digest.get("keyslots"), parsed)),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        let mut slots = Vec::new();
        for (id, slot) in self.object("keyslots").take(MAX_SLOTS) {
            let known = digests.iter().filter(|(slots, _)| names(*slots, id)).map(|(_, digest)| digest.clone());
            let known: Vec<Digest> = known.take(MAX_SLOTS).collect();
            // A slot of another key, or of none: a reencryption's.
            if known.is_empty() {
                continue;
            }
            // 2: before all others; 0: only when asked for.
            let priority = slot.get("priority").and_then(Value::as_u64).unwrap_or(1);
            match Slot::parse(slot, known) {
                Ok(slot) => slots.push((priority, slot)),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        slots.sort_by_key(|(priority, _)| std::cmp::Reverse(*priority));
        (slots.into_iter().map(|(_, slot)| slot).collect(), refused)
    }
}

/// Whether a list of the JSON names a number.
fn names(list: Option<&Value>, wanted: &str) -> bool {
    list.and_then(Value::as_array).is_some_and(|list| list.iter().any(|name| name.as_str() == Some(wanted)))
}

/// A field of the JSON as text.
pub(super) fn text(value: Option<&Value>) -> String {
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

/// A field that must be there.
fn field<T>(value: Option<T>, what: &'static str) -> Result<T> {
    value.ok_or_else(|| Error::corrupt(FORMAT.name, format!("JSON ({what})"), BINARY_HEADER as u64))
}

fn small<T: TryFrom<u64>>(object: &Value, name: &str, what: &'static str) -> Result<T> {
    field(number(object.get(name)).and_then(|number| T::try_from(number).ok()), what)
}

fn bytes(object: &Value, name: &str, what: &'static str) -> Result<Vec<u8>> {
    field(object.get(name).and_then(Value::as_str).and_then(from_base64), what)
}

impl Slot {
    /// LUKS2 On-Disk Format, section 3.2.
    fn parse(slot: &Value, digests: Vec<Digest>) -> Result<Self> {
        const WHAT: &str = "a key slot";
        let refused = |what: &str, name: Option<&Value>| {
            Err(Error::unsupported(FORMAT.name, format!("a key slot of the {what} {}", text(name))))
        };
        if slot.get("type").and_then(Value::as_str) != Some("luks2") {
            return refused("type", slot.get("type"));
        }
        let [kdf, area, af] = ["kdf", "area", "af"].map(|name| field(slot.get(name), WHAT));
        let (kdf, area, af) = (kdf?, area?, af?);
        if area.get("type").and_then(Value::as_str) != Some("raw") {
            return refused("area", area.get("type"));
        }
        if af.get("type").and_then(Value::as_str) != Some("luks1") {
            return refused("splitter", af.get("type"));
        }
        let derivation = match kdf.get("type").and_then(Value::as_str) {
            Some("pbkdf2") => {
                Derivation::Pbkdf2 { hash: text(kdf.get("hash")), iterations: small(kdf, "iterations", WHAT)? }
            }
            Some(kind @ ("argon2i" | "argon2id")) => Derivation::Argon2 {
                kind: kind.to_owned(),
                time: small(kdf, "time", WHAT)?,
                memory: small(kdf, "memory", WHAT)?,
                lanes: small(kdf, "cpus", WHAT)?,
            },
            _ => return refused("derivation", kdf.get("type")),
        };
        Ok(Self {
            derivation,
            salt: bytes(kdf, "salt", WHAT)?,
            at: small(area, "offset", WHAT)?,
            cipher: text(area.get("encryption")),
            cipher_key_len: small(area, "key_size", WHAT)?,
            key_len: small(slot, "key_size", WHAT)?,
            stripes: small(af, "stripes", WHAT)?,
            hash: text(af.get("hash")),
            digests,
        })
    }
}

impl Digest {
    /// LUKS2 On-Disk Format, section 3.4.
    fn parse(digest: &Value) -> Result<Self> {
        const WHAT: &str = "a digest";
        if digest.get("type").and_then(Value::as_str) != Some("pbkdf2") {
            let what = format!("a digest of the type {}", text(digest.get("type")));
            return Err(Error::unsupported(FORMAT.name, what));
        }
        Ok(Self {
            hash: text(digest.get("hash")),
            salt: bytes(digest, "salt", WHAT)?,
            iterations: small(digest, "iterations", WHAT)?,
            digest: bytes(digest, "digest", WHAT)?,
        })
    }
}
