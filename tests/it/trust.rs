//! What archives compare: digests, checks and manifests, against the tools that archives use.
//!
//! Packages: coreutils, ewf-tools, qemu-utils, e2fsprogs, dosfstools, mame-tools, libdsk-utils,
//! partclone, sleuthkit, isomd5sum, xorriso, pigz, xz-utils, zstd, bzip2.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::disks::{MIB, Scratch, disk};
use crate::program::{Said, Untouched, imgfs, ok, run, said, testimage};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn demo(scratch: &Scratch) -> PathBuf {
    testimage("demo.img", &scratch.path(""))
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn hash_says_what_the_tools_of_coreutils_say() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let _untouched = Untouched::new(&image);
    for name in ["md5", "sha1", "sha256", "sha512"] {
        let expected = scratch.sh("coreutils", &format!("{name}sum --tag {}", text(&image)));
        assert_eq!(ok(&["hash", "-a", name, text(&image)]), expected);
    }
    let all = ok(&["hash", "-a", "sha256,md5,blake3", "--parts", "--files", text(&image)]);
    assert!(lines(&all)[2].starts_with("BLAKE3 ("), "{all}");
    scratch.write("sums", all.as_bytes());
    // Names are those of the mount: cp puts the same ones into a folder.
    std::fs::create_dir(scratch.path("out")).unwrap();
    ok(&["cp", "-r", &format!("{}:/", text(&image)), text(&scratch.path("out"))]);
    for name in ["sha256", "md5"] {
        let checked = scratch.sh("coreutils", &format!("cd out; {name}sum -c --strict ../sums 2>&1 || true"));
        let good = checked.lines().filter(|line| line.ends_with(": OK")).count();
        assert!(good >= 11, "{checked}");
        assert!(!checked.contains("FAILED"), "{checked}");
    }
}

#[test]
fn hash_of_a_container_is_of_the_file_and_of_the_disk() {
    let scratch = Scratch::new();
    let bytes = disk(3 * MIB + 512);
    let raw = scratch.write("d.raw", &bytes);
    scratch.sh("qemu-utils", "qemu-img convert -O qcow2 -c d.raw d.qcow2");
    let image = scratch.path("d.qcow2");
    let expected = scratch.sh("coreutils", "sha256sum d.raw d.qcow2");
    let digest = |at: usize| expected.lines().nth(at).unwrap()[..64].to_owned();
    let found = ok(&["hash", text(&image)]);
    assert_eq!(
        lines(&found),
        [format!("SHA256 ({}) = {}", text(&image), digest(1)), format!("SHA256 (disk.img) = {}", digest(0))]
    );
    let value: Value = serde_json::from_str(&ok(&["hash", "--json", "-a", "sha1,sha256", text(&image)])).unwrap();
    assert_eq!((&value["shape"], &value["version"]), (&"imgfs-hash".into(), &1.into()));
    assert_eq!(value["digests"][1]["of"], "disk");
    assert_eq!(value["digests"][1]["sha256"], digest(0).as_str());
    assert_eq!(value["digests"][1]["size"], std::fs::metadata(raw).unwrap().len());
    let refused = run(&["hash", "-a", "sha3", text(&image)]);
    assert!(refused.code == Some(2) && refused.err.contains("blake3"), "{}", refused.err);
}

/// Verifies an image, which must come out as this.
fn verified(image: &Path, code: i32) -> Said {
    let said = run(&["verify", text(image)]);
    assert_eq!(said.code, Some(code), "{}: {}{}", image.display(), said.out, said.err);
    said
}

/// One byte of a file, turned.
fn flip(image: &Path, at: usize) {
    let mut bytes = std::fs::read(image).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(image, bytes).unwrap();
}

/// Verifies an image as it is, then with one byte turned at each of these places.
fn flipped(image: &Path, what: &str, places: &[usize]) {
    let sound = verified(image, 0);
    assert!(sound.out.contains(what), "no {what}: {}", sound.out);
    for &at in places {
        flip(image, at);
        let said = verified(image, 1);
        assert!(said.out.contains("FAILED"), "{}", said.out);
        flip(image, at);
    }
    verified(image, 0);
}

#[test]
fn verify_compares_with_lists_of_digests_beside_the_image() {
    let scratch = Scratch::new();
    let image = scratch.write("a disk.img", &disk(MIB));
    let said = verified(&image, 2);
    assert!(said.err.contains("nothing to verify against"), "{}", said.err);
    for (name, make) in [
        ("a disk.img.sha256", "sha256sum 'a disk.img'"),
        ("a disk.img.sha1", "sha1sum < 'a disk.img' | cut -c -40"),
        ("a disk.img.md5", "md5sum -b 'a disk.img'"),
        ("SHA256SUMS", "sha256sum --tag *.img; echo"),
        ("SHA512SUMS.txt", "sha512sum ./*"),
        ("MD5SUMS", "md5sum *"),
        ("a disk.md5", "md5sum *.img"),
    ] {
        scratch.sh("coreutils", &format!("{{ {make}; }} > ../list.$$; mv ../list.$$ '{name}'"));
        flipped(&image, name, &[0, 1 << 19]);
        std::fs::remove_file(scratch.path(name)).unwrap();
    }
    // Written on Windows.
    scratch.sh("coreutils", "{ printf '\\357\\273\\277'; sha256sum 'a disk.img'; } > 'a disk.img.sha256'");
    flipped(&image, "a disk.img.sha256", &[1 << 19]);
    std::fs::remove_file(scratch.path("a disk.img.sha256")).unwrap();
    // A digest that is none any more is no reason to be silent.
    for damage in ["cut -c 2-", "sed 's/^./x/'"] {
        scratch.sh("coreutils", &format!("sha256sum 'a disk.img' | {damage} > SHA256SUMS"));
        let said = verified(&image, 2);
        assert!(said.out.contains("the row about it has no whole digest"), "{}", said.out);
    }
    // About other files, and nothing at all.
    scratch.write("SHA256SUMS", b"0000000000000000000000000000000000000000000000000000000000000000  other.img\n");
    verified(&image, 2);
    scratch.write("a disk.img.sha256", b"to be done\n");
    let said = verified(&image, 2);
    assert!(said.out.contains("not read") && said.out.contains("there is no digest in it"), "{}", said.out);
    verified(&scratch.path("missing.img"), 2);
}

