//! The overlay's own file, as a few positional operations: a host file, or memory.
//!
//! All of the overlay's writes and syncs pass through here, so that a test can record them, cut
//! the power after any of them, or let one fail.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags};

use crate::device::{BlockDevice, Kept, check_range};
use crate::error::{Error, Result};

/// A file that grows: positional, from many threads.
pub trait Store: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Fills `buf` from `offset`, with zeros past the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `buf`; the file grows when that is past its end.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// The same, for a caller who can tell somebody early that it is done.
    fn write_early_at(&self, buf: &[u8], offset: u64, _kept: Kept<'_>) -> io::Result<()> {
        self.write_at(buf, offset)
    }
    /// Cuts the file, or lets it grow by a hole.
    fn set_size(&self, size: u64) -> io::Result<()>;
    /// Takes room for a later write of these bytes, when the host can do that; changes none of them,
    /// nor the size. True when a write to them cannot find the host full from now on, however often.
    fn reserve(&self, offset: u64, len: u64) -> io::Result<bool>;
    /// Returns when everything written before is on stable storage.
    fn sync(&self) -> io::Result<()>;
}

/// What a sync waits for.
#[derive(Clone, Copy)]
enum Durable {
    /// The bytes.
    Data,
    /// The bytes and the modification time.
    All,
    /// Nothing: the file is gone after a crash anyway.
    Nothing,
}

/// A file of the host.
pub struct HostStore {
    file: File,
    durable: Durable,
    /// Room that is set aside is there for every later write.
    keeps_room: bool,
}

impl HostStore {
    fn new(file: File, durable: Durable) -> Self {
        let keeps_room = keeps_room(&file);
        Self { file, durable, keeps_room }
    }

    /// Opens an overlay for writing, for this process alone.
    pub fn open(path: &Path) -> Result<Self> {
        let file = regular(path, File::options().read(true).write(true))?;
        lock(&file, path, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self::new(file, Durable::Data))
    }

    /// Opens an overlay to look at it. With `exclude`, not while someone writes to it.
    pub fn open_read_only(path: &Path, exclude: bool) -> Result<Self> {
        let file = regular(path, File::options().read(true))?;
        if exclude {
            lock(&file, path, FlockOperation::NonBlockingLockShared)?;
        }
        Ok(Self::new(file, Durable::Data))
    }

    /// A new file, locked; there must be none of this name.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(|error| host(&path.display().to_string(), error))?;
        lock(&file, path, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self::new(file, Durable::Data))
    }

    /// A file in `folder` that has no name and goes when it is closed.
    pub fn unnamed(folder: &Path) -> Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
            return Ok(Self::new(file.into(), Durable::Nothing));
        }
        // A file system without nameless files.
        let path = super::temporary_name(&folder.join("imgfs.snapshot"));
        let mut store = Self::create(&path)?;
        std::fs::remove_file(&path).map_err(|error| host(&path.display().to_string(), error))?;
        store.durable = Durable::Nothing;
        Ok(store)
    }

    /// Opens the base itself for writing: the only place where that happens, for the commit that a
    /// user asked for by name.
    pub(super) fn open_base(path: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(path);
        let file = file.map_err(|error| host(&path.display().to_string(), error))?;
        lock(&file, path, FlockOperation::NonBlockingLockExclusive)?;
        // The overlay will know the base by its time.
        Ok(Self::new(file, Durable::All))
    }
}

impl Drop for HostStore {
    /// A child that was just forked shares the lock with the file, until it runs its program.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

fn regular(path: &Path, options: &mut std::fs::OpenOptions) -> Result<File> {
    let name = path.display().to_string();
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = std::os::unix::fs::OpenOptionsExt::custom_flags(options, flags).open(path);
    let file = file.map_err(|error| host(&name, error))?;
    if file.metadata().map_err(|error| host(&name, error))?.is_file() {
        return Ok(file);
    }
    Err(host(&name, io::Error::new(ErrorKind::InvalidInput, "an overlay is a regular file")))
}

/// The size to which this process may let a file grow.
fn largest_file() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Fsize).current.unwrap_or(u64::MAX)
}

/// Whether the file system writes in place, to where room was set aside. One that writes somewhere else each time
/// needs more, and what a network's or a program's has set aside is not known.
fn keeps_room(file: &File) -> bool {
    /// linux/magic.h: ext2 to ext4, XFS, tmpfs.
    const IN_PLACE: [u64; 3] = [0xef53, 0x5846_5342, 0x0102_1994];
    rustix::fs::fstatfs(file).is_ok_and(|found| IN_PLACE.iter().any(|magic| u64::try_from(found.f_type) == Ok(*magic)))
}

fn lock(file: &File, path: &Path, operation: FlockOperation) -> Result<()> {
    match rustix::fs::flock(file, operation) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let why = io::Error::new(ErrorKind::ResourceBusy, "it is in use: another process writes to it");
            Err(Error::io(path.display().to_string(), why))
        }
        // A network file system without locks is the user's own care.
        Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOLCK | rustix::io::Errno::NOSYS) | Ok(()) => Ok(()),
        Err(error) => Err(host(&path.display().to_string(), error.into())),
    }
}

/// The host's error on one of our files; a full host is [`Error::NoSpace`].
pub(super) fn host(what: &str, error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Error::NoSpace,
        _ => Error::io(what, error),
    }
}

