//! The log: changes of metadata that may not have reached their place. An image that was not closed
//! properly is silently wrong without them, so they are applied here, in memory.
//!
//! ```text
//!   log, a ring of 4 KiB sectors:   | entry n+1 | entry n+2 | old ... | entry n (tail) |
//!   entry:        header | descriptors ... | data sector | data sector ...
//!   descriptors:  "desc" a data sector belongs at this byte    "zero" this range is zeros
//! ```
//!
//! Section 2.3 "Log" of the specification. The active sequence is the one with the highest sequence
//! number whose entries follow each other without a gap from the tail that its last entry names.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{FORMAT, Header, MIB, checksum};
use crate::bytes::Record;
use crate::device::{BlockDevice, Device, check_range, read_vec};
use crate::error::{Error, Result};

const SECTOR: u64 = 4096;
/// Hyper-V and QEMU make logs of 1 MiB.
const MAX_LOG: u64 = 64 << 20;

/// The file as it is with its log applied, and how many entries were.
pub(super) fn replay(file: Device, header: &Header) -> Result<(Device, usize)> {
    let corrupt = || Error::corrupt(FORMAT.name, "log", header.log_at);
    let end = header.log_at.checked_add(header.log_len);
    if header.log_len == 0
        || !header.log_len.is_multiple_of(MIB)
        || header.log_at < MIB
        || end.is_none_or(|end| end > file.size())
    {
        return Err(corrupt());
    }
    if header.log_len > MAX_LOG {
        return Err(Error::unsupported(FORMAT.name, format!("a log of {} bytes", header.log_len)));
    }
    let len = usize::try_from(header.log_len).map_err(|_| corrupt())?;
    let log = Log { bytes: read_vec(file.as_ref(), header.log_at, len)?, at: header.log_at, guid: header.log_guid };
    let entries = log.entries()?;
    let sequence = log.active(&entries).unwrap_or_default();
    // Entries are on disk before what they describe is changed: without a valid one nothing was.
    let Some(head) = sequence.last() else { return Ok((file, 0)) };
    if head.flushed_size > file.size() {
        return Err(Error::corrupt(FORMAT.name, "log (the file was longer when it was written)", header.log_at));
    }
    let size = file.size().max(head.last_size);
    let mut replayed = Replayed { below: file, size, patches: BTreeMap::new() };
    for entry in &sequence {
        log.apply(entry, &mut replayed)?;
    }
    let count = sequence.len();
    Ok((Arc::new(replayed), count))
}

/// The ring.
struct Log {
    bytes: Vec<u8>,
    at: u64,
    guid: [u8; 16],
}

/// A valid entry's header.
#[derive(Debug, Clone, Copy)]
struct Entry {
    start: usize,
    len: usize,
    tail: usize,
    sequence: u64,
    descriptors: u32,
    flushed_size: u64,
    last_size: u64,
}

impl Log {
    /// `len` bytes from `start`, across the end of the ring.
    fn copy(&self, start: usize, len: usize) -> Option<Vec<u8>> {
        let first = self.bytes.get(start..)?;
        if len > self.bytes.len() {
            return None;
        }
        let mut out = first.get(..len.min(first.len()))?.to_vec();
        out.extend_from_slice(self.bytes.get(..len.saturating_sub(out.len()))?);
        Some(out)
    }

    /// All entries whose checksums are right, by where they start.
    fn entries(&self) -> Result<BTreeMap<usize, Entry>> {
        let mut found = BTreeMap::new();
        // Entries do not overlap, but for what is left of older ones. More work than this is a trap.
        let mut budget = self.bytes.len().saturating_mul(8);
        for start in (0..self.bytes.len()).step_by(4096) {
            let Some(entry) = self.entry(start) else { continue };
            budget = budget
                .checked_sub(entry.len)
                .ok_or_else(|| Error::corrupt(FORMAT.name, "log (entries overlap)", self.at))?;
            let bytes = self.copy(start, entry.len).unwrap_or_default();
            let stored = bytes.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
            if stored == Some(checksum(&bytes)) {
                found.insert(start, entry);
            }
        }
        Ok(found)
    }

