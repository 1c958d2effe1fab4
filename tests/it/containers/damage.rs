//! Damaged and hostile images: no panic, no hang, no large allocation. The cases run in a process
//! of their own with bounded memory and time, because only that shows an allocation.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use imgfs::container::{Options, open};

use super::build::{change, cowd, se_sparse, vdi_child, vhd_child, vhdx_child};
use super::{MIB, Numbers, Scratch, disk};

/// Bytes of memory that a process with any damaged image may map, in KiB: code, threads and 64 MiB.
const MEMORY: u64 = 512 << 10;
const CASES: u64 = 1000;

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
/// Tells the process where the images are.
const FOLDER: &str = "IMGFS_DAMAGE_FOLDER";

/// Opens a damaged image and reads some of it; what it answers does not matter.
fn try_all(path: &std::path::Path, options: &Options) {
    let Ok(opened) = open(path, options) else { return };
    let size = opened.disk.size();
    let mut buf = vec![0; 65_536];
    for start in (0..size.min(2 * MIB)).step_by(65_536).chain([size.saturating_sub(65_536)]) {
        let len = (size - start).min(65_536) as usize;
        let _ = opened.disk.read_exact_at(&mut buf[..len], start);
        let _ = opened.disk.extent(start.min(size.saturating_sub(1)));
    }
}

/// Where damage is likely to hit metadata: the pages that are not empty, the first and last first.
fn spot(numbers: &mut Numbers, pages: &[usize], len: usize) -> usize {
    let page = match numbers.below(3) {
        0 => pages[numbers.below(pages.len().min(4) as u64) as usize],
        1 => pages[pages.len() - 1 - numbers.below(pages.len().min(2) as u64) as usize],
        _ => pages[numbers.below(pages.len() as u64) as usize],
    };
    (page + numbers.below(512) as usize).min(len - 1)
}

/// Bytes that break things: limits, signs, small numbers, flipped bits.
fn damage(image: &mut [u8], numbers: &mut Numbers, pages: &[usize]) {
    for _ in 0..=numbers.below(4) {
        let at = spot(numbers, pages, image.len());
        let len = [1, 2, 4, 8][numbers.below(4) as usize].min(image.len() - at);
        match numbers.below(4) {
            0 => image[at] ^= 1 << numbers.below(8),
            1 => image[at..at + len].fill(0xff),
            2 => image[at..at + len].fill(0),
            _ => image[at..at + len].iter_mut().for_each(|byte| *byte = numbers.next() as u8),
        }
    }
}

#[test]
#[ignore = "run by damaged_images_are_answered_in_bounded_memory, in a process of its own"]
fn damaged_images() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    for name in IMAGES.map(|(name, _)| name).iter().chain(&MADE) {
        let image = read(name);
        // Whole pages of one byte (holes, padding) say nothing when they change.
        let dull = |at: &usize| image[*at..(*at + 512).min(image.len())].windows(2).all(|pair| pair[0] == pair[1]);
        let pages: Vec<usize> = (0..image.len()).step_by(512).filter(|at| !dull(at)).collect();
        let mut numbers = Numbers(name.bytes().fold(99, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(byte)));
        let options = Options { cache_size: MIB, ..Options::default() };
        let forced = name.split('-').next().map(str::to_owned);
        let case = folder.join("case");
        let mut on_disk = image.clone();
        std::fs::write(&case, &on_disk).unwrap();
        let file = File::options().write(true).open(&case).unwrap();
        for i in 0..CASES {
            let mut broken = image.clone();
            damage(&mut broken, &mut numbers, &pages);
            // Checksums would stop most of the damage at the door; every second case mends them.
            if i % 2 == 1 {
                mend(name, &mut broken);
            }
            // Only what differs is written: some images have many megabytes of padding.
            let chunks = broken.chunks(65_536).zip(on_disk.chunks(65_536)).enumerate();
            for (i, (new, _)) in chunks.filter(|(_, (new, old))| new != old) {
                file.write_all_at(new, i as u64 * 65_536).unwrap();
            }
            on_disk = broken;
            try_all(&case, &Options { format: forced.clone(), ..options.clone() });
        }
        for i in 0..60 {
            let len = if i < 30 { image.len() * i / 30 } else { image.len().saturating_sub(1 + (i - 30) * 97) };
            std::fs::write(&case, &image[..len]).unwrap();
            try_all(&case, &options);
            try_all(&case, &Options { format: forced.clone(), ..options.clone() });
        }
        println!("{name}: {CASES} damaged and 60 cut images");
    }
}

/// Makes the checksums of a damaged VHD or VHDX right again.
fn mend(name: &str, image: &mut [u8]) {
    let sum = |bytes: &[u8]| !bytes.iter().fold(0u32, |sum, &byte| sum.wrapping_add(byte.into()));
    if name.starts_with("vhdx") {
        let regions = [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 65_536), (256 << 10, 65_536)];
        for (at, len) in regions.into_iter().chain((0..3).map(|i| (MIB as usize + i * 8192, 8192))) {
            image[at + 4..at + 8].fill(0);
            let sum = crc32c::crc32c(&image[at..at + len]);
            image[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
        }
    } else if name.starts_with("vhd") {
        let footer = image.len() - 512;
        for (at, len, field) in [(0, 512, 64), (512, 1024, 36), (footer, 512, 64)] {
            // A fixed disk has its own bytes at the start.
            if at < footer && &image[..8] != b"conectix" {
                continue;
            }
            image[at + field..at + field + 4].fill(0);
            let sum = sum(&image[at..at + len]);
            image[at + field..at + field + 4].copy_from_slice(&sum.to_be_bytes());
        }
    }
}

#[test]
fn damaged_images_are_answered_in_bounded_memory() {
    let scratch = Scratch::new();
    let bytes = disk(MIB + 1536);
    scratch.write("base.raw", &bytes);
    scratch.sh(&IMAGES.map(|(name, script)| script.replace("IMAGE", name)).join("\n"));
    let read = |name: &str| std::fs::read(scratch.path(name)).unwrap();
    let changes = [change(3, 5, 9), change(1000, 2, 8)];
    scratch.write("vhd-child", &vhd_child(&read("vhd-fixed"), "vhd-fixed", 1, &bytes, &changes));
    scratch.write("vhdx-child", &vhdx_child(&read("vhdx"), "vhdx", 2, &bytes, &changes));
    scratch.write("vdi-child", &vdi_child(&read("vdi"), 3, &bytes, &changes));
    scratch.write("vmdk-esx", &cowd(&bytes));
    scratch.write("vmdk-se", &se_sparse(&bytes));
    let this = std::env::current_exe().unwrap();
    let script = format!(
        "ulimit -v {MEMORY}; exec timeout 300 '{}' --exact --ignored --nocapture containers::damage::damaged_images",
        this.display()
    );
    let output = Command::new("bash").args(["-c", &script]).env(FOLDER, &scratch.0).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
}
