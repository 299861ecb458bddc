//! An index that may only be read: an SQLite file without the right to write, and a standby that
//! becomes the primary.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
use walrusds::index::sqlite::{SqliteIndex, SqliteOptions};
use walrusds::{Config, Index, Rows, WalrusDatastore};

use crate::shared::row;
use testkit::mem::{key_of, noise};
use testkit::postgres::{as_server_user, is_root, Postgres};

const FILE: &str = "the file of indexPath may not be written to";
const DIRECTORY: &str = "the directory of indexPath may not be written to";
const EMPTY_DIRECTORY: &[u8] = &[0x0a, 0x02, 0x08, 0x01];
/// Tells the process below which file to read.
const PATH: &str = "WALRUSDS_TEST_READ_ONLY";

async fn sqlite(path: &Path) -> Result<SqliteIndex, walrusds::Error> {
    SqliteIndex::open(SqliteOptions::new(path, "walrus_index")).await
}

/// A file in a directory, with the modes that readers find.
struct Place {
    dir: tempfile::TempDir,
    modes: [u32; 2],
}

impl Place {
    fn new(dir_mode: u32, file_mode: u32) -> Place {
        let place = Place {
            dir: tempfile::tempdir().unwrap(),
            modes: [dir_mode, file_mode],
        };
        set_mode(place.dir.path(), 0o755);
        std::fs::create_dir(place.dir.path().join("in dex%3F")).unwrap();
        place
    }

    /// With bytes in its name that mean something in a URI.
    fn path(&self) -> PathBuf {
        self.dir.path().join("in dex%3F/i?x#.sqlite")
    }

    fn open_up(&self) {
        self.chmod([0o755, 0o644]);
    }

    fn shut(&self) {
        self.chmod(self.modes);
    }

