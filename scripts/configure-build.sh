#!/usr/bin/env bash
# Usage: scripts/configure-build.sh
#
# Builds walrusds-configure, which brings an existing repo in line with the WALRUSDS_* variables
# (the container's entrypoint uses it): build/walrusds-configure. Prints the path. Environment:
# LIB_DIR, OUTPUT (copy it there too).
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
lib_ready libwalrusds.a >/dev/null
out=$BUILD/walrusds-configure
rm -f "$out"
(cd "$ROOT/go-shim" && "$GO" build -buildvcs=false -trimpath -ldflags "-s -w" -o "$out" ./cmd/walrusds-configure)
if [[ -n ${OUTPUT:-} ]]; then install -Dm755 "$out" "$OUTPUT"; fi
printf '%s\n' "$out"
