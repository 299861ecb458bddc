//! The layout of a journal segment.
//!
//! A segment begins with a head of 64 bytes. Then come frames, one per write call, each there as a
//! whole or not at all, and then zeroes, or in a sealed segment its table of contents. All numbers
//! are little-endian:
//!
//! ```text
//! magic 8 bytes | number u64 | flags u8 | 11 × 0 | crc32 u32            the segment's head
//! end u64 | contents u64 | contents' crc32 u32 | 8 × 0 | crc32 u32      its seal, or 32 × 0
//! magic u32 | crc32 u32 | seq u64 | time u64 | count u32 | table u32    a frame's head, 32 bytes
//! count × ( kind u8 | key length u16 | value length u32 | value's crc32 u32 | key )    its table
//! the values, one after another
//! ```
//!
//! In the seal, `end` is where the frames end and `contents` the length of the table of contents
//! that follows: for every frame, where it begins (u64), its head and its table. Segments of the
//! first version (`WDSJRNL1`) have a head of magic and number only, and neither zeroes nor
//! contents; they are read, not written.
//!
//! A frame's `crc32` covers the head after itself and the table. `seq` is the number of the first
//! entry; numbers go up by one per entry, across segments. `time` is when it was written
//! (milliseconds since 1970). If the lowest bit of the segment's `flags` is set, the lowest bit of
//! `time` says something else: whether frames before this one were not synced when it was written,
//! so that a power cut may have taken parts of any of them. An entry is a put (1), a delete (2; no
//! value), or a note that entries need no upload any more (3; the key is two u64: first and last
//! number).

use std::sync::Arc;

use bytes::Bytes;

/// First bytes of a segment, with the version of this format, and of the first version.
pub(super) const SEGMENT_MAGIC: &[u8; 8] = b"WDSJRNL2";
const SEGMENT_MAGIC_OLD: &[u8; 8] = b"WDSJRNL1";
/// Bytes before the first frame.
pub(super) const SEGMENT_HEAD: u64 = 64;
pub(super) const SEGMENT_HEAD_OLD: u64 = 16;
/// Where the seal lies in the head, and its length (bytes).
pub(super) const SEAL_AT: u64 = 32;
const SEAL: usize = 32;
/// Where the flags lie in the head, and the flag that the lowest bit of a frame's time tells
/// whether it shares its sync with frames before it.
const FLAGS_AT: usize = 16;
const TELLS_JOINED: u8 = 1;

pub(super) const FRAME_MAGIC: u32 = 0x4d46_4457;
pub(super) const FRAME_HEAD: usize = 32;
/// Where the bytes begin that the checksum of a frame covers.
pub(super) const CHECKED_FROM: usize = 8;
const ENTRY_HEAD: usize = 11;
/// The longest table that is accepted (bytes). A commit has some thousands of entries of about 70
/// bytes.
const MAX_TABLE: usize = 1 << 30;

/// The seal of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seal {
    /// Where the frames end and the table of contents begins (bytes).
    pub(super) end: u64,
    /// Length of the table of contents (bytes).
    pub(super) contents_len: u64,
    pub(super) contents_crc: u32,
}

/// The head of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// Of the first version.
    Old,
    /// Not sealed.
    Open,
    Sealed(Seal),
}

/// The head of a segment that is not sealed.
pub(super) fn encode_head(id: u64) -> [u8; SEGMENT_HEAD as usize] {
    let mut head = [0; SEGMENT_HEAD as usize];
    head[..8].copy_from_slice(SEGMENT_MAGIC);
    head[8..16].copy_from_slice(&id.to_le_bytes());
    head[FLAGS_AT] = TELLS_JOINED;
    let crc = crc32fast::hash(&head[..28]);
    head[28..32].copy_from_slice(&crc.to_le_bytes());
    head
}

/// The bytes at [`SEAL_AT`] in the head: zeroes if the segment is not sealed.
pub(super) fn encode_seal(seal: Option<Seal>) -> [u8; SEAL] {
    let mut out = [0; SEAL];
    if let Some(seal) = seal {
        out[..8].copy_from_slice(&seal.end.to_le_bytes());
        out[8..16].copy_from_slice(&seal.contents_len.to_le_bytes());
        out[16..20].copy_from_slice(&seal.contents_crc.to_le_bytes());
        let crc = crc32fast::hash(&out[..28]);
        out[28..].copy_from_slice(&crc.to_le_bytes());
    }
    out
}

