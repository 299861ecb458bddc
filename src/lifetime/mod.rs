//! How long blobs live: renewal before their storage ends.
//!
//! There is no "extend" over HTTP: keeping a blob means uploading its bytes again, at full price.
//! The blob ID is computed from the bytes, so rows keep pointing where they did.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, EpochClock};
use crate::error::{caught, Error, ErrorKind, Result};
use crate::index::{Index, KeyRecord, RenewItem, Renewal};
use crate::log::{Level, Log};
use crate::metrics::Metrics;
use crate::multihash::{self, Match};
use crate::pack::expiry;
use crate::walrus::{BlobStore, StoreOptions};

const LEASE: &str = "renewal";
/// A node that dies holds the others up for this long.
const LEASE_TTL: Duration = Duration::from_secs(300);
const PAGE: usize = 256;
/// The first look comes so soon after the start, so that a process that lives for less than the interval
/// renews too; a one-shot command does not.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// Ends of storage that no clock that was right can have told are looked for so many at a time.
const ODD_PAGE: usize = 1 << 16;
/// Beyond every end of storage.
const FAR: Duration = Duration::from_secs(200 * 365 * 86_400);
/// A renewal buys two epochs at least. A blob that ends with the present epoch cannot be bought for
/// this epoch again (the publisher answers that it is stored already), and when the epoch is over
/// the blob is gone.
pub(crate) const MIN_RENEWAL_EPOCHS: u32 = 2;
/// Pause after a failed renewal of a blob, doubled each time.
const RETRY_FIRST: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_secs(3600);

pub(crate) struct RenewalParts {
    pub(crate) index: Arc<dyn Index>,
    pub(crate) store: Arc<dyn BlobStore>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) epoch_clock: Arc<EpochClock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: Arc<Log>,
    pub(crate) options: StoreOptions,
    /// Epochs that this node buys for a new blob.
    pub(crate) bought: u32,
    pub(crate) interval: Duration,
    pub(crate) lead: Duration,
    pub(crate) epoch: Duration,
}

impl RenewalParts {
    /// A lead that is long for what was bought makes a blob due again at once. It rests until a
    /// quarter of its time is left: a deletable blob would be paid for at every look otherwise.
    fn rest_after_renewal(&self, expires_at: Option<SystemTime>) -> Option<Rest> {
        let left = expires_at?.duration_since(self.clock.now()).ok()?;
        (left <= self.lead).then(|| Rest {
            until: Instant::now() + left.mul_f64(0.75),
            failures: 0,
        })
    }

    /// No blob rests for longer: it must be looked at several times before its storage ends.
    fn fraction_of_epoch(&self) -> Duration {
        self.epoch / 8
    }
}

/// A blob that must not be tried again for a while.
struct Rest {
    until: Instant,
    failures: u32,
}

/// What the node remembers between its looks.
#[derive(Default)]
struct Memory {
    /// By blob ID.
    resting: HashMap<String, Rest>,
    /// When ends of storage that cannot be were looked for.
    odd_ends: Option<Instant>,
}

