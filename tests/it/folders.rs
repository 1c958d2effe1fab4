//! Disks that are a folder of files: Clonezilla's, and Apple's sparse bundles; and images of which
//! one names a part: a disk of several, a map beside.
//!
//! Packages: partclone, e2fsprogs, dosfstools, fdisk, gzip, zstd, xz-utils, qemu-utils, tar.

use std::path::Path;

use imgfs::container::{Options, open};
use imgfs::error::Error;
use imgfs::stack::Image;

use super::disks::{MIB, Numbers, Scratch, assert_disk, disk, refusal};

const PACKAGES: &str = "partclone, e2fsprogs, dosfstools, fdisk, zstd, xz-utils, qemu-utils, tar";

/// What ocs-sr does for a partition, without a device: partclone, a packer, split.
pub(crate) const SAVE: &str = r#"
    save() { # number, file system, packer, suffix, size of the pieces
        partclone.$2 -c -q -L log -s part$1 -o - 2> /dev/null | $3 | split -a 2 -b $5 - image/sda$1.$2-ptcl-img.$4.
    }
    cut_out() { dd if=disk.img of=part$1 bs=512 skip=$2 count=$3 status=none; }
    put() { dd if=part$1 of=disk.img bs=512 seek=$2 conv=notrunc status=none; }
    table() { sfdisk -d disk.img | sed 's#^disk.img#/dev/sda#; s#: disk.img#: /dev/sda#' > image/sda-pt.sf
        echo "Disk /dev/sda: $(($(stat -c %s disk.img) / 512))s" > image/sda-pt.parted
        dd if=disk.img of=image/sda-mbr bs=512 count=1 status=none; echo sda > image/disk; }
    mkdir -p image tree/home; for n in $(seq 300); do echo "file $n"; done > tree/home/list
"#;

/// Four partitions, the last two of them logical ones.
fn mbr_folder(scratch: &Scratch) -> Vec<u8> {
    scratch.sh(
        PACKAGES,
        &format!(
            "{SAVE} truncate -s 40M disk.img
            printf 'label: dos\nstart=2048,size=16384,bootable\nstart=18432,type=5\nstart=20480,size=16384\n\
                start=40960,size=4096,type=82\nstart=47104,size=20480,type=c\n' | sfdisk -q disk.img
            for p in 1,2048,16384,ext4 5,20480,16384,ext2; do IFS=, read n start size kind <<< $p
                truncate -s $((size * 512)) part$n; mke2fs -q -F -t $kind -b 1024 -d tree -L part$n part$n; put $n $start; done
            truncate -s 10485760 part7; mkfs.fat -F 16 -n SEVEN part7 > /dev/null; put 7 47104
            printf 'boot loader' | dd of=disk.img bs=1 seek=1000 conv=notrunc status=none
            table; echo sda1 sda5 sda7 > image/parts; dd if=disk.img of=image/sda2-ebr bs=512 skip=18432 count=1 status=none
            dd if=disk.img of=image/sda-hidden-data-after-mbr bs=512 skip=1 count=2047 status=none
            touch image/swappt-sda6.info image/sda7.info
            save 1 ext4 gzip gz 1M; save 5 ext2 'zstd -q' zst 50k; save 7 vfat cat uncomp 20k"
        ),
    );
    std::fs::read(scratch.path("disk.img")).unwrap()
}

