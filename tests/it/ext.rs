//! ext against the kernel: every object of a loop mount, field by field.
//!
//! Images are made by mke2fs, filled through a loop mount, and compared with a second, read-only
//! loop mount: these tests need root. Packages: e2fsprogs, attr, acl, python3, util-linux.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use imgfs::device::{Device, cached::Cached, file::HostFile, memory::Memory};
use imgfs::error::Error;
use imgfs::filesystem::{FileSystem, Kind, NodeId, Options, Timestamp, open};
use rustix::fs::{AtFlags, CWD, SeekFrom, StatxFlags, StatxTimestamp};
use sha2::{Digest, Sha256};

/// A folder that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("imgfs-ext-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A loop mount that is undone with the test, also when it fails.
struct Mount(PathBuf);

impl Mount {
    fn new(image: &Path, at: PathBuf, options: &str) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        sh(&format!("mount -t ext4 -o loop,{options} {} {}", image.display(), at.display()));
        Self(at)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Runs a shell script; a tool that is missing is said with its package.
fn sh(script: &str) -> Vec<u8> {
    let output = Command::new("bash").args(["-ec", script]).output().expect("bash starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_ne!(
        output.status.code(),
        Some(127),
        "a tool is missing (Debian packages: e2fsprogs, attr, acl, python3, mount): {error}"
    );
    assert!(output.status.success(), "the script failed: {error}");
    output.stdout
}

fn hash_of(image: &Path) -> Vec<u8> {
    let mut hash = Sha256::new();
    std::io::copy(&mut File::open(image).unwrap(), &mut HashWriter(&mut hash)).unwrap();
    hash.finalize().to_vec()
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.update(buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn open_image(image: &Path, norecovery: bool) -> Arc<dyn FileSystem> {
    let device: Device = Arc::new(Cached::new(Arc::new(HostFile::open(image).unwrap()), 8 << 20));
    let (name, tree) = open(&device, &Options { norecovery, ..Options::default() }).unwrap().expect("recognised");
    assert_eq!(name, "ext");
    tree
}

/// What was compared.
#[derive(Debug, Default)]
struct Counts {
    objects: usize,
    bytes: u64,
    xattrs: usize,
    runs: usize,
}

/// Compares one object and, for a directory, all below it.
fn compare(tree: &dyn FileSystem, node: NodeId, path: &Path, counts: &mut Counts) {
    counts.objects += 1;
    let flags = StatxFlags::ALL | StatxFlags::BTIME;
    let theirs = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, flags).unwrap();
    let ours = tree.attributes(node).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let time = |time: StatxTimestamp| Some(Timestamp { seconds: time.tv_sec, nanoseconds: time.tv_nsec });
    let name = path.display();
    assert_eq!(ours.mode, Some(theirs.stx_mode & 0o7777), "{name}: mode");
    assert_eq!(ours.kind, kind_of(theirs.stx_mode), "{name}: kind");
    assert_eq!((ours.uid, ours.gid), (Some(theirs.stx_uid), Some(theirs.stx_gid)), "{name}: owner");
    assert_eq!(ours.size, theirs.stx_size, "{name}: size");
    assert_eq!(ours.links, Some(theirs.stx_nlink), "{name}: links");
    assert_eq!(ours.blocks, Some(theirs.stx_blocks), "{name}: blocks");
    assert_eq!(ours.modified, time(theirs.stx_mtime), "{name}: mtime");
    assert_eq!(ours.changed, time(theirs.stx_ctime), "{name}: ctime");
    assert_eq!(ours.accessed, time(theirs.stx_atime), "{name}: atime");
    if theirs.stx_mask & StatxFlags::BTIME.bits() != 0 {
        assert_eq!(ours.created, time(theirs.stx_btime), "{name}: btime");
    }
    if matches!(ours.kind, Kind::CharDevice | Kind::BlockDevice) {
        assert_eq!(ours.device, Some((theirs.stx_rdev_major, theirs.stx_rdev_minor)), "{name}: device");
    }
    assert_eq!(node.0, theirs.stx_ino, "{name}: inode");
    compare_xattrs(tree, node, path, counts);
    match ours.kind {
        Kind::Directory => compare_directory(tree, node, path, counts),
        Kind::File => compare_contents(tree, node, path, ours.size, counts),
        Kind::Symlink => {
            let target = std::fs::read_link(path).unwrap();
            assert_eq!(tree.read_link(node).unwrap(), target.as_os_str().as_bytes(), "{name}: target");
        }
        _ => {}
    }
}

fn kind_of(mode: u16) -> Kind {
    match mode >> 12 {
        1 => Kind::Fifo,
        2 => Kind::CharDevice,
        4 => Kind::Directory,
        6 => Kind::BlockDevice,
        8 => Kind::File,
        10 => Kind::Symlink,
        _ => Kind::Socket,
    }
}

fn compare_directory(tree: &dyn FileSystem, node: NodeId, path: &Path, counts: &mut Counts) {
    let theirs: BTreeSet<Vec<u8>> =
        std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_vec()).collect();
    let mut rows = Vec::new();
    // Seven rows a call, so that cursors are used.
    let mut cursor = 0;
    loop {
        let before = rows.len();
        tree.read_dir(node, cursor, &mut |entry| {
            assert!(entry.next > cursor && entry.next < 1 << 62);
            cursor = entry.next;
            rows.push((entry.name.into_owned(), entry.node, entry.kind));
            rows.len() - before < 7
        })
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if rows.len() == before {
            break;
        }
    }
    let names: BTreeSet<Vec<u8>> = rows.iter().map(|row| row.0.clone()).collect();
    assert_eq!(names.len(), rows.len(), "{}: a row came twice", path.display());
    let missing: Vec<_> = theirs.symmetric_difference(&names).map(|name| OsStr::from_bytes(name)).take(5).collect();
    assert!(missing.is_empty(), "{}: {missing:?} are not in both", path.display());
    for (name, row, kind) in rows {
        assert_eq!(tree.lookup(node, &name).unwrap(), Some(row), "{}: {:?}", path.display(), OsStr::from_bytes(&name));
        let mut wrong = name.clone();
        wrong.push(b'~');
        assert_eq!(tree.lookup(node, &wrong).unwrap(), None, "{}", path.display());
        assert_eq!(tree.attributes(row).unwrap().kind, kind);
        compare(tree, row, &path.join(OsStr::from_bytes(&name)), counts);
    }
}

fn compare_xattrs(tree: &dyn FileSystem, node: NodeId, path: &Path, counts: &mut Counts) {
    let mut names = vec![0u8; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let theirs: BTreeSet<Vec<u8>> =
        names[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
    let ours: BTreeSet<Vec<u8>> = tree.xattrs(node).unwrap().into_iter().collect();
    assert_eq!(ours, theirs, "{}: attribute names", path.display());
    for name in theirs {
        let mut value = vec![0u8; 64 << 10];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(&name), &mut value[..]).unwrap();
        assert_eq!(tree.xattr(node, &name).unwrap(), &value[..len], "{}: attribute", path.display());
        counts.xattrs += 1;
    }
    assert!(matches!(tree.xattr(node, b"user.absent"), Err(Error::NoAttribute)));
}

fn compare_contents(tree: &dyn FileSystem, node: NodeId, path: &Path, size: u64, counts: &mut Counts) {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(126) => {
            assert!(matches!(tree.read(node, &mut [0; 8], 0), Err(Error::NoKey)), "{}", path.display());
            return;
        }
        Err(error) => panic!("{}: {error}", path.display()),
    };
    let theirs = data_runs(size, |offset, data| {
        let to = if data { SeekFrom::Data(offset) } else { SeekFrom::Hole(offset) };
        rustix::fs::seek(&file, to).unwrap_or(size)
    });
    let ours = data_runs(size, |mut offset, data| {
        while offset < size {
            let extent = tree.extent(node, offset).unwrap();
            assert!(extent.len > 0);
            if extent.stored == data {
                return offset;
            }
            offset += extent.len;
        }
        size
    });
    assert_eq!(ours, theirs, "{}: data runs", path.display());
    counts.runs += ours.len();
    // Contents: all of the data, and up to 1 MiB of each hole.
    let mut starts = 0;
    for (start, end) in ours.into_iter().chain([(size, size)]) {
        compare_range(tree, node, &file, starts, start.min(starts + (1 << 20)), counts);
        compare_range(tree, node, &file, start, end, counts);
        starts = end;
    }
    assert_eq!(tree.read(node, &mut [0; 8], size).unwrap(), 0);
    assert_eq!(tree.read(node, &mut [0; 8], size.saturating_sub(3)).unwrap() as u64, size.min(3));
}

fn data_runs(size: u64, mut seek: impl FnMut(u64, bool) -> u64) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    let mut offset = 0;
    while offset < size {
        let start = seek(offset, true);
        if start >= size {
            break;
        }
        offset = seek(start, false);
        runs.push((start, offset));
    }
    runs
}

