//! Discs: raw sectors made here (with the EDC and ECC of ECMA-130), described in every way, and
//! compared with the ISO that they hold and with what bchunk, iat, mdf2iso and chdman read.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use imgfs::container::{self, Opened, Options};
use imgfs::error::{Error, Result};
use imgfs::filesystem::FileSystem;
use imgfs::stack::Image;
use sha2::{Digest, Sha256};

use super::disks::{PROBED, assert_random, assert_steps, assert_survives};

/// A folder that is removed when the test ends.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(what: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("imgfs-{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // In memory where there is a place: thousands of damaged copies are written.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { memory.join(name) } else { std::env::temp_dir().join(name) };
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a tool inside a folder; `package` is where Debian has it.
pub(crate) fn run(folder: &Folder, tool: &str, package: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(tool).args(arguments).current_dir(&folder.0).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{tool} is needed (Debian package {package}): {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {arguments:?}: {said}{}", String::from_utf8_lossy(&output.stdout));
    output.stdout
}

pub(crate) fn options() -> Options {
    Options { cache_size: 1 << 20, ..Options::default() }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The whole disk, in steps of 1 MiB, and again in steps of 3,000 bytes and by four threads.
pub(crate) fn read_disk(opened: &Opened) -> Result<Vec<u8>> {
    let mut whole = vec![0; opened.disk.size() as usize];
    for (i, part) in whole.chunks_mut(1 << 20).enumerate() {
        opened.disk.read_exact_at(part, (i as u64) << 20)?;
    }
    assert_steps(opened.format, opened.disk.as_ref(), &whole, 3000);
    // A disc of sound alone has no bytes.
    if !whole.is_empty() {
        assert_random(opened.format, opened.disk.as_ref(), &whole, 100);
    }
    Ok(whole)
}

/// Opens an image, which must be the same afterwards.
pub(crate) fn open(path: &Path) -> Result<Opened> {
    let before = sha256(&std::fs::read(path).unwrap());
    let opened = container::open(path, &options())?;
    read_disk(&opened)?;
    assert_eq!(before, sha256(&std::fs::read(path).unwrap()), "the image was changed");
    Ok(opened)
}

pub(crate) fn decoded(path: &Path) -> Vec<u8> {
    let opened = open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    read_disk(&opened).unwrap()
}

/// A small generator of numbers, the same in every run.
pub(crate) struct Dice(pub u64);

impl Dice {
    pub(crate) fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }
}

/// Damages an image in many ways, with the files beside it; see [`assert_survives`].
pub(crate) fn damage(path: &Path) {
    let name = path.file_name().unwrap().to_str().unwrap();
    assert_survives(path.parent().unwrap(), &[(PROBED, name)]);
}

/// Raw sectors.
pub(crate) mod raw {
    /// CRC of ECMA-130, 14.3, with the polynomial (x^16 + x^15 + x^2 + 1)(x^16 + x^2 + x + 1).
    fn edc(bytes: &[u8]) -> [u8; 4] {
        let mut crc = 0u32;
        for &byte in bytes {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ if crc & 1 != 0 { 0xd801_8001 } else { 0 };
            }
        }
        crc.to_le_bytes()
    }

    fn double(byte: u8) -> u8 {
        (byte << 1) ^ if byte & 0x80 != 0 { 0x1d } else { 0 }
    }

    /// One of the two Reed-Solomon codes of annex A, over the bytes from the header on.
    fn parity(sector: &mut [u8], shape: [usize; 4], to: usize) {
        let [majors, minors, major_step, minor_step] = shape;
        let inverse: Vec<u8> = (0..=255u8).map(|n| (0..=255).find(|&m: &u8| double(m) ^ m == n).unwrap()).collect();
        for major in 0..majors {
            let mut index = (major >> 1) * major_step + (major & 1);
            let (mut a, mut b) = (0u8, 0u8);
            for _ in 0..minors {
                let byte = sector[12 + index];
                index += minor_step;
                if index >= majors * minors {
                    index -= majors * minors;
                }
                a = double(a ^ byte);
                b ^= byte;
            }
            a = inverse[usize::from(double(a) ^ b)];
            sector[to + major] = a;
            sector[to + major + majors] = a ^ b;
        }
    }

    fn ecc(sector: &mut [u8]) {
        parity(sector, [86, 24, 2, 86], 2076);
        parity(sector, [52, 43, 86, 88], 2248);
    }

    pub(crate) fn header(lba: u64, mode: u8) -> Vec<u8> {
        let bcd = |n: u64| (n / 10 * 16 + n % 10) as u8;
        let frame = lba + 150;
        let mut sector = vec![0; 2352];
        sector[1..11].fill(0xff);
        sector[12..16].copy_from_slice(&[bcd(frame / 4500), bcd(frame / 75 % 60), bcd(frame % 75), mode]);
        sector
    }

    pub(super) fn mode1(lba: u64, data: &[u8]) -> Vec<u8> {
        let mut sector = header(lba, 1);
        sector[16..2064].copy_from_slice(data);
        let crc = edc(&sector[..2064]);
        sector[2064..2068].copy_from_slice(&crc);
        ecc(&mut sector);
        sector
    }

    pub(super) fn mode2(lba: u64, data: &[u8], form2: bool) -> Vec<u8> {
        let mut sector = header(lba, 2);
        let submode = if form2 { 0x28 } else { 0x08 };
        sector[16..24].copy_from_slice(&[0, 0, submode, 0, 0, 0, submode, 0]);
        sector[24..24 + data.len()].copy_from_slice(data);
        let end = if form2 { 2348 } else { 2072 };
        let crc = edc(&sector[16..end]);
        sector[end..end + 4].copy_from_slice(&crc);
        if !form2 {
            let own = sector[12..16].to_vec();
            sector[12..16].fill(0);
            ecc(&mut sector);
            sector[12..16].copy_from_slice(&own);
        }
        sector
    }

    /// Every sector of an ISO through `wrap`.
    pub(super) fn track(iso: &[u8], lba: u64, wrap: impl Fn(u64, &[u8]) -> Vec<u8>) -> Vec<u8> {
        iso.chunks(2048).zip(lba..).flat_map(|(data, lba)| wrap(lba, data)).collect()
    }
}

