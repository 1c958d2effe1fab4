//! Journal replay, into memory: what a crash left in the log is shown as if it had been written home.
//!
//! ```text
//!   superblock | descriptor: tag tag tag  block block block  revoke  commit | descriptor ... commit |
//!                s_start ^ the log is a ring from s_first to s_maxlen, transactions in their order
//! ```
//!
//! Spec: `fs/jbd2/recovery.c` of Linux and the ext4 wiki, "Journal (jbd2)"; all numbers are
//! big-endian. Nothing is copied: [`Replayed`] remembers, for each block of the volume that a good
//! transaction holds, where in the log its newest copy lies.

use std::collections::HashMap;

use crate::bytes::Record;
use crate::device::mapped::{Mapping, Place};
use crate::device::{BlockDevice, Device, Extent, read_vec};
use crate::error::{Error, Result};

use super::Ext;
use super::checksum::{crc32_be, crc32c, crc32c_without};
use super::inode::Inode;
use super::map::FileMap;

const MAGIC: u32 = 0xc03b_3998;
const COMPAT_CHECKSUM: u32 = 0x1;
const INCOMPAT_REVOKE: u32 = 0x1;
const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_ASYNC_COMMIT: u32 = 0x4;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
const TAG_ESCAPED: u16 = 1;
const TAG_SAME_UUID: u16 = 2;
const TAG_LAST: u16 = 8;
/// Blocks that the fast commit area takes when the superblock does not say.
const FAST_COMMIT_BLOCKS: u32 = 256;
/// The tag that a fast commit starts with.
const FAST_COMMIT_HEAD: u16 = 9;
/// Below this many blocks a log has no fast commit area.
const SMALLEST_LOG: u32 = 1024;
/// Blocks of a log that are looked at: four times the largest log that mke2fs makes by itself.
const MOST_BLOCKS: u32 = 1 << 20;
/// Revocations that are kept: a log of a gigabyte has some thousand.
const MOST_REVOCATIONS: usize = 1 << 22;

/// Where the newest copy of a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Copy {
    /// Block of the volume.
    block: u64,
    /// Byte of the volume at which the copy lies.
    at: u64,
    /// Its first four bytes were the log's magic number and are stored as zeros.
    escaped: bool,
}

/// What a replay came to.
pub struct Outcome {
    /// The volume with the log's blocks in place; `None` when the log holds nothing.
    pub device: Option<Device>,
    /// What an examiner should know.
    pub notes: Vec<String>,
}

/// Replays the journal of a volume that needs it.
pub fn replay(ext: &Ext) -> Outcome {
    let mut notes = Vec::new();
    let device = match Log::open(ext) {
        Ok(Some(log)) => log.run(&mut notes).map(|blocks| {
            let size = u64::from(ext.superblock.block_size);
            std::sync::Arc::new(Replayed { below: ext.disk.clone(), blocks, size }) as Device
        }),
        Ok(None) => {
            notes.push("the journal is empty: nothing to replay".to_owned());
            None
        }
        Err(error) => {
            notes.push(format!("the journal was not replayed: {error}"));
            None
        }
    };
    Outcome { device, notes }
}

/// A journal whose superblock is in order.
struct Log<'a> {
    ext: &'a Ext,
    inode: std::sync::Arc<Inode>,
    compat: u32,
    incompat: u32,
    /// First block of the ring.
    first: u32,
    /// One past the last block of the ring.
    end: u32,
    /// Where the oldest transaction starts.
    start: u32,
    /// Its number.
    sequence: u32,
    checksum_seed: u32,
}

/// A tag of a descriptor block: one block of the transaction.
#[derive(Debug, Clone, Copy)]
struct Tag {
    block: u64,
    flags: u16,
    checksum: u32,
}

/// How much of a log is looked at.
struct Budget {
    blocks: u32,
    revocations: usize,
}

/// What a committed transaction holds.
#[derive(Default)]
struct Transaction {
    copies: Vec<Copy>,
    revoked: Vec<u64>,
}

