//! Directories: a stream of file identifier descriptors (ECMA-167, 4/14.4).
//!
//! ```text
//!   | tag | version | characteristics | name's length | ICB | length of .. | .. implementation use | name | to 4 |
//!   one behind the other, across the borders of blocks; a row's cursor is the byte after its descriptor
//! ```

use std::ops::ControlFlow;

use super::icb::FileEntry;
use super::partition::Address;
use super::tag::{Tag, id};
use super::{NAME, Udf, text};
use crate::bytes::Record;
use crate::device::BlockDevice;
use crate::device::mapped::{Mapping, Place, read_runs};
use crate::error::{Error, Result};
use crate::filesystem::NodeId;

/// Read at once: little first, as who looks up a name wants one row, and then up to this much.
const CHUNK: u64 = 32 << 10;
const FIRST_CHUNK: u64 = 1 << 10;
/// A descriptor without its name.
const FIXED: usize = 38;
/// More bytes than this are no directory: sixteen million names.
const MAX_SIZE: u64 = 1 << 30;

/// File characteristics, 4/14.4.3.
mod characteristic {
    pub(super) const DIRECTORY: u8 = 2;
    pub(super) const DELETED: u8 = 4;
    pub(super) const PARENT: u8 = 8;
}

/// A row.
pub(super) struct Row {
    pub(super) icb: Address,
    pub(super) name: Vec<u8>,
    pub(super) is_directory: bool,
    /// Byte within the directory after its descriptor.
    pub(super) next: u64,
}

/// Part of a directory's bytes, read ahead.
struct Stream<'a> {
    device: &'a dyn BlockDevice,
    entry: &'a FileEntry,
    size: u64,
    ahead: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Stream<'_> {
    /// `len` bytes from `offset`, or what there is of them before the end.
    fn get(&mut self, offset: u64, len: usize) -> Result<&[u8]> {
        let len = (len as u64).min(self.size.saturating_sub(offset));
        let held = self.start.saturating_add(self.bytes.len() as u64);
        if offset < self.start || offset.saturating_add(len) > held {
            let ahead = self.ahead.max(len).min(self.size.saturating_sub(offset));
            self.ahead = self.ahead.saturating_mul(4).min(CHUNK);
            self.start = offset;
            // What cannot be read ahead may not be wanted.
            if self.fill(ahead).is_err() {
                self.fill(len)?;
            }
        }
        let from = usize::try_from(offset.saturating_sub(self.start)).map_err(|_| Error::Invalid)?;
        let to = from.saturating_add(usize::try_from(len).map_err(|_| Error::Invalid)?);
        self.bytes.get(from..to).ok_or(Error::Invalid)
    }

    fn fill(&mut self, len: u64) -> Result<()> {
        self.bytes.clear();
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| Error::Invalid)?];
        read_runs(&self.entry.contents, self.device, &mut bytes, self.start)?;
        self.bytes = bytes;
        Ok(())
    }
}

impl Udf {
    /// Calls `visit` with the rows from byte `cursor` on. Damaged descriptors are passed over; when all
    /// other rows were visited, the first of them is the error.
    pub(super) fn scan(
        &self,
        id: NodeId,
        entry: &FileEntry,
        cursor: u64,
        visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<()> {
        let known = entry.known.min(entry.contents.size());
        let largest = MAX_SIZE.min(self.partitions.device.size());
        let mut damage = entry.trouble.clone();
        if known > largest {
            damage.get_or_insert(Error::corrupt(NAME, "directory (its length)", entry.at));
        }
        let size = known.min(largest);
        let device = self.partitions.device.as_ref();
        let mut stream = Stream { device, entry, size, ahead: FIRST_CHUNK, start: 0, bytes: Vec::new() };
        let mut offset = cursor;
        // After damage the next descriptor is looked for at every fourth byte.
        let mut is_lost = false;
        while offset < size {
            let found = self.descriptor_at(&mut stream, offset, is_lost);
            let step = match found {
                Ok(Some((len, row))) => {
                    is_lost = false;
                    let next = offset.saturating_add(len);
                    if let Some(row) = row
                        && visit(Row { next, ..row }).is_break()
                    {
                        // Whoever comes back for the rest starts behind the damage.
                        if let Some(error) = damage {
                            self.damaged.insert(id.0, error, 64);
                        }
                        return Ok(());
                    }
                    len
                }
                Ok(None) => 4,
                Err(error) => {
                    let is_device = matches!(error, Error::Io { .. } | Error::PastEnd { .. });
                    damage.get_or_insert(error);
                    is_lost = true;
                    let block = self.partitions.block_size;
                    let to_next = block.saturating_sub(offset.checked_rem(block).unwrap_or(0));
                    if is_device { to_next } else { 4 }
                }
            };
            offset = offset.saturating_add(step);
        }
        if let Some(error) = damage {
            self.damaged.insert(id.0, error, 64);
        }
        self.damaged.get(&id.0).map_or(Ok(()), Err)
    }

    /// The descriptor at `offset`: its length, and its row where it is shown. While `is_lost`, what is none
    /// is `None` and no damage.
    fn descriptor_at(&self, stream: &mut Stream<'_>, offset: u64, is_lost: bool) -> Result<Option<(u64, Option<Row>)>> {
        let what = "file identifier descriptor";
        if is_lost {
            // A gigabyte may be gone through like this: where it is on the medium is no matter yet.
            let head = Record::new(NAME, what, offset, stream.get(offset, FIXED)?);
            if head.le16(0).ok() != Some(id::FILE_IDENTIFIER) || Tag::parse_alone(&head).is_err() {
                return Ok(None);
            }
        }
        let place = stream.entry.contents.map(offset).map_or(stream.entry.at, |run| match run.place {
            Place::At(at) => at,
            _ => stream.entry.at,
        });
        let head = Record::new(NAME, what, place, stream.get(offset, FIXED)?);
        let (name_len, use_len) = (usize::from(head.u8(19)?), usize::from(head.le16(36)?));
        // What fills it up is part of it.
        let len = FIXED.saturating_add(use_len).saturating_add(name_len).next_multiple_of(4);
        let record = Record::new(NAME, what, place, stream.get(offset, len)?);
        let tag = Tag::parse(&record)?;
        if tag.id != id::FILE_IDENTIFIER {
            return Err(record.corrupt());
        }
        let len = len as u64;
        let characteristics = record.u8(18)?;
        if characteristics & (characteristic::DELETED | characteristic::PARENT) != 0 {
            return Ok(Some((len, None)));
        }
        let name = text::decode(record.bytes(FIXED.saturating_add(use_len), name_len)?);
        let name = name.filter(|name| !name.is_empty()).ok_or_else(|| record.corrupt_field("name"))?;
        if record.le32(20)? & 0x3fff_ffff == 0 {
            return Err(record.corrupt_field("ICB"));
        }
        let is_directory = characteristics & characteristic::DIRECTORY != 0;
        Ok(Some((len, Some(Row { icb: Address::parse(&record, 24)?, name, is_directory, next: 0 }))))
    }

    /// The node of a name.
    pub(super) fn find(&self, id: NodeId, entry: &FileEntry, name: &[u8]) -> Result<Option<NodeId>> {
        self.names.find(id.0, name, &|cursor, visit| {
            self.scan(id, entry, cursor, &mut |row| visit(&row.name, row.icb.node(), row.next))
        })
    }
}
