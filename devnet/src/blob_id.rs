//! Blob IDs, the geometry of the encoding, and what a blob costs.
//!
//! A blob is laid out as a matrix of *symbols*, expanded by Reed-Solomon codes to one row and one
//! column per shard; the blob ID commits to every cell of that matrix. Only the hashes are wanted
//! here, so cells are made and dropped column by column and the expanded matrix never exists as a
//! whole.

use std::fmt;
use std::str::FromStr;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use blake2b_simd::many::{hash_many, HashManyJob};
use blake2b_simd::Params;
use rayon::prelude::*;
use reed_solomon_simd::ReedSolomonEncoder;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The largest symbol the code allows, in bytes.
const MAX_SYMBOL: usize = 65_534;
/// The byte that stands for the encoding `RS2` in a blob ID.
const ENCODING_RS2: u8 = 1;

/// A blob ID: 32 bytes, written as 43 characters of unpadded base64url.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobId(pub [u8; 32]);

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a blob ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobIdParseError;

impl fmt::Display for BlobIdParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed to parse a blob ID")
    }
}

impl std::error::Error for BlobIdParseError {}

impl FromStr for BlobId {
    type Err = BlobIdParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| BlobIdParseError)?;
        Ok(BlobId(bytes.try_into().map_err(|_| BlobIdParseError)?))
    }
}

impl Serialize for BlobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BlobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::text::parse(deserializer)
    }
}

/// The content cannot be encoded with this number of shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge;

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the data is too large to be encoded/decoded")
    }
}

impl std::error::Error for TooLarge {}

/// The shape of the encoding for a number of shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    n: usize,
    rows: usize,
    columns: usize,
}

impl Geometry {
    /// The geometry for `n` shards.
    ///
    /// # Errors
    ///
    /// Fewer than 4 shards tolerate no fault and have no code; more than 65,535 do not fit it.
    pub fn new(n: u16) -> Result<Self, String> {
        if n < 4 {
            return Err(format!("at least 4 shards are needed, not {n}"));
        }
        let n = usize::from(n);
        let faulty = (n - 1) / 3;
        Ok(Geometry {
            n,
            rows: n - 2 * faulty,
            columns: n - faulty,
        })
    }

