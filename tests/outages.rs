//! The real datastore while its surroundings fail: PostgreSQL, a pooler in front of it, the disk
//! under SQLite, Walrus itself, the node's own process. Each case runs the same load through one
//! outage, records what its callers saw, waits until everything works again without reopening
//! anything, and reads back all that was ever acknowledged (`outages/scenario.rs`).
//!
//! Short cases run with the other tests; the rest is ignored there and run by `make outages`, which
//! also prints the table of docs/reliability.md.

#[path = "outages/disk.rs"]
mod disk;
#[path = "outages/journal.rs"]
mod journal;
#[path = "outages/net.rs"]
mod net;
#[path = "outages/node.rs"]
mod node;
#[path = "outages/pooler.rs"]
mod pooler;
#[path = "outages/postgres.rs"]
mod postgres_outages;
#[path = "outages/scenario.rs"]
mod scenario;
#[path = "outages/sqlite.rs"]
mod sqlite;
#[path = "outages/walrus.rs"]
mod walrus;
