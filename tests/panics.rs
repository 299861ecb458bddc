//! A panic behind the seams, in index or blob store: the call that meets it fails, and all other
//! calls and the background workers go on.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use testkit::mem::{key_of, noise, ManualClock, MemIndex, MemStore};
use walrusds::walrus::Check;
use walrusds::{
    Blob, BlobStore, Body, Config, Deleted, ErrorKind, Index, KeyRange, KeyRecord, Leases, Ledger,
    ListItem, Notes, Op, QueryOptions, Record, RenewItem, Renewal, Result, Rows, StoreOptions,
    StoreResult, Totals, Usage, WalrusDatastore,
};

/// Panics at the next call of the method that is armed, once.
#[derive(Clone, Default)]
struct Trap(Arc<Mutex<Option<&'static str>>>);

impl Trap {
    fn arm(&self, method: &'static str) {
        *self.0.lock() = Some(method);
    }

    fn sprung(&self) -> bool {
        self.0.lock().is_none()
    }

    fn pass(&self, method: &'static str) {
        let armed = self.0.lock().take_if(|armed| *armed == method).is_some();
        assert!(!armed, "on purpose, in {method}");
    }
}

struct Parts {
    trap: Trap,
    index: Arc<MemIndex>,
    store: Arc<MemStore>,
    clock: Arc<ManualClock>,
}

struct TrappedIndex(Arc<MemIndex>, Trap);
struct TrappedStore(Arc<MemStore>, Trap);

macro_rules! trapped {
    ($seam:ident for $type:ident { $($name:ident($($arg:ident: $ty:ty),*) -> $out:ty;)* }) => {
        #[async_trait]
        impl $seam for $type { $(async fn $name(&self, $($arg: $ty),*) -> $out {
            // Not at the first poll, so that the caller is in the midst of its work.
            tokio::task::yield_now().await;
            self.1.pass(stringify!($name));
            self.0.$name($($arg),*).await
        })* }
    };
}

trapped! {
    Rows for TrappedIndex {
        put_many(records: &[KeyRecord]) -> Result<()>;
        move_rows(from: &str, to: &[KeyRecord]) -> Result<u64>;
        get(key: &str) -> Result<Option<Record>>;
        get_many(keys: &[String]) -> Result<Vec<Option<Record>>>;
        staged_value(key: &str) -> Result<Option<Bytes>>;
        delete(key: &str) -> Result<Usage>;
        delete_many(keys: &[String]) -> Result<Usage>;
        list(range: &KeyRange, offset: usize, limit: usize) -> Result<Vec<ListItem>>;
        due_for_renewal(before: SystemTime, after: Option<&RenewItem>, limit: usize)
            -> Result<Vec<RenewItem>>;
        ending_by(epoch: i64, after: Option<&RenewItem>, limit: usize)
            -> Result<Vec<RenewItem>>;
        rows_of_blob(blob_id: &str) -> Result<Vec<KeyRecord>>;
        rows_from(blob_id: &str, from: u64, limit: usize) -> Result<Vec<KeyRecord>>;
        update_blob_after_renewal(blob_id: &str, renewal: &Renewal) -> Result<u64>;
    }
}

impl Deleted for TrappedIndex {}

trapped! {
    Ledger for TrappedIndex {
        place(blob: &Blob, rows: &[KeyRecord]) -> Result<()>;
        renewed(blob: &Blob) -> Result<u64>;
    }
}

trapped! {
    Leases for TrappedIndex {
        try_lease(name: &str, owner: &str, ttl: Duration) -> Result<bool>;
        release_lease(name: &str, owner: &str) -> Result<()>;
    }
}

trapped! {
    Totals for TrappedIndex {
        usage() -> Result<Usage>;
        add_usage(delta: Usage) -> Result<()>;
    }
}

trapped! {
    Notes for TrappedIndex {
        note(name: &str) -> Result<Option<String>>;
        set_note(name: &str, text: Option<&str>) -> Result<()>;
    }
}

trapped! {
    Index for TrappedIndex {
        close() -> Result<()>;
    }
}

trapped! {
    BlobStore for TrappedStore {
        store(body: Body, options: StoreOptions) -> Result<StoreResult>;
        read(blob_id: &str, check: Check<'_>) -> Result<Bytes>;
        read_range(id: &str, offset: u64, len: u64, check: Check<'_>) -> Result<Bytes>;
        read_patch(patch_id: &str, check: Check<'_>) -> Result<Bytes>;
    }
}

impl Parts {
    fn new() -> Self {
        Parts {
            trap: Trap::default(),
            index: Arc::default(),
            store: Arc::default(),
            clock: Arc::default(),
        }
    }

    /// `extra` is JSON members, each followed by a comma.
    fn open(&self, extra: &str) -> Arc<WalrusDatastore> {
        let config = Config::from_json(&format!(
            r#"{{{extra}"publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"i"}}"#
        ));
        let mut config = config.unwrap();
        // Every lookup reaches the index.
        config.row_ttl = Duration::ZERO;
        let opened = WalrusDatastore::with_parts(
            &config,
            Arc::new(TrappedIndex(self.index.clone(), self.trap.clone())),
            Arc::new(TrappedStore(self.store.clone(), self.trap.clone())),
            self.clock.clone(),
        );
        Arc::new(opened.unwrap())
    }
}

/// `None` for a panic that reached the caller, which the C ABI's barrier shields.
async fn outcome<T: Send + 'static>(
    call: impl Future<Output = Result<T>> + Send + 'static,
) -> Option<Result<T>> {
    let ended = tokio::time::timeout(Duration::from_secs(20), tokio::spawn(call)).await;
    ended.expect("a call that met a panic hangs").ok()
}

/// The call meets the panic in `method` and fails; made again, it succeeds.
async fn fails_once<T, C>(trap: &Trap, method: &'static str, call: impl Fn() -> C)
where
    T: Send + 'static,
    C: Future<Output = Result<T>> + Send + 'static,
{
    trap.arm(method);
    if let Some(result) = outcome(call()).await {
        let error = result.err().unwrap_or_else(|| panic!("{method}: success"));
        assert_eq!(error.kind(), ErrorKind::Panic, "{method}: {error}");
        assert!(error.message().contains("on purpose"), "{method}: {error}");
    }
    assert!(trap.sprung(), "{method} was not called");
    let again = outcome(call()).await;
    assert!(again.is_some_and(|r| r.is_ok()), "{method}: not usable");
}

async fn read_all(ds: Arc<WalrusDatastore>) -> Result<usize> {
    let mut query = ds.query(QueryOptions::default())?;
    let mut n = 0;
    loop {
        let page = query.next_page().await?;
        if page.is_empty() {
            return Ok(n);
        }
        for entry in page {
            entry.value.expect("values were asked for")?;
            n += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_meets_a_panic_fails_alone() {
    let parts = Parts::new();
    let ds = parts.open("");
    let trap = &parts.trap;
    let block = noise(1, 1000);
    let key = key_of(&block);
    let put = || {
        let (ds, key, block) = (ds.clone(), key.clone(), block.clone());
        async move {
            ds.delete(&key).await?;
            ds.put(&key, block).await
        }
    };
    for method in ["get_many", "store", "place", "delete"] {
        fails_once(trap, method, put).await;
        assert_eq!(ds.get(&key).await.unwrap().as_ref(), Some(&block));
    }
    let two_deletes = || {
        let ds = ds.clone();
        async move {
            ds.commit(vec![Op::Delete("/x".into()), Op::Delete("/y".into())])
                .await
        }
    };
    fails_once(trap, "delete_many", two_deletes).await;
    let get = || {
        let (ds, key) = (ds.clone(), key.clone());
        async move { ds.get(&key).await }
    };
    fails_once(trap, "get", get).await;
    // A block that is not in memory.
    let other = noise(2, 1000);
    let other_key = key_of(&other);
    ds.put(&other_key, other).await.unwrap();
    let get_other = || {
        let (ds, key) = (ds.clone(), other_key.clone());
        async move { ds.get(&key).await }
    };
    fails_once(trap, "read_range", get_other).await;
    let has = || {
        let (ds, key) = (ds.clone(), key.clone());
        async move { ds.has(&key).await }
    };
    fails_once(trap, "get", has).await;
    fails_once(trap, "list", || read_all(ds.clone())).await;
    let usage = || {
        let ds = ds.clone();
        async move { ds.disk_usage().await }
    };
    fails_once(trap, "usage", usage).await;
    assert_eq!(read_all(ds.clone()).await.unwrap(), 2);
    assert!(!ds.metrics().is_empty());
    let close = outcome({
        let ds = ds.clone();
        async move { ds.close().await }
    });
    assert!(close.await.is_some_and(|r| r.is_ok()));
}

/// Writers that share a pack with the panic get an error; no keys stay locked.
#[tokio::test(flavor = "multi_thread")]
async fn writers_of_a_pack_that_panics_can_write_again() {
    let parts = Parts::new();
    parts
        .store
        .put_ms
        .store(30, std::sync::atomic::Ordering::SeqCst);
    let ds = parts.open("");
    for method in ["store", "place"] {
        parts.trap.arm(method);
        for round in 0..2 {
            let puts = (0..20).map(|n| {
                let ds = ds.clone();
                outcome(async move { ds.put(&format!("/{n}"), noise(n, 100)).await })
            });
            let failed = futures_util::future::join_all(puts).await;
            let failed: Vec<_> = failed
                .into_iter()
                .filter_map(|r| r.expect("no panic reaches a writer").err())
                .collect();
            assert_eq!(failed.is_empty(), round == 1, "{failed:?}");
            assert!(
                failed.iter().all(|e| e.kind() == ErrorKind::Panic),
                "{failed:?}"
            );
        }
    }
    assert_eq!(read_all(ds).await.unwrap(), 20);
}

/// The panic strikes the background workers: time jumps ahead when no task is ready.
#[tokio::test(start_paused = true)]
async fn background_workers_outlive_a_panic() {
    const RENEWING: &str = r#""epochs":2,"epochDurationSeconds":3600,"renewIntervalSeconds":10,
        "renewLeadSeconds":3000,"#;
    let parts = Parts::new();
    let ds = parts.open(RENEWING);
    let counter = |name: &str| {
        let all = ds.metrics();
        all.iter().find(|(n, _)| *n == name).unwrap().1
    };
    let block = noise(7, 1000);
    ds.put(&key_of(&block), block).await.unwrap();
    for method in [
        "try_lease",
        "due_for_renewal",
        "rows_of_blob",
        "read",
        "store",
        "renewed",
        "ending_by",
        "set_note",
    ] {
        parts.trap.arm(method);
        // Due again: less than the lead is left of two epochs.
        parts.clock.advance(Duration::from_secs(4600));
        parts
            .store
            .epoch
            .fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let before = counter("renewals");
        let renewed = async {
            while !parts.trap.sprung() || counter("renewals") == before {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        };
        let patience = Duration::from_secs(12 * 3600);
        let renewed = tokio::time::timeout(patience, renewed).await;
        assert!(renewed.is_ok(), "no renewal after a panic in {method}");
    }
    let mut log = std::iter::from_fn(|| ds.next_log_line());
    assert!(
        log.any(|line| line.message.contains("on purpose")),
        "the panics were logged"
    );

    let other = noise(8, 500);
    parts.trap.arm("add_usage");
    ds.put(&key_of(&other), other).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(parts.trap.sprung());
    let usage = *parts.index.usage.lock();
    assert_eq!(
        (usage.blocks, usage.bytes),
        (2, 1500),
        "flushed after the panic"
    );
    parts.trap.arm("release_lease");
    ds.close().await.unwrap();
}
