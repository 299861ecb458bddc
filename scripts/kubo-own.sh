#!/usr/bin/env bash
# Usage: scripts/kubo-own.sh [--flatfs] [--postgres] [vX.Y.Z] [REGEX]      (make kubo-own [IPFS_VERSION=...])
#
# Kubo's own end-to-end tests (its packages test/cli and client/rpc, unchanged), with every repo
# they make on walrusds: the ipfs they find is one with walrusds built in, behind a script that adds
# the profile walrusds to each `ipfs init`. Each repo has an embedded index of its own, or with
# --postgres a table of its own, and a write journal; all share one local Walrus. REGEX chooses
# tests, as `go test -run` does.
#
# The tests run in shards, each a process of its own with its own time limit, so that one that hangs
# takes no others along: the tests that a shard left undone run alone.
#
# tests/kubo/own/exclusions.txt lists the tests that are left out, with the reason. Fails if any
# other test fails, and fails again when run alone, or if a listed one does not exist.
#
#   --flatfs   with Kubo's default datastore. Without REGEX: the listed tests, one by one; fails if
#              one does not exist, or its result contradicts its kind in the list
#
# Environment: LIB_DIR, BUILD, PARALLEL (tests at once; default: 4), SHARD (tests in a shard;
# default: 12), TIMEOUT (for a shard, and for a test alone; default: 30m), KEEP=1 (leave the output
# behind).
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/postgres.sh
source "$ROOT/scripts/postgres.sh"

mode=walrusds postgres='' version=v0.43.0 regex=.
while [[ $# -gt 0 ]]; do
  case $1 in
    --flatfs) mode=flatfs ;;
    --postgres) postgres=1 ;;
    v[0-9]*) version=$1 ;;
    -*) die "unknown option $1" ;;
    *) regex=$1 ;;
  esac
  shift
done
packages=(test/cli client/rpc)
exclusions=$ROOT/tests/kubo/own/exclusions.txt

[[ -x $LIB_DIR/walrus-devnet ]] || die "$LIB_DIR/walrus-devnet is missing: run 'make build' first"
ipfs=$("$ROOT/scripts/kubo-build.sh" "$version")
src=$(kubo_source "$version")
toolchain=$(kubo_toolchain "$src")

# The test programs, compiled once.
programs=$BUILD/kubo-own-$version
if ! fresh "$programs/.stamp" "$programs/rpc.test" "$version $toolchain"; then
  say "compiling the tests of Kubo $version (minutes the first time)"
  mkdir -p "$programs"
  (cd "$src" && GOTOOLCHAIN=$toolchain "$GO" test -c -trimpath -buildvcs=false -o "$programs/" "${packages[@]/#/./}")
  printf '%s' "$version $toolchain" >"$programs/.stamp"
fi

