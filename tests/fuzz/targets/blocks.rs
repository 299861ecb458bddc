//! Keys, values and index rows, through a datastore on parts in memory.

use std::future::Future;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use walrusds::{ErrorKind, KeyCondition, QueryOptions, Record, Usage};

use super::mem::{key_of, Parts};
use super::Input;

fn condition(input: &mut Input<'_>) -> Option<KeyCondition> {
    let kind = [
        KeyCondition::Equal,
        KeyCondition::NotEqual,
        KeyCondition::Less,
        KeyCondition::LessOrEqual,
        KeyCondition::Greater,
        KeyCondition::GreaterOrEqual,
        KeyCondition::StartsWith,
    ];
    let kind = kind.get(usize::from(input.byte() % 8))?;
    Some(kind(input.text()))
}

/// Time stands still, and jumps ahead when no task is ready.
fn run(work: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    runtime.block_on(work);
}

/// Whether the key names a sha2-256 hash that is not the value's. A second implementation, to judge
/// the engine's.
fn is_another_hash(key: &str, value: &[u8]) -> bool {
    let text = key.rsplit('/').next().unwrap_or_default();
    let named = data_encoding::BASE32_NOPAD.decode(text.as_bytes());
    named.is_ok_and(|m| {
        m.len() == 34 && m[..2] == [0x12, 0x20] && m[2..] != Sha256::digest(value)[..]
    })
}

/// A get returns the value that was put under the key, or an error; never a wrong block.
pub fn keys_and_values(data: &[u8]) {
    let mut input = Input(data);
    let key = match input.byte() % 4 {
        0 => input.text(),
        1 => format!("/{}", data_encoding::BASE32_NOPAD.encode(input.piece())),
        2 => {
            let (code, digest) = (input.piece(), input.piece());
            let multihash = [code, digest].concat();
            format!("/{}", data_encoding::BASE32_NOPAD.encode(&multihash))
        }
        _ => key_of(input.0),
    };
    let value = Bytes::copy_from_slice(input.0);
    run(async {
        let parts = Parts::default();
        let ds = parts.open("");
        if let Err(e) = ds.put(&key, value.clone()).await {
            assert_eq!(e.kind(), ErrorKind::InvalidArgument, "{e}");
            assert_eq!(ds.get(&key).await.unwrap(), None);
            return;
        }
        assert_eq!(ds.get_size(&key).await.unwrap(), Some(value.len() as u64));
        match ds.get(&key).await {
            Ok(read) => {
                assert_eq!(read.as_ref(), Some(&value));
                assert!(!is_another_hash(&key, &value), "{key}");
            }
            Err(e) => assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}"),
        }
        // The blob is corrupted.
        for blob in parts.store.blobs.lock().values_mut() {
            *blob = blob.iter().map(|b| b ^ 1).collect();
        }
        if let Ok(Some(read)) = ds.get(&key).await {
            assert!(!is_another_hash(&key, &read), "{key}");
        }
        ds.delete(&key).await.unwrap();
        assert_eq!(ds.get(&key).await.unwrap(), None);
        ds.close().await.unwrap();
    });
}

const BLOB: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

fn row(input: &mut Input<'_>) -> Record {
    let since = Duration::from_secs(input.number());
    let blob_id = input.pick(&["blob", "blob", "missing", ""]);
    let is_patch = input.flag();
    let patch_id = is_patch.then(|| input.pick(&["blob", "missing"]).to_owned());
    Record::new(blob_id, input.number() as i64, input.number() as i64)
        .with_patch_id(patch_id)
        .with_deletable(input.flag())
        .with_end_epoch(input.number() as i64)
        .with_expires_at(
            SystemTime::UNIX_EPOCH
                .checked_add(since)
                .filter(|_| input.flag()),
        )
}

/// Rows that another program, or a broken one, wrote: an error, or the bytes they point at.
pub fn absurd_rows(data: &[u8]) {
    let mut input = Input(data);
    run(async {
        let parts = Parts::default();
        parts.store.blobs.lock().insert("blob".into(), BLOB.into());
        *parts.index.usage.lock() = Usage::new(input.number() as i64, input.number() as i64);
        let renewing = r#""epochs":3,"epochDurationSeconds":100,"renewIntervalSeconds":1,"#;
        let ds = parts.open(if input.flag() { renewing } else { "" });
        for n in 0..input.byte() % 4 {
            let key = match input.byte() % 3 {
                0 => format!("/{n}"),
                1 => key_of(&BLOB[..usize::from(n)]),
                _ => input.text(),
            };
            let row = row(&mut input);
            parts.index.rows.lock().insert(key.clone(), row.clone());
            // A node sees the writes of others once its memory of the key has expired.
            tokio::time::sleep(Duration::from_secs(6)).await;
            let within = usize::try_from(row.offset).ok().and_then(|from| {
                let to = from.checked_add(usize::try_from(row.size).ok()?)?;
                BLOB.get(from..to)
            });
            match ds.get(&key).await {
                Ok(Some(read)) if row.patch_id.is_some() => {
                    assert_eq!(read.len() as i64, row.size);
                    assert!(read.is_empty() || read == BLOB);
                }
                Ok(Some(read)) if read.is_empty() => assert_eq!(row.size, 0),
                Ok(Some(read)) => {
                    assert_eq!(row.blob_id, "blob");
                    assert_eq!(Some(&read[..]), within, "{row:?}");
                    assert!(!is_another_hash(&key, &read));
                }
                Ok(None) => assert!(key.contains('\0'), "{key:?}"),
                Err(e) => assert_ne!(e.kind(), ErrorKind::Internal, "{e}"),
            }
            if let Ok(Some(size)) = ds.get_size(&key).await {
                assert_eq!(i64::try_from(size), Ok(row.size));
            }
            match input.byte() % 4 {
                0 => ds.delete(&key).await.unwrap(),
                1 => drop(ds.put(&key, Bytes::copy_from_slice(input.piece())).await),
                _ => {}
            }
        }
        let options = QueryOptions::default()
            .with_prefix(input.text())
            .with_conditions(condition(&mut input).into_iter().collect())
            .with_descending(input.flag())
            .with_keys_only(input.flag())
            .with_offset(input.number())
            .with_limit(input.flag().then(|| input.number()))
            .without_sizes(input.flag());
        let mut query = ds.query(options).unwrap();
        while !query.next_page().await.unwrap().is_empty() {}
        drop(query);
        assert!(ds.disk_usage().await.unwrap().bytes >= 0);
        // Long enough for renewals and for the totals to be written.
        tokio::time::sleep(Duration::from_secs(10)).await;
        ds.close().await.unwrap();
        while let Some(line) = ds.next_log_line() {
            assert!(!line.message.contains("panicked"), "{}", line.message);
        }
    });
}
