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

use std::collections::HashMap;
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
    if file.size() > MAX_LEN {
        return Err(Error::unsupported(FORMAT.name, format!("a DiskDescriptor.xml of more than {MAX_LEN} bytes")));
    }
    let len = usize::try_from(file.size()).map_err(|_| Error::Invalid)?;
    let bytes = read_vec(file.as_ref(), 0, len)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| corrupt("DiskDescriptor.xml (text)"))?;
    if elements(text, "Engine").any(|engine| !engine.is_empty() && engine != NO_GUID) {
        return Err(Error::unsupported(FORMAT.name, "encryption"));
    }
    let recorded_top = elements(text, "TopGUID").next().unwrap_or(DEFAULT_TOP);
    let top = options.snapshot.as_deref().unwrap_or(recorded_top);
    let parts = Part::all(text, top)?;
    let Some(end) = parts.last().map(|part| part.end) else {
        return Err(corrupt("DiskDescriptor.xml (Storage)"));
    };
    let mut opened = Opened::new(FORMAT.name, file.clone());
    if let Some(size) = number(text, "Disk_size").filter(|&size| size != end) {
        opened.notes.push(format!("the bundle says that its disk has {size} sectors, its parts have {end}"));
    }
    let mut windows = Vec::new();
    for part in parts {
        let disk = open_chain(&part.images, companions, options, &mut opened)?;
        if part.len > disk.size() {
            return Err(corrupt("image (shorter than its part of the disk)"));
        }
        windows.push(Arc::new(Window::new(disk, 0, part.len)?) as Device);
    }
    opened.disk = Arc::new(Concat::new(windows, 512)?);
    opened.facts.insert(0, ("virtual size", format!("{} bytes", opened.disk.size())));
    for shot in elements(text, "Shot").take(100) {
        opened.add("snapshot", printable(elements(shot, "GUID").next().unwrap_or_default().as_bytes()));
    }
    if let Some(shown) = &options.snapshot {
        opened.notes.push(format!("this is the disk as it was in the snapshot {}", printable(shown.as_bytes())));
    }
    Ok(opened)
}

fn corrupt(what: &'static str) -> Error {
    Error::corrupt(FORMAT.name, what, 0)
}

/// A part of the disk, in sectors.
struct Part<'a> {
    start: u64,
    /// Sector behind the last.
    end: u64,
    /// In bytes.
    len: u64,
    /// Type and file of its images, the newest first.
    images: Vec<(&'a str, &'a str)>,
}

impl<'a> Part<'a> {
    /// All of them, in the order in which they lie on the disk, with no room between them.
    fn all(text: &'a str, top: &'a str) -> Result<Vec<Self>> {
        let storages: Vec<&str> = elements(text, "Storage").take(MAX_PARTS.saturating_add(1)).collect();
        if storages.len() > MAX_PARTS {
            return Err(Error::unsupported(FORMAT.name, format!("more than {MAX_PARTS} parts")));
        }
        let parents = parents(text);
        let part = |storage| Self::parse(storage, &parents, top);
        let mut parts = storages.into_iter().map(part).collect::<Result<Vec<_>>>()?;
        parts.sort_by_key(|part| part.start);
        let mut reached = 0;
        for part in &parts {
            if part.start != reached {
                let what = format!("DiskDescriptor.xml (a part starts at sector {}, not at {reached})", part.start);
                return Err(Error::corrupt(FORMAT.name, what, 0));
            }
            reached = part.end;
        }
        Ok(parts)
    }

    fn parse(storage: &'a str, parents: &HashMap<&str, &'a str>, top: &'a str) -> Result<Self> {
        let borders = number(storage, "Start").zip(number(storage, "End"));
        let borders = borders.and_then(|(start, end)| Some((start, end, end.checked_sub(start)?.checked_mul(SECTOR)?)));
        let (start, end, len) = borders.ok_or_else(|| corrupt("DiskDescriptor.xml (Start, End)"))?;
        Ok(Self { start, end, len, images: chain(parents, storage, top)? })
    }
}

fn number(text: &str, name: &str) -> Option<u64> {
    elements(text, name).next()?.parse().ok()
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

/// What each snapshot lies over, by GUID; the first one of a GUID counts. Read once, as each image of
/// each part asks for it.
fn parents(text: &str) -> HashMap<&str, &str> {
    let mut parents = HashMap::new();
    for shot in elements(text, "Shot") {
        if let Some(guid) = elements(shot, "GUID").next() {
            parents.entry(guid).or_insert_with(|| elements(shot, "ParentGUID").next().unwrap_or(NO_GUID));
        }
    }
    parents
}

/// Type and file of the images of one part, the newest first.
fn chain<'a>(parents: &HashMap<&str, &'a str>, storage: &'a str, top: &'a str) -> Result<Vec<(&'a str, &'a str)>> {
    let mut images = HashMap::new();
    for image in elements(storage, "Image") {
        if let Some(guid) = elements(image, "GUID").next() {
            images.entry(guid).or_insert(image);
        }
    }
    let mut found = Vec::new();
    let mut guid = top;
    while guid != NO_GUID {
        let image = images.get(guid).ok_or_else(|| {
            let what = format!("parallels-bundle: there is no image {}", printable(guid.as_bytes()));
            Error::io(what, ErrorKind::NotFound.into())
        })?;
        let field = |tag| elements(image, tag).next().unwrap_or_default();
        found.push((field("Type"), field("File")));
        if found.len() > MAX_CHAIN {
            return Err(Error::unsupported(FORMAT.name, format!("more than {MAX_CHAIN} images over each other")));
        }
        guid = parents.get(guid).copied().unwrap_or(NO_GUID);
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
