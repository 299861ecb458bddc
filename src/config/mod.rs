//! Configuration: the JSON object under `Datastore.Spec` in Kubo's config, checked key by key.
//!
//! Every error names the key, the value that was found and the expected one; a value that may hold
//! a secret is never shown.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};
use url::Url;

use crate::error::{Error, ErrorKind, Result};
use crate::limits::MAX_VALUE_BYTES;
use crate::walrus::{Auth, ClientConfig};

mod chain;
mod keys;
mod local;
mod network;

pub use crate::journal::{JournalConfig, JournalSync};
pub use crate::lifetime::chain::WalrusCommand;
pub use crate::read::disk::DiskCacheConfig;
pub use crate::read::VerifyReads;
pub use crate::upload::Format as PackFormat;
pub use keys::{KeySpec, KeyType, KEYS, MAX_BLOB_BYTES};

/// Long enough to serve the size and the block from one lookup, and the neighbours of a block while
/// a file is read; short enough that this node soon notices that another node has deleted a block.
const ROW_TTL: Duration = Duration::from_secs(5);

/// The index that a node uses.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum IndexConfig {
    /// The shared index; holds the libpq URL, which may hold a password.
    Postgres(String),
    /// The embedded index in this file.
    Sqlite(PathBuf),
}

impl fmt::Debug for IndexConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IndexConfig::Postgres(_) => f.write_str("Postgres(***)"),
            IndexConfig::Sqlite(path) => f.debug_tuple("Sqlite").field(path).finish(),
        }
    }
}

/// A checked configuration. [`KEYS`] describes each key.
///
/// ```
/// use walrusds::Config;
///
/// let config = Config::from_json(
///     r#"{"publisherURL": "http://127.0.0.1:31415", "aggregatorURL": "http://127.0.0.1:31415",
///         "indexPath": "index.sqlite", "epochs": 5}"#,
/// )?;
/// assert_eq!(config.epochs, 5);
/// assert_eq!(config.table, "walrus_index");
///
/// let err = Config::from_json(r#"{"publisherURl": "http://p"}"#).unwrap_err();
/// assert!(err.message().contains("did you mean \"publisherURL\""));
/// # Ok::<(), walrusds::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Base URLs of publishers, as given (trimmed).
    pub publishers: Vec<String>,
    /// Base URLs of aggregators, as given (trimmed).
    pub aggregators: Vec<String>,
    /// The index to use.
    pub index: IndexConfig,
    /// Name of the index table.
    pub table: String,
    /// Number of epochs bought for a blob.
    pub epochs: u32,
    /// Whether blobs are stored as deletable.
    pub deletable: bool,
    /// Most parallel uploads.
    pub workers: usize,
    /// Most Postgres connections.
    pub max_open_conns: u32,
    /// Largest size of a pack (bytes).
    pub pack_target_size_bytes: u64,
    /// How blocks lie in the blobs that are stored.
    pub pack_format: PackFormat,
    /// Memory for blocks that were read or fetched ahead (bytes); negative disables it.
    pub blob_cache_bytes: i64,
    /// Time without progress after which an HTTP attempt is given up.
    pub request_timeout: Duration,
    /// Retries after the first attempt.
    pub max_retries: u32,
    /// Length of a storage epoch; zero = unknown.
    pub epoch_duration: Duration,
    /// Time between two searches for blobs to renew; zero = never.
    pub renew_interval: Duration,
    /// Blobs that end within this time are renewed.
    pub renew_lead: Duration,
    /// A blob that is not due is repacked along with others from this waste on (percent).
    pub max_waste_percent: u32,
    /// Bytes that renewal and repacking move in a second; 0 = no limit.
    pub maintenance_bytes_per_second: u64,
    /// How long deleted rows are kept, so that they can be brought back; zero = not at all.
    pub keep_deleted: Duration,
    /// Blocks that a Go node staged longer ago than this, and did not upload, are adopted; zero =
    /// never.
    pub adopt_staging: Duration,
    /// Which blocks are checked against their key's multihash.
    pub verify_reads: VerifyReads,
    /// The source of the publisher's token.
    pub auth: Auth,
    /// The operator's `walrus` program, if the chain is at hand.
    pub walrus_command: Option<WalrusCommand>,
    /// Whether the storage of deleted blobs is used again.
    pub reuse_storage: bool,
    /// Shards of the network, for cost accounting.
    pub n_shards: u32,
    /// Whether this node leaves renewal to others.
    pub disable_flush: bool,
    /// How far a standby may be behind its primary for its answers to count, on a node that reads
    /// from standbys.
    pub standby_max_lag: Duration,
    /// Whether a block that a standby does not know counts as missing, on such a node.
    pub trust_standby_misses: bool,
    /// The local write journal, if there is one.
    pub journal: Option<JournalConfig>,
    /// The read cache on the local disk, if there is one.
    pub disk_cache: Option<DiskCacheConfig>,
    /// How long an index row that was looked up is remembered; zero = not at all. Lookups of a key
    /// see another node's deletion up to this much later. No key sets it.
    pub row_ttl: Duration,
}

