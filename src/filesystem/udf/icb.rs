//! Information control blocks: what a node is, and where its bytes lie (ECMA-167, 4/14.6 to 4/14.14).
//!
//! ```text
//!   file entry          | tag | ICB tag | owner, times .. | length of EAs, of descriptors | EAs | descriptors |
//!   extended one        the same with the time of creation and named streams
//!   allocation descriptors, by the ICB's flags:
//!     short  len+kind, block                     of the ICB's own partition
//!     long   len+kind, block, partition
//!     extended  the same with two more lengths
//!     embedded  the file's bytes themselves
//!   kind: 0 recorded, 1 allocated, 2 neither (both read as zeros), 3 the descriptors go on in that block
//! ```

use std::collections::HashSet;

use super::partition::{Address, Partitions, Which};
use super::tag::{Tag, id};
use super::{NAME, attribute, time};
use crate::bytes::Record;
use crate::device::mapped::RunList;
use crate::error::{Error, Result};
use crate::filesystem::{Attributes, Kind};

/// Allocation descriptors of one file, and pieces that it lies in: half a million pieces are no file's.
const MAX_STEPS: u32 = 1 << 19;
/// Indirect entries from the first to the present state of a file (strategy 4096).
const MAX_INDIRECT: usize = 1024;
/// Strategies, 4/14.6.2 and UDF 2.60, 2.3.5.1.
const STRATEGY_DIRECT: u16 = 4;
const STRATEGY_LINKED: u16 = 4096;

/// File types, 4/14.6.6.
mod file_type {
    pub(super) const DIRECTORY: u8 = 4;
    pub(super) const BLOCK_DEVICE: u8 = 6;
    pub(super) const CHARACTER_DEVICE: u8 = 7;
    pub(super) const FIFO: u8 = 9;
    pub(super) const SOCKET: u8 = 10;
    pub(super) const SYMLINK: u8 = 12;
    pub(super) const STREAM_DIRECTORY: u8 = 13;
}

/// A file entry, of either form.
pub(super) struct FileEntry {
    /// As recorded.
    pub(super) file_type: u8,
    pub(super) attributes: Attributes,
    pub(super) contents: RunList,
    /// Bytes from the start of which it is known where they are, and why not of the rest.
    pub(super) known: u64,
    pub(super) trouble: Option<Error>,
    /// Its byte on the device.
    pub(super) at: u64,
}

/// What the number of a file type says.
pub(super) fn kind(file_type: u8) -> Kind {
    match file_type {
        file_type::DIRECTORY | file_type::STREAM_DIRECTORY => Kind::Directory,
        file_type::BLOCK_DEVICE => Kind::BlockDevice,
        file_type::CHARACTER_DEVICE => Kind::CharDevice,
        file_type::FIFO => Kind::Fifo,
        file_type::SOCKET => Kind::Socket,
        file_type::SYMLINK => Kind::Symlink,
        _ => Kind::File,
    }
}

/// Reads the entry of a node: with strategy 4096 the last one of its chain.
pub(super) fn read(partitions: &Partitions, address: Address) -> Result<FileEntry> {
    let mut address = address;
    for _ in 0..MAX_INDIRECT {
        let (at, tag, bytes) = partitions.descriptor(address, "file entry")?;
        let record = Record::new(NAME, "file entry", at, &bytes);
        if tag.id == id::INDIRECT_ENTRY {
            address = Address::parse(&record, 40)?;
            continue;
        }
        if !matches!(tag.id, id::FILE_ENTRY | id::EXTENDED_FILE_ENTRY) {
            return Err(record.corrupt());
        }
        match record.le16(20)? {
            STRATEGY_DIRECT => {}
            STRATEGY_LINKED => {
                if let Some(next) = indirect_after(partitions, address) {
                    address = next;
                    continue;
                }
            }
            strategy => return Err(Error::unsupported(NAME, format!("ICB strategy {strategy}"))),
        }
        return parse(partitions, address, tag, &record);
    }
    let at = partitions.locate(address, Which::Main)?.0;
    Err(Error::corrupt(NAME, "indirect entry (they lead in a circle)", at))
}

