//! Wrappers for the two seams that fail on command: an index and a blob store around any other.
//!
//! A fault strikes the n-th call of a kind ([`Faults::plan`]) or with a probability drawn from a
//! seeded generator ([`Faults::seeded`]). The honest faults are those of a network or database: the
//! caller gets an error, or can detect the fault. Lies ([`Fault::LIES`]) are wrong answers that
//! look right; acknowledged writes may be lost to them, but even then no wrong block may come out.

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::Notify;
use walrusds::clock::Sighting;
use walrusds::walrus::Check;
use walrusds::{
    Blob, BlobState, BlobStore, Body, Deleted, DeletedRow, EndingIn, Error, ErrorKind, Index,
    KeyRange, KeyRecord, Leases, Ledger, ListItem, Notes, Purged, Record, RenewItem, Renewal,
    Result, Rows, StoreOptions, StoreResult, Totals, Traces, Usage,
};

/// The kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// An error; the call had no effect.
    Before,
    /// An error although the call took effect: the answer was lost.
    After,
    /// The call is delayed.
    Delay,
    /// A read: 404 for a blob that is there.
    NotFound,
    /// A read: the last bytes are missing.
    Cut,
    /// A read: bits are flipped.
    Corrupt,
    /// A store: success, with the ID of another blob. A lie.
    WrongId,
    /// A lookup answers with the state before the last write. A lie.
    Stale,
    /// A lookup: a row of another size. A lie.
    WrongSize,
}

impl Fault {
    /// All faults of an honest network or database.
    pub const HONEST: [Fault; 6] = [
        Fault::Before,
        Fault::After,
        Fault::Delay,
        Fault::NotFound,
        Fault::Cut,
        Fault::Corrupt,
    ];
    /// Answers that cannot be distinguished from true ones.
    pub const LIES: [Fault; 3] = [Fault::WrongId, Fault::Stale, Fault::WrongSize];
}

/// The kinds of calls that are counted and struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    /// Rows are written.
    PutRows,
    /// Rows are looked up.
    Lookup,
    /// Rows are deleted.
    DeleteRows,
    /// Rows are listed.
    List,
    /// Due blobs, their rows, and the record of a renewal.
    Renewal,
    /// The running totals.
    Usage,
    /// The lease.
    Lease,
    /// A blob is stored.
    Store,
    /// A blob or a part of it is read.
    Read,
}

impl Call {
    fn can(self, fault: Fault) -> bool {
        match fault {
            Fault::Before | Fault::Delay => true,
            Fault::After => !matches!(self, Call::Lookup | Call::List | Call::Read | Call::Lease),
            Fault::NotFound | Fault::Cut | Fault::Corrupt => self == Call::Read,
            Fault::WrongId => self == Call::Store,
            Fault::Stale | Fault::WrongSize => self == Call::Lookup,
        }
    }
}

/// Decides which calls fail, and counts them.
pub struct Faults {
    quiet: AtomicBool,
    longest_delay: Duration,
    state: Mutex<Schedule>,
}

struct Schedule {
    rng: StdRng,
    rates: Vec<(Fault, f64)>,
    planned: Vec<(Call, u64, Fault)>,
    seen: HashMap<Call, u64>,
    struck: BTreeMap<(Call, Fault), u64>,
}

impl Faults {
    /// Faults by chance: each call suffers each fault of its kind at that fault's rate.
    pub fn seeded(seed: u64, rates: Vec<(Fault, f64)>, longest_delay: Duration) -> Self {
        Faults {
            quiet: AtomicBool::new(false),
            longest_delay,
            state: Mutex::new(Schedule {
                rng: StdRng::seed_from_u64(seed),
                rates,
                planned: Vec::new(),
                seen: HashMap::new(),
                struck: BTreeMap::new(),
            }),
        }
    }

    /// Only planned faults.
    pub fn none() -> Self {
        Faults::seeded(0, Vec::new(), Duration::from_millis(20))
    }

    /// Lets the `n`-th call of a kind from now on (1 = the next) suffer this.
    pub fn plan(&self, call: Call, n: u64, fault: Fault) {
        assert!(call.can(fault), "{fault:?} is not possible for {call:?}");
        let mut state = self.state.lock();
        let at = state.seen.get(&call).copied().unwrap_or(0) + n;
        state.planned.push((call, at, fault));
    }

