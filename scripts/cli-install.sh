#!/usr/bin/env bash
# Usage: scripts/cli-install.sh        (make install-cli)
#
# Copies the operator's command, which is built, with its manual pages and completions; and, where
# Go is at hand, walrusds-kubo-datastore, which import needs for datastores of Kubo other than flatfs.
# Environment: PREFIX (default: ~/.local), LIB_DIR (the directory with the program).
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
program=$LIB_DIR/walrusds
[[ -x $program ]] || die "$program is missing: run 'make cli' first"
prefix=${PREFIX:-$HOME/.local}
share=$prefix/share
pages=$share/man/man1 bash=$share/bash-completion/completions zsh=$share/zsh/site-functions
fish=$share/fish/vendor_completions.d
mkdir -p "$prefix/bin" "$pages" "$bash" "$zsh" "$fish"
install -m 755 "$program" "$prefix/bin/walrusds"
"$program" man --dir "$pages"
"$program" completions bash >"$bash/walrusds"
"$program" completions zsh >"$zsh/_walrusds"
"$program" completions fish >"$fish/walrusds.fish"
echo "$prefix/bin/walrusds"
if command -v "$GO" >/dev/null && reader=$("$ROOT/scripts/kubo-datastore.sh" build); then
  install -m 755 "$reader" "$prefix/bin/walrusds-kubo-datastore"
  echo "$prefix/bin/walrusds-kubo-datastore"
else
  echo "note: without walrusds-kubo-datastore (make kubo-datastore, which needs Go), walrusds import reads no badger, pebble or leveldb"
fi
case :$PATH: in
  *:"$prefix/bin":*) ;;
  *) echo "note: $prefix/bin is not in PATH" ;;
esac
