//! GNU ddrescue's map beside an image: which of its bytes were read, and which were not.
//!
//! Specification: GNU ddrescue manual, "Mapfile structure".
//!
//! ```text
//!   # Mapfile. Created by GNU ddrescue version 1.27
//!   0x00120000     ?     1              current place, status, pass
//!   0x00000000  0x00117000  +           place, length, status: + read, ? * / - not (yet)
//! ```
//!
//! Positions in a map are those of what was read; where the command line in it says that they are others
//! in the image (`-i`, `-o`), they are moved.
//!
//! Supported: `IMAGE.map`, `IMAGE.mapfile`, `IMAGE.log`, `IMAGE.logfile`; the same beside the image's stem
//! when the map says that it is of this image, or when no other file has that stem (both were renamed);
//! `mapfile`, `rescue.log` and the like when the map names this image; maps of older versions (log files);
//! the map of an image that was packed since (`IMAGE.gz`); any file that the user names. Bytes that were not
//! read are an error at their place, or zeros when the user says so; what the image is (raw, another
//! container) is probed by its bytes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bad::{BadRange, Damaged};
use super::{Companions, ContainerFormat, Opened, Options, open_raw, open_within};
use crate::device::{BlockDevice, Device, read_vec};
use crate::error::{Error, Result};
use crate::text::printable;

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "ddrescue", snapshots: true, probe, open };

const ENDINGS: [&str; 4] = ["map", "mapfile", "log", "logfile"];
/// Endings of files that only speak of an image of their stem.
const ABOUT: [&str; 9] = ["md5", "sha1", "sha256", "sha512", "txt", "nfo", "json", "asc", "bak"];
/// Files of other stems that are looked into for a map.
const MAX_OTHERS: usize = 50;
/// Endings of images that were packed.
const PACKED: [&str; 4] = ["gz", "xz", "zst", "bz2"];
/// A map of a disk that is wholly in pieces is a few megabytes.
const MAX_LEN: u64 = 64 << 20;
/// The map's head is recognised in as much.
const PROBED: u64 = 64;
/// Ranges that are listed one by one.
const MAX_LISTED: usize = 100;

fn probe(device: &dyn BlockDevice, companions: &dyn Companions) -> Result<bool> {
    Ok(find(device.size(), companions).is_some())
}

/// Opens an image of a known format through its map.
pub(super) fn open_as(name: &str, file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    if name != "raw" {
        let what = format!("a map of an image that is said to be {name} (leave the format out, or say raw)");
        return Err(Error::unsupported(FORMAT.name, what));
    }
    open(file, companions, options)
}

/// A map's name, and the map.
type Found = (PathBuf, Device);

/// The map that the user named, or the one beside an image of `size` bytes.
fn find(size: u64, companions: &dyn Companions) -> Option<Found> {
    companions.map().or_else(|| beside(Path::new(companions.own_name()), size, companions))
}

/// The map of an image that was packed whole, and had the name of the packed file without its ending.
pub(super) fn of_unpacked(size: u64, companions: &dyn Companions) -> Option<Found> {
    let own = Path::new(companions.own_name());
    if is_packed(own) && companions.map().is_none() {
        beside(Path::new(own.file_stem()?), size, companions)
    } else {
        None
    }
}

fn is_packed(own: &Path) -> bool {
    own.extension().is_some_and(|ending| PACKED.iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

/// The map beside an image of this name and size. Next to `game.img` and `game.map` may lie a `game.iso`
/// that has nothing to do with either.
fn beside(own: &Path, size: u64, companions: &dyn Companions) -> Option<Found> {
    let siblings = companions.siblings().ok()?;
    let is_own = |name: &Path| name.as_os_str() == companions.own_name() || name == own;
    let open = |name: &Path| companions.open(name).ok().filter(|device| is_map(device.as_ref()));
    for ending in ENDINGS {
        let mut appended = own.as_os_str().to_owned();
        appended.push(".");
        appended.push(ending);
        for (name, sure) in [(PathBuf::from(appended), true), (own.with_extension(ending), false)] {
            if is_own(&name) || !siblings.contains(&name) {
                continue;
            }
            let Some(map) = open(&name) else { continue };
            if sure || is_of(&map, own, size) || is_alone(own, &siblings) {
                return Some((name, map));
            }
        }
    }
    let others = siblings.iter().filter(|name| !is_own(name) && may_be_map(name));
    let mut found = others.take(MAX_OTHERS).filter_map(|name| Some((name, open(name)?)));
    let (name, map) = found.find(|(_, map)| read_map(map.as_ref()).is_ok_and(|text| names(&text, own)))?;
    Some((name.clone(), map))
}

/// `image.log`, or `mapfile` as in ddrescue's manual.
fn may_be_map(name: &Path) -> bool {
    let ending = name.extension().or(name.file_name()).unwrap_or_default();
    ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known))
}

