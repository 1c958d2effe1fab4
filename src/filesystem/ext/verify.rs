//! The checksums of `metadata_csum`, all of them: superblock, descriptors, bitmaps, inodes, and what
//! inodes in use lead to (extent blocks, directory blocks, blocks of attributes). Volumes with
//! `uninit_bg` have those of their descriptors; older ones have none.

use super::checksum::crc32c;
use super::group::{Bitmaps, Group};
use super::inode::{Contents, Inode};
use super::map::FileMap;
use super::superblock::{Superblock, ro_compat};
use super::{Ext, superblock};
use crate::check::{Check, MAX_FAULTS, Walk};
use crate::device::mapped::Mapping;
use crate::device::read_vec;
use crate::error::{Error, Result};
use crate::filesystem::Kind;

/// All checks of a volume.
pub(super) fn checks(ext: &Ext) -> Vec<Check> {
    let mut checks = Vec::new();
    let superblock = &ext.superblock;
    let walk = |faults: fn(&Ext) -> Result<Vec<String>>| -> Walk {
        // An own one, with the journal's blocks in place as well.
        let (disk, superblock) = (ext.disk.clone(), ext.superblock.clone());
        Box::new(move || faults(&Ext::over(disk.clone(), superblock.clone())))
    };
    if superblock.has_checksums() {
        // The first is named even when a backup is what could be read.
        let fault = Superblock::read(ext.disk.as_ref(), superblock::PRIMARY).err().map(|error| error.to_string());
        checks.push(Check::known("superblock checksum", format!("byte {}", superblock::PRIMARY), fault));
    }
    if superblock.has_checksums() || superblock.has_ro_compat(ro_compat::GDT_CSUM) {
        checks.push(Check::walk("group descriptor checksums", "every group", walk(descriptor_faults)));
    }
    if superblock.has_checksums() && superblock.creator_os == 0 {
        checks.push(Check::walk("bitmap checksums", "every group", walk(bitmap_faults)));
        checks.push(Check::walk("inode, extent, directory and attribute checksums", "every inode", walk(inode_faults)));
    }
    checks
}

/// The groups that start within the device. The superblock alone says how many there are, so that
/// more of them than a volume has can be claimed.
fn groups_there(ext: &Ext) -> u64 {
    let superblock = &ext.superblock;
    let blocks = ext.disk.size().div_ceil(u64::from(superblock.block_size).max(1));
    let blocks = blocks.saturating_sub(superblock.first_data_block.into());
    superblock.groups().min(blocks.div_ceil(u64::from(superblock.blocks_per_group).max(1)))
}

/// What is wrong with the groups that do not.
fn missing_groups(ext: &Ext) -> Option<String> {
    let (there, all) = (groups_there(ext), ext.superblock.groups());
    (there < all).then(|| format!("{} of {all} groups start past the end of the volume", all.saturating_sub(there)))
}

fn descriptor_faults(ext: &Ext) -> Result<Vec<String>> {
    let mut faults = Vec::from_iter(missing_groups(ext));
    for group in 0..groups_there(ext) {
        let found = Bitmaps::read(ext.disk.as_ref(), &ext.superblock, group)?;
        if !found.descriptor_ok {
            faults.push(format!("descriptor of group {group} at byte {}", found.at));
        }
        if faults.len() >= MAX_FAULTS {
            break;
        }
    }
    Ok(faults)
}

