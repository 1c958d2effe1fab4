//! A disc as its image files describe it: tracks and sessions of sectors, and the disk that the data
//! tracks make together. Every optical format ends here.
//!
//! ECMA-130 (CD-ROM sectors), ECMA-394 and the Orange Book (sessions), System Description CD-ROM XA.
//!
//! ```text
//!   raw sector, 2,352:   sync 12 | header 4 | .................................................
//!     mode 1                                | data 2,048 | EDC 4 | 8 | ECC 276
//!     mode 2, form 1                        | subheader 8 | data 2,048 | EDC 4 | ECC 276
//!     mode 2, form 2                        | subheader 8 | data 2,324            | EDC 4
//!   2,336: mode 2 from its subheader on     2,448: with 96 bytes of subchannels behind each sector
//! ```
//!
//! The disk has 2,048 bytes for every sector. It begins where the first data track begins, because a
//! file system in a first session counts from there; data tracks behind it stand at their distance on
//! the disc, with holes between, because those of later sessions count from the start of the disc.
//! Of a form 2 sector the first 2,048 bytes are shown.

mod sound;

use std::sync::Arc;

use super::{Opened, Options, SoundTrack};
use crate::device::mapped::{Mapped, Mapping, Place, Run};
use crate::device::{Device, read_vec};
use crate::error::{Error, Result};

/// The disk's own unit.
pub(super) const SECTOR: u64 = 2048;
const SECTOR_LEN: usize = 2048;
/// What stands at the start of a raw data sector.
pub(super) const SYNC: [u8; 12] = [0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0];
/// Sectors that are read and kept together.
const GROUP: u64 = 32;
/// Frames of a second.
pub(super) const SECOND: u64 = 75;
/// Lead-out of the first session (1:30) and lead-in of the next (1:00).
const FIRST_SESSION_GAP: u64 = 6750 + 4500;
/// Lead-out of a later session (0:30) and lead-in of the next (1:00).
const LATER_SESSION_GAP: u64 = 2250 + 4500;
/// The pregap of a session's first track: two seconds, not in most images.
pub(super) const PREGAP: u64 = 150;
/// First sector of a GD-ROM's high-density area.
pub(super) const GD_HIGH: u64 = 45_000;
/// More than a CD or a DVD can have; keeps sums of sectors within 64 bits.
const MAX_SECTORS: u64 = 1 << 40;

/// What is in the sectors of a track, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// 2,352 bytes of sound: 588 pairs of 16-bit samples.
    Audio,
    /// The 2,048 bytes alone.
    Cooked,
    /// A raw sector; its own header says where the data are. The mode counts where the header is lost.
    Raw {
        /// 1 or 2.
        mode: u8,
    },
    /// Mode 2 from its subheader on: 2,336 bytes.
    Mode2,
    /// The data of form 2 sectors alone: 2,324 bytes.
    Form2,
}

impl Form {
    /// Bytes that a sector has, without subchannels.
    pub(super) fn len(self) -> u64 {
        match self {
            Self::Audio | Self::Raw { .. } => 2352,
            Self::Cooked => SECTOR,
            Self::Mode2 => 2336,
            Self::Form2 => 2324,
        }
    }

    /// In the words of cue sheets.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Audio => "AUDIO",
            Self::Cooked => "MODE1/2048",
            Self::Raw { mode: 2 } => "MODE2/2352",
            Self::Raw { .. } => "MODE1/2352",
            Self::Mode2 => "MODE2/2336",
            Self::Form2 => "MODE2/2324",
        }
    }

    /// Where in a sector the data begin; `None` where there are none (mode 0).
    fn data_at(self, sector: &[u8]) -> Option<usize> {
        match self {
            Self::Audio | Self::Cooked | Self::Form2 => Some(0),
            Self::Mode2 => Some(8),
            Self::Raw { mode } => {
                let own = sector.get(15).filter(|_| sector.starts_with(&SYNC));
                match own.copied().unwrap_or(mode) & 3 {
                    0 => None,
                    2 => Some(24),
                    _ => Some(16),
                }
            }
        }
    }
}

/// A run of a track's sectors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// How many.
    pub(super) count: u64,
    /// First byte of the first one; `None` when they are in no file, and zeros.
    pub(super) at: Option<u64>,
}

/// A track, from its index 1 on.
#[derive(Debug, Clone)]
pub(super) struct Track {
    /// From 1.
    pub(super) number: u32,
    /// From 1.
    pub(super) session: u32,
    pub(super) form: Form,
    /// Bytes from one sector to the next: the form's, and subchannels.
    pub(super) stride: u64,
    /// Sector of the disc.
    pub(super) lba: u64,
    /// In order.
    pub(super) pieces: Vec<Piece>,
    /// Samples of sound have their high byte first.
    pub(super) big_endian: bool,
}

