//! Folders of Clonezilla: the partition table of a disk, and an image of each of its partitions.
//!
//! Specification: Clonezilla 5.3, ocs-functions (names of the files); sfdisk(8), "sfdisk -d".
//!
//! ```text
//!   disk, parts          names of the disks, of the partitions
//!   sda-pt.sf            start and size of each partition; sda-pt.parted: size of the disk
//!   sda-mbr, sda-gpt-1st, sda-gpt-2nd, sda2-ebr, sda-hidden-data-after-mbr       sectors as they were
//!   sda1.ext4-ptcl-img.gz.aa, .ab ...        partclone, packed, in pieces;  sda3.dd-img.aa: all bytes
//! ```
//!
//! Supported: images of partclone, ntfsclone and dd, plain or packed with gz, zst, xz or bz2, in pieces or not; GPT and
//! MBR with logical partitions (extended boot records past the first were not saved, and are made anew).
//! Swap reads as zeros; a partition that was not saved, or whose image cannot be opened, is an error
//! where it is read.
//! Not supported: images of partimage and of logical volumes; lzo, lz4, lrzip and lzip.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bad::{BadRange, Damaged};
use super::{Companions, ContainerFormat, Opened, Options, zeros};
use crate::device::concat::Concat;
use crate::device::memory::Memory;
use crate::device::window::Window;
use crate::device::{BlockDevice, Device, read_array, read_vec};
use crate::error::{Error, Result};
use crate::text::printable;

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "clonezilla", snapshots: false, probe, open };

/// The files by which such a folder is known and opened.
pub(super) const NAMES: [&str; 2] = ["disk", "parts"];
/// A list of partitions is a page.
const MAX_LEN: u64 = 1 << 20;
const MAX_PARTITIONS: usize = 256;
const MAX_DISKS: usize = 64;
/// The boot code of an MBR, before its four rows.
const BOOT_CODE: usize = 446;
/// Sectors of a GPT at the end of a disk: the rows and the header.
const SECOND_GPT: u64 = 33;

fn probe(_: &dyn BlockDevice, companions: &dyn Companions) -> Result<bool> {
    let named = NAMES.iter().any(|name| companions.own_name() == *name);
    Ok(named && !disks(&companions.siblings()?).is_empty())
}

/// Names of the disks that have a table in the folder.
fn disks(siblings: &[PathBuf]) -> Vec<String> {
    let names = siblings.iter().filter_map(|name| name.to_str()?.strip_suffix("-pt.sf"));
    let mut names: Vec<String> = names.filter(|name| !name.is_empty()).map(str::to_owned).take(MAX_DISKS).collect();
    names.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    names
}

fn open(_: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let siblings = companions.siblings()?;
    let disks = disks(&siblings);
    let (name, choice) = super::choose(FORMAT.name, &disks, options)?;
    let folder = Folder { companions, siblings: &siblings, options };
    let table = Table::parse(&folder.text(&format!("{name}-pt.sf"))?)?;
    let mut opened = Opened::new(FORMAT.name, zeros(0));
    opened.facts.extend(choice);
    opened.add("disk", format!("{name}, {} partitions", table.rows.len()));
    opened.disk = folder.disk(name, &table, &mut opened)?;
    opened.facts.insert(0, ("virtual size", format!("{} bytes", opened.disk.size())));
    Ok(opened)
}

/// What stands in the folder.
struct Folder<'a> {
    companions: &'a dyn Companions,
    siblings: &'a [PathBuf],
    options: &'a Options,
}

