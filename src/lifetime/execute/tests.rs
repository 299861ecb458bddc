use std::sync::Arc;

use super::*;
use crate::config::Config;
use crate::datastore::Inspection;
use crate::index::sqlite::{SqliteIndex, SqliteOptions};
use crate::index::{Index as _, KeyRecord, Ledger as _, Record};
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
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        r#"{{"publisherURL":"http://127.0.0.1:1","aggregatorURL":"http://127.0.0.1:1","indexPath":"i.sqlite",
             "network":{{"epochDurationSeconds":{}}},"epochs":{BOUGHT},"renewIntervalSeconds":3600,
             "renewLeadSeconds":{}}}"#,
        EPOCH.as_secs(),
        5 * EPOCH.as_secs()
    );
    let config = Config::from_json(&config).unwrap();
    let file = dir.path().join("i.sqlite");
    let index = SqliteIndex::open(SqliteOptions::new(&file, &config.table)).await;
    let index = index.unwrap();
    let blob = Blob {
        blob_id: "b".to_owned(),
        object_id: format!("0x{:064x}", 7),
        size: 1000,
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
        deletable: false,
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
        let parts = self.inspection.renewal();
        tell_epoch(parts).await;
        let mut done = HashSet::new();
        execute(parts, &mut Rounds::default(), &mut done)
            .await
            .unwrap();
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
