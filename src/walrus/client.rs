//! The client: configuration and the public calls.
//!
//! # What is retried
//!
//! One call walks over the endpoints of its kind. Asking an endpoint for the first time is free;
//! asking one again is a retry, at most [`ClientConfig::max_retries`] per call over all endpoints
//! together. So a call makes at most `endpoints + max_retries` attempts, and with one endpoint and
//! `max_retries` 0 exactly one. Retries go round the endpoints; before each round there is a wait
//! between 0 and `backoff_base · 2^round` (at most `backoff_max`), or what `Retry-After` says.
//!
//! | what happened | then |
//! |---|---|
//! | no connection, DNS or TLS failure, time limit, cut answer | retried |
//! | 408, 425, 429, 5xx | retried |
//! | 200 to a store without exactly one of `newlyCreated`, `alreadyCertified` | retried |
//! | a used-up or expired token | retried with a fresh one |
//! | 404 to a read | other aggregators first; repeated for blobs this client stored |
//! | 413 | the other publishers are asked; the limit is remembered |
//! | other 4xx, 3xx to a store | the other endpoints are asked, this one never again |
//! | wrong length or range, bytes that fail the check | the other aggregators are asked |
//!
//! A read whose answer does not begin in the time usual for that aggregator is asked of a second
//! one too, at most one in ten.
//!
//! Publishers that are well take turns; of the aggregators the first one that is well is used. An
//! endpoint that failed comes last for a while ([`ClientConfig::cool_down`]).

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderValue, ACCEPT_ENCODING};

use super::auth::Auth;
use super::endpoints::{redact_url, Endpoints, Hedging};
use super::joined::Joined;
use super::observe;
use super::read::Effort;
use super::retry::Policy;
use super::shared::{Counters, Shared, Stats};
use super::want::{Part, Want};
use super::{of_length, BlobStore, Body, Check, Fetched, StoreOptions, StoreResult};
use crate::error::{Error, ErrorKind, Result};
use crate::measure::Sample;
use crate::recent::Recent;

/// How many blobs stored by this client are remembered (for the meaning of a 404).
const CERTIFIED_REMEMBERED: usize = 65_536;

/// For how long: caches in front of aggregators keep a 404 for a minute or so. Later a 404 says
/// that the blob has lapsed.
const CERTIFIED_REMEMBER: Duration = Duration::from_secs(180);

/// Idle connections are dropped before servers and proxies usually do it: an upload that goes out
/// on a connection which the other side is just closing fails.
const POOL_IDLE: Duration = Duration::from_secs(20);

/// No limit may be longer; keeps sums of time points in range.
const LONGEST: Duration = Duration::from_secs(30 * 86_400);

/// Configuration of a [`Client`]. `Debug` shows no user info of URLs and no token source's secrets.
#[derive(Clone)]
#[non_exhaustive]
pub struct ClientConfig {
    /// Base URLs of publishers (`http://` or `https://`, user info becomes basic authentication).
    /// Without one the client only reads.
    pub publishers: Vec<String>,
    /// Base URLs of aggregators, the preferred one first. Without one the client only stores.
    pub aggregators: Vec<String>,
    /// How long an attempt may stand still: no piece of a body sent or received, no answer begun.
    /// Not how long it may take, so that a slow link can finish a large blob; but it must keep an
    /// average of 16 KiB/s after that time, and a publisher gets another second per 128 KiB to
    /// encode and certify what it received. Default 60 s.
    pub request_timeout: Duration,
    /// How long connecting may take, TLS included. Default 10 s.
    pub connect_timeout: Duration,
    /// How often a request asks endpoints again, over all endpoints together (asking the next
    /// endpoint for the first time is not counted). 0 is allowed. Default 3.
    pub max_retries: u32,
    /// Longest whole blob or range that is read into memory (bytes). Default 1 GiB; the network
    /// takes up to [`max_blob_size`](super::cost::max_blob_size), which is too much for memory.
    pub max_blob_bytes: u64,
    /// Source of the publisher's bearer token. It wins over user info in a publisher's URL.
    pub auth: Auth,
    /// Longest wait before the first round of retries; doubles each round. Default 500 ms.
    pub backoff_base: Duration,
    /// Longest wait before any round of retries. Default 15 s.
    pub backoff_max: Duration,
    /// Longest `Retry-After` that is obeyed. Default 30 s.
    pub retry_after_max: Duration,
    /// Waits between rounds of reading a blob that this client stored and that no aggregator knows
    /// yet. Default 0.5, 1, 2, 4, 8 s.
    pub not_found_backoff: Vec<Duration>,
    /// Half-life of an endpoint's bad record. Default 10 s.
    pub cool_down: Duration,
}

