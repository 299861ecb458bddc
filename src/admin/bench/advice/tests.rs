use super::super::{DiskSpeed, StreamSpeed, Times};
use super::*;

const PRICES: Prices = Prices {
    storage: 100_000,
    write: 20_000,
};

fn config(more: &str) -> Config {
    let text = format!(
        r#"{{"publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"i"{more}}}"#
    );
    Config::from_json(&text).unwrap()
}

fn store(small: f64, several: f64, pack: f64) -> StoreSpeed {
    StoreSpeed {
        publisher: "http://p".to_owned(),
        small_bytes: 1024,
        small_seconds: Some(small),
        at_once: 4,
        at_once_seconds: Some(several),
        pack_bytes: USUAL_PACK,
        pack_seconds: Some(pack),
        ..StoreSpeed::default()
    }
}

fn read(latency: f64, rates: [f64; 3]) -> ReadSpeed {
    let streams = [1, 4, 16].into_iter().zip(rates);
    ReadSpeed {
        aggregator: "http://a".to_owned(),
        small: Times {
            count: 9,
            median_seconds: latency,
            ..Times::default()
        },
        streams: streams
            .map(|(streams, mib)| StreamSpeed {
                streams,
                range_bytes: 1 << 20,
                bytes_per_second: mib * MIB,
            })
            .collect(),
        ..ReadSpeed::default()
    }
}

fn disk(part: &'static str, mib: f64, sync: f64) -> DiskSpeed {
    DiskSpeed {
        part,
        bytes_per_second: mib * MIB,
        sync_seconds: sync,
        ..DiskSpeed::default()
    }
}

fn of(config: &Config, bench: &Bench, topic: Topic) -> Advice {
    let all = advise(config, PRICES, bench);
    let mut found = all.into_iter().filter(|advice| advice.topic == topic);
    found
        .next()
        .unwrap_or_else(|| panic!("nothing of {topic:?}"))
}

#[test]
fn nothing_is_said_of_what_was_not_measured() {
    let said = advise(&config(""), PRICES, &Bench::default());
    // The price of packs is known without a measurement.
    let topics: Vec<Topic> = said.iter().map(|advice| advice.topic).collect();
    assert_eq!(topics, [Topic::Packs]);
    assert!(!said[0].change);
}

