//! A publisher: which parameters it knows, whether it wants tokens, how long a body may be. None of
//! these questions stores anything: each has a query that no publisher can read.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use serde_json::Value;

use super::super::http;
use super::server::{reach, read, Answer, Server, PATIENCE};
use super::{Diagnosis, Health};
use crate::config::Config;
use crate::walrus::Auth;

const PART: &str = "publisher";

/// A query that is refused before anything is stored: the first name is unknown, and the number of
/// epochs is none, for a publisher that lets unknown names pass.
const REFUSED: &str = "walrusds_doctor=1&epochs=none";

/// The body that a stock publisher takes at most (bytes).
const STOCK_LIMIT: u64 = 10 << 20;

/// Asks a publisher. Nothing is stored.
pub async fn publisher(url: &str, config: &Config) -> Vec<Diagnosis> {
    let mut server = match reach(PART, "publisherURL", url).await {
        Ok(server) => server,
        Err(found) => return found,
    };
    let token = match config.auth.token().await {
        Ok(token) => token,
        Err(why) => {
            server.found.push(Diagnosis::new(
                PART,
                "token",
                Health::Bad,
                why,
                "each upload takes a fresh token; without one, nothing can be stored",
            ));
            None
        }
    };
    if let Some(token) = &token {
        server.found.extend(claims(token, config));
    }
    let asked = refused(&server, config, 0).await;
    match asked {
        Ok(answer) => {
            let wanted = wants_token(&answer);
            server.found.push(parameters(&server.shown, &answer));
            server.found.extend(tokens(&server.shown, wanted, config));
        }
        Err(e) => server.found.push(Diagnosis::new(
            PART,
            "api",
            Health::Bad,
            format!("{}: {e}", server.shown),
            "it answers /status and not an upload: something between limits what passes",
        )),
    }
    limits(&mut server, config).await;
    server.found
}

/// Sends a store that is refused, with a body that is said to have `len` bytes and never comes.
async fn refused(server: &Server, config: &Config, len: u64) -> Result<Answer, String> {
    let url = format!("{}/v1/blobs?{REFUSED}", server.base);
    let asked = Instant::now();
    let mut request = server.client.put(url).timeout(PATIENCE);
    request = match len {
        0 => request.header("content-length", 0),
        len => {
            let begun = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"w")) });
            let body = reqwest::Body::wrap_stream(begun.chain(stream::pending()));
            request.header("content-length", len).body(body)
        }
    };
    // A token passes once. That none is to be had was told.
    if let Ok(Some(token)) = config.auth.token().await {
        request = request.bearer_auth(token);
    }
    let response = request.send().await.map_err(http::told)?;
    Ok(read(response, asked).await)
}

/// Whether a publisher refused for the lack of a token.
fn wants_token(answer: &Answer) -> bool {
    let text = String::from_utf8_lossy(&answer.body).to_ascii_lowercase();
    matches!(answer.status, 401 | 403)
        || text.contains("auth.publisher.walrus.space")
        || answer.status == 400 && text.contains("authorization")
}

/// How old it is, by the parameters that it names.
fn parameters(shown: &str, answer: &Answer) -> Diagnosis {
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    match answer.status {
        400 if text.contains("unknown field") => {
            let knows = |name: &str| text.contains(&format!("`{name}`"));
            let version = if knows("reuse_resources") {
                "1.46 or later"
            } else if knows("force") && knows("permanent") {
                "1.29 to 1.45"
            } else {
                return Diagnosis::new(
                    PART,
                    "api",
                    Health::Warning,
                    format!("{shown} is older than 1.29: it does not know `permanent`"),
                    "a store that is repeated after a lost answer may be paid twice",
                );
            };
            Diagnosis::good(PART, "api", format!("{shown} speaks the API of {version}"))
        }
        _ if wants_token(answer) => Diagnosis::good(
            PART,
            "api",
            format!("{shown} is a publisher that asks for a token"),
        ),
        400 => Diagnosis::good(PART, "api", format!("{shown} is a publisher")),
        404 | 405 => Diagnosis::new(
            PART,
            "api",
            Health::Bad,
            format!("{shown} takes no uploads: HTTP {}", answer.status),
            "the URL is that of an aggregator alone, of another program, or has a wrong path",
        ),
        429 | 503 => Diagnosis::new(
            PART,
            "api",
            Health::Warning,
            format!("{shown} is overloaded: HTTP {}", answer.status),
            "uploads wait; a stock publisher takes 8 at a time from all its users together",
        ),
        status => Diagnosis::new(
            PART,
            "api",
            Health::Bad,
            format!("{shown}: HTTP {status} to an upload: {}", answer.text()),
            "a publisher answers 400 to this request; this may be another program",
        ),
    }
}

