use super::*;
use crate::error::ErrorKind;
use tokio_postgres::config::Host;

fn labels(url: &str) -> Vec<String> {
    parse(url)
        .unwrap()
        .targets
        .into_iter()
        .map(|t| t.label)
        .collect()
}

fn error(url: &str) -> String {
    let Err(error) = parse(url) else {
        panic!("{url} was accepted")
    };
    assert_eq!(error.kind(), ErrorKind::Config);
    error.to_string()
}

#[test]
fn urls() {
    let spec = parse(
        "postgres://us%40er:p%3Aw%2F@db.example:6543/my%20db?sslmode=disable&connect_timeout=3",
    )
    .unwrap();
    assert_eq!(
        (spec.user.as_str(), spec.dbname.as_str()),
        ("us@er", "my db")
    );
    assert_eq!(spec.targets[0].config.get_password(), Some(&b"p:w/"[..]));
    assert_eq!(
        spec.targets[0].config.get_application_name(),
        Some("walrusds")
    );
    assert_eq!(spec.ssl_mode, SslMode::Disable);
    assert_eq!(spec.connect_timeout, Some(Duration::from_secs(3)));
    assert_eq!(
        labels("postgresql://u@a,b:1,[::1]:2/d"),
        ["a:5432", "b:1", "[::1]:2"]
    );
    assert_eq!(
        labels("postgres://u@/d?host=/run/pg&port=7"),
        ["/run/pg/.s.PGSQL.7"]
    );
    assert_eq!(
        labels("postgres://u@%2Frun%2Fpg:7/d"),
        ["/run/pg/.s.PGSQL.7"]
    );
    assert_eq!(labels("host=h port=5 user=u password='a b\\'c'"), ["h:5"]);
    assert_eq!(labels("postgres://u@/d"), ["localhost:5432"]);
    assert_eq!(labels("postgres://u@h/d?hostaddr=127.0.0.1"), ["h:5432"]);
    let spec = parse("postgres://u@%2Frun%2Fpg/d").unwrap();
    assert!(spec.targets[0].unix);
    assert!(matches!(
        spec.targets[0].config.get_hosts(),
        [Host::Unix(_)]
    ));
    let spec = parse("postgres://h/d?user=me@work&password=a@b").unwrap();
    assert_eq!(spec.user, "me@work");
    // A password with an unescaped @ in it: the last @ separates.
    let spec = parse("postgres://u:a@b@h/d").unwrap();
    assert_eq!(spec.targets[0].config.get_password(), Some(&b"a@b"[..]));
    assert_eq!(
        parse("postgres://u@h/d?sslrootcert=system")
            .unwrap()
            .ssl_mode,
        SslMode::VerifyFull
    );
}

#[test]
fn what_lib_pq_takes_is_taken() {
    let options = |url: &str| {
        let spec = parse(url).unwrap_or_else(|e| panic!("{url}: {e}"));
        spec.targets[0]
            .config
            .get_options()
            .unwrap_or_default()
            .to_owned()
    };
    for (url, expected) in [
        ("postgres://u@h/d? sslmode=disable", ""),
        (
            "postgres://u@h/d?search_path=blocks",
            "-c search_path=blocks",
        ),
        (
            "postgres://u@h/d?statement_timeout=5000&timezone=UTC",
            "-c statement_timeout=5000 -c timezone=UTC",
        ),
        ("postgres://u@h/d?options=-c+geqo%3Doff", "-c geqo=off"),
        (
            "postgres://u@h/d?options=-cgeqo%3Doff&search_path=a%2C%20b%5C",
            "-cgeqo=off -c search_path=a,\\ b\\\\",
        ),
        ("host=h user=u dbname=d my.setting=1", "-c my.setting=1"),
        (
            "postgres://u@h/d?search_path=a,+b&DateStyle=ISO,%20MDY",
            "-c DateStyle=ISO,\\ MDY -c search_path=a,\\ b",
        ),
        (
            "postgres://u@h/d?options=-c%20timezone%3DEtc/GMT%2B3",
            "-c timezone=Etc/GMT+3",
        ),
        (
            "postgres://u@h/d?search_path=&options=&statement_timeout=1",
            "-c statement_timeout=1",
        ),
        (
            "postgres://u@h/d?krbsrvname=x&krbspn=y&disable_prepared_binary_result=yes&client_encoding=utf-8",
            "",
        ),
    ] {
        assert_eq!(options(url), expected, "{url}");
    }
    for (value, session) in [
        ("any", Session::Any),
        ("read-write", Session::ReadWrite),
        ("read-only", Session::ReadOnly),
        ("primary", Session::Primary),
        ("standby", Session::Standby),
        ("prefer-standby", Session::PreferStandby),
    ] {
        let spec = parse(&format!("postgres://u@h/d?target_session_attrs={value}")).unwrap();
        assert_eq!((spec.session, spec.session.name()), (session, value));
    }
    assert_eq!(parse("postgres://u@h/d").unwrap().session, Session::Any);
}

