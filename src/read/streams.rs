//! Which gets follow each other, and what is worth fetching for them. Pure: no I/O, no clock of its
//! own.
//!
//! A *stream* is a reader that goes through a blob from block to block. Two blocks side by side make
//! one. From then on it may jump within what was fetched for it, since a reader of a file works on
//! several batches of blocks at a time. A read that fits no stream is random: exactly its block is
//! fetched.
//!
//! All that is fetched for a stream is at most four times ([`TRUST`]) what it has read, from its second block
//! on. So windows grow with it, up to the largest, and then there are several on their way; and what is
//! fetched in vain when it stops, or leaves out much of its windows, is in proportion. A block that is not
//! here and does not follow what the stream has read counts as random: a reader has begun anew there. A
//! stream that was not read for a while is forgotten. All readers together share one allowance. A reader that goes on in another blob
//! leaves a stream behind and makes another, of the same *line*: what was read counts on, and the two
//! count as one.

use std::hash::{BuildHasher, RandomState};
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How far behind a stream's furthest block a read still belongs to it (bytes).
const BACK: u64 = 16 << 20;

/// What may lie between two blocks that begin a stream (bytes): framing.
const FRAME: u64 = 256;

/// What may lie between two blocks of a stream (bytes): a node between leaves, what was deleted.
const GAP: u64 = 64 << 10;

/// Where a reader may enter the next blob of its file (bytes): blocks that were written at the same
/// time lie in no order, and Kubo commits 4 MiB at once.
const ENTRANCE: u64 = 4 << 20;

/// How many bytes may be fetched for each byte that was read.
const TRUST: u64 = 4;

/// From this length on (bytes), what a stream read and what was fetched for it count half: waste of long ago
/// is forgiven, and thrift of long ago is no credit. Enough for the largest allowance.
const LONG: u64 = 128 << 20;

/// A stream, or a first block, that was not read for so long is forgotten.
const EXPIRES: Duration = Duration::from_secs(60);

/// Streams that are remembered, and first blocks that may become one.
const STREAMS: usize = 128;
const STARTS: usize = 64;

/// A stream that has not been read for so long takes no share. A fast reader leaves several behind in
/// a second, each a few blocks before the end of its blob.
const ASLEEP: Duration = Duration::from_millis(400);

/// How long a stream that has ended may be gone on with in another blob: the time of a few reads.
const CARRIED: Duration = Duration::from_secs(2);

/// How many reads, of all readers, may lie between two of one reader that are not side by side; and what a
/// stream is worth that has ended (bytes), as it is only a guess that its reader is the one who goes on.
const READS_BETWEEN: u64 = 16;
const GUESSED: u64 = 1 << 20;

/// How far a stream goes before it asks again which blob follows (bytes).
const ASK_AGAIN: u64 = 4 << 20;

/// Sizes in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The largest window; smaller ones are a fourth of it, a sixteenth, and so on.
    pub window: u64,
    /// What all streams together may have fetched ahead.
    pub ahead: u64,
}

/// Where a window can end: windows hold whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// After this byte.
    At(u64),
    /// Nothing follows.
    End,
    /// The rows must be asked for first.
    Unknown,
}

/// Where windows of a blob that begin at some byte and should not reach beyond another can end.
pub(super) type Map<'a> = &'a dyn Fn(&str, u64, u64) -> Cut;

/// A window to be fetched before anybody waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ahead {
    pub stream: u64,
    pub blob: Arc<str>,
    pub range: Range<u64>,
}

/// What a stream is waiting for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Plan {
    pub ahead: Vec<Ahead>,
    /// Rows of this blob from this byte on are needed to go on.
    pub rows: Option<(Arc<str>, u64)>,
    /// The blob ends soon: which one is next?
    pub follow: bool,
}