/// Where the entry in the block behind leads; nothing was recorded there while this state is the last.
fn indirect_after(partitions: &Partitions, address: Address) -> Option<Address> {
    let next = Address { block: address.block.checked_add(1)?, ..address };
    let (at, tag, bytes) = partitions.descriptor(next, "indirect entry").ok()?;
    let record = Record::new(NAME, "indirect entry", at, &bytes);
    let is_followed = tag.id == id::INDIRECT_ENTRY && record.le32(36).ok()? > 0;
    is_followed.then(|| Address::parse(&record, 40).ok()).flatten()
}

/// Where the parts are that the two forms of an entry have in different places.
struct Form {
    blocks: usize,
    accessed: usize,
    modified: usize,
    created: Option<usize>,
    changed: usize,
    lengths: usize,
}

const FILE_ENTRY: Form = Form { blocks: 64, accessed: 72, modified: 84, created: None, changed: 96, lengths: 168 };
const EXTENDED: Form = Form { blocks: 72, accessed: 80, modified: 92, created: Some(104), changed: 116, lengths: 208 };

/// The entry in `record`, whose tag was verified.
pub(super) fn parse(partitions: &Partitions, address: Address, tag: Tag, record: &Record<'_>) -> Result<FileEntry> {
    let form = match tag.id {
        id::FILE_ENTRY => FILE_ENTRY,
        id::EXTENDED_FILE_ENTRY => EXTENDED,
        _ => return Err(record.corrupt()),
    };
    let file_type = record.u8(27)?;
    let flags = record.le16(34)?;
    let size = record.le64(56)?;
    if size > i64::MAX.cast_unsigned() {
        return Err(record.corrupt_field("information length"));
    }
    let ea_len = usize::try_from(record.le32(form.lengths)?).map_err(|_| record.corrupt())?;
    let ad_len = usize::try_from(record.le32(form.lengths.saturating_add(4))?).map_err(|_| record.corrupt())?;
    let ea_at = form.lengths.saturating_add(8);
    let attributes_area = record.part("extended attributes", ea_at, ea_len)?;
    let ad_at = ea_at.saturating_add(ea_len);
    let descriptors = record.part("allocation descriptors", ad_at, ad_len)?;

    let mut layout = Layout { partitions, runs: RunList::new(size), known: 0, size, steps: 0 };
    let trouble = match flags & 7 {
        3 if size <= ad_len as u64 => {
            let is_pushed = layout.runs.push(0, descriptors.at(), size);
            layout.known = size;
            (!is_pushed).then(|| record.corrupt())
        }
        3 => Some(record.corrupt_field("length of embedded contents")),
        form => layout.follow(&descriptors, form, address).err(),
    };

    let mut attributes = Attributes::new(kind(file_type), size);
    let known = |id: u32| Some(id).filter(|id| *id != u32::MAX);
    attributes.uid = known(record.le32(36)?);
    attributes.gid = known(record.le32(40)?);
    attributes.mode = Some(mode(record.le32(44)?, flags));
    attributes.links = Some(u32::from(record.le16(48)?));
    let sectors = partitions.block_size >> 9;
    attributes.blocks = Some(record.le64(form.blocks)?.saturating_mul(sectors));
    attributes.accessed = time::parse(record.array(form.accessed)?);
    attributes.modified = time::parse(record.array(form.modified)?);
    attributes.changed = time::parse(record.array(form.changed)?);
    let said = form.created.map(|offset| record.array(offset)).transpose()?.and_then(time::parse);
    attributes.created = said.or_else(|| attribute::created(&attributes_area));
    if matches!(attributes.kind, Kind::CharDevice | Kind::BlockDevice) {
        attributes.device = attribute::device(&attributes_area);
    }
    let (contents, known) = (layout.runs, layout.known);
    Ok(FileEntry { file_type, attributes, contents, known, trouble, at: record.at() })
}

/// Five bits each for others, group and owner, of which three are POSIX's; the rest is in the ICB's flags.
fn mode(permissions: u32, flags: u16) -> u16 {
    let three = |shift: u32| u16::try_from(permissions.wrapping_shr(shift) & 7).unwrap_or(0);
    let special = [(0x40, 0o4000), (0x80, 0o2000), (0x100, 0o1000)];
    let special = special.into_iter().filter(|(flag, _)| flags & flag != 0).fold(0, |mode, (_, bit)| mode | bit);
    special | three(10) << 6 | three(5) << 3 | three(0)
}

