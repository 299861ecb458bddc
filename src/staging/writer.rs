//! The one thread that appends to the journal. Writes that queue while the disk is synced share the
//! next sync, so that many small writes cost few.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::frame::{self, Write};
use super::segment::Segment;
use super::{disk_error, Block, Inner, Room};
use crate::error::{Error, ErrorKind, Result};
use crate::locks::KeyGuard;
use crate::log::Level;

/// A segment is closed when it is this long (bytes); a longer write makes a longer one. Space is
/// given back in these units.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Bytes and writes that share a sync at most: they bound how long the first of them waits.
const TOGETHER_BYTES: u64 = 32 << 20;
const TOGETHER: usize = 1024;

#[derive(Debug)]
pub(super) struct Writer {
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Job {
    Write(Append),
    Reclaim,
}

struct Append {
    writes: Vec<Write>,
    reply: oneshot::Sender<Result<()>>,
    /// `None` for notes, which are small and must never wait, and which need not be synced.
    puts: Option<(Room, Arc<KeyGuard>)>,
}

impl Writer {
    pub(super) fn start(inner: Arc<Inner>, next_seq: u64, next_id: u64) -> Result<Writer> {
        let (queue, jobs) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("walrusds-journal".into())
            .spawn(move || {
                Appender {
                    inner,
                    current: None,
                    next_seq,
                    next_id,
                }
                .run(&jobs);
            })
            .map_err(|e| disk_error("no thread for the journal", &e))?;
        Ok(Writer {
            queue: Mutex::new(Some(queue)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Appends and syncs. What was dropped before its turn is not written.
    pub(super) async fn append(
        &self,
        writes: Vec<Write>,
        room: Room,
        guard: Arc<KeyGuard>,
    ) -> Result<()> {
        self.send(writes, Some((room, guard))).await
    }

    /// Appends without a sync: what is written survives this process, but not a power cut.
    pub(super) async fn note(&self, writes: Vec<Write>) -> Result<()> {
        self.send(writes, None).await
    }

    async fn send(&self, writes: Vec<Write>, puts: Option<(Room, Arc<KeyGuard>)>) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.push(Job::Write(Append {
            writes,
            reply,
            puts,
        }))?;
        answer.await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Internal,
                "the journal's thread has died",
            ))
        })
    }

    /// Removes files that nobody needs any more, soon.
    pub(super) fn reclaim(&self) {
        // Once closed, the next open does it.
        let _ = self.push(Job::Reclaim);
    }

    fn push(&self, job: Job) -> Result<()> {
        let queue = self.queue.lock();
        let queue = queue.as_ref().ok_or_else(|| Error::closed("the journal"))?;
        queue.send(job).map_err(|_| Error::closed("the journal"))
    }

    /// Writes what is queued and ends the thread; blocks until then.
    pub(super) fn stop(&self) {
        drop(self.queue.lock().take());
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Appender {
    inner: Arc<Inner>,
    current: Option<Arc<Segment>>,
    next_seq: u64,
    next_id: u64,
}

/// A frame in the file that is not acknowledged yet.
struct Written {
    append: Append,
    segment: Arc<Segment>,
    /// Where the frame begins, and the number of its first entry.
    start: u64,
    seq: u64,
}

impl Appender {
    fn run(&mut self, jobs: &mpsc::Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let mut written = Vec::new();
            let mut bytes = 0;
            let mut reclaim = false;
            let mut next = Some(first);
            while let Some(job) = next {
                match job {
                    Job::Reclaim => reclaim = true,
                    Job::Write(append) if append.reply.is_closed() && append.puts.is_some() => {}
                    Job::Write(append) => {
                        bytes += frame::frame_len(&append.writes);
                        self.write(append, &mut written);
                    }
                }
                next = if bytes < TOGETHER_BYTES && written.len() < TOGETHER {
                    jobs.try_recv().ok()
                } else {
                    None
                };
            }
            self.commit(&mut written);
            if reclaim {
                self.reclaim();
            }
        }
        if let Some(current) = self.current.take() {
            current.seal();
        }
    }

    /// Appends one frame; a failure is that write's alone.
    fn write(&mut self, append: Append, written: &mut Vec<Written>) {
        if self
            .current
            .as_ref()
            .is_some_and(|s| s.len() >= SEGMENT_BYTES)
        {
            // Only the last file may have an end that was not synced.
            self.commit_and_close(written);
        }
        match self.append(&append.writes) {
            Ok((segment, start, seq)) => written.push(Written {
                append,
                segment,
                start,
                seq,
            }),
            Err(e) => {
                let _ = append.reply.send(Err(e));
            }
        }
    }

    fn append(&mut self, writes: &[Write]) -> Result<(Arc<Segment>, u64, u64)> {
        let segment = match &self.current {
            Some(segment) => Arc::clone(segment),
            None => {
                let segment = self.create()?;
                Arc::clone(self.current.insert(segment))
            }
        };
        let seq = self.next_seq;
        let time_ms = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |t| t.as_millis() as u64);
        let head = frame::encode(seq, time_ms, writes);
        let values = writes.iter().filter_map(|w| match w {
            Write::Put { value, .. } => Some(&value[..]),
            _ => None,
        });
        let start = segment
            .append(&head, values)
            .map_err(|e| disk_error(&format!("writing to {}", segment.path().display()), &e))?;
        self.next_seq += writes.len() as u64;
        Ok((segment, start, seq))
    }

