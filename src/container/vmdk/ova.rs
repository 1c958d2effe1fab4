//! OVA: a tar of an OVF description and the disks of a virtual machine, mostly stream-optimized
//! VMDKs. One disk is shown, the first unless told otherwise; it is read in place.
//!
//! Specification: DMTF DSP0243, "Open Virtualization Format", section 5.3.
//!
//! ```text
//!   header, machine.ovf | header, machine.mf? | header, disk1.vmdk | header, disk2.vmdk | zeros
//!   x: records for the next header | L: its long name        in front of any header, with a body of their own
//! ```
//!
//! Supported: tars of POSIX 1988 and 2001 (pax) and of GNU tar; files with holes as bsdtar writes them
//! (GNU.sparse 1.0); disks packed with gzip (`ovf:compression`).
//! Not supported: older forms of files with holes.

use std::sync::Arc;

use super::SECTOR;
use crate::bytes::Record;
use crate::container::{Companions, ContainerFormat, Opened, Options, choose, ddrescue, open_within, split};
use crate::device::mapped::{Mapped, RunList};
use crate::device::window::Window;
use crate::device::{BlockDevice, Device, read_array, read_vec};
use crate::error::{Error, Result};
use crate::text::printable;

pub(in crate::container) const FORMAT: ContainerFormat = ContainerFormat { name: "ova", snapshots: false, probe, open };

/// More files than any machine has.
const MAX_MEMBERS: usize = 1000;
/// Headers in front of the first file: records, long names, folders.
const MAX_LEADING: usize = 16;
/// Records and long names take less.
const MAX_RECORDS: u64 = 1 << 20;
const DISKS: [&[u8]; 6] = [b".vmdk", b".vhd", b".vhdx", b".qcow2", b".img", b".raw"];

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    match (Members { device, at: 0, left: MAX_LEADING }).next() {
        Ok(member) => Ok(member.is_some_and(|member| ends_with(&member.name, b".ovf"))),
        Err(Error::Corrupt { .. } | Error::PastEnd { .. } | Error::Unsupported { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_disk(name: &[u8]) -> bool {
    let name =
        if ends_with(name, b".gz") { name.get(..name.len().saturating_sub(3)).unwrap_or_default() } else { name };
    DISKS.iter().any(|suffix| ends_with(name, suffix))
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let mut members = Members { device: file.as_ref(), at: 0, left: MAX_MEMBERS };
    let mut disks = Vec::new();
    while let Some(member) = members.next()? {
        if is_disk(&member.name) {
            disks.push(member);
        }
    }
    if disks.is_empty() {
        return Err(Error::unsupported(FORMAT.name, "an archive without a disk in it"));
    }
    let (disk, choice) = choose(FORMAT.name, &disks, options)?;
    let cut = |_| Error::corrupt(FORMAT.name, "disk (the file is cut off)", disk.start);
    let mut window: Device = Arc::new(Window::new(file.clone(), disk.start, disk.size).map_err(cut)?);
    if let Some(size) = disk.unfolded {
        window =
            unfold(window, size).ok_or_else(|| Error::corrupt(FORMAT.name, "map of a file's holes", disk.start))?;
    }
    // Its companions would be in the archive, not beside it, and archives in archives are not OVAs.
    let outer = [FORMAT.name, split::FORMAT.name, ddrescue::FORMAT.name];
    let mut opened = open_within(&outer, window, companions, options)?;
    opened.facts.insert(0, ("archive", format!("OVA, {} bytes, the disk {}", file.size(), printable(&disk.name))));
    opened.facts.extend(choice);
    for other in disks.iter().filter(|other| other.start != disk.start) {
        opened.notes.push(format!("the archive's disk {} is not shown", printable(&other.name)));
    }
    Ok(opened)
}

fn ends_with(name: &[u8], suffix: &[u8]) -> bool {
    let start = name.len().saturating_sub(suffix.len());
    name.get(start..).is_some_and(|end| end.eq_ignore_ascii_case(suffix))
}

/// A file of the tar.
struct Member {
    name: Vec<u8>,
    /// First byte of its body.
    start: u64,
    size: u64,
    /// Its size with its holes, when the body is a map of them and what is between.
    unfolded: Option<u64>,
}

/// The files of a tar, one after the other.
struct Members<'a> {
    device: &'a dyn BlockDevice,
    /// The next header.
    at: u64,
    /// Headers that are still looked at.
    left: usize,
}

impl Members<'_> {
    fn next(&mut self) -> Result<Option<Member>> {
        let (mut name, mut size, mut unfolded) = (None, None, None);
        loop {
            if self.device.size().saturating_sub(self.at) < SECTOR {
                return Ok(None);
            }
            let Some(left) = self.left.checked_sub(1) else {
                return Err(Error::unsupported(FORMAT.name, "an archive of so many files"));
            };
            self.left = left;
            let (at, start) = (self.at, self.at.saturating_add(SECTOR));
            let header = read_array::<512>(self.device, at)?;
            let Some(header) = Header::parse(at, &header)? else { return Ok(None) };
            let is_file = matches!(header.kind, b'0' | 0 | b'7');
            // The records of a file's size are of the next file, whatever stands between.
            let len = if is_file { size.unwrap_or(header.size) } else { header.size };
            let next = len.checked_next_multiple_of(SECTOR).and_then(|len| start.checked_add(len));
            self.at = next.ok_or_else(|| Error::corrupt(FORMAT.name, "tar header (size)", at))?;
            match header.kind {
                b'x' => {
                    let records = self.body(start, len)?;
                    let real = record(&records, b"GNU.sparse.name").or_else(|| record(&records, b"path"));
                    name = real.map(<[u8]>::to_vec).or(name);
                    let number = |key: &[u8]| std::str::from_utf8(record(&records, key)?).ok()?.parse().ok();
                    size = number(b"size").or(size);
                    match (number(b"GNU.sparse.major"), number(b"GNU.sparse.realsize")) {
                        (Some(1), real @ Some(_)) => unfolded = real,
                        (None, _) if record(&records, b"GNU.sparse.size").is_none() => {}
                        _ => return Err(Error::unsupported(FORMAT.name, "an older form of files with holes")),
                    }
                }
                b'L' => name = Some(self.body(start, len)?.split(|&b| b == 0).next().unwrap_or_default().to_vec()),
                _ if is_file => {
                    return Ok(Some(Member { name: name.unwrap_or(header.name), start, size: len, unfolded }));
                }
                // Records for all files, folders, links: what was said of them is not of the next file.
                b'g' => {}
                _ => (name, size, unfolded) = (None, None, None),
            }
        }
    }

    fn body(&self, start: u64, len: u64) -> Result<Vec<u8>> {
        let damaged = || Error::corrupt(FORMAT.name, "tar header (records or a long name)", start);
        if len > MAX_RECORDS || start.saturating_add(len) > self.device.size() {
            return Err(damaged());
        }
        read_vec(self.device, start, usize::try_from(len).map_err(|_| damaged())?)
    }
}

/// A file with its holes. Its body begins with lines of decimal digits: how many parts there are, and the
/// offset and the size of each; the parts follow from the next sector on. `None` when that is damaged.
fn unfold(body: Device, size: u64) -> Option<Device> {
    let text = read_vec(body.as_ref(), 0, usize::try_from(body.size().min(MAX_RECORDS)).ok()?).ok()?;
    let mut used = 0u64;
    let mut lines = text.split(|&b| b == b'\n').map(|line| {
        used = used.saturating_add(line.len() as u64).saturating_add(1);
        std::str::from_utf8(line).ok()?.parse::<u64>().ok()
    });
    let count = lines.next()??;
    let mut parts = Vec::new();
    for _ in 0..count {
        parts.push((lines.next()??, lines.next()??));
    }
    drop(lines);
    let mut at = used.checked_next_multiple_of(SECTOR)?;
    let mut runs = RunList::new(size);
    for (offset, len) in parts {
        let fits = offset.checked_add(len)? <= size && at.checked_add(len)? <= body.size();
        if !fits || !runs.push(offset, at, len) {
            return None;
        }
        at = at.checked_add(len)?;
    }
    Some(Arc::new(Mapped::new(Arc::new(runs), body, None, 512, 0)))
}

/// The value of a key in pax records: `30 path=a name\n`, where 30 is the record's length.
fn record<'a>(mut records: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let mut found = None;
    while let Some(blank) = records.iter().position(|&b| b == b' ') {
        let digits = records.get(..blank).and_then(|digits| std::str::from_utf8(digits).ok());
        // A record is longer than its number and the blank, so this comes to an end.
        let len = digits.and_then(|digits| digits.parse().ok()).filter(|&len: &usize| len > blank);
        let Some((text, rest)) = len.and_then(|len| records.split_at_checked(len)) else { break };
        let text = text.get(blank.saturating_add(1)..).unwrap_or_default();
        let value = text.strip_prefix(key).and_then(|text| text.strip_prefix(b"="));
        found = value.map(|value| value.strip_suffix(b"\n").unwrap_or(value)).or(found);
        records = rest;
    }
    found
}