fn compare_range(tree: &dyn FileSystem, node: NodeId, file: &File, start: u64, end: u64, counts: &mut Counts) {
    use std::os::unix::fs::FileExt;
    let mut offset = start;
    while offset < end {
        let len = (end - offset).min(300_001) as usize;
        let (mut ours, mut theirs) = (vec![1; len], vec![2; len]);
        file.read_exact_at(&mut theirs, offset).unwrap();
        assert_eq!(tree.read(node, &mut ours, offset).unwrap(), len);
        assert!(ours == theirs, "inode {}: contents from {offset}", node.0);
        offset += len as u64;
        counts.bytes += len as u64;
    }
}

fn compare_statfs(tree: &dyn FileSystem, mount: &Path) {
    let theirs = rustix::fs::statfs(mount).unwrap();
    let ours = tree.summary();
    assert_eq!(i64::from(ours.block_size), theirs.f_bsize as i64);
    assert_eq!(ours.total_blocks, theirs.f_blocks, "total blocks");
    assert_eq!(ours.free_blocks, theirs.f_bfree, "free blocks");
    assert_eq!(ours.total_nodes, theirs.f_files, "inodes");
    assert_eq!(ours.free_nodes, theirs.f_ffree, "free inodes");
    assert_eq!(i64::from(ours.name_max), theirs.f_namelen as i64);
}

/// Fills a mounted volume with one of everything.
const FILL: &str = r#"
cd "$ROOT"
echo hello > hello; : > empty; printf x > one; head -c 59 /dev/zero | tr '\0' a > f59
for n in 60 61 100 150 159 160 161 200 400; do head -c $n /dev/urandom > size$n; done
head -c 300000 /dev/urandom > data; chmod 4755 hello; chmod 1777 data; chmod 0 one
chown 70000:4294967294 hello; chown 65535:65536 data
python3 - <<'PY'
import os, socket
with open('sparse', 'wb') as f:
    f.seek(3 << 30); f.write(b'end')
    f.seek(5 << 20); f.write(b'middle' * 1000)
    f.seek(70 << 20); f.write(b'far')
try:
    fd = os.open('fallocated', os.O_CREAT | os.O_RDWR)
    os.posix_fallocate(fd, 0, 1 << 20); os.pwrite(fd, b'written' * 2000, 200000); os.close(fd)
except OSError: pass
with open('fragmented', 'wb') as f, open('other', 'wb') as g:
    for i in range(1500):
        f.seek(i * 8192); f.write(os.urandom(700)); g.write(os.urandom(1024)); 
        if i % 10 == 0: f.flush(); os.fsync(f.fileno()) if i % 300 == 0 else None
os.mkdir('big')
for i in range(int(os.environ.get('ENTRIES', '12000'))):
    os.close(os.open('big/entry-number-%d-%s' % (i, 'x' * (i % 40)), os.O_CREAT | os.O_WRONLY))
for i in range(0, int(os.environ.get('ENTRIES', '12000')), 3): os.unlink('big/entry-number-%d-%s' % (i, 'x' * (i % 40)))
os.mkdir('names')
for n in [b'\xff\xfe', 'grün'.encode(), b'new\nline', b' space ', b'back\\slash', b'a' * 255, b'-dash', b'*?[', '日本語'.encode(), b'\xc3', b'...']:
    os.close(os.open(b'names/' + n, os.O_CREAT))
for n in [1, 20, 58, 59, 60, 61, 100, 155, 160, 255, 1000, 1023]:
    os.symlink('t' * n, 'link%d' % n)
os.mknod('null', 0o20666, os.makedev(1, 3)); os.mknod('disk', 0o60640, os.makedev(8, 17))
os.mknod('wide', 0o60640, os.makedev(259, 70000)); os.mknod('widest', 0o20600, os.makedev(4095, 1048575))
os.mkfifo('pipe'); socket.socket(socket.AF_UNIX).bind('socket')
os.link('hello', 'again'); d = 'deep'
os.mkdir(d)
for i in range(40): d += '/level%d' % i; os.mkdir(d)
os.mkdir('few'); [os.close(os.open('few/%d' % i, os.O_CREAT)) for i in range(5)]
for i, t in enumerate([-2147483648, -1, 0, 2147483647, 2147483648, 4294967295, 4294967296, 6442450943, 15032385535, -86400]):
    p = 'time%d' % i; open(p, 'w').close()
    try: os.utime(p, ns=(t * 10**9 + 123456789, t * 10**9 + 987654321))
    except OverflowError: pass
os.makedirs('dirs')
for i in range(70): os.mkdir('dirs/%d' % i)
PY
mkdir attributes; cd attributes
for n in 1 2 3; do echo $n > file$n; done; mkdir dir; ln -s none link; mknod null c 1 3
setfattr -n user.small -v value file1; setfattr -n user.empty file1
setfattr -n trusted.secret -v 0x00ff00 file1; setfattr -n security.other -v abc file1
for n in 1 2 3 4 5; do setfattr -n user.attribute$n -v "$(head -c 100 /dev/zero | tr '\0' $n)" file2; done
setfattr -n user.big -v "$(head -c 700 /dev/zero | tr '\0' b)" file3
setfattr -h -n trusted.onlink -v yes link; setfattr -h -n trusted.ondevice -v yes null
setfattr -n user.dir -v d dir
setfacl -m u:12345:rw,g:70001:r,m::rwx file2; setfacl -m u:1:rwx dir; setfacl -d -m u:2:r,g:3:x dir; setfacl -m g:7:- file3
cp --preserve=all file1 dir/; echo x > dir/inherits
if [ -n "$BIGXATTR" ]; then
  python3 -c "
import os
os.setxattr('file3', 'user.huge', os.urandom(20000)); os.setxattr('dir', 'user.huge', b'h' * 30000)
for i in range(12): os.setxattr('file1', 'user.many%d' % i, os.urandom(2100 + i * 50))"
fi
sync -f .
"#;

