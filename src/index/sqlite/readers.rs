//! The connections for reading: a few threads with one each, and one for reads so short that they
//! may run on a thread of the runtime.

use std::collections::VecDeque;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::access::{Access, Still};
use super::{failed, is_busy, schema, told};
use crate::error::{Error, ErrorKind, Result};
use crate::index::gate::Pass;

/// Most threads. Each is started when it is needed.
pub(super) const THREADS: usize = 4;

/// A read. It gets the connection, or the error for which there is none.
type Job = Box<dyn FnOnce(std::result::Result<&Connection, &rusqlite::Error>) + Send>;

/// The reading connections of an index. See the module.
pub(super) struct Readers {
    shared: Arc<Shared>,
    here: Mutex<Option<Reader>>,
}

/// A connection, and the state of the file at its opening if the connection does not notice
/// changes.
struct Reader {
    connection: Connection,
    still: Option<Still>,
}

struct Shared {
    path: PathBuf,
    access: Access,
    /// How long a read on a thread of the index waits for a lock on the file.
    busy_timeout: Duration,
    state: Mutex<Jobs>,
    changed: Condvar,
}

#[derive(Default)]
struct Jobs {
    queue: VecDeque<Job>,
    threads: Vec<JoinHandle<()>>,
    idle: usize,
    closed: bool,
}

impl Readers {
    pub fn new(path: PathBuf, access: Access, busy_timeout: Duration) -> Readers {
        Readers {
            shared: Arc::new(Shared {
                path,
                access,
                busy_timeout,
                state: Mutex::default(),
                changed: Condvar::new(),
            }),
            here: Mutex::default(),
        }
    }

    /// The file.
    pub fn path(&self) -> &std::path::Path {
        &self.shared.path
    }

    /// Runs `work` on this thread, unless another thread is doing so (so that a slow disk stops at
    /// most one thread of the runtime), or the file is locked; then returns `None`. (tokio's
    /// `block_in_place`, which hands the runtime's work over meanwhile, costs more than such a
    /// read, and starts dozens of threads when there are many calls.)
    pub fn try_here<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Option<rusqlite::Result<T>> {
        let mut here = self.here.try_lock()?;
        let connection = self.shared.reader(&mut here, Duration::ZERO).ok()?;
        match work(connection) {
            Err(e) if is_busy(&e) => None,
            result => Some(result),
        }
    }

    /// Runs `work` on a thread. It is not interrupted when the caller leaves, and is left out if
    /// the caller has left before its turn. `pass` is kept until the work is done.
    pub async fn run<T, F>(&self, what: &'static str, pass: Pass, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel::<Result<T>>();
        self.send(Box::new(move |connection| {
            if reply.is_closed() {
                return;
            }
            let result = match connection {
                Ok(connection) => work(connection).map_err(|e| failed(what, e)),
                Err(e) => Err(told(what, e)),
            };
            // The pass first: the caller may close the index as soon as it has the answer.
            drop(pass);
            let _ = reply.send(result);
        }))?;
        // A panic drops the sender before it has sent. It costs that call alone.
        answer.await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Internal,
                format!("panic while {what}"),
            ))
        })
    }

    fn send(&self, job: Job) -> Result<()> {
        let mut state = self.shared.state.lock();
        if state.closed {
            return Err(Error::closed("the index"));
        }
        if state.queue.len() >= state.idle && state.threads.len() < THREADS {
            let shared = Arc::clone(&self.shared);
            let started = std::thread::Builder::new()
                .name("walrusds-sqlite".into())
                .spawn(move || shared.work());
            match started {
                Ok(thread) => state.threads.push(thread),
                Err(e) if state.threads.is_empty() => {
                    return Err(Error::retryable(
                        ErrorKind::Index,
                        format!("no thread for the index: {e}"),
                    ));
                }
                Err(_) => {} // the existing threads will take the job
            }
        }
        state.queue.push_back(job);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Finishes what is queued and closes the connections; blocks until then.
    pub fn stop(&self) {
        let threads = {
            let mut state = self.shared.state.lock();
            state.closed = true;
            std::mem::take(&mut state.threads)
        };
        self.shared.changed.notify_all();
        for thread in threads {
            let _ = thread.join();
        }
        drop(self.here.lock().take());
    }
}

