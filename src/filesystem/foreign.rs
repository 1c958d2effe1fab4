//! What no decoder here reads, by name: the signature alone, so that `info` can say what a volume holds.
//!
//! Signatures: those of util-linux's libblkid, for what is met most.

use crate::device::{BlockDevice, read_array};

/// A signature: its place, its bytes, and whose it is.
type Signature = (u64, &'static [u8], &'static str);

/// The longest signature.
const LONGEST: usize = 12;

const SIGNATURES: &[Signature] = &[
    (3, b"NTFS    ", "NTFS"),
    (1024, b"H+\0", "HFS+"),
    (1024, b"HX\0", "HFSX"),
    (1024, b"BD", "HFS"),
    (32, b"NXSB", "APFS"),
    (0, b"XFSB", "XFS"),
    (0x10040, b"_BHRfS_M", "Btrfs"),
    (512, b"LABELONE", "an LVM2 physical volume"),
    (0, b"LABELONE", "an LVM2 physical volume"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of a Linux RAID"),
    (0, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of a Linux RAID"),
    (4096 - 10, b"SWAPSPACE2", "swap space"),
    (4096 - 10, b"SWAP-SPACE", "swap space"),
    (0, b"hsqs", "SquashFS"),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "EROFS"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "F2FS"),
    (0x8009, b"CDROM", "High Sierra"),
    (0x8001, b"CD-I ", "CD-i"),
    (0x8000, b"JFS1", "JFS"),
    (0x10034, b"ReIsEr", "ReiserFS"),
    (1024 + 6, b"\x34\x34", "NILFS2"),
    (0, &[0x45, 0x3d, 0xcd, 0x28], "cramfs"),
    (0, b"-rom1fs-", "romfs"),
    (0, b"UBI#", "UBI"),
    (8192 + 1372, &[0x54, 0x19, 0x01, 0x00], "UFS1"),
    (65_536 + 1372, &[0x19, 0x01, 0x54, 0x19], "UFS2"),
    (544, b"1SFB", "BFS of BeOS"),
    (0, b"RDSK", "a partition table of AmigaOS (RDB)"),
    (0, b"DOS\0", "OFS of AmigaOS"),
    (0, b"DOS\x01", "FFS of AmigaOS"),
    (1024 + 16, &[0x7f, 0x13], "Minix"),
    (1024 + 16, &[0x8f, 0x13], "Minix"),
];

/// Whose volume this is; `None` when that is not known, or cannot be read.
pub fn name(device: &dyn BlockDevice) -> Option<&'static str> {
    let found = SIGNATURES.iter().find(|(at, magic, _)| {
        let start = read_array::<LONGEST>(device, *at);
        start.is_ok_and(|bytes| bytes.starts_with(magic))
    });
    found.map(|&(_, _, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::Memory;

    #[test]
    fn a_volume_is_named_by_its_signature_and_an_empty_or_short_one_is_not() {
        for &(at, magic, expected) in SIGNATURES {
            assert!(magic.len() <= LONGEST);
            let mut bytes = vec![0; 128 << 10];
            assert_eq!(name(&Memory::new(bytes.clone(), 512)), None);
            let at = usize::try_from(at).unwrap();
            bytes[at..at + magic.len()].copy_from_slice(magic);
            assert_eq!(name(&Memory::new(bytes.clone(), 512)), Some(expected));
            bytes.truncate(at + 1);
            assert_eq!(name(&Memory::new(bytes, 512)), None);
        }
    }
}
