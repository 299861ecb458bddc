//! Log lines wait in a bounded ring until the host takes them: the engine prints nothing and
//! installs no global logger, since it lives inside another program.
//!
//! Lines that many blobs or packs may cause at once are `alike`: of those about one
//! subject only the first few in a while are kept. How many were left out is told by the next line
//! about the subject, or, where none comes, by a line of its own when the while is over.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::Mutex;

/// The severity of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Level {
    /// A failure that an operator must look at.
    Error,
    /// A problem after which the engine goes on.
    Warn,
    /// A rare event worth knowing.
    Info,
}

impl Level {
    /// Lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
        }
    }

    fn rank(self) -> u8 {
        match self {
            Level::Error => 2,
            Level::Warn => 1,
            Level::Info => 0,
        }
    }
}

/// One log line. The message holds no secrets.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Line {
    /// When it was written.
    pub time: SystemTime,
    /// How much it matters.
    pub level: Level,
    /// The subject of lines that are limited together, in one word; empty for others.
    pub about: &'static str,
    /// The text of the line.
    pub message: String,
}

/// Most lines that are kept; the oldest are dropped first. (Under a scheduler so few that the ring
/// fills up at all.)
const CAPACITY: usize = if cfg!(shuttle) { 3 } else { 1024 };

/// How many lines about one subject are kept in [`WHILE`].
const MOST_ALIKE: u32 = 5;
/// How long lines about one subject count together.
const WHILE: Duration = Duration::from_secs(600);

/// The ring of log lines of one datastore.
#[derive(Debug, Default)]
pub(crate) struct Log {
    lines: Mutex<VecDeque<Line>>,
    dropped: AtomicU64,
    /// By subject. Never locked together with the lines.
    alike: parking_lot::Mutex<HashMap<&'static str, Alike>>,
}

/// The lines about one subject since the first of them.
#[derive(Debug)]
struct Alike {
    since: Instant,
    kept: u32,
    left_out: u64,
    /// The level of the lines that were left out, the highest one.
    level: Level,
}

impl Alike {
    /// The time since the first line, if lines were left out and are to be told of now.
    fn untold(&self, now: Instant) -> Option<Duration> {
        let ago = now - self.since;
        (self.left_out > 0 && ago >= WHILE).then_some(ago)
    }
}

fn left_out(about: &str, others: u64, ago: Duration) -> String {
    let ago = ago.as_secs();
    format!("{others} more lines about {about} were left out in {ago} s")
}

impl Log {
    /// Adds a line.
    pub fn push(&self, level: Level, message: impl Into<String>) {
        self.add(level, "", message.into());
    }

    /// Adds one of possibly many lines about a subject, or leaves it out.
    pub fn alike(&self, about: &'static str, level: Level, message: impl Into<String>) {
        let mut message = message.into();
        {
            let mut subjects = self.alike.lock();
            let now = Instant::now();
            let alike = subjects.entry(about).or_insert(Alike {
                since: now,
                kept: 0,
                left_out: 0,
                level,
            });
            if let Some(ago) = alike.untold(now) {
                message += &format!(" ({})", left_out(about, alike.left_out, ago));
            }
            if now - alike.since >= WHILE {
                (alike.since, alike.kept, alike.left_out) = (now, 0, 0);
            }
            if alike.kept == MOST_ALIKE {
                if alike.left_out == 0 || alike.level.rank() < level.rank() {
                    alike.level = level;
                }
                alike.left_out += 1;
                return;
            }
            alike.kept += 1;
        }
        self.add(level, about, message);
    }

    fn add(&self, level: Level, about: &'static str, message: String) {
        let line = Line {
            time: SystemTime::now(),
            level,
            about,
            message,
        };
        let mut lines = self.lines.lock();
        if lines.len() == CAPACITY {
            lines.pop_front();
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        lines.push_back(line);
    }

    /// Takes the oldest line out.
    pub fn pop(&self) -> Option<Line> {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            return Some(Line {
                time: SystemTime::now(),
                level: Level::Warn,
                about: "",
                message: format!("{dropped} older log lines were dropped: nobody fetched them"),
            });
        }
        let line = self.lines.lock().pop_front();
        line.or_else(|| self.untold())
    }

