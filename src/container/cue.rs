//! Cue sheets: a text that names the files of a disc and says where in them its tracks begin.
//!
//! Specification: CDRWIN 3.8 user's guide, appendix A; `REM SESSION` as redump.org and ImgBurn
//! write it, `REM HIGH-DENSITY AREA` (of GD-ROMs) as redump.org does.
//!
//! ```text
//!   FILE "disc.bin" BINARY       one file, or one a track
//!     TRACK 01 MODE1/2352
//!       INDEX 01 00:00:00        time in the file; 75 sectors a second
//!     TRACK 02 AUDIO
//!       PREGAP 00:02:00          silence that is on the disc alone
//!       INDEX 00 10:00:00        the pregap, in the file
//!       INDEX 01 10:02:00        where the track begins
//! ```
//!
//! Supported: MODE1/2048, MODE1/2352, MODE2/2048, MODE2/2324, MODE2/2336, MODE2/2352, CDI/2336,
//! CDI/2352 and AUDIO; several files, files of mixed sector sizes, BINARY, MOTOROLA and WAVE; names
//! in another case or code page than the file's; sessions; both areas of GD-ROMs.
//! Not supported: CDG tracks; MP3, AIFF and FLAC files, whose tracks are left out.

use super::disc::{Disc, Form, GD_HIGH, Piece, Track, parse_msf, session_gap};
use super::files::{Files, Placed};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::device::{BlockDevice, Device, read_vec};
use crate::error::{Error, Result};
use crate::text::{printable, utf16_to_bytes};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "cue", snapshots: false, probe, open };

/// Longer than any cue sheet: 99 tracks with all their texts.
const MAX_LEN: u64 = 512 << 10;
/// What is read to know one.
const PROBED: u64 = 4096;
const MAX_TRACKS: usize = 99;

const COMMANDS: [&[u8]; 13] = [
    b"CATALOG",
    b"CDTEXTFILE",
    b"FILE",
    b"FLAGS",
    b"INDEX",
    b"ISRC",
    b"PERFORMER",
    b"POSTGAP",
    b"PREGAP",
    b"REM",
    b"SONGWRITER",
    b"TITLE",
    b"TRACK",
];

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    let len = device.size().min(PROBED);
    if device.size() > MAX_LEN || len < 16 {
        return Ok(false);
    }
    let text = read_text(device, len)?;
    let mut lines = lines(&text).filter(|line| !line.words.is_empty());
    let known = lines.next().is_some_and(|line| line.command().is_some()) && !text.contains(&0);
    // A sheet of many remarks names its file behind what was read.
    Ok(known && (device.size() > PROBED || lines_have_track(&text)))
}

/// The first `len` bytes of the sheet. Notepad and EAC save UTF-16 as well, with its mark.
fn read_text(device: &dyn BlockDevice, len: u64) -> Result<Vec<u8>> {
    let bytes = read_vec(device, 0, usize::try_from(len).map_err(|_| Error::Invalid)?)?;
    let decode =
        |rest: &[u8], unit: fn([u8; 2]) -> u16| utf16_to_bytes(rest.as_chunks::<2>().0.iter().map(|&two| unit(two)));
    Ok(match bytes.as_slice() {
        [0xff, 0xfe, rest @ ..] => decode(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => decode(rest, u16::from_be_bytes),
        _ => bytes,
    })
}

fn lines_have_track(text: &[u8]) -> bool {
    let mut tracks = lines(text).filter(|line| line.command() == Some(b"TRACK"));
    tracks.any(|line| line.word(1).iter().all(u8::is_ascii_digit) && line.words.len() > 2)
}

/// A line of the sheet.
struct Line<'a> {
    /// First byte.
    at: u64,
    words: Vec<&'a [u8]>,
}

impl<'a> Line<'a> {
    fn word(&self, index: usize) -> &'a [u8] {
        self.words.get(index).copied().unwrap_or_default()
    }

    /// The command in upper case, when it is one.
    fn command(&self) -> Option<&'static [u8]> {
        COMMANDS.into_iter().find(|command| command.eq_ignore_ascii_case(self.word(0)))
    }

    fn damaged(&self) -> Error {
        let shown: Vec<String> = self.words.iter().map(|word| printable(word)).collect();
        let shown: String = shown.join(" ").chars().take(80).collect();
        Error::corrupt(FORMAT.name, format!("the line \"{shown}\""), self.at)
    }

    fn number(&self, index: usize) -> Result<u32> {
        let text = std::str::from_utf8(self.word(index)).ok().filter(|text| text.len() <= 3);
        text.and_then(|text| text.parse().ok()).ok_or_else(|| self.damaged())
    }

    fn msf(&self, index: usize) -> Result<u64> {
        parse_msf(self.word(index)).ok_or_else(|| self.damaged())
    }
}