/// Whether no other image has the stem of this one: a map of that stem is of no other, then.
fn is_alone(own: &Path, siblings: &[PathBuf]) -> bool {
    let about = |name: &Path| {
        let ending = name.extension().unwrap_or_default();
        may_be_map(name) || ABOUT.iter().chain(&PACKED).any(|known| ending.eq_ignore_ascii_case(known))
    };
    // What a packed file has as its stem is the name of what is in it: see `of_unpacked`.
    !is_packed(own) && siblings.iter().all(|name| name == own || name.file_stem() != own.file_stem() || about(name))
}

/// Whether a map says that it is of the image: by name, or by size.
fn is_of(map: &Device, own: &Path, size: u64) -> bool {
    let Ok(text) = read_map(map.as_ref()) else { return false };
    names(&text, own) || Map::parse(&text, size).is_ok_and(|map| map.end == size)
}

/// Whether a map says that the image was written to.
fn names(text: &[u8], own: &Path) -> bool {
    command_line(text).is_some_and(|line| writes_to(line, own.as_os_str().as_encoded_bytes()))
}

fn read_map(map: &dyn BlockDevice) -> Result<Vec<u8>> {
    if map.size() > MAX_LEN {
        return Err(Error::corrupt(FORMAT.name, "map (too long)", 0));
    }
    read_vec(map, 0, usize::try_from(map.size()).map_err(|_| Error::Invalid)?)
}

fn is_map(device: &dyn BlockDevice) -> bool {
    let len = usize::try_from(device.size().min(PROBED)).unwrap_or(0);
    let head = read_vec(device, 0, len).unwrap_or_default();
    let head = String::from_utf8_lossy(&head);
    head.starts_with("# Mapfile. Created by GNU ddrescue")
        || head.starts_with("# Rescue Logfile. Created by GNU ddrescue")
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let missing = || Error::unsupported(FORMAT.name, "an image without a map beside it");
    let map = find(file.size(), companions).ok_or_else(missing)?;
    // Pieces were put together before, and would be again, without the map.
    open_through(&map, file, &[FORMAT.name, "split"], companions, options)
}

/// Opens a disk through its map; it is not one of the formats in `outer`.
pub(super) fn open_through(
    (name, map): &Found,
    file: Device,
    outer: &[&str],
    companions: &dyn Companions,
    options: &Options,
) -> Result<Opened> {
    let text = read_map(map.as_ref())?;
    let Map { bad, read, end, unsure } = Map::parse(&text, file.size())?;
    let size = file.size();
    let zero = options.bad_as_zeros;
    let damaged = Damaged::new(file, bad.clone(), "ddrescue could not read it", zero);
    let disk: Device = Arc::new(damaged);
    let inner = match options.format.as_deref() {
        Some("raw") => open_raw(disk.clone(), options),
        _ => open_within(outer, disk.clone(), companions, options),
    };
    let mut opened = match inner {
        // The bytes by which formats are known were not read.
        Err(Error::Io { .. }) => open_raw(disk, options)?,
        opened => opened?,
    };
    if opened.format == "raw" {
        opened.format = FORMAT.name;
    }
    opened.add("map", printable(name.as_os_str().as_encoded_bytes()));
    opened.add("rescued", format!("{read} of {size} bytes"));
    let lost = bad.iter().fold(0u64, |sum, range| sum.saturating_add(range.len));
    opened.add("bad bytes", format!("{lost} in {} ranges", bad.len()));
    for range in bad.iter().take(MAX_LISTED) {
        opened.add("bad range", format!("{} bytes at {}", range.len, range.offset));
    }
    if bad.len() > MAX_LISTED {
        opened.notes.push(format!("the first {MAX_LISTED} of {} bad ranges are listed", bad.len()));
    }
    if lost > 0 {
        let how = if zero { "read as zeros" } else { "are errors when they are read" };
        opened.notes.push(format!("{lost} bytes were not rescued; they {how}"));
    }
    if end > size {
        opened.notes.push(format!("the image is shorter than its map: {} bytes are missing", end.saturating_sub(size)));
    }
    if unsure {
        let note = "the map does not say how it was made: if ddrescue was told where to begin to write (-o), its \
                    positions are not those of the image";
        opened.notes.push(note.to_owned());
    }
    Ok(opened)
}

struct Map {
    /// Ascending, within the image.
    bad: Vec<BadRange>,
    /// Bytes of the image that were read.
    read: u64,
    /// Where the map ends, in the image.
    end: u64,
    /// Its positions may be of what was read alone: nothing says that they are the image's.
    unsure: bool,
}

