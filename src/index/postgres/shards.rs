//! Lookups of many keys in a table that Citus has distributed.
//!
//! **Problem.** Citus sends `key = ANY` to each shard that may hold one of the keys, with all keys:
//! at eight shards every key is written, planned and looked for eight times.
//!
//! **Outline.** The ranges of the shards are read when the index is opened. A lookup of more than
//! [`TOGETHER`] keys for each shard becomes a statement for each shard, with the keys of that shard
//! alone, and all of them are sent at once. Citus hands each to the worker of its shard. With fewer
//! keys, the plans of these statements would cost more than they save. A table that is not
//! distributed has no ranges, and its lookups stay whole.
//!
//! **Invariant.** The ranges decide what a lookup costs, and nothing else: Citus finds the shards
//! of each statement's keys by itself. So ranges that have changed since (a shard was split) do no
//! harm.
//!
//! **Locks.** None.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio_postgres::Row;

use super::call::{self, Call};
use super::conn::Answer;
use super::pipeline::Pipeline;
use super::query::{Param, Query};
use super::{error, read, PostgresParts};
use crate::error::Result;
use crate::index::table::TableName;

/// The number of keys for each shard up to which they travel in one statement. Measured: with twice
/// as many, statements of their own take a third less time of processors.
const TOGETHER: usize = 6;

/// Whether the database has Citus' catalogs.
const ARE_THERE: &str = "SELECT pg_catalog.to_regclass('pg_catalog.pg_dist_shard') IS NOT NULL";

/// The lower ends of the shards of the table `$1` (quoted), if it is distributed by hash, and the
/// hash of `$2`.
const FIND: &str = "\
    SELECT s.shardminvalue::bigint, pg_catalog.worker_hash($2::text)::bigint \
    FROM pg_catalog.pg_dist_shard AS s \
    JOIN pg_catalog.pg_dist_partition AS p ON p.logicalrelid = s.logicalrelid \
    WHERE s.logicalrelid = pg_catalog.to_regclass($1::text) AND p.partmethod = 'h' \
    AND s.shardminvalue IS NOT NULL ORDER BY 1";

/// A text whose hash tells whether [`hash`] is the server's: long enough to pass through each part
/// of it, and of a server whose processor reads words in another order it differs.
const SAMPLE: &str = "the hash of this text is well known";

/// The shards of a table, by the least hash of each, in order. Empty for a table that Citus has not
/// distributed.
#[derive(Debug, Clone, Default)]
pub(super) struct Shards(Arc<[i64]>);

/// Whether the database has Citus.
pub(super) async fn are_there(lookups: &Pipeline, call: &Call) -> Result<bool> {
    let asked = call::query(lookups, call, &Query::once(ARE_THERE), &[].into()).await?;
    match asked {
        Ok(rows) => Ok(rows
            .first()
            .is_some_and(|row| row.try_get(0).unwrap_or(false))),
        Err(e) if error::retry(&e) != error::Retry::No => Err(error::statement(call.what, e)),
        // An engine without this function.
        Err(_) => Ok(false),
    }
}

impl Shards {
    /// Reads the shards of a table.
    pub async fn find(table: &TableName, lookups: &Pipeline, call: &Call) -> Result<Shards> {
        let params = [Param::Text(table.quoted()), Param::Text(SAMPLE.into())].into();
        let rows = match call::query(lookups, call, &Query::once(FIND), &params).await? {
            Ok(rows) => rows,
            Err(e) if error::retry(&e) != error::Retry::No => {
                return Err(error::statement(call.what, e))
            }
            // Another version of the catalogs, or no right to read them.
            Err(_) => return Ok(Shards::default()),
        };
        let ends = read(call.what, &rows, |row| {
            Ok((row.try_get::<_, i64>(0)?, row.try_get::<_, i64>(1)?))
        })?;
        let known = i64::from(hash(SAMPLE.as_bytes()));
        let alike = ends.iter().all(|(_, sample)| *sample == known);
        let begins = ends.into_iter().map(|(begin, _)| begin);
        Ok(Shards(begins.filter(|_| alike).collect()))
    }

    /// Whether the table is distributed.
    pub fn are_many(&self) -> bool {
        self.0.len() > 1
    }

    /// The keys of each shard that may hold one of them.
    fn split(&self, keys: &[String]) -> Vec<Vec<String>> {
        if !self.are_many() || keys.len() <= TOGETHER * self.0.len() {
            return vec![keys.to_vec()];
        }
        let mut parts: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for key in keys {
            let hash = i64::from(hash(key.as_bytes()));
            let shard = self.0.partition_point(|begin| *begin <= hash);
            parts.entry(shard).or_default().push(key.clone());
        }
        parts.into_values().collect()
    }
}

