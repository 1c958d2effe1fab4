//! Directories: a stream of rows from one extent.
//!
//! ```text
//!   |[.][..][A.;1][B.;1].......0000|[C.;1][D.;1 goes on][D.;1]....0000|
//!   ^ sector: records do not cross its end, zeros fill the rest         a row's cursor is the byte
//!                                                                      after its last record
//! ```

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::map;
use super::medium::SECTOR;
use super::node::kind_of;
use super::record::{Both, DirectoryRecord};
use super::rockridge::RockRidge;
use super::{BAD_SELF, Iso, NAME, NameSpace};
use crate::bytes::Record;
use crate::device::check_range;
use crate::error::{Error, Result};
use crate::filesystem::names::MAX_INDEX;
use crate::filesystem::{Kind, NodeId};
use crate::text::utf16_to_bytes;

/// Read at once; the sector cache below keeps reads up to this length.
const CHUNK: u64 = 32 << 10;

/// An open directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Directory {
    /// First byte on the device; of one that lies outside the image, its record's.
    pub(super) at: u64,
    /// Length in bytes; 0 of one that lies outside the image.
    pub(super) len: u64,
}

/// A row, ready to be shown.
pub(super) struct Row {
    pub(super) node: NodeId,
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    /// Byte of its first record on the device.
    at: u64,
    /// Byte within the directory after the row's last record.
    pub(super) next: u64,
    /// The name as recorded, of a file whose last section has not come yet.
    open: Option<Vec<u8>>,
}

/// The records of the directories in a directory.
pub(super) struct Children {
    records: HashMap<NodeId, u64>,
    /// The directory is readable in part.
    damage: Option<Error>,
}

impl Iso {
    /// Calls `visit` with the rows from byte `cursor` on. Damaged records are noted and passed
    /// over, up to the next sector; when all other rows were visited, the first of them is the error.
    pub(super) fn scan(
        &self,
        directory: Directory,
        cursor: u64,
        visit: &mut dyn FnMut(&Row) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut scan = Scan { iso: self, directory, held: None, damage: None };
        let mut offset = cursor;
        if !self.has_self(directory) {
            scan.damaged(Error::corrupt(NAME, "directory (its record of itself)", directory.at), false);
        } else if directory.len == 0 {
            scan.damaged(Error::corrupt(NAME, "directory (its length)", directory.at), false);
        }
        while offset < directory.len {
            let at = directory.at.saturating_add(offset);
            let to_end = CHUNK.saturating_sub(at.checked_rem(CHUNK).unwrap_or(0));
            let len = to_end.min(directory.len.saturating_sub(offset));
            if self.scan_chunk(&mut scan, at, len, visit)?.is_break() {
                // Whoever comes back for the rest starts behind the damage.
                self.remember_damage(&scan);
                return Ok(());
            }
            if scan.damage.as_ref().is_some_and(|(_, ends)| *ends) {
                break;
            }
            offset = offset.saturating_add(len);
        }
        if let Some(row) = scan.held.take() {
            self.medium.notes.add(format!("the last section of the file at byte {} is missing", row.node.0));
            if visit(&row).is_break() {
                self.remember_damage(&scan);
                return Ok(());
            }
        }
        self.remember_damage(&scan);
        self.damaged.get(&directory.at).map_or(Ok(()), Err)
    }

    fn remember_damage(&self, scan: &Scan<'_>) {
        if let Some((error, _)) = &scan.damage {
            self.damaged.insert(scan.directory.at, error.clone(), 64);
        }
    }

