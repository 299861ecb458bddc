//! The local write journal: blocks are on this machine's disk when a write returns, and on Walrus
//! later.
//!
//! | module | holds |
//! |---|---|
//! | `ask` | whether a write asks the index first which of its blocks are stored |
//! | `block` | a block in a file |
//! | `copies` | the blocks of a journal that another process may have open, for reading alone |
//! | `damage` | blocks that were accepted and are damaged on this disk |
//! | `disk` | the calls that change files, for tests to let them fail |
//! | `figures` | gauges for the metrics |
//! | `frame` | how writes lie in a file |
//! | `judge` | whether values of a frame are whole, damaged, or were never written |
//! | `later` | with `journalSync` `sync`: syncs that follow their writes |
//! | `mend` | what a failure leaves behind is cut off, and what counts of it is written again |
//! | `owner` | which index the blocks belong to, and journals that were left behind |
//! | `reclaim` | removing files that are needed no more |
//! | `replay` | reading the files at open |
//! | `room` | admission: how many bytes a write may add, in the order of arrival |
//! | `salvage` | what is left of a frame whose head is damaged |
//! | `segment` | one file: appending, syncing, scanning |
//! | `settings` | the settings |
//! | `settled` | blocks that are on Walrus and still in a file here |
//! | `spare` | copies of blocks in files, also in those that were set aside, for reading alone |
//! | `state` | which blocks are staged, damaged, and waiting to travel |
//! | `trouble` | the log lines about blocks that do not leave |
//! | `writer` | appending; writes that queue during a sync share the next one |
//! | `flush` | which packs leave for Walrus, and when |
//! | `window` | reading a file from front to back |
//! | `deliver` | the way of a pack to Walrus, until its blocks may be forgotten |
//!
//! This module holds the staged blocks: key → where its newest value lies in the journal. A block
//! stays until its row is committed and its blob could be read back. Files are removed oldest
//! first, so that a deletion is never forgotten before the write that it undid.
//!
//! Lock order: key locks (`crate::locks`), then the appender (`Writer::appender`), then the state
//! (`JournalParts::state`). `JournalParts::turn` comes before the state, and is not held together
//! with key locks or the appender. The state's lock is never held across an `await` or a call that
//! changes a file.

use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::dirlock::DirLock;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{KeyRange, ListItem};
use crate::locks::KeyGuard;
use crate::log::{Level, Log};
use crate::place::{Form, Value};
use crate::read::disk::DiskCache;
use crate::upload::Fill;

mod ask;
mod block;
mod copies;
mod damage;
mod deliver;
mod direct;
mod disk;
mod figures;
mod flush;
mod frame;
mod judge;
mod later;
mod mend;
mod owner;
mod reclaim;
mod replay;
mod room;
mod salvage;
mod segment;
mod settings;
mod settled;
mod spare;
mod state;
#[cfg(test)]
mod tests;
mod trouble;
mod window;
mod writer;

pub(crate) use ask::AskFirst;
pub(crate) use block::Block;
pub(crate) use copies::Copies;
pub(crate) use deliver::FlushParts;
use direct::DirectDisk;
use disk::{is_full, Disk};
pub(crate) use flush::Flusher;
use frame::Write;
use later::{Due, Syncer};
pub(crate) use owner::{abandoned, had_journal, Owner};
use replay::{replay, report_aside, Replayed};
pub(crate) use room::{needed, Room};
pub(crate) use segment::SUFFIX as SEGMENT_SUFFIX;
pub use settings::{JournalConfig, JournalSync};
use settled::Settled;
pub(crate) use spare::{Contents, Spare, Which};
use state::{DiskFull, StagedBlocks};
use trouble::Trouble;
use writer::Writer;

const README: &str = "\
This is the write journal of walrusds: blocks that were accepted and are not on Walrus yet.
DELETING A FILE HERE LOSES DATA, unless the node was stopped in order and no *.segment file is left.

NUMBER.segment  blocks, in the order in which they were written. A file is removed by the node when
                every block in it is on Walrus and in the index, oldest file first. The newest one
                ends with zeroes: space that the next writes will take.
NUMBER.damaged  such a file in which a block was found damaged; no part of the journal any more.
                `walrusds repair` tells what is in it, and when it may be deleted.
DAMAGED         the keys of damaged blocks that were neither put again nor deleted since, and where they lay.
LOCK            held by the running node.
OWNER           the table of the index for which the blocks were accepted.
NODE            the name of the node, as `walrusds status` shows it.

