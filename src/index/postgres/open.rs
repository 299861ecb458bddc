//! Opens an index: finds its tables, brings them up to date where needed, and finds out whether
//! this node may write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_postgres::error::SqlState;

use super::call::{self, pause, Call, Repeat, Source as _};
use super::conn::Opener;
use super::connect::Connector;
use super::follow::Follow;
use super::go_staging::Staging;
use super::in_doubt::InDoubt;
use super::ledger::LedgerSql;
use super::missing::MissingSql;
use super::near::StandbyReads;
use super::pipeline::Pipeline;
use super::pool::Pool;
use super::query::Query;
use super::schema::{self, Find, Found, Meta, Shape};
use super::shards::{self, Shards};
use super::sql::Sql;
use super::url::Session;
use super::{error, PostgresIndex, PostgresOptions, PostgresParts};
use crate::error::{Error, ErrorKind, Result};
use crate::index::gate::Gate;
use crate::index::table::TableName;
use crate::index::{Absent, STANDBY};

/// Time for setting up the tables. For a large table of the Go plugin this means counting and
/// indexing its rows.
const MIGRATION_LIMIT: Duration = Duration::from_secs(3600);
/// Attempts to set up the tables while other nodes do the same.
const MIGRATIONS: u32 = 11;
/// How often a node that may not write checks its rights again, while writes are refused.
const RIGHTS_RECHECK: Duration = Duration::from_secs(1);

/// Why nothing can be written to an index whose primary was not there when it was opened.
pub(super) const NO_PRIMARY: &str = "the primary server cannot be reached";

/// The connections of an index whose tables are not known yet.
pub(super) struct Links {
    gate: Arc<Gate>,
    opener: Arc<Opener>,
    lookups: Arc<Pipeline>,
    deletes: Arc<Pipeline>,
    pool: Arc<Pool>,
}

impl Links {
    /// At most `conns` connections (but two at least), of which none is open yet.
    pub fn new(connector: Connector, conns: u32) -> Links {
        let opener = Opener::new(connector);
        let lookups = Pipeline::new(&opener);
        let own_deletes = conns >= 3;
        let deletes = match own_deletes {
            true => Pipeline::new(&opener),
            false => lookups.clone(),
        };
        let pipes = if own_deletes { 2 } else { 1 };
        let pool = Pool::new(&opener, conns.saturating_sub(pipes).max(1));
        Links {
            gate: Arc::new(Gate::default()),
            opener,
            lookups,
            deletes,
            pool,
        }
    }

    /// As [`prepare`].
    pub async fn prepare(
        &self,
        wanted: &TableName,
        options: &PostgresOptions,
        only_existing: bool,
    ) -> Result<(Shape, Option<&'static str>)> {
        let call = Call {
            what: "checking the tables",
            pass: Arc::new(self.gate.enter()?),
            repeat: Repeat::Harmless,
            limit: options.statement_timeout,
            follow: None,
        };
        // Both to their ends: the tables may be being made. The question travels beside the first.
        let prepared = prepare(wanted, &self.lookups, &self.pool, &call, only_existing);
        let citus = shards::are_there(&self.lookups, &call);
        let (prepared, citus) = tokio::join!(prepared, citus);
        let (mut shape, read_only) = prepared?;
        if citus? {
            shape.shards = Shards::find(&shape.table, &self.lookups, &call).await?;
        }
        Ok((shape, read_only))
    }

    pub async fn close(&self) {
        self.lookups.close();
        self.pool.close();
        self.opener.close().await;
    }

    /// The index with these tables. `follow`: it is an index on standbys.
    pub fn index(
        self,
        shape: Shape,
        read_only: Option<&'static str>,
        options: &PostgresOptions,
        follow: Option<Arc<Follow>>,
    ) -> PostgresIndex {
        if may_write(options) && read_only != Some(STANDBY) {
            self.opener.connector.leave_standbys_out();
        }
        let keep_deleted = match shape.has_deleted {
            true => options.keep_deleted,
            false => Duration::ZERO,
        };
        let inner = PostgresParts {
            sql: Sql::new(&shape, keep_deleted),
            ledger: shape.has_ledger.then(|| LedgerSql::new(&shape)),
            missing: MissingSql::new(&shape),
            keep_deleted,
            staging: Staging::new(shape.staging_exists),
            rights: Rights::new(read_only),
            may_write: may_write(options),
            opener: self.opener,
            lookups: self.lookups,
            deletes: self.deletes,
            pool: self.pool,
            shape,
            max_open_conns: options.max_open_conns,
            statement_timeout: options.statement_timeout,
            in_doubt: InDoubt::default(),
            follow,
        };
        PostgresIndex {
            gate: self.gate,
            inner: Arc::new(inner),
            near: None,
        }
    }
}

