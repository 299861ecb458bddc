//! A daemon through an outage. (The tour covers its other behaviour.)

use kubo_tests::{noise, run, Index, World, LIMIT};
use walrus_devnet::{FaultAction, FaultRule, Op};

#[test]
fn daemon_outlives_an_outage_of_publisher_and_database() {
    let mut own = kubo_tests::pg::Postgres::start();
    let mut world = World::new(Index::Sqlite);
    world.set("WALRUSDS_POSTGRES_URL", own.url("postgres"));
    world.set("WALRUSDS_MAX_RETRIES", "1");
    let node = world.node();
    let up = node.daemon();
    let file = noise(1, 2 << 20);
    let cid = node.add(&file);

    own.down();
    let outcome = run(node.command(["add", "-Q"]), &noise(2, 1 << 20), LIMIT);
    let said = outcome.expect_failure("an add without a database");
    assert!(said.contains("index in Postgres"), "{said}");
    own.up();
    node.assert_holds(&cid, &file);

    let broken = FaultRule::new(FaultAction::Unavailable).on([Op::Put]);
    world.net.set_faults(broken);
    let said = node
        .try_add(&noise(3, 1 << 20))
        .expect_failure("an add without a publisher");
    assert!(
        said.contains(&world.net.url()) && said.contains("503"),
        "{said}"
    );
    world.net.clear_faults();

    let again = node.add(&noise(3, 1 << 20));
    node.assert_holds(&again, &noise(3, 1 << 20));
    node.verify();
    up.stop();
}
