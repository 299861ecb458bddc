//! Storing blobs again: their bytes are read, proved, and uploaded at full price.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::check::{self, Rows};
use super::due::{is_due, is_urgent};
use super::lease::{with_lease, Lease};
use super::memory::Past;
use super::repack::repack;
use super::{about, RenewalParts, Rounds, MIN_RENEWAL_EPOCHS};
use crate::backoff::doubled;
use crate::error::{caught, Error, ErrorKind, Result};
use crate::index::{Blob, RenewItem};
use crate::log::Level;
use crate::metrics::Metrics;
use crate::upload::digest_text;
use crate::walrus::{Body, StoreOptions};

/// How many blobs are stored again at a time, and how many bytes they may have together: each of
/// them is held in memory.
const TOGETHER: usize = 8;
const MOST_BYTES: u64 = 128 << 20;
/// Pause after a failed renewal of a blob, doubled each time.
const RETRY_FIRST: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// How often it is tried to carry over the blocks of a blob that cannot be stored again.
const CARRIED: u32 = 3;
/// How many attempts show that no aggregator gives the right bytes of a blob.
const SURE: u32 = 2;
/// How many of the rows that do not fit their blob are named in the log.
const ODD_ROWS_NAMED: usize = 5;

/// The outcome for a blob that was due.
pub(super) enum Turn {
    /// Another node has the lease.
    LeaseLost,
    /// It rests, so it was not looked at.
    Rests,
    /// No aggregator has it.
    Missing,
    /// The network holds it for as long as a renewal would buy.
    NotYet,
    /// It was renewed, or that failed.
    Tried,
}

/// A blob that is to be stored again.
struct Attempt {
    item: RenewItem,
    /// Its entry in the ledger; the default if it has none.
    entry: Blob,
    past: Past,
}

