//! Rock Ridge (RRIP 1.09 and 1.12, IEEE P1282): the fields that give a record its Unix side, and
//! zisofs' field among them.

use super::NAME;
use super::medium::Medium;
use super::record::{Both, DirectoryRecord};
use super::susp::{Field, Protocol};
use super::time;
use super::zisofs::Packing;
use crate::bytes::Record;
use crate::error::{Error, Result};
use crate::filesystem::{Kind, Timestamp};

/// Everything that a record's fields say.
#[derive(Debug, Default)]
pub(super) struct RockRidge {
    /// NM: the name, when there is one.
    pub(super) name: Option<Vec<u8>>,
    /// PX.
    pub(super) posix: Option<Posix>,
    /// PN: major and minor number.
    pub(super) device: Option<(u32, u32)>,
    /// SL: the target so far.
    pub(super) target: Option<Vec<u8>>,
    /// TF.
    pub(super) times: Times,
    /// CL: first block of a directory that belongs here and lies elsewhere.
    pub(super) child_link: Option<u32>,
    /// RE: the directory belongs elsewhere.
    pub(super) relocated: bool,
    /// ZF or Z2.
    pub(super) packing: Option<Packing>,
    /// SF: the size that a sparse file has.
    pub(super) sparse: Option<u64>,
    /// Attributes of files (AAIP), one field after the other.
    pub(super) attributes: Vec<u8>,
    /// Where the fields break off, if they do.
    pub(super) damage: Option<Error>,
    slash_due: bool,
    target_goes_on: bool,
    name_goes_on: bool,
}

/// PX.
#[derive(Debug, Clone, Copy)]
pub(super) struct Posix {
    pub(super) mode: u32,
    pub(super) links: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// TF.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Times {
    pub(super) created: Option<Timestamp>,
    pub(super) modified: Option<Timestamp>,
    pub(super) accessed: Option<Timestamp>,
    pub(super) changed: Option<Timestamp>,
}

impl Posix {
    /// What the file type bits say; `None` where they say nothing.
    pub(super) fn kind(&self) -> Option<Kind> {
        Some(match self.mode & 0o170_000 {
            0o100_000 => Kind::File,
            0o040_000 => Kind::Directory,
            0o120_000 => Kind::Symlink,
            0o020_000 => Kind::CharDevice,
            0o060_000 => Kind::BlockDevice,
            0o010_000 => Kind::Fifo,
            0o140_000 => Kind::Socket,
            _ => return None,
        })
    }
}

impl RockRidge {
    /// Reads the fields of a record. Damage among them is kept, with what stood before it.
    pub(super) fn parse(medium: &Medium, protocol: &Protocol, record: &DirectoryRecord<'_>, is_root: bool) -> Self {
        let mut this = Self::default();
        let mut bad_field = None;
        let end = protocol.fields(medium, record, is_root, &mut |field| {
            if let Err(error) = this.take(medium, &field) {
                bad_field.get_or_insert(error);
            }
        });
        this.damage = bad_field.or(end.err());
        if this.damage.is_none() && (this.target_goes_on || this.name_goes_on) {
            this.damage = Some(Error::corrupt(NAME, "system use (a name or target without its end)", record.at));
        }
        if let Some(error) = &this.damage {
            medium.notes.add(format!("system use of the record at byte {}: {error}", record.at));
        }
        this
    }

