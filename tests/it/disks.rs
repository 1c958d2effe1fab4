//! Disks to put into containers, and the ways in which every container must give them back.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use imgfs::container::{Opened, Options, open};
use imgfs::device::BlockDevice;
use imgfs::error::{Error, Result};
use sha2::{Digest, Sha256};

pub(crate) const MIB: u64 = 1 << 20;
/// Bytes of memory that a process with any damaged image may map, in KiB.
const MEMORY: u64 = 1 << 20;
/// Damaged images of each format.
const CASES: u64 = 1000;
/// Tells the process where the images are.
const FOLDER: &str = "IMGFS_DAMAGED_DISKS";

/// A folder that goes with the test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("imgfs-disks-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// Runs a script in the folder, where no file may grow past 1 GB; a tool that is missing fails
    /// the test with the packages it may be in.
    pub(crate) fn sh(&self, packages: &str, script: &str) -> String {
        let bounded = format!("ulimit -f 1000000; {script}");
        let run = || Command::new("bash").args(["-ec", &bounded]).current_dir(&self.0).output().expect("bash starts");
        let mut output = run();
        // qemu-img times its own hashing, for LUKS, and gives up on a machine that is busy with others.
        let busy = |stderr: &[u8]| String::from_utf8_lossy(stderr).contains("Unable to get accurate CPU usage");
        for _ in 0..20 {
            if !busy(&output.stderr) {
                break;
            }
            output = run();
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{script}\n{said}\n(Debian packages: {packages})");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The folder itself.
    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    /// Options that keep indexes and spools in this folder.
    pub(crate) fn options(&self) -> Options {
        Options { cache_size: 64 << 20, cache_folder: Some(self.path("cache")), ..Options::default() }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Numbers that look random and are the same in every run.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 24) as u8).collect()
    }
}

/// A disk of text, noise and holes, whose last sector is not empty.
pub(crate) fn disk(size: u64) -> Vec<u8> {
    let mut numbers = Numbers(size | 1);
    let mut out = vec![0; size as usize];
    let mut at = 0;
    while at < out.len() {
        let len = [512, 4096, 65_536, 70_000, 300_000, 1 << 20][numbers.below(6) as usize].min(out.len() - at);
        match numbers.below(3) {
            0 => {}
            1 => out[at..at + len].iter_mut().enumerate().for_each(|(i, b)| *b = b"some text, "[i % 11]),
            _ => out[at..at + len].copy_from_slice(&numbers.bytes(len)),
        }
        at += len;
    }
    let end = out.len();
    out[end - 512..].copy_from_slice(&numbers.bytes(512));
    out
}

/// 192 MiB of which a few are not zeros.
pub(crate) fn sparse_disk() -> Vec<u8> {
    let mut out = vec![0; 192 << 20];
    for (start, seed) in [(0usize, 1), (77 << 20, 2), ((192 << 20) - 70_000, 3)] {
        out[start..start + 70_000].copy_from_slice(&Numbers(seed).bytes(70_000));
    }
    out
}

pub(crate) fn hash(path: &Path) -> [u8; 32] {
    Sha256::digest(std::fs::read(path).unwrap()).into()
}

/// The message of an open that must fail.
pub(crate) fn refusal(path: &Path, options: &Options) -> String {
    match open(path, options) {
        Err(error) => error.to_string(),
        Ok(opened) => panic!("{} was opened as {}", path.display(), opened.format),
    }
}

/// Reads a whole disk in steps of `step` bytes and compares it.
pub(crate) fn assert_steps(what: &str, disk: &dyn BlockDevice, expected: &[u8], step: u64) {
    assert_eq!(disk.size(), expected.len() as u64, "{what}: size");
    let (mut sha, mut buf) = (Sha256::new(), vec![0; step as usize]);
    for (i, want) in expected.chunks(step as usize).enumerate() {
        let part = &mut buf[..want.len()];
        let at = i as u64 * step;
        disk.read_exact_at(part, at).unwrap_or_else(|error| panic!("{what}: at {at}: {error}"));
        assert!(part == want, "{what}: differs at {at} in steps of {step}");
        sha.update(part);
    }
    assert_eq!(sha.finalize(), Sha256::digest(expected), "{what}: in steps of {step}");
}

/// Reads from four threads at random.
pub(crate) fn assert_random(what: &str, disk: &dyn BlockDevice, expected: &[u8], reads: u64) {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let mut numbers = Numbers(thread + 77);
                for _ in 0..reads {
                    let start = numbers.below(expected.len() as u64) as usize;
                    let len = (numbers.below(200_000) as usize).min(expected.len() - start);
                    let mut buf = vec![0; len];
                    disk.read_exact_at(&mut buf, start as u64).unwrap();
                    assert!(buf == expected[start..start + len], "{what}: {len} bytes at {start}");
                }
            });
        }
    });
}

