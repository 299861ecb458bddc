//! How long blobs live: renewal before their storage ends.
//!
//! There is no "extend" over HTTP: keeping a blob means uploading its bytes again, at full price.
//! The blob ID is computed from the bytes, so rows keep pointing where they did.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
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

/// Renews blobs until stopped. Runs on every node; a lease in the index lets one work at a time.
pub(crate) async fn renew(parts: RenewalParts, stop: CancellationToken) {
    let owner = format!("{}-{:016x}", std::process::id(), rand::random::<u64>());
    let mut resting: HashMap<String, Rest> = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(parts.interval) => {}
        }
        let round = async {
            match parts.index.try_lease(LEASE, &owner, LEASE_TTL).await {
                Ok(true) => round(&parts, &owner, &mut resting).await,
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
async fn round(
    parts: &RenewalParts,
    owner: &str,
    resting: &mut HashMap<String, Rest>,
) -> Result<()> {
    let now = Instant::now();
    // Long past their rest and never seen again: no longer due.
    resting.retain(|_, rest| rest.until + 2 * RETRY_MAX > now);
    let before = parts.clock.now() + parts.lead;
    let mut after: Option<RenewItem> = None;
    loop {
        let due = parts
            .index
            .due_for_renewal(before, after.as_ref(), PAGE)
            .await?;
        for item in &due {
            if resting
                .get(&item.blob_id)
                .is_some_and(|rest| rest.until > Instant::now())
            {
                continue;
            }
            if !parts.index.try_lease(LEASE, owner, LEASE_TTL).await? {
                return Ok(());
            }
            let rest = match with_lease(parts, owner, caught(renew_blob(parts, item))).await {
                Ok(Outcome::Renewed(expires_at)) => parts.rest_after_renewal(expires_at),
                Ok(Outcome::NotYet) => Some(Rest {
                    until: Instant::now() + parts.fraction_of_epoch().min(RETRY_MAX),
                    failures: 0,
                }),
                Err(e) => {
                    Metrics::add(&parts.metrics.renewals_failed, 1);
                    parts.log.push(
                        Level::Error,
                        format!("blob {} could not be renewed: {e}", item.blob_id),
                    );
                    let failures = resting.get(&item.blob_id).map_or(0, |r| r.failures);
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
                Some(rest) => drop(resting.insert(item.blob_id.clone(), rest)),
                None => drop(resting.remove(&item.blob_id)),
            }
        }
        if due.len() < PAGE {
            return Ok(());
        }
        after = due.into_iter().next_back();
    }
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
}

async fn renew_blob(parts: &RenewalParts, item: &RenewItem) -> Result<Outcome> {
    let rows = parts.index.rows_of_blob(&item.blob_id).await?;
    if rows.is_empty() {
        return Ok(Outcome::Renewed(None));
    }
    let check = |bytes: &[u8]| check_rows(&rows, bytes);
    let bytes: Bytes = parts.store.read_once(&item.blob_id, &check).await?;
    failpoint!("renew.read");
    let options = StoreOptions {
        deletable: item.deletable,
        epochs: parts.options.epochs.max(MIN_RENEWAL_EPOCHS),
    };
    let stored = parts.store.store(bytes.into(), options).await?;
    failpoint!("renew.stored");
    if stored.blob_id != item.blob_id {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "its bytes were stored as blob {} instead: the aggregator gave other bytes, or the \
                 publisher encodes otherwise",
                stored.blob_id
            ),
        ));
    }
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

/// Paying for wrong bytes would let the right ones lapse: every block of the blob is checked.
fn check_rows(rows: &[KeyRecord], blob: &[u8]) -> std::result::Result<(), String> {
    for row in rows.iter().filter(|r| r.record.patch_id.is_none()) {
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
        if multihash::check(&row.key, block) == Match::No {
            return Err(format!("block {} does not hash to its key", row.key));
        }
    }
    Ok(())
}