To empty the journal, start the node (any ipfs command does) with drainTimeoutSeconds large enough, or
let the daemon run: it uploads on its own. The layout of a file is described in the sources, in
src/journal/frame.rs.
";

/// A segment is sealed when it is this share of the journal's limit, within bounds (bytes); a
/// single longer write makes a longer segment.
const SEGMENT_SHARE: u64 = 16;
const SEGMENT_LEAST: u64 = 16 << 10;
const SEGMENT_MOST: u64 = 64 << 20;

/// The amount of staged data, for metrics.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Staged {
    /// Keys with a staged value.
    pub(crate) blocks: u64,
    /// Bytes of those values.
    pub(crate) bytes: u64,
    /// Bytes of the journal's files.
    pub(crate) disk_bytes: u64,
}

/// The journal of one node.
#[derive(Debug)]
pub(crate) struct Journal {
    inner: Arc<JournalParts>,
    writer: Writer,
    /// Where writes return before they are synced.
    syncer: Option<Syncer>,
    /// The lock of the directory, held for as long as the journal is open.
    lock: Mutex<Option<DirLock>>,
}

#[derive(Debug)]
struct JournalParts {
    dir: PathBuf,
    max_bytes: u64,
    sync: JournalSync,
    /// The syncs that are owed.
    due: Due,
    log: Arc<Log>,
    disk: Arc<dyn Disk>,
    /// Takes files over that are needed no more, if there is a read cache.
    heir: Option<Arc<DiskCache>>,
    settled: Arc<Settled>,
    state: Mutex<StagedBlocks>,
    /// Notified when space has become free.
    space: Notify,
    /// Held by the write that is next to get room; the others wait for it in the order of arrival.
    turn: tokio::sync::Mutex<()>,
    /// Cancelled when the datastore is being closed: no write waits for room any more.
    closing: CancellationToken,
    /// When the log last got a line that the journal is full.
    said_full: Mutex<Option<Instant>>,
    /// The failures that keep blocks from leaving.
    trouble: Trouble,
    oldest: figures::Oldest,
    /// Notified when the flusher must look again: enough is staged, a write waits for room, the
    /// disk is full, blocks were put back, or the datastore is being closed.
    changed: Notify,
    syncs: AtomicU64,
    /// How long the last sync took (microseconds).
    last_sync_us: AtomicU64,
    /// A write or a sync failed, and the unknown bytes that it left are still in the file.
    broken: AtomicBool,
    /// The last attempt to write the list of damaged blocks failed.
    list_failed: AtomicBool,
}

impl JournalParts {
    /// Writes the list of damaged blocks, if it has changed. The caller holds the appender's lock.
    /// If the list cannot be written, the journal goes on: to keep its files until it can be
    /// written would keep a full disk full.
    fn save_damage(&self) {
        let damages = {
            let mut state = self.state.lock();
            if !std::mem::take(&mut state.damage_changed) {
                return;
            }
            state.damaged.clone()
        };
        let saved = damage::save(&self.dir, &*self.disk, &damages);
        let failed_before = self.list_failed.swap(saved.is_err(), Ordering::Relaxed);
        if let Err(e) = saved {
            self.state.lock().damage_changed = true;
            if !failed_before {
                self.log.push(
                    Level::Error,
                    format!(
                        "journal: the list of damaged blocks in {} cannot be written; it is tried again: {e}",
                        self.dir.display()
                    ),
                );
            }
        }
    }

