//! The tools that the tests share: a store and an index in memory, a node with a journal on them,
//! faults, a PostgreSQL, hostile HTTP, the model of a datastore, the documents, and one way of
//! waiting.

pub mod citus;
pub mod documents;
pub mod epochs;
pub mod faulty;
pub mod flatfs;
pub mod hostile;
pub mod mem;
pub mod model;
pub mod node;
pub mod postgres;

/// The longest wait of a test for an expected event: longer than a machine takes that is busy with
/// other work.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

/// Waits until the condition is true; fails after [`PATIENCE`].
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < until, "never came true: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// TLS settings for a client that only speaks plain HTTP (reqwest insists on some).
pub fn no_tls() -> rustls::ClientConfig {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("default versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}
