//! The log lines of datastores whose handles are closed: what closing itself had to say would be lost else.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::walrusds_handle;
use crate::log::{Line, Log};

/// Closed datastores whose lines are kept. A host that takes no lines must not make them pile up.
const KEPT: usize = 64;

/// See the module.
pub(super) struct LastWords(Mutex<VecDeque<Closed>>);

struct Closed {
    handle: walrusds_handle,
    log: Arc<Log>,
    /// No more lines will come.
    ended: bool,
}

impl LastWords {
    pub(super) const fn new() -> Self {
        LastWords(Mutex::new(VecDeque::new()))
    }

    /// The datastore is being closed.
    pub(super) fn begin(&self, handle: walrusds_handle, log: Arc<Log>) {
        let mut closed = self.0.lock();
        if closed.len() == KEPT {
            closed.pop_front();
        }
        closed.push_back(Closed {
            handle,
            log,
            ended: false,
        });
    }

    /// It is closed.
    pub(super) fn end(&self, handle: walrusds_handle) {
        let mut closed = self.0.lock();
        if let Some(closed) = closed.iter_mut().find(|c| c.handle == handle) {
            closed.ended = true;
        }
    }

    /// Its next line; `Some(None)` while more may come, `None` when all were taken.
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
