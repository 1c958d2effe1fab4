//! ISO 9660: images made by genisoimage and xorriso, compared with what bsdtar, xorriso, isoinfo,
//! 7z and blkid read; hostile ones made from them by changing bytes.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use imgfs::device::file::HostFile;
use imgfs::device::memory::Memory;
use imgfs::device::{BlockDevice, Device, check_range};
use imgfs::error::{Error, Result};
use imgfs::filesystem::{self, FileSystem, Kind, NodeId, Options};
use sha2::{Digest, Sha256};

const SECTOR: usize = 2048;
/// Seconds since 1970 of all files of the source tree: 1997-08-29.
const THEN: u64 = 872_835_240;

/// A folder that is gone after the test.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("imgfs-disc-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a shell script in a folder; its standard output. `package` is what has the tool.
pub(crate) fn run(folder: &Folder, package: &str, script: &str) -> Vec<u8> {
    let mut shell = Command::new("sh");
    shell.arg("-ec").arg(script).current_dir(&folder.0).env("TZ", "UTC").env("LC_ALL", "C.UTF-8");
    let path = std::env::var("PATH").unwrap_or_default();
    let output = shell.env("PATH", format!("{path}:/sbin:/usr/sbin")).output().expect("sh");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("not found"), "a tool is missing: install the Debian package {package}: {errors}");
    assert!(output.status.success(), "{script}: {errors}");
    output.stdout
}

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Opens an image, gives it to `check`, and makes sure that no byte of it was changed.
fn with_image<T>(image: &Path, options: &Options, check: impl FnOnce(&dyn FileSystem) -> T) -> T {
    let before = sha(&fs::read(image).unwrap());
    let device: Device = Arc::new(HostFile::open(image).unwrap());
    let (name, tree) = filesystem::open(&device, options).unwrap().expect("a known format");
    assert_eq!(name, "iso9660");
    let result = check(tree.as_ref());
    assert_eq!(before, sha(&fs::read(image).unwrap()), "the image was changed");
    result
}

fn open_bytes(bytes: &[u8]) -> Arc<dyn FileSystem> {
    try_open(bytes).unwrap()
}

fn try_open(bytes: &[u8]) -> Result<Arc<dyn FileSystem>> {
    let device: Device = Arc::new(Memory::new(bytes.to_vec(), 2048));
    filesystem::open(&device, &Options::default()).map(|found| found.expect("a known format").1)
}

/// What is compared of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    kind: Kind,
    size: u64,
    /// SHA-256 of contents or of a link's target.
    hash: String,
    mode: Option<u16>,
    owner: Option<(u32, u32)>,
    modified: Option<i64>,
    device: Option<(u32, u32)>,
}

type Tree = BTreeMap<Vec<u8>, Seen>;

fn rows(tree: &dyn FileSystem, dir: NodeId) -> Result<Vec<(NodeId, Vec<u8>, Kind)>> {
    let mut rows = Vec::new();
    tree.read_dir(dir, 0, &mut |entry| {
        rows.push((entry.node, entry.name.to_vec(), entry.kind));
        true
    })?;
    Ok(rows)
}

fn contents(tree: &dyn FileSystem, file: NodeId) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut buf = vec![0; 100_000];
    loop {
        match tree.read(file, &mut buf, all.len() as u64)? {
            0 => return Ok(all),
            count => all.extend_from_slice(&buf[..count]),
        }
    }
}

fn seen(tree: &dyn FileSystem, node: NodeId) -> Seen {
    let attributes = tree.attributes(node).unwrap();
    let hash = match attributes.kind {
        Kind::File => {
            let bytes = contents(tree, node).unwrap();
            assert_eq!(bytes.len() as u64, attributes.size);
            sha(&bytes)
        }
        Kind::Symlink => sha(&tree.read_link(node).unwrap()),
        _ => String::new(),
    };
    let owner = attributes.uid.zip(attributes.gid);
    let modified = attributes.modified.map(|time| time.seconds);
    let size = if attributes.kind == Kind::Directory { 0 } else { attributes.size };
    Seen { kind: attributes.kind, size, hash, mode: attributes.mode, owner, modified, device: attributes.device }
}

/// All of a tree by path. Every name is also looked up, and every directory read from every cursor.
fn walk(tree: &dyn FileSystem) -> Tree {
    let mut all = Tree::new();
    let mut queue = vec![(tree.root(), Vec::new())];
    while let Some((dir, path)) = queue.pop() {
        for (node, name, kind) in rows(tree, dir).unwrap() {
            assert_eq!(tree.lookup(dir, &name).unwrap(), Some(node), "{}", name.escape_ascii());
            let mut path: Vec<u8> = path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let seen = seen(tree, node);
            assert_eq!(seen.kind, kind, "{}", path.escape_ascii());
            if kind == Kind::Directory {
                queue.push((node, path.clone()));
            }
            assert!(all.insert(path, seen).is_none(), "a name twice");
        }
    }
    all
}

fn child(tree: &dyn FileSystem, path: &str) -> NodeId {
    let step = |dir, name: &str| tree.lookup(dir, name.as_bytes()).unwrap().unwrap_or_else(|| panic!("no {name}"));
    path.split('/').fold(tree.root(), step)
}

/// A tree of files of every kind that both writers take.
fn source(folder: &Folder) -> PathBuf {
    let root = folder.join("source");
    let script = r#"
        mkdir -p source/1/2/3/4/5/6/7/8/9/10 source/many source/empty
        printf deep > source/1/2/3/4/5/6/7/8/9/10/deep.txt
        printf x > 'source/semi;colon;1'; printf y > 'source/two words'; printf z > source/trailing.
        printf u > source/grün; head -c 100000 /dev/zero | tr '\0' a > source/letters
        : > source/nothing; seq 1 20000 > source/numbers.txt
        printf l > source/$(printf '%0200d' 7); ln source/letters source/another
        ln -s ../a/./b/../c source/link; ln -s / source/top; ln -s /usr/bin source/absolute
        ln -s $(seq -s / 1000 1040) source/longlink
        for i in $(seq 1 300); do echo $i > source/many/file-with-a-longer-name-$i; done
        mknod source/null c 1 3; mknod source/disk b 8 17; mkfifo source/pipe
        chmod 4755 source/letters; chmod 600 source/numbers.txt; chmod 1777 source/many
        chown 1000:100 source/numbers.txt source/many
        find source -exec touch -h -d @THEN {} +
    "#;
    run(folder, "coreutils", &script.replace("THEN", &THEN.to_string()));
    root
}

/// What lies in a folder of the host.
fn host_tree(root: &Path) -> Tree {
    let mut all = Tree::new();
    let mut queue = vec![root.to_path_buf()];
    while let Some(dir) = queue.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let file_type = metadata.file_type();
            let (kind, hash, size) = if file_type.is_dir() {
                queue.push(path.clone());
                (Kind::Directory, String::new(), 0)
            } else if file_type.is_symlink() {
                let target = fs::read_link(&path).unwrap().into_os_string().into_vec();
                (Kind::Symlink, sha(&target), target.len() as u64)
            } else if file_type.is_file() {
                (Kind::File, sha(&fs::read(&path).unwrap()), metadata.len())
            } else if file_type.is_fifo() {
                (Kind::Fifo, String::new(), 0)
            } else if file_type.is_block_device() {
                (Kind::BlockDevice, String::new(), 0)
            } else {
                (Kind::CharDevice, String::new(), 0)
            };
            let is_device = matches!(kind, Kind::BlockDevice | Kind::CharDevice);
            let number = metadata.rdev();
            let seen = Seen {
                kind,
                size,
                hash,
                mode: Some((metadata.permissions().mode() & 0o7777) as u16),
                owner: Some((metadata.uid(), metadata.gid())),
                modified: Some(metadata.mtime()),
                device: is_device.then_some(((number >> 8 & 0xfff) as u32, (number & 0xff) as u32)),
            };
            all.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), seen);
        }
    }
    all
}

