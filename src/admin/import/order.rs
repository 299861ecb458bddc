//! The order in which the files of a flatfs are read, so that packs hold what is read together.
//!
//! **Problem.** flatfs knows no order but that of hashes. Packs in that order would spread the
//! blocks of each file over all packs, and each block of a file would be a read of its own for
//! ever.
//!
//! **Outline.** All directories are listed. Files that may be dag-pb nodes with links are read, by
//! several threads: most blocks are leaves of the usual lengths, which are not even opened. Then
//! the DAGs are walked from their roots, a node before what it links to, as a reader does. Blocks
//! to which nothing links come last.
//!
//! **Memory.** About 50 bytes for each block. Of a flatfs of more than [`MOST`] blocks nothing is
//! kept, and its blocks come directory by directory.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use crate::admin::flatfs::{read_block, Flatfs, FlatfsBlock};
use crate::dag::{self, LINKS_FIRST};
use crate::error::{Error, ErrorKind, Result};

/// The most blocks that are put in order: 1 TiB of blocks of 256 KiB.
const MOST: usize = 4_000_000;
/// Longer files are leaves (bytes): a directory of Kubo that would become longer is divided, and a
/// node of a file is much shorter.
const LONGEST_NODE: u64 = 256 << 10;
/// The multihash of SHA2-256 up to the digest.
const HEAD: [u8; 2] = [0x12, 0x20];
/// Files that a thread looks at at a time.
const TURN: usize = 256;

/// A block that takes part.
#[derive(Clone, Copy)]
struct Entry {
    digest: [u8; 32],
    len: u32,
}

/// The blocks of a flatfs in the order in which they are read.
#[derive(Default)]
pub(super) struct ReadOrder {
    entries: Vec<Entry>,
    /// Whether there are blocks that do not take part.
    pub(super) others: bool,
    /// Numbers of entries.
    order: std::vec::IntoIter<u32>,
}

/// The digest in a key of a SHA2-256 multihash.
fn digest(key: &str) -> Option<[u8; 32]> {
    let name = key.strip_prefix('/')?;
    let hash = data_encoding::BASE32_NOPAD.decode(name.as_bytes()).ok()?;
    hash.strip_prefix(&HEAD)?.try_into().ok()
}

fn key(digest: &[u8; 32]) -> String {
    let hash = [&HEAD[..], digest].concat();
    format!("/{}", data_encoding::BASE32_NOPAD.encode(&hash))
}

/// Whether a block of a directory takes part: others are left to the way directory by directory.
pub(super) fn takes(flatfs: &Flatfs, shard: &str, block: &FlatfsBlock) -> bool {
    let in_place = || {
        let place = flatfs.path_of(&block.key);
        place.is_some_and(|path| path.parent() == Some(&flatfs.dir().join(shard)))
    };
    digest(&block.key).is_some() && u32::try_from(block.len).is_ok() && in_place()
}

impl ReadOrder {
    /// Lists a flatfs and reads its nodes. `None`: it has too many blocks.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`].
    pub(super) fn of(flatfs: &Flatfs, threads: usize) -> Result<Option<ReadOrder>> {
        let (mut entries, mut others) = (Vec::new(), false);
        for shard in flatfs.shards()? {
            for block in flatfs.list(&shard)? {
                let found = digest(&block.key).zip(u32::try_from(block.len).ok());
                match found.filter(|_| takes(flatfs, &shard, &block)) {
                    Some((digest, len)) => entries.push(Entry { digest, len }),
                    None => others = true,
                }
            }
            if entries.len() > MOST {
                return Ok(None);
            }
        }
        entries.sort_unstable_by_key(|entry| entry.digest);
        let nodes = nodes(flatfs, &entries, threads)?;
        Ok(Some(ReadOrder {
            order: walk(entries.len(), nodes).into_iter(),
            entries,
            others,
        }))
    }
}

impl Iterator for ReadOrder {
    type Item = (String, u64);

    /// The key and the length of the next block.
    fn next(&mut self) -> Option<(String, u64)> {
        let entry = self.entries.get(self.order.next()? as usize)?;
        Some((key(&entry.digest), entry.len.into()))
    }
}

/// A node, and the blocks it links to that are there.
type Node = (u32, Vec<u32>);

