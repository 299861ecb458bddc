//! PostgreSQL fails.

use std::time::Duration;

use crate::common::postgres::Postgres;
use crate::scene::{devnet, open, spec, Scene, INDEX_RETRYABLE, SECRET};

const GROUP: &str = "PostgreSQL";

/// A node on a server; the URL carries a password that the server does not ask for.
async fn start(case: &'static str, pg: &Postgres) -> (walrus_devnet::Devnet, Scene) {
    let net = devnet().await;
    let db = pg.database();
    let mut spec = spec(&net);
    spec["postgresURL"] = pg.url_as(&format!("postgres:{SECRET}"), &db).into();
    let repo = tempfile::tempdir().expect("repo");
    let ds = open(&spec, repo.path()).await;
    (net, Scene::start(GROUP, case, vec![ds]).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn restarted_fast() {
    let mut pg = Postgres::start();
    let (_net, mut scene) = start("restarted (fast shutdown), down for 1.5 s", &pg).await;
    scene.strike(|| pg.down()).await;
    scene.hold(Duration::from_millis(1500)).await;
    scene.heal(|| pg.up(), INDEX_RETRYABLE).await;
}