#[track_caller]
fn assert_same(ours: &Tree, theirs: &Tree) {
    for (path, theirs) in theirs {
        assert_eq!(ours.get(path), Some(theirs), "{}", path.escape_ascii());
    }
    for path in ours.keys() {
        assert!(theirs.contains_key(path), "not there: {}", path.escape_ascii());
    }
}

/// bsdtar's view of an image, with what its mtree form keeps.
fn bsdtar_tree(folder: &Folder, image: &str) -> Tree {
    let script = format!(
        "bsdtar --format=mtree --options='mtree:!all,sha256,mode,uid,gid,time,size,type,link,nlink' -cf - @{image}"
    );
    let listing = String::from_utf8(run(folder, "libarchive-tools", &script)).unwrap();
    let mut all = Tree::new();
    for line in listing.lines().filter(|line| line.starts_with("./")) {
        let mut words = line.split(' ');
        let path = unescape(&words.next().unwrap()[2..]);
        let fields: BTreeMap<&str, &str> = words.filter_map(|word| word.split_once('=')).collect();
        let number = |key: &str| fields.get(key).and_then(|text| text.parse::<u64>().ok());
        let kind = match fields["type"] {
            "dir" => Kind::Directory,
            "file" => Kind::File,
            "link" => Kind::Symlink,
            "char" => Kind::CharDevice,
            "block" => Kind::BlockDevice,
            "fifo" => Kind::Fifo,
            other => panic!("{other}"),
        };
        let target = fields.get("link").map(|text| unescape(text)).unwrap_or_default();
        let (hash, size) = match kind {
            Kind::File => (fields["sha256digest"].to_owned(), number("size").unwrap()),
            Kind::Symlink => (sha(&target), target.len() as u64),
            _ => (String::new(), 0),
        };
        let owner = number("uid").zip(number("gid")).map(|(uid, gid)| (uid as u32, gid as u32));
        let mode = u16::from_str_radix(fields["mode"], 8).ok();
        let modified = fields["time"].split('.').next().and_then(|text| text.parse().ok());
        all.insert(path, Seen { kind, size, hash, mode, owner, modified, device: None });
    }
    all
}

fn is_special(kind: Kind) -> bool {
    matches!(kind, Kind::BlockDevice | Kind::CharDevice | Kind::Fifo | Kind::Socket)
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'\\' {
            let digits: String = bytes.by_ref().take(3).map(char::from).collect();
            out.push(u8::from_str_radix(&digits, 8).unwrap());
        } else {
            out.push(byte);
        }
    }
    out
}

/// Names, kinds and contents alone: what plain and Joliet trees have.
fn bare(tree: &Tree) -> BTreeMap<Vec<u8>, (Kind, u64, String)> {
    tree.iter().map(|(path, seen)| (path.clone(), (seen.kind, seen.size, seen.hash.clone()))).collect()
}

// ---- Rock Ridge, Joliet, level 4, plain: the trees of two writers in the eyes of four readers ----

fn rock_ridge_is_read_back(package: &str, command: &str) {
    let folder = Folder::new();
    let root = source(&folder);
    run(&folder, package, &format!("{command} -o image.iso source"));
    let ours = with_image(&folder.join("image.iso"), &Options::default(), walk);
    assert!(ours.len() > 320);
    assert_same(&ours, &host_tree(&root));
    // And as another reader extracts it.
    run(&folder, "xorriso", "xorriso -osirrox on:o_excl_off -indev image.iso -extract / out >&2; chmod u+rwx out");
    let mut out = host_tree(&folder.join("out"));
    out.remove(&b"rr_moved"[..]);
    // xorriso leaves the times of links to the host.
    out.iter_mut()
        .filter(|(_, seen)| seen.kind == Kind::Symlink)
        .for_each(|(path, seen)| seen.modified = ours[path].modified);
    out.retain(|_, seen| !is_special(seen.kind));
    let mut ours = ours;
    ours.retain(|_, seen| !is_special(seen.kind));
    assert_same(&ours, &out);
    // bsdtar takes whatever has no bytes of its own for links of each other, and drops the slash
    // where genisoimage starts a new field within a target.
    let mut bsdtar = bsdtar_tree(&folder, "image.iso");
    for tree in [&mut bsdtar, &mut ours] {
        tree.retain(|path, seen| {
            !matches!(path.as_slice(), b"another" | b"letters" | b"longlink") && !is_special(seen.kind)
        });
    }
    assert_same(&ours, &bsdtar);
}

#[test]
fn rock_ridge_of_genisoimage_reads_as_what_was_put_into_it() {
    rock_ridge_is_read_back("genisoimage", "genisoimage -quiet -R");
}

#[test]
fn rock_ridge_of_genisoimage_with_joliet_and_relocated_directories() {
    rock_ridge_is_read_back("genisoimage", "genisoimage -quiet -R -J -joliet-long -iso-level 4 -hide-rr-moved");
}

#[test]
fn rock_ridge_of_xorriso_reads_as_what_was_put_into_it() {
    rock_ridge_is_read_back("xorriso", "xorriso -as mkisofs -R -J -joliet-long");
}

#[test]
fn rock_ridge_1_12_of_xorriso_with_md5_and_relocation() {
    let options = "xorriso -rr_reloc_dir rr_moved -compliance deep_paths_off:rec_mtime:new_rr -md5 all -as mkisofs";
    rock_ridge_is_read_back("xorriso", &format!("{options} --old-exclude x -R"));
}

#[test]
fn joliet_and_plain_names_are_those_of_bsdtar() {
    let folder = Folder::new();
    source(&folder);
    run(
        &folder,
        "coreutils",
        "rm -r source/null source/disk source/pipe source/*link source/top source/absolute source/1",
    );
    run(&folder, "genisoimage", "genisoimage -quiet -J -joliet-long -o image.iso source 2>&1");
    run(&folder, "genisoimage", "genisoimage -quiet -R -J -joliet-long -o both.iso source 2>&1");
    let bsdtar = |options: &str, name: &str| {
        let script = format!("mkdir {name}; bsdtar -xf image.iso {options} -C {name}; chmod -R u+rwx {name}");
        run(&folder, "libarchive-tools", &script);
        bare(&host_tree(&folder.join(name)))
    };
    let image = folder.join("image.iso");
    let joliet = with_image(&image, &Options::default(), walk);
    assert!(joliet.contains_key("gr\u{fc}n".as_bytes()));
    assert_eq!(bare(&joliet), bsdtar("", "joliet"));
    let without = with_image(&folder.join("both.iso"), &Options { norock: true, ..Options::default() }, walk);
    assert_eq!(bare(&without), bare(&joliet));
    let plain = with_image(&image, &Options { norock: true, nojoliet: true, ..Options::default() }, walk);
    assert_eq!(bare(&plain), bsdtar("--options 'iso9660:!joliet'", "plain"));
    // isoinfo names every entry; versions and final dots are left out by us.
    let listing = run(&folder, "genisoimage", "isoinfo -f -i image.iso");
    let names: HashSet<Vec<u8>> = listing
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            let line = line.strip_suffix(b";1").unwrap_or(line);
            line.strip_suffix(b".").unwrap_or(line)[1..].to_vec()
        })
        .collect();
    assert_eq!(plain.keys().cloned().collect::<HashSet<_>>(), names);
}

