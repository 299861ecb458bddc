//! The tour of `kubo_tests::tour` with the newest and the oldest Kubo. `make kubo-matrix` takes the
//! versions in between along.

use kubo_tests::{tour, Index, Ipfs};

#[test]
fn tour_v0_43_preloaded_postgres() {
    tour::check(&Ipfs::preloaded(), Index::Postgres);
}

#[test]
fn tour_v0_43_external_sqlite() {
    tour::check(&Ipfs::external_43(), Index::Sqlite);
}

#[test]
fn tour_v0_30_external_postgres() {
    tour::check(&Ipfs::external_30(), Index::Postgres);
}
