//! Work that changes something: a datastore beside the nodes, its log, and its end.

use std::future::Future;
use std::time::Duration;

use walrusds::{ErrorKind, WalrusDatastore};

use crate::context::Context;
use crate::exit::Failure;
use crate::progress::Progress;

/// How often the log and the progress are looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Opens the datastore for a piece of work.
pub async fn open(context: &Context) -> Result<WalrusDatastore, Failure> {
    let source = context.source()?;
    let opened = WalrusDatastore::open_beside(source.config, &source.repo);
    context.or_stop("nothing was changed", opened).await
}

/// Waits for work on a datastore to end, shows its log and its progress (`done`), and closes the
/// datastore. `resume` tells the operator who interrupts it how to go on. The work must end by
/// itself when [`Context::stop`] is set.
pub async fn attend<T>(
    context: &Context,
    store: &WalrusDatastore,
    mut progress: Progress,
    resume: &str,
    done: impl Fn() -> Option<u64>,
    work: impl Future<Output = walrusds::Result<T>>,
) -> Result<T, Failure> {
    let mut work = std::pin::pin!(work);
    let mut told = false;
    let ended = loop {
        let look = tokio::time::sleep(LOOK);
        tokio::select! {
            ended = &mut work => break ended,
            () = look => {}
        }
        log(store, &progress);
        if let Some(done) = done() {
            progress.at(done);
        }
        if context.stop.is_cancelled() && !told {
            told = true;
            progress.say("ending; press Ctrl-C again to end at once");
        }
    };
    log(store, &progress);
    drop(progress);
    let closed = store.close().await;
    match ended {
        Err(e) if e.kind() == ErrorKind::Canceled && context.stop.is_cancelled() => {
            Err(Failure::Interrupted(resume.to_owned()))
        }
        Err(e) => Err(e.into()),
        Ok(done) => closed.map(|()| done).map_err(Into::into),
    }
}

fn log(store: &WalrusDatastore, progress: &Progress) {
    while let Some(line) = store.next_log_line() {
        progress.say(&format!("{}: {}", line.level.as_str(), line.message));
    }
}
