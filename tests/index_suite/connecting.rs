//! Connections as libpq and lib/pq make them.

use walrusds::index::postgres::{PostgresIndex, PostgresOptions};
use walrusds::{Index, Rows};

use crate::on_postgres::openssl;
use crate::shared::row;
use testkit::postgres::Postgres;

async fn open(url: &str) -> PostgresIndex {
    PostgresIndex::open(PostgresOptions::new(url, "walrus_index"))
        .await
        .unwrap_or_else(|e| panic!("{url}: {e}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn run_time_parameters_reach_the_server() {
    let pg = Postgres::shared();
    let db = pg.database();
    pg.execute(&db, "CREATE SCHEMA other");
    let url = pg
        .url(&db)
        .replace('?', "? search_path=other&statement_timeout=60000&");
    let index = open(&url).await;
    index.put(&row("/k", "b", 0, 1)).await.unwrap();
    assert_eq!(
        pg.scalar(&db, "SELECT count(*) FROM other.walrus_index"),
        "1"
    );
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blank_in_a_password_shows_no_part_of_it() {
    let pg = Postgres::shared();
    let db = pg.database();
    let url = pg.url(&db);
    let (user, place) = url["postgres://".len()..].split_once('@').unwrap();
    let port = place.split([':', '/']).nth(1).unwrap();
    let keywords = format!(
        "host=127.0.0.1 port={port} dbname={db} user={user} sslmode=disable password=part hunter2=x"
    );
    let opened = PostgresIndex::open(PostgresOptions::new(&keywords, "walrus_index")).await;
    let message = opened.err().unwrap().to_string();
    assert!(message.contains("password='…'"), "{message}");
    assert!(!message.contains("hunter2"), "{message}");
}

/// As PostgreSQL's manual makes them: without extensions, version 1.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_version_1_encrypt() {
    let dir = tempfile::tempdir().unwrap();
    openssl(
        dir.path(),
        "req -new -newkey rsa:2048 -nodes -keyout s.key -out s.csr -subj /CN=localhost",
    );
    openssl(
        dir.path(),
        "x509 -req -in s.csr -signkey s.key -days 2 -out s.crt",
    );
    let text = std::process::Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in"])
        .arg(dir.path().join("s.crt"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("Version: 1"), "{text}");
    let mut pg = Postgres::start();
    let db = pg.database();
    pg.write(
        "server.crt",
        &std::fs::read(dir.path().join("s.crt")).unwrap(),
    );
    pg.write(
        "server.key",
        &std::fs::read(dir.path().join("s.key")).unwrap(),
    );
    pg.execute("postgres", "ALTER SYSTEM SET ssl = on");
    pg.restart();
    for versions in ["TLSv1.2", "TLSv1.3"] {
        pg.execute(
            "postgres",
            &format!("ALTER SYSTEM SET ssl_max_protocol_version = '{versions}'"),
        );
        pg.restart();
        for mode in ["require", "prefer"] {
            let url = pg
                .url(&db)
                .replace("sslmode=disable", &format!("sslmode={mode}"));
            let index = open(&url).await;
            assert_eq!(index.take_notice(), None, "{mode}");
            let encrypted =
                "SELECT bool_and(s.ssl) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) \
                             WHERE a.application_name = 'walrusds'";
            assert_eq!(pg.scalar(&db, encrypted), "t", "{mode}, {versions}");
            index.close().await.unwrap();
        }
    }
}

/// A server that offers TLS with the certificate and key of `dir`.
fn server_with(dir: &std::path::Path) -> Postgres {
    let mut pg = Postgres::start();
    pg.execute("postgres", "ALTER SYSTEM SET ssl = on");
    give_certificate(&mut pg, dir);
    pg
}

fn give_certificate(pg: &mut Postgres, dir: &std::path::Path) {
    for (name, from) in [("server.crt", "s.crt"), ("server.key", "s.key")] {
        pg.write(name, &std::fs::read(dir.join(from)).unwrap());
    }
    pg.restart();
}

/// A key and a certificate of version 3 that it has signed itself.
fn authority(dir: &std::path::Path, file: &str, name: &str, kind: &str) {
    openssl(
        dir,
        &format!("req -new -x509 -newkey {kind} -nodes -days 2 -keyout {file}.key -out {file}.crt -subj /CN={name}"),
    );
}

/// A key and a certificate of version 1 that `issuer` has signed.
fn version_1(dir: &std::path::Path, file: &str, name: &str, kind: &str, issuer: &str) {
    openssl(
        dir,
        &format!(
            "req -new -newkey {kind} -nodes -keyout {file}.key -out {file}.csr -subj /CN={name}"
        ),
    );
    openssl(
        dir,
        &format!("x509 -req -in {file}.csr -CA {issuer}.crt -CAkey {issuer}.key -CAcreateserial -days 2 -out {file}.crt"),
    );
}

/// As PostgreSQL's manual makes them: an authority, and a server's certificate of version 1 that it
/// has issued.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_version_1_are_verified_as_libpq_verifies_them() {
    let dir = tempfile::tempdir().unwrap();
    for (file, name) in [("ca", "ca"), ("other", "other"), ("namesake", "ca")] {
        authority(dir.path(), file, name, "rsa:2048");
    }
    for kind in ["rsa:2048", "ec -pkeyopt ec_paramgen_curve:P-256"] {
        version_1(dir.path(), "s", "localhost", kind, "ca");
        let mut pg = server_with(dir.path());
        let db = pg.database();
        for version in ["TLSv1.2", "TLSv1.3"] {
            pg.execute(
                "postgres",
                &format!("ALTER SYSTEM SET ssl_max_protocol_version = '{version}'"),
            );
            pg.restart();
            for (host, mode, root, refused) in [
                ("localhost", "verify-full", "ca.crt", None),
                ("localhost", "verify-ca", "ca.crt", None),
                ("localhost", "require", "ca.crt", None),
                ("127.0.0.1", "verify-ca", "ca.crt", None),
                // The certificate itself as the root.
                ("localhost", "verify-full", "s.crt", None),
                (
                    "127.0.0.1",
                    "verify-full",
                    "ca.crt",
                    Some("NotValidForName"),
                ),
                ("127.0.0.1", "verify-full", "s.crt", Some("NotValidForName")),
                ("localhost", "verify-ca", "other.crt", Some("UnknownIssuer")),
                (
                    "localhost",
                    "verify-ca",
                    "namesake.crt",
                    Some("UnknownIssuer"),
                ),
                ("localhost", "verify-full", "system", Some("UnknownIssuer")),
            ] {
                let root = match root {
                    "system" => root.to_owned(),
                    file => dir.path().join(file).display().to_string(),
                };
                let url = format!(
                    "postgres://postgres@{host}:{}/{db}?sslmode={mode}&sslrootcert={root}",
                    pg.port()
                );
                let options = PostgresOptions::new(&url, "walrus_index");
                match (PostgresIndex::open(options).await, refused) {
                    (Ok(index), None) => index.close().await.unwrap(),
                    (Err(e), Some(part)) => {
                        let text = e.to_string();
                        assert!(text.contains("TLS failed"), "{url}: {text}");
                        let why = text.split("TLS failed").nth(1).unwrap();
                        assert!(why.contains(part), "{url}: {text}");
                    }
                    (Ok(_), Some(_)) => panic!("{url} was accepted"),
                    (Err(e), None) => panic!("{url}: {e}"),
                }
            }
        }
    }
}

/// Trust in one server's certificate does not extend to other servers.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_s_certificate_issues_no_others() {
    let dir = tempfile::tempdir().unwrap();
    // No extensions of its own.
    let none = "[req]\ndistinguished_name = dn\n[dn]\n";
    std::fs::write(dir.path().join("none.cnf"), none).unwrap();
    for (file, extensions) in [
        (
            "leaf",
            "-addext basicConstraints=critical,CA:FALSE -config none.cnf",
        ),
        (
            "plain",
            "-addext subjectAltName=DNS:elsewhere -config none.cnf",
        ),
        ("usage", "-addext basicConstraints=critical,CA:TRUE -addext keyUsage=digitalSignature -config none.cnf"),
    ] {
        openssl(
            dir.path(),
            &format!("req -new -x509 -newkey rsa:2048 -nodes -days 2 -keyout {file}.key -out {file}.crt -subj /CN=elsewhere {extensions}"),
        );
        version_1(dir.path(), "s", "localhost", "rsa:2048", file);
        let pg = server_with(dir.path());
        let url = format!(
            "postgres://postgres@localhost:{}/postgres?sslmode=verify-full&sslrootcert={}",
            pg.port(),
            dir.path().join(format!("{file}.crt")).display()
        );
        let psql = std::process::Command::new("psql").arg(&url).args(["-Atc", "SELECT 1"]).output().unwrap();
        let said = String::from_utf8_lossy(&psql.stderr);
        assert!(said.contains("certificate verify failed"), "{file}: {said}");
        let options = PostgresOptions::new(&url, "walrus_index");
        let error = PostgresIndex::open(options).await.err().expect(file);
        assert!(error.to_string().contains("UnknownIssuer"), "{file}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_of_version_1_is_presented() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path(), "s", "localhost", "rsa:2048");
    for name in ["tina", "stranger"] {
        version_1(dir.path(), name, name, "rsa:2048", "s");
    }
    let mut pg = server_with(dir.path());
    pg.execute("postgres", "CREATE ROLE tina SUPERUSER LOGIN");
    let db = pg.database();
    pg.write(
        "root.crt",
        &std::fs::read(dir.path().join("s.crt")).unwrap(),
    );
    pg.execute("postgres", "ALTER SYSTEM SET ssl_ca_file = 'root.crt'");
    pg.write(
        "pg_hba.conf",
        b"local all all trust\nhostssl all tina 127.0.0.1/32 cert\nhost all postgres 127.0.0.1/32 trust\n",
    );
    pg.restart();
    let url = |cert: &str, key: &str| {
        format!(
            "postgres://tina@127.0.0.1:{}/{db}?sslmode=require&sslcert={}&sslkey={}",
            pg.port(),
            dir.path().join(cert).display(),
            dir.path().join(key).display(),
        )
    };
    let index = open(&url("tina.crt", "tina.key")).await;
    index.close().await.unwrap();
    for (cert, key, part) in [
        ("stranger.crt", "stranger.key", "tina"),
        ("tina.crt", "stranger.key", "do not work together"),
    ] {
        let options = PostgresOptions::new(url(cert, key), "walrus_index");
        let error = PostgresIndex::open(options).await.err().unwrap();
        assert!(error.to_string().contains(part), "{error}");
    }
}

/// A kind of key that rustls does not accept.
const NOT_TAKEN: &str = "ec -pkeyopt ec_paramgen_curve:secp521r1";

/// libpq's rule for `prefer`: without TLS if the handshake fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_fails_is_told_when_prefer_goes_on_without() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path(), "s", "localhost", NOT_TAKEN);
    let pg = server_with(dir.path());
    let db = pg.database();
    let url = |mode: &str| {
        format!(
            "postgres://postgres@127.0.0.1:{}/{db}?sslmode={mode}",
            pg.port()
        )
    };
    let options = PostgresOptions::new(url("require"), "walrus_index");
    let error = PostgresIndex::open(options).await.err().unwrap();
    assert!(error.to_string().contains("TLS failed"), "{error}");
    let index = open(&url("prefer")).await;
    let notice = index.take_notice().unwrap();
    for part in ["sslmode=prefer", "127.0.0.1", "not encrypted"] {
        assert!(notice.contains(part), "{notice}");
    }
    index.put(&row("/k", "b", 0, 1)).await.unwrap();
    assert_eq!(index.take_notice(), None, "said once");
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_loses_its_tls_later_is_logged() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path(), "s", "localhost", "rsa:2048");
    let mut pg = server_with(dir.path());
    let db = pg.database();
    let config = walrusds::Config::from_json(&format!(
        r#"{{"publisherURL": "http://127.0.0.1:1", "aggregatorURL": "http://127.0.0.1:1",
            "postgresURL": "postgres://postgres@127.0.0.1:{}/{db}?sslmode=prefer"}}"#,
        pg.port()
    ))
    .unwrap();
    let store = walrusds::WalrusDatastore::open(config, dir.path())
        .await
        .unwrap();
    let told = || {
        let lines = std::iter::from_fn(|| store.next_log_line());
        lines
            .filter(|line| line.message.contains("not encrypted"))
            .count()
    };
    assert_eq!(told(), 0);
    authority(dir.path(), "s", "localhost", NOT_TAKEN);
    give_certificate(&mut pg, dir.path());
    assert!(!store.has("/k").await.unwrap());
    let logged = async {
        while told() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), logged)
        .await
        .expect("the log says that the connection is not encrypted");
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_alone_is_encrypted() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path(), "s", "localhost", "rsa:2048");
    let pg = server_with(dir.path());
    let db = pg.database();
    for mode in ["require", "prefer"] {
        let index = open(&format!(
            "postgres://postgres@/{db}?hostaddr=127.0.0.1&port={}&sslmode={mode}",
            pg.port()
        ))
        .await;
        assert_eq!(index.take_notice(), None, "{mode}");
        index.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_password_file_is_read() {
    use std::os::unix::fs::PermissionsExt;
    let mut pg = Postgres::start();
    pg.execute(
        "postgres",
        "CREATE ROLE alice SUPERUSER LOGIN PASSWORD 'hunter2'",
    );
    let db = pg.database();
    pg.write(
        "pg_hba.conf",
        b"local all all trust\nhost all alice 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n",
    );
    pg.restart();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pass");
    let line = format!("127.0.0.1:{}:*:alice:hunter2\n", pg.port());
    std::fs::write(&path, line).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let url = format!(
        "postgres://alice@127.0.0.1:{}/{db}?sslmode=disable&passfile={}",
        pg.port(),
        path.display()
    );
    open(&url).await.close().await.unwrap();
}
