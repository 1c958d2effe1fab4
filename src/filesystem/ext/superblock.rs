//! The superblock: geometry, features, and the numbers that every other structure needs.

use crate::bytes::Record;
use crate::device::{BlockDevice, check_range, read_array};
use crate::error::{Error, Result};

use super::checksum::crc32c;
use super::hash::HashVersion;

/// Byte of the volume at which the first superblock lies, whatever the block size.
pub const PRIMARY: u64 = 1024;
/// Length of a superblock in bytes.
pub const LEN: usize = 1024;
const MAGIC: u16 = 0xef53;

/// `s_feature_compat`.
pub mod compat {
    #![allow(missing_docs)]
    pub const HAS_JOURNAL: u32 = 0x4;
    pub const DIR_INDEX: u32 = 0x20;
    pub const SPARSE_SUPER2: u32 = 0x200;
}

/// `s_feature_incompat`: what a reader must know.
pub mod incompat {
    #![allow(missing_docs)]
    pub const COMPRESSION: u32 = 0x1;
    pub const FILETYPE: u32 = 0x2;
    pub const RECOVER: u32 = 0x4;
    pub const JOURNAL_DEV: u32 = 0x8;
    pub const META_BG: u32 = 0x10;
    pub const EXTENTS: u32 = 0x40;
    pub const BITS_64: u32 = 0x80;
    pub const MMP: u32 = 0x100;
    pub const FLEX_BG: u32 = 0x200;
    pub const EA_INODE: u32 = 0x400;
    pub const DIRDATA: u32 = 0x1000;
    pub const CSUM_SEED: u32 = 0x2000;
    pub const LARGEDIR: u32 = 0x4000;
    pub const INLINE_DATA: u32 = 0x8000;
    pub const ENCRYPT: u32 = 0x1_0000;
    pub const CASEFOLD: u32 = 0x2_0000;
    pub const KNOWN: u32 = FILETYPE
        | RECOVER
        | META_BG
        | EXTENTS
        | BITS_64
        | MMP
        | FLEX_BG
        | EA_INODE
        | CSUM_SEED
        | LARGEDIR
        | INLINE_DATA
        | ENCRYPT
        | CASEFOLD;
}

/// `s_feature_ro_compat`: what only a writer must know, and two that change how numbers are read.
pub mod ro_compat {
    #![allow(missing_docs)]
    pub const SPARSE_SUPER: u32 = 0x1;
    pub const LARGE_FILE: u32 = 0x2;
    pub const BTREE_DIR: u32 = 0x4;
    pub const HUGE_FILE: u32 = 0x8;
    pub const GDT_CSUM: u32 = 0x10;
    pub const BIGALLOC: u32 = 0x200;
    pub const METADATA_CSUM: u32 = 0x400;
    pub const ORPHAN_PRESENT: u32 = 0x1_0000;
}

/// A checked superblock.
#[derive(Debug, Clone)]
pub struct Superblock {
    /// Byte of the volume at which it was read.
    pub at: u64,
    /// `s_inodes_count`.
    pub inodes: u32,
    /// `s_blocks_count`.
    pub blocks: u64,
    /// `s_r_blocks_count`.
    pub reserved_blocks: u64,
    /// `s_free_blocks_count`.
    pub free_blocks: u64,
    /// `s_free_inodes_count`.
    pub free_inodes: u32,
    /// `s_first_data_block`: 1 with blocks of 1,024 bytes, 0 otherwise.
    pub first_data_block: u32,
    /// Bytes of a block, a power of two from 1,024 to 65,536.
    pub block_size: u32,
    /// Blocks of a cluster; 1 without bigalloc.
    pub cluster_blocks: u32,
    /// `s_blocks_per_group`, not zero.
    pub blocks_per_group: u32,
    /// `s_inodes_per_group`, not zero.
    pub inodes_per_group: u32,
    /// Bytes of an inode, a power of two from 128 to the block size.
    pub inode_size: u16,
    /// Bytes of a group descriptor, a power of two from 32 to 1,024.
    pub descriptor_size: u16,
    /// `s_state`: 1 when it was unmounted cleanly, 2 when errors were seen.
    pub state: u16,
    /// `s_creator_os`: 0 is Linux, and only there inodes carry checksums.
    pub creator_os: u32,
    /// `s_feature_compat`.
    pub compat: u32,
    /// `s_feature_incompat`.
    pub incompat: u32,
    /// `s_feature_ro_compat`.
    pub ro_compat: u32,
    /// `s_uuid`.
    pub uuid: [u8; 16],
    /// `s_volume_name`.
    pub label: [u8; 16],
    /// `s_journal_inum`.
    pub journal_inode: u32,
    /// `s_last_orphan`: head of the list of inodes to be deleted or cut.
    pub last_orphan: u32,
    /// `s_hash_seed`.
    pub hash_seed: [u32; 4],
    /// `s_def_hash_version`.
    pub default_hash: u8,
    /// Whether names are hashed with unsigned bytes.
    pub unsigned_hash: bool,
    /// `s_first_meta_bg`.
    pub first_meta_bg: u32,
    /// `s_backup_bgs`, for `sparse_super2`.
    pub backup_groups: [u32; 2],
    /// `s_reserved_gdt_blocks`: blocks of each descriptor table that are kept free for growth.
    pub reserved_descriptor_blocks: u16,
    /// `s_overhead_clusters`.
    pub overhead_clusters: u32,
    /// `s_error_count`.
    pub errors: u32,
    /// What the checksums of all other structures start from.
    pub checksum_seed: u32,
}

