#!/usr/bin/env bash
# Usage: scripts/chaos.sh        (make chaos)
#
# A million acknowledged writes under faults: in memory with faulty parts, on a local Walrus that
# misbehaves with SQLite and PostgreSQL, and in processes that die at every fail point or by
# SIGKILL, also while they renew, repack, delete and adopt. Every key is compared afterwards. Fails
# if a single block was lost or wrong, or paid for twice without need. Then plays the model's
# sequences on the real parts, five times as many as the tests do.
#
# Environment: CHAOS_SEED (repeats what was drawn), CHAOS_OPS (default 1000000), CHAOS_CONFIG (JSON
# object: more keys for every datastore), CHAOS_SMOKE=1 (a short run for the tests), CHAOS_ONLY (the
# parts whose names begin so: in memory, local Walrus, fail points, kill -9, renewal, adoption),
# CHAOS_PLANS (rounds of renewal and adoption, default 3).
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
CARGO=${CARGO:-cargo}

# Fail points, and a target directory of their own: released files must never hold them.
CARGO_TARGET_DIR=$BUILD/failpoints RUSTFLAGS="--cfg failpoints" "$CARGO" build --release --locked --quiet -p walrusds-chaos -p walrus-devnet
# As scripts/test.sh builds it: other features would replace the library under parts that use it.
"$CARGO" build --release --locked --quiet --workspace
chaos=$BUILD/failpoints/release/walrus-chaos
grep -q WALRUSDS_FAILPOINT "$chaos" || die "$chaos has no fail points"
for lib in libwalrusds.a libwalrusds.so; do
  if grep -q WALRUSDS_FAILPOINT "$LIB_DIR/$lib"; then die "$lib has fail points: it must never be released"; fi
done

"$chaos"
if [[ -z ${CHAOS_SMOKE:-}${CHAOS_ONLY:-} ]]; then
  MODEL_CASES=${MODEL_CASES:-500} "$CARGO" test --locked --workspace --test model real_parts
fi
