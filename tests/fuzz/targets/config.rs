//! Configurations, and with them the URLs of Postgres, publishers and aggregators.

use serde_json::{json, Value};
use walrusds::Config;

use super::Input;

/// Any text is a configuration or an error; the identifying settings of a configuration are again a
/// configuration with the same identity.
pub fn any_text(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(config) = Config::from_json(&text) else {
        return;
    };
    let _ = format!("{config:?}");
    let spec = config.disk_spec();
    let keys: Vec<_> = spec.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["aggregatorURL", "publisherURL", "table"]);
    let mut again: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in spec.as_object().unwrap() {
        again[key] = value.clone();
    }
    let again = Config::from_json(&again.to_string()).expect("the same configuration, normalised");
    assert_eq!(again.disk_spec(), spec);
}

const PASSWORD: &str = "hunter2QzX";

/// No printed text holds a password or token, however broken the text around it is.
pub fn secrets_stay_secret(data: &[u8]) {
    let mut input = Input(data);
    let key = input.pick(&[
        "postgresURL",
        "publisherURL",
        "aggregatorURL",
        "authTokenCommand",
    ]);
    let url = match input.byte() % 4 {
        // In the place of a password.
        0 | 1 => format!(
            "{}://{}:{}{PASSWORD}@{}",
            input.pick(&["postgres", "postgresql", "http", "https"]),
            input.text(),
            input.text().replace(['@', '/', '?', '#', ':'], ""),
            input.text()
        ),
        // As a parameter.
        2 => format!(
            "postgres://{}/{}?{}password={PASSWORD}{}",
            input.text(),
            input.text(),
            input.text(),
            input.text()
        ),
        // Only at this place is the text a password: elsewhere it may be a path, which is no
        // secret.
        _ if !["postgresURL", "authTokenCommand"].contains(&key) => return,
        _ => format!(
            "{}user={} password={PASSWORD} {}",
            input.text(),
            input.text(),
            input.text()
        ),
    };
    let mut config = json!({"publisherURL": "http://p", "aggregatorURL": "http://a"});
    config[key] = url.clone().into();
    if key != "postgresURL" {
        config["indexPath"] = "i".into();
    }
    if input.flag() {
        config[input.text()] = input.text().into();
    }
    // Copied elsewhere by the fuzzer, it is no secret.
    if config.to_string().matches(PASSWORD).count() != 1 || config[key] != url {
        return;
    }
    let printed = match Config::from_json(&config.to_string()) {
        Ok(config) => format!("{config:?} {}", config.disk_spec()),
        Err(e) => format!("{e} {e:?}"),
    };
    assert!(!printed.contains(PASSWORD), "{config} gives {printed}");
}
