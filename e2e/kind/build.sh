#!/usr/bin/env bash
# Builds the programs of a kind cluster from their Go modules into target/kind/bin, unless what is there was built from the
# same inputs: kind itself, and for the node image Kubernetes, containerd, the CNI plugins, CoreDNS and a sandbox process.
# etcd, kube-apiserver, kube-controller-manager, kubectl and kube-proxy are those of e2e/kube/build.sh.
set -euo pipefail
cd "$(dirname "$0")"
. ../again.sh
top=$(git rev-parse --show-toplevel 2>/dev/null || realpath ../..)
out=$top/target/kind/bin

kubernetes=v1.36.3
kind=v0.33.0
containerd=2.3.7
plugins=v1.9.1

# Of other versions than those that this builds, `KUBEBUILDER_ASSETS` would be no part of one cluster.
env -u KUBEBUILDER_ASSETS ../kube/build.sh

stamp=$(cat build.sh coredns/* pause/* ../kube/kubernetes/go.* ../kube/kubernetes/kube-node/* | sha256sum | cut -d' ' -f1)
[ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ] && exit 0

started=$SECONDS
said() { echo "$1 built after $((SECONDS - started)) s"; }
echo "building kind and what its nodes run from their Go modules (about 10 minutes the first time)"
mkdir -p "$out"
export CGO_ENABLED=0 GOFLAGS=-buildvcs=false GOBIN=$out

flags='-s -w'
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
	flags="$flags -X $package.gitVersion=$kubernetes -X $package.gitMajor=1 -X $package.gitMinor=36 -X $package.gitTreeState=clean"
done
(cd ../kube/kubernetes && again go build -trimpath -ldflags "$flags" -o "$out/kube-node" ./kube-node)
said 'kubelet, kubeadm and kube-scheduler'

again go install -trimpath -ldflags '-s -w' "sigs.k8s.io/kind@$kind"
said kind

# File systems that need C libraries or are not used leave the build.
for program in containerd ctr containerd-shim-runc-v2; do
	again go install -trimpath -tags 'no_aufs no_btrfs no_devmapper no_zfs' \
		-ldflags "-s -w -X github.com/containerd/containerd/v2/version.Version=$containerd" \
		"github.com/containerd/containerd/v2/cmd/$program@v$containerd"
done
said containerd

for plugin in ipam/host-local main/loopback main/ptp meta/portmap; do
	again go install -trimpath -ldflags '-s -w' "github.com/containernetworking/plugins/plugins/$plugin@$plugins"
done
said 'CNI plugins'

(cd coredns && again go build -trimpath -ldflags '-s -w' -o "$out/coredns" .)
(cd pause && again go build -trimpath -ldflags '-s -w' -o "$out/pause" .)
said 'CoreDNS and the sandbox process'
echo "$stamp" >"$out/stamp"
