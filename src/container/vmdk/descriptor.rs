//! The descriptor: text that names the disk's type, its extents and its parent.

use std::fmt;

use super::sparse::Sparse;
use super::{FORMAT, SECTOR};
use crate::container::Opened;
use crate::container::parent::Identity;
use crate::device::{BlockDevice, probe_array, read_vec};
use crate::error::{Error, Result};
use crate::text::printable;

/// How a descriptor begins, mostly.
const MAGIC: &[u8; 21] = b"# Disk DescriptorFile";
/// What editors of Windows put in front of UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";
/// Descriptors that begin in another way are recognised in as much.
const PROBED: u64 = 2048;
/// Longer than any: a thousand extents take about 60 KiB.
const MAX_LEN: u64 = 1 << 20;
const MAX_EXTENTS: usize = 8192;
/// The parent's content ID where there is no parent.
const NO_PARENT: u32 = 0xffff_ffff;

pub(super) fn probe(device: &dyn BlockDevice) -> Result<bool> {
    match probe_array::<21>(device, 0)? {
        Some(start) if start.eq_ignore_ascii_case(MAGIC) => Ok(true),
        Some([b'#' | b' ' | b'\r' | b'\n' | b'v' | b'V' | 0xef, ..]) => {
            let len = usize::try_from(device.size().min(PROBED)).map_err(|_| Error::Invalid)?;
            Ok(begins(&read_vec(device, 0, len)?))
        }
        _ => Ok(false),
    }
}

/// Whether a text begins like a descriptor: as the specification says; or with any comments before the
/// version (as QEMU accepts it), and with the type of the disk.
fn begins(text: &[u8]) -> bool {
    let text = text.strip_prefix(MARK).unwrap_or(text);
    if text.get(..MAGIC.len()).is_some_and(|start| start.eq_ignore_ascii_case(MAGIC)) {
        return true;
    }
    let lines = || text.split(|&b| b == b'\n').map(<[u8]>::trim_ascii);
    let key = |line: &[u8]| line.split(|&b| b == b'=').next().unwrap_or_default().trim_ascii_end().to_ascii_lowercase();
    let first = lines().find(|line| !line.is_empty() && !line.starts_with(b"#"));
    first.is_some_and(|line| key(line) == b"version") && lines().any(|line| key(line) == b"createtype")
}

/// What the text says.
#[derive(Default)]
pub(super) struct Descriptor {
    pub(super) create_type: Option<String>,
    pub(super) cid: Option<u32>,
    pub(super) parent_cid: Option<u32>,
    pub(super) parent_hint: Option<String>,
    /// As VirtualBox tells images apart; zeros where it has not written them.
    pub(super) image: Identity,
    /// What the parent was when the child was made, in the same way.
    pub(super) parent: Identity,
    pub(super) extents: Vec<ExtentLine>,
    version: Option<String>,
    uuid: Option<String>,
    adapter: Option<String>,
}

/// What an extent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Flat,
    Sparse,
    Zero,
}

/// A line such as `RW 4192256 SPARSE "disk-s001.vmdk"`.
pub(super) struct ExtentLine {
    pub(super) sectors: u64,
    pub(super) content: Content,
    pub(super) file: String,
    /// Where a flat extent starts in its file, in sectors.
    pub(super) offset: u64,
    kind: String,
}

impl fmt::Display for ExtentLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, file) = (printable(self.kind.as_bytes()), printable(self.file.as_bytes()));
        write!(f, "{kind} {file} ({} bytes)", self.sectors.saturating_mul(SECTOR))
    }
}

impl Descriptor {
    /// The descriptor of a file: inside a sparse extent, or the file itself. `None` when a sparse
    /// extent has none.
    pub(super) fn of(file: &dyn BlockDevice, own: Option<&Sparse>) -> Result<Option<Self>> {
        let (at, len) = match own {
            Some(own) => match own.descriptor {
                Some(place) => place,
                None => return Ok(None),
            },
            None => (0, file.size()),
        };
        let corrupt = || Error::corrupt(FORMAT.name, "descriptor", at);
        let len = len.min(MAX_LEN).min(file.size().saturating_sub(at));
        let bytes = read_vec(file, at, usize::try_from(len).map_err(|_| corrupt())?)?;
        let text = bytes.split(|&b| b == 0).next().unwrap_or_default();
        // QEMU leaves room for one in every extent.
        if own.is_some() && text.is_empty() {
            return Ok(None);
        }
        if !begins(text) {
            return Err(corrupt());
        }
        let text = text.strip_prefix(MARK).unwrap_or(text);
        match std::str::from_utf8(text) {
            Ok(text) => Self::parse(text),
            // Written on Windows, mostly (encoding="windows-1252"); of other code pages the names' ASCII
            // part is kept.
            Err(_) => Self::parse(&text.iter().map(|&byte| char::from(byte)).collect::<String>()),
        }
        .map(Some)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut found = Self::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(extent) = ExtentLine::parse(line)? {
                if found.extents.len() >= MAX_EXTENTS {
                    return Err(Error::corrupt(FORMAT.name, "descriptor (number of extents)", 0));
                }
                found.extents.push(extent);
                continue;
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = value.trim().trim_matches('"').to_owned();
            let id = || u32::from_str_radix(&value, 16).ok();
            let identifier = || u128::from_str_radix(&value.replace('-', ""), 16).unwrap_or(0).to_be_bytes();
            match key.trim().to_ascii_lowercase().as_str() {
                "version" => found.version = Some(value),
                "cid" => found.cid = id(),
                "parentcid" => found.parent_cid = id(),
                "createtype" => found.create_type = Some(value),
                "parentfilenamehint" => found.parent_hint = Some(value),
                key if key.starts_with("encryption.") => return Err(Error::unsupported(FORMAT.name, "encryption")),
                "ddb.uuid" => found.uuid = Some(value),
                "ddb.uuid.image" => {
                    found.image.uuid = identifier();
                    found.uuid = Some(value);
                }
                "ddb.uuid.modification" => found.image.modified = identifier(),
                "ddb.uuid.parent" => found.parent.uuid = identifier(),
                "ddb.uuid.parentmodification" => found.parent.modified = identifier(),
                "ddb.adaptertype" => found.adapter = Some(value),
                _ => {}
            }
        }
        Ok(found)
    }

