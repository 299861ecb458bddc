//! Every error that a user can provoke stands in a table of the documents, with its cure, and is
//! provoked here, or in another test that names it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{json, Value};
use testkit::mem::{key_of, noise};
use testkit::postgres::Postgres;
use walrus_devnet::{Devnet, FaultAction, FaultRule, Op as Http, Options};
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::{Config, Index as _, Leases as _, Op, WalrusDatastore};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The first columns of the tables of errors. An ellipsis stands for any text.
fn rows() -> BTreeSet<String> {
    let mut rows = BTreeSet::new();
    for file in ["docs/command.md", "docs/check-and-repair.md"] {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        let (_, after) = text.split_once("\n## Errors\n").expect(file);
        let table = after.lines().take_while(|line| !line.starts_with("## "));
        let mut of_file = BTreeSet::new();
        for row in table.filter_map(|line| line.strip_prefix("| `")) {
            let (error, cure) = row.split_once("` |").expect(row);
            assert!(cure.trim_matches([' ', '|']).len() > 10, "no cure: {row}");
            assert!(of_file.insert(error.to_owned()), "twice: {error}");
        }
        rows.append(&mut of_file);
    }
    rows
}

/// Whether a text has the parts of a row, in their order.
fn has(text: &str, row: &str) -> bool {
    let mut rest = text;
    row.split('…')
        .all(|part| match rest.split_once(part.trim()) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
}

/// What was provoked.
#[derive(Default)]
struct Provoked {
    rows: BTreeSet<String>,
    wrong: Vec<String>,
}

impl Provoked {
    /// The run has ended with this error and code.
    fn saw(&mut self, row: &str, code: i32, output: &Output) {
        let err = String::from_utf8_lossy(&output.stderr);
        self.rows.insert(row.to_owned());
        if output.status.code() != Some(code) || !has(&err, row) {
            let found = output.status.code();
            let line = format!("{row}: expected code {code}, found {found:?}: {err}");
            self.wrong.push(line);
        }
        for secret in ["hidden-word", "panicked"] {
            if err.contains(secret) {
                self.wrong.push(format!("{row}: {secret} is shown: {err}"));
            }
        }
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walrusds"));
    command.env_clear().stdin(Stdio::null()).args(args);
    command
}

fn out(mut command: Command) -> Output {
    command.output().expect("the program")
}

struct Repo {
    net: Devnet,
    dir: tempfile::TempDir,
    key: String,
}

impl Repo {
    /// A repo with one block.
    async fn new() -> Repo {
        let options = Options {
            cheap_ids: true,
            ..Options::default()
        };
        let net = Devnet::start(options).await.expect("local Walrus");
        let repo = Repo {
            dir: tempfile::tempdir().unwrap(),
            key: key_of(&noise(1, 1000)),
            net,
        };
        repo.config(repo.spec());
        let node = repo.open().await;
        let put = Op::Put(repo.key.clone(), noise(1, 1000));
        node.commit(vec![put]).await.unwrap();
        node.close().await.unwrap();
        repo
    }

    fn spec(&self) -> Value {
        let url = self.net.url();
        json!({
            "type": "walrusds", "publisherURL": url, "aggregatorURL": url, "indexPath": "index.sqlite",
            "epochDurationSeconds": 3600, "epochs": 5, "maxRetries": 0,
        })
    }

    fn config(&self, spec: Value) {
        let mount = json!({"mountpoint": "/blocks", "child": spec});
        let config = json!({"Identity": {}, "Datastore": {"Spec": {"mounts": [mount]}}});
        std::fs::write(self.dir.path().join("config"), config.to_string()).unwrap();
    }

    async fn open(&self) -> WalrusDatastore {
        let config = Config::from_json(&self.spec().to_string()).unwrap();
        WalrusDatastore::open(config, self.dir.path())
            .await
            .unwrap()
    }

    /// Keeps an index locked as long as the connection is there.
    fn lock(index: &Path) -> rusqlite::Connection {
        let connection = rusqlite::Connection::open(index).unwrap();
        let lock =
            "PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; CREATE TABLE x (a); ROLLBACK;";
        connection.execute_batch(lock).unwrap();
        connection
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = command(args);
        command.env("IPFS_PATH", self.dir.path());
        out(command)
    }

    /// A run with a key of the configuration changed.
    fn set(&self, setting: &str, args: &[&str]) -> Output {
        let args: Vec<&str> = args.iter().copied().chain(["--set", setting]).collect();
        self.run(&args)
    }
}

/// A CID of a raw block.
fn cid(block: &[u8]) -> String {
    let key = key_of(block);
    let hash = data_encoding::BASE32_NOPAD
        .decode(&key.as_bytes()[1..])
        .unwrap();
    let hash = cid::multihash::Multihash::from_bytes(&hash).unwrap();
    cid::Cid::new_v1(0x55, hash).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_has_a_row_and_every_row_is_provoked() {
    let mut seen = Provoked::default();
    let repo = Repo::new().await;
    command_lines(&mut seen, &repo);
    configurations(&mut seen, &repo);
    environments(&mut seen, &repo);
    indexes(&mut seen, &repo);
    works(&mut seen, &repo).await;
    inits(&mut seen, &repo);
    moves(&mut seen, &Repo::new().await).await;

    let rows = rows();
    let undocumented: Vec<&String> = seen.rows.difference(&rows).collect();
    assert!(undocumented.is_empty(), "no row for: {undocumented:#?}");
    // Rows that another test names, by one of their longer parts.
    let tests = sources();
    let named = |row: &String| {
        let mut parts = row
            .split('…')
            .map(str::trim)
            .filter(|part| part.len() >= 15);
        parts.any(|part| tests.contains(&part.replace('"', "\\\"")) || tests.contains(part))
    };
    let unproved: Vec<&String> = rows
        .difference(&seen.rows)
        .filter(|row| !named(row))
        .collect();
    assert!(unproved.is_empty(), "no test provokes: {unproved:#?}");
    assert!(seen.wrong.is_empty(), "{}", seen.wrong.join("\n"));
}

/// The tests of the command and of the engine, but for this one.
fn sources() -> String {
    let mut text = String::new();
    let dirs = [
        "cli/tests",
        "tests",
        "tests/index_suite",
        "cli/src/verbs/convert_repo/switch",
    ];
    let disk = root().join("cli/src/verbs/convert_repo/tests.rs");
    text.push_str(&std::fs::read_to_string(disk).unwrap());
    for dir in dirs {
        for entry in std::fs::read_dir(root().join(dir)).unwrap() {
            let path = entry.unwrap().path();
            let is_test = path.extension().is_some_and(|e| e == "rs");
            if is_test && path.file_name().is_some_and(|name| name != "errors.rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    text
}

/// Arguments that are not understood, or do not fit together.
fn command_lines(seen: &mut Provoked, repo: &Repo) {
    for (row, args) in [
        ("unrecognized subcommand", &["statsu"][..]),
        ("unexpected argument", &["status", "--wacth"]),
        (
            "the following required arguments were not provided",
            &["inspect"],
        ),
        (
            "cannot be used with",
            &["undelete", "--all", "--since", "2h"],
        ),
        ("invalid value", &["repack", "--waste", "200"]),
        ("a value is required for", &["status", "--config"]),
        (
            "expected a moment in UTC",
            &["undelete", "--since", "yesterday"],
        ),
        (
            "expected a time such as",
            &["adopt-staging", "--older-than", "long"],
        ),
        ("expected KEY=VALUE", &["status", "--set", "epochs"]),
        ("is not a whole number", &["status", "--set", "epochs=many"]),
        (
            "is neither true nor false",
            &["status", "--set", "deletable=perhaps"],
        ),
        ("is neither a key (/CIQ…), nor a CID", &["inspect", "hello"]),
        (
            "is a path below a CID",
            &[
                "inspect",
                "/ipfs/QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn/a",
            ],
        ),
        ("--recursive needs a CID", &["inspect", "-r", "/CIQX"]),
        ("say which deleted blocks", &["undelete"]),
        (
            "is a blob; name keys or CIDs of blocks",
            &["undelete", "MMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMA"],
        ),
        ("is no CID", &["forget", "/CIQX", "--no-pins"]),
        ("bench asks before it stores", &["bench"]),
        ("--store asks before it pays", &["doctor", "--store"]),
        ("is no cursor of a check", &["check", "--resume", "x"]),
        (
            "is no part of the blobs",
            &["check", "--read-data-subset", "8/7"],
        ),
    ] {
        seen.saw(row, 2, &repo.run(args));
    }
}

/// Where the settings come from, and what they say.
fn configurations(seen: &mut Provoked, repo: &Repo) {
    let empty = tempfile::tempdir().unwrap();
    let here = empty.path().to_str().unwrap();
    let mut none = command(&["status"]);
    none.env("IPFS_PATH", here);
    seen.saw("no configuration was found", 1, &out(none));
    let misspelt = out(command(&["status", "--repo", here]));
    seen.saw("--repo names …, where there is no config", 1, &misspelt);
    let missing = ["status", "--config", "/no/such/file"];
    seen.saw("…: No such file or directory", 1, &repo.run(&missing));
    let dir = ["status", "--config", here];
    seen.saw("…: Is a directory", 1, &repo.run(&dir));
    seen.saw("…: Permission denied", 1, &not_allowed(repo));
    let config = |text: &str| {
        let file = repo.file("other.json", text);
        repo.run(&["status", "--config", &file])
    };
    seen.saw("it is not valid JSON", 1, &config("{"));
    let other = r#"{"Datastore": {"Spec": {"type": "flatfs"}}}"#;
    seen.saw("this repo does not use walrusds", 1, &config(other));
    let nothing = r#"{"Datastore": {}}"#;
    seen.saw("Datastore.Spec is missing", 1, &config(nothing));
    let two = json!({"Datastore": {"Spec": [repo.spec(), repo.spec()]}});
    let row = "has 2 datastores of type \"walrusds\"";
    seen.saw(row, 1, &config(&two.to_string()));

    for (row, setting) in [
        ("unknown key …; did you mean", "epoch=5"),
        ("publisherURL is required", "publisherURL="),
        ("neither postgresURL nor indexPath is set", "indexPath="),
        (
            "both postgresURL and indexPath are set",
            "postgresURL=postgres://u:hidden-word@h/d",
        ),
        ("expected a whole number", "epochs=100"),
        ("scheme … is not supported", "publisherURL=ftp://host"),
        ("table … is not an identifier", "table=a-b"),
        ("network is …, expected", "network=moonnet"),
    ] {
        seen.saw(row, 1, &repo.set(setting, &["status"]));
    }
}

/// A file that this user may not read. Root may read all: the program runs as another user then.
fn not_allowed(repo: &Repo) -> Output {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::os::unix::process::CommandExt as _;
    const NOBODY: u32 = 65_534;
    let file = repo.file("closed.json", "{}");
    let closed = std::fs::Permissions::from_mode(0o000);
    std::fs::set_permissions(&file, closed).unwrap();
    let mut command = command(&["status", "--config", &file]);
    if std::fs::metadata(&file).unwrap().uid() == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    out(command)
}

/// Variables of the environment.
fn environments(seen: &mut Provoked, repo: &Repo) {
    let with = |variables: &[(&str, &str)]| {
        let mut command = command(&["status"]);
        command.envs(variables.iter().copied());
        out(command)
    };
    let file = repo.file("url", "postgres://u:hidden-word@h/d");
    let both = [
        ("WALRUSDS_POSTGRES_URL", "postgres://u:hidden-word@h/e"),
        ("WALRUSDS_POSTGRES_URL_FILE", &file),
    ];
    seen.saw("and …_FILE are both set", 1, &with(&both));
    let file = repo.file("nothing", "\n");
    let empty = [("WALRUSDS_POSTGRES_URL_FILE", &*file)];
    seen.saw("the file … is empty", 1, &with(&empty));
    let many = [("WALRUSDS_EPOCHS", "many")];
    seen.saw("is not a whole number", 1, &with(&many));
    let full = std::fs::File::options().write(true).open("/dev/full");
    let mut command = command(&["status"]);
    command
        .env("IPFS_PATH", repo.dir.path())
        .stdout(full.unwrap());
    seen.saw("standard output: ", 1, &out(command));
    let man = repo.run(&["man", "--dir", "/dev/null/pages"]);
    seen.saw("the manual page: ", 1, &man);
}

/// Indexes that cannot be opened.
fn indexes(seen: &mut Provoked, repo: &Repo) {
    let status = ["status"];
    let row = "indexPath …: cannot be used";
    seen.saw(row, 1, &repo.set("indexPath=none.sqlite", &status));
    let row = "holds no table … that this walrusds can use as it is";
    seen.saw(row, 1, &repo.set("table=other", &status));
    let row = "is a directory; a file is expected";
    seen.saw(row, 1, &repo.set("indexPath=.", &status));
    repo.file("text.sqlite", &"no database ".repeat(200));
    let row = "file is not a database";
    seen.saw(row, 1, &repo.set("indexPath=text.sqlite", &status));

    // Another program keeps the file for itself.
    let locked = Repo::lock(&repo.dir.path().join("index.sqlite"));
    let row = "another process keeps the file of indexPath locked";
    seen.saw(row, 1, &repo.run(&status));
    drop(locked);

    let url = |url: &str| {
        let file = repo.file("pg", url);
        let mut spec = repo.spec();
        spec.as_object_mut().unwrap().remove("indexPath");
        spec["postgresURL"] = json!(std::fs::read_to_string(file).unwrap());
        let config = repo.file("pg.json", &spec.to_string());
        repo.run(&["status", "--config", &config])
    };
    let row = "connection refused (is the server running?)";
    seen.saw(
        row,
        1,
        &url("postgres://u:hidden-word@127.0.0.1:1/d?connect_timeout=2"),
    );
    let row = "postgresURL";
    seen.saw(row, 1, &url("postgres://u:hidden-word@h:port/d"));
    let pg = Postgres::shared();
    let db = pg.database();
    let row = "there is no database";
    seen.saw(row, 1, &url(&pg.url("no_such_database")));
    let row = "there is no table … that this walrusds can use as it is";
    seen.saw(row, 1, &url(&pg.url(&db)));
    pg.execute(&db, "CREATE VIEW walrus_index AS SELECT 1 AS key");
    let row = "exists but is no table (a view?)";
    seen.saw(row, 1, &url(&pg.url(&db)));
}

/// Imports and exports.
async fn moves(seen: &mut Provoked, repo: &Repo) {
    let name = cid(&noise(1, 1000));
    let car = repo.dir.path().join("one.car");
    let car = car.to_str().unwrap();
    let usage = [
        ("--all writes several files", &["--all", "-o", "-"][..]),
        (
            "--json and the CAR cannot both go to standard output",
            &["--json", &name, "-o", "-"],
        ),
        (
            "a CAR of version 2 cannot be written to standard output",
            &["--car-version", "2", &name, "-o", "-"],
        ),
        (
            "--max-bytes: … found, at least … expected",
            &["--all", "--max-bytes", "1", "-o", "all"],
        ),
        ("is no CID (bafy…, Qm…)", &[&repo.key, "-o", car]),
    ];
    for (row, args) in usage {
        let args: Vec<&str> = std::iter::once("export")
            .chain(args.iter().copied())
            .collect();
        seen.saw(row, 2, &repo.run(&args));
    }
    let export = ["export", &name, "-o", car];
    assert!(repo.run(&export).status.success());
    let row = "there is something of this name already";
    seen.saw(row, 2, &repo.run(&export));
    let all = repo.dir.path().join("all");
    let all = ["export", "--all", "-o", all.to_str().unwrap()];
    assert!(repo.run(&all).status.success());
    seen.saw("this directory holds a whole export", 2, &repo.run(&all));
    let list = repo.dir.path().join("all/walrusds-export.json");
    let whole = std::fs::read_to_string(&list).unwrap();
    let mut part: Value = serde_json::from_str(&whole).unwrap();
    part["index"] = json!("the identity of another one");
    std::fs::write(&list, part.to_string()).unwrap();
    let row = "this directory holds an export of another index";
    seen.saw(row, 2, &repo.run(&all));

    let text = repo.file("no.car", "some text");
    seen.saw("it is no CAR file", 1, &repo.run(&["import", &text]));
    let own = repo.dir.path().to_str().unwrap();
    let row = "a directory is imported alone";
    seen.saw(row, 1, &repo.run(&["import", &text, own]));
    let mounted = tempfile::tempdir().unwrap();
    let mount = json!({"mountpoint": "/blocks", "type": "measure", "child": repo.spec()});
    let spec = json!({"Datastore": {"Spec": {"type": "mount", "mounts": [mount]}}});
    std::fs::write(mounted.path().join("config"), spec.to_string()).unwrap();
    let mounted = mounted.path().to_str().unwrap();
    let row = "name this file with --from-config";
    seen.saw(row, 1, &repo.run(&["import", "--kubo-repo", mounted]));
    let row = "the stream of blocks is not whole";
    seen.saw(row, 1, &repo.run(&["import", "--stream", &text]));
    let badger = tempfile::tempdir().unwrap();
    let spec = json!({"Datastore": {"Spec": {"type": "badgerds", "path": "badgerds"}}});
    std::fs::write(badger.path().join("config"), spec.to_string()).unwrap();
    let row = "the program walrusds-kubo-datastore is needed";
    seen.saw(
        row,
        1,
        &repo.run(&["import", badger.path().to_str().unwrap()]),
    );
}

/// Work that cannot be done now, or not here.
async fn works(seen: &mut Provoked, repo: &Repo) {
    let row = "there is no plan, as the length of an epoch is not configured";
    let plan = repo.set("epochDurationSeconds=0", &["plan"]);
    seen.saw(row, 1, &plan);
    let fresh = Repo::new().await;
    let row = "there is no plan, as the present epoch is not known";
    seen.saw(row, 1, &fresh.run(&["plan"]));
    let index = SqliteOptions::new(fresh.dir.path().join("index.sqlite"), "walrus_index");
    let index = SqliteIndex::open(index).await.unwrap();
    let hour = std::time::Duration::from_secs(3600);
    assert!(index.try_lease("renewal", "another", hour).await.unwrap());
    let row = "another node renews or repacks just now";
    seen.saw(row, 4, &fresh.run(&["renew", "--yes"]));
    index.release_lease("renewal", "another").await.unwrap();
    index.close().await.unwrap();
    let row = "no node … has noted itself in this index";
    seen.saw(row, 1, &repo.run(&["forget-node", "none"]));
    let row = "only an index in Postgres can hold blocks that Go nodes have staged";
    seen.saw(row, 1, &repo.run(&["adopt-staging"]));
    let list = repo.file("list", "not an id\n");
    let row = "the list of blobs has a line … that";
    seen.saw(row, 1, &repo.run(&["rebuild-index", &list]));

    let name = cid(&noise(1, 1000));
    let forget = |pins: &str| {
        let pins = repo.file("pins", pins);
        repo.run(&["forget", &name, "--keep-pinned", &pins])
    };
    seen.saw("does not begin with a CID", 1, &forget("pins\n"));
    seen.saw("it names no pin", 1, &forget("# none\n"));
    let unknown = cid(b"what no index has");
    // A raw block is a leaf, whether it is there or not: what is asked for is a node.
    let unknown: cid::Cid = unknown.parse().unwrap();
    let node = cid::Cid::new_v1(0x70, *unknown.hash());
    let row = "the pins are not known completely";
    seen.saw(row, 1, &forget(&node.to_string()));

    let report = ["check", "--report", "/no/such/dir/file"];
    let row = "--report …: No such file or directory";
    seen.saw(row, 1, &repo.run(&report));
    let from = repo.run(&["repair", "--from", "/no/such/dir"]);
    let row = "expected the blocks directory of a Kubo repo with flatfs";
    seen.saw(row, 1, &from);
    let row = "expected a base URL";
    seen.saw(row, 1, &repo.run(&["repair", "--aggregator", "x"]));
    let bad = repo.set("aggregatorURL=http://127.0.0.1:9", &["doctor"]);
    seen.saw("something that does not work", 1, &bad);

    // Many blobs, and no aggregator.
    let node = repo.open().await;
    for n in 0..40 {
        let value = noise(100 + n, 100);
        let put = Op::Put(key_of(&value), value);
        node.commit(vec![put]).await.unwrap();
    }
    node.close().await.unwrap();
    let rule = FaultRule::new(FaultAction::Unavailable).on(Http::READS);
    repo.net.set_faults(rule);
    let row = "the check stopped, as many blobs in a row could not be read";
    seen.saw(row, 1, &repo.run(&["check"]));

    // A copy is there, and what is stored of it does not come back.
    let flatfs = tempfile::tempdir().unwrap();
    let sharding = "/repo/flatfs/shard/v1/next-to-last/2\n";
    std::fs::write(flatfs.path().join("SHARDING"), sharding).unwrap();
    let name = fresh.key.trim_start_matches('/');
    let dir = flatfs.path().join(&name[name.len() - 3..name.len() - 1]);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(format!("{name}.data")), noise(1, 1000)).unwrap();
    let rule = FaultRule::new(FaultAction::NotFound).on(Http::READS);
    fresh.net.set_faults(rule);
    let row = "is stored and paid for, but cannot be read back";
    let from = flatfs.path().to_str().unwrap();
    let args = ["repair", "--yes", "--from", from];
    seen.saw(row, 1, &fresh.run(&args));
}

/// A repo as `ipfs init` leaves it.
fn kubo(repo: &Path, kind: &str) {
    let spec = json!({"type": "mount", "mounts": [
        {"mountpoint": "/blocks", "child": {"type": kind, "path": "blocks"}},
    ]});
    let config = json!({"Identity": {}, "Datastore": {"Spec": spec}});
    std::fs::write(repo.join("config"), config.to_string()).unwrap();
    std::fs::create_dir_all(repo.join("blocks/XY")).unwrap();
}

/// Repos that cannot be set up.
fn inits(seen: &mut Provoked, repo: &Repo) {
    seen.saw("uses walrusds already", 1, &repo.run(&["init"]));
    let empty = tempfile::tempdir().unwrap();
    let at = empty.path();
    let init = |args: &[&str]| {
        let args: Vec<&str> = ["init"].iter().chain(args).copied().collect();
        let mut command = command(&args);
        command.env("IPFS_PATH", at).env("PATH", "/usr/bin:/bin");
        out(command)
    };
    let nowhere = out(command(&["init"]));
    let row = "neither --repo nor IPFS_PATH nor HOME says where the repo is";
    seen.saw(row, 2, &nowhere);
    let (url, down) = (repo.net.url(), "http://127.0.0.1:9");
    seen.saw("--publisher is missing", 2, &init(&[]));
    let row = "--aggregator is missing";
    seen.saw(row, 2, &init(&["--publisher", &url]));
    let row = "publisherURL does not work";
    seen.saw(row, 1, &init(&["--publisher", down, "--aggregator", &url]));
    let row = "aggregatorURL does not work";
    seen.saw(row, 1, &init(&["--publisher", &url, "--aggregator", down]));
    let both = |more: &[&str]| {
        let urls = ["--publisher", &url, "--aggregator", &url];
        let args: Vec<&str> = urls.iter().chain(more).copied().collect();
        init(&args)
    };
    let row = "cannot be run";
    seen.saw(row, 1, &both(&["--ipfs", "/no/such/ipfs"]));
    seen.saw("init failed", 1, &both(&["--ipfs", "false"]));
    let row = "--postgres-url-file …: ";
    seen.saw(row, 1, &both(&["--postgres-url-file", "/no/such/file"]));

    std::fs::write(at.join("something"), "").unwrap();
    seen.saw("is not empty and has no config", 1, &both(&[]));
    std::fs::remove_file(at.join("something")).unwrap();
    kubo(at, "badgerds");
    seen.saw("has no flatfs at /blocks", 1, &both(&[]));
    kubo(at, "flatfs");
    std::fs::write(at.join("blocks/XY/CIQA.data"), "data").unwrap();
    seen.saw("init never writes over data", 1, &both(&[]));
    std::fs::remove_file(at.join("blocks/XY/CIQA.data")).unwrap();
    std::fs::write(at.join("api"), "/ip4/127.0.0.1/tcp/5001").unwrap();
    seen.saw("a daemon seems to run", 1, &both(&[]));
    std::fs::remove_file(at.join("api")).unwrap();
    std::fs::write(at.join("config"), "{").unwrap();
    seen.saw("it is not valid JSON", 1, &both(&[]));
    assert!(
        !at.join("config.before-walrusds").exists(),
        "nothing was written"
    );
}
