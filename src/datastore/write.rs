//! What puts, deletes and batches do.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::{Op, Shared, WalrusDatastore, Writes};
use crate::error::{caught, Error, ErrorKind, Result};
use crate::index::{Index, Record, Rows, Usage};
use crate::lasting::Lasting;
use crate::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::metrics::Metrics;
use crate::multihash::{self, Match};
use crate::pack::NewBlock;
use crate::staging::{needed, AskFirst, Block, Journal, Room};

/// How long a journalled write waits for the index to say what it holds.
const INDEX_PATIENCE: Duration = Duration::from_secs(2);

impl WalrusDatastore {
    /// Stores `value` under `key`. Returns once it is on Walrus and indexed; with a journal, once it
    /// survives a power cut of this machine.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a key that no index takes, and for a value that is not what the
    /// multihash in its key names; [`ErrorKind::TooLarge`] for a value
    /// beyond [`MAX_VALUE_BYTES`] or what the publishers take; [`ErrorKind::Walrus`],
    /// [`ErrorKind::Index`]; with a journal, [`ErrorKind::Disk`].
    pub async fn put(&self, key: &str, value: Bytes) -> Result<()> {
        self.commit(vec![Op::Put(key.to_owned(), value)]).await
    }

    /// Applies operations; the last one on a key wins. Blocks that are stored already are not
    /// uploaded again. Not atomic: after an error some operations may have taken effect, and the
    /// same batch may be committed again.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn commit(&self, ops: Vec<Op>) -> Result<()> {
        let call = self.enter()?;
        let shared = &self.shared;
        for op in &ops {
            if let Op::Put(key, value) = op {
                check_key(key)?;
                check_value(key, value.len())?;
            }
        }
        let (puts, deletes) = last_wins(ops);
        let puts = check_puts(puts).await?;
        if let Some(roots) = &shared.roots {
            let named = puts.iter().filter(|put| put.names_content);
            named.for_each(|put| roots.keep_put(&put.key, &put.value));
        }
        Metrics::add(&shared.metrics.commits, 1);
        Metrics::add(&shared.metrics.blocks_put, puts.len() as u64);
        let bytes: usize = puts.iter().map(|put| put.value.len()).sum();
        Metrics::add(&shared.metrics.bytes_put, bytes as u64);

        if let Some(why) = shared.index.only_reads() {
            return shared.refuse_new(why, puts, &deletes).await;
        }
        let (puts, room) = match &shared.writes {
            Writes::Through(_) => (puts, None),
            Writes::Journal {
                journal,
                full_timeout,
                ask_first,
                ..
            } => {
                // Room before locks: a write that waits for room must not hold up the blocks that will make it.
                let puts = shared.without_staged(puts, journal).await?;
                let (puts, room) = shared
                    .with_room(puts, journal, ask_first, *full_timeout)
                    .await?;
                (puts, Some(room))
            }
        };
        let locked = puts
            .iter()
            .map(|put| put.key.clone())
            .chain(deletes.iter().cloned())
            .collect();
        let guard = Arc::new(shared.locks.lock(locked).await);
        match &shared.writes {
            Writes::Through(packer) => {
                let blocks = shared.not_stored_yet(puts).await?;
                if !blocks.is_empty() {
                    packer.submit(blocks, Arc::clone(&guard))?.wait().await?;
                }
            }
            Writes::Journal {
                journal, ask_first, ..
            } => {
                let puts = shared.without_indexed(puts, ask_first).await;
                if let Some(room) = room {
                    let puts = puts.into_iter().map(|put| (put.key, put.value)).collect();
                    journal.append(puts, room, Arc::clone(&guard)).await?;
                }
            }
        }
        if deletes.is_empty() {
            return Ok(());
        }
        // A statement that has begun may take effect although its caller has given up: it runs
        // to its end, and the keys stay locked until then, so that it cannot land after a later put.
        let shared = Arc::clone(shared);
        Lasting::new(async move {
            let _until_done = (call, guard);
            caught(shared.delete(deletes)).await
        })
        .await
    }

    /// Removes `key`; an unknown key is fine. Gone on return; for lookups of other nodes that have
    /// just seen it, after [`Config::row_ttl`](crate::Config::row_ttl) at most.
    ///
    /// # Errors
    /// [`ErrorKind::Index`].
    pub async fn delete(&self, key: &str) -> Result<()> {
        self.commit(vec![Op::Delete(key.to_owned())]).await
    }
}

