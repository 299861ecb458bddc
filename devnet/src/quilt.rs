//! Quilts: many small contents in one blob, each in whole columns of the blob's matrix.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::blob_id::{BlobId, Geometry};

const VERSION: u8 = 1;
/// Version and length before the index.
const INDEX_PREFIX: usize = 5;
/// The index may take so many columns.
const MAX_INDEX_COLUMNS: usize = 10;
const MAX_SYMBOL: usize = 65_534;
const HAS_TAGS: u8 = 1;

/// One content for a new quilt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewPatch {
    pub identifier: String,
    pub tags: BTreeMap<String, String>,
    pub data: bytes::Bytes,
}

/// One content of a quilt, as its index has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Patch {
    pub identifier: String,
    pub tags: BTreeMap<String, String>,
    pub columns: Range<u16>,
}

/// A patch ID: the quilt's blob ID, a version byte and the columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PatchId {
    pub quilt: BlobId,
    pub columns: Range<u16>,
}

impl fmt::Display for PatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(37);
        bytes.extend_from_slice(&self.quilt.0);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.columns.start.to_le_bytes());
        bytes.extend_from_slice(&self.columns.end.to_le_bytes());
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for PatchId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let failed = "failed to parse a quilt patch ID";
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| failed)?;
        let bytes: [u8; 37] = bytes.try_into().map_err(|_| failed)?;
        let mut quilt = [0; 32];
        quilt.copy_from_slice(&bytes[..32]);
        if bytes[32] != VERSION {
            return Err(failed);
        }
        Ok(PatchId {
            quilt: BlobId(quilt),
            columns: u16::from_le_bytes([bytes[33], bytes[34]])
                ..u16::from_le_bytes([bytes[35], bytes[36]]),
        })
    }
}

impl Serialize for PatchId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PatchId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::text::parse(deserializer)
    }
}

/// Returns the fault of a patch's name.
pub(crate) fn check_identifier(identifier: &str) -> Result<(), String> {
    let wrong = if identifier.is_empty() {
        "is empty"
    } else if identifier.len() > 65_535 {
        "is longer than 65535 bytes"
    } else if identifier.ends_with(char::is_whitespace) {
        "ends with white space"
    } else if identifier.contains(char::is_control) {
        "contains control characters"
    } else {
        return Ok(());
    };
    Err(format!("the identifier {identifier:?} {wrong}"))
}

/// Lays out a quilt; returns its bytes and its patches in order.
pub(crate) fn encode(
    geometry: Geometry,
    mut patches: Vec<NewPatch>,
) -> Result<(Vec<u8>, Vec<Patch>), String> {
    let (rows, columns) = (geometry.rows(), geometry.columns());
    if patches.is_empty() {
        return Err("a quilt needs at least one patch".to_owned());
    }
    if patches.len() >= columns {
        return Err(format!(
            "too many patches: {} of at most {}",
            patches.len(),
            columns - 1
        ));
    }
    patches.sort_by(|a, b| a.identifier.cmp(&b.identifier));
    let mut seen = HashSet::new();
    for patch in &patches {
        check_identifier(&patch.identifier)?;
        if !seen.insert(patch.identifier.as_str()) {
            return Err(format!("duplicate identifier {:?}", patch.identifier));
        }
    }

    let blocks: Vec<(Vec<u8>, &NewPatch)> = patches
        .iter()
        .map(|patch| Ok((block_header(patch)?, patch)))
        .collect::<Result<_, String>>()?;
    let index_len = index(&patches, &vec![0; patches.len()]).len();
    let mut sizes = vec![index_len];
    sizes.extend(
        blocks
            .iter()
            .map(|(header, patch)| header.len() + patch.data.len()),
    );
    let symbol = symbol_size(&sizes, rows, columns);
    if symbol > MAX_SYMBOL {
        return Err("the data is too large to be encoded/decoded".to_owned());
    }

    let taken = |size: usize| size.div_ceil(rows * symbol);
    let mut ends = Vec::with_capacity(patches.len());
    let mut column = taken(index_len);
    for size in &sizes[1..] {
        column += taken(*size);
        ends.push(column as u16);
    }
    let mut quilt = vec![0; rows * columns * symbol];
    let mut write = |column: usize, parts: &[&[u8]]| {
        let mut at = 0;
        for part in parts {
            let mut part = *part;
            while !part.is_empty() {
                let (cell, within) = (at / symbol, at % symbol);
                let start = ((cell % rows) * columns + column + cell / rows) * symbol + within;
                let len = part.len().min(symbol - within);
                quilt[start..start + len].copy_from_slice(&part[..len]);
                part = &part[len..];
                at += len;
            }
        }
    };
    write(0, &[&index(&patches, &ends)]);
    let mut stored = Vec::with_capacity(patches.len());
    let mut start = taken(index_len);
    for ((header, patch), end) in blocks.iter().zip(&ends) {
        write(start, &[header, &patch.data]);
        stored.push(Patch {
            identifier: patch.identifier.clone(),
            tags: patch.tags.clone(),
            columns: start as u16..*end,
        });
        start = usize::from(*end);
    }
    Ok((quilt, stored))
}

