#!/usr/bin/env bash
# Builds controller and agent of the version before this one from this repository's history into target/previous, unless they
# are there: what the lab upgrades from and goes back to. Its manifests are left in target/previous/source.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$PWD/target/previous

# What 0.2.0 was when 0.3.0 began.
commit=248a0fdfd9594d576dc9bcc5efd3cecd9acd42ee

[ "$(cat "$out/stamp" 2>/dev/null)" = "$commit" ] && exit 0
git cat-file -e "$commit^{commit}" 2>/dev/null || {
	echo "the version before this one, $commit, is not in this clone's history: git fetch --unshallow" >&2
	exit 1
}

started=$SECONDS
echo "building the version before this one (about 6 minutes)"
rm -rf "$out"
mkdir -p "$out/source" "$out/programs"
git archive "$commit" | tar -x -C "$out/source"
programs=(calico-vni-controller calico-vni-router)
(cd "$out/source" && CARGO_TARGET_DIR=$out/build "${CARGO:-cargo}" build --quiet --locked "${programs[@]/#/--bin=}")
for program in "${programs[@]}"; do install "$out/build/debug/$program" "$out/programs/"; done
# Nobody builds it a second time.
rm -rf "$out/build"
echo "$commit" >"$out/stamp"
echo "the version before this one built after $((SECONDS - started)) s"
