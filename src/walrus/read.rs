//! Reading blobs, ranges of them and quilt members: which aggregators are asked, and when "not
//! found" is final.
//!
//! | module | holds |
//! |---|---|
//! | `want` | what is asked for |
//! | `get` | one attempt at one aggregator, and what counts as a good answer |
//! | `hedge` | when a second aggregator is asked beside a slow one |
//!
//! **404.** The network is consistent, but caches in front of aggregators keep a 404 from before
//! the blob was certified. So a 404 is
//!
//! - *transient* for a blob that this client stored in the last minutes and has not read yet: all
//!   aggregators are asked again after 0.5, 1, 2, 4 and 8 s (`not_found_backoff`; these repeats do
//!   not count against `max_retries`). If none has it then, later reads of the blob do not wait
//!   like that;
//! - *final* for others after two aggregators said so, or the only one that answers did so twice.
//!
//! A 404 with an empty body or an HTML page is not Walrus' answer for a missing blob, but a wrong
//! base URL or a proxy's: it proves nothing.
//!
//! 403 BLOB_TOO_LARGE (that aggregator's limit for whole reads) and 451 (its operator's block list)
//! are that aggregator's business: the next one is asked.

use std::sync::atomic::Ordering::Relaxed;

use super::retry::{Class, Rotation};
use super::shared::Shared;
use super::want::Want;
use super::{Check, Fetched};
use crate::error::{Error, ErrorKind, Result};

/// How hard a read tries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Effort {
    /// By all the rules of this module.
    Full,
    /// Each aggregator is asked once, since the caller has another way; but one that asks for less
    /// (429, 503) is waited for and asked again: the caller's other way would ask it for more.
    Once,
}

impl Shared {
    pub(super) async fn fetch(
        &self,
        want: Want<'_>,
        check: Check<'_>,
        effort: Effort,
    ) -> Result<Fetched> {
        want.validate(self.max_blob_bytes)?;
        if self.aggregators.len() == 0 {
            let text = "aggregatorURL: no aggregator is configured, so nothing can be read";
            return Err(Error::new(ErrorKind::Config, text));
        }
        let mut rotation = Rotation::new(&self.aggregators, &self.policy);
        if effort == Effort::Once {
            rotation.repeat_only(Class::Throttled);
        }
        let fetched = self
            .fetch_anywhere(want, check, effort, &mut rotation)
            .await;
        self.count(&rotation);
        let fetched = fetched?;
        self.stats.gets.fetch_add(1, Relaxed);
        Ok(fetched)
    }

    async fn fetch_anywhere(
        &self,
        want: Want<'_>,
        check: Check<'_>,
        effort: Effort,
        rotation: &mut Rotation<'_>,
    ) -> Result<Fetched> {
        let just_stored = want.blob_key().filter(|key| self.certified.contains(key));
        let own = just_stored.is_some();
        let mut repeat = 0;
        loop {
            while let Some((index, _)) = rotation.next().await {
                if let Some(fetched) = self.ask(index, want, check, repeat, rotation).await {
                    just_stored.inspect(|key| self.certified.remove(key));
                    return Ok(fetched);
                }
                if !own && rotation.count(Class::NotFound) >= 2 {
                    break;
                }
            }
            if effort == Effort::Once {
                break;
            }
            let missing = rotation.count(Class::NotFound);
            let wait = match (own, missing) {
                (_, 0) => None,
                (true, _) => self.not_found_backoff.get(repeat).copied(),
                (false, 1) if repeat == 0 => Some(Default::default()),
                (false, _) => None,
            };
            let Some(wait) = wait else {
                break;
            };
            tokio::time::sleep(wait).await;
            repeat += 1;
            rotation.readmit(Class::NotFound);
        }
        if effort != Effort::Once && rotation.count(Class::NotFound) > 0 {
            just_stored.inspect(|key| self.certified.remove(key));
        }
        let what = want.describe();
        let (corrupt, missing) = (
            rotation.count(Class::Corrupt),
            rotation.count(Class::NotFound),
        );
        Err(if corrupt > 0 {
            rotation.error(ErrorKind::Corrupt, what)
        } else if missing > 0 && own {
            let error = rotation.error(ErrorKind::BlobNotFound, what);
            let text = format!("{error} (this node stored it: an aggregator may lag behind)");
            Error::retryable(ErrorKind::BlobNotFound, text)
        } else if missing > 0 {
            rotation.error(ErrorKind::BlobNotFound, what)
        } else {
            rotation.error(ErrorKind::Walrus, what)
        })
    }
}
