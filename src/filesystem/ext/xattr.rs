//! Extended attributes: in the inode, in a block of their own, and values in inodes of their own.
//!
//! ```text
//!   inode: magic ea020000 | entry entry ... 0 ...... value value     values count from the first entry
//!   block: header, 32 bytes | entry entry ... 0 .... value value     values count from the block
//!   entry: name length, name index, value offset, value inode, value size, hash, name
//! ```

use crate::bytes::Record;
use crate::device::read_vec;
use crate::error::{Error, Result};
use crate::filesystem::Kind;
use crate::filesystem::acl::{self, tag};

use super::Ext;
use super::checksum::{crc32c, crc32c_without};
use super::inode::{Inode, flag};

const MAGIC: u32 = 0xea02_0000;
const HEADER: usize = 32;
/// The kernel's bound for a value in an inode of its own.
const MAX_VALUE: u32 = 64 << 10;
const INDEX_SYSTEM: u8 = 7;

/// One attribute.
#[derive(Debug, Clone, Copy)]
struct Entry<'a> {
    index: u8,
    name: &'a [u8],
    value_offset: u16,
    value_inode: u32,
    value_size: u32,
}

/// The entries of an inode's area or of a block, with what their values count from.
struct Area<'a> {
    raw: Record<'a>,
    /// Where the first entry is.
    entries: usize,
}

impl<'a> Area<'a> {
    /// The area inside an inode; `None` when it holds nothing.
    fn in_inode(inode: &'a Inode) -> Option<Self> {
        let raw = Record::new("ext", "attributes in the inode", inode.at, &inode.xattr_area);
        if raw.le32(0).ok()? != MAGIC {
            return None;
        }
        let rest = raw.tail(4).ok()?;
        Some(Self { raw: Record::new("ext", "attributes in the inode", inode.at, rest), entries: 0 })
    }

