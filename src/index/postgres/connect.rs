//! Opens connections: to the hosts of the URL in turn, with the attempts that `sslmode` allows for
//! each, all within the connect timeout, and with errors that name the host. Also detects that the
//! server has moved to another of the hosts while a connection to the former host stays silent.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::select_ok;
use parking_lot::Mutex;
use tokio::time::{timeout, Instant};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{CancelToken, Client, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::url::{self, Spec, SslMode, Target};
use super::{error, passfile};
use crate::error::{Error, ErrorKind, Result};

/// For this long a host that did not answer is asked after the others.
const SILENT_FOR: Duration = Duration::from_secs(30);
/// How long a statement may go unanswered before its host is suspected to be gone. (Most likely the
/// statement waits for a lock: the check finds that out and leaves it alone.)
const SUSPECT_AFTER: Duration = Duration::from_secs(3);
/// How long a suspected host has to accept a new connection.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// The connection a client runs on.
pub(super) type Connection = tokio_postgres::Connection<
    Socket,
    <MakeRustlsConnect as tokio_postgres::tls::MakeTlsConnect<Socket>>::Stream,
>;

/// A new connection, with its client.
pub(super) struct Opened {
    pub client: Client,
    /// The client works only while this is polled.
    pub connection: Connection,
    /// The index of its host in the URL.
    pub host: usize,
}

/// Opens connections of one URL. It has no `Debug` because it holds the password.
pub(super) struct Connector {
    spec: Spec,
    tls: MakeRustlsConnect,
    /// Time for one connection, all hosts together.
    timeout: Duration,
    /// For each host, the time until which it is asked after the others.
    silent: Mutex<Vec<Option<Instant>>>,
    /// The host of the latest connection.
    home: AtomicUsize,
    /// The latest check for a server that may have moved: the host it left, the time of the check,
    /// and whether it had moved.
    looked: tokio::sync::Mutex<Option<(usize, Instant, bool)>>,
    /// Notices for the log.
    notices: Mutex<Vec<String>>,
    /// The hosts whose latest connection is not encrypted although they offer TLS. Each is reported
    /// once.
    downgraded: Mutex<HashSet<usize>>,
}

/// The reason why a host gave no connection.
enum Refusal {
    Said(Error),
    Silent,
}

impl Connector {
    pub fn new(url: &str, timeout: Duration) -> Result<Connector> {
        let mut spec = url::parse(url)?;
        let notices = passfile::fill(&mut spec).into_iter().collect();
        let tls = super::tls::connector(&spec)?;
        Ok(Connector {
            tls,
            timeout: spec.connect_timeout.unwrap_or(timeout),
            silent: Mutex::new(vec![None; spec.targets.len()]),
            home: AtomicUsize::new(0),
            looked: tokio::sync::Mutex::new(None),
            notices: Mutex::new(notices),
            downgraded: Mutex::default(),
            spec,
        })
    }

    /// Asks the server to cancel the statement that runs on a connection to `host`.
    pub async fn cancel(&self, token: CancelToken, host: usize) {
        super::cancel::cancel(token, &self.spec.targets[host], self.tls.clone()).await;
    }

    /// The ports that the URL names.
    pub fn ports(&self) -> Vec<u16> {
        let targets = self.spec.targets.iter().filter(|target| !target.unix);
        let ports = targets.map(|target| target.config.get_ports().first().copied());
        ports.map(|port| port.unwrap_or(5432)).collect()
    }

    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The host that took the latest connection.
    pub fn home(&self) -> usize {
        self.home.load(Ordering::Relaxed)
    }

    /// Adds a notice for the operator's log.
    pub fn notify(&self, notice: String) {
        self.notices.lock().push(notice);
    }

    /// A notice about the connections for the operator's log; each notice is returned once.
    pub fn take_notice(&self) -> Option<String> {
        self.notices.lock().pop()
    }

    /// Opens a connection to the first host that accepts one.
    pub async fn open(&self) -> Result<Opened> {
        let started = Instant::now();
        let hosts = self.order();
        // `prefer-standby` as in libpq: every host is asked for a standby first.
        let standbys = hosts.iter().filter(|_| self.spec.prefer_standby);
        let order = standbys.map(|&host| (host, true));
        let order: Vec<_> = order
            .chain(hosts.iter().map(|&host| (host, false)))
            .collect();
        let mut errors = Vec::new();
        for (tried, &(host, standby)) in order.iter().enumerate() {
            let left = self.timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                break;
            }
            // A silent host must leave time for the next.
            let share = left / u32::try_from(order.len() - tried).unwrap_or(1);
            match timeout(share, self.try_host(host, standby)).await {
                Ok(Ok(opened)) => {
                    self.home.store(host, Ordering::Relaxed);
                    return Ok(opened);
                }
                Ok(Err(Refusal::Said(e))) => errors.push(e),
                Ok(Err(Refusal::Silent)) | Err(_) => {
                    self.keeps_silent(host);
                    errors.push(self.too_slow(host, share));
                }
            }
        }
        Err(merge(errors).unwrap_or_else(|| self.too_slow(0, self.timeout)))
    }

    /// Returns when the server has moved away from `host`, to which a statement was sent just now:
    /// `host` accepts no connection any more and another host does. Unanswered statements alone are
    /// no sign of that, and a server with one host cannot move.
    pub async fn moved_from(&self, host: usize) {
        if self.spec.targets.len() < 2 {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(SUSPECT_AFTER).await;
            // One check serves every task that waits for the lock.
            let mut looked = self.looked.lock().await;
            let known = looked.filter(|(from, at, _)| *from == host && at.elapsed() < LOOK_LIMIT);
            let moved = match known {
                Some((.., moved)) => moved,
                None => self.look_beyond(host).await,
            };
            *looked = Some((host, Instant::now(), moved));
            if moved {
                return;
            }
        }
    }

    async fn look_beyond(&self, host: usize) -> bool {
        let others = (0..self.spec.targets.len()).filter(|other| *other != host);
        let others = others.map(|other| Box::pin(self.try_host(other, false)));
        let (own, other) = tokio::join!(
            timeout(LOOK_LIMIT, self.try_host(host, false)),
            timeout(LOOK_LIMIT, select_ok(others)),
        );
        if matches!(own, Ok(Ok(_))) {
            return false;
        }
        let Ok(Ok((other, _))) = other else {
            return false;
        };
        if matches!(own, Err(_) | Ok(Err(Refusal::Silent))) {
            self.keeps_silent(host);
        }
        self.home.store(other.host, Ordering::Relaxed);
        true
    }

    fn keeps_silent(&self, host: usize) {
        self.silent.lock()[host] = Some(Instant::now() + SILENT_FOR);
    }

    /// The hosts in the order of the URL, except that hosts which were silent lately come last.
    fn order(&self) -> Vec<usize> {
        let now = Instant::now();
        let silent = self.silent.lock();
        let mut order: Vec<usize> = (0..silent.len()).collect();
        order.sort_by_key(|host| silent[*host].is_some_and(|until| until > now));
        order
    }

    fn too_slow(&self, host: usize, limit: Duration) -> Error {
        Error::retryable(
            ErrorKind::Index,
            format!(
                "index in Postgres: {}: no connection within {:.1} s (timeout)",
                self.spec.targets[host].label,
                limit.as_secs_f32()
            ),
        )
    }

    async fn try_host(&self, host: usize, standby: bool) -> std::result::Result<Opened, Refusal> {
        use tokio_postgres::config::SslMode as Tls;
        let target: &Target = &self.spec.targets[host];
        let modes: &[Tls] = match self.spec.ssl_mode {
            _ if target.unix => &[Tls::Disable],
            SslMode::Disable => &[Tls::Disable],
            SslMode::Allow => &[Tls::Disable, Tls::Require],
            SslMode::Prefer => &[Tls::Prefer, Tls::Disable],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Tls::Require],
        };
        let mut first_error = None;
        for mode in modes {
            let mut config = target.config.clone();
            config.ssl_mode(*mode);
            if standby {
                config.target_session_attrs(TargetSessionAttrs::ReadOnly);
            }
            config.connect_timeout(self.timeout);
            match config.connect(self.tls.clone()).await {
                Ok((client, connection)) => {
                    self.silent.lock()[host] = None;
                    if self.spec.ssl_mode == SslMode::Prefer {
                        self.note_downgrade(host, first_error.as_ref());
                    }
                    return Ok(Opened {
                        client,
                        connection,
                        host,
                    });
                }
                Err(e) => {
                    // As in libpq: the other mode is tried when the server refused this one (a
                    // pg_hba rule) or, with `prefer`, when TLS itself failed.
                    let other = error::refused_login(&e)
                        || (*mode == Tls::Prefer
                            && e.as_db_error().is_none()
                            && error::full(&e).contains("TLS"));
                    let said =
                        error::connecting(&target.label, &self.spec.user, &self.spec.dbname, &e);
                    let said = self.spec.hide(said);
                    first_error.get_or_insert(said);
                    if !other {
                        break;
                    }
                }
            }
        }
        Err(first_error.map_or(Refusal::Silent, Refusal::Said))
    }
}

impl Connector {
    /// Notes that a connection to `host` was made after TLS had failed, if it was.
    fn note_downgrade(&self, host: usize, failure: Option<&Error>) {
        let Some(why) = failure else {
            self.downgraded.lock().remove(&host);
            return;
        };
        if self.downgraded.lock().insert(host) {
            self.notices.lock().push(format!(
                "sslmode=prefer: the connection to {} is not encrypted, since the attempt with TLS failed: {}. Set \
                 sslmode=require or stricter to refuse that",
                self.spec.targets[host].label,
                why.message()
            ));
        }
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
