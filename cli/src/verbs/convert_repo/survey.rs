//! Looking at both sides of a conversion: how much there is, and whether all of it has arrived.

use std::time::SystemTime;

use serde::Serialize;
use walrusds::admin::flatfs::{Flatfs, FlatfsBlock};
use walrusds::datastore::Inspection;
use walrusds::{Index, KeyRange, Record};

use crate::context::Context;
use crate::exit::Failure;
use crate::output::{bytes, count};
use crate::progress::Unit;

/// Keys that are looked up at a time.
pub const PAGE: usize = 1_000;
/// Rows of a page of a listing.
const LIST: usize = 8_192;
/// Keys that a report names.
pub const NAMED: usize = 10;

/// Blocks and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Sum {
    pub blocks: u64,
    pub bytes: u64,
}

impl Sum {
    pub fn add(&mut self, bytes: u64) {
        self.blocks += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub fn text(self) -> String {
        format!("{} blocks, {}", count(self.blocks), bytes(self.bytes))
    }
}

/// Counts the blocks of a flatfs.
pub fn count_flatfs(context: &Context, flatfs: &Flatfs) -> Result<Sum, Failure> {
    let mut progress = context.progress("counting", Unit::Things("blocks"));
    let mut sum = Sum::default();
    for shard in flatfs.shards()? {
        interrupted(context)?;
        for block in flatfs.list(&shard)? {
            sum.add(block.len);
        }
        progress.at(sum.blocks);
    }
    Ok(sum)
}

/// Counts the rows of an index. (Its running totals lack what a killed program had not added yet.)
pub async fn count_index(context: &Context, look: &Inspection) -> Result<Sum, Failure> {
    let mut progress = context.progress("counting", Unit::Things("blocks"));
    let mut sum = Sum::default();
    let mut range = KeyRange::ALL;
    loop {
        interrupted(context)?;
        let page = look.index().list(&range, 0, LIST).await?;
        for item in &page {
            sum.add(u64::try_from(item.size).unwrap_or(0));
        }
        progress.at(sum.blocks);
        match page.last() {
            Some(last) if page.len() >= LIST => range = range.after(last.key.clone()),
            _ => return Ok(sum),
        }
    }
}

/// Ends a loop between two durable steps.
pub fn interrupted(context: &Context) -> Result<(), Failure> {
    match context.stop.is_cancelled() {
        true => Err(Failure::Interrupted(super::RESUME.to_owned())),
        false => Ok(()),
    }
}

/// Whether a row says that the block is in a certified blob whose storage has not ended.
pub fn is_stored(record: &Record, now: SystemTime) -> bool {
    !record.staged && !record.blob_id.is_empty() && record.expires_at.is_none_or(|end| end > now)
}

/// How a flatfs and an index differ.
#[derive(Debug, Default)]
pub struct Difference {
    /// What both have.
    pub both: Sum,
    /// Blocks of the flatfs that the index does not have, or whose storage has ended.
    pub not_in_index: Keys,
    /// Blocks of the index that the flatfs does not have.
    pub not_in_flatfs: Keys,
}

/// A number of keys, and the first of them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Keys {
    pub number: u64,
    pub first: Vec<String>,
}

impl Keys {
    pub fn add(&mut self, key: &str) {
        self.number += 1;
        if self.first.len() < NAMED {
            self.first.push(key.to_owned());
        }
    }

    /// Adds the keys of another.
    pub fn add_all(&mut self, other: Keys) {
        self.number += other.number;
        let room = NAMED.saturating_sub(self.first.len());
        self.first.extend(other.first.into_iter().take(room));
    }

    /// The number and the first keys.
    pub fn text(&self) -> String {
        let more = match self.number > self.first.len() as u64 {
            true => ", …",
            false => "",
        };
        format!("{} ({}{more})", count(self.number), self.first.join(", "))
    }
}

/// Compares the keys of both sides, in both directions. Memory is bounded by a directory of the
/// flatfs and a page of the index.
pub async fn compare(
    context: &Context,
    flatfs: &Flatfs,
    look: &Inspection,
) -> Result<Difference, Failure> {
    let now = SystemTime::now();
    let mut found = Difference::default();
    let mut progress = context.progress("comparing", Unit::Things("blocks"));
    let mut seen = 0;
    for shard in flatfs.shards()? {
        for page in flatfs.list(&shard)?.chunks(PAGE) {
            interrupted(context)?;
            for (block, record) in page.iter().zip(records(look.index(), page).await?) {
                match record.is_some_and(|record| is_stored(&record, now)) {
                    true => found.both.add(block.len),
                    false => found.not_in_index.add(&block.key),
                }
            }
            seen += page.len() as u64;
            progress.at(seen);
        }
    }
    let mut range = KeyRange::ALL.keys_alone();
    loop {
        interrupted(context)?;
        let page = look.index().list(&range, 0, LIST).await?;
        for item in &page {
            if flatfs.size_of(&item.key)?.is_none() {
                found.not_in_flatfs.add(&item.key);
            }
        }
        seen += page.len() as u64;
        progress.at(seen);
        match page.last() {
            Some(last) if page.len() >= LIST => range = range.after(last.key.clone()),
            _ => return Ok(found),
        }
    }
}

/// The rows of blocks, in their order.
pub async fn records(
    index: &dyn Index,
    blocks: &[FlatfsBlock],
) -> Result<Vec<Option<Record>>, Failure> {
    let keys: Vec<String> = blocks.iter().map(|block| block.key.clone()).collect();
    Ok(index.get_many(&keys).await?)
}
