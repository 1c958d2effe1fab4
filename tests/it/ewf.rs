//! Evidence as ewfacquire writes it, in all its formats, whole and in segments.
//!
//! Package: ewf-tools (ewfacquire, ewfacquirestream, ewfexport, ewfinfo).

use std::path::PathBuf;

use imgfs::container::open;

use crate::disks::{
    MIB, Scratch, assert_corpus, assert_image, assert_random, assert_steps, assert_survives, disk, refusal, sparse_disk,
};

const FORMATS: [&str; 12] = [
    "smart", "ewf", "ewfx", "ftk", "encase2", "encase3", "encase4", "encase5", "encase6", "linen5", "linen6", "linen7",
];

fn acquire(scratch: &Scratch, name: &str, args: &str) -> PathBuf {
    scratch.sh("ewf-tools", &format!("ewfacquire -u -q {args} -t {name} d.raw > /dev/null"));
    let mut found = std::fs::read_dir(scratch.path("")).unwrap().map(|entry| entry.unwrap().path());
    let first = found.find(|path| {
        let suffix = path.extension().unwrap_or_default().to_ascii_lowercase();
        path.file_stem().unwrap() == name && (suffix == "e01" || suffix == "s01")
    });
    first.unwrap()
}

#[test]
fn every_format_of_ewfacquire() {
    for size in [8 * MIB, 10 * MIB + 1536] {
        let scratch = Scratch::new();
        let bytes = disk(size);
        scratch.write("d.raw", &bytes);
        for (i, format) in FORMATS.iter().chain(&["encase1", "encase7"]).enumerate() {
            let compression = ["none", "fast", "best", "empty-block"][(i + size as usize / 512) % 4];
            let path = acquire(&scratch, format, &format!("-f {format} -c {compression}"));
            let opened = assert_image(&path, "ewf", &bytes, &scratch.options());
            assert_eq!(opened.notes, [""; 0], "{format}");
        }
    }
}

#[test]
fn segments_are_found_from_any_of_them_and_a_missing_one_is_an_error() {
    let scratch = Scratch::new();
    let bytes = disk(10 * MIB + 1536);
    scratch.write("d.raw", &bytes);
    for format in ["encase1", "encase6", "smart"] {
        let path = acquire(&scratch, format, &format!("-f {format} -c fast -S 1MiB"));
        let opened = assert_image(&path, "ewf", &bytes, &scratch.options());
        assert!(opened.fact("segments").unwrap().contains(" to "), "{:?}", opened.facts);
        let third = path.with_extension(if format == "smart" { "s03" } else { "E03" });
        let opened = open(&third, &scratch.options()).unwrap();
        assert_steps(format, opened.disk.as_ref(), &bytes, MIB);
        std::fs::remove_file(&third).unwrap();
        let said = refusal(&path, &scratch.options());
        assert!(said.to_lowercase().contains("03"), "{said}");
    }
}

#[test]
fn more_than_99_segments_go_on_with_letters() {
    let scratch = Scratch::new();
    let mut bytes = disk(8 * MIB);
    bytes.resize(112 << 20, 0);
    let noise = crate::disks::Numbers(9).bytes(1 << 20);
    bytes.chunks_mut(1 << 20).for_each(|part| part.copy_from_slice(&noise[..part.len()]));
    scratch.write("d.raw", &bytes);
    let path = acquire(&scratch, "many", "-f encase6 -c none -S 1MiB");
    assert!(path.with_extension("EAA").exists());
    let opened = open(&path, &scratch.options()).unwrap();
    assert_steps("many", opened.disk.as_ref(), &bytes, MIB);
    let last = open(&path.with_extension("EAB"), &scratch.options()).unwrap();
    assert_eq!(last.disk.size(), 112 << 20);
}

