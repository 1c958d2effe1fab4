//! What an examiner wrote, and what was found when the evidence was acquired.

use std::cmp::Ordering;
use std::io::Read;

use flate2::read::ZlibDecoder;

use super::section::{Section, adler32};
use crate::bytes::Record;
use crate::container::Opened;
use crate::container::bad::BadRange;
use crate::digest::{Algorithm, unhex};
use crate::error::Result;
use crate::text::utf16_to_bytes;

use super::FORMAT;

/// A packed header with all its fields full is a few hundred KiB.
const MAX_HEADER: u64 = 4 << 20;
/// Ranges of errors, and notes, that are listed one by one.
const LISTED: usize = 100;

/// Facts by section, as they come.
#[derive(Default)]
pub(super) struct Metadata {
    /// Name and value; the first of each name counts, and `header2` comes before `header`.
    fields: Vec<(&'static str, String)>,
    md5: Option<String>,
    sha1: Option<String>,
    /// First sector, number of sectors.
    errors: Vec<(u64, u64)>,
    pub(super) notes: Notes,
}

/// What an examiner should know. Bounded: a hostile file has damage in each of its sections.
#[derive(Default)]
pub(super) struct Notes {
    list: Vec<String>,
    /// The first one that is about damage.
    damage: Option<String>,
}

impl Notes {
    pub(super) fn push(&mut self, note: String) {
        if self.damage.is_none() && note.contains("damaged") {
            self.damage = Some(note.clone());
        }
        match self.list.len().cmp(&LISTED) {
            Ordering::Less => self.list.push(note),
            Ordering::Equal => self.list.push("there are more notes like these".to_owned()),
            Ordering::Greater => {}
        }
    }

    pub(super) fn damage(&self) -> Option<String> {
        self.damage.clone()
    }
}

impl Metadata {
    /// Takes what is known out of a section; damage to it is noted.
    pub(super) fn add(&mut self, section: &Section) {
        let done = match section.kind.as_str() {
            "header" | "header2" => self.add_header(section),
            "hash" => self.add_hash(section),
            "digest" => self.add_digest(section),
            "xhash" => self.add_xhash(section),
            "error2" => self.add_errors(section),
            "incomplete" => {
                self.notes.push("the acquisition was not completed".to_owned());
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(error) = done {
            self.notes.push(format!("segment {}: {error}", section.segment));
        }
    }

    /// Sections "Header section", "Header2 section": lines of names and of values, set apart by tabs.
    fn add_header(&mut self, section: &Section) -> Result<()> {
        let text = inflate(section)?;
        let text = if section.kind == "header2" {
            let (units, _) = text.as_chunks::<2>();
            let big = text.starts_with(&[0xfe, 0xff]);
            let unit = |&bytes: &[u8; 2]| if big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) };
            utf16_to_bytes(units.iter().map(unit).filter(|&unit| unit != 0xfeff))
        } else {
            text
        };
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.split('\n').map(|line| line.trim_end_matches('\r')).skip_while(|line| *line != "main");
        let (Some(_), Some(names), Some(values)) = (lines.next(), lines.next(), lines.next()) else { return Ok(()) };
        for (name, value) in names.split('\t').zip(values.split('\t')) {
            let Some((_, name)) = NAMES.iter().find(|(short, _)| *short == name) else { continue };
            let value = date(name, value.trim());
            let empty = value.is_empty() || (*name == "password hash" && value == "0");
            if !empty && !self.fields.iter().any(|(known, _)| known == name) {
                self.fields.push((name, value));
            }
        }
        Ok(())
    }

    fn add_hash(&mut self, section: &Section) -> Result<()> {
        let bytes = section.read(36)?;
        let record = checked(section, &bytes, 32)?;
        self.md5.get_or_insert(hex(record.bytes(0, 16)?));
        Ok(())
    }

    fn add_digest(&mut self, section: &Section) -> Result<()> {
        let bytes = section.read(80)?;
        let record = checked(section, &bytes, 76)?;
        for (field, at, len) in [(&mut self.md5, 0, 16), (&mut self.sha1, 16, 20)] {
            let sum = record.bytes(at, len)?;
            if sum.iter().any(|&byte| byte != 0) {
                field.get_or_insert(hex(sum));
            }
        }
        Ok(())
    }

    /// EWF-X: the same in XML.
    fn add_xhash(&mut self, section: &Section) -> Result<()> {
        let text = String::from_utf8_lossy(&inflate(section)?).to_lowercase();
        for (field, name, len) in [(&mut self.md5, "md5", 32), (&mut self.sha1, "sha1", 40)] {
            let value = text.split_once(&format!("<{name}>")).and_then(|(_, rest)| rest.split_once('<'));
            if let Some((value, _)) = value.filter(|(value, _)| value.len() == len) {
                field.get_or_insert(value.to_owned());
            }
        }
        Ok(())
    }

