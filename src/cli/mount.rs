//! `imgfs IMAGE MOUNTPOINT`: mounts, and ends with success once the mount answers.
//!
//! The daemon is this program, started once more: the first process waits for its word, passes its
//! errors on, and goes.

use std::fs::{DirBuilder, File};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fuser::{Config, Session, SessionACL};
use imgfs::device::overlay::Overlay;
use imgfs::filesystem::{FileSystem, FileSystemWrite, foreign};
use imgfs::forest::{Escaped, Symlinks};
use imgfs::fuse::{Adapter, View};
use imgfs::stack::{Image, Tree, Writing};
use imgfs::text::{printable, tamed};
use rustix::process::Signal;
use serde_json::json;
use signal_hook::iterator::Signals;

use super::commit::in_place;
use super::keeper::{self, Keeper};
use super::key;
use super::learner::Learner;
use super::options::{self, MountOptions, SymlinkChoice, WritingArgs};
use super::provenance::{Log, Logger};
use super::runtime::{self, Mark, Mounted, Mounts};
use super::target::{ImageArgs, Target};
use super::{Outcome, cp, document, provenance, sentence, treeless};

/// Threads that answer the kernel: one slow request must not hold up the rest.
const THREADS: usize = 8;
/// What the daemon says to the process that started it.
const READY: &str = "ready";
/// How long what was written may stay in memory when nobody asks for more.
const WRITE_BACK: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
#[command(after_help = options::help())]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// Say what is asked and answered, on standard error; implies -f
    #[arg(short, long)]
    debug: bool,
    /// Write the daemon's process number here
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Bound on the sector cache, as -o cache=SIZE
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<String>,
    #[command(flatten)]
    writing: WritingArgs,
    /// Commit the overlay into the image itself at a clean unmount
    #[arg(long)]
    commit: bool,
    /// Set by the first process for the second
    #[arg(long, hide = true)]
    daemon: bool,
    /// Set by the first process: there is someone to ask for a passphrase
    #[arg(long, hide = true)]
    ask: bool,
    /// The image: a file or a block device; IMAGE@@SIZE starts at that byte
    #[arg(value_name = "IMAGE")]
    target: std::ffi::OsString,
    /// A directory; or a file, which becomes the flat disk
    mountpoint: PathBuf,
}

