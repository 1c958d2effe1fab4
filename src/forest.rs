//! Several trees and the flat files under one root.
//!
//! ```text
//!   disk.img  disk/        NodeId:  63    56 55                     0
//!   p1.img    p1/                  +--------+------------------------+
//!   files -> p1                    |  tree  |  the tree's own number |
//!   by-label/ by-uuid/             +--------+------------------------+
//!                                      0 = a row of `synthetic`
//! ```
//!
//! X.img is the bytes, X/ is the files, and nothing synthetic is ever inside X/. Names from the
//! medium are escaped here, once for every reader, and only as far as a path requires: see `name`.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, OnceLock, RwLock};

mod name;
mod writing;

pub use name::{Symlinks, escaped, unescaped};

use name::Names;

use crate::device::{Device, Extent, HostSpan};
use crate::error::{Error, Result};
use crate::filesystem::{
    Attributes, DirEntry, EntrySink, FileSystem, FileSystemWrite, Kind, Legacy, NodeId, Placed, Summary, Timestamp,
};
use crate::text::charset::Charset;

/// Bits of a node's number within its tree.
const TREE_SHIFT: u32 = 56;
/// Trees that fit into the top byte beside the synthetic nodes: of more, the rest is not shown.
pub const MAX_TREES: usize = 255;

/// Decodes a volume anew; `None` when no file system is found on it any more.
pub type Reopen = Arc<dyn Fn() -> Result<Option<Arc<dyn FileSystem>>> + Send + Sync>;

/// One volume: its name in the root, its bytes, and its files when they can be read.
pub struct Branch {
    /// `disk`, `p1`, `boot1`: `NAME.img` shows its bytes.
    pub name: String,
    /// Name of the directory that shows its tree; the same, but for a volume that was encrypted.
    pub folder: String,
    /// First byte on the disk.
    pub offset: u64,
    /// The bytes that `NAME.img` shows.
    pub device: Device,
    /// The tree that `FOLDER/` shows.
    pub tree: Option<Arc<dyn FileSystem>>,
    /// How the tree is read again after someone wrote to the flat bytes.
    pub reopen: Option<Reopen>,
    /// For `by-label/`.
    pub label: Option<String>,
    /// For `by-uuid/`.
    pub uuid: Option<String>,
}

/// The root directory with everything below it.
pub struct Forest {
    synthetic: Vec<Synthetic>,
    trees: Vec<Planted>,
    modified: Option<Timestamp>,
    names: Names,
}

enum Synthetic {
    Directory(Vec<Row>),
    Flat(Flat),
    Link(Vec<u8>),
}

struct Row {
    name: Vec<u8>,
    node: NodeId,
    kind: Kind,
}

struct Flat {
    device: Device,
    /// The bytes of the disk that it shows.
    range: Range<u64>,
    /// Allocated room in units of 512 bytes; counted when first asked for, and each time while
    /// someone may write.
    blocks: OnceLock<u64>,
}

/// A tree in its place, and who writes to its bytes.
struct Planted {
    name: String,
    symlinks: Symlinks,
    tree: RwLock<Arc<dyn FileSystem>>,
    reopen: Option<Reopen>,
    /// The number by which its top directory is known, also after it was decoded anew.
    root: NodeId,
    /// The bytes of the disk that it is decoded from.
    range: Range<u64>,
    state: Mutex<Writers>,
    /// Told when one way of writing has come to an end.
    ended: Condvar,
    /// Something was written to the tree since it last settled.
    unsettled: AtomicBool,
    /// Something was written to its bytes from outside since it was decoded.
    overwritten: AtomicBool,
    /// Held by the one who decodes it anew: what the last tree that had anything to leave has left.
    decoding: Mutex<Option<Legacy>>,
}

/// How many write to a volume, by either way: files that are open for it, and single changes for as
/// long as they take. One of them is always zero.
#[derive(Default)]
struct Writers {
    through_tree: u64,
    through_flat: u64,
}

/// Where a number leads.
enum Target<'a> {
    Synthetic(&'a Synthetic),
    Tree(Arc<dyn FileSystem>, u64, NodeId),
}

const ROOT: NodeId = NodeId(1);

