//! The blobs of which an index is rebuilt: a list, from a file, the wallet, or a ledger's backup.
//!
//! A blob may be listed more than once, as it may be registered more than once. Then what is known
//! of the registration that ends last counts, as in the ledger.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::time::SystemTime;

use serde_json::{json, Map, Value};

use crate::error::{one_line, Error, ErrorKind, Result};
use crate::index::ledger::InState;
use crate::index::{Blob, BlobState, Ledger};
use crate::lifetime::chain::{object_id, Chain};
use crate::walrus::usual_form;

/// Blobs to rebuild an index of, the ones that end last first. It is held in memory: about 200
/// bytes for each blob.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct List {
    blobs: Vec<Blob>,
}

impl List {
    /// A list of these blobs, in any order. Only what is known of a blob need be set, beside its
    /// ID.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for an ID that is none.
    pub fn new(blobs: impl IntoIterator<Item = Blob>) -> Result<List> {
        let mut all: Vec<Blob> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for mut blob in blobs {
            blob.blob_id = usual_form(&blob.blob_id).ok_or_else(|| no_id(&blob.blob_id))?;
            match places.get(&blob.blob_id) {
                Some(at) => join(&mut all[*at], blob),
                None => {
                    places.insert(blob.blob_id.clone(), all.len());
                    all.push(blob);
                }
            }
        }
        all.sort_unstable_by(|a, b| {
            let newest = |blob: &Blob| (blob.end_epoch, blob.registered_epoch);
            let ends = newest(b).cmp(&newest(a));
            ends.then_with(|| a.blob_id.cmp(&b.blob_id))
        });
        Ok(List { blobs: all })
    }

    /// Reads a list. It is a JSON array, or has an item on each line; empty lines and those that
    /// begin with `#` are skipped. An item is a blob ID (as it is, or as a JSON text), or a JSON
    /// object: of [`export`], of `walrus list-blobs --json`, or of the listing of the local Walrus.
    /// An object needs no more than `blobId`. A registration without a certificate is left out, as
    /// nothing can be read of it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] naming the line or the item that is not understood;
    /// [`ErrorKind::Disk`] if it cannot be read.
    pub fn read(mut from: impl Read) -> Result<List> {
        let mut text = String::new();
        from.read_to_string(&mut text).map_err(|e| {
            let text = format!("the list of blobs cannot be read: {e}");
            Error::new(ErrorKind::Disk, text).caused_by(e)
        })?;
        let text = text.trim_start_matches('\u{feff}');
        let mut blobs = Vec::new();
        if text.trim_start().starts_with('[') {
            let items: Vec<Value> = serde_json::from_str(text)
                .map_err(|e| bad(format!("is no JSON array, as its beginning says: {e}")))?;
            for (n, item) in items.iter().enumerate() {
                let read = of_value(item, &mut blobs);
                read.map_err(|why| bad(format!("has an item (number {}) that {why}", n + 1)))?;
            }
            return List::new(blobs);
        }
        for (n, line) in text.lines().enumerate() {
            let line = line.trim().trim_end_matches(',');
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let read = match line.starts_with(['{', '"']) {
                false => of_id(line).map(|blob| blobs.push(blob)),
                true => serde_json::from_str(line)
                    .map_err(|e| format!("is no JSON: {e}"))
                    .and_then(|item| of_value(&item, &mut blobs)),
            };
            read.map_err(|why| bad(format!("has a line (number {}) that {why}", n + 1)))?;
        }
        List::new(blobs)
    }

    /// The blobs of a wallet, without those that have no certificate. Blobs that a publisher owns
    /// are in the publisher's wallet.
    ///
    /// # Errors
    /// As the list of the chain.
    pub async fn of_wallet(chain: &dyn Chain) -> Result<List> {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let owned = chain.list().await?.into_iter();
        List::new(owned.filter(|blob| blob.certified).map(|blob| Blob {
            blob_id: blob.blob_id,
            object_id: blob.object_id,
            size: number(blob.size),
            end_epoch: number(blob.end_epoch),
            deletable: blob.deletable,
            ..Blob::default()
        }))
    }

