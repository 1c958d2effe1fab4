//! `imgfs umount`: unmounts, and returns when the daemon is gone.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::UnmountFlags;

use super::Outcome;
use super::runtime::{self, Waiter};

#[derive(clap::Args)]
pub struct Args {
    /// Detach now, end when the last user is gone
    #[arg(short = 'z', long)]
    lazy: bool,
    /// Mount points
    #[arg(required = true)]
    mountpoints: Vec<PathBuf>,
}

pub fn run(args: &Args) -> Result<Outcome> {
    for mountpoint in &args.mountpoints {
        let path = runtime::absolute(mountpoint)?;
        let mounted =
            runtime::mounted_at(&path)?.with_context(|| format!("{}: nothing is mounted there", path.display()))?;
        ensure!(mounted.kind == "fuse.imgfs", "{}: a mount of {}, not of imgfs", path.display(), mounted.kind);
        let waiter = Waiter::new(&mounted);
        unmount(&path, args.lazy)?;
        if !args.lazy {
            waiter.wait()?;
        }
    }
    Ok(Outcome::Complete)
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