setters! { ClientConfig {
    with_publishers(publishers: Vec<String>);
    with_aggregators(aggregators: Vec<String>);
    with_request_timeout(request_timeout: Duration);
    with_connect_timeout(connect_timeout: Duration);
    with_max_retries(max_retries: u32);
    with_max_blob_bytes(max_blob_bytes: u64);
    with_auth(auth: Auth);
    with_backoff_base(backoff_base: Duration);
    with_backoff_max(backoff_max: Duration);
    with_retry_after_max(retry_after_max: Duration);
    with_not_found_backoff(not_found_backoff: Vec<Duration>);
    with_cool_down(cool_down: Duration);
} }

impl Default for ClientConfig {
    fn default() -> Self {
        ClientConfig {
            publishers: Vec::new(),
            aggregators: Vec::new(),
            request_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
            max_retries: 3,
            max_blob_bytes: 1 << 30,
            auth: Auth::None,
            backoff_base: Duration::from_millis(500),
            backoff_max: Duration::from_secs(15),
            retry_after_max: Duration::from_secs(30),
            not_found_backoff: [500, 1000, 2000, 4000, 8000]
                .map(Duration::from_millis)
                .into(),
            cool_down: Duration::from_secs(10),
        }
    }
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let redacted = |urls: &[String]| -> Vec<_> { urls.iter().map(|u| redact_url(u)).collect() };
        f.debug_struct("ClientConfig")
            .field("publishers", &redacted(&self.publishers))
            .field("aggregators", &redacted(&self.aggregators))
            .field("request_timeout", &self.request_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("max_retries", &self.max_retries)
            .field("max_blob_bytes", &self.max_blob_bytes)
            .field("auth", &self.auth)
            .field("backoff_base", &self.backoff_base)
            .field("backoff_max", &self.backoff_max)
            .field("retry_after_max", &self.retry_after_max)
            .field("not_found_backoff", &self.not_found_backoff)
            .field("cool_down", &self.cool_down)
            .finish()
    }
}

/// Stores blobs at publishers and reads them from aggregators. Cheap to clone; clones share
/// connections and what was learnt about the endpoints. Calls need a tokio runtime with I/O
/// and time.
///
/// ```
/// use walrusds::{Client, ClientConfig, ErrorKind, StoreOptions};
///
/// # let runtime = tokio::runtime::Runtime::new()?;
/// # let net = walrus_devnet::Devnet::start_blocking(walrus_devnet::Options {
/// #     cheap_ids: true, ..Default::default() })?;
/// # let url = net.url();
/// let config = ClientConfig::default()
///     .with_publishers(vec![url.clone()])
///     .with_aggregators(vec![url]);
/// let client = Client::new(config)?;
/// # runtime.block_on(async {
/// let stored = client.store(&b"hello, world"[..], StoreOptions::new(5)).await?;
/// assert_eq!(client.read(&stored.blob_id).await?, &b"hello, world"[..]);
/// assert_eq!(client.read_range(&stored.blob_id, 7, 5).await?, &b"world"[..]);
///
/// let nowhere = "A".repeat(43);
/// let error = client.read(&nowhere).await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::BlobNotFound);
/// # Ok::<(), walrusds::Error>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |endpoints: &Endpoints| -> Vec<_> {
            let all = (0..endpoints.len()).map(|i| endpoints.get(i).shown().to_string());
            all.collect()
        };
        f.debug_struct("Client")
            .field("publishers", &shown(&self.shared.publishers))
            .field("aggregators", &shown(&self.shared.aggregators))
            .finish_non_exhaustive()
    }
}