impl Forest {
    /// `branches` in the order of the listing; `files` names the one that most people want;
    /// `modified` dates the synthetic nodes (the image's own time).
    pub fn new(branches: &[Branch], files: Option<&str>, modified: Option<Timestamp>) -> Self {
        // Row 0 is never used, so that no node has the number 0; row 1 is the root.
        let mut forest = Self {
            synthetic: vec![Synthetic::Directory(Vec::new()), Synthetic::Directory(Vec::new())],
            trees: Vec::new(),
            modified,
            names: Names::default(),
        };
        let mut rows = Vec::new();
        for branch in branches {
            let range = branch.offset..branch.offset.saturating_add(branch.device.size());
            let flat = Flat { device: branch.device.clone(), range: range.clone(), blocks: OnceLock::new() };
            let node = forest.add(Synthetic::Flat(flat));
            rows.push(Row { name: format!("{}.img", branch.name).into_bytes(), node, kind: Kind::File });
            if let Some(tree) = &branch.tree
                && let Some(node) = forest.plant(tree, branch, range)
            {
                rows.push(Row { name: branch.folder.clone().into_bytes(), node, kind: Kind::Directory });
            }
        }
        if let Some(name) = files {
            let node = forest.add(Synthetic::Link(name.as_bytes().to_vec()));
            rows.push(Row { name: b"files".to_vec(), node, kind: Kind::Symlink });
        }
        for (folder, pick) in [
            ("by-label", (|branch| branch.label.as_deref()) as fn(&Branch) -> Option<&str>),
            ("by-uuid", |branch| branch.uuid.as_deref()),
        ] {
            let links = forest.links(branches, pick);
            if !links.is_empty() {
                let node = forest.add(Synthetic::Directory(links));
                rows.push(Row { name: folder.as_bytes().to_vec(), node, kind: Kind::Directory });
            }
        }
        if let Some(root) = forest.synthetic.get_mut(1) {
            *root = Synthetic::Directory(rows);
        }
        forest
    }

    /// Shows the bytes of a device that is no part of the disk under one more name of the root.
    pub fn add_file(&mut self, name: String, device: Device) {
        // An empty range: it shares no bytes with any tree.
        let node = self.add(Synthetic::Flat(Flat { device, range: 0..0, blocks: OnceLock::new() }));
        if let Some(Synthetic::Directory(rows)) = self.synthetic.get_mut(1) {
            rows.push(Row { name: name.into_bytes(), node, kind: Kind::File });
        }
    }

    /// Shows the trees' symbolic links in another way. [`Symlinks::Below`] names the root's own path.
    pub fn with_symlinks(mut self, symlinks: Symlinks) -> Self {
        for planted in &mut self.trees {
            planted.symlinks = symlinks.within(planted.name.as_bytes());
        }
        self
    }

    /// Shows the names that are Unicode in another character set than UTF-8.
    pub fn with_charset(self, charset: Option<Charset>) -> Self {
        Self { names: Names::new(charset), ..self }
    }

    fn add(&mut self, node: Synthetic) -> NodeId {
        self.synthetic.push(node);
        NodeId(self.synthetic.len().saturating_sub(1) as u64)
    }

    /// The root of a new tree; `None` when the top byte has no number left.
    fn plant(&mut self, tree: &Arc<dyn FileSystem>, branch: &Branch, range: Range<u64>) -> Option<NodeId> {
        if self.trees.len() >= MAX_TREES {
            return None;
        }
        self.trees.push(Planted {
            name: branch.folder.clone(),
            symlinks: Symlinks::AsIs,
            tree: RwLock::new(tree.clone()),
            reopen: branch.reopen.clone(),
            root: tree.root(),
            range,
            state: Mutex::default(),
            ended: Condvar::new(),
            unsettled: AtomicBool::new(false),
            overwritten: AtomicBool::new(false),
            decoding: Mutex::default(),
        });
        Some(grafted(self.trees.len() as u64, tree.root()))
    }

