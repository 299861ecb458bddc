//! The table: is found (whichever version of the Go plugin made it), checked in one round trip, and
//! created or extended once, under a lock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use sha2::{Digest, Sha256};
use tokio_postgres::error::SqlState;
use tokio_postgres::Row;

use super::conn::{Answer, Conn};
use super::error::PgError;
use super::order::ByteOrder;
use super::query::{clamped_sum, Param, Query};
use super::shards::Shards;
use crate::error::{Error, ErrorKind, Result};
use crate::index::table::{is_index, parse_table, TableName, COMPANIONS, DELETED_COLUMNS};
use crate::index::COPY;

/// Version of the schema this library writes.
pub(super) const VERSION: i64 = 4;
/// The version from which on all tables are there, and indexes alone may be missing.
pub(super) const ALL_TABLES: i64 = 3;
/// Oldest library version (in the same numbers) that can work with what this one writes.
const MIN_VERSION: i64 = 1;

/// The columns of the companion for deleted rows. A row keeps those of the index, and its blob is
/// called `blob` ([`DELETED_COLUMNS`]).
const DELETED: &str = "key TEXT COLLATE \"C\" PRIMARY KEY, blob TEXT NOT NULL, \
    patch_id TEXT NOT NULL DEFAULT '', blob_offset BIGINT NOT NULL DEFAULT 0, size BIGINT NOT NULL, \
    deletable BOOLEAN NOT NULL DEFAULT FALSE, end_epoch BIGINT NOT NULL DEFAULT 0, expires_at TIMESTAMPTZ, \
    created_at TIMESTAMPTZ NOT NULL, deleted_at TIMESTAMPTZ NOT NULL, keep_until TIMESTAMPTZ NOT NULL";

/// The properties of an opened table.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// The table under its real name.
    pub table: TableName,
    /// The Go plugin's staging table, whether it exists (see `staging_exists`) or may appear later.
    pub staging: Option<TableName>,
    pub staging_exists: bool,
    /// The schema in which the table was found.
    pub schema: Option<String>,
    pub order: ByteOrder,
    /// `COLLATE` and the collation of the table's blob IDs, which is not always that of the ledger.
    pub blob_order: String,
    pub has_patch_id: bool,
    pub has_object_id: bool,
    pub has_encoded_size: bool,
    pub has_cost: bool,
    /// Whether there are a ledger of blobs and a table for deleted rows: from version 3 on.
    pub has_ledger: bool,
    pub has_deleted: bool,
    /// Of a table that Citus has distributed; empty until they are read.
    pub shards: Shards,
    /// The note of an unfinished copy, as it was when the index was opened.
    pub copy: Option<String>,
}

/// Finds the tables a name could mean, with their columns: one row per column (or one per table
/// without columns). `$1`: names, `$2`: schema or NULL for the search path.
pub(super) const FIND: &str = "\
    SELECT n.nspname::text, c.relname::text, c.relkind::text, a.attname::text, \
           pg_catalog.format_type(a.atttypid, NULL)::text, co.collname::text, \
           COALESCE(a.attnotnull AND NOT a.atthasdef AND a.attidentity::text = '', FALSE) \
    FROM pg_catalog.pg_class c \
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
    LEFT JOIN pg_catalog.pg_collation co ON co.oid = a.attcollation \
    WHERE c.relname = ANY(($1::text[])::name[]) AND c.relkind IN ('r', 'p', 'v', 'm', 'f') \
      AND ($2::text[] IS NULL AND pg_catalog.pg_table_is_visible(c.oid) OR n.nspname = ANY(($2::text[])::name[]))";