fn unchecked(_: &[u8]) -> std::result::Result<(), String> {
    Ok(())
}

impl Client {
    /// Makes a client; connects to nothing yet.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the key of the Kubo spec that a field stands for
    /// (`publisherURL`, `aggregatorURL`, `requestTimeoutSeconds`).
    pub fn new(config: ClientConfig) -> Result<Client> {
        let wrong = |text: &str| Err(Error::new(ErrorKind::Config, text));
        if config.publishers.is_empty() && config.aggregators.is_empty() {
            return wrong("publisherURL, aggregatorURL: at least one URL is needed");
        }
        if config.request_timeout.is_zero() || config.connect_timeout.is_zero() {
            return wrong("requestTimeoutSeconds: the time limit must be positive");
        }
        let cool_down = config.cool_down.min(LONGEST);
        let publishers = Endpoints::parse("publisherURL", &config.publishers, true, cool_down)?;
        let aggregators = Endpoints::parse("aggregatorURL", &config.aggregators, false, cool_down)?;
        if let Auth::Command(command) = &config.auth {
            if command.trim().is_empty() {
                return wrong("authTokenCommand: the command is empty");
            }
        }
        let capped = |time: Duration| time.min(LONGEST);
        Ok(Client {
            shared: Arc::new(Shared {
                http: http_client(capped(config.connect_timeout), true)?,
                http_local: http_client(capped(config.connect_timeout), false)?,
                stores_throttled: AtomicU64::new(0),
                publishers,
                aggregators,
                policy: Policy {
                    max_retries: config.max_retries,
                    backoff_base: capped(config.backoff_base),
                    backoff_max: capped(config.backoff_max),
                    retry_after_max: capped(config.retry_after_max),
                },
                request_timeout: capped(config.request_timeout),
                max_blob_bytes: config.max_blob_bytes,
                not_found_backoff: config
                    .not_found_backoff
                    .iter()
                    .copied()
                    .map(capped)
                    .collect(),
                auth: config.auth,
                certified: Recent::new(CERTIFIED_REMEMBERED, CERTIFIED_REMEMBER),
                stats: Counters::default(),
                hedging: Hedging::default(),
                joined: Joined::default(),
            }),
        })
    }

    /// Stores a blob and returns once it is certified; see [`BlobStore::store`].
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] if no publisher takes a body of this size, [`ErrorKind::Walrus`] if
    /// storing failed otherwise.
    pub async fn store(&self, body: impl Into<Body>, options: StoreOptions) -> Result<StoreResult> {
        self.shared.store(&body.into(), options).await
    }

    /// Reads a whole blob. The bytes are as the aggregator sent them: compare a hash if you have
    /// one.
    ///
    /// # Errors
    /// [`ErrorKind::BlobNotFound`], or [`ErrorKind::Walrus`] if reading failed otherwise.
    pub async fn read(&self, blob_id: &str) -> Result<Bytes> {
        self.all(Want::Blob(blob_id, 0), &unchecked).await
    }

    /// Reads exactly `len` bytes from `offset` on (bytes), never fewer.
    ///
    /// # Errors
    /// As [`read`](Client::read); a range beyond the end of the blob is [`ErrorKind::Walrus`].
    pub async fn read_range(&self, blob_id: &str, offset: u64, len: u64) -> Result<Bytes> {
        BlobStore::read_range(self, blob_id, offset, len, &unchecked).await
    }

    async fn all(&self, want: Want<'_>, check: Check<'_>) -> Result<Bytes> {
        let fetched = self.shared.fetch(want, check, Effort::Full).await?;
        Ok(fetched.bytes)
    }

    /// The counters of this client so far.
    pub fn stats(&self) -> Stats {
        self.shared.stats.snapshot()
    }
}

