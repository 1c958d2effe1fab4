//! `imgfs cat`: files to standard output.

use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal, Write};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use imgfs::cache::lock;
use imgfs::filesystem::{FileSystem, Kind, NodeId};
use imgfs::text::printable;

use super::Outcome;
use super::parallel::in_order;
use super::sandbox::Sandbox;
use super::target::{ImageArgs, Located, one_of, trimmed};

/// Bytes read at a time: large enough for a device to be asked rarely.
const PIECE: usize = 1 << 20;
/// Pieces a core that are read ahead of the one that is written.
const AHEAD: usize = 2;

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
    ensure!(
        !stdout.is_terminal() || args.targets.len() == 1,
        "several files to a terminal would run into each other: name one, or redirect"
    );
    Sandbox::enter_for(&args.image, &args.targets)?;
    let mut out = stdout.lock();
    let mut outcome = Outcome::Complete;
    for text in &args.targets {
        let mut refused = false;
        let mut take = |piece: &[u8]| Ok(out.write_all(piece).inspect_err(|_| refused = true)?);
        let written = write(text, args, &mut take);
        if refused {
            return written.map(|()| outcome);
        }
        one_of(&args.targets, written, &mut outcome)?;
    }
    out.flush()?;
    Ok(outcome)
}

fn write(text: &OsStr, args: &Args, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let Located { target, forest, node, .. } = Located::open(text, &args.image)?;
    if let Ok(link) = forest.read_link(node) {
        anyhow::bail!("{} is a symbolic link to {}", text.display(), printable(&link));
    }
    ensure!(!trimmed(&target.path).is_empty(), "{0} is a whole image: its bytes are {0}:/disk.img", text.display());
    each_piece_ahead(&forest, node, take).with_context(|| text.display().to_string())
}

/// As [`each_piece`], the next pieces being read (and unpacked) on every core while one is taken.
fn each_piece_ahead(tree: &dyn FileSystem, file: NodeId, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let attributes = tree.attributes(file)?;
    let size = attributes.size;
    if attributes.kind != Kind::File || size <= PIECE as u64 {
        return each_piece(tree, file, take);
    }
    // Buffers that were taken and wait for the next piece.
    let spare = Mutex::new(Vec::new());
    let read = |start: u64| -> Result<(Vec<u8>, usize)> {
        let mut buffer = lock(&spare).pop().unwrap_or_else(|| vec![0; PIECE]);
        let wanted = usize::try_from(size - start).unwrap_or(PIECE).min(PIECE);
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..wanted).filter(|rest| !rest.is_empty()) {
            let len = tree.read(file, rest, start + done as u64)?;
            ensure!(len > 0, "it ends at byte {} of {size}", start + done as u64);
            done += len;
        }
        Ok((buffer, done))
    };
    in_order((0..size).step_by(PIECE), AHEAD, read, &mut |piece| {
        let (buffer, len) = piece?;
        take(buffer.get(..len).unwrap_or_default())?;
        lock(&spare).push(buffer);
        Ok(())
    })
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