/// Words are apart by blanks; quotation marks hold a word together.
fn lines(text: &[u8]) -> impl Iterator<Item = Line<'_>> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut at = 0u64;
    text.split(|&b| b == b'\n' || b == b'\r').map(move |line| {
        let start = at;
        at = at.saturating_add(line.len() as u64).saturating_add(1);
        Line { at: start, words: words(line) }
    })
}

fn words(line: &[u8]) -> Vec<&[u8]> {
    let mut words = Vec::new();
    let mut rest = line.trim_ascii();
    while let Some((first, behind)) = rest.split_first() {
        let quoted = *first == b'"';
        let from = if quoted { behind } else { rest };
        let ends = |b: &u8| if quoted { *b == b'"' } else { b.is_ascii_whitespace() };
        let end = from.iter().position(ends).unwrap_or(from.len());
        let (word, behind) = from.split_at_checked(end).unwrap_or((from, &[]));
        words.push(word);
        rest = behind.strip_prefix(b"\"").filter(|_| quoted).unwrap_or(behind).trim_ascii();
    }
    words
}

/// A FILE command and the tracks below it.
struct Source<'a> {
    name: Vec<u8>,
    kind: Vec<u8>,
    tracks: Vec<Entry>,
    line: Line<'a>,
}

/// A TRACK command.
struct Entry {
    number: u32,
    session: u32,
    /// In the high-density area of a GD-ROM.
    high: bool,
    form: Form,
    /// Sectors on the disc alone.
    pregap: u64,
    postgap: u64,
    /// Index 0, sector of the file.
    index0: Option<u64>,
    /// Index 1, sector of the file.
    index1: Option<u64>,
    line_at: u64,
}

fn parse(text: &[u8]) -> Result<Vec<Source<'_>>> {
    let mut sources: Vec<Source<'_>> = Vec::new();
    let mut session = 1u32;
    let mut high = false;
    let mut count = 0usize;
    // A track before the first file.
    let mut early: Option<Entry> = None;
    for line in lines(text) {
        let track = sources.last_mut().and_then(|source| source.tracks.last_mut());
        match (line.command(), track) {
            (Some(b"FILE"), _) => {
                // A name with blanks is not always in quotation marks: the last word is the kind.
                let words = line.words.get(1..).unwrap_or_default();
                let (kind, name) =
                    words.split_last().filter(|(_, name)| !name.is_empty()).ok_or_else(|| line.damaged())?;
                let (kind, name) = (kind.to_ascii_uppercase(), name.join(&b' '));
                // A track that has not begun is of this file: EAC leaves the gap before it in the previous one
                // ("non-compliant"), and others write TRACK first.
                let begun = |track: &Entry| track.index1.is_some();
                let early = match sources.last_mut() {
                    Some(source) => source.tracks.pop_if(|track| !begun(track)),
                    None => early.take(),
                };
                let tracks = early.into_iter().map(|track| Entry { index0: None, ..track }).collect();
                sources.push(Source { name, kind, tracks, line });
            }
            (Some(b"TRACK"), _) => {
                count = count.saturating_add(1);
                if count > MAX_TRACKS {
                    return Err(line.damaged());
                }
                let track = Entry {
                    number: line.number(1)?,
                    session,
                    high,
                    form: form(&line)?,
                    pregap: 0,
                    postgap: 0,
                    index0: None,
                    index1: None,
                    line_at: line.at,
                };
                match sources.last_mut() {
                    Some(source) => source.tracks.push(track),
                    None if early.is_none() => early = Some(track),
                    None => return Err(line.damaged()),
                }
            }
            (Some(b"INDEX"), Some(track)) => match line.number(1)? {
                0 => track.index0 = Some(line.msf(2)?),
                1 => track.index1 = Some(line.msf(2)?),
                _ => {}
            },
            (Some(b"PREGAP"), Some(track)) => track.pregap = line.msf(1)?,
            (Some(b"POSTGAP"), Some(track)) => track.postgap = line.msf(1)?,
            (Some(b"CATALOG"), _) if line.words.len() < 2 => return Err(line.damaged()),
            (Some(b"REM"), _) if line.word(1).eq_ignore_ascii_case(b"SESSION") => session = line.number(2)?.max(1),
            (Some(b"REM"), _) if line.word(1).eq_ignore_ascii_case(b"HIGH-DENSITY") => high = true,
            (Some(b"INDEX" | b"PREGAP" | b"POSTGAP"), None) => return Err(line.damaged()),
            _ => {}
        }
    }
    match early {
        Some(track) => {
            Err(Error::corrupt(FORMAT.name, format!("track {} (there is no file)", track.number), track.line_at))
        }
        None => Ok(sources),
    }
}

