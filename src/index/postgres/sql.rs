//! The statements, written once per opened table. Values are always parameters; names are quoted.
//! Every statement is also accepted by Citus, but for those about the Go plugin's staging table: no
//! function but immutable ones in `RETURNING`, `CASE` and `DO UPDATE SET`, no sequences, no
//! temporary tables, keys by equality or range.
//!
//! The last parameter of a bounded statement is the time until which it may be carried out
//! ([`super::deadline`]). The parts of such a statement stand in the order in which they lock:
//! Citus carries them out in that order, and PostgreSQL begins with the part that the outer SELECT
//! reads.

use std::time::Duration;

use super::deadline;
use super::deleted_sql::{self, DeletedSql};
use super::ledger;
use super::order::ByteOrder;
use super::query::{clamped_sum, Query};
use super::schema::Shape;
use crate::index::keys::KeyRange;
use crate::index::LONGEST_LEASE;

/// Columns of a lookup, in the order [`super::rows::record`] reads them (after `staged`).
const STAGED_COLUMNS: &str =
    "'' AS blob_id, '' AS patch_id, 0::bigint AS blob_offset, size, FALSE AS deletable, \
     0::bigint AS end_epoch, NULL::timestamptz AS expires_at";

/// Lets a deletion's commit return before it is on disk, for this transaction alone: a deletion
/// lost in a crash is harmless (the block is collected next time).
const NO_WAIT: &str = "set_config('synchronous_commit', 'off', true)";

/// The statements for one table, with (`[1]`) and without (`[0]`) the Go plugin's staging table.
pub(super) struct Sql {
    pub get: [Query; 2],
    pub get_many: [Query; 2],
    pub staged_value: Query,
    /// `[staging]`
    pub delete: [Query; 2],
    /// Inserts empty rows for keys that have none. It waits for a transaction that is inserting
    /// such a row.
    pub place: Query,
    /// `[staging]`; writes rows and, where there is a ledger, entries; selects how many rows were
    /// written.
    pub upsert: [Query; 2],
    /// Changes rows that point at a blob, writes entries as `upsert` does, and selects how many
    /// rows were changed.
    pub move_rows: Query,
    /// `[after]`
    pub due: [Query; 2],
    /// `[after]`
    pub ending: [Query; 2],
    /// A page of the blobs at which rows point.
    pub blobs_of_rows: Query,
    /// Deletes rows that point at one blob.
    pub delete_from: Query,
    /// Counts the rows of blobs.
    pub live: Query,
    pub note: Query,
    pub notes: Query,
    pub set_note: Query,
    pub add_note: Query,
    pub drop_note: Query,
    pub rows_of_blob: Query,
    pub rows_from: Query,
    pub update_blob: Query,
    pub usage: Query,
    pub add_usage: Query,
    pub try_lease: Query,
    pub release_lease: Query,
    pub deleted: DeletedSql,
    table: String,
    staging: String,
    order: ByteOrder,
}

/// A page of blobs that are due, from the ledger.
fn due_in_ledger(blobs: &str, after: bool) -> String {
    let after = match after {
        true => "AND (expires_at, blob_id) > ($3, $4) ",
        false => "",
    };
    format!(
        "SELECT blob_id, expires_at, end_epoch, deletable FROM {blobs} WHERE expires_at < $1 {after}\
         ORDER BY expires_at, blob_id LIMIT $2"
    )
}

/// The same page, found by reading every row that is due: for a table of an older version, to which
/// this node may not add the ledger.
fn due_by_groups(table: &str, after: bool) -> String {
    let blob_id = "blob_id COLLATE \"C\"";
    let having = match after {
        true => format!("HAVING min(expires_at) > $3 OR (min(expires_at) = $3 AND {blob_id} > $4)"),
        false => String::new(),
    };
    format!(
        "SELECT blob_id, min(expires_at), min(end_epoch), bool_or(deletable) FROM {table} \
         WHERE expires_at < $1 GROUP BY blob_id {having} ORDER BY min(expires_at), {blob_id} LIMIT $2"
    )
}

/// The columns of a row that is written, and the parameters from `$1` on that hold them as arrays
/// ([`super::rows::columns`]).
pub(super) fn row_columns(shape: &Shape) -> (String, String) {
    let mut names = "key, blob_id, blob_offset, size, deletable, end_epoch, expires_at".to_owned();
    let mut types = "$1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::boolean[], $6::bigint[], $7::timestamptz[]".to_owned();
    if shape.has_patch_id {
        names.push_str(", patch_id");
        types.push_str(", $8::text[]");
    }
    (names, types)
}

