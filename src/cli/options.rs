//! `-o name[=value],...`: one table of names for all commands, spelled as mount(8) and the kernel
//! spell them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use imgfs::device::overlay::{self, Overlay};
use imgfs::error::Error;
use imgfs::filesystem::NameMap;
use imgfs::stack::{self, Writing};
use imgfs::text::charset::{self, Charset};
use imgfs::text::printable;

use super::provenance::Log;
use super::sandbox::{SafetyArgs, Sandbox};

/// Everything that `-o` can say.
#[derive(Debug, Clone, Default)]
pub struct MountOptions {
    /// How the image is opened.
    pub stack: stack::Options,
    /// `owners`: the disk's owners and permissions; the default for root.
    pub owners: Option<bool>,
    /// `allow_other`: every user may look.
    pub allow_other: bool,
    /// Owner of all files.
    pub uid: Option<u32>,
    /// Group of all files.
    pub gid: Option<u32>,
    /// Permission bits to take from files.
    pub fmask: Option<u16>,
    /// Permission bits to take from directories.
    pub dmask: Option<u16>,
    /// `rw`: changes go to an overlay.
    pub read_write: bool,
    /// `tree` or `tree=p1`: this tree at the mount point itself.
    pub tree: Option<Option<String>>,
    /// `overlay=FILE`: where the changes go.
    pub overlay: Option<PathBuf>,
    /// `timeout=`: how long nobody has to ask for anything until it unmounts.
    pub timeout: Option<Duration>,
    /// `hashes`: `user.hash.sha256` of every file, calculated when it is asked for.
    pub hashes: bool,
    /// `quiet`: an owner that cannot be kept is no error.
    pub quiet: bool,
    /// `keyfile=`: files with keys of encrypted volumes.
    pub key_files: Vec<PathBuf>,
    /// `nokey`: encrypted volumes stay closed, and nobody is asked.
    pub no_key: bool,
    /// `iocharset=`: the character set of names; UTF-8 when `None`.
    iocharset: Option<Charset>,
    /// `utf8`: it is UTF-8 all the same.
    utf8: bool,
    /// `symlinks=`: what becomes of symbolic links.
    pub symlinks: Option<SymlinkChoice>,
}

/// The words that `symlinks=` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymlinkChoice {
    /// As on the medium.
    AsIs,
    /// Absolute ones stay inside their tree.
    Rewrite,
    /// Not shown.
    Hide,
}

/// Where changes go: the same for a mount and for the commands that change an image.
#[derive(clap::Args, Debug, Clone)]
pub struct WritingArgs {
    /// Keep changes in this file (default: IMAGE.overlay.qcow2); implies -o rw
    #[arg(long, value_name = "FILE", aliases = ["shadow", "cache"])]
    pub overlay: Option<PathBuf>,
    /// Throw changes away at the end; implies -o rw
    #[arg(long, conflicts_with = "overlay")]
    pub snapshot: bool,
    /// Bound on the overlay's size
    #[arg(long, value_name = "SIZE")]
    pub overlay_max: Option<String>,
    /// Append what was done to this file, JSON lines (an overlay has OVERLAY.log.jsonl by itself)
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
}

impl WritingArgs {
    /// Where a command that changes an image writes to; `force` is `--force-base`.
    pub fn parse(&self, image: &Path, force: bool) -> Result<Option<Writing>> {
        self.parse_with(image, force, true, None)
    }

    /// The same of a mount, which may be read-only: `None` when nothing is to be written. `named` is the file of
    /// `-o overlay=`.
    pub fn parse_with(
        &self,
        image: &Path,
        force: bool,
        read_write: bool,
        named: Option<&Path>,
    ) -> Result<Option<Writing>> {
        let max_size = self.overlay_max.as_deref().map(size).transpose().context("--overlay-max")?;
        let options = overlay::Options { max_size, force, read_only: false };
        if self.snapshot {
            return Ok(Some(Writing::Snapshot(std::env::temp_dir(), options)));
        }
        if self.overlay.is_none() && !read_write {
            return Ok(None);
        }
        let path = self.overlay.clone().or_else(|| named.map(Path::to_owned)).unwrap_or_else(|| beside(image));
        Ok(Some(Writing::Overlay(std::path::absolute(path)?, options)))
    }
}

