//! The real indexes: their configuration, and reads of their rows from outside.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use testkit::postgres::{blocking, Postgres};

/// A row, as it lies in the table.
pub struct Row {
    pub key: String,
    pub blob_id: String,
    pub offset: i64,
    pub size: i64,
}

const COLUMNS: &str = "key, blob_id, blob_offset, size";

/// An index of its own: a file, or a database.
#[derive(Clone)]
pub enum Backend {
    Sqlite(PathBuf),
    Postgres(Arc<Postgres>, String),
}

impl Backend {
    pub fn sqlite(dir: &Path, name: &str) -> Self {
        Backend::Sqlite(dir.join(format!("{name}.sqlite")))
    }

    pub fn postgres(server: &Arc<Postgres>) -> Self {
        Backend::Postgres(Arc::clone(server), server.database())
    }

    /// The index's name, with which the names of its fail points begin.
    pub fn name(&self) -> &'static str {
        match self {
            Backend::Sqlite(_) => "sqlite",
            Backend::Postgres(..) => "postgres",
        }
    }

    /// Names it in a configuration.
    pub fn configure(&self, config: &mut Value) {
        match self {
            Backend::Sqlite(path) => config["indexPath"] = path.display().to_string().into(),
            Backend::Postgres(server, database) => {
                config["postgresURL"] = server.url(database).into();
            }
        }
    }

    /// After a kill: waits until the server has finished what the dead client asked for, and lets
    /// the leases of the dead run out.
    pub fn settle(&self) {
        match self {
            Backend::Sqlite(path) => {
                let connection = rusqlite::Connection::open(path).expect("index");
                let _ = connection.busy_timeout(Duration::from_secs(10));
                // Fails where the tables were not made before the kill.
                let _ = connection.execute("DELETE FROM walrus_index_leases", []);
            }
            Backend::Postgres(server, database) => blocking(|| {
                let mut client = server.client(database);
                let others =
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                              AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
                for _ in 0..3000 {
                    let n: i64 = client.query_one(others, &[]).expect("activity").get(0);
                    if n == 0 {
                        let _ = client.batch_execute("DELETE FROM walrus_index_leases");
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                panic!("PostgreSQL still works for a client that is dead");
            }),
        }
    }

    /// Runs statements, of which each index takes its own.
    pub fn run(&self, sqlite: &str, postgres: &str) {
        match self {
            Backend::Sqlite(path) => {
                let connection = rusqlite::Connection::open(path).expect("index");
                let _ = connection.busy_timeout(Duration::from_secs(60));
                connection.execute_batch(sqlite).expect("a change");
            }
            Backend::Postgres(server, database) => server.execute(database, postgres),
        }
    }

    /// The first value that a query gives, as text; `None` if it gives no row.
    pub fn ask(&self, sql: &str) -> Option<String> {
        match self {
            Backend::Sqlite(path) => {
                let connection = rusqlite::Connection::open(path).expect("index");
                let _ = connection.busy_timeout(Duration::from_secs(60));
                connection.query_row(sql, [], |row| row.get(0)).ok()
            }
            Backend::Postgres(server, database) => blocking(|| {
                let rows = server.client(database).query(sql, &[]).expect("an answer");
                rows.first().map(|row| row.get(0))
            }),
        }
    }

    /// All rows.
    pub fn rows(&self) -> Vec<Row> {
        let sql = format!("SELECT {COLUMNS} FROM walrus_index");
        match self {
            Backend::Sqlite(path) => {
                let connection = rusqlite::Connection::open(path).expect("index");
                let mut all = connection.prepare(&sql).expect("rows");
                let rows = all.query_map([], |row| {
                    Ok(Row {
                        key: row.get(0)?,
                        blob_id: row.get(1)?,
                        offset: row.get(2)?,
                        size: row.get(3)?,
                    })
                });
                rows.expect("rows").map(|row| row.expect("a row")).collect()
            }
            Backend::Postgres(server, database) => blocking(|| {
                let rows = server.client(database).query(&sql, &[]).expect("rows");
                rows.iter()
                    .map(|row| Row {
                        key: row.get(0),
                        blob_id: row.get(1),
                        offset: row.get(2),
                        size: row.get(3),
                    })
                    .collect()
            }),
        }
    }
}