pub fn run(args: &Args) -> Result<Outcome> {
    if !args.foreground && !args.debug && !args.daemon {
        return start_daemon(args);
    }
    if args.daemon {
        // Whoever gave up on the mount would be left with a process that still decodes the image.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    }
    let mut options = args.image.parse(args.ask || key::attended())?;
    if args.daemon {
        // Away from the terminal and its signals, now that it is open where a passphrase may be needed.
        // Fails only for a process that leads a group already.
        let _ = rustix::process::setsid();
    }
    let kept = start_log(args.debug);
    if let Some(size) = &args.cache_size {
        options.stack.cache_size = options::size(size).context("--cache-size")?;
        options.stack.container.cache_size = options.stack.cache_size;
    }
    let target = Target::parse(&args.target)?;
    // The log's last events come when this process has left its folder.
    let image = std::path::absolute(&target.image)?;
    ensure!(target.path.is_empty(), "a whole image is mounted: leave out the path (-o tree=p1 shows one tree)");
    let (force, named) = (args.image.force_base, options.overlay.as_deref());
    options.stack.writing = args.writing.parse_with(&target.image, force, options.read_write, named)?;
    ensure!(
        !args.commit || matches!(options.stack.writing, Some(Writing::Overlay(..))),
        "--commit needs an overlay: -o rw"
    );
    if args.commit {
        // Better known now than at the end.
        rustix::fs::access(&target.image, rustix::fs::Access::WRITE_OK)
            .with_context(|| format!("{}: --commit writes to it", target.image.display()))?;
    }
    // Before anything of the image is looked at.
    let log = Arc::new(Log::of_writing(args.writing.log.as_deref(), options.stack.writing.as_ref())?);
    let result = mount(args, &target, options, &log, &kept);
    if let Err(error) = &result {
        match log.made() {
            // The keeper does this where this process may not any more.
            Some(path) if std::fs::metadata(&path).is_ok_and(|found| found.len() == 0) => {
                let _ = std::fs::remove_file(path);
            }
            _ => log.event("failed", json!({ "image": provenance::identity(&image), "error": sentence(error) })),
        }
    }
    result
}

fn mount(
    args: &Args,
    target: &Target,
    mut options: MountOptions,
    log: &Arc<Log>,
    kept: &OnceLock<Arc<Log>>,
) -> Result<Outcome> {
    let mountpoint = free_mountpoint(&args.mountpoint, &target.image)?;
    ensure!(!is_empty(&target.image), "{}: {EMPTY}", target.image.display());
    let (new_overlay, scratch) = prepare_writing(options.stack.writing.as_mut())?;
    let keeper = Arc::new(Keeper::start(&keeper::Args {
        allow_other: options.allow_other,
        pid_file: args.pid_file.as_ref().map(std::path::absolute).transpose()?,
        new_overlay,
        new_log: log.made(),
        scratch,
        image: std::path::absolute(&target.image)?,
        mountpoint: mountpoint.clone(),
    })?);
    let host = Host::open(&target.image, args.daemon)?;
    confine(args, &options, &target.image)?;
    // From here on the image is decoded, and nothing can be done any more but that.
    let image = target.open_with(options.clone())?;
    // Nobody is asked for anything any more, and the terminal may go away.
    args.image.key.close();
    if args.commit {
        image.check_committable()?;
    }
    ensure!(image.disk.size() > 0, "{}: {EMPTY}", target.image.display());
    report(&image);
    let unwritable = image.overlay.as_ref().and_then(|overlay| overlay.unwritable());
    match (&options.stack.writing, unwritable) {
        (Some(Writing::Overlay(..)), Some(error)) => eprintln!("imgfs: nothing can be written: {error}"),
        (Some(Writing::Overlay(path, _)), None) => {
            eprintln!("imgfs: changes go to {}", printable(path.as_os_str().as_encoded_bytes()));
        }
        _ => {}
    }
    let tree = tree(&image, &options, &mountpoint)?;
    if args.daemon {
        // From here on a starter that is gone is noticed when it is told, and the mount goes in good order.
        rustix::process::set_parent_process_death_signal(None)?;
    }
    let mut opened = provenance::opened(&image, &target.image, options.stack.writing.as_ref());
    document::name(&mut opened, "mountpoint", mountpoint.as_os_str().as_encoded_bytes());
    let attached = || {
        log.event("mount", opened);
        // Set only here, so that it cannot be set already.
        let _ = kept.set(log.clone());
    };
    let (finish_log, path, commit) = (log.clone(), std::path::absolute(&target.image)?, args.commit);
    let overlay_path = options.stack.writing.as_ref().and_then(Writing::overlay).map(Path::to_owned);
    let learns = image.overlay.clone().filter(|overlay| overlay.learns());
    serve((tree, learns), &options, &mountpoint, (&keeper, host), attached, move || {
        let statistics = image.cached.statistics();
        log::debug!(
            "sector cache: {} hits, {} misses, {} bytes kept",
            statistics.hits,
            statistics.misses,
            statistics.weight
        );
        let expected = image.overlay.is_some();
        let result = match image.into_overlay() {
            Some(overlay) if commit => {
                let committed = overlay.commit_in_place(&mut |_, _| ());
                in_place(committed, overlay_path.as_deref())
            }
            Some(overlay) => Ok(overlay.close()?),
            None if expected => Err(anyhow::anyhow!("the overlay is still in use; what was written is in it")),
            None => Ok(()),
        };
        if commit {
            let about = json!({ "image": provenance::identity(&path), "in_place": true });
            finish_log.outcome("commit", about, &result);
        }
        finish_log.outcome("unmount", json!({ "image": provenance::identity(&path) }), &result);
        result
    })?;
    Ok(Outcome::Complete)
}

/// Makes what only a process with all of its rights can make: the file of a new overlay, empty as
/// yet; a folder for a nameless one. Both are to be cleared up.
fn prepare_writing(writing: Option<&mut Writing>) -> Result<(Option<PathBuf>, Option<PathBuf>)> {
    match writing {
        Some(Writing::Overlay(path, _)) => match File::create_new(&*path) {
            Ok(_) => Ok((Some(path.clone()), None)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok((None, None)),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        },
        Some(Writing::Snapshot(folder, _)) => {
            let own = folder.join(format!("imgfs-snapshot-{}", std::process::id()));
            DirBuilder::new().mode(0o700).create(&own).with_context(|| own.display().to_string())?;
            folder.clone_from(&own);
            Ok((None, Some(own)))
        }
        None => Ok((None, None)),
    }
}

/// Gives up all rights but those of a daemon: to read the image and what belongs to it, to write to
/// the overlay (to the image itself only for `--commit`), and to answer the kernel.
fn confine(args: &Args, options: &MountOptions, image: &Path) -> Result<()> {
    let mut sandbox = args.image.sandbox()?;
    sandbox.image(image);
    sandbox.device(Path::new("/dev/fuse"));
    // Where its mark goes. Without a place for it `umount` does not wait, and nothing else is amiss.
    if let Ok(folder) = runtime::folder() {
        sandbox.fill(&folder);
    }
    match &options.stack.writing {
        Some(Writing::Overlay(path, _)) => {
            sandbox.change(path);
            sandbox.list(path.parent().unwrap_or(path));
        }
        Some(Writing::Snapshot(folder, _)) => sandbox.fill(folder),
        None => sandbox.pass_through(),
    }
    if args.commit {
        sandbox.change(image);
    }
    sandbox.enter()
}

/// What is opened of the host while that can still be done.
struct Host {
    /// What the mark says, beside the number of the process.
    image: PathBuf,
    mounts: Mounts,
    /// In the place of standard output and error, once the daemon is on its own.
    null: Option<File>,
    signals: Signals,
}

impl Host {
    fn open(image: &Path, daemon: bool) -> Result<Self> {
        let null = daemon.then(|| File::options().read(true).write(true).open("/dev/null")).transpose()?;
        let signals = Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])?;
        Ok(Self { image: image.to_owned(), mounts: Mounts::open()?, null, signals })
    }
}

