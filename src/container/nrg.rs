//! NRG, of Nero Burning ROM: the sectors of all tracks, then chunks that describe them, then a
//! footer that says where the chunks begin.
//!
//! Specification: none; libcdio, lib/driver/image/nrg.h, and libmirage, images/image-nrg.
//!
//! ```text
//!   sectors ... | CUEX DAOX SINF [CUEX DAOX SINF] .. MTYP END! | NER5, 64-bit offset     version 2
//!   sectors ... | CUES DAOI SINF ..                       END! | NERO, 32-bit offset     version 1
//!   chunk: name (4) | length (4, big-endian) | contents           track at once: ETN2, ETNF
//! ```
//!
//! Supported: versions 1 and 2; disc at once and track at once; 2,048, 2,336, 2,352 and 2,448 bytes a
//! sector; several sessions.
//! Not supported: CD-Text and other chunks, which are skipped.

use super::disc::{Disc, Form, Piece, Track, session_gap};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::device::{BlockDevice, Device, probe_array, read_vec};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "nrg", snapshots: false, probe, open };

/// Longer than the chunks of any disc (CD-Text included).
const MAX_LEN: u64 = 4 << 20;
const MAX_CHUNKS: usize = 1000;
const MAX_TRACKS: usize = 99;

/// Where the chunks are, and how wide their numbers.
struct Footer {
    at: u64,
    end: u64,
    wide: bool,
}

fn footer(device: &dyn BlockDevice) -> Result<Option<Footer>> {
    let Some(at) = device.size().checked_sub(12) else { return Ok(None) };
    let Some(bytes) = probe_array::<12>(device, at)? else { return Ok(None) };
    let record = Record::new(FORMAT.name, "footer", at, &bytes);
    let found = if record.bytes(0, 4)? == b"NER5" {
        Footer { at: record.be64(4)?, end: at, wide: true }
    } else if record.bytes(4, 4)? == b"NERO" {
        Footer { at: record.be32(8)?.into(), end: at.saturating_add(4), wide: false }
    } else {
        return Ok(None);
    };
    Ok((found.at < found.end).then_some(found))
}

/// The footer stands where a raw disk has any bytes: the first chunk must be one, too.
fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    let Some(footer) = footer(device)? else { return Ok(false) };
    let chunk = probe_array::<4>(device, footer.at)?;
    Ok(chunk.is_some_and(|name| matches!(&name, b"CUEX" | b"CUES" | b"ETN2" | b"ETNF" | b"DAOX" | b"DAOI")))
}

fn open(file: Device, _: &dyn Companions, options: &Options) -> Result<Opened> {
    let footer = footer(file.as_ref())?.ok_or_else(|| Error::corrupt(FORMAT.name, "footer", file.size()))?;
    let len = footer.end.saturating_sub(footer.at);
    if len > MAX_LEN {
        return Err(Error::corrupt(FORMAT.name, "chunks (too long)", footer.at));
    }
    let bytes = read_vec(file.as_ref(), footer.at, usize::try_from(len).map_err(|_| Error::Invalid)?)?;
    let record = Record::new(FORMAT.name, "chunks", footer.at, &bytes);
    let mut disc = Layout { wide: footer.wide, session: 1, ..Layout::default() };
    let mut at = 0usize;
    for _ in 0..MAX_CHUNKS {
        let name = record.array::<4>(at)?;
        let len = usize::try_from(record.be32(at.saturating_add(4))?).map_err(|_| record.corrupt())?;
        let chunk = record.part("chunk", at.saturating_add(8), len)?;
        match &name {
            b"CUEX" => disc.places(&chunk)?,
            b"DAOX" | b"DAOI" => disc.at_once(&chunk)?,
            b"ETN2" | b"ETNF" => disc.one_by_one(&chunk)?,
            b"SINF" => disc.end_session(),
            b"END!" => break,
            _ => {}
        }
        at = at.saturating_add(8).saturating_add(len);
    }
    let mut opened = Disc { format: FORMAT.name, data: file, tracks: disc.tracks, notes: Vec::new() }.open(options)?;
    opened.facts.insert(0, ("version", if footer.wide { "2" } else { "1" }.to_owned()));
    Ok(opened)
}

#[derive(Default)]
struct Layout {
    wide: bool,
    tracks: Vec<Track>,
    session: u32,
    /// Sector of the disc that comes next, where no chunk says.
    next: u64,
    /// Sectors at which tracks begin (index 1), of this session.
    lbas: Vec<(u32, u64)>,
}

