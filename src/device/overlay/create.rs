//! Making an overlay's file, and how it and its base are named.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Binding;
use super::geometry::{ENTRY, Geometry};
use super::header::{Header, OVERLAY, TablePlace};
use super::store::{HostStore, Store, host};
use crate::error::{Error, Result};

/// What an overlay's header says of its base.
#[derive(Debug, Clone)]
pub struct BaseReference {
    /// As recorded: an absolute path, or one relative to the overlay's folder.
    pub name: PathBuf,
    /// The same from here.
    pub path: PathBuf,
    /// qemu's name of the base's format.
    pub qemu_format: Option<String>,
    /// What the overlay remembers of the base; `None` when another tool made it.
    pub binding: Option<Binding>,
}

/// Reads what an overlay says of its base, without opening that.
pub fn base_reference(path: &Path) -> Result<BaseReference> {
    let header = Header::read(&HostStore::open_read_only(path, false)?)?;
    reference(path, &header)
}

pub(super) fn reference(path: &Path, header: &Header) -> Result<BaseReference> {
    if header.backing_name.is_empty() {
        return Err(Error::unsupported(OVERLAY, "a qcow2 image without a backing file"));
    }
    let recorded = header.backing_name.strip_prefix(b"file:").unwrap_or(&header.backing_name);
    let before_slash = recorded.split(|byte| *byte == b'/').next().unwrap_or_default();
    if before_slash.contains(&b':') {
        let what = format!("a base that is not a file ({})", crate::text::printable(recorded));
        return Err(Error::unsupported(OVERLAY, what));
    }
    let name = PathBuf::from(OsStr::from_bytes(recorded));
    let folder = path.parent().unwrap_or(Path::new(""));
    let binding = header.binding.as_ref().map(|(_, bytes)| Binding::parse(bytes)).transpose()?;
    Ok(BaseReference { path: folder.join(&name), name, qemu_format: header.backing_format.clone(), binding })
}

/// How the base is named in an overlay: its plain name in the same folder, else from the root.
pub(super) fn recorded_name(overlay: &Path, base: &Path) -> Result<Vec<u8>> {
    let folder = |path: &Path| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        parent.canonicalize().map_err(|error| host(&path.display().to_string(), error))
    };
    let base_folder = folder(base)?;
    let name = base.file_name().ok_or(Error::Invalid)?;
    if folder(overlay)? != base_folder {
        return Ok(base_folder.join(name).into_os_string().into_encoded_bytes());
    }
    let name = name.as_encoded_bytes();
    // To qemu `a:b` is a protocol.
    Ok(if name.contains(&b':') { [b"./", name].concat() } else { name.to_vec() })
}

/// qemu's name of one of our container formats.
pub(super) fn qemu_format(format: &str) -> &str {
    match format {
        "vhd" => "vpc",
        other => other,
    }
}

/// A name beside `path` that is not taken: for a file that is renamed when it is whole.
pub fn temporary_name(path: &Path) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{number}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// Gives a whole and synced file its name; a file that has the name already is left alone.
pub fn rename_new(from: &Path, to: &Path) -> Result<()> {
    use rustix::fs::{CWD, RenameFlags};
    use rustix::io::Errno;
    let io = |error: Errno| match error {
        Errno::EXIST => host(&to.display().to_string(), ErrorKind::AlreadyExists.into()),
        error => host(&to.display().to_string(), error.into()),
    };
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) if to.symlink_metadata().is_err() => {
            rustix::fs::rename(from, to).map_err(io)?;
        }
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => return Err(io(Errno::EXIST)),
        result => result.map_err(io)?,
    }
    sync_folder(to)
}

/// The name itself must survive a crash too.
pub(super) fn sync_folder(file: &Path) -> Result<()> {
    let folder = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match std::fs::File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(error) if error.kind() != ErrorKind::InvalidInput => Err(host(&folder.display().to_string(), error)),
        _ => Ok(()),
    }
}

/// What a new overlay says of its base.
pub(super) struct Named<'a> {
    pub name: &'a [u8],
    pub format: &'a str,
    pub binding: Vec<u8>,
}

/// Writes an empty image, and returns when it is on stable storage.
pub(super) fn write_new(store: &dyn Store, size: u64, named: Option<Named<'_>>) -> Result<()> {
    let io = |error| host("making the overlay", error);
    let disk_size = size.checked_next_multiple_of(512).ok_or(Error::Invalid)?;
    let needed = named.as_ref().map(|named| Header::needed(&named.binding, named.format, named.name)).transpose()?;
    let geometry = Geometry::choose(disk_size, needed.unwrap_or(0))?;
    let cluster = geometry.cluster_size();
    let l1_entries = geometry.l1_entries().max(1);
    let l1_clusters = geometry.clusters(l1_entries.saturating_mul(ENTRY));
    // Room in the refcount table for every cluster that the disk can need, and a quarter more.
    let all = geometry.clusters(disk_size).saturating_add(l1_entries).saturating_add(l1_clusters);
    let blocks_ever = all.saturating_add(all / 4).saturating_add(64).div_ceil(cluster / 2);
    let table_clusters = geometry.clusters(blocks_ever.saturating_mul(ENTRY)).max(1);
    let fixed = table_clusters.saturating_add(l1_clusters).saturating_add(1);
    let mut blocks = 1u64;
    while blocks.saturating_mul(geometry.counts()) < fixed.saturating_add(blocks) {
        blocks = blocks.saturating_add(1);
    }
    let first_block = table_clusters.saturating_add(1);
    let header = Header {
        geometry,
        refcounts: TablePlace { offset: cluster, entries: table_clusters.saturating_mul(geometry.entries()) },
        l1: TablePlace { offset: geometry.start(first_block.saturating_add(blocks)), entries: l1_entries },
        autoclear: 0,
        backing_name: named.as_ref().map(|named| named.name.to_vec()).unwrap_or_default(),
        backing_format: named.as_ref().map(|named| named.format.to_owned()),
        binding: named.map(|named| (0, named.binding)),
    };
    let total = fixed.saturating_add(blocks);
    store.set_size(geometry.start(total)).map_err(io)?;
    for number in 0..blocks {
        let start = number.saturating_mul(geometry.counts());
        let used = total.saturating_sub(start).min(geometry.counts());
        let mut counts = [0, 1].repeat(usize::try_from(used).map_err(|_| Error::Invalid)?);
        // All of it: a host with smaller blocks than that must not be found full when the rest is written.
        counts.resize(geometry.cluster_len(), 0);
        let at = geometry.start(first_block.saturating_add(number));
        store.write_at(&counts, at).map_err(io)?;
        store.write_at(&at.to_be_bytes(), cluster.saturating_add(number.saturating_mul(ENTRY))).map_err(io)?;
    }
    store.write_at(&header.to_bytes()?, 0).map_err(io)?;
    store.sync().map_err(io)
}
