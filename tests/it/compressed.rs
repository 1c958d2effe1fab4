//! Compressed disks as gzip, pigz, bgzip, xz, zstd, pzstd and bzip2 write them.
//!
//! Packages: gzip, pigz, tabix (bgzip), xz-utils, zstd, bzip2, qemu-utils.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use imgfs::container::{Options, Progress, open};

use crate::disks::{
    MIB, Numbers, Scratch, assert_disk, assert_image, assert_random, assert_steps, assert_survives, disk, refusal,
    sparse_disk,
};

const PACKAGES: &str = "gzip, pigz, tabix (bgzip), xz-utils, zstd, bzip2, qemu-utils";

/// Name of the image and the command that makes it from `d`; `d1` and `d2` are its halves.
const GZ: [(&str, &str); 6] = [
    ("fast.gz", "gzip -1c d"),
    ("best.gz", "gzip -9c d"),
    ("pigz.gz", "pigz -c d"),
    ("independent.gz", "pigz -ic d"),
    ("bgzip.gz", "bgzip -c d"),
    ("members.gz", "gzip -c d1; gzip -c < /dev/null; gzip -c d2; gzip -c < /dev/null"),
];
const XZ: [(&str, &str); 6] = [
    ("one.xz", "xz -1 -T1 -c d"),
    ("blocks.xz", "xz -0 -T2 --block-size=1MiB -c d"),
    ("sha256.xz", "xz -0 -T1 --block-size=700000 --check=sha256 -c d"),
    ("unchecked.xz", "xz -0 -T1 --check=none -c d"),
    ("filtered.xz", "xz -T1 --x86 --delta=dist=4 --lzma2=preset=0 --block-size=3MiB -c d"),
    ("streams.xz", "xz -0c d1; head -c 5000 /dev/zero; xz -0 --check=crc32 -c d2; head -c 8 /dev/zero"),
];
const ZST: [(&str, &str); 6] = [
    ("one.zst", "zstd -qc d"),
    ("unsized.zst", "zstd -q < d"),
    ("unchecked.zst", "zstd -q --no-check -c d"),
    ("pzstd.zst", "pzstd -q -p 2 -c d"),
    ("frames.zst", "zstd -qc d1; printf '\\x50\\x2a\\x4d\\x18\\x03\\0\\0\\0abc'; zstd -q < d2"),
    ("long.zst", "zstd -q --long=27 -c d"),
];
const BZ2: [(&str, &str); 3] = [
    ("nine.bz2", "bzip2 -9c d"),
    ("one.bz2", "bzip2 -1c d"),
    ("streams.bz2", "bzip2 -9c d1; bzip2 -c < /dev/null; bzip2 -1c d2"),
];

fn make(scratch: &Scratch, bytes: &[u8], images: &[(&str, &str)]) {
    scratch.write("d", bytes);
    let half = bytes.len() / 2 - 100;
    scratch.write("d1", &bytes[..half]);
    scratch.write("d2", &bytes[half..]);
    let script: Vec<String> = images.iter().map(|(name, command)| format!("({command}) > {name}")).collect();
    scratch.sh(PACKAGES, &script.join("\n"));
}

/// Every image gives the disk back: at first, and through the index that was kept.
fn assert_format(format: &str, images: &[(&str, &str)]) {
    for size in [8 * MIB, 10 * MIB + 1536] {
        let scratch = Scratch::new();
        let bytes = disk(size);
        make(&scratch, &bytes, images);
        for (name, _) in images {
            let opened = assert_image(&scratch.path(name), format, &bytes, &scratch.options());
            assert_eq!(opened.fact("unpacked size"), Some(format!("{size} bytes").as_str()), "{name}");
            let again = open(&scratch.path(name), &scratch.options()).unwrap();
            assert_random(name, again.disk.as_ref(), &bytes, 5);
            let small = Options { no_spool: true, ..scratch.options() };
            assert_steps(name, open(&scratch.path(name), &small).unwrap().disk.as_ref(), &bytes, MIB);
        }
    }
}

