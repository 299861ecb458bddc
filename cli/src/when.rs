//! Moments on the command line.

use std::time::{Duration, SystemTime};

/// A moment: `2026-11-28T20:15:00Z`, `2026-11-28 20:15:00` (UTC), a day, or a time ago (`2h`,
/// `3days`).
pub fn moment(text: &str) -> Result<SystemTime, String> {
    let text = text.trim();
    if let Ok(ago) = span(text) {
        let at = SystemTime::now().checked_sub(ago);
        return at.ok_or_else(|| format!("{text} ago is before all time"));
    }
    let day = format!("{text}T00:00:00Z");
    let at = humantime::parse_rfc3339_weak(text).or_else(|_| humantime::parse_rfc3339(&day));
    at.map_err(|_| {
        "expected a moment in UTC (2026-11-28T20:15:00Z, or a day) or a time ago (2h)".to_owned()
    })
}

/// A span of time: `90s`, `2h`, `3days`.
pub fn span(text: &str) -> Result<Duration, String> {
    let span = humantime::parse_duration(text.trim());
    span.map_err(|_| "expected a time such as 90s, 2h or 3days".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_understood() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_910_400);
        for text in ["2026-11-29", "2026-11-29T00:00:00Z", "2026-11-29 00:00:00"] {
            assert_eq!(moment(text), Ok(at), "{text}");
        }
        let at = moment("2h").unwrap();
        let ago = SystemTime::now().duration_since(at).unwrap();
        assert!(ago >= Duration::from_secs(7200));
        for text in ["", "yesterday", "2026-13-01"] {
            assert!(moment(text).is_err(), "{text}");
        }
    }
}
