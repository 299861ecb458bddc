//! An aggregator: which requests it knows, and how it treats ranges.

use super::server::{get, reach, Server};
use super::{Diagnosis, Health};

const PART: &str = "aggregator";

/// The blob of which an aggregator is asked whether it knows a kind of request: there is none of
/// this ID, and asking for it plants a "not found" in no cache that anything else needs.
const NOWHERE: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Asks an aggregator. `blob`: the ID of a blob that should be there; without it, ranges are not
/// tried.
pub async fn aggregator(url: &str, blob: Option<&str>) -> Vec<Diagnosis> {
    let mut server = match reach(PART, "aggregatorURL", url).await {
        Ok(server) => server,
        Err(found) => return found,
    };
    generation(&mut server).await;
    if let Some(blob) = blob {
        ranges(&mut server, blob).await;
    }
    server.found
}

/// Finds out how old it is, by the requests that it knows.
async fn generation(server: &mut Server) {
    let base = server.base.clone();
    let mut knows = Vec::new();
    for path in [
        format!("/v1/blobs/{NOWHERE}"),
        format!("/v1/quilts/{NOWHERE}/patches"),
        format!("/v1/blobs/{NOWHERE}/byte-range?start=0&length=1"),
    ] {
        match get(&server.client, format!("{base}{path}"), None).await {
            Ok(answer) => knows.push(answer.is_walrus_error()),
            Err(e) => {
                server.found.push(Diagnosis::new(
                    PART,
                    "api",
                    Health::Bad,
                    format!("{}: {e}", server.shown),
                    "it answers /status and not this request: something between limits what passes",
                ));
                return;
            }
        }
    }
    let shown = &server.shown;
    let diagnosis = match knows[..] {
        [true, _, true] => Diagnosis::good(
            PART,
            "api",
            format!("{shown} speaks the API of 1.38 or later: ranges of blobs"),
        ),
        [true, quilts, false] => Diagnosis::new(
            PART,
            "api",
            Health::Warning,
            format!(
                "{shown} is older than 1.38{}",
                if quilts {
                    ""
                } else {
                    ", and than 1.32: it lists no quilts"
                }
            ),
            "it sends whole blobs where a block was asked for: each random read moves up to 64 MiB",
        )
        .cure("put a newer aggregator first in aggregatorURL"),
        _ => Diagnosis::new(
            PART,
            "api",
            Health::Bad,
            format!("{shown} does not answer as a Walrus aggregator does"),
            "the URL is that of another program, of a publisher alone, or has a wrong path",
        )
        .cure("curl -s AGGREGATOR/v1/api | head must show the aggregator's API"),
    };
    server.found.push(diagnosis);
}

/// Tries ranges of a blob: the first byte, one in the middle, the last, and beyond the end.
async fn ranges(server: &mut Server, blob: &str) {
    let url = format!("{}/v1/blobs/{blob}", server.base);
    let shown = server.shown.clone();
    let bad =
        |what: String, why: &'static str| Diagnosis::new(PART, "range", Health::Bad, what, why);
    let first = match get(&server.client, url.clone(), Some("bytes=0-0".to_owned())).await {
        Ok(first) => first,
        Err(e) => {
            let text = format!("{shown}: reading the first byte of blob {blob}: {e}");
            server.found.push(bad(text, "blocks cannot be read"));
            return;
        }
    };
    let total = first.header("content-range").and_then(|range| {
        let (place, total) = range.strip_prefix("bytes ")?.split_once('/')?;
        (place == "0-0").then(|| total.parse::<u64>().ok())?
    });
    let diagnosis = match (first.status, total) {
        (206, Some(total)) if first.body.len() == 1 => {
            match others(server, &url, total).await {
                Ok(()) => Diagnosis::good(
                    PART,
                    "range",
                    format!("{shown}: ranges are exact: first, middle and last byte of {total}, and nothing beyond the end"),
                ),
                Err(what) => bad(
                    format!("{shown}: {what}"),
                    "blocks are read as ranges of their blobs; something between changes them",
                ),
            }
        }
        (206, _) => bad(
            format!(
                "{shown}: asked for one byte, it sent {} bytes, Content-Range {:?}",
                first.body.len(),
                first.header("content-range").unwrap_or("none")
            ),
            "such answers are refused, as they may be of another blob",
        ),
        (200, _) => Diagnosis::new(
            PART,
            "range",
            Health::Warning,
            format!("{shown} ignores Range and sends the whole blob"),
            "each random read moves up to 64 MiB; a cache in front may drop the header",
        )
        .cure("let the proxy pass Range and Content-Range (nginx: proxy_set_header Range $http_range; proxy_cache off), or use another aggregator"),
        (404, _) => Diagnosis::new(
            PART,
            "range",
            Health::Warning,
            format!("{shown} does not have blob {blob}, of which rows say that it is stored"),
            "the blob has lapsed, the aggregator is of another network, or it lags behind",
        )
        .cure(format!("walrusds check --blob {blob}")),
        (status, _) => bad(
            format!("{shown}: reading the first byte of blob {blob}: HTTP {status}: {}", first.text()),
            "blocks cannot be read",
        ),
    };
    server.found.push(diagnosis);
    if first
        .header("content-encoding")
        .is_some_and(|e| e != "identity")
    {
        server.found.push(
            Diagnosis::new(
                PART,
                "encoding",
                Health::Bad,
                format!("{shown} compresses answers although the request forbids it"),
                "such answers are refused, since their ranges mean nothing",
            )
            .cure("nginx: gzip off; for the location of the aggregator"),
        );
    }
}

async fn others(server: &Server, url: &str, total: u64) -> Result<(), String> {
    for at in [total / 2, total.saturating_sub(1)] {
        let range = format!("bytes={at}-{at}");
        let answer = get(&server.client, url.to_owned(), Some(range)).await?;
        let expected = format!("bytes {at}-{at}/{total}");
        if answer.status != 206
            || answer.body.len() != 1
            || answer.header("content-range") != Some(expected.as_str())
        {
            return Err(format!(
                "byte {at} of {total}: HTTP {}, {} bytes, Content-Range {:?}",
                answer.status,
                answer.body.len(),
                answer.header("content-range").unwrap_or("none")
            ));
        }
    }
    let range = format!("bytes={total}-{total}");
    let answer = get(&server.client, url.to_owned(), Some(range)).await?;
    match answer.status {
        416 => Ok(()),
        status => Err(format!("beyond the end: HTTP {status} instead of 416")),
    }
}
