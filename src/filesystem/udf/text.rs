//! OSTA Compressed Unicode (UDF 2.60, 2.1.1): a byte that says how wide characters are, then those.

use crate::text::utf16_to_bytes;

/// Decodes characters of 8 or of 16 bits; `None` for another compression. 254 and 255 mark the
/// name of what was deleted.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let (compression, rest) = bytes.split_first()?;
    match compression {
        8 | 254 => Some(utf16_to_bytes(rest.iter().map(|byte| u16::from(*byte)))),
        16 | 255 => {
            let units = rest.chunks_exact(2).filter_map(|pair| pair.try_into().ok().map(u16::from_be_bytes));
            Some(utf16_to_bytes(units))
        }
        _ => None,
    }
}

/// A field of fixed length whose last byte says how much of it is used (dstring, 1/7.2.12). Empty when
/// nothing of it can be read.
pub(super) fn dstring(field: &[u8]) -> String {
    let Some((len, text)) = field.split_last() else { return String::new() };
    let used = text.get(..usize::from(*len)).unwrap_or(text);
    let text = String::from_utf8_lossy(&decode(used).unwrap_or_default()).into_owned();
    text.trim_end_matches(['\0', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_widths_are_read_and_an_unknown_one_is_not() {
        assert_eq!(decode(b"\x08caf\xe9").unwrap(), "café".as_bytes());
        assert_eq!(decode(b"\x10\x20\xac\xd8\x3d\xde\x00").unwrap(), "€😀".as_bytes());
        assert_eq!(decode(b"\x09x"), None);
        assert_eq!(dstring(b"\x08abc\0\0\0\x04"), "abc");
        assert_eq!(dstring(b"\x08abc\xff"), "abc");
    }
}
