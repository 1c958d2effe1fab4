//! CHD, of MAME: hunks of a hard disk or of a CD's frames, each packed by one of several methods.
//!
//! Specification: MAME, src/lib/util/chd.h and chdcodec.cpp. The crate `chd` reads maps and unpacks
//! hunks; it allocates what the header says, so the header is checked here first.
//!
//! ```text
//!   header | hunk map | metadata (list) | hunks
//!   a CD's frame: sector (2,048 to 2,352, zeros up to 2,352) | subchannels 96;  tracks fill up to 4 frames
//! ```
//!
//! Supported: versions 3, 4 and 5; hard disks, raw data and DVDs as they are; the data tracks of CDs and
//! of GD-ROMs; parents, found among the files beside the image by the hash that the child has of them.
//! Not supported: laser discs (the audio and video codec), versions 1 and 2.

use std::io::{Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use chd::Chd;
use chd::map::{CompressionTypeLegacy, CompressionTypeV5, MapEntry};

use super::disc::{Disc, Form, Piece, Track};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::cache::lock;
use crate::check::Check;
use crate::device::mapped::{Mapped, Mapping, Place, Run};
use crate::device::{BlockDevice, Device, probe_array, read_vec};
use crate::digest::{self, Algorithm};
use crate::error::{Error, Result};
use crate::text::{printable, trim_padding};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "chd", snapshots: false, probe, open };

const MAGIC: &[u8; 8] = b"MComprHD";
const MAX_HUNK: u64 = 16 << 20;
/// Bytes that the crate keeps of each hunk.
const MAP_ENTRY: u64 = 16;
/// A map of more bytes than this is refused: 16 million hunks.
const MAX_MAP: u64 = 256 << 20;
/// A map may be packed: a file of some size can have many more hunks that repeat each other.
const MAP_RATIO: u64 = 64;
const SMALL_MAP: u64 = 16 << 20;
const MAX_METADATA: usize = 1000;
const MAX_METADATA_LEN: usize = 64 << 10;
/// Bytes of a CD's frame: a sector and its subchannels.
const FRAME: u64 = 2448;
/// Tracks are filled up to a multiple of so many frames.
const TRACK_PADDING: u64 = 4;
const MAX_TRACKS: usize = 99;
/// Images over each other: no one makes more than two.
const MAX_PARENTS: usize = 16;
/// A hunk that repeats another one, which repeats another one: no writer makes chains at all.
const MAX_REPEATS: usize = 8;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    Ok(probe_array::<8>(device, 0)?.as_ref() == Some(MAGIC))
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let header = Header::read(file.as_ref())?;
    let parents = header.parent.map(|hash| Parent::find(&hash, companions, options, 1)).transpose()?;
    let metadata = metadata(file.as_ref(), header.metadata_at)?;
    let tag = |known: &[u8; 4]| metadata.iter().any(|item| &item.tag == known);
    let gd_rom = tag(b"CHGD") || tag(b"CHGT");
    if tag(b"AVAV") {
        return Err(Error::unsupported(FORMAT.name, "a laser disc"));
    }
    let first = decoder(&file)?;
    let unit_size = u64::from(first.header().unit_bytes());
    let (names, parent) = parents.map_or((Vec::new(), None), |parent| (parent.names, Some(parent.disk)));
    let hunks = Hunks::new(&file, &header, first, parent);
    let sector_size = if unit_size == 2048 { 2048 } else { 512 };
    let disk: Device = Arc::new(Mapped::new(Arc::new(hunks), file, None, sector_size, options.cache_size));
    let checks = checks(&header, &metadata, &disk);
    let tracks = tracks(&metadata)?;
    let mut opened = if tracks.is_empty() {
        let mut opened = Opened::new(FORMAT.name, disk);
        opened.add("virtual size", format!("{} bytes", header.size));
        opened
    } else {
        let disc = Disc { format: FORMAT.name, data: disk, tracks, notes: Vec::new() };
        let mut opened = if gd_rom { disc.open_gd_rom(options)? } else { disc.open(options)? };
        // They are of what the hunks hold.
        opened.facts.retain(|(name, _)| *name != "size of all files");
        opened
    };
    opened.checks.extend(checks);
    for name in names {
        opened.add("parent", name);
    }
    opened.add("version", header.version);
    opened.add("hunk size", format!("{} bytes", header.hunk_size));
    opened.add("compression", &header.codecs);
    for (name, sum) in [("stored SHA-1 of the data", header.raw_sha1), ("stored SHA-1", header.sha1)] {
        if let Some(sum) = sum {
            opened.add(name, digest::hex(&sum));
        }
    }
    for item in metadata.iter().filter(|item| item.tag.iter().all(u8::is_ascii_graphic)) {
        let text = item.value.split(|&b| b == 0).next().unwrap_or_default();
        if !text.is_empty() && text.iter().all(|b| b.is_ascii_graphic() || *b == b' ') {
            opened.add("metadata", format!("{}: {}", printable(&item.tag), printable(text)));
        }
    }
    Ok(opened)
}

