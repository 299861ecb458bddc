//! The lifetime of blobs: renewal before their storage ends.
//!
//! One node at a time makes rounds, under a lease in the index. A round counts the blobs' live
//! blocks if that is due ([`mod@count`]), carries out what the plan says of the blobs that end soon
//! ([`mod@execute`]: extend, repack, let lapse, delete), and stores again what is left
//! ([`mod@again`]).
//!
//! There is no "extend" over HTTP: storing a blob again means uploading its bytes at full price.
//! The blob ID is computed from the bytes, so rows keep pointing where they did.
//!
//! A blob is due by its end epoch, the network's answer. Its `expires_at` is an estimate, made by
//! the clock at the moment of the store, which may have been wrong: it counts where the epochs tell
//! nothing ([`mod@due`]). The epochs that nodes see are shared in the index. The end of the last
//! round is kept there, too, so that a node that is started often renews as often as one that runs
//! on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, EpochClock};
use crate::error::{caught, ErrorKind, Result};
use crate::index::{new_owner, Index, RenewItem};
use crate::log::{Level, Log};
use crate::metrics::Metrics;
use crate::upload::Uploader;

mod again;
pub(crate) mod chain;
mod check;
mod count;
mod due;
mod execute;
mod lease;
mod memory;
mod once;
mod pace;
pub mod plan;
mod present;
pub mod rebuild;
mod repack;
mod shed;
mod sparse;
mod watch;

use again::{attend, attend_all, rest_when_held, Turn};
use chain::Chain;
use count::count;
use due::{is_due, is_urgent};
pub(crate) use due::{last_due, time_of_rounds};
use execute::execute;
pub(crate) use execute::look;
use lease::{keep_turn, with_lease, Lease, LEASE, LEASE_TTL, TURN};
use memory::{seconds, Memory};
pub(crate) use once::{last_round, renew_once, repack_once};
pub(crate) use pace::Pace;
use present::{learn_epochs, tell_epoch};
pub(crate) use present::{present_epoch, prices, SAMPLE_PRICES};
pub(crate) use sparse::sparse;
pub use sparse::{Sparse, SparseBlob};
pub(crate) use watch::{complaint, watch};

/// How many blobs are asked for at a time.
const PAGE: usize = 1024;
/// A renewal buys two epochs at least. A blob that ends with the present epoch cannot be bought for
/// this epoch again (the publisher answers that it is stored already), and when the epoch is over
/// the blob is gone.
pub(crate) const MIN_RENEWAL_EPOCHS: u32 = 2;
/// The first round comes this long after the start, or sooner, if one is overdue.
const FIRST_ROUND: Duration = Duration::from_secs(1);
/// No network sells storage for more epochs at a time.
const MOST_EPOCHS: u32 = 53;
/// How many blobs are renewed at a time to learn the epoch.
const PROBES: usize = 3;
/// From so many blobs they are chosen where the one that ends first is wanted: some have no live
/// blocks.
const CANDIDATES: usize = 64;
/// How many blobs that no aggregator has any more are met meanwhile, at a time: they teach nothing.
const PROBES_MISSING: usize = 256;

/// The subjects of log lines of which each blob may cause one. Different troubles are limited
/// apart: blobs that lapsed long ago must not silence one whose bytes are wrong, nor a chain that
/// fails all that comes after it.
mod about {
    pub(super) const EXTENSION: &str = "extension";
    pub(super) const DELETION: &str = "deletion";
    pub(super) const MISSING: &str = "missing-blobs";
    pub(super) const CORRUPT: &str = "corrupt-blobs";
    pub(super) const RENEWAL: &str = "renewal";
}
/// How long a node tries to give its leases back when it is closed.
const GIVES_BACK_FOR: Duration = Duration::from_millis(500);
/// The note in the index that tells when the last round ended; one of those that begin with
/// [`OF_RENEWAL`](crate::index::OF_RENEWAL).
const ROUND_NOTE: &str = "renewal.round";

/// The chain behind the operator's program, which is not started yet.
pub(crate) fn chain_of(command: chain::WalrusCommand) -> Arc<dyn Chain> {
    Arc::new(chain::Program::new(command))
}

pub(crate) struct RenewalParts {
    pub(crate) index: Arc<dyn Index>,
    pub(crate) uploader: Arc<Uploader>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) epoch_clock: Arc<EpochClock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: Arc<Log>,
    pub(crate) interval: Duration,
    pub(crate) lead: Duration,
    pub(crate) epoch: Duration,
    /// The chain, if the operator's program is at hand.
    pub(crate) chain: Option<Arc<dyn Chain>>,
    /// The network's shards, for prices.
    pub(crate) n_shards: u16,
    /// A blob that is not due is repacked if this part of it is waste.
    pub(crate) max_waste_percent: u32,
    /// How many bytes are moved in a second; 0 = no limit.
    pub(crate) bytes_per_second: u64,
    pub(crate) pace: Pace,
}

