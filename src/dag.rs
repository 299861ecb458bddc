//! The order in which the blocks of a file are read, by the links of the dag-pb nodes that were
//! seen. Packs are laid out in that order, and when a reader comes to the end of a blob, the next
//! blob of its file is found here.
//!
//! Only dag-pb is understood, the format of files and directories. A block that looks like it by
//! chance does no harm: its links are keys that no reader asks for.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use data_encoding::BASE32_NOPAD;
use lru::LruCache;

use crate::limits::MAX_KEY_BYTES;
use crate::multihash::varint;

/// Memory for links, over all nodes (bytes): about 25,000 of the usual ones. A node that would take
/// more is not remembered.
const BYTES: usize = 4 << 20;

/// The memory of a link beside its key (bytes): the key's place in its node, the entry in `places`,
/// and the overhead of the allocator.
const LINK_BYTES: usize = 112;

/// The memory of a node beside its links (bytes).
const NODE_BYTES: usize = 112;

/// How many levels a walk goes up or down at most.
const LEVELS: usize = 8;

/// The first byte of a node with links: the tag of PBNode.Links, which comes first.
pub(crate) const LINKS_FIRST: u8 = 0x12;

/// The multihash code of a digest that is the block itself: no block is stored for it.
const IDENTITY: u8 = 0x00;

/// The nodes that were seen lately.
pub(crate) struct Nodes {
    /// The keys of a node's children, by the hash of the node's key.
    nodes: LruCache<u64, Vec<Box<str>>>,
    /// The place of a key, by its hash: the hash of the node that links to it, and the number of
    /// the link there.
    places: HashMap<u64, (u64, usize)>,
    /// The memory of all nodes (bytes).
    bytes: usize,
    hasher: RandomState,
}

impl Nodes {
    pub(crate) fn new() -> Self {
        Nodes {
            nodes: LruCache::unbounded(),
            places: HashMap::new(),
            bytes: 0,
            hasher: RandomState::new(),
        }
    }

    /// Remembers a node's links, under its key. Links that no index takes as keys are left out. A
    /// node without other links is not remembered, so that every way down the nodes ends at a key.
    pub(crate) fn learn(&mut self, key: &str, links: &[&[u8]]) {
        let node = self.hasher.hash_one(key);
        if self.nodes.promote(&node) {
            return;
        }
        let parent = &key[..key.rfind('/').map_or(0, |at| at + 1)];
        let len = |hash: &&&[u8]| parent.len() + BASE32_NOPAD.encode_len(hash.len());
        let keys = links.iter().filter(|hash| len(hash) <= MAX_KEY_BYTES);
        let costs = keys.clone().map(|hash| len(&hash) + LINK_BYTES);
        let cost = NODE_BYTES + costs.sum::<usize>();
        if cost == NODE_BYTES || cost > BYTES {
            return;
        }
        let children = keys.map(|hash| format!("{parent}{}", BASE32_NOPAD.encode(hash)).into());
        let children: Vec<Box<str>> = children.collect();
        for (place, child) in children.iter().enumerate() {
            let child = self.hasher.hash_one(&**child);
            self.places.insert(child, (node, place));
        }
        self.bytes += cost;
        self.nodes.put(node, children);
        while self.bytes > BYTES {
            let Some((old, children)) = self.nodes.pop_lru() else {
                break;
            };
            let costs = children.iter().map(|child| child.len() + LINK_BYTES);
            self.bytes -= NODE_BYTES + costs.sum::<usize>();
            for child in &children {
                let child = self.hasher.hash_one(&**child);
                if self.places.get(&child).is_some_and(|place| place.0 == old) {
                    self.places.remove(&child);
                }
            }
        }
    }

