//! What concerns the index as a whole.

use std::time::Duration;

use super::finding::{Finding, FindingKind};
use crate::error::Result;
use crate::index::{Index, KeyRecord, Usage};

/// Blobs that are summed up at a time.
const PAGE: usize = 4096;
/// The most rows without a blob, and the most staged blocks, that are counted.
const MOST: usize = 10_000;

/// What there is in an index.
#[derive(Debug, Default)]
pub(super) struct Sum {
    pub(super) blobs: u64,
    pub(super) usage: Usage,
}

/// Sums up the rows of the blobs after one.
pub(super) async fn sum(index: &dyn Index, after: &str) -> Result<Sum> {
    let mut sum = Sum::default();
    let mut after = after.to_owned();
    loop {
        let page = index.blobs_of_rows(&after, PAGE).await?;
        for blob in &page {
            sum.blobs += 1;
            let live = blob.counted.map(|count| count.live).unwrap_or_default();
            sum.usage = sum.usage.plus(live);
        }
        match page.last().filter(|_| page.len() >= PAGE) {
            Some(last) => after.clone_from(&last.blob_id),
            None => return Ok(sum),
        }
    }
}

/// All that the running totals count.
pub(super) struct All {
    pub(super) rows: Sum,
    /// See [`beside`].
    beside: Usage,
    /// Whether that changed meanwhile: a block that is promoted while its blob is summed up would
    /// count twice, or not at all.
    pub(super) moved: bool,
}

impl All {
    pub(super) fn counted(&self) -> Usage {
        self.rows.usage.plus(self.beside)
    }
}

/// Sums up all that the running totals count.
pub(super) async fn all(index: &dyn Index) -> Result<All> {
    let before = beside(index).await?;
    let rows = sum(index, "").await?;
    let beside = beside(index).await?;
    Ok(All {
        rows,
        beside,
        moved: beside != before,
    })
}

/// Sums up what counts in the running totals and is in no blob: staged blocks whose keys have no
/// row, and rows that name no blob.
async fn beside(index: &dyn Index) -> Result<Usage> {
    let rows = index.live(&[String::new()]).await?;
    let staged = match index.staging() {
        Some(staging) => staging.without_rows().await?,
        None => Usage::default(),
    };
    Ok(rows.into_iter().fold(staged, Usage::plus))
}

/// Compares the sum of the rows with the running totals before and after the counting.
pub(super) fn compare(counted: Usage, before: Usage, after: Usage) -> Vec<Finding> {
    let between = |n: i64, a: i64, b: i64| (a.min(b)..=a.max(b)).contains(&n);
    if between(counted.blocks, before.blocks, after.blocks)
        && between(counted.bytes, before.bytes, after.bytes)
    {
        return Vec::new();
    }
    let off = counted.minus(after);
    let text = format!(
        "the running totals say {} blocks of {} bytes, and the index has {} blocks of {} bytes",
        after.blocks, after.bytes, counted.blocks, counted.bytes
    );
    vec![Finding::of_index(
        FindingKind::Totals,
        off.blocks.unsigned_abs(),
        off.bytes.unsigned_abs(),
        text,
    )]
}

/// Rows that name no blob, and are of no staged block.
pub(super) async fn without_blob(index: &dyn Index) -> Result<Vec<Finding>> {
    let rows = index.rows_from("", 0, MOST).await?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let of: Vec<&KeyRecord> = rows.iter().collect();
    let text = match rows.len() >= MOST {
        true => format!("{MOST} rows or more name no blob"),
        false => "rows name no blob".to_owned(),
    };
    Ok(vec![Finding::of_rows(FindingKind::BadRow, "", &of, text)])
}

/// Blocks that Go nodes have staged. `moved`: the totals were not compared, as these blocks
/// changed.
pub(super) async fn staged(index: &dyn Index, moved: bool) -> Result<Vec<Finding>> {
    let Some(staging) = index.staging() else {
        return Ok(Vec::new());
    };
    let staged = staging.left_behind(Duration::ZERO, None, MOST).await?;
    if staged.is_empty() {
        return Ok(Vec::new());
    }
    let more = if staged.len() >= MOST { " or more" } else { "" };
    let bytes = staged.iter().map(|block| block.size);
    let mut text = format!(
        "{}{more} blocks wait in the database, staged by a Go node, and are not on Walrus",
        staged.len()
    );
    if moved {
        text.push_str("; a Go node is at work on them, so the running totals were not compared");
    }
    Ok(vec![Finding::of_index(
        FindingKind::Staged,
        staged.len() as u64,
        bytes.fold(0, u64::saturating_add),
        text,
    )])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_may_move_while_rows_are_counted() {
        let usage = Usage::new;
        assert!(compare(usage(2, 20), usage(1, 10), usage(3, 30)).is_empty());
        assert!(compare(usage(2, 20), usage(2, 20), usage(2, 20)).is_empty());
        let found = compare(usage(4, 20), usage(2, 20), usage(3, 20));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].blocks, found[0].bytes), (1, 0));
    }
}