/// An ISO with a file of this name; `more` goes to genisoimage.
fn iso(folder: &Folder, name: &str, more: &[&str]) -> Vec<u8> {
    let tree = folder.path("tree");
    let _ = std::fs::remove_dir_all(&tree);
    std::fs::create_dir(&tree).unwrap();
    let mut dice = Dice(name.len() as u64 + 77);
    let noise: Vec<u8> = (0..100_000).map(|_| dice.roll(256) as u8).collect();
    std::fs::write(tree.join(name), &noise).unwrap();
    std::fs::write(tree.join(format!("{name}.txt")), format!("this is {name}").repeat(500)).unwrap();
    let arguments = [&["-quiet", "-R", "-o", "made.iso"][..], more, &["tree"]].concat();
    run(folder, "genisoimage", "genisoimage", &arguments);
    std::fs::read(folder.path("made.iso")).unwrap()
}

/// Sound that is never silent.
fn sound(sectors: usize) -> Vec<u8> {
    (0..sectors * 2352).map(|n| (n % 251) as u8).collect()
}

const CUE: &str = "FILE \"DISC.BIN\" BINARY\r\n  TRACK 01 MODE1/2352\r\n    INDEX 01 00:00:00\r\n";

#[test]
fn a_raw_disc_is_the_iso_in_it_and_bchunk_agrees() {
    let folder = Folder::new("optical");
    let iso = iso(&folder, "one", &[]);
    let bin = folder.write("disc.bin", &raw::track(&iso, 0, raw::mode1));
    let cue = folder.write("disc.cue", CUE.replace("DISC.BIN", "disc.bin").as_bytes());
    run(&folder, "bchunk", "bchunk", &["disc.bin", "disc.cue", "out"]);
    assert!(std::fs::read(folder.path("out01.iso")).unwrap() == iso);
    assert!(decoded(&cue) == iso && decoded(&bin) == iso);
    let toc = folder.write("disc.toc", b"CD_ROM\nTRACK MODE1_RAW\nFILE \"disc.bin\" 0 // all of it\n");
    assert!(decoded(&toc) == iso);
    assert_eq!(open(&cue).unwrap().disk.sector_size(), 2048);
    let sheet = CUE.replace("DISC.BIN", "disc.bin");
    let utf16 =
        |unit: fn(u16) -> [u8; 2]| format!("\u{feff}{sheet}").encode_utf16().flat_map(unit).collect::<Vec<u8>>();
    for text in [utf16(u16::to_le_bytes), utf16(u16::to_be_bytes), format!("\u{feff}{sheet}").into_bytes()] {
        assert!(decoded(&folder.write("wide.cue", &text)) == iso);
    }
}

#[test]
fn all_forms_of_sectors_are_the_same_disk() {
    let folder = Folder::new("optical");
    let iso = iso(&folder, "forms", &[]);
    let form1 = raw::track(&iso, 0, |lba, data| raw::mode2(lba, data, false));
    let headless: Vec<u8> = form1.chunks(2352).flat_map(|sector| sector[16..].to_vec()).collect();
    for (mode, bytes) in [
        ("MODE1/2048", iso.clone()),
        ("MODE1/2352", raw::track(&iso, 0, raw::mode1)),
        ("MODE2/2336", headless),
        ("MODE2/2352", form1),
    ] {
        folder.write("disc.bin", &bytes);
        let cue = folder.write("disc.cue", CUE.replace("MODE1/2352", mode).as_bytes());
        assert!(decoded(&cue) == iso, "{mode}");
    }
}

#[test]
fn a_form_2_sector_among_form_1_sectors_shows_its_first_2048_bytes() {
    let folder = Folder::new("optical");
    let sector = |fill: u8, len: usize| vec![fill; len];
    let bin = [raw::mode2(0, &sector(1, 2048), false), raw::mode2(1, &sector(2, 2324), true)].concat();
    let path = folder.write("mixed.bin", &bin);
    assert!(decoded(&path) == [sector(1, 2048), sector(2, 2048)].concat());
}

#[test]
fn files_are_found_in_another_case_or_code_page_and_by_the_sheets_own_stem() {
    let folder = Folder::new("optical");
    let iso = iso(&folder, "names", &[]);
    let bin = raw::track(&iso, 0, raw::mode1);
    for (file, named) in [
        ("disc.bin", &b"\"DISC.BIN\""[..]),
        ("Bj\u{f6}rk One.bin", b"\"Bj\xf6rk One.bin\""),
        ("a b.bin", b"A B.BIN"),
        ("disc.img", b"\"C:\\OLD\\SOMETHING ELSE.BIN\""),
    ] {
        folder.write(file, &bin);
        let sheet = [b"file ", named, &CUE.as_bytes()[15..]].concat();
        let cue = folder.write("disc.cue", &sheet);
        assert!(decoded(&cue) == iso, "{file}");
        std::fs::remove_file(folder.path(file)).unwrap();
    }
    let cue = folder.write("disc.cue", CUE.as_bytes());
    let error = container::open(&cue, &options()).err().unwrap().to_string();
    assert!(error.contains("DISC.BIN"), "{error}");
}

