//! The order in which the blocks of a file are read, by the links of the dag-pb nodes that were
//! seen. Packs are laid out in that order, and when a reader comes to the end of a blob, the next
//! blob of its file is found here.
//!
//! For that only dag-pb is understood, the format of files and directories. A block that looks like
//! it by chance does no harm: its links are keys that no reader asks for.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;

use data_encoding::BASE32_NOPAD;
use lru::LruCache;

use crate::limits::MAX_KEY_BYTES;
use crate::multihash::{shortest_varint, varint};

mod cbor;

pub(crate) use cbor::cids as cids_of_cbor;

/// Memory for links, over all nodes (bytes): about 25,000 of the usual ones. A node that would take
/// more is not remembered.
const BYTES: usize = 4 << 20;

/// The memory of a link beside its key (bytes): the key's place in its node, the entry in `places`,
/// and the overhead of the allocator.
const LINK_BYTES: usize = 120;

/// The memory of a node beside its links (bytes).
const NODE_BYTES: usize = 112;

/// How many nodes a search for unknown ones looks at.
const LOOKS: usize = 4096;

/// How many directories are remembered.
const DIRECTORIES: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// How many levels a walk goes up or down at most.
const LEVELS: usize = 8;

/// The first byte of a node with links: the tag of PBNode.Links, which comes first.
pub(crate) const LINKS_FIRST: u8 = 0x12;

/// The multihash code of a digest that is the block itself: no block is stored for it.
const IDENTITY: u8 = 0x00;

/// The codec of a dag-pb node in a CID.
const DAG_PB: u64 = 0x70;

/// A link of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link<'a> {
    /// The multihash of the block that it leads to.
    pub(crate) hash: &'a [u8],
    /// Whether it says that the block is a dag-pb node.
    pub(crate) to_dag_pb: bool,
}

/// The place of a key below a node.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The hash of the key of the node that links to it.
    node: u64,
    /// The number of the link there.
    number: usize,
    to_dag_pb: bool,
}

/// A search for unknown nodes: no more than a number of nodes is looked at, as links may repeat on
/// each level.
struct Unknown {
    keys: Vec<String>,
    limit: usize,
    looks: usize,
}

/// The nodes that were seen lately.
pub(crate) struct Nodes {
    /// The keys of a node's children, by the hash of the node's key.
    nodes: LruCache<u64, Vec<Box<str>>>,
    /// The places of keys, by their hashes.
    places: HashMap<u64, Place>,
    /// The nodes that are directories, by the hashes of their keys.
    directories: LruCache<u64, ()>,
    /// The memory of all nodes (bytes).
    bytes: usize,
    hasher: RandomState,
}

impl Nodes {
    pub(crate) fn new() -> Self {
        Nodes {
            nodes: LruCache::unbounded(),
            places: HashMap::new(),
            directories: LruCache::new(DIRECTORIES),
            bytes: 0,
            hasher: RandomState::new(),
        }
    }

