//! Directory blocks: rows of inode number, row length, name length, kind and name.
//!
//! ```text
//!   block:  row row row ... [checksum row: inode 0, length 12, kind de, checksum]
//!   index:  looks like one row without an inode that fills the block, or (block 0) like "." and ".."
//! ```
//!
//! A listing reads all blocks in order and so needs no index. A block that cannot be read does not
//! hide the others: their rows are given, and the error comes at the end.

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use crate::bytes::Record;
use crate::device::mapped::{Mapping, Place};
use crate::device::read_vec;
use crate::error::{Error, Result};
use crate::filesystem::Kind;

use super::Ext;
use super::checksum::crc32c;
use super::fold::fold;
use super::inode::{Contents, Inode, flag};
use super::map::FileMap;
use super::superblock::{compat, incompat};
use super::{crypt, htree};

/// Bytes of a directory that are read at once.
const PIECE: u64 = 32 << 10;
/// A name index beyond this many rows is not made: the directory is scanned for each name.
const MOST_INDEXED: usize = 1 << 20;
const CHECKSUM_ROW: usize = 12;

/// Rows start at multiples of four bytes.
const ROW_SHIFT: u32 = 2;

/// A row as stored.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// Byte of the directory at which it starts.
    pub start: u64,
    /// Byte of the directory at which the next row starts.
    pub next: u64,
    /// The inode.
    pub inode: u32,
    /// The name's bytes, encrypted in an encrypted directory.
    pub name: &'a [u8],
    /// The kind, where the volume stores kinds and this one is known.
    pub kind: Option<Kind>,
    /// Hashes stored behind the name, where it is both encrypted and case-folded.
    pub hash: Option<(u32, u32)>,
}

/// How a walk over a directory ended.
#[derive(Debug, Default)]
pub struct Walk {
    /// The first damage met.
    pub damage: Option<Error>,
    /// Whether the caller stopped it.
    pub stopped: bool,
}

/// Bytes of one directory that are looked through: the kernel's own bound is 2 GiB, and 4 GiB hold
/// some hundred million names.
const MOST_BYTES: u64 = 4 << 30;
/// Holes and unreadable blocks that are passed over in one walk, to find the rows behind them.
const MOST_GAPS: u32 = 1 << 16;

/// Where the rows of a directory are whose own index cannot be used: eight bytes a row, sorted by
/// the hash of the name as it is compared, then by place.
pub struct NameIndex {
    hasher: RandomState,
    rows: Vec<(u32, u32)>,
}

impl NameIndex {
    /// The upper half of a hash: names that share it are told apart by their rows.
    fn hash(&self, name: &[u8]) -> u32 {
        u32::try_from(self.hasher.hash_one(name) >> 32).unwrap_or_default()
    }

    /// Bytes of the directory at which rows with this hash start, in order.
    fn places(&self, hash: u32) -> impl Iterator<Item = u64> {
        let first = self.rows.partition_point(|row| row.0 < hash);
        let same = self.rows.get(first..).unwrap_or_default().iter().take_while(move |row| row.0 == hash);
        same.map(|row| u64::from(row.1) << ROW_SHIFT)
    }
}

/// Takes rows; `false` stops.
pub type RowSink<'a> = dyn FnMut(Row<'_>) -> bool + 'a;

