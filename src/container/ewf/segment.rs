//! Segment files: `.E01` to `.E99`, then `.EAA` to `.ZZZ`, found beside any one of them.

use super::FORMAT;
use crate::bytes::Record;
use crate::container::{Companions, beside};
use crate::device::{BlockDevice, Device, read_array};
use crate::error::{Error, Result};
use crate::text::printable;

/// `.ZZZ` of a set that begins with `.E01`; each is an open file.
const MAX_SEGMENTS: u32 = 99 + 22 * 26 * 26;

/// The segments of a set, opened one after the other.
pub(super) struct Segments<'a> {
    companions: &'a dyn Companions,
    /// The file that was given, and its number.
    own: (Device, u32),
    naming: Option<Naming>,
    opened: Vec<Device>,
    more: bool,
}

impl<'a> Segments<'a> {
    pub(super) fn start(own: Device, companions: &'a dyn Companions) -> Result<Self> {
        let number = number_of(own.as_ref())?;
        let naming = Naming::parse(companions.own_name().to_str(), number);
        if naming.is_none() && number != 1 {
            let what = format!("segment {number} under a name that does not tell the others'");
            return Err(Error::unsupported(FORMAT.name, what));
        }
        Ok(Self { companions, own: (own, number), naming, opened: Vec::new(), more: true })
    }

    /// Opens the next segment and gives its number; `None` after the last one.
    pub(super) fn next(&mut self) -> Result<Option<u32>> {
        if !std::mem::take(&mut self.more) {
            return Ok(None);
        }
        let number = u32::try_from(self.opened.len()).unwrap_or(u32::MAX).saturating_add(1);
        let device = if number == self.own.1 {
            self.own.0.clone()
        } else {
            let name = self.naming.as_ref().and_then(|naming| naming.name(number)).ok_or_else(|| {
                let what = format!("segment {number}, which this file's name does not lead to");
                Error::unsupported(FORMAT.name, what)
            })?;
            let device = self.companions.open(&beside(self.companions, std::slice::from_ref(&name))?)?;
            if number_of(device.as_ref())? != number {
                let what = format!("file header of {} (segment number)", printable(name.as_bytes()));
                return Err(Error::corrupt(FORMAT.name, what, 9));
            }
            device
        };
        self.opened.push(device);
        Ok(Some(number))
    }

    pub(super) fn current(&self) -> Result<&Device> {
        self.opened.last().ok_or(Error::Invalid)
    }

    /// The segment ends with a reference to another one.
    pub(super) fn expect_more(&mut self) {
        self.more = true;
    }

    /// The segment ends the set.
    pub(super) fn finish(&mut self) {
        self.more = false;
    }

    pub(super) fn count(&self) -> usize {
        self.opened.len()
    }

    /// First and last name.
    pub(super) fn names(&self) -> String {
        let name = |number| self.naming.as_ref().and_then(|naming| naming.name(number)).unwrap_or_default();
        let last = u32::try_from(self.opened.len()).unwrap_or(1);
        format!("{} to {}", printable(name(1).as_bytes()), printable(name(last).as_bytes()))
    }

    pub(super) fn into_devices(self) -> Vec<Device> {
        self.opened
    }
}

/// Section "File header": the segment's number.
fn number_of(device: &dyn BlockDevice) -> Result<u32> {
    let bytes = read_array::<13>(device, 0)?;
    let record = Record::new(FORMAT.name, "file header", 0, &bytes);
    let number = u32::from(record.le16(9)?);
    if !bytes.starts_with(b"EVF\x09\x0d\x0a\xff\x00") || number == 0 {
        return Err(record.corrupt());
    }
    Ok(number)
}

/// How the files of a set are called.
struct Naming {
    stem: String,
    /// `E` or `S`; in lower case when the given file's is.
    letter: u8,
}

impl Naming {
    /// From the name of segment `number`.
    fn parse(name: Option<&str>, number: u32) -> Option<Self> {
        let (stem, suffix) = name?.rsplit_once('.')?;
        let letters = if suffix.starts_with(|c: char| c.is_ascii_lowercase()) { b'a'..=b'z' } else { b'A'..=b'Z' };
        let mut namings = letters.map(|letter| Self { letter, stem: stem.to_owned() });
        namings.find(|naming| naming.suffix(number).is_some_and(|made| made.eq_ignore_ascii_case(suffix)))
    }

    fn name(&self, number: u32) -> Option<String> {
        Some(format!("{}.{}", self.stem, self.suffix(number)?))
    }

    /// 1 to 99 in digits, then letters from `AA`; past `ZZ` the first letter goes up.
    fn suffix(&self, number: u32) -> Option<String> {
        if number <= 99 {
            return Some(format!("{}{number:02}", char::from(self.letter)));
        }
        let count = number.checked_sub(100).filter(|_| number <= MAX_SEGMENTS)?;
        let base = if self.letter.is_ascii_lowercase() { b'a' } else { b'A' };
        let letter = |from: u8, by: u32| {
            let letter = from.checked_add(u8::try_from(by).ok()?)?;
            letter.is_ascii_alphabetic().then_some(char::from(letter))
        };
        let first = letter(self.letter, count / 676)?;
        let same_case = first.is_ascii_lowercase() == self.letter.is_ascii_lowercase();
        let second = letter(base, (count / 26) % 26)?;
        same_case.then_some(format!("{first}{second}{}", letter(base, count % 26)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_count_in_digits_and_then_in_letters() {
        let naming = Naming::parse(Some("case 1.E01"), 1).unwrap();
        let name = |number| naming.name(number).unwrap();
        assert_eq!([name(1), name(99), name(100), name(125)], ["case 1.E01", "case 1.E99", "case 1.EAA", "case 1.EAZ"]);
        assert_eq!([name(126), name(775), name(776)], ["case 1.EBA", "case 1.EZZ", "case 1.FAA"]);
        assert_eq!(name(MAX_SEGMENTS), "case 1.ZZZ");
        assert_eq!(naming.name(MAX_SEGMENTS + 1), None);
        assert_eq!(Naming::parse(Some("a.faa"), 776).unwrap().name(2).unwrap(), "a.e02");
        assert_eq!(Naming::parse(Some("a.s02"), 2).unwrap().name(100).unwrap(), "a.saa");
        assert!(Naming::parse(Some("a.E02"), 3).is_none() && Naming::parse(Some("a.bin"), 1).is_none());
    }
}
