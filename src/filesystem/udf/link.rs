//! Targets of symbolic links: path components (ECMA-167, 4/14.16.1).
//!
//! ```text
//!   [ type | length | version 2 | identifier ][ .. ]     type 1, 2: the root, 3: .., 4: ., 5: a name
//! ```

use super::text;
use crate::bytes::Record;
use crate::error::Result;

/// The path that components spell.
pub(super) fn target(record: &Record<'_>) -> Result<Vec<u8>> {
    let (mut path, mut offset) = (Vec::new(), 0usize);
    let mut parts = 0u32;
    while offset < record.len() {
        let (kind, len) = (record.u8(offset)?, usize::from(record.u8(offset.saturating_add(1))?));
        let identifier = record.bytes(offset.saturating_add(4), len)?;
        offset = offset.saturating_add(len).saturating_add(4);
        let name = match kind {
            // With an identifier: a root that writer and reader have agreed upon.
            1 if len > 0 => return Err(record.corrupt_field("a root of its own")),
            1 | 2 => {
                path = vec![b'/'];
                parts = 0;
                continue;
            }
            3 => b"..".to_vec(),
            4 => b".".to_vec(),
            5 => text::decode(identifier).ok_or_else(|| record.corrupt_field("name"))?,
            _ => return Err(record.corrupt_field("type of a component")),
        };
        if parts > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        parts = parts.saturating_add(1);
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Option<String> {
        let target = target(&Record::new("udf", "symbolic link", 0, bytes)).ok()?;
        String::from_utf8(target).ok()
    }

    #[test]
    fn components_spell_a_path() {
        assert_eq!(of(b"\x03\0\0\0\x04\0\0\0\x05\x04\0\0\x08abc").unwrap(), ".././abc");
        assert_eq!(of(b"\x02\0\0\0\x05\x02\0\0\x08a\x05\x02\0\0\x08b").unwrap(), "/a/b");
        assert_eq!(of(b"\x02\0\0\0").unwrap(), "/");
        assert_eq!(of(b"\x05\x09\0\0\x08a"), None);
        assert_eq!(of(b"\x07\0\0\0"), None);
    }
}