/// Whether the configuration has tokens if, and only if, the publisher wants them.
fn tokens(shown: &str, wanted: bool, config: &Config) -> Option<Diagnosis> {
    match (wanted, &config.auth) {
        (true, Auth::None) => Some(
            Diagnosis::new(
                PART,
                "token",
                Health::Bad,
                format!("{shown} wants a token, and none is configured"),
                "uploads are refused",
            )
            .cure("\"authTokenCommand\": \"COMMAND THAT PRINTS A TOKEN\" (or authTokenFile)"),
        ),
        (true, _) => Some(
            Diagnosis::new(
                PART,
                "token",
                Health::Bad,
                format!("{shown} refuses the token"),
                "uploads are refused",
            )
            .cure("sign the token with the secret of this publisher (walrus publisher --jwt-decode-secret)"),
        ),
        (false, _) => None,
    }
}

/// What the claims of a token allow. The token itself is never shown.
fn claims(token: &str, config: &Config) -> Vec<Diagnosis> {
    let part = token.split('.').nth(1).unwrap_or_default();
    let claims = URL_SAFE_NO_PAD.decode(part).ok();
    let claims: Option<Value> = claims.and_then(|json| serde_json::from_slice(&json).ok());
    let Some(claims) = claims else {
        return vec![Diagnosis::new(
            PART,
            "token",
            Health::Warning,
            "the token is no JWT",
            "a stock publisher takes JWTs alone; a proxy may take others",
        )];
    };
    let number = |name: &str| claims.get(name).and_then(Value::as_u64);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_secs());
    let mut found = Vec::new();
    let mut bad = |what: String, why: &'static str, cure: &str| {
        found.push(Diagnosis::new(PART, "token", Health::Bad, what, why).cure(cure));
    };
    if number("exp").is_none_or(|exp| exp <= now) {
        bad(
            "the token has no time of expiry, or has expired".to_owned(),
            "a publisher refuses it; each upload takes a fresh one",
            "let authTokenCommand make a token at each call, with exp some minutes ahead",
        );
    }
    if claims.get("jti").and_then(Value::as_str).is_none() {
        bad(
            "the token has no jti".to_owned(),
            "a publisher refuses it",
            "give each token a jti of its own",
        );
    }
    let most = number("size").or(number("max_size"));
    if let Some(most) = most.filter(|most| *most < config.pack_target_size_bytes) {
        bad(
            format!(
                "the token allows {most} bytes, and a pack has up to {}",
                config.pack_target_size_bytes
            ),
            "full packs are refused",
            &format!(
                "\"packTargetSizeBytes\": {most}, or a max_size claim of {}",
                config.pack_target_size_bytes
            ),
        );
    }
    let epochs = u64::from(config.epochs);
    if number("max_epochs").is_some_and(|most| most < epochs)
        || number("epochs").is_some_and(|exact| exact != epochs)
    {
        bad(
            format!("the token does not allow {epochs} epochs"),
            "uploads are refused",
            &format!("a max_epochs claim of {epochs}, or other epochs in Datastore.Spec"),
        );
    }
    if found.is_empty() {
        found.push(Diagnosis::good(
            PART,
            "token",
            "the token is a JWT whose claims allow what is configured",
        ));
    }
    found
}