/// The ext2 of 1993: newer versions of mke2fs ask for it in another way.
const REVISION_0: &str =
    "-t ext2 -b 1024 $(mke2fs -r 0 -V 2>&1 | grep -q removed && printf '%s' '-E revision=0' || printf '%s' '-r 0')";

/// Makes an image, fills it, and compares all of it with the kernel.
fn made_and_compared(name: &str, mke2fs: &str, size: &str, environment: &str) -> Counts {
    let scratch = Scratch::new(name);
    let image = scratch.path("image");
    sh(&format!("truncate -s {size} {0}; mke2fs -q -F {mke2fs} {0}", image.display()));
    {
        let mount = Mount::new(&image, scratch.path("rw"), "rw");
        sh(&format!("export ROOT={} {environment}; {FILL}", mount.0.display()));
    }
    let before = hash_of(&image);
    let mount = Mount::new(&image, scratch.path("ro"), "ro");
    let tree = open_image(&image, false);
    let mut counts = Counts::default();
    compare(tree.as_ref(), tree.root(), &mount.0, &mut counts);
    compare_statfs(tree.as_ref(), &mount.0);
    drop(mount);
    assert_eq!(hash_of(&image), before, "the image was changed");
    eprintln!("{name}: {counts:?}");
    assert!(counts.objects > 1000 && counts.xattrs > 15, "{counts:?}");
    counts
}

#[test]
fn ext2_with_blocks_of_1024_reads_as_in_the_kernel() {
    made_and_compared("ext2-1k", "-t ext2 -b 1024 -N 20000", "96M", "A=1");
}

#[test]
fn ext2_without_directory_indexes_reads_as_in_the_kernel() {
    made_and_compared("ext2-nodx", "-t ext2 -b 4096 -I 128 -O ^dir_index,^filetype -N 20000", "96M", "A=1");
}

#[test]
fn ext2_of_revision_0_reads_as_in_the_kernel() {
    made_and_compared("rev0", &format!("{REVISION_0} -N 20000"), "96M", "A=1");
}

#[test]
fn ext3_with_blocks_of_2048_and_small_inodes_reads_as_in_the_kernel() {
    made_and_compared("ext3-2k", "-t ext3 -b 2048 -I 128 -N 20000", "96M", "A=1");
}

#[test]
fn ext4_as_usual_reads_as_in_the_kernel() {
    made_and_compared("ext4", "-t ext4 -b 4096 -N 20000 -O metadata_csum,64bit", "128M", "A=1");
}

#[test]
fn ext4_with_blocks_of_1024_and_old_checksums_reads_as_in_the_kernel() {
    made_and_compared("ext4-1k", "-t ext4 -b 1024 -N 20000 -O ^metadata_csum,uninit_bg,^64bit", "128M", "A=1");
}

#[test]
fn ext4_without_journal_with_large_inodes_reads_as_in_the_kernel() {
    made_and_compared("nojournal", "-t ext4 -I 1024 -N 20000 -O ^has_journal,metadata_csum", "160M", "A=1");
}

#[test]
fn ext4_without_extents_reads_as_in_the_kernel() {
    made_and_compared("noextents", "-t ext4 -N 20000 -O ^extent,^64bit,metadata_csum", "128M", "A=1");
}

#[test]
fn inline_data_reads_as_in_the_kernel() {
    made_and_compared("inline", "-t ext4 -I 256 -N 20000 -O inline_data,metadata_csum", "128M", "A=1");
}

#[test]
fn inline_data_with_large_inodes_reads_as_in_the_kernel() {
    made_and_compared("inline-1k", "-t ext4 -I 1024 -N 20000 -O inline_data,^metadata_csum", "160M", "A=1");
}

#[test]
fn bigalloc_reads_as_in_the_kernel() {
    made_and_compared("bigalloc", "-t ext4 -O bigalloc,metadata_csum -C 65536 -N 4000", "256M", "ENTRIES=3000");
}

#[test]
fn bigalloc_with_blocks_of_1024_reads_as_in_the_kernel() {
    made_and_compared("bigalloc-1k", "-t ext4 -b 1024 -O bigalloc -C 16384 -N 15000", "256M", "A=1");
}

#[test]
fn meta_bg_reads_as_in_the_kernel() {
    made_and_compared("meta_bg", "-t ext4 -b 1024 -O meta_bg,^resize_inode,64bit -g 1024 -N 20000", "256M", "A=1");
}

#[test]
fn sparse_super2_and_no_flex_bg_read_as_in_the_kernel() {
    let options = "-t ext4 -b 1024 -O sparse_super2,^flex_bg,^resize_inode -E num_backup_sb=2 -N 20000";
    made_and_compared("sparse2", options, "256M", "A=1");
}

#[test]
fn xattrs_in_inodes_of_their_own_read_as_in_the_kernel() {
    let counts =
        made_and_compared("ea_inode", "-t ext4 -N 20000 -O ea_inode,metadata_csum,large_dir", "128M", "BIGXATTR=1");
    assert!(counts.xattrs > 30);
}

#[test]
fn xattrs_in_inodes_of_their_own_without_checksums_read_as_in_the_kernel() {
    made_and_compared("ea_inode-nocsum", "-t ext4 -N 20000 -O ea_inode,^metadata_csum", "128M", "BIGXATTR=1");
}

#[test]
fn features_that_do_not_matter_to_a_reader_do_not() {
    let options = "-t ext4 -I 512 -N 20000 -O orphan_file,metadata_csum,metadata_csum_seed,stable_inodes";
    made_and_compared("harmless", options, "160M", "A=1");
}

#[test]
fn hash_versions_tea_and_legacy_read_as_in_the_kernel() {
    for (name, hash) in [("tea", "tea"), ("legacy", "legacy")] {
        let scratch = Scratch::new(name);
        let image = scratch.path("image");
        sh(&format!(
            "truncate -s 96M {0}; mke2fs -q -F -t ext4 -N 20000 {0}; tune2fs -E hash_alg={hash} {0}",
            image.display()
        ));
        {
            let mount = Mount::new(&image, scratch.path("rw"), "rw");
            sh(&format!("export ROOT={}; {FILL}", mount.0.display()));
        }
        let mount = Mount::new(&image, scratch.path("ro"), "ro");
        let tree = open_image(&image, false);
        let mut counts = Counts::default();
        compare(tree.as_ref(), tree.root(), &mount.0, &mut counts);
        assert!(counts.objects > 8000);
    }
}

/// Changes made in several commits and left in the journal: big directories made, files removed and
/// their blocks reused (revokes), data that looks like the journal's own blocks.
const DIRTY: &str = r#"
cd "$ROOT"
python3 - <<'PY'
import os
def commit():
    fd = os.open('.', os.O_RDONLY); os.fsync(fd); os.close(fd)
def put(name, data):
    fd = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC); os.write(fd, data); os.fsync(fd); os.close(fd)
