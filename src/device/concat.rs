//! Several devices, one after the other: split raw images, the extents of a flat VMDK.

use super::{BlockDevice, Device, Extent, HostSpan, check_range};
use crate::error::{Error, Result};

/// The parts in order; byte 0 of each follows the last byte of the one before it.
pub struct Concat {
    parts: Vec<Device>,
    /// Where each part starts; as long as `parts`, ascending from 0.
    starts: Vec<u64>,
    size: u64,
    sector_size: u32,
}

impl Concat {
    /// Fails when the sizes do not fit in 64 bits. `sector_size` is the whole disk's.
    pub fn new(parts: Vec<Device>, sector_size: u32) -> Result<Self> {
        // An empty part holds no byte and must not shadow the one that starts where it does.
        let parts: Vec<Device> = parts.into_iter().filter(|part| part.size() > 0).collect();
        let mut starts = Vec::with_capacity(parts.len());
        let mut size = 0u64;
        for part in &parts {
            starts.push(size);
            size = size.checked_add(part.size()).ok_or(Error::Invalid)?;
        }
        Ok(Self { parts, starts, size, sector_size })
    }

    /// The part that holds byte `offset`, and where in it.
    fn part_at(&self, offset: u64) -> Result<(&Device, u64)> {
        let past_end = Error::PastEnd { offset, len: 1, size: self.size };
        let index = self.starts.partition_point(|&start| start <= offset).checked_sub(1);
        let found = index.and_then(|i| Some((self.parts.get(i)?, offset.checked_sub(*self.starts.get(i)?)?)));
        found.filter(|(part, within)| *within < part.size()).ok_or(past_end)
    }

    fn read(
        &self,
        mut buf: &mut [u8],
        mut offset: u64,
        read: fn(&dyn BlockDevice, &mut [u8], u64) -> Result<()>,
    ) -> Result<()> {
        check_range(buf.len(), offset, self.size)?;
        while !buf.is_empty() {
            let (part, within) = self.part_at(offset)?;
            let here = part.size().saturating_sub(within).min(buf.len() as u64);
            let (now, later) = buf.split_at_mut(usize::try_from(here).map_err(|_| Error::Invalid)?);
            read(part.as_ref(), now, within)?;
            buf = later;
            offset = offset.saturating_add(here);
        }
        Ok(())
    }
}

impl BlockDevice for Concat {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read(buf, offset, |part, buf, at| part.read_exact_at(buf, at))
    }

    fn read_bulk_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read(buf, offset, |part, buf, at| part.read_bulk_at(buf, at))
    }

    fn extent(&self, offset: u64) -> Result<Extent> {
        let (part, within) = self.part_at(offset)?;
        part.extent(within)
    }

    fn host_file(&self) -> Option<HostSpan<'_>> {
        match self.parts.as_slice() {
            [only] => only.host_file(),
            _ => None,
        }
    }

    fn identity(&self) -> Option<Vec<u8>> {
        self.parts.iter().map(|part| part.identity()).collect::<Option<Vec<_>>>().map(|parts| parts.concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::Memory;
    use std::sync::Arc;

    #[test]
    fn a_read_crosses_parts_and_empty_ones_are_skipped() {
        let part = |bytes: &[u8]| -> Device { Arc::new(Memory::new(bytes.to_vec(), 512)) };
        let whole = Concat::new(vec![part(b"ab"), part(b""), part(b"cde"), part(b"f")], 512).unwrap();
        let mut buf = [0; 4];
        whole.read_exact_at(&mut buf, 1).unwrap();
        assert_eq!(&buf, b"bcde");
        assert_eq!(whole.size(), 6);
        assert!(whole.read_exact_at(&mut buf, 3).is_err());
    }
}
