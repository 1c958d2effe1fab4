//! Digital Forensics XML 1.1 as fiwalk writes it, for its consumers: a `volume` for each tree, a
//! `fileobject` for each node, in the order of elements that the schema fixes. Only what is allocated
//! is listed, and it says so.
//!
//! Times are UTC with as many digits as the medium has; `prec` is there where that is coarser than a
//! second. `fs_offset` counts from the volume's first byte, `img_offset` from the disk's.

use std::io::Write;

use anyhow::Result;
use imgfs::filesystem::{Attributes, FileSystem, Kind, Timestamp};
use imgfs::stack::{Part, Tree};
use imgfs::text::steers;

use super::body::letter;
use super::{Facts, Job, Scene, Writer};

/// Runs of one file that are listed; a file in more pieces ends with a comment.
const MAX_RUNS: u32 = 1_000_000;

pub(super) struct Dfxml<'a> {
    scene: &'a Scene<'a>,
    /// The volume whose element is open.
    volume: Option<&'a Part>,
    volumes: u32,
    id: u64,
}

impl<'a> Dfxml<'a> {
    pub(super) fn new(scene: &'a Scene<'a>) -> Self {
        Self { scene, volume: None, volumes: 0, id: 0 }
    }

    /// Opens the element of the volume that a path is in, and closes the one before.
    fn enter(&mut self, path: &[u8], out: &mut dyn Write) -> Result<()> {
        let name = path.split(|&byte| byte == b'/').next().unwrap_or_default();
        if self.volume.is_some_and(|part| part.folder.as_bytes() == name) {
            return Ok(());
        }
        self.leave(out)?;
        let part = std::str::from_utf8(name).ok().and_then(|name| self.scene.image.part(name));
        let Some(part) = part else {
            return Ok(());
        };
        self.volume = Some(part);
        self.volumes += 1;
        writeln!(out, "  <volume offset='{}'>", part.offset)?;
        if part.offset > 0 {
            writeln!(out, "    <partition_offset>{}</partition_offset>", part.offset)?;
        }
        writeln!(out, "    <sector_size>{}</sector_size>", part.device.sector_size())?;
        if let Tree::Open { format, summary, .. } = &part.tree {
            writeln!(out, "    <block_size>{}</block_size>", summary.block_size.max(1))?;
            if let Some((number, name)) = file_system(format, &summary.variant) {
                writeln!(out, "    <ftype>{number}</ftype>")?;
                writeln!(out, "    <ftype_str>{name}</ftype_str>")?;
            } else {
                writeln!(out, "    <ftype_str>{}</ftype_str>", text(summary.variant.as_bytes()))?;
            }
        }
        Ok(writeln!(out, "    <allocated_only>1</allocated_only>")?)
    }

    fn leave(&mut self, out: &mut dyn Write) -> Result<()> {
        if self.volume.take().is_some() {
            writeln!(out, "  </volume>")?;
        }
        Ok(())
    }

    fn runs(&self, job: &Job, size: u64, out: &mut dyn Write) -> Result<()> {
        let mut run: Option<ByteRun> = None;
        let mut offset = 0u64;
        let mut count = 0;
        writeln!(out, "      <byte_runs>")?;
        while offset < size && count < MAX_RUNS {
            let forest = self.scene.forest;
            let Ok(Some(found)) = forest.place(job.row.node, offset) else { break };
            let len = found.len.min(size - offset).max(1);
            let place = match found.at {
                Some(at) => Bytes::At(at),
                None if forest.extent(job.row.node, offset).is_ok_and(|extent| !extent.stored) => Bytes::Hole,
                None => Bytes::Resident,
            };
            match &mut run {
                // Blocks of block numbers cut runs that are one on the disk.
                Some(run) if run.continues(place) => run.len += len,
                _ => {
                    self.run(run.replace(ByteRun { offset, place, len }), out)?;
                    count += 1;
                }
            }
            offset += len;
        }
        self.run(run, out)?;
        Ok(writeln!(out, "      </byte_runs>")?)
    }

    fn run(&self, run: Option<ByteRun>, out: &mut dyn Write) -> Result<()> {
        let Some(ByteRun { offset, place, len }) = run else { return Ok(()) };
        let attributes = match place {
            Bytes::At(at) => {
                // What was encrypted is nowhere on the disk as it is here.
                let part = self.volume.filter(|part| part.is_on_disk());
                let on_disk = part.and_then(|part| part.offset.checked_add(at));
                let on_disk = on_disk.map_or(String::new(), |at| format!(" img_offset='{at}'"));
                format!("fs_offset='{at}'{on_disk} len='{len}'")
            }
            Bytes::Hole => format!("fill='0' len='{len}'"),
            Bytes::Resident => format!("len='{len}' type='resident'"),
        };
        Ok(writeln!(out, "       <byte_run file_offset='{offset}' {attributes}/>")?)
    }
}

