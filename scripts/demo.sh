#!/usr/bin/env bash
# Usage: scripts/demo.sh        (make demo, make demo POSTGRES=1)
#
# Shows walrusds at work, on this machine alone: builds it, starts a local Walrus and a real Kubo
# node with walrusds built in, adds this source tree and a large file, restarts the node without
# its read cache, reads everything back and compares, unpins, collects garbage, and says what was
# stored and what it would cost.
#
# Environment: POSTGRES=1 (index in a Postgres that is started here, instead of an embedded one),
# DEMO_MIB (size of the large file, default 256), IPFS_VERSION, KEEP=1 (leave the directory behind).
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/postgres.sh
source "$ROOT/scripts/postgres.sh"

mib=${DEMO_MIB:-256}
version=${IPFS_VERSION:-v0.43.0}
step() { printf '\n== %s\n' "$*"; }
now() { date +%s%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f s", (b - a) / 1e9 }'; }

step "what is needed"
"$ROOT/scripts/deps.sh"

step "building (minutes the first time)"
(cd "$ROOT" && "${CARGO:-cargo}" build --release --locked --workspace --exclude walrusds-chaos)
IPFS=$("$ROOT/scripts/kubo-build.sh" "$version")

work=$(mktemp -d)
chmod 755 "$work" # the server of Postgres is another user
export IPFS_PATH=$work/repo
daemon='' pids=()
clean_up() {
  [[ -z $daemon ]] || { kill "$daemon" 2>/dev/null || true; wait "$daemon" 2>/dev/null || true; }
  end_pids
  stop_postgres
  if [[ -n ${KEEP:-} ]]; then say "left behind: $work"; else rm -rf "$work"; fi
}
trap clean_up EXIT
trap 'exit 130' INT TERM

step "a local Walrus: publisher and aggregator in one program"
devnet --data "$work/walrus" --max-body 128MiB
walrus=$URL
echo "$walrus, 1000 shards, true blob IDs"

step "a Kubo node with walrusds built in"
export WALRUSDS_PUBLISHER_URL=$walrus WALRUSDS_AGGREGATOR_URL=$walrus
if [[ -n ${POSTGRES:-} ]]; then
  start_postgres "$work/postgres"
  export WALRUSDS_POSTGRES_URL=$PG_URL
  index="PostgreSQL on ${PG_URL#*@}"
else
  export WALRUSDS_INDEX_PATH=walrusds-index.sqlite
  index="SQLite, $IPFS_PATH/walrusds-index.sqlite"
fi
# Stopping the node drains its journal to Walrus, so that the blobs can be counted.
export WALRUSDS_DRAIN_PARTIAL_PACKS=true
"$IPFS" version
"$IPFS" init --profile=test,walrusds >/dev/null
for name in PUBLISHER_URL AGGREGATOR_URL POSTGRES_URL INDEX_PATH DRAIN_PARTIAL_PACKS; do unset "WALRUSDS_$name"; done
echo "index: $index"

start_node() {
  : >"$work/daemon.log"
  "$IPFS" daemon >"$work/daemon.log" 2>&1 &
  daemon=$!
  local i
  for i in $(seq 300); do
    ! grep -q 'Daemon is ready' "$work/daemon.log" || return 0
    kill -0 "$daemon" 2>/dev/null || die "the node does not start: $(tail -5 "$work/daemon.log")"
    sleep 0.1
  done
  die "the node is not ready after 30 s: $(tail -5 "$work/daemon.log")"
}
stop_node() {
  local i status=0
  # A node that ends quickly may be gone before it has answered. The demo checks that it ends, and
  # how.
  "$IPFS" shutdown || echo "(no answer to the shutdown)"
  for i in $(seq 600); do
    kill -0 "$daemon" 2>/dev/null || break
    sleep 0.1
  done
  ! kill -0 "$daemon" 2>/dev/null || die "the node does not stop: $(tail -20 "$work/daemon.log")"
  wait "$daemon" || status=$?
  [[ $status -eq 0 ]] || die "the node ended with status $status: $(tail -40 "$work/daemon.log")"
  daemon=''
}
# admin FIELD: a number from the local Walrus' statistics.
admin() { curl -fsS "$walrus/admin/stats" | tr ',{}' '\n' | sed -n "s/^ *\"$1\": *//p" | head -1; }

start_node

step "adding this source tree and a file of $mib MiB"
mkdir "$work/in" "$work/out"
(cd "$ROOT" && git ls-files -z 2>/dev/null | tar --null -T - -cf - 2>/dev/null || tar --exclude=./target --exclude=./build --exclude=./.git -cf - .) | tar -xf - -C "$work/in"
files=$(find "$work/in" -type f | wc -l)
head -c "$((mib << 20))" /dev/urandom >"$work/large"
t=$(now)
tree=$("$IPFS" add -r -Q --hidden --cid-version=1 "$work/in")
tree_time=$(since "$t")
echo "tree:  $tree  ($files files, $tree_time)"
t=$(now)
large=$("$IPFS" add -Q --cid-version=1 "$work/large")
large_time=$(since "$t")
echo "large: $large  ($mib MiB, $large_time)"

step "restarting the node: first, the rest of the write journal goes to Walrus"
t=$(now)
stop_node
stop_time=$(since "$t")
# Else what was just added would be read from this disk.
rm -rf "$IPFS_PATH/walrusds-cache"
start_node
echo "stopped in $stop_time, read cache removed, up again"

step "reading everything back, from Walrus"
sent=$(admin bytes_out)
t=$(now)
"$IPFS" cat "$large" | cmp - "$work/large" || die "the large file came back different"
read_time=$(since "$t")
"$IPFS" get -o "$work/out/tree" "$tree" >/dev/null 2>&1 || die "the tree could not be read"
diff -r "$work/in" "$work/out/tree" || die "the tree came back different"
(($(admin bytes_out) - sent >= mib << 20)) || die "the aggregator has not given that much"
echo "identical, byte for byte ($mib MiB in $read_time)"

# `ipfs repo stat` counts what the index holds.
stat_of() { "$IPFS" repo stat | awk -v n="$1:" '$1 == n { print $2 }'; }
blocks=$(stat_of NumObjects) bytes=$(stat_of RepoSize)
blobs=$(admin stored_blobs) units=$(admin billed_units) stored=$(admin stored_bytes)

step "unpinning the large file and collecting garbage"
"$IPFS" pin rm "$large" >/dev/null
t=$(now)
removed=$("$IPFS" repo gc -q | wc -l)
left=$(stat_of NumObjects)
echo "$removed blocks removed in $(since "$t"), $left left"
! timeout 20 "$IPFS" --offline cat "$large" >/dev/null 2>&1 || die "the large file is still there"
"$IPFS" get -o "$work/out/again" "$tree" >/dev/null 2>&1 && diff -r "$work/in" "$work/out/again" || die "the tree was damaged"
echo "the tree is still whole"
stop_node

step "what was stored"
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b) printf "%.1f", a / b; else print "-" }'; }
row() { printf '  %-28s %s\n' "$1" "$2"; }
row "files" "$((files + 1))"
row "blocks" "$blocks"
row "bytes in repo" "$bytes"
row "blobs on Walrus" "$blobs"
row "blocks per blob" "$(ratio "$blocks" "$blobs")"
row "bytes in blobs" "$stored"
row "billed units (MiB encoded)" "$units"
row "one blob per block would be" "$((blocks * 63)) units"
row "add the tree / the large file" "$tree_time / $large_time (into the write journal)"
row "stop, with the last uploads" "$stop_time"
row "read the large file" "$read_time"
row "index" "$index"
if [[ -n ${POSTGRES:-} ]] && command -v psql >/dev/null; then
  row "rows, distinct blobs left" "$(psql -AtX "$PG_URL" -c 'SELECT count(*), count(DISTINCT blob_id) FROM walrus_index' | tr '|' ' ')"
fi
echo
echo "(The write journal gathers what Kubo hands over file by file. Without it (WALRUSDS_JOURNAL_PATH=off) each"
echo " small file is a blob of its own.)"