/// What must be sound before the crate may read the file.
struct Header {
    version: u32,
    size: u64,
    hunk_size: u64,
    metadata_at: u64,
    /// What its hunks are packed with, in chdman's words.
    codecs: String,
    /// SHA-1 of all hunks, when it is known.
    raw_sha1: Option<[u8; 20]>,
    /// SHA-1 of that and of the metadata, from version 4 on.
    sha1: Option<[u8; 20]>,
    /// The hash, by which children name it, of the image that this one needs.
    parent: Option<[u8; 20]>,
}

impl Header {
    fn read(device: &dyn BlockDevice) -> Result<Self> {
        let len = usize::try_from(device.size().min(124)).map_err(|_| Error::Invalid)?;
        let bytes = read_vec(device, 0, len)?;
        let record = Record::new(FORMAT.name, "header", 0, &bytes);
        let version = record.be32(12)?;
        let sha1 = |at| record.array::<20>(at).map(|sum| (sum != [0; 20]).then_some(sum));
        let (hunks, header) = match version {
            3 | 4 => {
                let (hunk_size_at, parent_at) = if version == 3 { (76, 100) } else { (44, 68) };
                let parent = if record.be32(16)? & 1 != 0 { Some(record.array(parent_at)?) } else { None };
                let header = Self {
                    version,
                    size: record.be64(28)?,
                    hunk_size: record.be32(hunk_size_at)?.into(),
                    metadata_at: record.be64(36)?,
                    codecs: ["none", "zlib", "zlib+", "av"].get(record.be32(20)? as usize).unwrap_or(&"?").to_string(),
                    raw_sha1: sha1(if version == 3 { 80 } else { 88 })?,
                    sha1: if version == 3 { None } else { sha1(48)? },
                    parent,
                };
                (u64::from(record.be32(24)?), header)
            }
            5 => {
                let (size, hunk_size) = (record.be64(32)?, u64::from(record.be32(56)?));
                let unit_size = u64::from(record.be32(60)?);
                if unit_size == 0 || hunk_size.checked_rem(unit_size) != Some(0) {
                    return Err(record.corrupt_field("unit bytes"));
                }
                let map_at = record.be64(40)?;
                let map = probe_array::<4>(device, map_at)?.ok_or_else(|| record.corrupt_field("map offset"))?;
                let packed = record.be32(16)? != 0;
                let map_end = map_at.saturating_add(u32::from_be_bytes(map).into());
                if packed && map_end > device.size() {
                    return Err(Error::corrupt(FORMAT.name, "hunk map (past the end of the file)", map_at));
                }
                let (raw_sha1, sha1, parent) = (sha1(64)?, sha1(84)?, sha1(104)?);
                let codecs: Vec<String> =
                    record.bytes(16, 16)?.chunks(4).map(|tag| printable(trim_padding(tag))).collect();
                let codecs = codecs.into_iter().filter(|tag| !tag.is_empty()).collect::<Vec<_>>().join(", ");
                let codecs = if codecs.is_empty() { "none".to_owned() } else { codecs };
                let metadata_at = record.be64(48)?;
                let header = Self { version, size, hunk_size, metadata_at, codecs, raw_sha1, sha1, parent };
                (size.checked_div(hunk_size).unwrap_or(0), header)
            }
            _ => return Err(Error::unsupported(FORMAT.name, format!("version {version}"))),
        };
        if !(1..=MAX_HUNK).contains(&header.hunk_size) || header.size == 0 {
            return Err(record.corrupt_field("hunk bytes or logical bytes"));
        }
        let needed = header.size.div_ceil(header.hunk_size);
        if version < 5 && hunks < needed {
            return Err(record.corrupt_field("total hunks"));
        }
        let map = hunks.max(needed).saturating_mul(MAP_ENTRY);
        if map > MAX_MAP || map > device.size().saturating_mul(MAP_RATIO).saturating_add(SMALL_MAP) {
            return Err(Error::unsupported(FORMAT.name, format!("a map of {} hunks", hunks.max(needed))));
        }
        Ok(header)
    }
}

