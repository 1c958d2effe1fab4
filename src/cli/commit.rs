//! `imgfs commit`, `imgfs discard`: what becomes of the changes in an overlay.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use imgfs::device::overlay::{State, remember};
use imgfs::error::Error;
use serde_json::{Value, json};

use super::options::OverlayArgs;
use super::{Outcome, document, interrupt, progress, provenance};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    overlay: OverlayArgs,
    /// Write base and overlay as a new image
    #[arg(short, value_name = "NEW.img", required_unless_present = "in_place", conflicts_with = "in_place")]
    output: Option<PathBuf>,
    /// Format of the new image
    #[arg(long, value_enum, default_value = "raw", conflicts_with = "in_place")]
    format: Format,
    /// Write the changes into the base itself, and empty the overlay. The only command that changes an image
    #[arg(long)]
    in_place: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Raw,
    Qcow2,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let log = args.overlay.log()?;
    match &args.output {
        Some(output) => {
            interrupt::prepare()?;
            args.overlay.confine_to_learn(output)?;
        }
        None => args.overlay.confine_to_change()?,
    }
    let about = || {
        let into = args.output.as_ref().map(|output| provenance::identity(output));
        json!({
            "overlay": provenance::identity(&args.overlay.overlay),
            "in_place": args.in_place,
            "forced_base": args.overlay.force_base,
            "into": into,
        })
    };
    // A commit in place that is interrupted has to be known as well.
    log.event("commit", merged(about(), json!({ "outcome": "begun" })));
    let result = commit(args);
    log.outcome("commit", about(), &result);
    result
}

fn merged(mut value: Value, more: Value) -> Value {
    document::merge(&mut value, more);
    value
}

fn commit(args: &Args) -> Result<Outcome> {
    let overlay = args.overlay.open(!args.in_place)?;
    let committed = progress::with_bar(|progress| {
        let Some(output) = &args.output else {
            overlay.verify_whole_base(progress)?;
            return overlay.commit_in_place(progress).map(|()| None);
        };
        interrupt::arm();
        let mut progress = |done, total| {
            progress(done, total);
            interrupt::check().map_err(|error| Error::io("the new image", error))
        };
        match args.format {
            Format::Raw => overlay.commit_to_raw(output, &mut progress),
            Format::Qcow2 => overlay.commit_to_qcow2(output, &mut progress),
        }
    });
    if args.output.is_none() {
        in_place(committed.map(drop), Some(&args.overlay.overlay))?;
    } else if let Some(learned) = committed? {
        // The new image is there in any case.
        if let Err(error) = remember(&args.overlay.overlay, &learned) {
            log::debug!("the hash of the base is not kept: {error}");
        }
    }
    Ok(Outcome::Complete)
}

/// What became of a commit in place. One that fails half way leaves an image that is neither the old nor
/// the new one: that has to be said, and what to do.
pub fn in_place(committed: imgfs::error::Result<()>, overlay: Option<&Path>) -> Result<()> {
    let Err(error) = committed else { return Ok(()) };
    let state = |path: &Path| Some(imgfs::device::overlay::info(path).ok()?.base.binding?.state);
    match overlay.filter(|path| state(path) == Some(State::Copying)) {
        Some(path) => Err(error).with_context(|| {
            let name = path.display();
            format!(
                "the image is half written, and all changes are still in {name}: `imgfs commit {name} --in-place` finishes it"
            )
        }),
        None => Err(error.into()),
    }
}

/// The words of `imgfs discard`.
#[derive(clap::Args)]
pub struct DiscardArgs {
    #[command(flatten)]
    overlay: OverlayArgs,
}

pub fn discard(args: &DiscardArgs) -> Result<Outcome> {
    let log = args.overlay.log()?;
    args.overlay.confine_to_change()?;
    let about = json!({
        "overlay": provenance::identity(&args.overlay.overlay),
        "forced_base": args.overlay.force_base,
    });
    let result = args.overlay.open(false).and_then(|overlay| Ok(overlay.discard()?));
    log.outcome("discard", about, &result);
    result.map(|()| Outcome::Complete)
}