impl Track {
    /// A track in one piece, its sectors without subchannels, its place on the disc not yet known.
    pub(super) fn new(number: u32, form: Form, piece: Piece) -> Self {
        Self { number, session: 1, form, stride: form.len(), lba: 0, pieces: vec![piece], big_endian: false }
    }

    /// Sectors in all.
    pub(super) fn count(&self) -> u64 {
        self.pieces.iter().fold(0, |sum, piece| sum.saturating_add(piece.count))
    }
}

/// A disc and its bytes.
pub(super) struct Disc {
    pub(super) format: &'static str,
    /// What [`Piece::at`] points into.
    pub(super) data: Device,
    pub(super) tracks: Vec<Track>,
    pub(super) notes: Vec<String>,
}

/// Sectors between the end of a session and the first sector of the next; `pregap` of them are in
/// the image.
pub(super) fn session_gap(ended: u32, pregap: u64) -> u64 {
    let gap = if ended == 1 { FIRST_SESSION_GAP } else { LATER_SESSION_GAP };
    gap.saturating_add(PREGAP.saturating_sub(pregap))
}

/// `mm:ss:ff` as a number of sectors.
pub(super) fn parse_msf(text: &[u8]) -> Option<u64> {
    let mut fields = text.split(|&b| b == b':').map(|field| {
        let digits = !field.is_empty() && field.len() <= 6 && field.iter().all(u8::is_ascii_digit);
        std::str::from_utf8(field).ok().filter(|_| digits)?.parse::<u64>().ok()
    });
    let (minutes, seconds, frames) = (fields.next()??, fields.next()??, fields.next()??);
    let in_range = fields.next().is_none() && seconds < 60 && frames < SECOND;
    in_range.then(|| minutes.saturating_mul(60).saturating_add(seconds).saturating_mul(SECOND).saturating_add(frames))
}

impl Disc {
    /// The data tracks of one area of a GD-ROM as a disk: the high-density one, or as the second disk
    /// what any drive reads of it. In both, addresses count from the start of the disc.
    pub(super) fn open_gd_rom(mut self, options: &Options) -> Result<Opened> {
        let data = |track: &Track| track.form != Form::Audio;
        let has = |high: bool| self.tracks.iter().any(|track| data(track) && (track.lba >= GD_HIGH) == high);
        let areas: Vec<bool> = [true, false].into_iter().filter(|&high| has(high)).collect();
        if areas.is_empty() {
            return self.open(options);
        }
        let (&high, choice) = super::choose(self.format, &areas, options)?;
        let hidden = self.tracks.iter().any(|track| data(track) && (track.lba >= GD_HIGH) != high);
        self.tracks.retain(|track| !data(track) || (track.lba >= GD_HIGH) == high);
        let mut opened = self.open(options)?;
        opened.facts.extend(choice);
        opened.add("area", if high { "high density" } else { "single density" });
        if hidden && options.disk.is_none() {
            opened.notes.push("the disk is the high-density area; `-o disk=2` shows the other one".to_owned());
        }
        Ok(opened)
    }

    /// The data tracks as a disk.
    pub(super) fn open(self, options: &Options) -> Result<Opened> {
        let Self { format, data, tracks, mut notes } = self;
        let file_size = data.size();
        let first = tracks.iter().find(|track| track.form != Form::Audio).map(|track| track.lba);
        let sound: Vec<&Track> = tracks.iter().filter(|track| track.form == Form::Audio && track.count() > 0).collect();
        if first.is_none() {
            if sound.is_empty() {
                return Err(Error::corrupt(format, "tracks (there are none)", 0));
            }
            notes.push("there is no data track: the disk is empty, the tracks are sound".to_owned());
        }
        let mut sectors = Sectors { format, data: data.clone(), spans: Vec::new(), size: 0 };
        for track in tracks.iter().filter(|track| track.form != Form::Audio) {
            let Some(distance) = track.lba.checked_sub(first.unwrap_or(0)) else {
                notes.push(format!("track {} lies before the first data track, and is not shown", track.number));
                continue;
            };
            if !sectors.push(distance, track) {
                notes.push(format!("track {} lies where another one does, and is not shown", track.number));
            }
        }
        if sectors.spans.iter().any(|span| span.there < span.count) {
            notes.push("the image is cut off: sectors of a data track are missing at its end".to_owned());
        }
        let size = sectors.size;
        let disk = Mapped::new(Arc::new(sectors), data.clone(), None, 2048, options.cache_size);
        let mut opened = Opened::new(format, Arc::new(disk));
        for track in sound {
            let device = sound::wave(format, &data, track)?;
            opened.tracks.push(SoundTrack { number: track.number, session: track.session, device });
        }
        opened.add("virtual size", format!("{size} bytes"));
        opened.add("sessions", tracks.iter().map(|track| track.session).max().unwrap_or(1));
        for track in &tracks {
            let Track { number, session, lba, .. } = track;
            let (name, count) = (track.form.name(), track.count());
            let sub = if track.stride > track.form.len() { " with subchannels" } else { "" };
            opened
                .add("track", format!("{number}: {name}{sub}, session {session}, from sector {lba}, {count} sectors"));
        }
        opened.add("size of all files", format!("{file_size} bytes"));
        opened.notes = notes;
        Ok(opened)
    }
}

