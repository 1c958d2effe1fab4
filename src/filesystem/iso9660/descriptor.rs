//! The volume descriptor set (ECMA-119, 8): one descriptor a sector, from sector 16 of a session on.
//!
//! ```text
//!   16 primary | boot record (El Torito) | supplementary (Joliet) | enhanced (level 4) | ... | terminator
//! ```

use super::NAME;
use super::medium::{SECTOR, SECTOR_LEN};
use super::record::Both;
use crate::bytes::Record;
use crate::device::{BlockDevice, probe_array};
use crate::error::{Error, Result};
use crate::text::{trim_padding, utf16_to_bytes};

/// Sectors before the descriptors: the system area.
pub(super) const SYSTEM_AREA: u64 = 16;
/// The kernel looks at sectors 16 to 99.
const MAX_DESCRIPTORS: u64 = 84;
/// Where a descriptor keeps the record of its root directory.
const ROOT_RECORD: u64 = 156;

/// A primary, supplementary or enhanced descriptor: one name space.
#[derive(Debug, Clone)]
pub(super) struct VolumeDescriptor {
    /// Byte position on the device.
    pub(super) at: u64,
    /// Type, identifier and version.
    pub(super) magic: [u8; 7],
    pub(super) volume_id: [u8; 32],
    /// In logical blocks.
    pub(super) space_size: Both,
    pub(super) block_size: Both,
    pub(super) path_table_size: Both,
    /// First block of the path table in little-endian form.
    pub(super) path_table_le: u32,
    /// First block of the path table in big-endian form.
    pub(super) path_table_be: u32,
    /// The directory record of the root.
    pub(super) root: [u8; 34],
    pub(super) created: [u8; 17],
    pub(super) modified: [u8; 17],
}

impl VolumeDescriptor {
    /// Field offsets: ECMA-119, 8.4.
    fn parse(sector: &[u8], at: u64) -> Result<Self> {
        let descriptor = Record::new(NAME, "volume descriptor", at, sector);
        Ok(Self {
            at,
            magic: descriptor.array(0)?,
            volume_id: descriptor.array(40)?,
            space_size: Both::read32(&descriptor, 80)?,
            block_size: Both::read16(&descriptor, 128)?,
            path_table_size: Both::read32(&descriptor, 132)?,
            path_table_le: descriptor.le32(140)?,
            path_table_be: descriptor.be32(148)?,
            root: descriptor.array(156)?,
            created: descriptor.array(813)?,
            modified: descriptor.array(830)?,
        })
    }

    /// The primary descriptor at byte `at`, when there is one.
    pub(super) fn probe_primary(device: &dyn BlockDevice, at: u64) -> Result<Option<Self>> {
        let Some(head) = probe_array::<7>(device, at)? else { return Ok(None) };
        if &head != b"\x01CD001\x01" {
            return Ok(None);
        }
        let Some(bytes) = probe_array::<SECTOR_LEN>(device, at)? else { return Ok(None) };
        Self::parse(&bytes, at).map(Some)
    }

    /// Byte position of the root's directory record.
    pub(super) fn root_at(&self) -> u64 {
        self.at.saturating_add(ROOT_RECORD)
    }

    /// Bytes in a logical block, when either byte order says something possible.
    pub(super) fn block_size(&self) -> Option<u32> {
        let possible = |size| matches!(size, 512 | 1024 | 2048);
        Some(self.block_size.choose(possible)).filter(|size| possible(*size))
    }

    /// First block of the root directory, little-endian.
    pub(super) fn root_extent(&self) -> u32 {
        Record::new(NAME, "root directory record", self.root_at(), &self.root).le32(2).unwrap_or(0)
    }
}

/// What the descriptor set of one session holds.
#[derive(Debug, Clone, Default)]
pub(super) struct DescriptorSet {
    pub(super) primary: Option<VolumeDescriptor>,
    pub(super) joliet: Option<VolumeDescriptor>,
    /// ISO 9660:1999, "level 4".
    pub(super) enhanced: Option<VolumeDescriptor>,
    /// Sector of the El Torito boot catalogue.
    pub(super) boot_catalog: Option<u32>,
    pub(super) notes: Vec<&'static str>,
}

impl DescriptorSet {
    /// Reads the set of the session that starts at sector `session`.
    pub(super) fn read(device: &dyn BlockDevice, session: u64) -> Result<Self> {
        let mut set = Self::default();
        for index in 0..MAX_DESCRIPTORS {
            let sector = session.saturating_add(SYSTEM_AREA).saturating_add(index);
            let at = sector.saturating_mul(SECTOR);
            let Some(bytes) = probe_array::<SECTOR_LEN>(device, at)? else {
                set.notes.push("the volume descriptors end without a terminator");
                break;
            };
            let [kind, identifier @ ..] = bytes;
            if !identifier.starts_with(b"CD001") {
                // One unreadable descriptor does not hide those behind it.
                if index > 0 && set.has_tree() {
                    set.notes.push("the volume descriptors end without a terminator");
                    break;
                }
                if index >= 4 {
                    break;
                }
                continue;
            }
            if kind == 255 {
                break;
            }
            set.take(kind, &bytes, at)?;
        }
        if set.has_tree() {
            return Ok(set);
        }
        let at = session.saturating_add(SYSTEM_AREA).saturating_mul(SECTOR);
        Err(Error::corrupt(NAME, "volume descriptor set (no descriptor of a directory tree)", at))
    }

