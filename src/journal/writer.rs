//! Appends to the journal.
//!
//! The problem: a put may be acknowledged only once it survives a power cut, but a sync is slow;
//! and after a write or a sync that failed, the bytes at the end of the file are unknown.
//!
//! Writes that queue while the disk is synced share the next sync, so that many small writes cost
//! few syncs. A small write that meets no other write is written by the thread that brings it: that
//! saves two passages between threads, which cost as much as a quick disk's sync.
//!
//! Invariants:
//! - Once the journal is open, only the [`Appender`] changes segments and the list of damaged
//!   blocks, one thread at a time, under its lock.
//! - Puts are synced before they are published (staged) and acknowledged; with `journalSync` `sync`
//!   they are synced soon after (`later`). Writes are published in the order in which they were
//!   written.
//! - Notes (deletions and numbers of blocks that need no upload any more) are acknowledged once
//!   they are written, and synced with a later put or after [`NOTES_UNSYNCED`] of them. Until then
//!   they stay in memory, to be written again if the end of the file has to be cut off.
//! - Only the last file may have an end that was not synced: a segment is synced before it is
//!   sealed, and no file is made while the remains of one that could not be made are still there.
//! - After an error nothing is appended until the file was cut back to a certain length: a part of
//!   one frame is trimmed off; if that fails, or if a sync failed, the segment is [`Broken`] and is
//!   cut back to the length that was synced (`mend`). What was acknowledged behind that length is
//!   written again.
//!
//! Outline: [`Writer::append`] and [`Writer::note`] hand an [`Append`] to [`Writer::at_once`] or to
//! the queue of the journal's thread, [`serve`]. Both call [`Appender::write`] (one frame each),
//! then [`Appender::commit`] (one sync for all, then publish). The thread also removes free files
//! and writes zeroes ahead.
//!
//! Lock order: the appender, then `JournalParts::state`. Publishing drops rooms and key guards
//! under the appender's lock, which takes the state's lock and the key table's, one at a time.
//! `Writer::queue` is held only to send, with no other lock.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::frame::{self, Write};
use super::segment::Segment;
use super::{disk_error, Block, JournalParts, Room};
use crate::error::{Error, ErrorKind, Result};
use crate::locks::KeyGuard;
use crate::log::Level;

/// A segment is also sealed when its table of contents, which is kept in memory until then, has
/// this length (bytes).
const CONTENTS_BYTES: usize = 8 << 20;
/// Close seals a segment whose length is at least that of a full one divided by this number. A
/// shorter one is scanned by the next open, which goes on appending to it.
const SEAL_AT_CLOSE: u64 = 16;
/// How many bytes and writes share a sync at most: this bounds how long the first of them waits.
const TOGETHER_BYTES: u64 = 32 << 20;
const TOGETHER: usize = 1024;
/// The caller's own thread may write at most `SMALL` bytes, and only if the last sync took no
/// longer than `QUICK`: a caller that is cancelled should be free soon.
const SMALL: u64 = 64 << 10;
const QUICK: Duration = Duration::from_millis(25);
/// How often the removal of files is tried again while it is postponed, and for how long the close
/// waits for it.
const POSTPONED: Duration = Duration::from_millis(5);
const POSTPONED_AT_CLOSE: Duration = Duration::from_secs(2);
/// Notes are kept in memory until they are synced; at this number they are synced.
const NOTES_UNSYNCED: usize = 4096;

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) appender: Arc<Mutex<Appender>>,
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    inner: Arc<JournalParts>,
}

enum Job {
    Write(Append),
    /// Writes zeroes ahead.
    Ahead,
    Reclaim,
}

struct Append {
    writes: Vec<Write>,
    reply: oneshot::Sender<Result<()>>,
    /// `None` for notes, which are small, must never wait, and need no sync.
    puts: Option<(Room, Arc<KeyGuard>)>,
}

impl Append {
    /// Whether it must be synced before it is published. `later`: puts need not.
    fn must_last(&self, later: bool) -> bool {
        let is_put = |write: &Write| matches!(write, Write::Put { .. });
        match self.puts {
            Some(_) => !later,
            None => self.writes.iter().any(is_put),
        }
    }
}

/// The place at which a journal goes on.
#[derive(Debug)]
pub(super) struct Position {
    pub(super) next_seq: u64,
    pub(super) next_id: u64,
    /// The newest segment, if it was not sealed, and its table of contents so far.
    pub(super) current: Option<(Arc<Segment>, Vec<u8>)>,
}