impl Config {
    /// Reads and checks a configuration. Relative paths stay relative; see [`Config::resolve`].
    ///
    /// # Errors
    /// [`ErrorKind::Config`] naming the key, the found and the expected value;
    /// [`ErrorKind::Unsupported`] for keys of later versions.
    pub fn from_json(json: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(json)
            .map_err(|e| bad(format!("configuration is not valid JSON: {e}")).caused_by(e))?;
        match value {
            Value::Object(map) => Self::from_map(&map),
            other => Err(bad(format!(
                "configuration is {}, expected a JSON object",
                describe(&other)
            ))),
        }
    }

    fn from_map(map: &Map<String, Value>) -> Result<Self> {
        let fields = Fields(map);
        fields.refuse_unknown()?;
        let publishers = fields.urls("publisherURL")?;
        let aggregators = fields.urls("aggregatorURL")?;
        let index = fields.index()?;
        let adopt_staging = fields.adopt_staging(&index)?;
        let table = match fields.text("table")? {
            Some(table) => {
                check_table(table)?;
                table.to_owned()
            }
            None => "walrus_index".to_owned(),
        };
        let pack_format = fields.pack_format()?;
        let epoch_duration = fields.epoch_duration()?;
        let renew_interval = fields.seconds("renewIntervalSeconds", 0)?;
        if !renew_interval.is_zero() && epoch_duration.is_zero() {
            return Err(bad(
                "renewIntervalSeconds is set but network is not: renewal needs the length of an \
                 epoch, so set network to \"mainnet\" or \"testnet\", or epochDurationSeconds",
            ));
        }
        for key in KEYS {
            // Keys that have no effect yet are checked all the same.
            match key.ty {
                KeyType::Text
                    if ["network", "walrusCommand", "verifyReads"].contains(&key.name) => {}
                KeyType::Text => drop(fields.text(key.name)?),
                KeyType::Flag => drop(fields.flag(key.name, false)?),
                KeyType::Whole { .. } => drop(fields.whole(key.name)?),
            }
        }
        let blob_cache_bytes = fields.whole("blobCacheBytes")?.unwrap_or(256 << 20);
        if blob_cache_bytes == 0 {
            return Err(bad(
                "blobCacheBytes is 0, expected a positive number of bytes, or a negative one to \
                 disable the cache",
            ));
        }
        let config = Config {
            publishers,
            aggregators,
            index,
            table,
            epochs: fields.number("epochs", 1)?,
            deletable: fields.flag("deletable", false)?,
            workers: fields.number("workers", 100)?,
            max_open_conns: fields.number("maxOpenConns", 32)?,
            pack_target_size_bytes: fields.number("packTargetSizeBytes", 64 << 20)?,
            pack_format,
            blob_cache_bytes,
            request_timeout: fields.seconds("requestTimeoutSeconds", 60)?,
            max_retries: fields.number("maxRetries", 3)?,
            epoch_duration,
            renew_interval,
            renew_lead: match fields.seconds("renewLeadSeconds", 0)? {
                lead if lead.is_zero() => epoch_duration,
                lead => lead,
            },
            max_waste_percent: fields.number("maxWastePercent", 50)?,
            maintenance_bytes_per_second: fields.number("maintenanceBytesPerSecond", 0)?,
            keep_deleted: fields.seconds("keepDeletedSeconds", 0)?,
            adopt_staging,
            verify_reads: fields.verify_reads()?,
            auth: fields.token_source()?,
            walrus_command: fields.walrus_command()?,
            reuse_storage: fields.reuse_storage(renew_interval)?,
            n_shards: fields.number("nShards", 1000)?,
            disable_flush: fields.flag("disableFlush", false)?,
            standby_max_lag: fields.seconds("standbyMaxLagSeconds", 10)?,
            trust_standby_misses: fields.flag("trustStandbyMisses", false)?,
            journal: fields.journal()?,
            disk_cache: fields.disk_cache()?,
            row_ttl: ROW_TTL,
        };
        config.check_paths()?;
        if config.trust_standby_misses && !config.only_retrieves() {
            return Err(bad(
                "trustStandbyMisses is true, expected false or absent on this node: only a node with \
                 disableFlush true, postgresURL and no journalPath reads from standbys",
            ));
        }
        Ok(config)
    }

