//! The figures of a running node: Kubo's own metrics, from the API address that the node has
//! written into its repo. Nothing is asked of any other machine than the one that address names.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A node on this machine answers in milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most that is read: Kubo's metrics are some 100 KiB.
const MOST: u64 = 16 << 20;
const PREFIX: &str = "walrusds_";

/// A running node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Node {
    /// Its API address.
    pub api: String,
    /// Its metrics of walrusds by name and labels, without the buckets of histograms.
    pub metrics: BTreeMap<String, f64>,
}

/// The node whose repo this is, if it runs; else the reason why nothing is known of it.
pub async fn find(repo: &Path) -> Result<Node, String> {
    let file = repo.join("api");
    let address = match std::fs::read_to_string(&file) {
        Ok(address) => address.trim().to_owned(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err("not running".to_owned()),
        Err(e) => return Err(format!("{}: {e}", file.display())),
    };
    let Some(host) = host_of(&address) else {
        return Err(format!(
            "its API address, {address}, is not understood here"
        ));
    };
    let text = match tokio::time::timeout(PATIENCE, ask(&host)).await {
        Ok(Ok(text)) => text,
        Ok(Err(e)) => return Err(format!("not running (its API, {host}: {e})")),
        Err(_) => return Err(format!("its API, {host}, does not answer")),
    };
    Ok(Node {
        metrics: metrics(&text)?,
        api: host,
    })
}

/// Host and port of `/ip4/127.0.0.1/tcp/5001`.
fn host_of(address: &str) -> Option<String> {
    let parts: Vec<&str> = address.split('/').collect();
    match parts.as_slice() {
        ["", "ip4" | "dns" | "dns4", host, "tcp", port, ..] => Some(format!("{host}:{port}")),
        ["", "ip6" | "dns6", host, "tcp", port, ..] => Some(format!("[{host}]:{port}")),
        _ => None,
    }
}

/// HTTP/1.0, so that the answer ends with the connection.
async fn ask(host: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(host).await?;
    let request = format!("GET /debug/metrics/prometheus HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn metrics(answer: &str) -> Result<BTreeMap<String, f64>, String> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        let shown: String = status.chars().take(80).collect();
        return Err(format!("its API answers {shown:?} instead of metrics"));
    }
    let ours = body.lines().filter(|line| line.starts_with(PREFIX));
    let read = ours.filter_map(|line| {
        // A label may hold a blank; a value and a time do not.
        let end = line.rfind('}').map_or(0, |at| at + 1);
        let at = end + line[end..].find(' ')?;
        let value = line[at..].split_whitespace().next()?.parse().ok()?;
        (!line[..at].contains("_bucket{")).then(|| (line[..at].to_owned(), value))
    });
    Ok(read.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_an_api() {
        let host = |address| host_of(address);
        assert_eq!(
            host("/ip4/127.0.0.1/tcp/5001"),
            Some("127.0.0.1:5001".into())
        );
        assert_eq!(host("/ip6/::1/tcp/5001/http"), Some("[::1]:5001".into()));
        assert_eq!(host("/unix/run/ipfs.sock"), None);
        assert_eq!(host(""), None);
    }

    #[test]
    fn metrics_of_walrusds_are_picked() {
        let answer = "HTTP/1.0 200 OK\r\nX: y\r\n\r\n# HELP walrusds_gets blocks\ngo_threads 5\nwalrusds_gets 7\n\
                      walrusds_puts{host=\"a b\"} 1.5\nwalrusds_x_bucket{le=\"1\"} 3\n";
        let found = metrics(answer).unwrap();
        let expected = [("walrusds_gets", 7.0), ("walrusds_puts{host=\"a b\"}", 1.5)];
        let expected = expected.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(found, BTreeMap::from(expected));
        assert!(metrics("HTTP/1.0 404 Not Found\r\n\r\n")
            .unwrap_err()
            .contains("404"));
        assert!(metrics("").is_err());
    }

    #[tokio::test]
    async fn a_repo_without_a_running_node_says_so() {
        let repo = tempfile::tempdir().unwrap();
        assert_eq!(find(repo.path()).await.unwrap_err(), "not running");
        // A port that is free again: a node that was killed leaves its address behind.
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let address = format!("/ip4/127.0.0.1/tcp/{port}");
        std::fs::write(repo.path().join("api"), address).unwrap();
        let why = find(repo.path()).await.unwrap_err();
        assert!(why.starts_with("not running ("), "{why}");
    }
}