os.mkdir('first'); put('first/a', b'a' * 5000); commit()
os.mkdir('gone')
for i in range(600): os.close(os.open('gone/%d-%s' % (i, 'n' * 60), os.O_CREAT))
commit()
for i in range(600): os.unlink('gone/%d-%s' % (i, 'n' * 60))
os.rmdir('gone'); commit()
for i in range(60): put('reuse%d' % i, (b'%d' % i) * 2000)
put('escaped', b'\xc0\x3b\x39\x98' + b'tail' * 4000 + b'\0' * 380 + b'\xc0\x3b\x39\x98' * 5000)
os.mkdir('more')
for i in range(300): os.close(os.open('more/%d' % i, os.O_CREAT))
os.setxattr('first', 'user.late', b'x' * 300); os.symlink('y' * 300, 'link'); commit()
for i in range(0, 300, 2): os.unlink('more/%d' % i)
os.rename('first/a', 'more/moved'); commit()
PY
"#;

/// Copies the image out from under a mounted volume, and compares what imgfs shows of the copy with
/// what the kernel shows of a second one after its own replay.
fn replay_compared(name: &str, mke2fs: &str, options: &str) {
    let scratch = Scratch::new(name);
    let (image, dirty, repaired) = (scratch.path("image"), scratch.path("dirty"), scratch.path("repaired"));
    sh(&format!("truncate -s 64M {0}; mke2fs -q -F {mke2fs} {0}", image.display()));
    {
        let mount = Mount::new(&image, scratch.path("rw"), &format!("rw,{options}"));
        sh(&format!("export ROOT={}; {DIRTY}", mount.0.display()));
        sh(&format!("cp --sparse=always {} {}", image.display(), dirty.display()));
    }
    sh(&format!("cp --sparse=always {} {}", dirty.display(), repaired.display()));
    let before = hash_of(&dirty);
    let tree = open_image(&dirty, false);
    let notes = tree.summary().notes.join("; ");
    assert!(notes.contains("needs_recovery") && notes.contains("journal replayed"), "{notes}");
    // A read-only loop device cannot be recovered, so the kernel gets a writable one first.
    drop(Mount::new(&repaired, scratch.path("recovering"), "rw,noatime"));
    let mount = Mount::new(&repaired, scratch.path("ro"), "ro");
    let mut counts = Counts::default();
    compare(tree.as_ref(), tree.root(), &mount.0, &mut counts);
    compare_statfs(tree.as_ref(), &mount.0);
    eprintln!("{name}: {notes}: {counts:?}");
    drop(mount);
    // The raw state is another one: the kernel's without its journal.
    sh(&format!("cp --sparse=always {} {}", dirty.display(), repaired.display()));
    let mount = Mount::new(&repaired, scratch.path("raw"), "ro,noload");
    let raw = open_image(&dirty, true);
    let theirs: BTreeSet<_> = std::fs::read_dir(&mount.0).unwrap().map(|e| e.unwrap().file_name().into_vec()).collect();
    let mut ours = BTreeSet::new();
    let _ = raw.read_dir(raw.root(), 0, &mut |entry| ours.insert(entry.name.into_owned()));
    assert_eq!(ours, theirs);
    drop(mount);
    assert_eq!(hash_of(&dirty), before, "the image was changed");
}

#[test]
fn a_journal_with_csum_v3_is_replayed_as_by_the_kernel() {
    replay_compared("j-v3", "-t ext4 -O metadata_csum,64bit", "data=ordered");
}

#[test]
fn a_journal_without_checksums_is_replayed_as_by_the_kernel() {
    replay_compared("j-ext3", "-t ext3 -b 1024", "data=ordered");
}

#[test]
fn a_journal_of_64_bit_tags_without_checksums_is_replayed_as_by_the_kernel() {
    replay_compared("j-64", "-t ext4 -b 2048 -O 64bit,^metadata_csum", "data=ordered");
}

#[test]
fn a_journal_of_data_with_escaped_blocks_is_replayed_as_by_the_kernel() {
    replay_compared("j-data", "-t ext4 -b 1024 -O ^metadata_csum,^64bit", "data=journal");
    replay_compared("j-data-csum", "-t ext4 -b 4096 -O metadata_csum", "data=journal");
}

#[test]
fn a_journal_with_the_first_kind_of_checksum_is_replayed_as_by_the_kernel() {
    replay_compared("j-v1", "-t ext4 -b 1024 -O ^metadata_csum,^64bit", "journal_checksum");
    replay_compared("j-async", "-t ext4 -b 4096 -O metadata_csum", "data=writeback,journal_async_commit");
}

#[test]
fn a_journal_that_wraps_is_replayed_as_by_the_kernel() {
    replay_compared("j-wrap", "-t ext4 -b 1024 -J size=1 -O metadata_csum,^64bit", "data=journal");
}

/// A damaged transaction is said, and what was committed before it is shown.
#[test]
fn a_damaged_transaction_ends_the_replay_with_a_note() {
    for target in ["data", "commit"] {
        let scratch = Scratch::new(&format!("j-damaged-{target}"));
        let image = scratch.path("image");
        sh(&format!(
            r#"cd {0}; mkdir tree; head -c 8192 /dev/zero | tr '\0' 0 > tree/file
            for n in one two three; do head -c 4096 /dev/zero | tr '\0' ${{n:0:1}} > $n; done
            truncate -s 32M image; mke2fs -q -F -t ext4 -b 4096 -O metadata_csum,64bit -d tree image
            set -- $(debugfs -R 'blocks /file' image 2>/dev/null)
            printf 'jo -c -v 3\njw -b %s one\njw -b %s two\njw -b %s three\njc\n' $1 $2 $1 > script
            debugfs -w -f script image >log 2>&1"#,
            scratch.0.display()
        ));
        // The second transaction starts with the block of data that it writes.
        let mut bytes = std::fs::read(&image).unwrap();
        let data = (0..bytes.len() / 4096)
            .map(|block| block * 4096)
            .find(|&at| bytes[at..at + 4096].iter().all(|&byte| byte == b't'))
            .expect("the log's copy");
        bytes[if target == "data" { data + 77 } else { data + 4096 + 50 }] ^= 1;
        let device: Device = Arc::new(Memory::new(bytes, 512));
        let (_, tree) = open(&device, &Options::default()).unwrap().unwrap();
        let notes = tree.summary().notes.join("; ");
        assert!(notes.contains("is damaged") && notes.contains("1 transactions"), "{notes}");
        let file = tree.lookup(tree.root(), b"file").unwrap().unwrap();
        let mut read = [0; 8192];
        tree.read(file, &mut read, 0).unwrap();
        assert_eq!((read[0], read[4096]), (b'o', b'0'));
    }
}

/// Compares names, contents and link targets with a folder of the host: for volumes that the kernel
/// here cannot mount, made by `mke2fs -d`. Returns the number of objects.
fn compare_with_folder(tree: &dyn FileSystem, dir: NodeId, folder: &Path) -> usize {
    let theirs: BTreeSet<Vec<u8>> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_vec()).collect();
    let mut ours = BTreeSet::new();
    tree.read_dir(dir, 0, &mut |entry| ours.insert(entry.name.into_owned())).unwrap();
    ours.remove(&b"lost+found"[..]);
    assert_eq!(ours, theirs);
    let mut count = 0;
    for name in ours {
        let path = folder.join(OsStr::from_bytes(&name));
        let node = tree.lookup(dir, &name).unwrap().expect("listed");
        let attributes = tree.attributes(node).unwrap();
        count += 1;
        match attributes.kind {
            Kind::Directory => count += compare_with_folder(tree, node, &path),
            Kind::Symlink => {
                assert_eq!(tree.read_link(node).unwrap(), std::fs::read_link(path).unwrap().as_os_str().as_bytes());
            }
            _ => {
                let mut bytes = vec![0; attributes.size as usize];
                assert_eq!(tree.read(node, &mut bytes, 0).unwrap(), bytes.len());
                assert!(bytes == std::fs::read(&path).unwrap(), "{}", path.display());
            }
        }
    }
    count
}

