//! Apple's sparse bundles: a folder in which the disk lies in bands of equal size. Time Machine's.
//!
//! ```text
//!   Info.plist: band-size, size | token | bands/0, bands/1, ... bands/1f (hexadecimal; missing: zeros)
//! ```
//!
//! Supported: bands that are missing or short, which read as zeros.
//! Not supported: encryption.

use std::path::Path;
use std::sync::Arc;

use super::{Companions, ContainerFormat, Opened, Options, zeros};
use crate::device::concat::Concat;
use crate::device::window::Window;
use crate::device::{BlockDevice, Device, probe_array, read_vec};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "sparsebundle", snapshots: false, probe, open };

/// The file by which such a folder is known and opened.
pub(super) const NAME: &str = "Info.plist";
const BANDS: &str = "bands";
const MAX_LEN: u64 = 1 << 20;
/// More bands than a process can have open files; 800 GB in bands of 8 MiB.
const MAX_BANDS: usize = 100_000;

fn probe(device: &dyn BlockDevice, companions: &dyn Companions) -> Result<bool> {
    if companions.own_name() != NAME || device.size() > MAX_LEN {
        return Ok(false);
    }
    Ok(text(device)?.contains("com.apple.diskimage.sparsebundle"))
}

fn text(device: &dyn BlockDevice) -> Result<String> {
    let len = usize::try_from(device.size().min(MAX_LEN)).map_err(|_| Error::Invalid)?;
    Ok(String::from_utf8_lossy(&read_vec(device, 0, len)?).into_owned())
}

/// The number behind a key of the property list.
fn number(text: &str, key: &str) -> Option<u64> {
    let (_, rest) = text.split_once(&format!("<key>{key}</key>"))?;
    rest.trim_start().strip_prefix("<integer>")?.split_once("</integer>")?.0.trim().parse().ok()
}

fn open(file: Device, companions: &dyn Companions, _: &Options) -> Result<Opened> {
    let text = text(file.as_ref())?;
    let corrupt = |what: &'static str| Error::corrupt(FORMAT.name, what, 0);
    let band_size =
        number(&text, "band-size").filter(|&size| size > 0).ok_or_else(|| corrupt("Info.plist (band-size)"))?;
    let size = number(&text, "size").ok_or_else(|| corrupt("Info.plist (size)"))?;
    let token = companions.open(Path::new("token")).ok();
    if token
        .is_some_and(|token| probe_array::<8>(token.as_ref(), 0).is_ok_and(|start| start.as_ref() == Some(b"encrcdsa")))
    {
        return Err(Error::unsupported(FORMAT.name, "encryption"));
    }
    let mut bands: Vec<(u64, String)> = Vec::new();
    for name in companions.inside(Path::new(BANDS))? {
        let Some(name) = name.to_str() else { continue };
        // Only as it is written: `0A` and `a` would be the same band.
        let index = u64::from_str_radix(name, 16).ok().filter(|index| format!("{index:x}") == name);
        bands.extend(index.map(|index| (index, name.to_owned())));
        if bands.len() > MAX_BANDS {
            return Err(Error::unsupported(FORMAT.name, format!("more than {MAX_BANDS} bands")));
        }
    }
    bands.sort_unstable();
    let mut opened = Opened::new(FORMAT.name, file);
    let mut parts: Vec<Device> = Vec::new();
    let mut end = 0u64;
    let mut beyond = 0u64;
    for (index, name) in &bands {
        let start = index.checked_mul(band_size).filter(|&start| start < size);
        let Some(start) = start else {
            beyond = beyond.saturating_add(1);
            continue;
        };
        let band = companions.open_inside(Path::new(BANDS), Path::new(name))?;
        let len = band.size().min(band_size).min(size.saturating_sub(start));
        parts.push(zeros(start.saturating_sub(end)));
        parts.push(Arc::new(Window::new(band, 0, len)?));
        end = start.saturating_add(len);
    }
    parts.push(zeros(size.saturating_sub(end)));
    if beyond > 0 {
        opened.notes.push(format!("{beyond} bands are past the end of the disk"));
    }
    opened.add("virtual size", format!("{size} bytes"));
    opened.add("band size", format!("{band_size} bytes"));
    opened.add("bands", format!("{} of {}", bands.len(), size.div_ceil(band_size)));
    opened.disk = Arc::new(Concat::new(parts, 512)?);
    Ok(opened)
}