impl<'a> Log<'a> {
    /// `None` when the log was emptied.
    fn open(ext: &'a Ext) -> Result<Option<Self>> {
        let number = ext.superblock.journal_inode;
        if number == 0 {
            return Err(Error::unsupported("ext", "a journal on another device"));
        }
        let inode = ext.inode(number)?;
        let mut this =
            Self { ext, inode, compat: 0, incompat: 0, first: 0, end: 0, start: 0, sequence: 0, checksum_seed: 0 };
        let (at, block) = this.read(0)?;
        let raw = Record::new("ext", "journal superblock", at, &block);
        let version = raw.be32(4)?;
        if raw.be32(0)? != MAGIC || !matches!(version, 3 | 4) {
            return Err(raw.corrupt_field("magic number"));
        }
        if raw.be32(12)? != ext.superblock.block_size {
            return Err(raw.corrupt_field("block size"));
        }
        if version == 4 {
            (this.compat, this.incompat) = (raw.be32(36)?, raw.be32(40)?);
        }
        let known = INCOMPAT_REVOKE
            | INCOMPAT_64BIT
            | INCOMPAT_ASYNC_COMMIT
            | INCOMPAT_CSUM_V2
            | INCOMPAT_CSUM_V3
            | INCOMPAT_FAST_COMMIT;
        if this.incompat & !known != 0 {
            return Err(Error::unsupported("ext", format!("journal feature {:#x}", this.incompat & !known)));
        }
        if this.has_checksums() && crc32c_without(!0, raw.bytes(0, 1024)?, 252, 4) != raw.be32(252)? {
            return Err(raw.corrupt_field("checksum"));
        }
        this.checksum_seed = crc32c(!0, raw.bytes(48, 16)?);
        (this.end, this.first, this.sequence, this.start) =
            (raw.be32(16)?, raw.be32(20)?, raw.be32(24)?, raw.be32(28)?);
        let blocks = this.inode.attributes.size.checked_div(ext.superblock.block_size.into()).unwrap_or(0);
        if u64::from(this.end) > blocks || this.first == 0 || this.first >= this.end {
            return Err(raw.corrupt_field("length"));
        }
        if this.incompat & INCOMPAT_FAST_COMMIT != 0 {
            let fast = Some(raw.be32(84)?).filter(|&count| count != 0).unwrap_or(FAST_COMMIT_BLOCKS);
            if let Some(rest) = this.end.checked_sub(fast)
                && rest >= SMALLEST_LOG
            {
                this.end = rest;
            }
        }
        if this.start == 0 && !this.has_fast_commits(this.sequence) {
            return Ok(None);
        }
        if this.start != 0 && (this.start < this.first || this.start >= this.end) {
            return Err(raw.corrupt_field("start"));
        }
        Ok(Some(this))
    }

