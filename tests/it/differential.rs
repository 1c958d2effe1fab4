//! Every volume that we have against second oracles: FAT against mtools, 7z and The Sleuth Kit; ISO 9660
//! against xorriso, isoinfo, 7z and The Sleuth Kit; ext against debugfs and The Sleuth Kit.
//!
//! The images are those of testimages/, and the corpus where IMGFS_CORPUS says that it is. Each
//! volume is copied out of its image and given to the tools; what they list and what they extract has
//! to be our tree. Where a tool is wrong it stands in [`WRONG`], with the proof.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use imgfs::device::Device;
use imgfs::filesystem::{FileSystem, Kind, NodeId};
use imgfs::stack::{Image, Options, Tree};
use sha2::{Digest, Sha256};

use crate::fat::{Scratch, try_tool};
use crate::program::{project, testimage};

/// Larger volumes are left out: each is copied several times.
const LARGEST: u64 = 96 << 20;
/// Files of one volume that are given to icat, one process each.
const MOST_FILES: usize = 400;

/// Where a tool is wrong: the end of the image's path, the volume, the tool, and the proof.
const WRONG: &[(&str, &str, &str, &str)] = &[
    (
        "/ext4.img",
        "disk",
        "debugfs",
        "dumps 60 bytes of each file with inline data, whose sizes its own stat says to be less",
    ),
    (
        "/eltorito.iso",
        "disk",
        "7z",
        "reads the Joliet tree, where names end after 64 characters; xorriso and isoinfo agree with us",
    ),
    (
        "cdfs/rockridge.iso",
        "disk",
        "7z",
        "reads the Joliet tree, where names end after 64 characters; xorriso and isoinfo agree with us",
    ),
    (
        "iso_rockridge_ce.iso",
        "disk",
        "7z",
        "does not join names that go on in a continuation area; xorriso and isoinfo do",
    ),
    ("iso_zisofs.iso", "disk", "7z", "does not unpack zisofs; xorriso does, and the kernel"),
    ("iso_zisofs.iso", "disk", "tsk", "does not unpack zisofs; xorriso does, and the kernel"),
    (
        "iso_multi_extent.iso",
        "disk",
        "tsk",
        "reads the first extent of a file of several; xorriso and 7z read them all",
    ),
    ("cdfs/rockridge.iso", "disk", "isoinfo", "leaves relocated directories in rr_moved; xorriso puts them back"),
    ("cdfs/rockridge.iso", "disk", "tsk", "does not find the files of relocated directories; xorriso and 7z do"),
    (
        "cdfs/joliet.iso",
        "disk",
        "tsk",
        "lists nothing of a disc whose plain tree is empty; xorriso, isoinfo and 7z list two files",
    ),
];

/// Path by path: a directory, or the hash of a file's bytes or of a link's target.
type Found = BTreeMap<Vec<u8>, (Kind, String)>;

/// One volume, copied out.
struct Volume {
    image: String,
    name: String,
    format: &'static str,
    variant: String,
    ours: Found,
    /// Device nodes, pipes, sockets: no tool extracts them alike.
    special: Vec<Vec<u8>>,
    scratch: Scratch,
}

