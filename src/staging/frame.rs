//! How writes lie in a journal segment.
//!
//! A segment begins with [`SEGMENT_MAGIC`] and its number (u64). Then come frames, one per write
//! call, each whole or not there. All numbers are little-endian:
//!
//! ```text
//! magic u32 | crc32 u32 | seq u64 | time u64 | count u32 | table u32      the head, 32 bytes
//! count × ( kind u8 | key length u16 | value length u32 | value's crc32 u32 | key )     the table
//! the values, one after another
//! ```
//!
//! `crc32` covers the head after itself and the table. `seq` is the number of the first entry; numbers
//! go up by one per entry, across segments. `time` is when it was written (milliseconds since 1970).
//! An entry is a put (1), a delete (2; no value), or a note that entries need no upload any more (3; the
//! key is two u64: first and last number).

use bytes::Bytes;

/// First bytes of a segment, with the version of this format.
pub(super) const SEGMENT_MAGIC: &[u8; 8] = b"WDSJRNL1";
/// Bytes before the first frame.
pub(super) const SEGMENT_HEAD: u64 = 16;

const FRAME_MAGIC: u32 = 0x4d46_4457;
pub(super) const FRAME_HEAD: usize = 32;
const ENTRY_HEAD: usize = 11;
/// Longest table that is believed (bytes). A commit has some thousands of entries of about 70 bytes.
const MAX_TABLE: usize = 1 << 30;

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
        key: String,
        /// Where the value begins, counted from the beginning of the frame (bytes).
        offset: u64,
        len: u32,
        crc: u32,
    },
    Delete(String),
    Done(u64, u64),
}

/// The head and table of a frame.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) seq: u64,
    /// When it was written (milliseconds since 1970).
    pub(super) time_ms: u64,
    pub(super) entries: Vec<Entry>,
    /// Length of the frame with its values (bytes).
    pub(super) len: u64,
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

/// The head and table of a frame; the values follow as they are.
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

/// How long the table is, if `head` can be the head of a frame.
pub(super) fn table_len(head: &[u8; FRAME_HEAD]) -> Option<usize> {
    let table = usize::try_from(u32_at(head, 28)?).ok()?;
    (u32_at(head, 0)? == FRAME_MAGIC && table <= MAX_TABLE).then_some(table)
}

/// Reads a frame's head and table; `None` if they are damaged.
pub(super) fn decode(head: &[u8; FRAME_HEAD], table: &[u8]) -> Option<Frame> {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[8..]);
    crc.update(table);
    if table_len(head)? != table.len() || crc.finalize() != u32_at(head, 4)? {
        return None;
    }
    let count = u32_at(head, 24)?;
    let mut entries = Vec::new();
    let mut rest = table;
    let mut len = (FRAME_HEAD + table.len()) as u64;
    for _ in 0..count {
        let (entry, after) = rest.split_at_checked(ENTRY_HEAD)?;
        let key_len = u16::from_le_bytes([entry[1], entry[2]]);
        let value_len = u32_at(entry, 3)?;
        let (key, after) = after.split_at_checked(usize::from(key_len))?;
        rest = after;
        let text = || String::from_utf8(key.to_vec()).ok();
        entries.push(match entry[0] {
            1 => {
                let offset = len;
                len += u64::from(value_len);
                Entry::Put {
                    key: text()?,
                    offset,
                    len: value_len,
                    crc: u32_at(entry, 7)?,
                }
            }
            2 => Entry::Delete(text()?),
            3 => Entry::Done(u64_at(key, 0)?, u64_at(key, 8)?),
            _ => return None,
        });
    }
    rest.is_empty().then_some(Frame {
        seq: u64_at(head, 8)?,
        time_ms: u64_at(head, 16)?,
        entries,
        len,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
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

    fn split(encoded: &[u8]) -> Option<(&[u8; FRAME_HEAD], &[u8])> {
        encoded.split_first_chunk()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(writes in writes(), seq: u64, time: u64) {
            let encoded = encode(seq, time, &writes);
            let (head, table) = split(&encoded).unwrap();
            let frame = decode(head, table).unwrap();
            prop_assert_eq!((frame.seq, frame.time_ms, frame.len), (seq, time, frame_len(&writes)));
            prop_assert_eq!(frame.entries.len(), writes.len());
            let mut at = encoded.len() as u64;
            for (entry, write) in frame.entries.iter().zip(&writes) {
                match write {
                    Write::Put { key: k, value: v, .. } => {
                        prop_assert_eq!(entry, &Entry::Put {
                            key: k.clone(), offset: at, len: v.len() as u32, crc: crc32fast::hash(v),
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
            let (head, table) = split(&encoded).unwrap();
            prop_assert!(decode(head, table).is_none());
        }

        #[test]
        fn noise_is_no_frame(noise in proptest::collection::vec(any::<u8>(), FRAME_HEAD..200)) {
            let (head, table) = split(&noise).unwrap();
            prop_assert!(decode(head, table).is_none());
        }
    }
}
