//! The HTTP interface: routes, limits and counting.

mod admin;
mod auth;
mod body;
mod chain;
mod error;
mod fault;
mod put_query;
mod quilts;
mod read;
mod write;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{header, Method, Response};
use axum::middleware::{from_fn_with_state, Next};
use axum::response::Html;
use axum::routing::{get, put, MethodRouter};
use axum::Router;
use http_body::Body as _;
use tokio::sync::Semaphore;
use tower_http::cors::{Any, CorsLayer};

use crate::faults::{Faults, Op};
use crate::network::Network;
use crate::stats::{Counters, Stats};
use crate::{Options, Role};

/// The state that all endpoints of a devnet share.
pub(crate) struct Shared {
    pub network: Network,
    pub options: Options,
    pub counters: Counters,
    pub faults: Faults,
    pub cached: fault::CachedNotFound,
    pub tokens: auth::UsedTokens,
}

impl Shared {
    pub fn stats(&self) -> Stats {
        let mut stats = self.counters.snapshot();
        let billing = &self.network.billing;
        stats.billed_units = billing.units.load(Ordering::Relaxed);
        stats.cost_frost = billing.cost.load(Ordering::Relaxed);
        stats.newly_created = billing.newly_created.load(Ordering::Relaxed);
        stats.already_certified = billing.already_certified.load(Ordering::Relaxed);
        stats.extended = billing.extended.load(Ordering::Relaxed);
        stats.deleted = billing.deleted.load(Ordering::Relaxed);
        (stats.stored_blobs, stats.stored_bytes) = self.network.totals();
        stats
    }

    /// Forgets everything but the configuration.
    pub fn reset(&self) -> std::io::Result<()> {
        self.network.reset()?;
        self.counters.reset();
        self.faults.replace(Default::default());
        self.cached.clear();
        self.tokens.clear();
        Ok(())
    }
}

/// One listening address with its role.
pub(crate) struct Endpoint {
    shared: Arc<Shared>,
    role: Role,
    /// Its number; the first is 0.
    index: usize,
}

impl Endpoint {
    fn network(&self) -> &Network {
        &self.shared.network
    }

    fn options(&self) -> &Options {
        &self.shared.options
    }

    fn stats(&self) -> &Counters {
        &self.shared.counters
    }

    fn role(&self) -> Role {
        self.role
    }
}

/// Bounds the requests of one route: some run, some wait, the rest is shed.
struct Gate {
    what: &'static str,
    room: usize,
    inside: AtomicUsize,
    running: Semaphore,
}

impl Gate {
    /// `concurrency` 0 means no bound.
    fn new(what: &'static str, concurrency: usize, buffer: usize) -> Arc<Self> {
        let unbounded = concurrency == 0;
        Arc::new(Gate {
            what,
            room: if unbounded {
                usize::MAX
            } else {
                concurrency + buffer
            },
            inside: AtomicUsize::new(0),
            running: Semaphore::new(if unbounded {
                Semaphore::MAX_PERMITS
            } else {
                concurrency
            }),
        })
    }
}

