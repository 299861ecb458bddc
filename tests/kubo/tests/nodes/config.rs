//! Settings: bad input, and secrets. (A config written by hand is part of the tour.)

use kubo_tests::pg::Postgres;
use kubo_tests::{Index, Ipfs, Node, World};
use serde_json::json;

#[test]
fn bad_settings_are_named() {
    let world = World::new(Index::Sqlite);
    let node = Node::without_repo(&Ipfs::preloaded());
    let secret = "postgres://u:hunter2@h/d";
    for (variable, value, expected) in [
        (
            "WALRUSDS_PUBLISHER_URL",
            "",
            "WALRUSDS_PUBLISHER_URL must be set",
        ),
        (
            "WALRUSDS_PUBLISHER_URL",
            "ftp://host",
            "WALRUSDS_PUBLISHER_URL",
        ),
        (
            "WALRUSDS_AGGREGATOR_URL",
            "host:80",
            "WALRUSDS_AGGREGATOR_URL",
        ),
        (
            "WALRUSDS_PUBLISHERURL",
            "x",
            "did you mean WALRUSDS_PUBLISHER_URL?",
        ),
        ("WALRUSDS_WORKERS", "many", "WALRUSDS_WORKERS"),
        ("WALRUSDS_WORKERS", "1.5", "WALRUSDS_WORKERS"),
        ("WALRUSDS_EPOCHS", "54", "WALRUSDS_EPOCHS"),
        ("WALRUSDS_EPOCHS", "99999999999999999999", "WALRUSDS_EPOCHS"),
        ("WALRUSDS_DELETABLE", "maybe", "WALRUSDS_DELETABLE"),
        ("WALRUSDS_TABLE", "t; DROP TABLE x", "WALRUSDS_TABLE"),
        (
            "WALRUSDS_POSTGRES_URL",
            "mysql://u:hunter2@h/d",
            "WALRUSDS_POSTGRES_URL",
        ),
        (
            "WALRUSDS_POSTGRES_URL_FILE",
            "/nonexistent",
            "WALRUSDS_POSTGRES_URL_FILE",
        ),
    ] {
        let mut settings = world.settings.clone();
        settings.insert(variable.to_owned(), value.to_owned());
        let said = node.init(&settings).expect_failure(variable);
        assert!(said.contains(expected), "{variable}={value}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
        assert!(
            !node.repo().join("datastore_spec").exists(),
            "{variable}={value} left a repo behind"
        );
    }
    let mut both = world.settings.clone();
    both.insert("WALRUSDS_POSTGRES_URL".to_owned(), secret.to_owned());
    both.insert("WALRUSDS_INDEX_PATH".to_owned(), "i.sqlite".to_owned());
    let said = node.init(&both).expect_failure("two indexes");
    assert!(
        said.contains("WALRUSDS_POSTGRES_URL") && said.contains("WALRUSDS_INDEX_PATH"),
        "{said}"
    );
    assert!(!said.contains("hunter2"), "{said}");
    // With valid settings an init succeeds in the same place:
    node.init(&world.settings).expect_ok("init");
    node.add(b"fine");
}

#[test]
fn database_failures_are_named_and_keep_the_secret() {
    let mut own = Postgres::start();
    for sql in [
        "CREATE ROLE node LOGIN PASSWORD 'hunter2'",
        "CREATE ROLE poor LOGIN PASSWORD 'hunter2'",
        "CREATE DATABASE blocks OWNER node",
    ] {
        own.execute("postgres", sql);
    }
    own.set_hba(
        "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n",
    );
    let good = own.url_as("node:hunter2", "blocks");
    let mut world = World::new(Index::Sqlite);
    world.set("WALRUSDS_POSTGRES_URL", good.clone());
    let node = world.node();
    let cid = node.add(b"kept");
    assert!(!node.datastore_spec().contains("postgres"));

    let port = own.port().to_string();
    let cases = [
        (
            own.url_as("node:s3cret-but-wrong", "blocks"),
            "wrong password",
        ),
        (own.url_as("node:hunter2", "nowhere"), "nowhere"),
        (own.url_as("poor:hunter2", "blocks"), "right"),
        (own.url_as("node", "blocks"), "password"),
    ];
    let check = |url: &str, expected: &str| {
        node.edit_spec(|child| child["postgresURL"] = json!(url));
        for args in [&["cat", cid.as_str()][..], &["daemon"], &["repo", "stat"]] {
            let outcome = node.run(args);
            let said = outcome.expect_failure(expected);
            assert!(said.contains(expected), "{said}");
            // The error names the server or, once the connection is accepted, the table.
            assert!(
                said.contains(&port) || said.contains("walrus_index"),
                "{said}"
            );
            for secret in ["hunter2", "s3cret-but-wrong", "node:"] {
                assert!(!said.contains(secret), "{said}");
            }
        }
    };
    for (url, expected) in &cases {
        check(url, expected);
        // The same when a repo is made.
        let fresh = Node::without_repo(&Ipfs::preloaded());
        let mut settings = world.settings.clone();
        settings.insert("WALRUSDS_POSTGRES_URL".to_owned(), url.clone());
        let said = fresh.init(&settings).expect_failure(expected);
        assert!(said.contains(expected), "{said}");
        assert!(
            !said.contains("hunter2") && !said.contains("s3cret"),
            "{said}"
        );
    }
    own.down();
    check(&good, "connection refused");
    // Kubo keeps the repo of an init that could not open its datastore. The repo is complete.
    let fresh = Node::without_repo(&Ipfs::preloaded());
    let said = fresh
        .init(&world.settings)
        .expect_failure("init without a database");
    assert!(said.contains("connection refused"), "{said}");
    own.up();
    let late = fresh.add(b"after the outage");
    assert_eq!(fresh.ok(["cat", &late]), "after the outage");
    fresh.verify();
    node.edit_spec(|child| child["postgresURL"] = json!(good));
    assert_eq!(node.ok(["cat", &cid]), "kept");
}
