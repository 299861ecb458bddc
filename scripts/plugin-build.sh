#!/usr/bin/env bash
# Usage: scripts/plugin-build.sh [--dynamic] vX.Y.Z | /path/to/kubo | /path/to/ipfs
#
# Builds the external plugin for one particular ipfs (see set-target.sh about the argument):
# build/plugin-<target>/walrusds.so, with the engine inside. With --dynamic the engine stays outside
# (libwalrusds.so, expected in ../lib beside the plugin's directory). Prints the path of the plugin.
#
# Environment: KUBO_SRC, KUBO_GO, MODE (see set-target.sh), LIB_DIR.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dynamic=
if [[ ${1:-} == --dynamic ]]; then dynamic=1; shift; fi
[[ -n ${1:-} ]] || die "usage: plugin-build.sh [--dynamic] vX.Y.Z | /path/to/kubo | /path/to/ipfs"

out=$("$ROOT/set-target.sh" "$1")
# shellcheck source=/dev/null
source "$out/target.env"
lib=libwalrusds.a
if [[ -n $dynamic ]]; then
  lib=libwalrusds.so
  TAGS=${TAGS:+$TAGS,}walrusds_dynamic
fi
dir=$BUILD/plugin-${out##*/target-}${dynamic:+-dynamic}
so=$dir/walrusds.so
stamp="v2 $(lib_ready $lib) $(shim_hash) $(sha256sum <"$out/go.mod") $TOOLCHAIN $TAGS $TRIM $CGO_LDFLAGS_OF_IPFS"
if fresh "$dir/.stamp" "$so" "$stamp"; then
  say "$so is up to date"
  printf '%s\n' "$so"
  exit
fi
mkdir -p "$dir"
rm -f "$dir/.stamp" "$so" # Go would take an old file for up to date although the library changed
say "building the plugin (minutes the first time for each Kubo version)"
(
  cd "$CD_DIR"
  # Symbols are left out: they only make the file larger, and loading does not compare them.
  [[ -z $CGO_LDFLAGS_OF_IPFS ]] || export CGO_LDFLAGS=$CGO_LDFLAGS_OF_IPFS
  GOTOOLCHAIN=$TOOLCHAIN "$GO" build -modfile="$out/go.mod" -mod=mod -buildvcs=false ${TRIM:+"$TRIM"} \
    ${TAGS:+-tags="$TAGS"} -ldflags "-s -w" -buildmode=plugin -o "$so" "$MAIN"
)
chmod 755 "$so"
# Every package it shares with ipfs must be of the same version; comparing the lists here gives a
# clearer error than a failed load at run time.
if [[ -n $IPFS_BIN ]]; then
  deps() { ipfs_info "$1" | awk -F'\t' '$2 == "dep" { print $3, $4 }' | sort; }
  wrong=$(join <(deps "$IPFS_BIN") <(deps "$so") | awk '$2 != $3 { print "  " $1 ": " $2 " in ipfs, " $3 " in the plugin" }')
  [[ -z $wrong ]] || { rm -f "$so"; die $'the plugin would not load, these modules differ:\n'"$wrong"; }
fi
printf '%s' "$stamp" >"$dir/.stamp"
printf '%s\n' "$so"