    /// Whether empty places are the parent's.
    pub(super) fn has_parent(&self) -> bool {
        self.parent_cid.is_some_and(|id| id != NO_PARENT)
    }

    pub(super) fn describe(&self, opened: &mut Opened) {
        let text = [("version", &self.version), ("adapter", &self.adapter), ("UUID", &self.uuid)];
        for (name, value) in text {
            if let Some(value) = value {
                opened.add(name, printable(value.as_bytes()));
            }
        }
        if let Some(id) = self.cid {
            opened.add("content ID", format!("{id:08x}"));
        }
        if let Some(id) = self.parent_cid.filter(|&id| id != NO_PARENT) {
            opened.add("parent content ID", format!("{id:08x}"));
        }
    }
}

impl ExtentLine {
    /// `None` when the line is not of an extent.
    fn parse(line: &str) -> Result<Option<Self>> {
        let (head, file, tail) = match line.split_once('"') {
            Some((head, rest)) => {
                let (file, tail) = rest.split_once('"').unwrap_or((rest, ""));
                (head, file, tail)
            }
            None => (line, "", ""),
        };
        let mut words = head.split_whitespace();
        let (access, sectors, kind) = (words.next(), words.next(), words.next());
        let is_access = |word: &str| ["RW", "RDONLY", "NOACCESS"].iter().any(|known| word.eq_ignore_ascii_case(known));
        if !access.is_some_and(is_access) {
            return Ok(None);
        }
        let corrupt = || Error::corrupt(FORMAT.name, "descriptor (line of an extent)", 0);
        let sectors: u64 = sectors.and_then(|n| n.parse().ok()).ok_or_else(corrupt)?;
        let kind = kind.ok_or_else(corrupt)?.to_ascii_uppercase();
        let content = match kind.as_str() {
            "FLAT" | "VMFS" => Content::Flat,
            "SPARSE" | "VMFSSPARSE" | "SESPARSE" => Content::Sparse,
            "ZERO" => Content::Zero,
            other => {
                return Err(Error::unsupported(
                    FORMAT.name,
                    format!("an extent of the type {}", printable(other.as_bytes())),
                ));
            }
        };
        if sectors.checked_mul(SECTOR).is_none() || (file.is_empty() && content != Content::Zero) {
            return Err(corrupt());
        }
        let offset = match tail.split_whitespace().next() {
            Some(offset) if content == Content::Flat => offset.parse().map_err(|_| corrupt())?,
            _ => 0,
        };
        Ok(Some(Self { sectors, content, file: file.to_owned(), offset, kind }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_in_any_spacing_are_understood() {
        let text = "# Disk DescriptorFile\r\nCID = fffffffe\r\nparentCID=0000abcd\nparentFileNameHint=\"C:\\a b.vmdk\"\n\
                    RW 63 FLAT \"a b-flat.vmdk\" 17\nRDONLY 5 ZERO\nrw 6 sparse \"c.vmdk\"\ncreateType=\"custom\"\n";
        let found = Descriptor::parse(text).unwrap();
        assert_eq!(found.parent_hint.as_deref(), Some("C:\\a b.vmdk"));
        assert!(found.has_parent());
        assert_eq!((found.extents[0].file.as_str(), found.extents[0].offset), ("a b-flat.vmdk", 17));
        assert_eq!((found.extents[1].sectors, found.extents[1].content), (5, Content::Zero));
        assert!(Descriptor::parse("RW 5 VMFSRDM \"x\"").is_err());
        assert!(Descriptor::parse("RW x FLAT \"x\"").is_err());
    }
}