/// Whether the server is a standby, whether transactions are read-only, whether the role may write
/// to the table (`$1`, quoted), and which rights it lacks on the table and its companions (`$2`).
pub(super) const MAY_WRITE: &str = "\
    SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only') = 'on', \
           COALESCE(pg_catalog.has_table_privilege(t.oid, 'INSERT') AND pg_catalog.has_table_privilege(t.oid, 'UPDATE'), TRUE), \
           (SELECT pg_catalog.string_agg(pg_catalog.concat(r, ' on ', n), ', ') \
            FROM pg_catalog.unnest($2::text[]) AS n, pg_catalog.unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS r \
            WHERE NOT pg_catalog.has_table_privilege(pg_catalog.to_regclass(n)::oid, r)) \
    FROM (SELECT pg_catalog.to_regclass($1::text)::oid AS oid) AS t";

/// Parameters of [`MAY_WRITE`].
pub(super) fn may_write(table: &TableName) -> Arc<[Param]> {
    // Of those that do not exist, no right is missing.
    let suffixes = [
        "_meta", "_leases", "_usage", "_blobs", "_epochs", "_deleted",
    ];
    let companions = suffixes.map(|suffix| table.companion(suffix));
    let all = std::iter::once(table).chain(&companions);
    let all = all.map(TableName::quoted).collect();
    [Param::Text(table.quoted()), Param::Texts(all)].into()
}

/// The relations that have one of these names (`$1`) in the schema of the table (`$2`, quoted;
/// `$3`: its schema, if it was given) and are no index of the table, or an invalid one: a `CREATE
/// INDEX CONCURRENTLY` that failed leaves one behind, which serves no query and keeps its name.
const OTHERS: &str = "\
    SELECT c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    LEFT JOIN pg_catalog.pg_class t ON t.oid = pg_catalog.to_regclass($2::text)::oid \
    WHERE c.relname = ANY(($1::text[])::name[]) \
      AND (c.relnamespace = t.relnamespace OR t.oid IS NULL AND n.nspname = COALESCE($3::text::name, pg_catalog.current_schema())) \
      AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_index x WHERE x.indexrelid = c.oid AND x.indrelid = t.oid AND x.indisvalid)";

/// The valid indexes of the table `$1` in the schema `$2`, or on the search path.
const INDEXES: &str = "\
    SELECT i.relname::text FROM pg_catalog.pg_index x \
    JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid JOIN pg_catalog.pg_class c ON c.oid = x.indrelid \
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relname = ($1::text)::name AND x.indisvalid \
      AND ($2::text IS NULL AND pg_catalog.pg_table_is_visible(c.oid) OR n.nspname = ($2::text)::name)";

/// The role and the database, quoted for SQL, if a table without a schema can be made nowhere.
const NO_SCHEMA: &str = "\
    SELECT pg_catalog.quote_ident(current_user::text), pg_catalog.quote_ident(pg_catalog.current_database()::text) \
    WHERE pg_catalog.current_schema() IS NULL";

/// Parameters of [`FIND`].
pub(super) struct Find {
    names: Vec<String>,
    schemas: Option<Vec<String>>,
}

impl Find {
    pub fn new(wanted: &TableName) -> Find {
        let mut names = Vec::new();
        let mut schemas = Vec::new();
        for table in [wanted, &wanted.folded()] {
            names.push(table.name().to_owned());
            names.extend(table.go_staging().map(|t| t.name().to_owned()));
            let companions = COMPANIONS.iter().map(|suffix| table.with_suffix(suffix));
            names.extend(companions);
            if let Some(main) = table.main_table() {
                names.extend([main.folded().name().to_owned(), main.name().to_owned()]);
            }
            schemas.extend(table.schema().map(str::to_owned));
        }
        Find {
            names,
            schemas: (!schemas.is_empty()).then_some(schemas),
        }
    }

    pub fn params(self) -> Arc<[Param]> {
        [Param::Texts(self.names), Param::MaybeTexts(self.schemas)].into()
    }
}

/// The statement that reads the version rows, and the notes beside them. It fails with "undefined
/// table" where there is no such table yet.
pub(super) fn read_meta(table: &TableName) -> String {
    format!(
        "SELECT name, value FROM {}",
        table.companion("_meta").quoted()
    )
}

