//! The header, its feature bits and its extensions.

use super::{FORMAT, L1, Layout};
use crate::bytes::Record;
use crate::container::Opened;
use crate::device::overlay::EXTENSION;
use crate::device::{BlockDevice, read_vec};
use crate::error::{Error, Result};
use crate::text::{printable, trim_padding};

/// Incompatible features, by bit.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;
/// Compatible features, by bit.
const LAZY_REFCOUNTS: u64 = 1 << 0;

/// Longest backing file name that QEMU reads.
const MAX_NAME: u32 = 1023;
/// An L1 table of 32 MiB maps 2 PiB of 64 KiB clusters; QEMU's own limit.
const MAX_L1_ENTRIES: u64 = (32 << 20) / 8;

/// What the header says, checked.
pub(super) struct Header {
    pub(super) layout: Layout,
    pub(super) size: u64,
    pub(super) l1: L1,
    pub(super) snapshots: u32,
    pub(super) snapshots_at: u64,
    pub(super) backing: Option<Vec<u8>>,
    pub(super) backing_format: Option<Vec<u8>>,
    pub(super) data_file: Option<Vec<u8>>,
    /// What one of our own overlays remembers of its base.
    pub(super) binding: Option<Vec<u8>>,
    dirty: bool,
    lazy_refcounts: bool,
    bitmaps: bool,
}

impl Header {
    /// Section "Header" of the specification.
    pub(super) fn read(device: &dyn BlockDevice) -> Result<Self> {
        // Version 2 ends at byte 72; a small version 3 file still has a whole first cluster.
        let start = read_vec(device, 0, usize::try_from(device.size().min(112)).map_err(|_| Error::Invalid)?)?;
        let record = Record::new(FORMAT.name, "header", 0, &start);
        let version = record.be32(4)?;
        if record.bytes(0, 4)? != b"QFI\xfb" {
            return Err(record.corrupt_field("magic number"));
        }
        if !matches!(version, 2 | 3) {
            return Err(Error::unsupported(FORMAT.name, format!("version {version}")));
        }
        let cluster_bits = record.be32(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(record.corrupt_field("cluster_bits"));
        }
        let (incompatible, compatible, header_length) =
            if version == 2 { (0, 0, 72) } else { (record.be64(72)?, record.be64(80)?, record.be32(100)?) };
        if header_length < if version == 2 { 72 } else { 104 } || header_length >= 1 << cluster_bits {
            return Err(record.corrupt_field("header_length"));
        }
        let compression = if version == 3 && header_length > 104 { record.u8(104)? } else { 0 };
        // They end where the name of the backing file starts, which QEMU keeps in the first cluster.
        let end = Some(record.be64(8)?).filter(|&at| at > 0).unwrap_or(u64::MAX).min(1u64 << cluster_bits);
        let extensions = Extensions::read(device, header_length.into(), end)?;
        refuse(record.be32(32)?, incompatible, compression, &extensions)?;
        let external = incompatible & EXTERNAL_DATA != 0;
        if external && extensions.data_file.is_none() {
            return Err(Error::unsupported(FORMAT.name, "an external data file without a name"));
        }
        let layout = Layout {
            version,
            cluster_bits,
            zstd: compression == 1,
            extended_l2: incompatible & EXTENDED_L2 != 0,
            external,
        };
        if layout.extended_l2 && cluster_bits < 14 {
            return Err(record.corrupt_field("cluster_bits"));
        }
        Ok(Self {
            layout,
            size: record.be64(24)?,
            l1: L1 { at: record.be64(40)?, count: record.be32(36)?.into() },
            snapshots: record.be32(60)?,
            snapshots_at: record.be64(64)?,
            backing: backing_name(device, record)?,
            backing_format: extensions.backing_format,
            data_file: extensions.data_file.filter(|_| external),
            binding: extensions.binding,
            dirty: incompatible & DIRTY != 0,
            lazy_refcounts: compatible & LAZY_REFCOUNTS != 0,
            bitmaps: extensions.bitmaps,
        })
    }

    /// Whether an L1 table lies in the file and is long enough for a disk of `size` bytes.
    pub(super) fn check_l1(&self, l1: L1, size: u64, file_size: u64) -> Result<()> {
        let corrupt = || Error::corrupt(FORMAT.name, "L1 table (place or length)", l1.at);
        let end = l1.count.checked_mul(8).and_then(|len| l1.at.checked_add(len)).ok_or_else(corrupt)?;
        let mapped = l1.count.saturating_mul(self.layout.l2_coverage());
        if l1.count > MAX_L1_ENTRIES || size > mapped || (l1.count > 0 && end > file_size) {
            return Err(corrupt());
        }
        if !l1.at.is_multiple_of(self.layout.cluster_size()) || size > i64::MAX.cast_unsigned() {
            return Err(corrupt());
        }
        Ok(())
    }

