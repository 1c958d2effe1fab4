//! Parents that a child names by identifier alone, as the disks of VirtualBox do: every image beside the
//! child, and below the folders that the user named, is asked for its own.

use std::path::PathBuf;

use super::{Companions, Opened};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::text::printable;

/// Files that are looked at for the parent.
const MAX_SIBLINGS: usize = 10_000;
/// A modification identifier that is not recorded.
const NONE: [u8; 16] = [0; 16];

/// What tells an image from others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uuid: [u8; 16],
    /// Another one after each time that the image was written to; zeros when it is not recorded.
    pub(super) modified: [u8; 16],
}

/// A parent that was found.
pub(super) struct Parent {
    pub(super) name: PathBuf,
    pub(super) opened: Opened,
    /// What to know of it.
    pub(super) note: Option<String>,
}

/// Images of one format, told by identifier.
pub(super) struct Family {
    /// The format's name, and its own in sentences.
    pub(super) format: &'static str,
    pub(super) shown: &'static str,
    /// The identity of an image; an error when it is not one of this format.
    pub(super) identify: fn(&Device) -> Result<Identity>,
    /// An identifier as the format's programs print it.
    pub(super) print: fn([u8; 16]) -> String,
}

impl Family {
    /// Finds the parent. One with the contents that the child was made over is preferred: its modification
    /// identifier says so, where the child recorded one. VirtualBox itself does not compare them, and leaves
    /// them apart when it merges a snapshot into the parent, so that another one is no damage.
    pub(super) fn open(&self, wanted: Identity, companions: &dyn Companions) -> Result<Parent> {
        let mut changed = None;
        // VirtualBox keeps the children in a folder of their own, below the parent's.
        let allowed = std::iter::once_with(|| companions.allowed()).flatten();
        for name in companions.siblings()?.into_iter().chain(allowed).take(MAX_SIBLINGS) {
            if name.as_os_str() == companions.own_name() {
                continue;
            }
            // What cannot be opened or read (a folder, a link, another format) is not the parent.
            let found = companions.open(&name).and_then(|device| (self.identify)(&device));
            let Some(found) = found.ok().filter(|found| found.uuid == wanted.uuid) else { continue };
            // A copy from before the change may lie beside it.
            if wanted.modified != NONE && found.modified != wanted.modified {
                changed.get_or_insert((name, found.modified));
                continue;
            }
            let opened = companions.open_disk(&name, Some(self.format))?;
            return Ok(Parent { name, opened, note: None });
        }
        if let Some((name, modified)) = changed {
            let note = format!(
                "the parent {} was written to since this image was made over it (its modification UUID is {}, not {}): \
                 right after a snapshot was merged into it, a mixture of two disks otherwise",
                printable(name.as_os_str().as_encoded_bytes()),
                (self.print)(modified),
                (self.print)(wanted.modified)
            );
            let opened = companions.open_disk(&name, Some(self.format))?;
            return Ok(Parent { name, opened, note: Some(note) });
        }
        let own = printable(companions.own_name().as_encoded_bytes());
        let what = format!(
            "{own}: no file in its folder is its parent, the {} {} (--allow-references DIR)",
            self.shown,
            (self.print)(wanted.uuid)
        );
        Err(Error::io(what, std::io::ErrorKind::NotFound.into()))
    }
}
