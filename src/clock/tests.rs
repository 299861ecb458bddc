use std::time::Duration;

use super::*;

fn seen(epoch: u64, at: SystemTime) -> Sighting {
    Sighting {
        epoch,
        first: at,
        last: at,
    }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

#[test]
fn an_epoch_of_unknown_age_may_be_about_to_end() {
    let clock = EpochClock::new(Duration::from_secs(100));
    assert_eq!(clock.expires_at(at(1000), 7, 12), Some(at(1400)));
    assert_eq!(clock.expires_at(at(1000), 7, 8), Some(at(1000)));
}

#[test]
fn a_seen_boundary_sharpens_the_estimate() {
    let clock = EpochClock::new(Duration::from_secs(100));
    clock.expires_at(at(1000), 7, 8);
    // Epoch 8 began after 1000, so epoch 9 begins after 1100.
    assert_eq!(clock.expires_at(at(1010), 8, 9), Some(at(1100)));
    assert_eq!(clock.expires_at(at(1050), 8, 10), Some(at(1200)));
    // A gap of several epochs says nothing about when this one began.
    assert_eq!(clock.expires_at(at(2000), 20, 21), Some(at(2000)));
}

#[test]
fn a_publisher_that_lags_makes_no_blob_live_longer() {
    let clock = EpochClock::new(Duration::from_secs(100));
    clock.expires_at(at(1000), 7, 9);
    clock.expires_at(at(1010), 8, 10);
    // Epoch 8 began after 1000, even though this answer names epoch 7: so epoch 9 may begin at
    // 1100.
    assert_eq!(clock.expires_at(at(1090), 7, 9), Some(at(1100)));
    assert_eq!(clock.expires_at(at(1090), 8, 9), Some(at(1100)));
}

#[test]
fn without_a_duration_nothing_is_known() {
    let clock = EpochClock::new(Duration::ZERO);
    assert!(!clock.is_over(7));
    assert_eq!(clock.expires_at(at(1000), 7, 8), None);
    assert!(clock.is_over(7));
    assert!(!clock.is_over(8));
    assert!(!clock.is_over(0), "0 = unknown");
    assert_eq!(clock.expires_at_least(at(1000), 3), None);
}

/// The machine's clock goes a year ahead: epochs do not become so short for that that every blob
/// seems to end at once.
#[test]
fn a_clock_that_went_a_year_ahead_makes_no_epoch_short() {
    let clock = EpochClock::new(Duration::from_secs(100));
    let row = |n: u64| Sighting {
        epoch: 10 + n,
        first: at(1000 + 100 * n),
        last: at(1090 + 100 * n),
    };
    let rows: Vec<Sighting> = (0..6).map(row).collect();
    let now = at(31_536_000 + 1600);
    clock.merge(now, &rows);
    // Two answers agree.
    clock.expires_at(now, 16, 17);
    clock.expires_at(now, 16, 17);
    assert_eq!(clock.ends_within(now, Duration::from_secs(50)), Some(17));
    assert_eq!(clock.contradiction(now), None);
}

/// One answer with an absurd epoch does not end every blob; two that agree are believed.
#[test]
fn one_absurd_epoch_is_not_believed() {
    for duration in [Duration::ZERO, Duration::from_secs(100)] {
        let clock = EpochClock::new(duration);
        clock.expires_at(at(1000), 7, 9);
        clock.expires_at(at(1001), u64::MAX - 1, u64::MAX);
        assert!(!clock.is_over(9));
        clock.expires_at(at(1002), 1 << 40, (1 << 40) + 2);
        assert!(!clock.is_over(9));
        clock.expires_at(at(1003), 7, 9);
        clock.expires_at(at(1004), 1 << 40, (1 << 40) + 2);
        assert!(
            !clock.is_over(9),
            "two answers that did not follow each other"
        );
        clock.expires_at(at(1005), 1 << 40, (1 << 40) + 2);
        assert!(clock.is_over(9), "two answers that agree");
    }
}

/// The first answer of all may be the absurd one: the next ordinary answer corrects it.
#[test]
fn an_absurd_first_epoch_is_corrected() {
    let clock = EpochClock::new(Duration::from_secs(100));
    clock.expires_at(at(1000), 1 << 40, (1 << 40) + 2);
    clock.expires_at(at(1001), 7, 9);
    assert!(!clock.is_over(9));
    assert!(clock.is_over(7));
}

/// A clock that was ahead and was set back does not move the beginning of an epoch.
#[test]
fn a_clock_that_is_set_back_makes_no_epoch_begin_later() {
    let clock = EpochClock::new(Duration::from_secs(100));
    clock.expires_at(at(900_000), 7, 8);
    clock.expires_at(at(900_010), 8, 9);
    assert!(clock.expires_at(at(1000), 8, 10) <= Some(at(1200)));
}

#[test]
fn end_epochs_within_a_lead_are_judged_by_sightings() {
    let clock = EpochClock::new(Duration::from_secs(100));
    let lead = Duration::from_secs(90);
    assert_eq!(clock.ends_within(at(1000), lead), None);
    clock.expires_at(at(1000), 7, 9);
    // Epoch 7 may be about to end: 8 may begin now, 9 in 100 s, which is beyond the lead.
    assert_eq!(clock.ends_within(at(1000), lead), Some(8));
    assert_eq!(clock.ends_within(at(1050), lead), Some(9));
    assert_eq!(clock.ends_within(at(1450), lead), Some(13));
    let other = EpochClock::new(Duration::from_secs(100));
    let (epoch, seen_at) = clock.last_seen(at(1000)).unwrap();
    other.merge(at(1450), &[seen(epoch, seen_at)]);
    assert_eq!(other.ends_within(at(1450), lead), Some(13));
    let other = EpochClock::new(Duration::from_secs(100));
    // Seen in the future: it may have been long ago, until an answer to a store names the
    // epoch.
    other.merge(at(500), &[seen(epoch, seen_at)]);
    assert!(other.ends_within(at(500), lead) > Some(50));
    other.expires_at(at(500), 8, 10);
    assert_eq!(other.ends_within(at(500), lead), Some(9));
}

#[test]
fn an_existing_blob_has_at_least_the_epochs_asked_for() {
    let clock = EpochClock::new(Duration::from_secs(100));
    assert_eq!(clock.expires_at_least(at(1000), 3), Some(at(1200)));
}

mod sightings {
    use proptest::prelude::*;
    use tokio::time::{advance, Instant};

    use super::super::span::{duration, nanos, tolerance};
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const LENGTH: Duration = Duration::from_secs(14 * 86_400);

    /// 2026, on a machine whose clock is right.
    fn start() -> SystemTime {
        at(1_780_000_000)
    }

    fn row(epoch: u64, first: SystemTime, last: SystemTime) -> Sighting {
        Sighting { epoch, first, last }
    }

    /// A day within an epoch of 14 days, of which epoch 0 began at [`start`].
    fn day(day: f64) -> SystemTime {
        start() + Duration::from_secs((day * 86_400.0).round() as u64)
    }

    /// A machine whose clock goes right.
    struct Machine {
        began: Instant,
        shows: SystemTime,
    }

    impl Machine {
        fn starts(shows: SystemTime) -> Machine {
            let began = Instant::now();
            Machine { began, shows }
        }

        fn now(&self) -> SystemTime {
            self.shows + self.began.elapsed()
        }
    }

    /// A network, the rows of nodes whose clocks are right within the tolerance, and the answers to
    /// this process.
    #[derive(Debug, Clone)]
    struct World {
        length: Duration,
        /// When each epoch begins; the last one is only the end of the one before.
        begins: Vec<SystemTime>,
        first: u64,
        rows: Vec<Sighting>,
        /// The moments of answers, in order, as parts of the time after the rows.
        answers: Vec<f64>,
        absurd: Option<u64>,
    }

    const PAST: usize = 12;
    const WHILE: usize = 3;

    fn world() -> impl Strategy<Value = World> {
        let epochs = PAST + WHILE + 60;
        let length = prop_oneof![
            Just(LENGTH),
            Just(DAY),
            (40u64..100_000).prop_map(Duration::from_secs)
        ];
        let delays = prop::collection::vec(0.0..1.0 / 256.0, epochs);
        let rows = prop::collection::vec(
            prop::option::weighted(0.5, (0.0..1.0, 0.0..1.0, -1.0..1.0, -1.0..1.0)),
            PAST,
        );
        let answers = prop::collection::vec(0.0..1.0, 0..8);
        let absurd = prop::option::of(prop_oneof![100u64..500, any::<u64>()]);
        (length, 0u64..2000, delays, rows, answers, absurd).prop_map(
            |(length, first, delays, rows, mut answers, absurd)| {
                let mut begins = vec![start()];
                for delay in delays {
                    let last = begins[begins.len() - 1];
                    begins.push(last + length.mul_f64(1.0 + delay));
                }
                let margin = tolerance(length);
                let rows = rows.into_iter().enumerate().filter_map(|(i, row)| {
                    let (a, b, off_a, off_b): (f64, f64, f64, f64) = row?;
                    let of = |part: f64, off: f64| {
                        let lasts = begins[i + 1].duration_since(begins[i]).unwrap();
                        let at = begins[i] + lasts.mul_f64(part);
                        at + margin.mul_f64(off + 1.0) - margin
                    };
                    Some(Sighting {
                        epoch: first + i as u64,
                        first: of(a.min(b), off_a),
                        last: of(a.max(b), off_b),
                    })
                });
                let rows = rows.collect();
                answers.sort_by(f64::total_cmp);
                World {
                    length,
                    first,
                    rows,
                    answers,
                    absurd,
                    begins,
                }
            },
        )
    }

    impl World {
        fn epoch_at(&self, t: SystemTime) -> u64 {
            let begun = self.begins.iter().filter(|begins| **begins <= t).count();
            self.first + begun as u64 - 1
        }

        /// Checks all that the clock says against the truth.
        fn check(&self, clock: &EpochClock, now: SystemTime) -> Result<(), TestCaseError> {
            prop_assert_eq!(clock.contradiction(now), None);
            let current = self.epoch_at(now);
            let Some(belief) = clock.belief(now) else {
                prop_assert_eq!(clock.now_epoch(now), None);
                return Ok(());
            };
            prop_assert!(belief.epoch <= current);
            let begins = |epoch: u64| self.begins[(epoch - self.first) as usize];
            let truth = nanos(now.duration_since(begins(belief.epoch)).unwrap());
            let ends = begins(belief.epoch + 1);
            let ends = match ends.duration_since(now) {
                Ok(ahead) => nanos(ahead),
                Err(ago) => -nanos(ago.duration()),
            };
            prop_assert!(belief.next <= ends, "{} {ends}", belief.next);
            prop_assert!(belief.by.is_none_or(|by| -truth <= by));
            let (least, most) = clock.now_epoch(now).unwrap();
            prop_assert!(
                least <= current && current <= most,
                "{least} {current} {most}"
            );
            for end in belief.epoch..current + 55 {
                let ends = clock.ends_at(now, end).unwrap();
                prop_assert!(ends <= begins(end), "epoch {end}");
                let lead = begins(end).duration_since(now);
                if let Ok(lead) = lead {
                    let within = clock.ends_within(now, lead + Duration::from_nanos(1));
                    prop_assert!(within >= Some(end));
                }
                prop_assert!(!clock.is_over(end) || end <= current);
            }
            Ok(())
        }

        async fn run(&self) -> Result<(), TestCaseError> {
            let clock = EpochClock::new(self.length);
            let machine = Machine::starts(self.begins[PAST]);
            clock.merge(machine.now(), &self.rows);
            self.check(&clock, machine.now())?;
            let time = self.length.mul_f64(WHILE as f64);
            for (i, part) in self.answers.iter().enumerate() {
                let until = self.begins[PAST] + time.mul_f64(*part);
                advance(until.duration_since(machine.now()).unwrap_or_default()).await;
                let now = machine.now();
                let current = self.epoch_at(now);
                let end = current + 5;
                let expires = clock.expires_at(now, current, end).unwrap();
                prop_assert!(expires <= self.begins[(end - self.first) as usize]);
                self.check(&clock, now)?;
                // One absurd answer, of a real one's end.
                if let Some(absurd) = self.absurd.filter(|_| i == 1) {
                    let absurd = self.first.wrapping_add(absurd);
                    clock.expires_at(now, absurd, absurd.saturating_add(5));
                    self.check(&clock, now)?;
                }
            }
            // What is saved serves another process as well.
            let saved = clock.unsaved(machine.now());
            let all: Vec<Sighting> = self.rows.iter().copied().chain(saved.clone()).collect();
            let other = EpochClock::new(self.length);
            other.merge(machine.now(), &all);
            self.check(&other, machine.now())?;
            clock.saved(&saved);
            prop_assert_eq!(clock.unsaved(machine.now()), vec![]);
            clock.merge(machine.now(), &all);
            self.check(&clock, machine.now())
        }
    }

    /// Numbers at the ends of what can be written, and a few between them.
    fn extreme() -> impl Strategy<Value = u64> {
        let ends = [0, 1, 2, 7, 1 << 32, 1 << 62, u64::MAX - 1, u64::MAX];
        prop_oneof![prop::sample::select(ends.to_vec()), 0u64..100, any::<u64>()]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        /// The truth lies within the bounds, and no estimate is later than it, whatever is seen.
        #[test]
        fn the_truth_lies_within_the_bounds(world in world()) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(world.run())?;
        }

        /// Nonsense from an index neither panics nor poisons the answers of this process.
        #[test]
        fn nonsense_rows_do_no_harm(
            rows in prop::collection::vec((any::<u64>(), any::<u32>(), any::<u32>()), 0..40),
            seconds in prop_oneof![Just(0u64), 1..u64::from(u32::MAX)],
            chain in any::<Option<(u64, u32)>>(),
        ) {
            let clock = EpochClock::new(Duration::from_secs(seconds));
            let row = |(epoch, a, b): &(u64, u32, u32)| row(*epoch, at((*a).into()), at((*b).into()));
            let rows: Vec<Sighting> = rows.iter().map(row).collect();
            for epoch in [7, 7, 7] {
                clock.expires_at(start(), epoch, 9);
            }
            clock.merge(start(), &rows);
            clock.expires_at(start(), 7, 9);
            clock.expires_at(start(), 7, 9);
            prop_assert!(clock.is_over(7) && !clock.is_over(9));
            if let Some((epoch, began)) = chain {
                clock.is_exactly(start(), epoch, at(began.into()), Duration::from_secs(seconds));
            }
            let _ = (clock.contradiction(start()), clock.likely_length(start()));
            let _ = (clock.now_epoch(start()), clock.ends_at(start(), u64::MAX));
            let _ = clock.ends_within(start(), Duration::MAX);
        }

        /// Nor do absurd answers, rows and words of the chain in any order, under any clock.
        #[test]
        fn nonsense_in_any_order_does_not_panic(
            seconds in prop_oneof![Just(0u64), Just(1), Just(14 * 86_400), Just(u64::MAX), any::<u64>()],
            steps in prop::collection::vec((0u8..4, extreme(), extreme(), 0u64..1 << 40, 0u64..1 << 40), 1..12),
        ) {
            let clock = EpochClock::new(Duration::from_secs(seconds));
            for (kind, epoch, end, a, b) in steps {
                let now = at(a);
                match kind {
                    0 => drop(clock.expires_at(now, epoch, end)),
                    1 => clock.merge(now, &[row(epoch, at(b), at(a)), row(end, at(a), at(b))]),
                    2 => clock.is_exactly(now, epoch, at(b), Duration::from_secs(end)),
                    _ => clock.saved(&clock.unsaved(now)),
                }
                let _ = (clock.contradiction(now), clock.likely_length(now), clock.last_seen(now));
                let _ = (clock.now_epoch(now), clock.ends_at(now, end), clock.is_over(end));
                let _ = (clock.ends_within(now, Duration::MAX), clock.expires_at_least(now, u32::MAX));
                let _ = (clock.ends_within(now, Duration::ZERO), clock.unsaved(now));
            }
        }
    }

    /// The whole range of numbers lies between two epochs, and their length is unknown.
    #[test]
    fn epochs_may_lie_as_far_apart_as_numbers_go() {
        let clock = EpochClock::new(Duration::ZERO);
        clock.expires_at(day(1.0), u64::MAX, u64::MAX);
        clock.merge(day(1.0), &[row(0, day(0.5), day(0.6))]);
        let _ = clock.likely_length(day(2.0));
        let _ = clock.contradiction(day(2.0));
        assert_eq!(clock.now_epoch(day(2.0)), Some((u64::MAX, u64::MAX)));
    }

    /// The estimate of one process alone is up to an epoch too early; rows sharpen it.
    #[tokio::test(start_paused = true)]
    async fn rows_of_others_sharpen_the_estimate() {
        let clock = EpochClock::new(LENGTH);
        clock.expires_at(day(70.0), 5, 6);
        assert_eq!(clock.ends_at(day(70.0), 6), Some(day(70.0)));
        // Epoch 1 was seen just after it began, epoch 3 just before it ended.
        clock.merge(
            day(70.0),
            &[
                row(1, day(14.1), day(20.0)),
                row(3, day(50.0), day(55.9)),
                row(9, day(70.0), day(70.0)),
            ],
        );
        let margin = tolerance(LENGTH);
        assert_eq!(clock.ends_at(day(70.0), 6), Some(day(83.9) - margin));
        assert_eq!(clock.ends_at(day(70.0), 10), Some(day(139.9) - margin));
        assert_eq!(clock.now_epoch(day(70.0)), Some((5, 5)));
        assert_eq!(clock.now_epoch(day(90.0)).unwrap().1, 6);
        assert_eq!(clock.contradiction(day(70.0)), None);
        assert!(!clock.is_over(6), "only what was seen counts");
    }

    /// One row of a node whose clock was a year behind, or of an absurd epoch.
    #[test]
    fn one_wrong_row_does_not_poison_the_others() {
        let right = [
            row(1, day(15.0), day(27.0)),
            row(2, day(29.0), day(41.0)),
            row(3, day(43.0), day(45.0)),
        ];
        let expected = EpochClock::new(LENGTH);
        expected.merge(day(46.0), &right);
        let year = 365 * DAY;
        for wrong in [
            row(2, day(29.0) - year, day(41.0) - year),
            row(2, day(29.0) - year, day(41.0)),
            row(4, day(10.0), day(11.0)),
            row(1 << 40, day(44.0), day(44.0)),
            row(0, day(45.0), day(45.0)),
            row(3, day(43.0) + year, day(45.0) + year),
        ] {
            let clock = EpochClock::new(LENGTH);
            let mut rows = right.to_vec();
            rows.retain(|row| row.epoch != wrong.epoch);
            rows.push(wrong);
            clock.merge(day(46.0), &rows);
            assert_eq!(clock.contradiction(day(46.0)), None, "{wrong:?}");
            let (least, most) = clock.now_epoch(day(46.0)).unwrap();
            assert!(
                least <= 3 && (3..5).contains(&most),
                "{wrong:?}: {least} {most}"
            );
            assert!(clock.ends_at(day(46.0), 6) <= Some(day(84.0)), "{wrong:?}");
        }
    }

    /// Testnet is wiped now and then: its epochs begin again.
    #[test]
    fn a_network_that_was_wiped_is_no_contradiction() {
        let old = (300..320).map(|n| {
            let begins = start() + DAY * (n - 300);
            row(n.into(), begins + DAY / 10, begins + DAY / 2)
        });
        let mut rows: Vec<Sighting> = old.collect();
        let now = start() + 21 * DAY;
        let clock = EpochClock::new(DAY);
        clock.merge(now, &rows);
        assert!(clock.is_over(6));
        clock.expires_at(now, 1, 6);
        assert!(!clock.is_over(6) && clock.is_over(1));
        rows.extend(clock.unsaved(now));
        clock.merge(now, &rows);
        assert!(!clock.is_over(6));
        assert_eq!(clock.contradiction(now), None);
        let other = EpochClock::new(DAY);
        rows.push(row(1, now, now + DAY / 4));
        other.merge(now + DAY / 2, &rows);
        assert!(!other.is_over(6) && other.is_over(1));
        assert_eq!(other.contradiction(now + DAY / 2), None);
    }

    fn fits(clock: &EpochClock, now: SystemTime, length: Duration) -> bool {
        let (least, most) = clock.likely_length(now).unwrap();
        least <= length && most.is_none_or(|most| length <= most)
    }

    /// The length of the wrong network, by the rows of an index alone, and by one process.
    #[tokio::test(start_paused = true)]
    async fn a_wrong_length_is_told() {
        for (configured, truth) in [(LENGTH, DAY), (DAY, LENGTH)] {
            let rows: Vec<Sighting> = (0..5)
                .map(|n| {
                    let begins = start() + truth * n;
                    row(n.into(), begins + truth / 10, begins + truth.mul_f64(0.9))
                })
                .collect();
            let clock = EpochClock::new(configured);
            let now = start() + truth.mul_f64(4.9);
            clock.merge(now, &rows);
            let text = clock.contradiction(now).unwrap();
            assert!(
                text.contains(&format!("{} s, but", configured.as_secs())),
                "{text}"
            );
            assert!(fits(&clock, now, truth), "{text}");
            assert!(!fits(&clock, now, configured), "{text}");

            let clock = EpochClock::new(configured);
            let machine = Machine::starts(start());
            let mut told = None;
            for hour in 0.. {
                let now = machine.now();
                let epoch = hour / (truth.as_secs() / 3600);
                clock.expires_at(now, epoch, epoch + 2);
                if told.is_none() && clock.contradiction(now).is_some() {
                    told = Some(now);
                }
                if let Some(told) = told {
                    // From then on the estimate is right all the same.
                    let ends = clock.ends_at(now, epoch + 2).unwrap();
                    assert!(ends <= start() + truth * (epoch as u32 + 2));
                    if now > told + 3 * truth {
                        break;
                    }
                }
                assert!(hour < 100 * 24, "it was never told");
                advance(Duration::from_secs(3600)).await;
            }
            let seen_for = told.unwrap().duration_since(start()).unwrap();
            assert!(seen_for <= 3 * DAY, "{seen_for:?}");
        }
    }

    #[test]
    fn sightings_bound_an_unknown_length() {
        let clock = EpochClock::new(Duration::ZERO);
        assert_eq!(clock.likely_length(day(0.0)), None);
        assert_eq!(clock.now_epoch(day(0.0)), None);
        let mut rows = vec![row(0, day(2.0), day(2.0)), row(1, day(15.0), day(15.0))];
        clock.merge(day(16.0), &rows);
        let (least, most) = clock.likely_length(day(16.0)).unwrap();
        assert!(least > 6 * DAY && least < LENGTH && most.is_none());
        rows.push(row(5, day(71.0), day(79.0)));
        clock.merge(day(80.0), &rows);
        let (least, most) = clock.likely_length(day(80.0)).unwrap();
        assert!(least > 12 * DAY && most.unwrap() < 19 * DAY);
        assert!(least <= LENGTH && most.unwrap() >= LENGTH);
        assert_eq!(clock.now_epoch(day(80.0)), Some((5, u64::MAX)));
        assert_eq!(clock.contradiction(day(80.0)), None);
        assert_eq!(clock.ends_at(day(80.0), 9), None);
    }

    /// The chain's word makes the estimate exact, also for other nodes.
    #[tokio::test(start_paused = true)]
    async fn the_word_of_the_chain_is_exact() {
        let clock = EpochClock::new(LENGTH);
        clock.is_exactly(day(80.0), 5, day(70.0), LENGTH);
        assert_eq!(clock.ends_at(day(80.0), 7), Some(day(98.0)));
        assert_eq!(clock.now_epoch(day(83.9)), Some((5, 5)));
        assert_eq!(clock.now_epoch(day(84.1)).unwrap().1, 6);
        // A publisher that lags, and one that does not.
        clock.expires_at(day(80.0), 4, 9);
        clock.expires_at(day(80.0), 5, 9);
        assert_eq!(clock.ends_at(day(80.0), 7), Some(day(98.0)));
        let other = EpochClock::new(LENGTH);
        other.merge(day(81.0), &clock.unsaved(day(80.0)));
        assert_eq!(
            other.ends_at(day(81.0), 7),
            Some(day(98.0) - tolerance(LENGTH))
        );
        assert_eq!(other.contradiction(day(81.0)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_chain_tells_a_length_that_is_missing_or_wrong() {
        let clock = EpochClock::new(Duration::ZERO);
        clock.is_exactly(day(80.0), 5, day(70.0), LENGTH);
        assert_eq!(clock.ends_at(day(80.0), 7), Some(day(98.0)));
        assert_eq!(clock.contradiction(day(80.0)), None);
        let clock = EpochClock::new(DAY);
        clock.is_exactly(day(80.0), 5, day(70.0), LENGTH);
        assert_eq!(clock.ends_at(day(80.0), 7), Some(day(98.0)));
        let text = clock.contradiction(day(80.0)).unwrap();
        assert!(
            text.contains("86400 s, but the chain says 1209600 s"),
            "{text}"
        );
    }

    /// The program asks one network, and the publisher stores on another.
    #[test]
    fn a_chain_of_another_network_is_told_and_not_believed() {
        let clock = EpochClock::new(DAY);
        clock.expires_at(day(80.0), 300, 305);
        clock.expires_at(day(80.0), 300, 305);
        clock.is_exactly(day(80.0), 30, day(70.0), DAY);
        let text = clock.contradiction(day(80.0)).unwrap();
        assert!(text.contains("30, but") && text.contains("300"), "{text}");
        assert!(clock.is_over(300) && !clock.is_over(301));
        assert_eq!(clock.now_epoch(day(80.0)).unwrap().0, 300);
    }

    /// The chain says that the epoch is to begin next week: the machine's clock is behind.
    #[tokio::test(start_paused = true)]
    async fn a_beginning_that_cannot_be_is_not_taken_over() {
        for began in [87.0, 20.0] {
            let clock = EpochClock::new(LENGTH);
            clock.is_exactly(day(80.0), 5, day(began), LENGTH);
            assert_eq!(clock.ends_at(day(80.0), 6), Some(day(80.0)), "{began}");
        }
    }

    /// The machine's clock is up to two epochs ahead of the chain, or the network is late: what the
    /// chain names is the present epoch all the same.
    #[tokio::test(start_paused = true)]
    async fn an_epoch_that_should_have_ended_is_the_present_one_while_the_chain_names_it() {
        for (began, later) in [(70.0, 5.0), (65.0, 3.0), (60.0, 2.0), (50.0, 7.0)] {
            let clock = EpochClock::new(LENGTH);
            for now in [80.0, 80.0 + later, 80.0 + 2.0 * later] {
                clock.is_exactly(day(now), 5, day(began), LENGTH);
                let (least, _) = clock.now_epoch(day(now)).unwrap();
                assert_eq!(least, 5, "{began} {now}");
                let soon = day(now) + Duration::from_secs(3600);
                let late = now - began > 14.5;
                if late {
                    assert_eq!(clock.now_epoch(soon).unwrap().0, 5, "{began} {now}");
                    assert_eq!(clock.likely_epoch(soon), Some((5, 5)), "{began} {now}");
                }
            }
        }
    }

    /// A clock that is set back or forward makes no estimate later than the truth.
    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_makes_nothing_end_later() {
        for shows in [day(0.5), day(800.0)] {
            let clock = EpochClock::new(LENGTH);
            let machine = Machine::starts(day(13.0));
            clock.expires_at(machine.now(), 0, 2);
            advance(2 * DAY).await;
            clock.expires_at(machine.now(), 1, 3);
            advance(DAY).await;
            // Epoch 1 began three days ago at the most, so it has eleven to go at the least.
            let left = clock.ends_at(shows, 2).unwrap().duration_since(shows);
            assert!(left.unwrap_or_default() <= 12 * DAY);
            let saved = clock.unsaved(shows);
            for row in &saved {
                assert!(row.last <= shows, "{row:?}");
            }
            let other = EpochClock::new(LENGTH);
            other.merge(shows, &saved);
            let left = other.ends_at(shows, 2).unwrap().duration_since(shows);
            assert!(left.unwrap_or_default() <= 12 * DAY);
            assert_eq!(duration(nanos(DAY)), DAY);
        }
    }
}
