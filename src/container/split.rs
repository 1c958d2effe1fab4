//! Split raw images: one disk cut into files of equal size (the last one shorter), named
//! `disk.001`, `disk.002` or `disk.aa`, `disk.ab` and so on. Written by FTK Imager, by `split` and
//! by Clonezilla; there is no header, so this is the one format that is told by its name.
//!
//! ```text
//!   disk.001 | disk.002 | disk.003 |      any piece opens the whole; what the whole then is
//!   size     | size     | <= size  |      (raw, VHD, ...) is probed by its bytes
//! ```
//!
//! Supported: numbers from 0 or 1 with two digits or more, letters from `aa`, and both ways in
//! which they grow past their width (`999` to `1000`; GNU split's `89` to `9000`, `yz` to `zaaa`);
//! after a point, or after `.part`, `.part-` and `.part_`.
//! Not supported: pieces of unequal size, which no tool writes and a lost tail looks like.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Companions, ContainerFormat, Opened, Options, names, open_within};
use crate::device::concat::Concat;
use crate::device::{BlockDevice, Device};
use crate::error::{Error, Result};
use crate::text::printable;

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "split", snapshots: true, probe, open };

/// More pieces than any image has; each one is an open file.
const MAX_PIECES: usize = 10_000;

/// What can be done about files that only look like pieces.
const ALONE: &str = "`-o format=raw` opens this file alone";

/// Extensions of two letters that are not the pieces of anything.
const FOREIGN: [&str; 6] = ["db", "gz", "md", "py", "sh", "xz"];

fn probe(_: &dyn BlockDevice, companions: &dyn Companions) -> Result<bool> {
    let Some(name) = Name::parse(companions.own_name().to_str()) else { return Ok(false) };
    Ok(name.pieces(&companions.siblings()?).len() > 1)
}

fn open(device: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let not_a_piece = || Error::unsupported("split", "a name that does not end like a piece's (.001, .aa)");
    let name = Name::parse(companions.own_name().to_str()).ok_or_else(not_a_piece)?;
    let names = name.chain(&name.pieces(&companions.siblings()?))?;
    let mut pieces: Vec<Device> = Vec::with_capacity(names.len());
    for name in &names {
        pieces.push(companions.open(Path::new(name))?);
    }
    check_sizes(&names, &pieces)?;
    let whole: Device = Arc::new(Concat::new(pieces, device.sector_size())?);
    let size = whole.size();
    let mut opened = open_within(&[FORMAT.name], whole, companions, options)?;
    if opened.format == "raw" {
        opened.format = FORMAT.name;
    }
    let (first, last) = (names.first().map_or("", |n| n), names.last().map_or("", |n| n));
    let shown =
        format!("{} ({} to {}), {size} bytes", names.len(), printable(first.as_bytes()), printable(last.as_bytes()));
    opened.facts.insert(0, ("pieces", shown));
    Ok(opened)
}

/// What to know of a raw disk whose name is that of a piece, when there are no others beside it.
pub(super) fn alone(own: &OsStr) -> Option<String> {
    let name = Name::parse(own.to_str())?;
    let digits = name.counts_in_digits() && name.suffix.starts_with('0');
    (digits || matches!(name.suffix.as_str(), "aa" | "ab" | "aaa" | "aab")).then(|| {
        let suffix = printable(name.suffix.as_bytes());
        format!("its name ends like that of a piece (.{suffix}), and the others are not beside it: it may be a part of a disk")
    })
}

/// What to know of a raw disk that is a link to one piece of several.
pub(super) fn link_to_piece(path: &Path) -> Option<String> {
    if !path.is_symlink() {
        return None;
    }
    let target = path.canonicalize().ok()?;
    let name = target.file_name()?.to_str()?;
    let pieces = Name::parse(Some(name))?.pieces(&names(target.parent()?).ok()?);
    (pieces.len() > 1).then(|| {
        let (name, count) = (printable(name.as_bytes()), pieces.len());
        format!("it is a link to {name}, one of {count} pieces of a disk: opened by its own name it shows all of it")
    })
}

/// All pieces are as long as the first; only the last one may be shorter.
fn check_sizes(names: &[String], pieces: &[Device]) -> Result<()> {
    let Some(first) = pieces.first().map(|piece| piece.size()) else { return Err(Error::Invalid) };
    for (i, (name, piece)) in names.iter().zip(pieces).enumerate() {
        let last = i.saturating_add(1) == pieces.len();
        if piece.size() != first && !(last && piece.size() < first) {
            let what = format!(
                "the piece {} ({} bytes, where the first piece has {first}; {ALONE})",
                printable(name.as_bytes()),
                piece.size()
            );
            return Err(Error::corrupt("split", what, 0));
        }
    }
    Ok(())
}

/// What may stand between the point and the part that counts.
const MARKS: [&str; 3] = ["part-", "part_", "part"];

