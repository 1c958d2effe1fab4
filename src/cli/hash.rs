//! `imgfs hash`: digests of an image, of the disk in it, of its parts and of its files.
//!
//! The image's own line has its path; all others have the names of the mount, so that `sha256sum -c`
//! can be run in it.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::ops::Range;

use anyhow::{Context, Result};
use imgfs::device::file::HostFile;
use imgfs::device::{BlockDevice, Device};
use imgfs::digest::{Algorithm, hex};
use imgfs::filesystem::{FileSystem, Kind};
use imgfs::stack::Image;
use imgfs::text::printable;
use serde_json::{Value, json};

use super::hashing::{self, Digests, Wanted};
use super::sandbox::Sandbox;
use super::target::{ImageArgs, Target};
use super::walk::{self, Row, Step};
use super::{Outcome, document, parallel, progress, treeless};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// Digests: sha256, sha1, md5, blake3, sha512, crc32
    #[arg(short, long, value_name = "NAMES", value_delimiter = ',', default_value = "sha256", value_parser = algorithm)]
    algorithm: Vec<Algorithm>,
    /// The disk, and each partition and boot image, by its name in the mount
    #[arg(long)]
    parts: bool,
    /// Every file of every tree
    #[arg(long)]
    files: bool,
    /// One object, shape "imgfs-hash"
    #[arg(long)]
    json: bool,
    /// The image
    #[arg(value_name = "IMAGE")]
    target: OsString,
}

/// A digest by its name.
pub fn algorithm(name: &str) -> Result<Algorithm, String> {
    Algorithm::from_name(name).ok_or_else(|| {
        let known: Vec<&str> = Algorithm::ALL.iter().map(|algorithm| algorithm.name()).collect();
        format!("the digests are {}", known.join(", "))
    })
}

/// One thing that was hashed.
struct Line {
    /// `image`, `disk`, `part`, `file`.
    of: &'static str,
    name: Vec<u8>,
    size: u64,
    digests: Vec<Vec<u8>>,
}

pub fn run(args: &Args) -> Result<Outcome> {
    Sandbox::enter_for(&args.image, [&args.target])?;
    let target = Target::parse(&args.target)?;
    anyhow::ensure!(target.path.is_empty(), "hash is about a whole image: leave out the path");
    let image = target.open(&args.image)?;
    let mut report = Report { args, lines: Vec::new(), outcome: Outcome::Complete };
    report.bytes(&image, &target)?;
    if args.files {
        report.files(&image)?;
    }
    let Report { lines, outcome, .. } = report;
    if args.json {
        let rows: Vec<Value> = lines.iter().map(|line| describe(line, &args.algorithm)).collect();
        let mut members = json!({ "digests": rows });
        document::name(&mut members, "image", args.target.as_encoded_bytes());
        document::write("imgfs-hash", members)?;
        return Ok(outcome);
    }
    let on_terminal = std::io::stdout().is_terminal();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for line in &lines {
        for (algorithm, digest) in args.algorithm.iter().zip(&line.digests) {
            write_tagged(&mut out, *algorithm, (&line.name, on_terminal), digest)?;
        }
    }
    out.flush()?;
    Ok(outcome)
}

/// The line that `sha256sum --tag` writes, and that `sha256sum -c` reads; for eyes, where nothing may
/// steer the terminal.
fn write_tagged(
    out: &mut dyn Write,
    algorithm: Algorithm,
    (name, on_terminal): (&[u8], bool),
    digest: &[u8],
) -> Result<()> {
    let awkward = name.iter().any(|byte| matches!(byte, b'\\' | b'\n' | b'\r'));
    write!(out, "{}{} (", if awkward { "\\" } else { "" }, algorithm.name().to_uppercase())?;
    if on_terminal {
        write!(out, "{}", printable(name))?;
    } else {
        for &byte in name {
            match byte {
                b'\\' => out.write_all(b"\\\\")?,
                b'\n' => out.write_all(b"\\n")?,
                b'\r' => out.write_all(b"\\r")?,
                byte => out.write_all(&[byte])?,
            }
        }
    }
    Ok(writeln!(out, ") = {}", hex(digest))?)
}

fn describe(line: &Line, algorithms: &[Algorithm]) -> Value {
    let mut value = json!({ "of": line.of, "size": line.size });
    document::name(&mut value, "name", &line.name);
    for (algorithm, digest) in algorithms.iter().zip(&line.digests) {
        document::merge(&mut value, json!({ algorithm.name(): hex(digest) }));
    }
    value
}

struct Report<'a> {
    args: &'a Args,
    lines: Vec<Line>,
    outcome: Outcome,
}

