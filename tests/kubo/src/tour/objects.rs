//! The objects that users add and read, by commands without a daemon. Every command is a process of
//! its own: it opens and closes the datastore.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::Tour;
use crate::{assert_same, clean_command, lines, noise, run, tree, Index, Ipfs, Node, LIMIT};

/// Bytes of the large file.
pub const LARGE: usize = 32 << 20;

/// The blocks below a root, without it.
fn refs(node: &Node, root: &str) -> BTreeSet<String> {
    lines(&node.ok(["refs", "-r", "-u", root]))
        .into_iter()
        .collect()
}

/// A path as an argument.
fn arg(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A file of many blocks shares few blobs, and adding it again stores nothing.
pub fn large_file(tour: &mut Tour) {
    let (node, world) = (tour.node(), &tour.world);
    let before = world.net.stats().stored_blobs;
    let cid = node.add(&tour.large);
    let blobs = world.net.stats().stored_blobs - before;
    let below = refs(node, &cid);
    assert!(below.len() >= LARGE / (256 << 10));
    assert!(
        blobs * 4 <= below.len() as u64,
        "{blobs} blobs for {} blocks",
        below.len()
    );
    if tour.index == Index::Postgres {
        let number = |query: &str| -> u64 { world.sql(query).parse().expect("a number") };
        let rows = number("SELECT count(*) FROM walrus_index");
        let distinct = number("SELECT count(DISTINCT blob_id) FROM walrus_index");
        assert!(rows > below.len() as u64 && distinct * 4 <= rows);
        // A CAR has at most 51 + 18 bytes before its first section, and 39 before each block.
        let gaps = number(
            "SELECT max(blob_offset + size) - sum(size) - 39 * count(*) FROM walrus_index \
             GROUP BY blob_id ORDER BY 1 DESC LIMIT 1",
        );
        assert!(
            gaps <= 69,
            "the blocks of a blob lie one behind the other: {gaps}"
        );
    }
    node.assert_holds(&cid, &tour.large);

    let stored = world.net.stats().stored_bytes;
    assert_eq!(node.add(&tour.large), cid);
    assert_eq!(world.net.stats().stored_bytes, stored);
}

/// A directory with a subdirectory, empty files, and a name with a blank.
pub fn directories(tour: &mut Tour) {
    let node = tour.node();
    let input = node.scratch("directory");
    fs::create_dir_all(input.join("deep/er")).expect("directories");
    for i in 0..24_u64 {
        let name = if i % 3 == 0 {
            format!("deep/er/{i}")
        } else {
            format!("file {i}.bin")
        };
        fs::write(input.join(name), noise(100 + i, 700 * i as usize)).expect("a file");
    }
    let cid = node.ok(["add", "-r", "-Q", "--cid-version=1", arg(&input)]);
    let listed = node.ok(["ls", &cid]);
    assert_eq!(listed.lines().count(), 17, "{listed}");
    assert!(
        listed.contains("11900 file 17.bin") && listed.contains("deep/"),
        "{listed}"
    );
    let path = format!("{cid}/file 17.bin");
    assert_same(&node.cat(&path), &noise(117, 11_900), "a file by its path");
    let output = node.scratch("directory out");
    node.ok(["get", "-o", arg(&output), &cid]);
    assert!(
        tree(&input) == tree(&output),
        "the directory came back different"
    );
}

/// Three hundred files of a few bytes to a few kilobytes each.
pub fn small_files(tour: &mut Tour) {
    let node = tour.node();
    let input = node.scratch("small");
    for i in 0..300_u64 {
        let dir = input.join(format!("{:02}", i % 10));
        fs::create_dir_all(&dir).expect("a directory");
        let len = (i * i % 4000) as usize;
        fs::write(dir.join(format!("{i}")), noise(1000 + i, len)).expect("a file");
    }
    let cid = node.ok(["add", "-r", "-Q", arg(&input)]);
    let output = node.scratch("small out");
    node.ok(["get", "-o", arg(&output), &cid]);
    assert!(tree(&input) == tree(&output), "a file came back different");
    // A second add gives the same root.
    assert_eq!(node.ok(["add", "-r", "-Q", arg(&input)]), cid);
}

/// The chunkers, and the hash functions for block names.
pub fn chunkings(tour: &mut Tour) {
    let node = tour.node();
    const MIB: usize = 1 << 20;
    let file = noise(21, 5 * MIB + 333_333);
    let add = |options: &[&str]| {
        let args = [&["add", "-Q", "--pin=false"], options].concat();
        let cid = node.feed(args, &file);
        let what = options.join(" ");
        assert_same(&node.cat(&cid), &file, &what);
        (cid, what)
    };
    // Raw leaves: six of them, the first five of exactly one MiB.
    for options in [
        &["--chunker=size-1048576", "--raw-leaves"][..],
        &["--chunker=size-1048576", "--cid-version=1"],
        &[
            "--chunker=size-1048576",
            "--cid-version=1",
            "--hash=blake2b-256",
        ],
    ] {
        let (root, what) = add(options);
        let root: serde_json::Value =
            serde_json::from_str(&node.ok(["dag", "get", &root])).expect("JSON");
        let leaves = root["Links"].as_array().expect("links");
        // A path below a raw leaf resolves to the leaf.
        let sizes: Vec<u64> = leaves
            .iter()
            .filter_map(|leaf| leaf["Tsize"].as_u64())
            .collect();
        let mib = MIB as u64;
        assert_eq!(sizes, [mib, mib, mib, mib, mib, 333_333], "{what}");
        let last = leaves[5]["Hash"]["/"].as_str().expect("a CID");
        let block = node.run(["block", "get", last]).stdout;
        assert_same(&block, &file[5 * MIB..], &what);
    }
    // Leaves wrapped in nodes, and content-defined chunks.
    for options in [
        &["--chunker=size-1048576", "--raw-leaves=false"][..],
        &["--raw-leaves", "--trickle"],
        &["--chunker=rabin-131072-262144-524288"],
        &["--chunker=buzhash", "--cid-version=1"],
    ] {
        let (root, what) = add(options);
        let blocks = refs(node, &root).len();
        assert!(blocks >= 6, "{what}: {blocks} blocks");
    }
    // A file of one block, an empty one, and one inside its own CID.
    for len in [MIB, 0, 20] {
        let content = noise(22, len);
        for options in [&["--raw-leaves"][..], &["--cid-version=1", "--inline"]] {
            let args = [&["add", "-Q", "--chunker=size-1048576"], options].concat();
            let cid = node.feed(args, &content);
            node.assert_holds(&cid, &content);
        }
    }
}

/// Pins of all kinds. Pins are in the local repo, the pinned blocks on Walrus.
pub fn pins(tour: &mut Tour) {
    let node = tour.node();
    let (old, new) = (noise(31, 700_000), noise(32, 700_000));
    let unpinned = |content: &[u8]| node.feed(["add", "-Q", "--pin=false"], content);
    let (old_cid, new_cid) = (unpinned(&old), unpinned(&new));
    let of_type = |kind: &str| node.ok(["pin", "ls", "-q", &format!("--type={kind}")]);
    assert!(!of_type("all").contains(&old_cid));

    node.ok(["pin", "add", &old_cid]);
    assert!(of_type("recursive").contains(&old_cid));
    let leaf = refs(node, &old_cid).pop_first().expect("a leaf");
    assert!(of_type("indirect").contains(&leaf));
    let said = node.ok(["pin", "verify", "--verbose"]);
    assert!(said.contains(&format!("{old_cid} ok")), "{said}");

    node.ok(["pin", "update", &old_cid, &new_cid]);
    let recursive = of_type("recursive");
    assert!(
        recursive.contains(&new_cid) && !recursive.contains(&old_cid),
        "{recursive}"
    );
    node.ok(["pin", "add", "--recursive=false", &old_cid]);
    assert!(of_type("direct").contains(&old_cid));
    node.ok(["pin", "rm", "--recursive=false", &old_cid]);
    node.ok(["pin", "rm", &new_cid]);
    let left = of_type("all");
    assert!(
        !left.contains(&old_cid) && !left.contains(&new_cid),
        "{left}"
    );
    let said = node.fails(["pin", "rm", &new_cid]);
    assert!(said.contains("not pinned"), "{said}");
}

/// Single blocks.
pub fn blocks(tour: &mut Tour) {
    let node = tour.node();
    let before = node.refs_local();
    for (options, len) in [
        (&[][..], 100_000),
        (&["--mhtype=blake2b-256"], 1),
        (&["--mhtype=sha2-512"], 1 << 20),
    ] {
        let block = noise(41, len);
        let args = [&["block", "put"], options].concat();
        let cid = node.feed(args, &block);
        let stat = node.ok(["block", "stat", &cid]);
        assert!(
            stat.contains(&cid) && stat.contains(&format!("Size: {len}")),
            "{stat}"
        );
        let got = node.run(["block", "get", &cid]).expect_ok("block get");
        assert_same(&got.stdout, &block, "a block");
        assert_eq!(node.refs_local().len(), before.len() + 1);
        node.ok(["block", "rm", &cid]);
        let said = node.fails(["--offline", "block", "stat", &cid]);
        assert!(said.contains("not found"), "{said}");
        let said = node.fails(["block", "rm", &cid]);
        assert!(said.contains("cannot remove"), "{said}");
        node.ok(["block", "rm", "--force", &cid]);
    }
    assert!(node.refs_local() == before);
}

/// Nodes of other codecs; exported as a CAR, and imported into another node.
pub fn dags(tour: &mut Tour) {
    let node = tour.node();
    let leaf = node.feed(["dag", "put"], br#"{"name":"leaf","n":7}"#);
    let parent = format!(r#"{{"kind":"parent","leaf":{{"/":"{leaf}"}}}}"#);
    let parent = node.feed(["dag", "put", "--store-codec=dag-json"], parent.as_bytes());
    assert_eq!(node.ok(["dag", "get", &format!("{parent}/leaf/n")]), "7");
    assert_eq!(node.ok(["dag", "resolve", &format!("{parent}/leaf")]), leaf);

    let large = node.add(&tour.large);
    let stat = node.ok(["dag", "stat", "--progress=false", &large]);
    assert!(stat.contains(&large), "{stat}");
    let export = |cid: &str| node.run(["dag", "export", cid]).expect_ok("export").stdout;

    // On the same Walrus, with an index of its own.
    let settings = {
        let mut settings = tour.world.settings.clone();
        settings.insert("WALRUSDS_TABLE".to_owned(), "another_node".to_owned());
        settings
    };
    let other = Node::without_repo(&tour.ipfs);
    other.init(&settings).expect_ok("init of another node");
    let said = other.feed(["dag", "import"], &export(&large));
    assert!(said.contains(&large), "{said}");
    other.assert_holds(&large, &tour.large);
    let said = other.feed(["dag", "import", "--stats"], &export(&parent));
    assert!(
        said.contains(&parent) && said.contains("Imported 2 blocks"),
        "{said}"
    );
    assert_eq!(other.ok(["dag", "get", &format!("{parent}/leaf/n")]), "7");
    let pins = other.ok(["pin", "ls", "--type=recursive", "-q"]);
    assert!(pins.contains(&large) && pins.contains(&parent), "{pins}");
    other.verify();
    // An import of a CAR that ends too early fails.
    let car = export(&large);
    let cut = crate::run(
        other.command(["dag", "import"]),
        &car[..car.len() / 2],
        crate::LIMIT,
    );
    cut.expect_failure("dag import of half a CAR");
    other.assert_holds(&large, &tour.large);
}

/// Each blob is a file that a node without walrusds imports, as a CARv2 and the CARv1 in it.
pub fn blobs_as_files(tour: &mut Tour) {
    let (node, world) = (tour.node(), &tour.world);
    let old = world.net.blobs();
    let (nodes, raw) = (noise(61_001, 3 << 20), noise(61_002, 2 << 20));
    let nodes_cid = node.add(&nodes);
    let raw_cid = node.feed(["add", "-Q", "--cid-version=1"], &raw);
    let mut blobs = world.net.blobs();
    blobs.retain(|blob| old.iter().all(|old| old.blob_id != blob.blob_id));
    assert!(blobs.len() >= 2, "{} blobs", blobs.len());

    let fetch = |path: &str| {
        let mut curl = clean_command("curl", &node.scratch("curl"));
        curl.args(["-fsS", &format!("{}/v1/blobs/{path}", world.net.url())]);
        run(curl, b"", LIMIT).expect_ok("curl").stdout
    };
    let other = |version: u8| {
        let other = Node::without_repo(&Ipfs {
            plugin: None,
            ..tour.ipfs.clone()
        });
        other.ok(["init", "--profile=test"]);
        for blob in &blobs {
            let id = blob.blob_id.to_string();
            let mut car = fetch(&id);
            assert_eq!(car.len() as u64, blob.size);
            if version == 1 {
                let length = u64::from_le_bytes(car[35..43].try_into().expect("8 bytes"));
                car = fetch(&format!("{id}/byte-range?start=51&length={length}"));
            }
            // From a file: Kubo v0.30 seeks in a CARv2.
            let file = other.scratch("blob.car");
            fs::write(&file, &car).expect("a file");
            let said = other.ok(["--offline", "dag", "import", "--stats", arg(&file)]);
            assert!(said.contains("Imported "), "{said}");
        }
        other
    };
    for version in [2, 1] {
        let other = other(version);
        other.assert_holds(&nodes_cid, &nodes);
        other.assert_holds(&raw_cid, &raw);
        let pins = other.ok(["pin", "ls", "--type=recursive", "-q"]);
        assert!(!pins.contains(&nodes_cid) && !pins.contains(&raw_cid));
    }
}

/// The mutable files: written, copied, moved, removed, read.
pub fn mfs(tour: &mut Tour) {
    let node = tour.node();
    let file = noise(51, 2 << 20);
    let cid = node.feed(["add", "-Q", "--pin=false"], &file);
    node.ok(["files", "mkdir", "-p", "/tour/here"]);
    node.ok(["files", "cp", &format!("/ipfs/{cid}"), "/tour/here/copied"]);
    node.ok(["files", "cp", "/tour/here/copied", "/tour/twice"]);
    node.ok(["files", "mv", "/tour/twice", "/tour/here/moved"]);
    let read = |path: &str| node.run(["files", "read", path]).expect_ok("read").stdout;
    assert_same(&read("/tour/here/moved"), &file, "a copy that was moved");

    // Written from the start, in the middle, and cut off.
    let mut content = noise(52, 600_000);
    let write = |options: &[&str], input: &[u8]| {
        node.feed(
            [&["files", "write"], options, &["/tour/note"]].concat(),
            input,
        );
    };
    write(&["--create"], &content);
    write(&["--offset=300000"], &noise(53, 1000));
    content[300_000..301_000].copy_from_slice(&noise(53, 1000));
    assert_same(&read("/tour/note"), &content, "a file written over");
    let part = [
        "files",
        "read",
        "--offset=299990",
        "--count=20",
        "/tour/note",
    ];
    assert_same(&node.run(part).stdout, &content[299_990..300_010], "a part");
    write(&["--create", "--truncate", "--raw-leaves"], b"short now");
    assert_eq!(read("/tour/note"), b"short now");

    let stat = node.ok(["files", "stat", "/tour/here/moved"]);
    assert!(stat.contains(&format!("Size: {}", file.len())), "{stat}");
    let flushed = node.ok(["files", "flush", "/tour"]);
    let hash = node.ok(["files", "stat", "--hash", "/tour"]);
    assert!(flushed.is_empty() || flushed.contains(&hash), "{flushed}");
    assert_eq!(node.ok(["files", "ls", "/tour"]), "here\nnote");
    assert_eq!(
        lines(&node.ok(["ls", &format!("/ipfs/{hash}/here")])).len(),
        2
    );

    node.ok(["files", "rm", "/tour/note"]);
    let said = node.fails(["files", "stat", "/tour/note"]);
    assert!(said.contains("does not exist"), "{said}");
    node.ok(["files", "rm", "-r", "/tour/here"]);
    assert_eq!(node.ok(["files", "ls", "/tour"]), "");
    node.ok(["files", "rm", "-r", "/tour"]);
}
