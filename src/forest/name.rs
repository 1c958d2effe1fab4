//! Names and link targets of a medium, as a path can hold them.
//!
//! A medium may have any bytes for a name, and several rows of one name. What is shown is distinct
//! within its directory, can stand in a path, and leads back to the same row:
//!
//! ```text
//!   on the medium            shown
//!   a/b   a NUL b   .  ..    a%2Fb  a%00b  %2E  %2E%2E
//!   (empty)                  %~0
//!   50%25   a%2Fb   x%~2     50%2525   a%252Fb   x%25~2      only a % that would be read as an escape
//!   x, x, x                  x   x%~2   x%~3                 in the order of the directory
//!   more than 1,000 bytes    its first 960 bytes, %~, a checksum of 16 digits
//! ```
//!
//! Where another character set than UTF-8 is asked for, names that are Unicode on the medium are in it first,
//! and what it does not have is escaped: see [`crate::text::charset`]. No such escape is one of the above.
//!
//! The bytes on the medium of a name that is shown otherwise (UTF-8 for what is Unicode there) are an attribute of its node,
//! `user.imgfs.name`, from when the name was listed or looked up (of a node with several such names
//! it is the last of those), for as long as it is among the last some ten thousand.
//!
//! Everything else stays as it is: control characters, invalid UTF-8, spaces. Whoever prints names
//! on a terminal or into JSON escapes those (see [`crate::text::printable`]). Longer names than
//! NAME_MAX (255 bytes) are shown, as the kernel's own drivers do (255 UTF-16 units of FAT are up to
//! 765 bytes); 1,024 is what FUSE can carry, and one name beyond it would spoil the whole listing.
//!
//! The numbering needs a look at the whole directory, once: eight bytes of memory a row, and only
//! rows of one name are kept. Directories of more than a million rows are not examined. Where a
//! tree can be written to nothing is numbered: there a name always means the row of that very name.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::filesystem::{Attributes, DirEntry, EntrySink, FileSystem, Kind, NodeId};
use crate::text::charset::Charset;

/// Longest name that is shown whole. A number still fits behind it: FUSE takes 1,024 bytes.
const MAX_SHOWN: usize = 1_000;
/// Of a longer name, what is shown before its checksum.
const MAX_START: usize = 960;
/// Digits of that checksum.
const DIGITS: usize = 16;
/// Rows of a directory that are examined for names that come twice.
const MOST_ROWS: usize = 1 << 20;
/// Rows of one directory that are numbered.
const MOST_TWINS: usize = 1 << 16;
/// Bound on what is remembered of directories, in bytes.
const CACHE_SIZE: u64 = 4 << 20;
/// The attribute that has the name on the medium.
const RAW_NAME: &[u8] = b"user.imgfs.name";
/// What an empty name is shown as.
const EMPTY: &[u8] = b"%~0";
/// Longest link target that the kernel takes.
const MAX_TARGET: usize = 4095;

/// What becomes of symbolic links.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Symlinks {
    /// Shown as the medium has them.
    #[default]
    AsIs,
    /// Absolute targets start from here, the path of the tree that the link is in.
    Below(Vec<u8>),
    /// Neither listed nor found.
    Hidden,
}

/// How the rows of trees are shown. Trees are told apart by the number that the caller gives them.
pub(super) struct Names {
    twins: Cache<(u64, NodeId), Option<Arc<Twins>>>,
    /// By tree and node: the name on the medium, where another is shown.
    raw: Cache<(u64, NodeId), Arc<[u8]>>,
    hasher: RandomState,
    /// Of names that are Unicode on the medium; UTF-8 when `None`.
    charset: Option<Charset>,
}

/// The rows of a directory whose name another row has as well.
#[derive(Default)]
struct Twins {
    /// By the row's own cursor.
    numbers: HashMap<u64, u32>,
    /// By the name as shown without its number, and the number.
    nodes: HashMap<(Box<[u8]>, u32), NodeId>,
}

impl Default for Names {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Names {
    /// Names in a character set.
    pub(super) fn new(charset: Option<Charset>) -> Self {
        let (twins, raw) = (Cache::new(CACHE_SIZE), Cache::new(CACHE_SIZE));
        Self { twins, raw, hasher: RandomState::new(), charset }
    }