#[test]
fn gzip_of_every_kind() {
    assert_format("gz", &GZ);
}

#[test]
fn xz_of_every_kind() {
    assert_format("xz", &XZ);
}

#[test]
fn zstandard_of_every_kind() {
    assert_format("zst", &ZST);
}

#[test]
fn bzip2_of_every_kind() {
    assert_format("bz2", &BZ2);
}

#[test]
fn a_sparse_disk_of_192_mib() {
    let scratch = Scratch::new();
    let bytes = sparse_disk();
    let images = [("s.gz", "pigz -1c d"), ("s.xz", "xz -0 -T2 -c d"), ("s.zst", "zstd -qc d"), ("s.bz2", "bzip2 -c d")];
    make(&scratch, &bytes, &images);
    for (name, _) in images {
        let opened = open(&scratch.path(name), &scratch.options()).unwrap();
        assert_random(name, opened.disk.as_ref(), &bytes, 3);
        assert_steps(name, opened.disk.as_ref(), &bytes, MIB);
    }
}

#[test]
fn another_container_inside_is_opened() {
    let scratch = Scratch::new();
    let bytes = disk(8 * MIB);
    let images = [("inner.qcow2.gz", "gzip -1c q"), ("inner.vhd.xz", "xz -0c v"), ("inner.qcow2.zst", "zstd -qc q")];
    scratch.write("d", &bytes);
    scratch
        .sh(PACKAGES, "qemu-img convert -O qcow2 d q; qemu-img convert -O vpc -o subformat=dynamic,force_size=on d v");
    make(&scratch, &bytes, &images);
    for (name, _) in images {
        let format = name.split('.').nth(1).unwrap();
        let opened = open(&scratch.path(name), &scratch.options()).unwrap();
        assert_eq!(opened.format, format, "{name}");
        assert_disk(name, opened.disk.as_ref(), &bytes);
        assert!(opened.fact("compression").is_some(), "{name}");
    }
    // The same once more around it stays a file inside the disk.
    scratch.sh(PACKAGES, "gzip -1c d > once; gzip -1c once > twice.gz");
    let opened = open(&scratch.path("twice.gz"), &scratch.options()).unwrap();
    assert_eq!((opened.format, opened.disk.size()), ("gz", std::fs::metadata(scratch.path("once")).unwrap().len()));
}

#[test]
fn without_a_spool_a_large_single_part_is_refused() {
    let scratch = Scratch::new();
    make(&scratch, &sparse_disk(), &[("one.xz", "xz -0 -T1 -c d"), ("one.zst", "zstd -qc d")]);
    for name in ["one.xz", "one.zst"] {
        let said = refusal(&scratch.path(name), &Options { no_spool: true, ..scratch.options() });
        assert!(said.contains("spool") && said.contains("201326592"), "{said}");
        let bounded = Options { spool_max: Some(100_000), ..scratch.options() };
        let opened = open(&scratch.path(name), &bounded).unwrap();
        // The first bytes fit; what lies behind the bound does not, and says so.
        opened.disk.read_exact_at(&mut [0; 512], 0).unwrap();
        let said = opened.disk.read_exact_at(&mut [0; 512], 190 << 20).unwrap_err().to_string();
        assert!(said.contains("bound of 100000 bytes"), "{said}");
        opened.disk.read_exact_at(&mut [0; 512], 4096).unwrap();
    }
}

#[test]
fn opening_a_single_block_unpacks_little_and_the_spool_has_no_name() {
    let scratch = Scratch::new();
    make(&scratch, &sparse_disk(), &[("one.xz", "xz -0 -T1 -c d")]);
    let most = Arc::new(AtomicU64::new(0));
    let seen = most.clone();
    let hook = Progress(Arc::new(move |what, done, total| {
        assert_eq!((what, total), ("unpacking", 192 << 20));
        seen.fetch_max(done, Ordering::Relaxed);
    }));
    let opened = open(&scratch.path("one.xz"), &Options { progress: Some(hook), ..scratch.options() }).unwrap();
    assert!(most.load(Ordering::Relaxed) <= 2 * MIB, "opening unpacked {most:?} bytes");
    opened.disk.read_exact_at(&mut [0; 512], 50 << 20).unwrap();
    let done = most.load(Ordering::Relaxed);
    assert!((50 * MIB..53 * MIB).contains(&done), "{done}");
    assert_eq!(std::fs::read_dir(scratch.path("cache")).unwrap().count(), 0);
}

