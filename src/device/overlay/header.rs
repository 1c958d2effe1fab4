//! The first cluster of the file: the header, its extensions, the base's name.
//!
//! ```text
//!   0    header (112 bytes)
//!   112  extension: binding          ours; first, so that it lies in the file's first sector
//!        extension: backing format   "raw", or qemu's name for the base's container
//!        end mark
//!        name of the base
//! ```
//! qemu keeps extensions that it does not know when it rewrites this cluster.

use super::geometry::{ENTRY, Geometry};
use super::store::{Store, host};
use crate::bytes::Record;
use crate::error::{Error, Result};

/// What errors name as the format.
pub(super) const OVERLAY: &str = "overlay";

const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
/// Ours: "imgf".
const EXTENSION_BINDING: u32 = super::binding::EXTENSION;
/// The header that qemu writes since 5.1.
const HEADER_LEN: usize = 112;
/// qemu's own limits on the size of the two top tables, bytes.
const MAX_L1: u64 = 32 << 20;
pub(super) const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// qemu's limit on the length of the base's name.
const MAX_NAME: usize = 1023;
/// More extensions than any tool writes.
const MAX_EXTENSIONS: usize = 64;

/// Byte positions of the header's fields that are changed in place; each lies in the first sector.
pub(super) const REFCOUNT_TABLE_FIELD: u64 = 48;
pub(super) const AUTOCLEAR_FIELD: u64 = 88;

/// A table of the file: where it starts and how many entries it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TablePlace {
    pub offset: u64,
    pub entries: u64,
}

/// What the first cluster says, validated.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub geometry: Geometry,
    pub l1: TablePlace,
    pub refcounts: TablePlace,
    pub autoclear: u64,
    /// As recorded; relative to the overlay's folder.
    pub backing_name: Vec<u8>,
    /// qemu's name of the base's format.
    pub backing_format: Option<String>,
    /// Byte position and contents of our extension.
    pub binding: Option<(u64, Vec<u8>)>,
}

impl Header {
    /// Reads and checks the header. Field offsets: QEMU docs/interop/qcow2.txt, "Header".
    pub fn read(store: &dyn Store) -> Result<Self> {
        let io = |error| host("reading the overlay's header", error);
        let file_size = store.size().map_err(io)?;
        let mut first = [0; HEADER_LEN];
        store.read_at(&mut first, 0).map_err(io)?;
        let fields = Record::new(OVERLAY, "header", 0, &first);
        if fields.be32(0)? != MAGIC {
            return Err(Error::unsupported(OVERLAY, "a file that is not a qcow2 image"));
        }
        refuse_features(&fields)?;
        let geometry = Geometry::new(fields.be32(20)?, fields.be64(24)?)
            .ok_or_else(|| fields.corrupt_field("cluster bits or disk size"))?;
        let l1 = TablePlace { offset: fields.be64(40)?, entries: u64::from(fields.be32(36)?) };
        let table_entries = u64::from(fields.be32(56)?).saturating_mul(geometry.entries());
        let refcounts = TablePlace { offset: fields.be64(48)?, entries: table_entries };
        check_table(&fields, geometry, l1, MAX_L1, file_size, "L1 table")?;
        check_table(&fields, geometry, refcounts, MAX_REFCOUNT_TABLE, file_size, "refcount table")?;
        if l1.entries < geometry.l1_entries() {
            return Err(fields.corrupt_field("L1 size"));
        }
        let mut cluster = vec![0; geometry.cluster_len()];
        store.read_at(&mut cluster, 0).map_err(io)?;
        let cluster = Record::new(OVERLAY, "header", 0, &cluster);
        let mut header = Self {
            geometry,
            l1,
            refcounts,
            autoclear: fields.be64(88)?,
            backing_name: backing_name(&fields, &cluster)?,
            backing_format: None,
            binding: None,
        };
        let header_len = usize::try_from(fields.be32(100)?).unwrap_or(usize::MAX);
        header.read_extensions(&cluster, header_len)?;
        Ok(header)
    }

