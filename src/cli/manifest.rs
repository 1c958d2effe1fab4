//! `imgfs manifest`: every node of the mount, in the form that other tools read.
//!
//! All forms but JSON are made of lines: rows come in the order of the walk, however many cores work.

mod bag;
mod body;
mod dfxml;
mod rows;
mod tsv;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};

use anyhow::{Context, Result, ensure};
use imgfs::digest::{Algorithm, hex};
use imgfs::error::Error;
use imgfs::filesystem::{Attributes, FileSystem, Kind, NodeId};
use imgfs::forest::Forest;
use imgfs::stack::Image;
use imgfs::text::printable;

use super::hash::algorithm;
use super::sandbox::Sandbox;
use super::target::{ImageArgs, Place, Target, trimmed};
use super::treeless::Treeless;
use super::walk::{self, Row, Step};
use super::{Outcome, hashing, parallel, progress, treeless};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// Form of the rows
    #[arg(long, value_enum, default_value = "tsv")]
    format: Format,
    /// As --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Digests of the contents: sha256, sha1, md5, blake3, sha512, crc32 (default: what the form is
    /// used to have)
    #[arg(short, long, value_name = "NAMES", value_delimiter = ',', value_parser = algorithm)]
    algorithm: Vec<Algorithm>,
    /// IMAGE, or IMAGE:/path as in the mount
    #[arg(value_name = "IMAGE[:/PATH]")]
    target: OsString,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Path, type, size, SHA-256
    Tsv,
    /// Everything that is known of each node, one object, shape "imgfs-manifest"
    Json,
    /// Digital Forensics XML, as fiwalk writes it
    Dfxml,
    /// The body file of the Sleuth Kit, for mactime
    Bodyfile,
    /// The payload manifest of a bag into whose data/ the files are copied (RFC 8493)
    Bagit,
}

impl Format {
    fn usual(self) -> Vec<Algorithm> {
        match self {
            Self::Tsv | Self::Json | Self::Bagit => vec![Algorithm::Sha256],
            Self::Dfxml => vec![Algorithm::Md5, Algorithm::Sha1],
            Self::Bodyfile => vec![Algorithm::Md5],
        }
    }

    /// Whether rows are of volumes, not of the mount.
    fn is_of_volumes(self) -> bool {
        matches!(self, Self::Dfxml | Self::Bodyfile)
    }

    /// Which nodes have a row.
    fn takes(self, job: &Job, forest: &Forest) -> bool {
        // A volume is no file of its own, and links to volumes are none of the medium.
        !self.is_of_volumes() || forest.volume(job.row.node).is_some() && !job.is_volume()
    }
}

/// A node whose row is to be written.
struct Job {
    row: Row,
    path: Vec<u8>,
    parent: NodeId,
    /// A directory that could not be listed.
    failed: Option<Error>,
}

impl Job {
    /// `p1` itself.
    fn is_volume(&self) -> bool {
        !self.path.contains(&b'/')
    }
}

/// What is known of a node.
struct Facts {
    /// What the disk records, or why that cannot be read.
    attributes: Result<Attributes, Error>,
    /// Size and digests of the contents, as hexadecimal digits, where there are any.
    contents: Option<(u64, Vec<String>)>,
    /// Of a symbolic link.
    target: Option<Vec<u8>>,
    error: Option<String>,
}

/// What every form is told.
struct Scene<'a> {
    image: &'a Image,
    forest: &'a Forest,
    /// As the user wrote it.
    name: &'a [u8],
    /// The path of the top's directory, which a bag does not have.
    above: usize,
    algorithms: &'a [Algorithm],
    /// What of the image has no rows.
    treeless: &'a [Treeless],
    /// Nothing that steers one may be written.
    on_terminal: bool,
}

/// One form of manifest. Rows come in order.
trait Writer {
    fn start(&mut self, out: &mut dyn Write) -> Result<()>;
    fn row(&mut self, job: &Job, facts: &Facts, out: &mut dyn Write) -> Result<()>;
    fn end(&mut self, out: &mut dyn Write) -> Result<()>;
}