#[test]
fn verify_reads_the_lists_that_sha256sum_and_openssl_write_about_any_path() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("v")).unwrap();
    let image = scratch.write("v/d.img", &disk(MIB));
    for (list, make) in [
        ("SHA256SUMS", "sha256sum \"$PWD/d.img\""),
        ("SHA256SUMS", "sha256sum ../v/d.img"),
        ("SHA256SUMS", "sha256sum d.img | sed 's/^/  /'"),
        ("SHA256SUMS", "openssl sha256 d.img"),
        ("d.img.sha256", "openssl sha256 d.img"),
        ("d.img.sha256", "openssl sha256 d.img | sed 's/SHA2-256(/SHA256 (/'"),
        ("SHA256SUMS", "openssl sha256 d.img | sed 's/SHA2-/SHA/'"),
    ] {
        scratch.sh("coreutils openssl", &format!("cd v; {{ {make}; }} > ../list; mv ../list {list}"));
        flipped(&image, list, &[1000]);
        std::fs::remove_file(scratch.path(&format!("v/{list}"))).unwrap();
    }
    scratch.sh("coreutils", "cd v; echo x > other; sha256sum other > SHA256SUMS");
    let said = verified(&image, 2);
    assert!(said.err.contains("SHA256SUMS does not name it"), "{}", said.err);
    scratch.sh("coreutils", "cd v; md5sum other > MD5SUMS");
    assert!(verified(&image, 2).err.contains("MD5SUMS and 1 more lists do not name it"));
}

#[test]
fn the_head_of_a_manifest_in_json_steers_no_terminal() {
    let scratch = Scratch::new();
    let image = scratch.path("a\u{9b}\u{202e}b.img");
    std::fs::rename(demo(&scratch), &image).unwrap();
    let out = ok(&["manifest", "--json", text(&image)]);
    assert!(!out.contains('\u{9b}') && !out.contains('\u{202e}'), "{out}");
    let value: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(value["image"], text(&image));
}

