//! The engine's side of the chain (`walrusCommand`), against `walrus-devnet-cli`.

mod common;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::*;
use walrus_devnet::{BlobId, BlockingDevnet, FaultAction, FaultRule, Loss, Op, Options};
use walrusds::config::WalrusCommand;
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::internals::chain::{Chain, Failure, OwnedBlob, Program, Round, TimeLimits};
use walrusds::log::Level;
use walrusds::walrus::cost::Prices;
use walrusds::{Config, Error, ErrorKind, Ledger as _, WalrusDatastore};

const PROGRAM: &str = env!("CARGO_BIN_EXE_walrus-devnet-cli");

fn program(net: &BlockingDevnet, more: &[&str]) -> Program {
    let url = net.url();
    let options = [&["--url", &*url], more].concat();
    let options = options.into_iter().map(str::to_owned).collect();
    Program::new(WalrusCommand::new(PROGRAM, options))
}

/// A shell script in the program's place.
fn script(text: &str) -> Program {
    let options = ["-c", text, "walrus"].map(str::to_owned).to_vec();
    Program::new(WalrusCommand::new("sh", options))
}

fn stored(net: &BlockingDevnet, query: &str, data: &[u8]) -> (String, String) {
    let answer = put(&net.url(), &format!("/v1/blobs?{query}"), data);
    let object = answer.json()["newlyCreated"]["blobObject"]["id"].clone();
    (answer.blob_id(), object.as_str().unwrap().to_owned())
}

fn faulty(net: &BlockingDevnet, op: Op, action: FaultAction) {
    net.set_faults(FaultRule::new(action).on([op]));
}

fn prints(status: u16, body: &str) -> FaultAction {
    FaultAction::Status {
        status,
        body: body.to_owned(),
        content_type: None,
        retry_after: None,
    }
}

#[track_caller]
fn fails<T: std::fmt::Debug>(result: Result<T, Error>, failure: Failure, parts: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(Failure::of(&error), Some(failure), "{error}");
    assert_eq!(error.is_retryable(), failure == Failure::Unclear, "{error}");
    for part in parts {
        assert!(error.message().contains(part), "{error} lacks {part:?}");
    }
}

#[tokio::test]
async fn the_epoch_and_the_prices() {
    let net = start_with(Options {
        epoch_duration: Some(Duration::from_secs(86_400)),
        first_epoch: 42,
        ..Options::default()
    });
    let chain = program(&net, &[]);
    let before = SystemTime::now() - Duration::from_secs(600);
    let epoch = chain.epoch().await.unwrap();
    assert_eq!((epoch.current, epoch.max_ahead), (42, 53));
    assert_eq!(epoch.length, Duration::from_secs(86_400));
    let began = epoch.started_at.unwrap();
    assert!(began > before && began <= SystemTime::now());
    net.advance_epoch(3);
    assert_eq!(chain.epoch().await.unwrap().current, 45);
    let prices = chain.prices().await.unwrap();
    let expected = Prices {
        storage: 100_000,
        write: 20_000,
    };
    assert_eq!(prices, expected);
}

#[tokio::test]
async fn blobs_are_listed_and_extended() {
    let net = start();
    let chain = program(&net, &[]);
    assert_eq!(chain.list().await.unwrap(), []);
    let (blob_id, object_id) = stored(&net, "epochs=5&permanent=true", &pattern(1000));
    let mut owned = OwnedBlob {
        object_id: object_id.clone(),
        blob_id,
        size: 1000,
        certified: true,
        end_epoch: 6,
        deletable: false,
    };
    assert_eq!(chain.list().await.unwrap(), [owned.clone()]);
    let cost = net.stats().cost_frost;
    chain.extend(&object_id, 7, false).await.unwrap();
    owned.end_epoch = 13;
    assert_eq!(chain.list().await.unwrap(), [owned.clone()]);
    assert_eq!(
        net.stats().cost_frost - cost,
        net.blobs()[0].units * 100_000 * 7
    );

    // What was only paid for is told apart.
    let id = net.blob_id(b"unfinished").unwrap();
    let path = format!("/admin/blobs/{id}?epochs=5&certified=false&deletable=true");
    send(&net.url(), "PUT", &path, &[], b"unfinished");
    let listed = chain.list().await.unwrap();
    let unfinished = listed.iter().find(|b| b.object_id != object_id).unwrap();
    assert!(!unfinished.certified && unfinished.deletable);
    assert_eq!(unfinished.blob_id.parse::<BlobId>(), Ok(id));
    let result = chain.extend(&unfinished.object_id, 1, false).await;
    fails(
        result,
        Failure::Refused,
        &["ENotCertified", "extend", PROGRAM],
    );
}