    /// Symbolic links to the trees, by what `pick` finds; clashes are numbered from 2.
    fn links(&mut self, branches: &[Branch], pick: fn(&Branch) -> Option<&str>) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        let mut taken: HashSet<Vec<u8>> = HashSet::new();
        // The next number of each label: a table can give one label to thousands of rows.
        let mut numbers: HashMap<String, u32> = HashMap::new();
        for branch in branches {
            let Some(text) = pick(branch).filter(|text| !text.is_empty()) else { continue };
            let target = if branch.tree.is_some() { branch.folder.clone() } else { format!("{}.img", branch.name) };
            let plain = percent_encoded(text);
            let number = numbers.entry(plain.clone()).or_insert(1);
            let name = loop {
                let name = if *number == 1 { plain.clone() } else { format!("{plain}-{number}") }.into_bytes();
                *number = number.saturating_add(1);
                if taken.insert(name.clone()) {
                    break name;
                }
            };
            let node = self.add(Synthetic::Link(format!("../{target}").into_bytes()));
            rows.push(Row { name, node, kind: Kind::Symlink });
        }
        rows
    }

    fn target(&self, node: NodeId) -> Result<Target<'_>> {
        let number = node.0 >> TREE_SHIFT;
        let own = NodeId(node.0 & ((1 << TREE_SHIFT) - 1));
        let missing = Error::NotFound;
        match number.checked_sub(1) {
            None => {
                let index = usize::try_from(own.0).map_err(|_| Error::NotFound)?;
                self.synthetic.get(index).filter(|_| index > 0).map(Target::Synthetic).ok_or(missing)
            }
            Some(index) => {
                let planted = usize::try_from(index).ok().and_then(|index| self.trees.get(index)).ok_or(missing)?;
                let tree = planted.tree();
                let own = if own == planted.root { tree.root() } else { own };
                Ok(Target::Tree(tree, number, own))
            }
        }
    }

    /// A tree's own number as the forest knows it.
    fn graft(&self, number: u64, tree: &dyn FileSystem, own: NodeId) -> NodeId {
        let planted = self.planted(number).ok().filter(|_| own == tree.root());
        grafted(number, planted.map_or(own, |planted| planted.root))
    }

    /// The number by which a node's own volume knows it: an inode number, the byte of its entry.
    pub fn own_number(&self, node: NodeId) -> u64 {
        match self.target(node) {
            Ok(Target::Tree(_, _, own)) => own.0,
            _ => node.0,
        }
    }

    /// The node at a path below the root, symbolic links not followed. Empty components and `.`
    /// are skipped.
    pub fn find(&self, path: &[u8]) -> Result<NodeId> {
        find(self, path)
    }
}

/// The node at a path of a tree, symbolic links not followed. Empty components and `.` are skipped;
/// `..` is not understood.
pub fn find(tree: &dyn FileSystem, path: &[u8]) -> Result<NodeId> {
    let mut node = tree.root();
    for name in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
        if tree.attributes(node)?.kind != Kind::Directory {
            return Err(Error::NotDirectory);
        }
        node = tree.lookup(node, name)?.ok_or(Error::NotFound)?;
    }
    Ok(node)
}

