//! The read cache of a new repo.

use std::path::Path;

use serde_json::{Map, Value};

/// A read cache gets one part in so many of the space that is free beside a full journal,
const SHARE: u64 = 4;
/// at most so many bytes,
const MOST: u64 = 32 << 30;
/// and it needs so many: a file of the journal takes at most a fourth of it.
const LEAST: u64 = 512 << 20;
/// The default of `journalMaxBytes`.
const JOURNAL_MAX_BYTES: u64 = 4 << 30;

/// Settles the read cache: on, unless it is off or the disk has no room for it. Files of the
/// journal become files of the cache only on one file system, so it lies in the repo, as the
/// journal does, or beside a journal that lies elsewhere. `free` tells the bytes that are free
/// where a path will be. (go-shim/envspec/cache.go does the same.)
pub fn settle(spec: &mut Map<String, Value>, repo: &Path, free: impl Fn(&Path) -> u64) {
    let text = |key: &str| spec.get(key).and_then(Value::as_str).map(str::to_owned);
    let (journal, named) = (text("journalPath"), text("cachePath"));
    if named.as_deref() == Some("off") {
        spec.remove("cachePath");
        return;
    }
    let path = named.clone().unwrap_or_else(|| match journal.as_deref() {
        None | Some("walrusds-journal") => "walrusds-cache".to_owned(),
        Some(journal) => format!("{}-cache", journal.trim_end_matches('/')),
    });
    if !spec.contains_key("cacheBytes") {
        let most = spec.get("journalMaxBytes").and_then(Value::as_f64);
        let full = match (&journal, most) {
            (None, _) => 0,
            (Some(_), None) => JOURNAL_MAX_BYTES,
            (Some(_), Some(most)) => most as u64,
        };
        let bytes = bytes(free(&repo.join(&path)), full);
        if bytes.is_none() && named.is_none() {
            return;
        }
        spec.insert("cacheBytes".into(), bytes.unwrap_or(LEAST).into());
    }
    spec.insert("cachePath".into(), path.into());
}

/// The size of a cache where so many bytes are free and the journal may take some of them; `None`
/// if there is no room for one.
fn bytes(free: u64, journal: u64) -> Option<u64> {
    let bytes = (free.saturating_sub(journal) / SHARE).min(MOST);
    (bytes >= LEAST).then_some(bytes >> 20 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_cache_fits_the_disk() {
        for (free, journal, expected) in [
            (0, 0, None),
            (4 * GIB, 4 * GIB, None),
            (6 * GIB - 4, 4 * GIB, None),
            (6 * GIB, 4 * GIB, Some(GIB / 2)),
            (44 * GIB + 5, 4 * GIB, Some(10 * GIB)),
            (2 * GIB, 0, Some(GIB / 2)),
            (1000 * GIB, 4 * GIB, Some(32 * GIB)),
        ] {
            assert_eq!(bytes(free, journal), expected, "{free} free");
        }
    }

    #[test]
    fn the_cache_is_on_unless_it_is_off() {
        for (given, free, expected) in [
            (
                json!({"journalPath": "walrusds-journal"}),
                44,
                json!({"cachePath": "walrusds-cache", "cacheBytes": 10 * GIB}),
            ),
            (json!({"journalPath": "walrusds-journal"}), 5, json!({})),
            (
                json!({"journalPath": "walrusds-journal", "cachePath": "off"}),
                44,
                json!({}),
            ),
            (
                json!({"journalPath": "walrusds-journal", "cachePath": "c"}),
                1,
                json!({"cachePath": "c", "cacheBytes": GIB / 2}),
            ),
            (
                json!({"cacheBytes": 7}),
                1,
                json!({"cachePath": "walrusds-cache", "cacheBytes": 7}),
            ),
            (
                json!({"journalPath": "j", "journalMaxBytes": GIB}),
                41,
                json!({"cachePath": "j-cache", "cacheBytes": 10 * GIB}),
            ),
            (
                json!({"journalPath": "/fast/journal/"}),
                44,
                json!({"cachePath": "/fast/journal-cache", "cacheBytes": 10 * GIB}),
            ),
        ] {
            let mut spec = given.as_object().unwrap().clone();
            settle(&mut spec, Path::new("/repo"), |_| free * GIB);
            let keys = ["cachePath", "cacheBytes"];
            let cache: Map<_, _> = spec
                .into_iter()
                .filter(|(key, _)| keys.contains(&key.as_str()))
                .collect();
            assert_eq!(Value::Object(cache), expected, "{given}, {free} GiB free");
        }
    }
}