/// The image that a child needs: its bytes, before anything is made of their frames.
struct Parent {
    names: Vec<String>,
    disk: Device,
}

impl Parent {
    /// Children name their parents by hash alone.
    fn find(hash: &[u8; 20], companions: &dyn Companions, options: &Options, depth: usize) -> Result<Self> {
        if depth > MAX_PARENTS {
            return Err(Error::unsupported(
                FORMAT.name,
                format!("more than {MAX_PARENTS} parents (or one that is its own)"),
            ));
        }
        for name in companions.siblings()? {
            let is_chd = name.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("chd"));
            let Some(file) = companions.open(&name).ok().filter(|_| is_chd) else { continue };
            if !probe(file.as_ref(), companions).unwrap_or(false) {
                continue;
            }
            let Ok(header) = Header::read(file.as_ref()) else { continue };
            if header.sha1.or(header.raw_sha1) != Some(*hash) {
                continue;
            }
            let above = header.parent.map(|hash| Self::find(&hash, companions, options, depth.saturating_add(1)));
            let above = above.transpose()?;
            let mut names = vec![printable(name.as_os_str().as_encoded_bytes())];
            let above = above.map(|parent| {
                names.extend(parent.names);
                parent.disk
            });
            let hunks = Hunks::new(&file, &header, decoder(&file)?, above);
            let disk = Arc::new(Mapped::new(Arc::new(hunks), file, None, 512, options.cache_size));
            return Ok(Self { names, disk });
        }
        let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let what = format!("an image that needs its parent (no .chd beside it has the SHA-1 {digits})");
        Err(Error::unsupported(FORMAT.name, what))
    }
}

/// A piece of metadata.
struct Metadata {
    tag: [u8; 4],
    /// The header's checksum counts it.
    summed: bool,
    value: Vec<u8>,
}

fn metadata(device: &dyn BlockDevice, mut at: u64) -> Result<Vec<Metadata>> {
    let mut found = Vec::new();
    while at != 0 {
        let damaged = || Error::corrupt(FORMAT.name, "metadata", at);
        let bytes = probe_array::<16>(device, at)?.ok_or_else(damaged)?;
        let record = Record::new(FORMAT.name, "metadata", at, &bytes);
        let len = usize::try_from(record.be32(4)? & 0xff_ffff).map_err(|_| damaged())?;
        if found.len() >= MAX_METADATA {
            return Err(damaged());
        }
        let value = read_vec(device, at.saturating_add(16), len.min(MAX_METADATA_LEN)).map_err(|_| damaged())?;
        found.push(Metadata { tag: record.array(0)?, summed: record.u8(4)? & 1 != 0, value });
        at = record.be64(8)?;
    }
    Ok(found)
}