impl FileSystem for Forest {
    fn root(&self) -> NodeId {
        ROOT
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes> {
        let synthetic = match self.target(node)? {
            Target::Tree(tree, number, own) => {
                return self.planted(number)?.symlinks.attributes(tree.as_ref(), own);
            }
            Target::Synthetic(synthetic) => synthetic,
        };
        let mut attributes = match synthetic {
            Synthetic::Directory(_) => Attributes { mode: Some(0o555), ..Attributes::new(Kind::Directory, 0) },
            Synthetic::Link(target) => {
                Attributes { mode: Some(0o777), ..Attributes::new(Kind::Symlink, target.len() as u64) }
            }
            Synthetic::Flat(flat) => flat.attributes(),
        };
        attributes.modified = self.modified;
        Ok(attributes)
    }

    fn read_dir(&self, dir: NodeId, cursor: u64, emit: &mut EntrySink<'_>) -> Result<()> {
        match self.target(dir)? {
            Target::Tree(tree, number, own) => {
                let symlinks = &self.planted(number)?.symlinks;
                self.names.read_dir((tree.as_ref(), number), own, cursor, &mut |entry| {
                    let node = self.graft(number, tree.as_ref(), entry.node);
                    symlinks.hides(entry.kind) || emit(DirEntry { node, ..entry })
                })
            }
            Target::Synthetic(Synthetic::Directory(rows)) => {
                for (row, next) in rows.iter().zip(1u64..).filter(|(_, next)| *next > cursor) {
                    if !emit(DirEntry { node: row.node, name: Cow::Borrowed(&row.name), kind: row.kind, next }) {
                        break;
                    }
                }
                Ok(())
            }
            Target::Synthetic(_) => Err(Error::NotDirectory),
        }
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        match self.target(dir)? {
            Target::Tree(tree, number, own) => {
                let found = self.names.lookup((tree.as_ref(), number), own, name)?;
                let found = self.planted(number)?.symlinks.found(tree.as_ref(), found)?;
                Ok(found.map(|node| self.graft(number, tree.as_ref(), node)))
            }
            Target::Synthetic(Synthetic::Directory(rows)) => {
                Ok(rows.iter().find(|row| row.name == name).map(|row| row.node))
            }
            Target::Synthetic(_) => Err(Error::NotDirectory),
        }
    }

    fn is_other_spelling(&self, dir: NodeId, name: &[u8]) -> Result<bool> {
        match self.target(dir)? {
            Target::Tree(tree, _, own) => tree.is_other_spelling(own, &self.names.stored(tree.as_ref(), own, name)?),
            Target::Synthetic(_) => Ok(false),
        }
    }

    fn read(&self, file: NodeId, buf: &mut [u8], offset: u64) -> Result<usize> {
        match self.target(file)? {
            Target::Tree(tree, _, own) => tree.read(own, buf, offset),
            Target::Synthetic(Synthetic::Flat(flat)) => {
                self.settle_within(&flat.range)?;
                flat.read(buf, offset)
            }
            Target::Synthetic(Synthetic::Directory(_)) => Err(Error::IsDirectory),
            Target::Synthetic(Synthetic::Link(_)) => Err(Error::Invalid),
        }
    }

    fn extent(&self, file: NodeId, offset: u64) -> Result<Extent> {
        match self.target(file)? {
            Target::Tree(tree, _, own) => tree.extent(own, offset),
            Target::Synthetic(Synthetic::Flat(flat)) => flat.device.extent(offset),
            Target::Synthetic(_) => Err(Error::Invalid),
        }
    }

    fn place(&self, file: NodeId, offset: u64) -> Result<Option<Placed>> {
        match self.target(file)? {
            Target::Tree(tree, _, own) => tree.place(own, offset),
            Target::Synthetic(_) => Ok(None),
        }
    }

    fn read_link(&self, link: NodeId) -> Result<Vec<u8>> {
        match self.target(link)? {
            Target::Tree(tree, number, own) => self.planted(number)?.symlinks.read_link(tree.as_ref(), own),
            Target::Synthetic(Synthetic::Link(target)) => Ok(target.clone()),
            Target::Synthetic(_) => Err(Error::Invalid),
        }
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        match self.target(node)? {
            Target::Tree(tree, number, own) => self.names.xattr((tree.as_ref(), number), own, name),
            Target::Synthetic(_) => Err(Error::NoAttribute),
        }
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Vec<u8>>> {
        match self.target(node)? {
            Target::Tree(tree, number, own) => self.names.xattrs((tree.as_ref(), number), own),
            Target::Synthetic(_) => Ok(Vec::new()),
        }
    }

    /// The totals of the only tree, or the sums of all of them in units of 512 bytes.
    fn summary(&self) -> Summary {
        if let [only] = self.trees.as_slice() {
            return only.tree().summary();
        }
        let mut sum = Summary { block_size: 512, name_max: 255, ..Summary::default() };
        for tree in &self.trees {
            let one = tree.tree().summary();
            let units = |blocks: u64| blocks.saturating_mul(u64::from(one.block_size)) / 512;
            sum.total_blocks = sum.total_blocks.saturating_add(units(one.total_blocks));
            sum.free_blocks = sum.free_blocks.saturating_add(units(one.free_blocks));
            sum.reserved_blocks = sum.reserved_blocks.saturating_add(units(one.reserved_blocks));
            sum.total_nodes = sum.total_nodes.saturating_add(one.total_nodes);
            sum.free_nodes = sum.free_nodes.saturating_add(one.free_nodes);
            sum.name_max = sum.name_max.max(one.name_max);
        }
        sum
    }

    fn host_file(&self, file: NodeId) -> Option<HostSpan<'_>> {
        match self.target(file).ok()? {
            // A tree may be replaced while the mount lives: it lends no files.
            Target::Tree(..) => None,
            Target::Synthetic(Synthetic::Flat(flat)) => flat.device.host_file(),
            Target::Synthetic(_) => None,
        }
    }

    fn is_shared(&self, file: NodeId) -> bool {
        matches!(self.target(file), Ok(Target::Synthetic(Synthetic::Flat(_))))
    }

    fn volume(&self, node: NodeId) -> Option<Summary> {
        match self.target(node).ok()? {
            Target::Tree(tree, _, _) => Some(tree.summary()),
            Target::Synthetic(_) => None,
        }
    }

    fn writer(&self) -> Option<&dyn FileSystemWrite> {
        let writable = |node: &Synthetic| matches!(node, Synthetic::Flat(flat) if flat.device.writer().is_some());
        self.synthetic.iter().any(writable).then_some(self)
    }
}

/// One tree at the root, its names escaped as the forest's are.
pub struct Escaped {
    tree: Arc<dyn FileSystem>,
    names: Names,
    symlinks: Symlinks,
}

impl Escaped {
    /// Shows `tree` at the root.
    pub fn new(tree: Arc<dyn FileSystem>) -> Self {
        Self { tree, names: Names::default(), symlinks: Symlinks::AsIs }
    }