impl Folder<'_> {
    fn has(&self, name: &str) -> bool {
        self.siblings.iter().any(|sibling| sibling.as_os_str() == name)
    }

    fn text(&self, name: &str) -> Result<String> {
        let file = self.companions.open(Path::new(name))?;
        let len = usize::try_from(file.size().min(MAX_LEN)).map_err(|_| Error::Invalid)?;
        Ok(String::from_utf8_lossy(&read_vec(file.as_ref(), 0, len)?).into_owned())
    }

    /// The parts of the disk, at most so many bytes of each, where the files are there.
    fn sectors(&self, name: &str, at: u64, most: u64, spans: &mut Spans) -> Result<bool> {
        if !self.has(name) {
            return Ok(false);
        }
        let file = self.companions.open(Path::new(name))?;
        let len = file.size().min(most);
        spans.add(at, Arc::new(Window::new(file, 0, len)?));
        Ok(true)
    }

    fn disk(&self, name: &str, table: &Table, opened: &mut Opened) -> Result<Device> {
        let unit = table.sector_size;
        let size = self.size(name, table)?;
        let mut spans = Spans::default();
        let mut lost = Vec::new();
        for row in &table.rows {
            let Some(data) = self.partition(row, opened) else {
                lost.push(BadRange { offset: row.start, len: row.len });
                continue;
            };
            let len = data.size().min(row.len);
            spans.add(row.start, Arc::new(Window::new(data, 0, len)?));
        }
        let gpt = self.sectors(&format!("{name}-gpt-1st"), 0, 34u64.saturating_mul(unit), &mut spans)?;
        if table.gpt && !gpt {
            return Err(Error::unsupported(FORMAT.name, format!("a GPT disk without {name}-gpt-1st")));
        }
        if let Some(at) = size.checked_sub(SECOND_GPT.saturating_mul(unit)).filter(|_| table.gpt) {
            self.sectors(&format!("{name}-gpt-2nd"), at, size.saturating_sub(at), &mut spans)?;
        }
        if !gpt && !self.sectors(&format!("{name}-mbr"), 0, unit, &mut spans)? {
            spans.add(0, Arc::new(Memory::new(table.mbr(), 512)));
            opened.notes.push("the boot record was not saved: it is made anew from the table".to_owned());
        }
        if !gpt {
            self.logical(table, &mut spans, opened)?;
            self.sectors(&format!("{name}-hidden-data-after-mbr"), unit, size, &mut spans)?;
        }
        let whole = spans.into_device(size)?;
        let zero = self.options.bad_as_zeros;
        Ok(if lost.is_empty() {
            whole
        } else {
            Arc::new(Damaged::new(whole, lost, "Clonezilla's image has no such data", zero))
        })
    }

    /// Size of the disk: as parted said it, or as far as the table reaches.
    fn size(&self, name: &str, table: &Table) -> Result<u64> {
        let end = table.rows.iter().map(|row| row.start.saturating_add(row.len)).max().unwrap_or(0).max(table.end);
        let parted = format!("{name}-pt.parted");
        if !self.has(&parted) {
            return Ok(end);
        }
        let text = self.text(&parted)?;
        let line = text.lines().find(|line| line.starts_with("Disk /") || line.starts_with("Disk "));
        let sectors = line.and_then(|line| line.rsplit_once(": ")?.1.trim().strip_suffix('s')?.parse::<u64>().ok());
        Ok(sectors.and_then(|sectors| sectors.checked_mul(table.sector_size)).unwrap_or(0).max(end))
    }

    /// The bytes of a partition; `None` where they are not to be had, which is said.
    fn partition(&self, row: &Row, opened: &mut Opened) -> Option<Device> {
        if row.extended {
            return Some(zeros(0));
        }
        let shown = printable(row.name.as_bytes());
        let image = match self.image(&row.name) {
            Some(image) => image,
            None if self.has(&format!("swappt-{}.info", row.name)) => {
                opened.add("partition", format!("{shown}: swap, which reads as zeros"));
                return Some(zeros(row.len));
            }
            None => {
                opened.notes.push(format!("{shown} was not saved: reading it is an error"));
                return None;
            }
        };
        match self.open_image(image) {
            Ok(inner) => {
                let format = inner.fact("file system").map_or(inner.format, |name| name);
                opened.add(
                    "partition",
                    format!("{shown}: {} ({format}, {} bytes)", printable(image.as_bytes()), inner.disk.size()),
                );
                opened.notes.extend(inner.notes.iter().map(|note| format!("{shown}: {note}")));
                if inner.disk.size() > row.len {
                    opened.notes.push(format!("{shown}: the image is longer than the partition"));
                }
                Some(inner.disk)
            }
            Err(error) => {
                opened.notes.push(format!("{shown} cannot be read: {error}"));
                None
            }
        }
    }

    /// The image of a partition, or its first piece: the first name in order.
    fn image(&self, name: &str) -> Option<&str> {
        let names = self.siblings.iter().filter_map(|sibling| sibling.to_str());
        let images = names.filter(|found| {
            let rest = found.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
            rest.is_some_and(|rest| {
                let image = ["-ptcl-img", "dd-img", "ntfs-img"].iter().any(|mark| rest.contains(mark));
                (image && !rest.ends_with(".info")) || rest == "000" || rest == "aa"
            })
        });
        images.min()
    }

    fn open_image(&self, name: &str) -> Result<Opened> {
        let packed = name.split("-img.").nth(1).and_then(|rest| rest.split('.').next()).unwrap_or("nothing");
        let unknown = matches!(packed, "lzo" | "lz4" | "lzma" | "lz" | "lzip" | "lrz" | "lrzip");
        let opened = match name.rsplit_once("-img").or_else(|| name.rsplit_once('.')) {
            Some((stem, _)) if ![".ntfs", "ptcl", ".dd"].iter().any(|kind| stem.ends_with(kind)) => {
                return Err(Error::unsupported(FORMAT.name, "an image of partimage"));
            }
            _ => match self.companions.open_disk(Path::new(name), None) {
                // Refused by its first bytes.
                Err(Error::Unsupported { .. }) if unknown => None,
                opened => Some(opened?),
            },
        };
        // What partclone.dd writes is the partition as it is, in spite of its name.
        let expected = match name {
            name if name.contains(".dd-ptcl-img") => None,
            name if name.contains("-ptcl-img") => Some("partclone"),
            name if name.contains(".ntfs-img") => Some("ntfsclone"),
            _ => None,
        };
        let fits = |opened: &Opened| {
            let other = expected.is_some_and(|expected| opened.format != expected);
            !(other || unknown && matches!(opened.format, "raw" | "split"))
        };
        let what = || format!("an image packed with {}", printable(packed.as_bytes()));
        opened.filter(fits).ok_or_else(|| Error::unsupported(FORMAT.name, what()))
    }

    /// The boot records in front of logical partitions: the first one was saved, the others are made
    /// anew, each in the gap in front of its partition.
    fn logical(&self, table: &Table, spans: &mut Spans, opened: &mut Opened) -> Result<()> {
        let Some(extended) = table.rows.iter().find(|row| row.extended) else { return Ok(()) };
        let end = extended.start.saturating_add(extended.len);
        let inside = |row: &&Row| !row.extended && row.start > extended.start && row.start < end;
        let mut rows: Vec<&Row> = table.rows.iter().filter(inside).collect();
        rows.sort_by_key(|row| row.start);
        let unit = table.sector_size;
        let saved = format!("{}-ebr", extended.name);
        let mut first = None;
        if self.has(&saved) {
            let file = self.companions.open(Path::new(&saved))?;
            first = read_array::<512>(file.as_ref(), 0).ok();
        }
        let number = |record: &[u8; 512], at: usize| {
            record.get(at..at.saturating_add(4)).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
        };
        let next = first.map_or(0, |record| u64::from(number(&record, 470)).saturating_mul(unit));
        let gap = rows.first().map_or(unit, |row| row.start.saturating_sub(extended.start));
        // Where each record stands.
        let mut places = Vec::new();
        let mut free = extended.start;
        for (i, row) in rows.iter().enumerate() {
            let guess = row.start.saturating_sub(gap).max(free);
            places.push(match i {
                0 => extended.start,
                1 if next > 0 => extended.start.saturating_add(next),
                _ => guess,
            });
            free = row.start.saturating_add(row.len);
        }
        for (i, (row, &place)) in rows.iter().zip(&places).enumerate() {
            let record = match (i, &first) {
                (0, Some(record)) => record.to_vec(),
                _ => {
                    let after = i.saturating_add(1);
                    let next = places.get(after).zip(rows.get(after));
                    let next = next.map(|(&at, next)| {
                        let len = next.start.saturating_add(next.len).saturating_sub(at);
                        (5, at.saturating_sub(extended.start), len)
                    });
                    let own = (row.kind, row.start.saturating_sub(place), row.len);
                    boot_record(&[Some(own), next], unit)
                }
            };
            spans.add(place, Arc::new(Memory::new(record, 512)));
        }
        if rows.len() > usize::from(first.is_some()) {
            opened.notes.push("extended boot records that were not saved are made anew from the table".to_owned());
        }
        Ok(())
    }
}