/// The smallest symbol with which all blocks find room, rounded up to even.
fn symbol_size(sizes: &[usize], rows: usize, columns: usize) -> usize {
    let total: usize = sizes.iter().sum();
    let max = sizes.iter().copied().max().unwrap_or(0);
    let mut low = total
        .div_ceil(columns * rows)
        .max(sizes[0].div_ceil(MAX_INDEX_COLUMNS * rows))
        .max(INDEX_PREFIX.div_ceil(rows));
    let mut high = max.div_ceil(columns / sizes.len() * rows);
    while low < high {
        let middle = low + (high - low) / 2;
        let needed: usize = sizes.iter().map(|size| size.div_ceil(middle * rows)).sum();
        if needed <= columns {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low.next_multiple_of(2)
}

fn index(patches: &[NewPatch], ends: &[u16]) -> Vec<u8> {
    let mut body = Vec::new();
    put_length(&mut body, patches.len());
    for (patch, end) in patches.iter().zip(ends) {
        body.extend_from_slice(&end.to_le_bytes());
        put_text(&mut body, &patch.identifier);
        put_tags(&mut body, &patch.tags);
    }
    let mut block = vec![VERSION];
    block.extend_from_slice(&(body.len() as u32).to_le_bytes());
    block.extend_from_slice(&body);
    block
}

/// The header before the data of a patch.
fn block_header(patch: &NewPatch) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    let mut put = |bytes: &[u8]| -> Result<(), String> {
        let len =
            u16::try_from(bytes.len()).map_err(|_| "identifier or tags are too long".to_owned())?;
        body.extend_from_slice(&len.to_le_bytes());
        body.extend_from_slice(bytes);
        Ok(())
    };
    let mut bytes = Vec::new();
    put_text(&mut bytes, &patch.identifier);
    put(&bytes)?;
    if !patch.tags.is_empty() {
        bytes.clear();
        put_tags(&mut bytes, &patch.tags);
        put(&bytes)?;
    }
    let len = u32::try_from(body.len() + patch.data.len())
        .map_err(|_| "a patch is larger than 4 GiB".to_owned())?;
    let mut block = vec![VERSION];
    block.extend_from_slice(&len.to_le_bytes());
    block.push(if patch.tags.is_empty() { 0 } else { HAS_TAGS });
    block.extend_from_slice(&body);
    Ok(block)
}

fn put_length(out: &mut Vec<u8>, mut len: usize) {
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_length(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn put_tags(out: &mut Vec<u8>, tags: &BTreeMap<String, String>) {
    put_length(out, tags.len());
    let mut entries: Vec<(Vec<u8>, &str)> = tags
        .iter()
        .map(|(key, value)| {
            let mut bytes = Vec::new();
            put_text(&mut bytes, key);
            (bytes, value.as_str())
        })
        .collect();
    entries.sort(); // by serialized key: shorter ones first
    for (key, value) in entries {
        out.extend_from_slice(&key);
        put_text(out, value);
    }
}

/// The blob is no quilt, or a damaged one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// A blob seen as a quilt.
pub(crate) struct Quilt<'a> {
    data: &'a [u8],
    rows: usize,
    columns: usize,
    symbol: usize,
}

impl<'a> Quilt<'a> {
    pub fn new(geometry: Geometry, data: &'a [u8]) -> Result<Self, Malformed> {
        let symbol = geometry.symbol_size(data.len() as u64);
        Ok(Quilt {
            data,
            rows: geometry.rows(),
            columns: geometry.columns(),
            symbol: symbol.map_err(|_| Malformed)?,
        })
    }

    /// The first `len` bytes of the block that begins at this column.
    fn block(&self, column: usize, len: usize) -> Vec<u8> {
        let mut block = Vec::with_capacity(len);
        for cell in 0.. {
            let want = (len - block.len()).min(self.symbol);
            if want == 0 {
                break;
            }
            let (row, column) = (cell % self.rows, column + cell / self.rows);
            let start = (row * self.columns + column) * self.symbol;
            let there = self.data.get(start..).unwrap_or_default();
            let there = &there[..there.len().min(want)];
            block.extend_from_slice(there);
            block.resize(block.len() + want - there.len(), 0);
        }
        block
    }

    pub fn patches(&self) -> Result<Vec<Patch>, Malformed> {
        let column_len = self.rows * self.symbol;
        let prefix = self.block(0, INDEX_PREFIX);
        let mut reader = Reader(&prefix);
        if reader.byte()? != VERSION {
            return Err(Malformed);
        }
        let len = INDEX_PREFIX + reader.u32()? as usize;
        let columns = len.div_ceil(column_len);
        if columns > MAX_INDEX_COLUMNS.min(self.columns) {
            return Err(Malformed);
        }
        let block = self.block(0, len);
        let mut reader = Reader(&block[INDEX_PREFIX..]);
        let count = reader.length()?;
        let mut patches = Vec::new();
        let mut start = columns as u16;
        for _ in 0..count {
            let end = reader.u16()?;
            if end <= start || usize::from(end) > self.columns {
                return Err(Malformed);
            }
            patches.push(Patch {
                identifier: reader.text()?,
                tags: reader.tags()?,
                columns: start..end,
            });
            start = end;
        }
        Ok(patches)
    }

    /// The patch in these columns: its name, tags and data.
    pub fn patch(&self, columns: &Range<u16>) -> Result<NewPatch, Malformed> {
        let (start, end) = (usize::from(columns.start), usize::from(columns.end));
        if start == 0 || start >= end || end > self.columns {
            return Err(Malformed);
        }
        let room = (end - start) * self.rows * self.symbol;
        let prefix = self.block(start, 6.min(room));
        let mut reader = Reader(&prefix);
        if reader.byte()? != VERSION {
            return Err(Malformed);
        }
        let len = 6 + reader.u32()? as usize;
        if len > room {
            return Err(Malformed);
        }
        let block = self.block(start, len);
        let mut reader = Reader(&block[5..]);
        let tagged = reader.byte()? & HAS_TAGS != 0;
        let len = reader.u16()?;
        let identifier = Reader(reader.take(usize::from(len))?).text()?;
        let tags = if tagged {
            let len = reader.u16()?;
            Reader(reader.take(usize::from(len))?).tags()?
        } else {
            BTreeMap::new()
        };
        let data = block.len() - reader.0.len();
        Ok(NewPatch {
            identifier,
            tags,
            data: bytes::Bytes::from(block).slice(data..),
        })
    }
}

/// A member of a quilt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuiltMember {
    /// The name by which it is read.
    pub identifier: String,
    /// Tags, by their names.
    pub tags: BTreeMap<String, String>,
    /// Its columns in the matrix of the quilt.
    pub columns: Range<u16>,
    /// Its content.
    pub data: bytes::Bytes,
}

/// The blob that the publisher makes of these members.
///
/// # Errors
/// The reason for which the publisher refuses them.
pub fn make_quilt(geometry: Geometry, members: &[QuiltMember]) -> Result<Vec<u8>, String> {
    let patches = members.iter().map(|member| NewPatch {
        identifier: member.identifier.clone(),
        tags: member.tags.clone(),
        data: member.data.clone(),
    });
    encode(geometry, patches.collect()).map(|(bytes, _)| bytes)
}

/// The members that the aggregator finds in a blob, in the order of their places; `None` if it is
/// no quilt, or a damaged one.
pub fn read_quilt(geometry: Geometry, blob: &[u8]) -> Option<Vec<QuiltMember>> {
    let quilt = Quilt::new(geometry, blob).ok()?;
    let patches = quilt.patches().ok()?.into_iter();
    let members = patches.map(|patch| {
        let found = quilt.patch(&patch.columns).ok()?;
        let same = found.identifier == patch.identifier && found.tags == patch.tags;
        same.then_some(QuiltMember {
            identifier: patch.identifier,
            tags: patch.tags,
            columns: patch.columns,
            data: found.data,
        })
    });
    members.collect()
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        if len > self.0.len() {
            return Err(Malformed);
        }
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from(self.u16()?) | u32::from(self.u16()?) << 16)
    }

    fn length(&mut self) -> Result<usize, Malformed> {
        let mut len = 0;
        for shift in (0..32).step_by(7) {
            let byte = self.byte()?;
            len |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(len);
            }
        }
        Err(Malformed)
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let len = self.length()?;
        String::from_utf8(self.take(len)?.to_vec()).map_err(|_| Malformed)
    }

    fn tags(&mut self) -> Result<BTreeMap<String, String>, Malformed> {
        let count = self.length()?;
        let mut tags = BTreeMap::new();
        for _ in 0..count {
            tags.insert(self.text()?, self.text()?);
        }
        Ok(tags)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use sha2::{Digest, Sha256};

    use super::*;

    fn pattern(len: usize, seed: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + seed) as u8).collect()
    }

    /// The layout, and for small numbers of shards (and optimised builds) the quilt ID too.
    #[test]
    fn vectors() {
        let vectors: Value =
            serde_json::from_str(include_str!("../tests/vectors/quilt.json")).unwrap();
        for vector in vectors["vectors"].as_array().unwrap() {
            let name = vector["name"].as_str().unwrap();
            let geometry = Geometry::new(vector["n_shards"].as_u64().unwrap() as u16).unwrap();
            let mut new: Vec<NewPatch> = vector["blobs"]
                .as_array()
                .unwrap()
                .iter()
                .map(|blob| NewPatch {
                    identifier: blob["identifier"].as_str().unwrap().to_owned(),
                    tags: serde_json::from_value(blob["tags"].clone()).unwrap(),
                    data: pattern(
                        blob["length"].as_u64().unwrap() as usize,
                        blob["content"].as_str().unwrap()[4..].parse().unwrap(),
                    )
                    .into(),
                })
                .collect();
            let (bytes, patches) = encode(geometry, new.clone()).unwrap();
            assert_eq!(bytes.len(), vector["quilt_length"], "{name}");
            let hash: String = Sha256::digest(&bytes)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            assert_eq!(hash, vector["quilt_sha256"], "{name}");
            let quilt: BlobId = vector["quilt_id"].as_str().unwrap().parse().unwrap();
            if geometry.shards() < 1000 || !cfg!(debug_assertions) {
                assert_eq!(geometry.blob_id(&bytes), Ok(quilt), "{name}");
            }
            let expected = vector["patches"].as_array().unwrap();
            assert_eq!(patches.len(), expected.len());
            new.sort_by(|a, b| a.identifier.cmp(&b.identifier));
            let reader = Quilt::new(geometry, &bytes).unwrap();
            assert_eq!(reader.patches().as_ref(), Ok(&patches), "{name}");
            for ((patch, expected), new) in patches.iter().zip(expected).zip(&new) {
                assert_eq!(patch.identifier, expected["identifier"]);
                let id = PatchId {
                    quilt,
                    columns: patch.columns.clone(),
                };
                assert_eq!(id.to_string(), expected["patch_id"], "{name}");
                assert_eq!(id.to_string().parse(), Ok(id));
                assert_eq!(reader.patch(&patch.columns).as_ref(), Ok(new), "{name}");
            }
        }
    }

    #[test]
    fn what_is_no_quilt() {
        let geometry = Geometry::new(10).unwrap();
        for data in [
            &b""[..],
            b"plain",
            &[1; 1000],
            &[1, 255, 255, 255, 255],
            &[0xff; 64],
        ] {
            let quilt = Quilt::new(geometry, data).unwrap();
            assert_eq!(quilt.patches(), Err(Malformed), "{data:?}");
            for columns in [
                0..1,
                1..2,
                1..7,
                6..7,
                3..3,
                Range { start: 5, end: 2 },
                1..u16::MAX,
            ] {
                assert_eq!(quilt.patch(&columns), Err(Malformed), "{data:?}");
            }
        }
    }

    #[test]
    fn names_are_checked() {
        for wrong in ["", "a ", "a\n", "a\u{7}b"] {
            assert!(check_identifier(wrong).is_err(), "{wrong:?}");
        }
        for right in ["a", " a", "_metadata2", "ä/b?c"] {
            assert_eq!(check_identifier(right), Ok(()));
        }
    }
}
