//! What a process that decodes an image can still do to its host: nothing but its task.
//!
//! Before the first byte of an image is decoded, the process gives up all that it does not need, so
//! that a bug in a decoder leads nowhere. The kernel enforces it, for this thread and all that it
//! starts later; what cannot be done by then is done by the [`keeper`](super::keeper).
//!
//! ```text
//!   no new privileges   set-user-id programs give none
//!   Landlock            files: read below the folders of the images, write where the task says (Linux
//!                       5.13); no TCP (6.7); no abstract socket outside (6.12)
//!   seccomp             only the system calls of reading, waiting and threads: no program is
//!                       started, no connection made, no owner or mode changed, no code mapped, no
//!                       other process reached, no command given to a device
//!   capabilities        of root's only those to read what is another user's, to write and own where the
//!                       task says, and for a mount the one that passthrough takes
//! ```

mod calls;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use imgfs::stack::Writing;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope, make_bitflags,
};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::target::{ImageArgs, Target};

/// The newest rules that are asked for; older kernels take those that they know.
const RULES: ABI = ABI::V6;

/// How careful a command is with images, which are strangers' files.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct SafetyArgs {
    /// Decode without giving up the right to write files, start programs and make connections
    #[arg(long)]
    pub no_sandbox: bool,
    /// Also follow an image's references (parents, extents, tracks) to files below this folder
    #[arg(long, value_name = "DIR")]
    pub allow_references: Vec<PathBuf>,
}

/// What a process keeps.
pub struct Sandbox {
    /// A path that is not there, or cannot be opened, is no rule: its user will say so.
    rules: BTreeMap<PathBuf, BitFlags<AccessFs>>,
    /// What root keeps; of others there is nothing to keep.
    capabilities: CapabilitySet,
    extraction: bool,
    off: bool,
}

impl Sandbox {
    fn empty() -> Self {
        // An image that only its owner can read is one that root opens.
        Self { rules: BTreeMap::new(), capabilities: CapabilitySet::DAC_READ_SEARCH, extraction: false, off: false }
    }

    /// Keeps what every decoder needs: the folder of indexes and spools, the folders of references.
    pub fn new(args: &SafetyArgs) -> Self {
        let mut new = Self::empty();
        new.off = args.no_sandbox;
        for folder in &args.allow_references {
            new.read(folder);
        }
        let writable = |folder: &PathBuf| rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok();
        let cache = imgfs::container::cache_folder(&imgfs::container::Options::default()).filter(writable);
        new.fill(cache.as_deref().unwrap_or(Path::new("/var/tmp")));
        new
    }

