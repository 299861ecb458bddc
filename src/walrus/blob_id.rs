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

/// The usual form of a blob ID that a program prints: older ones print it as a decimal number (the
/// 32 bytes, the lowest first).
pub(crate) fn usual_form(text: &str) -> Option<String> {
    if decode(text).is_some() {
        return Some(text.to_owned());
    }
    of_decimal(text).map(|bytes| URL_SAFE_NO_PAD.encode(bytes))
}

fn of_decimal(text: &str) -> Option<[u8; 32]> {
    if text.is_empty() {
        return None;
    }
    let mut bytes = [0_u8; 32];
    for c in text.chars() {
        let mut carry = c.to_digit(10)?;
        for byte in &mut bytes {
            carry += u32::from(*byte) * 10;
            [*byte, ..] = carry.to_le_bytes();
            carry >>= 8;
        }
        if carry > 0 {
            return None;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_ids_are_read_lowest_byte_first() {
        let mut bytes = [0; 32];
        let id = |bytes: &[u8; 32]| Some(URL_SAFE_NO_PAD.encode(bytes));
        assert_eq!(usual_form("0"), id(&bytes));
        (bytes[0], bytes[1]) = (1, 2);
        assert_eq!(usual_form("513"), id(&bytes));
        let most = "115792089237316195423570985008687907853269984665640564039457584007913129639935";
        assert_eq!(usual_form(most), id(&[255; 32]));
        let usual = URL_SAFE_NO_PAD.encode([7; 32]);
        assert_eq!(usual_form(&usual).as_deref(), Some(&*usual));
        let more = most.replace("935", "936");
        for wrong in ["", "-1", "0x1", "1.5", "abc", &*more, &usual[1..]] {
            assert_eq!(usual_form(wrong), None, "{wrong}");
        }
    }
}