fn hexadecimal(hash: impl AsRef<[u8]>) -> String {
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn walk(fs: &dyn FileSystem, dir: NodeId, prefix: &[u8], found: &mut Found, special: &mut Vec<Vec<u8>>) {
    let mut rows = Vec::new();
    fs.read_dir(dir, 0, &mut |row| {
        rows.push((row.name.into_owned(), row.node, row.kind));
        true
    })
    .unwrap();
    for (name, node, kind) in rows {
        let path = [prefix, &name].concat();
        let what = match kind {
            Kind::Directory => {
                walk(fs, node, &[path.as_slice(), b"/"].concat(), found, special);
                String::new()
            }
            Kind::File => hash_node(fs, node),
            Kind::Symlink => hexadecimal(Sha256::digest(fs.read_link(node).unwrap())),
            _ => {
                special.push(path);
                continue;
            }
        };
        found.insert(path, (kind, what));
    }
}

/// The contents alone, whatever they are called.
fn contents(found: &Found) -> Found {
    let files = found.values().filter(|(kind, _)| *kind == Kind::File);
    files.map(|(kind, hash)| (hash.clone().into_bytes(), (*kind, "?".to_owned()))).collect()
}

fn hash_node(fs: &dyn FileSystem, node: NodeId) -> String {
    let (mut hash, mut buffer, mut offset) = (Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        let len = match fs.read(node, &mut buffer, offset) {
            Ok(len) => len,
            Err(error) => return format!("unreadable: {error}"),
        };
        if len == 0 {
            return hexadecimal(hash.finalize());
        }
        hash.update(&buffer[..len]);
        offset += len as u64;
    }
}

fn host(folder: &Path, prefix: &[u8], found: &mut Found) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let path = [prefix, entry.file_name().as_bytes()].concat();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            host(&entry.path(), &[path.as_slice(), b"/"].concat(), found);
            found.insert(path, (Kind::Directory, String::new()));
        } else if kind.is_symlink() {
            let target = std::fs::read_link(entry.path()).unwrap();
            found.insert(path, (Kind::Symlink, hexadecimal(Sha256::digest(target.as_os_str().as_bytes()))));
        } else if kind.is_file() {
            let hash = hexadecimal(Sha256::digest(std::fs::read(entry.path()).unwrap()));
            found.insert(path, (Kind::File, hash));
        }
    }
}

fn copy_out(device: &Device, to: &Path) {
    let file = File::create(to).unwrap();
    file.set_len(device.size()).unwrap();
    let (mut buffer, mut offset) = (vec![0; 1 << 20], 0);
    while offset < device.size() {
        let len = buffer.len().min((device.size() - offset) as usize);
        device.read_bulk_at(&mut buffer[..len], offset).unwrap();
        if buffer[..len].iter().any(|byte| *byte != 0) {
            file.write_all_at(&buffer[..len], offset).unwrap();
        }
        offset += len as u64;
    }
}

impl Volume {
    fn path(&self) -> PathBuf {
        self.scratch.path("volume")
    }

    /// A tool's way to put the whole tree into a folder.
    fn extracted(&self, package: &str, program: &str, args: &[&str]) -> Found {
        let out = self.scratch.path(program);
        std::fs::create_dir(&out).unwrap();
        let (volume, folder) = (self.path(), out.clone());
        let args: Vec<String> = args
            .iter()
            .map(|word| word.replace("VOLUME", volume.to_str().unwrap()).replace("OUT", folder.to_str().unwrap()))
            .collect();
        // What it says of single files shows in what it leaves out.
        let (code, said) = try_tool(package, program, &args.iter().map(String::as_str).collect::<Vec<_>>());
        let mut found = Found::new();
        host(&out, b"", &mut found);
        assert!(code.is_some(), "{program} {args:?}: {said}");
        // Some tools take the rights of directories over.
        let _ = Command::new("chmod").args(["-R", "u+rwx"]).arg(&out).status();
        std::fs::remove_dir_all(&out).unwrap();
        found
    }

    fn sleuth_kit(&self, kind: &str) -> Found {
        let path = self.path();
        let (_, listing) = try_tool("sleuthkit", "fls", &["-r", "-p", "-u", "-f", kind, path.to_str().unwrap()]);
        let mut found = Found::new();
        let mut files = 0;
        for line in listing.lines() {
            let Some((head, name)) = line.split_once(":\t") else { continue };
            // `r/r 12`: what the name says, what the inode says; `v` and `V` are its own inventions.
            let (kind, number) = head.split_once(' ').unwrap();
            let kind = match kind.split('/').next_back() {
                Some("d") => Kind::Directory,
                Some("r") => Kind::File,
                Some("l") => Kind::Symlink,
                _ => continue,
            };
            if name.ends_with(" (Volume Label Entry)") || name.split('/').any(|part| matches!(part, "." | "..")) {
                continue;
            }
            let mut hash = String::new();
            if kind == Kind::File {
                files += 1;
                if files > MOST_FILES {
                    hash = "?".to_owned();
                } else {
                    let output = Command::new("icat").args(["-f", self.tsk_name()]).arg(&path).arg(number).output();
                    hash = hexadecimal(Sha256::digest(output.unwrap().stdout));
                }
            }
            found.insert(name.as_bytes().to_vec(), (kind, hash));
        }
        found
    }

