//! A patch: the changed sectors as one portable file, with hashes of what they replace.
//!
//! ```text
//!   "imgfspat"  version (1), 4   sector size, 4   disk size, 8       numbers are little-endian
//!   record:     offset, 8        length, 4        SHA-256 of what is replaced, 32      the new bytes
//!   ...
//!   end mark:   offset ff..ff, 8
//!   SHA-256 of everything before, 32
//! ```
//! Records ascend, do not overlap, and are whole sectors of at most 1 MiB (the last one of a disk
//! may be short).

use std::io::{Read, Seek, SeekFrom, Write};

use sha2::{Digest, Sha256};

use super::store::host;
use super::{Hash, Overlay, State};
use crate::bytes::Record;
use crate::device::BlockDevice;
use crate::error::{Error, Result};

const PATCH: &str = "patch";
const MAGIC: &[u8; 8] = b"imgfspat";
const VERSION: u32 = 1;
const HEAD_LEN: usize = 24;
const RECORD_LEN: usize = 44;
const MAX_RECORD: u64 = 1 << 20;
const END: u64 = u64::MAX;

/// What [`Overlay::export_patch`] wrote, or [`apply_patch`] found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PatchSummary {
    /// Runs of sectors.
    pub records: u64,
    /// Bytes that differ, in whole sectors.
    pub bytes: u64,
    /// Records that the target had already.
    pub present: u64,
}

/// Called with an offset, the base's bytes there, and the overlay's.
pub type OnDifference<'a> = &'a mut dyn FnMut(u64, &[u8], &[u8]) -> Result<()>;

/// Called with an offset, the hash of what is replaced there, and the new bytes.
type OnRecord<'a> = &'a mut dyn FnMut(u64, &Hash, &[u8]) -> Result<()>;

/// A writer that hashes.
struct Hashed<'a> {
    out: &'a mut dyn Write,
    hash: Sha256,
}

impl Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes).map_err(|error| host("writing the patch", error))
    }
}

impl Overlay {
    /// Whether there is a base to compare with: while a commit in place is unfinished it is neither the old
    /// nor the new one.
    pub fn check_comparable(&self) -> Result<()> {
        match self.binding() {
            Some(binding) if binding.state == State::Copying => Err(self.interrupted()),
            _ => Ok(()),
        }
    }