#[test]
fn verify_compares_every_file_of_a_set_with_the_lists() {
    let scratch = Scratch::new();
    scratch.write("d.raw", &disk(4 * MIB));
    scratch.sh("ewf-tools", "mkdir e01; ewfacquire -u -q -f encase6 -c none -S 1048576 -t e01/e d.raw > /dev/null");
    scratch.sh("coreutils", "mkdir split; split -b 1M -d -a 3 --numeric-suffixes=1 d.raw split/d.");
    let make = "mkdir vmdk; qemu-img convert -O vmdk -o subformat=monolithicFlat d.raw vmdk/d.vmdk";
    scratch.sh("qemu-utils", make);
    let make = "mkdir chain; cp d.raw chain/; cd chain; qemu-img create -q -f qcow2 -b d.raw -F raw d.qcow2";
    scratch.sh("qemu-utils", make);
    // The name of the image, and of another piece, where one byte of contents lies.
    for (folder, image, piece, count) in [
        ("e01", "e.E01", "e.E03", 5),
        ("split", "d.001", "d.004", 4),
        ("vmdk", "d.vmdk", "d-flat.vmdk", 2),
        ("chain", "d.qcow2", "d.raw", 2),
    ] {
        scratch.sh("coreutils", &format!("cd {folder}; sha256sum * > ../list; mv ../list SHA256SUMS"));
        let path = scratch.path(&format!("{folder}/{image}"));
        let listed = |out: &str| out.lines().filter(|line| line.starts_with("ok        SHA256SUMS: ")).count();
        let said = verified(&path, 0);
        assert_eq!(listed(&said.out), count, "{}", said.out);
        assert!(said.out.contains(&format!("SHA256SUMS: SHA256 of {piece}\n")), "{}", said.out);
        // Named otherwise, it is the same file: nothing is compared twice.
        let plain = said_in(&scratch.path(folder), &["verify", image]);
        assert_eq!((plain.code, listed(&plain.out)), (Some(0), count), "{}", plain.out);
        let damaged = scratch.path(&format!("{folder}/{piece}"));
        flip(&damaged, 100_000);
        let said = verified(&path, 1);
        let failed = format!("FAILED    SHA256SUMS: SHA256 of {piece}: it is ");
        assert!(said.out.contains(&failed) && listed(&said.out) == count - 1, "{}", said.out);
        flip(&damaged, 100_000);
    }
    // The extents of a bag.
    scratch
        .sh("coreutils", "mkdir -p bag/data; mv vmdk/d*.vmdk bag/data; cd bag; sha256sum data/* > manifest-sha256.txt");
    scratch.write("bag/bagit.txt", b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n");
    let said = verified(&scratch.path("bag/data/d.vmdk"), 0);
    assert!(said.out.contains("ok        manifest-sha256.txt: SHA256 of d-flat.vmdk\n"), "{}", said.out);
}

/// What a run in a folder says.
fn said_in(folder: &Path, args: &[&str]) -> Said {
    said(imgfs().current_dir(folder).args(args).output().unwrap())
}

#[test]
fn verify_compares_with_the_manifest_of_a_bag() {
    let scratch = Scratch::new();
    scratch.sh("coreutils", "mkdir -p bag/data/disks");
    let image = scratch.write("bag/data/disks/50%.img", &disk(MIB));
    let bagit = "BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n";
    scratch.write("bag/bagit.txt", bagit.as_bytes());
    let make = "cd bag; sha256sum data/disks/* | sed 's/50%/50%25/' > manifest-sha256.txt";
    scratch.sh("coreutils", make);
    flipped(&image, "manifest-sha256.txt", &[77]);
}

#[test]
fn verify_compares_what_containers_keep_of_themselves() {
    let scratch = Scratch::new();
    let bytes = disk(2 * MIB);
    scratch.write("d.raw", &bytes);
    scratch.sh("ewf-tools", "ewfacquire -u -q -d sha1 -f encase6 -c fast -t e d.raw > /dev/null");
    let said = verified(&scratch.path("e.E01"), 0);
    for what in ["chunk checksums", "stored MD5", "stored SHA-1", "section checksums"] {
        assert!(said.out.contains(what), "{}", said.out);
    }
    let len = |name: &str| std::fs::metadata(scratch.path(name)).unwrap().len() as usize;
    flipped(&scratch.path("e.E01"), "stored MD5", &[len("e.E01") / 2]);
    scratch.sh("qemu-utils", "qemu-img convert -O vpc d.raw d.vhd; qemu-img convert -O vhdx d.raw d.vhdx");
    flipped(&scratch.path("d.vhd"), "footer checksum", &[40, len("d.vhd") - 460]);
    flipped(&scratch.path("d.vhdx"), "header checksum", &[(64 << 10) + 100, (192 << 10) + 20]);
    scratch.sh("qemu-utils", "qemu-img convert -O qcow2 d.raw d.qcow2");
    let image = std::fs::read(scratch.path("d.qcow2")).unwrap();
    let l1 = u64::from_be_bytes(image[40..48].try_into().unwrap()) as usize;
    let l2 = u64::from_be_bytes(image[l1..l1 + 8].try_into().unwrap()) as usize & 0x00ff_ffff_ffff_fe00;
    // The highest bits of an offset, the cluster, the refcount table.
    let refcounts = u64::from_be_bytes(image[48..56].try_into().unwrap()) as usize;
    let stored = (0..512).step_by(8).find(|at| image[l2 + at..l2 + at + 8] != [0; 8]).unwrap();
    flipped(&scratch.path("d.qcow2"), "reference counts", &[l2 + stored + 3, l2 + stored + 5, refcounts + 5]);
}

#[test]
fn reference_counts_are_judged_as_qemu_judges_them() {
    let scratch = Scratch::new();
    scratch.write("d.raw", &disk(2 * MIB));
    let make = "qemu-img convert -O qcow2 -o cluster_size=4k,refcount_bits=16 d.raw plain.qcow2
        qemu-img convert -c -O qcow2 -o cluster_size=4k d.raw packed.qcow2
        for name in plain packed; do
            cp $name.qcow2 $name-snapshots.qcow2; image=$name-snapshots.qcow2
            qemu-img snapshot -c one $image
            qemu-io -c 'write -P 7 64k 40k' -c 'write -z 512k 64k' $image > /dev/null
            qemu-img snapshot -c two $image
            qemu-io -c 'write -P 8 96k 8k' -c 'discard 1M 64k' $image > /dev/null
        done
        qemu-img convert -O qcow2 -o cluster_size=64k,extended_l2=on d.raw sub.qcow2
        qemu-img snapshot -c one sub.qcow2; qemu-io -c 'write -P 7 8k 2k' sub.qcow2 > /dev/null
        qemu-img create -q -f qcow2 -b d.raw -F raw small.qcow2; qemu-io -c 'write 1M 4k' small.qcow2 > /dev/null";
    scratch.sh("qemu-utils", make);
    let mut verdicts = BTreeMap::new();
    for name in ["plain", "packed", "plain-snapshots", "packed-snapshots", "sub", "small"] {
        let image = scratch.path(&format!("{name}.qcow2"));
        verified(&image, 0);
        let bytes = std::fs::read(&image).unwrap();
        let be64 = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize & !0x1ff;
        let cluster = 1usize << bytes[23];
        let mut places = Vec::new();
        let table = be64(48);
        for block in (table..table + cluster).step_by(8).map(be64).filter(|block| *block > 0) {
            // Some of them, and all of the first ones, which count tables.
            let used = (block..block + cluster).step_by(2).filter(|at| bytes[*at..*at + 2] != [0, 0]);
            places.extend(used.enumerate().filter(|(n, _)| *n < 12 || n % 61 == 0).map(|(_, at)| (at + 1, [-1, 1])));
        }
        // Entries of tables: of the disk, and of a snapshot, whose own table comes first in the list.
        let (l1, snapshots) = (be64(40), be64(64));
        let tables = [Some(l1), (snapshots > 0).then(|| be64(snapshots))];
        for l1 in tables.into_iter().flatten() {
            let l2 = (l1..).step_by(8).map(be64).find(|at| *at > 0).unwrap() & 0x00ff_ffff_ffff_ffff;
            places.extend([(l1, [-128, 0]), (l2, [-128, 0])]);
            places.extend((0..600).step_by(128).map(|at| (l2 + at + 5, [16, 32])));
        }
        for (at, changes) in places {
            for change in changes.into_iter().filter(|change| *change != 0) {
                let mut damaged = bytes.clone();
                damaged[at] = damaged[at].wrapping_add_signed(change);
                let copy = scratch.write("copy.qcow2", &damaged);
                let theirs =
                    scratch.sh("qemu-utils", "code=0; qemu-img check -q copy.qcow2 > said 2>&1 || code=$?; echo $code");
                let said = run(&["verify", text(&copy)]);
                // 2: errors; 3: leaks alone.
                let expected = Some(i32::from(theirs.trim() == "2"));
                let why = std::fs::read_to_string(scratch.path("said")).unwrap();
                assert_eq!(
                    said.code, expected,
                    "{name}, byte {at} {change:+}: {theirs} {why} {}{}",
                    said.out, said.err
                );
                *verdicts.entry(theirs).or_insert(0) += 1;
            }
        }
    }
    assert!(verdicts.len() == 3 && verdicts.values().all(|count| *count > 10), "{verdicts:?}");
}

#[test]
fn verify_compares_the_checksums_of_compressed_images() {
    let scratch = Scratch::new();
    scratch.write("d.raw", &disk(2 * MIB));
    let make = "gzip -k d.raw; xz -k -T2 --block-size=256KiB d.raw; zstd -q -k d.raw -o d.zst; bzip2 -k d.raw";
    scratch.sh("gzip xz-utils zstd bzip2", make);
    let cache = scratch.path("cache");
    for name in ["d.raw.gz", "d.raw.xz", "d.zst", "d.raw.bz2"] {
        let image = scratch.path(name);
        let verify = || said(imgfs().env("XDG_CACHE_HOME", &cache).args(["verify", text(&image)]).output().unwrap());
        let sound = verify();
        assert_eq!(sound.code, Some(0), "{name}: {}{}", sound.out, sound.err);
        assert!(sound.out.contains("checksums of the compressed data"), "{}", sound.out);
        let half = std::fs::metadata(&image).unwrap().len() as usize / 2;
        flip(&image, half);
        let said = verify();
        assert_eq!(said.code, Some(1), "{name}: {}{}", said.out, said.err);
        flip(&image, half);
    }
}

#[test]
fn verify_compares_the_checksums_of_copies_and_floppies() {
    let scratch = Scratch::new();
    scratch.sh("coreutils", "mkdir tree; seq 1 300000 > tree/numbers");
    scratch.sh("e2fsprogs", "mke2fs -q -F -t ext4 -d tree fs.img 8M");
    scratch.sh("partclone", "partclone.ext4 -c -q -s fs.img -o fs.pc -L log 2> /dev/null");
    let middle = std::fs::metadata(scratch.path("fs.pc")).unwrap().len() as usize * 3 / 4;
    flipped(&scratch.path("fs.pc"), "block checksums", &[middle]);
    let mut floppy = disk(1_474_560);
    floppy[..512].fill(0xf6);
    scratch.write("floppy.raw", &floppy);
    scratch.sh("libdsk-utils", "dsktrans -itype raw -otype copyqm -format ibm1440 floppy.raw floppy.cqm > /dev/null");
    flipped(&scratch.path("floppy.cqm"), "checksum of the disk", &[200_000]);
    scratch.sh("mame-tools", "chdman createhd -i floppy.raw -o d.chd -hs 4096 -f > /dev/null");
    let middle = std::fs::metadata(scratch.path("d.chd")).unwrap().len() as usize / 2;
    flipped(&scratch.path("d.chd"), "SHA-1 of the data", &[middle]);
    assert!(verified(&scratch.path("d.chd"), 0).out.contains("SHA-1 of the metadata"));
}

#[test]
fn verify_compares_what_hdiutil_and_others_left_in_the_corpus() {
    let Some(corpus) = std::env::var_os("IMGFS_CORPUS") else {
        eprintln!("IMGFS_CORPUS is not set: nothing of the corpus is verified");
        return;
    };
    let scratch = Scratch::new();
    // Most of the last one is its property list.
    for (name, what, at) in [
        ("crates/dmgwiz/input_adc.dmg", "partition checksum", 2000),
        ("crates/dmgwiz/input_bzip2.dmg", "partition checksum", 2000),
        ("crates/dmgwiz/input_lzfse.dmg", "master checksum", 2000),
        ("crates/dmgwiz/input_zlib.dmg", "partition checksum", 2000),
        ("qemu/simple-dmg.dmg", "master checksum", 0),
    ] {
        let copy = scratch.path(Path::new(name).file_name().unwrap().to_str().unwrap());
        std::fs::copy(Path::new(&corpus).join(name), &copy).unwrap();
        let said = run(&["verify", text(&copy)]);
        let checksums = said.out.lines().filter(|line| line.contains("checksum"));
        assert!(
            said.out.contains(what) && checksums.clone().all(|line| line.starts_with("ok")),
            "{name}: {}",
            said.out
        );
        flip(&copy, at);
        verified(&copy, 1);
    }
    // From which byte on its chunks lie: after the headers.
    let copy = scratch.path("ext2.E01");
    std::fs::copy(Path::new(&corpus).join("dfvfs/ext2.E01"), &copy).unwrap();
    let said = run(&["verify", text(&copy)]);
    assert!(said.out.lines().any(|line| line.starts_with("ok") && line.contains("stored MD5")), "{}", said.out);
}

#[test]
fn verify_compares_both_copies_of_a_gpt() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let size = std::fs::metadata(&image).unwrap().len() as usize;
    let said = run(&["verify", text(&image)]);
    for what in ["primary header CRC", "primary entry array CRC", "backup header CRC", "backup entry array CRC"] {
        assert!(said.out.lines().any(|line| line.starts_with("ok") && line.contains(what)), "{}", said.out);
    }
    flipped(&image, "backup header CRC", &[512 + 60, 1024 + 40, size - 512 + 20, size - 33 * 512 + 10]);
}

