//! Names: 8.3 in an OEM code page, long in UTF-16, compared without regard to case.

use super::FAT;
use crate::error::{Error, Result};
use crate::text;
use crate::text::charset::Charset;

/// Most UTF-16 units in a long name.
pub(super) const MAX_UNITS: usize = 255;

/// The code page of short names.
#[derive(Clone, Copy)]
pub(super) struct CodePage(Charset);

impl CodePage {
    /// The page of this number: one byte a character, or one or two.
    pub fn new(number: u16) -> Result<Self> {
        let page = Charset::of_page(number).ok_or_else(|| Error::unsupported(FAT, format!("code page {number}")))?;
        Ok(Self(page))
    }

    /// Text in UTF-8. A byte that the page does not define stays as it is: no two names become one.
    fn push(self, mut bytes: &[u8], lower: bool, out: &mut Vec<u8>) {
        while let Some((&first, rest)) = bytes.split_first() {
            match self.0.decode_first(bytes) {
                Some((chars, len)) => {
                    for c in chars {
                        let c = if lower { simple_case(c, true) } else { c };
                        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    }
                    bytes = bytes.get(len..).unwrap_or_default();
                }
                None => {
                    out.push(first);
                    bytes = rest;
                }
            }
        }
    }

    /// The bytes of a character in a short name; `None` for what cannot be in one.
    fn encode_short(self, c: char) -> Option<Vec<u8>> {
        let bytes = self.0.encode(simple_case(c, false))?;
        // What follows a first byte can be any.
        bytes.first().is_some_and(|first| fits_short(*first)).then_some(bytes)
    }

