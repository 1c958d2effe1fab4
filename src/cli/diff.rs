//! `imgfs diff`: what an overlay changes, in sectors and in files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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
    let mut added: BTreeSet<Vec<u8>> = new.keys().filter(|path| !old.contains_key(*path)).cloned().collect();
    rename(before, &old, after, &new, &mut added, &mut changes)?;
    changes.extend(added.into_iter().map(|path| (path, Change::Added)));
    Ok(changes)
}

/// Pairs what is gone with what came when both are files of the same contents, files of the same name
/// first; then directories whose files all went to the same other one.
fn rename(
    before: &Forest,
    old: &BTreeMap<Vec<u8>, Found>,
    after: &Forest,
    new: &BTreeMap<Vec<u8>, Found>,
    added: &mut BTreeSet<Vec<u8>>,
    changes: &mut BTreeMap<Vec<u8>, Change>,
) -> Result<()> {
    let mut by_size: HashMap<u64, Vec<&Vec<u8>>> = HashMap::new();
    for path in added.iter() {
        if let Some((path, came)) = new.get_key_value(path).filter(|(_, came)| came.attributes.kind == Kind::File) {
            by_size.entry(came.attributes.size).or_default().push(path);
        }
    }
    let mut hashes: HashMap<&Vec<u8>, [u8; 32]> = HashMap::new();
    for (path, change) in changes.iter_mut().filter(|(_, change)| **change == Change::Removed) {
        let Some(gone) = old.get(path).filter(|gone| gone.attributes.kind == Kind::File && gone.attributes.size > 0)
        else {
            continue;
        };
        let Some(candidates) = by_size.get_mut(&gone.attributes.size).filter(|paths| !paths.is_empty()) else {
            continue;
        };
        // Only those that come before the partner are asked for their contents.
        candidates.sort_by_key(|path_of| !last_name(path_of).eq_ignore_ascii_case(last_name(path)));
        let wanted = hash(before, gone.node)?;
        let mut partner = None;
        for (at, candidate) in candidates.iter().enumerate() {
            let Some(came) = new.get(*candidate) else { continue };
            let found = match hashes.get(candidate) {
                Some(found) => *found,
                None => hash(after, came.node)?,
            };
            hashes.insert(candidate, found);
            if found == wanted {
                partner = Some(at);
                break;
            }
        }
        if let Some(at) = partner {
            let to = candidates.remove(at).clone();
            added.remove(&to);
            *change = Change::RenamedTo(to);
        }
    }
    rename_directories(old, new, added, changes);
    Ok(())
}

/// A directory that is gone was renamed when everything in it has the same path below one that came.
fn rename_directories(
    old: &BTreeMap<Vec<u8>, Found>,
    new: &BTreeMap<Vec<u8>, Found>,
    added: &mut BTreeSet<Vec<u8>>,
    changes: &mut BTreeMap<Vec<u8>, Change>,
) {
    let gone: Vec<Vec<u8>> = changes
        .iter()
        .filter(|(_, change)| **change == Change::Removed)
        .filter(|(path, _)| old.get(*path).is_some_and(|found| found.attributes.kind == Kind::Directory))
        .map(|(path, _)| path.clone())
        .collect();
    // Those above come before those below, which then are rows no more.
    for from in gone {
        if !changes.contains_key(&from) {
            continue;
        }
        let below = [from.as_slice(), b"/"].concat();
        let inside: Vec<&[u8]> =
            old.range(below.clone()..).map_while(|(path, _)| path.strip_prefix(below.as_slice())).collect();
        let target = inside.iter().find_map(|rest| match changes.get(&[&below, *rest].concat())? {
            Change::RenamedTo(to) => to.strip_suffix(*rest)?.strip_suffix(b"/").map(<[u8]>::to_vec),
            _ => None,
        });
        let Some(to) = target.filter(|to| added.contains(to)) else { continue };
        let there = |rest: &[u8]| [to.as_slice(), b"/", rest].concat();
        let moved = |rest: &&[u8]| match changes.get(&[&below, *rest].concat()) {
            Some(Change::RenamedTo(path)) => *path == there(rest),
            // Directories, and files without contents, have nothing to be known by but the name.
            Some(Change::Removed) => {
                let (was, is) = (old.get(&[&below, *rest].concat()), new.get(&there(rest)));
                let facts = |found: &Found| {
                    (found.attributes.kind, found.attributes.size * u64::from(found.attributes.kind == Kind::File))
                };
                added.contains(&there(rest)) && was.map(facts) == is.map(facts)
            }
            _ => false,
        };
        if inside.iter().all(moved) {
            for rest in &inside {
                changes.remove(&[&below, *rest].concat());
                added.remove(&there(rest));
            }
            added.remove(&to);
            changes.insert(from, Change::RenamedTo(to));
        }
    }
}

fn last_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// Kind, size, permissions, owner, extended attributes (of FAT: hidden and system), times of writing, contents. The
/// time of reading is no change.
fn differs(before: &Forest, old: &Found, after: &Forest, new: &Found) -> Result<bool> {
    let (a, b) = (&old.attributes, &new.attributes);
    let facts = |a: &Attributes| (a.kind, a.mode, a.read_only, a.uid, a.gid, a.device);
    if facts(a) != facts(b) || extended(before, old.node)? != extended(after, new.node)? {
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

fn extended(forest: &Forest, node: NodeId) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let names = forest.xattrs(node)?;
    names.into_iter().map(|name| Ok((name.clone(), forest.xattr(node, &name)?))).collect()
}

fn hash(forest: &Forest, file: NodeId) -> Result<[u8; 32]> {
    let mut hash = Sha256::new();
    each_piece(forest, file, &mut |piece| {
        hash.update(piece);
        Ok(())
    })?;
    Ok(hash.finalize().into())
}
