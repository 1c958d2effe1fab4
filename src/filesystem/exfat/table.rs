//! The file allocation table, and where it, or the lack of need for it, puts the bytes of a file.
//!
//! ```text
//!   entry    0            1            2 ..
//!            0xfffffff8   0xffffffff   next cluster | 0xfffffff7 bad | 0xffffffff end of chain
//! ```
//!
//! A file with the flag NoFatChain is one run of clusters, and its entries in the table mean nothing.

use std::sync::Arc;

use super::EXFAT;
use super::boot::{FIRST_CLUSTER, Geometry};
use crate::cache::Cache;
use crate::device::mapped::{Mapping, Place, Run};
use crate::device::{Device, read_vec};
use crate::error::{Error, Result};

/// Bytes of table that are read at once.
const PIECE: u64 = 32 << 10;
/// Bound on the pieces that are kept, in bytes.
const KEPT_PIECES: u64 = 4 << 20;
const END: u32 = 0xffff_ffff;

/// The clusters of one file or directory, in runs of neighbours.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    /// Number of the run's first cluster in the file, and on the volume: eight bytes a run, as the
    /// most fragmented file has as many runs as clusters.
    runs: Vec<(u32, u32)>,
    /// Number of clusters.
    pub count: u32,
    /// Why it is shorter than what was asked for.
    pub damage: Option<Error>,
}

impl Chain {
    fn push(&mut self, cluster: u32) {
        let follows = |&(index, first): &(u32, u32)| {
            first.checked_add(self.count.saturating_sub(index)).is_some_and(|next| next == cluster)
        };
        if !self.runs.last().is_some_and(follows) {
            self.runs.push((self.count, cluster));
        }
        self.count = self.count.saturating_add(1);
    }

    fn truncate(&mut self, count: u32) {
        self.runs.truncate(self.runs.partition_point(|&(index, _)| index < count));
        self.count = self.count.min(count);
    }

    /// The cluster of a number in the file, and how many follow it on the volume, itself included.
    fn find(&self, index: u32) -> Option<(u32, u32)> {
        let next = self.runs.partition_point(|&(start, _)| start <= index);
        let (start, first) = *self.runs.get(next.checked_sub(1)?)?;
        let end = self.runs.get(next).map_or(self.count, |&(start, _)| start);
        let cluster = first.checked_add(index.checked_sub(start)?)?;
        Some((cluster, end.checked_sub(index).filter(|&count| count > 0)?))
    }

    /// First cluster and number of clusters of each run.
    pub fn runs(&self) -> impl Iterator<Item = (u32, u32)> {
        let ends = self.runs.iter().skip(1).map(|&(index, _)| index).chain([self.count]);
        self.runs.iter().zip(ends).map(|(&(index, first), end)| (first, end.saturating_sub(index)))
    }

    /// Weight in a cache.
    pub fn weight(&self) -> u64 {
        (self.runs.capacity().saturating_mul(8) as u64).saturating_add(96)
    }
}

/// The bytes of a file: its clusters as far as it was written to, and nothing behind that.
pub(super) struct FileMap<'a> {
    pub geometry: &'a Geometry,
    pub chain: &'a Chain,
    pub size: u64,
    /// ValidDataLength: what follows reads as zeros, whatever is in the clusters.
    pub valid: u64,
}

impl Mapping for FileMap<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        if offset >= self.valid {
            return Ok(Run { place: Place::Hole, len: self.size.saturating_sub(offset).max(1) });
        }
        let cluster_size = self.geometry.cluster_size;
        let index = offset.checked_div(cluster_size).and_then(|index| u32::try_from(index).ok());
        let within = offset.checked_rem(cluster_size).unwrap_or(0);
        let found = index.and_then(|index| self.chain.find(index));
        let found = found.and_then(|(cluster, count)| Some((self.geometry.cluster_offset(cluster)?, count)));
        let Some((at, count)) = found else {
            let short = || Error::corrupt(EXFAT, "cluster chain (shorter than its file)", self.geometry.table_offset);
            return Err(self.chain.damage.clone().unwrap_or_else(short));
        };
        let len = u64::from(count).saturating_mul(cluster_size).saturating_sub(within);
        let len = len.min(self.valid.saturating_sub(offset));
        Ok(Run { place: Place::At(at.saturating_add(within)), len })
    }
}

/// The table in use.
pub(super) struct Table {
    device: Device,
    geometry: Arc<Geometry>,
    pieces: Cache<u64, Arc<Vec<u8>>>,
}

impl Table {
    pub fn new(device: Device, geometry: Arc<Geometry>) -> Self {
        Self { device, geometry, pieces: Cache::new(KEPT_PIECES) }
    }

    /// Byte position of a cluster's entry.
    pub fn entry_at(&self, cluster: u32) -> u64 {
        self.geometry.table_offset.saturating_add(u64::from(cluster).saturating_mul(4))
    }

    fn piece(&self, number: u64) -> Result<Arc<Vec<u8>>> {
        self.pieces.get_or_make(&number, || {
            let at = self.geometry.table_offset.saturating_add(number.saturating_mul(PIECE));
            // An image that ends within the table has the entries before that.
            let there = self.device.size().saturating_sub(at).min(PIECE);
            let piece = read_vec(self.device.as_ref(), at, usize::try_from(there).map_err(|_| Error::Invalid)?)?;
            Ok((Arc::new(piece), there))
        })
    }