    fn charset(&self, tree: &dyn FileSystem) -> Option<Charset> {
        self.charset.filter(|_| tree.has_unicode_names())
    }

    /// A name as it is shown when no other row of its directory has it.
    fn shown<'a>(&self, tree: &dyn FileSystem, name: Cow<'a, [u8]>) -> Cow<'a, [u8]> {
        match self.charset(tree) {
            Some(charset) if !name.is_ascii() || name.contains(&b'%') => shown(charset.encode_name(&name).into()),
            _ => shown(name),
        }
    }

    /// The name on the medium that is shown so; `None` for what is not in the character set.
    fn unshown<'a>(&self, tree: &dyn FileSystem, name: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        let raw = unescaped(name);
        match self.charset(tree) {
            Some(charset) if !raw.is_ascii() || raw.contains(&b'%') => charset.decode_name(&raw).map(Cow::Owned),
            _ => Some(raw),
        }
    }

    /// The name on the medium of a row that is there, or would be: for whoever makes, renames or removes it.
    pub(super) fn stored<'a>(&self, tree: &dyn FileSystem, dir: NodeId, name: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        if has_checksum(name)
            && let Some((_, stored)) = self.find_long(tree, dir, name)?
        {
            return Ok(stored.into());
        }
        self.unshown(tree, name).ok_or(Error::Invalid)
    }

    /// The row of a name that is shown by its start and its checksum.
    fn find_long(&self, tree: &dyn FileSystem, dir: NodeId, name: &[u8]) -> Result<Option<(NodeId, Vec<u8>)>> {
        let mut found = None;
        tree.read_dir(dir, 0, &mut |entry| {
            // The escapes of a name take no more than four times its room.
            if entry.name.len() > MAX_SHOWN / 4 && self.shown(tree, entry.name.clone()).as_ref() == name {
                found = Some((entry.node, entry.name.into_owned()));
            }
            found.is_none()
        })?;
        Ok(found)
    }

    fn remember(&self, tree: u64, node: NodeId, raw: &[u8]) {
        self.raw.insert((tree, node), raw.into(), raw.len().saturating_add(128) as u64);
    }

    /// [`FileSystem::xattr`], and the name on the medium.
    pub(super) fn xattr(&self, (tree, number): (&dyn FileSystem, u64), node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        match tree.xattr(node, name) {
            Err(Error::NoAttribute) if name == RAW_NAME => {
                self.raw.get(&(number, node)).map(|raw| raw.to_vec()).ok_or(Error::NoAttribute)
            }
            other => other,
        }
    }

    /// [`FileSystem::xattrs`], and the name on the medium.
    pub(super) fn xattrs(&self, (tree, number): (&dyn FileSystem, u64), node: NodeId) -> Result<Vec<Vec<u8>>> {
        let mut names = tree.xattrs(node)?;
        if self.raw.get(&(number, node)).is_some() && !names.iter().any(|name| name == RAW_NAME) {
            names.push(RAW_NAME.to_vec());
        }
        Ok(names)
    }

    /// [`FileSystem::read_dir`] with shown names.
    pub(super) fn read_dir(
        &self,
        (tree, number_of_tree): (&dyn FileSystem, u64),
        dir: NodeId,
        cursor: u64,
        emit: &mut EntrySink<'_>,
    ) -> Result<()> {
        let twins = self.twins(tree, number_of_tree, dir);
        tree.read_dir(dir, cursor, &mut |entry| {
            let number = twins.as_ref().and_then(|twins| twins.numbers.get(&entry.next));
            let whole = entry.name.clone();
            let name = match number {
                Some(number) => Cow::Owned(numbered(&self.shown(tree, entry.name), *number)),
                None => self.shown(tree, entry.name),
            };
            if name != whole {
                self.remember(number_of_tree, entry.node, &whole);
            }
            emit(DirEntry { name, ..entry })
        })
    }

    /// [`FileSystem::lookup`] by shown names.
    pub(super) fn lookup(
        &self,
        (tree, number): (&dyn FileSystem, u64),
        dir: NodeId,
        name: &[u8],
    ) -> Result<Option<NodeId>> {
        if tree.writer().is_none()
            && let Some((plain, twin)) = split_number(name)
        {
            let twins = self.twins(tree, number, dir);
            let found = twins.and_then(|twins| twins.nodes.get(&(plain.into(), twin)).copied());
            // Of a long name with a checksum the listing knew it.
            if let (Some(node), Some(raw)) = (found, self.unshown(tree, plain).filter(|_| !has_checksum(plain))) {
                self.remember(number, node, &raw);
            }
            return Ok(found);
        }
        if has_checksum(name) {
            let found = self.find_long(tree, dir, name)?;
            if let Some((node, raw)) = &found {
                self.remember(number, *node, raw);
            }
            // Where it can be written to, somebody may have given a file this very name.
            if found.is_some() || tree.writer().is_none() {
                return Ok(found.map(|(node, _)| node));
            }
        }
        let Some(raw) = self.unshown(tree, name) else { return Ok(None) };
        let found = tree.lookup(dir, &raw)?;
        if let (Some(node), true) = (found, *raw != *name) {
            self.remember(number, node, &raw);
        }
        Ok(found)
    }

    fn twins(&self, tree: &dyn FileSystem, number: u64, dir: NodeId) -> Option<Arc<Twins>> {
        if tree.writer().is_some() {
            return None;
        }
        let made = self.twins.get_or_make(&(number, dir), || {
            let twins = self.find_twins(tree, dir).map(Arc::new);
            let weight = twins.as_ref().map_or(0, |twins| twins.weight()).saturating_add(64);
            Ok::<_, Error>((twins, weight))
        });
        made.ok().flatten()
    }

    /// Looks through a directory. Damage in it is what a listing is told, not this.
    fn find_twins(&self, tree: &dyn FileSystem, dir: NodeId) -> Option<Twins> {
        let mut seen: Vec<u64> = Vec::new();
        drop(tree.read_dir(dir, 0, &mut |entry| {
            seen.push(self.hasher.hash_one(self.shown(tree, entry.name)));
            seen.len() < MOST_ROWS
        }));
        seen.sort_unstable();
        let twice = seen.windows(2).filter_map(|pair| pair.first().filter(|hash| pair.last() == Some(hash)));
        let repeated: HashSet<u64> = twice.copied().collect();
        if repeated.is_empty() {
            return None;
        }
        drop(seen);
        let mut rows: Vec<(Box<[u8]>, u64, NodeId)> = Vec::new();
        let mut firsts: HashMap<Box<[u8]>, NodeId> = HashMap::new();
        drop(tree.read_dir(dir, 0, &mut |entry| {
            let (node, next) = (entry.node, entry.next);
            let original = entry.name.clone().into_owned();
            let name = self.shown(tree, entry.name);
            if repeated.contains(&self.hasher.hash_one(&name)) {
                // The plain name is of the row that a look-up of it finds.
                let found = || tree.lookup(dir, &original).ok().flatten().unwrap_or(node);
                firsts.entry(name.as_ref().into()).or_insert_with(found);
                rows.push((name.as_ref().into(), next, node));
            }
            rows.len() < MOST_TWINS
        }));
        let mut twins = Twins::default();
        let mut counts: HashMap<Box<[u8]>, u32> = HashMap::new();
        let mut named: HashSet<Box<[u8]>> = HashSet::new();
        for (name, next, node) in rows {
            if firsts.get(&name) == Some(&node) && named.insert(name.clone()) {
                continue;
            }
            let count = counts.entry(name.clone()).or_insert(1);
            *count = count.saturating_add(1);
            twins.numbers.insert(next, *count);
            twins.nodes.insert((name, *count), node);
        }
        log::warn!(
            "directory {:#x}: {} rows have a name that another has: shown with %~2 and so on",
            dir.0,
            twins.nodes.len()
        );
        Some(twins)
    }
}

