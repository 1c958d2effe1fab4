//! A track of sound as the bytes of a WAV file.
//!
//! Specification: Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0"
//! (1991), section "Waveform Audio File Format".
//!
//! ```text
//!   RIFF header (12) | fmt chunk (24) | data chunk: header (8), samples, low byte first
//! ```

use std::sync::Arc;

use super::{Form, GROUP, Track};
use crate::device::concat::Concat;
use crate::device::mapped::{Mapped, Mapping, Place, Run};
use crate::device::memory::Memory;
use crate::device::{Device, read_vec};
use crate::error::{Error, Result};

/// Bytes of sound in a sector.
const SECTOR: u64 = 2352;
/// Bound on the groups of sectors that a track keeps, bytes.
const CACHE_SIZE: u64 = 1 << 20;
const HEADER: u32 = 44;

/// The WAV file of a track.
pub(super) fn wave(format: &'static str, data: &Device, track: &Track) -> Result<Device> {
    let mut spans = Vec::new();
    let mut first = 0u64;
    for piece in &track.pieces {
        spans.push(Span { first, count: piece.count, at: piece.at });
        first = first.saturating_add(piece.count);
    }
    // The sizes in the header have 32 bits: six hours of sound.
    let len = u32::try_from(first.saturating_mul(SECTOR)).ok().filter(|len| *len < u32::MAX - HEADER);
    let len = len.ok_or_else(|| Error::corrupt(format, format!("track {} (too long)", track.number), 0))?;
    let samples = Samples {
        format,
        data: data.clone(),
        spans,
        stride: track.stride.max(SECTOR),
        swapped: track.big_endian,
        size: len.into(),
    };
    let samples: Device = Arc::new(Mapped::new(Arc::new(samples), data.clone(), None, 512, CACHE_SIZE));
    let header: Device = Arc::new(Memory::new(header(len), 512));
    Ok(Arc::new(Concat::new(vec![header, samples], 512)?))
}

fn header(len: u32) -> Vec<u8> {
    let riff = len.saturating_add(HEADER - 8).to_le_bytes();
    // PCM, two channels, 44,100 samples and 176,400 bytes a second, 4 bytes a pair of 16 bits.
    let shape = [&[1, 0, 2, 0][..], &44_100u32.to_le_bytes(), &176_400u32.to_le_bytes(), &[4, 0, 16, 0]].concat();
    [b"RIFF", &riff[..], b"WAVEfmt \x10\0\0\0", &shape, b"data", &len.to_le_bytes()].concat()
}

struct Span {
    /// Sector of the track.
    first: u64,
    count: u64,
    /// First byte in the file; `None` for silence.
    at: Option<u64>,
}

/// The samples of a track, low byte first.
struct Samples {
    format: &'static str,
    data: Device,
    spans: Vec<Span>,
    stride: u64,
    swapped: bool,
    size: u64,
}

impl Samples {
    /// The span of a sector of the track.
    fn span(&self, sector: u64) -> Result<&Span> {
        let next = self.spans.partition_point(|span| span.first <= sector);
        let span = next.checked_sub(1).and_then(|index| self.spans.get(index));
        span.filter(|span| sector.saturating_sub(span.first) < span.count).ok_or(Error::Invalid)
    }
}

impl Mapping for Samples {
    fn size(&self) -> u64 {
        self.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let sector = offset / SECTOR;
        let span = self.span(sector)?;
        let within = offset.saturating_sub(span.first.saturating_mul(SECTOR));
        let rest = span.count.saturating_mul(SECTOR).saturating_sub(within);
        let Some(at) = span.at else { return Ok(Run { place: Place::Hole, len: rest }) };
        if self.stride == SECTOR && !self.swapped {
            let place = at.saturating_add(within);
            let there = self.data.size().saturating_sub(place);
            if there == 0 {
                return Err(Error::corrupt(self.format, "sector past the end of the file", place));
            }
            return Ok(Run { place: Place::At(place), len: rest.min(there) });
        }
        // A unit is named by its first sector; it ends with its span.
        let start = within / SECTOR;
        let group = start.saturating_sub(start % GROUP);
        let within = within.saturating_sub(group.saturating_mul(SECTOR));
        let len = (GROUP * SECTOR).saturating_sub(within).min(rest);
        Ok(Run { place: Place::Packed { unit: span.first.saturating_add(group), within }, len })
    }

    fn unpack(&self, unit: u64) -> Result<Vec<u8>> {
        let span = self.span(unit)?;
        let start = unit.saturating_sub(span.first);
        let count = span.count.saturating_sub(start).min(GROUP);
        let at = span.at.unwrap_or(0).saturating_add(start.saturating_mul(self.stride));
        let len = count.saturating_sub(1).saturating_mul(self.stride).saturating_add(Form::Audio.len());
        let bytes = read_vec(self.data.as_ref(), at, usize::try_from(len).map_err(|_| Error::Invalid)?)?;
        let stride = usize::try_from(self.stride).map_err(|_| Error::Invalid)?;
        let sectors = bytes.chunks(stride.max(1)).map(|sector| sector.get(..2352).unwrap_or(sector));
        let mut samples = sectors.collect::<Vec<_>>().concat();
        if self.swapped {
            samples.as_chunks_mut::<2>().0.iter_mut().for_each(|pair| pair.swap(0, 1));
        }
        Ok(samples)
    }
}
