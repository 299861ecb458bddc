use std::time::SystemTime;

use bytes::Bytes;

use super::*;
use crate::error::{Error, ErrorKind};
use crate::index::sqlite::{SqliteIndex, SqliteOptions};
use crate::walrus::Check;

const EPOCH: Duration = Duration::from_secs(1_209_600);
const DAY: Duration = Duration::from_secs(86_400);

struct At(Mutex<SystemTime>);

impl Clock for At {
    fn now(&self) -> SystemTime {
        *self.0.lock()
    }
}

/// Epoch 10 has just begun.
fn reuse() -> (Reuse, Arc<At>) {
    let start = SystemTime::UNIX_EPOCH + EPOCH * 10;
    let clock = Arc::new(At(Mutex::new(start)));
    let epochs = Arc::new(EpochClock::new(EPOCH));
    epochs.is_exactly(start, 10, start, EPOCH);
    let shown: Arc<dyn Clock> = Arc::<At>::clone(&clock);
    (Reuse::new(shown, epochs, 1000, DAY * 2), clock)
}

fn left(len: u64, end: u64) -> Left {
    let size = cost::encoded_size(len, 1000).unwrap();
    Left { size, end }
}

#[test]
fn the_smallest_that_fits_is_taken_once() {
    let (reuse, _) = reuse();
    for left in [
        left(5 << 20, 13),
        left(4 << 20, 14),
        left(4 << 20, 12),
        left(1 << 20, 20),
    ] {
        reuse.give(left);
    }
    assert_eq!(reuse.take(2 << 20), Some((left(4 << 20, 12), 1)));
    assert_eq!(reuse.take(2 << 20), Some((left(4 << 20, 14), 1)));
    assert_eq!(reuse.take(2 << 20), Some((left(5 << 20, 13), 1)));
    assert_eq!(reuse.take(2 << 20), None);
    assert_eq!(reuse.take(1), Some((left(1 << 20, 20), 1)));
    // Much larger storage waits for a larger blob.
    reuse.give(left(64 << 20, 20));
    assert_eq!(reuse.take(1 << 20), None);
    assert_eq!(reuse.take(60 << 20), Some((left(64 << 20, 20), 1)));
}

#[test]
fn storage_that_ends_too_soon_to_be_extended_is_left_alone() {
    let (reuse, clock) = reuse();
    reuse.give(left(1 << 20, 11));
    *clock.0.lock() += EPOCH - DAY;
    assert_eq!(reuse.take(1), None);
    // Another epoch is asked for, so that the publisher does not take it either.
    reuse.give(left(1 << 20, 12));
    assert_eq!(reuse.take(1), Some((left(1 << 20, 12), 2)));
}

/// The chain tells the epoch. When it ends is not known, so that storage must last beyond the next
/// one.
#[test]
fn a_wrong_clock_leaves_storage_that_lasts_for_two_epochs() {
    let (reuse, clock) = reuse();
    let start = clock.now();
    *clock.0.lock() += EPOCH * 26;
    let now = clock.now();
    reuse.epoch_clock.is_exactly(now, 10, start, EPOCH);
    reuse.give(left(4 << 20, 11));
    assert_eq!(reuse.take(2 << 20), None);
    reuse.give(left(4 << 20, 12));
    assert_eq!(reuse.packs(2 << 20), 1);
    assert_eq!(reuse.take(2 << 20), Some((left(4 << 20, 12), 2)));

    // The chain has told nothing for a while.
    reuse.give(left(4 << 20, 12));
    *clock.0.lock() += EPOCH / 50;
    assert_eq!(reuse.take(2 << 20), None);
}

#[test]
fn nothing_is_taken_while_the_epoch_is_not_known() {
    let clock: Arc<dyn Clock> = Arc::new(At(Mutex::new(SystemTime::UNIX_EPOCH + EPOCH)));
    let reuse = Reuse::new(clock, Arc::new(EpochClock::new(EPOCH)), 1000, DAY);
    reuse.give(left(1 << 20, 11));
    assert_eq!(reuse.take(1), None);
}

