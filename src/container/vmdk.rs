//! VMDK, of VMware and VirtualBox: a text that lists extents, in a file of its own or inside the
//! only extent; extents are flat or sparse, and fall through to a parent where they are empty.
//!
//! Specification: VMware, "Virtual Disk Format 5.0" (and 1.1); for seSparse QEMU's block/vmdk.c.
//!
//! ```text
//!   descriptor:  RW 4192256 SPARSE "disk-s001.vmdk"       disk = extent | extent | ...
//!                RW 2097152 FLAT "disk-flat.vmdk" 0
//!   sparse:      header | descriptor? | grain directory -> grain tables -> grains
//!   stream:      header | descriptor | marker, packed grain | ... | tables | footer | end
//! ```
//!
//! Supported: monolithicSparse, monolithicFlat, twoGbMaxExtentSparse and -Flat, streamOptimized,
//! vmfs, vmfsSparse, seSparse; parents; the disk inside an OVA (see `ova`).
//! Not supported: extents that are devices of the host (RDM, fullDevice, partitionedDevice),
//! seSparse journals that were not replayed.

mod descriptor;
mod ova;
mod sparse;

use std::path::PathBuf;
use std::slice;
use std::sync::Arc;

use self::descriptor::{Content, Descriptor, ExtentLine};
use self::sparse::Sparse;
use super::parent::{Family, Identity, Parent};
use super::{Companions, ContainerFormat, Opened, Options, beside, zeros};
use crate::device::concat::Concat;
use crate::device::window::Window;
use crate::device::{BlockDevice, Device};
use crate::error::{Error, Result};
use crate::text::{printable, uuid};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "vmdk", snapshots: false, probe, open };
pub(super) use self::ova::FORMAT as OVA;

const SECTOR: u64 = 512;
/// Extents that `info` lists.
const LISTED_EXTENTS: usize = 100;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    if sparse::probe(device)? {
        return Ok(true);
    }
    descriptor::probe(device)
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let own = if sparse::probe(file.as_ref())? { Some(Sparse::read(file.clone())?) } else { None };
    let (descriptor, notes) = match Descriptor::of(file.as_ref(), own.as_ref())? {
        Some(descriptor) => (descriptor, Vec::new()),
        None => (Descriptor::default(), vec!["there is no descriptor: this is one extent of a disk".to_owned()]),
    };
    let parent = match &descriptor.parent_hint {
        Some(hint) if descriptor.has_parent() => Some(open_parent(&descriptor, hint, companions)?),
        // VirtualBox names the parent by identifier alone, and leaves parentCID as if there were none.
        _ if descriptor.parent.uuid != [0; 16] => Some(FAMILY.open(descriptor.parent, companions)?),
        _ if descriptor.has_parent() => {
            return Err(Error::corrupt(FORMAT.name, "descriptor (a parentCID without parentFileNameHint)", 0));
        }
        _ => None,
    };
    let below = parent.as_ref().map(|parent| parent.opened.disk.clone());
    let disk = match (&own, descriptor.extents.as_slice()) {
        // The only extent is this file, whatever it is called now.
        (Some(own), [] | [_]) => own.open(own.size, below.clone(), options)?,
        (_, []) => return Err(Error::corrupt(FORMAT.name, "descriptor (no extents)", 0)),
        (_, extents) => open_extents(extents, below.as_ref(), companions, options)?,
    };
    let mut opened = Opened::new(FORMAT.name, disk);
    if let Some(kind) = &descriptor.create_type {
        opened.add("type", printable(kind.as_bytes()));
    }
    opened.add("virtual size", format!("{} bytes", opened.disk.size()));
    if let Some(own) = &own {
        own.describe(&mut opened);
    }
    descriptor.describe(&mut opened);
    for extent in descriptor.extents.iter().take(LISTED_EXTENTS) {
        opened.add("extent", extent);
    }
    if let Some(Parent { name, opened: parent, note }) = parent {
        opened.add_parent(&name, &parent);
        opened.notes.extend(note);
    }
    opened.notes.extend(notes);
    Ok(opened)
}

/// Finds the parent beside the child. Its contents must be those that the child was made over: the
/// content ID says so.
fn open_parent(child: &Descriptor, hint: &str, companions: &dyn Companions) -> Result<Parent> {
    let name = beside(companions, &[hint.to_owned()])?;
    let found = describe(&companions.open(&name)?)?.and_then(|descriptor| descriptor.cid);
    if found != child.parent_cid {
        let shown = printable(name.as_os_str().as_encoded_bytes());
        let id = |id: Option<u32>| id.map_or("none".to_owned(), |id| format!("{id:08x}"));
        let what =
            format!("the link to the parent {shown} (its content ID is {}, not {})", id(found), id(child.parent_cid));
        return Err(Error::corrupt(FORMAT.name, what, 0));
    }
    let opened = companions.open_disk(&name, Some(FORMAT.name))?;
    Ok(Parent { name, opened, note: None })
}

/// Disks of VirtualBox.
const FAMILY: Family = Family { format: FORMAT.name, shown: "VMDK", identify, print: uuid };

fn identify(file: &Device) -> Result<Identity> {
    let missing = || Error::corrupt(FORMAT.name, "descriptor", 0);
    describe(file)?.map(|descriptor| descriptor.image).ok_or_else(missing)
}

/// The descriptor of a file, when it has one.
fn describe(file: &Device) -> Result<Option<Descriptor>> {
    let own = if sparse::probe(file.as_ref())? { Some(Sparse::read(file.clone())?) } else { None };
    Descriptor::of(file.as_ref(), own.as_ref())
}

/// Puts the extents together; each falls through to its own part of the parent.
fn open_extents(
    extents: &[ExtentLine],
    parent: Option<&Device>,
    companions: &dyn Companions,
    options: &Options,
) -> Result<Device> {
    let mut parts: Vec<Device> = Vec::with_capacity(extents.len());
    let mut start = 0u64;
    for extent in extents {
        let size = extent.sectors.saturating_mul(SECTOR);
        let below = match parent {
            Some(parent) if start < parent.size() => {
                let len = size.min(parent.size().saturating_sub(start));
                Some(Arc::new(Window::new(parent.clone(), start, len)?) as Device)
            }
            _ => None,
        };
        parts.push(open_extent(extent, size, below, companions, options)?);
        start = start.checked_add(size).ok_or_else(|| Error::corrupt(FORMAT.name, "descriptor (sizes)", 0))?;
    }
    Ok(Arc::new(Concat::new(parts, 512)?))
}

fn open_extent(
    extent: &ExtentLine,
    size: u64,
    parent: Option<Device>,
    companions: &dyn Companions,
    options: &Options,
) -> Result<Device> {
    let shown = || printable(extent.file.as_bytes());
    let open = || {
        // A plain name may have been written in another case, on Windows.
        let plain = !extent.file.contains(['/', '\\']);
        let name = if plain { beside(companions, slice::from_ref(&extent.file))? } else { PathBuf::from(&extent.file) };
        companions.open(&name)
    };
    match extent.content {
        Content::Zero => Ok(zeros(size)),
        Content::Flat => {
            let file = open()?;
            let start = extent.offset.saturating_mul(SECTOR);
            let short = |_| Error::corrupt(FORMAT.name, format!("extent {} (too short)", shown()), start);
            Ok(Arc::new(Window::new(file, start, size).map_err(short)?))
        }
        Content::Sparse => {
            let sparse = Sparse::read(open()?)?;
            if sparse.size < size {
                return Err(Error::corrupt(FORMAT.name, format!("extent {} (too short)", shown()), 0));
            }
            sparse.open(size, parent, options)
        }
    }
}
