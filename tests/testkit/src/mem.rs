//! An index and a blob store in memory, with switches for faults: the other side of the seams.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use walrusds::clock::{Clock, Sighting};
use walrusds::walrus::Check;
use walrusds::{
    BlobStore, Body, Deleted, DeletedRow, Error, ErrorKind, Fetched, Index, KeyRange, KeyRecord,
    Leases, Ledger, ListItem, Notes, Record, RenewItem, Renewal, Result, Rows, StoreOptions,
    StoreResult, Totals, Traces, Usage,
};

/// An index in a map.
#[derive(Default)]
pub struct MemIndex {
    pub rows: Arc<Mutex<BTreeMap<String, Record>>>,
    /// Deletes take effect, and are reported as failed.
    pub lose_deletes: AtomicBool,
    /// Time a write or delete takes (milliseconds). As in a database, it goes on when its caller no
    /// longer waits.
    pub write_ms: AtomicU64,
    /// How long deleted rows are kept (seconds); 0: they are not.
    pub keep_seconds: AtomicU64,
    /// The kept rows and when each was deleted. Taken after `rows`.
    pub deleted: Arc<Mutex<BTreeMap<String, (Record, SystemTime)>>>,
    pub staged: Mutex<HashMap<String, Bytes>>,
    pub usage: Mutex<Usage>,
    /// By name: its owner, and when it runs out on tokio's clock.
    pub leases: Mutex<HashMap<String, (String, tokio::time::Instant)>>,
    pub notes: Mutex<BTreeMap<String, String>>,
    pub epochs: Mutex<BTreeMap<u64, Sighting>>,
    pub fail_puts: AtomicBool,
    pub put_calls: AtomicUsize,
    pub undelete_calls: AtomicUsize,
    pub list_calls: AtomicUsize,
    /// The keys of all lookups.
    pub lookups: AtomicUsize,
    /// The pass that counts live blocks fails.
    pub fail_counts: AtomicBool,
    /// Time a lookup takes (milliseconds).
    pub lookup_ms: AtomicU64,
}

#[async_trait]
impl Rows for MemIndex {
    async fn put_many(&self, records: &[KeyRecord]) -> Result<()> {
        self.put_calls.fetch_add(1, SeqCst);
        if self.fail_puts.load(SeqCst) {
            return Err(Error::retryable(ErrorKind::Index, "index is down"));
        }
        for r in records {
            self.staged.lock().remove(&r.key);
        }
        let delay = Duration::from_millis(self.write_ms.load(SeqCst));
        let (rows, records) = (Arc::clone(&self.rows), records.to_vec());
        let deleted = Arc::clone(&self.deleted);
        let write = async move {
            tokio::time::sleep(delay).await;
            let (mut rows, mut deleted) = (rows.lock(), deleted.lock());
            for KeyRecord { key, record, .. } in records {
                deleted.remove(&key);
                rows.insert(key, record);
            }
        };
        tokio::spawn(write).await.expect("write");
        Ok(())
    }

    async fn move_rows(&self, from: &str, to: &[KeyRecord]) -> Result<u64> {
        let mut rows = self.rows.lock();
        let mut moved = 0;
        for KeyRecord { key, record, .. } in to {
            if let Some(row) = rows.get_mut(key).filter(|row| row.blob_id == from) {
                *row = record.clone();
                moved += 1;
            }
        }
        Ok(moved)
    }

    async fn get(&self, key: &str) -> Result<Option<Record>> {
        self.lookups.fetch_add(1, SeqCst);
        let delay = self.lookup_ms.load(SeqCst);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        if let Some(value) = self.staged.lock().get(key) {
            return Ok(Some(
                Record::new("", 0, value.len() as i64).with_staged(true),
            ));
        }
        Ok(self.rows.lock().get(key).cloned())
    }

    async fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Record>>> {
        let mut out = Vec::new();
        for key in keys {
            out.push(self.get(key).await?);
        }
        Ok(out)
    }

    async fn staged_value(&self, key: &str) -> Result<Option<Bytes>> {
        Ok(self.staged.lock().get(key).cloned())
    }

    async fn delete(&self, key: &str) -> Result<Usage> {
        self.delete_many(&[key.to_owned()]).await
    }

