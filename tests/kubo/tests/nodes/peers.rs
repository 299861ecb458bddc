//! Two nodes of one index that are peers: a block that waits in the journal of one reaches the
//! other by Bitswap. The lines of the configuration are those of docs/operations.md.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use kubo_tests::{assert_same, noise, pg, root, Index, Node, World, LIMIT};
use serde_json::{json, Value};
use walrus_devnet::{FaultAction, FaultRule, Op, Role};

/// The lists of peers as the documentation writes them, with one peer.
fn documented() -> Value {
    let text = std::fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let lines = text.lines().map(str::trim);
    let mut lines = lines.filter_map(|line| {
        let json = line.strip_prefix("ipfs config --json Peering.Peers '")?;
        json.strip_suffix('\'')
    });
    let line = lines.next().expect("the documentation has the line");
    serde_json::from_str(line).expect("JSON in docs/operations.md")
}

/// Gives a node a fixed swarm address; returns its ID and this address.
fn settle(node: &Node) -> (String, String) {
    let address = format!("/ip4/127.0.0.1/tcp/{}", pg::free_port());
    let addresses = json!([address]).to_string();
    node.ok(["config", "--json", "Addresses.Swarm", &addresses]);
    let id = node.ok(["config", "Identity.PeerID"]);
    (id.trim().to_owned(), address)
}

fn befriend(node: &Node, (id, address): &(String, String)) {
    let mut peers = documented();
    for (name, value) in [("ID", json!(id)), ("Addrs", json!([address]))] {
        let place = peers[0].get_mut(name).expect("a documented field");
        *place = value;
    }
    node.ok(["config", "--json", "Peering.Peers", &peers.to_string()]);
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < LIMIT, "never: {what}");
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_journalled_block_reaches_a_peer() {
    let mut world = World::journalled(Index::Postgres);
    world.set("WALRUSDS_PACK_IDLE_FLUSH_SECONDS", "1");
    let b = world.node();
    // The publisher of A is down.
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let (number, publisher) = world.net.add_endpoint(Role::Publisher, anywhere).unwrap();
    world.set("WALRUSDS_PUBLISHER_URL", publisher);
    let a = world.node();
    let down = FaultRule::new(FaultAction::Unavailable).on([Op::Put]);
    world.net.set_faults(down.at(number));
    let (at_a, at_b) = (settle(&a), settle(&b));
    befriend(&a, &at_b);
    befriend(&b, &at_a);
    for node in [&a, &b] {
        node.ok(["config", "--json", "Datastore.BlockKeyCacheSize", "0"]);
    }

    let a_up = a.daemon();
    let file = noise(1, 3 << 20);
    let cid = a.add(&file);
    // It is in the journal of A alone.
    let rows = || world.sql("SELECT count(*) FROM walrus_index WHERE size > 200000");
    assert_eq!(rows(), "0");
    let said = b.fails(["--offline", "cat", &cid]);
    assert!(said.contains("not found"), "{said}");

    let b_up = b.daemon();
    let peers = || b.ok(["swarm", "peers"]);
    wait_until("the nodes are peers", || peers().contains(&at_a.0));
    assert_same(&b.cat(&cid), &file, "by Bitswap");
    // B has the blocks now, and takes them to Walrus by its own publisher.
    wait_until("the blocks have rows", || {
        rows().parse::<u32>().unwrap() >= 12
    });
    a_up.kill();
    assert_same(&b.cat(&cid), &file, "without A");
    b_up.stop();

    // A comes back with a publisher: its journal empties, and pays for nothing again.
    let large = || {
        let blobs = world.net.blobs();
        blobs.iter().filter(|blob| blob.size > 200_000).count()
    };
    let before = large();
    world.net.clear_faults();
    let a_up = a.daemon();
    assert_same(&a.cat(&cid), &file, "after a kill");
    a_up.stop();
    assert_eq!(large(), before, "blocks with rows are not stored again");
    for node in [&a, &b] {
        node.assert_holds(&cid, &file);
        node.verify();
    }
}