impl Twins {
    fn weight(&self) -> u64 {
        self.nodes.keys().fold(0, |sum: u64, (name, _)| sum.saturating_add(name.len().saturating_add(96) as u64))
    }
}

impl Symlinks {
    /// The policy for one of several trees under a root.
    pub(super) fn within(&self, name: &[u8]) -> Self {
        match self {
            Self::Below(root) => Self::Below([root.as_slice(), b"/", name].concat()),
            other => other.clone(),
        }
    }

    pub(super) fn hides(&self, kind: Kind) -> bool {
        *self == Self::Hidden && kind == Kind::Symlink
    }

    /// [`FileSystem::read_link`].
    pub(super) fn read_link(&self, tree: &dyn FileSystem, link: NodeId) -> Result<Vec<u8>> {
        let target = tree.read_link(link)?;
        match self {
            Self::Below(root) if target.starts_with(b"/") => {
                let moved = [root.as_slice(), &target].concat();
                if moved.len() > MAX_TARGET { Err(Error::NameTooLong) } else { Ok(moved) }
            }
            _ => Ok(target),
        }
    }

    /// [`FileSystem::attributes`]: the size of a link is its target's, as shown.
    pub(super) fn attributes(&self, tree: &dyn FileSystem, node: NodeId) -> Result<Attributes> {
        let attributes = tree.attributes(node)?;
        if attributes.kind == Kind::Symlink && matches!(self, Self::Below(_)) {
            // A target that cannot be read is said when it is asked for.
            let size = self.read_link(tree, node).map_or(attributes.size, |target| target.len() as u64);
            return Ok(Attributes { size, ..attributes });
        }
        Ok(attributes)
    }