/// What the first process tells the second.
pub const OWN_WORDS: [&str; 2] = ["--daemon", "--ask"];
/// How many heaps glibc makes; other C libraries do not look at it.
const HEAPS: &str = "MALLOC_ARENA_MAX";

/// Starts this program once more with the same words, and waits until it is ready or has failed.
fn start_daemon(args: &Args) -> Result<Outcome> {
    let advice = advice(args);
    let program = std::env::current_exe().context("finding the program itself")?;
    let mut words = std::env::args_os().skip(1).peekable();
    let mut command = Command::new(program);
    // In its place, or not there, so that the log has what the user wrote.
    if words.peek().is_some_and(|word| word == "mount") {
        command.args(words.next());
    }
    let [daemon, ask] = OWN_WORDS;
    command.arg(daemon).args(key::attended().then_some(ask)).args(words);
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    let stdin = if args.image.key.uses_stdin() { Stdio::inherit() } else { Stdio::null() };
    command.stdin(stdin).stdout(Stdio::piped());
    // glibc would give each thread its own heap, and what one thread keeps and another drops would
    // fill all of them: half as much again as the caches hold.
    if std::env::var_os(HEAPS).is_none() {
        command.env(HEAPS, "1");
    }
    let mut daemon = command.spawn().context("starting the daemon")?;
    let mut word = String::new();
    if let Some(pipe) = daemon.stdout.take() {
        BufReader::new(pipe).read_line(&mut word)?;
    }
    if word.trim_end() == READY {
        if let Some(advice) = advice {
            eprintln!("imgfs: {advice}");
        }
        return Ok(Outcome::Complete);
    }
    let status = daemon.wait()?;
    // The daemon has said why on the same standard error.
    std::process::exit(status.code().filter(|code| *code != 0).unwrap_or(1))
}

/// What may surprise other users of a mount point that they could enter until now.
fn advice(args: &Args) -> Option<String> {
    let open = std::fs::metadata(&args.mountpoint).is_ok_and(|found| found.mode() & 0o005 == 0o005);
    let allowed = args.image.options.iter().flat_map(|words| words.split(',')).any(|word| word == "allow_other");
    let user = !rustix::process::geteuid().is_root();
    (std::io::stdout().is_terminal() && open && user && !allowed).then(|| {
        "only you can look into it; -o allow_other lets others (where /etc/fuse.conf has user_allow_other)".to_owned()
    })
}

