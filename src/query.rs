//! Lists keys and values, page by page. No lock, transaction or cursor is held between pages, so
//! Kubo may delete while it lists (its garbage collection does).

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tokio::task::JoinHandle;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error::{caught, Error, ErrorKind, Result};
use crate::index::{KeyRange, ListItem};

/// The first page is small so that the first row comes soon. Each later one is larger, up to a size
/// at which the round trip no longer counts. At most three of these are held (some 3 MiB).
const FIRST_PAGE: usize = 64;
const LARGEST_PAGE: usize = 8192;
const GROWTH: usize = 8;
/// Most rows skipped by one statement; this bounds its time.
const SKIP: usize = 16_384;
/// Values of a page. A page is bounded in number and bytes of values, which are read this many at a
/// time.
const VALUES_PER_PAGE: usize = 64;
const VALUE_BYTES_PER_PAGE: i64 = 8 << 20;
const PARALLEL_READS: usize = 16;

/// A condition on a key. Keys compare by their bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyCondition {
    /// The key equals this one.
    Equal(String),
    /// The key does not equal this one.
    NotEqual(String),
    /// The key comes before this one.
    Less(String),
    /// The key comes before this one or equals it.
    LessOrEqual(String),
    /// The key comes after this one.
    Greater(String),
    /// The key comes after this one or equals it.
    GreaterOrEqual(String),
    /// The key starts with this text, byte by byte: `/a` matches `/a` and `/ab`.
    StartsWith(String),
}

/// The options of a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueryOptions {
    /// Only keys strictly below this one, in the sense of paths: `/a` lists `/a/b`, not `/a` nor
    /// `/ab`. Empty or `/` lists everything.
    pub prefix: String,
    /// Only keys that fulfil all of these conditions.
    pub conditions: Vec<KeyCondition>,
    /// Whether to list from the last key to the first.
    pub descending: bool,
    /// Whether to leave values out: no aggregator is asked.
    pub keys_only: bool,
    /// With `keys_only`: whether sizes and expirations may be left out, too; entries may have 0 and
    /// `None`. Such a listing is many times faster.
    pub without_sizes: bool,
    /// Number of entries to skip first.
    pub offset: u64,
    /// Most entries to list; `None` = all.
    pub limit: Option<u64>,
}

setters! { QueryOptions {
    with_prefix(prefix: impl Into<String>);
    with_conditions(conditions: Vec<KeyCondition>);
    with_descending(descending: bool);
    with_keys_only(keys_only: bool);
    without_sizes(without_sizes: bool);
    with_offset(offset: u64);
    with_limit(limit: Option<u64>);
} }

impl QueryOptions {
    /// The keys to list, as a range of the index.
    fn range(&self) -> KeyRange {
        let mut range = KeyRange::prefix(&child_prefix(&self.prefix));
        for condition in &self.conditions {
            range = match condition.clone() {
                KeyCondition::Equal(key) => range
                    .from(Bound::Included(key.clone()))
                    .to(Bound::Included(key)),
                KeyCondition::NotEqual(key) => range.except(key),
                KeyCondition::Less(key) => range.to(Bound::Excluded(key)),
                KeyCondition::LessOrEqual(key) => range.to(Bound::Included(key)),
                KeyCondition::Greater(key) => range.from(Bound::Excluded(key)),
                KeyCondition::GreaterOrEqual(key) => range.from(Bound::Included(key)),
                KeyCondition::StartsWith(prefix) => range.starting_with(&prefix),
            };
        }
        range.descending = self.descending;
        range.keys_alone = self.keys_only && self.without_sizes;
        range
    }
}

/// One listed key.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Entry {
    /// The key, as put.
    pub key: String,
    /// Size of the value (bytes); 0 if it was not needed.
    pub size: u64,
    /// Estimate of the end of storage.
    pub expires_at: Option<SystemTime>,
    /// The value, unless only keys were asked for. An error in reading a value is its entry's own;
    /// the listing goes on.
    pub value: Option<Result<Bytes>>,
}

