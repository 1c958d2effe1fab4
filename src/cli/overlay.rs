//! `imgfs overlay`: what an overlay is, and whether it is sound.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use imgfs::device::overlay::{self, Binding, Hash, Info};
use imgfs::digest::hex;
use imgfs::text::{printable, tamed};
use serde_json::json;

use super::options::{self, about_overlay};
use super::sandbox::{SafetyArgs, Sandbox};
use super::{Outcome, document};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Size, base, and what the overlay remembers of its base
    Info {
        #[command(flatten)]
        safety: SafetyArgs,
        /// Facts for a program: one object, shape "imgfs-overlay"
        #[arg(long)]
        json: bool,
        /// The overlay
        overlay: PathBuf,
    },
    /// Look through its tables; exit status 1 when something is wrong
    Check {
        #[command(flatten)]
        safety: SafetyArgs,
        /// One object, shape "imgfs-overlay-check"
        #[arg(long)]
        json: bool,
        /// The overlay
        overlay: PathBuf,
    },
}

pub fn run(args: &Args) -> Result<Outcome> {
    match &args.command {
        Command::Info { safety, json, overlay } => {
            confine(safety, overlay)?;
            info(&overlay::info(overlay).map_err(|error| about_overlay(error, overlay))?, *json)
        }
        Command::Check { safety, json, overlay } => {
            confine(safety, overlay)?;
            check(&overlay::check(overlay).map_err(|error| about_overlay(error, overlay))?, *json)
        }
    }
}

fn confine(safety: &SafetyArgs, overlay: &Path) -> Result<()> {
    options::is_no_image(overlay)?;
    let mut sandbox = Sandbox::new(safety);
    sandbox.image(overlay);
    sandbox.enter()
}

fn info(info: &Info, as_json: bool) -> Result<Outcome> {
    let mut out = std::io::stdout().lock();
    let changed = info.data_clusters.saturating_add(info.zero_clusters).saturating_mul(info.cluster_size);
    if as_json {
        let mut value = json!({
            "disk_size": info.disk_size,
            "cluster_size": info.cluster_size,
            "file_size": info.file_size,
            "changed_bytes": changed,
            "base_format": info.base.qemu_format,
            "binding": info.base.binding.as_ref().map(describe),
        });
        document::name(&mut value, "base", info.base.path.as_os_str().as_encoded_bytes());
        drop(out);
        document::write("imgfs-overlay", value)?;
        return Ok(Outcome::Complete);
    }
    writeln!(out, "disk of {} bytes, clusters of {} bytes", info.disk_size, info.cluster_size)?;
    writeln!(out, "changed: at most {changed} bytes; the file has {} bytes", info.file_size)?;
    let base = printable(info.base.path.as_os_str().as_encoded_bytes());
    writeln!(out, "base: {base} ({})", tamed(info.base.qemu_format.as_deref().unwrap_or("format not named")))?;
    match &info.base.binding {
        None => writeln!(out, "not bound to its base: another tool made it")?,
        Some(binding) => {
            writeln!(
                out,
                "bound to a {} image of {} bytes, by imgfs {}",
                tamed(&binding.format),
                binding.file_size,
                tamed(&binding.version)
            )?;
            writeln!(out, "made: {}", time(binding.created))?;
            writeln!(out, "samples of the base: SHA-256 {}", hexadecimal(&binding.samples))?;
            if let Some(hash) = binding.full_hash() {
                writeln!(out, "the whole base: SHA-256 {}", hexadecimal(&hash))?;
            }
            writeln!(out, "state: {:?}", binding.state)?;
        }
    }
    Ok(Outcome::Complete)
}

fn describe(binding: &Binding) -> serde_json::Value {
    json!({
        "format": binding.format,
        "file_size": binding.file_size,
        "disk_size": binding.disk_size,
        "sector_size": binding.sector_size,
        "modified_ns": binding.mtime,
        "created": binding.created,
        "samples_sha256": hexadecimal(&binding.samples),
        "sha256": binding.full_hash().map(|hash| hexadecimal(&hash)),
        "state": format!("{:?}", binding.state),
        "version": binding.version,
    })
}

fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

fn hexadecimal(hash: &Hash) -> String {
    hex(hash)
}

fn check(report: &overlay::Report, as_json: bool) -> Result<Outcome> {
    let outcome = if report.error_count > 0 { Outcome::Partial } else { Outcome::Complete };
    if as_json {
        let value = json!({
            "errors": report.errors,
            "error_count": report.error_count,
            "leaked_clusters": report.leaks,
            "data_clusters": report.data_clusters,
            "zero_clusters": report.zero_clusters,
        });
        document::write("imgfs-overlay-check", value)?;
        return Ok(outcome);
    }
    let mut out = std::io::stdout().lock();
    for error in &report.errors {
        writeln!(out, "error: {}", tamed(error))?;
    }
    let (data, zero) = (report.data_clusters, report.zero_clusters);
    writeln!(
        out,
        "{} errors, {} clusters leaked; {data} clusters of data, {zero} of zeros",
        report.error_count, report.leaks
    )?;
    Ok(outcome)
}