#[test]
fn blocks_of_64_kib_have_rows_of_length_0_and_65535() {
    for options in ["-t ext4 -O metadata_csum", "-t ext2", "-t ext4 -O inline_data,^metadata_csum"] {
        let scratch = Scratch::new("64k");
        let image = scratch.path("image");
        sh(&format!(
            r#"cd {}; mkdir -p tree/many tree/none; for i in $(seq 2500); do echo $i > tree/many/$i-{}; done
            head -c 500000 /dev/urandom > tree/file; ln -s {} tree/link
            truncate -s 300M image; mke2fs -q -F {options} -b 65536 -N 4096 -d tree image 2>/dev/null"#,
            scratch.0.display(),
            "n".repeat(100),
            "t".repeat(300)
        ));
        let tree = open_image(&image, false);
        assert_eq!(compare_with_folder(tree.as_ref(), tree.root(), &scratch.path("tree")), 2504);
        let lost = tree.lookup(tree.root(), b"lost+found").unwrap().unwrap();
        tree.read_dir(lost, 0, &mut |_| panic!("lost+found is empty")).unwrap();
    }
}

#[test]
fn casefolded_directories_are_looked_up_without_case() {
    let scratch = Scratch::new("casefold");
    let image = scratch.path("image");
    sh(&format!(
        r#"cd {}; mkdir -p tree/dir tree/many; touch tree/dir/Hello tree/dir/grün tree/dir/Straße; touch tree/dir/$'bad\xff'
        for i in $(seq 2000); do : > tree/many/Name-$i-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done
        truncate -s 32M image; mke2fs -q -F -t ext4 -O casefold -E encoding=utf8 -N 4000 -d tree image
        for d in dir many; do debugfs -w -R "sif /$d flags 0x40080000" image 2>/dev/null; done
        e2fsck -fyD image >/dev/null || true"#,
        scratch.0.display()
    ));
    let tree = open_image(&image, false);
    let find = |dir: &str, name: &[u8]| {
        let dir = tree.lookup(tree.root(), dir.as_bytes()).unwrap().unwrap();
        tree.lookup(dir, name).unwrap()
    };
    let hello = find("dir", b"Hello").expect("as stored");
    assert_eq!(find("dir", b"hELLO"), Some(hello));
    assert!(find("dir", "GRÜN".as_bytes()).is_some() && find("dir", "gru\u{308}n".as_bytes()).is_some());
    assert!(find("dir", "STRASSE".as_bytes()).is_some());
    assert!(find("dir", b"bad\xff").is_some() && find("dir", b"BAD\xff").is_none());
    assert!(find("dir", b"hello!").is_none());
    let name = b"nAME-1234-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxX";
    assert!(find("many", name).is_some());
    assert_eq!(tree.lookup(tree.root(), b"DIR").unwrap(), None);
    assert_eq!(compare_with_folder(tree.as_ref(), tree.root(), &scratch.path("tree")), 2006);
}

#[test]
fn encrypted_names_and_links_have_the_kernels_form_and_contents_need_the_key() {
    let scratch = Scratch::new("encrypt");
    let image = scratch.path("image");
    sh(&format!("truncate -s 64M {0}; mke2fs -q -F -t ext4 -b 4096 -O encrypt,metadata_csum {0}", image.display()));
    {
        let mount = Mount::new(&image, scratch.path("rw"), "rw");
        sh(&format!(
            r#"cd {}; python3 - <<'PY'
import fcntl, os, struct
root = os.open('.', os.O_RDONLY)
key = bytearray(struct.pack('<II32sII32s', 2, 0, b'', 64, 0, b'') + bytes(range(64)))
fcntl.ioctl(root, 0xc0506617, key, True)
for name in ['few', 'many', 'paged']:
    os.mkdir(name); fd = os.open(name, os.O_RDONLY)
    fcntl.ioctl(fd, 0x800c6613, struct.pack('<BBBBB3s16s', 2, 1, 4, 3, 0, b'', bytes(key[8:24])))
    os.close(fd)
open('few/file', 'w').write('secret' * 1000); open('few/empty', 'w').close()
open('few/' + 'l' * 250, 'w').close(); open('few/' + 'm' * 145, 'w').close(); os.symlink('target' * 5, 'few/link')
os.symlink('t' * 300, 'few/long'); os.makedirs('few/sub/below'); open('few/sub/below/x', 'w').write('y')
os.mkfifo('few/pipe')
for i in range(1200): open('many/%d' % i, 'w').close()
for i in range(70): open('paged/%d-%s' % (i, 'p' * 80), 'w').close()
open('clear', 'w').write('text')
PY"#,
            mount.0.display()
        ));
    }
    let mount = Mount::new(&image, scratch.path("ro"), "ro");
    let tree = open_image(&image, false);
    let mut counts = Counts::default();
    compare(tree.as_ref(), tree.root(), &mount.0, &mut counts);
    assert!(counts.objects > 1280, "{counts:?}");
}

#[test]
fn an_index_of_three_levels_needs_large_dir() {
    let scratch = Scratch::new("large_dir");
    let image = scratch.path("image");
    sh(&format!("truncate -s 256M {0}; mke2fs -q -F -t ext4 -b 1024 -O large_dir -N 70000 {0}", image.display()));
    {
        let mount = Mount::new(&image, scratch.path("rw"), "rw");
        sh(&format!(
            "cd {}; mkdir d; python3 -c \"import os
for i in range(60000): os.close(os.open('d/%06d' % i + 'n' * 245, os.O_CREAT))\"",
            mount.0.display()
        ));
    }
    let tree = open_image(&image, false);
    let dir = tree.lookup(tree.root(), b"d").unwrap().unwrap();
    let mut count = 0;
    tree.read_dir(dir, 0, &mut |entry| {
        count += 1;
        assert_eq!(tree.lookup(dir, &entry.name).unwrap(), Some(entry.node));
        true
    })
    .unwrap();
    assert_eq!(count, 60000);
    assert_eq!(tree.lookup(dir, b"absent").unwrap(), None);
    let levels =
        sh(&format!("debugfs -R 'htree_dump /d' {} 2>/dev/null | grep -m1 'Indirect levels'", image.display()));
    assert_eq!(String::from_utf8_lossy(&levels).trim(), "Indirect levels: 2");
}

#[test]
fn a_lost_superblock_or_descriptor_table_is_read_from_its_backup() {
    let scratch = Scratch::new("backup");
    for (number, options) in
        ["-t ext4 -b 1024 -O metadata_csum", "-t ext4 -b 4096 -O metadata_csum,64bit", "-t ext2 -b 2048"]
            .iter()
            .enumerate()
    {
        let image = scratch.path(&format!("image{number}"));
        sh(&format!(
            r#"cd {0}; mkdir -p tree/dir; echo hello > tree/dir/file; truncate -s 300M {1}
            mke2fs -q -F {options} -d tree {1}"#,
            scratch.0.display(),
            image.display()
        ));
        let whole = open_image(&image, false).summary();
        for (what, skip, count) in [("superblock", 1024, 1024), ("descriptors", 0, 0), ("both", 0, 8192)] {
            let block = whole.block_size as usize;
            let (skip, count) =
                if what == "descriptors" { (if block == 1024 { 2048 } else { block }, block) } else { (skip, count) };
            let copy = scratch.path("copy");
            sh(&format!(
                "cp --sparse=always {0} {1}; dd if=/dev/zero of={1} bs=1 seek={skip} count={count} conv=notrunc status=none",
                image.display(),
                copy.display()
            ));
            let tree = open_image(&copy, false);
            assert_eq!(compare_with_folder(tree.as_ref(), tree.root(), &scratch.path("tree")), 2, "{options} {what}");
            let summary = tree.summary();
            assert_eq!((summary.uuid, summary.variant), (whole.uuid.clone(), whole.variant.clone()));
            if what != "descriptors" {
                assert!(summary.notes.iter().any(|note| note.contains("backup")), "{:?}", summary.notes);
            }
        }
    }
}

