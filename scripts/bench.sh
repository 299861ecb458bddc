#!/usr/bin/env bash
# Usage: scripts/bench.sh        (make bench)
#
# Measures walrusds beside Kubo's own datastores: the same ipfs program does the same work on each,
# in turns, in one run. Builds what is needed, starts a PostgreSQL of its own and runs the package
# tests/bench. Prints Markdown tables; writes JSON and a plot to build/bench/. docs/benchmarks.md
# says what is measured.
#
# Environment:
#   BENCH_ONLY=add,gc      only workloads whose names begin so
#   BENCH_PEERS=flatfs,... only these datastores
#   BENCH_ROUNDS=3         runs of each
#   BENCH_MIB=1024         size of the large file
#   BENCH_FILES=10000      number of small files
#   BENCH_REQUESTS=4000    scales the number of requests to a daemon
#   BENCH_SMOKE=1          all of it, tiny: shows that it works, and measures nothing
#   UPDATE=1               put the results into docs/ (complete runs only)
#   BENCH_TMP=/var/tmp     where the data lies: on a disk, with 10 GiB free
#   IPFS_VERSION=v0.43.0
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/postgres.sh
source "$ROOT/scripts/postgres.sh"

(cd "$ROOT" && "${CARGO:-cargo}" build --release --locked --quiet -p walrusds -p walrus-devnet -p walrusds-bench)
BENCH_IPFS=$("$ROOT/scripts/kubo-build.sh" "${IPFS_VERSION:-v0.43.0}")
export BENCH_IPFS

BENCH_DIR=$(mktemp -d "${BENCH_TMP:-/var/tmp}/walrusds-bench.XXXXXX")
export BENCH_DIR
trap 'stop_postgres; rm -rf "$BENCH_DIR"' EXIT
trap 'exit 130' INT TERM
chmod 755 "$BENCH_DIR" # the server is another user's
if [[ $(stat -f -c %T "$BENCH_DIR") == tmpfs ]]; then
  die "$BENCH_DIR is in memory: set BENCH_TMP to a directory on a disk"
fi
start_postgres "$BENCH_DIR/postgres"
BENCH_POSTGRES_URL=$PG_URL "$LIB_DIR/walrusds-bench"
