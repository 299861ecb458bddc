#!/usr/bin/env bash
# Usage: scripts/lifetime-sim.sh [--strict]        (make lifetime-sim)
#
# Two years of a node on a local Walrus, in minutes: 52 epochs of 14 days, 100,000 blocks that come
# over time, 60 % of them deleted over time; the node is killed now and then, an aggregator lies, a
# clock is wrong. Once without the chain, once with it (walrusCommand), and once with it and a
# publisher that uses storage again (reuseStorage). Fails if a single live block is lost. Prints what
# was paid, and for what, beside what had to be paid and what other ways would have paid; with
# --strict it fails if that is more than 1.15 times what the live bytes need in full packs (see
# tests/lifetime-sim/src/bill.rs), without the chain and with reuseStorage. With walrusCommand alone
# that cannot be reached: docs/benchmarks.md.
#
# Environment: SIM_SEED (repeats what was drawn), SIM_SHORT=1 (a short run for the tests),
# SIM_CHAIN=some of without,with,reuse, SIM_INDEX=sqlite or postgres, SIM_JOURNAL=1 (writes go through a
# journal), SIM_WITHOUT=kills,liar,liars,clock (troubles to leave out: kills; the aggregator that is
# asked first lies; all lie for two days; the clock is a year ahead), SIM_BOUGHT (epochs bought at a time,
# default 5, and 2 with reuse), SIM_LEAD_DAYS (7), SIM_EPOCHS,
# SIM_BLOCKS, SIM_SHARDS and SIM_PACK (the scale, see tests/lifetime-sim/src/main.rs), SIM_TABLE=1 (what
# was paid for at the end of each epoch). tests/lifetime-sim/model.py computes what to expect.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
CARGO=${CARGO:-cargo}

# In a target directory of its own: the feature changes the timers of all that is built with it.
CARGO_TARGET_DIR=$BUILD/lifetime-sim "$CARGO" build --release --locked --quiet -p walrusds-lifetime-sim \
  --features walrusds-lifetime-sim/virtual-time -p walrus-devnet
"$BUILD/lifetime-sim/release/walrus-lifetime-sim" "$@"