/// Whether a table with these columns is a staging table of the Go plugin.
fn is_staging(has_column: impl Fn(&str) -> bool) -> bool {
    ["key", "value", "size"].into_iter().all(&has_column) && !has_column("blob_id")
}

/// Whether these rows of [`FIND`] show a staging table of that name in that schema. A table of the
/// same name elsewhere on the search path belongs to another index.
pub(super) fn has_staging(name: &str, schema: Option<&str>, rows: &[Row]) -> bool {
    let text = |row: &Row, at: usize| row.try_get::<_, String>(at).unwrap_or_default();
    let columns: Vec<String> = rows
        .iter()
        .filter(|row| text(row, 1) == name && schema.is_none_or(|s| text(row, 0) == s))
        .filter_map(|row| row.try_get(3).ok())
        .collect();
    is_staging(|column| columns.iter().any(|c| c == column))
}

struct Column {
    kind: String,
    collation: Option<String>,
    must_be_given: bool,
}

/// The result of [`FIND`] for the wanted table.
pub(super) struct Found {
    /// The real name.
    pub table: TableName,
    exists: bool,
    columns: BTreeMap<String, Column>,
    staging_exists: bool,
    /// The schema in which the table was found.
    schema: Option<String>,
    /// The names of the existing companions of the table.
    companions: Vec<String>,
}

impl Found {
    pub fn exists(&self) -> bool {
        self.exists
    }

    /// Chooses the exact name where there is such a table, else the lower-case one if that exists
    /// (the Go plugin used names unquoted, so Postgres folded them), else the exact name, to be
    /// created.
    pub fn new(wanted: &TableName, rows: &[Row]) -> std::result::Result<Result<Found>, PgError> {
        let mut tables: BTreeMap<(String, String), (String, BTreeMap<String, Column>)> =
            BTreeMap::new();
        for row in rows {
            let (schema, name, relkind): (String, String, String) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let table = tables
                .entry((schema, name))
                .or_insert_with(|| (relkind, BTreeMap::new()));
            if let Some(column) = row.try_get::<_, Option<String>>(3)? {
                table.1.insert(
                    column,
                    Column {
                        kind: row.try_get::<_, Option<String>>(4)?.unwrap_or_default(),
                        collation: row.try_get(5)?,
                        must_be_given: row.try_get(6)?,
                    },
                );
            }
        }
        let find = |table: &TableName| {
            tables
                .keys()
                .find(|(schema, name)| {
                    name == table.name() && table.schema().is_none_or(|s| s == schema)
                })
                .cloned()
        };
        let folded = wanted.folded();
        let (table, key) = match (find(wanted), find(&folded)) {
            (Some(key), _) => (wanted.clone(), Some(key)),
            (None, Some(key)) => (folded, Some(key)),
            (None, None) => (wanted.clone(), None),
        };
        let columns_of = |table: &TableName| find(table).and_then(|key| tables.get(&key));
        let index = |table: &TableName| {
            columns_of(table).is_some_and(|(_, columns)| is_index(|c| columns.contains_key(c)))
        };
        let companions = COMPANIONS.iter().map(|suffix| table.companion(suffix));
        let main = table.main_table();
        let main = main.iter().flat_map(|main| [main.clone(), main.folded()]);
        if let Some(other) = companions.chain(main).find(index) {
            return Ok(Err(table.collides_with(&other.to_string())));
        }
        let deleted = table.companion("_deleted");
        if columns_of(&deleted).is_some_and(|(_, columns)| {
            !DELETED_COLUMNS
                .iter()
                .all(|name| columns.contains_key(*name))
        }) {
            return Ok(Err(table.is_no_companion(&deleted.to_string())));
        }
        // A table of that name in another schema of the search path belongs to another index.
        let beside = |found: &(String, String)| key.as_ref().is_none_or(|k| k.0 == found.0);
        let staging_exists = table.go_staging().is_some_and(|staging| {
            let found = find(&staging).filter(beside);
            let columns = found.and_then(|key| tables.get(&key));
            columns.is_some_and(|(_, columns)| is_staging(|c| columns.contains_key(c)))
        });
        let names = COMPANIONS.iter().map(|suffix| table.companion(suffix));
        let present = names.filter(|name| columns_of(name).is_some());
        let companions = present.map(|name| name.name().to_owned()).collect();
        let schema = key.as_ref().map(|(schema, _)| schema.clone());
        let (relkind, columns) = key.and_then(|key| tables.remove(&key)).unwrap_or_default();
        let found = Found {
            schema,
            companions,
            exists: !relkind.is_empty(),
            table,
            columns,
            staging_exists,
        };
        Ok(if matches!(relkind.as_str(), "" | "r" | "p") {
            Ok(found)
        } else {
            Err(Error::new(
                ErrorKind::Config,
                format!("index in Postgres: {} exists but is no table (a view?); choose another name with \"table\"", found.table),
            ))
        })
    }

