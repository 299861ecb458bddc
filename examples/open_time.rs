//! How long opening a datastore takes, beside a bare connection to the same Postgres.
//!
//! Usage: `open_time POSTGRES_URL SQLITE_PATH`. Prints a Markdown table; part of `make bench`.

use std::time::{Duration, Instant};

use walrusds::{Config, WalrusDatastore};

const RUNS: usize = 30;

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(postgres), Some(sqlite)) = (args.next(), args.next()) else {
        return Err("usage: open_time POSTGRES_URL SQLITE_PATH".into());
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let connect = (0..RUNS)
        .map(|_| {
            let started = Instant::now();
            let mut client = postgres::Client::connect(&postgres, postgres::NoTls)?;
            client.simple_query("SELECT 1")?;
            Ok(started.elapsed())
        })
        .collect::<Result<Vec<_>, postgres::Error>>()?;
    let open = |index: serde_json::Value| -> Result<f64, Box<dyn std::error::Error>> {
        let mut spec = serde_json::json!({
            "publisherURL": "http://127.0.0.1:1", "aggregatorURL": "http://127.0.0.1:1",
            "table": "open_time",
        });
        for (key, value) in index.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let mut times = Vec::new();
        // The first open creates the tables and does not count.
        for run in 0..=RUNS {
            let config = Config::from_json(&spec.to_string())?;
            let started = Instant::now();
            let store = runtime.block_on(WalrusDatastore::open(config, ".".as_ref()))?;
            if run > 0 {
                times.push(started.elapsed());
            }
            runtime.block_on(store.close())?;
        }
        Ok(median(times))
    };
    let in_postgres = open(serde_json::json!({ "postgresURL": postgres }))?;
    let in_sqlite = open(serde_json::json!({ "indexPath": sqlite }))?;
    let connect = median(connect);
    println!("| what | ms |");
    println!("|---|---|");
    println!("| bare connection to Postgres and one statement | {connect:.2} |");
    println!("| open, index in Postgres | {in_postgres:.2} |");
    println!("| open, index in SQLite | {in_sqlite:.2} |");
    Ok(())
}
