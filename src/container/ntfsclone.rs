//! ntfsclone's special image: the clusters of an NTFS volume that are in use, one after the other, and
//! how many are not. What old versions of Clonezilla keep.
//!
//! Specification: none; ntfs-3g, ntfsprogs/ntfsclone.c.
//!
//! ```text
//!   header (50) | ... | 1, cluster | 1, cluster | 0, number of clusters that are not there (8) | 1, cluster | ...
//! ```
//!
//! Supported: version 10. Clusters that are not there read as zeros. The image is read once when it is
//! opened, because nothing in it says where a cluster is.
//! Not supported: versions before 10, whose byte order is the machine's.

use std::sync::Arc;

use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::device::mapped::{Mapped, Mapping, Place, Run};
use crate::device::{BlockDevice, Device, probe_array, read_array, read_vec};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "ntfsclone", snapshots: false, probe, open };

const MAGIC: &[u8; 16] = b"\0ntfsclone-image";
const HEADER: usize = 50;
/// A gap of clusters, in the stream.
const GAP: u8 = 0;
/// A cluster.
const NEXT: u8 = 1;
/// Bytes of a gap: the command and the number.
const GAP_LEN: u64 = 9;
/// Bytes that are read at once while the stream is looked through.
const STEP: u64 = 1 << 20;
/// Bytes of clusters that are unpacked together.
const GROUP: u64 = 256 << 10;
/// Runs that are kept: of a volume whose every other cluster is in use, 64 GiB.
const MAX_RUNS: usize = 8 << 20;
/// A unit's number: its run, and the group of clusters in it.
const RUN_SHIFT: u32 = 32;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    Ok(probe_array::<16>(device, 0)?.as_ref() == Some(MAGIC))
}

struct Header {
    cluster_size: u64,
    size: u64,
    clusters: u64,
    in_use: u64,
    data_at: u64,
}

impl Header {
    fn read(file: &dyn BlockDevice) -> Result<Self> {
        let bytes = read_array::<HEADER>(file, 0)?;
        let record = Record::new(FORMAT.name, "header", 0, &bytes);
        let (major, minor) = (record.u8(16)?, record.u8(17)?);
        if major != 10 {
            return Err(Error::unsupported(FORMAT.name, format!("version {major}.{minor}")));
        }
        let header = Self {
            cluster_size: record.le32(18)?.into(),
            size: record.le64(22)?,
            clusters: record.le64(30)?,
            in_use: record.le64(38)?,
            data_at: record.le32(46)?.into(),
        };
        let valid = header.cluster_size.is_power_of_two() && (256..=2 << 20).contains(&header.cluster_size);
        let fits = header.clusters.checked_mul(header.cluster_size).is_some_and(|len| len <= header.size);
        // The clusters are counted by 64 bits with a sign.
        if !valid || !fits || header.size > i64::MAX as u64 || header.data_at < HEADER as u64 {
            return Err(record.corrupt_field("size of the volume or of its clusters"));
        }
        Ok(header)
    }
}

/// Clusters that follow each other on the disk and in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    /// First cluster of the disk.
    first: u64,
    count: u64,
    /// Byte of the first command in the file.
    at: u64,
}

fn open(file: Device, _: &dyn Companions, options: &Options) -> Result<Opened> {
    let header = Header::read(file.as_ref())?;
    let (runs, cut) = scan(file.as_ref(), &header, options)?;
    let there = runs.iter().fold(0u64, |sum, run| sum.saturating_add(run.count));
    let (size, cluster_size) = (header.size, header.cluster_size);
    let mut facts = vec![
        ("virtual size", format!("{size} bytes")),
        ("file system", "NTFS".to_owned()),
        ("cluster size", format!("{cluster_size} bytes")),
        ("clusters in use", format!("{there} of {}", header.clusters)),
    ];
    let mut notes = vec!["only clusters in use are in the image: all others read as zeros".to_owned()];
    // A file that ends behind a cluster is cut off as well.
    let cut = cut || there < header.in_use;
    if cut {
        notes.push("the image is cut off: clusters in use are missing at its end".to_owned());
    }
    let end = runs.last().map_or(0, |run| run.first.saturating_add(run.count));
    let lost = if cut { end.saturating_mul(cluster_size) } else { u64::MAX };
    let clusters = Clusters { file: file.clone(), runs, size, cluster_size, lost };
    let disk = Mapped::new(Arc::new(clusters), file, None, 512, options.cache_size);
    let mut opened = Opened::new(FORMAT.name, Arc::new(disk));
    opened.facts.append(&mut facts);
    opened.notes = notes;
    Ok(opened)
}

/// The file in steps, for what reads a byte here and there.
struct Window<'a> {
    file: &'a dyn BlockDevice,
    at: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// `len` bytes, which are few; `None` past the end.
    fn get(&mut self, at: u64, len: usize) -> Result<Option<&[u8]>> {
        let end = at.saturating_add(len as u64);
        if end > self.file.size() {
            return Ok(None);
        }
        if at < self.at || end > self.at.saturating_add(self.bytes.len() as u64) {
            let step = STEP.min(self.file.size().saturating_sub(at)).max(len as u64);
            self.bytes = read_vec(self.file, at, usize::try_from(step).map_err(|_| Error::Invalid)?)?;
            self.at = at;
        }
        let from = usize::try_from(at.saturating_sub(self.at)).map_err(|_| Error::Invalid)?;
        Ok(self.bytes.get(from..from.saturating_add(len)))
    }
}

