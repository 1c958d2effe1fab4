//! MSA, of the Magic Shadow Archiver of the Atari ST: whole tracks, each packed or stored.
//!
//! Specification: none; Hatari, doc/fileformats/msa.txt and src/msa.c.
//!
//! ```text
//!   0x0E0F, sectors a track, sides - 1, first track, last track (big-endian, 16 bits each)
//!   track: length (2) | bytes, 0xE5 byte count(2) for a run; stored when the length is the full one
//! ```
//!
//! Supported: all of it; tracks before the first one are errors when they are read.

use super::bad::BadRange;
use super::floppy::{Flat, read_all};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::device::{BlockDevice, Device, probe_array};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "msa", snapshots: false, probe, open };

const HEADER: usize = 10;
const RUN: u8 = 0xe5;

/// Sectors a track, sides, first and last track.
struct Shape {
    sectors: u16,
    sides: u16,
    first: u16,
    last: u16,
}

impl Shape {
    fn parse(header: &[u8]) -> Result<Option<Self>> {
        let record = Record::new(FORMAT.name, "header", 0, header);
        let shape = Self {
            sectors: record.be16(2)?,
            sides: record.be16(4)?.saturating_add(1),
            first: record.be16(6)?,
            last: record.be16(8)?,
        };
        let sane = record.be16(0)? == 0x0e0f && (1..=64).contains(&shape.sectors) && shape.sides <= 2;
        Ok((sane && shape.first <= shape.last && shape.last <= 128).then_some(shape))
    }

    fn track_len(&self) -> usize {
        usize::from(self.sectors).saturating_mul(512)
    }
}

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    let Some(header) = probe_array::<HEADER>(device, 0)? else { return Ok(false) };
    Ok(Shape::parse(&header)?.is_some())
}

fn open(file: Device, _: &dyn Companions, options: &Options) -> Result<Opened> {
    let bytes = read_all(file.as_ref(), FORMAT.name)?;
    let shape = Shape::parse(&bytes)?.ok_or_else(|| Error::corrupt(FORMAT.name, "header", 0))?;
    let record = Record::new(FORMAT.name, "tracks", 0, &bytes);
    let track_len = shape.track_len();
    let before = usize::from(shape.first).saturating_mul(shape.sides.into()).saturating_mul(track_len);
    let mut flat = Flat { format: FORMAT.name, bytes: vec![0; before], bad: Vec::new() };
    flat.bad.push(BadRange { offset: 0, len: before as u64 });
    let mut at = HEADER;
    for _ in shape.first..=shape.last {
        for _ in 0..shape.sides {
            let len = usize::from(record.be16(at)?);
            let track = record.part("track", at.saturating_add(2), len)?;
            at = at.saturating_add(2).saturating_add(len);
            if len == track_len {
                flat.bytes.extend_from_slice(track.as_bytes());
            } else {
                flat.bytes.extend(unpack(&track, track_len)?);
            }
        }
    }
    let mut opened = flat.open(options);
    let tracks = shape.last.saturating_add(1);
    opened
        .add("geometry", format!("{tracks} cylinders, {} heads, {} sectors of 512 bytes", shape.sides, shape.sectors));
    Ok(opened)
}

fn unpack(track: &Record<'_>, size: usize) -> Result<Vec<u8>> {
    let mut unpacked = Vec::with_capacity(size);
    let mut rest = track.as_bytes();
    while unpacked.len() < size {
        match rest {
            &[RUN, byte, high, low, ref behind @ ..] => {
                let count = usize::from(u16::from_be_bytes([high, low]));
                let end = unpacked.len().saturating_add(count);
                // A run of nothing would not end.
                if count == 0 || end > size {
                    return Err(track.corrupt());
                }
                unpacked.resize(end, byte);
                rest = behind;
            }
            [byte, behind @ ..] if *byte != RUN => {
                unpacked.push(*byte);
                rest = behind;
            }
            _ => return Err(track.corrupt()),
        }
    }
    Ok(unpacked)
}