/// A header of the tar.
struct Header {
    name: Vec<u8>,
    size: u64,
    kind: u8,
}

impl Header {
    /// POSIX.1-1988 "ustar" header; `None` for the zeros at the end.
    fn parse(at: u64, header: &[u8; 512]) -> Result<Option<Self>> {
        if header.iter().all(|&b| b == 0) {
            return Ok(None);
        }
        let record = Record::new(FORMAT.name, "tar header", at, header);
        let digits = record.bytes(148, 8)?;
        let spaced = |(i, &byte): (usize, &u8)| if (148..156).contains(&i) { u64::from(b' ') } else { byte.into() };
        let sum: u64 = header.iter().enumerate().map(spaced).fold(0, u64::saturating_add);
        if record.bytes(257, 5)? != b"ustar" || octal(digits) != Some(sum) {
            return Err(record.corrupt_field("magic number or checksum"));
        }
        // Sizes over 8 GiB are binary, marked by the highest bit (GNU and POSIX 2001 tools).
        let size = match record.u8(124)? {
            0x80 => record.be64(128)?,
            _ => octal(record.bytes(124, 12)?).ok_or_else(|| record.corrupt_field("size"))?,
        };
        let name = record.bytes(0, 100)?.split(|&b| b == 0).next().unwrap_or_default().to_vec();
        Ok(Some(Self { name, size, kind: record.u8(156)? }))
    }
}

/// An octal number that ends with a space or a NUL.
fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}
