//! Faults: their kinds, times and targets. Off until a plan is set.
//!
//! A plan is a list of rules. Every rule sees each request it matches, decides whether it fires,
//! and all actions of firing rules are applied to that request.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

use crate::blob_id::BlobId;

/// An operation of the HTTP interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// PUT of a blob.
    Put,
    /// PUT of a quilt.
    PutQuilt,
    /// GET of a whole blob.
    Get,
    /// GET of a blob with a Range header.
    Range,
    /// GET of `/byte-range`.
    ByteRange,
    /// GET by object ID, with or without a Range header.
    Object,
    /// GET of `/stream`.
    Stream,
    /// GET or POST of `/concat`.
    Concat,
    /// GET of one patch of a quilt.
    QuiltPatch,
    /// GET of the list of a quilt's patches.
    QuiltPatches,
    /// `extend` of `walrus-devnet-cli`.
    ChainExtend,
    /// `delete` of `walrus-devnet-cli`.
    ChainDelete,
    /// `list-blobs` of `walrus-devnet-cli`.
    ChainList,
    /// `blob-status` of `walrus-devnet-cli`.
    ChainStatus,
    /// `info` of `walrus-devnet-cli`.
    ChainInfo,
    /// Anything else.
    Other,
}

impl Op {
    /// All operations that store.
    pub const WRITES: [Op; 2] = [Op::Put, Op::PutQuilt];
    /// All operations that read contents.
    pub const READS: [Op; 8] = [
        Op::Get,
        Op::Range,
        Op::ByteRange,
        Op::Object,
        Op::Stream,
        Op::Concat,
        Op::QuiltPatch,
        Op::QuiltPatches,
    ];
    /// All operations of the program `walrus-devnet-cli`.
    pub const ON_CHAIN: [Op; 5] = [
        Op::ChainExtend,
        Op::ChainDelete,
        Op::ChainList,
        Op::ChainStatus,
        Op::ChainInfo,
    ];

    /// Whether it is an operation of the program `walrus-devnet-cli`.
    #[must_use]
    pub fn is_on_chain(self) -> bool {
        Op::ON_CHAIN.contains(&self)
    }

    /// Whether it stores something.
    #[must_use]
    pub fn is_write(self) -> bool {
        Op::WRITES.contains(&self)
    }

    /// Whether it reads contents.
    #[must_use]
    pub fn is_read(self) -> bool {
        Op::READS.contains(&self)
    }
}

/// A set of rules.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultPlan {
    /// Seed of all probabilities, so that a run can be repeated.
    #[serde(default)]
    pub seed: u64,
    /// The rules.
    pub rules: Vec<FaultRule>,
}

impl From<FaultRule> for FaultPlan {
    fn from(rule: FaultRule) -> Self {
        vec![rule].into()
    }
}

impl From<Vec<FaultRule>> for FaultPlan {
    fn from(rules: Vec<FaultRule>) -> Self {
        FaultPlan { seed: 0, rules }
    }
}

impl<const N: usize> From<[FaultRule; N]> for FaultPlan {
    fn from(rules: [FaultRule; N]) -> Self {
        Vec::from(rules).into()
    }
}

/// A fault and the requests that it applies to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRule {
    /// The requests that it sees.
    #[serde(default, rename = "match")]
    pub matches: FaultMatch,
    /// How many matching requests pass before it may fire.
    #[serde(default)]
    pub skip: u64,
    /// How often it fires at most. Default: without end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Fire on exactly these matching requests, counted from 1.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub nth: BTreeSet<u64>,
    /// Fire with this probability. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
    /// The fault.
    pub action: FaultAction,
}

impl FaultRule {
    /// A rule for every request.
    #[must_use]
    pub fn new(action: FaultAction) -> Self {
        FaultRule {
            matches: FaultMatch::default(),
            skip: 0,
            count: None,
            nth: BTreeSet::new(),
            probability: None,
            action,
        }
    }

    /// Only for these operations.
    #[must_use]
    pub fn on(mut self, ops: impl IntoIterator<Item = Op>) -> Self {
        self.matches.op.extend(ops);
        self
    }

    /// Only for reads of this blob.
    #[must_use]
    pub fn of(mut self, blob: BlobId) -> Self {
        self.matches.blob_id = Some(blob);
        self
    }

    /// Only at this endpoint; the first is 0.
    #[must_use]
    pub fn at(mut self, endpoint: usize) -> Self {
        self.matches.endpoint = Some(endpoint);
        self
    }

    /// Let the first `skip` pass.
    #[must_use]
    pub fn after(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// Fire at most `count` times.
    #[must_use]
    pub fn times(mut self, count: u64) -> Self {
        self.count = Some(count);
        self
    }

    /// Fire with this probability.
    #[must_use]
    pub fn with_probability(mut self, probability: f64) -> Self {
        self.probability = Some(probability);
        self
    }
}

/// Which requests a rule sees: those that meet all conditions given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultMatch {
    /// One of these operations. Default: any but those on the chain and [`Op::Other`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub op: Vec<Op>,
    /// The blob named in the path (a PUT names none).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blob_id: Option<BlobId>,
    /// The endpoint the request came to; the first is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<usize>,
    /// Path and query hold this text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_contains: Option<String>,
}

