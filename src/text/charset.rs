//! Character sets by the kernel's names for them (NLS), and names in them.
//!
//! Names of a medium are UTF-16 or converted from a code page, and are UTF-8 here. In another
//! character set a name stays as distinct as it was:
//!
//! ```text
//!   on the medium, UTF-8                 shown in koi8-r
//!   письмо                               its six bytes in that set
//!   €   😀   an unpaired surrogate       %u20AC   %uD83D%uDE00   %uD83D      units of UTF-16
//!   a byte that is no UTF-8              %xFF
//!   %u20AC   %xFF                        %u0025u20AC   %u0025xFF   only a % that would be read as an escape
//! ```

use encoding_rs as rs;
use encoding_rs::{DecoderResult, EncoderResult, Encoding};
use oem_cp::code_table::{DECODING_TABLE_CP_MAP, ENCODING_TABLE_CP_MAP};
use oem_cp::code_table_type::TableType;

use super::{bytes_to_utf16, utf16_to_bytes};

/// Most bytes of one character in any of the sets.
const MAX_BYTES: usize = 4;

/// A character set in which ASCII is itself, and no part of another character but its later bytes.
#[derive(Clone, Copy)]
pub struct Charset {
    name: &'static str,
    table: Table,
}

#[derive(Clone, Copy)]
enum Table {
    Ascii,
    /// A single-byte code page of DOS: the upper half.
    Oem(u16, &'static TableType),
    /// As browsers have it.
    Web(&'static Encoding),
    /// The same, but for its bytes 0x80 to 0x9f, which are the control characters of these numbers.
    Iso(&'static Encoding),
    /// As browsers have it, but for two characters of Belarusian.
    Koi8U,
}

/// The kernel's names, and the other names that it has for the same. `default` is the table that it
/// has built in.
const NAMED: &[(&str, &[&str], Table)] = &[
    ("ascii", &["usascii"], Table::Ascii),
    ("iso8859-1", &["default", "latin1"], Table::Iso(rs::WINDOWS_1252)),
    ("iso8859-2", &["latin2"], Table::Web(rs::ISO_8859_2)),
    ("iso8859-3", &[], Table::Web(rs::ISO_8859_3)),
    ("iso8859-4", &[], Table::Web(rs::ISO_8859_4)),
    ("iso8859-5", &[], Table::Web(rs::ISO_8859_5)),
    ("iso8859-6", &[], Table::Web(rs::ISO_8859_6)),
    ("iso8859-7", &[], Table::Web(rs::ISO_8859_7)),
    ("iso8859-9", &["latin5"], Table::Iso(rs::WINDOWS_1254)),
    ("iso8859-10", &[], Table::Web(rs::ISO_8859_10)),
    ("iso8859-13", &[], Table::Web(rs::ISO_8859_13)),
    ("iso8859-14", &[], Table::Web(rs::ISO_8859_14)),
    ("iso8859-15", &["latin9"], Table::Web(rs::ISO_8859_15)),
    ("iso8859-16", &[], Table::Web(rs::ISO_8859_16)),
    ("koi8-r", &[], Table::Web(rs::KOI8_R)),
    ("koi8-u", &[], Table::Koi8U),
    ("koi8-ru", &[], Table::Web(rs::KOI8_U)),
    ("cp874", &["tis-620"], Table::Web(rs::WINDOWS_874)),
    ("cp932", &["sjis", "shift-jis"], Table::Web(rs::SHIFT_JIS)),
    ("cp936", &["gb2312", "gbk"], Table::Web(rs::GBK)),
    ("cp949", &["euc-kr", "uhc"], Table::Web(rs::EUC_KR)),
    ("cp950", &["big5"], Table::Web(rs::BIG5)),
    ("cp1250", &[], Table::Web(rs::WINDOWS_1250)),
    ("cp1251", &[], Table::Web(rs::WINDOWS_1251)),
    ("cp1252", &[], Table::Web(rs::WINDOWS_1252)),
    ("cp1253", &[], Table::Web(rs::WINDOWS_1253)),
    ("cp1254", &[], Table::Web(rs::WINDOWS_1254)),
    // The kernel has one table for both.
    ("cp1255", &["iso8859-8"], Table::Web(rs::WINDOWS_1255)),
    ("cp1256", &[], Table::Web(rs::WINDOWS_1256)),
    ("cp1257", &[], Table::Web(rs::WINDOWS_1257)),
    ("cp1258", &[], Table::Web(rs::WINDOWS_1258)),
    ("euc-jp", &[], Table::Web(rs::EUC_JP)),
    ("gb18030", &[], Table::Web(rs::GB18030)),
    ("macroman", &[], Table::Web(rs::MACINTOSH)),
    ("maccyrillic", &[], Table::Web(rs::X_MAC_CYRILLIC)),
];

/// The double-byte code pages of DOS.
const WIDE_PAGES: &[(u16, &str)] = &[(932, "cp932"), (936, "cp936"), (949, "cp949"), (950, "cp950")];

/// The single-byte ones.
const PAGES: &[(u16, &str)] = &[
    (437, "cp437"),
    (720, "cp720"),
    (737, "cp737"),
    (775, "cp775"),
    (850, "cp850"),
    (852, "cp852"),
    (855, "cp855"),
    (857, "cp857"),
    (858, "cp858"),
    (860, "cp860"),
    (861, "cp861"),
    (862, "cp862"),
    (863, "cp863"),
    (864, "cp864"),
    (865, "cp865"),
    (866, "cp866"),
    (869, "cp869"),
];

/// Letters and digits alone: how a name is spelled besides is no matter.
fn plain(name: &str) -> String {
    let letters = name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase());
    let plain: String = letters.collect();
    // `windows-1251`, `ibm866`, and `iso-8859-1` with or without its hyphens.
    let number = plain.strip_prefix("windows").or_else(|| plain.strip_prefix("ibm"));
    number.filter(|number| !number.is_empty()).map_or(plain.clone(), |number| format!("cp{number}"))
}

/// The names that [`Charset::named`] knows, `utf8` first.
pub fn names() -> impl Iterator<Item = &'static str> {
    let named = NAMED.iter().flat_map(|(name, others, _)| std::iter::once(*name).chain(others.iter().copied()));
    std::iter::once("utf8").chain(named).chain(PAGES.iter().map(|(_, name)| *name))
}

impl std::fmt::Debug for Charset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Charset {
    /// The character set of a name of the kernel's: `Some(None)` for UTF-8, which needs no conversion;
    /// `None` when there is none of this name.
    pub fn named(name: &str) -> Option<Option<Self>> {
        let wanted = plain(name);
        if wanted == "utf8" {
            return Some(None);
        }
        let known = NAMED
            .iter()
            .find(|(name, others, _)| plain(name) == wanted || others.iter().any(|other| plain(other) == wanted));
        if let Some((name, _, table)) = known {
            return Some(Some(Self { name, table: *table }));
        }
        let (number, _) = PAGES.iter().find(|(_, name)| *name == wanted)?;
        Self::of_page(*number).map(Some)
    }

