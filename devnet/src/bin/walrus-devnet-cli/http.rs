//! One request to the devnet.

use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper::header;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Posts the JSON and returns the body of the answer; as an error if its status is none of
/// success.
pub fn post(url: &str, path: &str, body: &Value) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|why| why.to_string())?;
    runtime.block_on(exchange(url, path, body))
}

async fn exchange(url: &str, path: &str, body: &Value) -> Result<String, String> {
    let address = url.strip_prefix("http://").unwrap_or(url);
    let address = address.trim_end_matches('/');
    let lost = |why: &dyn std::fmt::Display| format!("no answer from the devnet at {url}: {why}");
    let stream = TcpStream::connect(address)
        .await
        .map_err(|why| format!("no devnet at {url}: {why}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|why| lost(&why))?;
    tokio::spawn(connection);
    let request = hyper::Request::post(path)
        .header(header::HOST, address)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(bytes::Bytes::from(body.to_string())))
        .map_err(|why| why.to_string())?;
    let answer = sender.send_request(request).await;
    let answer = answer.map_err(|why| lost(&why))?;
    let success = answer.status().is_success();
    let body = answer.into_body().collect().await;
    let body = body.map_err(|why| lost(&why))?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    match success {
        true => Ok(text),
        false => Err(text),
    }
}
