//! Every fixture, damaged in many ways, through the whole stack: no panic, no hang, no large
//! allocation. What a damaged image answers does not matter; that it answers does.
//!
//! The cases run in a process of their own, as only that can be given bounds of memory. A case has a
//! number, and the number alone decides the damage. To run longer, or over other images:
//!
//! ```text
//! IMGFS_EVIL_CASES=20000 IMGFS_EVIL_FIRST=400 IMGFS_EVIL_IMAGES=/folder cargo test --test it evil::
//! ```

mod claim;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use imgfs::container;
use imgfs::error::Result;
use imgfs::filesystem::{FileSystem, Kind, NodeId};
use imgfs::stack::{Image, Options};

/// Bytes that the process may map, in KiB: code, threads, and what the caches may keep.
const MEMORY: u64 = 640 << 10;
/// Damaged variants of each fixture, unless told otherwise.
const CASES: u64 = 120;
/// Processor time that one case may take.
const CASE_TIME: Duration = Duration::from_secs(2);
/// When the process gives up on a case by itself.
const HANG: Duration = Duration::from_secs(30);
/// Nodes that are visited in one image: damage may make a tree of a thousand ways to one node.
const NODES: u64 = 3_000;
/// Largest image that is damaged; the corpus has one that claims 2 TB.
const LARGEST: u64 = 256 << 20;
/// Tells the process where the images are.
const FOLDER: &str = "IMGFS_EVIL_FOLDER";

struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// An image in memory, and in the file that is opened.
struct Victim {
    bytes: Vec<u8>,
    /// Sectors that are not all one byte: holes and padding say nothing when they change.
    sectors: Vec<usize>,
    path: PathBuf,
    file: File,
}

impl Victim {
    const SECTOR: usize = 512;

    fn new(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let dull = |at: &usize| {
            let sector = &bytes[*at..(at + Self::SECTOR).min(bytes.len())];
            sector.iter().all(|byte| *byte == sector[0])
        };
        let sectors = (0..bytes.len()).step_by(Self::SECTOR).filter(|at| !dull(at)).collect();
        let file = File::options().read(true).write(true).open(path).unwrap();
        Self { bytes, sectors, path: path.to_owned(), file }
    }

    /// A place where damage is likely to hit metadata: the first sectors that say anything most of
    /// all, then the last, then any.
    fn spot(&self, numbers: &mut Numbers) -> usize {
        let count = self.sectors.len();
        let index = match numbers.below(8) {
            0..3 => numbers.below(count.min(4) as u64) as usize,
            3..5 => numbers.below(count.min(40) as u64) as usize,
            5 => count.saturating_sub(1 + numbers.below(count.min(2) as u64) as usize),
            _ => numbers.below(count as u64) as usize,
        };
        let sector = self.sectors.get(index).copied().unwrap_or(0);
        // Fields, more often than text, begin at even bytes.
        let within = numbers.below(Self::SECTOR as u64) & numbers.pick(&[!0, !1, !3]);
        (sector + within as usize).min(self.bytes.len().saturating_sub(8))
    }

    /// Damages the file; what changed, to be put back.
    fn damage(&self, numbers: &mut Numbers) -> Vec<(usize, Vec<u8>)> {
        let mut changes = Vec::new();
        for _ in 0..numbers.pick(&[1, 1, 1, 2, 3, 6]) {
            let at = self.spot(numbers);
            let width = numbers.pick(&[1, 2, 4, 8]).min(self.bytes.len() - at);
            let old = &self.bytes[at..at + width];
            let mut value = [0; 8];
            value[..width].copy_from_slice(old);
            let number = u64::from_le_bytes(value);
            let new = match numbers.below(7) {
                0 => number ^ 1 << numbers.below(8 * width as u64),
                1 => u64::MAX,
                2 => 0,
                3 => number.wrapping_add(1),
                4 => number.wrapping_sub(1),
                5 => numbers.pick(&[0x7fff_ffff_ffff_ffff, 0x8000_0000_8000_8080, 0xffff_fff0, 2, 0x0fff_ffff]),
                _ => numbers.next(),
            };
            let mut new = new.to_le_bytes();
            if numbers.below(4) == 0 {
                new[..width].reverse();
            }
            self.file.write_all_at(&new[..width], at as u64).unwrap();
            changes.push((at, old.to_vec()));
        }
        if numbers.below(6) == 0 {
            // One sector in the place of another: right checksums and magics, wrong meaning.
            let (from, to) = (numbers.pick(&self.sectors), numbers.pick(&self.sectors));
            let len = Self::SECTOR.min(self.bytes.len() - from.max(to));
            self.file.write_all_at(&self.bytes[from..from + len], to as u64).unwrap();
            changes.push((to, self.bytes[to..to + len].to_vec()));
        }
        changes
    }

