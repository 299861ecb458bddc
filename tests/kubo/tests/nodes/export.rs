//! `walrusds export`: what a node has stored on Walrus is imported by a node without walrusds.

use std::fs;

use kubo_tests::{
    assert_same, clean_command, from_script, noise, run, Index, Ipfs, Node, World, LIMIT,
};

#[test]
fn an_exported_dag_is_imported_by_an_ordinary_node() {
    let command = from_script("WALRUSDS_TEST_COMMAND");
    // Some blocks are on Walrus, and the last ones in the journal.
    let world = World::journalled(Index::Sqlite);
    let node = world.node();
    let files = [
        ("large", noise(71_001, 5 << 20)),
        ("small", noise(71_002, 5_000)),
    ];
    let dir = node.scratch("files");
    fs::create_dir(&dir).unwrap();
    for (name, content) in &files {
        fs::write(dir.join(name), content).unwrap();
    }
    let dir = dir.to_str().expect("a path in UTF-8");
    let nodes = node.ok(["add", "-rQ", dir]);
    let raw = node.ok(["add", "-rQ", "--cid-version=1", dir]);
    let (nodes, raw) = (nodes.trim(), raw.trim());
    for version in ["1", "2"] {
        let car = node.scratch(&format!("v{version}.car"));
        let mut export = clean_command(&command, &node.scratch("home"));
        export.args(["export", nodes, raw, "--car-version", version, "--output"]);
        export.arg(&car).arg("--repo").arg(node.repo());
        run(export, b"", LIMIT).expect_ok("walrusds export");
        let other = Node::without_repo(&Ipfs::preloaded());
        other.ok(["init", "--profile=test"]);
        let car = car.to_str().expect("a path in UTF-8");
        other.ok(["--offline", "dag", "import", car]);
        for root in [nodes, raw] {
            for (name, content) in &files {
                let got = other.cat(&format!("{root}/{name}"));
                assert_same(&got, content, name);
            }
        }
        let pins = other.ok(["pin", "ls", "--type=recursive", "-q"]);
        assert!(pins.contains(nodes) && pins.contains(raw), "{pins}");
        other.verify();
    }
}