#[test]
fn what_ends_first_is_forgotten_first() {
    let (reuse, _) = reuse();
    for end in 0..=MOST as u64 {
        reuse.give(left(1, 20 + end));
    }
    let all = reuse.left.lock();
    assert_eq!(all.len(), MOST);
    assert!(all.iter().all(|left| left.end > 20));
}

/// No pack is filled to its last byte, so each leaves a little less than the next may need.
#[test]
fn full_packs_fit_into_what_full_packs_have_left() {
    let (reuse, _) = reuse();
    let most = 64 << 20;
    assert_eq!(reuse.full_pack(most), most);
    for left in [
        left(most, 12),
        left(most - (1 << 20), 12),
        left(most / 2, 12),
    ] {
        reuse.give(left);
    }
    let full = reuse.full_pack(most);
    assert!((most - (1 << 20)..most).contains(&full), "{full}");
    assert_eq!(reuse.take(full), Some((left(most - (1 << 20), 12), 1)));
    assert_eq!(reuse.full_pack(most), most);
    // What ends too soon is of no use.
    reuse.give(left(most - (1 << 20), 10));
    assert_eq!(reuse.full_pack(most), most);
}

/// A publisher that notes how it is asked to store, and answers by a function. It has so many
/// stores under way before it answers the first of them.
struct Publisher<F> {
    asked: Mutex<Vec<StoreOptions>>,
    answer: F,
    all_there: tokio::sync::Barrier,
}

impl<F> Publisher<F> {
    fn new(together: usize, answer: F) -> Self {
        Publisher {
            asked: Mutex::default(),
            answer,
            all_there: tokio::sync::Barrier::new(together),
        }
    }
}

#[async_trait::async_trait]
impl<F> BlobStore for Publisher<F>
where
    F: Fn(StoreOptions) -> Result<StoreResult> + Send + Sync + 'static,
{
    async fn store(&self, _: Body, options: StoreOptions) -> Result<StoreResult> {
        self.asked.lock().push(options);
        let answer = (self.answer)(options);
        self.all_there.wait().await;
        answer
    }

    async fn read(&self, _: &str, _: Check<'_>) -> Result<Bytes> {
        Err(nothing())
    }

    async fn read_range(&self, _: &str, _: u64, _: u64, _: Check<'_>) -> Result<Bytes> {
        Err(nothing())
    }

    async fn read_patch(&self, _: &str, _: Check<'_>) -> Result<Bytes> {
        Err(nothing())
    }
}

fn nothing() -> Error {
    Error::new(ErrorKind::Walrus, "no network")
}

#[tokio::test]
async fn a_store_that_fails_leaves_the_storage_to_the_next_one() {
    let (reuse, _) = reuse();
    let options = StoreOptions::new(26).with_deletable(true);
    let purchase = Purchase {
        options,
        reuse: Some(Arc::new(reuse)),
    };
    let publisher = Publisher::new(1, |_| Err(nothing()));
    let store = || purchase.store(&publisher, Body::from(Bytes::from_static(b"x")));
    store().await.unwrap_err();
    purchase.reuse.as_ref().unwrap().give(left(1, 12));
    store().await.unwrap_err();
    store().await.unwrap_err();
    let again = StoreOptions {
        epochs: 1,
        ..options.with_reuse(true)
    };
    assert_eq!(*publisher.asked.lock(), [options, again, again]);
}

/// The object that is there may be another index's, or about to be deleted as one without rows.
#[tokio::test]
async fn an_object_that_is_in_the_wallet_already_is_not_relied_on() {
    let (reuse, _) = reuse();
    reuse.give(left(1, 12));
    let options = StoreOptions::new(26).with_deletable(true);
    let purchase = Purchase {
        options,
        reuse: Some(Arc::new(reuse)),
    };
    // A store that looks in the wallet finds an object there.
    let finds = Publisher::new(1, |options: StoreOptions| {
        let object = if options.reuse { "there" } else { "new" };
        let answer = StoreResult::new("blob", 12).with_object_id(Some(object.to_owned()));
        Ok(answer.with_newly_created(!options.reuse))
    });
    let body = Body::from(Bytes::from_static(b"x"));
    let stored = purchase.store(&finds, body).await.unwrap();
    assert_eq!(stored.object_id.as_deref(), Some("new"));
    let asked = StoreOptions {
        epochs: 1,
        ..options.with_reuse(true)
    };
    assert_eq!(*finds.asked.lock(), [asked, options]);
    // The storage was not used.
    assert_eq!(purchase.reuse.unwrap().packs(1), 1);
}