fn form(line: &Line<'_>) -> Result<Form> {
    Ok(match line.word(2).to_ascii_uppercase().as_slice() {
        b"AUDIO" => Form::Audio,
        b"MODE1/2048" | b"MODE2/2048" => Form::Cooked,
        b"MODE1/2352" => Form::Raw { mode: 1 },
        b"MODE2/2352" | b"CDI/2352" => Form::Raw { mode: 2 },
        b"MODE2/2336" | b"CDI/2336" => Form::Mode2,
        b"MODE2/2324" => Form::Form2,
        b"CDG" => return Err(Error::unsupported(FORMAT.name, "a CDG track")),
        _ => return Err(line.damaged()),
    })
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    if file.size() > MAX_LEN {
        return Err(Error::corrupt(FORMAT.name, "the sheet (too long)", 0));
    }
    let text = read_text(file.as_ref(), file.size())?;
    let sources = parse(&text)?;
    let only = sources.len() == 1;
    let mut disc = Layout::default();
    let mut files = Files::default();
    let mut notes = Vec::new();
    for source in &sources {
        let opened = open_source(source, &mut files, companions, only);
        match opened {
            Ok(bytes) => disc.add(source, &bytes)?,
            // Sound that is lost or packed does not take the data with it.
            Err(error) if !source.has_data() && sources.iter().any(Source::has_data) => {
                notes.push(format!("{} is left out: {error}", printable(&source.name)));
                disc.incomplete = true;
            }
            Err(error) => return Err(error),
        }
    }
    if disc.incomplete && disc.tracks.iter().filter(|track| track.form != Form::Audio).count() > 1 {
        notes
            .push("how long the tracks that are left out are is not known: later sessions may not be found".to_owned());
    }
    notes.append(&mut files.notes);
    let gd_rom = sources.iter().flat_map(|source| &source.tracks).any(|track| track.high);
    let disc = Disc { format: FORMAT.name, data: files.into_device()?, tracks: disc.tracks, notes };
    if gd_rom { disc.open_gd_rom(options) } else { disc.open(options) }
}

impl Source<'_> {
    fn has_data(&self) -> bool {
        self.tracks.iter().any(|track| track.form != Form::Audio)
    }
}

/// A file's sectors: where they begin in the common space, and their length.
struct Bytes {
    at: u64,
    len: u64,
}

fn open_source(source: &Source<'_>, files: &mut Files, companions: &dyn Companions, only: bool) -> Result<Bytes> {
    match source.kind.as_slice() {
        b"BINARY" | b"MOTOROLA" => {
            let Placed { device, at } = files.open(companions, &source.name, only)?;
            Ok(Bytes { at, len: device.size() })
        }
        b"WAVE" => {
            let Placed { device, at } = files.open(companions, &source.name, only)?;
            let (start, len) = wave_samples(device.as_ref())?;
            Ok(Bytes { at: at.saturating_add(start), len })
        }
        b"MP3" | b"AIFF" | b"FLAC" | b"OGG" => {
            Err(Error::unsupported(FORMAT.name, format!("a file of kind {}", printable(&source.kind))))
        }
        _ => Err(source.line.damaged()),
    }
}

/// Chunks that are looked at in a WAV file.
const MAX_CHUNKS: usize = 64;

/// Where in a WAV file the samples are.
pub(super) fn wave_samples(device: &dyn BlockDevice) -> Result<(u64, u64)> {
    let damaged = |at| Error::corrupt(FORMAT.name, "WAV file", at);
    let magic = crate::device::probe_array::<12>(device, 0)?.ok_or_else(|| damaged(0))?;
    if !magic.starts_with(b"RIFF") || !magic.ends_with(b"WAVE") {
        return Err(damaged(0));
    }
    let mut at = 12u64;
    for _ in 0..MAX_CHUNKS {
        let [a, b, c, d, len @ ..] = crate::device::probe_array::<8>(device, at)?.ok_or_else(|| damaged(at))?;
        let len = u64::from(u32::from_le_bytes(len));
        at = at.saturating_add(8);
        if &[a, b, c, d] == b"data" {
            return Ok((at, len.min(device.size().saturating_sub(at))));
        }
        at = at.saturating_add(len.next_multiple_of(2));
    }
    Err(damaged(at))
}

/// The disc as far as it is laid out.
#[derive(Default)]
struct Layout {
    tracks: Vec<Track>,
    /// Sector of the disc that comes next.
    next: u64,
    session: u32,
    incomplete: bool,
}

