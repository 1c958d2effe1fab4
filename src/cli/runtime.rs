//! What is mounted: a small file a mount, in the user's runtime folder, locked by its daemon for as
//! long as that lives.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

/// How a mark starts whose daemon failed at the end.
const FAILED: &str = "failed: ";
/// Where the kernel lists its mounts.
const MOUNTS: &str = "/proc/self/mountinfo";

/// A mount as the kernel lists it.
pub struct Mounted {
    /// `MAJOR-MINOR` of the mount's device: unique while it is mounted.
    pub device: String,
    /// Kind of file system, as mounted.
    pub kind: String,
    /// Where.
    pub mountpoint: PathBuf,
    /// What: of ours, the image.
    pub source: PathBuf,
    /// Whether it can be written to.
    pub writable: bool,
    /// Who mounted it.
    pub uid: Option<u32>,
}

impl Mounted {
    /// Whether it is one of ours.
    pub fn is_ours(&self) -> bool {
        self.kind == "fuse.imgfs"
    }

    /// Whether its daemon is gone: nothing in it can be reached any more.
    pub fn is_dead(&self) -> bool {
        // What the kernel cannot answer by itself. While the daemon ends, the question is aborted.
        matches!(rustix::fs::statfs(&self.mountpoint), Err(Errno::NOTCONN | Errno::CONNABORTED))
    }
}

/// The kernel's list of mounts, to be read at any later time.
pub struct Mounts(File);

impl Mounts {
    /// Opens it.
    pub fn open() -> Result<Self> {
        Ok(Self(File::open(MOUNTS).context(MOUNTS)?))
    }

    /// All mounts that this process sees, in the order in which they were made. Works for a mount whose
    /// daemon is gone, which cannot be looked at otherwise.
    pub fn all(&self) -> Result<Vec<Mounted>> {
        let (mut list, mut text) = (&self.0, Vec::new());
        list.rewind().and_then(|()| list.read_to_end(&mut text)).context(MOUNTS)?;
        Ok(text.split(|&byte| byte == b'\n').filter_map(parse).collect())
    }

    /// What the kernel has at a mount point; `None` when nothing is mounted there. The last mount lies
    /// on top.
    pub fn at(&self, mountpoint: &Path) -> Result<Option<Mounted>> {
        Ok(self.all()?.into_iter().rfind(|mounted| mounted.mountpoint == mountpoint))
    }
}

/// As [`Mounts::all`], at once.
pub fn mounts() -> Result<Vec<Mounted>> {
    Mounts::open()?.all()
}

/// proc(5): `36 35 98:0 /root /mnt rw,noatime shared:1 - ext3 /dev/root rw,errors=continue`.
fn parse(line: &[u8]) -> Option<Mounted> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let separator = fields.iter().position(|field| *field == b"-")?;
    let (device, point, options) = (fields.get(2)?, fields.get(4)?, fields.get(5)?);
    let (kind, source) = (fields.get(separator + 1)?, fields.get(separator + 2)?);
    let whole = fields.get(separator + 3).copied().unwrap_or_default();
    let words = |options: &[u8]| String::from_utf8_lossy(options).split(',').map(str::to_owned).collect::<Vec<_>>();
    let uid = words(whole).iter().find_map(|word| word.strip_prefix("user_id=")?.parse().ok());
    Some(Mounted {
        device: String::from_utf8_lossy(device).replace(':', "-"),
        kind: String::from_utf8_lossy(kind).into_owned(),
        mountpoint: OsString::from_vec(unescaped(point)).into(),
        source: OsString::from_vec(unescaped(source)).into(),
        writable: [words(options), words(whole)].iter().all(|words| words.iter().any(|word| word == "rw")),
        uid,
    })
}

/// As [`Mounts::at`], at once.
pub fn mounted_at(mountpoint: &Path) -> Result<Option<Mounted>> {
    Mounts::open()?.at(mountpoint)
}

/// A path as the kernel writes it there: space, tab, newline and backslash are in octal.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, later)) = rest.split_first() {
        let digits = rest.get(1..4).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = rest.get(4..).unwrap_or_default();
            }
            None => {
                out.push(first);
                rest = later;
            }
        }
    }
    out
}

/// The absolute path of a mount point, without looking at what is mounted there: its daemon may be gone.
pub fn absolute(mountpoint: &Path) -> Result<PathBuf> {
    let plain = std::path::absolute(mountpoint)?;
    let (Some(parent), Some(name)) = (plain.parent(), plain.file_name()) else { return Ok(plain) };
    Ok(parent.canonicalize().with_context(|| parent.display().to_string())?.join(name))
}

/// The folder for the state of this user's mounts, made on first use, closed to others.
pub fn folder() -> Result<PathBuf> {
    private("imgfs")
}

/// The folder for mount points that nobody chose, made and closed likewise.
pub fn mount_points() -> Result<PathBuf> {
    private("imgfs-mounts")
}

