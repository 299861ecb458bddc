//! Decides which fetches are worth their bytes for a stream: the window for a block that is not
//! here, and bytes before a get asks for them.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::stream::{Stream, TRUST};
use super::{Cut, Map, Noted, Streams};

/// How far a stream goes before it asks again which blob follows (bytes).
const ASK_AGAIN: u64 = 4 << 20;

/// A window to be fetched before a get waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::read) struct Ahead {
    pub stream: u64,
    pub blob: Arc<str>,
    pub range: Range<u64>,
}

/// The answer that a stream is waiting for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::read) struct Plan {
    pub ahead: Vec<Ahead>,
    /// Rows of this blob from this byte on are needed to go on.
    pub rows: Option<(Arc<str>, u64)>,
    /// The blob ends soon: which one is next?
    pub follow: bool,
}

/// What a stream is worth now, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Worth {
    /// What it may have ahead.
    pub(super) ahead: u64,
    /// The size of its windows.
    window: u64,
    /// The size that is fetched at least, where there is no room for a whole one.
    least: u64,
}

/// While a stream may have more and more ahead, windows may be smaller than usual by this factor:
/// to wait until there is room for a whole one costs the time of an answer.
pub(super) const STEPS: u64 = 2;

impl Streams {
    /// The part of the allowance that the readers of other lines are not worth goes to this stream.
    pub(super) fn worth(&self, stream: &Stream, now: Instant) -> Worth {
        let mut others: Vec<(u64, u64)> = Vec::new();
        for s in self.list.iter().filter(|s| s.line != stream.line) {
            if !s.is_awake(now) {
                continue;
            }
            match others.iter_mut().find(|other| other.0 == s.line) {
                Some(other) => other.1 = other.1.max(s.run),
                None => others.push((s.line, s.run)),
            }
        }
        let fair = self.limits.ahead / (others.len() as u64 + 1);
        let wanted = |run: u64| run.saturating_mul(TRUST);
        let taken: u64 = others.iter().map(|other| wanted(other.1).min(fair)).sum();
        let share = self.limits.ahead.saturating_sub(taken).max(fair);
        let ahead = wanted(stream.run).min(share);
        let window = self.size(ahead);
        let grows = ahead < share;
        Worth {
            ahead,
            window,
            least: if grows { window / STEPS } else { window },
        }
    }

    /// The largest size of windows that is not above `most` (bytes).
    fn size(&self, most: u64) -> u64 {
        let mut size = self.limits.window;
        while size > most {
            size /= 2;
        }
        size
    }

    /// Where a window for a block that is not here should end: at or before the block's own end for
    /// the block alone.
    pub(in crate::read) fn window(
        &mut self,
        noted: Noted,
        range: &Range<u64>,
        now: Instant,
        map: Map<'_>,
    ) -> Cut {
        let Some(stream) = self.list.iter().find(|s| s.id == noted.stream) else {
            return Cut::End;
        };
        if !noted.follows {
            let (blob, hash) = (Arc::clone(&stream.blob), stream.blob_hash);
            self.add(&blob, hash, range.clone(), None, now);
            return Cut::End;
        }
        let ahead = self.worth(stream, now).ahead;
        let window = self.size(ahead.min(stream.credit()));
        let upto = range.start.saturating_add(window);
        if upto <= range.end {
            return Cut::End;
        }
        map(&stream.blob, range.start, upto)
    }

    /// The bytes of a stream up to `reach` are here or on their way.
    pub(in crate::read) fn reached(&mut self, id: u64, reach: u64) {
        if let Some(stream) = self.find(id) {
            stream.reach = stream.reach.max(reach);
        }
    }

    /// A part of the blob is being fetched for a stream.
    pub(in crate::read) fn fetched(&mut self, id: u64, part: &Range<u64>) {
        if let Some(stream) = self.find(id) {
            stream.from = stream.from.min(part.start);
            stream.reach = stream.reach.max(part.end);
            stream.fetched = stream.fetched.saturating_add(part.end - part.start);
        }
    }

    /// The windows to fetch ahead for a stream. The caller reports what it did by
    /// [`reached`](Self::reached) and [`fetched`](Self::fetched).
    pub(in crate::read) fn plan(&mut self, id: u64, now: Instant, map: Map<'_>) -> Plan {
        let mut plan = Plan::default();
        let Some(at) = self.list.iter().position(|s| s.id == id) else {
            return plan;
        };
        let worth = self.worth(&self.list[at], now);
        let stream = &mut self.list[at];
        let upto = stream.pos.saturating_add(worth.ahead);
        match extend(stream, upto, worth, map, &mut plan) {
            None => return plan,
            Some(end) => stream.end = Some(end),
        }
        // It ends within what it is worth: the rest is for the blob that follows.
        let (end, next) = (stream.end.unwrap_or(0), stream.next);
        let rest = upto.saturating_sub(end);
        if rest == 0 {
            return plan;
        }
        if let Some(next) = next.and_then(|next| self.find(next)) {
            if next.expected {
                let upto = next.pos.saturating_add(rest);
                extend(next, upto, worth, map, &mut plan);
            }
        } else {
            plan.follow = self.find(id).is_some_and(|s| s.pos >= s.ask_at);
        }
        plan
    }

    /// It is being found out where a stream goes on.
    pub(in crate::read) fn asked(&mut self, id: u64) {
        if let Some(stream) = self.find(id) {
            stream.next = None;
            stream.ask_at = stream.pos.saturating_add(ASK_AGAIN);
        }
    }
}

/// Windows for a stream up to `upto`. Returns where the blob ends if that comes first.
fn extend(
    stream: &mut Stream,
    upto: u64,
    worth: Worth,
    map: Map<'_>,
    plan: &mut Plan,
) -> Option<u64> {
    let mut reach = stream.reach;
    let upto = upto.min(reach.saturating_add(stream.credit()));
    loop {
        if stream.end.is_some_and(|end| reach >= end) {
            return stream.end;
        }
        let room = upto.saturating_sub(reach);
        let mut window = worth.window;
        while window > room && window / 2 >= worth.least {
            window /= 2;
        }
        let goal = reach.saturating_add(window);
        if window == 0 || goal > upto {
            // Not yet; unless nothing comes any more.
            let ends = map(&stream.blob, reach, reach.saturating_add(1)) == Cut::End;
            return ends.then_some(reach);
        }
        match map(&stream.blob, reach, goal) {
            Cut::At(end) if end > reach => {
                plan.ahead.push(Ahead {
                    stream: stream.id,
                    blob: Arc::clone(&stream.blob),
                    range: reach..end,
                });
                reach = end;
            }
            Cut::At(_) | Cut::End => return Some(reach),
            Cut::Unknown => {
                plan.rows = Some((Arc::clone(&stream.blob), reach));
                return None;
            }
        }
    }
}
