//! The statements for the ledger of blobs.

use crate::index::ledger::{COLUMNS, EPOCHS, JUDGED, WASTE};

/// The columns of the ledger ([`Blob`](crate::index::Blob)); times in microseconds since 1970.
pub(super) const BLOBS: &str = "blob_id TEXT NOT NULL PRIMARY KEY, object_id TEXT NOT NULL DEFAULT '', \
    format TEXT NOT NULL DEFAULT '', size INTEGER NOT NULL DEFAULT 0, encoded_size INTEGER NOT NULL DEFAULT 0, \
    cost INTEGER NOT NULL DEFAULT 0, deletable INTEGER NOT NULL DEFAULT 0, registered_epoch INTEGER NOT NULL DEFAULT 0, \
    end_epoch INTEGER NOT NULL DEFAULT 0, expires_at INTEGER, digest TEXT NOT NULL DEFAULT '', \
    state TEXT NOT NULL DEFAULT 'live', state_since INTEGER NOT NULL, \
    live_blocks INTEGER, live_bytes INTEGER, counted_at INTEGER, read_back_at INTEGER";

/// The statements for one table.
pub(super) struct LedgerSql {
    pub(super) write: String,
    /// As `write`, of blobs that were found and not stored now: the greater cost counts, and the
    /// state of an entry stays.
    pub(super) found: String,
    pub(super) renew: String,
    pub(super) get: String,
    /// Live ones, released ones, and those that are being deleted: an index of released ones is
    /// found by the name of the state alone.
    pub(super) in_state: [String; 3],
    pub(super) set_state: String,
    pub(super) forget: String,
    pub(super) live: String,
    pub(super) page: String,
    /// As `page`, with the moment since which the entry has its state; in one statement, so that
    /// both are of one moment.
    pub(super) counted_page: String,
    /// Notes a count on the entry that was seen with it, if there are rows.
    pub(super) count: String,
    /// Releases entries without rows that no count has just reached.
    pub(super) empty: String,
    pub(super) horizon: String,
    pub(super) epochs: String,
    pub(super) saw_epoch: String,
}