    /// Number of shards.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.n
    }

    /// Source rows (primary source symbols).
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Source columns (secondary source symbols).
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The largest content, in bytes.
    #[must_use]
    pub fn max_size(&self) -> u64 {
        (self.rows * self.columns * MAX_SYMBOL) as u64
    }

    /// Bytes per symbol for content of this length.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] above [`Geometry::max_size`].
    pub fn symbol_size(&self, len: u64) -> Result<usize, TooLarge> {
        if len > self.max_size() {
            return Err(TooLarge);
        }
        let symbol = len.max(1).div_ceil((self.rows * self.columns) as u64) as usize;
        Ok(symbol.next_multiple_of(2))
    }

    /// The encoded length, which is what storage is billed by.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] above [`Geometry::max_size`].
    pub fn encoded_length(&self, len: u64) -> Result<u64, TooLarge> {
        let n = self.n as u64;
        let symbol = self.symbol_size(len)? as u64;
        Ok(n * (64 * n + 32) + n * (self.rows + self.columns) as u64 * symbol)
    }

    /// Billed units (begun MiB of encoded length).
    ///
    /// # Errors
    ///
    /// [`TooLarge`] above [`Geometry::max_size`].
    pub fn units(&self, len: u64) -> Result<u64, TooLarge> {
        Ok(self.encoded_length(len)?.div_ceil(1 << 20))
    }

    /// The true blob ID of this content.
    ///
    /// Computed on the rayon pool; a fixed amount of work (about `3·n²` hashes) dominates, so
    /// never call it on an async worker.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] above [`Geometry::max_size`].
    pub fn blob_id(&self, data: &[u8]) -> Result<BlobId, TooLarge> {
        let symbol = self.symbol_size(data.len() as u64)?;
        let (n, rows, columns) = (self.n, self.rows, self.columns);
        let row_len = columns * symbol;

        // Every source row, expanded: the recovery cells only, the source cells stay in `data`.
        let recovery_len = (n - columns) * symbol;
        let mut recovery = vec![0u8; rows * recovery_len];
        recovery
            .par_chunks_mut(recovery_len)
            .enumerate()
            .for_each_init(
                || (encoder(columns, n - columns, symbol), Vec::new()),
                |(encoder, padded), (row, out)| {
                    let start = row * row_len;
                    if start >= data.len() {
                        return; // padding only, and the code of zeros is zeros
                    }
                    let end = start + row_len;
                    let cells = if end <= data.len() {
                        &data[start..end]
                    } else {
                        padded.clear();
                        padded.extend_from_slice(&data[start..]);
                        padded.resize(row_len, 0);
                        &padded[..]
                    };
                    expand(encoder, cells.chunks_exact(symbol), out, symbol);
                },
            );

        // Every column, expanded and hashed. `leaves` holds them column after column.
        let mut leaves = vec![[0u8; 32]; n * n];
        let secondary: Vec<Digest> = leaves
            .par_chunks_mut(n)
            .enumerate()
            .map_init(
                || Column {
                    encoder: encoder(rows, n - rows, symbol),
                    cells: vec![0; n * symbol],
                    hasher: Hasher::default(),
                },
                |worker, (column, leaves)| {
                    let (source, repair) = worker.cells.split_at_mut(rows * symbol);
                    for (row, cell) in source.chunks_exact_mut(symbol).enumerate() {
                        if column < columns {
                            copy_padded(cell, data, row * row_len + column * symbol);
                        } else {
                            let at = row * recovery_len + (column - columns) * symbol;
                            cell.copy_from_slice(&recovery[at..at + symbol]);
                        }
                    }
                    expand(
                        &mut worker.encoder,
                        source.chunks_exact(symbol),
                        repair,
                        symbol,
                    );
                    worker
                        .hasher
                        .leaves(worker.cells.chunks_exact(symbol), leaves);
                    worker.hasher.root(leaves)
                },
            )
            .collect();
        drop(recovery);

        let primary: Vec<Digest> = (0..n)
            .into_par_iter()
            .map_init(
                || (Hasher::default(), vec![[0u8; 32]; n]),
                |(hasher, row_leaves), row| {
                    for (column, leaf) in row_leaves.iter_mut().enumerate() {
                        *leaf = leaves[column * n + row];
                    }
                    hasher.root(row_leaves)
                },
            )
            .collect();

        let mut hasher = Hasher::default();
        let pairs: Vec<[u8; 64]> = (0..n)
            .map(|i| join(&primary[i], &secondary[n - 1 - i]))
            .collect();
        let mut pair_leaves = vec![[0u8; 32]; n];
        hasher.leaves(pairs.iter().map(<[u8; 64]>::as_slice), &mut pair_leaves);
        let root = hasher.root(&pair_leaves);

        let mut message = Vec::with_capacity(41);
        message.push(ENCODING_RS2);
        message.extend_from_slice(&(data.len() as u64).to_le_bytes());
        message.extend_from_slice(&root);
        Ok(BlobId(digest(&message)))
    }
}

/// A blob ID that is a plain hash of content and length: not the one that Walrus would give, but
/// about as cheap as reading the content. It tells apart all contents that are not made to collide.
#[must_use]
pub fn cheap_blob_id(data: &[u8]) -> BlobId {
    const KEYS: [u64; 4] = [
        0x9e37_79b9_7f4a_7c15,
        0xbf58_476d_1ce4_e5b9,
        0x94d0_49bb_1331_11eb,
        0xd6e8_feb8_6659_fd93,
    ];
    // Four independent lanes, so that their multiplications overlap.
    fn absorb(lanes: &mut [u64; 4], block: &[u8; 64]) {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&block[at..at + 8]);
            u64::from_le_bytes(word)
        };
        for (i, lane) in lanes.iter_mut().enumerate() {
            let (a, b) = (word(i * 16) ^ KEYS[i], word(i * 16 + 8) ^ *lane);
            let product = u128::from(a) * u128::from(b);
            let folded = product as u64 ^ (product >> 64) as u64;
            // A factor of zero must not make the lane forget.
            *lane = lane.rotate_left(23).wrapping_add(folded) ^ a;
        }
    }
    let mut lanes = KEYS;
    let mut blocks = data.chunks_exact(64);
    let mut block = [0; 64];
    for bytes in &mut blocks {
        block.copy_from_slice(bytes);
        absorb(&mut lanes, &block);
    }
    let rest = blocks.remainder();
    let mut last = [0; 64];
    last[..rest.len()].copy_from_slice(rest);
    absorb(&mut lanes, &last);
    let mut message = [0; 40];
    message[..8].copy_from_slice(&(data.len() as u64).to_le_bytes());
    for (out, lane) in message[8..].chunks_exact_mut(8).zip(lanes) {
        out.copy_from_slice(&lane.to_le_bytes());
    }
    BlobId(digest(&message))
}