impl Ext {
    /// Gives the rows from byte `from` of a directory on, `.` and `..` among them.
    pub(super) fn walk(&self, inode: &Inode, from: u64, visit: &mut RowSink<'_>) -> Result<Walk> {
        if inode.attributes.kind != Kind::Directory {
            return Err(Error::NotDirectory);
        }
        let mut walk = Walk::default();
        if let Contents::Inline(rest) = &inode.contents {
            // The parent's number takes the place of "." and "..".
            self.rows(inode, inode.block.get(4..).unwrap_or_default(), 4, from, &mut walk, visit);
            if !walk.stopped {
                self.rows(inode, rest, 60, from, &mut walk, visit);
            }
            return Ok(walk);
        }
        let block = u64::from(self.superblock.block_size).max(1);
        let size = inode.attributes.size;
        // "." and ".." are in every one.
        if size == 0 || !size.is_multiple_of(block) {
            walk.damage = Some(inode.corrupt("directory size"));
        }
        let map = FileMap { ext: self, inode };
        let mut offset = from.saturating_sub(from.checked_rem(block).unwrap_or(0));
        // No directory in order has more blocks than the device, but the image says how large that is.
        let mut budget = self.disk.size().saturating_add(block).min(MOST_BYTES);
        let mut gaps = 0u32;
        while offset < size && !walk.stopped {
            if budget == 0 || gaps > MOST_GAPS {
                walk.damage.get_or_insert_with(|| inode.corrupt("directory size"));
                break;
            }
            let run = match map.map(offset) {
                Ok(run) => run,
                Err(error) => {
                    walk.damage.get_or_insert(error);
                    // Another branch of the tree may be whole; the damaged one has no known length.
                    offset = offset.saturating_add(block);
                    gaps = gaps.saturating_add(1);
                    continue;
                }
            };
            let Place::At(place) = run.place else {
                walk.damage.get_or_insert_with(|| inode.corrupt("hole in a directory"));
                offset = offset.saturating_add(run.len);
                gaps = gaps.saturating_add(1);
                continue;
            };
            let len = run.len.min(PIECE.max(block)).min(size.saturating_sub(offset).next_multiple_of(block));
            self.piece(inode, (offset, place, len), from, &mut walk, visit);
            offset = offset.saturating_add(len);
            budget = budget.saturating_sub(len);
        }
        Ok(walk)
    }

    /// Reads some blocks at once; one by one when that fails.
    fn piece(
        &self,
        inode: &Inode,
        (offset, place, len): (u64, u64, u64),
        from: u64,
        walk: &mut Walk,
        visit: &mut RowSink<'_>,
    ) {
        let block = u64::from(self.superblock.block_size).max(1);
        let Ok(size) = usize::try_from(block) else { return };
        let whole = usize::try_from(len).ok().and_then(|len| read_vec(self.disk.as_ref(), place, len).ok());
        let mut done = 0u64;
        while done < len && !walk.stopped {
            let start = usize::try_from(done).unwrap_or(usize::MAX);
            let kept = whole.as_ref().and_then(|whole| whole.get(start..start.saturating_add(size)));
            let at = offset.saturating_add(done);
            match kept {
                Some(bytes) => self.block(inode, bytes, at, from, walk, visit),
                None => match read_vec(self.disk.as_ref(), place.saturating_add(done), size) {
                    Ok(bytes) => self.block(inode, &bytes, at, from, walk, visit),
                    Err(error) => {
                        walk.damage.get_or_insert(error);
                    }
                },
            }
            done = done.saturating_add(block);
        }
    }

    /// The rows of one block, when its checksum is right.
    pub(super) fn block(
        &self,
        inode: &Inode,
        bytes: &[u8],
        offset: u64,
        from: u64,
        walk: &mut Walk,
        visit: &mut RowSink<'_>,
    ) {
        if !self.checksum_is_right(inode, bytes, offset) {
            walk.damage.get_or_insert_with(|| inode.corrupt("checksum of a directory block"));
            return;
        }
        self.rows(inode, bytes, offset, from, walk, visit);
    }

    fn checksum_is_right(&self, inode: &Inode, bytes: &[u8], offset: u64) -> bool {
        if !self.superblock.has_checksums() {
            return true;
        }
        let raw = Record::new("ext", "directory block", inode.at, bytes);
        let check = || -> Result<bool> {
            // Blocks of the index end in another kind of checksum; a damaged index only costs time.
            let index = offset == 0 || (raw.le32(0)? == 0 && self.row_len(raw.le16(4)?, bytes.len()) == bytes.len());
            if index && inode.has_flag(flag::INDEX) {
                return Ok(true);
            }
            let tail = bytes.len().saturating_sub(CHECKSUM_ROW);
            if raw.le32(tail)? != 0
                || raw.le16(tail.saturating_add(4))? != 12
                || raw.u8(tail.saturating_add(7))? != 0xde
            {
                return Ok(false);
            }
            let covered = raw.bytes(0, tail)?;
            Ok(crc32c(inode.checksum_seed, covered) == raw.le32(tail.saturating_add(8))?)
        };
        check().unwrap_or(false)
    }

