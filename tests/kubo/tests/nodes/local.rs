//! What was written or read here is read here, also while no aggregator answers.

use std::fs;
use std::path::Path;

use kubo_tests::{assert_same, noise, tree, Index, Node, World};
use serde_json::json;
use walrus_devnet::{FaultAction, FaultRule, Op};

/// Requests for blobs so far.
fn reads(world: &World) -> u64 {
    let stats = world.net.stats();
    let of = |op: &Op| stats.by_op.get(op).copied().unwrap_or(0);
    Op::READS.iter().map(of).sum()
}

/// How many files of a directory in the repo have this ending.
fn files(node: &Node, dir: &str, ending: &str) -> usize {
    let entries = fs::read_dir(node.repo().join(dir)).expect("a directory in the repo");
    let names = entries.map(|entry| entry.expect("an entry").path());
    names
        .filter(|path| path.extension().is_some_and(|e| e == ending))
        .count()
}

/// All is on Walrus, and the files of the journal are files of the cache.
#[track_caller]
fn assert_uploaded(node: &Node) {
    assert_eq!(files(node, "walrusds-journal", "segment"), 0);
    assert_eq!(files(node, "walrusds-cache", "retiring"), 0);
    assert!(files(node, "walrusds-cache", "blocks") > 0);
}

/// A tree with a file of many blocks, many small files, and directories.
fn write_tree(dir: &Path) {
    for n in 0..6 {
        let sub = dir.join(format!("directory {n}/deeper"));
        fs::create_dir_all(&sub).expect("a directory");
        for m in 0..8 {
            let small = noise(100 * n + m, 3000);
            fs::write(sub.join(format!("file {m}")), small).expect("a file");
        }
    }
    fs::write(dir.join("large"), noise(7, 6 << 20)).expect("a file");
}

#[test]
fn a_tree_that_was_added_asks_no_aggregator() {
    let world = World::local(Index::Sqlite);
    let node = world.node();
    let child = &node.config()["Datastore"]["Spec"]["mounts"][0]["child"];
    assert_eq!(
        child["cachePath"],
        "walrusds-cache",
        "with 6 GiB or more free for {}: {child}",
        node.repo().display()
    );
    let bytes = child["cacheBytes"].as_u64().expect("a size");
    assert!((512 << 20..=32 << 30).contains(&bytes), "{bytes}");

    let from = node.scratch("from");
    write_tree(&from);
    let from = from.to_str().expect("UTF-8");
    let cid = node.ok(["add", "-r", "-Q", from]);
    assert_uploaded(&node);
    let before = reads(&world);
    let asks_nobody = |what: &str| {
        let large = format!("{cid}/large");
        assert_same(&node.cat(&large), &noise(7, 6 << 20), what);
        assert!(node.ok(["refs", "-r", &cid]).lines().count() > 70);
        node.ok(["pin", "rm", &cid]);
        node.ok(["pin", "add", &cid]);
        let to = node.scratch("to");
        node.ok(["get", "-o", to.to_str().expect("UTF-8"), &cid]);
        assert!(tree(&to) == tree(Path::new(from)), "{what}");
        fs::remove_dir_all(&to).expect("what was got");
        assert_eq!(reads(&world) - before, 0, "{what}: requests for blobs");
    };
    asks_nobody("commands, each a start of its own");
    for what in ["a daemon", "the daemon after a restart"] {
        let up = node.daemon_with(&["--offline"]);
        asks_nobody(what);
        up.stop();
    }
}

/// Kubo loads the root of its MFS before anything else.
#[test]
fn what_is_here_is_served_while_every_aggregator_is_down() {
    let mut world = World::local(Index::Sqlite);
    world.set("WALRUSDS_MAX_RETRIES", "0");
    let node = world.node();
    // Stored by this node before it had a cache: not on this disk.
    let cache = node.config()["Datastore"]["Spec"]["mounts"][0]["child"]["cachePath"].clone();
    node.edit_spec(|child| child["cachePath"] = json!("other-cache"));
    let elsewhere = node.add(&noise(3, 700_000));
    fs::remove_dir_all(node.repo().join("other-cache")).expect("the cache of that node");
    node.edit_spec(|child| child["cachePath"] = cache.clone());

    let song = noise(1, 700_000);
    node.ok(["files", "mkdir", "-p", "/music/old"]);
    node.feed(["files", "write", "--create", "/music/song"], &song);
    node.ok(["files", "flush"]);
    let here = node.add(&noise(2, 700_000));
    assert_uploaded(&node);

    let down = FaultRule::new(FaultAction::Unavailable).on(Op::READS);
    world.net.set_faults(down);
    let serves = |what: &str| {
        assert_eq!(node.ok(["files", "ls", "/"]).trim(), "music", "{what}");
        assert_eq!(node.ok(["files", "ls", "/music"]), "old\nsong", "{what}");
        let read = node.run(["files", "read", "/music/song"]);
        assert_same(&read.expect_ok(what).stdout, &song, what);
        assert_same(&node.cat(&here), &noise(2, 700_000), what);
        let said = node.fails(["cat", &elsewhere]);
        assert!(said.contains(&world.net.url()), "{what}: {said}");
        assert!(said.contains("503"), "{what}: {said}");
    };
    serves("commands, each a start of its own");
    for what in ["a daemon", "the daemon after a restart"] {
        let up = node.daemon_with(&["--offline"]);
        serves(what);
        up.stop();
    }
}