/// The contents that a listing reads: the journal and the index.
#[async_trait]
pub(crate) trait Contents: Send + Sync {
    /// The first `limit` keys of `range` in the journal.
    fn list_staged(&self, range: &KeyRange, limit: usize) -> Vec<ListItem>;
    /// `limit` keys of `range` in the index, without the first `skip`.
    async fn list_indexed(
        &self,
        range: &KeyRange,
        skip: usize,
        limit: usize,
    ) -> Result<Vec<ListItem>>;
    /// The value of a key; it may keep more memory than its own bytes alive.
    async fn value(&self, key: &str) -> Result<Option<Bytes>>;
}

/// A running listing; dropping it ends it.
pub struct Query {
    contents: Arc<dyn Contents>,
    keys_only: bool,
    rows: VecDeque<ListItem>,
    /// The next page of rows, on its way while the present one is consumed.
    ahead: Option<JoinHandle<Result<Vec<ListItem>>>>,
    next: NextPage,
    _call: TaskTrackerToken,
}

/// The part of the listing that has not been requested from the index yet.
#[derive(Debug, Clone)]
struct NextPage {
    range: KeyRange,
    skip: u64,
    /// Most rows to list, after the skipped ones.
    left: u64,
    rows: usize,
    ended: bool,
}

impl NextPage {
    /// The numbers of rows that one statement skips and reads. To skip more than one statement may,
    /// a step reads a row and the next step goes on behind it.
    fn step(&self) -> (usize, usize) {
        match usize::try_from(self.skip) {
            Ok(skip) if skip <= SKIP => {
                let left = usize::try_from(self.left).unwrap_or(usize::MAX);
                (skip, self.rows.min(left))
            }
            _ => (SKIP - 1, 1),
        }
    }

    /// Advances behind the rows that a step has read; returns those that the caller is to see.
    fn behind(&mut self, rows: Vec<ListItem>) -> Vec<ListItem> {
        let (_, asked) = self.step();
        let skipping = self.skip > SKIP as u64;
        if !skipping {
            self.left -= rows.len() as u64;
        }
        self.ended = rows.len() < asked || self.left == 0;
        if let Some(last) = rows.last() {
            self.range = self.range.clone().after(last.key.as_str());
        }
        if skipping {
            self.skip -= SKIP as u64;
            Vec::new()
        } else {
            self.skip = 0;
            self.rows = (self.rows * GROWTH).min(LARGEST_PAGE);
            rows
        }
    }
}

impl Query {
    pub(crate) fn new(
        contents: Arc<dyn Contents>,
        call: TaskTrackerToken,
        options: QueryOptions,
    ) -> Self {
        let left = options.limit.unwrap_or(u64::MAX);
        Query {
            contents,
            keys_only: options.keys_only,
            rows: VecDeque::new(),
            ahead: None,
            next: NextPage {
                range: options.range(),
                skip: options.offset,
                left,
                rows: FIRST_PAGE,
                ended: left == 0,
            },
            _call: call,
        }
    }

