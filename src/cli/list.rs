//! `imgfs list`: what is mounted, by whom, and where its changes go.

use std::io::Write;

use anyhow::Result;
use imgfs::text::printable;
use serde_json::{Value, json};

use super::{Outcome, document, runtime};

#[derive(clap::Args)]
pub struct Args {
    /// One object, shape "imgfs-list"
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let mounts: Vec<_> = runtime::mounts()?.into_iter().filter(runtime::Mounted::is_ours).collect();
    let rows: Vec<(Value, Value)> = mounts
        .iter()
        .map(|mounted| {
            let said = runtime::said(mounted).unwrap_or(Value::Null);
            let get = |key: &str| said.get(key).cloned().unwrap_or(Value::Null);
            let mut row = json!({
                "writable": mounted.writable,
                "dead": is_dead(mounted, &said),
                "uid": mounted.uid,
                "user": mounted.uid.and_then(super::provenance::user_name),
                "overlay": get("overlay"),
                "process": get("pid"),
            });
            if let Some(bytes) = said.get("overlay_hex") {
                document::merge(&mut row, json!({ "overlay_hex": bytes }));
            }
            document::name(&mut row, "mountpoint", mounted.mountpoint.as_os_str().as_encoded_bytes());
            document::name(&mut row, "image", mounted.source.as_os_str().as_encoded_bytes());
            (row, get("overlay"))
        })
        .collect();
    if args.json {
        let rows: Vec<&Value> = rows.iter().map(|(row, _)| row).collect();
        document::write("imgfs-list", json!({ "mounts": rows }))?;
        return Ok(Outcome::Complete);
    }
    let mut out = std::io::stdout().lock();
    for (mounted, (row, overlay)) in mounts.iter().zip(&rows) {
        let shown = |path: &std::path::Path| printable(path.as_os_str().as_encoded_bytes());
        let dead = row.get("dead") == Some(&Value::Bool(true));
        let how = match (mounted.writable, overlay.as_str()) {
            _ if dead => format!("dead: its daemon is gone; `imgfs umount {}` clears it", shown(&mounted.mountpoint)),
            (false, _) => "read-only".to_owned(),
            (true, Some(overlay)) => format!("changes go to {}", printable(overlay.as_bytes())),
            (true, None) => "read and write".to_owned(),
        };
        let user = row
            .get("user")
            .and_then(Value::as_str)
            .map_or_else(|| mounted.uid.map_or("?".to_owned(), |uid| uid.to_string()), str::to_owned);
        writeln!(out, "{} on {}, by {user}, {how}", shown(&mounted.source), shown(&mounted.mountpoint))?;
    }
    Ok(Outcome::Complete)
}

/// A daemon that says something about itself lives. Others may be another user's, or of another version.
fn is_dead(mounted: &runtime::Mounted, said: &Value) -> bool {
    said.is_null() && mounted.is_dead()
}
