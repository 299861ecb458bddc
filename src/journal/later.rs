//! Syncs that follow their writes: with `journalSync` `sync` a write returns when the kernel has
//! it, and a thread of its own syncs it soon.
//!
//! The problem: a sync must not hold up the writes that come meanwhile, and no failure of a sync
//! may go by unseen: a kernel reports it once.
//!
//! Invariants:
//! - What was acknowledged is synced within [`SOON`] and the time that one sync takes, or two if
//!   one was under way.
//! - [`Journal::sync`] returns after a sync that was begun after the call, or if none is owed.
//! - Two syncs of a file do not overlap, and after one that failed all others fail until the file
//!   was cut back (`Segment::sync`). So an appender that seals the file sees the failure, too.
//! - After a failed sync the file is cut back and what was acknowledged is written again (`mend`),
//!   and that is synced at once. Only if that fails as well is a caller told of the failure; it is
//!   tried again after [`AGAIN`].
//!
//! Lock order: the appender's lock is not held while the disk is synced, but to close the journal.
//! `Due::orders` is the innermost lock.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::segment::Segment;
use super::writer::{sync, sync_file, Appender, Open};
use super::{disk_error, Journal, JournalParts};
use crate::error::{Error, ErrorKind, Result};

/// A sync begins so long after the first write that it is for.
const SOON: Duration = Duration::from_millis(100);
/// A sync that failed is tried again after this time.
const AGAIN: Duration = Duration::from_secs(1);

/// The syncs that are owed.
#[derive(Debug, Default)]
pub(super) struct Due {
    orders: Mutex<Orders>,
    bell: Condvar,
}

#[derive(Debug, Default)]
struct Orders {
    /// When to sync what was acknowledged since the last sync began.
    at: Option<Instant>,
    /// Whether a sync is under way.
    busy: bool,
    waiting: Vec<oneshot::Sender<Result<()>>>,
    stop: bool,
}

impl Due {
    /// Notes that something was acknowledged that is not synced.
    pub(super) fn note(&self) {
        let mut orders = self.orders.lock();
        if orders.at.is_none() {
            orders.at = Some(Instant::now() + SOON);
            self.bell.notify_one();
        }
    }

    /// An answer to come, once all that was acknowledged is synced; `None` if it is.
    fn ask(&self) -> Option<oneshot::Receiver<Result<()>>> {
        let mut orders = self.orders.lock();
        if orders.at.is_none() && !orders.busy {
            return None;
        }
        let (reply, answer) = oneshot::channel();
        orders.waiting.push(reply);
        self.bell.notify_one();
        Some(answer)
    }

    /// Waits until a sync is due, and gives the callers that wait for it; `None` at the end.
    fn wait(&self) -> Option<Vec<oneshot::Sender<Result<()>>>> {
        let mut orders = self.orders.lock();
        orders.busy = false;
        loop {
            if orders.stop {
                return None;
            }
            let is_due = orders.at.is_some_and(|at| at <= Instant::now());
            if is_due || !orders.waiting.is_empty() {
                orders.at = None;
                orders.busy = true;
                return Some(std::mem::take(&mut orders.waiting));
            }
            match orders.at {
                None => self.bell.wait(&mut orders),
                Some(at) => {
                    let _timed_out = self.bell.wait_until(&mut orders, at);
                }
            }
        }
    }

    /// Notes that a sync has failed, and is owed still.
    fn note_failure(&self) {
        self.orders.lock().at = Some(Instant::now() + AGAIN);
    }

    fn stop(&self) {
        self.orders.lock().stop = true;
        self.bell.notify_one();
    }
}

