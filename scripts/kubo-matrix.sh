#!/usr/bin/env bash
# Usage: scripts/kubo-matrix.sh [vX.Y.Z ...]        (make kubo-matrix [VERSIONS="..."])
#
# Takes Kubo nodes of several versions, with walrusds built in and as an external plugin, through
# one tour on a local Walrus (tests/kubo/src/tour.rs), and prints a table: version and mode by step,
# with the seconds each took. Fails if a step failed. Builds what is missing: minutes per version
# the first time, and 300 MB each in build/. Needs the release programs (make build).
#
# Environment: LIB_DIR, BUILD.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

versions=("$@")
[[ ${#versions[@]} -gt 0 ]] || versions=(v0.30.0 v0.34.1 v0.39.0 v0.41.0 v0.43.0)
(cd "$ROOT" && "${CARGO:-cargo}" build --release --locked --quiet -p kubo-tests)

columns=()
for version in "${versions[@]}"; do
  ipfs=$("$ROOT/scripts/kubo-build.sh" "$version")
  columns+=("$version built in=$ipfs")
  ipfs=$("$ROOT/scripts/kubo-build.sh" --plain "$version")
  columns+=("$version external=$ipfs,$("$ROOT/scripts/plugin-build.sh" "$ipfs")")
done
export LIB_DIR
exec "$LIB_DIR/kubo-matrix" "${columns[@]}"
