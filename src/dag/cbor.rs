//! The links of a dag-cbor node, and whether a block is one, without decoding it.
//!
//! DAG-CBOR has definite lengths and one tag, 42, for links alone. So it is enough to count the
//! items that are still to come.

/// The tag of a link.
const LINK: u64 = 42;

/// Whether a walk over items came to their end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// One item, and nothing behind it.
    Whole,
    /// More bytes are needed.
    Short,
    /// This is no dag-cbor.
    Wrong,
}

/// The CIDs in the links of a block that is one item of dag-cbor, in order; `None` for anything
/// else.
pub(crate) fn cids(block: &[u8]) -> Option<Vec<&[u8]>> {
    let mut cids = Vec::new();
    (walk(block, |cid| cids.push(cid)) == End::Whole).then_some(cids)
}

/// Whether a block is one item of dag-cbor, and holds a link.
pub(super) fn has_links(block: &[u8]) -> bool {
    let mut links = false;
    walk(block, |_| links = true) == End::Whole && links
}

/// Whether a block that begins with `head` may be an array or a map of dag-cbor.
pub(super) fn may_begin(head: &[u8]) -> bool {
    matches!(head.first(), Some(0x80..=0xbf)) && walk(head, |_| ()) != End::Wrong
}

/// Goes over one item and all that is in it. `on_link` is given the CID of each link.
fn walk<'a>(bytes: &'a [u8], mut on_link: impl FnMut(&'a [u8])) -> End {
    let mut rest = bytes;
    // Items that are still to come, and whether the next one is the CID of a link.
    let mut left: u64 = 1;
    let mut in_link = false;
    while left > 0 {
        let Some((first, after)) = rest.split_first() else {
            return End::Short;
        };
        let (kind, number) = (first >> 5, first & 31);
        let wide = match number {
            0..=23 => 0,
            24..=27 => 1 << (number - 24),
            _ => return End::Wrong,
        };
        let Some((digits, after)) = after.split_at_checked(wide) else {
            return End::Short;
        };
        let big_endian = |n: u64, digit: &u8| (n << 8) | u64::from(*digit);
        let value = match wide {
            0 => u64::from(number),
            _ => digits.iter().fold(0, big_endian),
        };
        rest = after;
        left -= 1;
        if in_link && kind != 2 {
            return End::Wrong;
        }
        let more = match kind {
            0 | 1 => Some(0),
            2 | 3 => {
                let len = usize::try_from(value).ok();
                let Some((string, after)) = len.and_then(|len| rest.split_at_checked(len)) else {
                    return End::Short;
                };
                if in_link {
                    // A CID in CBOR begins with the multibase prefix of plain bytes.
                    let Some((0, cid)) = string.split_first() else {
                        return End::Wrong;
                    };
                    on_link(cid);
                }
                in_link = false;
                rest = after;
                Some(0)
            }
            4 => Some(value),
            5 => value.checked_mul(2),
            6 if value == LINK => {
                in_link = true;
                Some(1)
            }
            // false, true, null, and floats.
            7 if matches!(number, 20..=22 | 25..=27) => Some(0),
            _ => None,
        };
        let Some(next) = more.and_then(|more| left.checked_add(more)) else {
            return End::Wrong;
        };
        left = next;
    }
    match rest.is_empty() {
        true => End::Whole,
        false => End::Wrong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// {"a": [1, -1, "x", 1.5, null], "link": CID}
    fn node() -> Vec<u8> {
        let mut out = vec![0xa2, 0x61, b'a', 0x85, 0x01, 0x20, 0x61, b'x'];
        out.extend([0xfb, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0, 0xf6]);
        out.extend([0x64, b'l', b'i', b'n', b'k', 0xd8, 42, 0x58, 37, 0]);
        out.extend([0x01, 0x71, 0x12, 0x20]);
        out.extend([7; 32]);
        out
    }

    #[test]
    fn a_link_is_found_in_a_whole_node_alone() {
        let node = node();
        assert!(has_links(&node));
        let cid = [&[0x01, 0x71, 0x12, 0x20][..], &[7; 32]].concat();
        assert_eq!(cids(&node), Some(vec![&cid[..]]));
        for len in 0..node.len() {
            assert_eq!(walk(&node[..len], |_| ()), End::Short, "{len} bytes");
            assert!(!has_links(&node[..len]));
        }
        for len in 1..node.len() {
            assert!(may_begin(&node[..len]), "{len} bytes");
        }
        assert!(!has_links(&[&node[..], &[0]].concat()), "a byte too many");
    }

    #[test]
    fn other_blocks_have_none() {
        for (block, what) in [
            (&b"\xa1\x61a\x01"[..], "a map without a link"),
            (b"\x41\x00", "bytes"),
            (b"\x81\xd8\x2b\x41\x00", "another tag"),
            (b"\x81\xd8\x2a\x41\x01", "no multibase prefix"),
            (b"\x81\xd8\x2a\x01", "a tag of a number"),
            (b"\x9f\xd8\x2a\x41\x00\xff", "an indefinite length"),
            (
                b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
                "a length beyond all bytes",
            ),
            (b"", "nothing"),
        ] {
            assert!(!has_links(block), "{what}");
        }
        assert!(has_links(b"\x81\xd8\x2a\x41\x00"));
        assert_eq!(cids(b"\xa1\x61a\x01"), Some(vec![]), "a node without links");
        assert_eq!(cids(b""), None);
        assert!(!may_begin(b"\x12\x20"), "dag-pb");
        assert!(!may_begin(b"\x81\xff"), "no item");
    }
}
