//! The pass that counts the blocks of every blob, a page at a time.
//!
//! **Problem.** The count of a page reads all rows of its blobs, which takes seconds on a large
//! table. On the only connection that writes, puts and deletions would wait for it.
//!
//! **Outline.** A connection for reading counts a page, in one statement: the page is the state of
//! one moment. A short transaction then notes the counts on the entries.
//!
//! **Invariants.** Rows and entries may change between the two.
//! - A count is noted only on the entry that was seen with it: every store and every change of
//!   state moves [`state_since`](crate::index::Blob::state_since). What the rows of an older
//!   registration tell must not reach the entry of a newer one, whose blob may end earlier.
//! - An entry is released only if its blob has no row at the moment of the note, and a blob without
//!   rows gets no entry.

use std::time::SystemTime;

use rusqlite::params;

use super::{to_micros, SqliteIndex};
use crate::error::Result;

/// What the rows of a blob tell.
struct Counted {
    blob_id: String,
    blocks: i64,
    bytes: i64,
    deletable: bool,
    end_epoch: i64,
    /// In microseconds.
    expires_at: Option<i64>,
    /// The moment since which its entry has its state, in microseconds; `None` without an entry.
    state_since: Option<i64>,
}

/// A page of the pass.
pub(super) struct Page {
    after: String,
    counted: Vec<Counted>,
    /// The last blob of a page after which there may be more.
    last: Option<String>,
}

impl SqliteIndex {
    /// Counts the rows of the `limit` blobs after one.
    pub(super) async fn count_page(&self, after: &str, limit: usize) -> Result<Page> {
        let pass = self.gate.enter()?;
        let after = after.to_owned();
        let most = i64::try_from(limit).unwrap_or(i64::MAX);
        let what = "counting the blocks of all blobs";
        self.read(what, pass, move |connection, sql| {
            let mut page = connection.prepare_cached(&sql.ledger.counted_page)?;
            let rows = page.query_map(params![after, most], |row| {
                Ok(Counted {
                    blob_id: row.get(0)?,
                    blocks: row.get(1)?,
                    bytes: row.get(2)?,
                    deletable: row.get(3)?,
                    end_epoch: row.get(4)?,
                    expires_at: row.get(5)?,
                    state_since: row.get(6)?,
                })
            })?;
            let counted = rows.collect::<rusqlite::Result<Vec<Counted>>>()?;
            let last = counted.last().filter(|_| counted.len() >= limit);
            let last = last.map(|blob| blob.blob_id.clone());
            Ok(Page {
                after,
                counted,
                last,
            })
        })
        .await
    }

