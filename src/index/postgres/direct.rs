//! Finds out whether a connection ends at the server itself or at a pooler in between.
//!
//! At login a server gives its process ID, for cancel requests. A pooler cannot pass on one
//! server's ID (its client is served by many) and invents one. So if the ID from the login equals
//! `pg_backend_pid()`, the connection ends at the server. A wrong "pooler" only costs speed; a
//! wrong "server" would need a pooler that guesses 32 bits.

use std::future::{ready, Ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::types::Type;
use tokio_postgres::Client;

use super::error::PgError;

const CANCEL_REQUEST: i32 = 80_877_102;
const SSL_REQUEST: i32 = 80_877_103;

/// Asks (one round trip).
pub(super) async fn is_direct(client: &Client) -> Result<bool, PgError> {
    let none: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)] = &[];
    let asked = client.query_typed("SELECT pg_backend_pid()", none);
    let (told, asked) = tokio::join!(told_pid(client), asked);
    let asked: Option<i32> = asked?.first().map(|row| row.try_get(0)).transpose()?;
    Ok(asked.is_some() && told == asked)
}

/// The process ID given at login. tokio-postgres does not expose it, but writes it into cancel
/// requests: one is written into a pipe within this process.
async fn told_pid(client: &Client) -> Option<i32> {
    let (writer, mut reader) = tokio::io::duplex(64);
    let token = client.cancel_token();
    let (_, pid) = tokio::join!(token.cancel_query_raw(writer, NoCrypt), async move {
        loop {
            let _length = reader.read_i32().await.ok()?;
            match reader.read_i32().await.ok()? {
                SSL_REQUEST => reader.write_u8(b'S').await.ok()?,
                CANCEL_REQUEST => return reader.read_i32().await.ok(),
                _ => return None,
            }
        }
    });
    pid
}

/// Stands in for TLS where `sslmode` requires it: passes every byte on unchanged, in memory.
struct NoCrypt;

struct Plain(DuplexStream);

impl TlsConnect<DuplexStream> for NoCrypt {
    type Stream = Plain;
    type Error = io::Error;
    type Future = Ready<io::Result<Plain>>;

    fn connect(self, stream: DuplexStream) -> Self::Future {
        ready(Ok(Plain(stream)))
    }
}

impl TlsStream for Plain {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Plain {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Plain {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