    fn read_extensions(&mut self, cluster: &Record<'_>, start: usize) -> Result<()> {
        let mut at = start;
        for _ in 0..MAX_EXTENSIONS {
            // qemu: an area that ends without its mark ends all the same.
            if at.saturating_add(8) > cluster.len() {
                return Ok(());
            }
            let magic = cluster.be32(at)?;
            let len = usize::try_from(cluster.be32(at.saturating_add(4))?).unwrap_or(usize::MAX);
            let data_at = at.saturating_add(8);
            match magic {
                EXTENSION_END => return Ok(()),
                EXTENSION_BACKING_FORMAT => {
                    let name = String::from_utf8(cluster.bytes(data_at, len)?.to_vec());
                    self.backing_format = Some(name.map_err(|_| cluster.corrupt_field("backing format"))?);
                }
                EXTENSION_BITMAPS => return Err(Error::unsupported(OVERLAY, "an image with persistent bitmaps")),
                EXTENSION_BINDING => {
                    self.binding = Some((data_at as u64, cluster.bytes(data_at, len)?.to_vec()));
                }
                _ => drop(cluster.bytes(data_at, len)?),
            }
            at = data_at.saturating_add(len).checked_next_multiple_of(8).ok_or_else(|| cluster.corrupt())?;
        }
        Err(cluster.corrupt_field("extensions"))
    }

    /// The first cluster of a new file.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let refcount_clusters = self.refcounts.entries.checked_div(self.geometry.entries()).unwrap_or(0);
        let mut out = Vec::with_capacity(self.geometry.cluster_len());
        let extensions = self.extensions();
        let name_at = if self.backing_name.is_empty() { 0 } else { HEADER_LEN.saturating_add(extensions.len()) };
        let narrow = |value: u64| u32::try_from(value).map_err(|_| Error::Invalid);
        out.extend(MAGIC.to_be_bytes());
        out.extend(3u32.to_be_bytes());
        out.extend((name_at as u64).to_be_bytes());
        out.extend(narrow(self.backing_name.len() as u64)?.to_be_bytes());
        out.extend(self.geometry.bits().to_be_bytes());
        out.extend(self.geometry.disk_size.to_be_bytes());
        out.extend(0u32.to_be_bytes()); // not encrypted
        out.extend(narrow(self.l1.entries)?.to_be_bytes());
        out.extend(self.l1.offset.to_be_bytes());
        out.extend(self.refcounts.offset.to_be_bytes());
        out.extend(narrow(refcount_clusters)?.to_be_bytes());
        out.extend([0; 12]); // no snapshots
        out.extend([0; 24]); // no feature bits
        out.extend(4u32.to_be_bytes()); // refcounts of 2^4 bits
        out.extend(narrow(HEADER_LEN as u64)?.to_be_bytes());
        out.extend([0; 8]); // compression: deflate, as without the field
        out.extend(extensions);
        out.extend(&self.backing_name);
        if out.len() > self.geometry.cluster_len() {
            return Err(Error::Invalid);
        }
        out.resize(self.geometry.cluster_len(), 0);
        Ok(out)
    }

    fn extensions(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut add = |magic: u32, data: &[u8]| {
            out.extend(magic.to_be_bytes());
            out.extend(u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
            out.extend(data);
            out.resize(out.len().next_multiple_of(8), 0);
        };
        if let Some((_, binding)) = &self.binding {
            add(EXTENSION_BINDING, binding);
        }
        if let Some(format) = &self.backing_format {
            add(EXTENSION_BACKING_FORMAT, format.as_bytes());
        }
        add(EXTENSION_END, &[]);
        out
    }

    /// Bytes that the header, its extensions and the base's name take, with room for qemu to give
    /// the extensions another order.
    pub fn needed(binding: &[u8], backing_format: &str, backing_name: &[u8]) -> Result<u64> {
        if backing_name.len() > MAX_NAME {
            return Err(Error::unsupported(OVERLAY, format!("a base whose path is longer than {MAX_NAME} bytes")));
        }
        let padded = |len: usize| len.next_multiple_of(8).saturating_add(8) as u64;
        Ok([padded(binding.len()), padded(backing_format.len()), 8, backing_name.len() as u64]
            .iter()
            .fold(HEADER_LEN as u64, |sum, len| sum.saturating_add(*len)))
    }
}