    /// Whether this node may send lookups and pages to standbys of the index: it leaves renewal to
    /// others and has no journal.
    pub(crate) fn only_retrieves(&self) -> bool {
        let postgres = matches!(self.index, IndexConfig::Postgres(_));
        postgres && self.disable_flush && self.journal.is_none()
    }

    /// Makes every relative path relative to `repo`.
    #[must_use]
    pub fn resolve(mut self, repo: &Path) -> Self {
        if let IndexConfig::Sqlite(path) = &mut self.index {
            *path = repo.join(&*path);
        }
        if let Auth::File(path) = &mut self.auth {
            *path = repo.join(&*path);
        }
        if let Some(command) = &mut self.walrus_command {
            command.resolve(repo);
        }
        if let Some(journal) = &mut self.journal {
            journal.path = repo.join(&journal.path);
        }
        if let Some(cache) = &mut self.disk_cache {
            cache.path = repo.join(&cache.path);
        }
        self
    }

    /// Refuses a disk cache that shares a directory with files that may not be deleted, as far as
    /// the names show; so it is called once more when the names are resolved.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] naming both keys.
    pub fn check_paths(&self) -> Result<()> {
        let Some(cache) = &self.disk_cache else {
            return Ok(());
        };
        let cache = plain(&cache.path);
        if let Some(journal) = &self.journal {
            let journal = plain(&journal.path);
            if cache.starts_with(&journal) || journal.starts_with(&cache) {
                return Err(bad(format!(
                    "cachePath {:?} and journalPath {:?} lie in one another: a cache may be deleted \
                     at any time and a journal must not, so give each a directory of its own",
                    shown(&cache),
                    shown(&journal)
                )));
            }
        }
        match &self.index {
            IndexConfig::Sqlite(index) if plain(index).starts_with(&cache) => Err(bad(format!(
                "indexPath {:?} lies in cachePath {:?}: a cache may be deleted at any time and an \
                 index must not, so give the cache a directory of its own",
                shown(index),
                shown(&cache)
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses a journal or a cache in a directory of the repo that has another use: each would
    /// fill the other's, and both take a file LOCK there. Links are followed where two names may be
    /// one directory through them.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] naming the key.
    pub fn check_repo(&self, repo: &Path) -> Result<()> {
        const TAKEN: [(&str, &str); 5] = [
            ("datastore", "Kubo"),
            ("keystore", "Kubo"),
            ("blocks", "Kubo"),
            ("plugins", "Kubo"),
            (crate::read::roots::PLACE, "walrusds"),
        ];
        let journal = self.journal.as_ref().map(|j| ("journalPath", &j.path));
        let cache = self.disk_cache.as_ref().map(|c| ("cachePath", &c.path));
        let repo = plain(repo);
        for (key, path) in journal.into_iter().chain(cache) {
            let path = plain(path);
            for (name, whose) in TAKEN {
                let taken = repo.join(name);
                let nested = path.starts_with(&taken) || taken.starts_with(&path);
                if nested || real(&path) == real(&taken) {
                    return Err(bad(format!(
                        "{key} {:?} is, holds or lies in {:?}, which belongs to {whose}; give it a directory of its own",
                        shown(&path),
                        shown(&taken)
                    )));
                }
            }
        }
        Ok(())
    }

    /// The part that the Walrus client needs.
    pub fn client(&self) -> ClientConfig {
        ClientConfig {
            publishers: self.publishers.clone(),
            aggregators: self.aggregators.clone(),
            request_timeout: self.request_timeout,
            max_retries: self.max_retries,
            // Every value and every pack that could be stored must be readable.
            max_blob_bytes: self.pack_target_size_bytes.max(MAX_VALUE_BYTES as u64),
            auth: self.auth.clone(),
            ..ClientConfig::default()
        }
    }

    /// The part that identifies the data for Kubo (`DiskSpec`): exactly `aggregatorURL`,
    /// `publisherURL` and `table`. Another key here would orphan every existing repo; a secret
    /// never belongs here.
    pub fn disk_spec(&self) -> Value {
        serde_json::json!({
            "aggregatorURL": self.aggregators.join(","),
            "publisherURL": self.publishers.join(","),
            "table": self.table,
        })
    }
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

/// A value in the form in which an error may show it: its type, and the value if it is short.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => format!("the string {:?}", shorten(s)),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn shorten(s: &str) -> String {
    const SHOWN: usize = 80;
    if s.chars().count() <= SHOWN {
        s.to_owned()
    } else {
        s.chars().take(SHOWN).chain(['…']).collect()
    }
}

/// A path for an error message; the directory itself is a dot.
fn shown(path: &Path) -> String {
    match path.as_os_str().is_empty() {
        true => ".".to_owned(),
        false => shorten(&path.to_string_lossy()),
    }
}

/// Checks the table's name as `index::table` does, with this key's name in front of the error.
fn check_table(table: &str) -> Result<()> {
    crate::index::table::parse_table(table).map(drop)
}

/// The path without `.` and, as far as the names show, `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if plain.file_name().is_some() => drop(plain.pop()),
            part => plain.push(part),
        }
    }
    plain
}

/// The path with its links resolved, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let exists = |path: &Path| Some((path.components().count(), path.canonicalize().ok()?));
    match path.ancestors().find_map(exists) {
        Some((parts, real)) => real.join(path.components().skip(parts).collect::<PathBuf>()),
        None => path.to_owned(),
    }
}

struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn refuse_unknown(&self) -> Result<()> {
        for (name, value) in self.0 {
            if name == "type" {
                // Kubo passes the whole spec, including its own key.
                if value != "walrusds" {
                    return Err(bad(format!(
                        "type is {}, expected \"walrusds\"",
                        describe(value)
                    )));
                }
            } else if name == "path" {
                // Kubo copies the spec of the datastore at / for the keystore of its provider, and
                // adds this key.
                return Err(bad(
                    "unknown key \"path\". If Kubo has set it (its text names a provider-keystore), walrusds is mounted at /, \
                     where an online node needs a local datastore: mount walrusds at /blocks (docs/operations.md)",
                ));
            } else if !KEYS.iter().any(|k| k.name == name) {
                return Err(bad(format!(
                    "unknown key {:?}; did you mean {:?}?",
                    shorten(name),
                    keys::nearest(name)
                )));
            }
        }
        Ok(())
    }

