//! OVA: a tar of an OVF description and the disks of a virtual machine, mostly stream-optimized
//! VMDKs. One disk is shown, the first unless told otherwise; it is read in place.
//!
//! Specification: DMTF DSP0243, "Open Virtualization Format", section 5.3.
//!
//! ```text
//!   header, machine.ovf | header, machine.mf? | header, disk1.vmdk | header, disk2.vmdk | zeros
//! ```

use std::sync::Arc;

use super::SECTOR;
use crate::bytes::Record;
use crate::container::{Companions, ContainerFormat, Opened, Options, choose, open_within, split};
use crate::device::window::Window;
use crate::device::{BlockDevice, Device, probe_array, read_array};
use crate::error::{Error, Result};
use crate::text::printable;

pub(in crate::container) const FORMAT: ContainerFormat = ContainerFormat { name: "ova", snapshots: false, probe, open };

/// More files than any machine has.
const MAX_MEMBERS: usize = 1000;
const DISKS: [&[u8]; 6] = [b".vmdk", b".vhd", b".vhdx", b".qcow2", b".img", b".raw"];

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    let Some(header) = probe_array::<512>(device, 0)? else { return Ok(false) };
    let member = Member::parse(0, &header);
    Ok(member.is_ok_and(|member| member.is_some_and(|member| ends_with(&member.name, b".ovf"))))
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let mut disks = Vec::new();
    let mut at = 0u64;
    for _ in 0..MAX_MEMBERS {
        if file.size().saturating_sub(at) < SECTOR {
            break;
        }
        let header = read_array::<512>(file.as_ref(), at)?;
        let Some(member) = Member::parse(at, &header)? else { break };
        let start = at.saturating_add(SECTOR);
        let next = member.size.checked_next_multiple_of(SECTOR).and_then(|len| start.checked_add(len));
        at = next.ok_or_else(|| Error::corrupt(FORMAT.name, "tar header (size)", at))?;
        if DISKS.iter().any(|suffix| ends_with(&member.name, suffix)) {
            disks.push((member, start));
        }
    }
    if disks.is_empty() {
        return Err(Error::unsupported(FORMAT.name, "an archive without a disk in it"));
    }
    let ((disk, start), choice) = choose(FORMAT.name, &disks, options)?;
    let cut = |_| Error::corrupt(FORMAT.name, "disk (the file is cut off)", *start);
    let window: Device = Arc::new(Window::new(file.clone(), *start, disk.size).map_err(cut)?);
    // Its companions would be in the archive, not beside it, and archives in archives are not OVAs.
    let mut opened = open_within(&[FORMAT.name, split::FORMAT.name], window, companions, options)?;
    opened.facts.insert(0, ("archive", format!("OVA, {} bytes, the disk {}", file.size(), printable(&disk.name))));
    opened.facts.extend(choice);
    for (other, _) in disks.iter().filter(|(_, other)| other != start) {
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
    size: u64,
}

impl Member {
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
        Ok(Some(Self { name, size }))
    }
}

/// An octal number that ends with a space or a NUL.
fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}
