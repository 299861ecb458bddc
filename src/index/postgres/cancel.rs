//! Cancel requests, sent as libpq sends them: the connection stays open until the server closes it.
//!
//! tokio-postgres hangs up as soon as the request is written. A server does not mind, but pgbouncer
//! up to 1.19 ends with a fatal error when the client of a cancel request leaves before the request
//! is passed on (<https://github.com/pgbouncer/pgbouncer/pull/846>): one node that gives up calls
//! under load would take the pooler away from all nodes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::Host;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::CancelToken;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::url::Target;

/// How long the server has to close the connection of a cancel request.
const CLOSED_WITHIN: Duration = Duration::from_secs(30);

/// Asks the server to cancel the statement that runs on a connection to `target`; returns when the
/// request is sent. A request that cannot be sent does no harm: the statement ends by its own
/// timeout. (Where a name stands for several addresses the request may reach another server, which
/// ignores it.)
pub(super) async fn cancel(token: CancelToken, target: &Target, mut tls: MakeRustlsConnect) {
    let Some((stream, name)) = connect(target).await else {
        return;
    };
    let mut stream = Kept(Arc::new(Mutex::new(stream)));
    let Ok(tls) = MakeTlsConnect::<Kept>::make_tls_connect(&mut tls, &name);
    let sent = token.cancel_query_raw(stream.clone(), tls).await;
    if sent.is_err() {
        return;
    }
    tokio::spawn(async move {
        let closed = async {
            let mut rest = [0; 256];
            while stream.read(&mut rest).await.is_ok_and(|n| n > 0) {}
        };
        let _ = tokio::time::timeout(CLOSED_WITHIN, closed).await;
    });
}

async fn connect(target: &Target) -> Option<(Box<dyn Stream>, String)> {
    let port = target.config.get_ports().first().copied().unwrap_or(5432);
    let host = target.config.get_hosts().first();
    let address = target.config.get_hostaddrs().first();
    if let Some(Host::Unix(dir)) = host {
        let socket = UnixStream::connect(dir.join(format!(".s.PGSQL.{port}")));
        return Some((Box::new(socket.await.ok()?), String::new()));
    }
    let name = match host {
        Some(Host::Tcp(name)) => name.clone(),
        _ => String::new(),
    };
    let stream = match address {
        Some(address) => TcpStream::connect((*address, port)).await,
        None => TcpStream::connect((name.as_str(), port)).await,
    };
    Some((Box::new(stream.ok()?), name))
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A stream on which shutting down only flushes, so that the writer of the request does not close
/// it.
#[derive(Clone)]
struct Kept(Arc<Mutex<Box<dyn Stream>>>);

impl AsyncRead for Kept {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_read(cx, buf)
    }
}

impl AsyncWrite for Kept {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock()).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