/// Where bytes of a file are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bytes {
    /// From this byte of the volume on.
    At(u64),
    Hole,
    /// Within metadata, as inline data of ext are.
    Resident,
}

/// Bytes of a file that are all in one place.
struct ByteRun {
    offset: u64,
    place: Bytes,
    len: u64,
}

impl ByteRun {
    fn continues(&self, place: Bytes) -> bool {
        match (self.place, place) {
            (Bytes::At(at), Bytes::At(next)) => at.checked_add(self.len) == Some(next),
            (here, next) => here == next,
        }
    }
}

impl Writer for Dfxml<'_> {
    fn start(&mut self, out: &mut dyn Write) -> Result<()> {
        let line: Vec<String> = std::env::args_os().map(|word| text(word.as_encoded_bytes())).collect();
        write!(
            out,
            "<?xml version='1.0' encoding='UTF-8'?>\n\
             <dfxml\n  \
             xmlns='http://www.forensicswiki.org/wiki/Category:Digital_Forensics_XML'\n  \
             xmlns:xsi='http://www.w3.org/2001/XMLSchema-instance'\n  \
             xmlns:dc='http://purl.org/dc/elements/1.1/'\n  \
             version='1.1.0'>\n  \
             <metadata>\n    <dc:type>Disk Image</dc:type>\n  </metadata>\n  \
             <creator version='1.0'>\n    <program>imgfs</program>\n    <version>{}</version>\n    \
             <execution_environment>\n      <command_line>{}</command_line>\n      \
             <start_time>{}</start_time>\n    </execution_environment>\n  </creator>\n  \
             <source>\n    <image_filename>{}</image_filename>\n  </source>\n",
            env!("CARGO_PKG_VERSION"),
            line.join(" "),
            stamp(Timestamp { nanoseconds: 0, ..Timestamp::now() }).unwrap_or_default(),
            text(self.scene.name),
        )?;
        for part in self.scene.treeless {
            writeln!(out, "  <!-- unreadable: {}: {} -->", part.name, comment(part.reason.as_bytes()))?;
        }
        Ok(())
    }

    fn row(&mut self, job: &Job, facts: &Facts, out: &mut dyn Write) -> Result<()> {
        self.enter(&job.path, out)?;
        if let Some(error) = &facts.error {
            writeln!(out, "    <!-- unreadable: {} -->", comment(error.as_bytes()))?;
        }
        let path = job.path.iter().position(|&byte| byte == b'/').and_then(|slash| job.path.get(slash + 1..));
        let (Ok(attributes), Some(path)) = (&facts.attributes, path) else { return Ok(()) };
        self.id += 1;
        let forest = self.scene.forest;
        let parent = forest.own_number(job.parent);
        writeln!(
            out,
            "    <fileobject>\n      <parent_object>\n        <inode>{parent}</inode>\n      </parent_object>"
        )?;
        writeln!(out, "      <filename>{}</filename>", text(path))?;
        writeln!(out, "      <partition>{}</partition>\n      <id>{}</id>", self.volumes, self.id)?;
        writeln!(out, "      <name_type>{}</name_type>", letter(attributes.kind))?;
        writeln!(out, "      <filesize>{}</filesize>", attributes.size)?;
        writeln!(out, "      <alloc>1</alloc>\n      <used>1</used>")?;
        writeln!(out, "      <inode>{}</inode>", forest.own_number(job.row.node))?;
        let format = self.volume.and_then(|part| match &part.tree {
            Tree::Open { format, .. } => Some(*format),
            _ => None,
        });
        recorded(attributes, format.unwrap_or_default(), out)?;
        if let Some(target) = &facts.target {
            writeln!(out, "      <link_target>{}</link_target>", text(target))?;
        }
        if attributes.kind == Kind::File && attributes.size > 0 {
            self.runs(job, attributes.size, out)?;
        }
        for (algorithm, digest) in self.scene.algorithms.iter().zip(facts.contents.iter().flat_map(|found| &found.1)) {
            writeln!(out, "      <hashdigest type='{}'>{digest}</hashdigest>", algorithm.name())?;
        }
        Ok(writeln!(out, "    </fileobject>")?)
    }

    fn end(&mut self, out: &mut dyn Write) -> Result<()> {
        self.leave(out)?;
        Ok(writeln!(out, "</dfxml>")?)
    }
}

