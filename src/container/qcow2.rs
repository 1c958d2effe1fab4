//! QCOW2 versions 2 and 3, QEMU's own format: clusters found through two levels of tables, packed
//! or not, over an optional backing file, with snapshots inside.
//!
//! Specification: QEMU, docs/interop/qcow2.txt.
//!
//! ```text
//!   header | extensions | backing file name | ... clusters in any order ...
//!     |
//!     +-> L1 table -> L2 tables -> data clusters        one L1 table for the disk,
//!     +-> snapshot table -> L1 tables of the snapshots  one for each snapshot
//! ```
//!
//! Supported: zlib and Zstandard clusters, extended L2 entries (subclusters), external data files,
//! backing chains of any known format, internal snapshots, images that were not closed properly
//! (read as they are: only reference counts can be wrong in them).
//! Not supported: encryption (AES and LUKS), images marked as corrupt, backing files given as URLs
//! or as `json:` descriptions.

mod header;
mod mapping;
mod snapshot;
mod verify;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use self::header::Header;
use self::mapping::Clusters;
use self::snapshot::Snapshot;
use super::table::{Extent, Tables, Width};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::check::Check;
use crate::device::mapped::Mapped;
use crate::device::overlay::Binding;
use crate::device::{BlockDevice, Device, probe_array};
use crate::error::{Error, Result};
use crate::text::printable;

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "qcow2", snapshots: true, probe, open };

/// Snapshots that `info` lists; all of them can be opened.
const LISTED_SNAPSHOTS: usize = 100;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    Ok(matches!(probe_array::<8>(device, 0)?, Some([b'Q', b'F', b'I', 0xfb, 0, 0, 0, 2 | 3])))
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let header = Header::read(file.as_ref())?;
    let (snapshots, _) = snapshot::read_all(file.as_ref(), &header)?;
    let (l1, size) = match &options.snapshot {
        None => (header.l1, header.size),
        Some(wanted) => {
            let found = snapshot::find(&snapshots, wanted)?;
            (found.l1, found.size.unwrap_or(header.size))
        }
    };
    header.check_l1(l1, size, file.size())?;
    let backing = match &header.backing {
        Some(name) => Some((name, open_backing(name, header.backing_format.as_deref(), companions)?)),
        None => None,
    };
    let bound = match (&header.binding, &backing) {
        (Some(binding), Some((name, parent))) => Some(verified(binding, name, parent, options.force_base, companions)?),
        _ => None,
    };
    // The header has it in whole sectors.
    let exact = bound.map(|bound| bound.disk_size).filter(|exact| exact.checked_next_multiple_of(512) == Some(size));
    let size = exact.unwrap_or(size);
    let tables = file.clone();
    let data = match &header.data_file {
        Some(name) => companions.open(Path::new(OsStr::from_bytes(local_name(name)?)))?,
        None => file.clone(),
    };
    let clusters = Clusters {
        l1,
        l1_tables: Tables::new(file.clone(), Width::Be64, FORMAT.name, "L1 table"),
        l2_tables: Tables::new(file.clone(), Width::Be64, FORMAT.name, "L2 table"),
        file,
        data_size: data.size(),
        size,
        layout: header.layout,
    };
    let parent = backing.as_ref().map(|(_, parent)| parent.disk.clone());
    let disk = Arc::new(Mapped::new(Arc::new(clusters), data, parent, 512, options.cache_size));
    let mut opened = Opened::new(FORMAT.name, disk);
    header.describe(&mut opened);
    if let Some((name, parent)) = &backing {
        opened.add_parent(Path::new(OsStr::from_bytes(name)), parent);
    }
    if verify::is_cut_off(tables.as_ref(), &header) {
        let note = "clusters that are counted as in use lie past the end of the file: it was probably cut off";
        opened.notes.push(note.to_owned());
    }
    let walk = Box::new(move || verify::faults(tables.as_ref()));
    opened.checks.push(Check::walk("reference counts", "every cluster", walk));
    describe_snapshots(&snapshots, options.snapshot.as_deref(), &mut opened);
    Ok(opened)
}

