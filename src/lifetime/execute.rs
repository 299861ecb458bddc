//! One round by plan: what becomes of each blob that is due, in the cheapest way.
//!
//! **Outline.** The blobs that end within the lead are gathered from the ledger, their live blocks
//! are counted, and [`plan`](super::plan) decides. Then the decisions are carried out: dead blobs
//! are left to end, extensions are asked of the chain, sparse blobs are repacked. Blobs that
//! are to be stored again are left to the caller, which stores blobs again at full price. Those for
//! which a step failed wait for the next round, until the last part of the lead: then they are left
//! to the caller, too. So a chain or a repack that fails holds no blob up.
//!
//! Blobs are planned by their end epochs. There is no plan while the present epoch is not known.

use std::collections::{HashMap, HashSet};

use tokio::time::Instant;

use super::chain::{object_id, Failure, Round};
use super::due::{ends_soon, is_urgent, last_due};
use super::plan::{self, Action, Decision, Terms};
use super::present::{present_epoch, prices};
use super::rebuild::LEASE as REBUILD;
use super::repack::{repack, Repacked};
use super::shed;
use super::{about, RenewalParts, Rounds, MIN_RENEWAL_EPOCHS, MOST_EPOCHS, PAGE};
use crate::error::{caught, ErrorKind, Result};
use crate::index::ledger::InState;
use crate::index::{new_owner, Blob, BlobState, RenewItem};
use crate::log::Level;
use crate::metrics::Metrics;

/// Where the present epoch is not known better than by so many epochs (the machine slept, or its
/// clock was set), there is no plan: the first blob that is stored again tells the epoch.
const UNSURE: u64 = 1;
/// From so many due blobs on, their renewals are spread over the lead.
const SPREAD_FROM: usize = 256;
/// The most blobs that are planned at a time (some 300 bytes each).
const MOST_PLANNED: usize = 100_000;
/// Bytes that a block takes in a pack beside its own: see [`crate::upload::Format`].
const BLOCK_OVERHEAD: u64 = 80;
/// A blob without rows is deleted this long after a pass found it so: readers of other nodes may
/// hold its rows for some seconds, and a read that has begun may take minutes.
const GRACE: std::time::Duration = std::time::Duration::from_secs(3600);
/// How many blobs are deleted by one call of the chain, and how long a node that is killed
/// meanwhile keeps rebuilds waiting.
const DELETED_AT_ONCE: usize = 20;
/// How long blobs are deleted in one round at least, if there are so many.
const DELETES_FOR: std::time::Duration = std::time::Duration::from_secs(600);
const DELETING_TTL: std::time::Duration = std::time::Duration::from_secs(1800);

