use std::sync::Arc;

use super::fake::{Call, Fake};
use super::*;

fn id(n: u8) -> String {
    object_id(&format!("0x{n:x}")).unwrap()
}

fn blob(n: u8, end_epoch: u64) -> OwnedBlob {
    OwnedBlob {
        object_id: id(n),
        blob_id: "A".repeat(43),
        size: 1000,
        certified: true,
        end_epoch,
        deletable: n & 1 == 0,
    }
}

fn failure<T: fmt::Debug>(result: Result<T>) -> Option<Failure> {
    Failure::of(&result.unwrap_err())
}

#[test]
fn object_ids_have_one_form() {
    let full = format!("0x{:0>64}", "ab1");
    for text in ["0xaB1", "ab1", &full] {
        assert_eq!(object_id(text).unwrap(), full, "{text}");
    }
    for wrong in ["", "0x", "0xg", "--all", &format!("0x1{}", "0".repeat(64))] {
        let error = object_id(wrong).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{wrong}");
    }
}

#[test]
fn failures_are_found_in_errors() {
    for (failure, retryable) in [
        (Failure::Unusable, false),
        (Failure::EmptyWallet, false),
        (Failure::Absent, false),
        (Failure::Refused, false),
        (Failure::Unclear, true),
    ] {
        let error = failure.error("why").context("extend");
        assert_eq!(Failure::of(&error), Some(failure));
        assert_eq!(error.is_retryable(), retryable);
        assert_eq!(error.message(), "extend: why");
    }
    assert_eq!(Failure::of(&Error::closed("x")), None);
}

#[tokio::test]
async fn a_round_lists_once_after_its_changes() {
    let fake = Arc::new(Fake::default());
    for n in 1..=5 {
        fake.own(blob(n, 10));
    }
    let round = Round::new(Arc::<Fake>::clone(&fake));
    assert_eq!(round.end_epoch_of("0x1").await.unwrap(), Some(10));
    for n in 1..=5 {
        round.extend(&id(n), u32::from(n), false).await.unwrap();
    }
    for n in 1..=5 {
        let end = round.end_epoch_of(&id(n)).await.unwrap();
        assert_eq!(end, Some(10 + u64::from(n)));
    }
    assert_eq!(fake.calls(Call::List), 2);
    let outcomes = round.delete(&[id(2), id(3), id(9)]).await.unwrap();
    let outcomes: Vec<_> = outcomes.into_iter().map(|(_, o)| o.err()).collect();
    let failures: Vec<_> = outcomes
        .iter()
        .map(|e| e.as_ref().and_then(Failure::of))
        .collect();
    assert_eq!(
        failures,
        [None, Some(Failure::Refused), Some(Failure::Absent)]
    );
    assert_eq!(round.owned(&id(2)).await.unwrap(), None);
    assert_eq!(round.owned(&id(3)).await.unwrap(), Some(blob(3, 13)));
    assert_eq!(fake.calls(Call::List), 3);
}

/// An extension that fails may have been made: its end is asked for anew.
#[tokio::test]
async fn a_round_sees_what_an_unclear_change_did() {
    let fake = Arc::new(Fake::default());
    fake.own(blob(1, 10));
    let round = Round::new(Arc::<Fake>::clone(&fake));
    assert_eq!(round.end_epoch_of(&id(1)).await.unwrap(), Some(10));
    fake.fail(Call::Extend, Failure::Unclear, 1);
    let unclear = round.extend(&id(1), 3, false).await;
    assert_eq!(failure(unclear), Some(Failure::Unclear));
    assert_eq!(round.end_epoch_of(&id(1)).await.unwrap(), Some(13));
    fake.fail(Call::Extend, Failure::EmptyWallet, 1);
    let poor = round.extend(&id(1), 3, false).await;
    assert_eq!(failure(poor), Some(Failure::EmptyWallet));
    assert_eq!(round.end_epoch_of(&id(1)).await.unwrap(), Some(13));
    assert_eq!(
        failure(round.extend(&id(1), 50, false).await),
        Some(Failure::Refused)
    );
    fake.fail(Call::List, Failure::Unusable, 1);
    assert_eq!(failure(round.owned(&id(1)).await), Some(Failure::Unusable));
    assert_eq!(
        round.end_epoch_of(&id(1)).await.unwrap(),
        Some(13),
        "asked again"
    );
}

/// A list that was under way while a change ended may lack it, and is not kept.
#[tokio::test]
async fn a_list_from_before_a_change_is_not_kept() {
    struct Slow {
        fake: Fake,
        /// A list waits for it before its answer leaves.
        gate: tokio::sync::Semaphore,
        listed: tokio::sync::Notify,
    }
    #[async_trait]
    impl Chain for Slow {
        async fn epoch(&self) -> Result<Epoch> {
            self.fake.epoch().await
        }
        async fn prices(&self) -> Result<Prices> {
            self.fake.prices().await
        }
        async fn extend(&self, object_id: &str, epochs: u32, shared: bool) -> Result<()> {
            self.fake.extend(object_id, epochs, shared).await
        }
        async fn delete(&self, object_ids: &[String]) -> Result<Vec<(String, Result<()>)>> {
            self.fake.delete(object_ids).await
        }
        async fn list(&self) -> Result<Vec<OwnedBlob>> {
            let listed = self.fake.list().await;
            self.listed.notify_one();
            let _passed = self.gate.acquire().await;
            listed
        }
    }
    let slow = Arc::new(Slow {
        fake: Fake::default(),
        gate: tokio::sync::Semaphore::new(0),
        listed: tokio::sync::Notify::new(),
    });
    slow.fake.own(blob(1, 10));
    let round = Arc::new(Round::new(Arc::<Slow>::clone(&slow)));
    let object = id(1);
    let early = {
        let (round, object) = (Arc::clone(&round), object.clone());
        tokio::spawn(async move { round.end_epoch_of(&object).await })
    };
    slow.listed.notified().await;
    round.extend(&object, 5, false).await.unwrap();
    slow.gate.add_permits(1);
    assert_eq!(early.await.unwrap().unwrap(), Some(10));
    assert_eq!(round.end_epoch_of(&object).await.unwrap(), Some(15));
}
