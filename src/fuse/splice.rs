//! Answers to reads of bytes that lie in a file of the host: the kernel hands them from its own cache to
//! the reader's (`splice`, through a pipe), and they are never copied into this process.
//!
//! By `scripts/bench`, as an ordinary user, when it came: one reader 1.25 times and two readers 1.38 times as fast
//! as in xmount, where copying through a buffer had 0.96 and 1.09. docs/bench.md has how it stands.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};

/// `struct fuse_out_header`: length, error, request.
const HEADER: usize = 16;
/// Below this the three calls cost more than the copy.
pub(super) const SMALLEST: usize = 32 << 10;

/// Pages of a pipe that hold no part of the answer, or only a part of one: the header, the first, the last.
const SPARE: usize = 3;
/// Pages that an ordinary user's pipe takes at the most, as Linux comes (`fs.pipe-max-size`).
const PIPE_PAGES: usize = 256;

/// The longest answer that an ordinary user's pipe takes, bytes.
pub(super) fn largest() -> u32 {
    let pages = PIPE_PAGES.saturating_sub(SPARE);
    u32::try_from(pages.saturating_mul(rustix::param::page_size())).unwrap_or(u32::MAX)
}

thread_local! {
    /// One pipe a thread, empty between two answers, and how many bytes it takes.
    static PIPE: RefCell<Option<(Pipe, usize)>> = const { RefCell::new(None) };
}

struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

/// A pipe that takes an answer of `len` bytes, and how long a one it takes at the most.
fn pipe_for(len: usize) -> Result<(Pipe, usize)> {
    // Never waited for: nobody but this thread could empty it.
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // Each page takes a place, also one of which only a part is wanted.
    let spare = rustix::param::page_size().saturating_mul(SPARE);
    let room = rustix::pipe::fcntl_setpipe_size(&writer, len.saturating_add(spare))?;
    Ok((Pipe { reader, writer }, room.saturating_sub(spare)))
}

/// Answers the request with `len` bytes of `file`, from `at` on. When it fails the request may still be
/// answered in another way.
pub(super) fn answer(connection: impl AsFd, request: u64, file: &File, at: u64, len: usize) -> Result<()> {
    let total = len.saturating_add(HEADER);
    let length = u32::try_from(total).map_err(|_| Error::from(ErrorKind::InvalidInput))?;
    let mut header = [0; HEADER];
    let fields = length.to_ne_bytes().into_iter().chain([0; 4]).chain(request.to_ne_bytes());
    header.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    PIPE.with_borrow_mut(|kept| {
        // Out of its place until it is empty again: what a failure leaves in it goes with it.
        let (pipe, room) = match kept.take().filter(|(_, room)| *room >= len) {
            Some(large) => large,
            None => pipe_for(len)?,
        };
        if rustix::io::write(&pipe.writer, &header)? != HEADER {
            return Err(ErrorKind::WriteZero.into());
        }
        let (mut from, mut rest) = (at, len);
        while rest > 0 {
            let flags = SpliceFlags::empty();
            match rustix::io::retry_on_intr(|| {
                rustix::pipe::splice(file, Some(&mut from), &pipe.writer, None, rest, flags)
            })? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => rest = rest.saturating_sub(count),
            }
        }
        match rustix::pipe::splice(&pipe.reader, None, connection, None, total, SpliceFlags::empty()) {
            Ok(count) if count == total => *kept = Some((pipe, room)),
            // Nobody waits for it any more.
            Err(Errno::NOENT) => {}
            Ok(_) => return Err(ErrorKind::WriteZero.into()),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    })
}
