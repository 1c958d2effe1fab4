//! `imgfs ls`: directories, as `ls` lists them.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};

use anyhow::Result;
use imgfs::filesystem::{Attributes, FileSystem, Kind, NodeId};
use imgfs::forest::Forest;
use serde_json::{Value, json};

use super::sandbox::Sandbox;
use super::target::{ImageArgs, Located, one_of};
use super::walk::{self, Row, Step};
use super::{Outcome, document, treeless};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// Mode, links, owner, group, size, time (UTC)
    #[arg(short)]
    long: bool,
    /// Directories below as well
    #[arg(short = 'R')]
    recursive: bool,
    /// Names that start with a dot as well
    #[arg(short)]
    all: bool,
    /// One object, shape "imgfs-ls"; it has all names
    #[arg(long)]
    json: bool,
    /// IMAGE, or IMAGE:/path as in the mount
    #[arg(required = true, value_name = "IMAGE[:/PATH]")]
    targets: Vec<OsString>,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let look = Look::of_stdout();
    Sandbox::enter_for(&args.image, &args.targets)?;
    if args.json {
        return as_json(args);
    }
    let mut out = std::io::stdout().lock();
    let mut outcome = Outcome::Complete;
    for (at, text) in args.targets.iter().enumerate() {
        let located = one_of(&args.targets, Located::open(text, &args.image), &mut outcome)?;
        let Some(Located { target, image, forest, node, kind }) = located else { continue };
        let name = target.name().map(|name| name.into_encoded_bytes()).unwrap_or_default();
        if args.targets.len() > 1 && kind == Kind::Directory {
            writeln!(out, "{}{}:", if at > 0 { "\n" } else { "" }, imgfs::text::printable(text.as_encoded_bytes()))?;
        }
        let mut listing = Listing { args, look, forest: &forest, out: &mut out, outcome: &mut outcome };
        let top = Row { node, name, kind };
        if kind != Kind::Directory {
            listing.row(&top)?;
        } else if args.recursive {
            treeless::say(&treeless::below(&target, &image), listing.outcome);
            listing.recursive(top)?;
        } else {
            let (rows, failed) = walk::rows(&forest, node);
            listing.rows(&rows)?;
            if let Some(error) = failed {
                listing.fail(text.as_encoded_bytes(), &error);
            }
        }
    }
    out.flush()?;
    Ok(outcome)
}

/// Everything that is recorded of each name; with `-R` of everything below as well.
fn as_json(args: &Args) -> Result<Outcome> {
    let mut outcome = Outcome::Complete;
    let mut listings = Vec::new();
    for text in &args.targets {
        let located = one_of(&args.targets, Located::open(text, &args.image), &mut outcome)?;
        let Some(Located { target, image, forest, node, kind }) = located else { continue };
        let top = Row { node, name: target.name().map(OsString::into_encoded_bytes).unwrap_or_default(), kind };
        let mut entries = Vec::new();
        if top.kind == Kind::Directory && !args.recursive {
            let (rows, failed) = walk::rows(&forest, node);
            entries.extend(rows.iter().map(|row| entry(&forest, row, &row.name)));
            if let Some(error) = failed {
                said(text.as_encoded_bytes(), &error, &mut outcome);
            }
        } else {
            treeless::say(&treeless::below(&target, &image), &mut outcome);
            let start = if top.kind == Kind::Directory { Vec::new() } else { top.name.clone() };
            walk::walk(&forest, top, &start, &mut |step| {
                match step {
                    Step::Enter(_, b"") | Step::Leave => {}
                    Step::Enter(row, path) | Step::Node(row, path) => entries.push(entry(&forest, row, path)),
                    Step::Failed(_, path, error) => said(path, &error, &mut outcome),
                }
                Ok(())
            })?;
        }
        let mut listing = json!({ "entries": entries });
        document::name(&mut listing, "target", text.as_encoded_bytes());
        listings.push(listing);
    }
    document::write("imgfs-ls", json!({ "listings": listings }))?;
    Ok(outcome)
}

fn said(path: &[u8], error: &imgfs::error::Error, outcome: &mut Outcome) {
    eprintln!("imgfs: {}: {}", imgfs::text::printable(path), imgfs::text::tamed(&error.to_string()));
    *outcome = Outcome::Partial;
}

