//! The mount of the blocks, in a repo's `config` (`Datastore.Spec`) and in its `datastore_spec`.
//!
//! Kubo starts only if `datastore_spec` holds, byte by byte, the short form that it computes from
//! `Datastore.Spec`: for each mount what identifies the data, without wrappers such as `measure`.

use serde_json::{json, Map, Value};
use walrusds::Config;

/// The mountpoint of the blocks.
pub const BLOCKS: &str = "/blocks";
/// The way of flatfs to share blocks out among directories that Kubo configures.
pub const SHARDING: &str = "/repo/flatfs/shard/v1/next-to-last/2";

/// The mounts in a config of Kubo.
const IN_CONFIG: &str = "/Datastore/Spec/mounts";
/// The mounts in a `datastore_spec`.
const IN_SPEC: &str = "/mounts";

/// The entry of `Datastore.Spec` for a walrusds with these settings, as the init profile writes it.
pub fn walrusds_entry(settings: &Map<String, Value>) -> Value {
    let mut child = settings.clone();
    child.insert("type".into(), "walrusds".into());
    json!({
        "mountpoint": BLOCKS,
        "type": "measure",
        "prefix": "walrusds.datastore",
        "child": child,
    })
}

/// The entry for flatfs that Kubo's own init writes.
pub fn flatfs_entry() -> Value {
    json!({
        "mountpoint": BLOCKS,
        "type": "flatfs",
        "prefix": "flatfs.datastore",
        "path": "blocks",
        "sync": false,
        "shardFunc": SHARDING,
    })
}

/// The entry at `/blocks` in a config.
pub fn of_config(config: &Value) -> Option<&Value> {
    find(config.pointer(IN_CONFIG)?)
}

/// The entry at `/blocks` in a `datastore_spec`.
pub fn of_spec(spec: &Value) -> Option<&Value> {
    find(spec.pointer(IN_SPEC)?)
}

fn find(mounts: &Value) -> Option<&Value> {
    mounts.as_array()?.iter().find(|mount| is_blocks(mount))
}

fn is_blocks(mount: &Value) -> bool {
    let point = mount["mountpoint"].as_str().unwrap_or_default();
    point.trim_matches('/') == BLOCKS.trim_matches('/')
}

/// Replaces the entry at `/blocks` in a config. `None`: there is none.
pub fn set_in_config(config: &mut Value, entry: Value) -> Option<()> {
    set(config.pointer_mut(IN_CONFIG), entry)
}

/// Replaces the entry at `/blocks` in a `datastore_spec`. `None`: there is none.
pub fn set_in_spec(spec: &mut Value, entry: Value) -> Option<()> {
    set(spec.pointer_mut(IN_SPEC), entry)
}

fn set(mounts: Option<&mut Value>, entry: Value) -> Option<()> {
    let mounts = mounts?.as_array_mut()?;
    *mounts.iter_mut().find(|mount| is_blocks(mount))? = entry;
    Some(())
}

/// The datastore of an entry, without wrappers such as `measure`.
pub fn datastore(entry: &Value) -> &Value {
    let mut inner = entry;
    while let Some(child) = inner.get("child") {
        inner = child;
    }
    inner
}

/// The type of the datastore of an entry.
pub fn kind(entry: &Value) -> &str {
    datastore(entry)["type"].as_str().unwrap_or_default()
}

/// The settings of a datastore of type `walrusds`.
pub fn settings(entry: &Value) -> Option<Map<String, Value>> {
    let mut settings = datastore(entry).as_object()?.clone();
    settings.remove("mountpoint");
    Some(settings)
}

