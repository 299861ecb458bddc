//! Gets, questions for keys, and the contents of listings: from the journal, then the index, then
//! Walrus.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;

use super::puts::check_key;
use super::{Shared, WalrusDatastore};
use crate::error::{Error, ErrorKind, Result};
use crate::index::{KeyRange, ListItem, Record, Rows};
use crate::journal::Block;
use crate::metrics::Metrics;
use crate::multihash::{self, Match, Multihash};
use crate::place::{Form, Value};
use crate::query::{owned, Contents};
use crate::read::BlockCheck;

impl WalrusDatastore {
    /// The value of `key`, in memory of its own; `None` if the key is unknown.
    ///
    /// # Errors
    /// [`ErrorKind::BlobNotFound`] and [`ErrorKind::Corrupt`] name key and blob: the key is known,
    /// but no aggregator gave its bytes, or all gave wrong ones. [`ErrorKind::Corrupt`] also for a
    /// block that was accepted, is damaged in the journal and has no other copy.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let got = self.get_as(Form::Bytes, key).await?;
        got.map(|value| value.bytes().map(owned)).transpose()
    }

    /// As [`get`](Self::get), in a form that the caller chooses. Bytes may be a part of a window
    /// and keep all of it in memory: for a caller that copies them at once. A value at its place is
    /// not compared with its checksum yet: where it turns out to be damaged, [`get`](Self::get)
    /// finds another copy.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(crate) async fn get_as(&self, form: Form, key: &str) -> Result<Option<Value>> {
        let _call = self.enter()?;
        let begun = Instant::now();
        let got = self.shared.get(form, key).await;
        self.shared.metrics.operations.get.ended(begun, got.is_ok());
        got
    }

    /// Whether `key` is known. Asks the journal and the index, not Walrus.
    ///
    /// # Errors
    /// [`ErrorKind::Index`].
    pub async fn has(&self, key: &str) -> Result<bool> {
        Ok(self.get_size(key).await?.is_some())
    }

    /// The size of the value of `key` (bytes); `None` if the key is unknown. Asks the journal and
    /// the index, not Walrus.
    ///
    /// # Errors
    /// [`ErrorKind::Index`]; [`ErrorKind::Corrupt`] if the row holds an impossible size.
    pub async fn get_size(&self, key: &str) -> Result<Option<u64>> {
        let _call = self.enter()?;
        Metrics::add(&self.shared.metrics.lookups, 1);
        if let Some(block) = self.shared.staged(key) {
            return Ok(Some(block.len()));
        }
        let begun = Instant::now();
        let found = self.shared.lookup(key).await;
        let size = found.and_then(|row| row.map(|row| row.size_of(key)).transpose());
        let lookup = &self.shared.metrics.operations.lookup;
        lookup.ended(begun, size.is_ok());
        size
    }

    /// As [`get_size`](Self::get_size), from memory alone and without waiting; `None` if memory
    /// does not hold the answer.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`].
    pub fn peek_size(&self, key: &str) -> Result<Option<Option<u64>>> {
        let _call = self.enter()?;
        let known = if let Some(block) = self.shared.staged(key) {
            Some(Some(block.len()))
        } else if let Some(record) = self.shared.index.cached(key) {
            record.size_of(key).ok().map(Some)
        } else {
            check_key(key).is_err().then_some(None)
        };
        if known.is_some() {
            Metrics::add(&self.shared.metrics.lookups, 1);
        }
        Ok(known)
    }

    /// As [`get_size`](Self::get_size) for many keys, with one question to the index. The result
    /// has the keys' order; a row with an impossible size is an error of its key alone.
    ///
    /// # Errors
    /// [`ErrorKind::Index`].
    pub async fn get_sizes(&self, keys: Vec<String>) -> Result<Vec<Result<Option<u64>>>> {
        let _call = self.enter()?;
        Metrics::add(&self.shared.metrics.lookups, keys.len() as u64);
        let mut sizes: Vec<_> = keys
            .iter()
            .map(|key| Ok(self.shared.staged(key).map(|block| block.len())))
            .collect();
        // The keys to ask the index for; a key that no index takes is unknown.
        let rest = |(at, key): (usize, String)| {
            let ask = matches!(sizes.get(at), Some(Ok(None))) && check_key(&key).is_ok();
            ask.then_some((at, key))
        };
        let (places, keys): (Vec<_>, Vec<_>) =
            keys.into_iter().enumerate().filter_map(rest).unzip();
        if keys.is_empty() {
            return Ok(sizes);
        }
        let begun = Instant::now();
        let records = self.shared.index.find_each(&keys).await;
        let found: Result<Vec<_>> = records.map(|records| {
            let size = |(key, row): (&String, Result<Option<Record>>)| {
                row.and_then(|row| row.map(|row| row.size_of(key)).transpose())
            };
            keys.iter().zip(records).map(size).collect()
        });
        // A key may fail alone: where a standby lacks it and the primary does not answer.
        let well = found
            .as_ref()
            .is_ok_and(|found| found.iter().all(Result::is_ok));
        self.shared.metrics.operations.lookup.ended(begun, well);
        for (at, size) in places.into_iter().zip(found?) {
            sizes[at] = size;
        }
        Ok(sizes)
    }
}

