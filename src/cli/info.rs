//! `imgfs info`: what an image is, and how that is known.

use std::ffi::OsString;
use std::io::Write;

use anyhow::Result;
use imgfs::bytes::Evidence;
use imgfs::encryption::Encrypted;
use imgfs::filesystem::{Summary, foreign};
use imgfs::stack::{Image, Part, Tree};
use imgfs::text::{printable, tamed};
use serde_json::{Value, json};

use super::document::{self, merge};
use super::sandbox::Sandbox;
use super::target::{ImageArgs, Target};
use super::{Outcome, options};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// Facts for a program: one object, shape "imgfs-info"
    #[arg(long)]
    json: bool,
    /// What the sector cache did while the image was opened
    #[arg(long)]
    stats: bool,
    /// The image
    #[arg(value_name = "IMAGE")]
    target: OsString,
}

pub fn run(args: &Args) -> Result<Outcome> {
    Sandbox::enter_for(&args.image, [&args.target])?;
    let target = Target::parse(&args.target)?;
    anyhow::ensure!(target.path.is_empty(), "info is about a whole image: leave out the path");
    // It says that a volume is encrypted without opening it; asking would be in the way.
    let image = target.open_with(args.image.parse_to_read(&target.image, false)?)?;
    let overlay = options::beside(&target.image);
    let overlay = overlay.is_file().then_some(overlay);
    let mut out = std::io::stdout().lock();
    if args.json {
        let mut value = describe(&image);
        document::name(&mut value, "image", args.target.as_encoded_bytes());
        if let Some(overlay) = &overlay {
            document::name(&mut value, "overlay", overlay.as_os_str().as_encoded_bytes());
        }
        if args.stats {
            let s = image.cached.statistics();
            merge(&mut value, json!({ "cache": { "hits": s.hits, "misses": s.misses, "bytes": s.weight } }));
        }
        drop(out);
        document::write("imgfs-info", value)?;
    } else {
        print(&image, &printable(args.target.as_encoded_bytes()), &mut out)?;
        if let Some(overlay) = &overlay {
            let name = printable(overlay.as_os_str().as_encoded_bytes());
            writeln!(out, "note: {name} lies beside it: changes that are in there are not shown here")?;
        }
        if args.stats {
            let s = image.cached.statistics();
            writeln!(out, "sector cache: {} hits, {} misses, {} bytes kept", s.hits, s.misses, s.weight)?;
        }
    }
    Ok(Outcome::Complete)
}

fn print(image: &Image, name: &str, out: &mut dyn Write) -> Result<()> {
    let container = &image.container;
    writeln!(out, "{name}: {}, {}", container.format, bytes(image.disk.size()))?;
    for (name, value) in &container.facts {
        writeln!(out, "  {name}: {}", printable(value.as_bytes()))?;
    }
    notes(&container.notes, out)?;
    match &image.scan {
        Ok(None) => {}
        Ok(Some(scan)) => {
            let uuid = scan.table.uuid.as_ref().map_or(String::new(), |uuid| format!(", identifier {}", tamed(uuid)));
            writeln!(out, "{} partition table, {} rows{uuid}", scan.system.to_uppercase(), scan.table.entries.len())?;
            evidence(&scan.table.evidence, out)?;
            notes(&scan.table.notes, out)?;
        }
        Err(error) => writeln!(out, "the partition table cannot be read: {}", tamed(&error.to_string()))?,
    }
    for part in &image.parts {
        print_part(part, out)?;
    }
    Ok(())
}

fn print_part(part: &Part, out: &mut dyn Write) -> Result<()> {
    write!(out, "{}: {}", part.name, bytes(part.device.size()))?;
    if part.offset > 0 {
        write!(out, " from byte {}", part.offset)?;
    }
    if let Some(entry) = &part.entry {
        write!(out, ", type {}", printable(entry.kind.as_bytes()))?;
        if let Some(label) = &entry.label {
            write!(out, " \"{}\"", printable(label.as_bytes()))?;
        }
    }
    if let Some(what) = &part.what {
        write!(out, ", {}", printable(what.as_bytes()))?;
    }
    if part.clipped {
        write!(out, ", clipped: the table says {} bytes", part.entry.as_ref().map_or(0, |entry| entry.len))?;
    }
    writeln!(out)?;
    match &part.tree {
        Tree::Open { summary, .. } => print_summary(summary, out)?,
        Tree::Unknown => match foreign::name(part.device.as_ref()) {
            Some(name) => writeln!(out, "  {name}, which imgfs does not read: only {}.img", part.name)?,
            None => writeln!(out, "  no file system that imgfs knows: only {}.img", part.name)?,
        },
        Tree::Broken(error) => writeln!(out, "  no tree: {}", tamed(&error.to_string()))?,
        Tree::Encrypted(encrypted) => print_encrypted(encrypted, out)?,
        Tree::Structural => {}
    }
    Ok(())
}

