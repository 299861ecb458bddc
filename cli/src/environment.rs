//! Settings of the configuration in texts: environment variables, by the same names as the init
//! profile (go-shim/envspec), and `--set KEY=VALUE`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use walrusds::config::{KeySpec, KeyType, KEYS};

use crate::exit::Failure;

const PREFIX: &str = "WALRUSDS_";
/// Variables that begin so steer the project's own tests.
const RESERVED: &str = "WALRUSDS_TEST_";

/// The variable of a key: `publisherURL` is `WALRUSDS_PUBLISHER_URL`.
pub fn variable(key: &str) -> String {
    let bytes = key.as_bytes();
    let is = |at: usize, test: fn(&u8) -> bool| bytes.get(at).is_some_and(test);
    let mut name = PREFIX.to_owned();
    for (i, byte) in bytes.iter().enumerate() {
        // A word begins where small letters end, and at the last capital of a row ("URLPath").
        let upper = byte.is_ascii_uppercase();
        let row = i > 0 && is(i - 1, u8::is_ascii_uppercase);
        if i > 0 && upper && (!row || is(i + 1, u8::is_ascii_lowercase)) {
            name.push('_');
        }
        name.push(byte.to_ascii_uppercase() as char);
    }
    name
}

/// The settings in the environment. An empty value counts as not set. Variables that are none of
/// ours (a misspelt one, or a service link of a container) are left out and returned by name.
pub fn settings(
    variables: impl Iterator<Item = (String, String)>,
) -> Result<(Map<String, Value>, Vec<String>), Failure> {
    let known: BTreeMap<String, &KeySpec> = KEYS.iter().map(|k| (variable(k.name), k)).collect();
    let (mut spec, mut unknown) = (Map::new(), Vec::new());
    let ours = |name: &str| name.starts_with(PREFIX) && !name.starts_with(RESERVED);
    for (name, value) in variables.filter(|(name, value)| ours(name) && !value.is_empty()) {
        let (key, value) = match known.get(&name) {
            Some(key) => (*key, value),
            None => {
                let file = name.strip_suffix("_FILE").and_then(|name| known.get(name));
                let Some(key) = file.filter(|key| key.secret) else {
                    unknown.push(name);
                    continue;
                };
                (*key, secret_of(&name, &value)?)
            }
        };
        let value = converted(&value, key).map_err(|e| Failure::Failed(format!("{name}: {e}")))?;
        if spec.insert(key.name.to_owned(), value).is_some() {
            let variable = variable(key.name);
            return Err(Failure::Failed(format!(
                "{variable} and {variable}_FILE are both set: use one of them"
            )));
        }
    }
    Ok((spec, unknown))
}

fn secret_of(name: &str, path: &str) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::Failed(format!("{name}: {path}: {e}")))?;
    match text.trim() {
        "" => Err(Failure::Failed(format!("{name}: the file {path} is empty"))),
        text => Ok(text.to_owned()),
    }
}

/// Applies `KEY=VALUE`; an empty value removes the key.
pub fn set(spec: &mut Map<String, Value>, setting: &str) -> Result<(), Failure> {
    let Some((name, value)) = setting.split_once('=') else {
        return Err(Failure::Usage(format!(
            "--set {setting:?}: expected KEY=VALUE, such as --set table=walrus_index"
        )));
    };
    let Some(key) = KEYS.iter().find(|key| key.name == name) else {
        // The parser of the configuration finds the nearest key, and says so.
        spec.insert(name.to_owned(), value.into());
        return Ok(());
    };
    match value.is_empty() {
        true => drop(spec.remove(name)),
        false => {
            let value =
                converted(value, key).map_err(|e| Failure::Usage(format!("--set {name}: {e}")))?;
            spec.insert(name.to_owned(), value);
        }
    }
    Ok(())
}

fn converted(value: &str, key: &KeySpec) -> Result<Value, String> {
    let shown = match key.secret {
        true => "the value".to_owned(),
        false => format!("{value:?}"),
    };
    match key.ty {
        KeyType::Whole { .. } => match value.trim().parse::<i64>() {
            Ok(n) => Ok(n.into()),
            Err(_) => Err(format!("{shown} is not a whole number")),
        },
        KeyType::Flag => match value.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true.into()),
            "false" | "0" | "no" | "off" => Ok(false.into()),
            _ => Err(format!("{shown} is neither true nor false")),
        },
        _ => Ok(value.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(variables: &[(&str, &str)]) -> Result<(Map<String, Value>, Vec<String>), Failure> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        settings(variables.iter().map(owned))
    }

    #[test]
    fn variables_are_named_as_by_the_profile() {
        for (key, name) in [
            ("publisherURL", "WALRUSDS_PUBLISHER_URL"),
            ("nShards", "WALRUSDS_N_SHARDS"),
            ("packTargetSizeBytes", "WALRUSDS_PACK_TARGET_SIZE_BYTES"),
            ("maxOpenConns", "WALRUSDS_MAX_OPEN_CONNS"),
            ("someURLPath", "WALRUSDS_SOME_URL_PATH"),
        ] {
            assert_eq!(variable(key), name);
        }
    }

    #[test]
    fn values_get_the_types_of_their_keys() {
        let (spec, unknown) = parsed(&[
            ("WALRUSDS_EPOCHS", "5"),
            ("WALRUSDS_DELETABLE", "Yes"),
            ("WALRUSDS_TABLE", "t"),
            ("WALRUSDS_WORKERS", ""),
            ("WALRUSDS_TEST_ONLY", "1"),
            ("WALRUSDS_TABEL", "t"),
            ("HOME", "/"),
        ])
        .unwrap();
        let expected = serde_json::json!({"epochs": 5, "deletable": true, "table": "t"});
        assert_eq!(Value::Object(spec), expected);
        assert_eq!(unknown, ["WALRUSDS_TABEL"]);
        let error = parsed(&[("WALRUSDS_EPOCHS", "many")]).unwrap_err();
        assert!(error.to_string().contains("WALRUSDS_EPOCHS"), "{error}");
    }

    #[test]
    fn a_secret_may_lie_in_a_file_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("url");
        std::fs::write(&file, "postgres://u:p@h/d\n").unwrap();
        let file = file.to_str().unwrap();
        let (spec, _) = parsed(&[("WALRUSDS_POSTGRES_URL_FILE", file)]).unwrap();
        assert_eq!(spec["postgresURL"], "postgres://u:p@h/d");
        let both = parsed(&[
            ("WALRUSDS_POSTGRES_URL_FILE", file),
            ("WALRUSDS_POSTGRES_URL", "postgres://u:p@h/e"),
        ]);
        let error = both.unwrap_err().to_string();
        assert!(
            error.contains("both set") && !error.contains("u:p"),
            "{error}"
        );
    }

    #[test]
    fn set_changes_and_removes() {
        let mut spec = Map::new();
        set(&mut spec, "epochs=7").unwrap();
        set(&mut spec, "table=a=b").unwrap();
        assert_eq!(spec["epochs"], 7);
        assert_eq!(spec["table"], "a=b");
        set(&mut spec, "table=").unwrap();
        assert!(!spec.contains_key("table"));
        assert_eq!(set(&mut spec, "epochs").unwrap_err().code(), 2);
        assert_eq!(set(&mut spec, "epochs=x").unwrap_err().code(), 2);
    }
}
