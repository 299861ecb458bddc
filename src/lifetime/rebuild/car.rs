//! The rows of a blob that is a CARv2 file of this program (`upload::format::car` has the layout):
//! which blocks it holds, and where, from its ID alone.
//!
//! **Problem.** Two reads should do, however many blocks there are: the beginning, which says where
//! the index begins, and the index. But the index has no lengths, of itself or of blocks, and an
//! aggregator refuses a range that reaches beyond the end. And a reader cannot trust the bytes
//! of a blob: any user of the network may have stored them.
//!
//! **Outline.** The length of the blob comes with the answer to the first read, where the
//! aggregator tells it. Otherwise the index is read up to where it is known to reach at least,
//! which its own lengths tell from group to group. The length of a block is what is left of its
//! section, up to the next one: sections fill the file, the index holds all of them (as the header
//! says), and before a block stand a varint and a CID of known lengths. Bytes of blocks are not
//! read; a reader checks each block against its key, as always.
//!
//! **Invariants.** What is allocated is in proportion to the bytes that were read, and an index of
//! more than [`MOST`] bytes is not read. Every row lies within the file, and no two overlap.

use bytes::Bytes;
use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::multihash::{varint_len, KeyMultihash};
use crate::upload::car::{
    CID_HEAD, DATA_AT, DATA_HEADER, FULLY_INDEXED, INDEX_CODEC, OFFSET_BYTES, PRAGMA,
};
use crate::walrus::{BlobStore, Check};

/// What is read of a blob first: all that comes before the first section (bytes).
const HEAD: u64 = DATA_AT + DATA_HEADER.len() as u64;

/// The longest index that is read (bytes): 3 million blocks.
const MOST: u64 = 128 << 20;

/// How often an index is read at most, up to where it is known to reach: as often as it has groups.
const ROUNDS: usize = 16;

/// The index up to its groups, and the parts of a group beside its digests (bytes): the function
/// and its number of widths, a width and the length of its digests.
const INDEX_HEAD: u64 = INDEX_CODEC.len() as u64 + 4;
const FUNCTION_HEAD: u64 = 8 + 4;
const WIDTH_HEAD: u64 = 4 + 8;

/// The fewest bytes of a section: length, CID with a digest of 20 bytes.
const SHORTEST: u64 = 1 + CID_HEAD + 2 + 20;

/// The blocks of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilt {
    /// Length of the blob (bytes).
    pub blob_len: u64,
    /// In the order in which they lie in the blob. A key may come more than once.
    pub rows: Vec<RebuiltRow>,
}

/// A block: its key, and where it lies in its blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RebuiltRow {
    /// As in the index: `/` and base32 of the multihash.
    pub key: String,
    /// Its first byte.
    pub offset: u64,
    /// How many bytes it has.
    pub len: u64,
}

/// The blocks of a blob, by two or a few reads of parts of it. Their bytes are not read.
///
/// # Errors
/// [`ErrorKind::Unsupported`]: the blob is no file of this program, so that it does not say which
/// blocks it holds. [`ErrorKind::Corrupt`]: it is such a file, and damaged or forged.
/// [`ErrorKind::BlobNotFound`], and the other errors of a read.
pub async fn rebuild_rows(store: &dyn BlobStore, blob_id: &str) -> Result<Rebuilt> {
    let any: Check<'_> = &|_| Ok(());
    let (head, total) = match part(store, blob_id, 0, HEAD, any).await {
        Err(e) if e.kind() != ErrorKind::BlobNotFound => {
            // A shorter blob has no such range.
            match part(store, blob_id, 0, 1, any).await {
                Ok((_, Some(total))) if total < HEAD => return Err(no_file(blob_id, "too short")),
                _ => return Err(e),
            }
        }
        read => read?,
    };
    let file = match File::of(&head) {
        Ok(file) => file,
        Err(why) => return Err(no_file(blob_id, why)),
    };
    let corrupt = |why: String| {
        let text = format!("blob {blob_id} is a damaged or forged CAR: {why}");
        Error::new(ErrorKind::Corrupt, text)
    };
    let index_at = file.index_at().map_err(corrupt)?;
    let mut upto = match total {
        Some(total) => total.saturating_sub(index_at),
        None => INDEX_HEAD + FUNCTION_HEAD + WIDTH_HEAD,
    };
    if upto < INDEX_HEAD {
        return Err(corrupt(format!("{upto} bytes where its index should be")));
    }
    // With each read the groups that are known become more, or the index ends.
    for _ in 0..ROUNDS {
        if upto > MOST {
            let text = format!("an index of {upto} bytes, of which at most {MOST} are read");
            return Err(corrupt(text));
        }
        let parsed = Mutex::new(None);
        let check = |bytes: &[u8]| {
            let index = file.index(bytes)?;
            let complete = match &index {
                Index::Rows(_) => true,
                Index::Needs(_) => total.is_none(),
            };
            *parsed.lock() = Some(index);
            match complete {
                true => Ok(()),
                false => Err("the index of a CAR is cut short".to_owned()),
            }
        };
        part(store, blob_id, index_at, upto, &check).await?;
        match parsed.into_inner() {
            Some(Index::Rows(rows)) => {
                let blob_len = index_at + upto;
                return Ok(Rebuilt { blob_len, rows });
            }
            Some(Index::Needs(bytes)) if bytes > upto => upto = bytes,
            _ => return Err(corrupt("its index was not checked".to_owned())),
        }
    }
    Err(corrupt("its index has too many groups".to_owned()))
}