struct Inside<'a>(&'a AtomicUsize);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn pass(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response<Body> {
    let before = gate.inside.fetch_add(1, Ordering::AcqRel);
    let _inside = Inside(&gate.inside);
    if before >= gate.room {
        body::discard_in_background(request.into_body());
        return error::overloaded(gate.what);
    }
    let _permit = gate.running.acquire().await;
    next.run(request).await
}

pub(crate) fn router(shared: Arc<Shared>, role: Role, index: usize) -> Router {
    let endpoint = Arc::new(Endpoint {
        shared,
        role,
        index,
    });
    let options = endpoint.options();
    let reads = |route: MethodRouter<Arc<Endpoint>>| {
        let gate = Gate::new(
            "aggregator",
            options.aggregator_concurrency,
            options.aggregator_buffer,
        );
        route.layer(from_fn_with_state(gate, pass))
    };
    let writes = |route: MethodRouter<Arc<Endpoint>>| {
        let gate = Gate::new(
            "publisher",
            options.publisher_concurrency,
            options.publisher_buffer,
        );
        route
            .layer(from_fn_with_state(Arc::clone(&endpoint), auth::authorize))
            .layer(from_fn_with_state(gate, pass))
    };

    let mut router = Router::new()
        .route("/status", get(|| async { "OK" }))
        .route("/v1/api", get(api_page))
        .merge(admin::router())
        .merge(chain::router());
    if role != Role::Publisher {
        router = router
            .route("/v1/blobs/{blob_id}", reads(get(read::blob)))
            .route(
                "/v1/blobs/by-object-id/{blob_object_id}",
                reads(get(read::by_object_id)),
            )
            .route(
                "/v1/blobs/{blob_id}/byte-range",
                reads(get(read::byte_range)),
            )
            .route(
                "/v1alpha/blobs/{blob_id}/stream",
                reads(get(read::streamed)),
            )
            .route(
                "/v1alpha/blobs/concat",
                reads(get(read::concat_get).post(read::concat_post)),
            )
            .route(
                "/v1/blobs/by-quilt-patch-id/{quilt_patch_id}",
                reads(get(quilts::by_patch_id)),
            )
            .route(
                "/v1/blobs/by-quilt-id/{quilt_id}/{identifier}",
                reads(get(quilts::by_identifier)),
            )
            .route("/v1/quilts/{quilt_id}/patches", reads(get(quilts::patches)));
    }
    if role != Role::Aggregator {
        let max = options.max_quilt_body;
        let max = DefaultBodyLimit::max(usize::try_from(max).unwrap_or(usize::MAX));
        router = router
            .route("/v1/blobs", writes(put(write::put_blob)))
            .route("/v1/quilts", writes(put(quilts::put).layer(max)));
    }
    router
        .layer(from_fn_with_state(Arc::clone(&endpoint), observe))
        .layer(
            CorsLayer::new()
                .allow_origin(Any)
                .allow_methods(Any)
                .allow_headers(Any)
                .max_age(Duration::from_secs(86_400)),
        )
        .with_state(endpoint)
}

/// Counts every request but the admin's own; those to the chain are a program's, and counted.
async fn observe(
    State(endpoint): State<Arc<Endpoint>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let op = classify(&request);
    if request.uri().path().starts_with("/admin") && !op.is_on_chain() {
        return next.run(request).await;
    }
    let head = request.method() == Method::HEAD;
    let _in_flight = endpoint.stats().begin(op);
    let response = if endpoint.shared.faults.any() {
        fault::run(&endpoint, op, request, next).await
    } else {
        next.run(request).await
    };
    let bytes = response.body().size_hint().exact().unwrap_or(0);
    endpoint
        .stats()
        .answered(response.status().as_u16(), bytes, head);
    response
}

async fn api_page() -> Html<&'static str> {
    Html("<!DOCTYPE html><title>Walrus devnet</title><p>The interface is described in the README.")
}

fn classify(request: &Request) -> Op {
    let read = matches!(*request.method(), Method::GET | Method::HEAD);
    let mut parts = request.uri().path().split('/').skip(1);
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("v1"), Some("blobs"), None, None) if request.method() == Method::PUT => Op::Put,
        (Some("v1"), Some("quilts"), None, None) if request.method() == Method::PUT => Op::PutQuilt,
        (Some("v1alpha"), Some("blobs"), Some("concat"), None) => Op::Concat,
        (Some("admin"), Some("chain"), Some(operation), None) => match operation {
            "extend" => Op::ChainExtend,
            "delete" => Op::ChainDelete,
            "list" => Op::ChainList,
            "status" => Op::ChainStatus,
            "price" | "epoch" => Op::ChainInfo,
            _ => Op::Other,
        },
        _ if !read => Op::Other,
        (Some("v1"), Some("blobs"), Some("by-object-id"), Some(_)) => Op::Object,
        (Some("v1"), Some("blobs"), Some("by-quilt-patch-id" | "by-quilt-id"), Some(_)) => {
            Op::QuiltPatch
        }
        (Some("v1"), Some("blobs"), Some(_), Some("byte-range")) => Op::ByteRange,
        (Some("v1"), Some("blobs"), Some(_), None) => {
            if request.headers().contains_key(header::RANGE) {
                Op::Range
            } else {
                Op::Get
            }
        }
        (Some("v1"), Some("quilts"), Some(_), Some("patches")) => Op::QuiltPatches,
        (Some("v1alpha"), Some("blobs"), Some(_), Some("stream")) => Op::Stream,
        _ => Op::Other,
    }
}