    fn create(&mut self) -> Result<Arc<Segment>> {
        let dir = &self.inner.dir;
        let segment = Segment::create(dir, self.next_id)
            .map_err(|e| disk_error(&format!("new journal file in {}", dir.display()), &e))?;
        failpoint!("journal.created");
        self.next_id += 1;
        let segment = Arc::new(segment);
        let mut state = self.inner.state.lock();
        state.used += segment.len();
        state.segments.push_back(Arc::clone(&segment));
        Ok(segment)
    }

    /// Syncs what was written and lets it be seen, in the order in which it was written.
    fn commit(&mut self, written: &mut Vec<Written>) {
        failpoint!("journal.appended");
        let synced = match written.iter().find(|w| w.append.puts.is_some()) {
            None => Ok(()),
            Some(w) => {
                self.inner.syncs.fetch_add(1, Ordering::Relaxed);
                w.segment
                    .sync()
                    .map_err(|e| disk_error(&format!("syncing {}", w.segment.path().display()), &e))
            }
        };
        failpoint!("journal.synced");
        if let Err(e) = synced {
            self.give_up(written, &e);
            return;
        }
        for w in written.drain(..) {
            self.publish(w);
        }
        self.inner.changed.notify_one();
    }

    fn commit_and_close(&mut self, written: &mut Vec<Written>) {
        self.commit(written);
        if let Some(segment) = self.current.take() {
            // Notes alone do not sync.
            if let Err(e) = segment.sync() {
                self.inner.log.push(
                    Level::Error,
                    format!("journal: syncing {}: {e}", segment.path().display()),
                );
            }
            segment.seal();
        }
    }

    /// After a failed sync nobody knows what is on disk: the file ends where it was last good.
    fn give_up(&mut self, written: &mut Vec<Written>, e: &Error) {
        if let Some(segment) = self.current.take() {
            if let Some(first) = written.first() {
                let _ = segment.truncate(first.start);
            }
            segment.seal();
        }
        for w in written.drain(..) {
            let _ = w.append.reply.send(Err(e.clone()));
        }
    }

    fn publish(&mut self, written: Written) {
        let Written {
            append,
            segment,
            start,
            seq,
        } = written;
        let writes = append.writes;
        let len = frame::frame_len(&writes);
        let mut at = start + len - values_len(&writes);
        let now = Instant::now();
        {
            let mut state = self.inner.state.lock();
            if append.puts.is_none() {
                state.used += len;
            } else {
                state.last_write = Some(now);
            }
            for (write, seq) in writes.into_iter().zip(seq..) {
                match write {
                    Write::Put { key, value, crc } => {
                        let len = value.len() as u32;
                        state.stage(Arc::new(Block {
                            key: key.into(),
                            seq,
                            segment: Arc::clone(&segment),
                            offset: at,
                            len,
                            crc,
                            staged: now,
                            store_again: AtomicBool::new(false),
                        }));
                        at += u64::from(len);
                    }
                    Write::Delete(key) => state.forget(&key),
                    Write::Done(..) => {}
                }
            }
        }
        if let Some((room, guard)) = append.puts {
            room.keep(len);
            drop(guard);
        }
        let _ = append.reply.send(Ok(()));
    }

    /// Removes files without live blocks, oldest first, the newest too if it is the only one.
    fn reclaim(&mut self) {
        loop {
            let oldest = {
                let state = self.inner.state.lock();
                match state.segments.front() {
                    Some(s) if s.live() == 0 => Arc::clone(s),
                    _ => return,
                }
            };
            if !oldest.is_sealed() {
                // The newest one: everything written is published, so nothing is on its way into it.
                oldest.seal();
                self.current = None;
            }
            if let Err(e) = oldest.remove() {
                self.inner.log.push(
                    Level::Warn,
                    format!("journal: cannot remove {}: {e}", oldest.path().display()),
                );
                return;
            }
            failpoint!("journal.removed");
            let mut state = self.inner.state.lock();
            state.segments.pop_front();
            state.used = state.used.saturating_sub(oldest.len());
            drop(state);
            self.inner.space.notify_waiters();
        }
    }
}

fn values_len(writes: &[Write]) -> u64 {
    writes
        .iter()
        .map(|w| match w {
            Write::Put { value, .. } => value.len() as u64,
            _ => 0,
        })
        .sum()
}