impl RenewalParts {
    /// A lead that is longer than the time that was bought makes a blob due again at once. So it
    /// rests until a quarter of its time is left: a deletable blob would be paid for at every look
    /// otherwise.
    fn rest_after_renewal(&self, expires_at: Option<SystemTime>) -> Option<Instant> {
        let left = expires_at?.duration_since(self.clock.now()).ok()?;
        (left <= self.lead).then(|| Instant::now() + left.mul_f64(0.75))
    }

    fn longest_rest(&self) -> Duration {
        self.lead.mul_f64(0.75).max(self.epoch / 2)
    }

    /// The longest rest after a failure: a blob must be looked at several times before its storage
    /// ends.
    fn fraction_of_epoch(&self) -> Duration {
        self.epoch / 8
    }

    /// How often blobs are looked for that are due by their end epochs alone.
    fn audit_interval(&self) -> Duration {
        self.interval.max(self.epoch / 16)
    }
}

/// The memory of one node's rounds.
#[derive(Default)]
struct Rounds {
    memory: Memory,
    /// When blobs were last looked for by their end epochs.
    audited: Option<Instant>,
    /// Whether the log has told that the configured length of an epoch is wrong.
    contradicted: bool,
    /// The blob after which the next look for an epoch begins.
    probed: Option<RenewItem>,
    /// Whether all that is due is renewed now: nothing is spread over the lead, and nothing that
    /// failed waits for a cheaper way.
    at_once: bool,
    /// The count after which sparse blobs were last looked for.
    shed: Option<String>,
    /// The blobs that this round's plan was made for; `None` if there is none.
    planned: Option<HashSet<String>>,
    /// No blob is repacked that can wait before this moment: the last repack failed.
    repacks_rest: Option<Instant>,
    /// The blobs that were extended lately, where that could not be read back, and when.
    extended: HashMap<String, Instant>,
    /// Nothing is due before this moment, whatever the clock says.
    all_held: Option<Instant>,
}

/// Renews blobs until stopped. Runs on every node; a lease in the index lets one node work at a
/// time.
pub(crate) async fn renew(parts: Arc<RenewalParts>, stop: CancellationToken) {
    let owner = new_owner();
    let mut state = Rounds::default();
    // Whether a round of another was under way when this node's turn came.
    let mut refused = false;
    let mut wait = tokio::select! {
        () = stop.cancelled() => return,
        wait = caught(first_wait(&parts)) => wait.unwrap_or(parts.interval),
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
        }
        wait = parts.interval;
        let round = async {
            if !parts.index.try_lease(TURN, &owner, LEASE_TTL).await? {
                return look_on(&parts).await;
            }
            let Some(lease) = Lease::take(&parts, &owner).await? else {
                // A command makes a round, or a node that has lost its turn does.
                wait = wait.min(LEASE_TTL / 10);
                return match std::mem::replace(&mut refused, true) {
                    true => Ok(()),
                    false => look_on(&parts).await,
                };
            };
            refused = false;
            let work = async {
                tokio::select! {
                    made = round(&parts, &lease, &mut state) => made,
                    () = keep_turn(&parts, &owner) => Ok(()),
                }
            };
            let made = caught(work).await;
            lease.give_back(&parts).await;
            made
        };
        tokio::select! {
            () = stop.cancelled() => break,
            // A panic must not end the renewals to come.
            result = caught(round) => if let Err(e) = result {
                parts.log.push(Level::Warn, format!("renewal: {e}"));
            },
        }
    }
    for lease in [LEASE, TURN] {
        give_back_at_end(&parts, lease, &owner).await;
    }
}

/// Gives a lease back when the node is closed. Others would wait for minutes until it runs out; so
/// a failure that came at once is no reason not to try again. An index that is away does not hold
/// up the close.
async fn give_back_at_end(parts: &RenewalParts, lease: &str, owner: &str) {
    let begun = Instant::now();
    while caught(parts.index.release_lease(lease, owner))
        .await
        .is_err()
        && begun.elapsed() < GIVES_BACK_FOR
    {
        tokio::time::sleep(GIVES_BACK_FOR / 10).await;
    }
}

/// The round of a node whose turn it is not: it has figures all the same, and knows what it may
/// use.
async fn look_on(parts: &RenewalParts) -> Result<()> {
    learn_epochs(parts).await?;
    shed::recall(parts).await?;
    read_ledger(parts).await
}

