//! What the fuzz targets share: devices over the fuzzer's bytes, and a walk that asks a tree everything.

use std::sync::Arc;

use imgfs::device::Device;
use imgfs::device::memory::Memory;
use imgfs::filesystem::{FileSystem, FileSystemFormat, Kind, NodeId, Options};

/// Nodes that are visited: damage may make a thousand ways to one node.
const NODES: u32 = 500;

/// A disk of these bytes.
pub fn disk(data: &[u8]) -> Device {
    Arc::new(Memory::new(data.to_vec(), 512))
}

/// Opens a volume with one decoder, whatever its probe says, and looks at everything.
pub fn walk_volume(format: &FileSystemFormat, data: &[u8]) {
    let device = disk(data);
    let _ = (format.probe)(device.as_ref());
    if let Ok(tree) = (format.open)(device, &Options::default()) {
        walk(tree.as_ref());
    }
}

/// Visits every node and reads some of each.
pub fn walk(tree: &dyn FileSystem) {
    let _ = (tree.summary(), tree.embedded());
    let mut left = NODES;
    below(tree, tree.root(), &mut Vec::new(), &mut left);
}

fn below(tree: &dyn FileSystem, dir: NodeId, above: &mut Vec<NodeId>, left: &mut u32) {
    let mut rows = Vec::new();
    let _ = tree.read_dir(dir, 0, &mut |row| {
        rows.push((row.node, row.name.into_owned(), row.next));
        rows.len() < NODES as usize
    });
    if let Some((_, _, next)) = rows.last() {
        let _ = tree.read_dir(dir, *next, &mut |_| false);
    }
    above.push(dir);
    for (node, name, _) in rows {
        if *left == 0 {
            break;
        }
        *left -= 1;
        let _ = tree.lookup(dir, &name);
        for name in tree.xattrs(node).unwrap_or_default() {
            let _ = tree.xattr(node, &name);
        }
        let Ok(attributes) = tree.attributes(node) else { continue };
        match attributes.kind {
            Kind::Directory if above.len() < 32 && !above.contains(&node) => below(tree, node, above, left),
            Kind::Symlink => drop(tree.read_link(node)),
            Kind::File => inside(tree, node, attributes.size),
            _ => {}
        }
    }
    above.pop();
}

fn inside(tree: &dyn FileSystem, file: NodeId, size: u64) {
    let mut buf = [0; 8192];
    for offset in [0, size / 2, size.saturating_sub(5000)] {
        if let Ok(len) = tree.read(file, &mut buf, offset) {
            assert!(len as u64 <= size.saturating_sub(offset));
        }
        if let (true, Ok(extent)) = (offset < size, tree.extent(file, offset)) {
            assert!(extent.len > 0);
        }
    }
}

/// Reads the start, the middle and the end of a disk.
pub fn read_some(disk: &Device) {
    let mut buf = [0; 8192];
    let size = disk.size();
    for offset in [0, size / 2, size.saturating_sub(buf.len() as u64)] {
        let len = size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let _ = disk.read_exact_at(&mut buf[..len], offset);
        if len > 0 {
            let _ = disk.extent(offset);
        }
    }
}