    /// Section 2.3.1.1 "Entry Header".
    fn entry(&self, start: usize) -> Option<Entry> {
        let bytes = self.bytes.get(start..start.checked_add(64)?)?;
        let record = Record::new(FORMAT.name, "log entry", 0, bytes);
        let aligned = |n: u32| usize::try_from(n).ok().filter(|n| n.is_multiple_of(4096));
        let entry = Entry {
            start,
            len: aligned(record.le32(8).ok()?).filter(|&len| len > 0 && len <= self.bytes.len())?,
            tail: aligned(record.le32(12).ok()?).filter(|&tail| tail < self.bytes.len())?,
            sequence: record.le64(16).ok().filter(|&sequence| sequence > 0)?,
            descriptors: record.le32(24).ok()?,
            flushed_size: record.le64(48).ok()?,
            last_size: record.le64(56).ok()?,
        };
        (record.bytes(0, 4).ok()? == b"loge" && record.array::<16>(32).ok()? == self.guid).then_some(entry)
    }

    /// The entries of the active sequence in order.
    fn active(&self, entries: &BTreeMap<usize, Entry>) -> Option<Vec<Entry>> {
        let next = |entry: &Entry| {
            let after = entry.start.checked_add(entry.len)?.checked_rem(self.bytes.len())?;
            entries.get(&after).filter(|next| Some(next.sequence) == entry.sequence.checked_add(1))
        };
        let mut heads: Vec<&Entry> = entries.values().filter(|entry| next(entry).is_none()).collect();
        heads.sort_by_key(|entry| std::cmp::Reverse(entry.sequence));
        // A healthy log needs one walk over its entries; one made to waste time is given up.
        let mut steps = entries.len().saturating_mul(16);
        for head in heads {
            let Some(mut entry) = entries.get(&head.tail) else { continue };
            let mut sequence = vec![*entry];
            while entry.start != head.start {
                steps = steps.checked_sub(1)?;
                let Some(following) = next(entry) else { break };
                entry = following;
                sequence.push(*entry);
            }
            if entry.start == head.start {
                return Some(sequence);
            }
        }
        None
    }

    /// Section 2.3.1.2 and following: the entry's descriptors and its data sectors.
    fn apply(&self, entry: &Entry, replayed: &mut Replayed) -> Result<()> {
        let bytes = self.copy(entry.start, entry.len).ok_or(Error::Invalid)?;
        let at = self.at.saturating_add(entry.start as u64);
        let record = Record::new(FORMAT.name, "log entry", at, &bytes);
        let count = usize::try_from(entry.descriptors).map_err(|_| record.corrupt())?;
        let mut data = count.saturating_mul(32).saturating_add(64).next_multiple_of(4096);
        for row in 0..count {
            let descriptor = record.part("log descriptor", row.saturating_mul(32).saturating_add(64), 32)?;
            let offset = descriptor.le64(16)?;
            if !offset.is_multiple_of(SECTOR) || descriptor.le64(24)? != entry.sequence {
                return Err(descriptor.corrupt());
            }
            match descriptor.bytes(0, 4)? {
                b"zero" => {
                    let len = descriptor.le64(8)?;
                    let end = offset.checked_add(len).filter(|_| len.is_multiple_of(SECTOR));
                    replayed.put(offset, end.ok_or_else(|| descriptor.corrupt())?, None);
                }
                b"desc" => {
                    let sector = record.part("log data sector", data, 4096)?;
                    data = data.saturating_add(4096);
                    let sequence = u64::from(sector.le32(4)?) << 32 | u64::from(sector.le32(4092)?);
                    if sector.bytes(0, 4)? != b"data" || sequence != entry.sequence {
                        return Err(sector.corrupt());
                    }
                    // The descriptor keeps the bytes whose place the sector's own fields take.
                    let whole = [descriptor.bytes(8, 8)?, sector.bytes(8, 4084)?, descriptor.bytes(4, 4)?].concat();
                    let end = offset.checked_add(SECTOR).ok_or_else(|| descriptor.corrupt())?;
                    replayed.put(offset, end, Some(whole));
                }
                _ => return Err(descriptor.corrupt()),
            }
        }
        Ok(())
    }
}

