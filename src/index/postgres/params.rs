//! The parameters of a Postgres URL, or of a `keyword=value` string, by name.
//!
//! Parameters of libpq and lib/pq themselves stay parameters of their own; every other name is one
//! of the server's run-time parameters, and becomes a part of `options`.

use std::collections::BTreeMap;

use crate::error::{Error, ErrorKind, Result};

pub(super) fn hide(doubtful: Option<&str>, e: Error) -> Error {
    const INSTEAD: &str =
        "\"…\" (it follows an unquoted password, which may have a blank: password='…')";
    match doubtful {
        Some(name) => e.replace(&format!("{name:?}"), INSTEAD),
        None => e,
    }
}

pub(super) fn bad(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Config, format!("postgresURL: {what}"))
}

/// Parameters in the order of precedence: a later one replaces an earlier one.
pub(super) type Params = BTreeMap<String, String>;

pub(super) fn split_url(rest: &str) -> Result<Params> {
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
        // The text before the / would be taken for a host, and be printed.
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
        // A published example of the Go plugin has a blank after the ?.
        let name = decode("the name of a parameter", name)?.trim().to_owned();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if !name.chars().all(plain) {
            return Err(bad(
                "what stands after ? is no name of a parameter (a ? in the user name or the password is written as %3F)",
            ));
        }
        // A + is read as a blank, as lib/pq does. libpq does not, but it knows no run-time
        // parameters in this place, and a + means nothing to the server in options.
        let value = match name == "options" || !is_known(&name) {
            true => value.replace('+', " "),
            false => value.to_owned(),
        };
        let value = decode(&format!("parameter {name:?}"), &value)?;
        // An empty value counts as not given.
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

/// Splits a `keyword=value` string into its parameters. Also returns the name of a parameter that
/// may be a part of the password.
pub(super) fn split_keywords(text: &str) -> Result<(Params, Option<String>)> {
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

/// The parameters of libpq and lib/pq; every other one counts as a run-time parameter of the
/// server, as in lib/pq.
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

/// Whether libpq or lib/pq has the parameter for itself. A misspelt parameter about TLS must not be
/// passed to the server.
fn is_known(name: &str) -> bool {
    KNOWN.contains(&name) || name.starts_with("ssl")
}

/// Moves the server's run-time parameters (`search_path`, `statement_timeout`, …) into `options`;
/// returns whether there were any.
pub(super) fn pass_on(params: &mut Params) -> Result<bool> {
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