impl Shared {
    /// Whether what a row points at is on Walrus beyond `until`, as far as this node knows.
    fn is_stored(&self, row: &Record, until: SystemTime) -> bool {
        row.is_fresh(until, &self.epoch_clock) && !self.gone.contains(&row.blob_id)
    }

    /// The blocks of a batch that must be uploaded, with what they replace.
    async fn not_stored_yet(&self, puts: Vec<Put>) -> Result<Vec<NewBlock>> {
        if puts.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<String> = puts.iter().map(|put| put.key.clone()).collect();
        let known = self.index.get_many(&keys).await?;
        let fresh_until = self.clock.now() + self.fresh_for;
        let mut blocks = Vec::with_capacity(puts.len());
        for (put, known) in puts.into_iter().zip(known) {
            if let Some(record) = &known {
                if self.is_stored(record, fresh_until) && put.is_in(record.size) {
                    Metrics::add(&self.metrics.blocks_known, 1);
                    continue;
                }
            }
            blocks.push(NewBlock {
                key: put.key,
                value: put.value,
                replaces: known.map(|record| Usage {
                    blocks: 1,
                    bytes: record.size.max(0),
                }),
            });
        }
        Ok(blocks)
    }

    /// What a node does whose index can only be read: a block that is indexed is stored, however long, and Kubo
    /// puts the empty directory at every start. Everything else is refused.
    async fn refuse_new(&self, why: &str, puts: Vec<Put>, deletes: &[String]) -> Result<()> {
        let keys: Vec<String> = puts.iter().map(|put| put.key.clone()).collect();
        let rows = self.index.get_many(&keys).await?;
        let mut new = puts.iter().zip(&rows).filter(|(put, row)| {
            !row.as_ref()
                .is_some_and(|row| !row.staged && put.is_in(row.size))
        });
        let (what, key) = match (new.next(), deletes.first()) {
            (Some((put, _)), _) => ("stored", &put.key),
            (None, Some(key)) => ("deleted", key),
            (None, None) => {
                Metrics::add(&self.metrics.blocks_known, puts.len() as u64);
                return Ok(());
            }
        };
        // The modes of a file are set on this machine; a server may take writes again by itself.
        let kind = match self.index.is_local() {
            true => ErrorKind::Config,
            false => ErrorKind::Index,
        };
        Err(Error::new(
            kind,
            format!("{key} cannot be {what} by this node: {why}. Use a node that may write to the index"),
        ))
    }