fn track_form(mode: u32, chunk: &Record<'_>) -> Result<(Form, u64)> {
    let form = match mode {
        0 | 2 => Form::Cooked,
        3 => Form::Mode2,
        5 | 0xf => Form::Raw { mode: 1 },
        6 | 0x11 => Form::Raw { mode: 2 },
        7 | 0x10 => Form::Audio,
        _ => return Err(chunk.corrupt_field(&format!("track mode {mode}"))),
    };
    Ok((form, form.len().saturating_add(if mode >= 0xf { 96 } else { 0 })))
}

impl Layout {
    /// CUEX: eight bytes an index: control, track and index in decimal digits, sector.
    fn places(&mut self, chunk: &Record<'_>) -> Result<()> {
        let (rows, _) = chunk.as_bytes().as_chunks::<8>();
        for &[_, track, index, _, lba @ ..] in rows {
            let number = u32::from(track >> 4).saturating_mul(10).saturating_add((track & 15).into());
            if index == 1 && track < 0xa0 {
                self.lbas.extend(u64::try_from(i32::from_be_bytes(lba)).ok().map(|lba| (number, lba)));
            }
        }
        Ok(())
    }

    fn push(&mut self, chunk: &Record<'_>, track: Track) -> Result<()> {
        if self.tracks.len() >= MAX_TRACKS {
            return Err(chunk.corrupt_field("too many tracks"));
        }
        let known = self.lbas.iter().find(|(number, _)| *number == track.number).map(|(_, lba)| *lba);
        let lba = known.unwrap_or(track.lba.max(self.next));
        self.next = lba.saturating_add(track.count());
        self.tracks.push(Track { session: self.session, lba, ..track });
        Ok(())
    }

    /// DAOX, DAOI: a header, then for each track the bytes at which its indexes 0 and 1 are, and its end.
    fn at_once(&mut self, chunk: &Record<'_>) -> Result<()> {
        let first = u32::from(chunk.u8(20)?);
        let row_len = if self.wide { 42 } else { 30 };
        for (index, row) in chunk.tail(22)?.chunks_exact(row_len).enumerate() {
            let row = Record::new(FORMAT.name, "track", chunk.at(), row);
            let number = first.max(1).saturating_add(u32::try_from(index).unwrap_or(u32::MAX));
            let (form, stride) = track_form(row.u8(14)?.into(), &row)?;
            let stride = match u64::from(row.le16(12)?.swap_bytes()) {
                0 => stride,
                own if own >= form.len() => own,
                _ => return Err(row.corrupt_field("sector size")),
            };
            let number_at = |field: usize| -> Result<u64> {
                if self.wide {
                    row.be64(field.saturating_mul(8).saturating_add(18))
                } else {
                    row.be32(field.saturating_mul(4).saturating_add(18)).map(u64::from)
                }
            };
            let (index0, index1, end) = (number_at(0)?, number_at(1)?, number_at(2)?);
            if index1 < index0 || end < index1 {
                return Err(row.corrupt_field("indexes"));
            }
            // The first track's pregap counts below sector 0.
            let pregap = index1.saturating_sub(index0).checked_div(stride).unwrap_or(0);
            let pregap = if self.tracks.is_empty() { 0 } else { pregap };
            let count = end.saturating_sub(index1).checked_div(stride).unwrap_or(0);
            let lba = self.next.saturating_add(pregap);
            let track = Track { stride, lba, ..Track::new(number, form, Piece { count, at: Some(index1) }) };
            self.push(chunk, Track { big_endian: false, ..track })?;
        }
        Ok(())
    }

    /// ETN2, ETNF: for each track its first byte, length, mode and sector.
    fn one_by_one(&mut self, chunk: &Record<'_>) -> Result<()> {
        let row_len = if self.wide { 32 } else { 20 };
        for row in chunk.as_bytes().chunks_exact(row_len) {
            let row = Record::new(FORMAT.name, "track", chunk.at(), row);
            let (at, len, rest) = if self.wide {
                (row.be64(0)?, row.be64(8)?, 16)
            } else {
                (row.be32(0)?.into(), row.be32(4)?.into(), 8)
            };
            let (form, stride) = track_form(row.be32(rest)?, &row)?;
            let count = len.checked_div(stride).unwrap_or(0);
            let number = u32::try_from(self.tracks.len().saturating_add(1)).unwrap_or(u32::MAX);
            let lba = row.be32(rest.saturating_add(4))?.into();
            self.push(chunk, Track { stride, lba, ..Track::new(number, form, Piece { count, at: Some(at) }) })?;
        }
        Ok(())
    }

    fn end_session(&mut self) {
        self.next = self.next.saturating_add(session_gap(self.session, 0));
        self.session = self.session.saturating_add(1);
        self.lbas.clear();
    }
}