    /// While quiet, no fault strikes (planned faults stay planned).
    pub fn set_quiet(&self, quiet: bool) {
        self.quiet.store(quiet, SeqCst);
    }

    /// The number of strikes of each fault on each kind of call.
    pub fn struck(&self) -> BTreeMap<(Call, Fault), u64> {
        self.state.lock().struck.clone()
    }

    fn strike(&self, call: Call) -> Option<Fault> {
        let mut state = self.state.lock();
        let seen = state.seen.entry(call).or_default();
        *seen += 1;
        let now = *seen;
        if self.quiet.load(SeqCst) {
            return None;
        }
        let planned = state
            .planned
            .iter()
            .position(|(c, at, _)| *c == call && *at == now);
        let fault = match planned {
            Some(at) => Some(state.planned.swap_remove(at).2),
            None => {
                let Schedule { rng, rates, .. } = &mut *state;
                rates
                    .iter()
                    .find(|(fault, rate)| call.can(*fault) && rng.random_bool(*rate))
                    .map(|(fault, _)| *fault)
            }
        }?;
        *state.struck.entry((call, fault)).or_default() += 1;
        Some(fault)
    }

    fn random(&self, below: usize) -> usize {
        self.state.lock().rng.random_range(0..below.max(1))
    }

    async fn delay(&self) {
        let longest = usize::try_from(self.longest_delay.as_micros()).unwrap_or(usize::MAX);
        tokio::time::sleep(Duration::from_micros(self.random(longest) as u64)).await;
    }
}

/// Cuts one node off from everything, as when its process is killed: calls that have begun run to
/// their end, as in a database, and no new call begins.
#[derive(Default)]
pub struct Fuse {
    blown: AtomicBool,
    running: AtomicUsize,
    ended: Notify,
}

struct Running(Arc<Fuse>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
        self.0.ended.notify_waiters();
    }
}

impl Fuse {
    /// Refuses every call from now on, by never answering.
    pub fn blow(&self) {
        self.blown.store(true, SeqCst);
    }

    /// Returns once no call runs any more.
    pub async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.running.load(SeqCst) == 0 {
                return;
            }
            ended.await;
        }
    }

    async fn enter(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, SeqCst);
        let running = Running(Arc::clone(self));
        if self.blown.load(SeqCst) {
            drop(running);
            pending::<()>().await;
            unreachable!("nothing comes after a crash");
        }
        running
    }
}

/// The steps that both wrappers do around a call.
#[derive(Clone)]
struct Around {
    faults: Arc<Faults>,
    fuse: Arc<Fuse>,
}

impl Around {
    async fn begin(&self, call: Call) -> Result<(Running, Option<Fault>)> {
        let fault = self.faults.strike(call);
        if fault == Some(Fault::Delay) {
            self.faults.delay().await;
        }
        let running = self.fuse.enter().await;
        if fault == Some(Fault::Before) {
            return Err(injected(call, "failed"));
        }
        Ok((running, fault))
    }

    fn end<T>(call: Call, fault: Option<Fault>, done: Result<T>) -> Result<T> {
        if fault == Some(Fault::After) {
            done?;
            return Err(injected(call, "answer lost"));
        }
        done
    }
}

fn injected(call: Call, what: &str) -> Error {
    let kind = match call {
        Call::Store | Call::Read => ErrorKind::Walrus,
        _ => ErrorKind::Index,
    };
    Error::retryable(kind, format!("injected: {call:?} {what}"))
}

/// An index that fails.
pub struct FaultyIndex<I: ?Sized> {
    around: Around,
    /// Each key's row before its last write, for stale reads.
    before: Mutex<HashMap<String, Option<Record>>>,
    inner: Arc<I>,
}

impl<I: Index + ?Sized> FaultyIndex<I> {
    pub fn new(inner: Arc<I>, faults: Arc<Faults>, fuse: Arc<Fuse>) -> Self {
        FaultyIndex {
            around: Around { faults, fuse },
            before: Mutex::default(),
            inner,
        }
    }