impl Layout {
    /// Lays out the tracks of a file.
    fn add(&mut self, source: &Source<'_>, bytes: &Bytes) -> Result<()> {
        let mut at = 0u64;
        let mut done = 0u64;
        for (index, entry) in source.tracks.iter().enumerate() {
            let damaged = || {
                let what = format!("track {} (its indexes are missing, or go back)", entry.number);
                Error::corrupt(FORMAT.name, what, entry.line_at)
            };
            let begins = entry.index1.ok_or_else(damaged)?;
            let first = entry.index0.unwrap_or(begins);
            // What stands before the first index of a file belongs to no track, but takes room.
            let pregap = begins.checked_sub(first).ok_or_else(damaged)?;
            let skipped = first.checked_sub(done).ok_or_else(damaged)?;
            let stride = entry.form.len();
            at = at.saturating_add(skipped.saturating_mul(stride));
            self.next = self.next.saturating_add(skipped);
            if entry.session > self.session {
                if self.session > 0 {
                    let there = pregap.saturating_add(entry.pregap);
                    self.next = self.next.saturating_add(session_gap(self.session, there));
                }
                self.session = entry.session;
            }
            if entry.high {
                self.next = self.next.max(GD_HIGH);
            }
            let following = source.tracks.get(index.saturating_add(1));
            let end = following.and_then(|next| next.index0.or(next.index1));
            let to_end = bytes.len.saturating_sub(at).checked_div(stride).unwrap_or(0);
            let whole = match (following, end) {
                (Some(_), Some(end)) => end.checked_sub(first).ok_or_else(damaged)?,
                _ => to_end,
            };
            let count = whole.saturating_sub(pregap);
            let lba = self.next.saturating_add(entry.pregap).saturating_add(pregap);
            let start = bytes.at.saturating_add(at).saturating_add(pregap.saturating_mul(stride));
            self.tracks.push(Track {
                session: entry.session,
                lba,
                big_endian: source.kind == b"MOTOROLA",
                ..Track::new(entry.number, entry.form, Piece { count, at: Some(start) })
            });
            self.next = lba.saturating_add(count).saturating_add(entry.postgap);
            at = at.saturating_add(whole.saturating_mul(stride));
            done = first.saturating_add(whole);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(text: &str, len: u64) -> Result<Vec<Track>> {
        let mut disc = Layout::default();
        let mut at = 0;
        for source in parse(text.as_bytes())? {
            disc.add(&source, &Bytes { at, len })?;
            at += len;
        }
        Ok(disc.tracks)
    }

    #[test]
    fn pregaps_in_the_file_and_on_the_disc_alone_move_what_follows() {
        let sheet = "FILE \"a b.bin\" BINARY\n TRACK 01 MODE1/2352\n INDEX 01 00:00:00\n \
                     TRACK 02 AUDIO\n INDEX 00 00:01:00\n INDEX 01 00:03:00\n \
                     TRACK 03 MODE2/2336\n PREGAP 00:02:00\n INDEX 01 00:04:00\n";
        let tracks = layout(sheet, 2352 * 300 + 2336 * 10).unwrap();
        let shape: Vec<_> =
            tracks.iter().map(|track| (track.lba, track.count(), track.pieces[0].at.unwrap())).collect();
        assert_eq!(shape, [(0, 75, 0), (225, 75, 225 * 2352), (450, 10, 300 * 2352)]);
    }

    #[test]
    fn a_second_session_lies_behind_lead_out_and_lead_in() {
        let track = |n: u32| format!("FILE {n}.bin BINARY\n  TRACK 0{n} MODE1/2048\n    INDEX 01 00:00:00\n");
        let sheet = format!("REM SESSION 01\n{}REM SESSION 02\n{}REM SESSION 3\n{}", track(1), track(2), track(3));
        let lbas: Vec<u64> = layout(&sheet, 2048 * 100).unwrap().iter().map(|track| track.lba).collect();
        assert_eq!(lbas, [0, 100 + 11_400, 100 + 11_400 + 100 + 6_900]);
    }

    #[test]
    fn a_line_that_makes_no_sense_is_shown_in_the_error() {
        for (sheet, line) in [
            ("FILE a BINARY\nTRACK 01 AUDIO\nINDEX 01 00:00:100", "INDEX 01 00:00:100"),
            ("FILE a BINARY\nTRACK 01 MODE3_FORM1", "TRACK 01 MODE3_FORM1"),
            ("CATALOG\n", "CATALOG"),
            ("TRACK 01 AUDIO", "track 1 (there is no file)"),
            ("TRACK 01 AUDIO\nTRACK 02 AUDIO", "TRACK 02 AUDIO"),
            ("FILE a\n", "FILE a"),
        ] {
            let error = parse(sheet.as_bytes()).err().unwrap().to_string();
            assert!(error.contains(line), "{error}");
        }
        let back = "FILE a BINARY\nTRACK 01 AUDIO\nINDEX 01 00:02:00\nTRACK 02 AUDIO\nINDEX 01 00:01:00";
        assert!(layout(back, 1 << 20).is_err());
    }
}
