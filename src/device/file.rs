//! A regular file or block device of the host, opened read-only.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use rustix::fs::SeekFrom;

use super::{BlockDevice, Extent, HostSpan, check_range};
use crate::error::{Error, Result};

/// The image itself. Nothing else of the library opens a host file for reading.
pub struct HostFile {
    file: File,
    name: String,
    size: u64,
    sector_size: u32,
    /// Whether the host can tell holes from data (block devices cannot).
    holes: bool,
}

impl HostFile {
    /// Opens `path` with `O_RDONLY`. Anything but a regular file or a block device is refused.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let io = |source| Error::io(name.clone(), source);
        // Non-blocking, so that a named pipe is refused below and not waited for.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = std::os::unix::fs::OpenOptionsExt::custom_flags(File::options().read(true), flags)
            .open(path)
            .map_err(|error| io(std::fs::metadata(path).ok().and_then(refused).unwrap_or(error)))?;
        Self::from_file(file, name)
    }

    /// Takes an open file; `name` is for messages.
    pub fn from_file(file: File, name: String) -> Result<Self> {
        let io = |source| Error::io(name.clone(), source);
        let metadata = file.metadata().map_err(io)?;
        let kind = metadata.file_type();
        if kind.is_block_device() {
            let size = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|e| io(e.into()))?;
            let sector_size = rustix::fs::ioctl_blksszget(&file).map_err(|e| io(e.into()))?;
            return Ok(Self { file, name, size, sector_size, holes: false });
        }
        let size = metadata.len();
        match refused(metadata) {
            Some(error) => Err(io(error)),
            None => Ok(Self { file, name, size, sector_size: 512, holes: true }),
        }
    }
}

/// Why something of the host is no image, whether or not it could be opened.
fn refused(metadata: Metadata) -> Option<std::io::Error> {
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        return None;
    }
    let reason = if kind.is_dir() { "is a directory, not an image" } else { "is neither a file nor a block device" };
    Some(std::io::Error::new(std::io::ErrorKind::InvalidInput, reason))
}

impl BlockDevice for HostFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(buf.len(), offset, self.size)?;
        self.file
            .read_exact_at(buf, offset)
            .map_err(|source| Error::io(format!("{}: reading {} bytes at {offset}", self.name, buf.len()), source))
    }

    fn extent(&self, offset: u64) -> Result<Extent> {
        let rest = self.size.saturating_sub(offset);
        if !self.holes || rest == 0 {
            return Ok(Extent { stored: true, len: rest });
        }
        // The shared file offset that lseek moves is used by no one: all reads are positional.
        let next = |from| match rustix::fs::seek(&self.file, from) {
            Ok(found) => Ok(found.min(self.size)),
            Err(rustix::io::Errno::NXIO) => Ok(self.size),
            Err(error) => Err(Error::io(format!("{}: looking for holes", self.name), error.into())),
        };
        let data = next(SeekFrom::Data(offset))?;
        if data > offset {
            return Ok(Extent { stored: false, len: data.saturating_sub(offset) });
        }
        let hole = next(SeekFrom::Hole(offset))?;
        Ok(Extent { stored: true, len: hole.saturating_sub(offset).max(1) })
    }

    fn host_file(&self) -> Option<HostSpan<'_>> {
        Some(HostSpan { file: &self.file, offset: 0 })
    }
}
