//! The links of a block, by the codec of the CID that led to it.

use cid::Cid;
use ipld_core::codec::Links as _;
use ipld_dagpb::DagPbCodec;
use serde_ipld_dagcbor::codec::DagCborCodec;

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
    match codec {
        DAG_PB => match DagPbCodec::links(block) {
            Ok(links) => Ok(links.collect()),
            Err(e) => Err(format!("it is no dag-pb node: {e}")),
        },
        DAG_CBOR => match DagCborCodec::links(block) {
            Ok(links) => Ok(links.collect()),
            Err(e) => Err(format!("it is no dag-cbor node: {e}")),
        },
        _ => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr as _;

    #[test]
    fn links_of_both_codecs_are_found() {
        let cid = Cid::from_str("QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn").unwrap();
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
}
