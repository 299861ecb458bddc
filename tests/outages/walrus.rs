//! Publishers and aggregators fail: the whole list of faults of the local Walrus, one by one and
//! all at once, with one endpoint and with several.

use std::net::SocketAddr;
use std::time::Duration;

use walrus_devnet::{Devnet, FaultAction, FaultRule, Jwt, Loss, Op as Request, Options, Role};
use walrusds::ErrorKind;

use crate::net::Wire;
use crate::scenario::{
    a_while, devnet, open, spec, Allowed, Scenario, AGGREGATOR, NOTHING, PUBLISHER, SECRET, WALRUS,
};

const ONE: &str = "Walrus, one endpoint";
const SEVERAL: &str = "Walrus, several endpoints";

const READS: [Request; 2] = [Request::Get, Request::Range];

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A node with an SQLite index on `net`; `change` adds to its configuration.
pub async fn start_on(
    net: &Devnet,
    group: &'static str,
    case: &'static str,
    change: impl FnOnce(&mut serde_json::Value),
) -> (tempfile::TempDir, Scenario) {
    let repo = tempfile::tempdir().expect("repo");
    let mut spec = spec(net);
    spec["indexPath"] = "index.sqlite".into();
    // The shortest timeout that can be set: a request that hangs is given up after a second.
    spec["requestTimeoutSeconds"] = 1.into();
    change(&mut spec);
    let ds = open(&spec, repo.path()).await;
    let scenario = Scenario::start(group, case, vec![ds]).await;
    (repo, scenario)
}

/// Every publisher and aggregator breaks with the given rules for a while.
async fn alone(case: &'static str, rules: Vec<FaultRule>, allowed: Allowed) {
    let net = devnet().await;
    let (_repo, scenario) = start_on(&net, ONE, case, |_| {}).await;
    scenario.break_walrus(&net, rules, allowed).await;
    paid_once(&net);
}

/// The first of three endpoints breaks with the given rules.
async fn first_of_three(case: &'static str, actions: Vec<FaultAction>) {
    let net = devnet().await;
    let more: Vec<String> = (0..2).map(|_| add(&net, Role::Daemon)).collect();
    let all = format!("{},{}", net.url(), more.join(","));
    let (_repo, scenario) = start_on(&net, SEVERAL, case, |spec| {
        spec["publisherURL"] = all.as_str().into();
        spec["aggregatorURL"] = all.as_str().into();
    })
    .await;
    let rules: Vec<FaultRule> = actions
        .into_iter()
        .map(|action| FaultRule::new(action).at(0))
        .collect();
    scenario.break_walrus(&net, rules, NOTHING).await;
    paid_once(&net);
}

fn add(net: &Devnet, role: Role) -> String {
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    net.add_endpoint(role, any_port).expect("endpoint").1
}

/// However often an answer was lost, no blob was bought twice.
fn paid_once(net: &Devnet) {
    let (paid, blobs) = (net.stats().newly_created, net.blobs().len() as u64);
    assert_eq!(paid, blobs, "blobs paid for and blobs there are");
}

fn on_put(action: FaultAction) -> Vec<FaultRule> {
    vec![FaultRule::new(action).on([Request::Put])]
}

fn on_get(action: FaultAction) -> Vec<FaultRule> {
    vec![FaultRule::new(action).on(READS)]
}

fn on_all(action: FaultAction) -> Vec<FaultRule> {
    vec![FaultRule::new(action)]
}

// Retryable where the node has stored the blob a moment ago.
const NOT_FOUND: Allowed = Allowed::readers(&[
    (ErrorKind::BlobNotFound, true),
    (ErrorKind::BlobNotFound, false),
]);
const CORRUPT: Allowed = Allowed::readers(&[(ErrorKind::Corrupt, false)]);
/// A deletable blob counts as a failure; the same publisher is not asked again.
const REFUSED: Allowed = Allowed::writers(&[(ErrorKind::Walrus, false)]);
const WRONG: Allowed = Allowed::readers(&[(ErrorKind::Walrus, false)]);

