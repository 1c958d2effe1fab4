//! partclone: the blocks of a file system that are in use, and a bitmap that says which they are.
//! What Clonezilla keeps.
//!
//! Specification: partclone, IMAGE_FORMATS.md, versions 0001 and 0002.
//!
//! ```text
//!   2:  header (110) | bitmap, a bit a block | CRC-32 | blocks in use, a checksum behind every so many
//!   1:  header (4,160) | a byte a block | "BiTmAgIc" | block, CRC-32 | block, CRC-32 | ...
//! ```
//!
//! Supported: both versions, images without a bitmap (`dd`). Blocks that are not in use read as zeros.
//! The checksums of version 2 are compared when blocks under them are first read.
//! Not supported: images of big-endian machines; the checksums of version 1, which are of one byte of
//! each block alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::cache::Cache;
use crate::check::{Check, MAX_FAULTS};
use crate::device::mapped::{Mapped, Mapping, Place, Run};
use crate::device::{BlockDevice, Device, Extent, check_range, probe_array, read_array, read_vec};
use crate::error::{Error, Result};
use crate::text::{printable, trim_padding};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "partclone", snapshots: false, probe, open };

const MAGIC: &[u8; 15] = b"partclone-image";
const HEADER: usize = 110;
const HEADER_V1: u64 = 4160;
const BITMAP_END_V1: &[u8; 8] = b"BiTmAgIc";
const LITTLE_ENDIAN: u16 = 0xc0de;
/// Bytes of the bitmap that are read, counted and kept together.
const PAGE: u64 = 4096;
/// Bound on the pages kept: 512 GiB of blocks of 4 KiB.
const PAGE_CACHE: u64 = 16 << 20;
/// Pages that are read at once when they are counted.
const BATCH: u64 = 256;
/// The mode of checksums that are compared.
const CRC_32: u16 = 0x20;
/// Blocks under one checksum are read at once; of more bytes than these no one compares it.
const MAX_GROUP: u64 = 64 << 20;
/// A bitmap may be this long: 64 TiB of blocks of 4 KiB.
const MAX_BITMAP: u64 = 2 << 30;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    Ok(probe_array::<15>(device, 0)?.as_ref() == Some(MAGIC))
}

/// Both versions in one shape.
struct Header {
    version: &'static str,
    filesystem: String,
    size: u64,
    blocks: u64,
    used: u64,
    block_size: u64,
    /// Bits of the bitmap that a block takes: 1 or 8; 0 when all blocks are stored.
    bits: u64,
    bitmap_at: u64,
    data_at: u64,
    /// Blocks from one checksum to the next; 0 when there are none.
    checksum_every: u64,
    checksum_len: u64,
    checksums: Checksums,
    notes: Vec<String>,
}

/// What the checksums behind blocks are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Checksums {
    /// None, or of a kind that says nothing of the blocks.
    None,
    /// CRC-32 of the blocks since the last one.
    Each,
    /// CRC-32 of all blocks so far.
    Running,
}

impl Header {
    fn read(file: &dyn BlockDevice) -> Result<Self> {
        let bytes = read_array::<HEADER>(file, 0)?;
        let record = Record::new(FORMAT.name, "header", 0, &bytes);
        // Both versions have theirs at byte 30.
        let header = match record.bytes(30, 4)? {
            b"0001" => Self::version_1(&record)?,
            b"0002" => Self::version_2(&record)?,
            version => return Err(Error::unsupported(FORMAT.name, format!("version {}", printable(version)))),
        };
        let block_size = header.block_size;
        let valid = block_size.is_power_of_two() && (512..=16 << 20).contains(&block_size);
        let whole = header.blocks.checked_mul(block_size);
        if !valid || whole.is_none() || header.size == 0 || header.used > header.blocks {
            return Err(record.corrupt_field("block size or number of blocks"));
        }
        if header.bitmap_len() > MAX_BITMAP || header.data_at > file.size() {
            return Err(record.corrupt_field("number of blocks (the bitmap is past the end of the file)"));
        }
        header.check_bitmap(file)
    }