    async fn delete_many(&self, keys: &[String]) -> Result<Usage> {
        let delay = Duration::from_millis(self.write_ms.load(SeqCst));
        let (rows, keys) = (Arc::clone(&self.rows), keys.to_vec());
        let (deleted, keeps) = (Arc::clone(&self.deleted), !self.keeps_deleted().is_zero());
        let delete = async move {
            tokio::time::sleep(delay).await;
            let mut removed = Usage::default();
            for key in keys {
                let mut rows = rows.lock();
                if let Some(record) = rows.remove(&key) {
                    removed.blocks += 1;
                    removed.bytes += record.size;
                    if keeps {
                        deleted.lock().insert(key, (record, SystemTime::now()));
                    }
                }
            }
            removed
        };
        let removed = tokio::spawn(delete).await.expect("delete");
        match self.lose_deletes.load(SeqCst) {
            true => Err(Error::retryable(ErrorKind::Index, "the answer is lost")),
            false => Ok(removed),
        }
    }

    async fn list(&self, range: &KeyRange, offset: usize, limit: usize) -> Result<Vec<ListItem>> {
        self.list_calls.fetch_add(1, SeqCst);
        let rows = self.rows.lock();
        let mut keys: Vec<_> = rows.iter().filter(|(k, _)| range.contains(k)).collect();
        if range.descending {
            keys.reverse();
        }
        let page = keys.into_iter().skip(offset).take(limit);
        Ok(page
            .map(|(k, r)| ListItem::new(k.clone(), r.size, r.expires_at))
            .collect())
    }

    async fn due_for_renewal(
        &self,
        before: SystemTime,
        after: Option<&RenewItem>,
        limit: usize,
    ) -> Result<Vec<RenewItem>> {
        let mut blobs: BTreeMap<String, RenewItem> = BTreeMap::new();
        for r in self.rows.lock().values() {
            let Some(expires_at) = r.expires_at.filter(|t| *t < before) else {
                continue;
            };
            blobs.entry(r.blob_id.clone()).or_insert(
                RenewItem::new(r.blob_id.clone(), expires_at)
                    .with_end_epoch(r.end_epoch)
                    .with_deletable(r.deletable),
            );
        }
        let mut due: Vec<_> = blobs.into_values().collect();
        let order = |i: &RenewItem| (i.expires_at, i.blob_id.clone());
        due.sort_by_key(order);
        due.retain(|i| after.is_none_or(|a| order(i) > order(a)));
        due.truncate(limit);
        Ok(due)
    }

    async fn rows_of_blob(&self, blob_id: &str) -> Result<Vec<KeyRecord>> {
        let rows = self.rows.lock();
        Ok(rows
            .iter()
            .filter(|(_, r)| r.blob_id == blob_id)
            .map(|(k, r)| KeyRecord::new(k.clone(), r.clone()))
            .collect())
    }

    async fn rows_from(&self, blob_id: &str, from: u64, limit: usize) -> Result<Vec<KeyRecord>> {
        let mut rows = self.rows_of_blob(blob_id).await?;
        rows.retain(|r| u64::try_from(r.record.offset).is_ok_and(|offset| offset >= from));
        rows.sort_by_key(|r| r.record.offset);
        rows.truncate(limit);
        Ok(rows)
    }

    async fn update_blob_after_renewal(&self, blob_id: &str, renewal: &Renewal) -> Result<u64> {
        let mut n = 0;
        for r in self.rows.lock().values_mut() {
            if r.blob_id == blob_id {
                r.end_epoch = r.end_epoch.max(renewal.end_epoch);
                r.expires_at = r.expires_at.max(renewal.expires_at);
                n += 1;
            }
        }
        Ok(n)
    }
}

#[async_trait]
impl Ledger for MemIndex {
    async fn count(&self, _after: &str, _limit: usize) -> Result<Option<String>> {
        match self.fail_counts.load(SeqCst) {
            true => Err(Error::retryable(ErrorKind::Index, "counting fails")),
            false => Ok(None),
        }
    }

    async fn epochs(&self) -> Result<Vec<Sighting>> {
        Ok(self.epochs.lock().values().copied().collect())
    }

    async fn saw_epochs(&self, seen: &[Sighting]) -> Result<()> {
        let mut epochs = self.epochs.lock();
        for sighting in seen {
            let known = epochs.entry(sighting.epoch).or_insert(*sighting);
            known.first = known.first.min(sighting.first);
            known.last = known.last.max(sighting.last);
        }
        Ok(())
    }
}

