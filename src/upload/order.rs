//! The order of the blocks of a pack: as their file is read, as far as dag-pb nodes tell.
//!
//! Kubo hands blocks over in batches of a few MiB, within which they are sorted by their hashes,
//! and a node comes after the blocks it links to. In such an order the reads of a file jump about
//! in each batch, and the next read cannot be predicted from the one before.

use std::collections::HashMap;

use crate::dag::{self, Nodes};

/// Learns the links of dag-pb nodes and arranges blocks by them.
pub(crate) struct Order {
    nodes: Nodes,
}

impl Order {
    pub(crate) fn new() -> Self {
        Order {
            nodes: Nodes::new(),
        }
    }

    /// Whether a block whose first byte is `first` may be a dag-pb node with links.
    pub(crate) fn may_be_node(first: u8) -> bool {
        first == dag::LINKS_FIRST
    }

    /// Remembers a block's links, if it is a dag-pb node that has some.
    pub(crate) fn learn(&mut self, key: &str, block: &[u8]) {
        if let Some(links) = dag::links(block) {
            self.nodes.learn(key, &links);
        }
    }

    /// Whether a known node links to `key` as to a dag-pb node.
    pub(crate) fn calls_dag_pb(&self, key: &str) -> bool {
        self.nodes.calls_dag_pb(key)
    }

    /// Whether a value is a dag-pb node, and a link that was learnt says so of its key.
    pub(super) fn is_dag_pb(&self, key: &str, value: &[u8]) -> bool {
        self.calls_dag_pb(key) && dag::is_dag_pb(value, value.len() as u64)
    }

    /// Puts blocks in order: the files in the order in which they come, and within a file each node
    /// before the blocks it links to. Blocks that no known node links to keep their order.
    pub(crate) fn arrange<T>(&self, blocks: &mut Vec<T>, key: impl Fn(&T) -> &str) {
        let mut tops = HashMap::new();
        let mut ranked: Vec<_> = blocks
            .drain(..)
            .enumerate()
            .map(|(at, block)| {
                let (top, places) = self.nodes.position(key(&block));
                ((*tops.entry(top).or_insert(at), places), block)
            })
            .collect();
        ranked.sort_by(|a, b| a.0.cmp(&b.0));
        blocks.extend(ranked.into_iter().map(|(_, block)| block));
    }

    /// Learns the links of blocks, puts these in order as [`arrange`](Self::arrange) does, and
    /// marks those that are dag-pb nodes by a link. `parts` gives the key and the value of a block.
    pub(crate) fn arrange_and_mark<T>(
        &mut self,
        blocks: &mut Vec<T>,
        parts: impl Fn(&T) -> (&str, &[u8]),
        mark: impl Fn(&mut T),
    ) {
        for block in &*blocks {
            let (key, value) = parts(block);
            self.learn(key, value);
        }
        self.arrange(blocks, |block| parts(block).0);
        for block in blocks {
            let (key, value) = parts(block);
            if self.is_dag_pb(key, value) {
                mark(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE32_NOPAD;

    use super::*;

    fn hash(n: u8) -> Vec<u8> {
        [&[0x12, 0x20][..], &[n; 32]].concat()
    }

    fn key(n: u8) -> String {
        format!("/blocks/{}", BASE32_NOPAD.encode(&hash(n)))
    }

    /// A dag-pb node with links to dag-pb nodes (CIDv0).
    fn node(children: &[u8]) -> Vec<u8> {
        let link = |&n: &u8| [&[0x12, 36, 0x0a, 34][..], &hash(n)].concat();
        let links: Vec<u8> = children.iter().flat_map(link).collect();
        [&links[..], &[0x0a, 0x02, 0x08, 0x02]].concat()
    }

    fn arranged(order: &Order, blocks: &[u8]) -> Vec<u8> {
        let mut blocks: Vec<(String, u8)> = blocks.iter().map(|&n| (key(n), n)).collect();
        order.arrange(&mut blocks, |block| &block.0);
        blocks.into_iter().map(|block| block.1).collect()
    }

    #[test]
    fn files_lie_as_they_are_read() {
        let mut order = Order::new();
        assert_eq!(arranged(&order, &[3, 1, 2]), [3, 1, 2]);
        order.learn(&key(1), b"data, not a node");
        // 20 links to 3, 1, 2, and 21 to 5, 4; 30 to both. 9 belongs to nothing.
        order.learn(&key(20), &node(&[3, 1, 2]));
        assert_eq!(arranged(&order, &[9, 1, 2, 3, 5, 20]), [9, 20, 3, 1, 2, 5]);
        order.learn(&key(21), &node(&[5, 4]));
        assert_eq!(
            arranged(&order, &[4, 1, 2, 9, 3, 5, 20, 21]),
            [21, 5, 4, 20, 3, 1, 2, 9]
        );
        order.learn(&key(30), &node(&[20, 21]));
        assert_eq!(
            arranged(&order, &[4, 1, 2, 9, 3, 5, 20, 21, 30]),
            [30, 20, 3, 1, 2, 21, 5, 4, 9]
        );
        // The nodes need not lie in the same pack, and a key may be there twice.
        assert_eq!(arranged(&order, &[9, 4, 1, 3, 5, 4]), [9, 3, 1, 5, 4, 4]);
        assert!(Order::may_be_node(node(&[1])[0]) && !Order::may_be_node(b'd'));
    }
}
