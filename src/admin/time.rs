//! Moments in JSON: RFC 3339 in UTC, whole seconds.

use std::time::{Duration, SystemTime};

use serde::Serializer;

/// 9999-12-31: the last day that the format can hold.
const LAST: Duration = Duration::from_secs(253_402_300_799);

pub(super) fn serialize<S: Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let shown = SystemTime::UNIX_EPOCH + since.min(LAST);
    to.collect_str(&humantime::format_rfc3339_seconds(shown))
}

/// The same for a moment that may not be known: `null`.
pub(super) mod option {
    use super::{Serializer, SystemTime};

    pub(in super::super) fn serialize<S: Serializer>(
        at: &Option<SystemTime>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => super::serialize(at, to),
            None => to.serialize_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize)]
    struct Both {
        #[serde(serialize_with = "serialize")]
        at: SystemTime,
        #[serde(serialize_with = "option::serialize")]
        none: Option<SystemTime>,
    }

    #[test]
    fn a_moment_is_a_text_whatever_a_database_holds() {
        let json = |at| serde_json::to_string(&Both { at, none: None }).unwrap();
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        assert_eq!(json(at), r#"{"at":"1970-01-02T00:00:00Z","none":null}"#);
        let far = at + Duration::from_secs(400_000_000_000);
        assert!(json(far).contains("9999-12-31"), "{}", json(far));
    }
}