#[async_trait]
impl Deleted for MemIndex {
    fn keeps_deleted(&self) -> Duration {
        Duration::from_secs(self.keep_seconds.load(SeqCst))
    }

    async fn get_with_deleted(&self, keys: &[String]) -> Result<Vec<Traces>> {
        let mut traces = Vec::new();
        for key in keys {
            let live = self.get(key).await?;
            let deleted = self
                .deleted
                .lock()
                .get(key)
                .map(|(record, _)| record.clone());
            traces.push(Traces { live, deleted });
        }
        Ok(traces)
    }

    async fn deleted(&self, keys: &[String]) -> Result<Vec<Option<DeletedRow>>> {
        let deleted = self.deleted.lock();
        let one = |key: &String| deleted.get_key_value(key).map(deleted_row);
        Ok(keys.iter().map(one).collect())
    }

    async fn list_deleted(
        &self,
        range: &KeyRange,
        since: Option<SystemTime>,
        until: Option<SystemTime>,
        limit: usize,
    ) -> Result<Vec<DeletedRow>> {
        let deleted = self.deleted.lock();
        let listed = deleted.iter().filter(|(key, (_, at))| {
            range.contains(key)
                && since.is_none_or(|since| *at >= since)
                && until.is_none_or(|until| *at < until)
        });
        Ok(listed.take(limit).map(deleted_row).collect())
    }

    async fn undelete(&self, records: &[KeyRecord]) -> Result<Vec<String>> {
        self.undelete_calls.fetch_add(1, SeqCst);
        let (mut rows, mut deleted) = (self.rows.lock(), self.deleted.lock());
        let mut back = Vec::new();
        for KeyRecord { key, record, .. } in records {
            let same = |(kept, _): &(Record, SystemTime)| kept.blob_id == record.blob_id;
            if !deleted.get(key).is_some_and(same) {
                continue;
            }
            if let (Some((kept, _)), false) = (deleted.remove(key), rows.contains_key(key)) {
                rows.insert(key.clone(), kept);
                back.push(key.clone());
            }
        }
        Ok(back)
    }
}

fn deleted_row((key, (record, at)): (&String, &(Record, SystemTime))) -> DeletedRow {
    DeletedRow {
        row: KeyRecord::new(key.clone(), record.clone()),
        deleted_at: *at,
    }
}

#[async_trait]
impl Leases for MemIndex {
    async fn try_lease(&self, name: &str, owner: &str, ttl: Duration) -> Result<bool> {
        let now = tokio::time::Instant::now();
        let mut leases = self.leases.lock();
        if matches!(leases.get(name), Some((other, until)) if other != owner && *until > now) {
            return Ok(false);
        }
        leases.insert(name.to_owned(), (owner.to_owned(), now + ttl));
        Ok(true)
    }

    async fn release_lease(&self, name: &str, owner: &str) -> Result<()> {
        let mut leases = self.leases.lock();
        leases.retain(|held, (holder, _)| held != name || holder != owner);
        Ok(())
    }
}

#[async_trait]
impl Totals for MemIndex {
    async fn usage(&self) -> Result<Usage> {
        Ok(*self.usage.lock())
    }

    async fn add_usage(&self, delta: Usage) -> Result<()> {
        let mut usage = self.usage.lock();
        usage.blocks = usage.blocks.saturating_add(delta.blocks);
        usage.bytes = usage.bytes.saturating_add(delta.bytes);
        Ok(())
    }
}

#[async_trait]
impl Notes for MemIndex {
    async fn note(&self, name: &str) -> Result<Option<String>> {
        Ok(self.notes.lock().get(name).cloned())
    }

    async fn notes(&self, prefix: &str, limit: usize) -> Result<Vec<(String, String)>> {
        let notes = self.notes.lock();
        let mut found: Vec<(String, String)> = notes
            .iter()
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(name, text)| (name.clone(), text.clone()))
            .collect();
        found.sort();
        found.truncate(limit);
        Ok(found)
    }

    async fn set_note(&self, name: &str, text: Option<&str>) -> Result<()> {
        let mut notes = self.notes.lock();
        match text {
            Some(text) => drop(notes.insert(name.to_owned(), text.to_owned())),
            None => drop(notes.remove(name)),
        }
        Ok(())
    }
}