/// Carries out what can be done without storing blobs again. Adds to `done` the blobs that need
/// nothing more in this round.
pub(super) async fn execute(
    parts: &RenewalParts,
    state: &mut Rounds,
    done: &mut HashSet<String>,
) -> Result<()> {
    let at_once = state.at_once;
    let Some(mut terms) = terms(parts, !at_once).await else {
        return Ok(());
    };
    let round = parts.chain.clone().map(Round::new);
    let mut dead = round.as_ref();
    if parts.uploader.reuse.is_some() {
        // First of all: what is bought in this round may use their storage.
        delete_dead(parts, dead.take()).await;
    }
    let (mut due, beyond) = due(parts, &terms).await?;
    done.extend(beyond);
    let waiting;
    if !at_once {
        (due, waiting) = by_turn(parts, due);
        done.extend(waiting);
    }
    let looked = shed::add_sparse(parts, state, &mut due, at_once).await?;
    terms.reuse = match at_once {
        true => terms.reuse,
        false => shed::room(parts, looked).await?,
    };
    let mut ready = Vec::with_capacity(due.len());
    for item in due {
        if !state.memory.of(parts, &item.blob_id).await?.rests() {
            ready.push(item);
        }
    }
    let blobs = gather(parts, &ready).await?;
    state.planned = Some(blobs.keys().cloned().collect());
    let plan = plan::plan(&planned(&blobs), &terms);
    let all = &plan.totals.all;
    let (units, frost) = (all.units, all.frost);
    parts.metrics.ledger.planned(all.blobs, units, frost);
    if all.blobs > 0 {
        let text = format!(
            "renewal: {} blobs are due: {} lapse, {} are extended, {} repacked, {} stored again, for {} units and {} FROST",
            all.blobs,
            plan.totals.lapse.blobs,
            plan.totals.extend.blobs,
            plan.totals.repack.blobs,
            plan.totals.store_again.blobs,
            all.units,
            all.frost,
        );
        parts.log.push(Level::Info, text);
    }
    let ends = ends_on_chain(parts, round.as_ref(), &plan).await;
    let (mut extended, mut lapsing) = (Vec::new(), Vec::new());
    let lately = parts.fraction_of_epoch();
    state.extended.retain(|_, at| at.elapsed() < lately);
    let waits = |decision: &Decision| !at_once && !is_urgent(parts, decision.end_epoch);
    let mut sparse = Vec::new();
    let mut can_extend = true;
    for decision in &plan.decisions {
        match decision.action {
            // A dead blob is left to end; a block that is put or brought back later makes it due
            // again. One that can be deleted is deleted below, after its time of grace.
            Action::Lapse | Action::Delete => {
                let entry = blobs.get(&decision.blob_id);
                let entry = entry.and_then(|(entry, _)| entry.as_ref());
                if entry.is_some_and(|entry| entry.state == BlobState::Live) {
                    lapsing.push(decision.blob_id.clone());
                }
                done.insert(decision.blob_id.clone());
            }
            Action::StoreAgain => {}
            _ if decision.deferred && waits(decision) => {
                done.insert(decision.blob_id.clone());
            }
            Action::Extend => {
                let end = ends.get(decision.blob_id.as_str());
                let epochs = end.map(|end| missing_epochs(parts, decision, *end));
                if epochs == Some(0) {
                    extended.push(decision);
                    continue;
                }
                // It was extended, and the list does not show it yet.
                if state.extended.contains_key(&decision.blob_id) && waits(decision) {
                    done.insert(decision.blob_id.clone());
                    continue;
                }
                if !at_once && shed::waits(parts, decision) {
                    done.insert(decision.blob_id.clone());
                    continue;
                }
                let Some(round) = round.as_ref().filter(|_| can_extend) else {
                    continue;
                };
                let Some(epochs) = epochs else {
                    if waits(decision) {
                        done.insert(decision.blob_id.clone());
                    }
                    continue;
                };
                match extend(parts, round, decision, epochs).await {
                    Ok(()) => {
                        let now = Instant::now();
                        state.extended.insert(decision.blob_id.clone(), now);
                        extended.push(decision);
                    }
                    // What is read back tells whether it was made all the same.
                    Err(Some(Failure::Unclear)) => extended.push(decision),
                    Err(Some(Failure::EmptyWallet | Failure::Unusable)) => can_extend = false,
                    Err(_) if waits(decision) => drop(done.insert(decision.blob_id.clone())),
                    Err(_) => {}
                }
            }
            Action::Repack => sparse.push(decision),
        }
    }
    // Or they would count as data that has lapsed, until the next count.
    for page in lapsing.chunks(PAGE) {
        parts.index.set_state(page, BlobState::Released).await?;
    }
    if let Some(round) = &round {
        for decision in extended {
            let noted = note_extension(parts, round, decision, &blobs, &terms).await;
            if noted {
                state.extended.remove(&decision.blob_id);
            }
            // The list may lag behind the extension, one whose outcome was not told may be made
            // still, and most failures pass: the next round reads the end first.
            if noted || waits(decision) {
                done.insert(decision.blob_id.clone());
            }
        }
    }
    // All at once: a blob's blocks may come to lie in two packs, and but for the last one all packs
    // are to be full.
    if state
        .repacks_rest
        .is_some_and(|until| until > Instant::now())
    {
        let (resting, urgent): (Vec<_>, Vec<_>) = sparse.into_iter().partition(|d| waits(d));
        done.extend(resting.iter().map(|d| d.blob_id.clone()));
        sparse = urgent;
    }
    let ids: Vec<String> = sparse.iter().map(|d| d.blob_id.clone()).collect();
    let waiting = sparse.iter().filter(|d| waits(d));
    let waiting: HashSet<&str> = waiting.map(|d| d.blob_id.as_str()).collect();
    let may_wait = |blob_id: &str| waiting.contains(blob_id);
    let repacked = caught(repack(parts, &ids, may_wait)).await;
    let repacked = repacked.unwrap_or_else(Repacked::none);
    Metrics::add(&parts.metrics.blobs_repacked, repacked.empty.len() as u64);
    done.extend(repacked.empty);
    let unread = match repacked.failed {
        None => repacked.unread,
        Some(e) => {
            Metrics::add(&parts.metrics.renewals_failed, 1);
            let text = format!("blobs could not be repacked: {e}");
            parts.log.push(Level::Error, text);
            // Packs may have been paid for that cannot be read back, and would be again.
            state.repacks_rest = Some(Instant::now() + parts.fraction_of_epoch());
            ids
        }
    };
    let unread: HashSet<String> = unread.into_iter().collect();
    for decision in sparse {
        let id = &decision.blob_id;
        if done.contains(id) {
            continue;
        }
        let helped = match (waits(decision), &round) {
            (true, _) => unread.contains(id),
            (false, Some(round)) if can_extend => {
                extend_instead(parts, round, id, &blobs, &terms).await
            }
            (false, _) => false,
        };
        if helped {
            done.insert(id.clone());
        }
    }
    delete_dead(parts, dead).await;
    shed::left(parts, &[]).await
}

