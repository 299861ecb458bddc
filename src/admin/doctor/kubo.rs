//! Settings of Kubo that hurt here. docs/operations.md gives the reasons at length.

use std::path::Path;

use serde_json::Value;

use super::{Diagnosis, Health};
use crate::config::{Config, IndexConfig, VerifyReads};

const PART: &str = "kubo";

/// Looks at Kubo's configuration, and at the repo's `datastore_spec`.
pub(super) fn look(kubo: &Value, config: &Config, repo: &Path) -> Vec<Diagnosis> {
    let shared = matches!(config.index, IndexConfig::Postgres(_));
    let mut found = Vec::new();
    let mut tell = |test, health, what: String, why, line: &str| {
        found.push(Diagnosis::new(PART, test, health, what, why).cure(line));
    };
    let number = |path: &str| kubo.pointer(path).and_then(Value::as_u64);
    if let Some(size) = number("/Datastore/BloomFilterSize").filter(|size| *size > 0) {
        tell(
            "bloom",
            match shared {
                true => Health::Warning,
                false => Health::Advice,
            },
            format!("Datastore.BloomFilterSize is {size}"),
            "Kubo lists every key at each start to fill the filter, and other nodes' blocks are missing from it",
            "ipfs config --json Datastore.BloomFilterSize 0",
        );
    }
    if kubo.pointer("/Datastore/HashOnRead") == Some(&Value::Bool(true))
        && config.verify_reads != VerifyReads::Never
    {
        tell(
            "hash_on_read",
            Health::Advice,
            "Datastore.HashOnRead is true".to_owned(),
            "each block is hashed twice: verifyReads does it already, and asks another aggregator instead of failing",
            "ipfs config --json Datastore.HashOnRead false",
        );
    }
    if kubo.pointer("/Datastore/WriteThrough") == Some(&Value::Bool(false)) {
        tell(
            "write_through",
            Health::Advice,
            "Datastore.WriteThrough is false".to_owned(),
            "Kubo asks for each block before it writes it, one at a time; walrusds asks for a whole batch at once",
            "ipfs config --json Datastore.WriteThrough true",
        );
    }
    let cached = number("/Datastore/BlockKeyCacheSize");
    if shared && cached != Some(0) {
        tell(
            "key_cache",
            Health::Advice,
            "Datastore.BlockKeyCacheSize is not 0, and the index is in PostgreSQL".to_owned(),
            "if other nodes share the index, Kubo remembers that their new blocks are missing",
            "ipfs config --json Datastore.BlockKeyCacheSize 0",
        );
    }
    let strategy = ["/Provide/Strategy", "/Reprovider/Strategy"]
        .iter()
        .find_map(|path| kubo.pointer(path).and_then(Value::as_str))
        .unwrap_or("all");
    if shared && ["all", "flat", ""].contains(&strategy) {
        tell(
            "provide",
            Health::Advice,
            "Provide.Strategy is \"all\", Kubo's default".to_owned(),
            "each node lists and announces the whole shared index at every reprovide",
            "ipfs config Provide.Strategy pinned",
        );
    }
    if let Some(most) = kubo
        .pointer("/Datastore/StorageMax")
        .and_then(Value::as_str)
    {
        let usual = most == "10GB";
        if usual && shared {
            tell(
                "storage_max",
                Health::Advice,
                format!("Datastore.StorageMax is {most}"),
                "a node that is started with --enable-gc on a larger index collects at once, for all nodes that share it",
                "never use --enable-gc on a shared index; else: ipfs config Datastore.StorageMax 1PB",
            );
        }
    }
    found.extend(spec(config, repo));
    if found.is_empty() {
        found.push(Diagnosis::good(
            PART,
            "settings",
            "no setting of Kubo hurts",
        ));
    }
    found
}

