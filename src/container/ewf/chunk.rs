//! Chunks and the tables that say where they lie.

use std::sync::Arc;

use super::super::unpack::inflate_whole;
use super::metadata::Notes;
use super::section::{Section, adler32};
use super::{FORMAT, Volume};
use crate::bytes::Record;
use crate::cache::Cache;
use crate::check::MAX_FAULTS;
use crate::device::mapped::{Mapping, Place, Run};
use crate::device::{Device, read_vec};
use crate::error::{Error, Result};

/// Header of a table; its entries follow.
const TABLE_HEADER: u64 = 24;
/// Entries of one table: EnCase writes 16,375, others up to a few hundred thousand.
const MAX_ENTRIES: u64 = 1 << 22;
/// Bound on the tables that are kept parsed, bytes: maps 64 GiB of chunks of 32 KiB.
const TABLE_CACHE: u64 = 16 << 20;

/// One table, and its second copy.
struct Table {
    device: Device,
    segment: u32,
    /// Places of the entries: of the table, and of its copy.
    copies: Vec<u64>,
    count: u64,
    /// Offsets count from here.
    base: u64,
    /// Bytes after the last chunk.
    data_end: u64,
    first_chunk: u64,
}

/// Collects the tables in the order of their chunks.
#[derive(Default)]
pub(super) struct Builder {
    tables: Vec<Table>,
    chunks: u64,
    /// Segment and end of the `sectors` section that waits for its table.
    sectors: Option<(u32, u64)>,
    /// Segment of the last table, and whether it could be read.
    last: Option<(u32, bool)>,
}

impl Builder {
    pub(super) fn sectors(&mut self, section: &Section) {
        self.sectors = Some((section.segment, section.end));
        self.last = None;
    }

    /// A `table`, or the `table2` that repeats the one before it.
    pub(super) fn add(&mut self, section: &Section, notes: &mut Notes) {
        let header = match Header::read(section) {
            Ok(header) => header,
            Err(error) => {
                notes.push(format!("segment {}: {error}", section.segment));
                if section.kind == "table" {
                    self.last = Some((section.segment, false));
                }
                return;
            }
        };
        let copy = section.kind == "table2" && self.last.is_some_and(|(segment, _)| segment == section.segment);
        let entries_at = section.data_at.saturating_add(TABLE_HEADER);
        if copy && self.last.is_some_and(|(_, sound)| sound) {
            if let Some(table) = self.tables.last_mut().filter(|table| table.count == header.count) {
                table.copies.push(entries_at);
            }
            self.last = None;
            return;
        }
        self.last = (section.kind == "table").then_some((section.segment, true));
        // Without a section of their own, the chunks lie in the table's.
        let own = self.sectors.filter(|(segment, _)| *segment == section.segment);
        let data_end = own.map_or(section.end, |(_, end)| end);
        self.tables.push(Table {
            device: section.device.clone(),
            segment: section.segment,
            copies: vec![entries_at],
            count: header.count,
            base: header.base,
            data_end,
            first_chunk: self.chunks,
        });
        self.chunks = self.chunks.saturating_add(header.count);
    }

    pub(super) fn finish(self, volume: &Volume, notes: &mut Notes) -> Result<Chunks> {
        let size = volume.size().ok_or(Error::Invalid)?;
        let needed = size.div_ceil(volume.chunk_size().max(1));
        if self.chunks < needed {
            let missing = needed.saturating_sub(self.chunks);
            notes.push(format!("the last {missing} of {needed} chunks have no table and cannot be read"));
        }
        if self.tables.is_empty() {
            return Err(Error::corrupt(FORMAT.name, "table section (there is none that can be read)", 13));
        }
        Ok(Chunks {
            tables: self.tables,
            parsed: Cache::for_heavy(TABLE_CACHE, 512 << 10),
            chunk_size: volume.chunk_size(),
            footers: !volume.smart,
            size,
        })
    }
}

/// Section "Table header".
struct Header {
    count: u64,
    base: u64,
}