    /// The writes that must follow the last entries of these keys before any other write: for each
    /// key its staged value once more, or a deletion if none is staged. A staged value that is
    /// damaged is lost; the next open finds the same in the files.
    fn instead_of(&self, superseded: &[String]) -> Result<Vec<Write>> {
        let mut state = self.state.lock();
        let mut instead = Vec::with_capacity(superseded.len());
        for key in superseded {
            let Some(block) = state.blocks.get(key.as_str()).cloned() else {
                instead.push(Write::Delete(key.clone()));
                continue;
            };
            match block.read() {
                Ok(value) => instead.push(Write::put(key.clone(), value)),
                Err(e) if e.kind() == ErrorKind::Corrupt => {
                    state.lose_block(&block);
                    block.segment.keep();
                    self.tell_lost(&e);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(instead)
    }

    /// Tells the operator of a damaged block whose file is kept.
    fn tell_lost(&self, why: &Error) {
        self.log.push(
            Level::Error,
            format!(
                "{why}. {}. Its file is kept with the ending .{} once the other blocks in it are on Walrus",
                damage::REMEDY,
                disk::ASIDE
            ),
        );
    }

    /// Whether a write returns before it is synced.
    fn syncs_later(&self) -> bool {
        self.sync == JournalSync::Sync
    }

    /// How many bytes of zeroes may be written ahead in a segment of `len` bytes. They make a sync
    /// cheaper and a write dearer: they do not pay where many writes share a sync.
    fn room_ahead(&self, len: u64) -> u64 {
        if self.syncs_later() {
            return 0;
        }
        let left = self.max_bytes.saturating_sub(self.state.lock().used());
        left.min(self.segment_bytes().saturating_sub(len))
    }

    /// Makes the error of a failed write of `bytes` bytes. If the disk is full, it calls the
    /// flusher: staged blocks leave at once, to make room.
    fn failed(&self, what: &str, e: &io::Error, bytes: u64) -> Error {
        if is_full(e) {
            let full = &mut self.state.lock().disk_full;
            *full = Some(DiskFull::again(full.take(), bytes));
            self.changed.notify_one();
        }
        disk_error(what, e)
    }

    /// The length at which a segment is full (bytes). Space is given back in units of this length.
    fn segment_bytes(&self) -> u64 {
        (self.max_bytes / SEGMENT_SHARE).clamp(SEGMENT_LEAST, SEGMENT_MOST)
    }

    /// Wakes the flusher, if there is something new for it to see.
    fn call_flusher(&self) {
        let mut state = self.state.lock();
        if !state.called && state.queued_bytes >= state.call_at {
            state.called = true;
            drop(state);
            self.changed.notify_one();
        }
    }
}

impl Journal {
    /// Opens (or creates) the journal and reads its files. A write that a crash left
    /// unfinished at the end is cut off. With an `owner`, the journal is opened only if its blocks
    /// belong to that owner.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] while another process has it open; [`ErrorKind::Config`] if it holds
    /// blocks of another owner; [`ErrorKind::Disk`]; [`ErrorKind::Corrupt`] if a file is damaged
    /// other than at its unfinished end.
    pub(crate) fn open(
        settings: &JournalConfig,
        owner: Option<&Owner>,
        heir: Option<Arc<DiskCache>>,
        log: Arc<Log>,
    ) -> Result<Journal> {
        let limits = (settings.max_bytes, settings.sync);
        let disk = Arc::new(DirectDisk::new(settings.sync == JournalSync::Put));
        let disk = (disk as Arc<dyn Disk>, heir);
        Self::open_on(disk, &settings.path, limits, owner, log)
    }

    fn open_on(
        (disk, heir): (Arc<dyn Disk>, Option<Arc<DiskCache>>),
        dir: &Path,
        (max_bytes, sync): (u64, JournalSync),
        owner: Option<&Owner>,
        log: Arc<Log>,
    ) -> Result<Journal> {
        let failed = |e: io::Error| disk_error(&format!("journalPath {}", dir.display()), &e);
        create_dir(dir, &*disk).map_err(failed)?;
        let lock = lock(dir)?;
        if let Some(owner) = owner {
            // The owner is checked before any file is changed.
            owner.check(dir)?;
        }
        match disk.write_readme(dir, README) {
            // A full disk does not stop the open: the staged blocks must leave to make room.
            Err(e) if is_full(&e) => log.push(Level::Warn, failed(e).to_string()),
            written => written.map_err(failed)?,
        }
        report_aside(dir, &log).map_err(failed)?;
        let settled = Arc::new(Settled::default());
        let Replayed {
            mut state,
            position,
            superseded,
        } = replay(dir, &disk, &settled, &log)?;
        if let Some(owner) = owner {
            if owner.take(dir, &*disk, state.staged(), &log)? {
                state.forget_damage(dir, &log);
            }
        }
        let inner = Arc::new(JournalParts {
            dir: dir.to_owned(),
            max_bytes,
            sync,
            due: Due::default(),
            trouble: Trouble::new(Arc::clone(&log)),
            oldest: figures::Oldest::default(),
            log,
            disk,
            heir,
            settled,
            state: Mutex::new(state),
            space: Notify::new(),
            turn: tokio::sync::Mutex::default(),
            closing: CancellationToken::new(),
            said_full: Mutex::default(),
            changed: Notify::new(),
            syncs: AtomicU64::new(0),
            last_sync_us: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            list_failed: AtomicBool::new(false),
        });
        let writer = Writer::start(Arc::clone(&inner), position)?;
        if !superseded.is_empty() {
            writer.note_now(inner.instead_of(&superseded)?);
            inner.state.lock().doubt_proofs(&superseded);
        }
        writer.reclaim();
        let syncer = match sync {
            JournalSync::Put => None,
            JournalSync::Sync => Some(Syncer::start(&inner, &writer.appender)?),
        };
        Ok(Journal {
            inner,
            writer,
            syncer,
            lock: Mutex::new(Some(lock)),
        })
    }

    /// Stages puts as one unit: after a crash all of them are there or none. Returns when they
    /// survive a power cut, or with [`JournalSync::Sync`] any end of this process. `guard` holds
    /// their keys until the outcome is known, even if the caller has given up.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`]: nothing is staged.
    pub(crate) async fn append(
        &self,
        puts: Vec<(String, Bytes)>,
        room: Room,
        guard: Arc<KeyGuard>,
    ) -> Result<()> {
        if puts.is_empty() {
            return Ok(());
        }
        let writes = puts.into_iter().map(|(k, v)| Write::put(k, v)).collect();
        self.writer.append(writes, room, guard).await
    }

    /// Forgets keys for good: they will not travel, and a restart of this process does not bring
    /// them back. The caller holds the keys.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`]: the note could not be written. Blocks that are staged stay staged.
    pub(crate) async fn delete(&self, keys: &[String]) -> Result<()> {
        // The bytes of a failed write may still lie in a file that could not be repaired yet.
        let broken = self.inner.broken.load(Ordering::Acquire);
        let staged: Vec<Write> = {
            let state = self.inner.state.lock();
            keys.iter()
                .filter(|k| {
                    let k = k.as_str();
                    broken
                        || state.blocks.contains_key(k)
                        || state.unnoted.contains(k)
                        || state.damaged.contains_key(k)
                })
                .map(|k| Write::Delete(k.clone()))
                .collect()
        };
        if staged.is_empty() {
            return Ok(());
        }
        self.writer.note(staged).await
    }

    /// Notes that a deletion of `keys` has failed: the blocks that are staged under them stay until
    /// their rows are looked up again, and those that were lost stay lost.
    pub(crate) fn doubt(&self, keys: &[String]) {
        let state = self.inner.state.lock();
        let newest = keys.iter().filter_map(|key| state.newest(key));
        newest.for_each(|block| block.doubted.store(true, Ordering::Release));
    }

    /// The value of a staged block. A damaged block is staged no longer: it cannot be uploaded, no
    /// put may rely on it, and its file must become free; a later put under its key is staged anew.
    /// Reads from the local disk on the calling thread.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`] if it cannot be read now; [`ErrorKind::Corrupt`] if it is not the value
    /// that was written.
    pub(crate) fn read(&self, block: &Arc<Block>) -> Result<Bytes> {
        self.value(Form::Bytes, block)?.bytes()
    }

    /// As [`read`](Self::read), in this form. A value at its place is not compared yet.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn value(&self, form: Form, block: &Arc<Block>) -> Result<Value> {
        let value = block.value(form);
        if let Err(e) = &value {
            if e.kind() == ErrorKind::Corrupt {
                self.lose(block, e);
            }
        }
        value
    }

    /// The value of `len` bytes under a key that is on Walrus and indexed, if a file here still has
    /// it. The key names its contents. If the value is read, it is compared with its checksum.
    /// Reads from the local disk on the calling thread.
    pub(crate) fn settled(&self, form: Form, key: &str, len: u64) -> Option<Value> {
        self.inner.settled.value(form, key, len)
    }

    /// Takes a damaged block out of the staged ones. The queue and the packs that still hold it
    /// find that it is no longer current.
    fn lose(&self, block: &Arc<Block>, why: &Error) {
        {
            let mut state = self.inner.state.lock();
            if !state.lose_block(block) {
                return;
            }
            block.segment.keep();
            state.lost.insert(Arc::clone(&block.key), Arc::clone(block));
        }
        self.inner.tell_lost(why);
        // Reclaiming also writes the list of damaged blocks.
        self.writer.reclaim();
    }

    /// A text about the damage to the newest value of `key`; `None` if that value is not damaged,
    /// or a put or a deletion has taken its place.
    pub(crate) fn damage(&self, key: &str) -> Option<String> {
        let state = self.inner.state.lock();
        let damage = state.damaged.get(key)?;
        Some(damage.words(key, &self.inner.dir))
    }

    /// The staged block under `key`, if there is one.
    pub(crate) fn find(&self, key: &str) -> Option<Arc<Block>> {
        self.inner.state.lock().blocks.get(key).cloned()
    }

    /// The first `limit` staged keys of `range`, in its order, with the lengths of their values.
    pub(crate) fn list(&self, range: &KeyRange, limit: usize) -> Vec<ListItem> {
        if range.is_empty() {
            return Vec::new();
        }
        let bounds = (
            range.lower.as_ref().map(String::as_str),
            range.upper.as_ref().map(String::as_str),
        );
        let item = |(key, block): (&Arc<str>, &Arc<Block>)| {
            (!range.except.iter().any(|e| **e == **key)).then(|| ListItem {
                key: key.to_string(),
                size: i64::from(block.len),
                expires_at: None,
            })
        };
        let state = self.inner.state.lock();
        let staged = state.blocks.range::<str, _>(bounds);
        if range.descending {
            staged.rev().filter_map(item).take(limit).collect()
        } else {
            staged.filter_map(item).take(limit).collect()
        }
    }

    /// Counts the staged blocks and their bytes, and the bytes of the files.
    pub(crate) fn staged(&self) -> Staged {
        self.inner.state.lock().staged()
    }

    /// How often the disk was synced since open.
    pub(crate) fn syncs(&self) -> u64 {
        self.inner.syncs.load(Ordering::Relaxed)
    }

    /// Fills a pack with blocks of the queue (at least one block), in the order in which they were
    /// written. They stay staged until [`settle`](Self::settle).
    fn take_pack(&self, mut fill: Fill) -> Vec<Arc<Block>> {
        let mut pack = Vec::new();
        let mut obsolete = false;
        // What makes the best pack is found out without the lock, for which each put waits.
        {
            let mut state = self.inner.state.lock();
            while let Some(next) = state.queue.front() {
                let len = next.len();
                let current = state.is_current(next);
                if current && !fill.takes(&next.key, len) {
                    break;
                }
                let Some(block) = state.queue.pop_front() else {
                    break;
                };
                state.queued_bytes -= len;
                if current {
                    pack.push(block);
                } else {
                    block.segment.drop_live();
                    obsolete = true;
                }
            }
        }
        let rest = pack.split_off(fill.keep().min(pack.len()));
        self.return_to_queue(rest);
        if obsolete {
            self.writer.reclaim();
        }
        pack
    }

    /// The blocks among the first `bytes` of the queue that were written after number `after`.
    fn queued_after(&self, after: Option<u64>, bytes: u64) -> Vec<Arc<Block>> {
        let state = self.inner.state.lock();
        let mut left = bytes;
        let near = state.queue.iter().take_while(|block| {
            let near = left > 0;
            left = left.saturating_sub(block.len());
            near
        });
        near.filter(|block| after.is_none_or(|after| block.seq > after))
            .cloned()
            .collect()
    }

    /// Puts blocks whose rows are of no use back to the front of the queue, and calls the flusher.
    fn put_back(&self, blocks: Vec<Arc<Block>>) {
        for block in &blocks {
            block.indexed.store(false, Ordering::Release);
        }
        self.return_to_queue(blocks);
        self.inner.changed.notify_one();
    }

    fn return_to_queue(&self, blocks: Vec<Arc<Block>>) {
        if blocks.is_empty() {
            return;
        }
        let mut state = self.inner.state.lock();
        for block in blocks.into_iter().rev() {
            state.queued_bytes += block.len();
            state.queue.push_front(block);
        }
    }

    /// For each of these blocks, whether it is still the newest value of its key.
    fn current(&self, blocks: &[Arc<Block>]) -> Vec<bool> {
        let state = self.inner.state.lock();
        blocks.iter().map(|b| state.is_current(b)).collect()
    }

    /// For each of these blocks that were sent, whether it is still the newest value of its key. A
    /// block that was found damaged since is, if it was checked while it was sent.
    fn newest(&self, sent: &[Arc<Block>]) -> Vec<bool> {
        let state = self.inner.state.lock();
        let newest = |block: &Arc<Block>| {
            state.is_current(block) || (block.is_checked_when_sent() && state.is_lost(block))
        };
        sent.iter().map(newest).collect()
    }

    /// Forgets blocks that are on Walrus and indexed, or were replaced or deleted. Blocks whose
    /// rows are in doubt go back to the queue.
    async fn settle(&self, blocks: Vec<Arc<Block>>) {
        let (doubted, mut blocks): (Vec<_>, Vec<_>) =
            blocks.into_iter().partition(|block| block.is_doubted());
        if !doubted.is_empty() {
            self.put_back(doubted);
        }
        if blocks.is_empty() {
            return;
        }
        blocks.sort_unstable_by_key(|block| block.seq);
        // The note is written first: a crash of this process must not bring back a block that is
        // forgotten here, or it would undo a deletion that comes in between. Blocks that are lost
        // get no note: the next open must see that they were accepted.
        let whole = |block: &&Arc<Block>| !block.damaged.load(Ordering::Acquire);
        let notes: Vec<Write> = {
            let state = self.inner.state.lock();
            let safe = |block: &&Arc<Block>| whole(block) || state.is_saved(block);
            ranges(blocks.iter().filter(safe).map(|b| b.seq))
                .map(|(first, last)| Write::Done(first, last))
                .collect()
        };
        let noted = match notes.is_empty() {
            true => Ok(()),
            false => self.writer.note(notes).await,
        };
        failpoint!("journal.noted");
        if let Err(e) = &noted {
            self.inner.log.push(
                Level::Warn,
                format!("{e}; after a restart some blocks will be looked up once more"),
            );
        }
        self.inner.settled.note(blocks.iter().filter(whole));
        let mut again = Vec::new();
        let mut saved = Vec::new();
        {
            let mut state = self.inner.state.lock();
            for block in &blocks {
                let current = state.is_current(block);
                if current && block.is_doubted() {
                    // Its row came to be in doubt while the note was being written.
                    block.let_go.store(true, Ordering::Release);
                    again.push(Arc::clone(block));
                    continue;
                }
                if current {
                    state.forget(&block.key);
                } else if state.is_saved(block) {
                    state.heal(&block.key);
                    saved.push(block.key());
                }
                if noted.is_err() {
                    state.unnoted.insert(Arc::clone(&block.key));
                }
                block.segment.drop_live();
            }
        }
        for key in saved {
            self.inner.log.push(
                Level::Warn,
                format!(
                    "block {key} is damaged in the journal, but nothing is lost: it is on Walrus"
                ),
            );
        }
        if !again.is_empty() {
            self.put_back(again);
        }
        self.writer.reclaim();
    }

    /// Writes the queued writes and releases the directory. Staged blocks stay in it.
    pub(crate) async fn close(self: &Arc<Self>) {
        let journal = Arc::clone(self);
        let closing = tokio::task::spawn_blocking(move || {
            if let Some(syncer) = &journal.syncer {
                syncer.stop();
            }
            journal.writer.stop();
            journal.lock.lock().take();
        });
        // A panic of that task is ignored: no call is left that could report it.
        let _ = closing.await;
    }
}

fn disk_error(what: &str, e: &io::Error) -> Error {
    let cause = match e.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::from(e.kind()),
    };
    Error::retryable(ErrorKind::Disk, format!("{what}: {e}")).caused_by(cause)
}

fn lock(dir: &Path) -> Result<DirLock> {
    DirLock::take(dir).map_err(|e| match e {
        TryLockError::WouldBlock => Error::retryable(
            ErrorKind::Locked,
            format!(
                "journalPath: {} is in use by another process or datastore; a journal belongs to one",
                dir.display()
            ),
        ),
        TryLockError::Error(e) => {
            disk_error(&format!("journalPath: locking {}", dir.display()), &e)
        }
    })
}

/// Makes the directory of a journal and its parents, if they are missing, and syncs their names so
/// that they survive a power cut.
fn create_dir(dir: &Path, disk: &dyn Disk) -> io::Result<()> {
    let missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    let missing: Vec<&Path> = dir.ancestors().take_while(missing).collect();
    std::fs::create_dir_all(dir)?;
    for parent in missing.into_iter().filter_map(Path::parent) {
        let here = Path::new(".");
        let parent = Some(parent).filter(|p| !p.as_os_str().is_empty());
        disk.sync_dir(parent.unwrap_or(here))?;
    }
    Ok(())
}

/// Joins ascending numbers into ranges of consecutive ones (first and last, both included).
fn ranges(numbers: impl Iterator<Item = u64>) -> impl Iterator<Item = (u64, u64)> {
    let mut numbers = numbers.peekable();
    std::iter::from_fn(move || {
        let first = numbers.next()?;
        let mut last = first;
        while numbers.next_if_eq(&(last + 1)).is_some() {
            last += 1;
        }
        Some((first, last))
    })
}