/// Whether something in front refuses bodies as long as a pack, by the length that is announced.
/// The publisher's own limit shows only when a body comes.
async fn limits(server: &mut Server, config: &Config) {
    let pack = config.pack_target_size_bytes;
    let too_long = |answer: &Result<Answer, String>| {
        let status = answer.as_ref().map(|answer| answer.status);
        status == Ok(413)
    };
    let shown = server.shown.clone();
    if !too_long(&refused(server, config, pack).await) {
        if pack > STOCK_LIMIT {
            server.found.push(Diagnosis::new(
                PART,
                "size",
                Health::Advice,
                format!("{shown}: nothing in front refuses {pack} bytes; the publisher's own limit shows at the first full pack (a stock one takes {STOCK_LIMIT})"),
                "smaller packs cost more per byte: 10 MiB about twice as much as 64 MiB; a limit is learnt, at the price of one upload that is refused",
            ).cure(format!("walrus publisher --max-body-size {}", pack.div_ceil(1024) + 64)));
        }
        return;
    }
    // The largest announced length that passes, within a factor of two.
    let mut limit = pack / 2;
    while limit > 4096 && too_long(&refused(server, config, limit).await) {
        limit /= 2;
    }
    server.found.push(
        Diagnosis::new(
            PART,
            "size",
            Health::Warning,
            format!("{shown} refuses bodies of {pack} bytes, and takes {limit}"),
            "packs are split to fit, and smaller packs cost more per byte",
        )
        .cure(format!(
            "nginx: client_max_body_size {}m; or \"packTargetSizeBytes\": {limit}",
            pack.div_ceil(1 << 20) + 1
        )),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &str) -> Config {
        Config::from_json(&format!(
            r#"{{"publisherURL":"http://p","aggregatorURL":"http://a","indexPath":"i"{more}}}"#
        ))
        .unwrap()
    }

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn claims_are_compared_with_the_configuration() {
        let judged = |claims_text: &str| {
            let found = claims(&token(claims_text), &config(r#","epochs":5"#));
            let shown = found.iter().map(|d| format!("{:?} {}", d.health, d.what));
            shown.collect::<Vec<_>>().join("; ")
        };
        let exp = 4_000_000_000_u64;
        assert!(judged(&format!(r#"{{"exp":{exp},"jti":"a"}}"#)).starts_with("Good"));
        assert!(judged(r#"{"exp":1,"jti":"a"}"#).contains("has expired"));
        assert!(judged(&format!(r#"{{"exp":{exp}}}"#)).contains("no jti"));
        let small = judged(&format!(r#"{{"exp":{exp},"jti":"a","max_size":1000}}"#));
        assert!(small.contains("allows 1000 bytes"), "{small}");
        let short = judged(&format!(r#"{{"exp":{exp},"jti":"a","max_epochs":4}}"#));
        assert!(short.contains("does not allow 5 epochs"), "{short}");
        let odd = claims("secret-text", &config(""));
        assert_eq!(odd[0].health, Health::Warning);
        assert!(!format!("{odd:?}").contains("secret-text"));
    }

    #[test]
    fn the_age_is_told_by_the_parameters() {
        let answer = |status, body: &str| Answer {
            status,
            body: body.as_bytes().to_vec(),
            ..Answer::default()
        };
        let unknown =
            "Failed to deserialize query string: unknown field `walrusds_doctor`, expected one of ";
        let health = |status, body: &str| parameters("p", &answer(status, body)).health;
        let new = format!("{unknown}`epochs`, `permanent`, `force`, `reuse_resources`");
        assert_eq!(health(400, &new), Health::Good);
        assert_eq!(health(400, &format!("{unknown}`epochs`")), Health::Warning);
        assert_eq!(health(404, ""), Health::Bad);
        assert_eq!(health(200, "hello"), Health::Bad);
        assert_eq!(health(429, ""), Health::Warning);
        let wants = answer(400, "Header of type `authorization` was missing");
        assert!(wants_token(&wants));
        assert!(!wants_token(&answer(400, &new)));
    }
}