    fn mend(&self, changes: &[(usize, Vec<u8>)]) {
        for (at, old) in changes {
            self.file.write_all_at(&self.bytes[*at..at + old.len()], *at as u64).unwrap();
        }
    }

    /// Lengths at which a download may have stopped, from long to short.
    fn cuts(&self) -> BTreeSet<usize> {
        let len = self.bytes.len();
        let parts = (0..16).map(|i| len / 16 * i);
        let edges = [1, 2, 3, 511, 512, 513, 1024, 4095, 4096].into_iter();
        let edges = edges.flat_map(|edge| [Some(edge), len.checked_sub(edge)]).flatten();
        parts.chain(edges).filter(|cut| *cut < len).collect()
    }
}

/// Everything that a user can ask of an image.
fn look_at_everything(path: &Path) -> Result<()> {
    let options = Options {
        container: container::Options { cache_size: 4 << 20, ..container::Options::default() },
        cache_size: 4 << 20,
        ..Options::default()
    };
    let image = Image::open(path, &options)?;
    std::hint::black_box(format!("{:?}{:?}", image.container.facts, image.container.notes));
    for part in &image.parts {
        std::hint::black_box(format!("{:?}{:?}{:?}", part.entry, part.what, part.tree.summary()));
    }
    let forest = image.forest();
    std::hint::black_box(forest.summary());
    let mut left = NODES;
    look_below(&forest, forest.root(), &mut Vec::new(), &mut left);
    Ok(())
}

fn look_below(tree: &dyn FileSystem, dir: NodeId, above: &mut Vec<NodeId>, left: &mut u64) {
    let mut rows = Vec::new();
    let mut room = NODES;
    let _ = tree.read_dir(dir, 0, &mut |row| {
        rows.push((row.node, row.name.into_owned(), row.kind, row.next));
        room -= 1;
        room > 0
    });
    // A listing that resumes in its middle, as the kernel asks for it.
    if let Some((_, _, _, next)) = rows.get(rows.len() / 2) {
        let _ = tree.read_dir(dir, *next, &mut |_| false);
        // Whoever seeks may come to where no row starts.
        let size = tree.attributes(dir).map_or(0, |attributes| attributes.size);
        for cursor in [next.saturating_add(5), size.saturating_sub(5), u64::MAX] {
            let mut room = NODES;
            let _ = tree.read_dir(dir, cursor, &mut |_| {
                room -= 1;
                room > 0
            });
        }
    }
    above.push(dir);
    for (node, name, kind, _) in rows {
        if *left == 0 {
            break;
        }
        *left -= 1;
        let _ = tree.lookup(dir, &name);
        let size = tree.attributes(node).map_or(0, |attributes| attributes.size);
        for name in tree.xattrs(node).unwrap_or_default() {
            let _ = tree.xattr(node, &name);
        }
        match kind {
            Kind::Directory if above.len() < 64 && !above.contains(&node) => look_below(tree, node, above, left),
            Kind::Symlink => {
                let _ = tree.read_link(node);
            }
            Kind::File => look_inside(tree, node, size),
            _ => {}
        }
    }
    let _ = tree.lookup(dir, b"a name that is not there");
    above.pop();
}

/// The start, the middle and the end of a file.
fn look_inside(tree: &dyn FileSystem, file: NodeId, size: u64) {
    let mut buf = vec![0; 64 << 10];
    for offset in [0, size / 2, size.saturating_sub(5_000)] {
        if let Ok(len) = tree.read(file, &mut buf, offset) {
            assert!(len <= buf.len() && len as u64 <= size.saturating_sub(offset), "more than there is");
        }
        if offset < size {
            let found = tree.extent(file, offset);
            assert!(found.is_err() || found.is_ok_and(|extent| extent.len > 0), "an extent without length");
        }
    }
}

/// Processor time of this thread.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// One case: what went wrong with it.
fn survives(path: &Path) -> std::result::Result<(), String> {
    let before = processor_time();
    let outcome = catch_unwind(AssertUnwindSafe(|| drop(look_at_everything(path))));
    let took = processor_time().saturating_sub(before);
    match outcome {
        Err(_) => Err("panic".to_owned()),
        Ok(()) if took > CASE_TIME => Err(format!("took {took:?}")),
        Ok(()) => Ok(()),
    }
}