fn start_log(debug: bool) -> Arc<OnceLock<Arc<Log>>> {
    let level = if debug { "debug" } else { "warn" };
    let filter = env_logger::Env::new().filter_or("IMGFS_LOG", level);
    let built = env_logger::Builder::from_env(filter)
        // The lines quote images.
        .format(|out, line| writeln!(out, "[{:<5}] {}", line.level(), tamed(&line.args().to_string())))
        .build();
    Logger::start(built)
}

/// Says what has no tree, and why; the rest mounts.
fn report(image: &Image) {
    for line in treeless::sentences(&treeless::of(image)) {
        log::warn!("{line}");
    }
    for part in &image.parts {
        if let Tree::Encrypted(encrypted) = &part.tree
            && image.overlay.is_some()
            && image.plain_of(part).is_some()
        {
            log::warn!("{} is encrypted ({}): its tree is read-only", part.name, encrypted.variant);
        }
        for note in part.tree.summary().iter().flat_map(|summary| &summary.notes) {
            log::info!("{}: {note}", part.name);
        }
    }
}

/// What the mount shows: everything; one tree (`-o tree`); the naked disk, on a file.
fn tree(image: &Image, options: &MountOptions, mountpoint: &Path) -> Result<Arc<dyn FileSystem>> {
    if !mountpoint.is_dir() {
        ensure!(options.tree.is_none(), "{} is a file: a tree needs a directory", mountpoint.display());
        return Ok(Arc::new(image.naked()));
    }
    let Some(wanted) = &options.tree else {
        return Ok(Arc::new(image.forest().with_symlinks(symlinks(options, SymlinkChoice::Rewrite, mountpoint))));
    };
    let part = match wanted {
        None => image.main_part(),
        Some(name) => image.part(name),
    };
    match (part.map(|part| &part.tree), wanted) {
        (Some(Tree::Open { tree, .. }), _) => {
            let symlinks = symlinks(options, SymlinkChoice::AsIs, mountpoint);
            Ok(Arc::new(Escaped::new(tree.clone()).with_symlinks(symlinks).with_charset(image.charset)))
        }
        (Some(Tree::Encrypted(_)), _) => bail!("this volume is encrypted: --key-file FILE opens it"),
        (Some(Tree::Broken(error)), _) => Err(error.clone()).context("this volume has no tree"),
        (_, Some(name)) => bail!("there is no tree {name}; `imgfs info` lists what there is"),
        (_, None) => match image.parts.iter().find_map(|part| foreign::name(part.device.as_ref())) {
            Some(name) => bail!("{name}, which imgfs does not read; without -o tree, disk.img shows the bytes"),
            None => bail!("no file system that imgfs knows; without -o tree, disk.img shows the bytes"),
        },
    }
}

/// What becomes of symbolic links. A tree at the mount point itself may be somebody's root, for
/// chroot or a container: there links stay as they are unless something else is asked for.
fn symlinks(options: &MountOptions, default: SymlinkChoice, mountpoint: &Path) -> Symlinks {
    match options.symlinks.unwrap_or(default) {
        SymlinkChoice::AsIs => Symlinks::AsIs,
        SymlinkChoice::Rewrite => Symlinks::Below(mountpoint.as_os_str().as_encoded_bytes().to_vec()),
        SymlinkChoice::Hide => Symlinks::Hidden,
    }
}