/// The thread that syncs.
#[derive(Debug)]
pub(super) struct Syncer {
    inner: Arc<JournalParts>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Syncer {
    pub(super) fn start(
        inner: &Arc<JournalParts>,
        appender: &Arc<Mutex<Appender>>,
    ) -> Result<Syncer> {
        let thread = std::thread::Builder::new()
            .name("walrusds-sync".into())
            .spawn({
                let (inner, appender) = (Arc::clone(inner), Arc::clone(appender));
                move || serve(&inner, &appender)
            })
            .map_err(|e| disk_error("no thread for the syncs of the journal", &e))?;
        Ok(Syncer {
            inner: Arc::clone(inner),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Ends the thread; blocks until then. What is owed is synced when the appender is closed.
    pub(super) fn stop(&self) {
        self.inner.due.stop();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(inner: &JournalParts, appender: &Mutex<Appender>) {
    while let Some(waiting) = inner.due.wait() {
        let synced = sync_now(inner, appender);
        if synced.is_err() {
            inner.due.note_failure();
        }
        for reply in waiting {
            let _ = reply.send(synced.clone());
        }
    }
}

/// Syncs what was acknowledged so far; once more if it has to be written again.
fn sync_now(inner: &JournalParts, appender: &Mutex<Appender>) -> Result<()> {
    let mut failed = false;
    loop {
        let Some(begun) = appender.lock().begin_sync()? else {
            return Ok(());
        };
        let synced = sync_file(inner, &begun.segment, begun.owed);
        match appender.lock().end_sync(&begun, synced) {
            End::Synced => return Ok(()),
            End::GivenUp(_) if !failed => failed = true,
            End::GivenUp(e) => return Err(e),
        }
    }
}

/// A sync that has begun.
struct Begun {
    segment: Arc<Segment>,
    /// Bytes that were not synced before.
    owed: u64,
    /// What the segment held at that moment: the lengths of frames and contents, and its notes.
    lengths: (u64, usize),
    notes: usize,
    /// As the appender and the segment counted then.
    given_up: u64,
    syncs: u64,
}

enum End {
    Synced,
    /// What was to be synced is to be written again.
    GivenUp(Error),
}

impl Appender {
    fn begin_sync(&mut self) -> Result<Option<Begun>> {
        self.mend()?;
        let given_up = self.given_up;
        let owing = self.current.as_ref().filter(|open| open.owes_a_sync());
        Ok(owing.map(|open| Begun {
            segment: Arc::clone(&open.segment),
            owed: open.segment.len() - open.synced.0,
            lengths: (open.segment.len(), open.contents.len()),
            notes: open.notes.len(),
            given_up,
            syncs: open.syncs,
        }))
    }

    fn end_sync(&mut self, begun: &Begun, synced: Result<()>) -> End {
        if self.given_up != begun.given_up {
            let other = || {
                let shown = begun.segment.path().display();
                let what = format!("{shown} was given up while it was synced");
                Error::retryable(ErrorKind::Disk, what)
            };
            return End::GivenUp(synced.err().unwrap_or_else(other));
        }
        let same = |open: &&mut Open| Arc::ptr_eq(&open.segment, &begun.segment);
        let Some(open) = self.current.as_mut().filter(same) else {
            // It was sealed, which syncs it, or its blocks need no copy here any more.
            return End::Synced;
        };
        match synced {
            Ok(()) => {
                // A sync that came in between was for more than this one.
                if open.syncs == begun.syncs {
                    open.note_sync(begun.lengths, begun.notes);
                }
                End::Synced
            }
            Err(e) => {
                self.break_off();
                End::GivenUp(e)
            }
        }
    }

    /// Syncs what was acknowledged, with the lock held.
    pub(super) fn sync_all(&mut self) -> Result<()> {
        self.mend()?;
        let inner = Arc::clone(&self.inner);
        for last in [false, true] {
            let synced = match &mut self.current {
                Some(open) if open.owes_a_sync() => sync(&inner, open),
                _ => return Ok(()),
            };
            let Err(e) = synced else {
                return Ok(());
            };
            self.break_off();
            self.mend()?;
            if last {
                return Err(e);
            }
        }
        Ok(())
    }
}

impl Journal {
    /// Returns when everything that was acknowledged survives a power cut.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`]: the disk cannot be synced. It is tried again;
    /// until then what was acknowledged is staged all the same.
    pub(crate) async fn sync(&self) -> Result<()> {
        match self.inner.due.ask() {
            None => Ok(()),
            Some(answer) => answer
                .await
                .unwrap_or_else(|_| Err(Error::closed("the journal"))),
        }
    }
}
