//! What the program prints, read with care.
//!
//! Unknown fields are ignored, numbers may be texts, blob IDs may be decimal numbers. What is
//! missing or contradicts itself makes the whole answer an error: half a list would tell that the
//! wallet does not own the rest.

use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::Deserialize;
use serde_json::Value;

use super::{object_id, said, Epoch, Failure, OwnedBlob};
use crate::error::{one_line, Error};
use crate::walrus::cost::Prices;
use crate::walrus::usual_form;

/// Why an answer cannot be used.
pub(super) type Flaw = String;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawBlob {
    id: String,
    blob_id: Value,
    size: Value,
    certified_epoch: Option<Value>,
    storage: RawStorage,
    deletable: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawStorage {
    end_epoch: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEpoch {
    current_epoch: Value,
    #[serde(default)]
    start_of_current_epoch: Value,
    epoch_duration: RawDuration,
    max_epochs_ahead: Value,
}

#[derive(Deserialize)]
struct RawDuration {
    secs: Value,
    #[serde(default)]
    nanos: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPrices {
    storage_price_per_unit_size: Value,
    write_price_per_unit_size: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawExtended {
    epochs_extended: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDeleted {
    blob_identity: RawIdentity,
    #[serde(default)]
    deleted_blobs: Vec<RawObject>,
    #[serde(default)]
    no_blob_found: bool,
    error: Option<String>,
    #[serde(default)]
    aborted: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawIdentity {
    object_id: Option<String>,
}

#[derive(Deserialize)]
struct RawObject {
    id: String,
}

/// The JSON in an output. Lines before it, as of a warning, are skipped.
fn json<T: DeserializeOwned>(output: &[u8]) -> Result<T, Flaw> {
    let why = match serde_json::from_slice(output) {
        Ok(answer) => return Ok(answer),
        Err(why) => why,
    };
    let begins = |rest: &[u8]| matches!(rest.first(), Some(b'{' | b'['));
    let lines = output
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n');
    let mut starts = lines
        .map(|(at, _)| at + 1)
        .filter(|at| begins(&output[*at..]));
    if let (false, Some(start)) = (begins(output.trim_ascii_start()), starts.next()) {
        if let Ok(answer) = serde_json::from_slice(&output[start..]) {
            return Ok(answer);
        }
    }
    let shown = one_line(&String::from_utf8_lossy(output), 100);
    Err(format!("{why} in {shown:?}"))
}

/// A whole number that is a number or a text.
fn number<T: TryFrom<u64>>(name: &str, value: &Value) -> Result<T, Flaw> {
    let whole = match value {
        Value::Number(n) => n.as_u64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    whole
        .and_then(|n| T::try_from(n).ok())
        .ok_or_else(|| format!("{name} is {}, not a whole number", shown(value)))
}

fn shown(value: &Value) -> String {
    one_line(&value.to_string(), 60)
}

pub(super) fn blobs(output: &[u8]) -> Result<Vec<OwnedBlob>, Flaw> {
    let raw: Vec<RawBlob> = json(output)?;
    raw.into_iter().map(blob).collect()
}

fn blob(raw: RawBlob) -> Result<OwnedBlob, Flaw> {
    let text = match &raw.blob_id {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let blob_id = usual_form(&text).ok_or_else(|| format!("blobId is {}", shown(&raw.blob_id)))?;
    let certified = raw.certified_epoch.is_some_and(|epoch| !epoch.is_null());
    Ok(OwnedBlob {
        object_id: object_id(&raw.id).map_err(|e| e.message().to_owned())?,
        blob_id,
        size: number("size", &raw.size)?,
        certified,
        end_epoch: number("storage.endEpoch", &raw.storage.end_epoch)?,
        deletable: raw.deletable,
    })
}

pub(super) fn epoch(output: &[u8]) -> Result<Epoch, Flaw> {
    let raw: RawEpoch = json(output)?;
    let nanos = match raw.epoch_duration.nanos {
        Value::Null => 0,
        nanos => number("epochDuration.nanos", &nanos)?,
    };
    let secs = Duration::from_secs(number("epochDuration.secs", &raw.epoch_duration.secs)?);
    let length = secs.checked_add(Duration::from_nanos(nanos));
    let length = length.filter(|length| !length.is_zero());
    Ok(Epoch {
        current: number("currentEpoch", &raw.current_epoch)?,
        started_at: started_at(&raw.start_of_current_epoch)?,
        length: length.ok_or("epochDuration is no length of time")?,
        max_ahead: number("maxEpochsAhead", &raw.max_epochs_ahead)?,
    })
}

/// The beginning of the epoch: `{"DateTime": "…"}`, or a `{"Message": "…"}` while epochs change.
fn started_at(value: &Value) -> Result<Option<SystemTime>, Flaw> {
    let text = match value {
        Value::Object(fields) => match fields.get("DateTime").or(fields.get("dateTime")) {
            Some(time) => time,
            None => return Ok(None),
        },
        Value::Null => return Ok(None),
        text => text,
    };
    let time = text.as_str().map(humantime::parse_rfc3339_weak);
    match time {
        Some(Ok(time)) => Ok(Some(time)),
        _ => Err(format!("startOfCurrentEpoch is {}", shown(value))),
    }
}

pub(super) fn prices(output: &[u8]) -> Result<Prices, Flaw> {
    let raw: RawPrices = json(output)?;
    Ok(Prices {
        storage: number("storagePricePerUnitSize", &raw.storage_price_per_unit_size)?,
        write: number("writePricePerUnitSize", &raw.write_price_per_unit_size)?,
    })
}

/// The number of epochs by which a blob was extended.
pub(super) fn extended(output: &[u8]) -> Result<u32, Flaw> {
    let raw: RawExtended = json(output)?;
    number("epochsExtended", &raw.epochs_extended)
}

/// What became of each of the objects: the program tells failures in its answer. An object without
/// an entry may have been deleted or not.
pub(super) fn deleted(
    output: &[u8],
    object_ids: &[String],
    arguments: &[String],
) -> Result<Vec<Result<(), Error>>, Flaw> {
    let raw: Vec<RawDeleted> = json(output)?;
    let same = |given: &str, id: &String| object_id(given).is_ok_and(|given| given == *id);
    let outcome = |id: &String| {
        let about = |entry: &&RawDeleted| {
            let identity = entry.blob_identity.object_id.as_deref();
            identity.is_some_and(|given| same(given, id))
        };
        let Some(entry) = raw.iter().find(about) else {
            return Err(Failure::Unclear.error("the answer does not tell of it"));
        };
        if let Some(error) = &entry.error {
            let text = said::last_words(error.as_bytes(), arguments);
            let failure = said::failure(&text);
            return Err(failure.error(said::explained(failure, text)));
        }
        if entry.deleted_blobs.iter().any(|blob| same(&blob.id, id)) {
            return Ok(());
        }
        Err(match (entry.no_blob_found, entry.aborted) {
            (true, _) => Failure::Absent.error(
                "the wallet has no such blob: it expired, was deleted, or belongs to another address",
            ),
            (_, true) => Failure::Unusable.error("the program wanted to be asked again (--yes)"),
            _ => Failure::Unclear.error("the answer does not tell whether it was deleted"),
        })
    };
    Ok(object_ids.iter().map(outcome).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: &str = "0x000000000000000000000000000000000000000000000000000000000000000a";

    fn ids() -> Vec<String> {
        vec![OBJECT.to_owned()]
    }

    fn listed(blob: &str) -> Result<Vec<OwnedBlob>, Flaw> {
        blobs(format!("[{blob}]").as_bytes())
    }

    #[test]
    fn blobs_of_today_and_of_older_programs() {
        let blob_id = usual_form("513").unwrap();
        let today = format!(
            r#"{{"id":"{OBJECT}","registeredEpoch":1,"blobId":"{blob_id}","size":1000,"encodingType":"RS2",
                "certifiedEpoch":1,"storage":{{"id":"0xb","startEpoch":1,"endEpoch":14,"storageSize":7}},
                "deletable":true,"new":{{"field":[]}}}}"#
        );
        let expected = OwnedBlob {
            object_id: OBJECT.to_owned(),
            blob_id,
            size: 1000,
            certified: true,
            end_epoch: 14,
            deletable: true,
        };
        assert_eq!(listed(&today), Ok(vec![expected.clone()]));
        for id in ["\"513\"", "513"] {
            let old = format!(
                r#"{{"id":"0xA","blobId":{id},"size":"1000","certifiedEpoch":"1",
                    "storage":{{"endEpoch":"14"}},"deletable":true}}"#
            );
            assert_eq!(listed(&old), Ok(vec![expected.clone()]), "{old}");
        }
        let uncertified = today.replace("\"certifiedEpoch\":1", "\"certifiedEpoch\":null");
        assert!(!listed(&uncertified).unwrap()[0].certified);
        assert_eq!(listed(""), Ok(Vec::new()));
    }

    #[test]
    fn half_an_answer_is_none() {
        let good = format!(
            r#"{{"id":"{OBJECT}","blobId":"513","size":1,"storage":{{"endEpoch":14}},"deletable":true}}"#
        );
        assert!(listed(&good).is_ok());
        for (from, to, part) in [
            (OBJECT, "0xnone", "0xnone"),
            ("513", "5x", "blobId"),
            ("\"size\":1", "\"size\":-1", "size"),
            ("\"size\":1", "\"size\":1.5", "size"),
            ("\"endEpoch\":14", "\"endEpoch\":{}", "endEpoch"),
            ("\"endEpoch\":14", "\"x\":14", "endEpoch"),
            ("\"deletable\":true", "\"x\":true", "deletable"),
            ("true}", "true", "expected"),
        ] {
            let bad = good.replace(from, to);
            assert_ne!(bad, good);
            let why = listed(&format!("{good},{bad}")).unwrap_err();
            assert!(why.contains(part), "{bad}: {why}");
        }
        for garbage in ["", "{}", "null", "2026 WARN nothing\n", "[1", "\u{0}"] {
            assert!(blobs(garbage.as_bytes()).is_err(), "{garbage}");
        }
    }

    #[test]
    fn lines_before_the_answer_are_skipped() {
        let output = b"a warning [1]\nmore\n{\"epochsExtended\":\n 3}\n";
        assert_eq!(extended(output), Ok(3));
        assert_eq!(extended(b" {\"epochsExtended\":\"3\"}"), Ok(3));
        assert!(extended(b"{\"epochsExtended\":3} {}").is_err());
        assert!(extended(b"{\"epochsExtended\":5000000000}").is_err());
    }

    #[test]
    fn epochs_and_their_beginnings() {
        let told = |start: &str| {
            let text = format!(
                r#"{{"currentEpoch":7,"startOfCurrentEpoch":{start},
                    "epochDuration":{{"secs":1209600,"nanos":0}},"maxEpochsAhead":53}}"#
            );
            epoch(text.as_bytes())
        };
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_742_914_824_408);
        let exact = told(r#"{"DateTime":"2025-03-25T15:00:24.408Z"}"#).unwrap();
        assert_eq!((exact.current, exact.max_ahead), (7, 53));
        assert_eq!(exact.length, Duration::from_secs(14 * 86_400));
        assert_eq!(exact.started_at, Some(time));
        assert_eq!(told(r#""2025-03-25T15:00:24.408Z""#).unwrap(), exact);
        for unknown in [
            r#"{"Message":"Epoch change is currently in progress"}"#,
            "null",
        ] {
            assert_eq!(told(unknown).unwrap().started_at, None);
        }
        assert!(told(r#"{"DateTime":"yesterday"}"#).is_err());
        assert!(epoch(b"{\"currentEpoch\":7}").is_err());
        let still = br#"{"currentEpoch":7,"epochDuration":{"secs":0},"maxEpochsAhead":53}"#;
        assert!(epoch(still).is_err());
        let both = br#"{"storagePricePerUnitSize":"5","writePricePerUnitSize":6,"x":1}"#;
        let (storage, write) = (5, 6);
        assert_eq!(prices(both), Ok(Prices { storage, write }));
        assert!(prices(b"{\"storagePricePerUnitSize\":5}").is_err());
    }

    #[test]
    fn deletions_fail_in_the_answer() {
        let told = |entry: &str| {
            let text = format!(
                r#"[{{"blobIdentity":{{"blobId":null,"file":null,"objectId":"0xA"}},{entry}}}]"#
            );
            let mut outcomes = deleted(text.as_bytes(), &ids(), &[]).unwrap();
            assert_eq!(outcomes.len(), 1);
            outcomes
                .remove(0)
                .map_err(|e| (Failure::of(&e).unwrap(), e.message().to_owned()))
        };
        let gone = format!(r#""deletedBlobs":[{{"id":"{OBJECT}"}}],"noBlobFound":false"#);
        assert_eq!(told(&format!("{gone},\"aborted\":false")), Ok(()));
        // An error counts, whatever else is told.
        let (failure, text) =
            told(&format!("{gone},\"error\":\"no sufficient balance\"")).unwrap_err();
        assert_eq!(failure, Failure::EmptyWallet);
        assert!(text.contains("the wallet lacks WAL") && text.contains("(no sufficient balance)"));
        let kept = r#""deletedBlobs":[],"error":"MoveAbort: EBlobNotDeletable""#;
        assert_eq!(told(kept).unwrap_err().0, Failure::Refused);
        let absent = r#""deletedBlobs":[],"noBlobFound":true,"aborted":false"#;
        assert_eq!(told(absent).unwrap_err().0, Failure::Absent);
        assert_eq!(told("\"aborted\":true").unwrap_err().0, Failure::Unusable);
        assert_eq!(
            told("\"deletedBlobs\":[{\"id\":\"0xb\"}]").unwrap_err().0,
            Failure::Unclear
        );
        let mut none = deleted(b"[]", &ids(), &[]).unwrap();
        let error = none.remove(0).unwrap_err();
        assert_eq!(Failure::of(&error), Some(Failure::Unclear));
        assert!(deleted(b"{}", &ids(), &[]).is_err());
    }
}