    fn tsk_name(&self) -> &'static str {
        match self.format {
            "fat" => "fat",
            "iso9660" => "iso9660",
            _ => "ext",
        }
    }

    /// The names alone, as isoinfo lists them in the tree that we chose; it has no UTF-8.
    fn isoinfo(&self) -> Found {
        let tree = match self.variant.as_str() {
            variant if variant.contains("Rock Ridge") => "-R",
            variant if variant.contains("Joliet") => "-J",
            _ => "-f",
        };
        let (_, listing) = try_tool("genisoimage", "isoinfo", &["-f", tree, "-i", self.path().to_str().unwrap()]);
        let mut found = Found::new();
        for line in listing.lines().filter_map(|line| line.strip_prefix('/')) {
            let name = line.strip_suffix(";1").unwrap_or(line);
            let name = if tree == "-f" { name.strip_suffix('.').unwrap_or(name) } else { name };
            found.insert(name.as_bytes().to_vec(), (Kind::Fifo, "?".to_owned()));
        }
        found
    }

    /// What differs between our tree and another's; `kinds` are those that the other tool knows.
    fn differences(&self, theirs: &Found, kinds: &[Kind]) -> Vec<String> {
        self.differences_of(&self.ours, theirs, kinds)
    }

    fn differences_of(&self, ours: &Found, theirs: &Found, kinds: &[Kind]) -> Vec<String> {
        let all_ours = ours;
        let ours = ours.iter().filter(|(_, (kind, _))| kinds.contains(kind));
        let mut all = Vec::new();
        for (path, (kind, hash)) in ours {
            match theirs.get(path) {
                None => all.push(format!("{:?} is not there", String::from_utf8_lossy(path))),
                Some((_, their)) if their == "?" => {}
                Some((other, their)) if other != kind || (their != hash && *kind != Kind::Symlink) => {
                    all.push(format!("{:?}: {other:?} {their}, not {kind:?} {hash}", String::from_utf8_lossy(path)));
                }
                Some(_) => {}
            }
        }
        for (path, (kind, _)) in theirs {
            let known = all_ours.contains_key(path) || self.special.contains(path);
            if (kinds.contains(kind) || *kind == Kind::Fifo) && !known {
                all.push(format!("{:?} ({kind:?}) is only there", String::from_utf8_lossy(path)));
            }
        }
        all
    }

    /// Compares with all tools of the family.
    fn compare(&self, report: &mut Report) {
        const ALL: &[Kind] = &[Kind::Directory, Kind::File, Kind::Symlink];
        const PLAIN: &[Kind] = &[Kind::Directory, Kind::File];
        match self.format {
            "fat" => {
                let mtools = self.extracted("mtools", "mcopy", &["-Q", "-n", "-s", "-i", "VOLUME", "::", "OUT"]);
                report.add(self, "mtools", self.differences(&mtools, PLAIN));
                let seven = self.extracted("p7zip-full", "7z", &["x", "-y", "-tFAT", "VOLUME", "-oOUT"]);
                report.add(self, "7z", self.differences(&seven, PLAIN));
                report.add(self, "tsk", self.differences(&self.sleuth_kit("fat"), PLAIN));
            }
            "iso9660" => {
                let words = ["-osirrox", "on", "-indev", "VOLUME", "-extract", "/", "OUT"];
                let xorriso = self.extracted("xorriso", "xorriso", &words);
                report.add(self, "xorriso", self.differences(&xorriso, ALL));
                let mut seven = self.extracted("p7zip-full", "7z", &["x", "-y", "-tISO", "VOLUME", "-oOUT"]);
                // Its place for boot images.
                seven.retain(|path, _| !path.starts_with(b"[BOOT]"));
                report.add(self, "7z", self.differences(&seven, PLAIN));
                let (ascii, others): (Found, Found) =
                    self.ours.clone().into_iter().partition(|(path, _)| path.is_ascii());
                // Of what is not ASCII it makes other bytes, or underscores.
                let masked = |path: &Vec<u8>| {
                    let text = String::from_utf8_lossy(path);
                    text.chars().map(|c| if c.is_ascii() { c } else { '_' }).collect::<String>().into_bytes()
                };
                let masked: Vec<Vec<u8>> = others.keys().map(masked).collect();
                let mut theirs = self.isoinfo();
                theirs.retain(|path, _| path.is_ascii() && !masked.contains(path));
                report.add(self, "isoinfo", self.differences_of(&ascii, &theirs, ALL));
                // It knows no Rock Ridge on some discs; the files are the same ones.
                let (mut ours, mut theirs) = (contents(&self.ours), contents(&self.sleuth_kit("iso9660")));
                // Then a link is an empty file to it.
                if self.ours.values().any(|(kind, _)| *kind == Kind::Symlink) {
                    let empty = hexadecimal(Sha256::digest(b""));
                    ours.remove(empty.as_bytes());
                    theirs.remove(empty.as_bytes());
                }
                report.add(self, "tsk", self.differences_of(&ours, &theirs, PLAIN));
            }
            _ => {
                let debugfs = self.extracted("e2fsprogs", "debugfs", &["-R", "rdump / OUT", "VOLUME"]);
                report.add(self, "debugfs", self.differences(&debugfs, ALL));
                report.add(self, "tsk", self.differences(&self.sleuth_kit("ext"), PLAIN));
            }
        }
    }
}

