//! Helpers shared by the integration tests.
#![allow(dead_code)] // each test binary uses its own part of this

pub mod epochs;
pub mod faulty;
pub mod mem;
pub mod model;
pub mod postgres;

/// TLS settings for a client that only speaks plain HTTP (reqwest insists on some).
pub fn no_tls() -> rustls::ClientConfig {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("default versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}
