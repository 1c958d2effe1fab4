//! Parallels `.hdd` bundles: a folder with `DiskDescriptor.xml`, which names the images of each part
//! of the disk and how they lie over each other.
//!
//! Specification: OpenVZ, "Parallels Disk (ploop) on-disk format", DiskDescriptor.xml.
//!
//! ```text
//!   StorageData: Storage (Start, End): Image (GUID, Type, File), Image ...    parts of the disk
//!   Snapshots:   TopGUID; Shot (GUID, ParentGUID) ...                         order of the images
//! ```
//!
//! Supported: bundles in one part or several, snapshots (a snapshot's GUID as the name).
//! Not supported: encryption.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::{Image, SECTOR};
use crate::container::{Companions, ContainerFormat, Opened, Options};
use crate::device::concat::Concat;
use crate::device::window::Window;
use crate::device::{BlockDevice, Device, read_vec};
use crate::error::{Error, Result};
use crate::text::printable;

pub(in crate::container) const FORMAT: ContainerFormat =
    ContainerFormat { name: "parallels-bundle", snapshots: true, probe, open };

const MAX_LEN: u64 = 1 << 20;
/// Parts of the disk, and images over each other: more than any bundle has.
const MAX_PARTS: usize = 1000;
const MAX_CHAIN: usize = 64;
/// The newest image where the text does not say which it is.
const DEFAULT_TOP: &str = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";
const NO_GUID: &str = "{00000000-0000-0000-0000-000000000000}";

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    let len = usize::try_from(device.size().min(512)).map_err(|_| Error::Invalid)?;
    let start = read_vec(device, 0, len)?;
    Ok(start.starts_with(b"<?xml") && start.windows(21).any(|part| part == b"<Parallels_disk_image"))
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let corrupt = |what: &'static str| Error::corrupt(FORMAT.name, what, 0);
    let len = usize::try_from(file.size().min(MAX_LEN)).map_err(|_| Error::Invalid)?;
    let bytes = read_vec(file.as_ref(), 0, len)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| corrupt("DiskDescriptor.xml (text)"))?;
    if elements(text, "Engine").any(|engine| !engine.is_empty() && engine != NO_GUID) {
        return Err(Error::unsupported(FORMAT.name, "encryption"));
    }
    let recorded_top = elements(text, "TopGUID").next().unwrap_or(DEFAULT_TOP);
    let top = options.snapshot.as_deref().unwrap_or(recorded_top);
    let mut opened = Opened::new(FORMAT.name, file.clone());
    let mut parts = Vec::new();
    for storage in elements(text, "Storage").take(MAX_PARTS) {
        let sectors = |tag| elements(storage, tag).next().and_then(|n| n.parse::<u64>().ok());
        let (Some(start), Some(end)) = (sectors("Start"), sectors("End")) else {
            return Err(corrupt("DiskDescriptor.xml (Start, End)"));
        };
        let size = end.checked_sub(start).and_then(|n| n.checked_mul(SECTOR));
        let size = size.ok_or_else(|| corrupt("DiskDescriptor.xml (Start, End)"))?;
        let disk = open_chain(&chain(text, storage, top)?, companions, options, &mut opened)?;
        let len = size.min(disk.size());
        if len < size {
            return Err(corrupt("image (shorter than its part of the disk)"));
        }
        parts.push(Arc::new(Window::new(disk, 0, len)?) as Device);
    }
    if parts.is_empty() {
        return Err(corrupt("DiskDescriptor.xml (Storage)"));
    }
    opened.disk = Arc::new(Concat::new(parts, 512)?);
    opened.facts.insert(0, ("virtual size", format!("{} bytes", opened.disk.size())));
    for shot in elements(text, "Shot").take(100) {
        opened.add("snapshot", printable(elements(shot, "GUID").next().unwrap_or_default().as_bytes()));
    }
    if let Some(shown) = &options.snapshot {
        opened.notes.push(format!("this is the disk as it was in the snapshot {}", printable(shown.as_bytes())));
    }
    Ok(opened)
}

/// What stands between each `<name>` and the next `</name>`. The text has no attributes that matter
/// and no element of a name inside another of the same name.
fn elements<'a>(text: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (start, end) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = text;
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once(&start)?;
        let (value, after) = after.split_once(&end)?;
        rest = after;
        Some(value.trim())
    })
}

/// Type and file of the images of one part, the newest first.
fn chain<'a>(text: &'a str, storage: &'a str, top: &'a str) -> Result<Vec<(&'a str, &'a str)>> {
    let mut found = Vec::new();
    let mut guid = top;
    while guid != NO_GUID {
        let image = elements(storage, "Image").find(|image| elements(image, "GUID").next() == Some(guid));
        let image = image.ok_or_else(|| {
            let what = format!("parallels-bundle: there is no image {}", printable(guid.as_bytes()));
            Error::io(what, ErrorKind::NotFound.into())
        })?;
        let field = |tag| elements(image, tag).next().unwrap_or_default();
        found.push((field("Type"), field("File")));
        if found.len() > MAX_CHAIN {
            return Err(Error::unsupported(FORMAT.name, format!("more than {MAX_CHAIN} images over each other")));
        }
        let shot = elements(text, "Shot").find(|shot| elements(shot, "GUID").next() == Some(guid));
        guid = shot.and_then(|shot| elements(shot, "ParentGUID").next()).unwrap_or(NO_GUID);
    }
    Ok(found)
}

/// Opens the images from the oldest to the newest, each over the one before it.
fn open_chain(
    images: &[(&str, &str)],
    companions: &dyn Companions,
    options: &Options,
    opened: &mut Opened,
) -> Result<Device> {
    let mut below: Option<Device> = None;
    for (kind, name) in images.iter().rev() {
        let file = companions.open(Path::new(name))?;
        opened.add("image", format!("{} ({})", printable(name.as_bytes()), printable(kind.as_bytes())));
        below = Some(match *kind {
            "Compressed" => {
                let image = Image::read(file)?;
                opened.notes.extend(image.note().map(|note| format!("{}: {note}", printable(name.as_bytes()))));
                image.open(below, options)
            }
            "Plain" if below.is_none() => file,
            other => {
                return Err(Error::unsupported(
                    FORMAT.name,
                    format!("an image of the type {}", printable(other.as_bytes())),
                ));
            }
        });
    }
    below.ok_or_else(|| Error::corrupt(FORMAT.name, "DiskDescriptor.xml (Image)", 0))
}
