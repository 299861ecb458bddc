# shellcheck shell=bash
# Runs the parts of a test run. Source it after common.sh, declare the parts, call run_parts.
#
# Every part runs, even if others fail; at most PARTS_AT_ONCE (default: one for each processor) run
# side by side. Each writes a log of its own, build/logs/NAME.log. When a part ends, the summary
# lines of its test runners are printed, and its whole log if it failed. The last line counts the
# parts: "N passed, N failed".
#
# PART=NAME[,NAME...] runs these parts alone; a name may be a pattern (kubo*). DISCARD_BUILDS=1
# removes what a part has built for itself alone once it has passed, for a disk that is small.

part_names=() part_commands=()
declare -A part_pids=() part_began=() part_results=() part_builds=()

# part NAME COMMAND...: declares a part. Parts begin in the order in which they are declared.
part() {
  wanted "$1" || return 0
  part_names+=("$1")
  part_commands+=("$(printf '%q ' "${@:2}")")
}

# builds NAME DIR...: the directories in which a part builds for itself alone.
builds() { part_builds[$1]=${*:2}; }

# wanted NAME: whether PART leaves it in.
wanted() {
  local pattern
  [[ -n ${PART:-} ]] || return 0
  for pattern in ${PART//,/ }; do
    # shellcheck disable=SC2053
    [[ $1 != $pattern ]] || return 0
  done
  return 1
}

# The summary lines of test runners, and the lines that name a failure.
part_summary() {
  grep -E '^(test result: |ok  |FAIL|--- FAIL|[0-9]+ passed|ok      |FAILED  |test .* FAILED|passed with |C interface: |skipped: |Ran [0-9]+ tests|walrus-chaos|  [0-9]+ answers compared|all .* acknowledged)' "$1" || true
}

clock() { printf '%d min %02d s' $(($1 / 60)) $(($1 % 60)); }

part_ended() {
  local name=$1 status=$2 log=$BUILD/logs/$1.log took
  took=$(clock $((SECONDS - part_began[$name])))
  if [[ $status -eq 0 ]]; then
    part_results[$name]="passed  $name ($took)"
  else
    part_results[$name]="FAILED  $name ($took): $log"
  fi
  printf '\n== %s\n' "${part_results[$name]}"
  if [[ $status -eq 0 ]]; then part_summary "$log"; else cat "$log"; fi
  # shellcheck disable=SC2086
  if [[ $status -eq 0 && -n ${DISCARD_BUILDS:-} ]]; then rm -rf ${part_builds[$name]:-}; fi
}

# Ends the running parts and their child processes.
end_parts() {
  local pid
  for pid in "${part_pids[@]}"; do kill -TERM -- "-$pid" 2>/dev/null || true; done
  wait
}

# run_parts: fails if a part failed.
run_parts() {
  local at_once=${PARTS_AT_ONCE:-$(nproc)} next=0 name status failed=0 pid began=$SECONDS
  [[ ${#part_names[@]} -gt 0 ]] || die "no part is called ${PART:-}"
  mkdir -p "$BUILD/logs"
  trap 'end_parts; exit 130' INT TERM
  while [[ $next -lt ${#part_names[@]} || ${#part_pids[@]} -gt 0 ]]; do
    while [[ $next -lt ${#part_names[@]} && ${#part_pids[@]} -lt $at_once ]]; do
      name=${part_names[next]}
      printf '   begins: %s\n' "$name"
      part_began[$name]=$SECONDS
      # In a process group of its own, so that it can be ended as a whole.
      setsid bash -c "${part_commands[next]}" >"$BUILD/logs/$name.log" 2>&1 </dev/null &
      part_pids[$name]=$!
      next=$((next + 1))
    done
    status=0
    wait -n -p pid "${part_pids[@]}" || status=$?
    for name in "${!part_pids[@]}"; do
      [[ ${part_pids[$name]} == "$pid" ]] || continue
      unset "part_pids[$name]"
      part_ended "$name" "$status"
      [[ $status -eq 0 ]] || failed=$((failed + 1))
    done
  done
  trap - INT TERM
  printf '\n== %s\n' "$(clock $((SECONDS - began)))"
  for name in "${part_names[@]}"; do printf '%s\n' "${part_results[$name]}"; done
  if [[ $failed -gt 0 ]]; then printf 'run one again: make %s PART=NAME\n' "${PARTS_TARGET:-test}"; fi
  printf '%d passed, %d failed\n' $((${#part_names[@]} - failed)) "$failed"
  [[ $failed -eq 0 ]]
}
