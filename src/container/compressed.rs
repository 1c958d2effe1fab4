//! What the compressed formats have in common: a list of units that unpack one by one, read through
//! a cache in memory when they are small, and through a spool when they are not.
//!
//! ```text
//!   gz, xz, zst, bz2:  Codec { reader of unit i }  +  starts of the units
//!        |  small units                                 |  large ones
//!        v                                              v
//!   device::mapped, Packed units, LRU            spool: an unlinked sparse file,
//!                                                each unit filled from its start on demand
//! ```
//!
//! The disk that comes out is probed once more for the other formats (`qcow2.gz`); the compressed
//! ones are not tried again, so that nothing nests without end.

pub(super) mod index;
pub(super) mod source;
mod spool;

use std::io::Read;
use std::sync::Arc;

use self::source::cause;
use self::spool::Spool;
use super::{Companions, Opened, Options, ddrescue, open_raw, open_within};
use crate::check::Check;
use crate::device::Device;
use crate::device::mapped::{Mapped, Mapping, Place, Run};
use crate::error::{Error, Result};

/// Not tried on an unpacked disk: what wraps whole files.
const OUTER: [&str; 6] = ["gz", "xz", "zst", "bz2", "split", "ddrescue"];
/// Also not tried when the disk unpacks only from its start: told by their last bytes.
const TRAILED: [&str; 5] = ["vhd", "dmg", "nrg", "d64", "foreign-trailer"];
/// Disks are in whole blocks of this size, but for small and old ones.
const BLOCK: u64 = 4096;
const NOT_LOOKED_AT: &str = "the last bytes were not looked at, because all others would have to be unpacked first: \
     a fixed VHD, a DMG or an NRG would not be recognised";
/// Units past this are never unpacked into memory.
pub(super) const LARGEST_UNIT: u64 = 64 << 20;

/// Unpacks the units of one file.
pub(super) trait Codec: Send + Sync {
    /// The bytes of one unit; after the last one, `read` gives 0 if the unit's checksum agrees.
    fn reader(&self, unit: usize) -> Result<Box<dyn Read + Send>>;
}

/// Says what was left out at the end of a file of `size` bytes, behind `what`, which ends at `end`.
pub(super) fn note_rest(opened: &mut Opened, what: &str, end: u64, size: u64) {
    let (bytes, are) = match size.saturating_sub(end) {
        0 => return,
        1 => ("1 byte".to_owned(), "is"),
        rest => (format!("{rest} bytes"), "are"),
    };
    opened.notes.push(format!("{bytes} after the {what}, from byte {end} on, {are} left out"));
}

/// A compressed file, cut where decompression can start.
pub(super) struct Units {
    /// Name of the format.
    pub(super) format: &'static str,
    pub(super) codec: Box<dyn Codec>,
    /// First unpacked byte of each unit, ascending from 0 without repetition; then the disk's size.
    pub(super) borders: Vec<u64>,
    /// Where the unit starts in the file, for messages.
    pub(super) places: Vec<u64>,
    /// Larger units go to the spool: it takes too long to unpack them again.
    pub(super) resident: u64,
    /// Every unit carries a checksum, which is compared when all of it is read.
    pub(super) checked: bool,
}

impl Units {
    /// Size of the disk.
    fn size(&self) -> u64 {
        self.borders.last().copied().unwrap_or(0)
    }

    /// Number of units.
    fn count(&self) -> usize {
        self.borders.len().saturating_sub(1)
    }

    /// First byte and length of a unit.
    fn span(&self, unit: usize) -> Result<(u64, u64)> {
        let start = *self.borders.get(unit).ok_or(Error::Invalid)?;
        let end = *self.borders.get(unit.saturating_add(1)).ok_or(Error::Invalid)?;
        Ok((start, end.checked_sub(start).filter(|&len| len > 0).ok_or(Error::Invalid)?))
    }

    /// The unit that holds a byte.
    fn find(&self, offset: u64) -> Result<usize> {
        self.borders.partition_point(|&start| start <= offset).checked_sub(1).ok_or(Error::Invalid)
    }

    fn largest(&self) -> u64 {
        let sizes = self.borders.windows(2).map(|pair| match pair {
            [start, end] => end.saturating_sub(*start),
            _ => 0,
        });
        sizes.max().unwrap_or(0)
    }

    /// Damage to a unit.
    fn corrupt(&self, unit: usize, why: &str) -> Error {
        let at = self.places.get(unit).copied().unwrap_or(0);
        Error::corrupt(self.format, format!("compressed data ({why})"), at)
    }

    /// Fills `buf` from a unit's reader.
    fn fill(&self, unit: usize, reader: &mut dyn Read, buf: &mut [u8]) -> Result<()> {
        reader.read_exact(buf).map_err(|error| cause(&error).unwrap_or_else(|| self.corrupt(unit, &error.to_string())))
    }

    /// Reads past the last byte of a unit, which compares its checksum.
    fn finish(&self, unit: usize, reader: &mut dyn Read) -> Result<()> {
        match reader.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.corrupt(unit, "it unpacks to more than it should")),
            Err(error) => Err(cause(&error).unwrap_or_else(|| self.corrupt(unit, &error.to_string()))),
        }
    }
}

impl Mapping for Units {
    fn size(&self) -> u64 {
        Self::size(self)
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let unit = self.find(offset)?;
        let (start, len) = self.span(unit)?;
        let within = offset.saturating_sub(start);
        Ok(Run { place: Place::Packed { unit: unit as u64, within }, len: len.saturating_sub(within) })
    }

