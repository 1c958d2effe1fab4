//! The files that a description of a disc names, one after the other in one space of addresses.
//!
//! Descriptions are old and their names older: in upper case where the files are in lower case, in a
//! code page where the files are in UTF-8, or of before both were renamed.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Companions;
use crate::device::Device;
use crate::device::concat::Concat;
use crate::error::{Error, Result};
use crate::text::printable;

/// More files than a disc has tracks; each one is an open file.
const MAX_FILES: usize = 200;

/// The files opened so far.
#[derive(Default)]
pub(super) struct Files {
    parts: Vec<Device>,
    names: Vec<PathBuf>,
    size: u64,
    /// Files whose names were not found as written.
    pub(super) notes: Vec<String>,
}

/// A file in the common space.
pub(super) struct Placed {
    pub(super) device: Device,
    /// First byte in the common space.
    pub(super) at: u64,
}

impl Files {
    /// Opens a file; `only` when the description names no other, so that one with the description's
    /// own stem can stand for it.
    pub(super) fn open(&mut self, companions: &dyn Companions, name: &[u8], only: bool) -> Result<Placed> {
        if self.parts.len() >= MAX_FILES {
            return Err(Error::unsupported(
                "container",
                format!("a description that names more than {MAX_FILES} files"),
            ));
        }
        let found = find(companions, name, only)?;
        let wanted = printable(name);
        let shown = printable(found.as_os_str().as_bytes());
        if only && !plain(name).eq_ignore_ascii_case(found.as_os_str().as_bytes()) {
            self.notes.push(format!("the file {wanted} is not there: {shown} was read"));
        }
        let device = companions.open(&found)?;
        let at = self.size;
        self.size = self.size.checked_add(device.size()).ok_or(Error::Invalid)?;
        self.parts.push(device.clone());
        self.names.push(found);
        Ok(Placed { device, at })
    }

    /// All of them.
    pub(super) fn into_device(self) -> Result<Device> {
        Ok(Arc::new(Concat::new(self.parts, 512)?))
    }
}

/// The last component of a path of any machine.
fn plain(name: &[u8]) -> &[u8] {
    name.rsplit(|&b| b == b'/' || b == b'\\').next().unwrap_or_default()
}

/// The file beside the image that is meant; the name as written when there is none.
fn find(companions: &dyn Companions, name: &[u8], only: bool) -> Result<PathBuf> {
    let name = plain(name);
    if name.is_empty() {
        return Err(Error::NotFound);
    }
    let siblings = companions.siblings()?;
    let bytes = |path: &PathBuf| path.as_os_str().as_bytes().to_vec();
    let latin: String = name.iter().map(|&byte| char::from(byte)).collect();
    let lower = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_lowercase).ok();
    let own_stem = Path::new(companions.own_name()).file_stem().map(OsStr::as_bytes);
    let same_stem = |path: &PathBuf| {
        let ending = path.extension().is_some_and(|ending| {
            ["bin", "img", "iso", "mdf", "wav"].iter().any(|known| ending.eq_ignore_ascii_case(known))
        });
        ending && path.file_stem().map(OsStr::as_bytes) == own_stem
    };
    // From the strictest to the most lenient.
    let tests: [&dyn Fn(&PathBuf) -> bool; 5] = [
        &|path| bytes(path) == name,
        &|path| bytes(path).eq_ignore_ascii_case(name),
        &|path| lower(name).is_some_and(|lower_name| lower(&bytes(path)) == Some(lower_name)),
        &|path| lower(&bytes(path)) == Some(latin.to_lowercase()),
        &|path| only && same_stem(path),
    ];
    let found = tests.iter().find_map(|test| siblings.iter().find(|path| test(path)));
    Ok(found.cloned().unwrap_or_else(|| PathBuf::from(std::ffi::OsString::from_vec(name.to_vec()))))
}
