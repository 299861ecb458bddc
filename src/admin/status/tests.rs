use super::*;
use crate::index::Usage;

const DAY: Duration = Duration::from_secs(86_400);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + 20_000 * DAY
}

fn quiet() -> Status {
    Status {
        at: now(),
        index: "sqlite",
        table: "t".to_owned(),
        epoch: Some(100),
        epoch_at_most: Some(100),
        epoch_seconds: 86_400,
        blocks: 0,
        bytes: 0,
        ledger: LedgerSums::default(),
        horizon: Vec::new(),
        price: Price::default(),
        forecast: Vec::new(),
        renewal: RenewalState {
            configured: true,
            interval_seconds: 3600,
            lead_seconds: 2 * 86_400,
            epochs: 5,
            last_round: Some(now() - Duration::from_secs(600)),
        },
        journal: None,
        cache: None,
        staged_left: false,
        nodes: Vec::new(),
        findings: Vec::new(),
    }
}

fn ending(end_epoch: u64, days: Option<u32>) -> Ending {
    Ending {
        end_epoch,
        at: days.map(|days| now() + days * DAY),
        blobs: 3,
        ..Ending::default()
    }
}

fn ids(status: &Status) -> Vec<&'static str> {
    find(status, 50).into_iter().map(|f| f.id).collect()
}

#[test]
fn a_datastore_that_is_well_has_no_findings() {
    let mut status = quiet();
    assert_eq!(ids(&status), [""; 0]);
    status.horizon = vec![ending(105, Some(5))];
    status.ledger.waste_percent = Some(49.9);
    assert_eq!(ids(&status), [""; 0]);
}

#[test]
fn data_about_to_lapse_is_an_error_and_says_whether_anybody_renews() {
    let mut status = quiet();
    status.horizon = vec![ending(101, Some(1))];
    assert_eq!(ids(&status), [""; 0], "its turn may come in the last third");
    status.renewal.lead_seconds = 5 * 86_400;
    assert_eq!(ids(&status), ["renewal-late"]);
    status.renewal.last_round = Some(now() - DAY);
    assert_eq!(ids(&status), ["lapsing"]);
    status.renewal.last_round = None;
    assert_eq!(ids(&status), ["lapsing"]);
    status.horizon = vec![ending(100, None)];
    assert_eq!(ids(&status), ["ended"]);
    let worst = find(&status, 50).remove(0);
    assert_eq!(worst.severity, Severity::Error);
}

#[test]
fn what_is_not_known_is_said() {
    let mut status = quiet();
    status.horizon = vec![ending(0, None)];
    assert_eq!(ids(&status), ["no-end"]);
    (status.epoch, status.ledger.blobs) = (None, 3);
    assert_eq!(ids(&status), ["no-epoch", "no-end"]);
    status.epoch_seconds = 0;
    assert_eq!(ids(&status), ["no-network", "no-end"]);
}

#[test]
fn waste_and_what_go_nodes_left_are_found() {
    let mut status = quiet();
    status.ledger.waste_percent = Some(50.0);
    status.staged_left = true;
    assert_eq!(ids(&status), ["waste", "staged"]);
}

#[test]
fn a_journal_that_does_not_empty_is_found() {
    let mut status = quiet();
    let files = |oldest| {
        Some(Files {
            path: "journal".into(),
            exists: true,
            segments: 1,
            disk_bytes: 1,
            oldest,
        })
    };
    let max_age = Duration::from_secs(300);
    status.journal = files(Some(now() - Duration::from_secs(3000)));
    assert_eq!(journal_finding(&status, max_age), None);
    status.journal = files(Some(now() - 2 * DAY));
    let found = journal_finding(&status, max_age).unwrap();
    assert!(found.what.contains("48 h"), "{found}");
    status.journal = files(None);
    assert_eq!(journal_finding(&status, max_age), None);
}

#[test]
fn waste_is_that_of_counted_blobs_alone() {
    let counted = EndingIn {
        end_epoch: 5,
        blobs: 2,
        bytes: 1000,
        live: Usage::new(4, 250),
        judged_bytes: 1000,
        waste_bytes: 750,
        ..EndingIn::default()
    };
    let uncounted = EndingIn {
        end_epoch: 6,
        blobs: 1,
        bytes: 1 << 40,
        uncounted: 1,
        ..EndingIn::default()
    };
    let sums = sums(&[counted, uncounted], 1000);
    assert_eq!((sums.waste_bytes, sums.waste_percent), (750, Some(75.0)));
    assert_eq!((sums.blobs, sums.uncounted, sums.live_blocks), (3, 1, 4));
    assert_eq!(sums.blocks_per_blob, 2.0, "of the blobs that were counted");
    // Two blobs of 500 bytes have 63 units each, and one of a TiB is longer than the network takes.
    assert_eq!(sums.units, 126);
}
