//! Blocks that move from one blob to another.
//!
//! **Invariants.**
//! - The new blob is certified, and a part of it was read back, before the first row points at it.
//! - A row is moved only if it still points at the old blob: a deletion or a put that came between
//!   stays as it is.

use std::collections::BTreeMap;
use std::future::Future;

use bytes::Bytes;

use super::format::Parcel;
use super::{InMemory, Pack, Sent, Uploader};
use crate::error::{caught, ErrorKind, Result};
use crate::index::KeyRecord;
use crate::walrus::Body;

/// A block on its way to another blob.
pub(crate) struct Carried {
    pub(crate) key: String,
    pub(crate) value: Bytes,
    /// The blob at which its row points.
    pub(crate) from: String,
    pub(crate) is_dag_pb: bool,
}

impl Parcel for Carried {
    fn key(&self) -> &str {
        &self.key
    }

    fn len(&self) -> u64 {
        self.value.len() as u64
    }

    fn is_dag_pb(&self) -> bool {
        self.is_dag_pb
    }

    fn append_to(&self, body: &mut Body) {
        body.push(self.value.clone());
    }
}

impl InMemory for Carried {
    fn value(&self) -> &Bytes {
        &self.value
    }
}

impl Uploader {
    /// Stores blocks in new packs, and points their rows at these. `paced` is told the bytes of
    /// each pack and waited for before the pack is sent; `stored` is told each pack that is stored
    /// and was read back, before its rows move.
    ///
    /// # Errors
    /// Those of the store and of the index. [`ErrorKind::TooLarge`]: no publisher takes one of the
    /// blocks, even by itself; all the others were stored.
    pub(crate) async fn carry<F: Future<Output = ()>>(
        &self,
        blocks: Vec<Carried>,
        paced: impl Fn(u64) -> F,
        mut stored: impl FnMut(&Pack),
    ) -> Result<()> {
        let mut stack = self.format.parts(blocks);
        let mut too_large = None;
        while let Some(mut blocks) = stack.pop() {
            paced(blocks.iter().map(Parcel::len).sum()).await;
            let permit = self.limit.acquire().await;
            let sent = self.store_unless_paid(&blocks).await;
            drop(permit);
            failpoint!("repack.stored");
            match sent {
                Sent::Stored(pack) => {
                    let read_back = self.read_back(&pack, &blocks);
                    read_back.await.map_err(|e| {
                        let id = pack.blob_id();
                        e.context(format!(
                            "blob {id} is stored and paid for, but cannot be read back"
                        ))
                    })?;
                    failpoint!("repack.read_back");
                    stored(&pack);
                    self.move_rows(&pack, &blocks).await?;
                    failpoint!("repack.moved");
                }
                Sent::TooLarge(at) => {
                    let rest = blocks.split_off(at);
                    stack.push(rest);
                    stack.push(blocks);
                }
                Sent::Failed(e) => match (e.kind(), &*blocks) {
                    // It does not hold up the others.
                    (ErrorKind::TooLarge, [block]) => {
                        let text = format!("block {} by itself", block.key);
                        too_large.get_or_insert(e.context(text));
                    }
                    _ => return Err(e),
                },
            }
        }
        too_large.map_or(Ok(()), Err)
    }

    async fn move_rows(&self, pack: &Pack, blocks: &[Carried]) -> Result<()> {
        let mut by_blob: BTreeMap<&str, Vec<KeyRecord>> = BTreeMap::new();
        for (block, row) in blocks.iter().zip(pack.rows(blocks)) {
            by_blob.entry(&block.from).or_default().push(row);
        }
        let mut entry = pack.entry().clone();
        for (from, rows) in by_blob {
            caught(self.index.move_to(from, &entry, &rows)).await?;
            // The price was noted with the first of them.
            entry.cost = 0;
        }
        Ok(())
    }
}
