#!/usr/bin/env bash
# Usage: scripts/alerts-test.sh [flags of go test ...]
# The alert rules of contrib/prometheus, evaluated by Prometheus' engine on a datastore whose local
# Walrus has faults: each rule fires for its cause, and clears. Needs the release library (make
# build); the first run downloads and compiles Prometheus' packages.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
lib_ready libwalrusds.a >/dev/null
export WALRUSDS_TEST_DEVNET=$LIB_DIR/walrus-devnet
cd "$ROOT/tests/alerts"
exec "$GO" test -count=1 "$@" ./...
