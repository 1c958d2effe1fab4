//! The payload manifest of a bag (RFC 8493): `DIGEST  data/path`, for what `imgfs cp -a IMAGE:/PATH
//! BAG/data` copies. A bag holds files alone: links and devices have no row, and their number is said.

use std::io::Write;

use anyhow::Result;
use imgfs::filesystem::Kind;
use imgfs::text::printable;

use super::{Facts, Job, Scene, Writer};

pub(super) struct Bag<'a> {
    scene: &'a Scene<'a>,
    others: u64,
}

impl<'a> Bag<'a> {
    pub(super) fn new(scene: &'a Scene<'a>) -> Self {
        Self { scene, others: 0 }
    }
}

impl Writer for Bag<'_> {
    fn start(&mut self, _out: &mut dyn Write) -> Result<()> {
        Ok(())
    }

    fn row(&mut self, job: &Job, facts: &Facts, out: &mut dyn Write) -> Result<()> {
        match (job.row.kind, facts.contents.as_ref().and_then(|(_, digests)| digests.first())) {
            (Kind::File, Some(digest)) => {
                write!(out, "{digest}  data/")?;
                let path = encoded(job.path.get(self.scene.above..).unwrap_or_default());
                let path = if self.scene.on_terminal { printable(&path).into_bytes() } else { path };
                out.write_all(&path)?;
                Ok(writeln!(out)?)
            }
            (Kind::File | Kind::Directory, _) => Ok(()),
            _ => {
                self.others += 1;
                Ok(())
            }
        }
    }

    fn end(&mut self, _out: &mut dyn Write) -> Result<()> {
        if self.others > 0 {
            eprintln!("imgfs: {} links and special files have no row: a bag holds files alone", self.others);
        }
        Ok(())
    }
}

/// Section 2.1.3: line ends and the percent sign are percent-encoded.
fn encoded(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for &byte in path {
        match byte {
            b'\n' => out.extend_from_slice(b"%0A"),
            b'\r' => out.extend_from_slice(b"%0D"),
            b'%' => out.extend_from_slice(b"%25"),
            byte => out.push(byte),
        }
    }
    out
}
