#!/usr/bin/env bash
# shellcheck disable=SC2154
# The ipfs that Kubo's own tests find. scripts/kubo-own.sh puts settings in front of it: mode, ipfs
# (the program), walrus (its URL), postgres (a URL, or empty), inits (the file that counts the repos
# made). Each `ipfs init` gets the profile walrusds as well. Everything else goes to the program as
# it is.

if [[ $mode != walrusds || ${1:-} != init ]]; then
  exec "$ipfs" "$@"
fi
profiles=walrusds args=()
for arg in "$@"; do
  case $arg in
    --profile=*) profiles=${arg#*=},walrusds ;;
    *) args+=("$arg") ;;
  esac
done
export WALRUSDS_PUBLISHER_URL=$walrus WALRUSDS_AGGREGATOR_URL=$walrus
# With the journal, and what a command leaves in it travels with a later one: the tests expect the
# pace of a local disk.
export WALRUSDS_JOURNAL_PATH=journal WALRUSDS_DRAIN_TIMEOUT_SECONDS=0
if [[ -n $postgres ]]; then
  export WALRUSDS_POSTGRES_URL=$postgres
  WALRUSDS_TABLE=t$(printf '%s' "${IPFS_PATH:-$HOME}" | sha256sum | cut -c1-16)
  export WALRUSDS_TABLE
fi
echo "$profiles" >>"$inits"
exec "$ipfs" "${args[@]}" "--profile=$profiles"
