//! What publishers and aggregators share.

use std::time::{Duration, Instant, SystemTime};

use reqwest::{Client, Response};
use url::{Host, Url};

use super::super::http;
use super::{Diagnosis, Health};

/// How long an answer to a probe may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// The longest body of an answer that is looked at (bytes).
const EXCERPT: usize = 4096;
/// Clocks may differ by so much.
const SKEW: Duration = Duration::from_secs(30);

/// An answer, as far as a probe looks at it.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// The value of a header, by its name in small letters.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) took: Duration,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let line: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(160)
            .collect();
        line.trim().to_owned()
    }

    /// Whether it is Walrus' own error, rather than that of a proxy or of a wrong address.
    pub(super) fn is_walrus_error(&self) -> bool {
        serde_json::from_slice::<serde_json::Value>(&self.body)
            .is_ok_and(|value| value.pointer("/error/status").is_some())
    }
}

/// Reads an answer, a few bytes of its body included.
pub(super) async fn read(mut response: Response, asked: Instant) -> Answer {
    let took = asked.elapsed();
    let headers = response.headers().iter();
    let headers = headers.filter_map(|(name, value)| {
        Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
    });
    let mut answer = Answer {
        status: response.status().as_u16(),
        headers: headers.collect(),
        body: Vec::new(),
        took,
    };
    while answer.body.len() < EXCERPT {
        match response.chunk().await {
            Ok(Some(piece)) => answer.body.extend_from_slice(&piece),
            Ok(None) | Err(_) => break,
        }
    }
    answer.body.truncate(EXCERPT);
    answer
}

/// Asks for a path.
pub(super) async fn get(
    client: &Client,
    url: String,
    range: Option<String>,
) -> Result<Answer, String> {
    let asked = Instant::now();
    let mut request = client.get(url).header("accept-encoding", "identity");
    if let Some(range) = range {
        request = request.header("range", range);
    }
    let response = request.timeout(PATIENCE).send().await;
    Ok(read(response.map_err(http::told)?, asked).await)
}

/// A server that answered, and what is to be said of it so far.
pub(super) struct Server {
    pub(super) client: Client,
    pub(super) base: String,
    /// Its name in what is told.
    pub(super) shown: String,
    pub(super) found: Vec<Diagnosis>,
}

/// Asks whether a server is there. `Err`: it is not, and nothing else can be asked of it.
pub(super) async fn reach(
    part: &'static str,
    key: &'static str,
    url: &str,
) -> Result<Server, Vec<Diagnosis>> {
    let bad = |what: String| {
        vec![Diagnosis::new(
            part,
            "reachable",
            Health::Bad,
            what,
            "blocks cannot be stored or read without it",
        )
        .cure(format!(
            "curl -sS {}/status must answer OK; else correct {key} in Datastore.Spec",
            crate::walrus::shown_url(url)
        ))]
    };
    let base = http::base_url(key, url).map_err(|e| bad(e.to_string()))?;
    let client = http::client(PATIENCE).map_err(|e| bad(e.to_string()))?;
    let parsed = Url::parse(&base).map_err(|e| bad(format!("{key}: {e}")))?;
    let shown = crate::walrus::shown_url(&base);
    let answer = get(&client, format!("{base}/status"), None).await;
    let answer = answer.map_err(|e| bad(format!("{shown}: {e}")))?;
    if (300..400).contains(&answer.status) {
        let to = answer.header("location").unwrap_or_default();
        let to = crate::walrus::shown_url(to.trim_end_matches("/status"));
        return Err(vec![Diagnosis::new(
            part,
            "reachable",
            Health::Bad,
            format!("{shown} redirects to {to}"),
            "uploads are not redirected, and reads take a round trip more",
        )
        .cure(format!("\"{key}\": \"{to}\""))]);
    }
    if answer.status >= 500 {
        let (status, text) = (answer.status, answer.text());
        return Err(bad(format!("{shown}: HTTP {status}: {text}")));
    }
    // A second request has a connection already: its time is the round trip.
    let again = get(&client, format!("{base}/status"), None).await;
    let trip = again.map_or(answer.took, |again| again.took.min(answer.took));
    let mut found = vec![Diagnosis::good(
        part,
        "reachable",
        format!("{shown} answers in {} ms", trip.as_millis().max(1)),
    )];
    if answer.status != 200 {
        found.push(Diagnosis::new(
            part,
            "status_page",
            Health::Advice,
            format!("{shown}: /status answers HTTP {}", answer.status),
            "Walrus' own programs answer 200; a proxy lets only some paths through, or this is another program",
        ));
    }
    found.extend(tls(part, key, &parsed, &shown));
    found.extend(clock(part, &answer, &shown));
    Ok(Server {
        client,
        base,
        shown,
        found,
    })
}

