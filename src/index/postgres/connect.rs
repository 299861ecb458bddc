//! Opening connections: the hosts of the URL in turn, the attempts `sslmode` allows for each, all
//! within the connect timeout, and errors that name the host.

use std::future::Future;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio_postgres::{Config, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::{self, PgError};
use super::url::{self, Spec, SslMode};
use crate::error::{Error, ErrorKind, Result};

/// The connection a pipelined client runs on.
pub(super) type Connection = tokio_postgres::Connection<
    Socket,
    <MakeRustlsConnect as tokio_postgres::tls::MakeTlsConnect<Socket>>::Stream,
>;

/// Opens connections of one URL. Holds the password: no `Debug`.
#[derive(Clone)]
pub(super) struct Connector {
    spec: Spec,
    tls: MakeRustlsConnect,
    /// For one connection, all hosts together.
    timeout: Duration,
}

impl Connector {
    pub fn new(url: &str, timeout: Duration) -> Result<Connector> {
        let spec = url::parse(url)?;
        let tls = super::tls::connector(&spec)?;
        let timeout = spec.connect_timeout.unwrap_or(timeout);
        Ok(Connector { spec, tls, timeout })
    }

    /// For cancel requests.
    pub fn tls(&self) -> MakeRustlsConnect {
        self.tls.clone()
    }

    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A pipelined client and the connection that must be polled for it.
    pub async fn open(&self) -> Result<(tokio_postgres::Client, Connection)> {
        let attempts = self.try_all(|config| async move { config.connect(self.tls.clone()).await });
        match tokio::time::timeout(self.timeout, attempts).await {
            Ok(result) => result,
            Err(_) => Err(self.too_slow()),
        }
    }

    /// A blocking client. `Config::connect` knows no timeout beyond the TCP handshake, so it runs on
    /// a thread of its own, left behind if the server says nothing (TCP keepalives end it).
    pub fn open_blocking(&self) -> Result<postgres::Client> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let this = self.clone();
        std::thread::Builder::new()
            .name("walrusds-connect".into())
            .spawn(move || {
                let result = this
                    .try_all(|config| {
                        let tls = this.tls.clone();
                        std::future::ready(postgres::Config::from(config).connect(tls))
                    })
                    .now_or_never()
                    .unwrap_or_else(|| {
                        Err(Error::new(ErrorKind::Internal, "connecting did not finish"))
                    });
                let _ = sender.send(result);
            })
            .map_err(|e| {
                Error::retryable(
                    ErrorKind::Index,
                    format!("no thread to connect to Postgres: {e}"),
                )
            })?;
        match receiver.recv_timeout(self.timeout) {
            Ok(result) => result,
            Err(_) => Err(self.too_slow()),
        }
    }

    fn too_slow(&self) -> Error {
        let labels: Vec<_> = self.spec.targets.iter().map(|t| t.label.as_str()).collect();
        Error::retryable(
            ErrorKind::Index,
            format!(
                "index in Postgres: {}: no connection within {} s (timeout)",
                labels.join(", "),
                self.timeout.as_secs_f32()
            ),
        )
    }

    async fn try_all<C, F, Fut>(&self, mut connect: F) -> Result<C>
    where
        F: FnMut(Config) -> Fut,
        Fut: Future<Output = std::result::Result<C, PgError>>,
    {
        use tokio_postgres::config::SslMode as Tls;
        let count = self.spec.targets.len();
        // One silent host must leave time for the next.
        let share = self.timeout / u32::try_from(count).unwrap_or(1);
        let started = Instant::now();
        let mut errors: Vec<Error> = Vec::new();
        for target in &self.spec.targets {
            let modes: &[Tls] = match self.spec.ssl_mode {
                _ if target.unix => &[Tls::Disable],
                SslMode::Disable => &[Tls::Disable],
                SslMode::Allow => &[Tls::Disable, Tls::Require],
                SslMode::Prefer => &[Tls::Prefer, Tls::Disable],
                SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Tls::Require],
            };
            let mut first_error = None;
            for mode in modes {
                let left = self.timeout.saturating_sub(started.elapsed());
                if left.is_zero() {
                    break;
                }
                let mut config = target.config.clone();
                config.ssl_mode(*mode);
                config.connect_timeout(share.min(left).max(Duration::from_millis(100)));
                match connect(config).await {
                    Ok(connected) => return Ok(connected),
                    Err(e) => {
                        // As libpq: the other mode is tried when the server refused this one (a
                        // pg_hba rule) or, with `prefer`, when TLS itself failed.
                        let other = error::refused_login(&e)
                            || (*mode == Tls::Prefer
                                && e.as_db_error().is_none()
                                && error::full(&e).contains("TLS"));
                        let said = error::connecting(
                            &target.label,
                            &self.spec.user,
                            &self.spec.dbname,
                            &e,
                        );
                        first_error.get_or_insert(said);
                        if !other {
                            break;
                        }
                    }
                }
            }
            errors.extend(first_error);
        }
        Err(merge(errors).unwrap_or_else(|| self.too_slow()))
    }
}

/// One error for all hosts: retryable if any of them is.
fn merge(mut errors: Vec<Error>) -> Option<Error> {
    if errors.len() <= 1 {
        return errors.pop();
    }
    let text: Vec<_> = errors
        .iter()
        .map(|e| {
            e.message()
                .trim_start_matches("index in Postgres: ")
                .to_owned()
        })
        .collect();
    let message = format!(
        "index in Postgres: no host could be used: {}",
        text.join("; ")
    );
    let (kind, retryable) = match errors.iter().find(|e| e.is_retryable()) {
        Some(e) => (e.kind(), true),
        None => (errors[0].kind(), false),
    };
    Some(if retryable {
        Error::retryable(kind, message)
    } else {
        Error::new(kind, message)
    })
}
