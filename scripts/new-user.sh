#!/usr/bin/env bash
# Usage: scripts/new-user.sh [--small]
#
# The path of a new user, from a build to a converted repo: docs/move-a-repo.md, step by step, on
# this machine alone. An ordinary Kubo node with flatfs gets files, pins, an MFS tree and an IPNS
# key. `walrusds convert-repo` moves its blocks to a local Walrus while the daemon runs, is killed
# twice with SIGKILL, and goes on each time. Then every file, pin, name and MFS entry is compared,
# the old flatfs is removed, and the repo moves back, is killed once more, and is compared again.
#
# 10,000 files and 2 GiB; with --small 300 files and 48 MiB.
#
# Environment: NEW_USER_FILES, NEW_USER_MIB (sizes of its own), IPFS_VERSION, KEEP=1 (leave the
# directory behind).
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

files=10000 mib=2048 quick=''
if [[ ${1:-} == --small ]]; then files=300 mib=48 quick=1; fi
files=${NEW_USER_FILES:-$files} mib=${NEW_USER_MIB:-$mib}
version=${IPFS_VERSION:-v0.43.0}
step() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

with=$("$ROOT/scripts/kubo-build.sh" "$version")
# The node before is an ordinary one. (The small run saves its build: the same program, on flatfs.)
if [[ -n $quick ]]; then plain=$with; else plain=$("$ROOT/scripts/kubo-build.sh" --plain "$version"); fi
walrusds=$LIB_DIR/walrusds
[[ -x $walrusds ]] || die "$walrusds is missing: run 'make cli' first"

work=$(mktemp -d)
export IPFS_PATH=$work/repo IPFS_TELEMETRY=off
daemon='' pids=()
clean_up() {
  [[ -z $daemon ]] || { kill "$daemon" 2>/dev/null || true; wait "$daemon" 2>/dev/null || true; }
  end_pids
  if [[ -n ${KEEP:-} ]]; then say "left behind: $work"; else rm -rf "$work"; fi
}
trap clean_up EXIT
trap 'exit 130' INT TERM

start_node() { # IPFS
  : >"$work/daemon.log"
  "$1" daemon >"$work/daemon.log" 2>&1 &
  daemon=$!
  for _ in $(seq 1200); do
    ! grep -q 'Daemon is ready' "$work/daemon.log" || return 0
    kill -0 "$daemon" 2>/dev/null || die "the node does not start: $(tail -5 "$work/daemon.log")"
    sleep 0.1
  done
  die "the node is not ready: $(tail -5 "$work/daemon.log")"
}
stop_node() {
  local status=0
  kill -TERM "$daemon"
  wait "$daemon" || status=$?
  daemon=''
  [[ $status -eq 0 ]] || die "the node ended with status $status: $(tail -20 "$work/daemon.log")"
}

# kill_when WHAT CONDITION COMMAND...: runs the command, and kills it with SIGKILL as soon as the
# condition holds. Fails if the command ends before.
kill_when() {
  local what=$1 condition=$2 pid
  shift 2
  "$@" >"$work/killed.log" 2>&1 &
  pid=$!
  until "$condition"; do
    kill -0 "$pid" 2>/dev/null || return 1
    sleep 0.01
  done
  kill -KILL "$pid" 2>/dev/null || return 1
  ! wait "$pid" 2>/dev/null || return 1
  echo "killed $what"
}
ended_early() { die "it ended before it could be killed: $(tail -5 "$work/killed.log")"; }

# hang OPERATIONS NUMBER: requests of these operations but for the first NUMBER get no answer, so
# that a command is still at work when it is killed. calm: all get answers again.
hang() {
  curl -fsS -X PUT -H 'content-type: application/json' "$walrus/admin/faults" \
    -d "{\"rules\":[{\"match\":{\"op\":$1},\"skip\":$2,\"action\":{\"type\":\"hang\"}}]}" >/dev/null
}
hangs() { curl -fsS "$walrus/admin/faults" | grep -q '"fired": *[1-9]'; }
calm() { curl -fsS -X DELETE "$walrus/admin/faults" >/dev/null; }
switches() { [[ -e $IPFS_PATH/config.before-walrusds ]]; }

# A number of the local Walrus.
stats() { curl -fsS "$walrus/admin/stats" | tr ',{}' '\n' | sed -n "s/^ *\"$1\": *//p" | head -1; }
blocks_of() { find "$IPFS_PATH/blocks" -name '*.data' | wc -l; }

# facts IPFS: everything of the repo that must stay as it was, as a text.
facts() {
  "$1" pin ls --type=recursive --names | sort
  "$1" files stat --hash /
  "$1" files ls -l /docs
  "$1" key list -l
  "$1" --offline name resolve "/ipns/$name"
  "$1" config show | grep -v walrusds | grep -E 'PeerID|StorageMax|GCPeriod'
}

# compare IPFS: every file is the same, byte by byte.
compare() {
  rm -rf "$work/out"
  mkdir "$work/out"
  "$1" get -o "$work/out/tree" "$tree" >/dev/null 2>&1 || die "the tree cannot be read"
  diff -r "$work/in" "$work/out/tree" || die "the tree came back different"
  "$1" cat "$large" | cmp - "$work/large" || die "the large file came back different"
  rm -rf "$work/out"
  facts "$1" >"$work/facts.now"
  diff "$work/facts" "$work/facts.now" || die "pins, MFS, keys or names have changed"
  echo "$files files and $mib MiB are the same, and so are pins, MFS, keys and names"
}