/// An overlay and its base, as the verbs name them.
#[derive(clap::Args, Debug, Clone)]
pub struct OverlayArgs {
    /// The overlay
    pub overlay: PathBuf,
    /// Its base, when that does not lie beside it
    #[arg(long, value_name = "IMAGE")]
    pub base: Option<PathBuf>,
    /// Take a base that has changed since the overlay was made; a command that changes the overlay keeps it
    #[arg(long)]
    pub force_base: bool,
    #[command(flatten)]
    pub safety: SafetyArgs,
    /// Append what was done to this file, JSON lines (default: OVERLAY.log.jsonl)
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
}

/// An image in the place of its overlay is a slip that can be told.
pub fn is_no_image(overlay: &Path) -> Result<()> {
    let own = beside(overlay);
    let mut magic = [0; 4];
    let read = File::open(overlay).and_then(|mut file| file.read_exact(&mut magic));
    let is_overlay = read.is_ok() && magic == *b"QFI\xfb";
    ensure!(is_overlay || !own.is_file(), "{}: that is an image: its overlay is {}", overlay.display(), own.display());
    Ok(())
}

impl OverlayArgs {
    /// Gives up all rights but those to read the overlay and its base, and to fill a folder.
    pub fn confine(&self, output: Option<&Path>) -> Result<()> {
        is_no_image(&self.overlay)?;
        self.keeping(output).enter()
    }

    /// The same, and to note in the overlay what is learned of its base.
    pub fn confine_to_learn(&self, output: &Path) -> Result<()> {
        is_no_image(&self.overlay)?;
        let mut sandbox = self.keeping(Some(output));
        sandbox.change(&self.overlay);
        sandbox.enter()
    }

    /// The same, and to change overlay and base.
    pub fn confine_to_change(&self) -> Result<()> {
        is_no_image(&self.overlay)?;
        let mut sandbox = self.keeping(None);
        sandbox.change(&self.overlay);
        if let Ok(base) = stack::base_of(&self.overlay, self.base.as_deref()) {
            sandbox.change(&base);
        }
        sandbox.enter()
    }

    fn keeping(&self, output: Option<&Path>) -> Sandbox {
        let mut sandbox = Sandbox::new(&self.safety);
        sandbox.image(&self.overlay);
        if let Some(base) = &self.base {
            sandbox.image(base);
        }
        if let Some(output) = output {
            sandbox.fill_beside(output);
        }
        sandbox
    }

    /// How the overlay is opened: only to look at it, or to change it.
    pub fn options(&self, read_only: bool) -> overlay::Options {
        overlay::Options { force: self.force_base, read_only, ..overlay::Options::default() }
    }

    /// Its log.
    pub fn log(&self) -> Result<Log> {
        Log::open(self.log.as_deref(), Some(&self.overlay))
    }

    /// Opens it.
    pub fn open(&self, read_only: bool) -> Result<Overlay> {
        let options = self.options(read_only);
        let references = &self.safety.allow_references;
        let opened = stack::open_overlay(&self.overlay, self.base.as_deref(), options, references);
        opened.with_context(|| self.overlay.display().to_string())
    }
}

/// An error about what is in an overlay, with its name.
pub fn about_overlay(error: Error, path: &Path) -> anyhow::Error {
    let inside =
        matches!(error, Error::Unsupported { format: "overlay", .. } | Error::Corrupt { format: "overlay", .. });
    let error = anyhow::Error::new(error);
    if inside { error.context(printable(path.as_os_str().as_encoded_bytes())) } else { error }
}