    /// As many whole characters as so many bytes hold.
    fn start_of(self, text: &[u8], most: usize) -> &[u8] {
        let mut end = 0usize;
        while let Some(rest) = text.get(end..).filter(|rest| !rest.is_empty()) {
            let len = self.0.decode_first(rest).map_or(1, |(_, len)| len);
            if end.saturating_add(len) > most {
                break;
            }
            end = end.saturating_add(len);
        }
        text.get(..end).unwrap_or_default()
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

/// Whether a byte may be in an 8.3 name; lower case is not among them.
fn fits_short(byte: u8) -> bool {
    byte >= 0x80 || byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"!#$%&'()-@^_`{}~".contains(&byte)
}

/// Checks a name that is to be stored: what no system with FAT takes is refused here.
pub(super) fn check_new(name: &[u8]) -> Result<Vec<u16>> {
    let units = text::bytes_to_utf16(name).ok_or(Error::Invalid)?;
    let forbidden = |&unit: &u16| unit < 0x20 || u8::try_from(unit).is_ok_and(|byte| b"\"*/:<>?\\|".contains(&byte));
    // Windows drops dots and spaces at the end, and would never find the name again.
    if units.iter().any(forbidden) || matches!(name.last(), None | Some(b'.' | b' ')) {
        return Err(Error::Invalid);
    }
    if units.len() > MAX_UNITS { Err(Error::NameTooLong) } else { Ok(units) }
}

/// The 8.3 entry of a name that needs no long one, with the bits for lower case.
pub(super) fn exact_short(name: &[u8]) -> Option<([u8; 11], u8)> {
    let (base, extension) = match name.iter().rposition(|&byte| byte == b'.') {
        Some(dot) => (name.get(..dot)?, name.get(dot.saturating_add(1)..)?),
        None => (name, &[][..]),
    };
    if !name.is_ascii() || !(1..=8).contains(&base.len()) || extension.len() > 3 {
        return None;
    }
    let mut case = 0;
    for (part, bit) in [(base, 0x08), (extension, 0x10)] {
        let lower = part.iter().any(u8::is_ascii_lowercase);
        if lower && part.iter().any(u8::is_ascii_uppercase) {
            return None;
        }
        if !part.iter().all(|byte| fits_short(byte.to_ascii_uppercase())) {
            return None;
        }
        case |= if lower { bit } else { 0 };
    }
    Some((join_short(&base.to_ascii_uppercase(), &extension.to_ascii_uppercase()), case))
}

fn join_short(base: &[u8], extension: &[u8]) -> [u8; 11] {
    let mut short = [b' '; 11];
    let (left, right) = short.split_at_mut(8);
    for (to, from) in left.iter_mut().zip(base).chain(right.iter_mut().zip(extension)) {
        *to = *from;
    }
    if let [first @ 0xe5, ..] = &mut short {
        *first = 0x05;
    }
    short
}

/// What the short name of a long one is made from.
pub(super) struct Basis {
    page: CodePage,
    base: Vec<u8>,
    extension: Vec<u8>,
    /// Something was left out or replaced, so that a number must follow.
    lossy: bool,
}

impl Basis {
    /// As Windows makes it: upper case, without spaces and all but the last dot, what does not fit
    /// the code page replaced.
    pub fn new(page: CodePage, units: &[u16]) -> Self {
        let chars: Vec<char> =
            char::decode_utf16(units.iter().copied()).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        let start = chars.iter().position(|&c| c != '.' && c != ' ').unwrap_or(chars.len());
        let mut lossy = start > 0;
        let named = chars.get(start..).unwrap_or_default();
        let dot = named.iter().rposition(|&c| c == '.');
        let (base, extension) = named.split_at(dot.unwrap_or(named.len()));
        let mut convert = |chars: &[char], most: usize| {
            let mut out = Vec::new();
            for &c in chars {
                if c == '.' || c == ' ' {
                    lossy = true;
                    continue;
                }
                let bytes = page.encode_short(c);
                lossy |= bytes.is_none();
                out.append(&mut bytes.unwrap_or_else(|| vec![b'_']));
            }
            lossy |= out.len() > most;
            page.start_of(&out, most).to_vec()
        };
        let base = convert(base, 8);
        let extension = convert(extension.get(1..).unwrap_or_default(), 3);
        let base = if base.is_empty() { b"_".to_vec() } else { base };
        Self { page, base, extension, lossy }
    }

    /// A short name that is not `taken`; `seed` varies with the name.
    pub fn choose(&self, seed: u64, taken: impl Fn(&[u8; 11]) -> bool) -> Option<[u8; 11]> {
        let plain = join_short(&self.base, &self.extension);
        if !self.lossy && !taken(&plain) {
            return Some(plain);
        }
        let tailed = |start: &[u8], tail: String| {
            let start = self.page.start_of(start, 8usize.saturating_sub(tail.len()));
            let base = [start, tail.as_bytes()].concat();
            join_short(&base, &self.extension)
        };
        // Four in a row, and then a hash, or thousands of like names would take thousands of tries each.
        let counted = (1..=4).map(|number| tailed(&self.base, format!("~{number}")));
        let two = self.page.start_of(&self.base, 2);
        let hashed = (0..4096u64).map(|round| {
            let hash = seed.wrapping_add(round).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
            tailed(two, format!("{hash:04X}~{}", (round & 7).saturating_add(1)))
        });
        let all = (1..=999_999).map(|number| tailed(&self.base, format!("~{number}")));
        counted.chain(hashed).chain(all).find(|short| !taken(short))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn short(name: &str, taken: &[&str]) -> String {
        short_in(437, name, taken)
    }

    fn short_in(page: u16, name: &str, taken: &[&str]) -> String {
        let page = CodePage::new(page).unwrap();
        let units = check_new(name.as_bytes()).unwrap();
        let taken: Vec<&[u8]> = taken.iter().map(|name| name.as_bytes()).collect();
        let chosen = Basis::new(page, &units).choose(1, |short| taken.contains(&page.short_name(short, 0).as_slice()));
        String::from_utf8(page.short_name(&chosen.unwrap(), 0)).unwrap()
    }

    #[test]
    fn short_names_are_made_as_windows_makes_them() {
        assert_eq!(short("ReadMe.txt", &[]), "README.TXT");
        assert_eq!(short("ReadMe.txt", &["README.TXT"]), "README~1.TXT");
        assert_eq!(short("a long name.text", &[]), "ALONGN~1.TEX");
        assert_eq!(short("a long name.text", &["ALONGN~1.TEX", "ALONGN~2.TEX"]), "ALONGN~3.TEX");
        assert_eq!(short(".bashrc", &[]), "BASHRC~1");
        assert_eq!(short("archive.tar.gz", &[]), "ARCHIV~1.GZ");
        assert_eq!(short("a+b=c", &[]), "A_B_C~1");
        assert_eq!(short("äöü", &[]), "ÄÖÜ");
        assert_eq!(short("日本", &[]), "__~1");
        assert_eq!(short("яx", &[]), "_X~1");
    }

    #[test]
    fn a_character_of_two_bytes_is_never_cut() {
        assert_eq!(short_in(932, "日本", &[]), "日本");
        assert_eq!(short_in(932, "日本語版.txt", &[]), "日本語版.TXT");
        assert_eq!(short_in(932, "a日本語版.txt", &[]), "A日本~1.TXT");
        assert_eq!(short_in(932, "日本語版テキスト", &[]), "日本語~1");
        assert_eq!(short_in(932, "x.日本", &[]), "X~1.日");
        assert_eq!(short_in(949, "한글", &["한글"]), "한글~1");
        // The second byte of the first character is a small letter: it is no letter.
        assert_eq!(CodePage::new(932).unwrap().short_name(b"\x83a      TXT", 0), "ヂ.TXT".as_bytes());
        // Half of a character stays a byte.
        assert_eq!(CodePage::new(932).unwrap().short_name(b"ABC    \x83   ", 0), b"ABC    \x83");
    }

    #[test]
    fn the_fifth_like_name_gets_a_hash() {
        let taken = ["LIKENA~1", "LIKENA~2", "LIKENA~3", "LIKENA~4"];
        let name = short("like names", &taken);
        assert!(name.starts_with("LI") && name.len() == 8 && name.ends_with("~1"), "{name}");
    }

    #[test]
    fn names_that_fit_need_no_long_name() {
        assert_eq!(exact_short(b"FOO.TXT"), Some((*b"FOO     TXT", 0)));
        assert_eq!(exact_short(b"foo.TXT"), Some((*b"FOO     TXT", 0x08)));
        assert_eq!(exact_short(b"foo.txt"), Some((*b"FOO     TXT", 0x18)));
        for name in ["Foo.txt", "a.b.c", ".foo", "nine chars", "ninechars", "a.text", "a b", "a+b", "\u{e4}"] {
            assert_eq!(exact_short(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn names_that_fat_cannot_hold_are_refused() {
        for name in ["", ".", "..", "a/b", "a:b", "a*", "a?", "a\"", "a<", "a>", "a|", "a\\b", "a\n", "a.", "a ", "\0"]
        {
            assert!(matches!(check_new(name.as_bytes()), Err(Error::Invalid)), "{name:?}");
        }
        assert!(matches!(check_new(b"\xff"), Err(Error::Invalid)));
        assert!(check_new("😀".repeat(127).as_bytes()).is_ok());
        assert!(matches!(check_new("😀".repeat(128).as_bytes()), Err(Error::NameTooLong)));
    }

    #[test]
    fn nothing_outside_of_ascii_folds_into_it() {
        assert_eq!(fold("ıſK".as_bytes()), "ıſK".as_bytes());
        assert_eq!(fold("straße ä".as_bytes()), "STRAßE Ä".as_bytes());
        assert_eq!(fold(b"a\xffb"), b"A\xffB");
    }
}
