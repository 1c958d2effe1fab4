//! Tables of runs, from the property list or the resource fork.

use super::{FORMAT, MAX_RUN, SECTOR, Sum, Trailer, checksum};
use crate::bytes::Record;
use crate::device::{BlockDevice, read_vec};
use crate::error::{Error, Result};
use crate::text::from_base64;

/// A property list of more: millions of runs, several TiB of disk.
const MAX_LIST: u64 = 64 << 20;

/// How a run is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Zero,
    Raw,
    Adc,
    Zlib,
    Bzip2,
    Lzfse,
    Lzma,
}

impl Kind {
    /// `None` for what is no run: comments, the end.
    fn parse(code: u32) -> Result<Option<Self>> {
        Ok(Some(match code {
            0 | 2 => Self::Zero,
            1 => Self::Raw,
            0x8000_0004 => Self::Adc,
            0x8000_0005 => Self::Zlib,
            0x8000_0006 => Self::Bzip2,
            0x8000_0007 => Self::Lzfse,
            0x8000_0008 => Self::Lzma,
            0x7fff_fffe | 0xffff_ffff => return Ok(None),
            _ => return Err(Error::unsupported(FORMAT.name, format!("the run type {code:#010x}"))),
        }))
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Raw => "stored",
            Self::Adc => "ADC",
            Self::Zlib => "zlib",
            Self::Bzip2 => "bzip2",
            Self::Lzfse => "LZFSE",
            Self::Lzma => "LZMA",
        }
    }

    pub(super) fn packed(self) -> bool {
        !matches!(self, Self::Zero | Self::Raw)
    }
}

/// A run of sectors; all in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) kind: Kind,
    /// In the file.
    pub(super) at: u64,
    pub(super) packed: u64,
}

/// What the checksum of a table is of.
pub(super) struct TableSum {
    /// First byte on the disk, and length of the table's partition.
    pub(super) start: u64,
    pub(super) len: u64,
    /// The bytes that count, start and end: all but those that are marked to be ignored.
    pub(super) counted: Vec<(u64, u64)>,
    pub(super) sum: Option<Sum>,
}

/// Type of a run whose sectors are free: they read as zeros, and no checksum counts them.
const IGNORED: u32 = 2;

/// What the tables say of their sectors, and all runs in order.
pub(super) fn read_all(device: &dyn BlockDevice, trailer: &Trailer) -> Result<(Vec<TableSum>, Vec<Piece>)> {
    let from_list = trailer.xml.1 > 0;
    let (at, len) = if from_list { trailer.xml } else { trailer.resources };
    if len > MAX_LIST {
        return Err(Error::unsupported(FORMAT.name, format!("a property list of {len} bytes")));
    }
    let bytes = read_vec(device, at, usize::try_from(len).map_err(|_| Error::Invalid)?)?;
    let tables = if from_list { from_property_list(&bytes) } else { from_resources(&bytes) };
    let tables = tables.ok_or_else(|| {
        Error::corrupt(FORMAT.name, if from_list { "property list (blkx)" } else { "resource fork (blkx)" }, at)
    })?;
    let mut pieces = Vec::new();
    let mut sums = Vec::new();
    for table in &tables {
        sums.push(read_table(table, at, device.size(), trailer.data_at, &mut pieces)?);
    }
    pieces.sort_by_key(|piece| piece.start);
    let overlap = |pair: &[Piece]| match pair {
        [one, two] => one.start.saturating_add(one.len) > two.start,
        _ => false,
    };
    if pieces.windows(2).any(overlap) {
        return Err(Error::corrupt(FORMAT.name, "table (runs that overlap)", at));
    }
    Ok((sums, pieces))
}

/// Section "UDIF XML plist": the base-64 data of the array `blkx`.
fn from_property_list(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let text = String::from_utf8_lossy(bytes);
    let (_, rest) = text.split_once("<key>blkx</key>")?;
    let (_, rest) = rest.split_once("<array>")?;
    let (array, _) = rest.split_once("</array>")?;
    let data = array.split("<data>").skip(1);
    data.map(|data| from_base64(data.split_once("</data>")?.0)).collect()
}

