//! `imgfs umount`: unmounts, and returns when the daemon is gone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::Outcome;
use super::runtime::{self, Mounted, Waiter};

#[derive(clap::Args)]
pub struct Args {
    /// Detach now, end when the last user is gone (also -l, as for umount(8))
    #[arg(short = 'z', short_alias = 'l', long)]
    lazy: bool,
    /// Everything that imgfs has mounted: this user's mounts; as root everyone's
    #[arg(short, long, conflicts_with = "mountpoints")]
    all: bool,
    /// Mount points; or an image that is mounted once
    #[arg(required_unless_present = "all")]
    mountpoints: Vec<PathBuf>,
}

pub fn run(args: &Args) -> Result<Outcome> {
    if args.all {
        return all(args.lazy);
    }
    for mountpoint in &args.mountpoints {
        let path = runtime::absolute(mountpoint)?;
        let mounted = match runtime::mounted_at(&path)? {
            Some(mounted) => mounted,
            None => of_image(mountpoint, &path)?,
        };
        ensure!(mounted.is_ours(), "{}: a mount of {}, not of imgfs", path.display(), mounted.kind);
        one(&mounted, args.lazy)?;
    }
    Ok(Outcome::Complete)
}

/// The only mount of an image.
fn of_image(name: &Path, path: &Path) -> Result<Mounted> {
    let image = name.canonicalize().unwrap_or_else(|_| path.to_owned());
    let is_it = |source: &Path| source == path || source.canonicalize().is_ok_and(|source| source == image);
    let mut found: Vec<Mounted> =
        runtime::mounts()?.into_iter().filter(|mounted| mounted.is_ours() && is_it(&mounted.source)).collect();
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (Some(_), more) => bail!("{}: mounted {} times; `imgfs list` shows where", path.display(), more + 1),
        (None, _) => bail!("{}: nothing is mounted there; `imgfs list` shows what is", path.display()),
    }
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

/// How long a mount may be busy before that is an error: a program that is just being started holds
/// the files of the one that starts it for a moment.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// Unmounts as root directly, as an ordinary user through fusermount3.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match unmount_now(mountpoint, lazy)? {
            Ok(()) => return Ok(()),
            Err(_) if Instant::now() < end => std::thread::sleep(PAUSE),
            Err(busy) => bail!(
                "{}: {busy}; `fuser -vm` shows who uses it, `imgfs umount -z` detaches it now",
                mountpoint.display()
            ),
        }
    }
}

/// Says what the kernel says when the mount is in use.
fn unmount_now(mountpoint: &Path, lazy: bool) -> Result<std::io::Result<()>> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(mountpoint, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => return Ok(Ok(())),
        Err(Errno::PERM) => {}
        Err(Errno::BUSY) => return Ok(Err(Errno::BUSY.into())),
        Err(error) => return Err(error).with_context(|| mountpoint.display().to_string()),
    }
    let mut command = Command::new("fusermount3");
    command.env("LC_ALL", "C").arg(if lazy { "-uzq" } else { "-u" }).arg("--").arg(mountpoint);
    let output =
        command.output().context("fusermount3 (Debian package fuse3) is needed to unmount as an ordinary user")?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("busy") {
        return Ok(Err(Errno::BUSY.into()));
    }
    bail!("{}", said.trim().trim_start_matches("fusermount3: "))
}
