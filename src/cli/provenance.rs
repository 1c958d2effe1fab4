//! The log of what was done to an image: one JSON object a line, appended and made stable one by one.
//!
//! An overlay has its log beside it (`OVERLAY.log.jsonl`); any other mount has one where `--log` asks
//! for it. Nothing that is there is ever changed or removed. docs/provenance.md describes the members.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use imgfs::digest::hex;
use imgfs::filesystem::Timestamp;
use imgfs::stack::{Image, Writing};
use imgfs::text::tamed_json;
use serde_json::{Value, json};

use super::{document, info, mount, sentence};

/// Warnings of one process that are logged: a damaged image can have as many as it has bytes.
const MAX_WARNINGS: u32 = 1000;

/// Where it is read who works on which host.
pub const ORIGIN: [&str; 2] = ["/etc/passwd", "/proc/sys/kernel/hostname"];

/// A log, or none. Opened before anything of the image is decoded.
pub struct Log {
    file: Option<File>,
    /// Who, where: asked while the process may still look.
    origin: Value,
    /// Made by this process, and of no use to anyone when nothing comes of what it was made for.
    made: Option<PathBuf>,
    warnings: AtomicU32,
}

impl Log {
    /// The log that was asked for, or the overlay's own. That one is not worth failing for: a folder
    /// that cannot be written to is said.
    pub fn open(asked: Option<&Path>, overlay: Option<&Path>) -> Result<Self> {
        let mut made = None;
        let file = match (asked, overlay) {
            (Some(path), _) => Some(append(path).with_context(|| path.display().to_string())?),
            (None, Some(overlay)) => {
                let path = beside(overlay);
                made = (!path.exists()).then(|| path.clone());
                let opened = append(&path);
                opened.map_err(|error| eprintln!("imgfs: no log is kept: {}: {error}", path.display())).ok()
            }
            (None, None) => None,
        };
        Ok(Self { file, origin: json!({ "user": user(), "host": host() }), made, warnings: AtomicU32::new(0) })
    }

    /// As [`Log::open`], for what is to be written.
    pub fn of_writing(asked: Option<&Path>, writing: Option<&Writing>) -> Result<Self> {
        Self::open(asked, writing.and_then(Writing::overlay))
    }