/// Renews blobs until stopped. Runs on every node; a lease in the index lets one work at a time.
pub(crate) async fn renew(parts: RenewalParts, stop: CancellationToken) {
    let owner = format!("{}-{:016x}", std::process::id(), rand::random::<u64>());
    let mut memory = Memory::default();
    let mut pause = parts.interval.min(FIRST_LOOK);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
        pause = parts.interval;
        let round = async {
            match parts.index.try_lease(LEASE, &owner, LEASE_TTL).await {
                Ok(true) => round(&parts, &owner, &mut memory).await,
                Ok(false) => Ok(()),
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

/// Goes once through every blob that is due.
async fn round(parts: &RenewalParts, owner: &str, memory: &mut Memory) -> Result<()> {
    let now = Instant::now();
    // Long past their rest and never seen again: no longer due.
    let kept = parts.fraction_of_epoch().max(2 * RETRY_MAX);
    memory.resting.retain(|_, rest| rest.until + kept > now);
    let before = parts.clock.now() + parts.lead;
    let mut after: Option<RenewItem> = None;
    loop {
        let due = parts
            .index
            .due_for_renewal(before, after.as_ref(), PAGE)
            .await?;
        if !renew_all(parts, owner, &due, memory).await? {
            return Ok(());
        }
        if due.len() < PAGE {
            break;
        }
        after = due.into_iter().next_back();
    }
    let look = parts.fraction_of_epoch();
    if memory.odd_ends.is_none_or(|at| at.elapsed() >= look) {
        let odd = odd_ends(parts, before).await?;
        if !renew_all(parts, owner, &odd, memory).await? {
            return Ok(());
        }
        memory.odd_ends = Some(Instant::now());
    }
    Ok(())
}

/// Blobs whose estimated end lies later than any that this node could have bought now: its clock, or another
/// node's, was ahead when the estimate was made. They are due by the epochs that are known, or if none is.
async fn odd_ends(parts: &RenewalParts, before: SystemTime) -> Result<Vec<RenewItem>> {
    let most = parts.bought.max(MIN_RENEWAL_EPOCHS) + 1;
    let latest = parts.clock.now() + parts.epoch.saturating_mul(most);
    let mut odd = Vec::new();
    let mut after = Some(RenewItem {
        blob_id: String::new(),
        expires_at: latest.max(before),
        end_epoch: 0,
        deletable: false,
    });
    loop {
        let far = SystemTime::UNIX_EPOCH + FAR;
        let page = parts.index.due_for_renewal(far, after.as_ref(), ODD_PAGE);
        let mut page = page.await?;
        let last = page.len() < ODD_PAGE;
        after = page.last().cloned();
        page.retain(|item| {
            let end = u64::try_from(item.end_epoch).unwrap_or(0);
            let left = parts.epoch_clock.left_until(end);
            left.is_none_or(|left| left <= parts.lead)
        });
        odd.append(&mut page);
        if last {
            return Ok(odd);
        }
    }
}

/// Renews blobs one after another; false if another node has taken the renewal over.
async fn renew_all(
    parts: &RenewalParts,
    owner: &str,
    due: &[RenewItem],
    memory: &mut Memory,
) -> Result<bool> {
    for item in due {
        let resting = memory.resting.get(&item.blob_id);
        if resting.is_some_and(|rest| rest.until > Instant::now()) {
            continue;
        }
        if !parts.index.try_lease(LEASE, owner, LEASE_TTL).await? {
            return Ok(false);
        }
        let rest = match with_lease(parts, owner, caught(renew_blob(parts, owner, item))).await {
            Ok(Outcome::Renewed(expires_at)) => parts.rest_after_renewal(expires_at),
            Ok(Outcome::NotYet) => Some(Rest {
                until: Instant::now() + parts.fraction_of_epoch().min(RETRY_MAX),
                failures: 0,
            }),
            // It was said, and paid for, when it was found out.
            Ok(Outcome::Wrong) => Some(Rest {
                until: Instant::now() + parts.fraction_of_epoch(),
                failures: 0,
            }),
            Err(e) => {
                Metrics::add(&parts.metrics.renewals_failed, 1);
                parts.log.push(
                    Level::Error,
                    format!("blob {} could not be renewed: {e}", item.blob_id),
                );
                let failures = resting.map_or(0, |r| r.failures);
                let pause = RETRY_FIRST
                    .saturating_mul(1 << failures.min(10))
                    .min(parts.fraction_of_epoch().min(RETRY_MAX));
                Some(Rest {
                    until: Instant::now() + pause,
                    failures: failures + 1,
                })
            }
        };
        match rest {
            Some(rest) => drop(memory.resting.insert(item.blob_id.clone(), rest)),
            None => drop(memory.resting.remove(&item.blob_id)),
        }
    }
    Ok(true)
}

/// Keeps the lease alive while a blob travels, which may take longer than the lease.
async fn with_lease<T>(
    parts: &RenewalParts,
    owner: &str,
    work: impl std::future::Future<Output = Result<T>>,
) -> Result<T> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(LEASE_TTL / 3) => {
                if !parts.index.try_lease(LEASE, owner, LEASE_TTL).await? {
                    return Err(Error::retryable(
                        ErrorKind::Locked,
                        "another node has taken the renewal over",
                    ));
                }
            }
        }
    }
}

enum Outcome {
    /// Storage was bought; it ends at this moment at the earliest.
    Renewed(Option<SystemTime>),
    /// The network still holds the blob for as long as a renewal would buy.
    NotYet,
    /// Other bytes were paid for lately, instead of the blob's: it rests.
    Wrong,
}

/// The lease that a blob rests under, on every node and across restarts, after other bytes were paid for.
fn rest_of(blob_id: &str) -> String {
    format!("renewal-rest:{blob_id}")
}

