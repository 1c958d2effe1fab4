//! Cluster arithmetic: which table, which entry, which byte.

use crate::error::{Error, Result};

/// Bytes of an L1, L2 or refcount table entry.
pub(super) const ENTRY: u64 = 8;

/// Cluster size and disk size, validated: 2^9 to 2^21 bytes, below 2^63 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    bits: u32,
    /// Disk size as the header has it, a multiple of 512.
    pub disk_size: u64,
}

impl Geometry {
    pub fn new(bits: u32, disk_size: u64) -> Option<Self> {
        ((9..=21).contains(&bits) && i64::try_from(disk_size).is_ok()).then_some(Self { bits, disk_size })
    }

    /// The smallest clusters that qemu accepts for a disk of this size (its L1 table is at most
    /// 32 MiB; ours stays at 4 MiB), and into the first of which `header_len` bytes fit: 512 bytes
    /// for floppies, 4 KiB up to 1 TiB.
    pub fn choose(disk_size: u64, header_len: u64) -> Result<Self> {
        const FLOPPY: u64 = 2880 << 10;
        let smallest = if disk_size <= FLOPPY { 9 } else { 12 };
        (smallest..=21)
            .filter_map(|bits| Self::new(bits, disk_size))
            .find(|geometry| geometry.l1_entries() <= 1 << 19 && geometry.cluster_size() >= header_len)
            .ok_or_else(|| Error::unsupported("overlay", format!("a disk of {disk_size} bytes")))
    }

    pub fn bits(self) -> u32 {
        self.bits
    }

    pub fn cluster_size(self) -> u64 {
        1u64.wrapping_shl(self.bits)
    }

    /// `cluster_size` as a buffer length: at most 2 MiB.
    pub fn cluster_len(self) -> usize {
        1usize.wrapping_shl(self.bits)
    }

    /// Number of the cluster that holds the byte at `offset`.
    pub fn cluster(self, offset: u64) -> u64 {
        offset.wrapping_shr(self.bits)
    }

    /// Byte within its cluster.
    pub fn within(self, offset: u64) -> u64 {
        offset & self.cluster_size().wrapping_sub(1)
    }

    /// First byte of a cluster.
    pub fn start(self, cluster: u64) -> u64 {
        cluster.saturating_mul(self.cluster_size())
    }

    /// Clusters that `len` bytes take.
    pub fn clusters(self, len: u64) -> u64 {
        self.cluster(len).saturating_add(u64::from(self.within(len) != 0))
    }

    /// Entries of an L2 table, and of one cluster of the refcount table.
    pub fn entries(self) -> u64 {
        1u64.wrapping_shl(self.bits.wrapping_sub(3))
    }

    /// Index into the L1 table of the L2 table for a cluster of the disk.
    pub fn l1_index(self, cluster: u64) -> usize {
        // Below 2^52: an index on every host that has 64-bit pointers, and out of range elsewhere.
        usize::try_from(cluster.wrapping_shr(self.bits.wrapping_sub(3))).unwrap_or(usize::MAX)
    }

    /// Index within its L2 table.
    pub fn l2_index(self, cluster: u64) -> usize {
        usize::try_from(cluster & self.entries().wrapping_sub(1)).unwrap_or(usize::MAX)
    }

    /// Clusters from this one to the end of its L2 table; at least one.
    pub fn left_in_table(self, cluster: u64) -> u64 {
        self.entries().saturating_sub(cluster & self.entries().wrapping_sub(1))
    }

    /// Bytes of the disk that one L2 table maps.
    pub fn l2_reach(self) -> u64 {
        self.entries().wrapping_shl(self.bits)
    }

    /// L1 entries for the whole disk.
    pub fn l1_entries(self) -> u64 {
        let reach = self.bits.wrapping_mul(2).wrapping_sub(3);
        let whole = self.disk_size.wrapping_shr(reach);
        whole.saturating_add(u64::from(self.disk_size & self.l2_reach().wrapping_sub(1) != 0))
    }

    /// Clusters that one refcount block of 16-bit counts covers.
    pub fn counts(self) -> u64 {
        1u64.wrapping_shl(self.bits.wrapping_sub(1))
    }

    /// Index of the refcount block for a cluster of the file.
    pub fn block_index(self, cluster: u64) -> usize {
        usize::try_from(cluster.wrapping_shr(self.bits.wrapping_sub(1))).unwrap_or(usize::MAX)
    }

    /// Index within its refcount block.
    pub fn count_index(self, cluster: u64) -> usize {
        usize::try_from(cluster & self.counts().wrapping_sub(1)).unwrap_or(usize::MAX)
    }

    /// First cluster that refcount block `index` covers.
    pub fn block_start(self, index: usize) -> u64 {
        (index as u64).saturating_mul(self.counts())
    }
}

/// The entries of a table, as in the file.
pub(super) fn to_bytes(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

/// The entries of a table of the file.
pub(super) fn from_bytes(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_as_small_as_qemu_allows() {
        let bits = |size| Geometry::choose(size, 400).unwrap().bits();
        assert_eq!((bits(1440 << 10), bits(2880 << 10), bits(4 << 20)), (9, 9, 12));
        assert_eq!((bits(1 << 40), bits((1 << 40) + 512), bits(1 << 50)), (12, 13, 17));
        assert_eq!(Geometry::choose(1440 << 10, 600).unwrap().bits(), 10);
    }

    #[test]
    fn indexes_follow_the_cluster_size() {
        let geometry = Geometry::new(12, (2 << 20) + 512).unwrap();
        assert_eq!((geometry.l2_reach(), geometry.l1_entries(), geometry.counts()), (2 << 20, 2, 2048));
        assert_eq!((geometry.l1_index(513), geometry.l2_index(513)), (1, 1));
        assert_eq!((geometry.block_index(2049), geometry.count_index(2049)), (1, 1));
    }
}
