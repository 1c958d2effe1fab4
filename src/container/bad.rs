//! Ranges of a disk that could not be read when its image was made.

use std::io::{Error as HostError, ErrorKind};

use crate::device::{BlockDevice, Device, Extent, check_range};
use crate::error::{Error, Result};

/// A run of bytes that no one could read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadRange {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// A disk with such ranges: reading them is an error that names the place, and with `zero` it is zeros.
pub(super) struct Damaged {
    below: Device,
    /// Ascending, without overlap.
    ranges: Vec<BadRange>,
    what: &'static str,
    zero: bool,
}

impl Damaged {
    /// `ranges` in any order; `what` says in messages why they are bad.
    pub(super) fn new(below: Device, mut ranges: Vec<BadRange>, what: &'static str, zero: bool) -> Self {
        ranges.retain(|range| range.len > 0);
        ranges.sort_unstable_by_key(|range| range.offset);
        let mut merged: Vec<BadRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if last.offset.saturating_add(last.len) >= range.offset => {
                    let end = range.offset.saturating_add(range.len).max(last.offset.saturating_add(last.len));
                    last.len = end.saturating_sub(last.offset);
                }
                _ => merged.push(range),
            }
        }
        Self { below, ranges: merged, what, zero }
    }

    /// The bad range at `offset`, or the first one behind it.
    fn next(&self, offset: u64) -> Option<BadRange> {
        let next = self.ranges.partition_point(|range| range.offset.saturating_add(range.len) <= offset);
        self.ranges.get(next).copied()
    }

    fn read(
        &self,
        mut buf: &mut [u8],
        mut offset: u64,
        read: fn(&dyn BlockDevice, &mut [u8], u64) -> Result<()>,
    ) -> Result<()> {
        check_range(buf.len(), offset, self.size())?;
        while !buf.is_empty() {
            let range = self.next(offset).unwrap_or(BadRange { offset: u64::MAX, len: 0 });
            let bad = range.offset <= offset;
            if bad && !self.zero {
                let what = format!("{} bytes at {} of the disk: {}", range.len, range.offset, self.what);
                return Err(Error::io(what, HostError::from(ErrorKind::InvalidData)));
            }
            let end = if bad { range.offset.saturating_add(range.len) } else { range.offset };
            let here = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
            let (now, later) = buf.split_at_mut(here);
            if bad {
                now.fill(0);
            } else {
                // What is good in front of a bad range that will fail is not worth reading twice.
                read(self.below.as_ref(), now, offset)?;
            }
            buf = later;
            offset = offset.saturating_add(here as u64);
        }
        Ok(())
    }
}

impl BlockDevice for Damaged {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn sector_size(&self) -> u32 {
        self.below.sector_size()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read(buf, offset, |below, buf, offset| below.read_exact_at(buf, offset))
    }

    fn read_bulk_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read(buf, offset, |below, buf, offset| below.read_bulk_at(buf, offset))
    }

    /// A bad range is no hole: no one knows what was there.
    fn extent(&self, offset: u64) -> Result<Extent> {
        match self.next(offset) {
            Some(range) if range.offset <= offset => {
                let end = range.offset.saturating_add(range.len).min(self.size());
                Ok(Extent { stored: true, len: end.saturating_sub(offset) })
            }
            next => {
                let extent = self.below.extent(offset)?;
                let to_bad = next.map_or(u64::MAX, |range| range.offset.saturating_sub(offset));
                Ok(Extent { len: extent.len.min(to_bad), ..extent })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::Memory;
    use std::sync::Arc;

    #[test]
    fn only_a_read_that_touches_a_bad_range_fails() {
        let below: Device = Arc::new(Memory::new((0..100).collect(), 512));
        let ranges =
            vec![BadRange { offset: 50, len: 10 }, BadRange { offset: 20, len: 5 }, BadRange { offset: 25, len: 5 }];
        let disk = Damaged::new(below.clone(), ranges.clone(), "never read", false);
        let mut buf = [0; 20];
        disk.read_exact_at(&mut buf, 0).unwrap();
        disk.read_exact_at(&mut buf, 30).unwrap();
        assert_eq!(buf[0], 30);
        let error = disk.read_exact_at(&mut buf, 29).unwrap_err();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("10 bytes at 20"), "{error}");
        assert!(disk.read_exact_at(&mut buf, 31).is_err());
        let disk = Damaged::new(below, ranges, "never read", true);
        disk.read_exact_at(&mut buf, 19).unwrap();
        assert_eq!(buf[..13], [19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 30, 31]);
        assert_eq!(disk.extent(10).unwrap().len, 10);
    }
}