    /// The properties of the table as it will be used.
    pub fn shape(&self, meta: Meta) -> Shape {
        let has = |name: &str| self.columns.contains_key(name);
        Shape {
            table: self.table.clone(),
            staging: self.table.go_staging(),
            staging_exists: self.staging_exists,
            schema: self.schema.clone(),
            order: self.order(),
            blob_order: {
                let blob_id = self.columns.get("blob_id");
                let collation = blob_id.and_then(|column| column.collation.as_deref());
                let name = collation.unwrap_or("default").replace('"', "\"\"");
                format!("COLLATE \"{name}\"")
            },
            has_patch_id: has("patch_id"),
            has_object_id: has("object_id"),
            has_encoded_size: has("encoded_size"),
            has_cost: has("cost"),
            has_ledger: meta.version >= ALL_TABLES,
            has_deleted: meta.version >= ALL_TABLES,
            shards: Shards::default(),
            copy: meta.copy,
        }
    }

    /// How the table's keys are compared as bytes.
    fn order(&self) -> ByteOrder {
        let collation = match self.columns.get("key") {
            Some(key) => key.collation.as_deref(),
            None => Some("C"), // that of a new table
        };
        match collation {
            Some("C" | "POSIX" | "ucs_basic") => ByteOrder::Plain,
            _ => ByteOrder::Pattern,
        }
    }

    /// The name under which a companion is made. A name without a schema would make it in the first
    /// schema of this node's search path, where nodes that have the same table but another search
    /// path may not see it.
    fn place_of(&self, companion: &TableName, may_create: bool) -> TableName {
        let known = self.companions.iter().any(|name| name == companion.name());
        let beside = self
            .schema
            .as_ref()
            .filter(|_| may_create && !known && companion.schema().is_none())
            .and_then(|schema| parse_table(&format!("{schema}.{}", companion.name())).ok());
        beside.unwrap_or_else(|| companion.clone())
    }

    /// Refuses a table that is something else; otherwise returns the columns to be added.
    fn check(&self) -> Result<Vec<&'static str>> {
        let bad = |what: String| {
            Error::new(
                ErrorKind::Config,
                format!("index in Postgres: table {} is not an index of walrusds: {what}; choose another name with \"table\"", self.table),
            )
        };
        let mut missing = Vec::new();
        for (name, kinds, definition) in COLUMNS {
            match (self.columns.get(*name), definition) {
                (Some(column), _) if kinds.contains(&column.kind.as_str()) => {}
                (Some(column), _) => {
                    return Err(bad(format!(
                        "column {name} is of type {}, expected {}",
                        column.kind, kinds[0]
                    )))
                }
                (None, Some(definition)) => missing.push(*definition),
                (None, None) => {
                    return Err(bad(format!("column {name} ({}) is missing", kinds[0])))
                }
            }
        }
        let known = |name: &str| COLUMNS.iter().any(|(n, ..)| *n == name);
        if let Some((name, _)) = self
            .columns
            .iter()
            .find(|(n, c)| c.must_be_given && !known(n))
        {
            return Err(bad(format!("column {name} is unknown and has no default")));
        }
        Ok(missing)
    }
}