#[tokio::test]
async fn a_round_of_extensions_reads_the_ends_back_with_one_list() {
    let net = start();
    let round = Round::new(Arc::new(program(&net, &[])));
    let mut objects = Vec::new();
    for n in 1..=4_u8 {
        objects.push(stored(&net, "epochs=5", &[n; 100]).1);
    }
    for (n, object) in (1..).zip(&objects) {
        round.extend(object, n, false).await.unwrap();
    }
    for (n, object) in (1..).zip(&objects) {
        assert_eq!(round.end_epoch_of(object).await.unwrap(), Some(6 + n));
    }
    assert_eq!(net.stats().by_op[&Op::ChainList], 1);
    let outcomes = round.delete(&objects[..2]).await.unwrap();
    assert!(outcomes.iter().all(|(_, outcome)| outcome.is_ok()));
    assert_eq!(round.end_epoch_of(&objects[0]).await.unwrap(), None);
    assert_eq!(round.end_epoch_of(&objects[2]).await.unwrap(), Some(9));
    assert_eq!(net.stats().by_op[&Op::ChainList], 2);
}

#[tokio::test]
async fn what_the_chain_refuses() {
    let net = start();
    let chain = program(&net, &[]);
    let (_, object) = stored(&net, "epochs=5&permanent=true", &pattern(1000));
    let far = chain.extend(&object, 49, false).await;
    fails(far, Failure::Refused, &["EInvalidEpochsAhead"]);
    let shared = chain.extend(&object, 1, true).await;
    fails(shared, Failure::Refused, &["not a shared blob"]);
    let unknown = chain.extend("0x1", 1, false).await;
    fails(unknown, Failure::Refused, &["does not exist"]);
    let other = format!("0x{:0>64}", "abc");
    let sent = format!("epochs=5&permanent=true&send_object_to={other}");
    let (_, theirs) = stored(&net, &sent, b"theirs");
    let owned = chain.extend(&theirs, 1, false).await;
    fails(owned, Failure::Refused, &["not owned by"]);

    // Their wallet may.
    let dir = tempfile::tempdir().unwrap();
    let wallet = dir.path().join("client.yaml");
    std::fs::write(&wallet, format!("active_address: \"{other}\"\n")).unwrap();
    let theirs_too = program(&net, &["--wallet", wallet.to_str().unwrap()]);
    theirs_too.extend(&theirs, 1, false).await.unwrap();
    assert_eq!(theirs_too.list().await.unwrap()[0].end_epoch, 7);
    // Anyone may extend a shared blob.
    let answer = put(
        &net.url(),
        "/v1/blobs?epochs=5&permanent=true&share=true",
        b"shared",
    )
    .json();
    let around = answer["newlyCreated"]["sharedBlobObject"].as_str().unwrap();
    theirs_too.extend(around, 2, true).await.unwrap();

    net.set_epoch(6);
    let late = chain.extend(&object, 1, false).await;
    fails(late, Failure::Refused, &["EResourceBounds"]);
    assert_eq!(chain.list().await.unwrap(), []);
    for (id, epochs) in [("--all", 1), (&*object, 0)] {
        let error = chain.extend(id, epochs, false).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
}

#[tokio::test]
async fn deletions_are_judged_one_by_one() {
    let net = start();
    let chain = program(&net, &[]);
    assert!(chain.delete(&[]).await.unwrap().is_empty());
    let (_, permanent) = stored(&net, "epochs=5&permanent=true", b"permanent");
    let unknown = format!("0x{:0>64}", "1");
    // More than one run of the program.
    let mut objects: Vec<String> = (0..45_u8)
        .map(|n| stored(&net, "epochs=5", &[n; 50]).1)
        .collect();
    objects.insert(7, permanent.clone());
    objects.insert(30, unknown.clone());
    let outcomes = chain.delete(&objects).await.unwrap();
    assert_eq!(outcomes.len(), objects.len());
    assert!(net.stats().by_op[&Op::ChainDelete] > 1);
    for ((id, outcome), object) in outcomes.into_iter().zip(&objects) {
        assert_eq!(id, *object);
        match id {
            id if id == permanent => fails(outcome, Failure::Refused, &["EBlobNotDeletable"]),
            id if id == unknown => fails(outcome, Failure::Absent, &["no such blob"]),
            _ => outcome.unwrap(),
        }
    }
    assert_eq!(net.stats().deleted, 45);
    assert_eq!(net.blobs().len(), 1);
    let error = chain.delete(&["x".to_owned()]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn an_empty_wallet_is_told() {
    let net = start();
    let chain = program(&net, &[]);
    let (_, object) = stored(&net, "epochs=5", &pattern(1000));
    for (gas, coin) in [(false, "WAL coins"), (true, "SUI coins")] {
        faulty(&net, Op::ChainExtend, FaultAction::OutOfFunds { gas });
        let poor = chain.extend(&object, 1, false).await;
        fails(poor, Failure::EmptyWallet, &["the wallet lacks WAL", coin]);
        faulty(&net, Op::ChainDelete, FaultAction::OutOfFunds { gas });
        let outcomes = chain.delete(std::slice::from_ref(&object)).await.unwrap();
        let (_, outcome) = outcomes.into_iter().next().unwrap();
        fails(
            outcome,
            Failure::EmptyWallet,
            &["the wallet lacks WAL", coin],
        );
    }
    net.clear_faults();
    assert_eq!(chain.list().await.unwrap()[0].end_epoch, 6);
}

#[tokio::test]
async fn a_program_that_fails() {
    let net = start();
    let chain = program(&net, &[]);
    let (_, object) = stored(&net, "epochs=5", &pattern(1000));
    let all = [
        Op::ChainInfo,
        Op::ChainList,
        Op::ChainExtend,
        Op::ChainDelete,
    ];
    let said =
        "\u{1b}[33mWARN\u{1b}[0m https://rpc.example/v1/k3y gave up\nError: no route\nCaused by: x";
    net.set_faults(FaultRule::new(prints(500, said)).on(all));
    let parts = ["exit status: 1: Error: no route Caused by: x"];
    fails(chain.epoch().await, Failure::Unclear, &parts);
    fails(chain.list().await, Failure::Unclear, &parts);
    fails(
        chain.extend(&object, 1, false).await,
        Failure::Unclear,
        &parts,
    );
    let outcomes = chain.delete(std::slice::from_ref(&object)).await.unwrap();
    for (_, outcome) in outcomes {
        fails(outcome, Failure::Unclear, &parts);
    }

    // Answers that are none: a question may be asked again, a change may have been made.
    for body in ["WARN nothing", "", "{}", "[{\"id\":7}]"] {
        net.set_faults(FaultRule::new(prints(200, body)).on(all));
        fails(chain.epoch().await, Failure::Unusable, &["not understood"]);
        fails(chain.prices().await, Failure::Unusable, &["not understood"]);
        fails(chain.list().await, Failure::Unusable, &["not understood"]);
        let extended = chain.extend(&object, 1, false).await;
        fails(extended, Failure::Unclear, &["not understood"]);
        let outcomes = chain.delete(std::slice::from_ref(&object)).await.unwrap();
        fails(
            outcomes.into_iter().next().unwrap().1,
            Failure::Unclear,
            &["not understood"],
        );
    }
    faulty(
        &net,
        Op::ChainExtend,
        prints(200, r#"{"epochsExtended":9}"#),
    );
    let extended = chain.extend(&object, 1, false).await;
    fails(extended, Failure::Unclear, &["by 9 epochs instead of 1"]);
    faulty(&net, Op::ChainList, FaultAction::Truncate { by: 20 });
    fails(chain.list().await, Failure::Unusable, &["not understood"]);
    net.clear_faults();
    assert_eq!(
        chain.list().await.unwrap()[0].end_epoch,
        6,
        "nothing has changed"
    );

    // The change was made, and its answer was lost: a list tells.
    let round = Round::new(Arc::new(program(&net, &[])));
    assert_eq!(round.end_epoch_of(&object).await.unwrap(), Some(6));
    let how = Loss::Cut;
    faulty(&net, Op::ChainExtend, FaultAction::AnswerLost { how });
    fails(
        round.extend(&object, 1, false).await,
        Failure::Unclear,
        &["no answer"],
    );
    assert_eq!(round.end_epoch_of(&object).await.unwrap(), Some(7));
    faulty(&net, Op::ChainDelete, FaultAction::AnswerLost { how });
    let lost = chain.delete(std::slice::from_ref(&object)).await.unwrap();
    fails(
        lost.into_iter().next().unwrap().1,
        Failure::Unclear,
        &["no answer"],
    );
    net.clear_faults();
    let again = chain.delete(std::slice::from_ref(&object)).await.unwrap();
    fails(again.into_iter().next().unwrap().1, Failure::Absent, &[]);
}

#[tokio::test]
async fn a_program_that_hangs_is_killed() {
    let net = start();
    let limit = Duration::from_millis(300);
    let chain = program(&net, &[]).with_limits(TimeLimits {
        question: limit,
        list: limit,
        change: limit,
    });
    let (_, object) = stored(&net, "epochs=5", &pattern(1000));
    let all = [
        Op::ChainInfo,
        Op::ChainList,
        Op::ChainExtend,
        Op::ChainDelete,
    ];
    net.set_faults(FaultRule::new(FaultAction::Hang).on(all));
    fails(
        chain.epoch().await,
        Failure::Unclear,
        &["no answer within 0.3 s"],
    );
    fails(chain.list().await, Failure::Unclear, &["no answer"]);
    fails(
        chain.extend(&object, 1, false).await,
        Failure::Unclear,
        &["no answer"],
    );
    let outcomes = chain
        .delete(&[object.clone(), object.clone()])
        .await
        .unwrap();
    assert_eq!(outcomes.len(), 2);
    for (_, outcome) in outcomes {
        fails(outcome, Failure::Unclear, &["no answer within 0.6 s"]);
    }
    net.clear_faults();
    let patient = program(&net, &[]);
    assert_eq!(patient.list().await.unwrap()[0].end_epoch, 6);
}

/// Two changes at a time would spend the same coins.
#[tokio::test]
async fn changes_go_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let busy = dir.path().join("busy");
    let text = format!(
        "mkdir '{0}' || exit 9; sleep 0.05; rmdir '{0}'; echo '{{\"epochsExtended\":1}}'",
        busy.display()
    );
    let chain = Arc::new(script(&text));
    let changes = (0..8).map(|_| {
        let chain = Arc::clone(&chain);
        tokio::spawn(async move { chain.extend("0x1", 1, false).await })
    });
    for change in changes.collect::<Vec<_>>() {
        change.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_program_that_cannot_be_used() {
    let missing = Program::new(WalrusCommand::new("/nonexistent/walrus", Vec::new()));
    let result = missing.epoch().await;
    assert_eq!(result.as_ref().unwrap_err().kind(), ErrorKind::Config);
    fails(
        result,
        Failure::Unusable,
        &["/nonexistent/walrus info epoch", "cannot start it"],
    );
    // No such program, told by a shell; an older program without the flag.
    fails(
        script("exit 127").epoch().await,
        Failure::Unusable,
        &["127"],
    );
    let net = start();
    let old = program(&net, &["--no-such-flag"]);
    fails(old.list().await, Failure::Unusable, &["--no-such-flag"]);
    let poor = program(&net, &["--wallet", "/nonexistent/client.yaml"]);
    fails(
        poor.list().await,
        Failure::Unusable,
        &["/nonexistent/client.yaml"],
    );
    let gone = Program::new(WalrusCommand::new(
        PROGRAM,
        ["--url", "http://127.0.0.1:1"].map(str::to_owned).to_vec(),
    ));
    fails(gone.list().await, Failure::Unclear, &["no devnet at"]);
    let killed = script("kill -9 $$");
    fails(killed.epoch().await, Failure::Unclear, &["signal: 9"]);
    // Options are no secret of the log's.
    let options = [
        "-c",
        "echo Error: bad s3cret-value >&2; exit 1",
        "walrus",
        "KEY=s3cret-value",
    ];
    let options = options.map(str::to_owned).to_vec();
    let secretive = Program::new(WalrusCommand::new("sh", options));
    let error = secretive.prices().await.unwrap_err();
    assert!(error.message().contains("Error: bad [redacted]"), "{error}");
    assert!(!format!("{error:?} {secretive:?}").contains("s3cret"));
}

/// The lines of the log, until one holds the text.
async fn logged(store: &WalrusDatastore, text: &str) -> String {
    let until = std::time::Instant::now() + Duration::from_secs(120);
    let mut all = String::new();
    while std::time::Instant::now() < until {
        while let Some(line) = store.next_log_line() {
            all.push_str(&format!("{:?} {}\n", line.level, line.message));
        }
        if all.contains(text) {
            return all;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{text:?} was never logged: {all}");
}

fn config(net: &BlockingDevnet, epoch: u64, command: serde_json::Value) -> Config {
    let spec = serde_json::json!({
        "publisherURL": net.url(), "aggregatorURL": net.url(), "indexPath": "index.sqlite",
        "network": {"epochDurationSeconds": epoch}, "renewIntervalSeconds": 1, "epochs": 5,
        "walrusCommand": command,
    });
    Config::from_json(&spec.to_string()).unwrap()
}

/// A node asks for the epoch when it starts and in each round of renewal, and notes it for others.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_learns_the_epoch() {
    let net = start_with(Options {
        epoch_duration: Some(Duration::from_secs(86_400)),
        first_epoch: 42,
        ..Options::default()
    });
    let dir = tempfile::tempdir().unwrap();
    let command = serde_json::json!([PROGRAM, "--url", net.url()]);
    let config = config(&net, 86_400, command);
    let store = WalrusDatastore::open(config, dir.path()).await.unwrap();
    // The third question comes after the first round.
    let until = std::time::Instant::now() + Duration::from_secs(120);
    while net.stats().by_op.get(&Op::ChainInfo).is_none_or(|n| *n < 3) {
        assert!(std::time::Instant::now() < until, "it does not ask");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    while let Some(line) = store.next_log_line() {
        assert!(line.level == Level::Info, "{}", line.message);
    }
    store.close().await.unwrap();
    let index = SqliteIndex::open(SqliteOptions::new(
        dir.path().join("index.sqlite"),
        "walrus_index",
    ));
    let seen = index.await.unwrap().epochs().await.unwrap();
    assert!(seen.last().is_some_and(|seen| seen.epoch == 42), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_what_is_wrong_with_the_program() {
    let net = start(); // its epochs are told to last 14 days
    let dir = tempfile::tempdir().unwrap();
    let command = serde_json::json!([PROGRAM, "--url", net.url()]);
    let other_network = config(&net, 86_400, command);
    let store = WalrusDatastore::open(other_network, dir.path())
        .await
        .unwrap();
    let log = logged(&store, "1209600 s by walrusCommand").await;
    assert!(
        log.contains("Error an epoch has 86400 s by the configuration"),
        "{log}"
    );
    store.close().await.unwrap();

    let missing = config(&net, 86_400, "/nonexistent/walrus".into());
    let store = WalrusDatastore::open(missing, dir.path()).await.unwrap();
    let log = logged(&store, "walrusCommand (/nonexistent/walrus info epoch)").await;
    assert!(
        log.contains("Error the chain does not tell the epoch"),
        "{log}"
    );
    store.close().await.unwrap();
}