#[test]
fn packs_follow_the_publishers_limit_and_the_price() {
    let mut bench = Bench {
        stores: vec![store(1.0, 1.1, 9.0)],
        ..Bench::default()
    };
    let keep = of(&config(""), &bench, Topic::Packs);
    assert!(!keep.change && keep.line == r#""packTargetSizeBytes": 67108864"#);
    // 16 packs of 350 units at 120,000 FROST.
    assert!(
        keep.why.contains("0.6720 WAL") && keep.why.contains("in 9.0 s"),
        "{}",
        keep.why
    );

    let small = config(r#","packTargetSizeBytes":1048576"#);
    let larger = of(&small, &bench, Topic::Packs);
    assert!(
        larger.change && larger.line.ends_with(": 67108864"),
        "{larger:?}"
    );
    assert!(larger.why.contains("8.2330 WAL"), "{}", larger.why);

    bench.stores[0].refused_bytes = Some(USUAL_PACK);
    bench.stores[0].pack_bytes = 10 << 20;
    let smaller = of(&config(""), &bench, Topic::Packs);
    assert!(
        smaller.change && smaller.line.ends_with(": 10485760"),
        "{smaller:?}"
    );
    assert!(
        smaller.why.contains("--max-body-size 65600"),
        "{}",
        smaller.why
    );
    bench.stores[0].pack_seconds = None;
    let half = of(&config(""), &bench, Topic::Packs);
    assert!(half.line.ends_with(": 33554432"), "{half:?}");
}

#[test]
fn workers_follow_what_several_uploads_take() {
    let with = |store| Bench {
        stores: vec![store],
        ..Bench::default()
    };
    let many = of(&config(""), &with(store(1.0, 1.2, 8.0)), Topic::Workers);
    assert!(!many.change && many.line == r#""workers": 100"#, "{many:?}");
    assert!(
        many.why.contains("brings 8.0 MiB/s") && many.why.contains("800 MiB/s"),
        "{}",
        many.why
    );
    let serial = of(&config(""), &with(store(1.0, 3.9, 8.0)), Topic::Workers);
    assert!(
        serial.change && serial.line == r#""workers": 2"#,
        "{serial:?}"
    );
    let mut limited = store(1.0, 1.2, 8.0);
    limited.throttled = 3;
    let fewer = of(&config(""), &with(limited.clone()), Topic::Workers);
    assert!(fewer.change && fewer.why.contains("3 times"), "{fewer:?}");
    let as_few = of(&config(r#","workers":1"#), &with(limited), Topic::Workers);
    assert!(
        !as_few.change && as_few.line == r#""workers": 1"#,
        "{as_few:?}"
    );
    // The slower of two publishers counts.
    let mut two = with(store(0.1, 0.2, 1.0));
    two.stores.push(store(1.0, 3.9, 8.0));
    assert!(of(&config(""), &two, Topic::Workers).change);
}

#[test]
fn memory_for_reading_follows_the_streams_that_are_worth_it() {
    let with = |read| Bench {
        reads: vec![read],
        ..Bench::default()
    };
    // The default has ten windows of 8 MiB on their way.
    let keep = of(
        &config(""),
        &with(read(0.02, [20.0, 78.0, 80.0])),
        Topic::Reads,
    );
    assert!(
        !keep.change && keep.line == r#""blobCacheBytes": 268435456"#,
        "{keep:?}"
    );
    let more = of(
        &config(""),
        &with(read(0.02, [20.0, 80.0, 300.0])),
        Topic::Reads,
    );
    assert!(
        more.change && more.line == r#""blobCacheBytes": 429916160"#,
        "{more:?}"
    );
    assert!(more.why.contains("16 at a time 300"), "{}", more.why);
    // With what is advised, nothing is left to change.
    let advised = config(&format!(",{}", more.line));
    let again = of(
        &advised,
        &with(read(0.02, [20.0, 80.0, 300.0])),
        Topic::Reads,
    );
    assert!(!again.change, "{again:?}");
    let small = config(r#","blobCacheBytes":4194304"#);
    let longer = of(&small, &with(read(0.1, [20.0, 21.0, 21.0])), Topic::Reads);
    assert!(
        longer.change && longer.line.ends_with("268435456"),
        "{longer:?}"
    );
    let off = config(r#","blobCacheBytes":-1"#);
    assert!(of(&off, &with(read(0.1, [20.0, 21.0, 21.0])), Topic::Reads).change);
}

#[test]
fn the_cache_follows_the_latency() {
    let mut bench = Bench {
        reads: vec![read(0.05, [20.0, 40.0, 40.0])],
        disks: vec![disk("cache", 10.0, 0.001)],
        ..Bench::default()
    };
    let far = of(&config(""), &bench, Topic::Cache);
    assert!(
        far.change && far.line.contains("cachePath") && far.why.contains("50.0 ms"),
        "{far:?}"
    );
    let has = config(r#","cachePath":"c""#);
    assert!(
        !of(&has, &bench, Topic::Cache).change,
        "the latency alone is worth it"
    );
    bench.reads = vec![read(0.001, [20.0, 40.0, 40.0])];
    assert!(!of(&config(""), &bench, Topic::Cache).change);
    assert!(
        of(&has, &bench, Topic::Cache).change,
        "the disk is slower, and gains nothing"
    );
}

#[test]
fn the_journal_follows_what_a_put_waits_for() {
    let mut bench = Bench {
        stores: vec![store(1.5, 1.6, 8.0)],
        disks: vec![disk("repo", 100.0, 0.002)],
        ..Bench::default()
    };
    let none = of(&config(""), &bench, Topic::Journal);
    assert!(
        none.change && none.why.contains("1.5 s") && none.why.contains("2.0 ms"),
        "{none:?}"
    );
    let has = config(r#","journalPath":"j""#);
    bench.disks = vec![disk("journal", 100.0, 0.002)];
    assert!(!of(&has, &bench, Topic::Journal).change);
    bench.disks = vec![disk("journal", 100.0, 0.05)];
    let slow = of(&has, &bench, Topic::Journal);
    assert!(slow.change && slow.line.contains("SSD"), "{slow:?}");
}

#[test]
fn a_far_index_is_told() {
    let speed = |trip| IndexSpeed {
        kind: "postgres",
        trip: Times {
            count: 5,
            median_seconds: trip,
            ..Times::default()
        },
        at_once: 128,
        ..IndexSpeed::default()
    };
    let with = |trip| Bench {
        index: Some(speed(trip)),
        ..Bench::default()
    };
    assert!(!of(&config(""), &with(0.001), Topic::Index).change);
    let far = of(&config(""), &with(0.04), Topic::Index);
    assert!(
        far.change && far.line.contains("postgresURL") && far.why.contains("40.0 ms"),
        "{far:?}"
    );
}
