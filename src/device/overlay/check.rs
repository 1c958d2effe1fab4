//! What an overlay holds, and whether its file is in order: our own `qemu-img check`.

use std::path::Path;

use super::geometry::{ENTRY, from_bytes};
use super::header::Header;
use super::refcounts::Refcounts;
use super::store::{HostStore, Store, host};
use super::tables::{COPIED, OFFSET, Spot, decode};
use super::{BaseReference, reference};
use crate::error::{Error, Result};

/// Errors past this many are counted and not kept.
const MAX_KEPT: usize = 100;

/// What [`check`] found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What is wrong, one sentence each; the first hundred.
    pub errors: Vec<String>,
    /// How many things are wrong.
    pub error_count: u64,
    /// Clusters that are counted and not used: room lost, nothing more; the next writer takes them.
    pub leaks: u64,
    /// Clusters of the disk that the overlay has bytes for.
    pub data_clusters: u64,
    /// Clusters of the disk that the overlay has as zeros, without bytes.
    pub zero_clusters: u64,
}

impl Report {
    fn error(&mut self, what: impl FnOnce() -> String) {
        self.error_count = self.error_count.saturating_add(1);
        if self.errors.len() < MAX_KEPT {
            self.errors.push(what());
        }
    }
}

/// What [`info`] tells.
#[derive(Debug, Clone)]
pub struct Info {
    /// Disk size as the header has it, a multiple of 512.
    pub disk_size: u64,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// Size of the overlay's file, bytes.
    pub file_size: u64,
    /// Clusters of the disk that the overlay has bytes for.
    pub data_clusters: u64,
    /// Clusters of the disk that the overlay has as zeros.
    pub zero_clusters: u64,
    /// What the overlay says of its base.
    pub base: BaseReference,
}

/// Describes an overlay, also one that is in use; the base is not opened.
pub fn info(path: &Path) -> Result<Info> {
    let store = HostStore::open_read_only(path, false)?;
    let header = Header::read(&store)?;
    let mut report = Report::default();
    read_tables(&store, &header, &mut report)?;
    Ok(Info {
        disk_size: header.geometry.disk_size,
        cluster_size: header.geometry.cluster_size(),
        file_size: store.size().map_err(|error| host(&path.display().to_string(), error))?,
        data_clusters: report.data_clusters,
        zero_clusters: report.zero_clusters,
        base: reference(path, &header)?,
    })
}

/// Checks an overlay's file; not one that is in use. An error is one of reading it at all.
pub fn check(path: &Path) -> Result<Report> {
    check_store(&HostStore::open_read_only(path, true)?)
}

/// As [`check`], of a store of the caller's.
pub fn check_store(store: &dyn Store) -> Result<Report> {
    let header = Header::read(store)?;
    let geometry = header.geometry;
    let refcounts = Refcounts::read(store, &header, None)?;
    let mut report = Report::default();
    let mut used = read_tables(store, &header, &mut report)?;
    let l1_first = geometry.cluster(header.l1.offset);
    let l1_count = geometry.clusters(header.l1.entries.saturating_mul(ENTRY));
    used.push(0);
    used.extend(l1_first..l1_first.saturating_add(l1_count));
    used.extend(refcounts.own_clusters());
    used.sort_unstable();
    for group in used.chunk_by(|a, b| a == b) {
        let Some(cluster) = group.first() else { continue };
        let at = geometry.start(*cluster);
        if group.len() > 1 {
            report.error(|| format!("the cluster at byte {at} is used {} times", group.len()));
        }
        if usize::from(refcounts.count(*cluster)) < group.len() {
            report.error(|| format!("the cluster at byte {at} is used and not counted"));
        }
    }
    used.dedup();
    let mut next = used.iter().copied().peekable();
    for (cluster, count) in refcounts.counted() {
        while next.next_if(|used| *used < cluster).is_some() {}
        if next.peek() != Some(&cluster) || count > 1 {
            report.leaks = report.leaks.saturating_add(1);
        }
    }
    Ok(report)
}

/// Clusters of the file to which L1 and L2 lead; bad entries go into the report.
fn read_tables(store: &dyn Store, header: &Header, report: &mut Report) -> Result<Vec<u64>> {
    let geometry = header.geometry;
    let io = |error| host("checking the overlay", error);
    let file_size = store.size().map_err(io)?;
    let inside = |at: u64| at.checked_add(geometry.cluster_size()).is_some_and(|end| end <= file_size);
    let mut used = Vec::new();
    // At most 32 MiB, inside the file: the header was checked.
    let l1_len = usize::try_from(header.l1.entries.saturating_mul(ENTRY)).map_err(|_| Error::Invalid)?;
    let mut l1 = vec![0; l1_len];
    store.read_at(&mut l1, header.l1.offset).map_err(io)?;
    let mut bytes = vec![0; geometry.cluster_len()];
    let mut seen = std::collections::HashSet::new();
    for entry in from_bytes(&l1).into_iter().filter(|entry| entry & OFFSET != 0) {
        let at = entry & OFFSET;
        if geometry.within(at) != 0 || !inside(at) {
            report.error(|| format!("an L1 entry leads to byte {at}, where no table can be"));
            continue;
        }
        if entry & COPIED == 0 {
            report.error(|| format!("the L1 entry of the table at byte {at} lacks its COPIED flag"));
        }
        used.push(geometry.cluster(at));
        // A table that is used twice is reported by the counts, and read once.
        if !seen.insert(at) {
            continue;
        }
        store.read_at(&mut bytes, at).map_err(io)?;
        for entry in from_bytes(&bytes).into_iter().filter(|entry| *entry != 0) {
            let spot = match decode(entry, geometry) {
                Ok(spot) => spot,
                Err(error) => {
                    report.error(|| format!("in the L2 table at byte {at}: {error}"));
                    continue;
                }
            };
            match spot {
                Spot::Zero { .. } => report.zero_clusters = report.zero_clusters.saturating_add(1),
                Spot::Data { .. } => report.data_clusters = report.data_clusters.saturating_add(1),
                Spot::Base => {}
            }
            let to = entry & OFFSET;
            if to == 0 {
                continue;
            }
            if entry & COPIED == 0 {
                report.error(|| format!("the L2 entry of the cluster at byte {to} lacks its COPIED flag"));
            }
            if to >= file_size {
                report.error(|| format!("an L2 entry leads to byte {to}, past the end of the file"));
                continue;
            }
            used.push(geometry.cluster(to));
        }
    }
    Ok(used)
}