impl LedgerSql {
    /// `table`, `blobs` and `epochs` are quoted names.
    pub fn new(table: &str, blobs: &str, epochs: &str) -> LedgerSql {
        let known = |column: &str, unknown: &str| {
            format!(
                "{column} = CASE WHEN excluded.{column} = {unknown} THEN {column} ELSE excluded.{column} END"
            )
        };
        // A sum that saturates: SQLite turns a sum that overflows into a number with a fraction.
        let sum = |column: &str| format!("CAST(min(total({column}), 9.2e18) AS INTEGER)");
        // The later end, or the new one where the condition `goes` holds.
        let latest = |goes: &str| {
            format!(
                "end_epoch = CASE WHEN {goes} THEN excluded.end_epoch ELSE max(end_epoch, excluded.end_epoch) END, \
                 expires_at = CASE WHEN {goes} THEN excluded.expires_at ELSE \
                 max(coalesce(expires_at, excluded.expires_at), coalesce(excluded.expires_at, expires_at)) END"
            )
        };
        // What is deleted now counts no longer.
        let going = "state = 'deleting'";
        let write = |cost: &str, state: &str, goes: &str| {
            // The object is that of the registration that ends last.
            let object = format!(
                "({goes} OR excluded.object_id <> '' AND (object_id = '' OR excluded.end_epoch >= end_epoch))"
            );
            format!(
                "INSERT INTO {blobs} (blob_id, object_id, format, size, encoded_size, cost, deletable, registered_epoch, \
                 end_epoch, expires_at, digest, read_back_at, state_since) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13) ON CONFLICT (blob_id) DO UPDATE SET \
                 object_id = CASE WHEN {object} THEN excluded.object_id ELSE object_id END, \
                 deletable = CASE WHEN {object} OR object_id = '' THEN excluded.deletable ELSE deletable END, \
                 {format}, {size}, {encoded}, cost = {cost}, {registered}, \
                 {latest}, {digest}, {state}\
                 read_back_at = coalesce(excluded.read_back_at, read_back_at)",
                format = known("format", "''"),
                size = known("size", "0"),
                encoded = known("encoded_size", "0"),
                registered = known("registered_epoch", "0"),
                digest = known("digest", "''"),
                latest = latest(goes),
            )
        };
        let page = format!(
            "SELECT blob_id, count(*), {}, max(deletable), max(end_epoch), max(expires_at) FROM {table} \
             WHERE blob_id > ?1 AND blob_id <> '' GROUP BY blob_id ORDER BY blob_id LIMIT ?2",
            sum("size")
        );
        LedgerSql {
            write: write(
                // The same registration, with the same end, may be written once more.
                &format!(
                    "CASE WHEN NOT {going} AND object_id <> '' AND object_id = excluded.object_id \
                     AND end_epoch = excluded.end_epoch THEN max(cost, excluded.cost) \
                     ELSE CAST(min(cost + 0.0 + excluded.cost, 9.2e18) AS INTEGER) END"
                ),
                "state = 'live', state_since = excluded.state_since, ",
                going,
            ),
            found: write("max(cost, excluded.cost)", "", "FALSE"),
            renew: format!(
                "UPDATE {blobs} SET end_epoch = max(end_epoch, ?2), \
                 expires_at = max(coalesce(expires_at, ?3), coalesce(?3, expires_at)) WHERE blob_id = ?1"
            ),
            get: format!("SELECT {COLUMNS} FROM {blobs} WHERE blob_id = ?1"),
            in_state: ["live", "released", "deleting"].map(|state| {
                format!(
                    "SELECT {COLUMNS} FROM {blobs} WHERE state = '{state}' AND blob_id > ?1 ORDER BY blob_id LIMIT ?2"
                )
            }),
            set_state: format!(
                "UPDATE {blobs} SET state = ?2, state_since = ?3 WHERE blob_id = ?1 AND state <> ?2 \
                 AND (?2 <> 'deleting' OR state = 'released')"
            ),
            forget: format!(
                "DELETE FROM {blobs} WHERE blob_id = ?1 AND NOT EXISTS (SELECT 1 FROM {table} AS t WHERE t.blob_id = ?1)"
            ),
            live: format!("SELECT count(*), {} FROM {table} WHERE blob_id = ?1", sum("size")),
            counted_page: format!(
                "SELECT p.*, (SELECT b.state_since FROM {blobs} AS b WHERE b.blob_id = p.blob_id) FROM ({page}) AS p \
                 ORDER BY p.blob_id"
            ),
            page,
            count: format!(
                "INSERT INTO {blobs} (blob_id, live_blocks, live_bytes, deletable, end_epoch, expires_at, counted_at, state_since) \
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7 WHERE EXISTS (SELECT 1 FROM {table} AS t WHERE t.blob_id = ?1) \
                 ON CONFLICT (blob_id) DO UPDATE SET \
                 live_blocks = excluded.live_blocks, live_bytes = excluded.live_bytes, counted_at = excluded.counted_at, \
                 state_since = CASE WHEN state = 'live' THEN state_since ELSE excluded.state_since END, {latest}, \
                 object_id = CASE WHEN {going} THEN '' ELSE object_id END, state = 'live' \
                 WHERE state_since = ?8",
                latest = latest(going),
            ),
            empty: format!(
                "UPDATE {blobs} SET live_blocks = 0, live_bytes = 0, counted_at = ?3, \
                 state_since = CASE WHEN state = 'live' THEN ?3 ELSE state_since END, \
                 state = CASE WHEN state = 'live' THEN 'released' ELSE state END \
                 WHERE blob_id > ?1 AND blob_id <= coalesce(?2, x'ff') AND (counted_at IS NULL OR counted_at < ?3) \
                 AND NOT EXISTS (SELECT 1 FROM {table} AS t WHERE t.blob_id = {blobs}.blob_id)"
            ),
            horizon: format!(
                "SELECT end_epoch, count(*), {}, {}, {}, {}, {}, sum(counted_at IS NULL), min(counted_at), {}, {} \
                 FROM {blobs} WHERE state = 'live' GROUP BY end_epoch ORDER BY end_epoch",
                sum("size"),
                sum("encoded_size"),
                sum("cost"),
                sum("live_blocks"),
                sum("live_bytes"),
                sum(JUDGED),
                sum(WASTE),
            ),
            epochs: format!(
                "SELECT epoch, first_seen, last_seen FROM {epochs} ORDER BY epoch DESC LIMIT {EPOCHS}"
            ),
            saw_epoch: format!(
                "INSERT INTO {epochs} (epoch, first_seen, last_seen) VALUES (?1, ?2, ?3) ON CONFLICT (epoch) DO UPDATE SET \
                 first_seen = min(first_seen, excluded.first_seen), last_seen = max(last_seen, excluded.last_seen)"
            ),
        }
    }
}
