//! Maps Postgres errors to [`Error`], worded so that an operator knows how to react.

use std::error::Error as _;

use tokio_postgres::error::SqlState;

use crate::error::{Error, ErrorKind};

/// tokio-postgres' error type.
pub(super) type PgError = tokio_postgres::Error;

/// The text in the error of a statement that came too late; it is in the server's log too
/// ([`super::deadline`]).
pub(super) const LATE: &str = "walrusds: too late, its node has given it up";

/// Whether and how a failed statement is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// The connection is gone: try once more on a new one.
    Reconnect,
    /// The transaction lost against another one: try once more as it is.
    Again,
    /// A server behind this one (a worker of Citus) has gone, and the transaction failed: it may
    /// have taken effect there if that was at its commit. Try once more as it is.
    Worker,
    /// The statement was cancelled (the request may have been meant for its neighbour on the
    /// connection).
    Cancelled,
    /// The statement came too late, or the reading of the server's clock is wrong: try once more
    /// with a new reading.
    Late,
    /// Do not try again.
    No,
}

pub(super) fn retry(error: &PgError) -> Retry {
    let Some(code) = error.code() else {
        return if is_network(error) {
            Retry::Reconnect
        } else {
            Retry::No
        };
    };
    match code {
        c if *c == SqlState::QUERY_CANCELED => Retry::Cancelled,
        _ if is_late(error) => Retry::Late,
        _ if is_of_worker(error) => Retry::Worker,
        // The last is a transaction in which a statement has failed unseen: it was undone.
        c if *c == SqlState::T_R_SERIALIZATION_FAILURE
            || *c == SqlState::T_R_DEADLOCK_DETECTED
            || *c == SqlState::IN_FAILED_SQL_TRANSACTION =>
        {
            Retry::Again
        }
        c if *c == SqlState::ADMIN_SHUTDOWN
            || *c == SqlState::CRASH_SHUTDOWN
            || *c == SqlState::CANNOT_CONNECT_NOW
            || *c == SqlState::IDLE_SESSION_TIMEOUT
            || *c == SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT
            || *c == SqlState::READ_ONLY_SQL_TRANSACTION // after a failover, the new primary may answer
            || c.code().starts_with("08") =>
        {
            Retry::Reconnect
        }
        _ => Retry::No,
    }
}

fn is_late(error: &PgError) -> bool {
    error.as_db_error().is_some_and(|e| {
        *e.code() == SqlState::INVALID_TEXT_REPRESENTATION && e.message().contains(LATE)
    })
}

/// Texts of errors that Citus gives as internal ones when it has lost its connection to a worker:
/// its own, and those of its client library, which have no code.
const WORKER_LOST: [&str; 5] = [
    "failure on connection marked as essential",
    "server closed the connection unexpectedly",
    "no connection to the server",
    "could not receive data from server",
    "could not send data to server",
];

/// Whether the server lost its connection to a worker.
fn is_of_worker(error: &PgError) -> bool {
    error.as_db_error().is_some_and(|e| match e.code().code() {
        "XX000" => WORKER_LOST.iter().any(|text| e.message().contains(text)),
        "58030" => e.message().starts_with("failed to COPY to shard"),
        _ => false,
    })
}

fn is_network(error: &PgError) -> bool {
    error.is_closed() || io_source(error).is_some()
}

fn io_source(error: &PgError) -> Option<&std::io::Error> {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return Some(io);
        }
        source = cause.source();
    }
    None
}

/// Whether the server refused the kind of connection (encrypted or not) or the login.
pub(super) fn refused_login(error: &PgError) -> bool {
    error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
}

/// The error of a closed index. A closed index refuses calls before they get here; this is for a
/// call that raced with the close.
pub(super) fn closed() -> Error {
    Error::closed("the index")
}

