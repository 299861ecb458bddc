//! Opens connections: to the hosts of the URL in turn, with the attempts that `sslmode` allows for
//! each, all within the connect timeout, and with errors that name the host. Also detects that the
//! server has moved to another of the hosts while a connection to the former host stays silent.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::select_ok;
use parking_lot::Mutex;
use tokio::time::{timeout, Instant};
use tokio_postgres::{CancelToken, Client, SimpleQueryMessage, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::{self, PgError};
use super::passfile;
use super::url::{self, Session, Spec, SslMode, Target};
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
    /// Whether standbys are left out although the URL allows any server.
    no_standbys: AtomicBool,
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
        let timeout = spec.connect_timeout.unwrap_or(timeout);
        Ok(Connector::of(spec, tls, timeout, notices))
    }

    fn of(
        spec: Spec,
        tls: MakeRustlsConnect,
        timeout: Duration,
        notices: Vec<String>,
    ) -> Connector {
        Connector {
            tls,
            timeout,
            silent: Mutex::new(vec![None; spec.targets.len()]),
            home: AtomicUsize::new(0),
            no_standbys: AtomicBool::new(false),
            looked: tokio::sync::Mutex::new(None),
            notices: Mutex::new(notices),
            downgraded: Mutex::default(),
            spec,
        }
    }

    /// The kind of session that is looked for.
    pub fn session(&self) -> Session {
        self.spec.session
    }

    /// Leaves standbys out from now on, where the URL allows any server. While the primary
    /// restarts, a standby would take its place, and keep it: what it does not know yet would
    /// decide about writes.
    pub fn leave_standbys_out(&self) {
        self.no_standbys.store(true, Ordering::Relaxed);
    }

    /// The kinds of session to look for, one after another.
    fn kinds(&self) -> &'static [Session] {
        match self.spec.session {
            Session::Any if self.no_standbys.load(Ordering::Relaxed) => {
                Session::PreferWritable.kinds()
            }
            session => session.kinds(),
        }
    }

    /// This connector, looking for another kind of session.
    pub fn with_session(mut self, session: Session) -> Connector {
        self.spec.session = session;
        self
    }

    /// A connector of the same URL that looks for another kind of session.
    pub fn looking_for(&self, session: Session) -> Connector {
        let mut spec = self.spec.clone();
        spec.session = session;
        Connector::of(spec, self.tls.clone(), self.timeout, Vec::new())
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
        // As in libpq: every host is asked for one kind of session before any is asked for the
        // next.
        let kinds = self.kinds().iter();
        let order = kinds.flat_map(|&kind| hosts.iter().map(move |&host| (host, kind)));
        let order: Vec<_> = order.collect();
        let mut errors = Vec::new();
        for (tried, &(host, kind)) in order.iter().enumerate() {
            let left = self.timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                break;
            }
            // A silent host must leave time for the next.
            let share = left / u32::try_from(order.len() - tried).unwrap_or(1);
            match timeout(share, self.try_host(host, kind)).await {
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
        let kind = self.kinds().last().copied().unwrap_or(Session::Any);
        let others = others.map(|other| Box::pin(self.try_host(other, kind)));
        let (own, other) = tokio::join!(
            timeout(LOOK_LIMIT, self.try_host(host, kind)),
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

    async fn try_host(&self, host: usize, kind: Session) -> std::result::Result<Opened, Refusal> {
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
            config.connect_timeout(self.timeout);
            let connected = match config.connect(self.tls.clone()).await {
                Ok((client, mut connection)) => is_of(kind, &client, &mut connection)
                    .await
                    .map(|fits| (client, connection, fits)),
                Err(e) => Err(e),
            };
            match connected {
                Ok((.., false)) => {
                    self.silent.lock()[host] = None;
                    return Err(Refusal::Said(error::other_session(
                        &target.label,
                        kind.name(),
                    )));
                }
                Ok((client, connection, true)) => {
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

/// Whether a session is of a kind, as libpq decides it: by what the server reports at login
/// (PostgreSQL 14 and later), else by asking it.
async fn is_of(
    kind: Session,
    client: &Client,
    connection: &mut Connection,
) -> std::result::Result<bool, PgError> {
    let standby = connection.parameter("in_hot_standby").map(|v| v == "on");
    let by_default = connection.parameter("default_transaction_read_only");
    let by_default = by_default.map(|v| v == "on");
    let (reported, question, wanted) = match kind {
        Session::Any | Session::PreferStandby => return Ok(true),
        Session::Primary | Session::Standby => (
            standby,
            "SELECT pg_is_in_recovery()",
            kind == Session::Standby,
        ),
        Session::ReadOnly | Session::ReadWrite | Session::PreferWritable => (
            standby.zip(by_default).map(|(a, b)| a || b),
            "SHOW transaction_read_only",
            kind == Session::ReadOnly,
        ),
    };
    if let Some(reported) = reported {
        return Ok(reported == wanted);
    }
    let rows = tokio::select! {
        rows = client.simple_query(question) => rows?,
        // The connection serves its client only while it is polled.
        ended = connection => return ended.map(|()| false),
    };
    let told = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(matches!(told, Some("t" | "on")) == wanted)
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