#[derive(Debug)]
struct Stream {
    id: u64,
    /// The first stream of its reader.
    line: u64,
    blob: Arc<str>,
    blob_hash: u64,
    /// Beginning of what was read or fetched for it.
    from: u64,
    /// End of the furthest block that was read.
    pos: u64,
    /// End of what is here or on its way.
    reach: u64,
    /// Bytes read in a row, without its first block.
    run: u64,
    /// Bytes fetched meanwhile.
    fetched: u64,
    /// Whether it is more than a first block.
    flows: bool,
    /// Where the blob's blocks end.
    end: Option<u64>,
    /// Where it goes on.
    next: Option<u64>,
    /// Expected to be read, because another stream will come to its end.
    expected: bool,
    /// Asks for the next blob when it is here.
    ask_at: u64,
    used: Instant,
    /// Number of the last read that followed the one before.
    last_read: u64,
}

impl Stream {
    /// Where a read belongs to it.
    fn region(&self) -> RangeInclusive<u64> {
        if !self.flows {
            return self.pos..=self.pos.saturating_add(FRAME);
        }
        let before = self.from.saturating_sub(self.near());
        let from = before.max(self.pos.saturating_sub(BACK));
        from..=self.reach.max(self.pos).saturating_add(GAP)
    }

    /// How far from its furthest block a read still follows it (bytes): blocks that were written at the same
    /// time lie in no order, and several are read at once.
    fn near(&self) -> u64 {
        self.run.min(ENTRANCE)
    }

    /// Whether a block at `start` follows what was read. `recent`: its reader was there a few reads ago.
    fn follows(&self, start: u64, recent: bool) -> bool {
        let near = if recent { self.near() } else { 0 };
        let from = self.pos.saturating_sub(near);
        let until = self.pos.saturating_add(near).saturating_add(GAP);
        !self.flows || self.expected || (from..=until).contains(&start)
    }

    /// Notes that a block is read.
    fn read(&mut self, range: &Range<u64>, now: Instant) {
        self.pos = self.pos.max(range.end);
        self.reach = self.reach.max(self.pos);
        self.run = self.run.saturating_add(range.end - range.start);
        if self.run > LONG {
            self.run /= 2;
            self.fetched /= 2;
        }
        self.flows = true;
        self.expected = false;
        self.used = now;
    }

    /// Bytes that may be fetched now.
    fn credit(&self) -> u64 {
        self.run.saturating_mul(TRUST).saturating_sub(self.fetched)
    }

    fn has_ended(&self) -> bool {
        self.end.is_some_and(|end| self.pos >= end)
    }

    /// Whether somebody is reading it.
    fn is_awake(&self, now: Instant) -> bool {
        let recent = now.saturating_duration_since(self.used) < ASLEEP;
        self.flows && recent && !self.expected && !self.has_ended()
    }
}

/// A read that belongs to a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Noted {
    pub stream: u64,
    /// The block follows what was read. If not, nothing is fetched ahead, and if it is not here it is read alone.
    pub follows: bool,
}

/// See the module.
pub(super) struct Streams {
    limits: Limits,
    list: Vec<Stream>,
    next_id: u64,
    /// Reads so far.
    reads: u64,
    hasher: RandomState,
}

impl Streams {
    pub(super) fn new(limits: Limits) -> Self {
        Streams {
            limits,
            list: Vec::new(),
            next_id: 0,
            reads: 0,
            hasher: RandomState::new(),
        }
    }

