//! The index: a round trip, and lookups as a node makes them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;

use super::{Times, Until};
use crate::config::IndexConfig;
use crate::datastore::Inspection;
use crate::error::Result;
use crate::index::lookup::Lookups;
use crate::index::KeyRange;

/// Lookups that run at a time.
const AT_ONCE: u64 = 128;
/// Keys that are looked up, in turn.
const KEYS: usize = 2_000;
/// The most round trips that are measured one by one.
const TRIPS: usize = 100;

/// What was measured of the index.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct IndexSpeed {
    /// `postgres` or `sqlite`.
    pub kind: &'static str,
    /// Keys of the index that were looked up; 0: it is empty, so keys were looked up that it lacks.
    pub keys: u64,
    /// A lookup of one key: a round trip to the database.
    pub trip: Times,
    /// Lookups in a second, one after another.
    pub one_per_second: f64,
    /// Lookups at a time, for the next figure.
    pub at_once: u64,
    /// Lookups in a second, so many at a time, combined as a node combines them.
    pub many_per_second: f64,
    /// Why it could not be measured to the end.
    pub error: Option<String>,
}

/// Measures the index; `None` if there was no time for it.
pub(super) async fn measure(inspection: &Inspection, until: &Until) -> Option<IndexSpeed> {
    let mut speed = IndexSpeed {
        kind: match inspection.config().index {
            IndexConfig::Postgres(_) => "postgres",
            IndexConfig::Sqlite(_) => "sqlite",
        },
        at_once: AT_ONCE,
        ..IndexSpeed::default()
    };
    if until.is_over() {
        return None;
    }
    if let Err(e) = look(inspection, until, &mut speed).await {
        speed.error = Some(e.to_string());
    }
    Some(speed)
}

async fn look(inspection: &Inspection, until: &Until, speed: &mut IndexSpeed) -> Result<()> {
    let index = inspection.index();
    let all = KeyRange::ALL.keys_alone();
    let listed = index.list(&all, 0, KEYS);
    let Some(listed) = until.wait(listed).await.transpose()? else {
        speed.error = Some("no answer in time".to_owned());
        return Ok(());
    };
    let mut keys: Vec<String> = listed.into_iter().map(|item| item.key).collect();
    speed.keys = keys.len() as u64;
    if keys.is_empty() {
        keys = (0..KEYS).map(|n| format!("/walrusds-bench-{n}")).collect();
    }
    let keys = Arc::new(keys);

    let trips = until.part(0.2);
    let mut times = Vec::new();
    while times.len() < TRIPS && !trips.is_over() {
        let began = Instant::now();
        let Some(found) = trips.wait(index.get("/walrusds-bench")).await else {
            break;
        };
        found?;
        times.push(began.elapsed());
    }
    speed.trip = Times::of(times);

    // No row is remembered: each lookup asks the index.
    let (index, ..) = inspection.parts();
    let lookups = Arc::new(Lookups::new(index, Duration::ZERO));
    speed.one_per_second = lookups_per_second(&lookups, &keys, 1, &until.part(0.5)).await?;
    speed.many_per_second = lookups_per_second(&lookups, &keys, AT_ONCE, until).await?;
    Ok(())
}

/// Lookups in a second, so many at a time.
async fn lookups_per_second(
    lookups: &Arc<Lookups>,
    keys: &Arc<Vec<String>>,
    at_once: u64,
    until: &Until,
) -> Result<f64> {
    let (next, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    // Those that have begun are waited for, so that slow ones count in full.
    let begin_until = began + until.left().mul_f64(0.8);
    let mut tasks = JoinSet::new();
    for _ in 0..at_once {
        let (next, done) = (Arc::clone(&next), Arc::clone(&done));
        let (lookups, keys) = (Arc::clone(lookups), Arc::clone(keys));
        tasks.spawn(async move {
            while Instant::now() < begin_until {
                let at = next.fetch_add(1, Relaxed) as usize % keys.len();
                lookups.find(&keys[at]).await?;
                done.fetch_add(1, Relaxed);
                // Lookups of a local index never wait: others have their turn, too.
                tokio::task::consume_budget().await;
            }
            Ok::<_, crate::Error>(())
        });
    }
    let ended = async {
        while let Some(ended) = tasks.join_next().await {
            if let Ok(ended) = ended {
                ended?;
            }
        }
        Ok::<_, crate::Error>(())
    };
    until.wait(ended).await.transpose()?;
    Ok(done.load(Relaxed) as f64 / began.elapsed().as_secs_f64().max(1e-9))
}