/// The conditions of the day; `None` if no epoch was seen, or its length is not known. `defers`:
/// another round comes after the interval, and what this one need not move is left to it.
async fn terms(parts: &RenewalParts, defers: bool) -> Option<Terms> {
    let (least, most) = parts.epoch_clock.now_epoch(parts.clock.now())?;
    if parts.epoch.is_zero() || most - least > UNSURE {
        return None;
    }
    let (prices, told) = prices(parts).await;
    parts.metrics.ledger.prices(prices, told);
    let interval = parts.interval.as_secs().max(1);
    let budget = parts.bytes_per_second.checked_mul(interval);
    Some(Terms {
        epoch: least,
        lead_epochs: last_due(parts)?.saturating_sub(least),
        epochs: parts.uploader.options.epochs.max(MIN_RENEWAL_EPOCHS),
        max_epochs: MOST_EPOCHS,
        prices,
        n_shards: parts.n_shards,
        chain: parts.chain.is_some(),
        reuse: parts.uploader.reuse.as_ref().map(|_| u64::MAX),
        max_waste_percent: parts.max_waste_percent,
        pack_target_bytes: parts.uploader.target(),
        block_overhead_bytes: BLOCK_OVERHEAD,
        budget_bytes: budget.filter(|bytes| defers && *bytes > 0),
    })
}

/// The plan for the blobs that end within the lead, whatever their turn; `None` while the present
/// epoch is not known. Nothing is changed and nothing is paid.
pub(crate) async fn look(parts: &RenewalParts) -> Result<Option<plan::Plan>> {
    present_epoch(parts).await?;
    let Some(terms) = terms(parts, !parts.interval.is_zero()).await else {
        return Ok(None);
    };
    let mut due = due(parts, &terms).await?.0;
    shed::add_sparse(parts, &mut Rounds::default(), &mut due, true).await?;
    let blobs = gather(parts, &due).await?;
    Ok(Some(plan::plan(&planned(&blobs), &terms)))
}

/// The blobs that end within the lead, as far as they are planned at once, and the IDs of those
/// that are not and can wait for another round. Those that have ended already do not keep others
/// from being planned.
async fn due(parts: &RenewalParts, terms: &Terms) -> Result<(Vec<RenewItem>, Vec<String>)> {
    let last = terms.epoch.saturating_add(terms.lead_epochs);
    let last = i64::try_from(last).unwrap_or(i64::MAX);
    let (mut ended, mut due, mut beyond) = (Vec::new(), Vec::new(), Vec::new());
    let mut after: Option<RenewItem> = None;
    loop {
        let page = parts.index.ending_by(last, after.as_ref(), PAGE).await?;
        let whole = page.len() >= PAGE;
        after = page.last().cloned();
        for item in page {
            let end = u64::try_from(item.end_epoch).unwrap_or(0);
            let kind = match parts.epoch_clock.is_over(end) {
                true => &mut ended,
                false => &mut due,
            };
            if kind.len() < MOST_PLANNED {
                kind.push(item);
            } else if !is_urgent(parts, item.end_epoch) {
                beyond.push(item.blob_id);
            }
        }
        if !whole {
            ended.extend(due);
            return Ok((ended, beyond));
        }
    }
}

