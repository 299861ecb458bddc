//! How blocks lie in a segment. Numbers are little-endian.
//!
//! ```text
//! segment  = HEAD record* [table]
//! record   = "wrec" crc:u32 name_len:u16 structure:u16 value_len:u32 value_crc:u32 name value
//! table    = row* "wrdstabl" records_end:u64 rows:u32 crc:u32        (a segment that was finished)
//! row      = tag:u64 offset:u31 structure:u1 value_len:u32
//! ```
//!
//! A file that was taken over from the journal begins with the journal's own head. Its rows lead to
//! pointers, which stand behind its blocks; it has no use without its table:
//!
//! ```text
//! pointer  = "wptr" crc:u32 name_len:u16 0:u16 value_len:u32 value_crc:u32 value_at:u32 name
//! ```
//!
//! `name` is the multihash of the value, `tag` its last eight bytes, `structure` is 1 for a block
//! that is [structure](crate::dag::is_structure). A record's crc covers what
//! stands after it up to the value, `value_crc` the value, the table's crc its rows (all CRC-32).
//! Nothing here is trusted: a table that is wrong costs misses.

use crate::dag;

/// The first bytes of a segment.
pub(super) const HEAD: &[u8; 16] = b"walrusds cache 2";
/// Length of a record before its name (bytes).
pub(super) const RECORD_HEAD: usize = 20;
/// Length of a row of the table (bytes).
pub(super) const ROW: usize = 16;
/// Length of what follows the rows (bytes).
pub(super) const TRAILER: usize = 24;

/// The first bytes of a segment of the journal, which the cache can take over.
pub(crate) const JOURNAL_HEAD: &[u8; 8] = b"WDSJRNL2";
/// Records are found by 30 bits (the others mark what is structure, and what was used): a segment
/// never grows beyond (bytes).
pub(super) const MAX_LEN: u64 = 1 << 30;
/// Marks structure where a record's offset stands.
pub(super) const STRUCTURE: u32 = 1 << 31;
/// Length of a pointer before its name (bytes).
pub(super) const POINTER_HEAD: usize = 24;

const POINTER_MAGIC: &[u8; 4] = b"wptr";
const RECORD_MAGIC: &[u8; 4] = b"wrec";
const TABLE_MAGIC: &[u8; 8] = b"wrdstabl";

/// The part of a record before its value: head and name.
pub(super) fn record_head(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut head = Vec::with_capacity(RECORD_HEAD + name.len());
    head.extend_from_slice(RECORD_MAGIC);
    head.extend_from_slice(&[0; 4]);
    // Names are multihashes of known functions: 70 bytes at most.
    head.extend_from_slice(&(name.len() as u16).to_le_bytes());
    let structure = u16::from(dag::is_structure(value));
    head.extend_from_slice(&structure.to_le_bytes());
    // Values have at most a segment's length, which 32 bits hold.
    head.extend_from_slice(&(value.len() as u32).to_le_bytes());
    head.extend_from_slice(&crc32fast::hash(value).to_le_bytes());
    head.extend_from_slice(name);
    let crc = crc32fast::hash(&head[8..]);
    head[4..8].copy_from_slice(&crc.to_le_bytes());
    head
}

/// Lengths of name and value, if this may be the head of a record.
pub(super) fn record_lengths(head: &[u8; RECORD_HEAD]) -> Option<(usize, u32)> {
    let name_len = u16::from_le_bytes([head[8], head[9]]);
    let value_len = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
    (head.starts_with(RECORD_MAGIC) && head[10] <= 1 && head[11] == 0)
        .then_some((usize::from(name_len), value_len))
}

/// Whether the value behind this undamaged head is structure.
pub(super) fn is_structure(head: &[u8]) -> bool {
    head.get(10) == Some(&1)
}

/// Whether the bytes are an undamaged head and name of a record.
pub(super) fn is_record_head(head: &[u8]) -> bool {
    head.len() >= RECORD_HEAD
        && head.starts_with(RECORD_MAGIC)
        && head[4..8] == crc32fast::hash(&head[8..]).to_le_bytes()
}

