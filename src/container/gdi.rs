//! GDI: a text that lists the tracks of a GD-ROM, the disc of the Dreamcast, and their files.
//!
//! Specification: none; MAME, src/lib/util/cdrom.cpp (`parse_gdi`).
//!
//! ```text
//!   3                                    number of tracks
//!   1 0 4 2352 track01.bin 0             number, first sector, 4 data or 0 sound, bytes a sector, file, byte
//!   2 756 0 2352 track02.raw 0
//!   3 45000 4 2352 "track 03.bin" 0      from here on: the high-density area
//! ```
//!
//! Supported: data tracks of 2,048, 2,336 and 2,352 bytes a sector, with 96 more for subchannels; both
//! areas, as two disks: the high-density one first, because the game is there.

use super::disc::{Disc, Form, Piece, Track};
use super::files::{Files, Placed};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::device::{BlockDevice, Device, read_vec};
use crate::error::{Error, Result};
use crate::text::printable;

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "gdi", snapshots: false, probe, open };

/// 99 lines.
const MAX_LEN: u64 = 64 << 10;
const MAX_TRACKS: usize = 99;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    if !(16..=MAX_LEN).contains(&device.size()) {
        return Ok(false);
    }
    let text = text(device)?;
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let count = lines.next().and_then(|line| line.trim().parse::<usize>().ok());
    Ok(count.is_some_and(|count| (1..=MAX_TRACKS).contains(&count))
        && lines.next().and_then(Line::parse).is_some_and(|line| line.number == 1))
}

fn text(device: &dyn BlockDevice) -> Result<String> {
    let len = usize::try_from(device.size()).map_err(|_| Error::Invalid)?;
    // Names are bytes; those of other code pages are not found, which is said.
    Ok(String::from_utf8_lossy(&read_vec(device, 0, len)?).trim_start_matches('\u{feff}').to_owned())
}

/// A track's line.
struct Line<'a> {
    number: u32,
    lba: u64,
    form: Form,
    stride: u64,
    name: &'a str,
    offset: u64,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut rest = line.trim();
        let mut word = || {
            let (word, behind) = rest.split_once(char::is_whitespace)?;
            rest = behind.trim_start();
            Some(word)
        };
        let (number, lba, kind, stride) = (word()?, word()?, word()?, word()?);
        // A name may have blanks, in quotation marks or not; the byte stands behind it.
        let (name, offset) = rest.trim().rsplit_once(char::is_whitespace)?;
        let stride: u64 = stride.parse().ok()?;
        let form = match (kind, stride) {
            ("0", 2352 | 2448) => Form::Audio,
            ("4", 2048) => Form::Cooked,
            ("4", 2336) => Form::Mode2,
            ("4", 2352 | 2448) => Form::Raw { mode: 1 },
            _ => return None,
        };
        let number = number.parse().ok().filter(|number| (1..=99).contains(number))?;
        // Sectors of a disc fit in 32 bits.
        let lba: u32 = lba.parse().ok()?;
        let name = name.trim().trim_matches('"');
        Some(Self { number, lba: lba.into(), form, stride, name, offset: offset.parse().ok()? })
    }
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    if file.size() > MAX_LEN {
        return Err(Error::corrupt(FORMAT.name, "the list (too long)", 0));
    }
    let text = text(file.as_ref())?;
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let count = lines.next().and_then(|line| line.trim().parse::<usize>().ok());
    let count = count.filter(|&count| (1..=MAX_TRACKS).contains(&count));
    let count = count.ok_or_else(|| Error::corrupt(FORMAT.name, "number of tracks", 0))?;
    let mut parsed = Vec::new();
    for line in lines.take(count) {
        let shown = || printable(line.as_bytes()).chars().take(80).collect::<String>();
        let damaged = || Error::corrupt(FORMAT.name, format!("the line \"{}\"", shown()), 0);
        parsed.push(Line::parse(line).ok_or_else(damaged)?);
    }
    let mut notes = Vec::new();
    if parsed.len() < count {
        notes.push(format!("the list ends after {} of {count} tracks", parsed.len()));
    }
    let mut files = Files::default();
    let mut tracks: Vec<Track> = Vec::new();
    for (index, line) in parsed.iter().enumerate() {
        let Placed { device, at } = match files.open(companions, line.name.as_bytes(), false) {
            Ok(placed) => placed,
            // Sound that is lost does not take the data with it.
            Err(error) if line.form == Form::Audio && parsed.iter().any(|line| line.form != Form::Audio) => {
                notes.push(format!("track {} is left out: {error}", line.number));
                continue;
            }
            Err(error) => return Err(error),
        };
        let rest = device.size().saturating_sub(line.offset);
        let next = parsed.get(index.saturating_add(1)).map_or(u64::MAX, |next| next.lba);
        let whole = rest.saturating_add(line.stride.saturating_sub(line.form.len())).checked_div(line.stride);
        let count = whole.unwrap_or(0).min(next.saturating_sub(line.lba));
        let piece = Piece { count, at: Some(at.saturating_add(line.offset)) };
        tracks.push(Track { lba: line.lba, stride: line.stride, ..Track::new(line.number, line.form, piece) });
    }
    notes.append(&mut files.notes);
    Disc { format: FORMAT.name, data: files.into_device()?, tracks, notes }.open_gd_rom(options)
}

#[cfg(test)]
mod tests {
    use super::super::disc::GD_HIGH;
    use super::*;

    #[test]
    fn names_have_blanks_and_the_high_density_area_begins_at_its_sector() {
        let line = Line::parse("3 45000 4 2352 \"Track 03 (USA).bin\" 16").unwrap();
        assert_eq!((line.name, line.offset, line.lba >= GD_HIGH), ("Track 03 (USA).bin", 16, true));
        assert_eq!(Line::parse(" 1  0 4 2048\ttrack 01.iso 0\r").unwrap().name, "track 01.iso");
        for bad in ["", "1", "1 0 4 2352", "1 0 5 2352 a 0", "1 0 4 2000 a 0", "0 0 4 2352 a 0", "1 -5 4 2352 a 0"] {
            assert!(Line::parse(bad).is_none(), "{bad}");
        }
    }
}