/// A node for `--json`: its name or path, and what is recorded of it.
pub fn entry(forest: &Forest, row: &Row, name: &[u8]) -> Value {
    let mut value = match forest.attributes(row.node) {
        Ok(attributes) => document::attributes(&attributes),
        Err(error) => json!({ "type": document::kind(row.kind), "error": error.to_string() }),
    };
    document::name(&mut value, "name", name);
    document::merge(&mut value, json!({ "inode": forest.own_number(row.node) }));
    if row.kind == Kind::Symlink {
        match forest.read_link(row.node) {
            Ok(target) => document::name(&mut value, "target", &target),
            Err(error) => document::merge(&mut value, json!({ "error": error.to_string() })),
        }
    }
    value
}

/// How names are shown: as `ls` shows them on a terminal, or as they are.
#[derive(Clone, Copy)]
struct Look {
    /// Characters of a line, on a terminal: names stand in columns.
    width: Option<usize>,
    colour: bool,
}

impl Look {
    fn of_stdout() -> Self {
        let stdout = std::io::stdout();
        if !stdout.is_terminal() {
            return Self { width: None, colour: false };
        }
        let wide = rustix::termios::tcgetwinsize(&stdout).map_or(0, |size| size.ws_col);
        // https://no-color.org
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_none_or(|kind| kind == "dumb");
        Self { width: Some(if wide == 0 { 80 } else { wide.into() }), colour: !plain }
    }
}

/// Columns that names of these widths fill from top to bottom, each column as wide as its widest name
/// and a gap of two. As few lines as fit.
fn columns(widths: &[usize], line: usize) -> Vec<usize> {
    let mut best = vec![widths.iter().copied().max().unwrap_or(0)];
    for lines in (1..widths.len()).rev() {
        let found: Vec<usize> = widths.chunks(lines).map(|column| column.iter().copied().max().unwrap_or(0)).collect();
        if found.iter().sum::<usize>() + 2 * (found.len() - 1) > line {
            break;
        }
        best = found;
    }
    best
}

struct Listing<'a, W> {
    args: &'a Args,
    look: Look,
    forest: &'a Forest,
    out: &'a mut W,
    outcome: &'a mut Outcome,
}

impl<W: Write> Listing<'_, W> {
    fn fail(&mut self, path: &[u8], error: &imgfs::error::Error) {
        eprintln!("imgfs: {}: {}", imgfs::text::printable(path), imgfs::text::tamed(&error.to_string()));
        *self.outcome = Outcome::Partial;
    }

    fn rows(&mut self, rows: &[Row]) -> Result<()> {
        let shown: Vec<&Row> = rows.iter().filter(|row| self.args.all || !row.name.starts_with(b".")).collect();
        match self.look.width.filter(|_| !self.args.long) {
            Some(line) => self.in_columns(&shown, line),
            None => shown.into_iter().try_for_each(|row| self.row(row)),
        }
    }

    fn in_columns(&mut self, rows: &[&Row], line: usize) -> Result<()> {
        let widths: Vec<usize> = rows.iter().map(|row| imgfs::text::printable(&row.name).chars().count()).collect();
        let columns = columns(&widths, line);
        let lines = rows.len().div_ceil(columns.len().max(1));
        for at in 0..lines {
            for (column, widest) in columns.iter().enumerate() {
                let place = column * lines + at;
                let (Some(row), Some(width)) = (rows.get(place), widths.get(place)) else { continue };
                self.name(row)?;
                if place + lines < rows.len() {
                    write!(self.out, "{:gap$}", "", gap = widest - width + 2)?;
                }
            }
            writeln!(self.out)?;
        }
        Ok(())
    }

    /// A name in the colour of its kind.
    fn name(&mut self, row: &Row) -> Result<()> {
        let runs = || self.forest.attributes(row.node).is_ok_and(|found| permissions(&found).contains(['x', 's']));
        let colour = match row.kind {
            _ if !self.look.colour => None,
            Kind::Directory => Some("1;34"),
            Kind::Symlink => Some("1;36"),
            Kind::CharDevice | Kind::BlockDevice => Some("1;33"),
            Kind::Fifo => Some("33"),
            Kind::Socket => Some("1;35"),
            Kind::File => runs().then_some("1;32"),
        };
        match colour {
            Some(colour) => {
                write!(self.out, "\x1b[{colour}m")?;
                self.out.write_all(&shown(&row.name))?;
                Ok(write!(self.out, "\x1b[0m")?)
            }
            None => Ok(self.out.write_all(&shown(&row.name))?),
        }
    }

    fn recursive(&mut self, top: Row) -> Result<()> {
        let forest = self.forest;
        let mut first = true;
        walk::walk(forest, top, b"", &mut |step| {
            match step {
                Step::Enter(row, path) => {
                    if !first {
                        writeln!(self.out)?;
                    }
                    first = false;
                    self.out.write_all(&shown(if path.is_empty() { b"." } else { path }))?;
                    writeln!(self.out, ":")?;
                    self.rows(&walk::rows(forest, row.node).0)?;
                }
                Step::Failed(_, path, error) => self.fail(path, &error),
                Step::Node(..) | Step::Leave => {}
            }
            Ok(())
        })
    }

    fn row(&mut self, row: &Row) -> Result<()> {
        if self.args.long {
            match self.forest.attributes(row.node) {
                Ok(attributes) => write!(self.out, "{} ", long(&attributes))?,
                Err(error) => {
                    self.fail(&row.name, &error);
                    write!(self.out, "{}????????? ", letter(row.kind))?;
                }
            }
        }
        self.name(row)?;
        if self.args.long && row.kind == Kind::Symlink {
            self.out.write_all(b" -> ")?;
            let target = self.target(row.node);
            self.out.write_all(&shown(&target))?;
        }
        Ok(writeln!(self.out)?)
    }

    fn target(&mut self, link: NodeId) -> Vec<u8> {
        self.forest.read_link(link).unwrap_or_else(|error| {
            self.fail(b"link target", &error);
            b"?".to_vec()
        })
    }
}