    /// Shows symbolic links in another way. [`Symlinks::Below`] names the tree's own path.
    pub fn with_symlinks(self, symlinks: Symlinks) -> Self {
        Self { symlinks, ..self }
    }

    /// Shows names that are Unicode in another character set than UTF-8.
    pub fn with_charset(self, charset: Option<Charset>) -> Self {
        Self { names: Names::new(charset), ..self }
    }
}

impl FileSystem for Escaped {
    fn root(&self) -> NodeId {
        self.tree.root()
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes> {
        self.symlinks.attributes(self.tree.as_ref(), node)
    }

    fn read_dir(&self, dir: NodeId, cursor: u64, emit: &mut EntrySink<'_>) -> Result<()> {
        self.names
            .read_dir((self.tree.as_ref(), 0), dir, cursor, &mut |entry| self.symlinks.hides(entry.kind) || emit(entry))
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        let found = self.names.lookup((self.tree.as_ref(), 0), dir, name)?;
        self.symlinks.found(self.tree.as_ref(), found)
    }

    fn is_other_spelling(&self, dir: NodeId, name: &[u8]) -> Result<bool> {
        self.tree.is_other_spelling(dir, &self.names.stored(self.tree.as_ref(), dir, name)?)
    }

    fn read(&self, file: NodeId, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.tree.read(file, buf, offset)
    }

    fn extent(&self, file: NodeId, offset: u64) -> Result<Extent> {
        self.tree.extent(file, offset)
    }

    fn read_link(&self, link: NodeId) -> Result<Vec<u8>> {
        self.symlinks.read_link(self.tree.as_ref(), link)
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        self.names.xattr((self.tree.as_ref(), 0), node, name)
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Vec<u8>>> {
        self.names.xattrs((self.tree.as_ref(), 0), node)
    }

    fn summary(&self) -> Summary {
        self.tree.summary()
    }

    fn host_file(&self, file: NodeId) -> Option<HostSpan<'_>> {
        self.tree.host_file(file)
    }

    fn writer(&self) -> Option<&dyn FileSystemWrite> {
        self.tree.writer().map(|_| self as &dyn FileSystemWrite)
    }
}

/// The flat disk alone: a file system whose root is a file.
pub struct NakedDisk {
    flat: Flat,
    modified: Option<Timestamp>,
}

impl NakedDisk {
    /// Shows the bytes of `device`; `modified` is its time.
    pub fn new(device: Device, modified: Option<Timestamp>) -> Self {
        Self { flat: Flat { range: 0..device.size(), device, blocks: OnceLock::new() }, modified }
    }
}

impl FileSystem for NakedDisk {
    fn root(&self) -> NodeId {
        ROOT
    }

    fn attributes(&self, _node: NodeId) -> Result<Attributes> {
        Ok(Attributes { modified: self.modified, ..self.flat.attributes() })
    }

    fn read_dir(&self, _dir: NodeId, _cursor: u64, _emit: &mut EntrySink<'_>) -> Result<()> {
        Err(Error::NotDirectory)
    }

    fn read(&self, _file: NodeId, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.flat.read(buf, offset)
    }

    fn extent(&self, _file: NodeId, offset: u64) -> Result<Extent> {
        self.flat.device.extent(offset)
    }

    fn summary(&self) -> Summary {
        let total_blocks = self.flat.device.size().div_ceil(512);
        Summary { block_size: 512, name_max: 255, total_blocks, ..Summary::default() }
    }

    fn host_file(&self, _file: NodeId) -> Option<HostSpan<'_>> {
        self.flat.device.host_file()
    }

    fn writer(&self) -> Option<&dyn FileSystemWrite> {
        self.flat.device.writer().map(|_| self as &dyn FileSystemWrite)
    }
}

impl Flat {
    /// Runs looked at before the rest is taken as stored: a size is not worth a walk of millions.
    const MAX_EXTENTS: u32 = 10_000;

