//! Bridge discs: one volume with a tree of ISO 9660 and a tree of UDF, mostly of the same extents. Windows'
//! installation discs have all files in UDF alone, and a note to the reader in ISO 9660.
//!
//! ```text
//!   | CD001 primary | .. | CD001 end | BEA01 | NSR02 | TEA01 | ... 256: anchor ...
//! ```
//!
//! libblkid (and so mount(8)), Windows, macOS and 7-Zip all show UDF. So do we, with two exceptions, each only
//! where the other tree lacks nothing of what UDF has (names, and bytes of files, of the first 4,096 rows):
//!
//! * Rock Ridge, because it has owners, permissions and links, which those who write both leave out of UDF;
//! * Joliet, when it has something that UDF lacks.
//!
//! A view that an option names is left out of the choice (`noudf`, `norock`, `nojoliet`), and a tree that
//! cannot be opened leaves the other one.

use std::collections::{HashMap, HashSet, VecDeque};

use super::iso9660::{self, BridgeNames};
use super::{FileSystem, Found, Kind, NodeId, Options, udf};
use crate::device::Device;
use crate::error::Result;

/// Rows of UDF that are looked for in the other tree, and rows of that one that are read for it.
const MAX_COMPARED: usize = 4096;
const MAX_READ: usize = 1 << 18;

/// The tree of a disc that is known to have ISO 9660; `None` when that is its only one.
pub(super) fn open(device: &Device, options: &Options) -> Result<Found> {
    if options.noudf || !is_bridge(device, options)? {
        return Ok(None);
    }
    let bridge = match iso9660::open_bridge(device.clone(), options) {
        Ok(bridge) => bridge,
        // Of which session the disc consists, only ISO 9660 says.
        Err(error) if options.session.is_some() => return Err(error),
        Err(error) => {
            log::warn!("iso9660: {error}; UDF is shown");
            return (udf::FORMAT.open)(device.clone(), options).map(|tree| Some((udf::FORMAT.name, tree)));
        }
    };
    let iso = bridge.iso;
    let shown = Some((iso9660::FORMAT.name, iso.clone()));
    if !udf::is_at(device.as_ref(), bridge.session)? {
        return Ok(shown);
    }
    let udf = match udf::open_bridge(device.clone(), options, bridge.session, iso.clone()) {
        Ok(udf) => udf,
        Err(error) => {
            log::warn!("{error}; ISO 9660 is shown");
            return Ok(shown);
        }
    };
    let shows_iso = match bridge.names {
        BridgeNames::Plain => false,
        BridgeNames::RockRidge => compare(iso.as_ref(), udf.as_ref()).is_some(),
        BridgeNames::Joliet => compare(iso.as_ref(), udf.as_ref()) == Some(More::Something),
    };
    Ok(if shows_iso { shown } else { Some((udf::FORMAT.name, udf)) })
}

/// Whether any session may have both.
fn is_bridge(device: &Device, options: &Options) -> Result<bool> {
    let first = u64::from(options.sbsector.unwrap_or(0)).saturating_mul(2048);
    udf::is_at(device.as_ref(), first)
}

/// What a tree has beyond the other one, all of which it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum More {
    Nothing,
    Something,
}

/// Looks in `iso` for everything of `udf`, breadth first; `None` as soon as something is missing, or is of
/// another kind or size. What cannot be read counts as missing in `iso`, and as nothing in `udf`.
fn compare(iso: &dyn FileSystem, udf: &dyn FileSystem) -> Option<More> {
    let (mut more, mut left, mut to_read) = (More::Nothing, MAX_COMPARED, MAX_READ);
    let mut seen = HashSet::from([udf.root()]);
    let mut queue = VecDeque::from([(iso.root(), udf.root())]);
    while let Some((in_iso, in_udf)) = queue.pop_front() {
        let there = rows(iso, in_iso, to_read)?;
        to_read = to_read.checked_sub(there.len()).filter(|left| *left > 0)?;
        let wanted = rows(udf, in_udf, left).unwrap_or_default();
        if there.len() > wanted.len() && wanted.len() < left {
            more = More::Something;
        }
        for (name, (node, kind)) in wanted {
            let (other, other_kind) = *there.get(&name)?;
            let size = |tree: &dyn FileSystem, node: NodeId| tree.attributes(node).ok().map(|found| found.size);
            match (kind, other_kind) {
                (Kind::Directory, Kind::Directory) => {
                    if seen.insert(node) {
                        queue.push_back((other, node));
                    }
                }
                (Kind::File, Kind::File) => match (size(udf, node), size(iso, other)) {
                    // What an earlier session had is empty in the UDF that genisoimage adds to it.
                    (Some(0), Some(1..)) => more = More::Something,
                    (Some(there), found) if found != Some(there) => return None,
                    _ => {}
                },
                // Links and devices are empty files in the UDF that genisoimage writes.
                (Kind::File, Kind::Directory) => return None,
                (Kind::File, _) if size(udf, node).is_none_or(|len| len == 0) => {}
                (kind, other_kind) if kind == other_kind => {}
                _ => return None,
            }
            left = left.saturating_sub(1);
        }
        if left == 0 {
            break;
        }
    }
    Some(more)
}

type Rows = HashMap<Vec<u8>, (NodeId, Kind)>;

/// The rows of a directory, at most so many; `None` when not all can be read.
fn rows(tree: &dyn FileSystem, dir: NodeId, most: usize) -> Option<Rows> {
    let mut rows = Rows::new();
    let listed = tree.read_dir(dir, 0, &mut |entry| {
        rows.insert(entry.name.into_owned(), (entry.node, entry.kind));
        rows.len() < most
    });
    listed.ok().map(|()| rows)
}
