#!/usr/bin/env bash
# Usage: scripts/bench.sh        (make bench)
#
# Measures walrusds against Kubo's own flatfs: the same ipfs program adds the same file, in turns, in
# one run. walrusds stores on a local Walrus in memory with cheap blob IDs and without latency, so
# that what is left is its own cost. Prints Markdown tables: medians, and every run.
#
# Environment: BENCH_MIB (size of the file, default 1024), BENCH_ROUNDS (default 3), BENCH_SMOKE=1
# (32 MiB, one round: shows that it works), IPFS_VERSION.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/postgres.sh
source "$ROOT/scripts/postgres.sh"

mib=${BENCH_MIB:-1024} rounds=${BENCH_ROUNDS:-3}
if [[ -n ${BENCH_SMOKE:-} ]]; then mib=32 rounds=1; fi
(cd "$ROOT" && "${CARGO:-cargo}" build --release --locked --workspace --lib --bins --examples --quiet)
IPFS=$("$ROOT/scripts/kubo-build.sh" "${IPFS_VERSION:-v0.43.0}")
devnet=$LIB_DIR/walrus-devnet

work=$(mktemp -d)
chmod 755 "$work"
net=''
stop_net() {
  [[ -n $net ]] || return 0
  kill "$net" 2>/dev/null || true
  wait "$net" 2>/dev/null || true
  net=''
}
trap 'stop_net; stop_postgres; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

start_net() {
  "$devnet" --listen 127.0.0.1:0 --memory --cheap-ids --max-body 1GiB >"$work/devnet" 2>&1 &
  net=$!
  walrus=''
  for _ in $(seq 100); do
    walrus=$(sed -n 's/^listening on //p' "$work/devnet")
    [[ -z $walrus ]] || return 0
    sleep 0.05
  done
  die "the local Walrus does not start: $(cat "$work/devnet")"
}
admin() { curl -fsS "$walrus/admin/stats" | tr ',{}' '\n' | sed -n "s/^ *\"$1\": *//p" | head -1; }

# measure COMMAND...: sets wall (seconds), cpu (seconds, user and system), rss (MiB, peak).
measure() {
  local pid hwm=0 seen
  local TIMEFORMAT='%R %U %S'
  { time {
    "$@" >"$work/out" 2>"$work/err" &
    pid=$!
    while seen=$(sed -n 's/^VmHWM:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$pid/status" 2>/dev/null) && [[ -n $seen ]]; do
      hwm=$seen
      sleep 0.02
    done
    wait "$pid" || { cat "$work/err" >&2; die "failed: $*"; }
    echo "$hwm" >"$work/hwm"
  }; } 2>"$work/time"
  read -r wall user sys < <(tail -1 "$work/time")
  cpu=$(awk -v u="$user" -v s="$sys" 'BEGIN { printf "%.2f", u + s }')
  rss=$(($(<"$work/hwm") / 1024))
}

# one_run NAME: adds the file to a new repo of that kind.
one_run() {
  export IPFS_PATH=$work/repo
  rm -rf "$IPFS_PATH"
  case $1 in
    flatfs) "$IPFS" init --profile=test >/dev/null ;;
    walrusds-sqlite)
      start_net
      WALRUSDS_PUBLISHER_URL=$walrus WALRUSDS_AGGREGATOR_URL=$walrus "$IPFS" init --profile=test,walrusds >/dev/null
      ;;
    walrusds-postgres)
      start_net
      psql -qAtX "$PG_URL" -c 'DROP TABLE IF EXISTS walrus_index, walrus_index_meta, walrus_index_usage, walrus_index_leases' 2>/dev/null
      WALRUSDS_PUBLISHER_URL=$walrus WALRUSDS_AGGREGATOR_URL=$walrus WALRUSDS_POSTGRES_URL=$PG_URL \
        "$IPFS" init --profile=test,walrusds >/dev/null
      ;;
  esac
  sync -f "$work"
  measure "$IPFS" add -Q --cid-version=1 "$work/file"
  local blobs=- units=- blocks
  if [[ -n $net ]]; then blobs=$(admin stored_blobs) units=$(admin billed_units); fi
  blocks=$("$IPFS" repo stat | awk '$1 == "NumObjects:" { print $2 }')
  stop_net
  rm -rf "$IPFS_PATH"
  echo "$1 $wall $cpu $rss $blocks $blobs $units" >>"$work/runs"
  say "  $1: $wall s, $cpu s CPU, $rss MiB peak, $blobs blobs"
}

say "adding $mib MiB, $rounds round(s) each, in turns"
head -c "$((mib << 20))" /dev/urandom >"$work/file"
start_postgres "$work/postgres"
for _ in $(seq "$rounds"); do
  for kind in flatfs walrusds-sqlite walrusds-postgres; do one_run "$kind"; done
done

median() { awk -v k="$1" -v c="$2" '$1 == k { print $c }' "$work/runs" | sort -n | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
base=$(median flatfs 2) base_cpu=$(median flatfs 3) base_rss=$(median flatfs 4)
printf '\n`ipfs add` of %s MiB, Kubo %s, %s cores, %s; medians of %s\n\n' "$mib" "$("$IPFS" version -n)" "$(nproc)" "$(date +%F)" "$rounds"
echo '| datastore | wall (s) | × flatfs | CPU of ipfs (s) | × flatfs | peak RSS (MiB) | over flatfs (MiB) | blocks | blobs | units |'
echo '|---|---|---|---|---|---|---|---|---|---|'
for kind in flatfs walrusds-sqlite walrusds-postgres; do
  awk -v k="$kind" -v w="$(median "$kind" 2)" -v c="$(median "$kind" 3)" -v r="$(median "$kind" 4)" \
    -v bw="$base" -v bc="$base_cpu" -v br="$base_rss" -v n="$(median "$kind" 5)" -v b="$(median "$kind" 6)" -v u="$(median "$kind" 7)" \
    'BEGIN { printf "| %s | %.2f | %.2f | %.2f | %.2f | %d | %+d | %s | %s | %s |\n", k, w, w / bw, c, c / bc, r, r - br, n, b, u }'
done
printf '\nevery run (wall, CPU, RSS, blocks, blobs, units):\n\n'
sed 's/^/    /' "$work/runs"

printf '\nOpening a datastore whose tables exist (medians of 30, milliseconds):\n\n'
"$LIB_DIR/examples/open_time" "$PG_URL" "$work/open.sqlite"
