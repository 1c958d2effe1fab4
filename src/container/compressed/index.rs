//! Indexes that took a pass over the whole file, kept in the user's cache folder.
//!
//! An index is found by what the file is (device, inode, size, time of change), never by its name.
//! It is used only when it is whole and of this very file; anything else is made anew.
//!
//! ```text
//!   "imgfs-index-1\n" | format, padded to 8 | identity, 48 bytes | payload | SHA-256 of all before
//! ```

use std::fs::{self, DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use crate::container::Options;
use crate::device::Device;

const MAGIC: &[u8; 14] = b"imgfs-index-1\n";
/// Format and identity follow the magic number.
const HEAD: usize = 14 + 8 + 48;
const DIGEST: usize = 32;
/// A larger index is not read back: nothing that we write comes near.
const MAX_SIZE: u64 = 512 << 20;

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
        let span = device.host_file()?;
        let metadata = span.file.metadata().ok()?;
        let mut head = MAGIC.to_vec();
        head.extend(format.bytes().chain(std::iter::repeat(0)).take(8));
        let numbers = [metadata.dev(), metadata.ino(), metadata.size(), span.offset];
        head.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        head.extend([metadata.mtime(), metadata.mtime_nsec()].iter().flat_map(|number| number.to_le_bytes()));
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
        kept
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
