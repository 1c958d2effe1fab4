//! `imgfs mkdir`, `rm`, `mv`, and `cp` into an image: edits without a mount, into the overlay.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use imgfs::device::overlay::State;
use imgfs::error::Error;
use imgfs::filesystem::{Changes, FileSystem, FileSystemWrite, Kind, NewNode, NodeId, Timestamp};
use imgfs::forest::Forest;
use imgfs::stack::{Image, Writing};
use imgfs::text::printable;
use serde_json::json;

use super::options::{MountOptions, WritingArgs};
use super::provenance::Log;
use super::target::{ImageArgs, Target};
use super::walk;
use super::{Outcome, commit, complaint, interrupt, provenance};

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;
/// Deepest nesting that is copied or removed.
const MAX_DEPTH: usize = 256;

/// Where an edit goes.
#[derive(clap::Args, Clone)]
pub struct EditArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    #[command(flatten)]
    writing: WritingArgs,
    /// Change the image itself: through an overlay that is committed at the end
    #[arg(long, conflicts_with = "snapshot")]
    in_place: bool,
}

/// The words of `imgfs mkdir`.
#[derive(clap::Args)]
pub struct MkdirArgs {
    #[command(flatten)]
    edit: EditArgs,
    /// Also make the directories above; those that are there are no error
    #[arg(short, long)]
    parents: bool,
    /// Directories to be made
    #[arg(required = true, value_name = "IMAGE:/PATH")]
    targets: Vec<OsString>,
}

/// The words of `imgfs rm`.
#[derive(clap::Args)]
pub struct RmArgs {
    #[command(flatten)]
    edit: EditArgs,
    /// Directories with everything below them
    #[arg(short, long)]
    recursive: bool,
    /// What to remove
    #[arg(required = true, value_name = "IMAGE:/PATH")]
    targets: Vec<OsString>,
}

/// The words of `imgfs mv`.
#[derive(clap::Args)]
pub struct MvArgs {
    #[command(flatten)]
    edit: EditArgs,
    /// What to rename
    #[arg(value_name = "IMAGE:/PATH")]
    from: OsString,
    /// Its new path in the same image, or the directory that it moves to
    #[arg(value_name = "[IMAGE:]/PATH")]
    to: OsString,
}

pub fn mkdir(args: &MkdirArgs) -> Result<Outcome> {
    each(&args.edit, &args.targets, |editor, target| {
        let path = editor.resolved(&target.path)?;
        let (folder, name) = split(&path)?;
        let dir = if args.parents { editor.make_all(folder)? } else { editor.find(folder)? };
        match editor.create(dir, name, Kind::Directory) {
            Err(Error::Exists) if args.parents => Ok(()),
            made => made.map(drop).map_err(|error| about_name(error, name)),
        }
    })
}

pub fn rm(args: &RmArgs) -> Result<Outcome> {
    each(&args.edit, &args.targets, |editor, target| {
        let path = editor.resolved(&target.path)?;
        editor.remove(&path, args.recursive, 0)
    })
}