#[test]
fn data_before_and_behind_sound_in_files_of_their_own_or_in_one() {
    let folder = Folder::new("optical");
    let iso = iso(&folder, "mixed", &[]);
    let count = iso.len() / 2048;
    let data = raw::track(&iso, 0, raw::mode1);
    folder.write("t1.bin", &data);
    folder.write("t2.bin", &sound(300));
    let two = "FILE t1.bin BINARY\n TRACK 01 MODE1/2352\n  INDEX 01 00:00:00\nFILE t2.bin BINARY\n \
               TRACK 02 AUDIO\n  INDEX 00 00:00:00\n  INDEX 01 00:02:00\n";
    let cue = folder.write("two.cue", two.as_bytes());
    assert!(decoded(&cue) == iso);
    let facts = open(&cue).unwrap().facts;
    let expected = format!("2: AUDIO, session 1, from sector {}, 150 sectors", count + 150);
    assert!(facts.contains(&("track", expected)), "{facts:?}");
    let whole = folder.write("whole.bin", &[data, sound(300)].concat());
    // The bare file: sound has no sync pattern.
    assert!(decoded(&whole) == iso);
    let msf = |frame: usize| format!("{:02}:{:02}:{:02}", frame / 4500, frame / 75 % 60, frame % 75);
    let one = format!(
        "FILE whole.bin BINARY\n TRACK 01 MODE1/2352\n  INDEX 01 00:00:00\n TRACK 02 AUDIO\n  \
         INDEX 00 {}\n  INDEX 01 {}\n",
        msf(count),
        msf(count + 150)
    );
    let cue = folder.write("one.cue", one.as_bytes());
    assert!(decoded(&cue) == iso);
    // A lost file of sound leaves the data readable.
    std::fs::remove_file(folder.path("t2.bin")).unwrap();
    let opened = open(&folder.path("two.cue")).unwrap();
    assert!(read_disk(&opened).unwrap() == iso && opened.notes[0].contains("t2.bin"), "{:?}", opened.notes);
    // Sound first: the disk is the data track alone.
    folder.write("t2.bin", &sound(300));
    let cue = folder.write(
        "extra.cue",
        b"FILE t2.bin BINARY\n TRACK 01 AUDIO\n  INDEX 01 00:00:00\nREM SESSION 02\nFILE t1.bin BINARY\n \
          TRACK 02 MODE1/2352\n  INDEX 01 00:00:00\n",
    );
    assert!(decoded(&cue) == iso);
}

#[test]
fn a_track_whose_gap_is_in_the_file_before_it_begins_in_its_own() {
    let folder = Folder::new("optical");
    let samples = sound(600);
    let wav = |name: &str, samples: &[u8]| {
        let len = |n: usize| (n as u32).to_le_bytes();
        let mut bytes = [&b"RIFF"[..], &len(samples.len() + 36), b"WAVEfmt ", &len(16)].concat();
        bytes.extend([1, 0, 2, 0, 0x44, 0xac, 0, 0, 0x10, 0xb1, 2, 0, 4, 0, 16, 0]);
        bytes.extend([&b"data"[..], &len(samples.len()), samples].concat());
        folder.write(name, &bytes);
    };
    wav("01.wav", &samples[..300 * 2352]);
    wav("02.wav", &samples[300 * 2352..]);
    let tracks = |sheet: &str| {
        let opened = open(&folder.write("disc.cue", sheet.as_bytes())).unwrap();
        let sizes: Vec<_> = opened.tracks.iter().map(|track| track.device.size()).collect();
        (sizes, bytes_of(&opened.tracks[1].device)[44..].to_vec())
    };
    // As EAC writes it, and with the commands in another order.
    for sheet in [
        "FILE \"01.wav\" WAVE\n TRACK 01 AUDIO\n INDEX 01 00:00:00\n TRACK 02 AUDIO\n INDEX 00 00:03:00\n\
         FILE \"02.wav\" WAVE\n INDEX 01 00:00:00\n",
        "TRACK 01 AUDIO\nFILE \"01.wav\" WAVE\n INDEX 01 00:00:00\n\
         TRACK 02 AUDIO\nFILE \"02.wav\" WAVE\n INDEX 01 00:00:00\n",
    ] {
        let (sizes, second) = tracks(sheet);
        assert_eq!(sizes, [300 * 2352 + 44; 2]);
        assert!(second == samples[300 * 2352..]);
    }
    let lost =
        folder.write("disc.cue", b"FILE \"01.wav\" WAVE\n TRACK 01 AUDIO\nFILE \"02.wav\" WAVE\n TRACK 02 AUDIO\n");
    assert!(container::open(&lost, &options()).is_err());
}

#[test]
fn the_last_sessions_tree_points_into_both_sessions() {
    let folder = Folder::new("optical");
    let first = iso(&folder, "one", &[]);
    std::fs::copy(folder.path("made.iso"), folder.path("first.iso")).unwrap();
    let count = (first.len() / 2048) as u64;
    let next = count + 11_400;
    let second = iso(&folder, "two", &["-C", &format!("0,{next}"), "-M", "first.iso"]);
    folder.write("t1.bin", &raw::track(&first, 0, raw::mode1));
    folder.write("t2.bin", &raw::track(&second, next, raw::mode1));
    let sheet = "REM SESSION 01\nFILE t1.bin BINARY\n TRACK 01 MODE1/2352\n  INDEX 01 00:00:00\n\
                 REM SESSION 02\nFILE t2.bin BINARY\n TRACK 02 MODE1/2352\n  INDEX 01 00:00:00\n";
    folder.write("disc.cue", sheet.as_bytes());
    folder.write(
        "disc.img",
        &[std::fs::read(folder.path("t1.bin")).unwrap(), std::fs::read(folder.path("t2.bin")).unwrap()].concat(),
    );
    folder.write(
        "disc.ccd",
        ccd(&[(1, 1, 0, 4), (1, 0xa2, count, 4), (2, 2, next, 4)], next + second.len() as u64 / 2048).as_bytes(),
    );
    for name in ["disc.cue", "disc.ccd"] {
        let image = Image::open(&folder.path(name), &imgfs::stack::Options::default()).unwrap();
        let imgfs::stack::Tree::Open { tree, .. } = &image.main_part().unwrap().tree else { panic!("no tree") };
        for file in ["one", "two"] {
            let text = read_file(tree.as_ref(), format!("{file}.txt").as_bytes());
            assert_eq!(text, format!("this is {file}").repeat(500).as_bytes(), "{name}: {file}");
        }
        assert_eq!(image.container.facts.iter().filter(|(name, _)| *name == "track").count(), 2);
    }
}

fn read_file(tree: &dyn FileSystem, name: &[u8]) -> Vec<u8> {
    let node = tree.lookup(tree.root(), name).unwrap().expect("the file is there");
    let mut bytes = vec![0; tree.attributes(node).unwrap().size as usize];
    let len = tree.read(node, &mut bytes, 0).unwrap();
    assert_eq!(len, bytes.len());
    bytes
}