/// Divides blobs into those whose turn has come, and the IDs of those whose turn comes later in the
/// lead.
fn by_turn(parts: &RenewalParts, due: Vec<RenewItem>) -> (Vec<RenewItem>, Vec<String>) {
    if due.len() < SPREAD_FROM {
        return (due, Vec::new());
    }
    let now = parts.clock.now();
    let waits = |item: &RenewItem| {
        let end = u64::try_from(item.end_epoch).unwrap_or(0);
        let ends = parts.epoch_clock.ends_at(now, end);
        let comes = ends.map(|ends| plan::spread(&item.blob_id, ends, parts.lead));
        comes.is_some_and(|comes| comes > now) && !is_urgent(parts, item.end_epoch)
    };
    let (waiting, turns): (Vec<_>, Vec<_>) = due.into_iter().partition(waits);
    (
        turns,
        waiting.into_iter().map(|item| item.blob_id).collect(),
    )
}

type Gathered = HashMap<String, (Option<Blob>, plan::Blob)>;

fn planned(blobs: &Gathered) -> Vec<plan::Blob> {
    blobs.values().map(|(_, planned)| planned.clone()).collect()
}

/// The ledger's entries of blobs, and their live blocks, counted now.
async fn gather(parts: &RenewalParts, due: &[RenewItem]) -> Result<Gathered> {
    let mut gathered = Gathered::new();
    let held = match parts.uploader.reuse {
        Some(_) => Some(held(parts).await?),
        None => None,
    };
    for page in due.chunks(PAGE) {
        let ids: Vec<String> = page.iter().map(|item| item.blob_id.clone()).collect();
        let entries = parts.index.blobs(&ids).await?;
        let live = parts.index.live(&ids).await?;
        for ((item, entry), live) in page.iter().zip(entries).zip(live) {
            let known = entry.clone().unwrap_or_default();
            let planned = plan::Blob {
                blob_id: item.blob_id.clone(),
                object_id: Some(known.object_id).filter(|id| !id.is_empty()),
                format: known.format,
                size: known.size,
                encoded_size: u64::try_from(known.encoded_size)
                    .ok()
                    .filter(|size| *size > 0),
                deletable: item.deletable,
                end_epoch: item.end_epoch,
                live_blocks: live.blocks,
                live_bytes: live.bytes,
                // Dead blobs are deleted by `delete_dead`, after their time of grace.
                held: held
                    .as_ref()
                    .is_none_or(|held| held.contains(&item.blob_id)),
            };
            gathered.insert(item.blob_id.clone(), (entry, planned));
        }
    }
    Ok(gathered)
}

/// Where the blobs that are to be extended end by the chain; `None` for one whose object the wallet
/// does not own. The ledger may be behind: a node that extended a blob could not note it, or the
/// owner extended it by hand, and what is paid for must not be bought again. A blob is left out if
/// the chain does not tell.
async fn ends_on_chain<'a>(
    parts: &RenewalParts,
    round: Option<&Round>,
    plan: &'a plan::Plan,
) -> HashMap<&'a str, Option<u64>> {
    let mut ends = HashMap::new();
    let Some(round) = round else {
        return ends;
    };
    let decisions = plan.decisions.iter();
    for decision in decisions.filter(|d| d.action == Action::Extend) {
        let object = decision.object_id.as_deref().unwrap_or_default();
        let end = match caught(round.end_epoch_of(object)).await {
            Ok(end) => end,
            // No object ID: the extension fails, and says so.
            Err(e) if e.kind() == ErrorKind::InvalidArgument => None,
            Err(e) => {
                let text = format!(
                    "the chain does not tell where blobs end, so none is extended, as it may be paid for already; those that \
                     cannot wait are stored again: {e}"
                );
                parts.log.push(Level::Error, text);
                break;
            }
        };
        ends.insert(decision.blob_id.as_str(), end);
    }
    ends
}