/// Whether the repo was made with this configuration.
fn spec(config: &Config, repo: &Path) -> Option<Diagnosis> {
    let text = std::fs::read_to_string(repo.join("datastore_spec")).ok()?;
    let disk: Value = serde_json::from_str(&text).ok()?;
    let expected = config.disk_spec();
    let mut nodes = vec![&disk];
    while let Some(node) = nodes.pop() {
        match node {
            Value::Object(map) => {
                let same = |(key, value): (&String, &Value)| map.get(key) == Some(value);
                if expected.as_object()?.iter().all(same) {
                    return None;
                }
                nodes.extend(map.values());
            }
            Value::Array(all) => nodes.extend(all),
            _ => {}
        }
    }
    Some(
        Diagnosis::new(
            PART,
            "datastore_spec",
            Health::Bad,
            "the repo's datastore_spec has other URLs or another table than its config",
            "Kubo refuses to start: \"datastore configuration does not match what is on disk\"",
        )
        .cure(format!(
            "in {}: set aggregatorURL, publisherURL and table as in the config: {}",
            repo.join("datastore_spec").display(),
            shown(expected)
        )),
    )
}

/// A disk spec as a report may show it: URLs may hold keys.
fn shown(mut spec: Value) -> Value {
    for key in ["aggregatorURL", "publisherURL"] {
        if let Some(urls) = spec[key].as_str() {
            let urls: Vec<String> = urls.split(',').map(crate::walrus::shown_url).collect();
            spec[key] = urls.join(",").into();
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(index: &str) -> Config {
        let text = format!(r#"{{"publisherURL":"http://p","aggregatorURL":"http://a",{index}}}"#);
        Config::from_json(&text).unwrap()
    }

    fn tests_of(kubo: &Value, config: &Config, repo: &Path) -> Vec<&'static str> {
        let found = look(kubo, config, repo);
        found.iter().map(|diagnosis| diagnosis.test).collect()
    }

    #[test]
    fn settings_that_hurt_are_told_with_their_line() {
        let repo = tempfile::tempdir().unwrap();
        let (sqlite, postgres) = (
            config(r#""indexPath":"i""#),
            config(r#""postgresURL":"postgres://h/d""#),
        );
        let fine = json!({"Datastore": {"BloomFilterSize": 0}});
        assert_eq!(tests_of(&fine, &sqlite, repo.path()), ["settings"]);
        let bad = json!({"Datastore": {"BloomFilterSize": 1048576, "HashOnRead": true, "WriteThrough": false,
            "StorageMax": "10GB"}});
        assert_eq!(
            tests_of(&bad, &sqlite, repo.path()),
            ["bloom", "hash_on_read", "write_through"]
        );
        assert_eq!(
            tests_of(&bad, &postgres, repo.path()),
            [
                "bloom",
                "hash_on_read",
                "write_through",
                "key_cache",
                "provide",
                "storage_max"
            ]
        );
        let found = look(&bad, &postgres, repo.path());
        assert!(found.iter().all(|d| d.cure.is_some() && !d.why.is_empty()));
    }

    #[test]
    fn the_spec_on_disk_is_compared() {
        let repo = tempfile::tempdir().unwrap();
        let config = config(r#""indexPath":"i""#);
        let write = |spec: &Value| {
            let spec =
                json!({"mounts": [{"mountpoint": "/blocks", "child": spec}], "type": "mount"});
            std::fs::write(repo.path().join("datastore_spec"), spec.to_string()).unwrap();
        };
        write(&config.disk_spec());
        assert_eq!(spec(&config, repo.path()), None);
        write(
            &json!({"aggregatorURL": "http://b", "publisherURL": "http://p", "table": "walrus_index"}),
        );
        let found = spec(&config, repo.path()).unwrap();
        assert_eq!(found.health, Health::Bad);
    }

    #[test]
    fn a_spec_that_does_not_fit_is_told_without_the_keys_in_urls() {
        let repo = tempfile::tempdir().unwrap();
        std::fs::write(repo.path().join("datastore_spec"), "{}").unwrap();
        let config = Config::from_json(
            r#"{"publisherURL":"https://p,https://q/0123456789hidden01/x","aggregatorURL":"http://a","indexPath":"i"}"#,
        );
        let told = format!("{:?}", spec(&config.unwrap(), repo.path()).unwrap());
        assert!(!told.contains("hidden"), "{told}");
        assert!(told.contains("http://a"), "{told}");
    }
}