    /// Records the rows that stale reads will return.
    async fn remember(&self, keys: Vec<String>) {
        let lies = |(fault, _): &(Fault, f64)| *fault == Fault::Stale;
        {
            let state = self.around.faults.state.lock();
            let planned = state.planned.iter().any(|(.., f)| *f == Fault::Stale);
            if !planned && !state.rates.iter().any(lies) {
                return;
            }
        }
        if let Ok(rows) = self.inner.get_many(&keys).await {
            self.before.lock().extend(keys.into_iter().zip(rows));
        }
    }

    fn mangle(&self, fault: Option<Fault>, key: &str, row: Option<Record>) -> Option<Record> {
        match fault {
            Some(Fault::Stale) => self.before.lock().get(key).cloned().unwrap_or(row),
            Some(Fault::WrongSize) => row.map(|mut record| {
                record.size += if self.around.faults.random(2) == 0 {
                    1
                } else {
                    -1
                };
                record
            }),
            _ => row,
        }
    }
}

#[async_trait]
impl<I: Index + ?Sized> Rows for FaultyIndex<I> {
    async fn put_many(&self, records: &[KeyRecord]) -> Result<()> {
        let (_running, fault) = self.around.begin(Call::PutRows).await?;
        self.remember(records.iter().map(|r| r.key.clone()).collect())
            .await;
        Around::end(Call::PutRows, fault, self.inner.put_many(records).await)
    }

    async fn move_rows(&self, from: &str, to: &[KeyRecord]) -> Result<u64> {
        let (_running, fault) = self.around.begin(Call::PutRows).await?;
        Around::end(Call::PutRows, fault, self.inner.move_rows(from, to).await)
    }

    async fn get(&self, key: &str) -> Result<Option<Record>> {
        let (_running, fault) = self.around.begin(Call::Lookup).await?;
        let row = self.inner.get(key).await?;
        Ok(self.mangle(fault, key, row))
    }

    async fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Record>>> {
        let (_running, fault) = self.around.begin(Call::Lookup).await?;
        let rows = self.inner.get_many(keys).await?;
        let mangled = keys.iter().zip(rows);
        Ok(mangled
            .map(|(key, row)| self.mangle(fault, key, row))
            .collect())
    }

    async fn staged_value(&self, key: &str) -> Result<Option<Bytes>> {
        let (_running, _) = self.around.begin(Call::Lookup).await?;
        self.inner.staged_value(key).await
    }

    async fn delete(&self, key: &str) -> Result<Usage> {
        let (_running, fault) = self.around.begin(Call::DeleteRows).await?;
        self.remember(vec![key.to_owned()]).await;
        Around::end(Call::DeleteRows, fault, self.inner.delete(key).await)
    }

    async fn delete_many(&self, keys: &[String]) -> Result<Usage> {
        let (_running, fault) = self.around.begin(Call::DeleteRows).await?;
        self.remember(keys.to_vec()).await;
        Around::end(Call::DeleteRows, fault, self.inner.delete_many(keys).await)
    }

    async fn list(&self, range: &KeyRange, offset: usize, limit: usize) -> Result<Vec<ListItem>> {
        let (_running, _) = self.around.begin(Call::List).await?;
        self.inner.list(range, offset, limit).await
    }

    async fn due_for_renewal(
        &self,
        before: SystemTime,
        after: Option<&RenewItem>,
        limit: usize,
    ) -> Result<Vec<RenewItem>> {
        let (_running, fault) = self.around.begin(Call::Renewal).await?;
        let due = self.inner.due_for_renewal(before, after, limit).await;
        Around::end(Call::Renewal, fault, due)
    }

    async fn ending_by(
        &self,
        epoch: i64,
        after: Option<&RenewItem>,
        limit: usize,
    ) -> Result<Vec<RenewItem>> {
        let (_running, fault) = self.around.begin(Call::Renewal).await?;
        let ending = self.inner.ending_by(epoch, after, limit).await;
        Around::end(Call::Renewal, fault, ending)
    }

    async fn rows_of_blob(&self, blob_id: &str) -> Result<Vec<KeyRecord>> {
        let (_running, fault) = self.around.begin(Call::Renewal).await?;
        let rows = self.inner.rows_of_blob(blob_id).await;
        Around::end(Call::Renewal, fault, rows)
    }