step "a local Walrus"
devnet --cheap-ids --max-body 128MiB
walrus=$URL
echo "$walrus"

step "an ordinary Kubo repo: $files files and $mib MiB"
"$plain" init --profile=test >/dev/null
mkdir "$work/in"
# Files of 0.5 to 3.5 kB in directories of 100, and the rest in one large file.
awk -v n="$files" -v dir="$work/in" 'BEGIN {
  for (i = 0; i < n; i++) {
    if (i % 100 == 0) system("mkdir -p " dir "/" int(i / 100))
    file = dir "/" int(i / 100) "/" i ".txt"
    for (j = 0; j < 10 + i % 60; j++) printf "file %d, line %d, %d\n", i, j, (i * 7919 + j * 104729) % 1000003 > file
    for (j = 0; j < 10; j++) print "filled up so that a file has some bytes more, number " i > file
    close(file)
  }
}'
small=$(du -sm --apparent-size "$work/in" | cut -f1)
head -c "$(((mib - small) << 20))" /dev/urandom >"$work/large"
start_node "$plain"
tree=$("$plain" add -r -Q --cid-version=1 --pin-name=tree "$work/in")
large=$("$plain" add -Q --cid-version=1 --raw-leaves "$work/large")
"$plain" files mkdir /docs
"$plain" files cp "/ipfs/$tree/0" /docs/first
name=$("$plain" key gen --type=ed25519 site)
"$plain" name publish --key=site --allow-offline "/ipfs/$tree" >/dev/null
facts "$plain" >"$work/facts"
before=$(blocks_of)
echo "$before blocks"

step "what it would cost, while the node runs"
export WALRUSDS_PUBLISHER_URL=$walrus WALRUSDS_AGGREGATOR_URL=$walrus WALRUSDS_NETWORK=testnet
if [[ -n $quick ]]; then export WALRUSDS_PACK_TARGET_SIZE_BYTES=$((4 << 20)); fi
"$walrusds" convert-repo

step "copying while the node runs, killed on the way"
# The first requests are the tests of the publisher, which store nothing.
hang '["put"]' "$(($(stats puts) + 2))"
kill_when "after two blobs" hangs "$walrusds" convert-repo --yes --quiet || ended_early
calm
status=0
"$walrusds" convert-repo --yes 2>"$work/busy.log" || status=$?
[[ $status -eq 4 ]] || die "with the node running it must end with 4, and it was $status: $(cat "$work/busy.log")"
tail -1 "$work/busy.log"

step "the node goes on, and is stopped"
"$plain" cat "$large" | cmp - "$work/large"
late=$(printf 'put after the first copy' | "$plain" add -Q --cid-version=1)
facts "$plain" >"$work/facts"
stop_node

step "what came since, and the switch, killed on the way"
hang '["put"]' 0
kill_when "while it copied the rest" hangs "$walrusds" convert-repo --yes --quiet || ended_early
calm
[[ ! -e $IPFS_PATH/config.before-walrusds ]] || die "it switched before all was copied"
# It may be anywhere in the switch when it dies, or through.
kill_when "in the switch" switches "$walrusds" convert-repo --yes --quiet || echo "the switch was quicker than the kill"
"$walrusds" convert-repo --yes
[[ $(blocks_of) -ge $before ]] || die "blocks of the flatfs are gone before --remove-old"
# Nothing was paid for twice, but for packs that were stored and not indexed yet when the command
# was killed: two at most, as the others got no answer.
pack=${WALRUSDS_PACK_TARGET_SIZE_BYTES:-$((64 << 20))}
most=$((((mib + files / 250 + 8) << 20) + 2 * pack))
[[ $(stats stored_bytes) -lt $most ]] || die "$(stats stored_bytes) bytes were stored, and $most is the most"
unset WALRUSDS_PUBLISHER_URL WALRUSDS_AGGREGATOR_URL WALRUSDS_NETWORK WALRUSDS_PACK_TARGET_SIZE_BYTES

step "the node on Walrus: every file is compared"
mv "$IPFS_PATH/blocks" "$work/blocks" # nothing may come from there
start_node "$with"
compare "$with"
[[ $("$with" cat "$late") == 'put after the first copy' ]] || die "what was put late is gone"
"$with" repo verify | tr '\r' '\n' | tail -1
fresh=$(printf 'put on Walrus' | "$with" add -Q --cid-version=1)
facts "$with" >"$work/facts"
stop_node
mv "$work/blocks" "$IPFS_PATH/blocks"

step "the old blocks are removed"
"$walrusds" convert-repo --remove-old
[[ -d $IPFS_PATH/blocks ]] || die "a dry run removed the flatfs"
"$walrusds" convert-repo --remove-old --yes
[[ ! -e $IPFS_PATH/blocks ]] || die "the flatfs is still there"

step "back to flatfs, killed on the way"
"$walrusds" convert-repo --to flatfs
hang '["get", "range", "byte_range"]' 3
kill_when "after three reads" hangs "$walrusds" convert-repo --to flatfs --yes --quiet || ended_early
calm
"$walrusds" convert-repo --to flatfs --yes
end_pids
pids=()

step "the ordinary node again, without Walrus"
start_node "$plain"
compare "$plain"
[[ $("$plain" cat "$fresh") == 'put on Walrus' ]] || die "what was put on Walrus is gone"
"$plain" repo verify | tr '\r' '\n' | tail -1
stop_node
printf '\npassed with %d files, %d MiB in %d s\n' "$files" "$mib" "$SECONDS"
