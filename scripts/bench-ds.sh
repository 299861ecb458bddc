#!/usr/bin/env bash
# Usage: scripts/bench-ds.sh [flags of tests/bench/ds...]
#
# Measures walrusds as a datastore, through the Go shim and without Kubo: Has, GetSize, Get, Put,
# Commit, Delete and Query, at 1, 16 and 128 goroutines, on Postgres and on SQLite, with the
# journal, on a local Walrus in memory. Prints a Markdown table (-json: a JSON object per line).
# -only REGEXP measures a part.
#
# Environment: BENCH_SMOKE=1 (a moment of everything: shows that it works), LIB_DIR.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/postgres.sh
source "$ROOT/scripts/postgres.sh"

lib_ready libwalrusds.a >/dev/null
[[ -x $LIB_DIR/walrus-devnet ]] || die "$LIB_DIR/walrus-devnet is missing: run 'make build' first"
flags=()
if [[ -n ${BENCH_SMOKE:-} ]]; then flags=(-for 20ms -rows 2000 -deletes 200); fi

work=$(mktemp -d)
chmod 755 "$work"
pids=()
trap 'end_pids; stop_postgres; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

(cd "$ROOT/tests/bench/ds" && "$GO" build -o "$work/bench-ds" .)
devnet --cheap-ids --quiet --max-body 1GiB
start_postgres "$work/postgres"
"$work/bench-ds" -walrus "$URL" -postgres "$PG_URL" "${flags[@]}" "$@"