    fn unpack(&self, unit: u64) -> Result<Vec<u8>> {
        let unit = usize::try_from(unit).map_err(|_| Error::Invalid)?;
        let (_, len) = self.span(unit)?;
        if len > LARGEST_UNIT {
            return Err(Error::Invalid);
        }
        let mut unpacked = vec![0; usize::try_from(len).map_err(|_| Error::Invalid)?];
        let mut reader = self.codec.reader(unit)?;
        self.fill(unit, reader.as_mut(), &mut unpacked)?;
        self.finish(unit, reader.as_mut())?;
        Ok(unpacked)
    }
}

/// Makes the disk out of the units, and opens what is in it.
pub(super) fn open(units: Units, file: &Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let checked = units.checked;
    let (format, size, count, largest) = (units.format, units.size(), units.count(), units.largest());
    let in_memory = largest <= units.resident || (options.no_spool && largest <= LARGEST_UNIT);
    let disk: Device = if in_memory {
        let mapped = Mapped::new(Arc::new(units), file.clone(), None, 512, options.cache_size);
        Arc::new(mapped.with_large_units(options.cache_size, largest))
    } else if options.no_spool {
        let what = format!(
            "reading without a spool (its largest part unpacks to {largest} bytes, and only from its start on)"
        );
        return Err(Error::unsupported(format, what));
    } else {
        Arc::new(Spool::new(units, options)?)
    };
    let unpacked = disk.clone();
    let mut opened = open_inner(disk, !in_memory && count == 1, companions, options)?;
    if opened.format == "raw" {
        opened.format = format;
    }
    let parts = if count == 1 { "one part".to_owned() } else { format!("{count} parts, the largest {largest} bytes") };
    let facts = [
        ("compression", format.to_owned()),
        ("unpacked size", format!("{size} bytes")),
        ("random access", if in_memory { parts } else { format!("{parts}, through a spool") }),
    ];
    opened.facts.splice(0..0, facts);
    if checked {
        let check = Check::reads("checksums of the compressed data", format!("{count} parts"), unpacked);
        opened.checks.insert(0, check);
    }
    Ok(opened)
}

/// Opens what the disk is; `forward` says that its last bytes cost all the others. Where the disk
/// cannot be read for a format to be told, it is shown as it is, with the reason.
fn open_inner(disk: Device, forward: bool, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    let mut notes = Vec::new();
    let mut outer = OUTER.to_vec();
    let len = disk.size().min(512);
    let mut start = vec![0; usize::try_from(len).map_err(|_| Error::Invalid)?];
    if let Err(error) = disk.read_exact_at(&mut start, 0) {
        let mut opened = open_raw(disk, options)?;
        opened.notes.push(format!("the first bytes cannot be read, so no format was looked for inside: {error}"));
        return Ok(opened);
    }
    if forward {
        // A dynamic VHD is told by its first bytes, too; and a disk of whole blocks with a sector behind them
        // is most likely a fixed one, which is worth unpacking.
        let vhd = start.starts_with(b"conectix") || disk.size() % BLOCK == 512;
        outer.extend(TRAILED.iter().filter(|&&name| name != "vhd" || !vhd));
        if !vhd && !disk.size().is_multiple_of(BLOCK) {
            notes.push(NOT_LOOKED_AT.to_owned());
        }
    } else if let Err(error) = disk.read_exact_at(&mut start, disk.size().saturating_sub(len)) {
        outer.extend(TRAILED);
        notes.push(format!("the last bytes cannot be read: {error}"));
    }
    let mut opened = match ddrescue::of_unpacked(disk.size(), companions) {
        Some(map) => ddrescue::open_through(&map, disk, &outer, companions, options)?,
        None => open_within(&outer, disk, companions, options)?,
    };
    opened.notes.extend(notes);
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::FORMATS;
    use crate::device::{BlockDevice, check_range};
    use std::ffi::OsStr;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Zeros, and how far anyone has read them.
    struct Zeros(AtomicU64);

    impl BlockDevice for Zeros {
        fn size(&self) -> u64 {
            64 << 20
        }

        fn sector_size(&self) -> u32 {
            512
        }

        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            check_range(buf.len(), offset, self.size())?;
            self.0.fetch_max(offset, Ordering::Relaxed);
            buf.fill(0);
            Ok(())
        }
    }

    struct Alone;

    impl Companions for Alone {
        fn own_name(&self) -> &OsStr {
            OsStr::new("disk.img")
        }

        fn open(&self, _: &Path) -> Result<Device> {
            Err(Error::NotFound)
        }

        fn open_disk(&self, _: &Path, _: Option<&str>) -> Result<Opened> {
            Err(Error::NotFound)
        }

        fn siblings(&self) -> Result<Vec<PathBuf>> {
            Ok(Vec::new())
        }

        fn allowed(&self) -> Vec<PathBuf> {
            Vec::new()
        }

        fn inside(&self, _: &Path) -> Result<Vec<PathBuf>> {
            Err(Error::NotFound)
        }

        fn open_inside(&self, _: &Path, _: &Path) -> Result<Device> {
            Err(Error::NotFound)
        }

        fn map(&self) -> Option<(PathBuf, Device)> {
            None
        }
    }

    #[test]
    fn formats_that_look_at_a_disks_end_are_known_to_do_so() {
        for format in FORMATS {
            let zeros = Zeros(AtomicU64::new(0));
            assert!(!(format.probe)(&zeros, &Alone).unwrap(), "{}", format.name);
            let far = zeros.0.into_inner() > 4 << 20;
            assert!(!far || TRAILED.contains(&format.name), "{} unpacks a whole disk to be told", format.name);
        }
    }
}
