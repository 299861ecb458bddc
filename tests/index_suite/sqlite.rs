//! What only the embedded index has.

use std::sync::Arc;

use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};

use crate::Env;

pub async fn env() -> Env {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sub/dir/index.sqlite");
    let a = SqliteIndex::open(SqliteOptions::new(&path, "walrus_index"))
        .await
        .unwrap();
    let b = SqliteIndex::open(SqliteOptions::new(&path, "walrus_index"))
        .await
        .unwrap();
    Env {
        a: Arc::new(a),
        b: Arc::new(b),
        quilts: false,
        _keep: Some(dir),
    }
}