/// Reads the head of segment `id`; `None` if it is damaged or another segment's. A damaged seal
/// counts as none.
pub(super) fn decode_head(head: &[u8], id: u64) -> Option<Head> {
    if u64_at(head, 8)? != id {
        return None;
    }
    if head.starts_with(SEGMENT_MAGIC_OLD) {
        return Some(Head::Old);
    }
    let (name, seal) = head.split_at_checked(SEAL_AT as usize)?;
    if !head.starts_with(SEGMENT_MAGIC) || u32_at(name, 28)? != crc32fast::hash(&name[..28]) {
        return None;
    }
    let end = u64_at(seal, 0)?;
    if end == 0 || u32_at(seal, 28)? != crc32fast::hash(&seal[..28]) {
        return Some(Head::Open);
    }
    Some(Head::Sealed(Seal {
        end,
        contents_len: u64_at(seal, 8)?,
        contents_crc: u32_at(seal, 16)?,
    }))
}

/// Whether the frames of a segment with this head, which was [read](decode_head), tell that they
/// share their sync with frames before them.
pub(super) fn tells_joined(head: &[u8]) -> bool {
    head.starts_with(SEGMENT_MAGIC) && head.get(FLAGS_AT).is_some_and(|f| f & TELLS_JOINED != 0)
}

/// The time of a frame, with the bit that tells whether it shares its sync with frames before it.
pub(super) fn stamp(time_ms: u64, joined: bool) -> u64 {
    (time_ms & !1) | u64::from(joined)
}

/// Adds a frame's head and table to a table of contents.
pub(super) fn push_contents(contents: &mut Vec<u8>, start: u64, encoded: &[u8]) {
    contents.extend_from_slice(&start.to_le_bytes());
    contents.extend_from_slice(encoded);
}

/// The frames of a table of contents, with their offsets (bytes); `None` if it is damaged.
pub(super) fn decode_contents(contents: &[u8]) -> Option<Vec<(u64, Frame)>> {
    let mut frames = Vec::new();
    let mut rest = contents;
    while !rest.is_empty() {
        let start = u64_at(rest, 0)?;
        let encoded = rest.get(8..)?;
        let table = table_len(encoded.first_chunk()?)?;
        let (encoded, after) = encoded.split_at_checked(FRAME_HEAD + table)?;
        frames.push((start, decode(encoded)?));
        rest = after;
    }
    Some(frames)
}

/// One entry of a frame that is to be written.
#[derive(Debug, Clone)]
pub(super) enum Write {
    Put {
        key: String,
        value: Bytes,
        /// crc32 of the value.
        crc: u32,
    },
    Delete(String),
    /// First and last number, both included.
    Done(u64, u64),
}

impl Write {
    pub(super) fn put(key: String, value: Bytes) -> Write {
        let crc = crc32fast::hash(&value);
        Write::Put { key, value, crc }
    }
}

/// One entry of a frame that was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Put {
        key: Arc<str>,
        /// Where the value begins, counted from the beginning of the frame (bytes).
        offset: u64,
        len: u32,
        crc: u32,
    },
    Delete(String),
    Done(u64, u64),
    /// A put whose value is damaged (never in a file).
    Damaged {
        key: Arc<str>,
        offset: u64,
        len: u32,
        crc: u32,
        /// Whether a part of it may never have been written: there are zeroes in its place.
        unwritten: bool,
    },
    /// An entry that cannot be trusted (never in a file).
    Lost,
}

/// The head and table of a frame.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) seq: u64,
    /// When it was written (milliseconds since 1970).
    pub(super) time_ms: u64,
    /// Whether frames before it in the same file were not synced when it was written, as far as
    /// that is known.
    pub(super) joined: bool,
    pub(super) entries: Vec<Entry>,
    /// Length of its head and table (bytes).
    pub(super) head_len: u64,
    /// Length of the frame with its values (bytes).
    pub(super) len: u64,
}

impl Frame {
    /// Whether its time [tells](stamp) that it shares its sync with frames before it.
    pub(super) fn is_marked_joined(&self) -> bool {
        self.time_ms & 1 != 0
    }

    /// The number behind those of its entries.
    pub(super) fn next_seq(&self) -> u64 {
        self.seq.saturating_add(self.entries.len() as u64)
    }
}

/// Bytes that a frame of these writes takes.
pub(super) fn frame_len(writes: &[Write]) -> u64 {
    writes
        .iter()
        .map(|w| {
            let (key, value) = match w {
                Write::Put { key, value, .. } => (key.len(), value.len()),
                Write::Delete(key) => (key.len(), 0),
                Write::Done(..) => (16, 0),
            };
            (ENTRY_HEAD + key + value) as u64
        })
        .sum::<u64>()
        + FRAME_HEAD as u64
}

