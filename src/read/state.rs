//! The state that a reader keeps of its blobs, under one lock: streams, links of nodes, requests on
//! their way, and where blocks end.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use lru::LruCache;

use super::extent::Extent;
use super::flight::{Flight, Passenger};
use super::scatter::Scatter;
use super::streams::{Cut, Limits, Noted, Plan, Streams};
use crate::dag::Nodes;

/// Nodes whose followers were fetched, and that are remembered.
const SCOUTED: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Blobs whose extent is remembered.
const EXTENTS: NonZeroUsize = NonZeroUsize::new(64).unwrap();

pub(super) struct ReaderState {
    pub(super) streams: Streams,
    pub(super) scatter: Scatter,
    /// Links of the nodes that were read.
    pub(super) nodes: Nodes,
    /// Requests on their way, by blob.
    pub(super) flights: HashMap<Arc<str>, Vec<Arc<Flight>>>,
    extents: LruCache<Arc<str>, Extent>,
    /// Blobs whose rows are being asked for, and the turn to ask.
    pub(super) asking: HashMap<Arc<str>, Arc<tokio::sync::Mutex<()>>>,
    /// Streams whose next blob is being looked for.
    pub(super) following: HashSet<u64>,
    /// Nodes, by their hashes, after which the unknown ones were fetched.
    pub(super) scouted: LruCache<u64, ()>,
}

fn cut(extents: &LruCache<Arc<str>, Extent>, blob: &str, from: u64, upto: u64) -> Cut {
    let extent = extents.peek(blob);
    extent.map_or(Cut::Unknown, |extent| extent.cut(from, upto))
}

impl ReaderState {
    /// `keeps`: what memory keeps (bytes).
    pub(super) fn new(limits: Limits, keeps: u64) -> Self {
        ReaderState {
            streams: Streams::new(limits),
            scatter: Scatter::new(limits.window / 16, keeps),
            nodes: Nodes::new(),
            flights: HashMap::new(),
            extents: LruCache::new(EXTENTS),
            asking: HashMap::new(),
            following: HashSet::new(),
            scouted: LruCache::new(SCOUTED),
        }
    }

    pub(super) fn extent(&mut self, blob: &str) -> &mut Extent {
        self.extents.get_or_insert_mut(blob.into(), Extent::default)
    }

    pub(super) fn is_barred(&self, blob: &str, now: Instant) -> bool {
        let extent = self.extents.peek(blob);
        extent.is_some_and(|extent| extent.is_barred(now))
    }

    /// Notes that a block is read, for the first time since it is in memory. `None` for a random
    /// read, which belongs to no stream.
    pub(super) fn note(&mut self, blob: &str, range: &Range<u64>, now: Instant) -> Option<Noted> {
        let noted = self.streams.note(blob, range, now);
        if !noted.is_some_and(|noted| noted.follows) {
            self.scatter.read(blob, range, noted.is_none(), now);
        }
        noted
    }

    /// Where the window for a block that is not here ends.
    pub(super) fn window(&mut self, noted: Noted, range: &Range<u64>, now: Instant) -> Cut {
        let ReaderState {
            streams, extents, ..
        } = self;
        streams.window(noted, range, now, &|blob, from, upto| {
            cut(extents, blob, from, upto)
        })
    }

    pub(super) fn plan(&mut self, id: u64, now: Instant) -> Plan {
        let ReaderState {
            streams, extents, ..
        } = self;
        streams.plan(id, now, &|blob, from, upto| cut(extents, blob, from, upto))
    }

    /// A seat in the request that will bring a range.
    pub(super) fn join(&self, blob: &str, range: &Range<u64>) -> Option<Passenger> {
        let flights = self.flights.get(blob)?;
        let flight = flights.iter().find(|flight| flight.covers(range))?;
        Some(flight.join())
    }

    /// As [`Memory::gap`](super::memory::Memory::gap), for what is on its way.
    pub(super) fn gap(
        &self,
        blob: &str,
        range: &Range<u64>,
        wide: Range<u64>,
        least: u64,
    ) -> Range<u64> {
        let flights = self.flights.get(blob).into_iter().flatten();
        flights.fold(wide, |wide, flight| {
            let other = &flight.range;
            if other.end <= range.start {
                wide.start.max(other.end)..wide.end
            } else if other.start >= range.end && other.end - other.start >= least {
                wide.start..wide.end.min(other.start)
            } else {
                wide
            }
        })
    }

    /// Where the first request on its way behind `from` begins.
    pub(super) fn next_flight(&self, blob: &str, from: u64) -> Option<u64> {
        let flights = self.flights.get(blob).into_iter().flatten();
        let starts = flights.map(|flight| flight.range.start);
        starts.filter(|&start| start > from).min()
    }

    /// Whether the bytes from `from` to `until` are no block's, as far as is known.
    pub(super) fn is_framing(&self, blob: &str, from: u64, until: u64) -> bool {
        let extent = self.extents.peek(blob);
        extent.is_some_and(|extent| extent.is_framing(from, until))
    }

    /// How far the bytes from `from` on are on their way in one request (the offset of the first
    /// that is not).
    pub(super) fn flying_to(&self, blob: &str, from: u64) -> u64 {
        let flights = self.flights.get(blob).into_iter().flatten();
        let here = flights.filter(|flight| flight.range.contains(&from));
        here.map(|flight| flight.range.end).max().unwrap_or(from)
    }
}