    /// The code page of DOS of a number.
    pub fn of_page(number: u16) -> Option<Self> {
        if let Some((_, name)) = WIDE_PAGES.iter().find(|(wide, _)| *wide == number) {
            return Self::named(name).flatten();
        }
        let name = PAGES.iter().find(|(page, _)| *page == number).map_or("cp", |(_, name)| name);
        DECODING_TABLE_CP_MAP.get(&number).map(|upper| Self { name, table: Table::Oem(number, upper) })
    }

    /// The first character of some bytes (in few sets it is two), and how many bytes it takes. `None`
    /// when they start with nothing that the set has.
    pub fn decode_first(self, bytes: &[u8]) -> Option<(Vec<char>, usize)> {
        let first = *bytes.first()?;
        let one = |c: char| Some((vec![c], 1));
        match (self.table, first.checked_sub(0x80).map(usize::from)) {
            (_, None) => one(char::from(first)),
            (Table::Ascii, _) => None,
            (Table::Oem(_, TableType::Complete(table)), Some(upper)) => one(*table.get(upper)?),
            (Table::Oem(_, TableType::Incomplete(table)), Some(upper)) => one((*table.get(upper)?)?),
            (Table::Iso(_), Some(0..0x20)) => one(char::from(first)),
            (Table::Koi8U, Some(0x2e)) => one('╝'),
            (Table::Koi8U, Some(0x3e)) => one('╬'),
            (Table::Koi8U, _) => web_first(rs::KOI8_U, bytes),
            (Table::Iso(encoding) | Table::Web(encoding), _) => web_first(encoding, bytes),
        }
    }

