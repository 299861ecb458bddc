//! A local Walrus: publisher, aggregator and admin endpoints in one process.
//!
//! It speaks the HTTP interface of the real daemons closely enough that a client cannot tell the
//! difference, computes true blob IDs, bills by the true formula and keeps an epoch clock that
//! tests can turn. The README lists the faithful parts and the others.
//!
//! ```
//! let net = walrus_devnet::Devnet::start_blocking(walrus_devnet::Options {
//!     cheap_ids: true,
//!     ..Default::default()
//! })?;
//! assert!(net.url().starts_with("http://127.0.0.1:"));
//! net.advance_epoch(1);
//! assert_eq!(net.epoch(), 2);
//! # Ok::<(), std::io::Error>(())
//! ```
#![deny(unsafe_code, missing_docs)]

mod blob_id;
mod disk;
mod faults;
mod http;
mod network;
mod object_id;
mod quilt;
mod registration;
mod server;
mod stats;
mod text;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub use blob_id::{cheap_blob_id, BlobId, BlobIdParseError, Geometry, TooLarge};
pub use faults::{FaultAction, FaultMatch, FaultPlan, FaultReport, FaultRule, Loss, Op};
pub use jsonwebtoken::Algorithm as JwtAlgorithm;
pub use network::{BlobInfo, Prices, PUBLISHER_ADDRESS};
pub use object_id::{ObjectId, ObjectIdParseError};
pub use quilt::{make_quilt, read_quilt, QuiltMember};
pub use registration::{FreeStorage, Registration};
pub use stats::Stats;

use disk::Disk;
use http::Shared;
use network::{Network, Setup};

/// The services of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// PUT only.
    Publisher,
    /// GET only.
    Aggregator,
    /// Both.
    #[default]
    Daemon,
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "publisher" => Ok(Role::Publisher),
            "aggregator" => Ok(Role::Aggregator),
            "daemon" => Ok(Role::Daemon),
            _ => Err(format!("{text:?} is none of publisher, aggregator, daemon")),
        }
    }
}

/// The publisher's requirements on a bearer token. As in the original, setting none of the fields
/// requires nothing.
#[derive(Clone, Default)]
pub struct Jwt {
    /// The decoding key: the secret itself, or a public key in DER. Without one the signature is
    /// not checked.
    pub secret: Option<Vec<u8>>,
    /// The algorithm. Default: HS256.
    pub algorithm: JwtAlgorithm,
    /// If not 0, `exp` must be exactly so many seconds after `iat`.
    pub expiring_sec: u64,
    /// The upload must match the claims.
    pub verify_upload: bool,
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwt")
            .field("algorithm", &self.algorithm)
            .field("expiring_sec", &self.expiring_sec)
            .field("verify_upload", &self.verify_upload)
            .finish_non_exhaustive()
    }
}

/// The options of a devnet. The defaults are those of the real network, in memory.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the first endpoint listens. Default: a free port of 127.0.0.1.
    pub listen: SocketAddr,
    /// The role of the first endpoint.
    pub role: Role,
    /// Keep everything in this directory. Default: in memory.
    pub data: Option<PathBuf>,
    /// Number of shards: 1000 as on the real networks. Fewer make true blob IDs (other ones!)
    /// much cheaper; 100 allow blobs up to 149 MB.
    pub shards: u16,
    /// Blob IDs that are a plain hash of the content.
    pub cheap_ids: bool,
    /// The prices of storage and writes.
    pub prices: Prices,
    /// The epoch to begin with.
    pub first_epoch: u32,
    /// How long an epoch lasts. Default: until it is advanced by hand.
    pub epoch_duration: Option<Duration>,
    /// Added duration of an upload, beyond its real one.
    pub latency_put: Duration,
    /// Added duration of a read, beyond its real one.
    pub latency_get: Duration,
    /// The largest body of a blob PUT, in bytes.
    pub max_body: u64,
    /// The largest body of a quilt PUT, in bytes.
    pub max_quilt_body: u64,
    /// The largest blob the aggregator serves as a whole; larger ones get 403.
    pub max_blob_size: Option<u64>,
    /// Uploads that run at once, per route; 0: any number.
    pub publisher_concurrency: usize,
    /// Uploads that wait when that many run; the next is shed with 429.
    pub publisher_buffer: usize,
    /// Reads that run at once, per route; 0: any number.
    pub aggregator_concurrency: usize,
    /// Reads that wait when that many run; the next is shed with 429.
    pub aggregator_buffer: usize,
    /// The publisher has a single wallet that keeps what it registers, so that
    /// `reuse_resources=true` finds something to reuse.
    pub single_wallet: bool,
    /// Demand a JWT for every PUT. Default: no.
    pub jwt: Option<Jwt>,
    /// How long requests in flight may take to finish after a stop.
    pub grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            role: Role::Daemon,
            data: None,
            shards: 1000,
            cheap_ids: false,
            prices: Prices::default(),
            first_epoch: 1,
            epoch_duration: None,
            latency_put: Duration::ZERO,
            latency_get: Duration::ZERO,
            max_body: 10 << 20,
            max_quilt_body: 100 << 20,
            max_blob_size: None,
            publisher_concurrency: 8,
            publisher_buffer: 8,
            aggregator_concurrency: 256,
            aggregator_buffer: 320,
            single_wallet: false,
            jwt: None,
            grace: Duration::from_millis(200),
        }
    }
}