#[test]
fn large_chunks_sectors_of_other_sizes_and_streams() {
    let scratch = Scratch::new();
    let bytes = disk(10 * MIB + 2048);
    scratch.write("d.raw", &bytes);
    for (name, args) in [
        ("b128", "-b 128 -c best"),
        ("b32768", "-b 32768 -c fast"),
        ("b16", "-b 16 -c none"),
        ("cd", "-P 2048 -m optical"),
    ] {
        assert_image(&acquire(&scratch, name, args), "ewf", &bytes, &scratch.options());
    }
    scratch.sh("ewf-tools", "ewfacquirestream -q -c fast -t stream < d.raw > /dev/null");
    assert_image(&scratch.path("stream.E01"), "ewf", &bytes, &scratch.options());
    // What a pipe gives need not end with a sector: what is left over is in the last chunk, and not on the disk.
    for compression in ["none", "fast"] {
        let script = format!(
            "rm -f odd.*; head -c 3000000 d.raw | ewfacquirestream -q -c {compression} -t odd > /dev/null
            ewfexport -q -u -f raw -t odd odd.E01 > /dev/null"
        );
        scratch.sh("ewf-tools", &script);
        let exported = std::fs::read(scratch.path("odd.raw")).unwrap();
        assert_eq!(exported.len(), 3_000_000 / 512 * 512);
        assert_image(&scratch.path("odd.E01"), "ewf", &exported, &scratch.options());
    }
}

#[test]
fn a_sparse_disk_of_192_mib() {
    let scratch = Scratch::new();
    let bytes = sparse_disk();
    scratch.write("d.raw", &bytes);
    let path = acquire(&scratch, "sparse", "-f encase6 -c fast");
    let opened = open(&path, &scratch.options()).unwrap();
    assert_random("sparse", opened.disk.as_ref(), &bytes, 20);
    assert_steps("sparse", opened.disk.as_ref(), &bytes, MIB);
}

#[test]
fn stored_hashes_and_case_data_are_facts() {
    let scratch = Scratch::new();
    scratch.write("d.raw", &disk(MIB));
    let md5 = scratch.sh("coreutils", "md5sum < d.raw")[..32].to_owned();
    let sha1 = scratch.sh("coreutils", "sha1sum < d.raw")[..40].to_owned();
    for format in ["encase6", "encase5", "ewfx", "linen6", "smart"] {
        let case = "-C 'case 7' -E exhibit -D 'A floppy' -e Jäger -N 'no\tnotes'";
        let path = acquire(&scratch, format, &format!("-f {format} -d sha1 {case}"));
        let opened = open(&path, &scratch.options()).unwrap();
        let facts = format!("{format}: {:?} {:?}", opened.facts, opened.notes);
        assert_eq!(opened.fact("stored MD5"), Some(md5.as_str()), "{facts}");
        if matches!(format, "encase6" | "ewfx" | "linen6") {
            assert_eq!(opened.fact("stored SHA-1"), Some(sha1.as_str()), "{facts}");
        }
        assert_eq!(opened.fact("case number"), Some("case 7"), "{facts}");
        assert_eq!(opened.fact("description"), Some("A floppy"), "{facts}");
        assert_eq!(opened.fact("evidence number"), Some("exhibit"), "{facts}");
    }
}

/// First byte of the data of each section of a type.
fn sections(image: &[u8], kind: &str) -> Vec<usize> {
    let (mut at, mut found) = (13, Vec::new());
    loop {
        let name = &image[at..at + 16];
        if name.starts_with(kind.as_bytes()) && name[kind.len()] == 0 {
            found.push(at + 76);
        }
        let next = u64::from_le_bytes(image[at + 16..at + 24].try_into().unwrap()) as usize;
        if next <= at || next >= image.len() {
            return found;
        }
        at = next;
    }
}

#[test]
fn a_bad_chunk_is_an_error_of_its_own_place() {
    let scratch = Scratch::new();
    let bytes = disk(2 * MIB);
    scratch.write("d.raw", &bytes);
    for compression in ["none", "fast"] {
        let path = acquire(&scratch, compression, &format!("-f encase6 -c {compression}"));
        let mut image = std::fs::read(&path).unwrap();
        let start = sections(&image, "sectors")[0];
        image[start + 3000] ^= 1;
        std::fs::write(&path, &image).unwrap();
        let opened = open(&path, &scratch.options()).unwrap();
        let mut bad = Vec::new();
        for at in (0..2 * MIB).step_by(32_768) {
            let mut buf = vec![0; 32_768];
            match opened.disk.read_exact_at(&mut buf, at) {
                Ok(()) => assert!(buf == bytes[at as usize..at as usize + 32_768], "{at}"),
                Err(error) => bad.push(error.to_string()),
            }
        }
        assert_eq!(bad.len(), 1, "{bad:?}");
        assert!(bad[0].contains("chunk") && bad[0].contains("segment 1") && bad[0].contains("damaged"), "{bad:?}");
    }
}