    /// Confines a command that reads these images and nothing else.
    pub fn enter_for<'a>(args: &ImageArgs, targets: impl IntoIterator<Item = &'a OsString>) -> Result<()> {
        let mut sandbox = args.sandbox()?;
        for target in targets {
            // What is not there is said when it is opened.
            if let Ok(target) = Target::parse(target) {
                sandbox.image(&target.image);
            }
        }
        sandbox.enter()
    }

    fn allow(&mut self, path: &Path, rights: BitFlags<AccessFs>) {
        let other = || std::fs::metadata(path).is_ok_and(|found| found.uid() != 0);
        if rights.contains(AccessFs::WriteFile) && other() {
            self.capabilities |= CapabilitySet::DAC_OVERRIDE;
        }
        *self.rules.entry(path.to_owned()).or_default() |= rights;
    }

    /// An image and the files beside it, where a link leads to as well. Of the folder of a device
    /// only the names.
    pub fn image(&mut self, image: &Path) {
        let found = std::fs::metadata(image).ok().map(|found| found.file_type());
        let device = found.is_some_and(|kind| kind.is_block_device());
        if found.is_some_and(|kind| !device && !kind.is_file() && !kind.is_dir()) {
            // Of a pipe Landlock knows no rule; whoever opens it says that it is no image.
            return;
        }
        self.allow(image, make_bitflags!(AccessFs::{ReadFile | ReadDir | IoctlDev}));
        for path in [std::path::absolute(image), image.canonicalize()].into_iter().flatten() {
            let folder = path.parent().unwrap_or(&path);
            match device {
                true => self.list(folder),
                false => self.read(folder),
            }
        }
    }

    /// Files below a folder, or one file, to be read.
    pub fn read(&mut self, path: &Path) {
        self.allow(path, make_bitflags!(AccessFs::{ReadFile | ReadDir}));
    }

    /// The names in a folder, and its being made stable.
    pub fn list(&mut self, folder: &Path) {
        self.allow(folder, AccessFs::ReadDir.into());
    }

    /// The files of a read-only mount, which the kernel reads by itself where it lets the daemon say so.
    pub fn pass_through(&mut self) {
        self.capabilities |= CapabilitySet::SYS_ADMIN;
    }

    /// One file that is there, to be written.
    pub fn change(&mut self, file: &Path) {
        self.allow(file, make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate}));
        self.capabilities |= CapabilitySet::DAC_OVERRIDE;
    }

    /// A device that is there, to be read, written and asked.
    pub fn device(&mut self, file: &Path) {
        self.allow(file, make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev}));
    }

    /// Files to be made, written and removed below a folder.
    pub fn fill(&mut self, folder: &Path) {
        let rights =
            make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeDir | RemoveFile});
        self.allow(folder, rights);
    }

    /// Files to be made and removed in the folder of this one.
    pub fn fill_beside(&mut self, file: &Path) {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        self.fill(folder.unwrap_or(Path::new(".")));
        // It may be there, and another user's.
        self.capabilities |= CapabilitySet::DAC_OVERRIDE;
    }

    /// An overlay to be made, written and removed.
    pub fn fill_for(&mut self, writing: &Writing) {
        match writing {
            Writing::Overlay(path, _) => self.fill_beside(path),
            Writing::Snapshot(folder, _) => self.fill(folder),
        }
    }

    /// Trees to be made below a folder, with owners and modes; device nodes only when asked for.
    pub fn extract_to(&mut self, folder: &Path, special: bool) {
        self.fill(folder);
        self.allow(folder, make_bitflags!(AccessFs::{MakeSym | MakeFifo | Refer}));
        use CapabilitySet as Kept;
        // What is there may be another user's; what is made becomes one's, with its modes and attributes.
        self.capabilities |= Kept::DAC_OVERRIDE | Kept::CHOWN | Kept::FOWNER | Kept::FSETID | Kept::SYS_ADMIN;
        if special {
            self.allow(folder, make_bitflags!(AccessFs::{MakeSock | MakeChar | MakeBlock}));
            self.capabilities |= Kept::MKNOD | Kept::SETFCAP;
        }
        self.extraction = true;
    }

    /// Gives up the rest. To be called before any thread is started, and before any image is decoded.
    pub fn enter(self) -> Result<()> {
        if self.off {
            eprintln!("imgfs: --no-sandbox: a bug in a decoder could write files and start programs");
            return Ok(());
        }
        let kept = confine(&self).context("giving up rights (--no-sandbox goes on with them)")?;
        for lacking in kept.lacking {
            eprintln!("imgfs: sandbox: {lacking}");
        }
        Ok(())
    }
}

/// What the kernel could not do.
struct Kept {
    lacking: Vec<String>,
}

fn confine(sandbox: &Sandbox) -> Result<Kept> {
    let mut lacking = Vec::new();
    match restrict_files(&sandbox.rules)? {
        LandlockStatus::NotImplemented => lacking.push("this kernel has no Landlock; files stay open to it".to_owned()),
        LandlockStatus::NotEnabled => {
            lacking.push("Landlock is not enabled in this kernel (lsm=); files stay open to it".to_owned());
        }
        LandlockStatus::Available { effective_abi, .. } => {
            log::info!("sandbox: Landlock rules of version {}", effective_abi as i32);
        }
    }
    if let Err(error) = drop_capabilities(sandbox.capabilities) {
        lacking.push(format!("root keeps all its capabilities: {error}"));
    }
    if let Err(error) = calls::restrict(sandbox.extraction) {
        lacking.push(format!("this kernel filters no system calls (seccomp): {error}"));
    }
    Ok(Kept { lacking })
}

