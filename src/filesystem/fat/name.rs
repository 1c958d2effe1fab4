//! Names: 8.3 in an OEM code page, long in UTF-16, compared without regard to case.

use oem_cp::code_table::{DECODING_TABLE_CP_MAP, ENCODING_TABLE_CP_MAP};
use oem_cp::code_table_type::TableType;

use super::FAT;
use crate::error::{Error, Result};
use crate::text;

/// Most UTF-16 units in a long name.
pub(super) const MAX_UNITS: usize = 255;

/// The code page of short names.
#[derive(Clone, Copy)]
pub(super) struct CodePage {
    number: u16,
    decoding: &'static TableType,
}

impl CodePage {
    /// The single-byte page of this number.
    pub fn new(number: u16) -> Result<Self> {
        match DECODING_TABLE_CP_MAP.get(&number) {
            Some(decoding) => Ok(Self { number, decoding }),
            None => Err(Error::unsupported(FAT, format!("code page {number}"))),
        }
    }

    /// The character of a byte; `None` where the page has none.
    fn decode(self, byte: u8) -> Option<char> {
        match byte.checked_sub(128).map(usize::from) {
            None => Some(char::from(byte)),
            Some(index) => match self.decoding {
                TableType::Complete(table) => table.get(index).copied(),
                TableType::Incomplete(table) => table.get(index).copied().flatten(),
            },
        }
    }

    /// The byte of a character; `None` where the page has none.
    fn encode(self, c: char) -> Option<u8> {
        if c.is_ascii() {
            return u8::try_from(c).ok();
        }
        ENCODING_TABLE_CP_MAP.get(&self.number)?.get(&c).copied()
    }

    /// Text of one byte a character, in UTF-8. A byte that the page does not define stays as it
    /// is: no two names become one.
    fn push(self, bytes: &[u8], lower: bool, out: &mut Vec<u8>) {
        for &byte in bytes {
            match self.decode(byte) {
                Some(c) => {
                    let c = if lower { simple_case(c, true) } else { c };
                    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                None => out.push(byte),
            }
        }
    }

    /// The name of an 8.3 entry; `case` are Windows NT's bits for lower case.
    pub fn short_name(self, short: &[u8; 11], case: u8) -> Vec<u8> {
        let mut field = *short;
        if let [first @ 0x05, ..] = &mut field {
            *first = 0xe5;
        }
        let (base, extension) = field.split_at(8);
        let mut out = Vec::with_capacity(12);
        self.push(trim_spaces(base), case & 0x08 != 0, &mut out);
        let extension = trim_spaces(extension);
        if !extension.is_empty() {
            out.push(b'.');
            self.push(extension, case & 0x10 != 0, &mut out);
        }
        out
    }

    /// A volume label of 11 bytes, without its padding.
    pub fn label(self, field: &[u8; 11]) -> String {
        let mut field = *field;
        if let [first @ 0x05, ..] = &mut field {
            *first = 0xe5;
        }
        let mut out = Vec::new();
        self.push(text::trim_padding(&field), false, &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }
}

fn trim_spaces(field: &[u8]) -> &[u8] {
    let end = field.iter().rposition(|&byte| byte != b' ').map_or(0, |last| last.saturating_add(1));
    field.get(..end).unwrap_or_default()
}

/// Upper or lower case of a character, where that is one character too. As on Windows nothing
/// outside of ASCII becomes ASCII, and what lies beyond the 16-bit plane has no case.
fn simple_case(c: char, lower: bool) -> char {
    if c.is_ascii() {
        return if lower { c.to_ascii_lowercase() } else { c.to_ascii_uppercase() };
    }
    if u32::from(c) > 0xffff {
        return c;
    }
    let only =
        |mut chars: std::iter::Peekable<std::vec::IntoIter<char>>| chars.next().filter(|_| chars.peek().is_none());
    let mapped: Vec<char> = if lower { c.to_lowercase().collect() } else { c.to_uppercase().collect() };
    only(mapped.into_iter().peekable()).filter(|c| !c.is_ascii()).unwrap_or(c)
}

/// The form in which two names are the same name.
pub(super) fn fold(name: &[u8]) -> Vec<u8> {
    if name.is_ascii() {
        return name.to_ascii_uppercase();
    }
    let mut out = Vec::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            out.extend_from_slice(simple_case(c, false).encode_utf8(&mut [0; 4]).as_bytes());
        }
        out.extend_from_slice(chunk.invalid());
    }
    out
}
