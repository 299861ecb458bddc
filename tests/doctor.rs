//! The doctor finds what will make trouble: on a local Walrus, behind hostile proxies, with both
//! indexes.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::json;
use testkit::hostile::{answer, Act, Hostile};
use testkit::postgres::{blocking, Postgres};
use walrus_devnet::{
    Devnet, FaultAction, FaultPlan, FaultRule, Jwt, Op as Http, Options as Walrus,
};
use walrusds::admin::doctor::{
    aggregator, doctor, price_of_store, publisher, Diagnosis, Health, Options,
};
use walrusds::{Config, WalrusDatastore};

async fn walrus(jwt: Option<Jwt>) -> Devnet {
    let options = Walrus {
        cheap_ids: true,
        jwt,
        ..Walrus::default()
    };
    Devnet::start(options).await.expect("local Walrus")
}

/// `extra` is JSON members, each followed by a comma.
fn config(url: &str, extra: &str) -> Config {
    let json = format!(
        r#"{{{extra}"publisherURL":"{url}","aggregatorURL":"{url}","epochDurationSeconds":86400}}"#
    );
    Config::from_json(&json).unwrap()
}

const SQLITE: &str = r#""indexPath":"index.sqlite","#;

async fn all(config: Config, repo: &Path, options: &Options) -> Vec<Diagnosis> {
    let mut found = Vec::new();
    let asked = doctor(config, repo, options, &mut |diagnosis| {
        found.push(diagnosis)
    })
    .await;
    asked.unwrap();
    for diagnosis in &found {
        let good = diagnosis.health == Health::Good;
        assert_eq!(good, diagnosis.why.is_empty(), "{diagnosis:?}");
    }
    found
}

#[track_caller]
fn health(found: &[Diagnosis], part: &str, test: &str) -> Health {
    let of = |d: &&Diagnosis| d.part == part && d.test == test;
    let health = found.iter().filter(of).map(|d| d.health).max();
    health.unwrap_or_else(|| panic!("{part} {test} was not told: {found:#?}"))
}

