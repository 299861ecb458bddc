#!/usr/bin/env bash
# Usage: scripts/test.sh        (make test)
#
# All tests: formatting and lints, the engine (with a PostgreSQL of its own), the local Walrus, the C
# interface, foreign clients, the Go shim, the contract of a go-datastore, and real Kubo nodes with the
# plugin built in and as an external file. Stops at the first part that fails.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
CARGO=${CARGO:-cargo}
started=$SECONDS
part() {
  printf '\n== %s (%d min %02d s so far)\n' "$*" $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60))
}

part "what is needed"
scripts/deps.sh
part "building"
"$CARGO" build --release --locked --workspace
part "formatting and lints"
scripts/check.sh
part "engine and local Walrus"
"$CARGO" test --locked --workspace --exclude kubo-tests --exclude walrusds-chaos
part "interleavings of threads"
scripts/interleavings.sh
part "faults and crashes, smoke run"
CHAOS_SMOKE=1 scripts/chaos.sh
part "C interface"
scripts/c-abi-test.sh
part "foreign clients"
scripts/foreign-test.sh
part "Go shim"
scripts/go-test.sh
part "contract of a go-datastore"
CONFORMANCE_SHORT=1 scripts/conformance.sh
part "real Kubo nodes"
scripts/kubo-test.sh
part "benchmark, smoke run"
BENCH_SMOKE=1 scripts/bench.sh
part "all parts passed"