    fn has_checksums(&self) -> bool {
        self.incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) != 0
    }

    /// Whether the fast commit area starts with the head of changes to transaction `number`, which
    /// was still open. The block behind the ring is left out, as the kernel does.
    fn has_fast_commits(&self, number: u32) -> bool {
        let head = || -> Result<bool> {
            let (at, block) = self.read(self.end.saturating_add(1))?;
            let raw = Record::new("ext", "fast commit", at, &block);
            Ok(raw.le16(0)? == FAST_COMMIT_HEAD && raw.le32(8)? == number)
        };
        self.incompat & INCOMPAT_FAST_COMMIT != 0 && head().unwrap_or(false)
    }

    /// A block of the log, with its place on the volume.
    fn read(&self, block: u32) -> Result<(u64, Vec<u8>)> {
        let at = self.place(block)?;
        let len = usize::try_from(self.ext.superblock.block_size).map_err(|_| Error::Invalid)?;
        Ok((at, read_vec(self.ext.disk.as_ref(), at, len)?))
    }

    fn place(&self, block: u32) -> Result<u64> {
        let offset = self.ext.superblock.byte_of(block.into());
        match (FileMap { ext: self.ext, inode: &self.inode }).map(offset)?.place {
            Place::At(at) => Ok(at),
            _ => Err(self.inode.corrupt("hole in the journal")),
        }
    }

    fn next(&self, block: u32) -> u32 {
        let next = block.saturating_add(1);
        if next >= self.end { self.first } else { next }
    }

    /// All good transactions, oldest first, as one list of copies sorted by block.
    fn run(&self, notes: &mut Vec<String>) -> Option<Vec<Copy>> {
        let mut newest: HashMap<u64, (u32, Copy)> = HashMap::new();
        let mut revoked: HashMap<u64, u32> = HashMap::new();
        let (mut block, mut number, mut count) = (self.start, self.sequence, 0u32);
        // The ring is walked once, and has no more blocks than the device.
        let blocks = self.ext.disk.size().checked_div(self.ext.superblock.block_size.into()).unwrap_or(0);
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX).min(MOST_BLOCKS);
        let ring = self.end.saturating_sub(self.first);
        let looked_at = ring.min(blocks);
        let mut budget = Budget { blocks: looked_at, revocations: MOST_REVOCATIONS };
        while block != 0 {
            match self.transaction(block, number, &mut budget) {
                Ok(Some((transaction, next))) => {
                    for copy in transaction.copies {
                        newest.insert(copy.block, (number, copy));
                    }
                    for block in transaction.revoked {
                        revoked.insert(block, number);
                    }
                    count = count.saturating_add(1);
                    number = number.wrapping_add(1);
                    block = next;
                }
                Ok(None) => break,
                Err(error) => {
                    notes.push(format!(
                        "transaction {number} of the journal is damaged ({error}): shown is the state before it"
                    ));
                    break;
                }
            }
        }
        // A block that was revoked by the same or a later transaction keeps what is at home. The
        // older copies of it are no better than the newest.
        newest.retain(|block, (written, _)| {
            revoked.get(block).is_none_or(|&revoked| written.wrapping_sub(revoked).cast_signed() > 0)
        });
        let mut copies: Vec<Copy> = newest.into_values().map(|(_, copy)| copy).collect();
        copies.sort_unstable_by_key(|copy| copy.block);
        notes.push(format!("journal replayed in memory: {count} transactions, {} blocks", copies.len()));
        if budget.blocks == 0 && looked_at < ring {
            notes.push(format!(
                "the journal has {ring} blocks, of which {looked_at} were looked at: later changes may be missing"
            ));
        }
        if self.has_fast_commits(number) {
            notes
                .push("the journal holds fast commits, which were not replayed: the latest changes are missing".into());
        }
        Some(copies)
    }

    /// The transaction that starts at `block`, with the block behind it; `None` where the log ends.
    fn transaction(&self, mut block: u32, number: u32, budget: &mut Budget) -> Result<Option<(Transaction, u32)>> {
        let mut transaction = Transaction::default();
        let mut damage: Option<Error> = None;
        let mut checksum = !0u32;
        loop {
            let Some(left) = budget.blocks.checked_sub(1) else { return Ok(None) };
            budget.blocks = left;
            let (at, bytes) = self.read(block)?;
            let raw = Record::new("ext", "journal block", at, &bytes);
            block = self.next(block);
            if raw.be32(0)? != MAGIC || raw.be32(8)? != number {
                return Ok(None);
            }
            match raw.be32(4)? {
                1 => {
                    if !self.tail_is_right(&raw)? {
                        damage.get_or_insert_with(|| raw.corrupt_field("descriptor checksum"));
                    }
                    checksum = if self.compat & COMPAT_CHECKSUM != 0 { crc32_be(checksum, &bytes) } else { checksum };
                    for tag in self.tags(&raw)? {
                        let Some(left) = budget.blocks.checked_sub(1) else { return Ok(None) };
                        budget.blocks = left;
                        let at = if self.has_checksums() || self.compat & COMPAT_CHECKSUM != 0 {
                            let (at, copy) = self.read(block)?;
                            checksum = crc32_be(checksum, &copy);
                            if !self.copy_is_right(&tag, &copy, number) {
                                damage.get_or_insert_with(|| Error::corrupt("ext", "journal block (checksum)", at));
                            }
                            at
                        } else {
                            self.place(block)?
                        };
                        block = self.next(block);
                        let escaped = tag.flags & TAG_ESCAPED != 0;
                        transaction.copies.push(Copy { block: tag.block, at, escaped });
                    }
                }
                2 => {
                    if !self.commit_is_right(&raw, checksum)? {
                        damage.get_or_insert_with(|| raw.corrupt_field("commit checksum"));
                    }
                    // Only a commit makes damage matter: without one the log simply ends here.
                    return damage.map_or(Ok(Some((transaction, block))), Err);
                }
                5 => {
                    if !self.tail_is_right(&raw)? {
                        damage.get_or_insert_with(|| raw.corrupt_field("revoke checksum"));
                    }
                    let before = transaction.revoked.len();
                    self.revocations(&raw, &mut transaction.revoked)?;
                    let more = transaction.revoked.len().saturating_sub(before);
                    budget.revocations = budget.revocations.checked_sub(more).ok_or_else(|| {
                        Error::unsupported("ext", format!("a journal with more than {MOST_REVOCATIONS} revocations"))
                    })?;
                }
                _ => return Ok(None),
            }
        }
    }

    fn tags(&self, raw: &Record<'_>) -> Result<Vec<Tag>> {
        let wide = self.incompat & INCOMPAT_64BIT != 0;
        let v3 = self.incompat & INCOMPAT_CSUM_V3 != 0;
        let v2 = if self.incompat & INCOMPAT_CSUM_V2 != 0 { 2 } else { 0 };
        let size: usize = match (v3, wide) {
            (true, _) => 16,
            (false, true) => 12usize.saturating_add(v2),
            (false, false) => 8usize.saturating_add(v2),
        };
        let end = raw.len().saturating_sub(if self.has_checksums() { 4 } else { 0 });
        let mut tags = Vec::new();
        let mut offset = 12usize;
        while offset.saturating_add(size) <= end {
            let at = |field: usize| offset.saturating_add(field);
            let flags = raw.be16(at(6))?;
            let high = if wide { u64::from(raw.be32(at(8))?) << 32 } else { 0 };
            let checksum = if v3 { raw.be32(at(12))? } else { raw.be16(at(4))?.into() };
            tags.push(Tag { block: u64::from(raw.be32(offset)?) | high, flags, checksum });
            offset = at(size);
            if flags & TAG_SAME_UUID == 0 {
                offset = offset.saturating_add(16);
            }
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        Ok(tags)
    }

    fn revocations(&self, raw: &Record<'_>, revoked: &mut Vec<u64>) -> Result<()> {
        let wide = self.incompat & INCOMPAT_64BIT != 0;
        let size = if wide { 8 } else { 4 };
        let used = usize::try_from(raw.be32(12)?).map_err(|_| raw.corrupt())?;
        let records = raw.bytes(16, used.saturating_sub(16))?;
        for record in records.chunks_exact(size) {
            let record = Record::new("ext", "revoke record", raw.at(), record);
            revoked.push(if wide { record.be64(0)? } else { record.be32(0)?.into() });
        }
        Ok(())
    }

    /// The checksum in the last four bytes of a descriptor or revoke block.
    fn tail_is_right(&self, raw: &Record<'_>) -> Result<bool> {
        if !self.has_checksums() {
            return Ok(true);
        }
        let tail = raw.len().saturating_sub(4);
        Ok(crc32c_without(self.checksum_seed, raw.as_bytes(), tail, 4) == raw.be32(tail)?)
    }

    fn copy_is_right(&self, tag: &Tag, bytes: &[u8], number: u32) -> bool {
        if !self.has_checksums() {
            return true;
        }
        let sum = crc32c(crc32c(self.checksum_seed, &number.to_be_bytes()), bytes);
        if self.incompat & INCOMPAT_CSUM_V3 != 0 { sum == tag.checksum } else { sum & 0xffff == tag.checksum }
    }

    /// `checksum` is that of all the transaction's blocks, for the oldest kind.
    fn commit_is_right(&self, raw: &Record<'_>, checksum: u32) -> Result<bool> {
        if self.has_checksums() {
            return Ok(crc32c_without(self.checksum_seed, raw.as_bytes(), 16, 4) == raw.be32(16)?);
        }
        if self.compat & COMPAT_CHECKSUM == 0 {
            return Ok(true);
        }
        let (kind, size, stored) = (raw.u8(12)?, raw.u8(13)?, raw.be32(16)?);
        Ok((kind, size, stored) == (0, 0, 0) || (kind, size, stored) == (1, 4, checksum))
    }
}

