//! Where a file's bytes lie: its sections, one after the other, each in one piece or interleaved.
//!
//! ```text
//!   file     |--------- section 0 ---------|----- section 1 -----|   up to 4 GB - 1 each
//!   medium   [XAR][data ................]    [unit]gap[unit]gap[u]
//! ```

use super::NAME;
use super::medium::Medium;
use super::record::DirectoryRecord;
use crate::device::mapped::{Mapping, Place, Run};
use crate::error::{Error, Result};

/// A file of at most this many sections is read: 64 TB, more than any medium holds.
pub(super) const MAX_SECTIONS: usize = 16_384;

/// One file section.
#[derive(Debug, Clone)]
struct Section {
    /// Its first byte within the file.
    start: u64,
    len: u64,
    /// Byte on the device; `None` when it lies before the start of a session image.
    place: Option<u64>,
    /// Bytes of a file unit, and from one unit's start to the next one's; 0 when not interleaved.
    unit: u64,
    stride: u64,
    /// Byte position of its directory record, for messages.
    record: u64,
}

/// All sections of a file.
#[derive(Debug, Clone, Default)]
pub(super) struct Sections {
    list: Vec<Section>,
    size: u64,
}

impl Sections {
    /// Adds the section that a record describes.
    pub(super) fn push(&mut self, medium: &Medium, record: &DirectoryRecord<'_>) -> Result<()> {
        let len = record.data_len.choose(|len| medium.holds(record.extent.le, len.into()));
        let extent = record.extent.choose(|block| medium.holds(block, len.into()));
        if !record.extent.agrees() || !record.data_len.agrees() {
            medium.notes.add(format!(
                "directory record at byte {}: the two byte orders disagree (extent {} and {}, length {} and {}); \
                 read as {extent} and {len}",
                record.at, record.extent.le, record.extent.be, record.data_len.le, record.data_len.be
            ));
        }
        if len == 0 {
            return Ok(());
        }
        let interleaved = record.unit != 0;
        if interleaved && record.xar_len != 0 {
            return Err(Error::unsupported(NAME, "an interleaved file with an extended attribute record"));
        }
        let unit = u64::from(record.unit).saturating_mul(medium.block_size);
        let gap = u64::from(record.gap).saturating_mul(medium.block_size);
        self.list.push(Section {
            start: self.size,
            len: len.into(),
            place: medium.byte(u64::from(extent).saturating_add(record.xar_len.into())),
            unit,
            stride: unit.saturating_add(gap),
            record: record.at,
        });
        self.size = self.size.saturating_add(len.into());
        Ok(())
    }

    /// Where the file starts on the device; `None` of an empty one.
    pub(super) fn first_byte(&self) -> Option<u64> {
        self.list.first().and_then(|section| section.place)
    }

    /// Room taken in memory, in bytes.
    pub(super) fn weight(&self) -> u64 {
        self.list.capacity().saturating_mul(size_of::<Section>()) as u64
    }
}

impl Mapping for Sections {
    fn size(&self) -> u64 {
        self.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let next = self.list.partition_point(|section| section.start <= offset);
        let section = next.checked_sub(1).and_then(|index| self.list.get(index)).ok_or(Error::Invalid)?;
        let within = offset.saturating_sub(section.start);
        let rest = section.len.checked_sub(within).filter(|rest| *rest > 0).ok_or(Error::Invalid)?;
        let outside = || Error::corrupt(NAME, "file section (outside the image), of the record", section.record);
        let place = section.place.ok_or_else(outside)?;
        let (skip, len) = match within.checked_div(section.unit) {
            None => (within, rest),
            Some(units) => {
                let in_unit = within.checked_rem(section.unit).unwrap_or(0);
                let skip = units.checked_mul(section.stride).and_then(|skip| skip.checked_add(in_unit));
                (skip.ok_or_else(outside)?, section.unit.saturating_sub(in_unit).min(rest))
            }
        };
        Ok(Run { place: Place::At(place.checked_add(skip).ok_or_else(outside)?), len })
    }
}
