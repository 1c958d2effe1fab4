//! Floppies: what dsktrans and zip make of a raw disk is read back as that disk.

use imgfs::container::{self, Options};
use imgfs::error::Error;

use super::optical::{Dice, Folder, corpus, damage, decoded, open, options, read_disk, run};

/// Noise, runs, text and zeros, a sector each; the last one is not zeros.
fn disk(sectors: usize) -> Vec<u8> {
    let mut dice = Dice(9 + sectors as u64);
    let mut bytes: Vec<u8> = (0..sectors)
        .flat_map(|n| match n % 4 {
            0 => (0..512).map(|_| dice.roll(256) as u8).collect(),
            1 => vec![n as u8; 512],
            2 => format!("sector {n:05} ").repeat(40).as_bytes()[..512].to_vec(),
            _ => vec![0; 512],
        })
        .collect();
    bytes[sectors * 512 - 1] = 0xe5;
    bytes
}

fn dsktrans(folder: &Folder, format: &str, kind: &str) {
    let arguments = ["-itype", "raw", "-otype", kind, "-format", format, "disk.img", "disk.out"];
    run(folder, "dsktrans", "libdsk-utils", &arguments);
}

#[test]
fn what_dsktrans_writes_is_the_disk_again() {
    let folder = Folder::new("floppy");
    for (format, sectors) in [("ibm360", 720), ("ibm720", 1440), ("ibm1440", 2880)] {
        let bytes = disk(sectors);
        folder.write("disk.img", &bytes);
        for (kind, name) in [("imd", "imd"), ("tele", "td0"), ("dsk", "dsk"), ("edsk", "dsk"), ("copyqm", "cqm")] {
            dsktrans(&folder, format, kind);
            let opened = open(&folder.path("disk.out")).unwrap();
            assert_eq!(opened.format, name, "{format} {kind}");
            assert!(read_disk(&opened).unwrap() == bytes, "{format} {kind}");
            assert!(opened.notes.is_empty(), "{:?}", opened.notes);
        }
    }
}

#[test]
fn sides_that_go_on_counting_are_one_disk() {
    let folder = Folder::new("floppy");
    let bytes = disk(720);
    folder.write("disk.img", &bytes);
    let format = "[kaytest]\ndescription=x\nsides=extsurface\ncylinders=40\nheads=2\nsectors=9\nsecsize=512\n\
                  secbase=1\ndatarate=dd\nrwgap=42\nfmtgap=82\nfm=N\n";
    folder.write(".libdskrc", format.as_bytes());
    for (kind, name) in [("imd", "imd"), ("tele", "td0"), ("dsk", "dsk"), ("edsk", "dsk")] {
        let home = format!("HOME={}", folder.path("").display());
        let arguments =
            [&home, "dsktrans", "-itype", "raw", "-otype", kind, "-format", "kaytest", "disk.img", "disk.out"];
        run(&folder, "env", "libdsk-utils", &arguments);
        let opened = open(&folder.path("disk.out")).unwrap();
        assert_eq!(opened.format, name);
        assert!(read_disk(&opened).unwrap() == bytes, "{kind}");
        assert!(opened.notes.is_empty(), "{:?}", opened.notes);
    }
}

#[test]
fn a_copyqm_image_with_a_wrong_checksum_is_not_believed() {
    let folder = Folder::new("floppy");
    let bytes = disk(1440);
    folder.write("disk.img", &bytes);
    dsktrans(&folder, "ibm720", "copyqm");
    let mut image = std::fs::read(folder.path("disk.out")).unwrap();
    // The last byte of the last sector, behind the last runs.
    let at = image.len() - 1;
    image[at] ^= 1;
    let path = folder.write("bad.cqm", &image);
    let opened = container::open(&path, &options()).unwrap();
    assert!(opened.notes.iter().any(|note| note.contains("checksum")), "{:?}", opened.notes);
    assert!(matches!(read_disk(&opened), Err(Error::Io { .. })));
    let zeros = Options { bad_as_zeros: true, ..options() };
    let opened = container::open(&path, &zeros).unwrap();
    assert!(read_disk(&opened).unwrap().iter().all(|&byte| byte == 0));
    // Without a checksum there is nothing to doubt.
    let mut image = std::fs::read(folder.path("disk.out")).unwrap();
    image[0x84] = image[0x84].wrapping_add(image[0x5c..0x60].iter().fold(0, |sum: u8, &byte| sum.wrapping_add(byte)));
    image[0x5c..0x60].fill(0);
    assert!(read_disk(&open(&folder.write("none.cqm", &image)).unwrap()).unwrap() == bytes);
}

