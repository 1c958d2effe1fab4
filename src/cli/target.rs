//! `IMAGE[@@SIZE][:/path]`: what a command is about.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use imgfs::error::Error;
use imgfs::filesystem::{FileSystem, Kind, NodeId};
use imgfs::forest::Forest;
use imgfs::stack::{Image, Tree, Writing};
use imgfs::text::printable;
use rustix::io::Errno;

use super::key::{self, KeyArgs};
use super::options::{self, MountOptions};
use super::progress;
use super::sandbox::{SafetyArgs, Sandbox};
use super::{Outcome, complaint, interrupt};

/// How an image is named and read: the arguments that every command shares.
#[derive(clap::Args, Clone)]
pub struct ImageArgs {
    /// Options as for mount(8); see `imgfs mount --help`
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// GNU ddrescue's map of the image, when it is not beside it under the image's name
    #[arg(long, value_name = "FILE")]
    pub map: Option<PathBuf>,
    /// Take the base of an overlay that has changed since the overlay was made, or is another one. Whoever writes to
    /// the overlay makes it its base from then on
    #[arg(long)]
    pub force_base: bool,
    #[command(flatten)]
    pub key: KeyArgs,
    #[command(flatten)]
    pub safety: SafetyArgs,
    /// Parsed once, while names of users can still be looked up
    #[arg(skip)]
    parsed: OnceLock<MountOptions>,
}

impl ImageArgs {
    /// The options, and the keys; `ask` as for [`KeyArgs::source`].
    pub fn parse(&self, ask: bool) -> Result<MountOptions> {
        let mut options = match self.parsed.get() {
            Some(parsed) => parsed.clone(),
            None => MountOptions::parse(self.options.iter().map(String::as_str))?,
        };
        let _ = self.parsed.set(options.clone());
        self.key.prepare(&options, ask)?;
        options.stack.keys = self.key.source(ask);
        options.stack.container.map = self.map.clone();
        options.stack.container.force_base = self.force_base;
        options.stack.container.references.clone_from(&self.safety.allow_references);
        options.stack.container.progress = progress::hook();
        Ok(options)
    }

    /// The same of a command that only looks at an image: with what was never written, it would show less
    /// than was asked for.
    pub fn parse_to_read(&self, image: &Path, ask: bool) -> Result<MountOptions> {
        let options = self.parse(ask)?;
        if options.read_write {
            let overlay = options.overlay.clone().unwrap_or_else(|| options::beside(image));
            bail!(
                "-o rw: this command shows the image as it is; for the image with its changes name the overlay in its place: {}",
                printable(overlay.as_os_str().as_encoded_bytes())
            );
        }
        Ok(options)
    }

    /// What a command keeps that decodes an image named so.
    pub fn sandbox(&self) -> Result<Sandbox> {
        self.parse(key::attended())?;
        let mut sandbox = Sandbox::new(&self.safety);
        // How much memory a derivation of keys can have.
        sandbox.read(Path::new("/proc/meminfo"));
        if let Some(map) = &self.map {
            sandbox.read(map);
        }
        Ok(sandbox)
    }
}

/// An image, and a path in it.
pub struct Target {
    /// The host file.
    pub image: PathBuf,
    /// From `@@`.
    offset: Option<u64>,
    /// Path below the mount's root.
    pub path: Vec<u8>,
}

impl Target {
    /// A name that exists on the host is an image as it is; otherwise the path starts at a `:` in
    /// front of which an image's name ends.
    pub fn parse(text: &OsStr) -> Result<Self> {
        let bytes = text.as_bytes();
        let colons = bytes.iter().enumerate().filter(|(_, byte)| **byte == b':').map(|(at, _)| at);
        for end in std::iter::once(bytes.len()).chain(colons.rev()) {
            let (name, path) = bytes.split_at(end);
            if let Some((image, offset)) = existing(OsStr::from_bytes(name))? {
                return Ok(Self { image, offset, path: path.get(1..).unwrap_or_default().to_vec() });
            }
        }
        Err(missing(Path::new(text)))
    }

