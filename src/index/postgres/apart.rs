//! Deletions from a table that Citus has distributed, where deleted rows are kept.
//!
//! **Problem.** The one statement that deletes rows and keeps them ([`super::sql`]) is costly on
//! Citus: the rows that one part of it hands to the next are copied to every worker, so a deletion
//! of one key is a transaction of all workers, prepared and then committed on each. Measured: three
//! times as long as here.
//!
//! **Outline.** A transaction deletes the rows, which come back to the node, and writes them to the
//! table of kept rows as values. Both statements go to the worker of the key's shard, and the
//! transaction of one worker is committed in one step.
//!
//! **Invariants.**
//! - Row and kept row change in one transaction.
//! - Its time is judged by the coordinator's clock while the deleted rows are locked.
//! - The commit does not wait for a disk, also not on the worker: `citus.propagate_set_commands`
//!   hands the setting on.
//!
//! **Locks.** None here.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio_postgres::Row;

use super::call::{self, Call};
use super::conn::{Answer, Conn};
use super::deleted_sql::{MOST_ROWS, VALUES};
use super::query::Param;
use super::PostgresParts;
use crate::error::Result;
use crate::index::Usage;

/// Makes the next setting of this transaction one of its workers, too.
const HAND_SETTINGS_ON: &str = "SET LOCAL citus.propagate_set_commands = 'local'";
/// A deletion that is lost in a crash is harmless: the block is collected next time.
const NO_WAIT: &str = "SET LOCAL synchronous_commit = off";

impl PostgresParts {
    /// Whether deletions are made here.
    pub(super) fn deletes_apart(&self, staged: bool) -> bool {
        self.shape.shards.are_many() && !self.keep_deleted.is_zero() && !staged
    }

    /// Deletes the rows of keys and keeps them; returns what was deleted.
    pub(super) async fn delete_apart(
        self: &Arc<Self>,
        call: &Call,
        keys: &Arc<[Param]>,
    ) -> Result<Answer<Usage>> {
        call::run(&self.pool, call, |conn, deadline| {
            let (inner, keys) = (self.clone(), keys.clone());
            Box::pin(async move {
                let work = Box::pin(inner.remove_and_keep(&conn, &keys, deadline));
                conn.transaction(work).await
            })
        })
        .await
    }

    async fn remove_and_keep(
        &self,
        conn: &Arc<Conn>,
        keys: &[Param],
        deadline: Instant,
    ) -> Answer<Usage> {
        let sql = &self.sql.deleted;
        conn.batch(HAND_SETTINGS_ON).await?;
        conn.batch(NO_WAIT).await?;
        let removed = conn.query(&sql.remove, keys, deadline).await?;
        let mut deleted = Usage::default();
        let mut values = Vec::new();
        for row in &removed {
            deleted = deleted.plus(Usage::new(1, row.try_get("size")?));
            // One without a blob was placed by a deletion ([`super::in_doubt`]).
            if !row.try_get::<_, &str>("blob_id")?.is_empty() {
                values.extend(kept(row)?);
            }
        }
        for values in values.chunks(MOST_ROWS * VALUES) {
            let keep = sql.keep(values.len() / VALUES);
            conn.query(&keep, values, deadline).await?;
        }
        if !removed.is_empty() {
            conn.query(&sql.in_time, &[], deadline).await?;
        }
        Ok(deleted)
    }
}

/// The parameters that keep a deleted row.
fn kept(row: &Row) -> Answer<[Param; VALUES]> {
    let created_at: SystemTime = row.try_get("created_at")?;
    Ok([
        Param::Text(row.try_get("key")?),
        Param::Text(row.try_get("blob_id")?),
        Param::Text(row.try_get("patch_id")?),
        Param::Int(row.try_get("blob_offset")?),
        Param::Int(row.try_get("size")?),
        Param::Bool(row.try_get("deletable")?),
        Param::Int(row.try_get("end_epoch")?),
        Param::Time(row.try_get("expires_at")?),
        Param::Time(Some(created_at)),
    ])
}
