//! Sessions of a multi-session disc, and images of one session alone.
//!
//! ```text
//!   |sys 16..|session 0 ....|gap|sys|descriptors|session 1 ...|gap|sys|descriptors|session 2 ...|
//!   addresses count from the start of the disc, in every session
//! ```
//!
//! A drive knows where sessions start; an image does not say. Each one is looked for where writers
//! put the next session: right behind the last (grown images), or behind the lead-out and lead-in.

use super::descriptor::{SYSTEM_AREA, VolumeDescriptor};
use super::medium::{Medium, SECTOR, SECTOR_LEN};
use super::record::DirectoryRecord;
use crate::device::{BlockDevice, check_range};
use crate::error::Result;

/// A CD holds 99 tracks, and so at most as many sessions.
const MAX_SESSIONS: usize = 99;
/// Sectors from the end of a session to the start of the next: none, and lead-out, lead-in and
/// pre-gap after a second and after the first session (Orange Book).
const GAPS: [u64; 3] = [0, 6900, 11_400];
/// Writers pad a session with up to 150 sectors and align to 32; this many are searched.
const WINDOW: u64 = 256;
/// Where a growable image keeps the first session's own descriptors (libisofs).
const GROWN_FIRST: u64 = 32;
/// An image of one session alone has its directories at the start: this many sectors are searched.
const MAX_BIAS_SEARCH: u64 = 32_768;

/// The sessions of an image.
pub(super) struct Sessions {
    /// First sectors, ascending; one is there even when nothing is known of it.
    pub(super) starts: Vec<u64>,
    /// First sector of what is shown when no one asks: the last session, or the start of a grown
    /// image, which always has the descriptors of the last.
    pub(super) default: u64,
}

/// Looks for the sessions of an image.
pub(super) fn find(device: &dyn BlockDevice) -> Result<Sessions> {
    let first = read_primary(device, 0)?;
    let grown = read_primary(device, GROWN_FIRST)?.filter(|old| {
        first.as_ref().is_some_and(|new| new.root_extent() != old.root_extent()) && has_root(device, old)
    });
    let is_grown = grown.is_some();
    let mut sessions = vec![if is_grown { GROWN_FIRST } else { 0 }];
    let mut last = grown.or(first);
    while let (Some(descriptor), true) = (&last, sessions.len() < MAX_SESSIONS) {
        let from = sessions.last().copied().unwrap_or(0);
        let Some((next, found)) = next_session(device, from, descriptor)? else { break };
        sessions.push(next);
        last = Some(found);
    }
    let last = sessions.last().copied().unwrap_or(0);
    Ok(Sessions { starts: sessions, default: if is_grown { 0 } else { last } })
}

/// Writers do not agree whether the size of a volume counts from its session or from the disc.
fn next_session(
    device: &dyn BlockDevice,
    from: u64,
    last: &VolumeDescriptor,
) -> Result<Option<(u64, VolumeDescriptor)>> {
    let blocks = last.space_size.choose(|size| size != 0);
    let bytes = u64::from(blocks).saturating_mul(last.block_size().unwrap_or(2048).into());
    let size = bytes.div_ceil(SECTOR);
    let mut ends = [size, from.saturating_add(size)];
    ends.sort_unstable();
    let mut searched = 0;
    for end in ends.into_iter().filter(|end| *end > from) {
        for gap in GAPS {
            let start = end.saturating_add(gap).max(searched);
            let stop = end.saturating_add(gap).saturating_add(WINDOW);
            if let Some(found) = search(device, start, stop)? {
                return Ok(Some(found));
            }
            if gap == 0 {
                searched = stop;
            }
        }
    }
    Ok(None)
}

/// The first session that starts from `start` to before `stop`. Its root directory must lie where
/// it says, counted from the start of the image: an image that merely follows another is no session.
fn search(device: &dyn BlockDevice, start: u64, stop: u64) -> Result<Option<(u64, VolumeDescriptor)>> {
    for session in start..stop {
        let at = session.saturating_add(SYSTEM_AREA).saturating_mul(SECTOR);
        if check_range(SECTOR_LEN, at, device.size()).is_err() {
            break;
        }
        let found = read_primary(device, session)?.filter(|descriptor| has_root(device, descriptor));
        if let Some(descriptor) = found {
            return Ok(Some((session, descriptor)));
        }
    }
    Ok(None)
}

fn read_primary(device: &dyn BlockDevice, session: u64) -> Result<Option<VolumeDescriptor>> {
    let at = session.saturating_add(SYSTEM_AREA).saturating_mul(SECTOR);
    VolumeDescriptor::probe_primary(device, at)
}

/// Whether the root directory lies where the descriptor says, counted from the image's start.
fn has_root(device: &dyn BlockDevice, descriptor: &VolumeDescriptor) -> bool {
    let extent = u64::from(descriptor.root_extent());
    let at = extent.saturating_mul(descriptor.block_size().unwrap_or(2048).into());
    is_root(device, at, descriptor.root_extent())
}

/// Whether the records of a directory and of its parent at `at` both name `extent`: that is so in
/// the root directory alone.
fn is_root(device: &dyn BlockDevice, at: u64, extent: u32) -> bool {
    let mut bytes = [0; 512];
    if device.read_exact_at(&mut bytes, at).is_err() {
        return false;
    }
    let Ok(this) = DirectoryRecord::parse(&bytes, at) else { return false };
    let Some(rest) = bytes.get(this.len..) else { return false };
    let Ok(parent) = DirectoryRecord::parse(rest, at) else { return false };
    let names = |record: &DirectoryRecord<'_>| record.extent.le == extent || record.extent.be == extent;
    this.name == [0] && parent.name == [1] && this.is_directory() && names(&this) && names(&parent)
}

/// Bytes by which the addresses of an image of one session alone are too high. `start` is the
/// session's first byte on the device.
pub(super) fn find_bias(medium: &Medium, start: u64, descriptors: &[&VolumeDescriptor]) -> Option<u64> {
    for offset in SYSTEM_AREA..MAX_BIAS_SEARCH {
        let at = start.saturating_add(offset.saturating_mul(SECTOR));
        if at >= medium.device.size() {
            break;
        }
        for descriptor in descriptors {
            let extent = descriptor.root_extent();
            let bias = u64::from(extent).checked_mul(medium.block_size).and_then(|said| said.checked_sub(at));
            if let Some(bias) = bias.filter(|_| is_root(medium.device.as_ref(), at, extent)) {
                return Some(bias);
            }
        }
    }
    None
}
