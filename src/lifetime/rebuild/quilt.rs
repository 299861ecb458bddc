//! The rows of a quilt: its members that are named by CIDs.
//!
//! **Problem.** A quilt is a matrix of symbols, stored row by row, and each member has whole
//! columns of it. So its own index, which lies in the first columns, is scattered over the blob,
//! and names no lengths of members, which rows need.
//!
//! **Outline.** An aggregator lists the members with their patch IDs, which tell their columns. The
//! beginning of a member tells its length, and the beginnings of all members lie in the first row
//! of the matrix: one read of a part of the blob, 1/334 of it on a network of 1,000 shards. (With
//! symbols of less than six bytes, that takes a second or a third row.)
//!
//! Nothing of this is trusted: a length has to fit the columns, and a reader checks each block.

use std::collections::BTreeMap;

use data_encoding::BASE32_NOPAD;
use parking_lot::Mutex;
use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
use crate::multihash::{varint, varint_len, KeyMultihash};
use crate::patch::Columns;
use crate::upload::quilt::{Matrix, HAS_TAGS, MEMBER_HEAD, VERSION};
use crate::walrus::{BlobStore, Check};

/// What the beginning of a member tells: version, length of the rest (u32 LE), and whether it has
/// tags.
const HEAD: usize = MEMBER_HEAD as usize;

/// The blocks of a quilt.
pub(super) struct Quilt {
    /// Length of the blob (bytes).
    pub(super) blob_len: u64,
    pub(super) blocks: Vec<Member>,
}

/// A block that is a member of a quilt.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) key: String,
    pub(super) patch_id: String,
    /// Length of the block (bytes).
    pub(super) len: u64,
}

/// A member, as an aggregator lists it.
#[derive(Deserialize)]
struct Listed {
    identifier: String,
    patch_id: String,
    #[serde(default)]
    tags: BTreeMap<String, String>,
}

/// How many bytes of the blob hold the beginnings of all columns.
fn heads(matrix: Matrix) -> u64 {
    MEMBER_HEAD.div_ceil(matrix.symbol).min(matrix.rows) * matrix.row()
}

/// The beginning of a column, of the first rows.
fn head(matrix: Matrix, rows: &[u8], column: u64) -> Option<[u8; HEAD]> {
    let mut head = [0; HEAD];
    for (at, byte) in head.iter_mut().enumerate() {
        let at = matrix.place(column, at as u64);
        *byte = *rows.get(usize::try_from(at).ok()?)?;
    }
    Some(head)
}

/// The blocks of a blob, if it is a quilt of a network of so many shards.
///
/// # Errors
/// [`ErrorKind::Corrupt`]: it is a quilt, and damaged. [`ErrorKind::Unsupported`]: no member of it
/// is named by a CID. Those of a read.
pub(super) async fn rebuild_quilt(
    store: &dyn BlobStore,
    blob_id: &str,
    n_shards: u32,
) -> Result<Option<Quilt>> {
    let any: Check<'_> = &|_| Ok(());
    let first = store.read_block(blob_id, 0, 1, 0, any).await?;
    let (Some(blob_len), Some(&VERSION)) = (first.total, first.bytes.first()) else {
        return Ok(None);
    };
    let Some(matrix) = Matrix::of(blob_len, n_shards) else {
        return Ok(None);
    };
    let listed = members(store, blob_id).await?;
    let heads = store.read_range(blob_id, 0, heads(matrix), any).await?;
    let mut blocks = Vec::with_capacity(listed.len());
    for member in listed {
        let Some(key) = key_of_cid(&member.identifier) else {
            continue;
        };
        let len = len_of(&member, blob_id, matrix, &heads).ok_or_else(|| {
            let text = format!(
                "quilt {blob_id} is damaged, or of a network of other than {n_shards} shards (nShards): its member {:?} does not fit its place",
                member.identifier
            );
            Error::new(ErrorKind::Corrupt, text)
        })?;
        blocks.push(Member {
            key,
            patch_id: member.patch_id,
            len,
        });
    }
    if blocks.is_empty() {
        let text = format!("quilt {blob_id} has no member that is named by a CID");
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    Ok(Some(Quilt { blob_len, blocks }))
}

async fn members(store: &dyn BlobStore, blob_id: &str) -> Result<Vec<Listed>> {
    let listed = Mutex::new(None);
    let check = |answer: &[u8]| {
        let read = serde_json::from_slice::<Vec<Listed>>(answer);
        *listed.lock() = Some(read.map_err(|e| format!("no list of the members of a quilt: {e}"))?);
        Ok(())
    };
    store.members(blob_id, &check).await?;
    listed.into_inner().ok_or_else(|| {
        let text = format!("the members of quilt {blob_id} were not checked");
        Error::new(ErrorKind::Internal, text)
    })
}

/// The length of a member, if it fits its place.
fn len_of(member: &Listed, blob_id: &str, matrix: Matrix, heads: &[u8]) -> Option<u64> {
    let columns = Columns::of(&member.patch_id, blob_id)?;
    let (start, end) = (u64::from(columns.start()), u64::from(columns.end()));
    if end > matrix.columns {
        return None;
    }
    let [version, a, b, c, d, flags] = head(matrix, heads, start)?;
    let rest = u64::from(u32::from_le_bytes([a, b, c, d]));
    let taken = matrix.columns_of(MEMBER_HEAD + rest);
    if version != VERSION || start.checked_add(taken)? != end {
        return None;
    }
    let text = |text: &str| varint_len(text.len() as u64) + text.len() as u64;
    let tags = match flags & HAS_TAGS {
        0 => 0,
        _ => {
            let tags = member.tags.iter().map(|(k, v)| text(k) + text(v));
            2 + varint_len(member.tags.len() as u64) + tags.sum::<u64>()
        }
    };
    rest.checked_sub(2 + text(&member.identifier) + tags)
}

/// The key of the block that a CID names: one of version 1 in base32, as `ipfs` prints it.
fn key_of_cid(text: &str) -> Option<String> {
    let digits = text.strip_prefix('b')?.to_ascii_uppercase();
    let bytes = BASE32_NOPAD.decode(digits.as_bytes()).ok()?;
    let (version, rest) = varint(&bytes)?;
    let (_codec, rest) = varint(rest)?;
    let (code, rest) = varint(rest)?;
    let (len, digest) = varint(rest)?;
    (version == 1 && len == digest.len() as u64).then(|| KeyMultihash::key(code, digest))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cids_are_keys() {
        let cid = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";
        let key = key_of_cid(cid).unwrap();
        assert_eq!(key.len(), 56);
        assert!(key.starts_with("/CIQ"), "{key}");
        for none in [
            "",
            "b",
            "name.txt",
            &cid[1..],
            &cid[..58],
            "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKqj1x",
        ] {
            assert_eq!(key_of_cid(none), None, "{none}");
        }
    }

    #[test]
    fn a_matrix_fills_its_blob() {
        let cells = 334 * 667;
        let matrix = Matrix::of(302 * cells, 1000).unwrap();
        assert_eq!(
            (matrix.rows, matrix.columns, matrix.symbol),
            (334, 667, 302)
        );
        assert_eq!(heads(matrix), 667 * 302);
        assert_eq!(heads(Matrix::of(2 * cells, 1000).unwrap()), 3 * 667 * 2);
        for none in [0, cells, 302 * cells + 1, 302 * cells - 1, 65_536 * cells] {
            assert!(Matrix::of(none, 1000).is_none(), "{none}");
        }
        assert!(Matrix::of(100, 0).is_none());
    }
}