impl Map {
    /// `size` is the image's: what lies behind the map was not read either.
    fn parse(text: &[u8], size: u64) -> Result<Self> {
        let mut map = Self { bad: Vec::new(), read: 0, end: 0, unsure: false };
        let command = command_line(text);
        let positions = command.map(Positions::parse).unwrap_or_default();
        // In the positions of what was read.
        let mut last = 0u64;
        let mut at = 0u64;
        let mut rows = 0u64;
        for line in text.split(|&b| b == b'\n') {
            let start = at;
            at = at.saturating_add(line.len() as u64).saturating_add(1);
            let line = line.split(|&b| b == b'#').next().unwrap_or_default();
            let words: Vec<&[u8]> = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
            if words.is_empty() {
                continue;
            }
            rows = rows.saturating_add(1);
            if rows == 1 {
                // The current place and status.
                continue;
            }
            let damaged = || Error::corrupt(FORMAT.name, "map", start);
            let &[place, len, status] = words.as_slice() else { return Err(damaged()) };
            let (offset, len) = (number(place).ok_or_else(damaged)?, number(len).ok_or_else(damaged)?);
            if offset < last || !matches!(status, b"+" | b"?" | b"*" | b"/" | b"-") {
                return Err(damaged());
            }
            last = offset.checked_add(len).ok_or_else(damaged)?;
            if rows == 2 {
                map.unsure = command.is_none() && status == b"?" && offset == 0;
            }
            let (offset, end) = (positions.of_output(offset), positions.of_output(last));
            let gap = offset.saturating_sub(map.end);
            map.push(map.end, gap, size);
            map.end = end;
            if status == b"+" {
                map.read = map.read.saturating_add(end.min(size).saturating_sub(offset));
            } else {
                map.push(offset, end.saturating_sub(offset), size);
            }
        }
        map.push(map.end, size.saturating_sub(map.end), size);
        map.unsure &= map.end > size;
        Ok(map)
    }

    fn push(&mut self, offset: u64, len: u64, size: u64) {
        let len = len.min(size.saturating_sub(offset));
        match self.bad.last_mut() {
            Some(last) if last.offset.saturating_add(last.len) == offset => last.len = last.len.saturating_add(len),
            _ if len > 0 => self.bad.push(BadRange { offset, len }),
            _ => {}
        }
    }
}