/// What was compared, and what differs.
#[derive(Default)]
struct Report {
    compared: BTreeMap<(&'static str, &'static str), u32>,
    wrong: Vec<String>,
    problems: Vec<String>,
}

impl Report {
    fn add(&mut self, volume: &Volume, tool: &'static str, differences: Vec<String>) {
        *self.compared.entry((volume.format, tool)).or_default() += 1;
        if differences.is_empty() {
            return;
        }
        let known = WRONG
            .iter()
            .find(|(image, name, wrong, _)| volume.image.ends_with(image) && *name == volume.name && *wrong == tool);
        let head = format!("{} {} ({}), {tool}", volume.image, volume.name, volume.variant);
        match known {
            Some((_, _, _, proof)) => self.wrong.push(format!("{head}: {proof}")),
            None => {
                let shown = differences.iter().take(5).map(|line| format!("\n    {line}")).collect::<String>();
                self.problems.push(format!("{head}: {} differences{shown}", differences.len()));
            }
        }
    }

    fn image(&mut self, path: &Path, format: &str) {
        let options = Options {
            // The tools replay no journal.
            filesystem: imgfs::filesystem::Options { norecovery: true, ..Default::default() },
            ..Options::default()
        };
        let Ok(image) = Image::open(path, &options) else { return };
        for part in &image.parts {
            let Tree::Open { format: found, tree, summary } = &part.tree else { continue };
            let name = format!("{} {}", path.display(), part.name);
            if *found != format || part.what.is_some() {
                continue;
            }
            if part.device.size() > LARGEST {
                println!("{name}: {} bytes, too large to be copied", part.device.size());
                continue;
            }
            let scratch = Scratch::new();
            copy_out(&part.device, &scratch.path("volume"));
            let (mut ours, mut special) = (Found::new(), Vec::new());
            walk(tree.as_ref(), tree.root(), b"", &mut ours, &mut special);
            let volume = Volume {
                image: path.display().to_string(),
                name: part.name.clone(),
                format: found,
                variant: summary.variant.clone(),
                ours,
                special,
                scratch,
            };
            volume.compare(self);
        }
    }

    fn end(self) {
        for ((format, tool), count) in &self.compared {
            println!("{format} against {tool}: {count} volumes");
        }
        for line in &self.wrong {
            println!("the tool is wrong: {line}");
        }
        assert!(self.problems.is_empty(), "{}", self.problems.join("\n"));
    }
}

/// The images of a family: ours, and those of others, the damaged ones left out.
fn compare(format: &'static str, folder: &str, loose: &[&str]) {
    let mut report = Report::default();
    let scratch = Scratch::new();
    let ours = project().join("testimages").join(folder);
    let names = std::fs::read_dir(&ours).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names = names.filter_map(|name| Some(format!("{folder}/{}", name.strip_suffix(".zst")?)));
    for name in names.chain(loose.iter().map(|name| (*name).to_owned())) {
        report.image(&testimage(&name, &scratch.path("")), format);
    }
    match std::env::var_os("IMGFS_CORPUS") {
        None => println!("NOT CHECKED: IMGFS_CORPUS names no folder of images with truths"),
        Some(folder) => corpus(Path::new(&folder), &mut |image| report.image(image, format)),
    }
    report.end();
}

