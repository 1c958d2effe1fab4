//! Digests on all cores: of ranges of a device in one pass over it, and of files.

use std::ops::Range;
use std::sync::{Arc, mpsc};

use anyhow::Result;
use imgfs::device::BlockDevice;
use imgfs::digest::{Algorithm, Hasher};
use imgfs::error::Error;
use imgfs::filesystem::{FileSystem, Kind, NodeId};

use super::cat::each_piece;
use super::parallel::{cores, in_order};

/// Read at a time: some compressed containers unpack units of this size.
const PIECE: u64 = 1 << 20;
/// Pieces that are read ahead of the digests.
const AHEAD: usize = 16;

/// Bytes of a device whose digests are wanted.
pub struct Wanted {
    /// The bytes.
    pub range: Range<u64>,
    /// The digests.
    pub algorithms: Vec<Algorithm>,
}

/// Digests in the order in which they were asked for, or why there are none.
pub type Digests = Result<Vec<Vec<u8>>, Error>;

/// A piece of a device on its way to the digests.
struct Piece {
    start: u64,
    bytes: Vec<u8>,
}

/// One digest of one range.
struct Sum {
    range: Range<u64>,
    /// Places of the range and of the digest in what was asked for.
    place: (usize, usize),
    hasher: Hasher,
}

/// All digests of all ranges. Each byte is read once; `progress` is told how many were.
pub fn ranges(device: &dyn BlockDevice, wanted: &[Wanted], progress: &mut dyn FnMut(u64)) -> Vec<Digests> {
    let pieces = pieces(wanted);
    let mut errors: Vec<Option<Error>> = wanted.iter().map(|_| None).collect();
    let sums = wanted.iter().enumerate().flat_map(|(at, one)| {
        let place = move |digest: usize| (at, digest);
        let algorithms = one.algorithms.iter().enumerate();
        algorithms.map(move |(digest, algorithm)| (one.range.clone(), place(digest), *algorithm))
    });
    let workers = cores();
    let mut shares: Vec<Vec<Sum>> = (0..workers).map(|_| Vec::new()).collect();
    for (index, (range, place, algorithm)) in sums.enumerate() {
        if let Some(share) = shares.get_mut(index % workers) {
            share.push(Sum { range, place, hasher: Hasher::new(algorithm) });
        }
    }
    let mut done: Vec<Vec<Vec<u8>>> = wanted.iter().map(|one| vec![Vec::new(); one.algorithms.len()]).collect();
    std::thread::scope(|scope| {
        let mut lines = Vec::new();
        let mut ends = Vec::new();
        for share in shares.into_iter().filter(|share| !share.is_empty()) {
            let (send, receive) = mpsc::sync_channel::<Arc<Piece>>(4);
            lines.push(send);
            ends.push(scope.spawn(move || sum_up(share, &receive)));
        }
        let read = |range: &Range<u64>| {
            let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
            device.read_bulk_at(&mut bytes, range.start).map(|()| bytes)
        };
        let mut take = |(range, bytes): (Range<u64>, Result<Vec<u8>, Error>)| {
            progress(range.end - range.start);
            match bytes {
                Ok(bytes) => {
                    let piece = Arc::new(Piece { start: range.start, bytes });
                    for line in &lines {
                        line.send(piece.clone())?;
                    }
                }
                Err(error) => {
                    for (one, failed) in wanted.iter().zip(&mut errors) {
                        if one.range.start < range.end && range.start < one.range.end {
                            failed.get_or_insert_with(|| error.clone());
                        }
                    }
                }
            }
            Ok(())
        };
        // It fails only where a digest panicked; then there is none.
        let _ = in_order(
            pieces.into_iter(),
            AHEAD,
            |range: Range<u64>| {
                let bytes = read(&range);
                (range, bytes)
            },
            &mut take,
        );
        drop(lines);
        for end in ends {
            for ((at, digest), value) in end.join().unwrap_or_default() {
                if let Some(slot) = done.get_mut(at).and_then(|one| one.get_mut(digest)) {
                    *slot = value;
                }
            }
        }
    });
    let outcome = |(digests, error): (Vec<Vec<u8>>, Option<Error>)| match error {
        Some(error) => Err(error),
        None => Ok(digests),
    };
    done.into_iter().zip(errors).map(outcome).collect()
}