#[test]
fn level_4_names_are_read_and_come_after_joliet() {
    let folder = Folder::new();
    source(&folder);
    run(
        &folder,
        "genisoimage",
        "rm -r source/null source/disk source/pipe source/*link source/top source/absolute source/1",
    );
    run(
        &folder,
        "genisoimage",
        "genisoimage -quiet -iso-level 4 -o four.iso source; genisoimage -quiet -iso-level 4 -J -o both.iso source",
    );
    let four = with_image(&folder.join("four.iso"), &Options::default(), |tree| {
        assert_eq!(tree.summary().variant, "ISO 9660 (level 4)");
        walk(tree)
    });
    assert!(four.contains_key(&b"many/file-with-a-longer-name-300"[..]));
    let listing = run(&folder, "p7zip-full", "7z l -slt -ba four.iso | sed -n 's/^Path = //p'");
    let theirs: HashSet<&[u8]> = listing.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    for path in four.keys().filter(|path| path.starts_with(b"many")) {
        assert!(theirs.contains(path.as_slice()), "{}", path.escape_ascii());
    }
    with_image(&folder.join("both.iso"), &Options::default(), |tree| {
        assert_eq!(tree.summary().variant, "ISO 9660 (Joliet)");
    });
    let options = Options { nojoliet: true, ..Options::default() };
    with_image(&folder.join("both.iso"), &options, |tree| assert_eq!(tree.summary().variant, "ISO 9660 (level 4)"));
}

#[test]
fn label_and_uuid_are_those_of_blkid() {
    let folder = Folder::new();
    run(&folder, "genisoimage", "mkdir source; echo a > source/a");
    for options in ["-V PLAIN", "-J -V Long_Label_with_31_characters_ab", "-R -V 'with blanks'"] {
        run(&folder, "genisoimage", &format!("genisoimage -quiet {options} -o image.iso source"));
        let blkid = |key: &str| {
            let script = format!("PATH=$PATH:/sbin:/usr/sbin; blkid -p -o value -s {key} image.iso");
            String::from_utf8(run(&folder, "util-linux", &script)).unwrap().trim_end_matches('\n').to_owned()
        };
        with_image(&folder.join("image.iso"), &Options::default(), |tree| {
            assert_eq!(tree.summary().label, Some(blkid("LABEL")));
            assert_eq!(tree.summary().uuid, Some(blkid("UUID")));
        });
    }
}

#[test]
fn attributes_of_files_are_those_that_xorriso_recorded() {
    let folder = Folder::new();
    run(&folder, "xorriso", "mkdir source; echo a > source/a");
    let script = "xorriso -xattr on -outdev image.iso -map source / -setfattr user.colour green /a -- \
                  -setfattr user.empty '' /a -- -commit >&2";
    run(&folder, "xorriso", script);
    with_image(&folder.join("image.iso"), &Options::default(), |tree| {
        let node = child(tree, "a");
        assert_eq!(tree.xattr(node, b"user.colour").unwrap(), b"green");
        assert_eq!(tree.xattrs(node).unwrap().len(), 2);
        assert!(matches!(tree.xattr(node, b"user.none"), Err(Error::NoAttribute)));
    });
}

// ---- zisofs ----

#[test]
fn zisofs_shows_the_size_and_the_bytes_of_the_file_before_it_was_packed() {
    let folder = Folder::new();
    let script = "mkdir source; seq 1 200000 > source/seq; head -c 1000000 /dev/zero > source/zeros; \
                  (cat source/seq source/zeros; printf end) > source/mixed; printf small > source/small";
    run(&folder, "coreutils", script);
    let xorriso = |zisofs: &str, name: &str| {
        let script =
            format!("xorriso -zisofs {zisofs} -outdev {name} -map source / -set_filter_r --zisofs / -- -commit >&2");
        run(&folder, "xorriso", &script);
    };
    xorriso("version_2=off", "v1.iso");
    xorriso("version_2=on:block_size_v2=256k", "v2.iso");
    xorriso("version_2=on:susp_z2=on", "z2.iso");
    run(&folder, "genisoimage", "mkzftree source packed; genisoimage -quiet -R -z -o g.iso packed");
    let host = bare(&host_tree(&folder.join("source")));
    for (image, magic) in [("v1.iso", b"ZFpz"), ("v2.iso", b"ZFPZ"), ("z2.iso", b"Z2PZ"), ("g.iso", b"ZFpz")] {
        let bytes = fs::read(folder.join(image)).unwrap();
        assert!(bytes.windows(6).any(|w| w[..2] == magic[..2] && w[4..] == magic[2..]), "{image}");
        with_image(&folder.join(image), &Options::default(), |tree| {
            assert_eq!(bare(&walk(tree)), host, "{image}");
            let zeros = child(tree, "zeros");
            let extent = tree.extent(zeros, 0).unwrap();
            assert!(!extent.stored && extent.len == 1_000_000, "{image}: {extent:?}");
            assert!(tree.extent(child(tree, "mixed"), 0).unwrap().stored);
            let mut buf = [1; 10];
            let mixed = child(tree, "mixed");
            let size = tree.attributes(mixed).unwrap().size;
            assert_eq!(tree.read(mixed, &mut buf, size - 5).unwrap(), 5);
            assert_eq!(&buf[..5], b"\0\0end");
        });
    }
}

#[test]
fn a_damaged_zisofs_block_is_an_error_and_the_other_blocks_are_read() {
    let folder = Folder::new();
    run(&folder, "coreutils", "mkdir source; seq 1 200000 > source/seq");
    run(&folder, "genisoimage", "mkzftree source packed; genisoimage -quiet -R -z -o g.iso packed");
    let mut bytes = fs::read(folder.join("g.iso")).unwrap();
    let at = find(&bytes, b"\x37\xe4\x53\x96\xc9\xdb\xd6\x07");
    let second = le32(&bytes, at + 20) as usize;
    bytes[at + second..][..40].fill(0xee);
    let tree = open_bytes(&bytes);
    let node = child(tree.as_ref(), "seq");
    let mut buf = [0; 100];
    assert_eq!(tree.read(node, &mut buf, 0).unwrap(), 100);
    assert!(matches!(tree.read(node, &mut buf, 40_000), Err(Error::Corrupt { .. })));
    assert_eq!(tree.read(node, &mut buf, 100_000).unwrap(), 100);
    // A file that is not what its field says.
    bytes[at] = 0;
    let tree = open_bytes(&bytes);
    assert!(matches!(tree.read(node, &mut buf, 0), Err(Error::Corrupt { .. })));
}

// ---- El Torito ----