/// The header's digests: of the hunks, and of that together with the metadata.
fn checks(header: &Header, metadata: &[Metadata], disk: &Device) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some(raw) = header.raw_sha1 {
        checks.push(Check::digest("SHA-1 of the data", "every hunk", (Algorithm::Sha1, &raw), disk.clone()));
    }
    if let (Some(raw), Some(stored)) = (header.raw_sha1, header.sha1) {
        let mut rows: Vec<Vec<u8>> = metadata
            .iter()
            .filter(|item| item.summed)
            .map(|item| [&item.tag[..], &digest::of(Algorithm::Sha1, &item.value)].concat())
            .collect();
        rows.sort_unstable();
        let all = [&raw[..], &rows.concat()].concat();
        let found = digest::of(Algorithm::Sha1, &all);
        let fault = (found != stored).then(|| format!("it is {}, not {}", digest::hex(&found), digest::hex(&stored)));
        checks.push(Check::known("SHA-1 of the metadata", "header", fault));
    }
    checks
}

/// The tracks of a CD: `TRACK:1 TYPE:MODE1_RAW SUBTYPE:NONE FRAMES:100 PREGAP:0 PGTYPE:MODE1 ...`. Those
/// of a GD-ROM have `PAD:n` as well: of the frames so many lie between this track and the next.
fn tracks(metadata: &[Metadata]) -> Result<Vec<Track>> {
    let mut tracks = Vec::new();
    let (mut frame, mut next) = (0u64, 0u64);
    for item in metadata.iter().filter(|item| matches!(&item.tag, b"CHTR" | b"CHT2" | b"CHGT" | b"CHGD")) {
        let text = String::from_utf8_lossy(&item.value);
        let value = |name: &str| {
            let mut fields = text.trim_end_matches('\0').split_ascii_whitespace();
            fields.find_map(|field| field.strip_prefix(name)?.strip_prefix(':'))
        };
        let damaged = || Error::corrupt(FORMAT.name, format!("metadata ({})", printable(text.as_bytes())), 0);
        let number = |name: &str| value(name).map_or(Some(0), |value| value.parse::<u32>().ok()).ok_or_else(damaged);
        let (form, big_endian) = match value("TYPE").ok_or_else(damaged)? {
            "AUDIO" => (Form::Audio, true),
            "MODE1" | "MODE1/2048" | "MODE2_FORM1" | "MODE2/2048" => (Form::Cooked, false),
            "MODE1_RAW" | "MODE1/2352" => (Form::Raw { mode: 1 }, false),
            "MODE2_RAW" | "MODE2/2352" | "CDI/2352" => (Form::Raw { mode: 2 }, false),
            "MODE2" | "MODE2_FORM_MIX" | "MODE2/2336" => (Form::Mode2, false),
            "MODE2_FORM2" | "MODE2/2324" => (Form::Form2, false),
            _ => return Err(damaged()),
        };
        if tracks.len() >= MAX_TRACKS {
            return Err(damaged());
        }
        let (frames, pregap) = (u64::from(number("FRAMES")?), u64::from(number("PREGAP")?));
        let postgap = u64::from(number("POSTGAP")?);
        let pad = u64::from(number("PAD")?).min(frames);
        // A pregap whose type begins with V is among the frames.
        let stored = if value("PGTYPE").is_some_and(|kind| kind.starts_with('V')) { pregap.min(frames) } else { 0 };
        let piece = Piece {
            count: frames.saturating_sub(stored).saturating_sub(pad),
            at: Some(frame.saturating_add(stored).saturating_mul(FRAME)),
        };
        let first_gap = if tracks.is_empty() && stored == 0 { 0 } else { pregap };
        let lba: u64 = next.saturating_add(first_gap);
        next = lba.saturating_add(piece.count).saturating_add(pad).saturating_add(postgap);
        frame = frame.saturating_add(frames.next_multiple_of(TRACK_PADDING));
        tracks.push(Track { stride: FRAME, lba, big_endian, ..Track::new(number("TRACK")?, form, piece) });
    }
    Ok(tracks)
}

/// What the crate says, in our words.
fn unreadable(error: &chd::Error, at: u64) -> Error {
    match error {
        chd::Error::UnsupportedFormat | chd::Error::UnsupportedVersion | chd::Error::RequiresParent => {
            Error::unsupported(FORMAT.name, error.to_string())
        }
        error => Error::corrupt(FORMAT.name, format!("header, map or hunk ({error})"), at),
    }
}