#[async_trait]
impl Index for MemIndex {
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// A blob store in a map. Blob IDs name the content, as on Walrus.
pub struct MemStore {
    pub blobs: Mutex<HashMap<String, Bytes>>,
    /// Larger bodies are refused (bytes).
    pub max_body: AtomicU64,
    /// Time an upload takes (milliseconds).
    pub put_ms: AtomicU64,
    pub fail_puts: AtomicBool,
    pub puts: AtomicUsize,
    pub puts_running: AtomicUsize,
    pub puts_peak: AtomicUsize,
    pub epoch: AtomicU64,
    /// The requested parts of blobs: blob, offset, length.
    pub reads: Mutex<Vec<(String, u64, u64)>>,
    pub reads_running: AtomicUsize,
    /// While a test holds this for writing, reads of parts wait.
    pub hold_reads: tokio::sync::RwLock<()>,
    /// Time a part takes (milliseconds).
    pub read_ms: AtomicU64,
    pub fail_windows: AtomicBool,
    /// As an aggregator that does not know ranges: whole blobs come, where the reader keeps them.
    pub sends_whole: AtomicBool,
    /// Answers do not tell how long a blob is.
    pub hides_totals: AtomicBool,
    /// This byte of each blob is wrong in windows.
    pub wrong_in_windows: Mutex<Option<u64>>,
}

impl Default for MemStore {
    fn default() -> Self {
        MemStore {
            blobs: Mutex::default(),
            max_body: AtomicU64::new(u64::MAX),
            put_ms: AtomicU64::new(0),
            fail_puts: AtomicBool::new(false),
            puts: AtomicUsize::new(0),
            puts_running: AtomicUsize::new(0),
            puts_peak: AtomicUsize::new(0),
            epoch: AtomicU64::new(1),
            reads: Mutex::default(),
            reads_running: AtomicUsize::new(0),
            hold_reads: tokio::sync::RwLock::default(),
            read_ms: AtomicU64::new(0),
            fail_windows: AtomicBool::new(false),
            sends_whole: AtomicBool::new(false),
            hides_totals: AtomicBool::new(false),
            wrong_in_windows: Mutex::default(),
        }
    }
}

struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl MemStore {
    fn find(&self, blob_id: &str) -> Result<Bytes> {
        self.blobs
            .lock()
            .get(blob_id)
            .cloned()
            .ok_or_else(|| Error::new(ErrorKind::BlobNotFound, format!("blob {blob_id} not found")))
    }

    async fn part(&self, id: &str, offset: u64, len: u64) -> Result<Bytes> {
        self.reads.lock().push((id.to_owned(), offset, len));
        self.reads_running.fetch_add(1, SeqCst);
        let _running = Running(&self.reads_running);
        let _held = self.hold_reads.read().await;
        let takes = Duration::from_millis(self.read_ms.load(SeqCst));
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        let blob = self.find(id)?;
        let range = offset as usize..(offset + len) as usize;
        if range.end > blob.len() {
            return Err(Error::new(ErrorKind::Corrupt, "range beyond the blob"));
        }
        Ok(blob.slice(range))
    }

    /// As the answer to a range tells it.
    fn total_of(&self, id: &str) -> Option<u64> {
        let blobs = self.blobs.lock();
        let told = !self.hides_totals.load(SeqCst);
        blobs.get(id).map(|blob| blob.len() as u64).filter(|_| told)
    }

    fn as_it_comes(&self, id: &str, part: Bytes, keeps: u64) -> Fetched {
        let whole = self.blobs.lock().get(id).cloned();
        match whole.filter(|_| self.sends_whole.load(SeqCst)) {
            Some(bytes) if bytes.len() as u64 <= keeps => Fetched::whole(bytes),
            _ => {
                let mut fetched = Fetched::from(part);
                fetched.total = self.total_of(id);
                fetched
            }
        }
    }
}

fn checked(bytes: Bytes, check: Check<'_>) -> Result<Bytes> {
    check(&bytes).map_err(|reason| Error::new(ErrorKind::Corrupt, reason))?;
    Ok(bytes)
}

#[async_trait]
impl BlobStore for MemStore {
    async fn store(&self, body: Body, options: StoreOptions) -> Result<StoreResult> {
        self.puts.fetch_add(1, SeqCst);
        let running = self.puts_running.fetch_add(1, SeqCst) + 1;
        let _running = Running(&self.puts_running);
        self.puts_peak.fetch_max(running, SeqCst);
        if body.len() > self.max_body.load(SeqCst) {
            return Err(Error::new(ErrorKind::TooLarge, "413"));
        }
        tokio::time::sleep(Duration::from_millis(self.put_ms.load(SeqCst))).await;
        if self.fail_puts.load(SeqCst) {
            return Err(Error::retryable(ErrorKind::Walrus, "publisher is down"));
        }
        let bytes = body.collect().await.expect("body");
        let blob_id = blake3_id(&bytes);
        self.blobs.lock().insert(blob_id.clone(), bytes);
        let epoch = self.epoch.load(SeqCst);
        Ok(StoreResult::new(blob_id, epoch + u64::from(options.epochs))
            .with_start_epoch(Some(epoch))
            .with_cost(1)
            .with_newly_created(true))
    }

