//! The spool: the unpacked disk in a temporary file, as far as it was asked for.
//!
//! Each unit is filled from its start, so a unit is unpacked once and never again. The file has no
//! name, is sparse (zeros are not written) and goes with the process.
//!
//! ```text
//!   unit 0            unit 1            unit 2
//!   |#### ## ##-------|-----------------|## ##############|     # filled, - not yet
//!              ^ the unit's reader waits here
//! ```

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Units;
use super::index::folder;
use crate::cache::lock;
use crate::container::Options;
use crate::device::{BlockDevice, check_range};
use crate::error::{Error, Result};

/// Bound on the bytes written, unless told otherwise.
const DEFAULT_MAX: u64 = 64 << 30;
/// Unpacked in one go.
const STEP: u64 = 1 << 20;
/// Zeros are looked for in blocks of this size.
const BLOCK: usize = 4096;

pub(super) struct Spool {
    units: Units,
    file: File,
    fills: Vec<Fill>,
    written: AtomicU64,
    max: u64,
    options: Options,
}

/// How far a unit is filled.
#[derive(Default)]
struct Fill {
    /// Bytes from the unit's start; only grows, after they are in the file.
    done: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    reader: Option<Box<dyn Read + Send>>,
    /// What stopped the reader: it cannot go on.
    failed: Option<Error>,
}

impl Spool {
    pub(super) fn new(units: Units, options: &Options) -> Result<Self> {
        let fills = (0..units.count()).map(|_| Fill::default()).collect();
        let max = options.spool_max.unwrap_or(DEFAULT_MAX);
        Ok(Self { units, file: nameless(options)?, fills, written: AtomicU64::new(0), max, options: options.clone() })
    }

    /// Fills a unit as far as byte `until` of it. Whoever comes second waits for the first.
    fn fill(&self, unit: usize, start: u64, len: u64, until: u64) -> Result<()> {
        let fill = self.fills.get(unit).ok_or(Error::Invalid)?;
        if fill.done.load(Ordering::Acquire) >= until {
            return Ok(());
        }
        // Held while unpacking: there is one reader, and whoever waits here wants its bytes.
        let mut state = lock(&fill.state);
        // Of several units each is finished at once, so that no reader is left standing.
        let until = if self.units.count() > 1 { len } else { until };
        let mut block = Vec::new();
        while fill.done.load(Ordering::Acquire) < until {
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            match self.step(unit, start, len, fill, &mut state, &mut block) {
                Ok(()) => {}
                Err(error) => {
                    state.reader = None;
                    state.failed = Some(error);
                }
            }
        }
        Ok(())
    }

    fn step(
        &self,
        unit: usize,
        start: u64,
        len: u64,
        fill: &Fill,
        state: &mut State,
        block: &mut Vec<u8>,
    ) -> Result<()> {
        let done = fill.done.load(Ordering::Acquire);
        let reader = match &mut state.reader {
            Some(reader) => reader,
            None => state.reader.insert(self.units.codec.reader(unit)?),
        };
        let count = len.saturating_sub(done).min(STEP);
        block.resize(usize::try_from(count).map_err(|_| Error::Invalid)?, 0);
        self.units.fill(unit, reader.as_mut(), block)?;
        let now = done.saturating_add(count);
        if now >= len {
            self.units.finish(unit, reader.as_mut())?;
            state.reader = None;
        }
        self.write(block, start.saturating_add(done))?;
        fill.done.store(now, Ordering::Release);
        self.options.report("unpacking", start.saturating_add(now), self.units.size());
        Ok(())
    }

    /// Writes all blocks that are not zeros.
    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut at = offset;
        for block in bytes.chunks(BLOCK) {
            let here = at;
            at = at.saturating_add(block.len() as u64);
            if block.iter().all(|&byte| byte == 0) {
                continue;
            }
            let written = self.written.fetch_add(block.len() as u64, Ordering::Relaxed);
            if written.saturating_add(block.len() as u64) > self.max {
                let what =
                    format!("the spool of the {} image would pass its bound of {} bytes", self.units.format, self.max);
                return Err(Error::io(what, ErrorKind::StorageFull.into()));
            }
            self.file.write_all_at(block, here).map_err(|error| Error::io("writing the spool", error))?;
        }
        Ok(())
    }

    /// Reads filled bytes; past the end of the file are zeros that were not written.
    fn copy(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            match self.file.read_at(buf, offset) {
                Ok(0) => {
                    buf.fill(0);
                    return Ok(());
                }
                Ok(count) => {
                    buf = buf.get_mut(count..).unwrap_or_default();
                    offset = offset.saturating_add(count as u64);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("reading the spool", error)),
            }
        }
        Ok(())
    }
}

impl BlockDevice for Spool {
    fn size(&self) -> u64 {
        self.units.size()
    }

    fn sector_size(&self) -> u32 {
        512
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(buf.len(), offset, self.size())?;
        let end = offset.saturating_add(buf.len() as u64);
        let mut at = offset;
        while at < end {
            let unit = self.units.find(at)?;
            let (start, len) = self.units.span(unit)?;
            let until = end.saturating_sub(start).min(len);
            self.fill(unit, start, len, until)?;
            at = start.saturating_add(until);
        }
        self.copy(buf, offset)
    }
}

/// A file without a name, in the cache folder or where large temporary files belong; never in
/// `/tmp`, which is often in memory.
fn nameless(options: &Options) -> Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("spool-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let make = |folder: &Path| {
        let path = folder.join(&name);
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    };
    if let Some(file) = folder(options).and_then(|folder| make(&folder).ok()) {
        return Ok(file);
    }
    make(Path::new("/var/tmp")).map_err(|error: std::io::Error| Error::io("making a spool in /var/tmp", error))
}
