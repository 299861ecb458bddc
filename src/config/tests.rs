use super::*;

const MINIMAL: &str = r#""publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"i.db""#;

fn parse(extra: &str) -> Result<Config> {
    let comma = if extra.is_empty() { "" } else { "," };
    Config::from_json(&format!("{{{MINIMAL}{comma}{extra}}}"))
}

#[track_caller]
fn refused(json: &str, parts: &[&str]) -> Error {
    let err = Config::from_json(json).expect_err(json);
    for part in parts {
        assert!(err.message().contains(part), "{json}: {err} lacks {part:?}");
    }
    err
}

#[track_caller]
fn refused_extra(extra: &str, parts: &[&str]) {
    refused(&format!("{{{MINIMAL},{extra}}}"), parts);
}

#[test]
fn defaults_are_those_of_the_table() {
    let c = parse("").unwrap();
    let json = serde_json::json!({
        "table": c.table, "epochs": c.epochs, "deletable": c.deletable, "workers": c.workers,
        "maxOpenConns": c.max_open_conns, "packTargetSizeBytes": c.pack_target_size_bytes,
        "blobCacheBytes": c.blob_cache_bytes, "requestTimeoutSeconds": c.request_timeout.as_secs(),
        "maxRetries": c.max_retries, "epochDurationSeconds": c.epoch_duration.as_secs(),
        "renewIntervalSeconds": c.renew_interval.as_secs(), "verifyReads": c.verify_reads != VerifyReads::Never,
        "nShards": c.n_shards, "adoptStagingSeconds": c.adopt_staging.as_secs(), "disableFlush": c.disable_flush,
        "standbyMaxLagSeconds": c.standby_max_lag.as_secs(), "trustStandbyMisses": c.trust_standby_misses,
    });
    for (name, value) in json.as_object().unwrap() {
        let shown = value.to_string();
        assert_eq!(
            shown.trim_matches('"'),
            Fields::spec(name).default,
            "default of {name}"
        );
    }
}

#[test]
fn every_key_is_read_in_its_own_type() {
    for key in KEYS {
        let wrong = match key.ty {
            KeyType::Text => "[]",
            KeyType::Flag => "\"true\"",
            KeyType::Whole { .. } => "\"5\"",
        };
        let mut map: Map<String, Value> = serde_json::from_str(&format!("{{{MINIMAL}}}")).unwrap();
        map.insert(key.name.into(), serde_json::from_str(wrong).unwrap());
        let err = Config::from_map(&map).expect_err(key.name);
        assert!(err.message().contains(key.name), "{err}");
        assert!(err.message().contains("expected"), "{err}");
    }
}

