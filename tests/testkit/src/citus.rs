//! A Citus cluster for tests: one coordinator and some workers, all on this machine, where the
//! installed PostgreSQL has the extension.
//!
//! `WALRUSDS_TEST_CITUS=URL` names the coordinator of a cluster that runs already (its role must be
//! a superuser). In both cases an event trigger distributes each new table of an index by its key,
//! and the table of its deleted rows beside it; all other tables stay on the coordinator.

use crate::postgres::{Postgres, USER};

/// The variable that names a cluster.
pub const VARIABLE: &str = "WALRUSDS_TEST_CITUS";

/// Shards of each table.
const SHARDS: u32 = 8;

/// What each server needs.
const SETTINGS: [&str; 9] = [
    "shared_preload_libraries='citus'",
    // Before the extension is made: it writes another value into a server's settings otherwise.
    "citus.node_conninfo='sslmode=disable'",
    "citus.shard_count=8",
    "citus.max_cached_conns_per_worker=8",
    "citus.recover_2pc_interval='2s'",
    "citus.stat_statements_track=none",
    "max_prepared_transactions=200",
    "wal_level=logical",
    "max_connections=300",
];

/// The settings of a server that keeps what it has acknowledged, as by default; tests do without.
pub const DURABLE: [&str; 4] = [
    "fsync=on",
    "full_page_writes=on",
    "autovacuum=on",
    "shared_buffers=128MB",
];

/// The URL of a cluster that runs already, if one is given.
pub fn given() -> Option<String> {
    std::env::var(VARIABLE).ok().filter(|url| !url.is_empty())
}

/// The URL of a schema in the database of a cluster. "postgres" stands for the database itself.
pub(crate) fn url_of(coordinator: &str, schema: &str) -> String {
    if schema == "postgres" {
        return coordinator.to_owned();
    }
    let sign = if coordinator.contains('?') { '&' } else { '?' };
    format!("{coordinator}{sign}options=-c%20search_path%3D{schema}")
}

/// A cluster of its own.
pub struct Citus {
    pub coordinator: Postgres,
    /// Without any, the coordinator holds the shards.
    pub workers: Vec<Postgres>,
}

impl Citus {
    /// Whether the installed PostgreSQL has the extension.
    pub fn is_installed() -> bool {
        let server = Postgres::start();
        let asked = "SELECT count(*) FROM pg_available_extensions WHERE name = 'citus'";
        server.scalar("postgres", asked) == "1"
    }

    /// Starts a cluster.
    pub fn start(workers: usize) -> Citus {
        Citus::start_with(workers, &[])
    }

    /// As [`Citus::start`], with more lines for each `postgresql.conf`.
    pub fn start_with(workers: usize, settings: &[&str]) -> Citus {
        let settings = [&SETTINGS[..], settings].concat();
        let server = || {
            let server = Postgres::start_with(&settings);
            server.execute("postgres", "CREATE EXTENSION citus");
            server
        };
        let (coordinator, workers): (Postgres, Vec<Postgres>) =
            (server(), (0..workers).map(|_| server()).collect());
        let tell = |sql: String| coordinator.execute("postgres", &sql);
        let port = coordinator.port();
        tell(format!(
            "SELECT citus_set_coordinator_host('127.0.0.1', {port})"
        ));
        for worker in &workers {
            tell(format!(
                "SELECT citus_add_node('127.0.0.1', {})",
                worker.port()
            ));
        }
        if workers.is_empty() {
            tell(format!(
                "SELECT citus_set_node_property('127.0.0.1', {port}, 'shouldhaveshards', true)"
            ));
        }
        prepare(&coordinator);
        Citus {
            coordinator,
            workers,
        }
    }

    /// Stops the servers when this process is gone, however it ends.
    pub fn stop_with_process(&self) {
        self.coordinator.stop_with_process();
        self.workers.iter().for_each(Postgres::stop_with_process);
    }

    /// Makes a role that is no superuser, with a schema for its tables alone. Returns its URL. No
    /// table is distributed by itself any more.
    pub fn plain_role(&self) -> String {
        let role = "CREATE ROLE walrusds LOGIN; CREATE SCHEMA walrusds AUTHORIZATION walrusds; \
                    ALTER ROLE walrusds IN DATABASE postgres SET search_path = walrusds";
        self.coordinator.execute(
            "postgres",
            &format!("DROP EVENT TRIGGER walrusds_test_distribute; {role}"),
        );
        self.coordinator.url_as("walrusds", "postgres")
    }

    /// The URL of the database that every server has, for [`VARIABLE`].
    pub fn url(&self) -> String {
        self.coordinator.url_as(USER, "postgres")
    }
}

/// Makes the event trigger. `create_distributed_table` makes the shards by statements that do not
/// concern it: their tables have the names of others with a number.
pub fn prepare(coordinator: &Postgres) {
    coordinator.execute(
        "postgres",
        &format!(
            "CREATE OR REPLACE FUNCTION public.walrusds_test_distribute() RETURNS event_trigger LANGUAGE plpgsql AS $$
             DECLARE made record; columns name[]; main text;
             BEGIN
                 FOR made IN SELECT objid, object_identity FROM pg_event_trigger_ddl_commands() WHERE command_tag = 'CREATE TABLE'
                 LOOP
                     SELECT array_agg(attname) INTO columns FROM pg_attribute WHERE attrelid = made.objid AND attnum > 0;
                     main := regexp_replace(made.object_identity, '_deleted$', '');
                     IF made.object_identity ~ '_[0-9]{{6,}}$' THEN
                         CONTINUE;
                     ELSIF columns @> '{{key,blob_id,size}}' THEN
                         PERFORM create_distributed_table(made.object_identity, 'key', colocate_with => 'none', shard_count => {SHARDS});
                     ELSIF columns @> '{{key,blob,keep_until}}' THEN
                         PERFORM create_distributed_table(made.object_identity, 'key', colocate_with => main);
                     END IF;
                 END LOOP;
             END $$;
             DROP EVENT TRIGGER IF EXISTS walrusds_test_distribute;
             CREATE EVENT TRIGGER walrusds_test_distribute ON ddl_command_end WHEN TAG IN ('CREATE TABLE')
                 EXECUTE FUNCTION public.walrusds_test_distribute();"
        ),
    );
}
