//! What an operator does with a node without a daemon, from init to garbage collection. Every command
//! is a process of its own: it opens and closes the datastore.

use std::collections::BTreeSet;
use std::fs;

use kubo_tests::{lines, noise, tree, Index, Ipfs, World};

#[test]
fn tour_preloaded_sqlite() {
    tour(&Ipfs::preloaded(), Index::Sqlite);
}

#[test]
fn tour_preloaded_postgres() {
    tour(&Ipfs::preloaded(), Index::Postgres);
}

#[test]
fn tour_external_v0_43_sqlite() {
    tour(&Ipfs::external_43(), Index::Sqlite);
}

#[test]
fn tour_external_v0_30_postgres() {
    tour(&Ipfs::external_30(), Index::Postgres);
}

const LARGE: usize = 32 << 20;

fn tour(ipfs: &Ipfs, index: Index) {
    let mut world = World::new(index);
    let node = world.node_of(ipfs);

    // The file that ties the repo to its data holds exactly three facts, none of them secret.
    let url = world.net.url();
    assert_eq!(
        node.datastore_spec(),
        format!(
            "{{\"mounts\":[{{\"aggregatorURL\":\"{url}\",\"mountpoint\":\"/blocks\",\"publisherURL\":\"{url}\",\
             \"table\":\"walrus_index\"}},{{\"mountpoint\":\"/\",\"path\":\"datastore\",\"type\":\"levelds\"}}],\"type\":\"mount\"}}"
        )
    );
    let child = &node.config()["Datastore"]["Spec"]["mounts"][0]["child"];
    assert_eq!(child["type"], "walrusds");
    assert_eq!(child.get("postgresURL").is_some(), index == Index::Postgres);

    // A large file shares few blobs.
    let large = noise(1, LARGE);
    let before = world.net.stats().stored_blobs;
    let large_cid = node.add(&large);
    let large_blobs = world.net.stats().stored_blobs - before;
    let large_refs: BTreeSet<String> = lines(&node.ok(["refs", "-r", "-u", &large_cid]))
        .into_iter()
        .collect();
    assert!(large_refs.len() >= LARGE / (256 << 10));
    assert!(
        large_blobs * 4 <= large_refs.len() as u64,
        "{large_blobs} blobs for {} blocks",
        large_refs.len()
    );
    if index == Index::Postgres {
        let (rows, blobs) = (
            world.sql("SELECT count(*) FROM walrus_index"),
            world.sql("SELECT count(DISTINCT blob_id) FROM walrus_index"),
        );
        let (rows, blobs): (u64, u64) = (rows.parse().unwrap(), blobs.parse().unwrap());
        assert!(rows > large_refs.len() as u64 && blobs * 4 <= rows);
        assert_eq!(
            world.sql(
                "SELECT max(blob_offset + size) - sum(size) FROM walrus_index GROUP BY blob_id \
                 ORDER BY 1 DESC LIMIT 1"
            ),
            "0",
            "the blocks of a blob lie one behind the other"
        );
    }
    node.assert_holds(&large_cid, &large);

    // Adding it again stores nothing.
    let stored = world.net.stats().stored_bytes;
    assert_eq!(node.add(&large), large_cid);
    assert_eq!(world.net.stats().stored_bytes, stored);

    // A directory of small files.
    let input = node.scratch("in");
    fs::create_dir_all(input.join("deep/er")).unwrap();
    for i in 0..24_u64 {
        let name = if i % 3 == 0 {
            format!("deep/er/{i}")
        } else {
            format!("file {i}.bin")
        };
        fs::write(input.join(name), noise(100 + i, 700 * i as usize)).unwrap();
    }
    let dir_cid = node.ok([
        "add",
        "-r",
        "-Q",
        "--cid-version=1",
        input.to_str().unwrap(),
    ]);
    let listed = node.ok(["ls", &dir_cid]);
    assert_eq!(listed.lines().count(), 17, "{listed}");
    assert!(
        listed.contains("11900 file 17.bin") && listed.contains("deep/"),
        "{listed}"
    );
    let output = node.scratch("out");
    node.ok(["get", "-o", output.to_str().unwrap(), &dir_cid]);
    assert!(
        tree(&input) == tree(&output),
        "the directory came back different"
    );

    let pins = node.ok(["pin", "ls", "--type=recursive", "-q"]);
    assert!(
        pins.contains(&large_cid) && pins.contains(&dir_cid),
        "{pins}"
    );

    // The index as a whole.
    let blocks = node.refs_local();
    assert_eq!(node.repo_stat("NumObjects"), blocks.len() as u64);
    let size = node.repo_stat("RepoSize");
    assert!(
        (LARGE as u64..LARGE as u64 * 102 / 100 + 300_000).contains(&size),
        "RepoSize {size}"
    );
    node.verify();

    // Single blocks.
    let block = noise(7, 100_000);
    let block_cid = node.feed(["block", "put"], &block);
    let stat = node.ok(["block", "stat", &block_cid]);
    assert!(
        stat.contains(&block_cid) && stat.contains("Size: 100000"),
        "{stat}"
    );
    assert_eq!(node.run(["block", "get", &block_cid]).stdout, block);
    node.ok(["block", "rm", &block_cid]);
    let said = node.fails(["--offline", "block", "stat", &block_cid]);
    assert!(said.contains("not found"), "{said}");
    assert!(node.refs_local() == blocks);

    // Out as a CAR, and into another node.
    let car = node.run(["dag", "export", &large_cid]).expect_ok("export");
    world.set("WALRUSDS_TABLE", "second_node");
    let other = world.node_of(ipfs);
    let imported = other.feed(["dag", "import"], &car.stdout);
    assert!(imported.contains(&large_cid), "{imported}");
    other.assert_holds(&large_cid, &large);
    other.verify();
    drop(other);

    // MFS.
    node.ok(["files", "mkdir", "-p", "/kept/here"]);
    node.ok([
        "files",
        "cp",
        &format!("/ipfs/{dir_cid}/file 17.bin"),
        "/kept/here/seventeen",
    ]);
    node.feed(["files", "write", "--create", "/kept/note"], b"a note");
    assert_eq!(node.ok(["files", "ls", "/kept"]), "here\nnote");
    assert_eq!(node.ok(["files", "read", "/kept/note"]), "a note");
    let seventeen = noise(117, 11_900);
    let read = ["files", "read", "/kept/here/seventeen"];
    assert_eq!(node.run(read).stdout, seventeen);

    // Garbage: the large file goes, what is pinned or in MFS stays.
    node.ok(["pin", "rm", &large_cid]);
    node.ok(["pin", "rm", &dir_cid]);
    let removed = lines(&node.ok(["repo", "gc", "-q"]));
    assert!(
        removed.len() >= large_refs.len(),
        "{} removed",
        removed.len()
    );
    let left = node.refs_local();
    assert_eq!(node.repo_stat("NumObjects"), left.len() as u64);
    assert!(node.repo_stat("RepoSize") < 1 << 20);
    let said = node.fails(["--offline", "cat", &large_cid]);
    assert!(said.contains("not found"), "{said}");
    assert_eq!(node.run(read).stdout, seventeen);
    assert_eq!(node.ok(["files", "read", "/kept/note"]), "a note");
    node.verify();

    // What was deleted can come back.
    assert_eq!(node.add(&large), large_cid);
    node.assert_holds(&large_cid, &large);
    node.verify();
}