fn describe_snapshots(snapshots: &[Snapshot], shown: Option<&str>, opened: &mut Opened) {
    for snapshot in snapshots.iter().take(LISTED_SNAPSHOTS) {
        opened.add("snapshot", snapshot);
    }
    if snapshots.len() > LISTED_SNAPSHOTS {
        opened.add("snapshots", snapshots.len());
    }
    if let Some(shown) = shown {
        opened.notes.push(format!("this is the disk as it was in the snapshot {}", printable(shown.as_bytes())));
    }
}

/// What one of our own overlays remembers of its base, which must still be like that: over another one
/// its clusters would be a mixture of two disks.
fn verified(binding: &[u8], name: &[u8], parent: &Opened, force: bool, companions: &dyn Companions) -> Result<Binding> {
    let binding = Binding::parse(binding)?;
    let file = companions.open(Path::new(OsStr::from_bytes(local_name(name)?)))?;
    let metadata = file.host_file().and_then(|span| span.file.metadata().ok());
    match binding.verify_to_read(parent.disk.as_ref(), &printable(name), metadata.as_ref()) {
        Err(error) if force && !binding.is_interrupted() => {
            log::warn!("{error}; used all the same, as was asked for this once");
        }
        result => result?,
    }
    Ok(binding)
}

/// QEMU's file names may be URLs or descriptions of whole block graphs; only files are followed.
/// As in QEMU, a colon before the first slash makes a protocol.
pub(super) fn local_name(name: &[u8]) -> Result<&[u8]> {
    let name = name.strip_prefix(b"file:").unwrap_or(name);
    let first = name.split(|&b| b == b'/').next().unwrap_or_default();
    if name.starts_with(b"json:") || name.starts_with(b"//") || first.contains(&b':') {
        let shown: String = printable(name).chars().take(100).collect();
        return Err(Error::unsupported(FORMAT.name, format!("a reference that is not a file name ({shown})")));
    }
    Ok(name)
}

/// Opens a backing file; `format` is QEMU's name for its format, when the image records one.
pub(super) fn open_backing(name: &[u8], format: Option<&[u8]>, companions: &dyn Companions) -> Result<Opened> {
    let name = Path::new(OsStr::from_bytes(local_name(name)?));
    let format = match format {
        None => None,
        Some(b"file" | b"host_device" | b"raw") => Some("raw"),
        Some(b"vpc") => Some("vhd"),
        Some(other) => {
            let known = super::FORMATS.iter().map(|format| format.name).find(|name| name.as_bytes() == other);
            let unknown =
                || Error::unsupported(FORMAT.name, format!("a backing file of the format {}", printable(other)));
            Some(known.ok_or_else(unknown)?)
        }
    };
    companions.open_disk(name, format)
}

/// Where L1 tables, L2 tables and clusters may lie.
#[derive(Debug, Clone, Copy)]
struct Layout {
    version: u32,
    cluster_bits: u32,
    /// Clusters are packed with Zstandard, not with zlib.
    zstd: bool,
    /// L2 entries are followed by a bitmap of 32 subclusters.
    extended_l2: bool,
    /// Data clusters lie in another file.
    external: bool,
}

impl Layout {
    fn cluster_size(self) -> u64 {
        1u64.wrapping_shl(self.cluster_bits)
    }

    /// 64-bit words of an L2 table per cluster that it maps.
    fn l2_words(self) -> u64 {
        if self.extended_l2 { 2 } else { 1 }
    }

    /// Clusters that one L2 table maps.
    fn l2_entries(self) -> u64 {
        if self.extended_l2 { self.cluster_size() / 16 } else { self.cluster_size() / 8 }
    }

    /// Bytes of the disk that one L2 table maps: at most 2^21 * 2^18.
    fn l2_coverage(self) -> u64 {
        self.cluster_size().saturating_mul(self.l2_entries())
    }
}

/// A table of the disk: `count` 64-bit numbers.
type L1 = Extent;