/// Edits each target. What cannot be done to one of several does not keep the others from it.
fn each(args: &EditArgs, targets: &[OsString], change: impl Fn(&Editor<'_>, &Target) -> Result<()>) -> Result<Outcome> {
    let parsed: Vec<Target> = targets.iter().map(|text| Target::parse(text)).collect::<Result<_>>()?;
    confine(args, &parsed, &[])?;
    let mut places = BTreeSet::new();
    let mut outcome = Outcome::Complete;
    for (text, target) in targets.iter().zip(&parsed) {
        let edited = edit(args, target, &change).with_context(|| text.display().to_string());
        match edited {
            Ok(place) => places.extend(place),
            Err(error) if targets.len() == 1 || interrupt::is_caught() => return Err(error),
            Err(error) => {
                eprintln!("imgfs: {}", complaint(&error));
                outcome = Outcome::Partial;
            }
        }
    }
    places.iter().for_each(|place| say_where(place));
    Ok(outcome)
}

/// Whoever looks at the image afterwards does not see the change there.
pub fn say_where(overlay: &Path) {
    eprintln!("imgfs: changes went to {}", printable(overlay.as_os_str().as_encoded_bytes()));
}

pub fn mv(args: &MvArgs) -> Result<Outcome> {
    let target = Target::parse(&args.from)?;
    confine(&args.edit, std::slice::from_ref(&target), &[])?;
    let place = edit(&args.edit, &target, |editor, target| {
        let from = editor.resolved(&target.path)?;
        let mut to = editor.resolved(&new_path(&args.to, target)?)?;
        let (folder, name) = split(&from)?;
        // Another spelling of its own name is a new name.
        if editor.kind(&to)? == Some(Kind::Directory) && editor.find(&to)? != editor.find(&from)? {
            to.push(b'/');
            to.extend_from_slice(name);
        }
        let below = to.get(..from.len() + 1).and_then(|start| start.strip_suffix(b"/"));
        ensure!(!below.is_some_and(|start| start.eq_ignore_ascii_case(&from)), "it cannot be moved into itself");
        let (new_folder, new_name) = split(&to)?;
        let (dir, new_dir) = (editor.find(folder)?, editor.find(new_folder)?);
        editor.writer()?.rename(dir, name, new_dir, new_name, true).map_err(|error| about_name(error, new_name))
    })
    .with_context(|| args.from.display().to_string())?;
    place.iter().for_each(|place| say_where(place));
    Ok(Outcome::Complete)
}

/// The second word of `mv`: a path alone, or one of the same image.
fn new_path(text: &OsStr, from: &Target) -> Result<Vec<u8>> {
    // The image's own name may start with a slash as well.
    match Target::parse(text) {
        Ok(to) if to.image == from.image => Ok(to.path),
        _ if text.as_encoded_bytes().starts_with(b"/") => Ok(text.as_encoded_bytes().to_vec()),
        Ok(_) => bail!("mv stays within one image: use cp and rm"),
        Err(error) => Err(error),
    }
}

/// Copies files of the host into an image: what `imgfs cp` does when its last word is an image's path.
pub fn copy_in(args: &EditArgs, sources: &[PathBuf], dest: &Target, recursive: bool) -> Result<Outcome> {
    confine(args, std::slice::from_ref(dest), sources)?;
    let place = edit(args, dest, |editor, target| {
        let path = editor.resolved(&target.path)?;
        let into = editor.kind(&path)? == Some(Kind::Directory);
        ensure!(into || sources.len() == 1, "{} is not a directory, and there are several files", printable(&path));
        for source in sources {
            let mut path = path.clone();
            // As with cp(1): what has no name of its own (`.`, `..`, `folder/.`) gives what is in it.
            let named = into && !source.as_os_str().as_encoded_bytes().ends_with(b"/.");
            if let Some(name) = source.file_name().filter(|_| named) {
                path.push(b'/');
                path.extend_from_slice(name.as_encoded_bytes());
            }
            editor.copy(source, &path, recursive, 0).with_context(|| source.display().to_string())?;
        }
        Ok(())
    })?;
    place.iter().for_each(|place| say_where(place));
    Ok(Outcome::Complete)
}

/// Gives up all rights but those to read the sources and the images, and to write overlays; images
/// only with `--in-place`.
fn confine(args: &EditArgs, targets: &[Target], sources: &[PathBuf]) -> Result<()> {
    interrupt::prepare()?;
    let mut sandbox = args.image.sandbox()?;
    for target in targets {
        sandbox.image(&target.image);
        if let Some(writing) = args.writing.parse(&target.image, args.image.force_base)? {
            sandbox.fill_for(&writing);
        }
        if args.in_place {
            sandbox.change(&target.image);
        }
    }
    for source in sources {
        sandbox.read(source);
    }
    if let Some(log) = &args.writing.log {
        sandbox.fill_beside(log);
    }
    // What a log says of who and where.
    for file in provenance::ORIGIN {
        sandbox.read(Path::new(file));
    }
    sandbox.enter()
}

/// An image that is open for an edit.
struct Editor<'a> {
    forest: &'a Forest,
}

