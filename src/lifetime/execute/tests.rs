use std::sync::Arc;

use super::*;
use crate::config::Config;
use crate::datastore::Inspection;
use crate::index::sqlite::{SqliteIndex, SqliteOptions};
use crate::index::{Index as _, KeyRecord, Ledger as _, Record, STORAGE_LEFT};
use crate::lifetime::chain::fake::{Call, Fake};
use crate::lifetime::chain::{Chain as _, Epoch, OwnedBlob};
use crate::lifetime::present::tell_epoch;

const EPOCH: std::time::Duration = std::time::Duration::from_secs(86_400);
const NOW: u64 = 100;
const BOUGHT: u64 = 10;
/// The end that the ledger knows.
const NOTED: u64 = 103;

struct Scene {
    inspection: Inspection,
    chain: Arc<Fake>,
    _dir: tempfile::TempDir,
}

/// A blob with a live block, and its object, which ends with `end` by the chain.
async fn scene(end: u64) -> Scene {
    scene_with(end, 3600, "").await
}

/// As [`scene`], with so many seconds between two rounds, and more keys.
async fn scene_with(end: u64, interval: u64, more: &str) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let lead = match more.contains("renewLeadSeconds") {
        true => String::new(),
        false => format!(r#","renewLeadSeconds":{}"#, 5 * EPOCH.as_secs()),
    };
    let config = format!(
        r#"{{{more}"publisherURL":"http://127.0.0.1:1","aggregatorURL":"http://127.0.0.1:1","indexPath":"i.sqlite",
             "network":{{"epochDurationSeconds":{}}},"epochs":{BOUGHT},"renewIntervalSeconds":{interval}{lead}}}"#,
        EPOCH.as_secs()
    );
    let config = Config::from_json(&config).unwrap();
    let file = dir.path().join("i.sqlite");
    let index = SqliteIndex::open(SqliteOptions::new(&file, &config.table)).await;
    let index = index.unwrap();
    let blob = Blob {
        blob_id: "b".to_owned(),
        object_id: format!("0x{:064x}", 7),
        size: 1000,
        deletable: config.deletable,
        end_epoch: i64::try_from(NOTED).unwrap(),
        ..Blob::default()
    };
    let record = Record::new("b", 0, 1000).with_end_epoch(blob.end_epoch);
    index
        .place(&blob, &[KeyRecord::new("/k", record)])
        .await
        .unwrap();
    index.close().await.unwrap();
    let mut inspection = Inspection::open_to_write(config, dir.path()).await.unwrap();
    let chain = Arc::new(Fake::default());
    chain.set_epoch(Epoch {
        current: NOW,
        started_at: Some(inspection.renewal().clock.now()),
        length: EPOCH,
        max_ahead: 53,
    });
    chain.own(OwnedBlob {
        blob_id: "b".to_owned(),
        object_id: blob.object_id,
        size: 1000,
        certified: true,
        end_epoch: end,
        deletable: blob.deletable,
    });
    inspection.renewal().chain = Some(chain.clone());
    Scene {
        inspection,
        chain,
        _dir: dir,
    }
}

impl Scene {
    /// Makes one round by plan. Returns whether the blob needs nothing more in it.
    async fn round(&mut self) -> bool {
        self.round_of(&mut Rounds::default()).await
    }

    /// The same for a process that has made rounds before.
    async fn round_of(&mut self, state: &mut Rounds) -> bool {
        let parts = self.inspection.renewal();
        tell_epoch(parts).await;
        let mut done = HashSet::new();
        execute(parts, state, &mut done).await.unwrap();
        done.contains("b")
    }

    /// The ends of the blob, by the chain and by the ledger.
    async fn ends(&self) -> (u64, i64) {
        let owned = self.chain.list().await.unwrap();
        let entry = self.inspection.index().blobs(&["b".to_owned()]).await;
        let entry = entry.unwrap().remove(0).unwrap();
        (owned[0].end_epoch, entry.end_epoch)
    }
}

/// The ledger may be behind the chain: what was bought already is not bought again, also if the
/// blob still ends within the lead.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_epochs_that_are_missing_by_the_chain_are_bought() {
    let until = NOW + BOUGHT;
    for (end, extensions) in [(NOTED, 1), (NOTED + 1, 1), (NOTED + 2, 1), (until, 0)] {
        let mut scene = scene(end).await;
        assert!(scene.round().await, "{end}");
        assert_eq!(scene.chain.calls(Call::Extend), extensions, "{end}");
        let noted = i64::try_from(until).unwrap();
        assert_eq!(scene.ends().await, (until, noted), "{end}");
        scene.inspection.close().await.unwrap();
    }
}