/// A piece's name, cut before the part that counts.
struct Name {
    /// With the point, and the mark behind it.
    stem: String,
    suffix: String,
}

impl Name {
    fn parse(name: Option<&str>) -> Option<Self> {
        let name = name?;
        let ending = name.rsplit_once('.').filter(|(stem, _)| !stem.is_empty())?.1;
        let suffix = MARKS.iter().find_map(|mark| ending.strip_prefix(mark)).unwrap_or(ending);
        let stem = name.strip_suffix(suffix)?;
        let digits = suffix.bytes().all(|b| b.is_ascii_digit());
        let letters = suffix.bytes().all(|b| b.is_ascii_lowercase()) && !FOREIGN.contains(&suffix);
        // Letters count in pairs from `aa`, so that `.img` and `.vmdk` are not pieces.
        let letters = letters && (suffix.len() == 2 || suffix.starts_with(['a', 'z'])) && suffix.len() <= 8;
        let counts = suffix.len() >= 2 && (digits || letters);
        counts.then(|| Self { stem: stem.to_owned(), suffix: suffix.to_owned() })
    }

    /// The suffixes beside the image that belong to the same set, the shortest first; empty when
    /// this is no set.
    fn pieces(&self, siblings: &[PathBuf]) -> Vec<String> {
        let names = siblings.iter().filter_map(|sibling| Self::parse(sibling.to_str()));
        let same = names.filter(|name| name.stem == self.stem && name.counts_in_digits() == self.counts_in_digits());
        let mut found: Vec<String> = same.map(|name| name.suffix).collect();
        found.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
        // A set is as wide as its first piece; longer suffixes are reached by counting, or foreign.
        let set = |width: usize| -> Vec<String> {
            found.iter().filter(|suffix| suffix.len() == width || grows_to(suffix, width)).cloned().collect()
        };
        let begins =
            |suffix: &String| suffix.bytes().all(|b| b == b'a') || matches!(suffix.trim_start_matches('0'), "" | "1");
        for width in (2..=self.suffix.len()).rev() {
            let set = set(width);
            if set.contains(&self.suffix) && set.first().is_some_and(begins) {
                return set;
            }
        }
        // Three or more that begin in the middle of a count: the first one is lost. Years and dates
        // (`backup.2024`), versions (`sys.10`) and endings that mean something begin in other ways.
        let rest = set(self.suffix.len());
        let counts = |pair: &[String]| match pair {
            [one, next] => count(one).as_ref() == Some(next) || widen(one).as_ref() == Some(next),
            _ => false,
        };
        let counted = rest.first().is_some_and(|first| first.starts_with(['0', 'a'])) && rest.windows(2).all(counts);
        if counted && rest.len() > 2 { rest } else { Vec::new() }
    }

    fn counts_in_digits(&self) -> bool {
        self.suffix.starts_with(|c: char| c.is_ascii_digit())
    }

    /// File names of all pieces in order; a gap is an error that names the missing piece.
    fn chain(&self, present: &[String]) -> Result<Vec<String>> {
        let missing = |suffix: &str| {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            let name = format!("{}{suffix}", self.stem);
            let name = printable(name.as_bytes());
            Error::io(format!("the piece {name} of the split image is missing ({ALONE})"), source)
        };
        let Some(first) = present.first() else { return Err(missing(&self.suffix)) };
        let width = first.len();
        let mut suffix = match first.bytes().next() {
            Some(b'0'..=b'9') if first.bytes().all(|b| b == b'0') => first.clone(),
            Some(b'0'..=b'9') => format!("{:0width$}", 1),
            _ => "a".repeat(width),
        };
        let known: HashSet<&str> = present.iter().map(String::as_str).collect();
        let mut names = Vec::new();
        let mut left = present.len();
        while left > 0 {
            if !known.contains(suffix.as_str()) || names.len() >= MAX_PIECES {
                return Err(missing(&suffix));
            }
            names.push(format!("{}{suffix}", self.stem));
            left = left.saturating_sub(1);
            let next: Vec<String> = [count(&suffix), widen(&suffix)].into_iter().flatten().collect();
            let found = next.iter().find(|next| known.contains(next.as_str())).or(next.first());
            let Some(found) = found else { break };
            suffix = found.clone();
        }
        if left > 0 { Err(missing(&suffix)) } else { Ok(names) }
    }
}

/// Whether a suffix is what a set of this width grows to: `1000` from three digits, `9000` from
/// two, `zaaa` from two.
fn grows_to(suffix: &str, width: usize) -> bool {
    let more = suffix.len().saturating_sub(width);
    let marks = more.checked_div(2).unwrap_or(0).max(1);
    let lead = suffix.bytes().next();
    match lead {
        Some(b'z') => more > 0 && more.is_multiple_of(2) && suffix.bytes().take(marks).all(|b| b == b'z'),
        Some(b'9') => more > 0 && more.is_multiple_of(2) && suffix.bytes().take(marks).all(|b| b == b'9'),
        Some(b'1') => more == 1 && width >= 3,
        _ => false,
    }
}