fn corpus(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            corpus(&path, visit);
        } else if let Some(image) = path.to_str().and_then(|path| path.strip_suffix(".truth.tsv"))
            && !String::from_utf8_lossy(&std::fs::read(&path).unwrap()).contains("ADVISORY")
        {
            visit(Path::new(image));
        }
    }
}

#[test]
fn fat_reads_as_mtools_7z_and_the_sleuth_kit_read_it() {
    compare("fat", "filesystem/fat", &["demo.img"]);
}

#[test]
fn iso9660_reads_as_xorriso_isoinfo_7z_and_the_sleuth_kit_read_it() {
    compare("iso9660", "filesystem/iso9660", &[]);
}

#[test]
fn ext_reads_as_debugfs_and_the_sleuth_kit_read_it() {
    compare("ext", "filesystem/ext", &["demo.img"]);
}

/// An interrupted download: what it shows is what the whole image has, or an error; nothing is shown
/// as empty, and nothing is left out without one.
#[test]
fn a_cut_image_shows_the_same_or_an_error() {
    let scratch = Scratch::new();
    let (mut compared, mut errors) = (0, 0);
    for format in ["fat", "iso9660", "ext"] {
        let folder = project().join("testimages/filesystem").join(format);
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let Some(name) = name.strip_suffix(".zst") else { continue };
            let path = testimage(&format!("filesystem/{format}/{name}"), &scratch.path(""));
            let bytes = std::fs::read(&path).unwrap();
            let whole = readable(&bytes, &scratch.path("cut")).expect(name).0;
            for percent in [2, 5, 11, 25, 50, 80, 97] {
                let len = bytes.len() * percent / 100;
                let Some((cut, failed)) = readable(&bytes[..len], &scratch.path("cut")) else { continue };
                for (path, what) in &cut {
                    assert!(whole.get(path) == Some(what), "{name}, {percent} %: {}", String::from_utf8_lossy(path));
                }
                assert!(cut.len() == whole.len() || failed > 0, "{name}, {percent} %: rows are missing");
                compared += cut.len();
                errors += failed;
            }
        }
    }
    println!("{compared} nodes are the same, {errors} are errors");
    assert!(compared > 1000 && errors > 100);
}

/// What can be read, and how many nodes cannot; `None` when no tree opens.
fn readable(bytes: &[u8], path: &Path) -> Option<(Found, usize)> {
    fn walk(fs: &dyn FileSystem, dir: NodeId, prefix: &[u8], found: &mut Found, failed: &mut usize) {
        let mut rows = Vec::new();
        let listed = fs.read_dir(dir, 0, &mut |row| {
            rows.push((row.name.into_owned(), row.node, row.kind));
            true
        });
        *failed += usize::from(listed.is_err());
        for (name, node, kind) in rows {
            let path = [prefix, &name].concat();
            let what = match kind {
                Kind::Directory => {
                    walk(fs, node, &[path.as_slice(), b"/"].concat(), found, failed);
                    Ok(String::new())
                }
                Kind::Symlink => fs.read_link(node).map(|target| hexadecimal(Sha256::digest(target))),
                Kind::File => Ok(hash_node(fs, node)),
                _ => fs.attributes(node).map(|attributes| format!("{:?}", attributes.device)),
            };
            match what {
                Ok(what) if !what.starts_with("unreadable") => drop(found.insert(path, (kind, what))),
                _ => *failed += 1,
            }
        }
    }
    std::fs::write(path, bytes).unwrap();
    let image = Image::open(path, &Options::default()).ok()?;
    let part = image.parts.iter().find(|part| part.what.is_none())?;
    let Tree::Open { tree, .. } = &part.tree else { return None };
    let (mut found, mut failed) = (Found::new(), 0);
    walk(tree.as_ref(), tree.root(), b"", &mut found, &mut failed);
    Some((found, failed))
}
