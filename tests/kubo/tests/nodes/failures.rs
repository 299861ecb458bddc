//! Walrus fails: the node returns an error with the cause, never a wrong byte, and leaves nothing
//! dangling.

use std::net::SocketAddr;

use kubo_tests::{assert_same, noise, Index, Ipfs, World};
use walrus_devnet::{FaultAction, FaultRule, Op, Options, Role};

#[test]
fn publisher_down() {
    publisher_down_with(&Ipfs::preloaded());
}

#[test]
fn publisher_down_v0_30_external() {
    publisher_down_with(&Ipfs::external_30());
}

fn publisher_down_with(ipfs: &Ipfs) {
    let mut world = World::new(Index::Sqlite);
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let (number, publisher) = world.net.add_endpoint(Role::Publisher, anywhere).unwrap();
    world.set("WALRUSDS_PUBLISHER_URL", publisher.clone());
    let node = world.node_of(ipfs);
    let early = noise(1, 1 << 20);
    let early_cid = node.add(&early);
    let blocks = node.refs_local();

    world.net.stop_endpoint(number);
    let outcome = node.try_add(&noise(2, 6 << 20));
    let said = outcome.expect_failure("an add without a publisher");
    assert!(said.contains(&publisher), "{said}");
    assert!(said.contains("attempt"), "{said}");
    assert!(node.refs_local() == blocks);
    node.verify();
    // Reading needs no publisher.
    node.assert_holds(&early_cid, &early);
}

#[test]
fn aggregator_serves_wrong_bytes() {
    let world = World::new(Index::Sqlite);
    let node = world.node();
    let file = noise(1, 2 << 20);
    let cid = node.add(&file);
    let reads = Op::READS;
    for action in [
        FaultAction::Corrupt { offset: 100_000 },
        FaultAction::WrongBlob { blob_id: None },
        FaultAction::Truncate { by: 1 },
        FaultAction::Oversized { by: 1 },
        FaultAction::BadGateway,
    ] {
        world
            .net
            .set_faults(FaultRule::new(action.clone()).on(reads));
        let outcome = node.run(["cat", &cid]);
        assert!(
            file.starts_with(&outcome.stdout),
            "{action:?}: wrong bytes came out"
        );
        let said = outcome.stderr.clone();
        assert!(!outcome.status.success(), "{action:?}: cat succeeded");
        assert!(said.contains(&world.net.url()), "{action:?}: {said}");
    }
    // One second aggregator with right answers is enough.
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let (number, good) = world.net.add_endpoint(Role::Aggregator, anywhere).unwrap();
    let mut two = World {
        net: world.net,
        settings: world.settings,
        database: None,
    };
    two.set(
        "WALRUSDS_AGGREGATOR_URL",
        format!("{},{good}", two.net.url()),
    );
    two.net.clear_faults();
    let other = two.node();
    assert_eq!(other.add(&file), cid);
    let corrupt = FaultAction::Corrupt { offset: 5 };
    two.net.set_faults(FaultRule::new(corrupt).on(reads).at(0));
    assert_same(&other.cat(&cid), &file, "from the other aggregator");
    two.net.stop_endpoint(number);
    other
        .run(["cat", &cid])
        .expect_failure("cat from corrupt aggregators");
    two.net.clear_faults();
    assert_same(&other.cat(&cid), &file, "after the fault");
    assert_same(&node.cat(&cid), &file, "after the fault");
    node.verify();
}

#[test]
fn publisher_with_a_low_limit() {
    let world = World::with(
        Index::Sqlite,
        Options {
            max_body: 1 << 20,
            ..Options::default()
        },
    );
    let node = world.node();
    let file = noise(1, 12 << 20);
    let cid = node.add(&file);
    node.assert_holds(&cid, &file);
    node.verify();
    let blobs = world.net.blobs();
    assert!(blobs.iter().all(|blob| blob.size <= 1 << 20));
    // A blob of three leaves fits; the engine halves packs until they fit.
    let sizes: Vec<_> = blobs.iter().map(|blob| blob.size).collect();
    assert!(
        sizes.len() <= 12 * 2 + 8,
        "{} blobs: {sizes:?}",
        sizes.len()
    );

    // One block alone is too large: the error names the cause, and nothing is left behind.
    let blocks = node.refs_local();
    let said = node.fails([
        "add",
        "-Q",
        "--chunker=size-1048576",
        "--raw-leaves=false",
        std::env::current_exe().unwrap().to_str().unwrap(),
    ]);
    assert!(said.contains(&world.net.url()), "{said}");
    assert!(said.contains("413") || said.contains("too large"), "{said}");
    assert!(node.refs_local().len() <= blocks.len() + 1);
    node.verify();
}