/// As the Magic Shadow Archiver packs. (floptool 0.251 is no oracle: it adds a sector to each track.)
fn msa(disk: &[u8]) -> Vec<u8> {
    let header: Vec<u8> = [0x0e0fu16, 9, 1, 0, 79].iter().flat_map(|field| field.to_be_bytes()).collect();
    let pack = |track: &[u8]| -> Vec<u8> {
        let mut packed = Vec::new();
        for run in track.chunk_by(|a, b| a == b) {
            if run.len() >= 4 || run[0] == 0xe5 {
                packed.extend([0xe5, run[0]]);
                packed.extend((run.len() as u16).to_be_bytes());
            } else {
                packed.extend(run);
            }
        }
        if packed.len() < track.len() { packed } else { track.to_vec() }
    };
    let tracks = disk.chunks(9 * 512).map(pack);
    let tracks = tracks.flat_map(|track| [&(track.len() as u16).to_be_bytes()[..], &track].concat());
    header.into_iter().chain(tracks).collect()
}

#[test]
fn packed_and_stored_tracks_of_an_msa_are_the_disk_again() {
    let folder = Folder::new("floppy");
    let mut bytes = disk(1440);
    // A track that does not become shorter.
    let mut dice = Dice(3);
    bytes[..9 * 512].fill_with(|| dice.roll(200) as u8);
    let opened = open(&folder.write("disk.msa", &msa(&bytes))).unwrap();
    assert_eq!(opened.format, "msa");
    assert!(read_disk(&opened).unwrap() == bytes);
}

#[test]
fn a_zip_with_one_image_is_that_image() {
    let folder = Folder::new("floppy");
    let bytes = disk(2880);
    folder.write("disk.ima", &bytes);
    run(&folder, "zip", "zip", &["-q", "disk.imz", "disk.ima"]);
    run(&folder, "zip", "zip", &["-q", "-0", "stored.zip", "disk.ima"]);
    assert!(decoded(&folder.path("disk.imz")) == bytes && decoded(&folder.path("stored.zip")) == bytes);
    folder.write("other.ima", &bytes);
    run(&folder, "zip", "zip", &["-q", "two.zip", "disk.ima", "other.ima"]);
    let error = container::open(&folder.path("two.zip"), &options()).err().unwrap();
    assert!(matches!(&error, Error::Unsupported { .. }) && error.to_string().contains("several"), "{error}");
    for method in ["BZIP2", "LZMA"] {
        let script = format!(
            "import zipfile; z = zipfile.ZipFile('m.zip', 'w', zipfile.ZIP_{method}); z.writestr('z.img', bytes(737280))"
        );
        run(&folder, "python3", "python3", &["-c", &script]);
        let error = container::open(&folder.path("m.zip"), &options()).err().unwrap().to_string();
        assert!(error.contains("packing method"), "{error}");
    }
    // Finder's file of attributes is none of the archive's.
    std::fs::create_dir(folder.path("__MACOSX")).unwrap();
    folder.write("__MACOSX/._disk.ima", b"attributes");
    run(&folder, "zip", "zip", &["-q", "mac.zip", "disk.ima", "__MACOSX/._disk.ima"]);
    assert!(decoded(&folder.path("mac.zip")) == bytes);
    // What is inside is probed like any file.
    folder.write("disk.img", &disk(720));
    dsktrans(&folder, "ibm360", "imd");
    run(&folder, "zip", "zip", &["-q", "packed.zip", "disk.out"]);
    assert!(decoded(&folder.path("packed.zip")) == disk(720));
    assert_eq!(open(&folder.path("packed.zip")).unwrap().format, "imd");
}

/// One cylinder of nine sectors in the order of an interleave, the fifth unreadable, the seventh with
/// a wrong checksum.
fn imd(order: &[u8]) -> Vec<u8> {
    let mut bytes = b"IMD 1.18: 01/01/2020 00:00:00\r\nmade by hand\x1a".to_vec();
    for head in [0, 0x80 | 0x40 | 1] {
        bytes.extend([5, 0, head, order.len() as u8, 2]);
        bytes.extend(order);
        if head != 0 {
            bytes.extend(vec![77; order.len() * 2]);
        }
        for id in order {
            match id {
                5 => bytes.push(0),
                7 => bytes.extend([&[5][..], &[7; 512]].concat()),
                id => bytes.extend([2, *id]),
            }
        }
    }
    bytes
}

