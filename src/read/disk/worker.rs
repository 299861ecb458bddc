//! The one thread that changes the cache's directory: it opens the directory (and opens it anew
//! when it was taken away), appends, evicts.

use std::collections::VecDeque;
use std::fs::TryLockError;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::layout::{self, Row, HEAD, RECORD_HEAD, ROW, TRAILER};
use super::retired::{self, Adoption};
use super::segment::Segment;
use super::{CacheParts, DiskCacheConfig, Insert, Slot, Stays, MAX_NAME};
use crate::dirlock::{write_readme, DirLock};
use crate::error::Error;
use crate::log::Level;

/// How often the worker looks after things.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Whether the directory is still there, while nothing is written.
    pub(super) look_idle: Duration,
    /// The same, while blocks are written.
    pub(super) look_busy: Duration,
    /// After this time a directory that could not be used, or written to, is tried again.
    pub(super) rest: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            look_idle: Duration::from_secs(5),
            look_busy: Duration::from_secs(1),
            rest: Duration::from_secs(30),
        }
    }
}

/// Structure stays, read or not, as long as all structure takes less than one part in so many of
/// the whole. So evicting makes room in the end: the other files hold most of the bytes.
const STRUCTURE_SHARE: u64 = 4;

/// A task for the worker.
#[derive(Debug)]
pub(super) enum Job {
    Insert(Insert),
    Adopt(Adoption),
}

pub(super) struct Worker {
    inner: Arc<CacheParts>,
    config: DiskCacheConfig,
    pace: Pace,
    jobs: Receiver<Job>,
}

/// How serving a directory ended.
enum End {
    Stopped,
    /// The directory is not the one that was opened.
    Lost,
}

impl Worker {
    pub(super) fn new(
        inner: Arc<CacheParts>,
        config: DiskCacheConfig,
        pace: Pace,
        jobs: Receiver<Job>,
    ) -> Worker {
        Worker {
            inner,
            config,
            pace,
            jobs,
        }
    }

    /// Runs until no handle is left that can insert.
    pub(super) fn run(self) {
        let ended = catch_unwind(AssertUnwindSafe(|| self.work()));
        if let Err(payload) = ended {
            let error = Error::panicked(payload.as_ref());
            self.inner
                .complain(format_args!("takes no more blocks: {error}"));
        }
        self.inner.loaded.send_replace(true);
    }

    fn work(&self) {
        let mut told = None;
        loop {
            let opened = Directory::open(&self.inner, &self.config, self.pace.rest);
            self.inner.serving.store(opened.is_ok(), Relaxed);
            self.inner.loaded.send_replace(true);
            let end = match opened {
                Ok(directory) => {
                    told = None;
                    let end = self.serve(directory);
                    self.inner.serving.store(false, Relaxed);
                    end
                }
                Err(reason) => {
                    let place = self.inner.purpose.place;
                    let text = format!("{place} {}: {reason}", self.config.path.display());
                    if told.as_ref() != Some(&text) {
                        self.inner.complain(format_args!(
                            "{text}; reads go on without it, and it is tried again every {} s",
                            self.pace.rest.as_secs()
                        ));
                        told = Some(text);
                    }
                    self.rest()
                }
            };
            match end {
                End::Stopped => return,
                End::Lost => {
                    *self.inner.map.write() = Default::default();
                    self.inner.counters.bytes.store(0, Relaxed);
                }
            }
        }
    }

    fn serve(&self, mut directory: Directory<'_>) -> End {
        let mut looked = Instant::now();
        loop {
            match self.jobs.recv_timeout(self.pace.look_idle) {
                Ok(job) => {
                    let look = looked.elapsed() >= self.pace.look_busy;
                    if look {
                        looked = Instant::now();
                    }
                    let lost = look && !directory.look();
                    match &job {
                        Job::Insert(insert) if !lost => directory.insert(insert),
                        Job::Adopt(adoption) if !lost => directory.adopt_or_remove(adoption),
                        _ => {}
                    }
                    self.done_with(&job, lost);
                    if lost {
                        return End::Lost;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    if !directory.look() {
                        return End::Lost;
                    }
                    looked = Instant::now();
                }
                Err(RecvTimeoutError::Disconnected) => {
                    directory.finish();
                    return End::Stopped;
                }
            }
        }
    }

    /// Drops what comes, for a while.
    fn rest(&self) -> End {
        let until = Instant::now() + self.pace.rest;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.jobs.recv_timeout(left) {
                Ok(job) => {
                    self.inner.counters.dropped.fetch_add(1, Relaxed);
                    self.done_with(&job, true);
                }
                Err(RecvTimeoutError::Timeout) => return End::Lost,
                Err(RecvTimeoutError::Disconnected) => return End::Stopped,
            }
        }
    }