    fn version_1(record: &Record<'_>) -> Result<Self> {
        let mut header = Self {
            version: "0001",
            filesystem: printable(trim_padding(record.bytes(15, 15)?)),
            block_size: record.le32(36)?.into(),
            size: record.le64(40)?,
            blocks: record.le64(48)?,
            used: record.le64(56)?,
            bits: 8,
            bitmap_at: HEADER_V1,
            data_at: 0,
            checksum_every: 1,
            checksum_len: 4,
            checksums: Checksums::None,
            notes: Vec::new(),
        };
        header.data_at = HEADER_V1.saturating_add(header.bitmap_len()).saturating_add(8);
        Ok(header)
    }

    fn version_2(record: &Record<'_>) -> Result<Self> {
        if record.le16(34)? != LITTLE_ENDIAN {
            return Err(Error::unsupported(FORMAT.name, "an image of a big-endian machine"));
        }
        if record.le32(106)? != !crc32fast::hash(record.bytes(0, 106)?) {
            return Err(record.corrupt_field("checksum"));
        }
        let bits = match record.u8(105)? {
            mode @ (0 | 1 | 8) => mode,
            mode => return Err(Error::unsupported(FORMAT.name, format!("the bitmap mode {mode}"))),
        };
        let checksum_len = u64::from(record.le16(98)?);
        let every = record.le32(100)?;
        let checksums = match (record.le16(96)?, checksum_len, record.u8(104)?) {
            (CRC_32, 4, 0) => Checksums::Running,
            (CRC_32, 4, _) => Checksums::Each,
            _ => Checksums::None,
        };
        let mut header = Self {
            version: "0002",
            filesystem: printable(record.bytes(36, 16)?.split(|&b| b == 0).next().unwrap_or_default()),
            size: record.le64(52)?,
            blocks: record.le64(60)?,
            // As the bitmap has it; the field before it is what the superblock says.
            used: record.le64(76)?,
            block_size: record.le32(84)?.into(),
            bits: bits.into(),
            bitmap_at: HEADER as u64,
            data_at: 0,
            checksum_every: if checksum_len == 0 { 0 } else { every.into() },
            checksum_len,
            checksums,
            notes: Vec::new(),
        };
        let checksum = if bits == 0 { 0 } else { 4 };
        header.data_at = header.bitmap_at.saturating_add(header.bitmap_len()).saturating_add(checksum);
        Ok(header)
    }

    fn bitmap_len(&self) -> u64 {
        self.blocks.saturating_mul(self.bits).div_ceil(8)
    }

    /// What stands behind the bitmap: a magic number, or a checksum (which is compared when the
    /// bitmap is counted).
    fn check_bitmap(self, file: &dyn BlockDevice) -> Result<Self> {
        let end = self.bitmap_at.saturating_add(self.bitmap_len());
        if self.version == "0001" && probe_array::<8>(file, end)?.as_ref() != Some(BITMAP_END_V1) {
            return Err(Error::corrupt(FORMAT.name, "end of the bitmap", end));
        }
        Ok(self)
    }
}