    /// Remembers a node's links, under its key. Links that no index takes as keys are left out. A
    /// node without other links is not remembered, so that every way down the nodes ends at a key.
    pub(crate) fn learn(&mut self, key: &str, links: &[Link<'_>]) {
        let node = self.hasher.hash_one(key);
        if self.nodes.promote(&node) {
            return;
        }
        let parent = &key[..key.rfind('/').map_or(0, |at| at + 1)];
        let len = |link: &Link<'_>| parent.len() + BASE32_NOPAD.encode_len(link.hash.len());
        let keys = links.iter().filter(|link| len(link) <= MAX_KEY_BYTES);
        let costs = keys.clone().map(|link| len(link) + LINK_BYTES);
        let cost = NODE_BYTES + costs.sum::<usize>();
        if cost == NODE_BYTES || cost > BYTES {
            return;
        }
        let mut children: Vec<Box<str>> = Vec::with_capacity(links.len());
        for (number, link) in keys.enumerate() {
            let child = format!("{parent}{}", BASE32_NOPAD.encode(link.hash));
            let place = Place {
                node,
                number,
                to_dag_pb: link.to_dag_pb,
            };
            self.places.insert(self.hasher.hash_one(&*child), place);
            children.push(child.into());
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
                if self
                    .places
                    .get(&child)
                    .is_some_and(|place| place.node == old)
                {
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
            let Some(&Place { node, number, .. }) = self.places.get(&at) else {
                break;
            };
            let siblings = self.nodes.peek(&node).and_then(|all| all.get(number + 1..));
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
        while let Some(place) = self.places.get(&top).filter(|_| places.len() < LEVELS) {
            places.push(place.number);
            top = place.node;
        }
        places.reverse();
        (top, places)
    }

    /// The known node that links to `key`, by its hash. The nodes above it count as used.
    pub(crate) fn parent(&mut self, key: &str) -> Option<u64> {
        let mut at = self.hasher.hash_one(key);
        let parent = self.places.get(&at)?.node;
        for _ in 0..LEVELS {
            let Some(place) = self.places.get(&at) else {
                break;
            };
            at = place.node;
            self.nodes.promote(&at);
        }
        Some(parent)
    }

    /// Whether the node under `key` is known. It counts as used then.
    pub(crate) fn knows(&mut self, key: &str) -> bool {
        let node = self.hasher.hash_one(key);
        self.directories.promote(&node);
        self.nodes.promote(&node)
    }

    /// Notes that the node under `key` is a directory.
    pub(crate) fn note_directory(&mut self, key: &str) {
        self.directories.put(self.hasher.hash_one(key), ());
    }

    /// The dag-pb nodes of the file of `key`, a leaf, that follow the node above it in the order of
    /// the tree and are not known, though nodes link to them: at most `limit` keys. Leaves are at
    /// the height of `key`, so none is taken for a node, whatever its link says.
    pub(crate) fn unknown_after(&self, key: &str, limit: usize) -> Vec<String> {
        let mut found = Unknown {
            keys: Vec::new(),
            limit,
            looks: LOOKS,
        };
        let mut at = self.hasher.hash_one(key);
        for height in 0..LEVELS {
            let Some(&Place { node, number, .. }) = self.places.get(&at) else {
                break;
            };
            // What is in a directory besides is another file's.
            if self.directories.contains(&node) {
                break;
            }
            let siblings = self.nodes.peek(&node).and_then(|all| all.get(number + 1..));
            self.unknown(siblings.unwrap_or(&[]), height, &mut found);
            at = node;
        }
        found.keys
    }

    /// Collects the unknown nodes among nodes of this height and below them.
    fn unknown(&self, nodes: &[Box<str>], height: usize, found: &mut Unknown) {
        if height == 0 {
            return;
        }
        for (at, key) in nodes.iter().enumerate() {
            if found.looks == 0 || found.keys.len() >= found.limit {
                return;
            }
            found.looks -= 1;
            let again = at.checked_sub(1).and_then(|before| nodes.get(before)) == Some(key);
            if again || !self.calls_dag_pb(key) {
                continue;
            }
            match self.nodes.peek(&self.hasher.hash_one(&**key)) {
                None => found.keys.push(key.clone().into()),
                Some(children) => self.unknown(children, height - 1, found),
            }
        }
    }

    /// Whether a known node links to `key` as to a dag-pb node.
    pub(crate) fn calls_dag_pb(&self, key: &str) -> bool {
        let place = self.places.get(&self.hasher.hash_one(key));
        place.is_some_and(|place| place.to_dag_pb)
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

/// The links of a dag-pb node, in order; none if the block is something else, has no
/// links, or does not begin with them (as every encoder writes them).
pub(crate) fn links(block: &[u8]) -> Option<Vec<Link<'_>>> {
    let mut links = all_links(block)?;
    links.retain(|link| link.hash.first() != Some(&IDENTITY));
    (!links.is_empty()).then_some(links)
}

/// Whether a block is a dag-pb node of which `head` is the beginning, or all of it: with links,
/// which come first, it must be all of it. A block that is taken for a node here is one for every
/// decoder; some that decoders take are not.
pub(crate) fn is_dag_pb(head: &[u8], len: u64) -> bool {
    match head.split_first() {
        None => len == 0,
        Some((&LINKS_FIRST, _)) => len == head.len() as u64 && all_links(head).is_some(),
        Some((0x0a, body)) => varint(body).is_some_and(|(data, rest)| {
            let before = (head.len() - rest.len()) as u64;
            before.checked_add(data) == Some(len)
        }),
        Some(_) => false,
    }
}

/// All links of a dag-pb node, also those that lead to no block.
fn all_links(block: &[u8]) -> Option<Vec<Link<'_>>> {
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
    Some(links)
}

/// The CIDs in all links of a dag-pb node, in order; `None` for anything else. Takes what Kubo's
/// decoder takes: its data may come before its links, or after them, and a name need not be UTF-8.
pub(crate) fn cids_of_pb(block: &[u8]) -> Option<Vec<&[u8]>> {
    let mut cids = Vec::new();
    let (mut data, mut links_ended) = (false, false);
    let mut rest = block;
    while let Some((&tag, body)) = rest.split_first() {
        let (field, after) = delimited(body)?;
        rest = after;
        match tag {
            LINKS_FIRST if !links_ended => cids.push(cid_of_pb_link(field)?),
            0x0a if !data => {
                data = true;
                links_ended = !cids.is_empty();
            }
            _ => return None,
        }
    }
    Some(cids)
}

/// The CID in a PBLink, whose fields may be in any order.
fn cid_of_pb_link(field: &[u8]) -> Option<&[u8]> {
    let mut cid = None;
    let mut rest = field;
    while let Some((&tag, body)) = rest.split_first() {
        match tag {
            0x0a if cid.is_none() => {
                let (hash, after) = delimited(body)?;
                (cid, rest) = (Some(hash), after);
            }
            0x12 => rest = delimited(body)?.1,
            0x18 => rest = varint(body)?.1,
            _ => return None,
        }
    }
    cid
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

/// Whether a block is structure: a node of dag-pb or dag-cbor with links, or a directory (also the
/// empty one). Without these nothing below them can be listed, traversed or pinned.
pub(crate) fn is_structure(block: &[u8]) -> bool {
    is_directory(block) || links(block).is_some() || cbor::has_links(block)
}

/// Whether a block that begins with `head` may be [structure](is_structure).
pub(crate) fn may_be_structure(head: &[u8]) -> bool {
    matches!(head.first(), Some(&(LINKS_FIRST | 0x0a))) || cbor::may_begin(head)
}

/// A PBLink: Hash, perhaps Name, perhaps Tsize.
fn link(field: &[u8]) -> Option<Link<'_>> {
    let (0x0a, body) = field.split_first().map(|(tag, body)| (*tag, body))? else {
        return None;
    };
    let (cid, mut rest) = delimited(body)?;
    if let [0x12, body @ ..] = rest {
        rest = delimited(body)?.1;
    }
    if let [0x18, body @ ..] = rest {
        rest = varint(body)?.1;
    }
    if !rest.is_empty() {
        return None;
    }
    // CIDv0 is a bare SHA2-256 multihash; CIDv1 has version and codec before it.
    let (codec, hash) = match cid {
        [0x12, 0x20, ..] => (DAG_PB, cid),
        [0x01, codec @ ..] => shortest_varint(codec)?,
        _ => return None,
    };
    let (_, len_and_digest) = shortest_varint(hash)?;
    let (len, digest) = shortest_varint(len_and_digest)?;
    (len == digest.len() as u64).then_some(Link {
        hash,
        to_dag_pb: codec == DAG_PB,
    })
}

fn delimited(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = varint(bytes)?;
    rest.split_at_checked(usize::try_from(len).ok()?)
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

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

    fn to_nodes(hashes: &[Vec<u8>], which: Range<usize>) -> Vec<Link<'_>> {
        hashes[which].iter().map(|hash| to(hash, true)).collect()
    }

    fn to(hash: &[u8], to_dag_pb: bool) -> Link<'_> {
        Link { hash, to_dag_pb }
    }

    #[test]
    fn structure_is_told_from_contents() {
        let cbor = [&[0x81, 0xd8, 42, 0x58, 37, 0, 0x01, 0x55][..], &hash(1)].concat();
        let empty_directory = [0x0a, 0x02, 0x08, 0x01];
        for block in [&node(&[1])[..], &cbor, &empty_directory] {
            assert!(is_structure(block), "{block:?}");
            for len in 1..=block.len() {
                assert!(may_be_structure(&block[..len]), "{len} bytes of {block:?}");
            }
        }
        let small_file = field(0x0a, &field(0x12, b"contents"));
        for block in [&small_file[..], b"raw", b"", &[0x12, 0x20], &[0x81, 0x01]] {
            assert!(!is_structure(block), "{block:?}");
        }
        assert!(!may_be_structure(b"raw"));
    }

    #[test]
    fn links_of_nodes() {
        let block = node(&[1, 2, 200]);
        let hashes = [hash(1), hash(2), hash(200)];
        let raw = hashes.each_ref().map(|hash| to(hash, false));
        assert_eq!(links(&block).unwrap(), raw);
        let v0 = field(0x12, &field(0x0a, &hash(9)));
        let nine = hash(9);
        assert_eq!(links(&v0).unwrap(), [to(&nine, true)]);
        let v1 = [&[0x01, 0x70][..], &nine].concat();
        let v1 = field(0x12, &field(0x0a, &v1));
        assert_eq!(links(&v1).unwrap(), [to(&nine, true)]);
        let identity = field(0x12, &field(0x0a, &[0x01, 0x55, 0x00, 0x01, 0x61]));
        assert_eq!(
            links(&[identity.clone(), v0.clone()].concat()).unwrap(),
            [to(&nine, true)]
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
    fn cids_of_nodes_as_kubo_decodes_them() {
        let (one, two) = (hash(1), hash(2));
        let to = |hash: &[u8], rest: &[u8]| field(0x12, &[&field(0x0a, hash), rest].concat());
        let data = field(0x0a, b"data");
        let latin1 = field(0x12, b"caf\xe9");
        let links = [to(&one, &latin1), to(&two, &[0x18, 0x05])].concat();
        let expected = Some(vec![&one[..], &two]);
        for node in [
            [&links[..], &data].concat(),
            [&data[..], &links].concat(),
            links.clone(),
        ] {
            assert_eq!(cids_of_pb(&node), expected, "{node:x?}");
        }
        let last = field(0x12, &[&[0x18, 0x05][..], &field(0x0a, &one)].concat());
        assert_eq!(cids_of_pb(&last), Some(vec![&one[..]]));
        assert_eq!(cids_of_pb(b""), Some(vec![]));
        assert_eq!(cids_of_pb(&data), Some(vec![]));
        for other in [
            b"raw bytes".to_vec(),
            [&links[..], &data, &links].concat(),
            [&data[..], &data].concat(),
            field(0x12, &latin1),
            links[..links.len() - 1].to_vec(),
        ] {
            assert_eq!(cids_of_pb(&other), None, "{other:x?}");
        }
    }

    #[test]
    fn what_every_decoder_takes_for_a_node() {
        let block = node(&[1, 2]);
        let is = |block: &[u8]| is_dag_pb(block, block.len() as u64);
        let identity = field(0x12, &field(0x0a, &[0x01, 0x55, 0x00, 0x01, 0x61]));
        for node in [&block[..], b"", &identity, &field(0x0a, &[7; 300])] {
            assert!(is(node), "{node:x?}");
        }
        // Of a leaf the head is enough.
        assert!(is_dag_pb(&field(0x0a, &[7; 300])[..5], 303));
        assert!(!is_dag_pb(&field(0x0a, &[7; 300])[..5], 304));
        assert!(!is_dag_pb(&block[..10], block.len() as u64));
        assert!(!is_dag_pb(b"", 1));
        let hash = field(0x0a, &hash(1));
        let (name, size) = (field(0x12, b"name"), [0x18, 0x05]);
        assert!(is(&field(0x12, &[&hash[..], &name, &size].concat())));
        for other in [
            b"raw bytes".to_vec(),
            block[1..].to_vec(),
            [&block[..], &[0x0a, 0x00]].concat(),
            field(0x12, &[&hash[..], &size, &name].concat()),
            field(0x12, &[&hash[..], &name, &name].concat()),
            field(0x12, &[&name[..], &hash].concat()),
        ] {
            assert!(!is(&other), "{other:x?}");
        }
    }

    #[test]
    fn links_tell_which_blocks_are_nodes() {
        let mut nodes = Nodes::new();
        let (one, two) = (hash(1), hash(2));
        nodes.learn(&key(9), &[to(&one, true), to(&two, false)]);
        let calls = [1, 2, 3].map(|n| nodes.calls_dag_pb(&key(n)));
        assert_eq!(calls, [true, false, false]);
    }

    #[test]
    fn nodes_that_follow_and_are_not_known() {
        let mut nodes = Nodes::new();
        let hashes: Vec<Vec<u8>> = (0..20).map(hash).collect();
        let to_nodes = |range| to_nodes(&hashes, range);
        // 9 over 8 and 7; 8 over 1 to 3, of which 1 has the leaves 11 and 12; 7 over 4 to 6.
        nodes.learn(&key(9), &[to(&hashes[8], true), to(&hashes[7], true)]);
        nodes.learn(&key(8), &to_nodes(1..4));
        nodes.learn(&key(1), &[to(&hashes[11], false), to(&hashes[12], false)]);
        let after = |nodes: &Nodes, n| nodes.unknown_after(&key(n), 9);
        assert_eq!(after(&nodes, 11), [2, 3, 7].map(key));
        nodes.learn(&key(7), &to_nodes(4..7));
        assert_eq!(after(&nodes, 12), [2, 3, 4, 5, 6].map(key));
        nodes.learn(&key(3), &[to(&hashes[13], false)]);
        assert_eq!(after(&nodes, 11), [2, 4, 5, 6].map(key));
        assert_eq!(nodes.unknown_after(&key(11), 2), [2, 4].map(key));
        assert_eq!(after(&nodes, 13), [4, 5, 6].map(key));
        assert_eq!(after(&nodes, 15), [""; 0], "nothing is known above it");
        assert_eq!(nodes.parent(&key(13)), nodes.parent(&key(13)));
        assert_ne!(nodes.parent(&key(13)), nodes.parent(&key(11)));
        nodes.note_directory(&key(9));
        assert_eq!(after(&nodes, 11), [2].map(key), "7 is another file");
    }

    /// Kubo's files without raw leaves.
    #[test]
    fn leaves_that_are_called_nodes_are_not_taken_for_unknown_ones() {
        let mut nodes = Nodes::new();
        let hashes: Vec<Vec<u8>> = (0..40).map(hash).collect();
        let to_nodes = |range| to_nodes(&hashes, range);
        nodes.learn(&key(1), &to_nodes(2..5));
        nodes.learn(&key(2), &to_nodes(10..20));
        nodes.learn(&key(3), &to_nodes(20..30));
        assert_eq!(nodes.unknown_after(&key(10), 9), [4].map(key));
    }

    /// A hundred links to one node on each level would be a walk of a hundred to the power of the
    /// number of levels.
    #[test]
    fn a_search_among_links_that_repeat_ends() {
        let mut nodes = Nodes::new();
        let hashes: Vec<Vec<u8>> = (0..40).map(hash).collect();
        for n in 1..9_u8 {
            let to_next = to(&hashes[usize::from(n) + 1], true);
            let other = to(&hashes[usize::from(n) + 20], true);
            let links: Vec<Link<'_>> = (0..50).flat_map(|_| [to_next, other]).collect();
            nodes.learn(&key(n), &links);
            nodes.learn(&key(n + 20), &[to(&hashes[39], false)]);
        }
        nodes.learn(&key(9), &[to(&hashes[38], false)]);
        // A leaf as deep, so that all of the other branch is looked at.
        nodes.learn(&key(0), &[to(&hashes[30], true), to(&hashes[1], true)]);
        for n in 30..37_u8 {
            nodes.learn(&key(n), &[to(&hashes[usize::from(n) + 1], true)]);
        }
        assert_eq!(nodes.unknown_after(&key(37), 9), [""; 0]);
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
        nodes.learn(&key(7), &[to(&huge, true)]);
        for level in 1..7 {
            let below = hash(level + 1);
            nodes.learn(&key(level), &vec![to(&below, true); 500]);
        }
        let (leaf, tree) = (hash(100), hash(1));
        nodes.learn(&key(101), &[to(&leaf, true), to(&tree, true)]);
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
            let links: Vec<Link<'_>> = hashes.iter().map(|hash| to(hash, false)).collect();
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
            let (huge, digest) = (to(&huge, false), to(&digest, false));
            nodes.learn(&format!("/{n}"), &[huge, digest, huge]);
            assert!(held(&nodes) + nodes.places.len() * 32 <= BYTES);
        }
        assert!(nodes.nodes.len() > 1000);
        let (_, links) = nodes.nodes.iter().next().unwrap();
        assert_eq!(links.len(), 1, "too long for a key");
        // Short links, under a long prefix: 30 MiB of keys.
        let mut nodes = Nodes::new();
        let hashes: Vec<Vec<u8>> = (0..16_000u32).map(|n| n.to_le_bytes().to_vec()).collect();
        let links: Vec<Link<'_>> = hashes.iter().map(|hash| to(hash, false)).collect();
        nodes.learn(&format!("/{}/node", "x".repeat(2000)), &links);
        assert_eq!((nodes.nodes.len(), nodes.places.len()), (0, 0));
        // Very many nodes with a link each.
        for n in 0..200_000u32 {
            nodes.learn(&format!("/{n}"), &[to(&n.to_le_bytes(), false)]);
        }
        assert!(nodes.nodes.len() * (NODE_BYTES + LINK_BYTES) <= BYTES);
        assert!(nodes.places.len() <= nodes.nodes.len());
    }
}
