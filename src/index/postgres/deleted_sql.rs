//! The statements about rows that were deleted and are kept, and the parts that deletions and puts
//! have for them. Written once for each opened table, as those of [`super::sql`].

use std::time::Duration;

use super::deadline;
use super::query::{clamped_sum, Query};
use super::schema::Shape;
use crate::index::keys::{Compare, KeyRange};

/// The columns that a row has in both tables, but for the key, the blob and the patch.
const COMMON: &str = "blob_offset, size, deletable, end_epoch, expires_at, created_at";

/// The columns that a deletion returns to [`keep`] beside key and size.
pub(super) fn returned(shape: &Shape) -> String {
    let patch = match shape.has_patch_id {
        true => "patch_id",
        false => "'' AS patch_id",
    };
    format!(", blob_id, {patch}, blob_offset, deletable, end_epoch, expires_at, created_at")
}

/// Keeps the rows that the deletion `d` has removed. A row without a blob is one that the deletion
/// itself has placed ([`super::in_doubt`]).
pub(super) fn keep(companion: &str, keep: Duration) -> String {
    let times = times(keep);
    let rows =
        format!("SELECT key, blob_id, patch_id, {COMMON}, {times} FROM d WHERE blob_id <> ''");
    keep_rows(companion, &rows)
}

/// The number of parameters of a row that [`DeletedSql::keep`] keeps: key, blob, patch and
/// [`COMMON`].
pub(super) const VALUES: usize = 9;
/// Most rows that it keeps.
pub(super) const MOST_ROWS: usize = 1000;

fn times(keep: Duration) -> String {
    format!("now(), now() + interval '{} seconds'", keep.as_secs_f64())
}

fn keep_rows(companion: &str, rows: &str) -> String {
    let names = format!("blob, patch_id, {COMMON}, deleted_at, keep_until");
    let set = names
        .split(", ")
        .map(|name| format!("{name} = EXCLUDED.{name}"));
    format!(
        "INSERT INTO {companion} (key, {names}) {rows} ON CONFLICT (key) DO UPDATE SET {}",
        set.collect::<Vec<_>>().join(", "),
    )
}

/// The columns that [`rows::key_record`] reads, of a kept row.
const RECORD: &str =
    "FALSE AS staged, blob, patch_id, blob_offset, size, deletable, end_epoch, expires_at, key";

/// The statements that concern kept rows alone.
pub(super) struct DeletedSql {
    /// A lookup of keys with their kept rows, with (`[1]`) and without (`[0]`) the staging table.
    pub get_many: [Query; 2],
    pub of_keys: Query,
    /// Without and with the blob after which the page begins.
    pub by_blob: [Query; 2],
    /// Selects the keys that were brought back as one array, NULL for none.
    pub undelete: Query,
    pub page: Query,
    pub purge: Query,
    /// Deletes rows and returns them, for [`keep`](Self::keep) in the same transaction.
    pub remove: Query,
    /// Fails once its time is over.
    pub in_time: Query,
    table: String,
    keep: Duration,
}

impl DeletedSql {
    /// `get_many`: the lookups of keys without kept rows.
    pub fn new(shape: &Shape, get_many: &[String; 2], keep: Duration) -> DeletedSql {
        let table = shape.table.quoted();
        let kept = shape.table.companion("_deleted").quoted();
        let of_keys = |last| {
            format!(
                "SELECT {RECORD}, {last} FROM {kept} WHERE key = ANY($1) AND keep_until > now()"
            )
        };
        let patch = if shape.has_patch_id { "patch_id, " } else { "" };
        let undelete = format!(
            "WITH u AS (DELETE FROM {kept} WHERE key = ANY($1) AND blob = ANY($2) AND keep_until > now() \
             RETURNING key, blob, {patch}{COMMON}), \
             w AS (INSERT INTO {table} (key, blob_id, {patch}{COMMON}, updated_at) \
             SELECT key, blob, {patch}{COMMON}, now() FROM u ON CONFLICT (key) DO NOTHING RETURNING key) \
             SELECT array_agg(key), {in_time} FROM w",
            in_time = deadline::when_locked(3),
        );
        let by_blob = |after| {
            Query::once(format!(
                "SELECT count(*), {}, blob COLLATE \"C\" AS blob FROM {kept} WHERE keep_until > now() {after}\
                 GROUP BY 3 ORDER BY 3 LIMIT $1",
                clamped_sum("size")
            ))
        };
        DeletedSql {
            get_many: [0, 1].map(|staged: usize| {
                Query::hot(format!(
                    "SELECT r.*, FALSE AS kept FROM ({}) AS r UNION ALL {}",
                    get_many[staged],
                    of_keys("TRUE")
                ))
            }),
            of_keys: Query::once(of_keys("deleted_at")),
            by_blob: ["", "AND blob COLLATE \"C\" > $2 "].map(by_blob),
            undelete: Query::once(undelete).bounded(),
            page: Query::once(format!(
                "SELECT key, keep_until <= now() FROM {kept} WHERE key > $1 ORDER BY key LIMIT $2"
            )),
            purge: Query::once(format!(
                "DELETE FROM {kept} WHERE key = ANY($1) AND keep_until <= now()"
            )),
            remove: Query::once(format!(
                "DELETE FROM {table} WHERE key = ANY($1) RETURNING key, size{}",
                returned(shape)
            )),
            in_time: Query::once(format!("SELECT {}", deadline::when_begun(1))).bounded(),
            table: kept,
            keep,
        }
    }

    /// Keeps at most [`MOST_ROWS`] rows, each of which is [`VALUES`] parameters.
    pub fn keep(&self, rows: usize) -> Query {
        let times = times(self.keep);
        let row = |n: usize| {
            let params = (1..=VALUES).map(|i| format!("${}", n * VALUES + i));
            format!("({}, {times})", params.collect::<Vec<_>>().join(", "))
        };
        let rows: Vec<_> = (0..rows).map(row).collect();
        Query::once(keep_rows(
            &self.table,
            &format!("VALUES {}", rows.join(", ")),
        ))
    }

    /// A page of kept rows; parameters are since, until, those of [`KeyRange::comparisons`], and
    /// the limit.
    pub fn list(&self, range: &KeyRange) -> String {
        let mut conditions = String::new();
        let mut last = 2;
        for (compare, _) in range.comparisons() {
            last += 1;
            let operator = match compare {
                Compare::Greater => ">",
                Compare::AtLeast => ">=",
                Compare::Less => "<",
                Compare::AtMost => "<=",
                Compare::Not => "<>",
            };
            conditions.push_str(&format!("AND key {operator} ${last} "));
        }
        format!(
            "SELECT {RECORD}, deleted_at FROM {table} WHERE keep_until > now() \
             AND ($1 IS NULL OR deleted_at >= $1) AND ($2 IS NULL OR deleted_at < $2) \
             {conditions}ORDER BY key LIMIT ${limit}",
            table = self.table,
            limit = last + 1,
        )
    }
}
