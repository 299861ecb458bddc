//! The three ways to a repo on walrusds.

use std::fs;

use serde_json::json;

use super::Tour;
use crate::{noise, run, Index, Node, World, LIMIT};

/// `ipfs init --profile=test,walrusds`: the node of all other steps.
pub fn with_test_profile(tour: &mut Tour) {
    let node = tour.world.node_of(&tour.ipfs);
    check_spec(&node, &tour.world);
    assert!(node.repo().join("walrusds-journal").is_dir());
    let child = &node.config()["Datastore"]["Spec"]["mounts"][0]["child"];
    assert_eq!(
        child.get("postgresURL").is_some(),
        tour.index == Index::Postgres
    );
    tour.node = Some(node);
}

/// `ipfs init --profile=walrusds`, and no other profile. (No daemon: its ports are the usual ones.)
pub fn with_own_profile(tour: &mut Tour) {
    let world = World::journalled(tour.index);
    let node = Node::without_repo(&tour.ipfs);
    let mut command = node.command(["init", "--profile=walrusds"]);
    command.envs(&world.settings);
    run(command, b"", LIMIT).expect_ok("init --profile=walrusds");
    check_spec(&node, &world);
    works(&node, &world);
}

/// The file that ties the repo to its data holds exactly three facts, none of them secret.
fn check_spec(node: &Node, world: &World) {
    let url = world.net.url();
    assert_eq!(
        node.datastore_spec(),
        format!(
            "{{\"mounts\":[{{\"aggregatorURL\":\"{url}\",\"mountpoint\":\"/blocks\",\"publisherURL\":\"{url}\",\
             \"table\":\"walrus_index\"}},{{\"mountpoint\":\"/\",\"path\":\"datastore\",\"type\":\"levelds\"}}],\"type\":\"mount\"}}"
        )
    );
    assert_eq!(
        node.config()["Datastore"]["Spec"]["mounts"][0]["child"]["type"],
        "walrusds"
    );
}

/// An ordinary init, then `Datastore.Spec` and `datastore_spec` by hand, on the other kind of
/// index.
pub fn by_hand(tour: &mut Tour) {
    let world = World::new(match tour.index {
        Index::Sqlite => Index::Postgres,
        Index::Postgres => Index::Sqlite,
    });
    let node = Node::without_repo(&tour.ipfs);
    node.ok(["init", "--profile=test"]);
    let url = world.net.url();
    let root = &node.config()["Datastore"]["Spec"]["mounts"][1];
    assert_eq!(root["mountpoint"], "/");
    let mut child = json!({
        "type": "walrusds",
        "publisherURL": format!(" {url}, "),
        "aggregatorURL": url,
        "epochs": 5.0,
    });
    match world.settings.get("WALRUSDS_POSTGRES_URL") {
        Some(postgres) => child["postgresURL"] = json!(postgres),
        None => child["indexPath"] = json!("by hand.sqlite"),
    }
    let spec = json!({
        "type": "mount",
        "mounts": [
            {"mountpoint": "/blocks", "type": "measure", "prefix": "walrusds.datastore", "child": child},
            root,
        ],
    });
    node.ok(["config", "--json", "Datastore.Spec", &spec.to_string()]);
    // A repo of other data is not opened.
    let said = node.fails(["pin", "ls"]);
    assert!(said.contains("does not match what is on disk"), "{said}");

    fs::remove_dir_all(node.repo().join("blocks")).expect("the blocks of flatfs");
    fs::remove_dir_all(node.repo().join("datastore")).expect("the rest");
    let on_disk = json!({ // serde_json sorts the keys
        "type": "mount",
        "mounts": [
            {"mountpoint": "/blocks", "publisherURL": url, "aggregatorURL": url, "table": "walrus_index"},
            {"mountpoint": "/", "path": "datastore", "type": "levelds"},
        ],
    });
    fs::write(node.repo().join("datastore_spec"), on_disk.to_string()).expect("datastore_spec");
    let cid = works(&node, &world);
    assert_eq!(
        node.repo().join("by hand.sqlite").exists(),
        world.database.is_none()
    );

    // Settings that identify the data cannot be changed by accident; all others can.
    node.edit_spec(|child| child["workers"] = json!(7));
    node.cat(&cid);
    node.edit_spec(|child| child["publisherURL"] = json!("http://127.0.0.1:1"));
    let said = node.fails(["cat", &cid]);
    assert!(said.contains("does not match what is on disk"), "{said}");
    assert!(!said.contains("postgres://"), "{said}");
}

/// It stores on Walrus, and reads back.
fn works(node: &Node, world: &World) -> String {
    let file = noise(11, 1 << 20);
    let cid = node.add(&file);
    node.assert_holds(&cid, &file);
    assert!(world.net.stats().stored_bytes >= 1 << 20);
    node.verify();
    cid
}
