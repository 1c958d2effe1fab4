//! AAIP 2.0: extended attributes in AL fields, as libisofs writes them.
//!
//! ```text
//!   AL data   [flags, len, bytes][flags, len, bytes]..   components; flag 1: goes on in the next one
//!             name, value, name, value, ..               a name's first byte may stand for a prefix
//!   the value of the empty name, an access control list:
//!             [type << 4 | 8 with a qualifier | rwx, {len, qualifier}]..
//! ```

use crate::filesystem::acl::{self, Entry, tag};

/// Names and values of the attributes that a user can see. What is cut short is left out.
pub(super) fn attributes(data: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut parts: Vec<Vec<u8>> = Vec::new();
    let mut part = Vec::new();
    let mut rest = data;
    while let Some((&[flags, len], tail)) = rest.split_first_chunk::<2>() {
        let Some((bytes, tail)) = tail.split_at_checked(usize::from(len)) else { break };
        part.extend_from_slice(bytes);
        rest = tail;
        if flags & 1 == 0 {
            parts.push(std::mem::take(&mut part));
        }
    }
    let mut found = Vec::new();
    let mut lists = Vec::new();
    for pair in parts.chunks_exact(2) {
        match pair {
            [name, value] if name.is_empty() => lists.extend(acls(value)),
            [name, value] => found.extend(full_name(name).map(|name| (name, value.clone()))),
            _ => {}
        }
    }
    // One that was stored under its own name is what its writer read.
    lists.retain(|(name, _)| found.iter().all(|(known, _)| known != name));
    found.extend(lists);
    found
}

/// The lists of a node: its own, and behind an entry of type 8 the default one of a directory. Of users
/// and groups that are known by name alone only their writer can say who they are: such a list, and one
/// that is damaged, is left out.
fn acls(mut data: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (mut own, mut default) = (Some(Vec::new()), Some(Vec::new()));
    let mut list = &mut own;
    while let Some((&head, mut rest)) = data.split_first() {
        let mut qualifier = None;
        if head & 8 != 0 {
            let cut = rest.split_first().and_then(|(&len, tail)| tail.split_at_checked(len.into()));
            let Some((bytes, tail)) = cut else {
                *list = None;
                break;
            };
            (qualifier, rest) = (Some(bytes), tail);
        }
        data = rest;
        if head >> 4 == 8 {
            list = &mut default;
        } else if let Some(entries) = list {
            match entry(head, qualifier) {
                Some(entry) => entries.push(entry),
                None => *list = None,
            }
        }
    }
    let named = [(acl::ACCESS, own), (acl::DEFAULT, default)].into_iter();
    let values = named.filter_map(|(name, list)| {
        let mut entries = list?;
        // The kernel takes them in this order alone.
        entries.sort_by_key(|entry| entry.tag);
        Some((name.to_vec(), acl::value(&entries)?))
    });
    values.collect()
}

fn entry(head: u8, qualifier: Option<&[u8]>) -> Option<Entry> {
    let decimal = |name: &[u8]| std::str::from_utf8(name).ok()?.parse().ok();
    let number = |bytes: &[u8]| {
        let fits = (1..=4).contains(&bytes.len());
        fits.then(|| bytes.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte)))
    };
    let (tag, id) = match (head >> 4, qualifier) {
        (1, None) => (tag::USER_OBJ, None),
        (2, Some(name)) => (tag::USER, Some(decimal(name)?)),
        (3, None) => (tag::GROUP_OBJ, None),
        (4, Some(name)) => (tag::GROUP, Some(decimal(name)?)),
        (5, None) => (tag::MASK, None),
        (6, None) => (tag::OTHER, None),
        (10, Some(bytes)) => (tag::USER, Some(number(bytes)?)),
        (12, Some(bytes)) => (tag::GROUP, Some(number(bytes)?)),
        _ => return None,
    };
    Some(Entry { tag, permissions: u16::from(head & 7), id })
}

/// The name with its prefix spelled out; `None` for the writer's own notes (`isofs.`, 4).
fn full_name(name: &[u8]) -> Option<Vec<u8>> {
    let (first, rest) = name.split_first()?;
    let prefix: &[u8] = match first {
        0x02 => b"system.",
        0x03 => b"user.",
        0x05 => b"trusted.",
        0x06 => b"security.",
        byte if *byte < 0x20 => return None,
        _ => return Some(name.to_vec()),
    };
    Some([prefix, rest].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_prefix_and_values_may_go_on() {
        let data = b"\x00\x03\x03ab\x01\x02xy\x00\x01z\x00\x01\x01\x00\x01q";
        assert_eq!(attributes(data), [(b"user.ab".to_vec(), b"xyz".to_vec())]);
    }

    #[test]
    fn a_list_that_is_cut_short_or_names_a_stranger_is_left_out_and_the_other_stays() {
        let default = &[0x80, 0x17, 0x35, 0x65][..];
        let names = |data: &[u8]| acls(data).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(&[&[0x16, 0x34, 0x64], default].concat()), [acl::ACCESS, acl::DEFAULT]);
        assert_eq!(names(&[&[0x16, 0x2e, 3, b'b', b'o', b'b', 0x64], default].concat()), [acl::DEFAULT]);
        assert_eq!(names(&[0x16, 0xae, 2, 4]), [[0; 0]; 0]);
        let by_digits = acls(&[0x2e, 2, b'4', b'2']);
        assert_eq!(by_digits[0].1, [2, 0, 0, 0, 2, 0, 6, 0, 42, 0, 0, 0]);
    }
}