    /// What a look-up found, unless it is hidden.
    pub(super) fn found(&self, tree: &dyn FileSystem, found: Option<NodeId>) -> Result<Option<NodeId>> {
        match found {
            Some(node) if *self == Self::Hidden && tree.attributes(node)?.kind == Kind::Symlink => Ok(None),
            found => Ok(found),
        }
    }
}

/// A name that a path can hold, and FUSE.
fn shown(name: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    if name.is_empty() {
        return Cow::Borrowed(EMPTY);
    }
    if name.len() <= MAX_SHOWN / 3 {
        return escaped(name);
    }
    let checksum = checksum(&name);
    let escape = escaped(name);
    if escape.len() <= MAX_SHOWN {
        return escape;
    }
    // Neither an escape of ours nor a character of UTF-8 is cut in two.
    let mut end = MAX_START;
    while end > MAX_START - 4 && escape.get(end).is_some_and(|byte| byte & 0xc0 == 0x80) {
        end = end.saturating_sub(1);
    }
    if let Some(cut) = (end.saturating_sub(2)..end).find(|at| escape.get(*at) == Some(&b'%')) {
        end = cut;
    }
    let mut out = escape.get(..end).unwrap_or_default().to_vec();
    out.extend_from_slice(format!("%~{checksum:016x}").as_bytes());
    Cow::Owned(out)
}

