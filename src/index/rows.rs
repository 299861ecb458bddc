//! Remembers rows that were looked up, for a short while.
//!
//! **Problem.** A row that a lookup has read may be overwritten before it is remembered. A
//! remembered row must not be older than a write of this node that has ended.
//!
//! **Outline.** Rows lie in [`SHARDS`] shards by the hash of their key; each shard drops its least
//! recently used rows when it exceeds its part of the memory. Only rows that exist are remembered:
//! an unknown key is asked for anew each time. A counter advances at each beginning and end of a
//! write. A reader takes a [`Moment`] (the counter's value) before it reads the index, and hands it
//! in with the row. A writer announces its keys before the write ([`RowCache::writing`]) and holds
//! the result until the write has ended.
//!
//! **Invariants.**
//! - A row is remembered only if no write of a key in its shard is under way and none has begun or
//!   ended since the reader's moment. A write of another key in the same shard has the same effect:
//!   it costs an entry, never freshness.
//! - The beginning of a write removes the written keys. Writes of other nodes are seen when the
//!   entry expires (`ttl`). A write that was given up is announced as ended, although the index may
//!   still carry it out: it counts as another node's.
//! - `bytes` of a shard is the sum of the costs of its rows.
//!
//! **Locks.** One lock for each shard. At most one of them is held at a time, for no await, and no
//! other lock is taken under it. The counter is atomic and is advanced before the shard is locked.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use super::Record;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::Mutex;

/// The number of shards. (One under a scheduler: the shard of a key depends on a random hash, and
/// schedules must repeat.)
const SHARDS: usize = if cfg!(shuttle) { 1 } else { 64 };
/// Memory of a row beside its texts (bytes): the entry with its links, its place in the table, and
/// the allocator's overhead.
const ENTRY_BYTES: usize = 224;

/// A cache of rows. See the module.
pub(super) struct RowCache {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    /// The number of beginnings and ends of writes so far.
    writes: AtomicU64,
    ttl: Duration,
    shard_bytes: usize,
}

struct Shard {
    rows: LruCache<Box<str>, Entry>,
    bytes: usize,
    /// Writes of keys of this shard that are under way.
    writers: usize,
    /// The counter at the last beginning or end of such a write.
    written: u64,
}

struct Entry {
    record: Record,
    until: Instant,
}

/// A point in the sequence of this node's writes.
#[derive(Debug, Clone, Copy)]
pub struct Moment(u64);

fn cost(key: &str, record: &Record) -> usize {
    let patch = record.patch_id.as_ref().map_or(0, String::len);
    ENTRY_BYTES + key.len() + record.blob_id.len() + patch
}

impl Shard {
    fn begin(&mut self, now: u64) {
        self.writers += 1;
        self.written = self.written.max(now);
    }

    fn end(&mut self, now: u64) {
        self.writers -= 1;
        self.written = self.written.max(now);
    }

    fn remove(&mut self, key: &str) {
        if let Some((key, entry)) = self.rows.pop_entry(key) {
            self.bytes -= cost(&key, &entry.record);
        }
    }
}

impl RowCache {
    /// Remembers rows for `ttl`, in at most about `bytes` of memory. A `ttl` of zero remembers
    /// nothing.
    pub fn new(ttl: Duration, bytes: usize) -> Self {
        let shard = || {
            Mutex::new(Shard {
                rows: LruCache::unbounded(),
                bytes: 0,
                writers: 0,
                written: 0,
            })
        };
        RowCache {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            hasher: RandomState::new(),
            writes: AtomicU64::new(0),
            ttl,
            shard_bytes: bytes / SHARDS,
        }
    }

    fn shard(&self, key: &str) -> &Mutex<Shard> {
        let hash = self.hasher.hash_one(key);
        &self.shards[hash as usize % SHARDS]
    }

    /// The row of a key, if it is remembered.
    pub fn get(&self, key: &str) -> Option<Record> {
        if self.ttl.is_zero() {
            return None;
        }
        let mut shard = self.shard(key).lock();
        let entry = shard.rows.get(key)?;
        if entry.until > Instant::now() {
            return Some(entry.record.clone());
        }
        shard.remove(key);
        None
    }

    /// The present moment. A reader takes it before it reads rows that it may remember.
    pub fn moment(&self) -> Moment {
        Moment(self.writes.load(Ordering::SeqCst))
    }

