//! `imgfs cat`: files to standard output.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};
use imgfs::filesystem::{FileSystem, NodeId};

use super::Outcome;
use super::sandbox::Sandbox;
use super::target::{ImageArgs, Target};

/// Bytes read at a time: large enough for a device to be asked rarely.
const PIECE: usize = 1 << 20;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// Files: IMAGE:/path, as in the mount (IMAGE:/disk.img are the flat bytes)
    #[arg(required = true, value_name = "IMAGE:/PATH")]
    targets: Vec<OsString>,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let stdout = std::io::stdout();
    anyhow::ensure!(
        !stdout.is_terminal() || args.targets.len() == 1,
        "several files to a terminal would run into each other: name one, or redirect"
    );
    Sandbox::enter_for(&args.image, &args.targets)?;
    let mut out = stdout.lock();
    for text in &args.targets {
        let target = Target::parse(text)?;
        let image = target.open(&args.image)?;
        let forest = image.forest();
        let node = target.find(&image, &forest)?;
        each_piece(&forest, node, &mut |piece| Ok(out.write_all(piece)?))
            .with_context(|| text.display().to_string())?;
    }
    out.flush()?;
    Ok(Outcome::Complete)
}

/// Reads a file from its start to its end, piece by piece.
pub fn each_piece(tree: &dyn FileSystem, file: NodeId, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut offset = 0u64;
    loop {
        let len = tree.read(file, &mut buffer, offset)?;
        let piece = buffer.get(..len).unwrap_or_default();
        if piece.is_empty() {
            return Ok(());
        }
        take(piece)?;
        offset += len as u64;
    }
}