/// Hexadecimal, octal or decimal, as C writes them.
fn number(word: &[u8]) -> Option<u64> {
    let word = std::str::from_utf8(word).ok()?;
    if let Some(hex) = word.strip_prefix("0x").or(word.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    if word.len() > 1 && word.starts_with('0') { u64::from_str_radix(word, 8).ok() } else { word.parse().ok() }
}

/// How ddrescue was called the last time; words stand in it as they came, without quotation marks.
fn command_line(text: &[u8]) -> Option<&[u8]> {
    let comments = text.split(|&b| b == b'\n').take_while(|line| line.starts_with(b"#"));
    comments.filter_map(|line| line.strip_prefix(b"# Command line: ")).next().map(<[u8]>::trim_ascii_end)
}

/// Whether a command line names the file as what is written to: the name of a map follows it.
fn writes_to(line: &[u8], name: &[u8]) -> bool {
    let places = line.windows(name.len().max(1)).enumerate().filter(|(_, window)| *window == name);
    let is_map = |word: &[u8]| {
        ENDINGS.iter().any(|ending| Path::new(OsStr::from_bytes(word)).extension() == Some(OsStr::new(ending)))
    };
    places.map(|(at, _)| line.split_at_checked(at).unwrap_or_default()).any(|(before, from)| {
        let rest = from.get(name.len()..).unwrap_or_default();
        let mut words = rest.split(|&b| b == b' ').filter(|word| !word.is_empty());
        let (first, second) = (words.next(), words.next());
        let follows = first.is_some_and(|first| is_map(first) || second.is_none());
        (before.ends_with(b" ") || before.ends_with(b"/")) && rest.starts_with(b" ") && follows
    })
}

/// Where reading and writing began: places of the map are the former's.
#[derive(Default)]
struct Positions {
    input: u64,
    output: u64,
}

impl Positions {
    /// Options of one letter that have a value.
    const VALUED: &[u8] = b"abceEFHiKmoQrsTWxXZ12";

    fn parse(line: &[u8]) -> Self {
        let (mut input, mut output, mut sector) = (None, None, None);
        let mut words = line.split(|&b| b == b' ').filter(|word| !word.is_empty()).skip(1);
        while let Some(word) = words.next() {
            let (letter, value) = match word {
                b"--" => break,
                [b'-', b'-', long @ ..] => {
                    let (name, value) = match long.iter().position(|&b| b == b'=') {
                        Some(at) => (long.get(..at).unwrap_or_default(), long.get(at.saturating_add(1)..)),
                        None => (long, None),
                    };
                    let letter = match name {
                        b"input-position" => b'i',
                        b"output-position" => b'o',
                        b"sector-size" => b'b',
                        _ => continue,
                    };
                    (letter, value.or_else(|| words.next()))
                }
                [b'-', letters @ ..] => {
                    let Some(at) = letters.iter().position(|letter| Self::VALUED.contains(letter)) else { continue };
                    let value = letters.get(at.saturating_add(1)..).filter(|value| !value.is_empty());
                    (letters.get(at).copied().unwrap_or_default(), value.or_else(|| words.next()))
                }
                _ => continue,
            };
            match letter {
                b'i' => input = value,
                b'o' => output = value,
                b'b' => sector = value.and_then(|value| with_unit(value, 1)),
                _ => {}
            }
        }
        let place = |value: Option<&[u8]>| value.and_then(|value| with_unit(value, sector.unwrap_or(512)));
        let input = place(input).unwrap_or(0);
        Self { input, output: place(output).unwrap_or(input) }
    }

    /// The place in the image; what was read before its first byte is not in it.
    fn of_output(&self, place: u64) -> u64 {
        if self.output >= self.input {
            place.saturating_add(self.output.saturating_sub(self.input))
        } else {
            place.saturating_sub(self.input.saturating_sub(self.output))
        }
    }
}

/// A number with one of ddrescue's multipliers: `s` is a sector, `k` a thousand, `Ki` 1024, and so on.
fn with_unit(word: &[u8], sector: u64) -> Option<u64> {
    let word = word.strip_suffix(b"B").unwrap_or(word);
    let (word, base) = word.strip_suffix(b"i").map_or((word, 1000u64), |word| (word, 1024));
    let power = |letter: u8| b"kMGTPE".iter().position(|&unit| unit == letter || (unit == b'k' && letter == b'K'));
    match word.split_last() {
        Some((b's', digits)) => number(digits)?.checked_mul(sector),
        Some((&letter, digits)) if !word.starts_with(b"0x") && power(letter).is_some() => {
            let exponent = u32::try_from(power(letter)?).ok()?.checked_add(1)?;
            number(digits)?.checked_mul(base.checked_pow(exponent)?)
        }
        _ => number(word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_says_where_reading_and_writing_began_and_what_was_written() {
        let moved = |line: &str| {
            let Positions { input, output } = Positions::parse(line.as_bytes());
            (input, output)
        };
        assert_eq!(moved("ddrescue -q -i 1M -s 4M -o 0 a part.img part.map"), (1_000_000, 0));
        assert_eq!(moved("ddrescue -qi2s -b4096 a b c"), (8192, 8192));
        assert_eq!(moved("ddrescue --input-position=1Ki --output-position 0x10 a b c"), (1024, 16));
        assert_eq!(moved("ddrescue -r3 -o 1KiB a b c"), (0, 1024));
        assert_eq!(moved("ddrescue -- -i 5 c"), (0, 0));
        let written = |line: &str, name: &str| writes_to(line.as_bytes(), name.as_bytes());
        assert!(written("ddrescue /dev/sr0 rescue/my game.img game.map -r3", "my game.img"));
        assert!(written("ddrescue game.iso game.img renamed", "game.img"));
        assert!(!written("ddrescue game.iso game.img game.map", "game.iso"));
        assert!(!written("ddrescue game.iso mygame.img game.map", "game.img"));
    }

    #[test]
    fn everything_but_a_plus_is_bad_and_so_is_what_the_map_leaves_out() {
        let text = b"# Mapfile. Created by GNU ddrescue version 1.27\n# x\n0x10 ? 1\n\
                     0x00 0x10 +\n0x10 0x10 -\n0x20 020 /\n0x30 16 +\n0x50 8 +\n";
        let map = Map::parse(text, 100).unwrap();
        let bad: Vec<_> = map.bad.iter().map(|range| (range.offset, range.len)).collect();
        assert_eq!(bad, [(16, 32), (64, 16), (88, 12)]);
        assert_eq!((map.read, map.end), (40, 88));
        for bad in ["0 0 1\n0 5 +\n3 5 +", "0 ?\n0 5", "0 ?\n0 5 x", "0 ?\n0xffffffffffffffff 5 +", "0 ?\n-1 5 +"] {
            assert!(Map::parse(bad.as_bytes(), 100).is_err(), "{bad}");
        }
    }
}