    /// Remembers a row that was read after `since`, unless its key may have been written meanwhile.
    pub fn remember(&self, since: Moment, key: &str, record: &Record) {
        // A row that a Go node has staged is about to move.
        if self.ttl.is_zero() || record.staged {
            return;
        }
        let until = Instant::now() + self.ttl;
        let mut shard = self.shard(key).lock();
        if shard.writers > 0 || shard.written > since.0 {
            return;
        }
        shard.remove(key);
        shard.bytes += cost(key, record);
        let record = record.clone();
        shard.rows.put(key.into(), Entry { record, until });
        while shard.bytes > self.shard_bytes {
            match shard.rows.pop_lru() {
                Some((key, entry)) => shard.bytes -= cost(&key, &entry.record),
                None => break,
            }
        }
    }

    /// Forgets a key. A row of it that is being read now is not remembered either.
    pub fn forget(&self, key: &str) {
        drop(self.writing([key].into_iter()));
    }

    fn tick(&self) -> u64 {
        self.writes.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Announces a write: forgets the keys, and remembers nothing about them while the result
    /// lives. The caller drops it when the write has ended.
    pub fn writing<'a, K>(&'a self, keys: K) -> Writing<'a, K>
    where
        K: Iterator<Item = &'a str> + Clone,
    {
        let now = self.tick();
        for key in keys.clone() {
            let mut shard = self.shard(key).lock();
            shard.begin(now);
            shard.remove(key);
        }
        Writing { cache: self, keys }
    }

    /// As [`writing`](Self::writing), for all keys whose rows point into a blob.
    pub fn writing_blob(&self, blob_id: &str) -> WritingAll<'_> {
        let now = self.tick();
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.begin(now);
            let mut keys: Vec<Box<str>> = Vec::new();
            for (key, entry) in &shard.rows {
                if entry.record.blob_id == blob_id {
                    keys.push(key.clone());
                }
            }
            keys.iter().for_each(|key| shard.remove(key));
        }
        WritingAll(self)
    }
}

/// A write under way. The writer drops it when the write is over, with or without success.
pub(super) struct Writing<'a, K: Iterator<Item = &'a str> + Clone> {
    cache: &'a RowCache,
    keys: K,
}

impl<'a, K: Iterator<Item = &'a str> + Clone> Drop for Writing<'a, K> {
    fn drop(&mut self) {
        let now = self.cache.tick();
        for key in self.keys.clone() {
            self.cache.shard(key).lock().end(now);
        }
    }
}

/// A write under way of keys that are not known by name. It counts for every shard.
pub(super) struct WritingAll<'a>(&'a RowCache);