/// A CloneCD description: (session, point, sector, control), and the end of the disc.
pub(crate) fn ccd(rows: &[(u32, u32, u64, u32)], end: u64) -> String {
    let mut text = "[CloneCD]\r\nVersion=3\r\n[Disc]\r\nSessions=1\r\nDataTracksScrambled=0\r\n".to_owned();
    let last = rows.last().unwrap().0;
    for (n, (session, point, lba, control)) in rows.iter().chain(&[(last, 0xa2, end, 4)]).enumerate() {
        text += &format!(
            "[Entry {n}]\r\nSession={session}\r\nPoint=0x{point:02x}\r\nControl=0x{control:02x}\r\nPLBA={lba}\r\n"
        );
    }
    text
}

#[test]
fn clonecd_alcohol_and_nero_describe_the_same_disk() {
    let folder = Folder::new("optical");
    let iso = iso(&folder, "kinds", &[]);
    let count = (iso.len() / 2048) as u64;
    let bin = raw::track(&iso, 0, raw::mode1);
    folder.write("clone.img", &bin);
    let path = folder.write("clone.ccd", ccd(&[(1, 1, 0, 4)], count).as_bytes());
    assert!(decoded(&path) == iso);
    run(&folder, "iat", "iat", &["-i", "clone.img", "--iso", "-o", "clone.iso"]);
    assert!(std::fs::read(folder.path("clone.iso")).unwrap() == iso);
    // With subchannels behind every sector.
    let wide: Vec<u8> = bin.chunks(2352).flat_map(|sector| [sector, &[0x5a; 96]].concat()).collect();
    folder.write("alcohol.mdf", &wide);
    let path = folder.write("alcohol.mds", &mds(0, 2448, count as u32));
    assert!(decoded(&path) == iso && decoded(&folder.path("alcohol.mdf")) == iso);
    folder.write("alcohol.mdf", &bin);
    let path = folder.write("alcohol.mds", &mds(0, 2352, count as u32));
    assert!(decoded(&path) == iso);
    run(&folder, "mdf2iso", "mdf2iso", &["alcohol.mdf", "alcohol.iso"]);
    assert!(std::fs::read(folder.path("alcohol.iso")).unwrap() == iso);
    folder.write("alcohol.mdf", &iso);
    let path = folder.write("alcohol.mds", &mds(0x10, 2048, count as u32));
    assert!(decoded(&path) == iso);
    for wide in [false, true] {
        for at_once in [false, true] {
            let path = folder.write("nero.nrg", &nrg(&bin, wide, at_once));
            assert!(decoded(&path) == iso, "NRG, wide {wide}, at once {at_once}");
        }
    }
}

/// A description with one mode 1 track.
pub(crate) fn mds(medium: u16, stride: u16, count: u32) -> Vec<u8> {
    let mut bytes = vec![0; 0x1e6];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, b"MEDIA DESCRIPTOR\x01\x03");
    put(18, &medium.to_le_bytes());
    put(20, &1u16.to_le_bytes());
    put(80, &88u32.to_le_bytes());
    put(88 + 8, &1u16.to_le_bytes());
    put(88 + 10, &[1, 0]);
    put(88 + 20, &112u32.to_le_bytes());
    put(112, &[if medium == 0 { 0xaa } else { 2 }, if stride == 2448 { 8 } else { 0 }, 0x14, 0, 1]);
    put(112 + 12, &if medium == 0 { 0x1c8u32 } else { count }.to_le_bytes());
    put(112 + 16, &stride.to_le_bytes());
    put(112 + 48, &1u32.to_le_bytes());
    put(112 + 52, &0x1d0u32.to_le_bytes());
    put(0x1c8, &150u32.to_le_bytes());
    put(0x1cc, &count.to_le_bytes());
    put(0x1d0, &0x1e0u32.to_le_bytes());
    put(0x1e0, b"*.mdf\0");
    bytes
}

/// An image with one mode 1 track.
pub(crate) fn nrg(bin: &[u8], wide: bool, at_once: bool) -> Vec<u8> {
    let number = |n: u64| if wide { n.to_be_bytes().to_vec() } else { (n as u32).to_be_bytes().to_vec() };
    let end = bin.len() as u64;
    let (name, body) = if at_once {
        let head = [&[0; 20][..], &[1, 1]].concat();
        let row = [&[0; 12][..], &2352u16.to_be_bytes(), &[5, 0, 0, 1], &number(0), &number(0), &number(end)].concat();
        (if wide { b"DAOX" } else { b"DAOI" }, [head, row].concat())
    } else {
        let row = [number(0), number(end), 5u32.to_be_bytes().to_vec(), vec![0; if wide { 12 } else { 8 }]].concat();
        (if wide { b"ETN2" } else { b"ETNF" }, row)
    };
    let chunk = |name: &[u8; 4], body: &[u8]| [name, &(body.len() as u32).to_be_bytes()[..], body].concat();
    let chunks = [chunk(name, &body), chunk(b"SINF", &1u32.to_be_bytes()), chunk(b"END!", b"")].concat();
    let footer = if wide {
        [b"NER5", &end.to_be_bytes()[..]].concat()
    } else {
        [b"NERO", &(end as u32).to_be_bytes()[..]].concat()
    };
    [bin, &chunks, &footer].concat()
}

fn deflate(bytes: &[u8], zlib: bool) -> Vec<u8> {
    let level = flate2::Compression::best();
    if zlib {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    } else {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }
}

/// Every third block stored, offsets in units of `1 << shift`.
pub(crate) fn cso(iso: &[u8], shift: u32) -> Vec<u8> {
    let count = iso.len().div_ceil(2048);
    let mut bytes = [b"CISO", &24u32.to_le_bytes()[..], &(iso.len() as u64).to_le_bytes()].concat();
    bytes.extend([&2048u32.to_le_bytes()[..], &[1, shift as u8, 0, 0]].concat());
    let mut index = Vec::new();
    let mut packed = Vec::new();
    let start = (24 + 4 * (count + 1)).next_multiple_of(1 << shift);
    for (n, block) in iso.chunks(2048).enumerate() {
        let stored = n % 3 == 0;
        index.push(((start + packed.len()) >> shift) as u32 | if stored { 1 << 31 } else { 0 });
        packed.extend(if stored { block.to_vec() } else { deflate(block, false) });
        packed.resize(packed.len().next_multiple_of(1 << shift), 0x58);
    }
    index.push(((start + packed.len()) >> shift) as u32);
    bytes.extend(index.into_iter().flat_map(u32::to_le_bytes));
    bytes.resize(start, 0x58);
    [bytes, packed].concat()
}