async fn renew_blob(parts: &RenewalParts, owner: &str, item: &RenewItem) -> Result<Outcome> {
    let rows = parts.index.rows_of_blob(&item.blob_id).await?;
    if rows.is_empty() {
        return Ok(Outcome::Renewed(None));
    }
    let rest = rest_of(&item.blob_id);
    if !parts.index.try_lease(&rest, owner, LEASE_TTL).await? {
        return Ok(Outcome::Wrong);
    }
    let odd = Mutex::new(Vec::new());
    let check = |bytes: &[u8]| {
        *odd.lock() = check_rows(&rows, bytes)?;
        Ok(())
    };
    let bytes: Bytes = parts.store.read_once(&item.blob_id, &check).await?;
    failpoint!("renew.read");
    let odd = odd.into_inner();
    if let Some((key, why)) = odd.first() {
        parts.log.push(
            Level::Error,
            format!(
                "blob {}: {} of its {} rows do not fit its bytes, and it is renewed for the others; the first: {key}: \
                 {why}",
                item.blob_id,
                odd.len(),
                rows.len()
            ),
        );
    }
    let options = StoreOptions {
        deletable: item.deletable,
        epochs: parts.options.epochs.max(MIN_RENEWAL_EPOCHS),
    };
    let stored = parts.store.store(bytes.into(), options).await?;
    failpoint!("renew.stored");
    if stored.blob_id != item.blob_id {
        let pause = parts.fraction_of_epoch();
        // Each try is paid for. If this fails, this process remembers it all the same.
        let _ = caught(parts.index.try_lease(&rest, owner, pause)).await;
        Metrics::add(&parts.metrics.renewals_failed, 1);
        parts.log.push(
            Level::Error,
            format!(
                "blob {} could not be renewed: its bytes were stored, and paid for, as blob {} instead: the \
                 aggregator gave other bytes, or the publisher encodes otherwise. It is tried again in {} s",
                item.blob_id,
                stored.blob_id,
                pause.as_secs()
            ),
        );
        return Ok(Outcome::Wrong);
    }
    let _ = caught(parts.index.release_lease(&rest, owner)).await;
    let end_epoch = i64::try_from(stored.end_epoch).unwrap_or(i64::MAX);
    let expires_at = expiry(
        &parts.epoch_clock,
        parts.clock.now(),
        &stored,
        options.epochs,
    );
    let outcome = if stored.newly_created || end_epoch > item.end_epoch {
        Metrics::add(&parts.metrics.renewals, 1);
        Outcome::Renewed(expires_at)
    } else {
        Outcome::NotYet
    };
    parts
        .index
        .update_blob_after_renewal(
            &item.blob_id,
            &Renewal {
                end_epoch,
                expires_at: expires_at.filter(|t| *t > SystemTime::UNIX_EPOCH),
            },
        )
        .await?;
    failpoint!("renew.noted");
    Ok(outcome)
}

/// Paying for wrong bytes would let the right ones lapse: every block of the blob is checked. Rows that do not
/// fit are given back, with the reason; they veto nothing if a block of another row proves the bytes.
///
/// # Errors
/// No block proves the bytes, and a row speaks against them.
fn check_rows(
    rows: &[KeyRecord],
    blob: &[u8],
) -> std::result::Result<Vec<(String, String)>, String> {
    let mut odd = Vec::new();
    let mut proven = false;
    for row in rows.iter().filter(|r| r.record.patch_id.is_none()) {
        match check_row(row, blob) {
            Ok(proof) => proven |= proof,
            Err(why) => odd.push((row.key.clone(), why)),
        }
    }
    match odd.first() {
        Some((_, why)) if !proven => Err(why.clone()),
        _ => Ok(odd),
    }
}

/// Whether a row's block proves the bytes.
///
/// # Errors
/// It does not fit them.
fn check_row(row: &KeyRecord, blob: &[u8]) -> std::result::Result<bool, String> {
    let range = row.record.range().map_err(|e| e.to_string())?;
    let block = usize::try_from(range.start)
        .ok()
        .zip(usize::try_from(range.end).ok())
        .and_then(|(start, end)| blob.get(start..end))
        .ok_or_else(|| {
            format!(
                "blob of {} bytes is too short for block {} at {}..{}",
                blob.len(),
                row.key,
                range.start,
                range.end
            )
        })?;
    match multihash::check(&row.key, block) {
        Match::Yes => Ok(!block.is_empty()),
        Match::Unknown => Ok(false),
        Match::No => Err(format!("block {} does not hash to its key", row.key)),
    }
}
