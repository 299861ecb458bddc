//! The blocks of all blobs of the index, in several files.
//!
//! **Problem.** Blocks are read fast only in the order in which they lie in their blobs. And a node
//! may move blocks from one blob to another meanwhile, so that an export that went through the
//! blobs once could miss them.
//!
//! **Outline.** Blob after blob is read, and a new file is begun where the next blob does not fit
//! any more. The directory's list names the files that are whole; another run looks into these,
//! and leaves out the blocks that they hold. The index is gone through until nothing is new: a
//! block that was moved to another blob, or has come back to one that was read, is new there.
//!
//! **Invariants.**
//! - A block counts as written if a file that the list names holds it. A file that is gone, or has
//!   another length, holds nothing.
//! - The list says that the export is whole only if every block could be read.
//! - One export at a time writes into a directory.
//!
//! Memory holds about 20 bytes for each block.

use std::fs::TryLockError;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cid::multihash::Multihash;
use futures_util::stream::{self, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::super::links::{links, DAG_PB, RAW};
use super::super::seen::Seen;
use super::super::target::Cid;
use super::file::{Sink, Target};
use super::scan;
use super::{Exported, Options};
use crate::datastore::{Blocks, Inspection};
use crate::dirlock::DirLock;
use crate::error::{Error, ErrorKind, Result};
use crate::index::{KeyRecord, IDENTITY};
use crate::multihash::KeyMultihash;

/// The list of what is in a directory.
const LIST: &str = "walrusds-export.json";

/// The kind and version of the list.
const SCHEMA: &str = "walrusds.export/1";

/// Blobs that are asked for at once.
const PAGE: usize = 256;

/// Blocks that are read at a time.
const AHEAD: usize = 32;

/// How often the index is gone through at most: a node that stores all the time would make an
/// export endless.
const PASSES: usize = 4;

/// What a directory holds.
#[derive(Debug, Default, Serialize, Deserialize)]
struct List {
    schema: String,
    /// The identity of the index.
    index: Option<String>,
    files: Vec<Part>,
    /// Whether nothing is left to do.
    whole: bool,
}

/// A file of an export.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Part {
    file: PathBuf,
    blocks: u64,
    bytes: u64,
    car_bytes: u64,
    /// Blocks that could not be read: an earlier version noted them here, and took the export for
    /// whole.
    #[serde(default, skip_serializing)]
    unread: u64,
}

/// Writes the blocks of all blobs into files in `dir`, each of at most `max_bytes` of blocks unless
/// one blob alone has more. They have no roots. `prefix`: as for
/// [`key_of`](super::super::key_of). `progress` is told the bytes that were written, those of
/// earlier runs included, and how many there are about. What an earlier run has written is left
/// out; what it could not read is tried again. Blocks that wait in a journal or in the database are
/// in no blob and not written.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`]: `dir` holds another export, or a whole one.
/// [`ErrorKind::Locked`]: another export writes into it. Else as
/// [`dags`](super::dags()); the files that are whole stay.
pub async fn all(
    inspection: &Inspection,
    prefix: &str,
    dir: &Path,
    max_bytes: u64,
    options: &Options,
    progress: &mut (dyn FnMut(u64, u64) + Send),
    stop: &CancellationToken,
) -> Result<Exported> {
    // Nothing is written to the index, not even an identity for one that has none.
    let identity = inspection.index().note(IDENTITY).await?;
    std::fs::create_dir_all(dir).map_err(|e| disk(dir, &e))?;
    let _held = alone(dir)?;
    let mut list = List::open(dir, identity)?;
    let (dir_of, prefix_of) = (dir.to_owned(), prefix.to_owned());
    let looked = tokio::task::spawn_blocking(move || {
        let written = list.keep_whole(&dir_of, &prefix_of);
        (list, written)
    });
    let failed = |e: tokio::task::JoinError| Error::new(ErrorKind::Internal, e.to_string());
    let (list, written) = looked.await.map_err(failed)?;
    let written = written?;
    let total = inspection.index().usage().await?.bytes;
    let total = u64::try_from(total).unwrap_or(0);
    let blocks = inspection.blocks();
    let mut export = All {
        inspection,
        blocks: &blocks,
        prefix,
        dir,
        max_bytes,
        options,
        written,
        report: list.report(dir),
        list,
        part: None,
    };
    let tell = &mut |bytes| progress(bytes, total.max(bytes));
    let done = export.run(tell, stop).await;
    let All { part, report, .. } = export;
    if let Some((sink, _)) = part {
        sink.close().await?;
    }
    blocks.close().await;
    done.map(|()| report)
}

struct All<'a> {
    inspection: &'a Inspection,
    blocks: &'a Blocks,
    prefix: &'a str,
    dir: &'a Path,
    max_bytes: u64,
    options: &'a Options,
    list: List,
    /// The blocks that are in files.
    written: Seen,
    /// The file that is being written.
    part: Option<(Sink, Part)>,
    report: Exported,
}