fn bitmap_faults(ext: &Ext) -> Result<Vec<String>> {
    let superblock = &ext.superblock;
    let mut faults = Vec::from_iter(missing_groups(ext));
    let clusters = superblock.blocks_per_group.checked_div(superblock.cluster_blocks).unwrap_or(0);
    for group in 0..groups_there(ext) {
        if faults.len() >= MAX_FAULTS {
            break;
        }
        let Ok(place) = Group::read(ext.disk.as_ref(), superblock, group) else { continue };
        let found = Bitmaps::read(ext.disk.as_ref(), superblock, group)?;
        let [blocks, inodes] = found.sums;
        for (what, unused, at, bits, stored) in [
            ("block bitmap", found.blocks_unused, place.block_bitmap, clusters, blocks),
            ("inode bitmap", found.inodes_unused, place.inode_bitmap, superblock.inodes_per_group, inodes),
        ] {
            if unused {
                continue;
            }
            let at = superblock.byte_of(at);
            let bitmap = read_vec(ext.disk.as_ref(), at, usize::try_from(bits / 8).map_err(|_| Error::Invalid)?)?;
            let sum = crc32c(superblock.checksum_seed, &bitmap);
            let sum = if found.wide { sum } else { sum & 0xffff };
            if sum != stored {
                faults.push(format!("{what} of group {group} at byte {at}"));
            }
        }
    }
    Ok(faults)
}

fn inode_faults(ext: &Ext) -> Result<Vec<String>> {
    let superblock = &ext.superblock;
    let size = usize::from(superblock.inode_size);
    let mut faults = Vec::from_iter(missing_groups(ext));
    for group in 0..groups_there(ext) {
        if faults.len() >= MAX_FAULTS {
            break;
        }
        let Ok(place) = Group::read(ext.disk.as_ref(), superblock, group) else {
            faults.push(format!("group {group} has no inode table"));
            continue;
        };
        if Bitmaps::read(ext.disk.as_ref(), superblock, group)?.inodes_unused {
            continue;
        }
        let len = usize::try_from(superblock.inodes_per_group / 8).map_err(|_| Error::Invalid)?;
        let bitmap = read_vec(ext.disk.as_ref(), superblock.byte_of(place.inode_bitmap), len)?;
        let first = group.saturating_mul(superblock.inodes_per_group.into());
        for (byte, index) in bitmap.iter().zip((0u64..).step_by(8)) {
            for bit in (0..8u64).filter(|bit| byte.wrapping_shr(u32::try_from(*bit).unwrap_or(0)) & 1 != 0) {
                let index = index.saturating_add(bit);
                let number = first.saturating_add(index).saturating_add(1);
                let Ok(number) = u32::try_from(number) else { continue };
                if number > superblock.inodes || faults.len() >= MAX_FAULTS {
                    continue;
                }
                let at = index.saturating_mul(superblock.inode_size.into());
                let at = superblock.byte_of(place.inode_table).saturating_add(at);
                let bytes = read_vec(ext.disk.as_ref(), at, size)?;
                if Inode::has_wrong_checksum(superblock, number, at, &bytes)? {
                    faults.push(format!("inode {number} at byte {at}"));
                } else if let Ok(inode) = Inode::read(ext, number) {
                    follow(ext, &inode, &mut faults)?;
                }
            }
        }
    }
    Ok(faults)
}

/// The blocks that belong to an inode and are not contents.
fn follow(ext: &Ext, inode: &Inode, faults: &mut Vec<String>) -> Result<()> {
    let mut judge = |result: Result<()>| match result {
        Err(error @ Error::Corrupt { .. }) => {
            faults.push(error.to_string());
            Ok(())
        }
        other => other,
    };
    if inode.file_acl != 0 {
        judge(ext.xattr_names(inode).map(drop))?;
    }
    match (inode.attributes.kind, &inode.contents) {
        (Kind::Directory, _) => {
            let walk = ext.walk(inode, 0, &mut |_| true)?;
            judge(walk.damage.map_or(Ok(()), Err))
        }
        (_, Contents::Extents(_)) => judge(extents(ext, inode)),
        _ => Ok(()),
    }
}

/// Meets every block of an extent tree.
fn extents(ext: &Ext, inode: &Inode) -> Result<()> {
    let map = FileMap { ext, inode };
    let (mut offset, end) = (0u64, map.size());
    while offset < end {
        offset = offset.saturating_add(map.map(offset)?.len.max(1));
    }
    Ok(())
}
