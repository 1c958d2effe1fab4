//! One object of the tree, put together from its records and what hangs on them.

use std::sync::Arc;

use super::directory::Directory;
use super::file::{MAX_SECTIONS, Sections};
use super::medium::SECTOR;
use super::record::DirectoryRecord;
use super::rockridge::RockRidge;
use super::zisofs::Packing;
use super::{BAD_SELF, Iso, NAME, time};
use crate::device::mapped::Mapping;
use crate::error::{Error, Result};
use crate::filesystem::{Attributes, Kind, NodeId};

/// A node, parsed.
pub(super) struct Node {
    pub(super) attributes: Attributes,
    pub(super) contents: Contents,
    /// AAIP fields, not yet parsed.
    pub(super) aaip: Vec<u8>,
    /// Byte position of its record.
    pub(super) at: u64,
}

/// What a node holds.
pub(super) enum Contents {
    Directory(Directory),
    File {
        sections: Sections,
        packing: Option<Packing>,
        /// Why the file's end cannot be read.
        trouble: Option<Error>,
    },
    Link(Result<Vec<u8>>),
    Nothing,
}

/// What a record is.
pub(super) fn kind_of(record: &DirectoryRecord<'_>, rock_ridge: Option<&RockRidge>) -> Kind {
    if record.is_directory() {
        return Kind::Directory;
    }
    let Some(rock_ridge) = rock_ridge else { return Kind::File };
    match rock_ridge.posix.and_then(|posix| posix.kind()) {
        Some(Kind::Directory) => Kind::File,
        Some(kind) => kind,
        None if rock_ridge.target.is_some() => Kind::Symlink,
        None => Kind::File,
    }
}

