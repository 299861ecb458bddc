//! An index moves to another place, by configurations alone.

use std::path::Path;

use super::open::{resolved, Parts};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::index::copy::{copy, CopyProgress, CopyReport, Copying};

/// Copies the index of the configuration `from` to that of `to`, whose tables are created if they
/// are missing ([`copy`]). Nodes may work with `from` unless the copy is to be finished, and none
/// with `to`. Publishers and aggregators are not contacted. Relative paths are taken from `repo`.
/// Must be called within a tokio runtime.
///
/// # Errors
/// As [`WalrusDatastore::open`](crate::WalrusDatastore::open), but for the journal, and [`copy`].
/// [`ErrorKind::Config`] also if there is no index at `from`, if that is an unfinished copy itself,
/// or if both are one.
pub async fn copy_index(
    from: Config,
    to: Config,
    repo: &Path,
    copying: Copying,
    progress: CopyProgress<'_>,
) -> Result<CopyReport> {
    let (from, to) = (resolved(from, repo)?, resolved(to, repo)?);
    if from.index == to.index && from.table == to.table {
        return Err(Error::new(
            ErrorKind::Config,
            "both configurations name one index: an index is copied to another one",
        ));
    }
    let from = Parts::open_existing(&from).await?.index;
    let to = match Parts::open(&to, false).await {
        Ok(to) => to.index,
        Err(e) => {
            let _ = from.close().await;
            return Err(e);
        }
    };
    let done = copy(&*from, &*to, copying, progress).await;
    let (closed, _) = (to.close().await, from.close().await);
    let report = done?;
    closed.map(|()| report)
}