    /// The line about lines that were left out, when the while is over and no other line came to
    /// tell of them.
    fn untold(&self) -> Option<Line> {
        let mut subjects = self.alike.lock();
        let now = Instant::now();
        let mut untold = subjects.iter_mut();
        let (&about, alike, ago) =
            untold.find_map(|(about, alike)| alike.untold(now).map(|ago| (about, alike, ago)))?;
        let message = left_out(about, alike.left_out, ago);
        (alike.since, alike.kept, alike.left_out) = (now, 0, 0);
        Some(Line {
            time: SystemTime::now(),
            level: alike.level,
            about,
            message,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_ring_drops_the_oldest_and_says_so() {
        let log = Log::default();
        for i in 0..CAPACITY + 3 {
            log.push(Level::Info, i.to_string());
        }
        assert!(log.pop().unwrap().message.starts_with("3 older log lines"));
        assert_eq!(log.pop().unwrap().message, "3");
        assert_eq!(std::iter::from_fn(|| log.pop()).count(), CAPACITY - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn lines_alike_come_a_few_at_a_time() {
        let log = Log::default();
        for i in 0..50 {
            log.alike("renewal", Level::Error, format!("blob {i}"));
        }
        log.alike("wallet", Level::Error, "empty");
        let kept: Vec<Line> = std::iter::from_fn(|| log.pop()).collect();
        assert_eq!(kept.len(), MOST_ALIKE as usize + 1);
        assert_eq!((kept[0].about, &*kept[0].message), ("renewal", "blob 0"));
        assert_eq!(kept.last().unwrap().about, "wallet");
        tokio::time::advance(WHILE).await;
        log.alike("renewal", Level::Error, "blob 50");
        log.alike("renewal", Level::Error, "blob 51");
        let next = log.pop().unwrap().message;
        assert_eq!(
            next,
            "blob 50 (45 more lines about renewal were left out in 600 s)"
        );
        assert_eq!(log.pop().unwrap().message, "blob 51");
    }

    #[tokio::test(start_paused = true)]
    async fn lines_that_were_left_out_are_told_of_although_no_other_line_comes() {
        let log = Log::default();
        for i in 0..7 {
            let level = if i == 5 { Level::Error } else { Level::Info };
            log.alike("renewal", level, format!("blob {i}"));
        }
        let kept = std::iter::from_fn(|| log.pop()).count();
        assert_eq!(kept, MOST_ALIKE as usize);
        tokio::time::advance(WHILE).await;
        let told = log.pop().expect("a line");
        assert_eq!(
            told.message,
            "2 more lines about renewal were left out in 600 s"
        );
        assert_eq!((told.level, told.about), (Level::Error, "renewal"));
        assert!(log.pop().is_none(), "told once");
        // The next line finds nothing to tell of.
        log.alike("renewal", Level::Info, "blob 7");
        assert_eq!(log.pop().unwrap().message, "blob 7");
    }
}

#[cfg(all(test, shuttle))]
mod schedules {
    use super::*;
    use crate::schedules::explore;
    use shuttle::thread;
    use std::sync::Arc;

    /// Every line is fetched once, or counted as dropped; the lines of one writer come in its
    /// order.
    #[test]
    fn no_line_is_lost_uncounted() {
        const WRITERS: usize = 3;
        const LINES: usize = 3;
        /// The number of lines that were counted as dropped, and the other lines.
        fn fetch(log: &Log, times: usize) -> (usize, Vec<(usize, usize)>) {
            let (mut dropped, mut lines) = (0, Vec::new());
            for line in std::iter::from_fn(|| log.pop()).take(times) {
                match line.message.split_once(':') {
                    Some((writer, n)) if line.level == Level::Info => {
                        lines.push((writer.parse().unwrap(), n.parse().unwrap()));
                    }
                    _ => {
                        let count = line.message.split_once(' ').unwrap().0;
                        dropped += count.parse::<usize>().unwrap();
                    }
                }
            }
            for writer in 0..WRITERS {
                let own = lines.iter().filter(|(w, _)| *w == writer);
                assert!(own.is_sorted_by(|a, b| a < b), "{lines:?}");
            }
            (dropped, lines)
        }
        explore(8_000, || {
            let log = Arc::new(Log::default());
            let mut writers = Vec::new();
            for writer in 0..WRITERS {
                let log = Arc::clone(&log);
                writers.push(thread::spawn(move || {
                    for n in 0..LINES {
                        log.push(Level::Info, format!("{writer}:{n}"));
                    }
                }));
            }
            let mut readers = Vec::new();
            for _ in 0..2 {
                let log = Arc::clone(&log);
                readers.push(thread::spawn(move || fetch(&log, 3)));
            }
            for writer in writers {
                writer.join().unwrap();
            }
            let mut fetched: Vec<_> = readers.into_iter().map(|r| r.join().unwrap()).collect();
            fetched.push(fetch(&log, usize::MAX));
            let dropped: usize = fetched.iter().map(|(dropped, _)| dropped).sum();
            let mut lines: Vec<_> = fetched.into_iter().flat_map(|(_, lines)| lines).collect();
            lines.sort_unstable();
            let all = lines.len();
            lines.dedup();
            assert_eq!(lines.len(), all, "a line came twice");
            assert_eq!(all + dropped, WRITERS * LINES);
        });
    }
}
