//! Error -> errno: the only such place.

use fuser::Errno;
use rustix::io::Errno as HostErrno;

use crate::error::Error;

/// What a system call on the mount answers.
pub fn errno(error: &Error) -> Errno {
    match error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Errno::ENOSPC,
        Error::Io { .. } | Error::PastEnd { .. } => Errno::EIO,
        Error::Corrupt { .. } => Errno::from_i32(HostErrno::UCLEAN.raw_os_error()),
        Error::Unsupported { .. } => Errno::EOPNOTSUPP,
        Error::NotFound => Errno::ENOENT,
        Error::NotDirectory => Errno::ENOTDIR,
        Error::IsDirectory => Errno::EISDIR,
        Error::Invalid => Errno::EINVAL,
        Error::NoAttribute => Errno::ENODATA,
        Error::NotAnAttribute => Errno::EOPNOTSUPP,
        Error::NoKey => Errno::from_i32(HostErrno::NOKEY.raw_os_error()),
        Error::ReadOnly => Errno::EROFS,
        Error::Exists => Errno::EEXIST,
        Error::NotEmpty => Errno::ENOTEMPTY,
        Error::NoSpace => Errno::ENOSPC,
        Error::NameTooLong => Errno::ENAMETOOLONG,
        Error::TooLarge => Errno::EFBIG,
        Error::CrossDevice => Errno::EXDEV,
        Error::NotPermitted => Errno::EPERM,
        Error::Busy => Errno::EBUSY,
        // The kernel looks the name up again, and tells the caller only of what was open.
        Error::Stale => Errno::from_i32(HostErrno::STALE.raw_os_error()),
    }
}

/// Whether the error says something about the image or the host, and belongs in the log; the rest
/// are everyday answers.
pub fn is_noteworthy(error: &Error) -> bool {
    matches!(error, Error::Io { .. } | Error::PastEnd { .. } | Error::Corrupt { .. } | Error::Unsupported { .. })
}
