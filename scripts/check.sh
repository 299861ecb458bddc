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

header_is_current() {
  # The build writes the header anew when src/ffi has changed.
  local before
  before=$(sha256sum include/walrusds.h)
  touch build.rs
  "$CARGO" build --release --locked --lib || return
  [[ $(sha256sum include/walrusds.h) == "$before" ]] || {
    echo "include/walrusds.h is not what src/ffi gives: commit the new one"
    return 1
  }
}
gofmt_clean() {
  local files
  files=$(gofmt -l go-shim)
  [[ -z $files ]] || { printf 'not formatted:\n%s\n' "$files"; return 1; }
}
scripts_parse() {
  local f
  for f in set-target.sh scripts/*.sh docker/*.sh; do bash -n "$f" || return; done
  for f in docker/*.sh; do sh -n "$f" || return; done
  if command -v shellcheck >/dev/null; then shellcheck -x -S warning set-target.sh scripts/*.sh docker/*.sh; fi
}
go_vet() {
  lib_ready libwalrusds.a >/dev/null
  (cd go-shim && "$GO" vet ./...)
}
go_mod_is_lowest() {
  # The committed go.mod stands for the oldest Kubo we support; it is never raised.
  grep -q '^go 1\.22$' go-shim/go.mod && grep -q 'ipfs/kubo v0\.30\.0$' go-shim/go.mod && grep -q 'go-datastore v0\.6\.0$' go-shim/go.mod
}

step 'scripts' scripts_parse
step 'cargo fmt' "$CARGO" fmt --all --check
step 'gofmt' gofmt_clean
step 'go.mod at its lowest' go_mod_is_lowest
step 'generated header' header_is_current
step 'go vet' go_vet
step 'cargo clippy' "$CARGO" clippy --workspace --all-targets --locked -- -D warnings
exit $failed