/// One directory block and one inode are damaged: all others are shown, and the loss is said.
#[test]
fn a_directory_of_no_size_is_an_error_and_no_empty_folder() {
    let scratch = Scratch::new("no-size");
    for path in ["/", "/dir"] {
        sh(&format!(
            r"cd {}; rm -rf tree image; mkdir -p tree/dir; echo x > tree/dir/file
            truncate -s 2M image; mke2fs -q -F -t ext2 -b 1024 -d tree image
            debugfs -w -R 'sif {path} size 0' image 2>/dev/null",
            scratch.0.display()
        ));
        let tree = open_image(&scratch.path("image"), false);
        let dir = if path == "/" { tree.root() } else { tree.lookup(tree.root(), b"dir").unwrap().unwrap() };
        let result = tree.read_dir(dir, 0, &mut |entry| panic!("{entry:?}"));
        assert!(matches!(result, Err(Error::Corrupt { .. })), "{result:?}");
        assert!(matches!(tree.lookup(dir, b"file"), Err(Error::Corrupt { .. })));
    }
}

#[test]
fn damage_in_one_place_hides_nothing_else_and_is_an_error_of_its_own_node() {
    let scratch = Scratch::new("damage");
    let image = scratch.path("image");
    sh(&format!(
        r#"cd {}; mkdir -p tree/many tree/other; echo x > tree/other/file; echo y > tree/bad
        for i in $(seq 300); do : > tree/many/name-$i-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done
        truncate -s 16M image; mke2fs -q -F -t ext4 -b 1024 -O metadata_csum,^has_journal -d tree image
        set -- $(debugfs -R 'blocks /many' image 2>/dev/null)
        printf '\xff' | dd of=image bs=1 seek=$(($4 * 1024 + 100)) conv=notrunc status=none
        debugfs -w -R 'sif /bad mode 0100777' image 2>/dev/null
        at=$(debugfs -R 'imap /bad' image 2>/dev/null | sed -n 's/.*block \([0-9]*\), offset \(0x[0-9a-f]*\).*/\1 \2/p')
        set -- $at; printf '\001' | dd of=image bs=1 seek=$(($1 * 1024 + $2 + 16)) conv=notrunc status=none"#,
        scratch.0.display()
    ));
    let tree = open_image(&image, false);
    let many = tree.lookup(tree.root(), b"many").unwrap().unwrap();
    for _ in 0..2 {
        let mut count = 0;
        let result = tree.read_dir(many, 0, &mut |_| {
            count += 1;
            true
        });
        assert!(matches!(result, Err(Error::Corrupt { .. })), "{result:?}");
        assert!((200..300).contains(&count), "{count}");
    }
    // In pieces, the error comes with the last one.
    let (mut cursor, mut errors, mut rounds) = (0, 0, 0);
    loop {
        let before = cursor;
        let result = tree.read_dir(many, cursor, &mut |entry| {
            cursor = entry.next;
            rounds += 1;
            rounds % 50 != 0
        });
        errors += usize::from(result.is_err());
        if before == cursor || result.is_err() {
            break;
        }
    }
    assert_eq!(errors, 1);
    assert!(matches!(tree.lookup(many, b"absent"), Err(Error::Corrupt { .. })));
    let bad = tree.lookup(tree.root(), b"bad").unwrap().unwrap();
    assert!(matches!(tree.attributes(bad), Err(Error::Corrupt { .. })));
    let other = tree.lookup(tree.root(), b"other").unwrap().unwrap();
    let file = tree.lookup(other, b"file").unwrap().unwrap();
    assert_eq!(tree.read(file, &mut [0; 9], 0).unwrap(), 2);
}

/// Such extents are zeros in a file; in a directory the kernel reads what is there.
#[test]
fn a_directory_in_unwritten_blocks_reads_as_in_the_kernel() {
    let scratch = Scratch::new("unwritten");
    let image = scratch.path("image");
    sh(&format!(
        r#"cd {}; mkdir -p tree/dir; echo x > tree/dir/file; echo y > tree/file
        truncate -s 4M image; mke2fs -q -F -t ext4 -O ^metadata_csum,^has_journal -d tree image
        for name in /dir /file; do
            set -- $(debugfs -R "imap $name" image 2>/dev/null \
                | sed -n 's/.*block \([0-9]*\), offset \(0x[0-9a-f]*\).*/\1 \2/p')
            block=$(dumpe2fs -h image 2>/dev/null | sed -n 's/^Block size: *//p')
            printf '\200' | dd of=image bs=1 seek=$(($1 * block + $2 + 57)) conv=notrunc status=none
        done"#,
        scratch.0.display()
    ));
    let mount = Mount::new(&image, scratch.path("ro"), "ro");
    let tree = open_image(&image, false);
    let mut counts = Counts::default();
    compare(tree.as_ref(), tree.root(), &mount.0, &mut counts);
    let dir = tree.lookup(tree.root(), b"dir").unwrap().unwrap();
    assert!(tree.lookup(dir, b"file").unwrap().is_some());
    let file = tree.lookup(tree.root(), b"file").unwrap().unwrap();
    let mut read = [1; 2];
    assert_eq!((tree.read(file, &mut read, 0).unwrap(), read), (2, [0; 2]));
}

#[test]
fn a_directory_larger_than_its_device_ends_with_an_error() {
    let scratch = Scratch::new("endless");
    let image = scratch.path("image");
    let said = sh(&format!(
        r"cd {}; mke2fs -q -t ext2 -b 1024 image 1M >/dev/null; echo 'mkdir d' | debugfs -w image >/dev/null 2>&1
        printf 'sif d block[IND] 900\nsif d block[DIND] 901\nsif d size 67000320\n' | debugfs -w image >/dev/null 2>&1
        debugfs -R 'blocks /d' image 2>/dev/null",
        scratch.0.display()
    ));
    // Its one block again and again: all of an indirect block, which is all of another.
    let block: u32 = String::from_utf8(said).unwrap().split(' ').next().unwrap().parse().unwrap();
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[900 << 10..901 << 10].copy_from_slice(&block.to_le_bytes().repeat(256));
    bytes[901 << 10..902 << 10].copy_from_slice(&900u32.to_le_bytes().repeat(256));
    std::fs::write(&image, bytes).unwrap();
    let tree = open_image(&image, false);
    let dir = tree.lookup(tree.root(), b"d").unwrap().unwrap();
    let listed = tree.read_dir(dir, 0, &mut |_| true);
    assert!(matches!(listed, Err(Error::Corrupt { .. })), "{listed:?}");
    assert!(tree.lookup(dir, b"x").is_err());
}