impl Store for HostStore {
    fn size(&self) -> io::Result<u64> {
        let metadata = self.file.metadata()?;
        if metadata.is_file() {
            return Ok(metadata.size());
        }
        Ok(rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0))?)
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match self.file.read_at(buf, offset) {
                Ok(0) => {
                    buf.fill(0);
                    return Ok(());
                }
                Ok(count) => {
                    offset = offset.saturating_add(count as u64);
                    buf = buf.get_mut(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.file.set_len(size)
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<bool> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, offset, len) {
            Err(rustix::io::Errno::NOSPC) => Err(rustix::io::Errno::NOSPC.into()),
            Err(rustix::io::Errno::DQUOT) => Err(rustix::io::Errno::DQUOT.into()),
            // `ulimit -f` is the same for whoever writes: no room either.
            result => Ok(result.is_ok() && self.keeps_room && offset.saturating_add(len) <= largest_file()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        match self.durable {
            Durable::Data => Ok(rustix::fs::fdatasync(&self.file)?),
            Durable::All => self.file.sync_all(),
            Durable::Nothing => Ok(()),
        }
    }
}

/// Bytes of one piece of a [`MemoryStore`].
const PIECE: usize = 1 << PIECE_BITS;
const PIECE_BITS: u32 = 16;
const WITHIN_PIECE: u64 = 0xffff;

/// A file in memory; pieces that were never written take no room.
#[derive(Default)]
pub struct MemoryStore {
    state: RwLock<Pieces>,
}

#[derive(Default)]
struct Pieces {
    pieces: Vec<Option<Box<[u8]>>>,
    size: u64,
}

impl MemoryStore {
    /// Calls `visit` with each part of `len` bytes from `offset`: piece number, byte in it, range of the buffer.
    fn parts(
        len: usize,
        offset: u64,
        mut visit: impl FnMut(usize, usize, std::ops::Range<usize>) -> Option<()>,
    ) -> io::Result<()> {
        let mut done = 0usize;
        while done < len {
            let at = offset.saturating_add(done as u64);
            let piece = usize::try_from(at >> PIECE_BITS).map_err(|_| ErrorKind::FileTooLarge)?;
            let within = usize::try_from(at & WITHIN_PIECE).map_err(|_| ErrorKind::FileTooLarge)?;
            let count = PIECE.saturating_sub(within).min(len.saturating_sub(done));
            visit(piece, within, done..done.saturating_add(count)).ok_or(ErrorKind::InvalidInput)?;
            done = done.saturating_add(count);
        }
        Ok(())
    }
}

impl Store for MemoryStore {
    fn size(&self) -> io::Result<u64> {
        Ok(self.state.read().unwrap_or_else(PoisonError::into_inner).size)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        Self::parts(buf.len(), offset, |piece, within, range| {
            let part = buf.get_mut(range)?;
            match state.pieces.get(piece) {
                Some(Some(bytes)) => {
                    let end = within.checked_add(part.len())?;
                    part.copy_from_slice(bytes.get(within..end)?);
                }
                _ => part.fill(0),
            }
            Some(())
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        Self::parts(buf.len(), offset, |piece, within, range| {
            let part = buf.get(range)?;
            if state.pieces.len() <= piece {
                state.pieces.resize_with(piece.checked_add(1)?, || None);
            }
            let bytes = state.pieces.get_mut(piece)?.get_or_insert_with(|| vec![0; PIECE].into());
            let end = within.checked_add(part.len())?;
            bytes.get_mut(within..end)?.copy_from_slice(part);
            Some(())
        })?;
        state.size = state.size.max(offset.saturating_add(buf.len() as u64));
        Ok(())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let whole = usize::try_from(size >> PIECE_BITS).map_err(|_| ErrorKind::FileTooLarge)?;
        let within = usize::try_from(size & WITHIN_PIECE).map_err(|_| ErrorKind::FileTooLarge)?;
        state.pieces.truncate(whole.saturating_add(1));
        if let Some(Some(bytes)) = state.pieces.get_mut(whole) {
            bytes.get_mut(within..).unwrap_or_default().fill(0);
        }
        state.size = size;
        Ok(())
    }

    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<bool> {
        Ok(true)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A store, read as a device: how the base is verified just before it is written.
pub(super) struct StoreDisk<'a> {
    pub store: &'a dyn Store,
    pub size: u64,
    pub sector_size: u32,
}

impl BlockDevice for StoreDisk<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(buf.len(), offset, self.size)?;
        self.store.read_at(buf, offset).map_err(|error| host("the base", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_keeps_what_is_written_across_pieces_and_forgets_what_is_cut() {
        let store = MemoryStore::default();
        store.set_size(1 << 40).unwrap();
        let data = vec![7; 3 * PIECE];
        store.write_at(&data, 1000).unwrap();
        let mut buf = vec![1; 3 * PIECE + 2];
        store.read_at(&mut buf, 999).unwrap();
        assert!(buf[0] == 0 && buf[1..=3 * PIECE] == data && buf[3 * PIECE + 1] == 0);
        store.set_size(1500).unwrap();
        store.set_size(1 << 20).unwrap();
        store.read_at(&mut buf[..2], 1499).unwrap();
        assert_eq!(buf[..2], [7, 0]);
    }
}