fn no_file(blob_id: &str, why: &str) -> Error {
    let text = format!(
        "blob {blob_id} does not say which blocks it holds, so no rows can be made from it: it is no CAR of walrusds ({why})"
    );
    Error::new(ErrorKind::Unsupported, text)
}

/// A part of a blob, and the length of all of it, if the answer tells that.
async fn part(
    store: &dyn BlobStore,
    blob_id: &str,
    offset: u64,
    len: u64,
    check: Check<'_>,
) -> Result<(Bytes, Option<u64>)> {
    let read = store.read_block(blob_id, offset, len, 0, check).await?;
    let (total, bytes) = (read.total, read.bytes);
    let part = match read.whole {
        false => Some(bytes),
        true => usize::try_from(offset).ok().and_then(|start| {
            let end = start.checked_add(usize::try_from(len).ok()?)?;
            (end <= bytes.len()).then(|| bytes.slice(start..end))
        }),
    };
    let part = part.filter(|part| part.len() as u64 == len);
    part.map(|part| (part, total)).ok_or_else(|| {
        let text = format!("blob {blob_id}: other bytes than the {len} at {offset}");
        Error::new(ErrorKind::Corrupt, text)
    })
}

/// A CARv2 file whose sections are all in its index.
#[derive(Debug, Clone, Copy)]
struct File {
    /// Length of the CARv1 (bytes).
    data: u64,
    /// Where the header says that the index begins.
    index: u64,
}

/// What an index tells.
enum Index {
    Rows(Vec<RebuiltRow>),
    /// It has at least so many bytes, which is more than was given.
    Needs(u64),
}

