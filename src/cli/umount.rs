//! `imgfs umount`: unmounts, and returns when the daemon is gone.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::UnmountFlags;

use super::Outcome;
use super::runtime::{self, Mounted, Waiter};

#[derive(clap::Args)]
pub struct Args {
    /// Detach now, end when the last user is gone
    #[arg(short = 'z', long)]
    lazy: bool,
    /// Everything that imgfs has mounted: this user's mounts; as root everyone's
    #[arg(short, long, conflicts_with = "mountpoints")]
    all: bool,
    /// Mount points
    #[arg(required_unless_present = "all")]
    mountpoints: Vec<PathBuf>,
}

pub fn run(args: &Args) -> Result<Outcome> {
    if args.all {
        return all(args.lazy);
    }
    for mountpoint in &args.mountpoints {
        let path = runtime::absolute(mountpoint)?;
        let mounted = runtime::mounted_at(&path)?
            .with_context(|| format!("{}: nothing is mounted there; `imgfs list` shows what is", path.display()))?;
        ensure!(mounted.is_ours(), "{}: a mount of {}, not of imgfs", path.display(), mounted.kind);
        one(&mounted, args.lazy)?;
    }
    Ok(Outcome::Complete)
}

fn one(mounted: &Mounted, lazy: bool) -> Result<()> {
    let waiter = Waiter::new(mounted);
    unmount(&mounted.mountpoint, lazy)?;
    if lazy { Ok(()) } else { waiter.wait() }
}

/// The last one first: an image may lie in another mount. One that is busy does not keep the others.
fn all(lazy: bool) -> Result<Outcome> {
    let user = rustix::process::getuid();
    let mine = |mounted: &Mounted| mounted.is_ours() && (user.is_root() || mounted.uid == Some(user.as_raw()));
    let mut outcome = Outcome::Complete;
    for mounted in runtime::mounts()?.iter().rev().filter(|mounted| mine(mounted)) {
        if let Err(error) = one(mounted, lazy) {
            eprintln!("imgfs: {}", super::sentence(&error));
            outcome = Outcome::Partial;
        }
    }
    Ok(outcome)
}

/// Unmounts as root directly, as an ordinary user through fusermount3.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<()> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(mountpoint, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(explained(mountpoint, error.into())),
    }
    let mut command = Command::new("fusermount3");
    command.arg(if lazy { "-uzq" } else { "-u" }).arg("--").arg(mountpoint);
    let output =
        command.output().context("fusermount3 (Debian package fuse3) is needed to unmount as an ordinary user")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("fusermount3: "));
    }
    Ok(())
}

fn explained(mountpoint: &Path, error: std::io::Error) -> anyhow::Error {
    let advice = match error.kind() {
        std::io::ErrorKind::ResourceBusy => "; `fuser -vm` shows who uses it, `imgfs umount -z` detaches it now",
        _ => "",
    };
    anyhow::anyhow!("{}: {error}{advice}", mountpoint.display())
}
