//! Images of what a floppy drive's head sees: known by name, so that they are not taken for raw disks.
//!
//! Specification: HxC Floppy Emulator HFE; SuperCard Pro SCP; SPS CAPS/IPF; Applesauce WOZ, MOOF and
//! A2R; MAME MFI; D. Keil, DMK.
//!
//! Not supported: any of them; their own programs convert them to sectors.

use super::{Companions, ContainerFormat, Opened, Options};
use crate::device::{BlockDevice, Device, probe_array};
use crate::error::{Error, Result};

pub(super) const FORMAT: ContainerFormat = ContainerFormat { name: "flux", snapshots: false, probe, open };

const MAGICS: [(&[u8], &str); 10] = [
    (b"HXCPICFE", "HFE"),
    (b"HXCHFEV3", "HFE version 3"),
    (b"CAPS\0\0\0\x0c", "IPF"),
    (b"WOZ1\xff\n\r\n", "WOZ"),
    (b"WOZ2\xff\n\r\n", "WOZ"),
    (b"MOOF\xff\n\r\n", "MOOF"),
    (b"A2R2\xff\n\r\n", "A2R"),
    (b"A2R3\xff\n\r\n", "A2R"),
    (b"MAMEFLOPPYIMAGE", "MFI"),
    (b"MESSFLOPPYIMAGE", "MFI"),
];

fn kind(device: &dyn BlockDevice) -> Result<Option<&'static str>> {
    let Some(start) = probe_array::<16>(device, 0)? else { return Ok(None) };
    if let Some((_, name)) = MAGICS.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Ok(Some(name));
    }
    Ok(is_dmk(&start, device.size()).then_some("DMK"))
}

/// DMK has no magic number: its numbers must make the file's size.
fn is_dmk(start: &[u8; 16], size: u64) -> bool {
    let &[protect, tracks, low, high, flags, ref rest @ ..] = start;
    let len = u64::from(u16::from_le_bytes([low, high]));
    let sides = if flags & 0x10 != 0 { 1 } else { 2 };
    let whole = len.saturating_mul(tracks.into()).saturating_mul(sides).saturating_add(16);
    let usual = (35..=96).contains(&tracks) && (0x0600..=0x4000).contains(&len);
    matches!(protect, 0 | 0xff) && usual && whole == size && rest.iter().take(7).all(|&b| b == 0)
}

fn probe(device: &dyn BlockDevice, _: &dyn Companions) -> Result<bool> {
    Ok(kind(device)?.is_some())
}

fn open(file: Device, _: &dyn Companions, _: &Options) -> Result<Opened> {
    let kind = kind(file.as_ref())?.unwrap_or("the format");
    Err(Error::unsupported(FORMAT.name, format!("{kind} (raw tracks of a floppy)")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dmk_is_told_by_its_size() {
        let mut start = [0; 16];
        start[1..5].copy_from_slice(&[40, 0x00, 0x19, 0]);
        assert!(is_dmk(&start, 16 + 40 * 0x1900 * 2));
        assert!(!is_dmk(&start, 16 + 40 * 0x1900));
        assert!(!is_dmk(&[0; 16], 16));
    }
}