#[tokio::test]
async fn what_was_noted_is_known_to_other_processes_and_taken_over_once() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions::new(dir.path().join("index"), "walrus_index");
    let index = SqliteIndex::open(options).await.unwrap();
    let (first, _) = reuse();
    let all = [left(1 << 20, 12), left(4 << 20, 14)];
    all.into_iter().for_each(|left| first.give(left));
    assert_eq!(first.packs(1 << 20), 2);
    assert_eq!(first.packs(2 << 20), 1);
    first.note(&index).await.unwrap();

    let (second, _) = reuse();
    second.recall(&index).await.unwrap();
    assert_eq!(second.take(2 << 20), Some((all[1], 1)));
    assert_eq!(second.take(1), Some((all[0], 1)));
    // What was used is not there again, though the note still has it.
    second.recall(&index).await.unwrap();
    assert_eq!(second.take(1), None);
    second.note(&index).await.unwrap();
    first.recall(&index).await.unwrap();
    assert_eq!(first.packs(1), 0);
    index.close().await.unwrap();
}

/// Two processes of one wallet: what one leaves and what the other uses are both noted.
#[tokio::test]
async fn processes_do_not_undo_what_others_have_noted() {
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteOptions::new(dir.path().join("index"), "walrus_index");
    let index = SqliteIndex::open(options).await.unwrap();
    let ((first, _), (second, _)) = (reuse(), reuse());
    first.give(left(1 << 20, 12));
    first.note(&index).await.unwrap();
    second.recall(&index).await.unwrap();
    // Two of one kind, too.
    first.give(left(4 << 20, 14));
    first.give(left(4 << 20, 14));
    first.note(&index).await.unwrap();
    assert_eq!(second.take(1), Some((left(1 << 20, 12), 1)));
    second.note(&index).await.unwrap();
    for process in [&first, &second] {
        process.recall(&index).await.unwrap();
        assert_eq!(*process.left.lock(), [left(4 << 20, 14), left(4 << 20, 14)]);
    }
    second.take(4 << 20).unwrap();
    second.note(&index).await.unwrap();
    first.recall(&index).await.unwrap();
    assert_eq!(first.packs(4 << 20), 1);
    index.close().await.unwrap();
}

#[test]
fn what_is_not_there_is_forgotten() {
    let (reuse, _) = reuse();
    let needed = cost::encoded_size(2 << 20, 1000);
    let answer = |end: u64, size: Option<u64>| {
        StoreResult::new("blob", end)
            .with_start_epoch(Some(10))
            .with_encoded_size(size)
    };
    let used = left(4 << 20, 13);
    assert!(!is_bought(&answer(13, Some(used.size)), used, 1, needed));
    assert!(is_bought(&answer(11, needed), used, 1, needed));
    // The answer for storage that fits exactly is that for new storage.
    assert!(!is_bought(
        &answer(11, needed),
        left(2 << 20, 11),
        1,
        needed
    ));

    let (small, short) = (left(1 << 20, 13), left(4 << 20, 12));
    [small, short, left(3 << 20, 14), used]
        .into_iter()
        .for_each(|left| reuse.give(left));
    let known = reuse.left.lock().clone();
    // What is left while the publisher is asked is there, also if it is like what was known.
    reuse.give(used);
    reuse.forget(needed, 13, &known);
    assert_eq!(*reuse.left.lock(), [small, short, used]);
}

const MIB: usize = 1 << 20;

/// Storage up to epoch 11 for 2 MiB and so much more that it is larger by so many steps: the
/// encoded size grows by one for each 445,556 bytes.
fn larger(steps: u64) -> Left {
    left((2 << 20) + steps * 445_556, 11)
}