type Digest = [u8; 32];

struct Column {
    encoder: ReedSolomonEncoder,
    cells: Vec<u8>,
    hasher: Hasher,
}

fn encoder(original: usize, recovery: usize, symbol: usize) -> ReedSolomonEncoder {
    ReedSolomonEncoder::new(original, recovery, symbol)
        .expect("geometry and symbol size are within the limits of the code")
}

/// Encodes `cells` and writes the recovery cells to `out`.
fn expand<'a>(
    encoder: &mut ReedSolomonEncoder,
    cells: impl Iterator<Item = &'a [u8]>,
    out: &mut [u8],
    symbol: usize,
) {
    for cell in cells {
        encoder
            .add_original_shard(cell)
            .expect("as many cells of the declared size as declared");
    }
    let result = encoder.encode().expect("all cells were added");
    for (to, from) in out.chunks_exact_mut(symbol).zip(result.recovery_iter()) {
        to.copy_from_slice(from);
    }
}

/// Copies the cell at `start` of `data`, which is followed by zeros without end.
fn copy_padded(cell: &mut [u8], data: &[u8], start: usize) {
    let available = data.get(start..).unwrap_or_default();
    let copied = available.len().min(cell.len());
    cell[..copied].copy_from_slice(&available[..copied]);
    cell[copied..].fill(0);
}

fn join(left: &Digest, right: &Digest) -> [u8; 64] {
    let mut both = [0; 64];
    both[..32].copy_from_slice(left);
    both[32..].copy_from_slice(right);
    both
}

fn params() -> Params {
    let mut params = Params::new();
    params.hash_length(32);
    params
}

fn digest(message: &[u8]) -> Digest {
    let mut out = [0; 32];
    out.copy_from_slice(params().hash(message).as_bytes());
    out
}

/// Hashes many short messages at once, keeping its buffers between calls.
struct Hasher {
    params: Params,
    messages: Vec<u8>,
    level: Vec<Digest>,
}

impl Default for Hasher {
    fn default() -> Self {
        Hasher {
            params: params(),
            messages: Vec::new(),
            level: Vec::new(),
        }
    }
}

impl Hasher {
    /// `out[i]` = hash of `0x00 ‖ cells[i]`; all cells have the same length.
    fn leaves<'a>(&mut self, cells: impl Iterator<Item = &'a [u8]>, out: &mut [Digest]) {
        self.messages.clear();
        for cell in cells {
            self.messages.push(0);
            self.messages.extend_from_slice(cell);
        }
        let each = self.messages.len() / out.len();
        hash_each(&self.params, &self.messages, each, out);
    }

    /// The Merkle root over these leaves.
    fn root(&mut self, leaves: &[Digest]) -> Digest {
        self.level.clear();
        self.level.extend_from_slice(leaves);
        while self.level.len() > 1 {
            if self.level.len() % 2 == 1 {
                self.level.push([0; 32]);
            }
            self.messages.clear();
            for pair in self.level.chunks_exact(2) {
                self.messages.push(1);
                self.messages.extend_from_slice(&pair[0]);
                self.messages.extend_from_slice(&pair[1]);
            }
            let parents = self.level.len() / 2;
            self.level.truncate(parents);
            hash_each(&self.params, &self.messages, 65, &mut self.level);
        }
        self.level.first().copied().unwrap_or([0; 32])
    }
}

