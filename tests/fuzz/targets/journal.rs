//! Files of the write journal that were damaged: written by the datastore itself, then changed at
//! will. The target does not know their format, so that no change of the format matters.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use once_cell::sync::Lazy;
use tokio::runtime::Runtime;
use walrusds::{ErrorKind, WalrusDatastore};

use super::mem::Parts;
use super::Input;

static RUNTIME: Lazy<Runtime> = Lazy::new(|| {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap()
});

const KEYS: [&str; 4] = ["/a", "/b", "/dir/c", "/\u{e9}"];

/// The segments by name, which is their order.
type Files = BTreeMap<String, Vec<u8>>;

/// A byte of the journal: file and offset. Later writes lie behind earlier ones.
type Place = (String, usize);

/// The bytes that a write has left in the files.
struct Written {
    key: &'static str,
    value: Option<Bytes>,
    /// Its last byte; none if it left nothing (a deletion of what is not there).
    end: Option<Place>,
}

fn files(dir: &Path) -> Files {
    let mut files = Files::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "segment") {
            // The journal removes files that it needs no more.
            let Ok(bytes) = fs::read(&path) else {
                continue;
            };
            let name = path.file_name().unwrap().to_str().unwrap();
            files.insert(name.to_owned(), bytes);
        }
    }
    files
}

/// Where the last byte lies that was written in between. Zeroes at the end are space that is held
/// ready.
fn last_change(before: &Files, after: &Files) -> Option<Place> {
    after.iter().rev().find_map(|(name, bytes)| {
        let old = before.get(name).map_or(&[][..], Vec::as_slice);
        let common = old.len().min(bytes.len());
        let added = bytes[common..].iter().rposition(|b| *b != 0);
        let changed = || (0..common).rfind(|n| old[*n] != bytes[*n]);
        let last = added.map(|at| common + at).or_else(changed);
        last.map(|at| (name.clone(), at))
    })
}

/// The first byte that differs, a missing one included. A file that came or went counts from its
/// beginning.
fn first_change(before: &Files, after: &Files) -> Option<Place> {
    let names = before.keys().chain(after.keys());
    let firsts = names.filter_map(|name| {
        let at = match (before.get(name), after.get(name)) {
            (Some(old), Some(new)) if old == new => return None,
            (Some(old), Some(new)) => std::iter::zip(old, new).take_while(|(a, b)| a == b).count(),
            _ => 0,
        };
        Some((name.clone(), at))
    });
    firsts.min()
}

fn open(parts: &Parts, journal: &Path) -> walrusds::Result<WalrusDatastore> {
    parts.try_open(&format!(
        r#""journalPath":"{}","packIdleFlushSeconds":3600,"packMaxAgeSeconds":3600,"drainTimeoutSeconds":0,"#,
        journal.display()
    ))
}

/// Writes, deletes and reopens as the input says.
async fn fill(input: &mut Input<'_>, parts: &Parts, journal: &Path) -> Vec<Written> {
    let mut written = Vec::new();
    let mut ds = open(parts, journal).unwrap();
    let mut before = files(journal);
    for _ in 0..input.byte() % 12 {
        let key = input.pick(&KEYS);
        let value = match input.byte() % 8 {
            0 => {
                ds.close().await.unwrap();
                ds = open(parts, journal).unwrap();
                before = files(journal);
                continue;
            }
            1 => {
                ds.delete(key).await.unwrap();
                None
            }
            kind => {
                let len = if kind == 2 { input.number() % 5000 } else { 8 };
                // Its last byte is seen in the file.
                let value: Vec<u8> = (0..len).map(|_| input.byte()).chain([1]).collect();
                let value = Bytes::from(value);
                ds.put(key, value.clone()).await.unwrap();
                Some(value)
            }
        };
        let after = files(journal);
        let end = last_change(&before, &after);
        assert!(value.is_none() || end.is_some(), "a put leaves no trace");
        written.push(Written { key, value, end });
        before = after;
    }
    ds.close().await.unwrap();
    written
}

