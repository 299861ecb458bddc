//! The command on a terminal, as a person uses it: questions, bars, widths, Ctrl-C.

use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use serde_json::{json, Value};
use walrus_devnet::{Devnet, FaultAction, FaultPlan, FaultRule, Op as Http};
use walrusds::{Config, WalrusDatastore};

mod pty;
mod repo;

use pty::{Ended, Terminal};
use repo::{blocks, walrus, Repo};

/// Bytes of a pack: three blocks.
const PACK: &str = "40000";

impl Repo {
    async fn open(&self, spec: &Value) -> WalrusDatastore {
        let config = Config::from_json(&spec.to_string()).unwrap();
        WalrusDatastore::open(config, self.dir.path())
            .await
            .unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self, columns: u16, args: &[&str]) -> Terminal {
        Terminal::start(columns, self.dir.path(), &[("NO_COLOR", "1")], args)
    }

    async fn run(&self, columns: u16, args: &[&str]) -> Ended {
        self.start(columns, args).ended().await
    }
}

/// Runs a command on a terminal of 80 columns, presses Ctrl-C when its bar is there and a request
/// meets the fault, and sees it end and say how to go on. Without the fault, the same command ends
/// well on one of 200.
async fn interrupted(
    net: &Devnet,
    home: &Path,
    fault: FaultRule,
    bar: &str,
    args: &[&str],
    resume: &str,
) -> Ended {
    net.set_faults(FaultPlan::from(fault));
    let before = net.stats().faulted;
    let mut terminal = Terminal::start(80, home, &[("NO_COLOR", "1")], args);
    terminal.shows(0, bar).await;
    let at_work = || net.stats().faulted > before;
    testkit::eventually(&format!("{args:?} is at work"), at_work).await;
    terminal.types("\x03");
    let ended = terminal.ended().await;
    ended.well(130).says(resume);
    net.clear_faults();
    let again = Terminal::start(200, home, &[], args).ended().await;
    again.well(0);
    again
}

fn hanging_reads() -> FaultRule {
    FaultRule::new(FaultAction::Hang).on(Http::READS)
}