fn open(file: Device, _: &dyn Companions, options: &Options) -> Result<Opened> {
    let mut header = Header::read(file.as_ref())?;
    let ranks = count(file.as_ref(), &header)?;
    let total = ranks.last().copied().unwrap_or(header.blocks);
    if header.bits > 0 && total != header.used {
        header.notes.push(format!("the bitmap has {total} blocks in use, and the header says {}", header.used));
    }
    let blocks = Blocks { file: file.clone(), ranks, pages: Cache::new(PAGE_CACHE), header, total };
    let groups = blocks.groups();
    let end = blocks.place(total.saturating_sub(1)).saturating_add(blocks.header.block_size);
    let (header, file_size) = (&blocks.header, file.size());
    let mut facts = vec![
        ("version", header.version.to_owned()),
        ("file system", header.filesystem.clone()),
        ("virtual size", format!("{} bytes", header.size)),
        ("block size", format!("{} bytes", header.block_size)),
        ("blocks in use", format!("{total} of {}", header.blocks)),
    ];
    let mut notes = header.notes.clone();
    facts.push((
        "checksums",
        if groups > 0 { format!("{groups}, compared when blocks are read") } else { "none".to_owned() },
    ));
    if total < header.blocks {
        notes.push("only blocks in use are in the image: all others read as zeros".to_owned());
    }
    if total > 0 && end > file_size {
        notes.push("the image is cut off: blocks in use are missing at its end".to_owned());
    }
    let blocks = Arc::new(blocks);
    let disk = Mapped::new(blocks.clone(), file, None, 512, options.cache_size);
    let compared = (0..blocks.groups_there().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
    let mut opened = Opened::new(FORMAT.name, Arc::new(Compared { disk, blocks: blocks.clone(), compared }));
    if blocks.header.version == "0002" {
        opened.checks.push(Check::known("header and bitmap checksums", "byte 0", None));
        if groups > 0 {
            let walk = Box::new(move || blocks.faults());
            opened.checks.push(Check::walk("block checksums", "every block in use", walk));
        }
    }
    opened.facts.append(&mut facts);
    opened.notes = notes;
    Ok(opened)
}

/// Blocks in use before each page of the bitmap, and in all. Compares the bitmap's checksum.
fn count(file: &dyn BlockDevice, header: &Header) -> Result<Vec<u64>> {
    let len = header.bitmap_len();
    let mut ranks = Vec::new();
    let mut rank = 0u64;
    let mut crc = crc32fast::Hasher::new();
    let mut at = 0u64;
    while at < len {
        let batch = len.saturating_sub(at).min(PAGE * BATCH);
        let bytes =
            read_vec(file, header.bitmap_at.saturating_add(at), usize::try_from(batch).map_err(|_| Error::Invalid)?)?;
        crc.update(&bytes);
        let mut bytes = bytes;
        at = at.saturating_add(batch);
        // Bits behind the last block can be anything.
        let bits = u32::try_from(header.blocks % 8).unwrap_or(0);
        if let Some(last) = bytes.last_mut().filter(|_| at >= len && header.bits == 1 && bits > 0) {
            *last &= 1u8.wrapping_shl(bits).wrapping_sub(1);
        }
        for page in bytes.chunks(usize::try_from(PAGE).unwrap_or(1)) {
            ranks.push(rank);
            rank = rank.saturating_add(ones(page, header.bits));
        }
    }
    ranks.push(rank);
    if header.version == "0002" && header.bits > 0 {
        let stored = u32::from_le_bytes(read_array(file, header.bitmap_at.saturating_add(len))?);
        if stored != !crc.finalize() {
            return Err(Error::corrupt(FORMAT.name, "bitmap (wrong checksum)", header.bitmap_at));
        }
    }
    Ok(if header.bits == 0 { Vec::new() } else { ranks })
}

/// Blocks in use in these bytes of a bitmap.
fn ones(bytes: &[u8], bits: u64) -> u64 {
    if bits == 8 {
        return bytes.iter().filter(|&&byte| byte != 0).count() as u64;
    }
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().fold(0u64, |sum, &word| sum.saturating_add(u64::from_le_bytes(word).count_ones().into()));
    rest.iter().fold(words, |sum, byte| sum.saturating_add(byte.count_ones().into()))
}

/// The blocks of the file system.
struct Blocks {
    header: Header,
    file: Device,
    /// Blocks in use before each page of the bitmap; empty when all are.
    ranks: Vec<u64>,
    pages: Cache<u64, Arc<Vec<u8>>>,
    /// Blocks in use in all.
    total: u64,
}

impl Blocks {
    /// First byte of the block that has so many blocks before it.
    fn place(&self, rank: u64) -> u64 {
        let sums = rank.checked_div(self.header.checksum_every).unwrap_or(0);
        let sums = sums.saturating_mul(self.header.checksum_len);
        rank.saturating_mul(self.header.block_size).saturating_add(sums).saturating_add(self.header.data_at)
    }

    fn page(&self, page: u64) -> Result<Arc<Vec<u8>>> {
        self.pages.get_or_make(&page, || {
            let at = page.saturating_mul(PAGE);
            let len = self.header.bitmap_len().saturating_sub(at).min(PAGE);
            let len = usize::try_from(len).map_err(|_| Error::Invalid)?;
            let bytes = read_vec(self.file.as_ref(), self.header.bitmap_at.saturating_add(at), len)?;
            Ok::<_, Error>((Arc::new(bytes), PAGE))
        })
    }

    /// Whether a block is in use, and how many in use before it; how many that follow are alike.
    fn look(&self, block: u64) -> Result<Found> {
        if self.header.bits == 0 {
            return Ok(Found { rank: Some(block), alike: self.header.blocks.saturating_sub(block) });
        }
        let per_page = PAGE.saturating_mul(8).checked_div(self.header.bits).unwrap_or(1).max(1);
        let page = block.checked_div(per_page).unwrap_or(0);
        let first = page.saturating_mul(per_page);
        let within = block.saturating_sub(first);
        let bytes = self.page(page)?;
        let used = |index: u64| {
            let byte = |at: u64| usize::try_from(at).ok().and_then(|at| bytes.get(at)).copied().unwrap_or(0);
            match self.header.bits {
                8 => byte(index) != 0,
                _ => byte(index / 8) & 1u8.wrapping_shl(u32::try_from(index % 8).unwrap_or(0)) != 0,
            }
        };
        let here = used(within);
        let limit = self.header.blocks.saturating_sub(first).min(per_page);
        let end = (within..limit).find(|&index| used(index) != here).unwrap_or(limit);
        let alike = end.saturating_sub(within).max(1);
        if !here {
            return Ok(Found { rank: None, alike });
        }
        let whole = within.saturating_mul(self.header.bits) / 8;
        let before = bytes.get(..usize::try_from(whole).unwrap_or(0)).unwrap_or_default();
        let partial =
            if self.header.bits == 1 { (within & !7..within).filter(|&index| used(index)).count() } else { 0 };
        let page = usize::try_from(page).map_err(|_| Error::Invalid)?;
        let rank = self.ranks.get(page).copied().ok_or(Error::Invalid)?;
        let rank = rank.saturating_add(ones(before, self.header.bits)).saturating_add(partial as u64);
        Ok(Found { rank: Some(rank), alike })
    }
}

impl Blocks {
    /// Number of checksums that are compared.
    fn groups(&self) -> u64 {
        let every = self.header.checksum_every;
        let group = every.saturating_mul(self.header.block_size);
        let none = self.header.checksums == Checksums::None || every == 0 || group > MAX_GROUP;
        if none { 0 } else { self.total.div_ceil(every) }
    }

    /// How many of them the file has room for; what the header and the bitmap say has no such bound.
    fn groups_there(&self) -> u64 {
        let group = self.place(self.header.checksum_every).saturating_sub(self.header.data_at);
        let room = self.file.size().saturating_sub(self.header.data_at);
        // The last one can be of fewer blocks.
        self.groups().min(room.checked_div(group).unwrap_or(0).saturating_add(1))
    }

    /// Where a checksum stands.
    fn checksum_at(&self, group: u64) -> u64 {
        let every = self.header.checksum_every;
        let first = group.saturating_mul(every);
        let count = every.min(self.total.saturating_sub(first));
        self.place(first).saturating_add(count.saturating_mul(self.header.block_size))
    }

    /// Reads the blocks under a checksum, and compares it: what is wrong.
    fn compare(&self, group: u64) -> Result<Option<String>> {
        let Header { checksum_every: every, block_size, .. } = self.header;
        let first = group.saturating_mul(every);
        let count = every.min(self.total.saturating_sub(first));
        let at = self.place(first);
        let len = usize::try_from(count.saturating_mul(block_size)).map_err(|_| Error::Invalid)?;
        let last = self.checksum_at(group);
        if last.saturating_add(4) > self.file.size() {
            return Ok(Some(format!("the file ends before the checksum at byte {last}")));
        }
        let before = match (self.header.checksums, at.checked_sub(4)) {
            (Checksums::Running, Some(at)) if group > 0 => u32::from_le_bytes(read_array(self.file.as_ref(), at)?),
            _ => u32::MAX,
        };
        let mut blocks = vec![0; len];
        self.file.read_bulk_at(&mut blocks, at)?;
        let stored = u32::from_le_bytes(read_array(self.file.as_ref(), last)?);
        // What is stored is the register itself, not its complement.
        let mut crc = crc32fast::Hasher::new_with_initial(!before);
        crc.update(&blocks);
        Ok((stored != !crc.finalize()).then(|| format!("{count} blocks before the checksum at byte {last}")))
    }

    /// Compares all of them.
    fn faults(&self) -> Result<Vec<String>> {
        let mut faults = Vec::new();
        for group in 0..self.groups() {
            faults.extend(self.compare(group)?);
            if faults.len() >= MAX_FAULTS {
                break;
            }
        }
        Ok(faults)
    }
}

/// The disk, whose blocks are compared with their checksums before they are first read.
struct Compared {
    disk: Mapped,
    blocks: Arc<Blocks>,
    /// A bit for each checksum that was found to be right.
    compared: Vec<AtomicU64>,
}

impl Compared {
    fn compare(&self, offset: u64, len: usize) -> Result<()> {
        check_range(len, offset, self.disk.size())?;
        if self.compared.is_empty() {
            return Ok(());
        }
        let header = &self.blocks.header;
        let end = offset.saturating_add(len as u64);
        let mut at = offset;
        while at < end {
            let block = at.checked_div(header.block_size).unwrap_or(0);
            if block >= header.blocks {
                break;
            }
            let Found { rank, alike } = self.blocks.look(block)?;
            if let Some(rank) = rank {
                let next = block.saturating_add(alike).saturating_mul(header.block_size).min(end);
                let count = next.div_ceil(header.block_size).saturating_sub(block).max(1);
                let group = |rank: u64| rank.checked_div(header.checksum_every).unwrap_or(0);
                for group in group(rank)..=group(rank.saturating_add(count).saturating_sub(1)) {
                    self.compare_once(group)?;
                }
            }
            at = block.saturating_add(alike.max(1)).saturating_mul(header.block_size);
        }
        Ok(())
    }

    /// Two that come at once both compare, which does no harm.
    fn compare_once(&self, group: u64) -> Result<()> {
        // What is left of a file that was cut off can still be read.
        if self.blocks.checksum_at(group).saturating_add(4) > self.blocks.file.size() {
            return Ok(());
        }
        let word = usize::try_from(group / 64).ok().and_then(|index| self.compared.get(index)).ok_or(Error::Invalid)?;
        let bit = 1u64.wrapping_shl(u32::try_from(group % 64).unwrap_or(0));
        if word.load(Ordering::Acquire) & bit == 0 {
            if let Some(fault) = self.blocks.compare(group)? {
                let at = self.blocks.place(group.saturating_mul(self.blocks.header.checksum_every));
                return Err(Error::corrupt(FORMAT.name, fault, at));
            }
            word.fetch_or(bit, Ordering::Release);
        }
        Ok(())
    }
}

impl BlockDevice for Compared {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn sector_size(&self) -> u32 {
        self.disk.sector_size()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.compare(offset, buf.len())?;
        self.disk.read_exact_at(buf, offset)
    }

    fn read_bulk_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.compare(offset, buf.len())?;
        self.disk.read_bulk_at(buf, offset)
    }

    fn extent(&self, offset: u64) -> Result<Extent> {
        self.disk.extent(offset)
    }
}

