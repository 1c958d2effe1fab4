//! Bytes held in memory: an unpacked floppy, a replayed journal's blocks, a test's image.

use std::ops::Range;
use std::sync::{PoisonError, RwLock};

use super::{BlockDevice, BlockWrite, check_range};
use crate::error::{Error, Result};

/// A device over a vector. Writable: what is changed lives as long as the device.
pub struct Memory {
    bytes: RwLock<Vec<u8>>,
    size: u64,
    sector_size: u32,
}

impl Memory {
    /// `sector_size` in bytes.
    pub fn new(bytes: Vec<u8>, sector_size: u32) -> Self {
        Self { size: bytes.len() as u64, bytes: RwLock::new(bytes), sector_size }
    }

    fn range(&self, len: usize, offset: u64) -> Result<Range<usize>> {
        check_range(len, offset, self.size)?;
        let start = usize::try_from(offset).map_err(|_| Error::Invalid)?;
        Ok(start..start.saturating_add(len))
    }
}

impl BlockDevice for Memory {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = self.range(buf.len(), offset)?;
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        buf.copy_from_slice(bytes.get(range).ok_or(Error::Invalid)?);
        Ok(())
    }

    fn writer(&self) -> Option<&dyn BlockWrite> {
        Some(self)
    }
}

impl BlockWrite for Memory {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let range = self.range(buf.len(), offset)?;
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        bytes.get_mut(range).ok_or(Error::Invalid)?.copy_from_slice(buf);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}