    fn take(&mut self, medium: &Medium, field: &Field<'_>) -> Result<()> {
        let record = &field.record;
        match &field.signature {
            b"NM" => self.take_name(record),
            b"PX" => self.take_posix(medium, record),
            b"PN" => {
                self.device = Some(device_number(Both::read32(record, 4)?.le, Both::read32(record, 12)?.le));
                Ok(())
            }
            b"SL" => self.take_target(record),
            b"TF" => self.take_times(record),
            b"CL" => {
                self.child_link = Some(Both::read32(record, 4)?.choose(|block| medium.holds(block, 1)));
                Ok(())
            }
            b"RE" => {
                self.relocated = true;
                Ok(())
            }
            b"ZF" | b"Z2" => {
                self.packing = Packing::parse(record)?.or(self.packing);
                Ok(())
            }
            b"SF" => {
                self.sparse = Some(sparse_size(record)?);
                Ok(())
            }
            b"AL" => {
                self.attributes.extend_from_slice(record.tail(5)?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// RRIP 1.12, 4.1.4. Flags: 1 goes on in the next NM, 2 `.`, 4 `..`.
    fn take_name(&mut self, record: &Record<'_>) -> Result<()> {
        let flags = record.u8(4)?;
        self.name_goes_on = flags & 1 != 0;
        if flags & 6 == 0 {
            self.name.get_or_insert_default().extend_from_slice(record.tail(5)?);
        }
        Ok(())
    }

    /// RRIP 1.12, 4.1.1. Version 1.09 ends before the serial number.
    fn take_posix(&mut self, medium: &Medium, record: &Record<'_>) -> Result<()> {
        let mut fields = [0; 4];
        for (index, value) in fields.iter_mut().enumerate() {
            let both = Both::read32(record, index.saturating_mul(8).saturating_add(4))?;
            if !both.agrees() {
                medium.notes.add(format!("PX at byte {}: the two byte orders disagree", record.at()));
            }
            *value = both.le;
        }
        let [mode, links, uid, gid] = fields;
        self.posix = Some(Posix { mode, links, uid, gid });
        Ok(())
    }

    /// RRIP 1.12, 4.1.3: components, each with its own flags: 1 goes on in the next one, 2 `.`,
    /// 4 `..`, 8 `/`.
    fn take_target(&mut self, record: &Record<'_>) -> Result<()> {
        self.target_goes_on = record.u8(4)? & 1 != 0;
        let target = self.target.get_or_insert_default();
        let mut offset = 5usize;
        while offset < record.len() {
            let flags = record.u8(offset)?;
            let len = usize::from(record.u8(offset.saturating_add(1))?);
            let text = record.bytes(offset.saturating_add(2), len)?;
            if std::mem::take(&mut self.slash_due) {
                target.push(b'/');
            }
            match flags & 0x1e {
                0x02 => target.extend_from_slice(b"."),
                0x04 => target.extend_from_slice(b".."),
                0x08 | 0x10 => target.push(b'/'),
                _ => target.extend_from_slice(text),
            }
            self.slash_due = flags & 0x19 == 0;
            offset = offset.saturating_add(2).saturating_add(len);
        }
        Ok(())
    }

    /// RRIP 1.12, 4.1.6: one time for each flag, in the order of the flags; bit 7: 17 bytes each.
    fn take_times(&mut self, record: &Record<'_>) -> Result<()> {
        let flags = record.u8(4)?;
        let is_long = flags & 0x80 != 0;
        let mut offset = 5usize;
        for bit in 0..4u8 {
            if flags >> bit & 1 == 0 {
                continue;
            }
            let value = if is_long { time::long(record.array(offset)?) } else { time::short(record.array(offset)?) };
            offset = offset.saturating_add(if is_long { 17 } else { 7 });
            let slot = match bit {
                0 => &mut self.times.created,
                1 => &mut self.times.modified,
                2 => &mut self.times.accessed,
                _ => &mut self.times.changed,
            };
            *slot = value.or(*slot);
        }
        Ok(())
    }
}

/// Writers with a 32-bit device number leave the first field zero and pack both numbers into the
/// second one, as their C library does; others keep major and minor apart.
fn device_number(high: u32, low: u32) -> (u32, u32) {
    if high != 0 {
        return (high, low);
    }
    (low >> 8 & 0xfff, low & 0xff | low >> 12 & 0xffff_ff00)
}

/// RRIP 1.12, 4.1.7 has two halves, 1.09 one number.
fn sparse_size(record: &Record<'_>) -> Result<u64> {
    let first = Both::read32(record, 4)?.le;
    if record.len() < 21 {
        return Ok(first.into());
    }
    Ok(u64::from(first) << 32 | u64::from(Both::read32(record, 12)?.le))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(fields: &[&[u8]]) -> Vec<u8> {
        let mut this = RockRidge::default();
        for field in fields {
            let mut bytes = vec![b'S', b'L', field.len() as u8 + 4, 1];
            bytes.extend_from_slice(field);
            this.take_target(&Record::new(NAME, "SL", 0, &bytes)).unwrap();
        }
        this.target.unwrap()
    }

    #[test]
    fn a_link_is_put_together_from_root_dots_and_split_components() {
        assert_eq!(links(&[&[0, 8, 0, 0, 3, b'u', b's', b'r', 4, 0, 2, 0, 0, 1, b'x']]), b"/usr/.././x");
        assert_eq!(links(&[&[1, 1, 2, b'a', b'b'], &[0, 0, 1, b'c', 0, 1, b'd']]), b"abc/d");
        assert_eq!(links(&[&[1, 0, 1, b'a'], &[0, 0, 1, b'b']]), b"a/b");
        assert_eq!(links(&[&[0, 8, 0]]), b"/");
    }

    #[test]
    fn device_numbers_of_both_kinds_of_writer() {
        assert_eq!(device_number(0, 0x0801), (8, 1));
        assert_eq!(device_number(8, 1), (8, 1));
        assert_eq!(device_number(0, 0x0010_082c), (8, 300));
    }
}