    async fn read(&self, blob_id: &str, check: Check<'_>) -> Result<Bytes> {
        checked(self.find(blob_id)?, check)
    }

    async fn read_range(&self, id: &str, offset: u64, len: u64, check: Check<'_>) -> Result<Bytes> {
        self.part(id, offset, len)
            .await
            .and_then(|part| checked(part, check))
    }

    async fn read_block(
        &self,
        id: &str,
        offset: u64,
        len: u64,
        keeps: u64,
        check: Check<'_>,
    ) -> Result<Fetched> {
        let part = self.read_range(id, offset, len, check).await?;
        Ok(self.as_it_comes(id, part, keeps))
    }

    async fn read_window(&self, id: &str, offset: u64, len: u64, keeps: u64) -> Result<Fetched> {
        if self.fail_windows.load(SeqCst) {
            return Err(Error::retryable(ErrorKind::Walrus, "no windows"));
        }
        let part = self.part(id, offset, len).await?;
        let wrong = *self.wrong_in_windows.lock();
        Ok(match wrong.and_then(|at| at.checked_sub(offset)) {
            Some(at) if at < len => {
                let mut part = part.to_vec();
                part[at as usize] ^= 1;
                Bytes::from(part).into()
            }
            _ => self.as_it_comes(id, part, keeps),
        })
    }

    async fn read_patch(&self, patch_id: &str, check: Check<'_>) -> Result<Bytes> {
        checked(self.find(patch_id)?, check)
    }
}

fn blake3_id(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..43].to_owned()
}

/// A clock that stands still until moved.
pub struct ManualClock(Mutex<SystemTime>);

impl Default for ManualClock {
    fn default() -> Self {
        ManualClock(Mutex::new(
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000),
        ))
    }
}

impl ManualClock {
    pub fn advance(&self, by: Duration) {
        *self.0.lock() += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        *self.0.lock()
    }
}

/// The Kubo key of a block: `/` + base32 of its sha2-256 multihash.
pub fn key_of(block: &[u8]) -> String {
    use sha2::Digest;
    let mut multihash = vec![0x12, 0x20];
    multihash.extend_from_slice(&sha2::Sha256::digest(block));
    format!("/{}", data_encoding::BASE32_NOPAD.encode(&multihash))
}

/// Deterministic bytes that do not compress.
pub fn noise(seed: u64, len: usize) -> Bytes {
    let mut out = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out.into()
}

/// Index and store, which a test inspects while a datastore uses them.
#[derive(Clone, Default)]
pub struct Parts {
    pub index: Arc<MemIndex>,
    pub store: Arc<MemStore>,
    pub clock: Arc<ManualClock>,
}

impl Parts {
    /// A datastore on these parts; `extra` is JSON members, each followed by a comma.
    pub fn open(&self, extra: &str) -> walrusds::WalrusDatastore {
        self.try_open(extra).expect("test datastore")
    }

    /// As [`open`](Self::open), where opening may fail.
    pub fn try_open(&self, extra: &str) -> Result<walrusds::WalrusDatastore> {
        let config = walrusds::Config::from_json(&format!(
            r#"{{{extra}"publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"i"}}"#
        ))
        .expect("test configuration");
        let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&self.clock);
        walrusds::WalrusDatastore::with_parts(
            &config,
            Arc::<MemIndex>::clone(&self.index),
            Arc::<MemStore>::clone(&self.store),
            clock,
        )
    }
}
