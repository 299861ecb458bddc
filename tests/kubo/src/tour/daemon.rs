//! A node that serves others: several clients at once, the gateway, and all ways to stop.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use walrus_devnet::{FaultAction, FaultRule, Op};

use super::Tour;
use crate::{assert_same, noise, run, Daemon, Ipfs, Node, Response, LIMIT};

const LEN: usize = 6 << 20;

/// Versions whose gateway answers suffix ranges (`bytes=-N`) wrongly on every datastore. The step
/// shows that a node of the same program on flatfs gives the very same answer.
const WRONG_SUFFIX_RANGES: [&str; 2] = ["v0.30.0", "v0.34.1"];

/// The answer to `POST /api/v0/PATH`, with a file as the form's field.
fn post(up: &Daemon, path: &str, file: Option<&Path>) -> Vec<u8> {
    let mut command = Command::new("curl");
    command.args(["-fsS", "-X", "POST"]);
    if let Some(file) = file {
        command.arg("-F").arg(format!("file=@{}", file.display()));
    }
    command.arg(format!("{}/api/v0/{path}", up.api()));
    run(command, b"", LIMIT)
        .expect_ok("a call to the API")
        .stdout
}

/// The CID that `/api/v0/add` gives a file.
fn add_over_http(up: &Daemon, file: &Path) -> String {
    let answer = post(up, "add?cid-version=1&quieter=true", Some(file));
    let answer: serde_json::Value = serde_json::from_slice(&answer).expect("one JSON object");
    answer["Hash"].as_str().expect("a CID").to_owned()
}

/// Writes `count` files of about [`LEN`] bytes; their paths and contents.
fn files(node: &Node, seed: u64, count: u64) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    (0..count)
        .map(|i| {
            let content = noise(seed + i, LEN + i as usize);
            let path = node.scratch(&format!("file-{}", seed + i));
            fs::write(&path, &content).expect("a file");
            (path, content)
        })
        .collect()
}

/// Four clients add at once over the HTTP API, others read, list and pin; all of it is there after
/// a restart, and without a daemon.
pub fn parallel_adds(tour: &mut Tour) {
    let (node, world) = (tour.node(), &tour.world);
    let files = files(node, 100, 4);
    let up = node.daemon();
    let before = world.net.stats().stored_blobs;
    let cids: Vec<String> = thread::scope(|scope| {
        let adds: Vec<_> = files
            .iter()
            .map(|(path, _)| scope.spawn(|| add_over_http(&up, path)))
            .collect();
        adds.into_iter()
            .map(|add| add.join().expect("an add"))
            .collect()
    });
    let blobs = world.net.stats().stored_blobs - before;
    assert!(blobs * 4 <= 4 * (LEN as u64 >> 18), "{blobs} blobs");

    thread::scope(|scope| {
        for ((_, content), cid) in files.iter().zip(&cids) {
            let up = &up;
            scope.spawn(move || {
                let got = post(up, &format!("cat?arg={cid}"), None);
                assert_same(&got, content, "/api/v0/cat");
            });
        }
        // Command line clients of the same daemon.
        scope.spawn(|| node.verify());
        scope.spawn(|| {
            let small = noise(110, 50_000);
            let cid = node.add(&small);
            node.assert_holds(&cid, &small);
        });
    });
    let pins = node.ok(["pin", "ls", "--type=recursive", "-q"]);
    assert!(cids.iter().all(|cid| pins.contains(cid)), "{pins}");
    let said = up.stop();
    assert!(!said.to_lowercase().contains("panic"), "{said}");

    let there = || {
        for ((_, content), cid) in files.iter().zip(&cids) {
            node.assert_holds(cid, content);
        }
        node.verify();
    };
    let up = node.daemon();
    there();
    up.stop();
    there();
}

