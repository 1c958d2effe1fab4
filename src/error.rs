//! The one error type of the library.
//!
//! Three answers are never mixed: *not this format* is `Ok(false)` from a probe, *this format but
//! broken* is [`Error::Corrupt`], *this format but not supported* is [`Error::Unsupported`]. The
//! rest are the outcomes that POSIX callers expect.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

/// What every fallible function of the library returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be read. Cheap to clone, so that a failed open can be remembered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The host refused or failed: the message names the file or the operation.
    #[error("{what}: {source}")]
    Io {
        /// The host file or the operation.
        what: String,
        /// The host's own error.
        source: Arc<io::Error>,
    },
    /// The image says something impossible.
    #[error("{format}: {what} at byte {at} is damaged")]
    Corrupt {
        /// The format whose rules are broken.
        format: &'static str,
        /// The structure, in the specification's words.
        what: Cow<'static, str>,
        /// Byte position of the structure, from the start of the device that the decoder was given.
        at: u64,
    },
    /// The image is in order, but uses a feature that is not decoded.
    #[error("{format}: {feature} is not supported")]
    Unsupported {
        /// The format.
        format: &'static str,
        /// The feature, in the specification's words.
        feature: Cow<'static, str>,
    },
    /// A read past the end of a device; `size` is that device's size in bytes.
    #[error("bytes {offset} to {} are past the end ({size} bytes)", offset.saturating_add(*len))]
    PastEnd {
        /// Start of the read, bytes.
        offset: u64,
        /// Length of the read, bytes.
        len: u64,
        /// Size of the device, bytes.
        size: u64,
    },
    /// No entry of this name, or no such node.
    #[error("no such file or directory")]
    NotFound,
    /// A directory was asked for, and this is something else.
    #[error("not a directory")]
    NotDirectory,
    /// File contents were asked for, and this is a directory.
    #[error("is a directory")]
    IsDirectory,
    /// The operation does not fit this kind of node.
    #[error("invalid argument")]
    Invalid,
    /// The node has no extended attribute of this name.
    #[error("no such attribute")]
    NoAttribute,
    /// The node cannot be given an extended attribute of this name.
    #[error("no place for such an attribute")]
    NotAnAttribute,
    /// Encrypted, and there is no key.
    #[error("the contents are encrypted and there is no key")]
    NoKey,
    /// Nothing can be written here.
    #[error("read-only")]
    ReadOnly,
    /// The name is taken.
    #[error("file exists")]
    Exists,
    /// The directory still has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// No room is left: on the volume, in a fixed root directory, or for the overlay.
    #[error("no space left")]
    NoSpace,
    /// The name is longer than the format can hold.
    #[error("name too long")]
    NameTooLong,
    /// The file would grow past what the format can hold.
    #[error("file too large")]
    TooLarge,
    /// A rename would lead from one volume to another.
    #[error("not on the same volume")]
    CrossDevice,
    /// The format cannot hold this: another owner, a link, a device node.
    #[error("operation not permitted")]
    NotPermitted,
    /// Someone else is writing to the same bytes.
    #[error("busy")]
    Busy,
    /// The number was a node's that is gone; its name, looked up anew, says what is there now.
    #[error("what was open is gone")]
    Stale,
}

impl Error {
    /// A damaged structure; `at` is its byte position.
    pub fn corrupt(format: &'static str, what: impl Into<Cow<'static, str>>, at: u64) -> Self {
        Self::Corrupt { format, what: what.into(), at }
    }

    /// A feature that is not decoded.
    pub fn unsupported(format: &'static str, feature: impl Into<Cow<'static, str>>) -> Self {
        Self::Unsupported { format, feature: feature.into() }
    }

    /// The host's error, with the file or operation it belongs to.
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source: Arc::new(source) }
    }
}
