//! A tree, node by node, in the order of its names: what `ls -R`, `tree`, `cp` and `manifest` share.

use std::collections::HashMap;

use anyhow::Result;
use imgfs::error::Error;
use imgfs::filesystem::{FileSystem, Kind, NodeId};

/// Deepest nesting that is followed: a path of one-byte names fills PATH_MAX at 2,048.
const MAX_DEPTH: usize = 2_048;

/// How often one directory is listed under different names: discs have such, and an image that only
/// wants to be endless has little else.
const MAX_VISITS: u32 = 16;

/// A row of a directory, kept.
#[derive(Debug, Clone)]
pub struct Row {
    /// The node.
    pub node: NodeId,
    /// Its name as shown by the mount.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
}

/// What a walk meets.
pub enum Step<'a> {
    /// A directory, before its rows.
    Enter(&'a Row, &'a [u8]),
    /// Anything else.
    Node(&'a Row, &'a [u8]),
    /// A directory, after its rows.
    Leave,
    /// A directory that could not be listed, or not to its end: between its `Enter` and its `Leave`.
    Failed(&'a Row, &'a [u8], Error),
}

/// All rows of a directory by name, and the error that ended the listing early.
pub fn rows(tree: &dyn FileSystem, dir: NodeId) -> (Vec<Row>, Option<Error>) {
    let mut rows = Vec::new();
    let listed = tree.read_dir(dir, 0, &mut |entry| {
        rows.push(Row { node: entry.node, name: entry.name.into_owned(), kind: entry.kind });
        true
    });
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    (rows, listed.err())
}

struct Level {
    row: Row,
    /// Length of the path before this level's name was added.
    parent_len: usize,
    rest: std::vec::IntoIter<Row>,
}

/// Where a walk is, and where it was.
struct Walk {
    levels: Vec<Level>,
    /// Directories in one another that are listed.
    most: usize,
    /// How often each directory was entered.
    visits: HashMap<NodeId, u32>,
}

/// Visits `top` and everything below it; paths start with `path`. A directory that contains itself,
/// or that was met too often, is met as `Failed`, and not entered again.
pub fn walk(tree: &dyn FileSystem, top: Row, path: &[u8], visit: &mut dyn FnMut(Step<'_>) -> Result<()>) -> Result<()> {
    walk_to(tree, top, path, usize::MAX, &mut |step, _| visit(step))
}

/// The same, of at most so many levels, and at least one. `visit` is also told how many rows of the
/// directory come after the one that is met.
pub fn walk_to(
    tree: &dyn FileSystem,
    top: Row,
    path: &[u8],
    levels: usize,
    visit: &mut dyn FnMut(Step<'_>, usize) -> Result<()>,
) -> Result<()> {
    let mut path = path.to_vec();
    if top.kind != Kind::Directory {
        return visit(Step::Node(&top, &path), 0);
    }
    let mut walk = Walk { levels: Vec::new(), visits: HashMap::new(), most: levels.max(1) };
    let parent_len = path.len();
    walk.enter(tree, top, &path, parent_len, &mut |step| visit(step, 0))?;
    while let Some(level) = walk.levels.last_mut() {
        let Some(row) = level.rest.next() else {
            visit(Step::Leave, 0)?;
            path.truncate(level.parent_len);
            walk.levels.pop();
            continue;
        };
        let after = level.rest.len();
        let parent_len = path.len();
        if !path.is_empty() && !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(&row.name);
        if row.kind == Kind::Directory {
            walk.enter(tree, row, &path, parent_len, &mut |step| visit(step, after))?;
        } else {
            visit(Step::Node(&row, &path), after)?;
            path.truncate(parent_len);
        }
    }
    Ok(())
}

impl Walk {
    fn enter(
        &mut self,
        tree: &dyn FileSystem,
        row: Row,
        path: &[u8],
        parent_len: usize,
        visit: &mut dyn FnMut(Step<'_>) -> Result<()>,
    ) -> Result<()> {
        visit(Step::Enter(&row, path))?;
        if self.levels.len() >= self.most {
            self.levels.push(Level { row, parent_len, rest: Vec::new().into_iter() });
            return Ok(());
        }
        let visits = self.visits.entry(row.node).or_insert(0);
        *visits = visits.saturating_add(1);
        let (rows, failed) = if self.levels.iter().any(|level| level.row.node == row.node) {
            (Vec::new(), Some(Error::corrupt("tree", "a directory that contains itself", row.node.0)))
        } else if *visits > MAX_VISITS {
            (Vec::new(), Some(Error::corrupt("tree", "a directory with many names", row.node.0)))
        } else if self.levels.len() >= MAX_DEPTH {
            (Vec::new(), Some(Error::unsupported("tree", format!("nesting of more than {MAX_DEPTH} directories"))))
        } else {
            rows(tree, row.node)
        };
        if let Some(error) = failed {
            visit(Step::Failed(&row, path, error))?;
        }
        self.levels.push(Level { row, parent_len, rest: rows.into_iter() });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imgfs::filesystem::{Attributes, DirEntry, EntrySink, Summary};

    /// Each directory holds the next one twice.
    struct Doubling;

    impl FileSystem for Doubling {
        fn root(&self) -> NodeId {
            NodeId(1)
        }
        fn attributes(&self, _: NodeId) -> imgfs::error::Result<Attributes> {
            Ok(Attributes::new(Kind::Directory, 0))
        }
        fn read_dir(&self, dir: NodeId, _: u64, emit: &mut EntrySink<'_>) -> imgfs::error::Result<()> {
            for (name, next) in [(b"a", 1), (b"b", 2)] {
                emit(DirEntry { node: NodeId(dir.0 + 1), name: name.into(), kind: Kind::Directory, next });
            }
            Ok(())
        }
        fn read(&self, _: NodeId, _: &mut [u8], _: u64) -> imgfs::error::Result<usize> {
            Err(Error::IsDirectory)
        }
        fn summary(&self) -> Summary {
            Summary::default()
        }
    }

    #[test]
    fn ways_that_double_at_each_level_are_not_all_followed() {
        let (mut entered, mut failed) = (0, 0);
        let top = Row { node: NodeId(1), name: Vec::new(), kind: Kind::Directory };
        walk(&Doubling, top, b"", &mut |step| {
            entered += u32::from(matches!(step, Step::Enter(..)));
            failed += u32::from(matches!(step, Step::Failed(..)));
            Ok(())
        })
        .unwrap();
        assert!(entered < 80_000 && failed > 0, "{entered} {failed}");
    }
}