fn slow_stores() -> FaultRule {
    let slow = FaultAction::Latency {
        ms: 1_500,
        jitter_ms: 0,
    };
    FaultRule::new(slow).on([Http::Put])
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_an_export_a_check_and_a_repair() {
    let repo = Repo::new().await;
    let home = repo.dir.path();
    let out = repo.path("out");
    let export = ["export", "--all", "-o", out.to_str().unwrap()];
    let resume = "the same command";
    interrupted(
        &repo.net,
        home,
        hanging_reads(),
        "exporting",
        &export,
        resume,
    )
    .await;
    let check = ["check", "--read-data"];
    let resume = "walrusds check --resume";
    interrupted(&repo.net, home, hanging_reads(), "checking", &check, resume).await;
    let repair = ["repair", "--read-data", "--yes"];
    let resume = "--resume";
    interrupted(
        &repo.net,
        home,
        hanging_reads(),
        "repairing",
        &repair,
        resume,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_repack() {
    let repo = Repo::new().await;
    let config = std::fs::read(repo.path("config")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let mut spec = config["Datastore"]["Spec"]["mounts"][0]["child"].clone();
    spec.as_object_mut().unwrap().remove("type");
    let node = repo.open(&spec).await;
    for (key, _) in repo.blocks.iter().step_by(2) {
        node.delete(key).await.unwrap();
    }
    node.close().await.unwrap();
    let repack = ["repack", "--waste", "20", "--yes"];
    let resume = "run walrusds repack --yes again";
    interrupted(
        &repo.net,
        repo.dir.path(),
        hanging_reads(),
        "repacking",
        &repack,
        resume,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_an_import() {
    let repo = Repo::new().await;
    let from = tempfile::tempdir().unwrap();
    let more = blocks(100..130);
    testkit::flatfs::write(from.path(), more.iter().map(|(k, v)| (k, v)));
    let dir = from.path().join("blocks");
    let import = ["import", dir.to_str().unwrap(), "--yes"];
    let resume = "what was stored stays; the same command carries on";
    interrupted(
        &repo.net,
        repo.dir.path(),
        slow_stores(),
        "importing",
        &import,
        resume,
    )
    .await;
    let none = repo.run(80, &import).await;
    none.well(0).says("Nothing is left to import.");
}

/// A repo of Kubo with flatfs.
fn flatfs_repo(dir: &Path, blocks: &[(String, Bytes)]) {
    let shard = "/repo/flatfs/shard/v1/next-to-last/2";
    let spec = json!({"type": "mount", "mounts": [
        {"mountpoint": "/blocks", "type": "flatfs", "prefix": "flatfs.datastore", "path": "blocks",
         "sync": true, "shardFunc": shard},
        {"mountpoint": "/", "type": "levelds", "prefix": "leveldb.datastore", "path": "datastore",
         "compression": "none"},
    ]});
    let config = json!({"Identity": {"PeerID": "12D3"}, "Datastore": {"Spec": spec}});
    std::fs::write(dir.join("config"), config.to_string()).unwrap();
    let spec = format!(
        r#"{{"mounts":[{{"mountpoint":"/blocks","path":"blocks","shardFunc":"{shard}","type":"flatfs"}},{{"mountpoint":"/","path":"datastore","type":"levelds"}}],"type":"mount"}}"#
    );
    std::fs::write(dir.join("datastore_spec"), spec).unwrap();
    std::fs::write(dir.join("version"), "18\n").unwrap();
    testkit::flatfs::write(dir, blocks.iter().map(|(k, v)| (k, v)));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_conversion() {
    let net = walrus().await;
    let repo = tempfile::tempdir().unwrap();
    flatfs_repo(repo.path(), &blocks(0..30));
    let url = net.url();
    let pack = format!("packTargetSizeBytes={PACK}");
    let args = [
        "convert-repo",
        "--yes",
        "--publisher",
        &url,
        "--aggregator",
        &url,
        "--network",
        "testnet",
        "--index-path",
        "index.sqlite",
        "--set",
        &pack,
    ];
    let resume = "the same command";
    interrupted(&net, repo.path(), slow_stores(), "copying", &args, resume).await;
    assert!(repo.path().join("config.before-walrusds").exists());
}

/// A second Ctrl-C ends at once what waits for a publisher that does not answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_ctrl_c_ends_at_once() {
    let repo = Repo::new().await;
    let from = tempfile::tempdir().unwrap();
    let more = blocks(100..106);
    testkit::flatfs::write(from.path(), more.iter().map(|(k, v)| (k, v)));
    let rule = FaultRule::new(FaultAction::Hang).on([Http::Put]);
    repo.net.set_faults(FaultPlan::from(rule));
    let dir = from.path().join("blocks");
    let mut terminal = repo.start(80, &["import", dir.to_str().unwrap(), "--yes"]);
    let at_work = || repo.net.stats().faulted > 0;
    testkit::eventually("the import stores", at_work).await;
    let from = terminal.types("\x03");
    terminal
        .shows(from, "press Ctrl-C again to end at once")
        .await;
    terminal.types("\x03");
    terminal.ended().await.well(130);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shown_fits_the_terminal() {
    let repo = Repo::new().await;
    let key = repo.blocks[0].0.clone();
    let flatfs = tempfile::tempdir().unwrap();
    testkit::flatfs::write(flatfs.path(), blocks(9..12).iter().map(|(k, v)| (k, v)));
    let dir = flatfs.path().join("blocks");
    for columns in [80, 200] {
        for args in [
            &[][..],
            &["status"],
            &["repack"],
            &["check"],
            &["repair"],
            &["inspect", &key],
            &["doctor"],
            &["import", dir.to_str().unwrap()],
        ] {
            let ran = repo.run(columns, args).await;
            ran.well(ran.code);
            assert!([0, 3].contains(&ran.code), "{args:?}: {}", ran.text);
        }
        for verb in [
            "status",
            "import",
            "export",
            "check",
            "repair",
            "repack",
            "convert-repo",
        ] {
            let help = repo.run(columns, &[verb, "--help"]).await;
            help.well(0).says("Usage: walrusds");
        }
        repo.run(columns, &["--help"]).await.well(0);
    }
    // Into a pipe: no bar, no sequence, and lines as they are.
    let ran = Command::new(env!("CARGO_BIN_EXE_walrusds"))
        .args(["check", "--read-data"])
        .env("IPFS_PATH", repo.dir.path())
        .output()
        .unwrap();
    assert_eq!(ran.status.code(), Some(0));
    for text in [ran.stdout, ran.stderr] {
        assert!(!text.contains(&b'\x1b') && !text.contains(&b'\r'));
    }
}

const PUBLISHER: &str = "Publisher (base URL";
const AGGREGATOR: &str = "Aggregator (base URL";
const NETWORK: &str = "Network (mainnet, testnet)";
const INDEX: &str = "Index (sqlite, or the URL";

/// `init` explains each wrong answer, asks that question again, and keeps the answers to the
/// questions before it. The texts stand in docs/check-and-repair.md and docs/command.md.
#[tokio::test(flavor = "multi_thread")]
async fn init_asks_until_the_answers_can_be() {
    let net = walrus().await;
    let url = net.url();
    let home = tempfile::tempdir().unwrap();
    flatfs_repo(home.path(), &[]);
    let mut init = Terminal::start(80, home.path(), &[], &["init"]);
    let mut from = 0;
    for (question, answer, reply) in [
        (PUBLISHER, "", PUBLISHER),
        (PUBLISHER, "walrus", "expected a base URL"),
        (PUBLISHER, "ftp://walrus", "is not supported"),
        (
            PUBLISHER,
            "http://127.0.0.1:9",
            "publisherURL does not work",
        ),
        (PUBLISHER, &url, "is a publisher"),
        (
            AGGREGATOR,
            "http://127.0.0.1:9",
            "aggregatorURL does not work",
        ),
        (AGGREGATOR, &url, "ranges of blobs"),
        (NETWORK, "devnet", "network is \"devnet\", expected"),
        (NETWORK, "testnet", INDEX),
        (INDEX, "mysql://a/b", "the scheme must be postgres://"),
        (
            INDEX,
            "postgres://u:hidden-word@127.0.0.1:9/x",
            "the index does not work, as said above",
        ),
    ] {
        from = init.answers(from, question, answer).await;
        init.shows(from, reply).await;
    }
    // An answer that is no text.
    init.shows(from, INDEX).await;
    from = init.types(b"\xff\xfe\n");
    init.shows(from, "the answer is no UTF-8 text").await;
    from = init.answers(from, INDEX, "sqlite").await;
    init.shows(from, "keeps its blocks on Walrus now").await;
    let ended = init.ended().await;
    ended.well(0);
    // What was typed is echoed once, and never repeated.
    assert_eq!(
        ended.text.matches("hidden-word").count(),
        1,
        "{}",
        ended.text
    );
    let config = std::fs::read(home.path().join("config")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let spec = &config["Datastore"]["Spec"]["mounts"][0]["child"];
    assert_eq!(spec["network"], "testnet", "{spec}");
    assert_eq!(spec["indexPath"], "walrusds-index.sqlite", "{spec}");
    assert!(spec.get("postgresURL").is_none(), "{spec}");
}

/// A node that was started between the first question and the last answer has stored a block.
#[tokio::test(flavor = "multi_thread")]
async fn init_looks_for_blocks_once_more_after_the_questions() {
    let net = walrus().await;
    let url = net.url();
    let home = tempfile::tempdir().unwrap();
    flatfs_repo(home.path(), &[]);
    let mut init = Terminal::start(80, home.path(), &[], &["init"]);
    let mut from = init.answers(0, PUBLISHER, &url).await;
    init.shows(from, AGGREGATOR).await;
    let value = testkit::mem::noise(1, 1_000);
    let blocks = vec![(testkit::mem::key_of(&value), value)];
    flatfs_repo(home.path(), &blocks);
    let config = std::fs::read(home.path().join("config")).unwrap();
    for (question, answer) in [(AGGREGATOR, &*url), (NETWORK, "testnet"), (INDEX, "sqlite")] {
        from = init.answers(from, question, answer).await;
    }
    let ended = init.ended().await;
    ended.well(1).says("init never writes over data");
    assert!(home.path().join("blocks/SHARDING").exists());
    assert_eq!(std::fs::read(home.path().join("config")).unwrap(), config);
}

/// The questions end with Ctrl-C and with Ctrl-D, and nothing was written.
#[tokio::test(flavor = "multi_thread")]
async fn init_can_be_left() {
    let home = tempfile::tempdir().unwrap();
    for (key, code, text) in [
        ("\x03", 130, "interrupted; nothing was written"),
        ("\x04", 2, "the answers ended too early"),
    ] {
        let mut init = Terminal::start(80, home.path(), &[], &["init"]);
        init.shows(0, PUBLISHER).await;
        init.types(key);
        let ended = init.ended().await;
        ended.well(code).says(text);
        let lines = ended.text.lines();
        assert!(
            lines
                .filter(|line| line.contains(PUBLISHER))
                .all(|line| !line.contains("walrusds:")),
            "the error stands in a line of its own: {}",
            ended.text
        );
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    }
}

/// What is said after a question that was not answered stands in a line of its own, and nothing was
/// stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_before_a_store_can_be_left() {
    let repo = Repo::new().await;
    let puts = repo.net.stats().puts;
    let mut doctor = repo.start(80, &["doctor", "--store"]);
    doctor.shows(0, "Store it?").await;
    doctor.types("\x03");
    let ended = doctor.ended().await;
    ended.well(130).says("nothing was changed");
    let question = ended.text.lines().find(|line| line.contains("Store it?"));
    let question = question.expect("the question");
    assert!(!question.contains("walrusds:"), "{}", ended.text);
    assert_eq!(repo.net.stats().puts, puts);
}
