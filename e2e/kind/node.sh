#!/usr/bin/env bash
# Makes the node image of a kind cluster from Debian's packages and what build.sh built, unless it is there; prints its name.
set -euo pipefail
cd "$(dirname "$0")"
. ./env.sh
image=localhost/calico-vni/kind-node
version=$(sed -n 's/^kubernetes=//p' build.sh)
hash=$(cat node.sh $(find node -type f | sort) "$kind/bin/stamp" | sha256sum | cut -c1-12)

echo "$image:$hash" >"$kind/node-image"
podman image exists "$image:$hash" && exit 0
started=$SECONDS
echo "making the node image (about 2 minutes)"

../../deploy/images/base.sh docker.io/library/debian:bookworm-slim bookworm --variant=minbase --include=ca-certificates

context=$kind/node
rm -rf "$context"
mkdir -p "$context"
bin=$context/programs/usr/bin
local=$context/programs/usr/local/bin
mkdir -p "$bin" "$local" "$context/programs/opt/cni/bin" "$context/programs/kind"
install "$kind/bin/kube-node" "$bin/"
install "$top/target/kube/kube" "$bin/"
for name in kubelet kubeadm; do ln -s kube-node "$bin/$name"; done
ln -s kube "$bin/kubectl"
install "$kind"/bin/{containerd,ctr,containerd-shim-runc-v2} "$local/"
install "$kind"/bin/{host-local,loopback,ptp,portmap} "$context/programs/opt/cni/bin/"
echo "$version" >"$context/programs/kind/version"
cp -r node/root "$context/"

# One folder for each component, as components.Dockerfile takes them.
components=$kind/components
rm -rf "$components"
place() { # COMPONENT, FOLDER, PROGRAM, NAME...
	mkdir -p "$components/$1/tmp" "$components/$1$2"
	install "$3" "$components/$1$2/"
	for name in "${@:4}"; do ln -s "$(basename "$3")" "$components/$1$2/$name"; done
}
place kube /usr/local/bin "$top/target/kube/kube" kube-apiserver kube-controller-manager
place kube-scheduler /usr/local/bin "$kind/bin/kube-node" kube-scheduler
place kube-proxy /usr/local/bin "$top/target/kube/kube-proxy"
place etcd /usr/local/bin "$top/target/kube/etcd"
place coredns / "$kind/bin/coredns"
place pause / "$kind/bin/pause"

mapfile -t names < <("$bin/kubeadm" config images list --kubernetes-version "$version")
for name in "${names[@]}"; do
	component=${name##*/}
	component=${component%%:*}
	podman build --quiet --network=host --target "$component" -f node/components.Dockerfile -t "$name" "$components" >/dev/null
	[ "$component" != pause ] || sed -i "s/@PAUSE@/${name##*:}/" "$context/root/etc/containerd/config.toml"
done
podman save --quiet --multi-image-archive -o "$context/images.tar" "${names[@]}"
podman build --quiet --network=host -f node/Dockerfile -t "$image:$hash" "$context" >/dev/null
# All of it is in the image now.
podman rmi --force "${names[@]}" >/dev/null
rm -rf "$context" "$components"
echo "node image made after $((SECONDS - started)) s"