/// A program that extends and cannot list would otherwise extend the same blob in every round.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_extended_while_the_chain_does_not_tell_where_blobs_end() {
    let mut scene = scene(NOTED).await;
    scene.chain.fail(Call::List, Failure::Unusable, 4);
    for _ in 0..2 {
        assert!(scene.round().await, "it waits for a later round");
    }
    assert_eq!(scene.chain.calls(Call::Extend), 0);
    scene.chain.fail(Call::List, Failure::Unusable, 0);
    assert!(scene.round().await);
    assert_eq!(scene.ends().await.0, NOW + BOUGHT);
    scene.inspection.close().await.unwrap();
}

/// A blob whose live blocks cannot be moved is extended before it ends: the aggregators that it
/// would have to be read from are those that have failed.
#[tokio::test(flavor = "multi_thread")]
async fn a_sparse_blob_that_cannot_be_read_is_extended_in_time() {
    // The blob ends in three days. An extension may be made although its answer is lost.
    let unclear = Some(Failure::Unclear);
    for (days, extensions, fails) in [(3, 1, None), (3, 1, unclear), (0, 0, None)] {
        let interval = (days * EPOCH.as_secs()).max(3600);
        let mut scene = scene_with(NOTED, interval, "").await;
        if let Some(failure) = fails {
            scene.chain.fail(Call::Extend, failure, 1);
        }
        let index = scene.inspection.index();
        let mut blob = index.blobs(&["b".to_owned()]).await.unwrap();
        let mut blob = blob.remove(0).unwrap();
        blob.size = 64 << 20;
        let id = ["b".to_owned()];
        let rows = index.rows_of_blob("b").await.unwrap();
        let keys: Vec<String> = rows.iter().map(|row| row.key.clone()).collect();
        index.delete_many(&keys).await.unwrap();
        index.forget_blobs(&id).await.unwrap();
        // The key is a multihash, so that a repack can check the block.
        let key = data_encoding::BASE32_NOPAD.encode(&[&[0x12, 0x20][..], &[7; 32]].concat());
        let record = Record::new("b", 0, 1000).with_end_epoch(blob.end_epoch);
        let row = KeyRecord::new(format!("/{key}"), record);
        index.place(&blob, &[row]).await.unwrap();
        assert!(scene.round().await, "{days}: extended, or it waits");
        assert_eq!(scene.chain.calls(Call::Extend), extensions, "{days}");
        if extensions > 0 {
            let until = NOW + BOUGHT;
            let noted = i64::try_from(until).unwrap();
            assert_eq!(scene.ends().await, (until, noted));
        }
        scene.inspection.close().await.unwrap();
    }
}

const REUSE: &str = r#""reuseStorage":true,"deletable":true,"walrusCommand":["none"],"#;

/// What waits for the last part of the lead must not wait beyond the last round before the end.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_waits_for_a_round_that_comes_too_late() {
    // The blob ends in three days at most.
    for (days, extensions) in [(3, 1), (0, 0)] {
        let interval = (days * EPOCH.as_secs()).max(3600);
        let mut scene = scene_with(NOTED, interval, REUSE).await;
        assert!(scene.round().await, "{days}");
        assert_eq!(scene.chain.calls(Call::Extend), extensions, "{days}");
        scene.inspection.close().await.unwrap();
    }
    for (days, waits) in [(3, false), (0, true)] {
        let interval = (days * EPOCH.as_secs()).max(3600);
        let mut scene = scene_with(NOTED, interval, "").await;
        scene.chain.fail(Call::Extend, Failure::Refused, 1);
        assert_eq!(scene.round().await, waits, "{days}");
        let parts = scene.inspection.renewal();
        let item = |n: usize| RenewItem {
            blob_id: format!("{n}"),
            deletable: false,
            end_epoch: i64::try_from(NOTED).unwrap(),
            expires_at: std::time::SystemTime::UNIX_EPOCH,
        };
        let (_, later) = by_turn(parts, (0..SPREAD_FROM).map(item).collect());
        assert_eq!(!later.is_empty(), waits, "{days}");
        scene.inspection.close().await.unwrap();
    }
}

