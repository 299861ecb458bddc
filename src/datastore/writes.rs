//! The two ways of writing: directly to Walrus, or into the local journal and from there to Walrus.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::puts::Put;
use crate::config::Config;
use crate::detached::Detached;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{KeyRecord, Record, Traces};
use crate::journal::{needed, AskFirst, Block, FlushParts, Flusher, Journal, Owner, Room};
use crate::locks::{KeyGuard, KeyLocks};
use crate::metrics::Metrics;
use crate::read::disk::DiskCache;
use crate::trace::{self, Span};
use crate::upload::{usage_of, NewBlock, Packer, Uploader};

/// How long a journalled write waits for the index's answer which blocks are stored.
const INDEX_PATIENCE: Duration = Duration::from_secs(2);

/// The way in which values are written.
pub(super) struct Writes {
    uploader: Arc<Uploader>,
    locks: KeyLocks,
    way: Way,
    /// Statements that go on although their callers have given up. Closing waits for them.
    detached: TaskTracker,
}

enum Way {
    /// Directly to Walrus.
    Direct(Packer),
    /// Into the local journal, and from there to Walrus later.
    Journalled {
        journal: Arc<Journal>,
        flusher: Flusher,
        drain_timeout: Duration,
        full_timeout: Duration,
        ask_first: AskFirst,
    },
}

impl Writes {
    /// Opens the journal, if one is configured (`cache` takes over its files), and starts the
    /// packer or the flusher.
    pub(super) fn start(
        config: &Config,
        owner: Option<&Owner>,
        uploader: Arc<Uploader>,
        locks: KeyLocks,
        cache: Option<&Arc<DiskCache>>,
    ) -> Result<Writes> {
        let way = match &config.journal {
            None => Way::Direct(Packer::start(Arc::clone(&uploader))),
            Some(settings) => {
                let log = Arc::clone(&uploader.log);
                let journal = Journal::open(settings, owner, cache.cloned(), log)?;
                let journal = Arc::new(journal);
                Way::Journalled {
                    flusher: Flusher::start(FlushParts {
                        journal: Arc::clone(&journal),
                        uploader: Arc::clone(&uploader),
                        locks: locks.clone(),
                        idle: settings.idle_flush,
                        max_age: settings.max_age,
                        drain_partial: settings.drain_partial,
                    }),
                    journal,
                    drain_timeout: settings.drain_timeout,
                    full_timeout: settings.full_timeout,
                    ask_first: AskFirst::default(),
                }
            }
        };
        Ok(Writes {
            uploader,
            locks,
            way,
            detached: TaskTracker::new(),
        })
    }

    /// The journal, if there is one.
    pub(super) fn journal(&self) -> Option<&Arc<Journal>> {
        match &self.way {
            Way::Direct(_) => None,
            Way::Journalled { journal, .. } => Some(journal),
        }
    }

    /// The part of a write that comes before its keys are locked. With a journal, it leaves out
    /// blocks that are staged, and waits for room.
    pub(super) async fn admit(&self, puts: Vec<Put>) -> Result<(Vec<Put>, Option<Room>)> {
        let Way::Journalled {
            journal,
            ask_first,
            full_timeout,
            ..
        } = &self.way
        else {
            return Ok((puts, None));
        };
        let puts = self.without_staged(puts, journal).await?;
        let bytes = |puts: &[Put]| needed(puts.iter().map(|p| (p.key.len(), p.value.len())));
        if let Some(room) = journal.room_now(bytes(&puts)) {
            return Ok((puts, Some(room)));
        }
        // There is no room, but blocks that are indexed need none: Kubo puts the empty directory at
        // every start, and must start while nothing can be uploaded. As in `without_staged`, the
        // locks are looked at first: a deletion that is not seen there begins later.
        let (held, free): (Vec<_>, Vec<_>) = puts
            .into_iter()
            .partition(|put| self.locks.is_held(&put.key));
        let mut puts = match ask_first.is_resting() {
            true => free,
            false => self.without_indexed(free, ask_first).await,
        };
        puts.extend(held);
        let room = journal.room(bytes(&puts), *full_timeout).await?;
        Ok((puts, Some(room)))
    }