fn serve(
    (tree, learns): (Arc<dyn FileSystem>, Option<Arc<Overlay>>),
    options: &MountOptions,
    mountpoint: &Path,
    (keeper, host): (&Arc<Keeper>, Host),
    attached: impl FnOnce(),
    finish: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let root = rustix::process::geteuid().is_root();
    let view = View {
        caller: (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()),
        owners: options.owners.unwrap_or(root),
        uid: options.uid,
        gid: options.gid,
        fmask: options.fmask,
        dmask: options.dmask,
        default_mask: cp::umask(),
        hashes: options.hashes,
        quiet: options.quiet,
    };
    let writable = tree.writer().is_some();
    let write_back = writable.then(|| WriteBack::start(tree.clone()));
    let mut adapter = Adapter::new(tree.clone(), view, root);
    let notifier = adapter.notifier();
    let requests = adapter.requests();
    let learner = learns.map(|overlay| Learner::start(overlay, requests.clone()));
    let connection = keeper.attach(!writable).map_err(|error| explain_refused(error, mountpoint))?;
    attached();
    adapter.splice_by(connection.try_clone()?);
    let config = config(options, writable);
    let session = Session::from_fd(adapter, connection, config.acl, config).inspect_err(|_| {
        // Nothing answers there: an empty mount would only be in the way.
        let _ = keeper.detach();
    })?;
    // Set only here, so that it cannot be set already.
    let _ = notifier.set(session.notifier());
    if let Some(timeout) = options.timeout {
        let keeper = keeper.clone();
        std::thread::spawn(move || unmount_when_idle(&keeper, timeout, &requests));
    }
    let overlay = options.stack.writing.as_ref().and_then(Writing::overlay).map(Path::to_owned);
    let Host { image, mounts, null, mut signals } = host;
    let on_signal = keeper.clone();
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if let Err(error) = on_signal.detach() {
                log::warn!("{error}");
            }
        }
    });
    let (point, on_ready) = (mountpoint.to_owned(), keeper.clone());
    let ready = std::thread::spawn(move || {
        let mut mark = json!({ "pid": std::process::id(), "overlay": null });
        for (key, path) in [("image", Some(&image)), ("mountpoint", Some(&point)), ("overlay", overlay.as_ref())] {
            if let Some(path) = path {
                document::name(&mut mark, key, path.as_os_str().as_encoded_bytes());
            }
        }
        announce(&point, &mounts, &format!("{mark}\n"), &on_ready, root, null).inspect_err(|_| {
            // Nobody was told of the mount: it goes, and the session ends with it.
            let _ = on_ready.detach();
        })
    });
    session.run()?;
    // It holds the tree: what comes now needs everything closed.
    drop((write_back, learner));
    // A failure when the kernel said its last word could only be logged.
    // The last files may have been closed too late for the kernel to say so.
    let settled = tree.writer().map_or(Ok(()), FileSystemWrite::finish).context("what was written last is lost");
    drop(tree);
    let finished = settled.and(finish());
    let announced = ready.join();
    keeper.end();
    let mut mark = match announced {
        Ok(announced) => announced?,
        Err(_) => None,
    };
    if let (Err(error), Some(mark)) = (&finished, &mut mark) {
        mark.fail(error);
    }
    // The mark is kept to the very end: `umount` waits for it.
    finished
}

/// Unmounts once nothing was asked for so long. What is open, or somebody's working directory, keeps
/// the mount: the kernel refuses then, and the time starts anew.
fn unmount_when_idle(keeper: &Keeper, timeout: Duration, requests: &AtomicU64) {
    let mut seen = requests.load(Ordering::Relaxed);
    let mut since = Instant::now();
    loop {
        std::thread::sleep((timeout / 4).clamp(Duration::from_millis(100), Duration::from_secs(10)));
        let now = requests.load(Ordering::Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if since.elapsed() >= timeout {
            match keeper.unmount() {
                Ok(()) => return,
                Err(error) => log::debug!("{error}"),
            }
            since = Instant::now();
        }
    }
}

/// Flushes now and then, so that a crash costs little of what nobody asked to be stable.
struct WriteBack {
    thread: Option<JoinHandle<()>>,
    stop: Option<mpsc::Sender<()>>,
}

impl WriteBack {
    fn start(tree: Arc<dyn FileSystem>) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(WRITE_BACK) == Err(mpsc::RecvTimeoutError::Timeout) {
                if let Some(writer) = tree.writer()
                    && let Err(error) = writer.flush()
                {
                    log::error!("writing back: {error}");
                }
            }
        });
        Self { thread: Some(thread), stop: Some(stop) }
    }
}