/// Name, accepted types, and the definition if it can be added to an older table.
const COLUMNS: &[(&str, &[&str], Option<&str>)] = &[
    ("key", &["text", "character varying"], None),
    ("blob_id", &["text", "character varying"], None),
    (
        "blob_offset",
        &["bigint"],
        Some("blob_offset BIGINT NOT NULL DEFAULT 0"),
    ),
    ("size", &["bigint"], None),
    (
        "deletable",
        &["boolean"],
        Some("deletable BOOLEAN NOT NULL DEFAULT FALSE"),
    ),
    (
        "end_epoch",
        &["bigint"],
        Some("end_epoch BIGINT NOT NULL DEFAULT 0"),
    ),
    (
        "expires_at",
        &["timestamp with time zone"],
        Some("expires_at TIMESTAMPTZ"),
    ),
    (
        "created_at",
        &["timestamp with time zone"],
        Some("created_at TIMESTAMPTZ NOT NULL DEFAULT now()"),
    ),
    (
        "updated_at",
        &["timestamp with time zone"],
        Some("updated_at TIMESTAMPTZ NOT NULL DEFAULT now()"),
    ),
];

/// What the rows of [`read_meta`] tell.
#[derive(Default)]
pub(super) struct Meta {
    /// The version of the schema; 0 if walrusds has never set the table up.
    pub version: i64,
    /// The note of an unfinished copy.
    pub copy: Option<String>,
}

/// Reads the rows of [`read_meta`].
pub(super) fn judge(table: &TableName, rows: &[Row]) -> std::result::Result<Result<Meta>, PgError> {
    let mut values = BTreeMap::new();
    for row in rows {
        values.insert(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
    }
    let number = |name: &str| {
        values
            .get(name)
            .and_then(|v| v.parse::<i64>().ok())
            .unwrap_or(0)
    };
    if number("min_version") > VERSION {
        return Ok(Err(Error::new(
            ErrorKind::Config,
            format!(
                "index in Postgres: table {table} has schema version {}, which this walrusds (version {VERSION}) cannot work with; install a newer one",
                number("schema_version")
            ),
        )));
    }
    let version = number("schema_version");
    let copy = values.remove(COPY);
    Ok(Ok(Meta { version, copy }))
}

/// Checks the columns for a normal open: a table whose version is current must have all of them.
pub(super) fn check_current(found: &Found) -> Result<bool> {
    Ok(found.exists && found.check()?.is_empty())
}

/// The key of the advisory lock for one table.
fn lock_key(table: &TableName) -> i64 {
    let digest = Sha256::digest(format!("walrusds schema {table}").as_bytes());
    i64::from_be_bytes(std::array::from_fn(|i| digest[i]))
}

/// The names that an index of the table may have, in order of preference.
fn index_names<'a>(
    table: &'a TableName,
    column: &'a str,
) -> impl Iterator<Item = String> + Clone + 'a {
    numbered(table, format!("_{column}_idx"))
}

/// The table's name with a suffix, and with a number behind it.
fn numbered(table: &TableName, suffix: String) -> impl Iterator<Item = String> + Clone + '_ {
    let last = std::iter::once(String::new()).chain((1..10).map(|n| n.to_string()));
    last.map(move |last| table.with_suffix(&format!("{suffix}{last}")))
}

/// The indexes of the ledger, by the ends of their names, with their columns.
const OF_LEDGER: [(&str, &str); 3] = [
    ("_blobs_due", "(expires_at, blob_id)"),
    ("_blobs_end", "(end_epoch, blob_id)"),
    (
        "_blobs_released",
        "(state, blob_id) WHERE state = 'released'",
    ),
];

/// The names of indexes that a table has, and those that are taken by other relations. A table that
/// was moved aside keeps the names of its indexes: those of the new one get other names then.
struct Indexes {
    own: Vec<String>,
    others: Vec<String>,
}

