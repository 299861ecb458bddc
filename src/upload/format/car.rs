//! The format that describes itself: a CARv2 file, which says which blocks it holds and where.
//!
//! | bytes | part |
//! |---|---|
//! | 11 | pragma: a CARv1 header that says version 2 |
//! | 40 | header: characteristics (16 bytes); CARv1: offset, length; index: offset (u64 LE) |
//! | 18 | a CARv1 begins: its header, without roots |
//! | per block | a section: length of the rest (varint), CID, the block |
//! | the rest | the index, MultihashIndexSorted (0x0401) |
//!
//! The index groups the blocks by hash function and then by the length of the digest, both in
//! ascending order; a group holds digests in ascending order, each with the offset of its section
//! from the beginning of the CARv1.
//! (<https://ipld.io/specs/transport/car/carv2/>)
//!
//! Whoever has the blob can thus import it (`ipfs dag import`), and an index of this node that was
//! lost can be made again. A row holds the place of the block itself, so a reader needs to know
//! nothing of this.
//!
//! A key tells the multihash of its block and no codec. Importers decode a block by the codec of
//! its CID, and one that they cannot decode fails the whole import. So a section is labelled as
//! dag-pb where a link says so and the block is such a node, and else as raw, which is true of any
//! bytes. The CID is always a CIDv1 with a codec of one byte, so that the length of a section tells
//! the length of its block.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{Body, Layout, Parcel, Place};
use crate::multihash::{push_varint, varint_len, KeyMultihash};

/// A CARv1 header that says version 2.
pub(crate) const PRAGMA: [u8; 11] = *b"\x0a\xa1\x67version\x02";

/// Where the CARv1 begins.
pub(crate) const DATA_AT: u64 = 51;

/// The header of a CARv1 without roots.
pub(crate) const DATA_HEADER: [u8; 18] = *b"\x11\xa2\x65roots\x80\x67version\x01";

/// The codec MultihashIndexSorted (0x0401) as a varint.
pub(crate) const INDEX_CODEC: [u8; 2] = [0x81, 0x08];

/// The bytes of a CID before its multihash: version and codec.
pub(crate) const CID_HEAD: u64 = 2;

/// The offset behind each digest of the index (bytes).
pub(crate) const OFFSET_BYTES: u64 = 8;

/// The characteristic "the index holds every section".
pub(crate) const FULLY_INDEXED: u8 = 0x80;

const RAW: u8 = 0x55;
const DAG_PB: u8 = 0x70;

/// The bytes of a file without blocks.
const FRAME: u64 = DATA_AT + DATA_HEADER.len() as u64 + INDEX_CODEC.len() as u64 + 4;

/// The bytes of the index for a hash function (with the number of widths), and for a width (with
/// the length of its digests).
const FUNCTION: u64 = 8 + 4;
const WIDTH: u64 = 4 + 8;

/// The length of a file of so many blocks with so many bytes, or a little less: that of a file
/// whose blocks are short, and have keys of SHA2-256.
pub(crate) fn least_len(blocks: u64, bytes: u64) -> u64 {
    const MULTIHASH: u64 = 2 + 32;
    const BLOCK: u64 = 1 + CID_HEAD + MULTIHASH + 32 + OFFSET_BYTES;
    FRAME + FUNCTION + WIDTH + blocks * BLOCK + bytes
}

/// The groups of an index that is to be written: hash function and length of the digest.
#[derive(Default)]
pub(super) struct Groups(Vec<(u64, u64)>);

impl Groups {
    /// The bytes that a block of `len` bytes takes in the file, the first one with what a file
    /// needs anyway. `None` for a key that is no multihash: such a block can be in no file.
    pub(super) fn room_for(&self, key: &str, len: u64) -> Option<(u64, Group)> {
        let hash = KeyMultihash::of(key)?;
        let cid = CID_HEAD + hash.bytes.len() as u64;
        let digest = (hash.bytes.len() - hash.digest_at) as u64;
        let frame = if self.0.is_empty() { FRAME } else { 0 };
        let group = (hash.code, digest);
        let in_index = match self.0.iter().any(|known| known.0 == hash.code) {
            _ if self.0.contains(&group) => 0,
            true => WIDTH,
            false => FUNCTION + WIDTH,
        };
        let section = varint_len(cid + len) + cid + len;
        let bytes = frame + in_index + section + digest + OFFSET_BYTES;
        Some((bytes, Group(group)))
    }

