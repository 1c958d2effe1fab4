//! Whether the tables of the active disk and the reference counts agree: what `qemu-img check` calls
//! errors. Clusters that are counted and not used (leaks) cost room alone and are none.

use super::header::Header;
use super::{FORMAT, L1};
use crate::check::MAX_FAULTS;
use crate::device::{BlockDevice, read_array, read_vec};
use crate::error::{Error, Result};

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Refcount blocks that are looked into: those of 1 PiB of clusters of 64 KiB.
const MAX_BLOCKS: u64 = 1 << 19;

/// The counts, as far as they were read.
struct Counts<'a> {
    file: &'a dyn BlockDevice,
    /// The refcount table.
    table: Vec<u64>,
    cluster_size: u64,
    /// Bits of a count, as a power of two.
    order: u32,
    /// The block that was read last, with its index.
    block: Option<(u64, Vec<u8>)>,
}

impl<'a> Counts<'a> {
    fn read(file: &'a dyn BlockDevice, header: &Header) -> Result<Self> {
        let bytes = read_array::<104>(file, 0)?;
        let raw = crate::bytes::Record::new(FORMAT.name, "header", 0, &bytes);
        let cluster_size = header.layout.cluster_size();
        let order = if header.layout.version >= 3 { raw.be32(96)? } else { 4 };
        let len = u64::from(raw.be32(56)?).saturating_mul(cluster_size);
        if order > 6 || len > MAX_BLOCKS.saturating_mul(8) {
            return Err(raw.corrupt_field("refcount order, refcount table"));
        }
        let bytes = read_vec(file, raw.be64(48)?, usize::try_from(len).map_err(|_| raw.corrupt())?)
            .map_err(|error| if matches!(error, Error::PastEnd { .. }) { raw.corrupt() } else { error })?;
        let table = bytes.as_chunks::<8>().0.iter().map(|&entry| u64::from_be_bytes(entry) & !0x1ff).collect();
        Ok(Self { file, table, cluster_size, order, block: None })
    }

    /// How often the cluster at this byte is counted.
    fn at(&mut self, place: u64) -> Result<u64> {
        let bits = 1u64.wrapping_shl(self.order);
        let per_block = self.cluster_size.saturating_mul(8).checked_div(bits).unwrap_or(1).max(1);
        let cluster = place.checked_div(self.cluster_size).unwrap_or(0);
        let index = cluster.checked_div(per_block).unwrap_or(0);
        let within = cluster.checked_rem(per_block).unwrap_or(0);
        let at = usize::try_from(index).ok().and_then(|index| self.table.get(index)).copied().unwrap_or(0);
        if at == 0 {
            return Ok(0);
        }
        if self.block.as_ref().is_none_or(|(known, _)| *known != index) {
            let corrupt = || Error::corrupt(FORMAT.name, "refcount block", at);
            let bytes = read_vec(self.file, at, usize::try_from(self.cluster_size).map_err(|_| corrupt())?);
            let bytes =
                bytes.map_err(|error| if matches!(error, Error::PastEnd { .. }) { corrupt() } else { error })?;
            self.block = Some((index, bytes));
        }
        let bytes = self.block.as_ref().map(|(_, bytes)| bytes.as_slice()).unwrap_or_default();
        let bit = within.saturating_mul(bits);
        let start = usize::try_from(bit / 8).unwrap_or(usize::MAX);
        if bits < 8 {
            let byte = u64::from(bytes.get(start).copied().unwrap_or(0));
            let shift = u32::try_from(bit % 8).unwrap_or(0);
            return Ok(byte.wrapping_shr(shift) & 1u64.wrapping_shl(u32::try_from(bits).unwrap_or(0)).wrapping_sub(1));
        }
        let len = usize::try_from(bits / 8).unwrap_or(8);
        let field = bytes.get(start..start.saturating_add(len)).unwrap_or_default();
        Ok(field.iter().fold(0, |count, &byte| count << 8 | u64::from(byte)))
    }
}

/// What is wrong with the active disk's tables.
pub(super) fn faults(file: &dyn BlockDevice) -> Result<Vec<String>> {
    let header = Header::read(file)?;
    let L1 { at, count } = header.l1;
    header.check_l1(header.l1, header.size, file.size())?;
    let mut counts = Counts::read(file, &header)?;
    let cluster_size = header.layout.cluster_size();
    let mut faults = Vec::new();
    let mut used: Vec<u64> = Vec::new();
    let l1 = read_vec(file, at, usize::try_from(count.saturating_mul(8)).map_err(|_| Error::Invalid)?)?;
    for &entry in l1.as_chunks::<8>().0 {
        let entry = u64::from_be_bytes(entry);
        let table = entry & OFFSET;
        if table == 0 || faults.len() >= MAX_FAULTS {
            continue;
        }
        let counted = counts.at(table)?;
        judge("L2 table", table, entry, counted, &mut faults);
        used.push(table);
        let Ok(rows) = read_vec(file, table, usize::try_from(cluster_size).map_err(|_| Error::Invalid)?) else {
            faults.push(format!("the L2 table at byte {table} is past the end of the file"));
            continue;
        };
        let words = usize::try_from(header.layout.l2_words()).unwrap_or(1).max(1);
        for &row in rows.as_chunks::<8>().0.iter().step_by(words) {
            let row = u64::from_be_bytes(row);
            let place = row & OFFSET;
            // Packed clusters share theirs; those of an external file are not counted.
            if row & COMPRESSED != 0 || place == 0 || header.layout.external || faults.len() >= MAX_FAULTS {
                continue;
            }
            if place >= file.size() || place.checked_rem(cluster_size) != Some(0) {
                faults.push(format!("an L2 entry leads to byte {place}, which is no cluster of the file"));
                continue;
            }
            let counted = counts.at(place)?;
            judge("cluster", place, row, counted, &mut faults);
            used.push(place);
        }
    }
    used.sort_unstable();
    for pair in used.windows(2) {
        if let [one, two] = pair
            && one == two
            && faults.len() < MAX_FAULTS
        {
            faults.push(format!("the cluster at byte {one} is used twice"));
        }
    }
    Ok(faults)
}

/// The mark "copied" says that the count is 1.
fn judge(what: &str, at: u64, entry: u64, count: u64, faults: &mut Vec<String>) {
    if count == 0 {
        faults.push(format!("the {what} at byte {at} is used and not counted"));
    } else if (entry & COPIED != 0) != (count == 1) {
        faults.push(format!("the {what} at byte {at} is counted {count} times, and its entry says otherwise"));
    }
}
