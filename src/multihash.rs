//! The multihash in a datastore key, and whether a block matches it.
//!
//! Kubo's blockstore keys are `/` + base32 (RFC 4648, upper case, no padding) of the block's
//! multihash: varint hash code, varint digest length, digest
//! (<https://github.com/multiformats/multihash>, codes from the multicodec table).

use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use sha3::{Keccak224, Keccak256, Keccak384, Keccak512, Sha3_224, Sha3_256, Sha3_384, Sha3_512};
use shake::digest::{ExtendableOutput, XofReader};
use shake::{Shake128, Shake256};

/// The shortest digest that counts as one (bytes), as in the CIDs that IPFS accepts. Shorter ones
/// are more likely keys that happen to look like a multihash.
const MIN_DIGEST: usize = 20;

/// Namespaces of Kubo and libp2p whose keys end in a multihash that is not the value's: peer IDs
/// (of records of IPNS, providers, the peerstore) and blocks that a file of the filestore holds.
/// Such keys come where the datastore is mounted at `/`.
const NOT_OF_THE_VALUE: &[&str] = &["ipns", "providers", "peers", "filestore"];

const IDENTITY: u64 = 0x00;
const SHA1: u64 = 0x11;
const SHA2_256: u64 = 0x12;
const SHA2_512: u64 = 0x13;
const SHA3_512: u64 = 0x14;
const SHA3_384: u64 = 0x15;
const SHA3_256: u64 = 0x16;
const SHA3_224: u64 = 0x17;
const SHAKE_128: u64 = 0x18;
const SHAKE_256: u64 = 0x19;
const KECCAK_224: u64 = 0x1a;
const KECCAK_256: u64 = 0x1b;
const KECCAK_384: u64 = 0x1c;
const KECCAK_512: u64 = 0x1d;
const BLAKE3: u64 = 0x1e;
const SHA2_384: u64 = 0x20;
const DBL_SHA2_256: u64 = 0x56;
const SHA2_224: u64 = 0x1013;
/// `blake2b-8` is this + 1 … `blake2b-512` is this + 64.
const BLAKE2B: u64 = 0xb200;
/// `blake2s-8` is this + 1 … `blake2s-256` is this + 32.
const BLAKE2S: u64 = 0xb240;

/// Whether `value` is the content that `key` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// The key holds a multihash and the value hashes to it.
    Yes,
    /// The key holds a multihash and the value does not hash to it.
    No,
    /// The key holds no multihash that can be checked.
    Unknown,
}

/// A multihash of a function that is known here, other than identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multihash {
    bytes: Vec<u8>,
    code: u64,
    digest_at: usize,
}

impl Multihash {
    /// The multihash in the last component of `key`, if there is one that can be checked.
    pub fn of_key(key: &str) -> Option<Multihash> {
        let bytes = decode_key(key)?;
        let (code, digest) = split(&bytes)?;
        if code == IDENTITY || digest_matches(code, digest, &[]).is_none() {
            return None;
        }
        let digest_at = bytes.len() - digest.len();
        Some(Multihash {
            bytes,
            code,
            digest_at,
        })
    }

    /// Function, length and digest, as they stand in a key.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether `value` hashes to this multihash.
    pub fn names(&self, value: &[u8]) -> bool {
        digest_matches(self.code, &self.bytes[self.digest_at..], value) == Some(true)
    }
}

/// The multihash that a whole key is: `/` and base32, as Kubo's block store names blocks.
#[derive(Debug)]
pub(crate) struct KeyMultihash {
    /// Function, length and digest.
    pub(crate) bytes: Vec<u8>,
    /// The code of the function, which need not be known here; never identity.
    pub(crate) code: u64,
    /// Where the digest begins.
    pub(crate) digest_at: usize,
}

impl KeyMultihash {
    /// `None` for keys that are anything else: in another namespace, with a digest of less than 20
    /// bytes, or with the value itself (identity).
    pub(crate) fn of(key: &str) -> Option<KeyMultihash> {
        let text = key.strip_prefix('/')?;
        let bytes = data_encoding::BASE32_NOPAD.decode(text.as_bytes()).ok()?;
        let (code, digest) = split(&bytes)?;
        let digest_at = bytes.len() - digest.len();
        (code != IDENTITY).then_some(KeyMultihash {
            bytes,
            code,
            digest_at,
        })
    }

