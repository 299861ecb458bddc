#!/usr/bin/env bash
# Usage: scripts/public-api.sh
#
# Compares the engine's public Rust API with its committed listing, docs/public-api.txt, and fails
# if they differ. UPDATE=1 writes the listing. rustdoc's JSON has another format in other Rust
# releases: there it says "skipped".
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
CARGO=${CARGO:-cargo} listing=docs/public-api.txt wanted=57
export CARGO_TARGET_DIR=$BUILD/public-api
# The JSON is the only thing here that is not stable.
RUSTC_BOOTSTRAP=1 "$CARGO" rustdoc --locked --quiet --lib -p walrusds -- -Z unstable-options --output-format json
json=$CARGO_TARGET_DIR/doc/walrusds.json
format=$(grep -o '"format_version":[0-9]*' "$json" | tail -1)
if [[ $format != "\"format_version\":$wanted" ]]; then
  say "skipped: public API (rustdoc's JSON is in format ${format##*:}, the tool reads $wanted)"
  exit 0
fi
# What async_trait makes of `async fn`, as it was written.
plain=(
  -e "s/core::pin::Pin<alloc::boxed::Box<(dyn core::future::future::Future<Output = \(.*\)> + core::marker::Send + 'async_trait)>>/\1/"
  -e "/'async_trait/ { s/ where Self: .*//; s/pub fn /pub async fn /; s/<\('life[0-9]*, \)*'async_trait>//; s/'life[0-9]* //g }"
)
"$CARGO" run --locked --quiet -p public-api-listing -- "$json" | sed "${plain[@]}" >"$CARGO_TARGET_DIR/listing"
if [[ -n ${UPDATE:-} ]]; then cp "$CARGO_TARGET_DIR/listing" "$listing"; fi
diff -u "$listing" "$CARGO_TARGET_DIR/listing" >&2 || die "the public API is not what $listing says: UPDATE=1 $0 writes it"