/// A file with the log's sectors in front of it.
struct Replayed {
    below: Device,
    size: u64,
    /// By first byte; they do not overlap. All borders are multiples of 4 KiB.
    patches: BTreeMap<u64, Patch>,
}

struct Patch {
    end: u64,
    /// One sector; `None` for zeros of any length.
    data: Option<Vec<u8>>,
}

impl Replayed {
    /// Puts a patch in front of what was there.
    fn put(&mut self, start: u64, end: u64, data: Option<Vec<u8>>) {
        if start >= end {
            return;
        }
        let before = self.patches.range_mut(..start).next_back().filter(|(_, patch)| patch.end > start);
        let mut rest = before.map(|(_, patch)| std::mem::replace(&mut patch.end, start));
        while let Some((&covered, _)) = self.patches.range(start..end).next() {
            rest = self.patches.remove(&covered).map(|patch| patch.end);
        }
        // Only zeros are longer than a sector, so what sticks out is zeros.
        if let Some(old_end) = rest.filter(|&old_end| old_end > end) {
            self.patches.insert(end, Patch { end: old_end, data: None });
        }
        self.patches.insert(start, Patch { end, data });
    }
}

impl BlockDevice for Replayed {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector_size(&self) -> u32 {
        self.below.sector_size()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(buf.len(), offset, self.size)?;
        let there = self.below.size().saturating_sub(offset).min(buf.len() as u64);
        let (now, grown) = buf.split_at_mut(usize::try_from(there).map_err(|_| Error::Invalid)?);
        grown.fill(0);
        if !now.is_empty() {
            self.below.read_exact_at(now, offset)?;
        }
        let end = offset.saturating_add(buf.len() as u64);
        let first = self.patches.range(..=offset).next_back().map_or(offset, |(&start, _)| start);
        for (&start, patch) in self.patches.range(first..end.max(first)) {
            let (from, to) = (start.max(offset), patch.end.min(end));
            if from >= to {
                continue;
            }
            let within = |n: u64, base: u64| usize::try_from(n.saturating_sub(base)).map_err(|_| Error::Invalid);
            let part = buf.get_mut(within(from, offset)?..within(to, offset)?).ok_or(Error::Invalid)?;
            match &patch.data {
                None => part.fill(0),
                Some(data) => {
                    let source = data.get(within(from, start)?..within(to, start)?).ok_or(Error::Invalid)?;
                    part.copy_from_slice(source);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::Memory;

    #[test]
    fn later_patches_cover_earlier_ones_and_the_file_grows() {
        let below: Device = Arc::new(Memory::new(vec![1; 3 * 4096], 512));
        let mut replayed = Replayed { below, size: 5 * 4096, patches: BTreeMap::new() };
        replayed.put(0, 4 * 4096, None);
        replayed.put(4096, 2 * 4096, Some(vec![7; 4096]));
        let mut buf = vec![9; 5 * 4096];
        replayed.read_exact_at(&mut buf, 0).unwrap();
        let expected: Vec<u8> = [0, 7, 0, 0, 0].into_iter().flat_map(|byte| vec![byte; 4096]).collect();
        assert_eq!(buf, expected);
        replayed.put(0, 2 * 4096, None);
        let mut buf = [9; 4097];
        replayed.read_exact_at(&mut buf, 4095).unwrap();
        assert_eq!(buf, [0; 4097]);
    }
}