# A tree as they expect it: go.mod at its root, ipfs in cmd/ipfs, their own files beside them.
work=$(mktemp -d)
chmod 755 "$work" # the server of Postgres is another user
pids=()
clean_up() {
  # Ends nodes that a broken-off test program left behind; only this script runs this file.
  for exe in /proc/[0-9]*/exe; do
    if [[ $(readlink "$exe" 2>/dev/null) == "$work/ipfs"* ]]; then
      pid=${exe#/proc/}
      kill -KILL "${pid%/exe}" 2>/dev/null || true
    fi
  done
  end_pids
  stop_postgres
  if [[ -n ${KEEP:-} ]]; then say "left behind: $work"; else rm -rf "$work"; fi
}
trap clean_up EXIT
trap 'exit 130' INT TERM
tree=$work/kubo
install "$ipfs" "$work/built" # a later build must not take it away
mkdir -p "$tree/cmd/ipfs" "$work/tmp"
cp "$src/go.mod" "$tree/"
ln -s "$src/docs" "$tree/docs" # a test compares them with what the node says
for package in "${packages[@]}"; do
  mkdir -p "$tree/$package"
  for data in fixtures testdata; do
    if [[ -d $src/$package/$data ]]; then ln -s "$src/$package/$data" "$tree/$package/$data"; fi
  done
done

devnet --cheap-ids --max-body 128MiB --max-concurrency 0
walrus=$URL
[[ -z $postgres ]] || start_postgres "$work/postgres"

{
  printf '#!/usr/bin/env bash\n'
  printf '%s=%q\n' mode "$mode" ipfs "$work/ipfs" walrus "$walrus" postgres "${PG_URL:-}" inits "$work/inits"
  sed '1d' "$ROOT/tests/kubo/own/ipfs.sh"
} >"$tree/cmd/ipfs/ipfs"
chmod +x "$tree/cmd/ipfs/ipfs"

# pattern TEST: the pattern for -test.run and -test.skip that selects this test only.
pattern() { sed 's/[][().*+?^$|{}\\]/\\&/g; s/[^/]*/^&$/g' <<<"$1"; }
# run_tests PACKAGE LOG FLAGS...: a failed test is no error here; the results are judged below.
run_tests() {
  local package=$1 log=$2
  shift 2
  install "$work/built" "$work/ipfs" # the tests of `ipfs update` put another program in its place
  (cd "$tree/$package" && env TEST_FUSE=0 TMPDIR="$work/tmp" PATH="$tree/cmd/ipfs:$PATH" \
    "$programs/$(basename "$package").test" -test.v -test.timeout="${TIMEOUT:-30m}" -test.parallel="${PARALLEL:-4}" "$@" >"$log" 2>&1) || true
}
# run_all PACKAGE LOG FLAGS...: runs every test, in shards.
run_all() {
  local package=$1 log=$2 shard=$work/shard.log tops some verdict name i
  shift 2
  mapfile -t tops < <(cd "$tree/$package" && "$programs/$(basename "$package").test" -test.list=. | grep '^Test')
  for ((i = 0; i < ${#tops[@]}; i += ${SHARD:-12})); do
    some=("${tops[@]:i:${SHARD:-12}}")
    run_tests "$package" "$shard" -test.run="^($(IFS='|' && echo "${some[*]}"))\$" "$@"
    # A test that panics, or takes too long, ends the whole shard: the tests that have no result run
    # alone.
    verdict='PASS|FAIL|SKIP'
    if grep -q '^panic: ' "$shard"; then verdict='PASS|SKIP'; fi
    sed 's/^panic: /broke off: &/' "$shard" >>"$log"
    for name in "${some[@]}"; do
      [[ "|$skip|" != *"|^$name\$|"* ]] || continue
      if ! grep -qE "^--- ($verdict): $name \(" "$shard"; then
        say "   $package $name was not done; alone:"
        run_tests "$package" "$shard.alone" -test.run="^$name\$" "$@"
        cat "$shard.alone" >>"$log"
      fi
    done
    say "   $((i + ${#some[@]})) of ${#tops[@]} tests after $((SECONDS - started)) s"
  done
}
# The lines VERSION PACKAGE TEST KIND REASON that are for this version, without VERSION and REASON.
listed() { awk -v v="$version" '$1 == v { print $2, $3, $4 }' "$exclusions"; }
bad=0
complain() { say "- $*"; bad=$((bad + 1)); }

started=$SECONDS
for package in "${packages[@]}"; do
  say "== $package of Kubo $version on $mode${postgres:+, index in Postgres}"
  skip=''
  while read -r of name _; do
    if [[ $of == "$package" ]]; then skip+=${skip:+|}$(pattern "$name"); fi
  done < <(listed)
  log=$work/$(basename "$package").log
  : >"$log"
  if [[ $regex != . ]]; then
    run_tests "$package" "$log" -test.run="$regex" ${skip:+-test.skip="$skip"}
  elif [[ $mode == walrusds ]]; then
    run_all "$package" "$log" ${skip:+-test.skip="$skip"}
  fi
  if [[ -s $log ]]; then
    grep -E '^ *--- FAIL|^panic: ' "$log" >&2 || true
  fi
done

# PACKAGE TEST RESULT for every test; a failure of subtests alone counts for them only.
for package in "${packages[@]}"; do
  awk -v package="$package" '
    /^ *--- (PASS|FAIL|SKIP): / { sub(/:$/, "", $2); if (!($3 in result)) names[++n] = $3; result[$3] = $2 }
    /^(panic|fatal error|FATAL): / { broken = $0 }
    END {
      for (i = 1; i <= n; i++) {
        parent = names[i]
        while (sub(/\/[^\/]*$/, "", parent)) if (result[names[i]] == "FAIL") inner[parent] = 1
      }
      for (i = 1; i <= n; i++) print package, names[i], inner[names[i]] ? "FAIL-INSIDE" : result[names[i]]
      if (broken != "") print package, "-", "FAIL", broken
    }' "$work/$(basename "$package").log"
done >"$work/results"

count() { grep -c " $1\$" "$work/results" || true; }
# alone PACKAGE TEST: runs this one; prints PASS, FAIL (also if it skipped itself) or ABSENT.
alone() {
  local log=$work/alone.log
  run_tests "$1" "$log" -test.run="$(pattern "$2")"
  if grep -qF -e "--- PASS: $2 (" "$log"; then
    echo PASS
  elif grep -qF -e "--- FAIL: $2 (" -e "--- SKIP: $2 (" "$log" || grep -q '^panic: ' "$log"; then
    echo FAIL
  else
    echo ABSENT
  fi
}
# Many of these tests wait for other nodes with tight limits, so a failure counts if it repeats.
# Every failure is printed.
again=0
while read -r package name _; do
  if [[ $name != - && $(alone "$package" "$name") == PASS ]]; then
    say "   $package $name failed among the others, and passed alone"
    again=$((again + 1))
  else
    complain "$package $name failed"
  fi
done < <(grep -E ' FAIL( |$)' "$work/results" || true)
for package in "${packages[@]}"; do
  [[ $regex != . || $mode != walrusds ]] || grep -q "^$package .* PASS$" "$work/results" || complain "no test of $package passed"
done

# Checks that every listed test exists and, on flatfs, has its reason: run alone, as some of them
# end the others too.
while read -r package name kind; do
  top=$(cd "$tree/$package" && "$programs/$(basename "$package").test" -test.list="$(pattern "${name%%/*}")")
  [[ -n $top ]] || { complain "tests/kubo/own/exclusions.txt lists $package $name: there is no such test"; continue; }
  [[ $regex == . && $mode == flatfs ]] || continue
  result=$(alone "$package" "$name")
  case $kind/$result in
    */ABSENT) complain "tests/kubo/own/exclusions.txt lists $package $name: it did not run" ;;
    datastore/FAIL) complain "$package $name is listed as tied to another datastore, but fails on flatfs" ;;
    outside/PASS) complain "$package $name is listed as in need of something outside, but passes on flatfs" ;;
    datastore/* | outside/*) say "   $package $name: $result, as listed" ;;
    *) complain "tests/kubo/own/exclusions.txt: $package $name is of no known kind: $kind" ;;
  esac
done < <(listed)
[[ $mode != walrusds || -s $work/inits ]] || complain "no repo was made on walrusds"

if [[ $mode == walrusds || $regex != . ]]; then
  blobs=$(curl -fsS "$walrus/admin/stats" | tr ',{}' '\n' | sed -n 's/^ *"stored_blobs": *//p' | head -1)
  printf '%s on %s%s: %d passed, %d skipped themselves, %d failed (%d of them passed alone), in %d s; %d repos on walrusds, %d blobs\n' \
    "Kubo $version" "$mode" "${postgres:+ (Postgres)}" "$(count PASS)" "$(count SKIP)" "$(count FAIL)" "$again" \
    $((SECONDS - started)) "$(cat "$work/inits" 2>/dev/null | wc -l)" "$blobs"
fi
[[ $bad -eq 0 ]] || die "$bad complaints (tests/kubo/own/exclusions.txt says which tests may fail, and why)"
