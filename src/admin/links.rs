//! The links of a block, by the codec of the CID that led to it.

use super::target::Cid;
use crate::dag;

pub(super) const RAW: u64 = 0x55;
pub(super) const DAG_PB: u64 = 0x70;
const DAG_CBOR: u64 = 0x71;

/// How a block is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It has no links.
    Leaf,
    /// Its links are followed.
    Node,
    /// Its codec is not known here, so links in it would go unnoticed.
    Unknown,
}

impl Kind {
    pub(super) fn of(cid: &Cid) -> Kind {
        match cid.codec() {
            RAW => Kind::Leaf,
            DAG_PB | DAG_CBOR => Kind::Node,
            _ => Kind::Unknown,
        }
    }
}

/// The links of a [`Kind::Node`] whose CID has this codec.
///
/// # Errors
/// The reason why it cannot be understood.
pub(super) fn links(codec: u64, block: &[u8]) -> Result<Vec<Cid>, String> {
    let (name, links) = match codec {
        DAG_PB => ("dag-pb", dag::cids_of_pb(block)),
        DAG_CBOR => ("dag-cbor", dag::cids_of_cbor(block)),
        _ => return Ok(Vec::new()),
    };
    let links = links.ok_or_else(|| format!("it is no {name} node"))?;
    let cids = links.into_iter().map(cid);
    cids.collect::<Result<_, _>>()
        .map_err(|e| format!("it is no {name} node: one of its links is no CID: {e}"))
}

/// Reads a CID that takes all of these bytes.
fn cid(mut bytes: &[u8]) -> Result<Cid, cid::Error> {
    let cid = Cid::read_bytes(&mut bytes)?;
    match bytes.is_empty() {
        true => Ok(cid),
        false => Err(cid::Error::ParsingError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr as _;

    const V0: &str = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn";

    #[test]
    fn links_of_both_codecs_are_found() {
        let cid = Cid::from_str(V0).unwrap();
        assert_eq!(Kind::of(&cid), Kind::Node);
        // A node with one link and nothing else.
        let hash = cid.hash().to_bytes();
        let mut node = vec![0x12, 36, 0x0a, 34];
        node.extend(&hash);
        assert_eq!(links(DAG_PB, &node).unwrap(), [cid]);
        // {"a": CID}: a map of one, tag 42, 35 bytes, the first of them 0.
        let mut map = vec![0xa1, 0x61, b'a', 0xd8, 42, 0x58, 35, 0];
        map.extend(&hash);
        assert_eq!(links(DAG_CBOR, &map).unwrap(), [cid]);
        for codec in [DAG_PB, DAG_CBOR] {
            assert!(links(codec, b"\xff\xff nothing").is_err());
        }
        // An empty directory of the smallest kind.
        assert_eq!(links(DAG_PB, b"\x0a\x02\x08\x01").unwrap(), []);
        assert_eq!(Kind::of(&Cid::new_v1(RAW, *cid.hash())), Kind::Leaf);
        assert_eq!(Kind::of(&Cid::new_v1(0x0129, *cid.hash())), Kind::Unknown);
    }

    /// Kubo inlines blocks of up to 128 bytes (boxo's `DefaultMaxIdentityDigestSize`).
    #[test]
    fn a_block_of_128_bytes_may_be_in_its_cid() {
        let normal = Cid::from_str(V0).unwrap();
        for len in [80, 128] {
            let hash = cid::multihash::Multihash::wrap(0, &vec![7; len]).unwrap();
            let inline = Cid::new_v1(RAW, hash);
            let (mut node, mut list) = (Vec::new(), vec![0x82]);
            for cid in [inline, normal] {
                let cid = cid.to_bytes();
                let mut link = vec![0x0a];
                crate::multihash::push_varint(&mut link, cid.len() as u64);
                link.extend(&cid);
                node.push(0x12);
                crate::multihash::push_varint(&mut node, link.len() as u64);
                node.extend(link);
                list.extend([0xd8, 42, 0x58, cid.len() as u8 + 1, 0]);
                list.extend(cid);
            }
            assert_eq!(links(DAG_PB, &node).unwrap(), [inline, normal], "{len}");
            assert_eq!(links(DAG_CBOR, &list).unwrap(), [inline, normal], "{len}");
        }
    }

    #[test]
    fn a_link_that_is_no_cid_makes_a_block_no_node() {
        let hash = Cid::from_str(V0).unwrap().hash().to_bytes();
        for bytes in [&hash[..33], &[&hash[..], &[0]].concat(), &[]] {
            let len = bytes.len() as u8;
            let node = [&[0x12, len + 2, 0x0a, len][..], bytes].concat();
            assert!(links(DAG_PB, &node).is_err(), "{len}");
            let list = [&[0x81, 0xd8, 42, 0x58, len + 1, 0][..], bytes].concat();
            assert!(links(DAG_CBOR, &list).is_err(), "{len}");
        }
    }
}