/// FNV-1a: tells long names apart, also from one run to the next.
fn checksum(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

fn numbered(name: &[u8], number: u32) -> Vec<u8> {
    [name, format!("%~{number}").as_bytes()].concat()
}

/// Splits `x%~2`; the number is written as [`numbered`] does.
fn split_number(name: &[u8]) -> Option<(&[u8], u32)> {
    let at = name.windows(2).rposition(|pair| pair == b"%~")?;
    let (plain, tail) = name.split_at_checked(at)?;
    let digits = tail.get(2..).filter(|digits| digits.len() < DIGITS)?;
    let number: u32 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (number >= 2 && numbered(plain, number) == name).then_some((plain, number))
}

/// Whether a name is a long one's start with its checksum.
fn has_checksum(name: &[u8]) -> bool {
    let tail = name.len().checked_sub(DIGITS.saturating_add(2)).and_then(|at| name.get(at..));
    name.len() > MAX_START / 2
        && tail.and_then(|tail| tail.strip_prefix(b"%~")).is_some_and(|tail| tail.iter().all(u8::is_ascii_hexdigit))
}

/// The bytes that no path component can have, or that stand for something else as a whole name.
fn is_special(byte: u8, whole: &[u8]) -> bool {
    byte == b'/' || byte == 0 || (byte == b'.' && matches!(whole, b"." | b".."))
}

/// `%` and the two digits of an escape that [`escaped`] could have made.
fn escape_at(name: &[u8]) -> Option<u8> {
    match name {
        [b'%', b'2', b'F', ..] => Some(b'/'),
        [b'%', b'0', b'0', ..] => Some(0),
        [b'%', b'2', b'E', ..] => Some(b'.'),
        [b'%', b'2', b'5', ..] => Some(b'%'),
        _ => None,
    }
}

/// A name that a path can hold: `/`, NUL, and the names `.` and `..` become `%2F`, `%00`, `%2E`; a
/// `%` that would read as one of these, or as the start of a number, becomes `%25`. Other names stay
/// as they are.
pub fn escaped(name: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    let reads_as_escape = |name: &[u8], at: usize| {
        name.get(at..).is_some_and(|tail| escape_at(tail).is_some() || tail.starts_with(b"%~"))
    };
    if !(0..name.len()).any(|at| name.get(at).is_some_and(|&b| is_special(b, &name)) || reads_as_escape(&name, at)) {
        return name;
    }
    let mut out = Vec::with_capacity(name.len().saturating_add(8));
    for (at, &byte) in name.iter().enumerate() {
        if is_special(byte, &name) || reads_as_escape(&name, at) {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        } else {
            out.push(byte);
        }
    }
    Cow::Owned(out)
}

/// The inverse of [`escaped`].
pub fn unescaped(mut name: &[u8]) -> Cow<'_, [u8]> {
    if name == EMPTY {
        return Cow::Borrowed(b"");
    }
    if !name.contains(&b'%') {
        return Cow::Borrowed(name);
    }
    let mut out = Vec::with_capacity(name.len());
    while let Some((&first, rest)) = name.split_first() {
        match escape_at(name) {
            Some(byte) => {
                out.push(byte);
                name = name.get(3..).unwrap_or_default();
            }
            None => {
                out.push(first);
                name = rest;
            }
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::Summary;

    #[test]
    fn every_name_escapes_to_one_that_a_path_can_hold_and_back() {
        for (name, expected) in [
            ("plain", "plain"),
            ("a/b", "a%2Fb"),
            ("a%2Fb", "a%252Fb"),
            ("%%2F", "%%252F"),
            ("100%", "100%"),
            ("50%25", "50%2525"),
            (".", "%2E"),
            ("..", "%2E%2E"),
            ("...", "..."),
            ("a\0", "a%00"),
            ("x%~2", "x%25~2"),
            ("%~0", "%25~0"),
            ("", "%~0"),
        ] {
            let escape = shown(Cow::Borrowed(name.as_bytes())).into_owned();
            assert_eq!(String::from_utf8_lossy(&escape), expected);
            assert_eq!(unescaped(&escape), name.as_bytes());
        }
    }

    /// A directory with the given rows, which are nodes 2, 3 and so on; odd ones are links to `/x`.
    struct Rows(Vec<Vec<u8>>);

    impl FileSystem for Rows {
        fn root(&self) -> NodeId {
            NodeId(1)
        }
        fn attributes(&self, node: NodeId) -> Result<Attributes> {
            let kind = if node.0 == 1 {
                Kind::Directory
            } else if node.0 % 2 == 1 {
                Kind::Symlink
            } else {
                Kind::File
            };
            Ok(Attributes::new(kind, 2))
        }
        fn read_dir(&self, _: NodeId, cursor: u64, emit: &mut EntrySink<'_>) -> Result<()> {
            for (name, next) in self.0.iter().zip(1u64..).filter(|(_, next)| *next > cursor) {
                let node = NodeId(next + 1);
                if !emit(DirEntry { node, name: name.into(), kind: self.attributes(node)?.kind, next }) {
                    break;
                }
            }
            Ok(())
        }
        fn read(&self, _: NodeId, _: &mut [u8], _: u64) -> Result<usize> {
            Err(Error::Invalid)
        }
        fn read_link(&self, _: NodeId) -> Result<Vec<u8>> {
            Ok(b"/x".to_vec())
        }
        fn summary(&self) -> Summary {
            Summary::default()
        }
    }

    /// The names as shown, each of which leads back to its row, also when the listing resumes there.
    fn listed(tree: &Rows) -> Vec<String> {
        let (names, tree) = (Names::default(), (tree as &dyn FileSystem, 1));
        let mut rows = Vec::new();
        let mut take = |entry: DirEntry<'_>| {
            rows.push((entry.name.into_owned(), entry.node, entry.next));
            true
        };
        names.read_dir(tree, NodeId(1), 0, &mut take).unwrap();
        let distinct: HashSet<&[u8]> = rows.iter().map(|(name, _, _)| name.as_slice()).collect();
        assert_eq!(distinct.len(), rows.len());
        for (name, node, next) in &rows {
            assert_eq!(names.lookup(tree, NodeId(1), name).unwrap(), Some(*node), "{}", String::from_utf8_lossy(name));
            let mut again = None;
            let mut take = |entry: DirEntry<'_>| {
                again = Some(entry.name.into_owned());
                false
            };
            names.read_dir(tree, NodeId(1), next - 1, &mut take).unwrap();
            assert_eq!(again.as_ref(), Some(name));
            assert!(name.len() <= 1024 && !name.is_empty() && !name.contains(&b'/') && !name.contains(&0));
        }
        rows.into_iter().map(|(name, _, _)| String::from_utf8(name).unwrap()).collect()
    }

    #[test]
    fn the_name_on_the_medium_is_an_attribute_where_another_is_shown() {
        let tree = Rows(["plain", "a/b", "x", "x", &"/".repeat(900)].map(|name| name.into()).into());
        let raw = |names: &Names, row: u64| names.xattr((&tree, 1), NodeId(row + 1), RAW_NAME).ok();
        let listing = Names::default();
        let mut shown = Vec::new();
        let mut take = |entry: DirEntry<'_>| {
            shown.push(entry.name.into_owned());
            true
        };
        listing.read_dir((&tree, 1), NodeId(1), 0, &mut take).unwrap();
        for (row, name) in (1u64..).zip(&tree.0) {
            let looking = Names::default();
            looking.lookup((&tree, 1), NodeId(1), &shown[row as usize - 1]).unwrap();
            let expected = (shown[row as usize - 1] != *name).then(|| name.clone());
            assert_eq!(raw(&listing, row), expected);
            assert_eq!(raw(&looking, row), expected);
            let listed = listing.xattrs((&tree, 1), NodeId(row + 1)).unwrap();
            assert_eq!(listed, expected.map(|_| RAW_NAME.to_vec()).into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn rows_of_one_name_are_numbered_and_each_leads_back_to_its_row() {
        let tree = Rows(["x", "y", "x", "x%~2", "", "x", "a/", "", "a/"].map(|name| name.into()).into());
        assert_eq!(listed(&tree), ["x", "y", "x%~2", "x%25~2", "%~0", "x%~3", "a%2F", "%~0%~2", "a%2F%~2"]);
        let lookup = |name: &[u8]| Names::default().lookup((&tree, 1), NodeId(1), name).unwrap();
        for missing in ["x%~1", "x%~02", "x%~4", "x%~", "%~2", "y%~2", "%~", "x%~4294967297"] {
            assert_eq!(lookup(missing.as_bytes()), None, "{missing}");
        }
    }

    #[test]
    fn names_that_fuse_cannot_carry_are_shortened_and_found() {
        let long = |end: &str, unit: &str, count: usize| [unit.repeat(count).as_bytes(), end.as_bytes()].concat();
        let tree = Rows(vec![
            long("1", "n", 1000),
            long("2", "n", 1000),
            long("2", "n", 1000),
            long("", "ü", 700),
            long("", "a/", 340),
            long("", "n", 1000),
            long("", "/", 255),
        ]);
        let names = listed(&tree);
        assert!(names[0].starts_with("nnn") && names[0].len() == 978 && names[2].ends_with("%~2"), "{}", names[0]);
        assert_eq!((names[5].len(), names[6].len()), (1000, 765));
    }

    #[test]
    fn absolute_links_can_start_below_the_tree_and_links_can_be_hidden() {
        let tree = Rows(vec![b"file".to_vec(), b"link".to_vec()]);
        let below = Symlinks::Below(b"/mnt".to_vec()).within(b"p1");
        assert_eq!(below.read_link(&tree, NodeId(3)).unwrap(), b"/mnt/p1/x");
        assert_eq!(below.attributes(&tree, NodeId(3)).unwrap().size, 9);
        assert_eq!(Symlinks::AsIs.attributes(&tree, NodeId(3)).unwrap().size, 2);
        assert_eq!(Symlinks::Hidden.found(&tree, Some(NodeId(3))).unwrap(), None);
        assert_eq!(Symlinks::Hidden.found(&tree, Some(NodeId(2))).unwrap(), Some(NodeId(2)));
    }
}