#[test]
fn the_files_of_the_client() {
    let home = tempfile::tempdir().unwrap();
    let given = |path: &str| Some(path.to_owned());
    let files = |cert, key| client_files(cert, key, Some(home.path()));
    assert_eq!(files(None, None).unwrap(), None);
    assert!(files(given("/c"), None).is_err());
    assert!(files(None, given("/k")).is_err());
    let dir = home.path().join(".postgresql");
    std::fs::create_dir(&dir).unwrap();
    let (cert, key) = (dir.join("postgresql.crt"), dir.join("postgresql.key"));
    std::fs::write(&cert, "").unwrap();
    assert_eq!(files(None, None).unwrap(), None, "a key is missing");
    std::fs::write(&key, "").unwrap();
    for (given_cert, given_key, expected) in [
        (None, None, (cert.clone(), key.clone())),
        (given("/c"), None, ("/c".into(), key.clone())),
        (None, given("/k"), (cert, "/k".into())),
        (given("/c"), given("/k"), ("/c".into(), "/k".into())),
    ] {
        assert_eq!(files(given_cert, given_key).unwrap(), Some(expected));
    }
}

#[test]
fn an_address_stands_for_a_name() {
    let spec = parse("postgres://u@/d?hostaddr=127.0.0.1").unwrap();
    let hosts = spec.targets[0].config.get_hosts();
    assert_eq!(hosts, [Host::Tcp("127.0.0.1".into())]);
    assert_eq!(labels("postgres://u@/d?hostaddr=::1"), ["[::1]:5432"]);
    assert!(!parse("postgres://u@h/d?sslsni=0").unwrap().ssl_sni);
    let passfile = |url: &str| parse(url).unwrap().passfile;
    assert_eq!(passfile("postgres://u@h/d?passfile=/p"), Some("/p".into()));
    assert_eq!(passfile("postgres://u:x@h/d?passfile=/p"), None);
}

#[test]
fn errors_name_the_part_and_no_secret() {
    for (url, part) in [
        ("mysql://u:hunter2@h/d", "scheme"),
        ("hunter2", "no Postgres URL"),
        ("postgres://u:hunter2%zz@h/d", "the password"),
        ("postgres://u:hunter2@h:0/d", "port"),
        ("postgres://u:hunter2@h:hunter2/d", "port"),
        ("postgres://u:hunter2@[::1/d", "IPv6"),
        ("postgres://u:hunter2@::1/d", "IPv6"),
        ("postgres://u:hunter2@h/d?sslmode=maybe", "sslmode"),
        (
            "postgres://u:hunter2@h/d?sslfrobnicate=1",
            "\"sslfrobnicate\"",
        ),
        ("postgres://u:hun/ter2@h/d", "%2F"),
        ("postgres://u:hun/hunter2@h:5/d", "%2F"),
        (
            "postgres://u:hunter2@h/d?connect_timeout=x",
            "connect_timeout",
        ),
        ("postgres://u:hunter2@h/d?sslcert=x", "sslkey"),
        ("postgres://u:hunter2@h/d?gssencmode=require", "gssencmode"),
        (
            "postgres://u:hunter2@h/d?target_session_attrs=x",
            "target_session_attrs",
        ),
        ("postgres://u:hunter2@a,b:1,c/d?port=1,2", "port"),
        ("user=u password='hunter2", "closing quote"),
        ("user=u password=a hunter2='x", "closing quote"),
        ("user=u password=a sslhunter2=x", "password='…'"),
        ("postgres://u:hunter2@h/d#x", "fragment"),
        ("postgres://us?er:hunter2@h/d?a=%fs", "%3F"),
        ("postgres://us?er:hunter2@h/d=x", "%3F"),
        ("postgres://u:pa?hunter2=x@h/d", "%3F"),
        ("postgres://us?er:hunter2=x", "%3F"),
    ] {
        let message = error(url);
        assert!(message.contains(part), "{url}: {message}");
        assert!(!message.contains("hunter2"), "{url}: {message}");
    }
}
