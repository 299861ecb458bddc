#!/usr/bin/env bash
# Usage: scripts/foreign-test.sh
#
# Clients for Walrus by other authors, against the local Walrus: the Python package walrus-python
# and the Rust crate walrus_rs. Both are pinned, in tests/foreign.
#
# Environment: LIB_DIR (the directory with walrus-devnet), PYTHON (3.10 or newer).
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
CARGO=${CARGO:-cargo} PYTHON=${PYTHON:-python3}
src=$ROOT/tests/foreign

[[ -x $LIB_DIR/walrus-devnet ]] || die "$LIB_DIR/walrus-devnet is missing: run 'make build' first"
"$PYTHON" -c 'import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
  die "Python 3.10 or newer with venv is missing: install it (Debian: apt-get install python3-venv)"

pkg-config --exists openssl 2>/dev/null ||
  die "pkg-config or the headers of OpenSSL are missing, which walrus_rs is built with: install them (Debian: apt-get install pkg-config libssl-dev)"

# The packages stay until their list or the interpreter changes.
venv=$BUILD/foreign-venv
pins=$("$PYTHON" --version; sha256sum <"$src/requirements.txt")
if ! fresh "$venv/.pins" "$venv/bin/python" "$pins"; then
  say "installing $(sed -n 's/^\(walrus-python[^ ]*\).*/\1/p' "$src/requirements.txt")"
  rm -rf "$venv"
  "$PYTHON" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --only-binary :all: --require-hashes -r "$src/requirements.txt"
  printf '%s\n' "$pins" >"$venv/.pins"
fi
# All compiling comes first, so that the tests alone run after it.
(cd "$src/rust" && CARGO_TARGET_DIR=$BUILD/foreign "$CARGO" test --locked --lib --no-run --quiet)

work=$(mktemp -d)
pids=()
clean_up() {
  end_pids
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# The blob IDs and costs of 1000 shards, as on the real networks, are judged once; fewer are
# cheaper.
devnet
real=$URL
devnet --role publisher --also aggregator=127.0.0.1:0 --shards 100
export PUBLISHER=$URL AGGREGATOR=$ALSO REAL=$real

say "walrus-python"
PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" "$src/test_walrus_python.py"
say "walrus_rs"
(cd "$src/rust" && CARGO_TARGET_DIR=$BUILD/foreign "$CARGO" test --locked --lib --quiet)
