//! Copying blocks from one side of a conversion to the other. A copy is made of what the other side
//! lacks alone, so a run that ended anywhere is carried on by another one.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use walrusds::admin::flatfs::Flatfs;
use walrusds::admin::import::{self, FlatfsBlocks, Source as _};
use walrusds::datastore::Inspection;
use walrusds::{Config, ErrorKind, Query, QueryOptions, WalrusDatastore};

use super::survey::{interrupted, Keys, Sum};
use super::RESUME;
use crate::context::Context;
use crate::exit::Failure;
use crate::progress::Unit;
use crate::work;

/// Blocks that are read from Walrus at the same time.
const READS: usize = 16;
/// Rows that are put into the order of their blobs before their blocks are read, so that neighbours
/// are read together.
const ORDERED: usize = 65_536;
/// Blocks, and bytes of them, that are written and synced together.
const SYNCED: (usize, u64) = (256, 32 << 20);
/// Rows that are looked up at a time.
const PAGE: usize = 1_000;

/// Opens the datastore to write to, without a journal and without tasks. Makes its tables if they
/// are missing.
async fn open(config: &Config, repo: &Path) -> Result<WalrusDatastore, Failure> {
    if let Ok(opened) = WalrusDatastore::open_beside(config.clone(), repo).await {
        return Ok(opened);
    }
    let mut bare = config.clone();
    (bare.journal, bare.disk_cache) = (None, None);
    bare.renew_interval = Duration::ZERO;
    WalrusDatastore::open(bare, repo).await?.close().await?;
    Ok(WalrusDatastore::open_beside(config.clone(), repo).await?)
}

/// Stores the blocks of a flatfs that the index does not have.
pub async fn to_walrus(
    context: &Context,
    config: &Config,
    repo: &Path,
    flatfs: &Flatfs,
) -> Result<import::Report, Failure> {
    let opened = open(config, repo);
    let store = context.or_stop(RESUME, opened).await?;
    let source = Box::new(FlatfsBlocks::new(flatfs.clone())?);
    let mut progress = context.progress("copying", Unit::Bytes);
    if let Some(total) = source.total_bytes() {
        progress.total(total);
    }
    let done = AtomicU64::new(0);
    let mut on = |at: &import::Progress| done.store(at.done.bytes, Relaxed);
    let options = import::Options::default();
    let work = import::import(&store, source, &options, &mut on, &context.stop);
    let at = || Some(done.load(Relaxed));
    work::attend(context, &store, progress, RESUME, at, work).await
}

/// What a copy to flatfs has found.
#[derive(Debug, Default)]
pub struct Copied {
    pub copied: Sum,
    /// What was there already.
    pub known: Sum,
    /// Blocks that no aggregator gives as their keys say.
    pub lost: Keys,
}

