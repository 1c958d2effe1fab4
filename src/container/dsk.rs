//! DSK and extended DSK, of emulators of the Amstrad CPC and the Spectrum +3: tracks with the IDs
//! that a controller reads.
//!
//! Specification: "DSK disk image file format" and "Extended DSK", K. Thacker and M. Vieth (1995, 2000).
//!
//! ```text
//!   disk block (256) | track block (256): "Track-Info", 8 bytes a sector | sectors | track block | ...
//! ```
//!
//! Supported: both kinds; sectors in any order; of sectors that read differently each time (several
//! copies) the first copy.
//! Not supported: tracks that begin at odd bytes (offset extensions of SAMdisk).

use super::floppy::{Data, Floppy, Sector, read_all};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::bytes::Record;
use crate::device::{BlockDevice, Device, probe_array};
use crate::error::{Error, Result};
use crate::text::{printable, trim_padding};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "dsk", snapshots: false, probe, open };

const STANDARD: &[u8] = b"MV - CPC";
const EXTENDED: &[u8] = b"EXTENDED CPC DSK";
const BLOCK: usize = 256;
/// Status bits of a controller: a wrong checksum in the data, a missing address or data mark.
const ST1_CRC: u8 = 0x20;
const ST1_NO_DATA: u8 = 0x05;
const ST2_CRC: u8 = 0x20;
const ST2_DELETED: u8 = 0x40;
const ST2_NO_MARK: u8 = 0x01;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    let magic = probe_array::<16>(device, 0)?.unwrap_or_default();
    Ok(magic.starts_with(STANDARD) || magic.starts_with(EXTENDED))
}

fn open(file: Device, _: &dyn Companions, options: &Options) -> Result<Opened> {
    let bytes = read_all(file.as_ref(), FORMAT.name)?;
    let record = Record::new(FORMAT.name, "disk block", 0, &bytes);
    let extended = bytes.starts_with(EXTENDED);
    let (tracks, sides) = (record.u8(0x30)?, record.u8(0x31)?);
    if tracks == 0 || !matches!(sides, 1 | 2) {
        return Err(record.corrupt_field("number of tracks or sides"));
    }
    let mut floppy = Floppy::default();
    let mut at = BLOCK;
    for index in 0..usize::from(tracks).saturating_mul(sides.into()) {
        let len = if extended {
            usize::from(record.u8(0x34usize.saturating_add(index))?).saturating_mul(BLOCK)
        } else {
            usize::from(record.le16(0x32)?)
        };
        // No bytes: the track is not formatted. The last ones of a disk are at times left out.
        if len > 0 && at < bytes.len() {
            let len = len.min(bytes.len().saturating_sub(at));
            track(&record.part("track block", at, len)?, extended, &mut floppy)?;
        }
        at = at.saturating_add(len);
    }
    let mut opened = floppy.open(FORMAT.name, options)?;
    opened.add("type", if extended { "extended" } else { "standard" });
    opened.add("creator", printable(trim_padding(record.bytes(0x22, 14)?)));
    Ok(opened)
}

fn track(block: &Record<'_>, extended: bool, floppy: &mut Floppy) -> Result<()> {
    if block.bytes(0, 10)? != b"Track-Info" {
        return Err(block.corrupt_field("magic"));
    }
    let (cylinder, head, code, count) = (block.u8(0x10)?, block.u8(0x11)?, block.u8(0x14)?, block.u8(0x15)?);
    // More sectors than the block has room for: it is longer.
    let table = usize::from(count).saturating_mul(8).saturating_add(0x18);
    let mut at = table.next_multiple_of(BLOCK);
    for index in 0..usize::from(count) {
        let row = block.bytes(index.saturating_mul(8).saturating_add(0x18), 8)?;
        let &[_, _, id, own_code, st1, st2, low, high] = row else { return Err(block.corrupt()) };
        let code = if extended { own_code } else { code };
        if code > 8 {
            return Err(Error::corrupt(FORMAT.name, "track block (sector size)", block.at()));
        }
        let size = 128usize.wrapping_shl(code.into());
        let stored = if extended { usize::from(u16::from_le_bytes([low, high])) } else { size };
        let there = stored.min(block.len().saturating_sub(at)).min(size);
        let mut data = block.bytes(at, there)?.to_vec();
        at = at.saturating_add(stored);
        let lost = there == 0 || (st1 & ST1_NO_DATA != 0 && st2 & ST2_NO_MARK != 0);
        let doubtful = st1 & ST1_CRC != 0 || st2 & ST2_CRC != 0 || there < size;
        data.resize(size, 0);
        let data = match (lost, doubtful) {
            (true, _) => Data::Lost,
            (false, true) => Data::Doubtful(data),
            (false, false) => Data::Good(data),
        };
        let deleted = st2 & ST2_DELETED != 0;
        floppy.push(FORMAT.name, (cylinder, head & 1), Sector { id, size, deleted, data })?;
    }
    Ok(())
}