fn private(name: &str) -> Result<PathBuf> {
    let uid = rustix::process::geteuid();
    let base = match std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !uid.is_root()) {
        Some(base) if Path::new(&base).is_dir() => PathBuf::from(base).join(name),
        _ if uid.is_root() && Path::new("/run").is_dir() => Path::new("/run").join(name),
        _ => std::env::temp_dir().join(format!("{name}-{}", uid.as_raw())),
    };
    match std::fs::create_dir(&base) {
        Ok(()) => std::fs::set_permissions(&base, Permissions::from_mode(0o700))?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).with_context(|| base.display().to_string()),
    }
    let found = std::fs::symlink_metadata(&base)?;
    let own = found.is_dir() && found.uid() == uid.as_raw() && found.mode() & 0o077 == 0;
    ensure!(own, "{} is not a folder of this user alone", base.display());
    Ok(base)
}

/// The mark of a living daemon; goes away with it.
pub struct Mark {
    path: PathBuf,
    locked: File,
}

impl Mark {
    /// Says that this process serves the mount.
    pub fn set(mounted: &Mounted, text: &str) -> Result<Self> {
        let path = folder()?.join(&mounted.device);
        let mut file = loop {
            let file = File::options().create(true).append(true).open(&path);
            let file = file.with_context(|| path.display().to_string())?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            // The kernel gives a device's number out again at once: the daemon that had it may just
            // have removed this file, as the last thing that it does.
            if std::fs::metadata(&path).is_ok_and(|now| file.metadata().is_ok_and(|own| own.ino() == now.ino())) {
                break file;
            }
        };
        file.set_len(0)?;
        file.write_all(text.as_bytes())?;
        Ok(Self { path, locked: file })
    }
}

impl Mark {
    /// Leaves word of a failure to whoever waits for the end.
    pub fn fail(&mut self, error: &anyhow::Error) {
        // Nobody waits, or the folder is full: there is no one else to tell.
        let _ = self.locked.set_len(0).and_then(|()| write!(self.locked, "{FAILED}{}", super::sentence(error)));
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // The lock goes with the file; a file that stays behind says nothing.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What the daemon of a mount says about itself; `None` where it is gone, or another user's.
pub fn said(mounted: &Mounted) -> Option<serde_json::Value> {
    let mark = File::open(folder().ok()?.join(&mounted.device)).ok()?;
    let lives = rustix::fs::flock(&mark, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK);
    if lives { serde_json::from_reader(mark).ok() } else { None }
}

/// A handle on a daemon, to be taken before unmounting: afterwards its mark may be gone.
#[derive(Default)]
pub struct Waiter {
    mark: Option<File>,
    process: Option<OwnedFd>,
}

impl Waiter {
    /// Looks for the mark of a mount.
    pub fn new(mounted: &Mounted) -> Self {
        let Some(mark) = folder().ok().and_then(|folder| File::open(folder.join(&mounted.device)).ok()) else {
            return Self::default();
        };
        // Only of a daemon that lives: a number that was left behind may be another's by now.
        let process = match rustix::fs::flock(&mark, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => process(&mark),
            _ => None,
        };
        Self { mark: Some(mark), process }
    }

    /// Returns when the daemon is gone, with what it failed at; at once when there was no mark.
    pub fn wait(self) -> Result<()> {
        let Some(mut mark) = self.mark else { return Ok(()) };
        rustix::fs::flock(&mark, FlockOperation::LockShared)?;
        if let Some(process) = self.process {
            let mut end = [PollFd::new(&process, PollFlags::IN)];
            while rustix::event::poll(&mut end, None) == Err(Errno::INTR) {}
        }
        let mut text = String::new();
        mark.rewind()?;
        mark.read_to_string(&mut text)?;
        text.strip_prefix(FAILED).map_or(Ok(()), |error| bail!("unmounted, but: {error}"))
    }
}

/// The process that a mark names.
fn process(mark: &File) -> Option<OwnedFd> {
    let mark: serde_json::Value = serde_json::from_reader(mark).ok()?;
    let number = i32::try_from(mark.get("pid")?.as_i64()?).ok()?;
    rustix::process::pidfd_open(Pid::from_raw(number)?, PidfdFlags::empty()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_from_its_line() {
        let line = b"151 29 0:54 / /mnt/a\\040b rw,nosuid,nodev shared:9 - fuse.imgfs /home/a\\134.img ro,user_id=1000,group_id=3";
        let found = parse(line).unwrap();
        assert!(found.is_ours() && !found.writable);
        assert_eq!((found.device.as_str(), found.uid), ("0-54", Some(1000)));
        assert_eq!(
            (found.mountpoint.as_path(), found.source.as_path()),
            (Path::new("/mnt/a b"), Path::new("/home/a\\.img"))
        );
        assert!(parse(b"").is_none());
    }
}
