#!/usr/bin/env bash
# Usage: scripts/go-test.sh [flags of go test, such as -race ...]
# The Go shim's tests against the real engine and the local Walrus.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
lib_ready libwalrusds.a >/dev/null
export WALRUSDS_TEST_DEVNET=$LIB_DIR/walrus-devnet
cd "$ROOT/go-shim"
# Kubo's lowest version is tested with the Go release that it asks for, or the one at hand if newer.
exec "$GO" test -count=1 "$@" ./...