/// The answer about a blob of epoch 10 in this storage.
fn answer(storage: Left, reused: Option<bool>) -> StoreResult {
    StoreResult::new("blob", storage.end)
        .with_start_epoch(Some(10))
        .with_encoded_size(Some(storage.size))
        .with_newly_created(true)
        .with_reused(reused)
}

/// What is known to be left after stores of 2 MiB each that were all under way together.
async fn known_after<const N: usize>(known: &[Left], answers: [StoreResult; N]) -> Vec<Left> {
    known_after_stores::<N>(known, answers.to_vec()).await
}

/// The same after `N` stores, for which the publisher is asked as often as there are answers.
async fn known_after_stores<const N: usize>(
    known: &[Left],
    answers: Vec<StoreResult>,
) -> Vec<Left> {
    let (reuse, _) = reuse();
    known.iter().for_each(|left| reuse.give(*left));
    let purchase = Purchase {
        options: StoreOptions::new(26).with_deletable(true),
        reuse: Some(Arc::new(reuse)),
    };
    let answers = Arc::new(Mutex::new(answers));
    let publisher = Publisher::new(N, {
        let answers = Arc::clone(&answers);
        move |_| Ok(answers.lock().remove(0))
    });
    let store = |_| purchase.store(&publisher, Body::from(Bytes::from(vec![7; 2 * MIB])));
    let stores = std::array::from_fn::<usize, N, _>(|i| i).map(store);
    for stored in futures_util::future::join_all(stores).await {
        stored.unwrap();
    }
    assert!(answers.lock().is_empty());
    let reuse = purchase.reuse.unwrap();
    assert!(reuse.taken.lock().is_empty());
    let mut left = reuse.left.lock().clone();
    left.sort_unstable();
    left
}

/// Storage of the size that is needed looks like new storage: everything that was left would be
/// forgotten, and bought once more while it is there.
#[tokio::test]
async fn stores_under_way_together_may_get_each_other_s_storage() {
    let exact = larger(0);
    let known = [exact, larger(1), larger(2), larger(3)];
    for reused in [Some(true), None] {
        let answers = [answer(larger(1), reused), answer(exact, reused)];
        let left = known_after(&known, answers).await;
        assert_eq!(left, [larger(2), larger(3)], "{reused:?}");
    }
    // In a circle, and one that was meant for none of them.
    let answers = [larger(3), exact, larger(1)].map(|storage| answer(storage, Some(true)));
    assert_eq!(known_after(&known, answers).await, [larger(2)]);
}

#[tokio::test]
async fn what_the_publisher_left_alone_is_still_there() {
    // Storage of the wallet that this node did not know of.
    let unknown = answer(larger(0), Some(true));
    let known = [larger(1), larger(2)];
    assert_eq!(known_after(&known, [unknown]).await, known);
    // Bought, so nothing was there that fits; what is too small may be.
    let bought = answer(larger(0), Some(false));
    let small = left(1 << 20, 11);
    let known = [small, larger(1), larger(2)];
    assert_eq!(known_after(&known, [bought]).await, [small]);
    // The blob was there, so no storage was needed; it is stored once more, as one of its own.
    let there = StoreResult::new("blob", 12);
    let own = StoreResult::new("blob", 36).with_newly_created(true);
    let known = [larger(1), larger(2)];
    let left = known_after_stores::<1>(&known, vec![there, own]).await;
    assert_eq!(left, known);
}

/// An operator learns that the publisher uses nothing again.
#[tokio::test]
async fn a_publisher_that_buys_all_the_same_is_told_about() {
    let (reuse, _) = reuse();
    let reuse = Arc::new(reuse);
    let purchase = Purchase {
        options: StoreOptions::new(26).with_deletable(true),
        reuse: Some(Arc::clone(&reuse)),
    };
    for reused in [false, false, true, false, false, false] {
        assert!(!reuse.is_ignored());
        reuse.give(larger(0));
        let publisher = Publisher::new(1, move |_| Ok(answer(larger(0), Some(reused))));
        let body = Body::from(Bytes::from(vec![7; 2 * MIB]));
        purchase.store(&publisher, body).await.unwrap();
    }
    assert!(reuse.is_ignored());
    assert!(!reuse.is_ignored(), "once");
}