/// Reads the files that may be nodes.
fn nodes(flatfs: &Flatfs, entries: &[Entry], threads: usize) -> Result<Vec<Node>> {
    let turn = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        loop {
            let begin = turn.fetch_add(TURN, std::sync::atomic::Ordering::Relaxed);
            let Some(part) = entries.get(begin..) else {
                return found;
            };
            for (at, entry) in part.iter().take(TURN).enumerate() {
                let number = u32::try_from(begin + at).unwrap_or(u32::MAX);
                let children = children(flatfs, entry, entries);
                found.extend(children.map(|children| (number, children)));
            }
        }
    };
    let mut all: Vec<Node> = std::thread::scope(|scope| {
        let threads = (0..threads.max(1)).map(|_| {
            let builder = std::thread::Builder::new().name("walrusds-import".to_owned());
            builder.spawn_scoped(scope, work)
        });
        let threads = threads.collect::<io::Result<Vec<_>>>().map_err(|e| {
            Error::new(
                ErrorKind::Internal,
                format!("no thread can be started: {e}"),
            )
            .caused_by(e)
        })?;
        let mut all = Vec::new();
        for thread in threads {
            let found = thread.join();
            all.extend(found.map_err(|_| {
                Error::new(
                    ErrorKind::Internal,
                    "a thread that reads nodes has panicked",
                )
            })?);
        }
        Ok::<_, Error>(all)
    })?;
    all.sort_unstable_by_key(|node| node.0);
    Ok(all)
}

/// The blocks to which a block links. A file that cannot be read here is reported when its turn
/// comes.
fn children(flatfs: &Flatfs, entry: &Entry, entries: &[Entry]) -> Option<Vec<u32>> {
    if u64::from(entry.len) >= LONGEST_NODE || entry.len == 0 {
        return None;
    }
    let path = flatfs.path_of(&key(&entry.digest))?;
    if !begins_as_node(&path).unwrap_or(false) {
        return None;
    }
    let block = read_block(&path).ok().flatten()?;
    let links = dag::links(&block)?;
    let number = |link: &dag::Link<'_>| {
        let digest = <[u8; 32]>::try_from(link.hash.strip_prefix(&HEAD)?).ok()?;
        let found = entries.binary_search_by(|entry| entry.digest.cmp(&digest));
        u32::try_from(found.ok()?).ok()
    };
    let children: Vec<u32> = links.iter().filter_map(number).collect();
    (!children.is_empty()).then_some(children)
}

fn begins_as_node(path: &Path) -> io::Result<bool> {
    let mut first = [0];
    let read = File::open(path)?.read(&mut first)?;
    Ok(read == 1 && first[0] == LINKS_FIRST)
}

/// The order of so many blocks, of which these are nodes (in the order of their numbers): each DAG
/// from its root, a node before what it links to; then the blocks to which nothing links.
fn walk(blocks: usize, nodes: Vec<Node>) -> Vec<u32> {
    let mut linked = vec![false; blocks];
    for child in nodes.iter().flat_map(|node| &node.1) {
        linked[*child as usize] = true;
    }
    let node_of = |number: u32| {
        let at = nodes.binary_search_by_key(&number, |node| node.0).ok()?;
        Some(at)
    };
    let mut met = vec![false; blocks];
    let mut order = Vec::with_capacity(blocks);
    // A node, and how many of its links were followed.
    let mut path: Vec<(usize, usize)> = Vec::new();
    let roots = nodes.iter().map(|node| node.0);
    for root in roots.filter(|root| !linked[*root as usize]) {
        met[root as usize] = true;
        order.push(root);
        path.extend(node_of(root).map(|at| (at, 0)));
        while let Some((at, followed)) = path.last_mut() {
            let Some(&child) = nodes[*at].1.get(*followed) else {
                path.pop();
                continue;
            };
            *followed += 1;
            if !std::mem::replace(&mut met[child as usize], true) {
                order.push(child);
                path.extend(node_of(child).map(|at| (at, 0)));
            }
        }
    }
    // A damaged node may hold any link, a circle among them.
    let numbers = (0..blocks).filter(|number| !met[*number]);
    order.extend(numbers.filter_map(|number| u32::try_from(number).ok()));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dags_are_walked_as_they_are_read() {
        // 2 → 7, 4; 4 → 0, 1; 5 → 4, 3. Nothing links to 6.
        let nodes = vec![(2, vec![7, 4]), (4, vec![0, 1]), (5, vec![4, 3])];
        assert_eq!(walk(8, nodes), [2, 7, 4, 0, 1, 5, 3, 6]);
        assert_eq!(walk(3, Vec::new()), [0, 1, 2]);
        // A block that links to itself, and a circle.
        let circle = vec![(0, vec![0]), (1, vec![2]), (2, vec![1])];
        assert_eq!(walk(3, circle), [0, 1, 2]);
    }
}