async fn well(net: &Devnet, extra: &str) {
    let repo = tempfile::tempdir().unwrap();
    let extra = format!(
        r#"{extra}"journalPath":"journal","cachePath":"cache","cacheBytes":1000000,"journalMaxBytes":1000000,"#
    );
    let config = config(&net.url(), &extra);
    let node = WalrusDatastore::open(config.clone(), repo.path()).await;
    let node = node.unwrap();
    node.put("/a", b"value"[..].into()).await.unwrap();
    node.close().await.unwrap();
    let puts = net.stats().puts;
    let found = all(config.clone(), repo.path(), &Options::default()).await;
    let worst = found.iter().map(|d| d.health).max().unwrap();
    assert!(
        worst <= Health::Advice || health(&found, "journal", "speed") == worst,
        "{found:#?}"
    );
    for (part, test) in [
        ("publisher", "reachable"),
        ("publisher", "clock"),
        ("publisher", "api"),
        ("aggregator", "reachable"),
        ("aggregator", "api"),
        ("aggregator", "range"),
        ("index", "open"),
        ("journal", "space"),
        ("cache", "space"),
        ("cache", "speed"),
    ] {
        assert_eq!(health(&found, part, test), Health::Good, "{part} {test}");
    }
    assert_eq!(net.stats().newly_created + net.stats().already_certified, 1);
    assert_eq!(net.stats().cost_frost, net.stats().cost_frost);
    // Nothing was left behind in the directories.
    let left = std::fs::read_dir(repo.path().join("cache")).unwrap();
    let left = left.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().contains("doctor")
    });
    assert_eq!(left.count(), 0);
    let price = price_of_store(&config).await;
    assert_eq!((price.units, price.frost), (63, None));
    let found = all(config, repo.path(), &Options::default().with_store(true)).await;
    assert_eq!(health(&found, "publisher", "store"), Health::Good);
    assert_eq!(health(&found, "aggregator", "read_back"), Health::Good);
    assert_eq!(net.stats().newly_created, 2);
    assert!(net.stats().puts > puts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_node_has_no_trouble() {
    well(&walrus(None).await, SQLITE).await;
    let database = blocking(|| Postgres::shared().database());
    let url = Postgres::shared().url(&database);
    well(&walrus(None).await, &format!(r#""postgresURL":"{url}","#)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_rights_and_a_table_that_is_missing_are_told() {
    let net = walrus(None).await;
    let database = blocking(|| Postgres::shared().database());
    let url = Postgres::shared().url(&database);
    let repo = tempfile::tempdir().unwrap();
    let owner = config(&net.url(), &format!(r#""postgresURL":"{url}","#));
    let found = all(owner.clone(), repo.path(), &Options::default()).await;
    assert!(health(&found, "index", "open") >= Health::Advice);
    let node = WalrusDatastore::open(owner, repo.path()).await.unwrap();
    node.close().await.unwrap();
    blocking(|| {
        Postgres::shared().execute(
            &database,
            &format!(
                "CREATE ROLE \"reader_{database}\" LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO \"reader_{database}\""
            ),
        );
    });
    let url = Postgres::shared().url_as(&format!("reader_{database}"), &database);
    let reader = config(&net.url(), &format!(r#""postgresURL":"{url}","#));
    let found = all(reader, repo.path(), &Options::default()).await;
    assert_eq!(health(&found, "index", "rights"), Health::Warning);
    let cure = found.iter().find(|d| d.test == "rights").unwrap();
    let cure = cure.cure.as_ref().unwrap();
    assert!(cure.contains("GRANT INSERT, UPDATE, DELETE ON"), "{cure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_aggregator_and_a_cache_that_drops_ranges_are_told() {
    let net = walrus(None).await;
    let repo = tempfile::tempdir().unwrap();
    let config = config(&net.url(), SQLITE);
    let node = WalrusDatastore::open(config, repo.path()).await.unwrap();
    node.put("/a", vec![7; 1000].into()).await.unwrap();
    node.close().await.unwrap();
    let blob = net.blobs()[0].blob_id.to_string();
    let url = net.url();
    let look = || aggregator(&url, Some(&blob));
    assert_eq!(health(&look().await, "aggregator", "range"), Health::Good);
    for (action, test, expected) in [
        (FaultAction::IgnoreRange, "range", Health::Warning),
        (FaultAction::IgnoreRange, "api", Health::Warning),
        (FaultAction::NotFound, "range", Health::Warning),
        (FaultAction::Truncate { by: 1 }, "range", Health::Bad),
        (FaultAction::Oversized { by: 3 }, "range", Health::Bad),
        (FaultAction::BadGateway, "api", Health::Bad),
    ] {
        net.set_faults(FaultPlan::from(
            FaultRule::new(action.clone()).on(Http::READS),
        ));
        assert_eq!(
            health(&look().await, "aggregator", test),
            expected,
            "{action:?}"
        );
    }
    net.clear_faults();
    assert_eq!(health(&look().await, "aggregator", "range"), Health::Good);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_told_missing_wrong_and_right() {
    let secret = b"a secret of the publisher".to_vec();
    let net = walrus(Some(Jwt {
        secret: Some(secret),
        ..Jwt::default()
    }))
    .await;
    let url = net.url();
    let found = publisher(&url, &config(&url, SQLITE)).await;
    assert_eq!(
        health(&found, "publisher", "token"),
        Health::Bad,
        "{found:#?}"
    );
    let missing = found.iter().find(|d| d.test == "token").unwrap();
    assert!(missing.what.contains("none is configured"), "{missing:?}");
    // A token that another secret has signed.
    let token = "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjQwMDAwMDAwMDAsImp0aSI6ImEifQ.c2lnbmF0dXJl";
    let command = format!(r#"{SQLITE}"authTokenCommand":"echo {token}","#);
    let found = publisher(&url, &config(&url, &command)).await;
    let refused = found.iter().find(|d| d.what.contains("refuses the token"));
    assert_eq!(refused.unwrap().health, Health::Bad);
    assert!(
        !format!("{found:?}").contains("c2lnbmF0dXJl"),
        "a token is shown"
    );
    let failing = format!(r#"{SQLITE}"authTokenCommand":"exit 3","#);
    let found = publisher(&url, &config(&url, &failing)).await;
    assert_eq!(health(&found, "publisher", "token"), Health::Bad);
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_that_limit_bodies_and_clocks_that_differ_are_told() {
    let proxy = Hostile::start(|seen| {
        let len: u64 = seen.header("content-length").unwrap_or("0").parse().unwrap();
        let date = SystemTime::now() - Duration::from_secs(1000);
        let date = format!("date: {}", httpdate::fmt_http_date(date));
        if seen.target == "/status" {
            return Act::Say(answer("200 OK", &[&date], "OK"));
        }
        match len > 1 << 20 {
            true => Act::SayEarly(answer("413 Payload Too Large", &[], "<html>too large</html>")),
            false => Act::SayEarly(answer(
                "400 Bad Request",
                &[],
                "Failed to deserialize query string: unknown field `walrusds_doctor`, expected one of `epochs`, `permanent`, `force`",
            )),
        }
    })
    .await;
    let url = proxy.url();
    let found = publisher(&url, &config(&url, SQLITE)).await;
    assert_eq!(
        health(&found, "publisher", "clock"),
        Health::Bad,
        "{found:#?}"
    );
    assert_eq!(health(&found, "publisher", "api"), Health::Good);
    let size = found.iter().find(|d| d.test == "size").expect("a limit");
    assert_eq!(size.health, Health::Warning);
    assert!(size.what.contains("takes 1048576"), "{size:?}");
    assert!(
        size.cure
            .as_ref()
            .unwrap()
            .contains("client_max_body_size 65m"),
        "{size:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_something_else_are_told() {
    let nothing = aggregator("http://127.0.0.1:9", None).await;
    assert_eq!(health(&nothing, "aggregator", "reachable"), Health::Bad);
    let moved = Hostile::always(answer(
        "301 Moved Permanently",
        &["location: https://walrus.example/status"],
        "",
    ))
    .await;
    let found = aggregator(&moved.url(), None).await;
    assert_eq!(health(&found, "aggregator", "reachable"), Health::Bad);
    assert!(
        found[0]
            .cure
            .as_ref()
            .unwrap()
            .contains("https://walrus.example"),
        "{found:?}"
    );
    let other = Hostile::always(answer("200 OK", &[], "<html>hello</html>")).await;
    let found = aggregator(&other.url(), None).await;
    assert_eq!(health(&found, "aggregator", "api"), Health::Bad);
    let found = publisher(&other.url(), &config(&other.url(), SQLITE)).await;
    assert_eq!(health(&found, "publisher", "api"), Health::Bad);
    let wrong = aggregator("ftp://x", None).await;
    assert_eq!(health(&wrong, "aggregator", "reachable"), Health::Bad);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_that_cannot_be_used_and_settings_of_kubo_are_told() {
    let net = walrus(None).await;
    let repo = tempfile::tempdir().unwrap();
    let config = config(
        &net.url(),
        &format!(r#"{SQLITE}"walrusCommand":["/no/such/walrus"],"#),
    );
    let options = Options::default().with_kubo(Some(json!({"Datastore": {"HashOnRead": true}})));
    let found = all(config, repo.path(), &options).await;
    assert_eq!(health(&found, "wallet", "epoch"), Health::Bad);
    assert_eq!(health(&found, "kubo", "hash_on_read"), Health::Advice);
}