/// The crate panics on some damaged codes (as of version 0.4.0); that is damage like any other.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| Error::corrupt(FORMAT.name, "header, map or hunk (codes)", 0))
}

fn decoder(file: &Device) -> Result<Chd<Reader>> {
    let reader = Reader { device: file.clone(), at: 0 };
    guarded(|| Chd::open(reader, None))?.map_err(|error| unreadable(&error, 0))
}

/// The file with a cursor, which the crate wants.
struct Reader {
    device: Device,
    at: u64,
}

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let rest = self.device.size().saturating_sub(self.at);
        let len = usize::try_from(rest).unwrap_or(usize::MAX).min(buf.len());
        if let Some(buf) = buf.get_mut(..len).filter(|buf| !buf.is_empty()) {
            self.device.read_exact_at(buf, self.at).map_err(std::io::Error::other)?;
        }
        self.at = self.at.saturating_add(len as u64);
        Ok(len)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.device.size().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// The hunks of the disk.
struct Hunks {
    file: Device,
    size: u64,
    hunk_size: u64,
    /// The units in which places of the parent are counted.
    unit_size: u64,
    parent: Option<Device>,
    /// Decoders that no one uses now; as many as hunks were ever unpacked at one time.
    idle: Mutex<Vec<Chd<Reader>>>,
}

/// How a hunk is kept.
enum Kept {
    /// Packed in `len` bytes, or stored.
    Here { len: u64 },
    /// As another hunk.
    Repeats(u64),
    /// In the parent, from this unit, or (in units of a hunk) as this hunk of it.
    Parent(ParentPlace),
}

enum ParentPlace {
    Unit(u64),
    Hunk(u64),
}

fn kept(decoder: &Chd<Reader>, hunk: u64, parent: bool) -> Result<Kept> {
    let damaged = || Error::corrupt(FORMAT.name, format!("map entry of hunk {hunk}"), 0);
    let entry = usize::try_from(hunk).ok().and_then(|hunk| decoder.map().get_entry(hunk)).ok_or_else(damaged)?;
    Ok(match entry {
        MapEntry::V5Compressed(entry) => match entry.hunk_type().map_err(|_| damaged())? {
            CompressionTypeV5::CompressionSelf => Kept::Repeats(entry.block_offset()),
            CompressionTypeV5::CompressionParent => Kept::Parent(ParentPlace::Unit(entry.block_offset())),
            _ => Kept::Here { len: entry.block_size().into() },
        },
        MapEntry::V5Uncompressed(entry) if parent && entry.block_offset() == 0 => Kept::Parent(ParentPlace::Hunk(hunk)),
        MapEntry::V5Uncompressed(_) => Kept::Here { len: 0 },
        MapEntry::LegacyEntry(entry) => match entry.hunk_type().map_err(|_| damaged())? {
            CompressionTypeLegacy::SelfHunk => Kept::Repeats(entry.block_offset()),
            CompressionTypeLegacy::ParentHunk => Kept::Parent(ParentPlace::Hunk(entry.block_offset())),
            CompressionTypeLegacy::Mini => Kept::Here { len: 0 },
            _ => Kept::Here { len: entry.block_size().into() },
        },
    })
}

impl Hunks {
    fn new(file: &Device, header: &Header, first: Chd<Reader>, parent: Option<Device>) -> Self {
        let unit_size = u64::from(first.header().unit_bytes());
        let idle = Mutex::new(vec![first]);
        Self { file: file.clone(), size: header.size, hunk_size: header.hunk_size, unit_size, parent, idle }
    }

    /// A hunk's bytes in the parent; zeros past its end.
    fn parent_hunk(&self, place: &ParentPlace) -> Result<Vec<u8>> {
        let damaged = || Error::corrupt(FORMAT.name, "map entry (a place in the parent)", 0);
        let at = match place {
            ParentPlace::Unit(unit) => unit.checked_mul(self.unit_size),
            ParentPlace::Hunk(hunk) => hunk.checked_mul(self.hunk_size),
        };
        let (at, parent) = at.zip(self.parent.as_ref()).ok_or_else(damaged)?;
        let mut bytes = vec![0; usize::try_from(self.hunk_size).map_err(|_| damaged())?];
        let there = parent.size().checked_sub(at).ok_or_else(damaged)?;
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(bytes.len());
        parent.read_exact_at(bytes.get_mut(..there).unwrap_or_default(), at)?;
        Ok(bytes)
    }