impl Drop for WritingAll<'_> {
    fn drop(&mut self) {
        let now = self.0.tick();
        for shard in &self.0.shards {
            shard.lock().end(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    fn record(blob: &str) -> Record {
        Record {
            blob_id: blob.to_owned(),
            size: 7,
            ..Record::default()
        }
    }

    fn cache() -> RowCache {
        RowCache::new(TTL, 1 << 20)
    }

    fn known(cache: &RowCache, key: &str) -> Option<String> {
        cache.get(key).map(|r| r.blob_id)
    }

    #[tokio::test(start_paused = true)]
    async fn rows_are_forgotten_in_time() {
        let cache = cache();
        cache.remember(cache.moment(), "/a", &record("b"));
        tokio::time::advance(TTL - Duration::from_millis(1)).await;
        assert_eq!(known(&cache, "/a").as_deref(), Some("b"));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(known(&cache, "/a"), None);
        assert_eq!(cache.shard("/a").lock().bytes, 0);
    }

    #[test]
    fn what_was_read_before_a_write_ended_is_not_remembered() {
        let cache = cache();
        let before = cache.moment();
        let writing = cache.writing(["/a"].into_iter());
        cache.remember(before, "/a", &record("old"));
        let during = cache.moment();
        cache.remember(during, "/a", &record("old"));
        assert_eq!(known(&cache, "/a"), None);
        drop(writing);
        cache.remember(before, "/a", &record("old"));
        cache.remember(during, "/a", &record("old"));
        assert_eq!(known(&cache, "/a"), None);
        cache.remember(cache.moment(), "/a", &record("new"));
        assert_eq!(known(&cache, "/a").as_deref(), Some("new"));
        // Two writes at once: the end of one is not the end of both.
        let (one, two) = (
            cache.writing(["/a"].into_iter()),
            cache.writing(["/a"].into_iter()),
        );
        assert_eq!(known(&cache, "/a"), None);
        drop(one);
        cache.remember(cache.moment(), "/a", &record("old"));
        assert_eq!(known(&cache, "/a"), None);
        drop(two);
        cache.remember(cache.moment(), "/a", &record("new"));
        assert!(cache.get("/a").is_some());
    }

    #[test]
    fn what_was_read_before_forgetting_is_not_remembered() {
        let cache = cache();
        let before = cache.moment();
        cache.remember(before, "/a", &record("old"));
        cache.forget("/a");
        cache.remember(before, "/a", &record("old"));
        assert_eq!(known(&cache, "/a"), None);
    }

    #[test]
    fn a_blob_that_changes_is_forgotten() {
        let cache = cache();
        for n in 0..200 {
            let blob = if n % 2 == 0 { "even" } else { "odd" };
            cache.remember(cache.moment(), &format!("/{n}"), &record(blob));
        }
        let before = cache.moment();
        drop(cache.writing_blob("even"));
        for n in 0..200 {
            assert_eq!(cache.get(&format!("/{n}")).is_some(), n % 2 == 1, "{n}");
        }
        cache.remember(before, "/0", &record("even"));
        assert!(cache.get("/0").is_none());
    }

    #[test]
    fn memory_is_bounded_and_the_longest_unused_goes() {
        let bytes = SHARDS * 10 * (ENTRY_BYTES + 8);
        let cache = RowCache::new(TTL, bytes);
        for n in 0..100_000 {
            cache.remember(cache.moment(), "/used", &record("b"));
            assert!(cache.get("/used").is_some());
            cache.remember(cache.moment(), &format!("/{n}"), &record("b"));
        }
        let held: usize = cache.shards.iter().map(|s| s.lock().bytes).sum();
        assert!(held <= bytes && held > bytes / 2, "{held} of {bytes}");
        assert!(cache.get("/used").is_some());
        // A row larger than a shard is not remembered, and no shard exceeds its bound.
        let huge = "k".repeat(bytes);
        cache.remember(cache.moment(), &huge, &record("b"));
        assert!(cache.get(&huge).is_none());
    }

    #[test]
    fn nothing_is_remembered_for_no_time_nor_of_what_is_staged() {
        let off = RowCache::new(Duration::ZERO, 1 << 20);
        off.remember(off.moment(), "/a", &record("b"));
        assert!(off.get("/a").is_none());
        let cache = cache();
        let staged = Record {
            staged: true,
            ..record("")
        };
        cache.remember(cache.moment(), "/a", &staged);
        assert!(cache.get("/a").is_none());
    }
}

#[cfg(all(test, shuttle))]
mod schedules {
    use std::sync::Arc;

    use super::*;
    use crate::schedules::{below, explore};
    use shuttle::thread;

    /// Writers, of a key or of a whole blob, and readers that remember the rows they read: after a
    /// write no older row is remembered, neither for the writer at once nor for any reader in the
    /// end.
    #[test]
    fn nothing_older_than_a_write_is_remembered() {
        explore(8_000, || {
            let cache = Arc::new(RowCache::new(Duration::from_secs(3600), 1 << 20));
            let index = Arc::new(AtomicU64::new(0));
            let known = |cache: &RowCache| cache.get("/a").map(|row| row.offset as u64);
            let mut threads = Vec::new();
            for _ in 0..2 {
                let (cache, index, blob) = (Arc::clone(&cache), Arc::clone(&index), below(3) == 0);
                threads.push(thread::spawn(move || {
                    for _ in 0..2 {
                        let written = if blob {
                            let _writing = cache.writing_blob("b");
                            index.fetch_add(1, Ordering::SeqCst) + 1
                        } else {
                            let _writing = cache.writing(["/a"].into_iter());
                            index.fetch_add(1, Ordering::SeqCst) + 1
                        };
                        assert!(known(&cache).is_none_or(|row| row >= written), "an old row");
                    }
                }));
            }
            for _ in 0..2 {
                let (cache, index) = (Arc::clone(&cache), Arc::clone(&index));
                threads.push(thread::spawn(move || {
                    for _ in 0..2 {
                        let since = cache.moment();
                        let row = Record {
                            blob_id: "b".to_owned(),
                            offset: index.load(Ordering::SeqCst) as i64,
                            ..Record::default()
                        };
                        cache.remember(since, "/a", &row);
                    }
                }));
            }
            for thread in threads {
                thread.join().unwrap();
            }
            let newest = index.load(Ordering::SeqCst);
            assert!(
                known(&cache).is_none_or(|row| row == newest),
                "an old row stays"
            );
        });
    }
}
