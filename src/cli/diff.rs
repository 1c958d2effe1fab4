//! `imgfs diff`: what an overlay changes, in sectors and in files.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, Result};
use imgfs::device::BlockDevice;
use imgfs::device::overlay::Overlay;
use imgfs::filesystem::{Attributes, FileSystem, Kind, NodeId};
use imgfs::forest::Forest;
use imgfs::stack::{self, Image};
use imgfs::text::{printable, tamed};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::cat::each_piece;
use super::options::OverlayArgs;
use super::walk::{self, Row, Step};
use super::{Outcome, document};

#[derive(clap::Args)]
pub struct Args {
    /// Runs of sectors only
    #[arg(long, conflicts_with = "files")]
    sectors: bool,
    /// Files and directories only
    #[arg(long)]
    files: bool,
    /// One object, shape "imgfs-diff"
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    overlay: OverlayArgs,
}

/// A run of sectors that differ.
struct Run {
    first: u64,
    count: u64,
}

/// What happened to a path.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Added,
    Removed,
    Changed,
    RenamedTo(Vec<u8>),
}

pub fn run(args: &Args) -> Result<Outcome> {
    args.overlay.confine(None)?;
    let mut outcome = Outcome::Complete;
    let mut runs = Vec::new();
    let mut sector_size = 512;
    if !args.files {
        let overlay = args.overlay.open(true)?;
        sector_size = u64::from(overlay.sector_size());
        runs = sectors(&overlay)?;
    }
    let mut changes = BTreeMap::new();
    if !args.sectors {
        let (path, base) = (&args.overlay.overlay, args.overlay.base.as_deref());
        let after =
            stack::open_with_base(path, base, args.overlay.options(true), &args.overlay.safety.allow_references)?;
        after.overlay.as_ref().map_or(Ok(()), |overlay| overlay.check_comparable())?;
        let before = Image::open(&stack::base_of(path, base)?, &after.base_options())?;
        changes = files(&before.forest(), &after.forest(), &mut outcome)?;
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        let runs: Vec<_> = runs.iter().map(|run| json!({ "first": run.first, "count": run.count })).collect();
        let files: Vec<_> = changes.iter().map(|(path, change)| describe(path, change)).collect();
        drop(out);
        document::write("imgfs-diff", json!({ "sector_size": sector_size, "sectors": runs, "files": files }))?;
        return Ok(outcome);
    }
    for run in &runs {
        let last = run.first.saturating_add(run.count).saturating_sub(1);
        writeln!(out, "sectors {}-{last} ({} of {sector_size} bytes)", run.first, run.count)?;
    }
    for (path, change) in &changes {
        match change {
            Change::Added => writeln!(out, "added    {}", printable(path))?,
            Change::Removed => writeln!(out, "removed  {}", printable(path))?,
            Change::Changed => writeln!(out, "changed  {}", printable(path))?,
            Change::RenamedTo(new) => writeln!(out, "renamed  {} -> {}", printable(path), printable(new))?,
        }
    }
    Ok(outcome)
}

fn describe(path: &[u8], change: &Change) -> serde_json::Value {
    let word = match change {
        Change::Added => "added",
        Change::Removed => "removed",
        Change::Changed => "changed",
        Change::RenamedTo(_) => "renamed",
    };
    let mut value = json!({ "change": word });
    document::name(&mut value, "path", path);
    if let Change::RenamedTo(new) = change {
        document::name(&mut value, "to", new);
    }
    value
}

/// Sectors that really differ, neighbours joined.
fn sectors(overlay: &Overlay) -> Result<Vec<Run>> {
    let unit = u64::from(overlay.sector_size()).max(1);
    let mut runs: Vec<Run> = Vec::new();
    overlay.for_each_difference(&mut |offset, _, new| {
        let (first, count) = (offset / unit, (new.len() as u64).div_ceil(unit));
        match runs.last_mut() {
            Some(last) if last.first + last.count == first => last.count += count,
            _ => runs.push(Run { first, count }),
        }
        Ok(())
    })?;
    Ok(runs)
}

/// A node of one of the two trees.
struct Found {
    node: NodeId,
    attributes: Attributes,
}

