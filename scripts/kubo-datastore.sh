#!/usr/bin/env bash
# Usage: scripts/kubo-datastore.sh build | test [flags of go test ...]
#
# build: walrusds-kubo-datastore, which reads Kubo's other datastores for `walrusds import`, beside
# the command in LIB_DIR. Prints its path. test: its tests, on datastores that Kubo's libraries make.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# Without C the program runs on any Linux of this processor, and needs no compiler.
export CGO_ENABLED=0
program=$LIB_DIR/walrusds-kubo-datastore
cd "$ROOT/cli/kubo-datastore"
case ${1:-} in
  build)
    mkdir -p "$LIB_DIR"
    "$GO" build -trimpath -buildvcs=false -ldflags='-s -w' -o "$program" .
    printf '%s\n' "$program"
    ;;
  test)
    shift
    [[ " $* " != *' -race '* ]] || export CGO_ENABLED=1 # the race detector is C
    exec "$GO" test -trimpath -count=1 "$@" .
    ;;
  *) die "${1:-nothing} found, build or test expected" ;;
esac
