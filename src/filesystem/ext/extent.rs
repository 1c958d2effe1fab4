//! Extent trees: sorted runs of blocks, in nodes of which the first lies in the inode.
//!
//! ```text
//!   header  magic f30a, entries, max, depth
//!   depth 0: (first block of the file, length, first block on the volume); a length above 32,768
//!            is of blocks that were never written and read as zeros
//!   else:    (first block of the file, block of the node below)
//! ```
//!
//! Spec: the ext4 wiki, "Extent Tree". A file is walked node by node for each run: nodes are kept
//! in the file system's cache, and no list of a whole file's runs is ever made.

use std::sync::Arc;

use crate::bytes::Record;
use crate::device::read_vec;
use crate::error::{Error, Result};
use crate::filesystem::Kind;

use super::Ext;
use super::checksum::crc32c;
use super::inode::Inode;
use super::map::Span;

/// The kernel's own bound: five levels reach any file with the smallest block.
const MAX_DEPTH: u16 = 5;
const HEADER: usize = 12;
const ENTRY: usize = 12;
/// Longer lengths are of unwritten extents, this much too large.
const MAX_INIT_LEN: u16 = 32768;

/// A node of an extent tree.
#[derive(Debug, Clone)]
pub struct Node {
    /// 0 for a leaf.
    depth: u16,
    entries: Vec<Entry>,
}

/// A run of blocks, or (with length 0) the node below.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// First block of the file.
    block: u32,
    /// Blocks of the run.
    len: u16,
    unwritten: bool,
    /// First block on the volume.
    place: u64,
}

impl Node {
    /// Room that its entries take in memory, in bytes.
    pub fn weight(&self) -> usize {
        self.entries.capacity().saturating_mul(size_of::<Entry>())
    }

    /// The root, in `i_block`.
    pub fn parse_root(inode: &Inode) -> Result<Self> {
        Self::parse(&Record::new("ext", "extent tree root", inode.at.saturating_add(0x28), &inode.block))
    }

    fn parse(raw: &Record<'_>) -> Result<Self> {
        let (magic, count, max, depth) = (raw.le16(0)?, raw.le16(2)?, raw.le16(4)?, raw.le16(6)?);
        if magic != 0xf30a {
            return Err(raw.corrupt_field("magic number"));
        }
        if depth > MAX_DEPTH || max == 0 || count > max || (count == 0 && depth > 0) {
            return Err(raw.corrupt_field("header"));
        }
        let mut entries: Vec<Entry> = Vec::new();
        for bytes in raw.bytes(HEADER, usize::from(count).saturating_mul(ENTRY))?.chunks_exact(ENTRY) {
            let entry = Entry::parse(&Record::new("ext", "extent", raw.at(), bytes), depth)?;
            let ordered = entries.last().is_none_or(|last| {
                u64::from(entry.block) >= u64::from(last.block).saturating_add(u64::from(last.len).max(1))
            });
            if !ordered {
                return Err(raw.corrupt_field("order"));
            }
            entries.push(entry);
        }
        Ok(Self { depth, entries })
    }

    /// A node below the root, through the cache.
    fn load(ext: &Ext, inode: &Inode, block: u64, parent: &Self, first: u32) -> Result<Arc<Self>> {
        let node = ext.nodes.get_or_make(&(inode.number, block), || {
            let at = ext.superblock.byte_of(block);
            if !ext.superblock.holds(block, 1) {
                return Err(inode.corrupt("extent tree"));
            }
            let len = usize::try_from(ext.superblock.block_size).map_err(|_| Error::Invalid)?;
            let bytes = read_vec(ext.disk.as_ref(), at, len)?;
            let raw = Record::new("ext", "extent tree node", at, &bytes);
            if ext.superblock.has_checksums() {
                let tail = HEADER.saturating_add(usize::from(raw.le16(4)?).saturating_mul(ENTRY));
                if crc32c(inode.checksum_seed, raw.bytes(0, tail)?) != raw.le32(tail)? {
                    return Err(raw.corrupt_field("checksum"));
                }
            }
            let node = Self::parse(&raw)?;
            let weight = node.weight() as u64;
            Ok((Arc::new(node), weight))
        })?;
        // Each level is one lower, so that no loop is possible; and a node belongs to one place.
        let fits = node.depth.checked_add(1) == Some(parent.depth)
            && node.entries.first().is_none_or(|entry| entry.block == first);
        if fits { Ok(node) } else { Err(inode.corrupt("extent tree")) }
    }