impl Sql {
    /// `keep`: how long deleted rows are kept; with zero, deletions and puts do not touch their
    /// table.
    pub fn new(shape: &Shape, keep: Duration) -> Sql {
        let table = shape.table.quoted();
        let staging = shape
            .staging
            .as_ref()
            .map(|s| s.quoted())
            .unwrap_or_default();
        let leases = shape.table.companion("_leases").quoted();
        let usage = shape.table.companion("_usage").quoted();
        let meta = shape.table.companion("_meta").quoted();
        let patch = if shape.has_patch_id {
            "patch_id"
        } else {
            "'' AS patch_id"
        };
        let columns =
            format!("blob_id, {patch}, blob_offset, size, deletable, end_epoch, expires_at");

        let get = format!("SELECT FALSE AS staged, {columns} FROM {table} WHERE key = $1");
        let get_many =
            format!("SELECT FALSE AS staged, {columns}, key FROM {table} WHERE key = ANY($1)");
        let get_many = [
            get_many.clone(),
            format!("SELECT TRUE AS staged, {STAGED_COLUMNS}, key FROM {staging} WHERE key = ANY($1) UNION ALL {get_many}"),
        ];
        let kept = shape.table.companion("_deleted").quoted();
        let (returned, keep_rows, forget) = match keep.is_zero() {
            true => Default::default(),
            false => (
                deleted_sql::returned(shape),
                format!(", k AS ({})", deleted_sql::keep(&kept, keep)),
                format!(", f AS (DELETE FROM {kept} WHERE key = ANY($1))"),
            ),
        };
        let delete = |staged: bool| {
            let from = |table: &str, more: &str| {
                format!("DELETE FROM {table} WHERE key = ANY($1) RETURNING key, size{more}")
            };
            // A staged row that this statement sees and does not delete was promoted meanwhile: it
            // waited for that transaction, whose row of the table it does not see.
            let (more, promoted, rows) = if staged {
                (
                    format!(", s AS ({})", from(&staging, "")),
                    format!("(SELECT count(*) FROM {staging} WHERE key = ANY($1)) > (SELECT count(*) FROM s)"),
                    "(SELECT size FROM d UNION ALL \
                     SELECT size FROM s WHERE NOT EXISTS (SELECT 1 FROM d WHERE d.key = s.key)) AS r",
                )
            } else {
                (String::new(), "FALSE".to_owned(), "d")
            };
            let sql = format!(
                "WITH d AS ({delete}){more}{keep_rows} SELECT count(*), {sum}, {promoted} AS promoted, {NO_WAIT}, {in_time} FROM {rows}",
                delete = from(&table, &returned),
                sum = clamped_sum("size"),
                in_time = deadline::when_locked(2),
            );
            Query::hot(sql).bounded()
        };

        // An overwrite must also reset the columns that a Go node would read: the patch of the old
        // blob, its object.
        let (names, types) = row_columns(shape);
        let mut reset = String::new();
        for (present, name, value) in [
            (shape.has_object_id, "object_id", "''"),
            (shape.has_encoded_size, "encoded_size", "0"),
            (shape.has_cost, "cost", "0"),
        ] {
            if present {
                reset.push_str(&format!("{name} = {value}, "));
            }
        }
        let set = |from: &str| {
            let columns = names.split(", ").skip(1);
            let columns = columns.map(|name| format!("{name} = {from}.{name}, "));
            columns.collect::<String>() + &reset
        };
        // The number of the first parameter after the columns of rows.
        let after = if shape.has_patch_id { 9 } else { 8 };
        let entries = |first| match shape.has_ledger {
            true => (
                format!(", l AS ({})", ledger::write(shape, first)),
                first + ledger::COLUMNS_WRITTEN,
            ),
            false => (String::new(), first),
        };
        let upsert = |staged: bool| {
            let (with_entries, last) = entries(after);
            let with_staged = if staged {
                format!(", s AS (DELETE FROM {staging} WHERE key = ANY($1))")
            } else {
                String::new()
            };
            Query::once(format!(
                "WITH w AS (INSERT INTO {table} ({names}) SELECT {names} FROM unnest({types}) AS r({names}) \
                 ON CONFLICT (key) DO UPDATE SET {set}updated_at = EXCLUDED.updated_at RETURNING key)\
                 {with_staged}{forget}{with_entries} SELECT count(*), {in_time} FROM w",
                set = set("EXCLUDED"),
                in_time = deadline::when_locked(last),
            ))
            .bounded()
        };
        let (with_entries, last) = entries(after + 1);
        let move_rows = Query::once(format!(
            "WITH w AS (UPDATE {table} AS t SET {set}updated_at = now() FROM unnest({types}) AS r({names}) \
             WHERE t.key = r.key AND t.blob_id = ${after} RETURNING t.key){with_entries} \
             SELECT count(*), {in_time} FROM w",
            set = set("r"),
            in_time = deadline::when_locked(last),
        ))
        .bounded();

        let blobs = shape.table.companion("_blobs").quoted();
        let due = |after: bool| match shape.has_ledger {
            true => due_in_ledger(&blobs, after),
            false => due_by_groups(&table, after),
        };
        // From the rows: in the order of the column's own collation, which is that of its index.
        let ending = |after: bool| {
            if shape.has_ledger {
                // One lower bound alone, so that the search in the index begins there.
                let from = match after {
                    true => "(end_epoch, blob_id) > ($3, $4)",
                    false => "end_epoch > 0",
                };
                return format!(
                    "SELECT blob_id, expires_at, end_epoch, deletable FROM {blobs} \
                     WHERE end_epoch <= $1 AND {from} ORDER BY end_epoch, blob_id LIMIT $2"
                );
            }
            let having = match after {
                true => "HAVING (min(end_epoch), blob_id) > ($3, $4) ",
                false => "",
            };
            format!(
                "SELECT blob_id, min(expires_at), min(end_epoch), bool_or(deletable) FROM {table} \
                 WHERE end_epoch > 0 AND end_epoch <= $1 GROUP BY blob_id {having}\
                 ORDER BY min(end_epoch), blob_id LIMIT $2"
            )
        };
        let using = shape.order.ops().ascending;
        Sql {
            get: [
                Query::hot(get.clone()),
                Query::hot(format!("SELECT TRUE AS staged, {STAGED_COLUMNS} FROM {staging} WHERE key = $1 UNION ALL {get}")),
            ],
            deleted: DeletedSql::new(shape, &get_many, keep),
            get_many: get_many.map(Query::hot),
            staged_value: Query::hot(format!("SELECT value FROM {staging} WHERE key = $1")),
            delete: [false, true].map(delete),
            place: Query::once(format!(
                "INSERT INTO {table} (key, blob_id, size) SELECT key, '', 0 FROM unnest($1::text[]) AS r(key) \
                 ON CONFLICT (key) DO NOTHING RETURNING key"
            )),
            upsert: [false, true].map(upsert),
            move_rows,
            due: [false, true].map(due).map(Query::once),
            live: Query::once(format!(
                "SELECT count(*), {}, blob_id FROM {table} WHERE blob_id = ANY($1) GROUP BY blob_id",
                clamped_sum("size")
            )),
            ending: [ending(false), ending(true)].map(Query::once),
            blobs_of_rows: Query::once(format!(
                "SELECT blob_id, count(*), {}, bool_or(deletable), max(end_epoch), max(expires_at) FROM {table} \
                 WHERE blob_id > $1 AND blob_id <> '' GROUP BY blob_id ORDER BY blob_id LIMIT $2",
                clamped_sum("size")
            )),
            delete_from: Query::once(format!(
                "WITH d AS (DELETE FROM {table} WHERE key = ANY($1) AND blob_id = $2 \
                 RETURNING key, size{returned}){keep_rows} SELECT count(*), {}, {} FROM d",
                clamped_sum("size"),
                deadline::when_locked(3),
            ))
            .bounded(),
            note: Query::once(format!("SELECT value FROM {meta} WHERE name = $1")),
            notes: Query::once(format!(
                "SELECT name, value FROM {meta} WHERE substr(name, 1, length($1::text)) = $1 \
                 ORDER BY name COLLATE \"C\" LIMIT $2"
            )),
            set_note: Query::once(format!(
                "INSERT INTO {meta} (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value"
            )),
            add_note: Query::once(format!(
                "INSERT INTO {meta} (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING"
            )),
            drop_note: Query::once(format!("DELETE FROM {meta} WHERE name = $1")),
            rows_of_blob: Query::once(format!(
                "SELECT FALSE AS staged, {columns}, key FROM {table} WHERE blob_id = $1 ORDER BY key{using}"
            )),
            rows_from: Query::hot(format!(
                "SELECT FALSE AS staged, {columns}, key FROM {table} \
                 WHERE blob_id = $1 AND blob_offset >= $2 ORDER BY blob_offset LIMIT $3"
            )),
            update_blob: Query::once(format!(
                "UPDATE {table} SET end_epoch = GREATEST(end_epoch, $2), \
                 expires_at = GREATEST(expires_at, $3), updated_at = now() WHERE blob_id = $1"
            )),
            usage: Query::hot(format!("SELECT blocks, bytes FROM {usage} WHERE name = 'total'")),
            add_usage: Query::once(format!(
                "INSERT INTO {usage} AS u (name, blocks, bytes) SELECT 'total', $1, $2 WHERE {} \
                 ON CONFLICT (name) DO UPDATE SET blocks = u.blocks + EXCLUDED.blocks, bytes = u.bytes + EXCLUDED.bytes",
                deadline::when_begun(3),
            )).bounded(),
            try_lease: Query::once(format!(
                "INSERT INTO {leases} AS l (name, owner, expires_at) SELECT $1, $2, now() + $3 * interval '1 second' WHERE {} \
                 ON CONFLICT (name) DO UPDATE SET owner = EXCLUDED.owner, expires_at = EXCLUDED.expires_at \
                 WHERE l.owner = EXCLUDED.owner OR l.expires_at <= now() \
                 OR l.expires_at > now() + interval '{} seconds' RETURNING owner",
                deadline::when_begun(4),
                LONGEST_LEASE.as_secs(),
            )).bounded(),
            release_lease: Query::once(format!(
                "DELETE FROM {leases} WHERE name = $1 AND owner = $2 AND {}",
                deadline::when_begun(3),
            )).bounded(),
            table,
            staging,
            order: shape.order,
        }
    }

