//! Whether everything is as a node needs it: publishers, aggregators, index, disks, wallet, Kubo.
//!
//! [`doctor`] asks each part in turn and tells each [`Diagnosis`] as it is made. It goes on past
//! whatever it finds. Nothing is changed and nothing is paid for, but with [`Options::store`] one
//! tiny blob is stored ([`price_of_store`] tells its price beforehand). The probes of publishers
//! and aggregators can be asked by themselves, as `walrusds init` does.
//!
//! | module | asks |
//! |---|---|
//! | `server` | what publishers and aggregators share: whether they answer, clocks, TLS |
//! | `aggregator` | which requests it knows, and how it treats ranges |
//! | `publisher` | which parameters it knows, tokens, the limits of proxies |
//! | `store` | storing a tiny blob and reading it back |
//! | `index` | database, rights, round trips |
//! | `disk` | directories of journal and cache: space, speed |
//! | `wallet` | the operator's `walrus` program |
//! | `kubo` | settings of Kubo |

use std::path::Path;

use serde_json::{json, Value};

use crate::config::Config;
use crate::datastore::Inspection;
use crate::error::Result;

mod aggregator;
mod disk;
mod index;
mod kubo;
mod publisher;
mod server;
mod store;
mod wallet;

pub use aggregator::aggregator;
pub(super) use disk::disk_speed;
pub use publisher::publisher;
pub use store::{price_of_store, Price};

/// The name and version of the report's schema. Fields may be added within a version.
pub const SCHEMA: &str = "walrusds.doctor/1";

/// How a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Health {
    /// As it should be.
    Good,
    /// It works, and could do better.
    Advice,
    /// It works, and will make trouble.
    Warning,
    /// It does not work.
    Bad,
}

impl Health {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Health::Good => "good",
            Health::Advice => "advice",
            Health::Warning => "warning",
            Health::Bad => "bad",
        }
    }
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Diagnosis {
    /// The part: `publisher`, `aggregator`, `index`, `journal`, `cache`, `wallet`, `kubo`.
    pub part: &'static str,
    /// The question, as a name that stays (`reachable`, `range`, …).
    pub test: &'static str,
    /// How it is.
    pub health: Health,
    /// What was found.
    pub what: String,
    /// Why that matters; empty if all is well.
    pub why: &'static str,
    /// The line that mends it, where one does.
    pub cure: Option<String>,
}

impl Diagnosis {
    fn good(part: &'static str, test: &'static str, what: impl Into<String>) -> Diagnosis {
        Diagnosis {
            part,
            test,
            health: Health::Good,
            what: what.into(),
            why: "",
            cure: None,
        }
    }

    fn new(
        part: &'static str,
        test: &'static str,
        health: Health,
        what: impl Into<String>,
        why: &'static str,
    ) -> Diagnosis {
        Diagnosis {
            part,
            test,
            health,
            what: what.into(),
            why,
            cure: None,
        }
    }

    fn cure(mut self, line: impl Into<String>) -> Diagnosis {
        self.cure = Some(line.into());
        self
    }

    /// As a JSON object of the report's schema.
    pub fn to_json(&self) -> Value {
        json!({
            "part": self.part,
            "test": self.test,
            "health": self.health.name(),
            "what": self.what,
            "why": self.why,
            "cure": self.cure,
        })
    }
}

/// What is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Whether a tiny blob is stored and read back, which is paid for.
    pub store: bool,
    /// Kubo's whole configuration, if its settings are to be looked at.
    pub kubo: Option<Value>,
}

setters! { Options {
    with_store(store: bool);
    with_kubo(kubo: Option<Value>);
} }

/// Looks at everything that a configuration names. Relative paths are taken from `repo`. Must be
/// called within a tokio runtime.
///
/// # Errors
/// [`ErrorKind::Config`](crate::ErrorKind::Config) if the configuration contradicts itself.
/// Whatever else goes wrong is a diagnosis.
pub async fn doctor(
    config: Config,
    repo: &Path,
    options: &Options,
    on: &mut (dyn FnMut(Diagnosis) + Send),
) -> Result<()> {
    // The parts resolve the configuration once more.
    let repo = &std::path::absolute(repo).unwrap_or_else(|_| repo.to_owned());
    let config = config.resolve(repo);
    config.check_paths()?;
    config.check_repo(repo)?;
    let (opened, found) = index::open(config.clone(), repo).await;
    found.into_iter().for_each(&mut *on);
    if let Some(opened) = &opened {
        index::look(opened, &config)
            .await
            .into_iter()
            .for_each(&mut *on);
    }
    let blob = match &opened {
        Some(opened) => some_blob(opened).await,
        None => None,
    };
    for url in &config.publishers {
        for diagnosis in publisher(url, &config).await {
            on(diagnosis);
        }
    }
    let stored = match options.store {
        true => {
            let (found, stored) = store::store(&config).await;
            found.into_iter().for_each(&mut *on);
            stored
        }
        false => None,
    };
    let blob = stored.or(blob);
    for url in &config.aggregators {
        for diagnosis in aggregator(url, blob.as_deref()).await {
            on(diagnosis);
        }
    }
    disk::look(&config).await.into_iter().for_each(&mut *on);
    wallet::look(&config).await.into_iter().for_each(&mut *on);
    let kubo = options.kubo.as_ref();
    let kubo = kubo.map_or_else(Vec::new, |kubo| kubo::look(kubo, &config, repo));
    kubo.into_iter().for_each(&mut *on);
    if let Some(opened) = opened {
        opened.close().await?;
    }
    Ok(())
}

/// A blob that the index says is stored.
async fn some_blob(opened: &Inspection) -> Option<String> {
    let page = opened.index().blobs_of_rows("", 64).await.ok()?;
    let latest = page.into_iter().max_by_key(|blob| blob.end_epoch)?;
    Some(latest.blob_id)
}
