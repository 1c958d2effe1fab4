//! Raw sectors of a CD in one file, without anything that describes them: what stands beside a cue
//! sheet as `.bin`, `.img` or `.mdf`, and at times alone as `.iso`.
//!
//! Specification: ECMA-130, section 14 and annexes. The sync pattern at the start of two sectors is
//! enough to know them by.
//!
//! ```text
//!   sector of 2,352 bytes [+ 96 bytes of subchannels] | sector | ...      sync and header in each
//! ```
//!
//! Supported: modes 1 and 2, 2,352 and 2,448 bytes a sector, a pregap at the start; tracks of sound
//! behind the data are left out.
//! Not supported: several data tracks with gaps that are not in the file (their cue sheet knows).

use super::disc::{Disc, Form, PREGAP, Piece, SECOND, SYNC, Track};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::device::{BlockDevice, Device, probe_array};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "rawcd", snapshots: false, probe, open };

const STRIDES: [u64; 2] = [2352, 2448];
/// Sectors that are looked at around a place to know whether it is data: some may be damaged.
const LOOK: u64 = 16;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    Ok(stride(device)?.is_some())
}

/// The mode, and the sector of the disc, where a raw sector begins.
pub(super) fn header(device: &dyn BlockDevice, at: u64) -> Result<Option<(u8, u64)>> {
    let Some(bytes) = probe_array::<16>(device, at)? else { return Ok(None) };
    let [minute, second, frame, mode] = match bytes.split_first_chunk::<12>() {
        Some((&SYNC, &[a, b, c, d])) => [a, b, c, d],
        _ => return Ok(None),
    };
    let decimal = |byte: u8| {
        let (tens, ones) = (u64::from(byte >> 4), u64::from(byte & 15));
        (tens < 10 && ones < 10).then(|| tens.saturating_mul(10).saturating_add(ones))
    };
    let (Some(minute), Some(second), Some(frame)) = (decimal(minute), decimal(second), decimal(frame)) else {
        return Ok(None);
    };
    let frames = minute.saturating_mul(60).saturating_add(second).saturating_mul(SECOND).saturating_add(frame);
    Ok((mode <= 2 && second < 60 && frame < SECOND).then_some((mode, frames)))
}

fn stride(device: &dyn BlockDevice) -> Result<Option<u64>> {
    if header(device, 0)?.is_none() {
        return Ok(None);
    }
    for stride in STRIDES {
        if device.size() == stride || header(device, stride)?.is_some() {
            return Ok(Some(stride));
        }
    }
    Ok(None)
}

/// Sectors up to the end of the data: all of them, or those before sound begins.
fn data_end(device: &dyn BlockDevice, stride: u64, count: u64) -> Result<u64> {
    let is_data = |sector: u64| -> Result<bool> {
        for near in sector..sector.saturating_add(LOOK).min(count) {
            if header(device, near.saturating_mul(stride))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    };
    if is_data(count.saturating_sub(LOOK))? {
        return Ok(count);
    }
    let (mut data, mut sound) = (0, count);
    while sound.saturating_sub(data) > 1 {
        let middle = data.midpoint(sound);
        if is_data(middle)? { data = middle } else { sound = middle }
    }
    Ok(sound)
}

fn open(file: Device, _: &dyn Companions, options: &Options) -> Result<Opened> {
    let damaged = || Error::corrupt(FORMAT.name, "sector header", 0);
    let stride = stride(file.as_ref())?.ok_or_else(damaged)?;
    let (mode, frame) = header(file.as_ref(), 0)?.ok_or_else(damaged)?;
    let form = Form::Raw { mode: mode.max(1) };
    // The last sector's subchannels may be missing.
    let count = file.size().saturating_add(stride).saturating_sub(form.len()).checked_div(stride).unwrap_or(0);
    let end = data_end(file.as_ref(), stride, count)?;
    let mut notes = Vec::new();
    if end < count {
        notes.push(format!("sectors {end} to {count} are not data (sound, or damaged), and are not shown"));
    }
    let leftover = file.size().checked_rem(stride).unwrap_or(0);
    if leftover != 0 && leftover != form.len() {
        notes.push(format!("the file ends with {leftover} bytes of a sector"));
    }
    // A pregap counts up to 00:02:00, where the track begins.
    let pregap = PREGAP.saturating_sub(frame);
    let begins = header(file.as_ref(), pregap.saturating_mul(stride))?;
    let pregap = if begins.is_some_and(|(_, frame)| frame == PREGAP) { pregap } else { 0 };
    let piece = Piece { count: end.saturating_sub(pregap), at: Some(pregap.saturating_mul(stride)) };
    let lba = frame.max(PREGAP).saturating_sub(PREGAP);
    let track = Track { stride, lba, ..Track::new(1, form, piece) };
    Disc { format: FORMAT.name, data: file, tracks: vec![track], notes }.open(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::Memory;

    fn raw(frame: u64, fill: u8) -> Vec<u8> {
        let bcd = |n: u64| (n / 10 * 16 + n % 10) as u8;
        let mut sector = vec![fill; 2352];
        sector[..12].copy_from_slice(&SYNC);
        sector[12..16].copy_from_slice(&[bcd(frame / 4500), bcd(frame / 75 % 60), bcd(frame % 75), 1]);
        sector
    }

    #[test]
    fn the_sound_behind_the_data_is_found_although_a_data_sector_is_damaged() {
        let mut bytes: Vec<u8> = (0..300).flat_map(|n| raw(150 + n, 1)).collect();
        bytes[150 * 2352..151 * 2352].fill(0);
        bytes.extend(vec![3; 2352 * 500]);
        let device = Memory::new(bytes, 512);
        assert_eq!(stride(&device).unwrap(), Some(2352));
        assert_eq!(data_end(&device, 2352, 800).unwrap(), 300);
    }

    #[test]
    fn a_header_that_is_no_time_is_no_raw_sector() {
        let mut bytes = [raw(150, 0), raw(151, 0)].concat();
        bytes[13] = 0x6a;
        assert_eq!(stride(&Memory::new(bytes, 512)).unwrap(), None);
    }
}
