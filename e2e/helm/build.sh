#!/usr/bin/env bash
# Builds helm from its Go module into target/tools/bin, unless it is there in this version.
set -euo pipefail
. "$(dirname "$0")/../again.sh"
top=$(realpath "$(dirname "$0")/../..")
out=$top/target/tools/bin
version=v4.3.1

[ "$(cat "$out/helm.version" 2>/dev/null)" = "$version" ] && exit 0
command -v go >/dev/null || { echo "go is not installed: helm is built from its Go module (Go 1.26 or later)" >&2; exit 1; }
echo "building helm from its Go module (about 4 minutes the first time)"
mkdir -p "$out"
export CGO_ENABLED=0 GOFLAGS=-buildvcs=false GOBIN=$out
again go install -trimpath -ldflags "-s -w -X helm.sh/helm/v4/internal/version.version=$version" "helm.sh/helm/v4/cmd/helm@$version"
echo "$version" >"$out/helm.version"
