#!/usr/bin/env bash
# Usage: ./set-target.sh vX.Y.Z | /path/to/kubo | /path/to/ipfs
#
# Prepares building the plugin for one particular Kubo. Writes build/target-<name>/{go.mod,go.sum,
# target.env} and prints that directory; the committed go.mod is never touched.
#
# A Go plugin loads only into a program that was built from the very same packages. Kubo's own
# go.mod and go.sum are therefore taken as they are, with nothing added but this project. And it
# matters how that ipfs was built, as the hash of a package holds the version of its module:
#
#   mode main   ipfs was built inside Kubo's sources (make build, the Docker image, a distribution):
#               the plugin is built inside the same sources
#   mode dep    ipfs was built with Kubo as a dependency (the releases of dist.ipfs.tech,
#               go install): the plugin is built here, with Kubo as a dependency
#
#   vX.Y.Z      mode dep, unless MODE=main is set
#   directory   mode main
#   ipfs        what `go version -m` says about it: version, mode, Go release, build tags
#
# Environment: KUBO_SRC (the checkout that ipfs was built from, if it is not a published version),
# KUBO_GO (Go toolchain, e.g. go1.22.7 or local), KUBO_CGO_LDFLAGS (the CGO_LDFLAGS that ipfs was
# built with, as some distributions set it; known by itself unless built with -trimpath), MODE, OUT
# (where to write).
source "$(dirname "${BASH_SOURCE[0]}")/scripts/common.sh"

target=${1:-}
[[ -n $target ]] || { sed -n '2,/^source/{/^source/!s/^# \{0,1\}//p;}' "$0"; exit 2; }

toolchain='' tags='' ldflags=${KUBO_CGO_LDFLAGS:-} trim=-trimpath mode=${MODE:-} src=${KUBO_SRC:-} version='' bin=''

if [[ -d $target ]]; then
  [[ -f $target/go.mod ]] && grep -q "^module $KUBO\$" "$target/go.mod" || die "$target is not a checkout of Kubo"
  src=$(cd "$target" && pwd) mode=main
elif [[ -f $target ]]; then
  bin=$(realpath "$target")
  info=$(ipfs_info "$bin")
  grep -q 'CGO_ENABLED=1' <<<"$info" || die "$bin was built without cgo and cannot load any plugin: use a build with cgo, or preload walrusds (make kubo)"
  ! grep -q $'^\tdep\t'"$SHIM"$'\t' <<<"$info" || die "$bin has walrusds built in already: it needs no plugin"
  toolchain=$(sed -n '1s/.*: \(go[0-9][0-9a-z.]*\).*/\1/p' <<<"$info")
  [[ -n $toolchain ]] || die "$bin was built with an unreleased Go ($(head -1 <<<"$info" | sed 's/.*: //')): no plugin can be built for it"
  tags=$(sed -n 's/^\tbuild\t-tags=//p' <<<"$info")
  grep -q $'^\tbuild\t-trimpath=true' <<<"$info" || trim=
  [[ -n $ldflags ]] || ldflags=$(sed -n 's/^\tbuild\tCGO_LDFLAGS=//p' <<<"$info")
  ! grep -q $'^\tbuild\t-race=true' <<<"$info" || die "$bin was built with -race: no plugin is built for that"
  line=$(awk -F'\t' -v p="$KUBO" '($2 == "mod" || $2 == "dep") && $3 == p { print; getline next_line; if (next_line ~ /^\t=>\t/) print "replaced"; exit }' <<<"$info")
  [[ -n $line ]] || die "$bin is not Kubo"
  ! grep -q '^replaced' <<<"$line" || die "$bin was built with a replaced Kubo: set-target.sh cannot tell with which sources"
  if [[ $line == *$'\t'h1:* ]]; then # only what comes from the module proxy has a sum
    mode=dep version=$(cut -f4 <<<"$line")
  else
    mode=main
    if [[ -z $src ]]; then
      version=v$(ipfs_version "$bin")
      [[ $version =~ ^v[0-9]+\.[0-9]+\.[0-9]+(-rc[0-9]+)?$ ]] ||
        die "$bin was built from a checkout that is no published version (${version#v}): set KUBO_SRC=/path/to/that/checkout"
    fi
  fi
elif [[ $target == v[0-9]* ]]; then
  version=$target mode=${mode:-dep}
else
  die "$target is neither a version (vX.Y.Z) nor a Kubo checkout nor an ipfs program"
fi

if [[ $mode == main ]]; then
  [[ -n $src ]] || src=$(kubo_source "$version")
  kubo_dir=$src
else
  download=$(kubo_download "$version")
  kubo_dir=$(json_field Dir <<<"$download")
  version=$(json_field Version <<<"$download")
fi
[[ -n $toolchain ]] || toolchain=$(kubo_toolchain "$kubo_dir")
[[ $toolchain != "$(cd / && GOTOOLCHAIN=local "$GO" env GOVERSION)" ]] || toolchain=local

name=${version:-$(basename "$src")-$(printf '%s' "$src" | cksum | cut -d' ' -f1)}
out=${OUT:-$BUILD/target-$name-$mode-$toolchain${tags:+-$(tr -c 'a-zA-Z0-9\n' _ <<<"$tags")}${trim:--}}
out=${out%-trimpath}
mkdir -p "$out"
cp "$kubo_dir/go.mod" "$kubo_dir/go.sum" "$out/"
chmod u+w "$out"/go.*
export GOTOOLCHAIN=local # `go mod edit` only edits
if [[ $mode == main ]]; then
  "$GO" mod edit -require="$SHIM@v0.0.0" -replace="$SHIM@v0.0.0=$ROOT/go-shim" "$out/go.mod"
  cd_dir=$kubo_dir main=$SHIM/plugin/main
else
  "$GO" mod edit -module="$SHIM" -require="$KUBO@$version" "$out/go.mod"
  {
    printf '%s %s %s\n' "$KUBO" "$version" "$(json_field Sum <<<"$download")"
    printf '%s %s/go.mod %s\n' "$KUBO" "$version" "$(json_field GoModSum <<<"$download")"
  } >>"$out/go.sum"
  cd_dir=$ROOT/go-shim main=./plugin/main
fi
{
  printf 'MODE=%q\n' "$mode"
  printf 'TARGET=%q\n' "$name"
  printf 'IPFS_BIN=%q\n' "$bin"
  printf 'CD_DIR=%q\n' "$cd_dir"
  printf 'MAIN=%q\n' "$main"
  printf 'TOOLCHAIN=%q\n' "$toolchain"
  printf 'TAGS=%q\n' "$tags"
  printf 'TRIM=%q\n' "$trim"
  printf 'CGO_LDFLAGS_OF_IPFS=%q\n' "$ldflags"
} >"$out/target.env"
say "target: Kubo $name, mode $mode, Go ${toolchain}${tags:+, tags $tags}"
printf '%s\n' "$out"
