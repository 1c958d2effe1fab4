//! Names of the plain standard as the kernel's isofs shows them with `map=`, and the file types that
//! RISC OS keeps behind them.
//!
//! ```text
//!   Acorn's system use field, 32 bytes:
//!   0 "ARCHIMEDES" | 10 load address | 14 execution address | 18 attributes | 22 ...
//!                       0xFFFtttxx: type ttt                    bit 8: the name starts with `!`
//! ```

use super::record::DirectoryRecord;
use crate::filesystem::NameMap;

/// Length of Acorn's field: it is known by it.
const ACORN: usize = 32;

/// The name of a record; `None` where nothing was asked for.
pub(super) fn mapped(map: NameMap, record: &DirectoryRecord<'_>) -> Option<Vec<u8>> {
    let name = match map {
        NameMap::Plain => return None,
        NameMap::Off => record.name.to_vec(),
        NameMap::Normal => lowered(record.name),
        NameMap::Acorn => acorn(record),
    };
    // Whatever is left of it, a row has a name, and these two are taken.
    Some(if matches!(name.as_slice(), b"" | b"." | b"..") { record.name.to_vec() } else { name })
}

/// In lower case, without `;1` and the dot of an empty extension; what separates is a dot.
fn lowered(name: &[u8]) -> Vec<u8> {
    let name = name.strip_suffix(b";1").map_or(name, |rest| rest.strip_suffix(b".").unwrap_or(rest));
    let shown = |byte: &u8| match byte {
        b';' | b'/' => b'.',
        byte => byte.to_ascii_lowercase(),
    };
    name.iter().take_while(|byte| **byte != 0).map(shown).collect()
}

fn acorn(record: &DirectoryRecord<'_>) -> Vec<u8> {
    let mut name = lowered(record.name);
    if record.system_use.len() != ACORN || !record.system_use.starts_with(b"ARCHIMEDES") {
        return name;
    }
    let field = |at: usize| record.system_use.get(at).copied().unwrap_or(0);
    if let Some(first) = name.first_mut().filter(|first| **first == b'_' && field(19) & 1 != 0) {
        *first = b'!';
    }
    if !record.is_directory() && field(13) == 0xff && field(12) & 0xf0 == 0xf0 {
        let kind = u16::from_be_bytes([field(12) & 0x0f, field(11)]);
        name.extend_from_slice(format!(",{kind:03x}").as_bytes());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(map: NameMap, name: &[u8], system_use: &[u8]) -> String {
        let mut bytes = vec![0; 33];
        bytes[32] = name.len() as u8;
        bytes.extend_from_slice(name);
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        bytes.extend_from_slice(system_use);
        bytes[0] = bytes.len() as u8;
        let record = DirectoryRecord::parse(&bytes, 0).unwrap();
        String::from_utf8(mapped(map, &record).unwrap()).unwrap()
    }

    #[test]
    fn names_are_those_of_the_kernels_isofs() {
        for (stored, normal) in [
            ("README.TXT;1", "readme.txt"),
            ("README.;1", "readme"),
            ("MAKEFILE;1", "makefile"),
            ("OLD.TXT;2", "old.txt.2"),
            ("DIR", "dir"),
            ("A/B.;3", "a.b..3"),
            ("DOT.", "dot."),
            (".;1", ".;1"),
        ] {
            assert_eq!(named(NameMap::Normal, stored.as_bytes(), b""), normal);
            assert_eq!(named(NameMap::Acorn, stored.as_bytes(), b"other"), normal);
            assert_eq!(named(NameMap::Off, stored.as_bytes(), b""), stored);
        }
    }

    #[test]
    fn acorns_field_gives_the_file_type_and_the_exclamation_mark() {
        let mut field = *b"ARCHIMEDES\x00\xd9\xff\xff\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(named(NameMap::Acorn, b"_RUN.;1", &field), "_run,fd9");
        assert_eq!(named(NameMap::Normal, b"_RUN.;1", &field), "_run");
        field[19] = 1;
        assert_eq!(named(NameMap::Acorn, b"_RUN.;1", &field), "!run,fd9");
        field[12] = 0x0f;
        assert_eq!(named(NameMap::Acorn, b"_RUN.;1", &field), "!run", "a load address is no type");
        assert_eq!(named(NameMap::Acorn, b"_RUN.;1", &field[..31]), "_run");
    }
}
