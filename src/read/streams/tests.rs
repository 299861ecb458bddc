use super::plan::STEPS;
use super::stream::{ASLEEP, TRUST};
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
    /// Ranges that were asked for in vain before they were needed, per blob.
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
            if plan.follow {
                self.streams.asked(id);
                self.follows += 1;
            }
            for ahead in plan.ahead {
                self.streams.fetched(ahead.stream, &ahead.range);
                self.here
                    .push((ahead.blob.to_string(), ahead.range.clone()));
                self.ahead.push(ahead);
            }
        }
        id
    }

    /// Reads 64 MiB of blob "a", of which "b" is the next. Returns the stream.
    fn read_a_before_b(&mut self) -> u64 {
        let mut stream = None;
        for n in 0..256 {
            stream = self.read("a", n * BLOCK, BLOCK);
            if n == 100 {
                self.streams.follow(stream.unwrap(), "b", 0, self.now);
            }
        }
        stream.unwrap()
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
    let (last, before) = sizes.split_last().unwrap();
    assert!(
        before.is_sorted() && last <= before.last().unwrap(),
        "{sizes:?}"
    );
    assert!(
        before.first() == Some(&1) && before.last() == Some(&8),
        "{sizes:?}"
    );
    assert!(sizes.len() < 14, "{sizes:?}");
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
        // And not less, but for a part of a window: a reader does not wait for its trust to become
        // worth a whole one.
        let worth = ((TRUST - 1) * (read - BLOCK)).min(LIMITS.ahead);
        let rest = (worth / STEPS).min(LIMITS.window);
        assert!(ahead + rest >= worth, "{read}: {ahead}");
    }
}

/// What came for a reader that has left is in no other reader's way.
#[test]
fn a_reader_that_stays_away_awaits_nothing() {
    let mut reader = Reader::new(64 * MIB);
    for n in 0..20 {
        reader.read("a", n * BLOCK, BLOCK);
    }
    let awaited = reader.streams.awaited(reader.now);
    let [(blob, part)] = &awaited[..] else {
        panic!("{awaited:?}");
    };
    assert!(&**blob == "a" && part.contains(&(20 * BLOCK)), "{part:?}");
    assert_eq!(reader.streams.awaited(reader.now + ASLEEP), []);
}

/// A slow reader that came first is in the way of others with its share alone.
#[test]
fn a_reader_awaits_no_more_than_its_share() {
    let mut reader = Reader::new(256 * MIB);
    for n in 0..100 {
        reader.read("a", n * BLOCK, BLOCK);
    }
    let ahead = |reader: &Reader| {
        let awaited = reader.streams.awaited(reader.now);
        let of_a = awaited.iter().filter(|(blob, _)| &**blob == "a");
        of_a.map(|(_, part)| part.end - 100 * BLOCK).sum::<u64>()
    };
    assert!(ahead(&reader) > LIMITS.ahead / 4 * 3);
    for n in 0..100 {
        reader.read("b", n * BLOCK, BLOCK);
    }
    assert_eq!(ahead(&reader), LIMITS.ahead / 2);
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

/// Some blocks of a file lie in the blob before, behind its reader.
#[test]
fn a_stream_does_not_go_back_to_the_blob_that_it_came_from() {
    let mut reader = Reader::new(64 * MIB);
    let before = reader.read_a_before_b();
    let stream = reader.read("b", 0, BLOCK).unwrap();
    assert_ne!(stream, before);
    reader.streams.follow(stream, "a", 63 * MIB, reader.now);
    let asked = reader.follows;
    for n in 1..256 {
        reader.read("b", n * BLOCK, BLOCK);
        if reader.follows > asked && !reader.here.iter().any(|(b, _)| b == "c") {
            reader.streams.follow(stream, "c", 0, reader.now);
        }
    }
    assert!(reader.follows > asked, "it asks on");
    assert!(reader.here.iter().any(|(b, _)| b == "c"), "fetched ahead");
}

#[test]
fn a_reader_that_goes_on_has_all_of_the_allowance() {
    let mut reader = Reader::new(64 * MIB);
    // The node before the leaves of the next blob was read early.
    reader.read("b", 0, BLOCK / 32);
    reader.read_a_before_b();
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

#[test]
fn a_file_goes_on_where_most_of_it_lies() {
    let places = |of: &[(&str, u64)]| {
        let owned = of.iter().map(|(id, offset)| (*offset, (*id).to_owned()));
        owned.collect::<Vec<_>>().into_iter()
    };
    let next = |of: &[(&str, u64)]| next_of("here", places(of));
    assert_eq!(next(&[("here", 1), ("here", 2)]), None);
    assert_eq!(next(&[("here", 9), ("b", 7)]), Some(("b".into(), 7)));
    let mut few = vec![("here", 5); 40];
    few.extend([("last", 900), ("last", 800)]);
    assert_eq!(next(&few), None, "others lie here");
    few.extend([("b", 0); 20]);
    assert_eq!(next(&few), Some(("b".into(), 0)));
    // Two of the last blob, then the next, in no order at its beginning, and the one after it.
    let mut mixed = vec![
        ("last", 900),
        ("here", 3),
        ("last", 800),
        ("b", 30),
        ("b", 10),
    ];
    mixed.extend([
        ("b", 20),
        ("b", 40),
        ("c", 0),
        ("c", 1),
        ("c", 2),
        ("c", 3),
        ("c", 4),
    ]);
    assert_eq!(next(&mixed), Some(("b".into(), 10)));
}