#[test]
fn verify_compares_the_checksums_of_ext_and_the_copies_of_fat() {
    let scratch = Scratch::new();
    scratch.sh("coreutils", "mkdir -p tree/sub; seq 1 100000 > tree/numbers; touch tree/sub/{1..300}");
    scratch.sh("e2fsprogs attr", "mke2fs -q -F -t ext4 -O metadata_csum -d tree fs.img 16M");
    let image = scratch.path("fs.img");
    let stat = |what: &str| {
        let listing = scratch.sh("e2fsprogs", &format!("debugfs -R '{what}' fs.img 2> /dev/null"));
        listing.split_whitespace().next().unwrap().trim_matches(|c: char| !c.is_ascii_digit()).parse::<usize>().unwrap()
    };
    let block = 1024usize << std::fs::read(&image).unwrap()[1024 + 0x18];
    let row = |what: &str| {
        let listing = scratch
            .sh("e2fsprogs", &format!("dumpe2fs fs.img 2> /dev/null | grep -m 1 -A 12 'Group 0:' | grep '{what}'"));
        let at = listing.split(" at ").nth(1).unwrap_or(&listing);
        at.trim().split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<usize>().unwrap() * block
    };
    let directory = stat("blocks /sub") * block;
    let places = [
        1024 + 0x30,
        row("Block bitmap") + 5,
        row("Inode bitmap") + 1,
        row("Inode table") + 256 + 20,
        directory + block - 4,
    ];
    flipped(&image, "inode, extent, directory and attribute checksums", &places);
    // A group descriptor: in the block behind the superblock's.
    let descriptors = if block == 1024 { 2048 } else { block };
    flip(&image, descriptors + 0x0c);
    verified(&image, 1);
    for (name, args, second) in
        [("f12.img", "-F 12 -C {} 1440", 512 * 10 + 30), ("f32.img", "-F 32 -s 1 -C {} 40000", 6 * 512 + 0x47)]
    {
        scratch.sh("dosfstools", &format!("mkfs.fat {} > /dev/null", args.replace("{}", name)));
        let what = if name == "f32.img" { "copy of the boot sector agrees" } else { "copies of the table agree" };
        flipped(&scratch.path(name), what, &[second]);
    }
    // Nothing in an old ext2 carries a checksum.
    scratch.sh("e2fsprogs", "mke2fs -q -F -t ext2 -O none,filetype old.img 1M");
    verified(&scratch.path("old.img"), 2);
}

