//! What an operator may name: a datastore key, a CID, a blob.

use data_encoding::BASE32_NOPAD;

use crate::error::{Error, ErrorKind, Result};
use crate::multihash::{self, KeyMultihash, Match};
use crate::walrus::usual_form;

/// A CID whose digest has up to 128 bytes, the most that Kubo takes: of a hash (go-verifcid's
/// limit) and of a block that is in its CID (boxo's `DefaultMaxIdentityDigestSize`). The crate's
/// own `Cid` ends at 64.
pub type Cid = cid::CidGeneric<128>;

/// A thing that an operator has named.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// A datastore key (`/CIQ…`).
    Key(String),
    /// A CID; its block has the key that [`key_of`] gives.
    Cid(Cid),
    /// A Walrus blob ID, in its usual form.
    Blob(String),
}

impl Target {
    /// Understands a datastore key (`/CIQ…`, or without the stroke), a CID (`bafy…`, `Qm…`,
    /// `/ipfs/…`) or a blob ID (43 characters, or the decimal number that old programs print).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`].
    pub fn parse(text: &str) -> Result<Target> {
        let text = text.trim();
        if let Some(path) = text.strip_prefix("/ipfs/").or(text.strip_prefix("ipfs://")) {
            return match (
                path.trim_end_matches('/'),
                path.trim_end_matches('/').parse(),
            ) {
                (_, Ok(cid)) => Ok(Target::Cid(cid)),
                (path, Err(_)) if path.contains('/') => Err(bad(
                    text,
                    "a path below a CID; name the CID itself (`ipfs resolve` gives it)",
                )),
                _ => Err(bad(text, "not a CID")),
            };
        }
        if text.starts_with('/') {
            return Ok(Target::Key(text.to_owned()));
        }
        if let Some(blob_id) = usual_form(text) {
            return Ok(Target::Blob(blob_id));
        }
        if let Ok(cid) = text.parse() {
            return Ok(Target::Cid(cid));
        }
        let key = format!("/{text}");
        match KeyMultihash::of(&key) {
            Some(_) => Ok(Target::Key(key)),
            None => Err(bad(
                text,
                "neither a key (/CIQ…), nor a CID (bafy…, Qm…), nor a blob ID (43 characters)",
            )),
        }
    }
}

fn bad(text: &str, what: &str) -> Error {
    let shown: String = text.chars().take(80).collect();
    Error::new(ErrorKind::InvalidArgument, format!("{shown:?} is {what}"))
}

/// The datastore key of a CID's block, as Kubo names it. `prefix` is what a datastore that is not
/// mounted at `/blocks` has before it.
pub fn key_of(cid: &Cid, prefix: &str) -> String {
    let hash = cid.hash().to_bytes();
    format!("{prefix}/{}", BASE32_NOPAD.encode(&hash))
}

/// Whether a value hashes to the multihash in its key. `None`: the key names no content, or by a
/// function that is not known here.
pub fn hashes_to(key: &str, value: &[u8]) -> Option<bool> {
    match multihash::check(key, value) {
        Match::Yes => Some(true),
        Match::No => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V0: &str = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn";
    const V1: &str = "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354";
    const KEY: &str = "/CIQFTFEEHEDF6KLBT32BFAGLXEZL4UWFNWM4LFTLMXQBCERZ6CMLX3Y";

    #[test]
    fn a_value_is_held_against_its_key() {
        // The empty directory.
        assert_eq!(hashes_to(KEY, &[0x0a, 0x02, 0x08, 0x01]), Some(true));
        assert_eq!(hashes_to(KEY, b"other"), Some(false));
        assert_eq!(hashes_to("/greeting", b"hello"), None);
    }

    #[test]
    fn each_form_is_known() {
        for text in [V0, V1, &format!("/ipfs/{V1}"), &format!("ipfs://{V0}/")] {
            let Ok(Target::Cid(cid)) = Target::parse(text) else {
                panic!("{text}");
            };
            assert_eq!(key_of(&cid, ""), KEY);
            assert_eq!(key_of(&cid, "/blocks"), format!("/blocks{KEY}"));
        }
        for text in [KEY, &KEY[1..]] {
            assert_eq!(Target::parse(text).unwrap(), Target::Key(KEY.to_owned()));
        }
        let id = "M".repeat(42) + "A";
        assert_eq!(Target::parse(&id).unwrap(), Target::Blob(id.clone()));
        let decimal = Target::parse("513").unwrap();
        assert!(matches!(decimal, Target::Blob(id) if id.len() == 43));
    }

    #[test]
    fn a_cid_may_hold_a_block_of_128_bytes() {
        let hash = cid::multihash::Multihash::wrap(0, &[7; 128]).unwrap();
        let cid = Cid::new_v1(0x55, hash);
        assert_eq!(Target::parse(&cid.to_string()).unwrap(), Target::Cid(cid));
    }

    #[test]
    fn anything_else_is_refused_with_what_is_expected() {
        for text in ["", "hello", "bafybroken", "/ipfs/nothing"] {
            let error = Target::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.message().contains("CID"), "{error}");
        }
        let below = Target::parse(&format!("/ipfs/{V1}/readme")).unwrap_err();
        assert!(below.message().contains("ipfs resolve"), "{below}");
    }
}
