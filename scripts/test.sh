#!/usr/bin/env bash
# Usage: scripts/test.sh [--full]        (make test, make test-full)
#
# The tests, in parts that run side by side (scripts/parts.sh): every part runs, the last lines give
# the result of each, and PART=NAME[,NAME...] runs one again.
#
# Without --full, on two processors and once everything is built, they take less than 12 minutes:
# lints, the engine (with a PostgreSQL of its own), outages, the local Walrus, the operator's
# command and its reader of Kubo's other datastores, the C interface, the Go shim, a real Kubo node
# with walrusds built in, and the path of a new user (docs/move-a-repo.md) with a small repo. With
# --full, the longer ones: every other form of the plugin and Kubo's oldest version, the contract of
# a go-datastore, schedules of threads, faults and crashes, years of a node in minutes, memory
# checkers, the index on Citus (where PostgreSQL has the extension), foreign clients, the demo, the
# path of a new user with 10,000 files and 2 GiB, and
# short runs of fuzzer, mutations and benchmark.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/parts.sh
source "$ROOT/scripts/parts.sh"
cd "$ROOT"
CARGO=${CARGO:-cargo}
full='' PARTS_TARGET=test
if [[ ${1:-} == --full ]]; then full=1 PARTS_TARGET=test-full; fi

# cargo_test FLAGS...: with the features of the whole workspace, so that no part compiles anything
# again.
cargo_test=("$CARGO" test --locked --workspace --no-fail-fast)
# The engine's test programs that are no part of their own.
engine=()
for file in tests/*.rs; do
  case $(basename "$file" .rs) in
    index_suite | outages | walrus_client | model | streams) ;;
    *) engine+=(--test "$(basename "$file" .rs)") ;;
  esac
done
devnet=()
for file in devnet/tests/*.rs; do devnet+=(--test "$(basename "$file" .rs)"); done
command=(--bin walrusds)
for file in cli/tests/*.rs; do command+=(--test "$(basename "$file" .rs)"); done

if [[ -z $full ]]; then
  # The longest first.
  part kubo scripts/kubo-test.sh --built-in
  part lints scripts/check.sh
  part index "${cargo_test[@]}" --test index_suite
  part outages "${cargo_test[@]}" --test outages
  part engine "${cargo_test[@]}" --exclude walrusds-chaos --lib --bins "${engine[@]}"
  part model "${cargo_test[@]}" --test model --test streams
  part client "${cargo_test[@]}" --test walrus_client
  part devnet "${cargo_test[@]}" "${devnet[@]}"
  part command "${cargo_test[@]}" "${command[@]}"
  part documents "${cargo_test[@]}" --exclude walrusds-chaos --exclude kubo-tests --doc
  part c-interface env SKIP='sanitizers valgrind panic' scripts/c-abi-test.sh
  part go-shim scripts/go-test.sh
  part new-user scripts/new-user.sh --small
  part kubo-datastore scripts/kubo-datastore.sh test
else
  part kubo-others scripts/kubo-test.sh --others
  part conformance env CONFORMANCE_SHORT=1 scripts/conformance.sh
  part c-interface-checked env SKIP='static dynamic' scripts/c-abi-test.sh
  part interleavings scripts/interleavings.sh
  part chaos env CHAOS_SMOKE=1 scripts/chaos.sh
  part lifetime-sim env SIM_SHORT=1 SIM_SEED=1 scripts/lifetime-sim.sh
  part outages-long "${cargo_test[@]}" --test outages -- --ignored --skip frozen_node
  part go-shim-race scripts/go-test.sh -race
  part citus scripts/citus.sh --smoke
  part alerts scripts/alerts-test.sh
  part foreign scripts/foreign-test.sh
  part demo scripts/demo.sh
  part new-user-full scripts/new-user.sh
  part kubo-datastore-repos scripts/kubo-datastore.sh repos
  part fuzz env FUZZ_SECONDS=2 scripts/fuzz.sh
  part bench env BENCH_SMOKE=1 scripts/bench.sh
  part index-scale env ROWS='10000 20000' PARTITIONS='0 4' SECONDS_EACH=1 KEEP_FREE_GB=1 scripts/index-scale.sh
fi

builds lints "${CARGO_TARGET_DIR:-target}/lints" build/public-api
builds interleavings build/interleavings
builds chaos build/failpoints
builds lifetime-sim build/lifetime-sim
builds foreign build/foreign
builds fuzz build/fuzz/target

printf '== what is needed\n'
scripts/deps.sh
printf '\n== building\n'
"$CARGO" build --release --locked --workspace
"${cargo_test[@]}" --no-run
printf '\n== %d parts, %d at once; logs: build/logs\n' ${#part_names[@]} "${PARTS_AT_ONCE:-$(nproc)}"
run_parts