    /// The next entries; none = the end. After an error the same page may be asked for again.
    ///
    /// # Errors
    /// [`ErrorKind::Index`].
    pub async fn next_page(&mut self) -> Result<Vec<Entry>> {
        loop {
            while self.rows.is_empty() {
                if self.next.ended {
                    return Ok(Vec::new());
                }
                self.fetch_rows().await?;
            }
            // Rows leave the queue only with their entries, so that a caller that gave up may ask
            // again.
            let count = self.rows_of_next_page();
            let rows: Vec<ListItem> = self.rows.iter().take(count).cloned().collect();
            let entries = if self.keys_only {
                rows.into_iter().map(|row| entry(row, None)).collect()
            } else {
                self.with_values(rows).await
            };
            self.rows.drain(..count);
            // An empty page means the end, so it must not be returned when all of these entries
            // were deleted meanwhile.
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
    }

    async fn with_values(&self, rows: Vec<ListItem>) -> Vec<Entry> {
        let read = |row: ListItem| async move {
            // The key was deleted since it was listed, so it is no longer part of the answer.
            let value = self.contents.value(&row.key).await.transpose()?;
            Some(entry(row, Some(value.map(owned))))
        };
        stream::iter(rows)
            .map(read)
            .buffered(PARALLEL_READS)
            .filter_map(std::future::ready)
            .collect()
            .await
    }

    /// Adds the next rows to the queue and starts the page after them.
    async fn fetch_rows(&mut self) -> Result<()> {
        let page = match &mut self.ahead {
            Some(page) => page,
            None => self.ahead.insert(self.start_page()),
        };
        let rows = page.await;
        self.ahead = None;
        let rows =
            rows.map_err(|e| Error::new(ErrorKind::Internal, format!("listing failed: {e}")))??;
        self.rows = self.next.behind(rows).into();
        if !self.next.ended {
            self.ahead = Some(self.start_page());
        }
        Ok(())
    }

    fn start_page(&self) -> JoinHandle<Result<Vec<ListItem>>> {
        let contents = Arc::clone(&self.contents);
        let range = self.next.range.clone();
        let (skip, rows) = self.next.step();
        tokio::spawn(async move { caught(list(&*contents, &range, skip, rows)).await })
    }

    fn rows_of_next_page(&self) -> usize {
        if self.keys_only {
            return self.rows.len();
        }
        let mut bytes = 0i64;
        let mut n = 0;
        for row in self.rows.iter().take(VALUES_PER_PAGE) {
            bytes = bytes.saturating_add(row.size.max(0));
            if n > 0 && bytes > VALUE_BYTES_PER_PAGE {
                break;
            }
            n += 1;
        }
        n
    }
}

impl Drop for Query {
    fn drop(&mut self) {
        if let Some(page) = &self.ahead {
            page.abort();
        }
    }
}

/// A page of the keys that index and journal hold together.
async fn list(
    contents: &dyn Contents,
    range: &KeyRange,
    skip: usize,
    rows: usize,
) -> Result<Vec<ListItem>> {
    // The journal is read first: a row that leaves it meanwhile is in the index by then.
    let staged = contents.list_staged(range, skip + rows);
    if staged.is_empty() {
        return contents.list_indexed(range, skip, rows).await;
    }
    let indexed = contents.list_indexed(range, 0, skip + rows).await?;
    let all = merge(staged, indexed, range.descending);
    Ok(all.skip(skip).take(rows).collect())
}

/// Merges two listings of the same order; of a key in both, the entry of the first one counts.
fn merge(
    first: Vec<ListItem>,
    second: Vec<ListItem>,
    descending: bool,
) -> impl Iterator<Item = ListItem> {
    let mut first = first.into_iter().peekable();
    let mut second = second.into_iter().peekable();
    std::iter::from_fn(move || {
        let order = match (first.peek(), second.peek()) {
            (Some(a), Some(b)) if descending => b.key.cmp(&a.key),
            (Some(a), Some(b)) => a.key.cmp(&b.key),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        match order {
            Ordering::Less => first.next(),
            Ordering::Greater => second.next(),
            Ordering::Equal => {
                second.next();
                first.next()
            }
        }
    })
}

/// The value in memory of its own, without the larger piece that it may be a part of: a page of
/// values must not keep a window in memory for each.
pub(crate) fn owned(value: Bytes) -> Bytes {
    if value.is_unique() {
        value
    } else {
        Bytes::copy_from_slice(&value)
    }
}

fn entry(row: ListItem, value: Option<Result<Bytes>>) -> Entry {
    Entry {
        key: row.key,
        size: u64::try_from(row.size).unwrap_or(0),
        expires_at: row.expires_at,
        value,
    }
}

/// The text with which the keys below `prefix` start.
fn child_prefix(prefix: &str) -> String {
    let path = prefix.trim_end_matches('/');
    if path.is_empty() {
        String::new()
    } else if path.starts_with('/') {
        format!("{path}/")
    } else {
        format!("/{path}/")
    }
}

#[cfg(test)]
mod tests {
    use super::child_prefix;

    #[test]
    fn children_of_a_prefix() {
        for (prefix, children) in [
            ("", ""),
            ("/", ""),
            ("/a", "/a/"),
            ("/a/", "/a/"),
            ("a", "/a/"),
        ] {
            assert_eq!(child_prefix(prefix), children);
        }
    }
}