/// Whole files and parts of them, all at once; directories, blocks and CARs.
pub fn gateway(tour: &mut Tour) {
    let node = tour.node();
    let files = files(node, 200, 3);
    let up = node.daemon();
    thread::scope(|scope| {
        for (path, content) in &files {
            let up = &up;
            scope.spawn(move || {
                let cid = add_over_http(up, path);
                let path = format!("/ipfs/{cid}");
                let whole = up.get(&path, None);
                assert_eq!(whole.status, 200, "{}", whole.head);
                assert_same(&whole.body, content, "the gateway's answer");
                for (range, from, to) in ranges(content.len()) {
                    let part = up.get(&path, Some(&range));
                    assert!(is_part(&part, content, from, to), "{range}: {}", part.head);
                }
                let beyond = up.get(&path, Some(&format!("{}-", content.len())));
                assert_eq!(beyond.status, 416, "{}", beyond.head);
            });
        }
    });

    let (path, content) = &files[0];
    let cid = add_over_http(&up, path);
    // The last bytes.
    let (range, from) = ("-1000", content.len() - 1000);
    let part = up.get(&format!("/ipfs/{cid}"), Some(range));
    if WRONG_SUFFIX_RANGES.contains(&tour.version.as_str()) {
        same_on_flatfs(&tour.ipfs, path, &cid, range, &part);
    } else {
        assert!(
            is_part(&part, content, from, content.len()),
            "{}",
            part.head
        );
    }

    let dir = node.feed(["add", "-Q", "-w", "--stdin-name=in it"], b"hello");
    let listing = up.get(&format!("/ipfs/{dir}/"), None);
    assert!(listing.status == 200 && String::from_utf8_lossy(&listing.body).contains("in it"));
    assert_eq!(up.get(&format!("/ipfs/{dir}/in%20it"), None).body, b"hello");
    assert_eq!(up.get(&format!("/ipfs/{dir}/absent"), None).status, 404);
    let raw = up.get(&format!("/ipfs/{cid}?format=raw"), None);
    let root = node.run(["block", "get", &cid]).stdout;
    assert_same(&raw.body, &root, "the root as a raw block");
    // A CAR from the gateway is one that Kubo takes back.
    let car = up.get(&format!("/ipfs/{cid}?format=car"), None);
    assert_eq!(car.status, 200, "{}", car.head);
    let said = node.feed(["dag", "import", "--stats"], &car.body);
    assert!(said.contains(&cid), "{said}");
    up.stop();
}

/// Ranges of a file of `len` bytes: the header's value and the bytes that it selects.
fn ranges(len: usize) -> Vec<(String, usize, usize)> {
    let leaf = 256 << 10;
    vec![
        ("0-0".to_owned(), 0, 1),
        (format!("{}-{}", leaf - 3, leaf + 4), leaf - 3, leaf + 5),
        (format!("{leaf}-{}", 2 * leaf - 1), leaf, 2 * leaf),
        ("1000000-3000000".to_owned(), 1_000_000, 3_000_001),
        (format!("{}-", len - 70_000), len - 70_000, len),
        (format!("{}-{}", len - 1, len + 9), len - 1, len),
    ]
}

fn is_part(answer: &Response, content: &[u8], from: usize, to: usize) -> bool {
    let said = format!("bytes {from}-{}/{}", to - 1, content.len());
    answer.status == 206 && answer.head.contains(&said) && answer.body == content[from..to]
}

/// The gateway of a node on flatfs gives the same answer, so the datastore is not the cause.
fn same_on_flatfs(ipfs: &Ipfs, file: &Path, cid: &str, range: &str, answer: &Response) {
    let flatfs = Node::without_repo(&Ipfs {
        plugin: None,
        ..ipfs.clone()
    });
    flatfs.ok(["init", "--profile=test"]);
    let spec = flatfs.datastore_spec();
    assert!(spec.contains("flatfs"), "{spec}");
    let up = flatfs.daemon();
    assert_eq!(add_over_http(&up, file), cid);
    let there = up.get(&format!("/ipfs/{cid}"), Some(range));
    assert_eq!(there.status, answer.status, "{}", answer.head);
    assert_same(&answer.body, &there.body, "a range that flatfs gets wrong");
    up.stop();
}

/// What Prometheus scrapes. An answer that is not complete fails the step.
fn scraped(up: &Daemon) -> String {
    let mut command = Command::new("curl");
    command
        .args(["-fsS"])
        .arg(format!("{}/debug/metrics/prometheus", up.api()));
    let answer = run(command, b"", LIMIT).expect_ok("a scrape").stdout;
    String::from_utf8(answer).expect("UTF-8")
}

/// The sum of a metric over its labels.
fn sum(scraped: &str, metric: &str) -> f64 {
    let of = scraped.lines().filter_map(|line| {
        let rest = line.strip_prefix(metric)?;
        let ours = rest.starts_with('{') || rest.starts_with(' ');
        let (_, value) = rest.rsplit_once(' ').filter(|_| ours)?;
        value.parse::<f64>().ok()
    });
    of.sum()
}

