//! What each layer costs by itself, without a kernel between: looking up names, listing, finding
//! and reading contents in every file system, then the caches and the overlay.
//!
//! The images are made by `mke2fs`, `genisoimage`, `mkfs.fat` and `mcopy` in a temporary folder.
//! `cargo bench -- --test` runs everything once.

#![allow(missing_docs, reason = "criterion's macros make functions that no one calls")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use imgfs::cache::Cache;
use imgfs::device::cached::Cached;
use imgfs::device::memory::Memory;
use imgfs::device::overlay::{self, Overlay};
use imgfs::device::{BlockDevice, Device};
use imgfs::filesystem::{FileSystem, NodeId};
use imgfs::forest::find;
use imgfs::stack::{Image, Options};

/// Files of the directory in which names are looked up.
const FILES: usize = 1000;
/// Size of the file that is read.
const BIG: usize = 8 << 20;
/// Length of a sequential read: the kernel's largest request.
const CHUNK: usize = 1 << 20;

/// A folder that is gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("imgfs-layers.{}", std::process::id()));
        fs::create_dir_all(path.join("source/many")).unwrap();
        for number in 0..FILES {
            fs::write(path.join(format!("source/many/file number {number:04}.txt")), [b'x'; 100]).unwrap();
        }
        fs::write(path.join("source/big.bin"), vec![0x5a; BIG]).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn run(program: &str, words: &[&str]) {
    let done = Command::new(program).args(words).stdout(Stdio::null()).status();
    assert!(done.is_ok_and(|status| status.success()), "{program} {words:?}: is its package installed?");
}

fn blank(path: &Path) {
    fs::File::create(path).unwrap().set_len(64 << 20).unwrap();
}

/// The same tree in every file system.
fn images(folder: &Path) -> Vec<(&'static str, PathBuf)> {
    let source = folder.join("source");
    let source = source.to_str().unwrap();
    let (many, big) = (format!("{source}/many"), format!("{source}/big.bin"));
    let mut made = Vec::new();
    for name in ["ext4", "ext2", "fat", "iso"] {
        let path = folder.join(format!("{name}.img"));
        let text = path.to_str().unwrap();
        if name != "iso" {
            blank(&path);
        }
        match name {
            "fat" => {
                run("mkfs.fat", &["-F", "32", "-s", "1", text]);
                run("mcopy", &["-s", "-i", text, &many, &big, "::/"]);
            }
            "iso" => run("genisoimage", &["-quiet", "-R", "-o", text, source]),
            kind => run("mke2fs", &["-q", "-F", "-t", kind, "-d", source, text]),
        }
        made.push((name, path));
    }
    made
}

fn file_systems(criterion: &mut Criterion) {
    let folder = Folder::new();
    for (name, path) in images(&folder.0) {
        let image = Image::open(&path, &Options::default()).unwrap();
        let tree = image.main_part().and_then(|part| part.tree.tree()).unwrap();
        one_file_system(criterion, name, tree.as_ref());
    }
}

fn one_file_system(criterion: &mut Criterion, name: &str, tree: &dyn FileSystem) {
    let many = find(tree, b"many").unwrap();
    let big = find(tree, b"big.bin").unwrap();
    let mut group = criterion.benchmark_group(name);
    let mut number = 0;
    group.bench_function("lookup", |bencher| {
        bencher.iter(|| {
            number = (number + 7) % FILES;
            let name = format!("file number {number:04}.txt");
            black_box(tree.lookup(many, name.as_bytes()).unwrap().unwrap())
        });
    });
    group.throughput(Throughput::Elements(FILES as u64));
    group.bench_function("list", |bencher| bencher.iter(|| assert_eq!(nodes(tree, many).len(), FILES)));
    let all = nodes(tree, many);
    group.bench_function("attributes", |bencher| {
        bencher.iter(|| all.iter().map(|node| tree.attributes(*node).unwrap().size).sum::<u64>());
    });
    group.throughput(Throughput::Elements(1));
    let mut offset = 0;
    group.bench_function("map", |bencher| {
        bencher.iter(|| {
            offset = (offset + 4096 * 257) % BIG as u64;
            black_box(tree.extent(big, offset).unwrap())
        });
    });
    let mut buf = vec![0; CHUNK];
    for (what, len) in [("read 4 KiB", 4096), ("read 1 MiB", CHUNK)] {
        let part = &mut buf[..len];
        let steps = (BIG / len) as u64;
        let mut step = 0;
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(what, |bencher| {
            bencher.iter(|| {
                step = (step + 101) % steps;
                assert_eq!(tree.read(big, part, step * len as u64).unwrap(), len);
            });
        });
    }
    group.finish();
}

fn nodes(tree: &dyn FileSystem, dir: NodeId) -> Vec<NodeId> {
    let mut found = Vec::new();
    tree.read_dir(dir, 0, &mut |entry| {
        found.push(entry.node);
        true
    })
    .unwrap();
    found
}

fn caches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cache");
    let cache: Cache<u64, Arc<Vec<u8>>> = Cache::new(1 << 20);
    cache.insert(7, Arc::new(vec![0; 4096]), 4096);
    group.bench_function("hit", |bencher| bencher.iter(|| black_box(cache.get(&7).unwrap())));
    let mut key = 0;
    group.bench_function("make", |bencher| {
        bencher.iter(|| {
            key += 1;
            cache.get_or_make(&key, || Ok::<_, ()>((Arc::new(Vec::new()), 4096))).unwrap()
        });
    });
    let disk = Cached::new(memory(), 1 << 20);
    let mut sector = [0; 512];
    group.bench_function("sector", |bencher| bencher.iter(|| disk.read_exact_at(&mut sector, 5120).unwrap()));
    group.finish();
}

fn memory() -> Device {
    Arc::new(Memory::new(vec![0; BIG], 512))
}

fn overlays(criterion: &mut Criterion) {
    let disk = Overlay::temporary(None, &memory(), &overlay::Options::default()).unwrap();
    let mut group = criterion.benchmark_group("overlay");
    group.throughput(Throughput::Bytes(4096));
    let mut buf = [1; 4096];
    group.bench_function("read of the base", |bencher| bencher.iter(|| disk.read_exact_at(&mut buf, 65536).unwrap()));
    let writer = disk.writer().unwrap();
    group.bench_function("overwrite", |bencher| bencher.iter(|| writer.write_all_at(&[2; 4096], 8192).unwrap()));
    group.bench_function("read of its own", |bencher| bencher.iter(|| disk.read_exact_at(&mut buf, 8192).unwrap()));
    group.finish();
}

criterion_group!(benches, file_systems, caches, overlays);
criterion_main!(benches);