/// Every way of reading gives the expected bytes; holes are zeros; the end is the end.
pub(crate) fn assert_disk(what: &str, disk: &dyn BlockDevice, expected: &[u8]) {
    assert_random(what, disk, expected, 30);
    assert_steps(what, disk, expected, MIB);
    assert_steps(what, disk, expected, 3000);
    let mut at = 0;
    while at < disk.size() {
        let extent = disk.extent(at).unwrap();
        assert!(extent.len > 0 && extent.len <= disk.size() - at, "{what}: extent at {at}");
        let part = &expected[at as usize..(at + extent.len) as usize];
        assert!(extent.stored || part.iter().all(|&b| b == 0), "{what}: a hole with bytes at {at}");
        at += extent.len;
    }
    assert!(matches!(disk.read_exact_at(&mut [0; 2], disk.size() - 1), Err(Error::PastEnd { .. })));
}

/// Opens an image, compares its disk, and checks that the image was not changed.
pub(crate) fn assert_image(path: &Path, format: &str, expected: &[u8], options: &Options) -> Opened {
    let before = hash(path);
    let opened = open(path, options).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(opened.format, format, "{}", path.display());
    assert_disk(&path.display().to_string(), opened.disk.as_ref(), expected);
    assert_eq!(hash(path), before, "{} was changed", path.display());
    opened
}

/// Compares all images of the corpus whose container is named so; gives how many there were.
/// `refused` lists those that must not open, with words of the reason; `others` those that have
/// another hash than the recorded one.
pub(crate) fn assert_corpus(kinds: &[&str], refused: &[(&str, &str)], others: &[(&str, &str)]) -> Option<usize> {
    let Some(corpus) = std::env::var_os("IMGFS_CORPUS").map(PathBuf::from) else {
        println!("skipped: IMGFS_CORPUS names no folder with the corpus of real images");
        return None;
    };
    let scratch = Scratch::new();
    let index = std::fs::read_to_string(corpus.join("INDEX.tsv")).expect("INDEX.tsv of the corpus");
    let mut lines = index.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let head = lines.next().unwrap();
    let column = |name: &str| head.iter().position(|&found| found == name).unwrap();
    let (path, container, truth) = (column("path"), column("container"), column("decoded_sha256"));
    let mut compared = 0;
    for row in lines.filter(|row| kinds.iter().any(|kind| row[container].starts_with(kind))) {
        compared += 1;
        let image = corpus.join(row[path]);
        if let Some((_, why)) = refused.iter().find(|(name, _)| *name == row[path]) {
            let said = refusal(&image, &scratch.options());
            assert!(said.contains(why), "{}: {said}", row[path]);
            continue;
        }
        let opened = open(&image, &scratch.options()).unwrap_or_else(|error| panic!("{}: {error}", row[path]));
        let mut sha = Sha256::new();
        let (mut at, mut buf) = (0, vec![0; MIB as usize]);
        while at < opened.disk.size() {
            let part = (opened.disk.size() - at).min(MIB) as usize;
            opened.disk.read_exact_at(&mut buf[..part], at).unwrap();
            sha.update(&buf[..part]);
            at += part as u64;
        }
        let found: String = sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let want = others.iter().find(|(name, _)| *name == row[path]).map_or(row[truth], |(_, hash)| hash);
        assert_eq!(found, want, "{}", row[path]);
    }
    Some(compared)
}

/// Opens a damaged image and reads some of it; what it answers does not matter.
fn try_all(path: &Path, options: &Options) -> Result<()> {
    let opened = open(path, options)?;
    let size = opened.disk.size();
    let mut buf = vec![0; 65_536];
    for start in (0..size.min(2 * MIB)).step_by(65_536).chain([size / 2, size.saturating_sub(65_536)]) {
        let len = (size - start).min(65_536) as usize;
        let _ = opened.disk.read_exact_at(&mut buf[..len], start);
        let _ = opened.disk.extent(start.min(size.saturating_sub(1)));
    }
    Ok(())
}

/// An image that is damaged in its place, with the files beside it.
struct Victim {
    image: Vec<u8>,
    on_disk: Vec<u8>,
    file: File,
    /// Pages that are not of one byte: holes and padding say nothing when they change.
    pages: Vec<usize>,
}

impl Victim {
    fn new(path: &Path) -> Self {
        let image = std::fs::read(path).unwrap();
        let dull = |at: &usize| image[*at..(*at + 512).min(image.len())].windows(2).all(|pair| pair[0] == pair[1]);
        let pages = (0..image.len()).step_by(512).filter(|at| !dull(at)).collect();
        let file = File::options().write(true).open(path).unwrap();
        Self { on_disk: image.clone(), image, file, pages }
    }

