//! The System Use Sharing Protocol (SUSP, IEEE P1281): tagged fields behind the name of a
//! directory record, continued in other places when they do not fit.
//!
//! ```text
//!   record   [fixed part][name]|skip|[PX][TF][NM][CE]
//!                                             |  block, offset, length
//!                                             v
//!   elsewhere                            [SL][SL][CE] ...
//! ```

use super::NAME;
use super::medium::Medium;
use super::record::{Both, DirectoryRecord};
use crate::bytes::Record;
use crate::device::read_vec;
use crate::error::{Error, Result};

/// Continuation areas of one record: a name and a target of 64 KB need far fewer.
const MAX_AREAS: usize = 128;
/// Bytes in one continuation area; writers stay below a block.
const MAX_AREA: u32 = 64 << 10;
/// Bytes of all continuation areas of one record: a target of PATH_MAX takes 6 KiB. Each record of a
/// directory can have so many, and all of them are read to find one name.
const MAX_TOTAL: usize = 128 << 10;
/// Signature, length and version.
const HEADER: usize = 4;
/// System use of a CD-ROM XA disc, which lies before the fields.
const XA: usize = 14;

/// What the root directory says of all system use areas.
#[derive(Debug, Clone, Copy)]
pub(super) struct Protocol {
    /// Bytes before the first field in every record but the root's own.
    skip: usize,
    /// The same in the root's own.
    root_skip: usize,
    /// Which of the extensions is Rock Ridge, counted as `ES` counts.
    rock_ridge: u8,
}

impl Protocol {
    /// Looks for Rock Ridge in the root directory's record of itself; `None` when it is not used.
    pub(super) fn find(medium: &Medium, root: &DirectoryRecord<'_>) -> Option<Self> {
        for root_skip in [0, XA] {
            let protocol = Self { skip: root_skip, root_skip, rock_ridge: 0 };
            let mut found = Found::default();
            let end = walk(medium, root, root_skip, &mut |field| {
                found.take(&field);
                Ok(true)
            });
            if let Err(error) = end {
                medium.notes.add(format!("system use of the root directory: {error}"));
            }
            if found.rock_ridge_fields || found.rock_ridge.is_some() {
                let skip = found.skip.unwrap_or(protocol.skip);
                return Some(Self { skip, rock_ridge: found.rock_ridge.unwrap_or(0), ..protocol });
            }
        }
        None
    }

    /// Calls `visit` with each field that is SUSP's own or Rock Ridge's. `is_root` tells the root
    /// directory's own record. An error says where the fields break off.
    pub(super) fn fields(
        &self,
        medium: &Medium,
        record: &DirectoryRecord<'_>,
        is_root: bool,
        visit: &mut dyn FnMut(Field<'_>),
    ) -> Result<()> {
        let mut extension = self.rock_ridge;
        walk(medium, record, if is_root { self.root_skip } else { self.skip }, &mut |field| {
            match &field.signature {
                b"ES" => extension = field.record.u8(4)?,
                _ if extension == self.rock_ridge => visit(field),
                _ => {}
            }
            Ok(true)
        })
    }
}

/// What a first look at the root's fields tells.
#[derive(Default)]
struct Found {
    skip: Option<usize>,
    extensions: u8,
    rock_ridge: Option<u8>,
    rock_ridge_fields: bool,
}

impl Found {
    fn take(&mut self, field: &Field<'_>) {
        match &field.signature {
            b"SP" if field.record.bytes(4, 2).ok() == Some(&[0xbe, 0xef]) => {
                self.skip = field.record.u8(6).ok().map(usize::from);
            }
            b"ER" => {
                let len = field.record.u8(4).map_or(0, usize::from);
                let identifier = field.record.bytes(8, len).unwrap_or_default();
                if matches!(identifier, b"RRIP_1991A" | b"IEEE_P1282" | b"IEEE_1282") {
                    self.rock_ridge.get_or_insert(self.extensions);
                }
                self.extensions = self.extensions.saturating_add(1);
            }
            // Early writers left out SP and ER.
            b"RR" | b"PX" | b"NM" => self.rock_ridge_fields = true,
            _ => {}
        }
    }
}

/// One field.
pub(super) struct Field<'a> {
    pub(super) signature: [u8; 2],
    /// All of it, its header included.
    pub(super) record: Record<'a>,
}

/// A place that `CE` names.
struct Continuation {
    at: u64,
    len: u32,
}