    /// Section "Error2 section".
    fn add_errors(&mut self, section: &Section) -> Result<()> {
        let header = section.read(520)?;
        let header = checked(section, &header, 516)?;
        let count = usize::try_from(header.le32(0)?).unwrap_or(usize::MAX);
        let bytes = section.read(MAX_HEADER)?;
        let rows = bytes.get(520..).unwrap_or_default();
        for row in rows.as_chunks::<8>().0.iter().take(count) {
            let row = Record::new(FORMAT.name, "error2 section", section.at(), row);
            self.errors.push((row.le32(0)?.into(), row.le32(4)?.into()));
        }
        Ok(())
    }

    /// The stored hashes of the disk.
    pub(super) fn digests(&self) -> Vec<(Algorithm, Vec<u8>)> {
        let stored = [(Algorithm::Md5, &self.md5), (Algorithm::Sha1, &self.sha1)];
        stored.into_iter().filter_map(|(algorithm, text)| Some((algorithm, unhex(text.as_ref()?)?))).collect()
    }

    /// What could not be read when the image was made.
    pub(super) fn unread(&self, sector_size: u32) -> Vec<BadRange> {
        let unit = u64::from(sector_size);
        let range = |&(first, count): &(u64, u64)| BadRange {
            offset: first.saturating_mul(unit),
            len: count.saturating_mul(unit),
        };
        self.errors.iter().map(range).collect()
    }

    pub(super) fn describe(self, sector_size: u32, zero: bool, opened: &mut Opened) {
        opened.facts.extend(self.fields);
        if let Some(md5) = self.md5 {
            opened.add("stored MD5", md5);
        }
        if let Some(sha1) = self.sha1 {
            opened.add("stored SHA-1", sha1);
        }
        opened.notes.extend(self.notes.list);
        let unit = u64::from(sector_size);
        for (first, count) in self.errors.iter().take(LISTED) {
            opened.add("unread when acquired", format!("{count} sectors from sector {first}"));
            let (start, len) = (first.saturating_mul(unit), count.saturating_mul(unit));
            let how = if zero { "zeros stand for them" } else { "reading them is an error" };
            let note = format!("{len} bytes from byte {start} could not be read when the image was made: {how}");
            opened.notes.push(note);
        }
        if self.errors.len() > LISTED {
            opened.notes.push(format!("{} ranges in all could not be read when the image was made", self.errors.len()));
        }
    }
}

/// Identifiers of the header's values.
const NAMES: [(&str, &str); 13] = [
    ("c", "case number"),
    ("n", "evidence number"),
    ("a", "description"),
    ("e", "examiner"),
    ("t", "examiner's notes"),
    ("m", "acquired"),
    ("u", "system date"),
    ("av", "acquired with"),
    ("ov", "acquired on"),
    ("md", "model"),
    ("sn", "serial number"),
    ("l", "device label"),
    ("p", "password hash"),
];

/// Seconds since 1970, or six numbers in the time of whoever wrote them.
fn date(name: &str, value: &str) -> String {
    if !matches!(name, "acquired" | "system date") {
        return value.to_owned();
    }
    let parts: Vec<&str> = value.split(' ').collect();
    if let [year, month, day, hour, minute, second] = parts.as_slice() {
        return format!("{year}-{month:0>2}-{day:0>2} {hour:0>2}:{minute:0>2}:{second:0>2} (local time)");
    }
    let seconds = value.parse().ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    seconds.map_or_else(|| value.to_owned(), |time| time.to_string())
}

/// The section's bytes, whose Adler-32 stands at `sum_at`.
fn checked<'a>(section: &Section, bytes: &'a [u8], sum_at: usize) -> Result<Record<'a>> {
    let what = match section.kind.as_str() {
        "hash" => "hash section",
        "digest" => "digest section",
        _ => "error2 section",
    };
    let record = Record::new(FORMAT.name, what, section.at(), bytes);
    if record.le32(sum_at)? != adler32(record.bytes(0, sum_at)?) {
        return Err(record.corrupt_field("checksum"));
    }
    Ok(record)
}

fn inflate(section: &Section) -> Result<Vec<u8>> {
    let packed = section.read(MAX_HEADER)?;
    let mut text = Vec::new();
    let read = ZlibDecoder::new(packed.as_slice()).take(MAX_HEADER).read_to_end(&mut text);
    let damaged = |_| Record::new(FORMAT.name, "header section", section.at(), &packed).corrupt();
    read.map_err(damaged)?;
    Ok(text)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
