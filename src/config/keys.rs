//! The one description of every configuration key. The parser, the C ABI's `walrusds_config_keys`
//! (and through it the init profile's environment variables) and the README's table all follow it;
//! `tests/docs.rs` compares the README with it.

/// The type of a key's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyType {
    /// A JSON string.
    Text,
    /// `true` or `false`.
    Flag,
    /// A whole number in `min..=max` (a zero fraction such as `16.0` is whole).
    Whole {
        /// Smallest value.
        min: i64,
        /// Largest value.
        max: i64,
    },
}

/// One configuration key.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct KeySpec {
    /// Name in the JSON object.
    pub name: &'static str,
    /// The type of its value.
    pub ty: KeyType,
    /// Default in the words of the README's table; empty if there is none.
    pub default: &'static str,
    /// Whether its value may hold a secret and is therefore never printed.
    pub secret: bool,
    /// The effect of the key, for people.
    pub doc: &'static str,
}

pub use crate::limits::MAX_BLOB_BYTES;

pub(super) const MAX_SECONDS: i64 = 100 * 366 * 86_400;

const fn whole(min: i64, max: i64) -> KeyType {
    KeyType::Whole { min, max }
}

const fn key(name: &'static str, ty: KeyType, default: &'static str, doc: &'static str) -> KeySpec {
    KeySpec {
        name,
        ty,
        default,
        secret: false,
        doc,
    }
}

const fn secret(name: &'static str, ty: KeyType, doc: &'static str) -> KeySpec {
    KeySpec {
        name,
        ty,
        default: "",
        secret: true,
        doc,
    }
}