    /// Runs of sectors that really differ from the base, ascending, at most 1 MiB each.
    pub fn for_each_difference(&self, visit: OnDifference<'_>) -> Result<()> {
        self.check_comparable()?;
        let sector = usize::try_from(self.sector_size()).unwrap_or(512).max(1);
        for run in self.changed_runs() {
            let (start, len) = run?;
            for piece in (0..len).step_by(1 << 20) {
                let offset = start.saturating_add(piece);
                let count = usize::try_from(len.saturating_sub(piece).min(MAX_RECORD)).map_err(|_| Error::Invalid)?;
                let (mut old, mut new) = (vec![0; count], vec![0; count]);
                self.read_base(&mut old, offset, true)?;
                self.read_bulk_at(&mut new, offset)?;
                let sectors: Vec<(&[u8], &[u8])> = old.chunks(sector).zip(new.chunks(sector)).collect();
                let mut at = 0usize;
                for group in sectors.chunk_by(|a, b| (a.0 == a.1) == (b.0 == b.1)) {
                    let len = group.iter().fold(0usize, |sum, (old, _)| sum.saturating_add(old.len()));
                    let range = at..at.saturating_add(len);
                    at = range.end;
                    if group.first().is_some_and(|(old, new)| old != new) {
                        let within = offset.saturating_add(range.start as u64);
                        let old = old.get(range.clone()).ok_or(Error::Invalid)?;
                        visit(within, old, new.get(range).ok_or(Error::Invalid)?)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes what differs from the base as a patch.
    pub fn export_patch(&self, out: &mut dyn Write) -> Result<PatchSummary> {
        self.check_comparable()?;
        let mut out = Hashed { out, hash: Sha256::new() };
        let mut summary = PatchSummary::default();
        out.write(MAGIC)?;
        out.write(&VERSION.to_le_bytes())?;
        out.write(&self.sector_size().to_le_bytes())?;
        out.write(&self.size().to_le_bytes())?;
        self.for_each_difference(&mut |offset, old, new| {
            out.write(&offset.to_le_bytes())?;
            out.write(&u32::try_from(new.len()).map_err(|_| Error::Invalid)?.to_le_bytes())?;
            out.write(&hash_of(old))?;
            out.write(new)?;
            summary.records = summary.records.saturating_add(1);
            summary.bytes = summary.bytes.saturating_add(new.len() as u64);
            Ok(())
        })?;
        out.write(&END.to_le_bytes())?;
        let hash: Hash = out.hash.clone().finalize().into();
        out.write(&hash)?;
        out.out.flush().map_err(|error| host("writing the patch", error))?;
        Ok(summary)
    }
}

fn hash_of(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

/// Applies a patch to a device that can be written, and flushes. The patch is read twice: nothing
/// is written before all of it was found whole, and every sector to be either what it replaces or
/// what it brings (so that an interrupted application can be repeated).
pub fn apply_patch<R: Read + Seek>(patch: &mut R, target: &dyn BlockDevice) -> Result<PatchSummary> {
    let writer = target.writer().ok_or(Error::ReadOnly)?;
    let mut summary = PatchSummary::default();
    let start = patch.stream_position().map_err(|error| host("reading the patch", error))?;
    let mut old = Vec::new();
    read_patch(patch, target, &mut |offset, replaced, new| {
        old.resize(new.len(), 0);
        target.read_bulk_at(&mut old, offset)?;
        summary.records = summary.records.saturating_add(1);
        summary.bytes = summary.bytes.saturating_add(new.len() as u64);
        if old == new {
            summary.present = summary.present.saturating_add(1);
        } else if &hash_of(&old) != replaced {
            let what = format!("the patch does not fit: bytes {offset} to {}", offset.saturating_add(new.len() as u64));
            let why = "they are neither what it replaces nor what it brings";
            return Err(Error::io(what, std::io::Error::new(std::io::ErrorKind::InvalidData, why)));
        }
        Ok(())
    })?;
    patch.seek(SeekFrom::Start(start)).map_err(|error| host("reading the patch", error))?;
    read_patch(patch, target, &mut |offset, _, new| writer.write_all_at(new, offset))?;
    writer.flush()?;
    Ok(summary)
}

/// Calls `visit` with each record: offset, hash of what is replaced, the new bytes.
fn read_patch(patch: &mut dyn Read, target: &dyn BlockDevice, visit: OnRecord<'_>) -> Result<()> {
    let mut reader = Reader { patch, hash: Sha256::new(), at: 0 };
    let head = reader.take::<HEAD_LEN>("header")?;
    let head = Record::new(PATCH, "header", 0, &head);
    if head.array(0)? != *MAGIC {
        return Err(Error::unsupported(PATCH, "a file that is not a patch"));
    }
    if head.le32(8)? != VERSION {
        return Err(Error::unsupported(PATCH, format!("version {}", head.le32(8)?)));
    }
    if head.le64(16)? != target.size() {
        let what = format!("the patch is for a disk of {} bytes, this one has {}", head.le64(16)?, target.size());
        return Err(Error::io(what, std::io::Error::new(std::io::ErrorKind::InvalidData, "refused")));
    }
    let mut end = 0u64;
    loop {
        let at = reader.at;
        let offset = u64::from_le_bytes(reader.take::<8>("record")?);
        if offset == END {
            break;
        }
        let fields = reader.take::<{ RECORD_LEN - 8 }>("record")?;
        let fields = Record::new(PATCH, "record", at, &fields);
        let len = u64::from(fields.le32(0)?);
        let after = offset.checked_add(len).filter(|after| *after <= target.size());
        if len == 0 || len > MAX_RECORD || offset < end || after.is_none() {
            return Err(fields.corrupt());
        }
        end = after.unwrap_or(end);
        let mut new = vec![0; usize::try_from(len).map_err(|_| Error::Invalid)?];
        reader.fill(&mut new, "record")?;
        visit(offset, &fields.array(4)?, &new)?;
    }
    let found: Hash = reader.hash.clone().finalize().into();
    let at = reader.at;
    if reader.take::<32>("checksum")? != found {
        return Err(Error::corrupt(PATCH, "checksum", at));
    }
    Ok(())
}

struct Reader<'a> {
    patch: &'a mut dyn Read,
    hash: Sha256,
    at: u64,
}

impl Reader<'_> {
    fn fill(&mut self, buf: &mut [u8], what: &'static str) -> Result<()> {
        self.patch.read_exact(buf).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::corrupt(PATCH, what, self.at),
            _ => host("reading the patch", error),
        })?;
        self.hash.update(&*buf);
        self.at = self.at.saturating_add(buf.len() as u64);
        Ok(())
    }

    fn take<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        let mut buf = [0; N];
        self.fill(&mut buf, what)?;
        Ok(buf)
    }
}
