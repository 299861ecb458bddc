#!/usr/bin/env bash
# Usage: scripts/check.sh
# Formatting and lints of both languages, the scripts' syntax, and the generated header.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
CARGO=${CARGO:-cargo}
failed=0
step() {
  local name=$1 out
  shift
  if out=$("$@" 2>&1); then printf 'ok      %s\n' "$name"; else printf 'FAILED  %s\n%s\n' "$name" "$out"; failed=1; fi
}

# The build script writes the header anew; clippy runs it too. In a directory of its own, so that
# other builds need not wait.
clippy_clean() {
  CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/lints "$CARGO" clippy --workspace --all-targets --locked -- -D warnings
}
header_before=$(sha256sum include/walrusds.h)
header_is_current() {
  [[ $(sha256sum include/walrusds.h) == "$header_before" ]] || {
    echo "include/walrusds.h was not what src/ffi gives: commit the new one"
    return 1
  }
}
cargo_fmt() {
  "$CARGO" fmt --all --check && "$CARGO" fmt --check --manifest-path tests/foreign/rust/Cargo.toml &&
    "$CARGO" fmt --check --manifest-path tests/fuzz/Cargo.toml
}
gofmt_clean() {
  local files
  files=$(gofmt -l go-shim cli/kubo-datastore tests/conformance tests/bench/ds)
  [[ -z $files ]] || { printf 'not formatted:\n%s\n' "$files"; return 1; }
}
scripts_parse() {
  local f
  for f in set-target.sh scripts/*.sh docker/*.sh tests/kubo/own/*.sh; do bash -n "$f" || return; done
  for f in docker/*.sh; do sh -n "$f" || return; done
  if command -v shellcheck >/dev/null; then shellcheck -x -S warning set-target.sh scripts/*.sh docker/*.sh tests/kubo/own/*.sh; fi
}
# Packages outside the workspace: nothing else in the tests would notice that their locks are
# behind.
other_locks() {
  local dir
  for dir in tests/fuzz tests/foreign/rust; do
    "$CARGO" metadata --locked --format-version 1 --manifest-path "$dir/Cargo.toml" >/dev/null || return
  done
}
# rustfmt does not wrap comments.
comments_fit() {
  local wide
  wide=$(git ls-files '*.rs' | xargs perl -CSD -ne 'chomp; print "$ARGV:$.: ", length, "\n" if m{^\s*//} && length > 100; close ARGV if eof')
  [[ -z $wide ]] || { printf 'comments wider than 100 columns:\n%s\n' "$wide"; return 1; }
}
go_vet() {
  lib_ready libwalrusds.a >/dev/null
  (cd go-shim && "$GO" vet ./...)
  (cd tests/conformance && "$GO" vet . && "$GO" vet -modfile=datastore_v0.9.mod .)
  (cd tests/bench/ds && "$GO" vet .)
  (cd cli/kubo-datastore && CGO_ENABLED=0 "$GO" vet .)
}
go_mod_is_lowest() {
  # The committed go.mod stands for the oldest Kubo we support; it is never raised.
  grep -q '^go 1\.22$' go-shim/go.mod && grep -q 'ipfs/kubo v0\.30\.0$' go-shim/go.mod && grep -q 'go-datastore v0\.6\.0$' go-shim/go.mod
}

step 'scripts' scripts_parse
step 'cargo fmt' cargo_fmt
step 'comments' comments_fit
step 'gofmt' gofmt_clean
step 'go.mod at its lowest' go_mod_is_lowest
step 'other lock files' other_locks
step 'go vet' go_vet
step 'public API' scripts/public-api.sh
step 'cargo clippy' clippy_clean
step 'generated header' header_is_current
exit $failed