/// A running devnet. Dropping it stops it at once; [`Devnet::shutdown`] lets requests finish.
pub struct Devnet {
    shared: Arc<Shared>,
    endpoints: Mutex<Vec<Listening>>,
    address: SocketAddr,
    runtime: tokio::runtime::Handle,
}

struct Listening {
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

impl fmt::Debug for Devnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Devnet({})", self.url())
    }
}

impl Devnet {
    /// Starts a devnet on the current tokio runtime.
    ///
    /// # Errors
    ///
    /// The address cannot be bound, the options make no sense, or the data directory cannot be
    /// read.
    pub async fn start(options: Options) -> io::Result<Devnet> {
        let geometry = Geometry::new(options.shards)
            .map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        let (disk, records) = match &options.data {
            Some(root) => {
                let (disk, records) = Disk::open(root)?;
                (Some(disk), records)
            }
            None => (None, Vec::new()),
        };
        let setup = Setup {
            geometry,
            cheap_ids: options.cheap_ids,
            prices: options.prices,
            first_epoch: options.first_epoch,
            epoch_duration: options.epoch_duration,
            single_wallet: options.single_wallet,
        };
        let (listen, role) = (options.listen, options.role);
        let shared = Arc::new(Shared {
            network: Network::open(setup, disk, records)?,
            options,
            counters: Default::default(),
            faults: Default::default(),
            cached: Default::default(),
            tokens: Default::default(),
        });
        let net = Devnet {
            shared,
            endpoints: Mutex::new(Vec::new()),
            address: listen,
            runtime: tokio::runtime::Handle::current(),
        };
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        net.serve(listener, role);
        Ok(Devnet { address, ..net })
    }

    /// Starts a devnet on a thread and runtime of its own; dropped, it stops.
    ///
    /// # Errors
    ///
    /// As [`Devnet::start`].
    pub fn start_blocking(options: Options) -> io::Result<BlockingDevnet> {
        BlockingDevnet::start(options)
    }

    fn serve(&self, listener: TcpListener, role: Role) -> usize {
        let (stop, stopped) = watch::channel(false);
        let mut endpoints = self.endpoints.lock();
        let router = http::router(Arc::clone(&self.shared), role, endpoints.len());
        let grace = self.shared.options.grace;
        let task = self
            .runtime
            .spawn(server::serve(listener, router, stopped, grace));
        endpoints.push(Listening {
            stop,
            task: Some(task),
        });
        endpoints.len() - 1
    }

