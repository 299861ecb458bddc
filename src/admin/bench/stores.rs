//! A publisher: a small blob, several at once, a full pack. All of them are paid for.

use std::time::Instant;

use bytes::Bytes;
use serde::Serialize;

use super::{pack_bytes, Until};
use crate::config::Config;
use crate::error::{Error, ErrorKind};
use crate::walrus::{BlobStore, Client, StoreOptions, StoreResult};

/// The length of a small blob (bytes).
pub(super) const SMALL: u64 = 1024;
/// Small blobs that are stored at a time.
pub(super) const AT_ONCE: u64 = 4;
/// A body that a stock publisher takes (bytes): tried where a pack is too long.
const STOCK: u64 = 10 << 20;

/// What was measured of a publisher.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct StoreSpeed {
    /// Its URL, without secrets.
    pub publisher: String,
    /// The length of a small blob (bytes).
    pub small_bytes: u64,
    /// The time until it was certified.
    pub small_seconds: Option<f64>,
    /// Small blobs that were stored at a time, for the next figure.
    pub at_once: u64,
    /// The time until all of them were certified.
    pub at_once_seconds: Option<f64>,
    /// The length of the pack that was stored (bytes); less than a full one if that was refused.
    pub pack_bytes: u64,
    /// The time until it was certified.
    pub pack_seconds: Option<f64>,
    /// The length of the pack that was refused as too long (bytes).
    pub refused_bytes: Option<u64>,
    /// How often the publisher asked for less (429, 503).
    pub throttled: u64,
    /// What was paid, by the publisher's answers (FROST).
    pub paid_frost: u64,
    /// Why it could not be measured to the end.
    pub error: Option<String>,
}

impl StoreSpeed {
    pub(super) fn is_complete(&self) -> bool {
        self.error.is_none() && self.pack_seconds.is_some()
    }
}

/// A blob that was stored: its ID and its length (bytes).
pub(super) type Stored = (String, u64);

/// Measures a publisher. Returns the longest blob that was stored, too.
pub(super) async fn measure(
    config: &Config,
    url: &str,
    until: &Until,
) -> (StoreSpeed, Option<Stored>) {
    let mut speed = StoreSpeed {
        publisher: crate::walrus::shown_url(url),
        small_bytes: SMALL,
        at_once: AT_ONCE,
        ..StoreSpeed::default()
    };
    let only = config.client().with_aggregators(Vec::new());
    let client = match Client::new(only.with_publishers(vec![url.to_owned()])) {
        Ok(client) => client,
        Err(e) => {
            speed.error = Some(e.to_string());
            return (speed, None);
        }
    };
    let mut options = StoreOptions::new(1);
    options.deletable = config.deletable;
    let mut stored = None;
    let work = Work {
        client: &client,
        options,
        until,
    };
    if let Err(e) = work.all(config, &mut speed, &mut stored).await {
        speed.error = Some(e);
    }
    speed.throttled = BlobStore::throttled(&client);
    (speed, stored)
}

struct Work<'a> {
    client: &'a Client,
    options: StoreOptions,
    until: &'a Until,
}

impl Work<'_> {
    async fn all(
        &self,
        config: &Config,
        speed: &mut StoreSpeed,
        stored: &mut Option<Stored>,
    ) -> Result<(), String> {
        let told = |e: Error| e.to_string();
        let (result, seconds) = self.one(SMALL).await.map_err(told)?;
        speed.paid_frost += result.cost;
        speed.small_seconds = Some(seconds);

        let began = Instant::now();
        let all = (0..AT_ONCE).map(|_| self.one(SMALL));
        for result in futures_util::future::join_all(all).await {
            speed.paid_frost += result.map_err(told)?.0.cost;
        }
        speed.at_once_seconds = Some(began.elapsed().as_secs_f64());

        let pack = pack_bytes(config);
        let mut packed = self.one(pack).await;
        speed.pack_bytes = pack;
        if packed
            .as_ref()
            .is_err_and(|e| e.kind() == ErrorKind::TooLarge)
        {
            speed.refused_bytes = Some(pack);
            if pack > STOCK {
                packed = self.one(STOCK).await;
                speed.pack_bytes = STOCK;
            }
        }
        let (result, seconds) = packed.map_err(told)?;
        speed.paid_frost += result.cost;
        speed.pack_seconds = Some(seconds);
        *stored = Some((result.blob_id, speed.pack_bytes));
        Ok(())
    }

    /// Stores a blob that nothing else holds.
    async fn one(&self, len: u64) -> Result<(StoreResult, f64), Error> {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        rand::fill(&mut bytes[..]);
        let began = Instant::now();
        let storing = Box::pin(self.client.store(Bytes::from(bytes), self.options));
        match self.until.wait(storing).await {
            Some(stored) => Ok((stored?, began.elapsed().as_secs_f64())),
            None => Err(Error::new(
                ErrorKind::Canceled,
                match self.until.is_stopped() {
                    true => format!("stopped while {len} bytes were stored, which may be paid for"),
                    false => format!(
                        "{len} bytes were not stored within {:.0} s, and may be paid for: a longer time (--seconds) measures them",
                        began.elapsed().as_secs_f64()
                    ),
                },
            )),
        }
    }
}
