//! What an operator should know of the server: version, rights, connections, what stands between.

use super::query::{Param, Query};
use super::{read, PostgresIndex};
use crate::error::Result;
use crate::index::Fact;

/// The oldest version that is supported.
const OLDEST: i32 = 130_000;
/// The first version that knows the version of a database's collation.
const KNOWS_COLLATION: i32 = 150_000;
/// Connections that others need: monitoring, backups, superusers.
const SPARE: i32 = 10;

const ASKED: &str = "SELECT current_setting('server_version'), current_setting('server_version_num')::int, \
    pg_is_in_recovery(), current_setting('default_transaction_read_only')::boolean, \
    has_table_privilege($1, 'SELECT'), has_table_privilege($1, 'INSERT'), has_table_privilege($1, 'UPDATE'), \
    has_table_privilege($1, 'DELETE'), inet_server_port(), current_setting('max_connections')::int, current_user::text";

/// The collation's version by which the database was made, that of the system, and the database,
/// quoted; no row if they are one or the collation has none.
const COLLATION: &str =
    "SELECT datcollversion, pg_database_collation_actual_version(oid), quote_ident(datname) \
    FROM pg_database WHERE datname = current_database() \
    AND datcollversion <> pg_database_collation_actual_version(oid)";

impl PostgresIndex {
    /// Asks the server, in one round trip or two.
    pub(super) async fn server_facts(&self) -> Result<Vec<Fact>> {
        let call = self.call("asking the database for its settings")?;
        let inner = &self.inner;
        let table = inner.shape.table.quoted();
        let params = [Param::Text(table.clone())].into();
        let rows = inner.ask(&call, &Query::once(ASKED), params).await?;
        let facts = read(call.what, &rows, |row| {
            let version: String = row.try_get(0)?;
            let number: i32 = row.try_get(1)?;
            let (standby, read_only): (bool, bool) = (row.try_get(2)?, row.try_get(3)?);
            let rights = ["SELECT", "INSERT", "UPDATE", "DELETE"];
            let mut lacking = Vec::new();
            for (at, right) in rights.iter().enumerate() {
                if !row.try_get::<_, bool>(4 + at)? {
                    lacking.push(*right);
                }
            }
            let port: Option<i32> = row.try_get(8)?;
            let connections: i32 = row.try_get(9)?;
            let user: String = row.try_get(10)?;
            Ok((
                version,
                number,
                standby,
                read_only,
                lacking,
                port,
                connections,
                user,
            ))
        });
        let facts = facts?.into_iter().next();
        let Some((version, number, standby, read_only, lacking, port, connections, user)) = facts
        else {
            return Ok(Vec::new());
        };
        let mut found = vec![match number < OLDEST {
            false => Fact::fine("version", format!("PostgreSQL {version}")),
            true => Fact::trouble(
                "version",
                format!("PostgreSQL {version} is older than 13"),
                "walrusds was tried with 13 and later",
                "upgrade the server (pg_upgrade)",
            ),
        }];
        if number >= KNOWS_COLLATION {
            let rows = inner.ask(&call, &Query::once(COLLATION), [].into()).await?;
            let changed = read(call.what, &rows, |row| {
                Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
            })?;
            found.extend(changed.into_iter().map(collation_changed));
        }
        if standby || read_only {
            let what = if standby {
                "a standby"
            } else {
                "set to read-only transactions"
            };
            found.push(Fact::trouble(
                "writable",
                format!("the database is {what}: this node reads alone"),
                "a node that is to store blocks needs a primary",
                "name all hosts in postgresURL and add target_session_attrs=read-write",
            ));
        }
        found.push(match lacking.is_empty() {
            true => Fact::fine("rights", format!("the role {user} may read, write and delete rows")),
            false => Fact::trouble(
                "rights",
                format!("the role {user} lacks {} on {table}", lacking.join(", ")),
                "without them the node cannot store (INSERT, UPDATE) or remove (DELETE) blocks; a node that only reads needs SELECT alone",
                format!("GRANT {} ON {table} TO \"{user}\";", lacking.join(", ")),
            ),
        });
        let asked = inner.opener.connector.ports();
        match port.and_then(|port| u16::try_from(port).ok()) {
            Some(port) if !asked.contains(&port) => found.push(Fact::fine(
                "pooler",
                format!(
                    "a pooler or a forwarded port stands between (the server listens on {port}); no statement needs a session, so transaction pooling is fine"
                ),
            )),
            Some(_) => found.push(Fact::fine("pooler", "the server is asked directly")),
            // A Unix socket: this machine's own, or the pooler's beside the server.
            None => {}
        }
        let most = i32::try_from(inner.max_open_conns).unwrap_or(i32::MAX);
        found.push(match most.saturating_add(SPARE) > connections {
            false => Fact::fine(
                "connections",
                format!("maxOpenConns is {most}, and the server takes {connections} connections of all its users"),
            ),
            true => Fact::trouble(
                "connections",
                format!("maxOpenConns is {most}, and the server takes {connections} connections of all its users"),
                "a busy node leaves no connection for other nodes, backups and monitoring",
                format!("\"maxOpenConns\": {}", (connections / 4).max(2)),
            ),
        });
        Ok(found)
    }
}

/// The database was made with another version of its collation: `(then, now, database)`.
fn collation_changed((then, now, database): (String, String, String)) -> Fact {
    Fact::trouble(
        "collation",
        format!("the database was made with version {then} of its collation, and the system has {now}"),
        "texts may be sorted in another way now, so searches in an index that was made before can miss rows that are there, \
         as blobs or as blocks of the Go plugin's tables",
        format!("REINDEX DATABASE {database}; ALTER DATABASE {database} REFRESH COLLATION VERSION; -- while no node runs"),
    )
}