impl Header {
    fn read(section: &Section) -> Result<Self> {
        let bytes = section.read(TABLE_HEADER)?;
        let record = Record::new(FORMAT.name, "table section", section.at(), &bytes);
        if record.le32(20)? != adler32(record.bytes(0, 20)?) {
            return Err(record.corrupt_field("checksum of its header"));
        }
        let count = u64::from(record.le32(0)?);
        let room = section.end.saturating_sub(section.data_at).saturating_sub(TABLE_HEADER) / 4;
        if count > room || count > MAX_ENTRIES {
            return Err(record.corrupt_field("number of entries"));
        }
        Ok(Self { count, base: record.le64(8)? })
    }
}

/// The chunks of a set as a disk.
pub(super) struct Chunks {
    tables: Vec<Table>,
    /// By number of the table.
    parsed: Cache<usize, Arc<Vec<Entry>>>,
    chunk_size: u64,
    /// Entries are followed by their checksum.
    footers: bool,
    size: u64,
}

/// Where a chunk begins, counted from the table's base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    offset: u32,
    packed: bool,
}

impl Mapping for Chunks {
    fn size(&self) -> u64 {
        self.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let chunk_size = self.chunk_size.max(1);
        let (unit, within) = (offset.checked_div(chunk_size), offset.checked_rem(chunk_size));
        let (unit, within) = (unit.unwrap_or(0), within.unwrap_or(0));
        Ok(Run { place: Place::Packed { unit, within }, len: chunk_size.saturating_sub(within) })
    }

    fn unpack(&self, chunk: u64) -> Result<Vec<u8>> {
        let start = chunk.checked_mul(self.chunk_size).ok_or(Error::Invalid)?;
        // The last one may be short.
        let len = self.size.checked_sub(start).ok_or(Error::Invalid)?.min(self.chunk_size);
        let found = self.tables.partition_point(|table| table.first_chunk <= chunk).checked_sub(1);
        let missing = || Error::corrupt(FORMAT.name, format!("chunk {chunk} (it is in no table)"), 0);
        let number = found.ok_or_else(missing)?;
        let table = self.tables.get(number).ok_or_else(missing)?;
        let index = chunk.saturating_sub(table.first_chunk);
        if index >= table.count {
            return Err(missing());
        }
        let entries = self.entries(number, table)?;
        let index = usize::try_from(index).map_err(|_| Error::Invalid)?;
        let entry = entries.get(index).ok_or_else(missing)?;
        let at = table.base.saturating_add(entry.offset.into());
        let corrupt = || Error::corrupt(FORMAT.name, format!("chunk {chunk} in segment {}", table.segment), at);
        let next = entries.get(index.saturating_add(1)).map(|next| table.base.saturating_add(next.offset.into()));
        let end = next.filter(|&next| next > at).unwrap_or(table.data_end).min(table.data_end);
        // Deflate grows what it cannot pack by a thousandth; the rest is for writers that pad.
        let most = self.chunk_size.saturating_add(self.chunk_size / 8).saturating_add(4096);
        let stored = end.checked_sub(at).filter(|&stored| stored > 4).ok_or_else(corrupt)?.min(most);
        let stored = read_vec(table.device.as_ref(), at, usize::try_from(stored).map_err(|_| corrupt())?)
            .map_err(|error| if matches!(error, Error::PastEnd { .. }) { corrupt() } else { error })?;
        let len = usize::try_from(len).map_err(|_| corrupt())?;
        let unpacked = if entry.packed { self.inflate(&stored, len) } else { self.plain(&stored, len) };
        unpacked.ok_or_else(corrupt)
    }
}

impl Chunks {
    pub(super) fn tables(&self) -> usize {
        self.tables.len()
    }

