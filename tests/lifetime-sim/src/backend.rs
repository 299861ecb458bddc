//! The index of a simulation.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use testkit::postgres::{blocking, Postgres};
use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::{Index, Result};

const TABLE: &str = "walrus_index";

pub enum Backend {
    Sqlite(PathBuf),
    Postgres(Arc<Postgres>, String),
}

impl Backend {
    pub fn name(&self) -> &'static str {
        match self {
            Backend::Sqlite(_) => "SQLite",
            Backend::Postgres(..) => "PostgreSQL",
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

    pub async fn open(&self) -> Result<Arc<dyn Index>> {
        Ok(match self {
            Backend::Sqlite(path) => {
                Arc::new(SqliteIndex::open(SqliteOptions::new(path, TABLE)).await?)
            }
            Backend::Postgres(server, database) => {
                let options = PostgresOptions::new(server.url(database), TABLE);
                Arc::new(PostgresIndex::open(options).await?)
            }
        })
    }

    /// Ends the leases of a node that was killed. They run out within minutes of its death, by the
    /// database's clock, which is not simulated: for the simulation that is at once.
    pub fn bury(&self) {
        let sql = format!("DELETE FROM {TABLE}_leases");
        match self {
            Backend::Sqlite(path) => {
                let connection = rusqlite::Connection::open(path).expect("the index");
                let _ = connection.busy_timeout(std::time::Duration::from_secs(10));
                // Fails where the tables were not made before the kill.
                let _ = connection.execute(&sql, []);
            }
            Backend::Postgres(server, database) => blocking(|| {
                let _ = server.client(database).batch_execute(&sql);
            }),
        }
    }
}