    /// Notes the counts of a page. Returns its last blob; `None` at the end.
    pub(super) async fn note_counts(&self, page: Page) -> Result<Option<String>> {
        let pass = self.gate.enter()?;
        let what = "noting the counts of blobs";
        self.write(what, pass, move |connection, sql| {
            let now = to_micros(SystemTime::now());
            let mut count = connection.prepare_cached(&sql.ledger.count)?;
            for blob in &page.counted {
                count.execute(params![
                    blob.blob_id,
                    blob.blocks,
                    blob.bytes,
                    blob.deletable,
                    blob.end_epoch,
                    blob.expires_at,
                    now,
                    blob.state_since,
                ])?;
            }
            connection
                .prepare_cached(&sql.ledger.empty)?
                .execute(params![page.after, page.last, now])?;
            Ok(page.last)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::future::{poll_fn, Future};
    use std::pin::Pin;
    use std::sync::mpsc;
    use std::task::Poll;

    use super::super::SqliteOptions;
    use super::*;
    use crate::index::{Blob, BlobState, KeyRecord, Ledger as _, Record, Rows as _, Usage};

    async fn index() -> (tempfile::TempDir, SqliteIndex) {
        let dir = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(dir.path().join("index"), "t");
        let index = SqliteIndex::open(options).await.unwrap();
        (dir, index)
    }

    fn row(key: &str, blob: &str) -> KeyRecord {
        KeyRecord {
            key: key.to_owned(),
            record: Record::new(blob, 0, 5),
        }
    }

    fn blob(blob_id: &str, end_epoch: i64) -> Blob {
        Blob {
            blob_id: blob_id.to_owned(),
            object_id: format!("object that ends with {end_epoch}"),
            end_epoch,
            ..Blob::default()
        }
    }

    /// Whether a future has no result yet, after it was polled once.
    async fn waits(mut future: Pin<&mut impl Future>) -> bool {
        poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }

    async fn known(index: &SqliteIndex, blob_id: &str) -> Option<Blob> {
        let known = index.blobs(&[blob_id.to_owned()]).await.unwrap();
        known.into_iter().next().flatten()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_write_goes_on_while_a_page_is_counted() {
        let (_dir, index) = index().await;
        index.put(&row("/a", "a")).await.unwrap();
        // Every thread for reading is held up, and with it the count.
        let (held, release) = mpsc::channel::<()>();
        let release = std::sync::Arc::new(parking_lot::Mutex::new(release));
        let readers = super::super::readers::THREADS;
        let mut reads = Vec::new();
        for _ in 0..readers {
            let release = std::sync::Arc::clone(&release);
            let pass = index.gate.enter().unwrap();
            let wait = move |_: &rusqlite::Connection| {
                let _ = release.lock().recv();
                Ok(())
            };
            let mut read = Box::pin(index.inner.readers.run("waiting", pass, wait));
            assert!(waits(read.as_mut()).await);
            reads.push(read);
        }
        let mut counting = Box::pin(index.count("", 1024));
        assert!(waits(counting.as_mut()).await);
        index.put(&row("/b", "b")).await.unwrap();
        index.delete("/a").await.unwrap();
        assert!(waits(counting.as_mut()).await);
        drop(held);
        for read in reads {
            read.await.unwrap();
        }
        assert_eq!(counting.await.unwrap(), None);
        let live = known(&index, "b").await.unwrap().counted.unwrap().live;
        assert_eq!(live, Usage::new(1, 5));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_stored_while_a_page_is_counted_is_not_released() {
        let (_dir, index) = index().await;
        let anew = blob("anew", 5);
        index.place(&anew, &[row("/anew", "anew")]).await.unwrap();
        index.delete("/anew").await.unwrap();
        assert_eq!(index.count("", 9).await.unwrap(), None);
        let released = known(&index, "anew").await.unwrap();
        assert_eq!(released.state, BlobState::Released);

        let page = index.count_page("", 9).await.unwrap();
        let new = blob("new", 5);
        index.place(&new, &[row("/new", "new")]).await.unwrap();
        index.put(&row("/anew", "anew")).await.unwrap();
        index.note_counts(page).await.unwrap();
        for id in ["new", "anew"] {
            let known = known(&index, id).await.unwrap();
            assert_eq!(known.state, BlobState::Live, "{id}");
            assert_ne!(known.counted.map(|c| c.live), Some(Usage::new(1, 5)));
        }
        index.count("", 9).await.unwrap();
        for id in ["new", "anew"] {
            let counted = known(&index, id).await.unwrap().counted;
            assert_eq!(counted.unwrap().live, Usage::new(1, 5), "{id}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_older_count_tells_nothing_of_a_newer_registration() {
        let (_dir, index) = index().await;
        let mut old = row("/a", "a");
        old.record.end_epoch = 9;
        index.place(&blob("a", 9), &[old.clone()]).await.unwrap();
        index
            .place(&blob("gone", 9), &[row("/gone", "gone")])
            .await
            .unwrap();
        let page = index.count_page("", 9).await.unwrap();
        let ids = ["a", "gone"].map(str::to_owned);
        for key in ["/a", "/gone"] {
            index.delete(key).await.unwrap();
        }
        for state in [BlobState::Released, BlobState::Deleting] {
            assert_eq!(index.set_state(&ids, state).await.unwrap(), 2);
        }
        assert_eq!(index.forget_blobs(&ids[1..]).await.unwrap(), 1);
        let mut anew = row("/a", "a");
        anew.record.end_epoch = 3;
        index.place(&blob("a", 3), &[anew]).await.unwrap();
        index.note_counts(page).await.unwrap();
        let entry = known(&index, "a").await.unwrap();
        assert_eq!((entry.end_epoch, entry.state), (3, BlobState::Live));
        assert!(known(&index, "gone").await.is_none(), "it has no rows");
    }

    /// The last blob of a page may lose its rows between the read and the note.
    #[tokio::test(flavor = "multi_thread")]
    async fn the_last_blob_of_a_page_is_released_too() {
        let (_dir, index) = index().await;
        for id in ["a", "b", "c"] {
            index.put(&row(&format!("/{id}"), id)).await.unwrap();
        }
        let page = index.count_page("", 2).await.unwrap();
        index.delete("/b").await.unwrap();
        assert_eq!(index.note_counts(page).await.unwrap().as_deref(), Some("b"));
        let state = async |id: &str| known(&index, id).await.unwrap().state;
        assert_eq!(state("a").await, BlobState::Live);
        assert_eq!(state("b").await, BlobState::Released);
        assert_eq!(state("c").await, BlobState::Live);
    }
}
