#!/usr/bin/env bash
# Usage: scripts/plugin-install.sh [--dynamic] [--so FILE] [vX.Y.Z | /path/to/kubo]
#
# Builds the plugin for the ipfs that will load it and installs it into $IPFS_PATH/plugins
# (~/.ipfs/plugins). Before anything is installed that ipfs is started once with the plugin, in a
# throw-away repo: a plugin that does not load makes every ipfs command fail.
#
# The argument is only needed to overrule the version that the ipfs program reports.
#
# Environment: IPFS (the ipfs program; default: the one in PATH), IPFS_PATH, and those of
# plugin-build.sh.
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dynamic='' so='' target=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --dynamic) dynamic=1 ;;
    --so) so=${2:?--so needs a file}; shift ;;
    -*) die "unknown option $1" ;;
    *) target=$1 ;;
  esac
  shift
done
ipfs=${IPFS:-$(command -v ipfs || true)}
[[ -n $ipfs && -x $ipfs ]] || die "no ipfs program found: name the one that will load the plugin, IPFS=/path/to/ipfs"
ipfs=$(realpath "$ipfs")
repo=${IPFS_PATH:-$HOME/.ipfs}
unset IPFS_PATH

refuse() {
  say "not installed: $1"
  if [[ -n ${2:-} ]]; then say "what ipfs said:"; sed 's/^/  | /' <<<"$2" | head -8 >&2; fi
  exit 1
}

info=$(ipfs_info "$ipfs")
grep -q 'CGO_ENABLED=1' <<<"$info" || refuse "$ipfs was built without cgo and cannot load any plugin; use a build with cgo, or one with walrusds built in (make kubo)"
! grep -q $'^\tdep\t'"$SHIM"$'\t' <<<"$info" || refuse "$ipfs has walrusds built in already; it needs no plugin, and a second one would stop it"

if [[ -z $so ]]; then
  so=$("$ROOT/scripts/plugin-build.sh" ${dynamic:+--dynamic} "${target:-$ipfs}")
fi
[[ -f $so ]] || die "no such plugin: $so"

# The trial: the same layout, the other plugins of the repo too, no configuration.
trial=$(mktemp -d)
trap 'rm -rf "$trial"' EXIT
mkdir -p "$trial/repo/plugins" "$trial/repo/lib"
for other in "$repo"/plugins/*; do
  [[ -f $other && -x $other && $(basename "$other") != walrusds.so ]] && ln -s "$(realpath "$other")" "$trial/repo/plugins/"
done
install -m755 "$so" "$trial/repo/plugins/walrusds.so"
if [[ -n $dynamic ]]; then
  lib=$trial/repo/lib/libwalrusds.so
  install -m644 "$LIB_DIR/libwalrusds.so" "$lib"
  strip --strip-debug "$lib" 2>/dev/null || true # most of its size
fi
# Without any setting the profile must refuse, with its own message: this shows that the plugin
# runs.
clean=(env)
while read -r name; do clean+=(-u "$name"); done < <(compgen -e | grep '^WALRUSDS_' || true)
rc=0
said=$("${clean[@]}" IPFS_PATH="$trial/repo" GOTRACEBACK=none timeout 60 "$ipfs" init --profile=walrusds 2>&1) || rc=$?
if ! grep -q 'WALRUSDS_PUBLISHER_URL' <<<"$said"; then
  go_of() { GOTOOLCHAIN=local "$GO" version "$1" 2>/dev/null | sed 's/.*: //'; }
  # A different Go release shows in many ways, a crash among them.
  if [[ -n $(go_of "$so") && $(go_of "$ipfs") != "$(go_of "$so")" ]]; then
    refuse "$ipfs was built with $(go_of "$ipfs"), the plugin with $(go_of "$so"): both must be the same" "$said"
  fi
  case $said in
    *"is duplicated in version"* | *"plugin already loaded"*)
      refuse "another copy of the plugin is loaded already: it is built into $ipfs, or lies in $repo/plugins under another name (the Go plugin has the same name; remove it)" "$said" ;;
    *"different version of package"* | *lastmoduleinit*)
      refuse "the plugin was built for another Kubo than $ipfs ($(ipfs_version "$ipfs")), or for one built in another way; leave out the version, so that it is taken from the program" "$said" ;;
    *"not built with cgo"*)
      refuse "$ipfs was built without cgo and cannot load any plugin" "$said" ;;
    *GLIBC_*)
      refuse "the plugin needs a newer C library than this machine has; build it here" "$said" ;;
    *"cannot open shared object file"*)
      refuse "a library is missing" "$said" ;;
    *"invalid configuration profile"* | *non-executable*)
      refuse "$ipfs ignored the plugin" "$said" ;;
  esac
  [[ $rc -ne 124 ]] || refuse "$ipfs did not answer within a minute" "$said"
  refuse "$ipfs could not start with the plugin" "$said"
fi

put() { # MODE FROM TO: never a half-written file under its final name
  mkdir -p "$(dirname "$3")"
  install -m"$1" "$2" "$3.new.$$" && mv -f "$3.new.$$" "$3"
}
if [[ -n $dynamic ]]; then put 644 "$lib" "$repo/lib/libwalrusds.so"; fi
# A temporary file in plugins/ would be loaded by an ipfs that starts right now, so it is made
# beside.
mkdir -p "$repo/plugins"
install -m755 "$so" "$repo/.walrusds.so.$$" && mv -f "$repo/.walrusds.so.$$" "$repo/plugins/walrusds.so"
say "installed $repo/plugins/walrusds.so for $ipfs ($(ipfs_info "$ipfs" | sed -n '1s/.*: //p'), Kubo $(ipfs_version "$ipfs"))"
[[ -f $repo/config ]] || say "next: WALRUSDS_PUBLISHER_URL=... WALRUSDS_AGGREGATOR_URL=... $(basename "$ipfs") init --profile=walrusds"
