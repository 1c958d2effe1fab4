//! `imgfs verify`: an image against everything that is there to compare it with.
//!
//! Lists of digests beside the image, the checksums of its container, of its partition table and of
//! its file systems. Exit status: 0 all verified; 1 something does not agree; 2 there was nothing to
//! verify against, or something could not be read (and what could be read agrees).

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use imgfs::check::{Check, Proof};
use imgfs::container::Files;
use imgfs::device::file::HostFile;
use imgfs::device::{BlockDevice, Device};
use imgfs::digest::{Algorithm, hex};
use imgfs::error::Error;
use imgfs::stack::{Image, Tree};
use imgfs::text::printable;
use indicatif::ProgressBar;
use serde_json::json;

use super::hashing::{self, Wanted};
use super::sums::{self, Stored};
use super::target::{ImageArgs, Target};
use super::{Outcome, document, key, progress, sentence};

#[derive(clap::Args)]
#[command(after_help = "Exit status: 0 all verified, 1 a mismatch, 2 nothing to verify against or not readable.")]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// One object, shape "imgfs-verify"
    #[arg(long)]
    json: bool,
    /// The image
    #[arg(value_name = "IMAGE")]
    target: OsString,
}

/// How a check came out.
enum Verdict {
    Verified,
    Mismatch(Vec<String>),
    Unread(String),
}

impl Verdict {
    /// Damage is a mismatch: a checksum was wrong, or what it is about cannot be decoded.
    fn from_error(error: &Error) -> Self {
        match error {
            Error::Corrupt { .. } | Error::PastEnd { .. } => Self::Mismatch(vec![error.to_string()]),
            error => Self::Unread(error.to_string()),
        }
    }

    fn from_faults(faults: Vec<String>) -> Self {
        if faults.is_empty() { Self::Verified } else { Self::Mismatch(faults) }
    }

    fn compared(found: &[u8], expected: &[u8]) -> Self {
        let equal = found == expected;
        Self::from_faults(if equal { Vec::new() } else { vec![format!("it is {}, not {}", hex(found), hex(expected))] })
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Mismatch(_) => "mismatch",
            Self::Unread(_) => "unreadable",
        }
    }
}

/// A check that was made.
struct Line {
    what: String,
    place: String,
    verdict: Verdict,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let bar = progress::bar(0);
    let lines = match lines(args, &bar) {
        Ok(lines) => lines,
        Err(error) => {
            bar.finish_and_clear();
            eprintln!("imgfs: {}", sentence(&error));
            return Ok(Outcome::Unverified);
        }
    };
    bar.finish_and_clear();
    let count = |word: &str| lines.iter().filter(|line| line.verdict.word() == word).count();
    let (verified, mismatches, unread) = (count("verified"), count("mismatch"), count("unreadable"));
    let result = match (mismatches, unread, verified) {
        (1.., ..) => "mismatch",
        (_, 1.., _) => "unreadable",
        (_, _, 0) => "nothing",
        _ => "verified",
    };
    if args.json {
        let checks: Vec<_> = lines.iter().map(describe).collect();
        let mut members = json!({ "result": result, "checks": checks });
        document::name(&mut members, "image", args.target.as_encoded_bytes());
        document::write("imgfs-verify", members)?;
    } else {
        print(&lines, (verified, mismatches, unread))?;
    }
    if result == "nothing" {
        let lists = Target::parse(&args.target).and_then(|target| sums::lists_beside(&target.image));
        let said = match lists.unwrap_or_default().as_slice() {
            [] => "no list of digests beside it".to_owned(),
            [list] => format!("{} does not name it", printable(list.as_bytes())),
            [first, rest @ ..] => {
                format!("{} and {} more lists do not name it", printable(first.as_bytes()), rest.len())
            }
        };
        eprintln!(
            "imgfs: {}: nothing to verify against: {said}, and no checksums in it",
            printable(args.target.as_encoded_bytes())
        );
    }
    Ok(match result {
        "verified" => Outcome::Complete,
        "mismatch" => Outcome::Partial,
        _ => Outcome::Unverified,
    })
}