    fn pack_format(&self) -> Result<PackFormat> {
        match self.text("packFormat")? {
            None | Some("car") => Ok(PackFormat::Car),
            Some("concat") => Ok(PackFormat::Concat),
            Some("quilt") => Ok(PackFormat::Quilt),
            Some(other) => Err(bad(format!(
                "packFormat is {:?}, expected \"car\", \"concat\" or \"quilt\"",
                shorten(other)
            ))),
        }
    }

    fn spec(name: &str) -> &'static KeySpec {
        // Every name used in this file is in the table: the tests read every field.
        KEYS.iter()
            .find(|k| k.name == name)
            .unwrap_or_else(|| unreachable!("configuration key {name} is not described"))
    }

    fn wrong_type(name: &str, value: &Value, expected: &str) -> Error {
        let found = if Self::spec(name).secret {
            type_name(value).to_owned()
        } else {
            describe(value)
        };
        bad(format!("{name} is {found}, expected {expected}"))
    }

    /// A string; absent and empty are the same, as in the Go plugin.
    fn text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::String(s)) if s.trim().is_empty() => Ok(None),
            Some(Value::String(s)) if s.contains('\0') => {
                Err(bad(format!("{name} holds a NUL character")))
            }
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(Self::wrong_type(name, other, "a string")),
        }
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.0.get(name) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(Self::wrong_type(name, other, "true or false")),
        }
    }

    fn whole(&self, name: &str) -> Result<Option<i64>> {
        let KeyType::Whole { min, max } = Self::spec(name).ty else {
            unreachable!("configuration key {name} is not a number");
        };
        let expected = match (min, max) {
            (i64::MIN, _) => "a whole number".to_owned(),
            (_, i64::MAX) => format!("a whole number of at least {min}"),
            _ => format!("a whole number from {min} to {max}"),
        };
        let Some(value) = self.0.get(name) else {
            return Ok(None);
        };
        let Value::Number(number) = value else {
            return Err(Self::wrong_type(name, value, &expected));
        };
        match whole_number(number) {
            Some(n) if (min..=max).contains(&n) => Ok(Some(n)),
            _ => Err(Self::wrong_type(name, value, &expected)),
        }
    }

    fn number<T: TryFrom<i64>>(&self, name: &str, default: T) -> Result<T> {
        match self.whole(name)? {
            None => Ok(default),
            Some(n) => T::try_from(n).map_err(|_| bad(format!("{name} is {n}: too large here"))),
        }
    }

    fn seconds(&self, name: &str, default: u64) -> Result<Duration> {
        self.number(name, default).map(Duration::from_secs)
    }

    fn urls(&self, name: &str) -> Result<Vec<String>> {
        let required = || {
            bad(format!(
                "{name} is required: set it to the base URL of a Walrus {}, e.g. \
                 http://127.0.0.1:31415 (several: comma-separated)",
                name.trim_end_matches("URL")
            ))
        };
        let urls: Vec<String> = self
            .text(name)?
            .ok_or_else(required)?
            .split(',')
            .map(str::trim)
            .filter(|u| !u.is_empty())
            .map(str::to_owned)
            .collect();
        if urls.is_empty() {
            return Err(required());
        }
        for url in &urls {
            check_url(name, url)?;
        }
        Ok(urls)
    }

    fn adopt_staging(&self, index: &IndexConfig) -> Result<Duration> {
        let age = self.seconds("adoptStagingSeconds", 0)?;
        match index {
            IndexConfig::Sqlite(_) if !age.is_zero() => Err(bad(format!(
                "adoptStagingSeconds is {}, expected 0 or no such key: blocks that a Go node has staged are in its \
                 database, and this node has indexPath instead of postgresURL",
                age.as_secs()
            ))),
            _ => Ok(age),
        }
    }

    fn index(&self) -> Result<IndexConfig> {
        match (self.text("postgresURL")?, self.text("indexPath")?) {
            (Some(url), None) => {
                crate::index::postgres::check_url(url)?;
                Ok(IndexConfig::Postgres(url.to_owned()))
            }
            (None, Some(path)) => Ok(IndexConfig::Sqlite(PathBuf::from(path))),
            (None, None) => Err(bad(
                "neither postgresURL nor indexPath is set: set postgresURL (an index in Postgres \
                 that several nodes may share) or indexPath (an embedded SQLite file for one node)",
            )),
            (Some(_), Some(_)) => Err(bad(
                "both postgresURL and indexPath are set: set postgresURL (an index in Postgres \
                 that several nodes may share) or indexPath (an embedded SQLite file for one \
                 node), not both",
            )),
        }
    }

    fn token_source(&self) -> Result<Auth> {
        match (self.text("authTokenCommand")?, self.text("authTokenFile")?) {
            (None, None) => Ok(Auth::None),
            (Some(command), None) => Ok(Auth::Command(command.to_owned())),
            (None, Some(path)) => Ok(Auth::File(PathBuf::from(path))),
            (Some(_), Some(_)) => Err(bad(
                "both authTokenCommand and authTokenFile are set: set one of them",
            )),
        }
    }
}

