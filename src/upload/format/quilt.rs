//! The layout of a quilt of Walrus (version 1), whose members any aggregator gives by name.
//!
//! **Layout.** The blob is a matrix of P rows and S columns of symbols, stored row by row (P = 334
//! and S = 667 on a network of 1,000 shards; the length of the blob tells the symbol). Column by
//! column, it holds first the index of the quilt and then the members, each of which begins a new
//! column:
//!
//! - The index: version 1, length of the rest (u32 LE), number of members; per member: the column
//!   after its last one (u16 LE), name, tags.
//! - A member: version 1, length of the rest (u32 LE), whether it has tags, length of the name as
//!   it follows (u16 LE), name, the block.
//!
//! Numbers and lengths of texts are ULEB128; there are no tags here. A name is the CID of the
//! block. The members are sorted by their names and the symbol is the least that is enough, so the
//! blob is byte by byte the one that a publisher makes of the same members.
//!
//! **Price.** Blocks that leave their last column empty are paid for as if they filled it. A quilt
//! of 256 blocks of 256 KiB costs 25 % more than the blocks one after another, one of 222 nothing.
//! So a pack is cut where its blocks fill their columns ([`keep`]), and what would be dear as a
//! quilt ([`Plan::of`]) becomes a CARv2 file.
//!
//! **Places.** The bytes of a member are scattered over the blob in pieces of one symbol, so no
//! range of the blob is a block. A row holds the patch ID of its block.

use std::io;

use bytes::{Bytes, BytesMut};

use super::{Body, Layout, Parcel, Place};
use crate::multihash::{push_varint, varint_len, KeyMultihash};
use crate::patch::Columns;
use crate::walrus::cost;

/// The version of a quilt and of its members.
pub(crate) const VERSION: u8 = 1;

/// What a member begins with: version, length of the rest, whether it has tags.
pub(crate) const MEMBER_HEAD: u64 = 1 + 4 + 1;

/// The flag of a member with tags.
pub(crate) const HAS_TAGS: u8 = 1;

/// Version and length of the rest, before the index.
const INDEX_HEAD: u64 = 1 + 4;

/// The index of a quilt has at most so many columns. With fewer of them, long names enlarge the
/// symbols, so a pack has so many blocks less than columns.
const INDEX_COLUMNS: u64 = 10;

/// The largest symbol of a network (bytes).
pub(crate) const MOST_SYMBOL: u64 = 65_534;

/// A quilt may cost so many per cent of what its blocks cost without anything around them.
const MOST_PERCENT: u64 = 102;

/// The longest quilt that is made (bytes): it is made in memory.
pub(super) const MOST_BYTES: u64 = 256 << 20;

/// Rows, columns and symbol (bytes) of a quilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Matrix {
    pub(crate) rows: u64,
    pub(crate) columns: u64,
    pub(crate) symbol: u64,
}

impl Matrix {
    /// The matrix with this symbol of a network of so many shards.
    fn new(n_shards: u32, symbol: u64) -> Matrix {
        let n = u64::from(n_shards.max(1));
        let faulty = (n - 1) / 3;
        let (rows, columns) = (n - 2 * faulty, n - faulty);
        Matrix {
            rows,
            columns,
            symbol,
        }
    }

    /// The matrix that fills a blob of `len` bytes.
    pub(crate) fn of(len: u64, n_shards: u32) -> Option<Matrix> {
        let cells = Matrix::new(n_shards, 1).len();
        let symbol = len / cells;
        let even = len.is_multiple_of(cells) && symbol.is_multiple_of(2);
        let fits = n_shards > 0 && even && (1..=MOST_SYMBOL).contains(&symbol);
        fits.then(|| Matrix::new(n_shards, symbol))
    }

    /// The bytes of the blob.
    pub(crate) fn len(self) -> u64 {
        self.rows * self.row()
    }

    /// The bytes of a row.
    pub(crate) fn row(self) -> u64 {
        self.columns * self.symbol
    }

