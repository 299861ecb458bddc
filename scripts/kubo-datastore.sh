#!/usr/bin/env bash
# Usage: scripts/kubo-datastore.sh build | test [flags of go test ...] | repos [vX.Y.Z]
#
# build: walrusds-kubo-datastore, which reads Kubo's other datastores for `walrusds import`, beside
# the command in LIB_DIR. Prints its path. test: its tests, on datastores that Kubo's libraries make.
#
# repos: Kubo makes a repo with each of its datastores (flatfs, badgerds, pebbleds) and puts files, a
# pin and an MFS entry into it. `walrusds import` brings its blocks into a node on a local Walrus,
# and that node gives every file, which is compared. A second import finds nothing left.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
program=$LIB_DIR/walrusds-kubo-datastore

build() {
  # Without C the program runs on any Linux of this processor, and needs no compiler.
  mkdir -p "$LIB_DIR"
  (cd "$ROOT/cli/kubo-datastore" &&
    CGO_ENABLED=0 "$GO" build -trimpath -buildvcs=false -ldflags='-s -w' -o "$program" .)
  printf '%s\n' "$program"
}

# number PART < JSON of an import: the blocks of a part of its report.
number() { sed -n 's/.*"'"$1"'":{"blocks":\([0-9]*\).*/\1/p'; }

repos() {
  local ipfs walrusds=$LIB_DIR/walrusds profile root other blocks first again
  [[ -x $walrusds ]] || die "$walrusds is missing: run 'make build cli' first"
  build >/dev/null
  ipfs=$("$ROOT/scripts/kubo-build.sh" "${1:-v0.43.0}")
  work=$(mktemp -d) pids=()
  trap 'end_pids; rm -rf "$work"' EXIT
  trap 'exit 130' INT TERM
  export IPFS_TELEMETRY=off
  devnet --cheap-ids --max-body 128MiB
  export WALRUSDS_PUBLISHER_URL=$URL WALRUSDS_AGGREGATOR_URL=$URL WALRUSDS_NETWORK=testnet

  # Small files, one of many blocks, an empty one, a directory without files.
  mkdir -p "$work/in/nothing"
  cp -r "$ROOT/docs" "$ROOT/src/admin" "$work/in/"
  head -c $((60 << 20)) /dev/urandom >"$work/in/large"
  : >"$work/in/empty"

  for profile in flatfs badgerds pebbleds; do
    export IPFS_PATH=$work/$profile
    "$ipfs" init --profile="$profile,test" >"$work/log" 2>&1 || die "ipfs init: $(<"$work/log")"
    root=$("$ipfs" --offline add -r -Q --cid-version=1 --pin-name=in "$work/in" 2>>"$work/log")
    "$ipfs" --offline files cp "/ipfs/$root/docs" /docs 2>>"$work/log"
    # What was removed again does not come.
    other=$("$ipfs" --offline add -Q --chunker=size-65536 "$work/in/large" 2>>"$work/log")
    "$ipfs" --offline pin rm "$other" >>"$work/log" 2>&1
    "$ipfs" --offline repo gc -q >>"$work/log" 2>&1
    blocks=$("$ipfs" --offline refs local 2>>"$work/log" | sort -u | wc -l)

    # Each goes to an index of its own. The first start of the node makes it.
    export IPFS_PATH=$work/$profile.walrus
    "$ipfs" init --profile=walrusds,test --empty-repo >>"$work/log" 2>&1
    "$ipfs" --offline repo stat >>"$work/log" 2>&1 || die "a node on walrusds: $(<"$work/log")"
    first=$("$walrusds" import --kubo-repo "$work/$profile" --yes --quiet --json) ||
      die "$profile: the import failed: $first"
    [[ $(number found <<<"$first") == "$blocks" && $(number damaged <<<"$first") == 0 ]] ||
      die "$profile has $blocks blocks, and the import tells: $first"
    again=$("$walrusds" import --kubo-repo "$work/$profile" --yes --quiet --json)
    [[ $(number stored <<<"$again") == 0 && $(number known <<<"$again") == "$blocks" ]] ||
      die "$profile: a second import should know all $blocks blocks, and tells: $again"
    mv "$work/$profile" "$work/gone" # from Walrus alone
    "$ipfs" --offline get -o "$work/out" "$root" >>"$work/log" 2>&1 || die "ipfs get: $(<"$work/log")"
    diff -r "$work/in" "$work/out" || die "$profile: the files came back different"
    ! "$ipfs" --offline refs "$other" >/dev/null 2>&1 || die "$profile: a block came that was removed"
    echo "$profile: $blocks blocks were imported, and every file is the same"
    rm -rf "$work/gone" "$work/out" "$IPFS_PATH"
  done
}

case ${1:-} in
  build) build ;;
  test)
    shift
    export CGO_ENABLED=0
    [[ " $* " != *' -race '* ]] || export CGO_ENABLED=1 # the race detector is C
    cd "$ROOT/cli/kubo-datastore"
    exec "$GO" test -trimpath -count=1 "$@" .
    ;;
  repos) shift; repos "$@" ;;
  *) die "${1:-nothing} found, build, test or repos expected" ;;
esac