/// Whether lookups of this index may decide about writes, to it or to a copy of it.
fn may_write(options: &PostgresOptions) -> bool {
    options.standby_reads.is_none()
}

/// The connector for all statements, and the one for reads from standbys, if there are any.
pub(super) fn roles(
    connector: Connector,
    options: &PostgresOptions,
) -> (Connector, Option<(Connector, StandbyReads)>) {
    if connector.session() != Session::PreferStandby {
        return (connector, None);
    }
    let reads = options.standby_reads.filter(|_| !options.only_existing);
    let near = reads.map(|reads| (connector.looking_for(Session::PreferStandby), reads));
    if near.is_none() && !options.only_existing {
        connector.notify(
            "postgresURL has target_session_attrs=prefer-standby, and this node may write: it uses the primary alone, \
             since a write must not be decided by what a standby knows. Only a node with \"disableFlush\": true and \
             without journalPath reads from standbys"
                .into(),
        );
    }
    (connector.with_session(Session::PreferWritable), near)
}

/// Finds the tables, or makes them (unless `only_existing`). Returns the reason why nothing can be
/// written to them, if there is one.
pub(super) async fn prepare(
    wanted: &TableName,
    lookups: &Pipeline,
    pool: &Arc<Pool>,
    call: &Call,
    only_existing: bool,
) -> Result<(Shape, Option<&'static str>)> {
    for migrated in [false, true] {
        let (found, meta) = Box::pin(inspect(wanted, lookups, call)).await?;
        let (mut usable, version) = (None, meta.version);
        if version > 0 && schema::check_current(&found)? {
            let (read_only, lacking) = rights(&found.table, lookups, call).await?;
            if let (None, Some(lacking)) = (read_only, lacking) {
                lookups.opener().connector.notify(format!(
                    "index in Postgres: this role has no right to {lacking}: what needs it will fail, such as deletions, \
                     renewals, or counting. GRANT SELECT, INSERT, UPDATE, DELETE on these tables to it"
                ));
            }
            // A node that only reads leaves an older version as it is, and so does an inspection.
            if version >= schema::VERSION || read_only.is_some() || only_existing {
                return Ok((found.shape(meta), read_only));
            }
            if version >= schema::ALL_TABLES {
                usable = Some(found.shape(meta));
            }
        }
        if migrated {
            break;
        }
        if only_existing {
            let error = Error::new(
                ErrorKind::Config,
                format!(
                    "index in Postgres: there is no table {wanted} that this walrusds can use as it is: let a node \
                     open it first"
                ),
            );
            return Err(match found.exists() {
                false => error.caused_by(Absent),
                true => error,
            });
        }
        let migration = Call {
            what: "setting up the tables",
            limit: MIGRATION_LIMIT,
            ..call.clone()
        };
        let done = call::run(pool, &migration, |conn, _| {
            let wanted = wanted.clone();
            Box::pin(async move {
                let mut tries = 1;
                loop {
                    match schema::migrate(&conn, &wanted).await {
                        Err(e) if schema::collided(&e) && tries < MIGRATIONS => tries += 1,
                        done => return done,
                    }
                    tokio::time::sleep(pause(3)).await;
                }
            })
        });
        let done = done
            .await?
            .map_err(|e| error::statement(migration.what, e))?;
        match (done, usable) {
            (Ok(()), _) => {}
            // A role that may make no index works without, as it did before.
            (Err(e), Some(shape)) => {
                let text = format!("{} Until then, some searches are slow", e.message());
                lookups.opener().connector.notify(text);
                return Ok((shape, None));
            }
            (Err(e), None) => return Err(e),
        }
    }
    Err(Error::retryable(
        ErrorKind::Index,
        format!("index in Postgres: the tables of {wanted} were changed while they were set up; try again"),
    ))
}

