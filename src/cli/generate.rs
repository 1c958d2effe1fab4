//! Man pages and shell completions, from the same definitions as `--help`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Outcome};

/// The words of `imgfs manual`.
#[derive(clap::Args)]
pub struct ManualArgs {
    /// Write imgfs.1 and one page a command into this folder
    folder: PathBuf,
}

pub fn manual(args: &ManualArgs) -> Result<Outcome> {
    std::fs::create_dir_all(&args.folder).with_context(|| args.folder.display().to_string())?;
    clap_mangen::generate_to(Cli::command(), &args.folder).with_context(|| args.folder.display().to_string())?;
    Ok(Outcome::Complete)
}

/// The words of `imgfs completions`.
#[derive(clap::Args)]
pub struct CompletionsArgs {
    /// For this shell; the script goes to standard output
    shell: Shell,
}

pub fn completions(args: &CompletionsArgs) -> Result<Outcome> {
    // Into memory: it does not expect that writing can fail.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "imgfs", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(Outcome::Complete)
}