pub(crate) fn dax(iso: &[u8]) -> Vec<u8> {
    let frames: Vec<Vec<u8>> = iso.chunks(8192).map(|frame| deflate(frame, true)).collect();
    let mut bytes = [b"DAX\0", &(iso.len() as u32).to_le_bytes()[..], &[0; 24]].concat();
    let mut at = 32 + 6 * frames.len();
    for frame in &frames {
        bytes.extend((at as u32).to_le_bytes());
        at += frame.len();
    }
    bytes.extend(frames.iter().flat_map(|frame| (frame.len() as u16).to_le_bytes()));
    [bytes, frames.concat()].concat()
}

#[test]
fn packed_discs_are_unpacked_block_by_block() {
    let folder = Folder::new("optical");
    let iso = iso(&folder, "packed", &[]);
    for shift in [0, 2] {
        assert!(decoded(&folder.write("disc.cso", &cso(&iso, shift))) == iso, "shift {shift}");
    }
    assert!(decoded(&folder.write("disc.dax", &dax(&iso))) == iso);
    let jso = folder.write("disc.jso", &[&b"JISO"[..], &[0; 2000]].concat());
    let error = container::open(&jso, &options()).err().unwrap();
    assert!(error.to_string().contains("JSO (LZO) is not supported"), "{error}");
}

/// The blocks of 64 KiB that `lz4 -B4` packed; `None` where it stored one.
fn lz4_blocks(folder: &Folder, iso: &[u8]) -> Vec<Option<Vec<u8>>> {
    folder.write("lz4.in", iso);
    run(folder, "lz4", "lz4", &["-q", "-f", "-9", "-B4", "-BI", "--no-frame-crc", "lz4.in", "lz4.out"]);
    let frame = std::fs::read(folder.path("lz4.out")).unwrap();
    // Magic number, flags (no size of the contents), size of blocks, checksum of these.
    assert_eq!(frame[..4], 0x184d_2204u32.to_le_bytes());
    assert_eq!(frame[4] & 0b0011_1101, 0b0010_0000, "independent blocks without sums");
    let (mut rest, mut blocks) = (&frame[7..], Vec::new());
    loop {
        let len = u32::from_le_bytes(rest[..4].try_into().unwrap());
        if len == 0 {
            return blocks;
        }
        let bytes = &rest[4..][..(len & 0x7fff_ffff) as usize];
        blocks.push((len >> 31 == 0).then(|| bytes.to_vec()));
        rest = &rest[4 + bytes.len()..];
    }
}

#[test]
fn discs_packed_with_lz4_are_unpacked_block_by_block() {
    let folder = Folder::new("optical");
    let mut iso = iso(&folder, "packed", &[]);
    // Something to pack well, and something that cannot be.
    iso.extend(vec![7; 200_000]);
    let mut state = 9u64;
    iso.extend((0..100_000).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    }));
    iso.resize(iso.len().next_multiple_of(2048), 1);
    let blocks = lz4_blocks(&folder, &iso);
    assert!(blocks.iter().any(Option::is_none) && blocks.iter().any(Option::is_some));
    // ZSO marks blocks that are stored, version 2 of CSO those that are LZ4 (the others are deflate).
    for (magic, version, shift) in [(b"ZISO", 1, 0), (b"ZISO", 1, 3), (b"CISO", 2, 0), (b"CISO", 2, 2)] {
        let (mut index, mut packed) = (Vec::new(), Vec::new());
        let start = (24 + 4 * (blocks.len() + 1)).next_multiple_of(1 << shift);
        for (n, (block, plain)) in blocks.iter().zip(iso.chunks(65_536)).enumerate() {
            let (mark, bytes) = match block {
                None => (version == 1, plain.to_vec()),
                Some(_) if version == 2 && n % 2 == 0 => (false, deflate(plain, false)),
                Some(block) => (version == 2, block.clone()),
            };
            index.push(((start + packed.len()) >> shift) as u32 | u32::from(mark) << 31);
            packed.extend(bytes);
            packed.resize(packed.len().next_multiple_of(1 << shift), 0x58);
        }
        index.push(((start + packed.len()) >> shift) as u32);
        let mut image = [&magic[..], &24u32.to_le_bytes(), &(iso.len() as u64).to_le_bytes()].concat();
        image.extend([&65_536u32.to_le_bytes()[..], &[version, shift as u8, 0, 0]].concat());
        image.extend(index.into_iter().flat_map(u32::to_le_bytes));
        image.resize(start, 0);
        image.extend(packed);
        assert!(decoded(&folder.write("disc.zso", &image)) == iso, "version {version}, shift {shift}");
    }
}

/// A GD-ROM: its area for any drive, sound, and the one of the game, whose addresses count from the
/// start of the disc.
fn gd_rom(folder: &Folder) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let (low, high) = (iso(folder, "warning", &[]), iso(folder, "game", &["-C", "0,45000"]));
    let samples = sound(40);
    (low, high, samples)
}