/// Inside Macintosh, "Resource File Format": the resources of type `blkx`.
fn from_resources(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let fork = Record::new(FORMAT.name, "resource fork", 0, bytes);
    let size = |n: u32| usize::try_from(n).ok();
    let (data_at, map_at) = (size(fork.be32(0).ok()?)?, size(fork.be32(4).ok()?)?);
    let types_at = map_at.checked_add(fork.be16(map_at.checked_add(24)?).ok()?.into())?;
    let count = usize::from(fork.be16(types_at).ok()?).checked_add(1)?;
    let mut tables = Vec::new();
    for index in 0..count {
        let row = types_at.checked_add(2)?.checked_add(index.checked_mul(8)?)?;
        if fork.bytes(row, 4).ok()? != b"blkx" {
            continue;
        }
        let resources = usize::from(fork.be16(row.checked_add(4)?).ok()?).checked_add(1)?;
        let list_at = types_at.checked_add(fork.be16(row.checked_add(6)?).ok()?.into())?;
        for resource in 0..resources {
            let reference = list_at.checked_add(resource.checked_mul(12)?)?;
            let place = fork.be32(reference.checked_add(4)?).ok()? & 0xff_ffff;
            let at = data_at.checked_add(size(place)?)?;
            let len = size(fork.be32(at).ok()?)?;
            tables.push(fork.bytes(at.checked_add(4)?, len).ok()?.to_vec());
        }
    }
    (!tables.is_empty()).then_some(tables)
}

/// No packer makes more of so many bytes; all that a run claims is read at once.
fn largest_packed(len: u64) -> u64 {
    len.saturating_add(len / 8).saturating_add(64 << 10)
}

/// The block table: 204 bytes, then 40 a run.
fn read_table(bytes: &[u8], at: u64, file_size: u64, data_at: u64, pieces: &mut Vec<Piece>) -> Result<TableSum> {
    let table = Record::new(FORMAT.name, "block table", at, bytes);
    if table.bytes(0, 4)? != b"mish" {
        return Err(table.corrupt_field("signature"));
    }
    let (first, data_at) = (table.be64(8)?, data_at.checked_add(table.be64(24)?).ok_or_else(|| table.corrupt())?);
    let count = usize::try_from(table.be32(200)?).unwrap_or(usize::MAX);
    let (rows, _) = table.tail(204)?.as_chunks::<40>();
    let mut counted: Vec<(u64, u64)> = Vec::new();
    for row in rows.get(..count).ok_or_else(|| table.corrupt_field("number of runs"))? {
        let row = Record::new(FORMAT.name, "block table entry", at, row);
        let Some(kind) = Kind::parse(row.be32(0)?)? else { continue };
        let sum = |a: u64, b: u64| a.checked_add(b).ok_or_else(|| row.corrupt());
        let bytes = |sectors: u64| sectors.checked_mul(SECTOR).ok_or_else(|| row.corrupt());
        let start = bytes(sum(first, row.be64(8)?)?)?;
        let piece =
            Piece { start, len: bytes(row.be64(16)?)?, kind, at: sum(data_at, row.be64(24)?)?, packed: row.be64(32)? };
        let end = sum(piece.start, piece.len)?;
        if piece.len == 0 {
            continue;
        }
        match counted.last_mut() {
            _ if row.be32(0)? == IGNORED => {}
            Some((_, last)) if *last == piece.start => *last = end,
            _ => counted.push((piece.start, end)),
        }
        let stored = if kind == Kind::Raw { piece.len } else { piece.packed };
        if kind != Kind::Zero && piece.at.checked_add(stored).is_none_or(|end| end > file_size) {
            return Err(row.corrupt_field("data past the end of the file"));
        }
        if kind.packed() && piece.len > MAX_RUN {
            return Err(row.corrupt_field("number of sectors"));
        }
        if kind.packed() && piece.packed > largest_packed(piece.len) {
            return Err(row.corrupt_field("packed data longer than what is in it"));
        }
        pieces.push(piece);
    }
    let bytes = |sectors: u64| sectors.checked_mul(SECTOR).ok_or_else(|| table.corrupt());
    Ok(TableSum { start: bytes(first)?, len: bytes(table.be64(16)?)?, counted, sum: checksum(&table, 64)? })
}