/// The overlay's usual place.
pub fn beside(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".overlay.qcow2");
    name.into()
}

/// An option, as `--help` and the error for an unknown one know it.
pub struct Known {
    /// Its name.
    pub name: &'static str,
    /// What its value is; empty when it has none.
    pub value: &'static str,
    /// One line for `--help`; empty for a synonym, and for what is accepted and means nothing here.
    pub help: &'static str,
}

const fn known(name: &'static str, value: &'static str, help: &'static str) -> Known {
    Known { name, value, help }
}

/// Every name that `-o` takes.
pub const KNOWN: &[Known] = &[
    known("ro", "", "read-only (the default)"),
    known("rw", "", "read and write: changes go to an overlay, never into the image"),
    known("overlay", "[FILE]", "as rw, and where the changes go (for fstab; mount(8) says rw by itself)"),
    known("timeout", "SECONDS", "unmount when nobody has asked for anything so long, and nothing is open"),
    known("tree", "[pN]", "one tree at the mount point itself: the main one, or the named one"),
    known("part", "N", "as tree=pN: the tree of partition N alone"),
    known(
        "symlinks",
        "asis|rewrite|hide",
        "absolute links: as on the medium (the default with tree), or made to stay inside their tree; or no links at all",
    ),
    known(
        "mode",
        "OCTAL",
        "permissions of files on a medium that has none (ISO 9660, FAT, exFAT); dmode= of directories",
    ),
    known("dmode", "OCTAL", ""),
    known(
        "iocharset",
        "CHARSET",
        "FAT, exFAT, Joliet: show names in this character set, not in UTF-8 (koi8-r, iso8859-1, ...)",
    ),
    known("utf8", "[BOOL]", "UTF-8 whatever iocharset= says; utf8=0 takes that back"),
    known("owners", "", "the disk's owners and permissions (the default for root)"),
    known("noowners", "", "everything belongs to the caller and is readable (the default for others)"),
    known("uid", "USER", "owner of all files: a number, or a name of this host"),
    known("gid", "GROUP", "group of all files, likewise"),
    known("umask", "OCTAL", "permission bits to take away"),
    known("fmask", "OCTAL", "the same, from files only"),
    known("dmask", "OCTAL", "the same, from directories only"),
    known("allow_other", "", "let other users look as well"),
    known("hashes", "", "each file's SHA-256 as the attribute user.hash.sha256, calculated when it is read"),
    known("offset", "SIZE", "first byte of the image that counts (also start=, IMAGE@@SIZE)"),
    known("start", "SIZE", ""),
    known("sizelimit", "SIZE", "number of bytes that count (also length=)"),
    known("length", "SIZE", ""),
    known("format", "NAME", "the container's format, not to be probed; raw is one"),
    known("snapshot", "NAME", "an internal snapshot of the container"),
    known("disk", "N", "of an image that holds several disks (OVA, Clonezilla), this one, from 1"),
    known("bad", "zero", "read what is known to be unreadable (ddrescue's map) as zeros"),
    known("nospool", "", "never unpack into a temporary file (xz, zst and bz2 of one piece)"),
    known("spool-max", "SIZE", "bound on such a file (default 64G; zeros take no room)"),
    known("keyfile", "FILE", "open encrypted volumes with what is in this file, as --key-file"),
    known("nokey", "", "leave encrypted volumes closed without asking for a passphrase"),
    known("cache", "SIZE", "bound on the sector cache (default 32M)"),
    known("codepage", "N", "FAT: code page of short names (default 437)"),
    known("time_offset", "MINUTES", "FAT, and exFAT without a zone: minutes from UTC to the times on the disk"),
    known("tz", "UTC", "FAT, and exFAT without a zone: times on the disk are UTC"),
    known("quiet", "", "FAT: an owner or group that it cannot keep is no error (cp -a, rsync -a, tar as root)"),
    known("showexec", "", "FAT: only .EXE, .COM and .BAT may be run"),
    known("norock", "", "ISO 9660: ignore Rock Ridge"),
    known("nojoliet", "", "ISO 9660: ignore Joliet"),
    known("noudf", "", "a disc that has both ISO 9660 and UDF: ignore UDF"),
    known("map", "off|normal|acorn", "ISO 9660: plain names as recorded; in lower case; with Acorn's file types"),
    known("session", "N", "ISO 9660, and UDF of a disc with both: this session, from 0, not the last"),
    known("sbsector", "N", "ISO 9660, UDF: the volume starts at this sector"),
    known("norecovery", "", "ext: show the state without its journal (also noload)"),
    known("noload", "", ""),
];