/// What lies before the end of a cut image is read; what lies behind is an error, never zeros.
#[test]
fn a_cut_image_is_read_as_far_as_it_goes() {
    let scratch = Scratch::new("cut");
    let image = scratch.path("image");
    sh(&format!(
        r#"cd {}; mkdir tree; head -c 3000000 /dev/urandom > tree/file; echo small > tree/small
        truncate -s 16M image; mke2fs -q -F -t ext4 -b 4096 -O ^has_journal -d tree image"#,
        scratch.0.display()
    ));
    let whole = open_image(&image, false);
    let file = whole.lookup(whole.root(), b"file").unwrap().unwrap();
    let mut bytes = std::fs::read(&image).unwrap();
    let content = std::fs::read(scratch.path("tree/file")).unwrap();
    let place = bytes.windows(4096).position(|window| window == &content[..4096]).unwrap();
    bytes.truncate(place + 1_000_000);
    let device: Device = Arc::new(Memory::new(bytes, 512));
    let (_, tree) = open(&device, &Options::default()).unwrap().unwrap();
    let mut read = vec![0; 50_000];
    assert_eq!(tree.read(file, &mut read, 0).unwrap(), read.len());
    assert!(read == content[..50_000]);
    assert!(tree.read(file, &mut read, 2_500_000).is_err());
    assert!(tree.summary().notes.iter().any(|note| note.contains("missing")));
}

/// Where another format's volume covers an old one, ext's backups do not count.
#[test]
fn a_volume_that_is_not_ext_is_not_claimed() {
    let scratch = Scratch::new("probe");
    let image = scratch.path("image");
    sh(&format!("truncate -s 64M {0}; mke2fs -q -F -t ext4 -b 1024 {0}", image.display()));
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[..2048].fill(0);
    bytes[..11].copy_from_slice(b"\xeb\x3c\x90MSDOS5.0");
    let device: Device = Arc::new(Memory::new(bytes, 512));
    let found = open(&device, &Options::default());
    assert!(!matches!(found, Ok(Some(("ext", _)))));
}

#[test]
fn fast_commits_are_said_when_they_are_not_replayed() {
    let scratch = Scratch::new("fast");
    let (image, dirty) = (scratch.path("image"), scratch.path("dirty"));
    sh(&format!("truncate -s 64M {0}; mke2fs -q -F -t ext4 -O fast_commit {0}", image.display()));
    {
        let mount = Mount::new(&image, scratch.path("rw"), "rw");
        sh(&format!(
            r#"cd {}; python3 -c "
import os
for i in range(20): open('file%d' % i, 'w').write('x' * 5000)
os.sync()
for i in range(20):
    fd = os.open('file%d' % i, os.O_APPEND | os.O_WRONLY); os.write(fd, b'x' * 5000); os.fsync(fd)"
            cp --sparse=always {} {}"#,
            mount.0.display(),
            image.display(),
            dirty.display()
        ));
    }
    let notes = open_image(&dirty, false).summary().notes.join("; ");
    assert!(notes.contains("fast commits"), "{notes}");
}

#[test]
fn a_journal_that_is_longer_than_what_is_looked_at_is_said() {
    use std::os::unix::fs::FileExt;

    let scratch = Scratch::new("j-long");
    let image = scratch.path("image");
    let shown = image.display();
    sh(&format!(
        "truncate -s 2400M {shown}; mke2fs -q -F -t ext4 -b 1024 -G 1024 -J size=1100 \
            -O ^metadata_csum,^64bit,^resize_inode -E lazy_journal_init=1,lazy_itable_init=1 {shown}
        debugfs -w -R 'feature needs_recovery' {shown} >&2"
    ));
    // Bytes of the image at which blocks of the journal lie.
    let places = |blocks: &mut dyn Iterator<Item = u32>| -> Vec<u64> {
        let script: Vec<String> = blocks.map(|block| format!("bmap <8> {block}\n")).collect();
        std::fs::write(scratch.path("script"), script.concat()).unwrap();
        let said = sh(&format!("debugfs -f {} {shown} 2>/dev/null", scratch.path("script").display()));
        let said = String::from_utf8(said).unwrap();
        let places: Vec<u64> =
            said.lines().filter_map(|line| line.trim().parse::<u64>().ok()).map(|block| block * 1024).collect();
        assert_eq!(places.len(), script.len());
        places
    };
    let first = places(&mut (0..2));
    let file = std::fs::File::options().read(true).write(true).open(&image).unwrap();
    let mut superblock = vec![0; 1024];
    file.read_exact_at(&mut superblock, first[0]).unwrap();
    let number = |at: usize| u32::from_be_bytes(superblock[at..at + 4].try_into().unwrap());
    let (blocks, sequence) = (number(16), number(24));
    assert_eq!((number(0), blocks), (0xc03b_3998, 1100 * 1024));
    // One commit, then a transaction that fills the ring: descriptors of as many tags as there is room for.
    let head = |kind: u32, sequence: u32| -> Vec<u8> {
        [0xc03b_3998, kind, sequence].into_iter().flat_map(u32::to_be_bytes).collect()
    };
    let mut descriptor = head(1, sequence + 1);
    for tag in 0..124u32 {
        // Of 8 bytes; the first one is followed by a UUID, the last one is marked.
        let flags = [(0, 0u32), (123, 2 | 8)].into_iter().find(|(at, _)| *at == tag).map_or(2, |(_, flags)| flags);
        descriptor.extend([9000 + tag, flags].into_iter().flat_map(u32::to_be_bytes));
        descriptor.resize(descriptor.len() + if tag == 0 { 16 } else { 0 }, 0);
    }
    descriptor.resize(1024, 0);
    file.write_all_at(&head(2, sequence), first[1]).unwrap();
    for place in places(&mut (2..blocks - 1).step_by(125)) {
        file.write_all_at(&descriptor, place).unwrap();
    }
    superblock[28..32].copy_from_slice(&1u32.to_be_bytes());
    file.write_all_at(&superblock, first[0]).unwrap();
    let notes = open_image(&image, false).summary().notes;
    let said = format!(
        "the journal has {} blocks, of which {} were looked at: later changes may be missing",
        blocks - 1,
        1 << 20
    );
    assert!(notes.contains(&said), "{notes:?}");
    assert!(notes.contains(&"journal replayed in memory: 1 transactions, 0 blocks".to_owned()), "{notes:?}");
}