    /// Where damage is likely to hit metadata: the first bytes, the last ones, any page.
    fn spot(&self, numbers: &mut Numbers) -> usize {
        let (len, pages) = (self.image.len(), &self.pages);
        let page = match numbers.below(4) {
            0 => return numbers.below(len.min(256) as u64) as usize,
            1 => pages[numbers.below(pages.len().min(4) as u64) as usize],
            2 => pages[pages.len() - 1 - numbers.below(pages.len().min(2) as u64) as usize],
            _ => pages[numbers.below(pages.len() as u64) as usize],
        };
        (page + numbers.below(512) as usize).min(len - 1)
    }

    /// Bytes that break things: limits, signs, small numbers, flipped bits.
    fn damaged(&self, numbers: &mut Numbers) -> Vec<u8> {
        let mut image = self.image.clone();
        for _ in 0..=numbers.below(4) {
            let at = self.spot(numbers);
            let len = [1, 2, 4, 8][numbers.below(4) as usize].min(image.len() - at);
            match numbers.below(4) {
                0 => image[at] ^= 1 << numbers.below(8),
                1 => image[at..at + len].fill(0xff),
                2 => image[at..at + len].fill(0),
                _ => image[at..at + len].iter_mut().for_each(|byte| *byte = numbers.next() as u8),
            }
        }
        image
    }

    /// Only what differs is written: some images have many megabytes of padding.
    fn write(&mut self, image: Vec<u8>) {
        if self.on_disk.len() != image.len() {
            self.file.set_len(image.len() as u64).unwrap();
            self.on_disk.resize(image.len(), 0);
        }
        let chunks = image.chunks(65_536).zip(self.on_disk.chunks(65_536)).enumerate();
        for (i, (new, _)) in chunks.filter(|(_, (new, old))| new != old) {
            self.file.write_all_at(new, i as u64 * 65_536).unwrap();
        }
        self.on_disk = image;
    }
}

/// Makes the checksums of a damaged VHD or VHDX right again: they would stop most damage at the door.
fn mend(format: &str, image: &mut [u8]) {
    let sum = |bytes: &[u8]| !bytes.iter().fold(0u32, |sum, &byte| sum.wrapping_add(byte.into()));
    if format == "vhdx" {
        let regions = [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 65_536), (256 << 10, 65_536)];
        for (at, len) in regions.into_iter().chain((0..3).map(|i| (MIB as usize + i * 8192, 8192))) {
            image[at + 4..at + 8].fill(0);
            let sum = crc32c::crc32c(&image[at..at + len]);
            image[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
        }
    } else if format == "vhd" {
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
#[ignore = "run by assert_survives, in a process of its own"]
fn damaged() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let list = std::fs::read_to_string(folder.join("LIST")).unwrap();
    let images: Vec<(&str, &str)> = list.lines().map(|line| line.split_once(' ').unwrap()).collect();
    for &(format, name) in &images {
        let alike = images.iter().filter(|(other, _)| *other == format && format != PROBED).count().max(1);
        let cases = CASES.div_ceil(alike as u64);
        let path = folder.join(name);
        let mut victim = Victim::new(&path);
        let mut numbers = Numbers(name.bytes().fold(99, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(byte)));
        // Small bounds: a damaged size must not fill the host's disk either.
        let probed = Options {
            cache_size: MIB,
            cache_folder: Some(folder.join("cache")),
            spool_max: Some(64 << 20),
            ..Options::default()
        };
        let options = Options { format: Some(format.to_owned()).filter(|name| name != PROBED), ..probed.clone() };
        let mut opened = 0;
        for i in 0..cases {
            let mut broken = victim.damaged(&mut numbers);
            if i % 2 == 1 {
                mend(format, &mut broken);
            }
            victim.write(broken);
            opened += u64::from(try_all(&path, &options).is_ok());
        }
        for i in 0..60 {
            let whole = victim.image.len();
            let len = if i < 30 { whole * i / 30 } else { whole.saturating_sub(1 + (i - 30) * 97) };
            victim.write(victim.image[..len].to_vec());
            let _ = try_all(&path, &options);
            let _ = try_all(&path, &probed);
        }
        victim.write(victim.image.clone());
        println!("{name}: {opened} of {cases} damaged images were opened");
        let _ = std::fs::remove_dir_all(folder.join("cache"));
    }
}

/// In the place of a format's name: the image is probed.
pub(crate) const PROBED: &str = "-";

/// Damages the images in a process with bounded memory and time, because only that shows an
/// allocation or a hang. `images`: the format to open it as, and its name in the folder.
pub(crate) fn assert_survives(folder: &Path, images: &[(&str, &str)]) {
    let list: String = images.iter().map(|(format, name)| format!("{format} {name}\n")).collect();
    std::fs::write(folder.join("LIST"), list).unwrap();
    let this = std::env::current_exe().unwrap();
    let script = format!(
        "ulimit -v {MEMORY}; ulimit -f 1000000; exec timeout 300 '{}' --exact --ignored --nocapture disks::damaged",
        this.display()
    );
    let output = Command::new("bash").args(["-c", &script]).env(FOLDER, folder).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
    println!("{said}");
}
