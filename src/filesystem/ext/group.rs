//! Group descriptors: where each group keeps its bitmaps and its inode table.
//!
//! ```text
//!   without meta_bg                        with it, from metagroup s_first_meta_bg on
//!   [sb][desc 0][desc 1]..  group 0        each metagroup's one descriptor block lies in its own
//!   [sb][desc 0][desc 1]..  backup groups  first group, copies in its second and its last
//! ```

use crate::bytes::Record;
use crate::device::{BlockDevice, read_vec};
use crate::error::{Error, Result};

use super::checksum::{crc16, crc32c, crc32c_without};
use super::superblock::{Superblock, incompat, ro_compat};

/// A group descriptor.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// Block of the block bitmap.
    pub block_bitmap: u64,
    /// Block of the inode bitmap.
    pub inode_bitmap: u64,
    /// First block of the inode table.
    pub inode_table: u64,
    /// Free clusters.
    pub free_clusters: u32,
    /// Free inodes.
    pub free_inodes: u32,
    /// Whether the stored checksum is right, or there is none.
    pub checksum_ok: bool,
}

impl Group {
    /// Field names and offsets: `struct ext4_group_desc`.
    fn parse(superblock: &Superblock, group: u64, at: u64, bytes: &[u8]) -> Result<Self> {
        let raw = Record::new("ext", "group descriptor", at, bytes);
        let wide = bytes.len() >= 64;
        let high32 = |field: usize| if wide { raw.le32(field).map(|high| u64::from(high) << 32) } else { Ok(0) };
        let high16 = |field: usize| if wide { raw.le16(field).map(|high| u32::from(high) << 16) } else { Ok(0) };
        Ok(Self {
            block_bitmap: u64::from(raw.le32(0x00)?) | high32(0x20)?,
            inode_bitmap: u64::from(raw.le32(0x04)?) | high32(0x24)?,
            inode_table: u64::from(raw.le32(0x08)?) | high32(0x28)?,
            free_clusters: u32::from(raw.le16(0x0c)?) | high16(0x2c)?,
            free_inodes: u32::from(raw.le16(0x0e)?) | high16(0x2e)?,
            checksum_ok: checksum(superblock, group, bytes).is_none_or(|sum| raw.le16(0x1e).is_ok_and(|s| s == sum)),
        })
    }

    /// Whether the inode table lies on the volume.
    pub fn is_possible(&self, superblock: &Superblock) -> bool {
        superblock.holds(self.inode_table, superblock.inode_table_blocks())
    }

    /// The descriptor of a group; a backup's where the first copy is impossible.
    pub fn read(device: &dyn BlockDevice, superblock: &Superblock, group: u64) -> Result<Self> {
        let first = Self::read_at(device, superblock, group, primary(superblock, group));
        if let Ok(found) = first
            && found.checksum_ok
            && found.is_possible(superblock)
        {
            return Ok(found);
        }
        for block in copies(superblock, group) {
            if let Ok(found) = Self::read_at(device, superblock, group, block)
                && found.checksum_ok
                && found.is_possible(superblock)
            {
                return Ok(found);
            }
        }
        // As the kernel when it mounts read-only: a wrong checksum alone is no reason to stop.
        match first {
            Ok(found) if !found.is_possible(superblock) => {
                Err(Error::corrupt("ext", format!("descriptor of group {group}"), primary(superblock, group)))
            }
            other => other,
        }
    }

    /// `block` is the one that holds the group's descriptor.
    pub fn read_at(device: &dyn BlockDevice, superblock: &Superblock, group: u64, block: u64) -> Result<Self> {
        let size = superblock.descriptor_size;
        let within = group.checked_rem(superblock.descriptors_per_block()).unwrap_or(0).saturating_mul(size.into());
        let at = superblock.byte_of(block).saturating_add(within);
        let bytes = read_vec(device, at, size.into())?;
        Self::parse(superblock, group, at, &bytes)
    }
}

/// Where the bitmaps of a group are, and their checksums.
#[derive(Debug, Clone, Copy)]
pub struct Bitmaps {
    /// Byte of the descriptor.
    pub at: u64,
    /// The descriptor's own checksum is right.
    pub descriptor_ok: bool,
    /// Never written: everything is free.
    pub blocks_unused: bool,
    /// Never written: everything is free.
    pub inodes_unused: bool,
    /// Of the block bitmap and of the inode bitmap; the lower half alone in short descriptors.
    pub sums: [u32; 2],
    /// The upper halves are stored.
    pub wide: bool,
}