#[test]
fn sectors_stand_by_number_and_an_unreadable_one_is_an_error_or_zeros() {
    let folder = Folder::new("floppy");
    let path = folder.write("disk.imd", &imd(&[1, 6, 2, 7, 3, 8, 4, 9, 5]));
    let opened = container::open(&path, &options()).unwrap();
    for id in 1..=9u8 {
        let mut sector = [0; 512];
        let result = opened.disk.read_exact_at(&mut sector, (u64::from(id) - 1) * 512);
        if id == 5 {
            assert!(matches!(&result, Err(Error::Io { .. })), "{result:?}");
        } else {
            assert!(result.is_ok() && sector == [id; 512]);
        }
    }
    assert!(opened.notes.iter().any(|note| note.starts_with("2 sectors had a wrong checksum")), "{:?}", opened.notes);
    let zeros = container::open(&path, &Options { bad_as_zeros: true, ..options() }).unwrap();
    let bytes = read_disk(&zeros).unwrap();
    assert!(bytes[4 * 512..5 * 512] == [0; 512] && bytes[5 * 512] == 6);
}

#[test]
fn a_2img_is_a_window_and_error_bytes_of_a_d64_are_taken_off() {
    let folder = Folder::new("floppy");
    let bytes = disk(280);
    let mut image = [b"2IMGTEST", &64u16.to_le_bytes()[..], &1u16.to_le_bytes()].concat();
    for field in [1u32, 0, 280, 64, 280 * 512, 0, 0, 0, 0] {
        image.extend(field.to_le_bytes());
    }
    image.resize(64, 0);
    image.extend(&bytes);
    assert!(decoded(&folder.write("disk.2mg", &image)) == bytes);
    let sectors: Vec<u8> = disk(342)[..683 * 256].to_vec();
    let mut image = sectors.clone();
    image.extend([1; 683]);
    assert!(decoded(&folder.write("disk.d64", &image)) == sectors);
    image[683 * 256 + 100] = 4;
    let opened = container::open(&folder.write("disk.d64", &image), &options()).unwrap();
    assert!(opened.disk.read_exact_at(&mut [0; 256], 100 * 256).is_err());
    opened.disk.read_exact_at(&mut [0; 256], 101 * 256).unwrap();
    // Bytes that no drive gives: this is no D64.
    image[683 * 256 + 100] = 99;
    assert_eq!(container::open(&folder.write("disk.d64", &image), &options()).unwrap().format, "raw");
}

#[test]
fn images_of_flux_are_refused_by_name() {
    let folder = Folder::new("floppy");
    for (magic, name) in [(&b"HXCPICFE"[..], "HFE"), (b"CAPS\0\0\0\x0c", "IPF"), (b"WOZ2\xff\n\r\n", "WOZ")] {
        let path = folder.write("disk", &[magic, &[0; 2000]].concat());
        let error = container::open(&path, &options()).err().unwrap();
        assert!(matches!(&error, Error::Unsupported { .. }) && error.to_string().contains(name), "{error}");
    }
}

#[test]
fn damaged_floppies_are_errors_and_nothing_worse() {
    let folder = Folder::new("floppy");
    folder.write("disk.img", &disk(720));
    for kind in ["imd", "tele", "edsk", "dsk", "copyqm"] {
        dsktrans(&folder, "ibm360", kind);
        damage(&folder.path("disk.out"));
    }
    damage(&folder.write("disk.msa", &msa(&disk(1440))));
    run(&folder, "zip", "zip", &["-q", "disk.imz", "disk.img"]);
    damage(&folder.path("disk.imz"));
    damage(&folder.write("small.imd", &imd(&[1, 2, 3, 4, 5, 6, 7, 8, 9])));
    let Some(samples) = std::env::var_os("IMGFS_CORPUS") else { return };
    let packed = std::fs::read(std::path::Path::new(&samples).join("fluxfox/sector_test_360k.td0")).unwrap();
    damage(&folder.write("packed.td0", &packed));
}

#[test]
fn the_corpus_reads_as_other_tools_read_it() {
    corpus(&["IMD floppy", "TD0 floppy", "HFE flux"]);
}