    /// The run that holds a block of the file.
    pub fn find(&self, ext: &Ext, inode: &Inode, block: u32) -> Result<Span> {
        let mut loaded: Arc<Self>;
        let mut node = self;
        // First block of the file that belongs to another branch.
        let mut end = 1u64 << 32;
        loop {
            let next = node.entries.partition_point(|entry| entry.block <= block);
            let limit = node.entries.get(next).map_or(end, |entry| end.min(entry.block.into()));
            let rest = limit.saturating_sub(block.into());
            let Some(entry) = next.checked_sub(1).and_then(|index| node.entries.get(index)) else {
                return Ok(Span { place: None, count: rest });
            };
            if node.depth == 0 {
                let within = u64::from(block.wrapping_sub(entry.block));
                let left = u64::from(entry.len).saturating_sub(within);
                if left == 0 {
                    return Ok(Span { place: None, count: rest });
                }
                if !ext.superblock.holds(entry.place, entry.len.into()) {
                    return Err(inode.corrupt("extent"));
                }
                // Linux reads the rows of a directory whether its blocks are marked as written or not.
                let stored = !entry.unwritten || inode.attributes.kind == Kind::Directory;
                let place = stored.then(|| entry.place.saturating_add(within));
                return Ok(Span { place, count: left.min(rest) });
            }
            end = limit;
            loaded = Self::load(ext, inode, entry.place, node, entry.block)?;
            node = &loaded;
        }
    }
}

impl Entry {
    fn parse(raw: &Record<'_>, depth: u16) -> Result<Self> {
        let block = raw.le32(0)?;
        if depth > 0 {
            let place = u64::from(raw.le32(4)?) | u64::from(raw.le16(8)?) << 32;
            return Ok(Self { block, len: 0, unwritten: false, place });
        }
        let ee_len = raw.le16(4)?;
        let (len, unwritten) = match ee_len.checked_sub(MAX_INIT_LEN) {
            Some(over @ 1..) => (over, true),
            _ => (ee_len, false),
        };
        if len == 0 || block.checked_add(u32::from(len).wrapping_sub(1)).is_none() {
            return Err(raw.corrupt_field("length"));
        }
        let place = u64::from(raw.le16(6)?) << 32 | u64::from(raw.le32(8)?);
        Ok(Self { block, len, unwritten, place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A leaf's header and its entries: (first block, length field, place).
    fn node(depth: u16, entries: &[(u32, u16, u32)]) -> Result<Node> {
        let mut bytes = Vec::new();
        for field in [0xf30a, entries.len() as u16, 4, depth, 0, 0] {
            bytes.extend(field.to_le_bytes());
        }
        for (block, len, place) in entries {
            bytes.extend(block.to_le_bytes());
            bytes.extend(len.to_le_bytes());
            bytes.extend([0, 0]);
            bytes.extend(place.to_le_bytes());
        }
        bytes.resize(60, 0);
        Node::parse(&Record::new("ext", "extent tree root", 0, &bytes))
    }

    #[test]
    fn a_length_above_32768_is_of_blocks_that_were_never_written() {
        let parsed = node(0, &[(0, 32768, 100), (32768, 32769, 9)]).unwrap();
        let shown: Vec<_> = parsed.entries.iter().map(|entry| (entry.len, entry.unwritten)).collect();
        assert_eq!(shown, [(32768, false), (1, true)]);
    }

    #[test]
    fn extents_that_overlap_go_back_wrap_or_are_empty_are_refused() {
        assert!(node(0, &[(0, 2, 100), (2, 1, 9)]).is_ok());
        for wrong in
            [[(0, 3, 100), (2, 1, 9)], [(5, 1, 100), (2, 1, 9)], [(0, 1, 5), (7, 0, 9)], [(0, 1, 5), (!0, 2, 9)]]
        {
            assert!(matches!(node(0, &wrong), Err(Error::Corrupt { .. })), "{wrong:?}");
        }
    }

    #[test]
    fn a_tree_deeper_than_any_file_needs_is_refused() {
        assert!(node(5, &[(0, 0, 100)]).is_ok());
        assert!(node(6, &[(0, 0, 100)]).is_err());
        assert!(node(1, &[]).is_err());
    }
}