/// Changes the files as the input says.
fn damage(input: &mut Input<'_>, journal: &Path) {
    for _ in 0..input.byte() % 4 {
        let files = files(journal);
        let names: Vec<_> = files.keys().cloned().collect();
        let name = match names.get(usize::from(input.byte()) % (names.len() + 1)) {
            Some(name) => name.clone(),
            None => format!("{:016x}.segment", input.number()),
        };
        let mut bytes = files.get(&name).cloned().unwrap_or_default();
        // Near the beginning, or near the end of what is no space that is held ready.
        let used = bytes
            .iter()
            .rposition(|b| *b != 0)
            .map_or(0, |last| last + 1);
        let far = input.number() as usize % (used + 1);
        let at = if input.flag() { far } else { used - far };
        match input.byte() % 7 {
            0 => bytes.iter_mut().skip(at).take(1).for_each(|b| *b ^= 1),
            1 => bytes.truncate(at),
            2 => bytes.splice(at..at, input.piece().to_vec()).for_each(drop),
            3 => {
                let piece = input.piece();
                bytes.resize(bytes.len().max(at + piece.len()), 0);
                bytes[at..at + piece.len()].copy_from_slice(piece);
            }
            4 => bytes.extend_from_slice(input.piece()),
            5 => {
                // The bytes that another file, or this one, holds there.
                let from = names
                    .get(usize::from(input.byte()))
                    .and_then(|n| files.get(n));
                bytes.truncate(at);
                bytes.extend_from_slice(from.and_then(|f| f.get(at..)).unwrap_or_default());
            }
            _ => {
                let zeroes = usize::from(input.byte());
                bytes.iter_mut().skip(at).take(zeroes).for_each(|b| *b = 0);
            }
        }
        fs::write(journal.join(name), bytes).unwrap();
    }
}

/// The values before the damage are there, or the journal says that it cannot be read; a get never
/// returns a value that was never put; and a journal that opens goes on working.
pub fn damaged_files(data: &[u8]) {
    let mut input = Input(data);
    let dir = super::directory();
    let journal = dir.path().join("journal");
    let parts = Parts::default();
    parts.store.fail_puts.store(true, SeqCst);
    RUNTIME.block_on(async {
        let written = fill(&mut input, &parts, &journal).await;
        let whole = files(&journal);
        damage(&mut input, &journal);
        let damaged = first_change(&whole, &files(&journal));
        let ds = match open(&parts, &journal) {
            Ok(ds) => ds,
            Err(e) => {
                assert!(damaged.is_some(), "undamaged, it does not open: {e}");
                assert!(matches!(e.kind(), ErrorKind::Corrupt), "{e}");
                return;
            }
        };
        for key in KEYS {
            let own = || written.iter().filter(|w| w.key == key);
            let last = own().next_back().and_then(|w| w.value.as_ref());
            let is_before = |w: &Written| match (&damaged, &w.end) {
                (Some(damaged), Some(end)) => end < damaged,
                _ => true,
            };
            match ds.get(key).await {
                Ok(found) if own().all(is_before) => {
                    assert_eq!(found.as_ref(), last, "{key}, written before {damaged:?}");
                }
                Ok(Some(found)) => {
                    let put = own().any(|w| w.value.as_ref() == Some(&found));
                    assert!(put, "{key} holds {found:?}, which was never put");
                }
                Ok(None) => {}
                Err(e) => {
                    assert!(!own().all(is_before), "{key}, before {damaged:?}: {e}");
                    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
                }
            }
        }
        ds.put("/new", Bytes::from_static(b"new")).await.unwrap();
        ds.close().await.unwrap();
        let ds = open(&parts, &journal).expect("it opened once, and was written to");
        let new = ds.get("/new").await.unwrap();
        assert_eq!(new.as_deref(), Some(&b"new"[..]));
        ds.close().await.unwrap();
    });
}
