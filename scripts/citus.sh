#!/usr/bin/env bash
# Usage: scripts/citus.sh [--smoke | --measure]        (make citus)
#
# The index on Citus, on a cluster of one coordinator and two workers that this script starts on
# this machine, where PostgreSQL has the extension; else it says "skipped: …" and ends well. The
# parts (PART=NAME[,NAME...] for some of them alone):
#
#   suite        the suite of the index, with the ledger and undo
#   faults       workers restarted, killed and frozen, and clocks apart, on clusters of their own
#   nodes        renewal, many nodes on one table, undo, on the engine alone
#   move         the documented move from one PostgreSQL, beside a node that works
#   conformance  the contract of a go-datastore, in short
#   kubo         a tour with a real node (garbage collection during adds among its steps), and two
#                nodes on one table
#
# --smoke: the suite alone, on one server that is coordinator and worker (a part of make test-full).
# --measure: no tests; commands of Kubo on the cluster and on one PostgreSQL in turns, each synced to
# disk as by default: the medians of ROUNDS=5 rounds, and the ratio of each round from the least to
# the greatest (docs/benchmarks.md).
#
# Environment: WALRUSDS_TEST_CITUS=URL (the coordinator of a cluster that runs already: its database
# gets an event trigger and schemas with the tests' tables; its role is a superuser), LIB_DIR.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/parts.sh
source "$ROOT/scripts/parts.sh"
# shellcheck source=scripts/postgres.sh
source "$ROOT/scripts/postgres.sh"
cd "$ROOT"
CARGO=${CARGO:-cargo}
cargo_test=("$CARGO" test --locked --workspace)

# suite: the tests of the index's suite that concern a new table.
suite() {
  # Left out: tests whose roles or tables are those of one database.
  "${cargo_test[@]}" --test index_suite -- postgres_new:: ledgers::postgres:: undo:: \
    --skip an_index_that_can_only_be_read --skip the_companion_is_made_once
}

# on NAME URL ROUND: a new node with its index there does each kind of work; appends to $work/times.
on() {
  local name=$1 url=$2 round=$3 schema=measured_$1_$3 repo=$work/$1.$3
  psql -qX "$url" -c "CREATE SCHEMA $schema" >/dev/null
  export IPFS_PATH=$repo
  WALRUSDS_PUBLISHER_URL=$URL WALRUSDS_AGGREGATOR_URL=$URL WALRUSDS_DRAIN_PARTIAL_PACKS=true \
    WALRUSDS_POSTGRES_URL=$url WALRUSDS_TABLE=$schema.walrus_index \
    "$IPFS" init --profile=test,walrusds >/dev/null
  timed() {
    local began=$EPOCHREALTIME
    "${@:2}" >"$work/out" 2>&1 || die "$1 on $name: $(tail -3 "$work/out")"
    printf '%s\t%s\t%s\n' "$1" "$name" "$(awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }')" >>"$work/times"
  }
  timed 'add of 10,000 files, with journal' "$IPFS" add -rQ --pin=false "$work/files"
  timed 'the same again' "$IPFS" add -rQ --pin=false "$work/files"
  timed 'refs local' "$IPFS" refs local
  timed 'repo verify' "$IPFS" repo verify
  timed 'repo gc' "$IPFS" repo gc -q
  rm -rf "$repo"
}

measure() {
  local round name
  pids=()
  "$CARGO" build --release --locked --quiet -p walrusds -p walrus-devnet
  IPFS=$("$ROOT/scripts/kubo-build.sh" v0.43.0)
  work=$(mktemp -d "${BENCH_TMP:-/var/tmp}/walrusds-citus.XXXXXX")
  trap 'end_pids; stop_postgres; rm -rf "$work"' EXIT
  trap 'exit 130' INT TERM
  chmod 755 "$work"
  mkdir "$work/files"
  head -c 40960000 /dev/urandom | split -b 4096 -a 4 - "$work/files/f"
  devnet --cheap-ids
  start_postgres "$work/postgres"
  for round in $(seq "${ROUNDS:-5}"); do
    # Each is the first in every other round.
    if ((round % 2)); then on postgres "$PG_URL" "$round"; fi
    on citus "$WALRUSDS_TEST_CITUS" "$round"
    if ((round % 2 == 0)); then on postgres "$PG_URL" "$round"; fi
  done
  printf '| work | one PostgreSQL | Citus | ratio of the medians | ratios of the rounds |\n|---|---|---|---|---|\n'
  cut -f1 "$work/times" | awk '!seen[$0]++' | while read -r name; do
    of() { awk -F'\t' -v n="$name" -v on="$1" '$1 == n && $2 == on { print $3 }' "$work/times"; }
    median() { of "$1" | sort -g | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'; }
    ratios=$(paste <(of citus) <(of postgres) | awk '{ print $1 / $2 }' | sort -g)
    awk -v n="$name" -v p="$(median postgres)" -v c="$(median citus)" -v least="$(head -1 <<<"$ratios")" -v most="$(tail -1 <<<"$ratios")" \
      'BEGIN { printf "| %s | %.2f s | %.2f s | %.2f | %.2f to %.2f |\n", n, p, c, c / p, least, most }'
  done
}

# cluster FLAGS...: this script on a cluster. Built with the features of the whole workspace, so that
# the tests compile nothing a second time.
cluster() {
  "$CARGO" build --locked --quiet --workspace --bin citus-cluster
  exec "${CARGO_TARGET_DIR:-target}/debug/citus-cluster" "$@"
}

case ${1:-} in
  --measure) cluster --durable 2 scripts/citus.sh --measured ;;
  --measured) measure ;;
  --suite) suite ;;
  --smoke) cluster 0 scripts/citus.sh --suite ;;
  '') cluster 2 scripts/citus.sh --parts ;;
  --parts)
    export PARTS_TARGET=citus PARTS_AT_ONCE=1
    part suite scripts/citus.sh --suite
    part faults "${cargo_test[@]}" --test index_suite -- --ignored --test-threads=1 citus::
    # Staging tables of the Go plugin are not supported on Citus.
    part nodes "${cargo_test[@]}" --test many_nodes --test renewal --test undo -- --skip what_a_go_node_left
    part move "${cargo_test[@]}" --test copy_index -- --ignored
    part conformance env CONFORMANCE_SHORT=1 scripts/conformance.sh
    part kubo scripts/kubo-test.sh --built-in tour nodes_share_an_index running_node_sees
    "$CARGO" build --release --locked -p walrusds -p walrus-devnet
    run_parts
    ;;
  *) die "usage: scripts/citus.sh [--smoke | --measure]" ;;
esac
