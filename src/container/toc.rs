//! cdrdao's tables of contents: a text that names, for each track, the files or the silence it is
//! made of.
//!
//! Specification: cdrdao(1), "TOC FILES".
//!
//! ```text
//!   CD_ROM_XA
//!   TRACK MODE1_RAW [RW_RAW]
//!     FILE "disc.bin" [#byte] 00:00:00 [length]     DATAFILE "disc.bin" [#byte] [length]
//!     SILENCE length    ZERO length    PREGAP length    START [pregap]    END    INDEX time
//! ```
//!
//! Supported: all modes of tracks, subchannels (skipped), several files a track, pregaps.
//! Not supported: FIFO; sessions, which these files do not have.

use super::cue::wave_samples;
use super::disc::{Disc, Form, Piece, Track, parse_msf};
use super::files::{Files, Placed};
use super::{Companions, ContainerFormat, Opened, Options};
use crate::device::{BlockDevice, Device, probe_array, read_vec};
use crate::error::{Error, Result};
use crate::text::printable;

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "toc", snapshots: false, probe, open };

/// Longer than any: 99 tracks with all their texts.
const MAX_LEN: u64 = 512 << 10;
const PROBED: u64 = 4096;
const MAX_TRACKS: usize = 99;
/// Pieces in all; a track of sound is at times put together from many.
const MAX_PIECES: usize = 10_000;
/// Samples of a sector of sound: the unit of lengths that are plain numbers.
const SAMPLES: u64 = 588;

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    let len = device.size().min(PROBED);
    if device.size() > MAX_LEN {
        return Ok(false);
    }
    let text = read_vec(device, 0, usize::try_from(len).map_err(|_| Error::Invalid)?)?;
    let mut words = Words::new(&text);
    let Some(first) = words.next() else { return Ok(false) };
    let second = words.next();
    let toc = match (first.text, second.map(|word| word.text)) {
        (b"CD_DA" | b"CD_ROM" | b"CD_ROM_XA" | b"CD_I", Some(b"TRACK" | b"CATALOG" | b"CD_TEXT")) => true,
        (b"TRACK", Some(mode)) => track_form(mode).is_some(),
        (b"CATALOG", Some(second)) => second == b"TRACK" || words.any(|word| word.text == b"TRACK"),
        _ => false,
    };
    Ok(toc && !text.contains(&0))
}

/// A word, a quoted string (without its marks), or a brace.
#[derive(Clone, Copy)]
struct Word<'a> {
    at: u64,
    text: &'a [u8],
    quoted: bool,
}

struct Words<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Words<'a> {
    fn new(all: &'a [u8]) -> Self {
        Self { all, at: 0 }
    }

    fn rest(&self) -> &'a [u8] {
        self.all.get(self.at..).unwrap_or_default()
    }

    fn skip(&mut self, count: usize) {
        self.at = self.at.saturating_add(count);
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = Word<'a>;

    fn next(&mut self) -> Option<Word<'a>> {
        loop {
            let rest = self.rest();
            let blank = rest.iter().position(|b| !b.is_ascii_whitespace())?;
            self.skip(blank);
            if !self.rest().starts_with(b"//") {
                break;
            }
            let line = self.rest().iter().position(|&b| b == b'\n')?;
            self.skip(line);
        }
        let at = self.at as u64;
        let rest = self.rest();
        match rest.first()? {
            b'"' => {
                self.skip(1);
                let mut escaped = false;
                let ends = |&b: &u8| {
                    let end = b == b'"' && !escaped;
                    escaped = b == b'\\' && !escaped;
                    end
                };
                let len = self.rest().iter().position(ends).unwrap_or(self.rest().len());
                let text = self.rest().get(..len)?;
                self.skip(len.saturating_add(1));
                Some(Word { at, text, quoted: true })
            }
            b'{' | b'}' | b'#' => {
                self.skip(1);
                Some(Word { at, text: rest.get(..1)?, quoted: false })
            }
            _ => {
                let ends = |b: &u8| b.is_ascii_whitespace() || matches!(b, b'"' | b'{' | b'}');
                let len = rest.iter().position(ends).unwrap_or(rest.len()).max(1);
                self.skip(len);
                Some(Word { at, text: rest.get(..len)?, quoted: false })
            }
        }
    }
}