impl Drop for Readers {
    /// Lets the threads of an index that was not closed end by themselves.
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    /// The main loop of a thread.
    fn work(&self) {
        let mut connection = None;
        while let Some(job) = self.next() {
            let opened = self.reader(&mut connection, self.busy_timeout);
            let _ = catch_unwind(AssertUnwindSafe(|| job(opened.as_ref().copied())));
        }
    }

    /// The connection that is kept in `place`. It is opened now if there is none, or if the file
    /// has changed under one that does not notice changes.
    fn reader<'a>(
        &self,
        place: &'a mut Option<Reader>,
        busy_timeout: Duration,
    ) -> rusqlite::Result<&'a Connection> {
        let usable = |reader: &Reader| match &reader.still {
            Some(still) => still.is_so(&self.path),
            None => true,
        };
        if !place.as_ref().is_some_and(usable) {
            // Taken before the file is opened: a change in between is noticed at the next read.
            let still = self.access.still(&self.path);
            *place = None;
            *place = Some(Reader {
                connection: schema::open_reader(&self.path, self.access, busy_timeout)?,
                still,
            });
        }
        match place {
            Some(reader) => Ok(&reader.connection),
            None => Err(rusqlite::Error::InvalidQuery),
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state.idle += 1;
            self.changed.wait(&mut state);
            state.idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::gate::Gate;

    fn readers(dir: &std::path::Path) -> Readers {
        let path = dir.join("index");
        Connection::open(&path)
            .unwrap()
            .execute_batch(
                "PRAGMA journal_mode = WAL; CREATE TABLE t (n); INSERT INTO t VALUES (7)",
            )
            .unwrap();
        Readers::new(path, Access::Write, Duration::from_secs(1))
    }

    fn seven(connection: &Connection) -> rusqlite::Result<i64> {
        connection.query_row("SELECT n FROM t", [], |row| row.get(0))
    }

    /// Many calls are served by a few threads, a panic costs the call that panics, and afterwards
    /// all threads are gone.
    #[tokio::test]
    async fn a_crowd_shares_a_few_threads() {
        let dir = tempfile::tempdir().unwrap();
        let readers = Arc::new(readers(dir.path()));
        let gate = Arc::new(Gate::default());
        let calls: Vec<_> = (0..500)
            .map(|n| {
                let (readers, pass) = (Arc::clone(&readers), gate.enter().unwrap());
                tokio::spawn(async move {
                    let work = move |connection: &Connection| match n {
                        250 => panic!("as meant"),
                        _ => seven(connection),
                    };
                    readers.run("asking", pass, work).await
                })
            })
            .collect();
        for (n, call) in calls.into_iter().enumerate() {
            match call.await.unwrap() {
                Ok(value) => assert_eq!(value, 7),
                Err(e) => assert!(
                    n == 250 && e.to_string().contains("panic while asking"),
                    "{e}"
                ),
            }
        }
        assert_eq!(readers.shared.state.lock().threads.len(), THREADS);
        readers.stop();
        assert_eq!(Arc::strong_count(&readers.shared), 1);
        let pass = gate.enter().unwrap();
        let late = readers.run("asking", pass, seven).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Closed, "{late}");
        gate.shut();
        assert!(
            gate.emptied(Duration::ZERO).await,
            "a call is still counted"
        );
    }

    /// Only one read at a time is on a thread of the runtime, and none waits there for a lock.
    #[tokio::test]
    async fn a_read_here_waits_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let readers = readers(dir.path());
        let nested = readers.try_here(|_| Ok(readers.try_here(seven).is_none()));
        assert!(nested.unwrap().unwrap());
        assert_eq!(readers.try_here(seven).unwrap().unwrap(), 7);

        // Outside WAL mode a writer locks readers out.
        let locking = Connection::open(dir.path().join("index")).unwrap();
        readers.stop();
        locking
            .execute_batch("PRAGMA journal_mode = DELETE; BEGIN EXCLUSIVE")
            .unwrap();
        assert!(readers.try_here(seven).is_none());
    }
}
