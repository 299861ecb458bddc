//! Keeps the log lines of datastores whose handles are closed. The lines that the close itself
//! wrote would be lost otherwise.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::walrusds_handle;
use crate::error::Result;
use crate::log::{Line, Log};

/// Most closed datastores whose lines are kept. A host that takes no lines must not make them pile
/// up.
const KEPT: usize = 64;

/// The log lines of closed datastores. See the module.
pub(super) struct LastWords(Mutex<VecDeque<Closed>>);

struct Closed {
    handle: walrusds_handle,
    log: Arc<Log>,
    /// Whether no more lines will come.
    ended: bool,
}

impl LastWords {
    pub(super) const fn new() -> Self {
        LastWords(Mutex::new(VecDeque::new()))
    }

    /// Notes that the datastore is being closed: `take` makes its handle invalid. There is no
    /// moment at which the handle is invalid and its lines are not here, since [`next`](Self::next)
    /// waits meanwhile.
    pub(super) fn begin<T>(
        &self,
        handle: walrusds_handle,
        take: impl FnOnce() -> Result<(T, Arc<Log>)>,
    ) -> Result<T> {
        let mut closed = self.0.lock();
        let (taken, log) = take()?;
        if closed.len() == KEPT {
            closed.pop_front();
        }
        closed.push_back(Closed {
            handle,
            log,
            ended: false,
        });
        Ok(taken)
    }

    /// Notes that the datastore is closed.
    pub(super) fn end(&self, handle: walrusds_handle) {
        let mut closed = self.0.lock();
        if let Some(closed) = closed.iter_mut().find(|c| c.handle == handle) {
            closed.ended = true;
        }
    }

    /// The next line of a datastore; `Some(None)` while more may come, `None` when all were taken.
    pub(super) fn next(&self, handle: walrusds_handle) -> Option<Option<Line>> {
        let mut all = self.0.lock();
        let at = all.iter().position(|c| c.handle == handle)?;
        let closed = all.get(at)?;
        let line = closed.log.pop();
        if line.is_none() && closed.ended {
            all.remove(at);
            return None;
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Level;

    #[test]
    fn a_line_is_found_however_soon_it_is_asked_for() {
        let words = LastWords::new();
        let log = Arc::new(Log::default());
        log.push(Level::Info, "the last one");
        std::thread::scope(|scope| {
            let asked = words.begin(7, || {
                // The handle is invalid now.
                let asking = scope.spawn(|| words.next(7));
                Ok((asking, Arc::clone(&log)))
            });
            let line = asked.unwrap().join().unwrap();
            assert_eq!(line.unwrap().unwrap().message, "the last one");
        });
        assert!(words.next(7).unwrap().is_none(), "more may come");
        words.end(7);
        assert!(words.next(7).is_none());
        let refused = words.begin(8, || Err::<((), _), _>(crate::Error::closed("it")));
        assert!(refused.is_err() && words.next(8).is_none());
    }
}