fn range(id: &str, offset: u64, len: u64, keeps: u64) -> Want<'_> {
    Want::Range(Part {
        id,
        offset,
        len,
        keeps,
    })
}

#[async_trait]
impl BlobStore for Client {
    async fn store(&self, body: Body, options: StoreOptions) -> Result<StoreResult> {
        self.shared.store(&body, options).await
    }

    async fn read(&self, blob_id: &str, check: Check<'_>) -> Result<Bytes> {
        self.all(Want::Blob(blob_id, 0), check).await
    }

    async fn read_known(&self, blob_id: &str, len: u64, check: Check<'_>) -> Result<Bytes> {
        self.all(Want::Blob(blob_id, len), check).await
    }

    async fn read_range(
        &self,
        blob_id: &str,
        offset: u64,
        len: u64,
        check: Check<'_>,
    ) -> Result<Bytes> {
        let fetched = self.read_block(blob_id, offset, len, 0, check).await;
        fetched.map(|fetched| fetched.bytes)
    }

    async fn read_block(
        &self,
        blob_id: &str,
        offset: u64,
        len: u64,
        keeps: u64,
        check: Check<'_>,
    ) -> Result<Fetched> {
        if len == 0 {
            return Ok(Bytes::new().into());
        }
        let want = range(blob_id, offset, len, keeps);
        self.shared.fetch(want, check, Effort::Full).await
    }

    async fn read_window(
        &self,
        blob_id: &str,
        offset: u64,
        len: u64,
        keeps: u64,
    ) -> Result<Fetched> {
        if len == 0 {
            return Ok(Bytes::new().into());
        }
        let want = range(blob_id, offset, len, keeps);
        self.shared.fetch(want, &unchecked, Effort::Once).await
    }

    async fn members(&self, quilt_id: &str, check: Check<'_>) -> Result<Bytes> {
        self.all(Want::Members(quilt_id), check).await
    }

    async fn read_patch(&self, patch_id: &str, check: Check<'_>) -> Result<Bytes> {
        self.all(Want::Patch(patch_id), check).await
    }

    async fn read_patch_of(&self, patch_id: &str, len: u64, check: Check<'_>) -> Result<Bytes> {
        let judge = |bytes: &[u8]| of_length(len, check, bytes);
        self.all(Want::PatchOf(patch_id, len), &judge).await
    }

    fn size_limit(&self) -> u64 {
        self.shared.publishers.size_limit()
    }

    fn throttled(&self) -> u64 {
        self.shared.stores_throttled.load(Relaxed)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.shared.stats.named()
    }

    fn samples(&self) -> Vec<Sample> {
        let Shared {
            publishers,
            aggregators,
            ..
        } = &*self.shared;
        let mut all = observe::samples("publisher", publishers);
        all.extend(observe::samples("aggregator", aggregators));
        all
    }
}

fn http_client(connect_timeout: Duration, proxy: bool) -> Result<reqwest::Client> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let builder = match proxy {
        true => reqwest::Client::builder(),
        false => reqwest::Client::builder().no_proxy(),
    };
    builder
        .tls_backend_preconfigured((*crate::tls::client_config()).clone())
        .user_agent(concat!("walrusds/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .http1_only()
        .connect_timeout(connect_timeout)
        .pool_idle_timeout(POOL_IDLE)
        .tcp_keepalive(Duration::from_secs(60))
        // Both are done here, where the rules are known: which request may follow, what is retried.
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .build()
        .map_err(|error| {
            let (text, cause) = super::transport::describe(error);
            Error::new(ErrorKind::Internal, format!("cannot set up HTTP: {text}"))
                .with_source(cause)
        })
}