    /// The base URL of the first endpoint, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address of the first endpoint.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The current epoch.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.shared.network.epoch()
    }

    /// Ends `by` epochs; returns the new one.
    ///
    /// # Panics
    ///
    /// If the journal cannot be written; the same goes for all methods that change state.
    pub fn advance_epoch(&self, by: u32) -> u32 {
        written(self.shared.network.advance_epoch(by))
    }

    /// Sets the current epoch.
    pub fn set_epoch(&self, epoch: u32) {
        written(self.shared.network.set_epoch(epoch));
    }

    /// Sets the current epoch and when it began, for tests that keep their own time.
    pub fn set_epoch_since(&self, epoch: u32, since: SystemTime) {
        written(self.shared.network.set_epoch_since(epoch, since));
    }

    /// Counts of requests, answers and charges so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// All blobs held, expired ones included, by ID.
    #[must_use]
    pub fn blobs(&self) -> Vec<BlobInfo> {
        self.shared.network.list()
    }

    /// The content of a blob, if it could be read by a client now.
    #[must_use]
    pub fn content(&self, id: &BlobId) -> Option<Bytes> {
        let found = self.shared.network.find(id)?;
        self.shared.network.read(&found, 0, found.size).ok()
    }

    /// The blob ID this devnet gives to this content. Encodes: takes a while.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] for this number of shards.
    pub fn blob_id(&self, data: &[u8]) -> Result<BlobId, TooLarge> {
        self.shared.network.id_of(data)
    }

    /// Puts any bytes under any ID and replaces those there: the blob may contradict its ID.
    pub fn insert_blob(&self, id: BlobId, data: impl Into<Bytes>, epochs: u32) -> Registration {
        let network = &self.shared.network;
        written(network.insert(id, data.into(), epochs, false, true))
    }

    /// Makes a blob vanish. `false`: there was none.
    pub fn delete_blob(&self, id: &BlobId) -> bool {
        written(self.shared.network.delete(id))
    }

    /// Puts a blob on the blocklist (451), or takes it off.
    pub fn block_blob(&self, id: BlobId, blocked: bool) {
        if blocked {
            self.shared.network.block(id);
        } else {
            self.shared.network.unblock(&id);
        }
    }

    /// Drops all blobs that no registration keeps alive; returns how many.
    pub fn collect_expired(&self) -> usize {
        written(self.shared.network.collect_expired())
    }

    /// The registrations that their owners have deleted since this was called last, as they were
    /// then, each as a blob with no other one. The first call returns none and begins to keep them.
    #[must_use]
    pub fn take_deleted(&self) -> Vec<BlobInfo> {
        self.shared.network.take_deleted()
    }

    /// The storage that is paid for and that no blob uses, by ID: what deleted blobs left.
    #[must_use]
    pub fn free_storage(&self) -> Vec<FreeStorage> {
        self.shared.network.free_storage()
    }

    /// Sets the attributes of a Blob object. `false`: there is no such object.
    pub fn set_attributes(&self, object: &ObjectId, attributes: Vec<(String, String)>) -> bool {
        written(self.shared.network.set_attributes(object, attributes))
    }

    /// Replaces all fault rules.
    pub fn set_faults(&self, plan: impl Into<FaultPlan>) {
        self.shared.faults.replace(plan.into());
        self.shared.cached.clear();
    }

    /// Adds fault rules to those in force.
    pub fn add_faults(&self, plan: impl Into<FaultPlan>) {
        self.shared.faults.add(plan.into());
    }

    /// Removes all fault rules.
    pub fn clear_faults(&self) {
        self.set_faults(FaultPlan::default());
    }

    /// The fault rules in force, and how often each fired.
    #[must_use]
    pub fn faults(&self) -> Vec<FaultReport> {
        self.shared.faults.report()
    }

    /// Forgets all blobs, counts, faults and used tokens and starts again at the first epoch.
    pub fn reset(&self) {
        written(self.shared.reset());
    }

    /// Opens one more endpoint onto the same network, e.g. a second aggregator; returns its
    /// number (the first endpoint is 0) and base URL.
    ///
    /// # Errors
    ///
    /// The address cannot be bound.
    pub fn add_endpoint(&self, role: Role, listen: SocketAddr) -> io::Result<(usize, String)> {
        let listener = std::net::TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let _inside = self.runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        let url = format!("http://{}", listener.local_addr()?);
        Ok((self.serve(listener, role), url))
    }

    /// Stops an endpoint at once: its connections are closed, new ones are refused.
    pub fn stop_endpoint(&self, number: usize) {
        if let Some(endpoint) = self.endpoints.lock().get_mut(number) {
            if let Some(task) = endpoint.task.take() {
                task.abort();
            }
        }
    }

    /// Stops listening and waits for requests in flight, for at most [`Options::grace`].
    pub async fn shutdown(self) {
        let endpoints = std::mem::take(&mut *self.endpoints.lock());
        for endpoint in &endpoints {
            endpoint.stop.send_replace(true);
        }
        for mut endpoint in endpoints {
            if let Some(task) = endpoint.task.take() {
                let _ = task.await;
            }
        }
    }
}

fn written<T>(result: io::Result<T>) -> T {
    result.expect("the data directory can be written")
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// A devnet on a thread of its own, with all methods of a [`Devnet`]; dropping it stops it.
#[derive(Debug)]
pub struct BlockingDevnet {
    net: Option<Arc<Devnet>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl BlockingDevnet {
    fn start(options: Options) -> io::Result<Self> {
        let (ready, started) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new()
            .name("walrus-devnet".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .thread_name("walrus-devnet")
                    .enable_all()
                    .build();
                let runtime = match runtime {
                    Ok(runtime) => runtime,
                    Err(why) => return drop(ready.send(Err(why))),
                };
                match runtime.block_on(Devnet::start(options)) {
                    Ok(net) => {
                        let net = Arc::new(net);
                        let _ = ready.send(Ok(Arc::clone(&net)));
                        runtime.block_on(async {
                            let _ = stopped.await;
                        });
                        net.endpoints.lock().clear();
                        drop(net);
                        runtime.shutdown_timeout(Duration::from_secs(5));
                    }
                    Err(why) => drop(ready.send(Err(why))),
                }
            })?;
        let net = started
            .recv()
            .map_err(|_| io::Error::other("the devnet's thread ended"))??;
        Ok(BlockingDevnet {
            net: Some(net),
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Deref for BlockingDevnet {
    type Target = Devnet;

    fn deref(&self) -> &Devnet {
        self.net.as_ref().expect("it runs until it is dropped")
    }
}

impl Drop for BlockingDevnet {
    fn drop(&mut self) {
        self.net = None;
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
