//! Ctrl-C and its kin while a file is half made: the work ends at its next piece, what is unfinished is
//! taken away as after any error, and the program ends by the signal all the same.
//!
//! A second one ends the program at once, and so does the first while there is nothing to be lost.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use imgfs::device::overlay::{rename_new, temporary_name};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// What the handlers tell the rest: signals are the process's own, so that this is too.
static HEEDED: OnceLock<Heeded> = OnceLock::new();

struct Heeded {
    /// Whether the next signal ends the program at once.
    at_once: Arc<AtomicBool>,
    /// Number of the signal that came, or 0.
    caught: Arc<AtomicUsize>,
}

/// Registers the handlers, which change nothing until [`arm`]. To be called before the sandbox.
pub fn prepare() -> Result<()> {
    let (at_once, caught) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    if HEEDED.set(Heeded { at_once: at_once.clone(), caught: caught.clone() }).is_err() {
        return Ok(());
    }
    let ignored = ignored();
    for signal in [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0) {
        flag::register_conditional_default(signal, at_once.clone())?;
        flag::register(signal, at_once.clone())?;
        flag::register_usize(signal, caught.clone(), usize::try_from(signal)?)?;
    }
    Ok(())
}

/// The signals that whoever started this process wants it not to hear, as nohup(1) does: one bit each.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// From here on there is something to be taken away.
pub fn arm() {
    if let Some(heeded) = HEEDED.get().filter(|heeded| heeded.caught.load(Ordering::SeqCst) == 0) {
        heeded.at_once.store(false, Ordering::SeqCst);
    }
}

/// The signal that came since.
fn caught() -> Option<i32> {
    let signal = HEEDED.get()?.caught.load(Ordering::Relaxed);
    i32::try_from(signal).ok().filter(|signal| *signal != 0)
}

/// To be asked between two pieces of work.
pub fn check() -> std::io::Result<()> {
    // Not of the kind `Interrupted`, after which a write is tried again.
    if caught().is_some() { Err(std::io::Error::other("interrupted")) } else { Ok(()) }
}

/// Whether something failed because of a signal, or at least after one.
pub fn is_caught() -> bool {
    caught().is_some()
}

/// Ends the program by the signal that came, when one came.
pub fn end() {
    if let Some(signal) = caught() {
        eprintln!("imgfs: interrupted; what was unfinished is taken away");
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    }
}

/// A file, or what stands for one, that is read or written only until a signal comes.
pub struct Checked<T>(pub T);

impl<T: Read> Read for Checked<T> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        check()?;
        self.0.read(buf)
    }
}

impl<T: Write> Write for Checked<T> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        check()?;
        self.0.write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl<T: Seek> Seek for Checked<T> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.0.seek(to)
    }
}

/// Makes a file under a temporary name, and gives it its own when `fill` has filled it. A file that has
/// the name already is left alone.
pub fn new_file<T>(path: &Path, fill: impl FnOnce(&mut File) -> Result<T>) -> Result<T> {
    let name = || path.display().to_string();
    if path.symlink_metadata().is_ok() {
        let error: std::io::Error = rustix::io::Errno::EXIST.into();
        return Err(error).with_context(name);
    }
    arm();
    let temporary = temporary_name(path);
    let mut file = File::options().read(true).write(true).create_new(true).open(&temporary).with_context(name)?;
    let filled = fill(&mut file).and_then(|filled| {
        file.sync_all()?;
        check()?;
        Ok(filled)
    });
    let made = filled.with_context(name).and_then(|filled| {
        rename_new(&temporary, path)?;
        Ok(filled)
    });
    if made.is_err() {
        // It was made a moment ago, and is of no use.
        let _ = std::fs::remove_file(&temporary);
    }
    made
}