    fn unpack_with(&self, decoder: &mut Chd<Reader>, hunk: u64) -> Result<Vec<u8>> {
        let damaged = || Error::corrupt(FORMAT.name, format!("hunk {hunk}"), 0);
        let mut found = hunk;
        // The crate follows repetitions without a bound.
        for _ in 0..MAX_REPEATS {
            match kept(decoder, found, self.parent.is_some())? {
                Kept::Repeats(other) => found = other,
                Kept::Parent(place) => return self.parent_hunk(&place),
                Kept::Here { len } if len > self.file.size() => return Err(damaged()),
                Kept::Here { .. } => {
                    let size = usize::try_from(self.hunk_size).map_err(|_| damaged())?;
                    let mut unpacked = vec![0; size];
                    let number = u32::try_from(found).map_err(|_| damaged())?;
                    let mut hunk = decoder.hunk(number).map_err(|error| unreadable(&error, 0))?;
                    let len = hunk.read_hunk_in(&mut Vec::new(), &mut unpacked);
                    return match len {
                        Ok(len) if len == size => Ok(unpacked),
                        Ok(_) => Err(damaged()),
                        Err(error) => Err(unreadable(&error, 0)),
                    };
                }
            }
        }
        Err(damaged())
    }
}

impl Mapping for Hunks {
    fn size(&self) -> u64 {
        self.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let unit = offset.checked_div(self.hunk_size).unwrap_or(0);
        let within = offset.checked_rem(self.hunk_size).unwrap_or(0);
        Ok(Run { place: Place::Packed { unit, within }, len: self.hunk_size.saturating_sub(within) })
    }

    fn unpack(&self, hunk: u64) -> Result<Vec<u8>> {
        let idle = lock(&self.idle).pop();
        let mut decoder = match idle {
            Some(decoder) => decoder,
            None => self::decoder(&self.file)?,
        };
        // A decoder that panicked is dropped.
        let unpacked = guarded(|| self.unpack_with(&mut decoder, hunk))?;
        lock(&self.idle).push(decoder);
        unpacked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::Memory;

    /// A map whose tree of codes has a run past its last code: found by the fuzzer.
    const RUNS_OVER: &str = "4d436f6d707248440000007c000000056c7a6d617a6c696268756666666c61630000000000028000000000000000015d\
             0000000000000000000010000000020090ee022791960afc732a090ef98f42c2130dc6f7711362316e83bb85708db101\
             1e420000b36e9ac7000000000000000000000000000000000000000000758f0e06d3747952da5e9a8ddc09d0ee0f2434\
             2ca0bfd73d3e3e058a9720fe19a70eaca8f83daedf630342a6678c2c5f06d620f6d6075d6d4cfff8a918000700000000\
             000076460000000f47b28162ece52de2857726c100000022031011301028347f4862443fbf7c6f8ea069108f8c894633\
             9e82d0d99bb96ebef03878ef637253dc7cee707f22a747b28162ece52de2857726c100000022031011301028347f4862\
             443fbf7cef637253dc7cee707f22a747b28162ece52de2857726c100000022031011301028347f4862443fbf7c004cff\
             f8a918000700000000000076460000000f47b28162ece52de27726c1000000220310113010283462443fbf7c";

    #[test]
    fn a_tree_of_codes_that_runs_over_is_damage_and_no_panic() {
        let digits: Vec<char> = RUNS_OVER.chars().collect();
        let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
        let bytes: Vec<u8> = digits.chunks(2).map(byte).collect();
        let file: Device = Arc::new(Memory::new(bytes, 512));
        assert!(matches!(decoder(&file).err(), Some(Error::Corrupt { .. })));
    }
}
