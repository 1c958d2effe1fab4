//! A tree, node by node, in the order of its names: what `ls -R`, `tree`, `cp` and `manifest` share.

use anyhow::Result;
use imgfs::error::Error;
use imgfs::filesystem::{FileSystem, Kind, NodeId};

/// Deepest nesting that is followed: a path of one-byte names fills PATH_MAX at 2,048.
const MAX_DEPTH: usize = 2_048;

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
    Leave(&'a Row, &'a [u8]),
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

/// Visits `top` and everything below it; paths start with `path`. A directory that contains itself
/// is met as `Failed`, and not entered again.
pub fn walk(tree: &dyn FileSystem, top: Row, path: &[u8], visit: &mut dyn FnMut(Step<'_>) -> Result<()>) -> Result<()> {
    let mut path = path.to_vec();
    if top.kind != Kind::Directory {
        return visit(Step::Node(&top, &path));
    }
    let mut levels: Vec<Level> = Vec::new();
    let parent_len = path.len();
    enter(tree, top, &path, parent_len, &mut levels, visit)?;
    while let Some(level) = levels.last_mut() {
        let Some(row) = level.rest.next() else {
            visit(Step::Leave(&level.row, &path))?;
            path.truncate(level.parent_len);
            levels.pop();
            continue;
        };
        let parent_len = path.len();
        if !path.is_empty() && !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(&row.name);
        if row.kind == Kind::Directory {
            enter(tree, row, &path, parent_len, &mut levels, visit)?;
        } else {
            visit(Step::Node(&row, &path))?;
            path.truncate(parent_len);
        }
    }
    Ok(())
}

fn enter(
    tree: &dyn FileSystem,
    row: Row,
    path: &[u8],
    parent_len: usize,
    levels: &mut Vec<Level>,
    visit: &mut dyn FnMut(Step<'_>) -> Result<()>,
) -> Result<()> {
    visit(Step::Enter(&row, path))?;
    let (rows, failed) = if levels.iter().any(|level| level.row.node == row.node) {
        (Vec::new(), Some(Error::corrupt("tree", "a directory that contains itself", row.node.0)))
    } else if levels.len() >= MAX_DEPTH {
        (Vec::new(), Some(Error::unsupported("tree", format!("nesting of more than {MAX_DEPTH} directories"))))
    } else {
        rows(tree, row.node)
    };
    if let Some(error) = failed {
        visit(Step::Failed(&row, path, error))?;
    }
    levels.push(Level { row, parent_len, rest: rows.into_iter() });
    Ok(())
}
