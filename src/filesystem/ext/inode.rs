//! Inodes: attributes, and where the contents are described.
//!
//! ```text
//!   0     128              128+extra                inode size
//!   | old | extra isize,   | xattrs: magic, entries,  |
//!   |     | fine times     |   ... values             |
//! ```

use std::sync::OnceLock;

use crate::bytes::Record;
use crate::device::read_vec;
use crate::error::{Error, Result};
use crate::filesystem::{Attributes, Kind, Timestamp};

use super::Ext;
use super::checksum::{crc32c, crc32c_without};
use super::extent::Node;
use super::hash::HashVersion;
use super::superblock::{Superblock, incompat, ro_compat};
use super::{group, xattr};

/// `i_flags`.
pub mod flag {
    #![allow(missing_docs)]
    pub const ENCRYPT: u32 = 0x800;
    pub const INDEX: u32 = 0x1000;
    pub const HUGE_FILE: u32 = 0x4_0000;
    pub const EXTENTS: u32 = 0x8_0000;
    pub const EA_INODE: u32 = 0x20_0000;
    pub const INLINE_DATA: u32 = 0x1000_0000;
    pub const CASEFOLD: u32 = 0x4000_0000;
}

/// Inodes below this one are the volume's own.
const FIRST_INODE: u32 = 11;
/// Number of the top directory.
pub const ROOT: u32 = 2;

/// A parsed inode.
#[derive(Debug)]
pub struct Inode {
    /// Its number.
    pub number: u32,
    /// Byte of the volume at which it lies.
    pub at: u64,
    /// `i_flags`.
    pub flags: u32,
    /// `i_generation`.
    pub generation: u32,
    /// Everything a caller may ask.
    pub attributes: Attributes,
    /// `i_block`.
    pub block: [u8; 60],
    /// Block of more xattrs, 0 for none.
    pub file_acl: u64,
    /// The room behind the fields, from the xattrs' magic number on.
    pub xattr_area: Vec<u8>,
    /// How the contents are found.
    pub contents: Contents,
    /// What this inode's own metadata blocks' checksums start from.
    pub checksum_seed: u32,
    /// Of a directory with encrypted names: the hash that is part of each name's form.
    pub listing_hash: OnceLock<Option<HashVersion>>,
}

/// How an inode's contents are found.
#[derive(Debug)]
pub enum Contents {
    /// In the inode: 60 bytes of `i_block`, then these of `system.data`.
    Inline(Vec<u8>),
    /// Through an extent tree; its root, or why that is damaged.
    Extents(Result<Node>),
    /// Through direct and indirect block numbers.
    Blocks,
    /// In `i_block` itself, as a short link target; or nowhere.
    None,
}

impl Inode {
    /// Whether a bit of `i_flags` is set.
    pub fn has_flag(&self, bit: u32) -> bool {
        self.flags & bit != 0
    }

    /// Room that it takes in memory.
    pub fn weight(&self) -> u64 {
        let behind = match &self.contents {
            Contents::Inline(bytes) => bytes.len(),
            Contents::Extents(Ok(root)) => root.weight(),
            _ => 0,
        };
        size_of::<Self>().saturating_add(self.xattr_area.len()).saturating_add(behind) as u64
    }

    /// The error that says that this inode is damaged.
    pub fn corrupt(&self, what: &str) -> Error {
        Error::corrupt("ext", format!("inode {} ({what})", self.number), self.at)
    }

    /// Reads an inode.
    pub fn read(ext: &Ext, number: u32) -> Result<Self> {
        let superblock = &ext.superblock;
        if number == 0 || number > superblock.inodes {
            return Err(Error::NotFound);
        }
        let index = number.wrapping_sub(1);
        let group = index.checked_div(superblock.inodes_per_group).unwrap_or(0);
        let within = index.checked_rem(superblock.inodes_per_group).unwrap_or(0);
        let table = group::Group::read(ext.disk.as_ref(), superblock, group.into())?.inode_table;
        let size = superblock.inode_size;
        let at = superblock.byte_of(table).saturating_add(u64::from(within).saturating_mul(size.into()));
        let bytes = read_vec(ext.disk.as_ref(), at, size.into())?;
        Self::parse(superblock, number, at, &bytes)
    }

    /// Whether an inode in use has a wrong checksum.
    pub fn has_wrong_checksum(superblock: &Superblock, number: u32, at: u64, bytes: &[u8]) -> Result<bool> {
        let raw = Record::new("ext", "inode", at, bytes);
        // Those that are kept for the volume, and that nothing was put into.
        if raw.le16(0)? == 0 {
            return Ok(false);
        }
        let extra = if bytes.len() > 128 { raw.le16(0x80)? } else { 0 };
        let generation = raw.le32(0x64)?;
        let seed = crc32c(crc32c(superblock.checksum_seed, &number.to_le_bytes()), &generation.to_le_bytes());
        Ok(!checksum_is_right(&raw, seed, extra >= 4)?)
    }