impl Superblock {
    /// Reads the superblock at byte `at` and checks it as the kernel does.
    pub fn read(device: &dyn BlockDevice, at: u64) -> Result<Self> {
        check_range(LEN, at, device.size()).map_err(|_| Error::corrupt("ext", "superblock", at))?;
        let bytes: [u8; LEN] = read_array(device, at)?;
        let this = Self::parse(at, &bytes)?;
        let stored = Record::new("ext", "superblock", at, &bytes).le32(0x3fc)?;
        let covered = bytes.get(..0x3fc).unwrap_or_default();
        if this.ro_compat & ro_compat::METADATA_CSUM != 0 && crc32c(!0, covered) != stored {
            return Err(Error::corrupt("ext", "superblock (checksum)", at));
        }
        Ok(this)
    }

    fn parse(at: u64, bytes: &[u8]) -> Result<Self> {
        let raw = Record::new("ext", "superblock", at, bytes);
        if raw.le16(0x38)? != MAGIC {
            return Err(raw.corrupt_field("magic number"));
        }
        let rev_level = raw.le32(0x4c)?;
        let (compat, incompat, ro_compat) = (raw.le32(0x5c)?, raw.le32(0x60)?, raw.le32(0x64)?);
        check_features(incompat)?;
        let log_block_size = raw.le32(0x18)?;
        let log_cluster_size = raw.le32(0x1c)?;
        if log_block_size > 6 {
            return Err(raw.corrupt_field("block size"));
        }
        let block_size = 1024u32 << log_block_size;
        let bigalloc = ro_compat & ro_compat::BIGALLOC != 0;
        let cluster_blocks = match log_cluster_size.checked_sub(log_block_size) {
            Some(bits @ 0..=20) if bigalloc => 1u32 << bits,
            _ if bigalloc => return Err(raw.corrupt_field("cluster size")),
            _ => 1,
        };
        let wide = incompat & incompat::BITS_64 != 0;
        let high = |field: usize| if wide { raw.le32(field).map(|high| u64::from(high) << 32) } else { Ok(0) };
        let inode_size = if rev_level == 0 { 128 } else { raw.le16(0x58)? };
        if !inode_size.is_power_of_two() || inode_size < 128 || u32::from(inode_size) > block_size {
            return Err(raw.corrupt_field("inode size"));
        }
        let descriptor_size = if wide { raw.le16(0xfe)? } else { 32 };
        if !descriptor_size.is_power_of_two() || descriptor_size > 1024 || (wide && descriptor_size < 64) {
            return Err(raw.corrupt_field("group descriptor size"));
        }
        let mut hash_seed = [0; 4];
        for (word, offset) in hash_seed.iter_mut().zip([0xec, 0xf0, 0xf4, 0xf8]) {
            *word = raw.le32(offset)?;
        }
        let uuid = raw.array(0x68)?;
        let checksum_seed = if incompat & incompat::CSUM_SEED != 0 { raw.le32(0x270)? } else { crc32c(!0, &uuid) };
        let this = Self {
            at,
            inodes: raw.le32(0x00)?,
            blocks: u64::from(raw.le32(0x04)?) | high(0x150)?,
            reserved_blocks: u64::from(raw.le32(0x08)?) | high(0x154)?,
            free_blocks: u64::from(raw.le32(0x0c)?) | high(0x158)?,
            free_inodes: raw.le32(0x10)?,
            first_data_block: raw.le32(0x14)?,
            block_size,
            cluster_blocks,
            blocks_per_group: raw.le32(0x20)?,
            inodes_per_group: raw.le32(0x28)?,
            inode_size,
            descriptor_size,
            state: raw.le16(0x3a)?,
            creator_os: raw.le32(0x48)?,
            compat,
            incompat,
            ro_compat,
            uuid,
            label: raw.array(0x78)?,
            journal_inode: raw.le32(0xe0)?,
            last_orphan: raw.le32(0xe8)?,
            hash_seed,
            default_hash: raw.u8(0xfc)?,
            unsigned_hash: raw.le32(0x160)? & 2 != 0,
            first_meta_bg: raw.le32(0x104)?,
            backup_groups: [raw.le32(0x24c)?, raw.le32(0x250)?],
            reserved_descriptor_blocks: raw.le16(0xce)?,
            overhead_clusters: raw.le32(0x248)?,
            errors: raw.le32(0x194)?,
            checksum_seed,
        };
        this.check_geometry(&raw)?;
        Ok(this)
    }

