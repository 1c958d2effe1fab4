//! Changes to a FAT volume that someone else made. The last bytes of the input choose them.
#![no_main]

use imgfs::filesystem::{Changes, FileSystem, Kind, NewNode, NodeId, Options, Timestamp, fat};
use libfuzzer_sys::fuzz_target;

const NAMES: [&[u8]; 6] = [b"A", b"a long name of a file", b"FILE.TXT", b"DIR", b"x.y.z", b"\xc3\xbc"];
const NOW: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };

fuzz_target!(|data: &[u8]| {
    let (volume, steps) = data.split_at(data.len().saturating_sub(64));
    if volume.len() < 4096 {
        return;
    }
    let Ok(tree) = (fat::FORMAT.open)(imgfs_fuzz::disk(volume), &Options::default()) else { return };
    let Some(writer) = tree.writer() else { return };
    let mut known = vec![tree.root()];
    let _ = tree.read_dir(tree.root(), 0, &mut |row| {
        known.push(row.node);
        known.len() < 20
    });
    for step in steps.chunks_exact(4) {
        let node = known[usize::from(step[1]) % known.len()];
        let other = known[usize::from(step[2]) % known.len()];
        let name = NAMES[usize::from(step[3]) % NAMES.len()];
        let new_name = NAMES[usize::from(step[2]) % NAMES.len()];
        let offset = u64::from(step[2]) << (step[3] % 16);
        let kind = if step[2] % 2 == 0 { Kind::File } else { Kind::Directory };
        match step[0] % 8 {
            0 => {
                if let Ok(node) = writer.create(node, name, NewNode { kind, read_only: false, now: NOW }) {
                    known.push(node);
                }
            }
            1 => drop(writer.write(node, &[step[3]; 700], offset, NOW)),
            2 => drop(writer.set_attributes(node, &Changes { size: Some(offset), ..Changes::default() })),
            3 => drop(writer.rename(node, name, other, new_name, step[3] % 2 == 0)),
            4 => drop(writer.remove(node, name, step[2] % 2 == 1)),
            5 => drop(writer.flush()),
            6 => remember(tree.as_ref(), node, name, &mut known),
            _ => drop(tree.read(node, &mut [0; 3000], offset)),
        }
    }
    let _ = writer.quiesce();
    imgfs_fuzz::walk(tree.as_ref());
});

fn remember(tree: &dyn FileSystem, dir: NodeId, name: &[u8], known: &mut Vec<NodeId>) {
    if let Ok(Some(node)) = tree.lookup(dir, name) {
        known.push(node);
    }
}