    /// The blobs, in the order in which they are rebuilt.
    pub fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    /// A text that equal lists have in common.
    pub(super) fn fingerprint(&self) -> String {
        let mut hash = blake3::Hasher::new();
        for blob in &self.blobs {
            hash.update(blob.blob_id.as_bytes());
            hash.update(&blob.end_epoch.to_le_bytes());
        }
        hash.finalize().to_hex()[..32].to_owned()
    }
}

/// Writes a line for each live blob of a ledger, which [`List::read`] reads: the ledger's backup.
/// Returns how many there are.
///
/// # Errors
/// As [`Ledger::blobs_in_state`]; [`ErrorKind::Disk`] if the lines cannot be written.
pub async fn export(index: &dyn Ledger, to: &mut (dyn Write + Send)) -> Result<u64> {
    let failed = |e: std::io::Error| {
        let text = format!("the ledger's backup cannot be written: {e}");
        Error::new(ErrorKind::Disk, text).caused_by(e)
    };
    let mut written = 0;
    let mut live = InState::new(index, BlobState::Live);
    while let Some(page) = live.next().await? {
        for blob in &page {
            writeln!(to, "{}", line(blob)).map_err(failed)?;
        }
        written += page.len() as u64;
    }
    to.flush().map_err(failed)?;
    Ok(written)
}

/// A blob as a JSON object, without what is not known of it.
fn line(blob: &Blob) -> Value {
    let time = |at: SystemTime| humantime::format_rfc3339_micros(at).to_string();
    let in_years = |at: &SystemTime| {
        let since = at.duration_since(SystemTime::UNIX_EPOCH);
        since.is_ok_and(|since| since.as_secs() < 253_402_300_800)
    };
    let mut line = Map::new();
    line.insert("blobId".to_owned(), json!(blob.blob_id));
    for (name, text) in [
        ("objectId", &blob.object_id),
        ("format", &blob.format),
        ("digest", &blob.digest),
    ] {
        if !text.is_empty() {
            line.insert(name.to_owned(), json!(text));
        }
    }
    for (name, number) in [
        ("size", blob.size),
        ("encodedSize", blob.encoded_size),
        ("cost", blob.cost),
        ("registeredEpoch", blob.registered_epoch),
        ("endEpoch", blob.end_epoch),
    ] {
        if number > 0 {
            line.insert(name.to_owned(), json!(number));
        }
    }
    line.insert("deletable".to_owned(), json!(blob.deletable));
    if let Some(at) = blob.expires_at.filter(in_years) {
        line.insert("expiresAt".to_owned(), json!(time(at)));
    }
    Value::Object(line)
}

fn bad(what: String) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        format!("the list of blobs {what}"),
    )
}

fn no_id(text: &str) -> Error {
    bad(format!("has an item that {}", not_an_id(text)))
}

fn not_an_id(text: &str) -> String {
    let shown = one_line(text, 80);
    format!("has the blob ID {shown:?}; expected 43 characters of base64url")
}

fn of_id(text: &str) -> std::result::Result<Blob, String> {
    let blob_id = usual_form(text).ok_or_else(|| not_an_id(text))?;
    Ok(Blob {
        blob_id,
        ..Blob::default()
    })
}

/// Adds what one more registration of a blob tells.
fn join(known: &mut Blob, other: Blob) {
    let (last, first) = match other.end_epoch > known.end_epoch {
        true => (other, std::mem::take(known)),
        false => (std::mem::take(known), other),
    };
    let text = |a: String, b: String| if a.is_empty() { b } else { a };
    let number = |a: i64, b: i64| if a > 0 { a } else { b };
    *known = Blob {
        object_id: text(last.object_id, first.object_id),
        format: text(last.format, first.format),
        digest: text(last.digest, first.digest),
        size: number(last.size, first.size),
        encoded_size: number(last.encoded_size, first.encoded_size),
        cost: last.cost.max(first.cost),
        registered_epoch: last.registered_epoch.max(first.registered_epoch),
        expires_at: last.expires_at.max(first.expires_at),
        ..last
    };
}

/// The members of an object, under any of the names that programs give them.
struct Members<'a>(&'a Map<String, Value>);