    /// Notes that a block is read. `None` for a random read, which belongs to no stream.
    pub(super) fn note(&mut self, blob: &str, range: &Range<u64>, now: Instant) -> Option<Noted> {
        self.list
            .retain(|s| now.saturating_duration_since(s.used) < EXPIRES);
        self.reads += 1;
        let hash = self.hasher.hash_one(blob);
        let belongs = |s: &&mut Stream| s.blob_hash == hash && s.region().contains(&range.start);
        let near = self.list.iter_mut().filter(belongs);
        // A stream before a first block: of a node at its beginning, a blob was read long before its reader
        // comes to it. But not one that is further already: a reader has begun anew at the first block.
        let rank = |s: &&mut Stream| {
            let is_further = s.flows && range.start < s.pos;
            (is_further, !s.flows, s.pos.abs_diff(range.start))
        };
        if let Some(stream) = near.min_by_key(rank) {
            let begins = !stream.flows;
            let recent = self.reads - stream.last_read <= READS_BETWEEN;
            let noted = Noted {
                stream: stream.id,
                follows: stream.follows(range.start, recent),
            };
            stream.read(range, now);
            if noted.follows {
                stream.last_read = self.reads;
            } else {
                // Perhaps it is another reader: trust is earned from there on.
                (stream.run, stream.fetched) = (0, 0);
            }
            if begins {
                self.begin(noted.stream, range, now);
            }
            return Some(noted);
        }
        let before = match range.start <= ENTRANCE {
            true => self.take_ended(now),
            false => None,
        };
        let flows = before.is_some();
        let from = if flows { 0 } else { range.start };
        let stream = self.add(blob, hash, from..range.end, before, now);
        flows.then_some(Noted {
            stream,
            follows: true,
        })
    }

    /// A first block has become stream `id`: at the beginning of its blob it may go on with another.
    fn begin(&mut self, id: u64, range: &Range<u64>, now: Instant) {
        if range.start <= ENTRANCE {
            if let Some((line, run)) = self.take_ended(now) {
                if let Some(stream) = self.find(id) {
                    (stream.line, stream.run) = (line, stream.run.saturating_add(run));
                }
            }
        }
        self.forget_oldest(true, STREAMS);
    }

    /// A stream that has come to the end of its blob ends: its line, and what it had read, as far as that
    /// counts where it is not known that the reader goes on there.
    fn take_ended(&mut self, now: Instant) -> Option<(u64, u64)> {
        let ended = self.list.iter().position(|s| {
            let recent = now.saturating_duration_since(s.used) < CARRIED;
            let near = self.reads - s.last_read <= READS_BETWEEN;
            s.flows && recent && near && s.next.is_none() && s.has_ended()
        });
        let ended = self.list.swap_remove(ended?);
        Some((ended.line, ended.run.min(GUESSED)))
    }

    /// A stream that has come to the end of `part`, of a line that has read so many bytes elsewhere; with none,
    /// a first block.
    fn add(
        &mut self,
        blob: &str,
        blob_hash: u64,
        part: Range<u64>,
        before: Option<(u64, u64)>,
        now: Instant,
    ) -> u64 {
        let flows = before.is_some();
        let most = if flows { STREAMS } else { STARTS };
        self.forget_oldest(flows, most - 1);
        let id = self.next_id;
        self.next_id += 1;
        let (line, run) = before.unwrap_or((id, 0));
        self.list.push(Stream {
            id,
            line,
            blob: blob.into(),
            blob_hash,
            from: part.start,
            pos: part.end,
            reach: part.end,
            run,
            fetched: 0,
            flows,
            end: None,
            next: None,
            expected: false,
            ask_at: 0,
            used: now,
            last_read: self.reads,
        });
        id
    }

    /// Leaves at most `most` streams, or first blocks.
    fn forget_oldest(&mut self, flows: bool, most: usize) {
        let alike = self.list.iter().filter(|s| s.flows == flows);
        if alike.clone().count() > most {
            let oldest = alike.min_by_key(|s| (s.used, s.id)).map(|s| s.id);
            self.list.retain(|s| Some(s.id) != oldest);
        }
    }

    fn find(&mut self, id: u64) -> Option<&mut Stream> {
        self.list.iter_mut().find(|s| s.id == id)
    }

    /// Bytes that a stream may have ahead, and the size of its windows. What the readers of other lines
    /// are not worth is left to it.
    fn worth(&self, stream: &Stream, now: Instant) -> (u64, u64) {
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
        (ahead, self.size(ahead))
    }