    /// How many columns so many bytes take.
    pub(crate) fn columns_of(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.rows * self.symbol)
    }

    /// Where the byte `at` of what begins at a column lies in the blob.
    pub(crate) fn place(self, column: u64, at: u64) -> u64 {
        let (cell, within) = (at / self.symbol, at % self.symbol);
        let (row, column) = (cell % self.rows, column + cell / self.rows);
        row * self.row() + column * self.symbol + within
    }

    /// The content of the member in these columns of a blob; `None` if there is none.
    pub(crate) fn member(self, blob: &[u8], columns: Columns) -> Option<Vec<u8>> {
        let start = u64::from(columns.start());
        let end = u64::from(columns.end());
        let read = |from: u64, len: u64| {
            let (mut bytes, to) = (Vec::new(), from.checked_add(len)?);
            let mut at = from;
            while at < to {
                let piece = (self.symbol - at % self.symbol).min(to - at);
                let place = usize::try_from(self.place(start, at)).ok()?;
                let piece_len = usize::try_from(piece).ok()?;
                bytes.extend_from_slice(blob.get(place..place.checked_add(piece_len)?)?);
                at += piece;
            }
            Some(bytes)
        };
        let head = read(0, MEMBER_HEAD)?;
        let &[VERSION, a, b, c, d, flags] = head.as_slice() else {
            return None;
        };
        let rest = u64::from(u32::from_le_bytes([a, b, c, d]));
        if end > self.columns || start + self.columns_of(MEMBER_HEAD + rest) != end {
            return None;
        }
        let mut rest = read(MEMBER_HEAD, rest)?;
        let skipped = |rest: &[u8]| {
            let (len, after) = rest.split_first_chunk::<2>()?;
            let len = usize::from(u16::from_le_bytes(*len));
            after.get(len..).map(<[u8]>::len)
        };
        let mut left = skipped(&rest)?;
        if flags & HAS_TAGS != 0 {
            left = skipped(&rest[rest.len() - left..])?;
        }
        Some(rest.split_off(rest.len() - left))
    }

    /// The matrix with the least symbol in which an index and members of these lengths find room:
    /// as every encoder of quilts computes it.
    fn least(n_shards: u32, index: u64, members: &[u64]) -> Option<Matrix> {
        let Matrix { rows, columns, .. } = Matrix::new(n_shards, 1);
        let count = members.len() as u64 + 1;
        if members.is_empty() || count > columns {
            return None;
        }
        let all = || std::iter::once(index).chain(members.iter().copied());
        let longest = all().max().unwrap_or(0);
        let mut low = (all().sum::<u64>().div_ceil(columns * rows))
            .max(index.div_ceil(INDEX_COLUMNS * rows))
            .max(INDEX_HEAD.div_ceil(rows));
        let mut high = longest.div_ceil(columns / count * rows);
        while low < high {
            let middle = low + (high - low) / 2;
            let matrix = Matrix::new(n_shards, middle);
            if all().map(|len| matrix.columns_of(len)).sum::<u64>() <= columns {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        let symbol = low.next_multiple_of(2);
        (symbol <= MOST_SYMBOL).then(|| Matrix::new(n_shards, symbol))
    }
}

/// The bytes of a CIDv1 with a codec of one byte, as text.
fn cid_text_len(multihash: u64) -> u64 {
    1 + ((2 + multihash) * 8).div_ceil(5)
}

fn text_len(len: u64) -> u64 {
    varint_len(len) + len
}

/// The lengths of a block and of its name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lengths {
    name: u64,
    block: u64,
}

impl Lengths {
    /// `None` for a key that is no multihash: such a block has no CID.
    pub(super) fn of(key: &str, block: u64) -> Option<Lengths> {
        let hash = KeyMultihash::of(key)?;
        let name = cid_text_len(hash.bytes.len() as u64);
        Some(Lengths { name, block })
    }

    fn member(self) -> u64 {
        MEMBER_HEAD + 2 + text_len(self.name) + self.block
    }

    /// In the index: columns, name, number of tags.
    fn entry(self) -> u64 {
        2 + text_len(self.name) + 1
    }
}

fn index_len(blocks: &[Lengths]) -> u64 {
    let entries = blocks.iter().map(|block| block.entry());
    INDEX_HEAD + varint_len(blocks.len() as u64) + entries.sum::<u64>()
}

