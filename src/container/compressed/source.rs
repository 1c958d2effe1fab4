//! The compressed file as the decompression crates want it: a reader, from one byte to another.

use std::io::{self, BufReader, Read};

use crate::device::Device;
use crate::error::Error;

/// Read at once: a device read costs more than a copy.
const BUFFER: usize = 128 << 10;

/// Bytes of a device as a reader. Its errors carry ours, for [`cause`].
pub(in crate::container) struct Source {
    device: Device,
    at: u64,
    end: u64,
}

impl Source {
    /// From `at` to `end`, clipped to the device.
    pub(in crate::container) fn new(device: Device, at: u64, end: u64) -> Self {
        let end = end.min(device.size());
        Self { device, at, end }
    }

    /// As [`Source::new`], with large reads below.
    pub(in crate::container) fn buffered(device: Device, at: u64, end: u64) -> BufReader<Self> {
        BufReader::with_capacity(BUFFER, Self::new(device, at, end))
    }
}

impl Read for Source {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX).min(buf.len());
        let Some(part) = buf.get_mut(..len).filter(|part| !part.is_empty()) else { return Ok(0) };
        self.device.read_bulk_at(part, self.at).map_err(io::Error::other)?;
        self.at = self.at.saturating_add(len as u64);
        Ok(len)
    }
}

/// Our own error inside one of `std`: the device failed, the compressed data are not to blame.
pub(in crate::container) fn cause(error: &io::Error) -> Option<Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).cloned()
}
