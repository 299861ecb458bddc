//! Two nodes, one table in Postgres, one Walrus, and no connection between the nodes.

use std::time::{Duration, Instant};

use kubo_tests::{noise, Index, Ipfs, World, LIMIT};

#[test]
fn nodes_share_an_index() {
    nodes_share_an_index_with(&Ipfs::preloaded());
}

/// Nodes of different versions.
#[test]
fn nodes_share_an_index_v0_30_external() {
    nodes_share_an_index_with(&Ipfs::external_30());
}

fn nodes_share_an_index_with(other: &Ipfs) {
    let world = World::new(Index::Postgres);
    let a = world.node();
    let b = world.node_of(other);
    let large = noise(1, 8 << 20);
    let large_cid = a.add(&large);
    let small_cid = a.add(b"from node A");

    // B reads what A added, without a network.
    assert_eq!(b.ok(["--offline", "cat", &small_cid]), "from node A");
    b.assert_holds(&large_cid, &large);
    assert!(a.refs_local() == b.refs_local());
    b.verify();

    // B stores it again at no cost, and pins it.
    let stored = world.net.stats().stored_bytes;
    assert_eq!(b.add(&large), large_cid);
    assert_eq!(world.net.stats().stored_bytes, stored);

    // Pins belong to one node: a block that only A has pinned is garbage to B, and B's collection
    // removes it from both.
    let removed = b.ok(["repo", "gc", "-q"]);
    assert!(removed.lines().count() >= 1, "{removed}");
    let pins = a.ok(["pin", "ls", "--type=recursive", "-q"]);
    assert!(pins.contains(&small_cid), "{pins}");
    let said = a.fails(["--offline", "cat", &small_cid]);
    assert!(said.contains("not found"), "{said}");
    // The block that B has pinned too is still there for both.
    a.assert_holds(&large_cid, &large);
    b.assert_holds(&large_cid, &large);
    a.verify();
}

#[test]
fn running_node_sees_what_another_adds_and_deletes() {
    let world = World::new(Index::Postgres);
    let a = world.node();
    let b = world.node();
    let file = noise(1, 600_000);
    let cid = a.feed(["add", "-Q", "--only-hash"], &file);

    // Kubo remembers absent blocks, unless its cache is off.
    b.ok(["config", "--json", "Datastore.BlockKeyCacheSize", "0"]);
    let up = b.daemon_with(&["--offline"]);
    let said = b.fails(["cat", &cid]);
    assert!(said.contains("not found"), "{said}");
    assert_eq!(a.add(&file), cid);
    b.assert_holds(&cid, &file);

    a.ok(["pin", "rm", &cid]);
    a.ok(["repo", "gc", "-q"]);
    // A node remembers rows for 5 s.
    let since = Instant::now();
    let said = loop {
        let outcome = b.run(["cat", &cid]);
        if !outcome.status.success() {
            break outcome.expect_failure("a command of the test");
        }
        assert!(since.elapsed() < LIMIT, "still there");
        std::thread::sleep(Duration::from_millis(200));
    };
    assert!(said.contains("not found"), "{said}");
    up.stop();

    // With the default cache the same node keeps its first answer.
    b.ok(["config", "--json", "Datastore.BlockKeyCacheSize", "null"]);
    let up = b.daemon_with(&["--offline"]);
    b.fails(["cat", &cid]);
    a.add(&file);
    b.fails(["cat", &cid]);
    up.stop();
    b.assert_holds(&cid, &file);
}
