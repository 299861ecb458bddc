//! `bench`: how fast index, publishers, aggregators and disks are, and what follows.

use std::io::IsTerminal as _;
use std::time::Duration;

use walrusds::admin::bench::{
    bench, price, Advice, Bench, DiskSpeed, IndexSpeed, Options, Price, ReadSpeed, StoreSpeed,
    Topic,
};

use super::doctor::confirmed;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{bytes, count, frost, wrapped};

/// The column in which values begin.
const AT: usize = 12;

/// Measures index, publishers, aggregators and disks, and says which settings follow
///
/// Asks your own endpoints and your own database, beside running nodes, for about a minute. At each
/// publisher five blobs of 1 KiB and one full pack are stored for one epoch, after the price was
/// shown; --no-store leaves that out, and reads a blob that the index has. Ctrl-C shows what was
/// measured until then. Exit code 3: something could not be measured.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Stores nothing
    #[arg(long)]
    no_store: bool,
    /// Does not ask before it stores
    #[arg(long, short = 'y', conflicts_with = "no_store")]
    yes: bool,
    /// How long all of it takes, about
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=3600))]
    seconds: u64,
}

pub async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    if !args.no_store && !args.yes && !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "bench asks before it stores and pays, and there is no terminal to ask on: add --yes, or --no-store"
                .to_owned(),
        ));
    }
    let (source, inspection) = context.inspect().await?;
    let mut options = Options::default().with_time(Duration::from_secs(args.seconds));
    if !args.no_store {
        let asked = async {
            let price = price(&inspection).await;
            confirmed(&said(&price), "Store them?", args.yes).await
        };
        options.store = context.or_stop("nothing was stored", asked).await?;
    }
    let mut on = |what: &str| context.note(format!("measuring {what}"));
    let measured = bench(&inspection, &source.repo, &options, &mut on, &context.stop).await;
    let closed = inspection.close().await;
    let measured = measured?;
    closed?;
    context.print(&measured, || text(&measured))?;
    if context.stop.is_cancelled() {
        context.note("interrupted: this is what was measured until then");
        return Ok(Exit::Interrupted);
    }
    Ok(Exit::findings(!measured.complete))
}

/// What is to be stored, and its price.
fn said(price: &Price) -> String {
    let by = match price.known {
        true => "",
        false => " at sample prices",
    };
    format!(
        "At each publisher, five blobs of 1 KiB and one of {} are stored for one epoch: at most {} units, {}{by} and gas. \
         The publisher's wallet pays.",
        bytes(price.pack_bytes),
        count(price.units),
        frost(price.frost)
    )
}

fn text(bench: &Bench) -> String {
    let mut text = String::new();
    match &bench.index {
        Some(index) => index_text(&mut text, index),
        None => line(&mut text, "index", "not measured"),
    }
    for disk in &bench.disks {
        disk_text(&mut text, disk);
    }
    for store in &bench.stores {
        store_text(&mut text, store);
    }
    for read in &bench.reads {
        read_text(&mut text, read);
    }
    text.push_str("\nWhat follows\n");
    for advice in &bench.advice {
        advice_text(&mut text, advice);
    }
    text
}

/// A name and a value, which goes on below itself.
fn line(text: &mut String, name: &str, value: &str) {
    text.push_str(&wrapped(&format!("{name:<AT$}{value}"), AT));
}

fn trouble(text: &mut String, error: Option<&String>) {
    if let Some(error) = error {
        line(text, "", &format!("not measured to the end: {error}"));
    }
}

fn index_text(text: &mut String, index: &IndexSpeed) {
    let keys = match index.keys {
        0 => " (of keys that it does not have: it is empty)",
        _ => "",
    };
    line(
        text,
        "index",
        &format!(
            "{}: a round trip takes {}, nine of ten at most {}",
            index.kind,
            time(index.trip.median_seconds),
            time(index.trip.p90_seconds)
        ),
    );
    line(
        text,
        "",
        &format!(
            "{} lookups/s one by one, {} at {} at a time{keys}",
            count(index.one_per_second as u64),
            count(index.many_per_second as u64),
            index.at_once
        ),
    );
    trouble(text, index.error.as_ref());
}

fn disk_text(text: &mut String, disk: &DiskSpeed) {
    let path = disk.path.display();
    match &disk.error {
        Some(_) => line(text, disk.part, &format!("{path}")),
        None => line(
            text,
            disk.part,
            &format!(
                "{path}: {}, a small synced write takes {}",
                rate(disk.bytes_per_second),
                time(disk.sync_seconds)
            ),
        ),
    }
    trouble(text, disk.error.as_ref());
}

fn store_text(text: &mut String, store: &StoreSpeed) {
    line(text, "publisher", &store.publisher);
    if let Some(seconds) = store.small_seconds {
        let several = store.at_once_seconds.map_or(String::new(), |seconds| {
            format!(", {} at once take {}", store.at_once, time(seconds))
        });
        let small = bytes(store.small_bytes);
        line(
            text,
            "",
            &format!("a blob of {small} is stored in {}{several}", time(seconds)),
        );
    }
    if let Some(refused) = store.refused_bytes {
        line(
            text,
            "",
            &format!("a pack of {} is refused as too long", bytes(refused)),
        );
    }
    if let Some(seconds) = store.pack_seconds {
        let speed = rate(store.pack_bytes as f64 / seconds.max(1e-9));
        let pack = bytes(store.pack_bytes);
        line(
            text,
            "",
            &format!("a pack of {pack} is stored in {}: {speed}", time(seconds)),
        );
    }
    if store.throttled > 0 {
        let n = store.throttled;
        line(text, "", &format!("it asked for less {n} times (429, 503)"));
    }
    line(text, "", &format!("{} were paid", frost(store.paid_frost)));
    trouble(text, store.error.as_ref());
}

fn read_text(text: &mut String, read: &ReadSpeed) {
    line(text, "aggregator", &read.aggregator);
    if read.small.count > 0 {
        line(
            text,
            "",
            &format!(
                "{} take {}, nine of ten at most {}",
                bytes(read.small_bytes),
                time(read.small.median_seconds),
                time(read.small.p90_seconds)
            ),
        );
    }
    let streams: Vec<String> = read
        .streams
        .iter()
        .map(|s| format!("{} at a time {}", s.streams, rate(s.bytes_per_second)))
        .collect();
    if !streams.is_empty() {
        line(text, "", &format!("requests: {}", streams.join(", ")));
    }
    if read.passes > 1.5 {
        line(
            text,
            "",
            &format!(
                "the blob ({}) was read {:.0} times over: caches on the way may have helped",
                bytes(read.blob_bytes),
                read.passes
            ),
        );
    }
    trouble(text, read.error.as_ref());
}

fn advice_text(text: &mut String, advice: &Advice) {
    let topic = match advice.topic {
        Topic::Packs => "packs",
        Topic::Workers => "workers",
        Topic::Reads => "reads",
        Topic::Cache => "cache",
        Topic::Journal => "journal",
        _ => "index",
    };
    let verb = if advice.change { "set" } else { "keep" };
    line(text, topic, &format!("{verb} {}", advice.line));
    line(text, "", &advice.why);
}

fn rate(bytes_per_second: f64) -> String {
    format!("{}/s", bytes(bytes_per_second as u64))
}

/// A time with two or three digits.
fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 10.0 => format!("{s:.0} s"),
        s if s >= 1.0 => format!("{s:.1} s"),
        s if s >= 0.01 => format!("{:.0} ms", s * 1e3),
        s if s >= 0.001 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} µs", s * 1e6),
    }
}