    /// The largest size of windows that is not above `most` (bytes).
    fn size(&self, most: u64) -> u64 {
        let mut size = self.limits.window;
        while size > most {
            size /= 4;
        }
        size
    }

    /// Where a window for a block that is not here should end: at or before the block's own end for the
    /// block alone.
    pub(super) fn window(
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
        let (ahead, _) = self.worth(stream, now);
        let window = self.size(ahead.min(stream.credit()));
        let upto = range.start.saturating_add(window);
        if upto <= range.end {
            return Cut::End;
        }
        map(&stream.blob, range.start, upto)
    }

    /// The bytes of a stream up to `reach` are here or on their way.
    pub(super) fn reached(&mut self, id: u64, reach: u64) {
        if let Some(stream) = self.find(id) {
            stream.reach = stream.reach.max(reach);
        }
    }

    /// A part of the blob is being fetched for a stream.
    pub(super) fn fetched(&mut self, id: u64, part: &Range<u64>) {
        if let Some(stream) = self.find(id) {
            stream.from = stream.from.min(part.start);
            stream.reach = stream.reach.max(part.end);
            stream.fetched = stream.fetched.saturating_add(part.end - part.start);
        }
    }

    /// What to fetch ahead for a stream. The caller reports what it did by [`reached`](Self::reached)
    /// and [`fetched`](Self::fetched).
    pub(super) fn plan(&mut self, id: u64, now: Instant, map: Map<'_>) -> Plan {
        let mut plan = Plan::default();
        let Some(at) = self.list.iter().position(|s| s.id == id) else {
            return plan;
        };
        let (ahead, window) = self.worth(&self.list[at], now);
        let stream = &mut self.list[at];
        let upto = stream.pos.saturating_add(ahead);
        match extend(stream, upto, window, map, &mut plan) {
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
                extend(next, upto, window, map, &mut plan);
            }
        } else if let Some(stream) = self.find(id).filter(|s| s.pos >= s.ask_at) {
            stream.next = None;
            stream.ask_at = stream.pos.saturating_add(ASK_AGAIN);
            plan.follow = true;
        }
        plan
    }

    /// Stream `id` goes on at `offset` of `blob`.
    pub(super) fn follow(&mut self, id: u64, blob: &str, offset: u64, now: Instant) {
        let Some((line, run)) = self.find(id).map(|s| (s.line, s.run)) else {
            return;
        };
        // The blocks before that one are of the same file.
        let offset = if offset <= ENTRANCE { 0 } else { offset };
        let hash = self.hasher.hash_one(blob);
        let there = |s: &&Stream| {
            let near = s.expected || s.pos.abs_diff(offset) < BACK;
            s.blob_hash == hash && s.flows && s.id != id && near
        };
        let next = match self.list.iter_mut().find(|s| there(&&**s)) {
            Some(stream) => {
                // Most likely it is the same reader, who was faster.
                if stream.line == stream.id && stream.run < run {
                    (stream.line, stream.run) = (line, run);
                }
                stream.id
            }
            None => {
                let next = self.add(blob, hash, offset..offset, Some((line, run)), now);
                if let Some(stream) = self.find(next) {
                    stream.expected = true;
                }
                next
            }
        };
        // Another guess was that it is entered elsewhere.
        if let Some(stream) = self.find(next).filter(|s| s.expected && s.pos != offset) {
            (stream.pos, stream.reach, stream.run) = (offset, offset, run);
            (stream.from, stream.line) = (offset, line);
        }
        if let Some(stream) = self.find(id) {
            stream.next = Some(next);
        }
    }
}

