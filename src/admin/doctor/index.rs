//! The index: whether it can be opened, what this node may do with it, how far away it is.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Diagnosis, Health};
use crate::config::{Config, IndexConfig};
use crate::datastore::Inspection;

const PART: &str = "index";
/// Round trips that are measured.
const TRIPS: usize = 7;
/// A round trip from which on lookups of single blocks are felt.
const FAR: Duration = Duration::from_millis(20);

/// Opens the index as it is.
pub(super) async fn open(config: Config, repo: &Path) -> (Option<Inspection>, Vec<Diagnosis>) {
    let is_file = matches!(config.index, IndexConfig::Sqlite(_));
    let missing = match &config.index {
        IndexConfig::Sqlite(path) => !path.exists(),
        IndexConfig::Postgres(_) => false,
    };
    match Inspection::open(config, repo).await {
        Ok(opened) => {
            let what = match is_file {
                true => "the SQLite file can be opened, and its tables are of this version",
                false => "the database answers, and the tables are of this version",
            };
            (Some(opened), vec![Diagnosis::good(PART, "open", what)])
        }
        Err(e) => {
            let new = missing
                || ["does not exist", "let a node open it first"]
                    .iter()
                    .any(|text| e.message().contains(text));
            let found = match new {
                true => Diagnosis::new(
                    PART,
                    "open",
                    Health::Advice,
                    e.to_string(),
                    "the first start of a node makes it",
                )
                .cure("ipfs daemon"),
                false => Diagnosis::new(
                    PART,
                    "open",
                    Health::Bad,
                    e.to_string(),
                    "without its index, a node finds no block",
                ),
            };
            (None, vec![found])
        }
    }
}

/// Looks at an open index.
pub(super) async fn look(opened: &Inspection, config: &Config) -> Vec<Diagnosis> {
    let index = opened.index();
    let mut found = Vec::new();
    let mut trips = Vec::new();
    for _ in 0..TRIPS {
        let began = Instant::now();
        if let Err(e) = index.get("/walrusds-doctor").await {
            found.push(Diagnosis::new(
                PART,
                "lookup",
                Health::Bad,
                e.to_string(),
                "blocks cannot be found",
            ));
            return found;
        }
        trips.push(began.elapsed());
    }
    trips.sort_unstable();
    let trip = trips.get(trips.len() / 2).copied().unwrap_or_default();
    let what = match trip.as_micros() {
        micros @ 0..1_000 => format!("a lookup takes {micros} µs"),
        micros => format!("a lookup takes {:.1} ms", micros as f64 / 1e3),
    };
    found.push(match trip > FAR {
        false => Diagnosis::good(PART, "round_trip", what),
        true => Diagnosis::new(
            PART,
            "round_trip",
            Health::Advice,
            what,
            "each block that is not in memory waits for it; nodes and database belong into one place",
        ),
    });
    match index.facts().await {
        Ok(facts) => found.extend(facts.into_iter().map(|fact| {
            let health = match fact.matters {
                true => Health::Warning,
                false => Health::Good,
            };
            let mut told = Diagnosis::new(PART, fact.name, health, fact.what, fact.why);
            told.cure = fact.cure;
            told
        })),
        Err(e) => found.push(Diagnosis::new(
            PART,
            "facts",
            Health::Warning,
            e.to_string(),
            "rights and settings of the database could not be read",
        )),
    }
    if let (true, Ok(seen)) = (!config.epoch_duration.is_zero(), index.epochs().await) {
        if seen.is_empty() {
            found.push(Diagnosis::new(
                PART,
                "epochs",
                Health::Advice,
                "no node has seen an epoch yet",
                "ends of storage are known from the first upload on",
            ));
        }
    }
    found
}