/// See [`Blocks::look`].
struct Found {
    rank: Option<u64>,
    alike: u64,
}

impl Mapping for Blocks {
    fn size(&self) -> u64 {
        self.header.size
    }

    fn map(&self, offset: u64) -> Result<Run> {
        let block_size = self.header.block_size;
        let block = offset.checked_div(block_size).unwrap_or(0);
        let within = offset.checked_rem(block_size).unwrap_or(0);
        if block >= self.header.blocks {
            // What the file system leaves over at the end of its device.
            return Ok(Run { place: Place::Hole, len: self.header.size.saturating_sub(offset) });
        }
        let Found { rank, alike } = self.look(block)?;
        let Some(rank) = rank else {
            return Ok(Run { place: Place::Hole, len: alike.saturating_mul(block_size).saturating_sub(within) });
        };
        let to_checksum = match self.header.checksum_every {
            0 => u64::MAX,
            every => every.saturating_sub(rank.checked_rem(every).unwrap_or(0)),
        };
        let at = self.place(rank);
        if at.saturating_add(block_size) > self.file.size() {
            return Err(Error::corrupt(FORMAT.name, "block past the end of the file", at));
        }
        let there = self.file.size().saturating_sub(at).checked_div(block_size).unwrap_or(1);
        let count = alike.min(to_checksum).min(there.max(1));
        Ok(Run {
            place: Place::At(at.saturating_add(within)),
            len: count.saturating_mul(block_size).saturating_sub(within),
        })
    }
}