/// How many epochs are to be bought for a blob that ends with `end` by the chain; 0 if it ends late
/// enough.
fn missing_epochs(parts: &RenewalParts, decision: &Decision, end: Option<u64>) -> u32 {
    let Some(end) = end.filter(|end| later(*end, decision)) else {
        return decision.epochs;
    };
    if !ends_soon(parts, end) {
        return 0;
    }
    let known = u64::try_from(decision.end_epoch).unwrap_or(0);
    let bought = u32::try_from(end.saturating_sub(known)).unwrap_or(u32::MAX);
    decision.epochs.saturating_sub(bought)
}

/// Whether this end is later than that of the decision's blob in the ledger.
fn later(end: u64, decision: &Decision) -> bool {
    i64::try_from(end).is_ok_and(|end| end > decision.end_epoch)
}

/// Asks for an extension. Returns the failure, if that is known.
async fn extend(
    parts: &RenewalParts,
    round: &Round,
    decision: &Decision,
    epochs: u32,
) -> std::result::Result<(), Option<Failure>> {
    let object = decision.object_id.as_deref().unwrap_or_default();
    failpoint!("extend.begun");
    let asked = round.extend(object, epochs, false).await;
    failpoint!("extend.done");
    asked.map_err(|e| {
        Metrics::add(&parts.metrics.renewals_failed, 1);
        let text = format!(
            "blob {} could not be extended, and is stored again in time unless it was: {e}",
            decision.blob_id
        );
        parts.log.alike(about::EXTENSION, Level::Error, text);
        Failure::of(&e)
    })
}

/// Extends a blob whose blocks could not be moved and that cannot wait. To store it again, the same
/// aggregators and publishers are needed that have just failed. Returns whether it ends late enough
/// now.
async fn extend_instead(
    parts: &RenewalParts,
    round: &Round,
    blob_id: &str,
    blobs: &Gathered,
    terms: &Terms,
) -> bool {
    let blob = blobs.get(blob_id).map(|(_, planned)| planned);
    let Some(extension) = blob.and_then(|blob| plan::extension(blob, terms)) else {
        return false;
    };
    let object = extension.object_id.as_deref().unwrap_or_default();
    let Ok(end) = caught(round.end_epoch_of(object)).await else {
        return false;
    };
    let epochs = missing_epochs(parts, &extension, end);
    if epochs > 0 {
        match extend(parts, round, &extension, epochs).await {
            // The end that is read back tells.
            Ok(()) | Err(Some(Failure::Unclear)) => {}
            Err(_) => return false,
        }
    }
    note_extension(parts, round, &extension, blobs, terms).await
}

/// Reads back where a blob ends after its extension, and notes it. Returns whether it ends late
/// enough.
async fn note_extension(
    parts: &RenewalParts,
    round: &Round,
    decision: &Decision,
    blobs: &Gathered,
    terms: &Terms,
) -> bool {
    let object = decision.object_id.clone().unwrap_or_default();
    let noted = async {
        let end = round.end_epoch_of(&object).await?;
        let Some(end) = end.filter(|end| later(*end, decision)) else {
            return Ok(false);
        };
        let known = blobs
            .get(&decision.blob_id)
            .and_then(|(entry, _)| entry.as_ref());
        let mut blob = known.cloned().unwrap_or_default();
        blob.blob_id = decision.blob_id.clone();
        blob.end_epoch = i64::try_from(end).unwrap_or(i64::MAX);
        blob.expires_at = parts.epoch_clock.ends_at(parts.clock.now(), end);
        let frost = decision.units.saturating_mul(terms.prices.storage);
        let added = end.saturating_sub(u64::try_from(decision.end_epoch).unwrap_or(0));
        let frost = frost.saturating_mul(added);
        blob.cost = i64::try_from(frost).unwrap_or(i64::MAX);
        parts.index.renewed(&blob).await?;
        failpoint!("extend.noted");
        Metrics::add(&parts.metrics.renewals, 1);
        Metrics::add(&parts.metrics.blobs_extended, 1);
        Ok(!ends_soon(parts, end))
    };
    match caught(noted).await {
        Ok(ends_later) => ends_later,
        Err(e) => {
            let text = format!("the end of blob {} is not known: {e}", decision.blob_id);
            parts.log.alike(about::EXTENSION, Level::Error, text);
            // The extension was paid for. The next round reads its end first.
            true
        }
    }
}