/// Encodes the head and table of a frame; the values follow them in the file, unchanged.
pub(super) fn encode(seq: u64, time_ms: u64, writes: &[Write]) -> Vec<u8> {
    let mut out = vec![0; FRAME_HEAD];
    for write in writes {
        let range;
        let (kind, key, value_len, crc): (u8, &[u8], usize, u32) = match write {
            Write::Put { key, value, crc } => (1, key.as_bytes(), value.len(), *crc),
            Write::Delete(key) => (2, key.as_bytes(), 0, 0),
            Write::Done(first, last) => {
                range = [first.to_le_bytes(), last.to_le_bytes()].concat();
                (3, &range, 0, 0)
            }
        };
        out.push(kind);
        // Keys have at most MAX_KEY_BYTES and values MAX_VALUE_BYTES: both were checked on entry.
        out.extend_from_slice(&(key.len() as u16).to_le_bytes());
        out.extend_from_slice(&(value_len as u32).to_le_bytes());
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(key);
    }
    let table = (out.len() - FRAME_HEAD) as u32;
    out[0..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
    out[8..16].copy_from_slice(&seq.to_le_bytes());
    out[16..24].copy_from_slice(&time_ms.to_le_bytes());
    out[24..28].copy_from_slice(&(writes.len() as u32).to_le_bytes());
    out[28..32].copy_from_slice(&table.to_le_bytes());
    let crc = crc32fast::hash(&out[8..]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
    out
}

/// The length of the table (bytes), if `head` can be the head of a frame.
pub(super) fn table_len(head: &[u8; FRAME_HEAD]) -> Option<usize> {
    let table = usize::try_from(u32_at(head, 28)?).ok()?;
    (u32_at(head, 0)? == FRAME_MAGIC && table <= MAX_TABLE).then_some(table)
}

/// Reads a frame's head and table; `None` if they are damaged.
pub(super) fn decode(encoded: &[u8]) -> Option<Frame> {
    let (head, table) = encoded.split_first_chunk::<FRAME_HEAD>()?;
    if table_len(head)? != table.len() || crc32fast::hash(&encoded[8..]) != u32_at(head, 4)? {
        return None;
    }
    let count = u32_at(head, 24)?;
    let mut entries = Vec::with_capacity((count as usize).min(table.len() / ENTRY_HEAD));
    let mut rest = table;
    let mut len = encoded.len() as u64;
    for _ in 0..count {
        let (entry, after) = rest.split_at_checked(ENTRY_HEAD)?;
        let key_len = u16::from_le_bytes([entry[1], entry[2]]);
        let value_len = u32_at(entry, 3)?;
        let (key, after) = after.split_at_checked(usize::from(key_len))?;
        rest = after;
        let text = || std::str::from_utf8(key).ok();
        entries.push(match entry[0] {
            1 => {
                let offset = len;
                len += u64::from(value_len);
                Entry::Put {
                    key: text()?.into(),
                    offset,
                    len: value_len,
                    crc: u32_at(entry, 7)?,
                }
            }
            2 => Entry::Delete(text()?.to_owned()),
            3 => Entry::Done(u64_at(key, 0)?, u64_at(key, 8)?),
            _ => return None,
        });
    }
    rest.is_empty().then_some(Frame {
        seq: u64_at(head, 8)?,
        time_ms: u64_at(head, 16)?,
        joined: false,
        entries,
        head_len: encoded.len() as u64,
        len,
    })
}

/// The length of the table that the head of a frame, which may be damaged, gives (bytes).
pub(super) fn declared_table(head: &[u8]) -> u32 {
    u32_at(head, 28).unwrap_or(0)
}

/// Sets the parts of a damaged frame's head that are known: the magic, and the length of its table.
pub(super) fn restore(encoded: &mut [u8], table: u32) {
    encoded[..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
    encoded[28..32].copy_from_slice(&table.to_le_bytes());
}

/// The difference between the checksum that stands in a frame's head and the one of its bytes.
pub(super) fn checksum_difference(encoded: &[u8]) -> u32 {
    u32_at(encoded, 4).unwrap_or(0) ^ crc32fast::hash(&encoded[CHECKED_FROM..])
}

/// Changes the checksum in a frame's head by a difference.
pub(super) fn change_checksum(encoded: &mut [u8], difference: u32) {
    let crc = u32_at(encoded, 4).unwrap_or(0) ^ difference;
    encoded[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// The number and the time that a damaged head gives.
pub(super) fn rough_numbers(encoded: &[u8]) -> (u64, u64) {
    let at = |at| u64_at(encoded, at).unwrap_or(0);
    (at(8), at(16))
}

/// The length of a damaged frame's table (bytes), if as many entries as its head gives stand at its
/// beginning. `bytes` may reach beyond the table.
pub(super) fn table_by_count(bytes: &[u8]) -> Option<u32> {
    let count = u32_at(bytes, 24)?;
    let mut rest = bytes.get(FRAME_HEAD..)?;
    let all = rest.len();
    for _ in 0..count {
        let (entry, after) = rest.split_at_checked(ENTRY_HEAD)?;
        let key_len = usize::from(u16::from_le_bytes([entry[1], entry[2]]));
        if !(1..=3).contains(&entry[0]) || key_len == 0 {
            return None;
        }
        rest = after.get(key_len..)?;
    }
    (count > 0).then(|| u32::try_from(all - rest.len()).ok())?
}

/// The keys in a damaged table, as far as they are text, and the lengths of their values (bytes).
/// It ends where the table makes no sense any more.
pub(super) fn rough_table(encoded: &[u8]) -> impl Iterator<Item = (Option<&str>, u32)> {
    let mut rest = encoded.get(FRAME_HEAD..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (entry, after) = rest.split_at_checked(ENTRY_HEAD)?;
        let key_len = u16::from_le_bytes([entry[1], entry[2]]);
        let (key, after) = after.split_at_checked(usize::from(key_len))?;
        rest = after;
        Some((std::str::from_utf8(key).ok(), u32_at(entry, 3)?))
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn writes() -> impl Strategy<Value = Vec<Write>> {
        let one = prop_oneof![
            (
                "/[A-Z]{0,40}",
                proptest::collection::vec(any::<u8>(), 0..50)
            )
                .prop_map(|(k, v)| Write::put(k, v.into())),
            "/.{0,20}".prop_map(Write::Delete),
            any::<(u64, u64)>().prop_map(|(a, b)| Write::Done(a, b)),
        ];
        proptest::collection::vec(one, 0..20)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(writes in writes(), seq: u64, time: u64) {
            let encoded = encode(seq, time, &writes);
            let frame = decode(&encoded).unwrap();
            let mut contents = Vec::new();
            push_contents(&mut contents, 64, &encoded);
            push_contents(&mut contents, 7, &encoded);
            let listed = decode_contents(&contents).unwrap();
            prop_assert_eq!(listed.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [64, 7]);
            prop_assert!(listed.iter().all(|(_, f)| f.entries == frame.entries && f.len == frame.len));
            prop_assert!(decode_contents(&contents[1..]).is_none());
            prop_assert_eq!((frame.seq, frame.time_ms, frame.len), (seq, time, frame_len(&writes)));
            prop_assert_eq!(frame.entries.len(), writes.len());
            let mut at = encoded.len() as u64;
            for (entry, write) in frame.entries.iter().zip(&writes) {
                match write {
                    Write::Put { key: k, value: v, .. } => {
                        prop_assert_eq!(entry, &Entry::Put {
                            key: k.as_str().into(), offset: at, len: v.len() as u32, crc: crc32fast::hash(v),
                        });
                        at += v.len() as u64;
                    }
                    Write::Delete(k) => prop_assert_eq!(entry, &Entry::Delete(k.clone())),
                    Write::Done(a, b) => prop_assert_eq!(entry, &Entry::Done(*a, *b)),
                }
            }
        }

        #[test]
        fn no_changed_byte_goes_unnoticed(writes in writes(), at: prop::sample::Index, flip in 1u8..) {
            let mut encoded = encode(7, 8, &writes);
            let at = at.index(encoded.len());
            encoded[at] ^= flip;
            prop_assert!(decode(&encoded).is_none());
        }

        #[test]
        fn noise_is_no_frame(noise in proptest::collection::vec(any::<u8>(), FRAME_HEAD..200)) {
            prop_assert!(decode(&noise).is_none());
        }
    }

    #[test]
    fn a_head_says_what_it_was_told_and_no_changed_byte_goes_unnoticed() {
        let seal = Seal {
            end: 1234,
            contents_len: 56,
            contents_crc: 7,
        };
        for (seal, expected) in [(None, Head::Open), (Some(seal), Head::Sealed(seal))] {
            let mut head = encode_head(9);
            head[SEAL_AT as usize..].copy_from_slice(&encode_seal(seal));
            assert_eq!(decode_head(&head, 9), Some(expected));
            assert_eq!(decode_head(&head, 8), None);
            for at in 0..head.len() {
                let mut changed = head;
                changed[at] ^= 1;
                let read = (at >= SEAL_AT as usize).then_some(Head::Open);
                assert_eq!(decode_head(&changed, 9), read, "byte {at}");
            }
        }
        let old = [&SEGMENT_MAGIC_OLD[..], &9u64.to_le_bytes()].concat();
        assert_eq!(decode_head(&old, 9), Some(Head::Old));
    }
}