#[test]
fn every_el_torito_entry_of_every_platform_has_its_true_size() {
    let folder = Folder::new();
    let script = r#"
        mkdir source; seq 1 30000 | head -c 100000 > source/plain.img; truncate -s 1474560 source/floppy.img
        truncate -s 5M source/hd.img; truncate -s 2949120 source/efi.img
        xorriso -as mkisofs -o image.iso -b plain.img -no-emul-boot -boot-load-size 4 -eltorito-alt-boot \
            -b floppy.img -eltorito-alt-boot -b hd.img -hard-disk-boot \
            -eltorito-alt-boot -e efi.img -no-emul-boot source
    "#;
    // One partition, from sector 8, 4,096 sectors long.
    run(&folder, "coreutils", "mkdir source 2>/dev/null; rmdir source");
    let script = script.replace("xorriso", "printf '\\000\\000\\000\\000\\014\\000\\000\\000\\010\\000\\000\\000\\000\\020\\000\\000' | dd of=source/hd.img bs=1 seek=446 conv=notrunc 2>/dev/null\n printf '\\125\\252' | dd of=source/hd.img bs=1 seek=510 conv=notrunc 2>/dev/null\n xorriso");
    run(&folder, "xorriso", &script);
    with_image(&folder.join("image.iso"), &Options::default(), |tree| {
        let images: Vec<_> = tree.embedded().into_iter().map(|image| (image.offset, image.len, image.what)).collect();
        let report =
            String::from_utf8(run(&folder, "xorriso", "xorriso -indev image.iso -report_el_torito plain 2>/dev/null"))
                .unwrap();
        let lbas: Vec<u64> = report
            .lines()
            .filter(|line| line.starts_with("El Torito boot img"))
            .map(|line| line.split_whitespace().last().unwrap().parse().unwrap())
            .collect();
        assert_eq!(images.iter().map(|image| image.0 / 2048).collect::<Vec<_>>(), lbas);
        let said: Vec<_> =
            images.iter().map(|image| (image.1, image.2.trim_start_matches("El Torito boot image for "))).collect();
        let want = [
            (100_000, "x86, no emulation"),
            (1_474_560, "x86, 1.44 MB floppy"),
            (4104 * 512, "x86, hard disk"),
            (2_949_120, "EFI, no emulation"),
        ];
        assert_eq!(said, want);
    });
}

#[test]
fn a_hidden_boot_image_has_the_length_that_its_boot_information_table_says() {
    let folder = Folder::new();
    run(&folder, "coreutils", "mkdir source; seq 1 30000 | head -c 100000 > source/plain.img");
    let options =
        "-b plain.img -no-emul-boot -boot-load-size 4 -boot-info-table -hide plain.img -hide boot.cat -c boot.cat";
    run(&folder, "genisoimage", &format!("genisoimage -quiet -o image.iso {options} source"));
    with_image(&folder.join("image.iso"), &Options::default(), |tree| {
        assert_eq!(rows(tree, tree.root()).unwrap(), []);
        assert_eq!(tree.embedded().iter().map(|image| image.len).collect::<Vec<_>>(), [100_000]);
    });
}

#[test]
fn a_directory_that_cannot_be_opened_does_not_hide_the_length_of_a_boot_image_in_another() {
    let folder = Folder::new();
    // Both lie too deep for ISO 9660 and are moved; their records lead to where.
    run(
        &folder,
        "coreutils",
        "mkdir -p source/a/b/c/d/e/f/g/h source/a/b/c/d/e/f/g/z; touch source/a/b/c/d/e/f/g/h/file",
    );
    let make = "seq 1 30000 | head -c 100000 > source/boot.img; ln source/boot.img source/a/b/c/d/e/f/g/z/plain.img
        genisoimage -quiet -R -cache-inodes -o image.iso -b boot.img -hide boot.img -no-emul-boot \
            -boot-load-size 4 -c boot.cat source";
    run(&folder, "genisoimage", make);
    let mut bytes = fs::read(folder.join("image.iso")).unwrap();
    assert_eq!(open_bytes(&bytes).embedded().iter().map(|image| image.len).collect::<Vec<_>>(), [100_000]);
    // The first of the two leads to where no directory is.
    let link = find(&bytes, b"CL\x0c\x01");
    bytes[link + 4..link + 12].fill(0);
    let tree = open_bytes(&bytes);
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    let parent = names.iter().fold(tree.root(), |dir, name| tree.lookup(dir, name.as_bytes()).unwrap().unwrap());
    let broken = tree.lookup(parent, b"h").unwrap().unwrap();
    assert!(matches!(tree.attributes(broken), Err(Error::Corrupt { .. })));
    assert_eq!(tree.embedded().iter().map(|image| image.len).collect::<Vec<_>>(), [100_000]);
}

#[test]
fn a_load_size_that_lies_beyond_the_image_is_cut_and_said() {
    let folder = Folder::new();
    run(&folder, "coreutils", "mkdir source; seq 1 30000 | head -c 100000 > source/plain.img");
    run(
        &folder,
        "genisoimage",
        "genisoimage -quiet -o image.iso -b plain.img -no-emul-boot -hide plain.img -c boot.cat source",
    );
    let mut bytes = fs::read(folder.join("image.iso")).unwrap();
    let catalog = le32(&bytes, find(&bytes, b"EL TORITO") - 7 + 0x47) as usize * SECTOR;
    bytes[catalog + 38..][..2].copy_from_slice(&0xffffu16.to_le_bytes());
    let tree = open_bytes(&bytes);
    let image = &tree.embedded()[0];
    assert_eq!(image.offset + image.len, bytes.len() as u64);
    assert!(tree.summary().notes.iter().any(|note| note.contains("of which the image holds")));
    // A catalogue that is none hides nothing else.
    bytes[catalog] = 7;
    let tree = open_bytes(&bytes);
    assert!(tree.embedded().is_empty() && !tree.summary().notes.is_empty());
    assert!(rows(tree.as_ref(), tree.root()).is_ok());
}

// ---- sessions ----

#[test]
fn the_last_session_of_a_grown_image_is_shown_and_others_on_demand() {
    let folder = Folder::new();
    let script = "mkdir a b c; echo 1 > a/one; echo 2 > b/two; echo 3 > c/three; echo changed > c/one
        for s in a b c; do xorriso -dev image.iso -update_r $s / -commit >&2; done";
    run(&folder, "xorriso", script);
    // -update_r removes what the folder does not have: each session is one of the folders.
    let image = folder.join("image.iso");
    let hosts: Vec<_> = ["a", "b", "c"].map(|name| bare(&host_tree(&folder.join(name)))).into();
    let show = |options: &Options| with_image(&image, options, |tree| bare(&walk(tree)));
    assert_eq!(show(&Options::default()), hosts[2]);
    for (session, host) in hosts.iter().enumerate() {
        assert_eq!(show(&Options { session: Some(session as u32), ..Options::default() }), *host);
    }
    assert_eq!(show(&Options { sbsector: Some(32), ..Options::default() }), hosts[0]);
    let device: Device = Arc::new(HostFile::open(&image).unwrap());
    let none = filesystem::open(&device, &Options { session: Some(3), ..Options::default() });
    assert!(matches!(none.err(), Some(Error::Unsupported { .. })));
}

#[test]
fn sessions_of_a_disc_and_a_session_image_with_addresses_of_the_disc() {
    let folder = Folder::new();
    let script = "mkdir a b; echo 1 > a/one; echo 2 > b/two
        genisoimage -quiet -R -J -o 1.iso a
        first=$(( $(stat -c %s 1.iso) / 2048 + 11400 ))
        genisoimage -quiet -R -J -C 0,$first -M 1.iso -o 2.iso b
        cp 1.iso disc.iso; truncate -s $((first * 2048)) disc.iso; cat 2.iso >> disc.iso";
    run(&folder, "genisoimage", script);
    let names = |image: &str, options: &Options| {
        with_image(&folder.join(image), options, |tree| walk(tree).into_keys().collect::<Vec<_>>())
    };
    assert_eq!(names("disc.iso", &Options::default()), [b"one", b"two"]);
    assert_eq!(names("disc.iso", &Options { session: Some(0), ..Options::default() }), [b"one"]);
    for options in [Options::default(), Options { norock: true, ..Options::default() }] {
        with_image(&folder.join("2.iso"), &options, |tree| {
            assert_eq!(contents(tree, child(tree, "two")).unwrap(), b"2\n");
            // The file of the first session has a name, and its bytes are on another image.
            let error = contents(tree, child(tree, "one")).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{error}");
            assert!(tree.summary().notes[0].contains("one session"));
        });
    }
}