    /// One page of a listing; parameters are those of [`KeyRange::comparisons`], limit and offset.
    ///
    /// With the staging table, the rows of the two tables come one after the other, each in order.
    /// The caller merges them, and leaves `offset` at 0 because it counts merged rows.
    pub fn list(&self, range: &KeyRange, staged: bool) -> String {
        // A listing of keys alone reads only the primary key's index.
        let (size, expires_at) = match range.keys_alone {
            true => ("0::bigint AS size", "NULL::timestamptz AS expires_at"),
            false => ("size", "expires_at"),
        };
        let columns = format!("FALSE AS staged, key, {size}, {expires_at}");
        let index = self.page(&self.table, &columns, range);
        if staged {
            let columns = format!("TRUE AS staged, key, {size}, NULL::timestamptz AS expires_at");
            let staging = self.page(&self.staging, &columns, range);
            format!("({staging}) UNION ALL ({index})")
        } else {
            index
        }
    }

    /// Columns of the rows of a page in one table.
    fn page(&self, table: &str, columns: &str, range: &KeyRange) -> String {
        let order = self.order.ops();
        let mut next = 0;
        let mut parameter = || {
            next += 1;
            next
        };
        let mut conditions = String::new();
        for (compare, _) in range.comparisons() {
            let (n, operator) = (parameter(), order.operator(compare));
            let word = if n == 1 { "WHERE" } else { "AND" };
            conditions.push_str(&format!("{word} key {operator} ${n} "));
        }
        let using = if range.descending {
            order.descending
        } else {
            order.ascending
        };
        let (limit, offset) = (parameter(), parameter());
        format!(
            "SELECT {columns} FROM {table} {conditions}ORDER BY key{using} LIMIT ${limit} OFFSET ${offset}"
        )
    }

    /// The keys of a page as one array, NULL for none: one result row for each key would cost more
    /// than the key. Nor are there other columns, since each shard of Citus sends a whole page.
    /// Parameters are those of [`list`](Self::list).
    pub fn list_keys(&self, range: &KeyRange) -> String {
        let page = self.page(&self.table, "key", range);
        format!("SELECT array_agg(key) FROM ({page}) AS page")
    }
}
