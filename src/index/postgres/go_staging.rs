//! The Go plugin's staging table, which may appear or vanish while this node runs: each statement
//! has a form with it and one without.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_postgres::error::SqlState;

use super::call::Call;
use super::conn::Answer;
use super::query::Query;
use super::schema::{self, Find};
use super::{error, PostgresParts};
use crate::error::{Error, ErrorKind, Result};

/// How often a node checks whether a Go node has appeared next to it.
const RECHECK: Duration = Duration::from_secs(60);

/// Whether the table exists, as last seen.
pub(super) struct Staging {
    present: AtomicBool,
    checked: Mutex<Instant>,
}

impl Staging {
    pub fn new(present: bool) -> Staging {
        Staging {
            present: AtomicBool::new(present),
            checked: Mutex::new(Instant::now()),
        }
    }
}

impl PostgresParts {
    /// Runs `work`, which is told whether the table exists. If the table turns out to have
    /// vanished, runs it once more.
    pub(super) async fn with_staging<T, Fut>(
        self: &Arc<Self>,
        call: &Call,
        work: impl Fn(bool) -> Fut,
    ) -> Result<T>
    where
        Fut: Future<Output = Result<Answer<T>>>,
    {
        self.recheck(call);
        for last in [false, true] {
            let present = self.staging.present.load(Ordering::Relaxed);
            match work(present).await? {
                Ok(done) => return Ok(done),
                Err(e) if present && !last && e.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                    self.look(call).await?
                }
                Err(e) => return Err(error::statement(call.what, e)),
            }
        }
        Err(Error::new(
            ErrorKind::Internal,
            "staging table checked in vain",
        ))
    }

    /// Checks for the table in the background, if the last check is old.
    fn recheck(self: &Arc<Self>, call: &Call) {
        if self.shape.staging.is_none() {
            return;
        }
        {
            let Some(mut checked) = self.staging.checked.try_lock() else {
                return;
            };
            if checked.elapsed() < RECHECK {
                return;
            }
            *checked = Instant::now();
        }
        let (inner, call) = (self.clone(), call.clone());
        tokio::spawn(async move {
            // The callers' own statements report a failure.
            let _ = inner.look(&call).await;
        });
    }

    async fn look(&self, call: &Call) -> Result<()> {
        let Some(staging) = &self.shape.staging else {
            return Ok(());
        };
        let call = Call {
            what: "looking for the staging table",
            limit: self.statement_timeout,
            ..call.clone()
        };
        let find = Find::new(staging).params();
        let rows = self
            .look_up(&call, &Query::once(schema::FIND), find)
            .await?;
        let present = schema::has_staging(staging.name(), self.shape.schema.as_deref(), &rows);
        self.staging.present.store(present, Ordering::Relaxed);
        *self.staging.checked.lock() = Instant::now();
        Ok(())
    }
}
