# shellcheck shell=bash
# Shared by the build scripts. Source it; it does nothing by itself.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BUILD=${BUILD:-$ROOT/build}
# The directory with libwalrusds.a and libwalrusds.so.
LIB_DIR=${LIB_DIR:-${CARGO_TARGET_DIR:-$ROOT/target}/release}
GO=${GO:-go}
KUBO=github.com/ipfs/kubo
SHIM=github.com/walrusds/walrusds/go-shim

# The caller's environment must not leak into the builds: a plugin only loads into an ipfs built
# alike. That includes the linker flags of cgo, which Go writes into every package that uses C.
export GOFLAGS='' GOWORK=off CGO_ENABLED=1
unset CGO_CFLAGS CGO_CPPFLAGS CGO_CXXFLAGS CGO_LDFLAGS

say() { printf '%s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# json_field NAME < output of `go mod download -json`
json_field() { sed -n 's/^[[:space:]]*"'"$1"'": "\(.*\)",\{0,1\}$/\1/p'; }

# Where the sources of a published Kubo version lie in the module cache (downloaded if need be).
kubo_download() {
  local json
  json=$(cd / && GOTOOLCHAIN=local "$GO" mod download -json "$KUBO@$1") || die "cannot get Kubo $1: $(json_field Error <<<"$json")"
  printf '%s\n' "$json"
}

# kubo_source VERSION: a writable copy of the published sources, unchanged. Prints its path.
# (Main mode needs a source tree. A module zip drops the executable bits; Kubo's make wants a .git.)
kubo_source() {
  local version=$1 dir="$BUILD/src/kubo-$1" from
  if [[ ! -f $dir/.complete ]]; then
    from=$(kubo_download "$version" | json_field Dir)
    [[ -d $from ]] || die "no sources of Kubo $version in the module cache"
    rm -rf "$dir" && mkdir -p "$dir"
    cp -R "$from/." "$dir/"
    chmod -R u+w "$dir"
    find "$dir" \( -name '*.sh' -o -path "$dir/bin/*" \) -type f -exec chmod +x {} +
    mkdir -p "$dir/.git/objects"
    touch "$dir/.complete"
  fi
  printf '%s\n' "$dir"
}

# Newest patch release of each Go minor that Kubo versions ask for, as far as it matters. A Kubo
# version is built with the Go minor in its go.mod: older Kubo versions hold packages that refuse
# newer Go releases.
newest_patch() {
  case $1 in
    1.22) echo 1.22.12 ;;
    1.23) echo 1.23.12 ;;
    1.24) echo 1.24.11 ;;
    1.25) echo 1.25.5 ;;
    *) echo "$1.0" ;;
  esac
}

version_ge() { [[ $(printf '%s\n%s\n' "$1" "$2" | sort -V | tail -1) == "$1" ]]; }

# kubo_toolchain DIR: the value of GOTOOLCHAIN for building the Kubo sources in DIR.
# KUBO_GO overrules it (local, go1.22.7, ...).
kubo_toolchain() {
  if [[ -n ${KUBO_GO:-} ]]; then
    printf '%s\n' "$KUBO_GO"
    return
  fi
  local want minor have
  want=$(awk '$1 == "toolchain" { sub(/^go/, "", $2); t = $2 } $1 == "go" { g = $2 } END { print t ? t : g }' "$1/go.mod")
  minor=$(cut -d. -f1-2 <<<"$want")
  have=$(cd / && GOTOOLCHAIN=local "$GO" env GOVERSION | sed 's/^go//; s/[^0-9.].*//')
  if [[ $have == "$minor" || $have == "$minor".* ]] && version_ge "$have" "$want"; then
    echo local
    return
  fi
  version_ge "$want" "$(newest_patch "$minor")" || want=$(newest_patch "$minor")
  [[ $want == *.*.* ]] || want=$want.0
  printf 'go%s\n' "$want"
}

# The hash of all that goes into the Go side of a build.
shim_hash() {
  (cd "$ROOT" && find go-shim -type f \( -name '*.go' -o -name 'go.mod' -o -name 'go.sum' \) ! -name '*_test.go' -print0 |
    sort -z | xargs -0 sha256sum; sha256sum include/walrusds.h 2>/dev/null || true) | sha256sum | cut -c1-16
}

# lib_ready FILE: fails unless the engine library is there, and records its hash for Go. Prints the
# hash. (Go does not inspect the libraries it links: the hash becomes a part of the package, so that
# a changed library is linked anew, and test results of an old one do not count.)
lib_ready() {
  local file="$LIB_DIR/$1" hash header="$ROOT/go-shim/walrusds_lib_hash.h" line
  [[ -f $file && -f $ROOT/include/walrusds.h ]] || die "$file or include/walrusds.h is missing: run 'make build' first"
  # link_*.go look here first. A flag that names LIB_DIR would have to be given to cgo as a whole.
  if [[ $(readlink "$ROOT/build/lib" || true) != "$LIB_DIR" ]]; then
    mkdir -p "$ROOT/build" && ln -sfn "$LIB_DIR" "$ROOT/build/lib"
  fi
  hash=$(sha256sum "$file" | cut -c1-16)
  line="#define WALRUSDS_LIB_HASH \"$hash\""
  if [[ ! -f $header || $(<"$header") != "$line" ]]; then
    printf '%s\n' "$line" >"$header.$$" && mv "$header.$$" "$header"
  fi
  printf '%s\n' "$hash"
}

# fresh STAMP OUTPUT TEXT: OUTPUT was made from exactly TEXT already.
fresh() { [[ -e $2 && -f $1 && $(<"$1") == "$3" ]]; }

# ipfs_info BINARY: `go version -m`, with an explanation when that is not possible.
ipfs_info() {
  GOTOOLCHAIN=local "$GO" version -m "$1" 2>/dev/null || die "$1 is not a Go program with build information: it is no usable ipfs"
}

# ipfs_run BINARY ARGS...: runs it away from any real repo.
ipfs_version() {
  local tmp v
  tmp=$(mktemp -d)
  v=$(IPFS_PATH=$tmp "$1" version --number 2>/dev/null || true)
  rm -rf "$tmp"
  printf '%s\n' "$v"
}

# devnet FLAGS...: a local Walrus in memory (or in --data DIR), on a free port, for a script that
# has set work (a directory) and pids=(), and runs end_pids in the end. Sets URL, and ALSO to the
# address of --also.
devnet() {
  local out=$work/devnet.${#pids[@]} pid
  : >"$out" # it is looked into at once
  [[ " $* " == *' --data '* ]] || set -- --memory "$@"
  "$LIB_DIR/walrus-devnet" --listen 127.0.0.1:0 "$@" >"$out" 2>&1 &
  pid=$!
  pids+=("$pid")
  for _ in $(seq 100); do
    URL=$(sed -n 's/^listening on //p' "$out")
    # shellcheck disable=SC2034
    ALSO=$(sed -n 's/^also listening on \([^ ]*\) .*/\1/p' "$out")
    [[ -z $URL ]] || return 0
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  die "the local Walrus does not start: $(cat "$out")"
}

# Ends the processes that the script has started.
end_pids() {
  local pid
  for pid in "${pids[@]}"; do
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
}