/// Windows for a stream up to `upto`. Returns where the blob ends if that comes first.
fn extend(
    stream: &mut Stream,
    upto: u64,
    window: u64,
    map: Map<'_>,
    plan: &mut Plan,
) -> Option<u64> {
    let mut reach = stream.reach;
    let upto = upto.min(reach.saturating_add(stream.credit()));
    loop {
        if stream.end.is_some_and(|end| reach >= end) {
            return stream.end;
        }
        let goal = reach.saturating_add(window);
        if goal > upto {
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const BLOCK: u64 = 256 << 10;
    const LIMITS: Limits = Limits {
        window: 16 * MIB,
        ahead: 64 * MIB,
    };

    /// Blobs of `len` bytes in blocks of 256 KiB, all rows known.
    fn blocks(len: u64) -> impl Fn(&str, u64, u64) -> Cut {
        move |_, from, upto| {
            if from >= len {
                return Cut::End;
            }
            let cut = (upto.min(len) / BLOCK * BLOCK).max(from / BLOCK * BLOCK + BLOCK);
            Cut::At(cut)
        }
    }

    #[test]
    fn first_blocks_are_remembered_in_a_fixed_number() {
        let mut streams = Streams::new(LIMITS);
        let now = Instant::now();
        for n in 0..3 * STARTS as u64 {
            // Far from each other: none goes on from another.
            streams.note(&format!("blob {n}"), &(0..BLOCK), now);
            let starts = streams.list.iter().filter(|s| !s.flows).count();
            assert!(starts <= STARTS, "{starts}");
        }
        assert_eq!(streams.list.len(), STARTS);
    }

    struct Reader {
        streams: Streams,
        now: Instant,
        len: u64,
        /// What was asked for in vain before it was needed, per blob.
        ahead: Vec<Ahead>,
        /// Blocks that had to be waited for, and how much was fetched for each.
        waits: Vec<(u64, u64)>,
        here: Vec<(String, Range<u64>)>,
        follows: usize,
    }

    impl Reader {
        fn new(len: u64) -> Self {
            Reader {
                streams: Streams::new(LIMITS),
                now: Instant::now(),
                len,
                ahead: Vec::new(),
                waits: Vec::new(),
                here: Vec::new(),
                follows: 0,
            }
        }

        /// Reads a block as the reader does, with fetches that are done at once.
        fn read(&mut self, blob: &str, start: u64, len: u64) -> Option<u64> {
            let range = start..start + len;
            let map = blocks(self.len);
            let noted = self.streams.note(blob, &range, self.now);
            let id = noted.map(|noted| noted.stream);
            let holds = |(b, r): &(String, Range<u64>)| {
                b == blob && r.start <= range.start && r.end >= range.end
            };
            if !self.here.iter().any(holds) {
                let cut = noted.map(|noted| self.streams.window(noted, &range, self.now, &map));
                let end = match cut {
                    Some(Cut::At(end)) => end.max(range.end),
                    _ => range.end,
                };
                self.waits.push((start, end - start));
                self.here.push((blob.into(), start..end));
                if let Some(id) = id {
                    self.streams.fetched(id, &(start..end));
                }
            }
            if let Some(id) = id {
                let plan = self.streams.plan(id, self.now, &map);
                self.follows += usize::from(plan.follow);
                for ahead in plan.ahead {
                    self.streams.fetched(ahead.stream, &ahead.range);
                    self.here
                        .push((ahead.blob.to_string(), ahead.range.clone()));
                    self.ahead.push(ahead);
                }
            }
            id
        }
    }

    #[test]
    fn random_reads_fetch_exactly_their_blocks() {
        let mut reader = Reader::new(64 * MIB);
        for n in [7, 3, 200, 100, 5, 9, 11, 50] {
            assert_eq!(reader.read("a", n * BLOCK, BLOCK), None);
        }
        reader.read("b", 201 * BLOCK, BLOCK);
        assert!(reader.waits.iter().all(|&(_, len)| len == BLOCK));
        assert_eq!(reader.ahead, []);
    }

    #[test]
    fn a_stream_waits_twice_and_its_windows_grow() {
        let mut reader = Reader::new(64 * MIB);
        for n in 0..256 {
            reader.read("a", n * BLOCK, BLOCK);
        }
        assert_eq!(reader.waits, [(0, BLOCK), (BLOCK, MIB)]);
        let sizes: Vec<u64> = reader
            .ahead
            .iter()
            .map(|a| (a.range.end - a.range.start) / MIB)
            .collect();
        assert!(sizes.is_sorted_by(|a, b| a <= b || *b < 16), "{sizes:?}");
        assert!(sizes.contains(&4) && sizes.contains(&16), "{sizes:?}");
        assert!(sizes.len() < 12, "{sizes:?}");
        // Window follows window, to the end and not beyond.
        assert_eq!(reader.ahead[0].range.start, BLOCK + MIB);
        for pair in reader.ahead.windows(2) {
            assert_eq!(pair[0].range.end, pair[1].range.start);
        }
        assert_eq!(reader.ahead.last().unwrap().range.end, 64 * MIB);
    }

    #[test]
    fn what_is_fetched_ahead_is_in_proportion_to_what_was_read() {
        let mut reader = Reader::new(1 << 40);
        for n in 0..2000 {
            reader.read("a", n * BLOCK, BLOCK);
            let read = (n + 1) * BLOCK;
            let reach = reader.here.iter().map(|(_, r)| r.end).max().unwrap();
            let ahead = reach - read;
            assert!(
                ahead <= (TRUST * read).clamp(MIB, LIMITS.ahead),
                "{read}: {ahead}"
            );
        }
    }

    #[test]
    fn batches_side_by_side_are_one_stream() {
        let mut reader = Reader::new(64 * MIB);
        for n in 0..10 {
            reader.read("a", n * BLOCK, BLOCK);
        }
        // Ten blocks each, the second batch a little ahead of the first.
        for n in 10..20 {
            let first = reader.read("a", n * BLOCK, BLOCK);
            let second = reader.read("a", (n + 10) * BLOCK, BLOCK);
            assert_eq!(first, second);
            assert!(first.is_some());
        }
        assert_eq!(reader.waits.len(), 2);
    }

    #[test]
    fn streams_share_the_allowance() {
        let mut reader = Reader::new(1 << 40);
        for n in 0..1000 {
            for blob in ["a", "b", "c", "d"] {
                reader.read(blob, n * BLOCK, BLOCK);
            }
        }
        for blob in ["a", "b", "c", "d"] {
            let of_blob = reader.here.iter().filter(|(b, _)| b == blob);
            let reach = of_blob.map(|(_, r)| r.end).max().unwrap();
            assert!(reach - 1000 * BLOCK <= LIMITS.ahead / 4);
        }
        // Alone again after the others fell asleep.
        reader.now += ASLEEP;
        for n in 1000..1100 {
            reader.read("a", n * BLOCK, BLOCK);
        }
        let reach = reader.here.iter().map(|(_, r)| r.end).max().unwrap();
        assert!(reach - 1100 * BLOCK > LIMITS.ahead / 2);
    }

    #[test]
    fn a_short_stream_takes_little_from_a_long_one() {
        let mut reader = Reader::new(1 << 40);
        for n in 0..4 {
            reader.read("short", n * BLOCK, BLOCK);
        }
        for n in 0..1000 {
            reader.read("long", n * BLOCK, BLOCK);
        }
        let reach = reader.here.iter().map(|(_, r)| r.end).max().unwrap();
        assert!(reach - 1000 * BLOCK > LIMITS.ahead / 8 * 5);
    }

    #[test]
    fn a_stream_goes_on_in_the_next_blob() {
        let mut reader = Reader::new(64 * MIB);
        let mut stream = None;
        for n in 0..256 {
            stream = reader.read("a", n * BLOCK, BLOCK);
            if reader.follows == 1 && !reader.here.iter().any(|(b, _)| b == "b") {
                reader.streams.follow(stream.unwrap(), "b", 0, reader.now);
            }
        }
        assert!(reader.here.iter().any(|(b, _)| b == "b"), "fetched ahead");
        for n in 0..256 {
            assert_ne!(reader.read("b", n * BLOCK, BLOCK), stream);
        }
        assert_eq!(reader.waits.len(), 2, "none in the next blob");
        let first = reader.ahead.iter().find(|a| &*a.blob == "b").unwrap();
        assert_eq!(first.range, 0..16 * MIB);
    }

    #[test]
    fn a_reader_that_goes_on_has_all_of_the_allowance() {
        let mut reader = Reader::new(64 * MIB);
        // The node before the leaves of the next blob was read early.
        reader.read("b", 0, BLOCK / 32);
        for n in 0..256 {
            let stream = reader.read("a", n * BLOCK, BLOCK).unwrap_or(0);
            if n == 100 {
                reader.streams.follow(stream, "b", 0, reader.now);
            }
        }
        // While the last blocks of the first blob are still new.
        reader.read("b", BLOCK / 32, BLOCK);
        let in_b = reader.ahead.iter().filter(|a| &*a.blob == "b");
        let reach = in_b.map(|a| a.range.end).max().unwrap();
        assert!(reach > 48 * MIB, "{reach}");
        assert_eq!(reader.waits.len(), 3, "none but the node in the next blob");
    }

    #[test]
    fn without_knowing_the_next_blob_the_size_of_windows_is_carried_over() {
        let mut reader = Reader::new(64 * MIB);
        for n in 0..256 {
            reader.read("a", n * BLOCK, BLOCK);
        }
        assert!(reader.follows > 1, "asked again and again");
        reader.read("b", 100 * MIB, BLOCK);
        assert_eq!(reader.waits[2].1, BLOCK, "not where a file goes on");
        reader.read("b", BLOCK, BLOCK);
        assert_eq!(reader.waits[3].1, 4 * MIB);
        reader.read("c", 0, BLOCK);
        assert_eq!(reader.waits[4].1, BLOCK, "only once");
    }

    #[test]
    fn rows_that_are_not_known_are_asked_for() {
        let mut streams = Streams::new(LIMITS);
        let now = Instant::now();
        let unknown = |_: &str, _, _| Cut::Unknown;
        streams.note("a", &(0..BLOCK), now);
        let noted = streams.note("a", &(BLOCK..2 * BLOCK), now).unwrap();
        let id = noted.stream;
        let window = streams.window(noted, &(BLOCK..2 * BLOCK), now, &unknown);
        assert_eq!(window, Cut::Unknown);
        for n in 2..9 {
            streams.note("a", &(n * BLOCK..(n + 1) * BLOCK), now);
        }
        let plan = streams.plan(id, now, &unknown);
        assert_eq!(plan.rows, Some(("a".into(), 9 * BLOCK)));
        assert_eq!((plan.ahead, plan.follow), (vec![], false));
    }

    #[test]
    fn blocks_larger_than_a_window_are_read_alone() {
        let mut streams = Streams::new(LIMITS);
        let now = Instant::now();
        let all = blocks(1 << 40);
        streams.note("a", &(0..2 * MIB), now);
        let range = 2 * MIB..20 * MIB;
        let id = streams.note("a", &range, now).unwrap();
        assert_eq!(streams.window(id, &range, now, &all), Cut::End);
    }

    #[test]
    fn memory_is_bounded_and_first_blocks_do_not_drive_streams_out() {
        let mut streams = Streams::new(LIMITS);
        let now = Instant::now();
        let mut stream = None;
        for n in 0..2 {
            stream = streams.note("flows", &(n * BLOCK..(n + 1) * BLOCK), now);
        }
        for n in 0..1000 {
            streams.note(&format!("blob {n}"), &(0..BLOCK), now);
        }
        assert!(streams.list.len() <= STREAMS + STARTS);
        let range = 2 * BLOCK..3 * BLOCK;
        let id = |noted: Option<Noted>| noted.map(|noted| noted.stream);
        assert_eq!(id(streams.note("flows", &range, now)), id(stream));
    }
}
