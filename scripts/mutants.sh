#!/usr/bin/env bash
# Usage: scripts/mutants.sh        (make mutants)
#
# Mutation testing: cargo-mutants makes one small change in the engine at a time (a comparison, a
# constant, an emptied function), and the tests of that room must fail. Changes that no test notices
# are listed; docs/reliability.md gives the results. The order is random, so that a run that is
# ended by its time is a sample. cargo-mutants is installed into build/tools if it is missing.
#
# Environment: MUTANTS_MINUTES (default 60), MUTANTS_FILES (globs, separated by blanks; default: the
# rooms that acknowledged data passes through), MUTANTS_JOBS (default 1).
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
CARGO=${CARGO:-cargo}
version=25.3.1
tools=$BUILD/tools
minutes=${MUTANTS_MINUTES:-60}
read -ra files <<<"${MUTANTS_FILES:-src/journal/*.rs src/upload/*.rs src/upload/format/*.rs src/read/*.rs src/lifetime/*.rs src/index/combine.rs src/index/rows.rs src/index/lookup.rs}"

if [[ $("$tools/bin/cargo-mutants" mutants --version 2>/dev/null) != *" $version" ]]; then
  say "installing cargo-mutants $version"
  "$CARGO" install --quiet --locked --root "$tools" --version "$version" cargo-mutants
fi

out=$BUILD/mutants
rm -rf "$out" && mkdir -p "$out"
# Without a run of the unchanged code: make test has made that one.
args=(--package walrusds --output "$out" --shuffle --jobs "${MUTANTS_JOBS:-1}" --baseline skip --timeout 120 --no-times)
for file in "${files[@]}"; do args+=(--file "$file"); done
# The tests of these rooms; the long ones would only repeat them.
tests=(--lib)
for name in datastore journal journal_damage journal_damage_lasts read lifetime renewal; do tests+=(--test "$name"); done

say "for $minutes minutes; the log is build/mutants/log"
status=0
# The copy that is changed has no directory of its own to compile into: dependencies stay from run
# to run.
CARGO_TARGET_DIR=$BUILD/mutants-target CARGO_PROFILE_DEV_DEBUG=0 timeout --signal=INT "$((minutes * 60))" \
  "$tools/bin/cargo-mutants" mutants "${args[@]}" -- --locked "${tests[@]}" >"$out/log" 2>&1 || status=$?
# 0: all were caught; 2: some were missed; 3: some timed out; 124, 130: the time was over.
case $status in 0 | 2 | 3 | 124 | 130) ;; *) tail -30 "$out/log" >&2 && die "cargo-mutants ended with $status" ;; esac

count() { wc -l <"$out/mutants.out/$1.txt" 2>/dev/null || echo 0; }
caught=$(($(count caught) + $(count timeout)))
missed=$(count missed)
say "not noticed by any test:"
cat "$out/mutants.out/missed.txt" 2>/dev/null || true
printf '%d caught, %d missed, %d that do not compile: %d %% caught\n' \
  "$caught" "$missed" "$(count unviable)" $((caught * 100 / (caught + missed > 0 ? caught + missed : 1)))
[[ $((caught + missed)) -gt 0 ]] || die "no mutant was tried"