    async fn rows_from(&self, blob_id: &str, from: u64, limit: usize) -> Result<Vec<KeyRecord>> {
        let (_running, _) = self.around.begin(Call::List).await?;
        self.inner.rows_from(blob_id, from, limit).await
    }

    async fn update_blob_after_renewal(&self, blob_id: &str, renewal: &Renewal) -> Result<u64> {
        let (_running, fault) = self.around.begin(Call::Renewal).await?;
        let noted = self.inner.update_blob_after_renewal(blob_id, renewal).await;
        Around::end(Call::Renewal, fault, noted)
    }
}

#[async_trait]
impl<I: Index + ?Sized> Ledger for FaultyIndex<I> {
    async fn place(&self, blob: &Blob, rows: &[KeyRecord]) -> Result<()> {
        let (_running, fault) = self.around.begin(Call::PutRows).await?;
        self.remember(rows.iter().map(|r| r.key.clone()).collect())
            .await;
        Around::end(Call::PutRows, fault, self.inner.place(blob, rows).await)
    }

    async fn move_to(&self, from: &str, blob: &Blob, rows: &[KeyRecord]) -> Result<u64> {
        let (_running, fault) = self.around.begin(Call::PutRows).await?;
        let moved = self.inner.move_to(from, blob, rows).await;
        Around::end(Call::PutRows, fault, moved)
    }

    async fn place_missing(&self, blobs: &[Blob], rows: &[KeyRecord]) -> Result<Usage> {
        let (_running, fault) = self.around.begin(Call::PutRows).await?;
        let placed = self.inner.place_missing(blobs, rows).await;
        Around::end(Call::PutRows, fault, placed)
    }

    async fn renewed(&self, blob: &Blob) -> Result<u64> {
        let (_running, fault) = self.around.begin(Call::Renewal).await?;
        Around::end(Call::Renewal, fault, self.inner.renewed(blob).await)
    }

    fn keeps_ledger(&self) -> bool {
        self.inner.keeps_ledger()
    }

    async fn blobs(&self, blob_ids: &[String]) -> Result<Vec<Option<Blob>>> {
        let (_running, fault) = self.around.begin(Call::Renewal).await?;
        Around::end(Call::Renewal, fault, self.inner.blobs(blob_ids).await)
    }

    async fn blobs_in_state(
        &self,
        state: BlobState,
        after: &str,
        limit: usize,
    ) -> Result<Vec<Blob>> {
        let (_running, fault) = self.around.begin(Call::Renewal).await?;
        let blobs = self.inner.blobs_in_state(state, after, limit).await;
        Around::end(Call::Renewal, fault, blobs)
    }

    async fn set_state(&self, blob_ids: &[String], state: BlobState) -> Result<u64> {
        let (_running, fault) = self.around.begin(Call::Renewal).await?;
        let set = self.inner.set_state(blob_ids, state).await;
        Around::end(Call::Renewal, fault, set)
    }

    async fn forget_blobs(&self, blob_ids: &[String]) -> Result<u64> {
        let (_running, fault) = self.around.begin(Call::Renewal).await?;
        let forgotten = self.inner.forget_blobs(blob_ids).await;
        Around::end(Call::Renewal, fault, forgotten)
    }

    async fn live(&self, blob_ids: &[String]) -> Result<Vec<Usage>> {
        let (_running, fault) = self.around.begin(Call::Renewal).await?;
        Around::end(Call::Renewal, fault, self.inner.live(blob_ids).await)
    }

    async fn count(&self, after: &str, limit: usize) -> Result<Option<String>> {
        let (_running, fault) = self.around.begin(Call::Renewal).await?;
        Around::end(Call::Renewal, fault, self.inner.count(after, limit).await)
    }

    async fn horizon(&self) -> Result<Vec<EndingIn>> {
        self.inner.horizon().await
    }

    async fn epochs(&self) -> Result<Vec<Sighting>> {
        let (_running, fault) = self.around.begin(Call::Renewal).await?;
        Around::end(Call::Renewal, fault, self.inner.epochs().await)
    }