impl Indexes {
    /// The name for an index that may have these names; `None` if it is there.
    fn missing(&self, mut names: impl Iterator<Item = String> + Clone) -> Option<String> {
        let own = names.clone().any(|name| self.own.contains(&name));
        names
            .find(|name| !self.others.contains(name))
            .filter(|_| !own)
    }
}

/// The columns of the ledger ([`crate::index::Blob`]).
const BLOBS: &str = "blob_id TEXT COLLATE \"C\" PRIMARY KEY, object_id TEXT NOT NULL DEFAULT '', \
    format TEXT NOT NULL DEFAULT '', size BIGINT NOT NULL DEFAULT 0, encoded_size BIGINT NOT NULL DEFAULT 0, \
    cost BIGINT NOT NULL DEFAULT 0, deletable BOOLEAN NOT NULL DEFAULT FALSE, registered_epoch BIGINT NOT NULL DEFAULT 0, \
    end_epoch BIGINT NOT NULL DEFAULT 0, expires_at TIMESTAMPTZ, digest TEXT NOT NULL DEFAULT '', \
    state TEXT NOT NULL DEFAULT 'live', state_since TIMESTAMPTZ NOT NULL DEFAULT now(), \
    live_blocks BIGINT, live_bytes BIGINT, counted_at TIMESTAMPTZ, read_back_at TIMESTAMPTZ";

/// The statements that bring the tables up to date. Each of them may be run again.
///
/// `indexes` and `of_ledger` are those of the table and of the ledger; `may_create`: whether
/// companions can be made in the table's schema.
fn plan(
    found: &Found,
    indexes: &Indexes,
    of_ledger: &Indexes,
    may_create: bool,
) -> Result<Vec<String>> {
    let table = &found.table;
    let quoted = table.quoted();
    let index = |column: &str| indexes.missing(index_names(table, column));
    let mut plan = Vec::new();
    if found.exists {
        let missing = found.check()?;
        if !missing.is_empty() {
            let add: Vec<_> = missing
                .iter()
                .map(|d| format!("ADD COLUMN IF NOT EXISTS {d}"))
                .collect();
            plan.push(format!("ALTER TABLE {quoted} {}", add.join(", ")));
        }
    } else {
        plan.push(format!(
            "CREATE TABLE IF NOT EXISTS {quoted} (key TEXT COLLATE \"C\" PRIMARY KEY, blob_id TEXT NOT NULL, \
             blob_offset BIGINT NOT NULL DEFAULT 0, size BIGINT NOT NULL, deletable BOOLEAN NOT NULL DEFAULT FALSE, \
             end_epoch BIGINT NOT NULL DEFAULT 0, expires_at TIMESTAMPTZ, \
             created_at TIMESTAMPTZ NOT NULL DEFAULT now(), updated_at TIMESTAMPTZ NOT NULL DEFAULT now())"
        ));
    }
    if let Some(name) = index("blob_id") {
        plan.push(format!(
            "CREATE INDEX IF NOT EXISTS \"{name}\" ON {quoted} (blob_id)"
        ));
    }
    // Version 2 had an index of ends and blobs, whose place the ledger takes.
    for name in index_names(table, "due").filter(|name| indexes.own.contains(name)) {
        let schema = found.schema.as_ref().map(|s| format!("\"{s}\"."));
        let schema = schema.unwrap_or_default();
        plan.push(format!("DROP INDEX IF EXISTS {schema}\"{name}\""));
    }
    if found.exists && found.order() == ByteOrder::Pattern {
        if let Some(name) = index("key_prefix") {
            plan.push(format!(
                "CREATE INDEX IF NOT EXISTS \"{name}\" ON {quoted} (key text_pattern_ops)"
            ));
        }
    }
    let mut of_blobs = Vec::new();
    for (suffix, columns) in [
        ("_meta", "name TEXT PRIMARY KEY, value TEXT NOT NULL"),
        ("_leases", "name TEXT PRIMARY KEY, owner TEXT NOT NULL, expires_at TIMESTAMPTZ NOT NULL"),
        ("_usage", "name TEXT PRIMARY KEY, blocks BIGINT NOT NULL DEFAULT 0, bytes BIGINT NOT NULL DEFAULT 0"),
        ("_blobs", BLOBS),
        ("_epochs", "epoch BIGINT PRIMARY KEY, first_seen TIMESTAMPTZ NOT NULL, last_seen TIMESTAMPTZ NOT NULL"),
        ("_deleted", DELETED),
    ] {
        let place = found.place_of(&table.companion(suffix), may_create);
        plan.push(format!("CREATE TABLE IF NOT EXISTS {} ({columns})", place.quoted()));
        if suffix == "_blobs" {
            for (suffix, columns) in OF_LEDGER {
                let Some(index) = of_ledger.missing(numbered(table, suffix.to_owned())) else {
                    continue;
                };
                let place = place.quoted();
                of_blobs.push(format!(
                    "CREATE INDEX IF NOT EXISTS \"{index}\" ON {place} {columns}"
                ));
            }
        }
    }
    plan.push(count_usage(found));
    // Last, since nodes that write entries wait from here on: counting takes longer.
    plan.append(&mut of_blobs);
    let meta = table.companion("_meta").quoted();
    for (name, value) in [("schema_version", VERSION), ("min_version", MIN_VERSION)] {
        plan.push(format!(
            "INSERT INTO {meta} (name, value) VALUES ('{name}', '{value}') \
             ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value"
        ));
    }
    Ok(plan)
}