/// Whether the bytes are an undamaged head and name of a record of this name, with a value of this
/// length (bytes).
pub(super) fn is_record_of(head: &[u8], name: &[u8], value_len: u32) -> bool {
    let lengths = head.first_chunk().and_then(record_lengths);
    lengths == Some((name.len(), value_len)) && head.ends_with(name) && is_record_head(head)
}

/// The checksum of the value behind this undamaged head.
pub(super) fn value_crc(head: &[u8]) -> u32 {
    let crc = head.get(16..20).and_then(|crc| crc.try_into().ok());
    crc.map_or(0, u32::from_le_bytes)
}

/// A pointer to a value: where it begins, its length (bytes) and its checksum.
pub(super) fn pointer(name: &[u8], (at, len, crc): (u32, u32, u32)) -> Vec<u8> {
    let mut out = Vec::with_capacity(POINTER_HEAD + name.len());
    out.extend_from_slice(POINTER_MAGIC);
    out.extend_from_slice(&[0; 4]);
    // Names are multihashes of known functions: 70 bytes at most.
    out.extend_from_slice(&(name.len() as u16).to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&at.to_le_bytes());
    out.extend_from_slice(name);
    let crc = crc32fast::hash(&out[8..]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Length of the name, if this may be the head of a pointer.
pub(super) fn pointer_name_len(head: &[u8; POINTER_HEAD]) -> Option<usize> {
    let name_len = u16::from_le_bytes([head[8], head[9]]);
    (head.starts_with(POINTER_MAGIC) && head[10..12] == [0, 0]).then_some(usize::from(name_len))
}

/// Where the value begins to which an undamaged pointer leads, its length (bytes) and its checksum.
pub(super) fn pointed_at(pointer: &[u8]) -> Option<(u32, u32, u32)> {
    let (head, name) = pointer.split_first_chunk::<POINTER_HEAD>()?;
    let number = |at: usize| {
        let bytes = head.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let whole =
        pointer_name_len(head)? == name.len() && number(4)? == crc32fast::hash(&pointer[8..]);
    whole.then_some((number(20)?, number(12)?, number(16)?))
}

/// The tag by which a name is found.
pub(super) fn tag(name: &[u8]) -> u64 {
    let mut tag = [0; 8];
    let from = name.len().saturating_sub(8);
    for (to, byte) in tag.iter_mut().zip(&name[from..]) {
        *to = *byte;
    }
    u64::from_le_bytes(tag)
}

/// One record, as the table has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) tag: u64,
    /// Where the record begins in its segment (bytes).
    pub(super) offset: u32,
    pub(super) value_len: u32,
    /// Whether the value is structure.
    pub(super) structure: bool,
}

/// The table of a segment whose records end at `records_end`.
pub(super) fn table(rows: &[Row], records_end: u64) -> Vec<u8> {
    let mut table = Vec::with_capacity(rows.len() * ROW + TRAILER);
    for row in rows {
        table.extend_from_slice(&row.tag.to_le_bytes());
        let mark = if row.structure { STRUCTURE } else { 0 };
        table.extend_from_slice(&(row.offset | mark).to_le_bytes());
        table.extend_from_slice(&row.value_len.to_le_bytes());
    }
    let crc = crc32fast::hash(&table);
    table.extend_from_slice(TABLE_MAGIC);
    table.extend_from_slice(&records_end.to_le_bytes());
    table.extend_from_slice(&(rows.len() as u32).to_le_bytes());
    table.extend_from_slice(&crc.to_le_bytes());
    table
}

/// The end of a table: where the records end, how many rows there are, and their checksum.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) records_end: u64,
    pub(super) rows: u32,
    crc: u32,
}

/// Reads the last bytes of a segment of `len` bytes. `None`: it was not finished.
pub(super) fn trailer(bytes: &[u8; TRAILER], len: u64) -> Option<Trailer> {
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (end, rest) = rest.split_first_chunk::<8>()?;
    let (rows, rest) = rest.split_first_chunk::<4>()?;
    let (crc, _) = rest.split_first_chunk::<4>()?;
    let found = Trailer {
        records_end: u64::from_le_bytes(*end),
        rows: u32::from_le_bytes(*rows),
        crc: u32::from_le_bytes(*crc),
    };
    let table = u64::from(found.rows) * ROW as u64 + TRAILER as u64;
    let fits = found.records_end.checked_add(table) == Some(len);
    (magic == TABLE_MAGIC && fits && found.records_end >= HEAD.len() as u64).then_some(found)
}

/// The rows of a table. `None` if they are damaged.
pub(super) fn rows(trailer: &Trailer, bytes: &[u8]) -> Option<Vec<Row>> {
    if crc32fast::hash(bytes) != trailer.crc {
        return None;
    }
    let (rows, _) = bytes.as_chunks::<ROW>();
    Some(rows.iter().map(row).collect())
}

fn row(bytes: &[u8; ROW]) -> Row {
    let [t0, t1, t2, t3, t4, t5, t6, t7, o0, o1, o2, o3, l0, l1, l2, l3] = *bytes;
    let at = u32::from_le_bytes([o0, o1, o2, o3]);
    Row {
        tag: u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
        offset: at & !STRUCTURE,
        structure: at & STRUCTURE != 0,
        value_len: u32::from_le_bytes([l0, l1, l2, l3]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_head_says_what_was_written_and_shows_damage() {
        let name = [7; 34];
        let value = [9; 300];
        let head = record_head(&name, &value);
        assert!(is_record_head(&head));
        assert!(is_record_of(&head, &name, 300));
        assert!(!is_record_of(&head, &name, 299));
        assert!(!is_record_of(&head, &[8; 34], 300));
        assert_eq!(value_crc(&head), crc32fast::hash(&value));
        for i in 0..value.len() {
            let mut damaged = value;
            damaged[i] ^= 1;
            assert_ne!(value_crc(&head), crc32fast::hash(&damaged), "byte {i}");
        }
        assert_eq!(&head[RECORD_HEAD..], name);
        let fixed = head[..RECORD_HEAD].try_into().unwrap();
        assert_eq!(record_lengths(fixed), Some((34, 300)));
        for i in 0..head.len() {
            let mut damaged = head.clone();
            damaged[i] ^= 1;
            assert!(!is_record_head(&damaged), "byte {i}");
            assert!(!is_record_of(&damaged, &name, 300), "byte {i}");
        }
        assert!(!is_record_head(b"wrec"));
        assert!(!is_record_of(b"wrec", b"", 0));
    }

    #[test]
    fn a_pointer_says_what_was_written_and_shows_damage() {
        let name = [7; 34];
        let place = (5000, 300, 0x1234_5678);
        let written = pointer(&name, place);
        assert_eq!(pointed_at(&written), Some(place));
        let head = written.first_chunk().unwrap();
        assert_eq!(pointer_name_len(head), Some(34));
        assert_eq!(&written[POINTER_HEAD..], name);
        for i in 0..written.len() {
            let mut damaged = written.clone();
            damaged[i] ^= 1;
            assert_eq!(pointed_at(&damaged), None, "byte {i}");
            assert_eq!(pointed_at(&written[..i]), None, "{i} bytes");
        }
    }

    #[test]
    fn a_table_comes_back_or_not_at_all() {
        let all: Vec<Row> = (0..5)
            .map(|i| Row {
                tag: u64::from(i) << 40,
                offset: 16 + i * 50,
                value_len: i,
                structure: i == 3,
            })
            .collect();
        let bytes = table(&all, 1000);
        let read = |bytes: &[u8], len: u64| {
            let (table, end) = bytes.split_last_chunk::<TRAILER>()?;
            rows(&trailer(end, len)?, table)
        };
        let len = 1000 + bytes.len() as u64;
        assert_eq!(read(&bytes, len), Some(all));
        assert_eq!(read(&bytes, len + 1), None, "not the end of the file");
        for i in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[i] ^= 1;
            assert_eq!(read(&damaged, len), None, "byte {i}");
        }
    }

    #[test]
    fn tags_are_the_end_of_the_name() {
        assert_eq!(tag(b"xx\x01\0\0\0\0\0\0\x02"), 0x0200_0000_0000_0001);
        assert_eq!(tag(b"\x05"), 5);
        assert_eq!(tag(b""), 0);
    }
}
