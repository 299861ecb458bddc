//! How long opening a datastore takes, beside a bare connection to the same Postgres.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use walrusds::{Config, WalrusDatastore};

use crate::results::{median, Opening};
use crate::settings::Settings;

const RUNS: usize = 30;

/// Medians of many.
pub fn measure(settings: &Settings) -> Result<Opening> {
    let url = settings.postgres.as_str();
    let mut connecting = Vec::new();
    for _ in 0..RUNS {
        let started = Instant::now();
        let mut client = postgres::Client::connect(url, postgres::NoTls)?;
        client.simple_query("SELECT 1")?;
        connecting.push(started.elapsed());
    }
    let dir = settings.dir.join("open");
    std::fs::create_dir(&dir)?;
    let table = format!("open_{}", std::process::id());
    let opening = Opening {
        connect: millis(connecting)?,
        postgres: open(&dir, json!({ "postgresURL": url, "table": table }))?,
        sqlite: open(&dir, json!({ "indexPath": "index.sqlite", "table": table }))?,
    };
    std::fs::remove_dir_all(dir)?;
    Ok(opening)
}

fn open(dir: &Path, mut spec: serde_json::Value) -> Result<f64> {
    spec["publisherURL"] = json!("http://127.0.0.1:1");
    spec["aggregatorURL"] = json!("http://127.0.0.1:1");
    let spec = spec.to_string();
    let runtime = tokio::runtime::Runtime::new()?;
    let mut times = Vec::new();
    // The first open creates the tables and does not count.
    for run in 0..=RUNS {
        let config = Config::from_json(&spec)?;
        let started = Instant::now();
        let store = runtime.block_on(WalrusDatastore::open(config, dir))?;
        if run > 0 {
            times.push(started.elapsed());
        }
        runtime.block_on(store.close())?;
    }
    millis(times)
}

fn millis(times: Vec<Duration>) -> Result<f64> {
    median(times.iter().map(|t| t.as_secs_f64() * 1e3).collect()).context("nothing was timed")
}