pub fn run(args: &Args) -> Result<Outcome> {
    Sandbox::enter_for(&args.image, [&args.target])?;
    let format = if args.json { Format::Json } else { args.format };
    let target = Target::parse(&args.target)?;
    let image = target.open(&args.image)?;
    let forest = image.forest();
    let place = target.locate(&image, &forest)?;
    let usual = format.usual();
    let algorithms = if args.algorithm.is_empty() { usual.as_slice() } else { &args.algorithm };
    let one = matches!(format, Format::Tsv | Format::Bodyfile | Format::Bagit);
    ensure!(!one || algorithms.len() == 1, "this form has room for one digest");
    let known = [Algorithm::Md5, Algorithm::Sha1, Algorithm::Sha256];
    let fits = format != Format::Dfxml || algorithms.iter().all(|algorithm| known.contains(algorithm));
    ensure!(fits, "DFXML knows md5, sha1 and sha256");
    ensure!(format != Format::Bodyfile || algorithms == [Algorithm::Md5], "a body file has MD5 alone");
    // Rows have the names that the user gave, but a volume has one name only.
    let path = if format.is_of_volumes() { place.path } else { trimmed(&target.path).to_vec() };
    let above = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let jobs = jobs(&forest, &Place { node: place.node, path }, &target, format)?;
    let treeless = treeless::below(&target, &image);
    let context = Scene {
        image: &image,
        forest: &forest,
        name: args.target.as_encoded_bytes(),
        above,
        algorithms,
        treeless: &treeless,
        on_terminal: std::io::stdout().is_terminal(),
    };
    let mut writer: Box<dyn Writer> = match format {
        Format::Tsv => Box::new(tsv::Tsv::new(&context)),
        Format::Json => Box::new(rows::Rows::new(&context)),
        Format::Dfxml => Box::new(dfxml::Dfxml::new(&context)),
        Format::Bodyfile => Box::new(body::Body::new(&context)),
        Format::Bagit => Box::new(bag::Bag::new(&context)),
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut outcome = write(&context, &jobs, writer.as_mut(), &mut out)?;
    out.flush()?;
    treeless::say(&treeless, &mut outcome);
    Ok(outcome)
}

fn write(context: &Scene<'_>, jobs: &[Job], writer: &mut dyn Writer, out: &mut dyn Write) -> Result<Outcome> {
    let mut outcome = Outcome::Complete;
    let bar = progress::bar(0);
    if !bar.is_hidden() {
        let files = jobs.iter().filter(|job| job.row.kind == Kind::File);
        let sizes = files.map(|job| context.forest.attributes(job.row.node).map_or(0, |attributes| attributes.size));
        progress::set_total(&bar, sizes.sum());
    }
    writer.start(out)?;
    let mut rows = jobs.iter();
    parallel::in_order(jobs.iter(), 64, |job| facts(context, job, &|len| bar.inc(len)), &mut |facts: Facts| {
        let job = rows.next().context("more results than nodes")?;
        if let Some(error) = &facts.error {
            outcome = Outcome::Partial;
            bar.suspend(|| eprintln!("imgfs: {}: {}", printable(&job.path), imgfs::text::tamed(error)));
        }
        writer.row(job, &facts, out)
    })?;
    writer.end(out)?;
    bar.finish_and_clear();
    Ok(outcome)
}

fn jobs(forest: &Forest, place: &Place, target: &Target, format: Format) -> Result<Vec<Job>> {
    let node = place.node;
    let kind = forest.attributes(node)?.kind;
    let top = Row { node, name: target.name().map(OsString::into_encoded_bytes).unwrap_or_default(), kind };
    let mut jobs: Vec<Job> = Vec::new();
    let mut above = vec![node];
    walk::walk(forest, top, &place.path, &mut |step| {
        let parent = above.last().copied().unwrap_or(node);
        match step {
            Step::Enter(row, b"") => above.push(row.node),
            Step::Leave => drop(above.pop()),
            Step::Enter(row, path) | Step::Node(row, path) => {
                let job = Job { row: row.clone(), path: path.to_vec(), parent, failed: None };
                if format.takes(&job, forest) {
                    jobs.push(job);
                }
                if row.kind == Kind::Directory {
                    above.push(row.node);
                }
            }
            Step::Failed(row, path, error) => match jobs.last_mut().filter(|job| job.path == path) {
                Some(job) => job.failed = Some(error),
                None => jobs.push(Job { row: row.clone(), path: path.to_vec(), parent, failed: Some(error) }),
            },
        }
        Ok(())
    })?;
    Ok(jobs)
}

fn facts(context: &Scene<'_>, job: &Job, progress: &dyn Fn(u64)) -> Facts {
    let (forest, node) = (context.forest, job.row.node);
    let attributes = forest.attributes(node);
    let target = if job.row.kind == Kind::Symlink { forest.read_link(node).ok() } else { None };
    let contents = match &job.failed {
        Some(error) => Err(anyhow::Error::new(error.clone())),
        None => hashing::node(forest, (node, job.row.kind), context.algorithms, progress),
    };
    let (contents, error) = match contents {
        Ok(contents) => {
            let error = attributes.as_ref().err().map(ToString::to_string);
            (contents.map(|found| (found.size, found.digests.iter().map(|digest| hex(digest)).collect())), error)
        }
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    Facts { attributes, contents, target, error }
}
