//! The hash index of big directories: a tree over the blocks of rows, sorted by the names' hashes.
//!
//! ```text
//!   block 0   row "."  row ".."  root info: hash version, length, levels
//!             limit, count, block | hash, block | hash, block ...
//!   interior  row without an inode  limit, count, block | hash, block ...
//!   leaf      rows, in any order
//! ```
//!
//! A hash with its lowest bit set says that names of the same hash started in the leaf before.

use std::sync::Arc;

use crate::bytes::Record;
use crate::device::mapped::{Mapping, Place};
use crate::device::read_vec;
use crate::error::{Error, Result};

use super::Ext;
use super::directory::Walk;
use super::hash::HashVersion;
use super::inode::Inode;
use super::map::FileMap;
use super::superblock::incompat;

/// Where the root info starts, behind "." and "..".
const ROOT_INFO: usize = 24;
/// Where an interior block's entries start, behind the empty row.
const NODE_ENTRIES: usize = 8;

/// One level of the way down: the block's entries, and which one was taken.
struct Level {
    entries: Vec<(u32, u32)>,
    taken: usize,
}

/// Looks a name up. An error says that the index cannot be used, and nothing about the name.
pub fn find(ext: &Ext, dir: &Arc<Inode>, name: &[u8]) -> Result<Option<u32>> {
    let root = read_block(ext, dir, 0)?;
    let raw = Record::new("ext", "directory index", dir.at, &root);
    let (hash_version, info_len, levels) = (raw.u8(28)?, raw.u8(29)?, raw.u8(30)?);
    let most = if ext.superblock.has_incompat(incompat::LARGEDIR) { 3 } else { 2 };
    if levels >= most || raw.le32(ROOT_INFO)? != 0 || info_len < 8 {
        return Err(raw.corrupt_field("root"));
    }
    let version = ext.superblock.hash_version(hash_version).ok_or_else(|| raw.corrupt_field("hash version"))?;
    let (hash, _) = version.hash(name, ext.superblock.hash_seed);
    let mut path = vec![level(&raw, ROOT_INFO.saturating_add(info_len.into()), hash)?];
    for _ in 0..levels {
        let block = taken(&path)?;
        path.push(read_level(ext, dir, block, hash)?);
    }
    // No more leaves than the directory has blocks.
    let mut budget = dir.attributes.size.checked_div(ext.superblock.block_size.into()).unwrap_or(0);
    loop {
        let block = taken(&path)?;
        let bytes = read_block(ext, dir, block)?;
        let mut found = None;
        let mut walk = Walk::default();
        ext.block(dir, &bytes, ext.superblock.byte_of(block.into()), 0, &mut walk, &mut |row| {
            if row.name == name {
                found = Some(row.inode);
            }
            found.is_none()
        });
        if let Some(found) = found {
            return Ok(Some(found));
        }
        if let Some(error) = walk.damage {
            return Err(error);
        }
        budget = budget.checked_sub(1).ok_or_else(|| raw.corrupt_field("loop"))?;
        if !advance(ext, dir, &mut path, hash)? {
            return Ok(None);
        }
    }
}

/// Goes on to the next leaf when names of this hash continue there.
fn advance(ext: &Ext, dir: &Inode, path: &mut [Level], hash: u32) -> Result<bool> {
    let Some(depth) = path.iter().rposition(|level| level.taken.saturating_add(1) < level.entries.len()) else {
        return Ok(false);
    };
    let Some(level) = path.get_mut(depth) else { return Ok(false) };
    level.taken = level.taken.saturating_add(1);
    let Some(&(next, mut block)) = level.entries.get(level.taken) else { return Ok(false) };
    if next & !1 != hash {
        return Ok(false);
    }
    for lower in path.iter_mut().skip(depth.saturating_add(1)) {
        *lower = read_level(ext, dir, block, hash)?;
        lower.taken = 0;
        block = lower.entries.first().map_or(0, |&(_, block)| block);
    }
    Ok(true)
}

fn taken(path: &[Level]) -> Result<u32> {
    path.last().and_then(|level| level.entries.get(level.taken)).map(|&(_, block)| block).ok_or(Error::Invalid)
}

fn read_level(ext: &Ext, dir: &Inode, block: u32, hash: u32) -> Result<Level> {
    let bytes = read_block(ext, dir, block)?;
    level(&Record::new("ext", "directory index", dir.at, &bytes), NODE_ENTRIES, hash)
}

/// The entries from `start` on; the first one's hash is the place of limit and count, and it stands
/// for all hashes below the second's.
fn level(raw: &Record<'_>, start: usize, hash: u32) -> Result<Level> {
    let (limit, count) = (raw.le16(start)?, raw.le16(start.saturating_add(2))?);
    if count == 0 || count > limit {
        return Err(raw.corrupt_field("count"));
    }
    let bytes = raw.bytes(start, usize::from(count).saturating_mul(8))?;
    let mut entries = Vec::with_capacity(count.into());
    for (index, entry) in bytes.chunks_exact(8).enumerate() {
        let entry = Record::new("ext", "directory index entry", raw.at(), entry);
        let key = if index == 0 { 0 } else { entry.le32(0)? };
        entries.push((key, entry.le32(4)? & 0x0fff_ffff));
    }
    let taken = entries.partition_point(|&(key, _)| key <= hash).saturating_sub(1);
    Ok(Level { entries, taken })
}

fn read_block(ext: &Ext, dir: &Inode, block: u32) -> Result<Vec<u8>> {
    let offset = ext.superblock.byte_of(block.into());
    if offset >= dir.attributes.size {
        return Err(dir.corrupt("directory index"));
    }
    let run = FileMap { ext, inode: dir }.map(offset)?;
    let Place::At(place) = run.place else { return Err(dir.corrupt("hole in a directory")) };
    let len = usize::try_from(ext.superblock.block_size).map_err(|_| Error::Invalid)?;
    read_vec(ext.disk.as_ref(), place, len)
}

/// The hash that a directory's names have: its index's, or else the volume's.
pub fn version_of(ext: &Ext, dir: &Inode) -> Option<HashVersion> {
    let indexed = dir.has_flag(super::inode::flag::INDEX);
    let stored = if indexed { read_block(ext, dir, 0).ok().and_then(|block| block.get(28).copied()) } else { None };
    ext.superblock.hash_version(stored.unwrap_or(ext.superblock.default_hash))
}