impl All<'_> {
    async fn run(
        &mut self,
        progress: &mut (dyn FnMut(u64) + Send),
        stop: &CancellationToken,
    ) -> Result<()> {
        for _ in 0..PASSES {
            if !self.pass(progress, stop).await? {
                break;
            }
        }
        self.end_part().await?;
        self.list.whole = self.report.unread == 0;
        self.list.save(self.dir)?;
        self.report.complete = self.report.is_complete();
        Ok(())
    }

    /// Goes through the index once. Returns whether a block was new. Unreadable blocks, and keys of
    /// no blocks, are counted anew.
    async fn pass(
        &mut self,
        progress: &mut (dyn FnMut(u64) + Send),
        stop: &CancellationToken,
    ) -> Result<bool> {
        let index = self.inspection.index();
        self.report.forget_unread();
        let (mut after, before) = (String::new(), self.report.blocks);
        loop {
            let page = index.blobs_of_rows(&after, PAGE).await?;
            let more = page.len() >= PAGE;
            for blob in page {
                if stop.is_cancelled() {
                    return Err(stopped());
                }
                after.clone_from(&blob.blob_id);
                let mut rows = index.rows_of_blob(&blob.blob_id).await?;
                rows.retain(|row| self.is_wanted(&row.key));
                if rows.is_empty() {
                    continue;
                }
                let len = |row: &KeyRecord| u64::try_from(row.record.size).unwrap_or(0);
                let new: u64 = rows.iter().map(len).sum();
                let full = |part: &Part| part.bytes > 0 && part.bytes + new > self.max_bytes;
                if self.part.as_ref().is_some_and(|(_, part)| full(part)) {
                    self.end_part().await?;
                }
                self.blob(rows, progress, stop).await?;
            }
            if !more {
                return Ok(self.report.blocks > before);
            }
        }
    }

    /// Whether a block has to be written. Counts a key that is none of a block.
    fn is_wanted(&mut self, key: &str) -> bool {
        let short = key.strip_prefix(self.prefix);
        let is_block = short.is_some_and(|key| KeyMultihash::of(key).is_some());
        if !is_block {
            self.report.other_keys += 1;
        }
        is_block && !self.written.contains(key)
    }

    /// Writes blocks of a blob.
    async fn blob(
        &mut self,
        mut rows: Vec<KeyRecord>,
        progress: &mut (dyn FnMut(u64) + Send),
        stop: &CancellationToken,
    ) -> Result<()> {
        rows.sort_by(|a, b| {
            let place = |row: &KeyRecord| (row.record.offset, row.record.patch_id.clone());
            place(a).cmp(&place(b)).then_with(|| a.key.cmp(&b.key))
        });
        let blocks = self.blocks;
        let read = |row: KeyRecord| async move { (read(blocks, &row).await, row) };
        let mut reads = stream::iter(rows).map(read).buffered(AHEAD);
        loop {
            let next = tokio::select! {
                biased;
                () = stop.cancelled() => return Err(stopped()),
                next = reads.next() => next,
            };
            let Some((read, row)) = next else { break };
            match read? {
                Read::Block(block) => self.block(&row.key, block).await?,
                Read::Deleted => {}
                Read::Unread(why) => self.report.unread(format!("{}: {why}", row.key)),
            }
            progress(self.report.bytes);
        }
        Ok(())
    }

    async fn block(&mut self, key: &str, block: Bytes) -> Result<()> {
        let Some(cid) = key
            .strip_prefix(self.prefix)
            .and_then(|key| cid(key, &block))
        else {
            self.report.other_keys += 1;
            return Ok(());
        };
        let len = block.len() as u64;
        let (sink, part) = self.part()?;
        part.blocks += 1;
        part.bytes += len;
        let went = sink.block(cid, block).await;
        self.report.blocks += 1;
        self.report.bytes += len;
        match went {
            true => {
                self.written.insert(key);
                Ok(())
            }
            false => Err(Error::new(ErrorKind::Disk, "the CAR cannot be written")),
        }
    }

    /// The file that is being written; a new one, if there is none.
    fn part(&mut self) -> Result<&mut (Sink, Part)> {
        let begun = match self.part.take() {
            Some(part) => part,
            None => {
                let file = self.next_name();
                let target = Target::file(self.dir.join(&file))?;
                let sink = Sink::begin(target, &[], self.options.version)?;
                let part = Part {
                    file,
                    ..Part::default()
                };
                (sink, part)
            }
        };
        Ok(self.part.insert(begun))
    }

    /// The first name that is free. A file that a crash kept off the list has the first of all, and
    /// stays: its blocks are written once more.
    fn next_name(&self) -> PathBuf {
        let names = (self.list.files.len() + 1..).map(|n| PathBuf::from(format!("{n:06}.car")));
        let is_free = |name: &PathBuf| self.dir.join(name).symlink_metadata().is_err();
        let mut free = names.filter(is_free);
        free.next().unwrap_or_default()
    }

    /// Ends the file that is being written, and notes what it holds.
    async fn end_part(&mut self) -> Result<()> {
        let Some((sink, mut part)) = self.part.take() else {
            return Ok(());
        };
        if let Some(written) = sink.end().await? {
            part.car_bytes = written.len;
            self.report.car_bytes += written.len;
            self.report.files.extend(written.path);
        }
        self.list.files.push(part);
        self.list.save(self.dir)
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Canceled, "the export was stopped")
}