    fn visit(&self, visit: &mut dyn FnMut(Entry<'a>) -> Result<bool>) -> Result<()> {
        let mut offset = self.entries;
        // An entry takes at least sixteen bytes, so the area bounds the loop.
        while self.raw.len().saturating_sub(offset) >= 4 && self.raw.le32(offset)? != 0 {
            let name_len = usize::from(self.raw.u8(offset)?);
            let at = |field: usize| offset.saturating_add(field);
            let entry = Entry {
                index: self.raw.u8(at(1))?,
                value_offset: self.raw.le16(at(2))?,
                value_inode: self.raw.le32(at(4))?,
                value_size: self.raw.le32(at(8))?,
                name: self.raw.bytes(at(16), name_len)?,
            };
            if !visit(entry)? {
                return Ok(());
            }
            offset = at(16).saturating_add(name_len.next_multiple_of(4));
        }
        Ok(())
    }

    fn value(&self, entry: &Entry<'_>) -> Result<&'a [u8]> {
        let len = usize::try_from(entry.value_size).map_err(|_| self.raw.corrupt())?;
        if len == 0 {
            return Ok(&[]);
        }
        self.raw.bytes(entry.value_offset.into(), len)
    }
}

/// The value of `system.data`: contents behind the sixty bytes of `i_block`.
pub fn inline_data(inode: &Inode) -> Result<Option<Vec<u8>>> {
    let Some(area) = Area::in_inode(inode) else { return Ok(None) };
    let mut found = None;
    area.visit(&mut |entry| {
        if entry.index == INDEX_SYSTEM && entry.name == b"data" {
            found = Some(area.value(&entry)?.to_vec());
        }
        Ok(found.is_none())
    })?;
    Ok(found)
}

impl Ext {
    /// Calls `visit` with each attribute, those in the inode first; `false` stops.
    fn for_each_xattr(&self, inode: &Inode, visit: &mut dyn FnMut(&Area<'_>, Entry<'_>) -> Result<bool>) -> Result<()> {
        let mut going = true;
        if let Some(area) = Area::in_inode(inode) {
            area.visit(&mut |entry| {
                going = visit(&area, entry)?;
                Ok(going)
            })?;
        }
        if inode.file_acl == 0 || !going {
            return Ok(());
        }
        let superblock = &self.superblock;
        if !superblock.holds(inode.file_acl, 1) {
            return Err(inode.corrupt("attribute block"));
        }
        let at = superblock.byte_of(inode.file_acl);
        let len = usize::try_from(superblock.block_size).map_err(|_| Error::Invalid)?;
        let bytes = read_vec(self.disk.as_ref(), at, len)?;
        let raw = Record::new("ext", "attribute block", at, &bytes);
        if raw.le32(0)? != MAGIC || raw.le32(8)? != 1 {
            return Err(raw.corrupt());
        }
        if superblock.has_checksums() {
            let seed = crc32c(superblock.checksum_seed, &inode.file_acl.to_le_bytes());
            if crc32c_without(seed, &bytes, 16, 4) != raw.le32(16)? {
                return Err(raw.corrupt_field("checksum"));
            }
        }
        let area = Area { raw, entries: HEADER };
        area.visit(&mut |entry| visit(&area, entry))
    }

    /// Full names of an inode's attributes, as the kernel lists them to root.
    pub(super) fn xattr_names(&self, inode: &Inode) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        self.for_each_xattr(inode, &mut |_, entry| {
            names.extend(full_name(&entry));
            Ok(true)
        })?;
        Ok(names)
    }

    /// The value of an attribute, by its full name.
    pub(super) fn xattr_value(&self, inode: &Inode, name: &[u8]) -> Result<Vec<u8>> {
        // The kernel keeps `user.` to the kinds that have contents.
        let contents = matches!(inode.attributes.kind, Kind::File | Kind::Directory);
        if name.starts_with(b"user.") && !contents {
            return Err(Error::NoAttribute);
        }
        let mut found = None;
        self.for_each_xattr(inode, &mut |area, entry| {
            if full_name(&entry).is_some_and(|full| full == name) {
                let value = self.value(area, inode, &entry)?;
                found = Some(if matches!(entry.index, 2 | 3) { acl(&area.raw, &value)? } else { value });
            }
            Ok(found.is_none())
        })?;
        found.ok_or(Error::NoAttribute)
    }

    fn value(&self, area: &Area<'_>, owner: &Inode, entry: &Entry<'_>) -> Result<Vec<u8>> {
        if entry.value_inode == 0 {
            return Ok(area.value(entry)?.to_vec());
        }
        let corrupt = || owner.corrupt("attribute in an inode");
        let inode = self.inode(entry.value_inode).map_err(|_| corrupt())?;
        let size = entry.value_size;
        if !inode.has_flag(flag::EA_INODE) || size > MAX_VALUE || inode.attributes.size != u64::from(size) {
            return Err(corrupt());
        }
        let mut value = vec![0; usize::try_from(size).map_err(|_| corrupt())?];
        self.read_contents(&inode, &mut value, 0)?;
        // Lustre's older kind keeps the owner where this one keeps the hash.
        let seconds = |time: Option<crate::filesystem::Timestamp>| time.map_or(0, |time| time.seconds & 0xffff_ffff);
        let lustre =
            seconds(inode.attributes.modified) == i64::from(owner.number) && inode.generation == owner.generation;
        let hash = i64::from(crc32c(self.superblock.checksum_seed, &value));
        if !lustre && hash != seconds(inode.attributes.accessed) {
            return Err(Error::corrupt("ext", format!("attribute inode {} (hash)", inode.number), inode.at));
        }
        Ok(value)
    }
}

/// The name with the prefix that its index stands for; `None` for what the kernel never shows.
fn full_name(entry: &Entry<'_>) -> Option<Vec<u8>> {
    let prefix: &[u8] = match entry.index {
        1 => b"user.",
        2 => acl::ACCESS,
        3 => acl::DEFAULT,
        4 => b"trusted.",
        6 => b"security.",
        8 => b"system.richacl",
        10 => b"gnu.",
        _ => return None,
    };
    Some([prefix, entry.name].concat())
}

/// An access control list from ext's form (version 1, identifiers only where they mean something)
/// to the one that `getxattr` gives.
fn acl(raw: &Record<'_>, value: &[u8]) -> Result<Vec<u8>> {
    let list = Record::new("ext", "access control list", raw.at(), value);
    if list.le32(0)? != 1 {
        return Err(list.corrupt());
    }
    let mut entries = Vec::new();
    let mut offset = 4usize;
    while offset < value.len() {
        let (tag, permissions) = (list.le16(offset)?, list.le16(offset.saturating_add(2))?);
        offset = offset.saturating_add(4);
        let id = match tag {
            tag::USER_OBJ | tag::GROUP_OBJ | tag::MASK | tag::OTHER => None,
            tag::USER | tag::GROUP => {
                let id = list.le32(offset)?;
                offset = offset.saturating_add(4);
                Some(id)
            }
            _ => return Err(list.corrupt()),
        };
        entries.push(acl::Entry { tag, permissions, id });
    }
    acl::value(&entries).ok_or(Error::NoAttribute)
}