/// The image with an `error2` section in front of its last one: sectors and their number.
fn with_errors(image: &[u8], rows: &[(u32, u32)]) -> Vec<u8> {
    let sum = |bytes: &[u8]| simd_adler32::adler32(&bytes).to_le_bytes();
    let header = |kind: &str, next: usize, len: usize| {
        let mut header = kind.as_bytes().to_vec();
        header.resize(16, 0);
        header.extend((next as u64).to_le_bytes().into_iter().chain((len as u64).to_le_bytes()).chain([0; 40]));
        header.extend(sum(&header.clone()));
        header
    };
    let done = image.len() - 76;
    assert!(image[done..].starts_with(b"done"));
    let mut data = (rows.len() as u32).to_le_bytes().to_vec();
    data.resize(516, 0);
    data.extend(sum(&data.clone()));
    let entries: Vec<u8> =
        rows.iter().flat_map(|(first, count)| [first.to_le_bytes(), count.to_le_bytes()].concat()).collect();
    data.extend(&entries);
    data.extend(sum(&entries));
    let end = done + 76 + data.len();
    [&image[..done], &header("error2", end, 76 + data.len()), &data, &header("done", end, 76)].concat()
}

#[test]
fn sectors_that_could_not_be_read_then_are_errors_now() {
    let scratch = Scratch::new();
    let mut bytes = disk(2 * MIB);
    bytes[1000 * 512..1064 * 512].fill(0);
    scratch.write("d.raw", &bytes);
    let path = acquire(&scratch, "errors", "-f encase6 -c fast");
    let image = with_errors(&std::fs::read(&path).unwrap(), &[(1000, 64), (4000, 1)]);
    std::fs::write(&path, &image).unwrap();
    let said = scratch.sh("ewf-tools", "ewfinfo errors.E01");
    assert!(said.contains("at sector(s): 1000 - 1063 number: 64"), "ewfinfo reads something else: {said}");
    let opened = open(&path, &scratch.options()).unwrap();
    assert_eq!(opened.fact("unread when acquired"), Some("64 sectors from sector 1000"));
    let mut sector = [1; 512];
    for (number, good) in [(999, true), (1000, false), (1063, false), (1064, true), (4000, false), (4001, true)] {
        let read = opened.disk.read_exact_at(&mut sector, number * 512);
        assert_eq!(read.is_ok(), good, "sector {number}");
    }
    let zeros = imgfs::container::Options { bad_as_zeros: true, ..scratch.options() };
    bytes[4000 * 512..4001 * 512].fill(0);
    assert_steps("zeros", open(&path, &zeros).unwrap().disk.as_ref(), &bytes, MIB);
}

#[test]
fn a_damaged_table_is_read_from_its_copy() {
    let scratch = Scratch::new();
    let bytes = disk(2 * MIB);
    scratch.write("d.raw", &bytes);
    let path = acquire(&scratch, "copy", "-f encase6 -c fast");
    let good = std::fs::read(&path).unwrap();
    let table = sections(&good, "table")[0];
    // In its header, and in an entry.
    for at in [table, table + 40] {
        let mut image = good.clone();
        image[at] ^= 0x11;
        std::fs::write(&path, &image).unwrap();
        let opened = open(&path, &scratch.options()).unwrap();
        assert_steps("copy", opened.disk.as_ref(), &bytes, MIB);
    }
}