/// # Errors
/// [`ErrorKind::Locked`]: another export writes into the directory.
fn alone(dir: &Path) -> Result<DirLock> {
    DirLock::take(dir).map_err(|e| match e {
        TryLockError::WouldBlock => Error::new(
            ErrorKind::Locked,
            format!(
                "{}: another export writes into this directory: wait for its end, or give another one",
                dir.display()
            ),
        ),
        TryLockError::Error(e) => disk(dir, &e),
    })
}

enum Read {
    Block(Bytes),
    /// The row is there no longer.
    Deleted,
    /// Why no aggregator gives it.
    Unread(String),
}

async fn read(blocks: &Blocks, row: &KeyRecord) -> Result<Read> {
    let lost = |e: &Error| matches!(e.kind(), ErrorKind::BlobNotFound | ErrorKind::Corrupt);
    match blocks.at(&row.key, &row.record).await {
        Ok(block) => Ok(Read::Block(block)),
        // It may be elsewhere by now.
        Err(e) if lost(&e) => match blocks.moved(&row.key, &row.record).await {
            Ok(Some(block)) => Ok(Read::Block(block)),
            Ok(None) => Ok(Read::Deleted),
            Err(None) => Ok(Read::Unread(e.message().to_owned())),
            Err(Some(e)) if lost(&e) => Ok(Read::Unread(e.message().to_owned())),
            Err(Some(e)) => Err(e),
        },
        Err(e) => Err(e),
    }
}

/// The CID under which a block is written: dag-pb for a node with links, and else raw, which is
/// true of any bytes. `None` for a key that is no multihash.
fn cid(key: &str, block: &[u8]) -> Option<Cid> {
    let hash = Multihash::from_bytes(&KeyMultihash::of(key)?.bytes).ok()?;
    let is_node = links(DAG_PB, block).is_ok_and(|links| !links.is_empty());
    Some(Cid::new_v1(if is_node { DAG_PB } else { RAW }, hash))
}

impl List {
    /// Reads the list of a directory.
    fn open(dir: &Path, index: Option<String>) -> Result<List> {
        let path = dir.join(LIST);
        let bad = |text: String| {
            let text = format!("{}: {text}", path.display());
            Error::new(ErrorKind::InvalidArgument, text)
        };
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(List {
                    schema: SCHEMA.to_owned(),
                    index,
                    ..List::default()
                });
            }
            Err(e) => return Err(disk(&path, &e)),
        };
        let list: List = serde_json::from_slice(&text)
            .map_err(|e| bad(format!("it is no list of an export: {e}")))?;
        if list.schema != SCHEMA {
            let found = &list.schema;
            return Err(bad(format!("{found:?} found, {SCHEMA:?} expected")));
        }
        if list.index != index {
            return Err(bad(
                "this directory holds an export of another index".to_owned()
            ));
        }
        if list.whole && list.files.iter().all(|part| part.unread == 0) {
            return Err(bad(
                "this directory holds a whole export: give another one".to_owned()
            ));
        }
        Ok(list)
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join(LIST);
        let text =
            serde_json::to_vec(self).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
        let new = path.with_extension("json.new");
        std::fs::write(&new, text)
            .and_then(|()| std::fs::File::open(&new)?.sync_all())
            .and_then(|()| std::fs::rename(&new, &path))
            .and_then(|()| std::fs::File::open(dir)?.sync_all())
            .map_err(|e| disk(&path, &e))
    }

    /// Looks into the files, and takes those off the list that are not there as they were written.
    /// Returns the keys of the blocks that the others hold.
    ///
    /// # Errors
    /// [`ErrorKind::Disk`]: a file that is there cannot be read.
    fn keep_whole(&mut self, dir: &Path, prefix: &str) -> Result<Seen> {
        let mut written = Seen::default();
        let mut kept = Vec::new();
        for part in std::mem::take(&mut self.files) {
            let path = dir.join(&part.file);
            match std::fs::metadata(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(disk(&path, &e)),
                Ok(found) if found.len() != part.car_bytes => continue,
                Ok(_) => {}
            }
            let mut keys = Vec::new();
            match scan::keys(&path, &mut |key| keys.push(format!("{prefix}{key}"))) {
                Err(e) if e.kind() == ErrorKind::Corrupt => continue,
                scanned => scanned?,
            }
            for key in keys {
                written.insert(&key);
            }
            kept.push(part);
        }
        self.files = kept;
        self.whole = false;
        Ok(written)
    }

    /// What earlier runs have done.
    fn report(&self, dir: &Path) -> Exported {
        let mut report = Exported::default();
        for part in &self.files {
            report.files.push(dir.join(&part.file));
            report.blocks += part.blocks;
            report.bytes += part.bytes;
            report.car_bytes += part.car_bytes;
        }
        report
    }
}

fn disk(path: &Path, e: &std::io::Error) -> Error {
    Error::new(ErrorKind::Disk, format!("{}: {e}", path.display()))
}