    pub(super) fn describe(&self, opened: &mut Opened) {
        let layout = self.layout;
        opened.add("version", layout.version);
        opened.add("virtual size", format!("{} bytes", self.size));
        opened.add("cluster size", format!("{} bytes", layout.cluster_size()));
        opened.add("compression", if layout.zstd { "zstd" } else { "zlib" });
        if layout.extended_l2 {
            opened.add("subcluster size", format!("{} bytes (extended L2 entries)", layout.cluster_size() / 32));
        }
        if let Some(name) = &self.data_file {
            opened.add("data file", printable(name));
        }
        if let Some(name) = &self.backing {
            opened.add("backing file", printable(name));
        }
        if let Some(name) = &self.backing_format {
            opened.add("backing format", printable(name));
        }
        if self.lazy_refcounts {
            opened.add("lazy refcounts", "yes");
        }
        if self.bitmaps {
            opened.add("dirty bitmaps", "yes");
        }
        if self.dirty {
            opened.notes.push("the dirty bit is set: the image was not closed properly".to_owned());
        }
    }
}

/// Says by name what is not decoded.
fn refuse(crypt: u32, incompatible: u64, compression: u8, extensions: &Extensions) -> Result<()> {
    let unsupported = |feature: String| Err(Error::unsupported(FORMAT.name, feature));
    match crypt {
        0 => {}
        1 => return unsupported("AES encryption".to_owned()),
        2 => return unsupported("LUKS encryption".to_owned()),
        other => return unsupported(format!("encryption method {other}")),
    }
    if incompatible & CORRUPT != 0 {
        let what = "image (its corrupt bit is set: repair a copy with \"qemu-img check -r all\" first)";
        return Err(Error::corrupt(FORMAT.name, what, 72));
    }
    let unknown = incompatible & !KNOWN;
    if unknown != 0 {
        let bit = unknown.trailing_zeros();
        let name = extensions.features.iter().find(|(of, _)| u32::from(*of) == bit);
        let name = name.map_or(String::new(), |(_, name)| format!(" ({})", printable(name)));
        return unsupported(format!("incompatible feature {bit}{name}"));
    }
    // The type byte counts only with its feature bit.
    let compression = if incompatible & COMPRESSION_TYPE == 0 { 0 } else { compression };
    match compression {
        0 | 1 => Ok(()),
        other => unsupported(format!("compression type {other}")),
    }
}

fn backing_name(device: &dyn BlockDevice, record: Record<'_>) -> Result<Option<Vec<u8>>> {
    let (at, len) = (record.be64(8)?, record.be32(16)?);
    if at == 0 || len == 0 {
        return Ok(None);
    }
    if len > MAX_NAME || at.checked_add(len.into()).is_none_or(|end| end > device.size()) {
        return Err(record.corrupt_field("backing file name"));
    }
    read_vec(device, at, usize::try_from(len).map_err(|_| Error::Invalid)?).map(Some)
}

/// Header extensions: what follows the header in the first cluster, up to the backing file's name.
#[derive(Default)]
struct Extensions {
    backing_format: Option<Vec<u8>>,
    data_file: Option<Vec<u8>>,
    binding: Option<Vec<u8>>,
    /// Names of incompatible features: bit, name.
    features: Vec<(u8, Vec<u8>)>,
    bitmaps: bool,
}

impl Extensions {
    fn read(device: &dyn BlockDevice, start: u64, end: u64) -> Result<Self> {
        let end = end.min(device.size());
        let len = usize::try_from(end.saturating_sub(start)).map_err(|_| Error::Invalid)?;
        let bytes = read_vec(device, start, len)?;
        let area = Record::new(FORMAT.name, "header extension", start, &bytes);
        let mut found = Self::default();
        let mut offset = 0usize;
        // Each step goes on by eight bytes or more. Version 2 files may have no room for an end mark.
        while area.len().saturating_sub(offset) >= 8 {
            let (kind, len) = (area.be32(offset)?, area.be32(offset.saturating_add(4))?);
            if kind == 0 {
                break;
            }
            let len = usize::try_from(len).map_err(|_| area.corrupt())?;
            let data = area.bytes(offset.saturating_add(8), len)?;
            match kind {
                0xe279_2aca => found.backing_format = Some(data.to_vec()),
                0x4441_5441 => found.data_file = Some(data.to_vec()),
                0x2385_2875 => found.bitmaps = true,
                EXTENSION => found.binding = Some(data.to_vec()),
                0x6803_f857 => {
                    let (rows, _) = data.as_chunks::<48>();
                    let incompatible = rows.iter().filter_map(|row| row.split_first_chunk::<2>());
                    let incompatible = incompatible.filter(|([kind, _], _)| *kind == 0);
                    found.features = incompatible.map(|([_, bit], name)| (*bit, trim_padding(name).to_vec())).collect();
                }
                _ => {}
            }
            offset = offset.saturating_add(8).saturating_add(len.next_multiple_of(8));
        }
        Ok(found)
    }
}