/// How long the first round waits: until an interval has passed since the last round of any
/// process.
async fn first_wait(parts: &RenewalParts) -> Result<Duration> {
    tell_epoch(parts).await;
    // What is stored before the first round may use what was left.
    shed::recall(parts).await?;
    let soon = FIRST_ROUND.min(parts.interval / 10);
    let last = parts.index.note(ROUND_NOTE).await?;
    let Some(last) = last.and_then(|last| last.parse::<u64>().ok()) else {
        return Ok(soon);
    };
    // A round in the future was made under a wrong clock.
    let since = seconds(parts.clock.now()).checked_sub(last);
    let left = since.map(|since| parts.interval.saturating_sub(Duration::from_secs(since)));
    Ok(left.unwrap_or_default().max(soon))
}

/// Goes once through every blob that is due.
async fn round(parts: &RenewalParts, lease: &Lease, state: &mut Rounds) -> Result<()> {
    let owner = &lease.owner;
    tell_epoch(parts).await;
    share_epochs(parts, state).await?;
    let mut done = HashSet::new();
    if !learn(parts, owner, state, &mut done).await? {
        return Ok(());
    }
    // Learning the epoch may have taken longer than the lease lasts, and has prolonged it.
    let Some(lease) = Lease::take(parts, owner).await? else {
        return Ok(());
    };
    state.planned = None;
    let by_plan = async {
        shed::recall(parts).await?;
        count(parts).await?;
        read_ledger(parts).await?;
        execute(parts, state, &mut done).await
    };
    let planned = with_lease(parts, &lease, by_plan).await;
    let failed = match planned {
        Err(e) if e.kind() == ErrorKind::Locked => return Err(e),
        Err(e) => {
            let text = format!("renewal by plan, which is tried again: {e}");
            parts.log.push(Level::Warn, text);
            true
        }
        Ok(()) => false,
    };
    let urgent_alone = failed && !state.at_once;
    let before = parts.clock.now() + parts.lead;
    let mut after: Option<RenewItem> = None;
    loop {
        let due = parts
            .index
            .due_for_renewal(before, after.as_ref(), PAGE)
            .await?;
        let whole = due.len() >= PAGE;
        after = due.last().cloned();
        let due = due.into_iter().filter(|item| {
            let waits = urgent_alone && !is_urgent(parts, item.end_epoch);
            is_due(parts, item)
                && !waits
                && !shed::is_new(parts, state, item)
                && done.insert(item.blob_id.clone())
        });
        if !attend_all(parts, owner, state, due.collect()).await? {
            return Ok(());
        }
        if !whole {
            break;
        }
    }
    let audit_due = |last: Instant| last.elapsed() >= parts.audit_interval();
    let audit_due = failed || state.audited.is_none_or(audit_due);
    if audit_due && !audit(parts, owner, state, &mut done, urgent_alone).await? {
        return Ok(());
    }
    state.memory.tidy(parts, &done).await?;
    share_epochs(parts, state).await?;
    let now = parts.clock.now();
    parts.metrics.ledger.round(now);
    read_ledger(parts).await?;
    let now = seconds(now).to_string();
    parts.index.set_note(ROUND_NOTE, Some(&now)).await
}

/// Reads the ledger's sums for the metrics.
async fn read_ledger(parts: &RenewalParts) -> Result<()> {
    let now = parts.clock.now();
    parts.metrics.ledger.read(now, parts.index.horizon().await?);
    Ok(())
}

/// Learns the epochs that other nodes and earlier processes have seen, and notes for them what this
/// one has seen.
async fn share_epochs(parts: &RenewalParts, state: &mut Rounds) -> Result<()> {
    learn_epochs(parts).await?;
    let clock = &parts.epoch_clock;
    let new = clock.unsaved(parts.clock.now());
    parts.index.saw_epochs(&new).await?;
    clock.saved(&new);
    let contradiction = clock.contradiction(parts.clock.now());
    if let Some(text) = contradiction.filter(|_| !state.contradicted) {
        parts.log.push(Level::Error, text);
        state.contradicted = true;
    }
    Ok(())
}

/// Lets a store tell the epoch before anything else is paid for, if the present epoch is known from
/// a clock alone that may be wrong: no answer has named it for longer than an epoch. A clock that
/// is a year ahead would have every blob paid for at once. Returns false if there is nothing more
/// to do: the lease is lost, or the blob that ends first is held for as long as a renewal would
/// buy.
async fn learn(
    parts: &RenewalParts,
    owner: &str,
    state: &mut Rounds,
    done: &mut HashSet<String>,
) -> Result<bool> {
    let is_told = || {
        let now = parts.clock.now();
        let seen = parts.epoch_clock.last_seen(now);
        seen.is_some_and(|(_, at)| now.duration_since(at).unwrap_or_default() <= parts.epoch)
    };
    let Some(last) = last_due(parts).filter(|_| !is_told()) else {
        return Ok(true);
    };
    if state.all_held.is_some_and(|until| until > Instant::now()) {
        return Ok(false);
    }
    let first = first_to_end(parts, last).await?;
    let ids: Vec<String> = first.iter().map(|item| item.blob_id.clone()).collect();
    let live = parts.index.live(&ids).await?;
    let live = first
        .into_iter()
        .zip(live)
        .filter(|(_, live)| live.blocks > 0);
    let mut tried = 0;
    for (item, _) in live {
        done.insert(item.blob_id.clone());
        match attend(parts, owner, state, &item).await? {
            Turn::LeaseLost => return Ok(false),
            Turn::NotYet => {
                state.all_held = Some(Instant::now() + rest_when_held(parts));
                return Ok(false);
            }
            // They teach nothing.
            Turn::Rests | Turn::Missing => {}
            Turn::Tried => tried += 1,
        }
        if is_told() || tried >= PROBES {
            break;
        }
    }
    share_epochs(parts, state).await?;
    Ok(true)
}

