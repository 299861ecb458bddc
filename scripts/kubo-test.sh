#!/usr/bin/env bash
# Usage: scripts/kubo-test.sh [--built-in | --others] [filter or option of the test runner ...]
#
# Tests real Kubo nodes on a local Walrus: v0.43.0 with walrusds built in (--built-in: these alone),
# v0.43.0 and v0.30.0 with the external plugin, and the container's entrypoint (--others: these
# alone). Builds what is missing (nothing is built twice). Needs the release library (make build).
#
#   scripts/kubo-test.sh tour               only tests with "tour" in their name
#   scripts/kubo-test.sh -- --nocapture     with what the nodes say
#
# Environment: LIB_DIR, BUILD, CARGO.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

new=v0.43.0 old=v0.30.0
# The names of tests that need more than the ipfs with walrusds built in.
others=(external install container)
which=all
case ${1:-} in
  --built-in | --others) which=${1#--} && shift ;;
esac
at() { say "== $*"; }

at "Kubo $new with walrusds built in"
WALRUSDS_TEST_IPFS=$("$ROOT/scripts/kubo-build.sh" "$new")
export WALRUSDS_TEST_IPFS
# The operator's command, with the features of the whole workspace as below.
[[ -x $LIB_DIR/walrusds ]] || (cd "$ROOT" && "${CARGO:-cargo}" build --release --locked --workspace --bin walrusds)
export WALRUSDS_TEST_COMMAND=$LIB_DIR/walrusds
names=()
if [[ $which == built-in ]]; then
  for name in "${others[@]}"; do names+=(--skip "$name"); done
  set -- -- "${names[@]}" "$@"
else
  at "Kubo $new and $old as they are, and a plugin for each"
  WALRUSDS_TEST_IPFS_PLAIN_43=$("$ROOT/scripts/kubo-build.sh" --plain "$new")
  WALRUSDS_TEST_PLUGIN_43=$("$ROOT/scripts/plugin-build.sh" "$WALRUSDS_TEST_IPFS_PLAIN_43")
  WALRUSDS_TEST_PLUGIN_43_DYNAMIC=$("$ROOT/scripts/plugin-build.sh" --dynamic "$WALRUSDS_TEST_IPFS_PLAIN_43")
  WALRUSDS_TEST_IPFS_PLAIN_30=$("$ROOT/scripts/kubo-build.sh" --plain "$old")
  WALRUSDS_TEST_PLUGIN_30=$("$ROOT/scripts/plugin-build.sh" "$WALRUSDS_TEST_IPFS_PLAIN_30")
  at "walrusds-configure"
  WALRUSDS_TEST_CONFIGURE=$("$ROOT/scripts/configure-build.sh")
  export WALRUSDS_TEST_IPFS_PLAIN_43 WALRUSDS_TEST_PLUGIN_43 WALRUSDS_TEST_PLUGIN_43_DYNAMIC \
    WALRUSDS_TEST_IPFS_PLAIN_30 WALRUSDS_TEST_PLUGIN_30 WALRUSDS_TEST_CONFIGURE
  if [[ $which == others ]]; then set -- -- "${others[@]}" "$@"; fi
fi
export LIB_DIR # plugin-install.sh, as the tests call it, takes the library from there

at "tests"
cd "$ROOT"
# With the features of the whole workspace, so that nothing is compiled a second time for these
# alone.
exec "${CARGO:-cargo}" test --locked --workspace --test nodes "$@"
