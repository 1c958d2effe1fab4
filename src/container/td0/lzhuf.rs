//! LZSS over a window of 4,096 bytes, its symbols in adaptive Huffman codes.
//!
//! Specification: LZHUF.C, H. Okumura and H. Yoshizaki (1988).
//!
//! ```text
//!   symbol < 256: a byte      symbol >= 256: a match of symbol - 253 bytes, then its distance:
//!   high 6 bits of the distance in a fixed code of 3 to 8 bits, low 6 bits as they are
//! ```

const WINDOW: usize = 4096;
/// Longest match.
const LONGEST: usize = 60;
/// Matches are longer than this.
const THRESHOLD: usize = 2;
/// Bytes, and lengths of matches.
const SYMBOLS: usize = 256 - THRESHOLD + LONGEST;
/// Nodes of the code tree.
const NODES: usize = SYMBOLS * 2 - 1;
const ROOT: usize = NODES - 1;
const MAX_FREQUENCY: u16 = 0x8000;

/// The code tree. Nodes are ordered by frequency; the children of a node are neighbours.
struct Tree {
    frequency: [u16; NODES + 1],
    /// Of a node, and from `NODES` on of a symbol's leaf.
    parent: [usize; NODES + SYMBOLS],
    /// The first of two children; from `NODES` on a symbol.
    child: [usize; NODES],
}

#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "every number in the tree comes from its own construction: nodes below NODES, symbols below SYMBOLS; \
              frequencies stay at or below MAX_FREQUENCY, and the last entry, 0xffff, ends each search"
)]
impl Tree {
    fn new() -> Self {
        let mut tree = Self { frequency: [0; NODES + 1], parent: [0; NODES + SYMBOLS], child: [0; NODES] };
        for symbol in 0..SYMBOLS {
            tree.frequency[symbol] = 1;
            tree.child[symbol] = symbol + NODES;
            tree.parent[symbol + NODES] = symbol;
        }
        for node in SYMBOLS..NODES {
            let first = (node - SYMBOLS) * 2;
            tree.frequency[node] = tree.frequency[first] + tree.frequency[first + 1];
            tree.child[node] = first;
            tree.parent[first] = node;
            tree.parent[first + 1] = node;
        }
        tree.frequency[NODES] = u16::MAX;
        tree
    }

    /// Halves all frequencies and builds the tree anew.
    fn rebuild(&mut self) {
        let mut leaves = 0;
        for node in 0..NODES {
            if self.child[node] >= NODES {
                self.frequency[leaves] = self.frequency[node].div_ceil(2);
                self.child[leaves] = self.child[node];
                leaves += 1;
            }
        }
        for node in SYMBOLS..NODES {
            let first = (node - SYMBOLS) * 2;
            let sum = self.frequency[first] + self.frequency[first + 1];
            let place = self.frequency[..node].partition_point(|&frequency| frequency <= sum);
            self.frequency.copy_within(place..node, place + 1);
            self.child.copy_within(place..node, place + 1);
            self.frequency[place] = sum;
            self.child[place] = first;
        }
        for node in 0..NODES {
            let child = self.child[node];
            self.parent[child] = node;
            if child < NODES {
                self.parent[child + 1] = node;
            }
        }
    }

    /// Counts a symbol, from its leaf up to the root.
    fn count(&mut self, symbol: usize) {
        if self.frequency[ROOT] == MAX_FREQUENCY {
            self.rebuild();
        }
        let mut node = self.parent[symbol + NODES];
        loop {
            self.frequency[node] += 1;
            let own = self.frequency[node];
            if own > self.frequency[node + 1] {
                // Changes places with the last node that is now too low.
                let mut other = node + 1;
                while own > self.frequency[other + 1] {
                    other += 1;
                }
                self.frequency.swap(node, other);
                self.child.swap(node, other);
                for moved in [node, other] {
                    let child = self.child[moved];
                    self.parent[child] = moved;
                    if child < NODES {
                        self.parent[child + 1] = moved;
                    }
                }
                node = other;
            }
            if node == ROOT {
                return;
            }
            node = self.parent[node];
        }
    }

    fn symbol(&mut self, bits: &mut Bits<'_>) -> Option<usize> {
        let mut node = self.child[ROOT];
        while node < NODES {
            node = self.child[node + usize::from(bits.next()?)];
        }
        let symbol = node - NODES;
        self.count(symbol);
        Some(symbol)
    }
}

/// The bits of the packed bytes, high ones first.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn next(&mut self) -> Option<bool> {
        let byte = *self.bytes.get(self.at / 8)?;
        let mask = 0x80u8.wrapping_shr(u32::try_from(self.at % 8).ok()?);
        self.at = self.at.checked_add(1)?;
        Some(byte & mask != 0)
    }

    fn number(&mut self, count: u32) -> Option<usize> {
        (0..count).try_fold(0usize, |number, _| Some(number << 1 | usize::from(self.next()?)))
    }

    /// A distance, less one. Its six high bits have codes of 3 bits (the first), 4 (the next 3),
    /// 5 (8), 6 (12), 7 (24) and 8 (16), in ascending order.
    fn distance(&mut self) -> Option<usize> {
        let mut high = 0usize;
        let mut code = self.number(3)?;
        let mut first = 0usize;
        for count in [1usize, 3, 8, 12, 24, 16] {
            let within = code.checked_sub(first)?;
            if within < count {
                return Some(high.checked_add(within)? << 6 | self.number(6)?);
            }
            high = high.checked_add(count)?;
            first = first.checked_add(count)? << 1;
            code = code << 1 | usize::from(self.next()?);
        }
        None
    }
}

/// Unpacks until the input ends, or `limit` is reached.
pub(super) fn unpack(packed: &[u8], limit: usize) -> Vec<u8> {
    let mut bits = Bits { bytes: packed, at: 0 };
    let mut tree = Tree::new();
    // The window is full of blanks at first.
    let mut unpacked = vec![b' '; WINDOW];
    while let Some(symbol) = (unpacked.len() < limit).then(|| tree.symbol(&mut bits)).flatten() {
        if let Ok(byte) = u8::try_from(symbol) {
            unpacked.push(byte);
            continue;
        }
        let Some(distance) = bits.distance() else { break };
        let len = symbol.saturating_sub(255).saturating_add(THRESHOLD);
        for _ in 0..len {
            let from = unpacked.len().saturating_sub(distance.saturating_add(1));
            let byte = unpacked.get(from).copied().unwrap_or(b' ');
            unpacked.push(byte);
        }
    }
    unpacked.drain(..WINDOW);
    unpacked
}
