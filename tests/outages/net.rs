//! A TCP proxy that can be cut: forwards connections to a port, or swallows the bytes.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// See the module. Dropped, it closes its port and every connection.
pub struct Wire {
    port: u16,
    dead: Arc<watch::Sender<bool>>,
    task: JoinHandle<()>,
}

impl Wire {
    pub async fn to(port: u16) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let dead = Arc::new(watch::Sender::new(false));
        let state = Arc::clone(&dead);
        let task = tokio::spawn(async move {
            // Dropped with the task: aborts every connection.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, port, state.subscribe()));
            }
        });
        Wire {
            port: address.port(),
            dead,
            task,
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// While dead, connections stand and are accepted, but no byte passes in either direction, as
    /// in a network that drops packets behind the first router.
    pub fn set_dead(&self, dead: bool) {
        self.dead.send_replace(dead);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(client: TcpStream, port: u16, mut dead: watch::Receiver<bool>) {
    if dead.wait_for(|dead| !dead).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::join!(
        forward(from_client, to_server, dead.clone()),
        forward(from_server, to_client, dead),
    );
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut dead: watch::Receiver<bool>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n) = from.read(&mut buffer).await {
        if n == 0 || dead.wait_for(|dead| !dead).await.is_err() {
            break;
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