    /// Notes that a block of this group lies in the file.
    pub(super) fn add(&mut self, Group(group): Group) {
        if !self.0.contains(&group) {
            self.0.push(group);
        }
    }
}

/// The group of a block in an index.
pub(super) struct Group((u64, u64));

/// Whether a file can hold the block of this key.
pub(super) fn takes(key: &str) -> bool {
    KeyMultihash::of(key).is_some()
}

/// What the CID of a block begins with: version and codec.
pub(super) fn cid_head<P: Parcel>(block: &P) -> [u8; CID_HEAD as usize] {
    [1, if block.is_dag_pb() { DAG_PB } else { RAW }]
}

/// How long the CID of a block is in a file (bytes); zero for a block that no file can hold.
pub(crate) fn cid_len(key: &str) -> u64 {
    KeyMultihash::of(key).map_or(0, |hash| CID_HEAD + hash.bytes.len() as u64)
}

/// Whether these bytes are the CID of the block of this key, labelled as dag-pb.
pub(crate) fn labels_dag_pb(cid: &[u8], key: &str) -> bool {
    let hash = cid.strip_prefix(&[1, DAG_PB]);
    hash.is_some_and(|hash| KeyMultihash::of(key).is_some_and(|own| own.bytes == hash))
}

/// A block's entry in the index.
struct Entry {
    hash: KeyMultihash,
    /// Where its section begins in the CARv1.
    section: u64,
}

impl Entry {
    fn digest(&self) -> &[u8] {
        &self.hash.bytes[self.hash.digest_at..]
    }

    /// Its group, and its place there.
    fn rank(&self) -> (u64, usize, &[u8]) {
        (self.hash.code, self.digest().len(), self.digest())
    }
}

/// `None` if the key of a block is no multihash.
pub(super) fn lay_out<P: Parcel>(blocks: &[P]) -> Option<(Body, Layout)> {
    let hashes = blocks.iter().map(|block| KeyMultihash::of(block.key()));
    let hashes = hashes.collect::<Option<Vec<_>>>()?;
    // All heads of sections lie in one buffer, of which the pieces of the body are parts.
    let mut heads = Vec::new();
    let mut ends = Vec::with_capacity(blocks.len());
    let mut places = Vec::with_capacity(blocks.len());
    let mut entries = Vec::with_capacity(blocks.len());
    let mut at = DATA_HEADER.len() as u64;
    for (block, hash) in blocks.iter().zip(hashes) {
        let (len, head_at) = (block.len(), heads.len());
        push_varint(&mut heads, CID_HEAD + hash.bytes.len() as u64 + len);
        heads.extend_from_slice(&cid_head(block));
        heads.extend_from_slice(&hash.bytes);
        ends.push(heads.len());
        let section = at;
        at += (heads.len() - head_at) as u64;
        let offset = DATA_AT + at;
        places.push(Place::range(offset, len));
        at += len;
        entries.push(Entry { hash, section });
    }
    let mut body = Body::default();
    body.push(header(at));
    let mut heads = Bytes::from(heads);
    let mut done = 0;
    for (block, end) in blocks.iter().zip(ends) {
        body.push(heads.split_to(end - done));
        done = end;
        block.append_to(&mut body);
    }
    body.push(index(entries));
    let len = body.len();
    Some((body, Layout { places, len }))
}

/// What lies before the first section of a CARv1 of `data` bytes without roots.
fn header(data: u64) -> Bytes {
    let mut out = BytesMut::new();
    out.put_slice(&file_header(data, true));
    out.put_slice(&DATA_HEADER);
    out.freeze()
}

