//! Indexes that took a pass over the whole file, kept in the user's cache folder.
//!
//! An index is found by what the file is (device, inode, size, time of change; of each piece of a split
//! one), never by its name.
//! It is used only when it is whole and of this very file; anything else is made anew. All of them
//! together are bounded: those that were not used for the longest time go first.
//!
//! ```text
//!   "imgfs-index-2\n" | format, padded to 8 | SHA-256 of the identity | payload | SHA-256 of all before
//! ```

use std::fs::{self, DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::container::Options;
use crate::device::Device;

const MAGIC: &[u8; 14] = b"imgfs-index-2\n";
/// Format and identity follow the magic number.
const HEAD: usize = 14 + 8 + 32;
const DIGEST: usize = 32;
/// A larger index is not read back: nothing that we write comes near.
const MAX_SIZE: u64 = 512 << 20;

/// Bytes of all indexes together.
const MAX_KEPT: u64 = 1 << 30;
/// What a writer left behind that did not come to its end is older than this.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// The cache folder, made if need be; `None` when there is no home, or no way to make it.
pub(in crate::container) fn folder(options: &Options) -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = match &options.cache_folder {
        Some(folder) => folder.clone(),
        None => absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?.join("imgfs"),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(&folder).ok()?;
    Some(folder)
}

/// The place of one file's index.
pub(in crate::container) struct Slot {
    path: PathBuf,
    head: Vec<u8>,
}

impl Slot {
    /// `None` when the bytes are not those of a host file, or there is no cache folder.
    pub(in crate::container) fn of(device: &Device, format: &str, options: &Options) -> Option<Self> {
        let identity = device.identity()?;
        let mut head = MAGIC.to_vec();
        head.extend(format.bytes().chain(std::iter::repeat(0)).take(8));
        head.extend(Sha256::digest(identity));
        let name: String = Sha256::digest(&head).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Some(Self { path: folder(options)?.join(format!("{name}.index")), head })
    }

    /// The payload, when it is there and whole.
    pub(in crate::container) fn load(&self) -> Option<Vec<u8>> {
        let file = File::open(&self.path).ok()?;
        let mut bytes = Vec::new();
        file.take(MAX_SIZE).read_to_end(&mut bytes).ok()?;
        let (body, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST)?)?;
        let whole = body.starts_with(&self.head) && Sha256::digest(body).as_slice() == digest;
        if !whole {
            log::debug!("{}: not an index of this file, or damaged; it is made anew", self.path.display());
            return None;
        }
        // The time of its last use: writing is left to a confined process where setting times is not.
        let used = File::options().write(true).open(&self.path).and_then(|mut file| file.write_all(b"i"));
        if let Err(error) = used {
            log::debug!("{}: {error}", self.path.display());
        }
        body.get(HEAD..).map(<[u8]>::to_vec)
    }

    /// Keeps a payload. Without a place for it, it is made anew the next time: no error.
    pub(in crate::container) fn store(&self, payload: &[u8]) {
        if let Err(error) = self.try_store(payload) {
            log::debug!("{}: the index is not kept: {error}", self.path.display());
        }
    }

    fn try_store(&self, payload: &[u8]) -> std::io::Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let bytes = [&self.head, payload].concat();
        let unique = format!("new-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = self.path.with_extension(unique);
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        let written = file.write_all(&bytes).and_then(|()| file.write_all(&Sha256::digest(&bytes)));
        let kept = written.and_then(|()| fs::rename(&path, &self.path));
        if kept.is_err() {
            drop(fs::remove_file(&path));
        }
        if let Some(folder) = self.path.parent() {
            evict(folder, &self.path, MAX_KEPT);
        }
        kept
    }
}

/// Removes indexes until the others are `max` bytes, but never `newest`; and what was abandoned.
fn evict(folder: &Path, newest: &Path, max: u64) {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let Ok(modified) = metadata.modified() else { continue };
        if ending == "index" && path != newest {
            found.push((modified, metadata.len(), path));
        } else if ending.starts_with("new-") && modified.elapsed().is_ok_and(|age| age > ABANDONED) {
            drop(fs::remove_file(path));
        }
    }
    // The last ones used first.
    found.sort_by(|a, b| b.cmp(a));
    let mut kept = fs::metadata(newest).map_or(0, |metadata| metadata.len());
    for (_, size, path) in found {
        kept = kept.saturating_add(size);
        if kept > max {
            log::debug!("{}: removed to make room", path.display());
            drop(fs::remove_file(path));
        }
    }
}

/// Numbers as a payload.
pub(in crate::container) fn pack(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
    numbers.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// Numbers out of a payload; `None` when it is not made of whole ones.
pub(in crate::container) fn unpack(payload: &[u8]) -> Option<Vec<u64>> {
    let (numbers, rest) = payload.as_chunks::<8>();
    rest.is_empty().then(|| numbers.iter().map(|&bytes| u64::from_le_bytes(bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn the_indexes_not_used_for_longest_go_when_there_are_too_many() {
        let folder = std::env::temp_dir().join(format!("imgfs-evict-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, age: u64| {
            let path = folder.join(name);
            fs::write(&path, [0; 100]).unwrap();
            let time = SystemTime::now() - Duration::from_secs(age);
            File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
            path
        };
        let (old, used, newest) = (write("a.index", 900), write("b.index", 5), write("c.index", 0));
        let (abandoned, busy, foreign) = (write("d.new-1-1", 100_000), write("e.new-2-1", 60), write("f.txt", 100_000));
        evict(&folder, &newest, 250);
        let there = [&old, &used, &newest, &abandoned, &busy, &foreign].map(|path| path.exists());
        assert_eq!(there, [false, true, true, false, true, true]);
        evict(&folder, &newest, 10);
        assert_eq!([&used, &newest].map(|path| path.exists()), [false, true]);
        fs::remove_dir_all(&folder).unwrap();
    }
}
