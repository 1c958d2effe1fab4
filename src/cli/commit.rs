//! `imgfs commit`, `imgfs discard`: what becomes of the changes in an overlay.

use std::path::PathBuf;

use anyhow::Result;

use super::options::OverlayArgs;
use super::{Outcome, progress};

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
    match &args.output {
        Some(output) => args.overlay.confine(Some(output))?,
        None => args.overlay.confine_to_change()?,
    }
    let overlay = args.overlay.open(!args.in_place)?;
    progress::with_bar(|progress| match (&args.output, args.format) {
        (Some(output), Format::Raw) => overlay.commit_to_raw(output, progress),
        (Some(output), Format::Qcow2) => overlay.commit_to_qcow2(output, progress),
        (None, _) => overlay.commit_in_place(progress),
    })?;
    Ok(Outcome::Complete)
}

/// The words of `imgfs discard`.
#[derive(clap::Args)]
pub struct DiscardArgs {
    #[command(flatten)]
    overlay: OverlayArgs,
}

pub fn discard(args: &DiscardArgs) -> Result<Outcome> {
    args.overlay.confine_to_change()?;
    args.overlay.open(false)?.discard()?;
    Ok(Outcome::Complete)
}