#[test]
fn damage_in_thousands_of_sections_does_not_make_pages_of_notes() {
    let scratch = Scratch::new();
    let bytes = disk(MIB);
    scratch.write("d.raw", &bytes);
    let path = acquire(&scratch, "many", "-f encase6 -c fast");
    let mut image = std::fs::read(&path).unwrap();
    image.truncate(sections(&image, "done")[0] - 76);
    // Sections whose data are zeros; the sum of those would be 1.
    let mut section = |kind: &str, len: usize, next: usize| {
        let mut descriptor = vec![0; 72];
        descriptor[..kind.len()].copy_from_slice(kind.as_bytes());
        descriptor[16..24].copy_from_slice(&((image.len() + next) as u64).to_le_bytes());
        descriptor[24..32].copy_from_slice(&((76 + len) as u64).to_le_bytes());
        let (a, b) = descriptor.iter().fold((1, 0), |(a, b), &byte| {
            let a = (a + u32::from(byte)) % 65_521;
            (a, (a + b) % 65_521)
        });
        image.extend_from_slice(&descriptor);
        image.extend_from_slice(&(a | b << 16).to_le_bytes());
        image.resize(image.len() + len, 0);
    };
    for _ in 0..5000 {
        section("hash", 36, 76 + 36);
    }
    section("done", 0, 0);
    std::fs::write(&path, &image).unwrap();
    let opened = open(&path, &scratch.options()).unwrap();
    assert_steps("many", opened.disk.as_ref(), &bytes, MIB);
    let damaged = opened.notes.iter().filter(|note| note.contains("hash")).count();
    assert_eq!((damaged, opened.notes.len()), (100, 101), "{:?}", &opened.notes[..3]);
    assert_eq!(opened.notes[100], "there are more notes like these");
}

#[test]
fn a_cut_set_shows_what_is_there_and_notes_the_rest() {
    let scratch = Scratch::new();
    let bytes = disk(10 * MIB);
    scratch.write("d.raw", &bytes);
    let path = acquire(&scratch, "cut", "-f encase6 -c fast -S 1MiB");
    let second = path.with_extension("E02");
    let image = std::fs::read(&second).unwrap();
    std::fs::write(&second, &image[..image.len() / 2]).unwrap();
    let opened = open(&path, &scratch.options()).unwrap();
    assert!(opened.notes.iter().any(|note| note.contains("segment 2")), "{:?}", opened.notes);
    let mut buf = vec![0; 32_768];
    opened.disk.read_exact_at(&mut buf, 0).unwrap();
    assert!(buf == bytes[..32_768]);
    let said = opened.disk.read_exact_at(&mut buf, 10 * MIB - 32_768).unwrap_err().to_string();
    assert!(said.contains("in no table"), "{said}");
}

#[test]
fn other_kinds_of_evidence_are_refused_by_name() {
    let scratch = Scratch::new();
    for (start, name) in [("EVF2\r\n\u{81}\0", "Ex01"), ("LVF\t\r\n\u{ff}\0", "L01"), ("LEF2\r\n\u{81}\0", "Lx01")] {
        let mut bytes: Vec<u8> = start.chars().map(|c| c as u8).collect();
        bytes.resize(4096, 0);
        let said = refusal(&scratch.write("other", &bytes), &scratch.options());
        assert!(said.contains(name) && said.contains("not supported"), "{said}");
    }
}

#[test]
fn the_corpus_decodes_to_its_recorded_hashes() {
    let encrypted = ("crates/ewf-image/aes128-known-password.E01", "encryption by X-Ways");
    if let Some(compared) = assert_corpus(&["ewf"], &[encrypted], &[]) {
        assert!(compared >= 2, "{compared}");
    }
}

#[test]
fn damaged_files_are_answered_in_bounded_memory() {
    let scratch = Scratch::new();
    scratch.write("d.raw", &disk(300_000 / 512 * 512));
    for format in ["encase6", "encase1", "smart", "ewfx"] {
        let path = acquire(&scratch, format, &format!("-f {format} -c fast"));
        std::fs::rename(path, scratch.path(&format!("image-{format}"))).unwrap();
    }
    assert_survives(
        scratch.folder(),
        &[("ewf", "image-encase6"), ("ewf", "image-encase1"), ("ewf", "image-smart"), ("ewf", "image-ewfx")],
    );
}
