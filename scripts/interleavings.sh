#!/usr/bin/env bash
# Usage: scripts/interleavings.sh [test...]        (make interleavings)
#
# The engine's small concurrent parts under a scheduler (the crate shuttle) that decides at every
# lock and atomic which thread goes on: some thousand schedules of each test in the modules
# `schedules` of the sources. The first failure prints its schedule.
#
# Environment: SCHEDULES=20 (twenty times as many), SCHEDULE_SEED (others), SCHEDULE=... (repeats
# the printed one; name the test).
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
CARGO=${CARGO:-cargo}
names=("$@")
[[ $# -gt 0 ]] || names=(schedules::)
# In a directory of its own: the compiler's flags are other ones.
CARGO_TARGET_DIR=$BUILD/interleavings RUSTFLAGS="--cfg shuttle" "$CARGO" test --locked -p walrusds --lib -- "${names[@]}"