impl Writer {
    pub(super) fn start(inner: Arc<JournalParts>, at: Position) -> Result<Writer> {
        let (queue, jobs) = mpsc::channel();
        let current = at.current.map(|(segment, contents)| Open {
            synced: (segment.len(), contents.len()),
            segment,
            contents,
            syncs: 0,
            notes: Vec::new(),
        });
        let appender = Arc::new(Mutex::new(Appender {
            inner: Arc::clone(&inner),
            current,
            broken: None,
            given_up: 0,
            first: Vec::new(),
            litter: Vec::new(),
            next_seq: at.next_seq,
            next_id: at.next_id,
            closed: false,
        }));
        let thread = std::thread::Builder::new()
            .name("walrusds-journal".into())
            .spawn({
                let appender = Arc::clone(&appender);
                move || serve(&appender, &jobs)
            })
            .map_err(|e| disk_error("no thread for the journal", &e))?;
        Ok(Writer {
            appender,
            queue: Mutex::new(Some(queue)),
            thread: Mutex::new(Some(thread)),
            inner,
        })
    }

    /// Appends and syncs. Puts whose caller has given up before their turn in the queue are not
    /// written.
    pub(super) async fn append(
        &self,
        writes: Vec<Write>,
        room: Room,
        guard: Arc<KeyGuard>,
    ) -> Result<()> {
        self.send(writes, Some((room, guard))).await
    }

    /// Appends without a sync: the entries survive the end of this process, but not a power cut.
    pub(super) async fn note(&self, writes: Vec<Write>) -> Result<()> {
        self.send(writes, None).await
    }

    /// Appends notes, and values that are staged already, on this thread. If that fails, they are
    /// written before any other write.
    pub(super) fn note_now(&self, writes: Vec<Write>) {
        let (reply, mut answer) = oneshot::channel();
        let append = Append {
            writes: writes.clone(),
            reply,
            puts: None,
        };
        let mut written = Vec::new();
        let mut appender = self.appender.lock();
        appender.write(append, &mut written);
        appender.commit(&mut written);
        if !matches!(answer.try_recv(), Ok(Ok(()))) {
            appender.first = writes;
        }
    }

    async fn send(&self, writes: Vec<Write>, puts: Option<(Room, Arc<KeyGuard>)>) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        let append = Append {
            writes,
            reply,
            puts,
        };
        if let Some(append) = self.at_once(append) {
            self.push(Job::Write(append))?;
        }
        answer.await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Internal,
                "the journal's thread has died",
            ))
        })
    }

    /// Writes on this thread if the write is small and meets no other one; otherwise gives it back
    /// for the queue. Tasks of a runtime with several threads always use the queue, as other tasks
    /// wait for their threads. On a runtime of one thread that would gain nothing, and its clock,
    /// if paused, would run ahead meanwhile.
    fn at_once(&self, append: Append) -> Option<Append> {
        let last_sync = self.inner.last_sync_us.load(Ordering::Relaxed);
        let quick = self.inner.syncs_later() || Duration::from_micros(last_sync) <= QUICK;
        let own_thread = tokio::task::try_id().is_none()
            || Handle::try_current()
                .is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::CurrentThread);
        if !quick || !own_thread || frame::frame_len(&append.writes) > SMALL {
            return Some(append);
        }
        let Some(mut appender) = self.appender.try_lock() else {
            return Some(append);
        };
        if appender.closed {
            return Some(append);
        }
        let mut written = Vec::new();
        appender.write(append, &mut written);
        appender.commit(&mut written);
        let wants_zeroes = appender.wants_zeroes();
        drop(appender);
        if wants_zeroes {
            // Once the journal is closed, no zeroes are needed.
            let _ = self.push(Job::Ahead);
        }
        None
    }

    /// Asks the journal's thread to remove the files without live blocks.
    pub(super) fn reclaim(&self) {
        // Once the journal is closed, the next open does it.
        let _ = self.push(Job::Reclaim);
    }

    fn push(&self, job: Job) -> Result<()> {
        let queue = self.queue.lock();
        let queue = queue.as_ref().ok_or_else(|| Error::closed("the journal"))?;
        queue.send(job).map_err(|_| Error::closed("the journal"))
    }

    /// Writes the queued writes and ends the thread; blocks until then.
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