/// Transactions that debugfs writes, one of which revokes: compared with e2fsck's replay.
#[test]
fn a_journal_with_csum_v2_and_revokes_is_replayed_as_by_e2fsck() {
    for version in [2, 3] {
        let scratch = Scratch::new(&format!("j-debugfs{version}"));
        let (image, repaired) = (scratch.path("image"), scratch.path("repaired"));
        sh(&format!(
            r#"cd {0}; mkdir tree; head -c 40000 /dev/urandom > tree/file; head -c 4096 /dev/urandom > one
            head -c 4096 /dev/urandom > two; head -c 4096 /dev/urandom > three
            truncate -s 32M image; mke2fs -q -F -t ext4 -b 4096 -O metadata_csum,64bit -d tree image
            set -- $(debugfs -R 'blocks /file' image 2>/dev/null)
            printf 'jo -c -v {version}\njw -b %s one\njw -b %s,%s two\njw -b %s three\njw -r %s\njc\n' \
                $1 $2 $3 $2 $3 > script
            debugfs -w -f script image >log 2>&1; cp image repaired; e2fsck -fy repaired >>log 2>&1 || true"#,
            scratch.0.display()
        ));
        let tree = open_image(&image, false);
        let notes = tree.summary().notes.join("; ");
        assert!(notes.contains("journal replayed"), "{notes}");
        let theirs = open_image(&repaired, false);
        assert!(!theirs.summary().notes.join(";").contains("needs_recovery"));
        let read = |tree: &dyn FileSystem| {
            let file = tree.lookup(tree.root(), b"file").unwrap().unwrap();
            let mut bytes = vec![0; 40000];
            assert_eq!(tree.read(file, &mut bytes, 0).unwrap(), 40000);
            bytes
        };
        assert!(read(tree.as_ref()) == read(theirs.as_ref()), "version {version}: {notes}");
        assert!(read(tree.as_ref()) != read(open_image(&image, true).as_ref()), "nothing was replayed");
    }
}

/// Ten thousands of flipped bytes in small images of many kinds: every answer is an answer.
#[test]
fn flipped_bytes_never_stop_a_walk() {
    let scratch = Scratch::new("flips");
    let kinds = [
        REVISION_0,
        "-t ext4 -b 1024 -O ^metadata_csum,inline_data,^has_journal -I 256",
        "-t ext4 -b 1024 -O ^metadata_csum,^has_journal,^resize_inode,meta_bg,64bit",
        "-t ext4 -b 4096 -O metadata_csum,^has_journal,ea_inode",
        "-t ext3 -b 1024 -J size=1",
        "-t ext4 -b 1024 -J size=1 -O metadata_csum,64bit,has_journal",
    ];
    sh(&format!(
        r#"cd {0}; mkdir -p tree/dir/sub tree/many; head -c 50000 /dev/urandom > tree/dir/file; echo tiny > tree/tiny
        ln -s {1} tree/long; ln -s short tree/short; setfattr -n user.a -v b tree/tiny; setfacl -m u:1:r tree/tiny
        for i in $(seq 200); do : > tree/many/name-$i-xxxxxxxxxxxxxxxx; done
        python3 -c "
f = open('tree/holes', 'wb')
for i in range(40): f.seek(i * 9000); f.write(b'x')""#,
        scratch.0.display(),
        "l".repeat(100)
    ));
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let started = std::time::Instant::now();
    for (number, kind) in kinds.iter().enumerate() {
        let image = scratch.path(&format!("image{number}"));
        sh(&format!(
            r#"cd {1}; truncate -s 3M {0}; mke2fs -q -F {kind} -d tree {0}; e2fsck -fyD {0} || true
            if dumpe2fs -h {0} 2>/dev/null | grep -q has_journal; then
                head -c 1024 /dev/urandom > one; set -- $(debugfs -R 'blocks /dir/file' {0} 2>/dev/null)
                printf 'jo\njw -b %s,%s one\njw -r %s\njw -b %s one\njc\n' $1 $2 $1 $3 > script
                debugfs -w -f script {0}
            fi"#,
            image.display(),
            scratch.0.display()
        ));
        let bytes = std::fs::read(&image).unwrap();
        if kind.contains("ext3") || kind.contains("64bit,has_journal") {
            let image = std::fs::read(&image).unwrap();
            let device: Device = Arc::new(Memory::new(image, 512));
            let (_, tree) = open(&device, &Options::default()).unwrap().unwrap();
            assert!(tree.summary().notes.iter().any(|note| note.contains("journal replayed")));
        }
        // Bytes in use, where flips matter.
        let used: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] != 0).collect();
        for round in 0..1500u64 {
            let mut mutant = bytes.clone();
            for _ in 0..=random(6) {
                let at = if random(4) == 0 { random(9000) as usize } else { used[random(used.len() as u64) as usize] };
                mutant[at] = if random(3) == 0 { 0xff } else { random(256) as u8 };
            }
            if round % 50 == 0 {
                mutant.truncate(random(bytes.len() as u64) as usize);
            }
            let device: Device = Arc::new(Memory::new(mutant, 512));
            let one = std::time::Instant::now();
            if let Ok(Some((_, tree))) = open(&device, &Options::default()) {
                let mut budget = 3000;
                walk_all(tree.as_ref(), tree.root(), 0, &mut budget);
            }
            assert!(one.elapsed().as_secs() < 5, "kind {number}, round {round}: {:?}", one.elapsed());
        }
    }
    eprintln!("{} mutants in {:?}", kinds.len() * 1500, started.elapsed());
}

fn walk_all(tree: &dyn FileSystem, dir: NodeId, depth: u32, budget: &mut u32) {
    let mut rows = Vec::new();
    let _ = tree.read_dir(dir, 0, &mut |entry| {
        rows.push((entry.name.into_owned(), entry.node));
        rows.len() < 1000
    });
    for (index, (name, node)) in rows.into_iter().enumerate() {
        let Some(left) = budget.checked_sub(1) else { return };
        *budget = left;
        if index % 16 == 0 {
            let _ = tree.lookup(dir, &name);
        }
        for attribute in tree.xattrs(node).unwrap_or_default() {
            let _ = tree.xattr(node, &attribute);
        }
        let _ = tree.read_link(node);
        let Ok(attributes) = tree.attributes(node) else { continue };
        if attributes.kind == Kind::File && attributes.size > 0 {
            let mut buf = [0; 70_000];
            let _ = tree.read(node, &mut buf, 0);
            let _ = tree.read(node, &mut buf, attributes.size - attributes.size.min(1000));
            let _ = tree.extent(node, attributes.size / 2);
        }
        if attributes.kind == Kind::Directory && depth < 8 {
            walk_all(tree, node, depth + 1, budget);
        }
    }
}

#[test]
fn a_size_that_no_file_can_have_is_damage_and_the_largest_one_is_not() {
    let scratch = Scratch::new("size");
    let (dir, image) = (scratch.0.display(), scratch.path("image"));
    for (kind, most) in
        [("ext4", u64::from(u32::MAX) * 1024), ("ext2", (12 + 256 + 256 * 256 + 256 * 256 * 256) * 1024)]
    {
        sh(&format!(
            "cd {dir}; rm -rf from image; mkdir from; echo x >from/most; echo x >from/more
             mke2fs -q -t {kind} -b 1024 -d from image 4M
             debugfs -w -R 'sif /most size {most}' image 2>/dev/null
             debugfs -w -R 'sif /more size {}' image 2>/dev/null",
            most + 1
        ));
        let hash = hash_of(&image);
        let tree = open_image(&image, false);
        let node = |name: &[u8]| tree.lookup(tree.root(), name).unwrap().unwrap();
        assert_eq!(tree.attributes(node(b"most")).unwrap().size, most, "{kind}");
        let refused = tree.attributes(node(b"more"));
        assert!(matches!(refused, Err(Error::Corrupt { .. })), "{kind}: {refused:?}");
        // The kernel's word on both.
        let mount = Mount::new(&image, scratch.path("mnt"), "ro,noload");
        assert_eq!(std::fs::metadata(mount.0.join("most")).unwrap().len(), most, "{kind}");
        assert_eq!(std::fs::metadata(mount.0.join("more")).unwrap_err().raw_os_error(), Some(117), "{kind}");
        drop(mount);
        assert_eq!(hash_of(&image), hash);
    }
}
