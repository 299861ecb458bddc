//! Places between two durable steps where a test can end the process, as a power cut would.
//!
//! They exist only where the compiler is given `--cfg failpoints`, which `scripts/chaos.sh` does
//! in a build of its own. No feature turns them on, so that no combination of packages in
//! one build can bring them into the released library.

/// Ends the process here if a test asked for that.
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(failpoints)]
        crate::failpoint::hit($name);
    };
}

/// The names of all fail points, for tests that try each of them.
#[cfg(failpoints)]
pub const FAILPOINTS: [&str; 47] = [
    "pack.gathered",
    "pack.stored",
    "pack.indexed",
    "delete.begun",
    "delete.done",
    "renew.read",
    "renew.stored",
    "renew.noted",
    "repack.read",
    "repack.stored",
    "repack.read_back",
    "repack.moved",
    "repack.released",
    "extend.begun",
    "extend.done",
    "extend.noted",
    "dead.chosen",
    "dead.deleted",
    "dead.forgotten",
    "adopt.claimed",
    "adopt.stored",
    "adopt.read_back",
    "adopt.promoted",
    "usage.taken",
    "usage.written",
    "close.begun",
    "close.packed",
    "close.stopped",
    "sqlite.begun",
    "sqlite.worked",
    "sqlite.committed",
    "sqlite.schema.opened",
    "sqlite.schema.created",
    "postgres.schema.locked",
    "postgres.schema.statement",
    "postgres.schema.changed",
    "postgres.schema.committed",
    "journal.created",
    "journal.appended",
    "journal.synced",
    "journal.noted",
    "journal.removed",
    "flush.prepared",
    "flush.stored",
    "flush.indexed",
    "flush.read_back",
    "flush.settled",
];

/// Aborts at the n-th hit of the point that `WALRUSDS_FAILPOINT=<name>:<n>` names.
#[cfg(failpoints)]
pub(crate) fn hit(name: &str) {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use std::sync::OnceLock;

    static ARMED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static HITS: AtomicU64 = AtomicU64::new(0);
    let armed = ARMED.get_or_init(|| {
        let text = std::env::var("WALRUSDS_FAILPOINT").ok()?;
        let (name, n) = text.split_once(':')?;
        assert!(FAILPOINTS.contains(&name), "no fail point {name}");
        Some((name.to_owned(), n.parse().ok()?))
    });
    if let Some((point, n)) = armed {
        if point == name && HITS.fetch_add(1, SeqCst) + 1 == *n {
            eprintln!("fail point {name}");
            std::process::abort();
        }
    }
}
