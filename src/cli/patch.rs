//! `imgfs export`, `imgfs apply`: the changes of an overlay as a small file that can travel.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use imgfs::device::overlay::apply_patch;
use imgfs::stack::{Image, Options, Writing};
use serde_json::json;

use super::edit::say_where;
use super::interrupt::Checked;
use super::options::{OverlayArgs, WritingArgs};
use super::provenance::Log;
use super::sandbox::{SafetyArgs, Sandbox};
use super::{Outcome, interrupt, progress, provenance};

/// The words of `imgfs export`.
#[derive(clap::Args)]
pub struct ExportArgs {
    #[command(flatten)]
    overlay: OverlayArgs,
    /// The patch to be written: a new file
    #[arg(long, value_name = "FILE")]
    patch: PathBuf,
}

pub fn export(args: &ExportArgs) -> Result<Outcome> {
    let log = args.overlay.log()?;
    interrupt::prepare()?;
    args.overlay.confine(Some(&args.patch))?;
    let result = write_patch(args);
    let about = json!({
        "overlay": provenance::identity(&args.overlay.overlay),
        "forced_base": args.overlay.force_base,
        "patch": provenance::identity(&args.patch),
    });
    log.outcome("export", about, &result);
    result
}

fn write_patch(args: &ExportArgs) -> Result<Outcome> {
    let overlay = args.overlay.open(true)?;
    let summary = interrupt::new_file(&args.patch, |file| {
        // Sectors that only were written, and did not change, are not in it.
        let total = overlay.changed_runs().map_while(|run| Some(run.ok()?.1)).fold(0, u64::saturating_add);
        progress::with_bar(|progress| {
            let mut out = BufWriter::new(Counted { out: Checked(file), done: 0, total, progress });
            let summary = overlay.export_patch(&mut out)?;
            out.flush()?;
            Ok(summary)
        })
    })?;
    println!("{} runs, {} bytes", summary.records, summary.bytes);
    Ok(Outcome::Complete)
}

/// Tells how much was written.
struct Counted<'a, T> {
    out: T,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<T: Write> Write for Counted<'_, T> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let len = self.out.write(buf)?;
        self.done = self.done.saturating_add(len as u64);
        (self.progress)(self.done.min(self.total), self.total);
        Ok(len)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// The words of `imgfs apply`.
#[derive(clap::Args)]
pub struct ApplyArgs {
    /// The patch
    patch: PathBuf,
    /// The image that it was made for; the changes go into its overlay
    image: PathBuf,
    #[command(flatten)]
    writing: WritingArgs,
    /// Take a base that has changed since the overlay was made, and make it the overlay's base
    #[arg(long)]
    force_base: bool,
    #[command(flatten)]
    safety: SafetyArgs,
}

pub fn apply(args: &ApplyArgs) -> Result<Outcome> {
    let file = File::open(&args.patch).with_context(|| args.patch.display().to_string())?;
    let writing = args.writing.parse(&args.image, args.force_base)?;
    interrupt::prepare()?;
    interrupt::arm();
    let log = Log::of_writing(args.writing.log.as_deref(), writing.as_ref())?;
    let result = apply_to(args, file, writing.clone());
    let about = json!({
        "image": provenance::identity(&args.image),
        "patch": provenance::identity(&args.patch),
        "forced_base": args.force_base,
    });
    log.outcome("apply", about, &result);
    if result.is_err() {
        log.forget(writing.as_ref());
    }
    result
}

fn apply_to(args: &ApplyArgs, file: File, writing: Option<Writing>) -> Result<Outcome> {
    let place = writing.as_ref().and_then(Writing::overlay).map(Path::to_owned);
    let fresh = place.clone().filter(|path| !path.exists());
    let mut sandbox = Sandbox::new(&args.safety);
    sandbox.image(&args.image);
    if let Some(writing) = &writing {
        sandbox.fill_for(writing);
    }
    sandbox.enter()?;
    let image = Image::open(&args.image, &Options { writing, ..Options::following(&args.safety.allow_references) })?;
    let summary = apply_patch(&mut BufReader::new(Checked(file)), image.disk.as_ref()).inspect_err(|_| {
        // Made for this patch alone.
        let _ = fresh.map(std::fs::remove_file);
    })?;
    println!("{} runs, {} of them there already", summary.records, summary.present);
    if let Some(overlay) = image.into_overlay() {
        overlay.close()?;
    }
    place.iter().for_each(|place| say_where(place));
    Ok(Outcome::Complete)
}