/// Deletes blobs that have had no rows for the time of grace, so that their storage is free again.
/// A failure holds up nothing that is live: the next round tries it again.
async fn delete_dead(parts: &RenewalParts, round: Option<&Round>) {
    let Some(round) = round else {
        return;
    };
    if let Err(e) = caught(try_delete_dead(parts, round)).await {
        let text = format!("blobs without blocks could not be deleted: {e}");
        parts.log.push(Level::Error, text);
    }
}

async fn try_delete_dead(parts: &RenewalParts, round: &Round) -> Result<()> {
    mark_dead(parts).await?;
    let marked = parts.index.blobs_in_state(BlobState::Deleting, "", 1);
    if marked.await?.is_empty() {
        return Ok(());
    }
    let owner = new_owner();
    let done = delete_marked(parts, round, &owner).await;
    // It runs out by itself.
    let _ = caught(parts.index.release_lease(REBUILD, &owner)).await;
    done
}

/// Deletes the blobs that are marked, some at a time. Each time the lease of rebuilds is taken: a
/// rebuild may have read a blob before, and write its rows afterwards. What is left when half of an
/// interval has passed waits for the next round: what is live comes first.
async fn delete_marked(parts: &RenewalParts, round: &Round, owner: &str) -> Result<()> {
    let until = Instant::now() + (parts.interval / 2).max(DELETES_FOR);
    let mut marked = InState::new(&*parts.index, BlobState::Deleting);
    // Whether the wallet is that of these blobs, once that is in doubt.
    let mut mine = None;
    while let Some(page) = marked.next().await? {
        let page = page.into_iter().filter(|blob| can_be_deleted(parts, blob));
        for some in page.collect::<Vec<_>>().chunks(DELETED_AT_ONCE) {
            if !parts.index.try_lease(REBUILD, owner, DELETING_TTL).await? {
                let text = "an index is being rebuilt, or another node deletes blobs: blobs without blocks are deleted later";
                parts.log.push(Level::Info, text);
                return Ok(());
            }
            let goes_on = delete_some(parts, round, some, &mut mine).await?;
            if !goes_on || Instant::now() >= until {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Deletes blobs that are marked, unless they have rows again. Returns whether others can be tried.
async fn delete_some(
    parts: &RenewalParts,
    round: &Round,
    some: &[Blob],
    mine: &mut Option<bool>,
) -> Result<bool> {
    let some = still_dead(parts, some.to_vec()).await?;
    let objects: Vec<String> = some.iter().map(|blob| blob.object_id.clone()).collect();
    if objects.is_empty() {
        return Ok(true);
    }
    failpoint!("dead.chosen");
    let outcomes = match round.delete(&objects).await {
        Ok(outcomes) => outcomes,
        Err(e) => {
            let text = format!("blobs without blocks could not be deleted: {e}");
            parts.log.push(Level::Error, text);
            return Ok(false);
        }
    };
    // A run that fails as a whole tells nothing of any blob, and the next one hardly goes better.
    let told = |(_, outcome): &(String, Result<()>)| match outcome {
        Ok(()) => true,
        Err(e) => matches!(Failure::of(e), Some(Failure::Absent | Failure::Refused)),
    };
    let goes_on = outcomes.len() == some.len() && outcomes.iter().any(told);
    let (mut gone, mut deleted) = (Vec::new(), 0);
    for (blob, (_, outcome)) in some.iter().zip(outcomes) {
        let blob_id = &blob.blob_id;
        let text = match outcome {
            Ok(()) => {
                gone.push(blob);
                deleted += 1;
                continue;
            }
            Err(e) if Failure::of(&e) == Some(Failure::Absent) => {
                if mine.is_none() {
                    *mine = Some(owns_some(parts, round).await?);
                }
                if *mine == Some(true) {
                    // It was deleted before, by a call whose outcome was not told.
                    gone.push(blob);
                    continue;
                }
                format!(
                    "blob {blob_id} has no blocks and could not be deleted: the wallet of walrusCommand owns none of the \
                     blobs of this index: {e}"
                )
            }
            Err(e) => format!("blob {blob_id} has no blocks and could not be deleted: {e}"),
        };
        parts.log.alike(about::DELETION, Level::Warn, text);
    }
    failpoint!("dead.deleted");
    shed::left(parts, &gone).await?;
    Metrics::add(&parts.metrics.blobs_deleted, deleted);
    let ids: Vec<String> = gone.iter().map(|blob| blob.blob_id.clone()).collect();
    parts.index.forget_blobs(&ids).await?;
    failpoint!("dead.forgotten");
    Ok(goes_on)
}

/// Whether the wallet owns a blob of this index, as far as some of them tell: another wallet says
/// of every blob that there is none.
async fn owns_some(parts: &RenewalParts, round: &Round) -> Result<bool> {
    for state in [BlobState::Live, BlobState::Released, BlobState::Deleting] {
        let some = parts.index.blobs_in_state(state, "", PAGE).await?;
        for blob in some
            .iter()
            .filter(|blob| object_id(&blob.object_id).is_ok())
        {
            if round.owned(&blob.object_id).await?.is_some() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn can_be_deleted(parts: &RenewalParts, blob: &Blob) -> bool {
    let end = u64::try_from(blob.end_epoch).unwrap_or(0);
    // One ID that is none would fail the deletion of all.
    blob.deletable && object_id(&blob.object_id).is_ok() && !parts.epoch_clock.is_over(end)
}

/// Marks the blobs that have had no rows for the time of grace: from then on, a store of the
/// same bytes does not rely on their objects.
async fn mark_dead(parts: &RenewalParts) -> Result<()> {
    let now = parts.clock.now();
    let mut dead: Vec<Blob> = Vec::new();
    let mut released = InState::new(&*parts.index, BlobState::Released);
    while let Some(page) = released.next().await? {
        dead.extend(page.into_iter().filter(|blob| {
            let since = blob
                .state_since
                .and_then(|since| now.duration_since(since).ok());
            let waited = since.is_some_and(|since| since >= GRACE.max(parts.interval));
            waited && can_be_deleted(parts, blob)
        }));
    }
    if dead.is_empty() {
        return Ok(());
    }
    let held = held(parts).await?;
    dead.retain(|blob| !held.contains(&blob.blob_id));
    for page in dead.chunks(PAGE) {
        let ids: Vec<String> = page.iter().map(|blob| blob.blob_id.clone()).collect();
        parts.index.set_state(&ids, BlobState::Deleting).await?;
    }
    Ok(())
}

/// Those of the marked blobs in which nothing is left. The others lose their mark. Rows are looked
/// at before the deleted ones and after them, because one that was brought back meanwhile, or
/// deleted again, is found at one of these looks. A blob that is found dead stays so: only a store
/// brings new rows.
async fn still_dead(parts: &RenewalParts, mut marked: Vec<Blob>) -> Result<Vec<Blob>> {
    if marked.is_empty() {
        return Ok(marked);
    }
    let ids: Vec<String> = marked.iter().map(|blob| blob.blob_id.clone()).collect();
    let before = parts.index.live(&ids).await?;
    let held = held(parts).await?;
    let after = parts.index.live(&ids).await?;
    let live = before.into_iter().zip(after);
    let live: HashSet<String> = ids
        .into_iter()
        .zip(live)
        .filter(|(blob_id, (before, after))| {
            before.blocks > 0 || after.blocks > 0 || held.contains(blob_id)
        })
        .map(|(blob_id, _)| blob_id)
        .collect();
    let used: Vec<String> = live.iter().cloned().collect();
    let entries = parts.index.blobs(&used).await?.into_iter().flatten();
    // A store has taken the mark from the others.
    let entries = entries.filter(|blob| blob.state == BlobState::Deleting);
    let used: Vec<String> = entries.map(|blob| blob.blob_id).collect();
    parts.index.set_state(&used, BlobState::Released).await?;
    marked.retain(|blob| !live.contains(&blob.blob_id));
    Ok(marked)
}

/// The blobs at which deleted rows point that may be brought back.
async fn held(parts: &RenewalParts) -> Result<HashSet<String>> {
    let mut held = HashSet::new();
    let mut after: Option<String> = None;
    loop {
        let page = parts.index.deleted_by_blob(after.as_deref(), PAGE).await?;
        let whole = page.len() >= PAGE;
        after = page.last().map(|(blob_id, _)| blob_id.clone());
        held.extend(page.into_iter().map(|(blob_id, _)| blob_id));
        if !whole {
            return Ok(held);
        }
    }
}

#[cfg(test)]
mod tests;