fn print(lines: &[Line], (verified, mismatches, unread): (usize, usize, usize)) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for line in lines {
        let (what, place) = (printable(line.what.as_bytes()), printable(line.place.as_bytes()));
        match &line.verdict {
            Verdict::Verified => writeln!(out, "ok        {place}: {what}")?,
            Verdict::Unread(error) => writeln!(out, "not read  {place}: {what}: {}", printable(error.as_bytes()))?,
            Verdict::Mismatch(faults) => {
                let first = faults.first().map_or("", String::as_str);
                let more = match faults.len() {
                    0 | 1 => String::new(),
                    count => format!(" (and {} more)", count - 1),
                };
                writeln!(out, "FAILED    {place}: {what}: {}{more}", printable(first.as_bytes()))?;
            }
        }
    }
    if !lines.is_empty() {
        writeln!(out, "{} checks: {verified} ok, {mismatches} failed, {unread} not read", lines.len())?;
    }
    Ok(out.flush()?)
}

fn describe(line: &Line) -> serde_json::Value {
    let mut value = json!({ "what": line.what, "where": line.place, "result": line.verdict.word() });
    match &line.verdict {
        Verdict::Verified => {}
        Verdict::Mismatch(faults) => document::merge(&mut value, json!({ "faults": faults })),
        Verdict::Unread(error) => document::merge(&mut value, json!({ "error": error })),
    }
    value
}

/// Makes all checks: of the host file first, which need not be an image at all.
fn lines(args: &Args, bar: &ProgressBar) -> Result<Vec<Line>> {
    let target = Target::parse(&args.target)?;
    anyhow::ensure!(target.path.is_empty(), "verify is about a whole image: leave out the path");
    let mut sandbox = args.image.sandbox()?;
    sandbox.image(&target.image);
    if let Some(bag) = sums::bag_of(&target.image) {
        sandbox.read(&bag);
    }
    sandbox.enter()?;
    let mut lines = if target.image.is_dir() { Vec::new() } else { against_lists(&target.image, None, bar)? };
    let options = args.image.parse_to_read(&target.image, key::attended())?;
    let files = options.stack.container.files.clone();
    let image = match target.open_with(options) {
        Ok(image) => image,
        Err(error) => {
            let verdict = match error.downcast_ref::<Error>() {
                Some(known) => Verdict::from_error(known),
                None => return Err(error),
            };
            if matches!(verdict, Verdict::Unread(_)) && lines.is_empty() {
                return Err(error);
            }
            lines.push(Line { what: "container".to_owned(), place: target.image.display().to_string(), verdict });
            lines.extend(pieces(&target.image, &files, bar)?);
            return Ok(lines);
        }
    };
    let format = image.container.format;
    lines.extend(make(&image.container.checks, format, bar));
    table(&image, &mut lines);
    for part in &image.parts {
        match &part.tree {
            Tree::Open { tree, .. } => lines.extend(make(&tree.checks(), &part.name, bar)),
            Tree::Broken(error) => {
                let (what, place) = ("file system".to_owned(), part.name.clone());
                lines.push(Line { what, place, verdict: Verdict::from_error(error) });
            }
            Tree::Encrypted(_) | Tree::Unknown | Tree::Structural => {}
        }
    }
    // Now all of it was read that is ever opened.
    lines.extend(pieces(&target.image, &files, bar)?);
    Ok(lines)
}

/// What lists say of the other files that the image is made of: segments, extents, parents.
fn pieces(image: &Path, files: &Files, bar: &ProgressBar) -> Result<Vec<Line>> {
    let absolute = |path: &Path| std::path::absolute(path);
    let mut known = vec![absolute(image)?];
    let mut lines = Vec::new();
    for file in files.all() {
        let place = absolute(&file)?;
        if !known.contains(&place) {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            lines.extend(against_lists(&file, Some(&name), bar)?);
            known.push(place);
        }
    }
    Ok(lines)
}