macro_rules! alone {
    ($($(#[$attr:meta])* $name:ident: $case:literal, $rules:expr, $allowed:expr;)+) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
        $(#[$attr])*
        async fn $name() {
            alone($case, $rules, $allowed).await;
        }
    )+};
}

alone! {
    overloaded: "429 to everything", on_all(FaultAction::Overloaded { retry_after: None }), WALRUS;
    overloaded_for_a_second: "429 with Retry-After: 1 to everything",
        on_all(FaultAction::Overloaded { retry_after: Some(1) }), WALRUS;
    epoch_change: "503 to everything (epoch change)", on_all(FaultAction::Unavailable), WALRUS;
    internal: "500 to everything", on_all(FaultAction::Internal), WALRUS;
    bad_gateway: "502, a proxy's page, to everything", on_all(FaultAction::BadGateway), WALRUS;
    error_result: "200 with an error in it to uploads",
        on_put(FaultAction::ErrorResult { message: "no coins".into() }), PUBLISHER;
    marked_invalid: "blob marked invalid", on_put(FaultAction::MarkedInvalid), PUBLISHER;
    unconfirmed: "504 to uploads (too few confirmations)", on_put(FaultAction::Unconfirmed), PUBLISHER;
    body_limit: "413 above 8 KiB", on_put(FaultAction::BodyLimit { bytes: 16 << 10 }), NOTHING;
    not_found: "404 to reads of what is there", on_get(FaultAction::NotFound), NOT_FOUND;
    put_hangs: "no answer to uploads", on_put(FaultAction::Hang), PUBLISHER;
    put_unread: "uploads not read", on_put(FaultAction::StopReading { after: 100 }), PUBLISHER;
    get_hangs: "no answer to reads", on_get(FaultAction::Hang), AGGREGATOR;
    get_hangs_before_the_body: "reads hang after the headers",
        on_get(FaultAction::Stall { after: 0 }), AGGREGATOR;
    get_hangs_in_the_body: "reads hang in mid-body", on_get(FaultAction::Stall { after: 100 }), AGGREGATOR;
    get_cut: "reads cut in mid-body (closed)",
        on_get(FaultAction::CutBody { after: 100, reset: false }), AGGREGATOR;
    get_reset: "reads cut in mid-body (reset)",
        on_get(FaultAction::CutBody { after: 100, reset: true }), AGGREGATOR;
    reset: "connections reset on every request", on_all(FaultAction::Reset { after: 0 }), WALRUS;
    truncated: "reads too short, Content-Length to match", on_get(FaultAction::Truncate { by: 1 }), WRONG;
    oversized: "reads too long, Content-Length to match", on_get(FaultAction::Oversized { by: 1 }), WRONG;
    corrupted: "a bit wrong in each read", on_get(FaultAction::Corrupt { offset: 17 }), CORRUPT;
    wrong_blob: "another blob's bytes", on_get(FaultAction::WrongBlob { blob_id: None }), CORRUPT;
    ignored_range: "aggregator older than 1.38 (ignores Range)", on_get(FaultAction::IgnoreRange), NOTHING;
    unknown_permanent: "publisher that does not know permanent= and stores deletable blobs",
        on_put(FaultAction::UnknownParameters { names: vec!["permanent".into()] }), REFUSED;
    dripping: "reads at 100 bytes a second",
        on_get(FaultAction::Drip { bytes: 10, every_ms: 100 }), AGGREGATOR;
    slow: "0.7 s more for everything", on_all(FaultAction::Latency { ms: 700, jitter_ms: 100 }), NOTHING;
    answer_cut: "uploads stored, connection closed instead of an answer",
        on_put(FaultAction::AnswerLost { how: Loss::Cut }), PUBLISHER;
    answer_hangs: "uploads stored, no answer", on_put(FaultAction::AnswerLost { how: Loss::Hang }), PUBLISHER;
    answer_504: "uploads stored, a proxy's 504 for an answer",
        on_put(FaultAction::AnswerLost { how: Loss::GatewayTimeout }), PUBLISHER;
}

macro_rules! first_of_three {
    ($($name:ident: $case:literal, $actions:expr;)+) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
        async fn $name() {
            first_of_three($case, $actions.into()).await;
        }
    )+};
}

first_of_three! {
    first_overloaded: "1 of 3: 429", [FaultAction::Overloaded { retry_after: Some(2) }];
    first_hangs: "1 of 3: no answers", [FaultAction::Hang];
    first_lies: "1 of 3: wrong bytes, uploads fail with 200",
        [FaultAction::Corrupt { offset: 3 }, FaultAction::ErrorResult { message: String::new() }];
    first_cuts: "1 of 3: reads cut, answers to uploads lost",
        [FaultAction::CutBody { after: 50, reset: true }, FaultAction::AnswerLost { how: Loss::Cut }];
    first_missing: "1 of 3: 404 for everything", [FaultAction::NotFound];
    first_dripping: "1 of 3: reads at 100 bytes a second",
        [FaultAction::Drip { bytes: 10, every_ms: 100 }];
}

