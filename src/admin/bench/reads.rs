//! An aggregator: the latency of a small range, and the throughput of several streams, as windows
//! of a node have it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;

use super::stores::Stored;
use super::{Times, Until};
use crate::config::Config;
use crate::datastore::Inspection;
use crate::error::Error;
use crate::index::ledger::number;
use crate::walrus::Client;

/// The length of a small range (bytes).
const SMALL: u64 = 4096;
/// The most small ranges that are read.
const SMALL_READS: usize = 40;
/// Streams at a time.
const STREAMS: [u64; 3] = [1, 4, 16];
/// Ranges of a stream (bytes): so long that a range takes a part of a second.
const RANGE_FIRST: u64 = 1 << 20;
const RANGE_LEAST: u64 = 64 << 10;
const RANGE_MOST: u64 = 4 << 20;
/// A blob of at least this length (bytes) is taken before one that was stored just now.
const LONG_ENOUGH: u64 = 32 << 20;
/// Blobs of the index among which one is chosen.
const BLOBS: usize = 64;

/// What was measured of an aggregator.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct ReadSpeed {
    /// Its URL, without secrets.
    pub aggregator: String,
    /// The blob that was read; `None` if there was none.
    pub blob_id: Option<String>,
    /// Its length, as far as it was read (bytes).
    pub blob_bytes: u64,
    /// The length of a small range (bytes).
    pub small_bytes: u64,
    /// The time of a small range at a random place.
    pub small: Times,
    /// Streams that read the blob.
    pub streams: Vec<StreamSpeed>,
    /// How often the blob was read over: beyond once, caches on the way may have answered.
    pub passes: f64,
    /// Why it could not be measured to the end.
    pub error: Option<String>,
}

/// The throughput of some streams at a time.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct StreamSpeed {
    /// Streams: requests on their way at a time.
    pub streams: u64,
    /// The length of a request (bytes).
    pub range_bytes: u64,
    /// Bytes in a second, of all together.
    pub bytes_per_second: f64,
}

impl ReadSpeed {
    pub(super) fn is_complete(&self) -> bool {
        self.error.is_none() && self.streams.len() == STREAMS.len()
    }
}

/// A blob to be read: a long one of the index that has not ended, or the one that was stored.
pub(super) async fn blob(
    inspection: &Inspection,
    stored: Option<Stored>,
    until: &Until,
) -> Option<Stored> {
    let index = inspection.index();
    let found = until.wait(async {
        let epoch = inspection.epoch().await.ok().flatten();
        let epoch = epoch.map_or(0, |(least, _)| least);
        let blobs = index.blobs_of_rows("", BLOBS).await.ok()?;
        let lives = blobs
            .into_iter()
            .filter(|blob| blob.end_epoch == 0 || number(blob.end_epoch) > epoch);
        // The sum of its blocks is at most its length.
        let known = lives.filter_map(|blob| {
            let bytes = number(blob.counted?.live.bytes);
            (bytes > 0).then_some((blob.blob_id, bytes))
        });
        known.max_by_key(|(_, bytes)| *bytes)
    });
    let found = found.await.flatten();
    match (found, stored) {
        (Some(found), Some(stored)) if found.1 < LONG_ENOUGH && found.1 < stored.1 => Some(stored),
        (found, stored) => found.or(stored),
    }
}

/// Measures an aggregator.
pub(super) async fn measure(
    config: &Config,
    url: &str,
    blob: Option<&Stored>,
    until: &Until,
) -> ReadSpeed {
    let mut speed = ReadSpeed {
        aggregator: crate::walrus::shown_url(url),
        small_bytes: SMALL,
        ..ReadSpeed::default()
    };
    let Some((blob, len)) = blob else {
        speed.error = Some(
            "there is no blob that can be read: the index has none yet (with --yes one is stored)"
                .to_owned(),
        );
        return speed;
    };
    (speed.blob_id, speed.blob_bytes) = (Some(blob.clone()), *len);
    speed.small_bytes = SMALL.min(*len);
    let only = config.client().with_publishers(Vec::new());
    let client = match Client::new(only.with_aggregators(vec![url.to_owned()])) {
        Ok(client) => Arc::new(client),
        Err(e) => {
            speed.error = Some(e.to_string());
            return speed;
        }
    };
    if let Err(e) = look(&client, until, &mut speed).await {
        speed.error = Some(e.to_string());
    }
    speed
}

async fn look(client: &Arc<Client>, until: &Until, speed: &mut ReadSpeed) -> Result<(), Error> {
    let blob: Arc<str> = speed.blob_id.as_deref().unwrap_or_default().into();
    let (len, small) = (speed.blob_bytes, speed.small_bytes);
    let smalls = until.part(0.25);
    let mut times = Vec::new();
    while times.len() < SMALL_READS && !smalls.is_over() {
        let at = rand::random_range(0..=len - small);
        let began = Instant::now();
        match smalls.wait(client.read_range(&blob, at, small)).await {
            Some(read) => drop(read?),
            None => break,
        }
        times.push(began.elapsed());
    }
    if times.is_empty() {
        speed.error = Some(match until.is_stopped() {
            true => "stopped".to_owned(),
            false => "no answer in time".to_owned(),
        });
        return Ok(());
    }
    // The first one has made the connection.
    if times.len() > 1 {
        times.remove(0);
    }
    speed.small = Times::of(times);
    let mut range = RANGE_FIRST;
    let mut read = 0;
    for (i, streams) in STREAMS.into_iter().enumerate() {
        let part = until.part(1.0 / (STREAMS.len() - i) as f64);
        if part.is_over() {
            break;
        }
        let range_bytes = range.min(len);
        let (bytes, took) = stream(client, &blob, len, streams, range_bytes, &part).await?;
        read += bytes;
        if bytes == 0 {
            let gave = "not one range came in time";
            speed.error = (!until.is_stopped()).then(|| gave.to_owned());
            break;
        }
        let bytes_per_second = bytes as f64 / took.as_secs_f64().max(1e-9);
        speed.streams.push(StreamSpeed {
            streams,
            range_bytes,
            bytes_per_second,
        });
        range = ((bytes_per_second / 8.0) as u64).clamp(RANGE_LEAST, RANGE_MOST);
    }
    speed.passes = read as f64 / len as f64;
    Ok(())
}

/// Reads ranges one after another, so many at a time. Returns the bytes that came, and the time.
async fn stream(
    client: &Arc<Client>,
    blob: &Arc<str>,
    len: u64,
    streams: u64,
    range: u64,
    until: &Until,
) -> Result<(u64, Duration), Error> {
    let (next, came) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    // Requests that have begun are waited for.
    let begin_until = began + until.left().mul_f64(0.7);
    let ranges = len.div_ceil(range);
    let mut tasks = JoinSet::new();
    for _ in 0..streams {
        let (next, came) = (Arc::clone(&next), Arc::clone(&came));
        let (client, blob) = (Arc::clone(client), Arc::clone(blob));
        tasks.spawn(async move {
            while Instant::now() < begin_until {
                let at = next.fetch_add(1, Relaxed) % ranges * range;
                let bytes = range.min(len - at);
                client.read_range(&blob, at, bytes).await?;
                came.fetch_add(bytes, Relaxed);
            }
            Ok::<_, Error>(())
        });
    }
    let ended = async {
        while let Some(ended) = tasks.join_next().await {
            if let Ok(ended) = ended {
                ended?;
            }
        }
        Ok::<_, Error>(())
    };
    until.wait(ended).await.transpose()?;
    Ok((came.load(Relaxed), began.elapsed()))
}