/// Everything inside the volumes, by path; flat files and what the mount adds are no part of it.
fn nodes(forest: &Forest, outcome: &mut Outcome) -> Result<BTreeMap<Vec<u8>, Found>> {
    let mut found = BTreeMap::new();
    let (volumes, failed) = walk::rows(forest, forest.root());
    if let Some(error) = failed {
        return Err(error.into());
    }
    for top in volumes.into_iter().filter(|row| row.kind == Kind::Directory && !row.name.starts_with(b"by-")) {
        let name = top.name.clone();
        walk::walk(forest, top, &name, &mut |step| {
            let mut fail = |path: &[u8], error: &imgfs::error::Error| {
                eprintln!("imgfs: {}: {}", printable(path), tamed(&error.to_string()));
                *outcome = Outcome::Partial;
            };
            match step {
                Step::Enter(row, path) | Step::Node(row, path) => match forest.attributes(row.node) {
                    Ok(attributes) => {
                        let Row { node, .. } = *row;
                        found.insert(path.to_vec(), Found { node, attributes });
                    }
                    Err(error) => fail(path, &error),
                },
                Step::Failed(_, path, error) => fail(path, &error),
                Step::Leave => {}
            }
            Ok(())
        })?;
    }
    Ok(found)
}

fn files(before: &Forest, after: &Forest, outcome: &mut Outcome) -> Result<BTreeMap<Vec<u8>, Change>> {
    let (old, new) = (nodes(before, outcome)?, nodes(after, outcome)?);
    let mut changes = BTreeMap::new();
    for (path, found) in &old {
        match new.get(path) {
            None => {
                changes.insert(path.clone(), Change::Removed);
            }
            Some(now) => {
                if differs(before, found, after, now).with_context(|| printable(path))? {
                    changes.insert(path.clone(), Change::Changed);
                }
            }
        }
    }
    let mut added: Vec<&Vec<u8>> = new.keys().filter(|path| !old.contains_key(*path)).collect();
    rename(before, &old, after, &new, &mut added, &mut changes)?;
    changes.extend(added.into_iter().map(|path| (path.clone(), Change::Added)));
    Ok(changes)
}

/// Pairs what is gone with what came when both are files of the same contents.
fn rename(
    before: &Forest,
    old: &BTreeMap<Vec<u8>, Found>,
    after: &Forest,
    new: &BTreeMap<Vec<u8>, Found>,
    added: &mut Vec<&Vec<u8>>,
    changes: &mut BTreeMap<Vec<u8>, Change>,
) -> Result<()> {
    for (path, change) in changes.iter_mut().filter(|(_, change)| **change == Change::Removed) {
        let Some(gone) = old.get(path).filter(|gone| gone.attributes.kind == Kind::File && gone.attributes.size > 0)
        else {
            continue;
        };
        let mut partner = None;
        for (at, candidate) in added.iter().enumerate() {
            let Some(came) = new.get(*candidate) else { continue };
            let alike = came.attributes.kind == Kind::File && came.attributes.size == gone.attributes.size;
            if alike && hash(before, gone.node)? == hash(after, came.node)? {
                partner = Some(at);
                break;
            }
        }
        if let Some(at) = partner {
            *change = Change::RenamedTo(added.remove(at).clone());
        }
    }
    Ok(())
}

/// Kind, size, permissions, owner, times of writing, contents. The time of reading is no change.
fn differs(before: &Forest, old: &Found, after: &Forest, new: &Found) -> Result<bool> {
    let (a, b) = (&old.attributes, &new.attributes);
    let facts = |a: &Attributes| (a.kind, a.mode, a.read_only, a.uid, a.gid, a.device);
    if facts(a) != facts(b) {
        return Ok(true);
    }
    match a.kind {
        // A directory's rows are listed one by one.
        Kind::Directory => Ok(false),
        Kind::File => {
            Ok(a.size != b.size || a.modified != b.modified || hash(before, old.node)? != hash(after, new.node)?)
        }
        Kind::Symlink => Ok(before.read_link(old.node)? != after.read_link(new.node)?),
        _ => Ok(false),
    }
}

fn hash(forest: &Forest, file: NodeId) -> Result<[u8; 32]> {
    let mut hash = Sha256::new();
    each_piece(forest, file, &mut |piece| {
        hash.update(piece);
        Ok(())
    })?;
    Ok(hash.finalize().into())
}