#[test]
fn a_gd_rom_shows_the_area_of_the_game_and_the_other_one_when_asked() {
    let folder = Folder::new("optical");
    let (low, high, samples) = gd_rom(&folder);
    folder.write("track01.iso", &low);
    folder.write("track 02.raw", &samples);
    folder.write("track03.iso", &high);
    folder.write("low.bin", &raw::track(&low, 0, raw::mode1));
    folder.write("high.bin", &[vec![9; 100], raw::track(&high, 45_000, raw::mode1)].concat());
    let cooked = "3\n1 0 4 2048 track01.iso 0\n2 600 0 2352 \"track 02.raw\" 0\n3 45000 4 2048 track03.iso 0\n";
    let mut images = vec![
        folder.write("cooked.gdi", cooked.as_bytes()),
        folder.write(
            "raw.gdi",
            b" 3 \r\n1     0 4 2352 low.bin 0\r\n2   600 0 2352 Track 02.RAW 0\r\n3 45000 4 2352 high.bin 100\r\n",
        ),
    ];
    folder.write("high only.bin", &raw::track(&high, 45_000, raw::mode1));
    let sheet = "REM SINGLE-DENSITY AREA\nFILE \"low.bin\" BINARY\n  TRACK 01 MODE1/2352\n    INDEX 01 00:00:00\n\
                 FILE \"track 02.raw\" BINARY\n  TRACK 02 AUDIO\n    PREGAP 00:02:00\n    INDEX 01 00:00:00\n\
                 REM HIGH-DENSITY AREA\nFILE \"high only.bin\" BINARY\n  TRACK 03 MODE1/2352\n    INDEX 01 00:00:00\n";
    images.push(folder.write("redump.cue", sheet.as_bytes()));
    run(&folder, "chdman", "mame-tools", &["createcd", "-i", "cooked.gdi", "-o", "cooked.chd"]);
    run(&folder, "chdman", "mame-tools", &["extractcd", "-i", "cooked.chd", "-o", "out.gdi"]);
    images.extend([folder.path("cooked.chd"), folder.path("out.gdi")]);
    for path in images {
        let what = path.display();
        let opened = open(&path).unwrap();
        assert!(read_disk(&opened).unwrap() == high, "{what}");
        assert_eq!(opened.fact("shown disk"), Some("1 of 2"), "{what}");
        assert_eq!(bytes_of(&opened.tracks[0].device)[44..], samples, "{what}");
        let second = Options { disk: Some(2), ..options() };
        assert!(read_disk(&container::open(&path, &second).unwrap()).unwrap() == low, "{what}");
        assert!(container::open(&path, &Options { disk: Some(3), ..options() }).is_err(), "{what}");
        // The files, whose addresses count from where the low area begins.
        let image = Image::open(&path, &imgfs::stack::Options::default()).unwrap();
        let imgfs::stack::Tree::Open { tree, .. } = &image.main_part().unwrap().tree else { panic!("no tree") };
        let node = tree.lookup(tree.root(), b"game.txt").unwrap().unwrap_or_else(|| panic!("{what}: game.txt"));
        let mut text = vec![0; 6000];
        assert_eq!(tree.read(node, &mut text, 0).unwrap(), 6000, "{what}");
        assert_eq!(text, "this is game".repeat(500).as_bytes(), "{what}");
    }
    folder.write("gone.gdi", b"2\n1 0 4 2048 track01.iso 0\n2 45000 4 2048 nothing.iso 0\n");
    assert!(container::open(&folder.path("gone.gdi"), &options()).is_err());
    let few = b"2\n1 0 4 2048 short.iso 0\n2 45000 4 2048 short.iso 0\n";
    folder.write("short.iso", &short(&folder));
    damage(&folder.write("few.gdi", few));
}

/// A sheet with its files.
type Layout = (&'static str, String, Vec<(&'static str, Vec<u8>)>);

#[test]
fn odd_discs_are_laid_out_as_chdman_lays_them_out() {
    let folder = Folder::new("optical");
    let data = short(&folder);
    let count = (data.len() / 2048) as u64;
    let msf = |frame: u64| format!("{:02}:{:02}:{:02}", frame / 4500, frame / 75 % 60, frame % 75);
    let (plain, pregap) = (raw::track(&data, 0, raw::mode1), vec![0; 150 * 2352]);
    let form1 = raw::track(&data, 0, |lba, data| raw::mode2(lba, data, false));
    let headless: Vec<u8> = form1.chunks(2352).flat_map(|sector| sector[16..].to_vec()).collect();
    let first = |mode: &str| format!("FILE a.bin BINARY\n TRACK 01 {mode}\n INDEX 01 00:00:00\n");
    let behind = |mode: &str, index: &str| format!("FILE b.bin BINARY\n TRACK 02 {mode}\n {index}\n");
    let layouts: [Layout; 7] = [
        (
            "a postgap",
            (first("MODE1/2352") + " POSTGAP 00:02:00\n") + &behind("AUDIO", "INDEX 01 00:00:00"),
            vec![("a.bin", plain.clone()), ("b.bin", sound(300))],
        ),
        (
            "headless sectors and a pregap of silence",
            first("MODE2/2336") + &behind("AUDIO", "PREGAP 00:02:00\n INDEX 01 00:00:00"),
            vec![("a.bin", headless), ("b.bin", sound(300))],
        ),
        ("a CD-i", first("CDI/2352"), vec![("a.bin", form1)]),
        (
            "two data tracks with a gap that is in no file",
            first("MODE1/2352") + &behind("MODE1/2352", "PREGAP 00:02:00\n INDEX 01 00:00:00"),
            vec![("a.bin", plain.clone()), ("b.bin", raw::track(&data, count + 150, raw::mode1))],
        ),
        (
            "two data tracks with a gap that is in the file",
            first("MODE1/2352") + &behind("MODE1/2352", "INDEX 00 00:00:00\n INDEX 01 00:02:00"),
            vec![
                ("a.bin", plain.clone()),
                ("b.bin", [pregap.clone(), raw::track(&data, count + 150, raw::mode1)].concat()),
            ],
        ),
        (
            "pregaps in one file, of data and of sound",
            format!(
                "FILE a.bin BINARY\n TRACK 01 MODE1/2352\n INDEX 00 00:00:00\n INDEX 01 00:02:00\n TRACK 02 AUDIO\n \
                 INDEX 00 {}\n INDEX 01 {}\n TRACK 03 AUDIO\n INDEX 01 {}\n",
                msf(150 + count),
                msf(300 + count),
                msf(350 + count)
            ),
            vec![("a.bin", [pregap, plain, sound(300)].concat())],
        ),
        (
            "sound alone",
            "FILE a.bin BINARY\n TRACK 01 AUDIO\n INDEX 01 00:00:00\n TRACK 02 AUDIO\n INDEX 00 00:01:00\n \
             INDEX 01 00:02:00\n"
                .to_owned(),
            vec![("a.bin", sound(300))],
        ),
    ];
    for (what, sheet, files) in layouts {
        for (name, bytes) in &files {
            folder.write(name, bytes);
        }
        folder.write("odd.cue", sheet.as_bytes());
        run(&folder, "chdman", "mame-tools", &["createcd", "-f", "-c", "none", "-i", "odd.cue", "-o", "odd.chd"]);
        let [cue, chd] = ["odd.cue", "odd.chd"].map(|name| open(&folder.path(name)).unwrap());
        assert!(read_disk(&cue).unwrap() == read_disk(&chd).unwrap(), "{what}");
        let tracks = |opened: &Opened| {
            let facts = opened.facts.iter().filter(|(name, _)| *name == "track");
            facts.map(|(_, track)| track.replace(" with subchannels", "")).collect::<Vec<_>>()
        };
        assert_eq!(tracks(&cue), tracks(&chd), "{what}");
        let sounds = |opened: &Opened| opened.tracks.iter().map(|track| bytes_of(&track.device)).collect::<Vec<_>>();
        assert!(sounds(&cue) == sounds(&chd), "{what}");
    }
}

