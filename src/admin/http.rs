//! Plain HTTP requests of the operator's questions, which want to see status and headers. What the
//! engine itself asks goes through [`crate::walrus`].

use std::time::Duration;

use url::Url;

use crate::error::{Error, ErrorKind, Result};

/// A client with the engine's TLS settings. It follows no redirects and keeps no cookies.
pub(super) fn client(patience: Duration) -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .tls_backend_preconfigured((*crate::tls::client_config()).clone())
        .user_agent(concat!("walrusds/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .connect_timeout(Duration::from_secs(10).min(patience))
        .read_timeout(patience)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .build()
        .map_err(|e| {
            Error::new(
                ErrorKind::Internal,
                format!("cannot set up HTTP: {}", told(e)),
            )
        })
}

/// A base URL without the slash at its end.
///
/// # Errors
/// [`ErrorKind::Config`] naming `option`.
pub(super) fn base_url(option: &str, text: &str) -> Result<String> {
    let bad = |why: &str| {
        Error::new(
            ErrorKind::Config,
            format!("{option}: {why}; expected a base URL such as https://host:port"),
        )
    };
    let url = Url::parse(text).map_err(|e| bad(&e.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(bad("it is no URL of a web server"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("a query or fragment is not allowed"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// An error of the HTTP library with its causes, without secrets.
pub(super) fn told(error: reqwest::Error) -> String {
    let timed_out = error.is_timeout();
    let (text, _) = crate::walrus::describe(error);
    match timed_out {
        true => "no answer in time".to_owned(),
        false => text,
    }
}
