//! A node that only retrieves, and reads from standbys of the index.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use testkit::documents;
use testkit::mem::{key_of, noise};
use testkit::postgres::{Postgres, GO_STAGING};
use testkit::PATIENCE;
use walrusds::index::postgres::{PostgresIndex, PostgresOptions, StandbyReads};
use walrusds::internals::Lookups;
use walrusds::{Config, Error, Index, KeyRange, Result, Rows, WalrusDatastore};

use crate::shared::row;

/// Longer than any test: what a standby had within it counts.
const ANY_LAG: Duration = Duration::from_secs(3600);

/// A primary and a standby that follows without delaying the primary's commits.
struct Pair {
    primary: Postgres,
    standby: Postgres,
    db: String,
}

impl Pair {
    async fn start() -> Pair {
        let primary = Postgres::start();
        let db = primary.database();
        let index = PostgresIndex::open(PostgresOptions::new(primary.url(&db), "walrus_index"));
        let index = index.await.unwrap();
        index.put(&row("/old", "b", 0, 1)).await.unwrap();
        index.close().await.unwrap();
        let standby = primary.start_replica();
        let pair = Pair {
            primary,
            standby,
            db,
        };
        // All is on the standby; from now on the two are apart in time.
        pair.caught_up().await;
        pair.primary.set("synchronous_commit", "local");
        pair.primary.set("synchronous_standby_names", "");
        pair
    }

    /// The URL with both servers, the primary first.
    fn url(&self, attrs: &str) -> String {
        format!(
            "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/{}?sslmode=disable&connect_timeout=5&target_session_attrs={attrs}",
            self.primary.port(),
            self.standby.port(),
            self.db
        )
    }

    /// A node that reads from the standby.
    async fn reader(&self, reads: StandbyReads) -> Node {
        Node::open(&self.url("prefer-standby"), reads)
            .await
            .unwrap()
    }

    /// Another node, which writes.
    async fn writer(&self) -> PostgresIndex {
        let options = PostgresOptions::new(self.url("read-write"), "walrus_index");
        PostgresIndex::open(options).await.unwrap()
    }