/// The journal's thread: works off the queue until its sender is dropped.
fn serve(appender: &Mutex<Appender>, jobs: &mpsc::Receiver<Job>) {
    let mut postponed = false;
    loop {
        let next = match postponed {
            true => jobs.recv_timeout(POSTPONED),
            false => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let first = match next {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout) => Job::Reclaim,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let mut appender = appender.lock();
        let mut written = Vec::new();
        let mut bytes = 0;
        let mut reclaim = false;
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Reclaim => reclaim = true,
                Job::Ahead => {}
                Job::Write(append) if append.reply.is_closed() && append.puts.is_some() => {}
                Job::Write(append) => {
                    bytes += frame::frame_len(&append.writes);
                    appender.write(append, &mut written);
                }
            }
            next = if bytes < TOGETHER_BYTES && written.len() < TOGETHER {
                jobs.try_recv().ok()
            } else {
                None
            };
        }
        appender.commit(&mut written);
        if reclaim {
            postponed = appender.reclaim(true);
        }
        appender.write_ahead();
    }
    let until = Instant::now() + POSTPONED_AT_CLOSE;
    while postponed {
        std::thread::sleep(POSTPONED);
        postponed = appender.lock().reclaim(Instant::now() < until);
    }
    appender.lock().close();
}

/// The only part of an open journal that changes its segments.
#[derive(Debug)]
pub(super) struct Appender {
    pub(super) inner: Arc<JournalParts>,
    pub(super) current: Option<Open>,
    pub(super) broken: Option<Broken>,
    /// How often a segment was given up because its end was unknown.
    pub(super) given_up: u64,
    /// Writes that must come before any other: see `Replayed::superseded`. They could not be
    /// written at open.
    first: Vec<Write>,
    /// Paths of files that could not be made and may be there in part.
    litter: Vec<PathBuf>,
    next_seq: u64,
    next_id: u64,
    closed: bool,
}

/// The segment that is appended to.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) segment: Arc<Segment>,
    /// Its table of contents so far.
    pub(super) contents: Vec<u8>,
    /// The lengths of the frames and of the contents that are on disk for certain (bytes).
    pub(super) synced: (u64, usize),
    /// How often that changed.
    pub(super) syncs: u64,
    /// The notes that were acknowledged after the last sync.
    pub(super) notes: Vec<Write>,
}

impl Open {
    /// Whether frames in it are not synced.
    pub(super) fn owes_a_sync(&self) -> bool {
        self.segment.len() > self.synced.0
    }

    /// Notes that the frames and contents up to these lengths, and the first notes, are synced.
    pub(super) fn note_sync(&mut self, synced: (u64, usize), notes: usize) {
        self.synced = synced;
        self.syncs += 1;
        self.notes.drain(..notes.min(self.notes.len()));
    }
}

/// A segment whose end is unknown, since a write or a sync failed. Nothing is written until that
/// end is cut off: its bytes must never be read as if they had been acknowledged.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) segment: Arc<Segment>,
    /// The length that was synced (bytes); these frames stay.
    pub(super) len: u64,
    pub(super) contents_len: usize,
    /// Notes that were acknowledged and are cut off; they are written again.
    pub(super) notes: Vec<Write>,
    /// Blocks of which the same is true. Their values are in memory meanwhile.
    pub(super) blocks: Vec<Arc<Block>>,
    /// The keys of the acknowledged puts that are cut off.
    pub(super) keys: BTreeSet<Arc<str>>,
}

/// A frame in the file that is not acknowledged yet.
struct Written {
    append: Append,
    segment: Arc<Segment>,
    /// Where its values begin (bytes), and the number of its first entry.
    values: u64,
    seq: u64,
}

impl Appender {
    /// Appends one frame. A failure is reported to this write alone.
    fn write(&mut self, append: Append, written: &mut Vec<Written>) {
        let most = self.inner.segment_bytes();
        let full =
            |open: &Open| open.segment.len() >= most || open.contents.len() >= CONTENTS_BYTES;
        if self.current.as_ref().is_some_and(full) {
            // Only the last file may have an end that was not synced.
            self.commit(written);
            self.seal();
        }
        match self.append(&append.writes) {
            Ok((segment, values, seq)) => written.push(Written {
                append,
                segment,
                values,
                seq,
            }),
            Err(e) => {
                let trimmed = |open: &Open| open.segment.trim().is_ok();
                if !self.current.as_ref().is_none_or(trimmed) {
                    // Frames that were written before this one are synced, so that the cut spares
                    // them.
                    self.commit(written);
                    self.break_off();
                }
                let _ = append.reply.send(Err(e));
            }
        }
    }

