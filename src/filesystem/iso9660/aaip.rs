//! AAIP 2.0: extended attributes in AL fields, as libisofs writes them.
//!
//! ```text
//!   AL data   [flags, len, bytes][flags, len, bytes]..   components; flag 1: goes on in the next one
//!             name, value, name, value, ..               a name's first byte may stand for a prefix
//! ```

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
    let pairs = parts.chunks_exact(2).filter_map(|pair| match pair {
        [name, value] => Some((full_name(name)?, value.clone())),
        _ => None,
    });
    pairs.collect()
}

/// The name with its prefix spelled out; `None` for ACLs and for the writer's own notes (`isofs.`, 4).
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
}
