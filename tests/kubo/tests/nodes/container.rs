//! docker/entrypoint.sh, run as the container runs it: first start, later starts, changed settings.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use kubo_tests::pg::Postgres;
use kubo_tests::{
    clean_command, from_script, noise, root, run, Daemon, Index, Ipfs, Outcome, World, LIMIT,
};
use tempfile::TempDir;

/// The contents of the image, in a directory instead of an image. If the tests run as root, the
/// script drops its rights, as in a container; else it runs as the tests' own user.
struct Container {
    dir: TempDir,
}

impl Container {
    fn new() -> Container {
        let dir = tempfile::Builder::new()
            .prefix("wds-image-")
            .tempdir()
            .unwrap();
        let image = Container { dir };
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(image.dir.path(), 0o755);
        let bin = image.bin();
        fs::create_dir(&bin).unwrap();
        fs::create_dir(image.repo()).unwrap();
        for (from, to) in [
            (Ipfs::preloaded().program, "ipfs"),
            (from_script("WALRUSDS_TEST_CONFIGURE"), "walrusds-configure"),
            (root().join("docker/entrypoint.sh"), "start_ipfs"),
        ] {
            fs::copy(from, bin.join(to)).unwrap();
            mode(&bin.join(to), 0o755);
        }
        // The image has gosu; here setpriv does the same.
        fs::write(
            bin.join("gosu"),
            "#!/bin/sh\nuser=$1\nshift\nexec setpriv --reuid=\"$user\" --regid=\"$(id -g \"$user\")\" --init-groups -- \"$@\"\n",
        )
        .unwrap();
        mode(&bin.join("gosu"), 0o755);
        image
    }

