//! Containers: the format of the host file, and the disk inside it.
//!
//! A format is recognised by its bytes, never by its name. What it refers to (segments, extents,
//! parents) is opened through [`Companions`] alone.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::device::file::HostFile;
use crate::device::{BlockDevice, Device};
use crate::error::{Error, Result};

/// What a user can say about how containers are read.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The format's name, when it is not to be probed; `raw` included.
    pub format: Option<String>,
    /// An internal snapshot, by name or identifier.
    pub snapshot: Option<String>,
    /// Bound on the decoded units that a container keeps, bytes.
    pub cache_size: u64,
}

/// A container that was opened.
pub struct Opened {
    /// The disk inside it.
    pub disk: Device,
    /// Name of the format, as in [`FORMATS`]; `raw` when there is none around the disk.
    pub format: &'static str,
    /// Facts for `info`, in order: name, value.
    pub facts: Vec<(&'static str, String)>,
    /// What an examiner should know: a dirty bit, a missing checksum.
    pub notes: Vec<String>,
}

/// A container format, as the table knows it.
pub struct ContainerFormat {
    /// Name in messages, `--format` and `--json`.
    pub name: &'static str,
    /// Reads little and follows no reference; says whether the file is of this format.
    pub probe: fn(&dyn BlockDevice, &dyn Companions) -> Result<bool>,
    /// Opens it with all that it refers to.
    pub open: fn(Device, &dyn Companions, &Options) -> Result<Opened>,
}

/// In probe order; raw is the fallback, outside the table.
pub const FORMATS: &[ContainerFormat] = &[];

/// The one gate through which an image's references to other files pass. Images are untrusted: a
/// reference is a plain name in the image's own folder, and chains are bounded.
pub trait Companions {
    /// File name of the image itself.
    fn own_name(&self) -> &OsStr;
    /// Opens the bytes of a file beside the image.
    fn open(&self, name: &Path) -> Result<Device>;
    /// Opens the disk inside a container beside the image; `format` when the image says which.
    fn open_disk(&self, name: &Path, format: Option<&str>) -> Result<Opened>;
    /// Names of the files beside the image.
    fn siblings(&self) -> Result<Vec<PathBuf>>;
}

/// Longest chain of images that refer to each other: more than any tool makes, far less than the stack.
const MAX_DEPTH: usize = 64;

/// The files beside one image.
struct Folder<'a> {
    path: &'a Path,
    options: &'a Options,
    depth: usize,
}

impl Folder<'_> {
    /// The path of a plain file name in the image's folder.
    fn beside(&self, name: &Path) -> Result<PathBuf> {
        let refused = |why: &str| {
            let source = std::io::Error::new(std::io::ErrorKind::PermissionDenied, why.to_owned());
            Error::io(
                format!(
                    "{}: it refers to {}",
                    self.path.display(),
                    crate::text::printable(name.as_os_str().as_encoded_bytes())
                ),
                source,
            )
        };
        if name.file_name() != Some(name.as_os_str()) {
            return Err(refused("only a plain name in the image's own folder is followed"));
        }
        let path = self.path.with_file_name(name);
        if std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink()) {
            return Err(refused("it is a symbolic link, which could lead anywhere"));
        }
        Ok(path)
    }
}

impl Companions for Folder<'_> {
    fn own_name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    fn open(&self, name: &Path) -> Result<Device> {
        Ok(Arc::new(HostFile::open(&self.beside(name)?)?))
    }

    fn open_disk(&self, name: &Path, format: Option<&str>) -> Result<Opened> {
        let path = self.beside(name)?;
        if self.depth >= MAX_DEPTH {
            let what = format!("a chain of more than {MAX_DEPTH} images (or one that leads back to itself)");
            return Err(Error::unsupported("container", what));
        }
        let device: Device = Arc::new(HostFile::open(&path)?);
        let options = Options { format: format.map(str::to_owned), snapshot: None, ..self.options.clone() };
        open_at(device, &path, &options, self.depth.saturating_add(1))
    }

    fn siblings(&self) -> Result<Vec<PathBuf>> {
        let folder = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let io = |source| Error::io(folder.display().to_string(), source);
        let names =
            std::fs::read_dir(folder).map_err(io)?.map(|entry| Ok(PathBuf::from(entry.map_err(io)?.file_name())));
        names.collect()
    }
}

/// Opens the container in a host file and gives the disk inside.
pub fn open(path: &Path, options: &Options) -> Result<Opened> {
    open_at(Arc::new(HostFile::open(path)?), path, options, 0)
}

fn open_at(device: Device, path: &Path, options: &Options, depth: usize) -> Result<Opened> {
    let folder = Folder { path, options, depth };
    match options.format.as_deref() {
        Some("raw") => return Ok(raw(device)),
        Some(name) => {
            let known = FORMATS.iter().find(|format| format.name == name);
            let format = known.ok_or_else(|| Error::unsupported("container", format!("the format {name}")))?;
            return (format.open)(device, &folder, options);
        }
        None => {}
    }
    for format in FORMATS {
        if (format.probe)(device.as_ref(), &folder)? {
            return (format.open)(device, &folder, options);
        }
    }
    Ok(raw(device))
}

/// The file is the disk.
fn raw(disk: Device) -> Opened {
    Opened { disk, format: "raw", facts: Vec::new(), notes: Vec::new() }
}