/// The bytes of a device.
fn bytes_of(device: &imgfs::device::Device) -> Vec<u8> {
    imgfs::device::read_vec(device.as_ref(), 0, device.size() as usize).unwrap()
}

/// The two bytes of each sample change places.
fn swapped(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(2).flat_map(|pair| [pair[1], pair[0]]).collect()
}

#[test]
fn a_track_of_sound_is_a_wav_file_whatever_holds_it() {
    let folder = Folder::new("optical");
    let samples = sound(200);
    folder.write("little.bin", &samples);
    folder.write("big.bin", &swapped(&samples));
    let sheet = |kind: &str| format!("FILE {kind}\n TRACK 01 AUDIO\n  INDEX 01 00:00:00\n");
    let mut images = vec![
        folder.write("little.cue", sheet("little.bin BINARY").as_bytes()),
        folder.write("big.cue", sheet("big.bin MOTOROLA").as_bytes()),
        folder.write("big.toc", b"CD_DA\nTRACK AUDIO\nFILE \"big.bin\" 0\n"),
    ];
    run(&folder, "chdman", "mame-tools", &["createcd", "-i", "little.cue", "-o", "little.chd"]);
    images.push(folder.path("little.chd"));
    let wav = bytes_of(&open(&images[0]).unwrap().tracks[0].device);
    folder.write("made.wav", &wav);
    images.push(folder.write("wave.cue", sheet("made.wav WAVE").as_bytes()));
    for image in &images {
        let opened = open(image).unwrap();
        assert_eq!((opened.disk.size(), opened.tracks.len(), opened.tracks[0].number), (0, 1, 1));
        assert!(bytes_of(&opened.tracks[0].device) == wav, "{}", image.display());
        Image::open(image, &imgfs::stack::Options::default()).unwrap();
    }
    assert!(wav[44..] == samples && wav.starts_with(b"RIFF"));
    // What chdman takes out of the file is the same sound.
    run(&folder, "chdman", "mame-tools", &["extractcd", "-i", "little.chd", "-o", "out.cue", "-ob", "out.bin"]);
    assert!(std::fs::read(folder.path("out.bin")).unwrap() == samples);
}

#[test]
fn every_method_of_chdman_is_unpacked() {
    let folder = Folder::new("optical");
    let iso = iso(&folder, "chd", &[]);
    folder.write("disc.bin", &[raw::track(&iso, 0, raw::mode1), sound(301)].concat());
    let frame = iso.len() / 2048;
    let at = format!("{:02}:{:02}:{:02}", frame / 4500, frame / 75 % 60, frame % 75);
    folder.write(
        "disc.cue",
        format!("{}  TRACK 02 AUDIO\n    INDEX 01 {at}\n", CUE.replace("DISC.BIN", "disc.bin")).as_bytes(),
    );
    for methods in ["none", "cdzl", "cdlz", "cdfl", "cdlz,cdzl,cdfl"] {
        run(&folder, "chdman", "mame-tools", &["createcd", "-f", "-c", methods, "-i", "disc.cue", "-o", "disc.chd"]);
        assert!(decoded(&folder.path("disc.chd")) == iso, "{methods}");
    }
    let facts = open(&folder.path("disc.chd")).unwrap().facts;
    let said = String::from_utf8(run(&folder, "chdman", "mame-tools", &["info", "-i", "disc.chd"])).unwrap();
    for (name, theirs) in [("stored SHA-1", "\nSHA1:"), ("stored SHA-1 of the data", "\nData SHA1:")] {
        let ours = &facts.iter().find(|(fact, _)| *fact == name).unwrap().1;
        assert_eq!(said.split(theirs).nth(1).unwrap().lines().next().unwrap().trim(), ours, "{name}");
    }
    assert!(facts.contains(&("compression", "cdlz, cdzl, cdfl".to_owned())), "{facts:?}");
    assert!(facts.iter().any(|(_, fact)| fact == &format!("2: AUDIO with subchannels, session 1, from sector {frame}, 301 sectors")));
    let mut disk = iso.clone();
    disk.extend(vec![0; 200_000]);
    disk.extend(sound(100));
    disk.truncate(disk.len() / 512 * 512);
    folder.write("disk.img", &disk);
    for methods in ["none", "zlib", "lzma", "huff", "flac", "lzma,zlib,huff,flac"] {
        let make = |how: &str| {
            let raw = ["-hs", "4096", "-us", "512"];
            let more = if how == "createraw" { &raw[..] } else { &[] };
            let arguments = [&[how, "-f", "-c", methods, "-i", "disk.img", "-o", "disk.chd"], more].concat();
            run(&folder, "chdman", "mame-tools", &arguments);
            assert!(decoded(&folder.path("disk.chd")) == disk, "{how} {methods}");
        };
        make("createraw");
        make("createhd");
    }
}

