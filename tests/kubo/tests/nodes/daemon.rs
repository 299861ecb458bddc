//! The daemon: several clients at once, the gateway, a clean stop, and a power cut.

use std::thread;
use std::time::{Duration, Instant};

use kubo_tests::{assert_same, noise, run, Index, Ipfs, Node, World, LIMIT};
use walrus_devnet::{FaultAction, FaultRule, Op};

#[test]
fn daemon_preloaded_postgres() {
    daemon(&Ipfs::preloaded(), Index::Postgres, true);
}

#[test]
fn daemon_external_v0_30_sqlite() {
    // Its gateway answers suffix ranges with other bytes, whatever the datastore.
    daemon(&Ipfs::external_30(), Index::Sqlite, false);
}

const LEN: usize = 6 << 20;

fn daemon(ipfs: &Ipfs, index: Index, suffix_ranges: bool) {
    let world = World::new(index);
    let node = world.node_of(ipfs);
    let up = node.daemon();

    // Four clients add at once.
    let files: Vec<Vec<u8>> = (0..4)
        .map(|seed| noise(seed, LEN + seed as usize))
        .collect();
    let cids: Vec<String> = thread::scope(|scope| {
        let adds: Vec<_> = files
            .iter()
            .map(|file| scope.spawn(|| node.add(file)))
            .collect();
        adds.into_iter().map(|add| add.join().unwrap()).collect()
    });
    let blobs = world.net.stats().stored_blobs;
    assert!(blobs * 4 <= 4 * (LEN as u64 >> 18), "{blobs} blobs");

    // The gateway, whole files and parts, all at once.
    thread::scope(|scope| {
        for (file, cid) in files.iter().zip(&cids) {
            let up = &up;
            scope.spawn(move || {
                let path = format!("/ipfs/{cid}");
                let whole = up.get(&path, None);
                assert_eq!(whole.status, 200, "{}", whole.head);
                assert_same(&whole.body, file, "the gateway's answer");
                let (len, leaf) = (file.len(), 256 << 10);
                for (range, from, to) in [
                    ("0-0".to_owned(), 0, 1),
                    (format!("{}-{}", leaf - 3, leaf + 4), leaf - 3, leaf + 5),
                    ("1000000-3000000".to_owned(), 1_000_000, 3_000_001),
                    (format!("{}-", len - 70_000), len - 70_000, len),
                    ("-1".to_owned(), len - 1, len),
                ] {
                    if range.starts_with('-') && !suffix_ranges {
                        continue;
                    }
                    let part = up.get(&path, Some(&range));
                    assert_eq!(part.status, 206, "{range}: {}", part.head);
                    let said = format!("bytes {from}-{}/{len}", to - 1);
                    assert!(part.head.contains(&said), "{range}: {}", part.head);
                    assert_same(&part.body, &file[from..to], &range);
                }
            });
        }
    });

    // Garbage collection while others read and write.
    node.ok(["pin", "rm", &cids[0]]);
    let late = noise(9, LEN);
    let late_cid = thread::scope(|scope| {
        let gc = scope.spawn(|| node.ok(["repo", "gc", "-q"]));
        let read = scope.spawn(|| node.assert_holds(&cids[1], &files[1]));
        let add = scope.spawn(|| node.add(&late));
        let removed = gc.join().unwrap();
        assert!(removed.lines().count() >= LEN >> 18);
        read.join().unwrap();
        add.join().unwrap()
    });
    let gone = |node: &Node| {
        let said = node.fails(["block", "stat", "--offline", &cids[0]]);
        assert!(said.contains("not found"), "{said}");
    };
    let there = |node: &Node| {
        for (file, cid) in files.iter().zip(&cids).skip(1) {
            node.assert_holds(cid, file);
        }
        node.assert_holds(&late_cid, &late);
    };
    gone(&node);
    there(&node);
    node.verify();

    let said = up.stop();
    assert!(!said.to_lowercase().contains("panic"), "{said}");

    let up = node.daemon();
    gone(&node);
    there(&node);
    node.verify();
    up.stop();
    there(&node); // and without a daemon
}

#[test]
fn daemon_killed_in_the_middle_of_an_add() {
    for index in [Index::Sqlite, Index::Postgres] {
        let world = World::new(index);
        let node = world.node();
        let up = node.daemon();
        let early = noise(1, 3 << 20);
        let early_cid = node.add(&early);

        // Uploads take long enough to be hit.
        let slow = FaultAction::Latency {
            ms: 200,
            jitter_ms: 0,
        };
        world.net.set_faults(FaultRule::new(slow).on([Op::Put]));
        let late = noise(2, 32 << 20);
        let before = world.net.stats().newly_created;
        thread::scope(|scope| {
            let add = scope.spawn(|| node.try_add(&late));
            let started = Instant::now();
            while world.net.stats().newly_created < before + 3 {
                assert!(started.elapsed() < LIMIT, "the add stores nothing");
                thread::sleep(Duration::from_millis(5));
            }
            up.kill();
            let said = add
                .join()
                .unwrap()
                .expect_failure("an add to a dead daemon");
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
        up.stop();
    }
}

#[test]
fn daemon_outlives_an_outage_of_publisher_and_database() {
    let mut own = kubo_tests::pg::Postgres::start();
    let mut world = World::new(Index::Sqlite);
    world.set("WALRUSDS_POSTGRES_URL", own.url("postgres"));
    world.set("WALRUSDS_MAX_RETRIES", "1");
    let node = world.node();
    let up = node.daemon();
    let file = noise(1, 2 << 20);
    let cid = node.add(&file);

    own.down();
    let outcome = run(node.command(["add", "-Q"]), &noise(2, 1 << 20), LIMIT);
    let said = outcome.expect_failure("an add without a database");
    assert!(said.contains("index in Postgres"), "{said}");
    own.up();
    node.assert_holds(&cid, &file);

    let broken = FaultRule::new(FaultAction::Unavailable).on([Op::Put]);
    world.net.set_faults(broken);
    let said = node
        .try_add(&noise(3, 1 << 20))
        .expect_failure("an add without a publisher");
    assert!(
        said.contains(&world.net.url()) && said.contains("503"),
        "{said}"
    );
    world.net.clear_faults();

    let again = node.add(&noise(3, 1 << 20));
    node.assert_holds(&again, &noise(3, 1 << 20));
    node.verify();
    up.stop();
}
