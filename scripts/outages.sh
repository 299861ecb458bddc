#!/usr/bin/env bash
# Usage: scripts/outages.sh [FILTER...]        (make outages)
#
# Runs every case of tests/outages.rs, the long ones included, with outages long enough to use up
# the retries, and prints the table of docs/reliability.md. With UPDATE=1 and no filter it also puts
# the table there.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
mkdir -p build
export OUTAGES_REPORT=$ROOT/build/outages.tsv
rm -f "$OUTAGES_REPORT"
say "about ten minutes; the log is build/outages.log"
status=0
"${CARGO:-cargo}" test --locked --test outages -- --include-ignored --nocapture "$@" \
  >build/outages.log 2>&1 || status=$?
grep -E '^(test .*FAILED|test result:|skipped:)|panicked' build/outages.log || true

# OUTAGE, group, case, writers, readers, acknowledged, wrong, recovery, stragglers, overrun
LC_ALL=C sort -t $'\t' -k2,2 -k3,3 "$OUTAGES_REPORT" | awk -F '\t' '
  BEGIN {
    print "| outage | writers saw | readers saw | lost or wrong | recovery |"
    print "|---|---|---|---|---|"
  }
  $2 != group { group = $2; printf "| **%s** | | | | |\n", group }
  { printf "| %s | %s | %s | %s of %s | %s |\n", $3, $4, $5, $7, $6, $8 }' >build/outages.md
cat build/outages.md

if [[ -n ${UPDATE:-} && $# -eq 0 && $status -eq 0 ]]; then
  awk '
    /<!-- outages: end -->/ { skip = 0 }
    !skip
    /<!-- outages: begin/ { while ((getline line < "build/outages.md") > 0) print line; skip = 1 }
  ' docs/reliability.md >build/reliability.md
  cp build/reliability.md docs/reliability.md
  say "docs/reliability.md is up to date"
fi
exit "$status"
