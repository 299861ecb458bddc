//! Blocks that nodes with the Go plugin have staged and left behind are adopted: stored on Walrus
//! and given rows.
//!
//! **Problem.** The Go plugin keeps a put in the database until one of its daemons uploads it. When
//! the last such node is gone, its blocks wait for ever, and the leases of a daemon that was killed
//! never run out. A node that is still there may be at work on the same blocks.
//!
//! **Outline.** [`adopt`] looks for blocks that were left behind for longer than the configured
//! time ([`Staging::left_behind`]). A lease in the index lets one node work at a time. Pack by pack
//! it claims the blocks, so that no Go node takes them, checks them against their keys, stores
//! them, reads the pack back, and promotes them: one transaction writes the rows and removes the
//! staged blocks.
//!
//! **Invariants.**
//! - A staged block is removed only when its own bytes are on Walrus and read back, in the
//!   transaction that writes its row, or when they were stored before. A block that is staged
//!   anew, deleted or promoted by another node meanwhile is left to that node ([`Claim`]).
//! - Neither the lease nor the claims are needed for that: they keep two nodes from paying for the
//!   same blocks. A node that is killed holds back the others until the lease runs out, and its
//!   claims until [`TERM`] is over.
//! - A block that is not what its key names stays staged.
//! - In memory are the blocks of one pack, and the rows of one page.
//!
//! **Locks.** `held` alone, for no await.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::order::Order;
use super::{usage_of, InMemory, Pack, Parcel, Sent, Uploader};
use crate::backoff::{doubled, jittered};
use crate::error::{caught, Error, ErrorKind, Result};
use crate::index::{new_owner, Claim, Claimed, KeyRecord, LeftBehind, Staging, Usage};
use crate::log::Level;
use crate::metrics::Metrics;
use crate::multihash::{self, Match};
use crate::walrus::Body;

const LEASE: &str = "adoption";
/// The time of the lease: a node that dies keeps the others from adopting for this long.
const LEASE_TTL: Duration = Duration::from_secs(300);
/// How long blocks are claimed for one pack.
const TERM: Duration = Duration::from_secs(1200);
/// The first look comes about this long after the start.
const FIRST: Duration = Duration::from_secs(2);
/// The longest time between two looks.
const INTERVAL: Duration = Duration::from_secs(60);
/// Blocks of one pack at most: their rows are written by one statement.
const MOST_BLOCKS: usize = 5_000;
/// Bytes that are claimed by one statement, if it claims more than one block.
const CLAIM_BYTES: u64 = 8 << 20;
/// How long claims are given back when the datastore is closed.
const FAREWELL: Duration = Duration::from_secs(5);
/// Most keys that are remembered because their blocks stay where they are.
const MOST_LEFT: usize = 10_000;

/// What became of staged blocks that were left behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Adopted {
    /// Blocks that were stored on Walrus and have rows now.
    pub stored: Usage,
    /// Blocks that were on Walrus already: the staged copy was removed.
    pub known: Usage,
    /// Blocks that stay staged since their bytes are not what their keys name.
    pub wrong: Usage,
    /// Blocks that stay staged since no publisher takes them, even by themselves.
    pub too_large: Usage,
    /// Blocks that another node staged anew, deleted, claimed or promoted meanwhile.
    pub taken: Usage,
}

/// A claimed block on its way.
struct Orphan {
    claim: Claim,
    value: Bytes,
    is_dag_pb: bool,
}

impl Parcel for Orphan {
    fn key(&self) -> &str {
        &self.claim.key
    }

    fn len(&self) -> u64 {
        self.value.len() as u64
    }

    fn is_dag_pb(&self) -> bool {
        self.is_dag_pb
    }

    fn append_to(&self, body: &mut Body) {
        body.push(self.value.clone());
    }
}

impl InMemory for Orphan {
    fn value(&self) -> &Bytes {
        &self.value
    }
}

fn usage(blocks: usize, bytes: u64) -> Usage {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    Usage::new(number(blocks as u64), number(bytes))
}

/// One node's work on staged blocks.
pub(crate) struct Adopter {
    uploader: Arc<Uploader>,
    owner: String,
    /// Claims that are to be given back if the work on their blocks ends early.
    held: Mutex<Vec<Claim>>,
    /// Keys of blocks that stay where they are, and which the log has named.
    left: Mutex<HashSet<String>>,
}