impl Drop for WriteBack {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A panic of it was logged; the session's end flushes as well.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Threads of a mount that can be written to: as many as processors, two to four. One writes to the overlay's file while
/// another takes the next bytes; more than there are processors would have these two wait for one. And the kernel gives
/// its requests to each in turn, and each has a buffer for 1 MiB: so many that the processor's cache has them all.
fn writing_threads() -> usize {
    std::thread::available_parallelism().map_or(2, |processors| processors.get().clamp(2, 4))
}

fn config(options: &MountOptions, writable: bool) -> Config {
    let mut config = Config::default();
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(if writable { writing_threads() } else { THREADS });
    // An answer has to go by the connection that its request came by: spliced ones know only one.
    config.clone_fd = writable;
    config
}

/// Runs beside the session: once the mount answers, says so to whoever waits.
fn announce(
    mountpoint: &Path,
    mounts: &Mounts,
    mark: &str,
    keeper: &Keeper,
    root: bool,
    null: Option<File>,
) -> Result<Option<Mark>> {
    std::fs::metadata(mountpoint).with_context(|| format!("{} does not answer", mountpoint.display()))?;
    let mounted = mounts.at(mountpoint)?;
    let mark = mounted.as_ref().and_then(|mounted| {
        Mark::set(mounted, mark).map_err(|error| log::warn!("umount will not wait: {error:#}")).ok()
    });
    if root && let Err(error) = keeper.read_ahead() {
        log::debug!("readahead: {error}");
    }
    keeper.write_number().context("writing the process number")?;
    if let Some(null) = null {
        let mut out = std::io::stdout();
        writeln!(out, "{READY}").and_then(|()| out.flush())?;
        std::env::set_current_dir("/")?;
        rustix::stdio::dup2_stdin(null.as_fd())?;
        rustix::stdio::dup2_stdout(null.as_fd())?;
        rustix::stdio::dup2_stderr(null.as_fd())?;
    }
    Ok(mark)
}

/// What an image is without a byte.
const EMPTY: &str = "the image is empty (0 bytes)";

fn is_empty(image: &Path) -> bool {
    std::fs::metadata(image).is_ok_and(|found| found.is_file() && found.len() == 0)
}

/// The mount point in full: one that is there, and where none of our mounts lies already.
fn free_mountpoint(wanted: &Path, image: &Path) -> Result<PathBuf> {
    let shown = wanted.display();
    // Without a look at what may be mounted there.
    if let Some(there) = runtime::mounted_at(&runtime::absolute(wanted)?)?.filter(Mounted::is_ours) {
        ensure!(!there.is_dead(), "{shown}: a mount is there whose daemon is gone: `imgfs umount {shown}` clears it");
        bail!("{shown}: {} is mounted there already: `imgfs umount {shown}` ends that", there.source.display());
    }
    let found = wanted.canonicalize().with_context(|| match wanted.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            format!("{shown} (the mount point has to be there: mkdir it)")
        }
        _ => shown.to_string(),
    })?;
    ensure!(found.is_dir() || found.is_file(), "{shown}: neither a folder nor a file: nothing is mounted there");
    let swapped = image.is_dir() && !found.is_dir();
    ensure!(!swapped, "{}: is a directory: the image comes first, then the mount point", image.display());
    Ok(found)
}

/// What to do about a mount that the host refused.
fn explain_refused(error: std::io::Error, mountpoint: &Path) -> anyhow::Error {
    let text = error.to_string();
    let advice = if !Path::new("/dev/fuse").exists() {
        "/dev/fuse is missing: load the kernel module (modprobe fuse), or give it to this container (--device /dev/fuse)"
    } else if text.contains("open /dev/fuse") {
        "users may not open /dev/fuse on this host: udev's rule is `chmod 666 /dev/fuse`"
    } else if error.kind() == std::io::ErrorKind::NotFound {
        "fusermount3 is needed to mount as an ordinary user: install the package fuse3"
    } else if text.contains("no write access to mountpoint") {
        "mount onto a folder of your own (mkdir it), or let `imgfs open IMAGE` make one"
    } else if text.contains("user_allow_other") {
        "allow_other needs the line user_allow_other in /etc/fuse.conf"
    } else if error.kind() == std::io::ErrorKind::PermissionDenied || text.contains("not permitted") {
        "not permitted here: the mount point has to be yours, and a container needs CAP_SYS_ADMIN or fusermount3; ls, cat and cp work without mounting"
    } else {
        "the mount was refused; ls, cat and cp work without mounting"
    };
    anyhow::anyhow!("{}: {}: {advice}", mountpoint.display(), text.trim())
}
