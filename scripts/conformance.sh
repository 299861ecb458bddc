#!/usr/bin/env bash
# Usage: scripts/conformance.sh [go test flags...]        (make conformance)
#
# The contract of a go-datastore, through the Go shim, on a local Walrus, on SQLite and on
# PostgreSQL, with and without a write journal: go-datastore's own suite and the tests of
# tests/conformance, with the lowest and the newest go-datastore that Kubo uses. Starts the local
# Walrus and a PostgreSQL of its own.
#
# Environment: CONFORMANCE_SHORT=1 (smaller tables, and our own tests with the newest go-datastore
# alone), CONFORMANCE_DATASTORE (v0.6 or v0.9: only that one), WALRUSDS_TEST_CITUS=URL (a cluster
# instead of that PostgreSQL), LIB_DIR.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/postgres.sh
source "$ROOT/scripts/postgres.sh"

lib_ready libwalrusds.a >/dev/null
devnet=$LIB_DIR/walrus-devnet
[[ -x $devnet ]] || die "$devnet is missing: run 'make build' first"

# The tests write to memory if it has room: go-datastore's suite makes half a million writes one
# after another, and on a disk it would do little but wait for each to be synced. (Compiled programs
# stay where they may be executed.)
free=$(df --output=avail -BG /dev/shm 2>/dev/null | tail -1 | tr -dc 0-9)
if [[ -z ${TMPDIR:-} && ${free:-0} -ge 4 ]]; then export GOTMPDIR=${GOTMPDIR:-/tmp} TMPDIR=/dev/shm; fi
work=$(mktemp -d)
chmod 755 "$work"
net=''
clean_up() {
  if [[ -n $net ]]; then
    kill "$net" 2>/dev/null || true
    wait "$net" 2>/dev/null || true
  fi
  stop_postgres
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

"$devnet" --listen 127.0.0.1:0 --memory --cheap-ids --quiet --port-file "$work/port" >"$work/devnet" 2>&1 &
net=$!
for _ in $(seq 200); do
  [[ ! -s $work/port ]] || break
  kill -0 "$net" 2>/dev/null || break
  sleep 0.05
done
[[ -s $work/port ]] || die "the local Walrus does not start: $(cat "$work/devnet")"
if [[ -n ${WALRUSDS_TEST_CITUS:-} ]]; then PG_URL=$WALRUSDS_TEST_CITUS; else start_postgres "$work/postgres"; fi
WALRUSDS_TEST_WALRUS_URL=http://127.0.0.1:$(<"$work/port")
export WALRUSDS_TEST_WALRUS_URL WALRUSDS_TEST_POSTGRES_URL=$PG_URL

# All parts at once, although there are fewer processors: the tests wait more than they work.
flags=(-count=1 -timeout 60m -parallel 4)
if [[ -n ${CONFORMANCE_SHORT:-} ]]; then flags+=(-short); else flags+=(-v); fi

# run DATASTORE FLAGS...: the tests with that version of go-datastore.
run() {
  local mod=() started=$SECONDS version want have
  if [[ $1 != v0.6 ]]; then
    mod=(-modfile="datastore_$1.mod")
    # For the choice of a toolchain Go looks into go.mod alone.
    want=$(awk '$1 == "go" { print $2 }' "datastore_$1.mod")
    have=$("$GO" env GOVERSION | sed 's/^go//; s/[^0-9.].*//')
    version_ge "$have" "$want" || local -x GOTOOLCHAIN=go$want
  fi
  version=$("$GO" list "${mod[@]}" -m -f '{{.Version}}' github.com/ipfs/go-datastore)
  "$GO" test "${mod[@]}" "${flags[@]}" "${@:2}" . || {
    say "FAILED with go-datastore $version"
    return 1
  }
  say "passed with go-datastore $version in $((SECONDS - started)) s"
}

cd "$ROOT/tests/conformance"
read -ra versions <<<"${CONFORMANCE_DATASTORE:-v0.6 v0.9}"
if [[ $# -gt 0 ]]; then
  for v in "${versions[@]}"; do run "$v" "$@"; done
  exit
fi

say "go-datastore's own suite"
suites=()
for v in "${versions[@]}"; do # at once: they wait more than they work
  run "$v" -run '^TestSuite$' >"$work/suite.$v" 2>&1 &
  suites+=($!)
done
failed=0
for i in "${!suites[@]}"; do
  out=$work/suite.${versions[i]}
  # Thousands of cases: a suite that passed prints its summary and main parts only.
  if wait "${suites[i]}"; then grep -E '^(ok|passed)|^    --- ' "$out" || true; else cat "$out" && failed=1; fi
done
[[ $failed == 0 ]] || exit 1
say "tests of our own"
if [[ -n ${CONFORMANCE_SHORT:-} ]]; then
  run "${versions[-1]}" -skip '^TestSuite$'
else
  for v in "${versions[@]}"; do run "$v" -skip '^TestSuite$'; done
  say "everything but the million rows with the race detector"
  run "${versions[-1]}" -race -v=false -skip 'MillionRows'
fi