impl Iso {
    /// The node, from the cache or from the medium.
    pub(super) fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        self.nodes.get_or_make(&id.0, || {
            let node = self.parse_node(id)?;
            let links = if let Contents::Link(Ok(target)) = &node.contents { target.len() } else { 0 };
            let sections = if let Contents::File { sections, .. } = &node.contents { sections.weight() } else { 0 };
            let weight = sections.saturating_add(links.saturating_add(node.aaip.len()).saturating_add(400) as u64);
            Ok((Arc::new(node), weight))
        })
    }

    fn parse_node(&self, id: NodeId) -> Result<Node> {
        let at = id.0 & !BAD_SELF;
        let bytes = self.medium.record_bytes(at)?;
        let record = DirectoryRecord::parse(&bytes, at)?;
        let is_root_self = at == self.root_self;
        let rock_ridge = self.rock_ridge(&record, is_root_self);
        if let Some(block) = rock_ridge.as_ref().and_then(|rr| rr.child_link) {
            let place = self.medium.byte(block.into()).unwrap_or(at);
            return Err(Error::corrupt(NAME, "relocated directory (its record of itself)", place));
        }
        if record.is_directory() {
            return Ok(self.directory_node(id, &record, rock_ridge));
        }
        self.file_node(&record, rock_ridge)
    }

    fn directory_node(&self, id: NodeId, record: &DirectoryRecord<'_>, rock_ridge: Option<RockRidge>) -> Node {
        let at = if record.name == [0] && id.0 & BAD_SELF == 0 {
            Some(record.at)
        } else {
            self.medium.byte(self.directory_extent(record))
        };
        let len = record.data_len.choose(|len| len > 0 && self.medium.holds(record.extent.le, len.into()));
        let mut attributes = self.common(Kind::Directory, len.into(), record, rock_ridge.as_ref());
        attributes.blocks = Some(u64::from(len).div_ceil(512));
        let directory = Directory { at: at.unwrap_or(self.medium.device.size()), len: len.into() };
        let aaip = rock_ridge.map(|rr| rr.attributes).unwrap_or_default();
        Node { attributes, contents: Contents::Directory(directory), aaip, at: record.at }
    }

    fn file_node(&self, record: &DirectoryRecord<'_>, rock_ridge: Option<RockRidge>) -> Result<Node> {
        let kind = kind_of(record, rock_ridge.as_ref());
        let mut attributes = self.common(kind, 0, record, rock_ridge.as_ref());
        let mut rock_ridge = rock_ridge.unwrap_or_default();
        let contents = match kind {
            Kind::File => {
                let (sections, trouble) = self.sections(record)?;
                let trouble =
                    rock_ridge.sparse.map(|_| Error::unsupported(NAME, "a Rock Ridge sparse file (SF)")).or(trouble);
                let packing = rock_ridge.packing;
                attributes.size = rock_ridge.sparse.or(packing.map(|p| p.size)).unwrap_or(sections.size());
                attributes.blocks = Some(sections.size().div_ceil(512));
                Contents::File { sections, packing, trouble }
            }
            Kind::Symlink => {
                let missing = || Error::corrupt(NAME, "symbolic link (no SL field)", record.at);
                let target = rock_ridge.damage.take().map_or(rock_ridge.target.ok_or_else(missing), Err);
                attributes.size = target.as_ref().map_or(0, Vec::len) as u64;
                attributes.blocks = Some(0);
                Contents::Link(target)
            }
            _ => Contents::Nothing,
        };
        Ok(Node { attributes, contents, aaip: rock_ridge.attributes, at: record.at })
    }

    fn common(
        &self,
        kind: Kind,
        size: u64,
        record: &DirectoryRecord<'_>,
        rock_ridge: Option<&RockRidge>,
    ) -> Attributes {
        let recorded = time::short(record.time);
        let mut attributes = Attributes { modified: recorded, read_only: true, ..Attributes::new(kind, size) };
        if let Some(given) = self.options.permissions(kind) {
            (attributes.mode, attributes.read_only) = (Some(given), false);
        }
        let Some(rock_ridge) = rock_ridge else { return attributes };
        if let Some(posix) = rock_ridge.posix {
            attributes.read_only = false;
            attributes.mode = u16::try_from(posix.mode & 0o7777).ok();
            attributes.uid = Some(posix.uid);
            attributes.gid = Some(posix.gid);
            attributes.links = Some(posix.links);
        }
        if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            attributes.device = rock_ridge.device;
        }
        attributes.created = rock_ridge.times.created;
        attributes.modified = rock_ridge.times.modified.or(recorded);
        attributes.accessed = rock_ridge.times.accessed;
        attributes.changed = rock_ridge.times.changed;
        attributes
    }

    /// The sections of a file: its record and, as long as these say that more follows, the next
    /// ones. What is wrong behind the first is kept beside what was found.
    fn sections(&self, first: &DirectoryRecord<'_>) -> Result<(Sections, Option<Error>)> {
        let mut sections = Sections::default();
        sections.push(&self.medium, first)?;
        let mut goes_on = first.continues();
        let mut at = first.at.saturating_add(first.len as u64);
        let missing = || Error::corrupt(NAME, "file section (the last one is missing), of the record", first.at);
        for _ in 0..MAX_SECTIONS {
            if !goes_on {
                return Ok((sections, None));
            }
            let Some(bytes) = self.next_record(at) else { break };
            let at_record = bytes.0;
            let Ok(record) = DirectoryRecord::parse(&bytes.1, at_record) else { break };
            if record.name != first.name || record.is_directory() {
                break;
            }
            if let Err(error) = sections.push(&self.medium, &record) {
                return Ok((sections, Some(error)));
            }
            goes_on = record.continues();
            at = at_record.saturating_add(record.len as u64);
        }
        if goes_on { Ok((sections, Some(missing()))) } else { Ok((sections, None)) }
    }

    /// The record at `at`, or after the zeros that fill the rest of its sector.
    fn next_record(&self, at: u64) -> Option<(u64, Vec<u8>)> {
        let bytes = self.medium.record_bytes(at).ok()?;
        if bytes.first() != Some(&0) {
            return Some((at, bytes));
        }
        let at = at.checked_next_multiple_of(SECTOR)?;
        Some((at, self.medium.record_bytes(at).ok()?))
    }
}