    /// Field names and offsets: `struct ext4_inode`.
    fn parse(superblock: &Superblock, number: u32, at: u64, bytes: &[u8]) -> Result<Self> {
        let raw = Record::new("ext", "inode", at, bytes);
        let corrupt = |what: &str| Error::corrupt("ext", format!("inode {number} ({what})"), at);
        let generation = raw.le32(0x64)?;
        let stored_extra = if bytes.len() > 128 { raw.le16(0x80)? } else { 0 };
        let extra = usize::from(stored_extra);
        if extra & 3 != 0 || extra.saturating_add(128) > bytes.len() {
            return Err(corrupt("extra size"));
        }
        let checksum_seed = crc32c(crc32c(superblock.checksum_seed, &number.to_le_bytes()), &generation.to_le_bytes());
        if superblock.has_checksums()
            && superblock.creator_os == 0
            && !checksum_is_right(&raw, checksum_seed, extra >= 4)?
        {
            return Err(corrupt("checksum"));
        }
        let mode = raw.le16(0x00)?;
        let kind = kind_of(mode).ok_or_else(|| corrupt("mode"))?;
        let flags = raw.le32(0x20)?;
        let links = raw.le16(0x1a)?;
        if links == 0 && number >= FIRST_INODE {
            return Err(corrupt("deleted"));
        }
        // Only these two kinds can be long: elsewhere the upper half is something else.
        let long = kind == Kind::File || superblock.has_incompat(incompat::LARGEDIR);
        let size = u64::from(raw.le32(0x04)?) | if long { u64::from(raw.le32(0x6c)?) << 32 } else { 0 };
        if size > max_size(superblock, kind, flags) {
            return Err(corrupt("size"));
        }
        let block: [u8; 60] = raw.array(0x28)?;
        let file_acl_high = if superblock.has_incompat(incompat::BITS_64) { raw.le16(0x76)? } else { 0 };
        let file_acl = u64::from(raw.le32(0x68)?) | u64::from(file_acl_high) << 32;
        // An inode made before there were extra fields leaves the room unused: it reads as no times.
        let reach = if bytes.len() <= 128 { 128 } else { if extra == 0 { 160 } else { extra.saturating_add(128) } };
        let mut attributes = Attributes::new(kind, size);
        attributes.mode = Some(mode & 0o7777);
        attributes.uid = Some(u32::from(raw.le16(0x02)?) | u32::from(raw.le16(0x78)?) << 16);
        attributes.gid = Some(u32::from(raw.le16(0x18)?) | u32::from(raw.le16(0x7a)?) << 16);
        attributes.links = Some(links.into());
        attributes.accessed = Some(time(&raw, reach, 0x08, 0x8c)?);
        attributes.changed = Some(time(&raw, reach, 0x0c, 0x84)?);
        attributes.modified = Some(time(&raw, reach, 0x10, 0x88)?);
        if reach >= 0x94 {
            attributes.created = Some(time(&raw, reach, 0x90, 0x94)?);
        }
        if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            attributes.device = Some(device_number(&raw)?);
        }
        let xattr_area = if extra == 0 { &[][..] } else { raw.tail(extra.saturating_add(128))? };
        let mut this = Self {
            number,
            at,
            flags,
            generation,
            attributes,
            block,
            file_acl,
            xattr_area: xattr_area.to_vec(),
            contents: Contents::None,
            checksum_seed,
            listing_hash: OnceLock::new(),
        };
        let sectors = sectors(superblock, &raw, flags)?;
        this.contents = this.find_contents(superblock, sectors);
        // The kernel reports the sectors of data that take none, for programs that skip empty files.
        let inline =
            if let (Kind::File, Contents::Inline(_)) = (kind, &this.contents) { size.div_ceil(512) } else { 0 };
        this.attributes.blocks = Some(sectors.saturating_add(inline));
        Ok(this)
    }

    fn find_contents(&self, superblock: &Superblock, sectors: u64) -> Contents {
        if self.has_flag(flag::INLINE_DATA)
            && let Ok(Some(bytes)) = xattr::inline_data(self)
        {
            return Contents::Inline(bytes);
        }
        let inside = match self.attributes.kind {
            Kind::File | Kind::Directory => false,
            Kind::Symlink => {
                let xattr_block =
                    u64::from(superblock.block_size).saturating_mul(superblock.cluster_blocks.into()) >> 9;
                sectors == if self.file_acl == 0 { 0 } else { xattr_block }
            }
            _ => true,
        };
        if inside {
            Contents::None
        } else if self.has_flag(flag::EXTENTS) {
            Contents::Extents(Node::parse_root(self))
        } else {
            Contents::Blocks
        }
    }
}

