//! Extended attributes within a file entry (ECMA-167, 4/14.10): the two that say something of a node.
//!
//! ```text
//!   0 tag | 16 .. | 24 [ type | subtype .. | 8 length | 12 ... ][ ... ]
//! ```

use super::time;
use crate::bytes::Record;
use crate::filesystem::Timestamp;

const FILE_TIMES: u32 = 5;
const DEVICE: u32 = 12;

/// The first attribute of a type that there is.
fn find<'a>(area: &Record<'a>, wanted: u32) -> Option<Record<'a>> {
    let mut offset = 24usize;
    while let (Ok(kind), Ok(len)) = (area.le32(offset), area.le32(offset.saturating_add(8))) {
        let len = usize::try_from(len).ok().filter(|len| *len >= 12)?;
        if kind == wanted {
            return area.part("extended attribute", offset, len).ok();
        }
        offset = offset.saturating_add(len);
    }
    None
}

/// When the file was made, where the plain form of an entry has that: 4/14.10.5.
pub(super) fn created(area: &Record<'_>) -> Option<Timestamp> {
    let times = find(area, FILE_TIMES)?;
    // The first of the bits says that the time of creation is there; it comes first then.
    (times.le32(16).ok()? & 1 != 0).then(|| time::parse(times.array(20).ok()?)).flatten()
}

/// Major and minor number of a device: 4/14.10.7.
pub(super) fn device(area: &Record<'_>) -> Option<(u32, u32)> {
    let numbers = find(area, DEVICE)?;
    Some((numbers.le32(16).ok()?, numbers.le32(20).ok()?))
}