impl Word<'_> {
    fn damaged(&self) -> Error {
        let shown: String = printable(self.text).chars().take(80).collect();
        Error::corrupt(FORMAT.name, format!("the word \"{shown}\""), self.at)
    }

    fn number(&self) -> Option<u64> {
        let text = std::str::from_utf8(self.text).ok().filter(|_| !self.quoted)?;
        text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
    }

    /// A length or place in sectors: a time, or a number of units.
    fn sectors(&self, unit: u64) -> Result<u64> {
        let number = || self.number().and_then(|number| number.checked_div(unit));
        parse_msf(self.text).or_else(number).ok_or_else(|| self.damaged())
    }

    fn is_length(&self) -> bool {
        !self.quoted && self.text.first().is_some_and(u8::is_ascii_digit)
    }
}

fn track_form(mode: &[u8]) -> Option<Form> {
    Some(match mode {
        b"AUDIO" => Form::Audio,
        b"MODE1" | b"MODE2_FORM1" => Form::Cooked,
        b"MODE1_RAW" => Form::Raw { mode: 1 },
        b"MODE2_RAW" => Form::Raw { mode: 2 },
        b"MODE2" | b"MODE2_FORM_MIX" => Form::Mode2,
        b"MODE2_FORM2" => Form::Form2,
        _ => return None,
    })
}

fn open(file: Device, companions: &dyn Companions, options: &Options) -> Result<Opened> {
    if file.size() > MAX_LEN {
        return Err(Error::corrupt(FORMAT.name, "the table of contents (too long)", 0));
    }
    let text = read_vec(file.as_ref(), 0, usize::try_from(file.size()).map_err(|_| Error::Invalid)?)?;
    let mut reader = Reader { words: Words::new(&text).peekable(), companions, layout: Layout::default() };
    reader.read()?;
    let Layout { tracks, mut files, mut notes, .. } = reader.layout;
    notes.append(&mut files.notes);
    Disc { format: FORMAT.name, data: files.into_device()?, tracks, notes }.open(options)
}

#[derive(Default)]
struct Layout {
    tracks: Vec<Track>,
    files: Files,
    placed: Vec<(Vec<u8>, Source)>,
    notes: Vec<String>,
    /// Sector of the disc that comes next.
    next: u64,
    pieces: usize,
}

struct Reader<'a> {
    words: std::iter::Peekable<Words<'a>>,
    companions: &'a dyn Companions,
    layout: Layout,
}