    /// The key whose multihash this is.
    pub(crate) fn key(code: u64, digest: &[u8]) -> Option<String> {
        let mut bytes = Vec::with_capacity(digest.len() + 12);
        push_varint(&mut bytes, code);
        push_varint(&mut bytes, digest.len() as u64);
        bytes.extend_from_slice(digest);
        let (read, rest) = split(&bytes)?;
        let is_one = read == code && rest.len() == digest.len() && code != IDENTITY;
        is_one.then(|| format!("/{}", data_encoding::BASE32_NOPAD.encode(&bytes)))
    }
}

/// Checks `value` against the multihash in the last component of `key`.
pub fn check(key: &str, value: &[u8]) -> Match {
    let Some(multihash) = decode_key(key) else {
        return Match::Unknown;
    };
    let Some((code, digest)) = split(&multihash) else {
        return Match::Unknown;
    };
    match digest_matches(code, digest, value) {
        None => Match::Unknown,
        Some(true) => Match::Yes,
        Some(false) => Match::No,
    }
}

/// Whether `key` holds a multihash that can be checked, so that only one value can be stored under
/// it.
pub fn names_content(key: &str) -> bool {
    check(key, &[]) != Match::Unknown
}

/// Hash code and digest of a multihash.
fn split(multihash: &[u8]) -> Option<(u64, &[u8])> {
    let (code, rest) = shortest_varint(multihash)?;
    let (len, digest) = shortest_varint(rest)?;
    let whole = len == digest.len() as u64;
    let long_enough = code == IDENTITY || digest.len() >= MIN_DIGEST;
    (whole && long_enough).then_some((code, digest))
}

/// Whether `digest` is a digest of `value`; `None` for an unknown code.
///
/// The functions are those that Kubo accepts (boxo's `verifcid.DefaultAllowlist`) and the SHA-2
/// family. A digest may be cut short for every one of them, BLAKE2 included: go-multihash's `Sum`
/// computes the digest that the code stands for and keeps its first bytes. The extendable functions
/// give at most as many bytes as go-multihash takes of them, but for BLAKE3, whose length
/// go-multihash asks for.
fn digest_matches(code: u64, digest: &[u8], value: &[u8]) -> Option<bool> {
    let prefix = |full: &[u8]| full.get(..digest.len()) == Some(digest);
    Some(match code {
        // Unlike a hash, an identity digest holds the value itself and may be of any length, so a
        // short key can look like one by accident: only equality tells anything.
        IDENTITY if digest == value => true,
        SHA1 => prefix(&Sha1::digest(value)),
        SHA2_224 => prefix(&Sha224::digest(value)),
        SHA2_256 => prefix(&Sha256::digest(value)),
        SHA2_384 => prefix(&Sha384::digest(value)),
        SHA2_512 => prefix(&Sha512::digest(value)),
        DBL_SHA2_256 => prefix(&Sha256::digest(Sha256::digest(value))),
        SHA3_224 => prefix(&Sha3_224::digest(value)),
        SHA3_256 => prefix(&Sha3_256::digest(value)),
        SHA3_384 => prefix(&Sha3_384::digest(value)),
        SHA3_512 => prefix(&Sha3_512::digest(value)),
        SHAKE_128 => prefix(&extended::<32>(Shake128::default(), value)),
        SHAKE_256 => prefix(&extended::<64>(Shake256::default(), value)),
        KECCAK_224 => prefix(&Keccak224::digest(value)),
        KECCAK_256 => prefix(&Keccak256::digest(value)),
        KECCAK_384 => prefix(&Keccak384::digest(value)),
        KECCAK_512 => prefix(&Keccak512::digest(value)),
        BLAKE3 => {
            let mut full = vec![0; digest.len()];
            blake3::Hasher::new()
                .update(value)
                .finalize_xof()
                .fill(&mut full);
            full == digest
        }
        // The length of the whole digest is a parameter of BLAKE2: the code gives it.
        _ if (BLAKE2B + MIN_DIGEST as u64..=BLAKE2B + 64).contains(&code) => {
            let len = (code - BLAKE2B) as usize;
            let full = blake2b_simd::Params::new().hash_length(len).hash(value);
            prefix(full.as_bytes())
        }
        _ if (BLAKE2S + MIN_DIGEST as u64..=BLAKE2S + 32).contains(&code) => {
            let len = (code - BLAKE2S) as usize;
            let full = blake2s_simd::Params::new().hash_length(len).hash(value);
            prefix(full.as_bytes())
        }
        _ => return None,
    })
}