/// A lead that is shorter than the time between two rounds lets nothing end between them.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_ends_before_the_next_round_is_due() {
    let lead = r#""renewLeadSeconds":86400,"#;
    for (interval, extensions) in [(3600, 0), (216_000, 1)] {
        let mut scene = scene_with(NOTED, interval, lead).await;
        scene.round().await;
        assert_eq!(scene.chain.calls(Call::Extend), extensions, "{interval}");
        scene.inspection.close().await.unwrap();
    }
}

struct Later(std::time::Duration);

impl crate::clock::Clock for Later {
    fn now(&self) -> std::time::SystemTime {
        std::time::SystemTime::now() + self.0
    }
}

/// A chain on which something happens while a blob is deleted.
struct Beside<F> {
    chain: Arc<Fake>,
    happens: F,
}

#[async_trait::async_trait]
impl<F, R> super::super::chain::Chain for Beside<F>
where
    F: Fn() -> R + Send + Sync + 'static,
    R: std::future::Future<Output = ()> + Send,
{
    async fn epoch(&self) -> Result<Epoch> {
        self.chain.epoch().await
    }

    async fn prices(&self) -> Result<crate::walrus::cost::Prices> {
        self.chain.prices().await
    }

    async fn extend(&self, object_id: &str, epochs: u32, shared: bool) -> Result<()> {
        self.chain.extend(object_id, epochs, shared).await
    }

    async fn delete(&self, object_ids: &[String]) -> Result<Vec<(String, Result<()>)>> {
        (self.happens)().await;
        self.chain.delete(object_ids).await
    }

    async fn list(&self) -> Result<Vec<OwnedBlob>> {
        self.chain.list().await
    }
}

/// Bytes that are stored while a blob of the same bytes is deleted are another object, which may
/// end earlier. The ledger tells of that one, or it would not be renewed in time.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_stored_while_it_is_deleted_ends_with_its_new_object() {
    let mut scene = scene_with(NOTED + 3, 3600, REUSE).await;
    let (ids, key) = (["b".to_owned()], "/k");
    let index = Arc::clone(&scene.inspection.renewal().index);
    index.delete(key).await.unwrap();
    index.set_state(&ids, BlobState::Released).await.unwrap();
    let anew = Blob {
        blob_id: "b".to_owned(),
        object_id: format!("0x{:064x}", 8),
        deletable: true,
        end_epoch: i64::try_from(NOTED).unwrap() - 1,
        ..Blob::default()
    };
    let (beside, stored) = (Arc::clone(&index), anew.clone());
    let happens = move || {
        let (index, blob) = (Arc::clone(&beside), stored.clone());
        async move {
            let record = Record::new("b", 0, 1000).with_end_epoch(blob.end_epoch);
            let row = KeyRecord::new("/k", record);
            index.place(&blob, &[row]).await.unwrap();
        }
    };
    let chain = Arc::clone(&scene.chain);
    let parts = scene.inspection.renewal();
    parts.chain = Some(Arc::new(Beside { chain, happens }));
    parts.clock = Arc::new(Later(2 * GRACE));
    scene.round().await;
    assert_eq!(scene.chain.list().await.unwrap(), [], "it was deleted");
    let entry = index.blobs(&ids).await.unwrap().remove(0).unwrap();
    assert_eq!(entry.object_id, anew.object_id);
    assert_eq!(entry.end_epoch, anew.end_epoch);
    assert_eq!(entry.state, BlobState::Live);
    scene.inspection.close().await.unwrap();
}

/// A row that comes back while dead blobs are chosen keeps its blob; one that a process marked
/// before its end is deleted by the next round.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_outlives_its_process_and_no_row() {
    for live in [false, true] {
        let mut scene = scene_with(NOTED, 3600, REUSE).await;
        let ids = ["b".to_owned()];
        let index = Arc::clone(&scene.inspection.renewal().index);
        if !live {
            index.delete("/k").await.unwrap();
        }
        for state in [BlobState::Released, BlobState::Deleting] {
            assert_eq!(index.set_state(&ids, state).await.unwrap(), 1);
        }
        scene.round().await;
        let left = scene.chain.list().await.unwrap().len();
        assert_eq!(left, usize::from(live));
        let entry = index.blobs(&ids).await.unwrap().remove(0);
        assert_eq!(
            entry.map(|blob| blob.state),
            live.then_some(BlobState::Released)
        );
        scene.inspection.close().await.unwrap();
    }
}