    fn check_geometry(&self, raw: &Record<'_>) -> Result<()> {
        let most = u64::from(self.block_size).saturating_mul(8).saturating_mul(self.cluster_blocks.into());
        if self.blocks_per_group == 0 || u64::from(self.blocks_per_group) > most {
            return Err(raw.corrupt_field("blocks per group"));
        }
        if self.inodes_per_group == 0 || self.inodes_per_group > self.block_size.saturating_mul(8) {
            return Err(raw.corrupt_field("inodes per group"));
        }
        if self.blocks <= u64::from(self.first_data_block) || self.inodes == 0 {
            return Err(raw.corrupt_field("block count"));
        }
        if self.groups() > u64::from(u32::MAX) {
            return Err(raw.corrupt_field("block count"));
        }
        Ok(())
    }

    /// Whether a bit of `s_feature_compat` is set.
    pub fn has_compat(&self, bit: u32) -> bool {
        self.compat & bit != 0
    }

    /// Whether a bit of `s_feature_incompat` is set.
    pub fn has_incompat(&self, bit: u32) -> bool {
        self.incompat & bit != 0
    }

    /// Whether a bit of `s_feature_ro_compat` is set.
    pub fn has_ro_compat(&self, bit: u32) -> bool {
        self.ro_compat & bit != 0
    }

    /// Whether metadata carries CRC-32C checksums.
    pub fn has_checksums(&self) -> bool {
        self.has_ro_compat(ro_compat::METADATA_CSUM)
    }

    /// Number of block groups.
    pub fn groups(&self) -> u64 {
        self.blocks.saturating_sub(self.first_data_block.into()).div_ceil(u64::from(self.blocks_per_group).max(1))
    }

    /// First block of a group.
    pub fn group_start(&self, group: u64) -> u64 {
        group.saturating_mul(self.blocks_per_group.into()).saturating_add(self.first_data_block.into())
    }

    /// Descriptors that fit into a block.
    pub fn descriptors_per_block(&self) -> u64 {
        u64::from(self.block_size).checked_div(self.descriptor_size.into()).unwrap_or(1).max(1)
    }

    /// Blocks of one group's inode table.
    pub fn inode_table_blocks(&self) -> u64 {
        u64::from(self.inodes_per_group)
            .saturating_mul(self.inode_size.into())
            .div_ceil(u64::from(self.block_size).max(1))
    }

    /// First byte of a block.
    pub fn byte_of(&self, block: u64) -> u64 {
        block.saturating_mul(self.block_size.into())
    }

    /// Whether a run of blocks can hold contents: past the boot block, before the volume's end.
    pub fn holds(&self, block: u64, count: u64) -> bool {
        block > u64::from(self.first_data_block) && block.checked_add(count).is_some_and(|end| end <= self.blocks)
    }

