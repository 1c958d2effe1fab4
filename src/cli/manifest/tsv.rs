//! Tab-separated: path, type, size, SHA-256. A link's size and hash are its target's; what has no
//! contents has size 0 and `-`. In paths, tab, newline and backslash are `\t`, `\n`, `\\`. Lines
//! that start with `#` are comments; what could not be read is one of them, and has no row of its own
//! beyond `!` in the place of the hash.

use std::io::Write;

use anyhow::Result;
use imgfs::text::printable;

use super::{Facts, Job, Scene, Writer};
use crate::cli::document;

pub(super) struct Tsv<'a> {
    scene: &'a Scene<'a>,
}

impl<'a> Tsv<'a> {
    pub(super) fn new(scene: &'a Scene<'a>) -> Self {
        Self { scene }
    }
}

impl Writer for Tsv<'_> {
    fn start(&mut self, out: &mut dyn Write) -> Result<()> {
        writeln!(out, "# imgfs {} manifest of {}", env!("CARGO_PKG_VERSION"), printable(self.scene.name))?;
        let digest = self.scene.algorithms.first().map_or("-", |algorithm| algorithm.name());
        writeln!(out, "# path\ttype\tsize\t{digest}")?;
        for part in self.scene.treeless {
            writeln!(out, "# unreadable: {}: {}", part.name, imgfs::text::tamed(&part.reason))?;
        }
        Ok(())
    }

    fn row(&mut self, job: &Job, facts: &Facts, out: &mut dyn Write) -> Result<()> {
        if let Some(error) = &facts.error {
            writeln!(out, "# unreadable: {}: {}", printable(&job.path), imgfs::text::tamed(error))?;
        }
        let (size, digest) = match (&facts.contents, &facts.error) {
            (_, Some(_)) => (0, "!"),
            (Some((size, digests)), None) => (*size, digests.first().map_or("-", String::as_str)),
            (None, None) => (0, "-"),
        };
        // More is escaped then, and all of this among it.
        let path = if self.scene.on_terminal { printable(&job.path).into_bytes() } else { escaped(&job.path) };
        out.write_all(&path)?;
        Ok(writeln!(out, "\t{}\t{size}\t{digest}", document::kind(job.row.kind))?)
    }

    fn end(&mut self, _out: &mut dyn Write) -> Result<()> {
        Ok(())
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