    pub(super) fn append(&mut self, writes: &[Write]) -> Result<(Arc<Segment>, u64, u64)> {
        self.mend()?;
        let first = std::mem::take(&mut self.first);
        if !first.is_empty() {
            match self.append_frame(&first) {
                // Until they are synced they are written again if the end of the file is cut off.
                Ok(_) => self
                    .current
                    .iter_mut()
                    .for_each(|o| o.notes.extend_from_slice(&first)),
                Err(e) => {
                    self.first = first;
                    return Err(e);
                }
            }
        }
        self.append_frame(writes)
    }

    fn append_frame(&mut self, writes: &[Write]) -> Result<(Arc<Segment>, u64, u64)> {
        let bytes = value_bytes(writes);
        let seq = self.next_seq;
        let time_ms = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |t| t.as_millis() as u64);
        let values = writes.iter().filter_map(|w| match w {
            Write::Put { value, .. } => Some(&value[..]),
            _ => None,
        });
        let open = match self.current.take() {
            Some(open) => open,
            None => self.create(bytes)?,
        };
        let open = self.current.insert(open);
        let segment = &open.segment;
        let joined = segment.len() > open.synced.0;
        let head = frame::encode(seq, frame::stamp(time_ms, joined), writes);
        let failed = |e| {
            let what = format!("writing to {}", segment.path().display());
            self.inner.failed(&what, &e, bytes)
        };
        let room = || self.inner.room_ahead(segment.len());
        let start = segment.append(&head, values, room).map_err(failed)?;
        frame::push_contents(&mut open.contents, start, &head);
        segment.note_contents(open.contents.len());
        self.next_seq += writes.len() as u64;
        Ok((Arc::clone(segment), start + head.len() as u64, seq))
    }

    /// Makes the next file, for a write of `bytes` bytes.
    fn create(&mut self, bytes: u64) -> Result<Open> {
        let inner = &self.inner;
        let what = format!("new journal file in {}", inner.dir.display());
        let failed = |e| inner.failed(&what, &e, bytes);
        remove_litter(inner, &mut self.litter).map_err(failed)?;
        let id = self.next_id;
        self.next_id = id.saturating_add(1);
        let made = Segment::create(&inner.dir, id, &inner.disk, inner.room_ahead(0));
        let segment = made.map(Arc::new).map_err(|e| {
            self.litter.push(Segment::path_of(&inner.dir, id));
            // If that fails now, it is tried again before the next file is made.
            let _ = remove_litter(inner, &mut self.litter);
            failed(e)
        })?;
        failpoint!("journal.created");
        let mut state = inner.state.lock();
        state.segments.push_back(Arc::clone(&segment));
        Ok(Open {
            synced: (segment.len(), 0),
            segment,
            contents: Vec::new(),
            syncs: 0,
            notes: Vec::new(),
        })
    }

    /// Syncs the frames that were written and publishes them, in the order in which they were
    /// written.
    fn commit(&mut self, written: &mut Vec<Written>) {
        failpoint!("journal.appended");
        let later = self.inner.syncs_later();
        let waiting = written.iter().any(|w| w.append.must_last(later));
        let synced = match &mut self.current {
            Some(open) if waiting || open.notes.len() >= NOTES_UNSYNCED => sync(&self.inner, open),
            _ => Ok(()),
        };
        failpoint!("journal.synced");
        if let Err(e) = synced {
            // The end of the file is unknown now. If it cannot be repaired at once, the next write
            // tries.
            self.break_off();
            let _ = self.mend();
            for w in written.drain(..) {
                let _ = w.append.reply.send(Err(e.clone()));
            }
            return;
        }
        if written.is_empty() {
            return;
        }
        // Before the callers have their answers: a `Sync` that follows must find it.
        if later && self.current.as_ref().is_some_and(Open::owes_a_sync) {
            self.inner.due.note();
        }
        for w in written.drain(..) {
            if let (None, Some(open)) = (&w.append.puts, &mut self.current) {
                if !waiting {
                    open.notes.extend(w.append.writes.iter().cloned());
                }
            }
            self.publish(w);
        }
        self.inner.save_damage();
        self.inner.call_flusher();
    }

    /// Seals the current segment, with its table of contents. If that fails, the segment is to be
    /// cut back.
    fn seal(&mut self) {
        let Some(open) = &self.current else {
            return;
        };
        match open.segment.finish(&open.contents) {
            Ok(()) => self.current = None,
            Err(e) => {
                self.inner.log.push(
                    Level::Warn,
                    format!("journal: closing {}: {e}", open.segment.path().display()),
                );
                self.break_off();
            }
        }
    }

    /// Whether so few zeroes are left that more should be written ahead.
    fn wants_zeroes(&self) -> bool {
        let current = self.current.as_ref().filter(|_| !self.inner.syncs_later());
        current.is_some_and(|open| {
            let (left, wanted) = open.segment.ahead();
            // A segment without any zeroes holds long frames, which need none.
            left > 0 && left < wanted / 4
        })
    }

    /// Writes zeroes ahead after the waiting writes were answered, so that the next one finds them.
    fn write_ahead(&mut self) {
        if !self.wants_zeroes() {
            return;
        }
        let inner = Arc::clone(&self.inner);
        if let Some(open) = &mut self.current {
            let (_, wanted) = open.segment.ahead();
            let room = inner.room_ahead(open.segment.file_len());
            let grown = open.segment.write_ahead(wanted.min(room));
            if grown.is_ok() && sync(&inner, open).is_err() {
                self.break_off();
            }
        }
    }

    /// Ends the appender: seals a segment that is long enough and tries to repair a broken one.
    /// Everything that was acknowledged stays; nothing more is written.
    fn close(&mut self) {
        self.closed = true;
        if self.inner.syncs_later() {
            // If that fails, the next open finds what the kernel has.
            let _ = self.sync_all();
        }
        let long = self.inner.segment_bytes() / SEAL_AT_CLOSE;
        let is_long = |open: &Open| open.segment.len() >= long;
        if self.current.as_ref().is_some_and(is_long) {
            self.seal();
        }
        if self.broken.is_some() {
            let _ = self.mend();
        }
        self.current = None;
    }

    fn publish(&mut self, written: Written) {
        let Written {
            append,
            segment,
            values,
            seq,
        } = written;
        let mut at = values;
        let now = Instant::now();
        {
            let mut state = self.inner.state.lock();
            if append.puts.is_some() {
                state.last_write = Some(now);
                let bytes = value_bytes(&append.writes);
                state.disk_full.take_if(|full| full.is_over(bytes));
            }
            for (write, seq) in append.writes.into_iter().zip(seq..) {
                match write {
                    Write::Put { key, value, crc } => {
                        let len = value.len() as u32;
                        let (key, value) = (key.into(), (len, crc));
                        let segment = Arc::clone(&segment);
                        let block = Block::new(key, seq, segment, at, value, now);
                        state.stage(Arc::new(block));
                        at += u64::from(len);
                    }
                    Write::Delete(key) => state.forget(&key),
                    Write::Done(..) => {}
                }
            }
        }
        // The write counts as a part of its file now, so its room is released, and its keys are
        // free.
        drop(append.puts);
        let _ = append.reply.send(Ok(()));
    }
}