    fn pause(&self) {
        self.standby
            .execute(&self.db, "SELECT pg_wal_replay_pause()");
        // The pause is asked for, and begins a little later.
        let paused = "SELECT pg_get_wal_replay_pause_state()";
        let until = std::time::Instant::now() + PATIENCE;
        while self.standby.scalar(&self.db, paused) != "paused" {
            assert!(std::time::Instant::now() < until, "the replay goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn resume(&self) {
        self.standby
            .execute(&self.db, "SELECT pg_wal_replay_resume()");
    }

    /// Waits until the standby has all that the primary has committed.
    async fn caught_up(&self) {
        let at = self
            .primary
            .scalar(&self.db, "SELECT pg_current_wal_insert_lsn()");
        let has = format!("SELECT pg_last_wal_replay_lsn() >= '{at}'::pg_lsn");
        eventually("the standby has caught up", || {
            let has = self.standby.scalar(&self.db, &has) == "t";
            async move { has }
        })
        .await;
    }
}

/// A node, as far as its lookups are concerned. It remembers no rows.
struct Node {
    index: Arc<PostgresIndex>,
    lookups: Lookups,
}

impl Node {
    async fn open(url: &str, reads: StandbyReads) -> Result<Node> {
        let options = PostgresOptions::new(url, "walrus_index").with_standby_reads(Some(reads));
        let index = Arc::new(PostgresIndex::open(options).await?);
        let lookups = Lookups::new(index.clone(), Duration::ZERO);
        Ok(Node { index, lookups })
    }

    async fn has(&self, key: &str) -> Result<bool> {
        Ok(self.lookups.find(key).await?.is_some())
    }

    /// Waits until a lookup gives this answer.
    async fn will(&self, key: &str, expected: bool) {
        eventually(&format!("{key} is {expected}"), || async {
            matches!(self.has(key).await, Ok(found) if found == expected)
        })
        .await;
    }

    async fn list(&self) -> Result<Vec<String>> {
        let page = self.lookups.list(&KeyRange::ALL, 0, 100).await?;
        Ok(page.into_iter().map(|item| item.key).collect())
    }

    async fn close(self) {
        self.lookups.close().await.unwrap();
    }
}

fn is_unconfirmed(answer: Result<bool>) -> bool {
    match answer {
        Err(e) => told(&e),
        Ok(found) => {
            assert!(found, "a missing block is not unknown without the primary");
            false
        }
    }
}

fn told(e: &Error) -> bool {
    assert!(e.is_retryable(), "{e}");
    true
}

/// Rows that only the standby can still give prove where a lookup went: the primary has deleted
/// them.
#[tokio::test(flavor = "multi_thread")]
async fn lookups_go_to_a_standby_that_is_in_time_and_misses_to_the_primary() {
    let pair = Pair::start().await;
    let node = pair.reader(StandbyReads::new(ANY_LAG)).await;
    assert_eq!(node.index.only_reads(), None);
    let writer = pair.writer().await;
    pair.pause();
    // When the standby is asked, the node knows a position that the standby has reached.
    eventually("the standby is asked", || async {
        assert!(node.has("/old").await.unwrap());
        is_asked(&pair.standby)
    })
    .await;
    writer.delete("/old").await.unwrap();
    writer.put(&row("/new", "b", 0, 1)).await.unwrap();
    node.will("/old", true).await;
    assert!(node.has("/new").await.unwrap(), "asked of the primary");
    assert!(!node.has("/none").await.unwrap());
    let many = ["/old", "/new", "/none"].map(String::from);
    let many = node.lookups.find_many(&many).await.unwrap();
    let many: Vec<bool> = many.iter().map(Option::is_some).collect();
    assert_eq!(many, [true, true, false]);
    assert_eq!(
        node.list().await.unwrap(),
        ["/old"],
        "a page is the standby's"
    );
    // What decides about writes asks the primary.
    let rows = node.lookups.get_many(&["/old".into()]).await.unwrap();
    assert!(rows[0].is_none());
    assert!(node.lookups.find_anew("/old").await.unwrap().is_none());
    pair.resume();
    node.will("/old", false).await;
    writer.close().await.unwrap();
    node.close().await;
}

/// Waits until the condition is true.
async fn eventually<F>(what: &str, mut condition: impl FnMut() -> F)
where
    F: std::future::Future<Output = bool>,
{
    let until = std::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(std::time::Instant::now() < until, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether a node has a connection to a server on which it looked keys up.
fn is_asked(server: &Postgres) -> bool {
    let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walrusds' \
                 AND query LIKE '%= ANY($1)%'";
    server.scalar("postgres", count) != "0"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_behind_is_not_believed() {
    let pair = Pair::start().await;
    let node = pair.reader(StandbyReads::new(Duration::from_secs(1))).await;
    let writer = pair.writer().await;
    node.will("/old", true).await;
    pair.pause();
    writer.delete("/old").await.unwrap();
    // Nothing is written any more: the standby stays behind by one deletion, for ever.
    node.will("/old", false).await;
    eventually("the page is the primary's", || async {
        node.list().await.unwrap().is_empty()
    })
    .await;
    for _ in 0..50 {
        assert!(!node.has("/old").await.unwrap(), "the lag only grows");
    }
    pair.resume();
    writer.close().await.unwrap();
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_sees_its_own_writes_whatever_the_standby_knows() {
    let pair = Pair::start().await;
    let node = pair.reader(StandbyReads::new(ANY_LAG)).await;
    node.will("/old", true).await;
    pair.pause();
    node.lookups.put(&row("/mine", "b", 0, 1)).await.unwrap();
    node.lookups.delete("/old").await.unwrap();
    for _ in 0..50 {
        assert!(!node.has("/old").await.unwrap());
        assert!(node.has("/mine").await.unwrap());
        assert_eq!(node.list().await.unwrap(), ["/mine"]);
    }
    pair.resume();
    node.will("/old", false).await;
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_standby_answers_for_blocks_that_it_does_not_know() {
    let pair = Pair::start().await;
    let reads = StandbyReads::new(ANY_LAG).with_trust_misses(true);
    let node = pair.reader(reads).await;
    let writer = pair.writer().await;
    pair.pause();
    // The node knows a position of the primary that the standby has reached when it is asked.
    eventually("the standby is asked", || async {
        node.has("/old").await.unwrap() && is_asked(&pair.standby)
    })
    .await;
    writer.put(&row("/new", "b", 0, 1)).await.unwrap();
    node.will("/new", false).await;
    pair.resume();
    node.will("/new", true).await;
    writer.close().await.unwrap();
    node.close().await;
}

/// The row of a block that a Go node has staged is asked of the primary, since its bytes are there.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_staged_is_asked_of_the_primary_although_misses_are_trusted() {
    let pair = Pair::start().await;
    pair.primary.execute(&pair.db, GO_STAGING);
    pair.primary.execute(
        &pair.db,
        "INSERT INTO walrus_index_staging (key, value, size) VALUES ('/old', 'x', 1), ('/staged', 'x', 1)",
    );
    pair.caught_up().await;
    let reads = StandbyReads::new(ANY_LAG).with_trust_misses(true);
    let node = pair.reader(reads).await;
    eventually("the standby is asked", || async {
        assert!(node.has("/old").await.unwrap());
        assert!(node.has("/staged").await.unwrap());
        is_asked(&pair.standby)
    })
    .await;
    assert!(!node.has("/none").await.unwrap());
    node.close().await;
}

/// Where the URL allows any server, a standby takes no place of the primary while that restarts: a
/// put would be decided by what the standby knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_writes_keeps_to_the_primary() {
    let mut pair = Pair::start().await;
    let index = PostgresIndex::open(PostgresOptions::new(pair.url("any"), "walrus_index"));
    let index = index.await.unwrap();
    assert!(index.get("/old").await.unwrap().is_some());
    pair.primary.down_now();
    let error = index.get("/old").await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(!is_asked(&pair.standby));
    pair.standby.promote();
    eventually("it follows the promoted standby", || async {
        matches!(index.get("/old").await, Ok(Some(_)))
    })
    .await;
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_down_costs_nothing_but_its_help() {
    let mut pair = Pair::start().await;
    pair.standby.down_now();
    let node = pair.reader(StandbyReads::new(ANY_LAG)).await;
    assert!(node.has("/old").await.unwrap());
    assert!(!node.has("/none").await.unwrap());
    pair.standby.up();
    // Once it is back it is found.
    eventually("the standby is asked", || async {
        assert!(node.has("/old").await.unwrap());
        is_asked(&pair.standby)
    })
    .await;
    pair.standby.down_now();
    for _ in 0..20 {
        assert!(node.has("/old").await.unwrap());
        assert!(!node.has("/none").await.unwrap());
        assert_eq!(node.list().await.unwrap(), ["/old"]);
    }
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_primary_what_is_missing_is_an_error() {
    let mut pair = Pair::start().await;
    let node = pair.reader(StandbyReads::new(ANY_LAG)).await;
    node.will("/old", true).await;
    pair.primary.down_now();
    node.will("/old", true).await;
    eventually("a miss is an error", || async {
        is_unconfirmed(node.has("/none").await)
    })
    .await;
    // One that is missing does not hide one that is there.
    let both = ["/old", "/none"].map(String::from);
    let both = node.lookups.find_each(&both).await.unwrap();
    assert!(matches!(&both[0], Ok(Some(_))), "{both:?}");
    assert!(matches!(&both[1], Err(e) if told(e)), "{both:?}");
    // A page could lack rows, and a write cannot be decided.
    eventually("a page is an error", || async {
        node.list().await.is_err()
    })
    .await;
    assert!(node.lookups.get_many(&["/old".into()]).await.is_err());
    assert!(node.lookups.put(&row("/x", "b", 0, 1)).await.is_err());
    let notice = || node.lookups.take_notice();
    eventually("the operator is told", || async {
        notice().is_some_and(|n| n.contains("lookups go on at standbys"))
    })
    .await;
    node.close().await;

    // A node that starts now reads too, and refuses writes until the primary is back.
    let late = pair.reader(StandbyReads::new(ANY_LAG)).await;
    assert!(late
        .index
        .only_reads()
        .is_some_and(|why| why.contains("primary")));
    late.will("/old", true).await;
    assert!(is_unconfirmed(late.has("/none").await));
    pair.primary.up();
    late.will("/none", false).await;
    eventually("writes are taken", || async {
        late.index.only_reads().is_none()
    })
    .await;
    late.lookups.put(&row("/late", "b", 0, 1)).await.unwrap();
    assert!(late.has("/late").await.unwrap());
    late.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_follows_a_standby_that_is_promoted() {
    let mut pair = Pair::start().await;
    let node = pair.reader(StandbyReads::new(ANY_LAG)).await;
    node.will("/old", true).await;
    pair.primary.down_now();
    pair.standby.promote();
    node.will("/none", false).await;
    node.lookups.put(&row("/after", "b", 0, 1)).await.unwrap();
    assert!(node.has("/after").await.unwrap());
    node.lookups.delete("/old").await.unwrap();
    assert!(!node.has("/old").await.unwrap());
    assert_eq!(node.list().await.unwrap(), ["/after"]);
    node.close().await;
}

/// A standby that is promoted by mistake, while the primary goes on, is no source any more: its
/// rows are no longer the primary's. Another standby of the URL takes its place, or the primary.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_promoted_beside_the_primary_is_not_believed() {
    let pair = Pair::start().await;
    let node = pair.reader(StandbyReads::new(ANY_LAG)).await;
    eventually("the standby is asked", || async {
        node.has("/old").await.unwrap() && is_asked(&pair.standby)
    })
    .await;
    pair.standby.promote();
    // From here on each of the two has its own rows.
    let writer = pair.writer().await;
    writer.put(&row("/new", "b", 0, 1)).await.unwrap();
    let beside = format!(
        "postgres://postgres@127.0.0.1:{}/{}?sslmode=disable",
        pair.standby.port(),
        pair.db
    );
    let beside = PostgresIndex::open(PostgresOptions::new(beside, "walrus_index"));
    let beside = beside.await.unwrap();
    for n in 0..100 {
        let key = format!("/astray{n}");
        beside.put(&row(&key, "b", 0, 1)).await.unwrap();
    }
    for _ in 0..50 {
        assert!(!node.has("/astray7").await.unwrap());
        assert!(node.has("/new").await.unwrap());
        assert_eq!(node.list().await.unwrap(), ["/new", "/old"]);
    }
    beside.close().await.unwrap();
    writer.close().await.unwrap();
    node.close().await;
}

/// The same through a datastore: the keys of its configuration decide who reads from a standby.
#[tokio::test(flavor = "multi_thread")]
async fn a_datastore_that_only_retrieves_starts_without_the_primary() {
    let mut pair = Pair::start().await;
    let (known, unknown) = (noise(1, 100), noise(2, 100));
    let empty = Bytes::from_static(&[0x0a, 0x02, 0x08, 0x01]);
    let writer = pair.writer().await;
    for value in [&known, &empty] {
        let len = i64::try_from(value.len()).unwrap();
        writer.put(&row(&key_of(value), "b", 0, len)).await.unwrap();
    }
    writer.close().await.unwrap();
    pair.caught_up().await;
    pair.primary.down_now();
    let dir = tempfile::tempdir().unwrap();
    let open = |keys: &str| {
        let config = Config::from_json(&format!(
            r#"{{"publisherURL": "http://127.0.0.1:1", "aggregatorURL": "http://127.0.0.1:1", {keys}
                "postgresURL": "{}"}}"#,
            pair.url("prefer-standby")
        ));
        WalrusDatastore::open(config.unwrap(), dir.path())
    };
    for writes in [
        r#""disableFlush": false,"#,
        r#""disableFlush": true, "journalPath": "j","#,
    ] {
        let error = open(writes).await.err().expect(writes);
        assert!(error.is_retryable(), "{writes}: {error}");
    }
    let store = open(r#""disableFlush": true,"#).await.unwrap();
    assert!(store.has(&key_of(&known)).await.unwrap());
    assert!(told(&store.has(&key_of(&unknown)).await.unwrap_err()));
    // Kubo puts the empty directory at each start.
    store.put(&key_of(&empty), empty.clone()).await.unwrap();
    store.put(&key_of(&unknown), unknown).await.unwrap_err();
    store.close().await.unwrap();
    let trusting = open(r#""disableFlush": true, "trustStandbyMisses": true,"#)
        .await
        .unwrap();
    eventually("a miss is believed", || async {
        matches!(trusting.has(&key_of(&noise(3, 100))).await, Ok(false))
    })
    .await;
    trusting.close().await.unwrap();
}

/// The URLs of docs/growing-the-index.md: of nodes that write, and of nodes that only retrieve.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_urls() {
    let pair = Pair::start().await;
    let document = documents::read("docs/growing-the-index.md");
    let (primary, standby) = (pair.primary.port(), pair.standby.port());
    let database = format!("/{}?sslmode=disable&", pair.db);
    let url = |line: &str| {
        let (url, _) = line.split_once(' ').unwrap();
        let url = url.replace("walrusds@", "postgres@");
        let url = url.replace("db1", &format!("127.0.0.1:{primary}"));
        let url = url.replace("db2", &format!("127.0.0.1:{standby}"));
        url.replace("/walrusds?", &database)
    };
    let urls = document.lines();
    let urls = urls.filter(|line| line.starts_with("postgres://") && line.contains("db1"));
    let [writes, reads] = &urls.map(url).collect::<Vec<_>>()[..] else {
        panic!("two URLs are documented");
    };
    let block = noise(1, 100);
    let writer = PostgresIndex::open(PostgresOptions::new(writes, "walrus_index"));
    let writer = writer.await.unwrap();
    writer
        .put(&row(&key_of(&block), "b", 0, 100))
        .await
        .unwrap();
    writer.close().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let json = format!(
        r#"{{"publisherURL": "http://127.0.0.1:1", "aggregatorURL": "http://127.0.0.1:1",
            "disableFlush": true, "postgresURL": "{reads}"}}"#
    );
    let config = Config::from_json(&json).unwrap();
    let reader = WalrusDatastore::open(config, dir.path()).await.unwrap();
    eventually("the standby is asked", || async {
        // A block that is not known is asked for anew each time.
        assert!(!reader.has(&key_of(&noise(2, 100))).await.unwrap());
        is_asked(&pair.standby)
    })
    .await;
    assert!(reader.has(&key_of(&block)).await.unwrap());
    reader.close().await.unwrap();
}

/// The kinds of sessions are libpq's.
#[tokio::test(flavor = "multi_thread")]
async fn the_url_chooses_the_server_as_libpq_does() {
    let pair = Pair::start().await;
    let open =
        |attrs: &str| PostgresIndex::open(PostgresOptions::new(pair.url(attrs), "walrus_index"));
    // A primary whose transactions are read-only by default is a primary, and not read-write.
    pair.primary.set("default_transaction_read_only", "on");
    eventually("the setting is in force", || async {
        pair.primary
            .scalar("postgres", "SHOW default_transaction_read_only")
            == "on"
    })
    .await;
    for (attrs, expected) in [
        ("any", Some("transactions of this role are read-only")),
        ("primary", Some("transactions of this role are read-only")),
        ("read-only", Some("transactions of this role are read-only")),
        ("standby", Some("the server is a standby")),
    ] {
        let index = open(attrs).await.unwrap_or_else(|e| panic!("{attrs}: {e}"));
        assert_eq!(index.only_reads(), expected, "{attrs}");
        index.close().await.unwrap();
    }
    let error = open("read-write").await.err().unwrap();
    assert!(
        error.is_retryable() && error.to_string().contains("read-write"),
        "{error}"
    );
    pair.primary.set("default_transaction_read_only", "off");
    eventually("the setting is in force", || async {
        pair.primary
            .scalar("postgres", "SHOW default_transaction_read_only")
            == "off"
    })
    .await;
    for attrs in ["any", "primary", "read-write"] {
        let index = open(attrs).await.unwrap();
        assert_eq!(index.only_reads(), None, "{attrs}");
        index.close().await.unwrap();
    }
    let index = open("read-only").await.unwrap();
    assert_eq!(index.only_reads(), Some("the server is a standby"));
    index.close().await.unwrap();
    // One that may write uses the primary alone, and says so.
    let index = open("prefer-standby").await.unwrap();
    assert_eq!(index.only_reads(), None);
    let notice = index.take_notice().unwrap();
    assert!(
        notice.contains("prefer-standby") && notice.contains("disableFlush"),
        "{notice}"
    );
    index.put(&row("/w", "b", 0, 1)).await.unwrap();
    index.close().await.unwrap();
}