/// One round trip: the columns, and the version of the schema with the notes, pipelined.
async fn inspect(wanted: &TableName, lookups: &Pipeline, call: &Call) -> Result<(Found, Meta)> {
    let failed = |e| error::statement(call.what, e);
    let find = Query::once(schema::FIND);
    let params = Find::new(wanted).params();
    let (rows, meta) = tokio::try_join!(
        call::query(lookups, call, &find, &params),
        read_meta(wanted, lookups, call),
    )?;
    let found = Found::new(wanted, &rows.map_err(failed)?).map_err(failed)??;
    let meta = match found.table == *wanted {
        true => meta,
        false => read_meta(&found.table, lookups, call).await?,
    };
    let meta = match meta {
        Ok(rows) => schema::judge(&found.table, &rows).map_err(failed)??,
        Err(e) if e.code() == Some(&SqlState::UNDEFINED_TABLE) => Meta::default(),
        // The migration reports a schema that does not exist.
        Err(e) if e.code() == Some(&SqlState::INVALID_SCHEMA_NAME) => Meta::default(),
        Err(e) => return Err(failed(e)),
    };
    Ok((found, meta))
}

async fn read_meta(
    table: &TableName,
    lookups: &Pipeline,
    call: &Call,
) -> Result<super::Answer<Vec<super::Row>>> {
    let query = Query::once(schema::read_meta(table));
    call::query(lookups, call, &query, &[].into()).await
}

/// The reason why this node may not write, if there is one: a standby, a role without the rights,
/// or a setting. Also the rights that the role lacks on the table and its companions.
async fn rights(
    table: &TableName,
    lookups: &Pipeline,
    call: &Call,
) -> Result<(Option<&'static str>, Option<String>)> {
    let call = Call {
        what: "checking the rights",
        ..call.clone()
    };
    let params = schema::may_write(table);
    let asked = Query::once(schema::MAY_WRITE);
    let rows = match call::query(lookups, &call, &asked, &params).await? {
        Ok(rows) => rows,
        Err(e) if error::retry(&e) != error::Retry::No => {
            return Err(error::statement(call.what, e))
        }
        // An engine without these functions: the first write shows whether writes are allowed.
        Err(_) => Vec::new(),
    };
    let flag = |at: usize| rows.first().and_then(|row| row.try_get::<_, bool>(at).ok());
    let read_only = match (flag(0), flag(1), flag(2)) {
        (Some(true), ..) => Some(STANDBY),
        (_, Some(true), _) => Some("transactions of this role are read-only"),
        (_, _, Some(false)) => Some("this role has no right to write to the table"),
        _ => None,
    };
    let lacking = rows.first().and_then(|row| row.try_get(3).ok()).flatten();
    Ok((read_only, lacking))
}

/// The reason why nothing can be written, if there is one, as last seen: a standby may have become
/// the primary since.
pub(super) struct Rights {
    read_only: Mutex<Option<&'static str>>,
    checked: Mutex<Instant>,
}

impl Rights {
    pub fn new(read_only: Option<&'static str>) -> Rights {
        Rights {
            read_only: Mutex::new(read_only),
            checked: Mutex::new(Instant::now()),
        }
    }

    pub fn read_only(&self) -> Option<&'static str> {
        *self.read_only.lock()
    }
}

impl PostgresIndex {
    /// Checks in the background whether this node may write by now, if the last check is old.
    pub(super) fn recheck_rights(&self) {
        let (Ok(runtime), Ok(call)) = (
            tokio::runtime::Handle::try_current(),
            self.call("checking the rights"),
        ) else {
            return;
        };
        {
            let mut checked = self.inner.rights.checked.lock();
            if checked.elapsed() < RIGHTS_RECHECK {
                return;
            }
            *checked = Instant::now();
        }
        let inner = self.inner.clone();
        runtime.spawn(async move {
            // Without an answer, the last known state holds.
            if let Ok((found, _)) = rights(&inner.shape.table, &inner.lookups, &call).await {
                *inner.rights.read_only.lock() = found;
                if found.is_none() && inner.may_write {
                    inner.opener.connector.leave_standbys_out();
                }
            }
        });
    }
}