/// A piece of a data track on the disk.
struct Span {
    /// First sector of the disk.
    first: u64,
    count: u64,
    /// As many of them as the file holds.
    there: u64,
    at: Option<u64>,
    stride: u64,
    form: Form,
}

/// The sectors of all data tracks.
struct Sectors {
    format: &'static str,
    data: Device,
    /// Ascending, without overlap.
    spans: Vec<Span>,
    size: u64,
}

impl Sectors {
    /// Adds a track; `false` when there is no room for it at this place.
    fn push(&mut self, first: u64, track: &Track) -> bool {
        let end = self.spans.last().map_or(0, |span| span.first.saturating_add(span.count));
        if first < end || first.saturating_add(track.count()) > MAX_SECTORS {
            return false;
        }
        let mut first = first;
        for &Piece { count, at } in &track.pieces {
            let stored = |at: u64| {
                let rest = self.data.size().saturating_sub(at).saturating_sub(track.form.len());
                let whole = at.checked_add(track.form.len()).is_some_and(|end| end <= self.data.size());
                // The subchannels of the last sector may be missing: they are not asked for.
                if whole { rest.checked_div(track.stride).unwrap_or(0).saturating_add(1) } else { 0 }
            };
            let there = at.map_or(count, |at| stored(at).min(count));
            let span = Span { first, count, there, at, stride: track.stride.max(1), form: track.form };
            self.spans.push(span);
            first = first.saturating_add(count);
        }
        self.size = first.saturating_mul(SECTOR);
        true
    }

    fn damaged(&self, span: &Span, sector: u64) -> Error {
        let at = span.at.unwrap_or(0).saturating_add(sector.saturating_mul(span.stride));
        Error::corrupt(self.format, "sector past the end of the file", at)
    }
}

/// A unit's number: its span, and the group of sectors in it.
const SPAN_SHIFT: u32 = 40;

impl Mapping for Sectors {
    fn size(&self) -> u64 {
        self.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let sector = offset / SECTOR;
        let next = self.spans.partition_point(|span| span.first <= sector);
        let found = next.checked_sub(1).and_then(|index| Some((index, self.spans.get(index)?)));
        let inside = found.filter(|(_, span)| sector.saturating_sub(span.first) < span.count);
        let Some((index, span)) = inside else {
            let end = self.spans.get(next).map_or(self.size, |span| span.first.saturating_mul(SECTOR));
            return Ok(Run { place: Place::Hole, len: end.saturating_sub(offset) });
        };
        let within = offset.saturating_sub(span.first.saturating_mul(SECTOR));
        let here = sector.saturating_sub(span.first);
        if here >= span.there {
            return Err(self.damaged(span, here));
        }
        let end = span.there.saturating_mul(SECTOR);
        match span.at {
            None => Ok(Run { place: Place::Hole, len: end.saturating_sub(within) }),
            Some(at) if span.stride == SECTOR => {
                Ok(Run { place: Place::At(at.saturating_add(within)), len: end.saturating_sub(within) })
            }
            Some(_) => {
                let group = here / GROUP;
                let start = group.saturating_mul(GROUP * SECTOR);
                let unit = (index as u64).wrapping_shl(SPAN_SHIFT) | group;
                let end = end.min(start.saturating_add(GROUP * SECTOR));
                let place = Place::Packed { unit, within: within.saturating_sub(start) };
                Ok(Run { place, len: end.saturating_sub(within) })
            }
        }
    }

