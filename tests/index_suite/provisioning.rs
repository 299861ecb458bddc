//! The documented roles, databases and rights, by the documented statements.

use std::io::Write;
use std::process::{Command, Stdio};

use testkit::documents::block;
use testkit::postgres::{blocking, execute_at, Postgres};
use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
use walrusds::{ErrorKind, Index, Result, Rows};

use crate::shared::row;

const OPERATIONS: &str = "docs/operations.md";
const GROWING: &str = "docs/growing-the-index.md";

/// Runs a documented block as a superuser, in psql because it changes the database.
fn psql(pg: &Postgres, database: &str, sql: &str) {
    let mut command = Command::new("psql");
    command
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", &pg.url(database)])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped());
    let done = blocking(|| {
        let mut child = command.spawn().expect("psql is there");
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(sql.as_bytes()).unwrap();
        drop(stdin);
        child.wait_with_output().unwrap()
    });
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{sql}: {said}");
}

async fn open_as(pg: &Postgres, role: &str, database: &str) -> Result<PostgresIndex> {
    let url = pg.url_as(role, database);
    PostgresIndex::open(PostgresOptions::new(url, "walrus_index")).await
}

/// A server with the documented database, and its tables for the roles `walrusds` and `node`.
async fn provisioned() -> Postgres {
    let pg = Postgres::start();
    let owner = block(OPERATIONS, "sql", "CREATE ROLE walrusds LOGIN");
    psql(&pg, "postgres", &owner);
    let node = block(OPERATIONS, "sql", "GRANT USAGE ON SCHEMA walrusds TO node");
    psql(&pg, "walrusds", &node);
    let error = open_as(&pg, "node", "walrusds").await.err().unwrap();
    let script = error.message().split_once("to this one: ");
    let (_, script) = script.unwrap_or_else(|| panic!("no script: {error}"));
    execute_at(&pg.url_as("walrusds", "walrusds"), script);
    let grant = block(
        OPERATIONS,
        "sql",
        "ON ALL TABLES IN SCHEMA walrusds TO node",
    );
    psql(&pg, "walrusds", &grant);
    pg
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_roles() {
    let pg = provisioned().await;
    let node = open_as(&pg, "node", "walrusds").await.unwrap();
    node.put(&row("/k", "b", 0, 1)).await.unwrap();
    let owner = open_as(&pg, "walrusds", "walrusds").await.unwrap();
    assert!(owner.get("/k").await.unwrap().is_some(), "one table");
    owner.delete("/k").await.unwrap();
    for index in [node, owner] {
        assert_eq!(index.take_notice(), None);
        index.close().await.unwrap();
    }
    let schemas = "SELECT string_agg(DISTINCT schemaname, ' ') FROM pg_tables WHERE tablename LIKE 'walrus_index%'";
    assert_eq!(pg.scalar("walrusds", schemas), "walrusds");
}

/// The error says what to do, and no script that would make the tables in another place.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_a_search_path_is_told_how_to_set_it() {
    let pg = provisioned().await;
    pg.execute("walrusds", "CREATE ROLE \"Other\" LOGIN");
    let error = open_as(&pg, "Other", "walrusds").await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Config);
    let (says, cure) = error.message().split_once("in place of s: ").unwrap();
    assert!(says.contains("no schema that it may use"), "{error}");
    let cure = cure.replace(" s TO ", " walrusds TO ");
    let cure = cure.replace("search_path = s;", "search_path = walrusds;");
    pg.execute("walrusds", &cure);
    let rights = block(
        OPERATIONS,
        "sql",
        "ON ALL TABLES IN SCHEMA walrusds TO node",
    );
    pg.execute("walrusds", &rights.replace("TO node", "TO \"Other\""));
    let index = open_as(&pg, "Other", "walrusds").await.unwrap();
    index.put(&row("/k", "b", 0, 1)).await.unwrap();
    index.close().await.unwrap();
}

/// The documented dump, with both roles. `tests/copy_index.rs` compares all that is restored.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_is_restored_for_the_documented_roles() {
    let pg = provisioned().await;
    let node = open_as(&pg, "node", "walrusds").await.unwrap();
    node.put(&row("/k", "b", 0, 1)).await.unwrap();
    node.close().await.unwrap();
    let database = block(GROWING, "sql", "CREATE DATABASE restored");
    psql(&pg, "postgres", &database);
    let rights = block(GROWING, "sql", "GRANT USAGE ON SCHEMA walrusds TO node");
    psql(&pg, "restored", &rights);
    let commands = block(GROWING, "sh", "pg_dump");
    let dir = tempfile::tempdir().unwrap();
    let at = format!("walrusds@127.0.0.1:{}/", pg.port());
    let mut run = Command::new("bash");
    run.args(["-euc", &commands.replace("walrusds@db/", &at)])
        .current_dir(dir.path());
    let done = blocking(|| run.output()).unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.is_empty(), "{said}");
    for role in ["walrusds", "node"] {
        let index = open_as(&pg, role, "restored").await.unwrap();
        assert_eq!(index.take_notice(), None);
        assert!(index.get("/k").await.unwrap().is_some(), "{role}");
        index.put(&row("/k", "b", 0, 1)).await.unwrap();
        index.close().await.unwrap();
    }
}

/// Every table is described, and the documented uninstallation leaves none of them.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_uninstallation_leaves_no_table() {
    let pg = provisioned().await;
    let index = open_as(&pg, "walrusds", "walrusds").await.unwrap();
    index.put(&row("/k", "b", 0, 1)).await.unwrap();
    index.close().await.unwrap();
    let url = pg.url_as("walrusds", "walrusds");
    // As a Go node makes it.
    execute_at(
        &url,
        "CREATE TABLE walrus_index_staging (key TEXT PRIMARY KEY, data BYTEA NOT NULL)",
    );
    let tables = || {
        let all = "SELECT coalesce(string_agg(tablename, ' ' ORDER BY tablename), '') FROM pg_tables WHERE schemaname = 'walrusds'";
        pg.scalar("walrusds", all)
    };
    let made = tables();
    assert!(made.split(' ').count() >= 8, "{made}");
    let document = testkit::documents::read(OPERATIONS);
    let (_, described) = document.split_once("\n### Tables\n").unwrap();
    let (described, _) = described.split_once("\n### ").unwrap();
    for table in made.split(' ') {
        let row = format!("\n| `{table}` | ");
        assert!(described.contains(&row), "{table} is not described");
    }
    execute_at(&url, &block(OPERATIONS, "sql", "DROP TABLE"));
    assert_eq!(tables(), "");
    // The tables that no Go node has made are no error.
    execute_at(&url, &block(OPERATIONS, "sql", "DROP TABLE"));
}
