#!/usr/bin/env bash
# Installs the packages that the lab and the tests need, where apt does it; elsewhere says what is missing.
set -euo pipefail

# program:package
needs='ip:iproute2 nft:nftables iptables:iptables faketime:faketime ping:iputils-ping bird:bird vtysh:frr qemu-system-x86_64:qemu-system-x86 mmdebstrap:mmdebstrap mke2fs:e2fsprogs
depmod:kmod unshare:util-linux cc:build-essential git:git sysctl:procps'
# What `make kind-e2e` needs besides.
KIND=${KIND:-0}
[ "$KIND" = 0 ] || needs="$needs podman:podman netavark:netavark aardvark-dns:aardvark-dns runc:runc conmon:conmon iptables:iptables"

PATH=$PATH:/usr/sbin:/sbin:/usr/lib/frr:/usr/lib/podman
missing=() packages=()
for need in $needs; do
	command -v "${need%%:*}" >/dev/null || { missing+=("${need%%:*}"); packages+=("${need##*:}"); }
done

# The virtual machine is made of Debian packages, whose signatures other distributions cannot check by themselves.
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || { missing+=(debian-archive-keyring.gpg); packages+=(debian-archive-keyring); }

if [ ${#missing[@]} -gt 0 ]; then
	if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
		echo "missing programs: ${missing[*]}" >&2
		echo "on Debian or Ubuntu run 'make deps' as root; elsewhere install what Debian calls: ${packages[*]}" >&2
		exit 1
	fi
	echo "installing: ${packages[*]}"
	export DEBIAN_FRONTEND=noninteractive
	# The tests start BIRD and FRR themselves, in namespaces of their own; the packages must not start any on this machine.
	policy=/usr/sbin/policy-rc.d
	if [ ! -e $policy ]; then
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod 755 $policy
		trap 'rm -f '$policy EXIT
	fi
	apt-get -o Acquire::Retries=3 update -qq
	apt-get -o Acquire::Retries=3 install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

# kind mounts it into its nodes, also where the kernel has no modules.
[ "$KIND" = 0 ] || mkdir -p /lib/modules

lacking=()
command -v cargo >/dev/null || lacking+=("cargo (rustup, https://rustup.rs; the toolchain is pinned in rust-toolchain.toml)")
command -v go >/dev/null || [ -n "${KUBEBUILDER_ASSETS:-}" ] || lacking+=("go 1.26 or later (builds etcd and kube-apiserver), or KUBEBUILDER_ASSETS with ready binaries")
if [ ${#lacking[@]} -gt 0 ]; then
	printf 'missing: %s\n' "${lacking[@]}" >&2
	exit 1
fi
