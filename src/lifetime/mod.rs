//! The lifetime of blobs: renewal before their storage ends.
//!
//! One node at a time makes rounds, under a lease in the index. A round counts the blobs' live
//! blocks if that is due ([`mod@count`]), carries out what the plan says of the blobs that end soon
//! ([`mod@execute`]: extend, repack, let lapse, delete), and stores again what is left.
//!
//! There is no "extend" over HTTP: storing a blob again means uploading its bytes at full price.
//! The blob ID is computed from the bytes, so rows keep pointing where they did.
//!
//! A blob is due by its `expires_at`, and by its end epoch. The first is an estimate, made by the
//! clock at the moment of the store, which may have been wrong; the second is the network's answer.
//! The epochs that nodes see are shared in the index. The end of the last round is kept there, too,
//! so that a node that is started often renews as often as one that runs on.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::doubled;
use crate::clock::{Clock, EpochClock};
use crate::error::{caught, Error, ErrorKind, Result};
use crate::index::{Blob, Index, RenewItem, Renewal};
use crate::log::{Level, Log};
use crate::metrics::Metrics;
use crate::upload::{digest_text, Uploader};
use crate::walrus::{Body, StoreOptions};

pub(crate) mod chain;
mod check;
mod count;
mod execute;
mod lease;
mod memory;
mod pace;
pub mod plan;
mod present;
pub mod rebuild;
mod repack;
mod watch;

use chain::Chain;
use check::Rows;
use count::count;
use execute::execute;
pub(crate) use execute::{look, SAMPLE_PRICES};
use lease::{new_owner, with_lease, LEASE, LEASE_TTL};
use memory::{seconds, Memory, Past};
pub(crate) use pace::Pace;
use present::tell_epoch;
use repack::repack;
pub(crate) use watch::{complaint, watch};

/// How many blobs are stored again at a time, and how many bytes they may have together: each of
/// them is held in memory.
const TOGETHER: usize = 8;
const MOST_BYTES: u64 = 128 << 20;
/// How many blobs are asked for at a time.
const PAGE: usize = 1024;
/// A renewal buys two epochs at least. A blob that ends with the present epoch cannot be bought for
/// this epoch again (the publisher answers that it is stored already), and when the epoch is over
/// the blob is gone.
pub(crate) const MIN_RENEWAL_EPOCHS: u32 = 2;
/// Pause after a failed renewal of a blob, doubled each time.
const RETRY_FIRST: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// The first round comes this long after the start, or sooner, if one is overdue.
const FIRST_ROUND: Duration = Duration::from_secs(1);
/// How often it is tried to carry over the blocks of a blob that cannot be stored again.
const CARRIED: u32 = 3;
/// No network sells storage for more epochs at a time.
const MOST_EPOCHS: u32 = 53;
/// How many blobs are renewed at a time to learn the epoch.
const PROBES: usize = 3;
/// How many blobs that no aggregator has any more are met meanwhile, at a time: they teach nothing.
const PROBES_MISSING: usize = 256;
/// How many of the rows that do not fit their blob are named in the log.
const ODD_ROWS_NAMED: usize = 5;

/// The subject of log lines of which each blob may cause one.
const ABOUT: &str = "renewal";
/// The note in the index that tells when the last round ended.
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
    probed: Option<String>,
}

/// The outcome for a blob that was due.
enum Turn {
    /// Another node has the lease.
    LeaseLost,
    /// It rests, so it was not looked at.
    Rests,
    /// No aggregator has it.
    Missing,
    /// It was renewed, or that failed.
    Tried,
}

/// Renews blobs until stopped. Runs on every node; a lease in the index lets one node work at a
/// time.
pub(crate) async fn renew(parts: Arc<RenewalParts>, stop: CancellationToken) {
    let owner = new_owner();
    let mut state = Rounds::default();
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
            let taken = Instant::now();
            match parts.index.try_lease(LEASE, &owner, LEASE_TTL).await {
                Ok(true) => round(&parts, &owner, taken, &mut state).await,
                Ok(false) => read_ledger(&parts).await,
                Err(e) => Err(e),
            }
        };
        tokio::select! {
            () = stop.cancelled() => break,
            // A panic must not end the renewals to come.
            result = caught(round) => if let Err(e) = result {
                parts.log.push(Level::Warn, format!("renewal: {e}"));
            },
        }
    }
    let _ = caught(parts.index.release_lease(LEASE, &owner)).await;
}

