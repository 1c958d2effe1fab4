//! The binding: what the overlay remembers of its base, so that a changed or wrong one is refused.
//!
//! Contents of our header extension, big-endian as all of qcow2:
//! ```text
//!   0  version (1)        16  disk size, exact      40  SHA-256 of samples of the disk
//!   1  state              24  base's mtime, ns      72  SHA-256 of the whole disk, in state `bound, hashed`
//!   2  reserved           32  made at, s            104 length of the format's name, of imgfs's version
//!   4  sector size        (both since 1970)         106 the two texts
//!   8  base's file size
//! ```
//! The state is one byte and so is changed atomically; it also says how far an interrupted commit
//! in place, or discard, had come.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::header::OVERLAY;
use super::store::host;
use crate::bytes::Record;
use crate::device::{BlockDevice, Device};
use crate::error::{Error, Result};

/// Byte positions inside the extension of what is changed in place.
pub(super) const STATE_AT: u64 = 1;
/// Where that begins which is another when the overlay gets another base; it ends behind [`FULL_AT`]'s hash.
pub(super) const FACTS: std::ops::Range<usize> = 8..104;
pub(super) const MTIME_AT: u64 = 24;
pub(super) const SAMPLES_AT: u64 = 40;
pub(super) const FULL_AT: u64 = 72;

/// The header extension of qcow2 that has the binding.
pub const EXTENSION: u32 = u32::from_be_bytes(*b"imgf");
const VERSION: u8 = 1;
/// A disk up to this size is hashed whole: 10 ms.
const HASHED_WHOLE: u64 = 4 << 20;
/// The whole of a disk up to this size is hashed when the overlay is made, beside its samples: some tenths of
/// a second, once. Then a copy of the base, whose time is another, can be told from another disk.
const HASHED_AT_FIRST: u64 = 64 << 20;
const EDGE: u64 = 64 << 10;
const SPREAD: u64 = 32;
const SPREAD_LEN: u64 = 4 << 10;

/// A SHA-256 digest.
pub type Hash = [u8; 32];

/// The base image, as whoever opened it knows it.
#[derive(Clone)]
pub struct Base {
    /// The disk inside it.
    pub disk: Device,
    /// The host file.
    pub path: std::path::PathBuf,
    /// Name of its container format, as first detected: `raw` for none.
    pub format: String,
}

/// What an overlay is doing, apart from being written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing: the base is as it was.
    Bound,
    /// The same, and the hash of the whole disk is known.
    BoundHashed,
    /// A commit in place has begun; the base is still untouched.
    CommitBegun,
    /// A commit in place is writing to the base.
    Copying,
    /// A commit in place is done with the base and empties the overlay.
    Emptying,
    /// The overlay is being emptied because its changes are not wanted.
    Discarding,
}

impl State {
    const ALL: [Self; 6] =
        [Self::Bound, Self::BoundHashed, Self::CommitBegun, Self::Copying, Self::Emptying, Self::Discarding];

    pub(super) fn to_byte(self) -> u8 {
        Self::ALL.iter().position(|state| *state == self).and_then(|at| u8::try_from(at).ok()).unwrap_or(0)
    }
}

/// What is remembered of the base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// What the overlay is doing.
    pub state: State,
    /// Bytes of a sector of the disk.
    pub sector_size: u32,
    /// Size of the base's file, bytes.
    pub file_size: u64,
    /// Exact size of the disk, bytes.
    pub disk_size: u64,
    /// When the base was last modified, nanoseconds since 1970.
    pub mtime: i64,
    /// When the overlay was made, seconds since 1970.
    pub created: i64,
    /// Hash of samples of the disk; of all of it when it is small.
    pub samples: Hash,
    /// Hash of the whole disk, once known. While a commit copies: of the samples without what the overlay covers.
    pub full: Hash,
    /// Container format of the base, as first detected.
    pub format: String,
    /// Version of imgfs that made the overlay.
    pub version: String,
}