/// Connections are refused: the publisher and aggregator's process is gone, and comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn refused() {
    let net = devnet().await;
    let case = "connection refused";
    let (_repo, mut scenario) = start_on(&net, ONE, case, |_| {}).await;
    scenario.strike(|| net.stop_endpoint(0)).await;
    scenario.hold(a_while()).await;
    let again = || {
        drop(
            net.add_endpoint(Role::Daemon, net.address())
                .expect("the port"),
        )
    };
    scenario.heal(again, WALRUS).await;
    paid_once(&net);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn first_refused() {
    let net = devnet().await;
    let both = format!("{},{}", net.url(), add(&net, Role::Daemon));
    let case = "1 of 2: connection refused";
    let (_repo, mut scenario) = start_on(&net, SEVERAL, case, |spec| {
        spec["publisherURL"] = both.as_str().into();
        spec["aggregatorURL"] = both.as_str().into();
    })
    .await;
    scenario.strike(|| net.stop_endpoint(0)).await;
    scenario.hold(a_while()).await;
    let again = || {
        drop(
            net.add_endpoint(Role::Daemon, net.address())
                .expect("the port"),
        )
    };
    scenario.heal(again, NOTHING).await;
    paid_once(&net);
}

/// Sockets that are open and silent: before a request, within it, and within its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn silent_network() {
    let net = devnet().await;
    let wire = Wire::to(net.address().port()).await;
    let url = format!("http://127.0.0.1:{}", wire.port());
    let case = "no packet passes for 3 s";
    let (_repo, mut scenario) = start_on(&net, ONE, case, |spec| {
        spec["publisherURL"] = url.as_str().into();
        spec["aggregatorURL"] = url.as_str().into();
    })
    .await;
    scenario.strike(|| wire.set_dead(true)).await;
    scenario.hold(ms(3000)).await;
    scenario.heal(|| wire.set_dead(false), WALRUS).await;
    paid_once(&net);
}

/// A cache in front of the aggregator repeats a 404 from before the blob was stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn cached_not_found() {
    let net = devnet().await;
    let case = "404s of before the upload cached by a CDN";
    let (_repo, mut scenario) = start_on(&net, ONE, case, |_| {}).await;
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured(testkit::no_tls())
        .build()
        .expect("client");
    // A blob is away for a moment until it is there again, with the answer in the cache.
    scenario
        .prepare(|| {
            let cached = FaultAction::CachedNotFound { seconds: 60 };
            net.set_faults(on_get(cached));
            for blob in net.blobs() {
                let content = net.content(&blob.blob_id).expect("its content");
                net.delete_blob(&blob.blob_id);
                let get = http.get(format!("{}/v1/blobs/{}", net.url(), blob.blob_id));
                let answer = tokio::runtime::Handle::current().block_on(get.send());
                assert_eq!(answer.expect("an answer").status().as_u16(), 404);
                net.insert_blob(blob.blob_id, content, 1);
            }
        })
        .await;
    scenario.strike(|| {}).await;
    scenario.hold(ms(1500)).await;
    scenario.heal(|| net.clear_faults(), NOTHING).await;
}

/// Epochs end under load: 503s, and blobs whose storage is extended.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn epochs_change() {
    let net = devnet().await;
    let case = "three epochs end, half of the requests answered 503";
    let (_repo, mut scenario) = start_on(&net, ONE, case, |spec| spec["epochs"] = 20.into()).await;
    scenario
        .strike(|| {
            net.set_faults(vec![
                FaultRule::new(FaultAction::Unavailable).with_probability(0.5)
            ])
        })
        .await;
    for _ in 0..3 {
        net.advance_epoch(1);
        scenario.hold(ms(500)).await;
    }
    scenario.heal(|| net.clear_faults(), WALRUS).await;
    paid_once(&net);
}

/// The tokens that a publisher demands, from a command that may fail or repeat itself.
struct Minter {
    dir: tempfile::TempDir,
}

impl Minter {
    /// The command prints an unsigned token (the publisher here checks all but signatures), a fresh
    /// one unless the test sets another.
    fn new() -> Self {
        let minter = Minter {
            dir: tempfile::tempdir().expect("directory of the minter"),
        };
        let script = format!(
            r#"
cd '{dir}'
b64() {{ base64 -w0 | tr '+/' '-_' | tr -d '='; }}
now=$(date +%s); id=$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')
case $(cat mode) in
  expired) now=$((now - 1000)) ;;
  replayed) id=always-the-same ;;
  failing) echo {SECRET}; echo "no key {SECRET}" >&2; exit 3 ;;
esac
head=$(printf '{{"alg":"HS256","typ":"JWT"}}' | b64)
claims=$(printf '{{"iat":%d,"exp":%d,"jti":"%s"}}' $now $((now + 300)) "$id" | b64)
printf '%s.%s.{SECRET}xx' "$head" "$claims"
"#,
            dir = minter.dir.path().display()
        );
        std::fs::write(minter.dir.path().join("mint.sh"), script).expect("script");
        minter.set("fresh");
        minter
    }

    fn command(&self) -> String {
        format!("sh '{}/mint.sh'", self.dir.path().display())
    }

    fn set(&self, mode: &str) {
        // Replaced as a whole, because the command may be reading the file.
        let new = self.dir.path().join("new");
        std::fs::write(&new, mode).expect("mode");
        std::fs::rename(new, self.dir.path().join("mode")).expect("mode");
    }
}

