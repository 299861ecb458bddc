//! Counters of requests and answers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::faults::Op;

/// Counts since the start, or since the last reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Requests that store: blobs and quilts.
    pub puts: u64,
    /// Requests that read anything, ranges included.
    pub gets: u64,
    /// Of these, the ones for a part of a blob (Range header or byte-range).
    pub range_gets: u64,
    /// Of these, the ones for quilt patches or patch lists.
    pub quilt_gets: u64,
    /// Of these, the ones by HEAD.
    pub heads: u64,
    /// Bytes of content received.
    pub bytes_in: u64,
    /// Bytes of body answered (as declared, HEAD excluded).
    pub bytes_out: u64,
    /// PUTs that paid for storage.
    pub newly_created: u64,
    /// PUTs that found the blob stored already.
    pub already_certified: u64,
    /// Blob objects extended on the chain, by their owners.
    pub extended: u64,
    /// Blob objects deleted on the chain, by their owners.
    pub deleted: u64,
    /// Units (begun MiB of encoded length) paid for.
    pub billed_units: u64,
    /// Paid in total, in FROST.
    pub cost_frost: u64,
    /// Blobs held.
    pub stored_blobs: u64,
    /// Bytes of content held.
    pub stored_bytes: u64,
    /// Requests being answered now.
    pub in_flight: u64,
    /// The most requests that were being answered at once.
    pub peak_in_flight: u64,
    /// The most PUTs that were being answered at once.
    pub peak_puts_in_flight: u64,
    /// Requests that a fault rule acted on.
    pub faulted: u64,
    /// Requests by operation.
    pub by_op: BTreeMap<Op, u64>,
    /// Answers by status.
    pub by_status: BTreeMap<u16, u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    received: AtomicU64,
    in_flight: AtomicU64,
    puts_in_flight: AtomicU64,
    tally: Mutex<Stats>,
}

/// Counts a request as in flight until dropped.
pub(crate) struct InFlight<'a> {
    counters: &'a Counters,
    op: Op,
}

impl Counters {
    pub fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn begin(&self, op: Op) -> InFlight<'_> {
        let all = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        let puts = if op.is_write() {
            self.puts_in_flight.fetch_add(1, Ordering::Relaxed) + 1
        } else {
            0
        };
        let mut tally = self.tally.lock();
        tally.peak_in_flight = tally.peak_in_flight.max(all);
        tally.peak_puts_in_flight = tally.peak_puts_in_flight.max(puts);
        *tally.by_op.entry(op).or_default() += 1;
        if op.is_write() {
            tally.puts += 1;
        } else if op.is_read() {
            tally.gets += 1;
            match op {
                Op::Range | Op::ByteRange => tally.range_gets += 1,
                Op::QuiltPatch | Op::QuiltPatches => tally.quilt_gets += 1,
                _ => {}
            }
        }
        InFlight { counters: self, op }
    }

    pub fn answered(&self, status: u16, bytes: u64, head: bool) {
        let mut tally = self.tally.lock();
        *tally.by_status.entry(status).or_default() += 1;
        if head {
            tally.heads += 1;
        } else {
            tally.bytes_out += bytes;
        }
    }

    pub fn faulted(&self) {
        self.tally.lock().faulted += 1;
    }

    pub fn snapshot(&self) -> Stats {
        let mut stats = self.tally.lock().clone();
        stats.bytes_in = self.received.load(Ordering::Relaxed);
        stats.in_flight = self.in_flight.load(Ordering::Relaxed);
        stats
    }

    pub fn reset(&self) {
        *self.tally.lock() = Stats::default();
        self.received.store(0, Ordering::Relaxed);
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.counters.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.op.is_write() {
            self.counters.puts_in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
