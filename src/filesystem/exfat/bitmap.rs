//! The allocation bitmap: a bit for each cluster, that of cluster 2 first.

use std::sync::Arc;

use super::boot::{FIRST_CLUSTER, Geometry};
use super::entry::ENTRY;
use super::table::{Chain, FileMap, Table};
use super::{EXFAT, Exfat};
use crate::bytes::Record;
use crate::device::mapped::read_runs;
use crate::error::{Error, Result};

/// Read at once.
const PIECE: u64 = 64 << 10;
/// A longer bitmap is not counted where the boot sector says how much is in use: four terabytes of the usual clusters.
const COUNTED: u64 = 4 << 20;

/// Where the bitmap is.
#[derive(Debug)]
pub(super) struct Bitmap {
    /// Whether it is the second one.
    pub second: bool,
    chain: Chain,
    len: u64,
}

impl Bitmap {
    /// From its entry in the root directory, which is at a byte of the volume.
    pub fn parse(entry: &[u8; ENTRY], at: u64, geometry: &Geometry, table: &Table) -> Result<Self> {
        let record = Record::new(EXFAT, "allocation bitmap entry", at, entry);
        let len = u64::from(geometry.cluster_count).div_ceil(8);
        if record.le64(24)? < len {
            return Err(record.corrupt_field("DataLength"));
        }
        let chain = table.chain(record.le32(20)?, len, len, at);
        Ok(Self { second: record.u8(1)? & 1 != 0, chain, len })
    }

    fn read(&self, exfat: &Exfat, buf: &mut [u8], offset: u64) -> Result<()> {
        let map = FileMap { geometry: &exfat.geometry, chain: &self.chain, size: self.len, valid: self.len };
        read_runs(&map, exfat.device.as_ref(), buf, offset)
    }

    /// First cluster and count of each of its own runs.
    pub fn runs(&self) -> impl Iterator<Item = (u32, u32)> {
        self.chain.runs()
    }

    /// The bits of `count` clusters, gone through in pieces: calls `visit` with each cluster and whether it is in use,
    /// until that is `false`.
    pub fn each(&self, exfat: &Exfat, first: u32, count: u32, mut visit: impl FnMut(u32, bool) -> bool) -> Result<()> {
        let start = u64::from(first.saturating_sub(FIRST_CLUSTER));
        let end = start.saturating_add(count.into()).min(u64::from(exfat.geometry.cluster_count));
        // One run of many asks for a few bits.
        let most = end.div_ceil(8).saturating_sub(start / 8).min(PIECE);
        let mut buf = vec![0; usize::try_from(most).map_err(|_| Error::Invalid)?];
        let mut index = start;
        while index < end {
            let offset = index / 8;
            let len = end.div_ceil(8).saturating_sub(offset).min(PIECE);
            let piece = usize::try_from(len).ok().and_then(|len| buf.get_mut(..len)).ok_or(Error::Invalid)?;
            self.read(exfat, piece, offset)?;
            let bits = piece.iter().flat_map(|&byte| (0..8).map(move |bit| byte >> bit & 1 != 0));
            let skipped = usize::try_from(index % 8).unwrap_or(0);
            for used in bits.skip(skipped) {
                if index == end {
                    break;
                }
                let cluster = u32::try_from(index).unwrap_or(u32::MAX).saturating_add(FIRST_CLUSTER);
                if !visit(cluster, used) {
                    return Ok(());
                }
                index = index.saturating_add(1);
            }
        }
        Ok(())
    }

    /// Clusters in use, counted eight at a time.
    fn count(&self, exfat: &Exfat) -> Result<u64> {
        let clusters = u64::from(exfat.geometry.cluster_count);
        let mut buf = vec![0; usize::try_from(PIECE.min(self.len)).map_err(|_| Error::Invalid)?];
        let (mut offset, mut used) = (0u64, 0u64);
        while offset < self.len {
            let len = self.len.saturating_sub(offset).min(PIECE);
            let piece = usize::try_from(len).ok().and_then(|len| buf.get_mut(..len)).ok_or(Error::Invalid)?;
            self.read(exfat, piece, offset)?;
            offset = offset.saturating_add(len);
            // Bits behind the last cluster mean nothing.
            if offset == self.len
                && let (Some(last), rest @ 1..) = (piece.last_mut(), clusters % 8)
            {
                *last &= 0xff >> 8u64.saturating_sub(rest);
            }
            let ones: u64 = piece.iter().map(|byte| u64::from(byte.count_ones())).sum();
            used = used.saturating_add(ones);
        }
        Ok(used)
    }
}

impl Exfat {
    /// Free clusters, and a note when they are an estimate, or not known.
    pub(super) fn free_clusters(&self) -> (u64, Option<String>) {
        let total = u64::from(self.geometry.cluster_count);
        let percent = self.geometry.percent_in_use.map(u64::from);
        let estimate = |percent: u64| total.saturating_sub(total.saturating_mul(percent) / 100);
        let large = self.bitmap.as_ref().is_ok_and(|bitmap| bitmap.len > COUNTED);
        if let Some(percent) = percent.filter(|_| large) {
            let note =
                format!("the bitmap is large: free space is what the boot sector says, {percent} per cent in use");
            return (estimate(percent), Some(note));
        }
        let counted = match &self.bitmap {
            Ok(bitmap) => bitmap.count(self),
            Err(error) => Err(error.clone()),
        };
        match (counted, percent) {
            (Ok(used), _) => (total.saturating_sub(used), None),
            (Err(error), Some(percent)) => (
                estimate(percent),
                Some(format!("{error}: free space is what the boot sector says, {percent} per cent in use")),
            ),
            (Err(error), None) => (0, Some(format!("{error}: the number of free clusters is not known"))),
        }
    }
}

/// The bitmap in use, or the only one that there is.
pub(super) fn choose(bitmaps: Vec<Result<Bitmap>>, second: bool, root_at: u64) -> Result<Arc<Bitmap>> {
    let missing = || Err(Error::corrupt(EXFAT, "root directory (no allocation bitmap)", root_at));
    let (wanted, others): (Vec<_>, Vec<_>) =
        bitmaps.into_iter().partition(|bitmap| bitmap.as_ref().is_ok_and(|bitmap| bitmap.second == second));
    wanted.into_iter().chain(others).next().unwrap_or_else(missing).map(Arc::new)
}
