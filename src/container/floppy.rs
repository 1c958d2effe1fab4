//! A floppy disk as its image describes it: tracks of numbered sectors in any order. Every format of
//! emulators and archivers ends here.
//!
//! ```text
//!   cylinder 0, head 0 | cylinder 0, head 1 | cylinder 1, head 0 | ..     sectors by their number
//! ```
//!
//! The flat disk has the sectors in the order of their numbers, whatever their place on the track. A
//! sector that other tracks have and this one does not, and one whose data are lost, is an error
//! when it is read.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bad::{BadRange, Damaged};
use super::{Opened, Options};
use crate::device::memory::Memory;
use crate::device::{BlockDevice, Device, read_vec};
use crate::error::{Error, Result};

/// No floppy has more: 240 MB drives are not described sector by sector.
pub(super) const MAX_SIZE: u64 = 64 << 20;

/// What is known of a sector.
pub(super) enum Data {
    Good(Vec<u8>),
    /// Its checksum was wrong when it was read.
    Doubtful(Vec<u8>),
    /// It was not in use, and left out by the program that read it.
    Unused,
    /// It was there, and could not be read.
    Lost,
}

/// A sector of a track.
pub(super) struct Sector {
    /// Its number on the track.
    pub(super) id: u8,
    /// In bytes.
    pub(super) size: usize,
    /// Its data mark is the one of deleted data.
    pub(super) deleted: bool,
    pub(super) data: Data,
}

/// Numbers of a track's sectors, ascending, and the size of each.
type Shape = (Vec<u8>, usize);

/// All sectors by cylinder and head.
#[derive(Default)]
pub(super) struct Floppy {
    tracks: BTreeMap<(u8, u8), Vec<Sector>>,
    size: u64,
}

/// The whole file of a floppy.
pub(super) fn read_all(file: &dyn BlockDevice, format: &'static str) -> Result<Vec<u8>> {
    if file.size() > MAX_SIZE {
        return Err(Error::corrupt(format, "the file (longer than any floppy)", 0));
    }
    read_vec(file, 0, usize::try_from(file.size()).map_err(|_| Error::Invalid)?)
}

impl Floppy {
    /// Adds a sector; a second one of the same number counts when the first one is not good.
    pub(super) fn push(&mut self, format: &'static str, place: (u8, u8), sector: Sector) -> Result<()> {
        self.size = self.size.saturating_add(sector.size as u64);
        if self.size > MAX_SIZE {
            return Err(Error::corrupt(format, "sectors (more than any floppy has)", 0));
        }
        let track = self.tracks.entry(place).or_default();
        match track.iter_mut().find(|known| known.id == sector.id) {
            Some(known) if !matches!(known.data, Data::Good(_)) && matches!(sector.data, Data::Good(_)) => {
                *known = sector
            }
            Some(_) => {}
            None => track.push(sector),
        }
        Ok(())
    }

    /// Numbers and size of the sectors that most tracks have, and how many have them.
    fn most<'a>(tracks: impl Iterator<Item = &'a Vec<Sector>>) -> (Shape, usize) {
        let mut shapes: BTreeMap<Shape, usize> = BTreeMap::new();
        for track in tracks {
            let mut ids: Vec<u8> = track.iter().map(|sector| sector.id).collect();
            ids.sort_unstable();
            let size = track.first().map_or(0, |sector| sector.size);
            let count = shapes.entry((ids, size)).or_default();
            *count = count.saturating_add(1);
        }
        shapes.into_iter().max_by_key(|(_, count)| *count).unwrap_or_default()
    }

    /// Numbers and size of the sectors that a track of this head has. On some machines (Kaypro) the second
    /// side goes on counting; a side that is mostly lost is taken to be like the other.
    fn usual(&self, head: u8, cylinders: usize) -> Shape {
        let of_head = self.tracks.iter().filter(|((_, of), _)| *of == head).map(|(_, track)| track);
        let (shape, count) = Self::most(of_head);
        if count > cylinders / 2 { shape } else { Self::most(self.tracks.values()).0 }
    }

    /// The flat disk.
    pub(super) fn open(mut self, format: &'static str, options: &Options) -> Result<Opened> {
        let heads = self.tracks.keys().map(|&(_, head)| head).max().unwrap_or(0).min(1);
        let cylinders = self.tracks.keys().map(|&(cylinder, _)| cylinder).max().unwrap_or(0);
        let count = usize::from(cylinders).saturating_add(1);
        let shapes = [self.usual(0, count), self.usual(1, count)];
        let [(first, size), _] = &shapes;
        let (sectors, size) = (first.len(), *size);
        if size == 0 {
            return Err(Error::corrupt(format, "tracks (there is no sector)", 0));
        }
        let mut flat = Flat { format, bytes: Vec::new(), bad: Vec::new() };
        let (mut doubtful, mut deleted, mut unused) = (0u32, 0u32, 0u32);
        for cylinder in 0..=cylinders {
            for (head, (ids, size)) in (0..=heads).zip(&shapes) {
                let mut track = self.tracks.remove(&(cylinder, head)).unwrap_or_default();
                let size = *size;
                if track.first().is_none_or(|sector| sector.size == size) {
                    let missing = ids.iter().filter(|id| track.iter().all(|sector| sector.id != **id)).copied();
                    let missing: Vec<u8> = missing.collect();
                    track.extend(missing.into_iter().map(|id| Sector { id, size, deleted: false, data: Data::Lost }));
                }
                track.sort_by_key(|sector| sector.id);
                for sector in track {
                    deleted = deleted.saturating_add(sector.deleted.into());
                    doubtful = doubtful.saturating_add(matches!(sector.data, Data::Doubtful(_)).into());
                    unused = unused.saturating_add(matches!(sector.data, Data::Unused).into());
                    flat.push(sector)?;
                }
            }
        }
        let mut opened = flat.open(options);
        let shape = (u32::from(cylinders).saturating_add(1), u32::from(heads).saturating_add(1), sectors);
        opened
            .add("geometry", format!("{} cylinders, {} heads, {} sectors of {size} bytes", shape.0, shape.1, shape.2));
        for (count, what) in [
            (doubtful, "sectors had a wrong checksum when they were read; they are shown as they were read"),
            (deleted, "sectors have the mark of deleted data; they are shown like the others"),
            (unused, "sectors were not in use and are not in the image; they read as zeros"),
        ] {
            if count > 0 {
                opened.notes.push(format!("{count} {what}"));
            }
        }
        Ok(opened)
    }
}