    /// Leaves out the blocks that are in the journal already. Not where a writer holds the key: a deletion that
    /// its caller has given up takes effect before a later put, so that must wait for it. The staged copy is
    /// read before it is relied on: a damaged one is no reason to let a good one go.
    async fn without_staged(&self, puts: Vec<Put>, journal: &Arc<Journal>) -> Result<Vec<Put>> {
        let mut copies = Vec::new();
        for (at, put) in puts.iter().enumerate() {
            // In this order: a deletion that is not seen begins later.
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
        Metrics::add(&self.metrics.blocks_known, whole.len() as u64);
        let new = puts.into_iter().enumerate();
        let new = new
            .filter(|(at, _)| !whole.contains(at))
            .map(|(_, put)| put);
        Ok(new.collect())
    }

    /// Room in the journal for puts. If there is none, those that are indexed need none: Kubo puts the empty
    /// directory at every start, and must start while nothing can be uploaded.
    async fn with_room(
        &self,
        puts: Vec<Put>,
        journal: &Journal,
        ask_first: &AskFirst,
        patience: Duration,
    ) -> Result<(Vec<Put>, Room)> {
        let bytes = |puts: &[Put]| needed(puts.iter().map(|p| (p.key.len(), p.value.len())));
        if let Some(room) = journal.room_now(bytes(&puts)) {
            return Ok((puts, room));
        }
        // As in `without_staged`: a deletion that is not seen begins later.
        let (held, free): (Vec<_>, Vec<_>) = puts
            .into_iter()
            .partition(|put| self.locks.is_held(&put.key));
        let mut puts = match ask_first.is_resting() {
            true => free,
            false => {
                let (new, answered) = self.without_rows(free).await;
                if !answered {
                    ask_first.rest();
                }
                new
            }
        };
        puts.extend(held);
        let room = journal.room(bytes(&puts), patience).await?;
        Ok((puts, room))
    }

    /// Leaves out the blocks that are indexed already, as far as that is worth a question.
    async fn without_indexed(&self, puts: Vec<Put>, ask_first: &AskFirst) -> Vec<Put> {
        if puts.is_empty() || !ask_first.is_worth_it(puts.iter().map(|p| p.value.len()).sum()) {
            return puts;
        }
        let before = puts.len();
        let (new, answered) = self.without_rows(puts).await;
        if !answered {
            ask_first.rest();
        } else if new.len() < before {
            ask_first.found_one();
        }
        new
    }

    /// Leaves out the blocks that are indexed, and whether the index has answered. An index that does not
    /// does not hold a write up: the rows are looked for before the upload, too.
    async fn without_rows(&self, puts: Vec<Put>) -> (Vec<Put>, bool) {
        if puts.is_empty() {
            return (puts, true);
        }
        let keys: Vec<String> = puts.iter().map(|put| put.key.clone()).collect();
        let asked = tokio::time::timeout(INDEX_PATIENCE, self.index.get_many(&keys)).await;
        let Ok(Ok(rows)) = asked else {
            return (puts, false);
        };
        let fresh_until = self.clock.now() + self.fresh_for;
        let before = puts.len();
        let rows = puts.into_iter().zip(rows);
        let new = rows.filter(|(put, row)| {
            // The blob of a row whose staged copy is damaged may not have been read back yet.
            !row.as_ref()
                .is_some_and(|row| self.is_stored(row, fresh_until) && put.is_in(row.size))
                || self.writes.damage(&put.key).is_some()
        });
        let new: Vec<Put> = new.map(|(put, _)| put).collect();
        Metrics::add(&self.metrics.blocks_known, (before - new.len()) as u64);
        (new, true)
    }

    async fn delete(&self, mut keys: Vec<String>) -> Result<()> {
        // What cannot be stored is not there.
        keys.retain(|key| check_key(key).is_ok());
        failpoint!("delete.begun");
        if keys.is_empty() {
            return Ok(());
        }
        let deleted = self.delete_rows(&keys).await;
        // Rows may be gone all the same, of blocks that are about to leave the journal for them.
        if let (Err(_), Writes::Journal { journal, .. }) = (&deleted, &self.writes) {
            journal.doubt(&keys);
        }
        deleted
    }

    /// Deletes from the index, then from the journal.
    async fn delete_rows(&self, keys: &[String]) -> Result<()> {
        let removed = match keys {
            [key] => self.index.delete(key).await?,
            keys => self.index.delete_many(keys).await?,
        };
        failpoint!("delete.done");
        Metrics::add(&self.metrics.deletes, keys.len() as u64);
        self.metrics.usage_delta(Usage::default().minus(removed));
        // After the index, so that a failure leaves everything as it was. The keys are held, so
        // nothing can be staged or indexed in between.
        if let Writes::Journal { journal, .. } = &self.writes {
            journal.delete(keys).await?;
        }
        Ok(())
    }
}

/// A value that is to be stored.
#[derive(Debug)]
struct Put {
    key: String,
    value: Bytes,
    /// Whether the key is the multihash of the value: only then can anything that is stored under the key
    /// be known to be this value.
    names_content: bool,
}

impl Put {
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the key is the multihash of other bytes: it could be stored and
    /// never be read.
    fn new((key, value): (String, Bytes)) -> Result<Put> {
        let names_content = match multihash::check(&key, &value) {
            Match::Yes => true,
            Match::Unknown => false,
            Match::No => {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!(
                        "the value of {} bytes does not hash to the multihash in its key {key}: nothing was stored",
                        value.len()
                    ),
                ));
            }
        };
        Ok(Put {
            key,
            value,
            names_content,
        })
    }

    /// Whether a row of this size under its key is of this value.
    fn is_in(&self, size: i64) -> bool {
        self.names_content && i64::try_from(self.value.len()) == Ok(size)
    }
}