/// How long the first round waits: until an interval has passed since the last round of any
/// process.
async fn first_wait(parts: &RenewalParts) -> Result<Duration> {
    tell_epoch(parts).await;
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

/// Goes once through every blob that is due. `taken`: as for [`with_lease`].
async fn round(
    parts: &RenewalParts,
    owner: &str,
    taken: Instant,
    state: &mut Rounds,
) -> Result<()> {
    tell_epoch(parts).await;
    share_epochs(parts, state).await?;
    let mut done = HashSet::new();
    let by_plan = async {
        count(parts).await?;
        read_ledger(parts).await?;
        execute(parts, state, &mut done).await
    };
    match with_lease(parts, owner, taken, by_plan).await {
        Err(e) if e.kind() == ErrorKind::Locked => return Err(e),
        // What was not done is stored again.
        Err(e) => parts.log.push(Level::Warn, format!("renewal by plan: {e}")),
        Ok(()) => {}
    }
    let before = parts.clock.now() + parts.lead;
    let mut after: Option<RenewItem> = None;
    loop {
        let due = parts
            .index
            .due_for_renewal(before, after.as_ref(), PAGE)
            .await?;
        let whole = due.len() >= PAGE;
        after = due.last().cloned();
        let due = due
            .into_iter()
            .filter(|item| done.insert(item.blob_id.clone()));
        if !attend_all(parts, owner, state, due.collect()).await? {
            return Ok(());
        }
        if !whole {
            break;
        }
    }
    let audit_due = |last: Instant| last.elapsed() >= parts.audit_interval();
    if state.audited.is_none_or(audit_due) && !audit(parts, owner, state, &mut done).await? {
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

/// Reads the ledger's sums, and the epochs that nodes have seen, for the metrics.
async fn read_ledger(parts: &RenewalParts) -> Result<()> {
    let now = parts.clock.now();
    parts.epoch_clock.merge(now, &parts.index.epochs().await?);
    parts.metrics.ledger.read(now, parts.index.horizon().await?);
    Ok(())
}

/// Learns the epochs that other nodes and earlier processes have seen, and notes for them what this
/// one has seen.
async fn share_epochs(parts: &RenewalParts, state: &mut Rounds) -> Result<()> {
    let clock = &parts.epoch_clock;
    clock.merge(parts.clock.now(), &parts.index.epochs().await?);
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

/// Goes through the blobs that end soon by their end epochs, and whose `expires_at` is missing or
/// differs. Returns false if the lease is lost.
async fn audit(
    parts: &RenewalParts,
    owner: &str,
    state: &mut Rounds,
    done: &mut HashSet<String>,
) -> Result<bool> {
    let ends_within = || parts.epoch_clock.ends_within(parts.clock.now(), parts.lead);
    if ends_within().is_none() && !probe(parts, owner, state, done).await? {
        return Ok(false);
    }
    let Some(epoch) = ends_within() else {
        return Ok(true);
    };
    let epoch = i64::try_from(epoch).unwrap_or(i64::MAX);
    let mut after: Option<String> = None;
    loop {
        let ending = parts.index.ending_by(epoch, after.as_deref(), PAGE).await?;
        for item in &ending {
            // Each store tells the epoch anew; it may be an earlier one than was assumed.
            let end = u64::try_from(item.end_epoch).unwrap_or(0);
            let is_due = ends_within().is_some_and(|epoch| end <= epoch);
            if !is_due || !done.insert(item.blob_id.clone()) {
                continue;
            }
            if let Turn::LeaseLost = attend(parts, owner, state, item).await? {
                return Ok(false);
            }
        }
        if ending.len() < PAGE {
            break;
        }
        after = ending.into_iter().next_back().map(|item| item.blob_id);
    }
    state.audited = Some(Instant::now());
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
            .ending_by(i64::MAX, after.as_deref(), PAGE)
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
                Turn::Tried => tried += 1,
            }
            let told = parts.epoch_clock.last_seen(parts.clock.now()).is_some();
            if told || tried >= PROBES || missing >= PROBES_MISSING {
                state.probed = Some(item.blob_id.clone());
                return Ok(true);
            }
        }
        if known.len() >= PAGE {
            after = known.into_iter().next_back().map(|item| item.blob_id);
        } else if from_the_first {
            return Ok(true);
        } else {
            (after, from_the_first) = (None, true);
        }
    }
}

/// A blob that is to be stored again.
struct Attempt {
    item: RenewItem,
    /// Its entry in the ledger; the default if it has none.
    entry: Blob,
    past: Past,
}

/// Renews blobs that are due, several at a time, unless they rest. Returns false if the lease is
/// lost.
async fn attend_all(
    parts: &RenewalParts,
    owner: &str,
    state: &mut Rounds,
    due: Vec<RenewItem>,
) -> Result<bool> {
    let ids: Vec<String> = due.iter().map(|item| item.blob_id.clone()).collect();
    let entries = parts.index.blobs(&ids).await?;
    let mut due = due.into_iter().zip(entries).peekable();
    while due.peek().is_some() {
        let mut together = Vec::new();
        let mut room = MOST_BYTES;
        while let Some((item, entry)) = due.next_if(|_| room > 0 && together.len() < TOGETHER) {
            let past = state.memory.of(parts, &item.blob_id).await?;
            if past.rests() {
                continue;
            }
            let entry = entry.unwrap_or_default();
            let size = u64::try_from(entry.size).ok().filter(|size| *size > 0);
            room = room.saturating_sub(size.unwrap_or(parts.uploader.target()));
            together.push(Attempt { item, entry, past });
        }
        if together.is_empty() {
            continue;
        }
        if try_together(parts, owner, state, together).await?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Renews one blob, unless it rests.
async fn attend(
    parts: &RenewalParts,
    owner: &str,
    state: &mut Rounds,
    item: &RenewItem,
) -> Result<Turn> {
    let past = state.memory.of(parts, &item.blob_id).await?;
    if past.rests() {
        return Ok(Turn::Rests);
    }
    let entry = parts.index.blobs(std::slice::from_ref(&item.blob_id));
    let attempt = Attempt {
        item: item.clone(),
        entry: entry.await?.pop().flatten().unwrap_or_default(),
        past,
    };
    let turns = try_together(parts, owner, state, vec![attempt]).await?;
    let turn = turns.and_then(|turns| turns.into_iter().next());
    Ok(turn.unwrap_or(Turn::LeaseLost))
}

/// Stores blobs again, all at once, and remembers the outcomes. `None` if another node has the
/// lease.
async fn try_together(
    parts: &RenewalParts,
    owner: &str,
    state: &mut Rounds,
    mut together: Vec<Attempt>,
) -> Result<Option<Vec<Turn>>> {
    let taken = Instant::now();
    if !parts.index.try_lease(LEASE, owner, LEASE_TTL).await? {
        return Ok(None);
    }
    let odd_rows_named = &state.memory.odd_rows_named;
    let attempts = together
        .iter_mut()
        .map(|attempt| renew_or_carry(parts, attempt, odd_rows_named));
    let all = async { Ok(futures_util::future::join_all(attempts).await) };
    let outcomes = match with_lease(parts, owner, taken, all).await {
        Ok(outcomes) => outcomes,
        Err(lost) => together.iter().map(|_| Err(lost.clone())).collect(),
    };
    let mut turns = Vec::with_capacity(together.len());
    for (attempt, outcome) in together.into_iter().zip(outcomes) {
        turns.push(settle(parts, state, attempt, outcome).await?);
    }
    Ok(Some(turns))
}

/// Stores a blob again. Where no aggregator gives its bytes, the blocks that hash to their keys,
/// and need no other proof, are carried over; the error is returned all the same. That is paid for,
/// so it is not tried each time, and not after wrong bytes were paid for.
async fn renew_or_carry(
    parts: &RenewalParts,
    attempt: &mut Attempt,
    odd_rows_named: &Mutex<HashSet<String>>,
) -> Result<Outcome> {
    let outcome = caught(renew_blob(parts, attempt, odd_rows_named)).await;
    let corrupt = outcome
        .as_ref()
        .is_err_and(|e| e.kind() == ErrorKind::Corrupt);
    if corrupt && !attempt.past.was_wrong() && attempt.past.failures < CARRIED {
        let blob_id = &attempt.item.blob_id;
        let carried = repack(parts, std::slice::from_ref(blob_id));
        if caught(carried).await.is_ok_and(|empty| !empty.is_empty()) {
            Metrics::add(&parts.metrics.blobs_repacked, 1);
            let text = format!(
                "blob {blob_id}: its blocks were checked one by one, and are in another blob now"
            );
            parts.log.push(Level::Info, text);
        }
    }
    outcome
}

/// Remembers the outcome of an attempt.
async fn settle(
    parts: &RenewalParts,
    state: &mut Rounds,
    attempt: Attempt,
    outcome: Result<Outcome>,
) -> Result<Turn> {
    let Attempt { item, mut past, .. } = attempt;
    let mut turn = Turn::Tried;
    match outcome {
        Ok(Outcome::Renewed(expires_at)) => {
            past = Past::renewed(parts.rest_after_renewal(expires_at), true);
        }
        Ok(Outcome::NotYet) => {
            let rest = parts.fraction_of_epoch().min(RETRY_MAX);
            past = Past::renewed(Some(Instant::now() + rest), false);
        }
        Err(e) => {
            Metrics::add(&parts.metrics.renewals_failed, 1);
            let text = format!("blob {} could not be renewed: {e}", item.blob_id);
            parts.log.alike(ABOUT, Level::Error, text);
            let most = parts.fraction_of_epoch().min(RETRY_MAX);
            let pause = doubled(RETRY_FIRST, past.failures, most);
            let missing = e.kind() == ErrorKind::BlobNotFound;
            if missing {
                turn = Turn::Missing;
            }
            // Rows of blobs that lapsed long ago may be many, and stay until they are deleted.
            let end = u64::try_from(item.end_epoch).unwrap_or(0);
            let lapsed = missing && parts.epoch_clock.is_over(end);
            let pause = if lapsed { parts.epoch / 2 } else { pause };
            past.rest = Some(Instant::now() + pause);
            past.paid = false;
            past.failures += 1;
        }
    }
    state.memory.keep(parts, &item.blob_id, past).await?;
    Ok(turn)
}

enum Outcome {
    /// Storage was bought; it ends at this moment at the earliest.
    Renewed(Option<SystemTime>),
    /// The network still holds the blob for as long as a renewal would buy.
    NotYet,
}

async fn renew_blob(
    parts: &RenewalParts,
    attempt: &mut Attempt,
    odd_rows_named: &Mutex<HashSet<String>>,
) -> Result<Outcome> {
    let Attempt { item, entry, past } = attempt;
    let rows = parts.index.rows_of_blob(&item.blob_id).await?;
    if rows.is_empty() {
        return Ok(Outcome::Renewed(None));
    }
    if let Some(renewal) = &past.unnoted {
        let noted = parts
            .index
            .update_blob_after_renewal(&item.blob_id, renewal);
        noted.await?;
        return Ok(Outcome::Renewed(renewal.expires_at));
    }
    if let Some(rest) = past.too_often() {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "its bytes were stored as other blobs several times; it is not paid for again for {} s. Check \
                 the aggregators",
                rest.as_secs()
            ),
        ));
    }
    let rows = Rows::new(&rows, past.refused(), past.was_wrong());
    let (bytes, odd) = match entry.digest.is_empty() {
        true => right_bytes(parts, item, &rows, past.turn()).await?,
        false => known_bytes(parts, entry, &rows).await?,
    };
    parts.pace.moved(bytes.len() as u64).await;
    failpoint!("renew.read");
    let options = StoreOptions {
        deletable: item.deletable,
        epochs: parts.uploader.options.epochs.max(MIN_RENEWAL_EPOCHS),
    };
    let body = Body::from(bytes.clone());
    let stored = parts.uploader.store.store(body.clone(), options).await?;
    failpoint!("renew.stored");
    if stored.blob_id != item.blob_id {
        past.stored_wrong(check::digest(&bytes), parts.epoch);
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "its bytes were stored, and paid for, as blob {} instead: the aggregator gave other bytes, or the \
                 publisher encodes otherwise",
                stored.blob_id
            ),
        ));
    }
    if !odd.is_empty() && odd_rows_named.lock().insert(item.blob_id.clone()) {
        let named: Vec<&str> = odd
            .iter()
            .take(ODD_ROWS_NAMED)
            .map(String::as_str)
            .collect();
        parts.log.push(
            Level::Error,
            format!(
                "{} index rows of blob {} do not fit its bytes, and their blocks cannot be read; the blob is \
                 renewed for its other blocks: {}{}",
                odd.len(),
                item.blob_id,
                named.join("; "),
                if odd.len() > named.len() { "; …" } else { "" },
            ),
        );
    }
    let mut blob = parts.uploader.certified(&stored, options);
    blob.size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    blob.digest = digest_text(body.digest());
    blob.read_back_at = Some(parts.clock.now());
    let (end_epoch, expires_at) = (blob.end_epoch, blob.expires_at);
    let renewal = Renewal {
        end_epoch,
        expires_at: expires_at.filter(|t| *t > SystemTime::UNIX_EPOCH),
    };
    let outcome = if stored.newly_created || end_epoch > item.end_epoch {
        Metrics::add(&parts.metrics.renewals, 1);
        past.unnoted = Some(renewal.clone());
        Outcome::Renewed(expires_at)
    } else {
        Outcome::NotYet
    };
    blob.expires_at = renewal.expires_at;
    parts.index.renewed(&blob).await?;
    failpoint!("renew.noted");
    Ok(outcome)
}