    /// Nothing came of it, and no overlay was made: a log of its own goes as well.
    pub fn forget(&self, overlay: Option<&Writing>) {
        let overlay_is_there = overlay.and_then(Writing::overlay).is_some_and(Path::exists);
        if let Some(path) = self.made.as_ref().filter(|_| !overlay_is_there) {
            // It may be gone already.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Its file, when this process made it: empty as yet.
    pub fn made(&self) -> Option<PathBuf> {
        self.made.clone()
    }

    /// Appends an event in one write, and returns when it is stable. A log that cannot be written to
    /// is said; what it is about goes on.
    pub fn event(&self, event: &str, members: Value) {
        let Some(mut file) = self.file.as_ref() else { return };
        let mut line = document::object(
            "imgfs-log",
            json!({
                "time": document::time(Timestamp::now()),
                "event": event,
                "program": concat!("imgfs ", env!("CARGO_PKG_VERSION")),
                "process": std::process::id(),
            }),
        );
        command_line(&mut line);
        document::merge(&mut line, self.origin.clone());
        document::merge(&mut line, members);
        if let Err(error) =
            file.write_all(format!("{}\n", tamed_json(&line.to_string())).as_bytes()).and_then(|()| file.sync_data())
        {
            eprintln!("imgfs: the log: {error}");
        }
    }

    /// An event with its outcome: `done`, or `failed` and why.
    pub fn outcome<T>(&self, event: &str, mut members: Value, result: &Result<T>) {
        let outcome = match result {
            Ok(_) => json!({ "outcome": "done" }),
            Err(error) => json!({ "outcome": "failed", "error": sentence(error) }),
        };
        document::merge(&mut members, outcome);
        self.event(event, members);
    }

    fn warning(&self, level: &str, text: &str) {
        match self.warnings.fetch_add(1, Ordering::Relaxed) {
            0..MAX_WARNINGS => self.event("warning", json!({ "level": level, "message": text })),
            MAX_WARNINGS => self.event("warning", json!({ "level": level, "message": "there are more warnings" })),
            _ => {}
        }
    }
}

/// The log of an overlay.
pub fn beside(overlay: &Path) -> PathBuf {
    let mut name = overlay.as_os_str().to_owned();
    name.push(".log.jsonl");
    name.into()
}

fn append(path: &Path) -> std::io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    File::options().append(true).create(true).custom_flags(flags).open(path)
}

/// As the user wrote it: without what the first process of a mount tells the second. Where a word is not
/// UTF-8, the bytes of all words in hexadecimal as well.
fn command_line(line: &mut Value) {
    let own = |word: &OsString| mount::OWN_WORDS.iter().any(|own| word == own);
    let words: Vec<OsString> = std::env::args_os().filter(|word| !own(word)).collect();
    let text: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    document::merge(line, json!({ "command": text }));
    if words.iter().any(|word| word.to_str().is_none()) {
        let bytes: Vec<String> = words.iter().map(|word| hex(word.as_encoded_bytes())).collect();
        document::merge(line, json!({ "command_hex": bytes }));
    }
}

fn user() -> Value {
    let uid = rustix::process::getuid().as_raw();
    json!({ "uid": uid, "name": user_name(uid) })
}

/// The name of a user of this host.
pub fn user_name(uid: u32) -> Option<String> {
    let names = std::fs::read_to_string(ORIGIN[0]).ok()?;
    names.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

fn host() -> Option<String> {
    std::fs::read_to_string(ORIGIN[1]).ok().map(|name| name.trim_end().to_owned())
}

/// What tells a file of the host from all others: also when it was replaced or changed since.
pub fn identity(path: &Path) -> Value {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut value = json!({});
    document::name(&mut value, "path", absolute.as_os_str().as_encoded_bytes());
    if let Ok(found) = std::fs::metadata(path) {
        let modified = found.modified().ok().and_then(Timestamp::from_system_time).map(document::time);
        let facts = json!({ "size": found.len(), "modified": modified, "device": found.dev(), "inode": found.ino() });
        document::merge(&mut value, facts);
    }
    value
}

/// An image that was opened: which one, with which hash where that is known, what was found in it and
/// from which bytes.
pub fn opened(image: &Image, path: &Path, writing: Option<&Writing>) -> Value {
    let mut value = json!({ "image": identity(path), "detected": info::describe(image) });
    if let Some(Writing::Overlay(overlay, options)) = writing {
        let binding = imgfs::device::overlay::base_reference(overlay).ok().and_then(|base| base.binding);
        let hash = binding.as_ref().and_then(|binding| binding.full_hash()).map(|hash| hex(&hash));
        let samples = binding.as_ref().map(|binding| hex(&binding.samples));
        let known = json!({
            "forced_base": options.force,
            "disk_sha256": hash,
            "samples_sha256": samples,
        });
        document::merge(&mut value, known);
        document::name(&mut value, "overlay", overlay.as_os_str().as_encoded_bytes());
    }
    value
}

/// The program's logger, which copies warnings and errors into the provenance log.
pub struct Logger {
    shown: env_logger::Logger,
    kept: Arc<OnceLock<Arc<Log>>>,
}

impl Logger {
    /// Starts it; gives the place for the log that is opened later.
    pub fn start(shown: env_logger::Logger) -> Arc<OnceLock<Arc<Log>>> {
        let kept = Arc::new(OnceLock::new());
        let filter = shown.filter().max(log::LevelFilter::Warn);
        // Only a second logger in one process could be refused.
        if log::set_boxed_logger(Box::new(Self { shown, kept: kept.clone() })).is_ok() {
            log::set_max_level(filter);
        }
        kept
    }
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        self.shown.enabled(metadata) || metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        self.shown.log(record);
        if record.level() <= log::Level::Warn
            && let Some(log) = self.kept.get()
        {
            log.warning(&record.level().as_str().to_lowercase(), &record.args().to_string());
        }
    }

    fn flush(&self) {
        self.shown.flush();
    }
}
