//! Placeholder.
use std::sync::Arc;

use super::{FileSystem, FileSystemFormat, Options};
use crate::device::{BlockDevice, Device};
use crate::error::{Error, Result};

/// The table's row.
pub const FORMAT: FileSystemFormat = FileSystemFormat { name: "ext", probe, open };

fn probe(_device: &dyn BlockDevice) -> Result<bool> {
    Ok(false)
}

fn open(_device: Device, _options: &Options) -> Result<Arc<dyn FileSystem>> {
    Err(Error::Invalid)
}