/// Renews blobs that are due, several at a time, unless they rest. Each store tells the epoch anew,
/// so a blob that is not due after all is left out. Returns false if the lease is lost.
pub(super) async fn attend_all(
    parts: &RenewalParts,
    owner: &str,
    state: &mut Rounds,
    due: Vec<RenewItem>,
) -> Result<bool> {
    let ids: Vec<String> = due.iter().map(|item| item.blob_id.clone()).collect();
    let entries = parts.index.blobs(&ids).await?;
    let mut due = due.into_iter().zip(entries).peekable();
    let most = TOGETHER.min(parts.uploader.limit.ceiling());
    while due.peek().is_some() {
        let mut together = Vec::new();
        let mut room = MOST_BYTES;
        while let Some((item, entry)) = due.next_if(|_| room > 0 && together.len() < most) {
            let past = state.memory.of(parts, &item.blob_id).await?;
            if past.rests() || !is_due(parts, &item) {
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
pub(super) async fn attend(
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
    let Some(lease) = Lease::take(parts, owner).await? else {
        return Ok(None);
    };
    let (at_once, odd_rows_named) = (state.at_once, &state.memory.odd_rows_named);
    let attempts = together
        .iter_mut()
        .map(|attempt| renew_or_carry(parts, attempt, odd_rows_named, at_once));
    let all = async { Ok(futures_util::future::join_all(attempts).await) };
    let outcomes = match with_lease(parts, &lease, all).await {
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
/// so it is not done after wrong bytes were paid for, nor ever again and again. While there is
/// time, it waits until two attempts have found that each aggregator answers, and that none gives
/// the right bytes: one that lies, beside one that is down for a while, is no reason to pay.
async fn renew_or_carry(
    parts: &RenewalParts,
    attempt: &mut Attempt,
    odd_rows_named: &Mutex<HashSet<String>>,
    at_once: bool,
) -> Result<Outcome> {
    let outcome = caught(renew_blob(parts, attempt, odd_rows_named)).await;
    let corrupt = outcome.as_ref().err();
    let corrupt = corrupt.filter(|e| e.kind() == ErrorKind::Corrupt);
    let Some(error) = corrupt.filter(|_| !attempt.past.was_wrong()) else {
        return outcome;
    };
    attempt.past.wrong_reads += u32::from(!error.is_retryable());
    let sure = !error.is_retryable() && attempt.past.wrong_reads >= SURE;
    let waits = !at_once && !is_urgent(parts, attempt.item.end_epoch);
    if (waits && !sure) || attempt.past.carried >= CARRIED {
        return outcome;
    }
    attempt.past.carried += 1;
    let blob_id = &attempt.item.blob_id;
    let carried = repack(parts, std::slice::from_ref(blob_id), |_| false);
    let carried = caught(carried).await;
    if carried.is_ok_and(|carried| !carried.empty.is_empty()) {
        Metrics::add(&parts.metrics.blobs_repacked, 1);
        let text = format!(
            "blob {blob_id}: its blocks were checked one by one, and are in another blob now"
        );
        parts.log.push(Level::Info, text);
    }
    outcome
}

/// The subject of the line about a failed renewal.
fn about_of(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::BlobNotFound => about::MISSING,
        ErrorKind::Corrupt => about::CORRUPT,
        _ => about::RENEWAL,
    }
}

/// How long a blob rests that the network holds for as long as a renewal would buy.
pub(super) fn rest_when_held(parts: &RenewalParts) -> Duration {
    parts.fraction_of_epoch().min(RETRY_MAX)
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
            past = Past::renewed(Some(Instant::now() + rest_when_held(parts)), false);
            turn = Turn::NotYet;
        }
        Err(e) => {
            Metrics::add(&parts.metrics.renewals_failed, 1);
            let text = format!("blob {} could not be renewed: {e}", item.blob_id);
            parts.log.alike(about_of(e.kind()), Level::Error, text);
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
    if let Some(blob) = &past.unnoted {
        parts.index.renewed(blob).await?;
        return Ok(Outcome::Renewed(blob.expires_at));
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
    let rows = Rows::new(&rows, past.refused(), past.was_wrong())
        .on_network(parts.uploader.quilts.n_shards());
    let (bytes, odd) = match entry.digest.is_empty() {
        true => right_bytes(parts, item, &rows, past.turn()).await?,
        false => known_bytes(parts, entry, &rows).await?,
    };
    parts.pace.moved(bytes.len() as u64).await;
    failpoint!("renew.read");
    let options = StoreOptions {
        deletable: item.deletable,
        epochs: parts.uploader.options.epochs.max(MIN_RENEWAL_EPOCHS),
        // Storage that is left may end too soon.
        reuse: false,
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
    blob.expires_at = expires_at.filter(|t| *t > SystemTime::UNIX_EPOCH);
    let outcome = if stored.newly_created || end_epoch > item.end_epoch {
        Metrics::add(&parts.metrics.renewals, 1);
        past.unnoted = Some(blob.clone());
        Outcome::Renewed(expires_at)
    } else {
        Outcome::NotYet
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Log;

    /// Blobs that lapsed long ago are met in every round, before others.
    #[test]
    fn many_blobs_with_one_trouble_do_not_silence_one_with_another() {
        let log = Log::default();
        let troubles = [
            ErrorKind::BlobNotFound,
            ErrorKind::Walrus,
            ErrorKind::Corrupt,
        ];
        log.alike(about::EXTENSION, Level::Error, "extension 0");
        for kind in troubles {
            for blob in 0..20 {
                log.alike(about_of(kind), Level::Error, format!("{kind:?} {blob}"));
            }
        }
        let lines: Vec<String> = std::iter::from_fn(|| log.pop())
            .map(|line| line.message)
            .collect();
        for kind in troubles {
            assert!(lines.contains(&format!("{kind:?} 0")), "{lines:?}");
        }
        assert!(lines.len() < 30, "{lines:?}");
    }
}