/// The kinds of faults on a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultAction {
    /// Wait before anything else.
    Latency {
        /// Milliseconds.
        ms: u64,
        /// Up to so many milliseconds more, at random.
        #[serde(default)]
        jitter_ms: u64,
    },
    /// Give this answer; the request has no other effect.
    Status {
        /// The status.
        status: u16,
        /// The body.
        #[serde(default)]
        body: String,
        /// Its type.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content_type: Option<String>,
        /// The value of `Retry-After` (seconds).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<u64>,
    },
    /// 429 in plain text, as from shed load.
    Overloaded {
        /// The value of `Retry-After` (seconds); the real publisher sends none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<u64>,
    },
    /// 500 INTERNAL_ERROR.
    Internal,
    /// 503 BLOB_UNAVAILABLE.
    Unavailable,
    /// 504 INSUFFICIENT_CONFIRMATIONS.
    Unconfirmed,
    /// 404 BLOB_NOT_FOUND, even for stored blobs.
    NotFound,
    /// 502 with a page of HTML, as from a proxy.
    BadGateway,
    /// PUTs: 200 with an `error` in place of a result; nothing is stored.
    ErrorResult {
        /// Its text.
        #[serde(default)]
        message: String,
    },
    /// PUTs: the blob is marked invalid. 500 for a blob; 200 with a note in the result for a quilt.
    /// Nothing is stored.
    MarkedInvalid,
    /// PUTs: 413 for bodies larger than this.
    BodyLimit {
        /// Bytes.
        bytes: u64,
    },
    /// Chain: the wallet cannot pay. `extend` fails; `delete` tells it in `error`.
    OutOfFunds {
        /// Gas (SUI) is lacking rather than WAL.
        #[serde(default)]
        gas: bool,
    },
    /// PUTs, and changes on the chain: do it, and lose the answer.
    AnswerLost {
        /// The way in which the answer is lost.
        #[serde(default)]
        how: Loss,
    },
    /// Never answer.
    Hang,
    /// PUTs: read this much of the body, then neither read nor answer any more.
    StopReading {
        /// Bytes.
        after: u64,
    },
    /// Reset the connection after this much of the body was read.
    Reset {
        /// Bytes.
        #[serde(default)]
        after: u64,
    },
    /// Answer headers and this much of the body, then close the connection.
    CutBody {
        /// Bytes.
        after: u64,
        /// By RST rather than FIN.
        #[serde(default)]
        reset: bool,
    },
    /// Answer headers and this much of the body, then send nothing any more.
    Stall {
        /// Bytes.
        after: u64,
    },
    /// Answer headers, then the body a few bytes at a time.
    Drip {
        /// Bytes at a time, at least 1.
        bytes: u64,
        /// Milliseconds between them.
        every_ms: u64,
    },
    /// Answer a shorter body, with a content length to match.
    Truncate {
        /// Bytes left out at the end.
        by: u64,
    },
    /// Flip a bit of the answer's body.
    Corrupt {
        /// The position of the byte (modulo the length).
        offset: u64,
    },
    /// Answer the same number of bytes with other content.
    WrongBlob {
        /// The content of this blob; default: of none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        blob_id: Option<BlobId>,
    },
    /// Answer a longer body, with a content length to match.
    Oversized {
        /// Bytes added at the end.
        by: u64,
    },
    /// As before 1.38: ignore the Range header, and know no `/byte-range`.
    IgnoreRange,
    /// As older versions: 400 for a query parameter they do not know.
    UnknownParameters {
        /// The names, e.g. `permanent` (before 1.29), `reuse_resources` (before 1.46).
        names: Vec<String>,
    },
    /// A CDN in front that repeats a 404 once served for a URL.
    CachedNotFound {
        /// The duration (seconds).
        seconds: u64,
    },
}

/// How an answer gets lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// The connection is closed without an answer.
    #[default]
    Cut,
    /// No answer ever comes.
    Hang,
    /// 504 INSUFFICIENT_CONFIRMATIONS.
    Unconfirmed,
    /// A proxy's 504 in HTML.
    GatewayTimeout,
}

/// A rule with its state.
#[derive(Debug)]
struct Armed {
    rule: FaultRule,
    seen: u64,
    fired: u64,
}

#[derive(Debug)]
struct Set {
    rng: StdRng,
    rules: Vec<Armed>,
}

#[derive(Debug)]
pub(crate) struct Faults {
    any: AtomicBool,
    set: Mutex<Set>,
}

/// The properties of a request before it is handled.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    pub op: Op,
    pub endpoint: usize,
    pub url: &'a str,
    pub blob_id: Option<BlobId>,
}

/// A rule, the number of requests it saw, and the number of times it fired.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FaultReport {
    /// The rule.
    pub rule: FaultRule,
    /// Matching requests so far.
    pub seen: u64,
    /// How often it fired.
    pub fired: u64,
}

