#!/usr/bin/env bash
# Usage: scripts/fuzz.sh [target...]        (make fuzz)
#
# Fuzzes the targets of tests/fuzz/targets.rs (all, unless some are named) with libFuzzer and
# AddressSanitizer, starting from tests/fuzz/corpus: for each target an archive of inputs that add
# coverage, and a directory of inputs that were put there by hand. New inputs stay in
# build/fuzz/corpus. An input that fails is written to build/fuzz/crashes; the script prints at its
# end how to replay it.
#
# Environment: FUZZ_SECONDS (per target, 60 by default), FUZZ_MINIMISE=1 (afterwards, what adds
# coverage becomes the target's archive: inputs of up to 2 KiB, at most 30 KiB for each target),
# FUZZ_REPLAY=FILE (run the one named target on this input, and nothing else).
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT/tests/fuzz"
CARGO=${CARGO:-cargo} seconds=${FUZZ_SECONDS:-60}
host=$(rustc -vV | sed -n 's/^host: //p')

# These flags do the work of cargo-fuzz, without its need for a nightly toolchain: the sanitizer is
# the only part that is not stable, and its runtime comes with every toolchain.
flags=(--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module -Cforce-frame-pointers=yes)
for option in level=4 inline-8bit-counters pc-table trace-compares; do
  flags+=("-Cllvm-args=-sanitizer-coverage-$option")
done
export CARGO_TARGET_DIR=$BUILD/fuzz/target
RUSTC_BOOTSTRAP=1 RUSTFLAGS="${flags[*]}" "$CARGO" build --release --locked --target "$host"
fuzz=$CARGO_TARGET_DIR/$host/release/fuzz

targets=$(sed -n 's/^    ("\([a-z]*\)", .*/\1/p' targets.rs)
[[ $# -eq 0 ]] || targets=$*
if [[ -n ${FUZZ_REPLAY:-} ]]; then
  FUZZ_TARGET=$targets exec "$fuzz" "$FUZZ_REPLAY"
fi

crashes=$BUILD/fuzz/crashes failed=0
mkdir -p "$crashes"
for target in $targets; do
  found=$BUILD/fuzz/corpus/$target seeds=$BUILD/fuzz/seeds/$target log=$BUILD/fuzz/$target.log
  rm -rf "$seeds"
  mkdir -p "$found" "$seeds"
  tar -xzf "corpus/$target.tar.gz" -C "$seeds"
  cp "corpus/$target"/* "$seeds/"
  # Leaks at the end of the process are no finding: the runtime's threads live as long as it does.
  options=(-timeout=30 -rss_limit_mb=4096 -detect_leaks=0)
  export FUZZ_TARGET=$target
  if "$fuzz" "${options[@]}" -max_total_time="$seconds" -max_len=2048 -print_final_stats=1 \
    -artifact_prefix="$crashes/$target-" "$found" "$seeds" >"$log" 2>&1; then
    say "ok      $target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs in $seconds s, $(grep -o 'cov: [0-9]*' "$log" | tail -1)"
  else
    tail -60 "$log" >&2
    say "FAILED  $target: $log"
    failed=1
  fi
  if [[ -n ${FUZZ_MINIMISE:-} && $failed -eq 0 ]]; then
    small=$(mktemp -d)
    "$fuzz" "${options[@]}" -merge=1 "$small" "$seeds" "$found" >>"$log" 2>&1
    # The smallest first, until the target's share is used up. The same inputs give the same
    # archive.
    (cd "$small" && find . -type f -size -2049c -printf '%s %P\n') | sort -n |
      awk '{ sum += $1 } sum <= 30720 { print $2 }' | LC_ALL=C sort >"$small.list"
    tar -C "$small" --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=0644 -cf - -T "$small.list" |
      gzip -9n >"corpus/$target.tar.gz"
    rm -f "$small.list"
    rm -rf "$small"
  fi
done
if [[ $failed -ne 0 ]]; then
  say "inputs that fail:"
  find "$crashes" -type f >&2
  say "replay one with: FUZZ_REPLAY=/path/to/input scripts/fuzz.sh TARGET"
  exit 1
fi
