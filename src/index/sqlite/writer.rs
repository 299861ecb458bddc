//! The one connection that writes, on a thread of its own.
//!
//! **Problem.** A durable commit waits for an fsync, so one transaction for each small write would
//! be slow.
//!
//! **Outline.** Calls queue for the thread. The calls that queue while a commit is being synced
//! share the next transaction, at most [`TOGETHER`] of them. Each call runs within a savepoint of
//! that transaction. After the commit each caller gets its answer.
//!
//! **Invariants.**
//! - A caller is told success only after the commit of its transaction, with the sync that it was
//!   promised. A transaction is synced if any of its calls needs that ([`Promise::Durable`]).
//! - A call that fails or panics is rolled back to its savepoint and does not affect the others. If
//!   the whole transaction fails, none of its calls has taken effect, and every call that had not
//!   failed before gets that error.
//! - A call whose caller has left before its turn is left out. A call whose turn has come is
//!   carried out even if its caller leaves.
//! - A call's [`Pass`] through the gate is given back before its answer is sent.
//!
//! **Locks.** `queue` is held to hand a call in, and for no await. [`Writer::stop`] takes `queue`
//! and releases it before it takes `thread`, which it holds until the thread has ended; the thread
//! takes neither lock.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::{failed, told};
use crate::error::{Error, ErrorKind, Result};
use crate::index::gate::Pass;

/// The promise that a call's return makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Promise {
    /// The call's writes survive a power cut.
    Durable,
    /// The call's writes survive the end of this process; a power cut may undo them.
    Visible,
}

/// Most calls that share a transaction. It bounds how long the first of them waits.
const TOGETHER: usize = 256;