#[test]
fn verify_compares_the_digest_that_is_implanted_in_a_disc() {
    let scratch = Scratch::new();
    scratch.sh("coreutils", "mkdir tree; seq 1 200000 > tree/numbers");
    scratch.sh("xorriso", "xorriso -as mkisofs -quiet -r -o disc.iso tree 2> /dev/null");
    let image = scratch.path("disc.iso");
    verified(&image, 2);
    scratch.sh("isomd5sum", "implantisomd5 disc.iso > /dev/null; checkisomd5 disc.iso > /dev/null");
    flipped(&image, "implanted MD5 of the disc", &[300_000, 32_768 + 45]);
}

#[test]
fn verify_says_all_of_it_in_json_as_well() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    scratch.sh("coreutils", "sha256sum demo.img > SHA256SUMS");
    let value: Value = serde_json::from_str(&ok(&["verify", "--json", text(&image)])).unwrap();
    assert_eq!((&value["shape"], &value["result"]), (&"imgfs-verify".into(), &"verified".into()));
    flip(&image, 600);
    let said = run(&["verify", "--json", text(&image)]);
    let value: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((said.code, &value["result"]), (Some(1), &"mismatch".into()));
    let checks = value["checks"].as_array().unwrap();
    assert_eq!((&checks[0]["where"], &checks[0]["result"]), (&"SHA256SUMS".into(), &"mismatch".into()));
    assert!(checks[0]["faults"][0].as_str().unwrap().contains("it is "), "{value}");
}

/// A file of a DFXML: the elements that have text, by name; hashes by kind.
fn file_objects(xml: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for volume in xml.split("<volume ").skip(1) {
        let offset = volume.split('\'').nth(1).unwrap();
        for object in volume.split("<fileobject>").skip(1) {
            let object = object.split("</fileobject>").next().unwrap();
            let mut members = BTreeMap::new();
            for element in object.split('<').filter(|element| !element.starts_with('/')) {
                let Some((head, value)) = element.split_once('>') else { continue };
                let name = head.split(' ').next().unwrap();
                let name = head.split('\'').nth(1).filter(|_| name == "hashdigest").unwrap_or(name);
                if name == "byte_run" {
                    let runs: &mut String = members.entry("runs".to_owned()).or_default();
                    runs.push_str(head);
                } else {
                    // The parent's number comes first; the last one counts.
                    members.insert(name.to_owned(), value.trim().to_owned());
                }
            }
            let name = members["filename"].clone();
            found.insert(format!("{offset} {name}"), members);
        }
    }
    found
}

