//! The checksums of a volume, all of them: the anchor, both descriptor sequences, every entry and directory
//! that its root leads to; and whether the free space is what was said.

use std::collections::HashSet;
use std::ops::ControlFlow;

use super::recognition::Extent;
use super::volume::Volume;
use super::{Udf, space};
use crate::check::{Check, MAX_FAULTS, Walk};
use crate::error::{Error, Result};
use crate::filesystem::{Kind, NodeId};

/// Nodes that are visited: more than any disc has, and a bound for one that leads everywhere.
const MAX_NODES: usize = 4_000_000;

/// All checks of a volume.
pub(super) fn checks(udf: &Udf) -> Vec<Check> {
    let anchor = &udf.anchor;
    let mut checks = vec![Check::known("anchor checksum", format!("byte {}", anchor.at), None)];
    let sequences = [("main", anchor.main), ("reserve", anchor.reserve)];
    for (name, extent) in sequences.into_iter().filter(|(_, extent)| extent.len > 0) {
        let fault = sequence_fault(udf, extent);
        let at = u64::from(extent.block).saturating_mul(anchor.block_size);
        checks.push(Check::known(format!("{name} volume descriptor checksums"), format!("byte {at}"), fault));
    }
    let walk = |faults: fn(&Udf) -> Result<Vec<String>>| -> Walk {
        let (device, options, session) = (udf.partitions.device.clone(), udf.options.clone(), udf.session);
        Box::new(move || faults(&Udf::open(device.clone(), &options, session)?))
    };
    checks.push(Check::walk("file entry and directory checksums", "every node", walk(node_faults)));
    let is_said =
        udf.integrity.as_ref().is_some_and(|integrity| integrity.is_closed && space::said(integrity).is_some());
    if is_said && udf.partitions.physical().all(|partition| partition.bitmap.is_some()) {
        checks.push(Check::walk("free space", "integrity descriptor and bitmaps", walk(space_faults)));
    }
    checks
}

fn sequence_fault(udf: &Udf, extent: Extent) -> Option<String> {
    let volume = Volume::read_alone(udf.partitions.device.as_ref(), &udf.anchor, extent);
    let missing = (!volume.is_complete()).then(|| "descriptors are missing".to_owned());
    volume.damage.map(|error| error.to_string()).or(missing)
}

fn node_faults(udf: &Udf) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let mut judge = |result: Result<()>| match result {
        Err(error @ Error::Corrupt { .. }) => {
            faults.push(error.to_string());
            if faults.len() < MAX_FAULTS { Ok(true) } else { Ok(false) }
        }
        Err(error) => Err(error),
        Ok(()) => Ok(true),
    };
    let mut seen = HashSet::from([udf.root]);
    let mut queue = vec![udf.root];
    while let Some(id) = queue.pop() {
        let node = match udf.node(id) {
            Ok(node) => node,
            Err(error) => match judge(Err(error))? {
                true => continue,
                false => break,
            },
        };
        if node.entry.attributes.kind != Kind::Directory {
            if !judge(node.entry.trouble.clone().map_or(Ok(()), Err))? {
                break;
            }
            continue;
        }
        let mut rows: Vec<NodeId> = Vec::new();
        let listed = udf.scan(id, &node.entry, 0, &mut |row| {
            let id = row.icb.node();
            if seen.len() < MAX_NODES && seen.insert(id) {
                rows.push(id);
            }
            ControlFlow::Continue(())
        });
        if !judge(listed)? {
            break;
        }
        queue.append(&mut rows);
    }
    Ok(faults)
}

fn space_faults(udf: &Udf) -> Result<Vec<String>> {
    let said = udf.integrity.as_ref().and_then(space::said);
    let counted = space::counted(&udf.partitions, u64::MAX)?;
    Ok(match (said, counted) {
        (Some(said), Some(counted)) if said != counted => {
            vec![format!("{said} blocks are said to be free, and {counted} are in the bitmaps")]
        }
        _ => Vec::new(),
    })
}