/// A name for standard output: escaped when that is a terminal, its bytes otherwise.
pub fn shown(name: &[u8]) -> Vec<u8> {
    if std::io::stdout().is_terminal() { imgfs::text::printable(name).into_bytes() } else { name.to_vec() }
}

/// Mode, links, owner, group, size or device number, time. What the medium does not record is `-`.
fn long(attributes: &Attributes) -> String {
    let or_dash = |value: Option<u32>| value.map_or("-".to_owned(), |value| value.to_string());
    let size = match attributes.device {
        Some((major, minor)) => format!("{major}, {minor}"),
        None => attributes.size.to_string(),
    };
    let time = attributes.modified.and_then(|time| jiff::Timestamp::from_second(time.seconds).ok());
    let time = time.map_or("-".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M").to_string());
    format!(
        "{}{} {:>2} {:>5} {:>5} {size:>10} {time:>16}",
        letter(attributes.kind),
        permissions(attributes),
        or_dash(attributes.links),
        or_dash(attributes.uid),
        or_dash(attributes.gid),
    )
}

/// The letter of a kind of node, in front of its permissions.
pub fn letter(kind: Kind) -> char {
    match kind {
        Kind::File => '-',
        Kind::Directory => 'd',
        Kind::Symlink => 'l',
        Kind::CharDevice => 'c',
        Kind::BlockDevice => 'b',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
    }
}

/// `rwxr-xr-x` with the set-id and sticky letters; a medium without permissions shows what it does record.
pub fn permissions(attributes: &Attributes) -> String {
    let Some(mode) = attributes.mode else {
        let runs = if attributes.program == Some(true) { 'x' } else { '-' };
        return format!("r{}{runs}------", if attributes.read_only { '-' } else { 'w' });
    };
    let mut text = String::with_capacity(9);
    for (shift, special, set, bare) in [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, false) => 'x',
            (false, false) => '-',
            (true, true) => set,
            (false, true) => bare,
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_filled_from_top_to_bottom_in_as_few_lines_as_fit() {
        assert_eq!(columns(&[5; 6], 80), [5; 6]);
        assert_eq!(columns(&[10, 2, 3, 4], 19), [10, 4]);
        assert_eq!(columns(&[100, 2], 80), [100]);
        assert_eq!(columns(&[], 80), [0]);
    }

    #[test]
    fn set_id_and_sticky_bits_have_the_letters_of_ls() {
        let show = |mode| permissions(&Attributes { mode: Some(mode), ..Attributes::new(Kind::File, 0) });
        assert_eq!(show(0o4755), "rwsr-xr-x");
        assert_eq!(show(0o2644), "rw-r-Sr--");
        assert_eq!(show(0o1777), "rwxrwxrwt");
    }
}
