//! The totals that `statfs` reports: the volume less what its own tables take.

use crate::error::Result;

use super::Ext;
use super::group::{Group, descriptor_blocks};
use super::superblock::{Superblock, compat, ro_compat};

/// More groups than this (128 TB with the usual ones) are not summed up: the superblock's own
/// counts serve.
const MOST_GROUPS: u64 = 1 << 20;

/// Totals of a volume.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Blocks that contents can take.
    pub blocks: u64,
    /// Free blocks.
    pub free_blocks: u64,
    /// Free inodes.
    pub free_inodes: u64,
    /// Groups whose descriptor is not in order.
    pub damaged_groups: u64,
}

/// Sums up the groups as the kernel does when it mounts.
pub fn totals(ext: &Ext) -> Totals {
    let superblock = &ext.superblock;
    let cluster = u64::from(superblock.cluster_blocks);
    let mut totals = Totals { free_blocks: 0, ..Totals::default() };
    let mut free_clusters = 0u64;
    let groups = superblock.groups();
    if groups <= MOST_GROUPS {
        for group in 0..groups {
            match Group::read(ext.disk.as_ref(), superblock, group) {
                Ok(found) => {
                    free_clusters = free_clusters.saturating_add(found.free_clusters.into());
                    totals.free_inodes = totals.free_inodes.saturating_add(found.free_inodes.into());
                    totals.damaged_groups = totals.damaged_groups.saturating_add((!found.checksum_ok).into());
                }
                Err(_) => totals.damaged_groups = totals.damaged_groups.saturating_add(1),
            }
        }
        totals.free_blocks = free_clusters.saturating_mul(cluster);
    } else {
        totals.free_blocks = superblock.free_blocks;
        totals.free_inodes = superblock.free_inodes.into();
    }
    let overhead = overhead(ext).unwrap_or(0).saturating_mul(cluster);
    totals.blocks = superblock.blocks.saturating_sub(overhead);
    totals
}

/// Clusters of overhead: what the kernel calls `s_overhead`.
fn overhead(ext: &Ext) -> Result<u64> {
    let superblock = &ext.superblock;
    let cluster = u64::from(superblock.cluster_blocks).max(1);
    let stored = u64::from(superblock.overhead_clusters);
    let bigalloc = superblock.has_ro_compat(ro_compat::BIGALLOC);
    if bigalloc && stored != 0 && stored <= superblock.blocks {
        return Ok(stored);
    }
    let mut clusters = u64::from(superblock.first_data_block).checked_div(cluster).unwrap_or(0);
    let groups = superblock.groups();
    if groups > MOST_GROUPS {
        return Ok(stored);
    }
    if bigalloc {
        clusters = clusters.saturating_add(bigalloc_overhead(ext, groups));
    } else {
        for group in 0..groups {
            let tables = u64::from(superblock.has_super(group))
                .saturating_add(descriptor_blocks(superblock, group))
                .saturating_add(superblock.inode_table_blocks())
                .saturating_add(2);
            clusters = clusters.saturating_add(tables);
        }
    }
    if superblock.has_compat(compat::HAS_JOURNAL) && superblock.journal_inode != 0 {
        let journal = ext.inode(superblock.journal_inode)?;
        let blocks = journal.attributes.size.checked_div(superblock.block_size.into()).unwrap_or(0);
        clusters = clusters.saturating_add(blocks.div_ceil(cluster));
    }
    Ok(clusters)
}

/// With clusters, tables of several groups share some: each cluster counts once.
fn bigalloc_overhead(ext: &Ext, groups: u64) -> u64 {
    let superblock: &Superblock = &ext.superblock;
    let cluster = u64::from(superblock.cluster_blocks).max(1);
    let table = superblock.inode_table_blocks();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut add = |first: u64, count: u64| {
        if count > 0 {
            let start = first.saturating_sub(superblock.first_data_block.into());
            let last = start.saturating_add(count).saturating_sub(1);
            runs.push((start.checked_div(cluster).unwrap_or(0), last.checked_div(cluster).unwrap_or(0)));
        }
    };
    for group in 0..groups {
        let own = u64::from(superblock.has_super(group)).saturating_add(descriptor_blocks(superblock, group));
        add(superblock.group_start(group), own);
        if let Ok(found) = Group::read(ext.disk.as_ref(), superblock, group) {
            add(found.block_bitmap, 1);
            add(found.inode_bitmap, 1);
            add(found.inode_table, table);
        }
    }
    runs.sort_unstable();
    let (mut total, mut next) = (0u64, 0u64);
    for (first, last) in runs {
        let first = first.max(next);
        if last >= first {
            next = last.saturating_add(1);
            total = total.saturating_add(next.saturating_sub(first));
        }
    }
    total
}