/// The writing connection of an index. See the module.
pub(super) struct Writer {
    queue: Mutex<Option<mpsc::Sender<Box<dyn Job>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    pub fn start(connection: Connection) -> Result<Writer> {
        let (queue, jobs) = mpsc::channel::<Box<dyn Job>>();
        let thread = std::thread::Builder::new()
            .name("walrusds-sqlite".into())
            .spawn(move || {
                // The schema opened the connection with sync at each commit; this changes with the
                // first transaction that needs none.
                let mut synced = Promise::Durable;
                while let Ok(first) = jobs.recv() {
                    let more = jobs.try_iter().take(TOGETHER - 1);
                    let batch = std::iter::once(first)
                        .chain(more)
                        .filter(|job| !job.abandoned())
                        .collect();
                    commit(&connection, batch, &mut synced);
                }
                // Closing the last connection to the file moves the log into it.
                let _ = connection.close();
            })
            .map_err(|e| {
                Error::retryable(ErrorKind::Index, format!("no thread for the index: {e}"))
            })?;
        Ok(Writer {
            queue: Mutex::new(Some(queue)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Runs `work` in a transaction and returns when that is committed as promised. A call whose
    /// future was dropped before its turn is left out.
    pub async fn run<T, F>(
        &self,
        what: &'static str,
        promise: Promise,
        pass: Pass,
        work: F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(Call {
            what,
            promise,
            work: Some(work),
            value: None,
            reply,
            _pass: pass,
        });
        {
            let queue = self.queue.lock();
            let queue = queue.as_ref().ok_or_else(|| Error::closed("the index"))?;
            queue.send(job).map_err(|_| Error::closed("the index"))?;
        }
        answer
            .await
            .unwrap_or_else(|_| Err(Error::closed("the index")))
    }

    /// Finishes the queued calls and closes the connection; blocks until then.
    pub fn stop(&self) {
        drop(self.queue.lock().take());
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

/// A queued call.
trait Job: Send {
    fn what(&self) -> &'static str;
    fn promise(&self) -> Promise;
    fn abandoned(&self) -> bool;
    fn run(&mut self, connection: &Connection) -> Result<()>;
    fn finish(self: Box<Self>, outcome: Result<()>);
}

struct Call<T, F> {
    what: &'static str,
    promise: Promise,
    work: Option<F>,
    value: Option<T>,
    reply: oneshot::Sender<Result<T>>,
    _pass: Pass,
}

impl<T, F> Job for Call<T, F>
where
    T: Send,
    F: FnOnce(&Connection) -> rusqlite::Result<T> + Send,
{
    fn what(&self) -> &'static str {
        self.what
    }

    fn promise(&self) -> Promise {
        self.promise
    }

    fn abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    fn run(&mut self, connection: &Connection) -> Result<()> {
        let Some(work) = self.work.take() else {
            return Ok(());
        };
        // A panic must cost this call alone, not the thread on which all writes depend.
        match catch_unwind(AssertUnwindSafe(|| work(connection))) {
            Ok(Ok(value)) => {
                self.value = Some(value);
                Ok(())
            }
            Ok(Err(e)) => Err(failed(self.what, e)),
            Err(_) => Err(Error::new(
                ErrorKind::Internal,
                format!("panic while {}", self.what),
            )),
        }
    }

    fn finish(self: Box<Self>, outcome: Result<()>) {
        let Call {
            value,
            reply,
            what,
            _pass,
            ..
        } = *self;
        let outcome = outcome.and_then(|()| {
            value.ok_or_else(|| Error::new(ErrorKind::Internal, format!("no result while {what}")))
        });
        // The pass first: the caller may close the index as soon as it has the answer.
        drop(_pass);
        let _ = reply.send(outcome);
    }
}

/// Sets the promise that commits keep; `synced` is the one they keep now. In a write-ahead log,
/// NORMAL leaves the sync to the next commit that makes one, or to the checkpoint.
fn set_promise(
    connection: &Connection,
    promise: Promise,
    synced: &mut Promise,
) -> rusqlite::Result<()> {
    if *synced != promise {
        let level = match promise {
            Promise::Durable => "FULL",
            Promise::Visible => "NORMAL",
        };
        connection.pragma_update(None, "synchronous", level)?;
        *synced = promise;
    }
    Ok(())
}

/// Runs jobs in one transaction, each within a savepoint, so that the failure of one does not
/// affect the others.
fn commit(connection: &Connection, jobs: Vec<Box<dyn Job>>, synced: &mut Promise) {
    if jobs.is_empty() {
        return;
    }
    let what = jobs[0].what();
    let promise = match jobs.iter().all(|job| job.promise() == Promise::Visible) {
        true => Promise::Visible,
        false => Promise::Durable,
    };
    let mut done: Vec<(Box<dyn Job>, Result<()>)> = Vec::with_capacity(jobs.len());
    let fail = |e: &rusqlite::Error| told(what, e);
    let begun = set_promise(connection, promise, synced)
        .and_then(|()| connection.execute_batch("BEGIN IMMEDIATE"));
    if let Err(e) = begun {
        for job in jobs {
            job.finish(Err(fail(&e)));
        }
        return;
    }
    failpoint!("sqlite.begun");
    let mut broken: Option<Error> = None;
    for mut job in jobs {
        if let Some(e) = &broken {
            done.push((job, Err(e.clone())));
            continue;
        }
        let outcome = connection
            .execute_batch("SAVEPOINT call")
            .map_err(|e| fail(&e))
            .and_then(|()| job.run(connection));
        let end = match &outcome {
            Ok(()) => "RELEASE call",
            Err(_) => "ROLLBACK TO call; RELEASE call",
        };
        // Some failures (a full disk) roll the whole transaction back.
        if connection.is_autocommit() {
            broken = Some(
                outcome
                    .clone()
                    .err()
                    .unwrap_or_else(|| Error::new(ErrorKind::Internal, "transaction ended early")),
            );
        } else if let Err(e) = connection.execute_batch(end) {
            broken = Some(fail(&e));
        }
        done.push((job, outcome));
    }
    failpoint!("sqlite.worked");
    if broken.is_none() {
        if let Err(e) = connection.execute_batch("COMMIT") {
            broken = Some(fail(&e));
        }
    }
    failpoint!("sqlite.committed");
    if broken.is_some() && !connection.is_autocommit() {
        let _ = connection.execute_batch("ROLLBACK");
    }
    for (job, outcome) in done {
        let outcome = match (&broken, outcome) {
            (Some(e), Ok(())) => Err(e.clone()),
            (_, outcome) => outcome,
        };
        job.finish(outcome);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::index::gate::Gate;

    /// 2 is FULL, 1 is NORMAL. The value is read within the transaction, where it is the one that
    /// the commit will use.
    #[tokio::test]
    async fn only_what_must_survive_a_power_cut_waits_for_the_disk() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .pragma_update(None, "synchronous", "FULL")
            .unwrap();
        let writer = Writer::start(connection).unwrap();
        let gate = Arc::new(Gate::default());
        for (promise, level) in [
            (Promise::Durable, 2),
            (Promise::Visible, 1),
            (Promise::Visible, 1),
            (Promise::Durable, 2),
        ] {
            let seen = writer.run("asking", promise, gate.enter().unwrap(), |connection| {
                connection.pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0))
            });
            assert_eq!(seen.await.unwrap(), level);
        }
    }
}
