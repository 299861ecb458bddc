//! Paths in JSON, which holds text alone: bytes that are no UTF-8 are shown as U+FFFD.

use std::path::{Path, PathBuf};

use serde::Serializer;

pub(super) fn path<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

pub(super) fn paths<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use serde::Serialize;

    use super::*;

    #[test]
    fn any_path_can_be_shown() {
        #[derive(Serialize)]
        struct Shown {
            #[serde(serialize_with = "path")]
            one: PathBuf,
            #[serde(serialize_with = "paths")]
            many: Vec<PathBuf>,
        }
        let odd = PathBuf::from(OsStr::from_bytes(b"n\xff.car"));
        let shown = Shown {
            one: odd.clone(),
            many: vec!["/a".into(), odd],
        };
        let json = serde_json::to_value(&shown).unwrap();
        let expected = serde_json::json!({"one": "n\u{fffd}.car", "many": ["/a", "n\u{fffd}.car"]});
        assert_eq!(json, expected);
    }
}
