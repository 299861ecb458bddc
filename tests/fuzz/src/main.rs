//! libFuzzer on the target that `FUZZ_TARGET` names.
#![no_main]

#[path = "../targets.rs"]
mod targets;

use libfuzzer_sys::fuzz_target;
use once_cell::sync::Lazy;

static TARGET: Lazy<fn(&[u8])> = Lazy::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let named = targets::TARGETS.iter().find(|(n, _)| *n == name);
    named
        .unwrap_or_else(|| panic!("FUZZ_TARGET is {name:?}: run scripts/fuzz.sh"))
        .1
});

fuzz_target!(|data: &[u8]| TARGET(data));