/// Opens the image with its overlay, edits, and makes the edit stable; `--in-place` commits it.
/// The answer is the overlay that has the change now.
fn edit(
    args: &EditArgs,
    target: &Target,
    change: impl FnOnce(&Editor<'_>, &Target) -> Result<()>,
) -> Result<Option<PathBuf>> {
    // What is encrypted cannot be written to: nobody is asked for its passphrase.
    let mut options = args.image.parse(false)?;
    options.stack.writing = args.writing.parse(&target.image, args.image.force_base)?;
    let place = options.stack.writing.as_ref().and_then(Writing::overlay).map(Path::to_owned);
    let fresh = place.clone().filter(|path| !path.exists());
    ensure!(!args.in_place || fresh.is_some(), "there is an overlay with other changes: commit or discard it first");
    let writing = options.stack.writing.clone();
    interrupt::arm();
    let log = Log::of_writing(args.writing.log.as_deref(), writing.as_ref())?;
    let result = apply(args, target, options, change);
    let about = json!({
        "image": provenance::identity(&target.image),
        "in_place": args.in_place,
        "forced_base": args.image.force_base,
    });
    log.outcome("edit", about, &result);
    if let Some(path) = fresh.filter(|_| args.in_place || result.is_err()) {
        // Made for this edit alone; what it held is in the image now, or is not wanted.
        // But a commit that was interrupted needs it to be finished.
        let state = imgfs::device::overlay::info(&path).ok().and_then(|info| Some(info.base.binding?.state));
        if result.is_ok() || state != Some(State::Copying) {
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
        log.forget(writing.as_ref());
    }
    result?;
    Ok(place.filter(|_| !args.in_place))
}

fn apply(
    args: &EditArgs,
    target: &Target,
    options: MountOptions,
    change: impl FnOnce(&Editor<'_>, &Target) -> Result<()>,
) -> Result<()> {
    let path = options.stack.writing.as_ref().and_then(Writing::overlay).map(Path::to_owned);
    let image: Image = target.open_with(options)?;
    if args.in_place {
        image.check_committable()?;
    }
    let forest = image.forest();
    let editor = Editor { forest: &forest };
    interrupt::check()?;
    let changed = change(&editor, target);
    // Also after a failure: what was done before it is in order.
    editor.writer()?.quiesce()?;
    drop(forest);
    changed?;
    match image.into_overlay() {
        Some(overlay) if args.in_place => {
            let committed = overlay.commit_in_place(&mut |_, _| ());
            commit::in_place(committed, path.as_deref())
        }
        Some(overlay) => Ok(overlay.close()?),
        None => bail!("the overlay is still in use"),
    }
}

impl Editor<'_> {
    fn writer(&self) -> Result<&dyn FileSystemWrite> {
        Ok(self.forest.writer().ok_or(Error::ReadOnly)?)
    }

    /// A path with the forest's own link at its head (`files`) replaced.
    fn resolved(&self, path: &[u8]) -> Result<Vec<u8>> {
        let mut names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
        let mut out = names.next().context("the path is missing: IMAGE:/files/...")?.to_vec();
        if let Ok(target) = self.forest.find(&out).and_then(|node| self.forest.read_link(node)) {
            out = target;
        }
        for name in names {
            out.push(b'/');
            out.extend_from_slice(name);
        }
        Ok(out)
    }

    fn create(&self, dir: NodeId, name: &[u8], kind: Kind) -> imgfs::error::Result<NodeId> {
        let writer = self.forest.writer().ok_or(Error::ReadOnly)?;
        writer.create(dir, name, NewNode { kind, read_only: false, now: Timestamp::now() })
    }

    fn find(&self, path: &[u8]) -> Result<NodeId> {
        self.forest.find(path).with_context(|| printable(path))
    }

    fn kind(&self, path: &[u8]) -> Result<Option<Kind>> {
        match self.forest.find(path) {
            Ok(node) => Ok(Some(self.forest.attributes(node)?.kind)),
            Err(Error::NotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory at a path; it and those above it are made when they are not there.
    fn make_all(&self, path: &[u8]) -> Result<NodeId> {
        let mut dir = self.forest.root();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            dir = match self.forest.lookup(dir, name)? {
                Some(node) => node,
                None => self.create(dir, name, Kind::Directory).map_err(|error| about_name(error, name))?,
            };
        }
        Ok(dir)
    }

    fn remove(&self, path: &[u8], recursive: bool, depth: usize) -> Result<()> {
        ensure!(depth < MAX_DEPTH, "nested too deep");
        interrupt::check()?;
        let (folder, name) = split(path)?;
        let node = self.find(path)?;
        let directory = self.forest.attributes(node)?.kind == Kind::Directory;
        if directory && recursive {
            let (rows, failed) = walk::rows(self.forest, node);
            if let Some(error) = failed {
                return Err(error.into());
            }
            for row in rows {
                self.remove(&[path, b"/", &row.name].concat(), true, depth + 1)?;
            }
        }
        ensure!(!directory || recursive, "{} is a directory: add -r", printable(path));
        Ok(self.writer()?.remove(self.find(folder)?, name, directory)?)
    }

    fn copy(&self, source: &Path, path: &[u8], recursive: bool, depth: usize) -> Result<()> {
        ensure!(depth < MAX_DEPTH, "nested too deep");
        interrupt::check()?;
        let metadata = std::fs::symlink_metadata(source)?;
        let modified = metadata.modified().ok().and_then(Timestamp::from_system_time);
        if metadata.is_dir() {
            ensure!(recursive, "it is a directory: add -r");
            self.make_all(path)?;
            let mut entries: Vec<_> = std::fs::read_dir(source)?.collect::<Result<_, _>>()?;
            entries.sort_by_key(std::fs::DirEntry::file_name);
            for entry in entries {
                let below = [path, b"/", entry.file_name().as_encoded_bytes()].concat();
                self.copy(&entry.path(), &below, true, depth + 1)
                    .with_context(|| entry.path().display().to_string())?;
            }
        } else {
            ensure!(metadata.is_file(), "neither a file nor a directory: the volume cannot hold it");
            self.copy_file(source, path)?;
        }
        let changes = Changes { modified, ..Changes::default() };
        Ok(self.writer()?.set_attributes(self.find(path)?, &changes)?)
    }

    fn copy_file(&self, source: &Path, path: &[u8]) -> Result<()> {
        let mut file = File::open(source)?;
        let (folder, name) = split(path)?;
        let dir = self.find(folder)?;
        let writer = self.writer()?;
        let node = match self.create(dir, name, Kind::File) {
            Err(Error::Exists) => {
                let node = self.find(path)?;
                writer.set_attributes(node, &Changes { size: Some(0), ..Changes::default() })?;
                node
            }
            made => made.map_err(|error| about_name(error, name))?,
        };
        self.fill(&mut file, node).inspect_err(|_| {
            // A part of a file under the name of the whole would be taken for it.
            let _ = writer.remove(dir, name, false);
        })
    }

    fn fill(&self, file: &mut File, node: NodeId) -> Result<()> {
        let writer = self.writer()?;
        let mut buffer = vec![0; PIECE];
        let mut offset = 0u64;
        loop {
            interrupt::check()?;
            let len = file.read(&mut buffer)?;
            let piece = buffer.get(..len).unwrap_or_default();
            if piece.is_empty() {
                return Ok(());
            }
            writer.write(node, piece, offset, Timestamp::now())?;
            offset += len as u64;
        }
    }
}

/// The folder of a path, and its last name.
fn split(path: &[u8]) -> Result<(&[u8], &[u8])> {
    let at = path
        .iter()
        .rposition(|byte| *byte == b'/')
        .context("a volume itself cannot be changed: name something in it")?;
    let (folder, name) = path.split_at(at);
    Ok((folder, name.get(1..).unwrap_or_default()))
}

/// A name that a volume refuses is the only thing that can be invalid in a new one.
fn about_name(error: Error, name: &[u8]) -> anyhow::Error {
    match error {
        Error::Invalid => anyhow::anyhow!(
            "the volume cannot hold the name \"{}\": FAT allows neither \" * / : < > ? \\ | and control characters, \
             nor a dot or a space at the end; with iocharset= nothing that is not in that character set",
            printable(name)
        ),
        other => other.into(),
    }
}
