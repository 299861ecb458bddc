//! What a client counts for each of its endpoints and causes of failure.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::measure::{Histogram, TIMES};

/// The causes of failed attempts, as labels.
pub(super) const CAUSES: [&str; 11] = [
    "transient",
    "throttled",
    "token",
    "broken_send",
    "refused",
    "not_found",
    "wrong_answer",
    "wrong_bytes",
    "too_large",
    "local",
    "wallet",
];

/// Why an attempt failed: a place in [`CAUSES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Transient,
    Throttled,
    Token,
    BrokenSend,
    Refused,
    NotFound,
    WrongAnswer,
    WrongBytes,
    TooLarge,
    Local,
    /// The publisher's wallet lacks coins.
    Wallet,
}

/// Whether a text says that a wallet lacks coins: WAL, or SUI for gas.
pub(crate) fn lacks_coins(text: &str) -> bool {
    const WORDS: [&str; 9] = [
        "sufficient balance",
        "enough balance",
        "insufficientgas",
        "insufficientcoinbalance",
        "insufficient gas",
        "insufficient balance",
        "insufficient funds",
        "gasbalancetoolow",
        "nocompatible",
    ];
    let text = text.to_ascii_lowercase();
    WORDS.iter().any(|word| text.contains(word))
}

/// Counts by cause.
#[derive(Debug, Default)]
pub(super) struct ByCause([AtomicU64; CAUSES.len()]);

impl ByCause {
    fn add(&self, cause: Cause) {
        self.0[cause as usize].fetch_add(1, Relaxed);
    }

    /// The counts, in the order of [`CAUSES`].
    pub(super) fn counts(&self) -> [u64; CAUSES.len()] {
        self.0.each_ref().map(|count| count.load(Relaxed))
    }
}

/// Counts the attempts at one endpoint.
#[derive(Debug, Default)]
pub(super) struct Tally {
    answers: AtomicU64,
    pub(super) failures: ByCause,
    /// Whether the last store failed because the wallet is empty.
    wallet_empty: AtomicBool,
}

impl Tally {
    /// Counts an attempt that went well.
    pub(super) fn answered(&self) {
        self.answers.fetch_add(1, Relaxed);
        self.wallet_empty.store(false, Relaxed);
    }

    /// Counts an attempt that failed.
    pub(super) fn failed(&self, cause: Cause) {
        self.failures.add(cause);
        if cause == Cause::Wallet {
            self.wallet_empty.store(true, Relaxed);
        }
    }

    /// How many attempts went well.
    pub(super) fn answers(&self) -> u64 {
        self.answers.load(Relaxed)
    }

    /// Whether the wallet was empty at the last attempt that told.
    pub(super) fn is_wallet_empty(&self) -> bool {
        self.wallet_empty.load(Relaxed)
    }
}

/// Times of attempts at endpoints of one kind, and retries by cause.
#[derive(Debug)]
pub(super) struct Attempts {
    pub(super) well: Histogram,
    pub(super) failed: Histogram,
    pub(super) retries: ByCause,
}

impl Default for Attempts {
    fn default() -> Self {
        Attempts {
            well: Histogram::new(&TIMES),
            failed: Histogram::new(&TIMES),
            retries: ByCause::default(),
        }
    }
}

impl Attempts {
    /// Notes the time of an attempt.
    pub(super) fn took(&self, time: Duration, well: bool) {
        match well {
            true => self.well.took(time),
            false => self.failed.took(time),
        }
    }

    /// Counts an attempt at an endpoint that has failed in this way before.
    pub(super) fn retried(&self, after: Cause) {
        self.retries.add(after);
    }
}
