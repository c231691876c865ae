#!/bin/sh
# Builds what the lab's virtual machine boots: OUT/vmlinuz, OUT/initrd.gz and OUT/root.ext4; OUT/glibc says which C
# library that has.
#
#   image.sh OUT [SUITE [MIRROR]]
#
# Everything comes from one Debian suite, whatever the machine itself runs, so that the lab is the same everywhere.
# The script calls itself again as mmdebstrap's hook, where the new root is complete and apt is set up for its suite.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

# What the root file system is made of: the node's daemons and what a person wants when looking for a fault.
packages=frr,bird,mount,iproute2,nftables,iptables,faketime,kmod,iputils-ping,procps,tcpdump,busybox-static,less

# The initramfs needs these to reach the root file system.
boot_modules='virtio_pci virtio_blk ext4'

# Parts of the kernel's module tree that the nodes can use. The rest is drivers for hardware that is not there.
module_trees='arch crypto lib fs/ext4 fs/jbd2 fs/mbcache.ko fs/overlayfs drivers/block/virtio_blk.ko drivers/virtio
drivers/net/*.ko drivers/net/vxlan net/802 net/8021q net/bridge net/core net/ipv4 net/ipv6 net/llc net/mpls net/netfilter
net/sched modules.builtin modules.builtin.modinfo modules.order'

kernel() { # ROOT
	deb=$(mktemp -d)
	(
		cd "$deb"
		APT_CONFIG=$MMDEBSTRAP_APT_CONFIG
		export APT_CONFIG
		# linux-image-amd64 is empty; what it depends on holds the kernel. It is unpacked, not installed: its scripts
		# would build an initramfs that nobody boots.
		package=$(apt-cache depends --important linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9]\)/\1/p')
		apt-get -qq -o APT::Sandbox::User=root download "$package"
		dpkg-deb --fsys-tarfile ./*.deb | tar -x ./boot ./lib/modules
	)
	version=$(basename "$deb"/lib/modules/*)
	from=$deb/lib/modules/$version
	to=$1/usr/lib/modules/$version
	mkdir -p "$to/kernel"
	for tree in $module_trees; do
		case $tree in
		modules.*) cp "$from/$tree" "$to/" ;;
		*) (cd "$from/kernel" && for f in $tree; do
			mkdir -p "$to/kernel/$(dirname "$f")" && cp -r "$f" "$to/kernel/$f"
		done) ;;
		esac
	done
	depmod -b "$1/usr" "$version" 2>/dev/null || depmod -b "$1" "$version"
	cp "$deb/boot/vmlinuz-$version" "$OUT/vmlinuz"
	rm -rf "$deb"
}

initramfs() { # ROOT
	tree=$(mktemp -d)
	mkdir -p "$tree/bin" "$tree/dev" "$tree/proc" "$tree/sys" "$tree/root" "$tree/modules"
	cp "$1/bin/busybox" "$tree/bin/busybox"
	cp "$here/initramfs-init" "$tree/init"
	chmod 755 "$tree/init"
	version=$(basename "$1"/usr/lib/modules/*)
	: >"$tree/modules/order"
	for module in $boot_modules; do
		modprobe -d "$1" -S "$version" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
	done | while read -r file; do
		name=$(basename "$file")
		grep -qx "$name" "$tree/modules/order" && continue
		cp "$file" "$tree/modules/$name"
		echo "$name" >>"$tree/modules/order"
	done
	(cd "$tree" && find . | "$1/bin/busybox" cpio -o -H newc 2>/dev/null) | gzip -1 >"$OUT/initrd.gz"
	rm -rf "$tree"
}

if [ "${1-}" = --hook ]; then
	root=$2
	echo 'image: kernel and modules'
	kernel "$root"
	echo 'image: initramfs'
	initramfs "$root"
	install -m 755 "$here/init" "$root/sbin/lab-init"
	dpkg-query --admindir="$root/var/lib/dpkg" -W -f='${Version}\n' libc6 | sed 's/^\([0-9]*\.[0-9]*\).*/glibc \1/' >"$OUT/glibc"
	# Directories of the lab's second disk, and places that the init script mounts upon.
	mkdir -p "$root/opt/lab" "$root/router" "$root/etc/calico-vni"
	rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
	echo 'image: file system'
	# Room to spare for logs; the file is sparse, and the machine writes to a snapshot of it in memory.
	rm -f "$OUT/root.ext4"
	# /proc and /sys are mounted in the new root while hooks run; a bind mount shows it without them.
	view=$(mktemp -d)
	mount --bind "$root" "$view"
	mke2fs -q -t ext4 -O ^has_journal -m 0 -E lazy_itable_init=0 -d "$view" "$OUT/root.ext4" 1G
	umount "$view"
	rmdir "$view"
	exit 0
fi

OUT=$(mkdir -p "$1" && cd "$1" && pwd)
export OUT
suite=${2:-bookworm}
mirror=${3:-http://deb.debian.org/debian}
exec mmdebstrap --variant=essential --format=null --include="$packages" \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
	--customize-hook="'$here/image.sh' --hook \"\$1\"" \
	"$suite" - "$mirror"