    fn chmod(&self, [dir, file]: [u32; 2]) {
        set_mode(self.path().parent().unwrap(), dir);
        if self.path().exists() {
            set_mode(&self.path(), file);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open_up();
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Another process, without the rights of root.
struct Reader {
    child: Child,
    ask: Option<ChildStdin>,
    answers: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Reader {
    fn start(place: &Place) -> Reader {
        let mut program = std::env::current_exe().unwrap();
        if is_root() {
            // The other user may be unable to enter the directory that it is in.
            static STARTED: AtomicU32 = AtomicU32::new(0);
            let name = format!("reader{}", STARTED.fetch_add(1, Ordering::Relaxed));
            let name = place.dir.path().join(name);
            if std::fs::hard_link(&program, &name).is_err() {
                std::fs::copy(&program, &name).unwrap();
                set_mode(&name, 0o755);
            }
            program = name;
        }
        let mut child = as_server_user(&program)
            .args(["--exact", "read_only::reader_process", "--nocapture"])
            .arg("--test-threads=1")
            .current_dir(place.dir.path())
            .env(PATH, place.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Reader {
            ask: child.stdin.take(),
            answers: BufReader::new(child.stdout.take().unwrap()).lines(),
            child,
        }
    }

    fn answer(&mut self) -> String {
        let find = |line: std::io::Result<String>| {
            let line = line.ok()?;
            Some(line.split_once("answer: ")?.1.to_owned())
        };
        self.answers
            .by_ref()
            .find_map(find)
            .expect("the reader died")
    }

    fn ask(&mut self, what: &str) -> String {
        writeln!(self.ask.as_mut().unwrap(), "{what}").unwrap();
        self.answer()
    }

    fn end(mut self) {
        drop(self.ask.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test of its own: opens the file, and answers the questions of the test below.
#[tokio::test(flavor = "multi_thread")]
async fn reader_process() {
    let Some(path) = std::env::var_os(PATH) else {
        return;
    };
    let index = sqlite(path.as_ref()).await;
    let index = match index {
        Ok(index) => index,
        Err(e) => return println!("answer: {:?} {e}", e.kind()),
    };
    println!("answer: {:?}", index.only_reads());
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let answer = match line.split_once(' ') {
            Some(("get", key)) => match index.get(key).await {
                Ok(row) => format!("{:?}", row.map(|row| row.size)),
                Err(e) => e.to_string(),
            },
            Some(("put", key)) => format!("{:?}", index.put(&row(key, "b", 0, 1)).await),
            _ => datastore(Path::new(&path)).await,
        };
        println!("answer: {}", answer.replace('\n', " "));
    }
    index.close().await.unwrap();
}

/// The result of opening and using the file as a node does.
async fn datastore(path: &Path) -> String {
    let open = async |journal: &str| {
        let path = path.to_str().unwrap();
        let config = format!(
            r#"{{{journal}"publisherURL":"http://127.0.0.1:1","aggregatorURL":"http://127.0.0.1:1",
                "epochDurationSeconds":1000,"renewIntervalSeconds":1,"indexPath":"{path}"}}"#
        );
        let config = Config::from_json(&config).unwrap();
        WalrusDatastore::open(config, &std::env::temp_dir()).await
    };
    let ds = open("").await.unwrap();
    let (known, new) = (noise(1, 100), noise(2, 100));
    ds.put(&key_of(&known), known).await.unwrap();
    ds.disk_usage().await.unwrap();
    let put = ds.put(&key_of(&new), new).await.unwrap_err();
    // Storage of these has ended. Kubo puts the empty directory at each start.
    let (lapsed, empty) = (noise(3, 100), Bytes::from_static(EMPTY_DIRECTORY));
    let over = ds.put(&key_of(&lapsed), lapsed).await.unwrap_err();
    assert!(over.to_string().contains("its storage has ended"), "{over}");
    ds.put(&key_of(&empty), empty).await.unwrap();
    ds.close().await.unwrap();
    let journal = open(r#""journalPath":"never-made","#).await.err().unwrap();
    format!("{put} / {journal}")
}

async fn serves_reads(place: &Place, why: &str) {
    let known = key_of(&noise(1, 100));
    let index = sqlite(&place.path()).await.unwrap();
    index.put(&row("/1", "b", 0, 1)).await.unwrap();
    index.put(&row(&known, "b", 0, 100)).await.unwrap();
    for (value, len) in [
        (noise(3, 100), 100),
        (Bytes::from_static(EMPTY_DIRECTORY), 4),
    ] {
        let mut lapsed = row(&key_of(&value), "b", 0, len);
        lapsed.record.expires_at = Some(SystemTime::now() - Duration::from_secs(60));
        index.put(&lapsed).await.unwrap();
    }
    index.close().await.unwrap();

    // At rest, then while another process writes, then at rest again.
    place.shut();
    let mut reader = Reader::start(place);
    assert_eq!(reader.answer(), format!("Some({why:?})"));
    assert_eq!(reader.ask("get /1"), "Some(1)");
    assert_eq!(reader.ask("get /2"), "None");
    let error = reader.ask("put /2");
    assert!(
        error.contains(why) && error.contains("kind: Config"),
        "{error}"
    );
    let both = reader.ask("datastore");
    assert_eq!(both.matches(why).count(), 2, "{both}");
    assert!(both.contains("journalPath"), "{both}");

    place.open_up();
    let index = sqlite(&place.path()).await.unwrap();
    index.put(&row("/2", "b", 0, 2)).await.unwrap();
    assert_eq!(reader.ask("get /2"), "Some(2)");
    index.put(&row("/3", "b", 0, 3)).await.unwrap();
    assert_eq!(reader.ask("get /3"), "Some(3)");
    // A reader that starts meanwhile.
    place.shut();
    let mut late = Reader::start(place);
    assert_eq!(late.answer(), format!("Some({why:?})"));
    assert_eq!(late.ask("get /3"), "Some(3)");
    index.put(&row("/4", "b", 0, 4)).await.unwrap();
    assert_eq!(late.ask("get /4"), "Some(4)");
    late.end();
    place.open_up();
    index.close().await.unwrap();
    assert_eq!(reader.ask("get /4"), "Some(4)");
    let index = sqlite(&place.path()).await.unwrap();
    index.put(&row("/5", "b", 0, 5)).await.unwrap();
    index.close().await.unwrap();
    assert_eq!(reader.ask("get /5"), "Some(5)");
    reader.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_may_not_be_written_serves_reads() {
    serves_reads(&Place::new(0o755, 0o444), FILE).await;
    serves_reads(&Place::new(0o555, 0o444), FILE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_a_directory_that_may_not_be_written_serves_reads() {
    let place = Place::new(0o555, 0o666);
    serves_reads(&place, DIRECTORY).await;
}

/// A reader finds nothing to open in a database that no node has set up.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_the_table_is_refused_with_words() {
    let place = Place::new(0o555, 0o444);
    std::fs::write(place.path(), "").unwrap();
    place.shut();
    let mut reader = Reader::start(&place);
    let error = reader.answer();
    assert!(
        error.starts_with("Config") && error.contains(FILE) && error.contains("walrus_index"),
        "{error}"
    );
    reader.end();
}

/// A node that was started while the database did not take writes takes part in them again, without
/// a new start.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_promoted_takes_writes() {
    let pg = Postgres::start();
    let db = pg.database();
    let options = |pg: &Postgres| PostgresOptions::new(pg.url(&db), "walrus_index");
    let first = PostgresIndex::open(options(&pg)).await.unwrap();
    first.put(&row("/1", "b", 0, 1)).await.unwrap();
    first.close().await.unwrap();
    let replica = pg.start_replica();
    let index = PostgresIndex::open(options(&replica)).await.unwrap();
    assert_eq!(index.only_reads(), Some("the server is a standby"));
    assert!(index.get("/1").await.unwrap().is_some());
    replica.promote();
    let until = Instant::now() + Duration::from_secs(60);
    while let Some(why) = index.only_reads() {
        assert!(Instant::now() < until, "still refused: {why}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    index.put(&row("/2", "b", 0, 1)).await.unwrap();
    index.close().await.unwrap();
}
