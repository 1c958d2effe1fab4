//! Reading through a table that says where bytes lie: sparse containers, and fragmented files.
//!
//! A format answers one question, [`Mapping::map`]; clamping, coalescing neighbouring runs,
//! zero-filling, falling through to a parent and keeping decoded units is done here, once.
//!
//! ```text
//!   offset ->  map  ->  At(place)    bytes of the device below
//!                       Hole         zeros
//!                       Parent       the parent's bytes at the same offset, zeros past its end
//!                       Packed{unit} part of a unit that the format unpacks; kept in an LRU cache
//! ```

use std::sync::Arc;

use super::{BlockDevice, Device, Extent, check_range};
use crate::cache::{Cache, Statistics};
use crate::error::{Error, Result};

/// Where a sparse container, or a fragmented file, keeps its bytes.
pub trait Mapping: Send + Sync {
    /// Size in bytes of what is mapped.
    fn size(&self) -> u64;

    /// Where the byte at `offset` is, and how many bytes follow it there. `offset` is below the
    /// size; the length is never zero, and may reach past the size.
    fn map(&self, offset: u64) -> Result<Run>;

    /// Unpacks one unit that [`Mapping::map`] named.
    fn unpack(&self, _unit: u64) -> Result<Vec<u8>> {
        Err(Error::Invalid)
    }
}

/// A run of bytes in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where the run starts.
    pub place: Place,
    /// Length in bytes, never zero.
    pub len: u64,
}

/// Where bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// From this byte of the device below.
    At(u64),
    /// Nowhere: they are zeros.
    Hole,
    /// At the same offset of the parent image.
    Parent,
    /// Inside a packed unit, from this byte of its unpacked form.
    Packed {
        /// Names the unit to [`Mapping::unpack`].
        unit: u64,
        /// Byte within the unpacked unit.
        within: u64,
    },
}

impl Place {
    /// The place `len` bytes further on.
    pub fn after(self, len: u64) -> Option<Self> {
        Some(match self {
            Self::At(at) => Self::At(at.checked_add(len)?),
            Self::Packed { unit, within } => Self::Packed { unit, within: within.checked_add(len)? },
            other => other,
        })
    }
}

/// Calls `visit` with each run of `len` bytes from `offset`, neighbours in one place joined; the
/// runs' offsets are relative to `offset`.
pub fn for_each_run(
    mapping: &dyn Mapping,
    offset: u64,
    len: u64,
    mut visit: impl FnMut(u64, Run) -> Result<()>,
) -> Result<()> {
    let mut done = 0u64;
    let mut pending: Option<(u64, Run)> = None;
    while done < len {
        let run = mapping.map(offset.saturating_add(done))?;
        let run = Run { len: run.len.min(len.saturating_sub(done)), ..run };
        if run.len == 0 {
            return Err(Error::Invalid);
        }
        match &mut pending {
            Some((_, last)) if last.place.after(last.len) == Some(run.place) => {
                last.len = last.len.saturating_add(run.len);
            }
            _ => {
                if let Some((at, last)) = pending.replace((done, run)) {
                    visit(at, last)?;
                }
            }
        }
        done = done.saturating_add(run.len);
    }
    match pending {
        Some((at, last)) => visit(at, last),
        None => Ok(()),
    }
}

/// Reads through a mapping that has neither parent nor packed units: a file of a file system.
/// The range lies below the mapping's size; `device` is asked with bulk reads.
pub fn read_runs(mapping: &dyn Mapping, device: &dyn BlockDevice, buf: &mut [u8], offset: u64) -> Result<()> {
    check_range(buf.len(), offset, mapping.size())?;
    for_each_run(mapping, offset, buf.len() as u64, |at, run| {
        let part = part_of(buf, at, run.len)?;
        match run.place {
            Place::At(place) => device.read_bulk_at(part, place),
            Place::Hole => {
                part.fill(0);
                Ok(())
            }
            Place::Parent | Place::Packed { .. } => Err(Error::Invalid),
        }
    })
}

/// What [`BlockDevice::extent`] and `SEEK_HOLE` want to know of a mapping without a parent.
pub fn extent_of(mapping: &dyn Mapping, offset: u64) -> Result<Extent> {
    let rest = mapping.size().saturating_sub(offset);
    if rest == 0 {
        return Ok(Extent { stored: true, len: 0 });
    }
    let run = mapping.map(offset)?;
    Ok(Extent { stored: run.place != Place::Hole, len: run.len.min(rest) })
}

