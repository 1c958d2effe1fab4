//! The body file of the Sleuth Kit 3 and later, as `fls -m` writes it:
//!
//! ```text
//!   MD5|name|inode|mode|UID|GID|size|atime|mtime|ctime|crtime
//! ```
//!
//! Times are whole seconds since 1970, 0 where there is none. The name of a link ends in ` -> target`.
//! A `|` in a name would end the field: it is `%7C`, which mactime takes back; so a `%` that it would take
//! for such an escape is `%25`.

use std::io::Write;

use anyhow::Result;
use imgfs::filesystem::{Attributes, Kind, Timestamp};
use imgfs::text::printable;

use super::{Facts, Job, Scene, Writer};
use crate::cli::ls;

pub(super) struct Body<'a> {
    scene: &'a Scene<'a>,
}

impl<'a> Body<'a> {
    pub(super) fn new(scene: &'a Scene<'a>) -> Self {
        Self { scene }
    }
}

impl Writer for Body<'_> {
    fn start(&mut self, _out: &mut dyn Write) -> Result<()> {
        Ok(())
    }

    fn row(&mut self, job: &Job, facts: &Facts, out: &mut dyn Write) -> Result<()> {
        let Ok(attributes) = &facts.attributes else { return Ok(()) };
        let has_digest = job.row.kind == Kind::File;
        let digest = facts.contents.iter().filter(|_| has_digest).find_map(|(_, digests)| digests.first());
        let time = |time: Option<Timestamp>| time.map_or(0, |time| time.seconds);
        let target = facts.target.as_ref().map_or(String::new(), |target| format!(" -> {}", field(target)));
        writeln!(
            out,
            "{}|/{}{target}|{}|{}|{}|{}|{}|{}|{}|{}|{}",
            digest.map_or("0", String::as_str),
            field(&job.path),
            self.scene.forest.own_number(job.row.node),
            mode(attributes),
            attributes.uid.unwrap_or(0),
            attributes.gid.unwrap_or(0),
            attributes.size,
            time(attributes.accessed),
            time(attributes.modified),
            time(attributes.changed),
            time(attributes.created),
        )?;
        Ok(())
    }

    fn end(&mut self, _out: &mut dyn Write) -> Result<()> {
        Ok(())
    }
}

/// A name as a field.
fn field(name: &[u8]) -> String {
    let text = printable(name);
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        let digits = text.as_bytes().get(at + 1..at + 3);
        let is_escape = digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        match c {
            '|' => out.push_str("%7C"),
            '%' if is_escape => out.push_str("%25"),
            c => out.push(c),
        }
    }
    out
}

/// `r/rrwxr-xr-x`: the kind by name, the kind by inode, the permissions. What has none is `rwxrwxrwx`,
/// or `r-xr-xr-x` when it is marked read-only.
fn mode(attributes: &Attributes) -> String {
    let letter = letter(attributes.kind);
    let permissions = match attributes.mode {
        None if attributes.read_only => "r-xr-xr-x".to_owned(),
        None => "rwxrwxrwx".to_owned(),
        Some(_) => ls::permissions(attributes),
    };
    format!("{letter}/{letter}{permissions}")
}

/// The letter of the Sleuth Kit for a kind of node; of DFXML as well.
pub(super) fn letter(kind: Kind) -> char {
    if kind == Kind::File { 'r' } else { ls::letter(kind) }
}