/// The flat disk while it is put together.
pub(super) struct Flat {
    pub(super) format: &'static str,
    pub(super) bytes: Vec<u8>,
    pub(super) bad: Vec<BadRange>,
}

impl Flat {
    fn push(&mut self, sector: Sector) -> Result<()> {
        let start = self.bytes.len();
        let end = start.saturating_add(sector.size);
        if end as u64 > MAX_SIZE {
            return Err(Error::corrupt(self.format, "tracks (more than any floppy has)", 0));
        }
        match sector.data {
            Data::Good(data) | Data::Doubtful(data) => self.bytes.extend(data),
            Data::Lost => self.bad.push(BadRange { offset: start as u64, len: sector.size as u64 }),
            Data::Unused => {}
        }
        self.bytes.resize(end, 0);
        Ok(())
    }

    /// The disk, with its bad ranges.
    pub(super) fn open(self, options: &Options) -> Opened {
        let size = self.bytes.len();
        let lost = self.bad.iter().fold(0u64, |sum, range| sum.saturating_add(range.len));
        let mut disk = in_memory(self.bytes);
        if lost > 0 {
            disk = Arc::new(Damaged::new(disk, self.bad, "sectors that could not be read", options.bad_as_zeros));
        }
        let mut opened = Opened::new(self.format, disk);
        opened.add("virtual size", format!("{size} bytes"));
        if lost > 0 {
            opened.add("bad bytes", lost);
            let how = if options.bad_as_zeros { "read as zeros" } else { "are errors" };
            opened.notes.push(format!("{lost} bytes in sectors that could not be read {how}"));
        }
        opened
    }
}

/// Unpacked bytes as a disk.
pub(super) fn in_memory(bytes: Vec<u8>) -> Device {
    Arc::new(ReadOnly(Memory::new(bytes, 512)))
}

/// A decoded floppy is not to be written to: what was written would be lost.
struct ReadOnly(Memory);

impl BlockDevice for ReadOnly {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn sector_size(&self) -> u32 {
        self.0.sector_size()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(id: u8, fill: u8) -> Sector {
        Sector { id, size: 128, deleted: false, data: Data::Good(vec![fill; 128]) }
    }

    #[test]
    fn sectors_stand_by_number_and_missing_ones_are_errors() {
        let mut floppy = Floppy::default();
        for (place, id, fill) in [((0, 0), 3, 3), ((0, 0), 1, 1), ((0, 0), 2, 2), ((2, 0), 2, 22), ((2, 0), 1, 21)] {
            floppy.push("test", place, sector(id, fill)).unwrap();
        }
        for id in [1, 2, 3] {
            floppy.push("test", (1, 0), sector(id, 10 + id)).unwrap();
        }
        let opened = floppy.open("test", &Options::default()).unwrap();
        let first = |n: u64| read_vec(opened.disk.as_ref(), n * 128, 128).map(|bytes| bytes[0]).ok();
        let fills: Vec<_> = (0..9).map(first).collect();
        assert_eq!(fills, [Some(1), Some(2), Some(3), Some(11), Some(12), Some(13), Some(21), Some(22), None]);
        assert_eq!(opened.fact("bad bytes"), Some("128"));
        assert!(opened.disk.writer().is_none());
    }
}
