//! The keeper: a second process that keeps the rights which a daemon gives up before it decodes.
//!
//! It never sees a byte of an image. What it may do is said when it starts; over a socket comes only
//! which of it, one byte at a time, so that a daemon in a stranger's hands gets no more than a mount
//! of its own:
//! ```text
//!   daemon (confined)        r, w   attach the mount point      keeper (not confined)
//!     decodes, answers  ----------------------------------->      mounts, unmounts
//!     the kernel           u, i     detach it; when it is idle    writes the file with the number
//!                         a, p, e   readahead, process number,   clears up at the end
//!                                   the end
//!                       <-----------------------------------
//!                            0, or 1 with the reason; the connection to the kernel
//! ```
//! It ends with the daemon, however that ends. A daemon that was killed leaves a mount that answers
//! nobody: then it is the keeper that detaches it.

use std::io::{Error, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use imgfs::fuse::attach::{self, Request};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::runtime::{self, Mounted};
use super::{Outcome, umount};

/// Its name among the commands: no image is likely to have it.
pub const NAME: &str = "mount-keeper";
/// Readahead in KiB that root asks the kernel for; its own default on a FUSE mount is 128.
const READ_AHEAD_KIB: u32 = 1024;
/// Longest reason that is passed on.
const MESSAGE: usize = 4096;

const ATTACH_TO_READ: u8 = b'r';
const ATTACH_TO_WRITE: u8 = b'w';
const DETACH: u8 = b'u';
const UNMOUNT: u8 = b'i';
const READ_AHEAD: u8 = b'a';
const PROCESS_NUMBER: u8 = b'p';
const END: u8 = b'e';

/// What it is for: all that it will ever do.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Let other users look as well
    #[arg(long)]
    pub allow_other: bool,
    /// Where the daemon's number goes
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    /// A file that is removed at the end if nothing was written to it
    #[arg(long)]
    pub new_overlay: Option<PathBuf>,
    /// The same of a log
    #[arg(long)]
    pub new_log: Option<PathBuf>,
    /// A folder that is removed at the end
    #[arg(long)]
    pub scratch: Option<PathBuf>,
    /// What the mount's source is shown as
    pub image: PathBuf,
    /// Where it is mounted
    pub mountpoint: PathBuf,
}

/// Serves until the daemon is gone.
pub fn run(args: &Args) -> Result<Outcome> {
    // What ends the daemon is not meant for this process: the daemon asks it to unmount.
    let noticed = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, noticed.clone())?;
    }
    std::env::set_current_dir("/")?;
    let socket = std::io::stdin();
    let mut request = [0];
    // The mount that the daemon has yet to take its leave of.
    let mut attached = None;
    loop {
        match rustix::net::recv(&socket, &mut request, RecvFlags::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok((1.., _)) => {
                let result = args.serve(request[0], attached.as_ref());
                match request[0] {
                    ATTACH_TO_READ | ATTACH_TO_WRITE if result.is_ok() => {
                        attached = runtime::mounted_at(&args.mountpoint).unwrap_or(None);
                    }
                    END => attached = None,
                    _ => {}
                }
                // A daemon that was killed waits for no answer.
                if answer(socket.as_fd(), result).is_err() {
                    break;
                }
            }
            // The daemon is gone.
            Ok(_) | Err(_) => break,
        }
    }
    if let Some(attached) = attached {
        args.detach_dead(&attached);
    }
    args.clear_up();
    Ok(Outcome::Complete)
}