/// Checks values against their keys. A large batch is shared among the processors: to hash a block takes about
/// as long as to write it into the journal.
async fn check_puts(mut puts: Vec<(String, Bytes)>) -> Result<Vec<Put>> {
    /// A part of fewer bytes is not worth another thread.
    const PART_LEAST: usize = 512 << 10;
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    let processors = *PROCESSORS
        .get_or_init(|| std::thread::available_parallelism().map_or(1, NonZeroUsize::get));
    let check = |puts: Vec<(String, Bytes)>| -> Result<Vec<Put>> {
        puts.into_iter().map(Put::new).collect()
    };
    let bytes: usize = puts.iter().map(|(_, value)| value.len()).sum();
    let part = bytes.div_ceil(processors).max(PART_LEAST);
    let mut others = Vec::new();
    let mut in_part = 0;
    for at in (1..puts.len()).rev() {
        in_part += puts[at].1.len();
        if in_part >= part {
            let part = puts.split_off(at);
            others.push(tokio::task::spawn_blocking(move || check(part)));
            in_part = 0;
        }
    }
    let mut checked = check(puts)?;
    for part in others.into_iter().rev() {
        let part = part
            .await
            .map_err(|e| Error::new(ErrorKind::Internal, format!("checking a batch: {e}")))?;
        checked.extend(part?);
    }
    Ok(checked)
}

/// Refuses keys that the index cannot hold exactly.
pub(super) fn check_key(key: &str) -> Result<()> {
    let bad = |what: String| Err(Error::new(ErrorKind::InvalidArgument, what));
    if key.len() > MAX_KEY_BYTES {
        return bad(format!(
            "key of {} bytes is too long: an index holds keys of up to {MAX_KEY_BYTES} bytes",
            key.len()
        ));
    }
    if key.contains('\0') {
        return bad(format!(
            "key {key:?} holds a NUL byte, which no index can store"
        ));
    }
    Ok(())
}

fn check_value(key: &str, len: usize) -> Result<()> {
    if len > MAX_VALUE_BYTES {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("value of {len} bytes under {key} is too large: at most {MAX_VALUE_BYTES} bytes are stored under one key"),
        ));
    }
    Ok(())
}

/// The last operation on each key, in the order of first mention.
fn last_wins(ops: Vec<Op>) -> (Vec<(String, Bytes)>, Vec<String>) {
    let mut position: HashMap<String, usize> = HashMap::with_capacity(ops.len());
    let mut last: Vec<Op> = Vec::with_capacity(ops.len());
    for op in ops {
        match position.get(op.key()) {
            Some(&at) => last[at] = op,
            None => {
                position.insert(op.key().to_owned(), last.len());
                last.push(op);
            }
        }
    }
    let mut puts = Vec::new();
    let mut deletes = Vec::new();
    for op in last {
        match op {
            Op::Put(key, value) => puts.push((key, value)),
            Op::Delete(key) => deletes.push(key),
        }
    }
    (puts, deletes)
}