/// The places of a file's bytes, as its allocation descriptors tell them one after the other.
struct Layout<'a> {
    partitions: &'a Partitions,
    runs: RunList,
    /// Bytes of which the place is known.
    known: u64,
    size: u64,
    steps: u32,
}

impl Layout<'_> {
    /// Follows all descriptors of one form, through every block in which they go on.
    fn follow(&mut self, first: &Record<'_>, form: u16, icb: Address) -> Result<()> {
        let mut next = self.list(first, form, icb)?;
        let mut at = first.at();
        let mut seen = HashSet::new();
        while let Some(address) = next.filter(|_| self.known < self.size) {
            if !seen.insert(address) {
                return Err(Error::corrupt(NAME, "allocation extent descriptor (they lead in a circle)", at));
            }
            let (place, tag, bytes) = self.partitions.descriptor(address, "allocation extent descriptor")?;
            let record = Record::new(NAME, "allocation extent descriptor", place, &bytes);
            if tag.id != id::ALLOCATION_EXTENT {
                return Err(record.corrupt());
            }
            let len = usize::try_from(record.le32(20)?).map_err(|_| record.corrupt())?;
            next = self.list(&record.part("allocation descriptors", 24, len)?, form, icb)?;
            at = place;
        }
        if self.known < self.size {
            return Err(Error::corrupt(NAME, "allocation descriptors (they end before the file)", at));
        }
        Ok(())
    }

    /// Follows one list; the block in which it goes on.
    fn list(&mut self, list: &Record<'_>, form: u16, icb: Address) -> Result<Option<Address>> {
        let size: usize = match form {
            0 => 8,
            1 => 16,
            2 => 20,
            _ => return Err(Error::unsupported(NAME, format!("allocation descriptors of form {form}"))),
        };
        for offset in (0..list.len().saturating_sub(size.saturating_sub(1))).step_by(size) {
            if self.known >= self.size {
                return Ok(None);
            }
            self.step(list)?;
            let word = list.le32(offset)?;
            let (len, kind) = (u64::from(word & 0x3fff_ffff), word >> 30);
            let address = match form {
                0 => Address { block: list.le32(offset.saturating_add(4))?, partition: icb.partition },
                1 => Address::parse(list, offset.saturating_add(4))?,
                // What is packed has no bytes of its own length; no writer packs.
                _ if list.le32(offset.saturating_add(4))? != list.le32(offset.saturating_add(8))? => {
                    return Err(Error::unsupported(NAME, "an extent that is compressed"));
                }
                _ => Address::parse(list, offset.saturating_add(12))?,
            };
            match (kind, len) {
                (_, 0) => return Ok(None),
                (3, _) => return Ok(Some(address)),
                (0, _) => self.add(address, len, list)?,
                _ => self.known = self.known.saturating_add(len),
            }
        }
        Ok(None)
    }

    /// Adds an extent that is recorded, piece by piece.
    fn add(&mut self, mut address: Address, len: u64, list: &Record<'_>) -> Result<()> {
        let mut left = len.min(self.size.saturating_sub(self.known));
        while left > 0 {
            self.step(list)?;
            let (at, there) = self.partitions.locate(address, Which::Main)?;
            let piece = left.min(there);
            if piece == 0 || !self.runs.push(self.known, at, piece) {
                return Err(list.corrupt());
            }
            self.known = self.known.saturating_add(piece);
            left = left.saturating_sub(piece);
            let blocks = piece.checked_div(self.partitions.block_size).and_then(|blocks| u32::try_from(blocks).ok());
            let next = blocks.and_then(|blocks| address.block.checked_add(blocks));
            if left > 0 {
                address.block = next.ok_or_else(|| list.corrupt())?;
            }
        }
        Ok(())
    }

    fn step(&mut self, list: &Record<'_>) -> Result<()> {
        self.steps = self.steps.saturating_add(1);
        if self.steps > MAX_STEPS { Err(list.corrupt_field("more pieces than a file has")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_five_bits_each_of_which_three_are_shown() {
        assert_eq!(mode(0x7fff, 0), 0o777);
        assert_eq!(mode(0x14a5, 0), 0o555);
        assert_eq!(mode(0x1884, 0x3), 0o644);
        assert_eq!(mode(0, 0x1c0), 0o7000);
    }
}