/// The stretches of the stream, and whether it ends too early.
fn scan(file: &dyn BlockDevice, header: &Header, options: &Options) -> Result<(Vec<Stretch>, bool)> {
    let damaged = |at| Error::corrupt(FORMAT.name, "stream of clusters", at);
    // A volume has sectors behind its last whole cluster: its second boot sector is there.
    let most = header.size.div_ceil(header.cluster_size);
    let mut window = Window { file, at: 0, bytes: Vec::new() };
    let mut runs: Vec<Stretch> = Vec::new();
    let (mut at, mut cluster) = (header.data_at, 0u64);
    let mut after_gap = false;
    // Each turn takes a cluster or a gap, and no gap follows another.
    while at < file.size() {
        let command = window.get(at, 1)?.and_then(|bytes| bytes.first()).copied();
        match command {
            Some(NEXT) if cluster < most => {
                // Of the one that the volume ends in, only so many bytes are kept.
                let rest = header.size.saturating_sub(cluster.saturating_mul(header.cluster_size));
                let len = rest.min(header.cluster_size);
                if at.saturating_add(len) >= file.size() {
                    return Ok((runs, true));
                }
                if let Some(run) = runs.last_mut().filter(|_| !after_gap) {
                    run.count = run.count.saturating_add(1);
                } else if runs.len() < MAX_RUNS {
                    runs.push(Stretch { first: cluster, count: 1, at });
                } else {
                    return Err(Error::unsupported(FORMAT.name, "a volume in millions of pieces"));
                }
                after_gap = false;
                cluster = cluster.saturating_add(1);
                at = at.saturating_add(len).saturating_add(1);
            }
            Some(GAP) if !after_gap => {
                let Some(&[_, ref count @ ..]) = window.get(at, 9)?.and_then(|bytes| bytes.first_chunk::<9>()) else {
                    return Ok((runs, true));
                };
                cluster = cluster.checked_add(u64::from_le_bytes(*count)).ok_or_else(|| damaged(at))?;
                if cluster > most {
                    return Err(damaged(at));
                }
                after_gap = true;
                at = at.saturating_add(GAP_LEN);
            }
            _ => return Err(damaged(at)),
        }
        options.report("reading the list of clusters", at, file.size());
    }
    Ok((runs, false))
}

struct Clusters {
    file: Device,
    /// Ascending, without overlap.
    runs: Vec<Stretch>,
    size: u64,
    cluster_size: u64,
    /// From this byte of the disk on, the file was cut off.
    lost: u64,
}

impl Clusters {
    fn per_group(&self) -> u64 {
        GROUP.checked_div(self.cluster_size).unwrap_or(1).max(1)
    }
}

impl Mapping for Clusters {
    fn size(&self) -> u64 {
        self.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        if offset >= self.lost {
            return Err(Error::corrupt(FORMAT.name, "cluster past the end of the file", self.file.size()));
        }
        let bytes = |clusters: u64| clusters.saturating_mul(self.cluster_size);
        let next = self.runs.partition_point(|run| bytes(run.first) <= offset);
        let found = next.checked_sub(1).and_then(|index| Some((index, self.runs.get(index)?)));
        let inside = found.filter(|(_, run)| offset.saturating_sub(bytes(run.first)) < bytes(run.count));
        let Some((index, run)) = inside else {
            let end = self.runs.get(next).map_or(self.size.min(self.lost), |run| bytes(run.first));
            return Ok(Run { place: Place::Hole, len: end.saturating_sub(offset) });
        };
        let within = offset.saturating_sub(bytes(run.first));
        let group_len = bytes(self.per_group());
        let group = within.checked_div(group_len).unwrap_or(0);
        let start = group.saturating_mul(group_len);
        let unit = (index as u64).wrapping_shl(RUN_SHIFT) | group;
        let whole = bytes(run.count).min(self.size.saturating_sub(bytes(run.first)));
        let end = whole.min(start.saturating_add(group_len));
        let place = Place::Packed { unit, within: within.saturating_sub(start) };
        Ok(Run { place, len: end.saturating_sub(within) })
    }

    fn unpack(&self, unit: u64) -> Result<Vec<u8>> {
        let index = usize::try_from(unit.wrapping_shr(RUN_SHIFT)).map_err(|_| Error::Invalid)?;
        let run = self.runs.get(index).ok_or(Error::Invalid)?;
        let skipped = (unit & ((1u64 << RUN_SHIFT) - 1)).saturating_mul(self.per_group());
        let count = run.count.saturating_sub(skipped).min(self.per_group());
        let stride = self.cluster_size.saturating_add(1);
        let at = run.at.saturating_add(skipped.saturating_mul(stride));
        // The last cluster may be short.
        let len = count.saturating_mul(stride).min(self.file.size().saturating_sub(at));
        let bytes = read_vec(self.file.as_ref(), at, usize::try_from(len).map_err(|_| Error::Invalid)?)?;
        let stride = usize::try_from(stride).map_err(|_| Error::Invalid)?;
        let clusters = bytes.chunks(stride).filter_map(|stored| stored.get(1..));
        Ok(clusters.flatten().copied().collect())
    }
}