/// Adopts blocks that were staged longer ago than `age`, now and then, until stopped.
pub(crate) async fn adopt(uploader: Arc<Uploader>, age: Duration, stop: CancellationToken) {
    let adopter = Adopter::new(uploader);
    let interval = (age / 4).clamp(Duration::from_secs(1), INTERVAL);
    let mut failures = 0;
    let mut wait = FIRST.min(interval);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(wait / 2 + jittered(wait)) => {}
        }
        wait = interval;
        if adopter.uploader.index.only_reads().is_some() {
            continue;
        }
        let round = tokio::select! {
            () = stop.cancelled() => break,
            round = adopter.round(age) => round,
        };
        match round {
            Ok(_) => failures = 0,
            Err(e) => {
                // One line for a row of failures.
                if failures == 0 {
                    let text = format!(
                        "blocks that a Go node has staged and left behind are not adopted for now, and stay in the \
                         staging table: {e}"
                    );
                    adopter.uploader.log.push(Level::Error, text);
                }
                wait = doubled(interval, failures, INTERVAL.max(interval) * 8);
                failures += 1;
            }
        }
    }
    let _ = tokio::time::timeout(FAREWELL, adopter.give_back()).await;
    let lease = adopter.uploader.index.release_lease(LEASE, &adopter.owner);
    let _ = tokio::time::timeout(FAREWELL, caught(lease)).await;
}

impl Adopter {
    pub(crate) fn new(uploader: Arc<Uploader>) -> Adopter {
        Adopter {
            uploader,
            owner: new_owner(),
            held: Mutex::default(),
            left: Mutex::default(),
        }
    }

