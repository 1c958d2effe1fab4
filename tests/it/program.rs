//! The program as its users run it, and what a mount of it needs to be undone.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::fat::tool;

/// The checkout, or a copy of its testimages, scripts and packaging that an ordinary user can read.
pub(crate) fn project() -> PathBuf {
    std::env::var_os("IMGFS_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The program under test.
pub(crate) fn imgfs() -> Command {
    let built = OsStr::new(env!("CARGO_BIN_EXE_imgfs"));
    let mut command = Command::new(std::env::var_os("IMGFS_BIN").as_deref().unwrap_or(built));
    command.env("LC_ALL", "C.UTF-8").env("TZ", "UTC").env_remove("IMGFS_LOG");
    command
}

/// What a run of the program said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) fn said(output: Output) -> Said {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs the program, whatever comes out of it.
pub(crate) fn run(args: &[&str]) -> Said {
    said(imgfs().args(args).output().expect("the program starts"))
}

/// Runs the program, which has to succeed without a word on standard error.
pub(crate) fn ok(args: &[&str]) -> String {
    let said = run(args);
    // Where an edit went is no complaint.
    let complaints = said.err.lines().find(|line| !line.starts_with("imgfs: changes went to "));
    assert_eq!((said.code, complaints), (Some(0), None), "imgfs {args:?}: {}", said.out);
    said.out
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) fn needs_root() {
    assert!(is_root(), "this test needs root: scripts/test runs it as root");
}

pub(crate) fn sha256(path: &Path) -> String {
    let mut file = std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let len = file.read(&mut buffer).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if len == 0 {
            return hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        }
        hash.update(&buffer[..len]);
    }
}

/// Size, modes, times and contents of an image; compared with themselves in the end.
pub(crate) struct Untouched {
    path: PathBuf,
    before: String,
}

impl Untouched {
    pub(crate) fn new(path: &Path) -> Self {
        Self { before: Self::state(path), path: path.to_owned() }
    }

    fn state(path: &Path) -> String {
        let found = std::fs::metadata(path).unwrap();
        let mode = found.permissions().mode();
        // Of the large ones, which are sparse, the start: nothing was copied further up.
        let hash = match found.len() {
            0..=0x1000_0000 => sha256(path),
            _ => {
                let mut start = Vec::new();
                std::fs::File::open(path).unwrap().take(64 << 20).read_to_end(&mut start).unwrap();
                format!("{:?}", Sha256::digest(start))
            }
        };
        format!("{} bytes, mode {mode:o}, {}.{}, {hash}", found.len(), found.mtime(), found.mtime_nsec())
    }
}

impl Drop for Untouched {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(Self::state(&self.path), self.before, "{} was changed", self.path.display());
        }
    }
}

/// An image of testimages/, unpacked into `folder`.
pub(crate) fn testimage(name: &str, folder: &Path) -> PathBuf {
    let packed = project().join("testimages").join(name);
    let copy = folder.join(packed.file_name().unwrap());
    if packed.exists() {
        std::fs::copy(&packed, &copy).unwrap();
    } else {
        let packed = format!("{}.zst", packed.display());
        tool("zstd", "zstd", &["-q", "-d", "--sparse", &packed, "-o", copy.to_str().unwrap()]);
    }
    copy
}

/// A mount of ours, undone with the test, also when that fails.
pub(crate) struct Mounted {
    pub(crate) at: PathBuf,
    pub(crate) pid: u32,
    _untouched: Option<Untouched>,
}

impl Mounted {
    /// Mounts on a folder beside the image.
    pub(crate) fn new(image: &Path, options: &[&str]) -> Self {
        let at = PathBuf::from(format!("{}.mnt", image.display()));
        std::fs::create_dir_all(&at).unwrap();
        Self::onto(image.to_str().unwrap(), Some(image), &at, options)
    }

    /// Mounts on what is given; `file` is the image's file without a suffix such as `@@1M`.
    pub(crate) fn onto(image: &str, file: Option<&Path>, at: &Path, options: &[&str]) -> Self {
        let untouched = file.map(Untouched::new);
        let pid_file = PathBuf::from(format!("{}.pid", at.display()));
        let output = imgfs()
            .arg(image)
            .arg(at)
            .args(options)
            .arg("--pid-file")
            .arg(&pid_file)
            .output()
            .expect("the program starts");
        let said = said(output);
        assert_eq!(said.code, Some(0), "mounting {image}: {}", said.err);
        let pid = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
        Self { at: at.to_owned(), pid, _untouched: untouched }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if mount_of(&self.at).is_some() {
            let how = if std::thread::panicking() { &["umount", "-z"][..] } else { &["umount"] };
            let said = said(imgfs().args(how).arg(&self.at).output().unwrap());
            if !std::thread::panicking() {
                assert_eq!(said.code, Some(0), "unmounting: {}", said.err);
            }
        }
        if !std::thread::panicking() {
            assert!(ends(self.pid), "the daemon of {} stays", self.at.display());
        }
    }
}

/// Options, kind and source of the mount on a path, as the kernel lists it.
pub(crate) fn mount_of(at: &Path) -> Option<(String, String, String)> {
    // Another test may mount what has a name of any bytes.
    let text = std::fs::read("/proc/self/mounts").unwrap();
    let text = String::from_utf8_lossy(&text);
    let shown = at.to_str().unwrap().replace(' ', "\\040");
    let mut lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let line = lines.rfind(|fields| fields[1] == shown)?;
    Some((line[3].to_owned(), line[2].to_owned(), line[0].to_owned()))
}

/// Whether a process is at work: neither gone nor waiting to be reaped.
pub(crate) fn is_alive(pid: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with(['Z', 'X']))
}

/// Whether a process ends within ten seconds.
pub(crate) fn ends(pid: u32) -> bool {
    within(Duration::from_secs(10), || !is_alive(pid))
}

/// Waits until something is so.
pub(crate) fn within(limit: Duration, is_so: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < limit {
        if is_so() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    is_so()
}