pub(super) fn part_of(buf: &mut [u8], at: u64, len: u64) -> Result<&mut [u8]> {
    let start = usize::try_from(at).map_err(|_| Error::Invalid)?;
    let len = usize::try_from(len).map_err(|_| Error::Invalid)?;
    start.checked_add(len).and_then(|end| buf.get_mut(start..end)).ok_or(Error::Invalid)
}

/// A mapping in memory: ascending runs, holes where nothing was pushed.
#[derive(Debug, Clone, Default)]
pub struct RunList {
    /// (first byte, run), ascending, without overlap; never a hole.
    runs: Vec<(u64, Run)>,
    size: u64,
}

impl RunList {
    /// No runs yet: `size` bytes of hole.
    pub fn new(size: u64) -> Self {
        Self { runs: Vec::new(), size }
    }

    /// Adds `len` bytes of the device from `at`, to be read at `offset`. Offsets must not go back:
    /// `false` when they do, or when the numbers overflow.
    #[must_use]
    pub fn push(&mut self, offset: u64, at: u64, len: u64) -> bool {
        if len == 0 {
            return true;
        }
        if offset.checked_add(len).is_none() || at.checked_add(len).is_none() {
            return false;
        }
        if let Some((start, last)) = self.runs.last_mut() {
            let end = start.saturating_add(last.len);
            if offset < end {
                return false;
            }
            if offset == end && last.place.after(last.len) == Some(Place::At(at)) {
                last.len = last.len.saturating_add(len);
                return true;
            }
        }
        self.runs.push((offset, Run { place: Place::At(at), len }));
        true
    }

    /// How many separate runs there are.
    pub fn count(&self) -> usize {
        self.runs.len()
    }

    /// Bytes that are stored, holes not counted.
    pub fn stored(&self) -> u64 {
        self.runs.iter().fold(0, |sum, (_, run)| sum.saturating_add(run.len))
    }

    /// Room that the list takes in memory, in bytes: its weight in a cache.
    pub fn weight(&self) -> u64 {
        (self.runs.capacity().saturating_mul(size_of::<(u64, Run)>()) as u64).saturating_add(64)
    }
}

impl Mapping for RunList {
    fn size(&self) -> u64 {
        self.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let next = self.runs.partition_point(|(start, _)| *start <= offset);
        if let Some((start, run)) = next.checked_sub(1).and_then(|i| self.runs.get(i)) {
            let within = offset.saturating_sub(*start);
            if within < run.len {
                let place = run.place.after(within).ok_or(Error::Invalid)?;
                return Ok(Run { place, len: run.len.saturating_sub(within) });
            }
        }
        let end = self.runs.get(next).map_or(self.size.max(offset.saturating_add(1)), |(start, _)| *start);
        Ok(Run { place: Place::Hole, len: end.saturating_sub(offset) })
    }
}

/// Runs of which it is asked whether the host has holes in them, in bytes; each costs two calls.
const LARGE_RUN: u64 = 1 << 19;

/// A device over a mapping: the decoded disk of a sparse container.
pub struct Mapped {
    mapping: Arc<dyn Mapping>,
    data: Device,
    parent: Option<Device>,
    units: Cache<u64, Arc<Vec<u8>>>,
    sector_size: u32,
}

impl Mapped {
    /// `data` is what [`Place::At`] points into; `cache_size` bounds the unpacked units, in bytes.
    pub fn new(
        mapping: Arc<dyn Mapping>,
        data: Device,
        parent: Option<Device>,
        sector_size: u32,
        cache_size: u64,
    ) -> Self {
        Self { mapping, data, parent, units: Cache::new(cache_size), sector_size }
    }

    /// For units of up to about `unit_size` bytes that are a good part of `cache_size`: fewer are kept.
    pub fn with_large_units(self, cache_size: u64, unit_size: u64) -> Self {
        Self { units: Cache::for_heavy(cache_size, unit_size), ..self }
    }

    /// What the cache of unpacked units did.
    pub fn statistics(&self) -> Statistics {
        self.units.statistics()
    }