/// Digests that someone wrote down beside a file: the image itself, or another of its pieces, by name.
fn against_lists(file: &Path, piece: Option<&str>, bar: &ProgressBar) -> Result<Vec<Line>> {
    let host = HostFile::open(file)?;
    let stored = sums::beside(file)?;
    let mut algorithms: Vec<Algorithm> = stored.iter().filter_map(|one| Some(one.digest.as_ref().ok()?.0)).collect();
    algorithms.sort_unstable();
    algorithms.dedup();
    if stored.is_empty() {
        return Ok(Vec::new());
    }
    progress::add(bar, host.size());
    let wanted = [Wanted { range: 0..host.size(), algorithms: algorithms.clone() }];
    let found = hashing::ranges(&host, &wanted, &mut |len| bar.inc(len)).pop().unwrap_or(Ok(Vec::new()));
    let verdict = |one: &Stored| match (&one.digest, &found) {
        (Err(why), _) => Verdict::Unread(why.clone()),
        (Ok(_), Err(error)) => Verdict::from_error(error),
        (Ok((algorithm, expected)), Ok(found)) => {
            let place = algorithms.iter().position(|known| known == algorithm);
            match place.and_then(|place| found.get(place)) {
                Some(found) => Verdict::compared(found, expected),
                None => Verdict::Unread("it was not calculated".to_owned()),
            }
        }
    };
    let line = |one: &Stored| {
        let what = format!("{} of {}", one.what, piece.unwrap_or("the file"));
        Line { what, place: one.list.clone(), verdict: verdict(one) }
    };
    Ok(stored.iter().map(line).collect())
}

fn table(image: &Image, lines: &mut Vec<Line>) {
    match &image.scan {
        Ok(None) => {}
        Ok(Some(scan)) => lines.extend(scan.table.checks.iter().map(|known| Line {
            what: known.what.clone(),
            place: format!("{}, {}", scan.system, known.place),
            verdict: Verdict::from_faults(known.fault.iter().cloned().collect()),
        })),
        Err(error) => {
            let (what, place) = ("partition table".to_owned(), "disk".to_owned());
            lines.push(Line { what, place, verdict: Verdict::from_error(error) });
        }
    }
}

/// Makes some checks. What is about the same device is read once.
fn make(checks: &[Check], whose: &str, bar: &ProgressBar) -> Vec<Line> {
    let mut lines: Vec<Option<Verdict>> = checks.iter().map(|_| None).collect();
    let device = |check: &Check| match &check.proof {
        Proof::Digest { device, .. } | Proof::Reads(device) => Some(device.clone()),
        _ => None,
    };
    let mut devices: Vec<Device> = Vec::new();
    for found in checks.iter().filter_map(device) {
        if !devices.iter().any(|known| Arc::ptr_eq(known, &found)) {
            progress::add(bar, found.size());
            devices.push(found);
        }
    }
    for read in devices {
        let about = |check: &Check| device(check).is_some_and(|device| Arc::ptr_eq(&device, &read));
        let algorithms: Vec<Algorithm> = checks
            .iter()
            .filter(|check| about(check))
            .filter_map(|check| match &check.proof {
                Proof::Digest { algorithm, .. } => Some(*algorithm),
                _ => None,
            })
            .collect();
        let wanted = [Wanted { range: 0..read.size(), algorithms }];
        bar.set_message(whose.to_owned());
        let found = hashing::ranges(read.as_ref(), &wanted, &mut |len| bar.inc(len)).pop().unwrap_or(Ok(Vec::new()));
        let mut digests = found.as_ref().map(|digests| digests.iter());
        for (check, slot) in checks.iter().zip(&mut lines).filter(|(check, _)| about(check)) {
            *slot = Some(match (&check.proof, &mut digests) {
                (_, Err(error)) => Verdict::from_error(error),
                (Proof::Digest { expected, .. }, Ok(digests)) => match digests.next() {
                    Some(found) => Verdict::compared(found, expected),
                    None => Verdict::Unread("it was not calculated".to_owned()),
                },
                (_, Ok(_)) => Verdict::Verified,
            });
        }
    }
    let other = |check: &Check| match &check.proof {
        Proof::Known(fault) => Verdict::from_faults(fault.iter().cloned().collect()),
        Proof::Walk(walk) => {
            // How long a walk takes nobody knows.
            bar.set_message(check.what.clone());
            bar.tick();
            walk().map_or_else(|error| Verdict::from_error(&error), Verdict::from_faults)
        }
        Proof::Digest { .. } | Proof::Reads(_) => Verdict::Unread("it was not calculated".to_owned()),
    };
    let line = |(check, verdict): (&Check, Option<Verdict>)| Line {
        what: check.what.clone(),
        place: format!("{whose}, {}", check.place),
        verdict: verdict.unwrap_or_else(|| other(check)),
    };
    checks.iter().zip(lines).map(line).collect()
}