#[test]
fn a_chd_reads_through_its_parents() {
    let folder = Folder::new("optical");
    // Of 200 hunks a few are other ones, moved by half a hunk, and no one's.
    let mut dice = Dice(7);
    let mut disk: Vec<u8> = (0..200 * 4096).map(|_| dice.roll(256) as u8).collect();
    std::fs::create_dir(folder.path("whole")).unwrap();
    for (name, parent) in [("a", None), ("b", Some("whole/a.chd")), ("c", Some("whole/b.chd"))] {
        let at = 4096 * (5 + usize::from(name.as_bytes()[0] - b'a') * 40);
        disk[at..at + 4096].fill(name.as_bytes()[0]);
        disk.copy_within(100 * 4096 + 2048..103 * 4096 + 2048, at + 8192);
        folder.write("disk.img", &disk);
        // Without compression chdman computes no hash, and a parent without one cannot be found.
        for methods in ["none", "zlib,lzma"] {
            let out = format!("{name}.chd");
            let shape = ["-f", "-c", methods, "-i", "disk.img", "-o", &out, "-hs", "4096", "-us", "512"];
            let above = parent.map_or(vec![], |parent| vec!["-op", parent]);
            run(&folder, "chdman", "mame-tools", &[&["createraw"][..], &shape, &above].concat());
            assert!(decoded(&folder.path(&out)) == disk, "{name} {methods}");
        }
        // Not every chdman makes a child of a child. It is known by the hash of what it holds, so
        // one that was made from the whole disk is the same parent to it.
        run(
            &folder,
            "chdman",
            "mame-tools",
            &[
                "createraw",
                "-c",
                "zlib",
                "-i",
                "disk.img",
                "-o",
                &format!("whole/{name}.chd"),
                "-hs",
                "4096",
                "-us",
                "512",
            ],
        );
        folder.write(&format!("{name}.img"), &disk);
    }
    let opened = container::open(&folder.path("c.chd"), &options()).unwrap();
    let parents: Vec<_> = opened.facts.iter().filter(|(name, _)| *name == "parent").map(|(_, name)| name).collect();
    assert_eq!(parents, ["b.chd", "a.chd"]);
    std::fs::remove_file(folder.path("a.chd")).unwrap();
    let error = container::open(&folder.path("c.chd"), &options()).err().unwrap();
    assert!(matches!(&error, Error::Unsupported { .. }) && error.to_string().contains("parent"), "{error}");
}

/// A short disc for the damage: its headers are most of it.
fn short(folder: &Folder) -> Vec<u8> {
    let iso = iso(folder, "x", &["-no-pad"]);
    iso[iso.len() - 24 * 2048..].to_vec()
}

#[test]
fn damaged_descriptions_of_discs_are_errors_and_nothing_worse() {
    let folder = Folder::new("optical");
    let data = short(&folder);
    let bin = raw::track(&data, 0, raw::mode1);
    folder.write("disc.bin", &bin);
    folder.write("disc.img", &bin);
    folder.write("disc.mdf", &bin);
    damage(&folder.write("disc.cue", CUE.as_bytes()));
    damage(&folder.write(
        "disc.toc",
        b"CD_ROM\nTRACK MODE1_RAW RW\nSTART 0:0:1\nFILE \"disc.bin\" #12 0:0:1 0:0:9\nZERO 0:0:3\n",
    ));
    damage(&folder.write("disc.ccd", ccd(&[(1, 1, 0, 4), (2, 2, 11_420, 4)], 11_424).as_bytes()));
    damage(&folder.write("disc.mds", &mds(0, 2352, 24)));
    damage(&folder.write("disc.nrg", &nrg(&bin, true, true)));
    damage(&folder.write("one.nrg", &nrg(&bin, false, false)));
    damage(&folder.write("alone.bin", &bin));
    damage(&folder.write("disc.cso", &cso(&data, 0)));
    damage(&folder.write("disc.dax", &dax(&data)));
}

#[test]
fn damaged_chds_are_errors_and_nothing_worse() {
    let folder = Folder::new("optical");
    let data = short(&folder);
    folder.write("disc.bin", &raw::track(&data, 0, raw::mode1));
    folder.write("disc.cue", CUE.replace("DISC.BIN", "disc.bin").as_bytes());
    run(&folder, "chdman", "mame-tools", &["createcd", "-i", "disc.cue", "-o", "cd.chd"]);
    damage(&folder.path("cd.chd"));
    folder.write("disk.img", &[data, sound(20)[..40_960].to_vec()].concat());
    for methods in ["none", "lzma", "zlib", "huff", "flac"] {
        run(
            &folder,
            "chdman",
            "mame-tools",
            &["createraw", "-f", "-c", methods, "-i", "disk.img", "-o", "hd.chd", "-hs", "4096", "-us", "512"],
        );
        damage(&folder.path("hd.chd"));
    }
}

#[test]
fn the_corpus_reads_as_other_tools_read_it() {
    corpus(&["cue sheet", "cdrdao toc", "raw CD 2352 (bin)", "nrg", "mds"]);
}

/// dsktrans took these two for disks of 8 sectors a track; fluxfox has the raw disk beside them.
const WRONG_TRUTH: [&str; 2] = ["fluxfox/sector_test_360k.imd", "fluxfox/sector_test_360k.td0"];
const RIGHT_TRUTH: &str = "fluxfox/sector_test_360k.img";

/// Every image of these kinds equals the truth, or is refused with a reason.
pub(crate) fn corpus(kinds: &[&str]) {
    let Some(folder) = std::env::var_os("IMGFS_CORPUS").map(PathBuf::from) else {
        eprintln!("IMGFS_CORPUS is not set: the corpus was not read");
        return;
    };
    let index = std::fs::read_to_string(folder.join("INDEX.tsv")).unwrap();
    let columns: Vec<&str> = index.lines().next().unwrap().split('\t').collect();
    let column = |name: &str| columns.iter().position(|column| *column == name).unwrap();
    let (path, kind, truth) = (column("path"), column("container"), column("decoded_sha256"));
    for row in index.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>()) {
        if !kinds.contains(&row[kind]) {
            continue;
        }
        let image = folder.join(row[path]);
        let right = sha256(&std::fs::read(folder.join(RIGHT_TRUTH)).unwrap());
        let truth =
            if WRONG_TRUTH.contains(&row[path]) { right.as_str() } else { row.get(truth).copied().unwrap_or("") };
        match (open(&image), truth) {
            (Ok(_), "") => {}
            (Err(error), "") => {
                assert!(
                    matches!(error, Error::Corrupt { .. } | Error::Unsupported { .. } | Error::Io { .. }),
                    "{error}"
                );
            }
            (Ok(opened), sum) => assert_eq!(sha256(&read_disk(&opened).unwrap()), sum, "{}", row[path]),
            (Err(error), _) => panic!("{}: {error}", row[path]),
        }
    }
}