    /// One chunk, in one read when that works, else sector by sector.
    fn scan_chunk(
        &self,
        scan: &mut Scan<'_>,
        at: u64,
        len: u64,
        visit: &mut dyn FnMut(&Row) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let mut buf = vec![0; usize::try_from(len).map_err(|_| Error::Invalid)?];
        if self.medium.device.read_exact_at(&mut buf, at).is_ok() {
            return Ok(scan.records(&buf, at, visit));
        }
        let mut at = at;
        let end = at.saturating_add(len);
        while at < end {
            let sector_end = at.saturating_add(1).checked_next_multiple_of(SECTOR).unwrap_or(end).min(end);
            let Some(sector) = usize::try_from(sector_end.saturating_sub(at)).ok().and_then(|len| buf.get_mut(..len))
            else {
                return Err(Error::Invalid);
            };
            let outside = check_range(sector.len(), at, self.medium.device.size()).is_err();
            match self.medium.device.read_exact_at(sector, at) {
                Ok(()) => {
                    if scan.records(sector, at, visit).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Err(error) => {
                    scan.damaged(error, outside);
                    if outside {
                        break;
                    }
                }
            }
            at = sector_end;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The node of a name.
    pub(super) fn find(&self, directory: Directory, name: &[u8]) -> Result<Option<NodeId>> {
        self.names.find(directory.at, name, &|cursor, visit| {
            self.scan(directory, cursor, &mut |row| visit(&row.name, row.node, row.next))
        })
    }

    /// Byte of a directory's record in its parent; `None` where it is shown in another place.
    pub(super) fn record_in_parent(&self, id: NodeId, directory: Directory) -> Result<Option<u64>> {
        let own = self.medium.record_bytes(directory.at)?;
        let at = directory.at.saturating_add(DirectoryRecord::parse(&own, directory.at)?.len as u64);
        let bytes = self.medium.record_bytes(at)?;
        let parent = self.directory_id(self.directory_extent(&DirectoryRecord::parse(&bytes, at)?), at);
        let parent = self.directory(parent)?;
        let children = self.children.get_or_make(&parent.at, || {
            let mut records = HashMap::new();
            let damage = self.scan(parent, 0, &mut |row| {
                if row.kind == Kind::Directory {
                    records.entry(row.node).or_insert(row.at);
                }
                if records.len() < MAX_INDEX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            let weight = records.capacity().saturating_mul(24).saturating_add(128) as u64;
            Ok::<_, Error>((Arc::new(Children { records, damage: damage.err() }), weight))
        })?;
        match (children.records.get(&id), &children.damage) {
            (Some(at), _) => Ok(Some(*at)),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Ok(None),
        }
    }

    /// The row of a record; `None` for what is not shown.
    fn row(&self, record: &DirectoryRecord<'_>, next: u64, in_root: bool) -> Option<Row> {
        if record.is_dot() {
            return None;
        }
        if record.is_associated() {
            self.medium.notes.add(format!("an associated file (resource fork) at byte {} is not shown", record.at));
            return None;
        }
        let rock_ridge = self.rock_ridge(record, false);
        let child_link = rock_ridge.as_ref().and_then(|rr| rr.child_link);
        if rock_ridge.as_ref().is_some_and(|rr| rr.relocated) {
            return None;
        }
        let (node, kind) = if let Some(block) = child_link {
            (self.directory_id(u64::from(block), record.at), Kind::Directory)
        } else if record.is_directory() {
            let extent = self.directory_extent(record);
            (self.directory_id(extent, record.at), Kind::Directory)
        } else {
            (NodeId(record.at), kind_of(record, rock_ridge.as_ref()))
        };
        let name = self.shown_name(record, rock_ridge);
        let is_store = in_root && matches!(name.as_slice(), b"rr_moved" | b".rr_moved") && kind == Kind::Directory;
        if is_store && node != self.root && self.holds_only_relocated(node) {
            return None;
        }
        let at = record.at;
        Some(Row { node, name, kind, at, next, open: record.continues().then(|| record.name.to_vec()) })
    }

    /// Whether a directory starts as one: zeros, or a file's bytes, are not an empty directory.
    fn has_self(&self, directory: Directory) -> bool {
        let bytes = self.medium.record_bytes(directory.at).unwrap_or_default();
        DirectoryRecord::parse(&bytes, directory.at).is_ok_and(|record| record.name == [0])
    }

    /// Whether a directory was made by the writer alone, to keep what is shown elsewhere.
    fn holds_only_relocated(&self, node: NodeId) -> bool {
        let Ok(directory) = self.directory(node) else { return false };
        let mut is_empty = true;
        let all = self.scan(directory, 0, &mut |_| {
            is_empty = false;
            ControlFlow::Break(())
        });
        let mut at = directory.at;
        for _ in 0..2 {
            let Ok(bytes) = self.medium.record_bytes(at) else { return false };
            at = at.saturating_add(bytes.first().copied().unwrap_or(0).into());
        }
        let Ok(bytes) = self.medium.record_bytes(at) else { return false };
        let first = DirectoryRecord::parse(&bytes, at).ok().and_then(|record| self.rock_ridge(&record, false));
        is_empty && all.is_ok() && first.is_some_and(|first| first.relocated)
    }

    /// First block of a directory's data.
    pub(super) fn directory_extent(&self, record: &DirectoryRecord<'_>) -> u64 {
        let extent = record.extent.choose(|block| self.medium.holds(block, 1));
        u64::from(extent).saturating_add(record.xar_len.into())
    }

    /// A directory is its record of itself, whatever led to it. Where that is damaged, it is the
    /// record in its parent.
    pub(super) fn directory_id(&self, extent: u64, record_at: u64) -> NodeId {
        match self.medium.byte(extent) {
            Some(at) if self.medium.is_directory(at, extent) => NodeId(at),
            _ => NodeId(record_at | BAD_SELF),
        }
    }

    fn shown_name(&self, record: &DirectoryRecord<'_>, rock_ridge: Option<RockRidge>) -> Vec<u8> {
        let given = rock_ridge.and_then(|rr| rr.name);
        if let Some(name) = given.filter(|name| !matches!(name.as_slice(), b"" | b"." | b"..")) {
            return name;
        }
        let name: Cow<'_, [u8]> = if self.name_space == NameSpace::Joliet {
            let pairs = Record::new(NAME, "Joliet name", record.at, record.name);
            let units = (0..record.name.len() / 2).filter_map(|i| pairs.be16(i.saturating_mul(2)).ok());
            utf16_to_bytes(units).into()
        } else {
            record.name.into()
        };
        // Version 1 and, in a plain tree, an empty extension are the rule, and say nothing.
        if self.name_space != NameSpace::Joliet
            && let Some(mapped) = map::mapped(self.options.map, record)
        {
            return mapped;
        }
        let plain = name.strip_suffix(b";1").filter(|rest| !rest.is_empty()).unwrap_or(&name);
        let has_dot = self.name_space == NameSpace::Plain || self.name_space == NameSpace::RockRidge;
        let without = plain.strip_suffix(b".").filter(|rest| has_dot && !rest.is_empty());
        let plain = without.unwrap_or(plain);
        if plain == b"." || plain == b".." { name.to_vec() } else { plain.to_vec() }
    }
}

/// A walk over the records of one directory.
struct Scan<'a> {
    iso: &'a Iso,
    directory: Directory,
    /// A file whose last section has not come yet.
    held: Option<Row>,
    /// The first damage, and whether nothing can be read behind it.
    damage: Option<(Error, bool)>,
}

impl Scan<'_> {
    fn damaged(&mut self, error: Error, ends: bool) {
        self.iso.medium.notes.add(format!("directory at byte {}: {error}", self.directory.at));
        match &mut self.damage {
            Some((_, before)) => *before |= ends,
            none => *none = Some((error, ends)),
        }
    }

    /// Whether what is passed over as the empty end of a sector is a record that lost its length, or has one
    /// in it. Numbers that are said twice alike tell: some writers leave there what was in their memory.
    fn hides_a_record(&self, skipped: &[u8], at: u64) -> bool {
        let is_place = |extent: Both| extent.agrees() && extent.le != 0 && self.iso.medium.holds(extent.le, 1);
        let raw = Record::new(NAME, "directory record", at, skipped);
        let numbers = (Both::read32(&raw, 2), Both::read32(&raw, 10), raw.u8(32));
        if matches!(numbers, (Ok(extent), Ok(len), Ok(1..)) if is_place(extent) && len.agrees()) {
            return true;
        }
        let is_record = |bytes: &[u8]| {
            let record = DirectoryRecord::parse(bytes, at);
            record.is_ok_and(|record| is_place(record.extent) && record.data_len.agrees())
        };
        let mut starts = (2..skipped.len()).step_by(2).filter_map(|offset| skipped.get(offset..));
        starts.any(|bytes| bytes.first() != Some(&0) && is_record(bytes))
    }

    /// The records of some whole sectors, or of the rest of one.
    fn records(&mut self, buf: &[u8], at: u64, visit: &mut dyn FnMut(&Row) -> ControlFlow<()>) -> ControlFlow<()> {
        let mut offset = 0usize;
        while let Some(rest) = buf.get(offset..).filter(|rest| !rest.is_empty()) {
            let here = at.saturating_add(offset as u64);
            let to_end = |unit: u64| unit.saturating_sub(here.checked_rem(unit).unwrap_or(0));
            let sector_rest = usize::try_from(to_end(SECTOR)).unwrap_or(rest.len()).min(rest.len());
            let sector = rest.get(..sector_rest).unwrap_or(rest);
            if sector.first() == Some(&0) {
                let skip = usize::try_from(to_end(self.iso.medium.block_size)).unwrap_or(sector_rest);
                let skip = skip.clamp(1, sector_rest);
                if self.hides_a_record(sector.get(..skip).unwrap_or(sector), here) {
                    self.damaged(Error::corrupt(NAME, "directory record (length 0)", here), false);
                }
                offset = offset.saturating_add(skip);
                continue;
            }
            match DirectoryRecord::parse(sector, here) {
                Ok(record) => {
                    offset = offset.saturating_add(record.len.max(1));
                    self.record(&record, visit)?;
                }
                Err(error) => {
                    self.damaged(error, false);
                    offset = offset.saturating_add(sector_rest);
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn record(
        &mut self,
        record: &DirectoryRecord<'_>,
        visit: &mut dyn FnMut(&Row) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let next = record.at.saturating_add(record.len as u64).saturating_sub(self.directory.at);
        if let Some(mut row) = self.held.take() {
            if row.open.as_deref() == Some(record.name) {
                row.next = next;
                if record.continues() {
                    self.held = Some(row);
                    return ControlFlow::Continue(());
                }
                return visit(&row);
            }
            let what = "file section (the last one is missing), of the record";
            self.damaged(Error::corrupt(NAME, what, row.node.0), false);
            visit(&row)?;
        }
        let in_root = self.directory.at == self.iso.root_self;
        let Some(row) = self.iso.row(record, next, in_root) else { return ControlFlow::Continue(()) };
        // The record of a directory may carry the flag too; it has one section all the same.
        if row.open.is_some() && row.kind != Kind::Directory {
            self.held = Some(row);
            return ControlFlow::Continue(());
        }
        visit(&row)
    }
}