/// Starts the running total with a count of the existing blocks: a key counts once.
fn count_usage(found: &Found) -> String {
    let usage = found.table.companion("_usage").quoted();
    let table = found.table.quoted();
    let staged = match (&found.table.go_staging(), found.staging_exists) {
        (Some(staging), true) => format!(
            " UNION ALL SELECT s.size FROM {} AS s WHERE NOT EXISTS (SELECT 1 FROM {table} AS t WHERE t.key = s.key)",
            staging.quoted()
        ),
        _ => String::new(),
    };
    format!(
        "INSERT INTO {usage} (name, blocks, bytes) SELECT 'total', count(*), {} FROM (SELECT size FROM {table}{staged}) AS r \
         ON CONFLICT (name) DO NOTHING",
        clamped_sum("size")
    )
}

/// Brings the schema up to date, in one transaction under an advisory lock, so that any number of
/// nodes may start for the first time at the same moment.
pub(super) async fn migrate(conn: &Arc<Conn>, wanted: &TableName) -> Answer<Result<()>> {
    let within = migrate_within(conn, wanted);
    let done = conn.transaction_if(within, Result::is_ok).await;
    failpoint!("postgres.schema.committed");
    done
}

/// The migration itself. The inner error is one whose reason an operator must know. Where it is
/// returned, a failed statement has aborted the transaction, or nothing was changed.
async fn migrate_within(conn: &Arc<Conn>, wanted: &TableName) -> Answer<Result<()>> {
    let ask = |sql: &'static str, params: Arc<[Param]>| async move {
        // None of these statements has a deadline of its own: the transaction is cancelled as a
        // whole.
        let query = Query::once(sql);
        conn.query(&query, &params, Instant::now()).await
    };
    let name = |name: Option<&str>| Param::MaybeText(name.map(str::to_owned));
    // Counting and indexing a large table of the Go plugin has no time limit.
    conn.batch("SET LOCAL statement_timeout = 0").await?;
    ask(
        "SELECT pg_advisory_xact_lock($1)",
        [Param::Int(lock_key(wanted))].into(),
    )
    .await?;
    failpoint!("postgres.schema.locked");
    let rows = ask(FIND, Find::new(wanted).params()).await?;
    let found = match Found::new(wanted, &rows)? {
        Ok(found) => found,
        Err(e) => return Ok(Err(e)),
    };
    let mut may_create = false;
    if found.schema.is_some() {
        let asked = "SELECT pg_catalog.has_schema_privilege($1::text, 'CREATE')";
        let rows = ask(asked, [name(found.schema.as_deref())].into()).await?;
        for row in &rows {
            may_create = row.try_get(0)?;
        }
    }
    if !found.exists && wanted.schema().is_none() {
        if let Some(row) = ask(NO_SCHEMA, [].into()).await?.first() {
            let (role, database): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            return Ok(Err(no_schema(&found.table, &role, &database)));
        }
    }
    let of_table = ["blob_id", "due", "key_prefix"];
    let of_table = of_table.iter().flat_map(|of| index_names(&found.table, of));
    let of_ledger = OF_LEDGER.iter();
    let of_ledger = of_ledger.flat_map(|(end, _)| numbered(&found.table, (*end).to_owned()));
    let existing = |table: TableName, names: Vec<String>| async move {
        let place = [name(Some(table.name())), name(table.schema())];
        let own = texts(&ask(INDEXES, place.into()).await?)?;
        let quoted = Param::Text(table.quoted());
        let params = [Param::Texts(names), quoted, name(table.schema())];
        let others = texts(&ask(OTHERS, params.into()).await?)?;
        Ok(Indexes { own, others })
    };
    let ledger = found.place_of(&found.table.companion("_blobs"), may_create);
    let indexes = existing(found.table.clone(), of_table.collect()).await?;
    let of_ledger = existing(ledger, of_ledger.collect()).await?;
    let statements = match plan(&found, &indexes, &of_ledger, may_create) {
        Ok(statements) => statements,
        Err(e) => return Ok(Err(e)),
    };
    for statement in &statements {
        failpoint!("postgres.schema.statement");
        if let Err(e) = conn.batch(statement).await {
            let schema = e.code() == Some(&SqlState::INVALID_SCHEMA_NAME);
            if !schema && e.code() != Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
                return Err(e);
            }
            let mut script = String::new();
            if let (true, Some(schema)) = (schema, found.table.schema()) {
                script.push_str(&format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\"; "));
            }
            script.push_str(&statements.join("; "));
            return Ok(Err(Error::new(
                ErrorKind::Config,
                format!(
                    "index in Postgres: the tables of {} cannot be set up: {}. Have a role with the rights run this once, and grant \
                     SELECT, INSERT, UPDATE, DELETE on the tables to this one: {script};",
                    found.table,
                    super::error::full(&e),
                ),
            )));
        }
    }
    failpoint!("postgres.schema.changed");
    Ok(Ok(()))
}

