//! CloneCD: `.ccd`, a text with the disc's own table of contents; `.img`, raw sectors; `.sub`, their
//! subchannels, which no file system needs.
//!
//! Specification: none; libmirage, images/image-ccd.
//!
//! ```text
//!   [CloneCD] Version=3    [Disc] TocEntries=5 Sessions=1
//!   [Entry 3] Session=1 Point=0x01 Control=0x04 PLBA=0     one a track, and A0, A1, A2 (lead-out)
//!   [TRACK 1] MODE=1 INDEX 1=0
//! ```
//!
//! Supported: versions 1 to 3, several sessions.
//! Not supported: scrambled data tracks.

use super::disc::{Disc, Form, PREGAP, Piece, Track, session_gap};
use super::files::{Files, Placed};
use super::rawcd;
use super::{Companions, ContainerFormat, Opened, Options};
use crate::device::{BlockDevice, Device, read_vec};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "ccd", snapshots: false, probe, open };

const MAX_LEN: u64 = 512 << 10;
const MAX_TRACKS: usize = 99;
const SECTOR: u64 = 2352;
/// The point of a session's lead-out.
const LEAD_OUT: i64 = 0xa2;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    let start = crate::device::probe_array::<16>(device, 0)?.unwrap_or_default();
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&start);
    Ok(start.get(..9).is_some_and(|magic| magic.eq_ignore_ascii_case(b"[CloneCD]")))
}

/// A section of the text.
struct Section {
    name: String,
    values: Vec<(String, i64)>,
}

impl Section {
    fn value(&self, name: &str) -> Option<i64> {
        self.values.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }
}

fn sections(text: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            sections.push(Section { name: name.to_ascii_lowercase(), values: Vec::new() });
        } else if let (Some((name, value)), Some(section)) = (line.split_once('='), sections.last_mut()) {
            let value = value.trim();
            let number = match value.strip_prefix("0x").or(value.strip_prefix("0X")) {
                Some(hex) => i64::from_str_radix(hex, 16).ok(),
                None => value.parse().ok(),
            };
            section.values.extend(number.map(|number| (name.trim().to_ascii_lowercase(), number)));
        }
    }
    sections
}

/// A row of the disc's table of contents.
#[derive(Clone, Copy)]
struct Row {
    session: u32,
    point: i64,
    lba: u64,
    data: bool,
}

fn rows(sections: &[Section]) -> Vec<Row> {
    let entries = sections.iter().filter(|section| section.name.starts_with("entry"));
    let row = |entry: &Section| {
        let lba = u64::try_from(entry.value("plba")?).ok()?;
        let session = u32::try_from(entry.value("session").unwrap_or(1)).ok()?;
        Some(Row { session, point: entry.value("point")?, lba, data: entry.value("control").unwrap_or(4) & 4 != 0 })
    };
    let mut rows: Vec<Row> = entries.filter_map(row).filter(|row| matches!(row.point, 1..=99 | LEAD_OUT)).collect();
    rows.sort_by_key(|row| (row.lba, row.point));
    rows
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let damaged = |what: &'static str| Error::corrupt(FORMAT.name, what, 0);
    if file.size() > MAX_LEN {
        return Err(damaged("the text (too long)"));
    }
    let text = read_vec(file.as_ref(), 0, usize::try_from(file.size()).map_err(|_| Error::Invalid)?)?;
    let sections = sections(&String::from_utf8_lossy(&text));
    if sections.iter().any(|section| section.value("datatracksscrambled").is_some_and(|value| value != 0)) {
        return Err(Error::unsupported(FORMAT.name, "scrambled data tracks"));
    }
    let mut files = Files::default();
    let mut image = std::path::PathBuf::from(companions.own_name());
    image.set_extension("img");
    let Placed { device, .. } = files.open(companions, image.as_os_str().as_encoded_bytes(), false)?;
    let rows = rows(&sections);
    let mut tracks = Vec::new();
    let mut missing = 0u64;
    let mut session = rows.first().map_or(1, |row| row.session);
    for (index, row) in rows.iter().enumerate().filter(|(_, row)| row.point != LEAD_OUT) {
        if tracks.len() >= MAX_TRACKS {
            return Err(damaged("the table of contents (too many tracks)"));
        }
        if row.session != session {
            missing = missing.saturating_add(session_gap(session, PREGAP));
            session = row.session;
        }
        let end = rows.get(index.saturating_add(1)).map_or(u64::MAX, |next| next.lba);
        let name = format!("track {}", row.point);
        let mode = sections.iter().find(|section| section.name == name).and_then(|section| section.value("mode"));
        let form = match (row.data, mode) {
            (false, _) | (_, Some(0)) => Form::Audio,
            (true, Some(2)) => Form::Raw { mode: 2 },
            (true, _) => Form::Raw { mode: 1 },
        };
        let at = place(device.as_ref(), row, missing, form)?;
        let rest = device.size().saturating_sub(at) / SECTOR;
        let count = if end == u64::MAX { rest } else { end.saturating_sub(row.lba) };
        let piece = Piece { count, at: Some(at) };
        let number = u32::try_from(row.point).unwrap_or(0);
        tracks.push(Track { session: row.session, lba: row.lba, ..Track::new(number, form, piece) });
    }
    Disc { format: FORMAT.name, data: files.into_device()?, tracks, notes: Vec::new() }.open(options)
}

/// Where in the image a track begins. Lead-outs and lead-ins are not in it; whether the pregap of a
/// later session is depends on the writer, but the sectors of a data track say who they are.
fn place(device: &dyn BlockDevice, row: &Row, missing: u64, form: Form) -> Result<u64> {
    let byte = |missing: u64| row.lba.saturating_sub(missing).saturating_mul(SECTOR);
    let candidates = [missing, missing.saturating_add(PREGAP), 0];
    for candidate in candidates.into_iter().filter(|_| form != Form::Audio) {
        let header = rawcd::header(device, byte(candidate))?;
        if header.is_some_and(|(_, frame)| frame == row.lba.saturating_add(PREGAP)) {
            return Ok(byte(candidate));
        }
    }
    Ok(byte(missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_the_order_of_the_disc_and_values_in_both_bases() {
        let text = "[CloneCD]\r\nVersion=3\r\n[Entry 1]\r\nSession=1\r\nPoint=0xa2\r\nControl=0x04\r\nPLBA=200\r\n\
                    [Entry 2]\r\nSession=1\r\nPoint=0x01\r\nControl=0x00\r\nPLBA=0\r\n[Entry 3]\nPoint=0xb0\nPLBA=7\n\
                    [Entry 4]\nPoint=2\nPLBA=-150\n";
        let rows = rows(&sections(text));
        let shape: Vec<_> = rows.iter().map(|row| (row.point, row.lba, row.data)).collect();
        assert_eq!(shape, [(1, 0, false), (LEAD_OUT, 200, true)]);
    }
}
