//! An HTTP/1.1 server that misbehaves on demand: every request is answered by a script, down to the
//! byte, the pause and the way the connection ends.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request as the server saw it.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Counts all requests of this server, from 0.
    pub number: usize,
    pub method: String,
    /// Path and query.
    pub target: String,
    pub headers: Vec<(String, String)>,
    /// The body, as far as it was read.
    pub body: Vec<u8>,
    /// Counts connections, from 0.
    pub connection: usize,
}

impl Seen {
    /// A header's value; the name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(n, _)| n == name);
        let value = found.next().map(|(_, v)| v.as_str());
        assert!(found.next().is_none(), "two {name} headers");
        value
    }

    /// First and last byte asked for with a Range header.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// The server's action on a request.
pub enum Act {
    /// Reads the body, writes this, keeps the connection.
    Say(Vec<u8>),
    /// Reads the body, writes this, closes.
    SayAndClose(Vec<u8>),
    /// Writes this without reading the body, then closes at once (which resets the connection if
    /// the client is still sending).
    SayEarly(Vec<u8>),
    /// Reads the body and never answers.
    Hang,
    /// Reads the body and writes this answer, its body one byte at a time with a pause.
    Drip(Vec<u8>, Duration),
    /// Reads the body at this many bytes per pause, then writes.
    ReadSlowly(usize, Duration, Vec<u8>),
    /// Reads this many bytes of the body, then resets the connection.
    ResetAfter(usize),
    /// Reads the body and closes without an answer.
    Close,
}

/// The running server; it stops when dropped.
pub struct Hostile {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    open: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Script = Arc<dyn Fn(&Seen) -> Act + Send + Sync>;

impl Hostile {
    /// Starts a server whose script decides when it has read a request's head.
    pub async fn start(script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Hostile {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let open = Arc::new(AtomicUsize::new(0));
        let script: Script = Arc::new(script);
        let task = tokio::spawn({
            let (seen, open) = (seen.clone(), open.clone());
            async move {
                let counter = Arc::new(AtomicUsize::new(0));
                for connection in 0.. {
                    let Ok((stream, _)) = listener.accept().await else {
                        return;
                    };
                    open.fetch_add(1, Ordering::SeqCst);
                    let (seen, open) = (seen.clone(), open.clone());
                    let (script, counter) = (script.clone(), counter.clone());
                    tokio::spawn(async move {
                        let _ = serve(stream, connection, &counter, &seen, &script).await;
                        open.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            }
        });
        Hostile {
            port,
            seen,
            open,
            task,
        }
    }

    /// A server that gives the same answer to everything.
    pub async fn always(answer: Vec<u8>) -> Hostile {
        Hostile::start(move |_| Act::Say(answer.clone())).await
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The requests so far, in the order in which their bodies were read.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    pub fn count(&self) -> usize {
        self.seen.lock().len()
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

async fn serve(
    mut stream: TcpStream,
    connection: usize,
    counter: &AtomicUsize,
    seen: &Mutex<Vec<Seen>>,
    script: &Script,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let head_end = loop {
            if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            // The client speaks TLS: answered as stock servers do.
            if buffer[0] == 0x16 {
                let answer = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n";
                stream.write_all(answer).await?;
                return stream.shutdown().await;
            }
        };
        let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
        buffer.drain(..head_end);
        let mut lines = head.split("\r\n");
        let mut first = lines.next().unwrap_or("").split(' ').map(String::from);
        let mut request = Seen {
            number: counter.fetch_add(1, Ordering::SeqCst),
            method: first.next().unwrap_or_default(),
            target: first.next().unwrap_or_default(),
            headers: lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_string()))
                .collect(),
            body: Vec::new(),
            connection,
        };
        let act = script(&request);
        let len: usize = request
            .header("content-length")
            .map_or(0, |v| v.parse().unwrap());
        let (at_once, pause) = match &act {
            Act::ResetAfter(at) => (len.min(*at), None),
            Act::SayEarly(_) => (0, None),
            Act::ReadSlowly(step, pause, _) => (len, Some((*step, *pause))),
            _ => (len, None),
        };
        while buffer.len() < at_once {
            let mut step = vec![0; pause.map_or(64 << 10, |(step, _)| step)];
            let got = stream.read(&mut step).await?;
            if got == 0 {
                seen.lock().push(request);
                return Ok(());
            }
            buffer.extend_from_slice(&step[..got]);
            if let Some((_, pause)) = pause {
                tokio::time::sleep(pause).await;
            }
        }
        let body_end = buffer.len().min(at_once);
        request.body = buffer.drain(..body_end).collect();
        seen.lock().push(request);
        match act {
            Act::Say(answer) | Act::ReadSlowly(_, _, answer) => stream.write_all(&answer).await?,
            Act::SayAndClose(answer) => {
                stream.write_all(&answer).await?;
                return stream.shutdown().await;
            }
            Act::SayEarly(answer) => return stream.write_all(&answer).await,
            Act::Hang => {
                // Ends when the client closes.
                while stream.read_buf(&mut buffer).await? != 0 {}
                return Ok(());
            }
            Act::Drip(answer, pause) => {
                let body = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
                stream.write_all(&answer[..body]).await?;
                for byte in &answer[body..] {
                    stream.write_all(&[*byte]).await?;
                    tokio::time::sleep(pause).await;
                }
            }
            Act::ResetAfter(_) => return stream.set_zero_linger(),
            Act::Close => return stream.shutdown().await,
        }
    }
}

/// An answer with a correct Content-Length.
pub fn answer(status: &str, headers: &[&str], body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
    for header in headers {
        text += header;
        text += "\r\n";
    }
    text += "\r\n";
    [text.as_bytes(), body].concat()
}

/// An error in Walrus' envelope.
pub fn envelope(status: &str, reason: &str, message: &str) -> Vec<u8> {
    let code = status.split(' ').next().unwrap();
    let body = format!(
        r#"{{"error":{{"status":"X","code":{code},"message":"{message}","details":[
        {{"@type":"ErrorInfo","reason":"{reason}","domain":"daemon.walrus.space","metadata":{{}}}}]}}}}"#
    );
    answer(status, &["content-type: application/json"], body)
}

/// The answer of a well-behaved aggregator to a full or range read of `blob`.
pub fn serve_blob(request: &Seen, blob: &[u8]) -> Vec<u8> {
    match request.range() {
        None => answer("200 OK", &["etag: x"], blob),
        Some((first, last)) if first <= last && last < blob.len() => answer(
            "206 Partial Content",
            &[&format!(
                "content-range: bytes {first}-{last}/{}",
                blob.len()
            )],
            &blob[first..=last],
        ),
        Some(_) => envelope(
            "416 Range Not Satisfiable",
            "INVALID_BYTE_RANGE",
            "no such range",
        ),
    }
}

/// The answer of a publisher to a new blob.
pub fn newly_created(blob_id: &str) -> Vec<u8> {
    let body = format!(
        r#"{{"newlyCreated":{{"blobObject":{{"id":"0xab","registeredEpoch":3,"blobId":"{blob_id}",
        "size":17,"encodingType":"RS2","certifiedEpoch":null,"storage":{{"id":"0xcd","startEpoch":3,
        "endEpoch":8,"storageSize":66034000}},"deletable":false}},"resourceOperation":{{
        "registerFromScratch":{{"encodedLength":66034000,"epochsAhead":5}}}},"cost":32760000}}}}"#
    );
    answer("200 OK", &["content-type: application/json"], body)
}