#[test]
fn dfxml_says_what_fiwalk_says() {
    let scratch = Scratch::new();
    let mut compared = 0;
    for name in ["demo", "filesystem/ext/ext4", "filesystem/ext/ext2", "filesystem/fat/fat16", "filesystem/exfat/plain"]
    {
        let name = &format!("{name}.img");
        if !["", ".zst"].iter().any(|end| crate::program::project().join(format!("testimages/{name}{end}")).exists()) {
            continue;
        }
        let image = testimage(name, &scratch.path(""));
        let _untouched = Untouched::new(&image);
        let ours = ok(&["manifest", "--format", "dfxml", text(&image)]);
        scratch.sh("sleuthkit", &format!("rm -f fiwalk.xml; TZ=UTC fiwalk -X fiwalk.xml {} > /dev/null", text(&image)));
        let theirs = file_objects(&std::fs::read_to_string(scratch.path("fiwalk.xml")).unwrap());
        let found = file_objects(&ours);
        for (path, object) in &found {
            let Some(other) = theirs.get(path) else { panic!("{name}: fiwalk has no {path}") };
            let fat = other.get("mtime").is_some_and(|time| !time.ends_with('Z'));
            let mut members = vec!["filesize", "name_type", "meta_type", "alloc"];
            if !fat {
                members.extend(["inode", "mode", "uid", "gid"]);
            }
            if object["name_type"] == "r" && object["filesize"] != "0" {
                members.extend(["md5", "sha1", "runs"]);
            }
            for member in members {
                // Inline data are nowhere, which fiwalk calls byte 0.
                let nowhere = " fs_offset='0' img_offset='0'";
                let expected = other.get(member).map(|value| match value.contains("resident") {
                    true => value.replace(nowhere, ""),
                    false => value.clone(),
                });
                assert_eq!(object.get(member), expected.as_ref(), "{name}: {member} of {path}");
            }
            // Theirs are whole seconds; of exFAT without the field that has the second in between.
            let digits = if name.contains("exfat") { 17 } else { 19 };
            let seconds = |object: &BTreeMap<String, String>| object.get("mtime").map(|time| time[..digits].to_owned());
            assert_eq!(seconds(object), seconds(other), "{name}: mtime of {path}");
            compared += 1;
        }
        let own = |path: &&String| {
            let name = path.split_once(' ').unwrap().1;
            let last = name.rsplit('/').next().unwrap();
            !name.starts_with('$') && !matches!(last, "." | "..") && !name.contains("(Volume Label Entry)")
        };
        let missing: Vec<_> = theirs
            .iter()
            .filter(|(path, object)| own(path) && object.get("unalloc").is_none() && !found.contains_key(*path))
            .map(|(path, _)| path)
            .collect();
        assert!(missing.is_empty(), "{name}: {missing:?}");
    }
    assert!(compared > 40, "{compared}");
}

/// The elements of DFXML that say nothing of the run: neither when nor with which words.
fn volumes(xml: &str) -> String {
    xml.split_once("</source>").unwrap().1.to_owned()
}

#[test]
fn dfxml_of_a_link_to_a_volume_is_that_of_the_volume() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let _untouched = Untouched::new(&image);
    scratch.write("dfxml.rng", include_bytes!("../dfxml.rng"));
    let bytes = std::fs::read(&image).unwrap();
    let xml = |path: &str| ok(&["manifest", "--format", "dfxml", &format!("{}:{path}", text(&image))]);
    let label = ok(&["ls", &format!("{}:/by-label", text(&image))]);
    let labels: Vec<String> = label.lines().map(|name| format!("/by-label/{name}")).collect();
    let link = |name: &String| volumes(&xml(name)) == volumes(&xml("/p2"));
    assert!(labels.iter().any(link), "{labels:?}");
    for below in ["", "/home", "/home/ada/notes.txt"] {
        let found = xml(&format!("/files{below}"));
        assert_eq!(volumes(&found), volumes(&xml(&format!("/p2{below}"))));
        scratch.write("out.xml", found.as_bytes());
        scratch.sh("libxml2-utils", "xmllint --noout --relaxng dfxml.rng out.xml 2> said || { head said >&2; false; }");
    }
    // The second partition of the image starts further up.
    let found = xml("/files/home/ada/notes.txt");
    let number = |name: &str| -> usize {
        let rest = found.split_once(&format!("{name}='")).unwrap().1;
        rest.split_once('\'').unwrap().0.parse().unwrap()
    };
    let at = number("img_offset");
    assert!(at > number("fs_offset"), "{found}");
    assert!(bytes[at..].starts_with(b"The Analytical Engine weaves"), "{found}");
    let bodies = ["/files/home", "/p2/home"]
        .map(|path| ok(&["manifest", "--format", "bodyfile", &format!("{}:{path}", text(&image))]));
    assert_eq!(bodies[0], bodies[1]);
}

