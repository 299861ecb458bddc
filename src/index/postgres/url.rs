//! Postgres URLs as libpq reads them (also `keyword=value` strings, which the Go plugin accepted).
//!
//! Messages name the part that is wrong and never repeat a value that could hold a secret.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::config::{
    ChannelBinding, LoadBalanceHosts, SslNegotiation, TargetSessionAttrs,
};
use tokio_postgres::Config;

use crate::error::{Error, ErrorKind, Result};

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// libpq's `sslrootcert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RootCert {
    /// The roots of the system.
    System,
    /// A PEM file.
    File(PathBuf),
}

/// One server of the URL.
#[derive(Clone)]
pub(super) struct Target {
    /// `host:port` or the socket's path, for messages.
    pub label: String,
    /// Everything tokio-postgres needs, with this one host.
    pub config: Config,
    /// A Unix socket: never TLS.
    pub unix: bool,
}

/// A parsed URL. No `Debug`: it holds the password.
#[derive(Clone)]
pub(super) struct Spec {
    pub targets: Vec<Target>,
    pub ssl_mode: SslMode,
    pub ssl_root_cert: Option<RootCert>,
    /// Certificate chain and key files of the client.
    pub ssl_client: Option<(PathBuf, PathBuf)>,
    /// Whether the server is told the host's name before the connection is encrypted.
    pub ssl_sni: bool,
    /// libpq's `passfile`, if no password is given.
    pub passfile: Option<PathBuf>,
    pub connect_timeout: Option<Duration>,
    /// A standby is asked before others.
    pub prefer_standby: bool,
    /// There are parameters that the server is to judge.
    passed_on: bool,
    pub user: String,
    pub dbname: String,
    /// A parameter's name that may be a part of the password: `password=part name=value`, without quotes.
    doubtful: Option<String>,
}

impl Spec {
    /// The error without what may be a part of the password.
    pub(super) fn hide(&self, e: Error) -> Error {
        hide(self.doubtful.as_deref(), e)
    }
}

fn hide(doubtful: Option<&str>, e: Error) -> Error {
    const INSTEAD: &str =
        "\"…\" (it follows an unquoted password, which may have a blank: password='…')";
    match doubtful {
        Some(name) => e.replace(&format!("{name:?}"), INSTEAD),
        None => e,
    }
}

fn bad(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Config, format!("postgresURL: {what}"))
}

/// Parameters in the order of precedence: a later one replaces an earlier one.
type Params = BTreeMap<String, String>;

/// Parses the URL; nothing is looked up or opened.
pub(super) fn parse(url: &str) -> Result<Spec> {
    let url = url.trim();
    let (params, doubtful) = if let Some(rest) = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"))
    {
        let spec = split_url(rest).and_then(build);
        // Perhaps the ? is one in the user name or the password, and what follows it theirs.
        let misplaced = rest.split_once('?').is_some_and(|(_, q)| q.contains('@'));
        return match spec {
            Err(_) | Ok(Spec { passed_on: true, .. }) if misplaced => Err(bad(
                "the parameters after ? are wrong, and there is an @ among them: a ? or @ in the user name, the password or a parameter must be percent-encoded (%3F, %40)",
            )),
            other => other,
        };
    } else if url.contains("://") {
        return Err(bad("the scheme must be postgres:// or postgresql://"));
    } else if url.contains('=') {
        split_keywords(url)?
    } else {
        return Err(bad(
            "is no Postgres URL (postgres://user@host:port/database)",
        ));
    };
    match build(params) {
        Ok(spec) => Ok(Spec { doubtful, ..spec }),
        Err(e) => Err(hide(doubtful.as_deref(), e)),
    }
}