    /// Writes values that were admitted. `guard` holds their keys.
    pub(super) async fn write(
        &self,
        mut puts: Vec<Put>,
        room: Option<Room>,
        guard: &Arc<KeyGuard>,
    ) -> Result<()> {
        if puts.is_empty() {
            return Ok(());
        }
        match &self.way {
            Way::Direct(packer) => {
                let coming = packer.announce();
                let (puts, rows) = self.without_brought_back(puts, guard).await?;
                let block = |(put, row): (Put, Option<Record>)| NewBlock {
                    key: put.key,
                    value: put.value,
                    replaces: usage_of(row.as_ref()),
                };
                let new = self.without_stored(puts, rows);
                let blocks: Vec<_> = new.into_iter().map(block).collect();
                if blocks.is_empty() {
                    return Ok(());
                }
                let stored = packer.submit(blocks, Arc::clone(guard))?;
                drop(coming);
                stored.wait().await
            }
            Way::Journalled {
                journal, ask_first, ..
            } => {
                let before = puts.len();
                let bytes = puts.iter().map(|p| p.value.len()).sum();
                if ask_first.is_worth_it(bytes) {
                    puts = self.without_indexed(puts, ask_first).await;
                    if puts.len() < before {
                        ask_first.found_one();
                    }
                }
                let Some(room) = room else {
                    return Ok(());
                };
                let puts = puts.into_iter().map(|put| (put.key, put.value)).collect();
                let span = trace::begin("journal_write");
                let span = span.map(|span| span.with("bytes", bytes as u64));
                let written = journal.append(puts, room, Arc::clone(guard)).await;
                Span::done(span, &written);
                written
            }
        }
    }

    /// As [`Uploader::is_alive`].
    pub(super) fn is_alive(&self, row: &Record) -> bool {
        self.uploader.is_alive(row)
    }

    /// As [`Uploader::bring_back`].
    pub(super) async fn bring_back(&self, rows: &[KeyRecord]) -> Result<HashSet<String>> {
        self.uploader.bring_back(rows).await
    }

    /// Waits for the uploads (with a journal, for at most the drain timeout), and stops.
    pub(super) async fn close(&self) {
        self.detached.close();
        self.detached.wait().await;
        match &self.way {
            Way::Direct(packer) => packer.close().await,
            Way::Journalled {
                journal,
                flusher,
                drain_timeout,
                ..
            } => {
                flusher.close(*drain_timeout).await;
                journal.close().await;
            }
        }
    }