impl Binding {
    /// Looks at the base. Reads at most 4 MiB of it.
    pub fn of(base: &Base) -> Result<Self> {
        let (file_size, mtime) = stat(&base.path)?;
        let disk = base.disk.as_ref();
        let samples = sample(disk, &mut |_, _| Ok(()))?;
        let full = quick_hash(disk, &samples);
        let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Ok(Self {
            state: if full.is_some() { State::BoundHashed } else { State::Bound },
            sector_size: disk.sector_size(),
            file_size,
            disk_size: disk.size(),
            mtime,
            created: i64::try_from(created).unwrap_or(i64::MAX),
            samples,
            full: full.unwrap_or_default(),
            format: base.format.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// Hash of the whole disk, when it is known.
    pub fn full_hash(&self) -> Option<Hash> {
        (self.state == State::BoundHashed).then_some(self.full)
    }

    /// Whether what the overlay shows is a part of something that was interrupted.
    pub fn is_interrupted(&self) -> bool {
        matches!(self.state, State::Copying | State::Discarding)
    }

    /// The bytes of the header extension [`EXTENSION`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let record = Record::new(OVERLAY, "binding", 0, bytes);
        if record.u8(0)? != VERSION {
            return Err(Error::unsupported(OVERLAY, format!("version {} of the binding", record.u8(0)?)));
        }
        let state = State::ALL.get(usize::from(record.u8(1)?)).copied();
        let (format_len, version_len) = (usize::from(record.u8(104)?), usize::from(record.u8(105)?));
        let text =
            |at, len| String::from_utf8(record.bytes(at, len)?.to_vec()).map_err(|_| record.corrupt_field("text"));
        Ok(Self {
            state: state.ok_or_else(|| record.corrupt_field("state"))?,
            sector_size: record.be32(4)?,
            file_size: record.be64(8)?,
            disk_size: record.be64(16)?,
            mtime: i64::from_be_bytes(record.array(24)?),
            created: i64::from_be_bytes(record.array(32)?),
            samples: record.array(40)?,
            full: record.array(72)?,
            format: text(106, format_len)?,
            version: text(106usize.saturating_add(format_len), version_len)?,
        })
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let short = |text: &str| text.bytes().take(32).collect::<Vec<u8>>();
        let (format, version) = (short(&self.format), short(&self.version));
        let mut out = vec![VERSION, self.state.to_byte(), 0, 0];
        out.extend(self.sector_size.to_be_bytes());
        out.extend(self.file_size.to_be_bytes());
        out.extend(self.disk_size.to_be_bytes());
        out.extend(self.mtime.to_be_bytes());
        out.extend(self.created.to_be_bytes());
        out.extend(self.samples);
        out.extend(self.full);
        // At most 32 each.
        out.extend([u8::try_from(format.len()).unwrap_or(0), u8::try_from(version.len()).unwrap_or(0)]);
        out.extend(format);
        out.extend(version);
        out
    }

    /// Compares the base with what is remembered: one sentence says what differs. `covered` zeroes
    /// the bytes that the overlay covers; it matters only while a commit copies.
    pub(super) fn verify(
        &self,
        disk: &dyn BlockDevice,
        path: &Path,
        covered: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        self.compare(disk, &path.display().to_string(), Some(stat(path)?), covered)
    }

    /// The same for whoever reads the overlay as an image of its own; `file` is the base's host file, where
    /// that is known. What an interrupted commit or discard left is refused.
    pub fn verify_to_read(&self, disk: &dyn BlockDevice, name: &str, file: Option<&std::fs::Metadata>) -> Result<()> {
        if self.is_interrupted() {
            let why = "a commit in place or a discard of the overlay was interrupted; run it again to finish it";
            return Err(Error::io(name, std::io::Error::new(std::io::ErrorKind::InvalidData, why)));
        }
        self.compare(disk, name, file.map(facts), &mut |_, _| Ok(()))
    }

    fn compare(
        &self,
        disk: &dyn BlockDevice,
        name: &str,
        file: Option<(u64, i64)>,
        covered: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let refused = |why: String| Err(Error::io(name, std::io::Error::new(std::io::ErrorKind::InvalidData, why)));
        let (file_size, mtime) = file.unwrap_or((self.file_size, self.mtime));
        if file_size != self.file_size {
            let was = self.file_size;
            return refused(format!("it is not this overlay's base: it has {file_size} bytes, the base had {was}"));
        }
        if disk.size() != self.disk_size {
            let (is, was) = (disk.size(), self.disk_size);
            return refused(format!("it is not this overlay's base: its disk has {is} bytes, the base's had {was}"));
        }
        if self.state == State::Copying {
            if sample(disk, covered)? == self.full {
                return Ok(());
            }
            return refused(
                "it is not the base that an interrupted commit was writing to: the contents differ".to_owned(),
            );
        }
        let changed = || {
            refused(
                "it is not this overlay's base, or was changed since the overlay was made: the contents differ".into(),
            )
        };
        if sample(disk, &mut |_, _| Ok(()))? != self.samples {
            return changed();
        }
        if mtime == self.mtime || disk.size() <= HASHED_WHOLE {
            return Ok(());
        }
        match self.full_hash() {
            Some(full) if hash_disk(disk)? == full => {
                log::info!("{name}: modified since the overlay was made, but the contents are the same");
                Ok(())
            }
            Some(_) => changed(),
            None => refused(format!(
                "it was changed since the overlay was made: it was modified at {}, the base at {}",
                date(mtime),
                date(self.mtime)
            )),
        }
    }
}

/// Size and modification time in nanoseconds of the base's file.
pub(super) fn stat(path: &Path) -> Result<(u64, i64)> {
    let io = |error| host(&path.display().to_string(), error);
    Ok(facts(&std::fs::metadata(path).map_err(io)?))
}

fn facts(metadata: &std::fs::Metadata) -> (u64, i64) {
    let mtime = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    (metadata.len(), mtime)
}

/// As `2026-11-22T06:15:04.250000000Z`.
fn date(nanoseconds: i64) -> String {
    format!("{:.9}", jiff::Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default())
}

/// Hash of the whole disk, or of its first and last 64 KiB and 32 pieces of 4 KiB between them.
/// `mask` may change the bytes at an offset before they are hashed. What cannot be read counts as
/// unreadable and no more: a damaged base can have an overlay.
pub(super) fn sample(disk: &dyn BlockDevice, mask: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>) -> Result<Hash> {
    let size = disk.size();
    let mut hash = Sha256::new();
    let mut buf = vec![0; 64 << 10];
    let mut piece = |offset: u64, len: u64| -> Result<()> {
        let part = buf.get_mut(..usize::try_from(len).map_err(|_| Error::Invalid)?).ok_or(Error::Invalid)?;
        if disk.read_bulk_at(part, offset).is_err() {
            part.fill(0);
            hash.update(b"unreadable");
        }
        mask(offset, part)?;
        hash.update(part);
        Ok(())
    };
    if size <= HASHED_WHOLE {
        for at in (0..size).step_by(64 << 10) {
            piece(at, size.saturating_sub(at).min(EDGE))?;
        }
        return Ok(hash.finalize().into());
    }
    piece(0, EDGE)?;
    let step = size.saturating_sub(EDGE.saturating_mul(2)) / SPREAD;
    for number in 0..SPREAD {
        piece(EDGE.saturating_add(number.saturating_mul(step)), SPREAD_LEN)?;
    }
    piece(size.saturating_sub(EDGE), EDGE)?;
    Ok(hash.finalize().into())
}

/// Hash of a whole disk that is small enough to be read on the way; `samples` are of the same disk. What cannot be
/// read in full has none.
pub(super) fn quick_hash(disk: &dyn BlockDevice, samples: &Hash) -> Option<Hash> {
    match disk.size() {
        size if size <= HASHED_WHOLE => Some(*samples),
        size if size <= HASHED_AT_FIRST => hash_disk(disk).ok(),
        _ => None,
    }
}

/// Hash of every byte of the disk; an unreadable one is an error.
fn hash_disk(disk: &dyn BlockDevice) -> Result<Hash> {
    let mut whole = Whole::default();
    while whole.step(disk, u64::MAX)? {}
    Ok(whole.finish())
}

/// Hashes a disk from its start to its end, piece by piece.
#[derive(Default)]
pub(super) struct Whole {
    hash: Sha256,
    /// Bytes that are hashed.
    pub done: u64,
    buf: Vec<u8>,
}

impl Whole {
    /// Bytes hashed at a time, at the most.
    const PIECE: u64 = 1 << 20;

    /// Hashes the next piece before `end`; `false` when there is none.
    pub fn step(&mut self, disk: &dyn BlockDevice, end: u64) -> Result<bool> {
        let len = disk.size().min(end).saturating_sub(self.done).min(Self::PIECE);
        if len == 0 {
            return Ok(false);
        }
        let mut buf = std::mem::take(&mut self.buf);
        buf.resize(usize::try_from(len).map_err(|_| Error::Invalid)?, 0);
        // A hole is not read: it would only be filled with zeros for this.
        let extent = disk.extent(self.done)?;
        if extent.stored || extent.len < len {
            disk.read_bulk_at(&mut buf, self.done)?;
        } else {
            buf.fill(0);
        }
        self.add(&buf);
        self.buf = buf;
        Ok(true)
    }

    /// Hashes bytes that were read already.
    pub fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.done = self.done.saturating_add(bytes.len() as u64);
    }

    pub fn finish(self) -> Hash {
        self.hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::Memory;

    #[test]
    fn a_binding_survives_its_bytes() {
        for state in State::ALL {
            let binding = Binding {
                state,
                sector_size: 2048,
                file_size: 5,
                disk_size: 7,
                mtime: -9,
                created: 11,
                samples: [1; 32],
                full: [2; 32],
                format: "ewf".to_owned(),
                version: "0.1.0".to_owned(),
            };
            assert_eq!(Binding::parse(&binding.to_bytes()).unwrap(), binding);
        }
        assert!(Binding::parse(&[1, 9, 0, 0]).is_err());
    }

    #[test]
    fn samples_see_both_ends_and_the_middle_of_a_big_disk() {
        let sample_of = |change: Option<usize>| {
            let mut bytes = vec![0; 5 << 20];
            if let Some(at) = change {
                bytes[at] = 1;
            }
            sample(&Memory::new(bytes, 512), &mut |_, _| Ok(())).unwrap()
        };
        for at in [0, (64 << 10) - 1, 64 << 10, (5 << 20) - 1, (5 << 20) - (64 << 10)] {
            assert_ne!(sample_of(None), sample_of(Some(at)), "{at}");
        }
    }

    #[test]
    fn dates_are_civil() {
        assert_eq!(date(951_782_400_000_000_000), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(date(1_795_328_999_000_000_001), "2026-11-22T06:29:59.000000001Z");
    }
}