/// A volume with the blocks of its log in place.
struct Replayed {
    below: Device,
    /// Sorted by block.
    blocks: Vec<Copy>,
    /// Bytes of a block.
    size: u64,
}

impl Replayed {
    /// Reads around and out of the log; `read` reads the device below.
    fn read_with(
        &self,
        mut buf: &mut [u8],
        mut offset: u64,
        read: &dyn Fn(&mut [u8], u64) -> Result<()>,
    ) -> Result<()> {
        crate::device::check_range(buf.len(), offset, self.below.size())?;
        while !buf.is_empty() {
            let block = offset.checked_div(self.size).unwrap_or(0);
            let within = offset.checked_rem(self.size).unwrap_or(0);
            let next = self.blocks.partition_point(|copy| copy.block < block);
            let copy = self.blocks.get(next);
            let (len, copy) = match copy {
                Some(copy) if copy.block == block => (self.size.saturating_sub(within), Some(copy)),
                Some(copy) => (copy.block.saturating_mul(self.size).saturating_sub(offset), None),
                None => (u64::MAX, None),
            };
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(buf.len());
            let (now, later) = buf.split_at_mut(len);
            match copy {
                None => read(now, offset)?,
                Some(copy) => {
                    read(now, copy.at.saturating_add(within))?;
                    if copy.escaped {
                        let first = usize::try_from(within).unwrap_or(usize::MAX);
                        for (byte, magic) in now.iter_mut().zip(MAGIC.to_be_bytes().into_iter().skip(first)) {
                            *byte = magic;
                        }
                    }
                }
            }
            buf = later;
            offset = offset.saturating_add(len as u64);
        }
        Ok(())
    }
}

impl BlockDevice for Replayed {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn sector_size(&self) -> u32 {
        self.below.sector_size()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read_with(buf, offset, &|buf, offset| self.below.read_exact_at(buf, offset))
    }

    fn read_bulk_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read_with(buf, offset, &|buf, offset| self.below.read_bulk_at(buf, offset))
    }

    fn extent(&self, offset: u64) -> Result<Extent> {
        Ok(Extent { stored: true, len: self.size().saturating_sub(offset) })
    }
}
