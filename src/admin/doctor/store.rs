//! Storing a tiny blob and reading it back.

use std::time::Instant;

use super::{Diagnosis, Health};
use crate::config::Config;
use crate::lifetime::chain_of;
use crate::walrus::cost::units;
use crate::walrus::{BlobStore, Client, StoreOptions};

/// The length of the blob (bytes).
const LEN: usize = 64;

/// The price of the blob that [`Options::store`](super::Options::store) stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Price {
    /// Billing units, for one epoch.
    pub units: u64,
    /// The price without gas (FROST), where `walrusCommand` tells the network's prices.
    pub frost: Option<u64>,
}

/// Tells what storing the blob would cost.
pub async fn price_of_store(config: &Config) -> Price {
    let n_shards = u16::try_from(config.n_shards).unwrap_or(u16::MAX);
    let prices = match config.walrus_command.clone() {
        Some(command) => chain_of(command).prices().await.ok(),
        None => None,
    };
    let len = LEN as u64;
    Price {
        units: units(len, n_shards).unwrap_or(0),
        frost: prices.and_then(|prices| prices.cost(len, 1, n_shards)),
    }
}

/// Stores a blob that nothing else holds for one epoch, and reads it back from every aggregator.
/// Returns its ID.
pub(super) async fn store(config: &Config) -> (Vec<Diagnosis>, Option<String>) {
    let mut found = Vec::new();
    let mut bytes = b"walrusds doctor: ".to_vec();
    while bytes.len() < LEN {
        bytes.push(rand::random());
    }
    let bad = |what: String, why: &'static str| {
        Diagnosis::new("publisher", "store", Health::Bad, what, why)
    };
    let client = match Client::new(config.client()) {
        Ok(client) => client,
        Err(e) => return (vec![bad(e.to_string(), "nothing can be stored")], None),
    };
    let began = Instant::now();
    let mut options = StoreOptions::new(1);
    options.deletable = config.deletable;
    let stored = match client.store(bytes.clone(), options).await {
        Ok(stored) => stored,
        Err(e) => return (vec![bad(e.to_string(), "nothing can be stored")], None),
    };
    found.push(Diagnosis::good(
        "publisher",
        "store",
        format!(
            "blob {} of {LEN} bytes was stored in {:.1} s for {} FROST",
            stored.blob_id,
            began.elapsed().as_secs_f64(),
            stored.cost
        ),
    ));
    for aggregator in &config.aggregators {
        let only = config.client().with_publishers(Vec::new());
        let only = only.with_aggregators(vec![aggregator.clone()]);
        let shown = crate::walrus::shown_url(aggregator);
        let began = Instant::now();
        let same = |read: &[u8]| match read == bytes {
            true => Ok(()),
            false => Err("other bytes than were stored".to_owned()),
        };
        let read = match Client::new(only) {
            Ok(client) => BlobStore::read(&client, &stored.blob_id, &same).await,
            Err(e) => Err(e),
        };
        found.push(match read {
            Ok(_) => Diagnosis::good(
                "aggregator",
                "read_back",
                format!("{shown} gave it back after {} ms", began.elapsed().as_millis()),
            ),
            Err(e) => Diagnosis::new(
                "aggregator",
                "read_back",
                Health::Bad,
                format!("{shown}: {e}"),
                "what this publisher stores cannot be read there: they are of different networks, or the aggregator lags behind",
            )
            .cure("give publisherURL and aggregatorURL servers of one network"),
        });
    }
    (found, Some(stored.blob_id))
}
