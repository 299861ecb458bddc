//! The state that the calls of a client share: connections, endpoints and facts learnt about them,
//! counters.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use url::Url;

use super::auth::Auth;
use super::blob_id;
use super::endpoints::{Endpoints, Hedging};
use super::joined::Joined;
use super::retry::{Class, Failure, Policy, Rotation};
use super::transport::is_local;
use crate::recent::Recent;

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts the work of a [`Client`](super::Client) since it was made.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            /// Every counter under its name in the metrics snapshot.
            pub(super) fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((concat!("walrus_", stringify!($name)), self.$name.load(Relaxed)),)*]
            }

            pub(super) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

stats! {
    /// Blobs stored.
    puts,
    /// Bytes of the blobs stored.
    put_bytes,
    /// Stores that failed after all attempts.
    put_failures,
    /// Reads that an aggregator answered well.
    gets,
    /// Bytes of blobs received from aggregators, failed attempts included.
    get_bytes,
    /// Attempts at an endpoint that the request had asked before.
    retries,
    /// Attempts at another endpoint after one failed.
    failovers,
    /// 429 and 503 answers: the caller should ask for less at a time.
    throttled,
    /// 404 answers.
    not_found,
    /// Answers whose bytes failed the caller's check.
    corrupt,
    /// Reads that a second aggregator was asked for, since the first was slow to answer.
    hedges,
    /// Those in which the second was first.
    hedge_wins,
    /// Paid for new blobs (FROST).
    cost_frost,
    /// Encoded size of new blobs on the network (bytes).
    encoded_bytes,
}

/// The state that the calls of one client share.
pub(super) struct Shared {
    pub(super) http: reqwest::Client,
    /// For this machine's own addresses: without the proxy of the environment.
    pub(super) http_local: reqwest::Client,
    /// 429 and 503 answers of publishers.
    pub(super) stores_throttled: AtomicU64,
    pub(super) publishers: Endpoints,
    pub(super) aggregators: Endpoints,
    pub(super) policy: Policy,
    pub(super) request_timeout: Duration,
    pub(super) max_blob_bytes: u64,
    pub(super) not_found_backoff: Vec<Duration>,
    pub(super) auth: Auth,
    /// Blobs that this client stored so shortly ago that an aggregator may not know them yet.
    pub(super) certified: Recent<[u8; 32]>,
    pub(super) stats: Counters,
    pub(super) hedging: Hedging,
    pub(super) joined: Joined,
}

impl Shared {
    pub(super) fn count(&self, rotation: &Rotation<'_>) {
        self.stats.retries.fetch_add(rotation.retries, Relaxed);
        self.stats.failovers.fetch_add(rotation.failovers, Relaxed);
    }

    /// The HTTP client for requests to `url`.
    pub(super) fn http(&self, url: &Url) -> &reqwest::Client {
        match is_local(url) {
            true => &self.http_local,
            false => &self.http,
        }
    }

    /// Counts a failed attempt, and remembers it if it speaks against the endpoint.
    pub(super) fn note(&self, endpoints: &Endpoints, index: usize, failure: &Failure) {
        endpoints.get(index).tally.failed(failure.cause());
        let class = failure.class;
        let counter = match class {
            Class::Throttled => Some(&self.stats.throttled),
            Class::NotFound => Some(&self.stats.not_found),
            Class::Corrupt => Some(&self.stats.corrupt),
            _ => None,
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Relaxed);
        }
        // Uploads at once follow the publishers alone.
        if class == Class::Throttled && std::ptr::eq(endpoints, &self.publishers) {
            self.stores_throttled.fetch_add(1, Relaxed);
        }
        if class.is_bad_sign() {
            endpoints.failed(index);
        } else if class == Class::NotFound {
            endpoints.succeeded(index);
        }
    }

    pub(super) fn remember_certified(&self, id: &str) {
        if let Some(key) = blob_id::decode(id) {
            self.certified.insert(key);
        }
    }
}
