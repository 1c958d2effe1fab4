//! MDS, of Alcohol 120%: a description of a disc, beside an MDF that holds its sectors.
//!
//! Specification: none; libmirage, images/image-mds.
//!
//! ```text
//!   header (88) -> session blocks (24) -> track blocks (80) -> extra blocks (8: pregap, length)
//!                                              `-> footers (16) -> file names
//! ```
//!
//! Supported: CD and DVD, 2,048 to 2,448 bytes a sector, several sessions, an MDF in several files.
//! Not supported: version 2 and MDX (encrypted descriptions).

use super::disc::{Disc, Form, Piece, Track};
use super::files::Files;
use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::device::{BlockDevice, Device, probe_array, read_vec};
use crate::error::{Error, Result};
use crate::text::utf16_to_bytes;

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "mds", snapshots: false, probe, open };

const MAGIC: &[u8; 16] = b"MEDIA DESCRIPTOR";
const MAX_LEN: u64 = 1 << 20;
const MAX_TRACKS: usize = 99;
const MAX_FILES: u64 = 32;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    Ok(probe_array::<16>(device, 0)?.as_ref() == Some(MAGIC))
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let version = probe_array::<2>(file.as_ref(), 16)?.unwrap_or_default();
    if version[0] > 1 {
        return Err(Error::unsupported(FORMAT.name, format!("version {}.{} (encrypted)", version[0], version[1])));
    }
    if file.size() > MAX_LEN {
        return Err(Error::corrupt(FORMAT.name, "description (too long)", 0));
    }
    let bytes = read_vec(file.as_ref(), 0, usize::try_from(file.size()).map_err(|_| Error::Invalid)?)?;
    let record = Record::new(FORMAT.name, "description", 0, &bytes);
    let dvd = record.le16(18)? >= 0x10;
    let mut tracks = Vec::new();
    let mut footer = None;
    let mut sessions = offset(&record, 80)?;
    for _ in 0..record.le16(20)? {
        let session = record.part("session block", sessions, 24)?;
        let number = u32::from(session.le16(8)?);
        let mut at = offset(&session, 20)?;
        for _ in 0..session.u8(10)? {
            let row = record.part("track block", at, 80)?;
            at = at.saturating_add(80);
            if !matches!(row.u8(4)?, 1..=99) {
                continue;
            }
            if tracks.len() >= MAX_TRACKS {
                return Err(row.corrupt_field("too many tracks"));
            }
            footer = footer.or(Some((offset(&row, 52)?, u64::from(row.le32(48)?))));
            tracks.push(track(&record, &row, number, dvd)?);
        }
        sessions = sessions.saturating_add(24);
    }
    let (footer, count) = footer.ok_or_else(|| record.corrupt_field("no tracks"))?;
    let names = names(&record, footer, count.clamp(1, MAX_FILES), companions)?;
    let mut files = Files::default();
    for name in &names {
        files.open(companions, name, names.len() == 1)?;
    }
    let notes = std::mem::take(&mut files.notes);
    Disc { format: FORMAT.name, data: files.into_device()?, tracks, notes }.open(options)
}

fn offset(record: &Record<'_>, at: usize) -> Result<usize> {
    usize::try_from(record.le32(at)?).map_err(|_| record.corrupt())
}

fn track(record: &Record<'_>, row: &Record<'_>, session: u32, dvd: bool) -> Result<Track> {
    let stride = u64::from(row.le16(16)?);
    let mode = row.u8(0)? & 7;
    let form = match (mode, stride) {
        (1, 2352..) => Form::Audio,
        (_, 2048..2324) => Form::Cooked,
        (_, 2324..2336) => Form::Form2,
        (_, 2336..2352) => Form::Mode2,
        (2, 2352..) => Form::Raw { mode: 1 },
        (_, 2352..) => Form::Raw { mode: 2 },
        _ => return Err(row.corrupt_field("sector size")),
    };
    // A DVD has no extra blocks: its one track's length stands in their place.
    let count = if dvd { row.le32(12)? } else { record.part("extra block", offset(row, 12)?, 8)?.le32(4)? };
    let piece = Piece { count: count.into(), at: Some(row.le64(40)?) };
    let number = u32::from(row.u8(4)?);
    Ok(Track { session, stride, lba: row.le32(36)?.into(), ..Track::new(number, form, piece) })
}

/// File names; `*` stands for the description's own stem.
fn names(record: &Record<'_>, footer: usize, count: u64, companions: &dyn Companions) -> Result<Vec<Vec<u8>>> {
    let own = std::path::Path::new(companions.own_name());
    let own_stem = own.file_stem().unwrap_or_default().as_encoded_bytes();
    let mut names = Vec::new();
    let mut at = footer;
    for _ in 0..count {
        let row = record.part("footer", at, 16)?;
        at = at.saturating_add(16);
        let bytes = record.tail(offset(&row, 0)?)?;
        let name = if row.le32(4)? != 0 {
            let units = bytes.as_chunks::<2>().0.iter().map(|&unit| u16::from_le_bytes(unit));
            utf16_to_bytes(units.take_while(|&unit| unit != 0).take(1024))
        } else {
            bytes.iter().copied().take_while(|&byte| byte != 0).take(1024).collect()
        };
        names.push(match name.strip_prefix(b"*") {
            Some(ending) => [own_stem, ending].concat(),
            None => name,
        });
    }
    Ok(names)
}