    /// Opens the image.
    pub fn open(&self, args: &ImageArgs) -> Result<Image> {
        self.open_with(args.parse_to_read(&self.image, key::attended())?)
    }

    /// Opens the image with options already parsed.
    pub fn open_with(&self, options: MountOptions) -> Result<Image> {
        let mut stack = options.stack;
        stack.offset = self.offset.unwrap_or(stack.offset);
        Image::open(&self.image, &stack).map_err(|error| match &stack.writing {
            Some(Writing::Overlay(path, _)) => options::about_overlay(error, path),
            _ => error.into(),
        })
    }

    /// The node at the path. A path that a volume has below its own root is suggested.
    pub fn find(&self, image: &Image, forest: &Forest) -> Result<NodeId> {
        Ok(self.locate(image, forest)?.node)
    }

    /// The same, and where that is.
    pub fn locate(&self, image: &Image, forest: &Forest) -> Result<Place> {
        let shown = || format!("{}:/{}", self.image.display(), imgfs::text::printable(trimmed(&self.path)));
        match self.follow(forest) {
            Err(error @ Error::NotFound) => Err(error).with_context(|| match self.suggestion(image) {
                Some(name) => {
                    format!("{} (did you mean /{name}/{}?)", shown(), imgfs::text::printable(trimmed(&self.path)))
                }
                None => match self.treeless(image) {
                    Some(why) => format!("{} ({why})", shown()),
                    None => shown(),
                },
            }),
            other => other.with_context(shown),
        }
    }

    /// The links that the forest itself makes (`files`, `by-label/…`) are followed; the medium's are not.
    fn follow(&self, forest: &Forest) -> imgfs::error::Result<Place> {
        let mut names = self.path.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        let mut path: Vec<u8> = Vec::new();
        let depth = if trimmed(&self.path).starts_with(b"by-") { 2 } else { 1 };
        for name in names.by_ref().take(depth) {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        if let Ok(link) = forest.find(&path).and_then(|node| forest.read_link(node)) {
            path = link.strip_prefix(b"../").unwrap_or(&link).to_vec();
        }
        for name in names {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        let node = forest.find(&path)?;
        Ok(Place { node, path: trimmed(&path).to_vec() })
    }

    /// Why a part that the path starts with has nothing below it.
    fn treeless(&self, image: &Image) -> Option<String> {
        let first = trimmed(&self.path).split(|&byte| byte == b'/').next()?;
        let part = image.part(std::str::from_utf8(first).ok()?)?;
        match &part.tree {
            Tree::Broken(error) => Some(format!("{} has no tree: {error}", part.name)),
            Tree::Encrypted(_) => Some(format!("{} is encrypted: --key-file opens it", part.name)),
            Tree::Unknown => Some(format!("{} has no file system that imgfs knows", part.name)),
            Tree::Open { .. } | Tree::Structural => None,
        }
    }

    /// The first volume that has the path below its root.
    fn suggestion<'a>(&self, image: &'a Image) -> Option<&'a str> {
        let has = |tree: &Tree| match tree {
            Tree::Open { tree, .. } => imgfs::forest::find(tree.as_ref(), &self.path).is_ok(),
            _ => false,
        };
        image.parts.iter().find(|part| has(&part.tree)).map(|part| part.folder.as_str())
    }

    /// Last name of the path; `None` for the root.
    pub fn name(&self) -> Option<OsString> {
        let name = self.path.split(|&byte| byte == b'/').rfind(|name| !name.is_empty() && *name != b".")?;
        Some(OsString::from_vec(name.to_vec()))
    }
}

/// An image that is open at what its path names.
pub struct Located {
    /// What was named.
    pub target: Target,
    /// The image.
    pub image: Image,
    /// What a mount of it shows.
    pub forest: Forest,
    /// What is at the path.
    pub node: NodeId,
    /// What that is.
    pub kind: Kind,
}