/// Every known key.
#[rustfmt::skip]
pub const KEYS: &[KeySpec] = &[
    key("publisherURL", KeyType::Text, "", "required; base URLs of Walrus publishers, comma-separated for failover"),
    key("aggregatorURL", KeyType::Text, "", "required; base URLs of Walrus aggregators, comma-separated for failover"),
    secret("postgresURL", KeyType::Text, "shared index: libpq URL (multi-host, `sslmode` incl. `verify-full`, `sslrootcert`, unix socket); this or `indexPath`"),
    key("indexPath", KeyType::Text, "", "embedded index (SQLite file) for a single node, relative to the repo unless absolute; this or `postgresURL`"),
    key("table", KeyType::Text, "walrus_index", "index table: an identifier, optionally `schema.table`"),
    key("network", KeyType::Text, "", "the Walrus network: `mainnet`, `testnet`, or for another one `{\"epochDurationSeconds\": N}`; gives the length of an epoch"),
    key("epochs", whole(1, 53), "1", "storage epochs bought per blob (an epoch is 14 days on Mainnet, 1 day on Testnet)"),
    key("deletable", KeyType::Flag, "false", "`false` stores permanent blobs, `true` blobs that the owner of the publisher's wallet may delete"),
    key("workers", whole(1, 10_000), "100", "ceiling of parallel uploads; actual concurrency adapts to 429/503"),
    key("maxOpenConns", whole(1, 10_000), "32", "Postgres connections, at most"),
    key("packTargetSizeBytes", whole(1, MAX_BLOB_BYTES), "67108864", "ceiling of a pack in bytes, never a floor"),
    key("blobCacheBytes", KeyType::Whole { min: i64::MIN, max: i64::MAX }, "268435456", "memory for what is read, read-ahead included (bytes); one entry takes a quarter at most; with `cachePath` half of it is kept at most; negative disables both"),
    key("requestTimeoutSeconds", whole(1, 86_400), "60", "per HTTP attempt, without progress (seconds)"),
    key("maxRetries", whole(0, 100), "3", "retries per request after the first attempt, exponential backoff with jitter"),
    key("epochDurationSeconds", whole(0, MAX_SECONDS), "0", "length of a storage epoch (seconds) where `network` does not give it; 0 = unknown, renewal off"),
    key("renewIntervalSeconds", whole(0, MAX_SECONDS), "0", "how often to look for blobs to renew (seconds); 0 = renewal off"),
    key("renewLeadSeconds", whole(0, MAX_SECONDS), "one epoch", "renew blobs that end within this time, or before the next round (seconds)"),
    key("maxWastePercent", whole(1, 100), "50", "a blob that is not due yet is repacked along with others only if this part of it (percent), or more, is deleted blocks"),
    key("maintenanceBytesPerSecond", whole(0, i64::MAX), "0", "bytes that renewal and repacking move in a second; 0 = as many as they can"),
    key("keepDeletedSeconds", whole(0, MAX_SECONDS), "0", "how long deleted blocks can be brought back (seconds); a put of such a block costs no upload while its blob is stored; 0 = not at all"),
    key("journalPath", KeyType::Text, "", "directory of the local write journal, relative to the repo unless absolute: a write returns when it is on the local disk"),
    key("journalMaxBytes", whole(1, i64::MAX), "4294967296", "size of the journal at which writers wait (bytes); used with `journalPath`"),
    key("journalSync", KeyType::Text, "put", "when a write to the journal returns: `put` (when it survives a power cut) or `sync` (when the kernel has it, so that it survives any end of the process; it is on disk when go-datastore's `Sync` returns, and within 100 ms anyway); used with `journalPath`"),
    key("journalFullSeconds", whole(1, MAX_SECONDS), "600", "how long a write waits for room in a full journal before it fails and says why (seconds); used with `journalPath`"),
    key("packIdleFlushSeconds", whole(1, MAX_SECONDS), "30", "flush the journal after this time without writes (seconds); used with `journalPath`"),
    key("packMaxAgeSeconds", whole(1, MAX_SECONDS), "300", "flush a journalled block after this time at most (seconds); used with `journalPath`"),
    key("drainTimeoutSeconds", whole(0, MAX_SECONDS), "30", "how long close waits for the journal to empty (seconds); used with `journalPath`"),
    key("drainPartialPacks", KeyType::Flag, "true", "close also uploads what is neither a full pack nor `packMaxAgeSeconds` old; used with `journalPath`"),
    key("cachePath", KeyType::Text, "", "directory of the read cache on local disk, relative to the repo unless absolute: blocks read from Walrus stay there across restarts; may be deleted at any time"),
    key("cacheBytes", whole(1, i64::MAX), "10737418240", "size of the disk cache at most (bytes); used with `cachePath`"),
    key("packFormat", KeyType::Text, "car", "how blocks lie in a blob: `car` (a CARv2 file that says which blocks it holds), `concat` (one after another and nothing else, as the Go plugin writes them), or `quilt` (any aggregator gives a block by its CID; only where that costs at most 2 % more, else `car`); all are read always"),
    key("adoptStagingSeconds", whole(0, MAX_SECONDS), "0", "store blocks that a node with the Go plugin staged longer ago than this (seconds) and did not upload, as after it was shut down for good; 0 = leave them; used with `postgresURL`"),
    key("verifyReads", KeyType::Text, "true", "`true` checks each block that comes over the network against the multihash in its key; what was checked then is compared with a checksum when it is read from the local disk (journal, disk cache); `always` checks it against its key then, too; `false` checks neither against its key"),
    key("authTokenCommand", KeyType::Text, "", "shell command that prints a fresh publisher token (JWT), run for every attempt"),
    key("authTokenFile", KeyType::Text, "", "file with the publisher token, read for every attempt; relative to the repo unless absolute"),
    key("walrusCommand", KeyType::Text, "", "the operator's `walrus` program and its options, as a list: `[\"walrus\", \"--config\", \"/path\", \"--wallet\", \"/path\"]`; run without a shell; extends and deletes blobs, and gives prices and the exact epoch"),
    key("reuseStorage", KeyType::Flag, "false", "`true`: the storage of emptied blobs is used again, and sparse blobs are emptied early; for a publisher of your own with one wallet, that of `walrusCommand`; needs `deletable`, `walrusCommand`, `renewIntervalSeconds`"),
    key("nShards", whole(1, 65_535), "1000", "shards of the network: the layout of quilts and the accounting of costs depend on it"),
    key("disableFlush", KeyType::Flag, "false", "this node never renews what is stored (retrieval nodes)"),
    key("standbyMaxLagSeconds", whole(1, 86_400), "10", "how far a standby may be behind its primary for its answers to count (seconds); used with `disableFlush` and `target_session_attrs=prefer-standby` in `postgresURL`"),
    key("trustStandbyMisses", KeyType::Flag, "false", "`true`: a block that a standby does not know counts as missing; `false`: the primary is asked first; used as `standbyMaxLagSeconds`"),
    key("disableQuilt", KeyType::Flag, "false", "accepted for the Go plugin's configs; no effect (`packFormat` says whether quilts are written)"),
    key("packFlushIntervalSeconds", whole(1, MAX_SECONDS), "5", "accepted for the Go plugin's configs; no effect"),
];

/// The known key nearest to `name` by edit distance.
pub(super) fn nearest(name: &str) -> &'static str {
    KEYS.iter()
        .map(|k| k.name)
        .min_by_key(|known| strsim::levenshtein(&name.to_lowercase(), &known.to_lowercase()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_key_forgives_case_and_typos() {
        assert_eq!(nearest("publisherUrl"), "publisherURL");
        assert_eq!(nearest("epoch"), "epochs");
        assert_eq!(nearest("packTargetSize"), "packTargetSizeBytes");
        assert_eq!(nearest("postgressURL"), "postgresURL");
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = KEYS.iter().map(|k| k.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KEYS.len());
    }
}