impl<'a> Members<'a> {
    fn get(&self, names: &[&str]) -> Option<&'a Value> {
        let found = names.iter().find_map(|name| self.0.get(*name));
        found.filter(|value| !value.is_null())
    }

    fn text(&self, names: &[&str]) -> std::result::Result<String, String> {
        match self.get(names) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(wrong(names[0], other, "a text")),
        }
    }

    /// A number, or a text of one; 0 if there is none.
    fn number(&self, names: &[&str]) -> std::result::Result<i64, String> {
        let Some(value) = self.get(names) else {
            return Ok(0);
        };
        let number = match value {
            Value::Number(n) => n.as_i64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        number
            .filter(|n| *n >= 0)
            .ok_or_else(|| wrong(names[0], value, "a whole number"))
    }

    fn flag(&self, name: &str) -> std::result::Result<bool, String> {
        match self.get(&[name]) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(wrong(name, other, "true or false")),
        }
    }

    fn object(&self) -> std::result::Result<String, String> {
        let text = self.text(&["objectId", "object_id", "id"])?;
        match text.is_empty() {
            true => Ok(text),
            false => object_id(&text).map_err(|e| e.message().to_owned()),
        }
    }
}

fn wrong(name: &str, value: &Value, expected: &str) -> String {
    let shown = one_line(&value.to_string(), 60);
    format!("has {name} = {shown}; expected {expected}")
}