/// A boot record with these rows: type, start and length in bytes.
fn boot_record(rows: &[Option<(u8, u64, u64)>], unit: u64) -> Vec<u8> {
    let mut record = vec![0; 512];
    let sectors = |bytes: u64| u32::try_from(bytes.checked_div(unit).unwrap_or(0)).unwrap_or(u32::MAX).to_le_bytes();
    let fields = record.get_mut(BOOT_CODE..510).unwrap_or_default();
    for (field, row) in fields.as_chunks_mut::<16>().0.iter_mut().zip(rows) {
        let Some((kind, start, len)) = row else { continue };
        let [s0, s1, s2, s3] = sectors(*start);
        let [l0, l1, l2, l3] = sectors(*len);
        // No geometry: 254, 63, 1,023 says that only the numbers of sectors count.
        *field = [0, 254, 255, 255, *kind, 254, 255, 255, s0, s1, s2, s3, l0, l1, l2, l3];
    }
    if let Some(signature) = record.get_mut(510..) {
        signature.copy_from_slice(&[0x55, 0xaa]);
    }
    record
}

/// Pieces of the disk. What is added later does not hide what was there before.
#[derive(Default)]
struct Spans(BTreeMap<u64, Device>);

impl Spans {
    fn add(&mut self, at: u64, device: Device) {
        if device.size() > 0 {
            self.0.entry(at).or_insert(device);
        }
    }