/// The message with its causes.
pub(super) fn full(error: &PgError) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{} ({})", db.message(), db.code().code());
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The error for a connection to `label` that was not made.
pub(super) fn connecting(label: &str, user: &str, dbname: &str, error: &PgError) -> Error {
    let text = full(error);
    if let Some(db) = error.as_db_error() {
        let code = db.code();
        if *code == SqlState::INVALID_PASSWORD {
            return config(format!("{label}: wrong password for user {user:?}: {text}"));
        }
        if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION {
            return config(format!("{label}: login of user {user:?} refused: {text}"));
        }
        if *code == SqlState::INVALID_CATALOG_NAME {
            return config(format!("{label}: there is no database {dbname:?}: {text}"));
        }
        return told("connecting", error).context(label);
    }
    let lower = text.to_lowercase();
    if lower.contains("password missing") {
        return config(format!(
            "{label}: the server asks user {user:?} for a password and none is given"
        ));
    }
    if let Some(io) = io_source(error) {
        use std::io::ErrorKind as Io;
        let tls = io
            .get_ref()
            .is_some_and(|inner| inner.is::<rustls::Error>());
        if !tls {
            return match io.kind() {
                Io::ConnectionRefused => retryable(format!(
                    "{label}: connection refused (is the server running?)"
                )),
                Io::NotFound => retryable(format!(
                    "{label}: there is no such socket (is the server running?)"
                )),
                Io::TimedOut => {
                    retryable(format!("{label}: no connection within the time allowed"))
                }
                Io::PermissionDenied if !lower.contains("database") => {
                    config(format!("{label}: {text}"))
                }
                _ => retryable(format!("{label}: {text}")),
            };
        }
    }
    if lower.contains("tls") || lower.contains("certificate") {
        return config(format!("{label}: TLS failed: {text}"));
    }
    if lower.contains("invalid configuration") || lower.contains("authentication") {
        return config(format!("{label}: {text}"));
    }
    retryable(format!("{label}: {text}"))
}

/// The error for a server whose sessions are of another kind than the URL asks for.
pub(super) fn other_session(label: &str, wanted: &str) -> Error {
    let found = match wanted {
        "standby" | "read-only" => "takes writes",
        _ => "takes no writes (a standby?)",
    };
    retryable(format!(
        "{label}: the server {found}, and the node looks for one that is {wanted} (target_session_attrs)"
    ))
}

/// The error for a statement that failed.
pub(super) fn statement(what: &str, error: PgError) -> Error {
    told(what, &error).caused_by(error)
}

/// [`statement`] without its cause, for an error that stays where it is.
pub(super) fn told(what: &str, error: &PgError) -> Error {
    let text = full(error);
    let Some(db) = error.as_db_error() else {
        return if is_network(error) {
            retryable(format!("{what}: the connection broke: {text}"))
        } else {
            Error::new(
                ErrorKind::Index,
                format!("index in Postgres: {what}: {text}"),
            )
        };
    };
    let code = db.code();
    let class = code.code().get(..2).unwrap_or_default();
    if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        return config(format!("{what}: the role lacks a right: {text}"));
    }
    if *code == SqlState::INVALID_PASSWORD || *code == SqlState::INVALID_CATALOG_NAME {
        return config(format!("{what}: {text}"));
    }
    if *code == SqlState::INVALID_COLUMN_REFERENCE {
        return config(format!(
            "{what}: the table has no primary key or unique index on key: {text}"
        ));
    }
    if *code == SqlState::READ_ONLY_SQL_TRANSACTION {
        return retryable(format!(
            "{what}: the server is read-only (a standby? target_session_attrs=read-write finds the primary): {text}"
        ));
    }
    if is_late(error) {
        return retryable(format!(
            "{what}: the server came to it when it had been given up, and changed nothing (it stood still, or its clock was set)"
        ));
    }
    if retry(error) != Retry::No
        || class == "53"
        || class == "57"
        || *code == SqlState::LOCK_NOT_AVAILABLE
    {
        return retryable(format!("{what}: {text}"));
    }
    Error::new(
        ErrorKind::Index,
        format!("index in Postgres: {what}: {text}"),
    )
}

pub(super) fn timed_out(what: &str, limit: std::time::Duration) -> Error {
    retryable(format!(
        "{what}: no answer within {} s (timeout); the statement was cancelled",
        limit.as_secs_f32()
    ))
}

fn config(message: String) -> Error {
    Error::new(ErrorKind::Config, format!("index in Postgres: {message}"))
}

fn retryable(message: String) -> Error {
    Error::retryable(ErrorKind::Index, format!("index in Postgres: {message}"))
}
