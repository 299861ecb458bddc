//! The generators of random sequences.

use proptest::prelude::*;

use testkit::model::{Act, Call, GiveUp, Step, NODES, SLOTS};

fn act() -> impl Strategy<Value = Act> {
    let slot = || 0..SLOTS;
    let seed = || 0..10u8;
    prop_oneof![
        6 => (slot(), seed()).prop_map(|(s, v)| Act::Put(s, v)),
        3 => slot().prop_map(Act::Delete),
        4 => prop::collection::vec((slot(), prop::option::weighted(0.7, seed())), 0..8)
            .prop_map(Act::Batch),
        5 => slot().prop_map(Act::Get),
        1 => slot().prop_map(Act::Has),
        1 => slot().prop_map(Act::Size),
        2 => (0..6u8, any::<bool>(), 0..3u8, prop::option::weighted(0.3, 0..4u8)).prop_map(
            |(prefix, values, offset, limit)| Act::Query { prefix, values, offset, limit }
        ),
        1 => Just(Act::Sync),
    ]
}

fn give_up() -> impl Strategy<Value = Option<GiveUp>> {
    prop_oneof![
        4 => Just(None),
        1 => (0..6u8).prop_map(|n| Some(GiveUp::Polls(n))),
        1 => (0..3000u16).prop_map(|n| Some(GiveUp::Micros(n))),
    ]
}

fn call() -> impl Strategy<Value = Call> {
    (0..NODES, act(), give_up()).prop_map(|(node, act, give_up)| Call { node, act, give_up })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => call().prop_map(|call| Step::Together(vec![call])),
        5 => prop::collection::vec(call(), 2..6).prop_map(Step::Together),
        2 => (0..NODES).prop_map(Step::Reopen),
        2 => (0..NODES, prop::collection::vec(call(), 0..4)).prop_map(|(n, c)| Step::Crash(n, c)),
        1 => (1..1500u16).prop_map(Step::Pass),
    ]
}

pub fn steps(longest: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..longest)
}