/// The largest size that the form of an inode's contents can hold: a 32-bit number for each block, and
/// without extents three levels of blocks of such numbers.
fn max_size(superblock: &Superblock, kind: Kind, flags: u32) -> u64 {
    let block_size = u64::from(superblock.block_size);
    let blocks = match kind {
        Kind::File if flags & flag::EXTENTS != 0 => u64::from(u32::MAX),
        Kind::File => {
            let numbers = block_size / 4;
            let levels = [1, 2, 3].map(|level| numbers.saturating_pow(level));
            levels.iter().fold(12u64, |sum, level| sum.saturating_add(*level)).min(u32::MAX.into())
        }
        _ => u64::MAX,
    };
    blocks.saturating_mul(block_size).min(i64::MAX.cast_unsigned())
}

/// Whether the checksum over all of an inode is right; `wide` when its upper half is stored.
fn checksum_is_right(raw: &Record<'_>, seed: u32, wide: bool) -> Result<bool> {
    let (old, new) = raw.as_bytes().split_at_checked(128).ok_or_else(|| raw.corrupt())?;
    let sum = crc32c_without(seed, old, 0x7c, 2);
    let low = u32::from(raw.le16(0x7c)?);
    if new.is_empty() {
        return Ok(sum & 0xffff == low);
    }
    if wide {
        let stored = low | u32::from(raw.le16(0x82)?) << 16;
        return Ok(crc32c_without(sum, new, 2, 2) == stored);
    }
    Ok(crc32c(sum, new) & 0xffff == low)
}

/// What the upper four bits of `i_mode` say.
fn kind_of(mode: u16) -> Option<Kind> {
    Some(match mode >> 12 {
        0x1 => Kind::Fifo,
        0x2 => Kind::CharDevice,
        0x4 => Kind::Directory,
        0x6 => Kind::BlockDevice,
        0x8 => Kind::File,
        0xa => Kind::Symlink,
        0xc => Kind::Socket,
        _ => return None,
    })
}

/// A time: signed seconds, and where the inode reaches that far, two more bits of seconds (each
/// worth 2^32) below thirty bits of nanoseconds.
fn time(raw: &Record<'_>, reach: usize, seconds: usize, extra: usize) -> Result<Timestamp> {
    let base = i64::from(raw.le32(seconds)?.cast_signed());
    if extra.saturating_add(4) > reach {
        return Ok(Timestamp { seconds: base, nanoseconds: 0 });
    }
    let extra = raw.le32(extra)?;
    let epoch = i64::from(extra & 3) << 32;
    Ok(Timestamp { seconds: base.saturating_add(epoch), nanoseconds: (extra >> 2).min(999_999_999) })
}

/// `i_blocks` in units of 512 bytes.
fn sectors(superblock: &Superblock, raw: &Record<'_>, flags: u32) -> Result<u64> {
    let low = u64::from(raw.le32(0x1c)?);
    if !superblock.has_ro_compat(ro_compat::HUGE_FILE) {
        return Ok(low);
    }
    let count = low | u64::from(raw.le16(0x74)?) << 32;
    let unit = if flags & flag::HUGE_FILE != 0 { u64::from(superblock.block_size) >> 9 } else { 1 };
    Ok(count.saturating_mul(unit))
}

/// Major and minor: 8 and 8 bits in the first word, or 12 and 20 in the second.
fn device_number(raw: &Record<'_>) -> Result<(u32, u32)> {
    let old = raw.le32(0x28)?;
    if old != 0 {
        return Ok((old >> 8 & 0xff, old & 0xff));
    }
    let new = raw.le32(0x2c)?;
    Ok((new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xf_ff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_epoch_bits_extend_signed_seconds() {
        // Seconds, extra; the table of the ext4 wiki, "Inode Timestamps".
        for (seconds, extra, expected) in [
            (0x8000_0000u32, 0u32, -0x8000_0000i64),
            (0xffff_ffff, 0, -1),
            (0x7fff_ffff, 0, 0x7fff_ffff),
            (0x8000_0000, 1, 0x8000_0000),
            (0, 1, 0x1_0000_0000),
            (0x7fff_ffff, 3, 0x3_7fff_ffff),
        ] {
            let bytes = [seconds.to_le_bytes(), (extra | 5 << 2).to_le_bytes()].concat();
            let raw = Record::new("ext", "inode", 0, &bytes);
            assert_eq!(time(&raw, 8, 0, 4).unwrap(), Timestamp { seconds: expected, nanoseconds: 5 });
        }
        let raw = Record::new("ext", "inode", 0, &[0xff; 8]);
        assert_eq!(time(&raw, 4, 0, 4).unwrap(), Timestamp { seconds: -1, nanoseconds: 0 });
    }
}
