//! Blob IDs.

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine as _;

/// The 32 bytes of a blob ID: 43 characters of base64url without padding.
pub(super) fn decode(id: &str) -> Option<[u8; 32]> {
    if id.len() != 43 {
        return None;
    }
    URL_SAFE_NO_PAD.decode(id).ok()?.try_into().ok()
}