/// Removes files that could not be made: only the last file may be unfinished, so they must be gone
/// before another is made.
fn remove_litter(inner: &JournalParts, litter: &mut Vec<PathBuf>) -> io::Result<()> {
    while let Some(path) = litter.last() {
        match inner.disk.remove(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => litter.pop(),
        };
    }
    Ok(())
}

/// The bytes of the values in these writes.
fn value_bytes(writes: &[Write]) -> u64 {
    let values = writes.iter().map(|write| match write {
        Write::Put { value, .. } => value.len() as u64,
        _ => 0,
    });
    values.sum()
}

/// Syncs the current segment.
pub(super) fn sync(inner: &JournalParts, open: &mut Open) -> Result<()> {
    let bytes = open.segment.len() - open.synced.0;
    sync_file(inner, &open.segment, bytes)?;
    let synced = (open.segment.len(), open.contents.len());
    open.note_sync(synced, open.notes.len());
    Ok(())
}

/// Syncs a segment to which `bytes` bytes were appended since its last sync.
pub(super) fn sync_file(inner: &JournalParts, segment: &Segment, bytes: u64) -> Result<()> {
    inner.syncs.fetch_add(1, Ordering::Relaxed);
    let begun = std::time::Instant::now();
    let synced = segment.sync();
    let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    inner.last_sync_us.store(took, Ordering::Relaxed);
    let what = || format!("syncing {}", segment.path().display());
    synced.map_err(|e| inner.failed(&what(), &e, bytes))
}