/// The files of the cache folder.
fn indexes(scratch: &Scratch) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(scratch.path("cache")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_damaged_foreign_or_stale_index_is_made_anew() {
    let scratch = Scratch::new();
    let bytes = disk(3 * MIB);
    let images = [("a.gz", "gzip -1c d"), ("a.bz2", "bzip2 -1c d"), ("a.zst", "zstd -q < d1; zstd -q < d2")];
    make(&scratch, &bytes, &images);
    for (name, _) in images {
        let path = scratch.path(name);
        let check = |what: &str| {
            let opened = open(&path, &scratch.options()).unwrap_or_else(|error| panic!("{name}, {what}: {error}"));
            assert_steps(&format!("{name}, {what}"), opened.disk.as_ref(), &bytes, MIB);
        };
        check("no index");
        let [index] = indexes(&scratch).try_into().expect("one index");
        let good = std::fs::read(&index).unwrap();
        let mut numbers = Numbers(5);
        for _ in 0..30 {
            let mut bad = good.clone();
            bad[numbers.below(good.len() as u64) as usize] ^= 1 << numbers.below(8);
            std::fs::write(&index, &bad).unwrap();
            check("damaged index");
            assert_eq!(std::fs::read(&index).unwrap(), good, "{name}: the index is mended");
        }
        std::fs::write(&index, &good[..good.len() / 2]).unwrap();
        check("half an index");
        // A newer file of the same name and size has another index.
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH + Duration::from_secs(7))
            .unwrap();
        check("another time");
        assert_eq!(indexes(&scratch).len(), 2, "{name}");
        std::fs::remove_dir_all(scratch.path("cache")).unwrap();
        // A cache folder that cannot be made is no error.
        std::fs::write(scratch.path("cache"), "").unwrap();
        check("no cache folder");
        std::fs::remove_file(scratch.path("cache")).unwrap();
    }
}

#[test]
fn a_fixed_vhd_in_a_single_block_is_recognised_by_its_footer() {
    let scratch = Scratch::new();
    let bytes = sparse_disk();
    scratch.write("base.raw", &bytes);
    scratch.sh(
        PACKAGES,
        "qemu-img convert -f raw -O vpc -o subformat=fixed,force_size=on base.raw d; cp base.raw odd; printf x >> odd
        xz -0 -T1 -c d > one.vhd.xz; zstd -qc d > one.vhd.zst; xz -0 -T1 -c odd > odd.xz",
    );
    for name in ["one.vhd.xz", "one.vhd.zst"] {
        let opened = open(&scratch.path(name), &scratch.options()).unwrap();
        assert_eq!((opened.format, opened.disk.size()), ("vhd", bytes.len() as u64), "{name}");
        assert_random(name, opened.disk.as_ref(), &bytes, 3);
    }
    let opened = open(&scratch.path("odd.xz"), &scratch.options()).unwrap();
    assert!(opened.notes.iter().any(|note| note.contains("not looked at")), "{:?}", opened.notes);
}

#[test]
fn zstandard_behind_many_skippable_frames_is_recognised() {
    let scratch = Scratch::new();
    let bytes = disk(MIB);
    let frames = "for i in 1 2 3 4 5 6 7 8 9; do printf '\\x50\\x2a\\x4d\\x18\\x03\\0\\0\\0abc'; done; zstd -qc d";
    make(&scratch, &bytes, &[("many.zst", frames)]);
    assert_image(&scratch.path("many.zst"), "zst", &bytes, &scratch.options());
}

