#!/usr/bin/env bash
# Builds etcd, the multi-call binary of kube-apiserver, kube-controller-manager and kubectl, and kube-proxy from their Go
# modules into target/kube, unless what is there was built from the same inputs. KUBEBUILDER_ASSETS names ready ones instead.
set -euo pipefail
cd "$(dirname "$0")"
. ../again.sh
top=$(git rev-parse --show-toplevel 2>/dev/null || realpath ../..)
out=$top/target/kube
version=v1.36.3

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
	for program in etcd kube-apiserver kube-controller-manager kubectl kube-proxy; do
		[ -x "$KUBEBUILDER_ASSETS/$program" ] || {
			echo "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS: there is no $program in it; add it, or unset the variable to have all built" >&2
			exit 1
		}
	done
	exit 0
fi

stamp=$(cat build.sh etcd/* kubernetes/*.* kubernetes/*/* | sha256sum | cut -d' ' -f1)
[ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ] && exit 0
command -v go >/dev/null || { echo "go is not installed: etcd and kube-apiserver are built from their Go modules (Go 1.26 or later)" >&2; exit 1; }

started=$SECONDS
echo "building etcd and kube-apiserver from their Go modules (about 7 minutes the first time)"
mkdir -p "$out"
export CGO_ENABLED=0 GOFLAGS=-buildvcs=false
(cd etcd && again go build -trimpath -ldflags '-s -w' -o "$out/etcd" .)
echo "etcd built after $((SECONDS - started)) s"
# kubectl refuses an API server whose version is not set.
flags='-s -w'
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
	flags="$flags -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=36 -X $package.gitTreeState=clean"
done
(cd kubernetes && again go build -trimpath -ldflags "$flags" -o "$out/kube" .)
for program in kube-apiserver kube-controller-manager kubectl; do ln -sf kube "$out/$program"; done
(cd kubernetes && again go build -trimpath -ldflags "$flags" -o "$out/kube-proxy" ./kube-proxy)
echo "$stamp" >"$out/stamp"
echo "kube-apiserver, kube-controller-manager, kubectl and kube-proxy built after $((SECONDS - started)) s"
