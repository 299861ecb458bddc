//! Postgres URLs as libpq reads them (also `keyword=value` strings, which the Go plugin accepted).
//!
//! Messages name the part that is wrong and never repeat a value that could hold a secret.
//!
//! `tokio_postgres::Config` could parse about a dozen of these parameters from a text, but it reads
//! `tcp_user_timeout` as seconds (libpq: milliseconds), does not know `standby`, `verify-full` or
//! lib/pq's names, and its errors do not say which values a parameter takes. So this module calls
//! the setters of `Config`: to write the rest as a text for its parser would take more lines than
//! the `match` of each parameter.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::config::{ChannelBinding, LoadBalanceHosts, SslNegotiation};
use tokio_postgres::Config;

use super::params::{bad, hide, pass_on, split_keywords, split_url, Params};
use crate::error::{Error, Result};

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

/// libpq's `target_session_attrs`: the kind of session that is looked for among the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Session {
    Any,
    /// Transactions may write by default, and the server is no standby.
    ReadWrite,
    /// Transactions may not write by default, or the server is a standby.
    ReadOnly,
    Primary,
    Standby,
    /// A standby; without one, any server.
    PreferStandby,
    /// Not of libpq: a server that takes writes; without one, a primary (to which this role may
    /// only send reads).
    PreferWritable,
}

impl Session {
    /// The kinds to look for, one after another, each at every host.
    pub(super) fn kinds(self) -> &'static [Session] {
        match self {
            Session::Any => &[Session::Any],
            Session::ReadWrite => &[Session::ReadWrite],
            Session::ReadOnly => &[Session::ReadOnly],
            Session::Primary => &[Session::Primary],
            Session::Standby => &[Session::Standby],
            Session::PreferStandby => &[Session::Standby, Session::Any],
            Session::PreferWritable => &[Session::ReadWrite, Session::Primary],
        }
    }

    /// As in a URL, for messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Session::Any => "any",
            Session::ReadWrite | Session::PreferWritable => "read-write",
            Session::ReadOnly => "read-only",
            Session::Primary => "primary",
            Session::Standby => "standby",
            Session::PreferStandby => "prefer-standby",
        }
    }
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
    pub session: Session,
    /// Whether there are parameters that only the server can check.
    passed_on: bool,
    pub user: String,
    pub dbname: String,
    /// The name of a parameter that may be a part of the password: `password=part name=value`,
    /// without quotes.
    doubtful: Option<String>,
}

impl Spec {
    /// The error without the name that may be a part of the password.
    pub(super) fn hide(&self, e: Error) -> Error {
        hide(self.doubtful.as_deref(), e)
    }
}

/// Parses the URL; nothing is looked up or opened.
pub(super) fn parse(url: &str) -> Result<Spec> {
    let url = url.trim();
    let (params, doubtful) = if let Some(rest) = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"))
    {
        let spec = split_url(rest).and_then(build);
        // The ? may belong to the user name or the password, and the text after it too.
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
    // A server that vanished silently is noticed within half a minute.
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
    let session = match attrs.as_deref() {
        None | Some("any") => Session::Any,
        Some("read-write") => Session::ReadWrite,
        Some("read-only") => Session::ReadOnly,
        Some("primary") => Session::Primary,
        Some("standby") => Session::Standby,
        Some("prefer-standby") => Session::PreferStandby,
        Some(_) => {
            return Err(bad(
                "target_session_attrs must be any, read-write, read-only, primary, standby or prefer-standby",
            ))
        }
    };
    match take("load_balance_hosts").as_deref() {
        None | Some("disable") => {}
        Some("random") => {
            base.load_balance_hosts(LoadBalanceHosts::Random);
        }
        Some(_) => return Err(bad("load_balance_hosts must be disable or random")),
    }
    // Accepted where they ask for the engine's own behaviour.
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

    // Kerberos' parameters: Kerberos is tried only if the server asks for it.
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
        session,
        passed_on,
        doubtful: None,
        user,
        dbname,
    })
}

/// Certificate and key of the client: the given files, or libpq's default files if they exist.
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
            // An address without a name serves as the host's name: without either there would be no
            // TLS.
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
mod tests;
