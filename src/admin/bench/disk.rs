//! The disks of journal and cache.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::super::doctor::disk_speed;
use super::Until;
use crate::config::Config;

/// What was measured of a disk.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct DiskSpeed {
    /// `journal`, `cache`, or `repo`: the place where they would be, if neither is configured.
    pub part: &'static str,
    /// The directory, or the nearest one above it that exists.
    #[serde(serialize_with = "super::super::shown::path")]
    pub path: PathBuf,
    /// Bytes that are written and synced in a second.
    pub bytes_per_second: f64,
    /// The time in the middle of a small synced write.
    pub sync_seconds: f64,
    /// Why it could not be measured.
    pub error: Option<String>,
}

pub(super) async fn measure(config: &Config, repo: &Path, until: &Until) -> Vec<DiskSpeed> {
    let journal = config.journal.as_ref().map(|j| ("journal", j.path.clone()));
    let cache = config
        .disk_cache
        .as_ref()
        .map(|c| ("cache", c.path.clone()));
    let mut asked: Vec<_> = journal.into_iter().chain(cache).collect();
    if asked.is_empty() && !repo.as_os_str().is_empty() {
        asked.push(("repo", repo.to_owned()));
    }
    let mut all = Vec::new();
    for (part, path) in asked {
        if until.is_over() {
            break;
        }
        let at = path.clone();
        let measured = tokio::task::spawn_blocking(move || disk_speed(&at));
        let mut speed = DiskSpeed {
            part,
            path,
            ..DiskSpeed::default()
        };
        match until.wait(measured).await {
            Some(Ok((dir, Ok((rate, sync))))) => {
                speed.path = dir;
                (speed.bytes_per_second, speed.sync_seconds) = (rate, sync.as_secs_f64());
            }
            Some(Ok((dir, Err(e)))) => speed.error = Some(format!("{}: {e}", dir.display())),
            Some(Err(e)) => speed.error = Some(e.to_string()),
            None => speed.error = Some("it did not end in time".to_owned()),
        }
        all.push(speed);
    }
    all
}