/// The number as an integer, if it is one (`16`, `16.0`, `1e3`).
fn whole_number(number: &serde_json::Number) -> Option<i64> {
    if let Some(n) = number.as_i64() {
        return Some(n);
    }
    // Whole numbers written with a fraction or exponent are exact in f64 up to 2^53.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let f = number.as_f64()?;
    (f.fract() == 0.0 && f.abs() <= EXACT).then_some(f as i64)
}

/// Accepts `http(s)://host[:port][/path]`. User info is refused because these URLs are written to
/// Kubo's `datastore_spec`, a query or fragment because paths are appended.
fn check_url(name: &str, url: &str) -> Result<()> {
    let expected = "expected a base URL such as https://host:port";
    if url.contains('@') {
        // Not shown: it may hold a password.
        return Err(bad(format!(
            "{name} holds a URL with user info (\"…@…\"): not allowed, since this URL is written to \
             the repo's datastore_spec; use authTokenCommand or authTokenFile for credentials"
        )));
    }
    // A token in a query, or settings of a database (`password=…`) under the wrong key: not shown.
    let harmless = url.split(|c: char| "?#=".contains(c) || c.is_whitespace());
    let harmless = harmless.take(1).collect::<String>();
    let shown = match harmless.len() == url.len() {
        true => shorten(url),
        false => shorten(&harmless) + "…",
    };
    let parsed =
        Url::parse(url).map_err(|e| bad(format!("{name} holds {shown:?}: {e}; {expected}")))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(bad(format!(
            "{name} holds {shown:?}: scheme {:?} is not supported; {expected}",
            parsed.scheme()
        )));
    }
    if parsed.host_str().unwrap_or_default().is_empty() {
        return Err(bad(format!("{name} holds {shown:?}: no host; {expected}")));
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(bad(format!(
            "{name} holds {shown:?}: a query or fragment is not allowed; {expected}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
