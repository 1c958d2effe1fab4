//! The tables of a container: fixed-width numbers, one a block, that say where the block lies.
//!
//! They are read a page at a time through a small cache, so that a disk of many terabytes takes as
//! little memory as a floppy, and no allocation is sized by a header.

use std::sync::Arc;

use crate::cache::Cache;
use crate::device::mapped::{Place, Run};
use crate::device::{Device, read_vec};
use crate::error::{Error, Result};

/// Entries that are read and kept together.
const PAGE: u64 = 512;
/// Bound on the pages that one level of tables keeps, bytes: maps 32 GiB of 64 KiB clusters.
const CACHE_SIZE: u64 = 4 << 20;
/// Runs of stored bytes are not joined past this: a read is seldom longer, and looking ahead costs.
const LONG_RUN: u64 = 4 << 20;

/// How a table's numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Le32,
    Be32,
    Le64,
    Be64,
}

impl Width {
    /// Bytes per number.
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::Le32 | Self::Be32 => 4,
            Self::Le64 | Self::Be64 => 8,
        }
    }

    fn parse(self, bytes: &[u8]) -> Vec<u64> {
        let (four, _) = bytes.as_chunks::<4>();
        let (eight, _) = bytes.as_chunks::<8>();
        match self {
            Self::Le32 => four.iter().map(|&n| u64::from(u32::from_le_bytes(n))).collect(),
            Self::Be32 => four.iter().map(|&n| u64::from(u32::from_be_bytes(n))).collect(),
            Self::Le64 => eight.iter().map(|&n| u64::from_le_bytes(n)).collect(),
            Self::Be64 => eight.iter().map(|&n| u64::from_be_bytes(n)).collect(),
        }
    }
}

/// Tables of one kind in one device.
pub(super) struct Tables {
    device: Device,
    width: Width,
    format: &'static str,
    what: &'static str,
    pages: Cache<(u64, u64), Arc<Vec<u64>>>,
}

/// One table: where it starts, and how many numbers it has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    /// First byte on the device.
    pub(super) at: u64,
    /// Numbers in it.
    pub(super) count: u64,
}

impl Tables {
    /// `what` is the specification's word for the table, for messages.
    pub(super) fn new(device: Device, width: Width, format: &'static str, what: &'static str) -> Self {
        Self { device, width, format, what, pages: Cache::new(CACHE_SIZE) }
    }

    /// The entries of `table` from `index` on, as far as they are at hand; at least one.
    pub(super) fn entries(&self, table: Extent, index: u64) -> Result<Entries> {
        let corrupt = || Error::corrupt(self.format, self.what, table.at);
        let first = index.saturating_sub(index % PAGE);
        let count = table.count.checked_sub(first).filter(|&rest| rest > index % PAGE).ok_or_else(corrupt)?.min(PAGE);
        let start = first.checked_mul(self.width.bytes()).and_then(|n| n.checked_add(table.at)).ok_or_else(corrupt)?;
        let len = count.saturating_mul(self.width.bytes());
        let page = self.pages.get_or_make(&(start, len), || {
            if start.checked_add(len).is_none_or(|end| end > self.device.size()) {
                return Err(corrupt());
            }
            let bytes = read_vec(self.device.as_ref(), start, usize::try_from(len).map_err(|_| corrupt())?)?;
            Ok((Arc::new(self.width.parse(&bytes)), PAGE.saturating_mul(8)))
        })?;
        let from = usize::try_from(index % PAGE).map_err(|_| corrupt())?;
        if from >= page.len() { Err(corrupt()) } else { Ok(Entries { page, from }) }
    }

    /// One entry.
    pub(super) fn entry(&self, table: Extent, index: u64) -> Result<u64> {
        Ok(self.entries(table, index)?.first())
    }
}

/// Neighbouring entries of a table.
pub(super) struct Entries {
    page: Arc<Vec<u64>>,
    from: usize,
}

impl Entries {
    /// All of them; never empty.
    pub(super) fn rest(&self) -> &[u64] {
        self.page.get(self.from..).unwrap_or_default()
    }

    /// The one that was asked for.
    pub(super) fn first(&self) -> u64 {
        self.rest().first().copied().unwrap_or_default()
    }
}

/// The run that starts `within` bytes into the first of these units of `unit` bytes each, and goes
/// on as long as the next unit continues it. A damaged unit is an error only when it is the first.
pub(super) fn join(unit: u64, within: u64, places: impl IntoIterator<Item = Result<Place>>) -> Result<Run> {
    let mut places = places.into_iter();
    let first = places.next().ok_or(Error::Invalid)??;
    let mut run = Run {
        place: first.after(within).ok_or(Error::Invalid)?,
        len: unit.checked_sub(within).filter(|&len| len > 0).ok_or(Error::Invalid)?,
    };
    let long = if matches!(run.place, Place::At(_)) { LONG_RUN } else { u64::MAX };
    while run.len < long {
        match places.next() {
            Some(Ok(place)) if run.place.after(run.len) == Some(place) => run.len = run.len.saturating_add(unit),
            _ => break,
        }
    }
    Ok(run)
}

/// The part of a run that the file holds; what lies past its end is an error where it is read: the
/// writers of such a format fill up the last block, and a file without it was cut off. `end` is the
/// file's size, `what` the specification's word for a block.
pub(super) fn held(run: Run, end: u64, format: &'static str, what: &'static str) -> Result<Run> {
    match run.place {
        Place::At(at) if at >= end => {
            Err(Error::corrupt(format, format!("{what} past the end of the file (the file is cut off)"), at))
        }
        _ => Ok(clip(run, end)),
    }
}

/// The part of a run that the file holds; what lies past its end reads as zeros, because the writers of
/// QCOW images do not always fill up the last cluster. `end` is the file's size.
pub(super) fn clip(run: Run, end: u64) -> Run {
    match run.place {
        Place::At(at) if at >= end => Run { place: Place::Hole, len: run.len },
        Place::At(at) => Run { len: run.len.min(end.saturating_sub(at)), ..run },
        _ => run,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::Memory;

    #[test]
    fn entries_past_the_table_or_the_device_are_damage() {
        let device: Device = Arc::new(Memory::new((0..40).collect(), 512));
        let tables = Tables::new(device, Width::Be32, "test", "block table");
        let table = Extent { at: 4, count: 9 };
        assert_eq!(tables.entry(table, 0).unwrap(), 0x0405_0607);
        assert_eq!(tables.entries(table, 7).unwrap().rest(), [0x2021_2223, 0x2425_2627]);
        assert!(tables.entry(table, 9).is_err());
        let long = Extent { at: 4, count: u64::MAX };
        assert_eq!(tables.entry(long, 0).unwrap_err().to_string(), "test: block table at byte 4 is damaged");
        assert!(tables.entry(long, u64::MAX - 1).is_err());
    }

    #[test]
    fn units_that_continue_each_other_make_one_run() {
        let places = [Place::At(100), Place::At(110), Place::At(130)];
        let run = join(10, 3, places.into_iter().map(Ok)).unwrap();
        assert_eq!(run, Run { place: Place::At(103), len: 17 });
        assert_eq!(clip(run, 110), Run { place: Place::At(103), len: 7 });
        assert_eq!(clip(run, 103), Run { place: Place::Hole, len: 17 });
        assert_eq!(held(run, 110, "test", "block").unwrap(), Run { place: Place::At(103), len: 7 });
        let said = held(run, 103, "test", "block").unwrap_err().to_string();
        assert_eq!(said, "test: block past the end of the file (the file is cut off) at byte 103 is damaged");
    }
}
