//! The datastores that are measured side by side, all in one `ipfs` program.

use std::time::Duration;

use serde::Serialize;

/// A datastore, and for walrusds the network behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Kubo's default, what all others are compared with.
    Flatfs,
    /// The same with `sync` true: a write returns when it survives a power cut.
    FlatfsSync,
    /// Kubo's profile `badgerds`.
    Badger,
    /// Kubo's profile `pebbleds`.
    Pebble,
    /// `ipfs add --only-hash`: stores nothing, the limit of what an add can reach.
    OnlyHash,
    /// walrusds with the write journal, index in SQLite, network without latency.
    Journal,
    /// The same with `journalSync` `sync`: a write returns when the kernel has it, as with Kubo's
    /// own datastores.
    JournalSync,
    /// The same as `Journal` with the index in PostgreSQL.
    JournalPostgres,
    /// The same as `Journal` on a network that takes seconds.
    JournalSlow,
    /// walrusds without a journal: a write returns when it is on Walrus.
    Through,
    /// The same on a network that takes seconds.
    ThroughSlow,
}

/// How long the local Walrus takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// Per upload.
    pub put: Duration,
    /// Per read.
    pub get: Duration,
}

impl Kind {
    /// All, in the order in which tables show them.
    pub const ALL: [Kind; 11] = [
        Kind::Flatfs,
        Kind::FlatfsSync,
        Kind::Badger,
        Kind::Pebble,
        Kind::OnlyHash,
        Kind::Journal,
        Kind::JournalSync,
        Kind::JournalPostgres,
        Kind::JournalSlow,
        Kind::Through,
        Kind::ThroughSlow,
    ];

    /// As `BENCH_PEERS` and the JSON file name it.
    pub fn id(self) -> &'static str {
        match self {
            Kind::Flatfs => "flatfs",
            Kind::FlatfsSync => "flatfs-sync",
            Kind::Badger => "badger",
            Kind::Pebble => "pebble",
            Kind::OnlyHash => "only-hash",
            Kind::Journal => "journal",
            Kind::JournalSync => "journal-sync",
            Kind::JournalPostgres => "journal-postgres",
            Kind::JournalSlow => "journal-slow",
            Kind::Through => "through",
            Kind::ThroughSlow => "through-slow",
        }
    }

    /// As the tables name it.
    pub fn label(self) -> &'static str {
        match self {
            Kind::Flatfs => "flatfs",
            Kind::FlatfsSync => "flatfs, `sync: true`",
            Kind::Badger => "badger",
            Kind::Pebble => "pebble",
            Kind::OnlyHash => "`--only-hash`",
            Kind::Journal => "walrusds, journal",
            Kind::JournalSync => "walrusds, journal, `sync`",
            Kind::JournalPostgres => "walrusds, journal, Postgres",
            Kind::JournalSlow => "walrusds, journal, slow network",
            Kind::Through => "walrusds, write-through",
            Kind::ThroughSlow => "walrusds, write-through, slow network",
        }
    }

    /// The profiles for `ipfs init`.
    pub fn profiles(self) -> &'static str {
        match self {
            Kind::Flatfs | Kind::FlatfsSync | Kind::OnlyHash => "test",
            Kind::Badger => "test,badgerds",
            Kind::Pebble => "test,pebbleds",
            _ => "test,walrusds",
        }
    }

    pub fn is_walrusds(self) -> bool {
        self >= Kind::Journal
    }

    pub fn has_journal(self) -> bool {
        matches!(
            self,
            Kind::Journal | Kind::JournalSync | Kind::JournalPostgres | Kind::JournalSlow
        )
    }

    pub fn is_slow(self) -> bool {
        matches!(self, Kind::JournalSlow | Kind::ThroughSlow)
    }
}