/// Some of the blobs that end up to this epoch and that may be stored still, the first one first.
async fn first_to_end(parts: &RenewalParts, last: u64) -> Result<Vec<RenewItem>> {
    let last = i64::try_from(last).unwrap_or(i64::MAX);
    let mut first: Vec<RenewItem> = Vec::new();
    let mut after: Option<RenewItem> = None;
    loop {
        let page = parts.index.ending_by(last, after.as_ref(), PAGE).await?;
        let whole = page.len() >= PAGE;
        after = page.last().cloned();
        first.extend(page.into_iter().filter(|item| {
            let end = u64::try_from(item.end_epoch).unwrap_or(0);
            !parts.epoch_clock.is_over(end)
        }));
        first.sort_by_key(|item| item.end_epoch);
        first.truncate(CANDIDATES);
        if !whole {
            return Ok(first);
        }
    }
}

/// Goes through the blobs that end soon by their end epochs, and whose `expires_at` is missing or
/// differs. Returns false if the lease is lost.
async fn audit(
    parts: &RenewalParts,
    owner: &str,
    state: &mut Rounds,
    done: &mut HashSet<String>,
    urgent_alone: bool,
) -> Result<bool> {
    if last_due(parts).is_none() && !probe(parts, owner, state, done).await? {
        return Ok(false);
    }
    let Some(epoch) = last_due(parts) else {
        return Ok(true);
    };
    let epoch = i64::try_from(epoch).unwrap_or(i64::MAX);
    let mut after: Option<RenewItem> = None;
    loop {
        let ending = parts.index.ending_by(epoch, after.as_ref(), PAGE).await?;
        for item in &ending {
            // Each store tells the epoch anew; it may be an earlier one than was assumed.
            let waits = !is_due(parts, item) || shed::is_new(parts, state, item);
            let waits = waits || urgent_alone && !is_urgent(parts, item.end_epoch);
            if waits || !done.insert(item.blob_id.clone()) {
                continue;
            }
            if let Turn::LeaseLost = attend(parts, owner, state, item).await? {
                return Ok(false);
            }
        }
        if ending.len() < PAGE {
            break;
        }
        after = ending.into_iter().next_back();
    }
    if !urgent_alone {
        state.audited = Some(Instant::now());
    }
    Ok(true)
}

/// Renews a few blobs whose `expires_at` is missing or cannot be true, so that a store tells the
/// epoch: no node has noted one, and this one has stored nothing yet. Each look goes on where the
/// one before it ended, since any number of blobs that tell nothing may come first. Returns false
/// if the lease is lost.
async fn probe(
    parts: &RenewalParts,
    owner: &str,
    state: &mut Rounds,
    done: &mut HashSet<String>,
) -> Result<bool> {
    let most = parts.epoch.saturating_mul(MOST_EPOCHS + 1);
    let Some(latest) = parts.clock.now().checked_add(most) else {
        return Ok(true);
    };
    let (mut tried, mut missing) = (0, 0);
    let mut after = state.probed.take();
    let mut from_the_first = after.is_none();
    loop {
        let known = parts
            .index
            .ending_by(i64::MAX, after.as_ref(), PAGE)
            .await?;
        for item in &known {
            let doubtful = item.expires_at <= SystemTime::UNIX_EPOCH || item.expires_at > latest;
            if !doubtful || !done.insert(item.blob_id.clone()) {
                continue;
            }
            match attend(parts, owner, state, item).await? {
                Turn::LeaseLost => return Ok(false),
                Turn::Rests => {}
                Turn::Missing => missing += 1,
                Turn::NotYet | Turn::Tried => tried += 1,
            }
            let told = parts.epoch_clock.last_seen(parts.clock.now()).is_some();
            if told || tried >= PROBES || missing >= PROBES_MISSING {
                state.probed = Some(item.clone());
                return Ok(true);
            }
        }
        if known.len() >= PAGE {
            after = known.into_iter().next_back();
        } else if from_the_first {
            return Ok(true);
        } else {
            (after, from_the_first) = (None, true);
        }
    }
}
