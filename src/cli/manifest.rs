//! `imgfs manifest`: one row a node of the mount.
//!
//! Tab-separated: path, type, size, SHA-256. A link's size and hash are its target's; what has no
//! contents has size 0 and `-`. In paths, tab, newline and backslash are `\t`, `\n`, `\\`. Lines
//! that start with `#` are comments; what could not be read is one of them, and has no row of its own
//! beyond `!` in the place of the hash.

use std::ffi::OsString;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use anyhow::Result;
use imgfs::error::Error;
use imgfs::filesystem::{FileSystem, Kind};
use imgfs::forest::Forest;
use sha2::{Digest, Sha256};

use super::Outcome;
use super::cat::each_piece;
use super::sandbox::Sandbox;
use super::target::{ImageArgs, Target, trimmed};
use super::walk::{self, Row, Step};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// IMAGE, or IMAGE:/path as in the mount
    #[arg(value_name = "IMAGE[:/PATH]")]
    target: OsString,
}

/// A node whose row is to be written.
struct Job {
    row: Row,
    path: Vec<u8>,
    /// A directory that could not be listed.
    failed: Option<Error>,
}

pub fn run(args: &Args) -> Result<Outcome> {
    Sandbox::enter_for(&args.image.safety, [&args.target])?;
    let target = Target::parse(&args.target)?;
    let image = target.open(&args.image)?;
    let forest = image.forest();
    let node = target.find(&image, &forest)?;
    let kind = forest.attributes(node)?.kind;
    let top = Row { node, name: target.name().map(OsString::into_encoded_bytes).unwrap_or_default(), kind };
    let mut jobs: Vec<Job> = Vec::new();
    walk::walk(&forest, top, trimmed(&target.path), &mut |step| {
        match step {
            Step::Enter(_, b"") | Step::Leave(..) => {}
            Step::Enter(row, path) | Step::Node(row, path) => {
                jobs.push(Job { row: row.clone(), path: path.to_vec(), failed: None });
            }
            Step::Failed(row, path, error) => match jobs.last_mut().filter(|job| job.path == path) {
                Some(job) => job.failed = Some(error),
                None => jobs.push(Job { row: row.clone(), path: path.to_vec(), failed: Some(error) }),
            },
        }
        Ok(())
    })?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    writeln!(
        out,
        "# imgfs {} manifest of {}",
        env!("CARGO_PKG_VERSION"),
        imgfs::text::printable(args.target.as_encoded_bytes())
    )?;
    writeln!(out, "# path\ttype\tsize\tsha256")?;
    let mut outcome = Outcome::Complete;
    in_order(&jobs, |job| line(&forest, job), &mut |(line, error): (Vec<u8>, Option<String>)| {
        if let Some(error) = error {
            outcome = Outcome::Partial;
            eprintln!("imgfs: {error}");
            writeln!(out, "# unreadable: {error}")?;
        }
        Ok(out.write_all(&line)?)
    })?;
    out.flush()?;
    Ok(outcome)
}

/// Works on all jobs with every core, and takes the results in the jobs' order.
fn in_order<J: Sync, T: Send>(
    jobs: &[J],
    work: impl Fn(&J) -> T + Sync,
    take: &mut dyn FnMut(T) -> Result<()>,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    // Few results wait at a time, however far one worker is ahead of another.
    let (send, receive) = mpsc::sync_channel(workers * 64);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let (send, next, work) = (send.clone(), &next, &work);
            scope.spawn(move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(at) else { return };
                    if send.send((at, work(job))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        let mut waiting = std::collections::BTreeMap::new();
        let mut expected = 0;
        // The receiver is owned here, so that a failure ends the workers as well.
        for (at, result) in receive {
            waiting.insert(at, result);
            while let Some(result) = waiting.remove(&expected) {
                expected += 1;
                take(result)?;
            }
        }
        Ok(())
    })
}

/// A node's row, and what went wrong.
fn line(forest: &Forest, job: &Job) -> (Vec<u8>, Option<String>) {
    let result = match &job.failed {
        Some(error) => Err(anyhow::Error::new(error.clone())),
        None => size_and_hash(forest, &job.row),
    };
    let (size, hash, error) = match result {
        Ok((size, hash)) => (size, hash, None),
        Err(error) => (0, "!".to_owned(), Some(format!("{}: {error:#}", imgfs::text::printable(&job.path)))),
    };
    let mut line = escaped(&job.path);
    line.extend_from_slice(format!("\t{}\t{size}\t{hash}\n", type_name(job.row.kind)).as_bytes());
    (line, error)
}

fn size_and_hash(forest: &Forest, row: &Row) -> Result<(u64, String)> {
    let mut hash = Sha256::new();
    let mut size = 0u64;
    match row.kind {
        Kind::File => {
            each_piece(forest, row.node, &mut |piece| {
                size += piece.len() as u64;
                hash.update(piece);
                Ok(())
            })?;
            let expected = forest.attributes(row.node)?.size;
            anyhow::ensure!(size == expected, "{size} of {expected} bytes can be read");
        }
        Kind::Symlink => {
            let target = forest.read_link(row.node)?;
            size = target.len() as u64;
            hash.update(&target);
        }
        _ => return Ok((0, "-".to_owned())),
    }
    Ok((size, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

fn type_name(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "dir",
        Kind::Symlink => "link",
        Kind::CharDevice => "char",
        Kind::BlockDevice => "block",
        Kind::Fifo => "fifo",
        Kind::Socket => "sock",
    }
}

fn escaped(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for &byte in path {
        match byte {
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\\' => out.extend_from_slice(b"\\\\"),
            byte => out.push(byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whichever_worker_is_first() {
        let jobs: Vec<u64> = (0..500).collect();
        let mut seen = Vec::new();
        let work = |job: &u64| {
            std::thread::sleep(std::time::Duration::from_micros(job * 7 % 50));
            *job
        };
        in_order(&jobs, work, &mut |job| {
            let _: () = seen.push(job);
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, jobs);
    }

    #[test]
    fn a_failure_of_the_reader_ends_the_workers() {
        let jobs: Vec<u64> = (0..100_000).collect();
        assert!(in_order(&jobs, |job| *job, &mut |_| anyhow::bail!("full")).is_err());
    }
}