impl Report<'_> {
    fn take(&mut self, of: &'static str, name: &[u8], size: u64, digests: Digests) {
        match digests {
            Ok(digests) => self.lines.push(Line { of, name: name.to_vec(), size, digests }),
            Err(error) => {
                eprintln!("imgfs: {}: {}", printable(name), imgfs::text::tamed(&error.to_string()));
                self.outcome = Outcome::Partial;
            }
        }
    }

    /// The host file, the disk, its parts: the disk and its parts in one pass.
    fn bytes(&mut self, image: &Image, target: &Target) -> Result<()> {
        let name = target.image.as_os_str().as_encoded_bytes();
        let host = if target.image.is_dir() { None } else { Some(HostFile::open(&target.image)?) };
        let size = image.disk.size();
        // The bytes of a raw image are those of its disk.
        let same = image.container.format == "raw"
            && host.as_ref().is_some_and(|host| host.size() == size)
            && image.disk.host_file().is_some_and(|span| span.offset == 0);
        let mut devices: Vec<(&'static str, Vec<u8>, Device)> = Vec::new();
        let mut wanted: Vec<Range<u64>> = Vec::new();
        wanted.push(0..size);
        if self.args.parts {
            for part in image.parts.iter().filter(|part| part.name != "disk" && part.is_on_disk()) {
                let (start, len) = (part.offset, part.device.size());
                devices.push(("part", format!("{}.img", part.name).into_bytes(), part.device.clone()));
                wanted.push(start..start.saturating_add(len).min(size));
            }
        }
        let total = wanted.iter().map(|range| range.end).max().unwrap_or(0);
        let host_size = host.as_ref().filter(|_| !same).map_or(0, BlockDevice::size);
        let elsewhere = || image.parts.iter().filter(|part| self.args.parts && !part.is_on_disk());
        let others = elsewhere().map(|part| part.device.size()).fold(host_size, u64::saturating_add);
        let bar = progress::bar(total.saturating_add(others));
        let algorithms = &self.args.algorithm;
        if let Some(host) = host.filter(|_| !same) {
            bar.set_message(printable(name));
            let one = [Wanted { range: 0..host.size(), algorithms: algorithms.clone() }];
            for digests in hashing::ranges(&host, &one, &mut |len| bar.inc(len)) {
                self.take("image", name, host.size(), digests);
            }
        }
        bar.set_message("disk.img");
        let ranges: Vec<Wanted> =
            wanted.into_iter().map(|range| Wanted { range, algorithms: algorithms.clone() }).collect();
        let found = hashing::ranges(image.disk.as_ref(), &ranges, &mut |len| bar.inc(len));
        let apart: Vec<(String, u64, Digests)> = elsewhere()
            .flat_map(|part| {
                bar.set_message(format!("{}.img", part.name));
                let one = [Wanted { range: 0..part.device.size(), algorithms: algorithms.clone() }];
                let found = hashing::ranges(part.device.as_ref(), &one, &mut |len| bar.inc(len));
                found.into_iter().map(|digests| (format!("{}.img", part.name), part.device.size(), digests))
            })
            .collect();
        bar.finish_and_clear();
        let mut found = found.into_iter();
        if let Some(digests) = found.next() {
            if same {
                self.take("image", name, size, digests.clone());
            }
            if !same || self.args.parts {
                self.take("disk", b"disk.img", size, digests);
            }
        }
        for ((of, name, device), digests) in devices.iter().zip(found) {
            self.take(of, name, device.size(), digests);
        }
        for (name, size, digests) in apart {
            self.take("part", name.as_bytes(), size, digests);
        }
        Ok(())
    }

    fn files(&mut self, image: &Image) -> Result<()> {
        treeless::say(&treeless::of(image), &mut self.outcome);
        let forest = image.forest();
        let mut jobs: Vec<(Row, Vec<u8>)> = Vec::new();
        let mut total = 0u64;
        let root = Row { node: forest.root(), name: Vec::new(), kind: Kind::Directory };
        walk::walk(&forest, root, b"", &mut |step| {
            match step {
                Step::Node(row, path) if row.kind == Kind::File && !forest.is_shared(row.node) => {
                    total += forest.attributes(row.node).map_or(0, |attributes| attributes.size);
                    jobs.push((row.clone(), path.to_vec()));
                }
                Step::Failed(_, path, error) => {
                    eprintln!("imgfs: {}: {}", printable(path), imgfs::text::tamed(&error.to_string()));
                    self.outcome = Outcome::Partial;
                }
                _ => {}
            }
            Ok(())
        })?;
        let bar = progress::bar(total);
        let algorithms = &self.args.algorithm;
        let work =
            |(row, _): &(Row, Vec<u8>)| hashing::node(&forest, (row.node, row.kind), algorithms, &|len| bar.inc(len));
        let mut paths = jobs.iter().map(|(_, path)| path);
        parallel::in_order(jobs.iter(), 64, work, &mut |contents| {
            let path = paths.next().context("more results than files")?;
            match contents {
                Ok(Some(contents)) => {
                    let (size, digests) = (contents.size, contents.digests);
                    self.lines.push(Line { of: "file", name: path.clone(), size, digests });
                }
                Ok(None) => {}
                Err(error) => {
                    bar.suspend(|| {
                        eprintln!("imgfs: {}: {}", printable(path), imgfs::text::tamed(&format!("{error:#}")))
                    });
                    self.outcome = Outcome::Partial;
                }
            }
            Ok(())
        })?;
        bar.finish_and_clear();
        Ok(())
    }
}