#[test]
fn dfxml_is_well_formed_whatever_the_names_are() {
    let scratch = Scratch::new();
    scratch.sh("coreutils", "mkdir tree; touch 'tree/a<b>&\"c' $'tree/bad\\xff\\x01name' tree/ümlaut 'tree/--'");
    scratch.sh("e2fsprogs", "mke2fs -q -F -t ext4 -d tree fs.img 1M");
    let xml = ok(&["manifest", "--format", "dfxml", text(&scratch.path("fs.img"))]);
    scratch.write("out.xml", xml.as_bytes());
    let read = "import xml.etree.ElementTree as E; \
        print([e.text for e in E.parse('out.xml').iter() if e.tag.endswith('}filename')])";
    let names = scratch.sh("python3", &format!("python3 -c \"{read}\""));
    for name in ["'a<b>&\"c'", "'bad\\\\xff\\\\u{1}name'", "'ümlaut'", "'--'"] {
        assert!(names.contains(name), "{name}: {names}");
    }
}

#[test]
fn dfxml_is_valid_for_every_file_system_and_every_kind_of_file() {
    let scratch = Scratch::new();
    scratch.write("dfxml.rng", include_bytes!("../dfxml.rng"));
    let tree = "mkdir -p tree/sub; cd tree; seq 1 100000 > numbers; truncate -s 3M hole; seq 1 9 >> hole; touch empty; \
        ln -s sub link; ln numbers hard; mkfifo pipe; mknod char c 1 3; mknod block b 7 0; \
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'; \
        touch 'a<b>&\"c' $'bad\\xff\\x01\\nname' ümlaut ' -- ' $'\\xef\\xbf\\xbf' sub/{1..50}; \
        touch -d '0001-01-01' old; touch -d '2200-01-01' new; touch -d '1905-01-01' early";
    scratch.sh("coreutils python3", tree);
    scratch.sh("e2fsprogs", "mke2fs -q -F -t ext4 -I 256 -O inline_data -d tree ext4.img 8M");
    scratch.sh("e2fsprogs", "mke2fs -q -F -t ext2 -b 1024 -d tree ext2.img 8M");
    scratch.sh("xorriso", "xorriso -as mkisofs -quiet -J -r -o rock.iso tree 2> /dev/null");
    scratch.sh("genisoimage", "genisoimage -quiet -o plain.iso tree/sub 2> /dev/null");
    let fat = "mkfs.fat -C -F 16 fat.img 20000 > /dev/null; mcopy -s -i fat.img tree/numbers tree/sub tree/ümlaut ::";
    scratch.sh("dosfstools mtools", fat);
    // A file that cannot be read: its contents lead out of the disk.
    scratch.sh("coreutils", "cp fat.img damaged.img; truncate -s 300000 damaged.img");
    testimage("demo.img", &scratch.path(""));
    scratch.write("empty.raw", &[0; 4096]);
    for name in ["ext4.img", "ext2.img", "rock.iso", "plain.iso", "fat.img", "damaged.img", "demo.img", "empty.raw"] {
        let said = run(&["manifest", "--format", "dfxml", "-a", "md5,sha1,sha256", text(&scratch.path(name))]);
        assert_eq!(said.code, Some(i32::from(name == "damaged.img")), "{name}: {}", said.err);
        scratch.write("out.xml", said.out.as_bytes());
        scratch.sh("libxml2-utils", "xmllint --noout --relaxng dfxml.rng out.xml 2> said || { head said >&2; false; }");
        let objects = said.out.matches("<fileobject>").count();
        assert!(objects >= 3 || name == "empty.raw", "{name}: {objects} objects");
    }
}

#[test]
fn body_files_are_those_of_fls_and_mactime_reads_them() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let ours = ok(&["manifest", "--format", "bodyfile", &format!("{}:/p2", text(&image))]);
    let theirs = scratch.sh("sleuthkit", "fls -r -m / -o 640 demo.img | grep -v OrphanFiles");
    // fls has no MD5, knows no creation of ext with small inodes, and names the volume's root `/`.
    let row = |line: &str, prefix: &str| {
        let fields: Vec<&str> = line.split('|').collect();
        let name = fields[1].strip_prefix(prefix).unwrap().to_owned();
        (name, fields[2..10].iter().map(|field| (*field).to_owned()).collect::<Vec<_>>())
    };
    let found: BTreeMap<_, _> = ours.lines().map(|line| row(line, "/p2")).collect();
    let expected: BTreeMap<_, _> = theirs.lines().map(|line| row(line, "")).collect();
    assert_eq!(found, expected);
    let digest = scratch.sh("coreutils", "printf 'demo\\n' | md5sum")[..32].to_owned();
    assert!(ours.lines().any(|line| line.starts_with(&format!("{digest}|/p2/etc/hostname|"))), "{ours}");
    scratch.write("ours", ours.as_bytes());
    scratch.sh("sleuthkit", "fls -r -m /p2/ -o 640 demo.img | grep -v OrphanFiles > theirs");
    let timeline = |name: &str| {
        let text = scratch.sh("sleuthkit", &format!("mactime -y -z UTC -b {name} | sort"));
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    assert_eq!(timeline("ours"), timeline("theirs"));
    assert!(timeline("ours").iter().any(|line| line.contains("/p2/etc/hostname")));
}

