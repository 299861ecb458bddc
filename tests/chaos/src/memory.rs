//! The engine on an index and a network in memory, both behind wrappers that fail: as many
//! operations as the machine can do.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use walrusds::clock::SystemClock;
use walrusds::{Config, WalrusDatastore};

use crate::workload::{Client, Manner, Tally};
use crate::{Counts, Settings};
use testkit::faulty::{Fault, Faults, FaultyIndex, FaultyStore, Fuse};
use testkit::mem::Parts;

const CLIENTS: usize = 256;
/// Lives of a node; every other one ends with a crash.
const LIVES: u64 = 8;

/// Runs until the given number of writes is acknowledged.
pub async fn run(settings: &Settings, writes: u64, lies: bool, tally: &Tally) -> Counts {
    let manner = Manner {
        batch: 16,
        length: 96,
        give_up: 0.03,
        damage: true,
        lies,
    };
    let mut rates: Vec<(Fault, f64)> = Fault::HONEST.map(|f| (f, 0.02)).into();
    if lies {
        rates.extend(Fault::LIES.map(|f| (f, 0.02)));
    }
    let faults = Arc::new(Faults::seeded(
        settings.seed,
        rates,
        Duration::from_millis(5),
    ));
    let parts = Parts::default();
    let config = settings.config(serde_json::json!({
        "publisherURL": "http://p", "aggregatorURL": "http://a", "indexPath": "i",
        "packTargetSizeBytes": 65536,
    }));
    let config = Config::from_json(&config.to_string()).expect("configuration");
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|id| Client::new(id, settings.seed, manner.length))
        .collect();
    for life in 1..=LIVES {
        let fuse = Arc::new(Fuse::default());
        let (i, s) = (Arc::clone(&parts.index), Arc::clone(&parts.store));
        let index = FaultyIndex::new(i, Arc::clone(&faults), Arc::clone(&fuse));
        let store = FaultyStore::new(s, Arc::clone(&faults), Arc::clone(&fuse));
        let (index, store) = (Arc::new(index), Arc::new(store));
        let ds = WalrusDatastore::with_parts(&config, index, store, Arc::new(SystemClock))
            .expect("opening");
        let stop = CancellationToken::new();
        let target = writes * life / LIVES;
        let crash = life % 2 == 1;
        let working = clients.iter_mut().map(|client| {
            let (ds, manner, stop) = (&ds, &manner, &stop);
            async move {
                while tally.writes.load(Relaxed) < target && !stop.is_cancelled() {
                    client.act(ds, manner, tally, stop).await;
                }
                if crash {
                    stop.cancel();
                }
            }
        });
        crate::together(working).await;
        if crash {
            fuse.blow();
        } else if let Err(e) = ds.close().await {
            panic!("closing: {e}");
        }
        drop(ds);
        fuse.idle().await;

        // Another process finds the state that this one left.
        let ds = WalrusDatastore::with_parts(
            &config,
            Arc::clone(&parts.index) as _,
            Arc::clone(&parts.store) as _,
            Arc::new(SystemClock),
        )
        .expect("opening");
        for client in &mut clients {
            client.settle();
            if !lies {
                client.verify(&ds, tally).await;
            }
        }
        ds.close().await.expect("closing without faults");
        let used: HashSet<String> = parts
            .index
            .rows
            .lock()
            .values()
            .map(|row| row.blob_id.clone())
            .collect();
        parts.store.blobs.lock().retain(|id, _| used.contains(id));
    }
    let mut counts = BTreeMap::new();
    for ((_, fault), n) in faults.struck() {
        *counts.entry(format!("{fault:?}")).or_default() += n;
    }
    *counts.entry("Crash".to_owned()).or_default() += LIVES / 2;
    counts
}
