#!/usr/bin/env bash
# Usage: scripts/deps.sh
#
# Looks for all programs and libraries that builds and tests need. On Debian and Ubuntu, as root, it
# installs missing packages; otherwise it prints the packages to install, and fails when one is
# missing.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

packages=() problems=()
ok() { printf '  %-12s %s\n' "$1" "$2"; }

look() {
  packages=() problems=()
  local v
  # Rust and Go come from their own installers: distributions carry older ones.
  if v=$(cd "$ROOT" && rustc --version 2>/dev/null) && command -v cargo >/dev/null; then
    local want
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml" | head -1)
    v=$(awk '{ print $2 }' <<<"$v")
    if version_ge "${v%%-*}" "$want"; then ok rust "$v"; else problems+=("Rust $want or newer, found $v: rustup update stable"); fi
  else
    problems+=("Rust with cargo: https://rustup.rs")
  fi
  if v=$(cd / && GOTOOLCHAIN=local "$GO" env GOVERSION 2>/dev/null); then
    if version_ge "${v#go}" 1.22; then ok go "${v#go}"; else problems+=("Go 1.22 or newer, found ${v#go}: https://go.dev/dl"); fi
  else
    problems+=("Go 1.22 or newer: https://go.dev/dl")
  fi
  if command -v cc >/dev/null && echo 'int main(void){return 0;}' | cc -x c -o /dev/null - 2>/dev/null; then ok cc "$(cc -dumpfullversion -dumpversion 2>/dev/null || true)"; else packages+=(build-essential); fi
  if command -v make >/dev/null; then ok make "$(make --version | sed -n '1s/.* //p')"; else packages+=(make); fi
  if command -v git >/dev/null; then ok git "$(git --version | awk '{ print $3 }')"; else packages+=(git); fi
  if command -v curl >/dev/null; then ok curl "$(curl --version | awk 'NR == 1 { print $2 }')"; else packages+=(curl); fi
  if [[ $(uname -s) != Linux ]]; then :; elif command -v valgrind >/dev/null; then ok valgrind "$(valgrind --version | sed 's/^valgrind-//')"; else packages+=(valgrind); fi # tests of the C interface
  if command -v sqlite3 >/dev/null; then ok sqlite3 "$(sqlite3 --version | awk '{ print $1 }')"; else packages+=(sqlite3); fi # the documents' commands
  # The foreign clients (scripts/foreign-test.sh): a Python package, and a crate that is built with
  # OpenSSL.
  if v=$(python3 -c 'import ensurepip, venv, platform; print(platform.python_version())' 2>/dev/null); then
    if version_ge "$v" 3.10; then ok python "$v"; else problems+=("Python 3.10 or newer, found $v"); fi
  else
    packages+=(python3-venv)
  fi
  if v=$(pkg-config --modversion openssl 2>/dev/null); then ok openssl "$v"; else packages+=(pkg-config libssl-dev); fi
  # The server's programs, for the tests; Debian keeps them out of PATH.
  local pg=''
  if command -v postgres >/dev/null && command -v initdb >/dev/null; then
    pg=$(command -v postgres)
  else
    pg=$(find /usr/lib/postgresql /usr/pgsql-* /opt/homebrew/opt/postgresql* -name postgres -path '*/bin/*' 2>/dev/null | sort -V | tail -1 || true)
  fi
  local pooler
  if pooler=$(PATH=$PATH:/usr/sbin command -v pgbouncer); then ok pgbouncer "$("$pooler" --version | awk 'NR == 1 { print $2 }')"; else packages+=(pgbouncer); fi
  if [[ -n $pg ]]; then ok postgres "$("$pg" --version | awk '{ print $3 }') ($pg)"; else packages+=(postgresql); fi
}

say "looking for what walrusds needs:"
look
if [[ ${#packages[@]} -gt 0 && $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; then
  say "installing: ${packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
  look
fi
[[ ${#packages[@]} -eq 0 ]] || problems+=("packages (Debian names): ${packages[*]}, e.g. sudo apt-get install ${packages[*]}")
if [[ ${#problems[@]} -gt 0 ]]; then
  say "missing:"
  for p in "${problems[@]}"; do say "  - $p"; done
  exit 1
fi
say "everything is there"
