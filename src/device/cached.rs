//! The LRU sector cache: small reads of metadata are kept, bulk reads go around it.
//!
//! It lies below the overlay, so that what it keeps is of the untouched image and can never be
//! stale: there is no code that invalidates.

use std::sync::Arc;

use super::{BlockDevice, Device, Extent, HostSpan, check_range};
use crate::cache::{Cache, Statistics};
use crate::error::{Error, Result};

/// Kept in lines of this many bytes: eight sectors of 512, the usual block of a file system.
const LINE: u64 = 4096;
/// A longer read costs less than the copies that the cache would make of it.
const LARGEST_KEPT_READ: usize = 32 << 10;

/// A device with a cache in front of it.
pub struct Cached {
    below: Device,
    lines: Cache<u64, Arc<Vec<u8>>>,
}

impl Cached {
    /// `max_bytes` bounds what is kept; 0 keeps (nearly) nothing.
    pub fn new(below: Device, max_bytes: u64) -> Self {
        Self { below, lines: Cache::new(max_bytes) }
    }

    /// Hits, misses and bytes kept.
    pub fn statistics(&self) -> Statistics {
        self.lines.statistics()
    }

    /// The line that starts at `start`; the last one of a device may be short.
    fn line(&self, start: u64) -> Result<Arc<Vec<u8>>> {
        self.lines.get_or_make(&start, || {
            let len = self.below.size().saturating_sub(start).min(LINE);
            let mut line = vec![0; usize::try_from(len).map_err(|_| Error::Invalid)?];
            self.below.read_exact_at(&mut line, start)?;
            Ok((Arc::new(line), len))
        })
    }
}

impl BlockDevice for Cached {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn sector_size(&self) -> u32 {
        self.below.sector_size()
    }

    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        check_range(buf.len(), offset, self.size())?;
        if buf.len() > LARGEST_KEPT_READ {
            return self.below.read_exact_at(buf, offset);
        }
        while !buf.is_empty() {
            let within = offset % LINE;
            let line = match self.line(offset.saturating_sub(within)) {
                Ok(line) => line,
                // One bad sector, or damaged cluster, must not take its neighbours with it.
                Err(_) => return self.below.read_exact_at(buf, offset),
            };
            let from = usize::try_from(within).ok().and_then(|w| line.get(w..)).unwrap_or_default();
            let count = from.len().min(buf.len());
            let (now, later) = buf.split_at_mut(count);
            now.copy_from_slice(from.get(..count).ok_or(Error::Invalid)?);
            if count == 0 {
                return Err(Error::PastEnd { offset, len: later.len() as u64, size: self.size() });
            }
            buf = later;
            offset = offset.saturating_add(count as u64);
        }
        Ok(())
    }

    fn read_bulk_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.below.read_bulk_at(buf, offset)
    }

    fn extent(&self, offset: u64) -> Result<Extent> {
        self.below.extent(offset)
    }

    fn host_file(&self) -> Option<HostSpan<'_>> {
        self.below.host_file()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::Memory;

    #[test]
    fn a_second_read_comes_from_the_cache_and_the_short_last_line_is_whole() {
        let bytes: Vec<u8> = (0..10_000u32).map(|i| i.to_le_bytes()[0]).collect();
        let disk = Cached::new(Arc::new(Memory::new(bytes.clone(), 512)), 1 << 20);
        for _ in 0..2 {
            let mut buf = [0; 6000];
            disk.read_exact_at(&mut buf, 4000).unwrap();
            assert_eq!(buf, bytes[4000..]);
        }
        let statistics = disk.statistics();
        assert_eq!((statistics.misses, statistics.hits, statistics.weight), (3, 3, 10_000));
        assert!(disk.read_exact_at(&mut [0; 2], 9_999).is_err());
    }
}