#[test]
fn bytes_behind_the_compressed_data_are_left_out_with_a_note() {
    let scratch = Scratch::new();
    let bytes = disk(2 * MIB);
    make(
        &scratch,
        &bytes,
        &[("a.gz", "gzip -1c d; echo rest"), ("a.bz2", "bzip2 -1c d; echo rest"), ("a.zst", "zstd -qc d; echo rest")],
    );
    for name in ["a.gz", "a.bz2", "a.zst"] {
        let opened = open(&scratch.path(name), &scratch.options()).unwrap();
        assert_steps(name, opened.disk.as_ref(), &bytes, MIB);
        assert!(opened.notes.iter().any(|note| note.starts_with("5 bytes after")), "{name}: {:?}", opened.notes);
    }
    // A byte alone could begin a member.
    for (name, byte) in [("zero.gz", "\\0"), ("begin.gz", "\\037"), ("line.gz", "\\n")] {
        scratch
            .sh(PACKAGES, &format!("(gzip -1c d; printf '{byte}') > {name}; gzip -dc {name} | cmp - d || [ $? = 2 ]"));
        let opened = open(&scratch.path(name), &scratch.options()).unwrap();
        assert_steps(name, opened.disk.as_ref(), &bytes, MIB);
        let note = opened.notes.iter().find(|note| note.starts_with("1 byte after the compressed data, from byte "));
        assert!(note.is_some_and(|note| note.ends_with(" on, is left out")), "{name}: {:?}", opened.notes);
    }
    scratch.sh(PACKAGES, "gzip -1c d | head -c -1 > cut.gz");
    assert!(refusal(&scratch.path("cut.gz"), &scratch.options()).contains("compressed data"));
}

#[test]
fn a_damaged_block_fails_alone_where_the_format_allows_it() {
    let scratch = Scratch::new();
    let bytes = disk(8 * MIB);
    make(&scratch, &bytes, &[("a.xz", "xz -0 --block-size=1MiB -c d"), ("a.zst", "zstd -qc d1; zstd -qc d2")]);
    for name in ["a.xz", "a.zst"] {
        let mut image = std::fs::read(scratch.path(name)).unwrap();
        let quarter = image.len() / 4;
        image[quarter..quarter + 4].fill(0x55);
        let path = scratch.write(name, &image);
        let opened = open(&path, &scratch.options()).unwrap();
        let mut bad = 0;
        for at in (0..8 * MIB).step_by(MIB as usize) {
            let mut buf = vec![0; MIB as usize];
            match opened.disk.read_exact_at(&mut buf, at) {
                Ok(()) => assert!(buf == bytes[at as usize..(at + MIB) as usize], "{name} at {at}"),
                Err(error) => {
                    assert!(error.to_string().contains("damaged"), "{error}");
                    bad += 1;
                }
            }
        }
        assert!((1..=4).contains(&bad), "{name}: {bad} of 8 are damaged");
    }
}

#[test]
fn a_cut_file_is_damaged_and_never_a_shorter_disk() {
    let scratch = Scratch::new();
    let bytes = disk(MIB);
    let images = [("a.gz", "gzip -1c d"), ("a.xz", "xz -0c d"), ("a.zst", "zstd -qc d"), ("a.bz2", "bzip2 -1c d")];
    make(&scratch, &bytes, &images);
    for (name, _) in images {
        let image = std::fs::read(scratch.path(name)).unwrap();
        for len in [20, 100, image.len() / 2, image.len() - 9, image.len() - 1] {
            let said = refusal(&scratch.write(name, &image[..len]), &scratch.options());
            assert!(said.contains("damaged"), "{name}, {len} bytes: {said}");
        }
    }
}

#[test]
fn damaged_files_are_answered_in_bounded_memory() {
    let scratch = Scratch::new();
    let bytes = disk(150_000);
    let all = [GZ[0], GZ[4], GZ[5], XZ[0], XZ[5], ZST[0], ZST[1], ZST[3], BZ2[1], BZ2[2]];
    make(&scratch, &bytes, &all);
    let format = |name: &'static str| Path::new(name).extension().unwrap().to_str().unwrap();
    assert_survives(scratch.folder(), &all.map(|(name, _)| (format(name), name)));
}
