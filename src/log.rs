//! Log lines wait in a bounded ring until the host pulls them: the engine prints nothing and
//! installs no global logger, since it lives inside another program.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something failed that an operator must look at.
    Error,
    /// Something is wrong, but the engine goes on.
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
}

/// One log line. The message holds no secrets.
#[derive(Debug, Clone)]
pub struct Line {
    /// When it was written.
    pub time: SystemTime,
    /// How much it matters.
    pub level: Level,
    /// What happened.
    pub message: String,
}

/// Lines kept at most; the oldest go first.
const CAPACITY: usize = 1024;

/// The ring of log lines of one datastore.
#[derive(Debug, Default)]
pub struct Log {
    lines: Mutex<VecDeque<Line>>,
    dropped: AtomicU64,
}

impl Log {
    /// Adds a line.
    pub fn push(&self, level: Level, message: impl Into<String>) {
        let line = Line {
            time: SystemTime::now(),
            level,
            message: message.into(),
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
                message: format!("{dropped} older log lines were dropped: nobody fetched them"),
            });
        }
        self.lines.lock().pop_front()
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
}
