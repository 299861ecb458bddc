//! A DAG: which blobs hold its blocks, whether all of them are there, when the first of them ends.
//!
//! **Outline.** The walk goes down from the root in steps. A step looks up to [`STEP`] keys up at
//! once, reads those of them that are nodes ([`READS`] at a time), and adds their links to what is
//! to be visited. Leaves (raw blocks) are looked up and not read: `check` finds out whether their
//! bytes are right.
//!
//! The walk holds the keys of the DAG in memory: about 150 bytes for each block.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use serde::Serialize;

use super::inspect::{per_epoch, read, units};
use super::links::{links, Kind, DAG_PB};
use super::target::{key_of, Cid};
use super::time;
use crate::datastore::Inspection;
use crate::error::Result;
use crate::index::ledger::number;
use crate::index::Record;
use crate::journal::Copies;

/// Keys of a lookup.
const STEP: usize = 1_000;
/// Nodes that are read at a time.
const READS: usize = 16;
/// Blocks that are named in each list of a report; all are counted.
const NAMED: usize = 100;
/// The multihash code of a digest that is the block itself: no block is stored for it.
const IDENTITY: u64 = 0;

/// The part of a DAG that a blob holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Share {
    /// The blob.
    pub blob_id: String,
    /// Blocks of the DAG in it.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The length of the whole blob; 0: unknown.
    pub blob_bytes: u64,
    /// Units of the whole blob; 0: unknown.
    pub units: u64,
    /// The epoch in which it is no longer stored; 0: unknown.
    pub end_epoch: i64,
    /// The estimate of that moment.
    #[serde(serialize_with = "time::option::serialize")]
    pub expires_at: Option<SystemTime>,
}

/// The end of the blob that ends first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct End {
    /// The blob.
    pub blob_id: String,
    /// The epoch in which it is no longer stored.
    pub epoch: i64,
    /// The estimate of that moment.
    #[serde(serialize_with = "time::option::serialize")]
    pub at: Option<SystemTime>,
}

/// A DAG, as the index has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Dag {
    /// Its root.
    pub root: String,
    /// Whether every block is there, and every node could be read.
    pub complete: bool,
    /// Blocks that the index or the journal has.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that neither has, as far as links to them were found.
    pub missing: u64,
    /// The keys of the first 100 of them.
    pub missing_keys: Vec<String>,
    /// Nodes that could not be read or understood: what lies below them is not known.
    pub unread: u64,
    /// The first of them, with the reason.
    pub unread_keys: Vec<String>,
    /// Blocks of a codec that is not known here, below which nothing was looked for.
    pub not_followed: u64,
    /// Blocks that wait in the database (a Go node staged them) and are in no blob.
    pub staged: u64,
    /// Blocks that wait in the journal on this machine's disk and are in no blob yet.
    pub journaled: u64,
    /// The blobs, that with the most blocks first.
    pub blobs: Vec<Share>,
    /// The blob that ends first; `None` if no end is known.
    pub first_end: Option<End>,
    /// Units of these blobs as a whole.
    pub units: u64,
    /// What keeping these blobs costs for an epoch (FROST).
    pub frost_per_epoch: u64,
    /// The part of that price which falls to the DAG by its bytes (FROST).
    pub share_frost_per_epoch: u64,
    /// Whether the chain told the price; else it is that of Walrus' documentation.
    pub prices_known: bool,
}