    fn unpack(&self, unit: u64) -> Result<Vec<u8>> {
        let index = usize::try_from(unit.wrapping_shr(SPAN_SHIFT)).map_err(|_| Error::Invalid)?;
        let span = self.spans.get(index).ok_or(Error::Invalid)?;
        let first = (unit & ((1u64 << SPAN_SHIFT) - 1)).saturating_mul(GROUP);
        let count = span.there.saturating_sub(first).min(GROUP);
        let form_len = span.form.len();
        let at = span.at.ok_or(Error::Invalid)?.saturating_add(first.saturating_mul(span.stride));
        let len = count.saturating_sub(1).saturating_mul(span.stride).saturating_add(form_len);
        let bytes = read_vec(self.data.as_ref(), at, usize::try_from(len).map_err(|_| Error::Invalid)?)?;
        let mut unpacked = Vec::with_capacity(usize::try_from(count).unwrap_or(0).saturating_mul(SECTOR_LEN));
        let stride = usize::try_from(span.stride).map_err(|_| Error::Invalid)?;
        for sector in bytes.chunks(stride.max(1)) {
            let data = span.form.data_at(sector).map(|at| sector.get(at..at.saturating_add(SECTOR_LEN)));
            match data {
                None => unpacked.extend_from_slice(&[0; SECTOR_LEN]),
                Some(data) => unpacked.extend_from_slice(data.ok_or_else(|| self.damaged(span, first))?),
            }
        }
        Ok(unpacked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::Memory;

    /// A raw sector whose data are all `fill`.
    fn raw(mode: u8, fill: u8) -> Vec<u8> {
        let mut sector = vec![0xee; 2352];
        sector[..12].copy_from_slice(&SYNC);
        sector[12..16].copy_from_slice(&[0, 2, 0, mode]);
        let at = if mode == 2 { 24 } else { 16 };
        sector[at..at + 2048].fill(fill);
        sector
    }

    fn open(bytes: Vec<u8>, tracks: Vec<Track>) -> Opened {
        let data: Device = Arc::new(Memory::new(bytes, 512));
        let options = Options { cache_size: 1 << 20, ..Options::default() };
        Disc { format: "test", data, tracks, notes: Vec::new() }.open(&options).unwrap()
    }

    #[test]
    fn each_sector_says_its_own_mode_and_a_lost_header_counts_as_the_tracks() {
        let mut bytes = [raw(1, 1), raw(2, 2), raw(0, 3), raw(1, 4)].concat();
        bytes[3 * 2352..3 * 2352 + 12].fill(0x55);
        let piece = Piece { count: 4, at: Some(0) };
        let opened = open(bytes, vec![Track::new(1, Form::Raw { mode: 1 }, piece)]);
        assert_eq!((opened.disk.size(), opened.disk.sector_size()), (8192, 2048));
        let disk = read_vec(opened.disk.as_ref(), 0, 8192).unwrap();
        let fills: Vec<u8> = disk.chunks(2048).map(|sector| sector[2047]).collect();
        assert_eq!(fills, [1, 2, 0, 4]);
        assert!(disk.chunks(2048).all(|sector| sector.iter().all(|&b| b == sector[0])));
    }

    #[test]
    fn a_later_data_track_stands_at_its_distance_and_missing_sectors_are_errors() {
        let bytes = [vec![7; 2048 * 2], raw(1, 9)].concat();
        let first = Track::new(1, Form::Cooked, Piece { count: 2, at: Some(0) });
        let second =
            Track { lba: 100, session: 2, ..Track::new(2, Form::Raw { mode: 1 }, Piece { count: 3, at: Some(4096) }) };
        let opened = open(bytes, vec![first, second]);
        assert_eq!(opened.disk.size(), 103 * 2048);
        assert_eq!(opened.fact("sessions"), Some("2"));
        let sector = |lba: u64| read_vec(opened.disk.as_ref(), lba * 2048, 2048).map(|sector| sector[0]);
        assert_eq!((sector(1).unwrap(), sector(50).unwrap(), sector(100).unwrap()), (7, 0, 9));
        assert!(matches!(sector(101), Err(Error::Corrupt { .. })));
        assert!(opened.notes[0].contains("cut off"));
    }

    #[test]
    fn a_time_out_of_range_is_none() {
        assert_eq!(parse_msf(b"00:02:00"), Some(150));
        assert_eq!(parse_msf(b"180:00:01"), Some(180 * 60 * 75 + 1));
        for bad in [&b"00:00:75"[..], b"00:60:00", b"0:0", b"0:0:0:0", b"a:0:0", b"", b"9999999:0:0", b"-1:0:0"] {
            assert_eq!(parse_msf(bad), None, "{bad:?}");
        }
    }
}
