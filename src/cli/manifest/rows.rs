//! JSON: one object whose `nodes` come one a line, so that a large one can be read line by line.

use std::io::Write;

use anyhow::Result;
use serde_json::json;

use super::{Facts, Job, Scene, Writer};
use crate::cli::document;

pub(super) struct Rows<'a> {
    scene: &'a Scene<'a>,
    first: bool,
}

impl<'a> Rows<'a> {
    pub(super) fn new(scene: &'a Scene<'a>) -> Self {
        Self { scene, first: true }
    }
}

impl Writer for Rows<'_> {
    fn start(&mut self, out: &mut dyn Write) -> Result<()> {
        let mut head = document::object("imgfs-manifest", json!({}));
        document::name(&mut head, "image", self.scene.name);
        let head = imgfs::text::tamed_json(&head.to_string());
        Ok(write!(out, "{}, \"nodes\": [", head.trim_end_matches('}'))?)
    }

    fn row(&mut self, job: &Job, facts: &Facts, out: &mut dyn Write) -> Result<()> {
        let mut value = json!({ "type": document::kind(job.row.kind) });
        document::name(&mut value, "path", &job.path);
        document::merge(&mut value, json!({ "inode": self.scene.forest.own_number(job.row.node) }));
        if let Ok(attributes) = &facts.attributes {
            document::merge(&mut value, document::attributes(attributes));
        }
        if let Some(target) = &facts.target {
            document::name(&mut value, "target", target);
        }
        for (algorithm, digest) in self.scene.algorithms.iter().zip(facts.contents.iter().flat_map(|found| &found.1)) {
            document::merge(&mut value, json!({ algorithm.name(): digest }));
        }
        if let Some(error) = &facts.error {
            document::merge(&mut value, json!({ "error": error }));
        }
        let comma = if std::mem::take(&mut self.first) { "" } else { "," };
        Ok(write!(out, "{comma}\n{}", imgfs::text::tamed_json(&value.to_string()))?)
    }

    fn end(&mut self, out: &mut dyn Write) -> Result<()> {
        Ok(writeln!(out, "\n]}}")?)
    }
}
