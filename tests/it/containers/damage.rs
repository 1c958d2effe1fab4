//! Damaged and hostile images: no panic, no hang, no large allocation.

use super::build::{change, cowd, se_sparse, vdi_child, vhd_child, vhdx_child};
use super::disks::assert_survives;
use super::{MIB, PACKAGES, Scratch, disk};

/// Small images of every format: the name of the image, what makes it, and where its metadata is.
const IMAGES: [(&str, &str); 15] = [
    ("qcow2", "qemu-img convert -O qcow2 -o cluster_size=4k base.raw IMAGE"),
    ("qcow2-packed", "qemu-img convert -c -O qcow2 -o cluster_size=4k base.raw IMAGE"),
    ("qcow2-zstd", "qemu-img convert -c -O qcow2 -o cluster_size=4k,compression_type=zstd base.raw IMAGE"),
    ("qcow2-extended", "qemu-img convert -O qcow2 -o extended_l2=on,cluster_size=16k base.raw IMAGE"),
    (
        "qcow2-snapshot",
        "qemu-img create -q -f qcow2 -b base.raw -F raw IMAGE; qemu-img snapshot -c first IMAGE
        qemu-io -f qcow2 -c 'write -P 5 0 100k' IMAGE",
    ),
    ("qcow", "qemu-img convert -c -O qcow base.raw IMAGE || true"),
    ("vhd-fixed", "qemu-img convert -O vpc -o subformat=fixed base.raw IMAGE"),
    ("vhd", "qemu-img convert -O vpc -o subformat=dynamic base.raw IMAGE"),
    ("vhdx", "qemu-img convert -O vhdx -o block_size=1M base.raw IMAGE"),
    (
        "vhdx-dirty",
        "qemu-img create -q -f vhdx -o block_size=1M IMAGE 4M
        strace -f -o /dev/null -e trace=pwrite64 -e inject=pwrite64:signal=SIGKILL:when=5 \
            qemu-io -t writethrough -f vhdx -c 'write -P 5 1M 3M' IMAGE > /dev/null 2>&1 || true",
    ),
    ("vdi", "qemu-img convert -O vdi base.raw IMAGE"),
    ("vmdk", "qemu-img convert -O vmdk base.raw IMAGE"),
    ("vmdk-stream", "qemu-img convert -O vmdk -o subformat=streamOptimized base.raw IMAGE"),
    ("vmdk-flat", "qemu-img convert -O vmdk -o subformat=monolithicFlat base.raw IMAGE"),
    ("parallels", "qemu-img convert -O parallels -o cluster_size=64k base.raw IMAGE"),
];

/// Images of the same disk that `build` makes.
const MADE: [&str; 5] = ["vhd-child", "vhdx-child", "vdi-child", "vmdk-esx", "vmdk-se"];
#[test]
fn damaged_images_are_answered_in_bounded_memory() {
    let scratch = Scratch::new();
    let bytes = disk(MIB + 1536);
    scratch.write("base.raw", &bytes);
    scratch.sh(PACKAGES, &IMAGES.map(|(name, script)| script.replace("IMAGE", name)).join("\n"));
    let read = |name: &str| std::fs::read(scratch.path(name)).unwrap();
    let changes = [change(3, 5, 9), change(1000, 2, 8)];
    scratch.write("vhd-child", &vhd_child(&read("vhd-fixed"), "vhd-fixed", 1, &bytes, &changes));
    scratch.write("vhdx-child", &vhdx_child(&read("vhdx"), "vhdx", 2, &bytes, &changes));
    scratch.write("vdi-child", &vdi_child(&read("vdi"), 3, &bytes, &changes));
    scratch.write("vmdk-esx", &cowd(&bytes));
    scratch.write("vmdk-se", &se_sparse(&bytes));
    let names = IMAGES.iter().map(|(name, _)| *name).chain(MADE);
    let images: Vec<(&str, &str)> = names.map(|name| (name.split('-').next().unwrap(), name)).collect();
    assert_survives(scratch.folder(), &images);
}
