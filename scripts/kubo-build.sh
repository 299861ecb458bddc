#!/usr/bin/env bash
# Usage: scripts/kubo-build.sh [--plain] vX.Y.Z | /path/to/kubo
#
# Builds ipfs with walrusds built in (statically linked): build/kubo-vX.Y.Z/ipfs. With --plain an
# ordinary ipfs, as `make build` in Kubo makes it, for use with the external plugin:
# build/kubo-vX.Y.Z-plain/ipfs. Nothing is done when nothing has changed. Prints the path.
#
# Environment: KUBO_GO (Go toolchain), LIB_DIR, LDFLAGS (more linker flags), OUTPUT (copy it there
# too).
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

plain=
if [[ ${1:-} == --plain ]]; then plain=1; shift; fi
target=${1:?usage: kubo-build.sh [--plain] vX.Y.Z | /path/to/kubo}

if [[ -d $target ]]; then
  name=$(basename "$(realpath "$target")") origin=$(realpath "$target") commit=
  [[ -f $origin/go.mod ]] && grep -q "^module $KUBO\$" "$origin/go.mod" || die "$target is not a checkout of Kubo"
  commit=$(git -C "$origin" rev-parse --short HEAD 2>/dev/null || true)
  identity="checkout $(date +%s%N)" # it may have changed; Go finds out quickly
else
  name=${target} origin=$(kubo_source "$target") commit= identity=$target
fi
dir=$BUILD/kubo-${name#kubo-}${plain:+-plain}
# Parts of a test run may ask for the same build at the same time.
mkdir -p "$BUILD"
exec {lock}>"$BUILD/.kubo-build.lock"
flock "$lock"
toolchain=$(kubo_toolchain "$origin")
stamp="v2 $identity $toolchain ${LDFLAGS:-}"
if [[ -z $plain ]]; then
  lib=$(lib_ready libwalrusds.a) # without it nothing is removed nor built
  stamp+=" $lib $(shim_hash)"
fi

finish() {
  if [[ -n ${OUTPUT:-} ]]; then install -Dm755 "$dir/ipfs" "$OUTPUT"; fi
  printf '%s\n' "$dir/ipfs"
}
if fresh "$dir/.stamp" "$dir/ipfs" "$stamp"; then
  say "$dir/ipfs is up to date"
  finish
  exit
fi

mkdir -p "$dir"
rm -f "$dir/.stamp" "$dir/ipfs" # Go would take an old file for up to date although the library changed
cp "$origin/go.mod" "$origin/go.sum" "$dir/"
chmod u+w "$dir"/go.*
args=(-modfile="$dir/go.mod" -mod=mod -buildvcs=false -trimpath)
if [[ -z $plain ]]; then
  GOTOOLCHAIN=local "$GO" mod edit -require="$SHIM@v0.0.0" -replace="$SHIM@v0.0.0=$ROOT/go-shim" "$dir/go.mod"
  # Kubo's sources stay as they are: its own generator runs on a copy of the list, and the result
  # replaces preload.go for this build only.
  mkdir -p "$dir/loader"
  cp "$origin/plugin/loader/preload.sh" "$origin/plugin/loader/preload_list" "$dir/loader/"
  chmod -R u+w "$dir/loader"
  { echo; sed -n 's/^+\(walrusds .*\)/\1/p' "$ROOT/preload_list.patch"; } >>"$dir/loader/preload_list"
  (cd "$dir/loader" && bash ./preload.sh >preload.go)
  printf '{"Replace":{"%s":"%s"}}\n' "$origin/plugin/loader/preload.go" "$dir/loader/preload.go" >"$dir/overlay.json"
  args+=(-overlay="$dir/overlay.json")
fi
say "building ipfs: Kubo $name${plain:+, plain}, Go $toolchain (minutes the first time)"
(
  cd "$origin"
  GOTOOLCHAIN=$toolchain "$GO" build "${args[@]}" \
    -ldflags "-X $KUBO.CurrentCommit=$commit ${LDFLAGS:-}" -o "$dir/ipfs" ./cmd/ipfs
)
printf '%s' "$stamp" >"$dir/.stamp"
finish