    /// The bytes of a character; `None` where the set has none that mean exactly this one.
    pub fn encode(self, c: char) -> Option<Vec<u8>> {
        if c.is_ascii() {
            return u8::try_from(c).ok().map(|byte| vec![byte]);
        }
        let bytes = match self.table {
            Table::Ascii => return None,
            Table::Oem(number, _) => vec![*ENCODING_TABLE_CP_MAP.get(&number)?.get(&c)?],
            Table::Iso(_) if matches!(c, '\u{80}'..='\u{9f}') => vec![u8::try_from(u32::from(c)).ok()?],
            Table::Koi8U if c == '╝' => vec![0xae],
            Table::Koi8U if c == '╬' => vec![0xbe],
            Table::Koi8U => web_encode(rs::KOI8_U, c)?,
            Table::Iso(encoding) | Table::Web(encoding) => web_encode(encoding, c)?,
        };
        // Some encoders take a character for another that looks the same.
        let (back, len) = self.decode_first(&bytes)?;
        (back == [c] && len == bytes.len()).then_some(bytes)
    }

    /// A name in the character set: what the set does not have is escaped.
    pub fn encode_name(self, name: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(name.len());
        let mut rest = name;
        while let Some((&first, after)) = rest.split_first() {
            let (c, after) = first_char(rest).map_or((None, after), |(c, after)| (Some(c), after));
            let surrogate = rest.split_first_chunk::<3>().and_then(|(three, after)| {
                bytes_to_utf16(three).filter(|units| units.len() == 1 && c.is_none()).map(|units| (units, after))
            });
            match (c, surrogate) {
                (Some('%'), _) if self.escape_at(rest).is_some() => escape_char('%', &mut out),
                (Some(c), _) => match self.encode(c) {
                    Some(bytes) => out.extend(bytes),
                    None => escape_char(c, &mut out),
                },
                (None, Some((units, after))) => {
                    units.into_iter().for_each(|unit| escape_unit(unit, &mut out));
                    rest = after;
                    continue;
                }
                (None, None) => out.extend(format!("%x{first:02X}").into_bytes()),
            }
            rest = after;
        }
        out
    }

    /// The inverse of [`Charset::encode_name`]; `None` when the bytes are not in the character set.
    pub fn decode_name(self, name: &[u8]) -> Option<Vec<u8>> {
        let (mut out, mut units) = (Vec::with_capacity(name.len()), Vec::new());
        let mut rest = name;
        while !rest.is_empty() {
            let taken = match self.escape_at(rest) {
                Some(Escape::Unit(unit)) => {
                    units.push(unit);
                    6
                }
                Some(Escape::Byte(byte)) => {
                    out.append(&mut utf16_to_bytes(units.drain(..)));
                    out.push(byte);
                    4
                }
                None => {
                    let (chars, len) = self.decode_first(rest)?;
                    chars.into_iter().for_each(|c| units.extend_from_slice(c.encode_utf16(&mut [0; 2])));
                    len
                }
            };
            rest = rest.get(taken..)?;
        }
        out.append(&mut utf16_to_bytes(units));
        Some(out)
    }

    /// An escape that [`Charset::encode_name`] could have made.
    fn escape_at(self, name: &[u8]) -> Option<Escape> {
        let hex = |digits: &[u8]| {
            let upper = digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F'));
            u16::from_str_radix(std::str::from_utf8(digits).ok().filter(|_| upper)?, 16).ok()
        };
        match name {
            [b'%', b'u', rest @ ..] => {
                let unit = hex(rest.get(..4)?)?;
                let has = |c: char| c != '%' && self.encode(c).is_some();
                (!char::from_u32(unit.into()).is_some_and(has)).then_some(Escape::Unit(unit))
            }
            [b'%', b'x', rest @ ..] => {
                let byte = u8::try_from(hex(rest.get(..2)?)?).ok()?;
                (byte >= 0x80).then_some(Escape::Byte(byte))
            }
            _ => None,
        }
    }
}

enum Escape {
    /// `%u20AC`
    Unit(u16),
    /// `%xFF`
    Byte(u8),
}

fn escape_char(c: char, out: &mut Vec<u8>) {
    c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| escape_unit(*unit, out));
}

fn escape_unit(unit: u16, out: &mut Vec<u8>) {
    out.extend(format!("%u{unit:04X}").into_bytes());
}

/// The character that some bytes start with, when they start with UTF-8, and what follows it.
fn first_char(bytes: &[u8]) -> Option<(char, &[u8])> {
    let start = bytes.get(..MAX_BYTES.min(bytes.len()))?;
    let c = start.utf8_chunks().next()?.valid().chars().next()?;
    Some((c, bytes.get(c.len_utf8()..)?))
}