    fn has_tree(&self) -> bool {
        self.primary.is_some() || self.joliet.is_some() || self.enhanced.is_some()
    }

    fn take(&mut self, kind: u8, bytes: &[u8], at: u64) -> Result<()> {
        let descriptor = Record::new(NAME, "volume descriptor", at, bytes);
        match (kind, descriptor.u8(6)?) {
            (0, _) if bytes.get(7..30) == Some(b"EL TORITO SPECIFICATION") => {
                self.boot_catalog.get_or_insert(descriptor.le32(0x47)?);
            }
            (1, _) if self.primary.is_none() => self.primary = Some(VolumeDescriptor::parse(bytes, at)?),
            (2, version) => {
                // UCS-2 level 1, 2 and 3 are announced by their escape sequences.
                let escapes = bytes.get(88..120).unwrap_or_default();
                let joliet = escapes.windows(3).any(|e| matches!(e, b"%/@" | b"%/C" | b"%/E"));
                if joliet {
                    self.joliet.get_or_insert(VolumeDescriptor::parse(bytes, at)?);
                } else if version == 2 {
                    self.enhanced.get_or_insert(VolumeDescriptor::parse(bytes, at)?);
                } else {
                    self.notes.push("a supplementary descriptor of an unknown character set is not shown");
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The descriptor that the volume's own facts are taken from.
    pub(super) fn main(&self) -> Result<&VolumeDescriptor> {
        let main = self.primary.as_ref().or(self.joliet.as_ref()).or(self.enhanced.as_ref());
        main.ok_or(Error::Invalid)
    }

    /// Volume label, as `blkid` finds it: the Joliet one where it differs, completed from the
    /// primary one where it was cut at 16 characters.
    pub(super) fn label(&self) -> Option<String> {
        let plain = |d: &VolumeDescriptor| String::from_utf8_lossy(trim_padding(&d.volume_id)).into_owned();
        let label = match (&self.primary, &self.joliet) {
            (Some(primary), Some(joliet)) => {
                merged(&joliet.volume_id, &primary.volume_id).unwrap_or_else(|| utf16be(&joliet.volume_id))
            }
            (None, Some(joliet)) => utf16be(&joliet.volume_id),
            (Some(primary), None) => plain(primary),
            (None, None) => self.enhanced.as_ref().map(plain)?,
        };
        let label = label.trim_end_matches([' ', '\0']).to_owned();
        Some(label).filter(|label| !label.is_empty())
    }

    /// As `blkid` writes it: the modification time, else the creation time, of the primary descriptor.
    pub(super) fn uuid(&self) -> Option<String> {
        let main = self.main().ok()?;
        let date = [main.modified, main.created].into_iter().find(|d| !d.starts_with(b"0000000000000000"))?;
        let digits = date.get(..16).filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
        let text = std::str::from_utf8(digits).ok()?;
        let part = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
        let (year, month, day) = (part(0, 4), part(4, 6), part(6, 8));
        let (hour, minute, second, hundredth) = (part(8, 10), part(10, 12), part(12, 14), part(14, 16));
        Some(format!("{year}-{month}-{day}-{hour}-{minute}-{second}-{hundredth}"))
    }
}

fn unit(pair: &[u8]) -> u16 {
    pair.try_into().map_or(0, u16::from_be_bytes)
}

fn utf16be(field: &[u8]) -> String {
    let units = field.chunks_exact(2).map(unit);
    String::from_utf8_lossy(&utf16_to_bytes(units.take_while(|unit| *unit != 0))).into_owned()
}

/// Sixteen characters of Joliet continued by the rest of the primary label, when the two say the
/// same as far as both go (`_` stands for what the primary one cannot write).
fn merged(joliet: &[u8], primary: &[u8]) -> Option<String> {
    let mut units: Vec<u16> = joliet.chunks_exact(2).map(unit).collect();
    let mut primary = primary.iter();
    let mut at = 0usize;
    while let Some(&unit) = units.get(at) {
        let surrogates = (0xd800..0xdc00).contains(&unit)
            && units.get(at.saturating_add(1)).is_some_and(|low| (0xdc00..0xe000).contains(low));
        let Some(&byte) = primary.next() else { break };
        let same = |unit: u16| u8::try_from(unit).is_ok_and(|u| u.eq_ignore_ascii_case(&byte));
        if byte != b'_' && unit != u16::from(b'_') && !same(unit) {
            return None;
        }
        at = at.saturating_add(if surrogates { 2 } else { 1 });
    }
    units.extend(primary.map(|byte| u16::from(*byte)));
    Some(String::from_utf8_lossy(&utf16_to_bytes(units)).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wide(text: &str) -> Vec<u8> {
        let mut field: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        field.truncate(32);
        while field.len() < 32 {
            field.extend([0, b' ']);
        }
        field
    }

    fn narrow(text: &str) -> Vec<u8> {
        format!("{text:32}").into_bytes()
    }

    #[test]
    fn a_joliet_label_cut_at_sixteen_characters_is_completed_from_the_primary_one() {
        let label = merged(&wide("Na\u{ef}ve and very l"), &narrow("NA_VE AND VERY LONG_LABEL"));
        assert_eq!(label.unwrap().trim_end(), "Na\u{ef}ve and very lONG_LABEL");
        assert_eq!(merged(&wide("One"), &narrow("OTHER")), None);
    }
}