/// Features that would make our writes wrong, or the contents unreadable.
fn refuse_features(fields: &Record<'_>) -> Result<()> {
    let refuse = |feature: &str| Err(Error::unsupported(OVERLAY, feature.to_owned()));
    match fields.be32(4)? {
        3 => {}
        2 => return refuse("qcow2 version 2 (`qemu-img amend -o compat=1.1` makes it version 3)"),
        version => return refuse(&format!("qcow2 version {version}")),
    }
    let incompatible = fields.be64(72)?;
    if incompatible & 3 != 0 {
        return refuse("an image marked dirty or corrupt (`qemu-img check -r all` repairs it)");
    }
    match incompatible {
        0 => {}
        bits if bits & 4 != 0 => return refuse("an external data file"),
        bits if bits & 16 != 0 => return refuse("extended L2 entries"),
        bits if bits & !8 == 0 => return refuse("zstd compression"),
        bits => return refuse(&format!("feature bits {bits:#x}")),
    }
    if fields.be32(32)? != 0 {
        return refuse("an encrypted image");
    }
    if fields.be32(60)? != 0 {
        return refuse("an image with internal snapshots");
    }
    if fields.be32(96)? != 4 {
        return refuse("refcounts of other than 16 bits");
    }
    let header_len = fields.be32(100)?;
    if header_len < 104 || header_len % 8 != 0 {
        return Err(fields.corrupt_field("header length"));
    }
    Ok(())
}

fn check_table(
    fields: &Record<'_>,
    geometry: Geometry,
    table: TablePlace,
    max: u64,
    file_size: u64,
    name: &str,
) -> Result<()> {
    let len = table.entries.saturating_mul(ENTRY);
    let end = table.offset.checked_add(len);
    let placed = geometry.within(table.offset) == 0 && table.offset > 0 && end.is_some_and(|end| end <= file_size);
    if placed && len <= max { Ok(()) } else { Err(fields.corrupt_field(name)) }
}

fn backing_name(fields: &Record<'_>, cluster: &Record<'_>) -> Result<Vec<u8>> {
    let offset = usize::try_from(fields.be64(8)?).unwrap_or(usize::MAX);
    let len = usize::try_from(fields.be32(16)?).unwrap_or(usize::MAX);
    if offset == 0 {
        return Ok(Vec::new());
    }
    if len > MAX_NAME {
        return Err(fields.corrupt_field("backing file name"));
    }
    Ok(cluster.bytes(offset, len)?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::super::store::MemoryStore;
    use super::*;

    fn header(name: &[u8]) -> Header {
        Header {
            geometry: Geometry::new(9, 1 << 20).unwrap(),
            l1: TablePlace { offset: 1024, entries: 32 },
            refcounts: TablePlace { offset: 512, entries: 64 },
            autoclear: 0,
            backing_name: name.to_vec(),
            backing_format: Some("raw".to_owned()),
            binding: Some((0, vec![5; 13])),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let store = MemoryStore::default();
        store.set_size(1 << 16).unwrap();
        store.write_at(&header(b"disk.img").to_bytes().unwrap(), 0).unwrap();
        let read = Header::read(&store).unwrap();
        assert_eq!(read.backing_name, b"disk.img");
        assert_eq!(read.backing_format.as_deref(), Some("raw"));
        assert_eq!(read.binding, Some((120, vec![5; 13])));
        assert_eq!((read.l1, read.refcounts), (header(b"").l1, header(b"").refcounts));
    }

    #[test]
    fn a_header_that_does_not_fit_its_cluster_is_not_written() {
        assert!(header(&[b'x'; 400]).to_bytes().is_err());
    }

    #[test]
    fn features_that_cannot_be_written_are_named() {
        let store = MemoryStore::default();
        store.set_size(1 << 16).unwrap();
        store.write_at(&header(b"a").to_bytes().unwrap(), 0).unwrap();
        for (at, value, text) in [(7, 2, "version 2"), (79, 1, "dirty"), (79, 16, "extended L2"), (63, 1, "snapshots")]
        {
            let mut old = [0];
            store.read_at(&mut old, at).unwrap();
            store.write_at(&[value], at).unwrap();
            let error = Header::read(&store).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
            store.write_at(&old, at).unwrap();
        }
        assert!(Header::read(&store).is_ok());
    }
}
