//! `imgfs tree`: everything below a directory, drawn.

use std::ffi::OsString;
use std::io::Write;

use anyhow::Result;
use imgfs::filesystem::{FileSystem, Kind, NodeId};
use imgfs::forest::Forest;
use serde_json::{Value, json};

use super::ls::{entry, shown};
use super::sandbox::Sandbox;
use super::target::{ImageArgs, Target};
use super::{Outcome, document, treeless, walk};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// At most this many levels
    #[arg(short = 'L', value_name = "LEVELS", default_value_t = 256)]
    levels: usize,
    /// One object, shape "imgfs-tree"
    #[arg(long)]
    json: bool,
    /// IMAGE, or IMAGE:/path as in the mount
    #[arg(value_name = "IMAGE[:/PATH]")]
    target: OsString,
}

pub fn run(args: &Args) -> Result<Outcome> {
    Sandbox::enter_for(&args.image, [&args.target])?;
    let target = Target::parse(&args.target)?;
    let image = target.open(&args.image)?;
    let forest = image.forest();
    let node = target.find(&image, &forest)?;
    let mut outcome = Outcome::Complete;
    treeless::say(&treeless::below(&target, &image), &mut outcome);
    if args.json {
        let mut value = json!({ "entries": entries(&forest, &mut vec![node], args.levels, &mut outcome) });
        document::name(&mut value, "target", args.target.as_encoded_bytes());
        document::write("imgfs-tree", value)?;
        return Ok(outcome);
    }
    let mut out = std::io::stdout().lock();
    out.write_all(&shown(args.target.as_encoded_bytes()))?;
    writeln!(out)?;
    let mut drawing = Drawing { forest: &forest, levels: args.levels, directories: 0, files: 0, outcome };
    drawing.below(&mut vec![node], "", &mut out)?;
    writeln!(out, "\n{} directories, {} files", drawing.directories, drawing.files)?;
    Ok(drawing.outcome)
}

/// The rows of the last of `above`, directories with their own `entries`.
fn entries(forest: &Forest, above: &mut Vec<NodeId>, levels: usize, outcome: &mut Outcome) -> Vec<Value> {
    let Some(dir) = above.last().copied() else { return Vec::new() };
    let (rows, failed) = walk::rows(forest, dir);
    let mut found = Vec::new();
    for row in &rows {
        let mut value = entry(forest, row, &row.name);
        let within = above.contains(&row.node);
        if row.kind == Kind::Directory && !within && above.len() < levels {
            above.push(row.node);
            document::merge(&mut value, json!({ "entries": entries(forest, above, levels, outcome) }));
            above.pop();
        } else if within {
            document::merge(&mut value, json!({ "error": "a directory that contains itself" }));
            *outcome = Outcome::Partial;
        }
        found.push(value);
    }
    if let Some(error) = failed {
        found.push(json!({ "error": error.to_string() }));
        *outcome = Outcome::Partial;
    }
    found
}

struct Drawing<'a> {
    forest: &'a Forest,
    levels: usize,
    directories: u64,
    files: u64,
    outcome: Outcome,
}

impl Drawing<'_> {
    /// `above` are the directories from the top to the one that is drawn: as deep as `levels` allows.
    fn below(&mut self, above: &mut Vec<NodeId>, indent: &str, out: &mut dyn Write) -> Result<()> {
        let Some(dir) = above.last().copied() else { return Ok(()) };
        let (rows, failed) = walk::rows(self.forest, dir);
        let last = rows.len();
        for (row, at) in rows.iter().zip(1..) {
            let is_last = at == last && failed.is_none();
            write!(out, "{indent}{}", if is_last { "└── " } else { "├── " })?;
            out.write_all(&shown(&row.name))?;
            if row.kind == Kind::Symlink {
                let target = self.forest.read_link(row.node);
                out.write_all(b" -> ")?;
                out.write_all(&target.map_or_else(|error| format!("[{error}]").into_bytes(), |target| shown(&target)))?;
            }
            writeln!(out)?;
            if row.kind != Kind::Directory {
                self.files += 1;
                continue;
            }
            self.directories += 1;
            let deeper = format!("{indent}{}", if is_last { "    " } else { "│   " });
            if above.contains(&row.node) {
                writeln!(out, "{deeper}[a directory that contains itself]")?;
                self.outcome = Outcome::Partial;
            } else if above.len() < self.levels {
                above.push(row.node);
                self.below(above, &deeper, out)?;
                above.pop();
            }
        }
        if let Some(error) = failed {
            writeln!(out, "{indent}└── [{}]", imgfs::text::tamed(&error.to_string()))?;
            self.outcome = Outcome::Partial;
        }
        Ok(())
    }
}