fn split_url(rest: &str) -> Result<Params> {
    let mut params = Params::new();
    if rest.contains('#') {
        return Err(bad("a # (fragment) has no meaning here; write it as %23"));
    }
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let (authority, path) = match rest.split_once('/') {
        Some((authority, path)) => (authority, Some(path)),
        None => (rest, None),
    };
    if path.is_some_and(|path| path.contains('@')) {
        // What stands before the / would be taken for a host, and be printed.
        return Err(bad(
            "an @ follows the first /: a / in the user name or the password must be percent-encoded (%2F), and so must \
             an @ in the database name (%40)",
        ));
    }
    let hosts = match authority.rsplit_once('@') {
        Some((userinfo, hosts)) => {
            let (user, password) = match userinfo.split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (userinfo, None),
            };
            if !user.is_empty() {
                params.insert("user".into(), decode("the user name", user)?);
            }
            if let Some(password) = password {
                params.insert("password".into(), decode("the password", password)?);
            }
            hosts
        }
        None => authority,
    };
    if !hosts.is_empty() {
        let (mut names, mut ports) = (Vec::new(), Vec::new());
        for item in hosts.split(',') {
            let (name, port) = split_host_port(item)?;
            names.push(decode("the host", name)?);
            ports.push(port.unwrap_or_default().to_owned());
        }
        params.insert("host".into(), names.join(","));
        if ports.iter().any(|p| !p.is_empty()) {
            params.insert("port".into(), ports.join(","));
        }
    }
    if let Some(path) = path.filter(|p| !p.is_empty()) {
        params.insert("dbname".into(), decode("the database name", path)?);
    }
    for pair in query
        .unwrap_or_default()
        .split('&')
        .filter(|p| !p.is_empty())
    {
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| bad("a parameter after ? has no value (name=value)"))?;
        // A blank after the ? stands in a published example of the Go plugin.
        let name = decode("the name of a parameter", name)?.trim().to_owned();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if !name.chars().all(plain) {
            return Err(bad(
                "what stands after ? is no name of a parameter (a ? in the user name or the password is written as %3F)",
            ));
        }
        // A blank, as lib/pq reads it. libpq does not, but knows no run-time parameters here, and a + means
        // nothing to the server in options.
        let value = match name == "options" || !is_known(&name) {
            true => value.replace('+', " "),
            false => value.to_owned(),
        };
        let value = decode(&format!("parameter {name:?}"), &value)?;
        // An empty one counts as not given.
        if !value.is_empty() {
            params.insert(name, value);
        }
    }
    Ok(params)
}

fn split_host_port(item: &str) -> Result<(&str, Option<&str>)> {
    if let Some(rest) = item.strip_prefix('[') {
        let (host, rest) = rest
            .split_once(']')
            .ok_or_else(|| bad("an IPv6 host lacks its closing ]"))?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(bad("something other than a port follows an IPv6 host")),
        };
    }
    match item.rsplit_once(':') {
        Some((host, _)) if host.contains(':') => {
            Err(bad("an IPv6 host must be in brackets ([::1]:5432)"))
        }
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((item, None)),
    }
}

fn decode(what: &str, text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let hex = |b: Option<u8>| b.and_then(|b| (b as char).to_digit(16));
        match (hex(rest.next()), hex(rest.next())) {
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => {
                return Err(bad(format!(
                    "{what} has a % that two hex digits do not follow (write % as %25)"
                )))
            }
        }
    }
    if bytes.contains(&0) {
        return Err(bad(format!("{what} contains a NUL byte")));
    }
    String::from_utf8(bytes).map_err(|_| bad(format!("{what} is not UTF-8")))
}

/// The parameters, and the name of one that may be a part of the password.
fn split_keywords(text: &str) -> Result<(Params, Option<String>)> {
    let mut params = Params::new();
    let mut doubtful = None;
    let mut after_password = false;
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok((params, doubtful));
        }
        let mut name = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=' && !c.is_whitespace()) {
            name.push(c);
        }
        if after_password && !KNOWN.contains(&name.as_str()) {
            doubtful = Some(name.clone());
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next() != Some('=') {
            return Err(bad("a keyword lacks its = (keyword=value)"));
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut value = String::new();
        let quoted = chars.next_if_eq(&'\'').is_some();
        loop {
            match chars.peek().copied() {
                None if quoted => {
                    let e = bad(format!("keyword {name:?} lacks its closing quote"));
                    return Err(hide(doubtful.as_deref(), e));
                }
                None => break,
                Some('\'') if quoted => {
                    chars.next();
                    break;
                }
                Some(c) if !quoted && c.is_whitespace() => break,
                Some('\\') => {
                    chars.next();
                    value.extend(chars.next());
                }
                Some(c) => {
                    chars.next();
                    value.push(c);
                }
            }
        }
        after_password = name == "password" && !quoted;
        params.insert(name, value);
    }
}