    async fn saw_epochs(&self, seen: &[Sighting]) -> Result<()> {
        let (_running, fault) = self.around.begin(Call::Renewal).await?;
        Around::end(Call::Renewal, fault, self.inner.saw_epochs(seen).await)
    }
}

#[async_trait]
impl<I: Index + ?Sized> Deleted for FaultyIndex<I> {
    fn keeps_deleted(&self) -> Duration {
        self.inner.keeps_deleted()
    }

    async fn get_with_deleted(&self, keys: &[String]) -> Result<Vec<Traces>> {
        let (_running, fault) = self.around.begin(Call::Lookup).await?;
        let mut traces = self.inner.get_with_deleted(keys).await?;
        for (key, traces) in keys.iter().zip(&mut traces) {
            traces.live = self.mangle(fault, key, traces.live.take());
        }
        Ok(traces)
    }

    async fn deleted(&self, keys: &[String]) -> Result<Vec<Option<DeletedRow>>> {
        let (_running, _) = self.around.begin(Call::Lookup).await?;
        self.inner.deleted(keys).await
    }

    async fn list_deleted(
        &self,
        range: &KeyRange,
        since: Option<SystemTime>,
        until: Option<SystemTime>,
        limit: usize,
    ) -> Result<Vec<DeletedRow>> {
        let (_running, _) = self.around.begin(Call::List).await?;
        self.inner.list_deleted(range, since, until, limit).await
    }

    async fn deleted_by_blob(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Usage)>> {
        let (_running, _) = self.around.begin(Call::List).await?;
        self.inner.deleted_by_blob(after, limit).await
    }

    async fn undelete(&self, rows: &[KeyRecord]) -> Result<Vec<String>> {
        let (_running, fault) = self.around.begin(Call::PutRows).await?;
        self.remember(rows.iter().map(|r| r.key.clone()).collect())
            .await;
        Around::end(Call::PutRows, fault, self.inner.undelete(rows).await)
    }

    async fn purge_deleted(&self, after: &str, limit: usize) -> Result<Purged> {
        let (_running, fault) = self.around.begin(Call::DeleteRows).await?;
        let purged = self.inner.purge_deleted(after, limit).await;
        Around::end(Call::DeleteRows, fault, purged)
    }
}

#[async_trait]
impl<I: Index + ?Sized> Leases for FaultyIndex<I> {
    async fn try_lease(&self, name: &str, owner: &str, ttl: Duration) -> Result<bool> {
        let (_running, _) = self.around.begin(Call::Lease).await?;
        self.inner.try_lease(name, owner, ttl).await
    }

    async fn release_lease(&self, name: &str, owner: &str) -> Result<()> {
        let (_running, _) = self.around.begin(Call::Lease).await?;
        self.inner.release_lease(name, owner).await
    }
}

#[async_trait]
impl<I: Index + ?Sized> Totals for FaultyIndex<I> {
    async fn usage(&self) -> Result<Usage> {
        let (_running, _) = self.around.begin(Call::Usage).await?;
        self.inner.usage().await
    }

    async fn add_usage(&self, delta: Usage) -> Result<()> {
        let (_running, fault) = self.around.begin(Call::Usage).await?;
        Around::end(Call::Usage, fault, self.inner.add_usage(delta).await)
    }
}

#[async_trait]
impl<I: Index + ?Sized> Notes for FaultyIndex<I> {
    async fn note(&self, name: &str) -> Result<Option<String>> {
        let (_running, fault) = self.around.begin(Call::Renewal).await?;
        let note = self.inner.note(name).await;
        Around::end(Call::Renewal, fault, note)
    }

    async fn notes(&self, prefix: &str, limit: usize) -> Result<Vec<(String, String)>> {
        let (_running, fault) = self.around.begin(Call::Renewal).await?;
        let notes = self.inner.notes(prefix, limit).await;
        Around::end(Call::Renewal, fault, notes)
    }

    async fn set_note(&self, name: &str, text: Option<&str>) -> Result<()> {
        let (_running, fault) = self.around.begin(Call::Renewal).await?;
        let kept = self.inner.set_note(name, text).await;
        Around::end(Call::Renewal, fault, kept)
    }
}