    fn into_device(self, size: u64) -> Result<Device> {
        let mut parts: Vec<Device> = Vec::new();
        let mut end = 0u64;
        let mut spans = self.0.into_iter().peekable();
        while let Some((start, device)) = spans.next() {
            // Rows that overlap: what begins later counts from there.
            let until = spans.peek().map_or(size, |(next, _)| (*next).min(size));
            let Some(gap) = start.checked_sub(end) else { continue };
            let len = device.size().min(until.saturating_sub(start));
            if len == 0 {
                continue;
            }
            parts.push(zeros(gap));
            parts.push(Arc::new(Window::new(device, 0, len)?));
            end = start.saturating_add(len);
        }
        parts.push(zeros(size.saturating_sub(end)));
        Ok(Arc::new(Concat::new(parts, 512)?))
    }
}

/// A partition table as `sfdisk -d` writes it, in bytes.
struct Table {
    gpt: bool,
    sector_size: u64,
    /// Behind the second GPT; 0 where the text does not tell.
    end: u64,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    start: u64,
    len: u64,
    /// Type of an MBR row.
    kind: u8,
    extended: bool,
}

impl Table {
    fn parse(text: &str) -> Result<Self> {
        let corrupt = || Error::corrupt(FORMAT.name, "list of partitions (sfdisk -d)", 0);
        let head = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        let sector_size = head("sector-size").map_or(Some(512), |size| size.parse().ok());
        let sector_size = sector_size.filter(|size| matches!(size, 512 | 4096)).ok_or_else(corrupt)?;
        let gpt = head("label").is_some_and(|label| label.eq_ignore_ascii_case("gpt"));
        let last = head("last-lba").and_then(|last| last.parse::<u64>().ok()).unwrap_or(0);
        let end = match last {
            0 => 0,
            last => last
                .checked_add(SECOND_GPT.saturating_add(1))
                .and_then(|end| end.checked_mul(sector_size))
                .ok_or_else(corrupt)?,
        };
        let mut rows = Vec::new();
        for line in text.lines().filter(|line| line.starts_with("/dev/")) {
            let (name, fields) = line.split_once(" :").ok_or_else(corrupt)?;
            let field = |wanted: &[&str]| {
                let pairs = fields.split(',').filter_map(|pair| pair.split_once('='));
                pairs.map(|(name, value)| (name.trim(), value.trim())).find(|(name, _)| wanted.contains(name))
            };
            let bytes = |name: &str| field(&[name])?.1.parse::<u64>().ok()?.checked_mul(sector_size);
            let (start, len) = bytes("start").zip(bytes("size")).ok_or_else(corrupt)?;
            start.checked_add(len).ok_or_else(corrupt)?;
            if len == 0 {
                continue;
            }
            let kind = field(&["type", "Id"]).and_then(|(_, kind)| u8::from_str_radix(kind, 16).ok()).unwrap_or(0);
            let name = name.trim_start_matches("/dev/").trim().replace('/', "-");
            rows.push(Row { name, start, len, kind, extended: !gpt && matches!(kind, 5 | 0xf | 0x85) });
            if rows.len() > MAX_PARTITIONS {
                return Err(corrupt());
            }
        }
        Ok(Self { gpt, sector_size, end, rows })
    }