fn build(mut params: Params) -> Result<Spec> {
    let env = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let passed_on = pass_on(&mut params)?;
    let mut take = |name: &str| params.remove(name).filter(|v| !v.is_empty());

    let mut base = Config::new();
    let user = take("user")
        .or_else(|| env("PGUSER"))
        .or_else(|| env("USER"))
        .or_else(|| env("LOGNAME"))
        .or_else(|| whoami::username().ok())
        .ok_or_else(|| bad("names no user"))?;
    base.user(&user);
    let home = env("HOME").map(PathBuf::from);
    let passfile = take("passfile").or_else(|| env("PGPASSFILE"));
    let passfile = passfile.map(PathBuf::from);
    let passfile = passfile.or_else(|| home.as_ref().map(|home| home.join(".pgpass")));
    let password = take("password").or_else(|| env("PGPASSWORD"));
    let passfile = passfile.filter(|_| password.is_none());
    if let Some(password) = password {
        base.password(password);
    }
    let dbname = take("dbname").or_else(|| env("PGDATABASE"));
    let dbname = dbname.unwrap_or_else(|| user.clone());
    base.dbname(&dbname);
    let fallback = take("fallback_application_name");
    base.application_name(
        take("application_name")
            .or_else(|| env("PGAPPNAME"))
            .or(fallback)
            .unwrap_or_else(|| "walrusds".into()),
    );
    if let Some(options) = take("options").or_else(|| env("PGOPTIONS")) {
        base.options(options);
    }

    let connect_timeout = take("connect_timeout")
        .or_else(|| env("PGCONNECT_TIMEOUT"))
        .map(|v| number("connect_timeout", &v))
        .transpose()?
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs);
    if let Some(v) = take("keepalives") {
        base.keepalives(number("keepalives", &v)? != 0);
    }
    // A server that vanished without a word is noticed within half a minute.
    let seconds = |name, value: Option<String>, default| match value {
        Some(v) => number(name, &v).map(|n| if n == 0 { default } else { n }),
        None => Ok(default),
    };
    base.keepalives_idle(Duration::from_secs(seconds(
        "keepalives_idle",
        take("keepalives_idle"),
        15,
    )?));
    base.keepalives_interval(Duration::from_secs(seconds(
        "keepalives_interval",
        take("keepalives_interval"),
        5,
    )?));
    base.keepalives_retries(
        u32::try_from(seconds("keepalives_count", take("keepalives_count"), 3)?)
            .map_err(|_| bad("keepalives_count is too large"))?,
    );
    base.tcp_user_timeout(match take("tcp_user_timeout") {
        Some(v) => Duration::from_millis(number("tcp_user_timeout", &v)?),
        None => Duration::from_secs(30),
    });

    let ssl_root_cert = take("sslrootcert").or_else(|| env("PGSSLROOTCERT"));
    let ssl_root_cert = ssl_root_cert.map(|v| match v.as_str() {
        "system" => RootCert::System,
        _ => RootCert::File(v.into()),
    });
    let ssl_mode = match take("sslmode").or_else(|| env("PGSSLMODE")).as_deref() {
        None if ssl_root_cert == Some(RootCert::System) => SslMode::VerifyFull,
        None | Some("prefer") => SslMode::Prefer,
        Some("disable") => SslMode::Disable,
        Some("allow") => SslMode::Allow,
        Some("require") => SslMode::Require,
        Some("verify-ca") => SslMode::VerifyCa,
        Some("verify-full") => SslMode::VerifyFull,
        Some(_) => {
            return Err(bad(
                "sslmode must be disable, allow, prefer, require, verify-ca or verify-full",
            ))
        }
    };
    let ssl_client = client_files(
        take("sslcert").or_else(|| env("PGSSLCERT")),
        take("sslkey").or_else(|| env("PGSSLKEY")),
        home.as_deref().filter(|_| ssl_mode != SslMode::Disable),
    )?;
    let ssl_sni = match take("sslsni").or_else(|| env("PGSSLSNI")).as_deref() {
        None | Some("1") => true,
        Some("0") => false,
        Some(_) => return Err(bad("sslsni must be 0 or 1")),
    };
    match take("sslnegotiation").as_deref() {
        None | Some("postgres") => {}
        Some("direct")
            if matches!(
                ssl_mode,
                SslMode::Disable | SslMode::Allow | SslMode::Prefer
            ) =>
        {
            return Err(bad(
                "sslnegotiation=direct needs sslmode=require or stricter",
            ));
        }
        Some("direct") => {
            base.ssl_negotiation(SslNegotiation::Direct);
        }
        Some(_) => return Err(bad("sslnegotiation must be postgres or direct")),
    }
    match take("channel_binding").as_deref() {
        None | Some("prefer") => {}
        Some("disable") => {
            base.channel_binding(ChannelBinding::Disable);
        }
        Some("require") => {
            base.channel_binding(ChannelBinding::Require);
        }
        Some(_) => return Err(bad("channel_binding must be disable, prefer or require")),
    }
    let attrs = take("target_session_attrs").or_else(|| env("PGTARGETSESSIONATTRS"));
    let prefer_standby = attrs.as_deref() == Some("prefer-standby");
    match attrs.as_deref() {
        None | Some("any" | "prefer-standby") => {}
        Some("read-write" | "primary") => {
            base.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        Some("read-only" | "standby") => {
            base.target_session_attrs(TargetSessionAttrs::ReadOnly);
        }
        Some(_) => {
            return Err(bad(
                "target_session_attrs must be any, read-write, read-only, primary, standby or prefer-standby",
            ))
        }
    }
    match take("load_balance_hosts").as_deref() {
        None | Some("disable") => {}
        Some("random") => {
            base.load_balance_hosts(LoadBalanceHosts::Random);
        }
        Some(_) => return Err(bad("load_balance_hosts must be disable or random")),
    }
    // Accepted where they ask for what is so anyway.
    let encoding = take("client_encoding").map(|name| name.to_ascii_lowercase().replace('-', ""));
    if encoding.is_some_and(|name| !["auto", "utf8", "unicode"].contains(&name.as_str())) {
        return Err(bad("client_encoding must be auto or UTF8"));
    }
    for (name, allowed) in [
        ("gssencmode", &["disable", "prefer"][..]),
        ("binary_parameters", &["yes", "no"][..]), // lib/pq
        ("disable_prepared_binary_result", &["yes", "no"][..]), // lib/pq
        ("sslcompression", &["0"][..]),
    ] {
        if take(name).is_some_and(|v| !allowed.contains(&v.as_str())) {
            return Err(bad(format!("{name} must be {}", allowed.join(" or "))));
        }
    }

    // Of Kerberos, which is tried only if the server asks for it.
    for name in ["krbsrvname", "krbspn"] {
        take(name);
    }

    let (hosts, addresses) = (take("host"), take("hostaddr"));
    let ports = take("port").or_else(|| env("PGPORT"));
    let hosts = match addresses {
        Some(_) => hosts,
        None => hosts.or_else(|| env("PGHOST")),
    };
    if let Some(name) = params.keys().next() {
        return Err(bad(format!("parameter {name:?} is not supported (a special character in the password must be percent-encoded)")));
    }
    let targets = targets(
        &base,
        hosts.as_deref(),
        addresses.as_deref(),
        ports.as_deref(),
    )?;
    Ok(Spec {
        targets,
        ssl_mode,
        ssl_root_cert,
        ssl_client,
        ssl_sni,
        passfile,
        connect_timeout,
        prefer_standby,
        passed_on,
        doubtful: None,
        user,
        dbname,
    })
}

