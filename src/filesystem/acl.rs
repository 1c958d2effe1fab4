//! POSIX access control lists in the form that `getxattr` gives them: version 2, all entries of one length.
//!
//! ```text
//!   version (le32) | tag (le16), permissions (le16), user or group (le32; all ones without) | ...
//! ```

/// The attribute that holds a node's own list.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute of a directory that holds the list of what is made in it.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Whom an entry is about.
pub mod tag {
    #![allow(missing_docs)]
    pub const USER_OBJ: u16 = 0x01;
    pub const USER: u16 = 0x02;
    pub const GROUP_OBJ: u16 = 0x04;
    pub const GROUP: u16 = 0x08;
    pub const MASK: u16 = 0x10;
    pub const OTHER: u16 = 0x20;
}

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// As in [`tag`].
    pub tag: u16,
    /// Read 4, write 2, execute 1.
    pub permissions: u16,
    /// The user or group, where the tag has one.
    pub id: Option<u32>,
}

/// The value of the attribute; `None` for a list without entries, which is no list.
pub fn value(entries: &[Entry]) -> Option<Vec<u8>> {
    if entries.is_empty() {
        return None;
    }
    let mut out = 2u32.to_le_bytes().to_vec();
    for entry in entries {
        out.extend_from_slice(&entry.tag.to_le_bytes());
        out.extend_from_slice(&entry.permissions.to_le_bytes());
        out.extend_from_slice(&entry.id.unwrap_or(u32::MAX).to_le_bytes());
    }
    Some(out)
}
