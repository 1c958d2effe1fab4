//! Where block numbers lie on the device, and what was odd on the way there.

use std::sync::{Mutex, PoisonError};

use super::NAME;
use super::record::DirectoryRecord;
use crate::device::{Device, read_vec};
use crate::error::{Error, Result};

/// The unit of descriptor positions, whatever the logical block size (ECMA-119, 6.1.2).
pub(super) const SECTOR: u64 = 2048;
/// The same, as the length of a buffer.
pub(super) const SECTOR_LEN: usize = 2048;
/// More oddities than these are not listed one by one.
const MAX_NOTES: usize = 100;

/// The device, with the two numbers that turn a logical block into a byte of it.
pub(super) struct Medium {
    pub(super) device: Device,
    /// Logical block size in bytes: 512, 1,024 or 2,048.
    pub(super) block_size: u64,
    /// Bytes to be subtracted: the image holds a later session alone, and its addresses count from
    /// the start of the disc.
    pub(super) bias: u64,
    pub(super) notes: Notes,
}

impl Medium {
    /// First byte of a block; `None` when it lies before the start of a session image.
    pub(super) fn byte(&self, block: u64) -> Option<u64> {
        block.checked_mul(self.block_size)?.checked_sub(self.bias)
    }

    /// Whether `len` bytes from a block are all on the device.
    pub(super) fn holds(&self, block: u32, len: u64) -> bool {
        let end = self.byte(u64::from(block)).and_then(|start| start.checked_add(len));
        end.is_some_and(|end| end <= self.device.size())
    }

    /// The bytes of a directory record and of what follows it, as far as a record can reach.
    pub(super) fn record_bytes(&self, at: u64) -> Result<Vec<u8>> {
        let rest = self.device.size().saturating_sub(at);
        if rest == 0 {
            return Err(Error::NotFound);
        }
        read_vec(self.device.as_ref(), at, usize::try_from(rest.min(255)).unwrap_or(255))
    }

    /// Whether a directory's record of itself stands at the start of its extent. `extent` is the
    /// block that it must name.
    pub(super) fn is_directory(&self, at: u64, extent: u64) -> bool {
        let Ok(bytes) = self.record_bytes(at) else { return false };
        let Ok(record) = DirectoryRecord::parse(&bytes, at) else { return false };
        let named = |block: u32| u64::from(block).checked_add(u64::from(record.xar_len)) == Some(extent);
        record.name == [0] && record.is_directory() && (named(record.extent.le) || named(record.extent.be))
    }
}

/// What an examiner should know, gathered while the volume is read. Bounded.
#[derive(Default)]
pub(super) struct Notes(Mutex<Vec<String>>);

impl Notes {
    /// Adds a note, once.
    pub(super) fn add(&self, note: String) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < MAX_NOTES && !notes.contains(&note) {
            log::warn!("{NAME}: {note}");
            notes.push(note);
            if notes.len() == MAX_NOTES {
                notes.push("there is more that is odd, not listed here".into());
            }
        }
    }

    /// All of them so far.
    pub(super) fn list(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