/// Whether the way is encrypted, where it leaves the machine or the house.
fn tls(part: &'static str, key: &str, url: &Url, shown: &str) -> Option<Diagnosis> {
    if url.scheme() == "https" {
        return Some(Diagnosis::good(
            part,
            "tls",
            format!("{shown}: TLS, with a certificate that is trusted here"),
        ));
    }
    let near = match url.host()? {
        Host::Domain(name) => !name.contains('.') || name.ends_with(".local"),
        Host::Ipv4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        Host::Ipv6(ip) => ip.is_loopback() || (ip.segments()[0] & 0xfe00) == 0xfc00,
    };
    (!near).then(|| {
        let secure = format!("https{}", &url.as_str()[4..]);
        Diagnosis::new(
            part,
            "tls",
            Health::Warning,
            format!("{shown} is asked without TLS"),
            "others on the way can read tokens, and change answers (blocks are checked all the same)",
        )
        .cure(format!(
            "\"{key}\": \"{}\"",
            crate::walrus::shown_url(secure.trim_end_matches('/'))
        ))
    })
}

/// Whether the clocks agree.
fn clock(part: &'static str, answer: &Answer, shown: &str) -> Option<Diagnosis> {
    let date = answer.header("date")?;
    let theirs = httpdate::parse_http_date(date).ok()?;
    let now = SystemTime::now();
    let off = match now.duration_since(theirs) {
        Ok(ahead) => ahead,
        Err(behind) => behind.duration(),
    };
    if off <= SKEW {
        return Some(Diagnosis::good(
            part,
            "clock",
            format!(
                "{shown}: its clock and this machine's agree within {} s",
                off.as_secs() + 1
            ),
        ));
    }
    let word = if theirs > now { "behind" } else { "ahead of" };
    Some(
        Diagnosis::new(
            part,
            "clock",
            match off > Duration::from_secs(300) {
                true => Health::Bad,
                false => Health::Warning,
            },
            format!("this machine's clock is {} s {word} that of {shown}", off.as_secs()),
            "tokens expire by the clock, and renewals are planned by it: a wrong one lets data lapse",
        )
        .cure("timedatectl set-ntp true"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls_of(url: &str) -> Option<Health> {
        let parsed = Url::parse(url).unwrap();
        tls("publisher", "publisherURL", &parsed, url).map(|found| found.health)
    }

    #[test]
    fn only_far_servers_need_tls() {
        assert_eq!(tls_of("https://walrus.example"), Some(Health::Good));
        assert_eq!(tls_of("http://walrus.example"), Some(Health::Warning));
        for near in [
            "http://127.0.0.1:1",
            "http://[::1]:1",
            "http://publisher:1",
            "http://10.0.0.1",
        ] {
            assert_eq!(tls_of(near), None, "{near}");
        }
    }

    #[test]
    fn clocks_are_compared() {
        let at = |time: SystemTime| {
            let date = httpdate::fmt_http_date(time);
            let answer = Answer {
                headers: vec![("date".to_owned(), date)],
                ..Answer::default()
            };
            clock("publisher", &answer, "x").map(|found| found.health)
        };
        let now = SystemTime::now();
        assert_eq!(at(now), Some(Health::Good));
        assert_eq!(at(now + Duration::from_secs(100)), Some(Health::Warning));
        assert_eq!(at(now - Duration::from_secs(1000)), Some(Health::Bad));
        assert!(clock("publisher", &Answer::default(), "x").is_none());
    }
}