/// Writes the blocks of a datastore that a flatfs does not have. `checks`: files that are there
/// already are read and checked, and written again if they are wrong.
pub async fn to_flatfs(
    context: &Context,
    store: &Arc<WalrusDatastore>,
    look: &Inspection,
    flatfs: &Flatfs,
    total: u64,
    checks: bool,
) -> Result<Copied, Failure> {
    let mut progress = context.progress("copying", Unit::Bytes);
    progress.total(total);
    let mut copied = Copied::default();
    let mut writer = Writer {
        flatfs: flatfs.clone(),
        blocks: Vec::new(),
        bytes: 0,
    };
    let mut query = keys_of(store)?;
    loop {
        let mut missing = Vec::new();
        let mut ended = false;
        while missing.len() < ORDERED && !ended {
            interrupted(context)?;
            let page = query.next_page().await?;
            ended = page.is_empty();
            let keys = page.into_iter().map(|entry| entry.key).collect();
            let (there, lacking) = present(flatfs, keys, checks).await?;
            copied.known.blocks += there.blocks;
            copied.known.bytes += there.bytes;
            missing.extend(lacking);
            progress.at(copied.known.bytes + copied.copied.bytes);
        }
        let mut reads: VecDeque<Read> = VecDeque::new();
        let mut order = in_order(look, missing).await?.into_iter();
        loop {
            while reads.len() < READS {
                let Some(key) = order.next() else { break };
                let store = Arc::clone(store);
                let name = key.clone();
                reads.push_back((key, tokio::spawn(async move { store.get(&name).await })));
            }
            let Some((key, read)) = reads.pop_front() else {
                break;
            };
            interrupted(context)?;
            match read.await.map_err(|e| Failure::Failed(e.to_string()))? {
                Ok(Some(value)) => {
                    copied.copied.add(value.len() as u64);
                    writer.add(key, value).await?;
                    progress.at(copied.known.bytes + copied.copied.bytes);
                }
                // The running node has removed it meanwhile.
                Ok(None) => {}
                Err(e) if matches!(e.kind(), ErrorKind::BlobNotFound | ErrorKind::Corrupt) => {
                    progress.say(&format!("{key}: {e}"));
                    copied.lost.add(&key);
                }
                Err(e) => return Err(e.into()),
            }
        }
        if ended {
            writer.flush().await?;
            return Ok(copied);
        }
    }
}

type Read = (String, JoinHandle<walrusds::Result<Option<Bytes>>>);

/// All keys of a datastore, those in its journal included.
pub fn keys_of(store: &WalrusDatastore) -> Result<Query, Failure> {
    let options = QueryOptions::default()
        .with_keys_only(true)
        .without_sizes(true);
    Ok(store.query(options)?)
}

/// Which of these blocks a flatfs has, and the keys of the others.
async fn present(
    flatfs: &Flatfs,
    keys: Vec<String>,
    checks: bool,
) -> Result<(Sum, Vec<String>), Failure> {
    let flatfs = flatfs.clone();
    let looked = tokio::task::spawn_blocking(move || -> walrusds::Result<_> {
        let (mut there, mut lacking) = (Sum::default(), Vec::new());
        for key in keys {
            let len = match checks {
                false => flatfs.size_of(&key)?,
                true => flatfs
                    .get(&key)?
                    .filter(|value| walrusds::admin::hashes_to(&key, value) != Some(false))
                    .map(|value| value.len() as u64),
            };
            match len {
                Some(len) => there.add(len),
                None => lacking.push(key),
            }
        }
        Ok((there, lacking))
    });
    let looked = looked.await.map_err(|e| Failure::Failed(e.to_string()))?;
    Ok(looked?)
}

/// Keys in the order of their places on Walrus; those in no blob yet come first.
async fn in_order(look: &Inspection, keys: Vec<String>) -> Result<Vec<String>, Failure> {
    let mut placed = Vec::with_capacity(keys.len());
    for page in keys.chunks(PAGE) {
        let rows = look.index().get_many(page).await?;
        for (key, row) in page.iter().zip(rows) {
            let place = row.map(|row| (row.blob_id, row.offset)).unwrap_or_default();
            placed.push((place, key.clone()));
        }
    }
    placed.sort_unstable();
    Ok(placed.into_iter().map(|(_, key)| key).collect())
}

/// Gathers blocks to write and sync them together.
struct Writer {
    flatfs: Flatfs,
    blocks: Vec<(String, Bytes)>,
    bytes: u64,
}

impl Writer {
    async fn add(&mut self, key: String, value: Bytes) -> Result<(), Failure> {
        self.bytes += value.len() as u64;
        self.blocks.push((key, value));
        match self.blocks.len() >= SYNCED.0 || self.bytes >= SYNCED.1 {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        let (flatfs, blocks) = (self.flatfs.clone(), std::mem::take(&mut self.blocks));
        self.bytes = 0;
        let written = tokio::task::spawn_blocking(move || flatfs.put(&blocks));
        let written = written.await.map_err(|e| Failure::Failed(e.to_string()))?;
        Ok(written?)
    }
}