/// What Kubo writes into `datastore_spec` for an entry of `Datastore.Spec`.
///
/// # Errors
/// A text, if it is neither a flatfs nor a walrusds, or not a valid one.
pub fn short_form(entry: &Value) -> Result<Value, String> {
    let inner = datastore(entry);
    match kind(entry) {
        "flatfs" => {
            let text = |key: &str| match inner[key].as_str() {
                Some(text) => Ok(text),
                None => Err(format!("the flatfs at {BLOCKS} has no text {key:?}")),
            };
            Ok(json!({
                "mountpoint": BLOCKS,
                "type": "flatfs",
                "path": text("path")?,
                "shardFunc": text("shardFunc")?.trim(),
            }))
        }
        "walrusds" => {
            let settings = settings(entry).unwrap_or_default();
            let config = Config::from_json(&Value::Object(settings).to_string());
            let mut short = config.map_err(|e| e.to_string())?.disk_spec();
            short["mountpoint"] = BLOCKS.into();
            Ok(short)
        }
        other => Err(format!(
            "the datastore at {BLOCKS} has the type {other:?}, and flatfs or walrusds is expected"
        )),
    }
}

/// JSON as Go writes a map: the members in the order of their names, without spaces, with what is
/// special in HTML escaped. Kubo compares `datastore_spec` byte by byte.
pub fn as_go(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut members: Vec<_> = map.iter().collect();
            members.sort_by_key(|(name, _)| name.as_str());
            let members = members
                .into_iter()
                .map(|(name, value)| format!("{}:{}", go_text(name), as_go(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
        Value::Array(all) => {
            let all: Vec<String> = all.iter().map(as_go).collect();
            format!("[{}]", all.join(","))
        }
        Value::String(text) => go_text(text),
        other => other.to_string(),
    }
}

fn go_text(text: &str) -> String {
    let mut out = String::new();
    for c in Value::from(text).to_string().chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(entry: Value) -> Value {
        json!({"Datastore": {"Spec": {"type": "mount", "mounts": [
            entry,
            {"mountpoint": "/", "type": "levelds", "path": "datastore"},
        ]}}})
    }

    #[test]
    fn the_spec_is_written_as_go_writes_it() {
        let value =
            json!({"type": "mount", "mounts": [{"b": 1, "a": "x\"y", "c": "p&<q>\u{2028}"}]});
        assert_eq!(
            as_go(&value),
            r#"{"mounts":[{"a":"x\"y","b":1,"c":"p\u0026\u003cq\u003e\u2028"}],"type":"mount"}"#
        );
    }

    #[test]
    fn the_entry_of_the_blocks_is_found_and_replaced() {
        let wrapped = json!({"mountpoint": "/blocks/", "type": "measure", "child": {
            "type": "log", "child": {"type": "flatfs", "path": "blocks", "shardFunc": SHARDING, "sync": true}}});
        for entry in [flatfs_entry(), wrapped] {
            let mut config = config(entry.clone());
            assert_eq!(of_config(&config), Some(&entry));
            assert_eq!(
                as_go(&short_form(&entry).unwrap()),
                r#"{"mountpoint":"/blocks","path":"blocks","shardFunc":"/repo/flatfs/shard/v1/next-to-last/2","type":"flatfs"}"#
            );
            set_in_config(&mut config, json!({"mountpoint": "/blocks", "type": "mem"})).unwrap();
            assert_eq!(kind(of_config(&config).unwrap()), "mem");
            assert_eq!(
                config["Datastore"]["Spec"]["mounts"][1]["path"],
                "datastore"
            );
        }
        assert_eq!(
            of_config(&json!({"Datastore": {"Spec": {"type": "flatfs"}}})),
            None
        );
    }

    #[test]
    fn the_short_form_of_walrusds_holds_what_identifies_the_data() {
        let settings = json!({"publisherURL": "http://p/a&b", "aggregatorURL": " http://a , ", "indexPath": "i"});
        let entry = walrusds_entry(settings.as_object().unwrap());
        assert_eq!(kind(&entry), "walrusds");
        let short = short_form(&entry).unwrap();
        assert_eq!(
            as_go(&short),
            r#"{"aggregatorURL":"http://a","mountpoint":"/blocks","publisherURL":"http://p/a\u0026b","table":"walrus_index"}"#
        );
        let wrong = walrusds_entry(json!({"publisherURL": "x"}).as_object().unwrap());
        assert!(short_form(&wrong).unwrap_err().contains("publisherURL"));
        let other = json!({"mountpoint": "/blocks", "type": "badgerds"});
        assert!(short_form(&other).unwrap_err().contains("badgerds"));
    }
}