/// Words of fstab that say nothing to a read-only mount without device files.
const IGNORED: &[&str] = &[
    "defaults",
    "user",
    "users",
    "owner",
    "group",
    "nofail",
    "auto",
    "noauto",
    "_netdev",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "lazytime",
    "loop",
    "nosuid",
    "nodev",
    "exec",
    "noexec",
    "sync",
    "async",
    "dirsync",
    "nouser",
    "silent",
    "loud",
    "mand",
    "nomand",
    "iversion",
    "noiversion",
    "nosymfollow",
];

/// Words of the kernel's vfat, isofs and ext4 that are about what imgfs does in one way only.
const KERNELS: &[&str] = &[
    "acl",
    "allow_utime",
    "barrier",
    "block",
    "check",
    "commit",
    "conv",
    "cruft",
    "data",
    "discard",
    "errors",
    "fat",
    "flush",
    "hide",
    "journal_checksum",
    "nfs",
    "noacl",
    "nobarrier",
    "nocompress",
    "nonumtail",
    "nouser_xattr",
    "overriderockperm",
    "resgid",
    "resuid",
    "rodir",
    "sb",
    "shortname",
    "showassoc",
    "sys_immutable",
    "unhide",
    "uni_xlate",
    "usefree",
    "user_xattr",
];