    /// The number in a cluster's entry.
    fn entry(&self, cluster: u32, kept: &mut Option<(u64, Arc<Vec<u8>>)>) -> Result<u32> {
        let offset = u64::from(cluster).saturating_mul(4);
        let number = offset / PIECE;
        let piece = match kept {
            Some((kept, piece)) if *kept == number => piece,
            _ => &mut kept.insert((number, self.piece(number)?)).1,
        };
        let entry = usize::try_from(offset % PIECE).ok().and_then(|start| piece.get(start..)?.first_chunk::<4>());
        let missing = || Error::PastEnd { offset: self.entry_at(cluster), len: 4, size: self.device.size() };
        entry.map(|bytes| u32::from_le_bytes(*bytes)).ok_or_else(missing)
    }

    /// The cluster behind another one; `None` at the end of a chain.
    fn next(&self, cluster: u32, kept: &mut Option<(u64, Arc<Vec<u8>>)>) -> Result<Option<u32>> {
        let corrupt = |what| Err(Error::corrupt(EXFAT, what, self.entry_at(cluster)));
        match self.entry(cluster, kept)? {
            END => Ok(None),
            0 => corrupt("cluster chain (it leads to a free cluster)"),
            next if self.geometry.cluster_offset(next).is_some() => Ok(Some(next)),
            _ => corrupt("cluster chain (a number that no cluster has)"),
        }
    }

    /// As [`Table::next`], for one step alone.
    pub fn after(&self, cluster: u32) -> Option<u32> {
        self.next(cluster, &mut None).ok().flatten()
    }

    /// A run of clusters without a chain, as many as so many bytes take; `at` is the byte position of what says so.
    pub fn run(&self, first: u32, len: u64, at: u64) -> Chain {
        let wanted = self.geometry.clusters_of(len);
        let there = match self.geometry.cluster_offset(first) {
            Some(_) => self.geometry.cluster_count.saturating_sub(first.saturating_sub(FIRST_CLUSTER)),
            None => 0,
        };
        let count = u32::try_from(wanted).unwrap_or(u32::MAX).min(there);
        let short = u64::from(count) < wanted;
        let damage = short.then(|| Error::corrupt(EXFAT, "stream extension (its clusters)", at));
        Chain { runs: if count == 0 { Vec::new() } else { vec![(0, first)] }, count, damage }
    }

    /// The chain that starts at a cluster, up to its end or to as many clusters as `most` bytes take. When it
    /// ends, or cannot be followed, before it has `len` bytes, that is its damage. `at` is the byte position of
    /// what leads to it.
    pub fn chain(&self, first: u32, len: u64, most: u64, at: u64) -> Chain {
        let mut chain = Chain { runs: Vec::new(), count: 0, damage: None };
        let limit = u32::try_from(self.geometry.clusters_of(most)).unwrap_or(u32::MAX).min(self.geometry.cluster_count);
        let wanted = self.geometry.clusters_of(len);
        if wanted > 0 && self.geometry.cluster_offset(first).is_none() {
            chain.damage = Some(Error::corrupt(EXFAT, "first cluster", at));
            return chain;
        }
        // Brent's search for a loop: `marked` is the cluster of the last step that was a power of two. It finds one
        // that begins and ends within so many steps before three times as many.
        let (mut cluster, mut marked, mut kept, mut steps) = (first, 0, None, 0u64);
        let enough = u64::from(limit).saturating_mul(3);
        while steps < enough {
            if cluster == marked {
                return self.before_loop(chain, first, cluster, limit);
            }
            if chain.count < limit {
                chain.push(cluster);
            }
            steps = steps.saturating_add(1);
            if steps.is_power_of_two() {
                marked = cluster;
            }
            match self.next(cluster, &mut kept) {
                Ok(Some(next)) => cluster = next,
                // What comes after that much is no one's matter.
                _ if steps > limit.into() => break,
                Ok(None) if u64::from(chain.count) >= wanted => break,
                Err(_) if chain.count == limit && u64::from(limit) >= wanted => break,
                Ok(None) => {
                    let what = "cluster chain (shorter than its file)";
                    chain.damage = Some(Error::corrupt(EXFAT, what, self.entry_at(cluster)));
                    break;
                }
                Err(error) => {
                    chain.damage = Some(error);
                    break;
                }
            }
        }
        chain
    }

    /// The part of a chain before it leads back into itself, when that is before `limit` clusters; `within` is a
    /// cluster of the loop.
    fn before_loop(&self, mut chain: Chain, first: u32, within: u32, limit: u32) -> Chain {
        let (mut kept, mut ahead_kept) = (None, None);
        let step = |cluster, kept: &mut _| self.next(cluster, kept).ok().flatten().unwrap_or(cluster);
        let most = self.geometry.cluster_count;
        let (mut loop_len, mut ahead) = (1u32, step(within, &mut kept));
        while ahead != within && loop_len < most {
            ahead = step(ahead, &mut kept);
            loop_len = loop_len.saturating_add(1);
        }
        // Of two that are the loop's length apart, both come to its start at once.
        let (mut cluster, mut ahead) = (first, first);
        for _ in 0..loop_len {
            ahead = step(ahead, &mut ahead_kept);
        }
        let mut count = loop_len;
        while cluster != ahead && count < most {
            cluster = step(cluster, &mut kept);
            ahead = step(ahead, &mut ahead_kept);
            count = count.saturating_add(1);
        }
        if count >= limit {
            // It comes back behind all that was asked for.
            return chain;
        }
        chain.truncate(count);
        let last = count.checked_sub(1).and_then(|last| chain.find(last)).map_or(first, |(cluster, _)| cluster);
        let what = "cluster chain (it leads back into itself)";
        chain.damage = Some(Error::corrupt(EXFAT, what, self.entry_at(last)));
        chain
    }
}
