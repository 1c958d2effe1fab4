//! Attaches a mount point to the kernel: directly as root, through `fusermount3` for anyone else.
//!
//! Both ways give the mount the type `fuse.imgfs` and the image's name as its source, and always
//! `nosuid` and `nodev`.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{Error, ErrorKind, IoSliceMut, Read, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::FdFlags;
use rustix::mount::MountFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// What the kernel is told about a mount.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// A directory, or a file that becomes the root itself.
    pub mountpoint: &'a Path,
    /// What `mount` and `df` show as the source.
    pub source: &'a Path,
    /// Other users may look.
    pub allow_other: bool,
    /// Nothing can be written.
    pub read_only: bool,
}

/// The connection to the kernel, the mount being in place. Errors are the host's, with the words of
/// `fusermount3` where it was asked.
pub fn attach(request: Request<'_>) -> Result<OwnedFd> {
    if !rustix::process::geteuid().is_root() {
        return through_helper(request);
    }
    directly(request)
}

fn directly(request: Request<'_>) -> Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let mode = std::fs::metadata(request.mountpoint)?.mode();
    let allow_other = if request.allow_other { ",allow_other" } else { "" };
    let data =
        format!("fd={},rootmode={mode:o},user_id=0,group_id=0,default_permissions{allow_other}", device.as_raw_fd());
    let read_only = if request.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    let flags = read_only | MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(request.source, request.mountpoint, "fuse.imgfs", flags, CString::new(data)?.as_c_str())?;
    Ok(device.into())
}

/// `fusermount3` mounts, and sends the connection through a socket that it finds by `_FUSE_COMMFD`.
fn through_helper(request: Request<'_>) -> Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
    let mut command = Command::new("fusermount3");
    command.arg("-o").arg(helper_options(request)).arg("--").arg(request.mountpoint);
    command.env("_FUSE_COMMFD", theirs.as_raw_fd().to_string()).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut helper = command.spawn()?;
    drop(theirs);
    let received = receive(&ours, &mut [0]).map(|(_, connection)| connection);
    let mut said = String::new();
    if let Some(mut pipe) = helper.stderr.take() {
        pipe.read_to_string(&mut said)?;
    }
    let status = helper.wait()?;
    match received {
        Ok(Some(connection)) if status.success() => Ok(connection),
        Err(error) => Err(error),
        _ => Err(Error::other(said.trim().trim_start_matches("fusermount3: ").to_owned())),
    }
}

fn helper_options(request: Request<'_>) -> OsString {
    let mut options = b"subtype=imgfs,nosuid,nodev,default_permissions".to_vec();
    options.extend_from_slice(if request.read_only { b",ro" } else { b",rw" });
    if request.allow_other {
        options.extend_from_slice(b",allow_other");
    }
    options.extend_from_slice(b",fsname=");
    for &byte in request.source.as_os_str().as_bytes() {
        if matches!(byte, b',' | b'\\') {
            options.push(b'\\');
        }
        options.push(byte);
    }
    OsString::from_vec(options)
}

/// One message from a socket: its length, and the descriptor that came with it. Length 0 is the end.
pub fn receive(socket: impl AsFd, text: &mut [u8]) -> Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let len = loop {
        let flags = RecvFlags::CMSG_CLOEXEC;
        match rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(text)], &mut ancillary, flags) {
            Err(error) if Error::from(error).kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
            Ok(received) => break received.bytes,
        }
    };
    let rights = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((len, rights))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_the_image_name_does_not_end_the_option() {
        let source = Path::new("/a,suid\\b.img");
        let request = Request { mountpoint: Path::new("/mnt"), source, allow_other: false, read_only: true };
        assert!(helper_options(request).to_str().unwrap().ends_with(",ro,fsname=/a\\,suid\\\\b.img"));
    }
}