/// Permissions, owners and times.
fn recorded(attributes: &Attributes, format: &str, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "      <meta_type>{}</meta_type>", meta_type(attributes.kind))?;
    let unsigned = [
        ("mode", attributes.mode.map(u32::from)),
        ("nlink", attributes.links),
        ("uid", attributes.uid),
        ("gid", attributes.gid),
    ];
    for (name, value) in unsigned {
        if let Some(value) = value {
            writeln!(out, "      <{name}>{value}</{name}>")?;
        }
    }
    // FAT counts two seconds, and whole days for the last read; creation has hundredths. exFAT has hundredths but
    // for the last read.
    let (modified, accessed) = match format {
        "fat" => (" prec='2'", " prec='86400'"),
        "exfat" => ("", " prec='2'"),
        _ => ("", ""),
    };
    let times = [
        ("mtime", attributes.modified, modified),
        ("ctime", attributes.changed, ""),
        ("atime", attributes.accessed, accessed),
        ("crtime", attributes.created, ""),
    ];
    for (name, time, precision) in times {
        if let Some(time) = time.and_then(stamp) {
            writeln!(out, "      <{name}{precision}>{time}</{name}>")?;
        }
    }
    Ok(())
}

/// The number and the name that the Sleuth Kit has for a file system.
fn file_system(format: &str, variant: &str) -> Option<(u32, &'static str)> {
    Some(match (format, variant) {
        ("fat", "FAT12") => (2, "fat12"),
        ("fat", "FAT16") => (4, "fat16"),
        ("fat", "FAT32") => (8, "fat32"),
        ("exfat", _) => (0x0a, "exfat"),
        ("ext", "ext2") => (0x80, "ext2"),
        ("ext", "ext3") => (0x100, "ext3"),
        ("ext", "ext4") => (0x2000, "ext4"),
        ("iso9660", _) => (0x800, "iso9660"),
        _ => return None,
    })
}

/// `TSK_FS_META_TYPE_ENUM`.
fn meta_type(kind: Kind) -> u32 {
    match kind {
        Kind::File => 1,
        Kind::Directory => 2,
        Kind::Fifo => 3,
        Kind::CharDevice => 4,
        Kind::BlockDevice => 5,
        Kind::Symlink => 6,
        Kind::Socket => 8,
    }
}

/// `xs:dateTime`, UTC; a fraction only where there is one. It has no year 0, and none before it here.
fn stamp(time: Timestamp) -> Option<String> {
    let nanoseconds = i32::try_from(time.nanoseconds).unwrap_or(0);
    let text = jiff::Timestamp::new(time.seconds, nanoseconds).ok()?.to_string();
    (!text.starts_with('-') && !text.starts_with("0000")).then_some(text)
}

/// As [`text`], within a comment, which two dashes would end.
fn comment(bytes: &[u8]) -> String {
    // The second time for what the first leaves of an odd number.
    text(bytes).replace("--", "- -").replace("--", "- -")
}

/// Characters of XML; what it cannot hold at all appears as an escape.
fn text(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '&' => out.push_str("&amp;"),
                '<' => out.push_str("&lt;"),
                '>' => out.push_str("&gt;"),
                c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.extend(c.escape_unicode()),
                // The same character to a parser, and harmless to a terminal.
                c if steers(c) => out.push_str(&format!("&#x{:x};", u32::from(c))),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_xml_cannot_hold_is_left_out() {
        let at = |seconds| stamp(Timestamp { seconds, nanoseconds: 0 });
        assert_eq!(at(0).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(at(-62_135_596_800).as_deref(), Some("0001-01-01T00:00:00Z"));
        assert_eq!((at(-62_135_596_801), at(-70_000_000_000), at(i64::MAX)), (None, None, None));
    }

    #[test]
    fn what_turns_a_line_round_is_a_reference_to_the_same_character() {
        assert_eq!(text("a\u{202e}\u{9b}\u{e9}".as_bytes()), "a&#x202e;\\u{9b}\u{e9}");
    }

    #[test]
    fn a_comment_never_holds_two_dashes() {
        for count in 0..9 {
            assert!(!comment("-".repeat(count).as_bytes()).contains("--"), "{count}");
        }
    }
}