/// What lies before a CARv1 of `data` bytes that an index follows. `all`: it holds all sections.
pub(crate) fn file_header(data: u64, all: bool) -> Bytes {
    let mut out = BytesMut::new();
    out.put_slice(&PRAGMA);
    out.put_u8(if all { FULLY_INDEXED } else { 0 });
    out.put_bytes(0, 15);
    for number in [DATA_AT, data, DATA_AT + data] {
        out.put_u64_le(number);
    }
    out.freeze()
}

/// The index of a file that is written section by section.
#[derive(Default)]
pub(crate) struct Sections(Vec<Entry>);

impl Sections {
    /// Notes where the section of the block of this key begins in the CARv1. Returns false for a
    /// key that no index can hold.
    pub(crate) fn add(&mut self, key: &str, section: u64) -> bool {
        let hash = KeyMultihash::of(key);
        let entry = hash.map(|hash| Entry { hash, section });
        let taken = entry.is_some();
        self.0.extend(entry);
        taken
    }

    /// The bytes of the index.
    pub(crate) fn index(self) -> Bytes {
        index(self.0)
    }
}

fn index(mut entries: Vec<Entry>) -> Bytes {
    entries.sort_by(|a, b| a.rank().cmp(&b.rank()));
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    let mut out = BytesMut::new();
    out.put_slice(&INDEX_CODEC);
    let functions: Vec<&[Entry]> = entries
        .chunk_by(|a, b| a.hash.code == b.hash.code)
        .collect();
    out.put_u32_le(count(functions.len()));
    for of_function in functions {
        out.put_u64_le(of_function[0].hash.code);
        let same_width = |a: &Entry, b: &Entry| a.digest().len() == b.digest().len();
        let widths: Vec<&[Entry]> = of_function.chunk_by(same_width).collect();
        out.put_u32_le(count(widths.len()));
        for of_width in widths {
            let width = of_width[0].digest().len() + OFFSET_BYTES as usize;
            out.put_u32_le(count(width));
            out.put_u64_le((width * of_width.len()) as u64);
            for entry in of_width {
                out.put_slice(entry.digest());
                out.put_u64_le(entry.section);
            }
        }
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use data_encoding::{BASE32_NOPAD, HEXLOWER};

    use super::*;
    use crate::upload::format::{Fill, Format};

    struct Text(String, &'static [u8], bool);

    impl Parcel for Text {
        fn key(&self) -> &str {
            &self.0
        }

        fn len(&self) -> u64 {
            self.1.len() as u64
        }

        fn is_dag_pb(&self) -> bool {
            self.2
        }

        fn append_to(&self, body: &mut Body) {
            body.push(self.1.into());
        }
    }

    fn key(head: &[u8], digest: &[u8]) -> String {
        let hash = [head, &[digest.len() as u8], digest].concat();
        format!("/{}", BASE32_NOPAD.encode(&hash))
    }

    /// Byte by byte. (Of files with blocks of Kubo, go-car v2.17.0 makes the very same index.)
    #[tokio::test]
    async fn the_file_is_a_carv2_with_an_index() {
        let blocks = [
            Text(key(&[0x12], &[9; 32]), b"second digest", false),
            Text(key(&[0x12], &[2; 32]), b"\x0a\x01x", true),
            Text(key(&[0xa0, 0xe4, 0x02], &[1; 32]), b"", false),
            Text(key(&[0x12], &[7; 20]), b"short digest", false),
        ];
        let (body, layout) = lay_out(&blocks).unwrap();
        let bytes = body.collect().await.unwrap();
        assert_eq!(bytes.len() as u64, layout.len);
        for (block, place) in blocks.iter().zip(&layout.places) {
            let (start, len) = (place.offset as usize, place.len as usize);
            assert_eq!(&bytes[start..start + len], block.1);
        }
        let digest = |byte: u8, len: usize| HEXLOWER.encode(&vec![byte; len]);
        let number = |n: u64| HEXLOWER.encode(&n.to_le_bytes());
        let text = HEXLOWER.encode(b"second digest");
        let short = HEXLOWER.encode(b"short digest");
        let sections = [
            format!("31015512 20{}{text}", digest(9, 32)),
            format!("27017012 20{}0a0178", digest(2, 32)),
            format!("260155a0e402 20{}", digest(1, 32)),
            format!("24015512 14{}{short}", digest(7, 20)),
        ];
        let data = 18 + 50 + 40 + 39 + 37;
        let expected = [
            "0aa16776657273696f6e02 80000000000000000000000000000000".to_owned(),
            number(51) + &number(data) + &number(51 + data),
            "11a265726f6f7473806776657273696f6e01".to_owned(),
            sections.concat(),
            "8108 02000000".to_owned(),
            number(0x12) + "02000000" + "1c000000" + &number(28),
            digest(7, 20) + &number(18 + 50 + 40 + 39),
            "28000000".to_owned() + &number(80),
            digest(2, 32) + &number(18 + 50) + &digest(9, 32) + &number(18),
            number(0xb220) + "01000000" + "28000000" + &number(40),
            digest(1, 32) + &number(18 + 50 + 40),
        ];
        let expected = expected.concat().replace(' ', "");
        assert_eq!(HEXLOWER.encode(&bytes), expected);
        let labelled = blocks.iter().zip(&layout.places).map(|(block, place)| {
            let start = place.offset as usize;
            let cid = &bytes[start - cid_len(&block.0) as usize..start];
            labels_dag_pb(cid, &block.0)
        });
        assert_eq!(labelled.collect::<Vec<_>>(), [false, true, false, false]);
        assert_eq!((cid_len("/a"), labels_dag_pb(b"", "/a")), (0, false));
    }

    /// A file of which nothing was deleted must not count as waste.
    #[test]
    fn the_least_length_is_that_of_short_blocks() {
        for n in [1, 2, 9] {
            let blocks: Vec<_> = (0..n)
                .map(|n| Text(key(&[0x12], &[n; 32]), b"four", false))
                .collect();
            let (_, layout) = lay_out(&blocks).unwrap();
            assert_eq!(least_len(u64::from(n), 4 * u64::from(n)), layout.len);
        }
    }

    #[test]
    fn other_keys_are_not_taken() {
        let good = || Text(key(&[0x12], &[9; 32]), b"block", false);
        assert!(lay_out(&[good()]).is_some());
        for other in ["/a", "/blocks/CIQ", "", &format!("/x{}", good().0)] {
            assert!(lay_out(&[good(), Text(other.into(), b"x", false)]).is_none());
            assert!(Groups::default().room_for(other, 5).is_none(), "{other}");
        }
    }

    #[tokio::test]
    async fn a_pack_is_not_longer_than_was_counted() {
        for (count, value) in [(1, &b""[..]), (300, b"a small block"), (3, &[7; 40_000])] {
            let digest = |n: u64| [&n.to_be_bytes()[..], &[7; 24]].concat();
            // Two functions, and two lengths of digests.
            let kinds = [(0x12, 32), (0x12, 20), (0x13, 32)];
            let block = |n: u64| {
                let (code, len) = kinds[n as usize % 3];
                Text(key(&[code], &digest(n)[..len]), value, false)
            };
            let blocks: Vec<Text> = (0..count).map(block).collect();
            let (_, layout) = lay_out(&blocks).unwrap();
            let mut fill = Fill::new(Format::Car, layout.len);
            assert!(blocks.iter().all(|b| fill.takes(b.key(), b.len())));
            let mut fill = Fill::new(Format::Car, layout.len - 1);
            let taken = blocks.iter().filter(|b| fill.takes(b.key(), b.len()));
            let all_but_one = (count - 1).max(1);
            assert_eq!(taken.count() as u64, all_but_one);
        }
    }
}