#[test]
fn mactime_reads_every_name_of_a_body_file_as_it_is() {
    let scratch = Scratch::new();
    scratch.sh(
        "e2fsprogs",
        "mkdir t; touch t/a%41b t/%0Aend 't/pi|pe' t/100% 't/50 %zz'; mke2fs -q -t ext4 -d t e.img 2M",
    );
    let ours = ok(&["manifest", "--format", "bodyfile", &format!("{}:/disk", text(&scratch.path("e.img")))]);
    scratch.write("ours", ours.as_bytes());
    let read = scratch.sh("sleuthkit", "mactime -y -z UTC -b ours 2>&1");
    for name in ["a%41b", "%0Aend", "pi|pe", "100%", "50 %zz"] {
        assert!(read.lines().any(|line| line.ends_with(&format!(" /disk/{name}"))), "{name}: {read}");
    }
    assert!(!read.contains("uninitialized"), "{read}");
}

#[test]
fn a_bag_of_what_was_copied_is_whole() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    std::fs::create_dir_all(scratch.path("bag/data")).unwrap();
    let target = format!("{}:/p2/home", text(&image));
    ok(&["cp", "-a", &target, text(&scratch.path("bag/data"))]);
    let manifest = ok(&["manifest", "--format", "bagit", &target]);
    scratch.write("bag/manifest-sha256.txt", manifest.as_bytes());
    let checked = scratch.sh("coreutils", "cd bag; sha256sum -c --strict manifest-sha256.txt");
    assert_eq!(checked.lines().count(), 3, "{checked}");
    let listed = scratch.sh("findutils", "cd bag; find data -type f | sort");
    let mut names: Vec<&str> = manifest.lines().map(|line| &line[66..]).collect();
    names.sort_unstable();
    assert_eq!(names, lines(&listed));
    // Links have no place in a bag, and that is said.
    let said = run(&["manifest", "--format", "bagit", "-a", "md5", &format!("{}:/p2", text(&image))]);
    assert!(said.code == Some(0) && said.err.contains("1 links and special files have no row"), "{}", said.err);
}

#[test]
fn manifests_have_the_digests_that_are_asked_for() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let target = format!("{}:/p2/etc", text(&image));
    let value: Value = serde_json::from_str(&ok(&["manifest", "--json", "-a", "md5,sha1,blake3", &target])).unwrap();
    assert_eq!((&value["shape"], &value["version"]), (&"imgfs-manifest".into(), &1.into()));
    let rows = value["nodes"].as_array().unwrap();
    let hostname = rows.iter().find(|row| row["path"] == "p2/etc/hostname").unwrap();
    let digest = scratch.sh("coreutils", "printf 'demo\\n' | sha1sum")[..40].to_owned();
    assert_eq!((&hostname["sha1"], &hostname["size"]), (&digest.into(), &5.into()));
    assert_eq!((&hostname["type"], &hostname["mode"]), (&"file".into(), &"0644".into()));
    assert_eq!(hostname["modified"], "2026-01-02T03:04:05.000000000Z");
    assert_eq!(rows[0]["type"], "dir");
    for (args, words) in [
        (vec!["--format", "bodyfile", "-a", "sha1"], "MD5"),
        (vec!["--format", "dfxml", "-a", "blake3"], "md5, sha1 and sha256"),
        (vec!["-a", "md5,sha1"], "one digest"),
    ] {
        let said = run(&[&["manifest"][..], &args, &[text(&image)]].concat());
        assert!(said.code == Some(1) && said.err.contains(words), "{}", said.err);
    }
}

#[test]
fn every_shape_of_json_has_its_version_and_its_page() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let floppy = scratch.path("floppy.img");
    ok(&["create", text(&floppy), "--size", "1440K"]);
    let overlay = format!("{}.overlay.qcow2", text(&floppy));
    ok(&["mkdir", &format!("{}:/disk/NEW", text(&floppy))]);
    let page = std::fs::read_to_string(crate::program::project().join("docs/json.md"))
        .unwrap_or_else(|_| std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.md")).unwrap());
    let inside = format!("{}:/p2", text(&image));
    for (args, shape) in [
        (vec!["info", "--json", text(&image)], "imgfs-info"),
        (vec!["ls", "--json", &inside], "imgfs-ls"),
        (vec!["ls", "-R", "--json", &inside], "imgfs-ls"),
        (vec!["tree", "--json", &inside], "imgfs-tree"),
        (vec!["manifest", "--json", &inside], "imgfs-manifest"),
        (vec!["hash", "--json", text(&image)], "imgfs-hash"),
        (vec!["verify", "--json", text(&image)], "imgfs-verify"),
        (vec!["diff", "--json", &overlay], "imgfs-diff"),
        (vec!["overlay", "info", "--json", &overlay], "imgfs-overlay"),
        (vec!["overlay", "check", "--json", &overlay], "imgfs-overlay-check"),
        (vec!["list", "--json"], "imgfs-list"),
    ] {
        let value: Value = serde_json::from_str(&ok(&args)).unwrap();
        assert_eq!((&value["shape"], &value["version"]), (&shape.into(), &1.into()), "{args:?}");
        assert!(page.contains(&format!("## `{shape}`")), "docs/json.md does not describe {shape}");
        // Each member of the object has its line.
        let section = page.split(&format!("## `{shape}`")).nth(1).unwrap().split("\n## ").next().unwrap();
        for name in value.as_object().unwrap().keys().filter(|name| !matches!(name.as_str(), "shape" | "version")) {
            assert!(section.contains(&format!("`{name}`")), "docs/json.md: {shape} has no line about {name}");
        }
    }
    let tree: Value = serde_json::from_str(&ok(&["tree", "--json", &inside])).unwrap();
    let home = tree["entries"].as_array().unwrap().iter().find(|entry| entry["name"] == "home").unwrap();
    assert_eq!(home["entries"][0]["entries"][1]["name"], "notes.txt");
}