async fn tokens(case: &'static str, mode: &str, allowed: Allowed) {
    let net = Devnet::start(Options {
        cheap_ids: true,
        publisher_concurrency: 0,
        jwt: Some(Jwt {
            expiring_sec: 300,
            ..Jwt::default()
        }),
        ..Options::default()
    })
    .await
    .expect("local Walrus");
    let minter = Minter::new();
    let (_repo, mut scenario) = start_on(&net, ONE, case, |spec| {
        spec["authTokenCommand"] = minter.command().into();
        // Each upload starts a few processes, so fewer uploads run at once.
        spec["workers"] = 2.into();
    })
    .await;
    scenario.strike(|| minter.set(mode)).await;
    scenario.hold(a_while()).await;
    scenario.heal(|| minter.set("fresh"), allowed).await;
    paid_once(&net);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tokens_expired() {
    tokens("publisher's tokens expired", "expired", PUBLISHER).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tokens_replayed() {
    tokens("the same token again and again", "replayed", PUBLISHER).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn token_command_fails() {
    tokens("the command for tokens fails", "failing", PUBLISHER).await;
}

/// All faults at once, at two endpoints, with probabilities.
async fn storm(case: &'static str, time: Duration) {
    let net = devnet().await;
    let both = format!("{},{}", net.url(), add(&net, Role::Daemon));
    let (_repo, mut scenario) = start_on(&net, SEVERAL, case, |spec| {
        spec["publisherURL"] = both.as_str().into();
        spec["aggregatorURL"] = both.as_str().into();
    })
    .await;
    let either = [
        FaultAction::Overloaded {
            retry_after: Some(1),
        },
        FaultAction::Unavailable,
        FaultAction::BadGateway,
        FaultAction::Reset { after: 0 },
        FaultAction::Hang,
        FaultAction::Latency {
            ms: 50,
            jitter_ms: 200,
        },
        FaultAction::UnknownParameters {
            names: vec!["permanent".into()],
        },
    ];
    let puts = [
        FaultAction::ErrorResult {
            message: "no coins".into(),
        },
        FaultAction::AnswerLost { how: Loss::Cut },
        FaultAction::AnswerLost {
            how: Loss::GatewayTimeout,
        },
        FaultAction::BodyLimit { bytes: 30_000 },
        FaultAction::StopReading { after: 1000 },
        FaultAction::Unconfirmed,
    ];
    let gets = [
        FaultAction::NotFound,
        FaultAction::CutBody {
            after: 77,
            reset: true,
        },
        FaultAction::Stall { after: 99 },
        FaultAction::Truncate { by: 3 },
        FaultAction::Oversized { by: 3 },
        FaultAction::Corrupt { offset: 5 },
        FaultAction::WrongBlob { blob_id: None },
        FaultAction::IgnoreRange,
        FaultAction::Drip {
            bytes: 500,
            every_ms: 20,
        },
    ];
    let rules: Vec<FaultRule> = either
        .into_iter()
        .map(FaultRule::new)
        .chain(
            puts.into_iter()
                .map(|a| FaultRule::new(a).on([Request::Put])),
        )
        .chain(gets.into_iter().map(|a| FaultRule::new(a).on(READS)))
        .map(|rule| rule.with_probability(0.06))
        .collect();
    scenario.only_verified_reads().await;
    scenario.strike(|| net.set_faults(rules)).await;
    scenario.hold(time).await;
    for report in net.faults() {
        assert!(report.seen > 0, "never seen: {:?}", report.rule);
    }
    // A write is refused for good where both publishers happen not to know `permanent`.
    const ANY: Allowed = Allowed::new(
        &[(ErrorKind::Walrus, true), (ErrorKind::Walrus, false)],
        &[
            (ErrorKind::Walrus, true),
            (ErrorKind::Walrus, false),
            (ErrorKind::Corrupt, true),
            (ErrorKind::Corrupt, false),
            (ErrorKind::BlobNotFound, true),
            (ErrorKind::BlobNotFound, false),
        ],
    );
    scenario.heal(|| net.clear_faults(), ANY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn storm_short() {
    storm("22 faults at once, 6 % each, for 4 s", ms(4000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes a minute: make outages"]
async fn storm_long() {
    storm("22 faults at once, 6 % each, for 60 s", ms(60_000)).await;
}