/// Walks through a DAG. `prefix`: as for [`key_of`]. `progress` is told the blocks and bytes that
/// were found so far. What cannot be read is counted and named, and is no error.
///
/// # Errors
/// [`ErrorKind::Index`](crate::ErrorKind::Index).
pub async fn walk(
    inspection: &Inspection,
    root: &Cid,
    prefix: &str,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Dag> {
    let mut walk = Walk::new(inspection, prefix);
    walk.dag.root = root.to_string();
    walk.add(*root);
    while walk.step().await? {
        progress(walk.dag.blocks, walk.dag.bytes);
    }
    walk.finish().await
}

/// The keys of the blocks of DAGs that the index has, and the report on all of them as one DAG.
///
/// # Errors
/// [`ErrorKind::Index`](crate::ErrorKind::Index).
pub async fn keys(
    inspection: &Inspection,
    roots: &[Cid],
    prefix: &str,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<(HashSet<String>, Dag)> {
    let mut walk = Walk::new(inspection, prefix);
    walk.dag.root = roots.first().map(Cid::to_string).unwrap_or_default();
    roots.iter().for_each(|root| walk.add(*root));
    while walk.step().await? {
        progress(walk.dag.blocks, walk.dag.bytes);
    }
    let keys = std::mem::take(&mut walk.found);
    Ok((keys, walk.finish().await?))
}

struct Walk<'a> {
    inspection: &'a Inspection,
    prefix: &'a str,
    dag: Dag,
    /// The keys that were met, and under which codecs ([`way`]): a block may be linked as a leaf
    /// and as a node.
    met: HashMap<String, u8>,
    /// The keys that the index or the journal has.
    found: HashSet<String>,
    /// What is to be visited.
    next: Vec<(String, Cid)>,
    shares: BTreeMap<String, Share>,
    /// What the journal holds, from when the index was first found to lack a block.
    journal: Option<Copies>,
}

/// The bit of a codec in [`Walk::met`].
fn way(cid: &Cid) -> u8 {
    match (Kind::of(cid), cid.codec()) {
        (Kind::Leaf, _) => 1,
        (Kind::Node, DAG_PB) => 2,
        (Kind::Node, _) => 4,
        (Kind::Unknown, _) => 8,
    }
}

/// The bit of a missing block that was counted.
const MISSING: u8 = 16;

impl<'a> Walk<'a> {
    fn new(inspection: &'a Inspection, prefix: &'a str) -> Self {
        Walk {
            inspection,
            prefix,
            dag: Dag::default(),
            met: HashMap::new(),
            found: HashSet::new(),
            next: Vec::new(),
            shares: BTreeMap::new(),
            journal: None,
        }
    }

    /// Adds a link, unless its block was met.
    fn add(&mut self, cid: Cid) {
        let kind = Kind::of(&cid);
        if cid.hash().code() == IDENTITY {
            // The block is in the link.
            match kind {
                Kind::Leaf => {}
                Kind::Node => match links(cid.codec(), cid.hash().digest()) {
                    Ok(below) => below.into_iter().for_each(|cid| self.add(cid)),
                    Err(why) => self.unread(format!("{cid}: {why}")),
                },
                Kind::Unknown => self.dag.not_followed += 1,
            }
            return;
        }
        let key = key_of(&cid, self.prefix);
        let met = self.met.entry(key.clone()).or_default();
        let (first, known) = (*met == 0, *met & way(&cid) != 0);
        *met |= way(&cid);
        if known {
            return;
        }
        if kind == Kind::Unknown {
            self.dag.not_followed += 1;
        }
        // Links are looked for under each codec; a leaf is looked up once.
        if first || kind == Kind::Node {
            self.next.push((key, cid));
        }
    }

    /// Visits the next blocks. Returns false if there are none.
    async fn step(&mut self) -> Result<bool> {
        if self.next.is_empty() {
            return Ok(false);
        }
        // The last ones first: this holds fewer keys than going down level by level.
        let step = self.next.split_off(self.next.len().saturating_sub(STEP));
        let keys: Vec<String> = step.iter().map(|(key, _)| key.clone()).collect();
        let rows = self.inspection.index().get_many(&keys).await?;
        if rows.contains(&None) && self.journal.is_none() {
            self.journal = Some(self.inspection.journaled().await?);
        }
        let mut nodes = Vec::new();
        for ((key, cid), row) in step.into_iter().zip(rows) {
            let Some(row) = row else {
                self.look_in_journal(key, &cid);
                continue;
            };
            if self.found.insert(key.clone()) {
                self.count(&row);
            }
            if Kind::of(&cid) == Kind::Node {
                nodes.push((key, cid, row));
            }
        }
        let inspection = self.inspection;
        let mut read = stream::iter(nodes)
            .map(|(key, cid, row)| async move { (read(inspection, &key, &row).await, key, cid) })
            .buffer_unordered(READS);
        while let Some((block, key, cid)) = read.next().await {
            self.follow(&key, &cid, block.map_err(|e| e.to_string()));
        }
        Ok(true)
    }

    /// Adds the links of a node.
    fn follow(&mut self, key: &str, cid: &Cid, block: std::result::Result<Bytes, String>) {
        match block.and_then(|block| links(cid.codec(), &block)) {
            Ok(links) => links.into_iter().for_each(|cid| self.add(cid)),
            Err(why) => {
                let why = why.trim_start_matches(key).trim_start_matches(": ");
                self.unread(format!("{key}: {why}"));
            }
        }
    }

    /// A block that the index lacks may wait in the journal.
    fn look_in_journal(&mut self, key: String, cid: &Cid) {
        let journal = self.journal.as_ref();
        let Some(len) = journal.and_then(|journal| journal.len_of(&key)) else {
            return self.missing(key);
        };
        let block = journal.and_then(|journal| journal.get(&key));
        if self.found.insert(key.clone()) {
            self.dag.blocks += 1;
            self.dag.journaled += 1;
            self.dag.bytes = self.dag.bytes.saturating_add(len);
        }
        if Kind::of(cid) == Kind::Node {
            let block = block.ok_or_else(|| "it cannot be read in the journal".to_owned());
            self.follow(&key, cid, block);
        }
    }

    fn unread(&mut self, what: String) {
        self.dag.unread += 1;
        if self.dag.unread_keys.len() < NAMED {
            self.dag.unread_keys.push(what);
        }
    }

    fn missing(&mut self, key: String) {
        let met = self.met.entry(key.clone()).or_default();
        if *met & MISSING != 0 {
            return;
        }
        *met |= MISSING;
        self.dag.missing += 1;
        if self.dag.missing_keys.len() < NAMED {
            self.dag.missing_keys.push(key);
        }
    }

    fn count(&mut self, row: &Record) {
        let bytes = number(row.size);
        self.dag.blocks += 1;
        self.dag.bytes = self.dag.bytes.saturating_add(bytes);
        if row.staged || row.blob_id.is_empty() {
            self.dag.staged += 1;
            return;
        }
        let share = self
            .shares
            .entry(row.blob_id.clone())
            .or_insert_with(|| Share {
                blob_id: row.blob_id.clone(),
                end_epoch: row.end_epoch,
                expires_at: row.expires_at,
                ..Share::default()
            });
        share.blocks += 1;
        share.bytes = share.bytes.saturating_add(bytes);
    }

    /// Adds what the ledger knows of the blobs, and the sums.
    async fn finish(self) -> Result<Dag> {
        let (mut dag, inspection) = (self.dag, self.inspection);
        let (prices, known) = inspection.prices().await;
        dag.prices_known = known;
        let mut shares: Vec<Share> = self.shares.into_values().collect();
        for page in shares.chunks_mut(STEP) {
            let ids: Vec<String> = page.iter().map(|share| share.blob_id.clone()).collect();
            let entries = inspection.index().blobs(&ids).await?;
            for (share, entry) in page.iter_mut().zip(entries) {
                let Some(entry) = entry else { continue };
                share.blob_bytes = number(entry.size);
                share.units = units(&entry, inspection.config().n_shards);
                share.end_epoch = share.end_epoch.max(entry.end_epoch);
                share.expires_at = share.expires_at.max(entry.expires_at);
            }
        }
        for share in &shares {
            dag.units = dag.units.saturating_add(share.units);
            let price = per_epoch(share.units, prices);
            dag.frost_per_epoch = dag.frost_per_epoch.saturating_add(price);
            let whole = u128::from(share.blob_bytes.max(share.bytes).max(1));
            let part = u128::from(price) * u128::from(share.bytes) / whole;
            let part = u64::try_from(part).unwrap_or(u64::MAX);
            dag.share_frost_per_epoch = dag.share_frost_per_epoch.saturating_add(part);
        }
        let ending = shares.iter().filter(|share| share.end_epoch > 0);
        let first = ending.min_by_key(|share| (share.end_epoch, &share.blob_id));
        dag.first_end = first.map(|share| End {
            blob_id: share.blob_id.clone(),
            epoch: share.end_epoch,
            at: share.expires_at,
        });
        shares.sort_by(|a, b| (b.blocks, &a.blob_id).cmp(&(a.blocks, &b.blob_id)));
        dag.blobs = shares;
        dag.complete = dag.missing == 0 && dag.unread == 0 && dag.not_followed == 0;
        Ok(dag)
    }
}