/// The bytes of a blob by the digest that the ledger has, and the rows that do not fit them. Wrong
/// bytes are never paid for.
async fn known_bytes(
    parts: &RenewalParts,
    entry: &Blob,
    rows: &Rows<'_>,
) -> Result<(Bytes, Vec<String>)> {
    let check = |bytes: &[u8]| match *blake3::hash(bytes).to_hex() == *entry.digest {
        true => Ok(()),
        false => Err("its bytes are not those that were stored".to_owned()),
    };
    let len = u64::try_from(entry.size).unwrap_or(0);
    let store = &parts.uploader.store;
    let bytes = store.read_known(&entry.blob_id, len, &check).await?;
    let odd = rows.odd(&bytes);
    Ok((bytes, odd))
}

/// The bytes of a blob, and the rows that do not fit them. Paying for wrong bytes would let the
/// right ones lapse, so all aggregators are asked for bytes that fit all rows before other bytes
/// are taken.
async fn right_bytes(
    parts: &RenewalParts,
    item: &RenewItem,
    rows: &Rows<'_>,
    turn: u32,
) -> Result<(Bytes, Vec<String>)> {
    let strictly = |bytes: &[u8]| rows.strictly(bytes);
    // A pack may be longer than those that this node makes: packTargetSizeBytes may have changed.
    let (store, len) = (&parts.uploader.store, rows.least_len());
    let error = match store.read_known(&item.blob_id, len, &strictly).await {
        Ok(bytes) => return Ok((bytes, Vec::new())),
        Err(e) => e,
    };
    let Some(best) = rows.best(turn) else {
        return Err(error);
    };
    let like = |bytes: &[u8]| rows.like(&best, bytes);
    let bytes = store.read_known(&item.blob_id, len, &like).await?;
    Ok((bytes, best.fit.odd))
}