    /// What is wrong with any copy of any table; reading goes on with the other copy.
    pub(super) fn faults(&self) -> Result<Vec<String>> {
        let mut faults = Vec::new();
        for table in self.tables.iter().filter(|_| self.footers) {
            let len = usize::try_from(table.count.saturating_mul(4)).map_err(|_| Error::Invalid)?;
            for &at in &table.copies {
                let bytes = read_vec(table.device.as_ref(), at, len.saturating_add(4))?;
                let sound = bytes.split_at_checked(len).is_some_and(|(rows, sum)| sum == adler32(rows).to_le_bytes());
                if !sound && faults.len() < MAX_FAULTS {
                    faults.push(format!("the table at byte {at} of segment {} is damaged", table.segment));
                }
            }
        }
        Ok(faults)
    }

    /// The entries of a table whose checksum agrees: its own, or those of its copy.
    fn entries(&self, number: usize, table: &Table) -> Result<Arc<Vec<Entry>>> {
        self.parsed.get_or_make(&number, || {
            let corrupt = |at| Error::corrupt(FORMAT.name, format!("table in segment {}", table.segment), at);
            let len = usize::try_from(table.count.saturating_mul(4)).map_err(|_| Error::Invalid)?;
            for &at in &table.copies {
                let bytes = read_vec(table.device.as_ref(), at, len.saturating_add(if self.footers { 4 } else { 0 }))?;
                let (entries, footer) = bytes.split_at_checked(len).ok_or_else(|| corrupt(at))?;
                if self.footers && footer != adler32(entries).to_le_bytes() {
                    continue;
                }
                let entries = Arc::new(parse(entries));
                return Ok((entries, table.count.saturating_mul(size_of::<Entry>() as u64)));
            }
            Err(corrupt(table.copies.first().copied().unwrap_or(0)))
        })
    }

    /// zlib checks its own Adler-32: only a stream that ends is a sound one.
    fn inflate(&self, stored: &[u8], len: usize) -> Option<Vec<u8>> {
        let mut unpacked = vec![0; usize::try_from(self.chunk_size).ok()?];
        let sound = inflate_whole(stored, true, &mut unpacked)? >= len;
        unpacked.truncate(len);
        sound.then_some(unpacked)
    }

    /// Bytes and their Adler-32. Some writers fill up the last chunk; ewfacquirestream leaves in it what the
    /// stream had after its last whole sector, which is not the disk's.
    fn plain(&self, stored: &[u8], len: usize) -> Option<Vec<u8>> {
        let full = usize::try_from(self.chunk_size).ok()?;
        [len, full, stored.len().saturating_sub(4)].into_iter().find_map(|count| {
            let (bytes, rest) = stored.split_at_checked(count)?;
            let sum = u32::from_le_bytes(*rest.first_chunk()?);
            (adler32(bytes) == sum).then(|| bytes.get(..len).map(<[u8]>::to_vec))?
        })
    }
}

/// Section "Table entry": 31 bits and a mark for packed chunks. EnCase 6.7 wrote sections that grow
/// past 2 GiB: from the first offset that needs all 32 bits on, there is no mark, and nothing packed.
fn parse(bytes: &[u8]) -> Vec<Entry> {
    const PACKED: u32 = 1 << 31;
    let (words, _) = bytes.as_chunks::<4>();
    let words: Vec<u32> = words.iter().map(|&word| u32::from_le_bytes(word)).collect();
    let mut wide = false;
    let mut last = 0u32;
    let mut entries = Vec::with_capacity(words.len());
    for word in words {
        let offset = word & !PACKED;
        wide = wide || (offset < last && word > last);
        let entry = if wide { Entry { offset: word, packed: false } } else { Entry { offset, packed: word != offset } };
        last = entry.offset;
        entries.push(entry);
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_past_2_gib_have_no_mark() {
        let words = [0x8000_0010u32, 0x0000_9000, 0xffff_f000, 0x8000_8000, 0x8001_0000];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let found = parse(&bytes);
        assert_eq!(found[0], Entry { offset: 0x10, packed: true });
        assert_eq!(found[2], Entry { offset: 0x7fff_f000, packed: true });
        assert_eq!(found[3], Entry { offset: 0x8000_8000, packed: false });
        assert_eq!(found[4], Entry { offset: 0x8001_0000, packed: false });
    }
}
