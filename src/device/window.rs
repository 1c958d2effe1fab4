//! A part of another device: a partition, `IMAGE@@OFFSET`, a boot image inside a disc.

use super::{BlockDevice, BlockWrite, Device, Extent, HostSpan, Kept, check_range};
use crate::error::{Error, Result};

/// `len` bytes of a device, from `start`.
pub struct Window {
    below: Device,
    start: u64,
    len: u64,
    sector_size: u32,
}

impl Window {
    /// The window must lie within the device; the caller clips it and says so.
    pub fn new(below: Device, start: u64, len: u64) -> Result<Self> {
        let size = below.size();
        if start.checked_add(len).is_none_or(|end| end > size) {
            return Err(Error::PastEnd { offset: start, len, size });
        }
        let sector_size = below.sector_size();
        Ok(Self { below, start, len, sector_size })
    }

    /// The same bytes, addressed in sectors of another size.
    pub fn with_sector_size(self, sector_size: u32) -> Self {
        Self { sector_size, ..self }
    }

    fn place(&self, len: usize, offset: u64) -> Result<u64> {
        check_range(len, offset, self.len)?;
        Ok(self.start.saturating_add(offset))
    }
}

impl BlockDevice for Window {
    fn size(&self) -> u64 {
        self.len
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.below.read_exact_at(buf, self.place(buf.len(), offset)?)
    }

    fn read_bulk_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.below.read_bulk_at(buf, self.place(buf.len(), offset)?)
    }

    fn extent(&self, offset: u64) -> Result<Extent> {
        let place = self.place(0, offset)?;
        let extent = self.below.extent(place)?;
        Ok(Extent { len: extent.len.min(self.len.saturating_sub(offset)), ..extent })
    }

    fn writer(&self) -> Option<&dyn BlockWrite> {
        self.below.writer().map(|_| self as &dyn BlockWrite)
    }

    fn host_file(&self) -> Option<HostSpan<'_>> {
        let span = self.below.host_file()?;
        Some(HostSpan { offset: span.offset.checked_add(self.start)?, len: self.len, ..span })
    }
}

impl BlockWrite for Window {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let place = self.place(buf.len(), offset)?;
        self.below.writer().ok_or(Error::ReadOnly)?.write_all_at(buf, place)
    }

    fn write_early_at(&self, buf: &[u8], offset: u64, kept: Kept<'_>) -> Result<()> {
        let place = self.place(buf.len(), offset)?;
        self.below.writer().ok_or(Error::ReadOnly)?.write_early_at(buf, place, kept)
    }

    fn reserve(&self, offset: u64, len: u64) -> Result<()> {
        let place = self.place(usize::try_from(len).map_err(|_| Error::Invalid)?, offset)?;
        self.below.writer().ok_or(Error::ReadOnly)?.reserve(place, len)
    }

    fn flush(&self) -> Result<()> {
        self.below.writer().ok_or(Error::ReadOnly)?.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::Memory;
    use std::sync::Arc;

    #[test]
    fn a_window_never_shows_what_lies_beside_it() {
        let disk: Device = Arc::new(Memory::new((0..100).collect(), 512));
        let window = Window::new(disk.clone(), 10, 5).unwrap();
        let mut buf = [0; 3];
        window.read_exact_at(&mut buf, 2).unwrap();
        assert_eq!(buf, [12, 13, 14]);
        assert!(window.read_exact_at(&mut buf, 3).is_err());
        assert!(window.read_exact_at(&mut buf, u64::MAX).is_err());
        assert!(Window::new(disk, 99, 2).is_err());
    }
}
