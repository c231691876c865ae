#!/usr/bin/env bash
# Runs a command in the namespaces of this checkout's kind cluster, with its kubeconfig and its podman:
#
#   e2e/kind/in.sh kubectl get pods -A
#   e2e/kind/in.sh podman exec -it calico-vni-worker bash
set -euo pipefail
. "$(dirname "$0")/env.sh"
pid=$(pgrep -f "^$top/target/debug/lab kind inside") || { echo "no kind cluster is up: e2e/kind/up.sh" >&2; exit 1; }
PATH=$top/target/kube:$top/target/tools/bin:$PATH exec nsenter --target "$pid" --mount --net --pid -- "$@"
