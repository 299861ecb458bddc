#!/usr/bin/env bash
# Usage: scripts/c-abi-test.sh [test...]
#
# The C interface as a C program sees it: the header, the exported symbols, the example of
# docs/abi.md, and the tests in tests/c_abi against a local Walrus: linked statically and
# dynamically, under the sanitizers of gcc, and (a smaller workload) under valgrind; and a panic in
# every function, with a library that panics on demand, under the sanitizers and valgrind. Names of
# tests, or parts of them, run those alone.
#
# Environment: LIB_DIR (the directory with the libraries and walrus-devnet), CC, CXX, KEEP=1 (leave
# the directory behind), SKIP (any of: static dynamic sanitizers valgrind panic).
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

CC=${CC:-gcc} CXX=${CXX:-g++}
src=$ROOT/tests/c_abi
for f in libwalrusds.a libwalrusds.so walrus-devnet; do
  [[ -f $LIB_DIR/$f ]] || die "$LIB_DIR/$f is missing: run 'make build' first"
done
for tool in "$CC" "$CXX" nm; do
  command -v "$tool" >/dev/null || die "$tool is missing: install gcc and g++ (Debian: apt-get install build-essential)"
done
skipped() { [[ " ${SKIP:-} " == *" $1 "* ]]; }
if ! skipped valgrind && ! command -v valgrind >/dev/null; then
  [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null || die "valgrind is missing: install it (Debian: apt-get install valgrind)"
  "$ROOT/scripts/deps.sh"
fi

work=$(mktemp -d)
pids=()
clean_up() {
  end_pids
  if [[ -n ${KEEP:-} ]]; then say "left behind: $work"; else rm -rf "$work"; fi
}
trap clean_up EXIT
trap 'exit 130' INT TERM

failures=0
# step NAME COMMAND...: its output is shown when it fails.
step() {
  local name=$1
  shift
  if "$@" >"$work/step.out" 2>&1; then
    printf 'ok      %s\n' "$name"
  else
    printf 'FAILED  %s\n' "$name"
    cat "$work/step.out"
    failures=$((failures + 1))
  fi
}

warnings=(-Wall -Wextra -Werror -pedantic)
c11=(-std=c11 "${warnings[@]}" -I"$ROOT/include")
# The libraries that rustc names as native-static-libs.
native=(-lgcc_s -lutil -lrt -lpthread -lm -ldl -lc)

# The header alone, as the first thing included, and twice.
printf '#include <walrusds.h>\n#include <walrusds.h>\nint main(void) { return (int)walrusds_abi_version() & 0; }\n' >"$work/header.c"
cp "$work/header.c" "$work/header.cc"
header_in_c() { "$CC" "${c11[@]}" -c "$work/header.c" -o "$work/header.o"; }
header_in_cpp() {
  "$CXX" -std=c++17 "${warnings[@]}" -I"$ROOT/include" "$work/header.cc" -o "$work/header" -L"$LIB_DIR" -lwalrusds &&
    LD_LIBRARY_PATH=$LIB_DIR "$work/header"
}
# Every function of the header, and nothing else, is exported.
exports() {
  nm -D --defined-only "$LIB_DIR/libwalrusds.so" | awk '{ print $NF }' | sort >"$work/exported"
  sed -n 's/^[a-z].*[ *]\(walrusds_[a-z_]*\)(.*/\1/p' "$ROOT/include/walrusds.h" | sort >"$work/declared"
  [[ $(wc -l <"$work/declared") -ge 20 ]] || { echo "the header could not be read"; return 1; }
  diff "$work/declared" "$work/exported" || { echo "< declared only, > exported only"; return 1; }
}
# Each function is called by the tests.
all_called() {
  local f missing=0
  while read -r f; do
    grep -q "$f(" "$src"/test_*.c || { echo "$f is not tested"; missing=1; }
  done <"$work/declared"
  return $missing
}
# Each function's panic is tested once: a new function without such a test fails here.
all_panic() {
  sed -n 's/.*entry: \(walrusds_[a-z_]*\).*/\1/p' "$src/test_panic.c" | sort >"$work/panicking"
  diff "$work/declared" "$work/panicking" || { echo "< without a test of its panic, > not a function"; return 1; }
}
# A library that panics on demand, beside the ordinary one of the same profile
# (docs/reliability.md).
panicking_library() {
  (cd "$ROOT" && "${CARGO:-cargo}" rustc --locked --quiet --lib --crate-type staticlib --features panic-hook --message-format json) >"$work/built" || return
  local made
  made=$(grep -o '"[^"]*libwalrusds\.a"' "$work/built" | tail -1 | tr -d '"')
  [[ -n $made ]] && cp "$made" "$work/libwalrusds-panic.a"
}

# The example in the document is the one that is compiled here.
example_is_documented() {
  awk '/^```c$/ { on = 1; next } /^```$/ { on = 0 } on' "$ROOT/docs/abi.md" | diff - "$src/example.c"
}
example() {
  "$CC" "${c11[@]}" "$src/example.c" -o "$work/example" "$LIB_DIR/libwalrusds.a" "${native[@]}" || return
  mkdir -p "$work/example.d"
  "$work/example" "$URL" "$work/example.d" >"$work/example.out" || return
  printf '%s\n' '/greeting = hello' '/numbers/one = 1' '/numbers/two = 2' | diff - "$work/example.out"
}

# Possible leaks are threads that still run and pointers into the middle of what they point at.
valgrind=(valgrind --quiet --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite --show-leak-kinds=definite --fair-sched=try --num-callers=30)

# build NAME FLAGS... -- LIBRARIES...
build() {
  local name=$1 flags=()
  shift
  while [[ $1 != -- ]]; do flags+=("$1") && shift; done
  shift
  "$CC" "${c11[@]}" -D_POSIX_C_SOURCE=200809L -g "${flags[@]}" -pthread "$src"/harness.c "$src"/main.c "$src"/test_*.c -o "$work/$name" "$@"
}
# run NAME PREFIX... -- ARGS...: runs the tests. Their output is shown as it comes; their stderr,
# which includes panics on purpose, is shown if they fail.
run() {
  local name=$1 prefix=() started=$SECONDS
  shift
  while [[ $1 != -- ]]; do prefix+=("$1") && shift; done
  shift
  printf '\n== tests, %s\n' "$name"
  mkdir -p "$work/run.$name"
  if env "${prefix[@]}" "$work/$name" --net "$net" --slow "$slow" --slow-ms "$slow_ms" --dir "$work/run.$name" "$@" 2>"$work/$name.err"; then
    printf 'ok      tests, %s (%d s)\n' "$name" $((SECONDS - started))
  else
    printf 'FAILED  tests, %s\n' "$name"
    cat "$work/$name.err"
    failures=$((failures + 1))
  fi
  rm -rf "$work/run.$name"
}

devnet --cheap-ids --quiet --max-body 32MiB --max-concurrency 64
net=$URL
slow_ms=2000
devnet --cheap-ids --quiet --latency-put $slow_ms --latency-get $slow_ms
slow=$URL
URL=$net

step 'header alone, C11' header_in_c
step 'header alone, C++17' header_in_cpp
step 'exported symbols' exports
step 'every function is tested' all_called
step 'every function panics in a test' all_panic
step 'example of docs/abi.md is tests/c_abi/example.c' example_is_documented
step 'example runs' example

if ! skipped static; then
  step 'build, linked statically' build static -O2 -- "$LIB_DIR/libwalrusds.a" "${native[@]}"
  run static -- "$@"
fi
if ! skipped dynamic; then
  step 'build, linked dynamically' build dynamic -O2 -- -L"$LIB_DIR" -lwalrusds
  run dynamic LD_LIBRARY_PATH="$LIB_DIR" -- "$@"
fi
if ! skipped sanitizers; then
  step 'build, AddressSanitizer and UBSan' build sanitizers -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined -- "$LIB_DIR/libwalrusds.a" "${native[@]}"
  run sanitizers ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1 -- "$@"
fi
if ! skipped valgrind; then
  slow_ms=5000
  devnet --cheap-ids --quiet --latency-put $slow_ms --latency-get $slow_ms
  slow=$URL
  step 'build, for valgrind' build valgrind -O1 -- -L"$LIB_DIR" -lwalrusds
  run valgrind LD_LIBRARY_PATH="$LIB_DIR" "${valgrind[@]}" -- --quick "$@"
fi
if ! skipped panic; then
  step 'build, the library that panics on demand' panicking_library
  hooked=(-DWITH_PANIC_HOOK -O1 -fno-omit-frame-pointer)
  step 'build, panics' build panic "${hooked[@]}" -fsanitize=address,undefined -fno-sanitize-recover=undefined -- "$work/libwalrusds-panic.a" "${native[@]}"
  run panic RUST_BACKTRACE=0 ASAN_OPTIONS=detect_leaks=1 -- "${@:-panic}"
  if ! skipped valgrind; then
    step 'build, panics for valgrind' build panic-valgrind "${hooked[@]}" -- "$work/libwalrusds-panic.a" "${native[@]}"
    run panic-valgrind RUST_BACKTRACE=0 "${valgrind[@]}" -- --quick "${@:-panic}"
  fi
fi

if [[ $failures -gt 0 ]]; then
  printf '\nC interface: %d FAILED\n' "$failures"
  exit 1
fi
printf '\nC interface: all passed\n'