#[async_trait]
impl Contents for Shared {
    fn list_staged(&self, range: &KeyRange, limit: usize) -> Vec<ListItem> {
        let journal = self.writes.journal();
        journal.map_or_else(Vec::new, |journal| journal.list(range, limit))
    }

    async fn list_indexed(
        &self,
        range: &KeyRange,
        skip: usize,
        limit: usize,
    ) -> Result<Vec<ListItem>> {
        self.index.list(range, skip, limit).await
    }

    async fn value(&self, key: &str) -> Result<Option<Bytes>> {
        let got = self.get(Form::Bytes, key).await?;
        got.map(Value::bytes).transpose()
    }
}

impl Shared {
    async fn get(&self, form: Form, key: &str) -> Result<Option<Value>> {
        let form = form.checked(self.verify_reads.local());
        let (staged, unreadable) = match self.staged_value(form, key) {
            Ok(staged) => (staged, None),
            // A row points to the same bytes, if there is one.
            Err(e) if multihash::names_content(key) => (None, Some(e)),
            Err(e) => return Err(e),
        };
        if let Some(value) = staged {
            if let Value::Memory(value) = &value {
                if self.verify_reads.local() && multihash::check(key, value) == Match::No {
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        format!("block {key} in the journal does not hash to its key"),
                    ));
                }
                if let Some(roots) = &self.roots {
                    roots.keep_at_start(key, value, self.verify_reads.local());
                }
                self.reader.learn(key, value);
            }
            Metrics::add(&self.metrics.journal_hits, 1);
            self.count_get(&value);
            return Ok(Some(value));
        }
        let absent = self.absent(key);
        if let Err(damaged) = &absent {
            // If the key names no content, a row may be of an older value.
            if !multihash::names_content(key) {
                return Err(damaged.clone());
            }
        }
        let mut indexed = self.get_indexed(form, key).await;
        if absent.is_err() && matches!(indexed, Ok(None)) {
            // It was damaged, and its row came after it was looked for; or it was deleted.
            indexed = self.get_indexed(form, key).await;
        }
        match (indexed, unreadable) {
            (Ok(None) | Err(_), Some(e)) => Err(e),
            (indexed, _) => indexed,
        }
    }

    /// The value to which the row of `key` points.
    async fn get_indexed(&self, form: Form, key: &str) -> Result<Option<Value>> {
        let mut failed: Option<(Record, Error)> = None;
        loop {
            let (record, asked) = match failed {
                None => match self.index.cached(key) {
                    Some(record) => (Some(record), false),
                    None => (self.lookup(key).await?, true),
                },
                Some(_) => (self.index.find_anew(key).await?, true),
            };
            let Some(record) = record else {
                return self.absent(key).map(|()| None);
            };
            if let Some((before, error)) = failed {
                // The row may point to another blob meanwhile. If it does not, the error stands.
                if before == record {
                    // The blob of a damaged block may have been stored a moment ago.
                    let is_old = self.absent(key).is_ok();
                    if error.kind() == ErrorKind::BlobNotFound && is_old {
                        self.gone.insert(record.blob_id.clone());
                    }
                    return Err(error);
                }
                failed = None;
            }
            match self.read(form, key, &record, asked).await {
                Ok(Some(value)) => {
                    self.count_get(&value);
                    return Ok(Some(value));
                }
                // The block was staged by a Go node and promoted since: the row names its blob.
                Ok(None) => {}
                Err(e) if matches!(e.kind(), ErrorKind::BlobNotFound | ErrorKind::Corrupt) => {
                    failed = Some((record, e));
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn count_get(&self, value: &Value) {
        Metrics::add(&self.metrics.gets, 1);
        Metrics::add(&self.metrics.get_bytes, value.len() as u64);
    }

    /// The block in the journal. A caller that does not find it there looks into the index next: a
    /// block leaves the journal only after its row is committed.
    fn staged(&self, key: &str) -> Option<Arc<Block>> {
        self.writes.journal()?.find(key)
    }

    /// The value of the block in the journal; `None` also if it is damaged, as a row may point to
    /// another copy.
    fn staged_value(&self, form: Form, key: &str) -> Result<Option<Value>> {
        let Some(journal) = self.writes.journal() else {
            return Ok(None);
        };
        // A damaged block is found only once. Where another one took its place, that is the value.
        while let Some(block) = journal.find(key) {
            match journal.value(form, &block) {
                Ok(value) => return Ok(Some(value)),
                Err(e) if e.kind() == ErrorKind::Corrupt => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// The value of `len` bytes under a key with a row, if it is still in a file of the journal.
    fn settled_value(&self, form: Form, key: &str, len: u64) -> Option<Value> {
        let value = self.writes.journal()?.settled(form, key, len)?;
        let wrong = match &value {
            Value::Memory(value) if self.verify_reads.local() => {
                multihash::check(key, value) == Match::No
            }
            _ => false,
        };
        (!wrong).then_some(value)
    }

    /// The error for a key without a row whose block was accepted and is damaged in the journal: it
    /// must not be reported as unknown.
    fn absent(&self, key: &str) -> Result<()> {
        match self.writes.journal().and_then(|j| j.damage(key)) {
            None => Ok(()),
            Some(damage) => Err(Error::new(ErrorKind::Corrupt, damage)),
        }
    }

    /// The row of `key`. A key that no index takes has none.
    async fn lookup(&self, key: &str) -> Result<Option<Record>> {
        if check_key(key).is_err() {
            return Ok(None);
        }
        self.index.find(key).await
    }

    /// The bytes that a row points at, checked unless they lie at a place. `None` if they were
    /// staged in the index and no longer are. `asked`: the index had to be asked for the row.
    async fn read(
        &self,
        form: Form,
        key: &str,
        record: &Record,
        asked: bool,
    ) -> Result<Option<Value>> {
        if record.staged {
            let value = self.index.staged_value(key).await?;
            let wrong = |value: &Bytes| {
                let size = i64::try_from(value.len()).unwrap_or(i64::MAX);
                let check = BlockCheck::new(key, size, self.verify_reads.network());
                check.judge(value).err()
            };
            if let Some(reason) = value.as_ref().and_then(wrong) {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("staged block {key}: {reason}"),
                ));
            }
            return Ok(value.map(Value::Memory));
        }
        let range = record.range().map_err(|e| e.context(key))?;
        let len = range.end - range.start;
        let check = BlockCheck::new(key, record.size, self.verify_reads.network());
        let cache = match &self.disk_cache {
            Some(cache) if len > 0 => Multihash::of_key(key).map(|name| (cache, name)),
            _ => None,
        };
        let get = match &record.patch_id {
            Some(patch) => self.reader.patch(patch, len, &check),
            None => self.reader.block(&record.blob_id, range.clone(), &check),
        };
        if let Some(value) = get.held() {
            return Ok(Some(Value::Memory(value)));
        }
        if let Some(roots) = &self.roots {
            if let Some(value) = roots.get(key, len).await {
                get.learn(&value);
                return Ok(Some(Value::Memory(value)));
            }
        }
        let mut here = self.settled_value(form, key, len);
        if here.is_some() {
            Metrics::add(&self.metrics.journal_hits, 1);
        }
        if let (None, Some((cache, name))) = (&here, &cache) {
            here = cache.get_as(form, name, len).await;
        }
        if let Some(value) = here {
            if let Value::Memory(value) = &value {
                get.learn(value);
            }
            if asked {
                get.rows_follow();
            }
            return Ok(Some(value));
        }
        let value = if len == 0 {
            check
                .judge(&[])
                .map(|()| Bytes::new())
                .map_err(|reason| Error::new(ErrorKind::Corrupt, reason))
        } else {
            get.fetch(self.is_over(record)).await
        };
        if let (Some(roots), Ok(value)) = (&self.roots, &value) {
            roots.keep_read(key, value, self.verify_reads.network());
        }
        if let (Some((cache, name)), Ok(value)) = (cache, &value) {
            cache.insert(name, value, self.verify_reads.network());
        }
        value.map(|value| Some(Value::Memory(value))).map_err(|e| {
            e.context(format_args!(
                "reading {key} (blob {}, offset {}, {len} bytes)",
                record.blob_id, range.start
            ))
        })
    }

    /// Whether the epoch has begun in which the blob of a row is no longer stored.
    fn is_over(&self, row: &Record) -> bool {
        self.epoch_clock
            .is_over(u64::try_from(row.end_epoch).unwrap_or(0))
    }
}
