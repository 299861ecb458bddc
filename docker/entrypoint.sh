#!/bin/sh
# Starts an IPFS node that keeps its blocks on Walrus. Follows the entrypoint of Kubo's own image
# (IPFS_PATH, IPFS_PROFILE, IPFS_SWARM_KEY[_FILE], /container-init.d); the arguments go to ipfs.
#
# The settings of walrusds come from the environment, WALRUSDS_ and the key in SNAKE_CASE:
# WALRUSDS_PUBLISHER_URL, WALRUSDS_AGGREGATOR_URL, WALRUSDS_POSTGRES_URL or WALRUSDS_INDEX_PATH, ...
# A secret may be kept in a file: WALRUSDS_POSTGRES_URL_FILE=/run/secrets/postgres_url.
#
# A new repo is initialized with them. In an existing one they replace the settings in its
# configuration, except for those that identify its data, and for another index: when these differ the
# node does not start (walrusds-configure -other-index, run once, takes another index).
set -e

user=${IPFS_USER:-ipfs}
repo=${IPFS_PATH:?IPFS_PATH is not set}
export IPFS_PATH

if [ "$(id -u)" -eq 0 ]; then
  echo "Changing user to $user"
  gosu "$user" test -w "$repo" || chown -R -- "$user" "$repo"
  # Reads a secret that only root may read, before the script drops its rights.
  if [ -n "${WALRUSDS_POSTGRES_URL_FILE:-}" ] && ! gosu "$user" test -r "$WALRUSDS_POSTGRES_URL_FILE"; then
    WALRUSDS_POSTGRES_URL=$(cat "$WALRUSDS_POSTGRES_URL_FILE")
    export WALRUSDS_POSTGRES_URL
    unset WALRUSDS_POSTGRES_URL_FILE
  fi
  exec gosu "$user" "$0" "$@"
fi

ipfs version

if [ -e "$repo/config" ]; then
  echo "Found IPFS fs-repo at $repo"
  walrusds-configure "$repo"
else
  case ",${IPFS_PROFILE:-}," in
    *,walrusds,*) profiles=$IPFS_PROFILE ;;
    *) profiles=${IPFS_PROFILE:+$IPFS_PROFILE,}walrusds ;;
  esac
  # The key comes before the repo: a start that cannot copy it must not leave a repo behind, which
  # the next start would run without the key, in the public network.
  swarm_key="$repo/swarm.key"
  if [ -n "${IPFS_SWARM_KEY:-}" ]; then
    echo "Copying swarm key from variable..."
    rm -f "$swarm_key"
    (umask 0377 && printf '%s\n' "$IPFS_SWARM_KEY" >"$swarm_key")
  fi
  if [ -n "${IPFS_SWARM_KEY_FILE:-}" ]; then
    echo "Copying swarm key from file..."
    install -m 0400 "$IPFS_SWARM_KEY_FILE" "$swarm_key"
  fi

  # An init that fails half-way (the database is not up yet) must not leave a repo behind that the
  # next start would take for a good one.
  if ! ipfs init --profile="$profiles"; then
    rm -f "$repo/config" "$repo/datastore_spec"
    exit 1
  fi
  ipfs config Addresses.API /ip4/0.0.0.0/tcp/5001
  ipfs config Addresses.Gateway /ip4/0.0.0.0/tcp/8080
fi
unset IPFS_SWARM_KEY IPFS_SWARM_KEY_FILE

# The configuration holds the settings now; the daemon's environment need not.
for name in $(env | sed -n 's/^\(WALRUSDS_[A-Z0-9_]*\)=.*/\1/p'); do
  unset "$name"
done

for script in /container-init.d/*.sh; do
  [ -f "$script" ] || continue
  echo "Running $script"
  if [ -x "$script" ]; then "$script"; else (. "$script"); fi
done

exec ipfs "$@"