#[test]
fn an_image_that_follows_another_is_no_session_of_it() {
    let folder = Folder::new();
    let script = "mkdir a b; echo 1 > a/one; echo 2 > b/two; genisoimage -quiet -R -o 1.iso a
        genisoimage -quiet -R -o 2.iso b; cat 1.iso 2.iso > image.iso";
    run(&folder, "genisoimage", script);
    with_image(&folder.join("image.iso"), &Options::default(), |tree| child(tree, "one"));
}

// ---- hostile and odd images, made by changing bytes ----

fn find(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|window| window == what).expect("these bytes")
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn set_both(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    bytes[at + 4..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// Byte of the record that has this name.
fn record(bytes: &[u8], name: &[u8]) -> usize {
    let mut from = 16 * SECTOR;
    loop {
        let at = from + find(&bytes[from..], name);
        let start = at - 33;
        if usize::from(bytes[at - 1]) == name.len() && usize::from(bytes[start]) >= 33 + name.len() {
            return start;
        }
        from = at + 1;
    }
}

fn root_directory(bytes: &[u8]) -> usize {
    le32(bytes, 16 * SECTOR + 158) as usize * SECTOR
}

/// A small image: `a`, `b`, `c`, `dir/inner`, and `link`.
fn small(options: &str) -> Vec<u8> {
    let folder = Folder::new();
    let script = "mkdir -p source/dir; printf aaaa > source/a; printf bbbb > source/b; seq 1 5000 > source/c
        printf inner > source/dir/inner; ln -s 0123456789012345678901234567890123456789 source/link
        find source -exec touch -h -d @872835240 {} +";
    run(&folder, "coreutils", script);
    run(&folder, "genisoimage", &format!("genisoimage -quiet {options} -o image.iso source 2>/dev/null"));
    fs::read(folder.join("image.iso")).unwrap()
}

/// Names that can be read, and whether the directory says that it is damaged.
fn names(tree: &dyn FileSystem, dir: NodeId) -> (Vec<String>, bool) {
    let mut names = Vec::new();
    let end = tree.read_dir(dir, 0, &mut |entry| {
        names.push(String::from_utf8_lossy(&entry.name).into_owned());
        true
    });
    (names, end.is_err())
}

#[test]
fn a_link_of_3000_bytes_over_several_continuation_areas() {
    let mut bytes = small("-R");
    let at = record(&bytes, b"LINK.;1");
    let field = at + find(&bytes[at..at + 255], b"SL");
    let len = usize::from(bytes[field + 2]);
    let target: Vec<Vec<u8>> = (0..30).map(|i| vec![b'a' + i % 26; 100]).collect();
    // Two areas of fifteen SL fields each; the first names the second.
    let block = (bytes.len() / SECTOR) as u32;
    let ce = |block: u32, len: u32| {
        let mut ce = vec![0; 28];
        ce[..4].copy_from_slice(b"CE\x1c\x01");
        set_both(&mut ce, 4, block);
        set_both(&mut ce, 12, 0);
        set_both(&mut ce, 20, len);
        ce
    };
    for half in 0..2 {
        let mut area = Vec::new();
        for (i, part) in target[half * 15..][..15].iter().enumerate() {
            let goes_on = u8::from(half == 0 || i < 14);
            area.extend_from_slice(&[b'S', b'L', 107, 1, goes_on, 0, 100]);
            area.extend_from_slice(part);
        }
        if half == 0 {
            area.extend(ce(block + 1, 15 * 107));
            assert_eq!(area.len(), 15 * 107 + 28);
        }
        area.resize(SECTOR, 0);
        bytes.extend(area);
    }
    bytes[field..field + len].fill(0);
    bytes[field..field + 28].copy_from_slice(&ce(block, 15 * 107 + 28));
    let want = target.join(&b'/');
    let tree = open_bytes(&bytes);
    let node = child(tree.as_ref(), "link");
    assert_eq!(want.len(), 3029);
    assert_eq!(tree.read_link(node).unwrap(), want);
    assert_eq!(tree.attributes(node).unwrap().size, 3029);

    // The second area names the first: a loop.
    let second = (block as usize + 1) * SECTOR;
    bytes[second + 15 * 107..][..28].copy_from_slice(&ce(block, 15 * 107 + 28));
    let first = block as usize * SECTOR + 15 * 107;
    let longer = ce(block + 1, 15 * 107 + 28);
    bytes[first..first + 28].copy_from_slice(&longer);
    let tree = open_bytes(&bytes);
    assert!(matches!(tree.read_link(node), Err(Error::Corrupt { .. })));
    assert_eq!(names(tree.as_ref(), tree.root()), (["a", "b", "c", "dir", "link"].map(String::from).into(), false));
}

#[test]
fn a_long_link_whose_field_length_wrapped_around_is_read_whole() {
    let folder = Folder::new();
    // genisoimage never ends with some lengths between these.
    let script = "mkdir source; for n in 1040 1050 1180; do ln -s $(seq -s / 1000 $n) source/$n; done";
    run(&folder, "coreutils", script);
    run(&folder, "genisoimage", "genisoimage -quiet -R -o image.iso source");
    let ours = with_image(&folder.join("image.iso"), &Options::default(), walk);
    for (path, host) in host_tree(&folder.join("source")) {
        assert_eq!((ours[&path].size, &ours[&path].hash), (host.size, &host.hash), "{}", path.escape_ascii());
    }
}

/// Two hundred files, one of whose records has a name that is too long.
fn with_a_damaged_record() -> Arc<dyn FileSystem> {
    let folder = Folder::new();
    run(&folder, "coreutils", "mkdir source; for i in $(seq 100 299); do echo $i > source/file$i; done");
    run(&folder, "genisoimage", "genisoimage -quiet -R -o image.iso source");
    let mut bytes = fs::read(folder.join("image.iso")).unwrap();
    let at = record(&bytes, b"FILE150.;1");
    bytes[at + 32] = 250;
    open_bytes(&bytes)
}

#[test]
fn a_damaged_record_is_said_and_hides_no_other_sector() {
    let tree = with_a_damaged_record();
    let (names, is_damaged) = names(tree.as_ref(), tree.root());
    assert!(is_damaged && names.len() > 180 && names.len() < 200, "{}", names.len());
    assert!(names.contains(&"file299".into()) && !names.contains(&"file150".into()));
    assert!(tree.lookup(tree.root(), b"file299").unwrap().is_some());
    assert!(matches!(tree.lookup(tree.root(), b"file150"), Err(Error::Corrupt { .. })));
    assert!(tree.summary().notes.iter().any(|note| note.contains("directory record")));
}

#[test]
fn a_record_of_no_length_is_damage_where_others_follow_it() {
    let mut bytes = small("-R");
    let before = names(open_bytes(&bytes).as_ref(), open_bytes(&bytes).root());
    assert_eq!((before.0.len(), before.1), (5, false));
    let at = record(&bytes, b"B.;1");
    bytes[at] = 0;
    let tree = open_bytes(&bytes);
    assert_eq!(names(tree.as_ref(), tree.root()), (vec!["a".to_owned()], true));
    assert!(matches!(tree.lookup(tree.root(), b"c"), Err(Error::Corrupt { .. })));
    // The last one of its sector says so itself.
    let mut bytes = small("");
    let last = record(&bytes, b"DIR");
    bytes[last] = 0;
    let tree = open_bytes(&bytes);
    assert!(names(tree.as_ref(), tree.root()).1);
    // What a writer had in its memory behind the last record is no record.
    let mut bytes = small("-R");
    let end = root_directory(&bytes) + SECTOR;
    bytes[end - 200..end].copy_from_slice(&[0x22; 200]);
    let tree = open_bytes(&bytes);
    assert_eq!(names(tree.as_ref(), tree.root()), before);
}

#[test]
fn damage_is_said_at_the_end_of_a_listing_that_was_fetched_in_parts() {
    let tree = with_a_damaged_record();
    let (mut cursor, mut parts) = (0, 0);
    let end = loop {
        let mut rows = 0;
        let listed = tree.read_dir(tree.root(), cursor, &mut |row| {
            (cursor, rows) = (row.next, rows + 1);
            rows < 20
        });
        parts += 1;
        if rows < 20 {
            break listed;
        }
        listed.unwrap();
    };
    assert!(parts > 5 && matches!(end, Err(Error::Corrupt { .. })), "{parts} {end:?}");
}

#[test]
fn a_sparse_file_of_rock_ridge_has_no_holes_as_it_cannot_be_read() {
    let mut bytes = small("-R");
    let at = record(&bytes, b"A.;1");
    // In the place of the times, whose field has 26 bytes: the size in two halves, and filling.
    let field = at + find(&bytes[at..], b"TF\x1a\x01");
    let mut sparse = b"SF\x15\x01".to_vec();
    for half in [0u32, 1 << 20] {
        sparse.extend(half.to_le_bytes());
        sparse.extend(half.to_be_bytes());
    }
    sparse.extend(b"\x01XX\x05\x01\x00");
    bytes[field..field + 26].copy_from_slice(&sparse);
    let tree = open_bytes(&bytes);
    let node = child(tree.as_ref(), "a");
    assert_eq!(tree.attributes(node).unwrap().size, 1 << 20);
    assert!(matches!(tree.read(node, &mut [0; 9], 9), Err(Error::Unsupported { .. })));
    let extent = tree.extent(node, 1000).unwrap();
    assert!(extent.stored && extent.len == (1 << 20) - 1000, "{extent:?}");
}

#[test]
fn a_directory_that_contains_itself_is_one_node() {
    let mut bytes = small("-R");
    let root = root_directory(&bytes);
    let at = record(&bytes, b"DIR");
    set_both(&mut bytes, at + 2, (root / SECTOR) as u32);
    let tree = open_bytes(&bytes);
    assert_eq!(child(tree.as_ref(), "dir"), tree.root());
    assert_eq!(child(tree.as_ref(), "dir/dir/dir"), tree.root());
}

#[test]
fn a_directory_whose_place_is_no_directory_is_an_error_and_no_empty_folder() {
    let mut bytes = small("-R");
    let at = record(&bytes, b"DIR");
    let inner = le32(&bytes, at + 2) as usize * SECTOR;
    bytes[inner..inner + SECTOR].fill(0);
    let tree = open_bytes(&bytes);
    let dir = child(tree.as_ref(), "dir");
    assert_eq!(tree.attributes(dir).unwrap().kind, Kind::Directory);
    assert_eq!(names(tree.as_ref(), dir), (vec![], true));
    set_both(&mut bytes, at + 2, 0x00ff_ffff);
    let tree = open_bytes(&bytes);
    assert_eq!(names(tree.as_ref(), child(tree.as_ref(), "dir")), (vec![], true));
    assert_eq!(contents(tree.as_ref(), child(tree.as_ref(), "a")).unwrap(), b"aaaa");
}

#[test]
fn a_directory_of_no_length_is_an_error_and_no_empty_folder() {
    let good = small("-R");
    let at = le32(&good, record(&good, b"DIR") + 2) as usize * SECTOR;
    for start in [at, root_directory(&good)] {
        let mut bytes = good.clone();
        // The big-endian half still has it.
        bytes[start + 10..start + 14].fill(0);
        assert_eq!(walk(open_bytes(&bytes).as_ref()), walk(open_bytes(&good).as_ref()));
        bytes[start + 14..start + 18].fill(0);
        let tree = open_bytes(&bytes);
        let dir = if start == at { child(tree.as_ref(), "dir") } else { tree.root() };
        assert_eq!(names(tree.as_ref(), dir), (vec![], true));
    }
}

#[test]
fn relocated_directories_appear_where_they_belong_and_nowhere_else() {
    let folder = Folder::new();
    run(&folder, "coreutils", "mkdir -p source/1/2/3/4/5/6/7/8/9; echo x > source/1/2/3/4/5/6/7/8/9/x");
    run(&folder, "genisoimage", "genisoimage -quiet -R -o image.iso source");
    let mut bytes = fs::read(folder.join("image.iso")).unwrap();
    let tree = open_bytes(&bytes);
    assert_eq!(names(tree.as_ref(), tree.root()).0, ["1"]);
    child(tree.as_ref(), "1/2/3/4/5/6/7/8/9/x");
    // A child link that leads nowhere is an error of that one directory.
    let link = find(&bytes, b"CL\x0c\x01");
    set_both(&mut bytes, link + 4, 3);
    let tree = open_bytes(&bytes);
    let lost = child(tree.as_ref(), "1/2/3/4/5/6/7/8");
    assert!(matches!(tree.read_dir(lost, 0, &mut |_| true), Err(Error::Corrupt { .. })));
    // A folder of that name with something of its own in it is shown.
    run(
        &folder,
        "genisoimage",
        "mkdir source/rr_moved; echo y > source/rr_moved/y; xorriso -as mkisofs -R -o two.iso source >&2",
    );
    with_image(&folder.join("two.iso"), &Options::default(), |tree| child(tree, "rr_moved/y"));
}

#[test]
fn byte_orders_and_path_tables_that_disagree_are_said_and_read_sensibly() {
    let good = small("-R");
    let want = walk(open_bytes(&good).as_ref());
    let noted = |bytes: &[u8], what: &str| {
        let tree = open_bytes(bytes);
        assert_eq!(walk(tree.as_ref()), want, "{what}");
        let notes = tree.summary().notes;
        assert!(notes.iter().any(|note| note.contains(what)), "{what}: {notes:?}");
    };
    // The big-endian half of a file's extent is wrong, then the little-endian half.
    let at = record(&good, b"C.;1");
    let mut bytes = good.clone();
    bytes[at + 6..at + 10].fill(0x77);
    noted(&bytes, "the two byte orders disagree");
    let mut bytes = good.clone();
    bytes[at + 2..at + 6].fill(0x77);
    noted(&bytes, "the two byte orders disagree");
    // The root's record in the descriptor.
    let mut bytes = good.clone();
    bytes[16 * SECTOR + 158..][..4].fill(0x77);
    noted(&bytes, "byte orders of the root's record");
    // Volume size, block size, path tables.
    let mut bytes = good.clone();
    bytes[16 * SECTOR + 84..][..4].fill(1);
    noted(&bytes, "volume size");
    let mut bytes = good.clone();
    bytes[16 * SECTOR + 128..][..2].fill(0);
    noted(&bytes, "logical block size");
    let mut bytes = good.clone();
    let table = le32(&bytes, 16 * SECTOR + 140) as usize * SECTOR;
    bytes[table + 2] ^= 1;
    noted(&bytes, "little-endian path table");
}

#[test]
fn logical_blocks_of_512_and_1024_bytes() {
    for (block_size, factor) in [(512u16, 4u32), (1024, 2)] {
        let mut bytes = small("-R");
        let descriptor = 16 * SECTOR;
        bytes[descriptor + 128..][..2].copy_from_slice(&block_size.to_le_bytes());
        bytes[descriptor + 130..][..2].copy_from_slice(&block_size.to_be_bytes());
        let want = walk(open_bytes(&small("-R")).as_ref());
        let mut directories = vec![root_directory(&bytes)];
        let at = record(&bytes, b"DIR");
        directories.push(le32(&bytes, at + 2) as usize * SECTOR);
        for directory in directories {
            let mut at = directory;
            while bytes[at] != 0 {
                let extent = le32(&bytes, at + 2);
                set_both(&mut bytes, at + 2, extent * factor);
                let len = usize::from(bytes[at]);
                if let Some(ce) = bytes[at..at + len].windows(4).position(|w| w == b"CE\x1c\x01") {
                    let block = le32(&bytes, at + ce + 4);
                    set_both(&mut bytes, at + ce + 4, block * factor);
                }
                at += len;
            }
        }
        let extent = le32(&bytes, descriptor + 158);
        set_both(&mut bytes, descriptor + 158, extent * factor);
        let tree = open_bytes(&bytes);
        assert_eq!(tree.summary().block_size, u32::from(block_size));
        assert_eq!(tree.summary().variant, "ISO 9660 (Rock Ridge)");
        assert_eq!(walk(tree.as_ref()), want);
    }
}

#[test]
fn an_interleaved_file_is_read_unit_by_unit() {
    let mut bytes = small("-R");
    let at = record(&bytes, b"C.;1");
    let block = (bytes.len() / SECTOR) as u32;
    let size = le32(&bytes, at + 10) as usize;
    let plain = contents(open_bytes(&bytes).as_ref(), NodeId(at as u64)).unwrap();
    assert_eq!(plain.len(), size);
    // Units of two sectors, gaps of three filled with something else.
    for unit in plain.chunks(2 * SECTOR) {
        let end = bytes.len() + 5 * SECTOR;
        bytes.extend_from_slice(unit);
        bytes.resize(end, b'!');
    }
    set_both(&mut bytes, at + 2, block);
    bytes[at + 26] = 2;
    bytes[at + 27] = 3;
    let tree = open_bytes(&bytes);
    assert_eq!(contents(tree.as_ref(), child(tree.as_ref(), "c")).unwrap(), plain);
    let mut buf = [0; 100];
    tree.read(NodeId(at as u64), &mut buf, 4090).unwrap();
    assert_eq!(buf, plain[4090..4190]);
}

#[test]
fn an_extended_attribute_record_is_not_part_of_the_file() {
    let mut bytes = small("-R");
    let at = record(&bytes, b"C.;1");
    let extent = le32(&bytes, at + 2);
    let want = contents(open_bytes(&bytes).as_ref(), NodeId(at as u64)).unwrap();
    set_both(&mut bytes, at + 2, extent - 1);
    bytes[at + 1] = 1;
    assert_eq!(contents(open_bytes(&bytes).as_ref(), NodeId(at as u64)).unwrap(), want);
}

#[test]
fn files_of_a_truncated_image_are_read_as_far_as_they_lie_within() {
    let bytes = small("-R");
    let at = record(&bytes, b"C.;1");
    let cut = (le32(&bytes, at + 2) as usize) * SECTOR + 3000;
    let tree = open_bytes(&bytes[..cut]);
    assert_eq!(names(tree.as_ref(), tree.root()).0.len(), 5);
    assert_eq!(contents(tree.as_ref(), child(tree.as_ref(), "a")).unwrap(), b"aaaa");
    let c = child(tree.as_ref(), "c");
    let mut buf = [0; 1000];
    assert_eq!(tree.read(c, &mut buf, 2000).unwrap(), 1000);
    let error = tree.read(c, &mut buf, 2500).unwrap_err();
    assert!(matches!(error, Error::PastEnd { size, .. } if size == cut as u64), "{error}");
    assert!(tree.summary().notes.iter().any(|note| note.contains("cut off")));
}

#[test]
fn the_root_is_read_when_its_own_record_or_the_primary_descriptor_is_damaged() {
    let mut bytes = small("-R");
    let root = root_directory(&bytes);
    bytes[root + 33] = b'?';
    let tree = open_bytes(&bytes);
    let (names_read, is_damaged) = names(tree.as_ref(), tree.root());
    assert!(is_damaged && names_read.contains(&"link".into()), "{names_read:?}");
    let mut bytes = small("-R -J");
    bytes[16 * SECTOR..17 * SECTOR].fill(0);
    let tree = open_bytes(&bytes);
    assert_eq!(tree.summary().variant, "ISO 9660 (Joliet)");
    assert_eq!(contents(tree.as_ref(), child(tree.as_ref(), "dir/inner")).unwrap(), b"inner");
}

#[test]
fn names_with_versions_slashes_and_no_utf_8() {
    let mut bytes = small("");
    let at = record(&bytes, b"A.;1");
    bytes[at + 33..at + 37].copy_from_slice(b"A;\xff2");
    let tree = open_bytes(&bytes);
    assert!(tree.lookup(tree.root(), b"A;\xff2").unwrap().is_some());
    bytes[at + 33..at + 37].copy_from_slice(b"A/;1");
    assert!(open_bytes(&bytes).lookup(NodeId(root_directory(&bytes) as u64), b"A/").unwrap().is_some());
    // What would be a way up is shown as it is recorded.
    let mut bytes = small("-R");
    let at = find(&bytes, b"NM\x06\x01\x00a");
    bytes[at + 5] = b'.';
    let tree = open_bytes(&bytes);
    assert!(tree.lookup(tree.root(), b"A").unwrap().is_some());
}

#[test]
fn time_zones_are_signed_quarters_of_an_hour() {
    let mut bytes = small("");
    let at = record(&bytes, b"A.;1");
    let utc = open_bytes(&bytes).attributes(NodeId(at as u64)).unwrap().modified.unwrap().seconds;
    bytes[at + 24] = (-14i8) as u8;
    let tree = open_bytes(&bytes);
    assert_eq!(tree.attributes(NodeId(at as u64)).unwrap().modified.unwrap().seconds, utc + 14 * 900);
    bytes[at + 18..at + 25].fill(0);
    assert_eq!(open_bytes(&bytes).attributes(NodeId(at as u64)).unwrap().modified, None);
}

#[test]
fn the_long_form_of_tf_has_hundredths() {
    let mut bytes = small("-R");
    let at = record(&bytes, b"LINK.;1");
    let sl = at + find(&bytes[at..at + 255], b"SL");
    let len = usize::from(bytes[sl + 2]);
    bytes[sl..sl + len].fill(0);
    let mut tf = b"TF\x16\x01\x82".to_vec();
    tf.extend_from_slice(b"2021020712000050\xf2");
    bytes[sl..sl + tf.len()].copy_from_slice(&tf);
    let time = find(&bytes[at..at + 255], b"TF");
    bytes[at + time] = if time < sl - at { b'X' } else { b'T' };
    let modified = open_bytes(&bytes).attributes(NodeId(at as u64)).unwrap().modified.unwrap();
    assert_eq!((modified.seconds, modified.nanoseconds), (1_612_711_800, 500_000_000));
}

/// A small image followed by bytes that say where they are: enough for a file of several GB.
struct Endless {
    head: Vec<u8>,
    size: u64,
}

impl BlockDevice for Endless {
    fn size(&self) -> u64 {
        self.size
    }
    fn sector_size(&self) -> u32 {
        2048
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(buf.len(), offset, self.size)?;
        for (i, byte) in buf.iter_mut().enumerate() {
            let at = offset + i as u64;
            *byte = self.head.get(at as usize).copied().unwrap_or_else(|| pattern(at));
        }
        Ok(())
    }
}

fn pattern(at: u64) -> u8 {
    (at ^ at >> 8 ^ at >> 16 ^ at >> 24 ^ at >> 32) as u8
}

#[test]
fn a_file_of_more_than_4_gb_is_one_file() {
    let mut head = small("-R");
    let at = record(&head, b"LINK.;1");
    let first_len = 0xffff_f800u32;
    let extent = (head.len() / SECTOR) as u32;
    // `c` gets three sections; the two new records take the place of `link` and the room behind.
    let c = record(&head, b"C.;1");
    let len = usize::from(head[c]);
    let mut section = head[c..c + len].to_vec();
    let mut sections = Vec::new();
    for (i, size) in [first_len, first_len, 5000].into_iter().enumerate() {
        set_both(&mut section, 2, extent + i as u32 * (first_len / 2048));
        set_both(&mut section, 10, size);
        section[25] = if i < 2 { 0x80 } else { 0 };
        sections.push(section.clone());
    }
    head[c..c + len].copy_from_slice(&sections[0]);
    let after = c + len;
    let mut rest = head[after..at].to_vec();
    // The sections must follow each other: what was between moves behind them.
    let mut tail: Vec<u8> = sections[1..].concat();
    tail.append(&mut rest);
    let root_end = root_directory(&head) + SECTOR;
    assert!(after + tail.len() <= root_end);
    head[after..root_end].fill(0);
    head[after..after + tail.len()].copy_from_slice(&tail);
    let start = head.len() as u64;
    let device: Device = Arc::new(Endless { size: start + 3 * u64::from(first_len), head });
    let (_, tree) = filesystem::open(&device, &Options::default()).unwrap().unwrap();
    assert_eq!(names(tree.as_ref(), tree.root()).0, ["a", "b", "c", "dir"]);
    let c = child(tree.as_ref(), "c");
    let size = 2 * u64::from(first_len) + 5000;
    assert_eq!(tree.attributes(c).unwrap().size, size);
    for offset in [0, u64::from(first_len) - 50, 0xffff_ffff, 2 * u64::from(first_len) - 1, size - 100] {
        let mut buf = [0; 100];
        assert_eq!(tree.read(c, &mut buf, offset).unwrap(), 100);
        assert!(buf.iter().zip(offset..).all(|(byte, at)| *byte == pattern(start + at)), "{offset}");
    }
    // Each row's cursor leads behind all sections of it.
    let mut next = 0;
    let mut count = 0;
    loop {
        let before = count;
        let mut last = 0;
        tree.read_dir(tree.root(), next, &mut |entry| {
            count += 1;
            last = entry.next;
            false
        })
        .unwrap();
        if count == before {
            break;
        }
        next = last;
    }
    assert_eq!(count, 4);
}

#[test]
fn a_big_directory_is_looked_up_fast() {
    let folder = Folder::new();
    run(&folder, "coreutils", "mkdir source; cd source; seq -f 'name-of-a-file-%06g' 1 20000 | xargs touch");
    run(&folder, "genisoimage", "genisoimage -quiet -R -o image.iso source");
    with_image(&folder.join("image.iso"), &Options::default(), |tree| {
        let start = Instant::now();
        for i in 1..=20_000 {
            let name = format!("name-of-a-file-{i:06}");
            assert!(tree.lookup(tree.root(), name.as_bytes()).unwrap().is_some(), "{name}");
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        assert_eq!(tree.lookup(tree.root(), b"name-of-a-file-020001").unwrap(), None);
    });
}

/// Everything that can be asked of a tree, with bounds on how much of it.
fn exercise(tree: &dyn FileSystem) {
    let mut seen = HashSet::from([tree.root()]);
    let mut queue = vec![tree.root()];
    let mut buf = vec![0; 5000];
    while let Some(dir) = queue.pop() {
        let mut rows = Vec::new();
        let _ = tree.read_dir(dir, 0, &mut |entry| {
            rows.push((entry.node, entry.name.to_vec()));
            rows.len() < 500
        });
        for (node, name) in rows {
            let _ = tree.lookup(dir, &name);
            let Ok(attributes) = tree.attributes(node) else { continue };
            let _ = tree.xattrs(node);
            match attributes.kind {
                Kind::Directory if seen.len() < 500 && seen.insert(node) => queue.push(node),
                Kind::Symlink => drop(tree.read_link(node)),
                Kind::File => {
                    for offset in [0, attributes.size / 2, attributes.size.saturating_sub(10)] {
                        let _ = tree.read(node, &mut buf, offset);
                        let _ = tree.extent(node, offset);
                    }
                }
                _ => {}
            }
        }
    }
    let _ = (tree.summary(), tree.embedded());
}

#[test]
fn changed_bytes_never_make_it_panic_or_hang() {
    let folder = Folder::new();
    run(
        &folder,
        "coreutils",
        "mkdir -p s/1/2/3/4/5/6/7/8/9; seq 1 20000 > s/seq; echo x > s/1/2/3/4/5/6/7/8/9/x; ln -s /a/../b s/l",
    );
    run(&folder, "genisoimage", "mkzftree s packed; printf '%02000d' 0 > packed/boot");
    let genisoimage = "genisoimage -quiet -R -J -z -b boot -no-emul-boot -c cat -o g.iso packed 2>/dev/null";
    run(&folder, "genisoimage", genisoimage);
    let xorriso = "xorriso -xattr on -zisofs version_2=on -outdev x.iso -map s / -set_filter_r --zisofs / -- \
                   -setfattr user.a b /seq -- -commit >&2";
    run(&folder, "xorriso", xorriso);
    let start = Instant::now();
    let mut count = 0;
    for image in ["g.iso", "x.iso"] {
        let good = fs::read(folder.join(image)).unwrap();
        // The system area, and the padding at the end, are nothing to us.
        let end = good.iter().rposition(|byte| *byte != 0).unwrap();
        let mut random = 0x2545_f491_4f6c_dd1du64;
        let interesting: Vec<usize> = (16 * SECTOR..end).filter(|at| good[*at] != 0).collect();
        for round in 0..1500 {
            let mut bytes = good.clone();
            for _ in 0..=round % 4 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let at = interesting[(random >> 8) as usize % interesting.len().min(12_000)];
                bytes[at] = if round % 3 == 0 { 0xff } else { random as u8 };
            }
            let begun = Instant::now();
            if let Ok(tree) = try_open_any(&bytes) {
                exercise(tree.as_ref());
            }
            assert!(begun.elapsed() < Duration::from_secs(5), "{image}, round {round}: {:?}", begun.elapsed());
            count += 1;
        }
    }
    println!("{count} images in {:?}", start.elapsed());
}

fn try_open_any(bytes: &[u8]) -> Result<Arc<dyn FileSystem>> {
    let device: Device = Arc::new(Memory::new(bytes.to_vec(), 2048));
    filesystem::open(&device, &Options::default())?.map(|found| found.1).ok_or(Error::Invalid)
}
