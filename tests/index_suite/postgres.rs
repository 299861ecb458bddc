//! What only the shared index has.

use std::sync::Arc;

use walrusds::index::postgres::{PostgresIndex, PostgresOptions};

use crate::common::postgres::Postgres;
use crate::Env;

/// A database whose default collation is not byte order (as `en_US.UTF-8` is not).
pub const ICU: &str = "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'";

/// The Go plugin's newest tables.
pub const GO_NEWEST: &str = "
    CREATE TABLE walrus_index (key TEXT PRIMARY KEY, blob_id TEXT NOT NULL, object_id TEXT NOT NULL DEFAULT '',
        patch_id TEXT NOT NULL DEFAULT '', blob_offset BIGINT NOT NULL DEFAULT 0, size BIGINT NOT NULL,
        encoded_size BIGINT NOT NULL DEFAULT 0, cost BIGINT NOT NULL DEFAULT 0, deletable BOOLEAN NOT NULL DEFAULT FALSE,
        end_epoch BIGINT NOT NULL DEFAULT 0, expires_at TIMESTAMPTZ, created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
        updated_at TIMESTAMPTZ NOT NULL DEFAULT now());
    CREATE INDEX walrus_index_key_prefix_idx ON walrus_index (key text_pattern_ops);
    CREATE INDEX walrus_index_expires_at_idx ON walrus_index (expires_at);
    CREATE INDEX walrus_index_blob_id_idx ON walrus_index (blob_id);
    CREATE TABLE walrus_index_staging (key TEXT PRIMARY KEY, value BYTEA NOT NULL, size BIGINT NOT NULL,
        created_at TIMESTAMPTZ NOT NULL DEFAULT now(), leased_until TIMESTAMPTZ);
    CREATE INDEX walrus_index_staging_created_idx ON walrus_index_staging (created_at);";

pub async fn open(url: &str) -> PostgresIndex {
    PostgresIndex::open(options(url)).await.unwrap()
}

pub fn options(url: &str) -> PostgresOptions {
    let mut options = PostgresOptions::new(url, "walrus_index");
    options.max_open_conns = 6; // many tests share the server
    options
}

async fn env(db: &str, quilts: bool) -> Env {
    let url = Postgres::shared().url(db);
    Env {
        a: Arc::new(open(&url).await),
        b: Arc::new(open(&url).await),
        quilts,
        _keep: None,
    }
}

pub async fn env_new() -> Env {
    let db = Postgres::shared().database();
    env(&db, false).await
}

pub async fn env_go(database: &str) -> Env {
    let pg = Postgres::shared();
    let db = pg.database_with(database);
    pg.execute(&db, GO_NEWEST);
    env(&db, true).await
}