impl Bitmaps {
    /// Field names and offsets: `struct ext4_group_desc`.
    pub fn read(device: &dyn BlockDevice, superblock: &Superblock, group: u64) -> Result<Self> {
        let size = superblock.descriptor_size;
        let within = group.checked_rem(superblock.descriptors_per_block()).unwrap_or(0).saturating_mul(size.into());
        let at = superblock.byte_of(primary(superblock, group)).saturating_add(within);
        let bytes = read_vec(device, at, size.into())?;
        let raw = Record::new("ext", "group descriptor", at, &bytes);
        let wide = size >= 64;
        let high = |field: usize| if wide { raw.le16(field).map(|high| u32::from(high) << 16) } else { Ok(0) };
        let flags = raw.le16(0x12)?;
        Ok(Self {
            at,
            descriptor_ok: checksum(superblock, group, &bytes).is_none_or(|sum| raw.le16(0x1e).is_ok_and(|s| s == sum)),
            inodes_unused: flags & 1 != 0,
            blocks_unused: flags & 2 != 0,
            sums: [u32::from(raw.le16(0x18)?) | high(0x38)?, u32::from(raw.le16(0x1a)?) | high(0x3a)?],
            wide,
        })
    }
}

/// What the checksum of a descriptor should be; `None` when the volume has none.
fn checksum(superblock: &Superblock, group: u64, bytes: &[u8]) -> Option<u16> {
    let number = u32::try_from(group).ok()?.to_le_bytes();
    if superblock.has_checksums() {
        let sum = crc32c_without(crc32c(superblock.checksum_seed, &number), bytes, 0x1e, 2);
        let [low, high, ..] = sum.to_le_bytes();
        return Some(u16::from_le_bytes([low, high]));
    }
    if !superblock.has_ro_compat(ro_compat::GDT_CSUM) {
        return None;
    }
    let sum = crc16(crc16(!0, &superblock.uuid), &number);
    let sum = crc16(sum, bytes.get(..0x1e)?);
    Some(crc16(sum, bytes.get(0x20..).unwrap_or_default()))
}

/// The block that holds a group's descriptor.
pub fn primary(superblock: &Superblock, group: u64) -> u64 {
    let number = group.checked_div(superblock.descriptors_per_block()).unwrap_or(0);
    if superblock.has_incompat(incompat::META_BG) && number >= superblock.first_meta_bg.into() {
        let first = number.saturating_mul(superblock.descriptors_per_block());
        return in_metagroup(superblock, first, number == 0);
    }
    // With blocks of 1,024 bytes the superblock is block 1, also when the first data block is 0 (bigalloc).
    let start = if superblock.block_size == 1024 { 2 } else { 1 };
    number.saturating_add(start)
}

/// Blocks with copies of a group's descriptor.
fn copies(superblock: &Superblock, group: u64) -> Vec<u64> {
    let per_block = superblock.descriptors_per_block();
    let number = group.checked_div(per_block).unwrap_or(0);
    if superblock.has_incompat(incompat::META_BG) && number >= superblock.first_meta_bg.into() {
        let first = number.saturating_mul(per_block);
        let last = first.saturating_add(per_block).saturating_sub(1);
        return [first.saturating_add(1), last]
            .into_iter()
            .filter(|&copy| copy < superblock.groups())
            .map(|copy| in_metagroup(superblock, copy, false))
            .collect();
    }
    // Three copies tell as much as all of them.
    (1..superblock.groups().min(64))
        .filter(|&backup| superblock.has_super(backup))
        .take(3)
        .map(|backup| superblock.group_start(backup).saturating_add(1).saturating_add(number))
        .collect()
}

/// A metagroup's descriptor block inside one of its groups: behind the superblock, if there is one.
fn in_metagroup(superblock: &Superblock, group: u64, very_first: bool) -> u64 {
    let offset_one = very_first && superblock.block_size == 1024 && superblock.first_data_block == 0;
    let before = u64::from(superblock.has_super(group)).saturating_add(offset_one.into());
    superblock.group_start(group).saturating_add(before)
}

/// Blocks of descriptors in a group, with the ones kept free for growth.
pub fn descriptor_blocks(superblock: &Superblock, group: u64) -> u64 {
    let per_block = superblock.descriptors_per_block();
    let metagroup = group.checked_div(per_block).unwrap_or(0);
    let meta = superblock.has_incompat(incompat::META_BG);
    if meta && metagroup >= superblock.first_meta_bg.into() {
        let first = metagroup.saturating_mul(per_block);
        let last = first.saturating_add(per_block).saturating_sub(1);
        return u64::from(group == first || group == first.saturating_add(1) || group == last);
    }
    let reserved = u64::from(superblock.reserved_descriptor_blocks);
    match (superblock.has_super(group), meta) {
        (false, _) => 0,
        (true, true) => reserved.saturating_add(superblock.first_meta_bg.into()),
        (true, false) => reserved.saturating_add(superblock.groups().div_ceil(per_block)),
    }
}
