//! The workloads: their names and descriptions, which of them share a repo, and which datastores
//! they measure.

use crate::kind::Kind;
use crate::settings::Settings;

/// Workloads that share a repo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    LargeFile,
    LargeLeaves,
    SmallFiles,
    Import,
    Daemon,
    Part,
}

impl Stage {
    /// All, in the order in which they run.
    pub const ALL: [Stage; 6] = [
        Stage::LargeFile,
        Stage::LargeLeaves,
        Stage::SmallFiles,
        Stage::Import,
        Stage::Daemon,
        Stage::Part,
    ];

    /// Whether the datastore takes part.
    pub fn measures(self, kind: Kind) -> bool {
        use Kind::{
            Flatfs, FlatfsSync, Journal, JournalPostgres, JournalSlow, JournalSync, OnlyHash,
            Pebble, Through, ThroughSlow,
        };
        match self {
            Stage::LargeFile => kind != ThroughSlow,
            Stage::LargeLeaves => kind <= JournalSync,
            Stage::SmallFiles => kind <= JournalSlow,
            Stage::Import => !matches!(kind, OnlyHash | JournalPostgres) && !kind.is_slow(),
            Stage::Daemon => matches!(kind, Flatfs | FlatfsSync | Pebble) || kind.has_journal(),
            Stage::Part => matches!(kind, Flatfs | Journal | Through) || kind.is_slow(),
        }
    }

    pub fn workloads(self) -> impl Iterator<Item = &'static Workload> {
        WORKLOADS
            .iter()
            .filter(move |workload| workload.stage == self)
    }
}

/// One workload.
#[derive(Debug)]
pub struct Workload {
    pub stage: Stage,
    pub name: &'static str,
    pub title: &'static str,
    /// The description; `{mib}`, `{part}`, `{files}` and `{requests}` stand for numbers.
    what: &'static str,
    /// The unit that the rate counts.
    pub unit: Option<&'static str>,
    /// The datastore that the others are compared with.
    pub base: Kind,
    /// It runs in the first round only: it is too slow for more.
    pub once: bool,
    /// The number of concurrent clients that read from a daemon; 0 in other workloads.
    pub readers: usize,
}

impl Workload {
    const fn new(
        stage: Stage,
        name: &'static str,
        title: &'static str,
        what: &'static str,
    ) -> Workload {
        Workload {
            stage,
            name,
            title,
            what,
            unit: None,
            base: Kind::Flatfs,
            once: false,
            readers: 0,
        }
    }

    const fn once(self) -> Workload {
        Workload { once: true, ..self }
    }

    const fn readers(self, readers: usize) -> Workload {
        Workload { readers, ..self }
    }

    const fn unit(self, unit: &'static str) -> Workload {
        Workload {
            unit: Some(unit),
            ..self
        }
    }

    const fn against(self, base: Kind) -> Workload {
        Workload { base, ..self }
    }

    /// The description at these sizes.
    pub fn what(&self, settings: &Settings) -> String {
        self.what
            .replace("{mib}", &settings.mib.to_string())
            .replace("{part}", &settings.part_mib().to_string())
            .replace("{files}", &settings.files.to_string())
            .replace("{cold}", &settings.cold_requests().to_string())
            .replace("{whole}", &(settings.requests * 2).to_string())
            .replace("{parts}", &(settings.requests / 2).to_string())
    }
}

/// All, in the order of the tables.
pub const WORKLOADS: &[Workload] = &[
    Workload::new(Stage::LargeFile, "add", "Adding a large file", "`ipfs add` of {mib} MiB in leaves of 256 KiB, offline, `drainTimeoutSeconds` 0."),
    Workload::new(Stage::LargeLeaves, "add-1m", "Adding in larger leaves", "the same in raw leaves of 1 MiB."),
    Workload::new(Stage::SmallFiles, "add-small", "Adding small files", "`ipfs add -r` of {files} files of 4 KiB, offline, `drainTimeoutSeconds` 0."),
    Workload::new(Stage::SmallFiles, "get-small-cold", "Getting a tree of small files, cold", "`ipfs get` of the {files} files by a new process, page cache and disk cache empty.").unit("files/s"),
    Workload::new(Stage::SmallFiles, "gc-small", "Collecting small files", "`ipfs repo gc` of all blocks of the {files} files."),
    Workload::new(Stage::Part, "add-part", "Write-through on a slow network", "`ipfs add` of {part} MiB, offline, one run: without a journal every commit of 4 MiB waits for an upload.").once(),
    Workload::new(Stage::LargeFile, "cat-after-add", "Reading what was just added", "`ipfs cat` of {mib} MiB by a new process when they have just been added and, with walrusds, uploaded; page cache full.").unit("MiB/s"),
    Workload::new(Stage::LargeFile, "pin-after-add", "Pinning what was just added", "`ipfs pin add` of the {mib} MiB after that, all blocks there."),
    Workload::new(Stage::LargeFile, "re-add", "Adding again what is there", "`ipfs add` of the {mib} MiB once more.").against(Kind::OnlyHash),
    Workload::new(Stage::LargeFile, "cat-cold", "Reading, cold", "`ipfs cat` of {mib} MiB by a new process, page cache and disk cache empty.").unit("MiB/s"),
    Workload::new(Stage::LargeFile, "cat-warm", "Reading, warm", "the same once more, from the disk cache.").unit("MiB/s"),
    Workload::new(Stage::LargeFile, "pin-add", "Pinning", "`ipfs pin add` of the {mib} MiB, all blocks there."),
    Workload::new(Stage::LargeFile, "refs-local", "Listing", "`ipfs refs local`."),
    Workload::new(Stage::LargeFile, "gc", "Collecting garbage", "`ipfs repo gc` of all blocks of the {mib} MiB."),
    Workload::new(Stage::Import, "import", "Importing a CAR file", "`ipfs dag import` of the {mib} MiB, offline."),
    Workload::new(Stage::Daemon, "daemon-add", "Adding a large file by a daemon", "`ipfs add` of {mib} MiB by a daemon; CPU and memory are the daemon's; *on Walrus* when it has stopped."),
    Workload::new(Stage::Daemon, "daemon-add-small", "Adding small files by a daemon", "`ipfs add -r` of {files} files of 4 KiB by a daemon."),
    Workload::new(Stage::Daemon, "gateway-files-16", "Gateway: small files, 16 readers", "{whole} requests for one of the small files, at random, all warm.").unit("requests/s").readers(16),
    Workload::new(Stage::Daemon, "gateway-files-64", "Gateway: small files, 64 readers", "the same, 64 at once.").unit("requests/s").readers(64),
    Workload::new(Stage::Daemon, "gateway-cold-64", "Gateway: small files, cold, 64 readers", "{cold} requests for different small files in random order by a daemon that has just started, page cache and disk cache empty.").unit("requests/s").readers(64),
    Workload::new(Stage::Daemon, "gateway-ranges-16", "Gateway: ranges, 16 readers", "{parts} requests for 256 KiB of the large file, at random, all warm.").unit("requests/s").readers(16),
    Workload::new(Stage::Daemon, "gateway-ranges-64", "Gateway: ranges, 64 readers", "the same, 64 at once.").unit("requests/s").readers(64),
    Workload::new(Stage::Daemon, "block-get", "Random blocks", "{parts} calls of `block/get` for 256 KiB blocks at random, 16 at once, all warm.").unit("blocks/s").readers(16),
];

/// Workloads with tables of their own.
pub const OTHERS: [&str; 2] = ["datastore", "open"];
