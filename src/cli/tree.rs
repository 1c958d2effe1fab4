//! `imgfs tree`: everything below a directory, drawn.

use std::ffi::OsString;
use std::io::Write;

use anyhow::Result;
use imgfs::error::Error;
use imgfs::filesystem::{FileSystem, Kind};
use imgfs::forest::Forest;
use serde_json::{Value, json};

use super::ls::{entry, shown};
use super::sandbox::Sandbox;
use super::target::{ImageArgs, Target};
use super::walk::{self, Row, Step};
use super::{Outcome, document, treeless};

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
    let top = Row { node, name: Vec::new(), kind: Kind::Directory };
    if args.json {
        let mut object = Object { forest: &forest, levels: args.levels, open: Vec::new(), outcome };
        walk::walk_to(&forest, top, b"", args.levels, &mut |step, _| {
            object.meet(step);
            Ok(())
        })?;
        let mut value = object.open.pop().map_or_else(|| json!({ "entries": [] }), |top| top.value);
        document::name(&mut value, "target", args.target.as_encoded_bytes());
        document::write("imgfs-tree", value)?;
        return Ok(object.outcome);
    }
    let mut out = std::io::stdout().lock();
    out.write_all(&shown(args.target.as_encoded_bytes()))?;
    writeln!(out)?;
    let mut drawing = Drawing { forest: &forest, out: &mut out, open: Vec::new(), directories: 0, files: 0, outcome };
    walk::walk_to(&forest, top, b"", args.levels, &mut |step, after| drawing.meet(step, after))?;
    let Drawing { directories, files, outcome, .. } = drawing;
    writeln!(out, "\n{directories} directories, {files} files")?;
    Ok(outcome)
}

/// A directory whose rows are being met.
struct Open<T> {
    value: T,
    /// Why they are not all there.
    failed: Option<Error>,
}

/// The tree as one object: rows, directories with their own `entries`.
struct Object<'a> {
    forest: &'a Forest,
    levels: usize,
    open: Vec<Open<Value>>,
    outcome: Outcome,
}

impl Object<'_> {
    fn meet(&mut self, step: Step<'_>) {
        match step {
            Step::Enter(row, _) => {
                let mut value = if self.open.is_empty() { json!({}) } else { entry(self.forest, row, &row.name) };
                if self.open.len() < self.levels.max(1) {
                    document::merge(&mut value, json!({ "entries": [] }));
                }
                self.open.push(Open { value, failed: None });
            }
            Step::Node(row, _) => self.put(entry(self.forest, row, &row.name)),
            Step::Failed(_, _, error) => {
                self.outcome = Outcome::Partial;
                if let Some(open) = self.open.last_mut() {
                    open.failed = Some(error);
                }
            }
            Step::Leave => {
                if let Some(error) = self.open.last_mut().and_then(|open| open.failed.take()) {
                    self.put(json!({ "error": error.to_string() }));
                }
                // The top stays, as the whole.
                if self.open.len() > 1
                    && let Some(open) = self.open.pop()
                {
                    self.put(open.value);
                }
            }
        }
    }

    fn put(&mut self, value: Value) {
        let rows = self.open.last_mut().and_then(|open| open.value.get_mut("entries"));
        if let Some(rows) = rows.and_then(Value::as_array_mut) {
            rows.push(value);
        }
    }
}

struct Drawing<'a> {
    forest: &'a Forest,
    out: &'a mut dyn Write,
    /// What stands before the rows of each.
    open: Vec<Open<String>>,
    directories: u64,
    files: u64,
    outcome: Outcome,
}

impl Drawing<'_> {
    /// `after` rows of its directory come after the one that is met.
    fn meet(&mut self, step: Step<'_>, after: usize) -> Result<()> {
        match step {
            Step::Enter(row, _) => {
                let Some(parent) = self.open.last() else {
                    self.open.push(Open { value: String::new(), failed: None });
                    return Ok(());
                };
                let is_last = after == 0 && parent.failed.is_none();
                let value = format!("{}{}", parent.value, if is_last { "    " } else { "│   " });
                self.row(row, after)?;
                self.directories += 1;
                self.open.push(Open { value, failed: None });
            }
            Step::Node(row, _) => {
                self.row(row, after)?;
                self.files += 1;
            }
            Step::Failed(_, _, error) => {
                self.outcome = Outcome::Partial;
                if let Some(open) = self.open.last_mut() {
                    open.failed = Some(error);
                }
            }
            Step::Leave => {
                if let Some(Open { value: indent, failed: Some(error) }) = self.open.pop() {
                    writeln!(self.out, "{indent}└── [{}]", imgfs::text::tamed(&error.to_string()))?;
                }
            }
        }
        Ok(())
    }

    fn row(&mut self, row: &Row, after: usize) -> Result<()> {
        let Some(parent) = self.open.last() else { return Ok(()) };
        let is_last = after == 0 && parent.failed.is_none();
        write!(self.out, "{}{}", parent.value, if is_last { "└── " } else { "├── " })?;
        self.out.write_all(&shown(&row.name))?;
        if row.kind == Kind::Symlink {
            let target = self.forest.read_link(row.node);
            self.out.write_all(b" -> ")?;
            let target = target.map_or_else(|error| format!("[{error}]").into_bytes(), |target| shown(&target));
            self.out.write_all(&target)?;
        }
        Ok(writeln!(self.out)?)
    }
}