    /// Whether a group has a copy of the superblock and of the group descriptors.
    pub fn has_super(&self, group: u64) -> bool {
        if group == 0 {
            return true;
        }
        if self.has_compat(compat::SPARSE_SUPER2) {
            return self.backup_groups.iter().any(|&backup| u64::from(backup) == group);
        }
        if group == 1 || !self.has_ro_compat(ro_compat::SPARSE_SUPER) {
            return true;
        }
        group & 1 == 1 && [3, 5, 7].into_iter().any(|base| is_power_of(group, base))
    }

    /// The hash of a directory whose root says `hash_version`.
    pub fn hash_version(&self, hash_version: u8) -> Option<HashVersion> {
        HashVersion::new(hash_version, self.unsigned_hash)
    }

    /// `ext2`, `ext3` or `ext4`, by the rules of `blkid`.
    pub fn variant(&self) -> &'static str {
        let old_ro = ro_compat::SPARSE_SUPER | ro_compat::LARGE_FILE | ro_compat::BTREE_DIR;
        let old = incompat::FILETYPE | incompat::META_BG;
        let journal = self.has_compat(compat::HAS_JOURNAL);
        if self.ro_compat & !old_ro != 0 || self.incompat & !(old | incompat::RECOVER) != 0 {
            "ext4"
        } else if journal {
            "ext3"
        } else if self.incompat & !old == 0 {
            "ext2"
        } else {
            "ext4"
        }
    }
}

/// Refuses what the kernel refuses to read.
fn check_features(incompat: u32) -> Result<()> {
    let unknown = incompat & !incompat::KNOWN;
    if unknown == 0 {
        return Ok(());
    }
    let name = if unknown & incompat::JOURNAL_DEV != 0 {
        "a volume that is only a journal".to_owned()
    } else if unknown & incompat::COMPRESSION != 0 {
        "compression".to_owned()
    } else if unknown & incompat::DIRDATA != 0 {
        "dirdata".to_owned()
    } else {
        format!("incompatible feature {unknown:#x}")
    };
    Err(Error::unsupported("ext", name))
}

fn is_power_of(number: u64, base: u64) -> bool {
    let mut power = base;
    while power < number {
        power = power.saturating_mul(base);
    }
    power == number
}

/// Whether a superblock at `at` is plausible enough to claim the device for ext: the magic number
/// is only two bytes, in a place that other formats use for anything.
pub fn is_plausible(device: &dyn BlockDevice, at: u64) -> Result<bool> {
    if check_range(LEN, at, device.size()).is_err() {
        return Ok(false);
    }
    let bytes: [u8; LEN] = read_array(device, at)?;
    let raw = Record::new("ext", "superblock", at, &bytes);
    if raw.le16(0x38)? != MAGIC {
        return Ok(false);
    }
    if !matches!(Superblock::parse(at, &bytes), Err(Error::Corrupt { .. })) {
        return Ok(true);
    }
    // Damaged, but most of its fields still look like themselves.
    let signs = [
        raw.le32(0x18)? <= 6,
        raw.le32(0x4c)? <= 1,
        raw.le32(0x14)? <= 1,
        matches!(raw.le16(0x58)?, 0 | 128 | 256 | 512 | 1024),
        raw.le16(0x3a)? <= 7,
    ];
    Ok(signs.into_iter().filter(|&sign| sign).count() >= 4)
}

/// Where the first backups lie: group 1 of a volume with blocks of each size and groups of the usual
/// length, which is eight times the block size; then group 3, for when group 1 is gone as well.
pub fn backups() -> impl Iterator<Item = (u64, u32)> {
    (0..=6u32).flat_map(|log| {
        let block = 1024u64 << log;
        let first = u64::from(log == 0);
        [1u64, 3].into_iter().map(move |group| {
            let blocks = block.saturating_mul(8).saturating_mul(group).saturating_add(first);
            (blocks.saturating_mul(block), log)
        })
    })
}

/// The first usable backup.
pub fn find_backup(device: &dyn BlockDevice) -> Result<Option<Superblock>> {
    for (at, log) in backups() {
        if check_range(LEN, at, device.size()).is_err() {
            continue;
        }
        let Ok(found) = Superblock::read(device, at) else { continue };
        if found.block_size == 1024 << log {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