impl MountOptions {
    /// Parses the values of all `-o`.
    pub fn parse<'a>(values: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut options = Self::default();
        for word in values.into_iter().flat_map(|value| value.split(',')).filter(|word| !word.is_empty()) {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word, None),
            };
            options.set(name, value).with_context(|| format!("-o {word}"))?;
        }
        options.stack.charset = options.iocharset.filter(|_| !options.utf8);
        Ok(options)
    }

    fn set(&mut self, name: &str, value: Option<&str>) -> Result<()> {
        if IGNORED.contains(&name) || name.starts_with("x-") || name.starts_with("comment") {
            return Ok(());
        }
        let Some(known) = KNOWN.iter().find(|known| known.name == name) else { return Err(unknown(name)) };
        let optional = known.value.starts_with('[');
        match (known.value.is_empty(), value) {
            (true, Some(_)) => bail!("{name} takes no value"),
            (false, None) if !optional => bail!("{name} needs a value: {name}={}", known.value),
            _ => {}
        }
        let text = value.unwrap_or_default();
        match name {
            "ro" => self.read_write = false,
            "rw" => self.read_write = true,
            "overlay" => {
                self.read_write = true;
                self.overlay = value.map(PathBuf::from);
            }
            "timeout" => {
                self.timeout = Some(number::<u64>(text)?).filter(|&seconds| seconds > 0).map(Duration::from_secs)
            }
            "iocharset" => self.iocharset = charset(text)?,
            "utf8" => self.utf8 = truth(value.unwrap_or("1"))?,
            "mode" => self.stack.filesystem.mode = Some(octal(text)?),
            "dmode" => self.stack.filesystem.dmode = Some(octal(text)?),
            "showexec" => self.stack.filesystem.showexec = true,
            "map" => self.stack.filesystem.map = name_map(text)?,
            "tree" => self.tree = Some(value.map(str::to_owned)),
            "part" => self.tree = Some(Some(part(text)?)),
            "symlinks" => self.symlinks = Some(symlinks(text)?),
            "owners" => self.owners = Some(true),
            "noowners" => self.owners = Some(false),
            "uid" => self.uid = Some(id(text, "user", "/etc/passwd")?),
            "gid" => self.gid = Some(id(text, "group", "/etc/group")?),
            "umask" => (self.fmask, self.dmask) = (Some(octal(text)?), Some(octal(text)?)),
            "fmask" => self.fmask = Some(octal(text)?),
            "dmask" => self.dmask = Some(octal(text)?),
            "allow_other" => self.allow_other = true,
            "hashes" => self.hashes = true,
            "quiet" => self.quiet = true,
            "offset" | "start" => self.stack.offset = size(text)?,
            "sizelimit" | "length" => self.stack.size_limit = Some(size(text)?),
            "format" => self.stack.container.format = Some(text.to_owned()),
            "snapshot" => self.stack.container.snapshot = Some(text.to_owned()),
            "bad" if text == "zero" => self.stack.container.bad_as_zeros = true,
            "bad" => bail!("zero is the only choice"),
            "keyfile" => self.key_files.push(text.into()),
            "nokey" => self.no_key = true,
            "disk" => self.stack.container.disk = Some(number(text)?),
            "spool-max" => self.stack.container.spool_max = Some(size(text)?),
            "nospool" => self.stack.container.no_spool = true,
            "cache" => {
                self.stack.cache_size = size(text)?;
                self.stack.container.cache_size = self.stack.cache_size;
            }
            "codepage" => self.stack.filesystem.codepage = Some(number(text)?),
            "time_offset" => self.stack.filesystem.time_offset = time_offset(text)?,
            "tz" if text.eq_ignore_ascii_case("utc") => self.stack.filesystem.time_offset = 0,
            "tz" => bail!("only UTC is known; time_offset= takes any zone, in minutes"),
            "norock" => self.stack.filesystem.norock = true,
            "nojoliet" => self.stack.filesystem.nojoliet = true,
            "noudf" => self.stack.filesystem.noudf = true,
            "session" => self.stack.filesystem.session = Some(number(text)?),
            "sbsector" => self.stack.filesystem.sbsector = Some(number(text)?),
            "norecovery" | "noload" => self.stack.filesystem.norecovery = true,
            _ => {}
        }
        Ok(())
    }
}

/// Whether a word of `-o` means anything here, or is known to mean nothing.
pub fn is_known(word: &str) -> bool {
    let name = word.split('=').next().unwrap_or_default();
    IGNORED.contains(&name) || name.starts_with("x-") || KNOWN.iter().any(|known| known.name == name)
}

/// Refuses a word by name, with the nearest known one.
fn unknown(name: &str) -> anyhow::Error {
    match name {
        "dev" | "suid" => {
            return anyhow::anyhow!(
                "refused: device files and set-user-id programs of an image never work through imgfs"
            );
        }
        "remount" => {
            return anyhow::anyhow!("imgfs cannot change a mount that is there: unmount it, and mount the image again");
        }
        name if KERNELS.contains(&name) => {
            return anyhow::anyhow!("a word of the kernel's own drivers that imgfs does not have; leave it out");
        }
        _ => {}
    }
    let names = KNOWN.iter().map(|known| known.name).chain(IGNORED.iter().copied());
    match nearest(names, name) {
        Some(known) => anyhow::anyhow!("unknown option; did you mean {known}?"),
        None => anyhow::anyhow!("unknown option; `imgfs mount --help` lists them"),
    }
}

/// What was probably meant.
fn nearest(names: impl Iterator<Item = &'static str>, wanted: &str) -> Option<&'static str> {
    let nearest = names.map(|known| (strsim::damerau_levenshtein(known, wanted), known)).min();
    nearest.filter(|(distance, known)| *distance <= known.len().div_ceil(2)).map(|(_, known)| known)
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| anyhow::anyhow!("{text:?} is not a number in range"))
}