    /// The boot record that the rows make: those with the numbers 1 to 4.
    fn mbr(&self) -> Vec<u8> {
        let mut rows = [None; 4];
        for row in &self.rows {
            let digits = row.name.trim_start_matches(|c: char| !c.is_ascii_digit());
            let number = row.name.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or(digits);
            let slot = number.parse::<usize>().ok().and_then(|number| rows.get_mut(number.checked_sub(1)?));
            if let Some(slot) = slot {
                *slot = Some((row.kind, row.start, row.len));
            }
        }
        boot_record(&rows, self.sector_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_new_and_of_old_versions_of_sfdisk_are_read() {
        let new = "label: gpt\nlabel-id: X\ndevice: /dev/sda\nunit: sectors\nfirst-lba: 34\nlast-lba: 20446\n\
                   sector-size: 512\n\n/dev/sda1 : start=        2048, size=        4096, type=0FC63DAF-8483, uuid=1\n";
        let table = Table::parse(new).unwrap();
        assert!(table.gpt && table.end == 20_480 * 512 && table.rows[0].name == "sda1");
        let old = "# partition table of /dev/sda\nunit: sectors\n\n/dev/sda1 : start=       63, size=   401562, Id=83, bootable\n\
                   /dev/sda2 : start=   401625, size=  1000000, Id= 5\n/dev/sda3 : start=        0, size=        0, Id= 0\n";
        let table = Table::parse(old).unwrap();
        let rows: Vec<_> =
            table.rows.iter().map(|row| (row.start / 512, row.len / 512, row.kind, row.extended)).collect();
        assert_eq!(rows, [(63, 401_562, 0x83, false), (401_625, 1_000_000, 5, true)]);
        assert_eq!(table.mbr()[446 + 4], 0x83);
        for bad in [
            "/dev/sda1 start=1",
            "/dev/sda1 : start=1",
            "sector-size: 3\n",
            "/dev/a : start=9999999999999999999, size=1",
        ] {
            assert!(Table::parse(bad).is_err(), "{bad}");
        }
    }
}