#[test]
fn a_folder_of_clonezilla_is_the_disk_that_it_was_made_of() {
    let scratch = Scratch::new();
    let mut expected = mbr_folder(&scratch);
    let opened = open(&scratch.path("image"), &scratch.options()).unwrap();
    assert_eq!(opened.format, "clonezilla");
    let facts: Vec<_> = opened.facts.iter().filter(|(name, _)| *name == "partition").map(|(_, value)| value).collect();
    assert_eq!(facts.len(), 4, "{facts:?} {:?}", opened.notes);
    // The boot records of the logical partitions past the first one were not saved: they hold the same
    // rows, but for addresses of cylinders that no one reads.
    let mut disk = vec![0; opened.disk.size() as usize];
    opened.disk.read_exact_at(&mut disk, 0).unwrap();
    assert_eq!(disk.len(), expected.len());
    for at in [38_912 * 512, 45_056 * 512] {
        for row in [446, 462] {
            assert_eq!(disk[at + row + 4], expected[at + row + 4], "type in the record at {at}");
            assert_eq!(disk[at + row + 8..at + row + 16], expected[at + row + 8..at + row + 16], "record at {at}");
        }
        expected[at..at + 512].copy_from_slice(&disk[at..at + 512]);
    }
    assert_disk("the folder", opened.disk.as_ref(), &expected);
    let image = Image::open(&scratch.path("image"), &Default::default()).unwrap();
    let names: Vec<_> = image.parts.iter().map(|part| part.name.as_str()).collect();
    assert_eq!(names, ["disk", "p1", "p2", "p5", "p6", "p7"]);
    let forest = image.forest();
    for path in ["/p1/home/list", "/p5/home/list", "/by-label/SEVEN"] {
        forest.find(path.as_bytes()).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    // By the file in it as well.
    assert_eq!(open(&scratch.path("image/disk"), &scratch.options()).unwrap().format, "clonezilla");
}

#[test]
fn images_of_ntfsclone_and_of_dd_stand_where_their_partitions_are() {
    let scratch = Scratch::new();
    scratch.sh(
        "ntfs-3g, fdisk, lzop, lz4, zstd",
        &format!(
            "{SAVE} truncate -s 24M disk.img
            printf 'start=2048,size=16384,type=7\nstart=18432,size=4096\nstart=22528,size=4096\nstart=26624,size=4096\n\
                ' | sfdisk -q disk.img
            truncate -s 8M part1; mkntfs -q -F -c 4096 part1 2> /dev/null > /dev/null; put 1 2048
            for p in 2,18432 3,22528 4,26624; do IFS=, read n start <<< $p
                head -c 2M /dev/urandom > part$n; put $n $start; done
            table; echo sda1 sda2 sda3 sda4 > image/parts
            ntfsclone -s -f -o - part1 2> /dev/null | gzip -c | split -b 20k - image/sda1.ntfs-img.gz.
            zstd -q -c part2 | split -b 1M - image/sda2.dd-ptcl-img.zst.
            split -b 1M part3 image/sda3.dd-img.; lz4 -q -c part4 > image/sda4.dd-img.lz4.aa"
        ),
    );
    let opened = open(&scratch.path("image"), &scratch.options()).unwrap();
    assert!(opened.notes.iter().any(|note| note.contains("sda4 cannot be read")), "{:?}", opened.notes);
    assert!(opened.notes.iter().any(|note| note.contains("packed with lz4")), "{:?}", opened.notes);
    let expected = std::fs::read(scratch.path("disk.img")).unwrap();
    let mut disk = vec![0; 26_624 * 512];
    opened.disk.read_exact_at(&mut disk, 0).unwrap();
    assert!(disk == expected[..disk.len()]);
    let mut sector = [0; 512];
    assert!(opened.disk.read_exact_at(&mut sector, 26_624 * 512).is_err());
}

#[test]
fn a_partition_that_was_not_saved_is_an_error_and_never_zeros() {
    let scratch = Scratch::new();
    mbr_folder(&scratch);
    scratch.sh(
        PACKAGES,
        "rm image/sda1.*; echo LZOP > image/sda5.ext2-ptcl-img.lzo.aa; rm image/sda5.*zst*; truncate -s -1 image/sda7.*.aa",
    );
    let opened = open(&scratch.path("image"), &scratch.options()).unwrap();
    let said = opened.notes.join("\n");
    assert!(said.contains("sda1 was not saved"), "{said}");
    assert!(said.contains("sda5 cannot be read") && said.contains("packed with lzo"), "{said}");
    assert!(said.contains("sda7 cannot be read") && said.contains(".ab"), "{said}");
    let mut sector = [0; 512];
    for start in [2048, 20_480, 47_104] {
        let error = opened.disk.read_exact_at(&mut sector, start * 512).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
    opened.disk.read_exact_at(&mut sector, 40_960 * 512).unwrap();
    let zeros = Options { bad_as_zeros: true, ..scratch.options() };
    open(&scratch.path("image"), &zeros).unwrap().disk.read_exact_at(&mut sector, 2048 * 512).unwrap();
    scratch.sh(PACKAGES, "mv image/sda-pt.sf image/sdb-pt.sf; echo nothing > image/sda-pt.sf");
    let second = Options { disk: Some(2), ..scratch.options() };
    let opened = open(&scratch.path("image"), &second).unwrap();
    assert_eq!(opened.fact("shown disk"), Some("2 of 2"));
}

#[test]
fn a_gpt_disk_in_a_folder_of_clonezilla_has_both_its_tables() {
    let scratch = Scratch::new();
    scratch.sh(
        PACKAGES,
        &format!(
            "{SAVE} truncate -s 20M disk.img
            printf 'label: gpt\nstart=2048,size=16384,name=root\nstart=20480,size=8192\n' | sfdisk -q disk.img
            truncate -s 8M part1; mke2fs -q -F -t ext4 -b 1024 -d tree part1; put 1 2048
            truncate -s 4M part2; head -c 3000000 /dev/urandom | dd of=part2 conv=notrunc status=none; put 2 20480
            table; dd if=disk.img of=image/sda-gpt-1st bs=512 count=34 status=none
            dd if=disk.img of=image/sda-gpt-2nd bs=512 skip=$((40960 - 33)) count=33 status=none
            save 1 ext4 'xz -T1' xz 300k; gzip -c part2 | split -a 3 -b 1M - image/sda2.dd-img."
        ),
    );
    let expected = std::fs::read(scratch.path("disk.img")).unwrap();
    let opened = open(&scratch.path("image"), &scratch.options()).unwrap();
    assert_eq!(opened.notes.iter().filter(|note| !note.contains("zeros")).count(), 0, "{:?}", opened.notes);
    assert_disk("the folder", opened.disk.as_ref(), &expected);
    // The index of the packed partition in pieces is kept.
    let indexes = || std::fs::read_dir(scratch.path("cache")).unwrap().count();
    let before = indexes();
    open(&scratch.path("image"), &scratch.options()).unwrap();
    assert!(before > 0 && indexes() == before, "{before} and {} indexes", indexes());
    let image = Image::open(&scratch.path("image"), &Default::default()).unwrap();
    let scan = image.scan.unwrap().unwrap();
    assert!(scan.table.notes.is_empty(), "{:?}", scan.table.notes);
}

/// A bundle in bands of so many bytes, those of zeros left out.
pub(crate) fn bundle(scratch: &Scratch, name: &str, bytes: &[u8], band: usize) {
    std::fs::create_dir_all(scratch.path(name).join("bands")).unwrap();
    for (i, part) in bytes.chunks(band).enumerate() {
        let end = part.iter().rposition(|&byte| byte != 0).map_or(0, |last| (last + 1).next_multiple_of(512));
        if end > 0 {
            std::fs::write(scratch.path(name).join(format!("bands/{i:x}")), &part[..end.min(part.len())]).unwrap();
        }
    }
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<plist version=\"1.0\">\n<dict>\n\t<key>CFBundleInfoDictionaryVersion</key>\n\
         \t<string>6.0</string>\n\t<key>band-size</key>\n\t<integer>{band}</integer>\n\t<key>bundle-backingstore-version</key>\n\
         \t<integer>1</integer>\n\t<key>diskimage-bundle-type</key>\n\t<string>com.apple.diskimage.sparsebundle</string>\n\
         \t<key>size</key>\n\t<integer>{}</integer>\n</dict>\n</plist>\n",
        bytes.len()
    );
    std::fs::write(scratch.path(name).join("Info.plist"), text).unwrap();
    std::fs::write(scratch.path(name).join("token"), b"").unwrap();
}

#[test]
fn a_sparse_bundle_is_its_bands_in_order() {
    let scratch = Scratch::new();
    for (size, band) in [(8 * MIB, 1 << 20), (10 * MIB + 1536, 65_536)] {
        let bytes = disk(size);
        let name = format!("disk{band}.sparsebundle");
        bundle(&scratch, &name, &bytes, band);
        let opened = open(&scratch.path(&name), &scratch.options()).unwrap();
        assert_eq!(opened.format, "sparsebundle");
        assert_disk(&name, opened.disk.as_ref(), &bytes);
    }
    let folder = scratch.path("disk1048576.sparsebundle");
    std::fs::write(folder.join("token"), b"encrcdsa and more").unwrap();
    assert!(refusal(&folder, &scratch.options()).contains("sparsebundle: encryption is not supported"));
    std::fs::write(folder.join("token"), b"").unwrap();
    std::fs::remove_dir_all(folder.join("bands")).unwrap();
    scratch.sh(PACKAGES, "ln -s /etc disk1048576.sparsebundle/bands");
    assert!(refusal(&folder, &scratch.options()).contains("symbolic link"));
}

#[test]
fn descriptions_of_folders_with_any_bytes_are_errors_and_nothing_worse() {
    let scratch = Scratch::new();
    bundle(&scratch, "b", &disk(MIB), 65_536);
    scratch.sh(PACKAGES, "mkdir c; echo sda > c/disk; for n in mbr 2-ebr 1.ext4-ptcl-img.gz.aa; do head -c 512 /dev/zero > c/sda$n; done");
    let table = b"label: dos\ndevice: /dev/sda\nsector-size: 512\n\n/dev/sda1 : start= 2048, size= 1000, type=83\n\
                  /dev/sda2 : start= 4096, size= 8000, type=5\n/dev/sda5 : start= 6000, size= 100, type=83\n";
    std::fs::write(scratch.path("c/sda-pt.sf"), table).unwrap();
    let mut numbers = Numbers(3);
    for (folder, name) in [("b", "Info.plist"), ("c", "sda-pt.sf")] {
        let path = scratch.path(folder).join(name);
        let good = std::fs::read(&path).unwrap();
        for _ in 0..1000 {
            let mut bytes = good.clone();
            for _ in 0..=numbers.below(3) {
                let at = numbers.below(bytes.len() as u64) as usize;
                bytes[at] = b"0123456789 ,=<>/\n\xff"[numbers.below(18) as usize];
            }
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(opened) = open(&scratch.path(folder), &scratch.options()) {
                let len = opened.disk.size().min(70_000) as usize;
                let _ = opened.disk.read_exact_at(&mut vec![0; len], 0);
            }
        }
    }
}

#[test]
fn the_disk_of_an_archive_can_be_chosen() {
    let scratch = Scratch::new();
    let (one, two) = (disk(MIB), disk(2 * MIB));
    scratch.write("one.raw", &one);
    scratch.write("two.raw", &two);
    scratch.write("machine.ovf", b"<Envelope/>");
    scratch.sh(
        PACKAGES,
        "for n in one two; do qemu-img convert -O vmdk -o subformat=streamOptimized $n.raw $n.vmdk; done
        tar --format=ustar -cf machine.ova machine.ovf one.vmdk two.vmdk",
    );
    let path = scratch.path("machine.ova");
    for (choice, expected) in [(None, &one), (Some(1), &one), (Some(2), &two)] {
        let opened = open(&path, &Options { disk: choice, ..scratch.options() }).unwrap();
        assert_disk("the archive", opened.disk.as_ref(), expected);
        assert_eq!(opened.fact("shown disk"), Some(format!("{} of 2", choice.unwrap_or(1)).as_str()));
    }
    let refused = |path: &Path, number| open(path, &Options { disk: Some(number), ..scratch.options() }).err().unwrap();
    assert!(refused(&path, 3).to_string().contains("the disk 3 (there are 2)"));
    assert!(refused(&path, 0).to_string().contains("the disk 0"));
    assert!(refused(&scratch.path("one.vmdk"), 1).to_string().contains("a choice of disks"));
}

#[test]
fn a_map_that_is_named_holds_for_any_image_in_pieces_as_well() {
    let scratch = Scratch::new();
    let bytes = disk(MIB);
    scratch.write("base.raw", &bytes);
    scratch.write("elsewhere", b"# no head of ddrescue's\n0 ? 1\n0 0x80000 +\n0x80000 0x200 -\n0x80200 0x7fe00 +\n");
    scratch.sh(PACKAGES, "split -b 300k -d -a 3 base.raw d.");
    let map = Some(scratch.path("elsewhere"));
    for (name, format) in [("base.raw", None), ("d.000", None), ("base.raw", Some("raw".to_owned()))] {
        let opened = open(&scratch.path(name), &Options { map: map.clone(), format, ..scratch.options() }).unwrap();
        let mut sector = [0; 512];
        let error = opened.disk.read_exact_at(&mut sector, 0x80000).unwrap_err();
        assert!(error.to_string().contains("512 bytes at 524288"), "{name}: {error}");
        opened.disk.read_exact_at(&mut sector, 0x80200).unwrap();
        assert_eq!(sector, bytes[0x80200..0x80400]);
    }
    let program = super::program::run(&[
        "cat",
        "--map",
        scratch.path("elsewhere").to_str().unwrap(),
        &format!("{}:/disk.img", scratch.path("base.raw").display()),
    ]);
    assert!(program.code == Some(1) && program.err.contains("ddrescue could not read it"), "{program:?}");
}