/// Minutes, of a day at the most: as the kernel's vfat takes it.
fn time_offset(text: &str) -> Result<i32> {
    let minutes = number(text)?;
    ensure!((-1440..=1440).contains(&minutes), "it is in minutes, from -1440 to 1440");
    Ok(minutes)
}

/// The owner's or the group's number: as it is, or by its name in a file of the host. To be asked for
/// before the sandbox, as all options are.
fn id(text: &str, what: &str, names: &str) -> Result<u32> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let list = std::fs::read_to_string(names).with_context(|| names.to_owned())?;
    let row = |line: &str| {
        let mut fields = line.split(':');
        if fields.next() == Some(text) { fields.nth(1)?.parse().ok() } else { None }
    };
    list.lines().find_map(row).with_context(|| format!("{text:?} is neither a number nor a {what} in {names}"))
}

/// `1` and `p1` are the same tree.
fn part(text: &str) -> Result<String> {
    let digits = text.strip_prefix('p').unwrap_or(text);
    Ok(format!("p{}", number::<u32>(digits)?))
}

fn symlinks(text: &str) -> Result<SymlinkChoice> {
    match text {
        "asis" => Ok(SymlinkChoice::AsIs),
        "rewrite" => Ok(SymlinkChoice::Rewrite),
        "hide" => Ok(SymlinkChoice::Hide),
        _ => bail!("the words are asis, rewrite and hide"),
    }
}

/// The words for it that the kernel's vfat takes.
fn truth(text: &str) -> Result<bool> {
    match text {
        "1" | "yes" | "true" => Ok(true),
        "0" | "no" | "false" => Ok(false),
        _ => bail!("the words are 1, yes, true and 0, no, false"),
    }
}

/// A character set by its name; `None` for UTF-8.
fn charset(text: &str) -> Result<Option<Charset>> {
    let unknown = || match nearest(charset::names(), text) {
        Some(known) => anyhow::anyhow!("a character set that imgfs does not have; did you mean {known}?"),
        None => anyhow::anyhow!("a character set that imgfs does not have; utf8, iso8859-1, koi8-r, cp1251, sjis are"),
    };
    Charset::named(text).ok_or_else(unknown)
}

/// The words of the kernel's isofs, and its letters for them.
fn name_map(text: &str) -> Result<NameMap> {
    match text {
        "off" | "o" => Ok(NameMap::Off),
        "normal" | "n" => Ok(NameMap::Normal),
        "acorn" | "a" => Ok(NameMap::Acorn),
        _ => bail!("the words are off, normal and acorn"),
    }
}

fn octal(text: &str) -> Result<u16> {
    u16::from_str_radix(text, 8)
        .ok()
        .filter(|mask| *mask <= 0o7777)
        .with_context(|| format!("{text:?} is not an octal mask"))
}

/// A size in bytes: a number with an optional unit, `s` (sectors of 512) or `K M G T`, powers of 1,024.
pub fn size(text: &str) -> Result<u64> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" | "B" => 1,
        "s" => 512,
        "K" | "k" | "KiB" => 1 << 10,
        "M" | "m" | "MiB" => 1 << 20,
        "G" | "g" | "GiB" => 1 << 30,
        "T" | "t" | "TiB" => 1u64 << 40,
        _ => bail!("{text:?}: the units are s (sectors of 512 bytes), K, M, G and T"),
    };
    let value = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    value.with_context(|| format!("{text:?} is not a size"))
}

