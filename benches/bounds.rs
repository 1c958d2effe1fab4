//! Three bounds for `scripts/bench`, which cannot be had otherwise:
//!
//! * `bounds sink IMAGE MNT`: a mount that throws away what is written to it. No program can take
//!   writes through FUSE any faster.
//! * `bounds source IMAGE MNT`: a mount of one file, as large as IMAGE, whose bytes are zeros from memory. No
//!   program that reads through FUSE in this way can be any faster.
//! * `bounds fatfs IMAGE SIZE`: how many blocks of 4 KiB a second the crate `fatfs` overwrites, at random
//!   places of a file of SIZE bytes in a FAT volume that is blank.
//!
//! Called in any other way it does nothing, as `cargo bench` runs it too.

#![allow(missing_docs, reason = "a program")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

const BLOCK: usize = 4096;
/// A slow one has shown by then how slow it is.
const PATIENCE: Duration = Duration::from_secs(3);
const FILE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["sink", _, mountpoint] => serve(Bound { size: AtomicU64::new(0), reads: false }, mountpoint),
        ["source", image, mountpoint] => {
            let size = AtomicU64::new(std::fs::metadata(image).unwrap().len());
            serve(Bound { size, reads: true }, mountpoint);
        }
        ["fatfs", image, size] => println!("{}", overwrite_with_fatfs(Path::new(image), size.parse().unwrap())),
        _ => {}
    }
}

/// Overwrites a second.
fn overwrite_with_fatfs(image: &Path, size: u64) -> f64 {
    let disk = File::options().read(true).write(true).open(image).unwrap();
    let volume = fatfs::FileSystem::new(disk, fatfs::FsOptions::new()).unwrap();
    let mut file = volume.root_dir().create_file("written.bin").unwrap();
    let data = vec![0x5a; 1 << 20];
    for _ in 0..size >> 20 {
        file.write_all(&data).unwrap();
    }
    let blocks = size / BLOCK as u64;
    let (started, mut done, mut at) = (Instant::now(), 0u32, 1u64);
    while started.elapsed() < PATIENCE {
        // A generator of full period over 2^64; its upper bits choose the block.
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        file.seek(SeekFrom::Start((at >> 32) % blocks * BLOCK as u64)).unwrap();
        file.write_all(data.get(..BLOCK).unwrap()).unwrap();
        done += 1;
    }
    f64::from(done) / started.elapsed().as_secs_f64()
}

fn serve(bound: Bound, mountpoint: &str) {
    let mut config = Config::default();
    config.n_threads = Some(2);
    config.clone_fd = true;
    fuser::mount(bound, Path::new(mountpoint), &config).unwrap();
}

/// One file under every name that is made, or that is looked for when it is to be read; its size is all that is
/// remembered.
struct Bound {
    size: AtomicU64,
    reads: bool,
}

impl Bound {
    fn way(&self) -> FopenFlags {
        if self.reads { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::FOPEN_DIRECT_IO }
    }

    fn attr(&self, ino: INodeNo) -> FileAttr {
        let file = ino == FILE;
        let epoch = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino,
            size: if file { self.size.load(Ordering::Relaxed) } else { 0 },
            blocks: 0,
            atime: epoch,
            mtime: epoch,
            ctime: epoch,
            crtime: epoch,
            kind: if file { FileType::RegularFile } else { FileType::Directory },
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Bound {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // What imgfs asks for as well, where it counts for reading and writing.
        let _ = config
            .add_capabilities(InitFlags::FUSE_BIG_WRITES | InitFlags::FUSE_MAX_PAGES | InitFlags::FUSE_ASYNC_READ);
        Ok(())
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        if self.reads {
            return reply.entry(&TTL, &self.attr(FILE), Generation(0));
        }
        reply.error(Errno::ENOENT);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
        let left = self.size.load(Ordering::Relaxed).saturating_sub(offset);
        let len = usize::try_from(left).unwrap().min(size as usize);
        reply.data(ZEROS.get(..len).unwrap());
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let Some(size) = size {
            self.size.store(size, Ordering::Relaxed);
        }
        reply.attr(&TTL, &self.attr(ino));
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.created(&TTL, &self.attr(FILE), Generation(0), FileHandle(0), self.way());
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), self.way());
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.size.fetch_max(offset + data.len() as u64, Ordering::Relaxed);
        reply.written(u32::try_from(data.len()).unwrap());
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }
}