    fn attributes(&self) -> Attributes {
        Attributes {
            mode: Some(if self.device.writer().is_some() { 0o644 } else { 0o444 }),
            blocks: Some(self.blocks()),
            ..Attributes::new(Kind::File, self.device.size())
        }
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let rest = self.device.size().saturating_sub(offset);
        let len = usize::try_from(rest).unwrap_or(usize::MAX).min(buf.len());
        let part = buf.get_mut(..len).unwrap_or_default();
        if !part.is_empty() {
            self.device.read_bulk_at(part, offset)?;
        }
        Ok(len)
    }

    fn blocks(&self) -> u64 {
        if self.device.writer().is_some() {
            self.count_blocks()
        } else {
            *self.blocks.get_or_init(|| self.count_blocks())
        }
    }

    fn count_blocks(&self) -> u64 {
        let size = self.device.size();
        let (mut offset, mut stored) = (0u64, 0u64);
        for _ in 0..Self::MAX_EXTENTS {
            let Ok(extent) = self.device.extent(offset) else { break };
            if extent.len == 0 || offset >= size {
                break;
            }
            stored = stored.saturating_add(if extent.stored { extent.len } else { 0 });
            offset = offset.saturating_add(extent.len);
        }
        stored.saturating_add(size.saturating_sub(offset)).div_ceil(512)
    }
}

fn grafted(tree: u64, own: NodeId) -> NodeId {
    NodeId(tree << TREE_SHIFT | own.0)
}

/// A label as a file name: letters, digits and `#+-.:=@_` stay, and so does what is not ASCII and
/// not a control character; the rest is percent-encoded, as is a leading dot.
fn percent_encoded(text: &str) -> String {
    let mut out = String::new();
    for (at, c) in text.char_indices() {
        let plain = c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c) || (!c.is_ascii() && !c.is_control());
        if plain && !(at == 0 && c == '.') {
            out.push(c);
        } else {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                out.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::Memory;

    fn branch(name: &str, label: &str) -> Branch {
        let device: Device = Arc::new(Memory::new(vec![7; 1000], 512));
        Branch {
            name: name.into(),
            folder: name.into(),
            offset: 0,
            device,
            tree: None,
            reopen: None,
            label: Some(label.into()),
            uuid: None,
        }
    }

    #[test]
    fn labels_are_encoded_and_clashes_numbered() {
        let forest = Forest::new(&[branch("p1", "my/disk"), branch("p2", "my/disk"), branch("p3", "ü b")], None, None);
        let folder = forest.find(b"/by-label").unwrap();
        let mut rows = Vec::new();
        forest
            .read_dir(folder, 0, &mut |entry| {
                let target = forest.read_link(entry.node).unwrap();
                rows.push(format!("{} {}", String::from_utf8_lossy(&entry.name), String::from_utf8_lossy(&target)));
                true
            })
            .unwrap();
        assert_eq!(rows, ["my%2Fdisk ../p1.img", "my%2Fdisk-2 ../p2.img", "ü%20b ../p3.img"]);
    }

    #[test]
    fn thousands_of_rows_with_one_label_are_numbered_at_once() {
        let mut branches: Vec<Branch> = (1..=20_000).map(|slot| branch(&format!("p{slot}"), "boot")).collect();
        branches.insert(0, branch("disk", "boot-7"));
        let forest = Forest::new(&branches, None, None);
        let link = |name: &str| forest.read_link(forest.find(name.as_bytes()).unwrap()).unwrap();
        assert_eq!(link("by-label/boot-7"), b"../disk.img");
        assert_eq!(link("by-label/boot-8"), b"../p7.img");
        assert_eq!(link("by-label/boot-20001"), b"../p20000.img");
    }

    #[test]
    fn a_flat_file_ends_where_its_device_ends() {
        let forest = Forest::new(&[branch("disk", "")], None, None);
        let node = forest.find(b"disk.img").unwrap();
        let mut buf = [0; 600];
        assert_eq!(forest.read(node, &mut buf, 500).unwrap(), 500);
        assert_eq!(forest.read(node, &mut buf, 1000).unwrap(), 0);
        assert_eq!(forest.read(node, &mut buf, u64::MAX).unwrap(), 0);
        assert!(matches!(forest.find(b"disk.img/x"), Err(Error::NotDirectory)));
    }
}
