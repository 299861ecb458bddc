//! One suite for every index: the functions of `shared` run against Postgres (a new table, tables
//! of the Go plugin in two collations, a table in partitions) and SQLite. The tests of a single
//! index are in `index_suite/postgres.rs` and `index_suite/sqlite.rs`. `scripts/citus.sh` runs the
//! parts of a new table in Postgres on Citus, and the tests of `index_suite/citus.rs`.

#[path = "index_suite/citus.rs"]
mod citus;
#[path = "index_suite/companions.rs"]
mod companions;
#[path = "index_suite/connecting.rs"]
mod connecting;
#[path = "index_suite/ledger.rs"]
mod ledger;
#[path = "index_suite/measure.rs"]
mod measure;
#[path = "index_suite/postgres.rs"]
mod on_postgres;
#[path = "index_suite/sqlite.rs"]
mod on_sqlite;
#[path = "index_suite/provisioning.rs"]
mod provisioning;
#[path = "index_suite/read_only.rs"]
mod read_only;
#[path = "index_suite/shared.rs"]
mod shared;
#[path = "index_suite/standby.rs"]
mod standby;
#[path = "index_suite/undo.rs"]
mod undo;

use std::sync::Arc;

use walrusds::Index;

/// Two handles on the same empty index, as two nodes would have.
pub struct Env {
    pub a: Arc<dyn Index>,
    pub b: Arc<dyn Index>,
    /// Whether rows may carry a patch ID.
    pub quilts: bool,
    /// Keeps temporary files.
    pub _keep: Option<tempfile::TempDir>,
}

macro_rules! suite {
    ($($name:ident),+ $(,)?) => {
        mod postgres_new {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::shared::$name(super::on_postgres::env_new().await).await;
            })+
        }
        mod postgres_go_table {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::shared::$name(super::on_postgres::env_go("").await).await;
            })+
        }
        mod postgres_go_table_icu_database {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::shared::$name(super::on_postgres::env_go(super::on_postgres::ICU).await).await;
            })+
        }
        mod postgres_partitioned {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::shared::$name(super::on_postgres::env_partitioned().await).await;
            })+
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::shared::$name(super::on_sqlite::env().await).await;
            })+
        }
    };
    ($module:ident: $($name:ident),+ $(,)?) => {
        mod $module {
            mod postgres {
                $(#[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    crate::ledger::$name(crate::on_postgres::env_new().await).await;
                })+
            }
            mod postgres_go_table {
                $(#[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    crate::ledger::$name(crate::on_postgres::env_go("").await).await;
                })+
            }
            mod sqlite {
                $(#[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    crate::ledger::$name(crate::on_sqlite::env().await).await;
                })+
            }
        }
    };
}

suite!(
    ledgers:
    an_entry_is_written_with_its_rows,
    what_is_known_anew_replaces_what_was_known,
    rows_move_with_an_entry,
    states_of_blobs,
    a_pass_counts_every_blob,
    the_horizon_sums_up,
    epochs_are_shared,
    missing_rows_are_added_and_others_kept,
    missing_rows_of_many_pages_are_one,
);

suite!(
    put_get_and_overwrite,
    get_many_keeps_order,
    deletes_count,
    keys_that_are_refused,
    odd_keys_are_exact,
    prefixes_are_exact,
    listing_is_in_byte_order,
    ranges_of_keys,
    listing_pages_while_writing,
    bulk_put_and_paging,
    put_many_is_all_or_nothing,
    rows_move_from_their_blob_alone,
    rows_are_deleted_from_their_blob_alone,
    blobs_of_rows_are_listed_in_pages,
    moves_of_many_rows_are_one,
    moves_meet_puts_and_deletes,
    extremes_survive,
    renewal_order_and_pages,
    renewal_never_goes_back,
    rows_of_a_blob,
    rows_of_a_blob_from_an_offset_on,
    running_total,
    leases,
    notes,
    quilt_members,
    members_of_a_true_quilt,
    concurrent_use,
    closing,
);
