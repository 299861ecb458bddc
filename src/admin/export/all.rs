//! The blocks of all blobs of the index, in several files.
//!
//! **Problem.** Blocks are read fast only in the order in which they lie in their blobs. And a node
//! may move blocks from one blob to another meanwhile, so that an export that went through the
//! blobs once could miss them.
//!
//! **Outline.** Blob after blob is read, and a new file is begun where the next blob does not fit
//! any more. After each file the directory's list says which blobs its files hold; another run
//! leaves those out. The index is gone through until no blob is new: a block that was moved is in
//! one that is. A deleted block that is brought back is in its old one: so a blob that has more
//! blocks than were found in it is read again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cid::multihash::Multihash;
use cid::Cid;
use futures_util::stream::{self, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::super::links::{links, DAG_PB, RAW};
use super::file::{Sink, Target};
use super::{Exported, Options};
use crate::datastore::{Blocks, Inspection};
use crate::error::{Error, ErrorKind, Result};
use crate::index::{KeyRecord, Usage};
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
    /// Blocks of these blobs that could not be read.
    unread: u64,
    blobs: Vec<String>,
    /// How many rows each of the blobs had, and their bytes.
    #[serde(default)]
    rows: Vec<(i64, i64)>,
}

/// Writes the blocks of all blobs into files in `dir`, each of at most `max_bytes` of blocks unless
/// one blob alone has more. They have no roots. `prefix`: as for
/// [`key_of`](super::super::key_of). `progress` is told the bytes that were written, those of
/// earlier runs included, and how many there are about. What an earlier run has written is left
/// out. Blocks that wait in a journal or in the database are in no blob and not written.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`]: `dir` holds another export, or a whole one. Else as
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
    let identity = inspection.index().identity().await?;
    let list = List::open(dir, identity)?;
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
        seen: list.blobs(),
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
    /// The blobs that are in files, with what they held.
    seen: HashMap<String, Usage>,
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
        self.list.whole = true;
        self.list.save(self.dir)?;
        self.report.complete = self.report.is_complete();
        Ok(())
    }

    /// Goes through the index once. Returns whether a blob was new.
    async fn pass(
        &mut self,
        progress: &mut (dyn FnMut(u64) + Send),
        stop: &CancellationToken,
    ) -> Result<bool> {
        let index = self.inspection.index();
        let (mut after, mut any) = (String::new(), false);
        loop {
            let page = index.blobs_of_rows(&after, PAGE).await?;
            let more = page.len() >= PAGE;
            for blob in page {
                after.clone_from(&blob.blob_id);
                let live = blob.counted.map(|count| count.live).unwrap_or_default();
                let holds_more =
                    |seen: &Usage| live.blocks > seen.blocks || live.bytes > seen.bytes;
                if self
                    .seen
                    .get(&blob.blob_id)
                    .is_some_and(|seen| !holds_more(seen))
                {
                    continue;
                }
                any = true;
                let live = u64::try_from(live.bytes).unwrap_or(0);
                let full = |part: &Part| part.bytes > 0 && part.bytes + live > self.max_bytes;
                if self.part.as_ref().is_some_and(|(_, part)| full(part)) {
                    self.end_part().await?;
                }
                let held = self.blob(&blob.blob_id, progress, stop).await?;
                self.seen.insert(blob.blob_id, held);
            }
            if !more {
                return Ok(any);
            }
        }
    }

    /// Writes the blocks of a blob. Returns what it held.
    async fn blob(
        &mut self,
        blob_id: &str,
        progress: &mut (dyn FnMut(u64) + Send),
        stop: &CancellationToken,
    ) -> Result<Usage> {
        let mut rows = self.inspection.index().rows_of_blob(blob_id).await?;
        let sizes = rows.iter().map(|row| Usage::new(1, row.record.size));
        let held = sizes.fold(Usage::default(), Usage::plus);
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
                () = stop.cancelled() => {
                    return Err(Error::new(ErrorKind::Canceled, "the export was stopped"));
                }
                next = reads.next() => next,
            };
            let Some((read, row)) = next else { break };
            match read? {
                Read::Block(block) => self.block(&row.key, block).await?,
                Read::Deleted => {}
                Read::Unread(why) => {
                    self.part()?.1.unread += 1;
                    self.report.unread(format!("{}: {why}", row.key));
                }
            }
            progress(self.report.bytes);
        }
        let part = &mut self.part()?.1;
        part.blobs.push(blob_id.to_owned());
        part.rows.push((held.blocks, held.bytes));
        Ok(held)
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
            true => Ok(()),
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
    /// Reads the list of a directory, which is made if it is not there.
    fn open(dir: &Path, index: Option<String>) -> Result<List> {
        let path = dir.join(LIST);
        let bad = |text: String| {
            let text = format!("{}: {text}", path.display());
            Error::new(ErrorKind::InvalidArgument, text)
        };
        std::fs::create_dir_all(dir).map_err(|e| disk(dir, &e))?;
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
        if list.whole {
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

    /// The blobs that are in files, with what they held when they were read last.
    fn blobs(&self) -> HashMap<String, Usage> {
        let parts = self.files.iter();
        let blobs = parts.flat_map(|part| {
            let known = part
                .rows
                .iter()
                .map(|(blocks, bytes)| Usage::new(*blocks, *bytes));
            // A list of an older version does not tell.
            let unknown = std::iter::repeat(Usage::new(i64::MAX, i64::MAX));
            part.blobs.iter().cloned().zip(known.chain(unknown))
        });
        blobs.collect()
    }

    /// What earlier runs have done.
    fn report(&self, dir: &Path) -> Exported {
        let mut report = Exported::default();
        for part in &self.files {
            report.files.push(dir.join(&part.file));
            report.blocks += part.blocks;
            report.bytes += part.bytes;
            report.car_bytes += part.car_bytes;
            report.unread += part.unread;
        }
        report
    }
}

fn disk(path: &Path, e: &std::io::Error) -> Error {
    Error::new(ErrorKind::Disk, format!("{}: {e}", path.display()))
}