/// The table of options for `--help`.
pub fn help() -> String {
    let mut text = String::from("Options for -o:\n");
    for known in KNOWN.iter().filter(|known| !known.help.is_empty()) {
        let equals = if known.value.is_empty() { "" } else { "=" };
        text.push_str(&format!("  {:<22} {}\n", format!("{}{equals}{}", known.name, known.value), known.help));
    }
    text.push_str(
        "\nSizes take K, M, G, T and s (sectors of 512 bytes). Words of fstab without a meaning here are ignored.\n\
         Linked as /sbin/mount.imgfs and /sbin/mount.fuse.imgfs, the program serves mount(8) and fstab: there\n\
         rw, which mount(8) says by itself, means nothing, and overlay is the word for writing.",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_word_is_refused_with_the_nearest_known_one() {
        let message = |text| format!("{:#}", MountOptions::parse([text]).unwrap_err());
        assert_eq!(message("norok"), "-o norok: unknown option; did you mean norock?");
        assert_eq!(message("sesion=1"), "-o sesion=1: unknown option; did you mean session?");
        assert!(message("suid").contains("never work"));
        assert!(message("uid").contains("uid=USER"));
        assert!(message("remount,ro").contains("unmount it"));
        assert!(message("uid=no:body").contains("is neither a number nor a user in /etc/passwd"));
        assert!(message("umask=9").contains("octal"));
        assert!(message("time_offset=3600").contains("in minutes"));
        for word in ["shortname=mixed", "flush", "errors=remount-ro", "user_xattr", "block=512"] {
            assert!(message(word).contains("leave it out"), "{word}");
        }
    }

    #[test]
    fn a_character_set_has_a_name_and_utf8_overrides_it() {
        let shown = |text| MountOptions::parse([text]).unwrap().stack.charset.map(|set| format!("{set:?}"));
        for text in ["iocharset=utf8", "utf8", "iocharset=koi8-r,utf8", "utf8=yes,iocharset=koi8-r", "iocharset=UTF-8"]
        {
            assert_eq!(shown(text), None, "{text}");
        }
        for text in ["iocharset=koi8-r", "utf8=1,iocharset=KOI8R,utf8=0"] {
            assert_eq!(shown(text).as_deref(), Some("koi8-r"), "{text}");
        }
        let message = |text| format!("{:#}", MountOptions::parse([text]).unwrap_err());
        let unknown = message("iocharset=koi9-r");
        assert_eq!(unknown, "-o iocharset=koi9-r: a character set that imgfs does not have; did you mean koi8-r?");
        assert!(message("utf8=2").contains("the words are"));
    }

    #[test]
    fn a_partition_and_an_owner_have_a_number_and_a_name() {
        let parse = |text| MountOptions::parse([text]).unwrap();
        for text in ["part=5", "part=p5", "tree=p5"] {
            assert_eq!(parse(text).tree, Some(Some("p5".to_owned())), "{text}");
        }
        assert!(MountOptions::parse(["part=five"]).is_err() && MountOptions::parse(["part"]).is_err());
        let options = parse("uid=root,gid=root,silent,nosymfollow");
        assert_eq!((options.uid, options.gid), (Some(0), Some(0)));
        assert_eq!(parse("uid=1234").uid, Some(1234));
    }

    #[test]
    fn fstab_noise_is_accepted_and_sizes_have_units() {
        let options = MountOptions::parse(["defaults,noauto,x-gvfs-show,offset=2048s", "length=1M,umask=027"]).unwrap();
        assert_eq!((options.stack.offset, options.stack.size_limit), (1 << 20, Some(1 << 20)));
        assert_eq!((options.fmask, options.dmask), (Some(0o027), Some(0o027)));
        assert_eq!(size("1T").unwrap(), 1 << 40);
        assert!(size("1Q").is_err() && size("99999999999T").is_err() && size("K").is_err());
    }

    #[test]
    fn every_option_of_the_table_is_understood() {
        for known in KNOWN {
            let value = match known.value {
                "" => String::new(),
                "OCTAL" => "=022".to_owned(),
                "UTC" | "zero" => format!("={}", known.value),
                "CHARSET" => "=koi8-r".to_owned(),
                words if words.contains('|') => format!("={}", words.split('|').next().unwrap()),
                _ => "=1".to_owned(),
            };
            MountOptions::parse([format!("{}{value}", known.name).as_str()]).unwrap();
        }
    }
}
