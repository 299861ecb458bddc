//! The real client on a local Walrus that misbehaves, with a real index.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use walrus_devnet::{Devnet, FaultAction, FaultPlan, FaultRule, Loss, Op, Options};
use walrusds::{Config, WalrusDatastore};

use crate::backend::Backend;
use crate::corruptor::Corruptor;
use crate::crash::READ_CACHE;
use crate::workload::{Client, Manner, Tally};
use crate::{Counts, Settings};

const CLIENTS: usize = 96;
const LIVES: u64 = 3;

/// The faults on the way to the network, and their rates.
fn plan(seed: u64) -> FaultPlan {
    let on = |ops: &[Op], action, probability| {
        FaultRule::new(action)
            .on(ops.iter().copied())
            .with_probability(probability)
    };
    let both = [Op::Put, Op::Range];
    let puts = [Op::Put];
    let reads = [Op::Range];
    let message = "out of gas".to_owned();
    let rules = vec![
        on(&both, FaultAction::Overloaded { retry_after: None }, 0.02),
        on(&both, FaultAction::Internal, 0.02),
        on(&both, FaultAction::Unavailable, 0.02),
        on(&both, FaultAction::BadGateway, 0.01),
        on(&both, FaultAction::Reset { after: 100 }, 0.01),
        on(&both, FaultAction::Hang, 0.0005),
        on(
            &both,
            FaultAction::Latency {
                ms: 0,
                jitter_ms: 20,
            },
            0.1,
        ),
        on(&puts, FaultAction::Unconfirmed, 0.01),
        on(&puts, FaultAction::ErrorResult { message }, 0.02),
        on(&puts, FaultAction::MarkedInvalid, 0.005),
        on(&puts, FaultAction::BodyLimit { bytes: 8000 }, 0.02),
        on(&puts, FaultAction::AnswerLost { how: Loss::Cut }, 0.02),
        on(
            &puts,
            FaultAction::AnswerLost {
                how: Loss::Unconfirmed,
            },
            0.01,
        ),
        on(&reads, FaultAction::NotFound, 0.002),
        on(
            &reads,
            FaultAction::CutBody {
                after: 10,
                reset: false,
            },
            0.01,
        ),
        on(
            &reads,
            FaultAction::CutBody {
                after: 10,
                reset: true,
            },
            0.01,
        ),
        on(&reads, FaultAction::Stall { after: 5 }, 0.0005),
        on(&reads, FaultAction::Truncate { by: 3 }, 0.01),
        on(&reads, FaultAction::Oversized { by: 3 }, 0.01),
        on(&reads, FaultAction::Corrupt { offset: 17 }, 0.02),
        on(&reads, FaultAction::WrongBlob { blob_id: None }, 0.01),
        on(&reads, FaultAction::IgnoreRange, 0.02),
    ];
    FaultPlan { seed, rules }
}

/// Runs until the given number of writes is acknowledged: without caches, or with a write journal
/// and a read cache that a corruptor damages meanwhile.
pub async fn run(
    settings: &Settings,
    backend: &Backend,
    journalled: bool,
    writes: u64,
    tally: &Tally,
) -> Counts {
    let net = Devnet::start(Options {
        cheap_ids: true,
        max_body: 64 << 20,
        publisher_concurrency: 0,
        ..Options::default()
    })
    .await
    .expect("local Walrus");
    let repo = tempfile::tempdir().expect("directory");
    let mut config = settings.config(serde_json::json!({
        "publisherURL": net.url(), "aggregatorURL": net.url(), "requestTimeoutSeconds": 1,
        "packTargetSizeBytes": 16_384, "maxRetries": 2, "blobCacheBytes": 1_000_000,
    }));
    if journalled {
        // Alone: with it, half of the reads do not meet the faults on the way.
        config["cachePath"] = READ_CACHE.into();
        config["cacheBytes"] = 1_000_000.into();
        config["journalPath"] = "write-journal".into();
        config["packIdleFlushSeconds"] = 1.into();
    }
    backend.configure(&mut config);
    let config = Config::from_json(&config.to_string()).expect("configuration");
    let manner = Manner {
        batch: 32,
        length: 256,
        give_up: 0.03,
        damage: true,
        lies: false,
    };
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|id| Client::new(id, settings.seed, manner.length))
        .collect();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let corruptor = Corruptor::start(repo.path().join(READ_CACHE), settings.seed);
    for life in 1..=LIVES {
        let open = || WalrusDatastore::open(config.clone(), repo.path());
        let ds = open().await.expect("opening");
        net.set_faults(plan(settings.seed + life));
        let stop = CancellationToken::new();
        let target = writes * life / LIVES;
        let working = clients.iter_mut().map(|client| {
            let (ds, manner, stop) = (&ds, &manner, &stop);
            async move {
                while tally.writes.load(Relaxed) < target {
                    client.act(ds, manner, tally, stop).await;
                }
            }
        });
        crate::together(working).await;
        for report in net.faults() {
            let action = serde_json::to_value(&report.rule.action).expect("JSON");
            let kind = action["type"].as_str().unwrap_or("?").to_owned();
            *counts.entry(kind).or_default() += report.fired;
        }
        net.clear_faults();
        ds.close().await.expect("closing");
        let ds = Arc::new(open().await.expect("opening"));
        let verifying = clients.iter_mut().map(|client| {
            client.settle();
            client.verify(&ds, tally)
        });
        crate::together(verifying).await;
        ds.close().await.expect("closing");
    }
    counts.insert("damages to the cache".to_owned(), corruptor.stop());
    counts
}
