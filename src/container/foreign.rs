//! Files that hold a disk in a way that is not decoded: known by their first bytes and refused by name.
//! As raw disks they would show bytes that are of no use to anyone.
//!
//! Not supported: any of them; the message says what makes a disk of it.

use super::{Companions, ContainerFormat, Opened, Options};
use crate::device::{BlockDevice, Device, probe_array};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "foreign", snapshots: false, probe, open };
/// Those that are told by their last bytes.
pub(super) const TRAILED: ContainerFormat =
    ContainerFormat { name: "foreign-trailer", snapshots: false, probe: probe_end, open };

/// First bytes, what begins so, and what unpacks it.
const MAGICS: &[(&[u8], &str, &str)] = &[
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -d"),
    (b"\x02\x21\x4c\x18", "lz4 (legacy)", "lz4 -d"),
    (b"LZIP\x01", "lzip", "lzip -d"),
    (b"LRZI\0", "lrzip", "lrzip -d"),
    (b"\x89LZO\0\r\n\x1a\n", "lzop", "lzop -d"),
    (b"7z\xbc\xaf\x27\x1c", "7z", "7z x"),
    (b"Rar!\x1a\x07", "RAR", "unrar x"),
    (b"MSCF\0\0\0\0", "cabinet", "cabextract"),
    (b"MSWIM\0\0\0", "WIM", "wimapply"),
    (b"QED\0", "QED", "qemu-img convert"),
    (b"Bochs Virtual HD Image\0", "Bochs", "qemu-img convert -f bochs"),
    (b"#!/bin/sh\n#V2.0 Format\n", "cloop", "qemu-img convert -f cloop"),
    (b"\x3a\xff\x26\xed\x01\0", "Android sparse image", "simg2img"),
    (b"PaRtImAgE-VoLuMe", "partimage", "partimage restore"),
    (b"\xce\x24\xb9\xa2\x20\0\0\0", "Acronis True Image", "its own program"),
    (b"DAA\0\0\0\0\0", "PowerISO (DAA)", "daa2iso"),
    (b"GBI\0\0\0\0\0", "gBurner (GBI)", "daa2iso"),
    (b"IsZ!", "ISZ", "isz-tool"),
    (b"ECM\0", "ECM", "unecm"),
    (b"CISO\0\0\x20\0", "CISO of GameCube and Wii", "wit copy --iso"),
    (b"WBFS\0", "WBFS", "wit copy --iso"),
    (b"RVZ\x01", "RVZ", "dolphin-tool convert"),
    (b"WIA\x01", "WIA", "dolphin-tool convert"),
    (b"\x01\xc0\x0b\xb1", "GCZ", "dolphin-tool convert"),
    (b"QRST", "QRST", "dsktrans"),
    (b"LBS\x01DSK", "LDBS", "dsktrans"),
];

/// The name and the way out.
type Kind = (&'static str, &'static str);

fn kind(device: &dyn BlockDevice) -> Result<Option<Kind>> {
    let Some(start) = probe_array::<32>(device, 0)? else { return Ok(None) };
    if let Some((_, name, way)) = MAGICS.iter().find(|(magic, ..)| start.starts_with(magic)) {
        return Ok(Some((name, way)));
    }
    // Without a magic number, or with one of two bytes: what stands in the header must make sense.
    Ok(match start {
        // The largest code has 9 to 16 bits; two flags are in no use.
        [0x1f, 0x9d, flags, ..] if (9..=16).contains(&(flags & 0x1f)) && flags & 0x60 == 0 => {
            Some(("compress (.Z)", "uncompress"))
        }
        [0x5d, 0, 0, low, high, size @ ..] if is_lzma(low, high, &size) => Some(("lzma (alone)", "xz -d")),
        _ => None,
    })
}

fn kind_at_end(device: &dyn BlockDevice) -> Result<Option<Kind>> {
    if is_cdi(device)? {
        return Ok(Some(("DiscJuggler (CDI)", "cdirip")));
    }
    Ok(is_uif(device)?.then_some(("MagicISO (UIF)", "uif2iso")))
}

/// The usual properties, a dictionary of a whole number of 64 KiB up to 1.5 GiB, and an unknown size or
/// one of less than 64 TiB.
fn is_lzma(low: u8, high: u8, rest: &[u8]) -> bool {
    let Some((size, _)) = rest.split_first_chunk::<8>() else { return false };
    let size = u64::from_le_bytes(*size);
    (low.is_power_of_two() && high == 0 || low == 0 && high <= 0x60 && high.count_ones() <= 2 && high != 0)
        && (size == u64::MAX || (1..1 << 46).contains(&size))
}

/// Only a trailer of 64 bytes.
fn is_uif(device: &dyn BlockDevice) -> Result<bool> {
    let Some(at) = device.size().checked_sub(64) else { return Ok(false) };
    let trailer = probe_array::<12>(device, at)?;
    // Its name, then its own length.
    Ok(trailer.is_some_and(|trailer| trailer.starts_with(b"bbis\x40\0\0\0")))
}

/// Only the last eight bytes: one of three versions, and where the description of the tracks begins (or,
/// in the latest one, how long it is).
fn is_cdi(device: &dyn BlockDevice) -> Result<bool> {
    let size = device.size();
    let Some(at) = size.checked_sub(8) else { return Ok(false) };
    let Some([low, 0, 0, 0x80, place @ ..]) = probe_array::<8>(device, at)? else { return Ok(false) };
    let place = u64::from(u32::from_le_bytes(place));
    let len = if low == 6 { place } else { size.saturating_sub(place) };
    // It takes some hundred bytes a track, of which there are 99.
    Ok((4..=6).contains(&low) && place > 8 && place < size && len < 1 << 20)
}

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    Ok(kind(device)?.is_some())
}

fn probe_end(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    Ok(kind_at_end(device)?.is_some())
}

fn open(file: Device, _: &dyn Companions, _: &Options) -> Result<Opened> {
    let kind = match kind(file.as_ref())? {
        None => kind_at_end(file.as_ref())?,
        known => known,
    };
    match kind {
        Some((name, way)) => {
            let what = format!("this kind of file (take the disk out with {way}; `-o format=raw` shows its bytes)");
            Err(Error::unsupported(name, what))
        }
        None => Err(Error::unsupported(FORMAT.name, "a file of another kind")),
    }
}