impl Default for Faults {
    fn default() -> Self {
        Faults {
            any: AtomicBool::new(false),
            set: Mutex::new(Set {
                rng: StdRng::seed_from_u64(0),
                rules: Vec::new(),
            }),
        }
    }
}

impl Faults {
    pub fn replace(&self, plan: FaultPlan) {
        let mut set = self.set.lock();
        set.rng = StdRng::seed_from_u64(plan.seed);
        set.rules.clear();
        self.push(&mut set, plan.rules);
    }

    pub fn add(&self, plan: FaultPlan) {
        self.push(&mut self.set.lock(), plan.rules);
    }

    fn push(&self, set: &mut Set, rules: Vec<FaultRule>) {
        set.rules.extend(rules.into_iter().map(|rule| Armed {
            rule,
            seen: 0,
            fired: 0,
        }));
        self.any.store(!set.rules.is_empty(), Ordering::Release);
    }

    pub fn report(&self) -> Vec<FaultReport> {
        let set = self.set.lock();
        let armed = set.rules.iter();
        armed
            .map(|armed| FaultReport {
                rule: armed.rule.clone(),
                seen: armed.seen,
                fired: armed.fired,
            })
            .collect()
    }

    /// Whether there is any rule at all.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// The actions for this request.
    pub fn strike(&self, subject: &Subject<'_>) -> Vec<FaultAction> {
        let mut set = self.set.lock();
        let Set { rng, rules } = &mut *set;
        let mut actions = Vec::new();
        for armed in rules {
            if armed.rule.matches.covers(subject) && armed.fires(rng) {
                let mut action = armed.rule.action.clone();
                if let FaultAction::Latency { ms, jitter_ms } = &mut action {
                    *ms += rng.random_range(0..=*jitter_ms);
                }
                actions.push(action);
            }
        }
        actions
    }
}

impl Armed {
    fn fires(&mut self, rng: &mut StdRng) -> bool {
        let FaultRule {
            skip,
            count,
            nth,
            probability,
            ..
        } = &self.rule;
        self.seen += 1;
        let fires = self.seen > *skip
            && count.is_none_or(|count| self.fired < count)
            && (nth.is_empty() || nth.contains(&self.seen))
            && probability.is_none_or(|p| rng.random_bool(p.clamp(0.0, 1.0)));
        self.fired += u64::from(fires);
        fires
    }
}

impl FaultMatch {
    fn covers(&self, subject: &Subject<'_>) -> bool {
        let op = if self.op.is_empty() {
            subject.op != Op::Other && !subject.op.is_on_chain()
        } else {
            self.op.contains(&subject.op)
        };
        op && self.endpoint.is_none_or(|at| at == subject.endpoint)
            && (self.blob_id.is_none() || self.blob_id == subject.blob_id)
            && (self.url_contains.as_ref()).is_none_or(|text| subject.url.contains(text.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(op: Op) -> Subject<'static> {
        Subject {
            op,
            endpoint: 0,
            url: "/v1/blobs?epochs=1",
            blob_id: None,
        }
    }

    #[test]
    fn rules_count_what_they_match() {
        let faults = Faults::default();
        let rule = FaultRule::new(FaultAction::Internal);
        faults.replace(rule.on([Op::Put]).after(1).times(2).into());
        let fired: Vec<bool> = (0..5)
            .map(|_| {
                assert!(faults.strike(&subject(Op::Get)).is_empty());
                !faults.strike(&subject(Op::Put)).is_empty()
            })
            .collect();
        assert_eq!(fired, [false, true, true, false, false]);
        let report = &faults.report()[0];
        assert_eq!((report.seen, report.fired), (5, 2));
    }

    #[test]
    fn probabilities_repeat() {
        let run = || {
            let faults = Faults::default();
            let rule = FaultRule::new(FaultAction::Hang).with_probability(0.3);
            faults.replace(FaultPlan {
                seed: 7,
                rules: vec![rule],
            });
            (0..1000)
                .map(|_| faults.strike(&subject(Op::Get)).len())
                .collect::<Vec<_>>()
        };
        let first = run();
        assert_eq!(first, run());
        assert!((200..400).contains(&first.iter().sum::<usize>()));
    }

    #[test]
    fn plans_are_json() {
        let plan: FaultPlan = serde_json::from_str(
            r#"{"rules":[{"match":{"op":["put"]},"nth":[2,3],
                "action":{"type":"status","status":429,"retry_after":1}},
                {"action":{"type":"hang"}}]}"#,
        )
        .unwrap();
        assert_eq!(plan.rules.len(), 2);
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<FaultPlan>(&text).unwrap(), plan);
        for wrong in [
            r#"{"rules":[{"action":{"type":"nonsense"}}]}"#,
            r#"{"rules":[{"action":{"type":"hang"},"often":1}]}"#,
            r#"{"rules":[{"match":{"op":["fetch"]},"action":{"type":"hang"}}]}"#,
        ] {
            assert!(serde_json::from_str::<FaultPlan>(wrong).is_err(), "{wrong}");
        }
    }
}