impl File {
    /// Reads the first bytes of a blob; `Err` says why it is no file of this program.
    fn of(head: &[u8]) -> std::result::Result<File, &'static str> {
        let mut head = Input(head);
        if head.bytes(PRAGMA.len() as u64) != Some(&PRAGMA) {
            return Err("it does not begin as a CARv2");
        }
        let characteristics = head.bytes(16);
        let numbers = (head.u64(), head.u64(), head.u64());
        let (Some(characteristics), (Some(at), Some(data), Some(index))) =
            (characteristics, numbers)
        else {
            return Err("too short");
        };
        if characteristics[0] & FULLY_INDEXED == 0 {
            return Err("its index does not hold all blocks");
        }
        if at != DATA_AT || head.0 != DATA_HEADER {
            return Err("another program wrote it");
        }
        Ok(File { data, index })
    }

    fn index_at(self) -> std::result::Result<u64, String> {
        let File { data, index } = self;
        let fits = DATA_AT.checked_add(data) == Some(index) && data >= DATA_HEADER.len() as u64;
        // Offsets of rows are signed numbers.
        match fits && i64::try_from(index).is_ok_and(|at| at <= i64::MAX - MOST as i64) {
            true => Ok(index),
            false => Err(format!(
                "its header names {data} bytes and an index at {index}"
            )),
        }
    }

    /// Reads the beginning of an index, or all of it.
    fn index(self, bytes: &[u8]) -> std::result::Result<Index, String> {
        let given = bytes.len() as u64;
        let mut rest = Input(bytes);
        let read = |rest: &Input<'_>| given - rest.0.len() as u64;
        if rest.bytes(INDEX_CODEC.len() as u64) != Some(&INDEX_CODEC) {
            return Err("its index is of another kind".to_owned());
        }
        let Some(functions) = rest.u32() else {
            return Ok(Index::Needs(INDEX_HEAD));
        };
        let mut sections: Vec<Section<'_>> = Vec::new();
        let mut before = None;
        for _ in 0..functions {
            let needs = read(&rest) + FUNCTION_HEAD + WIDTH_HEAD;
            let (Some(code), Some(widths)) = (rest.u64(), rest.u32()) else {
                return Ok(Index::Needs(needs));
            };
            if before.replace(code).is_some_and(|before| before >= code) || widths == 0 {
                return Err(format!("its index is not in order at function {code:#x}"));
            }
            let mut before = None;
            for _ in 0..widths {
                let needs = read(&rest) + WIDTH_HEAD;
                let (Some(width), Some(len)) = (rest.u32(), rest.u64()) else {
                    return Ok(Index::Needs(needs));
                };
                let width = u64::from(width);
                if before.replace(width).is_some_and(|before| before >= width)
                    || width <= OFFSET_BYTES
                    || len == 0
                    || len % width != 0
                {
                    return Err(format!(
                        "its index has {len} bytes of entries of {width} for function {code:#x}"
                    ));
                }
                // So that a forged count asks for no more than a true file can have.
                let count = sections.len() as u64 + len / width;
                if count > self.data / SHORTEST {
                    return Err(format!(
                        "{count} blocks in its index, and {} bytes for them",
                        self.data
                    ));
                }
                let needs = read(&rest).saturating_add(len);
                let Some(entries) = rest.bytes(len) else {
                    return Ok(Index::Needs(needs));
                };
                Section::read_all(entries, code, width, &mut sections)?;
            }
        }
        match rest.0.is_empty() {
            true => Ok(Index::Rows(self.rows(sections)?)),
            false => Err(format!("{} bytes after its index", rest.0.len())),
        }
    }

    /// The rows of all sections of the file.
    fn rows(self, mut sections: Vec<Section<'_>>) -> std::result::Result<Vec<RebuiltRow>, String> {
        sections.sort_unstable_by_key(|section| section.at);
        let first = sections.first().map_or(self.data, |section| section.at);
        if first != DATA_HEADER.len() as u64 {
            return Err(format!("its first section begins at {first}"));
        }
        let ends = sections.iter().skip(1).map(|section| section.at);
        let ends: Vec<u64> = ends.chain([self.data]).collect();
        let mut rows = Vec::with_capacity(sections.len());
        for (section, end) in sections.iter().zip(ends) {
            let row = section.row(end);
            rows.push(row.ok_or_else(|| {
                let (at, code) = (section.at, section.code);
                format!("no block of function {code:#x} lies between {at} and {end}")
            })?);
        }
        Ok(rows)
    }
}

/// An entry of an index.
struct Section<'a> {
    code: u64,
    digest: &'a [u8],
    /// Its first byte in the CARv1.
    at: u64,
}

impl<'a> Section<'a> {
    /// Reads the entries of a group, each of `width` bytes.
    fn read_all(
        entries: &'a [u8],
        code: u64,
        width: u64,
        into: &mut Vec<Section<'a>>,
    ) -> std::result::Result<(), String> {
        let mut entries = Input(entries);
        let mut before: &[u8] = &[];
        while let (Some(digest), Some(at)) = (entries.bytes(width - OFFSET_BYTES), entries.u64()) {
            if digest < before {
                return Err(format!("its index is not in order for function {code:#x}"));
            }
            before = digest;
            into.push(Section { code, digest, at });
        }
        Ok(())
    }

    /// The row of a section that ends before `end`: behind its length and its CID comes the block.
    fn row(&self, end: u64) -> Option<RebuiltRow> {
        let digest = self.digest.len() as u64;
        let cid = CID_HEAD + varint_len(self.code) + varint_len(digest) + digest;
        let whole = end.checked_sub(self.at)?;
        let len_bytes = (1..=9).find(|bytes| {
            let rest = whole.checked_sub(*bytes);
            rest.is_some_and(|rest| varint_len(rest) == *bytes)
        })?;
        let len = whole.checked_sub(len_bytes + cid)?;
        Some(RebuiltRow {
            key: KeyMultihash::key(self.code, self.digest)?,
            offset: DATA_AT + self.at + len_bytes + cid,
            len,
        })
    }
}

/// Bytes that are taken from the front.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, len: u64) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = rest;
        Some(bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }
}