/// Neighbouring pieces that cover all ranges and never cross a border of one: what cannot be read
/// then belongs to the ranges that hold it alone.
fn pieces(wanted: &[Wanted]) -> Vec<Range<u64>> {
    let mut borders: Vec<u64> = wanted.iter().flat_map(|one| [one.range.start, one.range.end]).collect();
    borders.sort_unstable();
    borders.dedup();
    let mut pieces = Vec::new();
    for (&start, &end) in borders.iter().zip(borders.iter().skip(1)) {
        if !wanted.iter().any(|one| one.range.start <= start && end <= one.range.end) {
            continue;
        }
        let mut at = start;
        while at < end {
            let next = (at - at % PIECE).saturating_add(PIECE).min(end);
            pieces.push(at..next);
            at = next;
        }
    }
    pieces
}

fn sum_up(mut share: Vec<Sum>, pieces: &mpsc::Receiver<Arc<Piece>>) -> Vec<((usize, usize), Vec<u8>)> {
    for piece in pieces {
        let end = piece.start + piece.bytes.len() as u64;
        for sum in share.iter_mut().filter(|sum| sum.range.start <= piece.start && end <= sum.range.end) {
            sum.hasher.update(&piece.bytes);
        }
    }
    share.into_iter().map(|sum| (sum.place, sum.hasher.finish())).collect()
}

/// Size and digests of a file's contents, or of a link's target; `None` for what has neither. `progress` is
/// told how many bytes of a file were read.
pub fn node(
    tree: &dyn FileSystem,
    (node, kind): (NodeId, Kind),
    algorithms: &[Algorithm],
    progress: &dyn Fn(u64),
) -> Result<Option<Contents>> {
    let mut hashers: Vec<Hasher> = algorithms.iter().map(|algorithm| Hasher::new(*algorithm)).collect();
    let mut size = 0u64;
    let mut take = |piece: &[u8]| {
        size += piece.len() as u64;
        hashers.iter_mut().for_each(|hasher| hasher.update(piece));
        Ok(())
    };
    match kind {
        Kind::File => {
            each_piece(tree, node, &mut |piece| {
                progress(piece.len() as u64);
                take(piece)
            })?;
            let expected = tree.attributes(node)?.size;
            anyhow::ensure!(size == expected, "{size} of {expected} bytes can be read");
        }
        Kind::Symlink => take(&tree.read_link(node)?)?,
        _ => return Ok(None),
    }
    Ok(Some(Contents { size, digests: hashers.into_iter().map(Hasher::finish).collect() }))
}

/// What [`node`] finds.
pub struct Contents {
    /// Bytes that were read.
    pub size: u64,
    /// In the order in which they were asked for.
    pub digests: Vec<Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use imgfs::device::memory::Memory;
    use imgfs::digest;

    #[test]
    fn each_range_has_the_digests_of_its_own_bytes() {
        let bytes: Vec<u8> = (0..3_500_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let device = Memory::new(bytes.clone(), 512);
        let algorithms = vec![Algorithm::Sha256, Algorithm::Md5, Algorithm::Blake3];
        let ranges_wanted = [0..3_500_000, 512..1_048_576, 100..100, 1_048_576..3_000_001];
        let wanted: Vec<Wanted> =
            ranges_wanted.iter().map(|range| Wanted { range: range.clone(), algorithms: algorithms.clone() }).collect();
        let mut read = 0;
        let found = ranges(&device, &wanted, &mut |len| read += len);
        assert_eq!(read, 3_500_000);
        for (range, found) in ranges_wanted.iter().zip(found) {
            let part = &bytes[range.start as usize..range.end as usize];
            let expected: Vec<_> = algorithms.iter().map(|algorithm| digest::of(*algorithm, part)).collect();
            assert_eq!(found.unwrap(), expected);
        }
    }
}