    /// Counters for the metrics snapshot.
    pub(super) fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut all = Vec::new();
        if let Some(journal) = self.journal() {
            let staged = journal.staged();
            all.push(("journal_blocks", staged.blocks));
            all.push(("journal_bytes", staged.bytes));
            all.push(("journal_disk_bytes", staged.disk_bytes));
            all.push(("journal_syncs", journal.syncs()));
        }
        let (running, limit) = self.uploader.limit.snapshot();
        all.push(("uploads_running", running as u64));
        all.push(("uploads_limit", limit as u64));
        all
    }

    /// Brings back the rows of blocks that were deleted and whose blobs can still be read, and
    /// leaves these blocks out. Returns the others with their rows. A lookup that finds no such
    /// block is the only statement. `guard` holds the keys.
    async fn without_brought_back(
        &self,
        puts: Vec<Put>,
        guard: &Arc<KeyGuard>,
    ) -> Result<(Vec<Put>, Vec<Option<Record>>)> {
        let keys: Vec<String> = puts.iter().map(|put| put.key.clone()).collect();
        let traces = self.uploader.look_up(&keys).await?;
        let spare = |(put, traces): (&Put, &Traces)| {
            let len = put.value.len() as u64;
            let record = self.uploader.spare(traces, len, put.names_content)?;
            Some(KeyRecord {
                key: put.key.clone(),
                record: record.clone(),
            })
        };
        let spares: Vec<KeyRecord> = puts.iter().zip(&traces).filter_map(spare).collect();
        let spares = self.uploader.readable(spares).await;
        let back = match spares.is_empty() {
            true => HashSet::new(),
            // The statement may take effect although the caller has given up. So it runs to its end
            // in the background, and the keys stay locked until then.
            false => {
                let (uploader, guard) = (Arc::clone(&self.uploader), Arc::clone(guard));
                let token = self.detached.token();
                let work = async move {
                    let _until_done = (guard, token);
                    uploader.bring_back(&spares).await
                };
                Detached::new(work).await?
            }
        };
        Metrics::add(&self.uploader.metrics.blocks_known, back.len() as u64);
        let left = puts.into_iter().zip(traces);
        let left = left.filter(|(put, _)| !back.contains(&put.key));
        Ok(left.map(|(put, traces)| (put, traces.live)).unzip())
    }

    /// The rows under the keys of puts, as the index itself, not memory, holds them.
    async fn rows(&self, puts: &[Put]) -> Result<Vec<Option<Record>>> {
        let keys: Vec<String> = puts.iter().map(|put| put.key.clone()).collect();
        self.uploader.index.get_many(&keys).await
    }

    /// Leaves out the blocks that are stored according to these rows, and so need no upload.
    fn without_stored(
        &self,
        puts: Vec<Put>,
        rows: Vec<Option<Record>>,
    ) -> Vec<(Put, Option<Record>)> {
        let before = puts.len();
        let is_new = |(put, row): &(Put, Option<Record>)| {
            // The blob of a row whose staged copy is damaged may not have been read back yet.
            let damage = self.journal().and_then(|j| j.damage(&put.key));
            let same = put.names_content && damage.is_none();
            let len = put.value.len() as u64;
            !self.uploader.is_stored(row.as_ref(), len, same)
        };
        let new: Vec<_> = puts.into_iter().zip(rows).filter(is_new).collect();
        let known = (before - new.len()) as u64;
        Metrics::add(&self.uploader.metrics.blocks_known, known);
        new
    }

    /// Leaves out the blocks that are indexed. An index that does not answer does not delay a write
    /// for long, and is not asked for a while: the flusher looks the rows up before the upload,
    /// too.
    async fn without_indexed(&self, puts: Vec<Put>, ask_first: &AskFirst) -> Vec<Put> {
        if puts.is_empty() {
            return puts;
        }
        let asked = tokio::time::timeout(INDEX_PATIENCE, self.rows(&puts)).await;
        let Ok(Ok(rows)) = asked else {
            ask_first.rest();
            return puts;
        };
        let new = self.without_stored(puts, rows);
        new.into_iter().map(|(put, _)| put).collect()
    }

    /// Leaves out the blocks that are in the journal already, except where a writer holds the key:
    /// a deletion that its caller has given up takes effect before a later put, so the put must
    /// wait for it. The staged copy is read before it is relied on: a damaged one is no reason to
    /// leave out a whole one.
    async fn without_staged(&self, puts: Vec<Put>, journal: &Arc<Journal>) -> Result<Vec<Put>> {
        let mut copies = Vec::new();
        for (at, put) in puts.iter().enumerate() {
            // The locks are looked at before the journal: a deletion that is not seen there begins
            // later.
            if !put.names_content || self.locks.is_held(&put.key) {
                continue;
            }
            let copy = journal
                .find(&put.key)
                .filter(|block| block.len() == put.value.len() as u64 && block.may_be_relied_on());
            copies.extend(copy.map(|copy| (at, copy)));
        }
        if copies.is_empty() {
            return Ok(puts);
        }
        let whole = {
            let journal = Arc::clone(journal);
            let read = move || {
                let whole =
                    |(at, copy): (usize, Arc<Block>)| journal.read(&copy).is_ok().then_some(at);
                copies.into_iter().filter_map(whole).collect::<HashSet<_>>()
            };
            tokio::task::spawn_blocking(read)
                .await
                .map_err(|e| Error::new(ErrorKind::Internal, format!("reading the journal: {e}")))?
        };
        Metrics::add(&self.uploader.metrics.blocks_known, whole.len() as u64);
        let new = puts.into_iter().enumerate();
        let new = new
            .filter(|(at, _)| !whole.contains(at))
            .map(|(_, put)| put);
        Ok(new.collect())
    }
}