    fn bin(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    fn repo(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    fn command(&self, settings: &BTreeMap<String, String>, args: &[&str]) -> Command {
        let mut command = clean_command(self.bin().join("start_ipfs"), self.dir.path());
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:{path}", self.bin().display()))
            .env("IPFS_PATH", self.repo())
            .env("IPFS_USER", "nobody")
            .env("IPFS_PROFILE", "test")
            .envs(settings)
            .args(args);
        command
    }

    fn start(&self, settings: &BTreeMap<String, String>, args: &[&str]) -> Outcome {
        run(self.command(settings, args), b"", LIMIT)
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.repo().join(name)).unwrap()
    }

    fn spec(&self) -> serde_json::Value {
        let config: serde_json::Value = serde_json::from_str(&self.file("config")).unwrap();
        config["Datastore"]["Spec"]["mounts"][0]["child"].clone()
    }
}

#[test]
fn container_from_first_start_to_changed_settings() {
    let own = Postgres::start();
    own.execute("postgres", "CREATE ROLE node LOGIN PASSWORD 'hunter2'");
    own.execute("postgres", "CREATE DATABASE blocks OWNER node");
    let world = World::new(Index::Sqlite);
    let image = Container::new();

    // The secret lies in a file that only its owner may read.
    let secret = image.dir.path().join("postgres_url");
    fs::write(&secret, own.url_as("node:hunter2", "blocks") + "\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let mut settings = world.settings.clone();
    let by_file = "WALRUSDS_POSTGRES_URL_FILE".to_owned();
    settings.insert(by_file.clone(), secret.display().to_string());
    settings.insert("WALRUSDS_EPOCHS".to_owned(), "3".to_owned());

    // A first start that fails leaves nothing that looks like a repo.
    let mut wrong = settings.clone();
    wrong.insert("WALRUSDS_EPOCHS".to_owned(), "0".to_owned());
    let said = image
        .start(&wrong, &["version"])
        .expect_failure("start with wrong settings");
    assert!(said.contains("WALRUSDS_EPOCHS"), "{said}");
    assert!(!image.repo().join("config").exists());

    // First start. The image listens on fixed ports; other tests may do so too.
    let mut said = image
        .start(&settings, &["version"])
        .expect_ok("first start")
        .said();
    for address in ["API", "Gateway"] {
        let name = format!("Addresses.{address}");
        let outcome = image.start(&settings, &["config", &name, "/ip4/127.0.0.1/tcp/0"]);
        said += &outcome.expect_ok("a start with another command").said();
    }
    assert_eq!(image.spec()["epochs"], 3);
    let identity = image.file("datastore_spec");
    assert!(!identity.contains("postgres"), "{identity}");
    let mode = fs::metadata(image.repo().join("config")).unwrap();
    assert_eq!(
        mode.permissions().mode() & 0o077,
        0,
        "the config is private"
    );

    let up = Daemon::start(image.command(&settings, &["daemon"]));
    let file = noise(1, 2 << 20);
    let adding = image.command(&settings, &["add", "-Q"]);
    let added = run(adding, &file, LIMIT).expect_ok("add").text();
    let cid = added.lines().last().unwrap().to_owned();
    let answer = up.get(&format!("/ipfs/{cid}"), None);
    assert_eq!(answer.status, 200, "{}", answer.head);
    assert!(answer.body == file);
    said += &up.stop();
    assert_eq!(
        own.scalar("blocks", "SELECT count(*) > 8 FROM walrus_index"),
        "t"
    );

    // The script takes over a changed setting; settings that identify the data stay.
    settings.insert("WALRUSDS_EPOCHS".to_owned(), "5".to_owned());
    settings.insert("WALRUSDS_WORKERS".to_owned(), "9".to_owned());
    let up = Daemon::start(image.command(&settings, &["daemon"]));
    assert_eq!(image.spec()["epochs"], 5);
    assert_eq!(image.spec()["workers"], 9);
    assert_eq!(image.file("datastore_spec"), identity);
    assert!(up.said().contains("epochs"), "{}", up.said());
    let answer = up.get(&format!("/ipfs/{cid}"), None);
    assert!(answer.body == file);
    said += &up.stop();

    // Settings of other data: the script refuses them by name and changes nothing.
    let before = image.file("config");
    for (variable, value, key) in [
        ("WALRUSDS_TABLE", "other_table", "table"),
        (
            "WALRUSDS_AGGREGATOR_URL",
            "http://127.0.0.1:1",
            "aggregatorURL",
        ),
    ] {
        let mut other = settings.clone();
        other.insert(variable.to_owned(), value.to_owned());
        let refused = image
            .start(&other, &["daemon"])
            .expect_failure("start with another identity");
        assert!(
            refused.contains("belongs to other data")
                && refused.contains(key)
                && refused.contains(variable),
            "{refused}"
        );
        assert_eq!(image.file("config"), before);
        said += &refused;
    }
    // Nor does it start the node on another index, which has none of its blocks.
    let mut other = settings.clone();
    other.remove(&by_file);
    other.insert("WALRUSDS_INDEX_PATH".to_owned(), "new.sqlite".to_owned());
    let refused = image
        .start(&other, &["daemon"])
        .expect_failure("start with another index");
    for part in ["\"blocks\"", "new.sqlite", "-other-index"] {
        assert!(refused.contains(part), "{refused}");
    }
    assert_eq!(image.file("config"), before);
    said += &refused;
    let mut unknown = settings.clone();
    unknown.insert("WALRUSDS_EPOCH".to_owned(), "1".to_owned());
    let refused = image
        .start(&unknown, &["daemon"])
        .expect_failure("start with an unknown setting");
    assert!(
        refused.contains("did you mean WALRUSDS_EPOCHS"),
        "{refused}"
    );
    said += &refused;

    for hidden in ["hunter2", "node:"] {
        assert!(!said.contains(hidden), "{said}");
    }
}

#[test]
fn container_that_could_not_copy_the_swarm_key_never_runs_without_it() {
    let world = World::new(Index::Sqlite);
    let image = Container::new();
    let secret = image.dir.path().join("key");
    let mut settings = world.settings.clone();
    settings.insert(
        "IPFS_SWARM_KEY_FILE".to_owned(),
        secret.display().to_string(),
    );

    // The secret is not mounted yet; the container is started again when it is.
    image
        .start(&settings, &["version"])
        .expect_failure("a start without the file of the swarm key");
    assert!(!image.repo().join("config").exists());
    let key = format!("/key/swarm/psk/1.0.0/\n/base16/\n{}\n", "5a".repeat(32));
    fs::write(&secret, &key).unwrap();
    image
        .start(&settings, &["version"])
        .expect_ok("a start with the file of the swarm key");
    assert_eq!(image.file("swarm.key"), key);

    // An init that failed leaves the key file; the next start replaces it.
    let image = Container::new();
    let mut settings = world.settings.clone();
    settings.insert("IPFS_SWARM_KEY".to_owned(), key.trim_end().to_owned());
    settings.insert("WALRUSDS_EPOCHS".to_owned(), "0".to_owned());
    image
        .start(&settings, &["version"])
        .expect_failure("start with wrong settings");
    settings.remove("WALRUSDS_EPOCHS");
    image
        .start(&settings, &["version"])
        .expect_ok("a start with right settings");
    assert_eq!(image.file("swarm.key"), key);
}