    /// Goes once through the blocks that were left behind for longer than `age`. `None`: another
    /// node is at it.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an index that holds no staged blocks; those of the index and
    /// of the store. What was adopted before stays so, and claims are given back.
    pub(crate) async fn round(&self, age: Duration) -> Result<Option<Adopted>> {
        let index = &self.uploader.index;
        let Some(staging) = index.staging() else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this index holds no blocks that a Go node has staged: only an index in Postgres does",
            ));
        };
        // Without a claim there is nothing to share, and no lease to take.
        if caught(staging.left_behind(age, None, 1)).await?.is_empty() {
            return Ok(Some(Adopted::default()));
        }
        if !caught(index.try_lease(LEASE, &self.owner, LEASE_TTL)).await? {
            return Ok(None);
        }
        let mut sum = Adopted::default();
        let work = caught(self.all(staging, age, &mut sum));
        let done = tokio::select! {
            done = work => done,
            () = self.prolong() => Ok(()),
        };
        self.give_back().await;
        let _ = caught(index.release_lease(LEASE, &self.owner)).await;
        self.tell(&sum);
        done.map(|()| Some(sum))
    }

    /// Prolongs the lease; returns when another node has it.
    async fn prolong(&self) {
        loop {
            tokio::time::sleep(LEASE_TTL / 5).await;
            let lease = self.uploader.index.try_lease(LEASE, &self.owner, LEASE_TTL);
            if let Ok(false) = caught(lease).await {
                return;
            }
        }
    }

    fn tell(&self, sum: &Adopted) {
        let Usage { blocks, bytes } = sum.stored;
        if blocks > 0 || sum.known.blocks > 0 {
            let text = format!(
                "{blocks} blocks ({bytes} bytes) that a Go node had staged and left behind were stored; {} more were stored \
                 before",
                sum.known.blocks
            );
            self.uploader.log.push(Level::Info, text);
        }
    }

    /// Gives back the claims on blocks whose work ended early.
    pub(crate) async fn give_back(&self) {
        let held = std::mem::take(&mut *self.held.lock());
        if let (Some(staging), false) = (self.uploader.index.staging(), held.is_empty()) {
            // Without an answer they run out by themselves.
            let _ = caught(staging.release(&held)).await;
        }
    }

    async fn all(&self, staging: &dyn Staging, age: Duration, sum: &mut Adopted) -> Result<()> {
        let mut after: Option<LeftBehind> = None;
        let mut failed = None;
        loop {
            let page = staging
                .left_behind(age, after.as_ref(), MOST_BLOCKS)
                .await?;
            let Some(last) = page.last().cloned() else {
                return failed.map_or(Ok(()), Err);
            };
            let mut left = page.into_iter().peekable();
            while left.peek().is_some() {
                let mut fill = self.uploader.empty_pack();
                let mut pack = Vec::new();
                while let Some(next) = left.next_if(|next| fill.takes(&next.key, next.size)) {
                    pack.push(next);
                }
                self.pack(staging, age, pack, sum, &mut failed).await?;
                self.give_back().await;
            }
            after = Some(last);
        }
    }

    /// Adopts the blocks of one pack. `failed` is why an earlier one failed, or this one does,
    /// where others may go better.
    async fn pack(
        &self,
        staging: &dyn Staging,
        age: Duration,
        blocks: Vec<LeftBehind>,
        sum: &mut Adopted,
        failed: &mut Option<Error>,
    ) -> Result<()> {
        let wanted = {
            let left = self.left.lock();
            let blocks = blocks.into_iter();
            blocks.filter(|block| !left.contains(&block.key)).collect()
        };
        let mut orphans: Vec<Orphan> = Vec::new();
        let mut known = Vec::new();
        for keys in statements(wanted) {
            let mut claimed = staging.claim(&keys, age, TERM).await?;
            let claims = claimed.iter().map(|claimed| claimed.claim.clone());
            self.held.lock().extend(claims);
            // In the order in which they were staged.
            let at = |claimed: &Claimed| keys.iter().position(|key| *key == claimed.claim.key);
            claimed.sort_by_cached_key(at);
            for claimed in claimed {
                self.sort(claimed, &mut orphans, &mut known, sum);
            }
        }
        if !known.is_empty() {
            staging.discard(&known).await?;
        }
        Order::new().arrange_and_mark(
            &mut orphans,
            |orphan| (&orphan.claim.key, &orphan.value),
            |orphan| orphan.is_dag_pb = true,
        );
        failpoint!("adopt.claimed");
        let mut stack = self.uploader.format.parts(orphans);
        while let Some(mut part) = stack.pop() {
            let permit = self.uploader.limit.acquire().await;
            let throttled_before = self.uploader.store.throttled();
            let sent = self.uploader.store_unless_paid(&part).await;
            permit.report(self.uploader.store.throttled() != throttled_before);
            drop(permit);
            match sent {
                Sent::Stored(pack) => {
                    failpoint!("adopt.stored");
                    // The staged blocks are the only copy until then.
                    let read_back = self.uploader.read_back_soon(&pack, &part);
                    if let Err(e) = read_back.await {
                        // Others may go better. If the next one does not, no aggregator works.
                        match failed {
                            Some(_) => return Err(e),
                            None => *failed = Some(e),
                        }
                        continue;
                    }
                    failpoint!("adopt.read_back");
                    self.promote(staging, &pack, &part, sum).await?;
                    failpoint!("adopt.promoted");
                }
                Sent::TooLarge(at) => {
                    let second = part.split_off(at);
                    stack.push(second);
                    stack.push(part);
                }
                Sent::Failed(e) => match (e.kind(), &*part) {
                    // It does not hold up the others. A publisher that failed may take it later.
                    (ErrorKind::TooLarge, [_]) if e.is_retryable() => {
                        failed.get_or_insert(e);
                    }
                    (ErrorKind::TooLarge, [orphan]) => {
                        let size = orphan.value.len();
                        sum.too_large = sum.too_large.plus(usage(1, size as u64));
                        self.leave(
                            &orphan.claim.key,
                            format!(
                                "no publisher takes its {size} bytes, so it stays in the staging table until the node is started \
                                 again: {e}"
                            ),
                        );
                    }
                    _ => return Err(e),
                },
            }
        }
        Ok(())
    }

    /// Has a block stay where it is from now on.
    fn leave(&self, key: &str, why: String) {
        let mut left = self.left.lock();
        if left.len() < MOST_LEFT {
            left.insert(key.to_owned());
        }
        let text = format!("block {key} that a Go node has staged: {why}");
        self.uploader.log.push(Level::Error, text);
    }

    /// Decides what is to be done with a claimed block.
    fn sort(
        &self,
        claimed: Claimed,
        orphans: &mut Vec<Orphan>,
        known: &mut Vec<Claim>,
        sum: &mut Adopted,
    ) {
        let Claimed { claim, value, row } = claimed;
        let one = usage(1, value.len() as u64);
        let names = multihash::check(&claim.key, &value);
        if names == Match::No {
            sum.wrong = sum.wrong.plus(one);
            let text = format!(
                "it is not what its key names, and its {} bytes stay in the staging table. Put the block again, or \
                 delete its key",
                value.len()
            );
            return self.leave(&claim.key, text);
        }
        let same = names == Match::Yes;
        if self
            .uploader
            .is_stored(row.as_ref(), value.len() as u64, same)
        {
            sum.known = sum.known.plus(one);
            return known.push(claim);
        }
        orphans.push(Orphan {
            claim,
            value,
            is_dag_pb: false,
        });
    }

    async fn promote(
        &self,
        staging: &dyn Staging,
        pack: &Pack,
        blocks: &[Orphan],
        sum: &mut Adopted,
    ) -> Result<()> {
        let claims = blocks.iter().map(|block| block.claim.clone());
        let rows: Vec<(KeyRecord, Claim)> = pack.rows(blocks).into_iter().zip(claims).collect();
        let promoted = staging.promote(&pack.blob, &rows).await?;
        let promoted: HashSet<String> = promoted.into_iter().collect();
        // Staged blocks count in the totals already.
        for (row, _) in &rows {
            let one = usage_of(Some(&row.record));
            let counted = match promoted.contains(&row.key) {
                true => &mut sum.stored,
                false => &mut sum.taken,
            };
            *counted = counted.plus(one);
        }
        let metrics = &self.uploader.metrics;
        Metrics::add(&metrics.blocks_adopted, promoted.len() as u64);
        Ok(())
    }
}

/// Divides blocks into the keys of the statements that claim them.
fn statements(blocks: Vec<LeftBehind>) -> Vec<Vec<String>> {
    let mut statements: Vec<Vec<String>> = Vec::new();
    let mut bytes = 0;
    for block in blocks {
        match statements.last_mut() {
            Some(last) if bytes + block.size <= CLAIM_BYTES => {
                bytes += block.size;
                last.push(block.key);
            }
            _ => {
                bytes = block.size;
                statements.push(vec![block.key]);
            }
        }
    }
    statements
}