/// A command makes use of the storage that nodes know of.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_knows_what_storage_is_left() {
    let mut scene = scene_with(NOTED, 3600, REUSE).await;
    let index = scene.inspection.index();
    let left = format!("{}@{}", 1_u64 << 30, NOW + 2);
    index.set_note(STORAGE_LEFT, Some(&left)).await.unwrap();
    let parts = scene.inspection.renewal();
    tell_epoch(parts).await;
    let packs = |parts: &RenewalParts| parts.uploader.reuse.as_ref().unwrap().packs(1000);
    assert_eq!(packs(parts), 0);
    let stop = std::future::pending();
    crate::lifetime::once::repack_once(parts, &[], stop)
        .await
        .unwrap();
    assert_eq!(packs(parts), 1);
    scene.inspection.close().await.unwrap();
}

/// A chain whose list lags behind the last extension.
struct Lags {
    chain: Arc<Fake>,
    /// So many lists after an extension do not show it.
    lists: std::sync::atomic::AtomicUsize,
}

#[async_trait::async_trait]
impl super::super::chain::Chain for Lags {
    async fn epoch(&self) -> Result<Epoch> {
        self.chain.epoch().await
    }

    async fn prices(&self) -> Result<crate::walrus::cost::Prices> {
        self.chain.prices().await
    }

    async fn extend(&self, object_id: &str, epochs: u32, shared: bool) -> Result<()> {
        let extended = self.chain.extend(object_id, epochs, shared).await;
        self.lists.store(3, std::sync::atomic::Ordering::SeqCst);
        extended
    }

    async fn delete(&self, object_ids: &[String]) -> Result<Vec<(String, Result<()>)>> {
        self.chain.delete(object_ids).await
    }

    async fn list(&self) -> Result<Vec<OwnedBlob>> {
        let mut list = self.chain.list().await?;
        let less = |lists: usize| lists.checked_sub(1);
        let ordering = std::sync::atomic::Ordering::SeqCst;
        let hidden = self.lists.fetch_update(ordering, ordering, less);
        if hidden.is_ok() {
            list.iter_mut().for_each(|blob| blob.end_epoch = NOTED);
        }
        Ok(list)
    }
}

/// The node that answers a list may not know of the extension yet. The blob was paid for: it is not
/// stored again, and the next round finds its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_lags_behind_an_extension_costs_nothing() {
    let mut scene = scene(NOTED).await;
    let chain = Arc::clone(&scene.chain);
    let lists = 0.into();
    scene.inspection.renewal().chain = Some(Arc::new(Lags { chain, lists }));
    let until = NOW + BOUGHT;
    let mut state = Rounds::default();
    for noted in [NOTED, NOTED, NOTED, until] {
        assert!(scene.round_of(&mut state).await, "it is not stored again");
        assert_eq!(scene.chain.calls(Call::Extend), 1);
        let noted = i64::try_from(noted).unwrap();
        assert_eq!(scene.ends().await, (until, noted));
    }
    scene.inspection.close().await.unwrap();
}

/// Another wallet says of every blob that there is none. The objects of this index are not
/// forgotten for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_that_owns_nothing_of_the_index_deletes_nothing() {
    for other_wallet in [true, false] {
        let mut scene = scene_with(NOTED + 3, 3600, REUSE).await;
        let (ids, key) = (["b".to_owned()], "/k");
        let index = Arc::clone(&scene.inspection.renewal().index);
        // Another one, which lives.
        let mut other = index.blobs(&ids).await.unwrap().remove(0).unwrap();
        other.blob_id = "other".to_owned();
        other.object_id = format!("0x{:064x}", 9);
        let record = Record::new("other", 0, 1000).with_end_epoch(other.end_epoch);
        let row = KeyRecord::new("/other", record);
        index.place(&other, &[row]).await.unwrap();
        index.delete(key).await.unwrap();
        index.set_state(&ids, BlobState::Released).await.unwrap();
        let owned = scene.chain.list().await.unwrap().remove(0);
        let chain = Arc::new(Fake::default());
        chain.set_epoch(scene.chain.epoch().await.unwrap());
        if !other_wallet {
            chain.own(OwnedBlob {
                blob_id: other.blob_id.clone(),
                object_id: other.object_id.clone(),
                end_epoch: NOW + BOUGHT,
                ..owned
            });
        }
        scene.chain = Arc::clone(&chain);
        let parts = scene.inspection.renewal();
        parts.chain = Some(chain);
        parts.clock = Arc::new(Later(2 * GRACE));
        scene.round().await;
        let entry = index.blobs(&ids).await.unwrap().remove(0);
        assert_eq!(entry.is_some(), other_wallet);
        let deleted = &scene.inspection.renewal().metrics.blobs_deleted;
        assert_eq!(deleted.load(std::sync::atomic::Ordering::Relaxed), 0);
        scene.inspection.close().await.unwrap();
    }
}

