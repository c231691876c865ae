#!/usr/bin/env bash
# Makes the two images of what this workspace builds: calico-vni-controller and calico-vni-router.
#
#   deploy/images/build.sh [dev|release]     the profile; release where none is given
#
# IMAGE_TOOL      docker, podman or buildah; the first of them that works, where it is not set
# IMAGE_PREFIX    what the names begin with: ghcr.io/calico-vni/
# IMAGE_TAG       the workspace's version
# DEBIAN_MIRROR   for base images that no registry gives, see base.sh
set -euo pipefail
cd "$(dirname "$0")"
top=$(realpath ../..)
profile=${1:-release}
prefix=${IMAGE_PREFIX-ghcr.io/calico-vni/}
tag=${IMAGE_TAG:-$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$top/Cargo.toml")}
target=${CARGO_TARGET_DIR:-$top/target}

works() {
	case $1 in
	# The client alone is no engine.
	docker) docker info >/dev/null 2>&1 ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

tool=${IMAGE_TOOL:-}
for candidate in docker podman buildah; do
	[ -z "$tool" ] && works "$candidate" && tool=$candidate
done
[ -n "$tool" ] || { echo "images: none of docker (with an engine that answers), podman and buildah is here" >&2; exit 1; }
export IMAGE_TOOL=$tool
echo "images: by $tool, profile $profile, tag $tag"

# Packages are fetched as this machine fetches them.
options=(--quiet --network=host)
# podman and buildah raise limits, which takes CAP_SYS_RESOURCE (bit 24).
capabilities=$(sed -n 's/^CapEff:\t/0x/p' /proc/self/status)
if [ "$tool" != docker ] && ! ((capabilities >> 24 & 1)); then
	options+=(--ulimit "nofile=$(ulimit -Hn):$(ulimit -Hn)" --ulimit nproc=32768:32768)
fi

build() { # NAME
	local context=$target/images/$1
	rm -rf "$context"
	mkdir -p "$context"
	strip -o "$context/$1" "$target/${profile/dev/debug}/$1"
	"$tool" build "${options[@]}" -f "${1#calico-vni-}.Dockerfile" -t "$prefix$1:$tag" "$context" >/dev/null
	echo "images: $prefix$1:$tag"
}

first() { sed -n 's/^ARG BASE=//p' "$1.Dockerfile"; }

(cd "$top" && "${CARGO:-cargo}" build --quiet --profile "$profile" --bin calico-vni-controller --bin calico-vni-router)
./base.sh "$(first controller)" trixie --variant=extract --include=base-files,libc6,libgcc-s1
./base.sh "$(first router)" trixie --variant=minbase --include=ca-certificates
build calico-vni-controller
build calico-vni-router