    /// A row's length. Blocks of 64 KiB do not fit into sixteen bits: there 0 and 65,535 mean all
    /// of the block, and the two lowest bits are the highest.
    fn row_len(&self, stored: u16, block: usize) -> usize {
        if block < 1 << 16 {
            return stored.into();
        }
        match stored {
            0 | u16::MAX => block,
            other => usize::from(other & !3) | usize::from(other & 3) << 16,
        }
    }

    fn rows(&self, inode: &Inode, bytes: &[u8], base: u64, from: u64, walk: &mut Walk, visit: &mut RowSink<'_>) {
        let raw = Record::new("ext", "directory", inode.at, bytes);
        let mut offset = 0usize;
        while bytes.len().saturating_sub(offset) >= 8 {
            let row = match self.row(inode, &raw, base, offset) {
                Ok(row) => row,
                Err(_) => {
                    walk.damage.get_or_insert_with(|| inode.corrupt("directory row"));
                    return;
                }
            };
            // At least eight, checked when the row was read.
            offset = usize::try_from(row.next.saturating_sub(base)).unwrap_or(usize::MAX);
            if row.inode != 0 && !row.name.is_empty() && row.start >= from && !visit(row) {
                walk.stopped = true;
                return;
            }
        }
    }

    fn row<'a>(&self, inode: &Inode, raw: &Record<'a>, base: u64, offset: usize) -> Result<Row<'a>> {
        let at = |field: usize| offset.saturating_add(field);
        let number = raw.le32(offset)?;
        let len = self.row_len(raw.le16(at(4))?, raw.len());
        let name_len = usize::from(raw.u8(at(6))?);
        let file_type = raw.u8(at(7))?;
        if len < 8 || len & 3 != 0 || name_len.saturating_add(8) > len || number > self.superblock.inodes {
            return Err(raw.corrupt());
        }
        let next = at(len);
        if next > raw.len() {
            return Err(raw.corrupt());
        }
        let hashed = inode.has_flag(flag::ENCRYPT) && inode.has_flag(flag::CASEFOLD);
        let behind = at(8usize.saturating_add(name_len).next_multiple_of(4));
        let hash = if hashed && behind.saturating_add(8) <= next {
            Some((raw.le32(behind)?, raw.le32(behind.saturating_add(4))?))
        } else {
            None
        };
        let kind = if self.superblock.has_incompat(incompat::FILETYPE) { stored_kind(file_type) } else { None };
        let start = base.saturating_add(offset as u64);
        Ok(Row {
            start,
            next: base.saturating_add(next as u64),
            inode: number,
            name: raw.bytes(at(8), name_len)?,
            kind,
            hash,
        })
    }

    /// The name that a row is shown with; `None` for an encrypted name that is too short to be one.
    pub(super) fn shown_name<'a>(&self, dir: &Inode, row: &Row<'a>) -> Option<Cow<'a, [u8]>> {
        if !dir.has_flag(flag::ENCRYPT) || matches!(row.name, b"." | b"..") {
            return Some(row.name.into());
        }
        let hash = if row.hash.is_some() {
            row.hash
        } else if self.lists_by_hash(dir) {
            let version = dir.listing_hash.get_or_init(|| htree::version_of(self, dir));
            version.map(|version| version.hash(row.name, self.superblock.hash_seed))
        } else {
            None
        };
        crypt::nokey_name(row.name, hash.unwrap_or((0, 0))).map(Into::into)
    }

    /// Whether the kernel lists a directory by hash: then hashes are part of encrypted names.
    fn lists_by_hash(&self, dir: &Inode) -> bool {
        self.superblock.has_compat(compat::DIR_INDEX)
            && (dir.has_flag(flag::INDEX)
                || dir.attributes.size == u64::from(self.superblock.block_size)
                || matches!(dir.contents, Contents::Inline(_)))
    }

    /// The inode of a name.
    pub(super) fn find(&self, dir: &Arc<Inode>, name: &[u8]) -> Result<Option<u32>> {
        if dir.attributes.kind != Kind::Directory {
            return Err(Error::NotDirectory);
        }
        let plain = !dir.has_flag(flag::ENCRYPT) && !self.folds(dir);
        if plain && dir.has_flag(flag::INDEX) && self.superblock.has_compat(compat::DIR_INDEX) {
            // A damaged index is no reason to miss a name: the rows are all there.
            if let Ok(found) = htree::find(self, dir, name) {
                return Ok(found);
            }
        }
        let small = dir.attributes.size <= PIECE && plain;
        if !small && let Some(index) = self.name_index(dir)? {
            return match (self.find_in(&index, dir, name)?, self.damaged.get(&dir.number)) {
                (None, Some(error)) => Err(error),
                (found, _) => Ok(found),
            };
        }
        let name = self.compared(dir, name.into());
        let mut found = None;
        let walk = self.walk(dir, 0, &mut |row| {
            found = self.is_named(dir, &row, &name).then_some(row.inode);
            found.is_none()
        })?;
        match (found, walk.damage) {
            (None, Some(error)) => Err(error),
            (found, _) => Ok(found),
        }
    }

    /// The inode of a name, by the place of its row.
    fn find_in(&self, index: &NameIndex, dir: &Inode, name: &[u8]) -> Result<Option<u32>> {
        let name = self.compared(dir, name.into());
        let mut found = None;
        for place in index.places(index.hash(&name)) {
            let walk = self.walk(dir, place, &mut |row| {
                found = self.is_named(dir, &row, &name).then_some(row.inode);
                false
            })?;
            match (found, walk.damage) {
                (None, Some(error)) => return Err(error),
                (None, None) => {}
                (found, _) => return Ok(found),
            }
        }
        Ok(None)
    }

    /// Whether a row is that of a name, which is in the form that is compared.
    fn is_named(&self, dir: &Inode, row: &Row<'_>, name: &[u8]) -> bool {
        !matches!(row.name, b"." | b"..")
            && self.shown_name(dir, row).is_some_and(|shown| self.compared(dir, shown).as_ref() == name)
    }

    /// A name in the form in which names of its directory are compared.
    fn compared<'a>(&self, dir: &Inode, name: Cow<'a, [u8]>) -> Cow<'a, [u8]> {
        if self.folds(dir) { fold(&name).into() } else { name }
    }

    /// Whether names of a directory are compared without their case. Encrypted ones cannot be.
    fn folds(&self, dir: &Inode) -> bool {
        dir.has_flag(flag::CASEFOLD) && self.superblock.has_incompat(incompat::CASEFOLD) && !dir.has_flag(flag::ENCRYPT)
    }

    /// The places of all names of a directory; `None` when there are too many of them to be kept.
    fn name_index(&self, dir: &Inode) -> Result<Option<Arc<NameIndex>>> {
        self.names.get_or_make(&dir.number, || {
            let mut index = NameIndex { hasher: RandomState::new(), rows: Vec::new() };
            let walk = self.walk(dir, 0, &mut |row| {
                let Some(shown) = self.shown_name(dir, &row) else { return true };
                if !matches!(row.name, b"." | b"..") {
                    let Ok(place) = u32::try_from(row.start >> ROW_SHIFT) else { return false };
                    index.rows.push((index.hash(&self.compared(dir, shown)), place));
                }
                index.rows.len() < MOST_INDEXED
            })?;
            if let Some(error) = walk.damage {
                self.damaged.insert(dir.number, error, 128);
            }
            if walk.stopped {
                return Ok((None, 0));
            }
            // Of two equal names the first counts, as in a scan.
            index.rows.sort_unstable();
            index.rows.shrink_to_fit();
            let weight = size_of::<(u32, u32)>().saturating_mul(index.rows.len()) as u64;
            Ok((Some(Arc::new(index)), weight))
        })
    }
}

fn stored_kind(file_type: u8) -> Option<Kind> {
    Some(match file_type {
        1 => Kind::File,
        2 => Kind::Directory,
        3 => Kind::CharDevice,
        4 => Kind::BlockDevice,
        5 => Kind::Fifo,
        6 => Kind::Socket,
        7 => Kind::Symlink,
        _ => return None,
    })
}
