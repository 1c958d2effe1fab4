//! `imgfs commit`, `imgfs discard`: what becomes of the changes in an overlay.

use std::path::PathBuf;

use anyhow::{Context, Result};
use imgfs::device::overlay;
use imgfs::stack::open_overlay;

use super::{Outcome, progress};

#[derive(clap::Args)]
pub struct Args {
    /// The overlay
    overlay: PathBuf,
    /// Write base and overlay as a new image
    #[arg(short, value_name = "NEW.img", required_unless_present = "in_place", conflicts_with = "in_place")]
    output: Option<PathBuf>,
    /// Format of the new image
    #[arg(long, value_enum, default_value = "raw", conflicts_with = "in_place")]
    format: Format,
    /// Write the changes into the base itself, and empty the overlay. The only command that changes an image
    #[arg(long)]
    in_place: bool,
    /// Take a base that has changed since the overlay was made
    #[arg(long)]
    force_base: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Raw,
    Qcow2,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let options = overlay::Options { force: args.force_base, ..overlay::Options::default() };
    let overlay = open_overlay(&args.overlay, options).with_context(|| args.overlay.display().to_string())?;
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
    /// The overlay: its changes are lost
    overlay: PathBuf,
    /// Take a base that has changed since the overlay was made
    #[arg(long)]
    force_base: bool,
}

pub fn discard(args: &DiscardArgs) -> Result<Outcome> {
    let options = overlay::Options { force: args.force_base, ..overlay::Options::default() };
    open_overlay(&args.overlay, options).with_context(|| args.overlay.display().to_string())?.discard()?;
    Ok(Outcome::Complete)
}