/// Ends the process when one case takes too long, with its name.
fn watch(beats: &'static AtomicU64, log: PathBuf) {
    std::thread::spawn(move || {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let now = beats.load(Ordering::Relaxed);
            if now != last {
                (last, since) = (now, Instant::now());
            } else if since.elapsed() > HANG {
                eprintln!("hangs: {}", std::fs::read_to_string(&log).unwrap_or_default());
                std::process::exit(99);
            }
        }
    });
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
#[ignore = "run by every_fixture_survives_damage, in a process of its own"]
fn damaged_fixtures() {
    static BEATS: AtomicU64 = AtomicU64::new(0);
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let log = folder.join("current case");
    watch(&BEATS, log.clone());
    let (first, cases) = (number("IMGFS_EVIL_FIRST", 0), number("IMGFS_EVIL_CASES", CASES));
    let mut failures = Vec::new();
    let mut images: Vec<PathBuf> =
        std::fs::read_dir(folder.join("images")).unwrap().map(|e| e.unwrap().path()).collect();
    images.sort();
    for path in images {
        let victim = Victim::new(&path);
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let mut check = |case: String| {
            BEATS.fetch_add(1, Ordering::Relaxed);
            std::fs::write(&log, format!("{name}, {case}")).unwrap();
            if let Err(why) = survives(&victim.path) {
                eprintln!("{name}, {case}: {why}");
                failures.push(format!("{name}, {case}: {why}"));
            }
        };
        check("as it is".to_owned());
        let seed = name.bytes().fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        for case in (first..first + cases).filter(|_| !victim.sectors.is_empty()) {
            let changes = victim.damage(&mut Numbers(seed ^ case << 20));
            check(format!("case {case}"));
            victim.mend(&changes);
        }
        for cut in victim.cuts().into_iter().rev() {
            victim.file.set_len(cut as u64).unwrap();
            check(format!("cut to {cut} bytes"));
        }
        std::fs::remove_file(&path).unwrap();
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    println!("{} cases", BEATS.load(Ordering::Relaxed));
}

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Puts every fixture into the folder, its path in its name.
fn unpack(fixtures: &Path, to: &Path) {
    let script = r#"
        command -v zstd > /dev/null || { echo "zstd is missing: install the Debian package zstd" >&2; exit 1; }
        cd "$1"; cp demo.img "$2"
        find . -name '*.zst' | while read -r packed; do
            name=$(echo "${packed#./}" | tr / _)
            case $name in
            *.tar.zst) mkdir "$2/.parts"; tar --zstd -C "$2/.parts" -xf "$packed"
                for part in $(find "$2/.parts" -type f); do mv "$part" "$2/$(basename "$part")"; done
                rm -r "$2/.parts" ;;
            *) zstd -qdc "$packed" > "$2/${name%.zst}" ;;
            esac
        done"#;
    let output = Command::new("bash").args(["-ec", script, "unpack"]).args([fixtures, to]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Links the images of another folder, so far as they are not too large.
fn borrow(from: &Path, to: &Path) {
    let mut folders = vec![from.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
            let (path, metadata) = (entry.path(), entry.metadata().unwrap());
            let name = path.strip_prefix(from).unwrap().to_string_lossy().replace('/', "_");
            let text = [".tsv", ".md", ".txt"].iter().any(|end| name.ends_with(end));
            if metadata.is_dir() {
                folders.push(path);
            } else if metadata.is_file() && !text && metadata.len() <= LARGEST {
                std::fs::copy(&path, to.join(name)).unwrap();
            }
        }
    }
}

#[test]
fn every_fixture_survives_damage() {
    let scratch = Scratch(std::env::temp_dir().join(format!("imgfs-evil-{}", std::process::id())));
    let images = scratch.0.join("images");
    std::fs::create_dir_all(&images).unwrap();
    match std::env::var_os("IMGFS_EVIL_IMAGES") {
        Some(folder) => borrow(Path::new(&folder), &images),
        None => {
            let root = std::env::var_os("IMGFS_ROOT").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
            unpack(&Path::new(&root).join("testimages"), &images);
        }
    }
    let this = std::env::current_exe().unwrap();
    let script = format!(
        "ulimit -v {MEMORY}; ulimit -f 600000; ulimit -c 0
        exec '{}' --exact --ignored --nocapture evil::damaged_fixtures",
        this.display()
    );
    let output = Command::new("bash").args(["-c", &script]).env(FOLDER, &scratch.0).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let last = std::fs::read_to_string(scratch.0.join("current case")).unwrap_or_default();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}, the last case being {last}\n{said}\n{complained}", output.status);
    assert!(said.contains("1 passed"), "{said}");
}
