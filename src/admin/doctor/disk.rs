//! The directories of journal and cache.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Diagnosis, Health};
use crate::config::Config;

/// Bytes that are written to measure the speed of a disk.
const MEASURED: usize = 16 << 20;
/// Small synced writes that are measured.
const SYNCS: u32 = 12;
/// A put waits for a sync: longer ones are told.
const SLOW_SYNC: Duration = Duration::from_millis(30);

pub(super) async fn look(config: &Config) -> Vec<Diagnosis> {
    let mut asked = Vec::new();
    if let Some(journal) = &config.journal {
        let place = ("journal", "journalPath", "journalMaxBytes");
        asked.push((place, journal.path.clone(), journal.max_bytes));
    }
    if let Some(cache) = &config.disk_cache {
        let place = ("cache", "cachePath", "cacheBytes");
        asked.push((place, cache.path.clone(), cache.max_bytes));
    }
    let looked = tokio::task::spawn_blocking(move || {
        let each = asked.into_iter();
        each.flat_map(|((part, path_key, size_key), path, most)| {
            directory(part, path_key, size_key, &path, most)
        })
        .collect()
    });
    looked.await.unwrap_or_default()
}

/// The directory itself, or the nearest one above it that exists.
fn existing(path: &Path) -> PathBuf {
    let mut at = path;
    while !at.is_dir() {
        match at.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => at = parent,
            None => return PathBuf::from("."),
        }
    }
    at.to_owned()
}

fn directory(
    part: &'static str,
    path_key: &str,
    size_key: &str,
    path: &Path,
    most: u64,
) -> Vec<Diagnosis> {
    let mut found = Vec::new();
    let dir = existing(path);
    let shown = path.display();
    match rustix::fs::statvfs(&dir) {
        Ok(space) => {
            let free = space.f_bavail.saturating_mul(space.f_frsize);
            let used = size_of(path);
            found.push(match free.saturating_add(used) >= most {
                true => Diagnosis::good(
                    part,
                    "space",
                    format!("{shown}: {} are free, and {size_key} is {}", gib(free), gib(most)),
                ),
                false => Diagnosis::new(
                    part,
                    "space",
                    Health::Warning,
                    format!("{shown}: {} are free beside the {} in it, and {size_key} is {}", gib(free), gib(used), gib(most)),
                    "the disk is full before the limit is reached: writes to a full journal wait, and a cache drops blocks",
                )
                .cure(format!("\"{size_key}\": {}", (free.saturating_add(used) / 10 * 8).max(1))),
            });
        }
        Err(e) => found.push(Diagnosis::new(
            part,
            "space",
            Health::Warning,
            format!("{shown}: its free space cannot be read: {e}"),
            "a full disk stops writes",
        )),
    }
    match speed(&dir) {
        Ok((rate, sync)) => {
            let what = format!(
                "{shown}: {:.0} MB/s, and a synced write takes {:.1} ms",
                rate / 1e6,
                sync.as_secs_f64() * 1e3
            );
            found.push(match sync > SLOW_SYNC && part == "journal" {
                false => Diagnosis::good(part, "speed", what),
                true => Diagnosis::new(
                    part,
                    "speed",
                    Health::Warning,
                    what,
                    "each put waits for a synced write (puts at the same moment share one)",
                )
                .cure(format!("\"{path_key}\": a directory on an SSD")),
            });
        }
        Err(e) => found.push(
            Diagnosis::new(
                part,
                "writable",
                Health::Bad,
                format!("{shown}: {}: {e}", dir.display()),
                "the node cannot write there",
            )
            .cure(format!("chown -R the node's user {shown}")),
        ),
    }
    found
}

/// Bytes for people.
fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// The bytes of the files in a directory.
fn size_of(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let sizes = entries.flatten().filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        meta.is_file().then_some(meta.len())
    });
    sizes.sum()
}

/// A file that is removed when it is dropped.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The directory, or the nearest one above it that exists, and its speed as [`speed`] gives it.
pub(in crate::admin) fn disk_speed(path: &Path) -> (PathBuf, std::io::Result<(f64, Duration)>) {
    let dir = existing(path);
    let found = speed(&dir);
    (dir, found)
}

/// Bytes that are written in a second, and the middle time of a small synced write.
fn speed(dir: &Path) -> std::io::Result<(f64, Duration)> {
    let name = format!(".walrusds-doctor-{:016x}", rand::random::<u64>());
    let path = dir.join(name);
    let mut file = std::fs::File::options()
        .create_new(true)
        .write(true)
        .open(&path)?;
    let _removed = Removed(path);
    let piece = vec![0x77; 1 << 20];
    let began = Instant::now();
    for _ in 0..MEASURED / piece.len() {
        file.write_all(&piece)?;
    }
    file.sync_data()?;
    let rate = MEASURED as f64 / began.elapsed().as_secs_f64().max(1e-9);
    let mut syncs = Vec::new();
    for _ in 0..SYNCS {
        let began = Instant::now();
        file.write_all(&piece[..4096])?;
        file.sync_data()?;
        syncs.push(began.elapsed());
    }
    syncs.sort_unstable();
    let middle = syncs.get(syncs.len() / 2).copied().unwrap_or_default();
    Ok((rate, middle))
}
