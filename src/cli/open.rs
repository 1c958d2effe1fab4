//! `imgfs open`: what a desktop runs for "Open with": mounts the image in the user's runtime folder and
//! shows that in the file manager.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;

use super::{Outcome, runtime, sentence};

/// How many mount points of one name are looked for.
const NAMES: u32 = 1000;

#[derive(clap::Args)]
pub struct Args {
    /// Let it be written to; changes go to an overlay beside the image
    #[arg(long)]
    rw: bool,
    /// The image
    image: PathBuf,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let result = open(args);
    if let Err(error) = &result {
        notify(&sentence(error));
    }
    result
}

fn open(args: &Args) -> Result<Outcome> {
    let image = args.image.canonicalize().with_context(|| args.image.display().to_string())?;
    let mountpoint = mounted(&image, args.rw)?;
    let mut out = std::io::stdout().lock();
    out.write_all(mountpoint.as_os_str().as_encoded_bytes())?;
    out.write_all(b"\n")?;
    drop(out);
    match Command::new("xdg-open").arg(&mountpoint).stdin(Stdio::null()).status() {
        Ok(status) if !status.success() => bail!("mounted, but xdg-open shows no file manager ({status})"),
        Ok(_) => Ok(Outcome::Complete),
        // Without a desktop the path is all.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Outcome::Complete),
        Err(error) => Err(error).context("xdg-open"),
    }
}

/// Where the image is mounted, newly or since an earlier time. Two at once wait for each other.
fn mounted(image: &Path, rw: bool) -> Result<PathBuf> {
    let folder = runtime::mount_points()?;
    let lock = File::open(&folder).with_context(|| folder.display().to_string())?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    let here = |found: &runtime::Mounted| found.is_ours() && found.mountpoint.starts_with(&folder);
    // A daemon that is gone answers nothing.
    let answers = |found: &runtime::Mounted| found.mountpoint.metadata().is_ok();
    let same = |found: &runtime::Mounted| found.source == image && found.writable == rw;
    if let Some(found) = runtime::mounts()?.into_iter().find(|found| here(found) && same(found) && answers(found)) {
        return Ok(found.mountpoint);
    }
    clear(&folder)?;
    let mountpoint = make(&folder, image)?;
    mount(image, &mountpoint, rw).inspect_err(|_| {
        // Empty, and nothing to anyone: what failed is said.
        let _ = std::fs::remove_dir(&mountpoint);
    })?;
    Ok(mountpoint)
}

/// Removes what earlier mounts have left: those in use are busy, and only empty folders go.
fn clear(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let _ = std::fs::remove_dir(entry?.path());
    }
    Ok(())
}

/// A new folder with the image's name, numbered where another image has that.
fn make(folder: &Path, image: &Path) -> Result<PathBuf> {
    let name = image.file_name().context("a folder of its own is no image")?;
    for number in 1..=NAMES {
        let mut numbered = name.to_owned();
        if number > 1 {
            numbered.push(format!(" {number}"));
        }
        let path = folder.join(numbered);
        match std::fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
    }
    bail!("{}: {NAMES} mounts of that name", folder.display())
}

/// Runs `imgfs mount`, and passes on what it says.
fn mount(image: &Path, mountpoint: &Path, rw: bool) -> Result<()> {
    let mut command = Command::new(std::env::current_exe().context("finding the program itself")?);
    command.arg("mount").args(rw.then_some("-orw")).arg(image).arg(mountpoint);
    let output = command.stdin(Stdio::inherit()).stderr(Stdio::piped()).output().context("mounting")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{}", said.trim().trim_start_matches("imgfs: "));
    }
    eprint!("{said}");
    Ok(())
}

/// Shows an error on the desktop when there is no terminal to read it on.
fn notify(text: &str) {
    if std::io::stderr().is_terminal() {
        return;
    }
    // The body of a notification is read as markup.
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let mut command = Command::new("notify-send");
    command.args(["--app-name=imgfs", "--icon=dialog-error", "--", "imgfs"]).arg(text);
    // Where there is none, standard error has it.
    let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}