fn print_encrypted(encrypted: &Encrypted, out: &mut dyn Write) -> Result<()> {
    write!(out, "  {}, encrypted", tamed(&encrypted.variant))?;
    if let Some(label) = &encrypted.label {
        write!(out, ", label \"{}\"", printable(label.as_bytes()))?;
    }
    if let Some(uuid) = &encrypted.uuid {
        write!(out, ", UUID {}", tamed(uuid))?;
    }
    writeln!(out)?;
    for (name, value) in &encrypted.facts {
        writeln!(out, "  {name}: {}", printable(value.as_bytes()))?;
    }
    notes(&encrypted.notes, out)
}

fn print_summary(summary: &Summary, out: &mut dyn Write) -> Result<()> {
    write!(out, "  {}", tamed(&summary.variant))?;
    if let Some(label) = &summary.label {
        write!(out, ", label \"{}\"", printable(label.as_bytes()))?;
    }
    if let Some(uuid) = &summary.uuid {
        write!(out, ", UUID {}", tamed(uuid))?;
    }
    let unit = u64::from(summary.block_size);
    let used = summary.total_blocks.saturating_sub(summary.free_blocks).saturating_mul(unit);
    writeln!(out, ", {} of {} used, blocks of {unit}", bytes(used), bytes(summary.total_blocks.saturating_mul(unit)))?;
    evidence(&summary.evidence, out)?;
    notes(&summary.notes, out)
}

fn evidence(found: &[Evidence], out: &mut dyn Write) -> Result<()> {
    for found in found {
        writeln!(out, "  byte {}: {} = {}", found.offset, tamed(found.what), hexadecimal(&found.bytes))?;
    }
    Ok(())
}

fn notes(notes: &[String], out: &mut dyn Write) -> Result<()> {
    for note in notes {
        writeln!(out, "  note: {}", printable(note.as_bytes()))?;
    }
    Ok(())
}

fn hexadecimal(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let graphic = bytes.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
    let text = if graphic { format!(" \"{}\"", String::from_utf8_lossy(bytes)) } else { String::new() };
    format!("{}{text}", digits.join(" "))
}

/// A number of bytes, exact, and short where it is large.
fn bytes(count: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, shift)| count >> shift > 0) {
        Some((unit, shift)) => format!("{count} bytes ({:.1} {unit})", count as f64 / (1u64 << shift) as f64),
        None => format!("{count} bytes"),
    }
}

/// Everything that is known of an image, as `--json` shows it.
pub fn describe(image: &Image) -> Value {
    let facts: Vec<Value> =
        image.container.facts.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    let table = match &image.scan {
        Ok(None) => Value::Null,
        Ok(Some(scan)) => json!({
            "type": scan.system,
            "identifier": scan.table.uuid,
            "evidence": scan.table.evidence.iter().map(describe_evidence).collect::<Vec<_>>(),
            "notes": scan.table.notes,
        }),
        Err(error) => json!({ "error": error.to_string() }),
    };
    json!({
        "container": {
            "format": image.container.format,
            "file_size": image.container.file_size,
            "facts": facts,
            "notes": image.container.notes,
        },
        "size": image.disk.size(),
        "sector_size": image.disk.sector_size(),
        "partition_table": table,
        "main": image.main_part().map(|part| &part.name),
        "parts": image.parts.iter().map(describe_part).collect::<Vec<_>>(),
    })
}

fn describe_evidence(evidence: &Evidence) -> Value {
    let digits: String = evidence.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({ "offset": evidence.offset, "what": evidence.what, "bytes": digits })
}

fn describe_part(part: &Part) -> Value {
    let mut value = json!({ "name": part.name, "offset": part.offset, "size": part.device.size() });
    if let Some(entry) = &part.entry {
        merge(
            &mut value,
            json!({ "entry": {
                "slot": entry.slot, "start": entry.start, "size": entry.len, "type": entry.kind,
                "label": entry.label, "uuid": entry.uuid, "clipped": part.clipped,
            }}),
        );
    }
    if let Some(what) = &part.what {
        merge(&mut value, json!({ "what": what }));
    }
    let tree = match &part.tree {
        Tree::Open { format, summary, .. } => json!({
            "format": format,
            "variant": summary.variant,
            "label": summary.label,
            "uuid": summary.uuid,
            "block_size": summary.block_size,
            "total_blocks": summary.total_blocks,
            "free_blocks": summary.free_blocks,
            "total_nodes": summary.total_nodes,
            "free_nodes": summary.free_nodes,
            "evidence": summary.evidence.iter().map(describe_evidence).collect::<Vec<_>>(),
            "notes": summary.notes,
        }),
        Tree::Broken(error) => json!({ "error": error.to_string() }),
        Tree::Encrypted(_) | Tree::Unknown | Tree::Structural => Value::Null,
    };
    merge(&mut value, json!({ "tree": tree }));
    if let Tree::Encrypted(encrypted) = &part.tree {
        let facts = encrypted.facts.iter().map(|(name, value)| json!({ "name": name, "value": value }));
        merge(
            &mut value,
            json!({ "encryption": {
                "format": encrypted.format, "variant": encrypted.variant, "label": encrypted.label,
                "uuid": encrypted.uuid, "facts": facts.collect::<Vec<_>>(), "notes": encrypted.notes,
            }}),
        );
    }
    value
}