    /// `lost`: it was not carried out.
    fn done_with(&self, job: &Job, lost: bool) {
        match job {
            Job::Insert(insert) => {
                let len = insert.value.len() as u64;
                self.inner.queued.fetch_sub(len, Relaxed);
            }
            Job::Adopt(adoption) if lost => adoption.give_up(),
            Job::Adopt(_) => {}
        }
    }
}

/// The directory as this process has it open.
pub(super) struct Directory<'a> {
    pub(super) inner: &'a CacheParts,
    pub(super) dir: &'a Path,
    max: u64,
    lock: DirLock,
    /// Finished segments, oldest first.
    pub(super) finished: VecDeque<Finished>,
    current: Option<Current>,
    /// Bytes of all segments, the table of the current one included.
    pub(super) total: u64,
    /// Bytes that the structure in all segments takes.
    pub(super) structure: u64,
    next_id: u32,
    /// After a failure nothing is written for this time,
    rest: Duration,
    /// so until then.
    rests_until: Option<Instant>,
    /// The log knows that nothing can be written.
    told: bool,
}

/// A segment that is not appended to any more.
pub(super) struct Finished {
    pub(super) segment: Arc<Segment>,
    /// Its length (bytes).
    pub(super) len: u64,
    /// Bytes that the structure in it takes.
    pub(super) structure: u64,
}

/// The segment that is appended to.
struct Current {
    segment: Arc<Segment>,
    rows: Vec<Row>,
    /// Where the records end (bytes).
    end: u64,
}

impl Current {
    /// Length of the file once it has its table (bytes).
    fn len(&self) -> u64 {
        self.end + (self.rows.len() * ROW + TRAILER) as u64
    }

    fn finished(self) -> Finished {
        Finished {
            len: self.len(),
            structure: structure_in(&self.rows),
            segment: self.segment,
        }
    }
}

