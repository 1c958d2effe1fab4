//! Differencing VHD, VHDX and VDI: parents by qemu-img, children by `build`.

use super::build::{Change, change, changed, vdi_child, vhd_child, vhdx_child};
use super::{MIB, PACKAGES, Scratch, assert_image, disk, open, options, refusal};

/// Single sectors, runs within a byte of a bitmap and across blocks, and two blocks of zeros.
const CHANGES: [Change; 6] = [
    change(0, 1, 0x11),
    change(186, 1, 0x22),
    change(1000, 77, 0x33),
    change(4090, 20, 0x44),
    change(2048 * 3, 4096, 0),
    change(2048 * 6, 2048, 0x55),
];
const MORE: [Change; 3] = [change(1, 2, 0x66), change(1010, 5, 0), change(16_000, 300, 0x77)];

type Child = fn(&[u8], &str, u8, &[u8], &[Change]) -> Vec<u8>;

fn assert_chain(ours: &str, convert: &str, child: Child) -> Scratch {
    let scratch = Scratch::new();
    for size in [8 * MIB, 10 * MIB + 1536] {
        let bytes = disk(size);
        scratch.write("base.raw", &bytes);
        scratch.sh(PACKAGES, &format!("qemu-img convert -f raw {convert} base.raw Parent"));
        let parent = std::fs::read(scratch.path("Parent")).unwrap();
        let first = child(&parent, "parent", 0xc1, &bytes, &CHANGES);
        let first_disk = changed(&bytes, &CHANGES);
        scratch.write("child", &first);
        // The name that is recorded differs in case, as Windows allows.
        let opened = assert_image(&scratch.path("child"), ours, &first_disk);
        assert!(opened.fact("type").is_some_and(|kind| kind == "differencing"));
        let second = child(&first, "child", 0xc2, &first_disk, &MORE);
        let opened = assert_image(&scratch.write("grandchild", &second), ours, &changed(&first_disk, &MORE));
        assert_eq!(opened.facts.iter().filter(|(fact, _)| *fact == "parent").count(), 2);
        // A parent that was exchanged for another one of the same name and size.
        if size == 8 * MIB {
            scratch.sh(PACKAGES, &format!("rm Parent; qemu-img convert -f raw {convert} base.raw Parent"));
            let said = refusal(&scratch.path("child"));
            assert!(said.contains("parent") || said.contains("Parent"), "{said}");
            scratch.sh(PACKAGES, "rm Parent; rm child");
            assert!(refusal(&scratch.path("grandchild")).contains("child"));
        }
    }
    scratch
}

#[test]
fn a_differencing_vhd_takes_single_sectors_from_its_parent() {
    let scratch = assert_chain("vhd", "-O vpc -o subformat=dynamic,force_size=on", vhd_child);
    std::fs::remove_file(scratch.path("Parent")).unwrap();
    assert!(refusal(&scratch.path("child")).contains("needs the file parent"));
}

#[test]
fn a_differencing_vhdx_takes_single_sectors_from_its_parent() {
    let scratch = assert_chain("vhdx", "-O vhdx -o block_size=1M", vhdx_child);
    std::fs::remove_file(scratch.path("Parent")).unwrap();
    assert!(refusal(&scratch.path("child")).contains("needs the file parent"));
}

#[test]
fn a_differencing_vdi_finds_its_parent_by_identifier() {
    let child: Child = |parent, _, id, disk, changes| vdi_child(parent, id, disk, changes);
    let scratch = assert_chain("vdi", "-O vdi", child);
    // Under any name; but not when it is gone.
    scratch.sh(PACKAGES, "mv Parent 'any other name.bin'");
    assert!(open(&scratch.path("child"), &options()).is_ok());
    scratch.sh(PACKAGES, "rm 'any other name.bin'");
    assert!(refusal(&scratch.path("child")).contains("no file in its folder is its parent"));
}

#[test]
fn a_vdi_whose_parent_was_changed_since_says_so() {
    let scratch = Scratch::new();
    let bytes = disk(2 * MIB);
    scratch.write("base.raw", &bytes);
    scratch.sh(PACKAGES, "qemu-img convert -f raw -O vdi base.raw Parent");
    let parent = std::fs::read(scratch.path("Parent")).unwrap();
    let changes = [change(3, 5, 9)];
    let mut child = vdi_child(&parent, 7, &bytes, &changes);
    let at = scratch.write("child", &child);
    let mut other = parent.clone();
    other[408..424].fill(0x11);
    let other_at = scratch.write("Parent", &other);
    // As VirtualBox leaves a chain from which it merged a snapshot: to be read, and to be said.
    assert_image(&at, "vdi", &changed(&bytes, &changes));
    let notes = || open(&at, &options()).unwrap().notes;
    let said = notes().join("\n");
    assert!(said.contains("its modification UUID is 11111111-1111-1111-1111-111111111111, not "), "{said}");
    // A copy from before the change is the parent, under any name and whichever comes first.
    for copy in ["A copy", "Z copy"] {
        let copy = scratch.write(copy, &parent);
        assert!(notes().is_empty(), "{:?}", notes());
        assert_image(&at, "vdi", &changed(&bytes, &changes));
        std::fs::remove_file(copy).unwrap();
    }
    // A child that recorded none is opened over what has the identifier.
    child[440..456].fill(0);
    scratch.write("child", &child);
    assert_image(&at, "vdi", &changed(&bytes, &changes));
    assert_eq!(std::fs::read(other_at).unwrap(), other);
}