/// The shortest start of the bytes that is a character.
fn web_first(encoding: &'static Encoding, bytes: &[u8]) -> Option<(Vec<char>, usize)> {
    (1..=MAX_BYTES.min(bytes.len())).find_map(|len| {
        let mut out = [0; 16];
        let mut decoder = encoding.new_decoder_without_bom_handling();
        match decoder.decode_to_utf8_without_replacement(bytes.get(..len)?, &mut out, true) {
            (DecoderResult::InputEmpty, _, written) => {
                let text = std::str::from_utf8(out.get(..written)?).ok()?;
                Some((text.chars().collect(), len))
            }
            _ => None,
        }
    })
}

fn web_encode(encoding: &'static Encoding, c: char) -> Option<Vec<u8>> {
    let mut out = [0; 16];
    let mut encoder = encoding.new_encoder();
    match encoder.encode_from_utf8_without_replacement(c.encode_utf8(&mut [0; 4]), &mut out, true) {
        (EncoderResult::InputEmpty, _, written) => out.get(..written).map(<[u8]>::to_vec),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str) -> Charset {
        Charset::named(name).unwrap().unwrap()
    }

    #[test]
    fn every_name_survives_the_way_there_and_back_in_every_set() {
        let surrogate = utf16_to_bytes([0xd83d]);
        let mut samples: Vec<Vec<u8>> = [
            "plain",
            "письмо",
            "日本語テスト",
            "한글",
            "naïve ÄÖÜß",
            "€",
            "😀",
            "%u20AC",
            "%u0025u20AC",
            "%u0041",
            "%xFF",
            "%x7F",
            "%%u20ac",
            "100%",
            "−～¥‾‖",
            "a/b",
            "Ê̄",
        ]
        .map(|name| name.as_bytes().to_vec())
        .into();
        samples.extend([surrogate.clone(), [b"a", surrogate.as_slice(), b"%uDE00"].concat(), b"\xff\x80%xFF".to_vec()]);
        for name in names().filter(|name| *name != "utf8") {
            let set = set(name);
            for sample in &samples {
                let shown = set.encode_name(sample);
                assert_eq!(
                    set.decode_name(&shown).as_ref(),
                    Some(sample),
                    "{name}: {}",
                    String::from_utf8_lossy(sample)
                );
            }
            // Each character of the 16-bit plane: itself or an escape, and no two alike.
            for c in (0..0x1_0000).filter_map(char::from_u32) {
                if let Some(bytes) = set.encode(c) {
                    assert_eq!(set.decode_first(&bytes), Some((vec![c], bytes.len())), "{name} {c}");
                    assert!(
                        bytes.len() == 1
                            || bytes[0] >= 0x80 && !bytes[1..].iter().any(|b| matches!(b, b'/' | b'%' | 0))
                    );
                }
            }
        }
    }

    #[test]
    fn what_a_set_does_not_have_is_escaped_and_nothing_else_is() {
        let shown = |text: &str| String::from_utf8(set("ascii").encode_name(text.as_bytes())).unwrap();
        assert_eq!(shown("a€b"), "a%u20ACb");
        assert_eq!(shown("😀"), "%uD83D%uDE00");
        assert_eq!(shown("%u20AC %u0041 %xFF %x41 100%"), "%u0025u20AC %u0041 %u0025xFF %x41 100%");
        assert_eq!(set("ascii").decode_name(b"\xe4"), None);
        assert_eq!(set("cp1252").encode_name(b"\xff"), b"%xFF");
        assert_eq!(set("sjis").decode_name(b"\x83"), None, "half of a character");
    }

    #[test]
    fn sets_have_the_kernels_names_and_their_usual_spellings() {
        assert!(Charset::named("utf8").unwrap().is_none() && Charset::named("UTF-8").unwrap().is_none());
        for (name, expected) in [
            ("KOI8-R", "koi8-r"),
            ("ISO-8859-15", "iso8859-15"),
            ("default", "iso8859-1"),
            ("windows-1251", "cp1251"),
            ("ibm850", "cp850"),
            ("gb2312", "cp936"),
            ("Shift_JIS", "cp932"),
            ("iso8859-8", "cp1255"),
        ] {
            assert_eq!(format!("{:?}", set(name)), expected);
        }
        for name in ["", "windows", "klingon", "cp", "iso8859-1x"] {
            assert!(Charset::named(name).is_none(), "{name}");
        }
    }
}