    /// The keys that follow `key` in the order of its tree, as far as nodes are known: at most
    /// `limit`. None follow a node itself, as its reader may go down or on.
    pub(crate) fn after(&self, key: &str, limit: usize) -> Vec<String> {
        let mut keys = Vec::new();
        let mut at = self.hasher.hash_one(key);
        if self.nodes.contains(&at) {
            return keys;
        }
        for _ in 0..LEVELS {
            let Some(&(node, place)) = self.places.get(&at) else {
                break;
            };
            let siblings = self.nodes.peek(&node).and_then(|all| all.get(place + 1..));
            for sibling in siblings.unwrap_or(&[]) {
                self.leaves(sibling, LEVELS, limit, &mut keys);
                if keys.len() >= limit {
                    return keys;
                }
            }
            at = node;
        }
        keys
    }

    /// The position of a key: the topmost known node above it, by its hash, and the places on the
    /// way down from there. Keys under one node are in the order of their places. A key without a
    /// known parent is its own top.
    pub(crate) fn position(&self, key: &str) -> (u64, Vec<usize>) {
        let mut top = self.hasher.hash_one(key);
        let mut places = Vec::new();
        while let Some(&(node, place)) = self.places.get(&top).filter(|_| places.len() < LEVELS) {
            places.push(place);
            top = node;
        }
        places.reverse();
        (top, places)
    }

    /// Collects the keys under `key` that are no known nodes.
    fn leaves(&self, key: &str, levels: usize, limit: usize, keys: &mut Vec<String>) {
        match self.nodes.peek(&self.hasher.hash_one(key)) {
            Some(children) if levels > 0 => {
                for child in children {
                    if keys.len() >= limit {
                        return;
                    }
                    self.leaves(child, levels - 1, limit, keys);
                }
            }
            _ => keys.push(key.to_owned()),
        }
    }
}

/// The multihashes of a dag-pb node's links, in order; none if the block is something else, has no
/// links, or does not begin with them (as every encoder writes them).
pub(crate) fn links(block: &[u8]) -> Option<Vec<&[u8]>> {
    let mut links = Vec::new();
    let mut rest = block;
    while let Some((&tag, body)) = rest.split_first() {
        let (field, after) = delimited(body)?;
        rest = after;
        match tag {
            LINKS_FIRST => links.push(link(field)?),
            // PBNode.Data comes last.
            0x0a if !links.is_empty() && rest.is_empty() => {}
            _ => return None,
        }
    }
    links.retain(|hash: &&[u8]| hash.first() != Some(&IDENTITY));
    (!links.is_empty()).then_some(links)
}

/// Whether a block is a dag-pb node of a UnixFS directory: its data begins with the type Directory
/// (1) or HAMTShard (5), which every encoder writes first.
pub(crate) fn is_directory(block: &[u8]) -> bool {
    let mut rest = block;
    while let Some((&tag, body)) = rest.split_first() {
        let Some((field, after)) = delimited(body) else {
            return false;
        };
        match tag {
            LINKS_FIRST => rest = after,
            0x0a => return matches!(field, [0x08, 1 | 5, ..]) && after.is_empty(),
            _ => return false,
        }
    }
    false
}

/// The multihash of a PBLink: Hash, perhaps Name and Tsize.
fn link(field: &[u8]) -> Option<&[u8]> {
    let (0x0a, body) = field.split_first().map(|(tag, body)| (*tag, body))? else {
        return None;
    };
    let (cid, mut rest) = delimited(body)?;
    while let Some((&tag, body)) = rest.split_first() {
        rest = match tag {
            0x12 => delimited(body)?.1,
            0x18 => varint(body)?.1,
            _ => return None,
        };
    }
    // CIDv0 is a bare SHA2-256 multihash; CIDv1 has version and codec before it.
    let hash = match cid {
        [0x12, 0x20, ..] => cid,
        [0x01, codec @ ..] => varint(codec)?.1,
        _ => return None,
    };
    let (_, len_and_digest) = varint(hash)?;
    let (len, digest) = varint(len_and_digest)?;
    (len == digest.len() as u64).then_some(hash)
}