    fn read_unit(&self, unit: u64, within: u64, part: &mut [u8]) -> Result<()> {
        let bytes = self.units.get_or_make(&unit, || {
            let bytes = self.mapping.unpack(unit)?;
            let weight = bytes.len() as u64;
            Ok::<_, Error>((Arc::new(bytes), weight))
        })?;
        let start = usize::try_from(within).map_err(|_| Error::Invalid)?;
        let from = start.checked_add(part.len()).and_then(|end| bytes.get(start..end)).ok_or(Error::Invalid)?;
        part.copy_from_slice(from);
        Ok(())
    }

    /// The parent's bytes; zeros where it is shorter than the child.
    fn read_parent(&self, part: &mut [u8], offset: u64) -> Result<()> {
        let Some(parent) = &self.parent else {
            part.fill(0);
            return Ok(());
        };
        let there = parent.size().saturating_sub(offset).min(part.len() as u64);
        let (now, beyond) = part.split_at_mut(usize::try_from(there).map_err(|_| Error::Invalid)?);
        beyond.fill(0);
        if now.is_empty() { Ok(()) } else { parent.read_bulk_at(now, offset) }
    }
}

impl BlockDevice for Mapped {
    fn size(&self) -> u64 {
        self.mapping.size()
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(buf.len(), offset, self.size())?;
        for_each_run(self.mapping.as_ref(), offset, buf.len() as u64, |at, run| {
            let part = part_of(buf, at, run.len)?;
            match run.place {
                Place::At(place) => self.data.read_exact_at(part, place),
                Place::Hole => {
                    part.fill(0);
                    Ok(())
                }
                Place::Parent => self.read_parent(part, offset.saturating_add(at)),
                Place::Packed { unit, within } => self.read_unit(unit, within, part),
            }
        })
    }

    fn extent(&self, offset: u64) -> Result<Extent> {
        let rest = self.size().saturating_sub(offset);
        if rest == 0 {
            return Ok(Extent { stored: true, len: 0 });
        }
        let run = self.mapping.map(offset)?;
        let len = run.len.min(rest);
        match (run.place, &self.parent) {
            (Place::Parent, Some(parent)) if offset < parent.size() => {
                let above = parent.extent(offset)?;
                Ok(Extent { len: above.len.min(len).max(1), ..above })
            }
            (Place::Parent | Place::Hole, _) => Ok(Extent { stored: false, len }),
            // What stores the run may have holes itself: a large block of which a few sectors were written.
            (Place::At(at), _) if len >= LARGE_RUN => {
                let below = self.data.extent(at)?;
                Ok(Extent { len: below.len.min(len).max(1), ..below })
            }
            _ => Ok(Extent { stored: true, len }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::Memory;

    fn letters() -> Device {
        Arc::new(Memory::new((b'a'..=b'z').collect(), 512))
    }

    #[test]
    fn runs_holes_and_the_end_are_read_in_one_go() {
        let mut runs = RunList::new(10);
        assert!(runs.push(0, 3, 2) && runs.push(2, 5, 1) && runs.push(6, 0, 4));
        assert_eq!(runs.count(), 2);
        let mut buf = [b'?'; 10];
        read_runs(&runs, letters().as_ref(), &mut buf, 0).unwrap();
        assert_eq!(&buf, b"def\0\0\0abcd");
        assert!(read_runs(&runs, letters().as_ref(), &mut buf, 1).is_err());
        assert_eq!(extent_of(&runs, 4).unwrap(), Extent { stored: false, len: 2 });
    }

    #[test]
    fn runs_that_go_back_are_refused() {
        let mut runs = RunList::new(10);
        assert!(runs.push(4, 0, 2));
        assert!(!runs.push(5, 9, 1));
        assert!(!runs.push(u64::MAX, 0, 2));
    }

    #[test]
    fn a_short_parent_reads_as_zeros_past_its_end() {
        struct AllParent;
        impl Mapping for AllParent {
            fn size(&self) -> u64 {
                30
            }
            fn map(&self, _: u64) -> Result<Run> {
                Ok(Run { place: Place::Parent, len: 7 })
            }
        }
        let disk = Mapped::new(Arc::new(AllParent), letters(), Some(letters()), 512, 0);
        let mut buf = [b'?'; 6];
        disk.read_exact_at(&mut buf, 22).unwrap();
        assert_eq!(&buf, b"wxyz\0\0");
    }
}