impl Args {
    fn serve(&self, request: u8, attached: Option<&Mounted>) -> std::io::Result<Option<OwnedFd>> {
        match request {
            ATTACH_TO_READ | ATTACH_TO_WRITE => attach::attach(Request {
                mountpoint: &self.mountpoint,
                source: &self.image,
                allow_other: self.allow_other,
                read_only: request == ATTACH_TO_READ,
            })
            .map(Some),
            // Whoever still uses the mount keeps what it has open; nobody new comes in.
            DETACH => self.leave(attached, true).map(|()| None),
            // The kernel refuses while anybody uses it.
            UNMOUNT => self.leave(attached, false).map(|()| None),
            READ_AHEAD => self.read_ahead().map(|()| None),
            PROCESS_NUMBER => self.write_number().map(|()| None),
            END => Ok(None),
            _ => Err(std::io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Ends the mount of its own, and never one that somebody else has laid over it.
    fn leave(&self, attached: Option<&Mounted>, lazily: bool) -> std::io::Result<()> {
        let there = runtime::mounted_at(&self.mountpoint).map_err(Error::other)?;
        match (there, attached) {
            (None, _) => Ok(()),
            (Some(there), Some(ours)) if there.device == ours.device => {
                umount::unmount(&self.mountpoint, lazily).map_err(Error::other)
            }
            (Some(_), _) => Err(std::io::ErrorKind::ResourceBusy.into()),
        }
    }

    /// Detaches what a daemon left that was killed. Somebody else may have done so already, and mounted
    /// something new there, to which the kernel may even have given the same number: that answers.
    fn detach_dead(&self, attached: &Mounted) {
        let there = runtime::mounted_at(&self.mountpoint).unwrap_or(None);
        if there.is_some_and(|there| there.device == attached.device && there.is_dead()) {
            // Nobody is left to be told.
            let _ = umount::unmount(&self.mountpoint, true);
        }
    }

    fn read_ahead(&self) -> std::io::Result<()> {
        let Some(mounted) = runtime::mounted_at(&self.mountpoint).map_err(Error::other)? else { return Ok(()) };
        let setting = format!("/sys/class/bdi/{}/read_ahead_kb", mounted.device.replace('-', ":"));
        std::fs::write(&setting, READ_AHEAD_KIB.to_string())
    }

    fn write_number(&self) -> std::io::Result<()> {
        match &self.pid_file {
            Some(path) => std::fs::write(path, format!("{}\n", std::os::unix::process::parent_id())),
            None => Ok(()),
        }
    }

    fn clear_up(&self) {
        for new in [&self.new_overlay, &self.new_log].into_iter().flatten() {
            if std::fs::symlink_metadata(new).is_ok_and(|found| found.is_file() && found.len() == 0) {
                let _ = std::fs::remove_file(new);
            }
        }
        if let Some(path) = &self.scratch {
            let _ = std::fs::remove_dir(path);
        }
        if let Some(path) = &self.pid_file {
            let _ = std::fs::remove_file(path);
        }
    }

    fn words(&self) -> Vec<&std::ffi::OsStr> {
        let mut words = vec![NAME.as_ref()];
        if self.allow_other {
            words.push("--allow-other".as_ref());
        }
        let files = [
            ("--pid-file", &self.pid_file),
            ("--new-overlay", &self.new_overlay),
            ("--new-log", &self.new_log),
            ("--scratch", &self.scratch),
        ];
        for (word, path) in files {
            words.extend(path.iter().flat_map(|path| [word.as_ref(), path.as_os_str()]));
        }
        words.extend(["--".as_ref(), self.image.as_os_str(), self.mountpoint.as_os_str()]);
        words
    }
}

fn answer(socket: BorrowedFd<'_>, result: std::io::Result<Option<OwnedFd>>) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let (text, connection) = match result {
        Ok(connection) => (vec![0], connection),
        Err(error) => {
            let number = error.raw_os_error().unwrap_or(0).to_le_bytes();
            let mut text = [&[1], number.as_slice(), error.to_string().as_bytes()].concat();
            text.truncate(MESSAGE);
            (text, None)
        }
    };
    let descriptors: Vec<BorrowedFd<'_>> = connection.iter().map(AsFd::as_fd).collect();
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The daemon's end.
pub struct Keeper {
    open: Mutex<Option<(OwnedFd, Child)>>,
}

impl Keeper {
    /// Starts it: before any right is given up.
    pub fn start(duty: &Args) -> Result<Self> {
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new(std::env::current_exe().context("finding the program itself")?);
        command.args(duty.words()).stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null());
        // Away from the terminal's signals.
        let child = command.process_group(0).spawn().context("starting the keeper of the mount")?;
        Ok(Self { open: Mutex::new(Some((ours, child))) })
    }

    fn ask(&self, request: u8) -> std::io::Result<Option<OwnedFd>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = || Error::other("the keeper of the mount is gone");
        let (socket, _) = open.as_ref().ok_or_else(gone)?;
        rustix::net::send(socket, &[request], SendFlags::NOSIGNAL).map_err(|_| gone())?;
        let mut text = [0; MESSAGE];
        let (len, connection) = attach::receive(socket, &mut text)?;
        match text.get(..len).and_then(<[u8]>::split_first) {
            Some((0, _)) => Ok(connection),
            Some((_, rest)) => {
                let (number, reason) = rest.split_first_chunk().unwrap_or((&[0; 4], b""));
                match i32::from_le_bytes(*number) {
                    0 => Err(Error::other(String::from_utf8_lossy(reason).into_owned())),
                    number => Err(Error::from_raw_os_error(number)),
                }
            }
            None => Err(gone()),
        }
    }

    /// Mounts: the connection to the kernel.
    pub fn attach(&self, read_only: bool) -> std::io::Result<OwnedFd> {
        let connection = self.ask(if read_only { ATTACH_TO_READ } else { ATTACH_TO_WRITE })?;
        connection.ok_or_else(|| Error::other("mounted, but no connection came back"))
    }

    /// Unmounts as soon as nobody uses the mount any more.
    pub fn detach(&self) -> std::io::Result<()> {
        self.ask(DETACH).map(drop)
    }

    /// Unmounts when nobody uses the mount; an error while somebody does.
    pub fn unmount(&self) -> std::io::Result<()> {
        self.ask(UNMOUNT).map(drop)
    }

    /// Lets the kernel read ahead farther: something for root.
    pub fn read_ahead(&self) -> std::io::Result<()> {
        self.ask(READ_AHEAD).map(drop)
    }

    /// Writes the daemon's number into its file, when it has one.
    pub fn write_number(&self) -> std::io::Result<()> {
        self.ask(PROCESS_NUMBER).map(drop)
    }

    /// Lets it clear up, and waits for that.
    pub fn end(&self) {
        // It may be gone.
        let _ = self.ask(END);
        if let Some((socket, mut child)) = self.open.lock().unwrap_or_else(PoisonError::into_inner).take() {
            drop(socket);
            let _ = child.wait();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.end();
    }
}
