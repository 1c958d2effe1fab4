//! Containers that qemu does not write, at the sizes that hold the most traps: 8 MiB, 10 MiB and a bit, and
//! 192 MiB. Each disk is read in steps of 1 MiB and of 3,000 bytes, and by four threads at random.
//!
//! Packages: ewf-tools, mame-tools, gzip, pigz, tabix, xz-utils, zstd, bzip2, gddrescue, partclone, e2fsprogs,
//! ntfs-3g, fdisk, bchunk.

use std::path::Path;

use crate::disks::{MIB, Scratch, assert_disk, assert_image, disk, sparse_disk};
use crate::{dmg, folders, optical};

const PACKAGES: &str = "ewf-tools, mame-tools, gzip, pigz, tabix, xz-utils, zstd, bzip2, gddrescue, partclone, \
                        e2fsprogs, ntfs-3g, fdisk";

/// The image that a script makes of `d.raw`, its format, and the script.
type Kind = (&'static str, &'static str, &'static str);

const PACKED: [Kind; 13] = [
    ("split.000", "split", "split -b 50M -d -a 3 d.raw split."),
    ("letters.part-aa", "split", "split -b 64M d.raw letters.part-"),
    ("rescued.img", "ddrescue", "ddrescue -q -S d.raw rescued.img rescued.img.map"),
    ("plain.gz", "gz", "gzip -1c d.raw > plain.gz"),
    ("pigz.gz", "gz", "pigz -1c d.raw > pigz.gz"),
    ("bgzip.gz", "gz", "bgzip -c d.raw > bgzip.gz"),
    ("one.xz", "xz", "xz -0 -T1 -c d.raw > one.xz"),
    ("blocks.xz", "xz", "xz -0 -T2 --block-size=1MiB -c d.raw > blocks.xz"),
    ("one.zst", "zst", "zstd -qc d.raw > one.zst"),
    ("frames.zst", "zst", "pzstd -q -p 2 -c d.raw > frames.zst"),
    ("plain.bz2", "bz2", "bzip2 -1c d.raw > plain.bz2"),
    ("unsized.zst", "zst", "zstd -q < d.raw > unsized.zst"),
    ("two.gz", "gz", "(head -c 100M d.raw | gzip -1c; tail -c +104857601 d.raw | gzip -1c) > two.gz"),
];

const EVIDENCE: [Kind; 6] = [
    ("none.E01", "ewf", "ewfacquire -u -q -f encase6 -c none -t none d.raw > /dev/null"),
    ("parts.E01", "ewf", "ewfacquire -u -q -f encase6 -c none -S 50MiB -t parts d.raw > /dev/null"),
    ("best.E01", "ewf", "ewfacquire -u -q -f ftk -c best -t best d.raw > /dev/null"),
    ("large.E01", "ewf", "ewfacquire -u -q -f encase5 -b 32768 -c fast -t large d.raw > /dev/null"),
    ("empty.E01", "ewf", "ewfacquire -u -q -f encase7 -c empty-block -t empty d.raw > /dev/null"),
    ("s.s01", "ewf", "ewfacquire -u -q -f smart -c fast -t s d.raw > /dev/null"),
];

const CHD: [Kind; 7] = [
    ("none.chd", "chd", "chdman createraw -c none -hs 4096 -us 512 -i d.raw -o none.chd > /dev/null 2>&1"),
    ("zlib.chd", "chd", "chdman createraw -c zlib -hs 4096 -us 512 -i d.raw -o zlib.chd > /dev/null 2>&1"),
    ("lzma.chd", "chd", "chdman createraw -c lzma -hs 65536 -us 512 -i d.raw -o lzma.chd > /dev/null 2>&1"),
    ("huff.chd", "chd", "chdman createraw -c huff -hs 512 -us 512 -i d.raw -o huff.chd > /dev/null 2>&1"),
    ("flac.chd", "chd", "chdman createraw -c flac -hs 262144 -us 512 -i d.raw -o flac.chd > /dev/null 2>&1"),
    ("hd.chd", "chd", "chdman createhd -i d.raw -o hd.chd > /dev/null 2>&1"),
    ("hdn.chd", "chd", "chdman createhd -c none -hs 4096 -i d.raw -o hdn.chd > /dev/null 2>&1"),
];

/// What the tools make of the disk.
fn assert_kinds(bytes: &[u8], kinds: &[Kind]) {
    let scratch = Scratch::new();
    scratch.write("d.raw", bytes);
    for (name, format, script) in kinds {
        scratch.sh(PACKAGES, script);
        // A hard disk ends with a cylinder.
        let padded = script.contains("createhd").then(|| {
            scratch.sh(PACKAGES, &format!("chdman extracthd -f -i {name} -o oracle.raw > /dev/null"));
            std::fs::read(scratch.path("oracle.raw")).unwrap()
        });
        let expected = padded.as_deref().unwrap_or(bytes);
        assert!(expected.starts_with(bytes), "{name}");
        assert_image(&scratch.path(name), format, expected, &scratch.options());
        // All pieces, so that the next ones have room.
        let (stem, _) = name.split_once('.').unwrap();
        scratch.sh(PACKAGES, &format!("rm {stem}.*"));
    }
}

/// What CDs and packed discs of the disk are; its size is a whole number of sectors.
fn assert_discs(bytes: &[u8]) {
    let scratch = Scratch::new();
    // Nobody reads the codes behind the data.
    let raw = |mode: u8| {
        let sectors = bytes.chunks(2048).zip(0u64..).map(|(data, lba)| {
            let mut sector = optical::raw::header(lba, mode);
            let start = if mode == 1 { 16 } else { 24 };
            sector[start..start + 2048].copy_from_slice(data);
            sector
        });
        sectors.collect::<Vec<_>>().concat()
    };
    let check = |path: &Path, format: &str| {
        assert_image(path, format, bytes, &scratch.options());
    };
    let cue = |file: &str, mode: &str| format!("FILE \"{file}\" BINARY\n  TRACK 01 {mode}\n    INDEX 01 00:00:00\n");
    let (bin, count) = (raw(1), (bytes.len() / 2048) as u64);
    scratch.write("cooked.iso", bytes);
    check(&scratch.write("cooked.cue", cue("cooked.iso", "MODE1/2048").as_bytes()), "cue");
    check(&scratch.write("nero.nrg", &optical::nrg(&bin, true, true)), "nrg");
    scratch.write("clone.img", &bin);
    check(&scratch.write("clone.ccd", optical::ccd(&[(1, 1, 0, 4)], count).as_bytes()), "ccd");
    scratch.write("alcohol.mdf", &bin);
    check(&scratch.write("alcohol.mds", &optical::mds(0, 2352, count as u32)), "mds");
    check(&scratch.write("raw.bin", &bin), "rawcd");
    check(&scratch.write("raw.cue", cue("raw.bin", "MODE1/2352").as_bytes()), "cue");
    for methods in ["none", "cdzl,cdlz,cdfl"] {
        let script = format!("chdman createcd -f -c {methods} -i raw.cue -o disc.chd > /dev/null 2>&1");
        scratch.sh("mame-tools", &script);
        check(&scratch.path("disc.chd"), "chd");
    }
    scratch.write("raw.bin", &raw(2));
    check(&scratch.write("raw.cue", cue("raw.bin", "MODE2/2352").as_bytes()), "cue");
    check(&scratch.write("disc.cso", &optical::cso(bytes, 2)), "cso");
    check(&scratch.write("disc.dax", &optical::dax(bytes)), "dax");
}

/// A sparse image of the Macintosh whose bands stand in the opposite order.
fn sparse_image(bytes: &[u8]) -> Vec<u8> {
    const BAND: usize = 1 << 20;
    let bands: Vec<&[u8]> = bytes.chunks(BAND).collect();
    let stored: Vec<usize> = (0..bands.len()).rev().filter(|&n| bands[n].iter().any(|&byte| byte != 0)).collect();
    let mut image = b"sprs\0\0\0\x03".to_vec();
    for number in [(BAND / 512) as u32, 1, (bytes.len() / 512) as u32] {
        image.extend(number.to_be_bytes());
    }
    image.resize(64, 0);
    image.extend(stored.iter().flat_map(|&n| (n as u32 + 1).to_be_bytes()));
    image.resize(4096, 0);
    for n in stored {
        image.extend(bands[n]);
        image.resize(4096 + (image.len() - 4096).next_multiple_of(BAND), 0);
    }
    image
}

/// Images of the Macintosh.
fn assert_macintosh(bytes: &[u8]) {
    let scratch = Scratch::new();
    let lzma = |bytes: &[u8]| dmg::xz(&scratch, bytes);
    let packers: [dmg::Packer<'_>; 6] = [
        (dmg::RAW, &dmg::plain),
        (dmg::ADC, &dmg::adc),
        (dmg::ZLIB, &dmg::zlib),
        (dmg::BZIP2, &dmg::bzip2),
        (dmg::LZFSE, &dmg::lzfse),
        (dmg::LZMA, &lzma),
    ];
    for packer in packers {
        let image = dmg::image(bytes, &[packer], 0, false);
        assert_image(&scratch.write("d.dmg", &image), "dmg", bytes, &scratch.options());
    }
    folders::bundle(&scratch, "d.sparsebundle", bytes, 8 << 20);
    let opened = imgfs::container::open(&scratch.path("d.sparsebundle"), &scratch.options()).unwrap();
    assert_disk("sparse bundle", opened.disk.as_ref(), bytes);
    assert_image(&scratch.write("d.sparseimage", &sparse_image(bytes)), "sparseimage", bytes, &scratch.options());
}

#[test]
fn chds_and_discs_of_8_and_10_mib() {
    for size in [8 * MIB, 10 * MIB + 1536] {
        assert_kinds(&disk(size), &CHD);
    }
    for size in [8 * MIB, 10 * MIB + 2048] {
        assert_discs(&disk(size));
    }
}

#[test]
fn images_of_the_macintosh_of_8_and_10_mib() {
    for size in [8 * MIB, 10 * MIB + 1536] {
        assert_macintosh(&disk(size));
    }
}

#[test]
#[ignore = "takes minutes: the large disk in each kind of image that qemu does not write"]
fn the_large_disk_in_every_other_kind() {
    let bytes = sparse_disk();
    for kinds in [&PACKED[..], &EVIDENCE, &CHD] {
        assert_kinds(&bytes, kinds);
    }
    assert_discs(&bytes);
    assert_macintosh(&bytes);
}

#[test]
#[ignore = "takes minutes: volumes of 192 MiB through partclone, ntfsclone, and Clonezilla's folders"]
fn large_volumes_as_partclone_and_ntfsclone_restore_them() {
    let scratch = Scratch::new();
    scratch.sh(
        PACKAGES,
        &format!(
            "{} head -c 9M /dev/urandom > tree/noise
            truncate -s 192M fs.img; mke2fs -q -F -t ext4 -d tree fs.img
            partclone.ext4 -c -q -L log -s fs.img -o fs.pc 2> /dev/null
            truncate -s 192M fs.restored; partclone.restore -q -C -L log -s fs.pc -O fs.restored 2> /dev/null
            truncate -s 192M ntfs.img; mkntfs -q -F ntfs.img > /dev/null 2>&1; ntfscp -q ntfs.img tree/noise noise
            ntfsclone -q -s -f -O ntfs.special ntfs.img > /dev/null
            ntfsclone -q -r -f -o ntfs.restored ntfs.special > /dev/null
            truncate -s 193M disk.img; echo start=2048,size=393216 | sfdisk -q disk.img
            cp fs.restored part1; put 1 2048; table; echo sda1 > image/parts
            dd if=disk.img of=image/sda-hidden-data-after-mbr bs=512 skip=1 count=2047 status=none
            save 1 ext4 'zstd -q' zst 3M",
            folders::SAVE
        ),
    );
    let read = |name: &str| std::fs::read(scratch.path(name)).unwrap();
    assert_image(&scratch.path("fs.pc"), "partclone", &read("fs.restored"), &scratch.options());
    assert_image(&scratch.path("ntfs.special"), "ntfsclone", &read("ntfs.restored"), &scratch.options());
    let folder = imgfs::container::open(&scratch.path("image"), &scratch.options()).unwrap();
    assert_eq!(folder.format, "clonezilla");
    let lost = |note: &&String| note.contains("cannot be read") || note.contains("not saved");
    assert_eq!(folder.notes.iter().find(lost), None);
    assert_disk("clonezilla", folder.disk.as_ref(), &read("disk.img"));
}
