//! Bytes held in memory: an unpacked floppy, a replayed journal's blocks, a test's image.

use super::{BlockDevice, check_range};
use crate::error::{Error, Result};

/// A device over a vector.
pub struct Memory {
    bytes: Vec<u8>,
    sector_size: u32,
}

impl Memory {
    /// `sector_size` in bytes.
    pub fn new(bytes: Vec<u8>, sector_size: u32) -> Self {
        Self { bytes, sector_size }
    }
}

impl BlockDevice for Memory {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(buf.len(), offset, self.size())?;
        let from = usize::try_from(offset)
            .ok()
            .and_then(|start| self.bytes.get(start..start.checked_add(buf.len())?))
            .ok_or(Error::PastEnd { offset, len: buf.len() as u64, size: self.size() })?;
        buf.copy_from_slice(from);
        Ok(())
    }
}