/// The next suffix of the same width; `None` after the last one. `999` goes on as `1000`.
fn count(suffix: &str) -> Option<String> {
    let mut bytes = suffix.as_bytes().to_vec();
    for byte in bytes.iter_mut().rev() {
        match *byte {
            b'9' => *byte = b'0',
            b'z' => *byte = b'a',
            _ => {
                *byte = byte.saturating_add(1);
                return String::from_utf8(bytes).ok();
            }
        }
    }
    suffix.starts_with('9').then(|| format!("1{}", "0".repeat(suffix.len())))
}

/// What GNU split goes on with when the first letter is used up: `89` to `9000`, `yz` to `zaaa`.
fn widen(suffix: &str) -> Option<String> {
    let marks = suffix.len().checked_sub(2)?.checked_div(2)?;
    let (head, rest) = suffix.split_at_checked(marks)?;
    let (last, full, zero) =
        if suffix.starts_with(|c: char| c.is_ascii_digit()) { ('8', '9', "0") } else { ('y', 'z', "a") };
    let used_up = rest.starts_with(last) && rest.chars().skip(1).all(|c| c == full) && head.chars().all(|c| c == full);
    used_up.then(|| format!("{head}{full}{}", zero.repeat(rest.len().saturating_add(1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(own: &str, siblings: &[&str]) -> Result<Vec<String>> {
        let name = Name::parse(Some(own)).unwrap();
        let siblings: Vec<PathBuf> = siblings.iter().map(PathBuf::from).collect();
        name.chain(&name.pieces(&siblings))
    }

    #[test]
    fn any_piece_finds_all_and_files_of_other_names_do_not_matter() {
        let siblings = ["d.003", "d.001", "e.002", "d.002", "d.img", "d.2024", "d.txt"];
        assert_eq!(chain("d.002", &siblings).unwrap(), ["d.001", "d.002", "d.003"]);
        assert_eq!(chain("d.aa", &["d.ab", "d.aa", "d.img", "d.qcow"]).unwrap(), ["d.aa", "d.ab"]);
        assert_eq!(chain("d.00", &["d.00", "d.01"]).unwrap(), ["d.00", "d.01"]);
        let marked = ["d.img.part00", "d.img.part01", "d.img.part-00", "d.img.00"];
        assert_eq!(chain("d.img.part01", &marked).unwrap(), ["d.img.part00", "d.img.part01"]);
        assert_eq!(chain("d.part-ab", &["d.part-ab", "d.part-aa"]).unwrap(), ["d.part-aa", "d.part-ab"]);
        // What a browser has not finished, and the images of partitions.
        assert!(Name::parse(Some("d.iso.part")).is_none() && Name::parse(Some("sda.part1")).is_none());
    }

    #[test]
    fn a_missing_piece_is_an_error_that_names_it() {
        for (siblings, missing) in [
            (&["d.001", "d.003"][..], "d.002"),
            (&["d.002", "d.003", "d.004"], "d.001"),
            (&["d.000", "d.002"], "d.001"),
        ] {
            let error = chain(siblings[1], siblings).unwrap_err().to_string();
            assert!(error.contains(missing), "{error}");
        }
    }

    #[test]
    fn years_versions_and_endings_are_no_pieces() {
        for siblings in [
            ["backup.2024", "backup.2025", "backup.2026"],
            ["disk.20240101", "disk.20240102", "disk.20240103"],
            ["sys.10", "sys.11", "sys.12"],
            ["backup.0101", "backup.0201", "backup.0301"],
            ["game.st", "game.hd", "game.fd"],
            ["art.ai", "art.as", "art.au"],
        ] {
            let names: Vec<PathBuf> = siblings.iter().map(PathBuf::from).collect();
            for own in siblings {
                let pieces = Name::parse(Some(own)).map(|name| name.pieces(&names)).unwrap_or_default();
                assert!(pieces.is_empty(), "{own}: {pieces:?}");
            }
        }
    }

    #[test]
    fn suffixes_grow_past_their_width_in_both_ways() {
        assert_eq!(count("999").unwrap(), "1000");
        assert_eq!(widen("89").unwrap(), "9000");
        assert_eq!(widen("yz").unwrap(), "zaaa");
        assert_eq!(widen("zyzz").unwrap(), "zzaaaa");
        assert_eq!(widen("9899").unwrap(), "990000");
        assert_eq!(widen("az"), None);
        assert!(grows_to("1000", 3) && grows_to("9000", 2) && grows_to("990000", 2) && !grows_to("2024", 3));
    }
}
