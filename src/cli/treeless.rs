//! Parts of an image that have no tree although there is something in them. Every command that goes
//! through all trees says so, as their files would be missing without a word.

use imgfs::stack::{Image, Tree};
use imgfs::text::tamed;

use super::Outcome;
use super::target::{Target, trimmed};

/// More lines than anyone reads: a table can have thousands of such rows.
const MAX_LINES: usize = 64;

/// One of them; or the partition table, whose rows are missing.
pub struct Treeless {
    /// Its name in the mount.
    pub name: String,
    /// Why.
    pub reason: String,
    sentence: String,
    /// It is only closed: whoever has no key misses nothing else.
    is_closed: bool,
}

/// All of an image.
pub fn of(image: &Image) -> Vec<Treeless> {
    let mut found = Vec::new();
    if let Err(error) = &image.scan {
        let sentence = format!("the partition table cannot be read: {error}");
        let name = "partition table".to_owned();
        found.push(Treeless { name, reason: error.to_string(), sentence, is_closed: false });
    }
    for row in image.scan.iter().flatten().flat_map(|scan| &scan.missing) {
        let reason = format!("its {} bytes from byte {} on lie past the end of the disk", row.len, row.start);
        let name = format!("p{}", row.slot);
        let sentence = format!("{name} is missing: {reason}");
        found.push(Treeless { name, reason, sentence, is_closed: false });
    }
    for part in &image.parts {
        let name = part.name.clone();
        match &part.tree {
            Tree::Broken(error) => {
                let sentence = format!("{name} has no tree: {error}; {name}.img has its bytes");
                found.push(Treeless { name, reason: error.to_string(), sentence, is_closed: false });
            }
            Tree::Encrypted(encrypted) if image.plain_of(part).is_none() => {
                let reason = format!("encrypted ({})", encrypted.variant);
                let sentence = format!("{name} is {reason}: only {name}.img is there; --key-file opens it");
                found.push(Treeless { name, reason, sentence, is_closed: true });
            }
            Tree::Open { .. } | Tree::Encrypted(_) | Tree::Unknown | Tree::Structural => {}
        }
    }
    found
}

/// Those below the path of a target: all, or none but what finding the path has said.
pub fn below(target: &Target, image: &Image) -> Vec<Treeless> {
    let is_root = trimmed(&target.path).split(|&byte| byte == b'/').all(|name| matches!(name, b"" | b"."));
    if is_root { of(image) } else { Vec::new() }
}

/// A line for each, as long as there are not too many.
pub fn sentences(found: &[Treeless]) -> Vec<String> {
    let mut lines: Vec<String> = found.iter().take(MAX_LINES).map(|one| tamed(&one.sentence)).collect();
    if let Some(more) = found.len().checked_sub(MAX_LINES).filter(|more| *more > 0) {
        lines.push(format!("{more} more parts have no tree"));
    }
    lines
}

/// Says all of them on standard error. What could not be read makes the outcome a partial one.
pub fn say(found: &[Treeless], outcome: &mut Outcome) {
    for line in sentences(found) {
        eprintln!("imgfs: {line}");
    }
    if found.iter().any(|one| !one.is_closed) {
        *outcome = Outcome::Partial;
    }
}