/// Calls `visit` with every field of a record, until it answers `false`.
fn walk(
    medium: &Medium,
    record: &DirectoryRecord<'_>,
    skip: usize,
    visit: &mut dyn FnMut(Field<'_>) -> Result<bool>,
) -> Result<()> {
    let first = record.system_use.get(skip..).unwrap_or_default();
    let at = record.system_use_at().saturating_add(skip as u64);
    let mut next = walk_area(medium, first, at, visit)?;
    let mut visited = Vec::new();
    let mut room = MAX_TOTAL;
    while let Some(continuation) = next {
        if visited.len() >= MAX_AREAS || visited.contains(&continuation.at) {
            return Err(Error::corrupt(NAME, "continuation area (CE, a loop)", continuation.at));
        }
        visited.push(continuation.at);
        let len = continuation.len.min(MAX_AREA) as usize;
        room = room
            .checked_sub(len)
            .ok_or_else(|| Error::corrupt(NAME, "continuation area (CE, too many bytes)", continuation.at))?;
        let area = read_vec(medium.device.as_ref(), continuation.at, len)?;
        next = walk_area(medium, &area, continuation.at, visit)?;
    }
    Ok(())
}

/// Visits the fields of one area; what comes back is where they go on.
fn walk_area(
    medium: &Medium,
    mut area: &[u8],
    mut at: u64,
    visit: &mut dyn FnMut(Field<'_>) -> Result<bool>,
) -> Result<Option<Continuation>> {
    let mut next = None;
    // Less than a header, or zeros, is padding.
    while let Some(&[a, b, len, _]) = area.first_chunk::<HEADER>() {
        let signature = [a, b];
        let len = usize::from(len);
        if len < HEADER {
            if signature == [0, 0] || len == 0 {
                break;
            }
            return Err(Error::corrupt(NAME, "system use field (length)", at));
        }
        let len = if &signature == b"SL" { link_len(area, len) } else { len };
        let Some((field, rest)) = area.split_at_checked(len) else {
            return Err(Error::corrupt(NAME, "system use field (longer than its area)", at));
        };
        let record = Record::new(NAME, "system use field", at, field);
        match &signature {
            b"ST" => break,
            b"CE" => next = Some(continuation(medium, &record)?),
            _ => {
                if !visit(Field { signature, record })? {
                    return Ok(None);
                }
            }
        }
        area = rest;
        at = at.saturating_add(len as u64);
    }
    Ok(next)
}

/// True length of an SL field. genisoimage puts a long target into one field, and its length byte
/// wraps around; the components in it must fill the field to its end, where another one follows.
fn link_len(area: &[u8], len: usize) -> usize {
    let mut end = HEADER.saturating_add(1);
    // Each component takes two bytes or more, so that this ends with the area.
    while let Some(&[flags, text_len]) = area.get(end..).and_then(|rest| rest.first_chunk::<2>()) {
        let wrapped = end.checked_sub(len).is_some_and(|more| more.checked_rem(256) == Some(0));
        let rest = area.get(end..).unwrap_or_default();
        let follows = match rest.first_chunk::<HEADER>() {
            Some(&[a, b, len, version]) => {
                let is_field = a.is_ascii_uppercase() && b.is_ascii_alphanumeric() && usize::from(len) >= HEADER;
                (is_field && version <= 2) || [a, b, len] == [0; 3]
            }
            None => true,
        };
        if wrapped && follows {
            return end;
        }
        if flags & 0xc0 != 0 {
            return len;
        }
        end = end.saturating_add(2).saturating_add(text_len.into());
    }
    let is_wrapped = end.checked_sub(len).is_some_and(|more| more.checked_rem(256) == Some(0));
    if is_wrapped && end == area.len() { end } else { len }
}

/// SUSP 1.12, 5.1: block, offset and length of the next area.
fn continuation(medium: &Medium, record: &Record<'_>) -> Result<Continuation> {
    let (block, offset, len) = (Both::read32(record, 4)?, Both::read32(record, 12)?, Both::read32(record, 20)?);
    let block = block.choose(|block| medium.holds(block, 1));
    let offset = offset.choose(|offset| u64::from(offset) < medium.block_size);
    let at = medium.byte(block.into()).and_then(|start| start.checked_add(offset.into()));
    let at = at.ok_or_else(|| record.corrupt_field("CE outside the image"))?;
    Ok(Continuation { at, len: len.choose(|len| len <= MAX_AREA) })
}