#[async_trait]
impl<I: Index + ?Sized> Index for FaultyIndex<I> {
    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

/// A blob store that fails.
pub struct FaultyStore<S: ?Sized> {
    around: Around,
    /// The IDs returned lately, to be returned again for other blobs.
    ids: Mutex<Vec<String>>,
    inner: Arc<S>,
}

impl<S: BlobStore + ?Sized> FaultyStore<S> {
    pub fn new(inner: Arc<S>, faults: Arc<Faults>, fuse: Arc<Fuse>) -> Self {
        FaultyStore {
            around: Around { faults, fuse },
            ids: Mutex::default(),
            inner,
        }
    }

    /// The client's step when no aggregator gave the right bytes: the caller judges the answer.
    fn judge(&self, fault: Option<Fault>, bytes: Bytes, check: Check<'_>) -> Result<Bytes> {
        let bytes = match fault {
            Some(Fault::Cut) => bytes.slice(..bytes.len() - bytes.len().min(1)),
            Some(Fault::Corrupt) if !bytes.is_empty() => {
                let mut wrong = bytes.to_vec();
                wrong[self.around.faults.random(bytes.len())] ^= 1 << self.around.faults.random(8);
                wrong.into()
            }
            _ => bytes,
        };
        check(&bytes).map_err(|reason| Error::new(ErrorKind::Corrupt, reason))?;
        Ok(bytes)
    }

    async fn begin_read(&self, id: &str) -> Result<(Running, Option<Fault>)> {
        let (running, fault) = self.around.begin(Call::Read).await?;
        if fault == Some(Fault::NotFound) {
            return Err(Error::new(
                ErrorKind::BlobNotFound,
                format!("injected: {id} not found"),
            ));
        }
        Ok((running, fault))
    }
}

/// Accepts any bytes: the wrapper damages them before the caller judges them.
fn anything(_: &[u8]) -> std::result::Result<(), String> {
    Ok(())
}

#[async_trait]
impl<S: BlobStore + ?Sized> BlobStore for FaultyStore<S> {
    async fn store(&self, body: Body, options: StoreOptions) -> Result<StoreResult> {
        let (_running, fault) = self.around.begin(Call::Store).await?;
        let mut stored = self.inner.store(body, options).await?;
        if fault == Some(Fault::WrongId) {
            let ids = self.ids.lock();
            let wrong = ids.get(self.around.faults.random(ids.len())).cloned();
            stored.blob_id = wrong.unwrap_or_else(|| "A".repeat(43));
        } else {
            let mut ids = self.ids.lock();
            ids.push(stored.blob_id.clone());
            if ids.len() > 64 {
                ids.swap_remove(0);
            }
        }
        Around::end(Call::Store, fault, Ok(stored))
    }

    async fn read(&self, blob_id: &str, check: Check<'_>) -> Result<Bytes> {
        let (_running, fault) = self.begin_read(blob_id).await?;
        match fault {
            // The inner store may have other aggregators to ask when one fails the check.
            None => self.inner.read(blob_id, check).await,
            _ => {
                let bytes = self.inner.read(blob_id, &anything).await?;
                self.judge(fault, bytes, check)
            }
        }
    }

    async fn read_range(
        &self,
        blob_id: &str,
        offset: u64,
        len: u64,
        check: Check<'_>,
    ) -> Result<Bytes> {
        let (_running, fault) = self.begin_read(blob_id).await?;
        match fault {
            None => self.inner.read_range(blob_id, offset, len, check).await,
            _ => {
                let bytes = self
                    .inner
                    .read_range(blob_id, offset, len, &anything)
                    .await?;
                self.judge(fault, bytes, check)
            }
        }
    }

    async fn read_patch(&self, patch_id: &str, check: Check<'_>) -> Result<Bytes> {
        let (_running, fault) = self.begin_read(patch_id).await?;
        let bytes = self.inner.read_patch(patch_id, &anything).await?;
        self.judge(fault, bytes, check)
    }

    fn size_limit(&self) -> u64 {
        self.inner.size_limit()
    }

    fn throttled(&self) -> u64 {
        self.inner.throttled()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.inner.counters()
    }
}