/// The length of the least quilt of these blocks (key, length), in bytes; `None` if they make none.
pub(crate) fn least_len<'a>(
    n_shards: u32,
    blocks: impl Iterator<Item = (&'a str, u64)>,
) -> Option<u64> {
    let blocks = blocks.map(|(key, len)| Lengths::of(key, len));
    let blocks: Vec<Lengths> = blocks.collect::<Option<_>>()?;
    let members: Vec<u64> = blocks.iter().map(|block| block.member()).collect();
    Matrix::least(n_shards, index_len(&blocks), &members).map(Matrix::len)
}

/// The number of blocks of a quilt at most.
pub(super) fn most_members(n_shards: u32) -> usize {
    let columns = Matrix::new(n_shards, 1).columns;
    let most = columns.saturating_sub(INDEX_COLUMNS).max(1);
    usize::try_from(most).unwrap_or(usize::MAX)
}

/// The matrix of a quilt of these blocks, if it is no longer than `ceiling` (bytes) and costs
/// hardly more than the blocks alone.
fn cheap(n_shards: u32, ceiling: u64, blocks: &[Lengths]) -> Option<Matrix> {
    if blocks.len() > most_members(n_shards) {
        return None;
    }
    let members: Vec<u64> = blocks.iter().map(|block| block.member()).collect();
    let matrix = Matrix::least(n_shards, index_len(blocks), &members)?;
    let alone = blocks.iter().map(|block| block.block).sum();
    let units = |len| cost::units(len, u16::try_from(n_shards).ok()?);
    let few = units(matrix.len())? * 100 <= units(alone)? * MOST_PERCENT;
    (few && matrix.len() <= ceiling.min(MOST_BYTES)).then_some(matrix)
}

/// How many of the first blocks of a full pack travel in it: as many as make a quilt that costs
/// hardly more than the blocks alone, but no less than three quarters of the bytes, because every
/// blob is billed at least 63 units. All of them if no such number makes a quilt.
pub(super) fn keep(n_shards: u32, ceiling: u64, blocks: &[Lengths]) -> usize {
    let most = blocks.len().min(most_members(n_shards));
    let bytes = |blocks: &[Lengths]| blocks.iter().map(|block| block.block).sum::<u64>();
    let least = bytes(blocks) / 4 * 3;
    let mut held = bytes(&blocks[..most]);
    for count in (1..=most).rev() {
        if held < least {
            break;
        }
        if cheap(n_shards, ceiling, &blocks[..count]).is_some() {
            return count;
        }
        held -= blocks[count - 1].block;
    }
    blocks.len()
}

/// A quilt that is worth its price.
#[derive(Debug)]
pub(super) struct Plan {
    matrix: Matrix,
    /// The names of the blocks, with the number of each block, in ascending order.
    names: Vec<(String, usize)>,
    /// The columns after the last ones of the members, in that order.
    ends: Vec<u16>,
    /// The columns of the index.
    first: u16,
    index_len: u64,
}

impl Plan {
    /// `None` if the blocks are better laid out in another way, or a key is no multihash.
    pub(super) fn of<P: Parcel>(blocks: &[P], n_shards: u32, ceiling: u64) -> Option<Plan> {
        let lengths = blocks.iter().map(|b| Lengths::of(b.key(), b.len()));
        let lengths = lengths.collect::<Option<Vec<_>>>()?;
        let matrix = cheap(n_shards, ceiling, &lengths)?;
        let names = blocks.iter().map(cid).collect::<Option<Vec<_>>>()?;
        Plan::within(matrix, &lengths, names)
    }