impl PostgresParts {
    /// The rows of a statement on the shared connection for lookups, whose only parameter is an
    /// array of keys.
    pub(super) async fn look_keys_up(
        &self,
        call: &Call,
        query: &Query,
        keys: &[String],
    ) -> Result<Answer<Vec<Row>>> {
        let asked = self.shape.shards.split(keys).into_iter().map(|keys| {
            let params = [Param::Texts(keys)].into();
            async move { call::query(&*self.lookups, call, query, &params).await }
        });
        // Each of them to its end: one that is dropped is cancelled, and its neighbours with it.
        let mut rows = Vec::new();
        for answer in join_all(asked).await {
            match answer? {
                Ok(found) => rows.extend(found),
                Err(e) => return Ok(Err(e)),
            }
        }
        Ok(Ok(rows))
    }
}

/// PostgreSQL's hash of a text (`hashtext`), by which Citus distributes, as a server computes it
/// whose processor has little-endian words: Bob Jenkins' lookup3 with another beginning.
fn hash(bytes: &[u8]) -> i32 {
    let word = |bytes: &[u8]| {
        let bytes = bytes.iter().rev();
        bytes.fold(0_u32, |word, byte| (word << 8) | u32::from(*byte))
    };
    let begin = 0x9e37_79b9_u32.wrapping_add(3_923_095);
    let begin = begin.wrapping_add(bytes.len() as u32);
    let (mut a, mut b, mut c) = (begin, begin, begin);
    let mut add = |bytes: &[u8], last: bool| {
        let (first, rest) = bytes.split_at(bytes.len().min(4));
        let (second, third) = rest.split_at(rest.len().min(4));
        a = a.wrapping_add(word(first));
        b = b.wrapping_add(word(second));
        if last {
            // The lowest byte is left to the length.
            c = c.wrapping_add(word(third) << 8);
            return;
        }
        c = c.wrapping_add(word(third));
        for by in [4, 6, 8, 16, 19, 4] {
            a = a.wrapping_sub(c) ^ c.rotate_left(by);
            c = c.wrapping_add(b);
            (a, b, c) = (b, c, a);
        }
    };
    let chunks = bytes.chunks_exact(12);
    let rest = chunks.remainder();
    chunks.for_each(|chunk| add(chunk, false));
    add(rest, true);
    for by in [14, 11, 25, 16, 4, 14, 24] {
        c = (c ^ b).wrapping_sub(b.rotate_left(by));
        (a, b, c) = (b, c, a);
    }
    b as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answers of a server to `SELECT hashtext(left('/blocks/CIQxyzABCDEFGHIJKLMNO', n))` for
    /// each n from 0 on.
    const KNOWN: [i32; 30] = [
        -1477818771,
        840570652,
        -444019600,
        880147886,
        829467528,
        926229107,
        -1037225388,
        108321581,
        -1357461721,
        -1503774110,
        -469952152,
        -281653662,
        -1772111403,
        1348797015,
        678344901,
        753636218,
        -368955103,
        753463269,
        -619187518,
        -1997720486,
        1349751578,
        -1798774940,
        -1679575970,
        177247230,
        1241907693,
        -1506875752,
        1870867480,
        704749061,
        -2081512278,
        -657498542,
    ];

    #[test]
    fn the_hash_is_the_servers() {
        let text = "/blocks/CIQxyzABCDEFGHIJKLMNO";
        for (length, known) in KNOWN.iter().enumerate() {
            assert_eq!(hash(&text.as_bytes()[..length]), *known, "{length}");
        }
        assert_eq!(hash("/Ω/äö日本語".as_bytes()), -1570885087);
        assert_eq!(hash(SAMPLE.as_bytes()), -567975240);
    }

    #[test]
    fn each_key_goes_with_those_of_its_shard() {
        let keys: Vec<String> = (0..500).map(|n| format!("/CIQ{n}")).collect();
        assert_eq!(Shards::default().split(&keys), std::slice::from_ref(&keys));
        let begins = (0..8).map(|n| i64::from(i32::MIN) + (n << 29)).collect();
        let shards = Shards(begins);
        assert_eq!(shards.split(&keys[..40]), [&keys[..40]]);
        let parts = shards.split(&keys);
        assert_eq!(parts.len(), 8);
        for part in &parts {
            let shard = |key: &String| (i64::from(hash(key.as_bytes())) + (1 << 31)) >> 29;
            let first = part.first().map(shard);
            assert!(part.iter().all(|key| Some(shard(key)) == first), "{part:?}");
        }
        let mut all = parts.concat();
        all.sort();
        let mut keys = keys;
        keys.sort();
        assert_eq!(all, keys);
    }
}