/// Hashes consecutive messages of `each` bytes, several at a time in SIMD lanes.
fn hash_each(params: &Params, messages: &[u8], each: usize, out: &mut [Digest]) {
    const LANES: usize = 8;
    for (messages, out) in messages.chunks(each * LANES).zip(out.chunks_mut(LANES)) {
        let blank = HashManyJob::new(params, &[]);
        let mut jobs: [HashManyJob<'_>; LANES] = std::array::from_fn(|_| blank.clone());
        for (job, message) in jobs.iter_mut().zip(messages.chunks_exact(each)) {
            *job = HashManyJob::new(params, message);
        }
        hash_many(&mut jobs[..out.len()]);
        for (digest, job) in out.iter_mut().zip(&jobs) {
            digest.copy_from_slice(job.to_hash().as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + 3) as u8).collect()
    }

    #[test]
    fn text_form_is_strict() {
        let id = BlobId([7; 32]);
        let text = id.to_string();
        assert_eq!(text.len(), 43);
        assert_eq!(text.parse(), Ok(id));
        assert!(format!("{text}=").parse::<BlobId>().is_err());
        assert!(text[..42].parse::<BlobId>().is_err());
        assert!("".parse::<BlobId>().is_err());
    }

    #[test]
    fn sizes_follow_the_formula() {
        let g = Geometry::new(1000).unwrap();
        assert_eq!((g.rows(), g.columns()), (334, 667));
        assert_eq!(g.max_size(), 14_599_533_452);
        for (len, encoded, units) in [
            (0, 66_034_000, 63),
            (1, 66_034_000, 63),
            (445_556, 66_034_000, 63),
            (445_557, 68_036_000, 65),
            (1 << 20, 70_038_000, 67),
            (4 << 20, 84_052_000, 81),
            (10 << 20, 112_080_000, 107),
            (64 << 20, 366_334_000, 350),
            (1 << 30, 4_888_852_000, 4663),
        ] {
            assert_eq!(g.encoded_length(len), Ok(encoded), "{len}");
            assert_eq!(g.units(len), Ok(units), "{len}");
        }
        assert_eq!(g.units(g.max_size() + 1), Err(TooLarge));
        assert_eq!(Geometry::new(10).unwrap().max_size(), 1_834_952);
        assert!(Geometry::new(3).is_err());
    }

    #[test]
    fn the_last_cell_counts() {
        let g = Geometry::new(10).unwrap();
        let mut data = pattern(1000);
        let id = g.blob_id(&data).unwrap();
        *data.last_mut().unwrap() ^= 1;
        assert_ne!(g.blob_id(&data).unwrap(), id);
        data.push(0);
        assert_ne!(g.blob_id(&data).unwrap(), id);
    }

    #[test]
    fn regression_of_the_reference() {
        let id = Geometry::new(10)
            .unwrap()
            .blob_id(b"walrus blob id v1 regression test")
            .unwrap();
        assert_eq!(
            id.to_string(),
            "RcU82Mwf-CFkv1LaI_2qcpANwpGUuG3TMwnVzZxD2kY"
        );
    }

    #[test]
    fn cheap_ids_tell_contents_apart() {
        let data = pattern(1000);
        let mut seen = std::collections::HashSet::new();
        for len in 0..=data.len() {
            assert!(seen.insert(cheap_blob_id(&data[..len])), "{len}");
            assert!(
                len == 0 || seen.insert(cheap_blob_id(&vec![0; len])),
                "{len}"
            );
        }
        for bit in 0..data.len() * 8 {
            let mut other = data.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(seen.insert(cheap_blob_id(&other)), "{bit}");
        }
        assert_eq!(cheap_blob_id(&data), cheap_blob_id(&pattern(1000)));
    }

    #[test]
    fn oversized_cheaply() {
        let g = Geometry::new(4).unwrap();
        assert!(g.blob_id(&pattern(393_204)).is_ok());
        assert_eq!(g.blob_id(&pattern(393_205)), Err(TooLarge));
    }
}