/// The node's metrics are scraped all the time while four clients add and read; they tell of it.
pub fn metrics(tour: &mut Tour) {
    let node = tour.node();
    let files = files(node, 400, 4);
    let up = node.daemon();
    let before = scraped(&up);
    thread::scope(|scope| {
        let adds: Vec<_> = files
            .iter()
            .map(|(path, content)| {
                let up = &up;
                scope.spawn(move || {
                    let cid = add_over_http(up, path);
                    assert_same(
                        &post(up, &format!("cat?arg={cid}"), None),
                        content,
                        "/api/v0/cat",
                    );
                })
            })
            .collect();
        while adds.iter().any(|add| !add.is_finished()) {
            let now = scraped(&up);
            assert!(now.contains("walrusds_journal_bytes"), "{now}");
        }
    });
    let after = scraped(&up);
    let more = |metric: &str| sum(&after, metric) - sum(&before, metric);
    let bytes: usize = files.iter().map(|(_, content)| content.len()).sum();
    assert!(more("walrusds_bytes_put_total") >= bytes as f64, "{after}");
    assert!(
        more("walrusds_gets_total") >= (bytes >> 18) as f64,
        "{after}"
    );
    let times = "walrusds_operation_duration_seconds_count";
    assert!(more(times) >= more("walrusds_commits_total"), "{after}");
    let host = tour.world.net.url().replace("http://", "");
    let endpoint = format!("walrusds_endpoint_healthy{{host=\"{host}\",role=\"publisher\"}}");
    assert!(after.contains(&endpoint), "{endpoint}: {after}");
    // Kubo's own measurements of the datastore are beside them.
    assert!(after.contains("# TYPE walrusds_datastore_"), "{after}");
    up.stop();
}

/// Garbage collection while others read and write.
pub fn garbage_under_load(tour: &mut Tour) {
    let node = tour.node();
    let files = files(node, 300, 3);
    let up = node.daemon();
    let cids: Vec<String> = files
        .iter()
        .map(|(path, _)| add_over_http(&up, path))
        .collect();
    node.ok(["pin", "rm", &cids[0]]);
    thread::scope(|scope| {
        let late = noise(310, LEN);
        let add = scope.spawn(move || (node.add(&late), late));
        let gc = scope.spawn(|| node.ok(["repo", "gc", "-q"]));
        let read = scope.spawn(|| node.assert_holds(&cids[1], &files[1].1));
        let removed = gc.join().expect("gc");
        assert!(removed.lines().count() >= LEN >> 18);
        read.join().expect("a reader");
        let (cid, late) = add.join().expect("an add");
        node.assert_holds(&cid, &late);
    });
    let check = || {
        let said = node.fails(["block", "stat", "--offline", &cids[0]]);
        assert!(said.contains("not found"), "{said}");
        for i in [1, 2] {
            node.assert_holds(&cids[i], &files[i].1);
        }
        node.verify();
    };
    check();
    up.stop();
    check();
}

/// SIGTERM while a client adds: the daemon exits by itself and successfully.
pub fn terminated(tour: &mut Tour) {
    stopped_in_an_add(tour, 400, |up| {
        let said = up.stop();
        assert!(!said.to_lowercase().contains("panic"), "{said}");
    });
}

/// SIGKILL while a client adds.
pub fn killed(tour: &mut Tour) {
    stopped_in_an_add(tour, 500, Daemon::kill);
}

/// Ends a daemon in the middle of an add. Finished blocks are there, unfinished ones leave no
/// dangling row, and the add can be repeated.
fn stopped_in_an_add(tour: &mut Tour, seed: u64, stop: fn(Daemon)) {
    let (node, world) = (tour.node(), &tour.world);
    let up = node.daemon();
    let early = noise(seed, 3 << 20);
    let early_cid = node.add(&early);

    // Uploads last long enough for a signal to hit one.
    let slow = FaultAction::Latency {
        ms: 200,
        jitter_ms: 0,
    };
    world.net.set_faults(FaultRule::new(slow).on([Op::Put]));
    let late = noise(seed + 1, 32 << 20);
    let before = world.net.stats().newly_created;
    thread::scope(|scope| {
        let add = scope.spawn(|| node.try_add(&late));
        let started = Instant::now();
        while world.net.stats().newly_created < before + 3 {
            assert!(started.elapsed() < LIMIT, "the add stores nothing");
            thread::sleep(Duration::from_millis(5));
        }
        stop(up);
        let said = add
            .join()
            .expect("a client")
            .expect_failure("an add to a daemon that ends");
        assert!(!said.is_empty());
    });
    world.net.clear_faults();

    // Without a daemon first: nothing has been tidied up by a start.
    node.verify();
    node.assert_holds(&early_cid, &early);
    let pins = node.ok(["pin", "ls", "--type=recursive", "-q"]);
    assert!(pins.contains(&early_cid), "{pins}");

    let up = node.daemon();
    node.verify();
    node.assert_holds(&early_cid, &early);
    let late_cid = node.add(&late);
    node.assert_holds(&late_cid, &late);
    // The rest of the broken add is garbage, or part of the repeated one.
    node.ok(["repo", "gc", "-q"]);
    node.assert_holds(&late_cid, &late);
    node.verify();
    node.ok(["pin", "rm", &late_cid]);
    up.stop();
}