/// The parameters of libpq and lib/pq; every other one is a run-time parameter of the server, as lib/pq has it.
const KNOWN: &[&str] = &[
    "user",
    "password",
    "dbname",
    "host",
    "hostaddr",
    "port",
    "passfile",
    "service",
    "application_name",
    "fallback_application_name",
    "options",
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "target_session_attrs",
    "load_balance_hosts",
    "gssencmode",
    "client_encoding",
    "binary_parameters",
    "channel_binding",
    "replication",
    "requirepeer",
    "krbsrvname",
    "krbspn",
    "gsslib",
    "gssdelegation",
    "require_auth",
    "min_protocol_version",
    "max_protocol_version",
    "disable_prepared_binary_result",
];

/// Certificate and key of the client: those given, or libpq's default files if they are there.
fn client_files(
    cert: Option<String>,
    key: Option<String>,
    home: Option<&Path>,
) -> Result<Option<(PathBuf, PathBuf)>> {
    let default = |name: &str| {
        let path = home.map(|home| home.join(".postgresql").join(name));
        path.filter(|path| path.is_file())
    };
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some((cert.into(), key.into()))),
        (Some(cert), None) => match default("postgresql.key") {
            Some(key) => Ok(Some((cert.into(), key))),
            None => Err(bad("sslcert is given without sslkey")),
        },
        (None, Some(key)) => match default("postgresql.crt") {
            Some(cert) => Ok(Some((cert, key.into()))),
            None => Err(bad("sslkey is given without sslcert")),
        },
        (None, None) => Ok(default("postgresql.crt").zip(default("postgresql.key"))),
    }
}