impl Located {
    /// Opens an image, and looks for what is named in it.
    pub fn open(text: &OsStr, args: &ImageArgs) -> Result<Self> {
        let target = Target::parse(text)?;
        let image = target.open(args)?;
        let forest = image.forest();
        let node = target.find(&image, &forest)?;
        let kind = forest.attributes(node)?.kind;
        Ok(Self { target, image, forest, node, kind })
    }
}

/// What is said of one of several names that cannot be had: it does not keep the others from their turn.
/// Of the only one it is the error of the command.
pub fn one_of<T>(names: &[OsString], had: Result<T>, outcome: &mut Outcome) -> Result<Option<T>> {
    match had {
        Err(error) if names.len() > 1 && !interrupt::is_caught() => {
            eprintln!("imgfs: {}", complaint(&error));
            *outcome = Outcome::Partial;
            Ok(None)
        }
        had => had.map(Some),
    }
}

/// A node, and the way to it once the links of the forest are followed: `p1/etc` of `files/etc`.
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// Its path below the mount's root.
    pub path: Vec<u8>,
}

/// Why there is no image of a name, and what may have been meant.
fn missing(name: &Path) -> anyhow::Error {
    let shown = name.display();
    if name.as_os_str() == "-" {
        return anyhow::anyhow!(
            "-: an image is read from any place at any time, which a pipe cannot do: put it into a file"
        );
    }
    let image = name.ancestors().skip(1).find(|above| above.is_file());
    if let Some((image, inside)) = image.and_then(|image| Some((image, name.strip_prefix(image).ok()?))) {
        return anyhow::anyhow!(
            "{shown}: what is in an image comes after a colon: {}:/{}",
            image.display(),
            inside.display()
        );
    }
    let error = name.symlink_metadata().err().unwrap_or_else(|| Errno::NOENT.into());
    anyhow::Error::new(error).context(shown.to_string())
}

/// A path without slashes at its ends.
pub fn trimmed(path: &[u8]) -> &[u8] {
    let start = path.iter().position(|&byte| byte != b'/').unwrap_or(path.len());
    let end = path.iter().rposition(|&byte| byte != b'/').map_or(start, |last| last + 1);
    path.get(start..end).unwrap_or_default()
}

/// The image of that name, when there is one; `NAME@@SIZE` starts at that byte.
fn existing(name: &OsStr) -> Result<Option<(PathBuf, Option<u64>)>> {
    if name.is_empty() {
        return Ok(None);
    }
    if Path::new(name).exists() {
        return Ok(Some((name.into(), None)));
    }
    let bytes = name.as_bytes();
    let Some(at) = bytes.windows(2).rposition(|pair| pair == b"@@") else { return Ok(None) };
    let (image, size) = bytes.split_at(at);
    let image = Path::new(OsStr::from_bytes(image));
    let size = size.get(2..).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default();
    // With a colon in it, this is the path as well: a shorter name comes next.
    if !image.exists() || size.contains(':') {
        return Ok(None);
    }
    let offset = options::size(size).with_context(|| format!("{}", Path::new(name).display()))?;
    Ok(Some((image.to_owned(), Some(offset))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_in_a_file_name_is_part_of_the_name() {
        let folder = std::env::temp_dir().join(format!("imgfs-target-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let image = folder.join("a:b@@c.img");
        std::fs::write(&image, b"x").unwrap();
        let parse = |suffix: &str| Target::parse(OsStr::new(&format!("{}{suffix}", image.display())));
        let target = parse("@@1K:/x:y/z").unwrap();
        assert_eq!((target.image, target.offset, target.path), (image.clone(), Some(1024), b"/x:y/z".to_vec()));
        assert_eq!(parse("").unwrap().path, b"");
        assert!(parse("?").is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