/// The first `LEN` bytes of the output of an extendable function for `value`.
fn extended<const LEN: usize>(mut function: impl ExtendableOutput, value: &[u8]) -> [u8; LEN] {
    let mut out = [0; LEN];
    function.update(value);
    function.finalize_xof().read(&mut out);
    out
}

fn decode_key(key: &str) -> Option<Vec<u8>> {
    let mut components = key.rsplit('/');
    let text = components.next().filter(|t| !t.is_empty())?;
    if components.any(|component| NOT_OF_THE_VALUE.contains(&component)) {
        return None;
    }
    data_encoding::BASE32_NOPAD.decode(text.as_bytes()).ok()
}

/// A number as [`varint`] reads it, in the fewest bytes: go-multihash takes no other.
pub(crate) fn shortest_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (value, rest) = varint(bytes)?;
    let len = bytes.len() - rest.len();
    (len == 1 || bytes[len - 1] != 0).then_some((value, rest))
}

/// An unsigned LEB128 number of at most nine bytes, and what follows it.
pub(crate) fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (i, byte) in bytes.iter().take(9).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}

/// Appends a number as [`varint`] reads it.
pub(crate) fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// How many bytes [`push_varint`] appends.
pub(crate) fn varint_len(value: u64) -> u64 {
    u64::from((64 - (value | 1).leading_zeros()).div_ceil(7))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(code: &[u8], digest: &[u8]) -> String {
        let mut multihash = code.to_vec();
        multihash.push(digest.len() as u8);
        multihash.extend_from_slice(digest);
        format!("/{}", data_encoding::BASE32_NOPAD.encode(&multihash))
    }

    fn hex(s: &str) -> Vec<u8> {
        data_encoding::HEXLOWER.decode(s.as_bytes()).unwrap()
    }

    /// Digests of "abc" from the standards' own examples (FIPS 180-4, FIPS 202, RFC 7693, BLAKE3).
    #[test]
    fn known_digests() {
        let abc: &[(&[u8], &str)] = &[
            (&[0x12], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (&[0x13], "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"),
            (&[0x16], "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"),
            (&[0x1b], "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"),
            (&[0x1e], "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"),
            (&[0xc0, 0xe4, 0x02], "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d17d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923"),
            (&[0xe0, 0xe4, 0x02], "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"),
        ];
        for (code, digest) in abc {
            let key = key(code, &hex(digest));
            assert_eq!(check(&key, b"abc"), Match::Yes, "{key}");
            assert_eq!(check(&key, b"abd"), Match::No, "{key}");
            assert_eq!(check(&format!("/blocks{key}"), b"abc"), Match::Yes);
        }
    }

    #[test]
    fn truncated_digests_are_compared_by_prefix() {
        let full = Sha512::digest(b"abc");
        assert_eq!(check(&key(&[0x13], &full[..32]), b"abc"), Match::Yes);
        assert_eq!(check(&key(&[0x13], &full[..32]), b"x"), Match::No);
        assert_eq!(check(&key(&[0x13], &full[..8]), b"abc"), Match::Unknown);
        // Longer than the hash gives: cannot match.
        assert_eq!(check(&key(&[0x12], &full[..40]), b"abc"), Match::No);
    }

    #[test]
    fn other_keys_are_unknown() {
        for key in ["", "/", "/foo", "/AAAA", "/a/b", "/CIQ", "/é", "/A1"] {
            assert_eq!(check(key, b"value"), Match::Unknown, "{key}");
        }
        assert_eq!(check(&key(&[0x00], b"value"), b"value"), Match::Yes);
        assert_eq!(check(&key(&[0x00], b"value"), b"other"), Match::Unknown);
    }

    #[test]
    fn a_multihash_of_a_key_can_be_checked() {
        let sha = key(&[0x12], &Sha256::digest(b"abc"));
        let hash = Multihash::of_key(&format!("/blocks{sha}")).unwrap();
        assert_eq!(Some(hash.clone()), Multihash::of_key(&sha));
        assert_eq!(hash.as_bytes()[..2], [0x12, 32]);
        assert_eq!(hash.as_bytes().len(), 34);
        assert!(hash.names(b"abc"));
        assert!(!hash.names(b"abd"));
        let short = key(&[0x13], &Sha512::digest(b"abc")[..8]);
        let identity = key(&[0x00], b"a value of at least twenty bytes");
        let unknown = key(&[0xd5, 0x01], &[7; 20]); // MD5
        for other in ["", "/a/b", &short, &identity, &unknown] {
            assert_eq!(Multihash::of_key(other), None, "{other}");
        }
    }

    /// Every function that Kubo accepts by default, whole and cut to 20 bytes (the least that it
    /// accepts), from a table that go-multihash v0.2.3 made: code, digest, and the value it is of.
    #[test]
    fn what_kubo_accepts_is_checked() {
        let table = include_str!("multihash/kubo.tsv");
        let mut codes = std::collections::BTreeSet::new();
        for line in table.lines().filter(|line| !line.starts_with('#')) {
            let mut fields = line.split('\t');
            let code = u64::from_str_radix(fields.next().unwrap(), 16).unwrap();
            let multihash = hex(fields.next().unwrap());
            let value = hex(fields.next().unwrap());
            let key = format!("/{}", data_encoding::BASE32_NOPAD.encode(&multihash));
            assert_eq!(check(&key, &value), Match::Yes, "{code:x}: {key}");
            if code == IDENTITY {
                continue;
            }
            let other = [&value[..], b"x"].concat();
            assert_eq!(check(&key, &other), Match::No, "{code:x}: {key}");
            assert!(Multihash::of_key(&key).is_some(), "{code:x}: {key}");
            codes.insert(code);
        }
        // verifcid's defaultAllowlist.IsAllowed (boxo v0.42.1, verifcid/allowlist.go), but for
        // identity. Its Keccak-224 and -384 and BLAKE2s below 32 bytes are not in go-multihash's
        // registry.
        let allowed = [
            0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x19, 0x1b, 0x1d, 0x1e, 0x56, 0xb260,
        ];
        let allowed = allowed.into_iter().chain(0xb214..=0xb240);
        assert_eq!(codes, allowed.collect());
        for code in [0x1a_u64, 0x1c].into_iter().chain(0xb254..=0xb260) {
            assert!(digest_matches(code, &[0; 20], b"").is_some(), "{code:x}");
        }
    }

    /// Digests of other lengths, of a value of several blocks of every function. Made by
    /// go-multihash v0.2.3.
    #[test]
    fn other_lengths_of_a_longer_value() {
        let value: Vec<u8> = (0..3000_u32).map(|i| (i * 7 + i / 256) as u8).collect();
        for multihash in [
            "1e200d13fde276c0e57a420ced7e4cfdb84ab8f32d3065454531fc0919af42b3d6d7",
            "1e400d13fde276c0e57a420ced7e4cfdb84ab8f32d3065454531fc0919af42b3d6d7b7c618a78a6afcf4fca232acc80957b8e316fe9798c0cad6b2858fe5a5e950bd",
            "1e80010d13fde276c0e57a420ced7e4cfdb84ab8f32d3065454531fc0919af42b3d6d7b7c618a78a6afcf4fca232acc80957b8e316fe9798c0cad6b2858fe5a5e950bd2d13a32b66a6911e1efca4a8097fa2f397ca4486703c508ca387bdaf40a743bdf68dfc756194d07e79cbcd2230a409dc7721e33a30aa534ea01b4edb5278abf2",
            "1920fdb71190913ccb877f09ccfb35ba839460529e82bb959376c5ab634ad7f0562a",
            "c0e402208b0329c3c4b8c5c8642acea67f3868fa43583efc0f867e067ad5f3e2f8501ada",
            "a0e4021449710d4dd33be4fc5ab812596293c9bbe4840180",
            "e0e402148565dd25aa95af38c8cf44fc4d2c23f160ed9948",
            "1320182ed25d809e1fa8272618edf8d446efc633b82d52bf38030c5e6bc4b6dd4815",
            "111451e136e738d733ae47ad5373d573bc996c6e4965",
            "c0e4023f8b0329c3c4b8c5c8642acea67f3868fa43583efc0f867e067ad5f3e2f8501adacb50e5cef88efe0e8dce76d8e471873f668d235e1af7caf5b776f53743763a",
            "9fe40219a41829f89418464e09a694b5282db3c75764e1ad0aae0ed60c",
        ] {
            let key = format!("/{}", data_encoding::BASE32_NOPAD.encode(&hex(multihash)));
            assert_eq!(check(&key, &value), Match::Yes, "{multihash}");
            assert_eq!(check(&key, &value[1..]), Match::No, "{multihash}");
        }
    }

    /// The keys as Kubo writes them where the datastore is mounted at `/`.
    #[test]
    fn keys_of_peers_and_of_the_filestore_name_no_value() {
        let hash = key(&[0x12], &Sha256::digest(b"a public key, or a block"));
        for namespace in [
            "/ipns",
            "/providers/CIQFTFEEHEDF6KLBT32BFAGLXEZL4UWFNWM4LFTLMXQBCERZ6CMLX3Y",
            "/peers/addrs",
            "/filestore",
            "/namespace/filestore",
        ] {
            let key = format!("{namespace}{hash}");
            assert_eq!(check(&key, b"a record"), Match::Unknown, "{key}");
            assert_eq!(Multihash::of_key(&key), None, "{key}");
        }
        for namespace in ["", "/blocks", "/namespace", "/namespace/blocks"] {
            let key = format!("{namespace}{hash}");
            assert_eq!(check(&key, b"a record"), Match::No, "{key}");
        }
    }

    #[test]
    fn a_number_in_more_bytes_than_needed_makes_no_multihash() {
        let digest = Sha256::digest(b"abc");
        for head in [&[0x92, 0x00, 32][..], &[0x12, 0xa0, 0x00]] {
            let key = data_encoding::BASE32_NOPAD.encode(&[head, &digest[..]].concat());
            assert_eq!(check(&format!("/{key}"), b"abc"), Match::Unknown);
            assert_eq!(check(&format!("/{key}"), b"abd"), Match::Unknown);
        }
    }

    #[test]
    fn a_whole_key_is_a_multihash() {
        let sha = key(&[0x12], &Sha256::digest(b"abc"));
        let whole = KeyMultihash::of(&sha).unwrap();
        assert_eq!(
            (whole.code, whole.digest_at, whole.bytes.len()),
            (0x12, 2, 34)
        );
        let digest = &whole.bytes[whole.digest_at..];
        assert_eq!(KeyMultihash::key(0x12, digest), Some(sha.clone()));
        // A function that is not known here, and a digest cut to 20 bytes.
        for other in [key(&[0xd5, 0x01], &[7; 20]), key(&[0x13], &[7; 20])] {
            let whole = KeyMultihash::of(&other).unwrap();
            let digest = &whole.bytes[whole.digest_at..];
            assert_eq!(KeyMultihash::key(whole.code, digest), Some(other));
        }
        assert_eq!(KeyMultihash::key(0x00, &[7; 32]), None);
        assert_eq!(KeyMultihash::key(0x12, &[7; 19]), None);
        assert_eq!(KeyMultihash::key(u64::MAX, &[7; 32]), None);
        for other in [
            format!("/blocks{sha}"),
            sha.to_lowercase(),
            format!("{sha}A"),
            sha[1..].to_owned(),
            key(&[0x00], b"a value of at least twenty bytes"),
            key(&[0x13], &[7; 19]),
            key(&[0x92, 0x00], &[7; 32]),
            "/".to_owned(),
            String::new(),
        ] {
            assert!(KeyMultihash::of(&other).is_none(), "{other}");
        }
    }

    #[test]
    fn numbers_are_written_as_they_are_read() {
        for n in [
            0,
            1,
            127,
            128,
            300,
            16_383,
            16_384,
            u64::from(u32::MAX),
            u64::MAX >> 1,
        ] {
            let mut out = Vec::new();
            push_varint(&mut out, n);
            assert_eq!(shortest_varint(&out), Some((n, &[][..])));
            assert_eq!(varint_len(n), out.len() as u64, "{n}");
        }
    }

    #[test]
    fn keccak_of_other_lengths() {
        // Keccak-224 and -384 of the empty string (the Keccak team's KeccakKAT).
        for (code, digest) in [
            (0x1a, "f71837502ba8e10837bdd8d365adb85591895602fc552b48b7390abd"),
            (0x1c, "2c23146a63a29acf99e73b88f8c24eaa7dc60aa771780ccc006afbfa8fe2479b2dd2b21362337441ac12b515911957ff"),
        ] {
            assert_eq!(digest_matches(code, &hex(digest), b""), Some(true), "{code:x}");
        }
    }

    #[test]
    fn the_empty_block_of_unixfs() {
        // CID QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn: the empty directory, bytes 0a020801.
        let key = key(&[0x12], &Sha256::digest([0x0a, 0x02, 0x08, 0x01]));
        assert_eq!(
            key,
            "/CIQFTFEEHEDF6KLBT32BFAGLXEZL4UWFNWM4LFTLMXQBCERZ6CMLX3Y"
        );
        assert_eq!(check(&key, &[0x0a, 0x02, 0x08, 0x01]), Match::Yes);
    }
}