impl<'a> Reader<'a> {
    fn word(&mut self) -> Result<Word<'a>> {
        self.words.next().ok_or_else(|| Error::corrupt(FORMAT.name, "the end of the table of contents", 0))
    }

    /// The next word when it is a length or a time.
    fn length(&mut self) -> Option<Word<'a>> {
        self.words.next_if(Word::is_length)
    }

    fn read(&mut self) -> Result<()> {
        while let Some(word) = self.words.next() {
            match word.text {
                _ if word.quoted => return Err(word.damaged()),
                b"CD_DA" | b"CD_ROM" | b"CD_ROM_XA" | b"CD_I" | b"COPY" | b"NO" | b"PRE_EMPHASIS" => {}
                b"TWO_CHANNEL_AUDIO" | b"FOUR_CHANNEL_AUDIO" => {}
                b"CATALOG" | b"ISRC" => {
                    self.words.next_if(|word| word.quoted).ok_or_else(|| word.damaged())?;
                }
                b"CD_TEXT" => self.skip_block()?,
                b"TRACK" => self.track(&word)?,
                b"FILE" | b"AUDIOFILE" | b"DATAFILE" => self.file(word.text == b"DATAFILE")?,
                b"SILENCE" | b"ZERO" => self.zeros(false)?,
                b"PREGAP" => self.zeros(true)?,
                b"START" => self.start()?,
                b"END" => drop(self.length()),
                b"INDEX" => drop(self.word()?.sectors(SAMPLES)?),
                b"FIFO" => return Err(Error::unsupported(FORMAT.name, "FIFO")),
                _ => return Err(word.damaged()),
            }
        }
        Ok(())
    }

    fn skip_block(&mut self) -> Result<()> {
        let mut depth = 0u32;
        loop {
            let word = self.word()?;
            match word.text {
                b"{" if !word.quoted => depth = depth.saturating_add(1),
                b"}" if !word.quoted => depth = depth.saturating_sub(1),
                _ => continue,
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    fn track(&mut self, command: &Word<'a>) -> Result<()> {
        let mode = self.word()?;
        let form = track_form(mode.text).ok_or_else(|| mode.damaged())?;
        let number = u32::try_from(self.layout.tracks.len().saturating_add(1)).unwrap_or(u32::MAX);
        if self.layout.tracks.len() >= MAX_TRACKS {
            return Err(command.damaged());
        }
        let sub = self.words.next_if(|word| matches!(word.text, b"RW" | b"RW_RAW")).is_some();
        let mut track = Track::new(number, form, Piece { count: 0, at: None });
        track.pieces.clear();
        track.stride = form.len().saturating_add(if sub { 96 } else { 0 });
        track.lba = self.layout.next;
        // cdrdao's own files of sound have the high byte first.
        track.big_endian = true;
        self.layout.tracks.push(track);
        Ok(())
    }

    fn push(&mut self, word: &Word<'a>, piece: Piece) -> Result<()> {
        let layout = &mut self.layout;
        layout.pieces = layout.pieces.saturating_add(1);
        let track = layout.tracks.last_mut().filter(|_| layout.pieces <= MAX_PIECES).ok_or_else(|| word.damaged())?;
        track.pieces.push(piece);
        layout.next = layout.next.saturating_add(piece.count);
        Ok(())
    }

    /// SILENCE, ZERO and PREGAP; a pregap lies before the track's own first sector.
    fn zeros(&mut self, pregap: bool) -> Result<()> {
        let mut word = self.word()?;
        while !word.is_length() && (track_form(word.text).is_some() || matches!(word.text, b"RW" | b"RW_RAW")) {
            word = self.word()?;
        }
        let count = word.sectors(SAMPLES)?;
        self.push(&word, Piece { count, at: None })?;
        if pregap {
            self.start_at(count);
        }
        Ok(())
    }

    /// START: what came so far, or its first sectors, is pregap.
    fn start(&mut self) -> Result<()> {
        let so_far = self.layout.tracks.last().map_or(0, Track::count);
        let count = match self.length() {
            Some(word) => word.sectors(SAMPLES)?,
            None => so_far,
        };
        self.start_at(count);
        Ok(())
    }

    /// Takes the first sectors off the track.
    fn start_at(&mut self, count: u64) {
        let Some(track) = self.layout.tracks.last_mut() else { return };
        let mut left = count;
        for piece in &mut track.pieces {
            let here = piece.count.min(left);
            piece.count = piece.count.saturating_sub(here);
            piece.at = piece.at.map(|at| at.saturating_add(here.saturating_mul(track.stride)));
            left = left.saturating_sub(here);
            track.lba = track.lba.saturating_add(here);
        }
        track.pieces.retain(|piece| piece.count > 0);
    }

    fn file(&mut self, data: bool) -> Result<()> {
        let name = self.words.next_if(|word| word.quoted);
        let name = name.ok_or_else(|| Error::corrupt(FORMAT.name, "a file without a name", 0))?;
        let offset = match self.words.next_if(|word| word.text == b"#" && !word.quoted) {
            Some(mark) => self.word()?.number().ok_or_else(|| mark.damaged())?,
            None => 0,
        };
        let (form, stride) = self.layout.tracks.last().map(|t| (t.form, t.stride)).ok_or_else(|| name.damaged())?;
        // Plain numbers count samples, and in a file of data bytes.
        let unit = if data { stride } else { SAMPLES };
        let start = if data { None } else { self.length() };
        let start = start.map_or(Ok(0), |word| word.sectors(unit))?;
        let length = self.length().map(|word| word.sectors(unit)).transpose()?.filter(|&count| count > 0);
        let Source { at, size, wave } = match self.place(name.text) {
            Ok(found) => found,
            Err(error) if form == Form::Audio => {
                self.layout.notes.push(format!("{} is left out: {error}", printable(name.text)));
                return self.push(&name, Piece { count: length.unwrap_or(0), at: None });
            }
            Err(error) => return Err(error),
        };
        if let Some(track) = self.layout.tracks.last_mut().filter(|_| wave) {
            track.big_endian = false;
        }
        let skipped = offset.saturating_add(start.saturating_mul(stride));
        let rest = size.saturating_sub(skipped).checked_div(stride).unwrap_or(0);
        let piece = Piece { count: length.unwrap_or(rest), at: Some(at.saturating_add(skipped)) };
        self.push(&name, piece)
    }

    /// Opens a file, once.
    fn place(&mut self, name: &[u8]) -> Result<Source> {
        if let Some((_, source)) = self.layout.placed.iter().find(|(known, _)| known == name) {
            return Ok(*source);
        }
        let Placed { device, at } = self.layout.files.open(self.companions, name, false)?;
        let wave = probe_array::<4>(device.as_ref(), 0)?.as_ref() == Some(b"RIFF");
        let (start, size) = if wave { wave_samples(device.as_ref())? } else { (0, device.size()) };
        let source = Source { at: at.saturating_add(start), size, wave };
        self.layout.placed.push((name.to_vec(), source));
        Ok(source)
    }
}

/// A file's bytes in the common space.
#[derive(Clone, Copy)]
struct Source {
    at: u64,
    size: u64,
    /// A WAV file: its samples, low byte first.
    wave: bool,
}