/// Adds the registrations that an item of a list tells of.
fn of_value(item: &Value, into: &mut Vec<Blob>) -> std::result::Result<(), String> {
    let members = match item {
        Value::String(id) => {
            into.push(of_id(id)?);
            return Ok(());
        }
        Value::Object(members) => Members(members),
        other => {
            let shown = one_line(&other.to_string(), 60);
            return Err(format!(
                "is {shown}; expected a blob ID or an object with blobId"
            ));
        }
    };
    let id = match members.get(&["blobId", "blob_id"]) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => return Err("has no blobId".to_owned()),
    };
    let none = Map::new();
    let storage = members.get(&["storage"]).and_then(Value::as_object);
    let storage = Members(storage.unwrap_or(&none));
    let number = |names: &[&str], of_storage: &str| match storage.number(&[of_storage])? {
        0 => members.number(names),
        number => Ok(number),
    };
    let expires_at = match &*members.text(&["expiresAt"])? {
        "" => None,
        text => Some(humantime::parse_rfc3339_weak(text).map_err(|e| {
            format!("has expiresAt = {text:?}; expected a time as 2027-01-31T12:00:00Z: {e}")
        })?),
    };
    let blob = Blob {
        blob_id: of_id(&id)?.blob_id,
        object_id: members.object()?,
        format: members.text(&["format"])?,
        size: members.number(&["size"])?,
        encoded_size: number(&["encodedSize", "encoded_size"], "storageSize")?,
        cost: members.number(&["cost"])?,
        deletable: members.flag("deletable")?,
        registered_epoch: members.number(&["registeredEpoch"])?,
        end_epoch: number(&["endEpoch", "end_epoch"], "endEpoch")?,
        expires_at,
        digest: members.text(&["digest"])?,
        ..Blob::default()
    };
    // `list-blobs` tells the epoch of the certificate, or null.
    if members.0.get("certifiedEpoch").is_some_and(Value::is_null) {
        return Ok(());
    }
    let Some(Value::Array(registrations)) = members.get(&["registrations"]) else {
        into.push(blob);
        return Ok(());
    };
    for registration in registrations {
        let Value::Object(registration) = registration else {
            return Err("has a registration that is no object".to_owned());
        };
        let registration = Members(registration);
        if registration.flag("uncertified")? {
            continue;
        }
        into.push(Blob {
            object_id: registration.object()?,
            deletable: registration.flag("deletable")?,
            registered_epoch: registration.number(&["start_epoch"])?,
            end_epoch: registration.number(&["end_epoch"])?,
            ..blob.clone()
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: &str) -> String {
        usual_form(n).unwrap()
    }

    fn ids(list: &List) -> Vec<&str> {
        list.blobs.iter().map(|blob| &*blob.blob_id).collect()
    }

    #[test]
    fn lists_of_all_kinds_are_read() {
        let (one, two, three) = (id("1"), id("2"), id("3"));
        let lines = format!(
            "# blobs\n\n {one} \n\"{two}\"\n{{\"blobId\":\"{three}\",\"endEpoch\":4}}\n2\n"
        );
        let list = List::read(lines.as_bytes()).unwrap();
        let mut expected = vec![&*one, &*two];
        expected.sort_unstable();
        expected.insert(0, &three);
        assert_eq!(ids(&list), expected, "the end first, each once");
        let of_wallet = format!(
            r#" [{{"id":"0xA","registeredEpoch":1,"blobId":"{one}","size":"1000","certifiedEpoch":1,
                 "storage":{{"id":"0xb","startEpoch":1,"endEpoch":14,"storageSize":7}},"deletable":true}},
                {{"id":"0xb","registeredEpoch":9,"blobId":"{two}","size":1,"certifiedEpoch":null,
                 "storage":{{"endEpoch":14}},"deletable":true}}]"#
        );
        let list = List::read(of_wallet.as_bytes()).unwrap();
        let expected = Blob {
            blob_id: one.clone(),
            object_id: format!("0x{:0>64}", "a"),
            size: 1000,
            encoded_size: 7,
            deletable: true,
            registered_epoch: 1,
            end_epoch: 14,
            ..Blob::default()
        };
        assert_eq!(list.blobs, [expected]);
        let of_devnet = format!(
            r#"[{{"blob_id":"{one}","size":5,"encoded_size":66034000,"units":63,"end_epoch":9,"live":true,
                "deletable":false,"registrations":[
                {{"object_id":"0x1","start_epoch":1,"end_epoch":9,"deletable":true,"tx_digest":"x"}},
                {{"object_id":"0x2","start_epoch":3,"end_epoch":7,"deletable":false,"tx_digest":"x"}},
                {{"object_id":"0x3","start_epoch":3,"end_epoch":70,"deletable":false,"uncertified":true}}]}}]"#
        );
        let list = List::read(of_devnet.as_bytes()).unwrap();
        let blob = &list.blobs[0];
        assert_eq!((list.blobs.len(), blob.end_epoch, blob.size), (1, 9, 5));
        assert!(blob.deletable && blob.object_id.ends_with('1'), "{blob:?}");
        assert!(List::read(&b"\n# none\n"[..]).unwrap().blobs.is_empty());
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let one = id("1");
        for (text, part) in [
            ("\nabc", "line (number 2)"),
            ("[1", "no JSON array"),
            ("[true]", "item (number 1)"),
            ("{\"blobId\":1", "is no JSON"),
            ("{\"size\":1}", "no blobId"),
            ("{\"blobId\":\"x\"}", "43 characters"),
            ("{\"blobId\":\"ID\",\"endEpoch\":-1}", "endEpoch = -1"),
            ("{\"blobId\":\"ID\",\"objectId\":\"x\"}", "no object ID"),
            ("{\"blobId\":\"ID\",\"deletable\":1}", "deletable = 1"),
            ("{\"blobId\":\"ID\",\"expiresAt\":\"soon\"}", "expiresAt"),
        ] {
            let e = List::read(text.replace("ID", &one).as_bytes()).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::InvalidArgument);
            assert!(e.message().contains(part), "{text}: {e}");
        }
    }

    #[test]
    fn a_line_of_the_backup_says_all_that_is_known() {
        let blob = Blob {
            blob_id: id("7"),
            object_id: format!("0x{:0>64}", "7"),
            format: "car".to_owned(),
            size: 1,
            encoded_size: 2,
            cost: 3,
            deletable: true,
            registered_epoch: 4,
            end_epoch: 5,
            expires_at: Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_micros(6_000_007)),
            digest: "ab".repeat(32),
            ..Blob::default()
        };
        let bare = Blob {
            blob_id: id("8"),
            ..Blob::default()
        };
        let text = format!("{}\n{}\n", line(&blob), line(&bare));
        assert_eq!(List::read(text.as_bytes()).unwrap().blobs, [blob, bare]);
    }
}
