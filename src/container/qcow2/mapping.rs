//! From an offset of the disk through L1 and L2 tables to a cluster.

use super::{FORMAT, L1, Layout};
use crate::container::table::{Extent, Tables, clip, join};
use crate::container::unpack;
use crate::device::mapped::{Mapping, Place, Run};
use crate::device::{Device, read_vec};
use crate::error::{Error, Result};

/// Bits of L1 and L2 entries.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const SUBCLUSTERS: u64 = 32;

/// One disk of the image: the active one or a snapshot.
pub(super) struct Clusters {
    pub(super) layout: Layout,
    pub(super) l1: L1,
    pub(super) l1_tables: Tables,
    pub(super) l2_tables: Tables,
    /// The image, which holds the tables and the packed clusters.
    pub(super) file: Device,
    /// Size of what holds the other clusters: the image, or its external data file.
    pub(super) data_size: u64,
    pub(super) size: u64,
}

impl Mapping for Clusters {
    fn size(&self) -> u64 {
        self.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let layout = self.layout;
        let coverage = layout.l2_coverage().max(1);
        let (l1_index, within) = (div(offset, coverage), rem(offset, coverage));
        let l1 = self.l1_tables.entries(self.l1, l1_index)?;
        let table = l1.first() & OFFSET;
        if table == 0 {
            let absent = l1.rest().iter().take_while(|&&entry| entry & OFFSET == 0);
            return join(coverage, within, absent.map(|_| Ok(Place::Parent)));
        }
        if rem(table, layout.cluster_size()) != 0 {
            return Err(Error::corrupt(FORMAT.name, "L1 entry (an L2 table within a cluster)", table));
        }
        let cluster = div(within, layout.cluster_size());
        let within = rem(within, layout.cluster_size());
        let l2 = Extent { at: table, count: div(layout.cluster_size(), 8) };
        let entries = self.l2_tables.entries(l2, cluster.saturating_mul(layout.l2_words()))?;
        let run = if layout.extended_l2 {
            self.subclusters(entries.rest(), within)?
        } else {
            let places = entries.rest().iter().map(|&entry| self.place(entry));
            join(layout.cluster_size(), within, places)?
        };
        Ok(clip(run, self.data_size))
    }

    fn unpack(&self, unit: u64) -> Result<Vec<u8>> {
        // Section "Compressed Clusters Descriptor": the offset has 70 - cluster_bits bits, and what
        // is above it counts the further 512-byte sectors that the packed bytes touch.
        let bits = 70u32.saturating_sub(self.layout.cluster_bits);
        let host = unit & 1u64.wrapping_shl(bits).wrapping_sub(1);
        let sectors = unit.wrapping_shr(bits).saturating_add(1);
        let corrupt = || Error::corrupt(FORMAT.name, "compressed cluster", host);
        let len = sectors.saturating_mul(512).saturating_sub(host % 512);
        // The last one may end with the file, before its last sector is full.
        let len = len.min(self.file.size().saturating_sub(host));
        let packed = read_vec(self.file.as_ref(), host, usize::try_from(len).map_err(|_| corrupt())?)?;
        let size = usize::try_from(self.layout.cluster_size()).map_err(|_| corrupt())?;
        let unpacked =
            if self.layout.zstd { unpack::zstd(&packed, size) } else { unpack::inflate(&packed, false, size) };
        unpacked.ok_or_else(corrupt)
    }
}

impl Clusters {
    /// Section "Standard Cluster Descriptor".
    fn place(&self, entry: u64) -> Result<Place> {
        if entry & COMPRESSED != 0 {
            return self.packed(entry);
        }
        if entry & ZERO != 0 {
            let at = entry & OFFSET;
            let old = || Error::corrupt(FORMAT.name, "L2 entry (a zero cluster in version 2)", at);
            return if self.layout.version < 3 { Err(old()) } else { Ok(Place::Hole) };
        }
        match entry & OFFSET {
            0 if !(self.layout.external && entry & COPIED != 0) => Ok(Place::Parent),
            host => self.stored(host),
        }
    }

    fn packed(&self, entry: u64) -> Result<Place> {
        if self.layout.external {
            return Err(Error::corrupt(FORMAT.name, "L2 entry (a compressed cluster with external data)", 0));
        }
        Ok(Place::Packed { unit: entry & !(COPIED | COMPRESSED), within: 0 })
    }

    fn stored(&self, host: u64) -> Result<Place> {
        if rem(host, self.layout.cluster_size()) != 0 || host >= self.data_size {
            return Err(Error::corrupt(FORMAT.name, "data cluster (misplaced or past the end of the file)", host));
        }
        Ok(Place::At(host))
    }

    /// Section "Extended L2 Entries": each entry is followed by 32 bits "allocated" and 32 "zero".
    fn subclusters(&self, words: &[u64], within: u64) -> Result<Run> {
        let size = self.layout.cluster_size() / SUBCLUSTERS;
        let (pairs, _) = words.as_chunks::<2>();
        let all = pairs.iter().flat_map(|&[entry, bits]| {
            (0..SUBCLUSTERS).map(move |i| self.subcluster(entry, bits, i, i.saturating_mul(size)))
        });
        let skipped = usize::try_from(div(within, size)).map_err(|_| Error::Invalid)?;
        join(size, rem(within, size), all.skip(skipped))
    }

    fn subcluster(&self, entry: u64, bits: u64, index: u64, start: u64) -> Result<Place> {
        if entry & COMPRESSED != 0 {
            return Ok(self.packed(entry)?.after(start).unwrap_or(Place::Hole));
        }
        let bit = |n: u64| bits.wrapping_shr(u32::try_from(n).unwrap_or(0)) & 1 != 0;
        match (bit(index), bit(index.saturating_add(SUBCLUSTERS))) {
            (false, false) => Ok(Place::Parent),
            (false, true) => Ok(Place::Hole),
            (true, false) => {
                let host = entry & OFFSET;
                let absent = host == 0 && !(self.layout.external && entry & COPIED != 0);
                if absent {
                    return Err(Error::corrupt(FORMAT.name, "L2 entry (subclusters without a cluster)", 0));
                }
                Ok(self.stored(host)?.after(start).unwrap_or(Place::Hole))
            }
            (true, true) => {
                Err(Error::corrupt(FORMAT.name, "L2 entry (a subcluster both stored and zero)", entry & OFFSET))
            }
        }
    }
}

fn div(n: u64, by: u64) -> u64 {
    n.checked_div(by).unwrap_or(0)
}

fn rem(n: u64, by: u64) -> u64 {
    n.checked_rem(by).unwrap_or(0)
}
