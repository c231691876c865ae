# To be sourced: a podman of this checkout's own, below target/kind, that shares nothing with the machine's.
top=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
kind=$top/target/kind
mkdir -p "$kind/run"
cat >"$kind/storage.conf" <<END
[storage]
driver = "overlay"
graphroot = "$kind/containers/storage"
runroot = "$kind/run/storage"
END
# Where CAP_SYS_RESOURCE is missing, podman's own default limits cannot be set. crun refuses a machine with both versions of
# cgroups, so runc is used.
cat >"$kind/containers.conf" <<END
[containers]
pids_limit = 0
log_driver = "k8s-file"
default_ulimits = ["nofile=$(ulimit -Hn):$(ulimit -Hn)", "nproc=32768:32768"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
static_dir = "$kind/containers/libpod"
volume_path = "$kind/containers/volumes"
tmp_dir = "$kind/run/libpod"
[network]
network_backend = "netavark"
network_config_dir = "$kind/containers/networks"
END
export CONTAINERS_STORAGE_CONF=$kind/storage.conf CONTAINERS_CONF=$kind/containers.conf IMAGE_TOOL=podman
export KIND_EXPERIMENTAL_PROVIDER=podman KUBECONFIG=$kind/kubeconfig PATH=$kind/bin:$PATH
