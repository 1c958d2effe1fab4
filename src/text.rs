//! Text of other times: UTF-16 and padded fields to the bytes of a Unix name.

pub mod charset;

/// Decodes UTF-16 code units to UTF-8. An unpaired surrogate becomes its three-byte form (WTF-8),
/// so that two different names stay different and nothing is lost.
pub fn utf16_to_bytes(units: impl IntoIterator<Item = u16>) -> Vec<u8> {
    let mut out = Vec::new();
    for decoded in char::decode_utf16(units) {
        match decoded {
            Ok(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            Err(unpaired) => {
                let u = u32::from(unpaired.unpaired_surrogate());
                out.extend([0xe0 | u >> 12, 0x80 | (u >> 6 & 0x3f), 0x80 | (u & 0x3f)].map(low_byte));
            }
        }
    }
    out
}

fn low_byte(value: u32) -> u8 {
    value.to_le_bytes()[0]
}

/// Encodes a name to UTF-16; the inverse of [`utf16_to_bytes`]. `None` when the bytes are neither
/// UTF-8 nor a surrogate in its three-byte form.
pub fn bytes_to_utf16(mut name: &[u8]) -> Option<Vec<u16>> {
    let mut out = Vec::new();
    loop {
        match std::str::from_utf8(name) {
            Ok(text) => {
                out.extend(text.encode_utf16());
                return Some(out);
            }
            Err(error) => {
                let (valid, rest) = name.split_at_checked(error.valid_up_to())?;
                out.extend(std::str::from_utf8(valid).ok()?.encode_utf16());
                let (&[a, b, c], rest) = rest.split_first_chunk::<3>()?;
                if a != 0xed || !(0xa0..=0xbf).contains(&b) || !(0x80..=0xbf).contains(&c) {
                    return None;
                }
                out.push(0xd000 | u16::from(b & 0x3f) << 6 | u16::from(c & 0x3f));
                name = rest;
            }
        }
    }
}

/// A fixed-width text field without its padding (spaces and NULs at the end).
pub fn trim_padding(field: &[u8]) -> &[u8] {
    let end = field.iter().rposition(|&b| b != b' ' && b != 0).map_or(0, |last| last.saturating_add(1));
    field.get(..end).unwrap_or_default()
}

/// A GUID as stored on disk (first three fields little-endian), in its usual upper-case form.
pub fn guid(bytes: [u8; 16]) -> String {
    let [a0, a1, a2, a3, b0, b1, c0, c1, rest @ ..] = bytes;
    let [d0, d1, e @ ..] = rest;
    let e: String = e.iter().map(|byte| format!("{byte:02X}")).collect();
    format!(
        "{:08X}-{:04X}-{:04X}-{d0:02X}{d1:02X}-{e}",
        u32::from_le_bytes([a0, a1, a2, a3]),
        u16::from_le_bytes([b0, b1]),
        u16::from_le_bytes([c0, c1]),
    )
}

/// A UUID stored in big-endian order, in its usual lower-case form.
pub fn uuid(bytes: [u8; 16]) -> String {
    let mut out = String::with_capacity(36);
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        out.push_str(&format!("{byte:02x}"));
    }
    out
}

/// The bytes of base 64 (RFC 4648), with white space anywhere; `None` when there is something else in it.
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    let (mut out, mut bits, mut width) = (Vec::new(), 0u32, 0u32);
    for byte in text.bytes().filter(|byte| !byte.is_ascii_whitespace()) {
        let six = match byte {
            b'A'..=b'Z' => byte.wrapping_sub(b'A'),
            b'a'..=b'z' => byte.wrapping_sub(b'a').wrapping_add(26),
            b'0'..=b'9' => byte.wrapping_sub(b'0').wrapping_add(52),
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            _ => return None,
        };
        bits = bits.wrapping_shl(6) | u32::from(six);
        width = width.wrapping_add(6);
        if width >= 8 {
            width = width.wrapping_sub(8);
            out.push(bits.wrapping_shr(width).to_le_bytes()[0]);
        }
    }
    Some(out)
}

/// Text from an image, made safe for a terminal: control and bidirectional characters and invalid
/// UTF-8 appear as escapes.
pub fn printable(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\t' => out.push_str("\\t"),
                '\n' => out.push_str("\\n"),
                '\\' => out.push_str("\\\\"),
                c if steers(c) => out.extend(c.escape_unicode()),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// Whether a character does something to a terminal, to the order of what is on it, or to where a line ends.
pub fn steers(c: char) -> bool {
    let bidirectional =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || bidirectional || matches!(c, '\u{2028}' | '\u{2029}')
}

/// A sentence of ours that may quote an image, made safe for a terminal: what steers one appears as
/// an escape, and all else as it is (escapes that are there already among it).
pub fn tamed(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

/// JSON that means the same, safe for a terminal: what would steer one is written `\u202e`.
pub fn tamed_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // What ends a line stands between values; within them it is escaped.
        if steers(c) && c != '\n' { out.push_str(&format!("\\u{:04x}", u32::from(c))) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_64_has_white_space_and_padding() {
        assert_eq!(from_base64("bWlz\n\t aA==").unwrap(), b"mish");
        assert_eq!(from_base64("b!"), None);
    }

    #[test]
    fn an_unpaired_surrogate_survives_the_round_trip() {
        let units = [0x61, 0xd83d, 0x62, 0xd83d, 0xde00, 0xdc00];
        let name = utf16_to_bytes(units);
        assert_eq!(bytes_to_utf16(&name).unwrap(), units);
        assert_eq!(bytes_to_utf16(b"\xff"), None);
    }

    #[test]
    fn a_guid_prints_its_first_three_fields_in_little_endian() {
        let esp = [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
        assert_eq!(guid(esp), "C12A7328-F81F-11D2-BA4B-00A0C93EC93B");
    }

    #[test]
    fn a_sentence_and_json_are_tamed_and_escapes_in_them_stay() {
        assert_eq!(tamed("a\\x1b \u{1b}[31m\u{202e}é\n"), "a\\x1b \\u{1b}[31m\\u{202e}é\\u{a}");
        assert_eq!(tamed_json("{\n  \"a\": \"\u{202e}\u{9b}é\"\n}"), "{\n  \"a\": \"\\u202e\\u009bé\"\n}");
    }

    #[test]
    fn nothing_that_steers_a_terminal_is_printed_raw() {
        assert_eq!(printable(b"a\x1b[31m\xe2\x80\xae\xff\t"), "a\\u{1b}[31m\\u{202e}\\xff\\t");
        // A line that ends where a reader of logs may think so.
        assert_eq!(tamed("a\u{2028}b\u{2029}"), "a\\u{2028}b\\u{2029}");
    }
}