#[test]
fn the_network_gives_the_length_of_an_epoch() {
    for (extra, seconds) in [
        (r#""network":"mainnet""#, 1_209_600),
        (r#""network":" testnet ","renewIntervalSeconds":5"#, 86_400),
        (r#""network":{"epochDurationSeconds":600}"#, 600),
        (r#""network":"{\"epochDurationSeconds\": 600}""#, 600),
        (
            r#""network":"mainnet","epochDurationSeconds":1209600"#,
            1_209_600,
        ),
        (r#""network":"","epochDurationSeconds":7"#, 7),
        (r#""epochDurationSeconds":7"#, 7),
    ] {
        let config = parse(extra).unwrap();
        assert_eq!(config.epoch_duration.as_secs(), seconds, "{extra}");
        assert_eq!(config.renew_lead, config.epoch_duration, "{extra}");
    }
    for (extra, found) in [
        (r#""network":"Mainnet""#, "Mainnet"),
        (r#""network":7"#, "the number 7"),
        (r#""network":{}"#, "{}"),
        (r#""network":{"epochDurationSeconds":0}"#, ":0"),
        (
            r#""network":{"epochDurationSeconds":600,"nShards":9}"#,
            "nShards",
        ),
        (r#""network":"{\"epochDurationSeconds\"""#, "{"),
    ] {
        refused_extra(extra, &["network is", found, "expected"]);
    }
    let both = r#""network":"testnet","epochDurationSeconds":1209600"#;
    refused_extra(
        both,
        &[
            "epochDurationSeconds is 1209600",
            "86400 seconds",
            "remove one",
        ],
    );
    refused_extra(
        r#""renewIntervalSeconds":9"#,
        &["network is not", "mainnet"],
    );
}

#[test]
fn the_walrus_program_is_a_list() {
    let command = |extra: &str| {
        let command = parse(extra).unwrap().walrus_command;
        command.map(|c| (c.program().to_owned(), c.options().join(" ")))
    };
    assert_eq!(command(""), None);
    assert_eq!(command(r#""walrusCommand":" ""#), None);
    let alone = Some(("walrus".to_owned(), String::new()));
    assert_eq!(command(r#""walrusCommand":"walrus""#), alone);
    assert_eq!(command(r#""walrusCommand":["walrus"]"#), alone);
    let options = Some(("/my bin/walrus".to_owned(), "--wallet /w x".to_owned()));
    let list = r#"["/my bin/walrus","--wallet","/w x"]"#;
    assert_eq!(command(&format!("\"walrusCommand\":{list}")), options);
    let text = Value::from(format!(" {list}"));
    assert_eq!(command(&format!("\"walrusCommand\":{text}")), options);
    for (value, found) in [
        ("[]", "without a program"),
        (r#"[" "]"#, "without a program"),
        (r#"["walrus",7]"#, "holds the number 7"),
        (r#"["walrus",["--s3cret"]]"#, "holds an array"),
        (r#""walrus --s3cret""#, "a text with blanks"),
        (r#""[\"walrus\", s3cret""#, "and is none"),
        ("7", "the number 7"),
        ("{}", "an object"),
    ] {
        let json = format!("{{{MINIMAL},\"walrusCommand\":{value}}}");
        let err = refused(&json, &["walrusCommand is", found, "expected"]);
        assert!(!err.message().contains("s3cret"), "{err}");
    }
    refused_extra(
        r#""walrusCommand":["walrus\u0000"]"#,
        &["walrusCommand holds a NUL"],
    );
    let config = parse(r#""walrusCommand":["bin/walrus","--key=s3cret"]"#).unwrap();
    assert!(!format!("{config:?}").contains("s3cret"));
    let config = config.resolve(Path::new("/repo"));
    assert_eq!(config.walrus_command.unwrap().program(), "/repo/bin/walrus");
    let config = parse(r#""walrusCommand":["walrus"]"#).unwrap();
    let config = config.resolve(Path::new("/repo"));
    assert_eq!(
        config.walrus_command.unwrap().program(),
        "walrus",
        "in PATH"
    );
}

#[test]
fn required_keys() {
    refused("{}", &["publisherURL is required"]);
    refused(r#"{"publisherURL":""}"#, &["publisherURL is required"]);
    refused(r#"{"publisherURL":" , "}"#, &["publisherURL is required"]);
    refused(
        r#"{"publisherURL":"http://p"}"#,
        &["aggregatorURL is required"],
    );
    refused(
        r#"{"publisherURL":"http://p","aggregatorURL":"http://a"}"#,
        &["neither postgresURL nor indexPath"],
    );
    refused(
        r#"{"publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"x","postgresURL":"postgres://u:secret@h/d"}"#,
        &["both postgresURL and indexPath"],
    );
}

#[test]
fn numbers() {
    assert_eq!(parse(r#""workers":16.0"#).unwrap().workers, 16);
    assert_eq!(parse(r#""maxRetries":0"#).unwrap().max_retries, 0);
    assert_eq!(
        parse(r#""blobCacheBytes":-1"#).unwrap().blob_cache_bytes,
        -1
    );
    refused_extra(r#""epochs":0"#, &["epochs is the number 0", "from 1 to 53"]);
    refused_extra(r#""epochs":54"#, &["54", "from 1 to 53"]);
    refused_extra(r#""epochs":1.5"#, &["epochs", "1.5", "whole number"]);
    refused_extra(r#""epochs":-1"#, &["epochs", "-1"]);
    refused_extra(r#""epochs":1e400"#, &["epochs", "e+400", "from 1 to 53"]);
    refused_extra(
        r#""workers":99999999999999999999999"#,
        &["workers", "99999999999999999999999"],
    );
    refused_extra(r#""epochs":"NaN""#, &["epochs", "NaN"]);
    refused_extra(r#""epochs":null"#, &["epochs is null"]);
    refused_extra(r#""blobCacheBytes":0"#, &["blobCacheBytes is 0"]);
    refused("{\"epochs\":NaN}", &["not valid JSON"]);
    refused("[]", &["an array", "expected a JSON object"]);
}

#[test]
fn urls() {
    let c = Config::from_json(
        r#"{"publisherURL":"http://a/, http://b","aggregatorURL":" https://x:1/p/ ,,","indexPath":"i","table":""}"#,
    )
    .unwrap();
    assert_eq!(
        c.disk_spec().to_string(),
        r#"{"aggregatorURL":"https://x:1/p/","publisherURL":"http://a/,http://b","table":"walrus_index"}"#
    );
    for (url, parts) in [
        ("localhost:31415", &["localhost", "not supported"][..]),
        ("ftp://h", &["ftp"]),
        ("h/p", &["publisherURL", "h/p"]),
        ("http://", &["publisherURL", "empty host"]),
        ("http://h?x=1", &["query"]),
        ("http://user:hunter2@h", &["user info", "authTokenCommand"]),
    ] {
        let json =
            format!(r#"{{"publisherURL":"{url}","aggregatorURL":"http://a","indexPath":"i"}}"#);
        let err = refused(&json, parts);
        assert!(!err.message().contains("hunter2"), "{err}");
    }
}

#[test]
fn tables() {
    for good in ["walrus_index", "Blocks", "my_schema.blocks", "_x1"] {
        assert_eq!(parse(&format!(r#""table":"{good}""#)).unwrap().table, good);
    }
    for evil in ["x; DROP TABLE y", "a.b.c", "1x", "a-b", "x\\\"y", "a.", "é"] {
        refused_extra(&format!(r#""table":"{evil}""#), &["table"]);
    }
    let long = "x".repeat(64);
    refused_extra(&format!(r#""table":"{long}""#), &["table", "63"]);
}

#[test]
fn only_a_node_that_retrieves_trusts_a_standby() {
    let trusting = |rest: &str| {
        format!(
            r#"{{"publisherURL":"http://p","aggregatorURL":"http://a","trustStandbyMisses":true,{rest}}}"#
        )
    };
    let postgres = r#""postgresURL":"postgres://u@h/d""#;
    let good = trusting(&format!(r#"{postgres},"disableFlush":true"#));
    assert!(Config::from_json(&good).unwrap().only_retrieves());
    for rest in [
        postgres.to_owned(),
        format!(r#"{postgres},"disableFlush":true,"journalPath":"j""#),
        r#""indexPath":"i.db","disableFlush":true"#.to_owned(),
    ] {
        refused(
            &trusting(&rest),
            &["trustStandbyMisses is true", "expected false"],
        );
    }
    refused_extra(
        r#""standbyMaxLagSeconds":0"#,
        &["standbyMaxLagSeconds", "0"],
    );
}

#[test]
fn unknown_and_future_keys() {
    refused_extra(r#""publisherUrl":"x""#, &["unknown key", "publisherURL"]);
    refused_extra(
        r#""path":"x""#,
        &["\"path\"", "/blocks", "provider-keystore"],
    );
    refused_extra(r#""type":"flatfs""#, &["type", "walrusds"]);
    parse(r#""type":"walrusds""#).unwrap();
    for (extra, format) in [
        ("", PackFormat::Car),
        (r#""packFormat":"car""#, PackFormat::Car),
        (r#""packFormat":"concat""#, PackFormat::Concat),
        (r#""packFormat":"quilt""#, PackFormat::Quilt),
    ] {
        assert_eq!(parse(extra).unwrap().pack_format, format, "{extra}");
    }
    for (value, checks) in [
        ("true", VerifyReads::Network),
        ("false", VerifyReads::Never),
        (r#""always""#, VerifyReads::Always),
        (r#"" False ""#, VerifyReads::Never),
        (r#""true""#, VerifyReads::Network),
        (r#""""#, VerifyReads::Network),
    ] {
        let config = parse(&format!("\"verifyReads\":{value}")).unwrap();
        assert_eq!(config.verify_reads, checks, "{value}");
    }
    for value in ["1", r#""sometimes""#] {
        let found = value.trim_matches('"');
        refused_extra(
            &format!("\"verifyReads\":{value}"),
            &["verifyReads", found, "always"],
        );
    }
    let sync = |extra: &str| {
        let config = parse(&format!(r#""journalPath":"j"{extra}"#)).unwrap();
        config.journal.unwrap().sync
    };
    assert_eq!(sync(""), JournalSync::Put);
    assert_eq!(sync(r#","journalSync":"put""#), JournalSync::Put);
    assert_eq!(sync(r#","journalSync":"sync""#), JournalSync::Sync);
    refused_extra(
        r#""journalSync":"never""#,
        &["journalSync", "never", "put", "sync"],
    );
    refused_extra(
        r#""packFormat":"zip""#,
        &["packFormat", "zip", "car", "concat", "quilt"],
    );
    refused_extra(
        r#""authTokenCommand":"x","authTokenFile":"y""#,
        &["authTokenCommand", "authTokenFile"],
    );
}

#[test]
fn a_go_plugin_config_works_unchanged() {
    let c = Config::from_json(
        r#"{"type":"walrusds","publisherURL":"http://p","aggregatorURL":"http://a",
        "postgresURL":"postgres://u:pw@h/d?sslmode=disable","table":"","epochs":5,"nShards":1000,
        "deletable":false,"disableQuilt":true,"disableFlush":false,"workers":16,"maxOpenConns":32,
        "requestTimeoutSeconds":60,"maxRetries":3,"packTargetSizeBytes":268435456,
        "packMaxAgeSeconds":300,"packIdleFlushSeconds":30,"packFlushIntervalSeconds":5,
        "blobCacheBytes":1073741824,"epochDurationSeconds":86400,"renewIntervalSeconds":3600,
        "renewLeadSeconds":86400}"#,
    )
    .unwrap();
    assert_eq!(c.renew_lead, Duration::from_secs(86_400));
    assert!(!format!("{c:?}").contains("pw"), "{c:?}");
}

#[test]
fn secrets_are_not_shown() {
    for value in [
        r#"{"pw":"hunter2"}"#,
        r#"["hunter2"]"#,
        r#""mysql://u:hunter2@h/d""#,
        r#""hunter2""#,
    ] {
        let err = refused_secret(value);
        assert!(err.message().contains("postgresURL"), "{err}");
        assert!(!err.message().contains("hunter2"), "{err}");
    }
    fn refused_secret(value: &str) -> Error {
        Config::from_json(&format!(
            r#"{{"publisherURL":"http://p","aggregatorURL":"http://a","postgresURL":{value}}}"#
        ))
        .unwrap_err()
    }
}

#[test]
fn paths_are_relative_to_the_repo() {
    let c = parse(r#""authTokenFile":"/abs/token""#)
        .unwrap()
        .resolve(Path::new("/repo"));
    assert_eq!(c.index, IndexConfig::Sqlite("/repo/i.db".into()));
    assert_eq!(c.auth, Auth::File("/abs/token".into()));
}

#[test]
fn a_disk_cache_has_a_directory_of_its_own() {
    assert_eq!(parse("").unwrap().disk_cache, None);
    assert_eq!(parse(r#""cacheBytes":5"#).unwrap().disk_cache, None);
    let cache = |extra: &str| parse(extra).unwrap().resolve(Path::new("/repo")).disk_cache;
    let expected = |path: &str, max_bytes| {
        let path = path.into();
        Some(DiskCacheConfig { path, max_bytes })
    };
    assert_eq!(cache(r#""cachePath":"c""#), expected("/repo/c", 10 << 30));
    assert_eq!(
        cache(r#""cachePath":"/abs","cacheBytes":5"#),
        expected("/abs", 5)
    );
    for (cache, journal) in [("c", "c"), ("c/d", "c"), ("c", "c/d"), ("./x/../c", "c/")] {
        refused_extra(
            &format!(r#""cachePath":"{cache}","journalPath":"{journal}""#),
            &["cachePath", "journalPath", "of its own"],
        );
    }
    parse(r#""cachePath":"c","journalPath":"cd""#).unwrap();
    // The index is "i.db" in the repo.
    refused_extra(r#""cachePath":".""#, &["cachePath", "indexPath"]);
    refused_extra(r#""cachePath":"c","cacheBytes":0"#, &["cacheBytes"]);
}

#[test]
fn renewal_needs_the_epoch_length() {
    refused_extra(r#""renewIntervalSeconds":60"#, &["epochDurationSeconds"]);
    let c = parse(r#""renewIntervalSeconds":60,"epochDurationSeconds":100"#).unwrap();
    assert_eq!(c.renew_lead, Duration::from_secs(100));
}

#[test]
fn directories_of_kubo_are_refused() {
    let repo = Path::new("/repo");
    for (key, path) in [
        ("journalPath", "datastore"),
        ("journalPath", "keystore/j"),
        ("cachePath", "blocks"),
        ("cachePath", "walrusds-roots/walrus_index"),
        ("journalPath", "."),
        ("journalPath", "x/.."),
        ("journalPath", ".."),
    ] {
        let json = format!(
            r#"{{"publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"/i","{key}":"{path}"}}"#
        );
        let config = Config::from_json(&json).unwrap().resolve(repo);
        let error = config.check_repo(repo).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.message().contains(key), "{path}: {error}");
        assert!(!error.message().contains("\"\""), "{path}: {error}");
    }
    let json = r#"{"publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"i","journalPath":"walrusds-journal","cachePath":"datastores"}"#;
    Config::from_json(json)
        .unwrap()
        .resolve(repo)
        .check_repo(repo)
        .unwrap();
}

#[test]
fn links_to_directories_of_kubo_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("repo");
    std::fs::create_dir_all(repo.join("datastore")).unwrap();
    std::os::unix::fs::symlink(repo.join("datastore"), dir.path().join("link")).unwrap();
    let check = |path: &str| {
        let json = format!(
            r#"{{"publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"i","journalPath":"{path}"}}"#
        );
        let config = Config::from_json(&json).unwrap().resolve(&repo);
        config.check_repo(&repo)
    };
    let error = check("../link").unwrap_err();
    assert!(error.message().contains("journalPath"), "{error}");
    check("../link/../journal").unwrap();
    check("journal").unwrap();
}

#[test]
fn storage_is_used_again_only_where_the_node_can_delete_and_extend() {
    let with = |keys: &str| {
        let json = format!(
            r#"{{"publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"i","network":"testnet","reuseStorage":true{keys}}}"#
        );
        Config::from_json(&json)
    };
    let command = r#","walrusCommand":["walrus"]"#;
    let all = format!(r#"{command},"deletable":true,"renewIntervalSeconds":60"#);
    assert!(with(&all).unwrap().reuse_storage);
    for (keys, missing) in [
        (all.replace(command, ""), "walrusCommand is not set"),
        (all.replace("true", "false"), "deletable is false"),
        (all.replace(":60", ":0"), "renewIntervalSeconds is 0"),
    ] {
        let error = with(&keys).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        let text = error.message();
        assert!(
            text.contains("reuseStorage is true") && text.contains(missing),
            "{text}"
        );
    }
}
