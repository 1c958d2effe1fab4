//! Sections: what a segment file is made of.

use super::FORMAT;
use crate::bytes::Record;
use crate::device::{Device, read_array, read_vec};
use crate::error::{Error, Result};

const DESCRIPTOR: u64 = 76;
/// The file header before the first one.
const FIRST: u64 = 13;

/// One section of a segment.
pub(super) struct Section {
    pub(super) device: Device,
    /// Number of its segment, from 1.
    pub(super) segment: u32,
    pub(super) kind: String,
    /// First byte of its data in the segment.
    pub(super) data_at: u64,
    /// First byte after it.
    pub(super) end: u64,
}

impl Section {
    /// Its data, all of them; no more than `max` bytes.
    pub(super) fn read(&self, max: u64) -> Result<Vec<u8>> {
        let len = self.end.saturating_sub(self.data_at).min(max);
        read_vec(self.device.as_ref(), self.data_at, usize::try_from(len).map_err(|_| Error::Invalid)?)
    }

    /// First byte of its descriptor.
    pub(super) fn at(&self) -> u64 {
        self.data_at.saturating_sub(DESCRIPTOR)
    }
}

/// Goes from section to section.
pub(super) struct Walk {
    device: Device,
    segment: u32,
    at: Option<u64>,
    damage: Option<Error>,
}

impl Walk {
    pub(super) fn new(device: Device, segment: u32) -> Self {
        Self { device, segment, at: Some(FIRST), damage: None }
    }

    pub(super) fn next(&mut self) -> Option<Section> {
        let at = self.at.take()?;
        match self.read(at) {
            Ok((section, next)) => {
                // Each section lies behind the one before it: the file's size is the bound.
                self.at = next;
                Some(section)
            }
            Err(error) => {
                self.damage = Some(error);
                None
            }
        }
    }

    /// What broke the chain.
    pub(super) fn damage(&self) -> Option<String> {
        let error = self.damage.as_ref()?;
        Some(format!("segment {}: {error}; chunks whose tables lie behind it cannot be read", self.segment))
    }

    /// Section "Section descriptor".
    fn read(&self, at: u64) -> Result<(Section, Option<u64>)> {
        let cut = || Error::corrupt(FORMAT.name, "section descriptor (the file may be cut off)", at);
        let size = self.device.size();
        if at.checked_add(DESCRIPTOR).is_none_or(|end| end > size) {
            return Err(cut());
        }
        let bytes = read_array::<76>(self.device.as_ref(), at)?;
        let record = Record::new(FORMAT.name, "section descriptor", at, &bytes);
        if record.le32(72)? != adler32(record.bytes(0, 72)?) {
            return Err(record.corrupt_field("checksum"));
        }
        let name: Vec<u8> = record.bytes(0, 16)?.iter().copied().take_while(|&byte| byte != 0).collect();
        let kind = String::from_utf8_lossy(&name).into_owned();
        let (next, len) = (record.le64(16)?, record.le64(24)?);
        let data_at = at.saturating_add(DESCRIPTOR);
        let last = matches!(kind.as_str(), "next" | "done");
        if !last && next < data_at {
            return Err(record.corrupt_field("next section"));
        }
        // Some writers leave the size out, or count without the descriptor.
        let end = if last { at.saturating_add(len.max(DESCRIPTOR)) } else { next };
        let end = end.min(size);
        let section = Section { device: self.device.clone(), segment: self.segment, kind, data_at, end };
        Ok((section, (!last).then_some(next)))
    }
}

/// Adler-32 (RFC 1950), with which all structures are checked.
pub(super) fn adler32(bytes: &[u8]) -> u32 {
    simd_adler32::adler32(&bytes)
}