impl<'a> Directory<'a> {
    fn open(
        inner: &'a CacheParts,
        config: &'a DiskCacheConfig,
        rest: Duration,
    ) -> std::result::Result<Directory<'a>, String> {
        let dir = config.path.as_path();
        let failed = |e: io::Error| e.to_string();
        std::fs::create_dir_all(dir).map_err(failed)?;
        let lock = lock(inner, dir)?;
        write_readme(dir, inner.purpose.readme).map_err(failed)?;
        retired::remove_left(dir).map_err(failed)?;
        let ids = Segment::all_in(dir).map_err(failed)?;
        let mut directory = Directory {
            inner,
            dir,
            max: config.max_bytes,
            lock,
            finished: VecDeque::new(),
            current: None,
            total: 0,
            structure: 0,
            next_id: ids.last().map_or(1, |id| id.wrapping_add(1)),
            rest,
            rests_until: None,
            told: false,
        };
        // The newest first: of a block that is in two files, the record in the newer file is
        // current.
        for id in ids.into_iter().rev() {
            // A segment that is not loaded waits for the next open.
            if inner.stopping.load(Relaxed) {
                break;
            }
            let path = Segment::path(dir, id);
            match directory.load(id) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    let shown = path.display();
                    inner.complain(format_args!("removing {shown}: it is not of this version"));
                    std::fs::remove_file(&path).map_err(failed)?;
                }
                Err(e) => return Err(format!("{}: {e}", path.display())),
            }
        }
        while directory.total > directory.max && directory.evict().is_ok() {}
        directory.count();
        Ok(directory)
    }

    fn load(&mut self, id: u32) -> io::Result<()> {
        let segment = Arc::new(Segment::open(self.dir, id)?);
        let contents = segment.contents()?;
        {
            let mut map = self.inner.map.write();
            map.segments.insert(id, Arc::clone(&segment));
            for row in contents.rows.iter().rev() {
                let slot = || Slot::new(id, row);
                map.slots.entry(row.tag).or_insert_with(slot);
            }
        }
        let current = Current {
            segment,
            rows: contents.rows,
            end: contents.end,
        };
        let len = current.len();
        self.total += len;
        self.structure += structure_in(&current.rows);
        let newest = self.finished.is_empty() && self.current.is_none();
        let goes_on = newest && len < self.inner.segment_bytes && current.segment.grows();
        if goes_on && current.segment.reopen(current.end).is_ok() {
            self.current = Some(current);
            return Ok(());
        }
        if !contents.finished {
            // If that fails it is read record by record next time, too.
            let _ = current.segment.finish(&current.rows, current.end);
        }
        self.finished.push_front(current.finished());
        Ok(())
    }

    fn insert(&mut self, insert: &Insert) {
        let dropped = &self.inner.counters.dropped;
        if self.rests_until.is_some_and(|until| Instant::now() < until) {
            dropped.fetch_add(1, Relaxed);
            return;
        }
        if !insert.checked && !insert.name.names(&insert.value) {
            return;
        }
        let name = insert.name.as_bytes();
        // Two readers may have brought the same block.
        if self.inner.map.read().slots.contains_key(&layout::tag(name)) {
            return;
        }
        let head = layout::record_head(name, &insert.value);
        let written = self
            .make_room((head.len() + insert.value.len()) as u64)
            .and_then(|()| self.append(&head, &insert.value));
        self.count();
        match written {
            Ok(()) => {
                self.rests_until = None;
                self.told = false;
            }
            Err(e) => {
                dropped.fetch_add(1, Relaxed);
                self.inner.counters.errors.fetch_add(1, Relaxed);
                self.rests_until = Some(Instant::now() + self.rest);
                if !std::mem::replace(&mut self.told, true) {
                    self.inner.complain(format_args!(
                        "writing to {}: {e}; it does not grow until that has passed",
                        self.dir.display()
                    ));
                }
            }
        }
    }

    fn adopt_or_remove(&mut self, adoption: &Adoption) {
        if let Err(e) = self.adopt(adoption) {
            adoption.give_up();
            self.inner.counters.dropped.fetch_add(1, Relaxed);
            self.inner.counters.errors.fetch_add(1, Relaxed);
            self.inner.complain(format_args!(
                "taking over {}: {e}; its blocks come from Walrus",
                adoption.path.display()
            ));
        }
    }

    pub(super) fn take_id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        id
    }

    /// Evicts until a record of `len` bytes fits, even if it takes a new segment.
    pub(super) fn make_room(&mut self, len: u64) -> io::Result<()> {
        let needed = len + (HEAD.len() + ROW + TRAILER) as u64;
        while self.total + needed > self.max {
            self.evict()?;
        }
        Ok(())
    }

    fn append(&mut self, head: &[u8], value: &[u8]) -> io::Result<()> {
        let len = (head.len() + value.len()) as u64;
        let full = |c: &Current| c.len() + len + ROW as u64 > self.inner.segment_bytes;
        if self.current.as_ref().is_some_and(full) {
            self.finish();
        }
        if self.current.is_none() {
            self.current = Some(self.begin()?);
        }
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        current.segment.write_at(head, current.end)?;
        let value_at = current.end + head.len() as u64;
        current.segment.write_at(value, value_at)?;
        let row = Row {
            tag: layout::tag(&head[RECORD_HEAD..]),
            offset: current.end as u32,
            value_len: value.len() as u32,
            structure: layout::is_structure(head),
        };
        current.rows.push(row);
        current.end += len;
        self.total += len + ROW as u64;
        self.structure += structure_in(&[row]);
        let slot = Slot::new(current.segment.id, &row);
        self.inner.map.write().slots.insert(row.tag, slot);
        Ok(())
    }

    fn begin(&mut self) -> io::Result<Current> {
        let id = self.take_id();
        let current = Current {
            segment: Arc::new(Segment::create(self.dir, id)?),
            rows: Vec::new(),
            end: HEAD.len() as u64,
        };
        self.total += current.len();
        let segment = Arc::clone(&current.segment);
        self.inner.map.write().segments.insert(id, segment);
        Ok(current)
    }

    /// Gives the current segment its table.
    fn finish(&mut self) {
        if let Some(current) = self.current.take() {
            // If that fails the next open reads it record by record.
            let _ = current.segment.finish(&current.rows, current.end);
            self.finished.push_back(current.finished());
        }
    }

    /// Removes the oldest segment. Its structure moves to the newest as long as all structure takes
    /// less than its share of the whole, and of its blocks that were used up to half its length.
    /// Blocks that move are found all the time.
    fn evict(&mut self) -> io::Result<()> {
        if self.finished.is_empty() {
            self.finish();
        }
        let Some(oldest) = self.finished.pop_front() else {
            return Err(io::Error::other("there is no room for a block"));
        };
        let (stay, blocks) = self.inner.leaving(oldest.segment.id);
        // What is in it can be read until the map forgets it.
        oldest.segment.remove();
        self.total -= oldest.len;
        self.structure -= oldest.structure;
        let moved = self.move_on(&oldest, stay);
        self.inner.forget_segment(oldest.segment.id);
        let evicted = &self.inner.counters.evictions;
        evicted.fetch_add(blocks.saturating_sub(moved?), Relaxed);
        Ok(())
    }

    /// Appends the blocks that stay, and returns how many.
    fn move_on(&mut self, from: &Finished, stay: Vec<Stays>) -> io::Result<u64> {
        let mut moved = 0;
        let mut room = (from.len / 2).saturating_sub((HEAD.len() + TRAILER) as u64);
        for block in stay {
            let spares = block.structure && self.structure < self.max / STRUCTURE_SHARE;
            if !block.used && !spares {
                continue;
            }
            // It does not matter if one is lost.
            let Ok((head, value)) = from.segment.record(block.offset) else {
                continue;
            };
            if !spares {
                let Some(left) = room.checked_sub((head.len() + value.len() + ROW) as u64) else {
                    break;
                };
                room = left;
            }
            self.append(&head, &value)?;
            moved += 1;
        }
        Ok(moved)
    }

    /// Looks whether the directory and its files are still there. `false`: it is another one.
    fn look(&mut self) -> bool {
        let inode = |meta: io::Result<std::fs::Metadata>| meta.ok().map(|m| (m.dev(), m.ino()));
        let ours = inode(self.lock.file().metadata());
        if ours.is_none() || ours != inode(std::fs::metadata(self.dir.join("LOCK"))) {
            self.inner.log.push(
                Level::Info,
                format!(
                    "{}: {} was removed or replaced: starting anew",
                    self.inner.purpose.name,
                    self.dir.display()
                ),
            );
            return false;
        }
        let mut gone = Vec::new();
        self.finished.retain(|finished| {
            let here = !finished.segment.is_gone();
            if !here {
                gone.push((finished.segment.id, finished.len, finished.structure));
            }
            here
        });
        if let Some(current) = self.current.take_if(|c| c.segment.is_gone()) {
            let current = current.finished();
            gone.push((current.segment.id, current.len, current.structure));
        }
        for (id, len, structure) in gone {
            // With the last reader its space comes back.
            self.inner.forget_segment(id);
            self.total -= len;
            self.structure -= structure;
        }
        self.count();
        true
    }

    pub(super) fn count(&self) {
        self.inner.counters.bytes.store(self.total, Relaxed);
    }
}

/// Bytes that the structure in these rows takes at most.
pub(super) fn structure_in(rows: &[Row]) -> u64 {
    let around = (RECORD_HEAD + MAX_NAME + ROW) as u64;
    let structure = rows.iter().filter(|row| row.structure);
    structure.map(|row| u64::from(row.value_len) + around).sum()
}

fn lock(inner: &CacheParts, dir: &Path) -> std::result::Result<DirLock, String> {
    let until = Instant::now() + inner.purpose.lock_patience;
    loop {
        match DirLock::take(dir) {
            Ok(lock) => return Ok(lock),
            Err(TryLockError::WouldBlock)
                if Instant::now() < until && !inner.stopping.load(Relaxed) =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => {
                return Err("in use by another process or datastore; a cache belongs to one".into())
            }
            Err(TryLockError::Error(e)) => return Err(format!("LOCK: {e}")),
        }
    }
}