/// The error for a role that finds no schema. Tables that exist in one are not found either, so
/// making them elsewhere would not help.
fn no_schema(table: &TableName, role: &str, database: &str) -> Error {
    Error::new(
        ErrorKind::Config,
        format!(
            "index in Postgres: the tables of {table} are not found and cannot be set up: the search path of the role {role} \
             has no schema that it may use (3F000). Choose the schema that holds the tables, or is to hold them, in place of s: \
             GRANT USAGE ON SCHEMA s TO {role}; ALTER ROLE {role} IN DATABASE {database} SET search_path = s;"
        ),
    )
}

fn texts(rows: &[Row]) -> Answer<Vec<String>> {
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// Whether another try of the migration may succeed: another node (a Go node takes no lock) created
/// or changed the same thing at the same moment.
pub(super) fn collided(error: &PgError) -> bool {
    error.code().is_some_and(|code| {
        *code == SqlState::UNIQUE_VIOLATION
            || *code == SqlState::DUPLICATE_TABLE
            || *code == SqlState::DUPLICATE_COLUMN
            || *code == SqlState::DUPLICATE_OBJECT
            || *code == SqlState::INTERNAL_ERROR // "tuple concurrently updated"
            || *code == SqlState::T_R_DEADLOCK_DETECTED
            || *code == SqlState::T_R_SERIALIZATION_FAILURE
    })
}
