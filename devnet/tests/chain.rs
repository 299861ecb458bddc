//! The chain, through `walrus-devnet-cli`: its answers, the traps in them, the rules, the bill.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::*;
use serde_json::{json, Value};
use walrus_devnet::{
    BlockingDevnet, FaultAction, FaultRule, Loss, Op, Options, Prices, PUBLISHER_ADDRESS,
};

fn program(url: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_walrus-devnet-cli"))
        .env_remove("WALRUS_DEVNET_URL")
        .args(["--url", url])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// The JSON that the program prints.
#[track_caller]
fn run(url: &str, args: &[&str]) -> Value {
    let output = program(url, &[&["--json"], args].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    assert_eq!(said, "");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The text of the program's error.
#[track_caller]
fn fails(url: &str, args: &[&str]) -> String {
    let output = program(url, &[&["--json"], args].concat());
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    said.strip_prefix("Error: ").unwrap().trim().to_owned()
}

#[track_caller]
fn extend(url: &str, object: &str, epochs: &str) -> Value {
    run(
        url,
        &[
            "extend",
            "--blob-obj-id",
            object,
            "--epochs-extended",
            epochs,
        ],
    )
}

#[track_caller]
fn extend_fails(url: &str, object: &str, epochs: &str) -> String {
    fails(
        url,
        &[
            "extend",
            "--blob-obj-id",
            object,
            "--epochs-extended",
            epochs,
        ],
    )
}

#[track_caller]
fn delete(url: &str, object: &str) -> Value {
    let answer = run(url, &["delete", "--yes", "--object-ids", object]);
    assert_eq!(answer.as_array().unwrap().len(), 1);
    assert_eq!(answer[0]["blobIdentity"]["objectId"], object);
    answer[0].clone()
}

/// Stores a blob; its blob ID and its object ID.
fn stored(url: &str, query: &str, data: &[u8]) -> (String, String) {
    let answer = put(url, &format!("/v1/blobs?{query}"), data);
    let object = answer.json()["newlyCreated"]["blobObject"]["id"].clone();
    (answer.blob_id(), object.as_str().unwrap().to_owned())
}

fn end_epoch(url: &str, object: &str) -> Option<u64> {
    let list = run(url, &["list-blobs"]);
    let mut all = list.as_array().unwrap().iter();
    let found = all.find(|blob| blob["id"] == object)?;
    found["storage"]["endEpoch"].as_u64()
}

fn wallet(dir: &Path, address: &str) -> PathBuf {
    let file = dir.join(format!("{}.yaml", &address[..6]));
    let text = format!("---\nkeystore:\n  File: keys\nactive_address: \"{address}\"\n");
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn extending_costs_the_storage_of_the_added_epochs_only() {
    let net = start();
    let url = net.url();
    let (blob, object) = stored(&url, "epochs=5&permanent=true", &pattern(1000));
    let before = net.stats();
    assert_eq!(extend(&url, &object, "7"), json!({"epochsExtended": 7}));
    let after = net.stats();
    let units = net.blobs()[0].units;
    let prices = Prices::default();
    assert_eq!(
        after.cost_frost - before.cost_frost,
        units * prices.storage * 7
    );
    assert_eq!((after.extended, after.puts), (1, before.puts));
    assert_eq!(after.by_op[&Op::ChainExtend], 1);
    assert_eq!(end_epoch(&url, &object), Some(13));
    net.advance_epoch(11);
    assert_eq!(get(&url, &format!("/v1/blobs/{blob}")).status, 200);
    net.advance_epoch(1);
    assert_eq!(get(&url, &format!("/v1/blobs/{blob}")).status, 404);
}

#[test]
fn the_chain_enforces_its_rules() {
    let net = start();
    let url = net.url();
    let dir = tempfile::tempdir().unwrap();
    let other = format!("0x{:0>64}", "abc");
    let wallet = wallet(dir.path(), &other);
    let wallet = wallet.to_str().unwrap();
    fn with<'a>(wallet: &'a str, args: &[&'a str]) -> Vec<&'a str> {
        [&["--wallet", wallet], args].concat()
    }
    let (_, mine) = stored(&url, "epochs=5&permanent=true", &pattern(1000));
    let sent = format!("epochs=5&permanent=true&send_object_to={other}");
    let (_, theirs) = stored(&url, &sent, &pattern(2000));

    // 53 epochs ahead and not more; at least one.
    assert!(extend_fails(&url, &mine, "49").contains("EInvalidEpochsAhead"));
    assert!(extend_fails(&url, &mine, "0").contains("EInvalidEpochsAhead"));
    extend(&url, &mine, "48");
    assert_eq!(end_epoch(&url, &mine), Some(54));
    assert!(extend_fails(&url, &mine, "1").contains("EInvalidEpochsAhead"));

    // The owner and no other.
    assert!(extend_fails(&url, &theirs, "1").contains("not owned by the sender"));
    assert_eq!(end_epoch(&url, &theirs), None);
    let args = ["extend", "--blob-obj-id", &theirs, "--epochs-extended", "1"];
    run(&url, &with(wallet, &args));
    let list = run(&url, &with(wallet, &["list-blobs"]));
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0]["storage"]["endEpoch"], 7);
    let unknown = format!("0x{:0>64}", "1");
    assert!(extend_fails(&url, &unknown, "1").contains("does not exist"));

    // Shared blobs: anyone, by the ID of the shared object, and saying so.
    let shared = put(
        &url,
        "/v1/blobs?epochs=5&permanent=true&share=true",
        b"shared",
    )
    .json();
    let inner = shared["newlyCreated"]["blobObject"]["id"].as_str().unwrap();
    let around = shared["newlyCreated"]["sharedBlobObject"].as_str().unwrap();
    assert!(extend_fails(&url, inner, "1").contains("does not exist"));
    assert!(extend_fails(&url, around, "1").contains("--shared"));
    let args = [
        "extend",
        "--shared",
        "--blob-obj-id",
        around,
        "--epochs-extended",
        "1",
    ];
    assert_eq!(
        run(&url, &with(wallet, &args)),
        json!({"epochsExtended": 1})
    );
    assert_eq!(end_epoch(&url, inner), None, "it belongs to no wallet");

    // Certified and unexpired.
    let id = net.blob_id(b"unfinished").unwrap();
    let path = format!("/admin/blobs/{id}?epochs=5&certified=false");
    let raw = send(&url, "PUT", &path, &[], b"unfinished").json();
    assert_eq!(get(&url, &format!("/v1/blobs/{id}")).status, 404);
    let unfinished = raw["object_id"].as_str().unwrap();
    assert!(extend_fails(&url, unfinished, "1").contains("ENotCertified"));
    let listed = run(&url, &["list-blobs"]);
    let listed = listed.as_array().unwrap();
    let listed = listed.iter().find(|blob| blob["id"] == unfinished).unwrap();
    assert_eq!(listed["certifiedEpoch"], Value::Null);
    net.set_epoch(54);
    assert!(extend_fails(&url, &mine, "1").contains("EResourceBounds"));
    assert_eq!(run(&url, &["list-blobs"]), json!([]));
    let all = run(&url, &["list-blobs", "--include-expired"]);
    assert_eq!(all.as_array().unwrap().len(), 2);
}

#[test]
fn deleting_tells_its_failures_in_the_answer() {
    let net = start();
    let url = net.url();
    let (blob, first) = stored(&url, "epochs=5&deletable=true", &pattern(1000));
    let (again, second) = stored(&url, "epochs=9&deletable=true", &pattern(1000));
    assert_eq!(blob, again);
    let (_, permanent) = stored(&url, "epochs=5&permanent=true", &pattern(2000));

    let kept = delete(&url, &permanent);
    assert!(kept["error"]
        .as_str()
        .unwrap()
        .contains("EBlobNotDeletable"));
    assert_eq!(
        (&kept["deletedBlobs"], &kept["noBlobFound"]),
        (&json!([]), &json!(false))
    );
    let unknown = delete(&url, &format!("0x{:0>64}", "1"));
    assert_eq!(
        (&unknown["noBlobFound"], unknown.get("error")),
        (&json!(true), None)
    );

    // The blob stays as long as another registration holds it; the storage goes back.
    let gone = delete(&url, &second);
    assert_eq!(gone["deletedBlobs"][0]["id"], *second);
    assert_eq!(gone["deletedBlobs"][0]["blobId"], *blob);
    assert_eq!(get(&url, &format!("/v1/blobs/{blob}")).status, 200);
    let info = get(&url, &format!("/admin/blobs/{blob}")).json();
    assert_eq!(info["end_epoch"], 6);
    let free = net.free_storage();
    assert_eq!((free.len(), free[0].end_epoch), (1, 10));
    assert_eq!(free[0].size, info["encoded_size"].as_u64().unwrap());
    assert_eq!(delete(&url, &second)["noBlobFound"], true);
    delete(&url, &first);
    assert_eq!(get(&url, &format!("/v1/blobs/{blob}")).status, 404);
    assert_eq!(get(&url, &format!("/admin/blobs/{blob}")).status, 404);
    let stats = net.stats();
    assert_eq!((stats.deleted, net.free_storage().len()), (2, 2));

    // By blob ID: all objects that hold it, and the status afterwards.
    stored(&url, "epochs=5&deletable=true", &pattern(1000));
    stored(&url, "epochs=5&deletable=true", &pattern(1000));
    let answer = run(&url, &["delete", "--yes", "--blob-ids", &blob]);
    assert_eq!(answer[0]["deletedBlobs"].as_array().unwrap().len(), 2);
    assert_eq!(answer[0]["postDeletionStatus"], "nonexistent");
    // Without --yes the program asks, and gets no answer here.
    let (_, last) = stored(&url, "epochs=5&deletable=true", &pattern(1000));
    let answer = run(&url, &["delete", "--object-ids", &last]);
    assert_eq!(
        (&answer[0]["aborted"], answer[0].get("error")),
        (&json!(true), None)
    );
    assert!(end_epoch(&url, &last).is_some());
}

#[test]
fn the_storage_of_a_deleted_blob_is_used_again() {
    let net = start_with(Options {
        single_wallet: true,
        ..Options::default()
    });
    let url = net.url();
    let query = "epochs=5&deletable=true&reuse_resources=true";
    assert!(net.take_deleted().is_empty());
    let (blob, object) = stored(&url, query, &pattern(1000));
    delete(&url, &object);
    let [deleted] = &net.take_deleted()[..] else {
        panic!("one was deleted");
    };
    assert_eq!(deleted.blob_id.to_string(), blob);
    assert_eq!(deleted.registrations[0].object_id.to_string(), object);
    assert!(net.take_deleted().is_empty());
    let before = net.stats().cost_frost;
    let answer = put(&url, &format!("/v1/blobs?{query}"), &pattern(1001)).json();
    let created = &answer["newlyCreated"];
    let units = net.blobs()[0].units;
    assert!(
        created["resourceOperation"]["reuseStorage"].is_object(),
        "{answer}"
    );
    assert_eq!(created["cost"], units * Prices::default().write);
    assert_eq!(
        net.stats().cost_frost - before,
        units * Prices::default().write
    );
    assert!(net.free_storage().is_empty());
}

fn units_of(net: &BlockingDevnet, blob: &str) -> u64 {
    let blobs = net.blobs();
    let found = blobs.iter().find(|b| b.blob_id.to_string() == blob);
    found.unwrap().units
}

#[test]
fn larger_storage_is_taken_over_whole() {
    let net = start_with(Options {
        single_wallet: true,
        ..Options::default()
    });
    let url = net.url();
    let query = "epochs=5&deletable=true";
    let prices = Prices::default();
    let mut left = Vec::new();
    for len in [1 << 20, 4 << 20, 2 << 20] {
        let (blob, object) = stored(&url, query, &pattern(len));
        left.push(units_of(&net, &blob));
        delete(&url, &object);
    }
    assert!(left[0] < left[2] && left[2] < left[1], "{left:?}");
    net.advance_epoch(1);
    // The smallest that is large enough; it need not end later than was asked for.
    let reuse = |epochs: u32, len: usize| {
        let query = format!("/v1/blobs?epochs={epochs}&deletable=true&reuse_resources=true");
        put(&url, &query, &pattern(len)).json()["newlyCreated"].clone()
    };
    let created = reuse(2, 3 << 19);
    let storage = &created["blobObject"]["storage"];
    assert_eq!(created["blobObject"]["registeredEpoch"], 2, "{created}");
    assert_eq!(
        (&storage["startEpoch"], &storage["endEpoch"]),
        (&json!(1), &json!(6))
    );
    assert_eq!(
        storage["storageSize"].as_u64().unwrap().div_ceil(1 << 20),
        left[2]
    );
    let id: String = created["blobObject"]["blobId"].as_str().unwrap().to_owned();
    let own = units_of(&net, &id);
    assert!(own < left[2], "{own}");
    assert_eq!(created["cost"], own * prices.write);
    // What lasts too short or is too small is left alone.
    let long = reuse(5, 1 << 19);
    assert!(
        long["resourceOperation"]["registerFromScratch"].is_object(),
        "{long}"
    );
    let large = reuse(2, 8 << 20);
    assert!(
        large["resourceOperation"]["registerFromScratch"].is_object(),
        "{large}"
    );
    assert_eq!(net.free_storage().len(), 2);
    // The larger storage is what an extension costs, and what a deletion gives back.
    let object = created["blobObject"]["id"].as_str().unwrap().to_owned();
    let before = net.stats().cost_frost;
    run(
        &url,
        &["extend", "--blob-obj-id", &object, "--epochs-extended", "3"],
    );
    assert_eq!(
        net.stats().cost_frost - before,
        left[2] * prices.storage * 3
    );
    delete(&url, &object);
    let free = net.free_storage();
    let back = free
        .iter()
        .find(|s| s.size.div_ceil(1 << 20) == left[2])
        .unwrap();
    assert_eq!((back.start_epoch, back.end_epoch), (1, 9));
}

#[test]
fn statuses_prices_and_the_epoch() {
    let net = start();
    let url = net.url();
    let status = |blob: &str| {
        let answer = run(&url, &["blob-status", "--blob-id", blob]);
        assert_eq!(answer["blobId"], *blob);
        answer["status"].clone()
    };
    let absent = net.blob_id(b"absent").unwrap().to_string();
    assert_eq!(status(&absent), "nonexistent");
    let (deletable, _) = stored(&url, "epochs=3", b"deletable");
    let told = status(&deletable);
    assert_eq!(
        told["deletable"]["deletableCounts"]["count_deletable_total"],
        1
    );
    assert!(!told.to_string().contains("endEpoch"), "{told}");
    let (permanent, _) = stored(&url, "epochs=3&permanent=true", b"permanent");
    assert_eq!(status(&permanent)["permanent"]["endEpoch"], 4);
    assert_eq!(status(&permanent)["permanent"]["isCertified"], true);

    let prices = run(&url, &["info", "price"]);
    assert_eq!(prices["storagePricePerUnitSize"], Prices::default().storage);
    assert_eq!(prices["writePricePerUnitSize"], Prices::default().write);
    net.set_epoch(42);
    let epoch = run(&url, &["info", "epoch"]);
    assert_eq!(
        (&epoch["currentEpoch"], &epoch["maxEpochsAhead"]),
        (&json!(42), &json!(53))
    );
    assert_eq!(
        epoch["epochDuration"],
        json!({"secs": 1_209_600, "nanos": 0})
    );
    let began = epoch["startOfCurrentEpoch"]["DateTime"].as_str().unwrap();
    let began = humantime::parse_rfc3339(began).unwrap();
    assert!(began.elapsed().unwrap().as_secs() < 600, "{epoch}");
}

#[test]
fn json_mode_takes_the_same_commands() {
    let net = start();
    let url = net.url();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("client_config.yaml");
    std::fs::write(&config, format!("# of a test\ndevnet_url: {url}\n")).unwrap();
    let main = wallet(dir.path(), &PUBLISHER_ADDRESS.to_string());
    let (_, object) = stored(&url, "epochs=5", &pattern(1000));
    let as_json = |command: Value| {
        let text = json!({"config": config, "wallet": main, "command": command}).to_string();
        let output = Command::new(env!("CARGO_BIN_EXE_walrus-devnet-cli"))
            .env_remove("WALRUS_DEVNET_URL")
            .args(["json", &text])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let extend = json!({"extend": {"blobObjId": object, "shared": false, "epochsExtended": 2}});
    assert_eq!(as_json(extend), json!({"epochsExtended": 2}));
    assert_eq!(
        as_json(json!({"listBlobs": {}}))[0]["storage"]["endEpoch"],
        8
    );
    let info = json!({"info": {"command": "epoch"}});
    assert_eq!(as_json(info)["currentEpoch"], 1);
    let gone = as_json(json!({"delete": {"objectIds": [object], "yes": true}}));
    assert_eq!(gone[0]["deletedBlobs"][0]["id"], *object);
    // Without --json it is text for people.
    let output = program(&url, &["info", "epoch"]);
    assert!(serde_json::from_slice::<Value>(&output.stdout).is_err());
}

#[test]
fn errors_are_texts_and_exit_codes() {
    let net = start();
    let url = net.url();
    assert!(extend_fails("http://127.0.0.1:1", "0x1", "1").contains("no devnet at"));
    let output = program(&url, &["extend", "--blob-obj-id", "0x1", "--by", "1"]);
    assert_eq!(output.status.code(), Some(2));
    let output = program(&url, &["--wallet", "/nonexistent", "list-blobs"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent"));
}

fn faulty(net: &BlockingDevnet, op: Op, action: FaultAction) {
    net.set_faults(FaultRule::new(action).on([op]));
}

#[test]
fn faults_are_those_of_a_program() {
    let net = start();
    let url = net.url();
    let (_, object) = stored(&url, "epochs=5", &pattern(1000));
    let cost = net.stats().cost_frost;

    faulty(
        &net,
        Op::ChainExtend,
        FaultAction::OutOfFunds { gas: false },
    );
    let why = extend_fails(&url, &object, "1");
    assert_eq!(why, "could not find WAL coins with sufficient balance");
    faulty(&net, Op::ChainDelete, FaultAction::OutOfFunds { gas: true });
    let entry = delete(&url, &object);
    assert!(entry["error"].as_str().unwrap().contains("SUI coins"));

    let garbage = FaultAction::Status {
        status: 200,
        body: "2026-01-01 WARN walrus: something".to_owned(),
        content_type: None,
        retry_after: None,
    };
    faulty(&net, Op::ChainList, garbage);
    let output = program(&url, &["--json", "list-blobs"]);
    assert!(output.status.success() && output.stdout.starts_with(b"2026-01-01 WARN"));
    faulty(&net, Op::ChainInfo, FaultAction::Internal);
    assert!(fails(&url, &["info", "price"]).contains("INTERNAL"));
    assert_eq!(net.stats().cost_frost, cost);

    let how = Loss::Cut;
    faulty(&net, Op::ChainExtend, FaultAction::AnswerLost { how });
    assert!(extend_fails(&url, &object, "1").contains("no answer"));
    assert_eq!(end_epoch(&url, &object), Some(7), "extended all the same");

    // A rule without operations leaves the chain alone.
    net.set_faults(FaultRule::new(FaultAction::Internal));
    extend(&url, &object, "1");

    faulty(&net, Op::ChainExtend, FaultAction::Hang);
    let mut hangs = Command::new(env!("CARGO_BIN_EXE_walrus-devnet-cli"))
        .args(["--url", &url, "extend", "--blob-obj-id", &object])
        .args(["--epochs-extended", "1"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while net.faults()[0].fired == 0 {
        assert!(hangs.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    assert!(hangs.try_wait().unwrap().is_none(), "it waits");
    hangs.kill().unwrap();
    hangs.wait().unwrap();
}

#[test]
fn what_the_chain_did_survives_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let options = || Options {
        data: Some(root.path().to_owned()),
        ..Options::default()
    };
    let (gone, extended);
    {
        let net = start_with(options());
        let url = net.url();
        let (_, first) = stored(&url, "epochs=5", &pattern(1000));
        gone = stored(&url, "epochs=5", &pattern(2000)).1;
        extended = first;
        extend(&url, &extended, "3");
        delete(&url, &gone);
    }
    assert_eq!(
        std::fs::read_dir(root.path().join("blobs"))
            .unwrap()
            .count(),
        1
    );
    // Twice: once from the journal as it was written, once from the one written anew.
    for _ in 0..2 {
        let net = start_with(options());
        assert_eq!(end_epoch(&net.url(), &extended), Some(9));
        assert_eq!(delete(&net.url(), &gone)["noBlobFound"], true);
        assert_eq!((net.blobs().len(), net.free_storage().len()), (1, 1));
    }
    let net = start_with(options());
    net.reset();
    assert!(net.free_storage().is_empty());
    drop(net);
    assert!(start_with(options()).free_storage().is_empty());
}
