//! A node starts while Walrus does not answer, and reports the failure.

use kubo_tests::{noise, Index, World};
use walrus_devnet::{FaultAction, FaultRule, Op};

/// Kubo loads the root of its MFS before anything else.
#[test]
fn starts_without_aggregators() {
    let world = World::new(Index::Sqlite);
    let node = world.node();
    node.ok(["files", "mkdir", "-p", "/music/old"]);
    node.feed(
        ["files", "write", "--create", "/music/song"],
        &noise(1, 300_000),
    );
    node.ok(["files", "flush"]);
    for action in [FaultAction::Unavailable, FaultAction::Hang] {
        world.net.set_faults(FaultRule::new(action).on(Op::READS));
        assert_eq!(node.ok(["files", "ls", "/"]).trim(), "music");
        let up = node.daemon_with(&["--offline"]);
        assert_eq!(node.ok(["files", "ls", "/"]).trim(), "music");
        up.stop();
        world.net.clear_faults();
    }
    // A node also starts when every blob has lapsed.
    for blob in world.net.blobs() {
        world.net.delete_blob(&blob.blob_id);
    }
    assert_eq!(node.ok(["files", "ls", "/"]).trim(), "music");
}

/// A full journal whose publisher refuses every upload blocks no command, and the log gives the
/// cause.
#[test]
fn a_full_journal_hangs_no_command() {
    let mut world = World::new(Index::Sqlite);
    world.set("WALRUSDS_JOURNAL_PATH", "walrusds-journal");
    world.set("WALRUSDS_JOURNAL_MAX_BYTES", "3000000");
    world.set("WALRUSDS_JOURNAL_FULL_SECONDS", "3");
    world.set("WALRUSDS_PACK_IDLE_FLUSH_SECONDS", "1");
    world.set("WALRUSDS_DRAIN_TIMEOUT_SECONDS", "1");
    let node = world.node();
    let early = noise(1, 500_000);
    let cid = node.add(&early);
    let broken = FaultRule::new(FaultAction::Unavailable).on([Op::Put]);
    world.net.set_faults(broken);
    let said = node
        .try_add(&noise(2, 8 << 20))
        .expect_failure("an add that does not fit the journal");
    assert!(
        said.contains("journalFullSeconds") && said.contains("503"),
        "{said}"
    );
    assert!(said.contains("ERROR"), "the log says so, too: {said}");
    // Each of these commands puts the empty directory first.
    assert!(node.ok(["files", "ls", "/"]).trim().is_empty());
    node.assert_holds(&cid, &early);
    let up = node.daemon_with(&["--offline"]);
    node.assert_holds(&cid, &early);
    up.stop();
    world.net.clear_faults();
    let late = noise(3, 8 << 20);
    let late_cid = node.add(&late);
    node.assert_holds(&late_cid, &late);
}
