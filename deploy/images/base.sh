#!/usr/bin/env bash
# Sees to it that a Debian image is here under its registry's name: there already, pulled, or, where no registry gives it, made
# by mmdebstrap from the packages that it consists of. So the Dockerfiles that begin with it are the same everywhere.
#
#   deploy/images/base.sh NAME SUITE [MMDEBSTRAP OPTION...]
#
# IMAGE_TOOL      docker, podman or buildah
# DEBIAN_MIRROR   where packages come from
set -euo pipefail
name=$1
suite=$2
shift 2
tool=${IMAGE_TOOL:?}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

case $tool in
docker) docker image inspect "$name" >/dev/null 2>&1 && exit 0 ;;
podman) podman image exists "$name" && exit 0 ;;
buildah) buildah inspect --type image "$name" >/dev/null 2>&1 && exit 0 ;;
esac

# A machine without a way to the registry may get no answer at all.
if timeout 60 "$tool" pull "$name" >/dev/null 2>&1; then
	echo "images: $name pulled"
	exit 0
fi

echo "images: $name cannot be pulled; it is made of Debian's packages"
command -v mmdebstrap >/dev/null || { echo "images: mmdebstrap is not installed" >&2; exit 1; }
archive=$(mktemp --suffix=.tar)
trap 'rm -f "$archive"' EXIT
mmdebstrap --quiet --aptopt='APT::Install-Recommends "0"' --aptopt='Acquire::Retries "3"' \
	--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
	"$@" "$suite" "$archive" "$mirror"
case $tool in
docker) docker import "$archive" "$name" >/dev/null ;;
podman) podman import --quiet "$archive" "$name" >/dev/null ;;
buildah)
	container=$(buildah from scratch)
	buildah add -q "$container" "$archive" / >/dev/null
	buildah commit -q "$container" "$name" >/dev/null
	buildah rm "$container" >/dev/null
	;;
esac