/// A rebuild may have read a blob, and write its rows later.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_deleted_while_an_index_is_rebuilt() {
    let mut scene = scene_with(NOTED + 3, 3600, REUSE).await;
    let index = Arc::clone(&scene.inspection.renewal().index);
    index.delete("/k").await.unwrap();
    let ids = ["b".to_owned()];
    index.set_state(&ids, BlobState::Released).await.unwrap();
    scene.inspection.renewal().clock = Arc::new(Later(2 * GRACE));
    let ttl = std::time::Duration::from_secs(300);
    assert!(index.try_lease(REBUILD, "a list", ttl).await.unwrap());
    scene.round().await;
    assert_eq!(scene.chain.list().await.unwrap().len(), 1);
    index.release_lease(REBUILD, "a list").await.unwrap();
    scene.round().await;
    assert_eq!(scene.chain.list().await.unwrap(), []);
    assert!(index.try_lease(REBUILD, "a list", ttl).await.unwrap());
    scene.inspection.close().await.unwrap();
}

/// A chain whose deletions hang: the first run of each call fails, and the rest is not tried.
struct Hung {
    chain: Arc<Fake>,
    calls: std::sync::atomic::AtomicUsize,
}

#[async_trait::async_trait]
impl super::super::chain::Chain for Hung {
    async fn epoch(&self) -> Result<Epoch> {
        self.chain.epoch().await
    }

    async fn prices(&self) -> Result<crate::walrus::cost::Prices> {
        self.chain.prices().await
    }

    async fn extend(&self, object_id: &str, epochs: u32, shared: bool) -> Result<()> {
        self.chain.extend(object_id, epochs, shared).await
    }

    async fn delete(&self, object_ids: &[String]) -> Result<Vec<(String, Result<()>)>> {
        self.calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let hung = || crate::error::Error::retryable(ErrorKind::Walrus, "it did not end in time");
        let tried = object_ids.iter().take(20);
        Ok(tried.map(|id| (id.clone(), Err(hung()))).collect())
    }

    async fn list(&self) -> Result<Vec<OwnedBlob>> {
        self.chain.list().await
    }
}

/// Deletions that hang do not keep what is live waiting: one run of them is enough for a round.
#[tokio::test(flavor = "multi_thread")]
async fn deletions_that_hang_are_left_to_the_next_round() {
    let mut scene = scene_with(NOTED + 3, 3600, REUSE).await;
    let index = Arc::clone(&scene.inspection.renewal().index);
    let mut ids = Vec::new();
    for n in 0..2 * DELETED_AT_ONCE {
        let blob = Blob {
            blob_id: format!("dead{n:03}"),
            object_id: format!("0x{:064x}", 100 + n),
            deletable: true,
            end_epoch: i64::try_from(NOTED).unwrap(),
            ..Blob::default()
        };
        let record = Record::new(&*blob.blob_id, 0, 10).with_end_epoch(blob.end_epoch);
        let key = format!("/dead{n}");
        let row = KeyRecord::new(&*key, record);
        index.place(&blob, &[row]).await.unwrap();
        index.delete(&key).await.unwrap();
        ids.push(blob.blob_id);
    }
    index.set_state(&ids, BlobState::Released).await.unwrap();
    let hung = Arc::new(Hung {
        chain: Arc::clone(&scene.chain),
        calls: 0.into(),
    });
    let parts = scene.inspection.renewal();
    parts.chain = Some(Arc::clone(&hung) as _);
    parts.clock = Arc::new(Later(2 * GRACE));
    scene.round().await;
    assert_eq!(hung.calls.load(std::sync::atomic::Ordering::SeqCst), 1);
    scene.inspection.close().await.unwrap();
}
