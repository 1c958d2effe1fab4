//! Random-access bytes: what a container decodes to, and what volumes and file systems read.

pub mod cached;
pub mod concat;
pub mod file;
pub mod mapped;
pub mod memory;
pub mod overlay;
pub mod window;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use crate::error::{Error, Result};

/// A device, shared by all that read it.
pub type Device = Arc<dyn BlockDevice>;

/// Random-access bytes of fixed size. Called from many threads; positional, no cursor.
pub trait BlockDevice: Send + Sync {
    /// Size in bytes; never changes while the device is open.
    fn size(&self) -> u64;

    /// The unit of every LBA on this device, in bytes: a power of two from 512 to 4,096.
    fn sector_size(&self) -> u32;

    /// Fills `buf` from `offset`. Past the end is [`Error::PastEnd`], never zeros.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// As [`BlockDevice::read_exact_at`], for the contents of files: bytes that are not worth a
    /// place in a metadata cache, because whoever asked keeps them.
    fn read_bulk_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read_exact_at(buf, offset)
    }

    /// Whether the bytes from `offset` are stored or a hole (read as zeros and take no room), and
    /// for how many bytes that holds. `len` is never zero below the end.
    fn extent(&self, offset: u64) -> Result<Extent> {
        Ok(Extent { stored: true, len: self.size().saturating_sub(offset) })
    }

    /// The way to change these bytes; `None` for whatever is read-only.
    fn writer(&self) -> Option<&dyn BlockWrite> {
        None
    }

    /// The host file of which these bytes are an unbroken part, as long as no one writes to the device.
    fn host_file(&self) -> Option<HostSpan<'_>> {
        None
    }

    /// What tells these bytes from all others of this host, and from themselves after a change, without
    /// reading them: device, inode, size and time of change of each host file. `None` when they are not
    /// those of host files.
    fn identity(&self) -> Option<Vec<u8>> {
        let span = self.host_file()?;
        let metadata = span.file.metadata().ok()?;
        let numbers = [metadata.dev(), metadata.ino(), metadata.size(), span.offset, span.len];
        let times = [metadata.mtime(), metadata.mtime_nsec()];
        let bytes = numbers.into_iter().map(u64::to_le_bytes).chain(times.into_iter().map(i64::to_le_bytes));
        Some(bytes.flatten().collect())
    }
}

/// What is called, once, when a write is as good as done: every reader gets its bytes from then on, a flush waits for
/// them, and they cannot find the device full. The write then ends with `Ok`; should its bytes be lost all the same,
/// reading them is an error, and so is every flush. Not called where that cannot be said before the end.
pub type Kept<'a> = &'a mut dyn FnMut();

/// The write side of a device. What was written is read back at once, by every thread; it survives
/// a crash from the next [`BlockWrite::flush`] on.
pub trait BlockWrite: Send + Sync {
    /// Writes all of `buf` at `offset`. Past the end is [`Error::PastEnd`]; nothing grows.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()>;

    /// The same, for a caller who can tell somebody early that it is done.
    fn write_early_at(&self, buf: &[u8], offset: u64, _kept: Kept<'_>) -> Result<()> {
        self.write_all_at(buf, offset)
    }

    /// Sees to it that a later write of these bytes does not fail for want of space; reading them
    /// gives what it gave before. Nothing to do where all bytes have their place.
    fn reserve(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    /// Returns when everything written before is on stable storage.
    fn flush(&self) -> Result<()>;
}

/// A run of bytes that are all stored, or all a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// False for a hole: reads as zeros, takes no room.
    pub stored: bool,
    /// Length in bytes.
    pub len: u64,
}

/// Where a device's bytes lie in a file of the host.
#[derive(Debug, Clone, Copy)]
pub struct HostSpan<'a> {
    /// Opened read-only.
    pub file: &'a File,
    /// Byte of `file` that is byte 0 of the device.
    pub offset: u64,
    /// Size of the device.
    pub len: u64,
}

/// Checks a read against the end of a device.
pub fn check_range(len: usize, offset: u64, size: u64) -> Result<()> {
    let len = len as u64;
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::PastEnd { offset, len, size }),
    }
}

/// Reads `len` bytes into a new buffer. The caller has checked `len` against the structure it
/// belongs to; it is checked here against the device before anything is allocated.
pub fn read_vec(device: &dyn BlockDevice, offset: u64, len: usize) -> Result<Vec<u8>> {
    check_range(len, offset, device.size())?;
    let mut buf = vec![0; len];
    device.read_exact_at(&mut buf, offset)?;
    Ok(buf)
}

/// Reads a structure of a fixed size.
pub fn read_array<const N: usize>(device: &dyn BlockDevice, offset: u64) -> Result<[u8; N]> {
    let mut buf = [0; N];
    device.read_exact_at(&mut buf, offset)?;
    Ok(buf)
}

/// For probes: the bytes at `offset`, or `None` when the device ends before them.
pub fn probe_array<const N: usize>(device: &dyn BlockDevice, offset: u64) -> Result<Option<[u8; N]>> {
    if check_range(N, offset, device.size()).is_err() {
        return Ok(None);
    }
    read_array(device, offset).map(Some)
}