/// Of this thread and those that it starts later. With no new privileges, no program gives them back.
fn drop_capabilities(kept: CapabilitySet) -> rustix::io::Result<()> {
    let CapabilitySets { effective, permitted, inheritable } = rustix::thread::capabilities(None)?;
    if kept.contains(permitted | inheritable) {
        return Ok(());
    }
    let left = CapabilitySets {
        effective: effective & kept,
        permitted: permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, left)
}

fn restrict_files(rules: &BTreeMap<PathBuf, BitFlags<AccessFs>>) -> Result<LandlockStatus> {
    let mut set = Ruleset::default()
        .handle_access(AccessFs::from_all(RULES))?
        .handle_access(AccessNet::from_all(RULES))?
        .scope(Scope::from_all(RULES))?
        .create()?;
    for (path, rights) in rules {
        let Ok(opened) = PathFd::new(path) else { continue };
        // Of rights on folders a file has none.
        let known = if path.is_dir() { *rights } else { *rights & AccessFs::from_file(RULES) };
        set = set.add_rule(PathBeneath::new(opened, known)).with_context(|| path.display().to_string())?;
    }
    // This sets no_new_privs as well, whether or not there is Landlock.
    Ok(set.restrict_self()?.landlock)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::Command;

    use rustix::io::Errno;

    use super::*;

    /// A folder to read, a file to write, a folder to fill; what lies outside is out of reach.
    struct Places(PathBuf);

    impl Places {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("imgfs-sandbox-{name}-{}", std::process::id()));
            for part in ["images", "cache", "elsewhere"] {
                std::fs::create_dir_all(folder.join(part)).unwrap();
            }
            for file in ["images/disk", "images/overlay", "elsewhere/secret"] {
                std::fs::write(folder.join(file), b"x").unwrap();
            }
            Self(folder)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        fn sandbox(&self) -> Sandbox {
            let mut sandbox = Sandbox::empty();
            sandbox.image(&self.path("images/disk"));
            sandbox.change(&self.path("images/overlay"));
            sandbox.fill(&self.path("cache"));
            sandbox
        }
    }

    impl Drop for Places {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Runs in a thread of its own, which alone is confined. `false`: this kernel lacks a part.
    fn confined(sandbox: Sandbox, test: impl FnOnce() + Send + 'static) -> bool {
        let thread = std::thread::spawn(move || {
            let kept = confine(&sandbox).unwrap();
            if !kept.lacking.is_empty() {
                println!("not tested: {:?}", kept.lacking);
                return false;
            }
            test();
            true
        });
        thread.join().unwrap()
    }

    fn denied<T>(result: std::io::Result<T>) -> bool {
        let kinds = [std::io::ErrorKind::PermissionDenied, std::io::ErrorKind::Unsupported];
        result.is_err_and(|error| kinds.contains(&error.kind()))
    }

    #[test]
    fn a_confined_thread_reads_beside_the_image_and_writes_where_it_must() {
        let places = Places::new("files");
        let path = |name| places.path(name);
        let (disk, overlay, cache, secret) =
            (path("images/disk"), path("images/overlay"), path("cache"), path("elsewhere/secret"));
        let inside = path("images");
        confined(places.sandbox(), move || {
            assert_eq!(std::fs::read(&disk).unwrap(), b"x");
            assert_eq!(std::fs::read_dir(&inside).unwrap().count(), 2);
            std::fs::write(&overlay, b"changed").unwrap();
            std::fs::write(cache.join("new"), b"index").unwrap();
            std::fs::rename(cache.join("new"), cache.join("index")).unwrap();
            std::fs::remove_file(cache.join("index")).unwrap();
            assert!(denied(std::fs::write(&disk, b"y")));
            assert!(denied(std::fs::write(inside.join("new"), b"y")));
            assert!(denied(std::fs::remove_file(&disk)));
            assert!(denied(std::fs::rename(&overlay, inside.join("other"))));
            assert!(denied(std::fs::read(&secret)));
            assert!(denied(std::fs::read("/etc/passwd")));
            // Landlock does not know these.
            assert!(denied(std::fs::set_permissions(&disk, std::os::unix::fs::PermissionsExt::from_mode(0o777))));
            assert!(denied(std::os::unix::fs::symlink(&disk, inside.join("link"))));
            assert!(denied(std::fs::hard_link(&disk, inside.join("link"))));
            assert!(denied(std::os::unix::fs::chown(&disk, None, None)));
        });
    }

    #[test]
    fn a_confined_thread_starts_no_program_and_makes_no_connection() {
        let places = Places::new("calls");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let socket = places.path("elsewhere/socket");
        let _listening = UnixListener::bind(&socket).unwrap();
        confined(places.sandbox(), move || {
            assert!(Command::new("/bin/true").status().is_err());
            assert!(denied(TcpStream::connect(address)));
            assert!(denied(TcpListener::bind("127.0.0.1:0")));
            assert!(denied(UnixStream::connect(&socket)));
            // Threads, and what they wait with, still work; they are confined as well.
            let secret = socket.with_file_name("secret");
            assert!(std::thread::spawn(move || denied(std::fs::read(secret))).join().unwrap());
            UnixStream::pair().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(1));
        });
    }

    #[test]
    fn a_confined_thread_reaches_no_other_process_and_commands_no_device() {
        let places = Places::new("processes");
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&other);
        confined(places.sandbox(), move || {
            use rustix::process::{Resource, Rlimit};
            let none = Rlimit { current: Some(1), maximum: Some(1) };
            assert_eq!(rustix::process::prlimit(Some(pid), Resource::Cpu, none), Err(Errno::NOSYS));
            let cpus = rustix::thread::CpuSet::new();
            assert_eq!(rustix::thread::sched_setaffinity(Some(pid), &cpus), Err(Errno::NOSYS));
            assert_eq!(rustix::process::kill_process(pid, rustix::process::Signal::KILL), Err(Errno::NOSYS));
            // FIONREAD stands for all that nobody needs; the size of a terminal is something to ask for.
            let null = std::fs::File::open("/dev/null");
            assert!(denied(null));
            let (reader, _writer) = std::io::pipe().unwrap();
            assert_eq!(rustix::io::ioctl_fionread(&reader), Err(Errno::NOSYS));
            assert_eq!(rustix::termios::tcgetwinsize(&reader).map(drop), Err(Errno::NOTTY));
            // Its own limits are its own matter.
            rustix::process::getrlimit(Resource::Cpu);
        });
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn an_extraction_makes_links_and_modes_in_its_destination_only() {
        let places = Places::new("extract");
        let (dest, elsewhere) = (places.path("cache"), places.path("elsewhere"));
        let mut sandbox = places.sandbox();
        sandbox.extract_to(&dest, false);
        confined(sandbox, move || {
            std::fs::create_dir(dest.join("folder")).unwrap();
            std::fs::write(dest.join("folder/file"), b"x").unwrap();
            rustix::fs::symlinkat("file", rustix::fs::CWD, dest.join("folder/link")).unwrap();
            std::fs::hard_link(dest.join("folder/file"), dest.join("other")).unwrap();
            let other = std::fs::File::open(dest.join("other")).unwrap();
            other.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            assert!(denied(std::fs::create_dir(elsewhere.join("folder"))));
            assert!(denied(std::fs::write(elsewhere.join("secret"), b"y")));
            assert!(rustix::fs::symlinkat("x", rustix::fs::CWD, elsewhere.join("link")).is_err());
            let device = rustix::fs::makedev(1, 3);
            let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::RUSR);
            assert!(rustix::fs::mknodat(rustix::fs::CWD, dest.join("null"), kind, mode, device).is_err());
        });
    }

    #[test]
    fn new_privileges_are_given_up_and_system_calls_filtered() {
        let places = Places::new("status");
        confined(
            Sandbox { rules: [("/proc".into(), AccessFs::ReadFile.into())].into(), ..places.sandbox() },
            move || {
                let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
                assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
            },
        );
    }
}