    /// The plan for blocks of these lengths and names in a matrix that has room for them. `None` if
    /// a name comes twice.
    fn within(matrix: Matrix, lengths: &[Lengths], names: Vec<String>) -> Option<Plan> {
        let mut names: Vec<_> = names.into_iter().zip(0..).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return None;
        }
        let index_len = index_len(lengths);
        let first = matrix.columns_of(index_len);
        let mut end = first;
        let ends = names.iter().map(|(_, number)| {
            end += matrix.columns_of(lengths[*number].member());
            u16::try_from(end).ok()
        });
        let ends = ends.collect::<Option<Vec<_>>>()?;
        Some(Plan {
            first: u16::try_from(first).ok()?,
            matrix,
            names,
            ends,
            index_len,
        })
    }

    /// The bytes that the quilt takes in memory.
    pub(super) fn len(&self) -> u64 {
        self.matrix.len()
    }

    /// Lays the blocks out, of which this is the plan.
    ///
    /// # Errors
    /// A block cannot be read from the local disk.
    pub(super) async fn lay_out<P: Parcel>(&self, blocks: &[P]) -> io::Result<(Body, Layout)> {
        let len = self.matrix.len();
        let size = usize::try_from(len).map_err(io::Error::other)?;
        let mut quilt = BytesMut::zeroed(size);
        let index = self.index();
        debug_assert_eq!(index.len() as u64, self.index_len);
        self.write(&mut quilt, 0, 0, &index);
        let mut places = vec![Place::range(0, 0); blocks.len()];
        let mut start = self.first;
        for ((name, number), end) in self.names.iter().zip(&self.ends) {
            let block = &blocks[*number];
            let value = value(block).await?;
            let mut head = Vec::with_capacity(80);
            let text = text_len(name.len() as u64);
            head.push(VERSION);
            head.extend_from_slice(&low_bytes::<4>(2 + text + block.len()));
            head.push(0);
            head.extend_from_slice(&low_bytes::<2>(text));
            push_text(&mut head, name);
            self.write(&mut quilt, start, 0, &head);
            self.write(&mut quilt, start, head.len() as u64, &value);
            places[*number] = Place {
                columns: Columns::new(start, *end),
                ..Place::range(0, block.len())
            };
            start = *end;
        }
        let body = Body::from(quilt.freeze());
        Ok((body, Layout { places, len }))
    }

    /// The digest of the index: the names of the members, and their columns.
    pub(super) fn index_digest(&self) -> blake3::Hash {
        blake3::hash(&self.index())
    }

    fn index(&self) -> Vec<u8> {
        let mut index = vec![VERSION];
        index.extend_from_slice(&low_bytes::<4>(self.index_len - INDEX_HEAD));
        push_varint(&mut index, self.names.len() as u64);
        for ((name, _), end) in self.names.iter().zip(&self.ends) {
            index.extend_from_slice(&end.to_le_bytes());
            push_text(&mut index, name);
            push_varint(&mut index, 0);
        }
        index
    }

    /// Writes a part, from its byte `at` on, of what begins at a column.
    fn write(&self, quilt: &mut [u8], column: u16, mut at: u64, mut part: &[u8]) {
        while !part.is_empty() {
            let rest = self.matrix.symbol - at % self.matrix.symbol;
            let len = part.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
            let (piece, after) = part.split_at(len);
            let start = self.matrix.place(column.into(), at);
            let start = usize::try_from(start).unwrap_or(usize::MAX);
            // The plan counted the columns of every part, so all of it lies within the blob.
            quilt[start..start + len].copy_from_slice(piece);
            part = after;
            at += len as u64;
        }
    }
}

/// The lowest bytes of a length, the lowest first. All lengths here are within the blob, and those
/// of names are short.
fn low_bytes<const N: usize>(len: u64) -> [u8; N] {
    let bytes = len.to_le_bytes();
    std::array::from_fn(|at| bytes[at])
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    push_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// The CID of a block, as text: of version 1, in base32. Its codec is that of its section in a
/// CARv2 file.
fn cid<P: Parcel>(block: &P) -> Option<String> {
    let hash = KeyMultihash::of(block.key())?;
    let bytes = [&super::car::cid_head(block), &hash.bytes[..]].concat();
    let digits = data_encoding::BASE32_NOPAD.encode(&bytes);
    Some(format!("b{}", digits.to_ascii_lowercase()))
}

async fn value<P: Parcel>(block: &P) -> io::Result<Bytes> {
    let mut body = Body::default();
    block.append_to(&mut body);
    body.collect().await
}

#[cfg(test)]
mod tests;
