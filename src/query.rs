//! Listing keys and values, page by page. No lock, transaction or cursor is held between pages,
//! so Kubo may delete while it lists (its garbage collection does).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use tokio::task::JoinHandle;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::datastore::Shared;
use crate::error::{caught, Error, ErrorKind, Result};
use crate::index::ListItem;

/// The first page is small so that the first row comes soon, later ones are large.
const FIRST_PAGE: usize = 64;
const LATER_PAGES: usize = 2048;
/// Values of a page are bounded in number and bytes, and read this many at a time.
const VALUES_PER_PAGE: usize = 64;
const VALUE_BYTES_PER_PAGE: i64 = 8 << 20;
const PARALLEL_READS: usize = 16;

/// What to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueryOptions {
    /// Only keys strictly below this one, in the sense of paths: `/a` lists `/a/b`, not `/a` nor
    /// `/ab`. Empty or `/` lists everything.
    pub prefix: String,
    /// Leave values out: no aggregator is asked.
    pub keys_only: bool,
    /// Skip this many first.
    pub offset: u64,
    /// At most this many; `None` = all.
    pub limit: Option<u64>,
}

/// One listed key.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key, as put.
    pub key: String,
    /// Size of the value (bytes).
    pub size: u64,
    /// Estimate of the end of storage.
    pub expires_at: Option<SystemTime>,
    /// The value, unless only keys were asked for. A value that cannot be read is its entry's
    /// own error; the listing goes on.
    pub value: Option<Result<Bytes>>,
}

/// A running listing; dropping it ends it.
pub struct Query {
    shared: Arc<Shared>,
    prefix: String,
    keys_only: bool,
    skip: u64,
    left: u64,
    rows: VecDeque<ListItem>,
    /// The next page of rows, on its way while the present one is consumed.
    ahead: Option<JoinHandle<Result<Vec<ListItem>>>>,
    /// The last key of the pages that came in, and the rows to ask for next.
    after: Option<String>,
    page_size: usize,
    ended: bool,
    _call: TaskTrackerToken,
}

impl Query {
    pub(crate) fn new(shared: Arc<Shared>, call: TaskTrackerToken, options: QueryOptions) -> Self {
        Query {
            shared,
            prefix: child_prefix(&options.prefix),
            keys_only: options.keys_only,
            skip: options.offset,
            left: options.limit.unwrap_or(u64::MAX),
            rows: VecDeque::new(),
            ahead: None,
            after: None,
            page_size: FIRST_PAGE,
            ended: false,
            _call: call,
        }
    }

    /// The next entries in key order; none left = the end. After an error the same page may be
    /// asked for again.
    ///
    /// # Errors
    /// [`ErrorKind::Index`](crate::ErrorKind::Index).
    pub async fn next_page(&mut self) -> Result<Vec<Entry>> {
        loop {
            if self.left == 0 {
                return Ok(Vec::new());
            }
            if self.rows.is_empty() {
                if self.ended {
                    return Ok(Vec::new());
                }
                self.fetch_rows().await?;
            }
            let skipped = self.skip.min(self.rows.len() as u64);
            self.rows.drain(..skipped as usize);
            self.skip -= skipped;
            if !self.rows.is_empty() {
                break;
            }
        }
        // Rows leave the queue only with their entries: a caller who gave up may ask again.
        let count = self.rows_of_next_page();
        let rows: Vec<ListItem> = self.rows.iter().take(count).cloned().collect();
        let entries = if self.keys_only {
            rows.into_iter().map(|row| entry(row, None)).collect()
        } else {
            self.with_values(rows).await
        };
        self.rows.drain(..count);
        self.left -= count as u64;
        Ok(entries)
    }

    async fn with_values(&self, rows: Vec<ListItem>) -> Vec<Entry> {
        let read = |row: ListItem| async move {
            // Deleted since it was listed: it is no longer part of the answer.
            let value = self.shared.get(&row.key).await.transpose()?;
            Some(entry(row, Some(value)))
        };
        stream::iter(rows)
            .map(read)
            .buffered(PARALLEL_READS)
            .filter_map(std::future::ready)
            .collect()
            .await
    }

    /// Brings the next page of rows in and starts the one after it.
    async fn fetch_rows(&mut self) -> Result<()> {
        let page = match &mut self.ahead {
            Some(page) => page,
            None => self.ahead.insert(self.start_page()),
        };
        let rows = page.await;
        self.ahead = None;
        let rows =
            rows.map_err(|e| Error::new(ErrorKind::Internal, format!("listing failed: {e}")))??;
        match rows.last() {
            Some(last) if rows.len() == self.page_size => {
                self.after = Some(last.key.clone());
                self.page_size = LATER_PAGES;
                self.ahead = Some(self.start_page());
            }
            _ => self.ended = true,
        }
        self.rows = rows.into();
        Ok(())
    }

    fn start_page(&self) -> JoinHandle<Result<Vec<ListItem>>> {
        let index = Arc::clone(&self.shared.index);
        let prefix = self.prefix.clone();
        let after = self.after.clone();
        let limit = self.page_size;
        tokio::spawn(async move { caught(index.list(&prefix, after.as_deref(), limit)).await })
    }

    fn rows_of_next_page(&self) -> usize {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        if self.keys_only {
            return most.min(self.rows.len());
        }
        let mut bytes = 0i64;
        let mut n = 0;
        for row in self.rows.iter().take(VALUES_PER_PAGE.min(most)) {
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

fn entry(row: ListItem, value: Option<Result<Bytes>>) -> Entry {
    Entry {
        key: row.key,
        size: u64::try_from(row.size).unwrap_or(0),
        expires_at: row.expires_at,
        value,
    }
}

/// What the keys below `prefix` start with.
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