fn delimited(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = varint(bytes)?;
    rest.split_at_checked(usize::try_from(len).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        let mut len = bytes.len();
        while len > 0x7f {
            out.push(len as u8 | 0x80);
            len >>= 7;
        }
        out.push(len as u8);
        out.extend_from_slice(bytes);
        out
    }

    fn hash(n: u8) -> Vec<u8> {
        [&[0x12, 0x20][..], &[n; 32]].concat()
    }

    fn key(n: u8) -> String {
        format!("/{}", BASE32_NOPAD.encode(&hash(n)))
    }

    /// A node with links to raw blocks (CIDv1).
    fn node(children: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for n in children {
            let cid = [&[0x01, 0x55][..], &hash(*n)].concat();
            let mut link = field(0x0a, &cid);
            link.extend(field(0x12, b""));
            link.extend([0x18, 0x80, 0x80, 0x10]);
            out.extend(field(0x12, &link));
        }
        out.extend(field(0x0a, &[0x08, 0x02, 0x18, 0x07]));
        out
    }

    #[test]
    fn links_of_nodes() {
        let block = node(&[1, 2, 200]);
        assert_eq!(links(&block).unwrap(), [hash(1), hash(2), hash(200)]);
        let v0 = field(0x12, &field(0x0a, &hash(9)));
        assert_eq!(links(&v0).unwrap(), [hash(9)]);
        let identity = field(0x12, &field(0x0a, &[0x01, 0x55, 0x00, 0x01, 0x61]));
        assert_eq!(
            links(&[identity.clone(), v0.clone()].concat()).unwrap(),
            [hash(9)]
        );
        for other in [
            &b""[..],
            b"raw bytes",
            &[0x0a, 0x02, 0x08, 0x01],
            &identity,
            &block[..block.len() - 1],
            &[&v0[..], &[0x12]].concat(),
            &field(0x12, &field(0x0a, &hash(9)[..33])),
            &field(0x12, b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            &[&block[..], &v0].concat(),
        ] {
            assert_eq!(links(other), None, "{other:x?}");
        }
    }

    #[test]
    fn directories() {
        let data = |kind: u8| field(0x0a, &[0x08, kind]);
        assert!(is_directory(&[0x0a, 0x02, 0x08, 0x01]), "the empty one");
        let link = field(0x12, &field(0x0a, &hash(9)));
        for (kind, is) in [(1, true), (5, true), (2, false), (0, false), (4, false)] {
            assert_eq!(
                is_directory(&[&link[..], &data(kind)].concat()),
                is,
                "{kind}"
            );
        }
        for other in [
            &b""[..],
            b"raw",
            &link,
            &link[..3],
            &[&data(1)[..], b"x"].concat(),
        ] {
            assert!(!is_directory(other), "{other:x?}");
        }
    }

    #[test]
    fn what_follows_in_the_tree() {
        let mut nodes = Nodes::new();
        let learn = |nodes: &mut Nodes, n: u8, children: &[u8]| {
            let block = node(children);
            nodes.learn(&key(n), &links(&block).unwrap());
        };
        let keys = |all: &[u8]| all.iter().map(|n| key(*n)).collect::<Vec<_>>();
        learn(&mut nodes, 100, &[10, 20, 30]);
        learn(&mut nodes, 10, &[11, 12, 13]);
        assert_eq!(nodes.after(&key(11), 9), keys(&[12, 13, 20, 30]));
        learn(&mut nodes, 20, &[21, 22]);
        assert_eq!(nodes.after(&key(12), 9), keys(&[13, 21, 22, 30]));
        assert_eq!(nodes.after(&key(12), 2), keys(&[13, 21]));
        assert_eq!(nodes.after(&key(22), 9), keys(&[30]));
        assert_eq!(nodes.after(&key(100), 9), [""; 0]);
        assert_eq!(nodes.after("/unknown", 9), [""; 0]);
        // A forged node that links to itself ends all the same.
        learn(&mut nodes, 50, &[51, 50]);
        assert!(nodes.after(&key(51), 100).len() <= 100);
    }

    /// Nodes that hold the same node thousands of times, and at the end one whose only link is no
    /// key: no leaf is ever found under them.
    #[test]
    fn a_tree_without_leaves_is_not_walked_for_ever() {
        let mut nodes = Nodes::new();
        let huge = vec![7; 4096];
        nodes.learn(&key(7), &[&huge]);
        for level in 1..7 {
            let below = hash(level + 1);
            nodes.learn(&key(level), &vec![&below[..]; 500]);
        }
        let (leaf, tree) = (hash(100), hash(1));
        nodes.learn(&key(101), &[&leaf, &tree]);
        assert!(nodes.after(&key(100), 500).len() <= 500);
    }

    #[test]
    fn where_a_key_stands() {
        let mut nodes = Nodes::new();
        let learn = |nodes: &mut Nodes, n: u8, children: &[u8]| {
            nodes.learn(&key(n), &links(&node(children)).unwrap());
        };
        let (own, none) = nodes.position(&key(12));
        assert_eq!((own, none), (nodes.position(&key(12)).0, vec![]));
        learn(&mut nodes, 10, &[11, 12]);
        assert_eq!(
            nodes.position(&key(12)),
            (nodes.position(&key(10)).0, vec![1])
        );
        learn(&mut nodes, 100, &[9, 8, 10]);
        let top = nodes.position(&key(100)).0;
        assert_eq!(nodes.position(&key(12)), (top, vec![2, 1]));
        assert_eq!(nodes.position(&key(8)), (top, vec![1]));
        assert_ne!(own, top);
        // A forged node that links to itself ends all the same.
        learn(&mut nodes, 50, &[50]);
        assert_eq!(nodes.position(&key(50)).1.len(), LEVELS);
    }

    #[test]
    fn memory_is_bounded() {
        let mut nodes = Nodes::new();
        for n in 0..2000u32 {
            let hashes: Vec<Vec<u8>> = (0..20u8)
                .map(|i| [&hash(i)[..30], &n.to_le_bytes()].concat())
                .collect();
            let links: Vec<&[u8]> = hashes.iter().map(Vec::as_slice).collect();
            nodes.learn(&format!("/{n}"), &links);
        }
        assert!(nodes.bytes <= BYTES);
        let links: usize = nodes.nodes.iter().map(|(_, links)| links.len()).sum();
        assert!(nodes.places.len() <= links);
        assert!(links > 10_000, "usual ones find room: {links}");
        assert!(nodes.nodes.contains(&nodes.hasher.hash_one("/1999")));
    }

    #[test]
    fn links_are_bounded_in_bytes() {
        let held = |nodes: &Nodes| -> usize {
            let all = nodes.nodes.iter().flat_map(|(_, links)| links);
            all.map(|link| link.len()).sum()
        };
        let mut nodes = Nodes::new();
        // A key that an index takes, and one that it does not.
        let digest = vec![7; 1000];
        let huge = vec![7; 1 << 20];
        for n in 0..10_000 {
            let digest = [&digest[..], format!("{n}").as_bytes()].concat();
            nodes.learn(&format!("/{n}"), &[&huge, &digest, &huge]);
            assert!(held(&nodes) + nodes.places.len() * 32 <= BYTES);
        }
        assert!(nodes.nodes.len() > 1000);
        let (_, links) = nodes.nodes.iter().next().unwrap();
        assert_eq!(links.len(), 1, "too long for a key");
        // Short links, under a long prefix: 30 MiB of keys.
        let mut nodes = Nodes::new();
        let hashes: Vec<Vec<u8>> = (0..16_000u32).map(|n| n.to_le_bytes().to_vec()).collect();
        let links: Vec<&[u8]> = hashes.iter().map(Vec::as_slice).collect();
        nodes.learn(&format!("/{}/node", "x".repeat(2000)), &links);
        assert_eq!((nodes.nodes.len(), nodes.places.len()), (0, 0));
        // Very many nodes with a link each.
        for n in 0..200_000u32 {
            nodes.learn(&format!("/{n}"), &[&n.to_le_bytes()]);
        }
        assert!(nodes.nodes.len() * (NODE_BYTES + LINK_BYTES) <= BYTES);
        assert!(nodes.places.len() <= nodes.nodes.len());
    }
}