/// Whether libpq or lib/pq has the parameter for itself. A misspelt one about TLS must not be left to the server.
fn is_known(name: &str) -> bool {
    KNOWN.contains(&name) || name.starts_with("ssl")
}

/// Turns the server's run-time parameters (`search_path`, `statement_timeout`, …) into options; whether there were
/// any.
fn pass_on(params: &mut Params) -> Result<bool> {
    let others: Vec<String> = params
        .keys()
        .filter(|name| !is_known(name))
        .cloned()
        .collect();
    let mut options = String::new();
    for name in &others {
        let first = name.chars().next();
        if !first.is_some_and(|c| c.is_ascii_alphabetic() || c == '_') || name.len() > 63 {
            return Err(bad(
                "what stands after ? is no name of a parameter (a special character in the password must be percent-encoded)",
            ));
        }
        let value = params.remove(name).unwrap_or_default();
        let mut escaped = String::new();
        for c in value.chars() {
            if c.is_whitespace() || c == '\\' {
                escaped.push('\\');
            }
            escaped.push(c);
        }
        options.push_str(&format!(" -c {name}={escaped}"));
    }
    if !options.is_empty() {
        let given = params.remove("options").unwrap_or_default();
        params.insert(
            "options".into(),
            format!("{given}{options}").trim().to_owned(),
        );
    }
    Ok(!others.is_empty())
}

fn targets(
    base: &Config,
    hosts: Option<&str>,
    addresses: Option<&str>,
    ports: Option<&str>,
) -> Result<Vec<Target>> {
    let list = |text: Option<&str>| -> Vec<String> {
        text.map(|t| t.split(',').map(|s| s.trim().to_owned()).collect())
            .unwrap_or_default()
    };
    let (hosts, addresses, ports) = (list(hosts), list(addresses), list(ports));
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return Err(bad("host and hostaddr name different numbers of servers"));
    }
    let count = hosts.len().max(addresses.len()).max(1);
    if ports.len() > 1 && ports.len() != count {
        return Err(bad("port names another number of servers than host"));
    }
    let mut targets = Vec::with_capacity(count);
    for i in 0..count {
        let port = match ports.get(i).or(if ports.len() == 1 {
            ports.first()
        } else {
            None
        }) {
            Some(port) if !port.is_empty() => port
                .parse::<u16>()
                .ok()
                .filter(|p| *p != 0)
                .ok_or_else(|| bad("a port is not a number from 1 to 65535"))?,
            _ => 5432,
        };
        let host = hosts
            .get(i)
            .map(String::as_str)
            .filter(|h| !h.is_empty())
            .unwrap_or(if addresses.is_empty() {
                "localhost"
            } else {
                ""
            });
        let mut config = base.clone();
        config.port(port);
        let unix = host.starts_with('/');
        let label = if unix {
            config.host_path(host);
            format!("{host}/.s.PGSQL.{port}")
        } else if host.contains(':') {
            config.host(host);
            format!("[{host}]:{port}")
        } else {
            // An address without a name is one: without either there would be no TLS.
            let host = if host.is_empty() { &addresses[i] } else { host };
            config.host(host);
            match host.contains(':') {
                true => format!("[{host}]:{port}"),
                false => format!("{host}:{port}"),
            }
        };
        if let Some(address) = addresses.get(i).filter(|a| !a.is_empty() && !unix) {
            config.hostaddr(
                address
                    .parse()
                    .map_err(|_| bad("hostaddr is not an IP address"))?,
            );
        }
        targets.push(Target {
            label,
            config,
            unix,
        });
    }
    Ok(targets)
}

fn number(name: &str, value: &str) -> Result<u64> {
    value
        .trim()
        .parse()
        .map_err(|_| bad(format!("{name} must be a whole number, not negative")))
}

#[cfg(test)]
mod tests {
    use super::*;
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
        // A password with an @ in it, written plainly: the last @ separates.
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
        assert!(
            parse("postgres://u@h/d?target_session_attrs=prefer-standby")
                .unwrap()
                .prefer_standby
        );
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
}
